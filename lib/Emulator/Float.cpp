// Floating point: f32, f64, f16, bf16 and pairs of the narrow ones. Every operation is correctly rounded, also the approximate
// ones of the hardware, whose error bounds this is within.

#include "Decode.h"
#include "Lanes.h"
#include "Numbers.h"

namespace aligned::emulator {

namespace {

enum Flags : uint16_t { Flush = 1, Saturate = 2, Relu = 4, RoundingShift = 4 };

Rounding roundingOf(const Step &step) { return Rounding(step.flags >> RoundingShift & 7); }

template <typename T> bool isNan(T x) { return x != x; }

//===----------------------------------------------------------------------===//
// Operations on floats and doubles
//===----------------------------------------------------------------------===//

struct Add {
  template <typename T> static T of(T a, T b) { return canonical(a + b); }
  static double odd(double a, double b, Rounding rounding) { return addToOdd(a, b, rounding); }
};
struct Subtract {
  template <typename T> static T of(T a, T b) { return canonical(a - b); }
  static double odd(double a, double b, Rounding rounding) { return addToOdd(a, -b, rounding); }
};
struct Multiply {
  template <typename T> static T of(T a, T b) { return canonical(a * b); }
  static double odd(double a, double b, Rounding) { return a * b; }
};
struct Divide {
  template <typename T> static T of(T a, T b) { return canonical(a / b); }
  static double odd(double a, double b, Rounding) { return quotientToOdd(a, b); }
};
/// One NaN gives the other operand, and -0 is less than 0.
struct Minimum {
  template <typename T> static T of(T a, T b) {
    bool first = isNan(b) || a < b || (a == b && std::signbit(a));
    return canonical(isNan(a) ? b : first ? a : b);
  }
};
struct Maximum {
  template <typename T> static T of(T a, T b) {
    bool first = isNan(b) || a > b || (a == b && !std::signbit(a));
    return canonical(isNan(a) ? b : first ? a : b);
  }
};
struct MinimumNan {
  template <typename T> static T of(T a, T b) { return isNan(a) || isNan(b) ? canonical(a + b) : Minimum::of(a, b); }
};
struct MaximumNan {
  template <typename T> static T of(T a, T b) { return isNan(a) || isNan(b) ? canonical(a + b) : Maximum::of(a, b); }
};
struct Reciprocal {
  template <typename T> static T of(T a) { return canonical(T(1) / a); }
  static double odd(double a) { return quotientToOdd(1, a); }
};
struct Root {
  template <typename T> static T of(T a) { return canonical(std::sqrt(a)); }
  static double odd(double a) { return rootToOdd(a); }
};
struct ReciprocalRoot {
  static float of(float a) { return canonical(float(1 / std::sqrt(double(a)))); }
  static double of(double a) { return 1 / std::sqrt(a); }
};
struct Exponential {
  static float of(float a) { return canonical(float(std::exp2(double(a)))); }
};
struct Logarithm {
  static float of(float a) { return canonical(float(std::log2(double(a)))); }
};
struct Sine {
  static float of(float a) { return canonical(float(std::sin(double(a)))); }
};
struct Cosine {
  static float of(float a) { return canonical(float(std::cos(double(a)))); }
};
struct HyperbolicTangent {
  static float of(float a) { return canonical(float(std::tanh(double(a)))); }
};
struct Negate {
  template <typename T> static T of(T a) { return -a; }
};
struct Absolute {
  template <typename T> static T of(T a) { return std::fabs(a); }
};

//===----------------------------------------------------------------------===//
// Loops
//===----------------------------------------------------------------------===//

template <bool flushed> float flushIf(float x) { return flushed ? flush(x) : x; }

template <typename T> T saturate(T x) { return x > T(0) ? (x < T(1) ? x : T(1)) : T(0); } // a NaN becomes zero

float rounded(double odd, Rounding rounding) { return canonical(toFloat(odd, rounding)); }

template <typename Operation, bool flushed> void unarySingle(Warp &warp, const Step &step, Mask active) {
  map<float, float>(warp, step, active, [](float a) { return flushIf<flushed>(Operation::of(flushIf<flushed>(a))); });
}
template <typename Operation, bool flushed> void binarySingle(Warp &warp, const Step &step, Mask active) {
  map<float, float, float>(warp, step, active, [](float a, float b) {
    return flushIf<flushed>(Operation::of(flushIf<flushed>(a), flushIf<flushed>(b)));
  });
}
template <bool flushed> void fuseSingle(Warp &warp, const Step &step, Mask active) {
  map<float, float, float, float>(warp, step, active, [](float a, float b, float c) {
    return flushIf<flushed>(canonical(fused(flushIf<flushed>(a), flushIf<flushed>(b), flushIf<flushed>(c))));
  });
}

/// The roundings that are not to nearest.
template <typename Operation> void unaryDirected(Warp &warp, const Step &step, Mask active) {
  Rounding rounding = roundingOf(step);
  bool flushed = step.flags & Flush;
  map<float, float>(warp, step, active, [=](float a) {
    float result = rounded(Operation::odd(double(flushed ? flush(a) : a)), rounding);
    return flushed ? flush(result) : result;
  });
}
template <typename Operation> void binaryDirected(Warp &warp, const Step &step, Mask active) {
  Rounding rounding = roundingOf(step);
  bool flushed = step.flags & Flush;
  map<float, float, float>(warp, step, active, [=](float a, float b) {
    a = flushed ? flush(a) : a, b = flushed ? flush(b) : b;
    float result = rounded(Operation::odd(double(a), double(b), rounding), rounding);
    return flushed ? flush(result) : result;
  });
}
void fuseDirected(Warp &warp, const Step &step, Mask active) {
  Rounding rounding = roundingOf(step);
  bool flushed = step.flags & Flush;
  map<float, float, float, float>(warp, step, active, [=](float a, float b, float c) {
    if (flushed)
      a = flush(a), b = flush(b), c = flush(c);
    float result = rounded(fusedToOdd(double(a), double(b), double(c), rounding), rounding);
    return flushed ? flush(result) : result;
  });
}

template <typename Operation> void unaryDouble(Warp &warp, const Step &step, Mask active) {
  map<double, double>(warp, step, active, [](double a) { return Operation::of(a); });
}
template <typename Operation> void binaryDouble(Warp &warp, const Step &step, Mask active) {
  map<double, double, double>(warp, step, active, [](double a, double b) { return Operation::of(a, b); });
}
void fuseDouble(Warp &warp, const Step &step, Mask active) {
  map<double, double, double, double>(warp, step, active, [](double a, double b, double c) { return std::fma(a, b, c); });
}

/// Numbers of 16 bits, `parts` of them in a register.
template <typename T, unsigned parts, typename F>
void mapNarrow(Warp &warp, const Step &step, Mask active, unsigned operands, F f) {
  uint16_t values[3][warpSize * parts], result[warpSize * parts];
  const uint32_t sources[] = {step.a, step.b, step.c};
  for (unsigned o = 0; o < operands; ++o)
    std::memcpy(values[o], warp.file + sources[o], sizeof values[o]);
  bool flushed = step.flags & Flush;
  for (unsigned i = 0; i < warpSize * parts; ++i) {
    T x[3] = {};
    for (unsigned o = 0; o < operands; ++o) {
      x[o].bits = values[o][i];
      if (flushed && !(x[o].bits & (sizeof(T) && std::is_same_v<T, Half> ? 0x7c00 : 0x7f80)))
        x[o].bits &= 0x8000;
    }
    T y = f(x[0], x[1], x[2]);
    if (flushed && !(y.bits & (std::is_same_v<T, Half> ? 0x7c00 : 0x7f80)))
      y.bits &= 0x8000;
    if (step.flags & Saturate)
      y = fromFloat<T>(saturate(toFloat(y)));
    if (step.flags & Relu)
      y = toFloat(y) < 0 || (y.bits == 0x8000) ? T{0} : y;
    result[i] = y.bits;
  }
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1)
      std::memcpy(warp.file + step.d + i * parts * 2, result + i * parts, parts * 2);
}
template <typename T, unsigned parts, typename Operation> void unaryNarrow(Warp &warp, const Step &step, Mask active) {
  mapNarrow<T, parts>(warp, step, active, 1, [](T a, T, T) { return fromFloat<T>(Operation::of(toFloat(a))); });
}
template <typename T, unsigned parts, typename Operation> void binaryNarrow(Warp &warp, const Step &step, Mask active) {
  mapNarrow<T, parts>(warp, step, active, 2, [](T a, T b, T) { return fromFloat<T>(Operation::of(toFloat(a), toFloat(b))); });
}
template <typename T, unsigned parts> void fuseNarrow(Warp &warp, const Step &step, Mask active) {
  mapNarrow<T, parts>(warp, step, active, 3, [](T a, T b, T c) { return fused(a, b, c); });
}
template <typename T, unsigned parts, bool negates> void signNarrow(Warp &warp, const Step &step, Mask active) {
  mapNarrow<T, parts>(warp, step, active, 1, [](T a, T, T) { return T{uint16_t(negates ? a.bits ^ 0x8000 : a.bits & 0x7fff)}; });
}

/// Two floats in a register of 64 bits.
template <typename F> void mapPairs(Warp &warp, const Step &step, Mask active, F f) {
  bool flushed = step.flags & Flush, three = step.flags & 0x80;
  for (unsigned i = 0; i < warpSize * 2; ++i) {
    if (!(active >> (i / 2) & 1))
      continue;
    float a = laneOf<float>(warp, step.a, i), b = laneOf<float>(warp, step.b, i), c = three ? laneOf<float>(warp, step.c, i) : 0;
    if (flushed)
      a = flush(a), b = flush(b), c = flush(c);
    float result = f(a, b, c);
    setLane(warp, step.d, i, flushed ? flush(result) : result);
  }
}
template <typename Operation> void binaryPairs(Warp &warp, const Step &step, Mask active) {
  Rounding rounding = roundingOf(step);
  mapPairs(warp, step, active,
           [=](float a, float b, float) { return rounded(Operation::odd(double(a), double(b), rounding), rounding); });
}
void fusePairs(Warp &warp, const Step &step, Mask active) {
  Rounding rounding = roundingOf(step);
  mapPairs(warp, step, active,
           [=](float a, float b, float c) { return rounded(fusedToOdd(double(a), double(b), double(c), rounding), rounding); });
}

void saturateSingle(Warp &warp, const Step &step, Mask active) {
  map<float, float>(warp, step, active, [](float a) { return saturate(a); });
}
void saturateDouble(Warp &warp, const Step &step, Mask active) {
  map<double, double>(warp, step, active, [](double a) { return saturate(a); });
}
/// The sign that a product of both operands would have, for .xorsign.abs.
void signOfBoth(Warp &warp, const Step &step, Mask active) {
  map<float, float, float, float>(warp, step, active, [](float x, float a, float b) {
    uint32_t sign = (bitCast<uint32_t>(a) ^ bitCast<uint32_t>(b)) & 0x80000000;
    return bitCast<float>((bitCast<uint32_t>(x) & 0x7fffffff) | sign);
  });
}
void absoluteSingle(Warp &warp, const Step &step, Mask active) { unarySingle<Absolute, false>(warp, step, active); }

//===----------------------------------------------------------------------===//
// Decoding
//===----------------------------------------------------------------------===//

struct Form {
  Handler nearest, flushed, directed, wide, half, halves, brain, brains, pairs;
};

template <typename Operation> constexpr Form arithmeticForm() {
  return {binarySingle<Operation, false>,    binarySingle<Operation, true>,     binaryDirected<Operation>,
          binaryDouble<Operation>,           binaryNarrow<Half, 1, Operation>,  binaryNarrow<Half, 2, Operation>,
          binaryNarrow<Brain, 1, Operation>, binaryNarrow<Brain, 2, Operation>, binaryPairs<Operation>};
}
template <typename Operation> constexpr Form extremumForm() {
  return {binarySingle<Operation, false>,    binarySingle<Operation, true>,     nullptr,
          binaryDouble<Operation>,           binaryNarrow<Half, 1, Operation>,  binaryNarrow<Half, 2, Operation>,
          binaryNarrow<Brain, 1, Operation>, binaryNarrow<Brain, 2, Operation>, nullptr};
}
constexpr Form fusedForm() {
  return {fuseSingle<false>,   fuseSingle<true>,     fuseDirected,         fuseDouble, fuseNarrow<Half, 1>,
          fuseNarrow<Half, 2>, fuseNarrow<Brain, 1>, fuseNarrow<Brain, 2>, fusePairs};
}
template <typename Operation> constexpr Form directedForm() { // f32 and f64
  return {unarySingle<Operation, false>,
          unarySingle<Operation, true>,
          unaryDirected<Operation>,
          unaryDouble<Operation>,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr};
}
template <typename Operation> constexpr Form approximateForm() {
  return {unarySingle<Operation, false>,
          unarySingle<Operation, true>,
          nullptr,
          nullptr,
          unaryNarrow<Half, 1, Operation>,
          unaryNarrow<Half, 2, Operation>,
          unaryNarrow<Brain, 1, Operation>,
          unaryNarrow<Brain, 2, Operation>,
          nullptr};
}
template <typename Operation, bool negates> constexpr Form signForm() {
  return {unarySingle<Operation, false>, unarySingle<Operation, true>,  nullptr,
          unaryDouble<Operation>,        signNarrow<Half, 1, negates>,  signNarrow<Half, 2, negates>,
          signNarrow<Brain, 1, negates>, signNarrow<Brain, 2, negates>, nullptr};
}

/// Chooses the handler for type and modifiers and applies it to the operands behind the first.
bool decodeForm(Decoder &d, Type type, const Form &form, unsigned operands) {
  Modifiers &modifiers = d.modifiers;
  bool flushed = modifiers.take("ftz"), saturates = modifiers.take("sat"), clamps = modifiers.take("relu");
  bool oob = modifiers.take("oob");
  modifiers.take("approx"), modifiers.take("full");
  std::string_view name = modifiers.takeOneOf({"rn", "rz", "rm", "rp"}, "rn");
  Rounding rounding = name == "rn"   ? Rounding::Even
                      : name == "rz" ? Rounding::Zero
                      : name == "rm" ? Rounding::Down
                                     : Rounding::Up;
  Handler handler = nullptr;
  bool single = type == Type::F32, wide = type == Type::F64, pairs = type == Type::F32x2, nearest = rounding == Rounding::Even;
  switch (type) {
  case Type::F32:
    handler = !nearest ? form.directed : flushed ? form.flushed : form.nearest;
    break;
  case Type::F64:
    handler = nearest ? form.wide : nullptr;
    break;
  case Type::F16:
    handler = form.half;
    break;
  case Type::F16x2:
    handler = form.halves;
    break;
  case Type::BF16:
    handler = form.brain;
    break;
  case Type::BF16x2:
    handler = form.brains;
    break;
  case Type::F32x2:
    handler = form.pairs;
    break;
  default:
    break;
  }
  bool narrow = !single && !wide && !pairs;
  if (!handler || oob || (narrow && !nearest) || (pairs && saturates) || (clamps && !narrow) || (wide && flushed))
    return d.unsupported();
  if (!d.expectOperands(operands + 1))
    return false;
  uint32_t sources[3] = {};
  for (unsigned i = 0; i < operands; ++i)
    sources[i] = d.read(i + 1, type);
  uint32_t result = d.write(size_t(0), type);
  uint16_t flags = uint16_t((flushed ? Flush : 0) | unsigned(rounding) << RoundingShift);
  if (narrow)
    flags |= uint16_t((saturates ? Saturate : 0) | (clamps ? Relu : 0));
  if (pairs && operands == 3)
    flags |= 0x80;
  d.emit(handler, result, sources[0], sources[1], sources[2]).flags = flags;
  if (saturates && !narrow)
    d.emit(wide ? saturateDouble : saturateSingle, result, result);
  return true;
}

bool decodeExtremum(Decoder &d, Type type, bool least) {
  static const Form forms[2][2] = {{extremumForm<Maximum>(), extremumForm<MaximumNan>()},
                                   {extremumForm<Minimum>(), extremumForm<MinimumNan>()}};
  const Form &form = forms[least][d.modifiers.take("NaN")];
  bool magnitudes = d.modifiers.take("xorsign");
  if (magnitudes | d.modifiers.take("abs")) {
    if (!magnitudes || type != Type::F32 || !d.expectOperands(3))
      return d.unsupported();
    bool flushed = d.modifiers.take("ftz");
    uint32_t a = d.read(1, type), b = d.read(2, type), x = d.temporary(), y = d.temporary(), extremum = d.temporary();
    d.emit(absoluteSingle, x, a);
    d.emit(absoluteSingle, y, b);
    d.emit(flushed ? form.flushed : form.nearest, extremum, x, y);
    d.emit(signOfBoth, d.write(size_t(0), type), extremum, a, b);
    return true;
  }
  if (d.count() == 4 && type == Type::F32) { // of three
    Handler handler = d.modifiers.take("ftz") ? form.flushed : form.nearest;
    uint32_t a = d.read(1, type), b = d.read(2, type), c = d.read(3, type), first = d.temporary();
    d.emit(handler, first, a, b);
    d.emit(handler, d.write(size_t(0), type), first, c);
    return true;
  }
  return decodeForm(d, type, form, 2);
}

template <typename T> void copySign(Warp &warp, const Step &step, Mask active) {
  map<T, T, T>(warp, step, active, [](T a, T b) { return std::copysign(b, a); });
}
bool decodeCopySign(Decoder &d) {
  Type type = d.modifiers.type();
  if (type != Type::F32 && type != Type::F64)
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, type), b = d.read(2, type);
  d.emit(type == Type::F32 ? copySign<float> : copySign<double>, d.write(size_t(0), type), a, b);
  return true;
}

