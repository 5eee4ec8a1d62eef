// Caches against a packer that sets one nibble after another, straight from the formulas of Cache.h, in float64 and with
// arithmetic instead of bit patterns.

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/Error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

// Allocations that cannot succeed are part of the tests.
extern "C" const char *__asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char *__tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

//===----------------------------------------------------------------------===//
// Numbers: sign, exponent and significand by definition
//===----------------------------------------------------------------------===//

struct Precision {
  int bits, significand, leastExponent, greatestExponent; // of the least normal and of the greatest number
};
Precision precisionOf(int element) {
  return element == ALIGNED_ELEMENT_F16    ? Precision{16, 11, -14, 15}
         : element == ALIGNED_ELEMENT_BF16 ? Precision{16, 8, -126, 127}
                                           : Precision{32, 24, -126, 127};
}

double decode(int element, uint32_t pattern) {
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
uint32_t encode(int element, double value) {
  Precision p = precisionOf(element);
  int fieldBits = p.significand - 1;
  uint32_t sign = uint32_t(std::signbit(value)) << (p.bits - 1), infinity = uint32_t(p.greatestExponent - p.leastExponent + 2)
                                                                            << fieldBits;
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

TEST(TestNumbers, DecodeAndEncode) {
  EXPECT_EQ(decode(ALIGNED_ELEMENT_F16, 0x3e00), 1.5);
  EXPECT_EQ(decode(ALIGNED_ELEMENT_F16, 0x8001), -0x1p-24);
  EXPECT_EQ(decode(ALIGNED_ELEMENT_BF16, 0x4049), 3.140625);
  EXPECT_EQ(encode(ALIGNED_ELEMENT_F16, 65519), 0x7bffu);
  EXPECT_EQ(encode(ALIGNED_ELEMENT_F16, 65520), 0x7c00u);
  for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16})
    for (uint32_t pattern = 0; pattern < 0x10000; ++pattern)
      if (double value = decode(element, pattern); !std::isnan(value)) {
        ASSERT_EQ(encode(element, value), pattern);
      }
}

//===----------------------------------------------------------------------===//
// The oracle
//===----------------------------------------------------------------------===//

/// What a test appends: patterns [rows][tokens][head_dim].
struct Values {
  int element;
  int64_t batch, heads, tokens, channels;
  std::vector<uint32_t> patterns;

  Values(int element, int64_t batch, int64_t heads, int64_t tokens, int64_t channels)
      : element(element), batch(batch), heads(heads), tokens(tokens), channels(channels),
        patterns(batch * heads * tokens * channels) {}

  int64_t rows() const { return batch * heads; }
  uint32_t &at(int64_t row, int64_t token, int64_t channel) { return patterns[(row * tokens + token) * channels + channel]; }
  uint32_t at(int64_t row, int64_t token, int64_t channel) const { return patterns[(row * tokens + token) * channels + channel]; }
  double value(int64_t row, int64_t token, int64_t channel) const { return decode(element, at(row, token, channel)); }
};

/// Channels of very different size, zeros, numbers on a coarse grid (ties of every rounding), a channel of zeros, subnormals.
Values randomValues(int element, int64_t batch, int64_t heads, int64_t tokens, int64_t channels) {
  Values values(element, batch, heads, tokens, channels);
  std::mt19937 random(uint32_t(element * 7919 + tokens * 31 + channels));
  std::normal_distribution<double> normal;
  for (int64_t row = 0; row < values.rows(); ++row)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < channels; ++c) {
        double x = normal(random) * std::exp2(int(c % 7) * 3 - 12);
        if (c % 11 == 5)
          x = 0;
        if (c % 5 == 2)
          x = std::nearbyint(x * 64) / 64;
        if (c % 13 == 7)
          x = normal(random) * 0x1p-22;
        if (t % 9 == 4 && c % 3 == 0)
          x *= 100;
        values.at(row, t, c) = encode(element, x);
      }
  return values;
}

