// Caches in the host's memory. Storage/Scale.h and Layout.h say what their bits mean and where they lie, Pack.h packs a token; here is what is around
// that: memory that grows, pages, lengths, tokens kept aside, and what is known of a row's tokens.
//
// An append that fails has changed nothing. It first reserves all it may need: larger arrays, into which the tokens that are there are copied, pages,
// a list of lengths. Then it packs, behind the tokens that are visible, and commits. Two things can't be known before tokens are packed: how many are
// kept aside, and what the rows' summaries become. An append of few tokens reserves as if all were kept aside, and packs into the cache's summaries;
// a larger one packs into copies of them.
//
// Truncation reads tokens back and takes them out of the summaries, which are sums of integers and counts, so that what is left is as if they had
// never been there.
//
// Batch entries may have own lengths, and their tiles may lie anywhere among physical pages (PageTable.h): loops over rows ask `lengthOf` and
// `tileOf`. Caches of other locations are handed to those who registered for them.

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/Error.h"
#include "aligned/Runtime/Kernel.h"

#include "HostCache.h"
#include "Memory.h"
#include "Numbers.h"
#include "Pack.h"
#include "PageTable.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>

using namespace aligned;

namespace {

constexpr int64_t kTile = storage::kTile;

//===----------------------------------------------------------------------===//
// Errors and memory
//===----------------------------------------------------------------------===//

thread_local std::string lastError;

__attribute__((format(printf, 1, 2))) int fail(const char *format, ...) {
  char message[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  aligned_set_last_error(message);
  return -1;
}

/// Replaces an array by one of `bytes` bytes, or leaves it alone, says why and returns false.
bool allocate(Array &array, int64_t bytes, int64_t skew = 0) {
  if (bytes < 0)
    return fail("expected a cache that fits in memory, got sizes that overflow"), false;
  if (!array.allocate(bytes, skew))
    return fail("out of memory: expected %lld more bytes", (long long)bytes), false;
  return true;
}

//===----------------------------------------------------------------------===//
// What a cache owns
//===----------------------------------------------------------------------===//

int64_t elementBytes(int32_t element) { return element == ALIGNED_ELEMENT_F32 ? 4 : 2; }

bool isFixed(const aligned_cache &cache) { return cache.format.kind == ALIGNED_FORMAT_FIXED; }
bool isKey(const aligned_cache &cache) { return cache.format.role == ALIGNED_ROLE_KEY; }
bool hasSums(const aligned_cache &cache) { return isFixed(cache) && !isKey(cache); }
bool hasOffset(const aligned_cache &cache) { return isFixed(cache) && isKey(cache); }

int64_t lengthOf(const aligned_cache &cache, int64_t entry) { return cache.lengths ? cache.lengths[entry] : cache.tokens; }

int64_t codeBytes(const aligned_cache &cache) { return isFixed(cache) ? kTile : 0; }

/// Which batch entries of a cache are meant, in which order: some that are listed, or all.
struct RowsOf {
  const int64_t *entries = nullptr;
  int64_t count = -1;

  int64_t entriesOf(const aligned_cache &cache) const { return entries ? count : cache.batch; }
  int64_t entry(int64_t n) const { return entries ? entries[n] : n; }

  /// Calls body(n-th row, the cache's row that is meant).
  template <typename Body> void forEach(const aligned_cache &cache, Body body) const {
    for (int64_t n = 0; n < entriesOf(cache); ++n)
      for (int64_t head = 0; head < cache.kv_heads; ++head)
        body(n * cache.kv_heads + head, entry(n) * cache.kv_heads + head);
  }
};

/// What planes grow by, up to 4096 tokens twofold and then by a quarter, to hold `tokens` tokens.
int64_t grownCapacity(int64_t capacity, int64_t tokens) {
  return std::max(pagesFor(tokens) * kTile, capacity < 4096 ? 2 * capacity : capacity + capacity / 4 / kTile * kTile);
}

/// What grows with the tokens.
struct Planes {
  Array plane[ALIGNED_MAX_PLANES], code;
  int64_t bytes[ALIGNED_MAX_PLANES] = {}; // of a tile of each plane; 0 where it is not resident
  int64_t capacity = 0;

  /// For `tokens` tokens of each row, or for `physical` pages that all batch entries share.
  bool allocate(const aligned_cache &cache, int64_t tokens, int64_t physical = -1) {
    const int64_t tiles = physical < 0 ? product(cache.rows, tokens / kTile) : product(cache.kv_heads, physical);
    const int64_t skew = isKey(cache) ? 0 : ALIGNED_MAX_PLANES + 1; // K and V of a layer are read together
    for (int32_t p = 0; p < cache.planes; ++p) {
      bytes[p] = storage::bytesPerTile(cache.format.width[p], cache.head_dim);
      if (!::allocate(plane[p], product(tiles, bytes[p]), skew + p))
        return false;
    }
    capacity = tokens;
    return ::allocate(code, product(tiles, codeBytes(cache)), skew + ALIGNED_MAX_PLANES);
  }

  /// Calls body(array of this, array of the cache, bytes of a tile) of each array.
  template <typename Body> void forEach(const aligned_cache &cache, Body body) const {
    for (int32_t p = 0; p < cache.planes; ++p)
      body(plane[p].as<uint8_t>(), static_cast<const uint8_t *>(cache.plane[p]), bytes[p]);
    if (isFixed(cache))
      body(code.as<uint8_t>(), cache.code, codeBytes(cache));
  }

  /// Copies the tokens of `rows` rows of a cache without pages, of whatever capacity.
  void copyFrom(const aligned_cache &cache, const RowsOf &rows) {
    forEach(cache, [&](uint8_t *to, const uint8_t *from, int64_t bytes) {
      rows.forEach(cache, [&](int64_t row, int64_t source) {
        if (int64_t used = pagesFor(lengthOf(cache, source / cache.kv_heads)))
          std::memcpy(to + row * (capacity / kTile) * bytes, from + source * (cache.capacity / kTile) * bytes, used * bytes);
      });
    });
  }

  /// Copies the tiles of all heads from one page to another.
  void copyPage(const aligned_cache &cache, int32_t to, int32_t from) {
    forEach(cache, [&](uint8_t *own, const uint8_t *, int64_t bytes) {
      std::memcpy(own + to * cache.kv_heads * bytes, own + from * cache.kv_heads * bytes, cache.kv_heads * bytes);
    });
  }
};

/// What is known of rows.
struct Summaries {
  enum { Scales, Sum, Offset, Maxima, kinds };
  Array of[kinds];

  static std::array<int64_t, kinds> bytes(const aligned_cache &cache) {
    const int64_t values = product(cache.rows, cache.head_dim), floats = product(values, sizeof(float));
    return {isFixed(cache) ? product(cache.rows, sizeof(aligned_scales)) : 0, hasSums(cache) ? product(values, sizeof(int64_t)) : 0,
            hasOffset(cache) ? floats : 0, floats};
  }

  /// Zeros, for the rows of a cache.
  bool allocate(const aligned_cache &cache) {
    const auto bytes = Summaries::bytes(cache);
    for (int kind = 0; kind < kinds; ++kind)
      if (!::allocate(of[kind], bytes[kind]))
        return false;
    return true;
  }

  /// What is known of `rows` rows of a cache.
  void copyFrom(const aligned_cache &cache, const Summaries &others, const RowsOf &rows) {
    const auto bytes = Summaries::bytes(cache);
    for (int kind = 0; kind < kinds; ++kind)
      if (const int64_t each = bytes[kind] / cache.rows)
        rows.forEach(cache, [&](int64_t row, int64_t source) { std::memcpy(of[kind].as<char>() + row * each, others.of[kind].as<char>() + source * each, each); });
  }

  aligned_scales *scales() const { return of[Scales].as<aligned_scales>(); }
  int64_t *sum() const { return of[Sum].as<int64_t>(); }
  float *offset() const { return of[Offset].as<float>(); }
  float *maxima() const { return of[Maxima].as<float>(); }
};

/// All tokens as they came, while they are few.
struct DenseCopy {
  Array values;
  int64_t capacity = 0;

  static int64_t rowBytes(const aligned_cache &cache) { return cache.head_dim * elementBytes(cache.format.element); }
  int64_t bytes(const aligned_cache &cache) const { return cache.rows * capacity * rowBytes(cache); }
  char *at(const aligned_cache &cache, int64_t row, int64_t token) const { return values.as<char>() + (row * capacity + token) * rowBytes(cache); }

  /// Room for `tokens` tokens of each row.
  bool allocate(const aligned_cache &cache, int64_t tokens) {
    if (!::allocate(values, product(cache.rows, tokens, rowBytes(cache)), 2 * (ALIGNED_MAX_PLANES + 1) + !isKey(cache)))
      return false;
    capacity = tokens;
    return true;
  }
  void copyFrom(const aligned_cache &cache, const DenseCopy &other, const RowsOf &rows) {
    if (cache.tokens)
      rows.forEach(cache, [&](int64_t row, int64_t source) { std::memcpy(at(cache, row, 0), other.at(cache, source, 0), cache.tokens * rowBytes(cache)); });
  }
};

/// Tokens kept aside (S7), with their values for readers and their bits as they came.
struct Asides {
  Array list, values, patterns;
  int64_t count = 0, capacity = 0;

  static int64_t valueBytes(const aligned_cache &cache) { return cache.head_dim * int64_t(sizeof(float)); }
  static int64_t patternBytes(const aligned_cache &cache) { return cache.head_dim * elementBytes(cache.format.element); }
  int64_t bytes(const aligned_cache &cache) const { return capacity * (int64_t(sizeof(aligned_aside)) + valueBytes(cache) + patternBytes(cache)); }

  aligned_aside *begin() const { return list.as<aligned_aside>(); }
  aligned_aside *end() const { return begin() + count; }
  float *valuesOf(const aligned_cache &cache, int64_t i) const { return values.as<float>() + i * cache.head_dim; }
  char *patternsOf(const aligned_cache &cache, int64_t i) const { return patterns.as<char>() + i * patternBytes(cache); }

  bool reserve(const aligned_cache &cache, int64_t wanted) {
    if (wanted <= capacity)
      return true;
    wanted = std::max(wanted, capacity + capacity / 2);
    Asides grown;
    if (!::allocate(grown.list, product(wanted, sizeof(aligned_aside))) || !::allocate(grown.values, product(wanted, valueBytes(cache))) ||
        !::allocate(grown.patterns, product(wanted, patternBytes(cache))))
      return false;
    grown.capacity = wanted;
    for (int64_t i = 0; i < count; ++i)
      grown.push(cache, begin()[i], valuesOf(cache, i), patternsOf(cache, i));
    *this = std::move(grown);
    return true;
  }

  /// There is room for it.
  void push(const aligned_cache &cache, const aligned_aside &aside, const float *itsValues, const void *itsPatterns) {
    begin()[count] = aside;
    std::memmove(valuesOf(cache, count), itsValues, valueBytes(cache)); // may be its own place
    std::memmove(patternsOf(cache, count), itsPatterns, patternBytes(cache));
    ++count;
  }

  template <typename Gone> void remove(const aligned_cache &cache, Gone gone) {
    const int64_t before = count;
    count = 0;
    for (int64_t i = 0; i < before; ++i)
      if (!gone(begin()[i]))
        push(cache, begin()[i], valuesOf(cache, i), patternsOf(cache, i));
  }
};

/// A row, and whose it is.
struct RowIndex {
  int64_t row, entry, head;
};

/// Where the tiles of all rows lie. Loops that pack keep it in a variable: as far as compilers know, they might write to fields of the cache.
struct Places {
  Tile first;
  std::array<int64_t, ALIGNED_MAX_PLANES> bytes; // of a tile
  int64_t codeBytes;
  const int32_t *pages;
  int64_t tiles, kvHeads; // of a row or of a batch entry's pages; of an entry

  ALIGNED_LOOP Tile tileOf(const RowIndex &at, int64_t index) const {
    const int64_t place = pages ? pages[at.entry * tiles + index] * kvHeads + at.head : at.row * tiles + index;
    Tile tile = first;
    for (int32_t p = 0; p < ALIGNED_MAX_PLANES; ++p)
      tile.plane[p] += place * bytes[p];
    tile.code += place * codeBytes;
    return tile;
  }
};

/// Owns what the public fields point to.
struct Cache : aligned_cache {
  Planes planeArrays;
  Summaries summaries;
  Asides asideList;
  DenseCopy denseCopy;
  Array lengthList;
  PageTable pageTable;      // of a cache with pages
  bool offsetIsSet = false; // by aligned_cache_set_offset
  bool biasIsSettled;

  Cache(const aligned_format &format, int64_t batch, int64_t kvHeads, int64_t headDim) : aligned_cache() {
    this->format = format;
    this->batch = batch;
    this->kv_heads = kvHeads;
    this->rows = batch * kvHeads;
    this->head_dim = headDim;
    this->planes = format.planes;
    forgetBias();
  }

  /// f16 has one bias for all caches; others wait for the first value.
  void forgetBias() {
    bias = isFixed(*this) ? storage::kHalfBias : 0;
    biasIsSettled = format.element == ALIGNED_ELEMENT_F16 || !isFixed(*this);
  }

  /// For `tokens` tokens of each batch entry; `physical`, unless negative: pages that the entries share.
  bool allocate(int64_t tokens, int64_t physical) {
    if (physical >= 0 && !pageTable.allocate(batch, tokens / kTile, physical))
      return fail("out of memory: expected room for %lld pages and a table", (long long)physical), false;
    if (!planeArrays.allocate(*this, tokens, physical) || !summaries.allocate(*this))
      return false;
    publish();
    return true;
  }

  void publish() {
    for (int32_t p = 0; p < ALIGNED_MAX_PLANES; ++p)
      plane[p] = planeArrays.plane[p].as<void>();
    code = planeArrays.code.as<uint8_t>();
    capacity = planeArrays.capacity;
    scales = summaries.scales();
    sum = summaries.sum();
    offset = summaries.offset();
    channel_max = summaries.maxima();
    pages = pageTable.data();
    lengths = lengthList.as<int64_t>();
    aside = asideList.begin();
    aside_values = asideList.values.as<float>();
    asides = asideList.count;
    dense = denseCopy.values.as<void>();
    dense_capacity = denseCopy.capacity;
  }

  /// Whether there is a dense copy when `longest` tokens are there, some of which came just now.
  bool keepsDense(int64_t longest) const { return longest <= dense_limit && !lengths && (dense || !tokens); }

  /// A list of the entries' lengths.
  bool allocateLengths(Array &list) const {
    if (!::allocate(list, product(batch, sizeof(int64_t))))
      return false;
    for (int64_t entry = 0; entry < batch; ++entry)
      list.as<int64_t>()[entry] = lengthOf(*this, entry);
    return true;
  }

  Row rowOf(const Summaries &summaries, int64_t row) const {
    const int64_t first = row * head_dim;
    return {format,
            int32_t(planes),
            int32_t(bias),
            hasOffset(*this) ? summaries.offset() + first : nullptr,
            summaries.maxima() + first,
            hasSums(*this) ? summaries.sum() + first : nullptr,
            isFixed(*this) ? summaries.scales() + row : nullptr};
  }

  RowIndex indexOf(int64_t row) const {
    const int64_t entry = row / kv_heads;
    return {row, entry, row - entry * kv_heads};
  }

  /// Of `arrays`, the cache's or larger ones.
  Places placesOf(const Planes &arrays) const {
    Places places = {{}, {}, codeBytes(*this), pages, arrays.capacity / kTile, kv_heads};
    for (int32_t p = 0; p < ALIGNED_MAX_PLANES; ++p) {
      places.first.plane[p] = arrays.plane[p].as<uint8_t>();
      places.bytes[p] = arrays.bytes[p];
    }
    places.first.code = arrays.code.as<uint8_t>();
    return places;
  }
  Tile tileOf(int64_t row, int64_t index) const { return placesOf(planeArrays).tileOf(indexOf(row), index); }
};

/// Calls body(begin, end) over the rows, from several threads where there is much to do: `values` in each row.
template <typename Body> void forRows(const aligned_cache &cache, int64_t values, const Body &body) {
  constexpr int64_t much = 1 << 16; // some 50 us of packing
  if (cache.rows == 1 || values < much / cache.rows)
    return body(int64_t(0), cache.rows);
  aligned_rt_parallel(
      cache.rows, [](void *body, int64_t begin, int64_t end) { (*static_cast<const Body *>(body))(begin, end); }, const_cast<Body *>(&body));
}

/// Takes tokens [first, last) of a row out of what is known of it, which is sums of integers and counts.
ALIGNED_LOOP void forget(Cache &cache, const Summaries &known, int64_t r, int64_t first, int64_t last) {
  const Row row = cache.rowOf(known, r);
  for (int64_t token = first; token < last; ++token) {
    const Tile tile = cache.tileOf(r, token / kTile);
    const uint8_t code = tile.code[withinTile(token)];
    if (code == storage::kAside)
      continue;
    if (row.sum)
      addToSums(row, tile, token, cache.head_dim, -1);
    count(*row.scales, code, -1);
  }
  settle(*row.scales);
}

//===----------------------------------------------------------------------===//
// Append
//===----------------------------------------------------------------------===//

/// An append in progress. Tokens are numbered as in the cache that results.
template <typename Element> class Append {
  using Bits = typename Element::Bits;

public:
  /// counts: of each batch entry; null where all get `count`. position: of the tokens whose place is taken; -1 behind the last.
  Append(Cache &cache, const void *data, const int64_t *counts, int64_t count, const int64_t *strides, int64_t position = -1)
      : cache(cache), data(static_cast<const Bits *>(data)), counts(counts), count(count), strides(strides), position(position), bias(int32_t(cache.bias)) {}

  int run() {
    for (int64_t n = 0; n < cache.batch; ++n) {
      const int64_t longer = replaces() ? lengthOf(cache, n) : lengthOf(cache, n) + countOf(n);
      most = std::max(most, countOf(n));
      longest = std::max(longest, longer);
      if (cache.pages && longer > cache.capacity)
        return fail("expected at most %lld tokens in batch entry %lld, got %lld", (long long)cache.capacity, (long long)n, (long long)longer);
    }
    if (!reserve())
      return -1;
    settleOffsets();
    settleBias();
    if (replaces() && isFixed(cache))
      vectorized([&](auto) ALIGNED_BODY {
        for (int64_t row = 0; row < cache.rows; ++row)
          forget(cache, work(), row, position, position + count);
      });
    std::atomic<int64_t> found = 0;
    forRows(cache, most * cache.head_dim, [&](int64_t begin, int64_t end) {
      if (int64_t some = vectorized([&](auto unroll) ALIGNED_BODY { return packRows(begin, end, unroll); }))
        found += some;
      if (keepsDense)
        copyRows(begin, end);
    });
    if (found && !cache.asideList.reserve(cache, cache.asideList.count + found)) {
      if (cache.pages)
        cache.pageTable.undo(lengthBefore());
      return -1;
    }
    commit(found);
    return 0;
  }

private:
  bool replaces() const { return position >= 0; }
  int64_t countOf(int64_t n) const { return counts ? counts[n] : count; }
  auto lengthBefore() const {
    return [this](int64_t entry) { return lengthOf(cache, entry); };
  }

  /// All that packing needs. The list of tokens kept aside comes last, since it can't be had back.
  bool reserve() {
    constexpr int64_t few = 8; // tokens, whose values take no more memory than the summaries of their row
    if (!cache.pages && longest > cache.capacity) {
      if (!grown.emplace().allocate(cache, grownCapacity(cache.capacity, longest)))
        return false;
      grown->copyFrom(cache, {});
    }
    keepsDense = !counts && cache.keepsDense(longest);
    if (keepsDense && longest > cache.dense_capacity) {
      const int64_t tokens = std::min(std::max(grownCapacity(cache.dense_capacity, longest), cache.capacity), cache.dense_limit);
      if (!dense.emplace().allocate(cache, tokens))
        return false;
      dense->copyFrom(cache, cache.denseCopy, {});
    }
    if (counts && !cache.lengths && !cache.allocateLengths(lengths))
      return false;
    if (most > few) {
      if (!summaries.emplace().allocate(cache))
        return false;
      summaries->copyFrom(cache, cache.summaries, {});
    }
    if (cache.pages) {
      PageTable::Need need = cache.pageTable.reserve(lengthBefore(), [this](int64_t n) { return countOf(n); });
      if (!need.met())
        return fail("expected %lld free pages, got %lld of %lld", (long long)need.pages, (long long)need.free,
                    (long long)cache.pageTable.physicalPages()),
               false;
    }
    if ((most <= few || replaces()) && !cache.asideList.reserve(cache, cache.asideList.count + cache.rows * most)) { // what is replaced is lost if this comes later
      if (cache.pages)
        cache.pageTable.undo(lengthBefore());
      return false;
    }
    cache.pageTable.forEachReplaced(lengthBefore(), [&](int32_t own, int32_t shared) { cache.planeArrays.copyPage(cache, own, shared); });
    return true;
  }

  const Planes &planes() const { return grown ? *grown : cache.planeArrays; }
  const Summaries &work() const { return summaries ? *summaries : cache.summaries; }

  Row rowOf(int64_t row) const {
    Row result = cache.rowOf(work(), row);
    result.bias = bias;
    return result;
  }

  /// The new tokens of a row, and how far apart they and their values are.
  struct Arrivals {
    RowIndex at;
    int64_t first, end;
    const Bits *from;
    int64_t apart, step;
  };
  /// Calls body(its new tokens) of each row of some.
  template <typename Body> ALIGNED_LOOP void forEachRow(int64_t begin, int64_t end, Body body) const {
    const int64_t heads = cache.kv_heads, tokens = cache.tokens, each = count, apart[] = {strides[0], strides[1], strides[2], strides[3]};
    const int64_t *const lengths = cache.lengths, *const given = counts;
    const Bits *const from = data;
    for (RowIndex at = cache.indexOf(begin); at.row < end; ++at.row) {
      const int64_t had = replaces() ? position : lengths ? lengths[at.entry] : tokens;
      body(Arrivals{at, had, had + (given ? given[at.entry] : each), from + at.entry * apart[0] + at.head * apart[1], apart[2], apart[3]});
      if (++at.head == heads) {
        at.head = 0;
        ++at.entry;
      }
    }
  }

  /// Calls body(token, its values) of new tokens [first, end).
  template <typename Body> ALIGNED_LOOP void forEachToken(const Arrivals &arrivals, int64_t first, int64_t end, Body body) const {
    const Bits *from = arrivals.from + (first - arrivals.first) * arrivals.apart;
    for (int64_t token = first; token < end; ++token, from += arrivals.apart) {
      const Bits *values = from;
      Bits gathered[kMostChannels];
      if (arrivals.step != 1) {
        for (int64_t c = 0; c < cache.head_dim; ++c)
          gathered[c] = from[c * arrivals.step];
        values = gathered;
      }
      body(token, values);
    }
  }

  /// The same of each stretch within a tile: body(tile, first token, end).
  template <typename Body> ALIGNED_LOOP void forEachTile(const Arrivals &arrivals, const Places &places, Body body) const {
    for (int64_t first = arrivals.first, end; first < arrivals.end; first = end) {
      end = std::min((first | (kTile - 1)) + 1, arrivals.end);
      body(places.tileOf(arrivals.at, int64_t(uint64_t(first) / kTile)), first, end);
    }
  }

  /// S2: rows that are empty and get a tile's tokens take their mean off. Fewer tokens take nothing off, and that is what an empty row has.
  void settleOffsets() {
    if (most < kTile || !hasOffset(cache) || cache.offsetIsSet || replaces())
      return;
    vectorized([&](auto) ALIGNED_BODY {
      forEachRow(0, cache.rows, [&](const Arrivals &arrivals) ALIGNED_BODY {
        if (arrivals.first || arrivals.end < kTile)
          return;
        double sum[kMostChannels] = {};
        int64_t finite = 0;
        forEachToken(arrivals, 0, kTile, [&](int64_t, const Bits *values) ALIGNED_BODY {
          bool isFinite = true;
          for (int64_t c = 0; c < cache.head_dim; ++c)
            isFinite &= (values[c] & Element::magnitude) < Element::infinity;
          if (!isFinite)
            return;
          ++finite;
          for (int64_t c = 0; c < cache.head_dim; ++c)
            sum[c] += Element::toFloat(values[c]);
        });
        for (int64_t c = 0; c < cache.head_dim; ++c)
          summaries->offset()[arrivals.at.row * cache.head_dim + c] = float(finite ? sum[c] / double(finite) : 0);
      });
    });
  }

  /// S3: the first append that brings a value that is not zero settles the bias.
  void settleBias() {
    if constexpr (!std::is_same_v<Element, Half>) { // whose caches have a bias from the start
      if (cache.biasIsSettled)
        return;
      std::atomic<int32_t> largest = 0;
      forRows(cache, most * cache.head_dim, [&](int64_t begin, int64_t end) {
        const int32_t seen =
            vectorized([&](auto) ALIGNED_BODY { return isKey(cache) ? largestStored<true>(begin, end) : largestStored<false>(begin, end); });
        for (int32_t before = largest; before < seen && !largest.compare_exchange_weak(before, seen);)
          ;
      });
      biasIsSettled = largest > 0;
      if (biasIsSettled)
        bias = storage::biasFor(eighthsAbove(largest));
    }
  }

  /// The bits of the largest finite value as it will be stored.
  template <bool isKey> ALIGNED_LOOP int32_t largestStored(int64_t begin, int64_t end) const {
    int32_t largest = 0;
    forEachRow(begin, end, [&](const Arrivals &arrivals) ALIGNED_BODY {
      const Row row = rowOf(arrivals.at.row);
      forEachToken(arrivals, arrivals.first, arrivals.end, [&](int64_t, const Bits *values) ALIGNED_BODY {
        Floats raw[kMostChunks], stored[kMostChunks];
        const int32_t magnitude = loadFixed<Element, isKey>(row, values, cache.head_dim, raw, stored);
        largest = magnitude < kFiniteMagnitudes ? std::max(largest, magnitude) : largest;
      });
    });
    return largest;
  }

  /// Packs the new tokens of some rows and returns how many are to be kept aside. Where it is worth it, the usual formats have loops of their own.
  template <bool unroll> ALIGNED_LOOP int64_t packRows(int64_t begin, int64_t end, std::bool_constant<unroll>) const {
    if (!isFixed(cache))
      return packFloatRows(begin, end);
    const int64_t usualChannels = unroll && rowOf(begin).isUsual() ? cache.head_dim : 0;
    return isKey(cache) ? packFixedRows<true>(begin, end, usualChannels) : packFixedRows<false>(begin, end, usualChannels);
  }

  template <bool isKey> ALIGNED_LOOP int64_t packFixedRows(int64_t begin, int64_t end, int64_t usualChannels) const {
    if (usualChannels == 64)
      return packFixedRows<isKey, true, true>(begin, end, 64);
    if (usualChannels == 128)
      return packFixedRows<isKey, true, true>(begin, end, 128);
    if (usualChannels)
      return packFixedRows<isKey, true, false>(begin, end, usualChannels);
    return packFixedRows<isKey, false, false>(begin, end, cache.head_dim);
  }

  template <bool isKey, bool isUsual, bool inRegisters> ALIGNED_LOOP int64_t packFixedRows(int64_t begin, int64_t end, int64_t channels) const {
    int64_t found = 0;
    const Row firstRow = rowOf(begin);
    Places places = cache.placesOf(planes());
    if constexpr (isUsual)
      places.bytes = {storage::bytesPerTile(4, channels), storage::bytesPerTile(4, channels), storage::bytesPerTile(8, channels)};
    places.codeBytes = kTile;
    // Four are loaded before the first of them is packed, so that they wait for their scales together.
    struct {
      int64_t row, token;
      Tile tile;
      Loaded loaded;
    } jobs[4];
    int64_t held = 0;
    while (counts && begin < end && !counts[(end - 1) / cache.kv_heads])
      --end; // the last row has the last token
    forEachRow(begin, end, [&](const Arrivals &arrivals) ALIGNED_BODY {
      const int64_t r = arrivals.at.row - begin;
      const Row row = firstRow.after(r, channels);
      forEachToken(arrivals, arrivals.first, arrivals.end, [&](int64_t token, const Bits *values) ALIGNED_BODY {
        auto &job = jobs[held++];
        job.row = r;
        job.token = token;
        job.tile = places.tileOf(arrivals.at, int64_t(uint64_t(token) / kTile));
        loadToken<Element, isKey, inRegisters>(row, values, channels, job.loaded);
        if (held < int64_t(std::size(jobs)) && (token + 1 < arrivals.end || arrivals.at.row + 1 < end))
          return;
        for (int64_t i = 0; i < held; ++i) {
          const Row row = firstRow.after(jobs[i].row, channels);
          found += packFixed<isKey, isUsual>(row, jobs[i].tile, jobs[i].token, jobs[i].loaded, channels);
          if (i + 1 == held || jobs[i + 1].row != jobs[i].row)
            settle(*row.scales);
        }
        held = 0;
      });
    });
    return found;
  }

  ALIGNED_LOOP int64_t packFloatRows(int64_t begin, int64_t end) const {
    const int64_t channels = cache.head_dim;
    int64_t found = 0;
    const Places places = cache.placesOf(planes());
    forEachRow(begin, end, [&](const Arrivals &arrivals) ALIGNED_BODY {
      const Row row = rowOf(arrivals.at.row);
      forEachTile(arrivals, places, [&](const Tile &tile, int64_t first, int64_t last) ALIGNED_BODY {
        uint16_t patterns[kTile * kMostChannels]; // of a whole tile, or of one token
        const bool together = row.isKey() && last - first == kTile;
        forEachToken(arrivals, first, last, [&](int64_t token, const Bits *values) ALIGNED_BODY {
          const int64_t t = withinTile(token);
          uint16_t *own = patterns + (together ? t * channels : 0);
          found += loadFloat<Element>(row, values, channels, own);
          if (!row.isKey())
            writeFloatValue(row, tile, t, own, channels);
          else if (!together)
            writeFloatKey(row, tile, t, own, channels);
        });
        if (together)
          writeFloatKeys(row, tile, patterns, channels);
      });
    });
    return found;
  }

  /// Writes the new tokens of some rows to the dense copy.
  void copyRows(int64_t begin, int64_t end) const {
    const DenseCopy &to = dense ? *dense : cache.denseCopy;
    forEachRow(begin, end, [&](const Arrivals &arrivals) {
      forEachToken(arrivals, arrivals.first, arrivals.end, [&](int64_t token, const Bits *values) {
        std::memcpy(to.at(cache, arrivals.at.row, token), values, DenseCopy::rowBytes(cache));
      });
    });
  }

  /// Lists the tokens to be kept aside: fixed formats gave them code 0, float formats hold what they can't take.
  void listAsides() {
    const Places places = cache.placesOf(planes());
    constexpr Bits limit = std::is_same_v<Element, Single> ? Bits(Half::overflow) : Element::infinity;
    forEachRow(0, cache.rows, [&](const Arrivals &arrivals) {
      const int64_t row = arrivals.at.row;
      forEachTile(arrivals, places, [&](const Tile &tile, int64_t first, int64_t last) ALIGNED_BODY {
        forEachToken(arrivals, first, last, [&](int64_t token, const Bits *patterns) {
          const auto isBeyond = [](Bits x) { return (x & Element::magnitude) >= limit; };
          if (tile.code ? tile.code[withinTile(token)] != storage::kAside : std::none_of(patterns, patterns + cache.head_dim, isBeyond))
            return;
          const float *offset = rowOf(row).offset;
          float values[kMostChannels];
          for (int64_t c = 0; c < cache.head_dim; ++c)
            values[c] = Element::toFloat(patterns[c]) - (offset ? offset[c] : 0);
          cache.asideList.push(cache, {row, token}, values, patterns);
        });
      });
    });
  }

  /// Makes all of it visible; nothing here can fail.
  void commit(int64_t found) {
    if (replaces())
      cache.asideList.remove(cache, [&](const aligned_aside &aside) { return aside.token >= position && aside.token < position + count; });
    if (found)
      listAsides();
    if (grown)
      cache.planeArrays = std::move(*grown);
    if (summaries)
      cache.summaries = std::move(*summaries);
    if (dense)
      cache.denseCopy = std::move(*dense);
    else if (cache.dense && !keepsDense)
      cache.denseCopy = {};
    cache.pageTable.commit();
    if (lengths)
      cache.lengthList = std::move(lengths);
    for (int64_t n = 0; n < cache.batch && cache.lengthList && !replaces(); ++n)
      cache.lengthList.as<int64_t>()[n] += countOf(n);
    cache.tokens = longest;
    cache.bias = bias;
    cache.biasIsSettled |= biasIsSettled;
    cache.publish();
  }

  Cache &cache;
  const Bits *data;
  const int64_t *counts;
  int64_t count;
  const int64_t *strides;
  const int64_t position;
  int64_t most = 0, longest = 0; // tokens that an entry gets, and that an entry has then
  int32_t bias;
  bool biasIsSettled = false;         // by this append
  std::optional<Planes> grown;        // where the cache's own have no room
  std::optional<DenseCopy> dense;     // the same
  bool keepsDense = false;
  std::optional<Summaries> summaries; // where more than a few tokens come
  Array lengths;                      // empty where the cache has some, or needs none
};

//===----------------------------------------------------------------------===//
// Truncation
//===----------------------------------------------------------------------===//

/// Takes the tokens of a row from `left` on out of what is known of it.
ALIGNED_LOOP void forgetNewest(Cache &cache, int64_t r, int64_t left, int64_t length) {
  if (left)
    return forget(cache, cache.summaries, r, left, length);
  const Row row = cache.rowOf(cache.summaries, r);
  *row.scales = {};
  if (row.sum)
    std::fill_n(row.sum, cache.head_dim, 0);
  if (row.offset && !cache.offsetIsSet)
    std::fill_n(cache.offset + r * cache.head_dim, cache.head_dim, 0.0f);
}

/// Leaves no more than `left` tokens of entries [first, last).
void truncate(Cache &cache, int64_t first, int64_t last, int64_t left) {
  auto length = [&](int64_t row) { return lengthOf(cache, row / cache.kv_heads); };
  if (isFixed(cache))
    forRows(cache, std::max<int64_t>(cache.tokens - left, 0) * cache.head_dim, [&](int64_t begin, int64_t end) {
      vectorized([&](auto) ALIGNED_BODY {
        for (int64_t row = std::max(begin, first * cache.kv_heads); row < std::min(end, last * cache.kv_heads); ++row)
          if (left < length(row))
            forgetNewest(cache, row, left, length(row));
      });
    });
  cache.asideList.remove(cache, [&](const aligned_aside &aside) {
    return aside.token >= left && aside.row >= first * cache.kv_heads && aside.row < last * cache.kv_heads;
  });
  for (int64_t entry = first; entry < last && cache.pages; ++entry)
    cache.pageTable.give(entry, pagesFor(std::min(left, lengthOf(cache, entry))));
  if (cache.lengths) {
    for (int64_t entry = first; entry < last; ++entry)
      cache.lengths[entry] = std::min(cache.lengths[entry], left);
    cache.tokens = *std::max_element(cache.lengths, cache.lengths + cache.batch);
  } else {
    cache.tokens = std::min(cache.tokens, left);
  }
  if (cache.tokens == 0)
    cache.forgetBias();
  cache.publish();
}

/// Calls body(row, tile, token) of all tokens of fixed planes that are not kept aside, behind begin(row) and ahead of end(row).
template <typename Begin, typename Body, typename End> void forStored(Cache &cache, Begin begin, Body body, End end) {
  forRows(cache, cache.tokens * cache.head_dim, [&](int64_t firstRow, int64_t lastRow) {
    vectorized([&](auto) ALIGNED_BODY {
      for (int64_t r = firstRow; r < lastRow; ++r) {
        const Row row = cache.rowOf(cache.summaries, r);
        begin(row);
        for (int64_t token = 0, length = lengthOf(cache, r / cache.kv_heads); token < length; ++token)
          if (const Tile tile = cache.tileOf(r, token / kTile); tile.code[withinTile(token)] != storage::kAside)
            body(row, tile, token);
        end(row);
      }
    });
  });
}

/// Sums of what is left when planes have gone.
void sumAgain(Cache &cache) {
  forStored(
      cache, [&](const Row &row) ALIGNED_BODY { std::fill_n(row.sum, cache.head_dim, 0); },
      [&](const Row &row, const Tile &tile, int64_t token) ALIGNED_BODY { addToSums(row, tile, token, cache.head_dim, 1); }, [](const Row &) {});
}

/// Counts of scale codes, which lead through tables, from the codes that are there.
void countAgain(Cache &cache) {
  forStored(
      cache, [](const Row &row) ALIGNED_BODY { *row.scales = {}; },
      [](const Row &row, const Tile &tile, int64_t token) ALIGNED_BODY { count(*row.scales, tile.code[withinTile(token)], 1); },
      [](const Row &row) ALIGNED_BODY { settle(*row.scales); });
}

//===----------------------------------------------------------------------===//
// Unpack
//===----------------------------------------------------------------------===//

template <typename Element> void unpack(const Cache &cache, int bits, void *out) {
  using Bits = typename Element::Bits;
  using Storage = std::conditional_t<std::is_same_v<Element, BFloat>, BFloat, Half>;
  const int64_t channels = cache.head_dim;
  const int32_t planes = std::min(storage::planesFor(cache.format, bits), int32_t(cache.planes));
  const int32_t read = storage::bitsBefore(cache.format, planes), middle = read < 16 ? 1 << (15 - read) : 0;
  constexpr double largest = Element::largest; // what was finite reads as finite, however few bits are read
  Bits *const values = static_cast<Bits *>(out);
  auto unpackRows = [&](int64_t begin, int64_t end) ALIGNED_BODY {
    for (int64_t r = begin; r < end; ++r) {
      const Row row = cache.rowOf(cache.summaries, r);
      const int64_t length = lengthOf(cache, r / cache.kv_heads);
      Bits *to = values + r * cache.tokens * channels;
      for (int64_t token = 0; token < length; ++token, to += channels) {
        const Tile tile = cache.tileOf(r, token / kTile);
        uint16_t cut[kMostChannels];
        double x[kMostChannels];
        readToken(row, tile, planes, withinTile(token), channels, cut);
        if (row.isFixed()) {
          const int32_t known = middle - storage::ditherOf(row.format.role, token);
          const double step = std::exp2((tile.code[withinTile(token)] - row.bias) / 8.0 - 15);
          for (int64_t c = 0; c < channels; ++c)
            x[c] = (storage::integerOf(row.format, cut[c]) + known) * step;
          if (row.isKey()) {
            storage::rotateBack(x, channels);
            for (int64_t c = 0; c < channels; ++c)
              x[c] += row.offset[c];
          }
        } else {
          for (int64_t c = 0; c < channels; ++c)
            x[c] = Storage::toFloat(uint16_t(cut[c] + middle));
        }
        for (int64_t c = 0; c < channels; ++c)
          to[c] = Element::fromFloat(float(std::clamp(x[c], -largest, largest)));
      }
      std::fill_n(to, (cache.tokens - length) * channels, Bits(0));
    }
  };
  forRows(cache, cache.tokens * channels, [&](int64_t begin, int64_t end) { vectorized([&](auto) ALIGNED_BODY { unpackRows(begin, end); }); });
  for (int64_t i = 0; i < cache.asides; ++i)
    std::memcpy(values + (cache.aside[i].row * cache.tokens + cache.aside[i].token) * channels, cache.asideList.patternsOf(cache, i),
                Asides::patternBytes(cache));
}

//===----------------------------------------------------------------------===//
// Checks
//===----------------------------------------------------------------------===//

bool check(const aligned_format *format) {
  if (!format)
    return fail("expected a format, got null"), false;
  const bool fixed = format->kind == ALIGNED_FORMAT_FIXED;
  if (!fixed && format->kind != ALIGNED_FORMAT_FLOAT)
    return fail("expected format kind 0 (fixed) or 1 (float), got %d", format->kind), false;
  if (format->role != ALIGNED_ROLE_KEY && format->role != ALIGNED_ROLE_VALUE)
    return fail("expected role 0 (key) or 1 (value), got %d", format->role), false;
  if (format->element < ALIGNED_ELEMENT_F16 || format->element > ALIGNED_ELEMENT_F32)
    return fail("expected element type 0 (f16), 1 (bf16) or 2 (f32), got %d", format->element), false;
  if (format->planes < 1 || format->planes > ALIGNED_MAX_PLANES)
    return fail("expected 1 to %d planes, got %d", ALIGNED_MAX_PLANES, format->planes), false;
  int sum = 0;
  for (int p = 0; p < ALIGNED_MAX_PLANES; ++p) {
    const int width = format->width[p];
    if (p >= format->planes && width != 0)
      return fail("expected plane %d to have no bits, got %d", p, width), false;
    if (p < format->planes && (width < 4 || width > (fixed ? 8 : 16) || width % 4))
      return fail("expected plane %d to have %s bits, got %d", p, fixed ? "4 or 8" : "4, 8, 12 or 16", width), false;
    sum += width;
  }
  if (sum != 16)
    return fail("expected plane widths that sum to 16, got %d", sum), false;
  return true;
}

bool check(const aligned_cache *cache) { return cache || (fail("expected a cache, got null"), false); }

bool checkEntry(const aligned_cache *cache, int64_t entry) {
  if (!check(cache))
    return false;
  if (entry < 0 || entry >= cache->batch)
    return fail("expected a batch entry from 0 to %lld, got %lld", (long long)cache->batch - 1, (long long)entry), false;
  return true;
}

//===----------------------------------------------------------------------===//
// Locations
//===----------------------------------------------------------------------===//

constexpr int locations = 2;
std::atomic<const aligned_device_caches *> deviceCaches[locations];

bool onHost(const aligned_cache *cache) { return cache->location == ALIGNED_LOCATION_HOST; }

/// What serves a cache that is not on the host, or null and an error.
const aligned_device_caches *serverOf(const aligned_cache *cache) {
  const aligned_device_caches *functions =
      cache->location > 0 && cache->location < locations ? deviceCaches[cache->location].load(std::memory_order_acquire) : nullptr;
  if (!functions)
    fail("expected a cache on the host, got one in location %d that no library serves", cache->location);
  return functions;
}

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using OwnedCache = std::unique_ptr<aligned_cache, Destroy>;

/// A copy on the host of a cache that is elsewhere, or null and an error.
OwnedCache downloaded(const aligned_cache *cache) {
  const aligned_device_caches *server = serverOf(cache);
  return OwnedCache(server ? server->download(cache) : nullptr);
}

Cache *ownerOf(aligned_cache *cache) { return static_cast<Cache *>(cache); }
const Cache *ownerOf(const aligned_cache *cache) { return static_cast<const Cache *>(cache); }

//===----------------------------------------------------------------------===//
// Create and append
//===----------------------------------------------------------------------===//

std::unique_ptr<Cache> create(const aligned_format &format, int64_t batch, int64_t kvHeads, int64_t headDim) {
  std::unique_ptr<Cache> cache(new (std::nothrow) Cache(format, batch, kvHeads, headDim));
  if (!cache)
    fail("out of memory: expected %zu more bytes", sizeof(Cache));
  return cache;
}

aligned_cache *create(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity, int64_t physical) {
  if (!check(format))
    return nullptr;
  if (batch < 1 || kvHeads < 1 || product(batch, kvHeads) == kTooLarge)
    return fail("expected at least one batch and head, got %lld x %lld", (long long)batch, (long long)kvHeads), nullptr;
  if (headDim < 16 || headDim > kMostChannels || headDim % 16)
    return fail("expected head_dim to be a multiple of 16 from 16 to %lld, got %lld", (long long)kMostChannels, (long long)headDim), nullptr;
  if (capacity < 0 || capacity > std::numeric_limits<int64_t>::max() - kTile)
    return fail("expected a capacity of 0 or more tokens, got %lld", (long long)capacity), nullptr;
  std::unique_ptr<Cache> cache = create(*format, batch, kvHeads, headDim);
  if (!cache || !cache->allocate(pagesFor(capacity) * kTile, physical))
    return nullptr;
  return cache.release();
}

int append(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t strides[4]) {
  bool some = false;
  const int64_t entries = counts ? cache->batch : 1;
  for (int64_t n = 0; n < entries; ++n) {
    const int64_t each = counts ? counts[n] : count;
    if (each < 0 || each > std::numeric_limits<int64_t>::max() - kTile - cache->tokens)
      return fail("expected 0 or more tokens to append, got %lld", (long long)each);
    some |= each > 0;
    if (each > 0 && (!data || !strides))
      return fail("expected %lld tokens to append, got null %s", (long long)each, data ? "strides" : "data");
  }
  if (!some)
    return 0;
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->append(cache, data, counts, count, strides) : -1;
  }
  return withElement(cache->format.element,
                     [&](auto element) { return Append<decltype(element)>(*ownerOf(cache), data, counts, count, strides).run(); });
}

/// A cache of some batch entries of another.
aligned_cache *select(const Cache &from, const RowsOf &rows) {
  const int64_t batch = rows.entriesOf(from);
  std::unique_ptr<Cache> cache = create(from.format, batch, from.kv_heads, from.head_dim);
  if (!cache)
    return nullptr;
  cache->planes = from.planes;
  int64_t asides = 0;
  auto forEachAside = [&](auto body) {
    for (int64_t n = 0; n < batch && from.asides; ++n)
      for (int64_t i = 0; i < from.asides; ++i)
        if (from.aside[i].row / from.kv_heads == rows.entry(n))
          body(i, n * from.kv_heads + from.aside[i].row % from.kv_heads);
  };
  forEachAside([&](int64_t, int64_t) { ++asides; });
  if (!cache->summaries.allocate(*cache) || !cache->asideList.reserve(*cache, asides))
    return nullptr;
  cache->summaries.copyFrom(from, from.summaries, rows);
  forEachAside([&](int64_t i, int64_t row) {
    cache->asideList.push(*cache, {row, from.aside[i].token}, from.asideList.valuesOf(from, i), from.asideList.patternsOf(from, i));
  });
  cache->tokens = from.tokens;
  if (from.lengths) {
    if (!cache->allocateLengths(cache->lengthList))
      return nullptr;
    int64_t *lengths = cache->lengthList.as<int64_t>();
    for (int64_t n = 0; n < batch; ++n)
      lengths[n] = from.lengths[rows.entry(n)];
    cache->tokens = *std::max_element(lengths, lengths + batch);
  }
  if (from.pages) {
    if (!cache->pageTable.share(from.pageTable, batch, [&](int64_t n) { return rows.entry(n); }))
      return fail("out of memory: expected room for a table of %lld bytes", (long long)from.pageTable.bytes()), nullptr;
    cache->planeArrays = from.planeArrays;
  } else {
    if (!cache->planeArrays.allocate(*cache, from.capacity))
      return nullptr;
    cache->planeArrays.copyFrom(from, rows);
  }
  if (from.dense) {
    if (!cache->denseCopy.allocate(*cache, from.dense_capacity))
      return nullptr;
    cache->denseCopy.copyFrom(from, from.denseCopy, rows);
  }
  cache->dense_limit = from.dense_limit;
  cache->bias = from.bias;
  cache->biasIsSettled = from.biasIsSettled;
  cache->offsetIsSet = from.offsetIsSet;
  if (cache->tokens == 0)
    cache->forgetBias();
  cache->publish();
  return cache.release();
}

//===----------------------------------------------------------------------===//
// A cache as one stretch of bytes
//===----------------------------------------------------------------------===//

/// Counts, writes or reads what passes through it. A checksum goes along.
struct Archive {
  enum Mode { Count, Write, Read } mode;
  char *at;
  int64_t left = std::numeric_limits<int64_t>::max(); // to read
  int64_t bytes = 0;
  uint64_t sum = 0xcbf29ce484222325;

