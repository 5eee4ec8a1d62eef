// Plane storage against the worked example, its error bound, what rotation and dither are for, and the layouts of aligned/Storage/Layout.h.

#include "aligned/Reference/Planes.h"

#include "aligned/Storage/Layout.h"
#include "aligned/Storage/Rotation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

using namespace aligned;

namespace {

std::vector<double> randomValues(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(count);
  for (double &x : values)
    x = normal(random);
  return values;
}

//===----------------------------------------------------------------------===//
// Fixed planes
//===----------------------------------------------------------------------===//

/// The one of Planes.h and Scale.h.
TEST(FixedPlanes, WorkedExample) {
  std::vector<double> values(2 * 16, 0.25);
  values[16] = 0.8;
  values[16 + 5] = -1.5;
  FixedPlanes planes = packFixed(values, 2, 16, Role::Value);
  EXPECT_EQ(planes.codes[1], 132);
  EXPECT_DOUBLE_EQ(planes.scales[1], std::exp2(0.75));
  EXPECT_EQ(ditherOf(Role::Value, 1), 285);
  EXPECT_EQ(planes.n[16], 0x3e00);
  EXPECT_EQ(planes.readInteger(1, 0, 8), 0x3e80 - 285);
  EXPECT_NEAR(planes.read(1, 0, 8), 0.8066, 5e-5);
  EXPECT_NEAR(planes.read(1, 0, 16), 0.8, std::exp2(0.75 - 16));
  EXPECT_EQ(planes.pattern(1, 0), 0x3e00);
  EXPECT_EQ(planes.pattern(1, 5), uint16_t(planes.n[16 + 5]));
  EXPECT_EQ(planes.offset, std::vector<double>(16, 0));
}

TEST(FixedPlanes, DitherIsOfTheContract) {
  for (int64_t t : {0, 1, 2, 63, 64, 4095, 4096, 1000003}) {
    EXPECT_EQ(ditherOf(Role::Key, t), storage::ditherOf(ALIGNED_ROLE_KEY, t));
    EXPECT_EQ(ditherOf(Role::Value, t), storage::ditherOf(ALIGNED_ROLE_VALUE, t));
  }
  for (Role role : {Role::Key, Role::Value}) { // every place of a step once
    std::vector<bool> taken(4096, false);
    for (int64_t t = 0; t < 4096; ++t)
      taken[ditherOf(role, t) + 2048] = true;
    EXPECT_EQ(std::count(taken.begin(), taken.end(), true), 4096);
  }
}

/// The least code whose scale has room for 16/15 of the largest value.
TEST(FixedPlanes, ScaleCodesAreTheLeast) {
  for (auto [largest, code] : {std::pair(65504.0, 255), {0.9375, 126}, {0.938, 127}, {1.0, 127}, {15.0, 158}, {0x1p-15, 7}, {0x1p-24, 1}, {0.0, 1}}) {
    std::vector<double> row(16);
    row[5] = -largest;
    EXPECT_EQ(packFixed(row, 1, 16, Role::Value).codes, std::vector<int>{code}) << largest;
  }
  std::mt19937 random(1);
  std::uniform_real_distribution<double> exponent(-14, 16);
  for (int i = 0; i < 1000; ++i) {
    std::vector<double> row{std::exp2(exponent(random))};
    FixedPlanes planes = packFixed(row, 1, 1, Role::Value, Storage::Half, 126);
    EXPECT_GE(planes.scales[0], row[0] * 16 / 15);
    EXPECT_LT(scaleOf(planes.codes[0] - 1, 126), row[0] * 16 / 15);
  }
}

TEST(FixedPlanes, BiasOfWideTypes) {
  std::vector<double> values{1e36, 1, 3e37, -2};
  EXPECT_EQ(biasFor(0.9375), 128);
  EXPECT_EQ(biasFor(0), 126);
  FixedPlanes planes = packFixed(values, 2, 2, Role::Value, Storage::BFloat16);
  EXPECT_EQ(planes.codes[1], 128);
  EXPECT_EQ(planes.bias, biasFor(3e37));
  EXPECT_EQ(planes.codes[0], 128 - (biasFor(1e36) - biasFor(3e37))); // 8 steps to an octave
}

/// |read - x| <= scale (2^-b + 2^-16), and no less: some value comes near it.
TEST(FixedPlanes, ErrorKeepsItsBound) {
  for (Role role : {Role::Key, Role::Value})
    for (int64_t dim : {16, 80, 96}) {
      int64_t tokens = 300;
      std::vector<double> values = randomValues(tokens * dim, uint32_t(dim));
      for (int64_t i = 0; i < tokens * dim; ++i)
        values[i] *= std::exp2(i / dim % 19 - 9) * (i % 11 == 3 ? 0 : 1);
      FixedPlanes planes = packFixed(values, tokens, dim, role);
      for (int bits : {4, 8, 12, 16}) {
        double worst = 0, squares = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          std::vector<double> row(values.begin() + t * dim, values.begin() + (t + 1) * dim);
          if (role == Role::Key) {
            for (int64_t c = 0; c < dim; ++c)
              row[c] -= planes.offset[c];
            row = rotated(row);
          }
          for (int64_t c = 0; c < dim; ++c) {
            EXPECT_LE(std::fabs(row[c]), planes.scales[t] * 15 / 16 * (1 + 1e-12));
            double error = std::fabs(planes.read(t, c, bits) - row[c]) / planes.scales[t];
            worst = std::max(worst, error);
            squares += error * error / double(tokens * dim);
          }
        }
        double step = (bits < 16 ? std::ldexp(1, -bits) : 0) + 0x1p-16;
        EXPECT_LE(worst, step * (1 + 1e-9)) << bits;
        EXPECT_GE(worst, 0.9 * step) << bits;
        EXPECT_NEAR(squares, std::ldexp(1, -2 * bits) / 3, std::ldexp(0.05, -2 * bits)) << bits; // the variance that policies count with
      }
    }
}

