// The probe of the published rule (P1): what the most probable rows of V show in the output, against the largest value of each channel. One block of threads for each
// row, a warp for each query row.
//
// The best rows are kept sorted, one in each lane. They lie in as many blocks, those with the largest scores: these are found first, so that few scores are looked at.
// Of equal scores the earlier token comes first.
#include "FloatKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

using namespace mlir;
using namespace aligned;

namespace {

static_assert(kProbed == GpuEmitter::kWarp);

class ProbeKernel : public FloatKernel {
public:
  ProbeKernel(ModuleOp program, StringRef name, const DecodeShape &shape) : FloatKernel(program, name, shape, std::clamp<int64_t>(shape.heads, 4, 16)) {}
  void emit();

private:
  static constexpr int64_t kNobody = INT32_MAX;
  // Lanes share a nibble row of V, or several of them.
  const int64_t lanesPerRow = llvm::PowerOf2Ceil(words), rowsAtOnce = GpuEmitter::kWarp / lanesPerRow;
  Val rowOfLane() { return shrLogical(lane, number(llvm::Log2_64(lanesPerRow))); }
  Val wordInRow() { return min(lane & (lanesPerRow - 1), number(words - 1)); }

  /// Tokens or blocks and their scores, the best in lane 0.
  struct Best {
    Val score, number;
  };
  Best nothing() { return {real(-INFINITY), number(kNobody)}; }
  Val precedes(const Best &a, const Best &b) { return (a.score > b.score) | ((a.score == b.score) & (a.number < b.number)); }
  Best insert(const Best &best, const Best &mine, Val there);
  Best findBlocks(Val h);
  Best findTokens(Val h, const Best &blocks);
  /// This lane's words of a row of V, from where the planes of its block lie, and their values as f32.
  Vals rowWords(Val layers, ArrayRef<Val> planes, Val within);
  Vals valuesOf(const Vals &words);
  Val marginOf(Val h, const Best &tokens);
};

/// Inserts what the lanes have, where it is there.
ProbeKernel::Best ProbeKernel::insert(const Best &best, const Best &mine, Val there) {
  Val last = number(GpuEmitter::kWarp - 1);
  Val waiting = e.ballot(there & precedes(mine, {e.shuffleFrom(best.score, last), e.shuffleFrom(best.number, last)}));
  Vals s = e.forEachLane(waiting, {best.score, best.number}, [&](Val source, Vals s) -> Vals {
    Val before = max(lane - 1, number(0));
    Best own{s[0], s[1]}, next{e.shuffleFrom(mine.score, source), e.shuffleFrom(mine.number, source)};
    Best better{e.shuffleFrom(own.score, before), e.shuffleFrom(own.number, before)};
    Val place = e.countBits(e.ballot(precedes(own, next)));
    auto pick = [&](Val own, Val next, Val better) { return select(lane < place, own, select(lane == place, next, better)); };
    return {pick(own.score, next.score, better.score), pick(own.number, next.number, better.number)};
  });
  return {s[0], s[1]};
}

ProbeKernel::Best ProbeKernel::findBlocks(Val h) {
  constexpr int64_t kAtOnce = 4;
  Val tops = ofHead(rowOf(Argument::Blocks, key.stride * shape.heads), h, key.stride);
  Best none = nothing();
  Vals found = e.loop(number(0), seenBlocks, kAtOnce * GpuEmitter::kWarp, {none.score, none.number}, [&](Val first, Vals s) -> Vals {
    Best best{s[0], s[1]};
    SmallVector<std::pair<Best, Val>> candidates;
    for (int64_t i = 0; i < kAtOnce; ++i) {
      Val index = first + lane + i * GpuEmitter::kWarp, block = blockAt(min(index, seenBlocks - 1));
      candidates.push_back({{get(tops, block), block}, index < seenBlocks});
    }
    for (const auto &[candidate, there] : candidates)
      best = insert(best, candidate, there);
    return {best.score, best.number};
  });
  return {found[0], found[1]};
}

ProbeKernel::Best ProbeKernel::findTokens(Val h, const Best &blocks) {
  constexpr int64_t kAtOnce = 4;
  Val own = scoresOf(h), least = e.shuffleFrom(blocks.score, number(kProbed - 1)); // as many tokens have this score or more
  Best none = nothing();
  Vals found = e.loop(number(0), min(seenBlocks, number(kProbed)), kAtOnce, {none.score, none.number}, [&](Val first, Vals s) -> Vals {
    Best best{s[0], s[1]};
    SmallVector<std::pair<Best, Val>> candidates;
    for (int64_t i = 0; i < kAtOnce; ++i) {
      Val block = e.shuffleFrom(blocks.number, first + i), there = block < key.blocks;
      for (int64_t half : {0, 1}) {
        Val token = select(there, block, blockAt(number(0))) * ALIGNED_BLOCK + lane + half * GpuEmitter::kWarp;
        candidates.push_back({{get(own, token), token}, there});
      }
    }
    for (const auto &[candidate, there] : candidates)
      best = insert(best, candidate, there & (candidate.score >= least));
    return {best.score, best.number};
  });
  Best best{found[0], found[1]};
  for (int64_t half : {0, 1}) { // of the open block
    Val token = key.blocks * ALIGNED_BLOCK + lane + half * GpuEmitter::kWarp;
    best = insert(best, {get(own, min(token, key.tokens - 1)), token}, token < key.tokens);
  }
  return best;
}

Vals ProbeKernel::rowWords(Val layers, ArrayRef<Val> planes, Val within) {
  return wordsOf(layers, shape.valuePlanes, [&](const LayerPlace &place) {
    return e.loadGlobal(planes[place.plane], e.i32(), (within * place.planeLayers + place.index) * words + wordInRow());
  });
}

Vals ProbeKernel::valuesOf(const Vals &words) {
  Vals values;
  for (Val two : pairsOf(words)) {
    if (shape.value.isBF16()) {
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

/// How many powers of two the channel where most shows lies above, or below, its largest value.
Val ProbeKernel::marginOf(Val h, const Best &tokens) {
  int64_t dim = shape.valueDim, steps = std::min<int64_t>(4, kProbed / rowsAtOnce);
  auto channelOf = [&](int64_t i) { return wordInRow() * 4 + (i < 4 ? i : i - 4 + dim / 2); };
  Val full = key.blocks * ALIGNED_BLOCK, inverse = real(1) / statistic(h, kSum);
  Val p = weightOf(tokens.score, statistic(h, kMaximum)) * inverse;
  Vals sums = e.loop(number(0), number(kProbed), steps * rowsAtOnce, Vals(kWordValues, real(0)), [&](Val first, Vals sums) {
    struct Row {
      Val token, weight;
      Vals words;
    };
    SmallVector<Row> rows;
    for (int64_t step = 0; step < steps; ++step) {
      Val index = first + rowOfLane() + step * rowsAtOnce, token = e.shuffleFrom(tokens.number, index), weight = e.shuffleFrom(p, index);
      Val inPlanes = min(token, full - 1), block = shrLogical(inPlanes, number(6));
      Vals planes = planesOf(value, shape.valuePlanes, block, dim);
      rows.push_back({token, select(token < key.tokens, weight, real(0)), rowWords(value.layers, planes, inPlanes & (ALIGNED_BLOCK - 1))});
    }
    for (const Row &row : rows) {
      Vals values = valuesOf(row.words);
      Val isOpen = (row.token >= full) & (row.token < key.tokens);
      if (isMasked()) // what is hidden weighs nothing, whatever it holds
        isOpen = isOpen & (row.weight > 0);
      values = e.choose(
          isOpen,
          [&] {
            Vals open;
            for (int64_t i = 0; i < kWordValues; ++i)
              open.push_back(convert(e.loadGlobal(value.openTokens, shape.value, (row.token - full) * dim + channelOf(i)), e.f32()));
            return open;
          },
          [&] { return values; });
      for (int64_t i = 0; i < kWordValues; ++i)
        sums[i] = fma(row.weight, abs(values[i]), sums[i]);
    }
    return sums;
  });
  Val least = number(1 << 10);
  for (int64_t i = 0; i < kWordValues; ++i) {
    for (int64_t distance = lanesPerRow; distance < GpuEmitter::kWarp; distance *= 2)
      sums[i] = sums[i] + e.shuffleXor(sums[i], distance);
    least = min(least, halfExponent(sums[i]) - halfExponent(get(value.channelMax, channelOf(i))));
  }
  return -e.warpMax(-least, {16, 8, 4, 2, 1});
}

void ProbeKernel::emit() {
  e.when(seenBlocks > 0, [&] {
    shareStatistics(Readers::SameWarp);
    forHeadsOfWarp(shape.heads, [&](Val h) {
      Val margin = marginOf(h, findTokens(h, findBlocks(h)));
      e.when(lane == 0, [&] { e.storeGlobal(convert(margin, e.f32()), rowOf(Argument::Plan, shape.heads), h); });
    });
  });
  finish();
}

} // namespace

void aligned::emitProbe(ModuleOp program, StringRef name, const DecodeShape &shape) { ProbeKernel(program, name, shape).emit(); }
