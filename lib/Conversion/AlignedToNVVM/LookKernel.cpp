// The look: how loud tokens and blocks are, and from plane 0 of the loudest rows of V and the open block, what the output will be like (P2).
//
// A warp takes a block of 64 tokens. First its halves take a query row each and a lane four tokens: weights, their squares, the histogram, and which tokens are
// within a factor of 64 of the loudest. Then the rows of these are read, a word of eight channels for each lane: several rows at once where they are short.
#include "DecodeKernel.h"

#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kHeadsAtOnce = 8, kMeetingBytes = 24 << 10;
constexpr double kLoudOctaves = 6; // rows within a factor of 64 of the loudest are read

class LookKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();

private:
  const int64_t headsAtOnce = std::clamp<int64_t>(kMeetingBytes / (warps * (shape.valueDim + kSeen) * 4), 1, kHeadsAtOnce);
  const int64_t headGroups = llvm::divideCeil(shape.heads, headsAtOnce), groupHeads = llvm::divideCeil(shape.heads, headGroups);
  // A nibble row of V is `words` words of eight channels, 4 w .. 4 w + 3 and half a row further.
  const int64_t words = shape.valueDim / 8, lanesPerRow = llvm::PowerOf2Ceil(words), rowsAtOnce = GpuEmitter::kWarp / lanesPerRow;
  static constexpr int64_t kChannels = 8;
  const int64_t perHead = kChannels + kSeen;

  Shared statistics, histogram, listed, meeting;
  Val word, rowOfLane, isWord; // which word of which of the rows this lane reads, and whether there is one

  Val scoresOf(Val h) { return ofHead(rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK)), h, key.stride * ALIGNED_BLOCK); }
  Val statistic(Val h, Statistic which) { return e.load(statistics, h * kStatistics + which); }
  Val lookAtBlock(Val block, Val firstHead);
  void add(Vals &sums, Val token, Val firstHead, Val there, Vals row, Val scale, bool open);
  Vals readBlock(Vals sums, Val block, Val count, Val firstHead);
  Vals readOpen(Vals sums, Val firstHead);
  void store(Vals sums, Val firstHead);
};

/// Fills the loudness of the block, counts its tokens, and lists the loud ones; how many there are.
Val LookKernel::lookAtBlock(Val block, Val firstHead) {
  constexpr int64_t kLaneTokens = 4;
  Val half = shrLogical(lane, number(4)), quad = lane & 15;
  Val bytes = e.loadGlobal(blockOf(value.exponent, physical(value, block), ALIGNED_BLOCK), e.i32(), quad);
  Vals exponents;
  for (int64_t j = 0; j < kLaneTokens; ++j)
    exponents.push_back(shrLogical(bytes, number(8 * j)) & 255);
  Val loudness = rowOf(Argument::Loudness, key.stride * (shape.heads * kLoudnessNumbers));
  Val loud = e.loop(number(0), number(groupHeads), 2, {number(0)}, [&](Val pair, Vals loud) -> Vals {
    Val head = firstHead + pair + half, there = (pair + half < groupHeads) & (head < shape.heads), h = min(head, number(shape.heads - 1));
    Val maximum = statistic(h, kMaximum), inverse = real(1) / statistic(h, kSum), loudest = statistic(h, kLoudest), top = statistic(h, kExponent);
    Val four = e.loadGlobal(scoresOf(h), VectorType::get(kLaneTokens, e.f32()), block * ALIGNED_BLOCK + quad * kLaneTokens, /*constant=*/false);
    Val bits = number(0);
    Vals sums(kLoudnessNumbers, real(0)); // of p^2 the largest and the sum, and the same of (p * scale)^2
    for (int64_t j = 0; j < kLaneTokens; ++j) {
      Val score = aligned::lane(four, j), p = weightOf(score, maximum) * inverse, reach = p * relativeScale(exponents[j], top);
      sums[0] = e.largest(p * p, sums[0]);
      sums[1] = fma(p, p, sums[1]);
      sums[2] = e.largest(reach * reach, sums[2]);
      sums[3] = fma(reach, reach, sums[3]);
      Val below = loudest - fma(score, real(kLog2e), convert(exponents[j], e.f32())); // octaves
      bits = bits | select(below <= kLoudOctaves, number(1 << j), number(0));
      Val bin = convert(e.smallest(e.largest(below * 4.0, real(0)), real(kBins - 1)), e.i32());
      e.when(there, [&] { e.atomicAdd(number(1), histogram, h * kBins + bin); });
    }
    for (int64_t distance : {8, 4, 2, 1})
      for (int64_t i = 0; i < kLoudnessNumbers; ++i) {
        Val other = e.shuffleXor(sums[i], distance);
        sums[i] = i % 2 ? sums[i] + other : e.largest(sums[i], other);
      }
    auto together = vector::FromElementsOp::create(e.b, VectorType::get(4, e.f32()), ValueRange{sums[0].value, sums[1].value, sums[2].value, sums[3].value});
    e.when((quad == 0) & there, [&] { e.storeGlobal(e.wrap(together), ofHead(loudness, h, key.stride * kLoudnessNumbers), block * kLoudnessNumbers); });
    return {loud[0] | select(there, bits, number(0))};
  })[0];
  loud = loud | e.shuffleXor(loud, 16);

  // In the order of bits, which is not that of tokens.
  Val count = number(0), before = (number(1) << lane) - 1;
  for (int64_t j = 0; j < kLaneTokens; ++j) {
    Val mine = ((loud & (1 << j)) != 0) & (lane < 16), all = e.ballot(mine);
    Val place = count + e.countBits(all & before);
    e.when(mine, [&] { e.store(block * ALIGNED_BLOCK + quad * kLaneTokens + j, listed, warp * ALIGNED_BLOCK + place); });
    count = count + e.countBits(all);
  }
  return count;
}

