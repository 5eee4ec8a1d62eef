// aligned-compile-kernels: LLVM's code generator, for all kernels at once.
#include "aligned/Conversion/AlignedToNVVM/Passes.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/IR/Threading.h"
#include "mlir/Target/LLVM/ModuleToObject.h"
#include "mlir/Target/LLVM/NVVM/Utils.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Target/TargetMachine.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDCOMPILEKERNELS
#include "aligned/Conversion/AlignedToNVVM/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

/// The optimisations that kernels gain from: those of the first standard level take three times as long, and find two instructions in a hundred more.
constexpr StringLiteral kOptimisations =
    "function(sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,loop-mssa(licm),early-cse<memssa>,loop-mssa(loop-rotate),loop-unroll<O1>)";

class Compiler : public LLVM::ModuleToObject {
public:
  Compiler(gpu::GPUModuleOp kernel, NVVM::NVVMTargetAttr target)
      : ModuleToObject(*kernel, target.getTriple(), target.getChip(), target.getFeatures(), target.getO()) {}

private:
  LogicalResult optimizeModule(llvm::Module &module, int) override {
    FailureOr<llvm::TargetMachine *> machine = getOrCreateTargetMachine();
    if (failed(machine))
      return failure();
    llvm::PassBuilder builder(*machine);
    llvm::LoopAnalysisManager loops;
    llvm::FunctionAnalysisManager functions;
    llvm::CGSCCAnalysisManager components;
    llvm::ModuleAnalysisManager modules;
    builder.registerModuleAnalyses(modules);
    builder.registerCGSCCAnalyses(components);
    builder.registerFunctionAnalyses(functions);
    builder.registerLoopAnalyses(loops);
    builder.crossRegisterProxies(loops, functions, components, modules);
    llvm::ModulePassManager passes;
    if (llvm::Error error = builder.parsePassPipeline(passes, kOptimisations))
      return getOperation().emitError("expected LLVM to know the passes, got ") << llvm::toString(std::move(error));
    // All lanes of a warp take part in a product. LLVM does not know, and would move it to where only some want the result.
    for (llvm::Function &function : module)
      if (function.getName().starts_with("llvm.nvvm.mma."))
        for (llvm::User *user : function.users())
          llvm::cast<llvm::CallBase>(user)->setConvergent();
    passes.run(module, modules);
    return success();
  }

  FailureOr<SmallVector<char, 0>> moduleToObject(llvm::Module &module) override {
    FailureOr<llvm::TargetMachine *> machine = getOrCreateTargetMachine();
    if (failed(machine))
      return failure();
    (*machine)->setOptLevel(llvm::CodeGenOptLevel::Less); // the same PTX as by more of it, sooner
    FailureOr<SmallString<0>> ptx = translateModuleToISA(module, **machine, [&] { return getOperation().emitError(); });
    if (failed(ptx))
      return failure();
    return SmallVector<char, 0>(ptx->begin(), ptx->end());
  }
};

/// PTX begins with what is said once of a file: its version, the chip and the width of addresses.
StringRef withoutHeader(StringRef ptx) {
  constexpr StringLiteral last = ".address_size 64\n";
  size_t at = ptx.find(last);
  return at == StringRef::npos ? ptx : ptx.drop_front(at + last.size());
}

struct AlignedCompileKernelsPass : aligned::impl::AlignedCompileKernelsBase<AlignedCompileKernelsPass> {
  void runOnOperation() override {
    NVVM::SerializeGPUModuleBase::init(); // LLVM's code generator for NVIDIA GPUs
    SmallVector<gpu::GPUModuleOp> kernels(getOperation().getOps<gpu::GPUModuleOp>());
    if (kernels.empty())
      return;
    NVVM::NVVMTargetAttr target;
    for (gpu::GPUModuleOp kernel : kernels) {
      ArrayAttr targets = kernel.getTargetsAttr();
      auto own = targets && targets.size() == 1 ? dyn_cast<NVVM::NVVMTargetAttr>(targets[0]) : NVVM::NVVMTargetAttr();
      if (!own || (target && own != target)) {
        InFlightDiagnostic diagnostic = kernel.emitOpError("expected one #nvvm.target, the same for all kernels, got ");
        targets ? diagnostic << targets : diagnostic << "none";
        return signalPassFailure();
      }
      target = own;
    }
    std::vector<std::optional<SmallVector<char, 0>>> compiled(kernels.size());
    parallelFor(&getContext(), 0, kernels.size(), [&](size_t i) { compiled[i] = Compiler(kernels[i], target).run(); });
    std::string ptx;
    for (const auto &part : compiled) {
      if (!part)
        return signalPassFailure();
      StringRef text(part->data(), part->size());
      ptx += ptx.empty() ? text : withoutHeader(text);
    }
    OpBuilder b(kernels.front());
    auto object = gpu::ObjectAttr::get(&getContext(), target, gpu::CompilationTarget::Assembly, b.getStringAttr(ptx), /*properties=*/{}, /*kernels=*/{});
    gpu::BinaryOp::create(b, getOperation().getLoc(), "aligned_kernels", /*offloadingHandler=*/nullptr, b.getArrayAttr(Attribute(object)));
    for (gpu::GPUModuleOp kernel : kernels)
      kernel.erase();
  }
};

} // namespace
