// See the header for the idea.
#include "FloatKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

using namespace mlir;
using namespace aligned;

Vals FloatKernel::wordsOf(Val layers, SplitAttr split, function_ref<Val(const LayerPlace &)> load) {
  Vals words;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    LayerPlace place = placeOf(split, layer);
    if (place.plane == 0) {
      words.push_back(load(place));
      continue;
    }
    Val midpoint = select(layers == layer, number(static_cast<int32_t>(0x88888888)), number(0)); // the most significant missing bit, if it is in this layer
    if (place.plane < split.getResident()) // nothing but a load in the branch, so that it becomes a predicate
      midpoint = midpoint | e.choose(layers > layer, [&]() -> Vals { return {load(place)}; }, [&]() -> Vals { return {number(0)}; })[0];
    words.push_back(midpoint);
  }
  return words;
}

Vals FloatKernel::valuesOf(const Vals &words, Type element) {
  Vals values;
  auto upper = bytesOf(words[0], words[1]), lower = bytesOf(words[2], words[3]);
  for (auto [high, low] : {std::pair(upper.first, lower.first), std::pair(upper.second, lower.second)})
    for (std::array<int, 4> selectors : {std::array{0, 4, 1, 5}, std::array{2, 6, 3, 7}}) {
      Val two = e.permuteBytes(low, high, selectors);
      if (element.isBF16()) {
        values.push_back(bitcast(two << 16, e.f32()));
        values.push_back(bitcast(two & static_cast<int32_t>(0xffff0000), e.f32()));
      } else {
        Val halves = convert(e.wrap(LLVM::BitcastOp::create(e.b, VectorType::get(2, e.types.getF16Type()), two.value)), e.f32());
        values.push_back(aligned::lane(halves, 0));
        values.push_back(aligned::lane(halves, 1));
      }
    }
  return values;
}

Vals FloatKernel::planesOf(const CacheView &cache, SplitAttr split, Val block, int64_t headDim) {
  Val where = physical(cache, block);
  Vals planes;
  for (int64_t plane = 0; plane < split.getResident(); ++plane)
    planes.push_back(blockOf(cache.plane[plane], where, headDim * (ALIGNED_BLOCK / 8) * split.getWidths()[plane]));
  return planes;
}

Vals FloatKernel::rowWords(Val layers, ArrayRef<Val> planes, Val within) {
  return wordsOf(layers, shape.valueSplit, [&](const LayerPlace &place) {
    return e.loadGlobal(planes[place.plane], e.i32(), (within * place.planeLayers + place.index) * words + wordInRow());
  });
}

Vals FloatKernel::ownWeights(Shared table, Val first) {
  Vals weights;
  for (int64_t i = 0; i < ownHeads; i += headVector) {
    Val some = e.load(table, first + i, headVector == 1 ? 0 : headVector);
    for (int64_t j = 0; j < headVector; ++j)
      weights.push_back(headVector == 1 ? some : aligned::lane(some, j));
  }
  return weights;
}

void FloatKernel::add(Vals &sums, const Vals &weights, const Vals &values) {
  for (int64_t h = 0; h < ownHeads; ++h)
    for (int64_t i = 0; i < kWordValues; ++i)
      sums[h * kWordValues + i] = fma(weights[h], values[i], sums[h * kWordValues + i]);
}
