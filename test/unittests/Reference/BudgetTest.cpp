// P2 by hand, against figures that array formulas gave on a captured cache, on caches made to mislead it, under masks, sinks and limits, and its
// certificate on inputs made to exceed it.

#include "aligned/Reference/Planes.h"

#include "Heads.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <iterator>

using namespace aligned;

namespace {

constexpr double kPresets[] = {0x1p-6, 0x1p-7, 0x1p-9, 0x1p-12};

double worst(const std::vector<double> &errors) { return *std::max_element(errors.begin(), errors.end()); }

/// What is left with every bit read, of an error relative to the usual row of V.
double storageError(const HeadInputs &in) { return worst(errorsOfRows(in, decodeBudget(in, 0))); }

void expectBounded(const HeadInputs &in, const PolicyResult &result, const std::string &what) {
  std::vector<double> want = exactAttention(in);
  for (int64_t h = 0; h < in.heads; ++h)
    for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i)
      if (std::isfinite(want[i])) {
        ASSERT_LE(std::fabs(result.out[i] - want[i]), result.bound[h]) << what << ", row " << h;
      }
}

//===----------------------------------------------------------------------===//
// The rule
//===----------------------------------------------------------------------===//

/// A query of zeros: equal probabilities, scores without error. All rows of V have one scale, so x_t = 1 / tokens.
TEST(Budget, TiersOfValuesByHand) {
  HeadInputs in{1, 2, 16, 16, std::vector<double>(16, 0), std::vector<double>(32, 1), std::vector<double>(32, 0.75), 0.25};
  for (auto [x, bits] : {std::pair(0.999, 0), {1.001, 4}, {15.99, 4}, {16.01, 8}, {255.9, 8}, {256.1, 16}, {1e6, 16}}) {
    double tau = 0.5 / x;
    PolicyResult result = decodeBudget(in, tau * std::sqrt(2));
    EXPECT_EQ(result.valuePlan, (std::vector<int>{bits, bits})) << x;
    EXPECT_EQ(result.keyPlan, (std::vector<int>{4, 4}));
    EXPECT_DOUBLE_EQ(result.keyBits, 4.5); // 8 bits of a scale code over 16 channels
    EXPECT_DOUBLE_EQ(result.valueBits, bits + 0.5);
  }
  in.values.widths = {8, 8};
  EXPECT_EQ(decodeBudget(in, 0.5 / 1.001 * std::sqrt(2)).valuePlan[0], 8);
  EXPECT_EQ(decodeBudget(in, 0.5 / 255 * std::sqrt(2)).valuePlan[0], 8);
  EXPECT_EQ(decodeBudget(in, 0.5 / 257 * std::sqrt(2)).valuePlan[0], 16);
  in.values.resident = 1;
  EXPECT_EQ(decodeBudget(in, 0).valuePlan[0], 8);
}

/// One token: p = 1, P5 makes it e^(sigma^2/2); its share is the same.
TEST(Budget, TiersOfKeysByHand) {
  HeadInputs in = randomHead(1, 1, 16, 16);
  FixedPlanes key = packFixed(in.k, 1, 16, Role::Key);
  double squares = std::inner_product(in.q.begin(), in.q.end(), in.q.begin(), 0.0), length = in.scale * std::sqrt(squares);
  auto sigma = [&](int bits) { return key.scales[0] * length * std::ldexp(1, -bits) / std::sqrt(3.0); };
  auto lever = [&](int bits) {
    double s = sigma(bits);
    return 2 * std::exp(sigma(4) * sigma(4) / 2) * std::sqrt(std::exp(2 * s * s) - 2 * std::exp(s * s / 2) + 1);
  };
  for (int bits : {4, 8}) {
    EXPECT_EQ(decodeBudget(in, lever(bits) / 6 * 1.001).keyPlan[0], bits);
    EXPECT_EQ(decodeBudget(in, lever(bits) / 6 * 0.999).keyPlan[0], bits == 4 ? 8 : 16);
  }
  in.keys.widths = {4, 8, 4};
  EXPECT_EQ(decodeBudget(in, lever(4) / 6 * 0.999).keyPlan[0], 12);
  in.keys.resident = 1;
  EXPECT_EQ(decodeBudget(in, 0).keyPlan[0], 4);
  in.keys = {{8, 8}, 4, {}};
  EXPECT_EQ(decodeBudget(in, 1).keyPlan[0], 8);
}

