// Caches with own lengths and with pages hold, for each batch entry, bit by bit what a contiguous cache of its tokens alone holds; and copies that
// share pages never see each other's tokens.

#include "Caches.h"

#include <set>
#include <thread>

using namespace caches;

namespace {

constexpr int64_t kHeads = 3, kDim = 32;

/// A batch of sequences of their own, and how far each has been appended to a cache. They begin alike, with a token larger than the others, so that
/// all caches of them settle on one bias.
class Sequences {
public:
  Sequences(const aligned_format &format, std::vector<int64_t> lengths, unsigned seed = 1) : format(format), lengths(lengths), done(lengths.size()) {
    for (size_t n = 0; n < lengths.size(); ++n) {
      std::mt19937 random(seed + n);
      std::normal_distribution<double> normal;
      Values values(format.element, 1, kHeads, lengths[n], kDim);
      for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t t = 0; t < lengths[n]; ++t)
          for (int64_t c = 0; c < kDim; ++c)
            values.set(head, t, c, t == 0 ? (c == 0 ? 1000 : 0) : random() % 4999 == 0 ? INFINITY : normal(random));
      tokens.push_back(values);
    }
  }

  int64_t batch() const { return lengths.size(); }

  int append(const CachePtr &cache, const std::vector<int64_t> &counts) {
    const int64_t most = *std::max_element(counts.begin(), counts.end());
    Values values(format.element, batch(), kHeads, most, kDim);
    for (int64_t n = 0; n < batch(); ++n)
      for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t t = 0; t < most; ++t)
          for (int64_t c = 0; c < kDim; ++c)
            values.at(n * kHeads + head, t, c) = t < counts[n] ? tokens[n].at(head, done[n] + t, c) : 0x5a5a;
    Block block(values, 0, most, int(most % 2));
    const int failed = aligned_cache_append_ragged(cache.get(), block.data.data(), counts.data(), block.strides);
    for (int64_t n = 0; n < batch() && !failed; ++n)
      done[n] += counts[n];
    return failed;
  }

  /// Until all is there, in pieces of random size.
  void appendAll(const CachePtr &cache, unsigned seed) {
    std::mt19937 random(seed);
    while (done != lengths) {
      std::vector<int64_t> counts;
      for (int64_t n = 0; n < batch(); ++n)
        counts.push_back(std::min<int64_t>(lengths[n] - done[n], random() % 3 ? random() % 90 : 0));
      ASSERT_EQ(append(cache, counts), 0) << aligned_last_error();
    }
  }

  /// What entry `n` should look like: its tokens so far in a cache of their own.
  CachePtr alone(int64_t n, int64_t planes) const {
    CachePtr cache = create(format, 1, kHeads, kDim);
    setOffset(cache);
    EXPECT_EQ(caches::append(cache, tokens[n], 0, done[n]), 0);
    EXPECT_EQ(aligned_cache_drop_planes(cache.get(), int32_t(planes)), 0);
    return cache;
  }

  aligned_format format;
  std::vector<int64_t> lengths, done; ///< how many there are, and how many a cache holds
  std::vector<Values> tokens;
};

/// `maxima`: that no token was forgotten.
void expectCache(const aligned_cache &cache, const Sequences &sequences, bool maxima = true) {
  ASSERT_EQ(cache.tokens, *std::max_element(sequences.done.begin(), sequences.done.end()));
  const int64_t token = kDim * bytesOf(cache.format.element);
  std::vector<char> all(cache.rows * cache.tokens * token + 1, '\x5a');
  ASSERT_EQ(aligned_cache_unpack(&cache, 16, all.data()), 0);
  for (int64_t n = 0; n < sequences.batch(); ++n) {
    SCOPED_TRACE("entry " + std::to_string(n));
    const CachePtr alone = sequences.alone(n, cache.planes);
    if (alone->tokens)
      EXPECT_EQ(alone->bias, cache.bias);
    std::vector<char> own(kHeads * alone->tokens * token + 1);
    ASSERT_EQ(aligned_cache_unpack(alone.get(), 16, own.data()), 0);
    for (int64_t head = 0; head < kHeads; ++head) {
      expectSame(contentsOf(cache, n * kHeads + head), contentsOf(*alone, head), maxima);
      const char *row = all.data() + (n * kHeads + head) * cache.tokens * token;
      EXPECT_EQ(std::memcmp(row, own.data() + head * alone->tokens * token, alone->tokens * token), 0) << "unpacked";
      EXPECT_TRUE(std::all_of(row + alone->tokens * token, row + cache.tokens * token, [](char c) { return c == 0; }));
    }
    if (testing::Test::HasFailure())
      return;
  }
}

