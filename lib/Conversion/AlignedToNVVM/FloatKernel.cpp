// See the header for the idea.
#include "FloatKernel.h"

using namespace mlir;
using namespace aligned;

Vals FloatKernel::wordsOf(Val layers, PlanesAttr split, function_ref<Val(const LayerPlace &)> load) {
  Vals words;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    LayerPlace place = placeOf(split, layer);
    if (place.plane == 0) {
      words.push_back(load(place));
      continue;
    }
    Val word = select(layers == layer, number(static_cast<int32_t>(0x88888888)), number(0)); // the most significant missing bit, if it is in this layer
    if (words[0].lanes())
      word = e.splat(word, words[0].lanes());
    if (place.plane < split.getResident()) // nothing but a load in the branch, so that it becomes a predicate
      word = e.choose(layers > layer, [&]() -> Vals { return {load(place)}; }, [&]() -> Vals { return {word}; })[0];
    words.push_back(word);
  }
  return words;
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
  Vals parts;
  while (--count) {
    Vals upper;
    for (Val &x : two) {
      upper.push_back(bitcast(bitcast(x, e.i32()) & (storage.isBF16() ? -0x10000 : -0x2000), e.f32()));
      x = x - upper.back();
    }
    parts.push_back(e.pack(storage, upper[0], upper[1]));
  }
  parts.push_back(e.pack(storage, two[0], two[1]));
  return parts;
}

Vals FloatKernel::planesOf(const CacheView &cache, PlanesAttr split, Val block, int64_t headDim) {
  Val where = physical(cache, block);
  Vals planes;
  for (int64_t plane = 0; plane < split.getResident(); ++plane)
    planes.push_back(blockOf(cache.plane[plane], where, headDim * (ALIGNED_BLOCK / 8) * split.getWidths()[plane]));
  return planes;
}
