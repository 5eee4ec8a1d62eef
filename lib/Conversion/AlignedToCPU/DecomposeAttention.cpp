// Decode attention over dense tensors that no kernel takes as it is.
//
// Kernels read whole vectors: where only head_dim is no multiple of 16, zeros are put behind each row. They change neither scores nor the channels that are kept. What no kernel
// takes at all, a head_dim above 256, more than 32 query rows or extents that only the program knows, is written out in linalg, as the op is described:
//
//   scores   s[b, h, i, t] = scale * sum_c q[b, h, i, c] k[b, h / G, t, c], capped (A12); -inf where a mask (A11, P8) hides the token
//   max      m[b, h, i] = max_t s, of the sink's logit, too
//   weights  w = e^(s - m), in the place of s, and their sum
//   acc      acc[b, h, i, c] = sum_t w v[b, h / G, t, c], over the tokens that are seen
//
// in f32. Where a certificate is asked for it is f64 up to here: what that rounds is little enough to be bounded for the row as a whole.
#include "DecomposeAttention.h"

#include "Surroundings.h"

#include "../Common/Masks.h"

#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;
using namespace aligned;

namespace {

enum Dim { kBatch, kHeads, kTokens, kQueries = kTokens, kChannels };

RankedTensorType typeOf(Value value) { return cast<RankedTensorType>(value.getType()); }

bool isDense(DecodeAttentionOp op) { return op.getTargets().empty() && !getPlanes(op.getKey().getType()); }

int64_t paddedDim(Value tensor) { return llvm::alignTo(typeOf(tensor).getDimSize(kChannels), kHeadDimMultiple); }

/// Whether a kernel takes this attention, but for zeros behind its rows.
bool fitsKernel(DecodeAttentionOp op) {
  RankedTensorType query = typeOf(op.getQuery()), key = typeOf(op.getKey()), value = typeOf(op.getValue());
  const bool unknown[] = {query.isDynamicDim(kHeads), query.isDynamicDim(kQueries), query.isDynamicDim(kChannels), key.isDynamicDim(kHeads), key.isDynamicDim(kChannels),
                          value.isDynamicDim(kChannels)};
  if (llvm::is_contained(unknown, true))
    return false;
  auto fits = [](Value side) { return paddedDim(side) > 0 && paddedDim(side) <= kMaxHeadDim; };
  return query.getDimSize(kHeads) / key.getDimSize(kHeads) * query.getDimSize(kQueries) <= kMaxQueryRows && fits(op.getKey()) && fits(op.getValue());
}

//===----------------------------------------------------------------------===//
// Zeros
//===----------------------------------------------------------------------===//

struct PadAttention : OpRewritePattern<DecodeAttentionOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(DecodeAttentionOp op, PatternRewriter &rewriter) const override {
    auto isWhole = [](Value side) { return isSupportedHeadDim(typeOf(side).getDimSize(kChannels)); };
    if (!isDense(op) || !fitsKernel(op) || (isWhole(op.getKey()) && isWhole(op.getValue())))
      return rewriter.notifyMatchFailure(op, "expected dense attention of which kernels lack nothing but zeros behind its rows");
    int64_t keyDim = paddedDim(op.getKey()), valueDim = paddedDim(op.getValue());
    ImplicitLocOpBuilder b(op.getLoc(), rewriter);
    Value query = pad(b, op.getQuery(), keyDim), key = pad(b, op.getKey(), keyDim), value = pad(b, op.getValue(), valueDim);
    auto padded = cast<DecodeAttentionOp>(b.clone(*op));
    padded.getQueryMutable().set(query);
    padded.getKeyMutable().set(key);
    padded.getValueMutable().set(value);
    SmallVector<Value> results(padded.getResults());
    RankedTensorType kept = typeOf(results[0]);
    SmallVector<int64_t> shape(kept.getShape());
    shape[kChannels] = valueDim;
    results[0].setType(kept.clone(shape));
    SmallVector<OpFoldResult> sizes = tensor::getMixedSizes(b, b.getLoc(), results[0]), offsets(4, b.getIndexAttr(0)), strides(4, b.getIndexAttr(1));
    sizes[kChannels] = b.getIndexAttr(kept.getDimSize(kChannels));
    results[0] = tensor::ExtractSliceOp::create(b, kept, results[0], offsets, sizes, strides);
    rewriter.replaceOp(op, results);
    return success();
  }

