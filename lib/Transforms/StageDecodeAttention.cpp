// aligned-stage-decode-attention: a decode step as stages, over rows and splits of tokens.
//
//   forall (batch, kv head)
//     prepare                         what is known of the row
//     forall (split)  scan            coarse scores; their maxima and sums
//     forall (split)  attend          a softmax state from what reaches above the thresholds that all sums give
//     for (split)     merge
//
// A short cache may be read faster as it was appended (`dense-up-to`): stages are then the other branch of a question that is asked when the program runs.
//
// Over dense tensors a step needs no stages. Of a single row, which several threads share only by its tokens, each split has a state of its own:
//
//   forall (split)  decode_attention
//   for (split)     merge
//
// Between the two loops over splits lies all that a row has to wait for: a reference and a sum of each split. Splits are of kSplitTiles tiles whatever the machine, so that
// results do not depend on the number of threads.
#include "aligned/Transforms/Passes.h"

#include "aligned/Analysis/Costs.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/SCF/Transforms/TileUsingInterface.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDSTAGEDECODEATTENTION
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

class Stager {
  using Values = SmallVector<Value>;

public:
  static constexpr int64_t kSplitTokens = kSplitTiles * kTile;

  Stager(DecodeAttentionOp op, int64_t denseUpTo) : op(op), denseUpTo(denseUpTo), b(op.getLoc(), op) {
    auto query = cast<RankedTensorType>(op.getQuery().getType()), key = cast<RankedTensorType>(op.getKey().getType());
    kvHeads = key.getDimSize(1);
    group = query.getDimSize(1) / kvHeads;
    queries = query.getDimSize(2);
    rows = group * queries;
    keyDim = key.getDimSize(3);
    valueDim = cast<RankedTensorType>(op.getValue().getType()).getDimSize(3);
    digits = op.getPolicyKind() == PolicyKind::Exact ? kExactQueryDigits : kQueryDigits;
  }

  void run() {
    Value tokens = tensor::DimOp::create(b, op.getKey(), 2);
    op.replaceAllUsesWith(!op.readsFixedPlanes() ? splitDense(tokens) : denseUpTo ? choose(tokens) : stages(tokens));
    op.erase();
  }

  /// Whether an op over dense tensors is split: it has one row, and where it has more tokens than a split, none of its masks goes by where they stand.
  static bool isSplit(DecodeAttentionOp op) {
    auto key = cast<ShapedType>(op.getKey().getType());
    return !getPlanes(key) && op.getTargets().empty() && key.getDimSize(0) == 1 && key.getDimSize(1) == 1 && (key.isDynamicDim(2) || key.getDimSize(2) > kSplitTokens) &&
           !op.getMask() && !op.getAttnMask() && llvm::all_of(op->getResultTypes(), [](Type type) { return cast<ShapedType>(type).hasStaticShape(); });
  }

private:
  /// The dense copies where there are some of no more than so many tokens, else the stages.
  Values choose(Value tokens) {
    Value isShort = isAtMost(tokens, denseUpTo), both = HasDenseCopyOp::create(b, op.getKey(), op.getValue());
    auto dense = [&]() -> Values {
      auto own = cast<DecodeAttentionOp>(b.clone(*op));
      own.setPoliciesAttr(b.getArrayAttr(Attribute(PolicyAttr::get(b.getContext(), PolicyKind::Exact))));
      own.setFromDenseCopy(true);
      own.getToleranceFactorMutable().clear();
      return Values(own.getResults());
    };
    return either(arith::AndIOp::create(b, isShort, both), dense, [&] { return stages(tokens); });
  }

  Values either(Value condition, function_ref<Values()> yes, function_ref<Values()> no) {
    auto choice = scf::IfOp::create(b, op->getResultTypes(), condition, /*withElse=*/true);
    OpBuilder::InsertionGuard guard(b);
    for (auto [block, body] : {std::pair(choice.thenBlock(), yes), {choice.elseBlock(), no}}) {
      b.setInsertionPointToStart(block);
      scf::YieldOp::create(b, body());
    }
    return Values(choice.getResults());
  }

