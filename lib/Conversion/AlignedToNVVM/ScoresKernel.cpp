// Scores of full blocks, coarse or finer, and of the open block; and the statistics of each split.
//
// A warp takes a block of 64 tokens. Word i of a group of four channels belongs to tokens i (low nibbles) and i + 32 (high ones), so that four words
// of a lane are rows 4 g + j and 4 g + j + 32 of four tiles, and a word is a register of the left operand but for the nibble beside it: two layers make
// a byte. What is read of a channel ends where it need not go on, and with it the loads of the lanes that hold it. As on every machine
//
//   score = step * (sum of W * top bits + sum of W * offset(layers) - sum over a group's places of (sum of W there) * dither(token, place))
//
// where W are the weights as integers. The weight of a channel and query row is computed by one lane, and four lanes exchange bytes until each holds one digit of
// four channels, as the right operand wants it; the sums that are the same for all tokens fall out on the way.
#include "DecodeKernel.h"

#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kHalfDepth = kTileDepth / 2; // channels of a half step: four groups, one for each t

class ScoresKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();
  void emitRefined();

private:
  /// A block as it is to be read: for each half step layers of the lane's group, and for each tile 1 / step of its weights.
  struct Reading {
    Vals layers;
    Vals inverse;
  };

  Shared query, finest, groupLayers; // scale * q [heads, channels]; the largest 1 / step of weights; layers of coarse scores
  std::vector<Vals> weights;         // columnWeight of [tile][half step], where there are registers for them
  Val scores, variance, wanted, keyLayers; // of this row

  int64_t halfSteps() const { return shape.keyDim / kHalfDepth; }
  int64_t steps() const { return llvm::divideCeil(shape.keyDim, kTileDepth); }
  int64_t groups() const { return shape.keyDim / 4; }
  Val queryAt(Val h, Val channel) { return e.load(query, h * shape.keyDim + channel); }
  Val groupOf(int64_t halfStep) { return t + 4 * halfStep; }
  Val columnHead(int64_t tile) { return firstHead(tile) + shrLogical(g, number(2)); }
  /// Of the lane's column: scale * q of query row firstHead + g / 4, channel 4 t + place of the half step.
  Val columnWeight(int64_t tile, int64_t half) { return e.load(query, columnHead(tile) * shape.keyDim + t * 4 + place + half * kHalfDepth); }

  void prepare();
  void planCoarse();
  Vals coarseLayers();
  /// What limits make of the layers of a block (P7).
  Val limited(Val layers, Val block);
  Val digitsAcross(Val digits);
  void scoreBlock(Val block, const Reading &reading);
  /// Statistics of the split's scores, once all are there.
  void summarise();
};

/// w = scale * q, and the finest step of weights: the loudest channel must not leave the digits.
void ScoresKernel::prepare() {
  query = shared("query", e.f32(), paddedHeads * shape.keyDim);
  finest = shared("finest", e.f32(), paddedHeads);
  groupLayers = shared("layers", e.i32(), groups());
  scores = rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK));
  variance = rowOf(Argument::Variance, key.stride * shape.heads);
  wanted = rowOf(Argument::Wanted, key.stride * shape.heads);
  keyLayers = rowOf(Argument::KeyLayers, key.stride * groups(), e.i8());
  Val rows = rowOf(Argument::Query, shape.heads * shape.keyDim, shape.query), scale = argument(Argument::Scale);
  forThreads(paddedHeads * shape.keyDim, [&](Val i) {
    Val x = e.choose(i < shape.heads * shape.keyDim, [&]() -> Vals { return {convert(e.loadGlobal(rows, shape.query, i), e.f32()) * scale}; },
                     [&]() -> Vals { return {real(0)}; })[0];
    e.store(x, query, i);
  });
  e.barrier();
  forHeadsOfWarp(paddedHeads, [&](Val h) {
    Val loudest = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals top) -> Vals {
      return {e.largest(abs(e.load(query, h * shape.keyDim + c)) * unitScale(exponentOf(get(key.channelMax, c))), top[0])};
    })[0];
    loudest = warpMax(loudest);
    e.when(lane == 0, [&] { e.store(real(kWeightLimit) / loudest, finest, h); });
  });
  planCoarse();
  e.barrier();
  for (int64_t i = 0; i < tilesPerWarp && !isWide(shape); ++i) {
    weights.emplace_back();
    for (int64_t half = 0; half < halfSteps(); ++half)
      weights[i].push_back(columnWeight(i, half));
  }
}