/// Adds a token's channels `row`, in units of the loudest row's scale, of which `scale` is the row's own.
void LookKernel::add(Vals &sums, Val token, Val firstHead, Val there, Vals row, Val scale, bool open) {
  Val square = real(0);
  for (Val x : row)
    square = fma(x, x, square);
  for (int64_t i = 0; i < groupHeads; ++i) {
    Val h = min(firstHead + i, number(shape.heads - 1));
    Val p = select(there, weightOf(get(scoresOf(h), token), statistic(h, kMaximum)) / statistic(h, kSum), real(0));
    Val *sum = &sums[i * perHead], *seen = sum + kChannels;
    for (int64_t c = 0; c < kChannels; ++c)
      sum[c] = fma(p, row[c], sum[c]);
    seen[open ? kOpenSquares : kSquares] = fma(p, square, seen[open ? kOpenSquares : kSquares]);
    Val once = select(word == 0, p, real(0));
    seen[kMass] = seen[kMass] + once;
    if (!open)
      seen[kScales] = fma(once, scale * scale, seen[kScales]);
  }
}

Vals LookKernel::readBlock(Vals sums, Val block, Val count, Val firstHead) {
  int64_t planeLayers = shape.valueSplit.getWidths()[0] / 4;
  double offset = (0x10000 >> (4 * planeLayers)) / 2.0 - 0.5 - 0x8000;
  Val where = physical(value, block), top = statistic(number(0), kExponent);
  Val plane = blockOf(value.plane[0], where, shape.valueDim * 32 * planeLayers), exponents = blockOf(value.exponent, where, ALIGNED_BLOCK);
  return e.loop(number(0), count, rowsAtOnce, sums, [&](Val i, Vals sums) {
    Val index = i + rowOfLane, there = (index < count) & isWord, token = e.load(listed, warp * ALIGNED_BLOCK + min(index, count - 1));
    Val within = token & (ALIGNED_BLOCK - 1);
    Val scale = relativeScale(zext(e.loadGlobal(exponents, e.i8(), within), e.i32()), top);
    Vals numbers(kChannels, number(0));
    for (int64_t layer = 0; layer < planeLayers; ++layer) {
      Val bytes = e.loadGlobal(plane, e.i32(), (within * planeLayers + layer) * words + min(word, number(words - 1)));
      for (int64_t c = 0; c < kChannels; ++c)
        numbers[c] = (numbers[c] << 4) | (shrLogical(bytes, number(c < 4 ? 8 * c : 8 * (c - 4) + 4)) & 15);
    }
    Vals row;
    Val turn = dither(token);
    for (Val n : numbers)
      row.push_back(select(there, (convert(n << (16 - 4 * planeLayers), e.f32()) + offset - turn) * scale * (1.0 / 32768), real(0)));
    add(sums, token, firstHead, there, row, scale, /*open=*/false);
    return sums;
  });
}

