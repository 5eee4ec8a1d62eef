// See the header for the idea.
#include "FloatKernel.h"

using namespace mlir;
using namespace aligned;

FloatKernel::FloatKernel(ModuleOp program, StringRef name, const DecodeShape &shape, int64_t warps)
    : DecodeKernel(program, name, shape, warps), policies(shape, kvHead) {
  key = floatViewOf(Argument::Key, shape.keyPlanes, shape.keyDim);
  value = floatViewOf(Argument::Value, shape.valuePlanes, shape.valueDim);
}

FloatCache FloatKernel::floatViewOf(Argument which, PlanesAttr planes, int64_t headDim) {
  FloatCache view{viewOf(which, planes), number(residentLayers(planes)), e.at(addressOf(argument(which), offsetof(aligned_cache, channel_max)), e.f32(), wide(row) * headDim)};
  Val resident = small(which, offsetof(aligned_cache, planes));
  for (int64_t plane = planes.getResident() - 1; plane > 0; --plane)
    view.layers = select(resident > plane, view.layers, number(planes.getFirstLayer(plane)));
  return view;
}

void FloatKernel::meetSharers() {
  if (sharers == 1)
    e.warpBarrier();
  else // barrier 0 is that of all threads
    e.barrier(stream() + 1, sharers * GpuEmitter::kWarp);
}

std::pair<Val, Val> FloatKernel::stretch() {
  Val each = (seenTiles + splits - 1) / splits, first = min(split * each, seenTiles);
  return {first, min(first + each, seenTiles)};
}

Val FloatKernel::isOfSplit(Val token) {
  auto [first, end] = stretch();
  Val tile = shrLogical(token, number(6));
  if (!shape.mask)
    return (tile >= first) & (tile < end);
  Val isSink = tile < visible.sinks, index = tile - select(isSink, number(0), visible.begin - visible.sinks);
  return (isSink | ((tile >= visible.begin) & (tile < visible.end))) & (index >= first) & (index < end);
}

Val FloatKernel::queryAt(Val h, Val channel) {
  Val x = convert(e.loadGlobal(ofRow(Argument::Query, shape.query, shape.heads * shape.keyDim), shape.query, h * shape.keyDim + channel), e.f32());
  return fma(x, real(0), x);
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

Vals FloatKernel::planesOf(const FloatCache &cache, PlanesAttr planes, Val tile, int64_t headDim) {
  Val place = placeAt(cache.places, tile);
  Vals starts;
  for (int64_t plane = 0; plane < planes.getResident(); ++plane)
    starts.push_back(tileOf(cache.planes[plane], place, storage::bytesPerTile(planes.getWidths()[plane], headDim)));
  return starts;
}

Vals FloatKernel::wordsOf(Val layers, PlanesAttr planes, function_ref<Val(const LayerPlace &)> load) {
  Vals words;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    LayerPlace place = placeOf(planes, layer);
    if (place.plane == 0) {
      words.push_back(load(place));
      continue;
    }
    Val word = select(layers == layer, number(static_cast<int32_t>(0x88888888)), number(0)); // the most significant missing bit, if it is in this layer
    if (words[0].lanes())
      word = e.splat(word, words[0].lanes());
    if (place.plane < planes.getResident()) // nothing but a load in the branch, so that it becomes a predicate
      word = e.choose(layers > layer, [&]() -> Vals { return {load(place)}; }, [&]() -> Vals { return {word}; })[0];
    words.push_back(word);
  }
  return words;
}

std::pair<Val, Val> FloatKernel::bytesOf(Val upper, Val lower) {
  Val four = number(4);
  return {e.selectBits(0x0f0f0f0f, lower, upper << four), e.selectBits(0xf0f0f0f0, upper, shrLogical(lower, four))};
}

Vals FloatKernel::pairsOf(const Vals &words) {
  Vals pairs;
  auto upper = bytesOf(words[0], words[1]), lower = bytesOf(words[2], words[3]);
  for (auto [high, low] : {std::pair(upper.first, lower.first), std::pair(upper.second, lower.second)})
    for (std::array<int, 4> selectors : {std::array{0, 4, 1, 5}, std::array{2, 6, 3, 7}})
      pairs.push_back(e.permuteBytes(low, high, selectors));
  return pairs;
}

std::vector<Vals> FloatKernel::operandsOf(ArrayRef<Vals> words) {
  std::vector<Vals> operands(kWordValues / 2);
  Val midpoint = number(0x80);
  for (size_t i = 0; i < words.size(); i += 2) {
    auto both = [&](int64_t pair, Val first, Val second, std::array<int, 4> even, std::array<int, 4> odd) {
      operands[pair].append({e.permuteBytes(first, second, even), e.permuteBytes(first, second, odd)});
    };
    if (words[i].size() == 2) {
      auto [first, firstLater] = bytesOf(words[i][0], words[i][1]);
      auto [second, secondLater] = bytesOf(words[i + 1][0], words[i + 1][1]);
      for (int64_t pair = 0; pair < kWordValues / 2; ++pair) {
        std::array<int, 4> bytes = pair % 2 ? std::array{2, 6, 3, 7} : std::array{0, 4, 1, 5};
        both(pair, midpoint, pair < 2 ? e.permuteBytes(first, second, bytes) : e.permuteBytes(firstLater, secondLater, bytes), {0, 4, 0, 5}, {0, 6, 0, 7});
      }
      continue;
    }
    Vals first = pairsOf(words[i]), second = pairsOf(words[i + 1]);
    for (int64_t pair = 0; pair < kWordValues / 2; ++pair)
      both(pair, first[pair], second[pair], {0, 1, 4, 5}, {2, 3, 6, 7});
  }
  return operands;
}

Vals FloatKernel::partsOf(int64_t count, Type storage, Vals two) {
  if (count == 1)
    return {e.pack(storage, two[0], two[1])};
  Vals upper;
  for (Val x : two)
    upper.push_back(bitcast(bitcast(x, e.i32()) & (storage.isBF16() ? -0x10000 : -0x2000), e.f32()));
  return {e.pack(storage, upper[0], upper[1]), e.pack(storage, two[0] - upper[0], two[1] - upper[1])};
}
