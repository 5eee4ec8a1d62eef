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
#include "mlir/Dialect/Tensor/IR/Tensor.h"
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
///
/// Where casts say of a tensor more than its type does (tensor<2x?xf32> that becomes tensor<2x9xf32>), the walk remembers it.
class ScalarTracer {
public:
  explicit ScalarTracer(mlir::MLIRContext *context) : context(context) {}

  /// A new loop dimension; the constant 0 where it has one iteration.
  mlir::AffineExpr addDim(int64_t extent);
  int64_t extentOf(unsigned dim) const { return extents[dim]; }
  unsigned numDims() const { return extents.size(); }

  /// One step back, or nothing where the value is computed here (a scalar op, a reduction, an argument).
  std::optional<ScalarView> step(const ScalarView &view);
  /// All steps back. Exact widening casts are passed through.
  ScalarView resolve(ScalarView view);
  /// Also through casts that round a float. A formula without them is nearer to the exact result than the graph is.
  ScalarView resolveRounded(ScalarView view);
  /// An operand of the scalar op that computes `view`.
  ScalarView operand(const ScalarView &view, unsigned number) const;

  /// Loop indices at which `op` computes result element `index` of an init with this map; a reduction loop gets a new dimension, which
  /// is appended to `reduced`. Nothing where the map is no permutation of loops.
  std::optional<Index> loopsOf(mlir::linalg::LinalgOp op, mlir::AffineMap map, llvm::ArrayRef<mlir::AffineExpr> index, Index &reduced);
  /// Operand `operand` of `op` at these loop indices.
  ScalarView input(mlir::linalg::LinalgOp op, unsigned operand, llvm::ArrayRef<mlir::AffineExpr> loops);

  /// Whether something holds of all operands of the scalar op that computes a view. False where none does, or where the formula is too large to be walked.
  bool allOperands(const ScalarView &view, llvm::function_ref<bool(const ScalarView &)> holds);
  /// The constant that a view stands for where dimensions have these values; null where it is none, or depends on others.
  mlir::TypedAttr evaluate(ScalarView view, llvm::ArrayRef<int64_t> dims = {});
  /// Whether something holds of every index that a formula reads elements, or counts loops, at. False where the formula holds what isn't understood.
  bool allIndices(ScalarView view, llvm::function_ref<bool(mlir::AffineExpr)> holds);
  /// Whether a formula reads an element that the dimension chooses.
  bool dependsOn(ScalarView view, mlir::AffineExpr dim);

  /// Whether both are the same element, or the same formula of such, with `from` in the second read as `to`.
  bool same(const ScalarView &a, const ScalarView &b, mlir::AffineExpr from = {}, mlir::AffineExpr to = {});

  /// In the light of the dimensions' extents: (d0 * 32 + d1) floordiv 32 is d0 where d1 has 32 values.
  mlir::AffineExpr simplify(mlir::AffineExpr expr);
  mlir::AffineExpr constant(int64_t value) { return mlir::getAffineConstantExpr(value, context); }
  mlir::MLIRContext *context;

private:
  struct Visit;

  /// The least and the largest value, as far as extents tell.
  std::optional<std::pair<int64_t, int64_t>> boundsOf(mlir::AffineExpr expr);
  std::optional<ScalarView> stepOutOfBody(const ScalarView &view);
  std::optional<ScalarView> stepIntoBody(mlir::linalg::LinalgOp op, const ScalarView &view);
  /// From element `result` of what the op gives to one of an operand.
  std::optional<ScalarView> stepInto(mlir::tensor::CollapseShapeOp op, const Index &result);
  std::optional<ScalarView> stepInto(mlir::tensor::ExpandShapeOp op, const Index &result);
  std::optional<ScalarView> stepInto(mlir::tensor::CastOp op, const Index &result);
  std::optional<ScalarView> stepInto(mlir::tensor::ExtractSliceOp op, const Index &result);
  std::optional<ScalarView> stepInto(mlir::tensor::ConcatOp op, const Index &result);
  std::optional<ScalarView> stepInto(mlir::tensor::InsertSliceOp op, const Index &result);
  /// Extents of a tensor, with what casts add to its type.
  llvm::SmallVector<int64_t> shapeOf(mlir::Value tensor);

  llvm::SmallVector<int64_t> extents;
  int depth = 0, stepsLeft = 0; ///< of the walk that goes on
  llvm::DenseMap<mlir::Value, llvm::SmallVector<int64_t>> castShapes;
};

/// Whether a scalar is computed outside of any loop.
bool isOutside(const ScalarView &view);

/// The op that computes a scalar from other scalars, and nothing else; null where it is another, or none.
mlir::Operation *scalarOp(const ScalarView &view);

/// An element of a tensor of the graph at indices that the body computes; of no op where a view is none.
struct ExtractedElement {
  mlir::tensor::ExtractOp op;
  llvm::SmallVector<mlir::Value> indices;
};
ExtractedElement extractedElement(const ScalarView &view);

/// A cast to a float of 16 bits or more, whose loss is that of a cache or a query. Narrower floats are quantised on purpose.
bool isRounding(mlir::Operation *op);

/// The number that a formula of constants alone gives.
std::optional<double> constantOf(ScalarTracer &tracer, const ScalarView &view);

/// An index expression where dimensions have these values; all that it reads are given.
int64_t valueAt(mlir::AffineExpr expr, llvm::ArrayRef<int64_t> dims);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_SCALARVIEW_H
