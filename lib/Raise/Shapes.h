// What all of raising asks of shapes and element types.
#ifndef ALIGNED_LIB_RAISE_SHAPES_H
#define ALIGNED_LIB_RAISE_SHAPES_H

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

namespace aligned {

/// The floats that Q, K, V and results of attention are made of.
bool isAttentionFloat(mlir::Type element);
/// Those, and booleans.
bool isMaskElement(mlir::Type element);

/// A tensor with its dimensions in another order; itself where that is none.
mlir::Value transposed(mlir::ImplicitLocOpBuilder &b, mlir::Value tensor, llvm::ArrayRef<int64_t> permutation);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_SHAPES_H
