// See the header for the idea.
#include "Numerics.h"

#include <cmath>

using namespace aligned;

Val aligned::unitScale(Val exponents) {
  Emitter &e = *exponents.e;
  Val wide = exponents.element() == e.i32() ? exponents : zext(exponents, e.i32());
  return bitcast(wide << 23, e.f32()) * kRoom;
}

Val aligned::exponentOf(Val largest) {
  Emitter &e = *largest.e;
  Val biased = shrLogical(bitcast(largest, e.i32()), e.constant(e.i32(), 23));
  return max(biased, 127 - 100) - 14; // all values may be zero, hence a least one
}

Val aligned::remainderOf(Val layers) { return bitcast((layers * -4 + 127) << 23, layers.e->f32()); }

Val aligned::offsetOf(Val layers) { return remainderOf(layers) * 32768.0 - 32768.5; }

Val aligned::dither(Val tokens, int64_t channel) { return convert(((tokens * 2531 + channel % 4 * 1092) & 4095) - 2048, tokens.e->f32()); }

Val aligned::layersFor(Val steps, double unread) {
  Emitter &e = *steps.e;
  Val layers = zext(steps > unread, e.i32());
  for (int64_t layer = 1; layer < kLayers; ++layer)
    layers = layers + zext(steps > std::pow(16.0, layer), e.i32());
  return layers;
}

/// It is the float whose exponent loses all but its last two bits, powers of 16 excluded.
Val aligned::offAfterReading(Val steps) {
  constexpr int64_t kLowest = 0x01ffffff, kEighth = 0x3e000000; // the significand and two bits of the exponent; the float 1/8
  Emitter &e = *steps.e;
  return bitcast(((bitcast(steps * 2, e.i32()) - 1) & kLowest) | kEighth, e.f32()) * 0.5;
}

Val aligned::coarsest(Val budget, llvm::function_ref<Val(Val)> variance) {
  Emitter &e = *budget.e;
  auto precisionOf = [&](Val step) {
    Val within = step & 3, power = bitcast((e.constant(e.i32(), 127 + kStartExponent) - (step >> 2)) << 23, e.f32());
    auto root = [&](int64_t quarters) { return e.constant(e.f32(), std::exp2(-quarters / 4.0)); };
    return power * select(within < 2, select(within == 0, root(0), root(1)), select(within == 2, root(2), root(3)));
  };
  Vals range = e.repeat({e.constant(e.i32(), 0), e.constant(e.i32(), kQuarterOctaves)}, [](Vals s) { return s[0] < s[1]; },
                        [&](Vals s) -> Vals {
                          Val middle = (s[0] + s[1]) >> 1;
                          Val enough = variance(precisionOf(middle)) <= budget;
                          return {select(enough, s[0], middle + 1), select(enough, middle, s[1])};
                        });
  return precisionOf(range[0]);
}

Val aligned::halfExponent(Val x) {
  Val biased = (bitcast(abs(x), x.e->i32()) >> 23) - 127;
  return select(x == 0, x.e->constant(biased.type(), -15), max(biased, -14));
}

Val aligned::tierLayers(Val isLeast, Val isMiddle) {
  mlir::Type type = isLeast.e->i32();
  if (isLeast.lanes())
    type = mlir::VectorType::get(isLeast.lanes(), type);
  auto bits = [&](int64_t count) { return isLeast.e->constant(type, count / 4); };
  return select(isLeast, bits(8), select(isMiddle, bits(12), bits(16)));
}

Val aligned::toWeight(Val x) {
  Val bounded = select(abs(x) <= 2 * kWeightLimit - 1, x, x.e->constant(x.type(), 0));
  return convert(roundEven(bounded), x.e->i32());
}
