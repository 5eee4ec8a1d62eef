// Memory for the arrays of caches out of large pages.
//
// Kernels read single rows of many arrays, here and there: from small pages each of them first waits for its address to be translated. An array of a large page or
// more gets pages of its own. Smaller ones, such as the planes of some thousand tokens, share chunks, each a few large pages, a grain at a time; what is free of a
// chunk is a list in the free memory itself, so that giving back can't fail. A chunk of which nothing is taken goes back to the system.
#ifndef ALIGNED_LIB_RUNTIME_LARGEPAGES_H
#define ALIGNED_LIB_RUNTIME_LARGEPAGES_H

#if defined(__linux__)

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <pthread.h>
#include <sys/mman.h>

namespace aligned {

class LargePages {
public:
  static constexpr size_t kPage = size_t(2) << 20, kGrain = 4096, kChunk = 4 * kPage;

  /// Never destroyed: caches may outlive main. A child of fork has it whole, whatever other threads were about.
  static LargePages &get() {
    static LargePages *pages = [] {
      auto *made = new LargePages;
      pthread_atfork([] { get().mutex.lock(); }, [] { get().mutex.unlock(); }, [] { get().mutex.unlock(); });
      return made;
    }();
    return *pages;
  }

  /// Zeros, aligned to a grain; null where there is no memory.
  void *take(size_t bytes) {
    if (bytes >= kPage)
      return map(bytes);
    bytes = whole(bytes);
    std::lock_guard<std::mutex> lock(mutex);
    Free **best = nullptr;
    Chunk *owner = nullptr;
    for (Chunk *chunk = chunks; chunk; chunk = chunk->next)
      for (Free **free = &chunk->free; *free; free = &(*free)->next)
        if ((*free)->bytes >= bytes && (!best || (*free)->bytes < (*best)->bytes))
          best = free, owner = chunk;
    if (best) {
      Free *block = *best, *next = block->next;
      if (const size_t left = block->bytes - bytes)
        *best = new (reinterpret_cast<char *>(block) + bytes) Free{left, next};
      else
        *best = next;
      owner->taken += bytes;
      return std::memset(static_cast<void *>(block), 0, bytes);
    }
    for (owner = chunks; owner && kChunk - owner->used < bytes;)
      owner = owner->next;
    if (!owner && !(owner = chunks = newChunk(chunks)))
      return nullptr;
    void *memory = owner->memory + owner->used; // never touched
    owner->used += bytes;
    owner->taken += bytes;
    return memory;
  }

  void give(void *memory, size_t bytes) {
    if (bytes >= kPage)
      return unmap(memory, bytes);
    bytes = whole(bytes);
    std::lock_guard<std::mutex> lock(mutex);
    char *start = static_cast<char *>(memory);
    Chunk **link = &chunks;
    while (start < (*link)->memory || start >= (*link)->memory + kChunk)
      link = &(*link)->next;
    Chunk *chunk = *link;
    if (!(chunk->taken -= bytes)) {
      *link = chunk->next;
      unmap(chunk->memory, kChunk);
      delete chunk;
      return;
    }
    Free *before = nullptr, *behind = chunk->free; // in the order of their addresses
    while (behind && reinterpret_cast<char *>(behind) < start)
      before = behind, behind = behind->next;
    Free *block = new (memory) Free{bytes, behind};
    (before ? before->next : chunk->free) = block;
    joinNext(block);
    if (before)
      joinNext(before);
  }

private:
  struct Free {
    size_t bytes;
    Free *next;
  };
  struct Chunk {
    Chunk *next;
    char *memory;
    size_t used = 0, taken = 0; ///< bytes: up to the last that was ever taken, and that are taken now
    Free *free = nullptr;
  };

  static size_t whole(size_t bytes) { return (bytes + kGrain - 1) / kGrain * kGrain; }

  static void joinNext(Free *block) {
    if (Free *next = block->next; next && reinterpret_cast<char *>(block) + block->bytes == reinterpret_cast<char *>(next))
      *block = {block->bytes + next->bytes, next->next};
  }

  static Chunk *newChunk(Chunk *next) {
    auto *memory = static_cast<char *>(map(kChunk));
    Chunk *chunk = memory ? new (std::nothrow) Chunk{next, memory} : nullptr;
    if (memory && !chunk)
      unmap(memory, kChunk);
    return chunk;
  }

  /// Starts at a large page: what lies around it goes back at once.
  static void *map(size_t bytes) {
    bytes = whole(bytes);
    void *around = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (around == MAP_FAILED)
      return nullptr;
    char *start = static_cast<char *>(around);
    const size_t before = (kPage - reinterpret_cast<uintptr_t>(start) % kPage) % kPage;
    if (before)
      munmap(start, before);
    if (kPage - before)
      munmap(start + before + bytes, kPage - before);
    madvise(start + before, bytes, MADV_HUGEPAGE);
    return start + before;
  }
  static void unmap(void *memory, size_t bytes) { munmap(memory, whole(bytes)); }

  std::mutex mutex;
  Chunk *chunks = nullptr;
};

} // namespace aligned

#endif
#endif // ALIGNED_LIB_RUNTIME_LARGEPAGES_H
