// cvt: between integers, floats and the packed narrow formats. The conversions that kernels are full of have loops of their own;
// the rest go through one that reads any number exactly and rounds once.

#include "Decode.h"
#include "Lanes.h"
#include "Numbers.h"

#include <algorithm>

namespace aligned::emulator {

namespace {

enum Flags : uint16_t { Flush = 1, Saturate = 2, Relu = 4, Finite = 8, RoundingShift = 4, Integral = 0x80 };

Rounding roundingOf(const Step &step) { return Rounding(step.flags >> RoundingShift & 7); }

//===----------------------------------------------------------------------===//
// Frequent ones
//===----------------------------------------------------------------------===//

template <typename From, typename To> void convertFloat(Warp &warp, const Step &step, Mask active) {
  auto get = [](const uint8_t *from, unsigned i) { return toFloat(laneOf<From>(from, i)); };
  const uint8_t *a = warp.file + step.a;
  To result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = fromFloat<To>(canonical(get(a, i)));
  put(warp, step.d, result, active);
}

/// Two floats to a pair: the first becomes the upper half.
template <typename To> void packFloats(Warp &warp, const Step &step, Mask active) {
  map<float, float, uint32_t>(warp, step, active,
                              [](float a, float b) { return uint32_t(fromFloat<To>(a).bits) << 16 | fromFloat<To>(b).bits; });
}

template <typename From> void integerToSingle(Warp &warp, const Step &step, Mask active) {
  map<From, float>(warp, step, active, [](From a) { return float(a); });
}

double roundToInteger(double x, Rounding rounding) {
  switch (rounding) {
  case Rounding::Even:
    return std::nearbyint(x);
  case Rounding::Zero:
    return std::trunc(x);
  case Rounding::Down:
    return std::floor(x);
  case Rounding::Up:
    return std::ceil(x);
  case Rounding::Away:
    return std::round(x);
  }
  return x;
}

template <typename From, typename To> void singleToInteger(Warp &warp, const Step &step, Mask active) {
  Rounding rounding = roundingOf(step);
  constexpr To low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
  constexpr double beyond = 2.0 * double(To(1) << (sizeof(To) * 8 - 2)) * (std::is_signed_v<To> ? 1 : 2);
  bool flushed = step.flags & Flush;
  map<From, To>(warp, step, active, [=](From stored) {
    double x;
    if constexpr (std::is_same_v<From, double>)
      x = stored;
    else
      x = double(flushed ? flush(toFloat(stored)) : toFloat(stored));
    if (x != x) {
      bool wide = sizeof(To) == 8 || std::is_same_v<From, double>;
      return wide ? To(uint64_t(1) << (sizeof(To) * 8 - 1)) : To(0);
    }
    x = roundToInteger(x, rounding);
    return x >= beyond ? high : x <= double(low) ? low : To(x);
  });
}

//===----------------------------------------------------------------------===//
// Any
//===----------------------------------------------------------------------===//

using Exact = long double; // holds 64-bit integers and doubles

float e4m3ToFloat(uint8_t bits) {
  unsigned magnitude = bits & 0x7f;
  float value = magnitude == 0x7f ? bitCast<float>(floatNan)
                : magnitude < 8   ? std::ldexp(float(magnitude), -9)
                                  : std::ldexp(float(8 + magnitude % 8), int(magnitude / 8) - 10);
  return bits & 0x80 ? -value : value;
}
float e5m2ToFloat(uint8_t bits) { return toFloat(Half{uint16_t(bits << 8)}); }

uint8_t toE4m3(double x) {
  uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (x != x)
    return 0x7f;
  double magnitude = std::fabs(x);
  if (magnitude >= 448)
    return sign | 0x7e;
  if (magnitude == 0)
    return sign;
  int exponent = std::max(std::ilogb(magnitude), -6);
  auto steps = unsigned(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  return uint8_t(sign | std::min((unsigned(exponent + 6) << 3) + steps, 0x7eu));
}
uint8_t toE5m2(double x) {
  if (x != x)
    return 0x7f;
  uint32_t magnitude = roundMagnitude(x, 5, 2, Rounding::Even);
  return uint8_t((std::signbit(x) ? 0x80 : 0) | std::min(magnitude, 0x7bu));
}

Exact readExact(Type type, const uint8_t *from, unsigned lane) {
  switch (type) {
  case Type::U8:
  case Type::B8:
    return laneOf<uint8_t>(from, lane);
  case Type::S8:
    return laneOf<int8_t>(from, lane);
  case Type::U16:
    return laneOf<uint16_t>(from, lane);
  case Type::S16:
    return laneOf<int16_t>(from, lane);
  case Type::U32:
    return laneOf<uint32_t>(from, lane);
  case Type::S32:
    return laneOf<int32_t>(from, lane);
  case Type::U64:
    return Exact(laneOf<uint64_t>(from, lane));
  case Type::S64:
    return Exact(laneOf<int64_t>(from, lane));
  case Type::F16:
    return toFloat(laneOf<Half>(from, lane));
  case Type::BF16:
    return toFloat(laneOf<Brain>(from, lane));
  case Type::F32:
    return laneOf<float>(from, lane);
  default:
    return laneOf<double>(from, lane);
  }
}

/// A double that rounds as `x` does.
double oddDouble(Exact x) {
  auto nearest = double(x);
  uint64_t bits = bitCast<uint64_t>(nearest);
  if (!(std::fabs(nearest) <= std::numeric_limits<double>::max()) || Exact(nearest) == x || (bits & 1))
    return nearest;
  return bitCast<double>(std::fabs(Exact(nearest)) < std::fabs(x) ? bits + 1 : bits - 1);
}

double toDouble(Exact x, Rounding rounding) {
  auto nearest = double(x);
  if (rounding == Rounding::Even || x != x || Exact(nearest) == x)
    return nearest;
  bool below = rounding == Rounding::Down || (rounding == Rounding::Zero && x > 0);
  if ((Exact(nearest) > x) == below)
    return std::nextafter(nearest, below ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity());
  return nearest;
}

uint64_t toPattern(Exact x, Type type, const Step &step) {
  Rounding rounding = roundingOf(step);
  bool isInteger = !isFloat(type);
  if (isInteger) {
    unsigned bits = bitsOf(type);
    Exact low = isSigned(type) ? -std::ldexp(Exact(1), int(bits) - 1) : 0;
    Exact high = std::ldexp(Exact(1), int(isSigned(type) ? bits - 1 : bits)) - 1;
    x = std::min(std::max(x, low), high);
    return x < 0 ? uint64_t(int64_t(x)) : uint64_t(x);
  }
  if (step.flags & Integral)
    x = roundToInteger(double(x), rounding), rounding = Rounding::Even;
  if (step.flags & Saturate)
    x = x > 0 ? std::min(x, Exact(1)) : 0;
  if ((step.flags & Relu) && !(x > 0) && x == x)
    x = 0;
  bool finite = step.flags & Finite;
  double odd = oddDouble(x);
  uint64_t sign = std::signbit(odd);
  switch (type) {
  case Type::F64:
    return bitCast<uint64_t>(toDouble(x, rounding));
  case Type::F32: {
    float result = toFloat(odd, rounding);
    if (finite && std::isinf(result))
      result = std::copysign(std::numeric_limits<float>::max(), result);
    return bitCast<uint32_t>(canonical(step.flags & Flush ? flush(result) : result));
  }
  case Type::TF32: {
    if (odd != odd)
      return floatNan;
    uint32_t magnitude = roundMagnitude(odd, 8, 10, rounding);
    return (sign << 18 | (finite ? std::min(magnitude, (255u << 10) - 1) : magnitude)) << 13;
  }
  case Type::F16: {
    if (odd != odd)
      return halfNan;
    uint32_t magnitude = roundMagnitude(odd, 5, 10, rounding);
    return sign << 15 | (finite ? std::min(magnitude, 0x7bffu) : magnitude);
  }
  case Type::BF16: {
    if (odd != odd)
      return halfNan;
    uint32_t magnitude = roundMagnitude(odd, 8, 7, rounding);
    return sign << 15 | (finite ? std::min(magnitude, 0x7f7fu) : magnitude);
  }
  case Type::E4M3:
    return toE4m3(odd);
  default:
    return toE5m2(odd);
  }
}

void convertAny(Warp &warp, const Step &step, Mask active) {
  auto to = Type(step.number & 255), from = Type(step.number >> 8 & 255);
  unsigned bytes = bytesOf(to);
  uint8_t result[warpSize * 8];
  for (unsigned i = 0; i < warpSize; ++i) {
    Exact x = readExact(from, warp.file + step.a, i);
    if ((step.flags & Flush) && from == Type::F32)
      x = flush(float(x));
    uint64_t pattern = toPattern(x, to, step);
    std::memcpy(result + i * bytes, &pattern, bytes);
  }
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1)
      std::memcpy(warp.file + step.d + i * bytes, result + i * bytes, bytes);
}

/// Two numbers side by side; the first operand becomes the upper one.
void packAny(Warp &warp, const Step &step, Mask active) {
  auto to = Type(step.number & 255), from = Type(step.number >> 8 & 255);
  unsigned bits = bitsOf(to);
  for (unsigned i = 0; i < warpSize; ++i) {
    if (!(active >> i & 1))
      continue;
    auto high = uint32_t(toPattern(readExact(from, warp.file + step.a, i), to, step));
    auto low = uint32_t(toPattern(readExact(from, warp.file + step.b, i), to, step));
    if (bits == 8)
      setLane(warp, step.d, i, uint16_t(high << 8 | low));
    else
      setLane(warp, step.d, i, high << 16 | low);
  }
}

/// Pairs to pairs, of 8 bits and f16.
void convertPairs(Warp &warp, const Step &step, Mask active) {
  auto to = Type(step.number & 255), from = Type(step.number >> 8 & 255);
  for (unsigned i = 0; i < warpSize; ++i) {
    if (!(active >> i & 1))
      continue;
    if (to == Type::F16x2) {
      auto pair = laneOf<uint16_t>(warp, step.a, i);
      uint32_t result = 0;
      for (unsigned part = 0; part < 2; ++part) {
        auto bits = uint8_t(pair >> (8 * part));
        float x = from == Type::E4M3x2 ? e4m3ToFloat(bits) : e5m2ToFloat(bits);
        if ((step.flags & Relu) && !(x > 0) && x == x)
          x = 0;
        result |= uint32_t(fromFloat<Half>(x).bits) << (16 * part);
      }
      setLane(warp, step.d, i, result);
    } else {
      auto pair = laneOf<uint32_t>(warp, step.a, i);
      unsigned result = 0;
      for (unsigned part = 0; part < 2; ++part) {
        float x =
            from == Type::F16x2 ? toFloat(Half{uint16_t(pair >> (16 * part))}) : toFloat(Brain{uint16_t(pair >> (16 * part))});
        result |= unsigned(toPattern(x, to == Type::E4M3x2 ? Type::E4M3 : Type::E5M2, step)) << (8 * part);
      }
      setLane(warp, step.d, i, uint16_t(result));
    }
  }
}

/// cvt.pack: a and b saturated, a above b, over what c has in its low bits.
void packIntegers(Warp &warp, const Step &step, Mask active) {
  auto to = Type(step.number & 255);
  unsigned bits = bitsOf(to);
  for (unsigned i = 0; i < warpSize; ++i) {
    if (!(active >> i & 1))
      continue;
    uint32_t mask = bits == 32 ? ~0u : (1u << bits) - 1;
    auto cut = [&](uint32_t reg) { return uint32_t(toPattern(laneOf<int32_t>(warp, reg, i), to, step)) & mask; };
    uint32_t result = cut(step.a) << bits | cut(step.b);
    if (step.flags & Integral) // there is a c
      result |= laneOf<uint32_t>(warp, step.c, i) << (2 * bits);
    setLane(warp, step.d, i, result);
  }
}

//===----------------------------------------------------------------------===//
// Decoding
//===----------------------------------------------------------------------===//

template <typename From> Handler toIntegerHandler(Type to) {
  switch (to) {
  case Type::U8:
    return singleToInteger<From, uint8_t>;
  case Type::S8:
    return singleToInteger<From, int8_t>;
  case Type::U16:
    return singleToInteger<From, uint16_t>;
  case Type::S16:
    return singleToInteger<From, int16_t>;
  case Type::U32:
    return singleToInteger<From, uint32_t>;
  case Type::S32:
    return singleToInteger<From, int32_t>;
  case Type::U64:
    return singleToInteger<From, uint64_t>;
  case Type::S64:
    return singleToInteger<From, int64_t>;
  default:
    return nullptr;
  }
}

Handler fromIntegerHandler(Type from) {
  switch (from) {
  case Type::U8:
    return integerToSingle<uint8_t>;
  case Type::S8:
    return integerToSingle<int8_t>;
  case Type::U16:
    return integerToSingle<uint16_t>;
  case Type::S16:
    return integerToSingle<int16_t>;
  case Type::U32:
    return integerToSingle<uint32_t>;
  case Type::S32:
    return integerToSingle<int32_t>;
  case Type::U64:
    return integerToSingle<uint64_t>;
  case Type::S64:
    return integerToSingle<int64_t>;
  default:
    return nullptr;
  }
}

bool decodePackIntegers(Decoder &d) {
  if (!d.modifiers.take("sat"))
    return d.unsupported();
  Type to = d.modifiers.type(), from = d.modifiers.type(), third = d.modifiers.type();
  bool fits = from == Type::S32 && ((bitsOf(to) == 16 && third == Type::None) || (bitsOf(to) == 8 && third == Type::B32));
  if (!fits)
    return d.unsupported();
  if (!d.expectOperands(third == Type::None ? 3 : 4))
    return false;
  uint32_t a = d.read(1, from), b = d.read(2, from), c = third == Type::None ? 0 : d.read(3, third);
  Step &step = d.emit(packIntegers, d.write(size_t(0), Type::B32), a, b, c);
  step.number = int64_t(to);
  step.flags = third == Type::None ? 0 : Integral;
  return true;
}

bool decodeConvert(Decoder &d) {
  if (d.modifiers.take("pack"))
    return decodePackIntegers(d);
  std::string_view integral = d.modifiers.takeOneOf({"rni", "rzi", "rmi", "rpi"});
  std::string_view name = integral.empty() ? d.modifiers.takeOneOf({"rn", "rna", "rz", "rm", "rp"}, "rn") : integral.substr(0, 2);
  Rounding rounding = name == "rn"    ? Rounding::Even
                      : name == "rna" ? Rounding::Away
                      : name == "rz"  ? Rounding::Zero
                      : name == "rm"  ? Rounding::Down
                                      : Rounding::Up;
  bool flushed = d.modifiers.take("ftz"), saturates = d.modifiers.take("sat"), finite = d.modifiers.take("satfinite");
  bool clamps = d.modifiers.take("relu");
  Type to = d.modifiers.type(), from = d.modifiers.type();
  auto flags = uint16_t((flushed ? Flush : 0) | (saturates ? Saturate : 0) | (finite ? Finite : 0) | (clamps ? Relu : 0) |
                        unsigned(rounding) << RoundingShift | (integral.empty() ? 0 : Integral));
  int64_t types = int64_t(to) | int64_t(from) << 8;
  auto narrowPair = [](Type type) { return type == Type::E4M3x2 || type == Type::E5M2x2; };
  auto halfPair = [](Type type) { return type == Type::F16x2 || type == Type::BF16x2; };

  if ((narrowPair(to) && halfPair(from)) || (narrowPair(from) && to == Type::F16x2)) {
    if (!d.expectOperands(2))
      return false;
    uint32_t a = d.read(1, from);
    Step &step = d.emit(convertPairs, d.write(size_t(0), to), a);
    step.number = types, step.flags = flags;
    return true;
  }
  if ((narrowPair(to) || halfPair(to)) && from == Type::F32) {
    if (!d.expectOperands(3))
      return false;
    uint32_t a = d.read(1, from), b = d.read(2, from);
    Type single = to == Type::F16x2 ? Type::F16 : to == Type::BF16x2 ? Type::BF16 : to == Type::E4M3x2 ? Type::E4M3 : Type::E5M2;
    bool plain = rounding == Rounding::Even && !clamps && !finite && !saturates && halfPair(to);
    Handler handler = !plain ? packAny : single == Type::F16 ? packFloats<Half> : packFloats<Brain>;
    Step &step = d.emit(handler, d.write(size_t(0), to), a, b);
    step.number = int64_t(single) | int64_t(from) << 8, step.flags = flags;
    return true;
  }
  auto scalar = [](Type type) {
    return (type >= Type::U8 && type <= Type::S64) || type == Type::F16 || type == Type::BF16 || type == Type::F32 ||
           type == Type::F64;
  };
  if (!scalar(from) || !(scalar(to) || (to == Type::TF32 && from == Type::F32)))
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  bool fromFloat = isFloat(from), toFloat = isFloat(to);
  if (fromFloat && !toFloat && integral.empty())
    return d.fail("expected a rounding to an integer");
  if (!(fromFloat && toFloat) && (finite || clamps))
    return d.unsupported();
  uint32_t a = d.read(1, from), result = d.write(size_t(0), to);
  Handler handler = nullptr;
  bool nearest = rounding == Rounding::Even && integral.empty(), plain = nearest && !saturates && !clamps && !finite && !flushed;
  if (!fromFloat && !toFloat) {
    handler = saturates ? convertAny : widenHandler(bitsOf(from), bitsOf(to), isSigned(from));
  } else if (fromFloat && !toFloat) {
    handler = from == Type::F32   ? toIntegerHandler<float>(to)
              : from == Type::F64 ? toIntegerHandler<double>(to)
              : from == Type::F16 ? toIntegerHandler<Half>(to)
                                  : toIntegerHandler<Brain>(to);
  } else if (!fromFloat && to == Type::F32 && nearest && !saturates) {
    handler = fromIntegerHandler(from);
  } else if (plain) {
    handler = from == Type::F16 && to == Type::F32    ? convertFloat<Half, float>
              : from == Type::BF16 && to == Type::F32 ? convertFloat<Brain, float>
              : from == Type::F32 && to == Type::F16  ? convertFloat<float, Half>
              : from == Type::F32 && to == Type::BF16 ? convertFloat<float, Brain>
                                                      : nullptr;
  }
  Step &step = d.emit(handler ? handler : convertAny, result, a);
  step.number = types, step.flags = flags;
  return true;
}

} // namespace

void addConversionOpcodes(OpcodeTable &table) { table["cvt"] = decodeConvert; }

} // namespace aligned::emulator
