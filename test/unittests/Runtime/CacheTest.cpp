// Caches against what Cache.h, Scale.h and Layout.h say, stated anew in float64, one value after another; and against other caches that should hold
// the same. K is rotated in floats, so that a value near a tie of rounding may fall to either side of it.

#include "Caches.h"

#include "aligned/Runtime/Error.h"

#include <functional>
#include <set>

// Allocations that cannot succeed are part of the tests.
extern "C" const char *__asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char *__tsan_default_options() { return "allocator_may_return_null=1"; }

using namespace caches;

namespace {

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

using Row = std::vector<double>;

/// x H, H = [[H', H'], [H', -H']].
void hadamard(double *x, size_t size) {
  for (size_t i = 0, half = size / 2; i < half; ++i) {
    const double sum = x[i] + x[half + i];
    x[half + i] = x[i] - x[half + i];
    x[i] = sum;
  }
  if (size > 2) {
    hadamard(x, size / 2);
    hadamard(x + size / 2, size / 2);
  }
}

double signOf(uint64_t channel) {
  uint64_t hash = (channel + 1) * 0x9E3779B9 % (uint64_t(1) << 32);
  hash = (hash ^ hash / 32768) * 0x85EBCA6B % (uint64_t(1) << 32);
  return hash >= uint64_t(1) << 31 ? -1 : 1;
}

/// Hadamard blocks, the largest first. Each is its own inverse.
Row blocks(Row x) {
  size_t size = 256;
  for (size_t first = 0; first < x.size(); first += size) {
    while (size > x.size() - first)
      size /= 2;
    hadamard(&x[first], size);
    for (size_t c = first; c < first + size; ++c)
      x[c] /= std::sqrt(double(size));
  }
  return x;
}
Row rotated(Row x) {
  for (size_t c = 0; c < x.size(); ++c)
    x[c] *= signOf(c);
  return blocks(x);
}
Row rotatedBack(const Row &x) {
  Row y = blocks(x);
  for (size_t c = 0; c < x.size(); ++c)
    y[c] *= signOf(c);
  return y;
}

double largestOf(const Row &x) {
  double largest = 0;
  for (double value : x)
    largest = std::isfinite(value) ? std::max(largest, std::fabs(value)) : INFINITY;
  return largest;
}
bool isFinite(const Row &x) {
  return std::all_of(x.begin(), x.end(), [](double value) { return std::isfinite(value); });
}

int ditherOf(const aligned_format &format, int64_t token) { return int(token * (isKey(format) ? 3091 : 2333) % 4096) - 2048; }
double scaleOf(int code, int64_t bias) { return std::exp2((code - double(bias)) / 8); }

/// 8 log2 of the least scale that holds a value, of which the code is the ceiling.
double eighths(double largest) { return 8 * std::log2(largest * 16 / 15); }
/// 0 where there is none.
int codeFor(double eighths, int64_t bias) {
  const double code = std::max<double>(1, std::ceil(eighths - 1e-9) + double(bias));
  return code > 255 ? 0 : int(code);
}

int storageOf(const aligned_format &format) { return format.element == ALIGNED_ELEMENT_BF16 ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F16; }

/// The middle of what a pattern may be of which the top bits are known.
double middle(int bits) { return bits < 16 ? std::exp2(15 - bits) : 0; }

void expectScales(const Contents &contents) {
  std::vector<int> codes;
  std::vector<int64_t> expected(4 + 256);
  for (int code : contents.codes)
    if (code) {
      codes.push_back(code);
      ++expected[4 + code];
    }
  std::sort(codes.begin(), codes.end());
  if (!codes.empty()) {
    expected[0] = codes.back();
    expected[1] = codes[(codes.size() + 1) / 2 - 1];
    expected[2] = std::lower_bound(codes.begin(), codes.end(), expected[1]) - codes.begin();
    expected[3] = codes.size();
  }
  EXPECT_EQ(contents.scales, expected);
}

/// Checks a row of a cache of fixed format that holds the first tokens of a row of values.
void expectFixed(const aligned_cache &cache, int64_t row, const Values &values, const Contents &contents) {
  const aligned_format &format = cache.format;
  const int64_t d = cache.head_dim, step = 1 << (16 - residentBits(cache)); // of n
  std::vector<int64_t> sum(d);
  Row maxima(d);
  std::set<int64_t> aside;
  for (int64_t t = 0; t < contents.tokens; ++t) {
    const Row raw = values.token(row, t);
    Row x = raw;
    for (int64_t c = 0; c < d && isKey(format); ++c)
      x[c] = float(x[c] - contents.offset[c]);
    const Row less = x;
    if (isKey(format))
      x = rotated(x);
    // What rotation and offset in floats may be off by, relative to the largest value.
    const double largest = largestOf(x), error = isKey(format) && largest ? 0x1p-22 * (largestOf(less) + largestOf(raw)) / largest : 0;
    const double reach = largest ? eighths(largest) : -9999;
    const int code = contents.codes[t];
    ASSERT_TRUE(code == codeFor(reach, cache.bias) || code == codeFor(reach - 16 * error, cache.bias) ||
                code == codeFor(reach + 16 * error, cache.bias))
        << "token " << t << ": code " << code << " for " << largest;
    if (code == 0) {
      aside.insert(t);
      ASSERT_EQ(contents.aside.count(t), 1u) << "token " << t;
      for (int64_t c = 0; c < d; ++c) {
        float value;
        std::memcpy(&value, &contents.aside.at(t)[c], 4);
        ASSERT_TRUE(double(value) == less[c] || (std::isnan(value) && std::isnan(less[c]))) << "token " << t << ", channel " << c;
        ASSERT_EQ(contents.patterns[t * d + c], 0) << "token " << t << ", channel " << c;
      }
      continue;
    }
    const double scale = scaleOf(code, cache.bias);
    const int dither = ditherOf(format, t);
    for (int64_t c = 0; c < d; ++c) {
      const int pattern = contents.patterns[t * d + c], n = isKey(format) ? pattern - 0x8000 : int16_t(pattern);
      const double exact = x[c] / scale * 32768 + dither, off = 0x1p-7 + (error < 1 ? error * 32768 : 0);
      if (!(exact >= n - 0.5 - off && exact <= n + step - 1 + 0.5 + off))
        FAIL() << "token " << t << ", channel " << c << ": expected " << exact << ", got " << n << " to " << n + step - 1;
      sum[c] += n - dither;
      maxima[c] = std::max(maxima[c], std::fabs(raw[c]));
    }
  }
  EXPECT_EQ(contents.aside.size(), aside.size());
  expectScales(contents);
  if (!isKey(format))
    EXPECT_EQ(contents.sum, sum);
  for (int64_t c = 0; c < d; ++c)
    ASSERT_EQ(contents.maxima[c], maxima[c]) << "channel " << c;
}

void expectFloat(const aligned_cache &cache, int64_t row, const Values &values, const Contents &contents) {
  const int64_t d = cache.head_dim;
  const int storage = storageOf(cache.format), resident = 0xffff << (16 - residentBits(cache)) & 0xffff;
  Row maxima(d);
  size_t aside = 0;
  for (int64_t t = 0; t < contents.tokens; ++t) {
    const Row x = values.token(row, t);
    std::vector<uint32_t> patterns;
    bool fits = isFinite(x);
    for (double value : x) {
      patterns.push_back(fits ? encode(storage, value) : 0);
      fits &= std::isfinite(decode(storage, patterns.back()));
    }
    aside += !fits;
    ASSERT_EQ(contents.aside.count(t), !fits) << "token " << t;
    for (int64_t c = 0; c < d; ++c) {
      if (contents.patterns[t * d + c] != (fits ? patterns[c] & resident : 0))
        FAIL() << "token " << t << ", channel " << c << ": expected " << patterns[c] << ", got " << contents.patterns[t * d + c];
      maxima[c] = fits ? std::max(maxima[c], std::fabs(x[c])) : maxima[c];
      if (!fits) {
        float value;
        std::memcpy(&value, &contents.aside.at(t)[c], 4);
        ASSERT_TRUE(double(value) == x[c] || (std::isnan(value) && std::isnan(x[c])));
      }
    }
  }
  EXPECT_EQ(contents.aside.size(), aside);
  for (int64_t c = 0; c < d; ++c)
    ASSERT_EQ(contents.maxima[c], maxima[c]) << "channel " << c;
}

/// Checks what `bits` bits of all tokens unpack to.
void expectUnpacked(const aligned_cache &cache, const Values &values, int bits) {
  const aligned_format &format = cache.format;
  const Precision precision = precisionOf(format.element);
  const int64_t d = cache.head_dim;
  std::vector<uint32_t> out(cache.rows * cache.tokens * d + 1, 0xabababab);
  ASSERT_EQ(aligned_cache_unpack(&cache, bits, out.data()), 0) << aligned_last_error();
  ASSERT_EQ(out.back(), 0xabababab);
  int read = 0;
  for (int p = 0; read < bits && p < cache.planes; ++p)
    read += format.width[p];
  const double greatest = decode(format.element, encode(format.element, INFINITY) - 1);
  for (int64_t row = 0; row < cache.rows; ++row) {
    const Contents contents = contentsOf(cache, row);
    for (int64_t t = 0; t < cache.tokens; ++t) {
      Row actual;
      for (int64_t c = 0; c < d; ++c)
        actual.push_back(decode(format.element, patternAt(out.data(), format.element, (row * cache.tokens + t) * d + c)));
      if (t >= contents.tokens || contents.aside.count(t)) {
        for (int64_t c = 0; c < d; ++c)
          ASSERT_EQ(patternAt(out.data(), format.element, (row * cache.tokens + t) * d + c), t < contents.tokens ? values.at(row, t, c) : 0u)
              << "row " << row << ", token " << t << ", channel " << c;
        continue;
      }
      Row expected;
      double scale = 0;
      for (int64_t c = 0; c < d; ++c) {
        const int pattern = contents.patterns[t * d + c] >> (16 - read) << (16 - read);
        if (isFixed(format)) {
          scale = scaleOf(contents.codes[t], cache.bias);
          const int n = isKey(format) ? pattern - 0x8000 : int16_t(pattern);
          expected.push_back((n + middle(read) - ditherOf(format, t)) * scale / 32768);
        } else {
          expected.push_back(decode(storageOf(format), uint32_t(pattern + middle(read))));
        }
      }
      // The bound of S4, of which rounding takes half of the last place; of K in the rotated domain.
      const Row raw = values.token(row, t);
      Row exact = raw;
      for (int64_t c = 0; c < d && isFixedKey(format); ++c)
        exact[c] -= contents.offset[c];
      const double left = 0x1p-20 * (largestOf(exact) + largestOf(raw));
      if (isFixedKey(format))
        exact = rotated(exact);
      const double bound = scale * (std::exp2(-read) + 0x1p-16 + 0x1p-22) + left;
      for (int64_t c = 0; c < d && isFixed(format); ++c)
        if (!(std::fabs(expected[c] - exact[c]) <= bound))
          FAIL() << "row " << row << ", token " << t << ", channel " << c << ", " << read << " bits: " << expected[c] << " for " << exact[c];
      if (isFixedKey(format)) {
        expected = rotatedBack(expected);
        for (int64_t c = 0; c < d; ++c)
          expected[c] += contents.offset[c];
      }
      for (int64_t c = 0; c < d; ++c) {
        const double value = std::clamp(expected[c], -greatest, greatest);
        const double rounding = std::ldexp(1, std::max(value ? std::ilogb(value) : -9999, precision.leastExponent) - precision.significand + 1);
        if (!(std::fabs(actual[c] - value) <= rounding * 0.51 + scale * 1e-9))
          FAIL() << "row " << row << ", token " << t << ", channel " << c << ", " << read << " bits: expected " << value << ", got " << actual[c];
      }
    }
  }
}

/// Checks all that a reader sees, and what is unpacked when each of `bits` bits are read.
void expectCache(const aligned_cache &cache, const Values &values, std::initializer_list<int> bits = {}) {
  ASSERT_EQ(cache.tokens, values.tokens);
  ASSERT_EQ(cache.rows, values.rows());
  ASSERT_EQ(cache.capacity % 64, 0);
  ASSERT_GE(cache.capacity, values.tokens);
  for (int p = 0; p < ALIGNED_MAX_PLANES; ++p) {
    ASSERT_EQ(cache.plane[p] != nullptr, p < cache.planes && cache.capacity) << "plane " << p;
    ASSERT_EQ(reinterpret_cast<uintptr_t>(cache.plane[p]) % 64, 0u) << "plane " << p;
  }
  ASSERT_EQ(cache.scales != nullptr, isFixed(cache.format));
  ASSERT_EQ(cache.code != nullptr, isFixed(cache.format) && cache.capacity);
  ASSERT_EQ(cache.offset != nullptr, isFixedKey(cache.format));
  ASSERT_EQ(cache.sum != nullptr, isFixed(cache.format) && !isKey(cache.format));
  for (int64_t row = 0; row < cache.rows; ++row) {
    SCOPED_TRACE("row " + std::to_string(row));
    const Contents contents = contentsOf(cache, row);
    (isFixed(cache.format) ? expectFixed : expectFloat)(cache, row, values, contents);
    if (testing::Test::HasFatalFailure())
      return;
  }
  for (int b : bits)
    expectUnpacked(cache, values, b);
}

//===----------------------------------------------------------------------===//
// Every format
//===----------------------------------------------------------------------===//

class EveryFormat : public testing::TestWithParam<EveryStorage> {
protected:
  aligned_format format() const { return formatOf(GetParam()); }
  int element() const { return std::get<2>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Cache, EveryFormat, everyStorage(), nameOf);

TEST_P(EveryFormat, AppendInPieces) {
  std::mt19937 random(3);
  int combination = 0;
  for (int64_t channels : {16, 48, 64, 80, 96, 128, 256})
    for (int64_t tokens : {0, 1, 63, 64, 65, 130}) {
      if (combination++ % 5 && element() != ALIGNED_ELEMENT_F16) // the others differ from it in how they are loaded
        continue;
      SCOPED_TRACE(testing::Message() << tokens << " tokens, head_dim " << channels);
      const Values values = randomValues(element(), 1, 2, tokens, channels);
      CachePtr pieces = create(format(), 1, 2, channels, tokens == 65 ? 100 : 0), whole = create(format(), 1, 2, channels);
      setOffset(pieces);
      setOffset(whole);
      if (element() != ALIGNED_ELEMENT_F16 && tokens) { // whose bias the first append settles: let it be the same
        ASSERT_EQ(append(pieces, values, 0, tokens), 0) << aligned_last_error();
        ASSERT_EQ(aligned_cache_truncate(pieces.get(), 1), 0);
      }
      for (int64_t begin = pieces->tokens, piece = 0; begin < tokens; ++piece) {
        const int64_t end = std::min<int64_t>(begin + 1 + random() % (random() % 3 ? 9 : 90), tokens);
        ASSERT_EQ(append(pieces, values, begin, end, int(piece % 3)), 0) << aligned_last_error();
        begin = end;
      }
      ASSERT_EQ(append(whole, values, 0, tokens), 0) << aligned_last_error();
      expectCache(*whole, values);
      if (tokens == 65)
        for (int bits : {1, 5, 8, 9, 16})
          expectUnpacked(*whole, values, bits);
      expectSameCaches(*pieces, *whole);
      if (HasFailure())
        return;
    }
}

/// NaN, infinities, and what planes can't hold.
void makeAsides(Values &values, const aligned_format &format) {
  const int element = values.element;
  const uint32_t infinity = encode(element, INFINITY), sign = 1u << (precisionOf(element).bits - 1);
  values.at(0, 3, 5) = infinity;
  values.at(0, 63, 31) = infinity | sign;
  values.at(1, 64, 0) = infinity + 1; // a NaN with a payload
  values.at(1, 127, 16) = infinity | (infinity >> 1) | sign;
  values.at(1, 139, 2) = infinity;
  for (int64_t t = 70; t < 100; ++t)
    values.at(0, t, 9) = infinity;
  if (element == ALIGNED_ELEMENT_F32) {
    values.set(0, 10, 1, 65519.9);   // the half 65504
    values.set(0, 11, 1, 65520);     // overflows the half
    values.set(1, 12, 1, -3.4e38);   // beyond the largest scale, where the others are small
    values.set(1, 13, 2, 0x1.8p-25); // a subnormal half, of a tie
    values.set(1, 14, 2, 0x1p-25);
    values.set(1, 15, 2, 0x1p-140);
  }
  if (element == ALIGNED_ELEMENT_BF16)
    values.set(1, 12, 1, 1e37);
}

TEST_P(EveryFormat, KeptAside) {
  Values values = randomValues(element(), 1, 2, 140, 32);
  const aligned_format f = format();
  makeAsides(values, f);
  CachePtr cache = create(f, 1, 2, 32), few = create(f, 1, 2, 32);
  setOffset(cache);
  setOffset(few);
  ASSERT_EQ(append(cache, values, 0, 3), 0); // settles the bias
  ASSERT_EQ(append(few, values, 0, 3), 0);
  ASSERT_EQ(append(cache, values, 3, 70), 0);
  ASSERT_EQ(append(cache, values, 70, 140, 2), 0);
  for (int64_t t = 3; t < 140; t += 3)
    ASSERT_EQ(append(few, values, t, std::min<int64_t>(t + 3, 140), 1), 0);
  const bool beyond = isFixed(f) ? element() != ALIGNED_ELEMENT_F16 : element() == ALIGNED_ELEMENT_F32;
  EXPECT_EQ(cache->asides, 35 + beyond + (beyond && !isFixed(f)));
  expectCache(*cache, values, {4, 8, 12, 16});
  expectSameCaches(*few, *cache);

  // They go with their tokens, and come again.
  CachePtr copy = fork(cache);
  ASSERT_EQ(aligned_cache_truncate(copy.get(), 80), 0);
  EXPECT_EQ(copy->asides, 2 + 10 + 1 + beyond + (beyond && !isFixed(f)));
  ASSERT_EQ(append(copy, values, 80, 140), 0);
  expectSameCaches(*copy, *cache);
  expectCache(*copy, values, {16});
}

TEST_P(EveryFormat, TruncateUndoesAppend) {
  std::mt19937 random(11);
  const int64_t channels = 48, most = 200;
  Values values = randomValues(element(), 1, 2, most, channels);
  for (int64_t t = 7; t < most; t += 19)
    values.at(t % 2, t, t % channels) = encode(element(), INFINITY);
  CachePtr cache = create(format(), 1, 2, channels);
  setOffset(cache);
  ASSERT_EQ(append(cache, values, 0, most), 0);
  ASSERT_EQ(aligned_cache_truncate(cache.get(), 1), 0); // one bias for all
  for (int round = 0; round < 12; ++round) {
    const int64_t length = cache->tokens;
    CachePtr copy = fork(cache);
    const int64_t longer = length + random() % (most - length + 1), left = random() % 4 ? length : 1 + random() % length;
    for (int64_t t = length; t < longer;) {
      const int64_t end = std::min<int64_t>(t + 1 + random() % 60, longer);
      ASSERT_EQ(append(cache, values, t, end), 0);
      t = end;
    }
    for (int64_t t = longer; t > left;) { // in one or several steps
      t = std::max<int64_t>(left, t - 1 - int64_t(random() % 80));
      ASSERT_EQ(aligned_cache_truncate(cache.get(), t), 0) << aligned_last_error();
    }
    CachePtr other = fork(copy);
    ASSERT_EQ(aligned_cache_truncate(other.get(), left), 0);
    expectSameCaches(*cache, *other, false);
    const int64_t next = left + random() % (most - left + 1); // and what comes later is the same
    ASSERT_EQ(append(cache, values, left, next), 0);
    ASSERT_EQ(append(other, values, left, next), 0);
    expectSameCaches(*cache, *other, false);
    if (HasFailure())
      return;
  }
}

/// Puts tokens [begin, end) of `values` in the place of those that are there.
int overwrite(const CachePtr &cache, const Values &values, int64_t begin, int64_t end, int arrangement = 0) {
  Block block(values, begin, end, arrangement);
  return aligned_cache_overwrite(cache.get(), begin, block.data.data(), end - begin, block.strides);
}

TEST_P(EveryFormat, OverwritingIsAsIfTheOldHadNeverBeen) {
  std::mt19937 random(12);
  const int64_t channels = 48, tokens = 140;
  Values first = randomValues(element(), 1, 2, tokens, channels), values = randomValues(element(), 1, 2, tokens, channels, 7);
  for (Values *some : {&first, &values})
    for (int64_t t = some == &first ? 1 : 5; t < tokens; t += 13) // kept aside, here and there
      some->at(t % 2, t, t % channels) = encode(element(), INFINITY);
  for (int64_t dense : {0, 200}) {
    CachePtr cache = create(format(), 1, 2, channels);
    setOffset(cache);
    ASSERT_EQ(aligned_cache_keep_dense(cache.get(), isFixed(format()) ? dense : 0), 0);
    ASSERT_EQ(append(cache, first, 0, 1), 0); // settles the bias
    ASSERT_EQ(append(cache, first, 1, tokens), 0);
    Values now = first;
    for (int round = 0; round < 12; ++round) {
      const int64_t begin = random() % tokens, end = std::min<int64_t>(tokens, begin + 1 + random() % (round % 2 ? 80 : 3));
      ASSERT_EQ(overwrite(cache, values, begin, end, round % 3), 0) << aligned_last_error();
      for (int64_t row = 0; row < 2; ++row)
        for (int64_t t = begin; t < end; ++t)
          for (int64_t c = 0; c < channels; ++c)
            now.at(row, t, c) = values.at(row, t, c);
      CachePtr fresh = create(format(), 1, 2, channels);
      setOffset(fresh);
      ASSERT_EQ(append(fresh, first, 0, 1), 0);
      ASSERT_EQ(append(fresh, now, 1, tokens), 0);
      ASSERT_EQ(overwrite(fresh, now, 0, 1), 0);
      expectSameCaches(*cache, *fresh, false);
      if (HasFailure())
        return;
    }
  }
}

TEST(Cache, OverwriteRefuses) {
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 2, 1, 90, 16);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 2, 1, 16);
  ASSERT_EQ(append(cache, values, 0, 90), 0);
  const aligned_cache before = *cache;
  const int64_t strides[4] = {16, 16, 16, 1};
  std::vector<uint16_t> data(16 * 91);
  EXPECT_LT(aligned_cache_overwrite(cache.get(), 90, data.data(), 1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to overwrite some of 90 tokens, got 1 from token 90 on");
  for (auto [position, count] : {std::pair<int64_t, int64_t>(-1, 1), {0, 91}, {0, -1}, {INT64_MAX, 1}, {1, INT64_MAX}})
    EXPECT_LT(aligned_cache_overwrite(cache.get(), position, data.data(), count, strides), 0);
  EXPECT_LT(aligned_cache_overwrite(cache.get(), 0, nullptr, 1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 1 tokens to overwrite others, got null data");
  EXPECT_LT(aligned_cache_overwrite(cache.get(), 0, data.data(), 1, nullptr), 0);
  EXPECT_EQ(aligned_cache_overwrite(cache.get(), 90, nullptr, 0, nullptr), 0);
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  expectCache(*cache, values);
  ASSERT_EQ(aligned_cache_truncate_entry(cache.get(), 1, 40), 0); // the shortest entry counts
  EXPECT_LT(aligned_cache_overwrite(cache.get(), 40, data.data(), 1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to overwrite some of 40 tokens, got 1 from token 40 on");
}

TEST_P(EveryFormat, Fork) {
  Values values = randomValues(element(), 1, 3, 200, 16);
  values.at(2, 5, 3) = encode(element(), INFINITY);
  CachePtr first = create(format(), 1, 3, 16);
  ASSERT_EQ(append(first, values, 0, 150), 0);
  CachePtr second = fork(first);
  expectSameCaches(*second, *first);
  const std::vector<Contents> before = snapshot(*first);
  Values others = values;
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t t = 140; t < 200; ++t)
      std::swap_ranges(&others.at(row, t, 0), &others.at(row, t, 0) + 8, &others.at(row, t, 8));
  ASSERT_EQ(aligned_cache_truncate(second.get(), 140), 0);
  ASSERT_EQ(append(second, others, 140, 200), 0);
  EXPECT_TRUE(snapshot(*first) == before);
  ASSERT_EQ(append(first, values, 150, 200), 0);
  expectCache(*first, values);
  first.reset();
  for (int64_t row = 0; row < 3; ++row) // maxima know the tokens that were forgotten
    for (int64_t c = 0; c < 16; ++c)
      for (int64_t t = 140; t < 150; ++t)
        EXPECT_GE(second->channel_max[row * 16 + c], std::fabs(decode(element(), values.at(row, t, c))));
  std::fill_n(second->channel_max, 3 * 16, 0.0f);
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t t = 0; t < 200; ++t)
      for (int64_t c = 0; c < 16 && isFinite(others.token(row, t)); ++c)
        second->channel_max[row * 16 + c] = std::max(second->channel_max[row * 16 + c], std::fabs(float(decode(element(), others.at(row, t, c)))));
  expectCache(*second, others, {16});
}

/// Expects a dense copy of all tokens, or none.
void expectDense(const aligned_cache &cache, const Values &values, bool isThere) {
  ASSERT_EQ(bool(cache.dense), isThere) << cache.tokens << " tokens";
  if (!isThere)
    return;
  ASSERT_GE(cache.dense_capacity, cache.tokens);
  for (int64_t row = 0; row < cache.rows; ++row)
    for (int64_t t = 0; t < cache.tokens; ++t)
      for (int64_t c = 0; c < cache.head_dim; ++c)
        ASSERT_EQ(patternAt(cache.dense, values.element, (row * cache.dense_capacity + t) * cache.head_dim + c), values.at(row, t, c))
            << "row " << row << " token " << t << " channel " << c;
}

TEST_P(EveryFormat, DenseCopyOfShortCaches) {
  std::mt19937 random(5);
  const int64_t limit = 150, most = 200;
  Values values = randomValues(element(), 2, 2, most, 48);
  for (int64_t t = 7; t < most; t += 19)
    values.at(t % 4, t, t % 48) = encode(element(), t % 2 ? INFINITY : NAN);
  for (int64_t capacity : {0, 64, 1000}) {
    CachePtr cache = create(format(), 2, 2, 48, capacity), plain = create(format(), 2, 2, 48, capacity);
    ASSERT_EQ(aligned_cache_keep_dense(cache.get(), limit), 0) << aligned_last_error();
    bool isThere = true;
    for (int round = 0; round < 25; ++round) {
      int64_t length = cache->tokens;
      for (const int64_t longer = std::min<int64_t>(most, length + random() % 70); length < longer;) {
        const int64_t end = std::min<int64_t>(length + 1 + random() % 40, longer);
        ASSERT_EQ(append(cache, values, length, end, int(random() % 3)), 0);
        ASSERT_EQ(append(plain, values, length, end), 0);
        isThere = (isThere || length == 0) && end <= limit;
        length = end;
      }
      CachePtr copy = fork(cache);
      expectDense(*cache, values, isThere && length);
      expectDense(*copy, values, isThere && length);
      expectSameCaches(*cache, *plain);
      if (HasFailure())
        return;
      if (random() % 2)
        cache = std::move(copy);
      const int64_t left = random() % 4 ? random() % (length + 1) : 0;
      ASSERT_EQ(aligned_cache_truncate(cache.get(), left), 0);
      ASSERT_EQ(aligned_cache_truncate(plain.get(), left), 0);
      isThere &= bool(cache->dense) || !cache->tokens;
    }
  }
}

TEST_P(EveryFormat, DenseCopyGoes) {
  Values values = randomValues(element(), 2, 1, 100, 16);
  const int64_t counts[] = {1, 2};
  Block block(values, 50, 52);
  using Call = std::function<int(aligned_cache *)>;
  for (const Call &call : {Call([&](aligned_cache *cache) { return aligned_cache_append_ragged(cache, block.data.data(), counts, block.strides); }),
                           Call([](aligned_cache *cache) { return aligned_cache_truncate_entry(cache, 1, 30); }),
                           Call([](aligned_cache *cache) { return aligned_cache_release(cache, 0); }),
                           Call([](aligned_cache *cache) { return aligned_cache_drop_planes(cache, 1); }),
                           Call([](aligned_cache *cache) { return aligned_cache_keep_dense(cache, 0); })}) {
    CachePtr cache = create(format(), 2, 1, 16), plain = create(format(), 2, 1, 16);
    ASSERT_EQ(aligned_cache_keep_dense(cache.get(), 100), 0);
    ASSERT_EQ(append(cache, values, 0, 50), 0);
    ASSERT_EQ(append(plain, values, 0, 50), 0);
    expectDense(*cache, values, true);
    ASSERT_EQ(call(cache.get()), 0) << aligned_last_error();
    ASSERT_EQ(call(plain.get()), 0);
    expectDense(*cache, values, false);
    EXPECT_EQ(aligned_cache_bytes(cache.get()), aligned_cache_bytes(plain.get()));
    ASSERT_EQ(append(cache, values, 60, 61), 0);
    expectDense(*cache, values, false);
  }
}

TEST(Cache, KeepDenseRefuses) {
  const aligned_format format = usual(ALIGNED_ROLE_KEY);
  CachePtr cache = create(format, 1, 1, 16), paged(aligned_cache_create_paged(&format, 1, 1, 16, 2, 64));
  EXPECT_LT(aligned_cache_keep_dense(cache.get(), -1), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to keep a dense copy of 0 or more tokens, got -1");
  EXPECT_LT(aligned_cache_keep_dense(paged.get(), 64), 0);
  EXPECT_STREQ(aligned_last_error(), "expected a cache without pages, got one with them");
  EXPECT_EQ(aligned_cache_keep_dense(paged.get(), 0), 0);
  ASSERT_EQ(append(cache, randomValues(ALIGNED_ELEMENT_F16, 1, 1, 3, 16), 0, 3), 0);
  EXPECT_LT(aligned_cache_keep_dense(cache.get(), 64), 0);
  EXPECT_STREQ(aligned_last_error(), "expected an empty cache to keep a dense copy of more tokens than 0, got one of 3 tokens");
  EXPECT_FALSE(cache->dense);
}

TEST(Cache, KeepDenseOfFewer) {
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 1, 60, 16);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 1, 16);
  ASSERT_EQ(aligned_cache_keep_dense(cache.get(), 100), 0);
  ASSERT_EQ(append(cache, values, 0, 30), 0);
  ASSERT_EQ(aligned_cache_keep_dense(cache.get(), 40), 0);
  expectDense(*cache, values, true);
  EXPECT_LT(aligned_cache_keep_dense(cache.get(), 41), 0);
  EXPECT_STREQ(aligned_last_error(), "expected an empty cache to keep a dense copy of more tokens than 40, got one of 30 tokens");
  ASSERT_EQ(append(cache, values, 30, 40), 0);
  expectDense(*cache, values, true);
  ASSERT_EQ(aligned_cache_keep_dense(cache.get(), 39), 0);
  expectDense(*cache, values, false);
}

TEST_P(EveryFormat, DropPlanes) {
  Values values = randomValues(element(), 1, 2, 200, 64); // a head_dim with loops of its own
  values.at(1, 20, 3) = encode(element(), INFINITY);
  const aligned_format f = format();
  for (int kept = 1; kept <= f.planes; ++kept) {
    CachePtr cache = create(f, 1, 2, 64, 128);
    ASSERT_EQ(append(cache, values, 0, 100), 0);
    const int64_t before = aligned_cache_bytes(cache.get());
    ASSERT_EQ(aligned_cache_drop_planes(cache.get(), kept), 0);
    EXPECT_EQ(cache->planes, kept);
    EXPECT_EQ(before - aligned_cache_bytes(cache.get()), 2 * 128 * 64 * (16 - residentBits(*cache)) / 8);
    EXPECT_LT(aligned_cache_drop_planes(cache.get(), kept + 1), 0);
    EXPECT_EQ(std::string(aligned_last_error()), "expected to keep 1 to " + std::to_string(kept) + " planes, got " + std::to_string(kept + 1));
    EXPECT_LT(aligned_cache_drop_planes(cache.get(), 0), 0);
    CachePtr copy = fork(cache);
    const std::vector<Contents> summary = snapshot(*cache);
    for (const CachePtr *each : {&cache, &copy}) { // tokens that come later, in memory that grows, have no more
      ASSERT_EQ(append(*each, values, 100, 200), 0);
      expectCache(**each, values, {4, 16});
    }
    // Truncation takes the resident bits out of the sums.
    ASSERT_EQ(aligned_cache_truncate(cache.get(), 100), 0);
    for (int64_t row = 0; row < 2; ++row)
      expectSame(contentsOf(*cache, row), summary[row], false);
  }
}

//===----------------------------------------------------------------------===//
// Layout and scales
//===----------------------------------------------------------------------===//

/// The worked example of Layout.h: where n + 2^15 = 0xA5C3 of token 70, channel 13 lies.
TEST(Cache, WorkedExampleOfLayout) {
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 1, 64);
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 1, 100, 64);
  ASSERT_EQ(append(cache, values, 0, 100), 0);
  const int tile = 1, t = 6;
  auto plane = [&](int p) { return static_cast<const uint8_t *>(cache->plane[p]); };
  const int first = plane(0)[tile * 64 * 32 + (1 * 64 + t) * 4 + 1] >> 4, second = plane(1)[tile * 64 * 32 + t * 32 + 6] >> 4;
  const int third = plane(2)[tile * 64 * 64 + t * 64 + 13];
  EXPECT_EQ(first << 12 | second << 8 | third, patternsOf(*cache, 0, 70)[13]);
  expectCache(*cache, values);
}

/// The worked example of Scale.h.
TEST(Cache, WorkedExampleOfScale) {
  CachePtr cache = create(usual(ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F32), 1, 1, 16);
  cache->bias = 126; // that of halves
  Values values(ALIGNED_ELEMENT_F32, 1, 1, 2, 16);
  values.set(0, 1, 0, 0.8);
  values.set(0, 1, 1, -1.5);
  CachePtr half = create(usual(ALIGNED_ROLE_VALUE), 1, 1, 16);
  Values halves(ALIGNED_ELEMENT_F16, 1, 1, 2, 16);
  halves.set(0, 1, 0, 0.8);
  halves.set(0, 1, 1, -1.5);
  ASSERT_EQ(append(half, halves, 0, 2), 0);
  EXPECT_EQ(half->bias, 126);
  EXPECT_EQ(half->code[1], 132);
  EXPECT_EQ(patternsOf(*half, 0, 1)[0], 0x3E00 - 4); // the half nearest to 0.8 is 0.7998
  ASSERT_EQ(append(cache, values, 0, 2), 0);
  EXPECT_EQ(cache->bias, 128 - 6); // settled by 1.5
  EXPECT_EQ(cache->code[1], 128);
  EXPECT_EQ(patternsOf(*cache, 0, 1)[0], 0x3E00);
  std::vector<float> out(2 * 16);
  ASSERT_EQ(aligned_cache_unpack(cache.get(), 8, out.data()), 0);
  EXPECT_NEAR(out[16], 0.8066, 1e-4);
}

/// Every finite f16 and bf16 in turn as a token's largest: its code is the ceiling that float64 gives.
TEST(Cache, CodeOfEveryPattern) {
  for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16}) {
    const int64_t count = 0x7f80; // magnitudes
    Values values(element, 1, 1, count, 16);
    for (int64_t t = 0; t < count; ++t) {
      values.at(0, t, t % 16) = std::isfinite(decode(element, t)) ? t | (t % 3 ? 0 : 0x8000) : 0;
      values.at(0, t, (t + 5) % 16) = values.at(0, t, t % 16) & 0x7fff;
    }
    CachePtr cache = create(usual(ALIGNED_ROLE_VALUE, element), 1, 1, 16);
    if (element == ALIGNED_ELEMENT_BF16) { // codes reach 127 eighths up from what settles the bias: most tokens of all are above or below
      Values first(element, 1, 1, 1, 16);
      first.set(0, 0, 0, 1);
      ASSERT_EQ(append(cache, first, 0, 1), 0);
      ASSERT_EQ(cache->bias, 127);
      Values all = values;
      std::copy(first.patterns.begin(), first.patterns.end(), all.patterns.begin());
      ASSERT_EQ(append(cache, all, 1, count), 0);
      expectCache(*cache, all);
      continue;
    }
    ASSERT_EQ(append(cache, values, 0, count), 0);
    EXPECT_EQ(cache->asides, 0);
    EXPECT_EQ(*std::max_element(cache->code, cache->code + count), 255);
    expectCache(*cache, values);
  }
}

