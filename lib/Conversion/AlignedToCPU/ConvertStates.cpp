// convert-aligned-to-linalg: what is elementwise work on tensors, for upstream's passes: merging and finishing softmax states, appends to dense tensors, and attention that no kernel takes.
// With `reference`, attention that is not fused, too, as a call of the runtime's oracle.
#include "DecomposeAttention.h"
#include "Surroundings.h"
#include "aligned/Conversion/AlignedToCPU/Passes.h"
#include "aligned/Conversion/Common/Emitter.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/Transforms/WalkPatternRewriteDriver.h"

namespace aligned {
#define GEN_PASS_DEF_CONVERTALIGNEDTOLINALG
#include "aligned/Conversion/AlignedToCPU/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

RankedTensorType tensorType(Value value) { return cast<RankedTensorType>(value.getType()); }

/// Extents of `type`'s dynamic dimensions, taken from the same dimensions of `like`.
SmallVector<Value> dynamicSizes(ImplicitLocOpBuilder &b, RankedTensorType type, Value like) {
  SmallVector<Value> sizes;
  for (auto [dim, size] : llvm::enumerate(type.getShape()))
    if (ShapedType::isDynamic(size))
      sizes.push_back(tensor::DimOp::create(b, like, dim));
  return sizes;
}

//===----------------------------------------------------------------------===//
// Results and their errors
//===----------------------------------------------------------------------===//

/// Maps [batch, heads, queries, channels] of states and [batch, heads, queries] of rows.
std::pair<AffineMap, AffineMap> stateMaps(Builder &b) {
  AffineMap state = b.getMultiDimIdentityMap(4);
  return {state, state.dropResult(3)};
}

SmallVector<utils::IteratorType> parallel(int64_t rank) { return SmallVector<utils::IteratorType>(rank, utils::IteratorType::parallel); }

/// Bound and estimate (P4) of the rounded output.
SmallVector<Value> certify(ImplicitLocOpBuilder &b, Value certificate, Value sum, Value output) {
  auto [state, row] = stateMaps(b);
  RankedTensorType rowType = tensorType(sum), outputType = tensorType(output);
  SmallVector<Value> sizes = dynamicSizes(b, rowType, sum);
  Value empty = tensor::EmptyOp::create(b, rowType, sizes), none = arith::ConstantOp::create(b, b.getF32FloatAttr(0));
  Value zeros = linalg::FillOp::create(b, none, empty).getResult(0);
  // The largest magnitude and the sum of squares of each row of the output.
  SmallVector<utils::IteratorType> iterators = parallel(3);
  iterators.push_back(utils::IteratorType::reduction);
  auto norms = linalg::GenericOp::create(b, TypeRange{rowType, rowType}, output, ValueRange{zeros, zeros}, SmallVector<AffineMap>{state, row, row}, iterators,
                                         [&](OpBuilder &inner, Location loc, ValueRange args) {
                                           Value x = args[0];
                                           if (!x.getType().isF32())
                                             x = arith::ExtFOp::create(inner, loc, inner.getF32Type(), x);
                                           Value largest = arith::MaximumFOp::create(inner, loc, args[1], math::AbsFOp::create(inner, loc, x));
                                           Value squares = arith::AddFOp::create(inner, loc, args[2], arith::MulFOp::create(inner, loc, x, x));
                                           linalg::YieldOp::create(inner, loc, ValueRange{largest, squares});
                                         });
  SmallVector<Value> inputs{sum, norms.getResult(0), norms.getResult(1)};
  for (int64_t number = 0; number < kCertificateNumbers; ++number) {
    SmallVector<OpFoldResult> extents = tensor::getMixedSizes(b, b.getLoc(), sum), offsets(3, b.getIndexAttr(0)), strides(4, b.getIndexAttr(1));
    extents.push_back(b.getIndexAttr(1));
    offsets.push_back(b.getIndexAttr(number));
    inputs.push_back(tensor::ExtractSliceOp::create(b, rowType, certificate, offsets, extents, strides));
  }
  // Half a unit in the last place of the result, relative and for the least ones.
  Type element = outputType.getElementType();
  double relative = element.isF16() ? 0x1.01p-11 : element.isBF16() ? 0x1.01p-8 : 0x1p-23, least = element.isF16() ? 0x1p-25 : 0x1p-126;
  SmallVector<AffineMap> maps(inputs.size() + 2, b.getMultiDimIdentityMap(3));
  int64_t channels = outputType.getDimSize(3);
  auto certified = linalg::GenericOp::create(b, TypeRange{rowType, rowType}, inputs, ValueRange{empty, empty}, maps, parallel(3),
                                             [&](OpBuilder &inner, Location loc, ValueRange args) {
                                               Emitter e(inner, loc);
                                               auto in = [&](int64_t number) { return e.wrap(args[number]); };
                                               Val total = in(0), largest = in(1), squares = in(2);
                                               auto c = [&](int64_t number) { return in(3 + number); };
                                               Val growth = c(0) / total, reach = c(2) / total;
                                               Val bound = ((growth + 1) * c(1) + growth * c(2) + c(3)) / total, cap = c(kCertificateLargest) + largest;
                                               // A bound that is no number is no bound, and 2^-60 covers weights that merging took for 0.
                                               bound = select(bound < cap, bound, cap) * (1 + 0x1p-20) + c(kCertificateLargest) * 0x1p-60 + largest * relative + least;
                                               Val estimate = sqrt(c(kCertificateVariance) + c(kCertificateScoreVariance) * reach * reach + c(6) * c(6)) / total / max(sqrt(squares * (1.0 / channels)), 1e-30);
                                               Val empty = total == 0, zero = e.constant(e.f32(), 0);
                                               linalg::YieldOp::create(e.b, ValueRange{select(empty, zero, bound).value, select(empty, zero, estimate).value});
                                             });
  return certified.getResults();
}

/// Unfused attention, exactly: the oracle.
struct ConvertAttention : OpRewritePattern<AttentionOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(AttentionOp op, PatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    auto widen = [&](Value tensor) { return widened(b, tensor); };
    Value query = widen(op.getQuery()), key = widen(op.getKey()), value = widen(op.getValue());
    auto type = RankedTensorType::get(tensorType(op.getResult()).getShape(), b.getF32Type());
    Value result = memref::AllocOp::create(b, MemRefType::get(type.getShape(), type.getElementType()), dynamicSizes(b, type, query));
    MaskAttr mask = op.getMaskAttr();
    Value softcap = arith::ConstantOp::create(b, b.getF64FloatAttr(op.getSoftcap() ? op.getSoftcap()->convertToDouble() : 0));
    Value none = LLVM::ZeroOp::create(b, around.pointer());
    const int32_t maskDims = dimsOf(op.getAttnMask());
    around.call("aligned_rt_reference_attention", {},
                {addressOf(around, query), addressOf(around, key), addressOf(around, value), around.address(result),
                 around.code(ALIGNED_ELEMENT_F32), around.extent(query, 0), around.extent(query, 1), around.extent(key, 1), around.extent(query, 2), around.extent(key, 2), around.extent(key, 3),
                 around.extent(value, 3), op.getScale(), around.code(op.getMaskedZero()), around.code(mask && mask.getCausal()),
                 around.number(mask ? mask.getWindow() : 0), around.number(mask ? mask.getSinks() : 0), softcap,
                 op.getAttnMask() ? addressOf(around, widen(op.getAttnMask())) : none, around.code(maskDims), op.getSinkLogits() ? addressOf(around, op.getSinkLogits()) : none});
    SmallVector<Value> results{elementwise(b, bufferization::ToTensorOp::create(b, type, result, /*restrict=*/true, /*writable=*/true), tensorType(op.getResult()).getElementType())};
    if (op.getBound()) { // what is computed in float64 errs by its rounding
      auto filled = [&](RankedTensorType type, float number) {
        Value empty = tensor::EmptyOp::create(b, type, dynamicSizes(b, type, query)), value = arith::ConstantOp::create(b, b.getF32FloatAttr(number));
        return linalg::FillOp::create(b, value, empty).getResult(0);
      };
      auto row = tensorType(op.getBound());
      SmallVector<int64_t> state(row.getShape());
      state.push_back(kCertificateNumbers);
      llvm::append_range(results, certify(b, filled(RankedTensorType::get(state, b.getF32Type()), 0), filled(row, 1), results.front()));
    }
    rewriter.replaceOp(op, results);
    return success();
  }

