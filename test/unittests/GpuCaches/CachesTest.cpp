// Decode over caches in pages and of own lengths, with any number of splits, and as a captured step.
#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"
#include "aligned/Runtime/Cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace aligned;

namespace {

constexpr int64_t kBatch = 3, kKvHeads = 2, kGroup = 3, kDim = 64;

using Program = std::unique_ptr<aligned_program, decltype(&aligned_program_destroy)>;
using Cache = std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>;

class CachesOnGpu : public testing::TestWithParam<const char *> {
protected:
  static void SetUpTestSuite() {
    setenv("ALIGNED_LIBCUDA", ALIGNED_CUDA_EMULATOR, /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_SMS", "64", /*overwrite=*/0);        // so that splits are as many as the capacity allows
    setenv("ALIGNED_EMULATOR_COLLECTIVES", "0", /*overwrite=*/0); // shuffles do not order memory: barriers do
  }

  void SetUp() override {
    std::string q = "tensor<3x6x1x64xf16>", kv = "tensor<3x2x?x64xf16>";
    std::string source = "func.func @step(%q: " + q + ", %k: " + kv + ", %v: " + kv + ") -> " + q + " {\n  %scale = arith.constant 0.125 : f32\n  %out = aligned.attention %q, %k, %v scale %scale : " + q +
                         ", " + kv + ", " + kv + " -> " + q + "\n  return %out : " + q + "\n}\n";
    char *ptx = nullptr, *sidecar = nullptr;
    ASSERT_EQ(aligned_compile_kernels(source.c_str(), GetParam(), &ptx, &sidecar), 0) << aligned_last_error();
    program.reset(aligned_program_load(ptx, sidecar));
    aligned_text_free(ptx);
    aligned_text_free(sidecar);
    ASSERT_TRUE(program) << aligned_last_error();
    ASSERT_EQ(aligned_program_site_info(program.get(), 0, &site), 0);
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    for (auto [values, rows] : {std::pair(&q_, kBatch * kKvHeads * kGroup), std::pair(&k_, kBatch * kKvHeads * kTokens), std::pair(&v_, kBatch * kKvHeads * kTokens)})
      for (int64_t i = 0; i < rows * kDim; ++i)
        values->push_back(narrow(normal(random) * (values == &q_ ? 2 : 1), Storage::Half));
  }

  /// The first lengths[b] tokens of each batch entry, in two appends.
  void fill(aligned_cache *cache, const std::vector<uint16_t> &values, const std::vector<int64_t> &lengths) {
    const int64_t strides[] = {kKvHeads * kTokens * kDim, kTokens * kDim, kDim, 1};
    std::vector<int64_t> first, rest;
    for (int64_t length : lengths) {
      first.push_back(length / 2);
      rest.push_back(length - length / 2);
    }
    // The second part of each entry begins at another token: gathered, since one array serves all.
    int64_t most = *std::max_element(rest.begin(), rest.end());
    std::vector<uint16_t> gathered(kBatch * kKvHeads * most * kDim);
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row)
      for (int64_t t = 0; t < rest[row / kKvHeads]; ++t)
        std::copy_n(values.begin() + (row * kTokens + first[row / kKvHeads] + t) * kDim, kDim, gathered.begin() + (row * most + t) * kDim);
    const int64_t gatheredStrides[] = {kKvHeads * most * kDim, most * kDim, kDim, 1};
    ASSERT_EQ(aligned_cache_append_ragged(cache, values.data(), first.data(), strides), 0) << aligned_last_error();
    ASSERT_EQ(aligned_cache_append_ragged(cache, gathered.data(), rest.data(), gatheredStrides), 0) << aligned_last_error();
  }

  std::vector<float> decode(aligned_cache *key, aligned_cache *value, int32_t splits = 0) {
    std::vector<float> acc(kBatch * kKvHeads * kGroup * kDim), sum(kBatch * kKvHeads * kGroup);
    aligned_decode_call call = {};
    call.batch = kBatch;
    call.key = key;
    call.value = value;
    call.query = q_.data();
    call.scale = 0.125f;
    call.splits = splits;
    call.acc = acc.data();
    call.sum = sum.data();
    EXPECT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error();
    for (size_t i = 0; i < acc.size(); ++i)
      acc[i] = sum[i / kDim] == 0 ? 0 : acc[i] / sum[i / kDim];
    return acc;
  }

