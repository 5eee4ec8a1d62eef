// Exact attention against a one-pass softmax, P1 against figures that array formulas gave on a captured cache
// (utils/make_reference_figures.py), limits by hand. P2 is BudgetTest.cpp's.

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

/// Tokens newer than the last query: the mask of a stretch of queries that is not the newest.
TEST(ExactAttention, LaterTokens) {
  HeadInputs in = randomHead(70, 6, 16, 8), seen = in;
  in.mask = {3, true, 20, 2, 9};
  seen.tokens = 61;
  seen.k.resize(61 * 16);
  seen.v.resize(61 * 8);
  seen.mask = {3, true, 20, 2};
  std::vector<double> out = exact(in), want = exact(seen);
  for (size_t i = 0; i < out.size(); ++i)
    EXPECT_NEAR(out[i], want[i], 1e-14);
}

/// An additive mask of -inf and 0 is a mask; what it hides may be anything.
TEST(ExactAttention, AdditiveMasks) {
  HeadInputs in = randomHead(65, 3, 16, 8), windowed = in, shifted = in;
  windowed.mask = {3, true, 5};
  in.additive.resize(3 * 65);
  for (int64_t i = 0; i < 3 * 65; ++i)
    in.additive[i] = windowed.mask.sees(i / 65, i % 65, 65) ? 0 : -INFINITY;
  in.softcap = windowed.softcap = 1.5;
  EXPECT_EQ(exact(in), exact(windowed));
  in.k[0] = in.v[0] = NAN;
  EXPECT_EQ(exact(in), exact(windowed));

  // Added to scores: as a key's channel would.
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  HeadInputs wider = shifted;
  wider.keyDim = 17;
  wider.q.clear();
  wider.k.clear();
  for (int64_t h = 0; h < 3; ++h) {
    wider.q.insert(wider.q.end(), shifted.q.begin() + h * 16, shifted.q.begin() + (h + 1) * 16);
    wider.q.push_back(1 / shifted.scale);
  }
  std::vector<double> bias(65);
  for (int64_t t = 0; t < 65; ++t) {
    wider.k.insert(wider.k.end(), shifted.k.begin() + t * 16, shifted.k.begin() + (t + 1) * 16);
    wider.k.push_back(bias[t] = normal(random));
  }
  for (int64_t h = 0; h < 3; ++h)
    shifted.additive.insert(shifted.additive.end(), bias.begin(), bias.end());
  std::vector<double> out = exact(shifted), want = exact(wider);
  for (size_t i = 0; i < out.size(); ++i)
    EXPECT_NEAR(out[i], want[i], 1e-14);
}

/// A sink is a token with that score and a value of 0.
TEST(ExactAttention, SinkLogits) {
  HeadInputs in{2, 2, 1, 1, {1, 1}, {std::log(2.0), 0}, {9, 3}, 1};
  in.sinkLogits = {std::log(3.0), -INFINITY};
  std::vector<double> out = exact(in), p = exactProbabilities(in);
  EXPECT_NEAR(out[0], (2 * 9 + 3) / 6.0, 1e-14);
  EXPECT_NEAR(out[1], (2 * 9 + 3) / 3.0, 1e-14);
  EXPECT_NEAR(p[0], 2 / 6.0, 1e-15);
  EXPECT_NEAR(p[3], 1 / 3.0, 1e-15);
  in.sinkLogits = {900, -900}; // no overflow
  EXPECT_EQ(exact(in)[0], 0);
  EXPECT_NEAR(exact(in)[1], 7, 1e-14);
  in.additive = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}; // the sink is all that a row sees
  EXPECT_EQ(exact(in), (std::vector<double>{0, 0}));
}

