// The plan (P2): the coarsest precisions of K and V whose predicted error keeps within the budget, from what the look saw. One block of threads for each row, a warp for
// each query row; the lanes share its channels, its blocks and the bins of its histogram.
//
// A bin stands for the reach in its middle: an eighth of an octave more or less, as often one as the other.
#include "DecodeKernel.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

namespace {

class PlanKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();

private:
  Shared statistics;
  struct Size {
    Val size, fill;
  };
  Size sizeOf(Val h);
  Val planKeys(Val h, const Size &size, Val round, Val plan);
  Val planValues(Val h, const Size &size);
};

/// The rms of the output and the fill of V's rows, in units of the loudest row's scale.
PlanKernel::Size PlanKernel::sizeOf(Val h) {
  int64_t dim = shape.valueDim, width = dim + kSeen;
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * width));
  auto sum = [&](Val channel) {
    return e.loop(number(0), splits, 1, {real(0)}, [&](Val s, Vals sum) -> Vals { return {sum[0] + get(partial, (s * shape.heads + h) * width + channel)}; })[0];
  };
  Val mine = e.choose(lane < kSeen, [&]() -> Vals { return {sum(lane + dim)}; }, [&]() -> Vals { return {real(0)}; })[0];
  auto seen = [&](Seen which) { return e.shuffleFrom(mine, number(which)); };
  Val top = convert(e.load(statistics, h * kStatistics + kExponent), e.i32()), toRelative = real(1) / (unitScale(top) * 32768.0);
  Val unseen = max(real(1) - seen(kMass), real(0));
  Val square = e.loop(lane, number(dim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals square) -> Vals {
    Val output = fma(unseen, meanOf(c, e.load(statistics, h * kStatistics + kExponent)) * toRelative, sum(c));
    return {fma(output, output, square[0])};
  })[0];
  Val size = sqrt(warpAdd(square) * (1.0 / dim));
  Val least = sqrt((seen(kSquares) + seen(kOpenSquares)) * (1.0 / dim) / seen(kMass) / convert(visibleTokens(h % shape.queries, key.tokens, key.tokens, shape), e.f32()));
  return {max(size, least) + kTiny, e.largest(seen(kSquares) * (1.0 / dim) / seen(kScales), real(kLeastFill))};
}

/// The precision of addends of K where that is to be finer, else infinity.
Val PlanKernel::planKeys(Val h, const Size &size, Val round, Val plan) {
  Val loudness = ofHead(rowOf(Argument::Loudness, key.stride * (shape.heads * kLoudnessNumbers)), h, key.stride * kLoudnessNumbers);
  Val variance = ofHead(rowOf(Argument::Variance, key.stride * shape.heads), h, key.stride);
  Val power = size.size * size.size;
  auto overBlocks = [&](function_ref<Val(Val energy, Val loudest, Val variance)> of) {
    Val sum = e.loop(lane, seenBlocks, GpuEmitter::kWarp, {real(0)}, [&](Val index, Vals sum) -> Vals {
      Val block = blockAt(index);
      Val four = e.loadGlobal(loudness, VectorType::get(4, e.f32()), block * kLoudnessNumbers, /*constant=*/false);
      auto number = [&](int64_t i) { return aligned::lane(four, i); };
      return {sum[0] + of(fma(number(1), power, number(3) * size.fill), fma(number(0), power, number(2) * size.fill), get(variance, block))};
    })[0];
    return warpAdd(sum);
  };
  Val aim = size.size * policies.tolerance(CacheRole::Key), budget = aim * aim * kKeyShare;
  Val varied = overBlocks([&](Val energy, Val, Val variance) { return energy * variance; });
  Val over = (varied > budget * select(round == 0, real(1), real(kSlack))) & (round < real(kRounds));
  e.when(lane == 0, [&] { e.storeGlobal(varied, plan, h * kPlanNumbers + kVaried); });
  return e.choose(
      over,
      [&]() -> Vals {
        return {coarsest(budget, [&](Val precision) {
          Val square = precision * precision * (kStepVariance * shape.keyDim), threshold = precision * precision * (1 / kCoarse / kCoarse);
          return overBlocks([&](Val energy, Val loudest, Val variance) {
            Val kept = energy * variance;
            return select(loudest > threshold, e.smallest(kept, energy / loudest * square), kept);
          });
        })};
      },
      [&]() -> Vals { return {real(INFINITY)}; })[0];
}

Val PlanKernel::planValues(Val h, const Size &size) {
  constexpr int64_t kLaneBins = kBins / GpuEmitter::kWarp;
  Val histogram = ofHead(rowOf(Argument::Histogram, shape.heads * kBins, e.i32()), h, number(kBins), e.i32());
  Val top = loudestReach(statistics, h);
  Vals counts, reaches;
  for (int64_t i = 0; i < kLaneBins; ++i) {
    Val bin = lane + i * GpuEmitter::kWarp;
    counts.push_back(convert(e.loadGlobal(histogram, e.i32(), bin, /*constant=*/false), e.f32()));
    reaches.push_back(top * e.exp2((convert(bin, e.f32()) + 0.5) * -0.25));
  }
  Val aim = size.size * policies.tolerance(CacheRole::Value);
  return coarsest(aim * aim * (1 - kKeyShare), [&](Val precision) {
    Val off = real(0), left = real(0), common = real(0), finer = real(1) / precision;
    for (auto [count, reach] : llvm::zip(counts, reaches)) {
      Val read = reach > precision, remainder = select(read, offAfterReading(reach * finer), real(0)), unread = select(read, real(0), reach);
      off = fma(count * remainder, remainder, off);
      left = fma(count * unread, unread, left);
      common = fma(count, unread, common);
    }
    common = warpAdd(common) * kCommon;
    return warpAdd(off) * precision * precision * (1.0 / 3) + warpAdd(left) * size.fill + common * common;
  });
}

void PlanKernel::emit() {
  Val plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers);
  auto at = [&](Val h, PlanOf which) { return h * kPlanNumbers + which; };
  e.when(isPlanOpen() & (seenBlocks > 0), [&] {
    statistics = statisticsOfRow(); // whose barrier also says that all have looked at the plan before it changes
    forHeadsOfWarp(shape.heads, [&](Val h) {
      Size size = sizeOf(h);
      Val round = get(plan, at(h, kRound));
      e.warpBarrier(); // all lanes know the round
      Val precisionK = planKeys(h, size, round, plan), precisionV = planValues(h, size);
      e.when(lane == 0, [&] {
        for (auto [which, what] : {std::pair(kPrecisionK, precisionK), std::pair(kPrecisionV, precisionV), std::pair(kPower, size.size * size.size),
                                   std::pair(kFill, size.fill), std::pair(kRound, round + 1)})
          e.storeGlobal(what, plan, at(h, which));
      });
    });
  });
  finish();
}

} // namespace

void aligned::emitPlan(ModuleOp program, StringRef name, const DecodeShape &shape) { PlanKernel(program, name, shape).emit(); }
