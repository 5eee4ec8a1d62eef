// What the state of a split may be off by (P4), from scale codes, the bits that were read, and the scores as they are now: one pass over all tokens.
//
// With w = 2^(x - M) as computed, k and v the scales of a token's rows, read to b and c bits:
//
//   B = k (2^-b |q'|_1 + rounding)        the most that its score is off: what is missing of K, and what query rows as integers and f32 make of it
//   r = v 2^-c, or v + max |mean|         the most that its row of V is off as it was read, or stood for by the mean; where weights are bytes, besides what
//                                         rounding one to a whole unit moves from the row to the mean
//   expected   variances of scores, of values, of what is not read, and of weights' rounding; what is not read and what the scan left errs a little in common
#include "Attend.h"

#include "../Common/Certificate.h"

using namespace mlir;
using namespace aligned;

namespace {
constexpr double kPowerRounding = 0x1p-21 + 88 * 0x1p-24; // of 2^x, and of x - M where it is not 0
} // namespace

void Attend::certify(Val split, const StateBuffers &state) {
  const int64_t dim = shape.keyDim;
  // Per channel, of what both factors may be: weights in integers are off by half a step, q and k were rotated in f32, dot products and what is added to them are f32.
  const double rotation = 16.0 * dim + 256;
  Val first = tilesOf(split).first, last = tilesOf(split).second;
  Val meanMax = e.loop(index(0), index(shape.valueDim), 8, {e.constant(vectorOf(e.f32(), 8), 0)}, [&](Val c, Vals top) -> Vals {
    return {larger(abs(e.load(buffers.mean, c, 8)), top[0])};
  })[0];
  Val valueUnit = rowFact(RowFact::ValueUnit), meanLargest = reduceMax(meanMax) / valueUnit;
  Val keyUnit = biasScale(key);
  Val asideKey = key.aside.largest();
  Val spread = rowFact(RowFact::Spread), fill = rowFact(RowFact::Fill);
  const Val rounding = (cap.rounding + kPowerRounding).as(e, e.f32());
  auto roundingOf = [&](Val h) { return addsMask(shape) ? maskRounding(e.load(references, h), 128) + rounding : rounding; };
  enum { Grown, GrownReach, Reach, Error, Variance, ScoreVariance, Unread, Scanned, Loudest, kSums };
  Buffer sums = e.local(e.f32(), rows * (kSums * lanes));
  auto sumAt = [&](Val h, int64_t which) { return h * (kSums * lanes) + which * lanes; };
  // Of query rows: products and sums of f32 with a key that is kept aside, |q|_1 <= sqrt(d) |q|_2 = sqrt(d) |q'|_2; and what each key brings whatever is read of it.
  Buffer asideBounds = e.local(e.f32(), rows), inherents = e.local(e.f32(), rows);
  e.loop(index(0), index(rows), 1, [&](Val h) {
    for (int64_t i = 0; i < kSums; ++i)
      e.store(splatF(0.0), sums, sumAt(h, i));
    Val step = fact(h, Fact::Unit) * (0x1p15 / kLog2e); // of weights, times K's unit of scale
    e.store(fact(h, Fact::Norm) * asideKey * (std::sqrt(double(dim)) * (dim + 8) * 0x1p-23), asideBounds, h);
    e.store(fact(h, Fact::Mass) * keyUnit * (rotation * 0x1p-24) + step * (0.5 * dim), inherents, h);
  });
  forTiles(first, last, [&](Val tile) {
    Val place = key.placeOf(tile), valuePlace = value.placeOf(tile), within = (tile - first) * kTile;
    e.loop(index(0), index(kTile), lanes, [&](Val token) {
      // What holds for all query rows.
      Val codes = codesAt(key, place, token), valueCodes = codesAt(value, valuePlace, token);
      Val keyScale = scaleOf(max(codes, 1)), scale = scaleOf(max(valueCodes, 1)), zero = splatF(0.0);
      Val there = splatI(convert(tile * kTile + token, e.i32())) + e.iota(e.i32(), lanes) < splatI(convert(key.tokens, e.i32()));
      // Behind the newest token codes are of tokens that were dropped.
      Val isAsideKey = codes == storage::kAside, isAside = (valueCodes == storage::kAside) | invert(there);
      // S4: 2^-bits, and what rounding to 16 bits adds where some are missing
      auto left = [&](Val bits) { return bitcast((splatI(127) - bits) << splatI(23), e.f32()) + 0x1p-16; };
      Val keyRead = zext(e.load(keyBits, within + token, lanes), e.i32()), read = zext(e.load(valueBitsOf, within + token, lanes), e.i32());
      Val keyLeft = left(keyRead), valueLeft = scale * left(read);
      Val isRead = read > 0, reach = select(isAside, zero, scale * (1 + 0x1p-20));
      // Whole units of weight: of a row in bytes at most one goes to or comes from the mean.
      Val inBytes = isRead & (read <= 8);
      Val oneStep = select(inBytes, select(read <= 4, splatF(1.0 / kNibbleSteps), splatF(1.0 / byteSteps)), zero);
      Val moved = oneStep * (splatF(meanLargest) / scale + 1), byRounding = oneStep * splatF(fill);
      Val off = select(isRead, valueLeft, reach + splatF(meanLargest));
      Val rowsError = select(isRead, valueLeft * (1 / std::sqrt(3.0)), scale * splatF(spread));
      Val isScanned = keyRead <= keyFormat.width[0];
      forRows([&](Val h) {
        auto add = [&](int64_t which, Val addend) { e.store(e.load(sums, sumAt(h, which), lanes) + addend, sums, sumAt(h, which)); };
        Val unit = splatF(e.load(units, h));
        Val x = e.load(finest, scoreAt(tile, h) + token, lanes);
        Val w = select(x > kLowest, power(final(x, h, tile * kTile + token) - splatF(e.load(references, h))), zero);
        // K kept aside is a dot product of f32 with values of any size: what it may be off by, relative to its terms, is unknown here.
        Val error = select(isAsideKey, splatF(e.load(asideBounds, h)), keyScale * fma(keyLeft, splatF(fact(h, Fact::Mass) * keyUnit), splatF(e.load(inherents, h))));
        Val grown = w * growth(error + splatF(roundingOf(h)));
        add(Grown, grown);
        add(GrownReach, grown * reach);
        add(Reach, w * reach);
        add(Error, select(isAside, zero, fma(w, off, unit * moved)));
        e.store(larger(reach, e.load(sums, sumAt(h, Loudest), lanes)), sums, sumAt(h, Loudest));
        // Expected.
        Val sigma = keyScale * keyLeft * splatF(fact(h, Fact::Norm) * keyUnit * (1 / std::sqrt(3.0))), square = sigma * sigma;
        square = select(square < 40, square, splatF(40.0));
        Val weighed = w * splatF(fill), rounded = unit * byRounding;
        Val byScores = weighed * weighed * misledSquare(square), variance = byScores * scale * scale + w * w * rowsError * rowsError + rounded * rounded * (1.0 / 6);
        add(Variance, select(isAside | isAsideKey, zero, variance));
        add(ScoreVariance, select(isAside | isAsideKey, zero, byScores));
        add(Unread, select(isRead | isAside, zero, w * scale));
        add(Scanned, select(isScanned, weighed * scale * select(square < 1, square, splatF(1.0)), zero));
      });
    });
  });
  e.loop(index(0), index(rows), 1, [&](Val h) {
    Val mass = fact(h, Fact::Mass), reference = e.load(references, h), asideBound = e.load(asideBounds, h), inherent = e.load(inherents, h);
    Val total[kSums];
    for (int64_t i = 0; i < kSums; ++i)
      total[i] = i == Loudest ? reduceMax(e.load(sums, sumAt(h, i), lanes)) : reduceAdd(e.load(sums, sumAt(h, i), lanes));
    // Rows that are kept aside are exact but for their weights.
    Buffer aside = e.local(e.f32(), 3); // sums of w g, w g m, and the largest m
    for (int64_t i = 0; i < 3; ++i)
      e.store(f32(0), aside, index(i));
    value.aside.forEach([&](Val token, Buffer values) {
      Val tile = token / index(kTile);
      e.when((tile >= first) & (tile < last), [&] {
        Val x = shown(e.load(finest, scoreAt(tile, h) + token % index(kTile)), h, token);
        e.when(invert(x <= kHidden), [&] { // what nobody sees may be NaN
          Val w = power(final(x, h, token) - reference);
          Val code = zext(e.load(key.codes, key.placeOf(tile) * kTile + token % index(kTile)), e.i32());
          Val error = select(code == storage::kAside, asideBound, scaleOf(max(code, 1)) * (mass * keyUnit * std::exp2(-double(storage::bitsBefore(keyFormat, keyPlanes))) + inherent));
          Val grown = growth(error + roundingOf(h)), largest = reduceMax(abs(e.load(values, index(0), shape.valueDim))) / valueUnit;
          e.store(e.load(aside, index(0)) + w * grown * largest, aside, index(0));
          e.store(e.load(aside, index(1)) + w * largest, aside, index(1));
          e.store(larger(largest, e.load(aside, index(2))), aside, index(2));
        });
      });
    });
    Val sum = e.load(state.sum, h), tokens = convert(convert((last - first) * kTile, e.i64()), e.f32());
    Val inflation = tokens * (2.0 / lanes * 0x1p-24) + (1 + 1024 * 0x1p-24);
    Val reachTotal = total[Reach] + e.load(aside, index(1)), loudest = larger(total[Loudest], e.load(aside, index(2)));
    // Weights that were too small for floats, and what sums in f32 lose.
    Val lost = tokens * kLeastWeight, sumRounding = (tokens * 0x1p-24 + 256 * 0x1p-24) * (reachTotal + sum * meanLargest);
    Val common = total[Unread] * kCommonUnread + total[Scanned] * kCommonScan;
    Vals numbers{(total[Grown] + lost) * inflation,
                 (total[GrownReach] + e.load(aside, index(0)) + lost * loudest) * inflation * valueUnit,
                 (reachTotal + lost * loudest) * inflation * valueUnit,
                 (total[Error] + sumRounding) * inflation * valueUnit + tokens * kLeastProduct,
                 total[Variance] * valueUnit * valueUnit,
                 loudest * inflation * valueUnit,
                 common * valueUnit,
                 total[ScoreVariance]};
    for (auto [number, what] : llvm::enumerate(numbers))
      e.store(what, state.certificate, h * kCertificateNumbers + number);
  });
}