/// The state of a row divided by its sum is its output, whatever hides tokens; and the states of two stretches merge to that of all.
TEST(ExactState, IsOutputTimesSum) {
  for (const char *what : {"", "mask", "softcap", "additive", "sink", "later"}) {
    SCOPED_TRACE(what);
    HeadInputs in = randomHead(97, 6, 16, 24);
    if (what[0] == 'm')
      in.mask = {3, true, 20, 2};
    if (what[0] == 'l')
      in.mask = {3, true, 0, 0, 5};
    in.softcap = what == std::string("softcap") ? 2 : 0;
    if (what[0] == 'a')
      for (int64_t i = 0; i < in.heads * in.tokens; ++i)
        in.additive.push_back(i % 3 ? 0.25 * double(i % 7) : -INFINITY);
    if (what == std::string("sink"))
      in.sinkLogits = {0, 1, 30, -30, -INFINITY, 2};
    std::vector<double> acc(in.heads * in.valueDim), max(in.heads), sum(in.heads);
    exactState(in, acc.data(), max.data(), sum.data());
    const std::vector<double> out = exact(in);
    for (size_t i = 0; i < out.size(); ++i)
      EXPECT_NEAR(acc[i] / sum[i / in.valueDim], out[i], 1e-12);
    if (what[0])
      continue;
    HeadInputs parts[2] = {in, in};
    for (int part : {0, 1}) {
      auto cut = [&](const std::vector<double> &rows, int64_t dim) {
        return part ? std::vector<double>(rows.begin() + 40 * dim, rows.end()) : std::vector<double>(rows.begin(), rows.begin() + 40 * dim);
      };
      parts[part].k = cut(in.k, in.keyDim);
      parts[part].v = cut(in.v, in.valueDim);
      parts[part].tokens = part ? 57 : 40;
    }
    std::vector<double> merged(acc.size()), total(in.heads);
    for (const HeadInputs &part : parts) {
      std::vector<double> ownAcc(acc.size()), ownMax(in.heads), ownSum(in.heads);
      exactState(part, ownAcc.data(), ownMax.data(), ownSum.data());
      for (int64_t h = 0; h < in.heads; ++h)
        total[h] += ownSum[h] * std::exp(ownMax[h] - max[h]);
      for (size_t i = 0; i < acc.size(); ++i)
        merged[i] += ownAcc[i] * std::exp(ownMax[i / in.valueDim] - max[i / in.valueDim]);
    }
    for (int64_t h = 0; h < in.heads; ++h)
      EXPECT_NEAR(total[h], sum[h], 1e-12 * sum[h]);
    for (size_t i = 0; i < acc.size(); ++i)
      EXPECT_NEAR(merged[i], acc[i], 1e-12 * sum[i / in.valueDim]);
  }
}

TEST(ExactState, RowsWithoutAWeight) {
  auto stateOf = [](HeadInputs in) {
    std::vector<double> acc(in.heads * in.valueDim), max(in.heads), sum(in.heads);
    exactState(in, acc.data(), max.data(), sum.data());
    return std::tuple(acc[0], max[0], sum[0]);
  };
  HeadInputs in = randomHead(3, 1, 16, 16);
  in.additive = {-INFINITY, -INFINITY, -INFINITY};
  in.v[0] = INFINITY; // hidden, and so without effect
  auto [acc, max, sum] = stateOf(in);
  EXPECT_TRUE(acc == 0 && max == -INFINITY && std::isnan(sum));
  in.maskedZero = true;
  EXPECT_EQ(stateOf(in), std::tuple(0.0, -INFINITY, 0.0));
  in.maskedZero = false;
  in.sinkLogits = {0.5};
  EXPECT_EQ(stateOf(in), std::tuple(0.0, 0.5, 1.0));
  EXPECT_EQ(stateOf(randomHead(0, 1, 16, 16)), std::tuple(0.0, -INFINITY, 0.0));
  HeadInputs poisoned = randomHead(3, 1, 16, 16);
  poisoned.q[2] = NAN;
  EXPECT_TRUE(std::isnan(std::get<2>(stateOf(poisoned))));
}

TEST(RelativeErrors, ByHand) {
  EXPECT_EQ(relativeErrors({3, 4, 1, 1}, {3, 0, 1, 1}, 2), (std::vector<double>{4.0 / 3, 0}));
  EXPECT_EQ(relativeErrors({0}, {0}, 1), std::vector<double>{0});
}

//===----------------------------------------------------------------------===//
// P1, the published rule
//===----------------------------------------------------------------------===//

TEST(AlignedKV, FiguresOfTheSlice) { compareFigures("expected.json", "alignedkv", decodeAlignedKV); }

TEST(AlignedKV, OddSizes) {
  for (int64_t tokens : {1, 63, 64, 65, 97, 129})
    for (int64_t heads : {1, 3, 7}) {
      HeadInputs in = randomHead(tokens, heads, 64, 48);
      PolicyResult result = decodeAlignedKV(in);
      EXPECT_LE(worstError(in, result), 0.1) << tokens << " tokens, " << heads << " heads";
      EXPECT_GE(result.keyBits, 8);
      EXPECT_LE(result.keyBits, 16);
      EXPECT_EQ(int64_t(result.keyPlan.size()), (tokens + 63) / 64 * 64);
      EXPECT_EQ(int64_t(result.valuePlan.size()), tokens);
    }
  HeadInputs none = randomHead(0, 2, 16, 16);
  EXPECT_EQ(decodeAlignedKV(none).out, std::vector<double>(32, 0));
}

