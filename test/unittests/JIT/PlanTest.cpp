// The bits that compiled kernels say they read, token by token, and what they make of them, against the reference (P2, P7; P1 by channels). Kernels may read more than the
// rule asks, and a little more they do: thresholds are tabulated. They store and predict in float32, so that where a need lies at the edge of a plane a few tokens fall to
// the other side of it. A slip of a tile, a row or a token changes many.
#include "Kernels.h"

using namespace aligned;

namespace {

double toleranceOf(const std::string &policy) { return aligned_policy_tolerance(policy.c_str()); }

/// Where a CPU's kernel may stop in V: after 4 bits, after 8, at the end.
int valueLevel(int bits, const SideStorage &values) {
  int all = 0;
  for (int i = 0; i < std::min<int>(values.resident, int(values.widths.size())); ++i)
    all += values.widths[i];
  bool toFour = values.widths[0] == 4, toEight = all >= 8 && (values.widths[0] == 8 || values.widths[1] == 4);
  return bits == 0 ? 0 : bits <= 4 && toFour ? std::min(4, all) : bits <= 8 && toEight ? 8 : all;
}

/// At least what the rule asks of each token, and about as much in all.
void expectReads(const std::vector<int> &got, const std::vector<int> &want, double above, const char *side) {
  ASSERT_EQ(got.size(), want.size()) << side;
  size_t less = 0;
  double gotSum = 0, wantSum = 0;
  for (size_t t = 0; t < got.size(); ++t) {
    less += got[t] < want[t];
    gotSum += got[t];
    wantSum += want[t];
    if (want[t] == 0 && got[t] > 8) {
      ADD_FAILURE() << side << ": token " << t << " is read to " << got[t] << " bits";
    }
  }
  EXPECT_LE(less, got.size() / 100) << side << ": tokens that are read less than the rule asks, of " << got.size();
  EXPECT_LE(gotSum, wantSum * (1 + above) + 24) << side << ": bits, for each channel";
  EXPECT_GE(gotSum, wantSum * 0.99) << side;
}

/// One call of a kernel under P2, or `exact` where the tolerance is 0. `heads` have masks, softcaps and limits as the op does.
void expectRule(const Kernel &kernel, const std::vector<HeadInputs> &heads, const std::vector<double> &tolerances) {
  const Spec &spec = kernel.spec;
  Caches caches = kernel.pack(heads);
  Outcome outcome = kernel.run(caches, heads);
  ASSERT_FALSE(outcome.failed);
  int64_t keyBits = 0, valueBits = 0;
  for (size_t head = 0; head < heads.size(); ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    HeadInputs in = kernel.stored(heads[head], caches);
    double tolerance = tolerances[head % tolerances.size()];
    PolicyResult want = decodeBudget(in, tolerance);
    const Plan &plan = outcome.plans[head];
    std::vector<int> keys = want.keyPlan, values = want.valuePlan;
    for (int &bits : values)
      bits = valueLevel(bits, in.values);
    for (size_t t = 0; t < keys.size(); ++t) // the scan reads what stands beside tokens that are seen
      if (!keys[t] && in.mask.isTileSeen(int64_t(t) / 64, in.tokens))
        keys[t] = in.keys.widths[0];
    expectReads(plan.key, keys, 0.03, "K");
    expectReads(plan.value, values, 0.15, "V");
    if (testing::Test::HasFatalFailure())
      return;
    int64_t codes = 0;
    for (int64_t t = 0; t < in.tokens; ++t)
      codes += in.mask.isTileSeen(t / 64, in.tokens);
    keyBits += std::accumulate(plan.key.begin(), plan.key.end(), int64_t(0)) * spec.keyDim + 8 * codes;
    valueBits += std::accumulate(plan.value.begin(), plan.value.end(), int64_t(0)) * spec.valueDim + 8 * codes;
    // What storage and limits leave of error the reference has as well.
    double usual = usualLength(in), left = 0;
    std::vector<double> exact = exactAttention(in);
    for (int64_t h = 0; h < in.heads && usual > 0; ++h) {
      double squares = 0;
      for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i)
        squares += std::pow(want.out[i] - exact[i], 2);
      left = std::isnan(squares) ? left : std::max(left, std::sqrt(squares) / usual);
    }
    expectNear(in, outcome.out[head], std::max(tolerance ? 4 * tolerance : 1e-4, 1.5 * left + tolerance));
  }
  EXPECT_EQ(outcome.tally.key_bits, keyBits);
  EXPECT_EQ(outcome.tally.value_bits, valueBits);
  EXPECT_EQ(outcome.tally.key_values, heads[0].tokens * spec.keyDim * spec.heads());
  EXPECT_EQ(outcome.tally.value_values, heads[0].tokens * spec.valueDim * spec.heads());
}