/// Each group of channels is read so that its largest addend anywhere in the cache is known to half a logit.
void ScoresKernel::planCoarse() {
  forThreads(groups(), [&](Val group) {
    Val layers = key.layers;
    if (!shape.exact()) {
      Val reach = real(0);
      for (int64_t c = 0; c < 4; ++c) {
        Val channel = group * 4 + c, scale = unitScale(exponentOf(get(key.channelMax, channel))) * 32768.0;
        Val loudest = e.loop(number(0), number(shape.heads), 1, {real(0)}, [&](Val h, Vals top) -> Vals {
          return {e.largest(abs(e.load(query, h * shape.keyDim + channel)), top[0])};
        })[0];
        reach = e.largest(loudest * scale, reach);
      }
      layers = wholePlanes(layersFor(reach * (1 / kCoarse), kUnread), key.layers, shape.keySplit);
    }
    e.store(layers, groupLayers, group);
  });
}

Vals ScoresKernel::coarseLayers() {
  Vals layers;
  for (int64_t half = 0; half < halfSteps(); ++half)
    layers.push_back(e.load(groupLayers, groupOf(half)));
  return layers;
}

Val ScoresKernel::limited(Val layers, Val block) {
  if (!policies.isLimited(CacheRole::Key))
    return layers;
  Val first = block * ALIGNED_BLOCK;
  return policies.limit(layers, CacheRole::Key, key.layers, key.tokens, first, first + (ALIGNED_BLOCK - 1));
}

/// From the four digits of one channel, each lane's own, to one digit of four channels: a transpose among the lanes that differ in `place`.
Val ScoresKernel::digitsAcross(Val digits) {
  Val oddPlace = (place & 1) == 1, upperPlace = (place & 2) == 2;
  digits = e.permuteBytes(digits, e.shuffleXor(digits, 4), select(oddPlace, number(0x3715), number(0x6240)));
  return e.permuteBytes(digits, e.shuffleXor(digits, 8), select(upperPlace, number(0x3276), number(0x5410)));
}