/// A quarter of the tokens' probability is a sink's: it raises what is not read.
TEST(Budget, SinksCountInThresholds) {
  HeadInputs in{1, 2, 16, 16, std::vector<double>(16, 0), std::vector<double>(32, 1), std::vector<double>(32, 0.75), 0.25};
  in.sinkLogits = {std::log(6.0)}; // p = 1/8
  EXPECT_EQ(decodeBudget(in, 0.126 * std::sqrt(2)).valuePlan[0], 0);
  EXPECT_EQ(decodeBudget(in, 0.124 * std::sqrt(2)).valuePlan[0], 4);
  PolicyResult result = decodeBudget(in, 0);
  EXPECT_NEAR(result.out[0], 0.75 / 4, 1e-5);
}

/// Of the two layers of the slice. The figures are those of NumPy array formulas: `decode` of the reference (precision_alignment.py) with the rotation's signs,
/// scale codes and floor of aligned/Storage and the single pass of P5 in place of its loop, weights of the scan in one digit of 127.
/// The reference as it is, with other signs, gives k_bits 4.166, 4.309, 5.135, 7.836, v_bits 2.418, 3.080, 4.848, 8.510 and
/// mean errors 1.86e-2, 9.82e-3, 3.22e-3, 5.32e-4: bytes within 0.7 %.
TEST(Budget, FiguresOfTheSlice) {
  struct {
    double tolerance, keyBits, valueBits, mean, most, estimate;
  } figures[] = {{0x1p-6, 4.181640625, 2.416015625, 1.874384e-2, 3.383959e-2, 2.716775e-2},
                 {0x1p-7, 4.3203125, 3.080078125, 8.574318e-3, 1.544322e-2, 1.529452e-2},
                 {0x1p-9, 5.150390625, 4.859375, 3.530079e-3, 5.863957e-3, 5.051545e-3},
                 {0x1p-12, 7.92578125, 8.529296875, 4.757085e-4, 7.848303e-4, 7.546093e-4}};
  for (auto [tolerance, keyBits, valueBits, mean, most, estimate] : figures) {
    double k = 0, v = 0, expected = 0;
    std::vector<double> errors;
    for (HeadInputs &in : slice()) {
      in.scanFullscale = 127;
      PolicyResult result = decodeBudget(in, tolerance);
      k += (result.keyBits - 8.0 / 64) / 2;
      v += (result.valueBits - 8.0 / 64) / 2;
      std::vector<double> own = relativeErrors(result.out, exact(in), in.valueDim);
      errors.insert(errors.end(), own.begin(), own.end());
      expected += std::accumulate(result.estimate.begin(), result.estimate.end(), 0.0) / 6;
      expectBounded(in, result, "slice");
    }
    EXPECT_NEAR(k, keyBits, keyBits * 0.002);
    EXPECT_NEAR(v, valueBits, valueBits * 0.002);
    EXPECT_NEAR(std::accumulate(errors.begin(), errors.end(), 0.0) / 6, mean, mean * 0.02);
    EXPECT_NEAR(worst(errors), most, most * 0.02);
    EXPECT_NEAR(expected, estimate, estimate * 0.01);
  }
}

/// Caches made to mislead: errors stay within a few times the tolerance, relative to the usual row of V or the output, whichever is larger, and as far as
/// storage goes; within four times the estimate; never above the bound. (The rule takes the output to be no larger than the usual row: where one huge row is
/// all that a query sees, scores of the others err by the size of that one.)
TEST(Budget, ToleranceOnFamilies) {
  for (const std::string &name : kFamilies)
    for (int64_t dim : {64, 96}) {
      HeadInputs in = family(name, 1024, dim);
      double stored = storageError(in);
      for (double tolerance : kPresets) {
        PolicyResult result = decodeBudget(in, tolerance);
        std::vector<double> errors = errorsOfRows(in, result);
        std::vector<double> relative = relativeErrors(result.out, exactAttention(in), dim);
        double usual = usualRow(in);
        for (int64_t h = 0; h < in.heads; ++h) {
          EXPECT_LE(std::min(errors[h], relative[h]), std::max(4 * tolerance, 1.5 * stored)) << name << " " << dim << " " << tolerance;
          EXPECT_LE(errors[h] * usual, 4 * result.estimate[h]) << name << " " << dim << " " << tolerance;
        }
        expectBounded(in, result, name);
      }
    }
}

