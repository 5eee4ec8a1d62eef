// Scores of float planes, and what they add up to in each split.
//
// A warp takes a tile of 64 tokens and multiplies all of its query rows with it on the tensor cores of floats. How far a channel is read (P1) follows from the queries
// and from the channel's largest key, so that all splits come to the same plan. The scale is taken off the sums. Tokens that are kept aside get their scores in the end, from
// their own values.
#include "FloatKernel.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

namespace {

class FloatScoresKernel : public FloatKernel {
public:
  using FloatKernel::FloatKernel;
  void emit();

private:
  const Type storage = storageOf(shape.key);
  const bool isScaled = !storage.isBF16() && !shape.query.isF16(); ///< whether f16 has not the range of the queries, so that a power of two takes each row's there
  const int64_t parts = shape.query == storage || (!storage.isBF16() && shape.query.isBF16()) ? 1 : 2; ///< of a query
  const int64_t rowsOfWarp = parts * kProductColumns, tableRows = sharers * rowsOfWarp;
  const int64_t steps = shape.keyDim % (2 * kProductDepth) == 0 ? 2 : 1; ///< of products' depth whose loads are under way together

  Shared query;            // in floats of storage [depth][warp of a tile][part][own head][t][channels t, t + 4, t + 8, t + 12], two to a word
  Shared layersOf, powers; // layers of each channel, swizzled, but for limits; what query rows are scaled by

  void prepare();
  Val powerOf(Val h);
  void planKeys();
  Val limited(Val layers, Val tile);
  void scoreTile(Val tile);
  void scoreAside();
  void summarise();
  void recordUnseen();
};

/// A power of two, that brings the row's largest below 2^15.
Val FloatScoresKernel::powerOf(Val h) {
  Val largest = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals top) -> Vals { return {e.largest(abs(queryAt(h, c)), top[0])}; })[0];
  Val exponent = min(max(shrLogical(bitcast(warpMax(largest), e.i32()), number(23)), 30), 240);
  return bitcast((number(127 + 14 + 127) - exponent) << 23, e.f32());
}

