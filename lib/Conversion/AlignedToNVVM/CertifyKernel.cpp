// What a result may be off by (P4): one pass over scale codes, the bits that were read, and scores as they are now. A warp takes a tile, a lane two of its tokens, for one query
// row after another; the last block of threads of a row adds up what all have.
//
// With w = 2^(x - M) as computed, k and v the scales of a token's rows, read to b and c bits:
//
//   B = k (2^-b |q'|_1 + rounding)     the most that its score is off: what is missing of K, and what query rows as integers and f32 make of it
//   r = v 2^-c, or v + max |mean|      the most that its row of V is off as it was read, or stood for by the mean; besides, what rounding its weight to whole steps moves
//   expected                           as on the CPU (AlignedToCPU/Certify.cpp)
#include "StepKernel.h"

#include "../Common/Certificate.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

namespace {

constexpr double kPowerRounding = 0x1p-21 + 256 * 0x1p-24; // of ex2.approx, and of x - M where 2^(x - M) is not 0

class CertifyKernel : public StepKernel {
public:
  using StepKernel::StepKernel;
  void emit();

private:
  static constexpr int64_t kSums = int64_t(CertifiedSum::Count);
  Shared sums = shared("sums", e.f32(), kStepWarps * kSums), last = shared("last", e.i32(), 1);

  struct Row { ///< what holds for a query row
    Val top, mass, norm, inherent, aside, step;
    Val rounding; ///< of a score behind its products: by the cap, by a mask's numbers, by 2^x
    Val spread, rounded; ///< of an error of a score for a scale of 1: |q'| / sqrt(3), for each unit that is missing of K; what rounding weights leaves, expected
  };
  Val meanLargest, asideLargest; ///< of |x|: of the mean of V, in units of V's codes; of keys that are kept aside