TEST(Budget, OddSizes) {
  for (int64_t tokens : {1, 63, 64, 65, 97, 1000})
    for (int64_t heads : {1, 3, 7})
      for (int64_t dim : {16, 80, 96, 256}) {
        HeadInputs in = randomHead(tokens, heads, dim, dim == 80 ? 48 : dim);
        PolicyResult all = decodeBudget(in, 0);
        EXPECT_LE(worst(errorsOfRows(in, all)), 1e-4);
        EXPECT_DOUBLE_EQ(all.keyBits, 16 + 8.0 / dim);
        EXPECT_DOUBLE_EQ(all.valueBits, 16 + 8.0 / in.valueDim);
        expectBounded(in, all, "all bits");
        double least = 33;
        for (double tolerance : {0x1p-12, 0x1p-9, 0x1p-7, 0x1p-6}) {
          PolicyResult result = decodeBudget(in, tolerance);
          std::string what = std::to_string(tokens) + " tokens, " + std::to_string(heads) + " rows, " + std::to_string(dim) + " channels";
          EXPECT_LE(worst(errorsOfRows(in, result)), 4 * tolerance + 1e-4) << what;
          EXPECT_LE(result.keyBits + result.valueBits, least) << what; // bits fall with the tolerance
          least = result.keyBits + result.valueBits;
          expectBounded(in, result, what);
        }
      }
  HeadInputs none = randomHead(0, 2, 16, 16);
  EXPECT_EQ(decodeBudget(none, 0x1p-9).out, std::vector<double>(32, 0));
}

TEST(Budget, LessToleranceReadsMoreAndErrsLess) {
  HeadInputs in = randomHead(1000, 3, 64, 64);
  PolicyResult fast = decodeBudget(in, 0x1p-6), tight = decodeBudget(in, 0x1p-12);
  EXPECT_LT(fast.keyBits, tight.keyBits);
  EXPECT_LT(fast.valueBits, tight.valueBits);
  EXPECT_LT(worst(errorsOfRows(in, tight)), worst(errorsOfRows(in, fast)) / 8);
  EXPECT_GT(worst(errorsOfRows(in, fast)), 0x1p-12); // fast is not tight by accident
  for (size_t t = 0; t < 1000; ++t)
    EXPECT_LE(fast.keyPlan[t], tight.keyPlan[t]);
}

/// P3: K of a token is read to the most that a row asks for; each row asks what it asks alone.
TEST(Budget, GroupTakesTheMaximum) {
  HeadInputs in = randomHead(512, 3, 64, 64);
  for (int64_t c = 0; c < 64; ++c)
    in.q[c] *= 8; // one peaky head among flat ones
  std::vector<int> most(512, 0);
  for (int64_t h = 0; h < 3; ++h) {
    HeadInputs alone = in;
    alone.heads = 1;
    alone.q.assign(in.q.begin() + h * 64, in.q.begin() + (h + 1) * 64);
    PolicyResult result = decodeBudget(alone, 0x1p-8);
    for (int64_t t = 0; t < 512; ++t)
      most[t] = std::max(most[t], result.keyPlan[t]);
  }
  EXPECT_EQ(decodeBudget(in, 0x1p-8).keyPlan, most);
}

/// M3: rows of zeros stand for zero and do not shrink A.
TEST(Budget, ZeroRowsOfValues) {
  HeadInputs in = family("gauss", 512, 64), zeros = in;
  for (int64_t c = 0; c < 64; ++c)
    zeros.v[7 * 64 + c] = 0;
  PolicyResult before = decodeBudget(in, 0x1p-9), result = decodeBudget(zeros, 0x1p-9);
  EXPECT_NEAR(result.valueBits, before.valueBits, 0.3); // one row of 512 counts as 16 of the usual ones
  EXPECT_EQ(result.valuePlan[7], 0);
}

