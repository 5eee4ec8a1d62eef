// See the header for the idea.
#include "PlaneKernel.h"

#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// The caches
//===----------------------------------------------------------------------===//

Val PlaneKernel::tokenCount() {
  key = cacheRow(Slot::Key, shape.keyPlanes, shape.keyDim);
  value = cacheRow(Slot::Value, shape.valuePlanes, shape.valueDim);
  return key.tokens;
}

CacheRow PlaneKernel::cacheRow(Slot slot, PlanesAttr planes, int64_t headDim) {
  Type indexType = e.types.getIndexType();
  Val cache = e.field(arguments, int64_t(slot) * kSlotBytes, e.pointer());
  auto pointer = [&](int64_t offset) { return e.field(cache, offset, e.pointer()); };
  CacheRow view;
  view.tokens = e.field(cache, offsetof(aligned_cache, tokens), indexType);
  view.blocks = (view.tokens + (kBlock - 1)) / index(kBlock);
  Val capacity = e.field(cache, offsetof(aligned_cache, capacity), indexType);
  ArrayRef<int64_t> widths = planes.getWidths();
  for (int64_t plane = 0; plane < planes.getResident(); ++plane) {
    Val base = pointer(offsetof(aligned_cache, plane) + plane * sizeof(void *));
    Val start = e.advance(base, row * capacity * (headDim * widths[plane] / 8));
    for (int64_t layer = 0; layer < widths[plane] / 4; ++layer)
      view.layer[planes.getFirstLayer(plane) + layer] = start;
  }
  view.layers = e.constant(e.i32(), residentLayers(planes));
  view.channelMax = e.buffer(e.advance(pointer(offsetof(aligned_cache, channel_max)), row * (headDim * 4)), e.f32());
  view.aside = pointer(offsetof(aligned_cache, aside));
  view.asideValues = pointer(offsetof(aligned_cache, aside_values));
  view.asides = e.field(cache, offsetof(aligned_cache, asides), indexType);
  return view;
}

//===----------------------------------------------------------------------===//
// Bits
//===----------------------------------------------------------------------===//

Val PlaneKernel::nibbles(Val layer, Val at, int64_t count) {
  Val packed = zext(e.load(e.buffer(layer, e.i8()), at, count), e.i32());
  SmallVector<int64_t> inOrder;
  for (int64_t i = 0; i < 2 * count; ++i)
    inOrder.push_back(i);
  return permute(packed & 15, shrLogical(packed, e.constant(packed.type(), 4)), inOrder);
}

//===----------------------------------------------------------------------===//
// Limits
//===----------------------------------------------------------------------===//

Val PlaneKernel::limitKeys(Val layers, Val block) {
  if (!isLimited(CacheRole::Key))
    return layers;
  Val first = convert(block * kBlock, e.i32()), last = min(first + (kBlock - 1), convert(tokens, e.i32()) - 1);
  auto splat = [&](Val token) { return layers.lanes() ? e.splat(token, layers.lanes()) : token; };
  return policies().limit(layers, CacheRole::Key, key.layers, convert(tokens, e.i32()), splat(first), splat(last));
}

Val PlaneKernel::limitValues(Val layers, Val t) {
  if (!isLimited(CacheRole::Value))
    return layers;
  Val each = tokensFrom(t, kBlock);
  return policies().limit(layers, CacheRole::Value, value.layers, convert(tokens, e.i32()), each, each);
}

//===----------------------------------------------------------------------===//
// The account of what is read
//===----------------------------------------------------------------------===//

void PlaneKernel::allocate() {
  scratch(keyRead, e.i8(), key.blocks * units);
  scratch(valueRead, e.i8(), padded);
}

void PlaneKernel::readNothing() {
  if (!shape.mask)
    return;
  e.loop(index(0), key.blocks * units, units, [&](Val i) { e.store(e.constant(VectorType::get(units, e.i8()), 0), keyRead, i); });
  e.loop(index(0), padded, kBlock, [&](Val t) { e.store(e.constant(VectorType::get(kBlock, e.i8()), 0), valueRead, t); });
}

Val PlaneKernel::layersOf(Val block) {
  SmallVector<int64_t> unitOf;
  for (int64_t c = 0; c < shape.keyDim; ++c)
    unitOf.push_back(c / unitChannels);
  Val layers = zext(e.load(keyRead, block * units, units), e.i32());
  return permute(layers, layers, unitOf);
}