//===----------------------------------------------------------------------===//
// Shapes
//===----------------------------------------------------------------------===//

struct Shape {
  const char *isa;
  int64_t keyDim, valueDim, group, queries;
  const char *policy;
  std::vector<int64_t> tokens;
  const char *element = "f16", *keys = "fixed<4, 4, 8>", *values = "fixed<4, 4, 8>";
  int keyResident = 4, valueResident = 4;
  int64_t kvHeads = 1, batch = 1;

  Spec spec() const {
    Spec spec{keyDim, valueDim, group, queries, kvHeads, batch};
    spec.options = std::string("isa=") + isa + " policy=" + policy;
    spec.element = element;
    spec.keys = keys;
    spec.values = values;
    spec.keyResident = keyResident;
    spec.valueResident = valueResident;
    return spec;
  }
};

class Shapes : public testing::TestWithParam<Shape> {};

TEST_P(Shapes, ReadWhatTheRuleAsks) {
  const Shape &shape = GetParam();
  const Kernel &kernel = kernelOf(shape.spec());
  if (isForeign(kernel))
    GTEST_SKIP() << aligned_last_error();
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (int64_t tokens : shape.tokens) {
    SCOPED_TRACE(kernel.spec.name() + ", " + std::to_string(tokens) + " tokens");
    expectRule(kernel, structuredHeads(kernel.spec, tokens), {toleranceOf(shape.policy)});
    if (HasFatalFailure())
      return;
  }
}

const std::vector<int64_t> kAll{0, 1, 63, 64, 65, 2047, 2048, 2049, 4100};
constexpr const char *k4444 = "fixed<4, 4, 4, 4>", *k88 = "fixed<8, 8>", *k484 = "fixed<4, 8, 4>", *k448 = "fixed<4, 4, 8>";

INSTANTIATE_TEST_SUITE_P(
    All, Shapes,
    testing::Values(
        // Every head_dim and number of rows, on every instruction set.
        Shape{"avx512", 64, 64, 3, 1, "balanced", kAll}, Shape{"avx512", 16, 16, 2, 4, "fast", {1, 64, 2049}}, Shape{"avx512", 80, 80, 2, 1, "tight", {1, 2049}},
        Shape{"avx512", 96, 48, 4, 3, "draft", {63, 2048}}, Shape{"avx512", 128, 128, 8, 4, "balanced", {64, 4100}}, Shape{"avx512", 256, 64, 1, 1, "balanced", {65, 2048}},
        Shape{"avx512", 64, 64, 1, 1, "exact", kAll},
        Shape{"avx2", 64, 64, 1, 1, "balanced", kAll}, Shape{"avx2", 80, 96, 1, 2, "fast", {63, 2048}}, Shape{"avx2", 128, 128, 1, 1, "balanced", {64, 4100}},
        Shape{"avx2", 48, 80, 8, 4, "balanced", {65, 2049}}, Shape{"avx2", 96, 256, 1, 1, "exact", {1, 2047}},
        Shape{"portable", 64, 64, 1, 1, "balanced", kAll}, Shape{"portable", 80, 48, 2, 1, "balanced", {65, 2049}}, Shape{"portable", 128, 256, 1, 1, "tight", {63, 2048}},
        Shape{"portable", 16, 32, 32, 1, "exact", {1, 2049}},
        // Elements, formats, residency, several heads.
        Shape{"avx512", 64, 64, 1, 1, "balanced", {1, 64, 2049}, "bf16"}, Shape{"avx512", 64, 48, 1, 1, "tight", {1, 65, 2049}, "f32", k88, k88},
        Shape{"avx512", 64, 64, 1, 1, "balanced", {1, 65, 2049}, "f16", k4444, k4444},
        Shape{"avx2", 64, 80, 1, 1, "tight", {65, 2049}, "f16", k484, k4444}, Shape{"portable", 48, 64, 1, 1, "balanced", {65, 2049}, "f32", k4444, k88},
        Shape{"avx512", 96, 96, 1, 1, "balanced", {65, 2049}, "f16", k88, k484}, Shape{"avx512", 64, 64, 1, 1, "balanced", {1, 65, 2049}, "bf16", k448, k448, 2, 2},
        Shape{"avx2", 48, 48, 1, 1, "fast", {65, 2049}, "f16", k448, k448, 1, 1}, Shape{"portable", 64, 64, 1, 1, "balanced", {65, 2049}, "bf16", k88, k4444, 2, 1},
        Shape{"avx512", 80, 64, 1, 1, "exact", {65, 2049}, "f16", k4444, k484, 3, 2}, Shape{"avx512", 64, 64, 1, 2, "balanced", {65, 2049}, "f16", k448, k88, 4, 4, 3, 2}),
    [](const testing::TestParamInfo<Shape> &info) {
      const Shape &s = info.param;
      std::ostringstream os;
      os << s.isa << "_" << s.policy << "_" << s.element << "_" << s.keyDim << "_" << s.valueDim << "_" << s.group << "x" << s.queries << "_" << s.keys << s.keyResident << s.values
         << s.valueResident;
      return identifier(os.str());
    });

