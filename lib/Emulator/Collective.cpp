// Instructions that lanes of a warp execute together: exchanges, votes, reductions and matrix products. They run once all lanes
// that have to be there have arrived.

#include "Decode.h"
#include "Lanes.h"
#include "Numbers.h"

#include <algorithm>

namespace aligned::emulator {

namespace {

//===----------------------------------------------------------------------===//
// Exchanges
//===----------------------------------------------------------------------===//

enum ShuffleMode : uint16_t { Up, Down, Butterfly, Index, ModeMask = 3, HasPredicate = 4 };

void shuffle(Warp &warp, const Step &step, Mask active) {
  uint32_t result[warpSize];
  Mask inRange = 0;
  for (unsigned i = 0; i < warpSize; ++i) {
    uint32_t b = laneOf<uint32_t>(warp, step.b, i) & 31, c = laneOf<uint32_t>(warp, step.c, i);
    uint32_t segment = c >> 8 & 31, clamp = c & 31, last = (i & segment) | (clamp & ~segment);
    int from = 0;
    bool valid = false;
    switch (step.flags & ModeMask) {
    case Up:
      from = int(i) - int(b);
      valid = from >= int(last);
      break;
    case Down:
      from = int(i + b);
      valid = from <= int(last);
      break;
    case Butterfly:
      from = int(i ^ b);
      valid = from <= int(last);
      break;
    case Index:
      from = int((i & segment) | (b & ~segment & 31));
      valid = from <= int(last);
      break;
    }
    unsigned source = valid ? unsigned(from) & 31 : i;
    if ((active >> i & 1) && !(active >> source & 1)) {
      failAt(warp, step.code, i, Fault::Undefined,
             "reads a register of lane " + std::to_string(source) + ", which takes no part");
      return;
    }
    inRange |= Mask(valid) << i;
    result[i] = laneOf<uint32_t>(warp, step.a, source);
  }
  put(warp, step.d, result, active);
  if (step.flags & HasPredicate)
    setPredicate(warp, step.e, inRange, active);
}

bool decodeShuffle(Decoder &d) {
  Modifiers &modifiers = d.modifiers;
  if (!modifiers.take("sync"))
    return d.unsupported();
  std::string_view mode = modifiers.takeOneOf({"up", "down", "bfly", "idx"});
  if (mode.empty() || modifiers.type() != Type::B32)
    return d.unsupported();
  if (!d.expectOperands(5))
    return false;
  const Operand &target = d.operands()[0];
  bool pair = target.kind == Operand::Pair;
  uint32_t a = d.read(1, Type::B32), b = d.read(2, Type::B32), c = d.read(3, Type::B32);
  makeCollective(d, d.read(4, Type::B32));
  uint32_t result = d.write(pair ? target.elements[0] : target, Type::B32);
  uint32_t valid = pair ? d.write(target.elements[1], Type::Predicate) : 0;
  Step &step = d.emit(shuffle, result, a, b, c);
  step.e = valid;
  step.flags = uint16_t((mode == "up"     ? Up
                         : mode == "down" ? Down
                         : mode == "bfly" ? Butterfly
                                          : Index) |
                        (pair ? HasPredicate : 0));
  return true;
}

//===----------------------------------------------------------------------===//
// Votes
//===----------------------------------------------------------------------===//

enum Vote : uint16_t { All, Any, Uniform, Ballot };

void vote(Warp &warp, const Step &step, Mask active) {
  Mask votes = predicate(warp, step.a) & active;
  switch (step.flags) {
  case All:
    return setPredicate(warp, step.d, votes == active ? allLanes : 0, active);
  case Any:
    return setPredicate(warp, step.d, votes ? allLanes : 0, active);
  case Uniform:
    return setPredicate(warp, step.d, votes == active || !votes ? allLanes : 0, active);
  default: {
    uint32_t result[warpSize];
    std::fill(std::begin(result), std::end(result), votes);
    put(warp, step.d, result, active);
  }
  }
}

bool decodeVote(Decoder &d) {
  if (!d.modifiers.take("sync"))
    return d.unsupported();
  std::string_view mode = d.modifiers.takeOneOf({"all", "any", "uni", "ballot"});
  Type type = d.modifiers.type();
  if (mode.empty() || type != (mode == "ballot" ? Type::B32 : Type::Predicate))
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, Type::Predicate);
  makeCollective(d, d.read(2, Type::B32));
  d.emit(vote, d.write(size_t(0), type), a).flags = mode == "all" ? All : mode == "any" ? Any : mode == "uni" ? Uniform : Ballot;
  return true;
}

template <typename T> void matchAny(Warp &warp, const Step &step, Mask active) {
  uint32_t result[warpSize] = {};
  for (unsigned i = 0; i < warpSize; ++i)
    for (unsigned j = 0; j < warpSize; ++j)
      if (active >> j & 1)
        result[i] |= Mask(laneOf<T>(warp, step.a, i) == laneOf<T>(warp, step.a, j)) << j;
  put(warp, step.d, result, active);
}
template <typename T> void matchAll(Warp &warp, const Step &step, Mask active) {
  unsigned first = unsigned(__builtin_ctz(active));
  bool same = true;
  for (unsigned i = first; i < warpSize; ++i)
    same &= !(active >> i & 1) || laneOf<T>(warp, step.a, i) == laneOf<T>(warp, step.a, first);
  uint32_t result[warpSize];
  std::fill(std::begin(result), std::end(result), same ? active : 0);
  put(warp, step.d, result, active);
  if (step.flags)
    setPredicate(warp, step.e, same ? allLanes : 0, active);
}

bool decodeMatch(Decoder &d) {
  std::string_view mode = d.modifiers.takeOneOf({"any", "all"});
  bool sync = d.modifiers.take("sync");
  Type type = d.modifiers.type();
  if (mode.empty() || !sync || (type != Type::B32 && type != Type::B64))
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  const Operand &target = d.operands()[0];
  bool pair = target.kind == Operand::Pair, all = mode == "all", wide = type == Type::B64;
  if (pair && !all)
    return d.unsupported();
  uint32_t a = d.read(1, type);
  makeCollective(d, d.read(2, Type::B32));
  uint32_t result = d.write(pair ? target.elements[0] : target, Type::B32);
  uint32_t same = pair ? d.write(target.elements[1], Type::Predicate) : 0;
  Handler handler = all ? (wide ? matchAll<uint64_t> : matchAll<uint32_t>) : (wide ? matchAny<uint64_t> : matchAny<uint32_t>);
  Step &step = d.emit(handler, result, a);
  step.e = same, step.flags = pair;
  return true;
}

void currentMask(Warp &warp, const Step &step, Mask active) {
  uint32_t result[warpSize];
  std::fill(std::begin(result), std::end(result), active);
  put(warp, step.d, result, active);
}
bool decodeActiveMask(Decoder &d) {
  if (d.modifiers.type() != Type::B32)
    return d.unsupported();
  if (!d.expectOperands(1))
    return false;
  d.emit(currentMask, d.write(size_t(0), Type::B32));
  return true;
}

void elect(Warp &warp, const Step &step, Mask active) {
  unsigned leader = unsigned(__builtin_ctz(active));
  uint32_t result[warpSize];
  std::fill(std::begin(result), std::end(result), leader);
  put(warp, step.d, result, active);
  setPredicate(warp, step.e, 1u << leader, active);
}
bool decodeElect(Decoder &d) {
  if (!d.modifiers.take("sync"))
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  const Operand &target = d.operands()[0];
  if (target.kind != Operand::Pair)
    return d.fail("expected two results");
  makeCollective(d, d.read(1, Type::B32));
  uint32_t result = d.write(target.elements[0], Type::B32), chosen = d.write(target.elements[1], Type::Predicate);
  d.emit(elect, result).e = chosen;
  return true;
}

//===----------------------------------------------------------------------===//
// Reductions
//===----------------------------------------------------------------------===//

template <typename T, typename F> void reduce(Warp &warp, const Step &step, Mask active, F f) {
  unsigned first = unsigned(__builtin_ctz(active));
  T sum = laneOf<T>(warp, step.a, first);
  for (unsigned i = first + 1; i < warpSize; ++i)
    if (active >> i & 1)
      sum = f(sum, laneOf<T>(warp, step.a, i));
  T result[warpSize];
  std::fill(std::begin(result), std::end(result), sum);
  put(warp, step.d, result, active);
}
void reduceAdd(Warp &w, const Step &s, Mask m) {
  reduce<uint32_t>(w, s, m, [](uint32_t a, uint32_t b) { return a + b; });
}
void reduceAnd(Warp &w, const Step &s, Mask m) {
  reduce<uint32_t>(w, s, m, [](uint32_t a, uint32_t b) { return a & b; });
}
void reduceOr(Warp &w, const Step &s, Mask m) {
  reduce<uint32_t>(w, s, m, [](uint32_t a, uint32_t b) { return a | b; });
}
void reduceXor(Warp &w, const Step &s, Mask m) {
  reduce<uint32_t>(w, s, m, [](uint32_t a, uint32_t b) { return a ^ b; });
}
template <typename T> void reduceMinimum(Warp &w, const Step &s, Mask m) {
  reduce<T>(w, s, m, [](T a, T b) { return std::min(a, b); });
}
template <typename T> void reduceMaximum(Warp &w, const Step &s, Mask m) {
  reduce<T>(w, s, m, [](T a, T b) { return std::max(a, b); });
}
enum : uint16_t { LeastFlag = 1, AbsoluteFlag = 2, NanFlag = 4 };
void reduceSingle(Warp &warp, const Step &step, Mask active) {
  uint16_t flags = step.flags;
  auto prepare = [=](float a) { return flags & AbsoluteFlag ? std::fabs(a) : a; };
  reduce<float>(warp, step, active, [=](float a, float b) {
    a = prepare(a), b = prepare(b);
    if (a != a || b != b)
      return flags & NanFlag ? bitCast<float>(floatNan) : canonical(a != a ? b : a);
    return (flags & LeastFlag) ? std::min(a, b) : std::max(a, b);
  });
}

bool decodeReduction(Decoder &d) {
  if (!d.modifiers.take("sync"))
    return d.unsupported();
  std::string_view name = d.modifiers.takeOneOf({"add", "min", "max", "and", "or", "xor"});
  bool absolute = d.modifiers.take("abs"), nan = d.modifiers.take("NaN");
  Type type = d.modifiers.type();
  bool number = type == Type::U32 || type == Type::S32, isSigned = type == Type::S32, bits = type == Type::B32;
  bool single = type == Type::F32 && (name == "min" || name == "max");
  Handler handler = name == "add" && number   ? reduceAdd
                    : name == "min" && number ? (isSigned ? reduceMinimum<int32_t> : reduceMinimum<uint32_t>)
                    : name == "max" && number ? (isSigned ? reduceMaximum<int32_t> : reduceMaximum<uint32_t>)
                    : name == "and" && bits   ? reduceAnd
                    : name == "or" && bits    ? reduceOr
                    : name == "xor" && bits   ? reduceXor
                    : single                  ? reduceSingle
                                              : nullptr;
  if (!handler || ((absolute || nan) && !single))
    return d.unsupported();
  if (!d.expectOperands(3))
    return false;
  uint32_t a = d.read(1, type);
  makeCollective(d, d.read(2, Type::B32));
  d.emit(handler, d.write(size_t(0), type), a).flags =
      uint16_t((name == "min" ? LeastFlag : 0) | (absolute ? AbsoluteFlag : 0) | (nan ? NanFlag : 0));
  return true;
}

//===----------------------------------------------------------------------===//
// Matrix products
//===----------------------------------------------------------------------===//

// Lane i is t = i % 4 of group g = i / 4. With n elements in a register, element e of register r is
//   of A  in row g + 8 (r & 1), column n t + e + 4 n (r >> 1),
//   of B  in row n t + e + 4 n r, column g,
// and of C and D, with one element in a register, in row g + 8 (r >> 1), column 2 t + (r & 1); with two, row g + 8 r, column 2 t
// + e.

constexpr unsigned mostDepth = 64;

struct Shape {
  unsigned rows, depth, registersA, registersB, registersC;
};

template <typename T, typename Get>
void gatherA(const Warp &warp, const uint32_t *list, unsigned registers, unsigned n, T *a, unsigned depth, Get get) {
  for (unsigned r = 0; r < registers; ++r)
    for (unsigned i = 0; i < warpSize; ++i)
      for (unsigned e = 0; e < n; ++e)
        a[(i / 4 + 8 * (r & 1)) * depth + n * (i % 4) + e + 4 * n * (r >> 1)] = get(warp, list[r], i, e);
}
template <typename T, typename Get>
void gatherB(const Warp &warp, const uint32_t *list, unsigned registers, unsigned n, T *b, unsigned depth, Get get) {
  for (unsigned r = 0; r < registers; ++r)
    for (unsigned i = 0; i < warpSize; ++i)
      for (unsigned e = 0; e < n; ++e)
        b[(i / 4) * depth + n * (i % 4) + e + 4 * n * r] = get(warp, list[r], i, e); // transposed
}

int16_t integerElement(const Warp &warp, uint32_t reg, unsigned lane, unsigned element, Type type) {
  switch (type) {
  case Type::U8:
    return laneOf<uint8_t>(warp, reg, lane * 4 + element);
  case Type::S8:
    return laneOf<int8_t>(warp, reg, lane * 4 + element);
  case Type::U4:
    return int16_t(laneOf<uint32_t>(warp, reg, lane) >> (4 * element) & 15);
  default:
    return int16_t(int32_t(laneOf<uint32_t>(warp, reg, lane) << (28 - 4 * element)) >> 28);
  }
}

/// Step::number: types of A and B; flags: 1 saturates.
void multiplyIntegers(Warp &warp, const Step &step, Mask) {
  auto typeA = Type(step.number & 255), typeB = Type(step.number >> 8 & 255);
  auto registersA = unsigned(step.number >> 16 & 15), registersB = unsigned(step.number >> 20 & 15),
       registersC = unsigned(step.number >> 24 & 15);
  unsigned n = 32 / bitsOf(typeA), depth = 4 * n * registersB;
  const uint32_t *d = warp.launch->kernel->lists.data() + step.list, *a = d + registersC, *b = a + registersA,
                 *c = b + registersB;
  int16_t left[16 * mostDepth], right[8 * mostDepth];
  auto gather = [&](Type type, auto use) {
    switch (type) { // the switch outside of the loops
    case Type::U8:
      return use([](const Warp &w, uint32_t reg, unsigned i, unsigned e) { return int16_t(laneOf<uint8_t>(w, reg, i * 4 + e)); });
    case Type::S8:
      return use([](const Warp &w, uint32_t reg, unsigned i, unsigned e) { return int16_t(laneOf<int8_t>(w, reg, i * 4 + e)); });
    default:
      return use([=](const Warp &w, uint32_t reg, unsigned i, unsigned e) { return integerElement(w, reg, i, e, type); });
    }
  };
  gather(typeA, [&](auto get) { gatherA(warp, a, registersA, n, left, depth, get); });
  gather(typeB, [&](auto get) { gatherB(warp, b, registersB, n, right, depth, get); });
  int32_t result[4][warpSize];
  for (unsigned r = 0; r < registersC; ++r)
    for (unsigned i = 0; i < warpSize; ++i) {
      const int16_t *x = left + (i / 4 + 8 * (r >> 1)) * depth, *y = right + (i % 4 * 2 + (r & 1)) * depth;
      int32_t sum = 0;
      if (depth == 32) // the usual one, unrolled
        for (unsigned k = 0; k < 32; ++k)
          sum += x[k] * y[k];
      else
        for (unsigned k = 0; k < depth; ++k)
          sum += x[k] * y[k];
      int64_t whole = int64_t(sum) + laneOf<int32_t>(warp, c[r], i);
      if (step.flags)
        whole = std::min<int64_t>(std::max<int64_t>(whole, INT32_MIN), INT32_MAX);
      result[r][i] = int32_t(uint32_t(uint64_t(whole)));
    }
  for (unsigned r = 0; r < registersC; ++r)
    put(warp, d[r], result[r], allLanes);
}

float tensorFloat(uint32_t bits) { return bitCast<float>(bits & 0xffffe000); } // the hardware does not look at the rest

/// Products are exact and summed in double, in the order of k and the addend last, then rounded once. Hardware adds in an order
/// and a width of its own, which are nowhere promised.
template <typename Get> void multiplyFloats(Warp &warp, const Step &step, unsigned n, Get get) {
  auto typeC = Type(step.number & 255), typeD = Type(step.number >> 8 & 255);
  auto registersA = unsigned(step.number >> 16 & 15), registersB = unsigned(step.number >> 20 & 15),
       registersC = unsigned(step.number >> 24 & 15);
  auto registersD = unsigned(step.number >> 28 & 15);
  unsigned depth = 4 * n * registersB;
  const uint32_t *d = warp.launch->kernel->lists.data() + step.list, *a = d + registersD, *b = a + registersA,
                 *c = b + registersB;
  double left[16 * mostDepth], transposed[8 * mostDepth], right[mostDepth][8], sums[16][8] = {};
  gatherA(warp, a, registersA, n, left, depth, get);
  gatherB(warp, b, registersB, n, transposed, depth, get);
  for (unsigned k = 0; k < depth; ++k)
    for (unsigned j = 0; j < 8; ++j)
      right[k][j] = transposed[j * depth + k];
  unsigned rows = registersA == 1 ? 8 : 16;
  for (unsigned row = 0; row < rows; ++row)
    for (unsigned k = 0; k < depth; ++k)
      for (unsigned j = 0; j < 8; ++j)
        sums[row][j] += left[row * depth + k] * right[k][j];
  for (unsigned i = 0; i < warpSize; ++i)
    for (unsigned r = 0; r < rows / 8; ++r) // of groups of eight rows
      for (unsigned e = 0; e < 2; ++e) {
        double addend = typeC == Type::F16   ? double(toFloat(laneOf<Half>(warp, c[r], 2 * i + e)))
                        : typeC == Type::F64 ? laneOf<double>(warp, c[2 * r + e], i)
                                             : double(laneOf<float>(warp, c[2 * r + e], i));
        double sum = sums[i / 4 + 8 * r][i % 4 * 2 + e] + addend;
        if (typeD == Type::F16)
          setLane(warp, d[r], 2 * i + e, fromFloat<Half>(toOdd(sum)));
        else if (typeD == Type::F64)
          setLane(warp, d[2 * r + e], i, sum);
        else
          setLane(warp, d[2 * r + e], i, canonical(float(sum)));
      }
  (void)registersC;
}
void multiplyHalves(Warp &warp, const Step &step, Mask) {
  multiplyFloats(warp, step, 2,
                 [](const Warp &w, uint32_t reg, unsigned i, unsigned e) { return toFloat(laneOf<Half>(w, reg, 2 * i + e)); });
}
void multiplyBrains(Warp &warp, const Step &step, Mask) {
  multiplyFloats(warp, step, 2,
                 [](const Warp &w, uint32_t reg, unsigned i, unsigned e) { return toFloat(laneOf<Brain>(w, reg, 2 * i + e)); });
}
void multiplyTensorFloats(Warp &warp, const Step &step, Mask) {
  multiplyFloats(warp, step, 1,
                 [](const Warp &w, uint32_t reg, unsigned i, unsigned) { return tensorFloat(laneOf<uint32_t>(w, reg, i)); });
}
void multiplyDoubles(Warp &warp, const Step &step, Mask) {
  multiplyFloats(warp, step, 1, [](const Warp &w, uint32_t reg, unsigned i, unsigned) { return laneOf<double>(w, reg, i); });
}

bool decodeProduct(Decoder &d) {
  Modifiers &modifiers = d.modifiers;
  if (!modifiers.take("sync") || !modifiers.take("aligned"))
    return d.unsupported();
  std::string_view shape =
      modifiers.takeOneOf({"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32", "m16n8k64", "m8n8k4", "m8n8k16", "m8n8k32"});
  if (shape.empty() || !modifiers.take("row") || !modifiers.take("col"))
    return d.unsupported();
  bool saturates = modifiers.take("satfinite");
  Type typeD = modifiers.type(), typeA = modifiers.type(), typeB = modifiers.type(), typeC = modifiers.type();
  unsigned rows = shape[1] == '8' ? 8 : 16, depth = unsigned(std::stoi(std::string(shape.substr(shape.find('k') + 1))));
  auto byte = [](Type type) { return type == Type::U8 || type == Type::S8; };
  auto nibble = [](Type type) { return type == Type::U4 || type == Type::S4; };
  bool integers = (byte(typeA) && byte(typeB)) || (nibble(typeA) && nibble(typeB));
  Handler handler = nullptr;
  if (integers) {
    if (typeC == Type::S32 && typeD == Type::S32)
      handler = multiplyIntegers;
  } else if (typeA == typeB) {
    bool narrow = typeC == Type::F16 || typeC == Type::F32, result = typeD == Type::F16 || typeD == Type::F32;
    bool single = typeC == Type::F32 && typeD == Type::F32;
    handler = typeA == Type::F16 && narrow && result && rows == 16                           ? multiplyHalves
              : typeA == Type::BF16 && single && rows == 16                                  ? multiplyBrains
              : typeA == Type::TF32 && single && rows == 16                                  ? multiplyTensorFloats
              : typeA == Type::F64 && typeC == Type::F64 && typeD == Type::F64 && !saturates ? multiplyDoubles
                                                                                             : nullptr;
  }
  unsigned bits = bitsOf(typeA), unit = bits ? (bits == 64 ? 4 : 128 / bits) : 0; // columns that one register of all lanes makes
  if (!handler || (saturates && !integers) || depth % unit || depth / unit > (rows == 8 ? 1u : 2u))
    return d.unsupported();
  unsigned registersB = depth / unit, registersA = registersB * rows / 8;
  unsigned registersC = rows / 8 * (typeC == Type::F16 ? 1 : 2), registersD = rows / 8 * (typeD == Type::F16 ? 1 : 2);
  if (!d.expectOperands(4))
    return false;
  auto carrier = [](Type type) { return type == Type::F64 ? Type::B64 : Type::B32; };
  std::vector<uint32_t> a = d.readAll(d.operands()[1], carrier(typeA)), b = d.readAll(d.operands()[2], carrier(typeB));
  std::vector<uint32_t> c = d.readAll(d.operands()[3], carrier(typeC)), all = d.writeAll(d.operands()[0], carrier(typeD));
  if (a.size() != registersA || b.size() != registersB || c.size() != registersC || all.size() != registersD)
    return d.fail("expected matrices of " + std::to_string(registersD) + ", " + std::to_string(registersA) + ", " +
                  std::to_string(registersB) + " and " + std::to_string(registersC) + " registers");
  all.insert(all.end(), a.begin(), a.end());
  all.insert(all.end(), b.begin(), b.end());
  all.insert(all.end(), c.begin(), c.end());
  makeAligned(d);
  uint32_t list = d.list(all);
  Step &step = d.emit(handler);
  step.list = list;
  step.flags = saturates;
  Type low = integers ? typeA : typeC, high = integers ? typeB : typeD;
  step.number = int64_t(low) | int64_t(high) << 8 | int64_t(registersA) << 16 | int64_t(registersB) << 20 |
                int64_t(registersC) << 24 | int64_t(registersD) << 28;
  return true;
}

void transposeMatrix(Warp &warp, const Step &step, Mask active) {
  uint16_t matrix[8][8];
  for (unsigned i = 0; i < warpSize * 2; ++i)
    matrix[i / 8][i % 8] = laneOf<uint16_t>(warp, step.a, i);
  for (unsigned i = 0; i < warpSize * 2; ++i)
    setLane(warp, step.d, i, matrix[i % 8][i / 8]);
  (void)active;
}
bool decodeTransposition(Decoder &d) {
  Modifiers &modifiers = d.modifiers;
  if (!modifiers.take("sync") || !modifiers.take("aligned") || !modifiers.take("m8n8") || !modifiers.take("trans") ||
      modifiers.type() != Type::B16)
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  makeAligned(d);
  uint32_t a = d.read(1, Type::B32);
  d.emit(transposeMatrix, d.write(size_t(0), Type::B32), a);
  return true;
}

} // namespace

void addCollectiveOpcodes(OpcodeTable &table) {
  table["shfl"] = decodeShuffle;
  table["vote"] = decodeVote;
  table["match"] = decodeMatch;
  table["activemask"] = decodeActiveMask;
  table["elect"] = decodeElect;
  table["redux"] = decodeReduction;
  table["mma"] = decodeProduct;
  table["movmatrix"] = decodeTransposition;
}

} // namespace aligned::emulator
