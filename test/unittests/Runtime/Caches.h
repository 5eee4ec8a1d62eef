// What tests of caches share: numbers by definition, tokens to append, and all that a reader can see of a row, taken from memory bit by bit as
// Layout.h's table says, in arithmetic of its own.
#ifndef ALIGNED_TEST_RUNTIME_CACHES_H
#define ALIGNED_TEST_RUNTIME_CACHES_H

#include "aligned/Runtime/Cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

namespace caches {

//===----------------------------------------------------------------------===//
// Numbers: sign, exponent and significand by definition
//===----------------------------------------------------------------------===//

struct Precision {
  int bits, significand, leastExponent, greatestExponent; // of the least normal and of the greatest number
};
inline Precision precisionOf(int element) {
  return element == ALIGNED_ELEMENT_F16    ? Precision{16, 11, -14, 15}
         : element == ALIGNED_ELEMENT_BF16 ? Precision{16, 8, -126, 127}
                                           : Precision{32, 24, -126, 127};
}
inline int64_t bytesOf(int element) { return precisionOf(element).bits / 8; }

inline double decode(int element, uint32_t pattern) {
  Precision p = precisionOf(element);
  int fieldBits = p.significand - 1, exponentBits = p.bits - p.significand;
  uint32_t fraction = pattern & ((1u << fieldBits) - 1), field = pattern >> fieldBits & ((1u << exponentBits) - 1);
  double sign = pattern >> (p.bits - 1) ? -1 : 1;
  if (field == (1u << exponentBits) - 1)
    return fraction ? NAN : sign * INFINITY;
  double significand = fraction + (field ? std::ldexp(1, fieldBits) : 0);
  return sign * std::ldexp(significand, p.leastExponent - fieldBits + (field ? int(field) - 1 : 0));
}

/// The nearest number, ties to even; infinite if that is beyond the greatest.
inline uint32_t encode(int element, double value) {
  Precision p = precisionOf(element);
  int fieldBits = p.significand - 1;
  uint32_t sign = uint32_t(std::signbit(value)) << (p.bits - 1), infinity = uint32_t(p.greatestExponent - p.leastExponent + 2) << fieldBits;
  double magnitude = std::fabs(value);
  if (magnitude == 0)
    return sign;
  int exponent = std::isinf(magnitude) ? p.greatestExponent + 1 : std::max(std::ilogb(magnitude), p.leastExponent);
  if (exponent > p.greatestExponent)
    return sign | infinity;
  // A significand that rounds up to the next power of two carries into the exponent as it should.
  auto significand = uint32_t(std::nearbyint(std::ldexp(magnitude, fieldBits - exponent)));
  return sign | (significand + (uint32_t(exponent - p.leastExponent) << fieldBits));
}

//===----------------------------------------------------------------------===//
// Formats and caches
//===----------------------------------------------------------------------===//

struct Format {
  const char *name;
  int kind;
  std::vector<int> widths;

