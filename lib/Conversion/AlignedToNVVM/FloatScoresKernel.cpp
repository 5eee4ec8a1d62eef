// Scores of float planes, of the open block, and the statistics of each split.
//
// A warp takes a block of 64 tokens and multiplies all of its query rows with it on the tensor cores of floats. How far a channel is read (P1) follows from the queries
// and from the channel's largest key, so that all splits come to the same plan. The scale is taken off the sums.
#include "FloatKernel.h"

using namespace mlir;
using namespace aligned;

namespace {

class FloatScoresKernel : public FloatKernel {
public:
  using FloatKernel::FloatKernel;
  void emit();

private:
  const Type storage = storageOf(shape.key);
  const int64_t parts = queryParts(shape);
  const bool isScaled = areQueriesScaled(shape);
  const int64_t rowsOfWarp = parts * kProductColumns, tableRows = warpsPerBlock * rowsOfWarp;
  const int64_t steps = shape.keyDim % (2 * kProductDepth) == 0 ? 2 : 1; ///< of products' depth whose loads are under way together

  Val queries;             // of this row, as they came
  Shared query;            // in floats of storage [depth][warp of a block][part][own head][t][channels t, t + 4, t + 8, t + 12], two to a word
  Shared layersOf, powers; // layers of each channel, swizzled, but for limits; what query rows are scaled by

  Val queryOf(Val h, Val channel) { return convert(e.loadGlobal(queries, shape.query, h * shape.keyDim + channel), e.f32()); }
  Val queryAt(Val h, Val channel) { return queryOf(h, channel) * argument(Argument::Scale); }
  void prepare();
  Val powerOf(Val h);
  void planKeys();
  Val limited(Val layers, Val block);
  void scoreBlock(Val block);
  void summarise();
};

/// A power of two, that brings the row's largest below 2^15.
Val FloatScoresKernel::powerOf(Val h) {
  Val largest = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals top) -> Vals { return {e.largest(abs(queryOf(h, c)), top[0])}; })[0];
  Val exponent = min(max(shrLogical(bitcast(warpMax(largest), e.i32()), number(23)), 30), 240);
  return bitcast((number(127 + 14 + 127) - exponent) << 23, e.f32());
}