  /// One element type for all: f32 holds f16 and bf16 exactly.
  static Value widened(ImplicitLocOpBuilder &b, Value tensor) {
    if (RankedTensorType type = tensorType(tensor); getPlanes(type)) // every bit of what is stored
      tensor = UnpackOp::create(b, RankedTensorType::get(type.getShape(), type.getElementType()), tensor).getResult();
    return elementwise(b, tensor, b.getF32Type());
  }

  /// A bit for each of batch, query heads and queries that a mask has numbers of its own for.
  static int32_t dimsOf(Value mask) {
    int32_t dims = 0;
    for (int64_t dim = 0; dim < 3 && mask; ++dim)
      dims |= (tensorType(mask).getDimSize(dim) != 1) << dim;
    return dims;
  }

  /// The memory of a tensor that is only read.
  static Value addressOf(Surroundings &around, Value tensor) {
    RankedTensorType type = tensorType(tensor);
    return around.address(bufferization::ToBufferOp::create(around.b, MemRefType::get(type.getShape(), type.getElementType()), tensor, /*read_only=*/true));
  }

  /// The same tensor in another float type.
  static Value elementwise(ImplicitLocOpBuilder &b, Value tensor, Type element) {
    RankedTensorType from = tensorType(tensor);
    if (from.getElementType() == element)
      return tensor;
    auto to = from.clone(element);
    Value empty = tensor::EmptyOp::create(b, to, dynamicSizes(b, to, tensor));
    SmallVector<AffineMap> maps(2, b.getMultiDimIdentityMap(from.getRank()));
    SmallVector<utils::IteratorType> iterators(from.getRank(), utils::IteratorType::parallel);
    bool wider = element.getIntOrFloatBitWidth() > from.getElementTypeBitWidth(), isMask = from.getElementType().isInteger(1);
    auto generic = linalg::GenericOp::create(b, TypeRange(to), tensor, empty, maps, iterators, [&](OpBuilder &inner, Location loc, ValueRange args) {
      auto number = [&](double x) -> Value { return arith::ConstantOp::create(inner, loc, FloatAttr::get(element, x)); };
      Value cast = isMask ? Value(arith::SelectOp::create(inner, loc, args[0], number(0), number(-INFINITY))) : wider ? Value(arith::ExtFOp::create(inner, loc, element, args[0])) : Value(arith::TruncFOp::create(inner, loc, element, args[0]));
      linalg::YieldOp::create(inner, loc, cast);
    });
    return generic.getResult(0);
  }
};

