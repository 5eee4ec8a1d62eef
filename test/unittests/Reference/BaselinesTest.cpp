// What others store, against a search over every value that their formats hold, and against figures of array formulas.
#include "aligned/Reference/Baselines.h"

#include "Heads.h"

#include <functional>
#include <limits>

using namespace aligned;

namespace {

double nearest(const std::vector<double> &values, double x) {
  return *std::min_element(values.begin(), values.end(), [&](double a, double b) { return std::fabs(a - x) < std::fabs(b - x); });
}

/// Every value of e4m3, from its bits.
std::vector<double> fp8Values() {
  std::vector<double> values;
  for (int code = 0; code < 256; ++code)
    if ((code & 127) != 127) { // NaN
      int exponent = code >> 3 & 15, mantissa = code & 7;
      double magnitude = exponent ? (1 + mantissa / 8.0) * std::pow(2.0, exponent - 7) : mantissa / 8.0 * std::pow(2.0, -6);
      values.push_back(code & 128 ? -magnitude : magnitude);
    }
  return values;
}

TEST(Baselines, Fp8RoundsToItsValues) {
  std::vector<double> values = fp8Values();
  for (double x : values)
    EXPECT_EQ(roundFp8(x), x);
  std::mt19937 random(3);
  std::uniform_real_distribution<double> exponent(-12, 10);
  for (int i = 0; i < 2000; ++i) {
    double x = std::copysign(std::exp2(exponent(random)), i % 2 ? 1 : -1);
    EXPECT_EQ(roundFp8(x), nearest(values, x)) << x;
  }
  EXPECT_EQ(roundFp8(1.0625), 1);   // ties to even
  EXPECT_EQ(roundFp8(1.1875), 1.25);
  EXPECT_EQ(roundFp8(0x1p-10), 0);
  EXPECT_EQ(roundFp8(-1e9), -448);
  EXPECT_EQ(roundFp8(INFINITY), 448);
  EXPECT_TRUE(std::isnan(roundFp8(NAN)));
}

/// `values` [tokens, dim] with groups [tokens in steps of `tall`, channels in steps of `wide`] rounded to the nearest of what `held` says they hold.
using Held = std::function<std::vector<double>(const std::vector<double> &group)>;
std::vector<double> searched(std::vector<double> values, int64_t tokens, int64_t dim, int64_t tall, int64_t wide, const Held &held) {
  for (int64_t t = 0; t + tall <= tokens; t += tall)
    for (int64_t c = 0; c < dim; c += wide) {
      std::vector<double *> places;
      std::vector<double> group;
      for (int64_t i = t; i < t + tall; ++i)
        for (int64_t j = c; j < std::min(c + wide, dim); ++j) {
          places.push_back(&values[i * dim + j]);
          group.push_back(*places.back());
        }
      std::vector<double> levels = held(group);
      for (double *place : places)
        *place = nearest(levels, *place);
    }
  return values;
}

/// Values with so many bits that none lies halfway between two levels.
HeadInputs headWithoutTies(int64_t tokens, int64_t heads, int64_t keyDim, int64_t valueDim, Storage storage = Storage::Half) {
  HeadInputs in = randomHead(tokens, heads, keyDim, valueDim, storage);
  for (std::vector<double> *values : {&in.k, &in.v})
    for (double &x : *values)
      x *= std::acos(-1.0) / 3;
  return in;
}

double sixteen(double x, Storage storage) { return widen(narrow(x, storage), storage); }

Held symmetric(int bits, Storage storage) {
  return [=](const std::vector<double> &group) {
    int most = (1 << (bits - 1)) - 1;
    double largest = 0;
    for (double x : group)
      largest = std::max(largest, std::fabs(x));
    std::vector<double> levels;
    for (int n = -most; n <= most; ++n)
      levels.push_back(n * sixteen(largest / most, storage));
    return levels;
  };
}

Held between(int bits, Storage storage) {
  return [=](const std::vector<double> &group) {
    auto [low, high] = std::minmax_element(group.begin(), group.end());
    std::vector<double> levels;
    for (int n = 0; n < 1 << bits; ++n)
      levels.push_back(sixteen(*low, storage) + n * sixteen((*high - *low) / ((1 << bits) - 1), storage));
    return levels;
  };
}

void expectNear(const std::vector<double> &got, const std::vector<double> &want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], want[i], tolerance);
}