/// Floats on both sides of each threshold, and of every size.
TEST(Cache, CodeOfFloats) {
  Values values(ALIGNED_ELEMENT_F32, 1, 1, 0, 16);
  for (int exponent : {-149, -140, -126, -125, -3, 0, 4, 127})
    for (int k = 0; k <= 8; ++k)
      for (int step = -2; step <= 2; ++step) {
        const double threshold = std::exp2(exponent + k / 8.0) * 15 / 16;
        uint32_t pattern = encode(ALIGNED_ELEMENT_F32, threshold) + uint32_t(step);
        if (!std::isfinite(decode(ALIGNED_ELEMENT_F32, pattern)))
          continue;
        // A cache for each: its bias puts the code to 128, but at the ends of the floats.
        Values one(ALIGNED_ELEMENT_F32, 1, 1, 1, 16);
        one.at(0, 0, 3) = pattern;
        CachePtr cache = create(usual(ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F32), 1, 1, 16);
        ASSERT_EQ(append(cache, one, 0, 1), 0);
        const double value = std::fabs(decode(ALIGNED_ELEMENT_F32, pattern));
        if (value == 0) {
          EXPECT_EQ(cache->code[0], 1);
          continue;
        }
        const double steps = std::ceil(eighths(value) - 1e-9), kept = std::min(std::max(steps, -80.0 * 8), 127.0 * 8); // units of 2^-80 to 2^127
        EXPECT_EQ(cache->bias, 128 - kept) << value;
        EXPECT_EQ(cache->code[0], std::max(1.0, 128 + steps - kept)) << value;
        expectCache(*cache, one, {16});
      }
}