/// A thousand copies of one token: their errors average out instead of adding up, which is what the dither is for.
TEST(FixedPlanes, DitherAveragesErrorsOfEqualTokens) {
  for (double x : {0.3, -0.71, 0.93}) {
    int64_t tokens = 1024;
    std::vector<double> values(tokens * 16, x);
    for (int64_t t = 0; t < tokens; ++t)
      values[t * 16 + 7] = 0.9375;
    FixedPlanes planes = packFixed(values, tokens, 16, Role::Value);
    double mean = 0;
    for (int64_t t = 0; t < tokens; ++t)
      mean += planes.read(t, 0, 4) / tokens;
    EXPECT_NEAR(mean, x, planes.scales[0] * 0x1p-11);
  }
}

TEST(FixedPlanes, RotationIsHadamardWithSigns) {
  for (int64_t dim : {1, 16, 64, 80, 96, 240, 256}) {
    std::vector<double> x = randomValues(dim, 3), y = randomValues(dim, 4), expected, got = rotated(x);
    for (int64_t first = 0; first < dim;) {
      int64_t size = storage::blockAt(first, dim);
      for (int64_t j = 0; j < size; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < size; ++i)
          sum += x[first + i] * storage::signOf(first + i) * (__builtin_parityll(i & j) ? -1 : 1);
        expected.push_back(sum / std::sqrt(double(size)));
      }
      first += size;
    }
    std::vector<double> inPlace = x;
    storage::rotate(inPlace.data(), dim);
    for (int64_t c = 0; c < dim; ++c) {
      EXPECT_NEAR(got[c], expected[c], 1e-13);
      EXPECT_NEAR(got[c], inPlace[c], 1e-13);
    }
    std::vector<double> other = rotated(y);
    EXPECT_NEAR(std::inner_product(x.begin(), x.end(), y.begin(), 0.0), std::inner_product(got.begin(), got.end(), other.begin(), 0.0), 1e-12);
  }
}

TEST(FixedPlanes, Offsets) {
  int64_t dim = 16;
  std::vector<double> keys = randomValues(70 * dim, 5);
  std::vector<double> mean(dim, 0), none(dim, 0);
  for (int64_t t = 0; t < 64; ++t)
    for (int64_t c = 0; c < dim && t != 3; ++c)
      mean[c] += keys[t * dim + c] / 63;
  keys[3 * dim + 1] = NAN;
  EXPECT_EQ(offsetOf(keys, 63, dim), none);
  std::vector<double> offset = offsetOf(keys, 70, dim);
  for (int64_t c = 0; c < dim; ++c) {
    EXPECT_NEAR(offset[c], mean[c], 1e-7);
    EXPECT_EQ(offset[c], float(offset[c]));
  }
  EXPECT_EQ(packFixed(keys, 70, dim, Role::Key).offset, offset);
  EXPECT_EQ(packFixed(keys, 70, dim, Role::Key, Storage::Half, {}, none).offset, none);
}

