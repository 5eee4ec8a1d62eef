// The phases of the compiler, in order, and the one pipeline that runs them.
#ifndef ALIGNED_PIPELINES_PIPELINES_H
#define ALIGNED_PIPELINES_PIPELINES_H

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/DialectRegistry.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassOptions.h"

#include <string>

namespace aligned {

/// Where a module can stop. Each phase's contract is what `aligned-verify-phase` checks after it.
enum class Phase {
  Raise, ///< attention is `aligned.attention`, appends are `aligned.append`
  Store, ///< K and V of every attention that can be decoded are packed (unless format=dense)
  Fuse,  ///< no `aligned.attention` is left; every decode op has its policy
  Stage, ///< decode attention over fixed planes is stages over splits of tokens
  Lower, ///< no tensor is left, no `aligned` op and no packed type; buffers are freed; kernels are scf, vector, memref, arith
  LLVM,  ///< only the LLVM dialect is left
};

struct PipelineOptions : mlir::PassPipelineOptions<PipelineOptions> {
  Option<std::string> target{*this, "target", llvm::cl::desc("cpu; nvptx: kernels alone, as PTX; or reference: unfused attention in float64"), llvm::cl::init("cpu")};
  Option<std::string> chip{*this, "chip", llvm::cl::desc("with target=nvptx: architecture, such as sm_80, sm_90 or sm_100"), llvm::cl::init("sm_90")};
  Option<int64_t> ptx{*this, "ptx", llvm::cl::desc("with target=nvptx: version of PTX, such as 80; 0: the first that knows the chip"), llvm::cl::init(0)};
  Option<std::string> policy{*this, "policy", llvm::cl::desc("exact, alignedkv, tight, balanced, fast, draft, or budget with a tolerance"), llvm::cl::init("balanced")};
  Option<double> tolerance{*this, "tolerance", llvm::cl::desc("L2 error of an output row to aim at, relative to a usual row of V, with policy=budget"), llvm::cl::init(0.0)};
  Option<std::string> budget{*this, "budget", llvm::cl::desc("file that says how much error is acceptable where; over the policy"), llvm::cl::init("")};
  Option<int64_t> budgetLayer{*this, "budget-layer", llvm::cl::desc("the layer of the budget that all attention stands for; -1: each has its own number"), llvm::cl::init(-1)};
  Option<std::string> format{*this, "format", llvm::cl::desc("auto, dense, or a plane format such as fixed<4,4,8>"), llvm::cl::init("auto")};
  Option<uint64_t> denseBelow{*this, "dense-below", llvm::cl::desc("bytes of K and V of an attention below which they stay dense"), llvm::cl::init(0)};
  Option<std::string> denseUpTo{*this, "dense-up-to", llvm::cl::desc("tokens up to which the dense copies of caches that hold some are read, or auto: as costs say"), llvm::cl::init("0")};
  ListOption<double> costs{*this, "costs", llvm::cl::desc("what steps take on a machine: the numbers of aligned/Analysis/Costs.h")};
  Option<std::string> isa{*this, "isa", llvm::cl::desc("host, portable, avx2, avxvnni, avx512, dotprod or i8mm"), llvm::cl::init("host")};
  Option<bool> raise{*this, "raise", llvm::cl::desc("find attention; false compiles the graph as it stands"), llvm::cl::init(true)};
  Option<bool> probe{*this, "probe", llvm::cl::desc("return what each attention gives, behind the function's own results"), llvm::cl::init(false)};
  Option<bool> certify{*this, "certify", llvm::cl::desc("return a bound and an estimate of each attention's error, behind all other results"), llvm::cl::init(false)};
  Option<bool> profile{*this, "profile", llvm::cl::desc("let kernels tell the runtime when a part of a step is done"), llvm::cl::init(false)};
  Option<std::string> to{*this, "to", llvm::cl::desc("last phase to run: raise, store, fuse, stage, lower or llvm"), llvm::cl::init("llvm")};
};

/// Appends the phases up to `options.to`. Unknown option values add a pass that reports them. `isBehindStore`: only those behind `store`, for a module that got so far.
void buildPipeline(mlir::OpPassManager &pm, const PipelineOptions &options, bool isBehindStore = false);

/// Compiles the kernels of a module, its gpu.modules, to PTX for a chip such as sm_90. `ptx`: a version, such as 80 for 8.0; 0: the first that knows the chip.
void buildKernelPipeline(mlir::OpPassManager &pm, llvm::StringRef chip, int64_t ptx = 0);

/// The function that a module is run by: the one of this name, or the one public function, that has a body. Says what there is instead.
mlir::FailureOr<mlir::func::FuncOp> findFunction(mlir::ModuleOp module, const char *name = nullptr);

/// `aligned-pipeline{...}`, `aligned-budget=FILE` and `aligned-report-precision=json` on the command line.
void registerPipelines();
/// Tells upstream's deallocation of buffers whose the caches are that functions are given and return.
void registerOwnership(mlir::DialectRegistry &registry);
/// What upstream's passes ask of the dialect's ops and caches.
void registerInterfaces(mlir::DialectRegistry &registry);
/// Every dialect, extension and translation that a module on its way through the pipeline may need.
void registerDialects(mlir::DialectRegistry &registry);
/// All passes of the project.
void registerPasses();
/// What a program that runs pipelines by name needs: these, and upstream's passes. Passes and pipelines of a process are registered once, however often it is asked for.
void registerEverything(mlir::DialectRegistry &registry);

} // namespace aligned

#endif // ALIGNED_PIPELINES_PIPELINES_H