int ditherOf(int64_t token, int64_t channel) { return int((token * 2531 + channel % 4 * 1092) % 4096) - 2048; }

/// The whole content of the split blocks of a cache.
struct Oracle {
  std::vector<uint8_t> planes[ALIGNED_MAX_PLANES], exponents;
  std::vector<uint16_t> stored; // as `Values`, of the split tokens
  std::vector<aligned_escape> escapes;
  int64_t split;

  Oracle(const aligned_format &format, const Values &values, int64_t capacity) : split(values.tokens / 64 * 64) {
    bool fixed = format.kind == ALIGNED_FORMAT_FIXED, key = format.role == ALIGNED_ROLE_KEY;
    int64_t rows = values.rows(), d = values.channels;
    int storage = format.element == ALIGNED_ELEMENT_BF16 ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F16;
    for (int p = 0; p < format.planes; ++p)
      planes[p].resize(rows * capacity * d * format.width[p] / 8);
    exponents.resize(!fixed ? 0 : key ? rows * capacity / 64 * d : rows * capacity);
    stored.resize(rows * split * d);
    std::vector<double> original(rows * split * d), kept(rows * split * d), largest(fixed ? exponents.size() : 0, 0x1p-100);
    auto place = [=](int64_t row, int64_t t, int64_t c) { return (row * split + t) * d + c; };
    auto shared = [=](int64_t row, int64_t t, int64_t c) {
      return key ? (row * capacity / 64 + t / 64) * d + c : row * capacity + t;
    };
    auto forEach = [=](auto body) {
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t t = 0; t < split; ++t)
          for (int64_t c = 0; c < d; ++c)
            body(row, t, c, place(row, t, c));
    };
    forEach([&](int64_t row, int64_t t, int64_t c, int64_t i) {
      double x = original[i] = values.value(row, t, c);
      bool escapes = !std::isfinite(x) || (!fixed && !std::isfinite(decode(storage, encode(storage, x))));
      if (escapes)
        this->escapes.push_back({row, t, int32_t(c), values.at(row, t, c), float(x), 0});
      kept[i] = escapes ? 0 : x;
      if (fixed)
        largest[shared(row, t, c)] = std::max(largest[shared(row, t, c)], std::fabs(kept[i]));
    });
    forEach([&](int64_t row, int64_t t, int64_t c, int64_t i) {
      if (fixed) {
        int e = std::ilogb(largest[shared(row, t, c)]) + 1;
        exponents[shared(row, t, c)] = uint8_t(e + 112);
        double scale = std::ldexp(1, e) * 16 / 15, n = std::nearbyint(kept[i] / scale * 0x1p15) + ditherOf(t, key ? c : 0);
        stored[i] = uint16_t(std::min(std::max(n, -32768.0), 32767.0) + 32768);
      } else {
        stored[i] = uint16_t(encode(storage, kept[i]));
      }
      store(format, row, t, c, d, capacity, stored[i]);
    });
  }

  void store(const aligned_format &format, int64_t row, int64_t t, int64_t c, int64_t d, int64_t capacity, uint16_t bits) {
    bool fixed = format.kind == ALIGNED_FORMAT_FIXED, key = format.role == ALIGNED_ROLE_KEY;
    for (int p = 0, shift = 12; p < format.planes; ++p)
      for (int w4 = format.width[p] / 4, layer = 0; layer < w4; ++layer, shift -= 4) {
        int64_t block = row * (capacity / 64) + t / 64, i = t % 64, byte;
        bool high = key ? i >= 32 : c >= d / 2;
        if (!key)
          byte = ((row * capacity + t) * w4 + layer) * (d / 2) + c % (d / 2);
        else if (fixed)
          byte = (((block * (d / 4) + c / 4) * w4 + layer) * 32 + i % 32) * 4 + c % 4;
        else
          byte = ((block * d + c) * w4 + layer) * 32 + i % 32;
        planes[p][byte] |= (bits >> shift & 15) << (high ? 4 : 0);
      }
  }
};

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using CachePtr = std::unique_ptr<aligned_cache, Destroy>;