TEST(Cache, BiasSettles) {
  for (int element : {ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32})
    for (int role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE}) {
      Values values(element, 1, 2, 40, 64);
      for (int64_t c = 0; c < 64; ++c) {
        values.set(0, 20, c, c == 7 ? 4 : 0);
        values.set(1, 21, c, c == 9 ? -0x1p20 : 0); // row 1 settles it
        values.set(0, 22, c, 0x1p19);
        values.set(0, 23, c, 0x1p-10);
        values.set(1, 24, c, INFINITY);
      }
      CachePtr cache = create(usual(role, element), 1, 2, 64);
      ASSERT_EQ(append(cache, values, 0, 20), 0); // zeros say nothing
      CachePtr zeros = fork(cache);
      ASSERT_EQ(append(cache, values, 20, 40), 0);
      const double largest = role == ALIGNED_ROLE_VALUE ? 0x1p20 : 0x1p22; // all of row 0, token 22, goes to one rotated channel, or so
      EXPECT_LE(cache->bias, 128 - std::floor(eighths(role == ALIGNED_ROLE_VALUE ? largest : 0x1p17)));
      EXPECT_GE(cache->bias, 128 - std::ceil(eighths(largest)));
      auto largestCode = [](const aligned_cache &cache) { return std::max(cache.scales[0].largest, cache.scales[1].largest); };
      EXPECT_EQ(largestCode(*cache), 128);
      expectCache(*cache, values, {16});

      ASSERT_EQ(append(zeros, values, 20, 21), 0); // its copy waits for its own
      EXPECT_EQ(largestCode(*zeros), 128);
      EXPECT_NE(zeros->bias, cache->bias);

      const int64_t bias = cache->bias;
      ASSERT_EQ(aligned_cache_truncate(cache.get(), 1), 0); // settled while there are tokens
      EXPECT_EQ(cache->bias, bias);
      ASSERT_EQ(aligned_cache_truncate(cache.get(), 0), 0); // and anew after that
      ASSERT_EQ(append(cache, values, 20, 21), 0);
      EXPECT_EQ(cache->bias, zeros->bias);
    }
}