enum Class { Finite, Infinite, Number, NotANumber, Normal, Subnormal };
template <typename T> void testClass(Warp &warp, const Step &step, Mask active) {
  Mask result = 0;
  for (unsigned i = 0; i < warpSize; ++i) {
    T x = laneOf<T>(warp, step.a, i);
    int kind = std::fpclassify(x);
    bool holds = false;
    switch (Class(step.flags)) {
    case Finite:
      holds = kind != FP_NAN && kind != FP_INFINITE;
      break;
    case Infinite:
      holds = kind == FP_INFINITE;
      break;
    case Number:
      holds = kind != FP_NAN;
      break;
    case NotANumber:
      holds = kind == FP_NAN;
      break;
    case Normal:
      holds = kind == FP_NORMAL;
      break;
    case Subnormal:
      holds = kind == FP_SUBNORMAL;
      break;
    }
    result |= Mask(holds) << i;
  }
  setPredicate(warp, step.d, result, active);
}
bool decodeTest(Decoder &d) {
  static const char *names[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
  int kind = -1;
  for (int i = 0; i < 6; ++i)
    if (d.modifiers.take(names[i]))
      kind = i;
  Type type = d.modifiers.type();
  if (kind < 0 || (type != Type::F32 && type != Type::F64))
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  uint32_t a = d.read(1, type);
  d.emit(type == Type::F32 ? testClass<float> : testClass<double>, d.write(size_t(0), Type::Predicate), a).flags = uint16_t(kind);
  return true;
}

bool decodeUnaryOpcode(Decoder &d) {
  static const std::pair<const char *, Form> forms[] = {
      {"rcp", directedForm<Reciprocal>()},          {"sqrt", directedForm<Root>()},
      {"rsqrt", approximateForm<ReciprocalRoot>()}, {"ex2", approximateForm<Exponential>()},
      {"lg2", approximateForm<Logarithm>()},        {"sin", approximateForm<Sine>()},
      {"cos", approximateForm<Cosine>()},           {"tanh", approximateForm<HyperbolicTangent>()}};
  Type type = d.modifiers.type();
  for (const auto &[name, form] : forms)
    if (d.instruction().opcode == name) {
      if (type == Type::F64 && d.instruction().opcode == "rsqrt") {
        Form wide = form;
        wide.wide = unaryDouble<ReciprocalRoot>;
        return decodeForm(d, type, wide, 1);
      }
      return decodeForm(d, type, form, 1);
    }
  return d.unsupported();
}

} // namespace

