// See the header.
#include "Simd.h"

#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "llvm/ADT/bit.h"

#include <array>

using namespace mlir;
using namespace aligned;

/// By instructions over 128 bits. Without i8mm both sides are signed: numbers beyond 127 are taken less 128, and 128 times the right side, which is no byte, is added in halves.
static Val dot4OnNeon(Isa isa, Val acc, Val left, Val right, int64_t largest) {
  Emitter &e = *acc.e;
  const Val leftBytes = bitcast(left, e.i8()), rightBytes = bitcast(right, e.i8());
  const Type four = VectorType::get(4, e.i32());
  auto dot = [&](StringRef name, Val sum, Val a, Val b) { return e.intrinsic(name, four, {sum, a, b}); };
  Val result;
  for (int64_t first = 0; first < acc.lanes(); first += 4) {
    Val sum = slice(acc, first, 4), a = slice(leftBytes, 4 * first, 16), b = slice(rightBytes, 4 * first, 16);
    if (isa == Isa::I8MM) {
      sum = dot("llvm.aarch64.neon.usdot", sum, a, b);
    } else if (largest < 128) {
      sum = dot("llvm.aarch64.neon.sdot", sum, a, b);
    } else {
      sum = dot("llvm.aarch64.neon.sdot", sum, a + e.constant(a.type(), -128), b);
      for (int half = 0; half < 2; ++half)
        sum = dot("llvm.aarch64.neon.sdot", sum, e.constant(a.type(), 64), b);
    }
    SmallVector<int64_t> lanes = llvm::to_vector(llvm::seq<int64_t>(0, first + 4));
    result = first ? e.wrap(vector::ShuffleOp::create(e.b, result.value, sum.value, lanes)) : sum;
  }
  return result;
}

Val aligned::dot4(Isa isa, Val acc, Val left, Val right, int64_t largest) {
  Emitter &e = *acc.e;
  auto bytes = [&](Val a) { return bitcast(a, e.i8()); };
  if ((isa == Isa::AVX512 && acc.lanes() == 16) || ((isa == Isa::AVX512 || isa == Isa::AVXVNNI) && acc.lanes() == 8)) {
    StringRef name = acc.lanes() == 16 ? "llvm.x86.avx512.vpdpbusd.512" : "llvm.x86.avx512.vpdpbusd.256";
    return e.intrinsic(name, acc.type(), {acc, bytes(left), bytes(right)});
  }
  if ((isa == Isa::DotProd || isa == Isa::I8MM) && acc.lanes() % 4 == 0)
    return dot4OnNeon(isa, acc, left, right, largest);
  Val a = bitcast(left, e.i32()), b = bitcast(right, e.i32()), sum = acc;
  if (isa == Isa::AVX2 && acc.lanes() == 8) {
    if (largest * 128 * 2 < 1 << 15) { // no pair of products leaves 16 bits
      Type pairs = VectorType::get(16, e.i16());
      Val products = e.intrinsic("llvm.x86.avx2.pmadd.ub.sw", pairs, {bytes(left), bytes(right)});
      return acc + e.intrinsic("llvm.x86.avx2.pmadd.wd", acc.type(), {products, e.constant(pairs, 1)});
    }
    // Pairs of products may leave 16 bits (255 * 127 * 2 does): even and odd bytes apart, as 16-bit numbers.
    auto shorts = [&](Val a) { return bitcast(a, e.i16()); };
    Val low = shorts(a) & 0xff, high = shrLogical(shorts(a), e.constant(shorts(a).type(), 8));
    Val right16 = shorts(b), even = (right16 << e.constant(right16.type(), 8)) >> e.constant(right16.type(), 8), odd = right16 >> e.constant(right16.type(), 8);
    sum = sum + e.intrinsic("llvm.x86.avx2.pmadd.wd", acc.type(), {low, even});
    return sum + e.intrinsic("llvm.x86.avx2.pmadd.wd", acc.type(), {high, odd});
  }
  for (int64_t byte = 0; byte < 4; ++byte)
    sum = sum + (shrLogical(a, e.constant(a.type(), 8 * byte)) & 0xff) * ((b << (24 - 8 * byte)) >> 24);
  return sum;
}

/// Lanes of a 256-bit register moved by a table that the mask picks a row of: row m holds eight lane numbers.
static Val moveLanes(Val values, Val mask, StringRef name, function_ref<std::array<int32_t, 8>(unsigned mask)> lanesOfMask) {
  Emitter &e = *values.e;
  SmallVector<float> table; // tables are of floats: these are their bits
  for (unsigned bits = 0; bits < 256; ++bits)
    for (int32_t lane : lanesOfMask(bits))
      table.push_back(llvm::bit_cast<float>(lane));
  Val row = convert(maskBits(mask), e.types.getIndexType()) * 8, lanes = bitcast(e.load(e.table(name, table), row, 8), e.i32());
  return e.intrinsic(values.isFloat() ? "llvm.x86.avx2.permps" : "llvm.x86.avx2.permd", values.type(), {values, lanes});
}

