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
  let dependentDialects = ["::aligned::AlignedDialect", "::mlir::arith::ArithDialect"];
}

#endif // ALIGNED_RAISE_PASSES_TD