  aligned_format with(int role, int element) const {
    aligned_format format = {kind, role, element, int32_t(widths.size()), {}};
    std::copy(widths.begin(), widths.end(), format.width);
    return format;
  }
};
inline void PrintTo(const Format &format, std::ostream *stream) { *stream << format.name; }

inline const std::vector<Format> &formats() {
  static const std::vector<Format> all = {{"Fixed448", ALIGNED_FORMAT_FIXED, {4, 4, 8}}, {"Fixed4444", ALIGNED_FORMAT_FIXED, {4, 4, 4, 4}},
                                          {"Fixed88", ALIGNED_FORMAT_FIXED, {8, 8}},     {"Float844", ALIGNED_FORMAT_FLOAT, {8, 4, 4}},
                                          {"Float124", ALIGNED_FORMAT_FLOAT, {12, 4}},   {"Float88", ALIGNED_FORMAT_FLOAT, {8, 8}}};
  return all;
}
inline aligned_format usual(int role, int element = ALIGNED_ELEMENT_F16) { return formats()[0].with(role, element); }

using EveryStorage = std::tuple<Format, int, int>; // format, role, element
inline auto everyStorage() {
  return testing::Combine(testing::ValuesIn(formats()), testing::Values(ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE),
                          testing::Values(ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32));
}
inline std::string nameOf(const testing::TestParamInfo<EveryStorage> &info) {
  const char *roles[] = {"Key", "Value"}, *elements[] = {"F16", "BF16", "F32"};
  return std::string(std::get<0>(info.param).name) + roles[std::get<1>(info.param)] + elements[std::get<2>(info.param)];
}
inline aligned_format formatOf(const EveryStorage &storage) { return std::get<0>(storage).with(std::get<1>(storage), std::get<2>(storage)); }

inline bool isFixed(const aligned_format &format) { return format.kind == ALIGNED_FORMAT_FIXED; }
inline bool isKey(const aligned_format &format) { return format.role == ALIGNED_ROLE_KEY; }
inline bool isFixedKey(const aligned_format &format) { return isFixed(format) && isKey(format); }

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using CachePtr = std::unique_ptr<aligned_cache, Destroy>;

inline CachePtr create(const aligned_format &format, int64_t batch, int64_t heads, int64_t channels, int64_t capacity = 0) {
  CachePtr cache(aligned_cache_create(&format, batch, heads, channels, capacity));
  EXPECT_TRUE(cache) << aligned_last_error();
  return cache;
}
inline CachePtr fork(const CachePtr &cache) {
  CachePtr copy(aligned_cache_fork(cache.get()));
  EXPECT_TRUE(copy) << aligned_last_error();
  return copy;
}

//===----------------------------------------------------------------------===//
// Tokens to append
//===----------------------------------------------------------------------===//

/// Patterns [rows][tokens][head_dim].
struct Values {
  int element;
  int64_t batch, heads, tokens, channels;
  std::vector<uint32_t> patterns;

  Values(int element, int64_t batch, int64_t heads, int64_t tokens, int64_t channels)
      : element(element), batch(batch), heads(heads), tokens(tokens), channels(channels), patterns(batch * heads * tokens * channels) {}

  int64_t rows() const { return batch * heads; }
  uint32_t &at(int64_t row, int64_t token, int64_t channel) { return patterns[(row * tokens + token) * channels + channel]; }
  uint32_t at(int64_t row, int64_t token, int64_t channel) const { return patterns[(row * tokens + token) * channels + channel]; }
  void set(int64_t row, int64_t token, int64_t channel, double value) { at(row, token, channel) = encode(element, value); }
  std::vector<double> token(int64_t row, int64_t token) const {
    std::vector<double> values;
    for (int64_t c = 0; c < channels; ++c)
      values.push_back(decode(element, at(row, token, c)));
    return values;
  }
};

/// Tokens of different size, channels with a mean or larger than others, zeros, whole tokens of zeros, subnormals.
inline Values randomValues(int element, int64_t batch, int64_t heads, int64_t tokens, int64_t channels, unsigned seed = 1) {
  Values values(element, batch, heads, tokens, channels);
  std::mt19937 random(seed * 7919 + unsigned(element * 131 + tokens * 31 + channels));
  std::normal_distribution<double> normal;
  for (int64_t row = 0; row < values.rows(); ++row)
    for (int64_t t = 0; t < tokens; ++t) {
      double size = t % 17 == 5 ? 0 : std::exp2(normal(random) * 2);
      for (int64_t c = 0; c < channels; ++c) {
        double x = (normal(random) + (c % 7 == 3 ? 4 : 0)) * (c % 11 == 5 ? 8 : 1);
        if (c % 13 == 7)
          x *= 0x1p-20;
        values.set(row, t, c, x * size);
      }
    }
  return values;
}

/// Tokens [begin, end) in one of several arrangements.
struct Block {
  std::vector<char> data;
  int64_t strides[4];