void FloatScoresKernel::prepare() {
  query = shared("query", e.i32(), shape.keyDim / kProductDepth * tableRows * kDepthWords);
  layersOf = shared("layers", e.i32(), shape.keyDim);
  queries = rowOf(Argument::Query, shape.heads * shape.keyDim, shape.query);
  if (isScaled) {
    powers = shared("powers", e.f32(), shape.heads);
    forHeadsOfWarp(shape.heads, [&](Val h) {
      Val power = powerOf(h);
      e.when(lane == 0, [&] { e.store(power, powers, h); });
    });
    e.barrier();
  }
  forThreads(shape.keyDim / kProductDepth * tableRows * kDepthWords, [&](Val i) {
    Val atRow = shrLogical(i, number(llvm::Log2_64(kDepthWords))), row = atRow % tableRows, own = row & (kProductColumns - 1), h = row / rowsOfWarp * ownHeads + own;
    Val c = atRow / tableRows * kProductDepth + swizzled((i & (kDepthWords - 1)) * 2);
    Val word = e.choose((own < ownHeads) & (h < shape.heads), [&]() -> Vals {
      Vals two{queryOf(h, c), queryOf(h, c + 4)};
      if (isScaled)
        for (Val &x : two)
          x = x * e.load(powers, h);
      Vals all = partsOf(parts, storage, two);
      Val word = all[0], part = shrLogical(row % rowsOfWarp, number(llvm::Log2_64(kProductColumns)));
      for (int64_t i = 1; i < parts; ++i)
        word = select(part == i, all[i], word);
      return {word};
    }, [&]() -> Vals { return {number(0)}; })[0];
    e.store(word, query, i);
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
  auto reach = [&](Val h, Val c) { return halfExponent(queryOf(h, c)) + halfExponent(get(key.channelMax, c)); };
  forHeadsOfWarp(padded, [&](Val h) {
    Val top = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {number(-1000)}, [&](Val c, Vals top) -> Vals { return {max(top[0], reach(clamped(h), c))}; })[0];
    top = warpMax(top);
    e.when(lane == 0, [&] { e.store(top, tops, h); });
  });
  e.barrier();
  forThreads(shape.keyDim, [&](Val c) {
    Val layers = e.loop(number(0), number(shape.heads), 1, {number(0)}, [&](Val h, Vals layers) -> Vals {
      Val lag = e.load(tops, h) - reach(h, c);
      return {max(layers[0], wholePlanes(tierLayers(lag >= 8, lag >= 4), key.layers, shape.keyPlanes))};
    })[0];
    e.store(layers, layersOf, swizzled(c));
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
  constexpr int64_t kChannelWords = ALIGNED_BLOCK / kWordValues;
  // The lane's own addresses, and from there numbers that are known: many addresses would be many registers.
  Vals planes = planesOf(key, shape.keyPlanes, block, shape.keyDim);
  for (int64_t plane = 0; plane < shape.keyPlanes.getResident(); ++plane)
    planes[plane] = e.at(planes[plane], e.i32(), t * (shape.keyPlanes.getWidths()[plane] / 4 * kChannelWords) + g);
  Val ownQueries = (sharer() * rowsOfWarp + g) * kDepthWords + t * 2;
  Vals sums = e.loop(number(0), number(shape.keyDim), steps * kProductDepth, Vals(kWordValues * 4, real(0)), [&](Val first, Vals sums) {
    std::vector<Vals> words;
    for (int64_t step = 0; step < steps; ++step) {
      Val layers = e.load(layersOf, first + t * 4 + step * kProductDepth, 4);
      for (int64_t i = 0; i < 4; ++i)
        words.push_back(wordsOf(limited(aligned::lane(layers, i), block), shape.keyPlanes, [&](const LayerPlace &place) {
          Val from = e.at(planes[place.plane], e.i32(), first * (place.planeLayers * kChannelWords));
          return e.loadGlobal(from, e.i32(), number(((step * kProductDepth + i * 4) * place.planeLayers + place.index) * kChannelWords));
        }));
    }
    for (int64_t step = 0; step < steps; ++step) {
      std::vector<Vals> operands = operandsOf(ArrayRef<Vals>(words).slice(step * 4, 4));
      for (int64_t part = 0; part < parts; part += 2) {
        auto rows = [&](int64_t part) {
          return e.load(query, ownQueries + first * (tableRows * kDepthWords / kProductDepth) + (step * tableRows + part * kProductColumns) * kDepthWords, 2);
        };
        Val upper = rows(part), lower = part + 1 < parts ? rows(part + 1) : e.constant(upper.type(), 0);
        Vals left{aligned::lane(upper, 0), aligned::lane(lower, 0), aligned::lane(upper, 1), aligned::lane(lower, 1)};
        for (int64_t token = 0; token < kWordValues; ++token) {
          Val *sum = &sums[token * 4];
          Vals added = e.multiply(storage, left, {operands[token / 2][token % 2], operands[token / 2][2 + token % 2]}, ArrayRef<Val>(sum, 4));
          std::copy(added.begin(), added.end(), sum);
        }
      }
    }
    return sums;
  });

  // The lane has query row g of words 2 t and 2 t + 1.
  Val h = firstHead() + g;
  e.when((g < ownHeads) & (h < shape.heads), [&] {
    Val scale = argument(Argument::Scale);
    if (isScaled) // by the inverse of a power of two
      scale = scale * bitcast(number(254 << 23) - bitcast(e.load(powers, h), e.i32()), e.f32());
    for (int64_t half : {0, 1})
      for (int64_t column : {0, 1}) {
        Vals four;
        for (int64_t i = 0; i < 4; ++i) {
          Val *sum = &sums[(half * 4 + i) * 4];
          four.push_back((parts == 1 ? sum[column] : sum[column] + sum[2 + column]) * scale);
        }
        e.storeGlobal(e.vectorOf(four), scoresOf(h), block * ALIGNED_BLOCK + t * 8 + (half * 32 + column * 4));
      }
  });
  addKeyEscapes([&](Val h, Val channel) { return queryAt(h, channel); }, block, firstHead(), ownHeads);
  finishScores(block, firstHead(), ownHeads);
  e.when(isAsked(Argument::KeyLayers) & (sharer() == 0), [&] {
    Val record = rowOf(Argument::KeyLayers, key.stride * shape.keyDim, e.i8());
    e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, [&](Val c) { e.storeGlobal(convert(limited(e.load(layersOf, swizzled(c)), block), e.i8()), record, block * shape.keyDim + c); });
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
