// Foreign graphs in, `aligned` ops out.
#ifndef ALIGNED_RAISE_PASSES_TD
#define ALIGNED_RAISE_PASSES_TD

include "mlir/Pass/PassBase.td"

def AlignedRaiseAttention : Pass<"aligned-raise-attention", "::mlir::ModuleOp"> {
  let summary = "find attention in linalg and say so";
  let description = [{
    Finds scaled dot-product attention over tensors and replaces it by `aligned.attention`; appends of new tokens to the
    tensors that it reads become `aligned.append`. Meaning is unchanged.

    The anchor is the product with V. From there the pass walks back, composing how dimensions map through reshapes,
    transposes, broadcasts and casts, to the softmax, its scores and the product with K. A product that looks like attention but
    was not recognised gets a remark that says why.
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
