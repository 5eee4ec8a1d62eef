/* What compiled kernels call: a thread pool, scratch memory, a tally of what was read, and a clock. */
#ifndef ALIGNED_RUNTIME_KERNEL_H
#define ALIGNED_RUNTIME_KERNEL_H

#include "aligned/Reference/Stages.h"
#include "aligned/Runtime/Cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs body(args, begin, end) over disjoint ranges that cover [0, count), on the calling thread and the pool's. On T threads the first count / T * T items run side by
 * side, and calls nested in them in place. The other count % T run one after another on the calling thread, and calls nested in them on all threads. */
void aligned_rt_parallel(int64_t count, void (*body)(void *args, int64_t begin, int64_t end), void *args);

/* Threads that aligned_rt_parallel uses, the caller included; at least 1. Takes effect with the next call. */
void aligned_rt_set_threads(int32_t threads);
int32_t aligned_rt_threads(void);

/* Scratch memory of the calling thread, 64-byte aligned, valid until its next call on the same thread. Never null: exits with a message if memory is out. */
void *aligned_rt_scratch(int64_t bytes);

/* What one kernel call read of one row, in bits. Sums over rows and calls; `key_values` counts how many values a dense kernel would have read. */
typedef struct {
  int64_t key_bits, value_bits;     /* read: planes and scale codes */
  int64_t key_values, value_values; /* held: tokens * head_dim */
  int64_t rows;                     /* kernel rows that reported */
} aligned_tally;

/* Called by compiled code once per row, or per split of one. `attention` is the attention's number in its module. Adds to the tally list that is installed, if any. */
void aligned_rt_tally(int32_t attention, int64_t key_bits, int64_t key_values, int64_t value_bits, int64_t value_values);

/* Installs `list` (one entry per attention of the module, `attentions` of them) for kernels started from this thread; null removes it. Not owned. */
void aligned_rt_record(aligned_tally *list, int32_t attentions);

/* Which bits a kernel read of tokens first .. first + tokens - 1 of a row. With one `channels`, key_bits is [tokens]; else it is [tiles of 64 tokens][channels], where
 * all tokens of a tile are read alike. value_bits is [tokens]. In tiles that no query sees, all are 0. In others kernels scan every token, so that key_bits is at least the first
 * plane even of tokens that no query sees, whose value_bits is 0. (With `target=reference` such tokens are not scanned: both are 0.) Valid during the call, which may come from any
 * thread of the pool. */
typedef void aligned_bits_listener(void *context, int32_t attention, int64_t row, int64_t first, int64_t tokens, int64_t channels, const uint8_t *key_bits,
                                   const uint8_t *value_bits);

/* Called by compiled code where aligned_rt_recording() asks for it. Tells the listener that is installed, if any. */
void aligned_rt_bits(int32_t attention, int64_t row, int64_t first, int64_t tokens, int64_t channels, const uint8_t *key_bits, const uint8_t *value_bits);

/* Installs a listener for kernels started from this thread; null removes it. */
void aligned_rt_record_bits(aligned_bits_listener *listener, void *context);

/* What is installed where this is called: the sum of ALIGNED_RECORD_*. Kernels ask before they write down more than sums. */
#define ALIGNED_RECORD_TALLY 1
#define ALIGNED_RECORD_BITS 2
int aligned_rt_recording(void);

/* Parts of a decode step, in the order in which kernels finish them. */
enum {
  ALIGNED_PART_CALL,    /* what is no kernel: arguments, loops over rows and splits, states merged */
  ALIGNED_PART_PREPARE, /* the query as integers, what is known of a row's scales */
  ALIGNED_PART_SCAN,    /* coarse scores and what they add up to */
  ALIGNED_PART_RULE,    /* thresholds */
  ALIGNED_PART_LIST,    /* tokens above them */
  ALIGNED_PART_REFINE,  /* finer K */
  ALIGNED_PART_WEIGH,   /* weights of rows of V */
  ALIGNED_PART_ADD,     /* rows of V times weights */
  ALIGNED_PART_FINISH,  /* the state of a split */
  ALIGNED_PARTS
};

