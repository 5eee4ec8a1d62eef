// What the pipeline needs between the phases: contracts, and the seams where upstream's passes leave something open.
#ifndef ALIGNED_PIPELINES_PASSES_TD
#define ALIGNED_PIPELINES_PASSES_TD

include "mlir/Pass/PassBase.td"

def AlignedCheckOptions : Pass<"aligned-check-options", "::mlir::ModuleOp"> {
  let summary = "report pipeline options that mean nothing";
  let description = [{
    A pipeline is built without a place to report to. So its options travel to this pass, which runs first and says what
    was expected of a value that it does not know. The module stays as it is.
  }];
  let options = [
    Option<"target", "target", "std::string", "\"cpu\"", "cpu, nvptx or reference">,
    Option<"chip", "chip", "std::string", "\"sm_90\"", "with target=nvptx">,
    Option<"ptx", "ptx", "int64_t", "0", "with target=nvptx: version of PTX, such as 80; 0: the first that knows the chip">,
    Option<"policy", "policy", "std::string", "\"balanced\"", "name of a policy">,
    Option<"tolerance", "tolerance", "double", "0.0", "with policy=budget">,
    Option<"format", "format", "std::string", "\"auto\"", "auto, dense or a plane format">,
    Option<"denseUpTo", "dense-up-to", "std::string", "\"0\"", "auto or a number of tokens">,
    Option<"hasCosts", "has-costs", "bool", "false", "whether there are costs for auto">,
    Option<"isa", "isa", "std::string", "\"host\"", "host, portable, avx2, avxvnni or avx512">,
    Option<"to", "to", "std::string", "\"llvm\"", "name of a phase">];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

def AlignedVerifyPhase : Pass<"aligned-verify-phase", "::mlir::ModuleOp"> {
  let summary = "check what holds after a phase";
  let description = [{
    Each phase of the pipeline may rely on what the phase before it left, and on nothing else:

    | after | holds |
    |---|---|
    | raise | every op is registered and of a dialect that the phases to come can lower |
    | store | key and value of every `aligned.attention` are packed where storage and a kernel can hold them, and do not take less than `dense-below` bytes; skipped with format=dense |
    | fuse | there is no `aligned.attention` |
    | stage | there is no `aligned.decode_attention` over fixed planes |
    | lower | there is no `aligned` op, no packed type and no tensor |
    | llvm | every op is of the dialect `llvm` |

    The first op that breaks the contract is reported, each kind once.
  }];
  let options = [
    Option<"phase", "phase", "std::string", "", "raise, store, fuse, stage, lower or llvm">,
    Option<"denseBelow", "dense-below", "uint64_t", "0", "what the storage was packed with">];
}

def AlignedLowerTosa : Pass<"aligned-lower-tosa", "::mlir::ModuleOp"> {
  let summary = "turn tosa into linalg";
  let description = [{
    Runs upstream's conversions of tosa, in a module that has any: others reach the raising as their front end wrote them. Profiles and levels
    of the TOSA specification are not enforced, since front ends write f64 constants.
  }];
  let dependentDialects = [
    "::mlir::arith::ArithDialect", "::mlir::index::IndexDialect", "::mlir::linalg::LinalgDialect", "::mlir::math::MathDialect",
    "::mlir::scf::SCFDialect", "::mlir::tensor::TensorDialect", "::mlir::tosa::TosaDialect"];
}

def AlignedDecomposeAggregates : Pass<"aligned-decompose-aggregates", "::mlir::func::FuncOp"> {
  let summary = "turn ops that stand for several into those";
  let description = [{
    `tensor.concat` does not bufferize: its parts become `tensor.insert_slice` into one new tensor. `linalg.softmax` that is no part of attention has no loops: it becomes
    a maximum, exponentials, their sum and a division, as upstream decomposes it.
  }];
  let dependentDialects = ["::mlir::arith::ArithDialect", "::mlir::linalg::LinalgDialect", "::mlir::math::MathDialect", "::mlir::tensor::TensorDialect"];
}

def AlignedLowerCopies : Pass<"aligned-lower-copies", "::mlir::func::FuncOp"> {
  let summary = "turn copies of strided buffers into loops";
  let description = [{
    Upstream lowers `memref.copy` to memcpy where both sides are contiguous, and else to a call of `memrefCopy`, a function of MLIR's own
    runtime library. The latter become `linalg.copy` here, so that compiled code needs no library but AlignedKV's.
  }];
  let dependentDialects = ["::mlir::linalg::LinalgDialect"];
}

def AlignedPrepareEntryPoints : Pass<"aligned-prepare-entry-points", "::mlir::ModuleOp"> {
  let summary = "make public functions callable from C";
  let description = [{
    Public functions with a body get `llvm.emit_c_interface`: a wrapper `_mlir_ciface_<name>` that takes pointers to memref descriptors.
    Their dense tensor arguments are marked as not writable, so that callers never see one change. What functions say of arguments and results, for the
    analysis of precision and for makers of caches, goes.
  }];
}

def AlignedBufferize : Pass<"aligned-bufferize", "::mlir::ModuleOp"> {
  let summary = "turn tensors into buffers";
  let description = [{
    Upstream's one-shot bufferization with function boundaries. A cache becomes a memref whose memory space is its plane encoding, appended to in place. Where
    somebody still reads the old one, the analysis has it copied first, by `aligned.fork`.

    Extents of caches are asked for where the cache is made. Later the cache may have been appended to, and to that analysis `tensor.dim` reads nothing.

    ```mlir
    %1 = aligned.append %tokens to %cache : tensor<1x2x1x64xf16> to tensor<1x2x?x64xf16, #aligned.planes<..>> -> tensor<1x2x?x64xf16, #aligned.planes<..>>
    return %cache, %1
    ```
    becomes
    ```mlir
    %0 = aligned.fork %cache : memref<1x2x?x64xf16, #aligned.planes<..>>
    %1 = aligned.append %tokens to %0 : memref<1x2x1x64xf16> to memref<1x2x?x64xf16, #aligned.planes<..>> -> memref<1x2x?x64xf16, #aligned.planes<..>>
    return %cache, %1
    ```
  }];
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::bufferization::BufferizationDialect", "::mlir::memref::MemRefDialect",
                           "::mlir::scf::SCFDialect", "::mlir::tensor::TensorDialect"];
}

def AlignedDeallocateBuffers : Pass<"aligned-deallocate-buffers", "::mlir::ModuleOp"> {
  let summary = "free the buffers that functions own";
  let description = [{
    Upstream's ownership-based deallocation. After it arguments stay the caller's, and a buffer that a function returns is the caller's too, who frees it. So a
    result that is, or may be, an argument, a constant or another result is cloned before it is returned.

    A cache is an object that its user goes on using, so for caches the rule is another: one that came as an argument, appended to or not, is returned as itself
    and stays whose it was; any other that is returned belongs to the caller. Of one cache that is returned twice the second is a copy. Callers see by its address
    which of both a result is.
  }];
  let dependentDialects = ["::mlir::arith::ArithDialect", "::mlir::bufferization::BufferizationDialect",
                           "::mlir::memref::MemRefDialect", "::mlir::scf::SCFDialect"];
}

#endif // ALIGNED_PIPELINES_PASSES_TD
