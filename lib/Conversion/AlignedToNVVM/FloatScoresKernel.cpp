// Scores of float planes, of the open block, and the statistics of each split.
//
// A warp takes a block of 64 tokens, four channels at a time: eight lanes for each, with a word each. How far a channel is read (P1) follows from the queries and from
// the channel's largest key, so that all splits come to the same plan. In the end the four groups of lanes add what they have, and each keeps a quarter of the tokens.
#include "FloatKernel.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kChannels = 4, kLanesPerChannel = GpuEmitter::kWarp / kChannels; // that a warp reads at once, and lanes for each

class FloatScoresKernel : public FloatKernel {
public:
  using FloatKernel::FloatKernel;
  void emit();

private:
  const int64_t steps = shape.keyDim % (8 * kChannels) == 0 && ownHeads <= 4 ? 8 : 4; ///< whose loads are under way together
  const int64_t columns = warpsPerBlock * headRoom;

  Shared query, layersOf; // scale * q [channel][warp of a block][own head]; layers of each channel, but for limits

  Val queryAt(Val h, Val channel) { return e.load(query, channel * columns + h / ownHeads * headRoom + h % ownHeads); }
  void prepare();
  void planKeys();
  Val limited(Val layers, Val block);
  void scoreBlock(Val block);
  void summarise();
};

void FloatScoresKernel::prepare() {
  query = shared("query", e.f32(), shape.keyDim * columns);
  layersOf = shared("layers", e.i32(), shape.keyDim);
  Val rows = rowOf(Argument::Query, shape.heads * shape.keyDim, shape.query), scale = argument(Argument::Scale);
  forThreads(columns * shape.keyDim, [&](Val i) {
    Val c = i % shape.keyDim, at = i / shape.keyDim, own = at % headRoom, h = at / headRoom * ownHeads + own;
    Val x = e.choose((own < ownHeads) & (h < shape.heads), [&]() -> Vals { return {convert(e.loadGlobal(rows, shape.query, h * shape.keyDim + c), e.f32()) * scale}; },
                     [&]() -> Vals { return {real(0)}; })[0];
    e.store(x, query, c * columns + at);
  });
  planKeys();
  e.barrier();
}

/// The rule compares exponents of q itself; the scale shifts all of a row's by as much.
void FloatScoresKernel::planKeys() {
  if (shape.exact())
    return forThreads(shape.keyDim, [&](Val c) { e.store(key.layers, layersOf, c); });
  int64_t padded = llvm::alignTo(shape.heads, 4); // they are loaded four at a time
  Shared tops = shared("tops", e.i32(), padded);
  Val rows = rowOf(Argument::Query, shape.heads * shape.keyDim, shape.query);
  auto reach = [&](Val h, Val c) { return halfExponent(convert(e.loadGlobal(rows, shape.query, h * shape.keyDim + c), e.f32())) + halfExponent(get(key.channelMax, c)); };
  forHeadsOfWarp(padded, [&](Val h) {
    Val top = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {number(-1000)}, [&](Val c, Vals top) -> Vals { return {max(top[0], reach(clamped(h), c))}; })[0];
    top = warpMax(top);
    e.when(lane == 0, [&] { e.store(top, tops, h); });
  });
  e.barrier();
  forThreads(shape.keyDim, [&](Val c) {
    Val layers = e.loop(number(0), number(shape.heads), 1, {number(0)}, [&](Val h, Vals layers) -> Vals {
      Val lag = e.load(tops, h) - reach(h, c);
      return {max(layers[0], wholePlanes(tierLayers(lag >= 8, lag >= 4), key.layers, shape.keySplit))};
    })[0];
    e.store(layers, layersOf, c);
  });
}

/// What limits make of the layers of a block (P7).
Val FloatScoresKernel::limited(Val layers, Val block) {
  if (!policies.isLimited(CacheRole::Key))
    return layers;
  Val first = block * ALIGNED_BLOCK;
  return policies.limit(layers, CacheRole::Key, key.layers, key.tokens, first, first + (ALIGNED_BLOCK - 1));
}

