// The dialect `aligned`: attention that reads only the bits it needs.
#ifndef ALIGNED_DIALECT_TD
#define ALIGNED_DIALECT_TD

include "mlir/IR/OpBase.td"

def Aligned_Dialect : Dialect {
  let name = "aligned";
  let cppNamespace = "::aligned";
  let summary = "attention over KV caches stored in bit planes";
  let description = [{
    In a sum, the bits of one addend below the precision of the least precise addend are wasted. This dialect makes that
    usable: a KV cache tensor carries a *plane encoding* that says in which bit planes its values lie, and attention over such
    a cache carries a *policy* that says how many of them each addend deserves. Neither changes what a graph means, only how
    precisely it is computed, so that graphs stay ordinary tensor programs until the storage is made explicit.

    Attention is two ops. `aligned.attention` declares it: which tensors, which scale. `aligned.decode_attention` is how it is
    computed: scores, softmax, values and dequantisation in one, over one stretch of tokens, giving a state that merges.

    On functions, `aligned.range` of an argument and `aligned.tolerance` of a result, an f64 above 0, tell the analysis of precision (P6) what
    comes in, and how far what goes out may be off, absolutely. `aligned.key_offset` of an argument [batch, kv_heads, tokens, head_dim] is a constant of the
    model, finite f32 [kv_heads, head_dim]: what is taken off K where the argument becomes a cache of keys (S2). Whoever makes the cache applies it.

    ```mlir
    func.func @step(%keys: tensor<1x1x?x16xf16> {aligned.key_offset = dense<0.5> : tensor<1x16xf32>})
    ```
  }];
  let useDefaultAttributePrinterParser = 1;
  let hasRegionArgAttrVerify = 1;
  let hasRegionResultAttrVerify = 1;
  let extraClassDeclaration = [{ void registerAttributes(); }];
  let dependentDialects = ["::mlir::arith::ArithDialect", "::mlir::tensor::TensorDialect"];
}

#endif // ALIGNED_DIALECT_TD