TEST(Baselines, IntegersRoundToTheNearestLevel) {
  for (Storage storage : {Storage::Half, Storage::BFloat16})
    for (int64_t tokens : {1, 63, 64, 97, 193})
      for (int bits : {4, 8}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(bits) + " bits");
        HeadInputs in = headWithoutTies(tokens, 3, 32, 48, storage);
        int64_t full = tokens / 64 * 64;
        for (int64_t t = 0; t < full; ++t)
          in.k[t * 32 + 5] = 0; // a channel without a scale
        HeadInputs stored = in;
        stored.k = searched(in.k, full, 32, 64, 1, between(bits, storage));
        stored.v = searched(in.v, full, 48, 1, 48, symmetric(bits, storage));
        PolicyResult result = decodeIntegers(in, bits);
        expectNear(result.out, exact(stored), 1e-12);
        double open = double(tokens % 64) / tokens;
        EXPECT_DOUBLE_EQ(result.keyBits, (bits + 0.5) * (1 - open) + 16 * open);
        EXPECT_DOUBLE_EQ(result.valueBits, (bits + 1 / 3.0) * (1 - open) + 16 * open);
      }
}

TEST(Baselines, Q8SharesAScaleAmong32Channels) {
  for (int64_t tokens : {1, 65}) {
    HeadInputs in = headWithoutTies(tokens, 7, 48, 64), stored = in;
    stored.k = searched(in.k, tokens, 48, 1, 32, symmetric(8, in.storage));
    stored.v = searched(in.v, tokens, 64, 1, 32, symmetric(8, in.storage));
    PolicyResult result = decodeQ8(in);
    expectNear(result.out, exact(stored), 1e-12);
    EXPECT_DOUBLE_EQ(result.keyBits, 8 + 2 * 16 / 48.0); // the last 16 channels have a scale too
    EXPECT_DOUBLE_EQ(result.valueBits, 8.5);
  }
}

TEST(Baselines, FlashErrsByItsSixteenBits) {
  for (auto [storage, unit] : {std::pair(Storage::Half, 0x1p-11), {Storage::BFloat16, 0x1p-8}})
    for (int64_t tokens : {1, 63, 65, 1000}) {
      HeadInputs in = randomHead(tokens, 3, 64, 48, storage);
      PolicyResult result = decodeFlash(in);
      std::vector<double> errors = relativeErrors(result.out, exact(in), in.valueDim);
      for (double error : errors)
        EXPECT_LE(error, 2 * unit) << tokens << " tokens";
      if (tokens > 1) { // a single token is exact
        EXPECT_GT(*std::max_element(errors.begin(), errors.end()), unit / 16) << tokens << " tokens";
      }
      for (double x : result.out)
        EXPECT_EQ(x, sixteen(x, storage));
    }
}

TEST(Baselines, FiguresOfTheSlice) {
  compareFigures("baselines.json", "flash", decodeFlash);
  compareFigures("baselines.json", "q8_0", decodeQ8);
  compareFigures("baselines.json", "fp8", decodeFp8);
  compareFigures("baselines.json", "int8", [](const HeadInputs &in) { return decodeIntegers(in, 8); });
  compareFigures("baselines.json", "int4", [](const HeadInputs &in) { return decodeIntegers(in, 4); });
}

/// What integers cannot hold is lost, with its group; the others stay as they are.
TEST(Baselines, NotFiniteValues) {
  HeadInputs in = randomHead(130, 1, 16, 16);
  std::vector<double> before = decodeFp8(in).out;
  in.v[70 * 16 + 3] = NAN;
  for (int64_t c = 0; c < 16; ++c) {
    EXPECT_TRUE(std::isnan(decodeIntegers(in, 8).out[c]));
    EXPECT_TRUE(std::isnan(decodeQ8(in).out[c]));
    EXPECT_EQ(std::isnan(decodeFlash(in).out[c]), c == 3);
    EXPECT_EQ(std::isnan(decodeFp8(in).out[c]), c == 3);
  }
  in = randomHead(130, 1, 16, 16);
  in.k[70 * 16 + 3] = -INFINITY; // saturates
  EXPECT_TRUE(std::isfinite(decodeFp8(in).out[0]));
  EXPECT_TRUE(std::isnan(decodeIntegers(in, 8).out[0]));
}

} // namespace