/// Weights in few digits cost precision, and the bound knows.
TEST(Budget, WeightsAsIntegers) {
  HeadInputs in = family("peaky", 500, 64);
  double before = worst(errorsOfRows(in, decodeBudget(in, 0x1p-12)));
  in.scanFullscale = in.finerFullscale = 127;
  PolicyResult coarse = decodeBudget(in, 0x1p-12);
  EXPECT_GT(worst(errorsOfRows(in, coarse)), 3 * before);
  expectBounded(in, coarse, "one digit");
  in.scanFullscale = in.finerFullscale = 16256; // two digits of 7 bits
  PolicyResult fine = decodeBudget(in, 0x1p-12);
  EXPECT_LT(worst(errorsOfRows(in, fine)), 1.2 * before);
  expectBounded(in, fine, "two digits");
}

TEST(Budget, WideTypesHaveABias) {
  for (double size : {1.0, 0x1p60, 0x1p-60}) {
    HeadInputs in = randomHead(200, 2, 32, 32, Storage::BFloat16);
    std::vector<double> before = decodeBudget(in, 0x1p-9).out;
    for (double &x : in.v)
      x *= size;
    PolicyResult result = decodeBudget(in, 0x1p-9);
    EXPECT_LE(worst(errorsOfRows(in, result)), 4 * 0x1p-9);
    for (size_t i = 0; i < before.size(); ++i)
      EXPECT_NEAR(result.out[i] / size, before[i], 1e-12);
    expectBounded(in, result, "wide");
  }
}

TEST(Budget, ResidentPlanes) {
  HeadInputs in = randomHead(300, 3, 64, 64);
  PolicyResult all = decodeBudget(in, 0x1p-12);
  in.keys.resident = 2;
  in.values.resident = 2;
  PolicyResult result = decodeBudget(in, 0x1p-12);
  for (int64_t t = 0; t < 300; ++t)
    EXPECT_EQ(result.keyPlan[t], std::min(all.keyPlan[t], 8));
  EXPECT_LE(*std::max_element(result.valuePlan.begin(), result.valuePlan.end()), 8);
  expectBounded(in, result, "two planes");
  EXPECT_GT(result.bound[0], 2 * all.bound[0]);
  EXPECT_GT(result.estimate[0], 2 * all.estimate[0]);
}

//===----------------------------------------------------------------------===//
// Masks, sinks, limits
//===----------------------------------------------------------------------===//

TEST(Budget, ReadsWhatAMaskShows) {
  for (const Mask &mask : {Mask{3, true, 40, 2}, Mask{1, false, 100}, Mask{3, true, 7}, Mask{3, true, 40, 0, 200}, Mask{3, true}}) {
    HeadInputs in = randomHead(450, 3, 32, 16);
    in.mask = mask;
    for (double tolerance : {0.0, 0x1p-9}) {
      PolicyResult result = decodeBudget(in, tolerance);
      EXPECT_LE(worst(errorsOfRows(in, result)), 4 * tolerance + 1e-4);
      expectBounded(in, result, "mask");
      double keyBits = 0;
      for (int64_t t = 0; t < 450; ++t) {
        EXPECT_EQ(result.keyPlan[t] > 0, mask.isSeen(t, 450)) << t;
        if (!mask.isSeen(t, 450)) {
          EXPECT_EQ(result.valuePlan[t], 0) << t;
        }
        keyBits += (result.keyPlan[t] + (mask.isTileSeen(t / 64, 450) ? 8.0 / 32 : 0)) / 450;
      }
      EXPECT_NEAR(result.keyBits, keyBits, 1e-12);
    }
  }
}

/// What later tokens are does not matter where what a cache knows of all of them is the same: the second half repeats the first.
TEST(Budget, MasksAreLikeTokensCutOff) {
  HeadInputs half = randomHead(97, 3, 64, 48), whole = half;
  half.offset = whole.offset = std::vector<double>(64, 0.125);
  half.mask = whole.mask = {3, true, 80};
  whole.mask.later = 97;
  whole.tokens = 194;
  whole.k.insert(whole.k.end(), half.k.begin(), half.k.end());
  whole.v.insert(whole.v.end(), half.v.begin(), half.v.end());
  for (double tolerance : {0.0, 0x1p-7, 0x1p-12}) {
    PolicyResult few = decodeBudget(half, tolerance), many = decodeBudget(whole, tolerance);
    few.keyPlan.resize(194, 0);
    few.valuePlan.resize(194, 0);
    EXPECT_EQ(few.keyPlan, many.keyPlan);
    EXPECT_EQ(few.valuePlan, many.valuePlan);
    for (size_t i = 0; i < few.out.size(); ++i)
      EXPECT_NEAR(few.out[i], many.out[i], 1e-13);
    for (int64_t h = 0; h < 3; ++h) {
      EXPECT_NEAR(few.bound[h], many.bound[h], 1e-12);
      EXPECT_NEAR(few.estimate[h], many.estimate[h], 1e-12);
    }
  }
}

