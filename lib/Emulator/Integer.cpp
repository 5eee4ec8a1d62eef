// Integers, predicates and moves.

#include "Decode.h"
#include "Lanes.h"

#include <algorithm>
#include <limits>
#include <type_traits>

namespace aligned::emulator {

namespace {

template <typename T> using Unsigned = std::make_unsigned_t<T>;
template <typename T> constexpr unsigned width = sizeof(T) * 8;

template <typename T> struct Twice;
template <> struct Twice<uint16_t> { using type = uint32_t; };
template <> struct Twice<uint32_t> { using type = uint64_t; };
template <> struct Twice<uint64_t> { using type = unsigned __int128; };
template <> struct Twice<int16_t> { using type = int32_t; };
template <> struct Twice<int32_t> { using type = int64_t; };
template <> struct Twice<int64_t> { using type = __int128; };

//===----------------------------------------------------------------------===//
// Operations on one lane
//===----------------------------------------------------------------------===//

struct Add {
  template <typename T> static T of(T a, T b) { return T(Unsigned<T>(a) + Unsigned<T>(b)); }
};
struct Subtract {
  template <typename T> static T of(T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }
};
struct Multiply {
  template <typename T> static T of(T a, T b) { return T(uint64_t(a) * uint64_t(b)); }
};
struct MultiplyHigh {
  template <typename T> static T of(T a, T b) { return T(typename Twice<T>::type(a) * b >> width<T>); }
};
struct Divide {
  template <typename T> static T of(T a, T b) {
    if (b == 0)
      return T(~T(0));
    if constexpr (std::is_signed_v<T>)
      if (b == -1)
        return T(0 - Unsigned<T>(a));
    return T(a / b);
  }
};
struct Remainder {
  template <typename T> static T of(T a, T b) {
    if (b == 0)
      return a;
    if constexpr (std::is_signed_v<T>)
      if (b == -1)
        return 0;
    return T(a % b);
  }
};
struct Minimum {
  template <typename T> static T of(T a, T b) { return a < b ? a : b; }
};
struct Maximum {
  template <typename T> static T of(T a, T b) { return a < b ? b : a; }
};
struct And {
  template <typename T> static T of(T a, T b) { return a & b; }
};
struct Or {
  template <typename T> static T of(T a, T b) { return a | b; }
};
struct Xor {
  template <typename T> static T of(T a, T b) { return a ^ b; }
};
struct AddSaturated {
  template <typename T> static T of(T a, T b) {
    T result;
    return __builtin_add_overflow(a, b, &result) ? (a < 0 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max())
                                                 : result;
  }
};
struct SubtractSaturated {
  template <typename T> static T of(T a, T b) {
    T result;
    return __builtin_sub_overflow(a, b, &result) ? (a < 0 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max())
                                                 : result;
  }
};
struct Negate {
  template <typename T> static T of(T a) { return T(0 - Unsigned<T>(a)); }
};
struct Absolute {
  template <typename T> static T of(T a) { return a < 0 ? Negate::of(a) : a; }
};
struct Not {
  template <typename T> static T of(T a) { return T(~a); }
};
struct LogicalNot {
  template <typename T> static T of(T a) { return T(a == 0); }
};
struct ReverseBits {
  template <typename T> static T of(T a) {
    T result = 0;
    for (unsigned i = 0; i < width<T>; ++i)
      result |= T(T(a >> i & 1) << (width<T> - 1 - i));
    return result;
  }
};

template <typename T, typename Operation> void unary(Warp &warp, const Step &step, Mask active) {
  map<T, T>(warp, step, active, [](T a) { return Operation::of(a); });
}
template <typename T, typename Operation> void binary(Warp &warp, const Step &step, Mask active) {
  map<T, T, T>(warp, step, active, [](T a, T b) { return Operation::of(a, b); });
}

template <typename Operation> Handler unaryHandler(Type type) {
  switch (type) {
  case Type::S16:
    return unary<int16_t, Operation>;
  case Type::S32:
    return unary<int32_t, Operation>;
  case Type::S64:
    return unary<int64_t, Operation>;
  case Type::U16:
  case Type::B16:
    return unary<uint16_t, Operation>;
  case Type::U32:
  case Type::B32:
    return unary<uint32_t, Operation>;
  case Type::U64:
  case Type::B64:
    return unary<uint64_t, Operation>;
  default:
    return nullptr;
  }
}
template <typename Operation> Handler binaryHandler(Type type) {
  switch (type) {
  case Type::S16:
    return binary<int16_t, Operation>;
  case Type::S32:
    return binary<int32_t, Operation>;
  case Type::S64:
    return binary<int64_t, Operation>;
  case Type::U16:
  case Type::B16:
    return binary<uint16_t, Operation>;
  case Type::U32:
  case Type::B32:
    return binary<uint32_t, Operation>;
  case Type::U64:
  case Type::B64:
    return binary<uint64_t, Operation>;
  default:
    return nullptr;
  }
}

/// Two numbers of 16 bits in a register.
template <typename T, typename Operation> void pairwise(Warp &warp, const Step &step, Mask active) {
  map<uint32_t, uint32_t, uint32_t>(warp, step, active, [](uint32_t a, uint32_t b) {
    auto low = Unsigned<T>(Operation::of(T(a), T(b))), high = Unsigned<T>(Operation::of(T(a >> 16), T(b >> 16)));
    return uint32_t(low) | uint32_t(high) << 16;
  });
}
template <typename Operation> Handler pairHandler(Type type) {
  return type == Type::S16x2 ? pairwise<int16_t, Operation> : type == Type::U16x2 ? pairwise<uint16_t, Operation> : nullptr;
}

template <typename T> void clampNegative(Warp &warp, const Step &step, Mask active) {
  map<T, T>(warp, step, active, [](T a) { return a < 0 ? T(0) : a; });
}

//===----------------------------------------------------------------------===//
// Decoding
//===----------------------------------------------------------------------===//

bool decodeBinary(Decoder &d, Handler handler, Type type) {
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type);
  d.emit(handler, d.write(size_t(0), type), a, b);
  return true;
}
bool decodeUnary(Decoder &d, Handler handler, Type type) {
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  uint32_t a = d.read(1, type);
  d.emit(handler, d.write(size_t(0), type), a);
  return true;
}

void addWithCarry(Warp &warp, const Step &step, Mask active) {
  bool takes = step.flags & 1, gives = step.flags & 2, subtracts = step.flags & 4, wide = step.flags & 8;
  Mask carry = takes ? predicate(warp, step.c) : 0, out = 0;
  for (unsigned i = 0; i < warpSize; ++i) {
    if (!(active >> i & 1))
      continue;
    using Sum = unsigned __int128;
    Sum a = wide ? laneOf<uint64_t>(warp, step.a, i) : laneOf<uint32_t>(warp, step.a, i);
    Sum b = wide ? laneOf<uint64_t>(warp, step.b, i) : laneOf<uint32_t>(warp, step.b, i);
    Sum sum = subtracts ? a - b - (carry >> i & 1) : a + b + (carry >> i & 1);
    out |= Mask(sum >> (wide ? 64 : 32) & 1) << i;
    if (wide)
      setLane(warp, step.d, i, uint64_t(sum));
    else
      setLane(warp, step.d, i, uint32_t(sum));
  }
  if (gives)
    setPredicate(warp, step.c, out, active);
}

bool decodeCarry(Decoder &d, uint16_t flags) {
  bool gives = d.modifiers.take("cc");
  Type type = d.modifiers.type();
  if (bitsOf(type) != 32 && bitsOf(type) != 64)
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), carry = d.carry();
  d.emit(addWithCarry, d.write(size_t(0), type), a, b, carry).flags =
      uint16_t(flags | (gives ? 2 : 0) | (bitsOf(type) == 64 ? 8 : 0));
  return true;
}