void ScoresKernel::scoreBlock(Val block, const Reading &reading) {
  Val none = number(0), where = physical(key, block);
  int64_t words = llvm::divideCeil(shape.keyDim, 4 * GpuEmitter::kWarp);
  Val exponents = blockOf(key.exponent, where, shape.keyDim);
  Vals exponentWords; // of four channels each
  for (int64_t word = 0; word < words; ++word)
    exponentWords.push_back(e.loadGlobal(exponents, e.i32(), min(lane + word * GpuEmitter::kWarp, number(groups() - 1))));
  Vals scales;
  for (int64_t half = 0; half < halfSteps(); ++half) {
    Val four = e.shuffleFrom(exponentWords[4 * half / GpuEmitter::kWarp], groupOf(half) & (GpuEmitter::kWarp - 1));
    scales.push_back(unitScale(shrLogical(four, place * 8) & 255));
  }

  // Weights: digits for the upper bytes of values [tile][half step], and what all tokens share.
  struct Common {
    Val variance, constant, lean;
  };
  SmallVector<Common, 4> common;
  std::vector<Vals> digits(tilesPerWarp);
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    Val square = real(0), constant = real(0), lean = real(0);
    for (int64_t half = 0; half < halfSteps(); ++half) {
      Val layers = reading.layers[half], weight = (weights.empty() ? columnWeight(i, half) : weights[i][half]) * scales[half];
      if (!shape.exact()) {
        Val error = weight * (remainderOf(layers) * 32768.0);
        square = fma(error, error, square);
      }
      Val whole = toWeight(weight * reading.inverse[i]), rounded = select(layers > 0, convert(whole, e.f32()), real(0));
      constant = fma(rounded, offsetOf(layers), constant);
      lean = lean + rounded;
      digits[i].push_back(digitsAcross(digitsOf(whole) << 8));
    }
    Val varied = shape.exact() ? square : e.warpAdd(square, {1, 2, 4, 8}) * (1.0 / 3);
    common.push_back({varied, e.warpAdd(constant, {1, 2, 4, 8}), e.warpAdd(lean, {1, 2})});
  }

  Val most = none;
  for (Val layers : reading.layers)
    most = max(most, layers);
  most = e.warpMax(most, {1, 2}); // lanes of all g have the same
  Type four = VectorType::get(4, e.i32());
  Val nothing = e.constant(four, 0);
  auto load = [&](int64_t layer, int64_t half) {
    if (layer >= residentLayers(shape.keySplit))
      return nothing;
    LayerPlace at = placeOf(shape.keySplit, layer);
    Val plane = blockOf(key.plane[at.plane], where, shape.keyDim * 8 * shape.keySplit.getWidths()[at.plane]);
    Val word = (groupOf(half) * at.planeLayers + at.index) * kWords + g * 4;
    return e.choose(reading.layers[half] > layer, [&]() -> Vals { return {e.loadGlobal(plane, four, word)}; }, [&]() -> Vals { return {nothing}; })[0];
  };
  // Adds layers `upper` and `upper` + 1: sums [tile][j], tokens 4 g + j (registers 0, 1) and 4 g + j + 32 (2, 3).
  auto multiplySteps = [&](Vals sums, int64_t upper, const std::vector<Vals> &digits, int64_t firstStep, int64_t lastStep) {
    for (int64_t step = firstStep; step < lastStep; ++step) {
      int64_t count = std::min<int64_t>(2, halfSteps() - 2 * step);
      Vals first, second;
      for (int64_t half = 2 * step; half < 2 * step + count; ++half) {
        first.push_back(load(upper, half));
        second.push_back(load(upper + 1, half));
      }
      for (int64_t j = 0; j < 4; ++j) {
        Vals a(4, none);
        for (int64_t half = 0; half < count; ++half)
          std::tie(a[2 * half], a[2 * half + 1]) = bytesOf(aligned::lane(first[half], j), aligned::lane(second[half], j));
        for (int64_t i = 0; i < tilesPerWarp; ++i) {
          Val *c = &sums[(i * 4 + j) * 4];
          Vals product = e.multiply(a, {digits[i][2 * step], count > 1 ? digits[i][2 * step + 1] : none}, {c[0], c[1], c[2], c[3]});
          std::copy(product.begin(), product.end(), c);
        }
      }
    }
    return sums;
  };
  // So many steps at once, or none of them where none is read so far: with more, loads that are under way would take more registers than there are.
  const int64_t atOnce = tilesPerWarp > 1 ? 2 : 4;
  auto multiply = [&](Vals sums, int64_t upper, const std::vector<Vals> &digits) {
    if (steps() <= atOnce)
      return multiplySteps(sums, upper, digits, 0, steps());
    for (int64_t step = 0; step < steps(); step += atOnce) {
      int64_t end = std::min(step + atOnce, steps());
      Val reaches = none;
      for (int64_t half = 2 * step; half < std::min(2 * end, halfSteps()); ++half)
        reaches = max(reaches, reading.layers[half]);
      sums = e.choose(e.warpMax(reaches, {1, 2}) > upper, [&] { return multiplySteps(sums, upper, digits, step, end); }, [&] { return sums; });
    }
    return sums;
  };
  Vals sums = multiply(Vals(tilesPerWarp * 4 * 4, none), 0, digits);
  if (residentLayers(shape.keySplit) > 2)
    sums = e.choose(
        most > 2,
        [&] {
          // For the lower bytes, a column wants the digit of its own place: that of the next column.
          std::vector<Vals> lower(tilesPerWarp);
          for (int64_t i = 0; i < tilesPerWarp; ++i)
            for (Val upper : digits[i])
              lower[i].push_back(e.shuffleFrom(upper, (lane & 19) | ((lane + 4) & 12)));
          return multiply(sums, 2, lower);
        },
        [&] { return sums; });

  // Lanes with odd t take the later half of the block, and give away the other.
  Val odd = (t & 1) == 1, token = block * ALIGNED_BLOCK + g * 4 + select(odd, number(32), none);
  Val dithers[4][4];
  for (int64_t j = 0; j < 4; ++j)
    for (int64_t channel = 0; channel < 4; ++channel)
      dithers[j][channel] = dither(token + j, channel);
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    // Lanes 16 r + .. have what query row r of the tile needs, lean by place; this lane's columns are 2 t, 2 t + 1.
    Val head = firstHead(i) + shrLogical(t, number(1)), source = shrLogical(t, number(1)) * 16;
    Val step = e.shuffleFrom(real(1) / reading.inverse[i], source), constant = e.shuffleFrom(common[i].constant, source);
    // A score whose error has variance s^2 is on average e^(s^2 / 2) times too likely.
    Val excess = shape.exact() ? real(0) : e.shuffleFrom(common[i].variance, source) * 0.5;
    Vals lean, scored;
    for (int64_t channel = 0; channel < 4; ++channel)
      lean.push_back(e.shuffleFrom(common[i].lean, source + 4 * channel));
    for (int64_t j = 0; j < 4; ++j) {
      Val *s = &sums[(i * 4 + j) * 4];
      Val early = ofColumns(s[0], s[1]), late = ofColumns(s[2], s[3]);
      Val score = select(odd, late, early) + e.shuffleXor(select(odd, early, late), 1) + constant;
      for (int64_t channel = 0; channel < 4; ++channel)
        score = score - lean[channel] * dithers[j][channel];
      scored.push_back(fma(score, step, -excess));
    }
    auto together = vector::FromElementsOp::create(e.b, VectorType::get(4, e.f32()), ValueRange{scored[0].value, scored[1].value, scored[2].value, scored[3].value});
    e.when(head < shape.heads, [&] { e.storeGlobal(e.wrap(together), ofHead(scores, head, key.stride * ALIGNED_BLOCK), token); });
    Val own = columnHead(i);
    if (!shape.exact() || shape.certified)
      e.when(((lane & 15) == 0) & (own < shape.heads), [&] {
        if (!shape.exact())
          e.storeGlobal(common[i].variance, ofHead(variance, own, key.stride), block);
        e.storeGlobal(reading.inverse[i], ofHead(wanted, own, key.stride), block);
      });
  }
  e.when((g == 0) & ((warp & (warpsPerBlock - 1)) == 0), [&] {
    for (int64_t half = 0; half < halfSteps(); ++half)
      e.storeGlobal(convert(reading.layers[half], e.i8()), keyLayers, block * groups() + groupOf(half));
  });
  addKeyEscapes([&](Val h, Val channel) { return queryAt(h, channel); }, block, firstHead(0), tilesPerWarp * kTileHeads);
  finishScores(block, firstHead(0), tilesPerWarp * kTileHeads);
}