  static Value pad(ImplicitLocOpBuilder &b, Value tensor, int64_t dim) {
    RankedTensorType type = typeOf(tensor);
    int64_t missing = dim - type.getDimSize(kChannels);
    if (!missing)
      return tensor;
    SmallVector<int64_t> shape(type.getShape());
    shape[kChannels] = dim;
    SmallVector<OpFoldResult> low(4, b.getIndexAttr(0)), high = low;
    high[kChannels] = b.getIndexAttr(missing);
    Value zero = arith::ConstantOp::create(b, b.getZeroAttr(type.getElementType()));
    return tensor::PadOp::create(b, type.clone(shape), tensor, low, high, zero);
  }
};

//===----------------------------------------------------------------------===//
// linalg
//===----------------------------------------------------------------------===//

/// Loops over [batch, heads, queries, tokens, channels], or the first of them.
class Decomposition {
  using Values = SmallVector<Value>;
  using Sizes = SmallVector<OpFoldResult>;
  using Loops = ArrayRef<unsigned>;

public:
  Decomposition(DecodeAttentionOp op, OpBuilder &builder)
      : op(op), around(builder, op.getLoc()), b(around.b), query(op.getQuery()), key(op.getKey()), value(op.getValue()), isCertified(op.isCertified()),
        real(isCertified ? b.getF64Type() : b.getF32Type()), outside(builder, op.getLoc()) {
    Location loc = op.getLoc();
    rows = tensor::getMixedSizes(b, loc, query);
    rows.pop_back();
    tokens = tensor::DimOp::create(b, key, kTokens);
    queries = tensor::DimOp::create(b, query, kQueries);
    group = arith::DivUIOp::create(b, tensor::DimOp::create(b, query, kHeads), tensor::DimOp::create(b, key, kHeads));
    newest = op.getLater() ? Value(arith::SubIOp::create(b, tokens, op.getLater())) : tokens;
    auto given = [&](Value operand) { return operand ? outside.wrap(operand) : Val(); };
    hasSoftcap = op.getSoftcap() || op.getDynamicSoftcap();
    cap = Softcap(op.getSoftcap() ? op.getSoftcap()->convertToDouble() : 0, hasSoftcap && !op.getSoftcap() ? convert(given(op.getDynamicSoftcap()), real) : Val());
    sight = Sight(op.getMaskAttr(), /*queries=*/0, given(op.getDynamicWindow()), given(op.getDynamicSinks())); // they count back from the newest one
  }

  /// The results of the op, in f32.
  Values run() {
    Value scores = finished(products()), top = largest(scores);
    auto [weights, sum] = softmax(scores, top);
    Values results{accumulated(weights), top, sum};
    if (isCertified)
      results.push_back(certificate(top, sum));
    for (auto [result, type] : llvm::zip(results, op->getResultTypes())) {
      result = rounded(result);
      if (result.getType() != type) // shapes known on one side only
        result = tensor::CastOp::create(b, type, result);
    }
    report();
    return results;
  }

private:
  Sizes with(Sizes sizes, OpFoldResult last) {
    sizes.push_back(last);
    return sizes;
  }
  Value empty(const Sizes &sizes) { return tensor::EmptyOp::create(b, sizes, real); }
  Value filled(const Sizes &sizes, double number) {
    Value start = arith::ConstantOp::create(b, FloatAttr::get(real, number)), memory = empty(sizes);
    return linalg::FillOp::create(b, start, memory).getResult(0);
  }

