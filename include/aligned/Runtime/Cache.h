/* Plane storage of one KV cache tensor, as compiled code and C callers see it.
 *
 * A cache is a tensor [batch, kv_heads, tokens, head_dim] whose 16-bit values are cut into planes, most significant first, so that a reader may stop after the
 * bits it needs. batch and kv_heads fold into `rows`, row = batch_index * kv_heads + head. Every token is stored by itself (S1): appending, dropping the newest
 * ones and copying pages touch nothing else. Storage/Scale.h says what the bits mean, Storage/Layout.h where they lie.
 *
 * fixed (S4): K is stored less `offset` and rotated (S2), V as it is. float (S8): the bits of bfloat16 for bf16 caches, else of the IEEE half, to which f32
 * values are rounded (to nearest even).
 *
 * Tokens that are kept aside (S7): those that hold a NaN or an infinity, and those whose values the planes can't hold (f32 beyond a half in float formats, a scale
 * beyond the largest code). Their planes and code are 0; `aside` lists them with all their values, those of K less the offset, not rotated. Readers leave their
 * planes out and take the values, so that IEEE arithmetic gives what dense attention gives.
 *
 * Own lengths: batch entries may hold different numbers of tokens, `lengths`; `tokens` is the largest.
 * Dense copy (S10): a short cache may hold its tokens as they were appended, too, for readers to whom planes don't pay yet (aligned_cache_keep_dense).
 * Pages: with a block table, `pages`, tiles are those of physical pages, [physical pages][kv_heads], that all batch entries take from as they grow.
 */
#ifndef ALIGNED_RUNTIME_CACHE_H
#define ALIGNED_RUNTIME_CACHE_H

#include "aligned/Storage/Format.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where a cache is: where its pointers point to. The struct itself is in the host's memory. */
typedef enum { ALIGNED_LOCATION_HOST = 0, ALIGNED_LOCATION_CUDA = 1 } aligned_location;

/* The fields that compiled code reads, in this order; code for the host never writes them. All buffers are 64-byte aligned and end with 64 bytes of slack. */
typedef struct aligned_cache {
  int64_t rows;      /* batch * kv_heads */
  int64_t head_dim;
  int64_t tokens;    /* appended so far, in every row. With own lengths: the largest */
  int64_t capacity;  /* tokens that there is room for, a multiple of 64; with pages: that the block table has room for, per batch entry */
  int64_t kv_heads;
  void *plane[ALIGNED_MAX_PLANES]; /* null past the resident ones */
  int64_t planes;         /* that are resident: reads are clamped to them (S9) */
  uint8_t *code;          /* fixed: [places][64], scale codes (S3); else null */
  int64_t bias;           /* fixed: of scale codes; settled by the first values of a bf16 or f32 cache */
  aligned_scales *scales; /* fixed: [rows] (M2, M3); else null */
  int64_t *sum;           /* fixed values: [rows][head_dim], sums of n - dither over the tokens that are not kept aside (M1), of resident bits; else null */
  float *offset;          /* fixed keys: [rows][head_dim], what is taken off K (S2); else null */
  float *channel_max;     /* [rows][head_dim], largest |x| of each channel over all tokens appended that are not kept aside; truncation leaves it */
  const int32_t *pages;   /* null, or [batch][capacity/64]: the physical page of each tile; -1 where there is none yet */
  int64_t *lengths;       /* null, or [batch]: tokens of each batch entry, where they may differ */
  aligned_aside *aside;   /* tokens kept aside, in no order */
  float *aside_values;    /* [asides][head_dim] */
  int64_t asides;
  const void *dense;      /* null, or the dense copy: [rows][dense_capacity][head_dim], all tokens as they were appended */
  int64_t dense_capacity;
  int32_t location;       /* aligned_location */
  int32_t reserved;
  /* for C callers */
  int64_t batch;
  aligned_format format;
  int64_t dense_limit; /* tokens up to which a dense copy is kept */
} aligned_cache;

/* Functions that can fail return null or a negative number and leave a message in aligned_last_error() (per thread); nothing is changed then.
 * All but those that make caches take caches of any location. */
const char *aligned_last_error(void);

/* Makes an empty cache. head_dim: a multiple of 16, 16 .. 256. capacity may be 0; it grows as tokens are appended. */
aligned_cache *aligned_cache_create(const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t capacity);
/* Makes an empty cache with pages: `physical_pages` pages of 64 tokens, each for all heads, that the batch entries take as they fill them, and give
 * back with aligned_cache_release and aligned_cache_truncate. It does not grow: appends fail when no page is left, and beyond `max_tokens` (rounded up to 64)
 * tokens of an entry. */
aligned_cache *aligned_cache_create_paged(const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t physical_pages,
                                          int64_t max_tokens);
void aligned_cache_destroy(aligned_cache *cache);
/* A copy that goes its own way, in the same location. Copies of a cache with pages share them, and the pool of free ones, until one of them writes to a page:
 * that takes a page of its own (a full page is never written to). */
aligned_cache *aligned_cache_fork(const aligned_cache *cache);
/* The same of some batch entries: entry n of the new cache holds what entry entries[n] holds. An entry may come several times, or not at all. A cache
 * that is elsewhere goes by way of the host, and its entries share no pages. */
aligned_cache *aligned_cache_select(const aligned_cache *cache, const int64_t *entries, int64_t count);