bool decodeFloat(Decoder &d, Type type) {
  const std::string &opcode = d.instruction().opcode;
  static const Form add = arithmeticForm<Add>(), subtract = arithmeticForm<Subtract>(), multiply = arithmeticForm<Multiply>(),
                    divide = arithmeticForm<Divide>(), negate = signForm<Negate, true>(), absolute = signForm<Absolute, false>(),
                    fuse = fusedForm();
  if (opcode == "add")
    return decodeForm(d, type, add, 2);
  if (opcode == "sub")
    return decodeForm(d, type, subtract, 2);
  if (opcode == "mul")
    return decodeForm(d, type, multiply, 2);
  if (opcode == "div")
    return type == Type::F32 || type == Type::F64 ? decodeForm(d, type, divide, 2) : d.unsupported();
  if (opcode == "fma" || opcode == "mad")
    return decodeForm(d, type, fuse, 3);
  if (opcode == "neg")
    return decodeForm(d, type, negate, 1);
  if (opcode == "abs")
    return decodeForm(d, type, absolute, 1);
  if (opcode == "min" || opcode == "max")
    return decodeExtremum(d, type, opcode == "min");
  return d.unsupported();
}

//===----------------------------------------------------------------------===//
// Comparisons
//===----------------------------------------------------------------------===//