/// Sums of scales, at every step, with codes that jump.
TEST(Cache, MedianFollows) {
  std::mt19937 random(5);
  Values values(ALIGNED_ELEMENT_F16, 1, 1, 300, 16);
  for (int64_t t = 0; t < 300; ++t)
    values.set(0, t, t % 16, t < 60 ? 1 : t < 90 ? (t % 2 ? 60000 : 1e-6) : t % 23 == 4 ? INFINITY : std::exp2(double(random() % 31) - 15));
  CachePtr cache = create(usual(ALIGNED_ROLE_VALUE), 1, 1, 16);
  for (int64_t t = 0; t < 300; ++t) {
    ASSERT_EQ(append(cache, values, t, t + 1), 0);
    expectScales(contentsOf(*cache, 0));
  }
  while (cache->tokens) {
    ASSERT_EQ(aligned_cache_truncate(cache.get(), cache->tokens - std::min<int64_t>(cache->tokens, 1 + random() % 3)), 0);
    expectScales(contentsOf(*cache, 0));
  }
}

//===----------------------------------------------------------------------===//
// Offset
//===----------------------------------------------------------------------===//

std::vector<float> offsetOf(const CachePtr &cache, int64_t row) { return contentsOf(*cache, row).offset; }

std::vector<float> meanOf(const Values &values, int64_t row, int64_t tokens) {
  std::vector<double> sum(values.channels);
  int count = 0;
  for (int64_t t = 0; t < tokens; ++t)
    if (Row x = values.token(row, t); isFinite(x)) {
      ++count;
      std::transform(x.begin(), x.end(), sum.begin(), sum.begin(), std::plus<>());
    }
  std::vector<float> mean;
  for (double x : sum)
    mean.push_back(float(x / count));
  return mean;
}

