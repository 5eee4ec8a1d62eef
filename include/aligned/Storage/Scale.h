// Scale codes and dither (S3, S5): what turns a float into the 16-bit integer that planes are cut from, and back.
//
//   scale = 2^((code - bias) / 8)    code 1 .. 255, the least one with scale >= 16/15 max_c |x_c|; code 0 says that the token is kept aside (S7)
//   n     = clamp(round(x / scale 2^15) + dither, -2^15, 2^15 - 1)
//
// Whoever reads b bits takes the middle of what the missing ones may be, and the dither off:
//
//   x' = ((n >> (16 - b)) 2^(16 - b) + (b < 16 ? 2^(15 - b) : 0) - dither) scale / 2^15        |x' - x| <= scale (2^-b + 2^-16), scale 2^-16 for all 16; variance scale^2 4^-b / 3
//
// Worked example, V, token 1, x = 0.8, the row's largest |x| = 1.5, bias 126: 16/15 * 1.5 = 1.6 -> 8 log2 = 5.42, code = 6 + 126 = 132,
// scale = 2^(6/8) = 1.682; dither = 2333 - 2048 = 285; n = round(0.8 / 1.682 * 32768) + 285 = 15587 + 285 = 15872 = 0x3E00. Read to 8 bits:
// 0x3E00 + 128 - 285 = 15715 -> 15715 / 32768 * 1.682 = 0.8066.
#ifndef ALIGNED_STORAGE_SCALE_H
#define ALIGNED_STORAGE_SCALE_H

#include "aligned/Storage/Format.h"

namespace aligned::storage {

constexpr int32_t kTile = ALIGNED_TILE;
constexpr double kRoom = 16.0 / 15; // of the scale above the largest value, so that the dither fits
constexpr int32_t kAside = 0;       // the code of a token that is kept aside
constexpr int32_t kLeastCode = 1, kLargestCode = 255;
constexpr int32_t kStepsPerOctave = 8;
/// The bias of f16 caches: its largest value, 65504 * 16/15 < 2^(129/8), has code 255; 2^-15.6 is the least scale. Caches of wider types take theirs
/// from the first values: their largest gets code 128. But 2^((128 - bias) / 8), the unit of scales in kernels, stays between 2^-80, so that no product with it
/// leaves the floats, and 2^127.
constexpr int32_t kHalfBias = 126;
constexpr int32_t kFirstCode = 128;
constexpr int32_t biasFor(int32_t eighthsOfLargest) {
  constexpr int32_t kLeast = -80 * kStepsPerOctave, kMost = 127 * kStepsPerOctave;
  return kFirstCode - (eighthsOfLargest < kLeast ? kLeast : eighthsOfLargest > kMost ? kMost : eighthsOfLargest);
}

/// M3: a row of V whose code lies this much below the median, a 16th, counts as one of that code, and stands for zero when it is not read.
constexpr int32_t kFloorBelowMedian = 32;

constexpr int32_t kDitherSteps = 4096; // one step of 4 bits
constexpr int32_t kKeyDither = 3091, kValueDither = 2333;

constexpr int32_t ditherFactor(int32_t role) { return role == ALIGNED_ROLE_KEY ? kKeyDither : kValueDither; }
constexpr int32_t ditherOf(int32_t role, int64_t token) {
  return int32_t(uint32_t(token) * ditherFactor(role) % kDitherSteps) - kDitherSteps / 2;
}

} // namespace aligned::storage

#endif // ALIGNED_STORAGE_SCALE_H
