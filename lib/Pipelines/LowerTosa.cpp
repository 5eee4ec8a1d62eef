// aligned-lower-tosa: upstream's way from tosa to linalg, for modules that need it.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Conversion/TosaToArith/TosaToArith.h"
#include "mlir/Conversion/TosaToLinalg/TosaToLinalg.h"
#include "mlir/Conversion/TosaToSCF/TosaToSCF.h"
#include "mlir/Conversion/TosaToTensor/TosaToTensor.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Index/IR/IndexDialect.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Tosa/IR/TosaOps.h"
#include "mlir/Dialect/Tosa/Transforms/Passes.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/Passes.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDLOWERTOSA
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

struct AlignedLowerTosaPass : aligned::impl::AlignedLowerTosaBase<AlignedLowerTosaPass> {
  void runOnOperation() override {
    bool any = getOperation()
                   .walk([](Operation *op) { return isa_and_present<tosa::TosaDialect>(op->getDialect()) ? WalkResult::interrupt() : WalkResult::advance(); })
                   .wasInterrupted();
    if (!any)
      return;
    OpPassManager passes(ModuleOp::getOperationName());
    tosa::addTosaToLinalgPasses(passes, TosaToLinalgOptions(), TosaToLinalgNamedOptions(), /*validationOptions=*/std::nullopt);
    OpPassManager &functions = passes.nest<func::FuncOp>();
    functions.addPass(createTosaToArithPass(TosaToArithPassOptions{/*includeApplyRescale=*/true}));
    functions.addPass(createTosaToTensorPass());
    functions.addPass(createTosaToSCFPass());
    functions.addPass(createCanonicalizerPass()); // drops shapes that nobody reads any more
    if (failed(runPipeline(passes, getOperation())))
      signalPassFailure();
  }
};

} // namespace
