// What a module needs on its way through the compiler, and the one pipeline that takes it there.
#include "aligned/Pipelines/Pipelines.h"

#include "aligned/Analysis/Passes.h"
#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Conversion/AlignedToCPU/Passes.h"
#include "aligned/Conversion/AlignedToNVVM/Passes.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Passes.h"
#include "aligned/Raise/Passes.h"
#include "aligned/Transforms/Passes.h"

#include "mlir/Conversion/Passes.h"
#include "mlir/Dialect/Arith/Transforms/Passes.h"
#include "mlir/Dialect/Bufferization/Transforms/Passes.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/Linalg/Passes.h"
#include "mlir/Dialect/Math/Transforms/Passes.h"
#include "mlir/Dialect/MemRef/Transforms/Passes.h"
#include "mlir/InitAllDialects.h"
#include "mlir/InitAllExtensions.h"
#include "mlir/InitAllPasses.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Target/LLVM/NVVM/Target.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/GPU/GPUToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/NVVM/NVVMToLLVMIRTranslation.h"
#include "mlir/Transforms/Passes.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;

void aligned::registerDialects(DialectRegistry &registry) {
  registerAllDialects(registry);
  registerAllExtensions(registry);
  registerBuiltinDialectTranslation(registry);
  registerLLVMDialectTranslation(registry);
  registerGPUDialectTranslation(registry);
  registerNVVMDialectTranslation(registry);
  NVVM::registerNVVMTargetInterfaceExternalModels(registry);
  registry.insert<AlignedDialect>();
  registerInterfaces(registry);
}

void aligned::registerInterfaces(DialectRegistry &registry) {
  registerRuntimeVerification(registry);
  registerBufferization(registry);
  registerStageBufferization(registry);
  registerOwnership(registry);
}

void aligned::registerPasses() {
  registerAlignedRaisePasses();
  registerAlignedAnalysisPasses();
  registerAlignedTransformsPasses();
  registerAlignedToCPUPasses();
  registerAlignedToNVVMPasses();
  registerAlignedPipelinesPasses();
}

void aligned::registerEverything(DialectRegistry &registry) {
  registerDialects(registry);
  [[maybe_unused]] static const bool once = [] {
    registerAllPasses();
    registerPasses();
    registerPipelines();
    return true;
  }();
}

//===----------------------------------------------------------------------===//
// The pipeline
//===----------------------------------------------------------------------===//

