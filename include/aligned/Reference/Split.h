// Split storage bit by bit: the oracle for packers and readers of aligned/Runtime/Cache.h.
#ifndef ALIGNED_REFERENCE_SPLIT_H
#define ALIGNED_REFERENCE_SPLIT_H

#include "aligned/Reference/Numbers.h"

#include <cstdint>
#include <vector>

namespace aligned {

constexpr int64_t kBlockTokens = 64;

/// The dither of S1, from the places of the token and, for keys, of the channel; values are all dithered like channel 0.
int64_t ditherOf(int64_t token, int64_t channel = 0);

/// S1: 16-bit integers relative to 2^E * 16/15.
struct FixedSplit {
  int64_t tokens, dim;
  bool key;                        ///< exponents per (block, channel); else per token
  std::vector<uint16_t> patterns;  ///< n + 2^15, [tokens, dim]
  std::vector<uint8_t> exponents;  ///< E + 112: key [tokens / 64, dim], value [tokens]

  double scale(int64_t token, int64_t channel) const;
  /// The value that the top `bits` bits stand for; missing bits at their mean, the dither taken off; 0 bits read 0.
  double read(int64_t token, int64_t channel, int bits) const;
};

/// Splits dense [tokens, dim]; keys need whole blocks. Values that are not finite are stored as 0 and have no say in exponents (S7); a reader
/// adds them to the sums they belong to.
FixedSplit splitFixed(const std::vector<double> &values, int64_t tokens, int64_t dim, bool key);

/// S3: how the nibbles of the patterns of one cache row lie in memory, with planes of these widths, most significant first.
enum class PlaneOrder { FixedKey, FloatKey, Value };
using Planes = std::vector<std::vector<uint8_t>>;
Planes packPlanes(const std::vector<uint16_t> &patterns, int64_t tokens, int64_t dim, PlaneOrder order, const std::vector<int> &widths);
/// The patterns again. Of planes that are absent the bits are zeros.
std::vector<uint16_t> joinPlanes(const Planes &planes, int64_t tokens, int64_t dim, PlaneOrder order, const std::vector<int> &widths);

/// S2: the top `bits` bits of a half or bfloat16 pattern, missing bits at their midpoint.
double readFloat(uint16_t pattern, int bits, Storage storage);

} // namespace aligned

#endif // ALIGNED_REFERENCE_SPLIT_H
