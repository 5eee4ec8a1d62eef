/* Programs of the compiler on NVIDIA GPUs: caches in device memory, and the launches of append and decode kernels.
 *
 * The driver is found when it is first needed (libcuda.so.1, or what the environment's ALIGNED_LIBCUDA names); nothing has to be there to build or to link.
 * A program is PTX, which the driver compiles for the device at hand, with a sidecar in JSON that says how to launch it.
 *
 *   aligned_program *program = aligned_program_open("emitted");
 *   aligned_cache *key = aligned_program_create_cache(program, &keyFormat, batch, kvHeads, headDim, capacity), *value = ...;
 *   aligned_cache_append(key, k, tokens, strides);                 the functions of Cache.h take device caches
 *   aligned_decode_call call = {.batch = batch, .key = key, .value = value, .query = q, .scale = 0.125f, .acc = acc, .max = max, .sum = sum};
 *   aligned_program_decode(program, 0, &call);
 *
 * Calls queue work and return, but where something comes back to the host. Each thread queues on a stream of its own unless it is told another; a call
 * that uses the cache, program or graph that another stream's work uses comes after it. Device memory of the caller's is not looked after: it has to be
 * ready on the thread's stream. A cache is used by one thread at a time.
 *
 * Failing calls return null or a negative number and leave a message in aligned_last_error(). */
#ifndef ALIGNED_RUNTIME_CUDA_H
#define ALIGNED_RUNTIME_CUDA_H

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/Kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

/*===-- Device -------------------------------------------------------------===*/

/* 1 where there are a driver and a device. 0 and the reason in aligned_last_error() where not. */
int aligned_cuda_available(void);
/* Of the device that the calling thread's calls use: that of its current context, or the first. Null where there is none. */
const char *aligned_cuda_device_name(void);
/* 90 for 9.0. */
int aligned_cuda_compute_capability(void);
/* Its number, as DLPack and the driver count. */
int aligned_cuda_device(void);

/* The stream that the calling thread queues on, of the driver or the CUDA runtime; null: its own. The legacy default stream is (void *)1. */
void aligned_cuda_set_stream(void *stream);
/* Waits for what is queued on this thread's stream. */
int aligned_cuda_synchronize(void);

/* Device memory for callers that have no other library for it. Copies are queued; that to the host has been waited for. */
void *aligned_cuda_allocate(int64_t bytes);
void aligned_cuda_free(void *memory);
int aligned_cuda_copy_to_device(void *to, const void *from, int64_t bytes);
int aligned_cuda_copy_to_host(void *to, const void *from, int64_t bytes);

/* Times on the device: events are recorded on this thread's stream. */
void *aligned_cuda_event(void);
void aligned_cuda_event_destroy(void *event);
int aligned_cuda_event_record(void *event);
/* Waits for `to`. Negative on failure. */
double aligned_cuda_event_microseconds(void *from, void *to);

/*===-- Programs -----------------------------------------------------------===*/

typedef struct aligned_program aligned_program;

/* Checks the sidecar, and that the device can run what the PTX was made for. PTX that is loaded already is shared. */
aligned_program *aligned_program_load(const char *ptx, const char *sidecar_json);
/* Of folder/kernels.ptx and folder/kernels.json. */
aligned_program *aligned_program_open(const char *folder);
/* Caches and graphs of the program may be used on. */
void aligned_program_destroy(aligned_program *program);

/* What one decode attention takes. `heads` query rows, query heads of the group x queries, share a kv head; query row h is query h mod queries. */
typedef struct {
  int32_t site;          /* its number, as compiled */
  int32_t query;         /* aligned_element of queries */
  int32_t certified;     /* whether it gives a certificate */
  int32_t records;       /* whether its kernels say which bits they read; others read all that are resident */
  int32_t sink_logits, attn_mask; /* whether calls bring them */
  int32_t softcap, tolerance_factor, window, sinks, later; /* whether calls say them */
  int64_t kv_heads, heads, queries, key_dim, value_dim;
  aligned_format key, value; /* of kind ALIGNED_FORMAT_DENSE where a call brings arrays instead of caches */
} aligned_program_site;

int32_t aligned_program_sites(const aligned_program *program);
/* The `index`th, 0 .. sites - 1. */
int aligned_program_site_info(const aligned_program *program, int32_t index, aligned_program_site *info);
/* Whether there are kernels that append to such caches: 1 or 0. */
int aligned_program_appends(const aligned_program *program, const aligned_format *format, int64_t head_dim);

