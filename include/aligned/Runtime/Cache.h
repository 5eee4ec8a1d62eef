/* Split-precision storage of one KV cache tensor, as compiled code and C callers see it.
 *
 * A cache is a tensor [batch, kv_heads, tokens, head_dim] whose 16-bit values are cut into planes, most significant first,
 * so that a reader may stop after the bits it needs. batch and kv_heads fold into `rows`, row = batch_index * kv_heads + head.
 *
 * A plane of w bits is w/4 *nibble layers*; every width is a multiple of 4. What a decision fetches is contiguous (S3):
 *
 *   key, fixed   plane[p] = uint32 [rows][capacity/64][head_dim/4][w/4][32]
 *          word i of (block b, channel group c) holds channels 4c .. 4c+3 in its four bytes, the lowest first, so that it feeds a 4-way
 *          integer dot product; the low nibble of each byte belongs to token 64 b + i, the high nibble to token 64 b + i + 32.
 *   key, float   plane[p] = uint8  [rows][capacity/64][head_dim][w/4][32]
 *          channels are decided one by one; byte i holds token 64 b + i in its low nibble and token 64 b + i + 32 in its high nibble.
 *   value  plane[p] = uint8  [rows][capacity][w/4][head_dim/2]
 *          byte j holds channel j in its low nibble and channel j + head_dim/2 in its high nibble.
 *
 * fixed (S1): the 16 bits are n + 2^15 where n = clamp(rint(x / scale * 2^15) + dither), scale = 2^E * 16/15 and E is the exponent
 * just above the largest finite |x| that shares it: the 64 tokens of one channel for keys, the head_dim channels of one token for values.
 * `exponent` stores E + 112, which is the exponent field of the float 2^(E-15), one unit of n but for the 16/15.
 * dither = (t * 2531 + (c mod 4) * 1092) mod 4096 - 2048 for token t and channel c of keys, that of c = 0 for all values; the reader takes
 * it off.
 *
 * float (S2): the 16 bits are those of bfloat16 for bf16 caches, else of the IEEE half, to which f32 values are rounded (to nearest even;
 * one that overflows is listed in `escape` with its own value).
 *
 * Worked example, fixed<4,4,4,4>, key, E = 2 (scale = 64/15), token 0, channel 0 (dither -2048), x = 1.5:
 *   n = rint(1.5 * 15/64 * 32768) - 2048 = 11520 - 2048 = 9472;  n + 32768 = 42240 = 0xA500: planes A 5 0 0.
 *   Reading 4 bits gives 0xA000 + 2047.5 - 0x8000 + 2048 = 12287.5 -> 12287.5 / 32768 * 64/15 = 1.5999, within scale * 2^-4 = 0.27 of x:
 *   the 12 missing bits stand for the mean of what they may hold, (2^12 - 1) / 2.
 *
 * Open block (S4): the newest tokens mod 64 stay dense in the input type in `open`.
 * Non-finite values (S7) are stored as 0 in the planes and listed in `escape`; readers add weight * value to the sum they belong to, so that
 * IEEE arithmetic gives what dense attention gives. Tokens of the open block are never listed.
 *
 * Own lengths: batch entries may hold different numbers of tokens, `lengths`. Full blocks and open tokens of a row then follow from its entry's length,
 * and `tokens` is the largest.
 * Pages (S5): with a block table, `pages`, planes and exponents are arrays of physical blocks, [physical blocks][kv_heads] in the place of
 * [rows][capacity/64] above, that all batch entries take from as they grow:
 *
 *   place of block b of (batch entry n, head h) = pages ? pages[n * capacity/64 + b] * kv_heads + h : (n * kv_heads + h) * capacity/64 + b
 */
#ifndef ALIGNED_RUNTIME_CACHE_H
#define ALIGNED_RUNTIME_CACHE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ALIGNED_BLOCK 64      /* tokens that share one key exponent and are split together */
#define ALIGNED_MAX_PLANES 4

