// What a step knows of a row before it reads any of it: its query rows rotated (S2) and as integers, how large its scales usually are (M2, M3), and the mean that
// stands for rows of V which are not read (M1).
#include "Step.h"

#include "../Common/Certificate.h"
#include "aligned/Runtime/Kernel.h"
#include "aligned/Storage/Rotation.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

namespace {

constexpr double kRoomForRefinement = 100; // octaves that finer scores may lie above the largest coarse one

class Prepare : public Step {
public:
  using Step::Step;
  void emit() {
    lap(ALIGNED_PART_CALL);
    scales();
    Buffer reach = e.local(e.f32(), 1); // of what the scan leaves open of a score, in octaves
    e.store(f32(0), reach, index(0));
    Val largest = scaleOf(e.field(key.scales, offsetof(aligned_scales, largest), e.i32())) * keyUnit * (0x1p15 * kLog2e * std::exp2(-double(shape.keyPlanes.getWidths()[0])));
    e.loop(index(0), index(rows), 1, [&](Val h) { // once for each step: no code for each row
      query(h);
      e.store(larger(fact(h, Fact::Mass) * largest, e.load(reach, index(0))), reach, index(0));
    });
    setRowFact(RowFact::Full, select(e.load(reach, index(0)) > kRoomForRefinement, f32(1), f32(0)));
    lap(ALIGNED_PART_PREPARE);
  }

private:
  Val keyUnit; ///< 2^(16 - bias / 8) / 2^15, what scaleOf() leaves out of K's scales, for one unit of n

  void scales() {
    keyUnit = biasScale(key) * 0x1p-15;
    Val valueScale = biasScale(value);
    // A = tokens / sum(1 / scale), a scale below the floor counting as the floor. Scales as scaleOf() has them.
    Val median = e.field(value.scales, offsetof(aligned_scales, median), e.i32());
    Val floor = max(median - storage::kFloorBelowMedian, storage::kLeastCode);
    Val tokens = e.field(value.scales, offsetof(aligned_scales, tokens), e.i64());
    Buffer counts = e.buffer(e.advance(value.scales, index(offsetof(aligned_scales, count))), e.i32());
    Val sum = e.loop(index(0), index(256), lanes, {splatF(0.0)}, [&](Val first, Vals sum) -> Vals {
      Val codes = max(splatI(convert(first, e.i32())) + e.iota(e.i32(), lanes), splatI(floor));
      return {fma(convert(e.load(counts, first, lanes), e.f32()), scaleOf(splatI(256) - codes), sum[0])}; // 1 / scale
    })[0];
    Val inverse = f32(1) / larger(reduceAdd(sum), f32(1e-30));
    Val usual = larger(convert(tokens, e.f32()) * inverse, f32(0x1p-20));
    setRowFact(RowFact::Usual, usual);
    setRowFact(RowFact::LogUsual, log2(usual) + 16); // in octaves of codes
    setRowFact(RowFact::ValueUnit, valueScale);
    setRowFact(RowFact::LargestKey, convert(e.field(key.scales, offsetof(aligned_scales, largest), e.i32()), e.f32()));
    setRowFact(RowFact::FloorValue, convert(floor, e.f32()));
    // M1: sum (n - dither) / 2^15 over sum 1 / scale.
    Buffer sums = e.buffer(e.advance(e.field(in.value, offsetof(aligned_cache, sum), e.pointer()),
                                     row * (shape.valueDim * 8)), e.i64());
    Val factor = valueScale * inverse * 0x1p-15;
    // Until caches know better: what rows of V that are not read are, relative to their scale (E1).
    setRowFact(RowFact::Spread, f32(kFill));
    setRowFact(RowFact::Fill, f32(kFill));
    Type f64 = e.types.getF64Type();
    Val middle = f32(0); // sums hold the bits of the planes that the cache has
    for (int64_t planes = 1; planes < shape.valuePlanes.getNumPlanes(); ++planes)
      middle = select(value.planes == planes, f32(std::exp2(15 - storage::bitsBefore(formatOf(shape.valuePlanes), planes))), middle);
    Val middles = convert(tokens, e.f32()) * middle;
    e.loop(index(0), index(shape.valueDim), 8, [&](Val c) {
      Val total = convert(convert(e.load(sums, c, 8), f64), e.f32()) + e.splat(middles, 8);
      e.store(total * e.splat(factor, 8), buffers.mean, c);
    });
  }

