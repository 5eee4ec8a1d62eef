// Split-precision storage. Every layout of Cache.h is one rule with two numbers: the 64 x head_dim values of a block are put in
// *plane order*, where runs of `unit` adjacent channels lie together and tokens follow one another within a run; that sequence is
// cut into groups of `group` values; a group's first half fills the low nibbles and its second half the high nibbles of group / 2
// bytes, once per nibble layer, and the layers of a group within a plane are neighbours.
//
//                unit       group           bytes of a layer
//   key, fixed   4          4 x 64          128
//   key, float   1          64              32
//   value        head_dim   head_dim        head_dim / 2
//
// A block passes through four loops that the compiler vectorises, each over memory that stays in the first-level cache: load
// (non-finite values out, maxima), encode (to 16-bit integers), order, pack (nibbles). Only the last writes to the planes.
//
// Nothing that a reader can see changes before an append can no longer fail: blocks are written behind the visible ones, the rest
// when all is done.
//
// Batch entries may have own lengths, and their blocks may lie anywhere among physical blocks (BlockTable.h): loops over rows ask
// `lengthOf` and `placeOf`. Caches of other locations are handed to those who registered for them.

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/Error.h"

#include "BlockTable.h"
#include "HostCache.h"
#include "Numbers.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

using namespace aligned;

namespace {

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

struct Free {
  void operator()(void *memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

constexpr int64_t tooLarge = -1;

/// The product of sizes, or `tooLarge`, which it absorbs.
template <typename... Sizes> int64_t product(int64_t first, Sizes... rest) {
  for (int64_t size : {int64_t(rest)...})
    if (first < 0 || size < 0 || __builtin_mul_overflow(first, size, &first))
      return tooLarge;
  return first;
}

/// Replaces `buffer` by `bytes` bytes, 64-byte aligned; no bytes are a null pointer. Leaves it alone and returns false if there
/// is no memory.
bool allocate(Buffer &buffer, int64_t bytes) {
  constexpr int64_t alignment = 64;
  if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() - alignment) {
    fail("expected a cache that fits in memory, got sizes that overflow");
    return false;
  }
  void *memory = nullptr;
  if (bytes && !(memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment))) {
    fail("out of memory: expected %lld more bytes", static_cast<long long>(bytes));
    return false;
  }
  buffer.reset(memory);
  return true;
}

//===----------------------------------------------------------------------===//
// Numbers
//===----------------------------------------------------------------------===//

constexpr Single::Bits halfOverflow = 0x477ff000; // 65520, the least float that rounds to an infinite half

int64_t elementBytes(int32_t element) { return element == ALIGNED_ELEMENT_F32 ? 4 : 2; }

/// The dither of token t and channel c is turn(t) + phase(c) modulo 4096, less 2048. Values have no phase.
uint16_t turn(int64_t token) { return uint16_t(token % 4096 * 2531); }
uint16_t phase(int64_t channel) { return uint16_t(channel % 4 * 1092); }
int32_t dither(uint16_t turned) { return turned % 4096 - 2048; }

/// The stored exponent (E + 112) of values whose largest magnitude is `largest`. All values of a block may be zero, hence a least
/// one.
uint8_t exponentOf(float largest) { return uint8_t((bitCast<uint32_t>(std::max(largest, 0x1p-100f)) >> 23) - 14); }

/// 2^15 / scale = 15 * 2^(11 - E).
float unitsPerOne(uint8_t exponent) { return 15 * bitCast<float>(uint32_t(250 - exponent) << 23); }

/// scale = 2^E * 16/15.
double scaleOf(uint8_t exponent) { return bitCast<double>(uint64_t(exponent - 112 + 1023) << 52) * 16 / 15; }

/// rint(x * units) modulo 2^16, by adding a number whose last place is 1. The product of an 11-bit (f16) or 8-bit (bf16)
/// significand by 15 is exact in float, that of a 24-bit one in double, so that this is the rounding of the exact quotient, ties
/// to even.
template <typename Element> uint16_t roundToUnits(float x, float units) {
  if constexpr (std::is_same_v<Element, Single>)
    return uint16_t(bitCast<uint64_t>(double(x) * double(units) + 0x1.8p52));
  else
    return uint16_t(bitCast<uint32_t>(x * units + 0x1.8p23f));
}

//===----------------------------------------------------------------------===//
// Layout
//===----------------------------------------------------------------------===//

constexpr int64_t block = ALIGNED_BLOCK;
constexpr int maxHeadDim = 256;
constexpr int layers = 4; // nibbles of 16 bits

bool isFixed(const aligned_cache &cache) { return cache.format.kind == ALIGNED_FORMAT_FIXED; }
bool isKey(const aligned_cache &cache) { return cache.format.role == ALIGNED_ROLE_KEY; }

int64_t unitOf(const aligned_cache &cache) { return !isKey(cache) ? cache.head_dim : isFixed(cache) ? 4 : 1; }
int64_t groupOf(const aligned_cache &cache) { return isKey(cache) ? unitOf(cache) * block : cache.head_dim; }

/// Bytes that one block of one row takes of plane `p`, and of the exponents.
int64_t planeBlockBytes(const aligned_cache &cache, int p) { return block * cache.head_dim * cache.format.width[p] / 8; }
/// Planes that are in memory (S6).
int residentPlanes(const aligned_cache &cache) {
  int planes = 0;
  for (int64_t left = cache.layers; left > 0; ++planes)
    left -= cache.format.width[planes] / 4;
  return planes;
}
bool hasMeans(const aligned_cache &cache) { return isFixed(cache) && !isKey(cache); }
int64_t exponentBlockBytes(const aligned_cache &cache) { return !isFixed(cache) ? 0 : isKey(cache) ? cache.head_dim : block; }

int64_t lengthOf(const aligned_cache &cache, int64_t entry) { return cache.lengths ? cache.lengths[entry] : cache.tokens; }
/// Where full block `index` of a row lies in planes and exponents.
int64_t placeOf(const aligned_cache &cache, int64_t row, int64_t index) {
  int64_t blocks = cache.capacity / block;
  if (!cache.pages)
    return row * blocks + index;
  return cache.pages[row / cache.kv_heads * blocks + index] * cache.kv_heads + row % cache.kv_heads;
}

/// What grows with the tokens.
struct Planes {
  Buffer plane[ALIGNED_MAX_PLANES], exponent;
  int64_t capacity = 0;