  /// False where there is less to read.
  bool pass(void *memory, int64_t count) {
    if (count > left)
      return false;
    if (mode == Write)
      std::memcpy(at, memory, count);
    if (mode == Read)
      std::memcpy(memory, at, count);
    if (mode != Count) {
      for (int64_t i = 0, step; i < count; i += step) { // words, then what is left of one
        uint64_t word = 0;
        std::memcpy(&word, at + i, step = std::min<int64_t>(sizeof word, count - i));
        sum = (sum ^ word) * 0x9E3779B97F4A7C15;
        sum ^= sum >> 29;
      }
      at += count;
    }
    left -= count;
    bytes += count;
    return true;
  }
};

/// What a saved cache begins with.
struct Head {
  char magic[8] = {'a', 'l', 'i', 'g', 'n', 'e', 'd', '1'};
  aligned_format format;
  int64_t batch, kvHeads, headDim, capacity, physical, planes, tokens, bias, denseLimit, denseCapacity, asides;
  int32_t biasIsSettled, offsetIsSet, hasLengths, hasDense;
};

/// Everything behind the head, of a cache that has room for it; false where something is missing or was changed.
bool passContents(Archive &archive, Cache &cache) {
  for (int64_t row = 0; row < cache.rows; ++row)
    for (int64_t index = 0; index < pagesFor(lengthOf(cache, row / cache.kv_heads)); ++index) {
      const Tile tile = cache.tileOf(row, index);
      for (int32_t p = 0; p < cache.planes; ++p)
        if (!archive.pass(tile.plane[p], cache.planeArrays.bytes[p]))
          return false;
      if (codeBytes(cache) && !archive.pass(tile.code, codeBytes(cache)))
        return false;
    }
  const auto bytes = Summaries::bytes(cache);
  for (int kind = 0; kind < Summaries::kinds; ++kind)
    if (!archive.pass(cache.summaries.of[kind].as<void>(), bytes[kind]))
      return false;
  const Asides &asides = cache.asideList;
  if (!archive.pass(asides.begin(), asides.count * sizeof(aligned_aside)) || !archive.pass(asides.values.as<void>(), asides.count * Asides::valueBytes(cache)) ||
      !archive.pass(asides.patterns.as<void>(), asides.count * Asides::patternBytes(cache)))
    return false;
  for (int64_t row = 0; row < cache.rows && cache.denseCopy.capacity && cache.tokens; ++row)
    if (!archive.pass(cache.denseCopy.at(cache, row, 0), cache.tokens * DenseCopy::rowBytes(cache)))
      return false;
  uint64_t sum = archive.sum, found = sum;
  return archive.pass(&found, sizeof found) && found == sum;
}

void save(Archive &archive, const Cache &original) {
  Cache &cache = const_cast<Cache &>(original); // which is only read
  Head head;
  head.format = cache.format;
  head.batch = cache.batch;
  head.kvHeads = cache.kv_heads;
  head.headDim = cache.head_dim;
  head.capacity = cache.capacity;
  head.physical = cache.pages ? cache.pageTable.physicalPages() : -1;
  head.planes = cache.planes;
  head.tokens = cache.tokens;
  head.bias = cache.bias;
  head.denseLimit = cache.dense_limit;
  head.denseCapacity = cache.denseCopy.capacity;
  head.asides = cache.asides;
  head.biasIsSettled = cache.biasIsSettled;
  head.offsetIsSet = cache.offsetIsSet;
  head.hasLengths = cache.lengths != nullptr;
  head.hasDense = cache.dense != nullptr;
  archive.pass(&head, sizeof head);
  if (cache.lengths)
    archive.pass(cache.lengths, cache.batch * sizeof(int64_t));
  passContents(archive, cache);
}

/// Nothing that was saved leads beyond the cache's memory, whoever wrote it.
aligned_cache *load(Archive &archive) {
  auto broken = [](const char *what) { return fail("expected a saved cache, got %s", what), nullptr; };
  Head head, own;
  if (!archive.pass(&head, sizeof head) || std::memcmp(head.magic, own.magic, sizeof head.magic))
    return broken("other bytes");
  constexpr int64_t mostBias = 1 << 13; // eighths of octaves, beyond all floats
  const bool isPlain = head.format.kind == ALIGNED_FORMAT_FLOAT, isPaged = head.physical >= 0;
  const int64_t values = product(head.batch, head.kvHeads, head.headDim, sizeof(float)); // of what is known of channels
  const bool fits = head.tokens >= 0 && head.tokens <= head.capacity && head.asides >= 0 && head.asides <= archive.left / int64_t(sizeof(aligned_aside)) && values > 0 &&
                    values <= archive.left && head.denseLimit >= 0 && head.denseCapacity >= 0 && head.bias >= -mostBias && head.bias <= mostBias &&
                    (!head.hasDense || (head.tokens <= head.denseCapacity && !head.hasLengths && !isPlain && !isPaged)) && (!isPlain || (!isPaged && !head.hasLengths)) &&
                    head.physical >= -1 && head.physical <= PageTable::mostPages;
  if (!fits || !check(&head.format) || head.planes < 1 || head.planes > head.format.planes)
    return broken("sizes that can't be");
  Array lengths;
  if (head.hasLengths && (!allocate(lengths, head.batch * int64_t(sizeof(int64_t)))))
    return nullptr;
  if (head.hasLengths && !archive.pass(lengths.as<void>(), head.batch * sizeof(int64_t)))
    return broken("too few bytes");
  int64_t pages = 0; // sequences have their own from now on
  for (int64_t n = 0; n < head.batch; ++n) {
    const int64_t length = head.hasLengths ? lengths.as<int64_t>()[n] : head.tokens;
    if (length < 0 || length > head.tokens)
      return broken("lengths that can't be");
    pages += pagesFor(length);
  }
  std::unique_ptr<Cache> cache(ownerOf(create(&head.format, head.batch, head.kvHeads, head.headDim, head.capacity, isPaged ? std::max(head.physical, pages) : -1)));
  if (!cache)
    return nullptr;
  if (head.planes < cache->planes && aligned_cache_drop_planes(cache.get(), head.planes))
    return nullptr;
  cache->tokens = head.tokens;
  cache->lengthList = std::move(lengths);
  cache->lengths = cache->lengthList.as<int64_t>();
  if (isPaged) {
    cache->pageTable.reserve([](int64_t) { return int64_t(0); }, [&](int64_t n) { return lengthOf(*cache, n); });
    cache->pageTable.commit();
  }
  if (!cache->asideList.reserve(*cache, head.asides) || (head.hasDense && !cache->denseCopy.allocate(*cache, head.denseCapacity)))
    return nullptr;
  cache->asideList.count = head.asides;
  cache->publish();
  if (!passContents(archive, *cache) || archive.left)
    return broken("bytes that were changed");
  for (const aligned_aside &aside : cache->asideList)
    if (aside.row < 0 || aside.row >= cache->rows || aside.token < 0 || aside.token >= lengthOf(*cache, aside.row / cache->kv_heads))
      return broken("tokens that can't be");
  cache->bias = head.bias;
  if (isFixed(*cache))
    countAgain(*cache);
  cache->biasIsSettled = head.biasIsSettled;
  cache->offsetIsSet = head.offsetIsSet;
  cache->dense_limit = head.denseLimit;
  return cache.release();
}

/// Gives a cache own lengths before an entry changes by itself.
bool ensureLengths(Cache &cache) {
  if (cache.lengths)
    return true;
  if (!cache.allocateLengths(cache.lengthList))
    return false;
  cache.denseCopy = {};
  cache.publish();
  return true;
}

} // namespace