/// The pages that caches of one pool hold are those that are not free, and entries of one cache share none.
void expectTables(std::initializer_list<const aligned_cache *> caches, int64_t physical) {
  std::set<int32_t> held;
  for (const aligned_cache *cache : caches) {
    std::set<int32_t> own;
    for (int64_t n = 0; n < cache->batch; ++n)
      for (int64_t i = 0; i < cache->capacity / 64; ++i) {
        const int32_t page = cache->pages[n * (cache->capacity / 64) + i];
        if (i >= (aligned_cache_length(cache, n) + 63) / 64) {
          ASSERT_EQ(page, -1);
          continue;
        }
        ASSERT_TRUE(page >= 0 && page < physical && own.insert(page).second) << page;
      }
    held.insert(own.begin(), own.end());
  }
  for (const aligned_cache *cache : caches)
    EXPECT_EQ(aligned_cache_free_pages(cache), physical - int64_t(held.size()));
}

CachePtr paged(const aligned_format &format, int64_t batch, int64_t physical, int64_t most) {
  CachePtr cache(aligned_cache_create_paged(&format, batch, kHeads, kDim, physical, most));
  EXPECT_TRUE(cache) << aligned_last_error();
  setOffset(cache);
  return cache;
}
CachePtr contiguous(const aligned_format &format, int64_t batch, int64_t capacity = 0) {
  CachePtr cache = create(format, batch, kHeads, kDim, capacity);
  setOffset(cache);
  return cache;
}

