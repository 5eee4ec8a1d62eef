// Arrays of a cache: 64-byte aligned, with slack behind them that vectors may read.
//
// Planes of one cache are often of equal size, a large power of two, and so are those of K and V beside each other: without care their rows would
// meet in the same sets of a first-level cache. `skew` sets the start of an array off by so many times 17 cache lines. All but small arrays lie in large
// pages. Zeros, so that what lies behind the tokens of a tile is always the bits of something finite: nothing yet, or tokens that were forgotten.
#ifndef ALIGNED_LIB_RUNTIME_MEMORY_H
#define ALIGNED_LIB_RUNTIME_MEMORY_H

#include "LargePages.h"

#include "aligned/Storage/Layout.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <utility>

namespace aligned {

constexpr int64_t kTooLarge = -1;

/// The product of sizes, or `kTooLarge`, which it absorbs.
template <typename... Sizes> int64_t product(int64_t first, Sizes... rest) {
  for (int64_t size : {int64_t(rest)...})
    if (first < 0 || size < 0 || __builtin_mul_overflow(first, size, &first))
      return kTooLarge;
  return first;
}

/// Zeros at first. Copies hold the same memory, which goes with the last of them.
class Array {
public:
  /// Replaces what it holds by `bytes` bytes; no bytes are a null pointer. Leaves it alone and returns false if there is no memory.
  bool allocate(int64_t bytes, int64_t skew = 0) {
    const int64_t before = skew * 17 * 64, around = before + storage::kSlack;
    if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() / 2)
      return false;
    if (bytes == 0) {
      reset();
      return true;
    }
    try {
      std::shared_ptr<void> memory = zeros(bytes + around);
      if (!memory)
        return false;
      owner = std::move(memory);
      start = static_cast<char *>(owner.get()) + before;
      return true;
    } catch (const std::bad_alloc &) { // for the count of its copies
      return false;
    }
  }
  void reset() {
    owner.reset();
    start = nullptr;
  }

  template <typename Value> Value *as() const { return static_cast<Value *>(static_cast<void *>(start)); }
  explicit operator bool() const { return start; }

private:
  static constexpr int64_t kLeastOfLargePages = 16 << 10;

  static std::shared_ptr<void> zeros(int64_t bytes) {
#if defined(__linux__)
    if (bytes >= kLeastOfLargePages) {
      void *memory = LargePages::get().take(bytes);
      return memory ? std::shared_ptr<void>(memory, [=](void *given) { LargePages::get().give(given, bytes); }) : nullptr;
    }
#endif
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, bytes))
      return nullptr;
    return std::shared_ptr<void>(std::memset(memory, 0, bytes), std::free);
  }

  std::shared_ptr<void> owner;
  char *start = nullptr;
};

} // namespace aligned

#endif // ALIGNED_LIB_RUNTIME_MEMORY_H