//===----------------------------------------------------------------------===//
// Policies
//===----------------------------------------------------------------------===//

/// A policy as an attention says it, and as the reference is told, for each head. Tolerance 0 is the published rule.
struct Said {
  const char *name, *policies;
  std::vector<double> tolerance;
  Limits key[2] = {}, value[2] = {};
  Mask mask = {}; ///< and softcap: what `policies` begins with
  double softcap = 0;
};

class PlanOfKernels : public testing::TestWithParam<std::tuple<Said, const char *>> {
protected:
  static std::vector<HeadInputs> heads(const Said &said, const Spec &spec, int64_t tokens) {
    std::vector<HeadInputs> heads = structuredHeads(spec, tokens, 7);
    for (int head : {0, 1}) {
      heads[head].keyLimits = said.key[head];
      heads[head].valueLimits = said.value[head];
      heads[head].mask = said.mask;
      heads[head].softcap = said.softcap;
    }
    return heads;
  }
};

TEST_P(PlanOfKernels, IsThatOfTheReference) {
  const auto &[said, isa] = GetParam();
  Spec spec{32, 48, 2 / said.mask.queries, said.mask.queries, 2};
  spec.said = said.policies;
  spec.options = std::string("isa=") + isa;
  bool published = said.tolerance.empty();
  if (published)
    spec.keys = spec.values = "float<8, 4, 4>";
  const Kernel &kernel = kernelOf(spec);
  if (isForeign(kernel))
    GTEST_SKIP() << aligned_last_error();
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (int64_t tokens : {1, 63, 64, 97, 1000, 2500}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<HeadInputs> all = heads(said, spec, tokens);
    if (!published) {
      expectRule(kernel, all, said.tolerance);
      if (HasFatalFailure())
        return;
      continue;
    }
    Outcome outcome = kernel.run(all);
    ASSERT_FALSE(outcome.failed);
    for (int head : {0, 1}) {
      if (tokens < spec.queries) // rows that see nothing are NaN
        continue;
      SCOPED_TRACE("head " + std::to_string(head));
      PolicyResult want = decodeAlignedKV(all[head]);
      for (auto [side, got, plan] : {std::tuple("K", &outcome.plans[head].key, &want.keyPlan), std::tuple("V", &outcome.plans[head].value, &want.valuePlan)}) {
        SCOPED_TRACE(side);
        ASSERT_EQ(got->size(), plan->size());
        size_t different = 0;
        for (size_t i = 0; i < got->size(); ++i) {
          EXPECT_LE(std::abs((*got)[i] - (*plan)[i]), 4) << i;
          different += (*got)[i] != (*plan)[i];
        }
        EXPECT_LE(different, got->size() / 50);
      }
      for (double difference : relativeErrors(outcome.out[head], want.out, spec.valueDim))
        EXPECT_LE(difference, 2e-2);
    }
  }
}

const Limits kSinksAndAges{std::nullopt, 4, 12, 0, 65, {{100, 8}, {500, 4}}}, kNewest{std::nullopt, 0, 16, 130, 0, {{1, 12}}}, kExact{std::nullopt, 16, 16},
    kOwn{0x1p-10}, kNothing{std::nullopt, 0, 0}, kMost{std::nullopt, 0, 4}, kLeast{std::nullopt, 8, 16}, kRule{std::nullopt, 0, 8, 3, 1};

/// P7, each limit on either side, beside a head that has others.
const Said kLimits{"limits",
                   "policies [<budget, tolerance = 0.015625, key = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>, value = <newest = 130, ages = [1: 12]>>,"
                   " <budget, tolerance = 0.015625, key = <newest = 130, ages = [1: 12]>, value = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>>]",
                   {0x1p-6, 0x1p-6}, {kSinksAndAges, kNewest}, {kNewest, kSinksAndAges}};

