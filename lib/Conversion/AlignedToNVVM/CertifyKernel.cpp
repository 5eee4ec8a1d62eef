// The certificate (P4): from the layers that scores and values were read to, what they may be off by. `certify` sums over the tokens of a split, a warp for each query
// row; `conclude`, one block of threads for each row, makes the numbers of it.
#include "FloatKernel.h"

#include "../Common/Certificate.h"

#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace aligned;

namespace {

// ex2.approx is off by less than 2^-22, its argument (s - max) log2 e by three roundings of at most 126 where 2^x is not 0.
constexpr double kSoftmaxRounding = 0x1p-21 + 256 * 0x1p-24;

class CertifyKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();
  void emitConclusion();

private:
  const bool isFixed = shape.keyPlanes.getKind() == FormatKind::Fixed;
  const int64_t unitChannels = isFixed ? 4 : 1; ///< of K, that are read alike
  Val scale;

  Val planOf(Val h, PlanOf which) { return get(rowOf(Argument::Plan, shape.heads * kPlanNumbers), h * kPlanNumbers + which); }
  Val certificates() { return rowOf(Argument::Certificates, splits * (shape.heads * kCertified)); }
  Val weightOfChannel(Val h, Val c) {
    Val query = rowOf(Argument::Query, shape.heads * shape.keyDim, shape.query);
    return abs(convert(e.loadGlobal(query, shape.query, h * shape.keyDim + c), e.f32()) * scale);
  }
  /// Sum over the channels of K, shared by the lanes.
  Val overChannels(function_ref<Val(Val channel)> of) {
    return warpAdd(e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals sum) -> Vals { return {sum[0] + of(c)}; })[0]);
  }
  /// The largest |mean| of V's channels, and its largest magnitude.
  Val largestOf(Val array) {
    return warpMax(e.loop(lane, number(shape.valueDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals top) -> Vals { return {e.largest(abs(get(array, c)), top[0])}; })[0]);
  }
  Val unit() { return isFixed ? select(key.blocks > 0, unitScale(convert(statistic(number(0), kExponent), e.i32())) * 32768.0, real(1)) : real(1); }

  /// Of float planes: what a power of two in front of its queries costs each channel at most, relative to its largest key.
  Val lostQueries(Val h);
  Val scoreError(Val h, Val block, Val lost);
  struct Bounds {
    Val reach, error, variance, unread;
  };
  Bounds boundsOf(Val block, Val within, Val unit, Val meanMax, Val fillMax, Val largest);
  /// Half a step of the mantissa bits that `layers` of a float reach, relative to the power of two below; 0 where all of it is read.
  Val floatRemainder(Val layers, Type element);
  /// What rounding to the 16 bits of storage leaves of magnitudes up to `largest`.
  Val storageError(Val largest, Type element) { return element.isF32() ? largest * 0x1p-11 + 0x1p-25 : real(0); }
};

Val CertifyKernel::floatRemainder(Val layers, Type element) {
  int64_t signAndExponent = element.isBF16() ? 9 : 6;
  return select(layers < kLayers, bitcast((layers * -4 + (126 + signAndExponent)) << 23, e.f32()), real(0));
}

/// Queries below 2^-14 of the 2^14 and more that the row's largest is brought to are rounded to steps of f16 that get no smaller, twice where they have two parts.
Val CertifyKernel::lostQueries(Val h) {
  if (isFixed || !areQueriesScaled(shape))
    return real(0);
  return warpMax(e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals top) -> Vals { return {e.largest(weightOfChannel(h, c), top[0])}; })[0]) * 0x1p-38;
}

