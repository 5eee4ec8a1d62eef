// Masks (A11) and softcap (A12): compiled kernels of every format against float64 at sizes that meet and miss the ends of blocks, with certificates held
// against the errors, and what kernels say they read against what any query sees.
#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace aligned;

namespace {

constexpr int64_t kKvHeads = 2, kRows = 6, kKeyDim = 32, kValueDim = 48; // rows of a kv head: queries times query heads
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Scoring {
  std::string text;
  Mask mask; ///< with the queries that attend
  double softcap = 0;
  bool maskedZero = false;
};

const std::vector<Scoring> &scorings() {
  static const std::vector<Scoring> all{
      {"softcap 1.5 mask <causal, window = 64, sinks = 1>", {3, true, 64, 1}, 1.5},
      {"mask <causal, window = 5, sinks = 2> masked_zero", {3, true, 5, 2}, 0, true},
      {"mask <causal>", {3, true}},
      {"mask <window = 5>", {3, false, 5}},
      {"mask <causal, window = 1>", {1, true, 1}},
      {"mask <window = 70, sinks = 66>", {1, false, 70, 66}},
      {"mask <causal, window = 100000000000, sinks = 3>", {2, true, 100000000000, 3}},
      {"softcap 2.0", {}, 2},
  };
  return all;
}

struct Policy {
  const char *options;
  double bound; ///< of relative errors
  double floor; ///< and of absolute ones, as a share of the largest value: a masked row may be a single token, or small
  size_t scorings = 8; ///< how many of the above are tried
};

struct Plan {
  int64_t units = 0;
  std::vector<uint8_t> key, value; ///< layers
};

void listen(void *context, int32_t, int64_t row, int64_t blocks, int64_t units, const uint8_t *keyLayers, const uint8_t *valueLayers) {
  Plan &plan = static_cast<Plan *>(context)[row]; // each row its own: they run on several threads
  plan.units = units;
  plan.key.assign(keyLayers, keyLayers + blocks * units);
  plan.value.assign(valueLayers, valueLayers + 64 * blocks);
}

/// One call over as many tokens, of the same heads whatever is compiled.
struct Outcome {
  std::vector<HeadInputs> heads;
  std::vector<float> out, bound;
  Plan plans[kKvHeads];
  aligned_tally tally = {};
};

class Compiled {
public:
  Compiled(int64_t queries, const std::string &said, const std::string &options)
      : queries(queries), module(aligned_module_compile(text(said).c_str(), (options + " certify").c_str(), nullptr), aligned_module_destroy) {}

  explicit operator bool() const { return module != nullptr; }

