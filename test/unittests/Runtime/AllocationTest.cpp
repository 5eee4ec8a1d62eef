// Memory that runs out at every point of every call where it can: the call fails, says so, and has changed nothing; and it works once there is
// memory.

#include "Caches.h"

#include <cerrno>
#include <cstdlib>
#include <functional>

#if defined(__has_feature)
#define ALIGNED_HAS_FEATURE(x) __has_feature(x)
#else
#define ALIGNED_HAS_FEATURE(x) 0
#endif
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !ALIGNED_HAS_FEATURE(address_sanitizer) &&              \
    !ALIGNED_HAS_FEATURE(thread_sanitizer) && !ALIGNED_HAS_FEATURE(memory_sanitizer) // which have an allocator of their own

namespace {
thread_local int64_t allocationsLeft = -1; // -1: as many as there are
}

/// What the arrays of caches come from. An executable's comes before that of the C library.
extern "C" int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  if (allocationsLeft == 0)
    return ENOMEM;
  allocationsLeft -= allocationsLeft > 0;
  *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  return *memory ? 0 : ENOMEM;
}

using namespace caches;

namespace {

/// Calls `call` with ever more memory until it works, which takes at least `least` allocations. `check`: what must hold after each failure.
void withEverLittleMemory(int least, const std::function<bool()> &call, const std::function<void()> &check) {
  for (int allocations = 0; allocations < 100; ++allocations) {
    SCOPED_TRACE(std::to_string(allocations) + " allocations");
    allocationsLeft = allocations;
    const bool works = call();
    allocationsLeft = -1;
    if (works) {
      EXPECT_GE(allocations, least);
      return;
    }
    EXPECT_NE(std::string(aligned_last_error()).find("out of memory"), std::string::npos) << aligned_last_error();
    check();
    if (testing::Test::HasFailure())
      return;
  }
  FAIL() << "expected the call to work with 100 allocations";
}

/// The same of a call that changes a cache.
void expectAllOrNothing(const CachePtr &cache, int least, const std::function<int()> &call) {
  const aligned_cache before = *cache;
  const std::vector<Contents> contents = snapshot(*cache);
  const int64_t pages = aligned_cache_free_pages(cache.get()), bytes = aligned_cache_bytes(cache.get());
  withEverLittleMemory(
      least, [&] { return call() == 0; },
      [&] {
        EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
        EXPECT_TRUE(snapshot(*cache) == contents);
        EXPECT_EQ(aligned_cache_free_pages(cache.get()), pages);
        EXPECT_EQ(aligned_cache_bytes(cache.get()), bytes);
      });
}

constexpr int64_t kHeads = 2, kDim = 16;

class LittleMemory : public testing::TestWithParam<EveryStorage> {
protected:
  aligned_format format() const { return formatOf(GetParam()); }
  bool fixed() const { return isFixed(format()); }

  /// Two entries; now and then a token that is kept aside.
  Values values() const {
    Values values = randomValues(format().element, 2, kHeads, 200, kDim);
    for (int64_t t = 1; t < 200; t += 9)
      values.at(t % 4, t, 3) = encode(format().element, INFINITY);
    return values;
  }
  CachePtr plain() const { return create(format(), 2, kHeads, kDim); }
  CachePtr paged(int64_t pages) const {
    const aligned_format f = format();
    return CachePtr(aligned_cache_create_paged(&f, 2, kHeads, kDim, pages, 256));
  }
};
INSTANTIATE_TEST_SUITE_P(Allocation, LittleMemory, everyStorage(), nameOf);

TEST_P(LittleMemory, Create) {
  CachePtr cache;
  const aligned_format f = format();
  withEverLittleMemory(
      f.planes + 1 + fixed() * 3, [&] { return bool(cache = CachePtr(aligned_cache_create(&f, 2, kHeads, kDim, 64))); }, [] {});
  withEverLittleMemory(
      f.planes + 4 + fixed() * 3, [&] { return bool(cache = CachePtr(aligned_cache_create_paged(&f, 2, kHeads, kDim, 3, 64))); }, [] {});
}

TEST_P(LittleMemory, Append) {
  const Values all = values();
  for (int64_t denseLimit : {0, 100, 1000}) {
    CachePtr cache = plain(), expected = plain();
    ASSERT_EQ(aligned_cache_keep_dense(cache.get(), denseLimit), 0);
    for (int64_t end : {0, 2, 70, 71, 200}) { // few tokens and more, into an empty cache and into one that must grow
      const int64_t begin = cache->tokens;
      Block block(all, begin, end);
      auto append = [&] { return aligned_cache_append(cache.get(), block.data.data(), end - begin, block.strides); };
      expectAllOrNothing(cache, end == 0 || end == 71 ? 0 : format().planes, append);
      ASSERT_EQ(caches::append(expected, all, begin, end), 0);
      expectSameCaches(*cache, *expected);
    }
  }
}

TEST_P(LittleMemory, AppendRagged) {
  const Values all = values();
  for (bool pages : {false, true})
    for (int64_t count : {3, 70}) {
      const int64_t counts[] = {count, count / 2};
      CachePtr cache = pages ? paged(8) : plain();
      ASSERT_EQ(append(cache, all, 0, 50), 0);
      CachePtr copy = fork(cache); // shares pages that are not full
      Block block(all, 50, 50 + count);
      auto append = [&] { return aligned_cache_append_ragged(cache.get(), block.data.data(), counts, block.strides); };
      expectAllOrNothing(cache, 1, append);
      ASSERT_EQ(aligned_cache_append_ragged(copy.get(), block.data.data(), counts, block.strides), 0);
      expectSameCaches(*cache, *copy);
    }
}

TEST_P(LittleMemory, Fork) {
  const Values all = values();
  for (bool pages : {false, true}) {
    CachePtr cache = pages ? paged(8) : plain(), copy;
    ASSERT_EQ(append(cache, all, 0, 100), 0);
    ASSERT_EQ(aligned_cache_truncate_entry(cache.get(), 1, 70), 0);
    const int64_t freePages = aligned_cache_free_pages(cache.get());
    withEverLittleMemory(
        6, [&] { return bool(copy = CachePtr(aligned_cache_fork(cache.get()))); },
        [&] { EXPECT_EQ(aligned_cache_free_pages(cache.get()), freePages); });
    expectSameCaches(*copy, *cache);
    EXPECT_EQ(aligned_cache_free_pages(cache.get()), freePages);
  }
}

TEST_P(LittleMemory, PartWays) {
  const Values all = values();
  CachePtr cache = plain();
  ASSERT_EQ(append(cache, all, 0, 100), 0);
  CachePtr other = fork(cache);
  expectAllOrNothing(cache, 1, [&] { return aligned_cache_truncate_entry(cache.get(), 0, 20); });
  expectAllOrNothing(other, 1, [&] { return aligned_cache_release(other.get(), 0); });
  EXPECT_EQ(aligned_cache_length(cache.get(), 0), 20);
  EXPECT_EQ(aligned_cache_length(other.get(), 0), 0);
}

} // namespace

#endif