class EveryKindInPages : public testing::TestWithParam<EveryStorage> {
protected:
  aligned_format format() const { return formatOf(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(PagedCache, EveryKindInPages,
                         testing::Combine(testing::Values(formats()[0], formats()[3]), testing::Values(ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE),
                                          testing::Values(ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32)),
                         nameOf);

TEST_P(EveryKindInPages, OwnLengths) {
  Sequences sequences(format(), {200, 0, 64, 131});
  CachePtr cache = contiguous(format(), 4);
  EXPECT_EQ(cache->lengths, nullptr);
  sequences.appendAll(cache, 5);
  ASSERT_NE(cache->lengths, nullptr);
  EXPECT_EQ(cache->pages, nullptr);
  expectCache(*cache, sequences);
}

TEST_P(EveryKindInPages, Pages) {
  Sequences sequences(format(), {200, 63, 64, 129, 0}, 7);
  CachePtr cache = paged(format(), 5, 4 + 1 + 1 + 3, 300);
  EXPECT_EQ(cache->capacity, 320);
  sequences.appendAll(cache, 3);
  expectTables({cache.get()}, 9);
  expectCache(*cache, sequences);
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 0);
}

/// All entries grow alike: no lengths are needed.
TEST_P(EveryKindInPages, PagesOfEqualLengths) {
  Sequences sequences(format(), {150, 150});
  Values values(format().element, 2, kHeads, 150, kDim);
  std::copy(sequences.tokens[0].patterns.begin(), sequences.tokens[0].patterns.end(), values.patterns.begin());
  std::copy(sequences.tokens[1].patterns.begin(), sequences.tokens[1].patterns.end(), values.patterns.begin() + kHeads * 150 * kDim);
  CachePtr cache = paged(format(), 2, 6, 192);
  for (int64_t t = 0; t < 150; t += 50)
    ASSERT_EQ(caches::append(cache, values, t, t + 50), 0) << aligned_last_error();
  EXPECT_EQ(cache->lengths, nullptr);
  sequences.done = {150, 150};
  expectTables({cache.get()}, 6);
  expectCache(*cache, sequences);
}

/// A sequence ends, another takes its place and its pages.
TEST_P(EveryKindInPages, Release) {
  for (bool pages : {false, true}) {
    Sequences sequences(format(), {200, 100, 230});
    CachePtr cache = pages ? paged(format(), 3, 11, 320) : contiguous(format(), 3);
    sequences.appendAll(cache, 9);
    ASSERT_EQ(aligned_cache_release(cache.get(), 2), 0) << aligned_last_error();
    EXPECT_EQ(cache->tokens, 200);
    sequences.done[2] = 0;
    expectCache(*cache, sequences);
    EXPECT_EQ(aligned_cache_free_pages(cache.get()), pages ? 5 : 0);
    Sequences next(format(), {230, 100, 150}, 50);
    next.tokens[1] = sequences.tokens[1]; // the second goes on
    ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
    next.done[1] = 100;
    next.appendAll(cache, 10);
    expectCache(*cache, next);
    if (pages)
      expectTables({cache.get()}, 11);
    EXPECT_LT(aligned_cache_release(cache.get(), 3), 0);
    EXPECT_STREQ(aligned_last_error(), "expected a batch entry from 0 to 2, got 3");
    EXPECT_LT(aligned_cache_release(cache.get(), -1), 0);
  }
}

TEST_P(EveryKindInPages, TruncateEntry) {
  for (bool pages : {false, true}) {
    Sequences sequences(format(), {200, 100, 150});
    CachePtr cache = pages ? paged(format(), 3, 9, 320) : contiguous(format(), 3);
    ASSERT_EQ(sequences.append(cache, {180, 100, 140}), 0) << aligned_last_error();
    ASSERT_EQ(aligned_cache_truncate_entry(cache.get(), 0, 65), 0) << aligned_last_error();
    EXPECT_EQ(cache->tokens, 140);
    sequences.done = {65, 100, 140};
    expectCache(*cache, sequences, false);
    EXPECT_EQ(aligned_cache_free_pages(cache.get()), pages ? 2 : 0);
    ASSERT_EQ(aligned_cache_truncate(cache.get(), 100), 0);
    sequences.done = {65, 100, 100};
    expectCache(*cache, sequences, false);
    EXPECT_EQ(aligned_cache_free_pages(cache.get()), pages ? 3 : 0);
    ASSERT_EQ(sequences.append(cache, {63, 0, 7}), 0);
    expectCache(*cache, sequences, false);
    ASSERT_EQ(aligned_cache_truncate_entry(cache.get(), 1, 0), 0);
    sequences.done[1] = 0;
    expectCache(*cache, sequences, false);
    if (pages)
      expectTables({cache.get()}, 9);
  }
}

/// An entry that changes by itself gives a cache own lengths.
TEST_P(EveryKindInPages, EntriesPartWays) {
  const Values values = randomValues(format().element, 2, kHeads, 70, kDim);
  for (int64_t left : {0, 10}) {
    CachePtr cache = contiguous(format(), 2);
    ASSERT_EQ(caches::append(cache, values, 0, 70), 0);
    EXPECT_EQ(cache->lengths, nullptr);
    const std::vector<Contents> before = snapshot(*cache);
    ASSERT_EQ(left ? aligned_cache_truncate_entry(cache.get(), 0, left) : aligned_cache_release(cache.get(), 0), 0);
    ASSERT_NE(cache->lengths, nullptr);
    EXPECT_EQ(cache->tokens, 70);
    EXPECT_EQ(aligned_cache_length(cache.get(), 0), left);
    EXPECT_EQ(aligned_cache_length(cache.get(), 1), 70);
    for (int64_t head = 0; head < kHeads; ++head)
      expectSame(contentsOf(*cache, kHeads + head), before[kHeads + head]);
  }
}

//===----------------------------------------------------------------------===//
// Copies
//===----------------------------------------------------------------------===//

TEST_P(EveryKindInPages, CopyOnWrite) {
  Sequences first(format(), {200, 170, 64});
  CachePtr cache = paged(format(), 3, 12, 256);
  ASSERT_EQ(first.append(cache, {140, 128, 64}), 0);
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 12 - 3 - 2 - 1);
  CachePtr copy = fork(cache);
  Sequences second = first;
  EXPECT_EQ(aligned_cache_free_pages(copy.get()), 6); // shares them all
  expectCache(*copy, second);

  ASSERT_EQ(first.append(cache, {1, 1, 0}), 0); // a page instead of the shared one that is not full, and a new one
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 4);
  expectTables({cache.get(), copy.get()}, 12);
  expectCache(*cache, first);
  expectCache(*copy, second);