/// Appends tokens [begin, end) of the values, laid out in one of several ways.
int append(aligned_cache *cache, const Values &values, int64_t begin, int64_t end, int arrangement = 0) {
  int64_t n = end - begin, d = values.channels;
  int64_t strides[4] = {values.heads * n * d, n * d, d, 1}; // contiguous
  if (arrangement == 1) {                                   // [tokens, batch, heads, channels] with gaps
    int64_t other[4] = {values.heads * (d + 3), d + 3, values.rows() * (d + 3), 1};
    std::copy_n(other, 4, strides);
  } else if (arrangement == 2) { // channels outermost
    int64_t other[4] = {values.heads * n, n, 1, values.rows() * n};
    std::copy_n(other, 4, strides);
  }
  size_t bytes = values.element == ALIGNED_ELEMENT_F32 ? 4 : 2;
  std::vector<char> data((values.rows() * n * (d + 3)) * bytes);
  for (int64_t row = 0; row < values.rows(); ++row)
    for (int64_t t = 0; t < n; ++t)
      for (int64_t c = 0; c < d; ++c) {
        uint32_t pattern = values.at(row, begin + t, c); // little endian: the low bytes come first
        int64_t place = row / values.heads * strides[0] + row % values.heads * strides[1] + t * strides[2] + c * strides[3];
        std::memcpy(&data[place * bytes], &pattern, bytes);
      }
  return aligned_cache_append(cache, data.data(), n, strides);
}

uint32_t patternAt(const void *data, int element, int64_t place) {
  if (element == ALIGNED_ELEMENT_F32)
    return static_cast<const uint32_t *>(data)[place];
  return static_cast<const uint16_t *>(data)[place];
}

void expectJoin(const aligned_cache &cache, const Values &values, const Oracle &oracle, int bits) {
  int64_t d = values.channels;
  std::vector<uint32_t> out(values.patterns.size() + 1, 0xabababab);
  ASSERT_EQ(aligned_cache_join(&cache, bits, out.data()), 0);
  int read = 0;
  for (int p = 0; read < bits && cache.plane[p]; ++p)
    read += cache.format.width[p];
  bool fixed = cache.format.kind == ALIGNED_FORMAT_FIXED, key = cache.format.role == ALIGNED_ROLE_KEY;
  int storage = cache.format.element == ALIGNED_ELEMENT_BF16 ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F16;
  std::vector<uint32_t> expected = values.patterns;
  for (int64_t row = 0; row < cache.rows; ++row)
    for (int64_t t = 0; t < oracle.split; ++t)
      for (int64_t c = 0; c < d; ++c) {
        int n = oracle.stored[(row * oracle.split + t) * d + c] >> (16 - read) << (16 - read);
        n += read < 16 ? 1 << (15 - read) : 0;
        double x = decode(storage, n);
        if (fixed) {
          uint8_t e = oracle.exponents[key ? (row * cache.capacity / 64 + t / 64) * d + c : row * cache.capacity + t];
          double scale = std::ldexp(1, e - 112) * 16 / 15;
          x = (n - (read < 16 ? 0.5 : 0) - 32768 - ditherOf(t, key ? c : 0)) * scale / 0x1p15;
          if (double original = values.value(row, t, c); std::isfinite(original)) {
            ASSERT_LE(std::fabs(x - original), scale * std::exp2(-read) * (1 + 1e-12)) << "S1: cut and rounding";
          }
        }
        uint32_t pattern = encode(values.element, x), sign = pattern & (1u << (precisionOf(values.element).bits - 1));
        if (!std::isfinite(decode(values.element, pattern)))
          pattern = sign | (encode(values.element, INFINITY) - 1); // the greatest number
        expected[(row * values.tokens + t) * d + c] = pattern;
      }
  for (const aligned_escape &escape : oracle.escapes)
    expected[(escape.row * values.tokens + escape.token) * d + escape.channel] = escape.bits;
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_EQ(patternAt(out.data(), values.element, i), expected[i]) << bits << " bits, element " << i;
  ASSERT_EQ(out.back(), 0xabababab);
}

