// What a call of compiled code has allocated and not freed yet.
//
// Compiled code frees what it allocates, or hands it to the caller with the results. A call that fails ends where an assertion fails, and frees nothing: so its buffers and
// caches are known here, and are freed for it. Parallel loops carry the call's memory to the threads that they run on.
#ifndef ALIGNED_LIB_JIT_CALLMEMORY_H
#define ALIGNED_LIB_JIT_CALLMEMORY_H

#include "aligned/Runtime/Cache.h"

#include "llvm/ADT/DenseSet.h"

#include <mutex>

namespace aligned {

class CallMemory {
public:
  /// This thread's call, where there is one.
  static CallMemory *&current();

  /// Frees what the call holds.
  void release();

  void add(void *buffer);
  void remove(void *buffer);
  void add(aligned_cache *cache);
  void remove(aligned_cache *cache);

private:
  std::mutex mutex;
  llvm::DenseSet<void *> buffers;
  llvm::DenseSet<aligned_cache *> caches;
};

/// Makes memory that of this thread's call, for as long as it lives.
struct CallMemoryScope {
  explicit CallMemoryScope(CallMemory *memory) : outer(CallMemory::current()) { CallMemory::current() = memory; }
  ~CallMemoryScope() { CallMemory::current() = outer; }
  CallMemoryScope(const CallMemoryScope &) = delete;
  CallMemory *const outer;
};

/// malloc, free and the runtime's functions as compiled code calls them.
void *callMalloc(size_t bytes);
void callFree(void *buffer);
aligned_cache *callCacheCreate(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity);
aligned_cache *callCacheFork(const aligned_cache *cache);
void callCacheDestroy(aligned_cache *cache);

} // namespace aligned

#endif // ALIGNED_LIB_JIT_CALLMEMORY_H
