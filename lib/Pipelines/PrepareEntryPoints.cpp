// aligned-prepare-entry-points: C wrappers and arguments that are only read for public functions, and for them only: kernels and the runtime's
// functions are called directly. Facts about arguments and results (aligned.range, ...), which were of use before, go.
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDPREPAREENTRYPOINTS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct AlignedPrepareEntryPointsPass : aligned::impl::AlignedPrepareEntryPointsBase<AlignedPrepareEntryPointsPass> {
  void runOnOperation() override {
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      for (StringRef fact : {kRangeName, kKeyOffsetName})
        for (unsigned index = 0; index < function.getNumArguments(); ++index)
          function.removeArgAttr(index, fact);
      for (unsigned index = 0; index < function.getNumResults(); ++index)
        function.removeResultAttr(index, StringAttr::get(&getContext(), kToleranceName));
      if (!function.isPublic() || function.isExternal())
        continue;
      function->setAttr(LLVM::LLVMDialect::getEmitCWrapperAttrName(), UnitAttr::get(&getContext()));
      // A tensor is a value: what the function makes of an argument must not show in the caller's array. Caches are there to be appended to.
      for (auto [index, type] : llvm::enumerate(function.getArgumentTypes()))
        if (isa<TensorType>(type) && !getPlanes(type))
          function.setArgAttr(index, bufferization::BufferizationDialect::kWritableAttrName, BoolAttr::get(&getContext(), false));
    }
  }
};

} // namespace