  Block(const Values &values, int64_t begin, int64_t end, int arrangement = 0) {
    const int64_t n = end - begin, d = values.channels, bytes = bytesOf(values.element);
    const int64_t arrangements[3][4] = {{values.heads * n * d, n * d, d, 1},                         // contiguous
                                        {values.heads * (d + 3), d + 3, values.rows() * (d + 3), 1}, // [tokens, batch, heads, channels], with gaps
                                        {values.heads * n, n, 1, values.rows() * n}};                // channels outermost
    std::copy_n(arrangements[arrangement], 4, strides);
    data.resize(values.rows() * n * (d + 3) * bytes);
    for (int64_t row = 0; row < values.rows(); ++row)
      for (int64_t t = 0; t < n; ++t)
        for (int64_t c = 0; c < d; ++c) {
          uint32_t pattern = values.at(row, begin + t, c); // little endian: the low bytes come first
          int64_t place = row / values.heads * strides[0] + row % values.heads * strides[1] + t * strides[2] + c * strides[3];
          std::memcpy(&data[place * bytes], &pattern, bytes);
        }
  }
};

inline int append(const CachePtr &cache, const Values &values, int64_t begin, int64_t end, int arrangement = 0) {
  Block block(values, begin, end, arrangement);
  return aligned_cache_append(cache.get(), block.data.data(), end - begin, block.strides);
}

/// An offset near the mean of randomValues.
inline std::vector<float> someOffset(int64_t heads, int64_t channels) {
  std::vector<float> offset;
  for (int64_t i = 0; i < heads * channels; ++i)
    offset.push_back(float(i % channels % 7 == 3 ? 3.7 : 0.01 * double(i % 5)));
  return offset;
}
inline void setOffset(const CachePtr &cache) {
  if (isFixedKey(cache->format))
    ASSERT_EQ(aligned_cache_set_offset(cache.get(), someOffset(cache->kv_heads, cache->head_dim).data()), 0) << aligned_last_error();
}

inline uint32_t patternAt(const void *data, int element, int64_t place) {
  if (element == ALIGNED_ELEMENT_F32)
    return static_cast<const uint32_t *>(data)[place];
  return static_cast<const uint16_t *>(data)[place];
}

//===----------------------------------------------------------------------===//
// What a reader sees
//===----------------------------------------------------------------------===//

inline int residentBits(const aligned_cache &cache) {
  int bits = 0;
  for (int p = 0; p < cache.planes; ++p)
    bits += cache.format.width[p];
  return bits;
}

/// Which tile of the arrays holds a token of a row.
inline int64_t tileOf(const aligned_cache &cache, int64_t row, int64_t token) {
  if (!cache.pages)
    return row * (cache.capacity / 64) + token / 64;
  return cache.pages[row / cache.kv_heads * (cache.capacity / 64) + token / 64] * cache.kv_heads + row % cache.kv_heads;
}

/// What is cut up of a token's values, from the resident planes: 4 bits after another.
inline std::vector<uint16_t> patternsOf(const aligned_cache &cache, int64_t row, int64_t token) {
  const aligned_format &format = cache.format;
  const int64_t d = cache.head_dim, t = token % 64;
  std::vector<uint16_t> patterns(d);
  for (int p = 0, shift = 16; p < cache.planes; ++p) {
    const int width = format.width[p];
    const uint8_t *tile = static_cast<const uint8_t *>(cache.plane[p]) + tileOf(cache, row, token) * 64 * d * width / 8;
    for (int layer = 0; layer < width / 4; ++layer) {
      shift -= 4;
      for (int64_t c = 0; c < d; ++c) {
        int64_t byte = 0;
        bool high = false;
        if (!isFixed(format) && isKey(format)) {
          byte = (c * (width / 4) + layer) * 32 + t % 32;
          high = t >= 32;
        } else if (!isFixed(format)) {
          byte = (t * (width / 4) + layer) * (d / 2) + c % (d / 2);
          high = c >= d / 2;
        } else if (isKey(format) && p == 0) {
          const int64_t group = width == 4 ? 8 : 4;
          byte = (c / group * 64 + t) * 4 + c % 4;
          high = width == 4 ? c % 8 >= 4 : layer == 0;
        } else {
          byte = width == 4 ? t * (d / 2) + c / 2 : t * d + c;
          high = width == 4 ? c % 2 : layer == 0;
        }
        patterns[c] |= (tile[byte] >> (high ? 4 : 0) & 15) << shift;
      }
    }
  }
  return patterns;
}

struct Contents {
  int64_t tokens;
  std::vector<uint16_t> patterns; // [tokens][head_dim], 0 of tokens kept aside
  std::vector<int> codes;         // [tokens], of fixed formats
  std::vector<int64_t> scales;    // largest, median, below, tokens, counts
  std::vector<int64_t> sum;
  std::vector<float> offset, maxima;
  std::map<int64_t, std::vector<uint32_t>> aside; // bits of the values of tokens kept aside

