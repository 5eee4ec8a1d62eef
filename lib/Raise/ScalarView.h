// Tensors seen as scalar functions of their index.
//
// Front ends cut one formula into tensor ops in their own ways: reshapes, transposes, copies that broadcast, elementwise generics with one or
// five scalars inside. None of that matters to what an element *is*. A `ScalarView` is one element, a value with an index whose entries are
// affine expressions over loop dimensions, and `resolve` follows it through everything that merely moves elements, down to
// the scalar op that computes it:
//
//   %c = tensor.collapse_shape %g [[0, 1], [2]]              %c[d0, d1]
//   %g = linalg.generic (exp) ins(%x)                        = math.exp(%x[d0 floordiv 8, d0 mod 8, d1])
//
#ifndef ALIGNED_LIB_RAISE_SCALARVIEW_H
#define ALIGNED_LIB_RAISE_SCALARVIEW_H

#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/IR/AffineExpr.h"

namespace aligned {

using Index = llvm::SmallVector<mlir::AffineExpr>;

/// An element of a tensor (`index` has its rank), or a scalar: inside the body of `body` where that is set, at loop indices `index`.
struct ScalarView {
  mlir::Value value;
  Index index;
  mlir::Operation *body = nullptr;

  bool isElement() const { return mlir::isa<mlir::RankedTensorType>(value.getType()); }
  /// The op that computes the value, if it is of this kind.
  template <typename Op>
  Op as() const { return value ? value.getDefiningOp<Op>() : Op(); }
};

/// The loop dimensions that indices are written in, and the walk.
class ScalarTracer {
public:
  explicit ScalarTracer(mlir::MLIRContext *context) : context(context) {}

  /// A new loop dimension; the constant 0 where it has one iteration.
  mlir::AffineExpr addDim(int64_t extent);
  int64_t extentOf(unsigned dim) const { return extents[dim]; }

  /// One step back, or nothing where the value is computed here (a scalar op, a reduction, an argument).
  std::optional<ScalarView> step(const ScalarView &view);
  /// All steps back. Exact widening casts are passed through.
  ScalarView resolve(ScalarView view);
  /// An operand of the scalar op that computes `view`.
  ScalarView operand(const ScalarView &view, unsigned number) const;

  /// Loop indices at which `op` computes result element `index` of an init with this map; a reduction loop gets a new dimension, which
  /// is appended to `reduced`. Nothing where the map is no permutation of loops.
  std::optional<Index> loopsOf(mlir::linalg::LinalgOp op, mlir::AffineMap map, llvm::ArrayRef<mlir::AffineExpr> index, Index &reduced);
  /// Operand `operand` of `op` at these loop indices.
  ScalarView input(mlir::linalg::LinalgOp op, unsigned operand, llvm::ArrayRef<mlir::AffineExpr> loops);

  /// Whether both are the same element, with `from` in the second read as `to`.
  bool same(const ScalarView &a, const ScalarView &b, mlir::AffineExpr from = {}, mlir::AffineExpr to = {});

  mlir::AffineExpr simplify(mlir::AffineExpr expr);
  mlir::MLIRContext *context;

private:
  llvm::SmallVector<int64_t> extents;
};

/// The constant that a scalar view stands for, through casts and splats.
std::optional<double> constantOf(ScalarTracer &tracer, ScalarView view);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_SCALARVIEW_H