TEST(Offset, FirstTokensSettleIt) {
  for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32}) {
    Values values = randomValues(element, 2, 2, 200, 64);
    values.at(1, 7, 3) = encode(element, INFINITY);
    values.at(1, 8, 3) = encode(element, INFINITY) + 1;
    const std::vector<float> none(64);
    for (int64_t first : {63, 64, 150}) {
      CachePtr cache = create(usual(ALIGNED_ROLE_KEY, element), 2, 2, 64);
      ASSERT_EQ(append(cache, values, 0, first), 0);
      for (int64_t row = 0; row < 4; ++row)
        EXPECT_EQ(offsetOf(cache, row), first < 64 ? none : meanOf(values, row, 64));
      ASSERT_EQ(append(cache, values, first, 200), 0); // it stays
      for (int64_t row = 0; row < 4; ++row)
        EXPECT_EQ(offsetOf(cache, row), first < 64 ? none : meanOf(values, row, 64));
      expectCache(*cache, values, {16});

      // An entry that starts anew settles its own.
      ASSERT_EQ(aligned_cache_release(cache.get(), 1), 0);
      EXPECT_EQ(offsetOf(cache, 2), none);
      EXPECT_EQ(offsetOf(cache, 3), none);
      Block block(values, 100, 164);
      const int64_t counts[] = {1, 64};
      ASSERT_EQ(aligned_cache_append_ragged(cache.get(), block.data.data(), counts, block.strides), 0);
      Values late(element, 2, 2, 64, 64);
      for (int64_t row = 0; row < 4; ++row)
        std::copy_n(&values.at(row, 100, 0), 64 * 64, &late.at(row, 0, 0));
      EXPECT_EQ(offsetOf(cache, 0), first < 64 ? none : meanOf(values, 0, 64));
      EXPECT_EQ(offsetOf(cache, 3), meanOf(late, 3, 64));
    }
  }
}

