// The certificate (P4): what every machine takes for granted of it. How sums are taken is each one's own (AlignedToCPU/Certify.cpp, AlignedToNVVM/CertifyKernel.cpp over fixed
// planes, AlignedToCPU/RowKernel.cpp over others).
#ifndef ALIGNED_LIB_CONVERSION_COMMON_CERTIFICATE_H
#define ALIGNED_LIB_CONVERSION_COMMON_CERTIFICATE_H

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// Weights below the floats are 0 in kernels; what they are instead stays below this.
constexpr double kLeastWeight = 1e-37;

constexpr double kLeastProduct = 0x1p-126; ///< of a weight and a value: a float below it may be 0
// Of estimates (E1):
constexpr double kFill = 0.35;                            ///< rms of values of V relative to their scale, and of the same less the mean
constexpr double kCommonUnread = 0.03, kCommonScan = 0.2; ///< shares that errors of rows that are not read, and of keys that are only scanned, have in common

/// At least e^x - 1 for x >= 0. Infinite from 40 on, so that what a float can't tell from 0, here or where states merge, does not matter before.
Val growth(Val x);

/// What a query row's tokens give over dense caches and float planes, as f32. Tokens that are read from planes have weights w, errors of scores whose growth is g, magnitudes of at most m and
/// errors of at most r, both in `unit`; all others are exact but for rounding.
struct CertificateSums {
  Val grown, grownReach, reach, error, variance, unread; ///< sums of w g, w g m, w m, w r, w^2 times the variance of r, and of w m of rows that are not read
  Val growthOfNothing;     ///< sum of g over tokens, times the least weight
  Val exactMass, exactGrowth; ///< sum of w, and growth of the scores' errors, of the tokens that are exact
  Val unit, largest;       ///< largest: magnitude in V
  Val weightError;         ///< what the output is off by because weights are integers, in `unit`
  Val scoreVariance;       ///< of the output by scores, relative to `sum`, in the square of `unit`
  Val sum, tokens;
  Val valueRounding, inflation; ///< relative: of the sums of values and weights, and of the sums above
  double commonShare;      ///< that errors of rows that are not read may have in common
};

/// The kCertificateNumbers of `aligned.decode_attention`.
Vals certificateOf(const CertificateSums &sums);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_CERTIFICATE_H