  /// x R: signs, then butterflies within blocks of powers of two.
  Val rotated(Val x) {
    int64_t dim = shape.keyDim;
    SmallVector<float> signs;
    for (int64_t c = 0; c < dim; ++c) {
      int64_t first = 0;
      while (c >= first + storage::blockAt(first, dim))
        first += storage::blockAt(first, dim);
      signs.push_back(storage::signOf(c) / std::sqrt(double(storage::blockAt(first, dim))));
    }
    x = x * e.load(e.table("aligned_signs_" + std::to_string(dim), signs), index(0), dim);
    Val whole;
    for (int64_t first = 0; first < dim;) {
      int64_t size = storage::blockAt(first, dim);
      Val block = slice(x, first, size);
      for (int64_t half = 1; half < size; half *= 2) {
        SmallVector<int64_t> partner;
        SmallVector<Attribute> sign;
        for (int64_t i = 0; i < size; ++i) {
          partner.push_back(i ^ half);
          sign.push_back(e.types.getF32FloatAttr(i & half ? -1 : 1));
        }
        Val signs = e.wrap(arith::ConstantOp::create(e.b, DenseElementsAttr::get(cast<VectorType>(block.type()), sign)));
        block = fma(block, signs, permute(block, block, partner));
      }
      if (whole.e) {
        SmallVector<int64_t> all;
        for (int64_t i = 0; i < first + size; ++i)
          all.push_back(i);
        whole = permute(whole, block, all);
      } else {
        whole = block;
      }
      first += size;
    }
    return whole;
  }

  void query(Val h) {
    int64_t dim = shape.keyDim;
    Type floats = vectorOf(e.f32(), dim), whole = vectorOf(e.i32(), dim);
    Buffer queries = e.buffer(in.query, shape.query);
    Val scale = in.scale;
    Val x = convert(e.load(queries, (row * rows + h) * dim, dim), e.f32()) * e.splat(scale, dim);
    // A query that is not finite makes its row NaN; integers could not carry that.
    Val notFinite = reduceAdd(x * 0.0);
    x = select(e.splat(notFinite == 0, dim), x, e.constant(floats, 0));
    Val plain = x;
    x = rotated(x);
    Val norm = sqrt(reduceAdd(x * x));
    setFact(h, Fact::NotFinite, notFinite);
    setFact(h, Fact::Norm, norm);
    setFact(h, Fact::Mass, reduceAdd(abs(x)));
    Buffer offset = e.buffer(e.advance(e.field(in.key, offsetof(aligned_cache, offset), e.pointer()), row * (dim * 4)), e.f32());
    setFact(h, Fact::Shift, reduceAdd(plain * e.load(offset, index(0), dim)) * kLog2e);
    // As integers of signed digits.
    const double full = fullscale();
    Val largest = larger(reduceMax(abs(x)), f32(1e-30));
    Val v = convert(roundEven(x * e.splat(f32(full) / largest, dim)), e.i32());
    v = min(max(v, e.constant(whole, -full)), e.constant(whole, full)); // the quotient may be rounded up, and one more would not fit the digits
    setFact(h, Fact::Unit, largest * keyUnit * (kLog2e / full));
    setFact(h, Fact::Sum, convert(reduceAdd(v), e.f32()));
    for (int64_t d = digits() - 1; d >= 0; --d) {
      Val digit = d ? ((v + 128) & 255) - 128 : v;
      e.store(convert(digit, e.i8()), buffers.digits, (h + d * rows) * dim);
      if (d)
        v = (v - digit) >> e.constant(whole, 8);
    }
    // P5, and how many tokens the row sees.
    Val median = e.field(key.scales, offsetof(aligned_scales, median), e.i32());
    Val sigma = scaleOf(median) * keyUnit * (0x1p15 * std::exp2(-double(shape.keyPlanes.getWidths()[0])) / std::sqrt(3.0)) * norm;
    Val shrink = sigma * sigma * 0.5;
    shrink = select(shrink < kLargestShrink, shrink, f32(kLargestShrink));
    setFact(h, Fact::Shrink, exact ? f32(0) : shrink * -kLog2e);
    Val seen = visibleTokens(h % index(shape.queries), newest, key.tokens, sight);
    Val logSeen = log2(convert(convert(max(seen, 1), e.i64()), e.f32()));
    setFact(h, Fact::LogSeen, in.toleranceFactor.e ? logSeen - log2(in.toleranceFactor) * 2.0 : logSeen);
  }
};

} // namespace

void aligned::emitPrepare(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, const StepBuffers &buffers) {
  Prepare(e, shape, in, row, buffers).emit();
}
