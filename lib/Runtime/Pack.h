// Packing tokens into planes and reading them back: what Storage/Scale.h and Layout.h state of a bit, for a token at a time.
//
// A token of a fixed format passes in vectors of 16 channels: load to floats; of keys, take the offset off and rotate; the largest magnitude gives
// the scale code; a product and a sum give n; shifts and narrowing give the bytes of each plane. The vectors are the compiler's own, so that one
// text serves every machine, and what is here becomes part of loops that are compiled for several (`vectorized`).
//
// Rounding is the same on all machines: x 2^15 / scale is x times the float nearest to 2^(15 - code/8), rounded to a float, then to the nearest
// integer, ties to even. So a value that lies within 2^-8 of a tie may fall to either side of it. No clamp is needed: |x| <= 15/16 scale leaves
// |n - dither| <= 30720, and the dither lies in -2048 .. 2047. Compile with contraction off.
#ifndef ALIGNED_LIB_RUNTIME_PACK_H
#define ALIGNED_LIB_RUNTIME_PACK_H

#include "Numbers.h"

#include "aligned/Storage/Layout.h"
#include "aligned/Storage/Rotation.h"

#include <algorithm>
#include <type_traits>

// The loops are part of whatever they are called from, and that is compiled for several machines.
#define ALIGNED_LOOP [[gnu::always_inline]] inline
#define ALIGNED_BODY __attribute__((always_inline)) // of a lambda
// g++ forgets __restrict when it inlines.
#if defined(__clang__)
#define ALIGNED_INDEPENDENT
#else
#define ALIGNED_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace aligned {

//===----------------------------------------------------------------------===//
// Machines
//===----------------------------------------------------------------------===//

#if defined(__x86_64__)
#if defined(__clang__) // whose idea of this machine prefers vectors of half the length
#define ALIGNED_LONG_VECTORS , min_vector_width(512)
#else
#define ALIGNED_LONG_VECTORS
#endif
template <typename Body> __attribute__((target("arch=x86-64-v4"), flatten ALIGNED_LONG_VECTORS)) auto onV4(const Body &body) {
  return body(std::true_type());
}
template <typename Body> __attribute__((target("arch=x86-64-v3"), flatten)) auto onV3(const Body &body) { return body(std::false_type()); }
#endif

/// Calls `body`, a lambda of loops, in the version for this machine's vectors, and says whether they are worth loops that are unrolled. It passes by
/// reference, since compilers copy it with vectors, which wait for all that it captured to reach the cache.
template <typename Body> auto vectorized(const Body &body) {
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) // with whose checks each version takes a minute to compile
  if (__builtin_cpu_supports("x86-64-v4"))
    return onV4(body);
  if (__builtin_cpu_supports("x86-64-v3"))
    return onV3(body);
#endif
  return body(std::false_type());
}

//===----------------------------------------------------------------------===//
// Vectors of 16 channels. They travel by reference: by value, each machine would pass them in its own way.
//===----------------------------------------------------------------------===//