/// A warp for each query row; a lane takes four tokens at a time.
void ScoresKernel::summarise() {
  e.barrier(); // the block's own scores are there
  auto [firstBlock, endBlock] = stretch();
  Val begin = firstBlock * ALIGNED_BLOCK, end = endBlock * ALIGNED_BLOCK;
  constexpr int64_t kLaneTokens = 4, kStep = kLaneTokens * GpuEmitter::kWarp;
  Val last = select(isLastSplit(), key.tokens, number(0));
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val own = ofHead(scores, h, key.stride * ALIGNED_BLOCK);
    Val poison = poisonOf([&](Val h, Val channel) { return queryAt(h, channel); }, h); // integers could not carry it
    auto add = [&](Vals s, Vals scored, Vals exponents) -> Vals {
      Val loudest = s[2], top = s[3];
      for (auto [score, exponent] : llvm::zip(scored, exponents)) {
        loudest = e.largest(fma(score, real(kLog2e), exponent), loudest);
        top = e.largest(exponent, top);
      }
      Vals added = addScores(s[0], s[1], scored);
      return {added[0], added[1], loudest, top};
    };
    Vals s{real(-INFINITY), poison, real(kLowest), real(0)};
    s = e.loop(begin + lane * kLaneTokens, end, kStep, s, [&](Val index, Vals s) {
      Val token = tokenAt(index);
      Val four = e.loadGlobal(own, VectorType::get(kLaneTokens, e.f32()), token, /*constant=*/false);
      Val within = token & (ALIGNED_BLOCK - 1), block = shrLogical(token, number(6));
      Val bytes = e.loadGlobal(blockOf(value.exponent, physical(value, block), ALIGNED_BLOCK), e.i32(), shrLogical(within, number(2)));
      Vals scored, exponents;
      for (int64_t j = 0; j < kLaneTokens; ++j) {
        scored.push_back(aligned::lane(four, j));
        exponents.push_back(convert(shrLogical(bytes, number(8 * j)) & 255, e.f32()));
      }
      return add(s, scored, exponents);
    });
    s = e.loop(key.blocks * ALIGNED_BLOCK + lane, last, GpuEmitter::kWarp, s, [&](Val token, Vals s) { return add(s, {get(own, token)}, {}); });
    storeStatistics(h, s[0], s[1], s[2], s[3]);
  });
}