/// Decode attention that reads every bit: its state, exactly.
struct ConvertDecodeAttention : OpRewritePattern<DecodeAttentionOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(DecodeAttentionOp op, PatternRewriter &rewriter) const override {
    if (op.getPolicyKind() != PolicyKind::Exact || op.isCertified() || !op.getTargets().empty())
      return rewriter.notifyMatchFailure(op, "expected policy 'exact' without a certificate, on tensors");
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    Value query = ConvertAttention::widened(b, op.getQuery()), key = ConvertAttention::widened(b, op.getKey()), value = ConvertAttention::widened(b, op.getValue());
    SmallVector<Value> buffers, addresses;
    for (Value result : op.getResults()) {
      RankedTensorType type = tensorType(result);
      buffers.push_back(memref::AllocOp::create(b, MemRefType::get(type.getShape(), type.getElementType()), dynamicSizes(b, type, query)));
      addresses.push_back(around.address(buffers.back()));
    }
    MaskAttr mask = op.getMaskAttr();
    const ScoreNumbers numbers = scoreNumbers(around, op);
    Value none = LLVM::ZeroOp::create(b, around.pointer());
    around.call("aligned_rt_reference_state", {},
                {ConvertAttention::addressOf(around, query), ConvertAttention::addressOf(around, key), ConvertAttention::addressOf(around, value), addresses[0], addresses[1], addresses[2],
                 around.extent(query, 0), around.extent(query, 1), around.extent(key, 1), around.extent(query, 2), around.extent(key, 2), around.extent(key, 3), around.extent(value, 3), op.getScale(),
                 around.code(op.getMaskedZero()), around.code(mask && mask.getCausal()), numbers.window, numbers.sinks,
                 op.getLater() ? around.asI64(op.getLater()) : around.number(0), numbers.softcap,
                 op.getAttnMask() ? ConvertAttention::addressOf(around, ConvertAttention::widened(b, op.getAttnMask())) : none, around.code(ConvertAttention::dimsOf(op.getAttnMask())),
                 op.getSinkLogits() ? ConvertAttention::addressOf(around, op.getSinkLogits()) : none});
    SmallVector<Value> results;
    for (auto [result, buffer] : llvm::zip_first(op.getResults(), buffers))
      results.push_back(bufferization::ToTensorOp::create(b, result.getType(), buffer, /*restrict=*/true, /*writable=*/true));
    rewriter.replaceOp(op, results);
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Softmax state
//===----------------------------------------------------------------------===//

struct ConvertMerge : OpRewritePattern<MergeOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(MergeOp op, PatternRewriter &rewriter) const override {
    ImplicitLocOpBuilder b(op.getLoc(), rewriter);
    RankedTensorType rowType = tensorType(op.getMax());
    Value empty = tensor::EmptyOp::create(b, rowType, dynamicSizes(b, rowType, op.getMaxA()));
    auto blend = [](OpBuilder &inner, Location loc, Value a, Value weightA, Value b, Value weightB) -> Value {
      return arith::AddFOp::create(inner, loc, arith::MulFOp::create(inner, loc, a, weightA), arith::MulFOp::create(inner, loc, b, weightB));
    };
    // What is merged takes the place of the first state, so that a loop that merges one split after another needs no memory for each.
    // Once per row: max, sum, and the weight that each state keeps, e^(its max - the larger one), where the max of no tokens counts as the lowest float.
    AffineMap rowIdentity = b.getMultiDimIdentityMap(3);
    auto rows = linalg::GenericOp::create(
        b, TypeRange{rowType, rowType, rowType, rowType}, ValueRange{op.getMaxB(), op.getSumB()}, ValueRange{op.getMaxA(), op.getSumA(), empty, empty},
        SmallVector<AffineMap>(6, rowIdentity), parallel(3), [&](OpBuilder &inner, Location loc, ValueRange args) {
          Value maxB = args[0], sumB = args[1], maxA = args[2], sumA = args[3];
          Value lowest = arith::ConstantOp::create(inner, loc, inner.getF32FloatAttr(std::numeric_limits<float>::lowest()));
          Value top = arith::MaximumFOp::create(inner, loc, maxA, maxB), shift = arith::MaximumFOp::create(inner, loc, top, lowest);
          auto weight = [&](Value max) -> Value { return math::ExpOp::create(inner, loc, arith::SubFOp::create(inner, loc, max, shift)); };
          Value weightA = weight(maxA), weightB = weight(maxB);
          linalg::YieldOp::create(inner, loc, ValueRange{top, blend(inner, loc, sumA, weightA, sumB, weightB), weightA, weightB});
        });
    // Sums per channel; of a certificate two numbers are variances, and one is a maximum.
    auto blendAll = [&](Value state, Value other, bool isCertificate) {
      auto [all, row] = stateMaps(b);
      return linalg::GenericOp::create(b, TypeRange{state.getType()}, ValueRange{rows.getResult(2), other, rows.getResult(3)}, state, SmallVector<AffineMap>{row, all, row, all},
                                       parallel(4),
                                       [&](OpBuilder &inner, Location loc, ValueRange args) {
                                         Value weightA = args[0], x = args[1], weightB = args[2], a = args[3], sum = blend(inner, loc, a, weightA, x, weightB);
                                         if (isCertificate) {
                                           Value at = linalg::IndexOp::create(inner, loc, 3);
                                           auto choose = [&](int64_t number, Value own) {
                                             Value is = arith::CmpIOp::create(inner, loc, arith::CmpIPredicate::eq, at, arith::ConstantIndexOp::create(inner, loc, number));
                                             sum = arith::SelectOp::create(inner, loc, is, own, sum);
                                           };
                                           auto square = [&](Value x) -> Value { return arith::MulFOp::create(inner, loc, x, x); };
                                           Value squared = blend(inner, loc, a, square(weightA), x, square(weightB));
                                           for (int64_t variance : {kCertificateVariance, kCertificateScoreVariance})
                                             choose(variance, squared);
                                           choose(kCertificateLargest, arith::MaximumFOp::create(inner, loc, a, x));
                                         }
                                         linalg::YieldOp::create(inner, loc, sum);
                                       })
          .getResult(0);
    };
    SmallVector<Value> results{blendAll(op.getAccA(), op.getAccB(), false), rows.getResult(0), rows.getResult(1)};
    if (op.getCertificate())
      results.push_back(blendAll(op.getCertificateA(), op.getCertificateB(), true));
    rewriter.replaceOp(op, results);
    return success();
  }
};