namespace {
using namespace aligned;

void cleanUp(OpPassManager &pm) {
  pm.addPass(createCanonicalizerPass());
  pm.addPass(createCSEPass());
}

void verify(OpPassManager &pm, StringRef phase, uint64_t denseBelow = 0) {
  AlignedVerifyPhaseOptions options;
  options.phase = phase.str();
  options.denseBelow = denseBelow;
  pm.addPass(createAlignedVerifyPhase(options));
}

/// Whatever is not linalg yet.
void toLinalg(OpPassManager &pm) {
  pm.addPass(createAlignedLowerTosa());
  pm.addNestedPass<func::FuncOp>(createConvertElementwiseToLinalgPass());
}

/// Named ops first, which linalg and tosa may surround.
void raise(OpPassManager &pm, const AlignedRaiseAttentionOptions &options) {
  pm.addPass(createAlignedRaiseNamedOps());
  toLinalg(pm);
  pm.addPass(createAlignedRaiseAttention(options));
}

void applyBudget(OpPassManager &pm, const PipelineOptions &options) {
  AlignedApplyBudgetOptions budget;
  budget.file = options.budget;
  budget.layer = options.budgetLayer;
  budget.policy = options.policy;
  budget.tolerance = options.tolerance;
  pm.addPass(createAlignedApplyBudget(budget));
}

void store(OpPassManager &pm, const PipelineOptions &options) {
  AlignedStoreKVCachesOptions storage;
  storage.format = options.format;
  storage.preferFloat = options.policy == "alignedkv";
  storage.denseBelow = options.denseBelow;
  pm.addPass(createAlignedStoreKVCaches(storage));
}

void fuse(OpPassManager &pm, const PipelineOptions &options) {
  AlignedFuseDecodeAttentionOptions fused;
  bool dense = options.format == "dense";
  fused.policy = dense ? std::string("exact") : options.policy.getValue();
  fused.tolerance = dense ? 0.0 : options.tolerance.getValue();
  pm.addPass(createAlignedFuseDecodeAttention(fused));
}

/// Extents come from callers, and kernels trust them: what types leave open is asserted, once per op, while the ops still say what they need.
void checkExtents(OpPassManager &pm) {
  pm.addPass(createGenerateRuntimeVerificationPass());
  cleanUp(pm);
}

/// What a model may say in math and vector, to what LLVM has.
void expandFunctions(OpPassManager &pm) {
  math::MathExpandOpsPassOptions functions; // but for fma, which rounds once, and roundeven: both are instructions
  functions.opMnemonics = {"sinh", "cosh", "tan", "tanh", "asinh", "acosh", "atanh", "ceil", "exp2", "powf", "fpowi", "round", "rsqrt", "clampf", "ctlz"};
  pm.addPass(math::createMathExpandOpsPass(functions));
  ConvertVectorToLLVMPassOptions vectors; // convert-to-llvm alone leaves transfers
  vectors.vectorTransposeLowering = vector::VectorTransposeLowering::Shuffle1D;
  pm.addPass(createConvertVectorToLLVMPass(vectors));
  pm.addPass(createConvertMathToLLVMPass());
  pm.addPass(createConvertMathToLibmPass()); // what has no intrinsic
}

void lower(OpPassManager &pm, const PipelineOptions &options) {
  ConvertAlignedToLinalgOptions tensors;
  tensors.reference = options.target == "reference";
  pm.addPass(createConvertAlignedToLinalg(tensors));
  pm.addNestedPass<func::FuncOp>(createAlignedDecomposeAggregates()); // after the above, which writes dense appends as concatenations
  cleanUp(pm);

  // Buffers, while caches and what is done with them can still be told: what is read and written decides where a cache is copied, and who owns it where it is freed.
  pm.addPass(createAlignedPrepareEntryPoints());
  pm.addPass(bufferization::createEmptyTensorEliminationPass());
  pm.addPass(createAlignedBufferize());
  cleanUp(pm);
  pm.addPass(createAlignedDeallocateBuffers());
  pm.addPass(createCanonicalizerPass());
  pm.addPass(bufferization::createBufferDeallocationSimplificationPass());
  pm.addPass(bufferization::createLowerDeallocationsPass());
  pm.addPass(createConvertBufferizationToMemRefPass()); // clones of dense buffers
  pm.addNestedPass<func::FuncOp>(createAlignedLowerCopies());
  pm.addPass(createConvertLinalgToLoopsPass());
  pm.addPass(memref::createExpandStridedMetadataPass());
  pm.addPass(createLowerAffinePass());
  cleanUp(pm);
  expandFunctions(pm);

  // Kernels are most of the code: what can be done before they are there is done before. They are written in ops that convert-to-llvm takes as they are.
  ConvertAlignedToCPUOptions cpu;
  cpu.isa = options.isa == "host" ? hostIsas().front().str() : options.isa.getValue();
  cpu.reference = options.target == "reference";
  cpu.profile = options.profile;
  pm.addPass(createConvertAlignedToCPU(cpu));
  pm.addPass(createAlignedParallelizeForall()); // after the above, which puts kernels and calls into parallel loops
  pm.addPass(createCSEPass());
  pm.addPass(createSymbolDCEPass()); // runtime functions that nobody calls
}

/// Structure to branches, everything to the LLVM dialect.
void toLLVM(OpPassManager &pm) {
  pm.addPass(createSCFToControlFlowPass());
  arith::ArithExpandOpsPassOptions expand; // bf16 is expanded here, or each rounding becomes a call of a function that libgcc may lack
  expand.includeBf16 = true;
  pm.addPass(arith::createArithExpandOpsPass(expand));
  pm.addPass(createConvertToLLVMPass());
  pm.addPass(createReconcileUnrealizedCastsPass()); // LLVM's own passes clean up
}

void attachTarget(OpPassManager &pm, StringRef chip, int64_t ptx) {
  AlignedAttachTargetOptions target;
  target.chip = chip.str();
  target.ptx = ptx;
  pm.addPass(createAlignedAttachTarget(target));
}

void toPTX(OpPassManager &pm) {
  OpPassManager &kernels = pm.nest<gpu::GPUModuleOp>();
  kernels.addPass(createSCFToControlFlowPass());
  kernels.addPass(createConvertVectorToLLVMPass()); // first: the next leaves slices
  ConvertGpuOpsToNVVMOpsOptions gpu;
  gpu.hasRedux = true;
  kernels.addPass(createConvertGpuOpsToNVVMOps(gpu));
  kernels.addPass(createConvertNVVMToLLVMPass());
  kernels.addPass(createReconcileUnrealizedCastsPass());
  pm.addPass(createAlignedCompileKernels());
}

} // namespace

void aligned::buildKernelPipeline(OpPassManager &pm, StringRef chip, int64_t ptx) {
  attachTarget(pm, chip, ptx);
  toPTX(pm);
}

