// What becomes of the sums of a split, and of a row: shares of all splits, tokens that are kept aside, the mean of V for what was not read. See AttendKernel.cpp.
#include "AttendKernel.h"

using namespace mlir;
using namespace aligned;

void AttendKernel::finishSplit() {
  const int64_t dim = shape.valueDim, width = dim + kMasses;
  for (int64_t n = 0; n < quads; ++n) {
    if (shape.certified) {
      Val step = e.exp2(all[n].reference() - 16.0) * (1 / kLargestWeight);
      e.when(g == 0, [&] { e.store(step, steps, warp * padded + (q + 4 * n)); });
    }
    e.when(batches() != 0, [&] { flush(n, real(0)); });
    auto add = [&](int64_t first) {
      for (int64_t i = first; i < first + 2; ++i)
        all[n].masses[i].set(e.warpAdd(all[n].masses[i](), {4, 8, 16}));
    };
    add(kMoved);
    e.when(someLow, [&] { add(kLowMoved); });
    Vals own;
    for (Variable &mass : all[n].masses)
      own.push_back(mass());
    e.when(g == 0, [&] { e.store(e.vectorOf(own), masses, (warp * padded + (q + 4 * n)) * kMasses); });
  }
  e.barrier();
  Val shares = ofSplits(Argument::Parts, width);
  forHeadsOfWarp(padded, [&](Val h) {
    Val mine = (split * allRows + (firstRow + h)) * width;
    e.loop(lane * 4, number(dim), GpuEmitter::kWarp * 4, [&](Val c) {
      Val sum = e.load(out, h * dim + c, 4);
      for (int64_t w = 1; w < kStepWarps; ++w)
        sum = sum + e.load(out, (h + w * padded) * dim + c, 4);
      e.storeGlobal(sum, shares, mine + c);
    });
    if (shape.certified)
      e.when(lane == 0, [&] {
        Val most = e.load(steps, h);
        for (int64_t w = 1; w < kStepWarps; ++w)
          most = e.largest(most, e.load(steps, h + w * padded));
        e.storeGlobal(most, ofSplits(Argument::Steps, 1), split * allRows + (firstRow + h));
      });
    e.when(lane < kMasses, [&] {
      Val sum = e.load(masses, h * kMasses + lane);
      for (int64_t w = 1; w < kStepWarps; ++w)
        sum = sum + e.load(masses, (h + w * padded) * kMasses + lane);
      e.storeGlobal(sum, shares, mine + lane + dim);
    });
  });
  joinSplits(argument(Argument::Counters), row * parts + e.block(gpu::Dimension::z), last, [&] { finishRow(); });
}

/// The score of a token from all bits of K that are there, by a warp.
Val AttendKernel::fullScore(Val h, Val place, Val within, Val token, Val code) {
  const aligned_format format = formatOf(shape.keyPlanes);
  Val dither = ditherSteps(token, format.role) - storage::kDitherSteps / 2;
  Val keyResident = resident(Argument::Key);
  Val middle = select(keyResident > 2, number(0), select(keyResident > 1, number(1 << 7), number(1 << 11)));
  Val weightBytes = e.at(prepared, e.i32(), (firstRow + h) * (4 * keyWords) + at.full);
  auto weight = [&](int64_t digit, Val c) { return convert(e.loadGlobal(weightBytes, e.i8(), c + digit * 8 * keyWords, false), e.i32()); };
  Val sum = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals sum) -> Vals {
    Val bits = number(0);
    for (int32_t p = 0; p < keyPlanes; ++p)
      bits = bits | e.choose(keyResident > p, [&]() -> Vals {
        StoredBits own = storedBits(format, p, shape.keyDim, within, c);
        Val plane = p < 2 ? key.planes[p] : lastPlane(Argument::Key);
        Val loaded = zext(e.loadGlobal(tileOf(plane, place, storage::bytesPerTile(format.width[p], shape.keyDim)), e.i8(), own.byte), e.i32());
        return {(shrLogical(loaded, own.shift) & own.mask) << number(storage::bitsBelow(format, p))};
      }, [&]() -> Vals { return {number(0)}; })[0];
    return {fma(convert(weight(0, c) * 256 + weight(1, c), e.f32()), convert(bits - 0x8000 + middle - dither, e.f32()), sum[0])};
  })[0];
  return warpAdd(sum) * headFact(firstRow + h, HeadFact::Unit) * (16.0 / 4096) * scaleOf(code, 0);
}

