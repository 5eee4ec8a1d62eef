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

/// From the exponent of the float just below, so that a power of 16 asks for no more than it needs.
Val aligned::layersFor(Val steps, double unread) {
  Emitter &e = *steps.e;
  Val octave = (bitcast(steps, e.i32()) - 1) >> 23; // 127 above 1
  Val layers = min(max((octave - (127 - 4)) >> 2, 0), kLayers);
  return unread == 1 ? layers : max(layers, zext(steps > unread, e.i32()));
}

/// It is the float whose exponent loses all but its last two bits, powers of 16 excluded.
Val aligned::offAfterReading(Val steps) {
  constexpr int64_t kLowest = 0x01ffffff, kEighth = 0x3e000000; // the significand and two bits of the exponent; the float 1/8
  Emitter &e = *steps.e;
  return bitcast(((bitcast(steps * 2, e.i32()) - 1) & kLowest) | kEighth, e.f32()) * 0.5;
}

Val aligned::coarsest(Val budget, llvm::function_ref<Val(Val)> variance) {
  return coarsest(budget, 1, [&](Vals precisions) -> Vals { return {variance(precisions[0])}; });
}

Val aligned::coarsest(Val budget, int64_t atOnce, llvm::function_ref<Vals(Vals)> variances) {
  Emitter &e = *budget.e;
  auto precisionOf = [&](Val step) {
    Val within = step & 3, power = bitcast((e.constant(e.i32(), 127 + kStartExponent) - (step >> 2)) << 23, e.f32());
    auto root = [&](int64_t quarters) { return e.constant(e.f32(), std::exp2(-quarters / 4.0)); };
    return power * select(within < 2, select(within == 0, root(0), root(1)), select(within == 2, root(2), root(3)));
  };
  Vals range = e.repeat({e.constant(e.i32(), 0), e.constant(e.i32(), kQuarterOctaves)}, [](Vals s) { return s[0] < s[1]; },
                        [&](Vals s) -> Vals {
                          Val low = s[0], high = s[1];
                          Vals steps, precisions;
                          for (int64_t i = 1; i <= atOnce; ++i) {
                            steps.push_back(s[0] + (s[1] - s[0]) * i / (atOnce + 1));
                            precisions.push_back(precisionOf(steps.back()));
                          }
                          Vals found = variances(precisions);
                          for (int64_t i = 0; i < atOnce; ++i) {
                            Val enough = found[i] <= budget;
                            low = select(enough, low, max(low, steps[i] + 1));
                            high = select(enough, min(high, steps[i]), high);
                          }
                          return {low, high};
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