  void expectAttention(const std::vector<float> &got, const std::vector<int64_t> &lengths) {
    auto widened = [](const std::vector<uint16_t> &values, int64_t first, int64_t count) {
      std::vector<double> wide;
      for (int64_t i = first; i < first + count; ++i)
        wide.push_back(widen(values[i], Storage::Half));
      return wide;
    };
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
      SCOPED_TRACE("row " + std::to_string(row));
      int64_t tokens = lengths[row / kKvHeads];
      std::vector<double> q = widened(q_, row * kGroup * kDim, kGroup * kDim), k = widened(k_, row * kTokens * kDim, tokens * kDim), v = widened(v_, row * kTokens * kDim, tokens * kDim),
                          want(kGroup * kDim);
      exactAttention(q.data(), kGroup, k.data(), v.data(), tokens, kDim, kDim, 0.125, false, want.data());
      for (int64_t h = 0; h < kGroup; ++h) {
        double off = 0, size = 0;
        for (int64_t c = 0; c < kDim; ++c) {
          double difference = got[(row * kGroup + h) * kDim + c] - want[h * kDim + c];
          off += difference * difference;
          size += want[h * kDim + c] * want[h * kDim + c];
        }
        EXPECT_LE(std::sqrt(off), (GetParam() == std::string("policy=alignedkv") ? 8e-2 : 3.0 / 2048) * std::sqrt(size)) << "query head " << h;
      }
    }
  }

  static constexpr int64_t kTokens = 520;
  Program program{nullptr, aligned_program_destroy};
  aligned_program_site site;
  std::vector<uint16_t> q_, k_, v_;
};

TEST_P(CachesOnGpu, HaveOwnLengthsAndPages) {
  for (const std::vector<int64_t> &lengths : {std::vector<int64_t>{520, 65, 1}, std::vector<int64_t>{63, 0, 257}}) {
    Cache key(aligned_program_create_paged_cache(program.get(), &site.key, kBatch, kKvHeads, kDim, 16, 640), aligned_cache_destroy);
    Cache value(aligned_program_create_paged_cache(program.get(), &site.value, kBatch, kKvHeads, kDim, 16, 640), aligned_cache_destroy);
    ASSERT_TRUE(key && value) << aligned_last_error();
    fill(key.get(), k_, lengths);
    fill(value.get(), v_, lengths);
    std::vector<float> paged = decode(key.get(), value.get());
    expectAttention(paged, lengths);

    Cache plainKey(aligned_program_create_cache(program.get(), &site.key, kBatch, kKvHeads, kDim, 640), aligned_cache_destroy);
    Cache plainValue(aligned_program_create_cache(program.get(), &site.value, kBatch, kKvHeads, kDim, 640), aligned_cache_destroy);
    ASSERT_TRUE(plainKey && plainValue) << aligned_last_error();
    fill(plainKey.get(), k_, lengths);
    fill(plainValue.get(), v_, lengths);
    EXPECT_EQ(decode(plainKey.get(), plainValue.get()), paged);
  }
}

/// There is a split for each four blocks of the capacity, 3, 4 and 16, or as many as are asked for.
TEST_P(CachesOnGpu, GiveTheSameWithAnyNumberOfSplits) {
  std::vector<std::vector<float>> results;
  for (int64_t capacity : {576, 1024, 4096}) {
    Cache key(aligned_program_create_cache(program.get(), &site.key, kBatch, kKvHeads, kDim, capacity), aligned_cache_destroy);
    Cache value(aligned_program_create_cache(program.get(), &site.value, kBatch, kKvHeads, kDim, capacity), aligned_cache_destroy);
    ASSERT_TRUE(key && value) << aligned_last_error();
    fill(key.get(), k_, {520, 300, 64});
    fill(value.get(), v_, {520, 300, 64});
    for (int32_t splits : {0, 1, 5, 70}) {
      results.push_back(decode(key.get(), value.get(), splits));
      for (size_t i = 0; i < results.back().size(); ++i)
        EXPECT_NEAR(results.back()[i], results.front()[i], 1e-4) << capacity << ", " << splits << ", " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, CachesOnGpu, testing::Values("policy=tight", "policy=exact", "policy=alignedkv"),
                         [](const testing::TestParamInfo<const char *> &info) { return std::string(info.param).substr(7); });

} // namespace
