// The dialect's registration.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

using namespace mlir;
using namespace aligned;

#include "aligned/Dialect/Aligned/IR/AlignedDialect.cpp.inc"

void AlignedDialect::initialize() {
  registerAttributes();
  addOperations<
#define GET_OP_LIST
#include "aligned/Dialect/Aligned/IR/AlignedOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// Attributes of arguments and results (P6)
//===----------------------------------------------------------------------===//

static FloatType floatOf(Type type) { return dyn_cast<FloatType>(getElementTypeOrSelf(type)); }

LogicalResult AlignedDialect::verifyRegionArgAttribute(Operation *op, unsigned, unsigned number, NamedAttribute attribute) {
  auto function = dyn_cast<FunctionOpInterface>(op);
  if (attribute.getName() != kRangeName)
    return op->emitOpError("expected no '") << attribute.getName().getValue() << "' on an argument, where '" << kRangeName << "' may stand";
  auto range = dyn_cast<RangeAttr>(attribute.getValue());
  if (!range)
    return op->emitOpError("expected '") << kRangeName << "' of argument #" << number << " to be #aligned.range<...>, got " << attribute.getValue();
  FloatType type = function ? floatOf(function.getArgumentTypes()[number]) : FloatType();
  if (!type)
    return op->emitOpError("expected '") << kRangeName << "' on a float or a shape of floats, got it on argument #" << number
                                         << (function ? " of " : "") << (function ? function.getArgumentTypes()[number] : Type());
  bool lost = false;
  llvm::APFloat largest = llvm::APFloat::getLargest(type.getFloatSemantics());
  largest.convert(llvm::APFloat::IEEEdouble(), llvm::APFloat::rmTowardZero, &lost);
  if (range.getLower() < -largest || range.getUpper() > largest)
    return op->emitOpError("expected a range of argument #") << number << " within what " << type << " holds, at most " << decimal(largest.convertToDouble()) << ", got " << range;
  return success();
}

LogicalResult AlignedDialect::verifyRegionResultAttribute(Operation *op, unsigned, unsigned number, NamedAttribute attribute) {
  auto function = dyn_cast<FunctionOpInterface>(op);
  if (attribute.getName() != kToleranceName)
    return op->emitOpError("expected no '") << attribute.getName().getValue() << "' on a result, where '" << kToleranceName << "' may stand";
  auto tolerance = dyn_cast<FloatAttr>(attribute.getValue());
  if (!tolerance || !tolerance.getType().isF64() || !(tolerance.getValueAsDouble() > 0) || tolerance.getValue().isInfinity())
    return op->emitOpError("expected '") << kToleranceName << "' of result #" << number << " to be an f64 above 0, got " << attribute.getValue();
  if (!function || !floatOf(function.getResultTypes()[number]))
    return op->emitOpError("expected '") << kToleranceName << "' on a float or a shape of floats, got it on result #" << number;
  return success();
}
