// Masks (A11) and softcap (A12): compiled kernels of every format against float64 at sizes that meet and miss the ends of tiles, with certificates held
// against the errors, and what kernels say they read against what any query sees.
#include "Kernels.h"

#include "aligned/Reference/Planes.h"

using namespace aligned;

namespace {

constexpr int64_t kKvHeads = 2, kRows = 2, kKeyDim = 32, kValueDim = 48; // rows of a kv head: queries times query heads
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Scoring {
  std::string text;
  Mask mask; ///< with the queries that attend
  double softcap = 0;
  bool maskedZero = false;
};

const std::vector<Scoring> &scorings() {
  static const std::vector<Scoring> all{
      {"softcap 1.5 mask <causal, window = 64, sinks = 1>", {2, true, 64, 1}, 1.5},
      {"mask <causal, window = 5, sinks = 2> masked_zero", {2, true, 5, 2}, 0, true},
      {"mask <causal>", {2, true}},
      {"mask <window = 5>", {2, false, 5}},
      {"mask <causal, window = 1>", {1, true, 1}},
      {"mask <window = 70, sinks = 66>", {1, false, 70, 66}},
      {"mask <causal, window = 100000000000, sinks = 3>", {2, true, 100000000000, 3}},
      {"softcap 2.0", {}, 2},
  };
  return all;
}

struct Storing {
  const char *options, *format; ///< format: empty: as the pipeline has it
  double bound;                 ///< of errors relative to the usual row of V
  size_t scorings = 8;          ///< how many of the above are tried
};

Spec specOf(const Storing &storing, const Scoring &scoring) {
  Spec spec{kKeyDim, kValueDim, kRows / scoring.mask.queries, scoring.mask.queries, kKvHeads};
  spec.said = scoring.text;
  spec.options = std::string(storing.options) + " certify";
  spec.keys = spec.values = storing.format;
  return spec;
}

std::vector<HeadInputs> headsOf(const Spec &spec, const Scoring &scoring, int64_t tokens) {
  std::vector<HeadInputs> heads = structuredHeads(spec, tokens, 3, 1);
  for (HeadInputs &in : heads) {
    in.mask = scoring.mask;
    in.softcap = scoring.softcap;
    in.maskedZero = scoring.maskedZero;
    for (int64_t i = 0; i < tokens / 2 * kValueDim; ++i) // what windows hide is loud
      in.v[i] = spec.held(in.v[i] * 8);
  }
  return heads;
}

void expectRows(const Outcome &outcome, const std::vector<HeadInputs> &heads, double error) {
  ASSERT_FALSE(outcome.failed);
  for (size_t head = 0; head < heads.size(); ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    expectNear(heads[head], outcome.out[head], error);
    if (!outcome.bound.empty())
      expectBounded(heads[head], outcome.out[head], outcome.bound[head]);
    if (testing::Test::HasFatalFailure())
      return;
  }
}

/// Tokens that nobody sees are not read beyond the scan, their tiles not at all, and all others in full under `exact`.
void expectReads(const Outcome &outcome, const Mask &mask, int64_t tokens, bool exact, bool fixed, int least) {
  for (const Plan &plan : outcome.plans) {
    int64_t unitsOfTile = fixed ? 64 : kKeyDim;
    ASSERT_EQ(int64_t(plan.key.size()), fixed ? tokens : (tokens + 63) / 64 * kKeyDim);
    for (int64_t i = 0; i < int64_t(plan.key.size()); ++i) {
      bool tileSeen = mask.isTileSeen(i / unitsOfTile, tokens), seen = fixed ? mask.isSeen(i, tokens) : tileSeen;
      if (!seen || exact) {
        EXPECT_EQ(plan.key[i], seen ? 16 : tileSeen ? least : 0) << i;
      }
    }
    ASSERT_EQ(int64_t(plan.value.size()), tokens);
    for (int64_t t = 0; t < tokens; ++t)
      if (bool seen = mask.isSeen(t, tokens); !seen || exact) {
        EXPECT_EQ(plan.value[t], seen ? 16 : 0) << "token " << t;
      }
  }
}

class Masks : public testing::TestWithParam<Storing> {};

TEST_P(Masks, MatchTheOracleAtEveryLength) {
  const Storing &storing = GetParam();
  std::string options = storing.options;
  bool dense = options.find("dense") != options.npos || options.find("reference") != options.npos, exact = options.find("exact") != options.npos;
  for (size_t i = 0; i < storing.scorings; ++i) {
    const Scoring &scoring = scorings()[i];
    const Mask &mask = scoring.mask;
    const Kernel &kernel = kernelOf(specOf(storing, scoring));
    if (isForeign(kernel))
      GTEST_SKIP() << aligned_last_error();
    ASSERT_TRUE(kernel) << scoring.text << ": " << aligned_last_error();
    for (int64_t tokens : {0, 1, 2, 63, 64, 65, 331, 2050}) {
      SCOPED_TRACE(scoring.text + ", " + std::to_string(mask.queries) + " queries, " + std::to_string(tokens) + " tokens");
      std::vector<HeadInputs> heads = headsOf(kernel.spec, scoring, tokens);
      Outcome outcome = kernel.run(heads);
      expectRows(outcome, heads, storing.bound);
      if (!dense)
        expectReads(outcome, mask, tokens, exact, kernel.typeOf(1).format.kind == ALIGNED_FORMAT_FIXED, kernel.typeOf(1).format.width[0]);
      if (options.find("reference") == options.npos && mask.window + mask.sinks + mask.queries < 70 && mask.window && tokens > 300) {
        // At most the first and the last two of all tiles, and of the last a part.
        int64_t least = 64 + 64 + tokens % 64, all = kKvHeads * tokens;
        EXPECT_EQ(outcome.tally.key_values, all * kKeyDim);
        EXPECT_EQ(outcome.tally.value_values, all * kValueDim);
        EXPECT_LE(outcome.tally.key_bits, kKvHeads * least * (16 * kKeyDim + 8)) << "of " << 16 * all * kKeyDim;
        EXPECT_LE(outcome.tally.value_bits, kKvHeads * least * (16 * kValueDim + 8));
      }
      if (HasFatalFailure())
        return;
    }
  }
}

/// What a mask hides may hold anything and reaches no row that doesn't see it.
TEST_P(Masks, HideWhatIsNotFinite) {
  for (size_t i : {0, 2}) {
    if (i >= GetParam().scorings)
      break;
    const Scoring &scoring = scorings()[i];
    const Kernel &kernel = kernelOf(specOf(GetParam(), scoring));
    if (isForeign(kernel))
      GTEST_SKIP() << aligned_last_error();
    ASSERT_TRUE(kernel) << aligned_last_error();
    auto expect = [&](int64_t tokens, auto change) {
      std::vector<HeadInputs> heads = headsOf(kernel.spec, scoring, tokens);
      change(heads[1]);
      expectRows(kernel.run(heads), heads, GetParam().bound);
    };
    for (int64_t tokens : {3, 64, 65, 200})
      for (double odd : {kInfinity, -kInfinity, double(NAN)})
        // The newest token, which one query sees; one that none does; and one of the two, where they differ.
        for (int64_t token : {tokens - 1, tokens - 2, tokens / 3}) {
          SCOPED_TRACE(scoring.text + ", " + std::to_string(odd) + " in " + std::to_string(token) + " of " + std::to_string(tokens) + " tokens");
          expect(tokens, [&](HeadInputs &in) { in.v[token * kValueDim + 7] = odd; });
          expect(tokens, [&](HeadInputs &in) { in.k[token * kKeyDim + 2] = odd; });
          if (HasFatalFailure())
            return;
        }
    // A query that is not finite is NaN, whatever a cap makes of its scores; the others are what they were.
    expect(200, [](HeadInputs &in) { in.q[1 * kKeyDim + 4] = kInfinity; });
  }
}

INSTANTIATE_TEST_SUITE_P(Storing, Masks,
                         testing::Values(Storing{"policy=exact", "fixed<4, 4, 8>", 2e-4, 5}, Storing{"policy=balanced", "fixed<4, 4, 8>", 0x1p-7, 3},
                                         Storing{"policy=fast isa=portable", "fixed<8, 8>", 0x1p-5, 1},
                                         Storing{"policy=alignedkv", "float<8, 4, 4>", 0.05, 3}, Storing{"policy=exact", "float<8, 4, 4>", 1e-3, 1},
                                         Storing{"policy=exact format=dense", "", 1e-5, 3}, Storing{"target=reference", "", 1e-6}),
                         [](const testing::TestParamInfo<Storing> &info) { return identifier(std::string(info.param.options) + "_" + info.param.format); });

/// Rows of an op that has fewer tokens than queries: those that see nothing are NaN, or 0 where it says so; the last one sees them all.
TEST(Queries, BeforeTheFirstToken) {
  for (const Storing &storing : {Storing{"policy=exact", "fixed<4, 4, 8>", 2e-4}, Storing{"policy=balanced", "fixed<4, 4, 8>", 0x1p-7}})
    for (size_t i : {1, 2}) {
      const Scoring &scoring = scorings()[i];
      const Kernel &kernel = kernelOf(specOf(storing, scoring));
      ASSERT_TRUE(kernel) << aligned_last_error();
      SCOPED_TRACE(kernel.spec.name());
      std::vector<HeadInputs> heads = headsOf(kernel.spec, scoring, 1);
      Outcome outcome = kernel.run(heads);
      expectRows(outcome, heads, storing.bound);
      double first = outcome.out[0][0];
      EXPECT_TRUE(scoring.maskedZero ? first == 0 : std::isnan(first)) << first;
      EXPECT_FALSE(std::isnan(outcome.out[0][kValueDim]));
    }
}

/// More queries than a kernel takes go in stretches, each of which knows where it stands.
TEST(Queries, InStretches) {
  const Scoring windowed{"softcap 4.0 mask <causal, window = 40, sinks = 3>", {34, true, 40, 3}, 4}, everything{"", {37}};
  for (auto [group, scoring, options, error] :
       {std::tuple(2, windowed, "policy=balanced certify", 0x1p-6), {1, everything, "policy=exact", 1e-4}}) { // queries whose bits are chosen alone are read less
    Spec spec{32, 48, group, scoring.mask.queries, 2};
    spec.said = scoring.text;
    spec.options = options;
    const Kernel &kernel = kernelOf(spec);
    ASSERT_TRUE(kernel) << aligned_last_error();
    for (int64_t tokens : {1, 20, 64, 200, 2060}) {
      SCOPED_TRACE(spec.name() + ", " + std::to_string(tokens) + " tokens");
      std::vector<HeadInputs> heads = headsOf(spec, scoring, tokens);
      expectRows(kernel.run(heads), heads, error);
      if (HasFatalFailure())
        return;
    }
  }
}

/// Caps see scores whole: what the offset took off K is put back.
TEST(Softcap, SeesWhatTheOffsetTook) {
  for (auto [policy, isa] : {std::pair("exact", "host"), {"balanced", "portable"}}) {
      Spec spec{32, 48, 1, 1, 2};
      spec.said = "softcap 2.0";
      spec.options = std::string("certify policy=") + policy + " isa=" + isa;
      Kernel kernel(spec);
      ASSERT_TRUE(kernel) << aligned_last_error();
      for (int64_t tokens : {5, 64, 200, 2100}) { // of fewer than 64 there is no offset
        SCOPED_TRACE(spec.name() + ", " + std::to_string(tokens) + " tokens");
        std::vector<HeadInputs> heads = headsOf(spec, {"", {}, 2}, tokens);
        for (HeadInputs &in : heads)
          for (int64_t i = 0; i < tokens * kKeyDim; ++i)
            in.k[i] = spec.held(in.k[i] + (i % kKeyDim == 9 ? 12 : i % kKeyDim == 10 ? -3 : 0));
        expectRows(kernel.run(heads), heads, *policy == 'e' ? 2e-4 : 0x1p-7);
      }
    }
}

} // namespace
