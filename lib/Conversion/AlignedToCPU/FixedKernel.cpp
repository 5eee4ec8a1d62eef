// Decode attention over `fixed` caches (S1) under the budget policy (P2), or exactly.
//
// Every addend gets the same absolute precision and none gets more:
//
//   A   coarse scores of all tokens: channels are read to half a logit each
//       softmax, and a look at plane 0 of the loudest rows of V, which says how large the output will be
//   K   the plan for K: the coarsest precision whose predicted error keeps its share of the budget
//   B   finer K in the blocks whose leverage on the output makes the error of their scores matter; softmax and the look again. Where the finer
//       scores show that the coarse ones misled the plan, it is made again (P5)
//   V   the plan for V, then of each row what its probability makes visible: for most rows nothing, and they stand for their mean
//
// Weights, not values, are made integers at the wanted precision, so that nibbles go into integer dot products as they lie in
// memory; see IntegerDot.h. With scale15 = scale / 2^15, the value of one unit of the stored integer n,
//
//   value = scale15 * (top bits + offset(layers) - dither),   offset(L) = (2^(16 - 4L) - 1) / 2 - 2^15
//
// where the offset holds the mean of what the missing bits may be and the sign's 2^15.
// All precisions of V are relative to the loudest row's scale, so that nothing overflows or underflows.
#include "IntegerDot.h"
#include "SplitKernel.h"

#include "mlir/Dialect/Math/IR/Math.h"

using namespace mlir;
using namespace aligned;

namespace {

class FixedKernel : public SplitKernel {
public:
  FixedKernel(Emitter &e, const KernelShape &shape) : SplitKernel(e, shape, /*unitChannels=*/4) {}

private:
  Val listStride; // tokens, padded to whole groups of four rows
  Buffer keyDigits, step, finest, poison; // of the weights of one block's channels
  Buffer layersA, want, variance;         // of scores: the first reading, and per query row and block the inverse precision of addends and the error's variance
  Buffer loudest, energy, precisionK;     // leverage of a block's tokens: the largest, and the sum of squares
  Buffer variedK; // predicted variance of the output by K, in (loudest row's scale)^2
  Buffer reachScale, size, fill, loudRows, precisionV, weightScale, valueConstant, unread;
  Buffer blockDigits, list, listDigits, listCount, digitMask;
  Val loudestExponent;

  void allocate() override;
  void scores() override;
  void values() override;

  // Bits.
  /// The layers that addends need, by whole planes.
  Val layersFor(Val steps, double unread, const CacheRow &cache, SplitAttr split);
  /// Whether limits want bits that no plan asks for, of a block of keys and of any value (P7). Weights are then as fine as they can be, or they would
  /// be what the error comes from.
  Val wantsMoreKeys(Val block) { return limitKeys(e.constant(e.i32(), 0), block) > 0; }

  // Stages.
  void planCoarse();
  void scoreBlock(Val block, Val layers);
  void weighKeys(Val block, Val layers);
  void refineBlock(Val block);
  void scaleRows();
  void look();
  Val planKeys(Val round);
  void planValues();
  void listValues();
  void addListed();
  Val readRow(Val token);
  Val middle();