/// Checks all that a reader sees, and what is joined when each of `joins` bits are read.
void expectCache(const aligned_cache &cache, const Values &values, std::initializer_list<int> joins = {}) {
  ASSERT_EQ(cache.tokens, values.tokens);
  ASSERT_EQ(cache.rows, values.rows());
  ASSERT_EQ(cache.capacity % 64, 0);
  ASSERT_GE(cache.capacity, values.tokens / 64 * 64);
  Oracle oracle(cache.format, values, cache.capacity);
  int64_t d = values.channels;
  auto expectSplit = [&](const void *actual, const std::vector<uint8_t> &expected, int64_t rowBytes, const char *what) {
    ASSERT_EQ(reinterpret_cast<uintptr_t>(actual) % 64, 0u);
    for (int64_t row = 0; row < cache.rows; ++row) // what is beyond the split tokens is nobody's
      for (int64_t i = 0; cache.capacity && i < rowBytes / cache.capacity * oracle.split +
                                                    rowBytes % cache.capacity * oracle.split / cache.capacity;
           ++i)
        ASSERT_EQ(static_cast<const uint8_t *>(actual)[row * rowBytes + i], expected[row * rowBytes + i])
            << what << ", row " << row << ", byte " << i;
  };
  int resident = 0;
  for (int layers = 0; layers < cache.layers; ++resident)
    layers += cache.format.width[resident] / 4;
  for (int p = 0; p < resident; ++p)
    expectSplit(cache.plane[p], oracle.planes[p], cache.capacity * d * cache.format.width[p] / 8, "plane");
  for (int p = resident; p < ALIGNED_MAX_PLANES; ++p)
    EXPECT_EQ(cache.plane[p], nullptr);
  expectSplit(cache.exponent, oracle.exponents, int64_t(oracle.exponents.size()) / cache.rows, "exponents");

  for (int64_t row = 0; row < cache.rows; ++row)
    for (int64_t c = 0; c < d; ++c) {
      double largest = 0;
      for (int64_t t = 0; t < values.tokens; ++t) {
        double x = std::fabs(values.value(row, t, c));
        largest = std::isfinite(x) ? std::max(largest, x) : largest;
        if (t >= oracle.split) {
          ASSERT_EQ(patternAt(cache.open, values.element, (row * 64 + t % 64) * d + c), values.at(row, t, c))
              << "open token " << t;
        }
      }
      ASSERT_EQ(cache.channel_max[row * d + c], largest) << "row " << row << ", channel " << c;
    }
  bool means = cache.format.kind == ALIGNED_FORMAT_FIXED && cache.format.role == ALIGNED_ROLE_VALUE;
  ASSERT_EQ(cache.channel_mean != nullptr, means);
  for (int64_t row = 0; means && row < cache.rows; ++row)
    for (int64_t c = 0; c < d; ++c) {
      double mean = 0, size = 0;
      for (int64_t t = 0; t < oracle.split; ++t)
        if (double x = values.value(row, t, c); std::isfinite(x)) {
          mean += x / oracle.split;
          size += std::fabs(x) / oracle.split;
        }
      ASSERT_NEAR(cache.channel_mean[row * d + c], mean, 1e-5 * size) << "row " << row << ", channel " << c;
    }

  // Escapes come in any order.
  ASSERT_EQ(cache.escapes, int64_t(oracle.escapes.size()));
  for (const aligned_escape &expected : oracle.escapes) {
    int found = 0;
    for (int64_t i = 0; i < cache.escapes; ++i) {
      const aligned_escape &actual = cache.escape[i];
      if (actual.row != expected.row || actual.token != expected.token || actual.channel != expected.channel)
        continue;
      ++found;
      EXPECT_EQ(actual.bits, expected.bits);
      EXPECT_TRUE(actual.value == expected.value || (std::isnan(actual.value) && std::isnan(expected.value)));
    }
    EXPECT_EQ(found, 1) << "row " << expected.row << ", token " << expected.token << ", channel " << expected.channel;
  }
  for (int bits : joins)
    expectJoin(cache, values, oracle, bits);
}

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
void PrintTo(const Format &format, std::ostream *stream) { *stream << format.name; }