/// An additive mask hides what a window hides, but does not lessen the count of tokens that tau is made of.
TEST(Budget, AdditiveMasks) {
  HeadInputs in = randomHead(300, 1, 64, 48), windowed = in;
  windowed.mask.window = 75;
  for (int64_t t = 0; t < 300; ++t)
    in.additive.push_back(windowed.mask.sees(0, t, 300) ? 0 : -INFINITY);
  PolicyResult result = decodeBudget(in, 0x1p-8), want = decodeBudget(windowed, 0x1p-9); // sqrt(300 / 75) = 2
  EXPECT_EQ(result.out, want.out);
  EXPECT_EQ(result.keyPlan, want.keyPlan);
  EXPECT_EQ(result.valuePlan, want.valuePlan);
  EXPECT_EQ(result.keyBits, want.keyBits);
  EXPECT_EQ(result.bound, want.bound);
  in.k[3] = in.v[5] = NAN; // hidden
  EXPECT_TRUE(std::isfinite(decodeBudget(in, 0x1p-8).out[0]));

  std::mt19937 random(4);
  std::normal_distribution<double> normal;
  HeadInputs alibi = randomHead(300, 3, 64, 48);
  for (int64_t i = 0; i < 3 * 300; ++i)
    alibi.additive.push_back(normal(random) - 0.02 * double(i % 300));
  PolicyResult biased = decodeBudget(alibi, 0x1p-9);
  EXPECT_LE(worst(errorsOfRows(alibi, biased)), 4 * 0x1p-9);
  expectBounded(alibi, biased, "additive");
}

TEST(Budget, SinksAndSoftcap) {
  for (double softcap : {0.0, 0.5, 2.0, 50.0})
    for (double sink : {-10.0, 0.0, 3.0, 20.0}) {
      HeadInputs in = family("peaky", 300, 32, 3);
      for (double &x : in.k)
        x += 0.5; // an offset that a softcap and a sink see
      in.sinkLogits = {sink, sink / 2, -INFINITY};
      in.softcap = softcap;
      EXPECT_LE(storageError(in), 1e-4) << softcap << " " << sink;
      for (double tolerance : kPresets) {
        PolicyResult result = decodeBudget(in, tolerance);
        EXPECT_LE(worst(errorsOfRows(in, result)), 4 * tolerance) << softcap << " " << sink;
        expectBounded(in, result, "sink");
      }
    }
}

TEST(Budget, RowsThatSeeNothing) {
  HeadInputs in = randomHead(2, 4, 16, 16);
  in.mask = {4, true}; // queries at -2, -1, 0, 1
  for (double tolerance : {0.0, 0x1p-9}) {
    in.maskedZero = false;
    in.sinkLogits.clear();
    std::vector<double> out = decodeBudget(in, tolerance).out;
    for (int64_t i = 0; i < 64; ++i)
      EXPECT_EQ(std::isnan(out[i]), i < 32);
    in.maskedZero = true;
    std::vector<double> zeroed = decodeBudget(in, tolerance).out;
    in.maskedZero = false;
    in.sinkLogits = {1, 1, -INFINITY, -INFINITY};
    EXPECT_EQ(decodeBudget(in, tolerance).out, zeroed);
    for (int64_t i = 0; i < 64; ++i)
      EXPECT_EQ(zeroed[i], i < 32 ? 0 : out[i]);
  }
}

