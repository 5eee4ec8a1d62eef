// aligned-assign-policies: from what results may be off to how closely K and V are read.
#include "aligned/Analysis/Passes.h"
#include "aligned/Analysis/Precision.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Interfaces/FunctionInterfaces.h"

#include <cmath>

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDASSIGNPOLICIES
#include "aligned/Analysis/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

static constexpr double kLeast = 0x1p-13, kMost = 0.25; ///< tolerances that a budget can keep, and that its predictions are good for

static bool saysTolerance(FunctionOpInterface function) {
  for (unsigned i = 0; i < function.getNumResults(); ++i)
    if (function.getResultAttr(i, kToleranceName))
      return true;
  return false;
}

namespace {

struct AlignedAssignPoliciesPass : aligned::impl::AlignedAssignPoliciesBase<AlignedAssignPoliciesPass> {
  void runOnOperation() override {
    SmallVector<AttentionOp> attentions;
    getOperation().walk([&](AttentionOp op) {
      auto function = op->getParentOfType<FunctionOpInterface>();
      if (!op.getPolicies() && function && saysTolerance(function))
        attentions.push_back(op);
    });
    if (attentions.empty())
      return markAllAnalysesPreserved();
    PrecisionAnalysis analysis(getOperation());
    if (failed(analysis.run()))
      return signalPassFailure();
    for (AttentionOp op : attentions)
      assign(op, analysis);
  }

  void assign(AttentionOp op, const PrecisionAnalysis &analysis) {
    double slack = analysis.slackOf(op.getResult()), largest = analysis.rangeOf(op.getValue()).magnitude();
    auto dim = cast<RankedTensorType>(op.getResult().getType()).getDimSize(3);
    if (std::isinf(largest) || analysis.rangeOf(op.getValue()).nan || ShapedType::isDynamic(dim)) {
      op.emitRemark("no policy from the results' tolerance: nothing is known of the size of values; '") << kRangeName << "' on the argument they come from says it";
      return;
    }
    if (slack == 0) {
      op.emitRemark("no policy from the results' tolerance: what becomes of the result is not known to leave any");
      return;
    }
    // An output row errs by about tolerance times a usual row of V, whose values are at most `largest`: its length is at most largest * sqrt(dim). No channel errs by more than
    // the row.
    double tolerance = largest == 0 ? kMost : std::min(slack / (largest * std::sqrt(dim)), kMost);
    PolicyAttr policy;
    if (tolerance < kLeast) {
      op.emitRemark("exact: the results' tolerance asks for a relative error of ") << decimal(tolerance) << ", expected at least " << decimal(kLeast) << " to save anything";
      policy = PolicyAttr::get(&getContext(), PolicyKind::Exact);
    } else {
      policy = PolicyAttr::get(&getContext(), PolicyKind::Budget, FloatAttr::get(Float64Type::get(&getContext()), tolerance), LimitsAttr(), LimitsAttr());
    }
    op.setPoliciesAttr(ArrayAttr::get(&getContext(), {policy}));
  }
};

} // namespace