void ScoresKernel::emit() {
  prepare();
  if (!shape.exact())
    e.when(split == 0, [&] {
      Val histogram = rowOf(Argument::Histogram, shape.heads * kBins, e.i32()), plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers);
      forThreads(shape.heads * kBins, [&](Val i) { e.storeGlobal(number(0), histogram, i); });
      forThreads(shape.heads * kPlanNumbers, [&](Val i) { e.storeGlobal(real(0), plan, i); });
    });
  Vals coarse = coarseLayers(), limits;
  for (int64_t i = 0; i < tilesPerWarp; ++i)
    limits.push_back(e.load(finest, columnHead(i)));
  forBlocksOfWarp([&](Val block) {
    Reading reading;
    for (Val layers : coarse)
      reading.layers.push_back(limited(layers, block));
    for (Val limit : limits) {
      Val inverse = shape.exact() ? limit : min(limit, real(kWeightGuard * 32768.0 / kCoarse));
      if (policies.isLimited(CacheRole::Key)) // bits that no plan asks for want weights as fine as they can be, or they would be what the error comes from
        inverse = select(limited(number(0), block) > 0, limit, inverse);
      reading.inverse.push_back(inverse);
    }
    scoreBlock(block, reading);
  });
  e.when(isLastSplit(), [&] { scoreOpen([&](Val h, Val channel) { return queryAt(h, channel); }); });
  summarise();
  recordUnseen(groups());
  finish();
}

/// Finer scores where the plan asks for them.
void ScoresKernel::emitRefined() {
  Val plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers);
  e.when(isPlanOpen(), [&] {
    prepare();
    e.when(split == 0, [&] { // for the look to come
      Val histogram = rowOf(Argument::Histogram, shape.heads * kBins, e.i32());
      forThreads(shape.heads * kBins, [&](Val i) { e.storeGlobal(number(0), histogram, i); });
    });
    Shared wants = shared("wants", e.f32(), warps * GpuEmitter::kWarp); // of the block that a warp has
    Val loudness = rowOf(Argument::Loudness, key.stride * (shape.heads * kLoudnessNumbers));
    forBlocksOfWarp([&](Val block) {
      // Inverse of the precision wanted of addends of each query row; 0 for what is precise enough.
      auto wantedOf = [&](Val h) {
        Val loud = ofHead(loudness, h, key.stride * kLoudnessNumbers), at = block * kLoudnessNumbers;
        auto of = [&](PlanOf what) { return get(plan, h * kPlanNumbers + what); };
        Val leverage = sqrt(get(loud, at) * of(kPower) + get(loud, at + 2) * of(kFill));
        return select(leverage * kCoarse > of(kPrecisionK), leverage / of(kPrecisionK), real(0));
      };
      e.store(wantedOf(min(lane, number(shape.heads - 1))), wants, warp * GpuEmitter::kWarp + lane);
      e.warpBarrier(); // all of them are there
      Val exponents = blockOf(key.exponent, physical(key, block), shape.keyDim), more = number(0);
      Reading reading;
      for (int64_t half = 0; half < halfSteps(); ++half) {
        Val bytes = e.loadGlobal(exponents, e.i32(), groupOf(half));
        Val reach = e.loop(number(0), number(shape.heads), 1, {real(0)}, [&](Val h, Vals reach) -> Vals {
          Val four = e.load(query, h * shape.keyDim + groupOf(half) * 4, 4), most = real(0);
          for (int64_t c = 0; c < 4; ++c)
            most = e.largest(abs(aligned::lane(four, c)) * unitScale(shrLogical(bytes, number(8 * c)) & 255), most);
          return {e.largest(most * e.load(wants, warp * GpuEmitter::kWarp + h), reach[0])};
        })[0];
        Val before = convert(e.loadGlobal(keyLayers, e.i8(), block * groups() + groupOf(half), /*constant=*/false), e.i32());
        Val layers = max(limited(wholePlanes(layersFor(reach * 32768.0, kUnread), key.layers, shape.keySplit), block), before);
        more = more | (layers - before);
        reading.layers.push_back(layers);
      }
      e.when(e.ballot(more > 0) != 0, [&] {
        for (int64_t i = 0; i < tilesPerWarp; ++i) {
          Val head = min(columnHead(i), number(shape.heads - 1)), before = get(ofHead(wanted, head, key.stride), block);
          Val want = e.load(wants, warp * GpuEmitter::kWarp + head);
          reading.inverse.push_back(min(e.largest(want * (kWeightGuard * 32768.0), before), e.load(finest, columnHead(i))));
        }
        meetSharers(); // all have read what the first is about to write
        scoreBlock(block, reading);
      });
      e.warpBarrier(); // and what was wanted
    });
    summarise();
  });
  finish();
}

} // namespace

void aligned::emitScores(ModuleOp program, StringRef name, const DecodeShape &shape) { ScoresKernel(program, name, shape).emit(); }
void aligned::emitRefine(ModuleOp program, StringRef name, const DecodeShape &shape) { ScoresKernel(program, name, shape).emitRefined(); }