const Format formats[] = {
    {"fixed4444", ALIGNED_FORMAT_FIXED, {4, 4, 4, 4}}, {"fixed88", ALIGNED_FORMAT_FIXED, {8, 8}},
    {"fixed16", ALIGNED_FORMAT_FIXED, {16}},           {"float844", ALIGNED_FORMAT_FLOAT, {8, 4, 4}},
    {"float124", ALIGNED_FORMAT_FLOAT, {12, 4}},       {"float16", ALIGNED_FORMAT_FLOAT, {16}},
};
const aligned_format fixedKey = formats[0].with(ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16);

class EveryFormat : public testing::TestWithParam<std::tuple<Format, int, int>> {
protected:
  aligned_format format() const { return std::get<0>(GetParam()).with(std::get<1>(GetParam()), std::get<2>(GetParam())); }
  int element() const { return std::get<2>(GetParam()); }
};

TEST_P(EveryFormat, AppendInPieces) {
  struct Size {
    int64_t tokens, channels, piece;
  };
  const Size sizes[] = {{0, 64, 1},   {1, 64, 1},     {63, 48, 7},     {64, 16, 64}, {65, 64, 65},
                        {97, 80, 41}, {200, 128, 33}, {130, 256, 130}, {129, 64, 1}};
  for (const Size &size : sizes) {
    SCOPED_TRACE(testing::Message() << size.tokens << " tokens, head_dim " << size.channels << ", by " << size.piece);
    Values values = randomValues(element(), 2, 3, size.tokens, size.channels);
    aligned_format f = format();
    CachePtr cache(aligned_cache_create(&f, 2, 3, size.channels, size.tokens == 200 ? 100 : 0));
    ASSERT_TRUE(cache) << aligned_last_error();
    int64_t begin = 0;
    for (int piece = 0; begin < size.tokens; ++piece) {
      int64_t end = std::min(begin + size.piece + piece % 3, size.tokens);
      ASSERT_EQ(append(cache.get(), values, begin, end, piece % 3), 0) << aligned_last_error();
      begin = end;
    }
    expectCache(*cache, values, {1, 8, 9, 16});
    if (HasFatalFailure())
      return;
  }
}

TEST_P(EveryFormat, Escapes) {
  Values values = randomValues(element(), 1, 2, 140, 32);
  uint32_t infinity = encode(element(), INFINITY), sign = 1u << (precisionOf(element()).bits - 1);
  values.at(0, 3, 5) = infinity;
  values.at(0, 63, 31) = infinity | sign;
  values.at(1, 64, 0) = infinity + 1; // a NaN with a payload
  values.at(1, 127, 16) = infinity | (infinity >> 1) | sign;
  values.at(1, 139, 2) = infinity; // open: not listed
  for (int64_t t = 64; t < 128; ++t)
    values.at(0, t, 9) = infinity; // more than the list has room for at first, and a channel without a finite value
  if (element() == ALIGNED_ELEMENT_F32) {
    values.at(0, 10, 1) = encode(element(), 65519.9); // the half 65504
    values.at(0, 11, 1) = encode(element(), 65520);   // overflows the half
    values.at(1, 12, 1) = encode(element(), -3.4e38);
    values.at(1, 13, 2) = encode(element(), 0x1.8p-25); // a subnormal half, of a tie
    values.at(1, 14, 2) = encode(element(), 0x1p-25);
    values.at(1, 15, 2) = encode(element(), 0x1p-140);
  }
  aligned_format f = format();
  CachePtr cache(aligned_cache_create(&f, 1, 2, 32, 0));
  ASSERT_EQ(append(cache.get(), values, 0, 70), 0);
  ASSERT_EQ(append(cache.get(), values, 70, 140, 2), 0);
  expectCache(*cache, values, {4, 8, 12, 16});
}

