// P1, the published rule, as code that every machine shares: how many bits an addend needs. Numbers are scalars or vectors alike.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_NUMERICS_H
#define ALIGNED_LIB_CONVERSION_COMMON_NUMERICS_H

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// Nibble layers of a 16-bit value.
constexpr int64_t kLayers = 4;

/// P1: floor(log2 |x|) of an f32, at least -14, and -15 for zero: the exponent of a half.
Val halfExponent(Val x);
/// P1: layers of the three tiers, the least, the middle, or all.
Val tierLayers(Val isLeast, Val isMiddle);
constexpr int64_t kProbed = 32; ///< P1: rows that judge the size of the output

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_NUMERICS_H