TEST(Offset, NoFiniteToken) {
  Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 1, 64, 16);
  for (int64_t t = 0; t < 64; ++t)
    values.at(0, t, t % 16) = encode(ALIGNED_ELEMENT_F16, INFINITY);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 1, 16);
  ASSERT_EQ(append(cache, values, 0, 64), 0);
  EXPECT_EQ(offsetOf(cache, 0), std::vector<float>(16));
  EXPECT_EQ(cache->asides, 64);
  expectCache(*cache, values, {16});
}

TEST(Offset, IsSet) {
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 2, 3, 100, 32);
  const std::vector<float> offset = someOffset(3, 32), none(32);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 2, 3, 32);
  ASSERT_EQ(aligned_cache_set_offset(cache.get(), offset.data()), 0) << aligned_last_error();
  auto expectSet = [&](const CachePtr &cache) {
    for (int64_t row = 0; row < 6; ++row)
      EXPECT_EQ(offsetOf(cache, row), std::vector<float>(offset.begin() + row % 3 * 32, offset.begin() + row % 3 * 32 + 32));
  };
  expectSet(cache);
  ASSERT_EQ(append(cache, values, 0, 100), 0);
  expectSet(cache);
  expectCache(*cache, values, {16});
  ASSERT_EQ(aligned_cache_truncate(cache.get(), 0), 0); // outlasts the tokens
  expectSet(cache);
  ASSERT_EQ(append(cache, values, 0, 70), 0);
  ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
  expectSet(cache);
  CachePtr copy = fork(cache); // and goes to copies
  ASSERT_EQ(aligned_cache_truncate(copy.get(), 0), 0);
  ASSERT_EQ(append(copy, values, 0, 70), 0);
  expectSet(copy);
  ASSERT_EQ(aligned_cache_truncate(copy.get(), 0), 0);
  ASSERT_EQ(aligned_cache_set_offset(copy.get(), nullptr), 0); // back to the first tokens'
  EXPECT_EQ(offsetOf(copy, 4), none);
  ASSERT_EQ(append(copy, values, 0, 70), 0);
  EXPECT_EQ(offsetOf(copy, 4), meanOf(values, 4, 64));
  ASSERT_EQ(aligned_cache_truncate(copy.get(), 1), 0);
  EXPECT_EQ(offsetOf(copy, 4), meanOf(values, 4, 64));
  ASSERT_EQ(aligned_cache_truncate(copy.get(), 0), 0);
  EXPECT_EQ(offsetOf(copy, 4), none);
}