  Outcome run(int64_t tokens, const std::function<void(HeadInputs &)> &change = [](HeadInputs &) {}) {
    Outcome outcome;
    std::vector<uint16_t> rows[3];
    for (int64_t head = 0; head < kKvHeads; ++head) {
      std::mt19937 random(uint32_t(tokens * 10 + head));
      std::normal_distribution<double> normal;
      auto draw = [&](int64_t count, int64_t dim, auto scale) {
        std::vector<double> values;
        for (int64_t i = 0; i < count * dim; ++i)
          values.push_back(widen(narrow(normal(random) * scale(i / dim, i % dim), Storage::Half), Storage::Half));
        return values;
      };
      auto q = draw(kRows, kKeyDim, [](int64_t, int64_t c) { return c % 5 ? 1.0 : 0.1; });
      auto k = draw(tokens, kKeyDim, [](int64_t t, int64_t c) { return (c == 3 ? 4.0 : 1.0) * (t % 64 == 5 ? 2 : 1); });
      auto v = draw(tokens, kValueDim, [&](int64_t t, int64_t) { return t < tokens / 2 ? 8.0 : t % 17 ? 1.0 : 3.0; }); // what windows hide is loud
      HeadInputs in{kRows, tokens, kKeyDim, kValueDim, q, k, v, 0.25, Storage::Half};
      change(in);
      outcome.heads.push_back(in);
      int side = 0;
      for (const std::vector<double> *values : {&in.q, &in.k, &in.v}) {
        for (double x : *values)
          rows[side].push_back(narrow(x, Storage::Half));
        ++side;
      }
    }
    aligned_value arguments[3] = {}, results[3] = {};
    arguments[0].array = {rows[0].data(), {1, kKvHeads * kRows / queries, queries, kKeyDim}, {kKvHeads * kRows * kKeyDim, queries * kKeyDim, kKeyDim, 1}, nullptr};
    std::vector<std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>> caches;
    for (int side = 1; side < 3; ++side) {
      aligned_type type;
      EXPECT_EQ(aligned_module_argument(module.get(), side, &type), 0);
      int64_t dim = side == 1 ? kKeyDim : kValueDim;
      arguments[side].array = {rows[side].data(), {1, kKvHeads, tokens, dim}, {kKvHeads * tokens * dim, tokens * dim, dim, 1}, nullptr};
      if (!type.is_cache)
        continue;
      caches.emplace_back(aligned_cache_create(&type.format, 1, kKvHeads, dim, tokens), aligned_cache_destroy);
      EXPECT_EQ(aligned_cache_append(caches.back().get(), rows[side].data(), tokens, arguments[side].array.strides), 0) << aligned_last_error();
      arguments[side].cache = caches.back().get();
    }
    aligned_rt_record(&outcome.tally, 1);
    aligned_rt_record_plan(listen, outcome.plans);
    int failed = aligned_module_call(module.get(), arguments, results);
    aligned_rt_record_plan(nullptr, nullptr);
    aligned_rt_record(nullptr, 0);
    EXPECT_EQ(failed, 0) << aligned_last_error();
    auto take = [](aligned_value &value, int64_t count) {
      auto *numbers = static_cast<const float *>(value.array.data);
      std::vector<float> taken(numbers, numbers + count);
      aligned_array_free(&value.array);
      return taken;
    };
    if (!failed) {
      outcome.out = take(results[0], kKvHeads * kRows * kValueDim);
      outcome.bound = take(results[1], kKvHeads * kRows);
      aligned_array_free(&results[2].array);
    }
    return outcome;
  }

private:
  std::string text(const std::string &said) const {
    std::string shape = std::to_string(kKvHeads * kRows / queries) + "x" + std::to_string(queries) + "x",
                types = "tensor<1x" + shape + "32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x48xf16> -> tensor<1x" + shape + "48xf32>";
    return "func.func @step(%q: tensor<1x" + shape + "32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x48xf16>) -> tensor<1x" + shape +
           "48xf32> {\n  %scale = arith.constant 0.25 : f32\n  %out = aligned.attention %q, %k, %v scale %scale " + said + " : " + types +
           "\n  return %out : tensor<1x" + shape + "48xf32>\n}";
  }

  int64_t queries;
  std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)> module;
};

std::vector<double> exactOf(const HeadInputs &in, const Mask &mask, double softcap, bool maskedZero) {
  std::vector<double> out(kRows * kValueDim);
  exactAttention(in.q.data(), kRows, in.k.data(), in.v.data(), in.tokens, kKeyDim, kValueDim, in.scale, maskedZero, out.data(), mask, softcap);
  return out;
}

/// Rows against the oracle: numbers where it has numbers, within `policy`'s error and never beyond the bound.
void expectRows(const Outcome &outcome, const Mask &mask, double softcap, bool maskedZero, const Policy &policy) {
  for (int64_t head = 0; head < kKvHeads; ++head) {
    std::vector<double> want = exactOf(outcome.heads[head], mask, softcap, maskedZero);
    double largest = 0;
    for (int64_t t = 0; t < outcome.heads[head].tokens; ++t)
      for (int64_t c = 0; c < kValueDim; ++c)
        if (double x = std::fabs(outcome.heads[head].v[t * kValueDim + c]); mask.isSeen(t, outcome.heads[head].tokens) && std::isfinite(x))
          largest = std::max(largest, x);
    for (int64_t row = 0; row < kRows; ++row) {
      SCOPED_TRACE("head " + std::to_string(head) + ", row " + std::to_string(row));
      double error = 0, size = 0, off = 0;
      bool finite = true;
      for (int64_t c = 0; c < kValueDim; ++c) {
        double got = outcome.out[(head * kRows + row) * kValueDim + c], exact = want[row * kValueDim + c];
        ASSERT_EQ(std::isnan(got), std::isnan(exact)) << "channel " << c << ": " << got << ", not " << exact;
        if (!std::isfinite(exact)) {
          finite = false;
          continue;
        }
        error += (got - exact) * (got - exact);
        size += exact * exact;
        off = std::max(off, std::fabs(got - exact));
      }
      if (!finite)
        continue;
      EXPECT_LE(std::sqrt(error), policy.bound * std::sqrt(size) + policy.floor * largest);
      EXPECT_LE(off, outcome.bound[head * kRows + row]);
    }
  }
}