template <typename Operation, typename Saturated> bool decodeSum(Decoder &d) {
  if (d.modifiers.has("cc"))
    return decodeCarry(d, std::is_same_v<Operation, Subtract> ? 4 : 0);
  Type type = d.modifiers.type();
  if (isFloat(type))
    return decodeFloat(d, type);
  if (type == Type::S16x2 || type == Type::U16x2)
    return decodeBinary(d, pairHandler<Operation>(type), type);
  if (d.modifiers.take("sat"))
    return decodeBinary(d, type == Type::S32 ? binary<int32_t, Saturated> : nullptr, type);
  return decodeBinary(d, binaryHandler<Operation>(type), type);
}

template <typename T> void multiplyWide(Warp &warp, const Step &step, Mask active) {
  using Wide = typename Twice<T>::type;
  map<T, T, Wide>(warp, step, active, [](T a, T b) { return Wide(Wide(a) * b); });
}
template <typename T> void multiplyWideAdd(Warp &warp, const Step &step, Mask active) {
  using Wide = typename Twice<T>::type;
  map<T, T, Wide, Wide>(warp, step, active, [](T a, T b, Wide c) { return Add::of(Wide(Wide(a) * b), c); });
}
template <typename T, typename Operation> void multiplyAdd(Warp &warp, const Step &step, Mask active) {
  map<T, T, T, T>(warp, step, active, [](T a, T b, T c) { return Add::of(Operation::of(a, b), c); });
}
template <typename T> void multiply24(Warp &warp, const Step &step, Mask active) {
  bool high = step.flags;
  map<T, T, T>(warp, step, active, [=](T a, T b) {
    auto cut = [](T x) { return int64_t(std::is_signed_v<T> ? int32_t(uint32_t(x) << 8) >> 8 : int32_t(x & 0xffffff)); };
    return T((cut(a) * cut(b)) >> (high ? 16 : 0));
  });
}

Handler wideHandler(Type type, bool adds) {
  switch (type) {
  case Type::S16:
    return adds ? multiplyWideAdd<int16_t> : multiplyWide<int16_t>;
  case Type::U16:
    return adds ? multiplyWideAdd<uint16_t> : multiplyWide<uint16_t>;
  case Type::S32:
    return adds ? multiplyWideAdd<int32_t> : multiplyWide<int32_t>;
  case Type::U32:
    return adds ? multiplyWideAdd<uint32_t> : multiplyWide<uint32_t>;
  default:
    return nullptr;
  }
}
Type wideOf(Type type) { return Type(int(type) + 1); }

template <typename Operation> Handler multiplyAddHandler(Type type) {
  switch (type) {
  case Type::S16:
    return multiplyAdd<int16_t, Operation>;
  case Type::U16:
    return multiplyAdd<uint16_t, Operation>;
  case Type::S32:
    return multiplyAdd<int32_t, Operation>;
  case Type::U32:
    return multiplyAdd<uint32_t, Operation>;
  case Type::S64:
    return multiplyAdd<int64_t, Operation>;
  case Type::U64:
    return multiplyAdd<uint64_t, Operation>;
  default:
    return nullptr;
  }
}

bool decodeMultiply(Decoder &d) {
  bool wide = d.modifiers.take("wide"), high = d.modifiers.take("hi"), low = d.modifiers.take("lo");
  Type type = d.modifiers.type();
  if (isFloat(type))
    return decodeFloat(d, type);
  if (!wide && !high && !low)
    return d.unsupported();
  if (!wide)
    return decodeBinary(d, high ? (bitsOf(type) ? binaryHandler<MultiplyHigh>(type) : nullptr) : binaryHandler<Multiply>(type),
                        type);
  Handler handler = wideHandler(type, false);
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type);
  d.emit(handler, d.write(size_t(0), wideOf(type)), a, b);
  return true;
}

