// Numbers as PTX has them. What is narrower than a float is computed in a wider format and rounded once: sums, products,
// quotients and roots of 11-bit or 8-bit numbers in float, whose 24 bits make the second rounding harmless; fused operations in
// double, rounded *to odd* (inexact results get their last bit set), after which any rounding to a narrower format is right.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace aligned::emulator {

template <typename To, typename From> To bitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

enum class Rounding : uint8_t { Even, Zero, Down, Up, Away };

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

constexpr uint32_t floatNan = 0x7fffffff; // what the hardware makes of invalid operations
constexpr uint16_t halfNan = 0x7fff;

inline float canonical(float x) { return x != x ? bitCast<float>(floatNan) : x; }
inline double canonical(double x) { return x; }

inline float toFloat(Half half) {
  uint32_t magnitude = half.bits & 0x7fffu, sign = uint32_t(half.bits & 0x8000u) << 16;
  uint32_t bits = bitCast<uint32_t>(bitCast<float>(magnitude << 13) * 0x1p112f); // subnormals, too
  return bitCast<float>(bits | (magnitude >= 0x7c00 ? 0x7f800000u : 0) | sign);
}
inline float toFloat(Brain brain) { return bitCast<float>(uint32_t(brain.bits) << 16); }
inline float toFloat(float x) { return x; }

template <typename T> T fromFloat(float x);
template <> inline float fromFloat<float>(float x) { return x; }
template <> inline Half fromFloat<Half>(float x) {
  uint32_t bits = bitCast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  uint32_t normal = (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13;
  uint32_t subnormal = bitCast<uint32_t>(bitCast<float>(magnitude) + 0.5f) - bitCast<uint32_t>(0.5f);
  uint32_t result = magnitude < 0x38800000 ? subnormal : normal;
  result = magnitude >= 0x477ff000 ? 0x7c00 : result;
  return Half{uint16_t(magnitude > 0x7f800000 ? halfNan : result | (bits >> 16 & 0x8000))};
}
template <> inline Brain fromFloat<Brain>(float x) {
  uint32_t bits = bitCast<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return Brain{uint16_t((bits & 0x7fffffff) > 0x7f800000 ? halfNan : rounded)};
}

/// `x`, rounded to a float such that further roundings are right.
inline float toOdd(double x) {
  auto nearest = float(x);
  auto back = double(nearest);
  uint32_t bits = bitCast<uint32_t>(nearest);
  uint32_t step = std::fabs(back) < std::fabs(x) ? 1u : ~0u;
  bool inexact = back != x && x == x && !(bits & 1);
  return bitCast<float>(inexact ? bits + step : bits);
}

/// Exact cancellation is -0 where that is downwards.
inline double addToOdd(double a, double b, Rounding rounding = Rounding::Even) {
  if (rounding == Rounding::Down && a + b == 0)
    return std::signbit(a) || std::signbit(b) ? -0.0 : 0.0;
  double sum = a + b, part = sum - a, rest = (a - (sum - part)) + (b - part);
  uint64_t bits = bitCast<uint64_t>(sum);
  bool inexact = rest != 0 && std::fabs(sum) <= std::numeric_limits<double>::max() && !(bits & 1);
  bool outwards = (rest > 0) == (sum > 0);
  return bitCast<double>(inexact ? bits + (outwards ? 1 : ~uint64_t(0)) : bits);
}

/// a * b + c of floats or of what is narrower.
inline double fusedToOdd(double a, double b, double c, Rounding rounding = Rounding::Even) {
  return addToOdd(a * b, c, rounding);
}

template <typename T> T fused(T a, T b, T c) {
  return fromFloat<T>(toOdd(fusedToOdd(double(toFloat(a)), double(toFloat(b)), double(toFloat(c)))));
}
template <> inline float fused(float a, float b, float c) { return float(fusedToOdd(a, b, c)); }
template <> inline double fused(double a, double b, double c) { return std::fma(a, b, c); }

inline double quotientToOdd(double a, double b) {
  double q = a / b;
  double rest = -std::fma(q, b, -a); // has the sign of exact - q, times that of b
  uint64_t bits = bitCast<uint64_t>(q);
  if (!(rest > 0 || rest < 0) || !(std::fabs(q) <= std::numeric_limits<double>::max()) || (bits & 1))
    return q; // exact, infinite or not a number
  bool above = (rest > 0) == (b > 0);
  return bitCast<double>(above == (q > 0) ? bits + 1 : bits - 1);
}
inline double rootToOdd(double a) {
  double root = std::sqrt(a);
  double rest = -std::fma(root, root, -a);
  uint64_t bits = bitCast<uint64_t>(root);
  if (!(root > 0) || !(root <= std::numeric_limits<double>::max()) || rest == 0 || (bits & 1))
    return root;
  return bitCast<double>(rest > 0 ? bits + 1 : bits - 1);
}

/// `x`, which is exact or rounded to odd, as a float.
inline float toFloat(double x, Rounding rounding) {
  auto nearest = float(x);
  if (rounding == Rounding::Even || double(nearest) == x || x != x)
    return nearest;
  bool tooGreat = double(nearest) > x, negative = std::signbit(x);
  bool wantBelow = rounding == Rounding::Down || (rounding == Rounding::Zero && !negative);
  if (tooGreat == wantBelow)
    return std::nextafterf(nearest, wantBelow ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity());
  return nearest;
}

/// A number of `exponentBits` and `fractionBits` with infinities and subnormals, as a pattern without its sign bit; `x` is not
/// a NaN and is exact or rounded to odd. For the rare roundings.
inline uint32_t roundMagnitude(double x, unsigned exponentBits, unsigned fractionBits, Rounding rounding) {
  bool negative = std::signbit(x);
  double magnitude = std::fabs(x);
  int bias = (1 << (exponentBits - 1)) - 1, least = 1 - bias;
  uint32_t infinity = ((1u << exponentBits) - 1) << fractionBits;
  if (std::isinf(magnitude))
    return infinity;
  if (magnitude == 0)
    return 0;
  int exponent = std::max(std::ilogb(magnitude), least);
  double scaled = std::ldexp(magnitude, int(fractionBits) - exponent); // exact
  double whole = std::floor(scaled), part = scaled - whole;
  bool up = rounding == Rounding::Even   ? part > 0.5 || (part == 0.5 && std::fmod(whole, 2) == 1)
            : rounding == Rounding::Away ? part >= 0.5
            : rounding == Rounding::Zero ? false
            : rounding == Rounding::Down ? negative && part > 0
                                         : !negative && part > 0;
  whole += up;
  double result = (exponent - least) * std::ldexp(1.0, int(fractionBits)) + whole; // the hidden bit carries into the exponent
  if (result >= infinity) {
    bool toInfinity = rounding == Rounding::Even || rounding == Rounding::Away || (rounding == Rounding::Down && negative) ||
                      (rounding == Rounding::Up && !negative);
    return toInfinity ? infinity : infinity - 1;
  }
  return uint32_t(result);
}

inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

} // namespace aligned::emulator
