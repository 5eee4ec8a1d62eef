// Decode attention over `float` caches (S2) under the published rule (P1), or exactly.
//
// A value is an IEEE half or a bfloat16 of which the top 8, 12 or 16 bits are read; missing bits become their midpoint.
//
//   K   a channel by how many powers of two its largest addend q_c * max_t |k_tc| lies below the largest of the dot product:
//       16 bits below 4, 12 bits below 8, else 8
//   V   a row by how many powers of two its probability lies below what shows in the output, judged by the 32 most probable rows:
//       16 bits below 1, 12 bits below 2, else 8
//
// A tier serves all query rows of the kv head (P3): the most any of them asks for. Exponents stop at those of a half, -15 for zero.
#include "PlaneKernel.h"

#include "mlir/Dialect/Math/IR/Math.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kLayerBytes = kTile / 2; // of a channel: a byte holds tokens i and i + 32 of its tile

class FloatKernel : public PlaneKernel {
public:
  FloatKernel(Emitter &e, const KernelShape &shape) : PlaneKernel(e, shape, /*unitChannels=*/1) {}

private:
  Buffer tileTop, probeWeights, probe;

  void allocate() override {
    PlaneKernel::allocate();
    scratch(tileTop, e.f32(), padded / kTile);
    scratch(probeWeights, e.f32(), padded);
    scratch(probe, e.f32(), index(shape.valueDim));
  }

  void scores() override;
  void values() override;
  void planKeys();
  void planValues();
  void scoreTile(Val tile);

  /// The top layers of 16-bit patterns, `layers` of them (a scalar), missing bits at their midpoint, as f32.
  Val read(Val layers, PlanesAttr split, Type element, function_ref<Val(int64_t)> layer);
  Val readRow(Val token, Val layers);
  void addValues();

  // The certificate.
  Val remainderOf(Val layers, Type element);
  Val storageError(Val largest, Type element);
  void boundScores(Val tile) override;
  RowBounds boundValues(Val t) override;
};