TEST_P(EveryFormat, Clone) {
  Values values = randomValues(element(), 1, 3, 200, 16);
  values.at(2, 5, 3) = encode(element(), INFINITY);
  aligned_format f = format();
  CachePtr first(aligned_cache_create(&f, 1, 3, 16, 0));
  ASSERT_EQ(append(first.get(), values, 0, 150), 0);
  CachePtr second(aligned_cache_clone(first.get()));
  ASSERT_TRUE(second);
  Values others = values;
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t t = 150; t < 200; ++t)
      std::swap_ranges(&others.at(row, t, 0), &others.at(row, t, 0) + 8, &others.at(row, t, 8));
  ASSERT_EQ(append(first.get(), values, 150, 200), 0);
  ASSERT_EQ(append(second.get(), others, 150, 200), 0);
  expectCache(*first, values);
  first.reset();
  expectCache(*second, others, {16});
}

TEST_P(EveryFormat, DropPlanes) {
  Values values = randomValues(element(), 1, 2, 200, 32);
  aligned_format f = format();
  for (int kept = 1; kept <= f.planes; ++kept) {
    CachePtr cache(aligned_cache_create(&f, 1, 2, 32, 128));
    ASSERT_EQ(append(cache.get(), values, 0, 100), 0);
    int64_t before = aligned_cache_bytes(cache.get()), bits = 0;
    ASSERT_EQ(aligned_cache_drop_planes(cache.get(), kept), 0);
    for (int p = 0; p < kept; ++p)
      bits += f.width[p];
    EXPECT_EQ(cache->layers * 4, bits);
    EXPECT_EQ(before - aligned_cache_bytes(cache.get()), 2 * 128 * 32 * (16 - bits) / 8);
    EXPECT_NE(aligned_cache_drop_planes(cache.get(), kept + 1), 0);
    EXPECT_EQ(std::string(aligned_last_error()), "expected to keep 1 to " + std::to_string(kept) + " planes, got " + std::to_string(kept + 1));
    EXPECT_NE(aligned_cache_drop_planes(cache.get(), 0), 0);
    CachePtr clone(aligned_cache_clone(cache.get()));
    for (CachePtr *each : {&cache, &clone}) { // blocks that come later, in memory that grows, have no more
      ASSERT_EQ(append(each->get(), values, 100, 200), 0);
      expectCache(**each, values, {4, 12, 16});
    }
  }
}

std::string nameOf(const testing::TestParamInfo<EveryFormat::ParamType> &info) {
  const char *roles[] = {"Key", "Value"}, *elements[] = {"F16", "BF16", "F32"};
  return std::string(std::get<0>(info.param).name) + roles[std::get<1>(info.param)] + elements[std::get<2>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Cache, EveryFormat,
                         testing::Combine(testing::ValuesIn(formats), testing::Values(ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE),
                                          testing::Values(ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32)),
                         nameOf);

/// The worked example of Cache.h.
TEST(Cache, WorkedExample) {
  CachePtr cache(aligned_cache_create(&fixedKey, 1, 1, 16, 0));
  Values values(ALIGNED_ELEMENT_F16, 1, 1, 64, 16);
  values.at(0, 0, 0) = encode(ALIGNED_ELEMENT_F16, 1.5);
  values.at(0, 1, 0) = encode(ALIGNED_ELEMENT_F16, -3);
  ASSERT_EQ(append(cache.get(), values, 0, 64), 0);
  EXPECT_EQ(cache->exponent[0], 2 + 112);
  const int expected[] = {0xA, 5, 0, 0};
  for (int p = 0; p < 4; ++p)
    EXPECT_EQ(static_cast<uint8_t *>(cache->plane[p])[0] & 15, expected[p]);
  std::vector<uint16_t> out(64 * 16);
  ASSERT_EQ(aligned_cache_join(cache.get(), 4, out.data()), 0);
  EXPECT_EQ(out[0], encode(ALIGNED_ELEMENT_F16, 12287.5 / 32768 * 64 / 15));
}

/// Every finite bf16 and f16 in turn, each beside one that sets the exponent: the rounding of S1 is that of float64, ties
/// included.
TEST(Cache, EveryPatternRoundsAsInFloat64) {
  for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16})
    for (int role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE}) {
      Values values(element, 1, 1, 0x10000 / 128, 128);
      for (uint32_t i = 0; i < 0x10000; ++i)
        values.patterns[i] = std::isfinite(decode(element, i)) ? i * 40503 % 0x10000 : 0; // neighbours differ in exponent
      aligned_format f = formats[0].with(role, element);
      CachePtr cache(aligned_cache_create(&f, 1, 1, 128, 0));
      ASSERT_EQ(append(cache.get(), values, 0, values.tokens), 0);
      expectCache(*cache, values);
    }
}