struct ConvertFinish : OpRewritePattern<FinishOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(FinishOp op, PatternRewriter &rewriter) const override {
    ImplicitLocOpBuilder b(op.getLoc(), rewriter);
    auto [state, row] = stateMaps(b);
    RankedTensorType type = tensorType(op.getResult());
    Value empty = tensor::EmptyOp::create(b, type, dynamicSizes(b, type, op.getAcc()));
    auto generic = linalg::GenericOp::create(b, TypeRange{type}, ValueRange{op.getAcc(), op.getSum()}, ValueRange{empty},
                                             SmallVector<AffineMap>{state, row, state}, parallel(4),
                                             [&](OpBuilder &inner, Location loc, ValueRange args) {
                                               Value zero = arith::ConstantOp::create(inner, loc, inner.getF32FloatAttr(0));
                                               Value none = arith::CmpFOp::create(inner, loc, arith::CmpFPredicate::OEQ, args[1], zero);
                                               Value quotient = arith::DivFOp::create(inner, loc, args[0], args[1]);
                                               Value result = arith::SelectOp::create(inner, loc, none, zero, quotient);
                                               if (!type.getElementType().isF32())
                                                 result = arith::TruncFOp::create(inner, loc, type.getElementType(), result);
                                               linalg::YieldOp::create(inner, loc, result);
                                             });
    SmallVector<Value> results{generic.getResult(0)};
    if (op.getCertificate())
      llvm::append_range(results, certify(b, op.getCertificate(), op.getSum(), results.front()));
    rewriter.replaceOp(op, results);
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Dense caches
//===----------------------------------------------------------------------===//

struct ConvertDenseAppend : OpRewritePattern<AppendOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(AppendOp op, PatternRewriter &rewriter) const override {
    if (!isa<RankedTensorType>(op.getType()) || getPlanes(op.getType()))
      return rewriter.notifyMatchFailure(op, "expected a dense tensor, got a cache: it is appended to in place");
    if (!op.getPosition()) {
      rewriter.replaceOpWithNewOp<tensor::ConcatOp>(op, op.getType(), /*dim=*/2, ValueRange{op.getCache(), op.getTokens()});
      return success();
    }
    SmallVector<OpFoldResult> offsets(4, rewriter.getIndexAttr(0)), strides(4, rewriter.getIndexAttr(1));
    offsets[2] = op.getPosition();
    Value replaced = tensor::InsertSliceOp::create(rewriter, op.getLoc(), op.getTokens(), op.getCache(), offsets, tensor::getMixedSizes(rewriter, op.getLoc(), op.getTokens()), strides);
    if (replaced.getType() != op.getType())
      replaced = tensor::CastOp::create(rewriter, op.getLoc(), op.getType(), replaced);
    rewriter.replaceOp(op, replaced);
    return success();
  }
};

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

struct ConvertAlignedToLinalgPass : aligned::impl::ConvertAlignedToLinalgBase<ConvertAlignedToLinalgPass> {
  using ConvertAlignedToLinalgBase::ConvertAlignedToLinalgBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    bool ok = true;
    module.walk([&](AttentionOp op) {
      if (reference)
        return;
      op.emitOpError("expected fused attention here: run aligned-fuse-decode-attention first");
      ok = false;
    });
    if (!ok)
      return signalPassFailure();
    RewritePatternSet patterns(&getContext());
    patterns.add<ConvertMerge, ConvertFinish, ConvertDenseAppend>(&getContext());
    if (reference) {
      declareRuntime(module);
      patterns.add<ConvertAttention, ConvertDecodeAttention>(&getContext());
    } else {
      populateAttentionDecomposition(patterns);
    }
    walkAndApplyPatterns(module, std::move(patterns));
  }
};

} // namespace
