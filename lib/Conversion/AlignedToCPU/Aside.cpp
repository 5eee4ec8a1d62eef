// See the header.
#include "Aside.h"

#include "aligned/Runtime/Cache.h"

#include <cmath>
#include <cstddef>

using namespace mlir;
using namespace aligned;

AsideTokens::AsideTokens(Val cache, Val row, int64_t headDim) : row(row), headDim(headDim) {
  Emitter &e = *cache.e;
  list = e.field(cache, offsetof(aligned_cache, aside), e.pointer());
  values = e.field(cache, offsetof(aligned_cache, aside_values), e.pointer());
  count = e.field(cache, offsetof(aligned_cache, asides), e.types.getIndexType());
}

void AsideTokens::forEach(function_ref<void(Val, Buffer)> body) const {
  Emitter &e = *row.e;
  Type indexType = e.types.getIndexType();
  e.when(areThere(), [&] {
    e.loop(e.index(0), count, 1, [&](Val i) {
      Val entry = e.advance(list, i * sizeof(aligned_aside));
      e.when(e.field(entry, offsetof(aligned_aside, row), indexType) == row, [&] {
        body(e.field(entry, offsetof(aligned_aside, token), indexType), e.buffer(e.advance(values, i * (headDim * 4)), e.f32()));
      });
    });
  });
}

Val AsideTokens::largest() const {
  Emitter &e = *row.e;
  Buffer most = e.local(e.f32(), 1);
  e.store(e.constant(e.f32(), 0), most, e.index(0));
  forEach([&](Val, Buffer values) {
    Val magnitude = abs(e.load(values, e.index(0), headDim));
    Val finite = select(magnitude < INFINITY, magnitude, e.constant(magnitude.type(), 0));
    e.store(larger(reduceMax(finite), e.load(most, e.index(0))), most, e.index(0));
  });
  return e.load(most, e.index(0));
}