//===----------------------------------------------------------------------===//
// C interface
//===----------------------------------------------------------------------===//

const char *aligned_last_error(void) { return lastError.c_str(); }

void aligned_set_last_error(const char *message) {
  try {
    lastError = message;
  } catch (...) { // no memory for the message: the failure is reported all the same, without words
    lastError.clear();
  }
}

void aligned_register_device_caches(int32_t location, const aligned_device_caches *functions) {
  if (location > 0 && location < locations)
    deviceCaches[location].store(functions, std::memory_order_release);
}

aligned_cache *aligned_cache_create(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity) {
  return create(format, batch, kvHeads, headDim, capacity, -1);
}

aligned_cache *aligned_cache_create_paged(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t physicalPages,
                                          int64_t maxTokens) {
  if (physicalPages < 0 || physicalPages > PageTable::mostPages)
    return fail("expected 0 to %lld pages, got %lld", (long long)PageTable::mostPages, (long long)physicalPages), nullptr;
  return create(format, batch, kvHeads, headDim, maxTokens, physicalPages);
}

void aligned_cache_destroy(aligned_cache *cache) {
  if (!cache || onHost(cache))
    delete ownerOf(cache);
  else if (const aligned_device_caches *server = serverOf(cache))
    server->destroy(cache);
}