TEST(Offset, Refuses) {
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 1, 1, 16);
  std::vector<float> offset(16);
  auto refused = [&](const CachePtr &cache, const char *expected) {
    EXPECT_LT(aligned_cache_set_offset(cache.get(), offset.data()), 0);
    EXPECT_STREQ(aligned_last_error(), expected);
  };
  refused(create(usual(ALIGNED_ROLE_VALUE), 1, 1, 16), "expected a cache of fixed keys, got fixed values");
  refused(create(formats()[3].with(ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16), 1, 1, 16), "expected a cache of fixed keys, got float keys");
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 1, 16);
  offset[3] = NAN;
  refused(cache, "expected a finite offset, got nan for channel 3 of head 0");
  offset[3] = -INFINITY;
  refused(cache, "expected a finite offset, got -inf for channel 3 of head 0");
  offset[3] = 1;
  ASSERT_EQ(append(cache, values, 0, 1), 0);
  refused(cache, "expected an empty cache, got one of 1 tokens");
  EXPECT_EQ(offsetOf(cache, 0), std::vector<float>(16));
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

TEST(Cache, GrowthIsGeometric) {
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 1, 16, 1);
  EXPECT_EQ(cache->capacity, 64);
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 1, 64 * 128, 16);
  std::vector<int64_t> capacities = {64};
  for (int64_t t = 0; t < values.tokens; t += 32) {
    ASSERT_EQ(append(cache, values, t, t + 32), 0);
    if (cache->capacity != capacities.back())
      capacities.push_back(cache->capacity);
  }
  EXPECT_EQ(capacities, (std::vector<int64_t>{64, 128, 256, 512, 1024, 2048, 4096, 5120, 6400, 8000, 9984}));
  expectCache(*cache, values);
}

TEST(Cache, ArraysAreSkewed) {
  CachePtr cache = create(formats()[1].with(ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16), 1, 4, 128, 16384); // planes of 4 MiB
  std::set<uintptr_t> sets;
  for (int p = 0; p < 4; ++p)
    sets.insert(reinterpret_cast<uintptr_t>(cache->plane[p]) % 4096);
  EXPECT_EQ(sets.size(), 4u);
}

TEST(Cache, Bytes) {
  const int64_t scales = sizeof(aligned_scales);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 2, 3, 48, 128);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 6 * (128 * (48 * 2 + 1) + 48 * (4 + 4) + scales));
  cache = create(usual(ALIGNED_ROLE_VALUE), 2, 3, 48, 128);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 6 * (128 * (48 * 2 + 1) + 48 * (8 + 4) + scales));
  cache = create(formats()[3].with(ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F32), 1, 1, 64);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 64 * 4);
  Values values(ALIGNED_ELEMENT_F32, 1, 1, 64, 64);
  values.set(0, 0, 0, INFINITY);
  ASSERT_EQ(append(cache, values, 0, 64), 0);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 64 * 64 * 2 + 64 * 4 + int64_t(sizeof(aligned_aside)) + 64 * (4 + 4));
  cache = create(usual(ALIGNED_ROLE_KEY), 2, 3, 48, 128);
  ASSERT_EQ(aligned_cache_keep_dense(cache.get(), 100), 0);
  CachePtr plain = create(usual(ALIGNED_ROLE_KEY), 2, 3, 48, 128);
  for (CachePtr *each : {&cache, &plain})
    ASSERT_EQ(append(*each, randomValues(ALIGNED_ELEMENT_F16, 2, 3, 5, 48), 0, 5), 0);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), aligned_cache_bytes(plain.get()) + 6 * 100 * 48 * 2);
}

