// The plan (P2): the coarsest precisions of K and V whose predicted error keeps within the budget, from what the look saw. One block of threads for each query row; the
// threads share its channels and its blocks, and the lanes of each warp the bins of its histogram.
//
// A bin of the histogram stands for the reach in its middle: half of its width more or less, as often one as the other.
#include "DecodeKernel.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kAtOnce = 7; // precisions that are tried: three times do for all there are

class PlanKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();

private:
  const Val h = split; ///< the query row: there are no splits here
  Vals statisticsOfHead;
  Shared meeting;
  Val normal; ///< log2 of e^s / p
  struct Size {
    Val size, fill;
  };
  Val statistic(Statistic which) { return statisticsOfHead[which]; }
  /// Sums over the block of threads.
  Vals addAll(Vals sums);
  Size sizeOf();
  Val planKeys(const Size &size, Val round, Val plan);
  std::pair<Shared, Val> histogramOfRow();
  Val planValues(const Size &size, Shared histogram, Val loudest);
};

Vals PlanKernel::addAll(Vals sums) {
  int64_t count = sums.size();
  for (Val &sum : sums)
    sum = warpAdd(sum);
  e.when(lane == 0, [&] {
    for (int64_t i = 0; i < count; ++i)
      e.store(sums[i], meeting, warp * kAtOnce + i);
  });
  e.barrier();
  Vals all(count, real(0));
  for (int64_t w = 0; w < warps; ++w)
    for (int64_t i = 0; i < count; ++i)
      all[i] = all[i] + e.load(meeting, number(w * kAtOnce + i));
  e.barrier(); // before others meet here
  return all;
}

/// The rms of the output and the fill of V's rows, in units of the loudest row's scale.
PlanKernel::Size PlanKernel::sizeOf() {
  int64_t dim = shape.valueDim, width = dim + kSeen;
  Shared parts = addPartials(h, width);
  auto seen = [&](Seen which) { return sumOf(parts, width, number(dim + which)); };
  Val top = statistic(kExponent), toRelative = real(1) / (unitScale(convert(top, e.i32())) * 32768.0);
  Val unseen = max(real(1) - seen(kMass), real(0));
  Val square = e.loop(thread, number(dim), threads, {real(0)}, [&](Val c, Vals square) -> Vals {
    Val output = fma(unseen, meanOf(c, top) * toRelative, sumOf(parts, width, c));
    return {fma(output, output, square[0])};
  })[0];
  Val size = sqrt(addAll({square})[0] * (1.0 / dim));
  Val least = sqrt((seen(kSquares) + seen(kOpenSquares)) * (1.0 / dim) / seen(kMass) / convert(visibleTokens(h % shape.queries, key.tokens, key.tokens, shape), e.f32()));
  return {max(size, least) + kTiny, e.largest(seen(kSquares) * (1.0 / dim) / seen(kScales), real(kLeastFill))};
}

/// The precision of addends of K where that is to be finer, else infinity.
Val PlanKernel::planKeys(const Size &size, Val round, Val plan) {
  Val numbers = blockNumbersOf(h);
  Val power = size.size * size.size, top = statistic(kExponent);
  auto overBlocks = [&](int64_t count, function_ref<Vals(Val energy, Val loudest, Val variance)> of) {
    return addAll(e.loop(thread, seenBlocks, threads, Vals(count, real(0)), [&](Val index, Vals sums) {
      Val at = blockAt(index) * kBlockNumbers;
      Type four = VectorType::get(4, e.f32());
      Val halves[] = {e.loadGlobal(numbers, four, at), e.loadGlobal(numbers, four, at + 4)};
      auto number = [&](BlockNumber which) { return aligned::lane(halves[which / 4], which % 4); };
      // Of what an error of a score moves the output by, as squares: the loudest token's p and p * scale, and those of all tokens beside them.
      Val p = e.exp2((number(kBlockMaximum) * kLog2e - normal) * 2) * power, reach = e.exp2((number(kBlockLoudest) - top - normal) * 2) * size.fill;
      Vals added = of(fma(p, number(kBlockSquares), reach * number(kBlockReaches)), p + reach, number(kBlockVariance));
      for (auto [sum, more] : llvm::zip(sums, added))
        sum = sum + more;
      return sums;
    }));
  };
  Val aim = size.size * policies.tolerance(CacheRole::Key), budget = aim * aim * kKeyShare;
  Val varied = overBlocks(1, [&](Val energy, Val, Val variance) -> Vals { return {energy * variance}; })[0];
  Val over = (varied > budget * select(round == 0, real(1), real(kSlack))) & (round < real(shape.rounds));
  e.when(thread == 0, [&] { e.storeGlobal(varied, plan, number(kVaried)); });
  return e.choose(
      over,
      [&]() -> Vals {
        return {coarsest(budget, kAtOnce, [&](Vals precisions) {
          return overBlocks(kAtOnce, [&](Val energy, Val loudest, Val variance) {
            Val kept = energy * variance, spread = energy / loudest * (kStepVariance * shape.keyDim);
            Vals left;
            for (Val precision : precisions) {
              Val square = precision * precision;
              left.push_back(select(loudest > square * (1 / kCoarse / kCoarse), e.smallest(kept, spread * square), kept));
            }
            return left;
          });
        })};
      },
      [&]() -> Vals { return {real(INFINITY)}; })[0];
}