namespace {

enum Relation { Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual, Numbers, Nan };

/// A relation of numbers `T`, widened by `get` from lane `i` of a register.
template <typename T, Relation relation, bool unordered> bool holds(T a, T b) {
  bool nan = isNan(a) || isNan(b);
  switch (relation) {
  case Equal:
    return nan ? unordered : a == b;
  case NotEqual:
    return nan ? unordered : a != b;
  case Less:
    return nan ? unordered : a < b;
  case LessEqual:
    return nan ? unordered : a <= b;
  case Greater:
    return nan ? unordered : a > b;
  case GreaterEqual:
    return nan ? unordered : a >= b;
  case Numbers:
    return !nan;
  case Nan:
    return nan;
  }
}

struct SingleLane {
  using Stored = float;
  static float get(float x) { return x; }
};
struct FlushedLane {
  using Stored = float;
  static float get(float x) { return flush(x); }
};
struct DoubleLane {
  using Stored = double;
  static double get(double x) { return x; }
};
template <typename T> struct NarrowLane {
  using Stored = uint16_t;
  static float get(uint16_t x) { return toFloat(T{x}); }
};
template <typename T, unsigned shift> struct PairLane {
  using Stored = uint32_t;
  static float get(uint32_t x) { return toFloat(T{uint16_t(x >> shift)}); }
};

template <typename Lane, Relation relation, bool unordered> Mask compareLanes(const Warp &warp, uint32_t a, uint32_t b) {
  using Stored = typename Lane::Stored;
  return lanesWhere<Stored, Stored>(warp, a, b, [](Stored x, Stored y) {
    return holds<decltype(Lane::get(x)), relation, unordered>(Lane::get(x), Lane::get(y));
  });
}

template <typename Lane> Comparison byName(std::string_view name) {
  static const std::pair<std::string_view, Comparison> table[] = {
      {"eq", compareLanes<Lane, Equal, false>},    {"ne", compareLanes<Lane, NotEqual, false>},
      {"lt", compareLanes<Lane, Less, false>},     {"le", compareLanes<Lane, LessEqual, false>},
      {"gt", compareLanes<Lane, Greater, false>},  {"ge", compareLanes<Lane, GreaterEqual, false>},
      {"equ", compareLanes<Lane, Equal, true>},    {"neu", compareLanes<Lane, NotEqual, true>},
      {"ltu", compareLanes<Lane, Less, true>},     {"leu", compareLanes<Lane, LessEqual, true>},
      {"gtu", compareLanes<Lane, Greater, true>},  {"geu", compareLanes<Lane, GreaterEqual, true>},
      {"num", compareLanes<Lane, Numbers, false>}, {"nan", compareLanes<Lane, Nan, false>}};
  for (const auto &[key, value] : table)
    if (key == name)
      return value;
  return nullptr;
}

} // namespace

Comparison comparison(std::string_view name, Type type, bool flushed) {
  bool high = !name.empty() && name.back() == '^'; // the upper half of a pair
  if (high)
    name.remove_suffix(1);
  switch (type) {
  case Type::F32:
    return flushed ? byName<FlushedLane>(name) : byName<SingleLane>(name);
  case Type::F64:
    return byName<DoubleLane>(name);
  case Type::F16:
    return byName<NarrowLane<Half>>(name);
  case Type::BF16:
    return byName<NarrowLane<Brain>>(name);
  case Type::F16x2:
    return high ? byName<PairLane<Half, 16>>(name) : byName<PairLane<Half, 0>>(name);
  case Type::BF16x2:
    return high ? byName<PairLane<Brain, 16>>(name) : byName<PairLane<Brain, 0>>(name);
  default:
    return nullptr;
  }
}

void addFloatOpcodes(OpcodeTable &table) {
  for (const char *name : {"rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"})
    table[name] = decodeUnaryOpcode;
  table["fma"] = [](Decoder &d) { return decodeFloat(d, d.modifiers.type()); };
  table["copysign"] = decodeCopySign;
  table["testp"] = decodeTest;
}

} // namespace aligned::emulator