/// Rows that several threads pack.
TEST(Cache, ManyRows) {
  for (int role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE})
    for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_F32}) {
      Values values = randomValues(element, 3, 7, 70, 64);
      values.at(20, 69, 63) = encode(element, INFINITY);
      values.at(0, 0, 0) = encode(element, INFINITY);
      CachePtr whole = create(usual(role, element), 3, 7, 64), pieces = create(usual(role, element), 3, 7, 64);
      for (const CachePtr *each : {&whole, &pieces}) { // one bias for both
        setOffset(*each);
        ASSERT_EQ(append(*each, values, 0, 1), 0);
      }
      ASSERT_EQ(append(whole, values, 1, 70), 0);
      for (int64_t t = 1; t < 70; ++t)
        ASSERT_EQ(append(pieces, values, t, t + 1), 0);
      expectSameCaches(*pieces, *whole);
      ASSERT_EQ(aligned_cache_truncate(whole.get(), 2), 0);
      ASSERT_EQ(append(whole, values, 2, 70), 0);
      expectSameCaches(*pieces, *whole);
      expectUnpacked(*whole, values, 16);
    }
}

//===----------------------------------------------------------------------===//
// Errors
//===----------------------------------------------------------------------===//

TEST(Cache, CreateRefuses) {
  auto refused = [](aligned_format format, int64_t batch, int64_t heads, int64_t channels, int64_t capacity, const char *expected) {
    CachePtr cache(aligned_cache_create(&format, batch, heads, channels, capacity));
    EXPECT_FALSE(cache);
    EXPECT_NE(std::string(aligned_last_error()).find(expected), std::string::npos) << aligned_last_error();
  };
  const aligned_format fixedKey = formats()[1].with(ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16);
  auto changed = [&](auto change) {
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
  refused(changed([](auto &f) { f.width[1] = 6; }), 1, 1, 64, 0, "plane 1 to have 4 or 8 bits, got 6");
  refused(changed([](auto &f) { f.width[1] = 12; }), 1, 1, 64, 0, "plane 1 to have 4 or 8 bits, got 12");
  refused(changed([](auto &f) { f.kind = 1, f.width[1] = 2; }), 1, 1, 64, 0, "plane 1 to have 4, 8, 12 or 16 bits, got 2");
  refused(changed([](auto &f) { f.width[1] = 8; }), 1, 1, 64, 0, "sum to 16, got 20");
  refused({ALIGNED_FORMAT_FIXED, 0, 0, 1, {16}}, 1, 1, 64, 0, "plane 0 to have 4 or 8 bits, got 16");
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
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 1, 2, 100, 16);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 2, 16);
  ASSERT_EQ(append(cache, values, 0, 100), 0);
  const aligned_cache before = *cache;
  int64_t strides[4] = {};
  uint16_t data[16] = {0x7bff};
  EXPECT_LT(aligned_cache_append(cache.get(), data, -1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 0 or more tokens to append, got -1");
  EXPECT_LT(aligned_cache_append(cache.get(), data, INT64_MAX, strides), 0);
  EXPECT_LT(aligned_cache_append(cache.get(), nullptr, 1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 1 tokens to append, got null data");
  EXPECT_LT(aligned_cache_append(cache.get(), data, 1, nullptr), 0);
  EXPECT_LT(aligned_cache_append(cache.get(), data, int64_t(1) << 50, strides), 0); // strides of 0 make a long array of any token
  EXPECT_NE(std::string(aligned_last_error()).find("out of memory"), std::string::npos);
  EXPECT_EQ(aligned_cache_append(cache.get(), nullptr, 0, nullptr), 0);
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  expectCache(*cache, values);
}

TEST(Cache, TruncateRefuses) {
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 2, 1, 90, 16);
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 2, 1, 16);
  ASSERT_EQ(append(cache, values, 0, 90), 0);
  const aligned_cache before = *cache;
  EXPECT_LT(aligned_cache_truncate(cache.get(), 91), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to keep 0 to 90 tokens, got 91");
  EXPECT_LT(aligned_cache_truncate(cache.get(), -1), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to keep 0 to 90 tokens, got -1");
  EXPECT_LT(aligned_cache_truncate_entry(cache.get(), 1, 91), 0);
  EXPECT_STREQ(aligned_last_error(), "expected to keep 0 to 90 tokens of batch entry 1, got 91");
  EXPECT_LT(aligned_cache_truncate_entry(cache.get(), 1, -1), 0);
  EXPECT_LT(aligned_cache_truncate_entry(cache.get(), 2, 0), 0);
  EXPECT_STREQ(aligned_last_error(), "expected a batch entry from 0 to 1, got 2");
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  ASSERT_EQ(aligned_cache_truncate(cache.get(), 90), 0); // all of them
  expectCache(*cache, values);
}

TEST(Cache, UnpackRefuses) {
  CachePtr cache = create(usual(ALIGNED_ROLE_KEY), 1, 1, 16);
  for (int bits : {-1, 0, 17}) {
    EXPECT_LT(aligned_cache_unpack(cache.get(), bits, nullptr), 0);
    EXPECT_EQ(aligned_last_error(), "expected 1 to 16 bits to read, got " + std::to_string(bits));
  }
  EXPECT_EQ(aligned_cache_unpack(cache.get(), 16, nullptr), 0); // of no tokens
  ASSERT_EQ(append(cache, randomValues(ALIGNED_ELEMENT_F16, 1, 1, 3, 16), 0, 3), 0);
  EXPECT_LT(aligned_cache_unpack(cache.get(), 16, nullptr), 0);
  EXPECT_STREQ(aligned_last_error(), "expected room for 3 tokens, got null");
}

TEST(Cache, NullIsRefused) {
  const int64_t counts[] = {1};
  EXPECT_EQ(aligned_cache_fork(nullptr), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected a cache, got null");
  const std::function<int64_t()> calls[] = {[] { return aligned_cache_set_offset(nullptr, nullptr); },
                                            [] { return aligned_cache_append(nullptr, nullptr, 1, nullptr); },
                                            [&] { return aligned_cache_append_ragged(nullptr, nullptr, counts, nullptr); },
                                            [] { return aligned_cache_length(nullptr, 0); },
                                            [] { return aligned_cache_release(nullptr, 0); },
                                            [] { return aligned_cache_free_pages(nullptr); },
                                            [] { return aligned_cache_overwrite(nullptr, 0, nullptr, 1, nullptr); },
                                            [] { return aligned_cache_unpack(nullptr, 16, nullptr); },
                                            [] { return aligned_cache_truncate(nullptr, 0); },
                                            [] { return aligned_cache_truncate_entry(nullptr, 0, 0); },
                                            [] { return aligned_cache_drop_planes(nullptr, 1); },
                                            [] { return aligned_cache_keep_dense(nullptr, 1); },
                                            [] { return aligned_cache_bytes(nullptr); }};
  for (const auto &call : calls) {
    aligned_set_last_error("");
    EXPECT_LT(call(), 0);
    EXPECT_STREQ(aligned_last_error(), "expected a cache, got null");
  }
  aligned_cache_destroy(nullptr);
}

TEST(Cache, ErrorsOfAnyLength) {
  std::string message(10000, 'x');
  aligned_set_last_error(message.c_str());
  EXPECT_EQ(aligned_last_error(), message);
}

} // namespace