/// S7: tokens with a NaN, an infinity, or beyond the largest code disturb nobody.
TEST(FixedPlanes, TokensKeptAside) {
  int64_t dim = 16, tokens = 10;
  for (Role role : {Role::Key, Role::Value}) {
    std::vector<double> values = randomValues(tokens * dim, 6), odd = values, offset(dim, role == Role::Key ? 0.5 : 0.0);
    odd[3 * dim + 2] = NAN;
    odd[4 * dim + 1] = -INFINITY;
    odd[5 * dim] = 70000; // a scale beyond code 255
    FixedPlanes all = packFixed(values, tokens, dim, role, Storage::Half, {}, offset), planes = packFixed(odd, tokens, dim, role, Storage::Half, {}, offset);
    EXPECT_EQ(planes.aside.size(), role == Role::Key ? 2u : 3u); // rotated, 70000 is 17500 in all channels
    for (int64_t t = 0; t < tokens; ++t) {
      bool aside = planes.aside.count(t);
      EXPECT_EQ(planes.isAside(t), aside);
      EXPECT_EQ(aside, t == 3 || t == 4 || (t == 5 && role == Role::Value));
      for (int64_t c = 0; c < dim; ++c)
        if (aside) {
          EXPECT_EQ(planes.n[t * dim + c], 0);
          double x = odd[t * dim + c] - offset[c];
          EXPECT_TRUE(planes.aside.at(t)[c] == x || (std::isnan(x) && std::isnan(planes.aside.at(t)[c])));
        } else if (t != 5) {
          EXPECT_EQ(planes.n[t * dim + c], all.n[t * dim + c]);
        }
    }
    EXPECT_EQ(countScales(planes).tokens, tokens - int64_t(planes.aside.size()));
  }
}

//===----------------------------------------------------------------------===//
// What a cache knows
//===----------------------------------------------------------------------===//

/// A cache whose tokens have these codes; channel 0 is 15/16 of the scale.
FixedPlanes withCodes(const std::vector<int> &codes) {
  std::vector<double> values;
  for (int code : codes) {
    values.push_back(code ? scaleOf(code, 126) * 0.9374 : NAN);
    values.push_back(code ? scaleOf(code, 126) * -0.25 : 0);
  }
  return packFixed(values, int64_t(codes.size()), 2, Role::Value);
}

TEST(Summary, CountsOfScales) {
  auto expect = [](const std::vector<int> &codes, int64_t tokens, int median, int64_t below, int largest) {
    ScaleCounts counts = countScales(withCodes(codes));
    EXPECT_EQ(counts.tokens, tokens);
    EXPECT_EQ(counts.median, median);
    EXPECT_EQ(counts.below, below);
    EXPECT_EQ(counts.largest, largest);
    for (int code = 1; code < 256; ++code)
      EXPECT_EQ(counts.count[code], std::count(codes.begin(), codes.end(), code));
  };
  expect({}, 0, 0, 0, 0);
  expect({0, 0}, 0, 0, 0, 0);
  expect({100}, 1, 100, 0, 100);
  expect({100, 120}, 2, 100, 0, 120); // half of them have it
  expect({120, 100, 0, 110}, 3, 110, 1, 120);
  expect({90, 90, 100, 255, 255, 255}, 6, 100, 2, 255);
}

TEST(Summary, ByHand) {
  // The median is 126, so the floor 94: code 80 counts as 94.
  FixedPlanes planes = withCodes({126, 126, 0, 134, 80});
  ValueSummary known = summarize(planes);
  EXPECT_EQ(known.floor, 94);
  double weights = 1 + 1 + 0.5 + 16;
  EXPECT_DOUBLE_EQ(known.usual, 4 / weights);
  EXPECT_NEAR(known.mean[0], 4 * 0.9374 / weights, 1e-4); // v / scale is 0.9374 in every row
  EXPECT_NEAR(known.mean[1], 4 * -0.25 / weights, 1e-4);
  double spread = 0, fill = 0;
  for (auto [scale, weight] : {std::pair(1.0, 1.0), {1.0, 1.0}, {2.0, 0.5}, {scaleOf(80, 126), 16.0}})
    for (int c : {0, 1}) {
      double v = scale * (c ? -0.25 : 0.9374);
      spread += std::pow((v - known.mean[c]) * weight, 2) / 8;
      fill += std::pow(known.mean[c] * weight, 2) / 8;
    }
  EXPECT_NEAR(known.spread, std::sqrt(spread), 1e-4);
  EXPECT_NEAR(known.fill, std::sqrt(spread + fill), 1e-4);
  ValueSummary none = summarize(withCodes({0}));
  EXPECT_EQ(none.usual, 1);
  EXPECT_EQ(none.mean, (std::vector<double>{0, 0}));
}

