// See the header.
#include "CallMemory.h"

#include <cstdlib>

using namespace aligned;

CallMemory *&CallMemory::current() {
  thread_local CallMemory *memory = nullptr;
  return memory;
}

void CallMemory::release() {
  for (void *buffer : buffers)
    free(buffer);
  for (aligned_cache *cache : caches)
    aligned_cache_destroy(cache);
  buffers.clear();
  caches.clear();
}

void CallMemory::add(void *buffer) {
  std::lock_guard<std::mutex> lock(mutex);
  buffers.insert(buffer);
}
void CallMemory::remove(void *buffer) {
  std::lock_guard<std::mutex> lock(mutex);
  buffers.erase(buffer);
}
void CallMemory::add(aligned_cache *cache) {
  std::lock_guard<std::mutex> lock(mutex);
  caches.insert(cache);
}
void CallMemory::remove(aligned_cache *cache) {
  std::lock_guard<std::mutex> lock(mutex);
  caches.erase(cache);
}

/// What was allocated, or null where nothing was.
template <typename T> static T *known(T *allocated) {
  if (CallMemory *memory = CallMemory::current(); memory && allocated)
    memory->add(allocated);
  return allocated;
}
template <typename T> static T *forgotten(T *allocated) {
  if (CallMemory *memory = CallMemory::current(); memory && allocated)
    memory->remove(allocated);
  return allocated;
}

void *aligned::callMalloc(size_t bytes) { return known(malloc(bytes)); }
void aligned::callFree(void *buffer) { free(forgotten(buffer)); }
aligned_cache *aligned::callCacheCreate(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity) {
  return known(aligned_cache_create(format, batch, kvHeads, headDim, capacity));
}
aligned_cache *aligned::callCacheFork(const aligned_cache *cache) { return known(aligned_cache_fork(cache)); }
void aligned::callCacheDestroy(aligned_cache *cache) { aligned_cache_destroy(forgotten(cache)); }