void FloatScoresKernel::prepare() {
  const int64_t tableWords = shape.keyDim / kProductDepth * tableRows * kDepthWords;
  query = shared("query", e.i32(), tableWords);
  layersOf = shared("layers", e.i32(), shape.keyDim);
  if (isScaled) {
    powers = shared("powers", e.f32(), shape.heads);
    forHeadsOfWarp(shape.heads, [&](Val h) {
      Val power = powerOf(h);
      e.when(lane == 0, [&] { e.store(power, powers, h); });
    });
    e.barrier();
  }
  forThreads(tableWords, [&](Val i) {
    Val atRow = i / kDepthWords, row = atRow % tableRows, own = row % kProductColumns, h = row / rowsOfWarp * ownHeads + own;
    Val c = atRow / tableRows * kProductDepth + swizzled(i % kDepthWords * 2);
    Val word = e.choose((own < ownHeads) & (h < shape.heads), [&]() -> Vals {
      Vals two{queryAt(h, c), queryAt(h, c + 4)};
      if (isScaled)
        for (Val &x : two)
          x = x * e.load(powers, h);
      Vals both = partsOf(parts, storage, two);
      return {parts == 1 ? both[0] : select(row % rowsOfWarp < kProductColumns, both[0], both[1])};
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
  Shared tops = shared("tops", e.i32(), shape.heads);
  auto reach = [&](Val h, Val c) { return halfExponent(queryAt(h, c)) + halfExponent(get(key.channelMax, c)); };
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val top = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {number(-1000)}, [&](Val c, Vals top) -> Vals { return {max(top[0], reach(h, c))}; })[0];
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

/// What limits make of the layers of a tile (P7).
Val FloatScoresKernel::limited(Val layers, Val tile) {
  if (!policies.isLimited(CacheRole::Key))
    return layers;
  Val first = tile * kTile;
  return policies.limit(layers, CacheRole::Key, key.layers, tokens, first, min(first + (kTile - 1), tokens - 1));
}

void FloatScoresKernel::scoreTile(Val tile) {
  constexpr int64_t kChannelWords = kTile / kWordValues;
  // The lane's own addresses, and from there numbers that are known: many addresses would be many registers.
  Vals planes = planesOf(key, shape.keyPlanes, tile, shape.keyDim);
  for (int64_t plane = 0; plane < shape.keyPlanes.getResident(); ++plane)
    planes[plane] = e.at(planes[plane], e.i32(), t * (shape.keyPlanes.getWidths()[plane] / 4 * kChannelWords) + g);
  Val ownQueries = (sharer() * rowsOfWarp + g) * kDepthWords + t * 2;
  Vals sums = e.loop(number(0), number(shape.keyDim), steps * kProductDepth, Vals(kWordValues * 4, real(0)), [&](Val first, Vals sums) {
    std::vector<Vals> words;
    for (int64_t step = 0; step < steps; ++step) {
      Val layers = e.load(layersOf, first + t * 4 + step * kProductDepth, 4);
      for (int64_t i = 0; i < 4; ++i)
        words.push_back(wordsOf(limited(aligned::lane(layers, i), tile), shape.keyPlanes, [&](const LayerPlace &place) {
          Val from = e.at(planes[place.plane], e.i32(), first * (place.planeLayers * kChannelWords));
          return e.loadGlobal(from, e.i32(), number(((step * kProductDepth + i * 4) * place.planeLayers + place.index) * kChannelWords));
        }));
    }
    for (int64_t step = 0; step < steps; ++step) {
      std::vector<Vals> operands = operandsOf(ArrayRef<Vals>(words).slice(step * 4, 4));
      auto rows = [&](int64_t part) {
        return e.load(query, ownQueries + first * (tableRows * kDepthWords / kProductDepth) + (step * tableRows + part * kProductColumns) * kDepthWords, 2);
      };
      Val upper = rows(0), lower = parts == 2 ? rows(1) : e.constant(upper.type(), 0);
      Vals left{aligned::lane(upper, 0), aligned::lane(lower, 0), aligned::lane(upper, 1), aligned::lane(lower, 1)};
      for (int64_t token = 0; token < kWordValues; ++token) {
        Val *sum = &sums[token * 4];
        Vals added = e.multiply(storage, left, {operands[token / 2][token % 2], operands[token / 2][2 + token % 2]}, ArrayRef<Val>(sum, 4));
        std::copy(added.begin(), added.end(), sum);
      }
    }
    return sums;
  });

  // The lane has query row g of words 2 t and 2 t + 1.
  Val h = firstHead() + g, isWhole = (tile + 1) * kTile <= tokens;
  e.when((g < ownHeads) & (h < shape.heads), [&] {
    Val scale = argument(Argument::Scale);
    if (isScaled) // by the inverse of a power of two
      scale = scale * bitcast(number(254 << 23) - bitcast(e.load(powers, h), e.i32()), e.f32());
    for (int64_t half : {0, 1})
      for (int64_t column : {0, 1}) {
        Val first = tile * kTile + t * 8 + (half * 32 + column * 4);
        Vals four;
        for (int64_t i = 0; i < 4; ++i) {
          Val *sum = &sums[(half * 4 + i) * 4];
          four.push_back((parts == 1 ? sum[column] : sum[column] + sum[2 + column]) * scale);
        }
        auto finish = [&](bool areThere) {
          Vals finished;
          for (int64_t i = 0; i < 4; ++i) {
            Val token = first + i, score = seenScore(four[i], h, areThere ? token : min(token, tokens - 1));
            finished.push_back(areThere ? score : select(token < tokens, score, real(-INFINITY)));
          }
          return finished;
        };
        e.storeGlobal(e.vectorOf(e.choose(isWhole, [&] { return finish(true); }, [&] { return finish(false); })), scoresOf(h), first);
      }
  });
  e.when(isAsked(Argument::KeyBits) & (sharer() == 0), [&] {
    Val record = ofRow(Argument::KeyBits, e.i8(), wide(key.capacity) * shape.keyDim);
    e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp,
           [&](Val c) { e.storeGlobal(convert(limited(e.load(layersOf, swizzled(c)), tile) * 4, e.i8()), record, tile * shape.keyDim + c); });
  });
}

void FloatScoresKernel::scoreAside() {
  e.when(hasAsides(Argument::Key), [&] {
    forAsides(Argument::Key, [&](Val token, Val values) {
      e.when(isOfSplit(token), [&] {
        forHeadsOfWarp(shape.heads, [&](Val h) {
          Val sum = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals sum) -> Vals {
            return {fma(queryAt(h, c) * argument(Argument::Scale), e.loadGlobal(values, e.f32(), c), sum[0])};
          })[0];
          Val score = seenScore(warpAdd(sum), h, token);
          e.when(lane == 0, [&] { e.storeGlobal(score, scoresOf(h), token); });
        });
      });
    });
    e.barrier();
  });
}

/// A warp for each query row; a lane takes four tokens at a time, half of the lanes a tile.
void FloatScoresKernel::summarise() {
  constexpr int64_t kLaneTokens = 4, kLanesPerTile = kTile / kLaneTokens;
  auto [begin, end] = stretch();
  Val firstTile = begin, endTile = end, quad = lane & (kLanesPerTile - 1);
  Type four = VectorType::get(kLaneTokens, e.f32());
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val own = scoresOf(h);
    // A score that is NaN is no maximum, but its weight and the sum are NaN.
    Vals s = e.loop(firstTile, endTile, GpuEmitter::kWarp / kLanesPerTile, {real(-INFINITY), real(0)}, [&](Val firstOfPair, Vals s) -> Vals {
      Val index = firstOfPair + lane / kLanesPerTile, there = index < endTile, tile = tileAt(index);
      Val loaded = e.choose(there, [&]() -> Vals { return {e.loadGlobal(own, four, tile * kTile + quad * kLaneTokens, /*constant=*/false)}; },
                            [&]() -> Vals { return {e.constant(four, -INFINITY)}; })[0];
      Val top = real(-INFINITY);
      for (int64_t j = 0; j < kLaneTokens; ++j)
        top = e.largest(aligned::lane(loaded, j), top);
      Val highest = e.largest(top, s[0]), sum = s[1] * weightOf(s[0], highest);
      for (int64_t j = 0; j < kLaneTokens; ++j)
        sum = sum + weightOf(aligned::lane(loaded, j), highest);
      if (!shape.exact()) {
        top = e.warpMax(top, {8, 4, 2, 1});
        e.when(there & (quad == 0), [&] { e.storeGlobal(top, topsOf(h), tile); });
      }
      return {highest, sum};
    });
    Val highest = warpMax(s[0]), whole = warpAdd(s[1] * weightOf(s[0], highest));
    e.when(lane == 0, [&] {
      Val statistics = ofSplit(Argument::Statistics, split, h, kStatistics);
      e.storeGlobal(highest, statistics, number(kMaximum));
      e.storeGlobal(whole, statistics, number(kSum));
    });
  });
}

