// See the header.
#include "Shapes.h"

#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;
using namespace aligned;

bool aligned::isAttentionFloat(Type element) { return element.isF16() || element.isBF16() || element.isF32(); }

bool aligned::isMaskElement(Type element) { return isAttentionFloat(element) || element.isInteger(1); }

Value aligned::transposed(ImplicitLocOpBuilder &b, Value tensor, ArrayRef<int64_t> permutation) {
  if (llvm::is_sorted(permutation))
    return tensor;
  SmallVector<OpFoldResult> sizes, from = tensor::getMixedSizes(b, b.getLoc(), tensor);
  for (int64_t dim : permutation)
    sizes.push_back(from[dim]);
  Value init = tensor::EmptyOp::create(b, sizes, getElementTypeOrSelf(tensor));
  return linalg::TransposeOp::create(b, tensor, init, permutation)->getResult(0);
}