/// The most that a score of this block may be off, rounding included.
Val CertifyKernel::scoreError(Val h, Val block, Val lost) {
  Val keyLayers = rowOf(Argument::KeyLayers, key.stride * (shape.keyDim / unitChannels), e.i8());
  auto layersOf = [&](Val c) { return zext(e.loadGlobal(keyLayers, e.i8(), block * (shape.keyDim / unitChannels) + c / unitChannels, /*constant=*/false), e.i32()); };
  if (!isFixed) {
    const double roundings = (kProductRoundings * llvm::divideCeil(queryParts(shape), 2) * shape.keyDim + 8) * 0x1p-24 + (shape.query.isF32() && !shape.key.isBF16() ? kRestInF16 : 0);
    return overChannels([&](Val c) {
      Val largest = get(key.channelMax, c), least = real(shape.key.isBF16() ? 0x1p-126 : 0x1p-14); // below it steps stay the same
      Val error = e.largest(largest, least) * floatRemainder(layersOf(c), shape.key) + storageError(largest, shape.key);
      return weightOfChannel(h, c) * (error + largest * roundings) + largest * lost;
    });
  }
  // Bits that are not read leave scale * 2^-bits of each value (S1), and integer weights are off by half their step, times an integer of at most 2^15. A weight is
  // rounded five times on its way to an integer and back, and the sums of its products, the constant and the dithers, each bounded by twice the weights' reach, 48 times
  // whenever the block is read.
  const double kRoundings = (5 + 2 * 48 * (shape.exact() ? 1 : 1 + shape.rounds)) * 0x1p-24;
  Val exponents = blockOf(key.exponent, physical(key, block), shape.keyDim);
  Val error = overChannels([&](Val c) {
    Val weight = weightOfChannel(h, c) * unitScale(zext(e.loadGlobal(exponents, e.i8(), c), e.i32()));
    return weight * (remainderOf(layersOf(c)) * 32768.0 + 32768 * kRoundings);
  });
  Val step = real(1) / get(rowOf(Argument::KeyWeights, shape.heads), h);
  error = error + step * (shape.keyDim * 16384.0 * 1.001);
  if (shape.exact())
    return error;
  return error + get(blockNumbersOf(h), block * kBlockNumbers + kBlockVariance) * 0.5;
}

CertifyKernel::Bounds CertifyKernel::boundsOf(Val block, Val within, Val unit, Val meanMax, Val fillMax, Val largest) {
  Val layers = zext(e.loadGlobal(rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8()), e.i8(), block * ALIGNED_BLOCK + within, /*constant=*/false), e.i32());
  if (!isFixed) {
    Val least = real(shape.value.isBF16() ? 0x1p-126 : 0x1p-14);
    return {largest, e.largest(largest, least) * floatRemainder(layers, shape.value) + storageError(largest, shape.value), real(0), real(0)};
  }
  Val exponent = zext(e.loadGlobal(blockOf(value.exponent, physical(value, block), ALIGNED_BLOCK), e.i8(), within), e.i32());
  Val scale = e.largest(relativeScale(exponent, statistic(number(0), kExponent)), real(1e-37));
  Val reach = scale * (1 / kRoom * (1 + 0x1p-20)), left = scale * remainderOf(layers), variance = left * left * (1.0 / 3);
  if (shape.exact())
    return {reach, left, variance, real(0)};
  Val read = layers > 0;
  return {reach, select(read, left, reach + meanMax), select(read, variance, scale * scale * fillMax), select(read, real(0), scale)};
}

void CertifyKernel::emit() {
  shareStatistics();
  scale = argument(Argument::Scale);
  Val one = unit(), meanMax = real(0), fillMax = real(0), largest = largestOf(value.channelMax);
  if (isFixed && !shape.exact()) {
    meanMax = largestOf(value.channelMean) / one;
    if (isMasked())
      meanMax = e.smallest(meanMax, real(1)); // see meanOf
    for (int64_t h = 0; h < shape.heads; ++h)
      fillMax = e.largest(planOf(number(h), kFill), fillMax);
  }
  auto [first, end] = stretch();
  Val begin = first, behind = end;
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val scores = ofHead(rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK)), h, key.stride * ALIGNED_BLOCK), maximum = statistic(h, kMaximum), lost = lostQueries(h);
    Vals sums = e.loop(begin, behind, 1, Vals(kCertified, real(0)), [&](Val index, Vals sums) {
      Val block = blockAt(index), grown = growth(scoreError(h, block, lost) + (kSoftmaxRounding + shape.softcap * kSoftcapRounding));
      for (int64_t half : {0, 1}) {
        Val within = lane + half * GpuEmitter::kWarp, weight = weightOf(get(scores, block * ALIGNED_BLOCK + within), maximum);
        Bounds bounds = boundsOf(block, within, one, meanMax, fillMax, largest);
        Val reached = weight * bounds.reach;
        sums[kGrown] = fma(weight, grown, sums[kGrown]);
        sums[kGrownReach] = fma(reached, grown, sums[kGrownReach]);
        sums[kReach] = sums[kReach] + reached;
        sums[kError] = fma(weight, bounds.error, sums[kError]);
        sums[kVariance] = fma(weight * weight, bounds.variance, sums[kVariance]);
        sums[kUnreadReach] = fma(weight, bounds.unread, sums[kUnreadReach]);
        if (isFixed) { // weights that became integers
          Val layers = e.loadGlobal(rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8()), e.i8(), block * ALIGNED_BLOCK + within, /*constant=*/false);
          sums[kReadRows] = sums[kReadRows] + select(zext(layers, e.i32()) > 0, real(1), real(0));
        }
      }
      sums[kLost] = sums[kLost] + grown * (2 * kLeastWeight);
      return sums;
    });
    for (int64_t i = 0; i < kCertified; ++i) {
      Val sum = warpAdd(sums[i]);
      e.when(lane == 0, [&] { e.storeGlobal(sum, certificates(), (split * shape.heads + h) * kCertified + i); });
    }
  });
  finish();
}