  /// Splits cost a microsecond: a sequence that is one takes none of that.
  Values splitDense(Value tokens) {
    auto weightless = [&] { // says itself whether all scores are -inf, once
      auto own = cast<DecodeAttentionOp>(b.clone(*op));
      own.setMaskedZero(true);
      return own;
    };
    auto inSplits = [&] { return splits(tokens, weightless()); };
    Values state = op.getSinkLogits() ? inSplits() : either(isAtMost(tokens, kSplitTokens), [&]() -> Values { return Values(weightless().getResults()); }, inSplits);
    if (!op.getMaskedZero() && !op.getSinkLogits()) { // softmax of nothing but -inf is 0 / 0
      Value some = arith::CmpIOp::create(b, arith::CmpIPredicate::ne, tokens, index(0));
      auto isNothing = [&](OpBuilder &inner, Location loc, ValueRange args) {
        auto number = [&](float x) -> Value { return arith::ConstantOp::create(inner, loc, inner.getF32FloatAttr(x)); };
        Value none = arith::CmpFOp::create(inner, loc, arith::CmpFPredicate::OEQ, args[0], number(0)), both = arith::AndIOp::create(inner, loc, none, some);
        linalg::YieldOp::create(inner, loc, arith::SelectOp::create(inner, loc, both, number(NAN), args[0]).getResult());
      };
      state[2] = linalg::MapOp::create(b, state[2], tensor::EmptyOp::create(b, state[2].getType(), ValueRange()), isNothing).getResult()[0];
    }
    return state;
  }

  /// What `own`, which is moved there, makes of each split's tokens, merged.
  Values splits(Value tokens, DecodeAttentionOp own) {
    Value splits = ceilDiv(tokens, kSplitTokens);
    Values outs;
    for (Type result : op->getResultTypes()) {
      SmallVector<int64_t> shape(cast<ShapedType>(result).getShape());
      shape.front() = ShapedType::kDynamic;
      outs.push_back(tensor::EmptyOp::create(b, RankedTensorType::get(shape, b.getF32Type()), splits));
    }
    auto forall = scf::ForallOp::create(b, ArrayRef<OpFoldResult>{splits}, outs, std::nullopt);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(forall.getBody());
    Value split = forall.getInductionVar(0), first = arith::MulIOp::create(b, split, index(kSplitTokens));
    Value count = arith::MinUIOp::create(b, arith::SubIOp::create(b, tokens, first), index(kSplitTokens));
    for (OpOperand *side : {&own.getKeyMutable(), &own.getValueMutable()}) {
      SmallVector<OpFoldResult> offsets(4, b.getIndexAttr(0)), sizes(4, b.getIndexAttr(1)), strides(4, b.getIndexAttr(1));
      offsets[2] = first;
      sizes[2] = count;
      sizes[3] = b.getIndexAttr(cast<ShapedType>(side->get().getType()).getDimSize(3));
      side->set(tensor::ExtractSliceOp::create(b, side->get(), offsets, sizes, strides));
    }
    own.getSinkLogitsMutable().clear(); // the row has them once
    own->moveBefore(forall.getTerminator());
    b.setInsertionPointToStart(forall.getTerminator().getBody());
    for (auto [value, out] : llvm::zip(own->getResults(), forall.getRegionOutArgs()))
      insert(value, out, split);
    b.setInsertionPointAfter(forall);
    return merged(forall.getResults(), splits, index(0));
  }

