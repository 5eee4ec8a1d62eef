// See the header.
#include "Formula.h"

#include "mlir/Dialect/Affine/IR/AffineOps.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

using namespace mlir;
using namespace aligned;

static bool sameView(const ScalarView &a, const ScalarView &b) { return a.value == b.value && a.body == b.body && a.index == b.index; }

static ScalarView moved(ScalarTracer &tracer, ScalarView view) {
  while (auto next = tracer.step(view))
    view = *next;
  return view;
}

bool FormulaWriter::canWrite(const ScalarView &view, llvm::SmallBitVector &used) {
  return tracer.allIndices(view, [&](AffineExpr index) {
    std::optional<AffineExpr> fitted = grid.fit(tracer, index, token);
    for (unsigned dim = 0; fitted && dim < 4; ++dim)
      if (fitted->isFunctionOfDim(dim))
        used.set(dim);
    return fitted.has_value();
  });
}

Value FormulaWriter::writeIndex(ImplicitLocOpBuilder &b, AffineExpr index, ValueRange place) {
  AffineExpr fitted = *grid.fit(tracer, index, token);
  if (auto constant = dyn_cast<AffineConstantExpr>(fitted))
    return arith::ConstantIndexOp::create(b, constant.getValue());
  if (auto dim = dyn_cast<AffineDimExpr>(fitted))
    return place[dim.getPosition()];
  return affine::AffineApplyOp::create(b, AffineMap::get(4, 0, fitted), place);
}

Value FormulaWriter::write(ImplicitLocOpBuilder &b, ScalarView view, ValueRange place) {
  view = moved(tracer, view);
  for (auto &[known, value] : written)
    if (sameView(known, view))
      return value;
  Value result;
  Operation *op = view.value.getDefiningOp();
  if (view.isElement()) {
    SmallVector<Value> index;
    for (AffineExpr expr : view.index)
      index.push_back(writeIndex(b, expr, place));
    result = tensor::ExtractOp::create(b, view.value, index);
  } else if (isOutside(view)) {
    return view.value;
  } else if (auto index = dyn_cast<linalg::IndexOp>(op)) {
    result = writeIndex(b, view.index[index.getDim()], place);
  } else {
    IRMapping operands;
    for (unsigned number = isa<tensor::ExtractOp>(op) ? 1 : 0; number < op->getNumOperands(); ++number)
      operands.map(op->getOperand(number), write(b, tracer.operand(view, number), place));
    result = b.clone(*op, operands)->getResult(0);
  }
  written.emplace_back(view, result);
  return result;
}

Value FormulaWriter::writeFloat(ImplicitLocOpBuilder &b, ScalarView view, ValueRange place) {
  Value value = write(b, view, place);
  if (value.getType().getIntOrFloatBitWidth() < 32)
    return arith::ExtFOp::create(b, b.getF32Type(), value);
  return value.getType().isF32() ? value : arith::TruncFOp::create(b, b.getF32Type(), value).getResult();
}

Value FormulaWriter::writeMultiplier(ImplicitLocOpBuilder &b, const Multiplier &multiplier, ValueRange place) {
  if (multiplier.scalars.empty())
    return arith::ConstantOp::create(b, b.getF32FloatAttr(static_cast<float>(multiplier.number)));
  // In f64, where no product of some of them is too large.
  Value product = arith::ConstantOp::create(b, b.getF64FloatAttr(multiplier.number));
  for (const Factor &factor : multiplier.scalars) {
    Value scalar = write(b, factor.scalar, place);
    if (scalar.getType().getIntOrFloatBitWidth() < 64)
      scalar = arith::ExtFOp::create(b, b.getF64Type(), scalar);
    product = factor.isDivisor ? arith::DivFOp::create(b, product, scalar).getResult() : arith::MulFOp::create(b, product, scalar).getResult();
  }
  return arith::TruncFOp::create(b, b.getF32Type(), product);
}