aligned_cache *aligned_cache_fork(const aligned_cache *from) {
  if (!check(from))
    return nullptr;
  if (!onHost(from)) {
    const aligned_device_caches *server = serverOf(from);
    return server ? server->fork(from) : nullptr;
  }
  return select(*ownerOf(from), {});
}

aligned_cache *aligned_cache_select(const aligned_cache *from, const int64_t *entries, int64_t count) {
  if (!check(from))
    return nullptr;
  if (count < 1 || !entries)
    return fail("expected at least one batch entry, got %lld", (long long)(entries ? count : 0)), nullptr;
  for (int64_t n = 0; n < count; ++n)
    if (!checkEntry(from, entries[n]))
      return nullptr;
  if (!onHost(from)) {
    const OwnedCache host = downloaded(from), selected(host ? aligned_cache_select(host.get(), entries, count) : nullptr);
    return selected ? serverOf(from)->upload(from, selected.get()) : nullptr;
  }
  if (product(count, from->kv_heads) == kTooLarge)
    return fail("expected a cache that fits in memory, got %lld batch entries", (long long)count), nullptr;
  return select(*ownerOf(from), {entries, count});
}

int64_t aligned_cache_save(const aligned_cache *cache, void *out) {
  if (!check(cache))
    return -1;
  if (!onHost(cache)) {
    const OwnedCache host = downloaded(cache);
    return host ? aligned_cache_save(host.get(), out) : -1;
  }
  Archive archive{out ? Archive::Write : Archive::Count, static_cast<char *>(out)};
  save(archive, *ownerOf(cache));
  return archive.bytes;
}

