// By the definition of the formats: value = (-1)^sign * significand * 2^exponent.
#include "aligned/Reference/Numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>

using namespace aligned;

namespace {
struct Layout {
  int exponentBits, mantissaBits;
  int bias() const { return (1 << (exponentBits - 1)) - 1; }
};
Layout layoutOf(Storage storage) { return storage == Storage::Half ? Layout{5, 10} : Layout{8, 7}; }
} // namespace

double aligned::widen(uint16_t bits, Storage storage) {
  Layout layout = layoutOf(storage);
  int exponent = (bits >> layout.mantissaBits) & ((1 << layout.exponentBits) - 1), mantissa = bits & ((1 << layout.mantissaBits) - 1);
  double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << layout.exponentBits) - 1)
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) // subnormal
    return sign * std::ldexp(mantissa, 1 - layout.bias() - layout.mantissaBits);
  return sign * std::ldexp(mantissa + (1 << layout.mantissaBits), exponent - layout.bias() - layout.mantissaBits);
}

uint16_t aligned::narrow(double value, Storage storage) {
  Layout layout = layoutOf(storage);
  uint16_t sign = std::signbit(value) ? 0x8000 : 0, infinity = ((1 << layout.exponentBits) - 1) << layout.mantissaBits;
  if (std::isnan(value))
    return sign | infinity | (1 << (layout.mantissaBits - 1));
  if (std::isinf(value))
    return sign | infinity;
  double magnitude = std::fabs(value);
  if (magnitude == 0)
    return sign;
  // The step between neighbours, at least that of the subnormals.
  int exponent = std::max(std::ilogb(magnitude), 1 - layout.bias());
  double steps = std::nearbyint(std::ldexp(magnitude, layout.mantissaBits - exponent));
  // Counting steps from zero gives the pattern itself: a full significand carries into the exponent.
  long pattern = static_cast<long>(steps) + (static_cast<long>(exponent + layout.bias() - 1) << layout.mantissaBits);
  return sign | (pattern >= infinity ? infinity : static_cast<uint16_t>(pattern));
}
