// What a library that moves caches between places needs of the host's, beside the functions of Cache.h.
#ifndef ALIGNED_LIB_RUNTIME_HOSTCACHE_H
#define ALIGNED_LIB_RUNTIME_HOSTCACHE_H

#include "aligned/Runtime/Cache.h"

extern "C" {

/// Gives a new host cache the contents that are no arrays of fixed place: tokens, lengths (or null), the block table (or null; of
/// the same sizes), escapes. Planes, exponents, open tokens and what is known of channels are the caller's to write through the
/// cache's pointers. Returns 0.
int aligned_cache_restore(aligned_cache *cache, int64_t tokens, const int64_t *lengths, const int32_t *pages,
                          const aligned_escape *escapes, int64_t count);
}

#endif