TEST(Cache, GrowthIsGeometric) {
  CachePtr cache(aligned_cache_create(&fixedKey, 1, 1, 16, 1));
  EXPECT_EQ(cache->capacity, 64);
  Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 1, 64 * 64, 16);
  int growths = 0;
  for (int64_t t = 0; t < values.tokens; t += 32) {
    int64_t before = cache->capacity;
    ASSERT_EQ(append(cache.get(), values, t, t + 32), 0);
    growths += cache->capacity != before;
  }
  EXPECT_LE(growths, 12);
  EXPECT_LE(cache->capacity, 64 * 64 * 2);
  expectCache(*cache, values);
}

TEST(Cache, Bytes) {
  CachePtr cache(aligned_cache_create(&fixedKey, 2, 3, 48, 128));
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 6 * (128 * 48 * 2 + 2 * 48 + 64 * 48 * 2 + 48 * 4));
  aligned_format f = formats[3].with(ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F32);
  cache.reset(aligned_cache_create(&f, 1, 1, 64, 0));
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 64 * 64 * 4 + 64 * 4);
  Values values(ALIGNED_ELEMENT_F32, 1, 1, 64, 64);
  values.at(0, 0, 0) = encode(ALIGNED_ELEMENT_F32, INFINITY);
  ASSERT_EQ(append(cache.get(), values, 0, 64), 0);
  EXPECT_GE(aligned_cache_bytes(cache.get()), int64_t(64 * 64 * 4 + 64 * 64 * 2 + sizeof(aligned_escape)));
}

TEST(Cache, Truncate) {
  Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 2, 100, 16);
  CachePtr cache(aligned_cache_create(&fixedKey, 1, 2, 16, 0));
  ASSERT_EQ(append(cache.get(), values, 0, 90), 0);
  EXPECT_LT(aligned_cache_truncate(cache.get(), 63), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to keep 64 to 90 tokens, got 63");
  EXPECT_LT(aligned_cache_truncate(cache.get(), 91), 0);
  EXPECT_LT(aligned_cache_truncate(cache.get(), -1), 0);
  EXPECT_EQ(cache->tokens, 90);
  ASSERT_EQ(aligned_cache_truncate(cache.get(), 64), 0);
  EXPECT_EQ(cache->tokens, 64);
  ASSERT_EQ(append(cache.get(), values, 64, 100), 0);
  expectCache(*cache, values);
}