  /// For `tokens` tokens of each row, or for `physical` blocks that all batch entries share.
  bool allocate(const aligned_cache &cache, int64_t tokens, int64_t physical = -1) {
    int64_t blocks = physical < 0 ? product(cache.rows, tokens / block) : product(cache.kv_heads, physical);
    for (int p = 0; p < residentPlanes(cache); ++p)
      if (!::allocate(plane[p], product(blocks, planeBlockBytes(cache, p))))
        return false;
    capacity = tokens;
    return ::allocate(exponent, product(blocks, exponentBlockBytes(cache)));
  }

  /// Copies the full blocks of a cache with another capacity, or with the same pages.
  void copyFrom(const aligned_cache &cache) {
    auto copy = [&](void *to, const void *from, int64_t blockBytes) {
      auto copyBlocks = [&](int64_t target, int64_t source, int64_t count) {
        std::memcpy(static_cast<char *>(to) + target * blockBytes, static_cast<const char *>(from) + source * blockBytes, count * blockBytes);
      };
      for (int64_t row = 0; row < cache.rows && blockBytes; ++row) {
        int64_t used = lengthOf(cache, row / cache.kv_heads) / block;
        if (used && !cache.pages)
          copyBlocks(row * (capacity / block), placeOf(cache, row, 0), used);
        for (int64_t index = 0; index < used && cache.pages; ++index)
          copyBlocks(placeOf(cache, row, index), placeOf(cache, row, index), 1);
      }
    };
    for (int p = 0; p < residentPlanes(cache); ++p)
      copy(plane[p].get(), cache.plane[p], planeBlockBytes(cache, p));
    copy(exponent.get(), cache.exponent, exponentBlockBytes(cache));
  }
};

struct Escapes {
  Buffer list;
  int64_t count = 0, capacity = 0;

  aligned_escape *begin() const { return static_cast<aligned_escape *>(list.get()); }
  aligned_escape *end() const { return begin() + count; }

  bool reserve(int64_t wanted) {
    if (wanted <= capacity)
      return true;
    Buffer grown;
    if (!::allocate(grown, product(wanted, sizeof(aligned_escape))))
      return false;
    std::copy(begin(), end(), static_cast<aligned_escape *>(grown.get()));
    list = std::move(grown);
    capacity = wanted;
    return true;
  }

  bool push(const aligned_escape &escape) {
    if (count == capacity && !reserve(std::max<int64_t>(16, 2 * capacity)))
      return false;
    begin()[count++] = escape;
    return true;
  }
};

/// Owns what the public fields point to.
struct Cache : aligned_cache {
  Planes planes;
  Buffer maxima, means, openBlock, workspace, lengthList;
  Escapes escapeList;
  BlockTable blockTable; // of a cache with pages

  Cache(const aligned_format &format, int64_t batch, int64_t kvHeads, int64_t headDim) : aligned_cache() {
    this->format = format;
    this->batch = batch;
    this->kv_heads = kvHeads;
    this->rows = batch * kvHeads;
    this->head_dim = headDim;
    this->layers = ::layers;
  }

  /// Floats that describe the channels of all rows.
  int64_t summaryBytes() const { return product(rows, head_dim, sizeof(float)); }

  /// For `tokens` tokens of each batch entry; `physical`, unless negative: blocks that the entries share.
  bool allocate(int64_t tokens, int64_t physical) {
    if (physical >= 0 && !blockTable.allocate(batch, tokens / block, physical))
      return fail("out of memory: expected room for %lld pages and a table", static_cast<long long>(physical)), false;
    if (!planes.allocate(*this, tokens, physical) || !::allocate(maxima, summaryBytes()) || !::allocate(means, hasMeans(*this) ? summaryBytes() : 0) ||
        !::allocate(openBlock, product(rows, head_dim, block, elementBytes(format.element))) ||
        !::allocate(workspace, block * head_dim * (elementBytes(format.element) + 2 * sizeof(uint16_t))))
      return false;
    std::memset(maxima.get(), 0, summaryBytes());
    if (means)
      std::memset(means.get(), 0, summaryBytes());
    publish();
    return true;
  }

