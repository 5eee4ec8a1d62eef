// See the header.
#include "StoredBits.h"

using namespace mlir;
using namespace aligned;

Val aligned::ditherSteps(Val tokens, int32_t role) { return (tokens * storage::ditherFactor(role)) & (storage::kDitherSteps - 1); }

StoredBits aligned::storedBits(const aligned_format &format, int32_t plane, int64_t headDim, Val within, Val channel) {
  const int32_t width = format.width[plane];
  Emitter &e = *channel.e;
  auto shifted = [&](int64_t bits) { return shrLogical(channel, e.constant(channel.type(), bits)); };
  Val byte, isHigh; // isHigh: of two values in a byte
  if (storage::isTiled(format, plane)) {
    byte = (shifted(width == 4 ? 3 : 2) * storage::kTile + within) * 4 + (channel & 3);
    isHigh = shifted(2) & 1;
  } else {
    byte = within * storage::rowBytes(width, headDim) + (width == 4 ? shifted(1) : channel);
    isHigh = channel & 1;
  }
  return {byte, width == 4 ? convert(isHigh, e.i32()) * 4 : e.constant(e.i32(), 0), (1 << width) - 1};
}
