// The probe of the published rule (P1): what the most probable rows of V show in the output, against the largest value of each channel. One block of threads for each
// row, a warp for each query row.
//
// The best rows are kept sorted, one in each lane. They lie in as many tiles, those with the largest scores: these are found first, so that few scores are looked at.
// Of equal scores the earlier token comes first.
#include "FloatKernel.h"

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

  /// Tokens or tiles and their scores, the best in lane 0.
  struct Best {
    Val score, number;
  };
  Best nothing() { return {real(-INFINITY), number(kNobody)}; }
  Val precedes(const Best &a, const Best &b) { return (a.score > b.score) | ((a.score == b.score) & (a.number < b.number)); }
  Best insert(const Best &best, const Best &mine, Val there);
  Best findTiles(Val h);
  Best findTokens(Val h, const Best &best);
  /// This lane's words of a row of V, from where the planes of its tile lie, and their values as f32.
  Vals rowWords(Val layers, ArrayRef<Val> planes, Val within);
  Vals valuesOf(const Vals &words);
  Val marginOf(Val h, const Best &best);
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

ProbeKernel::Best ProbeKernel::findTiles(Val h) {
  constexpr int64_t kAtOnce = 4;
  Val tops = topsOf(h);
  Best none = nothing();
  Vals found = e.loop(number(0), seenTiles, kAtOnce * GpuEmitter::kWarp, {none.score, none.number}, [&](Val first, Vals s) -> Vals {
    Best best{s[0], s[1]};
    SmallVector<std::pair<Best, Val>> candidates;
    for (int64_t i = 0; i < kAtOnce; ++i) {
      Val index = first + lane + i * GpuEmitter::kWarp, tile = tileAt(min(index, seenTiles - 1));
      candidates.push_back({{get(tops, tile), tile}, index < seenTiles});
    }
    for (const auto &[candidate, there] : candidates)
      best = insert(best, candidate, there);
    return {best.score, best.number};
  });
  return {found[0], found[1]};
}

ProbeKernel::Best ProbeKernel::findTokens(Val h, const Best &tilesFound) {
  constexpr int64_t kAtOnce = 4;
  Val own = scoresOf(h), least = e.shuffleFrom(tilesFound.score, number(kProbed - 1)); // as many tokens have this score or more
  Best none = nothing();
  Vals found = e.loop(number(0), min(seenTiles, number(kProbed)), kAtOnce, {none.score, none.number}, [&](Val first, Vals s) -> Vals {
    Best best{s[0], s[1]};
    SmallVector<std::pair<Best, Val>> candidates;
    for (int64_t i = 0; i < kAtOnce; ++i) {
      Val tile = e.shuffleFrom(tilesFound.number, first + i), there = tile < tiles;
      for (int64_t half : {0, 1}) {
        Val token = select(there, tile, tileAt(number(0))) * kTile + lane + half * GpuEmitter::kWarp;
        candidates.push_back({{get(own, token), token}, there});
      }
    }
    for (const auto &[candidate, there] : candidates)
      best = insert(best, candidate, there & (candidate.score >= least));
    return {best.score, best.number};
  });
  return {found[0], found[1]};
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
      Val halves = convert(e.halves(two), e.f32());
      values.push_back(aligned::lane(halves, 0));
      values.push_back(aligned::lane(halves, 1));
    }
  }
  return values;
}

/// How many powers of two the channel where most shows lies above, or below, its largest value.
Val ProbeKernel::marginOf(Val h, const Best &best) {
  const int64_t dim = shape.valueDim, steps = std::min<int64_t>(4, kProbed / rowsAtOnce);
  auto channelOf = [&](int64_t i) { return wordInRow() * 4 + (i < 4 ? i : i - 4 + dim / 2); };
  Vals statistics = statisticsOf(h);
  Val sum = statistics[kSum], p = select(sum == 0, real(0), weightOf(best.score, statistics[kMaximum]) / sum);

  // Of rows kept aside, planes hold nothing.
  Vals state = Vals(kWordValues, real(0));
  state.push_back(p);
  state = e.choose(
      hasAsides(Argument::Value),
      [&] {
        Vals s = state;
        SmallVector<Variable> sums;
        for (Val sum : s)
          sums.push_back(e.variable(sum));
        forAsides(Argument::Value, [&](Val token, Val values) {
          Val own = sums.back()(), isIt = best.number == token, weight = warpAdd(select(isIt, own, real(0)));
          sums.back().set(select(isIt, real(0), own));
          e.when((weight != 0) & (rowOfLane() == 0), [&] {
            for (int64_t i = 0; i < kWordValues; ++i)
              sums[i].set(fma(weight, abs(e.loadGlobal(values, e.f32(), channelOf(i))), sums[i]()));
          });
        });
        for (size_t i = 0; i < s.size(); ++i)
          s[i] = sums[i]();
        return s;
      },
      [&] { return state; });
  p = state.pop_back_val();

  Vals sums = e.loop(number(0), number(kProbed), steps * rowsAtOnce, state, [&](Val first, Vals sums) {
    SmallVector<std::pair<Val, Vals>> rows;
    for (int64_t step = 0; step < steps; ++step) {
      Val index = first + rowOfLane() + step * rowsAtOnce, token = min(e.shuffleFrom(best.number, index), tokens - 1); // where there is no such row it weighs nothing
      Vals planes = planesOf(value, shape.valuePlanes, shrLogical(token, number(6)), dim);
      rows.push_back({e.shuffleFrom(p, index), rowWords(value.layers, planes, token & (kTile - 1))});
    }
    for (const auto &[weight, words] : rows)
      for (auto [i, x] : llvm::enumerate(valuesOf(words)))
        sums[i] = fma(weight, abs(x), sums[i]);
    return sums;
  });
  Val least = number(1 << 10);
  for (int64_t i = 0; i < kWordValues; ++i) {
    for (int64_t distance = lanesPerRow; distance < GpuEmitter::kWarp; distance *= 2)
      sums[i] = sums[i] + e.shuffleXor(sums[i], distance);
    least = min(least, halfExponent(sums[i]) - halfExponent(get(value.channelMax, channelOf(i))));
  }
  constexpr int64_t kMost = 100; // beyond, it makes no difference: 2^margin is to be a float
  return min(max(-e.warpMax(-least, {16, 8, 4, 2, 1}), -kMost), kMost);
}

void ProbeKernel::emit() {
  e.when(seenTiles > 0, [&] {
    forHeadsOfWarp(shape.heads, [&](Val h) {
      Val margin = marginOf(h, findTokens(h, findTiles(h)));
      e.when(lane == 0, [&] { e.storeGlobal(margin, ofRow(Argument::Margins, e.i32(), shape.heads), h); });
    });
  });
  finish();
}

} // namespace

void aligned::emitProbe(ModuleOp program, StringRef name, const DecodeShape &shape) { ProbeKernel(program, name, shape).emit(); }