  void publish() {
    for (int p = 0; p < ALIGNED_MAX_PLANES; ++p)
      plane[p] = planes.plane[p].get();
    exponent = static_cast<uint8_t *>(planes.exponent.get());
    capacity = planes.capacity;
    channel_max = static_cast<float *>(maxima.get());
    channel_mean = static_cast<float *>(means.get());
    open = openBlock.get();
    escape = escapeList.begin();
    escapes = escapeList.count;
    escape_capacity = escapeList.capacity;
    pages = blockTable.data();
    lengths = static_cast<int64_t *>(lengthList.get());
  }

  /// A list of the entries' lengths.
  bool allocateLengths(Buffer &list) const {
    if (!::allocate(list, product(batch, sizeof(int64_t))))
      return false;
    for (int64_t entry = 0; entry < batch; ++entry)
      static_cast<int64_t *>(list.get())[entry] = lengthOf(*this, entry);
    return true;
  }
};

//===----------------------------------------------------------------------===//
// Loops
//===----------------------------------------------------------------------===//

// The loops are part of whatever they are called from, and that is compiled for several machines.
#define ALIGNED_LOOP [[gnu::always_inline]] inline
// g++ forgets __restrict when it inlines.
#if defined(__clang__)
#define ALIGNED_INDEPENDENT
#else
#define ALIGNED_INDEPENDENT _Pragma("GCC ivdep")
#endif

#if defined(__x86_64__)
template <typename Body> __attribute__((target("arch=x86-64-v4"), flatten)) auto onV4(Body body) { return body(); }
template <typename Body> __attribute__((target("arch=x86-64-v3"), flatten)) auto onV3(Body body) { return body(); }
#endif

/// Calls `body`, a lambda of loops, in the version for this machine's vectors.
template <typename Body> auto vectorized(Body body) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4"))
    return onV4(body);
  if (__builtin_cpu_supports("x86-64-v3"))
    return onV3(body);
#endif
  return body();
}

//===----------------------------------------------------------------------===//
// Split
//===----------------------------------------------------------------------===//

/// One token of one row: `stride` elements from channel to channel.
template <typename Bits> struct Token {
  const Bits *data;
  int64_t stride;
  Bits operator[](int64_t channel) const { return data[channel * stride]; }
};

/// Copies a token to `loaded` with 0 for values of magnitude `limit` and more, raises the channels' `largest`, and says whether
/// there were any such.
template <typename Element, typename Bits = typename Element::Bits>
ALIGNED_LOOP bool loadToken(Token<Bits> token, int64_t channels, Bits limit, Bits *__restrict loaded, Bits *__restrict largest) {
  Bits worst = 0;
  auto load = [=, &worst](int64_t stride) {
    Bits seen = 0;
    ALIGNED_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) {
      Bits bits = token.data[c * stride], magnitude = bits & Element::magnitude, kept = magnitude < limit ? magnitude : Bits(0);
      seen = seen < magnitude ? magnitude : seen;
      largest[c] = largest[c] < kept ? kept : largest[c];
      loaded[c] = magnitude < limit ? bits : Bits(0);
    }
    worst = seen;
  };
  if (token.stride == 1)
    load(1);
  else
    load(token.stride);
  return worst >= limit;
}

/// S1 for one token: `units(c)` is 2^15 / scale of channel c, `phases(c)` the phase of its dither. No clamp is needed: |x| < 2^E leaves
/// |rint| <= 30720, the dither -2048 .. 2047.
template <typename Element, typename Units, typename Phases>
ALIGNED_LOOP void encodeFixed(const typename Element::Bits *__restrict loaded, int64_t channels, Units units, Phases phases, int64_t token,
                              uint16_t *__restrict encoded) {
  uint16_t turned = turn(token);
  ALIGNED_INDEPENDENT
  for (int64_t c = 0; c < channels; ++c)
    encoded[c] = uint16_t(roundToUnits<Element>(Element::toFloat(loaded[c]), units(c)) + dither(turned + phases(c)) + 0x8000);
}

/// S2 for a block.
template <typename Element>
ALIGNED_LOOP void encodeFloat(const typename Element::Bits *__restrict loaded, int64_t values, uint16_t *__restrict encoded) {
  ALIGNED_INDEPENDENT
  for (int64_t i = 0; i < values; ++i)
    if constexpr (std::is_same_v<Element, Single>)
      encoded[i] = Half::fromFloat(Single::toFloat(loaded[i]));
    else
      encoded[i] = loaded[i];
}

/// Tokens of runs to runs of tokens; a run of `unit` channels is one Unit.
template <typename Unit> ALIGNED_LOOP void order(const void *__restrict encoded, int64_t units, void *__restrict ordered) {
  const Unit *from = static_cast<const Unit *>(encoded);
  Unit *to = static_cast<Unit *>(ordered);
  constexpr int64_t tile = 8; // tokens: a whole cache line is written before the next is begun, a few lines are read
  for (int64_t first = 0; first < block; first += tile)
    for (int64_t u = 0; u < units; ++u)
      for (int64_t t = first; t < first + tile; ++t)
        to[u * block + t] = from[t * units + u];
}