/// The tokens of all splits by how far they are below the row's loudest: [bins] counts, f32; and the number of that one's bin, f32.
std::pair<Shared, Val> PlanKernel::histogramOfRow() {
  Shared all = shared("histogram", e.f32(), bins);
  Val histogram = rowOf(Argument::Histogram, splits * (shape.heads * kHistogramNumbers), e.i32());
  auto at = [&](Val s) { return (s * shape.heads + h) * kHistogramNumbers; };
  auto load = [&](Val index) { return e.loadGlobal(histogram, e.i32(), index, /*constant=*/false); };
  Val last = e.loop(lane, splits, GpuEmitter::kWarp, {number(INT32_MIN / 2)}, [&](Val s, Vals last) -> Vals { return {max(load(at(s) + kBins), last[0])}; })[0];
  last = warpMax(last);
  forThreads(bins, [&](Val bin) {
    Val count = overSplits(
        number(0), splits, 1, number(0),
        [&](Val s) -> Vals {
          Val below = bin - (last - load(at(s) + kBins));
          return {select(below >= 0, load(at(s) + max(below, number(0))), number(0))};
        },
        [](Val count, Vals loaded) { return count + loaded[0]; });
    e.store(convert(count, e.f32()), all, bin);
  });
  e.barrier();
  return {all, convert(last, e.f32())};
}

Val PlanKernel::planValues(const Size &size, Shared histogram, Val loudest) {
  const int64_t laneBins = bins / GpuEmitter::kWarp;
  Vals counts, reaches;
  for (int64_t i = 0; i < laneBins; ++i) {
    Val bin = lane + i * GpuEmitter::kWarp;
    counts.push_back(e.load(histogram, bin));
    reaches.push_back(e.exp2((loudest - convert(bin, e.f32())) * (1 / binsPerOctave) - statistic(kExponent) - normal));
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
  Val plan = ofHead(rowOf(Argument::Plan, shape.heads * kPlanNumbers), h, number(kPlanNumbers));
  e.when((get(plan, number(kPrecisionK)) < INFINITY) & (seenBlocks > 0), [&] {
    meeting = shared("meeting", e.f32(), warps * kAtOnce);
    Val round = get(plan, number(kRound));
    statisticsOfHead = statisticsOf(h);
    normal = fma(max(statistic(kMaximum), real(kLowest)), real(kLog2e), e.log2(statistic(kSum)));
    Size size = sizeOf(); // whose barriers also say that all have looked at the plan before it changes
    Val precisionK = planKeys(size, round, plan);
    auto [histogram, loudest] = histogramOfRow();
    Shared counts = histogram;
    Val last = loudest;
    e.when(warp == 0, [&] {
      Val precisionV = planValues(size, counts, last);
      e.when(lane == 0, [&] {
        for (auto [which, what] : {std::pair(kPrecisionK, precisionK), std::pair(kPrecisionV, precisionV), std::pair(kPower, size.size * size.size), std::pair(kFill, size.fill),
                                   std::pair(kRound, round + 1), std::pair(kNormal, normal), std::pair(kTop, statistic(kExponent))})
          e.storeGlobal(what, plan, number(which));
      });
    });
  });
  finish();
}

} // namespace

void aligned::emitPlan(ModuleOp program, StringRef name, const DecodeShape &shape) { PlanKernel(program, name, shape).emit(); }