aligned_cache *aligned_cache_load(const void *data, int64_t bytes) {
  if (!data)
    return fail("expected a saved cache, got null"), nullptr;
  Archive archive{Archive::Read, static_cast<char *>(const_cast<void *>(data)), bytes};
  return load(archive);
}

int aligned_cache_set_offset(aligned_cache *cache, const float *offset) {
  if (!check(cache))
    return -1;
  if (!hasOffset(*cache))
    return fail("expected a cache of fixed keys, got %s %s", isFixed(*cache) ? "fixed" : "float", isKey(*cache) ? "keys" : "values");
  const int64_t values = cache->kv_heads * cache->head_dim;
  for (int64_t i = 0; i < values && offset; ++i)
    if (!std::isfinite(offset[i]))
      return fail("expected a finite offset, got %g for channel %lld of head %lld", offset[i], (long long)(i % cache->head_dim),
                  (long long)(i / cache->head_dim));
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->set_offset(cache, offset) : -1;
  }
  if (cache->tokens)
    return fail("expected an empty cache, got one of %lld tokens", (long long)cache->tokens);
  for (int64_t n = 0; n < cache->batch; ++n)
    for (int64_t i = 0; i < values; ++i)
      cache->offset[n * values + i] = offset ? offset[i] : 0;
  ownerOf(cache)->offsetIsSet = offset;
  return 0;
}