/// The four nibble layers of a group, most significant first.
ALIGNED_LOOP void pack(const uint16_t *__restrict low, const uint16_t *__restrict high, int64_t bytes, uint8_t *__restrict layer0,
                       uint8_t *__restrict layer1, uint8_t *__restrict layer2, uint8_t *__restrict layer3) {
  ALIGNED_INDEPENDENT
  for (int64_t i = 0; i < bytes; ++i) {
    uint16_t even = (low[i] >> 4 & 0x0f0f) | (high[i] & 0xf0f0), odd = (low[i] & 0x0f0f) | (high[i] & 0x0f0f) << 4;
    layer0[i] = uint8_t(even >> 8);
    layer1[i] = uint8_t(odd >> 8);
    layer2[i] = uint8_t(even);
    layer3[i] = uint8_t(odd);
  }
}

/// Writes a block in plane order to block `index` (of all rows' blocks) of the planes.
ALIGNED_LOOP void packBlock(const aligned_cache &cache, const uint16_t *ordered, const Planes &planes, int64_t index) {
  int64_t group = groupOf(cache), bytes = group / 2;
  uint8_t *start[layers] = {};
  int64_t step[layers] = {};
  uint8_t dropped[layers][maxHeadDim]; // where planes that are not resident go: every group over the one before it
  std::copy_n(dropped, layers, start);
  for (int p = 0, layer = 0; p < residentPlanes(cache); ++p)
    for (int within = 0; within < cache.format.width[p] / 4; ++within, ++layer) {
      start[layer] = static_cast<uint8_t *>(planes.plane[p].get()) + index * planeBlockBytes(cache, p) + within * bytes;
      step[layer] = cache.format.width[p] / 4 * bytes;
    }
  for (int64_t g = 0, groups = block * cache.head_dim / group; g < groups; ++g)
    pack(ordered + g * group, ordered + g * group + bytes, bytes, start[0] + g * step[0], start[1] + g * step[1],
         start[2] + g * step[2], start[3] + g * step[3]);
}