  // The certificate.
  Val meanMax, fillMax; // of V's channel means, in units of valueUnit(), and of all query rows' fill
  void prepareCertificate() override;
  RowBounds boundValues(Val t) override;
  Val valueUnit() override { return select(key.blocks > 0, unitScale(loudestExponent) * 32768.0, f32(1)); }
  Val weightError(Val h) override;
  Val additions() override { return key.blocks; }
  Val scoreVariance(Val h) override { return exact ? f32(0) : select(key.blocks > 0, e.load(variedK, h), f32(0)); } // no block, no plan
  double commonShare() override { return exact ? 0 : kCommon; }
};

//===----------------------------------------------------------------------===//
// Scratch and bits
//===----------------------------------------------------------------------===//

void FixedKernel::allocate() {
  SplitKernel::allocate();
  Val heads = index(shape.heads);
  listStride = padded + 4;
  scratch(keyDigits, e.i8(), heads * (kDigits * shape.keyDim));
  scratch(step, e.f32(), heads);
  scratch(finest, e.f32(), heads);
  scratch(poison, e.f32(), heads);
  scratch(layersA, e.i32(), index(shape.keyDim));
  scratch(want, e.f32(), heads * blockStride);
  scratch(variance, e.f32(), heads * blockStride);
  scratch(loudest, e.f32(), heads * blockStride);
  scratch(energy, e.f32(), heads * blockStride);
  scratch(precisionK, e.f32(), heads);
  scratch(variedK, e.f32(), heads);
  scratch(precisionV, e.f32(), heads);
  scratch(size, e.f32(), heads);
  scratch(fill, e.f32(), heads);
  scratch(weightScale, e.f32(), heads);
  scratch(valueConstant, e.types.getF64Type(), heads);
  scratch(unread, e.f32(), heads * kBlock);
  scratch(reachScale, e.f32(), padded);
  scratch(loudRows, e.i32(), padded);
  scratch(blockDigits, e.i8(), heads * (kDigits * kBlock));
  scratch(list, e.i32(), listStride * (kLayers * kDigits));
  scratch(listDigits, e.i8(), heads * listStride * (kLayers * kDigits));
  scratch(listCount, e.i64(), index(kLayers * kDigits));
  scratch(digitMask, e.i64(), index(kDigits));
}

Val FixedKernel::layersFor(Val steps, double unread, const CacheRow &cache, SplitAttr split) {
  return wholePlanes(aligned::layersFor(steps, unread), cache, split);
}

/// The largest of each four neighbouring lanes, in all four.
static Val groupMax(Val a) {
  auto neighbour = [&](int64_t distance) {
    SmallVector<int64_t> lanes;
    for (int64_t lane = 0; lane < a.lanes(); ++lane)
      lanes.push_back(lane ^ distance);
    return permute(a, a, lanes);
  };
  a = max(a, neighbour(1));
  return max(a, neighbour(2));
}

/// Four sums: lane i is that of lanes i, i + 4, i + 8, ...
static Val addGroups(Val a) {
  while (a.lanes() % 8 == 0)
    a = slice(a, 0, a.lanes() / 2) + slice(a, a.lanes() / 2, a.lanes() / 2);
  Val sums = slice(a, 0, 4);
  for (int64_t first = 4; first < a.lanes(); first += 4)
    sums = sums + slice(a, first, 4);
  return sums;
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

void FixedKernel::scores() {
  forHeads([&](Val h) {
    // A query that is not finite makes its row NaN; integers could not carry that.
    Val q = e.load(w, h * shape.keyDim, shape.keyDim);
    e.store(reduceAdd(q * 0.0), poison, h);
  });
  readNothing();
  scoreOpenBlock();
  scaleRows();
  planCoarse();
  Val coarse = e.load(layersA, index(0), shape.keyDim);
  forBlocks(index(0), key.blocks, [&](Val block) {
    if (isLimited(CacheRole::Key))
      e.when(wantsMoreKeys(block), [&] { forHeads([&](Val h) { e.store(f32(INFINITY), want, h * blockStride + block); }); });
    scoreBlock(block, limitKeys(coarse, block));
  });
  if (exact)
    return softmax();
  Type flag = e.types.getI1Type();
  e.repeat(
      {e.constant(e.i32(), 0), e.constant(flag, 1)}, [](Vals state) { return state[1]; },
      [&](Vals state) -> Vals {
        softmax();
        Val more = e.choose(
            key.blocks > 0,
            [&]() -> Vals {
              look();
              return {planKeys(state[0])};
            },
            [&]() -> Vals { return {e.constant(flag, 0)}; })[0];
        more = more & (state[0] < shape.rounds);
        e.when(more, [&] { forBlocks(index(0), key.blocks, [&](Val block) { refineBlock(block); }); });
        return {state[0] + 1, more};
      });
}

/// Phase A reads each group of channels so that its largest addend anywhere in the cache is known to half a logit.
void FixedKernel::planCoarse() {
  int64_t dim = shape.keyDim;
  Val exponents = forBlocks(index(0), key.blocks, {e.constant(VectorType::get(dim, e.i32()), 0)}, [&](Val block, Vals top) -> Vals {
    return {max(top[0], zext(e.load(key.exponent, block * dim, dim), e.i32()))};
  })[0];
  Val unit = bitcast(exponents << 23, e.f32()) * kRoom;
  Val reach = e.loop(index(0), index(shape.heads), 1, {e.constant(VectorType::get(dim, e.f32()), 0)}, [&](Val h, Vals top) -> Vals {
    Val units = abs(e.load(w, h * dim, dim)) * unit;
    e.store(f32(kWeightLimit) / reduceMax(units), finest, h); // the loudest channel must not leave the digits
    return {larger(units * 32768.0, top[0])};
  })[0];
  e.store(exact ? e.splat(key.layers, dim) : groupMax(layersFor(reach * (1 / kCoarse), kUnread, key, shape.keySplit)), layersA, index(0));
  e.loop(index(0), blockStride * shape.heads, kBlockLanes, [&](Val i) { // blocks that do not exist are silent
    Val zero = e.constant(VectorType::get(kBlockLanes, e.f32()), 0);
    e.store(zero + (exact ? INFINITY : 1 / kCoarse), want, i);
    e.store(zero, variance, i);
    e.store(zero, loudest, i);
    e.store(zero, energy, i);
  });
}

/// Weights of the block's channels as integers at precision 1 / want[h], their digits, and the part of the scores that no bit decides.
void FixedKernel::weighKeys(Val block, Val layers) {
  int64_t dim = shape.keyDim;
  Val unit = unitScale(e.load(key.exponent, block * dim, dim));
  Val left = remainderOf(layers) * 32768.0;
  Val offset = offsetOf(layers), used = select(layers > 0, e.constant(unit.type(), 1), e.constant(unit.type(), 0));
  Vals dithers; // of the four channels of a group
  for (int64_t place = 0; place < 4; ++place)
    dithers.push_back(dither(tokensFrom(block * kBlock, kBlock), place));
  Vals masks = e.loop(index(0), index(shape.heads), 1, Vals(kDigits, e.constant(e.i64(), 0)), [&](Val h, Vals masks) {
    Val weight = e.load(w, h * dim, dim) * unit;
    Val excess = f32(0); // a score whose error has variance s^2 is on average e^(s^2 / 2) times too likely
    if (!exact) {
      Val error = weight * left, square = reduceAdd(error * error) * (1.0 / 3);
      e.store(square, variance, h * blockStride + block);
      excess = square * 0.5;
    }
    Val inverse = min(e.load(want, h * blockStride + block) * (kWeightGuard * 32768.0), e.load(finest, h)); // 1 / step
    Val whole = toWeight(weight * e.splat(inverse, dim));
    for (int64_t d = 0; d < kDigits; ++d) {
      Val digits = digit(whole, d);
      e.store(digits, keyDigits, (h + d * shape.heads) * dim);
      masks[d] = masks[d] | maskBits(bitcast(digits, e.i32()) != 0);
    }
    Val rounded = convert(whole, e.f32()), blockStep = f32(1) / inverse;
    if (shape.certified) {
      // Bits that are not read leave scale * 2^-bits of each value (S1), and integer weights are off by half their step, times an integer of at
      // most 2^15. A weight is rounded five times on its way to an integer and back; the constant and the sums of at most 12 lists, each bounded
      // by twice the weights' reach, three times for each list and once for each level of a tree of additions.
      constexpr double kRoundings = (5 + 2 * (3 * kLayers * kDigits + 12)) * 0x1p-24;
      Val most = left + 32768 * kRoundings;
      e.store(reduceAdd(abs(weight) * most) + blockStep * (dim * 16384.0 * 1.001) + excess, scoreError, h * blockStride + block);
    }
    e.store(blockStep, step, h);
    Val score = e.splat(blockStep * reduceAdd(rounded * used * offset) - excess + e.load(poison, h), kBlock);
    Val lean = addGroups(rounded * used);
    for (auto [place, dither] : llvm::enumerate(dithers))
      score = score - e.splat(blockStep * lane(lean, int64_t(place)), kBlock) * dither;
    e.store(score, s, h * padded + block * kBlock);
    return masks;
  });
  for (int64_t d = 0; d < kDigits; ++d)
    e.store(masks[d], digitMask, index(d));
}

void FixedKernel::scoreBlock(Val block, Val layers) {
  constexpr int64_t unitWords = kBlock / 2;
  int64_t dim = shape.keyDim, groups = dim / 4;
  weighKeys(block, layers);
  Buffer words = e.buffer(keyDigits.pointer, e.i32());
  SmallVector<int64_t> leaders;
  for (int64_t group = 0; group < groups; ++group)
    leaders.push_back(4 * group);
  Val groupLayers = permute(layers, layers, leaders);
  e.store(convert(groupLayers, e.i8()), keyRead, block * groups);
  int64_t columnWords = shape.isa == Isa::AVX512 ? unitWords : unitWords / 2;

  for (int64_t layer = 0; layer < residentLayers(shape.keySplit); ++layer) {
    Val layerMask = maskBits(groupLayers > layer);
    Buffer units = e.buffer(key.layer[layer], e.i32());
    LayerPlace place = placeOf(shape.keySplit, layer);
    e.loop(index(0), index(kDigits), 1, [&](Val d) {
      Val mask = layerMask & e.load(digitMask, d);
      Val placeValue = bitcast((convert(d, e.i32()) * 8 + 127) << 23, e.f32()) * std::pow(16.0, kLayers - 1 - layer);
      e.when(mask != 0, [&] {
        for (int64_t column = 0; column < unitWords; column += columnWords)
          forHeadGroups(2 * columnWords / lanes, [&](Val head, int64_t heads) {
            DotColumn dots{shape.isa, lanes, columnWords, heads};
            Vals sums = e.forEachBit(mask, dots.zero(e), [&](Val group, Vals sums) {
              Val start = ((block * groups + group) * place.planeLayers + place.index) * unitWords + column;
              return dots.add(
                  e, sums, [&](int64_t vector) { return e.load(units, start + vector * lanes, lanes); },
                  [&](int64_t h) { return e.load(words, (d * shape.heads + head + h) * groups + group); });
            });
            for (int64_t h = 0; h < heads; ++h) {
              Val factor = e.splat(e.load(step, head + h) * placeValue, lanes);
              for (bool high : {false, true})
                for (int64_t vector = 0; vector < columnWords / lanes; ++vector) {
                  Val at = (head + h) * padded + block * kBlock + (high * unitWords + column + vector * lanes);
                  e.store(e.load(s, at, lanes) + convert(sums[dots.at(h, high, vector)], e.f32()) * factor, s, at);
                }
            }
          });
      });
    });
  }
  addKeyEscapes(block);
  finishScores(block);
}

//===----------------------------------------------------------------------===//
// Plans
//===----------------------------------------------------------------------===//

/// Per query row the rms of the output, relative to the loudest row's scale, and the share of their scales that the values fill, as variance: from
/// plane 0 of the rows that are within a factor of 64 of the loudest, and from the open block. All other rows stand for their mean.
void FixedKernel::look() {
  int64_t dim = shape.valueDim;
  Val zero = e.constant(VectorType::get(kBlock, e.f32()), 0);
  forHeads([&](Val h) {
    Val top = forTokens(index(0), fullTokens, {zero}, [&](Val t, Vals top) -> Vals {
      return {larger(e.load(p, h * padded + t, kBlock) * e.load(reachScale, t, kBlock), top[0])};
    })[0];
    e.store(max(reduceMax(top) * (1.0 / 64), kTiny), weightScale, h);
  });
  Val count = forTokens(index(0), fullTokens, {index(0)}, [&](Val t, Vals count) -> Vals {
    Val loud = e.loop(index(0), index(shape.heads), 1, {e.constant(e.i64(), 0)}, [&](Val h, Vals mask) -> Vals {
      Val reach = e.load(p, h * padded + t, kBlock) * e.load(reachScale, t, kBlock);
      return {mask[0] | maskBits(reach >= e.splat(e.load(weightScale, h), kBlock))};
    })[0];
    return e.forEachBit(loud, count, [&](Val bit, Vals n) -> Vals {
      e.store(convert(t + bit, e.i32()), loudRows, n[0]);
      return {n[0] + 1};
    });
  })[0];

  Val toRelative = f32(1) / (unitScale(loudestExponent) * 32768.0);
  forHeadGroups(dim / lanes + 1, [&](Val head, int64_t heads) {
    // Per query row: sum of p * v, of p * v^2 (folded to one register), of p, and of p * scale^2.
    Vals sums(heads, e.constant(VectorType::get(dim, e.f32()), 0));
    sums.append(heads, e.constant(VectorType::get(lanes, e.f32()), 0));
    sums.append(2 * heads, f32(0));
    auto add = [&](Vals sums, Val t, Val row, Val scale) {
      Val square = foldLanes(row * row, lanes);
      for (int64_t h = 0; h < heads; ++h) {
        Val weight = e.load(p, (head + h) * padded + t);
        sums[h] = sums[h] + e.splat(weight, dim) * row;
        sums[heads + h] = sums[heads + h] + e.splat(weight, lanes) * square;
        sums[2 * heads + h] = sums[2 * heads + h] + weight;
        sums[3 * heads + h] = sums[3 * heads + h] + weight * scale * scale;
      }
      return sums;
    };
    Vals loud = e.loop(index(0), count, 1, sums, [&](Val i, Vals sums) {
      Val t = convert(e.load(loudRows, i), e.types.getIndexType());
      return add(sums, t, readRow(t), e.load(reachScale, t));
    });
    sums = e.loop(index(0), openSeen, 1, loud, [&](Val i, Vals sums) {
      Val row = convert(e.load(value.openTokens, i * dim, dim), e.f32()) * e.splat(toRelative, dim);
      row = select(abs(row) < INFINITY, row, e.constant(row.type(), 0)); // what is not finite must not blind the plan
      return add(sums, fullTokens + i, row, f32(0));
    });
    Val mean = middle() * e.splat(toRelative, dim);
    for (int64_t h = 0; h < heads; ++h) {
      Val total = e.load(rowSum, head + h), seen = sums[2 * heads + h];
      Val output = sums[h] + e.splat(max(total - seen, 0), dim) * mean;
      Val rowSize = sqrt(reduceAdd(output * output) * (1.0 / dim)) / total;
      Val inSight = shape.mask ? visibleTokens((head + h) % index(shape.queries), newest, tokens, shape) : tokens;
      Val least = sqrt(reduceAdd(sums[heads + h]) * (1.0 / dim) / seen / convert(convert(inSight, e.i64()), e.f32()));
      e.store(max(rowSize, least) + kTiny, size, head + h);
      e.store(larger(reduceAdd(loud[heads + h]) * (1.0 / dim) / loud[3 * heads + h], f32(kLeastFill)), fill, head + h);
    }
  });
}

/// A row of V from its first plane, relative to the loudest row's scale.
Val FixedKernel::readRow(Val token) {
  int64_t half = shape.valueDim / 2, planeLayers = shape.valueSplit.getWidths()[0] / 4;
  Val top = e.constant(VectorType::get(shape.valueDim, e.i32()), 0);
  for (int64_t layer = 0; layer < planeLayers; ++layer)
    top = (top << 4) | nibbles(value.layer[0], (token * planeLayers + layer) * half, half);
  double offset = (0x10000 >> (4 * planeLayers)) / 2.0 - 0.5 - 0x8000;
  Val number = convert(top << (16 - 4 * planeLayers), e.f32()) + offset - e.splat(dither(convert(token, e.i32())), shape.valueDim);
  return number * e.splat(e.load(reachScale, token) * (1.0 / 32768), shape.valueDim);
}

/// What a row of V stands for that is not read. The cache's mean is that of all its tokens; where a mask hides some it goes no further than visible rows reach.
Val FixedKernel::middle() {
  Val mean = e.load(value.channelMean, index(0), shape.valueDim);
  if (!shape.mask)
    return mean;
  Val most = e.splat(unitScale(loudestExponent) * 32768.0, shape.valueDim);
  return min(max(mean, -most), most);
}

/// Plans the keys of the query rows whose predicted variance exceeds the budget, or in later rounds far exceeds it; whether there are any.
Val FixedKernel::planKeys(Val round) {
  Type vector = VectorType::get(kBlockLanes, e.f32());
  Val zero = e.constant(vector, 0), slack = select(round == 0, f32(1), f32(kSlack));
  return e.loop(index(0), index(shape.heads), 1, {e.constant(e.types.getI1Type(), 0)}, [&](Val h, Vals any) -> Vals {
    // The leverage of a token, what an error of its score moves the output by: p * sqrt(fill * scale^2 + size^2).
    Val base = h * blockStride, inverse = f32(1) / e.load(rowSum, h), rowSize = e.load(size, h);
    Val rowFill = e.splat(e.load(fill, h), kBlock), outPower = e.splat(rowSize * rowSize, kBlock);
    forBlocks(index(0), key.blocks, [&](Val block) {
      Val weights = e.load(p, h * padded + block * kBlock, kBlock) * e.splat(inverse, kBlock), scale = e.load(reachScale, block * kBlock, kBlock);
      Val square = weights * weights * (rowFill * scale * scale + outPower);
      e.store(sqrt(reduceMax(square)), loudest, base + block);
      e.store(reduceAdd(square), energy, base + block);
    });
    Val kept = e.loop(index(0), blockStride, kBlockLanes, {zero}, [&](Val block, Vals sum) -> Vals {
      return {sum[0] + e.load(energy, base + block, kBlockLanes) * e.load(variance, base + block, kBlockLanes)};
    })[0];
    Val aim = rowSize * policies().tolerance(CacheRole::Key), budget = aim * aim * kKeyShare;
    Val varied = reduceAdd(kept), over = varied > budget * slack;
    e.store(varied, variedK, h);
    Val precision = e.choose(
        over,
        [&]() -> Vals {
          return {coarsest(budget, [&](Val precision) {
            Val square = e.splat(precision * precision * (kStepVariance * shape.keyDim), kBlockLanes), threshold = e.splat(precision * (1 / kCoarse), kBlockLanes);
            Val sum = e.loop(index(0), blockStride, kBlockLanes, {zero}, [&](Val block, Vals sum) -> Vals {
              Val loud = e.load(loudest, base + block, kBlockLanes), power = e.load(energy, base + block, kBlockLanes);
              Val kept = power * e.load(variance, base + block, kBlockLanes);
              return {sum[0] + select(loud > threshold, min(kept, power / (loud * loud) * square), kept)};
            })[0];
            return reduceAdd(sum);
          })};
        },
        [&]() -> Vals { return {f32(INFINITY)}; })[0];
    e.store(precision, precisionK, h);
    return {any[0] | over};
  })[0];
}

/// Scores a block again where the plan asks more of it.
void FixedKernel::refineBlock(Val block) {
  int64_t dim = shape.keyDim;
  Val scale = unitScale(e.load(key.exponent, block * dim, dim)) * 32768.0;
  Val steps = e.loop(index(0), index(shape.heads), 1, {e.constant(VectorType::get(dim, e.f32()), 0)}, [&](Val h, Vals top) -> Vals {
    Val at = h * blockStride + block, loud = e.load(loudest, at), precision = e.load(precisionK, h);
    Val wanted = select(loud * kCoarse > precision, loud / precision, f32(0));
    e.store(larger(wanted, e.load(want, at)), want, at);
    return {larger(abs(e.load(w, h * dim, dim)) * e.splat(wanted, dim), top[0])};
  })[0];
  Val read = layersOf(block);
  Val layers = max(read, limitKeys(groupMax(layersFor(steps * scale, kUnread, key, shape.keySplit)), block));
  e.when(reduceAdd(layers - read) > 0, [&] { scoreBlock(block, layers); });
}

void FixedKernel::planValues() {
  Val zero = e.constant(VectorType::get(kBlock, e.f32()), 0);
  forHeads([&](Val h) {
    Val inverse = e.splat(f32(1) / e.load(rowSum, h), kBlock), aim = e.load(size, h) * policies().tolerance(CacheRole::Value);
    Val precision = coarsest(aim * aim * (1 - kKeyShare), [&](Val precision) {
      Val threshold = e.splat(precision, kBlock), finer = e.splat(f32(1) / precision, kBlock);
      Vals sums = forTokens(index(0), fullTokens, {zero, zero, zero}, [&](Val t, Vals sum) -> Vals {
        Val reach = e.load(p, h * padded + t, kBlock) * e.load(reachScale, t, kBlock) * inverse;
        Val read = reach > threshold, left = select(read, zero, reach), off = select(read, offAfterReading(reach * finer), zero);
        return {sum[0] + off * off, sum[1] + left * left, sum[2] + left};
      });
      Val common = reduceAdd(sums[2]) * kCommon;
      return reduceAdd(sums[0]) * precision * precision * (1.0 / 3) + reduceAdd(sums[1]) * e.load(fill, h) + common * common;
    });
    e.store(precision, precisionV, h);
  });
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

/// reachScale[t] = 2^(E_t - E of the loudest row that any query sees), 0 where that is below the floats or no query sees the row.
void FixedKernel::scaleRows() {
  Val zero = e.constant(VectorType::get(kBlock, e.i32()), 0);
  auto exponentsOf = [&](Val t) {
    Val exponents = zext(e.load(value.exponent, t, kBlock), e.i32());
    return shape.mask ? select(areSeen(t), exponents, zero) : exponents;
  };
  Val exponents = forTokens(index(0), fullTokens, {zero}, [&](Val t, Vals top) -> Vals { return {max(top[0], exponentsOf(t))}; })[0];
  Val top = reduceMax(exponents);
  if (shape.mask) // a query may see none of these rows
    top = select(top == 0, e.constant(e.i32(), 127), top);
  loudestExponent = convert(top, e.i8());
  Val base = e.splat(top - 127, kBlock);
  forTokens(index(0), fullTokens, [&](Val t) {
    Val relative = exponentsOf(t) - base;
    e.store(bitcast(max(relative, 0) << 23, e.f32()), reachScale, t);
  });
}

void FixedKernel::values() {
  e.when(key.blocks > 0, [&] {
    if (!exact)
      planValues();
    listValues();
    addListed();
    addValueEscapes();
  });
  addOpenValues();
}

/// Sorts the rows to read into work lists, one per nibble layer and digit, with their weights' digits beside them.
void FixedKernel::listValues() {
  SplitAttr split = shape.valueSplit;
  e.loop(index(0), index(kLayers * kDigits), 1, [&](Val i) { e.store(e.constant(e.i64(), 0), listCount, i); });
  Val zero = e.constant(VectorType::get(kBlock, e.f32()), 0);
  // weightScale[h] = 1 / step of the weights p * reachScale / sum
  forHeads([&](Val h) {
    Val top = forTokens(index(0), fullTokens, {zero}, [&](Val t, Vals top) -> Vals {
      return {larger(e.load(p, h * padded + t, kBlock) * e.load(reachScale, t, kBlock), top[0])};
    })[0];
    Val limit = f32(kWeightLimit) / (reduceMax(top) / e.load(rowSum, h));
    Val wanted = exact ? limit : min(f32(kWeightGuard) / e.load(precisionV, h), limit);
    e.store(isLimited(CacheRole::Value) ? select(policies().wantsMoreValues(), limit, wanted) : wanted, weightScale, h);
    e.store(e.constant(valueConstant.element, 0), valueConstant, h);
    e.store(zero, unread, h * kBlock);
  });

  forTokens(index(0), fullTokens, [&](Val t) {
    auto reachOf = [&](Val h) {
      return e.load(p, h * padded + t, kBlock) * e.load(reachScale, t, kBlock) * e.splat(f32(1) / e.load(rowSum, h), kBlock);
    };
    Val layers;
    if (exact) {
      layers = e.splat(value.layers, kBlock);
    } else {
      Val steps = e.loop(index(0), index(shape.heads), 1, {zero}, [&](Val h, Vals top) -> Vals {
        return {larger(reachOf(h) * e.splat(f32(1) / e.load(precisionV, h), kBlock), top[0])};
      })[0];
      layers = limitValues(layersFor(steps, 1, value, split), t);
      forHeads([&](Val h) {
        Val left = select(layers == 0, e.load(p, h * padded + t, kBlock), zero);
        e.store(e.load(unread, h * kBlock, kBlock) + left, unread, h * kBlock);
      });
    }
    if (shape.mask)
      layers = select(areSeen(t), layers, e.constant(layers.type(), 0));
    e.store(convert(layers, e.i8()), valueRead, t);
    Val first = maskBits(layers > 0);
    e.when(first != 0, [&] {
      Val turn = dither(tokensFrom(t, kBlock)), offset = offsetOf(layers) - turn;
      Val spread = exact ? zero : turn * (1.0 / 4096); // so that equal weights are not all rounded alike
      Vals masks = e.loop(index(0), index(shape.heads), 1, Vals(kDigits, e.constant(e.i64(), 0)), [&](Val h, Vals masks) {
        Val whole = toWeight(reachOf(h) * e.splat(e.load(weightScale, h), kBlock) + spread);
        whole = select(layers > 0, whole, e.constant(whole.type(), 0));
        for (int64_t d = 0; d < kDigits; ++d) {
          Val digits = digit(whole, d);
          e.store(digits, blockDigits, (h + d * shape.heads) * kBlock);
          masks[d] = masks[d] | maskBits(digits != 0);
        }
        // In double: what equal blocks add, floats would round alike.
        Val addend = reduceAdd(convert(whole, e.f32()) * offset);
        e.store(e.load(valueConstant, h) + convert(addend, valueConstant.element), valueConstant, h);
        return masks;
      });
      for (int64_t d = 0; d < kDigits; ++d)
        e.store(masks[d], digitMask, index(d));
      for (int64_t layer = 0; layer < residentLayers(split); ++layer) {
        Val layerMask = layer == 0 ? first : maskBits(layers > layer);
        e.loop(index(0), index(kDigits), 1, [&](Val d) {
          Val number = d + layer * kDigits;
          Val count = convert(e.load(listCount, number), e.types.getIndexType());
          Val end = e.forEachBit(layerMask & e.load(digitMask, d), {count}, [&](Val bit, Vals n) -> Vals {
            e.store(convert(t + bit, e.i32()), list, number * listStride + n[0]);
            forHeads([&](Val h) {
              e.store(e.load(blockDigits, (h + d * shape.heads) * kBlock + bit), listDigits, (number * shape.heads + h) * listStride + n[0]);
            });
            return {n[0] + 1};
          })[0];
          e.store(convert(end, e.i64()), listCount, number);
        });
      }
    });
  });
}

/// Four rows at a time: their bytes interleave into words that hold one channel pair of each.
void FixedKernel::addListed() {
  int64_t dim = shape.valueDim, half = dim / 2;
  SplitAttr split = shape.valueSplit;
  int64_t vector = half % lanes ? 8 : lanes;
  int64_t columnWords = vector;
  while (columnWords < 32 && half % (2 * columnWords) == 0 && (shape.isa == Isa::AVX512 || columnWords < 16))
    columnWords *= 2;
  Val loudestScale = unitScale(loudestExponent); // of one unit of n

  for (int64_t layer = 0; layer < residentLayers(split); ++layer) {
    Buffer rows = e.buffer(value.layer[layer], e.i8());
    LayerPlace place = placeOf(split, layer);
    e.loop(index(0), index(kDigits), 1, [&](Val d) {
      Val number = d + layer * kDigits;
      Val count = convert(e.load(listCount, number), e.types.getIndexType());
      e.loop(count, count + 3, 1, [&](Val i) { // fill the last group with rows of no weight
        e.store(e.constant(e.i32(), 0), list, number * listStride + i);
        forHeads([&](Val h) { e.store(e.constant(e.i8(), 0), listDigits, (number * shape.heads + h) * listStride + i); });
      });
      Val placeValue = bitcast((convert(d, e.i32()) * 8 + 127) << 23, e.f32()) * std::pow(16.0, kLayers - 1 - layer) * loudestScale;
      for (int64_t column = 0; column < half; column += columnWords)
        forHeadGroups(2 * columnWords / vector, [&](Val head, int64_t heads) {
          DotColumn dots{shape.isa, vector, columnWords, heads};
          e.loop(index(0), count, kDotItems, [&](Val first) {
            Vals sums = e.loop(first, min(count, first + kDotItems), 4, dots.zero(e), [&](Val i, Vals sums) {
              Vals starts;
              for (int64_t k = 0; k < 4; ++k) {
                Val t = convert(e.load(list, number * listStride + i + k), e.types.getIndexType());
                starts.push_back((t * place.planeLayers + place.index) * half + column);
              }
              return dots.add(
                  e, sums,
                  [&](int64_t v) {
                    Val word = zext(e.load(rows, starts[0] + v * vector, vector), e.i32());
                    for (int64_t k = 1; k < 4; ++k)
                      word = word | (zext(e.load(rows, starts[k] + v * vector, vector), e.i32()) << (8 * k));
                    return word;
                  },
                  [&](int64_t h) {
                    // Lists start at any byte: a four-byte load, not an aligned word.
                    Val digits = e.load(listDigits, (number * shape.heads + head + h) * listStride + i, 4);
                    return lane(bitcast(digits, e.i32()), 0);
                  });
            });
            for (int64_t h = 0; h < heads; ++h) {
              Val factor = e.splat(placeValue * e.load(rowSum, head + h) / e.load(weightScale, head + h), vector);
              for (bool high : {false, true})
                for (int64_t v = 0; v < columnWords / vector; ++v) {
                  Val at = (head + h) * dim + (high * half + column + v * vector);
                  e.store(e.load(out, at, vector) + convert(sums[dots.at(h, high, v)], e.f32()) * factor, out, at);
                }
            }
          });
        });
    });
  }
  forHeads([&](Val h) {
    Val constant = convert(e.load(valueConstant, h), e.f32()) * loudestScale * e.load(rowSum, h) / e.load(weightScale, h);
    Val at = h * dim, sum = e.load(out, at, dim) + e.splat(constant, dim);
    if (!exact) // rows that are not read stand for their mean
      sum = sum + e.splat(reduceAdd(e.load(unread, h * kBlock, kBlock)), dim) * middle();
    e.store(sum, out, at);
  });
}

//===----------------------------------------------------------------------===//
// The certificate
//===----------------------------------------------------------------------===//

void FixedKernel::prepareCertificate() {
  meanMax = reduceMax(abs(middle())) / valueUnit();
  if (!exact)
    fillMax = e.choose(
        key.blocks > 0,
        [&]() -> Vals {
          return {e.loop(index(0), index(shape.heads), 1, {f32(0)}, [&](Val h, Vals top) -> Vals { return {larger(e.load(fill, h), top[0])}; })[0]};
        },
        [&]() -> Vals { return {f32(0)}; })[0];
}

RowKernel::RowBounds FixedKernel::boundValues(Val t) {
  Val layers = zext(e.load(valueRead, t, kBlock), e.i32());
  Val scale = larger(e.load(reachScale, t, kBlock), e.constant(VectorType::get(kBlock, e.f32()), 1e-37));
  Val reach = scale * (1 / kRoom * (1 + 0x1p-20)), left = scale * remainderOf(layers);
  Val zero = e.constant(left.type(), 0), variance = left * left * (1.0 / 3);
  if (exact)
    return {reach, left, variance};
  Val read = layers > 0, most = e.splat(fillMax, kBlock);
  return {reach, select(read, left, reach + e.splat(meanMax, kBlock)), select(read, variance, scale * scale * most), select(read, zero, scale)};
}

Val FixedKernel::weightError(Val h) {
  Val one = e.constant(VectorType::get(kBlock, e.f32()), 1), zero = e.constant(one.type(), 0);
  Val read = reduceAdd(forTokens(index(0), fullTokens, {zero}, [&](Val t, Vals count) -> Vals {
    return {count[0] + select(e.load(valueRead, t, kBlock) != 0, one, zero)};
  })[0]);
  return select(key.blocks > 0, read * (exact ? 0.5 : 1) * e.load(rowSum, h) / e.load(weightScale, h), f32(0));
}

} // namespace

std::unique_ptr<RowKernel> aligned::makeFixedKernel(Emitter &e, const KernelShape &shape) { return std::make_unique<FixedKernel>(e, shape); }
