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

/// A policy as an attention says it, and as the reference is told, for each head. Tolerance 0 is the published rule.
struct Said {
  const char *name, *policies;
  double tolerance[kHeads];
  Limits key[kHeads] = {}, value[kHeads] = {};
  double difference = 0; ///< allowed, of outputs that were read alike
  Mask mask = {};        ///< and softcap: what `policies` begins with
  double softcap = 0;
};

class PlanOfKernels : public testing::TestWithParam<std::tuple<Said, const char *>> {};

TEST_P(PlanOfKernels, IsThatOfTheReference) {
  const auto &[said, isa] = GetParam();
  const int64_t queries = said.mask.queries;
  std::string rows = std::to_string(kHeads * kGroup / queries) + "x" + std::to_string(queries); // of which each kv head has kGroup
  std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)> module(aligned_module_compile((
"func.func @step(%q: tensor<1x" + rows + "x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x48xf16>) -> tensor<1x" + rows + R"(x48xf32> {
  %scale = arith.constant 0.25 : f32
  %out = aligned.attention %q, %k, %v scale %scale )" + said.policies + " : tensor<1x" + rows + "x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x48xf16> -> tensor<1x" + rows + R"(x48xf32>
  return %out : tensor<1x)" + rows + R"(x48xf32>
})").c_str(), (std::string("isa=") + isa).c_str(), nullptr), aligned_module_destroy);
  if (!module && std::string(aligned_last_error()).find("an instruction set of this machine") != std::string::npos)
    GTEST_SKIP() << aligned_last_error();
  ASSERT_TRUE(module) << aligned_last_error();

  for (int64_t tokens : {1, 63, 64, 97, 1000}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<HeadInputs> heads;
    std::vector<uint16_t> data[3]; // q, k, v of all heads
    for (int64_t head = 0; head < kHeads; ++head) {
      heads.push_back(structuredHead(tokens, 7 + head));
      heads.back().keyLimits = said.key[head];
      heads.back().valueLimits = said.value[head];
      heads.back().mask = said.mask;
      heads.back().softcap = said.softcap;
      int side = 0;
      for (const std::vector<double> *values : {&heads.back().q, &heads.back().k, &heads.back().v}) {
        for (double x : *values)
          data[side].push_back(narrow(x, Storage::Half));
        ++side;
      }
    }
    aligned_value arguments[3] = {}, result = {};
    arguments[0].array = {data[0].data(), {1, kHeads * kGroup / queries, queries, kKeyDim}, {kHeads * kGroup * kKeyDim, queries * kKeyDim, kKeyDim, 1}, nullptr};
    std::vector<std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>> caches;
    for (int side = 1; side < 3; ++side) {
      aligned_type type;
      ASSERT_EQ(aligned_module_argument(module.get(), side, &type), 0);
      int64_t dim = side == 1 ? kKeyDim : kValueDim, strides[] = {kHeads * tokens * dim, tokens * dim, dim, 1};
      caches.emplace_back(aligned_cache_create(&type.format, 1, kHeads, dim, tokens), aligned_cache_destroy);
      ASSERT_EQ(aligned_cache_append(caches.back().get(), data[side].data(), tokens, strides), 0) << aligned_last_error();
      arguments[side].cache = caches.back().get();
    }
    Plan plans[kHeads];
    aligned_rt_record_plan(listen, plans);
    int failed = aligned_module_call(module.get(), arguments, &result);
    aligned_rt_record_plan(nullptr, nullptr);
    ASSERT_EQ(failed, 0) << aligned_last_error();
    const float *numbers = static_cast<const float *>(result.array.data);
    std::vector<double> got(numbers, numbers + kHeads * kGroup * kValueDim);
    aligned_array_free(&result.array);

    for (int64_t head = 0; head < kHeads; ++head) {
      if (tokens < queries) // rows that see nothing are NaN
        continue;
      SCOPED_TRACE("head " + std::to_string(head));
      double tolerance = said.tolerance[head];
      PolicyResult want = tolerance ? decodeBudget(heads[head], tolerance) : decodeAlignedKV(heads[head]);
      const Plan &plan = plans[head];
      ASSERT_EQ(plan.units, tolerance ? kKeyDim / 4 : kKeyDim);
      std::vector<int> channels; // a unit's bits are those of its channels
      for (int bits : plan.keyBits)
        channels.insert(channels.end(), kKeyDim / plan.units, bits);
      expectAlike(channels, want.keyPlan);
      expectAlike(plan.valueBits, want.valuePlan);
      auto first = got.begin() + head * kGroup * kValueDim;
      for (double difference : relativeErrors({first, first + kGroup * kValueDim}, want.out, kValueDim))
        EXPECT_LE(difference, said.difference);
    }
  }
}