/// The order: raising comes first, because it reads what front ends wrote, before anything is simplified away; only tosa is brought to linalg for it. Caches are packed while
/// attention is still declared, since then a change of type is all it takes. Fusing needs to know the storage, because a policy fits only some;
/// once it is done the graph holds no tensor that a lowering could be tempted to dequantise. Kernels come last, out of ops on buffers: until then a cache is
/// a value like any other, and upstream's analyses see to copies and ownership.
void aligned::buildPipeline(OpPassManager &pm, const PipelineOptions &options, bool isBehindStore) {
  AlignedCheckOptionsOptions given;
  given.target = options.target;
  given.chip = options.chip;
  given.ptx = options.ptx;
  given.policy = options.policy;
  given.tolerance = options.tolerance;
  given.format = options.format;
  given.denseUpTo = options.denseUpTo;
  given.hasCosts = !options.costs.empty();
  given.isa = options.isa;
  given.to = options.to;
  pm.addPass(createAlignedCheckOptions(given));
  std::optional<Phase> last = llvm::StringSwitch<std::optional<Phase>>(options.to)
                                  .Case("raise", Phase::Raise).Case("store", Phase::Store).Case("fuse", Phase::Fuse)
                                  .Case("stage", Phase::Stage).Case("lower", Phase::Lower).Case("llvm", Phase::LLVM).Default(std::nullopt);
  if (!last)
    return; // the check fails

  const bool isReference = options.target == "reference"; // which runs attention as it is declared
  if (!isBehindStore) {
    if (options.raise)
      raise(pm, {});
    else
      toLinalg(pm);
    pm.addPass(createAlignedAssignPolicies());
    if (!options.budget.empty())
      applyBudget(pm, options);
    if (options.probe)
      pm.addPass(createAlignedProbeAttention());
    if (options.certify)
      pm.addPass(createAlignedCertifyAttention());
    verify(pm, "raise");
    if (!isReference && last >= Phase::Store && options.format != "dense") {
      store(pm, options);
      verify(pm, "store", options.denseBelow);
    }
  }
  if (!isReference && last >= Phase::Fuse) {
    fuse(pm, options);
    verify(pm, "fuse");
  }
  if (last >= Phase::Stage) { // with `reference`, too: a module may come with its attention fused
    checkExtents(pm);
    AlignedStageDecodeAttentionOptions stages;
    if (options.denseUpTo == "auto")
      stages.costs.assign(options.costs.begin(), options.costs.end());
    else
      StringRef(options.denseUpTo).getAsInteger(10, stages.denseUpTo); // if it is none, the check fails
    if (isReference) // which reads caches as values
      stages = {};
    stages.splitDense = options.target != "nvptx"; // whose kernels split rows
    pm.addPass(createAlignedStageDecodeAttention(stages));
    cleanUp(pm);
    if (!isReference)
      verify(pm, "stage");
  }
  if (options.target == "nvptx") {
    if (last >= Phase::Lower) {
      pm.addPass(createConvertAlignedToNVVM()); // kernels in the place of the functions that decode
      attachTarget(pm, options.chip, options.ptx);
      verify(pm, "lower");
    }
    if (last >= Phase::LLVM)
      toPTX(pm);
    return;
  }
  if (last >= Phase::Lower) {
    lower(pm, options);
    verify(pm, "lower");
  }
  if (last >= Phase::LLVM) {
    toLLVM(pm);
    verify(pm, "llvm");
  }
}

FailureOr<func::FuncOp> aligned::findFunction(ModuleOp module, const char *name) {
  SmallVector<func::FuncOp> candidates;
  for (auto function : module.getOps<func::FuncOp>())
    if (!function.isDeclaration() && (name ? function.getSymName() == name : function.isPublic()))
      candidates.push_back(function);
  if (candidates.size() == 1)
    return candidates.front();
  if (name)
    return module.emitError("expected a function '") << name << "' with a body, found none";
  return module.emitError("expected one public function with a body, found ") << candidates.size();
}

void aligned::registerPipelines() {
  PassPipelineRegistration<PipelineOptions>("aligned-pipeline", "compile attention to read only the bits it needs",
                                            [](OpPassManager &pm, const PipelineOptions &options) { buildPipeline(pm, options); });
  // By hand, because their text is not a list of options.
  registerPassPipeline(
      "aligned-budget", "FILE: give attention the policies that a file asks for",
      [](OpPassManager &pm, StringRef file, function_ref<LogicalResult(const Twine &)>) {
        AlignedApplyBudgetOptions budget;
        budget.file = file.str();
        pm.addPass(createAlignedApplyBudget(budget));
        return success();
      },
      [](function_ref<void(const mlir::detail::PassOptions &)>) {});
  registerPassPipeline(
      "aligned-raise-report", "FILE: find attention, and write what became of each candidate to a file, in JSON",
      [](OpPassManager &pm, StringRef file, function_ref<LogicalResult(const Twine &)> refuse) {
        if (file.empty())
          return refuse("expected --aligned-raise-report=FILE, got no file");
        AlignedRaiseAttentionOptions options;
        options.report = file.str();
        raise(pm, options);
        return success();
      },
      [](function_ref<void(const mlir::detail::PassOptions &)>) {});
  registerPassPipeline(
      "aligned-report-precision", "json: say in one document which bits can't matter, in the module's place",
      [](OpPassManager &pm, StringRef format, function_ref<LogicalResult(const Twine &)> refuse) {
        if (format != "json")
          return refuse("expected --aligned-report-precision=json, got '" + format + "'");
        AlignedAnalyzePrecisionOptions options;
        options.report = "json";
        pm.addPass(createAlignedAnalyzePrecision(options));
        return success();
      },
      [](function_ref<void(const mlir::detail::PassOptions &)>) {});
}