/// Units that nobody sees are not read, and all others are under `exact`.
void expectReads(const Outcome &outcome, const Mask &mask, int64_t tokens, bool exact) {
  for (const Plan &plan : outcome.plans) {
    for (size_t i = 0; i < plan.key.size(); ++i)
      if (bool seen = mask.isBlockSeen(int64_t(i) / plan.units, tokens); !seen || exact) {
        EXPECT_EQ(plan.key[i], seen ? 4 : 0) << "block " << int64_t(i) / plan.units;
      }
    for (size_t t = 0; t < plan.value.size(); ++t)
      if (bool seen = mask.isSeen(int64_t(t), tokens); !seen || exact) {
        EXPECT_EQ(plan.value[t], seen ? 4 : 0) << "token " << t;
      }
  }
}

class Masks : public testing::TestWithParam<Policy> {};

TEST_P(Masks, MatchTheOracleAtEveryLength) {
  const Policy &policy = GetParam();
  std::string options = policy.options;
  bool dense = options.find("dense") != options.npos || options.find("reference") != options.npos, exact = options.find("exact") != options.npos;
  for (size_t i = 0; i < policy.scorings; ++i) {
    const Scoring &scoring = scorings()[i];
    const Mask &mask = scoring.mask;
    Compiled module(mask.queries, scoring.text, options);
    ASSERT_TRUE(module) << scoring.text << ": " << aligned_last_error();
    for (int64_t tokens : {0, 1, 2, 63, 64, 65, 200, 331}) {
      SCOPED_TRACE(scoring.text + ", " + std::to_string(mask.queries) + " queries, " + std::to_string(tokens) + " tokens");
      Outcome outcome = module.run(tokens);
      ASSERT_FALSE(outcome.out.empty());
      expectRows(outcome, mask, scoring.softcap, scoring.maskedZero, policy);
      if (!dense)
        expectReads(outcome, mask, tokens, exact);
      if (options.find("reference") == options.npos && mask.window + mask.sinks + mask.queries < 70 && mask.window && tokens > 300) {
        // At most the first and the last two of all blocks, and of the last a part.
        int64_t least = 64 + 64 + tokens % 64, all = kKvHeads * tokens;
        EXPECT_EQ(outcome.tally.key_values, all * kKeyDim);
        EXPECT_EQ(outcome.tally.value_values, all * kValueDim);
        EXPECT_LE(outcome.tally.key_bits, kKvHeads * least * (16 * kKeyDim + 8)) << "of " << 16 * all * kKeyDim;
        EXPECT_LE(outcome.tally.value_bits, kKvHeads * least * (16 * kValueDim + 8));
      }
    }
  }
}

/// What a mask hides may hold anything, escapes included, and reaches no row that doesn't see it.
TEST_P(Masks, HideWhatIsNotFinite) {
  for (const Scoring &scoring : {Scoring{"mask <causal, window = 70>", {3, true, 70}}, Scoring{"softcap 1.5 mask <causal, window = 5, sinks = 1>", {3, true, 5, 1}, 1.5}}) {
    Compiled module(3, scoring.text, GetParam().options);
    ASSERT_TRUE(module) << aligned_last_error();
    for (int64_t tokens : {3, 64, 65, 200})
      for (double odd : {kInfinity, double(NAN)})
        // The newest token, which one query sees; one that none does; and one of the two, where they differ.
        for (int64_t token : {tokens - 1, tokens - 2, tokens / 3}) {
          SCOPED_TRACE(scoring.text + ", " + std::to_string(odd) + " in " + std::to_string(token) + " of " + std::to_string(tokens) + " tokens");
          Outcome values = module.run(tokens, [&](HeadInputs &in) { in.v[token * kValueDim + 7] = odd; });
          expectRows(values, scoring.mask, scoring.softcap, false, GetParam());
          Outcome keys = module.run(tokens, [&](HeadInputs &in) { in.k[token * kKeyDim + 2] = odd; });
          expectRows(keys, scoring.mask, scoring.softcap, false, GetParam());
        }
    // A query that is not finite is NaN, whatever a cap makes of its scores; the others are what they were.
    Outcome queries = module.run(200, [&](HeadInputs &in) { in.q[1 * kKeyDim + 4] = kInfinity; });
    expectRows(queries, scoring.mask, scoring.softcap, false, GetParam());
  }
}