bool decodeMultiplyAdd(Decoder &d) {
  bool wide = d.modifiers.take("wide"), high = d.modifiers.take("hi"), low = d.modifiers.take("lo"),
       carry = d.modifiers.take("cc");
  bool takes = d.instruction().opcode == "madc";
  Type type = d.modifiers.type();
  if (isFloat(type))
    return decodeFloat(d, type);
  if (!d.expectOperands(4))
    return false;
  if (carry || takes) {
    if (wide || (bitsOf(type) != 32 && bitsOf(type) != 64))
      return d.unsupported();
    uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, type), product = d.temporary(), flag = d.carry();
    d.emit(high ? binaryHandler<MultiplyHigh>(type) : binaryHandler<Multiply>(type), product, a, b);
    d.emit(addWithCarry, d.write(size_t(0), type), product, c, flag).flags =
        uint16_t((takes ? 1 : 0) | (carry ? 2 : 0) | (bitsOf(type) == 64 ? 8 : 0));
    return true;
  }
  Handler handler = wide   ? wideHandler(type, true)
                    : high ? multiplyAddHandler<MultiplyHigh>(type)
                    : low  ? multiplyAddHandler<Multiply>(type)
                           : nullptr;
  if (!handler)
    return d.unsupported();
  Type sum = wide ? wideOf(type) : type;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, sum);
  d.emit(handler, d.write(size_t(0), sum), a, b, c);
  return true;
}

bool decodeMultiply24(Decoder &d) {
  bool adds = d.instruction().opcode == "mad24", high = d.modifiers.take("hi");
  d.modifiers.take("lo");
  Type type = d.modifiers.type();
  if (type != Type::U32 && type != Type::S32)
    return d.unsupported();
  if (!d.expectOperands(adds ? 4 : 3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = adds ? d.read(3, type) : 0;
  uint32_t result = d.write(size_t(0), type), product = adds ? d.temporary() : result;
  d.emit(type == Type::S32 ? multiply24<int32_t> : multiply24<uint32_t>, product, a, b).flags = high;
  if (adds)
    d.emit(binary<uint32_t, Add>, result, product, c);
  return true;
}

template <typename T> void sumOfDifferences(Warp &warp, const Step &step, Mask active) {
  map<T, T, Unsigned<T>, Unsigned<T>>(warp, step, active, [](T a, T b, Unsigned<T> c) {
    return Unsigned<T>(c + (a < b ? Unsigned<T>(b) - Unsigned<T>(a) : Unsigned<T>(a) - Unsigned<T>(b)));
  });
}
bool decodeSad(Decoder &d) {
  Type type = d.modifiers.type();
  Handler handler = type == Type::S16   ? sumOfDifferences<int16_t>
                    : type == Type::U16 ? sumOfDifferences<uint16_t>
                    : type == Type::S32 ? sumOfDifferences<int32_t>
                    : type == Type::U32 ? sumOfDifferences<uint32_t>
                    : type == Type::S64 ? sumOfDifferences<int64_t>
                    : type == Type::U64 ? sumOfDifferences<uint64_t>
                                        : nullptr;
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, type);
  d.emit(handler, d.write(size_t(0), type), a, b, c);
  return true;
}

bool decodeDivide(Decoder &d) {
  Type type = d.modifiers.type();
  if (isFloat(type))
    return decodeFloat(d, type);
  return decodeBinary(d, binaryHandler<Divide>(type), type);
}
bool decodeRemainder(Decoder &d) {
  Type type = d.modifiers.type();
  return decodeBinary(d, binaryHandler<Remainder>(type), type);
}

template <typename Operation> bool decodeExtremum(Decoder &d) {
  Type type = d.modifiers.type();
  if (isFloat(type))
    return decodeFloat(d, type);
  bool clamps = d.modifiers.take("relu");
  if (type == Type::S16x2 || type == Type::U16x2) {
    if (!decodeBinary(d, pairHandler<Operation>(type), type))
      return false;
    if (clamps) {
      Step &last = d.target().steps.back();
      uint32_t result = last.d;
      d.emit(pairHandler<Maximum>(Type::S16x2), result, result, d.constant(0, 4));
    }
    return !clamps || type == Type::S16x2 || d.unsupported();
  }
  if (!decodeBinary(d, binaryHandler<Operation>(type), type))
    return false;
  if (clamps) {
    if (type != Type::S32)
      return d.unsupported();
    uint32_t result = d.target().steps.back().d;
    d.emit(clampNegative<int32_t>, result, result);
  }
  return true;
}

template <typename Operation> bool decodeSign(Decoder &d) {
  Type type = d.modifiers.type();
  if (isFloat(type))
    return decodeFloat(d, type);
  return decodeUnary(d, isSigned(type) ? unaryHandler<Operation>(type) : nullptr, type);
}

//===----------------------------------------------------------------------===//
// Logic
//===----------------------------------------------------------------------===//

template <typename Operation> void predicates(Warp &warp, const Step &step, Mask active) {
  setPredicate(warp, step.d, Operation::of(predicate(warp, step.a), predicate(warp, step.b)), active);
}
void notPredicate(Warp &warp, const Step &step, Mask active) { setPredicate(warp, step.d, ~predicate(warp, step.a), active); }
void movePredicate(Warp &warp, const Step &step, Mask active) { setPredicate(warp, step.d, predicate(warp, step.a), active); }

template <typename Operation> bool decodeLogic(Decoder &d) {
  Type type = d.modifiers.type();
  if (type == Type::Predicate)
    return decodeBinary(d, predicates<Operation>, type);
  return decodeBinary(d, type >= Type::B16 && type <= Type::B64 ? binaryHandler<Operation>(type) : nullptr, type);
}
bool decodeNot(Decoder &d) {
  Type type = d.modifiers.type();
  if (type == Type::Predicate)
    return decodeUnary(d, notPredicate, type);
  return decodeUnary(d, type >= Type::B16 && type <= Type::B64 ? unaryHandler<Not>(type) : nullptr, type);
}
bool decodeLogicalNot(Decoder &d) {
  Type type = d.modifiers.type();
  return decodeUnary(d, unaryHandler<LogicalNot>(type), type);
}

template <typename T> void shiftLeft(Warp &warp, const Step &step, Mask active) {
  map<T, uint32_t, T>(warp, step, active, [](T a, uint32_t b) { return b < width<T> ? T(a << (b & (width<T> - 1))) : T(0); });
}
template <typename T> void shiftRight(Warp &warp, const Step &step, Mask active) {
  map<T, uint32_t, T>(warp, step, active, [](T a, uint32_t b) { return T(a >> std::min(b, width<T> - 1) >> (b >= width<T>)); });
}
bool decodeShift(Decoder &d) {
  bool left = d.instruction().opcode == "shl";
  Type type = d.modifiers.type();
  Handler handler = nullptr;
  switch (type) {
  case Type::S16:
    handler = left ? nullptr : shiftRight<int16_t>;
    break;
  case Type::S32:
    handler = left ? nullptr : shiftRight<int32_t>;
    break;
  case Type::S64:
    handler = left ? nullptr : shiftRight<int64_t>;
    break;
  case Type::U16:
  case Type::B16:
    handler = left ? shiftLeft<uint16_t> : shiftRight<uint16_t>;
    break;
  case Type::U32:
  case Type::B32:
    handler = left ? shiftLeft<uint32_t> : shiftRight<uint32_t>;
    break;
  case Type::U64:
  case Type::B64:
    handler = left ? shiftLeft<uint64_t> : shiftRight<uint64_t>;
    break;
  default:
    break;
  }
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, Type::U32);
  d.emit(handler, d.write(size_t(0), type), a, b);
  return true;
}