/* Writes all there is of a cache to `out` and returns how many bytes that takes; with null it only counts them. */
int64_t aligned_cache_save(const aligned_cache *cache, void *out);
/* A cache as it was saved, by this version of the library on a machine of the same byte order. Pages are not shared any more. */
aligned_cache *aligned_cache_load(const void *data, int64_t bytes);

/* Sets what is taken off K: [kv_heads, head_dim], a constant of the model. Of `fixed` keys, and only while the cache holds no token. Without it the first append
 * that brings 64 tokens or more to an empty row settles that row's: the mean of the first 64; one that brings fewer settles zero. Null: back to that. */
int aligned_cache_set_offset(aligned_cache *cache, const float *offset);

/* Keeps a dense copy while the cache holds no more than `tokens` tokens; the append that brings more lets it go, and so does whatever gives the cache own
 * lengths or drops planes. An empty cache begins anew. More than before can be asked of an empty cache only, less of any; 0: none. The cache is on the host and without pages.
 * Returns 0. */
int aligned_cache_keep_dense(aligned_cache *cache, int64_t tokens);

/* Appends `count` tokens from an array [batch, kv_heads, count, head_dim] of the cache's element type with the given strides in elements.
 * Nothing changes where it fails. Returns 0. */
int aligned_cache_append(aligned_cache *cache, const void *data, int64_t count, const int64_t strides[4]);

/* Puts `count` tokens from such an array in the place of those from `position` on, in every batch entry. What is known of the cache is then as if those before had never been
 * there, but for the largest magnitudes of float formats. The tokens must be there, and the cache be on the host and without pages. Nothing changes where it fails.
 * Returns 0. */
int aligned_cache_overwrite(aligned_cache *cache, int64_t position, const void *data, int64_t count, const int64_t strides[4]);

/* Appends counts[n] tokens to batch entry n: the first counts[n] of its part of an array [batch, kv_heads, largest count, head_dim]. From then on the cache
 * has own lengths. Returns 0. */
int aligned_cache_append_ragged(aligned_cache *cache, const void *data, const int64_t *counts, const int64_t strides[4]);

/* Tokens of a batch entry. */
int64_t aligned_cache_length(const aligned_cache *cache, int64_t batch_entry);

/* Forgets all tokens of a batch entry, a sequence that is over, and what is known of them; its pages, if any, are free again. From then on the
 * cache has own lengths. Returns 0. */
int aligned_cache_release(aligned_cache *cache, int64_t batch_entry);

/* Physical pages that no batch entry of the cache or of its copies holds; 0 without pages. */
int64_t aligned_cache_free_pages(const aligned_cache *cache);

/* Writes all tokens to a contiguous array [batch, kv_heads, tokens, head_dim] of the element type, reading the top `bits` bits of each
 * value: whole planes, up to the first that holds bit number `bits`; 16 reads all. Tokens kept aside are exact. What is behind
 * the tokens of a shorter batch entry is 0. Returns 0. */
int aligned_cache_unpack(const aligned_cache *cache, int bits, void *out);

/* Forgets the newest tokens until `tokens` are left, of each batch entry that has more; `tokens` is at most the cache's. Sums and counts of what is left are
 * what they were before the tokens came. Pages that become empty are free again. Returns 0. */
int aligned_cache_truncate(aligned_cache *cache, int64_t tokens);
/* The same of one batch entry; from then on the cache has own lengths. `tokens` is at most the entry's. Returns 0. */
int aligned_cache_truncate_entry(aligned_cache *cache, int64_t batch_entry, int64_t tokens);

/* Drops the planes past the first `planes` (S9), those of tokens to come included, and returns their memory. Readers take what is left; a plane that is
 * dropped can't be had back. 1 <= planes <= those resident. Returns 0. */
int aligned_cache_drop_planes(aligned_cache *cache, int32_t planes);

/* Bytes of memory that the cache holds: planes and scale codes up to its capacity, what is known of rows and channels, tokens kept aside, dense copy,
 * block table and lengths. */
int64_t aligned_cache_bytes(const aligned_cache *cache);

/* What the functions above do with caches that are elsewhere: they call these, which a library that makes such caches registers. `counts` is null where all
 * entries get `count` tokens. Arguments other than the cache are checked here as for the host, but not against its lengths. */
typedef struct {
  void (*destroy)(aligned_cache *cache);
  aligned_cache *(*fork)(const aligned_cache *cache);
  int (*set_offset)(aligned_cache *cache, const float *offset);
  int (*append)(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t strides[4]);
  int64_t (*length)(const aligned_cache *cache, int64_t batch_entry);
  int (*release)(aligned_cache *cache, int64_t batch_entry);
  int64_t (*free_pages)(const aligned_cache *cache);
  aligned_cache *(*download)(const aligned_cache *cache);                            /* a copy on the host, which whole caches are read from */
  aligned_cache *(*upload)(const aligned_cache *like, const aligned_cache *host); /* a copy of `host` where `like` is */
  int (*truncate)(aligned_cache *cache, int64_t batch_entry, int64_t tokens); /* -1: of all */
  int (*drop_planes)(aligned_cache *cache, int32_t planes);
  int64_t (*bytes)(const aligned_cache *cache);
} aligned_device_caches;

/* Registers the functions of a location; not owned, null takes them away. */
void aligned_register_device_caches(int32_t location, const aligned_device_caches *functions);

#ifdef __cplusplus
}
#endif
#endif