constexpr int64_t kMostChannels = 256;
constexpr int64_t kLanes = 16, kMostChunks = kMostChannels / kLanes;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t HalfInts __attribute__((vector_size(32)));
typedef int32_t QuarterInts __attribute__((vector_size(16)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef uint16_t Patterns __attribute__((vector_size(32)));
typedef uint8_t HalfBytes __attribute__((vector_size(32)));
// Of four chunks.
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Pairs __attribute__((vector_size(64)));
typedef uint64_t Eights __attribute__((vector_size(64)));

template <typename Vector> ALIGNED_LOOP void load(Vector &vector, const void *memory) { std::memcpy(&vector, memory, sizeof vector); }
template <typename Vector> ALIGNED_LOOP void store(void *memory, const Vector &vector) { std::memcpy(memory, &vector, sizeof vector); }

/// The lanes' largest.
ALIGNED_LOOP int32_t largestOf(const Ints &x) {
  HalfInts a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7), b = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  a = a > b ? a : b;
  QuarterInts c = __builtin_shufflevector(a, a, 0, 1, 2, 3), d = __builtin_shufflevector(a, a, 4, 5, 6, 7);
  c = c > d ? c : d;
  d = __builtin_shufflevector(c, c, 2, 3, 0, 1);
  c = c > d ? c : d;
  return std::max(c[0], c[1]);
}

template <typename Element> ALIGNED_LOOP void loadFloats(Floats &x, const typename Element::Bits *data) {
  if constexpr (std::is_same_v<Element, Single>) {
    load(x, data);
  } else if constexpr (std::is_same_v<Element, BFloat>) {
    Patterns bits;
    load(bits, data);
    x = Floats(__builtin_convertvector(bits, Ints) << 16);
  } else {
#if defined(__clang__)
    typedef _Float16 Halves __attribute__((vector_size(32)));
    Halves halves;
    load(halves, data);
    x = __builtin_convertvector(halves, Floats);
#else
    x = Floats{};
    for (int64_t i = 0; i < kLanes; ++i)
      x[i] = Half::toFloat(data[i]);
#endif
  }
}

//===----------------------------------------------------------------------===//
// Rotation (S2): bit by bit what storage::rotate makes of floats
//===----------------------------------------------------------------------===//

/// The sign bits of channels whose sign is -1.
struct SignBits {
  alignas(64) uint32_t of[kMostChannels];
};
constexpr SignBits kSignBits = [] {
  SignBits bits = {};
  for (int64_t c = 0; c < kMostChannels; ++c)
    bits.of[c] = storage::signOf(c) < 0 ? 0x80000000 : 0;
  return bits;
}();

/// Butterflies between lanes that are `half` apart: the partner's value plus or minus the own. Fused or not, since the product is exact.
template <int half> ALIGNED_LOOP void butterfly(Floats &x) {
#if defined(__clang__)
#pragma clang fp contract(fast)
#endif
#define ALIGNED_LANE(i) ((i) ^ half)
  Floats y = __builtin_shufflevector(x, x, ALIGNED_LANE(0), ALIGNED_LANE(1), ALIGNED_LANE(2), ALIGNED_LANE(3), ALIGNED_LANE(4), ALIGNED_LANE(5),
                                     ALIGNED_LANE(6), ALIGNED_LANE(7), ALIGNED_LANE(8), ALIGNED_LANE(9), ALIGNED_LANE(10), ALIGNED_LANE(11),
                                     ALIGNED_LANE(12), ALIGNED_LANE(13), ALIGNED_LANE(14), ALIGNED_LANE(15));
#undef ALIGNED_LANE
#define ALIGNED_SIGN(i) ((i) & half ? -1.0f : 1.0f)
  constexpr Floats sign = {ALIGNED_SIGN(0), ALIGNED_SIGN(1), ALIGNED_SIGN(2),  ALIGNED_SIGN(3),  ALIGNED_SIGN(4),  ALIGNED_SIGN(5),
                           ALIGNED_SIGN(6), ALIGNED_SIGN(7), ALIGNED_SIGN(8),  ALIGNED_SIGN(9),  ALIGNED_SIGN(10), ALIGNED_SIGN(11),
                           ALIGNED_SIGN(12), ALIGNED_SIGN(13), ALIGNED_SIGN(14), ALIGNED_SIGN(15)};
#undef ALIGNED_SIGN
  x = y + x * sign;
}

/// `x`: chunks of one vector. Its channels are a multiple of 16, and so are the blocks of the rotation.
ALIGNED_LOOP void rotateChunks(Floats *x, int64_t channels) {
  for (int64_t j = 0; j < channels / kLanes; ++j) {
    Ints signs;
    load(signs, kSignBits.of + j * kLanes);
    x[j] = Floats(Ints(x[j]) ^ signs);
    butterfly<1>(x[j]);
    butterfly<2>(x[j]);
    butterfly<4>(x[j]);
    butterfly<8>(x[j]);
  }
  for (int64_t first = 0; first < channels;) {
    const int64_t size = int64_t(1) << (63 - __builtin_clzll(uint64_t(channels - first)));
    Floats *block = x + first / kLanes;
    for (int64_t half = 1; half < size / kLanes; half *= 2)
      for (int64_t i = 0; i < size / kLanes; i += 2 * half)
        for (int64_t j = i; j < i + half; ++j) {
          const Floats a = block[j], b = block[j + half];
          block[j] = a + b;
          block[j + half] = a - b;
        }
    constexpr float norms[] = {0x1p-2f, 0x1.6a09e6p-3f, 0x1p-3f, 0x1.6a09e6p-4f, 0x1p-4f}; // of 16, 32, 64, 128, 256 channels
    const float norm = norms[__builtin_ctzll(uint64_t(size)) - 4];
    for (int64_t j = 0; j < size / kLanes; ++j)
      block[j] *= norm;
    first += size;
  }
}

//===----------------------------------------------------------------------===//
// Scale codes (S3)
//===----------------------------------------------------------------------===//

constexpr int32_t kFiniteMagnitudes = 0x7f800000; // bits of a float's magnitude below this
constexpr int32_t kNoCode = INT32_MIN / 2;        // of a token of zeros: below all codes, whatever the bias

/// Of a fraction f of 2^23, the least k >= 1 with 2^(k/8) >= 16/15 (1 + f 2^-23), as (f + room[f >> shift]) >> 23: no 16th of an octave holds more
/// than one of the fractions where k rises.
struct Reaches {
  static constexpr int32_t shift = 19;
  int32_t room[1 << (23 - shift)];
};
constexpr Reaches kReaches = [] {
  // 15/16 2^(j/8) - 1, j = 1 .. 8, as fractions of 2^23, rounded down: the last that k = j reaches. Only the last is one exactly.
  constexpr double powers[] = {1.0905077326652577, 1.1892071150027210, 1.2968395546510096, 1.4142135623730951,
                               1.5422108254079408, 1.6817928305074290, 1.8340080864093424, 2};
  Reaches reaches = {};
  for (int32_t i = 0, k = 1; i < 1 << (23 - Reaches::shift); ++i) {
    const int32_t reach = k <= 8 ? int32_t((powers[k - 1] * 15 / 16 - 1) * 0x1p23) : INT32_MAX;
    const bool rises = reach < (i + 1) << Reaches::shift;
    reaches.room[i] = (k << 23) + (rises ? (1 << 23) - 1 - reach : 0);
    k += rises;
  }
  return reaches;
}();

/// The least k with 2^(k/8) >= 16/15 x, of a finite x >= 0 given by its bits.
ALIGNED_LOOP int32_t eighthsAbove(int32_t magnitude) {
  int32_t exponent = -127;
  if (magnitude < 0x00800000) { // subnormal: its bits count units of 2^-149
    if (!magnitude)
      return kNoCode;
    magnitude = bitCast<int32_t>(float(magnitude));
    exponent -= 149;
  }
  exponent += magnitude >> 23;
  const int32_t rest = magnitude & 0x7fffff;
  return exponent * storage::kStepsPerOctave + ((rest + kReaches.room[rest >> kReaches.shift]) >> 23);
}

//===----------------------------------------------------------------------===//
// What a row's tokens have in common
//===----------------------------------------------------------------------===//

constexpr int64_t withinTile(int64_t token) { return token & (storage::kTile - 1); }

/// Where one tile of a row begins, in each resident plane and among the codes.
struct Tile {
  uint8_t *plane[ALIGNED_MAX_PLANES];
  uint8_t *code;
};

struct Row {
  aligned_format format;
  int32_t planes;   ///< that are resident
  int32_t bias;
  const float *offset;
  float *channelMax;
  int64_t *sum;
  aligned_scales *scales;

  bool isKey() const { return format.role == ALIGNED_ROLE_KEY; }
  bool isFixed() const { return format.kind == ALIGNED_FORMAT_FIXED; }
  /// The bits of integers that are resident.
  int32_t residentBits() const { return ~((1 << storage::bitsBelow(format, planes - 1)) - 1); }
  /// The row that is `rows` after this one.
  ALIGNED_LOOP Row after(int64_t rows, int64_t channels) const {
    Row row = *this;
    row.offset += offset ? rows * channels : 0;
    row.channelMax += rows * channels;
    row.sum += sum ? rows * channels : 0;
    row.scales += scales ? rows : 0;
    return row;
  }
  /// fixed<4,4,8>, all of it resident: loops that know it are faster.
  bool isUsual() const { return isFixed() && planes == 3 && format.width[0] == 4 && format.width[2] == 8; }
};

/// Raises 16 channels' largest magnitudes, whose bits order like integers.
ALIGNED_LOOP void raiseMaxima(float *largest, const Floats &x) {
  const Ints size = Ints(x) & 0x7fffffff;
  Ints before;
  load(before, largest);
  before = size > before ? size : before;
  store(largest, before);
}

/// Counts a token that has come, or gone: all but the largest code and the median, which `settle` brings up to date.
ALIGNED_LOOP void count(aligned_scales &scales, int32_t code, int32_t tokens) {
  scales.count[code] += tokens;
  scales.tokens += tokens;
  scales.below += code < scales.median ? tokens : 0;
  scales.largest = std::max(scales.largest, code);
}

inline void settle(aligned_scales &scales) {
  while (scales.largest && !scales.count[scales.largest])
    --scales.largest;
  if (!scales.tokens) {
    scales.median = 0;
    return;
  }
  while (2 * scales.below >= scales.tokens) {
    do
      --scales.median;
    while (!scales.count[scales.median]);
    scales.below -= scales.count[scales.median];
  }
  while (2 * (scales.below + scales.count[scales.median]) < scales.tokens) {
    scales.below += scales.count[scales.median];
    do
      ++scales.median;
    while (!scales.count[scales.median]);
  }
}

//===----------------------------------------------------------------------===//
// Fixed formats
//===----------------------------------------------------------------------===//

/// Where clang would merge shuffles, and what it takes for shuffles, into worse ones.
template <typename Vector> ALIGNED_LOOP void fence(Vector &vector) {
#if defined(__clang__)
#pragma clang fp reassociate(on) // without which there is no fence
  vector = Vector(__arithmetic_fence(Floats(vector)));
#endif
}

/// Of 64 channels' integers, 8 bits from bit `below` of the lower 16 on, in the order of the channels.
ALIGNED_LOOP void bytesOf(Bytes &bytes, const Pairs &even, const Pairs &odd, int32_t below) {
#define ALIGNED_TURNED(i)                                                                                                               \
  i, i + 4, i + 8, i + 12, i + 1, i + 5, i + 9, i + 13, i + 2, i + 6, i + 10, i + 14, i + 3, i + 7, i + 11, i + 15
  bytes = Bytes((even >> below & 0xff) | odd >> below << 8); // 16 channels, and those 16, 32 and 48 after them
  fence(bytes);
  bytes = __builtin_shufflevector(bytes, bytes, ALIGNED_TURNED(0), ALIGNED_TURNED(16), ALIGNED_TURNED(32), ALIGNED_TURNED(48));
  fence(bytes);
  bytes = Bytes(__builtin_shufflevector(Ints(bytes), Ints(bytes), ALIGNED_TURNED(0)));
  fence(bytes);
#undef ALIGNED_TURNED
}

/// Writes up to 64 channels, which `bytes` holds, of a plane. `to`: where the token begins.
ALIGNED_LOOP void writePlane(int32_t width, bool tiled, int32_t shift, const Bytes &bytes, int64_t first, int64_t count, uint8_t *to) {
  constexpr int64_t stride = storage::kTile * 4; // from word to word of a token in a tiled plane
  const int64_t size = count * width / 8;
  to += first * width / 8 * (tiled ? storage::kTile : 1);
  const auto writeRow = [&](const auto &vector) ALIGNED_BODY {
    if (size == sizeof vector)
      return store(to, vector);
    for (int64_t byte = 0; byte < size; byte += 8)
      std::memcpy(to + byte, reinterpret_cast<const char *>(&vector) + byte, 8);
  };
  const auto writeWords = [&](const auto &vector, int64_t apart) ALIGNED_BODY {
    for (int64_t word = 0; word < size / 4; ++word)
      std::memcpy(to + word * stride, reinterpret_cast<const char *>(&vector) + word * apart, 4);
  };
  if (width == 8 && !tiled) {
    writeRow(bytes);
  } else if (width == 8) {
    writeWords(bytes, 4);
  } else if (!tiled) { // neighbours share a byte
    const Pairs pairs = Pairs(bytes) >> shift & 0x0f0f;
    writeRow(__builtin_convertvector(pairs | pairs >> 4, HalfBytes));
  } else {
    const Eights eights = Eights(bytes) >> shift & 0x0f0f0f0f0f0f0f0f;
    writeWords(eights | eights >> 28, 8);
  }
}

/// Writes the resident planes of token t of a tile. What is cut up is the lower 16 bits of n, of whole groups of four chunks, plus `addend`; the
/// upper 16 are `upper`.
template <bool isKey, bool isUsual>
ALIGNED_LOOP void writeFixed(const Row &row, const Tile &tile, int64_t t, const Ints *n, uint16_t addend, uint16_t upper, int64_t channels) {
  const Pairs addends = Pairs(Ints{} + int32_t(addend | uint32_t(uint16_t(addend - upper)) << 16));
  for (int64_t first = 0; first < channels; first += 4 * kLanes, n += 4) {
    // Clang would take masks that clear the upper halves for shuffles.
    const Pairs even = Pairs(Words(n[0]) + (Words(n[2]) << 16)) + addends, odd = Pairs(Words(n[1]) + (Words(n[3]) << 16)) + addends;
    const auto write = [&](int32_t p, int32_t width, int32_t below) ALIGNED_BODY {
      const bool tiled = isKey && p == 0;
      Bytes bytes;
      bytesOf(bytes, even, odd, width == 4 ? below & 8 : below); // halves of a byte share it
      writePlane(width, tiled, below & 4, bytes, first, std::min(channels - first, 4 * kLanes),
                 tile.plane[p] + t * (tiled ? 4 : storage::rowBytes(width, channels)));
    };
    if constexpr (isUsual) {
      write(0, 4, 12);
      write(1, 4, 8);
      write(2, 8, 0);
    } else {
      for (int32_t p = 0, below = 16; p < row.planes; ++p)
        write(p, row.format.width[p], below -= row.format.width[p]);
    }
  }
}

/// Clears the planes and the code of a token that is kept aside. By value: a row whose address goes anywhere is read from memory after every store.
[[gnu::noinline]] inline void clearFixed(const Row row, const Tile tile, int64_t t, int64_t channels) {
  for (int32_t p = 0; p < row.planes; ++p) {
    const int64_t bytes = storage::rowBytes(row.format.width[p], channels);
    for (int64_t byte = 0; byte < bytes && storage::isTiled(row.format, p); byte += 4)
      std::memset(tile.plane[p] + (byte * storage::kTile + t * 4), 0, 4);
    if (!storage::isTiled(row.format, p))
      std::memset(tile.plane[p] + t * bytes, 0, bytes);
  }
  tile.code[t] = storage::kAside;
}

/// Loads a token as it is and as it is stored, and returns the bits of the largest magnitude stored: not finite if any value was not, or if the
/// rotation overflowed.
template <typename Element, bool isKey>
ALIGNED_LOOP int32_t loadFixed(const Row &row, const typename Element::Bits *data, int64_t channels, Floats *raw, Floats *stored) {
  const int64_t chunks = channels / kLanes;
  for (int64_t j = 0; j < chunks; ++j) {
    loadFloats<Element>(raw[j], data + j * kLanes);
    stored[j] = raw[j];
    if constexpr (isKey) {
      Floats offset;
      load(offset, row.offset + j * kLanes);
      stored[j] -= offset;
    }
  }
  if constexpr (isKey)
    rotateChunks(stored, channels);
  Ints largest = {};
  for (int64_t j = 0; j < chunks; ++j) {
    Ints magnitude = Ints(stored[j]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largestOf(largest);
}

/// A token as it is stored, and its scale: 2^15 / scale is the factor. A code beyond the largest says that it is to be kept aside.
struct Loaded {
  Floats stored[kMostChunks];
  int32_t code;
  float factor;
};

/// Loads a token and, unless it is to be kept aside, raises the row's maxima. `inRegisters`: as far as there are any, until all is known.
template <typename Element, bool isKey, bool inRegisters>
ALIGNED_LOOP void loadToken(const Row &row, const typename Element::Bits *data, int64_t channels, Loaded &loaded) {
  Floats raw[kMostChunks], own[kMostChunks], *stored = inRegisters ? own : loaded.stored;
  const int64_t chunks = channels / kLanes;
  const int32_t magnitude = loadFixed<Element, isKey>(row, data, channels, raw, stored);
  loaded.code = storage::kLargestCode + 1;
  if (magnitude < kFiniteMagnitudes)
    loaded.code = std::clamp(eighthsAbove(magnitude) + row.bias, storage::kLeastCode, storage::kLargestCode + 1);

  // 2^15 / scale = 2^(15 - octave) steps[step]
  constexpr float steps[] = {1, 0x1.d5818ep-1f, 0x1.ae89fap-1f, 0x1.8ace54p-1f, 0x1.6a09e6p-1f, 0x1.4bfdaep-1f, 0x1.306fe0p-1f, 0x1.172b84p-1f};
  int32_t octave = (loaded.code - row.bias) >> 3, step = (loaded.code - row.bias) & 7;
  if (octave < -100) { // the factor would be no float: the values, which are as small, take part of it
    for (int64_t j = 0; j < chunks; ++j)
      stored[j] *= 0x1p64f;
    octave += 64;
  }
  loaded.factor = bitCast<float>(bitCast<int32_t>(steps[step]) + (15 - octave) * (1 << 23));
  for (int64_t j = 0; j < chunks && inRegisters; ++j)
    loaded.stored[j] = stored[j];
  for (int64_t j = 0; j < chunks && loaded.code <= storage::kLargestCode; ++j)
    raiseMaxima(row.channelMax + j * kLanes, raw[j]);
}

/// Packs a token that is loaded. Returns whether it is to be kept aside: then its planes and its code are 0, and nothing else has changed. `isUsual`:
/// what the row says.
template <bool isKey, bool isUsual>
ALIGNED_LOOP bool packFixed(const Row &row, const Tile &tile, int64_t token, const Loaded &loaded, int64_t channels) {
  const int64_t chunks = channels / kLanes, t = withinTile(token);
  if (loaded.code > storage::kLargestCode) {
    clearFixed(row, tile, t, channels);
    return true;
  }
  constexpr float one = 0x1.8p23f + 0x8000; // a float around it has integers for bits, the lower 16 those of n + 2^15
  const int32_t dither = storage::ditherOf(isKey ? ALIGNED_ROLE_KEY : ALIGNED_ROLE_VALUE, token);
  Ints n[kMostChunks + 3];
  for (int64_t j = 0; j < chunks; ++j)
    n[j] = Ints(loaded.stored[j] * loaded.factor + one);
  for (int64_t j = chunks; j % 4; ++j)
    n[j] = Ints{};
  writeFixed<isKey, isUsual>(row, tile, t, n, uint16_t(dither + (isKey ? 0 : 0x8000)), uint16_t(bitCast<int32_t>(one) >> 16), channels);
  tile.code[t] = uint8_t(loaded.code);

  if constexpr (!isKey) {
    const int32_t resident = isUsual ? -1 : row.residentBits();
    for (int64_t j = 0; j < chunks; ++j) {
      const Ints whole = n[j] - bitCast<int32_t>(one);
      const Ints addend = isUsual ? whole : ((whole + dither) & resident) - dither;
      HalfInts halves[2] = {__builtin_shufflevector(addend, addend, 0, 1, 2, 3, 4, 5, 6, 7),
                            __builtin_shufflevector(addend, addend, 8, 9, 10, 11, 12, 13, 14, 15)};
      for (int64_t half = 0; half < 2; ++half) {
        int64_t *memory = row.sum + j * kLanes + half * kLanes / 2;
        Longs sum;
        load(sum, memory);
        sum += __builtin_convertvector(halves[half], Longs);
        store(memory, sum);
      }
    }
  }
  count(*row.scales, loaded.code, 1);
  return false;
}

//===----------------------------------------------------------------------===//
// Float formats
//===----------------------------------------------------------------------===//

/// Loads what is cut up. Returns whether the token is to be kept aside: then all of it is 0.
template <typename Element> ALIGNED_LOOP bool loadFloat(const Row &row, const typename Element::Bits *data, int64_t channels, uint16_t *patterns) {
  using Bits = typename Element::Bits;
  constexpr Bits limit = std::is_same_v<Element, Single> ? Bits(Half::overflow) : Element::infinity;
  Bits largest = 0;
  for (int64_t c = 0; c < channels; ++c) {
    largest = std::max<Bits>(largest, data[c] & Element::magnitude);
    if constexpr (std::is_same_v<Element, Single>)
      patterns[c] = Half::fromFloat(Single::toFloat(data[c]));
    else
      patterns[c] = data[c];
  }
  if (largest >= limit) {
    std::fill_n(patterns, channels, uint16_t(0));
    return true;
  }
  for (int64_t c = 0; c < channels; c += kLanes) {
    Floats raw;
    loadFloats<Element>(raw, data + c);
    raiseMaxima(row.channelMax + c, raw);
  }
  return false;
}

/// Calls body(plane, its layers, layer, bits of a value below it) of each resident group of 4 bits.
template <typename Body> ALIGNED_LOOP void forEachLayer(const Row &row, const Tile &tile, Body body) {
  for (int32_t p = 0, below = 16; p < row.planes; ++p)
    for (int64_t layer = 0, layers = row.format.width[p] / 4; layer < layers; ++layer)
      body(tile.plane[p], layers, layer, below -= 4);
}

/// Bytes of which the first half of values fill the low halves.
ALIGNED_LOOP void packHalves(const uint16_t *values, int64_t bytes, int32_t below, uint8_t *__restrict to) {
  ALIGNED_INDEPENDENT
  for (int64_t i = 0; i < bytes; ++i)
    to[i] = uint8_t((values[i] >> below & 15) | (values[i + bytes] >> below & 15) << 4);
}

ALIGNED_LOOP void writeFloatValue(const Row &row, const Tile &tile, int64_t t, const uint16_t *patterns, int64_t channels) {
  forEachLayer(row, tile, [=](uint8_t *plane, int64_t layers, int64_t layer, int32_t below) ALIGNED_BODY {
    packHalves(patterns, channels / 2, below, plane + (t * layers + layer) * (channels / 2));
  });
}

/// One token's halves of bytes that it shares with another.
ALIGNED_LOOP void writeFloatKey(const Row &row, const Tile &tile, int64_t t, const uint16_t *patterns, int64_t channels) {
  constexpr int64_t half = storage::kTile / 2;
  const int32_t shift = t < half ? 0 : 4;
  forEachLayer(row, tile, [=](uint8_t *plane, int64_t layers, int64_t layer, int32_t below) ALIGNED_BODY {
    uint8_t *to = plane + layer * half + t % half;
    for (int64_t c = 0; c < channels; ++c, to += layers * half)
      *to = uint8_t((*to & 0xf0 >> shift) | (patterns[c] >> below & 15) << shift);
  });
}

/// A whole tile of tokens, [64][channels].
ALIGNED_LOOP void writeFloatKeys(const Row &row, const Tile &tile, const uint16_t *patterns, int64_t channels) {
  constexpr int64_t half = storage::kTile / 2, some = 8; // channels at once: their patterns share cache lines
  for (int64_t first = 0; first < channels; first += some) {
    uint16_t turned[some][storage::kTile];
    for (int64_t t = 0; t < storage::kTile; ++t)
      for (int64_t c = 0; c < some; ++c)
        turned[c][t] = patterns[t * channels + first + c];
    forEachLayer(row, tile, [&](uint8_t *plane, int64_t layers, int64_t layer, int32_t below) ALIGNED_BODY {
      for (int64_t c = 0; c < some; ++c)
        packHalves(turned[c], half, below, plane + ((first + c) * layers + layer) * half);
    });
  }
}

//===----------------------------------------------------------------------===//
// Reading
//===----------------------------------------------------------------------===//

/// The 16 bits that were cut up of token t of a tile, of the first `planes` planes; the others are 0.
ALIGNED_LOOP void readToken(const Row &row, const Tile &tile, int32_t planes, int64_t t, int64_t channels, uint16_t *cut) {
  std::fill_n(cut, channels, uint16_t(0));
  for (int32_t p = 0; p < planes; ++p) {
    const int32_t width = row.format.width[p], below = storage::bitsBelow(row.format, p);
    const int64_t layers = width / 4;
    const uint8_t *from = tile.plane[p];
    if (!row.isFixed() && row.isKey()) {
      constexpr int64_t half = storage::kTile / 2;
      for (int64_t layer = 0; layer < layers; ++layer)
        for (int64_t c = 0; c < channels; ++c)
          cut[c] |= uint16_t((from[(c * layers + layer) * half + t % half] >> (t < half ? 0 : 4) & 15) << (below + width - 4 - 4 * layer));
    } else if (!row.isFixed()) {
      const int64_t half = channels / 2;
      for (int64_t layer = 0; layer < layers; ++layer)
        for (int64_t c = 0; c < half; ++c) {
          const uint8_t byte = from[(t * layers + layer) * half + c];
          const int32_t shift = below + width - 4 - 4 * int32_t(layer);
          cut[c] |= uint16_t((byte & 15) << shift);
          cut[c + half] |= uint16_t(byte >> 4 << shift);
        }
    } else if (storage::isTiled(row.format, p)) {
      const int64_t group = width == 4 ? 8 : 4;
      for (int64_t first = 0; first < channels; first += group)
        for (int64_t c = 0; c < 4; ++c) {
          const uint8_t byte = from[(first / group * storage::kTile + t) * 4 + c];
          cut[first + c] |= uint16_t((width == 4 ? byte & 15 : byte) << below);
          if (width == 4)
            cut[first + c + 4] |= uint16_t(byte >> 4 << below);
        }
    } else if (width == 4) {
      for (int64_t c = 0; c < channels; c += 2) {
        const uint8_t byte = from[(t * channels + c) / 2];
        cut[c] |= uint16_t((byte & 15) << below);
        cut[c + 1] |= uint16_t(byte >> 4 << below);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c)
        cut[c] |= uint16_t(from[t * channels + c] << below);
    }
  }
}

/// Takes the sums of a token off, or puts them on: sign -1 or 1.
ALIGNED_LOOP void addToSums(const Row &row, const Tile &tile, int64_t token, int64_t channels, int64_t sign) {
  uint16_t cut[kMostChannels];
  readToken(row, tile, row.planes, withinTile(token), channels, cut);
  const int32_t dither = storage::ditherOf(ALIGNED_ROLE_VALUE, token);
  for (int64_t c = 0; c < channels; ++c)
    row.sum[c] += sign * (int16_t(cut[c]) - dither);
}

} // namespace aligned

#endif // ALIGNED_LIB_RUNTIME_PACK_H
