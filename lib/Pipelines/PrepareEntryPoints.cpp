// aligned-prepare-entry-points: C wrappers and arguments that are only read for public functions, and for them only: kernels and the runtime's
// functions are called directly.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
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
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (!function.isPublic() || function.isExternal())
        continue;
      function->setAttr(LLVM::LLVMDialect::getEmitCWrapperAttrName(), UnitAttr::get(&getContext()));
      // A tensor is a value: what the function makes of an argument must not show in the caller's array.
      for (auto [index, type] : llvm::enumerate(function.getArgumentTypes()))
        if (isa<TensorType>(type))
          function.setArgAttr(index, bufferization::BufferizationDialect::kWritableAttrName, BoolAttr::get(&getContext(), false));
    }
  }
};

} // namespace