  bool operator==(const Contents &other) const {
    return tokens == other.tokens && patterns == other.patterns && codes == other.codes && scales == other.scales && sum == other.sum &&
           offset == other.offset && maxima == other.maxima && aside == other.aside;
  }
};

inline Contents contentsOf(const aligned_cache &cache, int64_t row) {
  Contents contents;
  const int64_t d = cache.head_dim;
  contents.tokens = aligned_cache_length(&cache, row / cache.kv_heads);
  for (int64_t i = 0; i < cache.asides; ++i)
    if (cache.aside[i].row == row) {
      std::vector<uint32_t> &bits = contents.aside[cache.aside[i].token];
      EXPECT_TRUE(bits.empty()) << "token " << cache.aside[i].token << " of row " << row << " is listed twice";
      bits.resize(d);
      std::memcpy(bits.data(), cache.aside_values + i * d, d * 4);
    }
  for (int64_t t = 0; t < contents.tokens; ++t) {
    const std::vector<uint16_t> patterns = patternsOf(cache, row, t);
    contents.patterns.insert(contents.patterns.end(), patterns.begin(), patterns.end());
    if (cache.code)
      contents.codes.push_back(cache.code[tileOf(cache, row, t) * 64 + t % 64]);
  }
  if (cache.scales) {
    const aligned_scales &scales = cache.scales[row];
    contents.scales = {scales.largest, scales.median, scales.below, scales.tokens};
    contents.scales.insert(contents.scales.end(), scales.count, scales.count + 256);
  }
  auto of = [&](auto &to, auto *from) {
    if (from)
      to.assign(from + row * d, from + row * d + d);
  };
  of(contents.sum, cache.sum);
  of(contents.offset, cache.offset);
  of(contents.maxima, cache.channel_max);
  return contents;
}

/// Expects two rows to look the same; `maxima`: those of channels, which outlast truncation, too.
inline void expectSame(const Contents &actual, const Contents &expected, bool maxima = true) {
  ASSERT_EQ(actual.tokens, expected.tokens);
  EXPECT_EQ(actual.codes, expected.codes);
  EXPECT_TRUE(actual.patterns == expected.patterns) << "patterns differ";
  EXPECT_EQ(actual.scales, expected.scales);
  EXPECT_EQ(actual.sum, expected.sum);
  EXPECT_EQ(actual.offset, expected.offset);
  if (maxima)
    EXPECT_EQ(actual.maxima, expected.maxima);
  EXPECT_EQ(actual.aside, expected.aside);
}

inline void expectSameCaches(const aligned_cache &actual, const aligned_cache &expected, bool maxima = true) {
  ASSERT_EQ(actual.rows, expected.rows);
  EXPECT_EQ(actual.tokens, expected.tokens);
  EXPECT_EQ(actual.bias, expected.bias);
  EXPECT_EQ(actual.planes, expected.planes);
  for (int64_t row = 0; row < actual.rows; ++row) {
    SCOPED_TRACE("row " + std::to_string(row));
    expectSame(contentsOf(actual, row), contentsOf(expected, row), maxima);
  }
}

/// All that can be seen of a cache.
inline std::vector<Contents> snapshot(const aligned_cache &cache) {
  std::vector<Contents> rows;
  for (int64_t row = 0; row < cache.rows; ++row)
    rows.push_back(contentsOf(cache, row));
  return rows;
}

} // namespace caches

#endif
