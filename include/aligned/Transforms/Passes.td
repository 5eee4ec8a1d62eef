// From declared attention over dense tensors to fused attention over packed ones.
#ifndef ALIGNED_TRANSFORMS_PASSES_TD
#define ALIGNED_TRANSFORMS_PASSES_TD

include "mlir/Pass/PassBase.td"

def AlignedProbeAttention : Pass<"aligned-probe-attention", "::mlir::ModuleOp"> {
  let summary = "return what each attention gives, for measuring";
  let description = [{
    Appends the result of every `aligned.attention` of a function, in order of appearance, to what the function returns. Two modules probed
    in the same way can be compared attention by attention. Does nothing unless all attention of the module lies in the entry block of one public function
    that nobody in the module calls.
  }];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

def AlignedCertifyAttention : Pass<"aligned-certify-attention", "::mlir::ModuleOp"> {
  let summary = "return what is known of the error of each attention";
  let description = [{
    Makes every `aligned.attention` certified (P4), and appends its bound and its estimate, in order of appearance, to what the function returns. Where
    aligned-probe-attention would do nothing this pass does nothing either, and says so in a remark.
  }];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

def AlignedApplyBudget : Pass<"aligned-apply-budget", "::mlir::ModuleOp"> {
  let summary = "give attention the policies that a file asks for";
  let description = [{
    Reads a YAML file that says how much error is acceptable, and where, and sets the `policies` of every `aligned.attention` accordingly (P7):

    ```yaml
    default: {tolerance: 2^-8, value: {max-bits: 12}}
    layers:
      1:
        newest: 64
        heads:
          0: {policy: exact}
          2: {key: {tolerance: 2^-9, ages: [1024: 12, 4096: 8]}}
    ```

    `layers` are attentions by their number in the module, `heads` their kv heads. Each entry may say `policy`, `tolerance`, `min-bits`, `max-bits`,
    `newest`, `sinks` and `ages`, for both sides of attention or apart within `key` and `value`. An inner entry is the outer one with these fields
    replaced; outermost are the options. A tolerance is the error to aim at, relative to the usual size of a row of V (P2); one within `key` or `value`
    is that side's own, and one of both sides replaces those. Fields that mean nothing, layers and heads that do not exist, and policies of two kinds in a layer are errors at
    their place in the file. `exact` goes with any other policy.

    `--aligned-budget=FILE` is short for this pass.
  }];
  let options = [
    Option<"file", "file", "std::string", "", "the budget">,
    Option<"layer", "layer", "int64_t", "-1", "the layer that all attention of this module stands for; -1: each has its own number">,
    Option<"policy", "policy", "std::string", "\"balanced\"", "what holds where the file says nothing">,
    Option<"tolerance", "tolerance", "double", "0.0", "with policy=budget">];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

def AlignedStoreKVCaches : Pass<"aligned-store-kv-caches", "::mlir::ModuleOp"> {
  let summary = "store the K and V tensors of attention in bit planes";
  let description = [{
    Gives the key and value of every `aligned.attention` a plane encoding. Where they are function arguments, the argument
    changes type, and callers follow; where they are the result of an `aligned.append`, so does the cache that it appends to, and the
    function result that returns it. A key or value that the graph computes otherwise is packed by `aligned.pack`; a use that needs
    dense values gets `aligned.unpack`. Nothing but cache tensors changes type.

    `format=auto` takes what the attention's own `policies` read, and without any `fixed<4,4,8>`, or with `prefer-float` the published format of the
    element type: `float<8,4,4>`, for bf16 `float<12,4>`. A cache can have only one format, so policies that differ in it are an error there. Attention that this format can't hold stays dense, with a remark that says why; a format given by name is
    a request, so there it is an error. Attention of more query rows per kv head than a kernel holds stays dense in any case.

    With `dense-below`, K and V that are known to take less bytes together stay dense, with a remark: reading a few of their bits does not pay for finding out which.

    A tensor that serves as key and as value has no one encoding. It stays dense and is packed where attention reads it.
  }];
  let options = [
    Option<"format", "format", "std::string", "\"auto\"", "auto, or a plane format such as fixed<4,4,8> or float<8,4,4>">,
    Option<"preferFloat", "prefer-float", "bool", "false", "with format=auto, the float format that policy alignedkv needs">,
    Option<"denseBelow", "dense-below", "uint64_t", "0", "bytes of K and V of an attention together, as dense tensors, below which they stay dense">];
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::tensor::TensorDialect"];
}

def AlignedFuseDecodeAttention : Pass<"aligned-fuse-decode-attention", "::mlir::ModuleOp"> {
  let summary = "turn declared attention into fused decode attention";
  let description = [{
    Replaces `aligned.attention` by `aligned.decode_attention` and `aligned.finish`: scores, softmax, values and
    dequantisation in one op that holds the policy: the attention's own `policies` where it has any, else the one of the options. Attention over dense tensors is
    fused too, with policy `exact`, whatever its shape. Planes of which no kernel takes the query heads, more than 32 per kv head or a number that types don't say, are unpacked for it, with
    a remark.

    Attention is numbered in order of appearance, by the attribute `attention_id`. Where the query rows of a kv head are more than a kernel holds, queries are
    taken in stretches that it does hold, all under one number.
  }];
  let options = [
    Option<"policy", "policy", "std::string", "\"balanced\"", "exact, alignedkv, tight, balanced, fast, draft, or budget with a tolerance">,
    Option<"tolerance", "tolerance", "double", "0.0", "L2 error of an output row to aim at, relative to a usual row of V, with policy=budget">];
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::scf::SCFDialect", "::mlir::tensor::TensorDialect"];
}

def AlignedStageDecodeAttention : Pass<"aligned-stage-decode-attention", "::mlir::ModuleOp"> {
  let summary = "turn decode attention over fixed planes into stages over splits of tokens";
  let description = [{
    Replaces each `aligned.decode_attention` over caches of `fixed` planes by `aligned.prepare`, `aligned.scan`, `aligned.attend` and `aligned.merge`: one `scf.forall` over
    batch entries and kv heads, and in it one over splits of 2048 tokens for the scan, and one for what is attended to. What both need of each other's splits is a reference
    and a sum of each. Stages of several splits that were there before are tiled alike. Attention over `float` planes stays as it is.

    So does attention over dense tensors, but for that of a single row, which threads of a CPU could not share otherwise: with `split-dense` an `scf.forall` makes a state of each split, and
    `aligned.merge` joins them. Where kernels split rows themselves, as on GPUs, it stays whole.

    With `dense-up-to` caches of no more than so many tokens that hold dense copies are read there: an `scf.if` asks for them (`aligned.has_dense_copy`), and the stages
    are its other branch. With `costs`, which say what steps take on a machine, the number of tokens is each attention's own: up to which dense is faster
    (aligned/Analysis/Costs.h). The largest is left as the module's attribute `aligned.dense_up_to`, for whoever makes caches.
  }];
  let options = [
    Option<"splitDense", "split-dense", "bool", "true", "split dense attention of a single row">,
    Option<"denseUpTo", "dense-up-to", "uint64_t", "0", "tokens up to which the dense copies of caches that have some are read">,
    ListOption<"costs", "costs", "double", "the numbers of aligned/Analysis/Costs.h; ahead of dense-up-to">];
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::bufferization::BufferizationDialect", "::mlir::linalg::LinalgDialect", "::mlir::scf::SCFDialect",
                           "::mlir::tensor::TensorDialect"];
}

#endif // ALIGNED_TRANSFORMS_PASSES_TD
