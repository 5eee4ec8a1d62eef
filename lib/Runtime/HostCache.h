// What a library that moves caches between places needs of the host's, beside the functions and fields of Cache.h.
#ifndef ALIGNED_LIB_RUNTIME_HOSTCACHE_H
#define ALIGNED_LIB_RUNTIME_HOSTCACHE_H

#include "aligned/Runtime/Cache.h"

extern "C" {

/// Of a cache, what is no array that its pointers lead to.
typedef struct {
  const int64_t *lengths; /* [batch], of all entries, whether or not they are own */
  int32_t has_own_lengths;
  int32_t offset_is_set, bias_is_settled;
  int64_t bias;
  int64_t physical_pages; /* 0 without pages */
  int64_t asides;
  const aligned_aside *aside;
  const float *aside_values;
  const void *aside_patterns; /* [asides][head_dim] of the element type: the values as they came */
} aligned_cache_state;

/// Of a cache on the host. `lengths` is left as it is.
void aligned_cache_get_state(const aligned_cache *cache, aligned_cache_state *state);

/// Gives a new, empty cache on the host a state and pages for its lengths. Planes, codes and what is known of rows are the caller's to write through the cache's
/// pointers. Returns 0.
int aligned_cache_set_state(aligned_cache *cache, const aligned_cache_state *state);
}

#endif // ALIGNED_LIB_RUNTIME_HOSTCACHE_H
