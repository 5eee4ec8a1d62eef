// The stages that storage formats share: what is dense, what is kept aside, and the statistics of scores. See DecodeKernel.h.
#include "DecodeKernel.h"

using namespace mlir;
using namespace aligned;

/// A thread takes a token and some of the query rows.
void DecodeKernel::scoreOpen(QueryAt query) {
  Val token = thread & (ALIGNED_BLOCK - 1);
  constexpr int64_t kAtOnce = 8;
  e.loop(shrLogical(thread, number(6)), number(shape.heads), threads / ALIGNED_BLOCK, [&](Val h) {
    e.when(token < key.open, [&] {
      Vals sums = e.loop(number(0), number(shape.keyDim), kAtOnce, Vals(kAtOnce, real(0)), [&](Val c, Vals sums) {
        Val at = token * shape.keyDim + c, k;
        for (int64_t i = 0; i < kAtOnce; ++i) {
          if (i % 4 == 0)
            k = convert(e.loadGlobal(key.openTokens, VectorType::get(4, shape.key), at + i), e.f32());
          sums[i] = fma(aligned::lane(k, i % 4), query(h, c + i), sums[i]);
        }
        return sums;
      });
      for (int64_t stride = kAtOnce / 2; stride; stride /= 2) // few roundings follow one another
        for (int64_t i = 0; i < stride; ++i)
          sums[i] = sums[i] + sums[i + stride];
      Val at = key.blocks * ALIGNED_BLOCK + token;
      e.storeGlobal(seenScore(sums[0], h, at), scoresOf(h), at);
    });
  });
}

/// Lanes share the query rows.
void DecodeKernel::addKeyEscapes(QueryAt query, Val block, Val firstHead, int64_t count) {
  e.when(key.escapes > 0, [&] {
    e.warpBarrier(); // the scores are there
    Val head = firstHead + lane;
    e.when((lane < count) & (head < shape.heads), [&] {
      Val own = scoresOf(head);
      forEscapes(key, [&](Val token, Val channel, Val number) {
        e.when(shrLogical(token, this->number(6)) == block, [&] { e.storeGlobal(get(own, token) + query(head, channel) * number, own, token); });
      });
    });
  });
}

void DecodeKernel::finishScores(Val block, Val firstHead, int64_t count) {
  if (!isMasked() && !shape.softcap)
    return;
  e.warpBarrier(); // other lanes wrote them
  e.loop(firstHead, min(firstHead + count, number(shape.heads)), 1, [&](Val h) {
    for (int64_t half : {0, 1}) {
      Val token = block * ALIGNED_BLOCK + lane + half * GpuEmitter::kWarp;
      e.storeGlobal(seenScore(get(scoresOf(h), token), h, token), scoresOf(h), token);
    }
  });
}

void DecodeKernel::recordUnseen(int64_t units) {
  if (!isMasked())
    return;
  e.when(isAsked(Argument::ValueLayers) & (split == 0), [&] {
    Val keyLayers = rowOf(Argument::KeyLayers, key.stride * units, e.i8()), valueLayers = rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8());
    e.loop(number(0), key.blocks, 1, [&](Val block) {
      e.when(isBlockVisible(block, key.tokens, shape) == e.constant(e.types.getI1Type(), 0), [&] {
        e.loop(thread, number(units), threads, [&](Val unit) { e.storeGlobal(e.constant(e.i8(), 0), keyLayers, block * units + unit); });
        e.loop(thread, number(ALIGNED_BLOCK), threads, [&](Val token) { e.storeGlobal(e.constant(e.i8(), 0), valueLayers, block * ALIGNED_BLOCK + token); });
      });
    });
  });
}

Val DecodeKernel::poisonOf(QueryAt query, Val h) {
  Val poison = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals sum) -> Vals {
    return {fma(query(h, c), real(0), sum[0])};
  })[0];
  return warpAdd(poison);
}

Vals DecodeKernel::addScores(Val maximum, Val sum, ArrayRef<Val> scores) {
  Val highest = maximum;
  for (Val score : scores)
    highest = e.largest(score, highest);
  sum = sum * weightOf(maximum, highest);
  for (Val score : scores)
    sum = sum + weightOf(score, highest);
  return {highest, sum};
}

void DecodeKernel::storeStatistics(Val h, Val maximum, Val sum, Val loudest, Val exponent) {
  Val highest = warpMax(maximum), whole = warpAdd(sum * weightOf(maximum, highest)), top = warpMax(loudest), largest = warpMax(exponent);
  e.when(lane == 0, [&] {
    Val ofSplits = rowOf(Argument::Statistics, splits * (shape.heads * kStatistics)), at = (split * shape.heads + h) * kStatistics;
    for (auto [which, what] : {std::pair(kMaximum, highest), std::pair(kSum, whole), std::pair(kLoudest, top), std::pair(kExponent, largest)})
      e.storeGlobal(what, ofSplits, at + which);
  });
}

void DecodeKernel::addOpenValues(Shared weights) {
  int64_t dim = shape.valueDim, rowWidth = dim + kSeen;
  forThreads(shape.heads * ALIGNED_BLOCK, [&](Val i) {
    Val h = shrLogical(i, number(6)), token = i & (ALIGNED_BLOCK - 1);
    e.when(token < key.open, [&] {
      e.store(weightOf(get(scoresOf(h), key.blocks * ALIGNED_BLOCK + token), statistic(h, kMaximum)), weights, i);
    });
  });
  e.barrier(); // the weights are there, and what the splits' planes gave
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * rowWidth));
  forThreads(shape.heads * dim, [&](Val i) {
    Val h = i / dim, channel = i % dim, at = (split * shape.heads + h) * rowWidth + channel;
    Val sum = e.loop(number(0), key.open, 1, {get(partial, at)}, [&](Val token, Vals sum) -> Vals {
      Val x = convert(e.loadGlobal(value.openTokens, shape.value, token * dim + channel), e.f32());
      if (isMasked()) // what is hidden takes no part, whatever it holds
        x = select(isSeen(h, key.blocks * ALIGNED_BLOCK + token), x, real(0));
      return {fma(e.load(weights, h * ALIGNED_BLOCK + token), x, sum[0])};
    })[0];
    e.storeGlobal(sum, partial, at);
  });
}
