// aligned-prepare-entry-points: what a C caller may expect of a public function.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "llvm/ADT/SmallPtrSet.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDPREPAREENTRYPOINTS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

struct AlignedPrepareEntryPointsPass : aligned::impl::AlignedPrepareEntryPointsBase<AlignedPrepareEntryPointsPass> {
  void runOnOperation() override {
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (function.isPrivate() || function.isExternal())
        continue;
      function->setAttr(LLVM::LLVMDialect::getEmitCWrapperAttrName(), UnitAttr::get(&getContext()));
      for (auto ret : function.getOps<func::ReturnOp>())
        separateResults(ret);
    }
  }

  static void separateResults(func::ReturnOp ret) {
    SmallPtrSet<Value, 4> seen;
    OpBuilder b(ret);
    for (OpOperand &operand : ret->getOpOperands())
      if (isa<RankedTensorType>(operand.get().getType()) && !seen.insert(operand.get()).second)
        operand.set(bufferization::AllocTensorOp::create(b, ret.getLoc(), cast<RankedTensorType>(operand.get().getType()), ValueRange(), operand.get()));
  }
};

} // namespace