/// Shifts of the 64 bits b:a.
void funnelShift(Warp &warp, const Step &step, Mask active) {
  bool left = step.flags & 1, wraps = step.flags & 2;
  map<uint32_t, uint32_t, uint32_t, uint32_t>(warp, step, active, [=](uint32_t a, uint32_t b, uint32_t c) {
    uint64_t both = uint64_t(b) << 32 | a;
    unsigned n = wraps ? c & 31 : std::min(c, 32u);
    return uint32_t(left ? both << n >> 32 : both >> n);
  });
}
bool decodeFunnelShift(Decoder &d) {
  std::string_view side = d.modifiers.takeOneOf({"l", "r"}), mode = d.modifiers.takeOneOf({"wrap", "clamp"});
  Type type = d.modifiers.type();
  if (side.empty() || mode.empty() || type != Type::B32)
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, Type::U32);
  d.emit(funnelShift, d.write(size_t(0), type), a, b, c).flags = uint16_t((side == "l" ? 1 : 0) | (mode == "wrap" ? 2 : 0));
  return true;
}

template <typename T> void countOnes(Warp &warp, const Step &step, Mask active) {
  map<T, uint32_t>(warp, step, active, [](T a) { return uint32_t(__builtin_popcountll(a)); });
}
template <typename T> void countZeros(Warp &warp, const Step &step, Mask active) {
  map<T, uint32_t>(warp, step, active, [](T a) { return a ? uint32_t(__builtin_clzll(a)) - (64 - width<T>) : width<T>; });
}
bool decodeCount(Decoder &d) {
  bool ones = d.instruction().opcode == "popc";
  Type type = d.modifiers.type();
  Handler handler = type == Type::B32   ? (ones ? countOnes<uint32_t> : countZeros<uint32_t>)
                    : type == Type::B64 ? (ones ? countOnes<uint64_t> : countZeros<uint64_t>)
                                        : nullptr;
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  uint32_t a = d.read(1, type);
  d.emit(handler, d.write(size_t(0), Type::U32), a);
  return true;
}

template <typename T> void findLeading(Warp &warp, const Step &step, Mask active) {
  bool shift = step.flags;
  map<T, uint32_t>(warp, step, active, [=](T value) {
    auto a = Unsigned<T>(std::is_signed_v<T> && value < 0 ? ~value : value);
    if (!a)
      return ~0u;
    uint32_t position = 63 - uint32_t(__builtin_clzll(a));
    return shift ? width<T> - 1 - position : position;
  });
}
bool decodeFind(Decoder &d) {
  bool shift = d.modifiers.take("shiftamt");
  Type type = d.modifiers.type();
  Handler handler = type == Type::U32   ? findLeading<uint32_t>
                    : type == Type::S32 ? findLeading<int32_t>
                    : type == Type::U64 ? findLeading<uint64_t>
                    : type == Type::S64 ? findLeading<int64_t>
                                        : nullptr;
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  uint32_t a = d.read(1, type);
  d.emit(handler, d.write(size_t(0), Type::U32), a).flags = shift;
  return true;
}

bool decodeReverse(Decoder &d) {
  Type type = d.modifiers.type();
  return decodeUnary(d, type == Type::B32 || type == Type::B64 ? unaryHandler<ReverseBits>(type) : nullptr, type);
}

template <typename T> void extractField(Warp &warp, const Step &step, Mask active) {
  map<T, uint32_t, uint32_t, T>(warp, step, active, [](T a, uint32_t b, uint32_t c) {
    unsigned position = b & 255, length = c & 255, last = width<T> - 1;
    bool sign = false;
    if (std::is_signed_v<T> && length)
      sign = Unsigned<T>(a) >> std::min(position + length - 1, last) & 1;
    Unsigned<T> shifted = position > last ? 0 : Unsigned<T>(a) >> position;
    unsigned valid = position > last ? 0 : std::min(length, width<T> - position);
    Unsigned<T> mask = valid > last ? ~Unsigned<T>(0) : (Unsigned<T>(1) << valid) - 1;
    return T((shifted & mask) | (sign ? ~mask : 0));
  });
}
bool decodeExtract(Decoder &d) {
  Type type = d.modifiers.type();
  Handler handler = type == Type::U32   ? extractField<uint32_t>
                    : type == Type::S32 ? extractField<int32_t>
                    : type == Type::U64 ? extractField<uint64_t>
                    : type == Type::S64 ? extractField<int64_t>
                                        : nullptr;
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, Type::U32), c = d.read(3, Type::U32);
  d.emit(handler, d.write(size_t(0), type), a, b, c);
  return true;
}