typedef enum { ALIGNED_ELEMENT_F16 = 0, ALIGNED_ELEMENT_BF16 = 1, ALIGNED_ELEMENT_F32 = 2 } aligned_element;
typedef enum { ALIGNED_ROLE_KEY = 0, ALIGNED_ROLE_VALUE = 1 } aligned_role;
/* DENSE is no cache's: it says of attention that it reads plain arrays. */
typedef enum { ALIGNED_FORMAT_FIXED = 0, ALIGNED_FORMAT_FLOAT = 1, ALIGNED_FORMAT_DENSE = 2 } aligned_format_kind;

/* What a split encoding says about a cache. Widths are multiples of 4 and sum to 16. */
typedef struct {
  int32_t kind;     /* aligned_format_kind */
  int32_t role;     /* aligned_role */
  int32_t element;  /* aligned_element of the values that are appended and of the open block */
  int32_t planes;   /* 1 .. ALIGNED_MAX_PLANES */
  int32_t width[ALIGNED_MAX_PLANES]; /* bits of each plane, most significant first; 0 past `planes` */
} aligned_format;

/* A value that is not finite, kept aside. */
typedef struct {
  int64_t row, token;
  int32_t channel;
  uint32_t bits; /* the pattern in the cache's 16-bit storage type, or the float's own for f32 caches */
  float value;
  int32_t reserved;
} aligned_escape;

/* Where a cache is: where its pointers point to. The struct itself is in the host's memory. */
typedef enum { ALIGNED_LOCATION_HOST = 0, ALIGNED_LOCATION_CUDA = 1 } aligned_location;

/* The fields that compiled code reads, in this order; code for the host never writes them. All buffers are 64-byte aligned. On a device a copy of this struct
 * in its memory is what kernels read, and what those that append write. */
typedef struct aligned_cache {
  int64_t rows;      /* batch * kv_heads */
  int64_t head_dim;
  int64_t tokens;    /* appended so far, in every row; tokens / 64 full blocks are split, tokens % 64 are open. With own lengths: the largest */
  int64_t capacity;  /* tokens that the planes have room for, a multiple of 64; with pages: that the block table has room for, per batch entry */
  void *plane[ALIGNED_MAX_PLANES];
  uint8_t *exponent;  /* fixed: key [rows][capacity/64][head_dim], value [rows][capacity]; float: null */
  float *channel_max; /* [rows][head_dim], largest finite |x| of each channel over all tokens appended, forgotten ones included */
  float *channel_mean; /* fixed value: [rows][head_dim], mean over the full blocks, what is not finite as 0: what a value that is not read stands for; else null */
  void *open;         /* element [rows][64][head_dim] */
  aligned_escape *escape;
  int64_t escapes;
  int64_t layers;     /* nibble layers (4 bits) that are resident, 4 when all are: reads are clamped to them (S6) */
  const int32_t *pages; /* null, or [batch][capacity/64]: the physical block of each full block (S5); -1 where there is none yet */
  int64_t *lengths;     /* null, or [batch]: tokens of each batch entry, where they may differ */
  int64_t escape_capacity; /* room in `escape`; what a device finds beyond it is counted in `escapes`, not kept, and the next call fails */
  int32_t location;     /* aligned_location */
  int32_t reserved;
  /* for C callers */
  int64_t batch, kv_heads;
  aligned_format format;
} aligned_cache;

/* Functions that can fail return null or a negative number and leave a message in aligned_last_error() (per thread); nothing is changed then.
 * All but those that make caches take caches of any location. */
const char *aligned_last_error(void);

/* Makes an empty cache. head_dim: a multiple of 16, 16 .. 256. capacity may be 0; it grows as tokens are appended. */
aligned_cache *aligned_cache_create(const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t capacity);
/* Makes an empty cache with pages (S5): `physical_blocks` blocks of 64 tokens, each for all heads, that the batch entries take as they fill them, and give
 * back with aligned_cache_release. It does not grow: appends fail when no block is left, and beyond `max_tokens` (rounded up to 64) tokens of an entry. */