Vals LookKernel::readOpen(Vals sums, Val firstHead) {
  Val toRelative = real(1) / (unitScale(convert(statistic(number(0), kExponent), e.i32())) * 32768.0);
  Val last = select(isLastSplit(), value.open, number(0));
  return e.loop(warp * rowsAtOnce, last, warps * rowsAtOnce, sums, [&](Val i, Vals sums) {
    Val index = min(i + rowOfLane, last - 1), there = (i + rowOfLane < last) & isWord;
    Vals row;
    for (int64_t half : {0, 1}) {
      Val at = index * shape.valueDim + min(word, number(words - 1)) * 4 + half * shape.valueDim / 2;
      Val four = convert(e.loadGlobal(value.openTokens, VectorType::get(4, shape.value), at), e.f32());
      for (int64_t c = 0; c < 4; ++c) {
        Val x = aligned::lane(four, c) * toRelative;
        row.push_back(select(there & (abs(x) < INFINITY), x, real(0))); // what is not finite must not blind the plan
      }
    }
    add(sums, key.blocks * ALIGNED_BLOCK + index, firstHead, there, row, real(0), /*open=*/true);
    return sums;
  });
}

/// Adds up what the warp's lanes and the block's warps have, head by head.
void LookKernel::store(Vals sums, Val firstHead) {
  int64_t width = shape.valueDim + kSeen;
  for (int64_t i = 0; i < groupHeads; ++i) {
    Val *sum = &sums[i * perHead];
    for (int64_t distance = GpuEmitter::kWarp / 2; distance >= 1; distance /= 2)
      for (int64_t n = distance >= lanesPerRow ? 0 : kChannels; n < perHead; ++n) // what belongs to channels differs between the lanes of a row
        sum[n] = sum[n] + e.shuffleXor(sum[n], distance);
    Val base = (warp * groupHeads + i) * width;
    e.when((rowOfLane == 0) & isWord, [&] {
      for (int64_t c = 0; c < kChannels; ++c)
        e.store(sum[c], meeting, base + word * 4 + (c < 4 ? c : c - 4 + shape.valueDim / 2));
    });
    e.when(lane == 0, [&] {
      for (int64_t n = 0; n < kSeen; ++n)
        e.store(sum[kChannels + n], meeting, base + shape.valueDim + n);
    });
  }
  e.barrier();
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * width));
  forThreads(groupHeads * width, [&](Val i) {
    Val head = firstHead + i / width, total = real(0);
    for (int64_t w = 0; w < warps; ++w)
      total = total + e.load(meeting, i + w * groupHeads * width);
    e.when(head < shape.heads, [&] { e.storeGlobal(total, partial, (split * shape.heads + head) * width + i % width); });
  });
  e.barrier(); // before the next group of heads meets here
}

void LookKernel::emit() {
  Val plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers), waited = real(INFINITY);
  for (int64_t h = 0; h < shape.heads; ++h)
    waited = min(get(plan, number(h * kPlanNumbers + kPrecisionK)), waited);
  e.when((waited < INFINITY) & (seenBlocks > 0), [&] { // at first no plan was made: precision 0
    statistics = statisticsOfRow();
    histogram = shared("histogram", e.i32(), shape.heads * kBins);
    listed = shared("listed", e.i32(), warps * ALIGNED_BLOCK);
    meeting = shared("meeting", e.f32(), warps * groupHeads * (shape.valueDim + kSeen));
    word = lane & (lanesPerRow - 1);
    rowOfLane = shrLogical(lane, number(llvm::Log2_64(lanesPerRow)));
    isWord = word < words;
    forThreads(shape.heads * kBins, [&](Val i) { e.store(number(0), histogram, i); });
    e.barrier();
    e.loop(number(0), number(shape.heads), groupHeads, [&](Val firstHead) {
      auto [first, end] = stretch();
      Vals sums = e.loop(first + warp, end, warps, Vals(groupHeads * perHead, real(0)), [&](Val index, Vals sums) {
        Val block = blockAt(index);
        Val count = lookAtBlock(block, firstHead);
        e.warpBarrier(); // the list is there
        sums = readBlock(sums, block, count, firstHead);
        e.warpBarrier(); // and read
        return sums;
      });
      store(readOpen(sums, firstHead), firstHead);
    });
    Val counted = rowOf(Argument::Histogram, shape.heads * kBins, e.i32());
    forThreads(shape.heads * kBins, [&](Val i) {
      Val count = e.load(histogram, i);
      e.when(count > 0, [&] { e.atomicAdd(count, counted, i); });
    });
  });
  finish();
}

} // namespace

void aligned::emitLook(gpu::GPUModuleOp module, StringRef name, const DecodeShape &shape) { LookKernel(module, name, shape).emit(); }