/// An append in progress. Tokens are numbered as in the cache that results.
template <typename Element> class Append {
  using Bits = typename Element::Bits;

public:
  /// counts: of each batch entry; null where all get `count`.
  Append(Cache &cache, const void *data, const int64_t *counts, int64_t count, const int64_t *strides)
      : cache(cache), data(static_cast<const Bits *>(data)), counts(counts), count(count), strides(strides), channels(cache.head_dim) {}

  int run() {
    int64_t largestTotal = 0, newBlocks = 0;
    for (int64_t n = 0; n < cache.batch; ++n) {
      int64_t length = lengthOf(cache, n), longer = length + countOf(n);
      largestTotal = std::max(largestTotal, longer);
      newBlocks += longer / block - length / block;
      if (cache.pages && longer > cache.capacity)
        return fail("expected at most %lld tokens in batch entry %lld, got %lld", (long long)cache.capacity, (long long)n, (long long)longer);
    }
    if (cache.pages && newBlocks > cache.blockTable.freeBlocks())
      return fail("expected %lld free pages, got %lld of %lld", (long long)newBlocks, (long long)cache.blockTable.freeBlocks(),
                  (long long)cache.blockTable.physicalBlocks());
    if (int64_t needed = largestTotal / block * block; needed > cache.capacity) {
      int64_t geometric = (cache.capacity + cache.capacity / 2) / block * block;
      if (!grown.allocate(cache, std::max(needed, geometric)))
        return -1;
      grown.copyFrom(cache);
    }
    if (!allocate(maxima, cache.summaryBytes()) || !allocate(means, hasMeans(cache) ? cache.summaryBytes() : 0))
      return -1;
    if ((counts || cache.lengths) && !cache.allocateLengths(lengths))
      return -1;
    std::memcpy(maxima.get(), cache.channel_max, cache.summaryBytes());
    if (means)
      std::memcpy(means.get(), cache.channel_mean, cache.summaryBytes());
    bool done = vectorized([&] {
      for (int64_t r = 0; r < cache.rows; ++r) {
        enter(r);
        for (int64_t index = had / block; index < total / block; ++index)
          if (!split(index))
            return false;
        if (total > had)
          load(std::max(had, total / block * block), total, Element::infinity);
      }
      return true;
    });
    if (!done)
      return -1;
    if (!cache.escapeList.reserve(cache.escapeList.count + escapes.count))
      return -1;
    commit(largestTotal);
    return 0;
  }

private:
  Planes &planes() { return grown.capacity ? grown : cache.planes; }
  Bits *loaded() { return static_cast<Bits *>(cache.workspace.get()); }
  uint16_t *encoded() { return reinterpret_cast<uint16_t *>(loaded() + block * channels); }
  uint16_t *ordered() { return encoded() + block * channels; }

  int64_t countOf(int64_t n) const { return counts ? counts[n] : count; }

  Token<Bits> token(int64_t index) const {
    if (index < had)
      return {static_cast<const Bits *>(cache.open) + (row * block + index % block) * channels, 1};
    return {rowData + (index - had) * strides[2], strides[3]};
  }

  /// Where a block that this append fills goes: pages are those that would be taken next.
  int64_t newPlaceOf(int64_t index) const {
    if (cache.pages)
      return cache.blockTable.next(taken + index - had / block) * cache.kv_heads + row % cache.kv_heads;
    return row * ((grown.capacity ? grown.capacity : cache.capacity) / block) + index;
  }

  /// Rows are entered in their order.
  void enter(int64_t nextRow) {
    if (nextRow == 0)
      taken = 0;
    else if (nextRow % cache.kv_heads == 0)
      taken += total / block - had / block;
    row = nextRow;
    had = lengthOf(cache, row / cache.kv_heads);
    total = had + countOf(row / cache.kv_heads);
    rowData = data + row / cache.kv_heads * strides[0] + row % cache.kv_heads * strides[1];
  }

  /// Loads tokens [begin, end) of one block, leaves their maxima in `largest` and in the channels' maxima.
  ALIGNED_LOOP bool load(int64_t begin, int64_t end, Bits limit) {
    std::fill_n(largest, channels, Bits(0));
    bool outside = false;
    for (int64_t t = begin; t < end; ++t)
      outside |= loadToken<Element>(token(t), channels, limit, loaded() + t % block * channels, largest);
    for (int64_t c = 0; c < channels; ++c)
      raise(c, Element::toFloat(largest[c]));
    return outside;
  }

  void raise(int64_t channel, float magnitude) {
    float &maximum = static_cast<float *>(maxima.get())[row * channels + channel];
    maximum = std::max(maximum, magnitude);
  }

  ALIGNED_LOOP bool split(int64_t index) {
    int64_t first = index * block, place = newPlaceOf(index);
    Bits limit = Element::infinity;
    if constexpr (std::is_same_v<Element, Single>)
      limit = isFixed(cache) ? Single::infinity : halfOverflow;
    if (load(first, first + block, limit) && !listEscapes(first, limit))
      return false;
    if (isFixed(cache))
      encode(first, static_cast<uint8_t *>(planes().exponent.get()) + place * exponentBlockBytes(cache));
    else
      encodeFloat<Element>(loaded(), block * channels, encoded());
    const uint16_t *sequence = ordered();
    if (!isKey(cache))
      sequence = encoded();
    else if (isFixed(cache))
      order<uint64_t>(encoded(), channels / 4, ordered());
    else
      order<uint16_t>(encoded(), channels, ordered());
    packBlock(cache, sequence, planes(), place);
    return true;
  }

  ALIGNED_LOOP void encode(int64_t first, uint8_t *exponents) {
    if (isKey(cache)) {
      float units[maxHeadDim];
      uint16_t phases[maxHeadDim];
      for (int64_t c = 0; c < channels; ++c) {
        exponents[c] = exponentOf(Element::toFloat(largest[c]));
        units[c] = unitsPerOne(exponents[c]);
        phases[c] = phase(c);
      }
      for (int64_t t = 0; t < block; ++t)
        encodeFixed<Element>(
            loaded() + t * channels, channels, [&](int64_t c) { return units[c]; }, [&](int64_t c) { return phases[c]; }, first + t,
            encoded() + t * channels);
    } else {
      for (int64_t t = 0; t < block; ++t) {
        const Bits *values = loaded() + t * channels;
        Bits top = 0;
        for (int64_t c = 0; c < channels; ++c)
          top = std::max(top, Bits(values[c] & Element::magnitude));
        exponents[t] = exponentOf(Element::toFloat(top));
        float units = unitsPerOne(exponents[t]);
        encodeFixed<Element>(
            values, channels, [=](int64_t) { return units; }, [](int64_t) { return uint16_t(0); }, first + t, encoded() + t * channels);
      }
      addToMeans(first / block);
    }
  }

  /// Moves the channels' means to what they are with the loaded block, number `index` of its row.
  ALIGNED_LOOP void addToMeans(int64_t index) {
    float *mean = static_cast<float *>(means.get()) + row * channels, share = 1.0f / float(index + 1);
    float blockMean[maxHeadDim] = {};
    for (int64_t t = 0; t < block; ++t)
      for (int64_t c = 0; c < channels; ++c)
        blockMean[c] += Element::toFloat(loaded()[t * channels + c]) * (1.0f / block);
    for (int64_t c = 0; c < channels; ++c)
      mean[c] = mean[c] * (1 - share) + blockMean[c] * share; // either product is no larger than the largest value
  }

  /// Lists what `load` left out. A finite value among it (f32 beyond half) still counts for its channel.
  bool listEscapes(int64_t first, Bits limit) {
    for (int64_t t = first; t < first + block; ++t)
      for (int64_t c = 0; c < channels; ++c) {
        Bits bits = token(t)[c], magnitude = bits & Element::magnitude;
        if (magnitude < limit)
          continue;
        if (magnitude < Element::infinity)
          raise(c, Element::toFloat(magnitude));
        if (!escapes.push({row, t, int32_t(c), bits, Element::toFloat(bits), 0}))
          return false;
      }
    return true;
  }

  /// Makes all of it visible; nothing here can fail.
  void commit(int64_t largestTotal) {
    for (int64_t r = 0; r < cache.rows; ++r) {
      enter(r);
      int64_t kept = total / block * block; // tokens from here on are open
      for (int64_t t = std::max(kept, had); t < total; ++t) {
        Token<Bits> source = token(t);
        Bits *target = static_cast<Bits *>(cache.open) + (row * block + t % block) * channels;
        for (int64_t c = 0; c < channels; ++c)
          target[c] = source[c];
      }
    }
    if (grown.capacity)
      cache.planes = std::move(grown);
    cache.maxima = std::move(maxima);
    cache.means = std::move(means);
    for (const aligned_escape &escape : escapes)
      cache.escapeList.push(escape);
    for (int64_t n = 0; n < cache.batch && cache.pages; ++n)
      for (int64_t index = lengthOf(cache, n) / block; index < (lengthOf(cache, n) + countOf(n)) / block; ++index)
        cache.blockTable.take(n, index);
    for (int64_t n = 0; n < cache.batch && lengths; ++n)
      static_cast<int64_t *>(lengths.get())[n] += countOf(n);
    cache.lengthList = std::move(lengths);
    cache.tokens = largestTotal;
    cache.publish();
  }

  Cache &cache;
  const Bits *data;
  const int64_t *counts;
  int64_t count;
  const int64_t *strides;
  int64_t channels;
  int64_t row = 0, had = 0, total = 0; // the one at work, its tokens before and after, and its first new token
  const Bits *rowData = nullptr;
  int64_t taken = 0; // pages for the entries before this one
  Planes grown;      // empty while the cache's own have room
  Buffer maxima, means, lengths;
  Escapes escapes;
  Bits largest[maxHeadDim];
};

