// What a call of compiled code holds, who ends it, and which caches go together in it; how bfloat16 is rounded for it.
#include "aligned/Runtime/Call.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

namespace {

/// Compiled code that allocates, frees some of it, and gives up.
void giveUp(void **) {
  EXPECT_EQ(aligned_rt_is_running(), 1);
  void *kept = aligned_rt_malloc(100);
  aligned_rt_free(aligned_rt_malloc(200));
  EXPECT_NE(kept, nullptr);
  const aligned_format format = {ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16, 3, {4, 4, 8}};
  aligned_cache *cache = aligned_rt_cache_create(&format, 1, 1, 16, 0);
  EXPECT_NE(cache, nullptr);
  aligned_rt_cache_destroy(aligned_rt_cache_fork(cache));
  aligned_rt_free(nullptr);
  aligned_rt_say("enough");
  aligned_rt_fail();
}

TEST(Call, GivesBackWhatItHolds) {
  EXPECT_EQ(aligned_rt_run("a test", giveUp, nullptr), -1); // or a leak checker complains
  EXPECT_STREQ(aligned_last_error(), "assertion failed in a test: enough");
  EXPECT_EQ(aligned_rt_is_running(), 0);
  aligned_rt_free(aligned_rt_malloc(300)); // of no call
}

TEST(Call, LeavesWhatItReturns) {
  void *result = nullptr, *values[] = {&result};
  EXPECT_EQ(aligned_rt_run("a test", [](void **values) { *static_cast<void **>(values[0]) = aligned_rt_malloc(8); }, values), 0);
  ASSERT_NE(result, nullptr);
  free(result);
}

/// Compiled code that takes seconds, in many loops.
void takeLong(void **) {
  for (int i = 0; i < 3000; ++i)
    aligned_rt_loop(2, [](void *, int64_t, int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }, nullptr);
}

TEST(Call, EndsWhereItIsGivenUp) {
  int asked = 0;
  aligned_on_interrupt([](void *asked) -> int { return ++*static_cast<int *>(asked) == 2; }, &asked);
  EXPECT_EQ(aligned_rt_run("a test", takeLong, nullptr), -1);
  aligned_on_interrupt(nullptr, nullptr);
  EXPECT_STREQ(aligned_last_error(), "assertion failed in a test: interrupted");
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(aligned_rt_is_running(), 0);
}

TEST(Call, WantsCachesOfEqualLengths) {
  const aligned_format format = {ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F32, 3, {4, 4, 8}};
  const float tokens[3 * 16] = {};
  const int64_t strides[4] = {0, 0, 16, 1};
  auto cacheOf = [&](std::vector<int64_t> lengths, bool own) {
    std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)> cache(aligned_cache_create(&format, lengths.size(), 1, 16, 0), aligned_cache_destroy);
    EXPECT_EQ(own ? aligned_cache_append_ragged(cache.get(), tokens, lengths.data(), strides) : aligned_cache_append(cache.get(), tokens, lengths[0], strides), 0);
    return cache;
  };
  const auto own = cacheOf({3, 2}, true), same = cacheOf({3, 2}, true), plain = cacheOf({3, 3}, false), alone = cacheOf({1}, false);
  auto check = [](std::vector<const aligned_cache *> caches) { return aligned_rt_check_lengths(caches.data(), int32_t(caches.size())); };
  EXPECT_EQ(check({nullptr, plain.get(), plain.get()}), 0);
  EXPECT_EQ(check({own.get(), nullptr, same.get(), alone.get()}), 0); // of another batch, whose attention is another
  EXPECT_EQ(check({nullptr, plain.get(), own.get()}), -1);
  EXPECT_STREQ(aligned_last_error(), "expected 2 tokens in batch entry 1 of argument 1, as in argument 2, which has own lengths, got 3");
}

/// The nearest bfloat16, of two that are as near the even one, by way of both neighbours in double.
uint16_t nearest(double x) {
  auto valueOf = [](uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return std::isinf(value) ? std::copysign(0x1p128, value) : double(value); // as far as the largest finite one's neighbour would be
  };
  const float towards = float(std::fabs(x));
  uint32_t bits;
  memcpy(&bits, &towards, sizeof bits);
  uint16_t low = bits >> 16;
  if (valueOf(low) > std::fabs(x)) // float() rounded up to it
    --low;
  const double below = std::fabs(x) - valueOf(low), above = low == 0x7f80 ? 1 : valueOf(low + 1) - std::fabs(x);
  return (below > above || (below == above && low & 1) ? low + 1 : low) | (std::signbit(x) ? 0x8000 : 0);
}

uint16_t lowBits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

TEST(Call, RoundsToBFloat16) {
  uint32_t random = 1;
  for (int i = 0; i < 200000; ++i) {
    random = random * 1664525 + 1013904223;
    const uint32_t bits = i % 2 ? random : (random & 0xffff0000) | 0x8000; // every second one lies in the middle
    float value;
    memcpy(&value, &bits, sizeof value);
    if (std::isnan(value))
      continue;
    EXPECT_EQ(lowBits(aligned_rt_truncsfbf2(value)), nearest(value)) << value;
    for (double more : {double(value), value * (1 + 0x1p-40), value * (1 - 0x1p-40)}) // nearer to a middle than float knows
      EXPECT_EQ(lowBits(aligned_rt_truncdfbf2(more)), nearest(more)) << more;
  }
  EXPECT_EQ(lowBits(aligned_rt_truncsfbf2(INFINITY)), 0x7f80);
  EXPECT_EQ(lowBits(aligned_rt_truncsfbf2(std::numeric_limits<float>::max())), 0x7f80);
  const uint16_t none = lowBits(aligned_rt_truncsfbf2(NAN));
  EXPECT_EQ(none & 0x7fc0, 0x7fc0);
}

} // namespace