template <typename T> void insertField(Warp &warp, const Step &step, Mask active) {
  T result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i) {
    T a = laneOf<T>(warp, step.a, i), b = laneOf<T>(warp, step.b, i);
    unsigned position = laneOf<uint32_t>(warp, step.c, i) & 255, length = laneOf<uint32_t>(warp, step.e, i) & 255;
    T mask = length >= width<T> ? ~T(0) : T((T(1) << length) - 1);
    mask = position >= width<T> ? 0 : T(mask << position);
    T moved = position >= width<T> ? 0 : T(a << position);
    result[i] = T((moved & mask) | (b & ~mask));
  }
  put(warp, step.d, result, active);
}
bool decodeInsert(Decoder &d) {
  Type type = d.modifiers.type();
  Handler handler = type == Type::B32 ? insertField<uint32_t> : type == Type::B64 ? insertField<uint64_t> : nullptr;
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(5))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, Type::U32), e = d.read(4, Type::U32);
  d.emit(handler, d.write(size_t(0), type), a, b, c).e = e;
  return true;
}

/// The mask of `number` bits from `position`.
void bitMask(Warp &warp, const Step &step, Mask active) {
  bool wraps = step.flags;
  map<uint32_t, uint32_t, uint32_t>(warp, step, active, [=](uint32_t a, uint32_t b) {
    a = wraps ? a & 31 : std::min(a, 32u), b = wraps ? b & 31 : std::min(b, 32u);
    return uint32_t(((uint64_t(1) << b) - 1) << a);
  });
}
bool decodeBitMask(Decoder &d) {
  std::string_view mode = d.modifiers.takeOneOf({"clamp", "wrap"});
  Type type = d.modifiers.type();
  if (!decodeBinary(d, type == Type::B32 && !mode.empty() ? bitMask : nullptr, type))
    return false;
  d.target().steps.back().flags = mode == "wrap";
  return true;
}

enum PermuteMode : uint16_t { Default, Forward4, Backward4, Replicate8, EdgeLeft, EdgeRight, Replicate16 };

void permute(Warp &warp, const Step &step, Mask active) {
  map<uint32_t, uint32_t, uint32_t, uint32_t>(warp, step, active, [](uint32_t a, uint32_t b, uint32_t c) {
    uint64_t both = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (unsigned i = 0; i < 4; ++i) {
      uint32_t selector = c >> (4 * i) & 15, byte = uint32_t(both >> (8 * (selector & 7))) & 255;
      if (selector & 8)
        byte = byte & 128 ? 255 : 0;
      result |= byte << (8 * i);
    }
    return result;
  });
}
/// The selector is the same for all lanes and takes no signs: two table-free shifts a byte.
void permuteFixed(Warp &warp, const Step &step, Mask active) {
  unsigned s0 = step.number & 7, s1 = step.number >> 4 & 7, s2 = step.number >> 8 & 7, s3 = step.number >> 12 & 7;
  map<uint32_t, uint32_t, uint32_t>(warp, step, active, [=](uint32_t a, uint32_t b) {
    uint32_t byte0 = (s0 < 4 ? a : b) >> (8 * (s0 & 3)) & 255, byte1 = (s1 < 4 ? a : b) >> (8 * (s1 & 3)) & 255;
    uint32_t byte2 = (s2 < 4 ? a : b) >> (8 * (s2 & 3)) & 255, byte3 = (s3 < 4 ? a : b) >> (8 * (s3 & 3)) & 255;
    return byte0 | byte1 << 8 | byte2 << 16 | byte3 << 24;
  });
}
void permuteByMode(Warp &warp, const Step &step, Mask active) {
  uint16_t mode = step.flags;
  map<uint32_t, uint32_t, uint32_t, uint32_t>(warp, step, active, [=](uint32_t a, uint32_t b, uint32_t c) {
    uint64_t both = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    unsigned n = c & 3;
    for (unsigned i = 0; i < 4; ++i) {
      unsigned from = mode == Forward4     ? n + i
                      : mode == Backward4  ? (n + 8 - i) & 7
                      : mode == Replicate8 ? n
                      : mode == EdgeLeft   ? std::max(n, i)
                      : mode == EdgeRight  ? std::min(n, i)
                                           : (n & 1) * 2 + (i & 1);
      result |= uint32_t(both >> (8 * from) & 255) << (8 * i);
    }
    return result;
  });
}
bool decodePermute(Decoder &d) {
  Type type = d.modifiers.type();
  static const std::pair<const char *, PermuteMode> modes[] = {{"f4e", Forward4}, {"b4e", Backward4}, {"rc8", Replicate8},
                                                               {"ecl", EdgeLeft}, {"ecr", EdgeRight}, {"rc16", Replicate16}};
  PermuteMode mode = Default;
  for (auto [name, value] : modes)
    if (d.modifiers.take(name))
      mode = value;
  if (type != Type::B32)
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, type), result = d.write(size_t(0), type);
  const Operand &selector = d.operands()[3];
  if (mode == Default && selector.kind == Operand::Integer && !(selector.value & 0x8888))
    d.emit(permuteFixed, result, a, b).number = int64_t(selector.value);
  else
    d.emit(mode == Default ? permute : permuteByMode, result, a, b, c).flags = mode;
  return true;
}

void logic3(Warp &warp, const Step &step, Mask active) {
  // The sum of the minterms, in two levels: what is chosen where a is set and where it is not.
  auto table = uint32_t(step.number);
  uint32_t m[8];
  for (unsigned i = 0; i < 8; ++i)
    m[i] = table >> i & 1 ? ~0u : 0;
  map<uint32_t, uint32_t, uint32_t, uint32_t>(warp, step, active, [=](uint32_t a, uint32_t b, uint32_t c) {
    uint32_t without = (~b & ((~c & m[0]) | (c & m[1]))) | (b & ((~c & m[2]) | (c & m[3])));
    uint32_t with = (~b & ((~c & m[4]) | (c & m[5]))) | (b & ((~c & m[6]) | (c & m[7])));
    return (~a & without) | (a & with);
  });
}
bool decodeLogic3(Decoder &d) {
  Type type = d.modifiers.type();
  int64_t table;
  if (type != Type::B32)
    return d.unsupported();
  if (!d.expectOperands(5) || !d.immediate(d.operands()[4], table))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, type);
  d.emit(logic3, d.write(size_t(0), type), a, b, c).number = table & 255;
  return true;
}

