// Foreign graphs in, `aligned` ops out.
#ifndef ALIGNED_RAISE_PASSES_TD
#define ALIGNED_RAISE_PASSES_TD

include "mlir/Pass/PassBase.td"

def AlignedRaiseAttention : Pass<"aligned-raise-attention", "::mlir::ModuleOp"> {
  let summary = "find attention in linalg and say so";
  let description = [{
    Finds scaled dot-product attention over tensors and replaces it by `aligned.attention`; tokens that are appended to the tensors that it reads, or put into the
    place of others, become `aligned.append`. Meaning is unchanged, but for roundings on the way that are skipped (docs/Raising.md).

    The anchor is the product with V. From there the pass walks back, composing how dimensions map through reshapes,
    transposes, broadcasts, slices and casts, to the softmax, its scores with their masks, and the product with K. A product that looks like attention but
    was not recognised gets a remark that says why. `--aligned-raise-report=FILE` is short for named ops, tosa and this pass with a report.

    ```mlir
    %s = linalg.batch_matmul ins(%q, %kt : tensor<2x3x16xf32>, tensor<2x16x5xf32>) outs(%zs : tensor<2x3x5xf32>) -> tensor<2x3x5xf32>
    %x = linalg.add ins(%s, %mask : tensor<2x3x5xf32>, tensor<2x3x5xf32>) outs(%e : tensor<2x3x5xf32>) -> tensor<2x3x5xf32>
    %p = linalg.softmax dimension(2) ins(%x : tensor<2x3x5xf32>) outs(%e : tensor<2x3x5xf32>) -> tensor<2x3x5xf32>
    %o = linalg.batch_matmul ins(%p, %v : tensor<2x3x5xf32>, tensor<2x5x16xf32>) outs(%zo : tensor<2x3x16xf32>) -> tensor<2x3x16xf32>
    ```
    becomes, between reshapes to [batch, heads, tokens or queries, channels],
    ```mlir
    %o = aligned.attention %q, %k, %v scale %one attn_mask %mask : tensor<1x2x3x5xf32>
        : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
    ```
  }];
  let options = [Option<"report", "report", "std::string", "", "a file to write what became of each candidate to, in JSON">];
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::affine::AffineDialect", "::mlir::arith::ArithDialect", "::mlir::linalg::LinalgDialect",
                           "::mlir::tensor::TensorDialect"];
}

def AlignedRaiseNamedOps : Pass<"aligned-raise-named-ops", "::mlir::ModuleOp"> {
  let summary = "bring attention that other projects' ops say by name to `aligned.attention`";
  let description = [{
    Ops of dialects that are not linked, in generic form, as `--allow-unregistered-dialect` lets them be parsed:
    `tm_tensor.attention`, `onnx.Attention`, `iree_linalg_ext.attention`, the `stablehlo.composite` "odml.scaled_dot_product_attention" and
    `torch.aten.scaled_dot_product_attention`; a function over `!torch.vtensor` becomes one over tensors, if all of it can.
    `tm_tensor.scatter` that overwrites becomes slices that are inserted. Meaning is unchanged.

    An op that says more than `aligned.attention` can, or whose operands or attributes are not known, stays as it is, with a remark that says why.
  }];
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::arith::ArithDialect", "::mlir::func::FuncDialect", "::mlir::linalg::LinalgDialect", "::mlir::math::MathDialect",
                           "::mlir::scf::SCFDialect", "::mlir::tensor::TensorDialect"];
}

#endif // ALIGNED_RAISE_PASSES_TD