  Val largestOf(Val array, int64_t count, bool constant);
  Val largestAside();
  Row rowOf(Val h);
  /// 2^-bits, and what rounding to 16 bits adds where some are missing (S4).
  Val left(Val bits) { return bitcast((number(127) - bits) << number(23), e.f32()) + 0x1p-16; }
  Val scaleAtMost(Val code) { return scaleOf(max(code, 1)) * (1 + 0x1p-20); }
  /// Two parts of a sum as one.
  Val combined(int64_t sum, Val a, Val b) { return sum == int64_t(CertifiedSum::Loudest) ? e.largest(a, b) : a + b; }
  Val overWarp(int64_t sum, Val x) { return sum == int64_t(CertifiedSum::Loudest) ? warpMax(x) : warpAdd(x); }
  /// A score's error, as what it lets a weight grow by.
  Val grown(const Row &of, Val code, Val bits);
  Vals overTiles(Val h, const Row &of);
  void conclude();
};

/// The largest |x| of an array of f32, by a warp.
Val CertifyKernel::largestOf(Val array, int64_t count, bool constant) {
  return warpMax(e.loop(lane, number(count), GpuEmitter::kWarp, {real(0)}, [&](Val i, Vals most) -> Vals {
    return {e.largest(abs(e.loadGlobal(array, e.f32(), i, constant)), most[0])};
  })[0]);
}

Val CertifyKernel::largestAside() {
  Variable most = e.variable(real(0));
  forAsides(Argument::Key, [&](Val, Val values) { most.set(e.largest(most(), largestOf(values, shape.keyDim, true))); });
  return most();
}

CertifyKernel::Row CertifyKernel::rowOf(Val h) {
  const int64_t dim = shape.keyDim;
  // Per channel, of what both factors may be: weights in integers are off by half a step, their sums by some more; q and k were rotated in f32, and what is added is f32.
  const double rotation = 16.0 * dim + 256;
  Val stats = ofSplits(Argument::Stats, 4), steps = ofSplits(Argument::Steps, 1);
  Vals most = e.loop(lane, splits, GpuEmitter::kWarp, {real(kNothing), real(0)}, [&](Val i, Vals most) -> Vals {
    return {e.largest(e.loadGlobal(stats, e.f32(), (i * allRows + h) * 4, false), most[0]), e.largest(e.loadGlobal(steps, e.f32(), i * allRows + h, false), most[1])};
  });
  Row of;
  of.top = warpMax(most[0]);
  of.step = warpMax(most[1]);
  if (shape.sinkLogits)
    of.top = e.largest(of.top, sinkOf(h));
  of.norm = headFact(h, HeadFact::Norm) * (1 + 0x1p-18);
  Val keyUnit = rowFact(RowFact::KeyUnit);
  of.mass = headFact(h, HeadFact::Mass) * keyUnit * (1 + 0x1p-18);
  Val step = headFact(h, HeadFact::Unit) * (128 / kLog2e); // of weights, times K's unit
  of.spread = of.norm * keyUnit * (1 / std::sqrt(3.0));
  of.rounded = step * (kFill * std::sqrt(dim / 12.0));
  of.inherent = of.mass * (rotation * 0x1p-24) + step * (0.5 * dim * (1 + 0x1p-5));
  // A key that is kept aside is a dot product of f32: |q|_1 <= sqrt(d) |q|_2 = sqrt(d) |q'|_2.
  of.aside = of.norm * asideLargest * (std::sqrt(double(dim)) * (dim + 8) * 0x1p-23);
  of.rounding = (cap.rounding + kPowerRounding).as(e, e.f32());
  if (addsMask(shape)) // finer bits go in front of a cap: there what was added is taken off again
    of.rounding = of.rounding + maskRounding(of.top, 256) * (hasCapAndMask(shape) ? 4 : 1);
  return of;
}

Val CertifyKernel::grown(const Row &of, Val code, Val bits) {
  Val error = select(code == storage::kAside, of.aside, scaleAtMost(code) * fma(left(bits), of.mass, of.inherent));
  return growth(error + of.rounding);
}

/// The sums of this warp's tiles.
Vals CertifyKernel::overTiles(Val h, const Row &of) {
  SmallVector<Variable> total;
  for (int64_t i = 0; i < kSums; ++i)
    total.push_back(e.variable(real(0)));
  auto add = [&](CertifiedSum which, Val addend) {
    Variable &sum = total[size_t(which)];
    sum.set(combined(int64_t(which), sum(), addend));
  };
  Val scores = tileScores(), tops = tileTops();
  Val finest = finestScores();
  Val keyBits = bitsOf(Argument::KeyBits), valueBits = bitsOf(Argument::ValueBits);
  Variable next = e.variable(split * kStepWarps + warp);
  e.loopWhile([&] { return next() < seenTiles; }, [&] {
    Val tile = tileAt(next());
    next.set(next() + splits * kStepWarps);
    Val keyCodes = tileOf(key.codes, placeAt(key.places, tile), kTile), valueCodes = tileOf(value.codes, placeAt(value.places, tile), kTile);
    Val origin = e.loadGlobal(tops, e.f32(), (tile * allRows + h) * 2, false) - of.top;
    for (int64_t j = 0; j < 2; ++j) {
      Val within = lane * 2 + j, token = tile * kTile + within, there = token < tokens;
      e.when(there, [&] {
        auto byte = [&](Val array, Val at, bool constant) { return zext(e.loadGlobal(array, e.i8(), at, constant), e.i32()); };
        Val code = byte(keyCodes, within, true), valueCode = byte(valueCodes, within, true), keyRead = byte(keyBits, token, false), read = byte(valueBits, token, false);
        Val isRead = read > 0, isAside = valueCode == storage::kAside, isAsideKey = code == storage::kAside, zero = real(0);
        Val x = e.choose(isRead, [&]() -> Vals { return {e.loadGlobal(finest, e.f32(), token * allRows + h, false)}; },
                         [&]() -> Vals { return {e.loadGlobal(scores, e.f32(), ((tile * 32 + lane) * allRows + h) * 2 + j, false) + origin}; })[0];
        Val w = e.exp2(x), scale = scaleAtMost(valueCode), valueLeft = scale * left(read), reach = select(isAside, zero, scale);
        Val g = w * grown(of, code, keyRead);
        add(CertifiedSum::Grown, g);
        add(CertifiedSum::GrownReach, g * reach);
        add(CertifiedSum::Reach, w * reach);
        // Weights are whole steps, and for the second plane whole 16ths of them. Under `exact` they have 16 bits more, which go with the first plane.
        Val steps = exact ? real(0.25) : select(read > 4, real(1.75), real(0.75)), moved = select(isRead, of.step * steps * (meanLargest / scale + 1.0), zero);
        add(CertifiedSum::Error, select(isAside, zero, w * select(isRead, valueLeft, reach + meanLargest) + moved));
        add(CertifiedSum::Loudest, reach);
        // Expected.
        Val missing = left(keyRead) * of.spread, sigma = scaleAtMost(code) * e.squareRoot(fma(missing, missing, of.rounded * of.rounded)), square = e.smallest(sigma * sigma, real(40));
        Val weighed = w * kFill, byScores = weighed * weighed * misledSquare(square), rounded = select(isRead, of.step * kFill, zero);
        Val rowsError = select(isRead, valueLeft * (1 / std::sqrt(3.0)), scale * kFill);
        Val isExact = isAside | isAsideKey;
        add(CertifiedSum::Variance, select(isExact, zero, byScores * scale * scale + w * w * rowsError * rowsError + rounded * rounded * (exact ? 0.0 : 1.0 / 6)));
        add(CertifiedSum::ScoreVariance, select(isExact, zero, byScores));
        add(CertifiedSum::Unread, select(isRead | isAside, zero, w * scale));
        add(CertifiedSum::Scanned, select((keyRead <= 4) & invert(isAsideKey), weighed * scale * e.smallest(square, real(1)), zero));
      });
    }
  });
  Vals result;
  for (int64_t i = 0; i < kSums; ++i)
    result.push_back(overWarp(i, total[i]()));
  return result;
}

/// A warp for each query row.
void CertifyKernel::conclude() {
  Val all = ofSplits(Argument::Certified, kSums), valueUnit = rowFact(RowFact::ValueUnit);
  forHeadsOfWarp(rows, [&](Val h) {
    Row of = rowOf(h);
    Vals total = e.loop(lane, splits, GpuEmitter::kWarp, Vals(kSums, real(0)), [&](Val s, Vals total) {
      for (int64_t i = 0; i < kSums; ++i)
        total[i] = combined(i, total[i], e.loadGlobal(all, e.f32(), (s * allRows + h) * kSums + i, false));
      return total;
    });
    for (int64_t i = 0; i < kSums; ++i)
      total[i] = overWarp(i, total[i]);
    auto sum = [&](CertifiedSum which) { return total[size_t(which)]; };
    // Rows of V that are kept aside are exact but for their weights: sums of w g m and w m, and the largest m, in V's own units; and of w g.
    SmallVector<Variable> aside;
    for (int64_t i = 0; i < 4; ++i)
      aside.push_back(e.variable(real(0)));
    forAsides(Argument::Value, [&](Val token, Val values) {
      Val seen = token < tokens, tile = shrLogical(token, number(6)), within = token & (kTile - 1);
      if (shape.mask)
        seen = seen & isInSight(h, token);
      e.when(seen, [&] {
        Val coarse = coarseScore(h, token, of.top);
        Val code = zext(e.loadGlobal(tileOf(key.codes, placeAt(key.places, tile), kTile), e.i8(), within), e.i32());
        // Its weight by all bits is at most what the coarse one's error lets it be.
        Val w = e.exp2(coarse) * (growth(scaleAtMost(code) * fma(left(number(4)), of.mass, of.inherent)) + 1.0);
        w = select(code == storage::kAside, e.exp2(coarse), w);
        Val g = w * grown(of, code, number(16)), m = largestOf(values, shape.valueDim, true);
        aside[0].set(aside[0]() + g * m);
        aside[1].set(aside[1]() + w * m);
        aside[2].set(e.largest(aside[2](), m));
        aside[3].set(aside[3]() + g);
      });
    });
    e.when(lane == 0, [&] {
      Val outHead = wide(row) * rows + wide(h), weights = e.loadGlobal(e.at(argument(Argument::Sum), e.f32(), outHead), e.f32(), number(0), false);
      Val count = convert(tokens, e.f32()), inflation = count * (2.0 / 32 * 0x1p-24) + (1 + 1024 * 0x1p-24);
      Val reach = fma(sum(CertifiedSum::Reach), valueUnit, aside[1]()), loudest = e.largest(sum(CertifiedSum::Loudest) * valueUnit, aside[2]());
      // Weights that were too small for floats, and what sums in f32 lose.
      Val lost = count * kLeastWeight, rounding = (count + 256) * 0x1p-24 * fma(weights * meanLargest, valueUnit, reach);
      Val common = fma(sum(CertifiedSum::Unread), real(kCommonUnread), sum(CertifiedSum::Scanned) * kCommonScan);
      Vals numbers{(sum(CertifiedSum::Grown) + aside[3]() + lost) * inflation,
                   (sum(CertifiedSum::GrownReach) * valueUnit + aside[0]() + lost * loudest) * inflation,
                   (reach + lost * loudest) * inflation,
                   (sum(CertifiedSum::Error) * valueUnit + rounding) * inflation + count * kLeastProduct,
                   sum(CertifiedSum::Variance) * valueUnit * valueUnit,
                   loudest * inflation,
                   common * valueUnit,
                   sum(CertifiedSum::ScoreVariance)};
      Val certificate = e.at(argument(Argument::Certificate), e.f32(), outHead * kCertificateNumbers);
      for (auto [i, number_] : llvm::enumerate(numbers))
        e.storeGlobal(number_, certificate, number(i));
    });
  });
}

void CertifyKernel::emit() {
  Val all = ofSplits(Argument::Certified, kSums);
  meanLargest = largestOf(e.at(prepared, e.f32(), number(at.mean)), shape.valueDim, false);
  asideLargest = largestAside();
  e.loop(number(0), number(rows), 1, [&](Val h) {
    Row of = rowOf(h);
    Vals own = overTiles(h, of);
    e.when(lane == 0, [&] {
      for (int64_t i = 0; i < kSums; ++i)
        e.store(own[i], sums, warp * kSums + i);
    });
    e.barrier();
    e.when(thread < kSums, [&] {
      Val total = e.load(sums, thread), isMost = thread == int64_t(CertifiedSum::Loudest);
      for (int64_t w = 1; w < kStepWarps; ++w) {
        Val other = e.load(sums, thread + w * kSums);
        total = select(isMost, e.largest(total, other), total + other);
      }
      e.storeGlobal(total, all, (split * allRows + h) * kSums + thread);
    });
    e.barrier();
  });
  joinSplits(argument(Argument::Done), row, last, [&] { conclude(); });
  finish();
}

} // namespace

void aligned::emitCertifyKernel(ModuleOp program, StringRef name, const DecodeShape &shape) { CertifyKernel(program, name, shape).emit(); }