//===----------------------------------------------------------------------===//
// Dot products
//===----------------------------------------------------------------------===//

template <typename A, typename B> void dot4(Warp &warp, const Step &step, Mask active) {
  map<uint32_t, uint32_t, uint32_t, uint32_t>(warp, step, active, [](uint32_t a, uint32_t b, uint32_t c) {
    for (unsigned i = 0; i < 32; i += 8)
      c += uint32_t(int32_t(A(a >> i)) * int32_t(B(b >> i)));
    return c;
  });
}
template <typename A, typename B> void dot2(Warp &warp, const Step &step, Mask active) {
  bool high = step.flags;
  map<uint32_t, uint32_t, uint32_t, uint32_t>(warp, step, active, [=](uint32_t a, uint32_t b, uint32_t c) {
    b = high ? b >> 16 : b;
    using Wide = std::conditional_t<std::is_signed_v<A>, int16_t, uint16_t>;
    for (unsigned i = 0; i < 2; ++i)
      c += uint32_t(int32_t(Wide(a >> (16 * i))) * int32_t(B(b >> (8 * i))));
    return c;
  });
}
bool decodeDot(Decoder &d) {
  bool four = d.instruction().opcode == "dp4a", high = false;
  if (!four) {
    std::string_view half = d.modifiers.takeOneOf({"lo", "hi"});
    if (half.empty())
      return d.unsupported();
    high = half == "hi";
  }
  Type typeA = d.modifiers.type(), typeB = d.modifiers.type();
  if (bitsOf(typeA) != 32 || bitsOf(typeB) != 32)
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  bool a = isSigned(typeA), b = isSigned(typeB);
  Handler handler =
      four ? (a ? (b ? dot4<int8_t, int8_t> : dot4<int8_t, uint8_t>) : (b ? dot4<uint8_t, int8_t> : dot4<uint8_t, uint8_t>))
           : (a ? (b ? dot2<int8_t, int8_t> : dot2<int8_t, uint8_t>) : (b ? dot2<uint8_t, int8_t> : dot2<uint8_t, uint8_t>));
  uint32_t x = d.read(1, Type::B32), y = d.read(2, Type::B32), z = d.read(3, Type::B32);
  d.emit(handler, d.write(size_t(0), Type::B32), x, y, z).flags = high;
  return true;
}

//===----------------------------------------------------------------------===//
// Moves and choices
//===----------------------------------------------------------------------===//

template <typename T> void copy(Warp &warp, const Step &step, Mask active) {
  map<T, T>(warp, step, active, [](T a) { return a; });
}
Handler copyHandler(unsigned bits) {
  return bits == 8 ? copy<uint8_t> : bits == 16 ? copy<uint16_t> : bits == 32 ? copy<uint32_t> : copy<uint64_t>;
}

/// `count` registers of `flags` bits side by side in one.
void pack(Warp &warp, const Step &step, Mask active) {
  const uint32_t *list = warp.launch->kernel->lists.data() + step.list;
  unsigned bytes = step.flags / 8, whole = bytes * step.count;
  uint8_t result[warpSize * 8];
  for (unsigned e = 0; e < step.count; ++e)
    for (unsigned i = 0; i < warpSize; ++i)
      std::memcpy(result + i * whole + e * bytes, warp.file + list[e] + i * bytes, bytes);
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1)
      std::memcpy(warp.file + step.d + i * whole, result + i * whole, whole);
}
void unpack(Warp &warp, const Step &step, Mask active) {
  const uint32_t *list = warp.launch->kernel->lists.data() + step.list;
  unsigned bytes = step.flags / 8, whole = bytes * step.count;
  uint8_t source[warpSize * 8];
  std::memcpy(source, warp.file + step.a, warpSize * whole);
  for (unsigned e = 0; e < step.count; ++e)
    for (unsigned i = 0; i < warpSize; ++i)
      if (active >> i & 1)
        std::memcpy(warp.file + list[e] + i * bytes, source + i * whole + e * bytes, bytes);
}
template <typename Part, typename Whole> void pack2(Warp &warp, const Step &step, Mask active) {
  map<Part, Part, Whole>(warp, step, active, [](Part a, Part b) { return Whole(Whole(a) | Whole(b) << width<Part>); });
}
template <typename Part, typename Whole> void unpack2(Warp &warp, const Step &step, Mask active) {
  const uint8_t *a = warp.file + step.a;
  Part low[warpSize], high[warpSize];
  for (unsigned i = 0; i < warpSize; ++i) {
    auto whole = laneOf<Whole>(a, i);
    low[i] = Part(whole), high[i] = Part(whole >> width<Part>);
  }
  put(warp, step.d, low, active);
  put(warp, step.e, high, active);
}

