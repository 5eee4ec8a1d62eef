// aligned-analyze-precision: remarks for people, or one JSON document for tools.
#include "aligned/Analysis/Passes.h"
#include "aligned/Analysis/Precision.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

#include "llvm/Support/JSON.h"

#include <cmath>

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDANALYZEPRECISION
#include "aligned/Analysis/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace json = llvm::json;

static json::Value number(double x) { return std::isfinite(x) ? json::Value(x) : json::Value(nullptr); }

static json::Object describe(Value value, const PrecisionAnalysis &analysis) {
  FloatRange range = analysis.rangeOf(value);
  std::string type;
  llvm::raw_string_ostream(type) << value.getType();
  return json::Object{{"type", type},
                      {"lower", number(range.lower)},
                      {"upper", number(range.upper)},
                      {"nonzero", number(range.least)},
                      {"inf", range.infinite},
                      {"nan", range.nan},
                      {"held", range.held == FloatRange::kHeldNothing ? json::Value(nullptr) : json::Value(range.held)},
                      {"slack", number(analysis.slackOf(value))}};
}

static bool isFloat(Value value) { return FloatFormat::of(value.getType()).has_value(); }

static json::Object describe(Operation *op, const PrecisionAnalysis &analysis) {
  json::Array operands, results;
  SmallVector<Waste> wastes = wasteOf(op, analysis);
  for (OpOperand &operand : op->getOpOperands()) {
    if (!isFloat(operand.get()))
      continue;
    json::Object entry = describe(operand.get(), analysis);
    entry["operand"] = operand.getOperandNumber();
    const Waste *most = nullptr;
    for (const Waste &waste : wastes)
      if (waste.operand == operand.getOperandNumber() && (!most || waste.bits() > most->bits()))
        most = &waste;
    if (most) {
      entry["wasted_bits"] = most->bits();
      entry["finest"] = most->finest;
      entry["below"] = most->below;
    }
    operands.push_back(std::move(entry));
  }
  for (OpResult result : op->getResults())
    if (isFloat(result)) {
      json::Object entry = describe(result, analysis);
      entry["result"] = result.getResultNumber();
      results.push_back(std::move(entry));
    }
  std::string location;
  llvm::raw_string_ostream(location) << op->getLoc();
  auto function = op->getParentOfType<FunctionOpInterface>();
  return json::Object{{"op", op->getName().getStringRef()}, {"function", function ? json::Value(function.getName()) : json::Value(nullptr)},
                      {"location", location}, {"operands", std::move(operands)}, {"results", std::move(results)}};
}

static std::string rangeText(Value value, const PrecisionAnalysis &analysis) {
  std::string text;
  llvm::raw_string_ostream os(text);
  analysis.rangeOf(value).print(os);
  return text;
}

/// A reduction speaks for the op in its body that adds, and bodies of named ops are nowhere in the text.
static bool isSpokenFor(Operation *op) {
  auto parent = dyn_cast<linalg::LinalgOp>(op->getParentOp());
  return parent && (!isa<linalg::GenericOp>(parent) || (reducedValues(parent) != 1 && op->hasOneUse() && isa<linalg::YieldOp>(*op->getUsers().begin())));
}

static void remarkOn(Operation *op, const PrecisionAnalysis &analysis) {
  if (op->getParentOp() && isSpokenFor(op))
    return;
  for (const Waste &waste : wasteOf(op, analysis)) {
    bool one = waste.bits() == 1;
    Value operand = op->getOperand(waste.operand);
    InFlightDiagnostic remark = op->emitRemark("the lower ") << waste.bits() << (one ? " bit" : " bits") << " of operand #" << waste.operand
                                                              << (one ? " lies below " : " lie below ") << waste.below;
    Diagnostic &note = remark.attachNote();
    note << "operand #" << waste.operand << " is in " << rangeText(operand, analysis) << ", with bits down to 2^" << waste.finest << " in its largest values; ";
    if (waste.other)
      note << "operand #" << *waste.other << " is in " << rangeText(op->getOperand(*waste.other), analysis) << ", a multiple of 2^" << waste.alignment;
    else if (double slack = analysis.slackOf(operand); waste.below.find("uses") == std::string::npos)
      note << "the product is a multiple of 2^" << waste.alignment;
    else if (std::isinf(slack))
      note << "no result depends on it";
    else
      note << "it may be off by " << decimal(slack);
  }
}

namespace {

struct AlignedAnalyzePrecisionPass : aligned::impl::AlignedAnalyzePrecisionBase<AlignedAnalyzePrecisionPass> {
  using AlignedAnalyzePrecisionBase::AlignedAnalyzePrecisionBase;

  void runOnOperation() override {
    if (!report.empty() && report != "json") {
      getOperation().emitError("expected the report to be 'json', got '") << report << "'";
      return signalPassFailure();
    }
    PrecisionAnalysis analysis(getOperation());
    if (failed(analysis.run()))
      return signalPassFailure();
    json::Array ops;
    getOperation().walk<WalkOrder::PreOrder>([&](Operation *op) {
      if (report.empty())
        remarkOn(op, analysis);
      else if (llvm::any_of(op->getOperands(), isFloat) || llvm::any_of(op->getResults(), isFloat))
        ops.push_back(describe(op, analysis));
    });
    if (!report.empty())
      llvm::outs() << json::Value(json::Object{{"ops", std::move(ops)}}) << "\n";
    markAllAnalysesPreserved();
  }
};

} // namespace