void CertifyKernel::emitConclusion() {
  shareStatistics();
  scale = argument(Argument::Scale);
  Val one = unit(), largest = largestOf(value.channelMax), tokens = convert(key.tokens, e.f32());
  Val blocks = convert(key.blocks, e.f32());
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val mine = e.choose(lane < kCertified, [&]() -> Vals {
      return {e.loop(number(0), splits, 1, {real(0)}, [&](Val s, Vals sum) -> Vals { return {sum[0] + get(certificates(), (s * shape.heads + h) * kCertified + lane)}; })[0]};
    }, [&]() -> Vals { return {real(0)}; })[0];
    auto sumOf = [&](Certified which) { return e.shuffleFrom(mine, number(which)); };
    Val scores = ofHead(rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK)), h, key.stride * ALIGNED_BLOCK);
    Val mass = warpAdd(e.loop(key.blocks * ALIGNED_BLOCK + lane, key.tokens, GpuEmitter::kWarp, {real(0)}, [&](Val t, Vals sum) -> Vals {
      return {sum[0] + weightOf(get(scores, t), statistic(h, kMaximum))};
    })[0]);
    // Open tokens: products and sums of f32.
    Val scoreRounding = overChannels([&](Val c) { return weightOfChannel(h, c) * get(key.channelMax, c); }) * ((shape.keyDim / 8 + 12) * 0x1p-24);
    Val rowSum = statistic(h, kSum), weightError = real(0), scoreVariance = real(0);
    if (isFixed) {
      Val weightScale = real(kWeightLimit) / loudestReach(h);
      if (!shape.exact()) {
        Val wanted = e.smallest(real(kWeightGuard) / planOf(h, kPrecisionV), weightScale);
        weightScale = policies.isLimited(CacheRole::Value) ? select(policies.wantsMoreValues(), weightScale, wanted) : wanted;
        scoreVariance = select(key.blocks > 0, planOf(h, kVaried), real(0));
      }
      weightError = select(key.blocks > 0, sumOf(kReadRows) * (shape.exact() ? 0.5 : 1) * rowSum / weightScale, real(0));
    }
    if (!isFixed) // weights in two parts, whose steps in f16 get no smaller than 2^-24 of the 2^15 that the largest becomes
      weightError = shape.value.isBF16() ? sumOf(kReach) * kRestInBF16 : sumOf(kReach) * kRestInF16 + tokens * largest * 0x1p-39;
    Val additions = isFixed ? blocks * 2 : tokens * (kWeightParts * kProductRoundings);
    Vals numbers = certificateOf({sumOf(kGrown), sumOf(kGrownReach), sumOf(kReach), sumOf(kError), sumOf(kVariance), sumOf(kUnreadReach), sumOf(kLost), mass,
                                  growth(scoreRounding + (kSoftmaxRounding + shape.softcap * kSoftcapRounding)), one, largest, weightError, scoreVariance, rowSum, tokens,
                                  (additions + 256) * 0x1p-24, (blocks * 2 + 512) * 0x1p-24 + 1, isFixed && !shape.exact() ? kCommon : 0});
    e.when(lane == 0, [&] {
      for (auto [index, what] : llvm::enumerate(numbers))
        e.storeGlobal(what, rowOf(Argument::Certificate, shape.heads * kCertificateNumbers), h * kCertificateNumbers + int64_t(index));
    });
  });
  finish();
}

} // namespace

void aligned::emitCertify(ModuleOp program, StringRef name, const DecodeShape &shape) { CertifyKernel(program, name, shape).emit(); }
void aligned::emitConclude(ModuleOp program, StringRef name, const DecodeShape &shape) { CertifyKernel(program, name, shape).emitConclusion(); }