  /// A loop nest of `depth` loops over tensors, each with the loops that its dimensions are; a loop that some output lacks adds up, or finds a maximum.
  /// `body` gets what the tensors hold, outputs last, and the numbers of the loops.
  Values nest(unsigned depth, ArrayRef<std::pair<Value, Loops>> in, ArrayRef<std::pair<Value, Loops>> out, function_ref<Vals(Emitter &, Vals, Vals)> body) {
    Values ins, outs;
    SmallVector<AffineMap> maps;
    SmallVector<utils::IteratorType> iterators(depth, utils::IteratorType::reduction);
    auto add = [&](std::pair<Value, Loops> tensor, Values &to) {
      SmallVector<AffineExpr> dims;
      for (unsigned loop : tensor.second)
        dims.push_back(b.getAffineDimExpr(loop));
      maps.push_back(AffineMap::get(depth, 0, dims, b.getContext()));
      to.push_back(tensor.first);
    };
    for (auto tensor : in)
      add(tensor, ins);
    for (auto tensor : out)
      add(tensor, outs);
    for (unsigned loop = 0; loop < depth; ++loop)
      if (llvm::all_of(out, [&](auto tensor) { return llvm::is_contained(tensor.second, loop); }))
        iterators[loop] = utils::IteratorType::parallel;
    return Values(linalg::GenericOp::create(b, TypeRange(outs), ins, outs, maps, iterators, [&](OpBuilder &inner, Location loc, ValueRange arguments) {
                    Emitter e(inner, loc);
                    Vals held, at;
                    for (Value argument : arguments)
                      held.push_back(e.wrap(argument));
                    for (unsigned loop = 0; loop < depth; ++loop)
                      at.push_back(e.wrap(linalg::IndexOp::create(e.b, loop)));
                    Values results;
                    for (Val result : body(e, held, at))
                      results.push_back(result.value);
                    linalg::YieldOp::create(e.b, results);
                  }).getResults());
  }

  Val asReal(Val number) { return convert(number.element().isF32() || number.element() == real ? number : convert(number, number.e->f32()), real); }
  Val element(Emitter &e, Value tensor, const Vals &at) {
    Values indices;
    for (Val index : at)
      indices.push_back(index.value);
    return e.wrap(tensor::ExtractOp::create(e.b, tensor, indices));
  }
  /// Sums may be taken in any order, in vectors then.
  static Val sumOf(Val a, Val x) { return a.e->wrap(arith::AddFOp::create(a.e->b, a.value, x.value, arith::FastMathFlags::reassoc)); }
  Val exponential(Val x) { return isCertified ? x.e->wrap(math::ExpOp::create(x.e->b, x.value)) : exp(x); }
  Val kvHead(Emitter &e, Val head) { return e.wrap(arith::DivUIOp::create(e.b, head.value, group)); }

  /// q . k of every query and token.
  Value products() {
    return nest(5, {{query, {0, 1, 2, 4}}}, {{filled(with(rows, tokens), 0), {0, 1, 2, 3}}}, [&](Emitter &e, Vals held, Vals at) -> Vals {
      Val x = asReal(held[0]), k = asReal(element(e, key, {at[0], kvHead(e, at[1]), at[3], at[4]}));
      if (hasSoftcap) // which would make infinite scores finite
        x = x + x * 0;
      return {sumOf(held[1], x * k)};
    })[0];
  }

  /// What the mask by numbers says of a score.
  Val maskNumber(Emitter &e, const Vals &at) {
    Vals place;
    for (unsigned dim = 0; dim < 3; ++dim)
      place.push_back(typeOf(op.getAttnMask()).getDimSize(dim) == 1 ? e.index(0) : at[dim]);
    place.push_back(at[3]);
    return element(e, op.getAttnMask(), place);
  }

  /// `yes` where the query sees the token, else a number.
  Val whereSeen(Emitter &e, const Vals &at, Val yes, double no) {
    Val other = e.constant(yes.type(), no);
    if (op.getMask())
      yes = select(isVisible(at[3], at[2] - e.wrap(queries), e.wrap(newest), sight), yes, other);
    if (!op.getAttnMask())
      return yes;
    return select(hides(maskNumber(e, at)), other, yes);
  }