//===----------------------------------------------------------------------===//
// Join
//===----------------------------------------------------------------------===//

/// Reads the top `read` bits of a block in plane order; the others are 0.
ALIGNED_LOOP void unpackBlock(const aligned_cache &cache, int64_t index, int read, uint16_t *ordered) {
  int64_t group = groupOf(cache), bytes = group / 2, groups = block * cache.head_dim / group;
  std::fill_n(ordered, block * cache.head_dim, uint16_t(0));
  int shift = 12;
  for (int p = 0; p < cache.format.planes && shift >= 16 - read; ++p) {
    int perPlane = cache.format.width[p] / 4;
    const uint8_t *start = static_cast<const uint8_t *>(cache.plane[p]) + index * planeBlockBytes(cache, p);
    for (int within = 0; within < perPlane; ++within, shift -= 4)
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t *layer = start + (g * perPlane + within) * bytes;
        uint16_t *low = ordered + g * group, *high = low + bytes;
        for (int64_t i = 0; i < bytes; ++i) {
          low[i] |= uint16_t((layer[i] & 15) << shift);
          high[i] |= uint16_t(layer[i] >> 4 << shift);
        }
      }
  }
}

template <typename Element>
ALIGNED_LOOP void joinBlock(const Cache &cache, int64_t row, int64_t index, int read, uint16_t *__restrict ordered,
                            typename Element::Bits *__restrict out) {
  using Storage = std::conditional_t<std::is_same_v<Element, BFloat>, BFloat, Half>;
  int64_t channels = cache.head_dim, unit = unitOf(cache), place = placeOf(cache, row, index);
  unpackBlock(cache, place, read, ordered);
  int32_t middle = read < 16 ? 1 << (15 - read) : 0; // of what the bits that are not read may hold, rounded up
  double roundedUp = read < 16 ? 0.5 : 0;            // integers take it off again
  const uint8_t *exponents = cache.exponent + place * exponentBlockBytes(cache);
  // What was finite reads as finite, however few bits are read.
  constexpr double largest = Element::largest;
  for (int64_t t = 0; t < block; ++t) {
    uint16_t turned = turn(index * block + t);
    for (int64_t first = 0; first < channels; first += unit) // a run
      for (int64_t c = first; c < first + unit; ++c) {
        int32_t bits = ordered[first * block + t * unit + c - first] + middle;
        int32_t offset = 0x8000 + dither(turned + (isKey(cache) ? phase(c) : 0));
        double value = isFixed(cache) ? (bits - roundedUp - offset) * scaleOf(exponents[isKey(cache) ? c : t]) / 0x1p15
                                      : Storage::toFloat(uint16_t(bits));
        out[t * channels + c] = Element::fromFloat(float(std::clamp(value, -largest, largest)));
      }
  }
}

template <typename Element> int join(const Cache &cache, int bits, void *out) {
  using Bits = typename Element::Bits;
  Buffer ordered;
  if (!allocate(ordered, block * cache.head_dim * sizeof(uint16_t)))
    return -1;
  int read = 0;
  for (int p = 0; read < bits && p < residentPlanes(cache); ++p)
    read += cache.format.width[p];
  int64_t channels = cache.head_dim;
  Bits *values = static_cast<Bits *>(out);
  vectorized([&] {
    for (int64_t row = 0; row < cache.rows; ++row) {
      Bits *target = values + row * cache.tokens * channels;
      int64_t length = lengthOf(cache, row / cache.kv_heads), blocks = length / block;
      for (int64_t index = 0; index < blocks; ++index)
        joinBlock<Element>(cache, row, index, read, static_cast<uint16_t *>(ordered.get()), target + index * block * channels);
      std::copy_n(static_cast<const Bits *>(cache.open) + row * block * channels, length % block * channels,
                  target + blocks * block * channels);
      std::fill_n(target + length * channels, (cache.tokens - length) * channels, Bits(0));
    }
  });
  for (const aligned_escape &escape : cache.escapeList)
    values[(escape.row * cache.tokens + escape.token) * channels + escape.channel] = Bits(escape.bits);
  return 0;
}