Val FloatKernel::read(Val layers, PlanesAttr split, Type element, function_ref<Val(int64_t)> layer) {
  // A chain of planes: each is fetched only if `layers` reaches into it, and stands for its midpoint otherwise.
  int64_t resident = residentLayers(split);
  std::function<Val(int64_t)> from = [&](int64_t plane) -> Val {
    int64_t first = split.getFirstLayer(plane);
    Val bits;
    for (int64_t l = first; l < split.getFirstLayer(plane + 1); ++l) {
      Val nibble = layer(l) << (16 - 4 * (l + 1));
      bits = bits.e ? bits | nibble : nibble;
    }
    int64_t next = split.getFirstLayer(plane + 1);
    if (next == kLayers)
      return bits;
    Val middle = e.constant(bits.type(), 1 << (15 - 4 * next));
    if (next >= resident)
      return bits | middle;
    return bits | e.choose(layers > next, [&]() -> Vals { return {from(plane + 1)}; }, [&]() -> Vals { return {middle}; })[0];
  };
  Val bits = from(0);
  if (element.isBF16())
    return bitcast(bits << 16, e.f32());
  return convert(bitcast(convert(bits, e.i16()), e.types.getF16Type()), e.f32());
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

void FloatKernel::planKeys() {
  int64_t dim = shape.keyDim;
  Val layers = exact ? e.splat(key.layers, dim) : e.constant(VectorType::get(dim, e.i32()), 0);
  if (!exact) {
    Val largest = halfExponent(e.load(key.channelMax, index(0), dim));
    Buffer queries = e.buffer(e.field(arguments, int64_t(Slot::Query) * kSlotBytes, e.pointer()), shape.query);
    layers = e.loop(index(0), index(shape.heads), 1, {layers}, [&](Val h, Vals layers) -> Vals {
      // The rule compares exponents of q itself; the scale shifts all of a row's by as much.
      Val reach = halfExponent(convert(e.load(queries, (row * shape.heads + h) * dim, dim), e.f32())) + largest;
      Val lag = e.splat(reduceMax(reach), dim) - reach;
      return {max(layers[0], wholePlanes(tierLayers(lag >= 8, lag >= 4), key, shape.keyPlanes))};
    })[0];
  }
  forTiles(index(0), key.tiles, [&](Val tile) { e.store(convert(limitKeys(layers, tile), e.i8()), keyRead, tile * dim); });
}

void FloatKernel::scores() {
  readNothing();
  planKeys();
  forTiles(index(0), key.tiles, [&](Val tile) { scoreTile(tile); });
  softmax();
}

void FloatKernel::scoreTile(Val tile) {
  int64_t dim = shape.keyDim;
  forHeadGroups(/*vectorsPerHead=*/kTile / lanes, [&](Val head, int64_t heads) {
    Vals sums(heads, e.constant(VectorType::get(kTile, e.f32()), 0));
    sums = e.loop(index(0), index(dim), 1, sums, [&](Val c, Vals sums) {
      Val k = read(zext(e.load(keyRead, tile * dim + c), e.i32()), shape.keyPlanes, shape.key, [&](int64_t layer) {
        LayerPlace place = placeOf(shape.keyPlanes, layer);
        return nibbles(key.layer[layer], ((tile * dim + c) * place.planeLayers + place.index) * kLayerBytes, kLayerBytes);
      });
      for (int64_t h = 0; h < heads; ++h)
        sums[h] = sums[h] + e.splat(e.load(w, (head + h) * dim + c), kTile) * k;
      return sums;
    });
    for (int64_t h = 0; h < heads; ++h)
      e.store(sums[h], s, (head + h) * padded + tile * kTile);
  });
  scoreAside(tile);
  finishScores(tile);
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

Val FloatKernel::readRow(Val token, Val layers) {
  int64_t half = shape.valueDim / 2;
  return read(layers, shape.valuePlanes, shape.value, [&](int64_t layer) {
    LayerPlace place = placeOf(shape.valuePlanes, layer);
    return nibbles(value.layer[layer], (token * place.planeLayers + place.index) * half, half);
  });
}

void FloatKernel::planValues() {
  int64_t dim = shape.valueDim;
  Val least = e.splat(exact ? convert(value.layers, e.i8()) : e.constant(e.i8(), 0), kTile);
  auto seen = [&](Val layers, Val t) { return shape.mask ? select(areSeen(t), layers, e.constant(layers.type(), 0)) : layers; };
  forTokens(index(0), padded, [&](Val t) { e.store(seen(least, t), valueRead, t); });
  if (exact)
    return;
  Val largest = halfExponent(e.load(value.channelMax, index(0), dim));
  forHeads([&](Val h) {
    // The most probable rows, one after another: the most probable of each tile is remembered, so that only one tile is searched again.
    Val inverse = f32(1) / e.load(rowSum, h);
    if (shape.mask) // no row of a tile that no query sees is one of them
      e.loop(index(0), padded / kTile, 1, [&](Val tile) { e.store(f32(-1), tileTop, tile); });
    forTokens(index(0), padded, [&](Val t) {
      Val weights = e.load(p, h * padded + t, kTile) * e.splat(inverse, kTile);
      e.store(weights, probeWeights, t);
      e.store(reduceMax(weights), tileTop, t / kTile);
    });
    e.store(e.constant(VectorType::get(dim, e.f32()), 0), probe, index(0));
    e.loop(index(0), min(tokens, index(kProbed)), 1, [&](Val) {
      Vals best = e.loop(index(0), padded / kTile, 1, {f32(-1), index(0)}, [&](Val tile, Vals best) -> Vals {
        Val top = e.load(tileTop, tile), better = top > best[0];
        return {select(better, top, best[0]), select(better, tile, best[1])};
      });
      Val start = best[1] * kTile;
      Val weights = e.load(probeWeights, start, kTile);
      Val hits = maskBits(weights == e.splat(best[0], kTile)), found = hits != 0;
      if (mayHide()) // rows that are hidden weigh nothing, and hold anything
        found = found & (best[0] > 0);
      e.when(found, [&] {
        Val bit = convert(e.wrap(math::CountTrailingZerosOp::create(e.b, hits.value)), e.types.getIndexType());
        Val t = start + bit;
        e.store(f32(-1), probeWeights, t);
        e.store(reduceMax(e.load(probeWeights, start, kTile)), tileTop, best[1]);
        Val row = readRow(t, value.layers);
        e.store(e.load(probe, index(0), dim) + e.splat(best[0], dim) * abs(row), probe, index(0));
      });
    });
    Val margin = -reduceMax(largest - halfExponent(e.load(probe, index(0), dim))); // the channel where most shows
    // A row lies margin - log2(p) powers of two below: compare p with powers of two instead of taking logarithms.
    auto power = [&](int64_t below) { return e.splat(bitcast((margin + (127 - below)) << 23, e.f32()), kTile); };
    Val most = power(2), full = power(1);
    forTokens(index(0), padded, [&](Val t) {
      Val weights = max(e.load(p, h * padded + t, kTile) * e.splat(inverse, kTile), std::ldexp(1.0, -24));
      Val layers = wholePlanes(tierLayers(weights <= most, weights <= full), value, shape.valuePlanes);
      e.store(seen(max(e.load(valueRead, t, kTile), convert(layers, e.i8())), t), valueRead, t);
    });
  });
  if (isLimited(CacheRole::Value))
    forTokens(index(0), padded, [&](Val t) {
      e.store(seen(convert(limitValues(zext(e.load(valueRead, t, kTile), e.i32()), t), e.i8()), t), valueRead, t);
    });
}

void FloatKernel::values() {
  planValues();
  addAside([&] { addValues(); });
}

/// out[h, :] += p[h, t] v[t, :]. A tile of tokens stays in the nearest cache while each group of query rows passes over it.
void FloatKernel::addValues() {
  const int64_t dim = shape.valueDim;
  forTokens(index(0), tokens, [&](Val tile) {
    forHeadGroups(/*vectorsPerHead=*/dim / lanes, [&](Val head, int64_t heads) {
      Vals sums;
      for (int64_t h = 0; h < heads; ++h)
        sums.push_back(e.load(out, (head + h) * dim, dim));
      sums = e.loop(tile, min(tile + kTile, tokens), 1, sums, [&](Val t, Vals sums) {
        Val row = readRow(t, zext(e.load(valueRead, t), e.i32()));
        for (int64_t h = 0; h < heads; ++h) {
          Val addend = e.splat(e.load(p, (head + h) * padded + t), dim) * row;
          if (mayHide()) // where a value that is not finite is hidden, 0 times that is not 0
            addend = select(takesPart(head + h, t), addend, e.constant(addend.type(), 0));
          sums[h] = sums[h] + addend;
        }
        return sums;
      });
      for (int64_t h = 0; h < heads; ++h)
        e.store(sums[h], out, (head + h) * dim);
    });
  });
}

//===----------------------------------------------------------------------===//
// The certificate
//===----------------------------------------------------------------------===//

/// Half a step of the mantissa bits that `layers` reach, relative to the power of two below; 0 where all of it is read.
Val FloatKernel::remainderOf(Val layers, Type element) {
  int64_t signAndExponent = element.isBF16() ? 9 : 6;
  Val half = bitcast((layers * -4 + (126 + signAndExponent)) << 23, e.f32());
  return select(layers < kLayers, half, e.constant(half.type(), 0));
}

/// What rounding to the 16 bits of storage leaves of magnitudes up to `largest`.
Val FloatKernel::storageError(Val largest, Type element) {
  return element.isF32() ? largest * 0x1p-11 + 0x1p-25 : e.constant(largest.type(), 0);
}

void FloatKernel::boundScores(Val tile) {
  int64_t dim = shape.keyDim;
  auto bound = [&] {
    Val largest = keyChannelMax(), least = e.constant(largest.type(), shape.key.isBF16() ? 0x1p-126 : 0x1p-14); // below it steps stay the same
    Val error = larger(largest, least) * remainderOf(layersOf(tile), shape.key) + storageError(largest, shape.key);
    error = error + larger(largest, e.splat(largestKeyAside, dim)) * ((dim + 4) * 0x1p-24); // channels are added one after another
    forHeads([&](Val h) { e.store(reduceAdd(abs(e.load(w, h * dim, dim)) * error), scoreError, h * tileStride + tile); });
  };
  if (isLimited(CacheRole::Key) || shape.mask) // which may hide the first tile
    return bound();
  e.when(tile == 0, bound); // all tiles are read alike
  e.when(tile > 0, [&] { forHeads([&](Val h) { e.store(e.load(scoreError, h * tileStride), scoreError, h * tileStride + tile); }); });
}

RowKernel::RowBounds FloatKernel::boundValues(Val t) {
  Val largest = e.splat(planeValueMax(), kTile), least = e.constant(largest.type(), shape.value.isBF16() ? 0x1p-126 : 0x1p-14);
  Val layers = zext(e.load(valueRead, t, kTile), e.i32());
  return {e.splat(valueMax(), kTile), larger(largest, least) * remainderOf(layers, shape.value) + storageError(largest, shape.value)};
}

} // namespace

std::unique_ptr<RowKernel> aligned::makeFloatKernel(Emitter &e, const KernelShape &shape) { return std::make_unique<FloatKernel>(e, shape); }