const Limits kSinksAndAges{std::nullopt, 4, 12, 0, 65, {{100, 8}, {500, 4}}}, kNewest{std::nullopt, 0, 16, 130, 0, {{1, 12}}}, kExact{std::nullopt, 16, 16},
    kOwn{0x1p-10}, kNothing{std::nullopt, 0, 0}, kRule{std::nullopt, 0, 8, 3, 1};

/// P7, each limit on either side, beside a head that has others.
const Said kLimits{"limits",
                   "policies [<budget, tolerance = 0.015625, key = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>, value = <newest = 130, ages = [1: 12]>>,"
                 " <budget, tolerance = 0.015625, key = <newest = 130, ages = [1: 12]>, value = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>>]",
                 {0x1p-6, 0x1p-6}, {kSinksAndAges, kNewest}, {kNewest, kSinksAndAges}, 1.6e-2};

std::string nameOf(const testing::TestParamInfo<std::tuple<Said, const char *>> &info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(Isas, PlanOfKernels, testing::Combine(testing::Values(kLimits), testing::Values("avx2", "portable")), nameOf);
INSTANTIATE_TEST_SUITE_P(
    Policies, PlanOfKernels,
    testing::Combine(
        testing::Values(
            kLimits,
            Said{"alignedkv", "policy <alignedkv>", {0, 0}, {}, {}, 2e-2}, Said{"tight", "policy <budget, tolerance = 4.8828125e-04>", {0x1p-11, 0x1p-11}, {}, {}, 5e-4},
            Said{"balanced", "policy <budget, tolerance = 0.00390625>", {0x1p-8, 0x1p-8}, {}, {}, 4e-3},
            Said{"fast", "policy <budget, tolerance = 0.015625>", {0x1p-6, 0x1p-6}, {}, {}, 1.6e-2},
            Said{"heads", "policies [<budget, tolerance = 0.015625>, <budget, tolerance = 0.00390625>]", {0x1p-6, 0x1p-8}, {}, {}, 1.6e-2},
            Said{"exact_head",
                 "policies [<budget, tolerance = 0.015625, key = <bits = 16 to 16>, value = <bits = 16 to 16>>,"
                 " <budget, tolerance = 0.015625, key = <tolerance = 0.0009765625>, value = <tolerance = 0.0009765625>>]",
                 {0x1p-6, 0x1p-6}, {kExact, kOwn}, {kExact, kOwn}, 1e-3},
            Said{"nothing", "policy <budget, tolerance = 0.015625, value = <bits = 0 to 0>>", {0x1p-6, 0x1p-6}, {}, {kNothing, kNothing}, 1.6e-2},
            Said{"rule", "policies [<alignedkv, key = <bits = 0 to 8, newest = 3, sinks = 1>>, <alignedkv, value = <bits = 0 to 8, newest = 3, sinks = 1>>]", {0, 0},
                 {kRule, {}}, {{}, kRule}, 2e-2},
            Said{"causal", "mask <causal> policy <budget, tolerance = 0.00390625>", {0x1p-8, 0x1p-8}, {}, {}, 4e-3, {3, true}},
            Said{"window", "mask <causal, window = 150, sinks = 70> policy <budget, tolerance = 0.00390625>", {0x1p-8, 0x1p-8}, {}, {}, 4e-3, {1, true, 150, 70}},
            Said{"windows", "softcap 4.0 mask <window = 200, sinks = 4> policy <budget, tolerance = 0.00390625>", {0x1p-8, 0x1p-8}, {}, {}, 4e-3, {3, false, 200, 4}, 4},
            Said{"softcap", "softcap 3.0 policy <budget, tolerance = 0.015625>", {0x1p-6, 0x1p-6}, {}, {}, 1.6e-2, {}, 3},
            Said{"masked_limits",
                 "mask <causal, window = 300, sinks = 1> policies [<budget, tolerance = 0.015625, key = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>,"
                 " value = <newest = 130, ages = [1: 12]>>,"
                 " <budget, tolerance = 0.015625, key = <newest = 130, ages = [1: 12]>, value = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>>]",
                 {0x1p-6, 0x1p-6}, {kSinksAndAges, kNewest}, {kNewest, kSinksAndAges}, 1.6e-2, {1, true, 300, 1}},
            Said{"masked_rule", "softcap 4.0 mask <causal, window = 100, sinks = 2> policy <alignedkv>", {0, 0}, {}, {}, 2e-2, {3, true, 100, 2}, 4}),
        testing::Values("host")),
    nameOf);

} // namespace