/// The lanes that a mask sets, then any.
static Val packLanes(Val values, Val mask) {
  return moveLanes(values, mask, "aligned_pack8", [](unsigned mask) {
    std::array<int32_t, 8> lanes = {};
    for (int32_t lane = 0, next = 0; lane < 8; ++lane)
      if (mask >> lane & 1)
        lanes[next++] = lane;
    return lanes;
  });
}

/// The next lane for each one that a mask sets; any for others.
static Val spreadLanes(Val values, Val mask) {
  return moveLanes(values, mask, "aligned_spread8", [](unsigned mask) {
    std::array<int32_t, 8> lanes = {};
    for (int32_t lane = 0, next = 0; lane < 8; ++lane)
      if (mask >> lane & 1)
        lanes[lane] = next++;
    return lanes;
  });
}

static bool movesLanes(Isa isa, Val values) { return (isa == Isa::AVX2 || isa == Isa::AVXVNNI) && values.lanes() == 8; }

void aligned::compress(Isa isa, Val mask, Val values, Buffer buffer, Val at) {
  Emitter &e = *mask.e;
  auto narrowed = [&](Val a) { return a.element() == buffer.element ? a : convert(a, buffer.element); };
  if (isa == Isa::AVX512 && values.lanes() == 16) { // into a register: the form that stores is slow on some machines
    Val packed = e.intrinsic("llvm.x86.avx512.mask.compress", values.type(), {values, e.constant(values.type(), 0), mask});
    return e.store(narrowed(packed), buffer, at);
  }
  if (movesLanes(isa, values))
    return e.store(narrowed(packLanes(values, mask)), buffer, at);
  // A lane at a time: the next one's place is this one's, or the one behind it.
  Val place = at, one = e.index(1), none = e.index(0), small = narrowed(values);
  for (int64_t i = 0; i < values.lanes(); ++i) {
    e.store(lane(small, i), buffer, place);
    place = place + select(lane(mask, i), one, none);
  }
}

Val aligned::expand(Isa isa, Val mask, Val values, Buffer buffer, Val at) {
  Emitter &e = *mask.e;
  if (isa == Isa::AVX512 && values.lanes() == 16)
    return e.intrinsic("llvm.x86.avx512.mask.expand", values.type(), {e.load(buffer, at, 16), values, mask});
  if (movesLanes(isa, values))
    return select(mask, spreadLanes(e.load(buffer, at, 8), mask), values);
  Val place = at, one = e.index(1), none = e.index(0), result = values;
  for (int64_t i = 0; i < values.lanes(); ++i) {
    Val next = select(lane(mask, i), e.load(buffer, place), lane(values, i));
    result = e.insert(result, next, i);
    place = place + select(lane(mask, i), one, none);
  }
  return result;
}

Val aligned::countOf(Val mask) {
  Emitter &e = *mask.e;
  Val bits = maskBits(mask);
  return convert(e.wrap(math::CtPopOp::create(e.b, bits.value)), e.types.getIndexType());
}

Val aligned::anyOf(Val mask) { return maskBits(mask) != 0; }

Val aligned::exp2OnAVX512(Val a, int64_t degree) {
  Emitter &e = *a.e;
  constexpr int64_t kAllLanes = -1, kCurrentRounding = 4;
  Val whole = e.intrinsic("llvm.roundeven", a.type(), {a});
  return e.intrinsic("llvm.x86.avx512.mask.scalef.ps.512", a.type(),
                     {exp2Polynomial(a - whole, degree), whole, a, e.constant(e.i16(), kAllLanes), e.constant(e.i32(), kCurrentRounding)});
}

Val aligned::lookUp(Isa isa, Buffer table, Val at, int64_t entries, Val indices) {
  Emitter &e = *indices.e;
  if (isa != Isa::AVX512 || indices.lanes() != 16)
    return e.gather(table, at, indices);
  Val low = e.load(table, at, 16);
  if (entries == 16)
    return low.isFloat() ? e.intrinsic("llvm.x86.avx512.permvar.sf.512", low.type(), {low, indices})
                         : e.intrinsic("llvm.x86.avx512.permvar.si.512", low.type(), {low, indices});
  Val high = e.load(table, at + 16, 16);
  return e.intrinsic(low.isFloat() ? "llvm.x86.avx512.vpermi2var.ps.512" : "llvm.x86.avx512.vpermi2var.d.512", low.type(), {low, indices, high});
}
