// Plane storage in float64, one value at a time: the oracle for those who write and read the memory of a cache.
//
// It restates aligned/Storage/Scale.h (what the bits mean) and Layout.h (where they lie) and shares nothing with them but the rotation's
// signs. Worked example, V, token 1, x = 0.8 in a row whose largest value is 1.5:
//
//   S3   16/15 * 1.5 = 1.6 <= 2^(6/8) = 1.682      code 6 + 126 = 132
//   S5   dither = 2333 * 1 mod 4096 - 2048 = 285
//   S4   n = round(0.8 / 1.682 * 32768) + 285 = 15872 = 0x3E00
//        8 bits of it: 0x3E, the missing ones at their middle: 0x3E80; less the dither: 15715, which stands for 0.8066
#ifndef ALIGNED_REFERENCE_PLANES_H
#define ALIGNED_REFERENCE_PLANES_H

#include "aligned/Reference/Numbers.h"

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace aligned {

constexpr int64_t kTileTokens = 64;

enum class Role { Key, Value };
enum class Kind { Fixed, Float };

//===----------------------------------------------------------------------===//
// Fixed planes (S2 to S5)
//===----------------------------------------------------------------------===//

/// S5: of all values of a token.
int64_t ditherOf(Role role, int64_t token);

/// S3: 2^((code - bias) / 8).
double scaleOf(int code, int bias);
/// The bias of f16 caches.
constexpr int kBiasOfHalves = 126;
/// That of caches of wider types: a row whose largest magnitude is `largest` has code 128.
int biasFor(double largest);

/// S2: x R, R = diag(signs) H, H the normalised Hadamard matrix; block-diagonal, the largest power of two first, where the size of x is no
/// power of two.
std::vector<double> rotated(std::vector<double> x);
/// S2: what is taken off K where nothing else was said: the mean of the first 64 tokens, of those that are finite, as a float; zeros where
/// there are fewer tokens.
std::vector<double> offsetOf(const std::vector<double> &keys, int64_t tokens, int64_t dim);

/// One side of a kv head. Keys are rotated, less an offset.
struct FixedPlanes {
  Role role;
  int64_t tokens, dim;
  int bias;
  std::vector<double> offset; ///< [dim]; zeros for values
  std::vector<int> codes;     ///< [tokens], 1 to 255; 0: the token is kept aside (S7)
  std::vector<double> scales; ///< [tokens], of codes; 0 where the token is kept aside
  std::vector<int32_t> n;     ///< [tokens, dim], 0 where the token is kept aside
  /// S7: the values of tokens with a NaN, an infinity or a scale beyond the largest code; those of keys less the offset, not rotated.
  std::map<int64_t, std::vector<double>> aside;

  bool isAside(int64_t token) const { return codes[token] == 0; }
  /// S4: the top `bits` of n, the missing ones at their middle, less the dither.
  int64_t readInteger(int64_t token, int64_t channel, int bits) const;
  /// What it stands for, of keys in the rotated domain. |read - x| <= scale (2^-bits + 2^-16), 2^-16 alone for 16 bits.
  double read(int64_t token, int64_t channel, int bits) const;
  /// What is cut into planes: n + 2^15 of keys, n in two's complement of values.
  uint16_t pattern(int64_t token, int64_t channel) const;
};

/// Stores dense [tokens, dim]. Without a bias: that of halves, or of the largest value of a BFloat16 cache. Without an offset: offsetOf.
FixedPlanes packFixed(const std::vector<double> &values, int64_t tokens, int64_t dim, Role role, Storage storage = Storage::Half,
                      std::optional<int> bias = {}, std::optional<std::vector<double>> offset = {});

//===----------------------------------------------------------------------===//
// What a cache knows of a kv head's tokens (M1 to M3); of those that are not kept aside, whatever a mask hides
//===----------------------------------------------------------------------===//

struct ScaleCounts {
  std::array<int64_t, 256> count = {}; ///< tokens of each code
  int64_t tokens = 0, below = 0;       ///< in all; with a code below the median
  int largest = 0, median = 0;         ///< codes, 0 where there is no token. Median: at least half of the tokens have it or a smaller one
};
ScaleCounts countScales(const FixedPlanes &planes);

/// M1: the sum of n - dither of each channel, of n the top `bits` bits, the missing ones 0: as the memory of a cache has it.
std::vector<int64_t> sumChannels(const FixedPlanes &planes, int bits = 16);

struct ValueSummary {
  int floor = 0;            ///< M3: codes below count as this one: the median - 32, a 16th
  double usual = 1;         ///< M2: A, the harmonic mean of scales with the floor
  std::vector<double> mean; ///< M1: of rows weighted by 1 / scale, [dim], missing bits at their middle: stands for rows that are not read
  double spread = 0;        ///< rms of (v - mean) / scale: what a row that is not read is off by
  double fill = 0;          ///< rms of v / scale, with the mean's part in it
};
/// Of `bits` resident bits.
ValueSummary summarize(const FixedPlanes &values, int bits = 16);

//===----------------------------------------------------------------------===//
// Float planes (S8)
//===----------------------------------------------------------------------===//

/// The top `bits` bits of a half or bfloat16 pattern, missing bits at their midpoint.
double readFloat(uint16_t pattern, int bits, Storage storage);

//===----------------------------------------------------------------------===//
// Memory (S6)
//===----------------------------------------------------------------------===//

struct PlaneFormat {
  Kind kind;
  Role role;
  std::vector<int> widths; ///< of planes, most significant first; fixed: 4 or 8, float: multiples of 4
};
using PlaneBytes = std::vector<std::vector<uint8_t>>; ///< of each plane

/// The planes of one cache row, [tokens, dim], whose tiles lie one after another; the last tile is filled up with zeros.
PlaneBytes packPlanes(const std::vector<uint16_t> &patterns, int64_t tokens, int64_t dim, const PlaneFormat &format);
/// The patterns again. Of planes that are absent the bits are zeros.
std::vector<uint16_t> joinPlanes(const PlaneBytes &planes, int64_t tokens, int64_t dim, const PlaneFormat &format);

} // namespace aligned

#endif // ALIGNED_REFERENCE_PLANES_H