/* Called by kernels that were compiled with `profile` where a part ends: the time since this thread's last call is the part's. */
void aligned_rt_lap(int32_t part);

/* What parts took since the last call, in nanoseconds, summed over threads: ns[ALIGNED_PARTS]. */
void aligned_rt_take_laps(double *ns);

/* What compiled code hands to one attention: addresses of contiguous arrays in host memory, and caches; dense ones are arrays of `tokens` tokens. */
typedef struct {
  const void *query;  /* [batch, q_heads, queries, key_dim] */
  void *key, *value;  /* aligned_cache, or [batch, kv_heads, tokens, ..] */
  float *acc;         /* as query with the value's head_dim */
  float *max, *sum;   /* [batch, q_heads, queries] */
  float *certificate; /* [batch, q_heads, queries, 8], or null */
  float scale;
  int64_t tokens;
  int64_t later;      /* tokens newer than the last query; read by kernels that are asked for it only, as the next two are */
  const void *attn_mask;    /* [batch or 1, q_heads or 1, queries or 1, tokens] */
  const float *sink_logits; /* [q_heads] */
} aligned_kernel_arguments;

/* Exact attention of one call in float64, for `target=reference`: q [batch, q_heads, queries, head_dim], k, v [batch, kv_heads, tokens, ..], out as q with v's
 * head_dim. Elements as given, contiguous, any order of rows. masked_zero: a row whose scores are all -inf yields 0, else NaN.
 * causal, window (0: none) and sinks are those of #aligned.mask, softcap (0: none) the op's. attn_mask, added, or null: bits 0, 1, 2 of mask_dims say whether batch, q_heads and
 * queries have numbers of their own. sink_logits: [q_heads] or null. */
void aligned_rt_reference_attention(const void *q, const void *k, const void *v, void *out, int32_t element, int64_t batch, int64_t q_heads,
                                    int64_t kv_heads, int64_t queries, int64_t tokens, int64_t key_dim, int64_t value_dim, float scale,
                                    int32_t masked_zero, int32_t causal, int64_t window, int64_t sinks, double softcap,
                                    const float *attn_mask, int32_t mask_dims, const float *sink_logits);

/* The same as a softmax state: acc [batch, q_heads, queries, value_dim], max and sum [batch, q_heads, queries]. `later`: tokens newer than the last query. */
void aligned_rt_reference_state(const float *q, const float *k, const float *v, float *acc, float *max, float *sum, int64_t batch, int64_t q_heads,
                                int64_t kv_heads, int64_t queries, int64_t tokens, int64_t key_dim, int64_t value_dim, float scale,
                                int32_t masked_zero, int32_t causal, int64_t window, int64_t sinks, int64_t later, double softcap,
                                const float *attn_mask, int32_t mask_dims, const float *sink_logits);

/* The stages of a decode step in float64, for `target=reference`: those of Reference/Stages.h, with what is read reported as kernels do. */
void aligned_rt_reference_prepare(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, float scale,
                                  int64_t row, int64_t later, float tolerance_factor, int8_t *digits, float *facts, float *mean);
void aligned_rt_reference_scan(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, float scale,
                               int64_t row, int64_t split, int64_t later, const void *mask, const int8_t *digits, const float *facts, float *scores,
                               float *tops, float *part);
void aligned_rt_reference_attend(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, int64_t row,
                                 int64_t split, int64_t later, const void *mask, const float *sink_logits, const int8_t *digits, const float *facts,
                                 const float *mean, const float *scores, const float *tops, const float *parts, float *acc, float *max, float *sum,
                                 float *certificate, int32_t attention);

#ifdef __cplusplus
}
#endif
#endif
