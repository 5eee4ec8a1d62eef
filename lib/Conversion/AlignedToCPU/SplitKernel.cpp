// See the header for the idea.
#include "SplitKernel.h"

#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// The caches
//===----------------------------------------------------------------------===//

Val SplitKernel::tokenCount() {
  key = cacheRow(Slot::Key, shape.keySplit, shape.keyDim, shape.key);
  value = cacheRow(Slot::Value, shape.valueSplit, shape.valueDim, shape.value);
  fullTokens = key.blocks * kBlock;
  return key.tokens;
}

CacheRow SplitKernel::cacheRow(Slot slot, SplitAttr split, int64_t headDim, Type element) {
  Type indexType = e.types.getIndexType();
  Val cache = e.field(arguments, int64_t(slot) * kSlotBytes, e.pointer());
  auto pointer = [&](int64_t offset) { return e.field(cache, offset, e.pointer()); };
  CacheRow view;
  view.tokens = e.field(cache, offsetof(aligned_cache, tokens), indexType);
  view.blocks = view.tokens / kBlock;
  view.open = view.tokens % kBlock;
  Val capacity = e.field(cache, offsetof(aligned_cache, capacity), indexType);
  ArrayRef<int64_t> widths = split.getWidths();
  for (int64_t plane = 0; plane < split.getResident(); ++plane) {
    Val base = pointer(offsetof(aligned_cache, plane) + plane * sizeof(void *));
    Val start = e.advance(base, row * capacity * (headDim * widths[plane] / 8));
    for (int64_t layer = 0; layer < widths[plane] / 4; ++layer)
      view.layer[split.getFirstLayer(plane) + layer] = start;
  }
  Val resident = convert(e.field(cache, offsetof(aligned_cache, layers), e.i64()), e.i32());
  view.layers = min(resident, residentLayers(split));
  if (split.getKind() == FormatKind::Fixed && split.getRole() == CacheRole::Value)
    view.channelMean = e.buffer(e.advance(pointer(offsetof(aligned_cache, channel_mean)), row * (headDim * 4)), e.f32());
  if (split.getKind() == FormatKind::Fixed) {
    Val stride = split.getRole() == CacheRole::Key ? capacity / kBlock * headDim : capacity;
    view.exponent = e.buffer(e.advance(pointer(offsetof(aligned_cache, exponent)), row * stride), e.i8());
  }
  view.channelMax = e.buffer(e.advance(pointer(offsetof(aligned_cache, channel_max)), row * (headDim * 4)), e.f32());
  view.openTokens = e.buffer(e.advance(pointer(offsetof(aligned_cache, open)), row * (kBlock * headDim * element.getIntOrFloatBitWidth() / 8)), element);
  view.escape = pointer(offsetof(aligned_cache, escape));
  view.escapes = e.field(cache, offsetof(aligned_cache, escapes), indexType);
  return view;
}

void SplitKernel::scoreOpenBlock() {
  e.when(openSeen > 0, [&] {
    forHeads([&](Val h) { e.store(e.constant(VectorType::get(kBlock, e.f32()), -INFINITY), s, h * padded + fullTokens); });
    scoreDense(key.openTokens, fullTokens, key.open);
    finishScores(key.blocks);
  });
}

//===----------------------------------------------------------------------===//
// Bits
//===----------------------------------------------------------------------===//

Val SplitKernel::nibbles(Val layer, Val at, int64_t count) {
  Val packed = zext(e.load(e.buffer(layer, e.i8()), at, count), e.i32());
  SmallVector<int64_t> inOrder;
  for (int64_t i = 0; i < 2 * count; ++i)
    inOrder.push_back(i);
  return permute(packed & 15, shrLogical(packed, e.constant(packed.type(), 4)), inOrder);
}

//===----------------------------------------------------------------------===//
// Limits
//===----------------------------------------------------------------------===//

Val SplitKernel::limitKeys(Val layers, Val block) {
  if (!isLimited(CacheRole::Key))
    return layers;
  Val first = convert(block * kBlock, e.i32()), last = first + (kBlock - 1);
  auto splat = [&](Val token) { return layers.lanes() ? e.splat(token, layers.lanes()) : token; };
  return policies().limit(layers, CacheRole::Key, key.layers, convert(tokens, e.i32()), splat(first), splat(last));
}

Val SplitKernel::limitValues(Val layers, Val t) {
  if (!isLimited(CacheRole::Value))
    return layers;
  Val each = tokensFrom(t, kBlock);
  return policies().limit(layers, CacheRole::Value, value.layers, convert(tokens, e.i32()), each, each);
}

