// aligned-raise-attention: find softmax(scale * Q K^T) V and say so.
//
// What is attention is decided by AttentionMatcher.h. Whatever does not fit is left alone, with a remark that says what was expected.
#include "Appends.h"
#include "AttentionMatcher.h"
#include "ScoreMask.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Raise/Passes.h"

#include "mlir/Dialect/Affine/IR/AffineOps.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Support/FileUtilities.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/ToolOutputFile.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDRAISEATTENTION
#include "aligned/Raise/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

/// Attention in f32 that is only rounded, be it in another shape: the op rounds once by itself.
struct FoldRounding : OpRewritePattern<linalg::GenericOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(linalg::GenericOp op, PatternRewriter &rewriter) const override {
    if (op.getNumDpsInputs() != 1 || op.getNumResults() != 1 || op.getNumReductionLoops() ||
        !llvm::all_of(op.getIndexingMapsArray(), [](AffineMap map) { return map.isIdentity(); }))
      return rewriter.notifyMatchFailure(op, "expected an elementwise op of one tensor");
    Value input = op.getDpsInputs()[0];
    Operation *shaped = input.getDefiningOp();
    if (isa_and_nonnull<tensor::CollapseShapeOp, tensor::ExpandShapeOp>(shaped) && shaped->hasOneUse())
      input = shaped->getOperand(0);
    else
      shaped = nullptr;
    auto attention = input.getDefiningOp<AttentionOp>();
    auto rounding = op.getBody()->getTerminator()->getOperand(0).getDefiningOp<arith::TruncFOp>();
    if (!attention || !attention->hasOneUse() || !rounding || rounding.getIn() != op.getBody()->getArgument(0) ||
        !(rounding.getType().isF16() || rounding.getType().isBF16()))
      return rewriter.notifyMatchFailure(op, "expected the rounding of an attention that has no other reader");
    Value rounded = AttentionOp::create(rewriter, attention.getLoc(), cast<RankedTensorType>(input.getType()).clone(rounding.getType()), Type(), Type(), attention.getQuery(),
                                        attention.getKey(), attention.getValue(), attention.getScale(), attention.getAttnMask(), attention.getSinkLogits(),
                                        attention.getMaskedZero(), attention.getPoliciesAttr(), attention.getSoftcapAttr(), attention.getMaskAttr())
                        .getResult();
    if (shaped) {
      IRMapping operands;
      operands.map(shaped->getOperand(0), rounded);
      Operation *copy = rewriter.clone(*shaped, operands);
      copy->getResult(0).setType(op.getResultTypes().front());
      rounded = copy->getResult(0);
    }
    rewriter.replaceOp(op, rounded);
    return success();
  }
};

/// What became of one candidate, for the report.
struct Outcome {
  std::string function, location, reason;
  llvm::json::Object match; ///< empty where it was not raised
};

template <typename T> std::string print(const T &value) {
  std::string text;
  llvm::raw_string_ostream(text) << value;
  return text;
}

/// file:line:column, where the op has one.
std::string place(Location location) {
  auto file = location->findInstanceOf<FileLineColLoc>();
  return file ? llvm::formatv("{0}:{1}:{2}", file.getFilename().getValue(), file.getLine(), file.getColumn()).str() : print(location);
}

struct AlignedRaiseAttentionPass : aligned::impl::AlignedRaiseAttentionBase<AlignedRaiseAttentionPass> {
  using AlignedRaiseAttentionBase::AlignedRaiseAttentionBase;

  void runOnOperation() override {
    outcomes.clear();
    SmallVector<Anchor> anchors;
    SmallPtrSet<Operation *, 8> divided; // products whose division ends the attention
    getOperation().walk([&](linalg::LinalgOp op) {
      if (std::optional<Anchor> anchor = Anchor::of(op)) {
        anchors.push_back(*anchor);
        if (anchor->product.op != op)
          divided.insert(anchor->product.op);
      }
    });
    IRRewriter rewriter(&getContext());
    bool raised = false;
    for (Anchor &anchor : anchors)
      if (anchor.output.getDefiningOp() != anchor.product.op || !divided.contains(anchor.product.op))
        raised |= raise(rewriter, anchor);
    if (!report.empty() && failed(writeReport()))
      return signalPassFailure();
    if (!raised)
      return;
    RewritePatternSet patterns(&getContext());
    patterns.add<FoldRounding>(&getContext());
    tensor::CollapseShapeOp::getCanonicalizationPatterns(patterns, &getContext());
    tensor::ExpandShapeOp::getCanonicalizationPatterns(patterns, &getContext());
    if (failed(applyPatternsGreedily(getOperation(), std::move(patterns)))) // also erases what nobody reads any more
      signalPassFailure();
  }