bool check(const aligned_format *format) {
  if (!format)
    return fail("expected a format, got null"), false;
  if (format->kind != ALIGNED_FORMAT_FIXED && format->kind != ALIGNED_FORMAT_FLOAT)
    return fail("expected format kind 0 (fixed) or 1 (float), got %d", format->kind), false;
  if (format->role != ALIGNED_ROLE_KEY && format->role != ALIGNED_ROLE_VALUE)
    return fail("expected role 0 (key) or 1 (value), got %d", format->role), false;
  if (format->element < ALIGNED_ELEMENT_F16 || format->element > ALIGNED_ELEMENT_F32)
    return fail("expected element type 0 (f16), 1 (bf16) or 2 (f32), got %d", format->element), false;
  if (format->planes < 1 || format->planes > ALIGNED_MAX_PLANES)
    return fail("expected 1 to %d planes, got %d", ALIGNED_MAX_PLANES, format->planes), false;
  int sum = 0;
  for (int p = 0; p < ALIGNED_MAX_PLANES; ++p) {
    int width = format->width[p];
    if (p < format->planes ? width < 4 || width > 16 || width % 4 : width != 0)
      return fail("expected plane %d to have %s bits, got %d", p, p < format->planes ? "4, 8, 12 or 16" : "no", width), false;
    sum += width;
  }
  if (sum != 16)
    return fail("expected plane widths that sum to 16, got %d", sum), false;
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

std::unique_ptr<Cache> create(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity,
                              int64_t physical) {
  if (!check(format))
    return nullptr;
  if (batch < 1 || kvHeads < 1 || product(batch, kvHeads) == tooLarge)
    return fail("expected at least one batch and head, got %lld x %lld", (long long)batch, (long long)kvHeads), nullptr;
  if (headDim < 16 || headDim > maxHeadDim || headDim % 16)
    return fail("expected head_dim to be a multiple of 16 from 16 to %d, got %lld", maxHeadDim, (long long)headDim), nullptr;
  if (capacity < 0 || capacity > std::numeric_limits<int64_t>::max() - block)
    return fail("expected a capacity of 0 or more tokens, got %lld", (long long)capacity), nullptr;
  std::unique_ptr<Cache> cache(new (std::nothrow) Cache(*format, batch, kvHeads, headDim));
  if (!cache)
    return fail("out of memory: expected %zu more bytes", sizeof(Cache)), nullptr;
  if (!cache->allocate((capacity + block - 1) / block * block, physical))
    return nullptr;
  return cache;
}

int append(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t strides[4]) {
  bool some = false;
  int64_t entries = counts ? cache->batch : 1;
  for (int64_t n = 0; n < entries; ++n) {
    int64_t each = counts ? counts[n] : count;
    if (each < 0 || each > std::numeric_limits<int64_t>::max() - block - cache->tokens)
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
  return withElement(cache->format.element, [&](auto element) {
    return Append<decltype(element)>(*static_cast<Cache *>(cache), data, counts, count, strides).run();
  });
}

bool checkEntry(const aligned_cache *cache, int64_t entry) {
  if (entry < 0 || entry >= cache->batch)
    return fail("expected a batch entry from 0 to %lld, got %lld", (long long)cache->batch - 1, (long long)entry), false;
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

aligned_cache *aligned_cache_create(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim,
                                    int64_t capacity) {
  return create(format, batch, kvHeads, headDim, capacity, -1).release();
}

aligned_cache *aligned_cache_create_paged(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim,
                                          int64_t physicalBlocks, int64_t maxTokens) {
  if (physicalBlocks < 0 || physicalBlocks > BlockTable::mostBlocks)
    return fail("expected 0 to %lld pages, got %lld", (long long)BlockTable::mostBlocks, (long long)physicalBlocks), nullptr;
  return create(format, batch, kvHeads, headDim, maxTokens, physicalBlocks).release();
}

void aligned_cache_destroy(aligned_cache *cache) {
  if (!cache || onHost(cache))
    delete static_cast<Cache *>(cache);
  else if (const aligned_device_caches *server = serverOf(cache))
    server->destroy(cache);
}

aligned_cache *aligned_cache_clone(const aligned_cache *from) {
  if (!onHost(from)) {
    const aligned_device_caches *server = serverOf(from);
    return server ? server->clone(from) : nullptr;
  }
  const Cache &original = *static_cast<const Cache *>(from);
  std::unique_ptr<Cache> cache =
      create(&from->format, from->batch, from->kv_heads, from->head_dim, from->capacity, from->pages ? original.blockTable.physicalBlocks() : -1);
  if (!cache)
    return nullptr;
  aligned_cache_drop_planes(cache.get(), residentPlanes(*from));
  if (!cache->escapeList.reserve(original.escapeList.count) || (from->lengths && !original.allocateLengths(cache->lengthList)))
    return nullptr;
  for (const aligned_escape &escape : original.escapeList)
    cache->escapeList.push(escape);
  if (from->pages)
    cache->blockTable.copyFrom(original.blockTable);
  cache->planes.copyFrom(*from);
  std::memcpy(cache->channel_max, from->channel_max, cache->summaryBytes());
  if (cache->channel_mean)
    std::memcpy(cache->channel_mean, from->channel_mean, cache->summaryBytes());
  std::memcpy(cache->open, from->open, from->rows * from->head_dim * block * elementBytes(from->format.element));
  cache->tokens = from->tokens;
  cache->publish();
  return cache.release();
}

int aligned_cache_append(aligned_cache *cache, const void *data, int64_t count, const int64_t strides[4]) {
  return append(cache, data, nullptr, count, strides);
}

int aligned_cache_append_ragged(aligned_cache *cache, const void *data, const int64_t *counts, const int64_t strides[4]) {
  if (!counts)
    return fail("expected the number of tokens of %lld batch entries, got null", (long long)cache->batch);
  return append(cache, data, counts, 0, strides);
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
  Cache &owner = *static_cast<Cache *>(cache);
  if (!owner.lengths && !owner.allocateLengths(owner.lengthList))
    return -1;
  int64_t *lengths = static_cast<int64_t *>(owner.lengthList.get());
  lengths[entry] = 0;
  owner.tokens = *std::max_element(lengths, lengths + owner.batch);
  if (owner.pages)
    owner.blockTable.give(entry, 0);
  int64_t first = entry * owner.kv_heads, channels = owner.kv_heads * owner.head_dim;
  std::fill_n(owner.channel_max + first * owner.head_dim, channels, 0.0f);
  if (owner.channel_mean)
    std::fill_n(owner.channel_mean + first * owner.head_dim, channels, 0.0f);
  auto gone = [&](const aligned_escape &escape) { return escape.row / owner.kv_heads == entry; };
  owner.escapeList.count = std::remove_if(owner.escapeList.begin(), owner.escapeList.end(), gone) - owner.escapeList.begin();
  owner.publish();
  return 0;
}

int64_t aligned_cache_free_blocks(const aligned_cache *cache) {
  if (onHost(cache))
    return static_cast<const Cache *>(cache)->blockTable.freeBlocks();
  const aligned_device_caches *server = serverOf(cache);
  return server ? server->free_blocks(cache) : -1;
}

int aligned_cache_restore(aligned_cache *cache, int64_t tokens, const int64_t *lengths, const int32_t *pages, const aligned_escape *escapes,
                          int64_t count) {
  Cache &owner = *static_cast<Cache *>(cache);
  if (!owner.escapeList.reserve(count) || (lengths && !owner.allocateLengths(owner.lengthList)))
    return -1;
  std::copy_n(escapes, count, owner.escapeList.begin());
  owner.escapeList.count = count;
  if (lengths)
    std::copy_n(lengths, owner.batch, static_cast<int64_t *>(owner.lengthList.get()));
  if (pages)
    owner.blockTable.restore(pages);
  owner.tokens = tokens;
  owner.publish();
  return 0;
}

int aligned_cache_join(const aligned_cache *cache, int bits, void *out) {
  if (bits < 1 || bits > 16)
    return fail("expected 1 to 16 bits to read, got %d", bits);
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->join(cache, bits, out) : -1;
  }
  return withElement(cache->format.element,
                     [&](auto element) { return join<decltype(element)>(*static_cast<const Cache *>(cache), bits, out); });
}

int aligned_cache_truncate(aligned_cache *cache, int64_t tokens) {
  int64_t split = cache->tokens / block * block; // those of shorter entries are fewer
  if (tokens < split || tokens > cache->tokens)
    return fail("expected to keep %lld to %lld tokens, got %lld", (long long)split, (long long)cache->tokens, (long long)tokens);
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->truncate(cache, tokens) : -1;
  }
  cache->tokens = tokens;
  for (int64_t n = 0; n < cache->batch && cache->lengths; ++n)
    cache->lengths[n] = std::min(cache->lengths[n], tokens);
  return 0;
}

int aligned_cache_drop_planes(aligned_cache *cache, int32_t planes) {
  int resident = residentPlanes(*cache);
  if (planes < 1 || planes > resident)
    return fail("expected to keep 1 to %d planes, got %d", resident, planes);
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->drop_planes(cache, planes) : -1;
  }
  Cache &owner = *static_cast<Cache *>(cache);
  for (int p = planes; p < resident; ++p) {
    owner.planes.plane[p].reset();
    owner.layers -= owner.format.width[p] / 4;
  }
  owner.publish();
  return 0;
}

int64_t aligned_cache_bytes(const aligned_cache *cache) {
  if (!onHost(cache)) {
    const aligned_device_caches *server = serverOf(cache);
    return server ? server->bytes(cache) : -1;
  }
  const Cache &owner = *static_cast<const Cache *>(cache);
  int64_t perBlock = exponentBlockBytes(*cache);
  for (int p = 0; p < residentPlanes(*cache); ++p)
    perBlock += planeBlockBytes(*cache, p);
  int64_t summaries = cache->head_dim * int64_t(sizeof(float)) * (hasMeans(*cache) ? 2 : 1);
  int64_t blocks = cache->pages ? owner.blockTable.physicalBlocks() * cache->kv_heads : cache->rows * (cache->capacity / block);
  return blocks * perBlock + cache->rows * (summaries + block * cache->head_dim * elementBytes(cache->format.element)) +
         owner.escapeList.capacity * int64_t(sizeof(aligned_escape)) + (cache->pages ? owner.blockTable.bytes() : 0) +
         (cache->lengths ? cache->batch * int64_t(sizeof(int64_t)) : 0);
}