//===----------------------------------------------------------------------===//
// The account of what is read
//===----------------------------------------------------------------------===//

void SplitKernel::allocate() {
  openSeen = key.open;
  if (shape.mask)
    openSeen = select(isBlockVisible(key.blocks, newest, shape), key.open, index(0));
  scratch(keyRead, e.i8(), key.blocks * units);
  scratch(valueRead, e.i8(), padded);
}

void SplitKernel::readNothing() {
  if (!shape.mask)
    return;
  e.loop(index(0), key.blocks * units, units, [&](Val i) { e.store(e.constant(VectorType::get(units, e.i8()), 0), keyRead, i); });
  e.loop(index(0), fullTokens, kBlock, [&](Val t) { e.store(e.constant(VectorType::get(kBlock, e.i8()), 0), valueRead, t); });
}

Val SplitKernel::layersOf(Val block) {
  SmallVector<int64_t> unitOf;
  for (int64_t c = 0; c < shape.keyDim; ++c)
    unitOf.push_back(c / unitChannels);
  Val layers = zext(e.load(keyRead, block * units, units), e.i32());
  return permute(layers, layers, unitOf);
}

void SplitKernel::reportReading() {
  auto sum = [&](Buffer layers, Val count, int64_t width) {
    Val sums = e.loop(index(0), count, width, {e.constant(VectorType::get(width, e.i32()), 0)}, [&](Val at, Vals sums) -> Vals {
      return {sums[0] + zext(e.load(layers, at, width), e.i32())};
    })[0];
    return convert(convert(reduceAdd(sums), e.i64()), e.types.getIndexType());
  };
  Val keyBits = sum(keyRead, key.blocks * units, units) * (4 * kBlock * unitChannels) + openSeen * (shape.keyDim * shape.key.getIntOrFloatBitWidth());
  Val valueBits = sum(valueRead, fullTokens, kBlock) * (4 * shape.valueDim) + openSeen * (shape.valueDim * shape.value.getIntOrFloatBitWidth());
  if (shape.keySplit.getKind() == FormatKind::Fixed) // a byte for each exponent
    keyBits = keyBits + countBlocks(key.blocks) * (shape.keyDim * 8);
  if (shape.valueSplit.getKind() == FormatKind::Fixed)
    valueBits = valueBits + countBlocks(key.blocks) * (kBlock * 8);
  tally(keyBits, valueBits);
  auto asI64 = [&](Val number) { return convert(number, e.i64()).value; };
  func::CallOp::create(e.b, "aligned_rt_plan", TypeRange(),
                       ValueRange{e.constant(e.i32(), shape.site).value, asI64(row), asI64(key.blocks), asI64(index(units)), keyRead.pointer.value,
                                  valueRead.pointer.value});
}

//===----------------------------------------------------------------------===//
// Values that are kept aside
//===----------------------------------------------------------------------===//

void SplitKernel::forEscapes(const CacheRow &cache, function_ref<void(Val, Val, Val)> body) {
  Type indexType = e.types.getIndexType();
  e.when(cache.escapes > 0, [&] {
    e.loop(index(0), cache.escapes, 1, [&](Val i) {
      Val entry = e.advance(cache.escape, i * sizeof(aligned_escape));
      e.when(e.field(entry, offsetof(aligned_escape, row), indexType) == row, [&] {
        body(e.field(entry, offsetof(aligned_escape, token), indexType), convert(e.field(entry, offsetof(aligned_escape, channel), e.i32()), indexType),
             e.field(entry, offsetof(aligned_escape, value), e.f32()));
      });
    });
  });
}

void SplitKernel::addKeyEscapes(Val block) {
  forEscapes(key, [&](Val t, Val channel, Val number) {
    e.when(t / kBlock == block, [&] {
      forHeads([&](Val h) {
        Val at = h * padded + t;
        e.store(e.load(s, at) + e.load(w, h * shape.keyDim + channel) * number, s, at);
      });
    });
  });
}

void SplitKernel::addValueEscapes() {
  forEscapes(value, [&](Val t, Val channel, Val number) {
    forHeads([&](Val h) {
      Val at = h * shape.valueDim + channel;
      auto add = [&] { e.store(e.load(out, at) + e.load(p, h * padded + t) * number, out, at); };
      if (shape.mask)
        return e.when(sees(h, t), add);
      add();
    });
  });
}