  bool raise(RewriterBase &rewriter, Anchor &anchor) {
    Operation *op = anchor.output.getDefiningOp();
    AttentionMatcher matcher(anchor);
    std::string reason;
    std::optional<Match> match = matcher.match(reason);
    ScoreMask mask;
    if (match && !mask.plan(matcher.tracer, *match, reason))
      match.reset();
    if (match && match->sink) {
      llvm::SmallBitVector used(4);
      if (!FormulaWriter(matcher.tracer, match->grid, match->token).canWrite(*match->sink, used) || used.test(0) || used.test(2) || used.test(3)) {
        reason = "expected a logit without a value to be one for each query head";
        match.reset();
      }
    }
    if (!match) {
      if (!reason.empty()) {
        op->emitRemark("attention not raised: ") << reason;
        note(op, reason, {});
      }
      return false;
    }

    rewriter.setInsertionPoint(op);
    ImplicitLocOpBuilder b(op->getLoc(), rewriter);
    auto resultType = cast<RankedTensorType>(anchor.output.getType());
    const Grid &grid = match->grid;
    Value query = grid.canonical(b, match->query), key = grid.canonical(b, match->key), value = grid.canonical(b, match->value);
    Value attnMask = mask.write(b, key), sinks = writeSinks(b, matcher.tracer, *match), scale = writeScale(b, matcher.tracer, *match);
    auto type = RankedTensorType::get({grid.batch, grid.heads, grid.queries, match->value.channels()}, resultType.getElementType());
    FloatAttr softcap = match->softcap ? b.getF64FloatAttr(*match->softcap) : FloatAttr();
    auto attention = AttentionOp::create(b, type, Type(), Type(), query, key, value, scale, attnMask, sinks, match->maskedZero, ArrayAttr(), softcap, mask.attribute);
    rewriter.replaceOp(op, grid.layOut(b, attention.getResult(), resultType));
    raiseAppend(rewriter, attention.getKey());
    raiseAppend(rewriter, attention.getValue());
    note(attention, "", llvm::json::Object{{"query", print(query.getType())}, {"key", print(attention.getKey().getType())}, {"value", print(attention.getValue().getType())},
                                           {"mask", mask.describe()}, {"softcap", bool(match->softcap)}, {"sink_logits", match->sink.has_value()}, {"masked_zero", match->maskedZero}});
    return true;
  }

  void note(Operation *op, StringRef reason, llvm::json::Object match) {
    auto function = op->getParentOfType<FunctionOpInterface>();
    outcomes.push_back({function ? function.getName().str() : "", place(op->getLoc()), reason.str(), std::move(match)});
  }

  LogicalResult writeReport() {
    std::string error;
    std::unique_ptr<llvm::ToolOutputFile> file = openOutputFile(report, &error);
    if (!file)
      return getOperation().emitError("report: ") << error;
    llvm::json::OStream json(file->os(), /*IndentSize=*/2);
    json.array([&] {
      for (Outcome &outcome : outcomes)
        json.object([&] {
          json.attribute("function", llvm::json::fixUTF8(outcome.function));
          json.attribute("location", llvm::json::fixUTF8(outcome.location));
          json.attribute("raised", outcome.reason.empty());
          if (outcome.reason.empty())
            json.attribute("match", std::move(outcome.match));
          else
            json.attribute("reason", outcome.reason);
        });
    });
    file->os() << '\n';
    file->keep();
    return success();
  }

  SmallVector<Outcome> outcomes;
};

} // namespace
