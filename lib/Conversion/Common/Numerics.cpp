// See the header for the idea.
#include "Numerics.h"

using namespace aligned;

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
