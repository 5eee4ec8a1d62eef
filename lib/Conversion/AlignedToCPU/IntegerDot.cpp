// See the header for the idea.
#include "IntegerDot.h"

using namespace mlir;
using namespace aligned;

Val aligned::dot4(Isa isa, Val acc, Val nibbles, Val weights) {
  Emitter &e = *acc.e;
  switch (isa) {
  case Isa::AVX512:
    if (acc.lanes() == 16)
      return e.intrinsic("llvm.x86.avx512.vpdpbusd.512", acc.type(), {acc, bitcast(nibbles, e.i8()), bitcast(weights, e.i8())});
    if (acc.lanes() == 8)
      return e.intrinsic("llvm.x86.avx512.vpdpbusd.256", acc.type(), {acc, bitcast(nibbles, e.i8()), bitcast(weights, e.i8())});
    break;
  case Isa::AVX2:
    if (acc.lanes() == 8) { // 15 * 128 * 2 fits 16 bits: nothing saturates
      Type pairs = VectorType::get(16, e.i16());
      Val products = e.intrinsic("llvm.x86.avx2.pmadd.ub.sw", pairs, {bitcast(nibbles, e.i8()), bitcast(weights, e.i8())});
      return acc + e.intrinsic("llvm.x86.avx2.pmadd.wd", acc.type(), {products, e.constant(pairs, 1)});
    }
    break;
  case Isa::Portable:
    break;
  }
  Val sum = acc;
  for (int64_t byte = 0; byte < 4; ++byte)
    sum = sum + ((shrLogical(nibbles, e.constant(nibbles.type(), 8 * byte)) & 15) * ((weights << (24 - 8 * byte)) >> 24));
  return sum;
}

Val aligned::digit(Val weights, int64_t position) {
  // Balanced digits: what a digit leaves over is divisible by 256.
  Val rest = weights;
  for (int64_t i = 0; i < position; ++i)
    rest = (rest - ((rest << 24) >> 24)) >> 8;
  return convert(rest, weights.e->i8());
}

Vals DotColumn::zero(Emitter &e) const { return Vals(heads * 2 * words / lanes, e.constant(VectorType::get(lanes, e.i32()), 0)); }

Vals DotColumn::add(Emitter &e, Vals sums, function_ref<Val(int64_t)> unit, function_ref<Val(int64_t)> weight) const {
  Vals low, high;
  for (int64_t vector = 0; vector < words / lanes; ++vector) {
    Val word = unit(vector);
    low.push_back(word & 0x0f0f0f0f);
    high.push_back(shrLogical(word, e.constant(word.type(), 4)) & 0x0f0f0f0f);
  }
  for (int64_t head = 0; head < heads; ++head) {
    Val weights = e.splat(weight(head), lanes);
    for (int64_t vector = 0; vector < words / lanes; ++vector) {
      Val &lowSum = sums[at(head, false, vector)], &highSum = sums[at(head, true, vector)];
      lowSum = dot4(isa, lowSum, low[vector], weights);
      highSum = dot4(isa, highSum, high[vector], weights);
    }
  }
  return sums;
}