int aligned_cache_keep_dense(aligned_cache *cache, int64_t tokens) {
  if (!check(cache))
    return -1;
  if (tokens < 0)
    return fail("expected to keep a dense copy of 0 or more tokens, got %lld", (long long)tokens);
  if (tokens && !onHost(cache))
    return fail("expected a cache on the host, got one in location %d", cache->location);
  if (tokens && cache->pages)
    return fail("expected a cache without pages, got one with them");
  if (!onHost(cache))
    return 0;
  Cache &owner = *ownerOf(cache);
  if (tokens > owner.dense_limit && cache->tokens)
    return fail("expected an empty cache to keep a dense copy of more tokens than %lld, got one of %lld tokens", (long long)owner.dense_limit,
                (long long)cache->tokens);
  owner.dense_limit = tokens;
  if (cache->tokens > tokens || tokens == 0)
    owner.denseCopy = {};
  owner.publish();
  return 0;
}

int aligned_cache_append(aligned_cache *cache, const void *data, int64_t count, const int64_t strides[4]) {
  return check(cache) ? append(cache, data, nullptr, count, strides) : -1;
}

int aligned_cache_append_ragged(aligned_cache *cache, const void *data, const int64_t *counts, const int64_t strides[4]) {
  if (!check(cache))
    return -1;
  if (!counts)
    return fail("expected the number of tokens of %lld batch entries, got null", (long long)cache->batch);
  return append(cache, data, counts, 0, strides);
}

