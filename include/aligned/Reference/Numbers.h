// Sixteen-bit floats and doubles, one value at a time.
#ifndef ALIGNED_REFERENCE_NUMBERS_H
#define ALIGNED_REFERENCE_NUMBERS_H

#include <cstdint>

namespace aligned {

/// What the 16 bits of a `float` format mean: sign, exponent, mantissa.
enum class Storage { Half, BFloat16 };

double widen(uint16_t bits, Storage storage);
/// To nearest, ties to even; overflow gives infinity. A NaN stays one.
uint16_t narrow(double value, Storage storage);

} // namespace aligned

#endif // ALIGNED_REFERENCE_NUMBERS_H