TEST(Cache, CreateRefuses) {
  auto refused = [](aligned_format format, int64_t batch, int64_t heads, int64_t channels, int64_t capacity,
                    const char *expected) {
    CachePtr cache(aligned_cache_create(&format, batch, heads, channels, capacity));
    EXPECT_FALSE(cache);
    EXPECT_NE(std::string(aligned_last_error()).find(expected), std::string::npos) << aligned_last_error();
  };
  auto changed = [](auto change) {
    aligned_format format = fixedKey;
    change(format);
    return format;
  };
  refused(changed([](auto &f) { f.kind = 2; }), 1, 1, 64, 0, "got 2");
  refused(changed([](auto &f) { f.role = -1; }), 1, 1, 64, 0, "got -1");
  refused(changed([](auto &f) { f.element = 3; }), 1, 1, 64, 0, "got 3");
  refused(changed([](auto &f) { f.planes = 0; }), 1, 1, 64, 0, "got 0");
  refused(changed([](auto &f) { f.planes = 5; }), 1, 1, 64, 0, "got 5");
  refused(changed([](auto &f) { f.planes = 3; }), 1, 1, 64, 0, "plane 3 to have no bits, got 4");
  refused(changed([](auto &f) { f.width[1] = 6; }), 1, 1, 64, 0, "got 6");
  refused(changed([](auto &f) { f.width[1] = 8; }), 1, 1, 64, 0, "sum to 16, got 20");
  refused(fixedKey, 1, 1, 40, 0, "got 40");
  refused(fixedKey, 1, 1, 0, 0, "got 0");
  refused(fixedKey, 1, 1, 272, 0, "got 272");
  refused(fixedKey, 0, 1, 64, 0, "got 0 x 1");
  refused(fixedKey, 1, -1, 64, 0, "got 1 x -1");
  refused(fixedKey, int64_t(1) << 40, int64_t(1) << 40, 64, 0, "at least one batch and head");
  refused(fixedKey, 1, 1, 64, -64, "got -64");
  refused(fixedKey, 1, 1, 64, INT64_MAX, "got 9223372036854775807");
  refused(fixedKey, 1, 64, 64, INT64_MAX / 128, "overflow");
  refused(fixedKey, 1, 1, 64, int64_t(1) << 50, "out of memory");
  refused(fixedKey, int64_t(1) << 40, 1, 64, 0, "out of memory");
  EXPECT_EQ(aligned_cache_create(nullptr, 1, 1, 64, 0), nullptr);
}

TEST(Cache, FailedAppendChangesNothing) {
  Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 2, 100, 16);
  CachePtr cache(aligned_cache_create(&fixedKey, 1, 2, 16, 0));
  ASSERT_EQ(append(cache.get(), values, 0, 100), 0);
  aligned_cache before = *cache;
  int64_t strides[4] = {};
  uint16_t data[16] = {0x7bff};
  EXPECT_LT(aligned_cache_append(cache.get(), data, -1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 0 or more tokens to append, got -1");
  EXPECT_LT(aligned_cache_append(cache.get(), data, INT64_MAX, strides), 0);
  EXPECT_LT(aligned_cache_append(cache.get(), nullptr, 1, strides), 0);
  EXPECT_LT(aligned_cache_append(cache.get(), data, 1, nullptr), 0);
  EXPECT_LT(aligned_cache_append(cache.get(), data, int64_t(1) << 50, strides), 0); // strides of 0 make a long array of any token
  EXPECT_NE(std::string(aligned_last_error()).find("out of memory"), std::string::npos);
  EXPECT_EQ(aligned_cache_append(cache.get(), nullptr, 0, nullptr), 0);
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  expectCache(*cache, values);
}

TEST(Cache, JoinRefuses) {
  CachePtr cache(aligned_cache_create(&fixedKey, 1, 1, 16, 0));
  for (int bits : {-1, 0, 17}) {
    EXPECT_LT(aligned_cache_join(cache.get(), bits, nullptr), 0);
    EXPECT_EQ(aligned_last_error(), "expected 1 to 16 bits to read, got " + std::to_string(bits));
  }
}

TEST(Cache, ErrorsOfAnyLength) {
  std::string message(10000, 'x');
  aligned_set_last_error(message.c_str());
  EXPECT_EQ(aligned_last_error(), message);
}

} // namespace