int aligned_cache_overwrite(aligned_cache *cache, int64_t position, const void *data, int64_t count, const int64_t strides[4]) {
  if (!check(cache))
    return -1;
  int64_t shortest = cache->tokens;
  for (int64_t n = 0; n < cache->batch && cache->lengths; ++n)
    shortest = std::min(shortest, cache->lengths[n]);
  if (position < 0 || count < 0 || position > shortest || count > shortest - position)
    return fail("expected to overwrite some of %lld tokens, got %lld from token %lld on", (long long)shortest, (long long)count, (long long)position);
  if (count && (!data || !strides))
    return fail("expected %lld tokens to overwrite others, got null %s", (long long)count, data ? "strides" : "data");
  if (!onHost(cache) || cache->pages)
    return fail("expected a cache on the host and without pages, got one %s", onHost(cache) ? "with pages" : "elsewhere");
  if (!count)
    return 0;
  return withElement(cache->format.element,
                     [&](auto element) { return Append<decltype(element)>(*ownerOf(cache), data, nullptr, count, strides, position).run(); });
}

int64_t aligned_cache_length(const aligned_cache *cache, int64_t entry) {
  if (!checkEntry(cache, entry))
    return -1;
  if (onHost(cache))
    return lengthOf(*cache, entry);
  const aligned_device_caches *server = serverOf(cache);
  return server ? server->length(cache, entry) : -1;
}

