// The two loops over tokens or channels that attention is made of: sums of products, and reductions of one formula.
#ifndef ALIGNED_LIB_RAISE_REDUCTIONS_H
#define ALIGNED_LIB_RAISE_REDUCTIONS_H

#include "ScalarView.h"

namespace aligned {

/// sum over one loop of lhs * rhs: matmuls by name, and generics whose body computes the factors, be it by casts, divisions or more.
struct Contraction {
  mlir::linalg::LinalgOp op;
  mlir::Value factors[2]; ///< scalars of the body
  int64_t extent;         ///< of the loop that is summed over

  static std::optional<Contraction> of(mlir::Operation *op);
  /// What was expected of a sum of narrow numbers; nothing where it is as it should be.
  std::optional<std::string> refuse(llvm::StringRef name) const;
  /// The tensor that the sums are added to.
  mlir::Value start() const;
  bool startsFromZero(ScalarTracer &tracer) const;
  /// Loop indices at which element `index` of the result is computed; `summed` gets the loop that is summed over.
  std::optional<Index> loopsAt(ScalarTracer &tracer, llvm::ArrayRef<mlir::AffineExpr> index, mlir::AffineExpr &summed) const;
  ScalarView factor(unsigned number, const Index &loops) const { return {factors[number], loops, op}; }
};

enum class Combine { Add, Max, And, Or };

/// An operation that reduces over one loop, starting from the identity, and the element it reduces.
struct Reduction {
  ScalarView input;
  mlir::AffineExpr dim; ///< of the reduction loop
  int64_t extent;       ///< its iterations
  bool startsFinite;    ///< a maximum that starts from a number, such as the lowest float
};

std::optional<Reduction> reductionOf(ScalarTracer &tracer, const ScalarView &view, Combine combine);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_REDUCTIONS_H