  /// Scores of products.
  Value finished(Value products) {
    Value scale = op.getScale();
    return nest(4, {}, {{products, {0, 1, 2, 3}}}, [&](Emitter &e, Vals held, Vals at) -> Vals {
      Val score = held[0] * asReal(e.wrap(scale));
      if (hasSoftcap) {
        Val power = exponential(min(score * cap.slope.like(score), 64)); // as in Masks.cpp, whose e^x is of f32
        score = cap.cap.like(score) - cap.twice.like(score) / (power + 1);
      }
      if (op.getAttnMask())
        if (Val number = maskNumber(e, at); number.isFloat())
          score = score + asReal(number);
      return {whereSeen(e, at, score, -INFINITY)};
    })[0];
  }

  /// The largest score of each row. One that is NaN is none, but its weight and with it the sum are NaN.
  Value largest(Value scores) {
    Value start = filled(rows, -INFINITY);
    if (Value sinks = op.getSinkLogits())
      start = nest(3, {{sinks, {1}}}, {{start, {0, 1, 2}}}, [&](Emitter &, Vals held, Vals) -> Vals { return {asReal(held[0])}; })[0];
    return nest(4, {{scores, {0, 1, 2, 3}}}, {{start, {0, 1, 2}}}, [&](Emitter &e, Vals held, Vals) -> Vals {
      return {e.wrap(arith::MaxNumFOp::create(e.b, held[0].value, held[1].value))};
    })[0];
  }

  /// What weights are relative to: a row of -inf must not turn into -inf - -inf.
  Val shift(Val top) { return max(top, isCertified ? std::numeric_limits<double>::lowest() : std::numeric_limits<float>::lowest()); }

  std::pair<Value, Value> softmax(Value scores, Value top) {
    Value start = filled(rows, 0);
    if (Value sinks = op.getSinkLogits())
      start = nest(3, {{sinks, {1}}, {top, {0, 1, 2}}}, {{start, {0, 1, 2}}}, [&](Emitter &, Vals held, Vals) -> Vals {
        return {exponential(asReal(held[0]) - shift(held[1]))};
      })[0];
    Values both = nest(4, {{top, {0, 1, 2}}}, {{scores, {0, 1, 2, 3}}, {start, {0, 1, 2}}}, [&](Emitter &, Vals held, Vals) -> Vals {
      Val weight = exponential(held[1] - shift(held[0]));
      return {weight, sumOf(held[2], weight)};
    });
    if (op.getMaskedZero())
      return {both[0], both[1]};
    Value some = arith::CmpIOp::create(b, arith::CmpIPredicate::ne, tokens, arith::ConstantIndexOp::create(b, 0));
    Value sum = nest(3, {{top, {0, 1, 2}}}, {{both[1], {0, 1, 2}}}, [&](Emitter &e, Vals held, Vals) -> Vals { // softmax of nothing but -inf is 0 / 0
      return {select((held[0] == -INFINITY) & e.wrap(some), e.constant(real, NAN), held[1])};
    })[0];
    return {both[0], sum};
  }

  Value accumulated(Value weights) {
    OpFoldResult channels = tensor::getMixedSize(b, b.getLoc(), value, kChannels);
    return nest(5, {{weights, {0, 1, 2, 3}}}, {{filled(with(rows, channels), 0), {0, 1, 2, 4}}}, [&](Emitter &e, Vals held, Vals at) -> Vals {
      Val v = asReal(element(e, value, {at[0], kvHead(e, at[1]), at[3], at[4]}));
      return {held[1] + whereSeen(e, at, held[0] * v, 0)}; // 0 times what is not finite is not 0
    })[0];
  }

  /// The largest finite magnitude of each kv head.
  Value reach(Value side) {
    Sizes sizes = tensor::getMixedSizes(b, b.getLoc(), side);
    sizes.resize(2);
    return nest(4, {{side, {0, 1, 2, 3}}}, {{filled(sizes, 0), {0, 1}}}, [&](Emitter &, Vals held, Vals) -> Vals {
      Val magnitude = abs(asReal(held[0]));
      return {select((magnitude > held[1]) & (magnitude < INFINITY), magnitude, held[1])};
    })[0];
  }