  for (int64_t c = 0; c < kHeads * kDim; ++c) // from here on another sequence
    std::swap(second.tokens[0].at(c / kDim, 140, c % kDim), second.tokens[0].at(c / kDim, 160, c % kDim));
  ASSERT_EQ(second.append(copy, {60, 0, 0}), 0); // its page is its own by now
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 3);
  expectTables({cache.get(), copy.get()}, 12);
  expectCache(*cache, first);
  expectCache(*copy, second);

  // Back into a page that is full and shared: the next token must not go there.
  ASSERT_EQ(aligned_cache_truncate_entry(copy.get(), 0, 100), 0);
  second.done[0] = 100;
  for (int64_t c = 0; c < kHeads * kDim; ++c)
    std::swap(second.tokens[0].at(c / kDim, 100, c % kDim), second.tokens[0].at(c / kDim, 150, c % kDim));
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 5);
  ASSERT_EQ(second.append(copy, {20, 0, 0}), 0);
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 4);
  expectTables({cache.get(), copy.get()}, 12);
  expectCache(*cache, first);
  expectCache(*copy, second, false);

  // Released here, held there.
  ASSERT_EQ(aligned_cache_release(cache.get(), 2), 0);
  first.done[2] = 0;
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 4);
  expectCache(*copy, second, false);
  cache.reset();
  expectTables({copy.get()}, 12);
  expectCache(*copy, second, false);
  ASSERT_EQ(aligned_cache_truncate(copy.get(), 0), 0);
  EXPECT_EQ(aligned_cache_free_pages(copy.get()), 12);
}

TEST_P(EveryKindInPages, CopiesDropPlanes) {
  for (bool pages : {false, true}) {
    Sequences first(format(), {150, 130});
    CachePtr cache = pages ? paged(format(), 2, 9, 192) : contiguous(format(), 2, 64);
    ASSERT_EQ(first.append(cache, {100, 70}), 0);
    CachePtr copy = fork(cache);
    Sequences second = first;
    const int64_t before = aligned_cache_bytes(copy.get());
    ASSERT_EQ(aligned_cache_drop_planes(copy.get(), 1), 0);
    const int64_t tiles = pages ? 9 * kHeads : 2 * kHeads * copy->capacity / 64;
    EXPECT_EQ(before - aligned_cache_bytes(copy.get()), tiles * 8 * kDim * (16 - copy->format.width[0]));
    expectCache(*copy, second);
    ASSERT_EQ(second.append(copy, {50, 1}), 0);
    expectCache(*copy, second);
    CachePtr third = fork(copy);
    expectCache(*third, second);
    ASSERT_EQ(first.append(cache, {1, 60}), 0); // the original has all its planes
    expectCache(*cache, first);
    expectCache(*copy, second);
  }
}

const aligned_format fixedValue = usual(ALIGNED_ROLE_VALUE), fixedKey = usual(ALIGNED_ROLE_KEY);

