// Where fixed planes have a value's bits, and what the dither of its token is (S4, S5, S6), as code that every machine shares. Storage/Layout.h says the same to C++. Numbers are of
// any integer type, and not below 0; of dither, lanes, too.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_STOREDBITS_H
#define ALIGNED_LIB_CONVERSION_COMMON_STOREDBITS_H

#include "aligned/Conversion/Common/Emitter.h"
#include "aligned/Storage/Layout.h"

namespace aligned {

/// Dither of tokens, in steps of n, plus kDitherSteps / 2.
Val ditherSteps(Val tokens, int32_t role);

/// The byte of a tile's plane that holds a value, how far up in it as i32, and which bits are the value's then.
struct StoredBits {
  Val byte, shift;
  int64_t mask;
};
/// `within`: the token's number in its tile, of the channel's type.
StoredBits storedBits(const aligned_format &format, int32_t plane, int64_t headDim, Val within, Val channel);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_STOREDBITS_H