  /// P4, with one bound of what f64 rounds of a score for all of a row, and one of magnitudes of V for all tokens.
  Value certificate(Value top, Value sum) {
    Value keys = reach(key), values = reach(value), scale = op.getScale(), dim = tensor::DimOp::create(b, key, kChannels);
    Value norms = nest(4, {{query, {0, 1, 2, 3}}}, {{filled(rows, 0), {0, 1, 2}}}, [&](Emitter &, Vals held, Vals) -> Vals {
      return {sumOf(held[1], abs(asReal(held[0])))};
    })[0];
    return nest(4, {{norms, {0, 1, 2}}, {top, {0, 1, 2}}, {sum, {0, 1, 2}}}, {{empty(with(rows, b.getIndexAttr(kCertificateNumbers))), {0, 1, 2, 3}}},
                [&](Emitter &e, Vals held, Vals at) -> Vals {
                  Vals head{at[0], kvHead(e, at[1])};
                  Val additions = convert(convert(e.wrap(dim), e.i64()), real) + 16, largest = element(e, values, head);
                  Val off = additions * 0x1p-52 * abs(asReal(e.wrap(scale))) * held[0] * element(e, keys, head) + (abs(held[1]) + (cap.cap + 1024).as(e, real)) * 0x1p-50;
                  Val growth = off * exponential(off), weighed = held[2] * largest, none = e.constant(real, 0);
                  const Vals numbers{held[2] * growth, weighed * growth, weighed, weighed * 0x1p-21, none, largest, none, none}; // the fourth: state and result are f32
                  Val number = none;
                  for (auto [place, own] : llvm::enumerate(numbers))
                    number = select(at[3] == static_cast<double>(place), own, number);
                  return {number};
                })[0];
  }

  Value rounded(Value tensor) {
    if (!isCertified)
      return tensor;
    RankedTensorType type = typeOf(tensor);
    SmallVector<unsigned> loops = llvm::to_vector(llvm::seq<unsigned>(0, type.getRank()));
    Value target = tensor::EmptyOp::create(b, tensor::getMixedSizes(b, b.getLoc(), tensor), b.getF32Type());
    return nest(type.getRank(), {{tensor, loops}}, {{target, loops}}, [&](Emitter &e, Vals held, Vals) -> Vals { return {convert(held[0], e.f32())}; })[0];
  }

  /// Every bit was read.
  void report() {
    declareRuntime(op->getParentOfType<ModuleOp>());
    Values numbers{around.code(op.getAttentionId())};
    for (Value side : {key, value}) {
      Value count = around.number(1);
      for (int64_t dim = 0; dim < 4; ++dim)
        count = arith::MulIOp::create(b, count, around.extent(side, dim));
      numbers.push_back(arith::MulIOp::create(b, count, around.number(typeOf(side).getElementTypeBitWidth())));
      numbers.push_back(count);
    }
    around.call("aligned_rt_tally", {}, numbers);
  }

  DecodeAttentionOp op;
  Surroundings around;
  ImplicitLocOpBuilder &b;
  Value query, key, value;
  const bool isCertified;
  const Type real;                        ///< what is computed in
  Sizes rows;                             ///< [batch, heads, queries]
  Value tokens, queries, group, newest;   ///< newest: tokens up to the newest query
  Emitter outside;                        ///< of loops, where numbers are made fit
  bool hasSoftcap;
  Softcap cap;
  Sight sight;
};

struct DecomposeAttention : OpRewritePattern<DecodeAttentionOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(DecodeAttentionOp op, PatternRewriter &rewriter) const override {
    if (!isDense(op) || fitsKernel(op))
      return rewriter.notifyMatchFailure(op, "expected dense attention that no kernel takes");
    rewriter.replaceOp(op, Decomposition(op, rewriter).run());
    return success();
  }
};

} // namespace

void aligned::populateAttentionDecomposition(RewritePatternSet &patterns) { patterns.add<PadAttention, DecomposeAttention>(patterns.getContext()); }