/// Caches with pages and plain ones that do the same: random appends, truncations, copies and ends.
TEST(PagedCache, CopiesAtRandom) {
  std::mt19937 random(17);
  const int64_t physical = 40, batch = 3, most = 300;
  for (const aligned_format &format : {fixedKey, formats()[3].with(ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16), fixedValue}) {
    std::vector<std::pair<CachePtr, CachePtr>> pairs;
    pairs.emplace_back(paged(format, batch, physical, most), contiguous(format, batch));
    for (int step = 0; step < 100; ++step) {
      auto &[cache, plain] = pairs[random() % pairs.size()];
      const int64_t entry = random() % batch, length = aligned_cache_length(plain.get(), entry);
      switch (random() % 8) {
      case 0:
        if (pairs.size() < 5) {
          CachePtr copy = fork(cache), other = fork(plain);
          pairs.emplace_back(std::move(copy), std::move(other));
        }
        break;
      case 1:
        if (pairs.size() > 1)
          pairs.erase(pairs.begin() + random() % pairs.size());
        break;
      case 2:
        ASSERT_EQ(aligned_cache_release(cache.get(), entry), aligned_cache_release(plain.get(), entry));
        break;
      case 3: {
        const int64_t left = length - random() % (std::min<int64_t>(length, 80) + 1);
        ASSERT_EQ(aligned_cache_truncate_entry(cache.get(), entry, left), 0);
        ASSERT_EQ(aligned_cache_truncate_entry(plain.get(), entry, left), 0);
        break;
      }
      default: {
        std::vector<int64_t> counts(batch);
        int64_t longest = 1;
        for (int64_t n = 0; n < batch; ++n) {
          counts[n] = std::min<int64_t>(random() % 3 ? random() % 5 : random() % 100, most - aligned_cache_length(plain.get(), n));
          longest = std::max(longest, counts[n]);
        }
        Block block(randomValues(ALIGNED_ELEMENT_F16, batch, kHeads, longest, kDim, unsigned(step)), 0, longest);
        const std::vector<Contents> before = snapshot(*cache);
        const int64_t freePages = aligned_cache_free_pages(cache.get());
        if (aligned_cache_append_ragged(cache.get(), block.data.data(), counts.data(), block.strides) == 0) {
          ASSERT_EQ(aligned_cache_append_ragged(plain.get(), block.data.data(), counts.data(), block.strides), 0);
        } else {
          EXPECT_NE(std::string(aligned_last_error()).find("free pages"), std::string::npos);
          EXPECT_TRUE(snapshot(*cache) == before);
          EXPECT_EQ(aligned_cache_free_pages(cache.get()), freePages);
        }
      }
      }
      std::set<int32_t> held;
      for (const auto &[one, other] : pairs) {
        expectSameCaches(*one, *other);
        for (int64_t i = 0; i < batch * (one->capacity / 64); ++i)
          if (one->pages[i] >= 0)
            held.insert(one->pages[i]);
      }
      ASSERT_EQ(aligned_cache_free_pages(pairs[0].first.get()), physical - int64_t(held.size()));
      if (HasFailure())
        return;
    }
  }
}

/// Copies belong to different threads.
TEST(PagedCache, CopiesOfManyThreads) {
  CachePtr cache = paged(fixedKey, 1, 200, 1000);
  const Values values = randomValues(ALIGNED_ELEMENT_F16, 1, kHeads, 200, kDim);
  ASSERT_EQ(caches::append(cache, values, 0, 100), 0);
  std::vector<CachePtr> copies;
  for (int i = 0; i < 4; ++i)
    copies.push_back(fork(cache));
  std::vector<std::thread> threads;
  for (CachePtr &copy : copies)
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        CachePtr own = fork(copy);
        for (int64_t t = 100; t < 180; t += 1 + round % 7)
          EXPECT_EQ(caches::append(own, values, t, t + 1), 0) << aligned_last_error();
        EXPECT_EQ(aligned_cache_truncate(own.get(), 90), 0);
        EXPECT_EQ(caches::append(own, values, 90, 200), 0);
        own.reset();
        EXPECT_EQ(caches::append(copy, values, copy->tokens, copy->tokens + 2), 0);
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  CachePtr plain = create(fixedKey, 1, kHeads, kDim);
  setOffset(plain);
  ASSERT_EQ(caches::append(plain, values, 0, 100), 0);
  expectSameCaches(*cache, *plain);
  ASSERT_EQ(caches::append(plain, values, 100, 140), 0);
  for (const CachePtr &copy : copies)
    expectSameCaches(*copy, *plain);
  copies.clear();
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 198);
}

//===----------------------------------------------------------------------===//
// Errors
//===----------------------------------------------------------------------===//