TEST(Budget, Limits) {
  for (int64_t tokens : {64, 65, 200, 1000}) {
    HeadInputs in = randomHead(tokens, 3, 64, 48);
    PolicyResult free = decodeBudget(in, 0x1p-6);
    in.keyLimits = {std::nullopt, 0, 16, 5, 3, {}};
    in.valueLimits = {std::nullopt, 0, 8, 0, 2, {{50, 3}, {60, 0}}};
    PolicyResult result = decodeBudget(in, 0x1p-6);
    for (int64_t t = 0; t < tokens; ++t) {
      int64_t age = tokens - 1 - t;
      EXPECT_EQ(result.keyPlan[t], t < 3 || age < 5 ? 16 : free.keyPlan[t]) << t; // token by token
      if (t < 2)
        EXPECT_EQ(result.valuePlan[t], 16);
      else if (age >= 60)
        EXPECT_EQ(result.valuePlan[t], 0);
      else
        EXPECT_LE(result.valuePlan[t], age >= 50 ? 4 : 8); // whole planes
    }
    expectBounded(in, result, "limits");
    in.keyLimits = {std::nullopt, 0, 0};
    in.valueLimits = {std::nullopt, 5, 16};
    result = decodeBudget(in, 0x1p-6);
    EXPECT_EQ(result.keyPlan, std::vector<int>(tokens, 4)); // the scan reads them
    EXPECT_GE(*std::min_element(result.valuePlan.begin(), result.valuePlan.end()), 8);
    in.keyLimits = in.valueLimits = {std::nullopt, 16, 16};
    EXPECT_EQ(decodeBudget(in, 0.5).out, decodeBudget(in, 0).out);
  }
}

TEST(Budget, TolerancesOfSides) {
  HeadInputs in = randomHead(1000, 3, 64, 48), apart = in;
  PolicyResult whole = decodeBudget(in, 0x1p-6), tight = decodeBudget(in, 0x1p-11);
  apart.keyLimits.tolerance = apart.valueLimits.tolerance = 0x1p-6;
  EXPECT_EQ(decodeBudget(apart, 0.5).out, whole.out);
  apart.keyLimits.tolerance = 0x1p-11;
  PolicyResult closer = decodeBudget(apart, 0x1p-6);
  EXPECT_EQ(closer.keyPlan, tight.keyPlan);
  EXPECT_NEAR(closer.valueBits, whole.valueBits, 0.2);
  apart.keyLimits.tolerance = 0;
  EXPECT_DOUBLE_EQ(decodeBudget(apart, 0x1p-6).keyBits, 16 + 8.0 / 64);
}

//===----------------------------------------------------------------------===//
// Tokens kept aside (S7)
//===----------------------------------------------------------------------===//

TEST(Budget, NotFiniteValues) {
  HeadInputs in = randomHead(129, 3, 16, 16);
  PolicyResult before = decodeBudget(in, 0x1p-9);
  in.v[70 * 16 + 3] = NAN;
  in.v[20 * 16 + 5] = -INFINITY;
  in.v[128 * 16 + 7] = INFINITY;
  std::vector<double> want = exact(in);
  for (double tolerance : {0.0, 0x1p-9}) {
    PolicyResult result = decodeBudget(in, tolerance);
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t c = 0; c < 16; ++c) {
        double x = result.out[h * 16 + c];
        if (c == 3)
          EXPECT_TRUE(std::isnan(x));
        else if (c == 5 || c == 7)
          EXPECT_EQ(x, c == 5 ? -INFINITY : INFINITY);
        else
          EXPECT_NEAR(x, want[h * 16 + c], 4 * (tolerance + 1e-4));
      }
    for (int64_t t : {20, 70, 128}) {
      EXPECT_EQ(result.keyPlan[t], 16);
      EXPECT_EQ(result.valuePlan[t], 16);
    }
    EXPECT_EQ(result.bound, std::vector<double>(3, INFINITY));
    if (tolerance) {
      EXPECT_NEAR(result.keyBits, before.keyBits, 0.5); // nothing else is disturbed
      EXPECT_NEAR(result.valueBits, before.valueBits, 0.5);
    }
  }
}

