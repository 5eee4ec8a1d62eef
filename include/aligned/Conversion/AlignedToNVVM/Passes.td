// `aligned` ops to gpu, nvvm and llvm for NVIDIA GPUs.
#ifndef ALIGNED_CONVERSION_ALIGNEDTONVVM_PASSES_TD
#define ALIGNED_CONVERSION_ALIGNEDTONVVM_PASSES_TD

include "mlir/Pass/PassBase.td"

def ConvertAlignedToNVVM : Pass<"convert-aligned-to-nvvm", "::mlir::ModuleOp"> {
  let summary = "write the kernels of decode attention for NVIDIA GPUs";
  let description = [{
    Puts kernels in the place of the module's functions, each in a `gpu.module` of its own, in gpu, nvvm, scf, arith, vector and llvm: those of every decode attention, named after its
    `attention_id`, and those that append to the kinds of caches that they read. The module's attribute `aligned.program` says how they are launched (docs/GPU.md).

    | attention | storage | kernels |
    |---|---|---|
    | in stages (`aligned.prepare` and `scan`; `aligned.attend` and `merge`) | `fixed<4, 4, 8>` | scan, attend, certify (where a certificate is asked for) |
    | `aligned.decode_attention` | dense, f16 or bf16 | scan, merge |
    | `aligned.decode_attention` | `float`, under `alignedkv` or `exact` | scores, probe (not under `exact`), values, merge |

    What kernels can't do is an error at the op: certificates outside stages, and `later` tokens, among it.
  }];
  let dependentDialects = ["::mlir::gpu::GPUDialect", "::mlir::NVVM::NVVMDialect", "::mlir::LLVM::LLVMDialect", "::mlir::scf::SCFDialect",
                           "::mlir::arith::ArithDialect", "::mlir::vector::VectorDialect"];
}

def AlignedAttachTarget : Pass<"aligned-attach-target", "::mlir::ModuleOp"> {
  let summary = "choose the chip that kernels are compiled for";
  let description = [{
    Attaches an `#nvvm.target` to every `gpu.module`. Chips that the kernels can't run on, and PTX versions that a chip or this compiler does not know, are
    reported here: the code generator behind would end the process over them.

    `aligned.program` gets the row of `Tuning.h` that the chip's family has. On sm_90 and later, kernels begin with `nvvm.griddepcontrol`, so that their launches can be chained.
  }];
  let options = [
    Option<"chip", "chip", "std::string", "\"sm_90\"", "architecture, such as sm_80, sm_90 or sm_100">,
    Option<"ptx", "ptx", "int64_t", "0", "version of PTX, such as 80 for 8.0; 0: the first that knows the chip, which most drivers load">];
  let dependentDialects = ["::mlir::gpu::GPUDialect", "::mlir::NVVM::NVVMDialect"];
}

def AlignedCompileKernels : Pass<"aligned-compile-kernels", "::mlir::ModuleOp"> {
  let summary = "compile kernels to PTX";
  let description = [{
    Puts one `gpu.binary` with the PTX of all kernels in the place of the `gpu.module`s of the llvm dialect, which `aligned-attach-target` has given one target each. Kernels are compiled at the same
    time, by as many threads as the context has.

    Unlike `gpu-module-to-binary`, which runs a standard pipeline over all of them one after another, this one optimises no more than such kernels gain from, which have no calls
    and no stack.
  }];
  let dependentDialects = ["::mlir::gpu::GPUDialect"];
}

#endif // ALIGNED_CONVERSION_ALIGNEDTONVVM_PASSES_TD
