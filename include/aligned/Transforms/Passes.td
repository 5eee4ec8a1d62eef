// From declared attention over dense tensors to fused attention over split ones.
#ifndef ALIGNED_TRANSFORMS_PASSES_TD
#define ALIGNED_TRANSFORMS_PASSES_TD

include "mlir/Pass/PassBase.td"

def AlignedSplitKVStorage : Pass<"aligned-split-kv-storage", "::mlir::ModuleOp"> {
  let summary = "store the K and V tensors of attention in bit planes";
  let description = [{
    Gives the key and value of every `aligned.attention` a split encoding. Where they are function arguments, the argument
    changes type, and callers follow; where they are the result of an `aligned.append`, so does the cache that it appends to, and the
    function result that returns it. A key or value that the graph computes otherwise is packed by `aligned.split`; a use that needs
    dense values gets `aligned.join`. Nothing but cache tensors changes type.
  }];
  let options = [
    Option<"format", "format", "std::string", "\"fixed<4,4,4,4>\"", "split format, such as fixed<4,4,4,4> or float<8,4,4>">];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

def AlignedFuseDecodeAttention : Pass<"aligned-fuse-decode-attention", "::mlir::ModuleOp"> {
  let summary = "turn declared attention into fused decode attention";
  let description = [{
    Replaces `aligned.attention` by `aligned.decode_attention` and `aligned.finish`: scores, softmax, values and
    dequantisation in one op that holds the policy. Attention over dense tensors is fused too, with policy `exact`.
  }];
  let options = [
    Option<"policy", "policy", "std::string", "\"balanced\"", "exact, alignedkv, tight, balanced, fast, or budget with a tolerance">,
    Option<"tolerance", "tolerance", "double", "0.0", "aimed relative L2 error of a head's output, with policy=budget">];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

#endif // ALIGNED_TRANSFORMS_PASSES_TD