void FloatScoresKernel::scoreBlock(Val block) {
  Vals planes = planesOf(key, shape.keySplit, block, shape.keyDim);
  Val group = shrLogical(lane, number(llvm::Log2_64(kLanesPerChannel))), word = lane & (kLanesPerChannel - 1);
  Vals sums = e.loop(number(0), number(shape.keyDim), steps * kChannels, Vals(ownHeads * kWordValues, real(0)), [&](Val first, Vals sums) {
    std::vector<Vals> words;
    for (int64_t step = 0; step < steps; ++step) {
      Val c = first + group + step * kChannels;
      words.push_back(wordsOf(limited(e.load(layersOf, c), block), shape.keySplit, [&](const LayerPlace &place) {
        return e.loadGlobal(planes[place.plane], e.i32(), (c * place.planeLayers + place.index) * kLanesPerChannel + word);
      }));
    }
    for (int64_t step = 0; step < steps; ++step)
      add(sums, ownWeights(query, (first + group + step * kChannels) * columns + sharer() * headRoom), valuesOf(words[step], shape.key));
    return sums;
  });

  // Halves of the groups exchange halves of the block, then neighbours pairs of tokens.
  Val later = (group & 2) == 2, odd = (group & 1) == 1;
  Val token = block * ALIGNED_BLOCK + select(later, number(32), number(0)) + word * 4 + select(odd, number(2), number(0));
  for (int64_t i = 0; i < ownHeads; ++i) {
    Vals s(ArrayRef<Val>(sums).slice(i * kWordValues, kWordValues));
    for (auto [distance, second] : {std::pair(2 * kLanesPerChannel, later), std::pair(kLanesPerChannel, odd)}) {
      size_t half = s.size() / 2;
      Vals kept;
      for (size_t j = 0; j < half; ++j)
        kept.push_back(select(second, s[half + j], s[j]) + e.shuffleXor(select(second, s[j], s[half + j]), distance));
      s = kept;
    }
    Val h = firstHead() + i;
    e.when(h < shape.heads, [&] { e.storeGlobal(e.vectorOf(s), scoresOf(h), token); });
  }
  addKeyEscapes([&](Val h, Val channel) { return queryAt(h, channel); }, block, firstHead(), ownHeads);
  finishScores(block, firstHead(), ownHeads);
  e.when(isAsked(Argument::KeyLayers) & (sharer() == 0), [&] {
    Val record = rowOf(Argument::KeyLayers, key.stride * shape.keyDim, e.i8());
    e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, [&](Val c) { e.storeGlobal(convert(limited(e.load(layersOf, c), block), e.i8()), record, block * shape.keyDim + c); });
  });
}

/// A warp for each query row; a lane takes four tokens at a time, half of the lanes a block.
void FloatScoresKernel::summarise() {
  e.barrier(); // the scores of all warps are there
  constexpr int64_t kLaneTokens = 4, kLanesPerBlock = ALIGNED_BLOCK / kLaneTokens;
  auto [begin, end] = stretch();
  Val firstBlock = begin, endBlock = end, last = select(isLastSplit(), key.tokens, number(0)), quad = lane & (kLanesPerBlock - 1);
  Type four = VectorType::get(kLaneTokens, e.f32());
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val own = scoresOf(h), tops = ofHead(rowOf(Argument::Blocks, key.stride * shape.heads), h, key.stride);
    Vals s{real(-INFINITY), poisonOf([&](Val h, Val channel) { return queryAt(h, channel); }, h)};
    s = e.loop(firstBlock, endBlock, GpuEmitter::kWarp / kLanesPerBlock, s, [&](Val firstOfPair, Vals s) -> Vals {
      Val index = firstOfPair + shrLogical(lane, number(llvm::Log2_64(kLanesPerBlock))), there = index < endBlock, block = blockAt(index);
      Val loaded = e.choose(there, [&]() -> Vals { return {e.loadGlobal(own, four, block * ALIGNED_BLOCK + quad * kLaneTokens, /*constant=*/false)}; },
                            [&]() -> Vals { return {e.constant(four, -INFINITY)}; })[0];
      Vals scored;
      Val top = real(-INFINITY);
      for (int64_t j = 0; j < kLaneTokens; ++j) {
        scored.push_back(aligned::lane(loaded, j));
        top = e.largest(scored[j], top);
      }
      if (!shape.exact()) {
        top = e.warpMax(top, {8, 4, 2, 1});
        e.when(there & (quad == 0), [&] { e.storeGlobal(top, tops, block); });
      }
      return addScores(s[0], s[1], scored);
    });
    s = e.loop(key.blocks * ALIGNED_BLOCK + lane, last, GpuEmitter::kWarp, s, [&](Val token, Vals s) { return addScores(s[0], s[1], {get(own, token)}); });
    storeStatistics(h, s[0], s[1], real(kLowest), real(0));
  });
}

void FloatScoresKernel::emit() {
  prepare();
  forBlocksOfWarp([&](Val block, Val) { scoreBlock(block); });
  e.when(isLastSplit(), [&] { scoreOpen([&](Val h, Val channel) { return queryAt(h, channel); }); });
  summarise();
  recordUnseen(shape.keyDim);
  finish();
}

} // namespace

void aligned::emitFloatScores(ModuleOp program, StringRef name, const DecodeShape &shape) { FloatScoresKernel(program, name, shape).emit(); }
