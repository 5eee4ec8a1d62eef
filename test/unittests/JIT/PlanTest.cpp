// The bits that compiled kernels say they read, unit by unit, against the plans of the reference. Kernels predict in float32, so that a need that lies at
// the edge of a plane may fall to either side of it: few units differ, and those by one plane. A slip of a block, a channel or a token differs in many.
#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace aligned;

namespace {

constexpr int64_t kHeads = 2, kGroup = 3, kKeyDim = 32, kValueDim = 48;

/// Heads with loud channels of K, loud tokens and probabilities that differ by orders of magnitude.
HeadInputs structuredHead(int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  auto fill = [&](int64_t rows, int64_t dim, auto scale) {
    std::vector<double> values;
    for (int64_t i = 0; i < rows * dim; ++i)
      values.push_back(widen(narrow(normal(random) * scale(i / dim, i % dim), Storage::Half), Storage::Half));
    return values;
  };
  auto q = fill(kGroup, kKeyDim, [](int64_t, int64_t c) { return c % 5 ? 2.0 : 0.1; });
  auto k = fill(tokens, kKeyDim, [](int64_t, int64_t c) { return c == 3 ? 8.0 : c < 8 ? 0.05 : 1.0; });
  auto v = fill(tokens, kValueDim, [](int64_t t, int64_t) { return t % 17 ? 1.0 : 6.0; });
  return {kGroup, tokens, kKeyDim, kValueDim, q, k, v, 0.25, Storage::Half};
}

struct Plan {
  int64_t units = 0;
  std::vector<int> keyBits, valueBits;
};

void listen(void *context, int32_t, int64_t row, int64_t blocks, int64_t units, const uint8_t *keyLayers, const uint8_t *valueLayers) {
  Plan &plan = static_cast<Plan *>(context)[row]; // each row its own: they run on several threads
  plan.units = units;
  for (int64_t i = 0; i < blocks * units; ++i)
    plan.keyBits.push_back(4 * keyLayers[i]);
  for (int64_t i = 0; i < 64 * blocks; ++i)
    plan.valueBits.push_back(4 * valueLayers[i]);
}

void expectAlike(const std::vector<int> &got, const std::vector<int> &want) {
  ASSERT_EQ(got.size(), want.size());
  size_t different = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(std::abs(got[i] - want[i]), 4) << i;
    different += got[i] != want[i];
  }
  EXPECT_LE(different, got.size() / 50);
}

class PlanOfKernels : public testing::TestWithParam<std::pair<const char *, double>> {};

TEST_P(PlanOfKernels, IsThatOfTheReference) {
  auto [policy, tolerance] = GetParam();
  std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)> module(aligned_module_compile(R"(
func.func @step(%q: tensor<1x6x1x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x48xf16>) -> tensor<1x6x1x48xf32> {
  %scale = arith.constant 0.25 : f32
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x48xf16> -> tensor<1x6x1x48xf32>
  return %out : tensor<1x6x1x48xf32>
})", (std::string("policy=") + policy).c_str(), nullptr), aligned_module_destroy);
  ASSERT_TRUE(module) << aligned_last_error();

  for (int64_t tokens : {1, 63, 64, 97, 1000}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<HeadInputs> heads;
    std::vector<uint16_t> rows[3]; // q, k, v of all heads
    for (int64_t head = 0; head < kHeads; ++head) {
      heads.push_back(structuredHead(tokens, 7 + head));
      int side = 0;
      for (const std::vector<double> *values : {&heads.back().q, &heads.back().k, &heads.back().v}) {
        for (double x : *values)
          rows[side].push_back(narrow(x, Storage::Half));
        ++side;
      }
    }
    aligned_value arguments[3] = {}, result = {};
    arguments[0].array = {rows[0].data(), {1, kHeads * kGroup, 1, kKeyDim}, {kHeads * kGroup * kKeyDim, kKeyDim, kKeyDim, 1}, nullptr};
    std::vector<std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>> caches;
    for (int side = 1; side < 3; ++side) {
      aligned_type type;
      ASSERT_EQ(aligned_module_argument(module.get(), side, &type), 0);
      int64_t dim = side == 1 ? kKeyDim : kValueDim, strides[] = {kHeads * tokens * dim, tokens * dim, dim, 1};
      caches.emplace_back(aligned_cache_create(&type.format, 1, kHeads, dim, tokens), aligned_cache_destroy);
      ASSERT_EQ(aligned_cache_append(caches.back().get(), rows[side].data(), tokens, strides), 0) << aligned_last_error();
      arguments[side].cache = caches.back().get();
    }
    Plan plans[kHeads];
    aligned_rt_record_plan(listen, plans);
    int failed = aligned_module_call(module.get(), arguments, &result);
    aligned_rt_record_plan(nullptr, nullptr);
    ASSERT_EQ(failed, 0) << aligned_last_error();
    aligned_array_free(&result.array);

    for (int64_t head = 0; head < kHeads; ++head) {
      SCOPED_TRACE("head " + std::to_string(head));
      PolicyResult want = tolerance ? decodeBudget(heads[head], tolerance) : decodeAlignedKV(heads[head]);
      const Plan &plan = plans[head];
      ASSERT_EQ(plan.units, tolerance ? kKeyDim / 4 : kKeyDim);
      std::vector<int> channels; // a unit's bits are those of its channels
      for (int bits : plan.keyBits)
        channels.insert(channels.end(), kKeyDim / plan.units, bits);
      expectAlike(channels, want.keyPlan);
      expectAlike(plan.valueBits, want.valuePlan);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, PlanOfKernels,
                         testing::Values(std::pair("alignedkv", 0.0), std::pair("tight", 0x1p-11), std::pair("balanced", 0x1p-8), std::pair("fast", 0x1p-6)),
                         [](const auto &info) { return std::string(info.param.first); });

} // namespace