TEST(Budget, NotFiniteKeysAndQueries) {
  for (double bad : {double(NAN), double(INFINITY), -double(INFINITY)})
    for (double softcap : {0.0, 2.0}) {
      HeadInputs in = randomHead(129, 3, 16, 16);
      in.softcap = softcap;
      in.q[1 * 16 + 2] = NAN;
      PolicyResult clean = decodeBudget(in, 0x1p-9);
      in.k[70 * 16 + 3] = bad;
      std::vector<double> want = exact(in);
      PolicyResult result = decodeBudget(in, 0x1p-9);
      for (int64_t i = 0; i < 48; ++i) {
        EXPECT_EQ(std::isnan(result.out[i]), std::isnan(want[i])) << bad << " " << i;
        if (!std::isnan(want[i])) { // a score of -inf masks its token
          EXPECT_NEAR(result.out[i], want[i], 0.01);
        }
      }
      EXPECT_LE(result.keyBits, clean.keyBits + 0.5);
      EXPECT_EQ(result.keyPlan[70], 16);
    }
  // A row that is not finite asks for nothing: the others are what they are without it.
  HeadInputs in = randomHead(129, 2, 16, 16), alone = in;
  in.q[16 + 2] = INFINITY;
  alone.heads = 1;
  alone.q.resize(16);
  PolicyResult both = decodeBudget(in, 0x1p-9), one = decodeBudget(alone, 0x1p-9);
  EXPECT_EQ(both.keyPlan, one.keyPlan);
  EXPECT_EQ(both.valuePlan, one.valuePlan);
  for (int64_t c = 0; c < 16; ++c) {
    EXPECT_EQ(both.out[c], one.out[c]);
    EXPECT_TRUE(std::isnan(both.out[16 + c]));
  }
}

/// Beyond the largest code: exact, and left out of what the cache knows.
TEST(Budget, BeyondTheLargestCode) {
  HeadInputs in = family("huge token", 200, 32, 3);
  in.keys.bias = in.values.bias = 238; // 2^(17/8)
  FixedPlanes value = packFixed(in.v, 200, 32, Role::Value, Storage::Half, 238);
  ASSERT_GE(value.aside.size(), 1u);
  for (double tolerance : {0.0, 0x1p-9}) {
    PolicyResult result = decodeBudget(in, tolerance);
    EXPECT_EQ(result.valuePlan[66], 16);
    std::vector<double> errors = errorsOfRows(in, result), relative = relativeErrors(result.out, exact(in), 32);
    for (int64_t h = 0; h < 3; ++h)
      EXPECT_LE(std::min(errors[h], relative[h]), 4 * tolerance + 1e-4);
    expectBounded(in, result, "aside");
  }
}

//===----------------------------------------------------------------------===//
// The certificate
//===----------------------------------------------------------------------===//

/// Of a row that is not read by a limit, and lies opposite to the mean that stands for it.
TEST(Certificate, CountsTheMean) {
  HeadInputs in = family("gauss", 200, 32, 1);
  for (int64_t i = 0; i < 200 * 32; ++i)
    in.v[i] = i / 32 == 77 ? -1 : 1;
  for (int64_t c = 0; c < 32; ++c) {
    in.q[c] = 4;
    in.k[77 * 32 + c] = 4;
  }
  in.valueLimits.most = 0;
  PolicyResult result = decodeBudget(in, 0x1p-12);
  EXPECT_NEAR(result.out[0], 1, 0.02);
  EXPECT_NEAR(exact(in)[0], -1, 1e-6);
  expectBounded(in, result, "unread");
}

