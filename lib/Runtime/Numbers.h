// The element types of caches and their conversions.
//
// Conversions are bit arithmetic and selects, or one instruction where the machine has it, so that loops over them become vector
// code. A process that flushes subnormal floats to zero gets the same bits: subnormal halves are normal floats.
#ifndef ALIGNED_LIB_RUNTIME_NUMBERS_H
#define ALIGNED_LIB_RUNTIME_NUMBERS_H

#include "aligned/Runtime/Cache.h"

#include <cstdint>
#include <cstring>
#include <limits>

namespace aligned {

template <typename To, typename From> To bitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

/// `magnitude`: all bits but the sign. `infinity`: the least magnitude that is not finite.
struct Half {
  using Bits = uint16_t;
  static constexpr Bits magnitude = 0x7fff, infinity = 0x7c00;
  static constexpr float largest = 65504.0f;
  static constexpr uint32_t overflow = 0x477ff000; ///< bits of 65520, the least float that rounds to infinity

  static float toFloat(Bits bits) {
#if defined(__clang__)
    return bitCast<_Float16>(bits); // one instruction, but one that g++ 12 leaves scalar
#else
    uint32_t shifted = uint32_t(bits & magnitude) << 13;
    float normal = bitCast<float>(shifted + ((bits & magnitude) < infinity ? 112u << 23 : 224u << 23));
    float subnormal = bitCast<float>(shifted + (113u << 23)) - 0x1p-14f;
    uint32_t absolute = bitCast<uint32_t>((bits & magnitude) < 0x400 ? subnormal : normal);
    return bitCast<float>(absolute | uint32_t(bits & 0x8000) << 16);
#endif
  }

  /// To nearest even.
  static Bits fromFloat(float value) {
    uint32_t bits = bitCast<uint32_t>(value), absolute = bits & 0x7fffffff;
    uint32_t normal = ((absolute + 0xfff + (absolute >> 13 & 1)) >> 13) - (112u << 10);
    uint32_t subnormal = bitCast<uint32_t>(bitCast<float>(absolute) + 0.5f) - bitCast<uint32_t>(0.5f); // the sum's unit is 2^-24
    uint32_t finite = absolute < 0x38800000 ? subnormal : normal;
    uint32_t beyond = absolute > 0x7f800000 ? 0x7e00 : infinity;
    return Bits((absolute < overflow ? finite : beyond) | (bits >> 16 & 0x8000));
  }
};

struct BFloat {
  using Bits = uint16_t;
  static constexpr Bits magnitude = 0x7fff, infinity = 0x7f80;
  static constexpr float largest = 0x1.fep127f;
  static float toFloat(Bits bits) { return bitCast<float>(uint32_t(bits) << 16); }
  static Bits fromFloat(float value) {
    uint32_t bits = bitCast<uint32_t>(value);
    bool isNaN = (bits & 0x7fffffff) > 0x7f800000;
    return Bits(isNaN ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

struct Single {
  using Bits = uint32_t;
  static constexpr Bits magnitude = 0x7fffffff, infinity = 0x7f800000;
  static constexpr float largest = std::numeric_limits<float>::max();
  static float toFloat(Bits bits) { return bitCast<float>(bits); }
  static Bits fromFloat(float value) { return bitCast<Bits>(value); }
};

/// Calls `body` with the type that describes `element`.
template <typename Body> auto withElement(int32_t element, const Body &body) {
  switch (element) {
  case ALIGNED_ELEMENT_F16:
    return body(Half());
  case ALIGNED_ELEMENT_BF16:
    return body(BFloat());
  default:
    return body(Single());
  }
}

} // namespace aligned

#endif