/// M1 is a sum of integers: what tokens add, taking them away takes off exactly.
TEST(Summary, SumsAreOfTokens) {
  std::vector<double> values = randomValues(97 * 16, 8);
  FixedPlanes all = packFixed(values, 97, 16, Role::Value), fewer = packFixed(values, 70, 16, Role::Value);
  for (int bits : {4, 12, 16}) {
    std::vector<int64_t> sums = sumChannels(all, bits), left = sumChannels(fewer, bits);
    for (int64_t c = 0; c < 16; ++c) {
      for (int64_t t = 70; t < 97; ++t)
        sums[c] -= all.readInteger(t, c, bits) - (bits < 16 ? 1 << (15 - bits) : 0);
      EXPECT_EQ(sums[c], left[c]);
    }
  }
  // The mean is one of what is read, whatever is resident.
  ValueSummary known = summarize(all), coarse = summarize(all, 8);
  for (int64_t c = 0; c < 16; ++c)
    EXPECT_NEAR(coarse.mean[c], known.mean[c], 2 * known.usual * 0x1p-8 / std::sqrt(97.0)); // three deviations
  for (int64_t c = 0; c < 16; ++c) { // n - dither is what was rounded
    int64_t sum = 0;
    for (int64_t t = 0; t < 97; ++t)
      sum += std::llround(values[t * 16 + c] / all.scales[t] * 32768);
    EXPECT_EQ(sumChannels(all)[c], sum);
  }
}

//===----------------------------------------------------------------------===//
// Float planes
//===----------------------------------------------------------------------===//