/*===-- Device caches ------------------------------------------------------===*/

/* As aligned_cache_create and aligned_cache_create_paged, in device memory; the program must have kernels that append to such caches. `capacity` grows when
 * more is appended, which copies the cache: say what will be needed. `location` is ALIGNED_LOCATION_CUDA; pointers are the device's, of use to kernels only. */
aligned_cache *aligned_program_create_cache(aligned_program *program, const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim,
                                            int64_t capacity);
aligned_cache *aligned_program_create_paged_cache(aligned_program *program, const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim,
                                                  int64_t physical_pages, int64_t max_tokens);

/* As aligned_cache_append and aligned_cache_append_ragged, from device memory. counts: [batch], on the host, or null where all entries get `count` tokens. */
int aligned_cuda_cache_append_device(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t strides[4]);

/* Copies between host and device; lengths, pages and dropped planes are kept. An uploaded cache can be decoded whether or not the program can append to it. */
aligned_cache *aligned_cuda_cache_upload(aligned_program *program, const aligned_cache *host);
aligned_cache *aligned_cuda_cache_download(const aligned_cache *device);

/*===-- Decode -------------------------------------------------------------===*/

/* Attention of one step, or its softmax states, from which out = acc / sum, 0 where sum is 0. Arrays are contiguous, those on the device that dense sites read aligned to 16 bytes; a null output is
 * not wanted. */
typedef struct {
  int64_t batch;               /* that of the caches */
  aligned_cache *key, *value;  /* on the device, of equal lengths; not looked at by dense sites */
  const void *query;           /* [batch, kv_heads, heads, key_dim] of the site's element */
  float scale;                 /* of scores */
  int32_t location;            /* aligned_location of arrays. On the host: the call waits for its results */
  int32_t finished;            /* 1: acc is the output, acc / sum, and max the logarithm of the sum of e^score, -inf where that is 0 */
  float *acc;                  /* [batch, kv_heads, heads, value_dim] */
  float *max, *sum;            /* [batch, kv_heads, heads] */
  float *certificate;          /* [batch, kv_heads, heads, ALIGNED_CERTIFICATE_NUMBERS], of certified sites (docs/Numerics.md, P4) */
  int32_t splits;              /* blocks of threads that share a row's tokens; 0: chosen for the device */
  /* Of sites that take them: logits without a value, [query heads], and a mask, [batch or 1, query heads or 1, queries or 1, tokens] as compiled, with as many
   * tokens as the longest entry of the caches. */
  const float *sink_logits;
  const void *attn_mask;
  /* Of sites that leave them to calls, 0 at others: a softcap from 1e-30 to 1e30; what multiplies tolerances, above 0, and 1 at others, too; the window, 1 token or more, and how
   * many first tokens are seen besides; and how many tokens of the caches, those of queries to come, are newer than the last query. */
  float softcap, tolerance_factor;
  int64_t window, sinks, later;
  /* Of dense sites: [batch, kv_heads, capacity, key_dim or value_dim] of the site's element, and how many tokens of each batch entry are there, [batch]. */
  const void *dense_key, *dense_value;
  const int64_t *lengths;
  int64_t capacity;
} aligned_decode_call;

/* Runs the kernels of a site. Where this thread records (aligned_rt_recording), what was read is copied back and reported as by kernels on the CPU. */
int aligned_program_decode(aligned_program *program, int32_t site, const aligned_decode_call *call);

/*===-- Captured steps -----------------------------------------------------===*/

/* One attention of a step: tokens that are appended first, one for each batch entry, [batch, kv_heads, 1, head_dim], or null; then decode. All memory is the
 * device's, and is read and written by every launch. */
typedef struct {
  int32_t site;
  const void *key_data, *value_data;
  aligned_decode_call call;
} aligned_step;

typedef struct aligned_graph aligned_graph;

/* Captures a step as a CUDA graph, without running it. Numbers of its calls are in it: what they are at capture they are at every launch. The caches must have room for what launches will append (they don't grow then), and outlive the graph. */
aligned_graph *aligned_program_capture(aligned_program *program, const aligned_step *steps, int32_t count);
/* Runs the step once more. Fails where a cache has no room left, or has grown since. */
int aligned_graph_launch(aligned_graph *graph);
void aligned_graph_destroy(aligned_graph *graph);

#ifdef __cplusplus
}
#endif
#endif