/// What no query sees is not read and costs nothing.
TEST(AlignedKV, ReadsWhatAMaskShows) {
  for (const Mask &mask : {Mask{3, true, 40, 2}, Mask{1, false, 100}, Mask{3, true, 7}, Mask{3, true, 40, 0, 200}}) {
    HeadInputs in = randomHead(450, 3, 32, 16);
    PolicyResult all = decodeAlignedKV(in);
    in.mask = mask;
    PolicyResult result = decodeAlignedKV(in);
    EXPECT_LE(worstError(in, result), 0.05);
    EXPECT_LT(result.keyBits, all.keyBits / 2);
    EXPECT_LT(result.valueBits, all.valueBits / 2);
    for (size_t i = 0; i < result.keyPlan.size(); ++i)
      EXPECT_EQ(result.keyPlan[i] > 0, mask.isTileSeen(int64_t(i) / 32, 450)) << i;
    for (size_t t = 0; t < result.valuePlan.size(); ++t)
      EXPECT_EQ(result.valuePlan[t] > 0, mask.isSeen(int64_t(t), 450)) << t;
    HeadInputs hidden = in;
    hidden.mask = {};
    for (int64_t i = 0; i < 3 * 450; ++i)
      hidden.additive.push_back(mask.sees(i / 450, i % 450, 450) ? 0 : -INFINITY);
    EXPECT_EQ(decodeAlignedKV(hidden).out, result.out);
    EXPECT_EQ(decodeAlignedKV(hidden).keyBits, result.keyBits);
  }
}

TEST(AlignedKV, SinksAndSoftcap) {
  HeadInputs in = randomHead(200, 3, 32, 16);
  in.sinkLogits = {2, -1, 5};
  in.softcap = 3;
  EXPECT_LE(worstError(in, decodeAlignedKV(in)), 0.1);
}

/// bf16 keeps no mantissa in its top byte: no tier below 12 bits.
TEST(AlignedKV, BFloatTiers) {
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

TEST(AlignedKV, LimitsAndResidentPlanes) {
  for (int64_t tokens : {64, 65, 200, 1000}) {
    HeadInputs in = randomHead(tokens, 3, 64, 48);
    in.keyLimits.sinks = 1;
    in.valueLimits.newest = 7;
    in.valueLimits.most = 4;
    PolicyResult result = decodeAlignedKV(in);
    for (int64_t c = 0; c < 64; ++c)
      EXPECT_EQ(result.keyPlan[c], 16); // a tile's channel is read as one
    for (int64_t t = 0; t < tokens; ++t)
      EXPECT_EQ(result.valuePlan[t], t >= tokens - 7 ? 16 : 8) << t; // a whole plane of a half
    in.keyLimits = in.valueLimits = {std::nullopt, 16, 16};
    EXPECT_LE(worstError(in, decodeAlignedKV(in)), 1e-14);
    in.keys.resident = 2;
    in.values.resident = 1;
    result = decodeAlignedKV(in);
    EXPECT_EQ(result.keyBits, 12);
    EXPECT_EQ(result.valueBits, 8);
  }
}

/// S7: tokens kept aside have their values; the others are read as if those were not there.
TEST(AlignedKV, NotFiniteValues) {
  HeadInputs in = randomHead(129, 3, 16, 16);
  std::vector<double> before = exact(in);
  in.v[70 * 16 + 3] = NAN;
  in.v[20 * 16 + 5] = -INFINITY;
  in.v[128 * 16 + 7] = 1e6; // an infinity as a half
  PolicyResult result = decodeAlignedKV(in);
  std::vector<double> want = exact(in);
  for (int64_t h = 0; h < 3; ++h)
    for (int64_t c = 0; c < 16; ++c) {
      double x = result.out[h * 16 + c];
      if (c == 3)
        EXPECT_TRUE(std::isnan(x));
      else if (c == 5)
        EXPECT_EQ(x, -INFINITY);
      else
        EXPECT_NEAR(x, want[h * 16 + c], c == 7 ? 0.01 * std::fabs(want[h * 16 + c]) : 0.05);
    }
  for (int64_t t : {20, 70, 128})
    EXPECT_EQ(result.valuePlan[t], 16);
}

TEST(AlignedKV, NotFiniteKeysAndQueries) {
  for (double bad : {NAN, INFINITY}) {
    HeadInputs in = randomHead(129, 3, 16, 16);
    in.q[1 * 16 + 2] = NAN;
    in.k[70 * 16 + 3] = bad;
    std::vector<double> expected = exact(in), out = decodeAlignedKV(in).out;
    for (int64_t i = 0; i < 48; ++i) {
      EXPECT_EQ(std::isnan(out[i]), std::isnan(expected[i]));
      if (!std::isnan(expected[i])) { // a score of -inf masks its token
        EXPECT_NEAR(out[i], expected[i], 0.05);
      }
    }
  }
}

//===----------------------------------------------------------------------===//
// Limits
//===----------------------------------------------------------------------===//

/// P7, by hand: least bits, then the most, then the staircase, then what stays exact.
TEST(Limits, ByHand) {
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
  EXPECT_EQ(limits.apply(0, 0, 63, 100), 16); // of a tile that holds sinks
  EXPECT_EQ(limits.apply(16, 64, 91, 100), 12); // of the age of its newest token
  EXPECT_EQ(Limits().apply(4, 0, 0, 1), 4);
}

} // namespace