TEST_P(EveryKindInPages, NoPageLeft) {
  Sequences sequences(format(), {200, 200});
  CachePtr cache = paged(format(), 2, 4, 256);
  ASSERT_EQ(sequences.append(cache, {100, 60}), 0);
  const aligned_cache before = *cache;
  EXPECT_LT(sequences.append(cache, {29, 5}), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 2 free pages, got 1 of 4");
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  expectTables({cache.get()}, 4);
  expectCache(*cache, sequences);
  ASSERT_EQ(sequences.append(cache, {28, 68}), 0); // 128 of each: just enough
  expectCache(*cache, sequences);
  EXPECT_LT(sequences.append(cache, {0, 1}), 0);
  ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
  sequences.done[0] = 0;
  ASSERT_EQ(sequences.append(cache, {63, 1}), 0);
  expectCache(*cache, sequences);
}

TEST_P(EveryKindInPages, NoPageLeftForACopy) {
  Sequences sequences(format(), {200});
  CachePtr cache = paged(format(), 1, 2, 256);
  ASSERT_EQ(sequences.append(cache, {100}), 0);
  CachePtr copy = fork(cache);
  for (int64_t count : {1, 28, 29}) {
    EXPECT_LT(sequences.append(copy, {count}), 0);
    EXPECT_EQ(std::string(aligned_last_error()), "expected " + std::to_string(count < 29 ? 1 : 2) + " free pages, got 0 of 2");
    expectTables({cache.get(), copy.get()}, 2);
    expectCache(*copy, sequences);
  }
  cache.reset(); // then the page is its own
  ASSERT_EQ(sequences.append(copy, {28}), 0);
  expectCache(*copy, sequences);
}

TEST_P(EveryKindInPages, NoMoreThanTheTableHolds) {
  Sequences sequences(format(), {200, 200});
  CachePtr cache = paged(format(), 2, 8, 100); // rounded up to 128
  EXPECT_LT(sequences.append(cache, {10, 129}), 0);
  EXPECT_STREQ(aligned_last_error(), "expected at most 128 tokens in batch entry 1, got 129");
  ASSERT_EQ(sequences.append(cache, {10, 128}), 0);
  EXPECT_LT(sequences.append(cache, {0, 1}), 0);
  expectCache(*cache, sequences);
}

TEST(PagedCache, Refuses) {
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 32, -1, 64), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected 0 to 2147483647 pages, got -1");
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 32, int64_t(1) << 31, 64), nullptr);
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 32, 1, -1), nullptr);
  EXPECT_EQ(aligned_cache_create_paged(&fixedKey, 1, 1, 40, 1, 64), nullptr);
  for (int64_t most : {0, 64}) { // no tokens, no pages
    CachePtr cache = paged(fixedKey, 2, 0, most);
    ASSERT_TRUE(cache && cache->pages);
    Sequences sequences(fixedKey, {64, 64});
    EXPECT_LT(sequences.append(cache, {1, 0}), 0);
    EXPECT_STREQ(aligned_last_error(), most ? "expected 1 free pages, got 0 of 0" : "expected at most 0 tokens in batch entry 0, got 1");
    CachePtr copy = fork(cache);
    EXPECT_EQ(aligned_cache_free_pages(copy.get()), 0);
  }
  CachePtr cache = paged(fixedKey, 2, 4, 64);
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

/// Entries that are not there, and tokens that an entry of its own length does not have. Nothing is lost, no page either.
TEST_P(EveryKindInPages, RefusesWhatIsNotThere) {
  Sequences sequences(format(), {100, 10});
  CachePtr cache = paged(format(), 2, 5, 192);
  sequences.appendAll(cache, 5);
  CachePtr copy = fork(cache);
  auto refused = [&](int64_t got, const char *expected) {
    EXPECT_LT(got, 0);
    EXPECT_STREQ(aligned_last_error(), expected);
  };
  refused(aligned_cache_truncate_entry(cache.get(), 1, 11), "expected to keep 0 to 10 tokens of batch entry 1, got 11");
  refused(aligned_cache_truncate_entry(cache.get(), 1, -1), "expected to keep 0 to 10 tokens of batch entry 1, got -1");
  refused(aligned_cache_truncate_entry(cache.get(), 2, 0), "expected a batch entry from 0 to 1, got 2");
  refused(aligned_cache_truncate_entry(cache.get(), -1, 0), "expected a batch entry from 0 to 1, got -1");
  refused(aligned_cache_truncate(cache.get(), 101), "expected to keep 0 to 100 tokens, got 101");
  refused(aligned_cache_release(cache.get(), 2), "expected a batch entry from 0 to 1, got 2");
  refused(aligned_cache_length(cache.get(), 2), "expected a batch entry from 0 to 1, got 2");
  refused(aligned_cache_length(cache.get(), -1), "expected a batch entry from 0 to 1, got -1");
  expectCache(*cache, sequences);
  expectCache(*copy, sequences);
  expectTables({cache.get(), copy.get()}, 5);
  EXPECT_EQ(aligned_cache_free_pages(cache.get()), 2);
  cache.reset(); // a copy needs nothing of what it was made of
  expectCache(*copy, sequences);
  expectTables({copy.get()}, 5);
}

