// The dialect's registration.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/BuiltinDialect.h"
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
// Attributes of arguments and results (P6, S2)
//===----------------------------------------------------------------------===//

/// Facts are about tensors and numbers of a graph. What lowering makes of these, pointers say, isn't looked at.
static bool isLowered(Type type) { return type && !isa<BuiltinDialect>(type.getDialect()); }

static FloatType floatOf(Type type) { return dyn_cast<FloatType>(getElementTypeOrSelf(type)); }

/// [kv_heads, head_dim] of floats, for a tensor [batch, kv_heads, tokens, head_dim].
static LogicalResult verifyKeyOffset(Operation *op, unsigned number, Type type, Attribute attribute) {
  auto tensor = dyn_cast_or_null<RankedTensorType>(type);
  if (!tensor || tensor.getRank() != 4 || tensor.isDynamicDim(1) || tensor.isDynamicDim(3) || !isa<FloatType>(tensor.getElementType()))
    return op->emitOpError("expected '") << kKeyOffsetName << "' on a tensor of floats [batch, kv_heads, tokens, head_dim] with static kv_heads and head_dim, got it on argument #"
                                         << number << " of " << type;
  auto expected = RankedTensorType::get({tensor.getDimSize(1), tensor.getDimSize(3)}, Float32Type::get(op->getContext()));
  auto offset = dyn_cast<DenseElementsAttr>(attribute);
  if (!offset || offset.getType() != expected) {
    InFlightDiagnostic diagnostic = op->emitOpError("expected '") << kKeyOffsetName << "' of argument #" << number << " to be dense<...> : " << expected << ", got ";
    if (offset)
      return diagnostic << "a " << offset.getType();
    return diagnostic << attribute;
  }
  for (auto [index, x] : llvm::enumerate(offset.getValues<APFloat>()))
    if (!x.isFinite())
      return op->emitOpError("expected '") << kKeyOffsetName << "' of argument #" << number << " to be finite, got " << decimal(x.convertToDouble()) << " for channel "
                                           << index % tensor.getDimSize(3) << " of kv head " << index / tensor.getDimSize(3);
  return success();
}

LogicalResult AlignedDialect::verifyRegionArgAttribute(Operation *op, unsigned, unsigned number, NamedAttribute attribute) {
  auto function = dyn_cast<FunctionOpInterface>(op);
  if (function && isLowered(function.getArgumentTypes()[number]))
    return success();
  if (attribute.getName() == kKeyOffsetName)
    return verifyKeyOffset(op, number, function ? function.getArgumentTypes()[number] : Type(), attribute.getValue());
  if (attribute.getName() != kRangeName)
    return op->emitOpError("expected no '") << attribute.getName().getValue() << "' on an argument, where '" << kRangeName << "' and '" << kKeyOffsetName << "' may stand";
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