/// Says, where somebody asks, that tiles that no query sees are not read.
void FloatScoresKernel::recordUnseen() {
  if (!shape.mask)
    return;
  e.when(isAsked(Argument::KeyBits) & (split == 0), [&] {
    Val keys = ofRow(Argument::KeyBits, e.i8(), wide(key.capacity) * shape.keyDim), values = ofRow(Argument::ValueBits, e.i8(), wide(key.capacity) * kTile), none = e.constant(e.i8(), 0);
    e.loop(number(0), tiles, 1, [&](Val tile) {
      e.when(invert(areVisible(tile * kTile, tile * kTile + (kTile - 1), newest, sight)), [&] {
        forThreads(shape.keyDim, [&](Val c) { e.storeGlobal(none, keys, tile * shape.keyDim + c); });
        forThreads(kTile, [&](Val token) { e.storeGlobal(none, values, tile * kTile + token); });
      });
    });
  });
}

void FloatScoresKernel::emit() {
  prepare();
  auto [first, end] = stretch();
  e.loop(first + stream(), end, streams, [&](Val index) { scoreTile(tileAt(index)); });
  e.barrier();
  scoreAside();
  summarise();
  recordUnseen();
  finish();
}

} // namespace

void aligned::emitFloatScores(ModuleOp program, StringRef name, const DecodeShape &shape) { FloatScoresKernel(program, name, shape).emit(); }
