// Kernels for GPUs, as PTX that an interpreter runs behind a stand-in for the driver: appended to, decoded and compared with float64, within the certificate that comes
// with each result, and with what the CPU's kernels read.
#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace aligned;

namespace {

struct Case {
  const char *options; ///< of the pipeline
  double tolerance;    ///< what the relative error of a head may be
  const char *element = "f16";
  int64_t group = 3, queries = 1, kvHeads = 2, batch = 1, keyDim = 64, valueDim = 64;
  std::vector<int64_t> tokens = {1, 63, 64, 65, 200, 1000};
  bool escapes = false; ///< values that are not finite among V
  const char *sight = ""; ///< mask and softcap, as the op says them
  Mask mask = {};
  double softcap = 0;
  std::string query = element; ///< element type of queries
};

std::ostream &operator<<(std::ostream &os, const Case &c) {
  return os << c.element << " " << c.group << "x" << c.queries << " of " << c.kvHeads << " heads, batch " << c.batch << ", " << c.keyDim << "/" << c.valueDim << ", " << c.options << " " << c.sight;
}

Storage storageOf(const std::string &element) { return element == "bf16" ? Storage::BFloat16 : Storage::Half; }

std::string moduleOf(const Case &c) {
  auto type = [&](int64_t heads, const std::string &tokens, int64_t dim, const std::string &element) {
    return "tensor<" + std::to_string(c.batch) + "x" + std::to_string(heads) + "x" + tokens + "x" + std::to_string(dim) + "x" + element + ">";
  };
  std::string q = type(c.kvHeads * c.group, std::to_string(c.queries), c.keyDim, c.query), k = type(c.kvHeads, "?", c.keyDim, c.element),
              v = type(c.kvHeads, "?", c.valueDim, c.element), out = type(c.kvHeads * c.group, std::to_string(c.queries), c.valueDim, "f32");
  return "func.func @step(%q: " + q + ", %k: " + k + ", %v: " + v + ") -> " + out + " {\n  %scale = arith.constant 0.125 : f32\n  %out = aligned.attention %q, %k, %v scale %scale " + c.sight + " : " +
         q + ", " + k + ", " + v + " -> " + out + "\n  return %out : " + out + "\n}\n";
}

/// [batch, heads, tokens, dim]: what queries are as their type has it, keys and values in the storage's 16 bits.
struct Inputs {
  std::vector<float> q;
  std::vector<uint16_t> k, v;
};

std::vector<uint16_t> narrowed(const std::vector<float> &values, const std::string &element) {
  std::vector<uint16_t> bits;
  for (float x : values)
    bits.push_back(narrow(x, storageOf(element)));
  return bits;
}

/// Probabilities that differ by orders of magnitude, loud channels of K and loud tokens.
Inputs inputsOf(const Case &c, int64_t tokens) {
  std::mt19937 random(uint32_t(tokens * 131 + c.group * 7 + c.keyDim));
  std::normal_distribution<double> normal;
  auto fill = [&](int64_t rows, int64_t dim, auto scale) {
    std::vector<float> values;
    for (int64_t i = 0; i < rows * dim; ++i)
      values.push_back(normal(random) * scale(i / dim, i % dim));
    return values;
  };
  int64_t rows = c.batch * c.kvHeads;
  Inputs in{fill(rows * c.group * c.queries, c.keyDim, [](int64_t, int64_t i) { return i % 5 ? 2.0 : 0.1; }),
            narrowed(fill(rows * tokens, c.keyDim, [](int64_t, int64_t i) { return i == 3 ? 8.0 : i < 8 ? 0.05 : 1.0; }), c.element),
            narrowed(fill(rows * tokens, c.valueDim, [](int64_t t, int64_t) { return t % 17 ? 1.0 : 6.0; }), c.element)};
  if (c.query != "f32")
    for (float &x : in.q)
      x = widen(narrow(x, storageOf(c.query)), storageOf(c.query));
  if (c.escapes)
    for (size_t i = 5; i < in.v.size(); i += 7919)
      in.v[i] = i % 2 ? 0x7c00 : 0x7e00;
  return in;
}

struct Result {
  std::vector<float> out, bound, estimate;
  aligned_tally tally = {};
};

class DecodeOnGpu : public testing::TestWithParam<Case> {
protected:
  static void SetUpTestSuite() {
    setenv("ALIGNED_LIBCUDA", ALIGNED_CUDA_EMULATOR, /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_COLLECTIVES", "0", /*overwrite=*/0); // shuffles do not order memory: barriers do
  }

  using Module = std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)>;
  using Cache = std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>;