int aligned_cache_release(aligned_cache *cache, int64_t entry) {
  if (!checkEntry(cache, entry))
    return -1;
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->release(cache, entry) : -1;
  }
  Cache &owner = *ownerOf(cache);
  if (!ensureLengths(owner))
    return -1;
  truncate(owner, entry, entry + 1, 0);
  const int64_t values = owner.kv_heads * owner.head_dim;
  std::fill_n(owner.channel_max + entry * values, values, 0.0f);
  return 0;
}

int64_t aligned_cache_free_pages(const aligned_cache *cache) {
  if (!check(cache))
    return -1;
  if (onHost(cache))
    return ownerOf(cache)->pageTable.freePages();
  const aligned_device_caches *server = serverOf(cache);
  return server ? server->free_pages(cache) : -1;
}

int aligned_cache_unpack(const aligned_cache *cache, int bits, void *out) {
  if (!check(cache))
    return -1;
  if (bits < 1 || bits > 16)
    return fail("expected 1 to 16 bits to read, got %d", bits);
  if (!onHost(cache)) {
    const OwnedCache host = downloaded(cache);
    return host ? aligned_cache_unpack(host.get(), bits, out) : -1;
  }
  if (cache->tokens && !out)
    return fail("expected room for %lld tokens, got null", (long long)cache->tokens);
  withElement(cache->format.element, [&](auto element) { unpack<decltype(element)>(*ownerOf(cache), bits, out); });
  return 0;
}

int aligned_cache_truncate(aligned_cache *cache, int64_t tokens) {
  if (!check(cache))
    return -1;
  if (tokens < 0 || (onHost(cache) && tokens > cache->tokens))
    return fail("expected to keep 0 to %lld tokens, got %lld", (long long)cache->tokens, (long long)tokens);
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->truncate(cache, -1, tokens) : -1;
  }
  truncate(*ownerOf(cache), 0, cache->batch, tokens);
  return 0;
}

int aligned_cache_truncate_entry(aligned_cache *cache, int64_t entry, int64_t tokens) {
  if (!checkEntry(cache, entry))
    return -1;
  if (tokens < 0 || (onHost(cache) && tokens > lengthOf(*cache, entry)))
    return fail("expected to keep 0 to %lld tokens of batch entry %lld, got %lld", (long long)aligned_cache_length(cache, entry), (long long)entry,
                (long long)tokens);
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->truncate(cache, entry, tokens) : -1;
  }
  if (!ensureLengths(*ownerOf(cache)))
    return -1;
  truncate(*ownerOf(cache), entry, entry + 1, tokens);
  return 0;
}

int aligned_cache_drop_planes(aligned_cache *cache, int32_t planes) {
  if (!check(cache))
    return -1;
  if (planes < 1 || planes > cache->planes)
    return fail("expected to keep 1 to %lld planes, got %d", (long long)cache->planes, planes);
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->drop_planes(cache, planes) : -1;
  }
  Cache &owner = *ownerOf(cache);
  if (planes == owner.planes)
    return 0;
  for (int32_t p = planes; p < owner.planes; ++p) {
    owner.planeArrays.plane[p].reset();
    owner.planeArrays.bytes[p] = 0;
  }
  owner.planes = planes;
  owner.dense_limit = 0;
  owner.denseCopy = {};
  owner.publish();
  if (owner.sum)
    sumAgain(owner);
  return 0;
}

int64_t aligned_cache_bytes(const aligned_cache *cache) {
  if (!check(cache))
    return -1;
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->bytes(cache) : -1;
  }
  const Cache &owner = *ownerOf(cache);
  const int64_t tile = std::accumulate(std::begin(owner.planeArrays.bytes), std::end(owner.planeArrays.bytes), codeBytes(*cache));
  const int64_t tiles = cache->pages ? owner.pageTable.physicalPages() * cache->kv_heads : cache->rows * (cache->capacity / kTile);
  const auto summaries = Summaries::bytes(*cache);
  return std::accumulate(summaries.begin(), summaries.end(), tiles * tile) + owner.asideList.bytes(*cache) + owner.denseCopy.bytes(*cache) +
         owner.pageTable.bytes() +
         (cache->lengths ? cache->batch * int64_t(sizeof(int64_t)) : 0);
}

//===----------------------------------------------------------------------===//
// Copies elsewhere
//===----------------------------------------------------------------------===//

void aligned_cache_get_state(const aligned_cache *cache, aligned_cache_state *state) {
  const Cache &owner = *ownerOf(cache);
  state->has_own_lengths = cache->lengths != nullptr;
  state->offset_is_set = owner.offsetIsSet;
  state->bias_is_settled = owner.biasIsSettled;
  state->bias = cache->bias;
  state->physical_pages = owner.pageTable.physicalPages();
  state->asides = cache->asides;
  state->aside = cache->aside;
  state->aside_values = cache->aside_values;
  state->aside_patterns = owner.asideList.patterns.as<void>();
}

int aligned_cache_set_state(aligned_cache *cache, const aligned_cache_state *state) {
  Cache &owner = *ownerOf(cache);
  if ((state->has_own_lengths && !ensureLengths(owner)) || !owner.asideList.reserve(*cache, state->asides))
    return -1;
  if (cache->pages) {
    const PageTable::Need need = owner.pageTable.reserve([](int64_t) { return int64_t(0); }, [&](int64_t n) { return state->lengths[n]; });
    if (!need.met())
      return fail("expected %lld free pages, got %lld of %lld", (long long)need.pages, (long long)need.free, (long long)owner.pageTable.physicalPages());
    owner.pageTable.commit();
  }
  for (int64_t i = 0; i < state->asides; ++i)
    owner.asideList.push(*cache, state->aside[i], state->aside_values + i * cache->head_dim,
                         static_cast<const char *>(state->aside_patterns) + i * Asides::patternBytes(*cache));
  if (cache->lengths)
    std::copy_n(state->lengths, cache->batch, cache->lengths);
  cache->tokens = *std::max_element(state->lengths, state->lengths + cache->batch);
  owner.offsetIsSet = state->offset_is_set;
  cache->bias = state->bias;
  owner.biasIsSettled = state->bias_is_settled;
  owner.publish();
  return 0;
}