  Values stages(Value tokens) {
    Value tiles = ceilDiv(tokens, kTile), splits = ceilDiv(tiles, kSplitTiles);
    Values outs;
    for (Value result : op.getResults()) {
      auto type = cast<RankedTensorType>(result.getType());
      Values sizes;
      for (int64_t dim = 0; dim < type.getRank(); ++dim)
        if (type.isDynamicDim(dim)) // heads, queries and head_dim are static
          sizes.push_back(tensor::DimOp::create(b, op.getQuery(), dim));
      // In a branch, memory whose layout bufferization knows: only then does it know that of both branches' results.
      outs.push_back(denseUpTo ? bufferization::AllocTensorOp::create(b, type, sizes).getResult() : tensor::EmptyOp::create(b, type, sizes).getResult());
    }
    OpFoldResult batch = b.getIndexAttr(cast<RankedTensorType>(op.getKey().getType()).getDimSize(0));
    auto forall = scf::ForallOp::create(b, ArrayRef<OpFoldResult>{batch, b.getIndexAttr(kvHeads)}, outs, std::nullopt);
    {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToStart(forall.getBody());
      Value entry = forall.getInductionVar(0), head = forall.getInductionVar(1);
      Value row = arith::AddIOp::create(b, arith::MulIOp::create(b, entry, index(kvHeads)), head);
      Values state = step(row, tiles, splits);
      Value firstHead = arith::MulIOp::create(b, head, index(group));
      b.setInsertionPointToStart(forall.getTerminator().getBody());
      for (auto [value, out] : llvm::zip(state, forall.getRegionOutArgs()))
        insert(value, out, {entry, firstHead});
    }
    return Values(forall.getResults());
  }

  Values step(Value row, Value tiles, Value splits) {
    Type f32 = b.getF32Type();
    Value softScale = op.getScale();
    auto empty = [&](ArrayRef<int64_t> shape, Type element, ValueRange sizes = {}) -> Value {
      return tensor::EmptyOp::create(b, RankedTensorType::get(shape, element), sizes);
    };
    Values facts{empty({digits, rows, keyDim}, b.getI8Type()), empty({rows + 1, kStepFacts}, f32), empty({valueDim}, f32)};
    auto prepare = PrepareOp::create(b, typesOf(facts), op.getQuery(), op.getKey(), op.getValue(), op.getScale(), row, op.getDynamicWindow(),
                                     op.getDynamicSinks(), op.getLater(), op.getToleranceFactor(), facts, op.getPolicies(), op.getMaskAttr());
    Value digitsOf = prepare.getResult(0), factsOf = prepare.getResult(1), mean = prepare.getResult(2);

    constexpr int64_t any = ShapedType::kDynamic;
    Value first = index(0);
    Values parts{empty({any, rows, kTile}, f32, tiles), empty({any, rows, kTopLanes}, f32, tiles), empty({any, 2, rows}, f32, splits)};
    auto scan = ScanOp::create(b, typesOf(parts), op.getQuery(), op.getKey(), op.getValue(), softScale, row, first, op.getDynamicSoftcap(), op.getDynamicWindow(),
                               op.getDynamicSinks(), op.getLater(), op.getAttnMask(), digitsOf, factsOf, parts, op.getPolicies(), op.getSoftcapAttr(), op.getMaskAttr());

    Values states{empty({any, group, queries, valueDim}, f32, splits), empty({any, group, queries}, f32, splits), empty({any, group, queries}, f32, splits)};
    if (op.getCertificate())
      states.push_back(empty({any, group, queries, kCertificateNumbers}, f32, splits));
    auto attend = AttendOp::create(b, typesOf(states), op.getQuery(), op.getKey(), op.getValue(), row, first, op.getDynamicSoftcap(), op.getDynamicWindow(),
                                   op.getDynamicSinks(), op.getLater(), op.getAttnMask(), op.getSinkLogits(), digitsOf, factsOf, mean, scan.getResult(0), scan.getResult(1), scan.getResult(2), states, op.getPolicies(), op.getMaskedZeroAttr(), op.getAttentionIdAttr(),
                                   op.getSoftcapAttr(), op.getMaskAttr());

    return merged(attend.getResults(), splits, row);
  }