  static Module compile(const Case &c, const std::string &target) {
    Module module(aligned_module_compile(moduleOf(c).c_str(), (std::string(c.options) + " certify target=" + target).c_str(), nullptr), aligned_module_destroy);
    EXPECT_TRUE(module) << aligned_last_error();
    return module;
  }

  static Result run(const Case &c, const Module &module, Inputs &in, int64_t tokens) {
    Result result;
    std::vector<Cache> caches;
    aligned_value arguments[3] = {}, results[3] = {};
    int64_t heads = c.kvHeads * c.group;
    std::vector<uint16_t> narrow = narrowed(in.q, c.query);
    arguments[0].array = {c.query == "f32" ? static_cast<void *>(in.q.data()) : narrow.data(), {c.batch, heads, c.queries, c.keyDim}, {heads * c.queries * c.keyDim, c.queries * c.keyDim, c.keyDim, 1}, nullptr};
    for (int side = 0; side < 2; ++side) {
      int64_t dim = side ? c.valueDim : c.keyDim;
      aligned_type type;
      EXPECT_EQ(aligned_module_argument(module.get(), 1 + side, &type), 0);
      caches.emplace_back(aligned_module_create_cache(module.get(), &type.format, c.batch, c.kvHeads, dim, tokens), aligned_cache_destroy);
      EXPECT_TRUE(caches.back()) << aligned_last_error();
      if (!caches.back())
        return result;
      // In two parts, so that an open block is filled up.
      int64_t strides[] = {c.kvHeads * tokens * dim, tokens * dim, dim, 1}, first = tokens * 2 / 3;
      std::vector<uint16_t> &data = side ? in.v : in.k;
      if (first)
        EXPECT_EQ(aligned_cache_append(caches.back().get(), data.data(), first, strides), 0) << aligned_last_error();
      EXPECT_EQ(aligned_cache_append(caches.back().get(), data.data() + first * dim, tokens - first, strides), 0) << aligned_last_error();
      arguments[1 + side].cache = caches.back().get();
    }
    aligned_rt_record(&result.tally, 1);
    int failed = aligned_module_call(module.get(), arguments, results);
    aligned_rt_record(nullptr, 0);
    EXPECT_EQ(failed, 0) << aligned_last_error();
    if (failed)
      return result;
    int64_t rows = c.batch * heads * c.queries;
    auto numbers = [&](int i, int64_t count) {
      const float *data = static_cast<const float *>(results[i].array.data);
      std::vector<float> copy(data, data + count);
      aligned_array_free(&results[i].array);
      return copy;
    };
    result.out = numbers(0, rows * c.valueDim);
    result.bound = numbers(1, rows);
    result.estimate = numbers(2, rows);
    return result;
  }
};

TEST_P(DecodeOnGpu, IsAttentionWithinItsBounds) {
  const Case &c = GetParam();
  Module gpu = compile(c, "cuda"), cpu = compile(c, "cpu");
  ASSERT_TRUE(gpu && cpu);
  for (int64_t tokens : c.tokens) {
    if (tokens < c.queries) // queries are the newest tokens
      continue;
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    Inputs in = inputsOf(c, tokens);
    Result got = run(c, gpu, in, tokens), same = run(c, cpu, in, tokens);
    ASSERT_FALSE(got.out.empty() || same.out.empty());
    auto widened = [&](const std::vector<uint16_t> &values, int64_t first, int64_t count) {
      std::vector<double> wide;
      for (int64_t i = first; i < first + count; ++i)
        wide.push_back(widen(values[i], storageOf(c.element)));
      return wide;
    };
    int64_t perRow = c.group * c.queries;
    for (int64_t row = 0; row < c.batch * c.kvHeads; ++row) {
      auto queries = in.q.begin() + row * perRow * c.keyDim;
      std::vector<double> q(queries, queries + perRow * c.keyDim), k = widened(in.k, row * tokens * c.keyDim, tokens * c.keyDim),
                          v = widened(in.v, row * tokens * c.valueDim, tokens * c.valueDim), want(perRow * c.valueDim);
      exactAttention(q.data(), perRow, k.data(), v.data(), tokens, c.keyDim, c.valueDim, 0.125, false, want.data(), c.mask, c.softcap);
      for (int64_t h = 0; h < perRow; ++h) {
        SCOPED_TRACE("row " + std::to_string(row) + ", query row " + std::to_string(h));
        double off = 0, apart = 0, size = 0;
        bool finite = true;
        for (int64_t channel = 0; channel < c.valueDim; ++channel) {
          double expected = want[h * c.valueDim + channel], actual = got.out[(row * perRow + h) * c.valueDim + channel];
          if (!std::isfinite(expected)) {
            finite = false;
            EXPECT_TRUE(std::isnan(expected) ? std::isnan(actual) : actual == expected) << channel << ": " << actual << " for " << expected;
            continue;
          }
          double byCpu = same.out[(row * perRow + h) * c.valueDim + channel];
          off += (actual - expected) * (actual - expected);
          apart += (actual - byCpu) * (actual - byCpu);
          size += expected * expected;
          if (!c.escapes)
            EXPECT_LE(std::fabs(actual - expected), got.bound[row * perRow + h]) << channel << ": " << actual << " for " << expected;
        }
        EXPECT_LE(std::sqrt(off / size), c.tolerance);
        if (std::strstr(c.options, "alignedkv")) // which sees to it that the same bits are read, but where a probability lies at the rim of a tier
          EXPECT_LE(std::sqrt(apart / size), 1e-3);
        if (finite) {
          EXPECT_LE(got.bound[row * perRow + h], 3 * same.bound[row * perRow + h] + 1e-3);
          // A plan stands while K's half of the budget is exceeded by less than a factor of two, as variance: either may have just stopped or just gone on.
          EXPECT_LE(got.estimate[row * perRow + h], std::max(3 * same.estimate[row * perRow + h] + 1e-6, std::sqrt(1.5) * c.tolerance / 3));
        }
      }
    }
    // What is read differs from the CPU by what its histogram and maxima round; and coarse scores go by the maxima of all tokens, whether they are seen or not.
    EXPECT_EQ(got.tally.key_values, same.tally.key_values);
    EXPECT_NEAR(got.tally.key_bits, same.tally.key_bits, (*c.sight ? 0.10 : 0.05) * same.tally.key_bits);
    EXPECT_NEAR(got.tally.value_bits, same.tally.value_bits, 0.10 * same.tally.value_bits);
  }
}

INSTANTIATE_TEST_SUITE_P(Fixed, DecodeOnGpu,
                         testing::Values(Case{"policy=exact", 2e-4}, Case{"policy=tight", 3.0 / 2048}, Case{"policy=balanced", 3.0 / 256}, Case{"policy=fast", 3.0 / 64},
                                         Case{"policy=balanced", 3.0 / 256, "bf16"}, Case{"policy=balanced", 3.0 / 256, "f16", 1, 1, 1, 1, 128, 128},
                                         Case{"policy=balanced", 3.0 / 256, "f16", 8, 1, 1, 2, 96, 64}, Case{"policy=tight", 3.0 / 2048, "f16", 16, 1, 1, 1, 128, 256},
                                         Case{"policy=fast", 3.0 / 64, "f16", 4, 3, 1, 1, 256, 96}, Case{"policy=balanced format=fixed<8,8>", 3.0 / 256},
                                         Case{"policy=balanced", 3.0 / 256, "f16", 2, 1, 1, 1, 48, 80}, Case{"policy=exact", 3e-4, "f16", 2, 1, 1, 1, 64, 64, {200}, true},
                                         Case{"policy=balanced", 3.0 / 256, "f16", 16, 2, 1, 1, 256, 256, {200}}));

Case masked(Case c, const char *sight, Mask mask, double softcap = 0) {
  c.sight = sight;
  c.mask = mask;
  c.mask.queries = c.queries;
  c.softcap = softcap;
  return c;
}

INSTANTIATE_TEST_SUITE_P(Masked, DecodeOnGpu,
                         testing::Values(masked({"policy=balanced", 4.0 / 256, "f16", 2, 3, 1}, "mask <causal>", {1, true}),
                                         masked({"policy=tight", 3.0 / 2048, "f16", 3, 1, 1}, "mask <causal, window = 100>", {1, true, 100}),
                                         masked({"policy=exact", 3e-4, "f16", 2, 3, 1}, "mask <causal, window = 70, sinks = 4>", {1, true, 70, 4}),
                                         masked({"policy=balanced", 4.0 / 256, "f16", 3, 1, 2}, "softcap 2.0", {}, 2.0),
                                         masked({"policy=alignedkv", 8e-2, "f16", 2, 3, 1}, "softcap 5.0 mask <causal, window = 300, sinks = 1>", {1, true, 300, 1}, 5.0)));

Case asked(Case c, const char *query) {
  c.query = query;
  return c;
}

// Many shapes: of float planes each storage, one or two parts of queries and of weights, dims that leave parts of a product empty, query rows for more than one warp.
INSTANTIATE_TEST_SUITE_P(Float, DecodeOnGpu,
                         testing::Values(Case{"policy=alignedkv", 8e-2}, Case{"policy=exact format=float<8,4,4>", 2e-4, "f16", 8, 1, 1, 2, 96, 64},
                                         Case{"policy=alignedkv", 8e-2, "bf16", 1, 1, 2, 1, 64, 128}, Case{"policy=alignedkv", 8e-2, "f16", 16, 1, 1, 1, 128, 128, {65, 200}},
                                         Case{"policy=exact format=float<8,4,4>", 3e-4, "f16", 2, 1, 1, 1, 64, 64, {200}, true},
                                         Case{"policy=alignedkv", 8e-2, "f16", 3, 1, 1, 1, 16, 64, {3000}}, Case{"policy=alignedkv", 8e-2, "f16", 6, 1, 1, 1, 16, 128, {3000}},
                                         Case{"policy=exact format=float<8,8>", 1e-5, "f16", 5, 1, 1, 1, 48, 80, {200}},
                                         Case{"policy=exact format=float<12,4>", 1e-4, "bf16", 3, 1, 1, 1, 16, 192, {200}},
                                         Case{"policy=exact format=float<8,4,4>", 1e-5, "f16", 29, 1, 1, 1, 64, 16, {200}},
                                         asked({"policy=exact format=float<8,4,4>", 1e-5, "f16", 3, 1, 1, 1, 64, 64, {200}}, "f32"),
                                         asked({"policy=exact format=float<8,4,4>", 1e-5, "f16", 9, 1, 1, 1, 64, 64, {200}}, "bf16"),
                                         asked({"policy=exact format=float<12,4>", 1e-4, "bf16", 20, 1, 1, 1, 64, 256, {200}}, "f16"),
                                         asked({"policy=alignedkv", 8e-2, "bf16", 2, 1, 1, 1, 96, 96, {65, 200}}, "f32")));

} // namespace