bool decodeMove(Decoder &d) {
  Type type = d.modifiers.type();
  if (type == Type::None)
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  if (type == Type::Predicate)
    return decodeUnary(d, movePredicate, type);
  const Operand &to = d.operands()[0], &from = d.operands()[1];
  if (to.kind == Operand::Vector || from.kind == Operand::Vector) {
    bool packs = from.kind == Operand::Vector;
    auto parts = unsigned(packs ? from.elements.size() : to.elements.size());
    unsigned bits = bitsOf(type);
    if ((parts != 2 && parts != 4) || (packs && to.kind == Operand::Vector) || bits > 64 || bits / parts < 8)
      return d.unsupported();
    Type part = bits / parts == 8 ? Type::B8 : bits / parts == 16 ? Type::B16 : Type::B32;
    if (packs) {
      std::vector<uint32_t> registers = d.readAll(from, part);
      uint32_t result = d.write(to, type);
      if (parts == 2 && part != Type::B8) {
        d.emit(part == Type::B16 ? pack2<uint16_t, uint32_t> : pack2<uint32_t, uint64_t>, result, registers[0], registers[1]);
        return true;
      }
      uint32_t list = d.list(registers);
      Step &step = d.emit(pack, result);
      step.list = list, step.count = uint16_t(parts), step.flags = uint16_t(bits / parts);
    } else {
      uint32_t source = d.read(from, type);
      std::vector<uint32_t> registers = d.writeAll(to, part);
      if (parts == 2 && part != Type::B8) {
        d.emit(part == Type::B16 ? unpack2<uint16_t, uint32_t> : unpack2<uint32_t, uint64_t>, registers[0], source).e =
            registers[1];
        return true;
      }
      uint32_t list = d.list(registers);
      Step &step = d.emit(unpack, 0, source);
      step.list = list, step.count = uint16_t(parts), step.flags = uint16_t(bits / parts);
    }
    return true;
  }
  return decodeUnary(d, bitsOf(type) <= 64 ? copyHandler(bitsOf(type)) : nullptr, type);
}

template <typename T> void select(Warp &warp, const Step &step, Mask active) {
  const uint8_t *a = warp.file + step.a, *b = warp.file + step.b;
  Mask chosen = predicate(warp, step.c);
  T result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = (chosen >> i & 1) ? laneOf<T>(a, i) : laneOf<T>(b, i);
  put(warp, step.d, result, active);
}
Handler selectHandler(Type type) {
  switch (bitsOf(type)) {
  case 16:
    return select<uint16_t>;
  case 32:
    return select<uint32_t>;
  case 64:
    return select<uint64_t>;
  default:
    return nullptr;
  }
}
bool decodeSelect(Decoder &d) {
  Type type = d.modifiers.type();
  Handler handler = selectHandler(type);
  if (!handler)
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, Type::Predicate);
  d.emit(handler, d.write(size_t(0), type), a, b, c);
  return true;
}

void notNegative(Warp &warp, const Step &step, Mask active) {
  Mask result = step.flags ? lanesWhere<float, float>(warp, step.a, step.a, [](float a, float) { return a >= 0; })
                           : lanesWhere<int32_t, int32_t>(warp, step.a, step.a, [](int32_t a, int32_t) { return a >= 0; });
  setPredicate(warp, step.d, result, active);
}
bool decodeSelectBySign(Decoder &d) {
  d.modifiers.take("ftz");
  Type type = d.modifiers.type(), by = d.modifiers.type();
  Handler handler = selectHandler(type);
  if (!handler || (by != Type::S32 && by != Type::F32))
    return d.unsupported();
  if (!d.expectOperands(4))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, by), chosen = d.temporary();
  d.emit(notNegative, chosen, c).flags = by == Type::F32;
  d.emit(handler, d.write(size_t(0), type), a, b, chosen);
  return true;
}

//===----------------------------------------------------------------------===//
// Comparisons
//===----------------------------------------------------------------------===//

template <typename T> Comparison integerComparison(std::string_view name) {
  if (name == "eq")
    return [](const Warp &w, uint32_t a, uint32_t b) { return lanesWhere<T, T>(w, a, b, [](T x, T y) { return x == y; }); };
  if (name == "ne")
    return [](const Warp &w, uint32_t a, uint32_t b) { return lanesWhere<T, T>(w, a, b, [](T x, T y) { return x != y; }); };
  if (name == "lt" || name == "lo")
    return [](const Warp &w, uint32_t a, uint32_t b) { return lanesWhere<T, T>(w, a, b, [](T x, T y) { return x < y; }); };
  if (name == "le" || name == "ls")
    return [](const Warp &w, uint32_t a, uint32_t b) { return lanesWhere<T, T>(w, a, b, [](T x, T y) { return x <= y; }); };
  if (name == "gt" || name == "hi")
    return [](const Warp &w, uint32_t a, uint32_t b) { return lanesWhere<T, T>(w, a, b, [](T x, T y) { return x > y; }); };
  if (name == "ge" || name == "hs")
    return [](const Warp &w, uint32_t a, uint32_t b) { return lanesWhere<T, T>(w, a, b, [](T x, T y) { return x >= y; }); };
  return nullptr;
}

Comparison anyComparison(std::string_view name, Type type, bool flushed) {
  switch (type) {
  case Type::B16:
  case Type::U16:
    return integerComparison<uint16_t>(name);
  case Type::B32:
  case Type::U32:
    return integerComparison<uint32_t>(name);
  case Type::B64:
  case Type::U64:
    return integerComparison<uint64_t>(name);
  case Type::S16:
    return integerComparison<int16_t>(name);
  case Type::S32:
    return integerComparison<int32_t>(name);
  case Type::S64:
    return integerComparison<int64_t>(name);
  default:
    return isFloat(type) ? comparison(name, type, flushed) : nullptr;
  }
}

enum Joining : uint16_t { Plain = 0, JoinAnd = 1, JoinOr = 2, JoinXor = 3, JoinMask = 3, HasSecond = 4 };

Mask join(Mask a, Mask b, uint16_t how) {
  switch (how & JoinMask) {
  case JoinAnd:
    return a & b;
  case JoinOr:
    return a | b;
  case JoinXor:
    return a ^ b;
  default:
    return a;
  }
}

/// Two predicates: the comparison, and its opposite where a second is asked for.
void compare(Warp &warp, const Step &step, Mask active) {
  auto test = reinterpret_cast<Comparison>(step.number);
  Mask result = test(warp, step.a, step.b), other = step.flags & JoinMask ? predicate(warp, step.c) : 0;
  setPredicate(warp, step.d, join(result, other, step.flags), active);
  if (step.flags & HasSecond)
    setPredicate(warp, step.e, join(~result, other, step.flags), active);
}