/// Rows of V that are kept aside (S7): weighed by a score as good as K's bits make it, and added to the output as they are.
void AttendKernel::addAsides(Val h, MutableArrayRef<Variable> mass) {
  const int64_t dim = shape.valueDim;
  e.loop(lane * kVector, number(dim), GpuEmitter::kWarp * kVector, [&](Val c) { e.store(e.constant(vectorOf(e.f32(), kVector), 0), out, h * dim + c); });
  e.warpBarrier();
  forAsides(Argument::Value, [&](Val token, Val values) {
    Val tile = shrLogical(token, number(6)), within = token & (kTile - 1), place = placeAt(key.places, tile), own = firstRow + h;
    Val seen = token < tokens;
    if (shape.mask)
      seen = seen & isInSight(own, token);
    e.when(seen, [&] {
      Val coarse = coarseScore(own, token, e.load(tops, own));
      Val code = zext(e.loadGlobal(tileOf(key.codes, place, kTile), e.i8(), within), e.i32()), isKept = code == storage::kAside;
      Val full = fullScore(h, place, within, token, code);
      if (shape.hasSoftcap())
        full = capped(full, headFact(own, HeadFact::Shift));
      if (shape.attnMask)
        full = masked(full, maskNumber(own, token));
      Val score = select(isKept, coarse, full - e.load(tops, own));
      e.when(isKept | (score != real(-INFINITY)), [&] { // else a mask hides it
        Val p = e.exp2(score), before = e.exp2(coarse);
        mass[kMoved].set(mass[kMoved]() + (p - before));
        mass[kRead].set(mass[kRead]() + p);
        e.loop(lane, number(dim), GpuEmitter::kWarp, [&](Val c) { e.store(fma(p, e.loadGlobal(values, e.f32(), c), e.load(out, h * dim + c)), out, h * dim + c); });
      });
    });
  });
  e.warpBarrier();
}

/// By the last block of threads of a row: all splits' shares, in their order.
void AttendKernel::finishRow() {
  const int64_t dim = shape.valueDim, width = dim + kMasses;
  Val shares = ofSplits(Argument::Parts, width);
  Val valueUnit = rowFact(RowFact::ValueUnit);
  e.loop(warp, min(number(padded), number(rows) - firstRow), kStepWarps, [&](Val h) {
    auto at_ = [&](Val s) { return (s * allRows + (firstRow + h)) * width; };
    Vals sums_ = e.loop(lane, splits, GpuEmitter::kWarp, Vals(kMasses, real(0)), [&](Val s, Vals sum) {
      Val own = e.loadGlobal(shares, vectorOf(e.f32(), kMasses), at_(s) + dim, false);
      for (int64_t i = 0; i < kMasses; ++i)
        sum[i] = sum[i] + aligned::lane(own, i);
      return sum;
    });
    SmallVector<Variable> mass;
    for (Val sum : sums_)
      mass.push_back(e.variable(warpAdd(sum)));
    e.when(someAside, [&] { addAsides(h, mass); });
    Val own = firstRow + h, coarse = e.load(sums, own), notFinite = headFact(own, HeadFact::NotFinite), sum = coarse + mass[kMoved]() + notFinite, sink = real(0);
    if (shape.sinkLogits) // takes part in the sum, and has no value
      sink = e.exp2(sinkOf(own) - e.load(tops, own));
    Val unread = (sum - sink - mass[kRead]()) - (e.load(lowSums, own) + mass[kLowMoved]() - mass[kLowRead]());
    Val nothing = coarse == 0, outHead = wide(row) * rows + wide(own);
    Val all = sum;
    if (!shape.maskedZero) // softmax of nothing but -inf is 0 / 0
      all = select(nothing & (tokens > 0), real(NAN), all);
    Val share = e.splat(shareOf(all), kVector);
    Val acc = e.at(argument(Argument::Acc), e.f32(), outHead * dim), none = e.constant(vectorOf(e.f32(), kVector), 0);
    e.loop(lane * kVector, number(dim), GpuEmitter::kWarp * kVector, [&](Val c) {
      Val total = overSplits(number(0), splits, 1, none, [&](Val s) -> Vals { return {e.loadGlobal(shares, vectorOf(e.f32(), kVector), at_(s) + c, false)}; },
                             [](Val sum, Vals loaded) { return sum + loaded[0]; });
      Val mean = e.loadGlobal(prepared, vectorOf(e.f32(), kVector), c + at.mean, false);
      total = fma(e.splat(unread, kVector), mean, total) * e.splat(valueUnit, kVector);
      total = e.choose(someAside, [&]() -> Vals { return {total + e.load(out, h * dim + c, kVector)}; }, [&]() -> Vals { return {total}; })[0];
      e.storeGlobal(select(nothing, none, total + e.splat(notFinite, kVector)) * share, acc, c);
    });
    e.when(lane == 0, [&] {
      Val top = e.load(tops, own);
      if (!shape.hasSoftcap()) // which saw it
        top = top + headFact(own, HeadFact::Shift);
      e.storeGlobal(toldOf(select(nothing, real(-INFINITY), top * (1 / kLog2e)), all), e.at(argument(Argument::Max), e.f32(), outHead), number(0));
      e.storeGlobal(all, e.at(argument(Argument::Sum), e.f32(), outHead), number(0));
    });
  });
}
