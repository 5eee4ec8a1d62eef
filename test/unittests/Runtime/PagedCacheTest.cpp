// Caches with own lengths and with pages hold, for each batch entry, bit by bit what a contiguous cache of its tokens alone
// holds.

#include "aligned/Runtime/Cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using CachePtr = std::unique_ptr<aligned_cache, Destroy>;

constexpr int64_t kHeads = 3, kDim = 32;

int64_t elementBytes(const aligned_format &format) { return format.element == ALIGNED_ELEMENT_F32 ? 4 : 2; }

aligned_format formatOf(int kind, int role, int element) {
  if (kind == ALIGNED_FORMAT_FIXED)
    return {kind, role, element, 4, {4, 4, 4, 4}};
  return {kind, role, element, 2, {12, 4, 0, 0}};
}

/// Random tokens of one batch entry, [heads][tokens][kDim], now and then one that is not finite.
std::vector<char> randomTokens(const aligned_format &format, int64_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  int64_t bytes = elementBytes(format);
  std::vector<char> data(kHeads * tokens * kDim * bytes);
  for (int64_t i = 0; i < kHeads * tokens * kDim; ++i) {
    float x = random() % 499 == 0 ? INFINITY : normal(random);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (format.element == ALIGNED_ELEMENT_BF16)
      bits >>= 16;
    if (format.element == ALIGNED_ELEMENT_F16) {
      _Float16 half = static_cast<_Float16>(x);
      std::memcpy(&bits, &half, 2);
    }
    std::memcpy(&data[i * bytes], &bits, bytes); // little endian
  }
  return data;
}

/// A batch of sequences of their own, and how far each has been appended to a cache.
class Sequences {
public:
  Sequences(const aligned_format &format, std::vector<int64_t> lengths, unsigned seed = 1)
      : format(format), lengths(lengths), done(lengths.size()), seen(lengths.size()) {
    for (size_t n = 0; n < lengths.size(); ++n)
      tokens.push_back(randomTokens(format, lengths[n], seed + n));
  }

  int64_t batch() const { return lengths.size(); }

  int append(aligned_cache *cache, const std::vector<int64_t> &counts) {
    int64_t most = *std::max_element(counts.begin(), counts.end()), token = kDim * elementBytes(format);
    std::vector<char> data(batch() * kHeads * most * token, '\x5a');
    for (int64_t n = 0; n < batch(); ++n)
      for (int64_t head = 0; head < kHeads; ++head)
        std::copy_n(tokens[n].data() + (head * lengths[n] + done[n]) * token, counts[n] * token,
                    data.begin() + (n * kHeads + head) * most * token);
    int64_t strides[4] = {kHeads * most * kDim, most * kDim, kDim, 1};
    int failed = aligned_cache_append_ragged(cache, data.data(), counts.data(), strides);
    for (int64_t n = 0; n < batch() && !failed; ++n)
      seen[n] = std::max(seen[n], done[n] += counts[n]);
    return failed;
  }

  /// Until all is there, in pieces of random size.
  void appendAll(aligned_cache *cache, unsigned seed) {
    std::mt19937 random(seed);
    while (done != lengths) {
      std::vector<int64_t> counts;
      for (int64_t n = 0; n < batch(); ++n)
        counts.push_back(std::min<int64_t>(lengths[n] - done[n], random() % 3 ? random() % 90 : 0));
      ASSERT_EQ(append(cache, counts), 0) << aligned_last_error();
    }
  }

  /// What entry `n` should look like: its tokens so far in a cache of their own.
  CachePtr alone(int64_t n) const {
    CachePtr cache(aligned_cache_create(&format, 1, kHeads, kDim, 0));
    int64_t strides[4] = {kHeads * lengths[n] * kDim, lengths[n] * kDim, kDim, 1};
    int64_t most = done[n] && seen[n] / 64 == done[n] / 64 ? seen[n] : done[n]; // maxima are of tokens that were forgotten, too
    EXPECT_EQ(aligned_cache_append(cache.get(), tokens[n].data(), most, strides), 0);
    EXPECT_EQ(aligned_cache_truncate(cache.get(), done[n]), 0);
    return cache;
  }

  aligned_format format;
  std::vector<int64_t> lengths, done, seen; ///< how many there are, how many a cache holds, and held before it was truncated
  std::vector<std::vector<char>> tokens;
};

std::set<std::vector<uint32_t>> escapesOf(const aligned_cache &cache, int64_t firstRow) {
  std::set<std::vector<uint32_t>> escapes;
  for (int64_t i = 0; i < cache.escapes; ++i)
    if (const aligned_escape &escape = cache.escape[i]; escape.row >= firstRow && escape.row < firstRow + kHeads)
      escapes.insert({uint32_t(escape.row - firstRow), uint32_t(escape.token), uint32_t(escape.channel), escape.bits});
  return escapes;
}