  /// The state of no tokens of a row, merged with each split's.
  Values merged(ValueRange states, Value splits, Value row) {
    Type f32 = b.getF32Type();
    auto filled = [&](ArrayRef<int64_t> shape, double number) -> Value {
      auto type = RankedTensorType::get(shape, f32);
      return arith::ConstantOp::create(b, DenseElementsAttr::get(type, static_cast<float>(number)));
    };
    Values initial{filled({1, group, queries, valueDim}, 0), filled({1, group, queries}, -INFINITY), filled({1, group, queries}, 0)};
    if (Value sinks = op.getSinkLogits()) { // what is in the softmax's sum before any token
      Value own = slice(sinks, arith::MulIOp::create(b, arith::RemUIOp::create(b, row, index(kvHeads)), index(group)), index(group), RankedTensorType::get({group}, f32));
      initial[1] = linalg::BroadcastOp::create(b, own, tensor::EmptyOp::create(b, RankedTensorType::get({1, group, queries}, f32), ValueRange()), ArrayRef<int64_t>{0, 2})->getResult(0);
      initial[2] = filled({1, group, queries}, 1);
    }
    if (op.getCertificate())
      initial.push_back(filled({1, group, queries, kCertificateNumbers}, 0));
    auto loop = scf::ForOp::create(b, index(0), splits, index(1), initial);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    Values next;
    for (auto [all, one] : llvm::zip(states, initial))
      next.push_back(slice(all, loop.getInductionVar(), index(1), cast<RankedTensorType>(one.getType())));
    ValueRange before = loop.getRegionIterArgs();
    Value certificate = op.getCertificate() ? before[3] : Value(), other = op.getCertificate() ? next[3] : Value();
    auto merge = MergeOp::create(b, before[0].getType(), before[1].getType(), before[2].getType(), certificate ? certificate.getType() : Type(), before[0], before[1], before[2],
                                 certificate, next[0], next[1], next[2], other);
    scf::YieldOp::create(b, merge.getResults());
    return Values(loop.getResults());
  }

  /// Places a row's `value` in `out`, from `offsets` in the first dimensions on.
  void insert(Value value, Value out, ArrayRef<Value> offsets) {
    auto type = cast<RankedTensorType>(value.getType());
    SmallVector<OpFoldResult> starts(type.getRank(), b.getIndexAttr(0)), sizes, strides(type.getRank(), b.getIndexAttr(1));
    llvm::copy(offsets, starts.begin());
    for (int64_t size : type.getShape())
      sizes.push_back(b.getIndexAttr(size));
    tensor::ParallelInsertSliceOp::create(b, value, out, starts, sizes, strides);
  }

  /// `count` entries of the first dimension from `first` on.
  Value slice(Value whole, Value first, Value count, RankedTensorType type = {}) {
    auto from = cast<RankedTensorType>(whole.getType());
    SmallVector<OpFoldResult> offsets(from.getRank(), b.getIndexAttr(0)), sizes, strides(from.getRank(), b.getIndexAttr(1));
    offsets[0] = first;
    sizes.push_back(getAsOpFoldResult(count)); // a constant where it is one, as a given type says
    for (int64_t size : from.getShape().drop_front())
      sizes.push_back(b.getIndexAttr(size));
    if (type)
      return tensor::ExtractSliceOp::create(b, type, whole, offsets, sizes, strides);
    return tensor::ExtractSliceOp::create(b, whole, offsets, sizes, strides);
  }

  static SmallVector<Type> typesOf(ArrayRef<Value> values) {
    SmallVector<Type> types;
    for (Value value : values)
      types.push_back(value.getType());
    return types;
  }
  Value index(int64_t n) { return arith::ConstantIndexOp::create(b, n); }
  Value isAtMost(Value a, int64_t n) { return arith::CmpIOp::create(b, arith::CmpIPredicate::ule, a, index(n)); }
  Value ceilDiv(Value a, int64_t by) { return arith::CeilDivUIOp::create(b, a, index(by)); }

