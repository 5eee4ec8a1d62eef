/* A cache in device memory, as kernels that append see it: an aligned_cache whose pointers are the device's, and behind it what a cache on the host keeps to
 * itself. Kernels that only read take it for an aligned_cache, but for how many tokens kept aside there is room for. */
#ifndef ALIGNED_RUNTIME_DEVICECACHE_H
#define ALIGNED_RUNTIME_DEVICECACHE_H

#include "aligned/Runtime/Cache.h"

typedef struct {
  aligned_cache cache;     /* `asides` counts tokens that found no room, too */
  int64_t aside_capacity;  /* tokens kept aside that there is room for */
  void *aside_patterns;    /* [aside_capacity][head_dim] of the element type: their values as they came */
  int32_t offset_is_set;   /* by aligned_cache_set_offset: no append settles it (S2) */
  int32_t bias_is_settled; /* whether a value has settled it (S3); of f16 caches always */
  int32_t largest;         /* while it isn't: bits of the largest value that an append in progress brings */
  int32_t reserved;
} aligned_device_cache;

#endif