/// One predicate for each half of the operands.
void compareHalves(Warp &warp, const Step &step, Mask active) {
  const uint32_t *tests = warp.launch->kernel->lists.data() + step.list;
  Mask other = step.flags & JoinMask ? predicate(warp, step.c) : 0;
  auto low = reinterpret_cast<Comparison>(uint64_t(tests[0]) | uint64_t(tests[1]) << 32);
  auto high = reinterpret_cast<Comparison>(uint64_t(tests[2]) | uint64_t(tests[3]) << 32);
  Mask lowResult = low(warp, step.a, step.b), highResult = high(warp, step.a, step.b);
  setPredicate(warp, step.d, join(lowResult, other, step.flags), active);
  if (step.flags & HasSecond)
    setPredicate(warp, step.e, join(highResult, other, step.flags), active);
}

/// All ones, or one, where the predicate holds.
template <typename T> void fromPredicate(Warp &warp, const Step &step, Mask active) {
  Mask chosen = predicate(warp, step.a);
  T result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = (chosen >> i & 1) ? T(step.number) : T(0);
  put(warp, step.d, result, active);
}
void fromPredicates(Warp &warp, const Step &step, Mask active) {
  Mask low = predicate(warp, step.a), high = predicate(warp, step.b);
  uint32_t result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = ((low >> i & 1) ? uint32_t(step.number) : 0) | ((high >> i & 1) ? uint32_t(step.number) << 16 : 0);
  put(warp, step.d, result, active);
}

bool decodeCompare(Decoder &d) {
  bool sets = d.instruction().opcode == "set";
  std::string_view name = d.modifiers.next();
  std::string_view boolean = d.modifiers.takeOneOf({"and", "or", "xor"});
  auto how = uint16_t(boolean == "and" ? JoinAnd : boolean == "or" ? JoinOr : boolean == "xor" ? JoinXor : Plain);
  bool flushed = d.modifiers.take("ftz");
  Type to = sets ? d.modifiers.type() : Type::Predicate, type = d.modifiers.type();
  bool halves = type == Type::F16x2 || type == Type::BF16x2;
  Comparison low = anyComparison(name, type, flushed);
  Comparison high = halves ? comparison(std::string(name) + "^", type, flushed) : low;
  if (!low || !high)
    return d.unsupported();
  if (!d.expectOperands(how ? 4 : 3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type), c = how ? d.read(3, Type::Predicate) : 0;
  uint32_t first, second = 0;
  bool hasSecond = false;
  if (sets) {
    first = d.temporary();
    if (halves)
      second = d.temporary(), hasSecond = true;
  } else {
    const Operand &target = d.operands()[0];
    hasSecond = target.kind == Operand::Pair;
    first = d.write(hasSecond ? target.elements[0] : target, Type::Predicate);
    if (hasSecond)
      second = d.write(target.elements[1], Type::Predicate);
  }
  if (hasSecond)
    how |= HasSecond;
  if (halves) {
    auto bits = [](Comparison f) { return reinterpret_cast<uint64_t>(f); };
    uint32_t list = d.list({uint32_t(bits(low)), uint32_t(bits(low) >> 32), uint32_t(bits(high)), uint32_t(bits(high) >> 32)});
    Step &step = d.emit(compareHalves, first, a, b, c);
    step.e = second, step.flags = how, step.list = list;
  } else {
    Step &step = d.emit(compare, first, a, b, c);
    step.e = second, step.flags = how, step.number = reinterpret_cast<intptr_t>(low);
  }
  if (!sets)
    return true;
  if (halves) {
    int64_t one = to == Type::F16x2 ? 0x3c00 : to == Type::BF16x2 ? 0x3f80 : 0xffff;
    if (bitsOf(to) != 32)
      return d.unsupported();
    d.emit(fromPredicates, d.write(size_t(0), to), first, second).number = one;
    return true;
  }
  if (to == Type::F16 || to == Type::BF16 || to == Type::U16)
    d.emit(fromPredicate<uint16_t>, d.write(size_t(0), to), first).number = to == Type::F16    ? 0x3c00
                                                                            : to == Type::BF16 ? 0x3f80
                                                                                               : 0xffff;
  else if (bitsOf(to) == 32)
    d.emit(fromPredicate<uint32_t>, d.write(size_t(0), to), first).number = to == Type::F32 ? 0x3f800000 : 0xffffffff;
  else
    return d.unsupported();
  return true;
}

} // namespace

void addIntegerOpcodes(OpcodeTable &table) {
  table["add"] = decodeSum<Add, AddSaturated>;
  table["sub"] = decodeSum<Subtract, SubtractSaturated>;
  table["addc"] = [](Decoder &d) { return decodeCarry(d, 1); };
  table["subc"] = [](Decoder &d) { return decodeCarry(d, 1 | 4); };
  table["mul"] = decodeMultiply;
  table["mad"] = table["madc"] = decodeMultiplyAdd;
  table["mul24"] = table["mad24"] = decodeMultiply24;
  table["sad"] = decodeSad;
  table["div"] = decodeDivide;
  table["rem"] = decodeRemainder;
  table["min"] = decodeExtremum<Minimum>;
  table["max"] = decodeExtremum<Maximum>;
  table["abs"] = decodeSign<Absolute>;
  table["neg"] = decodeSign<Negate>;
  table["and"] = decodeLogic<And>;
  table["or"] = decodeLogic<Or>;
  table["xor"] = decodeLogic<Xor>;
  table["not"] = decodeNot;
  table["cnot"] = decodeLogicalNot;
  table["shl"] = table["shr"] = decodeShift;
  table["shf"] = decodeFunnelShift;
  table["popc"] = table["clz"] = decodeCount;
  table["bfind"] = decodeFind;
  table["brev"] = decodeReverse;
  table["bfe"] = decodeExtract;
  table["bfi"] = decodeInsert;
  table["bmsk"] = decodeBitMask;
  table["prmt"] = decodePermute;
  table["lop3"] = decodeLogic3;
  table["dp4a"] = table["dp2a"] = decodeDot;
  table["mov"] = decodeMove;
  table["selp"] = decodeSelect;
  table["slct"] = decodeSelectBySign;
  table["setp"] = table["set"] = decodeCompare;
}

} // namespace aligned::emulator