TEST(PagedCache, Bytes) {
  CachePtr cache(aligned_cache_create_paged(&fixedKey, 2, 3, 48, 5, 256));
  const int64_t rows = 6 * (48 * (4 + 4) + int64_t(sizeof(aligned_scales)));
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 5 * 3 * 64 * (48 * 2 + 1) + rows + 2 * 4 * 4);
  ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
  EXPECT_EQ(aligned_cache_bytes(cache.get()), 5 * 3 * 64 * (48 * 2 + 1) + rows + 2 * 4 * 4 + 2 * 8);
}

//===----------------------------------------------------------------------===//
// Locations
//===----------------------------------------------------------------------===//

/// A cache of a location that nobody serves is an error; one that is served goes to who registered.
TEST(Location, Dispatch) {
  aligned_cache elsewhere = {};
  elsewhere.location = ALIGNED_LOCATION_CUDA;
  elsewhere.batch = elsewhere.kv_heads = elsewhere.rows = 1;
  elsewhere.head_dim = 16;
  elsewhere.planes = 3;
  elsewhere.format = fixedKey;
  int64_t strides[4] = {}, counts[1] = {1};
  char data[64] = {};
  float offset[16] = {};
  const char *nobody = "expected a cache on the host, got one in location 1 that no library serves";
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, nullptr);
  auto expectNobody = [&](int64_t result) {
    EXPECT_LT(result, 0);
    EXPECT_STREQ(aligned_last_error(), nobody);
  };
  expectNobody(aligned_cache_set_offset(&elsewhere, offset));
  expectNobody(aligned_cache_append(&elsewhere, data, 1, strides));
  expectNobody(aligned_cache_append_ragged(&elsewhere, data, counts, strides));
  expectNobody(aligned_cache_length(&elsewhere, 0));
  expectNobody(aligned_cache_release(&elsewhere, 0));
  expectNobody(aligned_cache_free_pages(&elsewhere));
  expectNobody(aligned_cache_unpack(&elsewhere, 16, data));
  expectNobody(aligned_cache_truncate(&elsewhere, 0));
  expectNobody(aligned_cache_truncate_entry(&elsewhere, 0, 0));
  expectNobody(aligned_cache_drop_planes(&elsewhere, 1));
  expectNobody(aligned_cache_bytes(&elsewhere));
  EXPECT_EQ(aligned_cache_fork(&elsewhere), nullptr);
  EXPECT_STREQ(aligned_last_error(), nobody);
  aligned_cache_destroy(&elsewhere);

  static int calls;
  static int64_t entry;
  calls = 0;
  aligned_device_caches functions = {};
  functions.bytes = [](const aligned_cache *) -> int64_t { return ++calls, 7; };
  functions.append = [](aligned_cache *, const void *, const int64_t *counts, int64_t count, const int64_t *) {
    return ++calls, int(counts ? counts[0] : count) + 10;
  };
  functions.truncate = [](aligned_cache *, int64_t batch_entry, int64_t tokens) { return ++calls, entry = batch_entry, int(tokens); };
  functions.destroy = [](aligned_cache *) { ++calls; };
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, &functions);
  EXPECT_EQ(aligned_cache_bytes(&elsewhere), 7);
  EXPECT_EQ(aligned_cache_append(&elsewhere, data, 3, strides), 13);
  EXPECT_EQ(aligned_cache_append_ragged(&elsewhere, data, counts, strides), 11);
  EXPECT_EQ(aligned_cache_append(&elsewhere, data, 0, strides), 0); // nothing to do anywhere
  EXPECT_EQ(aligned_cache_truncate(&elsewhere, 5), 5);              // how many there are is theirs to know
  EXPECT_EQ(entry, -1);
  EXPECT_EQ(aligned_cache_truncate_entry(&elsewhere, 0, 6), 6);
  EXPECT_EQ(entry, 0);
  EXPECT_LT(aligned_cache_truncate(&elsewhere, -1), 0); // this is checked for all
  offset[0] = NAN;
  EXPECT_LT(aligned_cache_set_offset(&elsewhere, offset), 0);
  EXPECT_STREQ(aligned_last_error(), "expected a finite offset, got nan for channel 0 of head 0");
  aligned_cache_destroy(&elsewhere);
  EXPECT_EQ(calls, 6);
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, nullptr);

  elsewhere.location = 5;
  EXPECT_EQ(aligned_cache_bytes(&elsewhere), -1);
}

} // namespace
