// A call that fails gives back what it had allocated: copies of caches that it appended to, buffers, on whichever thread. Leak checkers see it; without one, the heap's size is compared.
#include "Kernels.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

using namespace aligned;

namespace {

/// Bytes of the heap that are in use; 0 where nobody counts them.
size_t bytesInUse() {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
#else
  return 0;
#endif
}

/// Both caches are read as they were once they have been appended to, so that they are copied; then keys and values turn out to differ in length.
const char *const kAppendAndRead = R"(
!query = tensor<1x2x1x32xf32>
!key = tensor<1x2x?x32xf32>
!value = tensor<1x2x?x16xf32>
!out = tensor<1x2x1x16xf32>
func.func @f(%q: !query, %k: !key, %v: !value, %newK: tensor<1x2x1x32xf32>, %newV: tensor<1x2x1x16xf32>) -> (!out, !out, !key) {
  %scale = arith.constant 0.25 : f32
  %moreK = aligned.append %newK to %k : tensor<1x2x1x32xf32> to !key -> !key
  %moreV = aligned.append %newV to %v : tensor<1x2x1x16xf32> to !value -> !value
  %before = aligned.attention %q, %k, %v scale %scale : !query, !key, !value -> !out
  %after = aligned.attention %q, %moreK, %moreV scale %scale : !query, !key, !value -> !out
  return %before, %after, %moreK : !out, !out, !key
})";

struct FailingCall : testing::TestWithParam<const char *> {};

TEST_P(FailingCall, KeepsNothing) {
  std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)> module(aligned_module_compile(kAppendAndRead, GetParam(), nullptr), aligned_module_destroy);
  ASSERT_TRUE(module) << aligned_last_error();
  constexpr int64_t kTokens = 500, kCalls = 40;
  std::vector<float> query(2 * 32, 1), keys(2 * kTokens * 32, 1), values(2 * kTokens * 16, 1);
  auto arrayOf = [](std::vector<float> &data, int64_t heads, int64_t tokens, int64_t channels) {
    aligned_value value = {};
    value.array = {data.data(), {1, heads, tokens, channels}, {heads * tokens * channels, tokens * channels, channels, 1}, nullptr};
    return value;
  };
  auto call = [&](int64_t valueTokens, const char *expected) {
    aligned_value arguments[] = {arrayOf(query, 2, 1, 32), arrayOf(keys, 2, kTokens, 32), arrayOf(values, 2, valueTokens, 16), arrayOf(keys, 2, 1, 32), arrayOf(values, 2, 1, 16)};
    CachePointer caches[2] = {{nullptr, aligned_cache_destroy}, {nullptr, aligned_cache_destroy}};
    aligned_type type;
    for (int side : {0, 1})
      if (!aligned_module_argument(module.get(), 1 + side, &type) && type.is_cache) {
        const aligned_array array = arguments[1 + side].array;
        caches[side].reset(aligned_module_create_cache(module.get(), 1 + side, 0));
        ASSERT_EQ(aligned_cache_append(caches[side].get(), array.data, array.shape[2], array.strides), 0);
        arguments[1 + side].cache = caches[side].get();
      }
    aligned_value results[3];
    const int failed = aligned_module_call(module.get(), arguments, results);
    EXPECT_EQ(aligned_rt_is_running(), 0);
    if (expected) {
      EXPECT_NE(failed, 0);
      EXPECT_NE(std::string(aligned_last_error()).find(expected), std::string::npos) << aligned_last_error();
      return;
    }
    ASSERT_EQ(failed, 0) << aligned_last_error();
    for (int i : {0, 1})
      aligned_array_free(&results[i].array);
    if (type.is_cache)
      aligned_cache_destroy(results[2].cache);
    else
      aligned_array_free(&results[2].array);
  };
  for (auto [valueTokens, expected] : {std::pair(kTokens, static_cast<const char *>(nullptr)), std::pair(kTokens - 1, "expected key and value to agree in tokens")}) {
    SCOPED_TRACE(valueTokens);
    for (int i = 0; i < 5; ++i) // what is allocated once
      call(valueTokens, expected);
    const size_t before = bytesInUse();
    for (int i = 0; i < kCalls; ++i)
      call(valueTokens, expected);
    EXPECT_LT(bytesInUse(), before + kCalls * kTokens * 32); // copies of each call take several times that
  }
}

INSTANTIATE_TEST_SUITE_P(Storage, FailingCall, testing::Values("policy=tight", "policy=alignedkv", "policy=exact format=dense", "target=reference"));

} // namespace
