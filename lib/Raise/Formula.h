// Scalar formulas of a graph, written anew.
//
// What a graph adds to scores is a formula of (batch, head, query, token), whatever ops and layouts it is spread over. Written again, as one
// elementwise op, it is the operand that `aligned.attention` takes.
#ifndef ALIGNED_LIB_RAISE_FORMULA_H
#define ALIGNED_LIB_RAISE_FORMULA_H

#include "Grid.h"

namespace aligned {

/// A scalar of the graph that something is multiplied by, or divided.
struct Factor {
  ScalarView scalar;
  bool isDivisor;
};

/// What scores are multiplied by: a number, and scalars that the graph computes.
struct Multiplier {
  double number = 1;
  llvm::SmallVector<Factor> scalars;
};

class FormulaWriter {
public:
  FormulaWriter(ScalarTracer &tracer, const Grid &grid, mlir::AffineExpr token) : tracer(tracer), grid(grid), token(token) {}

  /// Whether a formula can be written: pure scalar ops over elements whose indices fit the grid. `used` gets the dimensions (0 to 3) that it depends on.
  bool canWrite(const ScalarView &view, llvm::SmallBitVector &used);
  /// The formula at (batch, head, query, token).
  mlir::Value write(mlir::ImplicitLocOpBuilder &b, ScalarView view, mlir::ValueRange place);
  /// As f32.
  mlir::Value writeFloat(mlir::ImplicitLocOpBuilder &b, ScalarView view, mlir::ValueRange place);
  /// All of a multiplier, as f32. Its scalars are the same everywhere.
  mlir::Value writeMultiplier(mlir::ImplicitLocOpBuilder &b, const Multiplier &multiplier, mlir::ValueRange place);

private:
  mlir::Value writeIndex(mlir::ImplicitLocOpBuilder &b, mlir::AffineExpr index, mlir::ValueRange place);

  ScalarTracer &tracer;
  const Grid &grid;
  mlir::AffineExpr token;
  llvm::SmallVector<std::pair<ScalarView, mlir::Value>> written;
};

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_FORMULA_H
