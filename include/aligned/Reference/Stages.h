/* What the stages of a decode step mean (aligned.prepare, aligned.scan, aligned.attend; P2), one function for each.
 *
 * A function takes what the CPU's kernel of its stage takes, in the same order: query, caches, numbers, buffers. In front stands what that kernel is
 * specialised for. It reads caches value by value as Storage/Layout.h says where they lie, computes in double, and writes buffers of the kernel's
 * types, so that either may stand in for the other, one stage at a time:
 *
 *   prepare   digits, facts, mean                 of a row: a kv head of a batch entry with the query rows that share it
 *   scan      scores, tops, part                  of a split of it, ALIGNED_SPLIT_TILES tiles from tile `split` times as many on
 *   attend    acc, max, sum, certificate          of a split: its softmax state, and what was read
 *
 * Each goes by the buffers that it is given, not by what it would have written itself: scores that a kernel made a little differently lead to the
 * state that belongs to them.
 *
 * Buffers, with `rows` the query rows of a row, group * queries, and base-2 scores x = log2(e) s:
 *
 *   digits    [digits][rows][key_dim], the integers v that queries become: v = sum_i digits[i] 256^(digits - 1 - i)
 *   facts     [rows + 1][ALIGNED_FACTS], of query rows (aligned_fact), then of the row (aligned_row_fact)
 *   mean      [value_dim]
 *   scores    [tiles of the split][rows][64], -1e38 where a query sees nothing. No offset of K is in them. With a softcap neither cap nor numbers of
 *             a mask are, so that finer K can be added. Tiles of which the mask lets no query see a token are left as they are
 *   tops      [tiles of the split][rows][ALIGNED_TOP_LANES], of which the largest counts
 *   part      [2][rows]; parts: [splits][2][rows]
 *   acc       [rows][value_dim], max and sum [rows], certificate [rows][ALIGNED_CERTIFICATE_NUMBERS] or null
 */
#ifndef ALIGNED_REFERENCE_STAGES_H
#define ALIGNED_REFERENCE_STAGES_H

#include "aligned/Runtime/Cache.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ALIGNED_SPLIT_TILES 32
#define ALIGNED_TOP_LANES 16
#define ALIGNED_FACTS 8
/* sum w g, sum w g m, sum w m, sum w r, variance, max m, what errs in common, variance of sum (P4). States merge: numbers grow as acc does, the
 * variances twice as much, and of max m the larger one stays. */
#define ALIGNED_CERTIFICATE_NUMBERS 8

/* Scales in facts are in units of codes: 2^(code/8 - 16), which leaves out the cache's bias. */
typedef enum {
  ALIGNED_FACT_UNIT,      /* x = unit * 2^(code/8 - 16) * sum_c v_c n'_c, n' what is read of n, less the dither */
  ALIGNED_FACT_SUM,       /* sum_c v_c */
  ALIGNED_FACT_NORM,      /* |q'|, q' the query rotated, times the scale of scores */
  ALIGNED_FACT_MASS,      /* |q'|_1 */
  ALIGNED_FACT_SHRINK,    /* log2 of what thresholds take Z times (P5) */
  ALIGNED_FACT_NOT_FINITE, /* NaN where the query is not finite, else 0 */
  ALIGNED_FACT_LOG_SEEN,  /* log2 of the tokens that the row sees by position, of 1 where it sees none, less that of the square of `tolerance_factor` */
  ALIGNED_FACT_SHIFT      /* what the offset takes off every score, in base 2 */
} aligned_fact;
typedef enum {
  ALIGNED_ROW_FACT_LOG_USUAL,   /* log2 A (M2), in octaves of codes: log2(usual) + 16 */
  ALIGNED_ROW_FACT_USUAL,       /* A, in value units */
  ALIGNED_ROW_FACT_VALUE_UNIT,  /* the scale of V that 2^(code/8 - 16) = 1 stands for */
  ALIGNED_ROW_FACT_LARGEST_KEY, /* the largest code of K */
  ALIGNED_ROW_FACT_FLOOR_VALUE, /* V's floor, a code (M3) */
  ALIGNED_ROW_FACT_SPREAD,      /* rms of what a row of V that is not read is off by, relative to its scale (E1) */
  ALIGNED_ROW_FACT_FILL,        /* rms of values of V, relative to their scale (E1) */
  ALIGNED_ROW_FACT_FULL         /* 1 where the scan reads all of K, since it might be off by more octaves than floats have room for, else 0 */
} aligned_row_fact;

/* A step of a staircase (P7): the most bits from an age on. */
typedef struct {
  int64_t age, bits;
} aligned_stage_age;

/* What a policy says of one side of a kv head. */
typedef struct {
  double tolerance;
  int64_t least, most;   /* bits (P7) */
  int64_t newest, sinks; /* tokens that are read exactly */
  int64_t ages;          /* steps of its staircase: the stage's next ones behind those of the sides before */
} aligned_stage_side;

/* What a mask that is an operand holds: numbers to add, or whether a token is seen, a byte each. */
typedef enum {
  ALIGNED_MASK_F16 = ALIGNED_ELEMENT_F16,
  ALIGNED_MASK_BF16 = ALIGNED_ELEMENT_BF16,
  ALIGNED_MASK_F32 = ALIGNED_ELEMENT_F32,
  ALIGNED_MASK_BOOL
} aligned_mask_element;

/* What the kernels of an attention's stages are specialised for. */
typedef struct {
  int64_t group, queries; /* query heads of a kv head, and queries of each; query row h is query h mod queries */
  int64_t kv_heads, key_dim, value_dim;
  int64_t key_planes, value_planes; /* that the types of K and V have: caches may hold more */
  int64_t element;                  /* aligned_element of the query */
  int64_t digits;
  int64_t exact;                 /* whether every bit is read of what is seen; no tolerance or limit counts then */
  int64_t causal, window, sinks; /* A11; window 0: none */
  double softcap;                /* A12; 0: none */
  int64_t masked_zero;
  int64_t mask_element;                          /* aligned_mask_element; of operands that are masks (P8) */
  int64_t mask_batch, mask_heads, mask_queries;  /* whether it has numbers for each of these, or one for all */
  const aligned_stage_side *sides; /* [kv_heads][2]: key, value */
  const aligned_stage_age *ages;
} aligned_stage;

/* `later`: tokens newer than the last query. `tolerance_factor` multiplies the tolerances of the stage. `mask`: null, or [batch or 1, q_heads or 1, queries or 1, tokens of the cache]. `sink_logits`: null, or
 * [q_heads], logits without a value. */
void aligned_reference_prepare(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, float scale,
                               int64_t row, int64_t later, float tolerance_factor, int8_t *digits, float *facts, float *mean);

void aligned_reference_scan(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, float scale,
                            int64_t row, int64_t split, int64_t later, const void *mask, const int8_t *digits, const float *facts, float *scores,
                            float *tops, float *part);

/* `key_bits` and `value_bits`: null, or [tokens of the split]. On entry the fewest bits to read of tokens that some query sees, such as a kernel read, 0 for
 * what the rule asks; afterwards what was read: of tokens that no query sees 0, of K with the scan's, of what is kept aside 16. */
void aligned_reference_attend(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, int64_t row,
                              int64_t split, int64_t later, const void *mask, const float *sink_logits, const int8_t *digits, const float *facts,
                              const float *mean, const float *scores, const float *tops, const float *parts, float *acc, float *max, float *sum,
                              float *certificate, uint8_t *key_bits, uint8_t *value_bits);

#ifdef __cplusplus
}
#endif
#endif