aligned_cache *aligned_cache_create_paged(const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t physical_blocks,
                                          int64_t max_tokens);
void aligned_cache_destroy(aligned_cache *cache);
/* In the same location. */
aligned_cache *aligned_cache_clone(const aligned_cache *cache);

/* Appends `count` tokens from an array [batch, kv_heads, count, head_dim] of the cache's element type with the given strides in elements.
 * Blocks that become full are split once, with their exponents and dither, and never again. Returns 0. */
int aligned_cache_append(aligned_cache *cache, const void *data, int64_t count, const int64_t strides[4]);

/* Appends counts[n] tokens to batch entry n: the first counts[n] of its part of an array [batch, kv_heads, largest count, head_dim]. From then on the cache
 * has own lengths. Returns 0. */
int aligned_cache_append_ragged(aligned_cache *cache, const void *data, const int64_t *counts, const int64_t strides[4]);

/* Tokens of a batch entry. */
int64_t aligned_cache_length(const aligned_cache *cache, int64_t batch_entry);

/* Forgets all tokens of a batch entry, a sequence that is over, and what is known of their channels; its pages, if any, are free again. From then on the
 * cache has own lengths. Returns 0. */
int aligned_cache_release(aligned_cache *cache, int64_t batch_entry);

/* Physical blocks that no batch entry holds; 0 without pages. */
int64_t aligned_cache_free_blocks(const aligned_cache *cache);

/* Writes all tokens to a contiguous array [batch, kv_heads, tokens, head_dim] of the element type, reading the top `bits` bits of each
 * split value: whole planes, up to the first that holds bit number `bits`; 16 reads all. Open tokens and escapes are exact. What is behind
 * the tokens of a shorter batch entry is 0. Returns 0. */
int aligned_cache_join(const aligned_cache *cache, int bits, void *out);

/* Forgets the newest tokens until `tokens` are left, of each batch entry that has more. Only open tokens can be forgotten: tokens / 64 must equal the
 * cache's. Returns 0. */
int aligned_cache_truncate(aligned_cache *cache, int64_t tokens);

/* Drops the planes past the first `planes` (S6), those of blocks to come included, and returns their memory. Readers take what is left; a plane that is
 * dropped can't be had back. 1 <= planes <= those resident. Returns 0. */
int aligned_cache_drop_planes(aligned_cache *cache, int32_t planes);

/* Bytes of memory that the cache holds: planes and exponents up to its capacity, open block, what is known of the channels, escapes, block table and
 * lengths. */
int64_t aligned_cache_bytes(const aligned_cache *cache);

/* What the functions above do with caches that are elsewhere: they call these, which a library that makes such caches registers. `counts` is null where all
 * entries get `count` tokens. Arguments other than the cache are checked here as for the host, but not against its lengths. */
typedef struct {
  void (*destroy)(aligned_cache *cache);
  aligned_cache *(*clone)(const aligned_cache *cache);
  int (*append)(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t strides[4]);
  int64_t (*length)(const aligned_cache *cache, int64_t batch_entry);
  int (*release)(aligned_cache *cache, int64_t batch_entry);
  int64_t (*free_blocks)(const aligned_cache *cache);
  int (*join)(const aligned_cache *cache, int bits, void *out);
  int (*truncate)(aligned_cache *cache, int64_t tokens);
  int (*drop_planes)(aligned_cache *cache, int32_t planes);
  int64_t (*bytes)(const aligned_cache *cache);
} aligned_device_caches;

/* Registers the functions of a location; not owned, null takes them away. */
void aligned_register_device_caches(int32_t location, const aligned_device_caches *functions);

#ifdef __cplusplus
}
#endif
#endif
