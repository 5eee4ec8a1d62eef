// Split storage against the worked example and the layouts of aligned/Runtime/Cache.h, and against its error bound (S1).

#include "aligned/Reference/Split.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

using namespace aligned;

namespace {

TEST(Split, WorkedExample) {
  // Channel 0 of a block whose largest value lies in [2, 4): E = 2, scale = 64/15.
  std::vector<double> keys(kBlockTokens * 4);
  keys[0] = 1.5;
  keys[20 * 4] = -3;
  FixedSplit split = splitFixed(keys, kBlockTokens, 4, /*key=*/true);
  EXPECT_EQ(ditherOf(0), -2048);
  EXPECT_EQ(split.exponents[0], 2 + 112);
  EXPECT_DOUBLE_EQ(split.scale(0, 0), 64.0 / 15);
  EXPECT_EQ(split.patterns[0], 0xa500);
  EXPECT_DOUBLE_EQ(split.read(0, 0, 4), 12287.5 / 32768 * 64 / 15);
  EXPECT_DOUBLE_EQ(split.read(0, 0, 8), (0xa57f + 0.5 - 0x8000 + 2048) / 32768.0 * 64 / 15);
  EXPECT_DOUBLE_EQ(split.read(0, 0, 16), 1.5);
  EXPECT_EQ(split.read(0, 0, 0), 0);
  Planes planes = packPlanes(split.patterns, kBlockTokens, 4, PlaneOrder::FixedKey, {4, 4, 4, 4});
  EXPECT_EQ(planes[0][0] & 15, 0xa);
  EXPECT_EQ(planes[1][0] & 15, 0x5);
  EXPECT_EQ(planes[2][0] & 15, 0);
  EXPECT_EQ(planes[3][0] & 15, 0);
}

TEST(Split, ExponentLiesJustAboveTheLargest) {
  for (auto [largest, exponent] : {std::pair(1.0, 1), {0.99, 0}, {2.0, 2}, {65504.0, 16}, {0x1p-24, -23}, {0x1.fep127, 128}, {0.0, -99}}) {
    std::vector<double> row(16);
    row[5] = -largest;
    EXPECT_EQ(splitFixed(row, 1, 16, /*key=*/false).exponents, std::vector<uint8_t>{uint8_t(exponent + 112)}) << largest;
  }
}

/// Values of very different size, for keys by channel and for values by token, with the extremes of each exponent.
std::vector<double> samples(int64_t tokens, int64_t dim, Storage storage) {
  std::mt19937 random(uint32_t(tokens * 31 + dim));
  std::normal_distribution<double> normal;
  std::vector<double> values;
  for (int64_t i = 0; i < tokens * dim; ++i) {
    double x = normal(random) * std::exp2(i % dim % 7 * 3 - 12 + (i / dim) % 5);
    x = i % 11 == 3 ? 0 : i % 13 == 5 ? std::exp2(std::ilogb(x)) * (2 - 0x1p-10) : x;
    values.push_back(widen(narrow(x, storage), storage));
  }
  return values;
}

TEST(Split, FixedErrorKeepsItsBound) {
  for (Storage storage : {Storage::Half, Storage::BFloat16})
    for (bool key : {true, false}) {
      int64_t tokens = key ? 4 * kBlockTokens : 97, dim = 16;
      std::vector<double> values = samples(tokens, dim, storage);
      FixedSplit split = splitFixed(values, tokens, dim, key);
      for (int bits : {1, 4, 8, 12, 16}) {
        double worst = 0;
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t c = 0; c < dim; ++c)
            worst = std::max(worst, std::fabs(split.read(t, c, bits) - values[t * dim + c]) / split.scale(t, c));
        EXPECT_LE(worst, std::ldexp(1, -bits) * (1 + 1e-12));
        // The bound is no larger than it must be: some value comes near it.
        EXPECT_GE(worst, 0.8 * std::ldexp(1, -bits));
      }
    }
}

/// A thousand copies of one token: their errors average out instead of adding up, which is what the dither is for.
TEST(Split, DitherMakesErrorsIndependent) {
  for (double x : {0.3, -0.71, 0.999}) {
    int64_t tokens = 16 * kBlockTokens;
    FixedSplit split = splitFixed(std::vector<double>(tokens * 4, x), tokens, 4, /*key=*/true);
    double mean = 0;
    for (int64_t t = 0; t < tokens; ++t)
      mean += split.read(t, 0, 4) / tokens;
    EXPECT_NEAR(mean, x, split.scale(0, 0) * 0x1p-11);
  }
}

/// Equal values in the four channels of a group together err hardly more than one of them may: their dithers divide each step.
TEST(Split, DitherSpreadsOverChannelsOfKeys) {
  for (double x : {0.3, -0.71, 0.999}) {
    FixedSplit split = splitFixed(std::vector<double>(kBlockTokens * 4, x), kBlockTokens, 4, /*key=*/true);
    for (int bits : {4, 8, 12})
      for (int64_t t = 0; t < kBlockTokens; ++t) {
        double sum = 0;
        for (int64_t c = 0; c < 4; ++c)
          sum += split.read(t, c, bits) - x;
        EXPECT_LE(std::fabs(sum), split.scale(t, 0) * std::ldexp(1.5, -bits)) << bits << " bits of token " << t;
      }
  }
}

