// `aligned` ops to scf, vector, memref and llvm for the CPU.
#ifndef ALIGNED_CONVERSION_ALIGNEDTOCPU_PASSES_TD
#define ALIGNED_CONVERSION_ALIGNEDTOCPU_PASSES_TD

include "mlir/Pass/PassBase.td"

def ConvertAlignedToCPU : Pass<"convert-aligned-to-cpu", "::mlir::ModuleOp"> {
  let summary = "lower aligned ops to vector code and runtime calls";
  let description = [{
    Every `aligned.decode_attention` becomes a kernel, a function over a range of kv heads in scf, vector, memref and arith, and
    a call that runs it on the runtime's threads. A split tensor becomes a pointer to the runtime's cache; `split`, `append` and `join` become
    calls to it. `merge` and `finish` become elementwise linalg. No `aligned` op is left.

    `isa` picks the 4-way integer dot product and the vector width: `portable` (any machine), `avx2`, `avx512` (with VNNI).
    With `launch`, kernels are somebody else's: the op becomes a call of `aligned_rt_launch`, and caches are made by `aligned_rt_create_cache`, where those kernels find
    them. That is the host's side of a model whose attention runs on a GPU.

    With `reference`, `aligned.attention` over dense tensors is allowed to remain unfused and runs in float64, as an oracle.
  }];
  let options = [
    Option<"isa", "isa", "std::string", "\"portable\"", "portable, avx2 or avx512">,
    Option<"launch", "launch", "bool", "false", "call a launcher instead of kernels of this machine">,
    Option<"reference", "reference", "bool", "false", "run unfused attention exactly in float64">];
  let dependentDialects = [
    "::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::bufferization::BufferizationDialect",
    "::mlir::func::FuncDialect", "::mlir::linalg::LinalgDialect", "::mlir::LLVM::LLVMDialect", "::mlir::math::MathDialect",
    "::mlir::memref::MemRefDialect", "::mlir::scf::SCFDialect", "::mlir::tensor::TensorDialect", "::mlir::vector::VectorDialect"];
}

#endif // ALIGNED_CONVERSION_ALIGNEDTOCPU_PASSES_TD