  DecodeAttentionOp op;
  int64_t denseUpTo; ///< tokens
  ImplicitLocOpBuilder b;
  int64_t kvHeads, group, queries, rows, keyDim, valueDim, digits;
};

AttentionShape shapeOf(DecodeAttentionOp op) {
  auto query = cast<ShapedType>(op.getQuery().getType()), key = cast<ShapedType>(op.getKey().getType()), value = cast<ShapedType>(op.getValue().getType());
  return {key.getDimSize(3), value.getDimSize(3), query.getDimSize(1) / key.getDimSize(1) * query.getDimSize(2)};
}

/// One split at a time, side by side.
LogicalResult tileSplits(TilingInterface stage) {
  IRRewriter rewriter(stage);
  auto options = scf::SCFTilingOptions().setLoopType(scf::SCFTilingOptions::LoopType::ForallOp).setTileSizes({rewriter.getIndexAttr(1)});
  FailureOr<scf::SCFTilingResult> tiled = scf::tileUsingSCF(rewriter, stage, options);
  if (failed(tiled))
    return failure();
  rewriter.replaceOp(stage, tiled->replacements);
  return success();
}

struct AlignedStageDecodeAttentionPass : aligned::impl::AlignedStageDecodeAttentionBase<AlignedStageDecodeAttentionPass> {
  using AlignedStageDecodeAttentionBase::AlignedStageDecodeAttentionBase;

  void runOnOperation() override {
    SmallVector<DecodeAttentionOp> steps;
    getOperation().walk([&](DecodeAttentionOp op) {
      if (!op.getTargets().empty() || !(op.readsFixedPlanes() || (splitDense && Stager::isSplit(op)))) // on buffers it is too late
        return;
      auto query = cast<ShapedType>(op.getQuery().getType());
      bool isStatic = llvm::none_of(query.getShape().drop_front(), ShapedType::isDynamic);
      for (Type result : op->getResultTypes())
        isStatic &= llvm::none_of(cast<ShapedType>(result).getShape().drop_front(), ShapedType::isDynamic);
      if (isStatic)
        return steps.push_back(op);
      op.emitOpError("expected static heads, queries and head_dim, got ") << query << " and " << op.getAcc().getType();
      signalPassFailure();
    });
    ArrayRef<double> numbers = costs;
    std::optional<Costs> machine = Costs::of(numbers.data(), numbers.size());
    if (!machine && !numbers.empty()) {
      getOperation().emitError("expected costs to be ") << Costs::kNumbers << " numbers above 0, got " << numbers.size() << ": " << numbers;
      return signalPassFailure();
    }
    int64_t most = 0;
    for (DecodeAttentionOp op : steps) {
      int64_t tokens = !op.readsFixedPlanes() ? 0 : machine ? machine->denseUpTo(shapeOf(op), leastTolerance(llvm::to_vector(op.getPolicies().getAsRange<PolicyAttr>()))) : denseUpTo;
      most = std::max(most, tokens);
      Stager(op, tokens).run();
    }
    if (most)
      getOperation()->setAttr(kDenseUpToName, Builder(&getContext()).getI64IntegerAttr(most));
    SmallVector<TilingInterface> stages;
    getOperation().walk([&](Operation *op) {
      llvm::TypeSwitch<Operation *>(op).Case<ScanOp, AttendOp>([&](auto stage) { // of several splits, or of any number
        if (op->getNumResults() && cast<ShapedType>(stage.getSplitsOut().getType()).getDimSize(0) != 1)
          stages.push_back(stage);
      });
    });
    for (TilingInterface stage : stages)
      if (failed(tileSplits(stage)))
        return signalPassFailure();
  }
};

} // namespace