/// Inputs of every kind that may find what a bound overlooks: caches made to mislead, values at the edges of what their top bits name, weights that
/// pull all errors one way, every shape, mask, format and limit. ALIGNED_SEED and ALIGNED_CASES make it a longer search.
TEST(Certificate, IsNeverExceeded) {
  auto number = [](const char *name, uint64_t otherwise) { return std::getenv(name) ? std::strtoull(std::getenv(name), nullptr, 10) : otherwise; };
  const uint64_t cases = number("ALIGNED_CASES", 2000);
  std::mt19937_64 random(number("ALIGNED_SEED", 11));
  std::normal_distribution<double> normal;
  auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  double closest = 0;
  for (uint64_t i = 0; i < cases; ++i) {
    constexpr int64_t lengths[] = {1, 2, 63, 64, 65, 97, 130, 200}, dims[] = {16, 16, 32, 48, 64, 80, 96, 128, 256};
    int64_t tokens = lengths[below(std::size(lengths))], dim = dims[below(std::size(dims))], heads = 1 + below(4);
    HeadInputs in = below(2) ? family(kFamilies[below(int64_t(kFamilies.size()))], tokens, dim, heads) : randomHead(tokens, heads, dim, dim);
    double loudness = std::exp2(double(below(14)) - 8), keySize = std::exp2(double(below(9)) - 4), valueSize = std::exp2(double(below(16)) - 12);
    for (double &x : in.q)
      x *= (1 + 0.1 * normal(random)) * loudness / keySize;
    for (double &x : in.k)
      x *= keySize;
    for (double &x : in.v)
      x *= valueSize;
    constexpr int edges[] = {4, 8, 16};
    int bits = edges[below(3)];
    auto atEdge = [&](int64_t t, Role role) { // relative to the scale
      int64_t cell = int64_t(1) << (16 - bits), n = -26000 + below(52000), cut = (n & -cell) + (below(2) ? 0 : cell - 1);
      return double(std::clamp<int64_t>(cut - ditherOf(role, t), -30719, 30719)) / 32768 + (below(2) ? 0.49 : -0.49) / 32768;
    };
    if (below(3) == 0) // values at edges: one of 15/16 sets the scale
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < dim; ++c)
          in.v[t * dim + c] = c ? std::ldexp(atEdge(t, Role::Value), 1) : 1.875 * (1 - 1e-9);
    if (below(4) == 0) { // keys that are rotated to edges, and queries that pull one way
      in.offset = std::vector<double>(dim, 0);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < dim; ++c)
          in.k[t * dim + c] = c ? atEdge(t, Role::Key) : 0.9375 * (1 - 1e-9);
        storage::rotateBack(&in.k[t * dim], dim);
      }
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t c = 0; c < dim; ++c)
          in.q[h * dim + c] = (below(2) ? 1 : -1) * loudness;
        storage::rotateBack(&in.q[h * dim], dim);
      }
    }
    for (std::vector<double> *values : {&in.k, &in.v})
      for (double &x : *values)
        x = below(4) || i % 2 ? x : widen(narrow(x, Storage::Half), Storage::Half);
    if (below(3) == 0)
      in.softcap = std::exp2(double(below(8)) - 3);
    if (below(3) == 0)
      for (int64_t h = 0; h < heads; ++h)
        in.sinkLogits.push_back(3 * normal(random));
    if (below(4) == 0)
      for (int64_t j = 0; j < heads * tokens; ++j)
        in.additive.push_back(below(3) ? normal(random) : -INFINITY);
    if (below(3) == 0)
      in.mask = {1 + below(2) * (heads - 1), below(2) != 0, below(2) * (1 + below(70)), below(3), below(2) * below(tokens)};
    if (below(4) == 0)
      in.keys.widths = {8, 8};
    if (below(4) == 0)
      in.values.widths = {4, 4, 4, 4};
    if (below(3) == 0)
      in.keys.resident = 1 + int(below(3)), in.values.resident = 1 + int(below(3));
    if (below(3) == 0)
      in.scanFullscale = below(2) ? 127 : 16256;
    if (below(4) == 0)
      in.finerFullscale = below(2) ? 127 : 16256;
    if (below(4) == 0)
      in.keyLimits = {std::nullopt, 0, 4 * int(below(5)), below(10), below(3), {}},
      in.valueLimits = {std::nullopt, 4 * int(below(5)), 4 * int(below(5)), below(10), below(3), {{30, 8}}};
    if (below(6) == 0)
      in.keys.bias = 90 + int(below(60)), in.values.bias = 90 + int(below(60)); // some tokens are kept aside, some lie below the least code
    double tolerance = below(5) ? std::exp2(-double(below(16))) : 0;
    PolicyResult result = decodeBudget(in, tolerance);
    std::vector<double> want = exactAttention(in);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t c = h * dim; c < (h + 1) * dim; ++c)
        if (std::isfinite(want[c])) {
          double error = std::fabs(result.out[c] - want[c]);
          ASSERT_LE(error, result.bound[h]) << "case " << i;
          closest = std::max(closest, error / result.bound[h]);
        }
  }
  EXPECT_GT(closest, 0.5); // the inputs do find the worst case
}

} // namespace
