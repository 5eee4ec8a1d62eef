// Exact attention against a one-pass softmax, the policies against figures that array formulas gave on a captured cache
// (utils/make_reference_figures.py), and both where tokens are few, open or not finite.

#include "Heads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

using namespace aligned;

namespace {

double worstError(const HeadInputs &in, const PolicyResult &result) {
  std::vector<double> errors = relativeErrors(result.out, exact(in), in.valueDim);
  return *std::max_element(errors.begin(), errors.end());
}

//===----------------------------------------------------------------------===//
// Exact attention
//===----------------------------------------------------------------------===//

TEST(ExactAttention, ByHand) {
  // Scores 2 ln 3 and 0: weights 9/10 and 1/10.
  HeadInputs in{1, 2, 1, 2, {1}, {std::log(3.0), 0}, {10, 0, 20, 5}, 2};
  std::vector<double> out = exact(in);
  EXPECT_NEAR(out[0], 11, 1e-12);
  EXPECT_NEAR(out[1], 0.5, 1e-12);
}

/// One pass over the tokens with a running maximum, in long double.
std::vector<double> onePass(const HeadInputs &in) {
  std::vector<double> out;
  for (int64_t h = 0; h < in.heads; ++h) {
    long double top = -INFINITY, sum = 0;
    std::vector<long double> row(in.valueDim);
    for (int64_t t = 0; t < in.tokens; ++t) {
      long double score = std::inner_product(&in.q[h * in.keyDim], &in.q[h * in.keyDim] + in.keyDim, &in.k[t * in.keyDim], 0.0L) * in.scale;
      long double before = std::exp(top - std::max(top, score)), weight = std::exp(score - std::max(top, score));
      top = std::max(top, score);
      sum = sum * before + weight;
      for (int64_t c = 0; c < in.valueDim; ++c)
        row[c] = row[c] * before + weight * in.v[t * in.valueDim + c];
    }
    for (long double x : row)
      out.push_back(double(x / sum));
  }
  return out;
}

TEST(ExactAttention, AgreesWithOnePass) {
  for (int64_t tokens : {1, 63, 64, 65, 97})
    for (int64_t heads : {1, 3, 7})
      for (auto [keyDim, valueDim] : {std::pair(16, 16), {48, 32}, {1, 5}}) {
        HeadInputs in = randomHead(tokens, heads, keyDim, valueDim);
        std::vector<double> out = exact(in), expected = onePass(in);
        for (size_t i = 0; i < out.size(); ++i)
          ASSERT_NEAR(out[i], expected[i], 1e-13) << tokens << " tokens, " << heads << " heads";
      }
}

TEST(ExactAttention, LargeScoresDoNotOverflow) {
  HeadInputs in{1, 2, 1, 1, {1e4}, {1, 0.5}, {3, 7}, 1};
  EXPECT_EQ(exact(in)[0], 3);
}

TEST(ExactAttention, FullyMaskedRows) {
  HeadInputs masked{1, 2, 1, 1, {1}, {-INFINITY, -INFINITY}, {3, 7}, 1}, partly = masked;
  partly.k[1] = -5;
  EXPECT_TRUE(std::isnan(exact(masked)[0]));
  EXPECT_EQ(exact(masked, /*maskedZero=*/true)[0], 0);
  EXPECT_EQ(exact(partly)[0], 7);
  EXPECT_EQ(exact(partly, /*maskedZero=*/true)[0], 7);
}

TEST(ExactAttention, NaNStaysInItsRow) {
  HeadInputs in = randomHead(65, 3, 16, 16);
  std::vector<double> before = exact(in);
  in.q[1 * 16 + 4] = NAN;
  std::vector<double> out = exact(in, /*maskedZero=*/true);
  for (int64_t i = 0; i < 48; ++i)
    EXPECT_TRUE(i / 16 == 1 ? std::isnan(out[i]) : out[i] == before[i]) << i;
}

/// Rows one by one, over copies of the tokens that each sees.
TEST(ExactAttention, MasksLeaveTokensOut) {
  for (int64_t tokens : {1, 2, 63, 65, 130})
    for (const Mask &mask : {Mask{3, true}, Mask{1, true, 5}, Mask{3, false, 5}, Mask{3, true, 64, 2}, Mask{6, false, 1, 66}, Mask{2, true, 1000, 1}}) {
      HeadInputs in = randomHead(tokens, 6, 16, 8);
      in.mask = mask;
      in.softcap = mask.sinks ? 1.5 : 0;
      std::vector<double> out = exact(in);
      for (int64_t row = 0; row < in.heads; ++row) {
        int64_t position = tokens - mask.queries + row % mask.queries;
        HeadInputs seen{1, 0, 16, 8, {in.q.begin() + row * 16, in.q.begin() + (row + 1) * 16}, {}, {}, in.scale};
        for (int64_t t = 0; t < tokens; ++t) {
          if ((mask.causal && t > position) || (mask.window && position - t >= mask.window && t >= mask.sinks))
            continue;
          ++seen.tokens;
          seen.k.insert(seen.k.end(), in.k.begin() + t * 16, in.k.begin() + (t + 1) * 16);
          seen.v.insert(seen.v.end(), in.v.begin() + t * 8, in.v.begin() + (t + 1) * 8);
        }
        seen.softcap = in.softcap;
        std::vector<double> want = exact(seen);
        for (int64_t c = 0; c < 8; ++c)
          if (seen.tokens)
            EXPECT_NEAR(out[row * 8 + c], want[c], 1e-14);
          else
            EXPECT_TRUE(std::isnan(out[row * 8 + c]));
      }
      std::vector<double> zeroed = exact(in, /*maskedZero=*/true);
      for (size_t i = 0; i < out.size(); ++i)
        EXPECT_EQ(zeroed[i], std::isnan(out[i]) ? 0 : out[i]);
    }
}

TEST(ExactAttention, SoftcapBoundsScores) {
  HeadInputs in{1, 3, 1, 1, {1}, {-8, 1, 1e6}, {1, 0, 0}, 0.5};
  in.softcap = 3;
  double weights[] = {std::exp(3 * std::tanh(-4 / 3.0)), std::exp(3 * std::tanh(0.5 / 3)), std::exp(3)};
  EXPECT_NEAR(exact(in)[0], weights[0] / (weights[0] + weights[1] + weights[2]), 1e-15);
  in.q[0] = INFINITY; // infinite scores would be finite ones
  EXPECT_TRUE(std::isnan(exact(in)[0]));
}

TEST(RelativeErrors, ByHand) {
  EXPECT_EQ(relativeErrors({3, 4, 1, 1}, {3, 0, 1, 1}, 2), (std::vector<double>{4.0 / 3, 0}));
  EXPECT_EQ(relativeErrors({0}, {0}, 1), std::vector<double>{0});
}

//===----------------------------------------------------------------------===//
// Policies
//===----------------------------------------------------------------------===//

TEST(Policies, FiguresOfTheSlice) {
  compareFigures("expected.json", "alignedkv", decodeAlignedKV);
  for (auto [name, tolerance] : {std::pair("tight", 0x1p-11), {"balanced", 0x1p-8}, {"fast", 0x1p-6}})
    compareFigures("expected.json", name, [tolerance = tolerance](const HeadInputs &in) { return decodeBudget(in, tolerance); });
}

/// What no query sees is not read, costs nothing, and changes nothing but the mean of rows that are not read.
TEST(Policies, ReadWhatAMaskShows) {
  for (const Mask &mask : {Mask{3, true, 40, 2}, Mask{1, false, 100}, Mask{3, true, 7}}) {
    HeadInputs in = randomHead(450, 3, 32, 16);
    for (PolicyResult (*decode)(const HeadInputs &) : {+[](const HeadInputs &head) { return decodeAlignedKV(head); }, +[](const HeadInputs &head) { return decodeBudget(head, 0x1p-8); }}) {
      in.mask = {};
      PolicyResult all = decode(in);
      in.mask = mask;
      PolicyResult result = decode(in);
      EXPECT_LE(worstError(in, result), 0.05);
      EXPECT_LT(result.keyBits, all.keyBits / 2);
      EXPECT_LT(result.valueBits, all.valueBits / 2);
      for (size_t i = 0; i < result.keyPlan.size(); ++i)
        EXPECT_EQ(result.keyPlan[i] > 0, mask.isBlockSeen(int64_t(i) / 32, 450)) << i;
      for (size_t t = 0; t < result.valuePlan.size(); ++t)
        if (!mask.isSeen(int64_t(t), 450))
          EXPECT_EQ(result.valuePlan[t], 0) << t;
    }
  }
}

TEST(Policies, OpenTokensAreExact) {
  for (int64_t tokens : {1, 31, 63}) {
    HeadInputs in = randomHead(tokens, 3, 32, 16);
    for (const PolicyResult &result : {decodeAlignedKV(in), decodeBudget(in, 0x1p-6)}) {
      EXPECT_LE(worstError(in, result), 1e-13);
      EXPECT_EQ(result.keyBits, 16);
      EXPECT_EQ(result.valueBits, 16);
    }
  }
}

TEST(Policies, OddSizes) {
  for (int64_t tokens : {64, 65, 97, 129, 1000})
    for (int64_t heads : {1, 3, 7})
      for (double tolerance : {0x1p-6, 0x1p-11}) {
        HeadInputs in = randomHead(tokens, heads, 64, 48);
        PolicyResult result = decodeBudget(in, tolerance);
        EXPECT_LE(worstError(in, result), 3 * tolerance) << tokens << " tokens, " << heads << " heads";
        double open = double(tokens % 64) / tokens;
        EXPECT_LE(result.keyBits, 16 * open + (tolerance == 0x1p-6 ? 12 : 16.125) * (1 - open));
        EXPECT_GT(result.keyBits, 16 * open);
        EXPECT_GT(result.valueBits, 16 * open);
      }
}

TEST(Policies, LessToleranceReadsMoreAndErrsLess) {
  HeadInputs in = randomHead(1000, 3, 64, 64);
  PolicyResult fast = decodeBudget(in, 0x1p-6), tight = decodeBudget(in, 0x1p-11);
  EXPECT_LT(fast.keyBits, tight.keyBits);
  EXPECT_LT(fast.valueBits, tight.valueBits);
  EXPECT_LT(worstError(in, tight), worstError(in, fast) / 4);
  EXPECT_GT(worstError(in, fast), 0x1p-11); // fast is not tight by accident
}

/// P7, by hand: least bits, then the most, then the staircase, then what stays exact.
TEST(Policies, LimitsOfBits) {
  Limits limits{std::nullopt, 4, 12, 3, 2, {{10, 8}, {20, 0}}};
  auto at = [&](int bits, int64_t t) { return limits.apply(bits, t, t, 100); };
  EXPECT_EQ(at(0, 95), 4);
  EXPECT_EQ(at(8, 95), 8);
  EXPECT_EQ(at(16, 95), 12);
  EXPECT_EQ(at(16, 90), 12); // age 9
  EXPECT_EQ(at(16, 89), 8);
  EXPECT_EQ(at(0, 80), 4);
  EXPECT_EQ(at(16, 79), 0); // age 20: the staircase goes below the least
  EXPECT_EQ(at(0, 97), 16); // age 2
  EXPECT_EQ(at(0, 96), 4);
  EXPECT_EQ(at(0, 1), 16);
  EXPECT_EQ(at(0, 2), 0);
  EXPECT_EQ(limits.apply(0, 0, 63, 100), 16); // holds sinks
  EXPECT_EQ(limits.apply(16, 64, 91, 100), 12); // of the age of its newest token
  EXPECT_EQ(Limits().apply(4, 0, 0, 1), 4);
}

TEST(Policies, LimitsOfPlans) {
  for (int64_t tokens : {64, 65, 200, 1000}) {
    HeadInputs in = randomHead(tokens, 3, 64, 48);
    int64_t blocks = tokens / 64;
    in.keyLimits.sinks = 1;
    in.valueLimits.newest = tokens % 64 + 7;
    in.valueLimits.most = 4;
    PolicyResult rule = decodeAlignedKV(in), budget = decodeBudget(in, 0x1p-6);
    for (const PolicyResult &result : {rule, budget}) {
      for (int64_t c = 0; c < 64; ++c)
        EXPECT_EQ(result.keyPlan[c], 16);
      for (int64_t t = 0; t < 64 * blocks; ++t)
        if (t >= 64 * blocks - 7) {
          EXPECT_EQ(result.valuePlan[t], 16) << t;
        }
    }
    for (int64_t t = 0; t < 64 * blocks - 7; ++t) {
      EXPECT_EQ(rule.valuePlan[t], 8); // a whole plane of a half
      EXPECT_LE(budget.valuePlan[t], 4);
    }
    in.keyLimits = in.valueLimits = {std::nullopt, 16, 16};
    EXPECT_LE(worstError(in, decodeBudget(in, 0.5)), 0x1p-13); // what storage rounds
    EXPECT_LE(worstError(in, decodeAlignedKV(in)), 1e-14);
  }
}

/// Without a tolerance of its own each side has sqrt(1/2) of the whole.
TEST(Policies, TolerancesOfSides) {
  HeadInputs in = randomHead(1000, 3, 64, 48), apart = in;
  PolicyResult whole = decodeBudget(in, 0x1p-6);
  apart.keyLimits.tolerance = apart.valueLimits.tolerance = 0x1p-6 * std::sqrt(0.5);
  EXPECT_EQ(decodeBudget(apart, 0.5).out, whole.out);
  apart.keyLimits.tolerance = 0x1p-11;
  PolicyResult closer = decodeBudget(apart, 0x1p-6);
  EXPECT_GT(closer.keyBits, whole.keyBits + 2);
  EXPECT_NEAR(closer.valueBits, whole.valueBits, 0.2);
}

/// P3: a row of the group gets at least the bits that it gets alone.
TEST(Policies, GroupTakesTheMaximum) {
  HeadInputs in = randomHead(512, 3, 64, 64);
  for (int64_t c = 0; c < 64; ++c)
    in.q[c] *= 8; // one peaky head among flat ones
  double most = 0;
  for (int64_t h = 0; h < 3; ++h) {
    HeadInputs alone = in;
    alone.heads = 1;
    alone.q.assign(in.q.begin() + h * 64, in.q.begin() + (h + 1) * 64);
    most = std::max(most, decodeBudget(alone, 0x1p-8).keyBits);
  }
  EXPECT_GE(decodeBudget(in, 0x1p-8).keyBits, most);
}

/// bf16 keeps no mantissa in its top byte: no tier below 12 bits.
TEST(Policies, BFloatTiers) {
  for (Storage storage : {Storage::Half, Storage::BFloat16}) {
    HeadInputs in = randomHead(256, 1, 16, 16, storage);
    for (int64_t t = 0; t < 256; ++t)
      in.k[t * 16] *= 0x1p-12; // one channel far below the others
    for (double &x : in.v)
      x *= 0x1p-2;
    PolicyResult result = decodeAlignedKV(in);
    double least = storage == Storage::Half ? 8 : 12;
    EXPECT_GE(result.valueBits, least);
    EXPECT_LT(result.valueBits, least + 1);
    EXPECT_LE(result.keyBits, 16 - (16 - least) / 16);
    EXPECT_LT(worstError(in, result), 0.1);
  }
}

/// S7: readers add what the planes cannot hold, so that IEEE arithmetic gives what dense attention gives.
TEST(Policies, NotFiniteValues) {
  HeadInputs in = randomHead(129, 3, 16, 16);
  std::vector<double> before = exact(in);
  in.v[70 * 16 + 3] = NAN;
  in.v[20 * 16 + 5] = -INFINITY;
  in.v[128 * 16 + 7] = INFINITY; // open
  for (const PolicyResult &result : {decodeAlignedKV(in), decodeBudget(in, 0x1p-11)})
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t c = 0; c < 16; ++c) {
        double x = result.out[h * 16 + c];
        if (c == 3)
          EXPECT_TRUE(std::isnan(x));
        else if (c == 5)
          EXPECT_EQ(x, -INFINITY);
        else if (c == 7)
          EXPECT_EQ(x, INFINITY);
        else
          EXPECT_NEAR(x, before[h * 16 + c], 0.05);
      }
}

TEST(Policies, NotFiniteKeysAndQueries) {
  for (double bad : {NAN, INFINITY}) {
    HeadInputs in = randomHead(129, 3, 16, 16);
    PolicyResult before[] = {decodeAlignedKV(in), decodeBudget(in, 0x1p-11)};
    in.q[1 * 16 + 2] = NAN;
    in.k[70 * 16 + 3] = bad;
    std::vector<double> expected = exact(in);
    PolicyResult results[] = {decodeAlignedKV(in), decodeBudget(in, 0x1p-11)};
    for (int policy : {0, 1})
      for (int64_t h = 0; h < 3; ++h)
        for (int64_t c = 0; c < 16; ++c) {
          double x = results[policy].out[h * 16 + c], wanted = expected[h * 16 + c];
          EXPECT_EQ(std::isnan(x), std::isnan(wanted));
          if (!std::isnan(wanted)) { // a score of -inf masks its token
            EXPECT_NEAR(x, wanted, 0.05);
          }
        }
  }
}

} // namespace