void expectSame(const void *actual, const void *expected, int64_t bytes, const std::string &what) {
  ASSERT_EQ(actual == nullptr, expected == nullptr) << what;
  if (actual) {
    ASSERT_EQ(std::memcmp(actual, expected, bytes), 0) << what;
  }
}

void expectEntry(const aligned_cache &cache, int64_t n, const aligned_cache &alone) {
  const aligned_format &f = cache.format;
  ASSERT_EQ(aligned_cache_length(&cache, n), alone.tokens);
  int64_t capacityBlocks = cache.capacity / 64, exponentBytes = f.kind == ALIGNED_FORMAT_FLOAT ? 0
                                                                : f.role == ALIGNED_ROLE_KEY   ? kDim
                                                                                               : 64;
  for (int64_t head = 0; head < kHeads; ++head) {
    int64_t row = n * kHeads + head;
    std::string where = "entry " + std::to_string(n) + ", head " + std::to_string(head);
    for (int64_t b = 0; b < alone.tokens / 64; ++b) {
      int64_t place = cache.pages ? cache.pages[n * capacityBlocks + b] * kHeads + head : row * capacityBlocks + b;
      ASSERT_GE(place, 0);
      auto same = [&](const void *actual, const void *expected, int64_t bytes, const std::string &what) {
        if (actual && expected)
          expectSame(static_cast<const char *>(actual) + place * bytes,
                     static_cast<const char *>(expected) + (head * alone.capacity / 64 + b) * bytes, bytes,
                     what + " of " + where + ", block " + std::to_string(b));
        else
          ASSERT_EQ(actual, expected);
      };
      for (int p = 0; p < ALIGNED_MAX_PLANES; ++p)
        same(cache.plane[p], alone.plane[p], 8 * kDim * f.width[p], "plane " + std::to_string(p));
      same(cache.exponent, alone.exponent, exponentBytes, "exponents");
    }
    auto ofRow = [&](const void *actual, const void *expected, int64_t rowBytes, int64_t bytes, const char *what) {
      ASSERT_EQ(actual == nullptr, expected == nullptr);
      if (actual)
        expectSame(static_cast<const char *>(actual) + row * rowBytes, static_cast<const char *>(expected) + head * rowBytes,
                   bytes, what + (" of " + where));
    };
    ofRow(cache.channel_max, alone.channel_max, kDim * 4, kDim * 4, "maxima");
    ofRow(cache.channel_mean, alone.channel_mean, kDim * 4, kDim * 4, "means");
    ofRow(cache.open, alone.open, 64 * kDim * elementBytes(f), alone.tokens % 64 * kDim * elementBytes(f), "open tokens");
  }
  EXPECT_EQ(escapesOf(cache, n * kHeads), escapesOf(alone, 0));

  int64_t token = kDim * elementBytes(f);
  std::vector<char> all(cache.rows * cache.tokens * token, '\x5a'), own(kHeads * alone.tokens * token + 1);
  for (int bits : {4, 16}) {
    ASSERT_EQ(aligned_cache_join(&cache, bits, all.data()), 0);
    ASSERT_EQ(aligned_cache_join(&alone, bits, own.data()), 0);
    for (int64_t head = 0; head < kHeads; ++head) {
      const char *row = all.data() + (n * kHeads + head) * cache.tokens * token;
      expectSame(row, own.data() + head * alone.tokens * token, alone.tokens * token, "joined");
      ASSERT_TRUE(std::all_of(row + alone.tokens * token, row + cache.tokens * token, [](char c) { return c == 0; }));
    }
  }
}

void expectCache(const aligned_cache &cache, const Sequences &sequences, int planes = ALIGNED_MAX_PLANES) {
  ASSERT_EQ(cache.tokens, *std::max_element(sequences.done.begin(), sequences.done.end()));
  for (int64_t n = 0; n < sequences.batch(); ++n) {
    CachePtr alone = sequences.alone(n);
    if (planes < alone->format.planes) {
      ASSERT_EQ(aligned_cache_drop_planes(alone.get(), planes), 0);
    }
    expectEntry(cache, n, *alone);
    if (testing::Test::HasFatalFailure())
      return;
  }
}

