// `aligned` ops to scf, vector, memref and llvm for the CPU.
#ifndef ALIGNED_CONVERSION_ALIGNEDTOCPU_PASSES_TD
#define ALIGNED_CONVERSION_ALIGNEDTOCPU_PASSES_TD

include "mlir/Pass/PassBase.td"

def ConvertAlignedToLinalg : Pass<"convert-aligned-to-linalg", "::mlir::ModuleOp"> {
  let summary = "lower what is elementwise work on tensors";
  let description = [{
    `aligned.merge` and `aligned.finish` become `linalg.generic`, and `aligned.append` of dense tensors `tensor.concat`. What kernels and the runtime perform
    stays: decode attention, and all that makes, reads or writes a cache.

    Decode attention over dense tensors of a shape that no kernel takes does not stay as it is. A head_dim that is no multiple of 16 is padded with zeros; one above 256, more than 32 query
    rows per kv head and extents of heads, queries or head_dim that types don't say are written out in `linalg.generic`: scores, masks, softmax, values.

    With `reference`, `aligned.attention` may remain unfused and runs in float64, as an oracle; so does `aligned.decode_attention` under policy `exact`, unless it is certified. Caches
    are read with every bit that is stored.
  }];
  let options = [Option<"reference", "reference", "bool", "false", "run unfused and exact attention in float64">];
  let dependentDialects = [
    "::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::bufferization::BufferizationDialect", "::mlir::func::FuncDialect",
    "::mlir::linalg::LinalgDialect", "::mlir::LLVM::LLVMDialect", "::mlir::math::MathDialect", "::mlir::memref::MemRefDialect", "::mlir::scf::SCFDialect",
    "::mlir::tensor::TensorDialect", "::mlir::vector::VectorDialect"];
}

def ConvertAlignedToCPU : Pass<"convert-aligned-to-cpu", "::mlir::ModuleOp"> {
  let summary = "lower aligned ops on buffers to vector code and runtime calls";
  let description = [{
    Every `aligned.decode_attention` becomes a kernel, a function over a range of kv heads in scf, vector, memref and arith, and
    a call that runs it on the runtime's threads. A buffer in plane storage becomes a pointer to the runtime's cache; `pack`, `append`, `unpack`
    and `fork`, and `memref.alloc` and `memref.dealloc` of such buffers become calls to it. No `aligned` op is left. Ops of one shape and policy share a kernel, which is told their
    `attention_id`.

    With `reference`, the stages of a decode step run in float64, as they are defined, instead of in kernels. Decode attention that is not in stages has
    no such form by now: `convert-aligned-to-linalg` takes what it can.

    `isa` picks the 4-way integer dot product and the vector width: `portable` (any machine), `avx2`, `avxvnni` (256 bits), `avx512` (with VNNI); on AArch64
    `dotprod` and `i8mm`.
  }];
  let options = [
    Option<"isa", "isa", "std::string", "\"portable\"", "portable, avx2, avxvnni, avx512, dotprod or i8mm">,
    Option<"reference", "reference", "bool", "false", "run stages in float64">,
    Option<"profile", "profile", "bool", "false", "let kernels of stages tell when a part of a step is done (aligned_rt_lap)">];
  let dependentDialects = [
    "::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::bufferization::BufferizationDialect",
    "::mlir::func::FuncDialect", "::mlir::LLVM::LLVMDialect", "::mlir::math::MathDialect",
    "::mlir::memref::MemRefDialect", "::mlir::scf::SCFDialect", "::mlir::vector::VectorDialect"];
}

def AlignedParallelizeForall : Pass<"aligned-parallelize-forall", "::mlir::ModuleOp"> {
  let summary = "run scf.forall on the runtime's threads";
  let description = [{
    Each `scf.forall` on buffers, which has no shared outputs, becomes a call of `aligned_rt_parallel`. Its body becomes a private function over a range of iterations,
    numbered through all dimensions, the last one fastest. Loops in loops become calls in functions; the runtime decides which of them uses more than one thread. Bodies that differ in
    nothing but i32 numbers that they hand on, such as an `attention_id`, share one function.

    ```mlir
    scf.forall (%i, %j) in (%n, 4) {
      memref.store %x, %buffer[%i, %j] : memref<?x4xf32>
    }
    ```
    becomes
    ```mlir
    call @aligned_rt_parallel(%count, %function, %arguments) : (i64, (!llvm.ptr, i64, i64) -> (), !llvm.ptr) -> ()
    ```
  }];
  let dependentDialects = ["::mlir::arith::ArithDialect", "::mlir::func::FuncDialect", "::mlir::LLVM::LLVMDialect", "::mlir::scf::SCFDialect"];
}

#endif // ALIGNED_CONVERSION_ALIGNEDTOCPU_PASSES_TD