std::string nameOf(const testing::TestParamInfo<std::tuple<Said, const char *>> &info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(Isas, PlanOfKernels, testing::Combine(testing::Values(kLimits), testing::Values("portable")), nameOf);
INSTANTIATE_TEST_SUITE_P(
    Policies, PlanOfKernels,
    testing::Combine(
        testing::Values(
            kLimits, Said{"alignedkv", "policy <alignedkv>", {}},
            Said{"exact_head",
                 "policies [<budget, tolerance = 0.015625, key = <bits = 16 to 16>, value = <bits = 16 to 16>>,"
                 " <budget, tolerance = 0.015625, key = <tolerance = 0.0009765625>, value = <tolerance = 0.0009765625>>]",
                 {0x1p-6, 0x1p-6}, {kExact, kOwn}, {kExact, kOwn}},
            Said{"sides", "policies [<budget, tolerance = 0.015625, key = <tolerance = 0.0009765625>>, <budget, tolerance = 0.00390625, value = <bits = 0 to 0>>]",
                 {0x1p-6, 0x1p-8}, {kOwn, {}}, {{}, kNothing}},
            Said{"least_and_most",
                 "policies [<budget, tolerance = 0.00390625, key = <bits = 8 to 16>, value = <bits = 0 to 4>>,"
                 " <budget, tolerance = 0.00390625, key = <bits = 0 to 4>, value = <bits = 8 to 16>>]",
                 {0x1p-8, 0x1p-8}, {kLeast, kMost}, {kMost, kLeast}},
            Said{"rule", "policies [<alignedkv, key = <bits = 0 to 8, newest = 3, sinks = 1>>, <alignedkv, value = <bits = 0 to 8, newest = 3, sinks = 1>>]", {},
                 {kRule, {}}, {{}, kRule}},
            Said{"window", "mask <causal, window = 150, sinks = 70> policy <budget, tolerance = 0.00390625>", {0x1p-8, 0x1p-8}, {}, {}, {1, true, 150, 70}},
            Said{"windows", "softcap 4.0 mask <window = 200, sinks = 4> policy <budget, tolerance = 0.00390625>", {0x1p-8, 0x1p-8}, {}, {}, {2, false, 200, 4}, 4},
            Said{"masked_limits",
                 "mask <causal, window = 300, sinks = 1> policies [<budget, tolerance = 0.015625, key = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>,"
                 " value = <newest = 130, ages = [1: 12]>>,"
                 " <budget, tolerance = 0.015625, key = <newest = 130, ages = [1: 12]>, value = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: 4]>>]",
                 {0x1p-6, 0x1p-6}, {kSinksAndAges, kNewest}, {kNewest, kSinksAndAges}, {1, true, 300, 1}},
            Said{"masked_rule", "softcap 4.0 mask <causal, window = 100, sinks = 2> policy <alignedkv>", {}, {}, {}, {2, true, 100, 2}, 4}),
        testing::Values("host")),
    nameOf);

//===----------------------------------------------------------------------===//
// Loud queries
//===----------------------------------------------------------------------===//

/// Where coarse scores are far off, finer ones lie far below them; in f32, too, the outcome is that of the reference.
TEST(Loud, ErrsLikeTheReference) {
  Spec spec{64, 64, 2};
  spec.options = "policy=balanced certify";
  const Kernel &kernel = kernelOf(spec);
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (double loudness : {2, 8, 16, 32, 64, 128, 256}) {
    SCOPED_TRACE(loudness);
    double squares = 0, wantSquares = 0;
    int64_t rows = 0;
    for (uint32_t seed = 1; seed <= 8; ++seed) {
      HeadInputs in = structuredHead(spec, 500, seed, loudness);
      Caches caches = kernel.pack({in});
      Outcome outcome = kernel.run(caches, {in});
      ASSERT_FALSE(outcome.failed);
      PolicyResult want = decodeBudget(kernel.stored(in, caches), 0x1p-9);
      std::vector<double> exact = exactAttention(in);
      double usual = usualLength(in);
      expectBounded(in, outcome.out[0], outcome.bound[0]);
      for (size_t i = 0; i < exact.size(); ++i) {
        squares += std::pow((outcome.out[0][i] - exact[i]) / usual, 2);
        wantSquares += std::pow((want.out[i] - exact[i]) / usual, 2);
      }
      rows += in.heads;
    }
    EXPECT_LE(std::sqrt(squares / double(rows)), 1.5 * std::sqrt(wantSquares / double(rows)) + 0x1p-9);
  }
}

} // namespace