TEST(Split, NotFiniteValuesAreZeroAndSetNoExponent) {
  for (bool key : {true, false}) {
    std::vector<double> values = samples(kBlockTokens, 16, Storage::Half), zeroed = values;
    for (auto [place, value] : {std::pair(0, NAN), {17, INFINITY}, {500, -INFINITY}}) {
      values[place] = value;
      zeroed[place] = 0;
    }
    FixedSplit split = splitFixed(values, kBlockTokens, 16, key), expected = splitFixed(zeroed, kBlockTokens, 16, key);
    EXPECT_EQ(split.patterns, expected.patterns);
    EXPECT_EQ(split.exponents, expected.exponents);
    EXPECT_EQ(split.patterns[0], 0x8000 + ditherOf(0));
  }
}

TEST(Split, FloatReadsTheMiddle) {
  EXPECT_EQ(readFloat(0x3e12, 8, Storage::Half), widen(0x3e80, Storage::Half));
  EXPECT_EQ(readFloat(0x3e12, 12, Storage::Half), widen(0x3e18, Storage::Half));
  EXPECT_EQ(readFloat(0xbe12, 12, Storage::BFloat16), widen(0xbe18, Storage::BFloat16));
  EXPECT_EQ(readFloat(0x8000, 16, Storage::Half), 0);
  for (uint32_t pattern = 0; pattern < 0x7c00; ++pattern) { // half a unit of the last bit that is read
    double exact = widen(uint16_t(pattern), Storage::Half), exponent = std::max(std::ilogb(exact), -14);
    ASSERT_EQ(readFloat(uint16_t(pattern), 16, Storage::Half), exact);
    for (int bits : {8, 12}) {
      ASSERT_LE(std::fabs(readFloat(uint16_t(pattern), bits, Storage::Half) - exact), std::ldexp(1, exponent - (bits - 6) - 1)) << pattern;
    }
  }
}

struct Order {
  PlaneOrder order;
  std::vector<int> widths;
};
const Order orders[] = {{PlaneOrder::FixedKey, {4, 4, 4, 4}}, {PlaneOrder::FixedKey, {4, 12}},   {PlaneOrder::FixedKey, {16}},
                        {PlaneOrder::FloatKey, {8, 4, 4}},    {PlaneOrder::FloatKey, {12, 4}},   {PlaneOrder::Value, {4, 4, 4, 4}},
                        {PlaneOrder::Value, {8, 8}},          {PlaneOrder::Value, {4, 4, 8}}};

TEST(Planes, AllPatternsSurvive) {
  std::vector<uint16_t> patterns(0x10000);
  std::iota(patterns.begin(), patterns.end(), 0);
  for (int64_t dim : {16, 64, 256})
    for (const Order &o : orders)
      EXPECT_EQ(joinPlanes(packPlanes(patterns, 0x10000 / dim, dim, o.order, o.widths), 0x10000 / dim, dim, o.order, o.widths), patterns);
}

TEST(Planes, AbsentPlanesAreZeros) {
  std::vector<uint16_t> patterns(0x10000);
  std::iota(patterns.begin(), patterns.end(), 0);
  for (const Order &o : orders) {
    Planes planes = packPlanes(patterns, 1024, 64, o.order, o.widths);
    planes.resize(1);
    std::vector<uint16_t> joined = joinPlanes(planes, 1024, 64, o.order, o.widths);
    for (uint32_t pattern = 0; pattern < 0x10000; ++pattern)
      ASSERT_EQ(joined[pattern], pattern >> (16 - o.widths[0]) << (16 - o.widths[0]));
  }
}

/// Token 97 = 64 + 33, channel 6 of 16, pattern 0x1234, counted out by hand.
TEST(Planes, Places) {
  std::vector<uint16_t> patterns(128 * 16);
  patterns[97 * 16 + 6] = 0x1234;
  auto only = [&](PlaneOrder order, std::vector<int> widths) {
    std::vector<std::tuple<int, int, int>> found; // plane, byte, content
    Planes planes = packPlanes(patterns, 128, 16, order, widths);
    for (size_t plane = 0; plane < planes.size(); ++plane)
      for (size_t byte = 0; byte < planes[plane].size(); ++byte)
        if (planes[plane][byte])
          found.emplace_back(plane, byte, planes[plane][byte]);
    return found;
  };
  using Found = std::vector<std::tuple<int, int, int>>;
  // block 1 of four groups a 128 bytes, group 1, word 1, byte 2, high nibble
  EXPECT_EQ(only(PlaneOrder::FixedKey, {4, 12}), (Found{{0, 646, 0x10}, {1, 1926, 0x20}, {1, 2054, 0x30}, {1, 2182, 0x40}}));
  // block 1 of 16 channels a 32 bytes and layer, channel 6, byte 1, high nibble
  EXPECT_EQ(only(PlaneOrder::FloatKey, {8, 4, 4}), (Found{{0, 1409, 0x10}, {0, 1441, 0x20}, {1, 705, 0x30}, {2, 705, 0x40}}));
  // row 97 of 8 bytes a layer, byte 6, low nibble
  EXPECT_EQ(only(PlaneOrder::Value, {8, 8}), (Found{{0, 1558, 1}, {0, 1566, 2}, {1, 1558, 3}, {1, 1566, 4}}));
}

} // namespace
