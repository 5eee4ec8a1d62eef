/* What compiled models call, and how they are called: their memory, their parallel loops, their failures, and what a C function's arguments become.
 *
 * An object file (docs/Ahead.md) exports one C function. It hands its parameters on as an array of words, with the types of the model's arguments and results, and
 * aligned_rt_call does the rest. */
#ifndef ALIGNED_RUNTIME_CALL_H
#define ALIGNED_RUNTIME_CALL_H

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/Kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The version of all that objects rely on: this header, Kernel.h, and the fields of a cache. An object refers to the symbol of its version, so that the linker or the
 * loader refuses a runtime of another one. */
#define ALIGNED_RT_ABI 1
extern const int32_t aligned_rt_abi_1;

#define ALIGNED_RT_MAX_RANK 8

/* An argument or a result of a model. Objects hold it as it lies in memory. */
typedef struct {
  int32_t is_cache;
  int32_t bytes;    /* of an element of a dense array */
  int32_t rank;
  int32_t resident; /* of a cache: planes that are read */
  int64_t shape[ALIGNED_RT_MAX_RANK]; /* -1 where only the call says */
  aligned_format format;              /* of a cache */
} aligned_rt_type;

/* Checks what a C function was given, calls the model's `entry`, and stores its results. `types` are those of the arguments and then of the results; `words` are the C
 * function's parameters, in order:
 *
 *   argument: an array's address, and each size that its type leaves open; or a cache
 *   result:   the address to copy an array to; where its type leaves sizes open, the address of a pointer that gets memory to free, and that of `rank` sizes; or the address
 *             of a pointer that gets a cache, which may be null
 *
 * `entry` takes the addresses of what the model takes: of descriptors, and of caches. Returns 0, or -1 with a message in aligned_last_error(), and then nothing is left allocated. */
int aligned_rt_call(const char *name, const aligned_rt_type *types, int32_t arguments, int32_t results, void (*entry)(void **values), const int64_t *words);

/* Whether to give up a call, nonzero, which ends it with an error, having appended or not. `interrupt` is asked now and then while models that this thread calls run, and on
 * this thread; null: nobody. */
typedef int aligned_interrupt(void *context);
void aligned_on_interrupt(aligned_interrupt *interrupt, void *context);

/* The same in parts, for who knows descriptors himself. Runs `entry` as one call of a model of this name. Returns 0, and what it allocated for results is the caller's; or -1
 * with a message in aligned_last_error(), and then nothing is left allocated. */
int aligned_rt_run(const char *name, void (*entry)(void **values), void **values);
/* Whether this thread is in a call: 1 or 0. */
int aligned_rt_is_running(void);
/* Whether a cache is what an argument takes: its shape, -1 where any size is, its format, and how many planes are read. Returns 0, or -1 with a message. */
int aligned_rt_check_cache(const int64_t shape[4], const aligned_format *format, int32_t resident, const aligned_cache *cache, const char *argument);
/* Kernels take the length of a batch entry from its keys. Where a cache has own lengths, all caches of the call, by argument, null for arrays, must agree in them. Returns 0, or
 * -1 with a message. */
int aligned_rt_check_lengths(const aligned_cache *const *caches, int32_t count);
/* Copies an array with strides, of elements of `bytes` bytes, to where it lies contiguous. */
void aligned_rt_copy(void *to, const void *from, int32_t bytes, int32_t rank, const int64_t *shape, const int64_t *strides);

/* Called by the model's code. What it allocates is known, so that a call that fails frees it. */
void *aligned_rt_malloc(size_t bytes);
void aligned_rt_free(void *memory);
aligned_cache *aligned_rt_cache_create(const aligned_format *format, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t capacity);
aligned_cache *aligned_rt_cache_fork(const aligned_cache *cache);
void aligned_rt_cache_destroy(aligned_cache *cache);
/* aligned_rt_parallel for loops that may fail. */
void aligned_rt_loop(int64_t count, void (*body)(void *args, int64_t begin, int64_t end), void *args);
/* What an assertion that fails says, and then how it ends the call. */
int aligned_rt_say(const char *message);
void aligned_rt_fail(void);
/* __truncsfbf2 and __truncdfbf2, which not every libgcc has: to bfloat16, in the low bits of a register of floats. Code for a processor without such instructions calls them. */
float aligned_rt_truncsfbf2(float value);
float aligned_rt_truncdfbf2(double value);

#ifdef __cplusplus
}
#endif
#endif