std::string nameOf(const testing::TestParamInfo<Policy> &info) {
  std::string name = info.param.options;
  for (char &c : name)
    c = isalnum(c) ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Policies, Masks,
                         testing::Values(Policy{"policy=exact", 1e-3, 1e-4}, Policy{"policy=balanced", 1.2e-2, 1e-4}, Policy{"policy=alignedkv", 0.05, 1e-2},
                                         Policy{"policy=balanced isa=portable", 1.2e-2, 1e-4, 2}, Policy{"policy=exact format=float<8,4,4>", 1e-5, 1e-6},
                                         Policy{"policy=exact format=dense", 1e-5, 1e-6}, Policy{"target=reference", 1e-6, 1e-6}),
                         nameOf);

/// More queries than a kernel takes go a few at a time, and each knows where it stands.
TEST(MaskedStretches, MatchTheOracle) {
  constexpr int64_t kQueries = 33, kDim = 16;
  for (const Scoring &scoring : {Scoring{"mask <causal>", {kQueries, true}}, Scoring{"mask <window = 7, sinks = 2>", {kQueries, false, 7, 2}},
                                 Scoring{"softcap 2.0 mask <causal, window = 70>", {kQueries, true, 70}, 2}}) {
    std::string types = "tensor<1x2x33x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32> -> tensor<1x2x33x16xf32>";
    std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)> module(
        aligned_module_compile(("func.func @f(%q: tensor<1x2x33x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>) -> tensor<1x2x33x16xf32> {\n"
                                "  %s = arith.constant 0.25 : f32\n  %o = aligned.attention %q, %k, %v scale %s " + scoring.text + " : " + types +
                                "\n  return %o : tensor<1x2x33x16xf32>\n}").c_str(), "format=dense", nullptr), aligned_module_destroy);
    ASSERT_TRUE(module) << aligned_last_error();
    for (int64_t tokens : {1, 33, 100}) {
      SCOPED_TRACE(scoring.text + ", " + std::to_string(tokens) + " tokens");
      std::mt19937 random(5);
      std::normal_distribution<float> normal;
      std::vector<float> data[3] = {std::vector<float>(2 * kQueries * kDim), std::vector<float>(tokens * kDim), std::vector<float>(tokens * kDim)};
      for (std::vector<float> &values : data)
        for (float &x : values)
          x = normal(random);
      aligned_value arguments[3] = {}, result = {};
      arguments[0].array = {data[0].data(), {1, 2, kQueries, kDim}, {2 * kQueries * kDim, kQueries * kDim, kDim, 1}, nullptr};
      for (int side : {1, 2})
        arguments[side].array = {data[side].data(), {1, 1, tokens, kDim}, {tokens * kDim, tokens * kDim, kDim, 1}, nullptr};
      ASSERT_EQ(aligned_module_call(module.get(), arguments, &result), 0) << aligned_last_error();
      std::vector<double> q(data[0].begin(), data[0].end()), k(data[1].begin(), data[1].end()), v(data[2].begin(), data[2].end()), want(q.size());
      exactAttention(q.data(), 2 * kQueries, k.data(), v.data(), tokens, kDim, kDim, 0.25, false, want.data(), scoring.mask, scoring.softcap);
      const float *out = static_cast<const float *>(result.array.data);
      for (size_t i = 0; i < want.size(); ++i)
        if (std::isnan(want[i]))
          EXPECT_TRUE(std::isnan(out[i])) << i;
        else
          ASSERT_NEAR(out[i], want[i], 1e-5) << i;
      aligned_array_free(&result.array);
    }
  }
}

} // namespace
