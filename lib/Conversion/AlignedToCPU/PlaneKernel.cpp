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
  view.tiles = (view.tokens + (kTile - 1)) / index(kTile);
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
  view.aside = AsideTokens(cache, row, headDim);
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

Val PlaneKernel::limitKeys(Val layers, Val tile) {
  if (!isLimited(CacheRole::Key))
    return layers;
  Val first = convert(tile * kTile, e.i32()), last = min(first + (kTile - 1), convert(tokens, e.i32()) - 1);
  auto splat = [&](Val token) { return layers.lanes() ? e.splat(token, layers.lanes()) : token; };
  return policies().limit(layers, CacheRole::Key, key.layers, convert(tokens, e.i32()), splat(first), splat(last));
}

Val PlaneKernel::limitValues(Val layers, Val t) {
  if (!isLimited(CacheRole::Value))
    return layers;
  Val each = tokensFrom(t, kTile);
  return policies().limit(layers, CacheRole::Value, value.layers, convert(tokens, e.i32()), each, each);
}

//===----------------------------------------------------------------------===//
// The account of what is read
//===----------------------------------------------------------------------===//

void PlaneKernel::allocate() {
  scratch(keyRead, e.i8(), key.tiles * units);
  scratch(valueRead, e.i8(), padded);
}

void PlaneKernel::prepareCertificate() {
  largestKeyAside = key.aside.largest();
  largestValue = larger(planeValueMax(), value.aside.largest());
}

void PlaneKernel::readNothing() {
  if (!shape.mask)
    return;
  e.loop(index(0), key.tiles * units, units, [&](Val i) { e.store(e.constant(VectorType::get(units, e.i8()), 0), keyRead, i); });
  e.loop(index(0), padded, kTile, [&](Val t) { e.store(e.constant(VectorType::get(kTile, e.i8()), 0), valueRead, t); });
}

Val PlaneKernel::layersOf(Val tile) {
  SmallVector<int64_t> unitOf;
  for (int64_t c = 0; c < shape.keyDim; ++c)
    unitOf.push_back(c / unitChannels);
  Val layers = zext(e.load(keyRead, tile * units, units), e.i32());
  return permute(layers, layers, unitOf);
}

void PlaneKernel::reportReading() {
  auto sum = [&](Buffer layers, Val begin, Val end) {
    return e.loop(begin, end, 1, {e.constant(e.i64(), 0)}, [&](Val at, Vals sum) -> Vals { return {sum[0] + zext(e.load(layers, at), e.i64())}; })[0];
  };
  Type indexType = e.types.getIndexType();
  Val keyBits = e.loop(index(0), key.tiles, 1, {index(0)}, [&](Val tile, Vals bits) -> Vals {
    Val here = min(tokens - tile * kTile, index(kTile));
    return {bits[0] + convert(sum(keyRead, tile * units, (tile + 1) * units), indexType) * here * (4 * unitChannels)};
  })[0];
  tally(keyBits, convert(sum(valueRead, index(0), tokens), indexType) * (4 * shape.valueDim));
  Val asked = e.wrap(func::CallOp::create(e.b, "aligned_rt_recording", TypeRange(e.i32()), ValueRange()).getResult(0));
  e.when((asked & ALIGNED_RECORD_BITS) != 0, [&] {
    auto inBits = [&](Buffer layers, Val count) { e.loop(index(0), count, 1, [&](Val i) { e.store(e.load(layers, i) << e.constant(e.i8(), 2), layers, i); }); };
    inBits(keyRead, key.tiles * units);
    inBits(valueRead, padded);
    auto asI64 = [&](Val number) { return convert(number, e.i64()).value; };
    func::CallOp::create(e.b, "aligned_rt_bits", TypeRange(),
                         ValueRange{attention(), asI64(row), asI64(index(0)), asI64(tokens), asI64(index(units)),
                                    keyRead.pointer.value, valueRead.pointer.value});
  });
}

//===----------------------------------------------------------------------===//
// Values that are kept aside
//===----------------------------------------------------------------------===//

void PlaneKernel::scoreAside(Val tile) {
  key.aside.forEach([&](Val t, Buffer values) {
    e.when(t / index(kTile) == tile, [&] {
      forHeads([&](Val h) { e.store(reduceAdd(e.load(w, h * shape.keyDim, shape.keyDim) * e.load(values, index(0), shape.keyDim)), s, h * padded + t); });
    });
  });
}

void PlaneKernel::addAside(function_ref<void()> body) {
  int64_t dim = shape.valueDim;
  value.aside.forEach([&](Val t, Buffer values) {
    forHeads([&](Val h) {
      auto add = [&] { e.store(e.load(out, h * dim, dim) + e.splat(e.load(p, h * padded + t), dim) * e.load(values, index(0), dim), out, h * dim); };
      if (mayHide())
        e.when(takesPart(h, t), add);
      else
        add();
      e.store(f32(0), p, h * padded + t);
    });
  });
  body();
  value.aside.forEach([&](Val t, Buffer) {
    forHeads([&](Val h) {
      constexpr double kLeast = -3.4028234663852886e38; // a row of -inf must not turn into -inf - -inf
      Val weight = exp(e.load(s, h * padded + t) - max(e.load(rowMax, h), kLeast));
      if (mayHide())
        weight = select(takesPart(h, t), weight, f32(0));
      e.store(weight, p, h * padded + t);
    });
  });
}