TEST(FloatPlanes, ReadTheMiddle) {
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

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

const PlaneFormat formats[] = {
    {Kind::Fixed, Role::Key, {4, 4, 8}},   {Kind::Fixed, Role::Key, {8, 8}},      {Kind::Fixed, Role::Key, {4, 4, 4, 4}},
    {Kind::Fixed, Role::Value, {4, 4, 8}}, {Kind::Fixed, Role::Value, {8, 4, 4}}, {Kind::Fixed, Role::Value, {4, 4, 4, 4}},
    {Kind::Float, Role::Key, {8, 4, 4}},   {Kind::Float, Role::Key, {12, 4}},     {Kind::Float, Role::Value, {8, 4, 4}},
    {Kind::Float, Role::Value, {12, 4}},   {Kind::Float, Role::Value, {4, 12}},   {Kind::Float, Role::Key, {16}}};

TEST(Memory, AllPatternsSurvive) {
  std::vector<uint16_t> patterns(0x10000);
  std::iota(patterns.begin(), patterns.end(), 0);
  for (int64_t dim : {16, 64, 256})
    for (const PlaneFormat &format : formats) {
      EXPECT_EQ(joinPlanes(packPlanes(patterns, 0x10000 / dim, dim, format), 0x10000 / dim, dim, format), patterns);
      std::vector<uint16_t> some(patterns.begin() + 0x3300, patterns.begin() + 0x3300 + 65 * dim); // the last tile has one token
      PlaneBytes planes = packPlanes(some, 65, dim, format);
      EXPECT_EQ(joinPlanes(planes, 65, dim, format), some);
      for (size_t p = 0; p < planes.size(); ++p)
        EXPECT_EQ(int64_t(planes[p].size()), 2 * 64 * dim * format.widths[p] / 8);
    }
}

TEST(Memory, AbsentPlanesAreZeros) {
  std::vector<uint16_t> patterns(0x10000);
  std::iota(patterns.begin(), patterns.end(), 0);
  for (const PlaneFormat &format : formats) {
    PlaneBytes planes = packPlanes(patterns, 1024, 64, format);
    planes.resize(1);
    std::vector<uint16_t> joined = joinPlanes(planes, 1024, 64, format);
    int missing = 16 - format.widths[0];
    for (uint32_t pattern = 0; pattern < 0x10000; ++pattern)
      ASSERT_EQ(joined[pattern], pattern >> missing << missing);
  }
}

/// Token 97 = 64 + 33, channel 13 of 16, pattern 0x1234, counted out by hand.
TEST(Memory, Places) {
  std::vector<uint16_t> patterns(128 * 16);
  patterns[97 * 16 + 13] = 0x1234;
  using Found = std::vector<std::tuple<int, int, int>>; // plane, byte, content
  auto only = [&](const PlaneFormat &format) {
    Found found;
    PlaneBytes planes = packPlanes(patterns, 128, 16, format);
    for (size_t plane = 0; plane < planes.size(); ++plane)
      for (size_t byte = 0; byte < planes[plane].size(); ++byte)
        if (planes[plane][byte])
          found.emplace_back(plane, byte, planes[plane][byte]);
    return found;
  };
  // tile 1 of 512 bytes: second word of 8 channels, token 33, byte 13 % 4, high half; then rows of 8 bytes, byte 6, high half; rows of 16 bytes
  EXPECT_EQ(only({Kind::Fixed, Role::Key, {4, 4, 8}}), (Found{{0, 512 + 256 + 33 * 4 + 1, 0x10}, {1, 512 + 33 * 8 + 6, 0x20}, {2, 1024 + 33 * 16 + 13, 0x34}}));
  // tile 1 of 1024 bytes: fourth word of 4 channels
  EXPECT_EQ(only({Kind::Fixed, Role::Key, {8, 8}}), (Found{{0, 1024 + 3 * 256 + 33 * 4 + 1, 0x12}, {1, 1024 + 33 * 16 + 13, 0x34}}));
  EXPECT_EQ(only({Kind::Fixed, Role::Value, {4, 4, 8}}), (Found{{0, 512 + 33 * 8 + 6, 0x10}, {1, 512 + 33 * 8 + 6, 0x20}, {2, 1024 + 33 * 16 + 13, 0x34}}));
  // 32 bytes for each channel and layer, byte 1, high half
  EXPECT_EQ(only({Kind::Float, Role::Key, {8, 4, 4}}),
            (Found{{0, 1024 + 13 * 64 + 1, 0x10}, {0, 1024 + 13 * 64 + 33, 0x20}, {1, 512 + 13 * 32 + 1, 0x30}, {2, 512 + 13 * 32 + 1, 0x40}}));
  // rows of 8 bytes a layer, byte 5, high half
  EXPECT_EQ(only({Kind::Float, Role::Value, {8, 8}}),
            (Found{{0, 1024 + 33 * 16 + 5, 0x10}, {0, 1024 + 33 * 16 + 13, 0x20}, {1, 1024 + 33 * 16 + 5, 0x30}, {1, 1024 + 33 * 16 + 13, 0x40}}));
}

/// Oracle and contract say the same.
TEST(Memory, IsLayout) {
  for (const PlaneFormat &format : formats)
    for (int64_t dim : {16, 96}) {
      aligned_format contract = {};
      contract.kind = format.kind == Kind::Fixed ? ALIGNED_FORMAT_FIXED : ALIGNED_FORMAT_FLOAT;
      contract.role = format.role == Role::Key ? ALIGNED_ROLE_KEY : ALIGNED_ROLE_VALUE;
      contract.planes = int32_t(format.widths.size());
      std::copy(format.widths.begin(), format.widths.end(), contract.width);
      std::mt19937 random(2);
      std::vector<uint16_t> patterns(130 * dim);
      for (uint16_t &pattern : patterns)
        pattern = uint16_t(random());
      PlaneBytes planes = packPlanes(patterns, 130, dim, format);
      for (int64_t t = 0; t < 130; ++t)
        for (int64_t c = 0; c < dim; ++c) {
          uint32_t pattern = 0;
          for (int32_t p = 0; p < contract.planes; ++p) {
            int32_t width = contract.width[p], piece = format.kind == Kind::Float ? 4 : width;
            for (int32_t layer = 0; layer < width / piece; ++layer) {
              storage::Bits bits = storage::bitsOf(contract, p, dim, t % 64, c, layer);
              pattern = pattern << piece | (planes[p][t / 64 * storage::bytesPerTile(width, dim) + bits.byte] >> bits.shift & ((1 << piece) - 1));
            }
          }
          ASSERT_EQ(pattern, patterns[t * dim + c]);
        }
    }
  aligned_format key = {}, value = {};
  value.role = ALIGNED_ROLE_VALUE;
  std::vector<double> values = randomValues(70 * 16, 9);
  for (auto [role, contract] : {std::pair(Role::Key, key), {Role::Value, value}}) {
    FixedPlanes planes = packFixed(values, 70, 16, role);
    for (int64_t i = 0; i < 70 * 16; ++i) {
      EXPECT_EQ(planes.pattern(i / 16, i % 16), storage::cutOf(contract, planes.n[i]));
      EXPECT_EQ(storage::integerOf(contract, planes.pattern(i / 16, i % 16)), planes.n[i]);
    }
  }
}

} // namespace