/// Pages of different entries, and free ones, are different blocks.
void expectTable(const aligned_cache &cache, int64_t physical) {
  std::set<int32_t> seen;
  int64_t held = 0;
  for (int64_t n = 0; n < cache.batch; ++n)
    for (int64_t b = 0; b < cache.capacity / 64; ++b) {
      int32_t page = cache.pages[n * (cache.capacity / 64) + b];
      if (b >= aligned_cache_length(&cache, n) / 64) {
        ASSERT_EQ(page, -1);
        continue;
      }
      ++held;
      ASSERT_TRUE(page >= 0 && page < physical && seen.insert(page).second) << page;
    }
  EXPECT_EQ(aligned_cache_free_blocks(&cache), physical - held);
}

class EveryStorage : public testing::TestWithParam<std::tuple<int, int, int>> {
protected:
  aligned_format format() const { return formatOf(std::get<0>(GetParam()), std::get<1>(GetParam()), std::get<2>(GetParam())); }
  CachePtr paged(int64_t batch, int64_t physical, int64_t most) const {
    aligned_format f = format();
    return CachePtr(aligned_cache_create_paged(&f, batch, kHeads, kDim, physical, most));
  }
  CachePtr contiguous(int64_t batch, int64_t capacity) const {
    aligned_format f = format();
    return CachePtr(aligned_cache_create(&f, batch, kHeads, kDim, capacity));
  }
};
std::string nameOf(const testing::TestParamInfo<EveryStorage::ParamType> &info) {
  const char *kinds[] = {"Fixed", "Float"}, *roles[] = {"Key", "Value"}, *elements[] = {"F16", "BF16", "F32"};
  return std::string(kinds[std::get<0>(info.param)]) + roles[std::get<1>(info.param)] + elements[std::get<2>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(PagedCache, EveryStorage,
                         testing::Combine(testing::Values(ALIGNED_FORMAT_FIXED, ALIGNED_FORMAT_FLOAT),
                                          testing::Values(ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE),
                                          testing::Values(ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32)),
                         nameOf);

TEST_P(EveryStorage, OwnLengths) {
  Sequences sequences(format(), {200, 0, 64, 331});
  CachePtr cache = contiguous(4, 0);
  EXPECT_EQ(cache->lengths, nullptr);
  sequences.appendAll(cache.get(), 5);
  ASSERT_NE(cache->lengths, nullptr);
  EXPECT_EQ(cache->pages, nullptr);
  expectCache(*cache, sequences);
}

TEST_P(EveryStorage, Pages) {
  for (unsigned seed : {1u, 2u, 3u}) {
    Sequences sequences(format(), {200, 63, 64, 331, 0, 129}, seed);
    CachePtr cache = paged(6, 3 + 1 + 5 + 2, 331);
    ASSERT_TRUE(cache) << aligned_last_error();
    EXPECT_EQ(cache->capacity, 384);
    sequences.appendAll(cache.get(), seed);
    expectTable(*cache, 11);
    expectCache(*cache, sequences);
    EXPECT_EQ(aligned_cache_free_blocks(cache.get()), 0);
  }
}

/// All entries grow alike: no lengths are needed.
TEST_P(EveryStorage, PagesOfEqualLengths) {
  aligned_format f = format();
  Sequences sequences(f, {150, 150});
  CachePtr cache = paged(2, 4, 192);
  std::vector<char> data;
  for (const std::vector<char> &tokens : sequences.tokens)
    data.insert(data.end(), tokens.begin(), tokens.end());
  int64_t strides[4] = {kHeads * 150 * kDim, 150 * kDim, kDim, 1};
  for (int64_t done = 0; done < 150; done += 50)
    ASSERT_EQ(aligned_cache_append(cache.get(), data.data() + done * kDim * elementBytes(f), 50, strides), 0)
        << aligned_last_error();
  EXPECT_EQ(cache->lengths, nullptr);
  sequences.done = {150, 150};
  expectTable(*cache, 4);
  expectCache(*cache, sequences);
}

/// A sequence ends, another takes its place and its pages.
TEST_P(EveryStorage, Release) {
  for (bool pages : {false, true}) {
    Sequences sequences(format(), {200, 100, 260});
    CachePtr cache = pages ? paged(3, 8, 320) : contiguous(3, 0);
    sequences.appendAll(cache.get(), 9);
    ASSERT_EQ(aligned_cache_release(cache.get(), 2), 0) << aligned_last_error();
    EXPECT_EQ(cache->tokens, 200);
    sequences.done[2] = 0;
    expectCache(*cache, sequences);
    EXPECT_EQ(aligned_cache_free_blocks(cache.get()), pages ? 4 : 0);
    Sequences next(format(), {300, 100, 190}, 50);
    next.tokens[1] = sequences.tokens[1]; // the second goes on
    ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
    next.done[1] = 100;
    next.appendAll(cache.get(), 10);
    expectCache(*cache, next);
    if (pages)
      expectTable(*cache, 8);
    EXPECT_LT(aligned_cache_release(cache.get(), 3), 0);
    EXPECT_STREQ(aligned_last_error(), "expected a batch entry from 0 to 2, got 3");
    EXPECT_LT(aligned_cache_release(cache.get(), -1), 0);
  }
}

TEST_P(EveryStorage, ReleaseMakesOwnLengths) {
  Sequences sequences(format(), {70, 70});
  CachePtr cache = contiguous(2, 0);
  ASSERT_EQ(sequences.append(cache.get(), {70, 70}), 0);
  CachePtr equal = contiguous(2, 0);
  std::vector<char> data;
  for (const std::vector<char> &tokens : sequences.tokens)
    data.insert(data.end(), tokens.begin(), tokens.end());
  int64_t strides[4] = {kHeads * 70 * kDim, 70 * kDim, kDim, 1};
  ASSERT_EQ(aligned_cache_append(equal.get(), data.data(), 70, strides), 0);
  EXPECT_EQ(equal->lengths, nullptr);
  ASSERT_EQ(aligned_cache_release(equal.get(), 0), 0);
  ASSERT_NE(equal->lengths, nullptr);
  EXPECT_EQ(equal->tokens, 70);
  sequences.done[0] = 0;
  expectCache(*equal, sequences);
}

TEST_P(EveryStorage, CloneTruncateDrop) {
  for (bool pages : {false, true}) {
    Sequences sequences(format(), {150, 130, 64});
    CachePtr cache = pages ? paged(3, 9, 192) : contiguous(3, 64);
    ASSERT_EQ(sequences.append(cache.get(), {140, 130, 64}), 0);
    EXPECT_LT(aligned_cache_truncate(cache.get(), 127), 0);
    ASSERT_EQ(aligned_cache_truncate(cache.get(), 129), 0);
    sequences.done = {129, 129, 64};
    expectCache(*cache, sequences);

    CachePtr clone(aligned_cache_clone(cache.get()));
    ASSERT_TRUE(clone) << aligned_last_error();
    Sequences second = sequences;
    ASSERT_EQ(sequences.append(cache.get(), {20, 0, 0}), 0); // the original goes on by itself
    ASSERT_EQ(second.append(clone.get(), {0, 1, 0}), 0);
    expectCache(*cache, sequences);
    expectCache(*clone, second);
    if (pages) {
      expectTable(*clone, 9);
    }

    int64_t before = aligned_cache_bytes(clone.get());
    ASSERT_EQ(aligned_cache_drop_planes(clone.get(), 1), 0);
    int64_t blocks = pages ? 9 * kHeads : 3 * kHeads * clone->capacity / 64;
    EXPECT_EQ(before - aligned_cache_bytes(clone.get()), blocks * 8 * kDim * (16 - clone->format.width[0]));
    ASSERT_EQ(second.append(clone.get(), {21, 0, 0}), 0);
    expectCache(*clone, second, 1);
    CachePtr third(aligned_cache_clone(clone.get()));
    expectCache(*third, second, 1);
  }
}

TEST_P(EveryStorage, NoPageLeft) {
  Sequences sequences(format(), {200, 200});
  CachePtr cache = paged(2, 3, 256);
  ASSERT_EQ(sequences.append(cache.get(), {100, 60}), 0);
  aligned_cache before = *cache;
  EXPECT_LT(sequences.append(cache.get(), {28, 68}), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 3 free pages, got 2 of 3");
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  expectTable(*cache, 3);
  expectCache(*cache, sequences);
  ASSERT_EQ(sequences.append(cache.get(), {28, 67}), 0); // 128 and 127: just enough
  expectCache(*cache, sequences);
  EXPECT_LT(sequences.append(cache.get(), {0, 1}), 0);
  ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
  sequences.done[0] = 0;
  ASSERT_EQ(sequences.append(cache.get(), {63, 1}), 0);
  expectCache(*cache, sequences);
}

TEST_P(EveryStorage, NoMoreThanTheTableHolds) {
  Sequences sequences(format(), {200, 200});
  CachePtr cache = paged(2, 8, 100); // rounded up to 128
  EXPECT_LT(sequences.append(cache.get(), {10, 129}), 0);
  EXPECT_STREQ(aligned_last_error(), "expected at most 128 tokens in batch entry 1, got 129");
  ASSERT_EQ(sequences.append(cache.get(), {10, 128}), 0);
  EXPECT_LT(sequences.append(cache.get(), {0, 1}), 0);
  expectCache(*cache, sequences);
}

const aligned_format fixedKey = formatOf(ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16);

TEST(PagedCache, Refuses) {
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 32, -1, 64), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected 0 to 2147483647 pages, got -1");
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 32, int64_t(1) << 31, 64), nullptr);
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 32, 1, -1), nullptr);
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 40, 1, 64), nullptr);
  CachePtr cache(aligned_cache_create_paged(&fixedKey, 2, kHeads, kDim, 0, 64)); // open tokens only
  ASSERT_TRUE(cache);
  Sequences sequences(fixedKey, {64, 64});
  ASSERT_EQ(sequences.append(cache.get(), {63, 1}), 0);
  EXPECT_LT(sequences.append(cache.get(), {1, 0}), 0);
  int64_t counts[2] = {1, -1}, strides[4] = {};
  char data[64] = {};
  EXPECT_LT(aligned_cache_append_ragged(cache.get(), data, counts, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 0 or more tokens to append, got -1");
  EXPECT_LT(aligned_cache_append_ragged(cache.get(), data, nullptr, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected the number of tokens of 2 batch entries, got null");
  counts[1] = 1;
  EXPECT_LT(aligned_cache_append_ragged(cache.get(), nullptr, counts, strides), 0);
  EXPECT_EQ(aligned_cache_length(cache.get(), 2), -1);
}

TEST(PagedCache, Bytes) {
  CachePtr cache(aligned_cache_create_paged(&fixedKey, 2, 3, 48, 5, 256));
  int64_t fixed = 6 * (64 * 48 * 2 + 48 * 4);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 5 * 3 * (64 * 48 * 2 + 48) + fixed + 2 * 4 * 4);
  ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 5 * 3 * (64 * 48 * 2 + 48) + fixed + 2 * 4 * 4 + 2 * 8);
}

/// A cache of a location that nobody serves is an error; one that is served goes to who registered.
TEST(Location, Dispatch) {
  aligned_cache elsewhere = {};
  elsewhere.location = ALIGNED_LOCATION_CUDA;
  elsewhere.batch = elsewhere.kv_heads = elsewhere.rows = 1;
  elsewhere.head_dim = 16;
  elsewhere.layers = 4;
  elsewhere.format = fixedKey;
  int64_t strides[4] = {}, counts[1] = {1};
  char data[64] = {};
  const char *nobody = "expected a cache on the host, got one in location 1 that no library serves";
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, nullptr);
  auto expectNobody = [&](int64_t result) {
    EXPECT_LT(result, 0);
    EXPECT_STREQ(aligned_last_error(), nobody);
  };
  expectNobody(aligned_cache_append(&elsewhere, data, 1, strides));
  expectNobody(aligned_cache_append_ragged(&elsewhere, data, counts, strides));
  expectNobody(aligned_cache_length(&elsewhere, 0));
  expectNobody(aligned_cache_release(&elsewhere, 0));
  expectNobody(aligned_cache_free_blocks(&elsewhere));
  expectNobody(aligned_cache_join(&elsewhere, 16, data));
  expectNobody(aligned_cache_truncate(&elsewhere, 0));
  expectNobody(aligned_cache_drop_planes(&elsewhere, 1));
  expectNobody(aligned_cache_bytes(&elsewhere));
  EXPECT_EQ(aligned_cache_clone(&elsewhere), nullptr);
  EXPECT_STREQ(aligned_last_error(), nobody);
  aligned_cache_destroy(&elsewhere);

  static int calls;
  calls = 0;
  aligned_device_caches functions = {};
  functions.bytes = [](const aligned_cache *) -> int64_t { return ++calls, 7; };
  functions.append = [](aligned_cache *, const void *, const int64_t *counts, int64_t count, const int64_t *) {
    return ++calls, int(counts ? counts[0] : count) + 10;
  };
  functions.destroy = [](aligned_cache *) { ++calls; };
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, &functions);
  EXPECT_EQ(aligned_cache_bytes(&elsewhere), 7);
  EXPECT_EQ(aligned_cache_append(&elsewhere, data, 3, strides), 13);
  EXPECT_EQ(aligned_cache_append_ragged(&elsewhere, data, counts, strides), 11);
  EXPECT_EQ(aligned_cache_append(&elsewhere, data, 0, strides), 0); // nothing to do anywhere
  aligned_cache_destroy(&elsewhere);
  EXPECT_EQ(calls, 4);
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, nullptr);

  elsewhere.location = 5;
  EXPECT_EQ(aligned_cache_bytes(&elsewhere), -1);
}

} // namespace