void PlaneKernel::reportReading() {
  auto sum = [&](Buffer layers, Val begin, Val end) {
    return e.loop(begin, end, 1, {e.constant(e.i64(), 0)}, [&](Val at, Vals sum) -> Vals { return {sum[0] + zext(e.load(layers, at), e.i64())}; })[0];
  };
  Type indexType = e.types.getIndexType();
  Val keyBits = e.loop(index(0), key.blocks, 1, {index(0)}, [&](Val block, Vals bits) -> Vals {
    Val here = min(tokens - block * kBlock, index(kBlock));
    return {bits[0] + convert(sum(keyRead, block * units, (block + 1) * units), indexType) * here * (4 * unitChannels)};
  })[0];
  tally(keyBits, convert(sum(valueRead, index(0), tokens), indexType) * (4 * shape.valueDim));
  Val asked = e.wrap(func::CallOp::create(e.b, "aligned_rt_recording", TypeRange(e.i32()), ValueRange()).getResult(0));
  e.when((asked & ALIGNED_RECORD_BITS) != 0, [&] {
    auto inBits = [&](Buffer layers, Val count) { e.loop(index(0), count, 1, [&](Val i) { e.store(e.load(layers, i) << e.constant(e.i8(), 2), layers, i); }); };
    inBits(keyRead, key.blocks * units);
    inBits(valueRead, padded);
    auto asI64 = [&](Val number) { return convert(number, e.i64()).value; };
    func::CallOp::create(e.b, "aligned_rt_bits", TypeRange(),
                         ValueRange{e.constant(e.i32(), shape.attention).value, asI64(row), asI64(index(0)), asI64(tokens), asI64(index(units)),
                                    keyRead.pointer.value, valueRead.pointer.value});
  });
}

//===----------------------------------------------------------------------===//
// Values that are kept aside
//===----------------------------------------------------------------------===//

void PlaneKernel::forAside(const CacheRow &cache, function_ref<void(Val, Buffer)> body) {
  Type indexType = e.types.getIndexType();
  int64_t headDim = &cache == &key ? shape.keyDim : shape.valueDim;
  e.when(cache.asides > 0, [&] {
    e.loop(index(0), cache.asides, 1, [&](Val i) {
      Val entry = e.advance(cache.aside, i * sizeof(aligned_aside));
      e.when(e.field(entry, offsetof(aligned_aside, row), indexType) == row, [&] {
        body(e.field(entry, offsetof(aligned_aside, token), indexType), e.buffer(e.advance(cache.asideValues, i * (headDim * 4)), e.f32()));
      });
    });
  });
}

Val PlaneKernel::largestAside(const CacheRow &cache) {
  int64_t headDim = &cache == &key ? shape.keyDim : shape.valueDim;
  Buffer most = e.local(e.f32(), 1);
  e.store(f32(0), most, index(0));
  forAside(cache, [&](Val, Buffer values) {
    Val magnitude = abs(e.load(values, index(0), headDim));
    Val finite = select(magnitude < INFINITY, magnitude, e.constant(magnitude.type(), 0));
    e.store(larger(reduceMax(finite), e.load(most, index(0))), most, index(0));
  });
  return e.load(most, index(0));
}

void PlaneKernel::scoreAside(Val block) {
  forAside(key, [&](Val t, Buffer values) {
    e.when(t / index(kBlock) == block, [&] {
      forHeads([&](Val h) { e.store(reduceAdd(e.load(w, h * shape.keyDim, shape.keyDim) * e.load(values, index(0), shape.keyDim)), s, h * padded + t); });
    });
  });
}

void PlaneKernel::addAside(function_ref<void()> body) {
  int64_t dim = shape.valueDim;
  forAside(value, [&](Val t, Buffer values) {
    forHeads([&](Val h) {
      auto add = [&] { e.store(e.load(out, h * dim, dim) + e.splat(e.load(p, h * padded + t), dim) * e.load(values, index(0), dim), out, h * dim); };
      if (shape.mask)
        e.when(sees(h, t), add);
      else
        add();
      e.store(f32(0), p, h * padded + t);
    });
  });
  body();
  forAside(value, [&](Val t, Buffer) {
    forHeads([&](Val h) {
      constexpr double kLeast = -3.4028234663852886e38; // a row of -inf must not turn into -inf - -inf
      Val weight = exp(e.load(s, h * padded + t) - max(e.load(rowMax, h), kLeast));
      if (shape.mask)
        weight = select(sees(h, t), weight, f32(0));
      e.store(weight, p, h * padded + t);
    });
  });
}
