// What a module needs on its way through the compiler, and the one pipeline that takes it there.
#include "aligned/Pipelines/Pipelines.h"

#include "aligned/Conversion/AlignedToCPU/Passes.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Raise/Passes.h"
#include "aligned/Transforms/Passes.h"

#include "mlir/InitAllDialects.h"
#include "mlir/InitAllExtensions.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"

using namespace mlir;

void aligned::registerDialects(DialectRegistry &registry) {
  registerAllDialects(registry);
  registerAllExtensions(registry);
  registerBuiltinDialectTranslation(registry);
  registerLLVMDialectTranslation(registry);
  registry.insert<AlignedDialect>();
}

void aligned::registerPasses() {
  registerAlignedTransformsPasses();
  registerAlignedToCPUPasses();
}

void aligned::buildPipeline(OpPassManager &pm, const PipelineOptions &options) {}

void aligned::registerPipelines() {
  PassPipelineRegistration<PipelineOptions>("aligned-pipeline", "compile decode attention over split caches", buildPipeline);
}
