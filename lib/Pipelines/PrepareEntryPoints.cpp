// aligned-prepare-entry-points: C wrappers for public functions, and for them only: kernels and the runtime's functions are called directly.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDPREPAREENTRYPOINTS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

struct AlignedPrepareEntryPointsPass : aligned::impl::AlignedPrepareEntryPointsBase<AlignedPrepareEntryPointsPass> {
  void runOnOperation() override {
    for (auto function : getOperation().getOps<func::FuncOp>())
      if (function.isPublic() && !function.isExternal())
        function->setAttr(LLVM::LLVMDialect::getEmitCWrapperAttrName(), UnitAttr::get(&getContext()));
  }
};

} // namespace
