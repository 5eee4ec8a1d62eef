// See the header for the idea.
#include "ScalarView.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/Matchers.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace aligned;

AffineExpr ScalarTracer::addDim(int64_t extent) {
  extents.push_back(extent);
  return extent == 1 ? getAffineConstantExpr(0, context) : getAffineDimExpr(extents.size() - 1, context);
}

//===----------------------------------------------------------------------===//
// Index arithmetic
//===----------------------------------------------------------------------===//

int64_t aligned::valueAt(AffineExpr expr, ArrayRef<int64_t> dims) {
  if (auto constant = dyn_cast<AffineConstantExpr>(expr))
    return constant.getValue();
  if (auto dim = dyn_cast<AffineDimExpr>(expr))
    return dims[dim.getPosition()];
  auto binary = cast<AffineBinaryOpExpr>(expr);
  int64_t lhs = valueAt(binary.getLHS(), dims), rhs = valueAt(binary.getRHS(), dims);
  if (rhs <= 0 && expr.getKind() != AffineExprKind::Add && expr.getKind() != AffineExprKind::Mul)
    return 0; // divided by nothing: an index that means nothing
  switch (expr.getKind()) {
  case AffineExprKind::Add:
    return lhs + rhs;
  case AffineExprKind::Mul:
    return lhs * rhs;
  case AffineExprKind::Mod:
    return lhs - rhs * llvm::divideFloorSigned(lhs, rhs);
  case AffineExprKind::FloorDiv:
    return llvm::divideFloorSigned(lhs, rhs);
  default:
    return llvm::divideCeilSigned(lhs, rhs);
  }
}

std::optional<std::pair<int64_t, int64_t>> ScalarTracer::boundsOf(AffineExpr expr) {
  using Bounds = std::optional<std::pair<int64_t, int64_t>>;
  if (auto constant = dyn_cast<AffineConstantExpr>(expr))
    return std::pair(constant.getValue(), constant.getValue());
  if (auto dim = dyn_cast<AffineDimExpr>(expr)) {
    int64_t extent = extents[dim.getPosition()];
    return ShapedType::isDynamic(extent) || extent == 0 ? Bounds() : Bounds(std::pair(int64_t(0), extent - 1));
  }
  auto binary = cast<AffineBinaryOpExpr>(expr);
  Bounds lhs = boundsOf(binary.getLHS()), rhs = boundsOf(binary.getRHS());
  if (expr.getKind() == AffineExprKind::Mod && rhs && rhs->first == rhs->second && rhs->first > 0)
    return lhs && lhs->first >= 0 && lhs->second < rhs->first ? lhs : Bounds(std::pair(int64_t(0), rhs->first - 1));
  if (!lhs || !rhs)
    return std::nullopt;
  if (expr.getKind() == AffineExprKind::Add)
    return std::pair(lhs->first + rhs->first, lhs->second + rhs->second);
  if (rhs->first != rhs->second)
    return std::nullopt;
  if (expr.getKind() == AffineExprKind::Mul)
    return std::pair(std::min(lhs->first * rhs->first, lhs->second * rhs->first), std::max(lhs->first * rhs->first, lhs->second * rhs->first));
  if (expr.getKind() == AffineExprKind::FloorDiv && rhs->first > 0)
    return std::pair(llvm::divideFloorSigned(lhs->first, rhs->first), llvm::divideFloorSigned(lhs->second, rhs->first));
  return std::nullopt;
}

/// Calls `take` for each term of a sum, with its coefficient; constants are terms of 1.
static void forTerms(AffineExpr expr, int64_t coefficient, function_ref<void(AffineExpr, int64_t)> take) {
  auto binary = dyn_cast<AffineBinaryOpExpr>(expr);
  if (binary && expr.getKind() == AffineExprKind::Add) {
    forTerms(binary.getLHS(), coefficient, take);
    forTerms(binary.getRHS(), coefficient, take);
  } else if (auto factor = binary && expr.getKind() == AffineExprKind::Mul ? dyn_cast<AffineConstantExpr>(binary.getRHS()) : AffineConstantExpr()) {
    forTerms(binary.getLHS(), coefficient * factor.getValue(), take);
  } else if (auto constant = dyn_cast<AffineConstantExpr>(expr)) {
    take(getAffineConstantExpr(1, expr.getContext()), coefficient * constant.getValue());
  } else {
    take(expr, coefficient);
  }
}

AffineExpr ScalarTracer::simplify(AffineExpr expr) {
  expr = simplifyAffineExpr(expr, extents.size(), /*numSymbols=*/0);
  auto binary = dyn_cast<AffineBinaryOpExpr>(expr);
  if (!binary)
    return expr;
  AffineExpr lhs = simplify(binary.getLHS()), rhs = simplify(binary.getRHS());
  auto divisor = dyn_cast<AffineConstantExpr>(rhs);
  bool isQuotient = expr.getKind() == AffineExprKind::FloorDiv;
  if (divisor && divisor.getValue() > 0 && (isQuotient || expr.getKind() == AffineExprKind::Mod)) {
    // lhs = divisor * quotient + rest: exact where the rest stays below the divisor.
    AffineExpr quotient = constant(0), rest = constant(0);
    forTerms(lhs, 1, [&](AffineExpr term, int64_t coefficient) {
      if (coefficient % divisor.getValue() == 0)
        quotient = quotient + term * (coefficient / divisor.getValue());
      else
        rest = rest + term * coefficient;
    });
    if (auto bounds = boundsOf(rest); bounds && bounds->first >= 0 && bounds->second < divisor.getValue())
      return isQuotient ? quotient : rest;
  }
  return getAffineBinaryOpExpr(expr.getKind(), lhs, rhs);
}

//===----------------------------------------------------------------------===//
// Moving elements
//===----------------------------------------------------------------------===//

/// Entries of a collapsed dimension from its linear index. Nothing where an inner extent is unknown.
static std::optional<Index> delinearize(ScalarTracer &tracer, AffineExpr linear, ArrayRef<int64_t> shape) {
  Index entries(shape.size(), getAffineConstantExpr(0, tracer.context));
  // Dimensions of extent 1 hold no information: an unknown extent is fine where it is the outermost that does.
  SmallVector<unsigned> wide;
  for (auto [dim, extent] : llvm::enumerate(shape))
    if (extent != 1)
      wide.push_back(dim);
  AffineExpr rest = linear;
  for (unsigned dim : llvm::reverse(wide)) {
    if (dim == wide.front()) {
      entries[dim] = tracer.simplify(rest);
      break;
    }
    if (ShapedType::isDynamic(shape[dim]))
      return std::nullopt;
    entries[dim] = tracer.simplify(rest % shape[dim]);
    rest = tracer.simplify(rest.floorDiv(shape[dim]));
  }
  return entries;
}

/// The one unknown extent of a group whose product is known.
static void inferExtent(MutableArrayRef<int64_t> shape, int64_t product) {
  int64_t *unknown = llvm::find_if(shape, ShapedType::isDynamic);
  if (unknown == shape.end() || ShapedType::isDynamic(product))
    return;
  int64_t others = 1;
  for (int64_t &extent : shape)
    if (&extent != unknown)
      others = ShapedType::isDynamic(extent) ? 0 : others * extent;
  if (others && product % others == 0)
    *unknown = product / others;
}

static std::optional<AffineExpr> linearize(ScalarTracer &tracer, ArrayRef<AffineExpr> entries, ArrayRef<int64_t> shape) {
  AffineExpr linear = getAffineConstantExpr(0, tracer.context);
  bool first = true;
  for (auto [entry, extent] : llvm::zip(entries, shape)) {
    if (extent == 1)
      continue;
    if (!first && ShapedType::isDynamic(extent))
      return std::nullopt;
    linear = first ? entry : linear * extent + entry;
    first = false;
  }
  return tracer.simplify(linear);
}

std::optional<Index> ScalarTracer::loopsOf(linalg::LinalgOp op, AffineMap map, ArrayRef<AffineExpr> index, Index &reduced) {
  if (!map.isProjectedPermutation(/*allowZeroInResults=*/true))
    return std::nullopt;
  Index loops(map.getNumDims());
  for (auto [result, expr] : llvm::zip(map.getResults(), index))
    if (auto dim = dyn_cast<AffineDimExpr>(result))
      loops[dim.getPosition()] = expr;
  SmallVector<int64_t> ranges = op.getStaticLoopRanges();
  for (auto [loop, kind] : llvm::enumerate(op.getIteratorTypesArray())) {
    if (kind == utils::IteratorType::reduction) {
      loops[loop] = addDim(ranges[loop]);
      reduced.push_back(loops[loop]);
    } else if (!loops[loop]) {
      return std::nullopt;
    }
  }
  return loops;
}

ScalarView ScalarTracer::input(linalg::LinalgOp op, unsigned operand, ArrayRef<AffineExpr> loops) {
  AffineMap map = op.getIndexingMapsArray()[operand];
  Index index;
  for (AffineExpr expr : map.getResults())
    index.push_back(simplify(expr.replaceDims(loops)));
  return {op->getOperand(operand), index, nullptr};
}

static ScalarView element(Value tensor, Index index) { return {tensor, std::move(index), nullptr}; }

std::optional<ScalarView> ScalarTracer::step(const ScalarView &view) {
  if (!view.isElement())
    return stepOutOfBody(view);
  Operation *producer = view.value.getDefiningOp();
  if (!producer)
    return std::nullopt;
  return llvm::TypeSwitch<Operation *, std::optional<ScalarView>>(producer)
      .Case<tensor::CollapseShapeOp, tensor::ExpandShapeOp, tensor::CastOp, tensor::ExtractSliceOp, tensor::ConcatOp, tensor::InsertSliceOp>(
          [&](auto op) { return stepInto(op, view.index); })
      .Case([&](linalg::TransposeOp op) {
        Index index(view.index.size());
        for (auto [result, source] : llvm::enumerate(op.getPermutation()))
          index[source] = view.index[result];
        return element(op.getInput(), index);
      })
      .Case([&](linalg::BroadcastOp op) {
        Index index;
        for (auto [dim, expr] : llvm::enumerate(view.index))
          if (!llvm::is_contained(op.getDimensions(), static_cast<int64_t>(dim)))
            index.push_back(expr);
        return element(op.getInput(), index);
      })
      .Case([&](linalg::FillOp op) { return ScalarView{op.getInputs()[0], {}, nullptr}; })
      .Case([&](linalg::LinalgOp op) { return stepIntoBody(op, view); })
      .Default(std::nullopt);
}

/// A scalar in a body: block arguments stand for elements of the op's operands.
std::optional<ScalarView> ScalarTracer::stepOutOfBody(const ScalarView &view) {
  auto argument = dyn_cast<BlockArgument>(view.value);
  auto op = dyn_cast_or_null<linalg::LinalgOp>(view.body);
  if (!argument || !op || argument.getOwner()->getParentOp() != view.body)
    return std::nullopt;
  unsigned number = argument.getArgNumber();
  if (number >= static_cast<unsigned>(op.getNumDpsInputs())) // a running result is no element of anything
    return std::nullopt;
  return input(op, number, view.index);
}

/// What an elementwise op yields.
std::optional<ScalarView> ScalarTracer::stepIntoBody(linalg::LinalgOp op, const ScalarView &view) {
  if (op.getNumReductionLoops() || !op.hasPureTensorSemantics())
    return std::nullopt;
  auto result = cast<OpResult>(view.value);
  Index none;
  std::optional<Index> loops = loopsOf(op, op.getIndexingMapMatchingResult(result), view.index, none);
  if (!loops)
    return std::nullopt;
  return ScalarView{op.getBlock()->getTerminator()->getOperand(result.getResultNumber()), *loops, op};
}

std::optional<ScalarView> ScalarTracer::stepInto(tensor::CollapseShapeOp op, const Index &result) {
  Index index(op.getSrcType().getRank(), constant(0));
  SmallVector<int64_t> known = shapeOf(op.getResult());
  for (auto [dim, group] : llvm::enumerate(op.getReassociationIndices())) {
    SmallVector<int64_t> shape;
    for (int64_t source : group)
      shape.push_back(op.getSrcType().getDimSize(source));
    inferExtent(shape, known[dim]);
    std::optional<Index> entries = delinearize(*this, result[dim], shape);
    if (!entries)
      return std::nullopt;
    for (auto [source, entry] : llvm::zip(group, *entries))
      index[source] = entry;
  }
  return element(op.getSrc(), index);
}

std::optional<ScalarView> ScalarTracer::stepInto(tensor::ExpandShapeOp op, const Index &result) {
  Index index;
  for (const auto &group : op.getReassociationIndices()) {
    Index entries;
    SmallVector<int64_t> shape;
    for (int64_t dim : group) {
      entries.push_back(result[dim]);
      shape.push_back(op.getResultType().getDimSize(dim));
    }
    std::optional<AffineExpr> linear = linearize(*this, entries, shape);
    if (!linear)
      return std::nullopt;
    index.push_back(*linear);
  }
  return element(op.getSrc(), index);
}

std::optional<ScalarView> ScalarTracer::stepInto(tensor::CastOp op, const Index &result) {
  if (!isa<RankedTensorType>(op.getSource().getType()))
    return std::nullopt;
  SmallVector<int64_t> shape = shapeOf(op.getSource());
  for (auto [extent, other] : llvm::zip(shape, shapeOf(op.getResult())))
    if (ShapedType::isDynamic(extent))
      extent = other;
  castShapes[op.getSource()] = shape;
  for (auto [extent, expr] : llvm::zip(shape, result)) // loops of unknown extent run over all of it
    if (auto loop = dyn_cast<AffineDimExpr>(expr); loop && ShapedType::isDynamic(extents[loop.getPosition()]))
      extents[loop.getPosition()] = extent;
  return element(op.getSource(), result);
}

/// Of static slices it is plain which elements they leave out.
std::optional<ScalarView> ScalarTracer::stepInto(tensor::ExtractSliceOp op, const Index &result) {
  Index index;
  unsigned next = 0;
  llvm::SmallBitVector dropped = op.getDroppedDims();
  RankedTensorType source = op.getSourceType();
  for (int64_t dim = 0; dim < source.getRank(); ++dim) {
    int64_t offset = op.getStaticOffsets()[dim], stride = op.getStaticStrides()[dim];
    if (ShapedType::isDynamic(offset) || ShapedType::isDynamic(stride) || ShapedType::isDynamic(op.getStaticSizes()[dim]) || source.isDynamicDim(dim))
      return std::nullopt;
    index.push_back(dropped.test(dim) ? constant(offset) : simplify(result[next++] * stride + offset));
  }
  return element(op.getSource(), index);
}

/// An element of the one input that its index can lie in.
std::optional<ScalarView> ScalarTracer::stepInto(tensor::ConcatOp concat, const Index &result) {
  auto bounds = boundsOf(result[concat.getDim()]);
  int64_t offset = 0;
  for (Value input : concat.getInputs()) {
    int64_t extent = cast<RankedTensorType>(input.getType()).getDimSize(concat.getDim());
    if (!bounds || ShapedType::isDynamic(extent))
      return std::nullopt;
    if (bounds->first >= offset && bounds->second < offset + extent) {
      Index index = result;
      index[concat.getDim()] = simplify(index[concat.getDim()] - offset);
      return element(input, index);
    }
    offset += extent;
  }
  return std::nullopt;
}

/// An element of what is inserted, or of what it is inserted into, where its index tells.
std::optional<ScalarView> ScalarTracer::stepInto(tensor::InsertSliceOp insert, const Index &result) {
  Index index;
  for (int64_t dim = 0; dim < insert.getDestType().getRank(); ++dim) {
    auto bounds = boundsOf(result[dim]);
    int64_t offset = insert.getStaticOffsets()[dim], size = insert.getStaticSizes()[dim];
    if (offset == 0 && !ShapedType::isDynamic(size) && size == insert.getDestType().getDimSize(dim)) {
      index.push_back(result[dim]);
      continue;
    }
    if (!bounds || ShapedType::isDynamic(offset) || ShapedType::isDynamic(size) || insert.getStaticStrides()[dim] != 1)
      return std::nullopt;
    if (bounds->second < offset || bounds->first >= offset + size)
      return element(insert.getDest(), result);
    if (bounds->first < offset || bounds->second >= offset + size)
      return std::nullopt;
    index.push_back(simplify(result[dim] - offset));
  }
  if (insert.getSourceType().getRank() != insert.getDestType().getRank())
    return std::nullopt;
  return element(insert.getSource(), index);
}

SmallVector<int64_t> ScalarTracer::shapeOf(Value tensor) {
  auto known = castShapes.find(tensor);
  return known != castShapes.end() ? known->second : SmallVector<int64_t>(cast<RankedTensorType>(tensor.getType()).getShape());
}

ScalarView ScalarTracer::resolveRounded(ScalarView view) {
  while (true) {
    view = resolve(view);
    if (view.isElement() || !isRounding(view.value.getDefiningOp()))
      return view;
    view = operand(view, 0);
  }
}

bool aligned::isRounding(Operation *op) {
  auto type = isa_and_nonnull<arith::TruncFOp>(op) ? dyn_cast<FloatType>(op->getResult(0).getType()) : FloatType();
  return type && type.getWidth() >= 16;
}

Operation *aligned::scalarOp(const ScalarView &view) {
  auto isScalar = [](Type type) { return type.isIntOrIndexOrFloat(); };
  Operation *op = view.value.getDefiningOp();
  if (isa_and_nonnull<linalg::IndexOp>(op) && op->getParentOp() != view.body)
    return nullptr; // it counts the loops of an op around this one
  return op && !view.isElement() && op->getNumResults() == 1 && !op->getNumRegions() && !op->getNumSuccessors() && isPure(op) && llvm::all_of(op->getOperandTypes(), isScalar) &&
                 isScalar(op->getResult(0).getType())
             ? op
             : nullptr;
}

/// One step of a walk over a formula. A walk that goes deep or far ends: formulas are trees here, and what is shared in them counts each time.
struct ScalarTracer::Visit {
  explicit Visit(ScalarTracer &tracer) : tracer(tracer) {
    constexpr int kMostSteps = 4096;
    if (tracer.depth++ == 0)
      tracer.stepsLeft = kMostSteps;
    --tracer.stepsLeft;
  }
  ~Visit() { --tracer.depth; }
  bool isTooFar() const { return tracer.depth > 256 || tracer.stepsLeft < 0; }
  ScalarTracer &tracer;
};

bool ScalarTracer::allOperands(const ScalarView &view, function_ref<bool(const ScalarView &)> holds) {
  Visit visit(*this);
  Operation *op = scalarOp(view);
  return op && !visit.isTooFar() && llvm::all_of(llvm::seq<unsigned>(0, op->getNumOperands()), [&](unsigned number) { return holds(operand(view, number)); });
}

ScalarView ScalarTracer::resolve(ScalarView view) {
  while (true) {
    if (auto next = step(view))
      view = *next;
    else if (!view.isElement() && view.as<arith::ExtFOp>())
      view = operand(view, 0);
    else
      return view;
  }
}

ScalarView ScalarTracer::operand(const ScalarView &view, unsigned number) const {
  return {view.value.getDefiningOp()->getOperand(number), view.index, view.body};
}

/// A scalar that is computed outside of the body that reads it, and so the same at every place.
bool aligned::isOutside(const ScalarView &view) {
  if (!view.body || view.isElement())
    return !view.isElement();
  Operation *op = view.value.getDefiningOp();
  return !view.body->isAncestor(op ? op : cast<BlockArgument>(view.value).getOwner()->getParentOp());
}

bool ScalarTracer::same(const ScalarView &a, const ScalarView &b, AffineExpr from, AffineExpr to) {
  auto equal = [&](AffineExpr left, AffineExpr right) { return simplify(left - (from ? right.replace(from, to) : right)) == constant(0); };
  if (a.value == b.value && isOutside(a) && isOutside(b))
    return true;
  if (a.value == b.value && a.body == b.body && a.index.size() == b.index.size())
    return llvm::all_of(llvm::zip(a.index, b.index), [&](auto pair) { return equal(std::get<0>(pair), std::get<1>(pair)); });
  // The same formula, written twice.
  Operation *left = scalarOp(a), *right = scalarOp(b);
  if (!left || !right || left->getName() != right->getName() || left->getResultTypes() != right->getResultTypes() || left->getNumOperands() != right->getNumOperands())
    return false;
  if (auto index = dyn_cast<linalg::IndexOp>(left))
    return equal(a.index[index.getDim()], b.index[cast<linalg::IndexOp>(right).getDim()]);
  if (left->getAttrDictionary() != right->getAttrDictionary() || left->getPropertiesAsAttribute() != right->getPropertiesAsAttribute())
    return false;
  unsigned number = 0;
  return allOperands(a, [&](const ScalarView &own) { return same(resolve(own), resolve(operand(b, number++)), from, to); });
}

ExtractedElement aligned::extractedElement(const ScalarView &view) {
  auto extract = view.isElement() ? tensor::ExtractOp() : view.as<tensor::ExtractOp>();
  // The tensor is the graph's own, not one that a body puts together.
  if (!extract || (view.body && view.body->isAncestor(extract.getTensor().getParentRegion()->getParentOp())))
    return {};
  return {extract, llvm::to_vector(extract.getIndices())};
}

bool ScalarTracer::allIndices(ScalarView view, function_ref<bool(AffineExpr)> holds) {
  view = resolve(view);
  if (view.isElement())
    return llvm::all_of(view.index, holds);
  if (isOutside(view))
    return true;
  if (auto index = view.as<linalg::IndexOp>())
    return holds(view.index[index.getDim()]);
  if (ExtractedElement extracted = extractedElement(view); extracted.op)
    return llvm::all_of(extracted.indices, [&](Value index) { return allIndices({index, view.index, view.body}, holds); });
  return allOperands(view, [&](const ScalarView &own) { return allIndices(own, holds); });
}

bool ScalarTracer::dependsOn(ScalarView view, AffineExpr dim) {
  auto position = dyn_cast<AffineDimExpr>(dim); // a constant is of one iteration
  return position && !allIndices(view, [&](AffineExpr expr) { return !expr.isFunctionOfDim(position.getPosition()); });
}

//===----------------------------------------------------------------------===//
// Constants
//===----------------------------------------------------------------------===//

/// A float in another type, rounded to nearest.
static TypedAttr rounded(TypedAttr value, Type type) {
  auto real = dyn_cast_or_null<FloatAttr>(value);
  if (!real)
    return {};
  APFloat number = real.getValue();
  bool inexact;
  number.convert(cast<FloatType>(type).getFloatSemantics(), APFloat::rmNearestTiesToEven, &inexact);
  return FloatAttr::get(type, number);
}

TypedAttr ScalarTracer::evaluate(ScalarView view, ArrayRef<int64_t> dims) {
  while (auto next = step(view))
    view = *next;
  auto at = [&](AffineExpr expr) -> std::optional<int64_t> {
    for (unsigned dim = dims.size(); dim < extents.size(); ++dim)
      if (expr.isFunctionOfDim(dim))
        return std::nullopt;
    return valueAt(expr, dims);
  };
  if (view.isElement()) {
    DenseElementsAttr elements;
    if (!matchPattern(view.value, m_Constant(&elements)))
      return {};
    if (elements.isSplat())
      return dyn_cast<TypedAttr>(elements.getSplatValue<Attribute>());
    SmallVector<uint64_t> index;
    for (auto [expr, extent] : llvm::zip(view.index, elements.getType().getShape())) {
      std::optional<int64_t> entry = at(expr);
      if (!entry || *entry < 0 || *entry >= extent)
        return {};
      index.push_back(*entry);
    }
    return dyn_cast<TypedAttr>(elements.getValues<Attribute>()[index]);
  }
  Operation *op = scalarOp(view);
  if (!op)
    return {};
  if (auto index = dyn_cast<linalg::IndexOp>(op)) {
    std::optional<int64_t> entry = at(view.index[index.getDim()]);
    return entry ? IntegerAttr::get(IndexType::get(context), *entry) : IntegerAttr();
  }
  if (Attribute constant; matchPattern(op, m_Constant(&constant)))
    return dyn_cast<TypedAttr>(constant);
  if (!isa_and_present<arith::ArithDialect, math::MathDialect>(op->getDialect()))
    return {};
  if (isa<arith::SelectOp>(op)) {
    Visit visit(*this);
    auto condition = visit.isTooFar() ? IntegerAttr() : dyn_cast_or_null<IntegerAttr>(evaluate(operand(view, 0), dims));
    return condition ? evaluate(operand(view, condition.getValue().isZero() ? 2 : 1), dims) : TypedAttr();
  }
  if (isa<arith::TruncFOp>(op)) { // which folds only where it is exact
    Visit visit(*this);
    return visit.isTooFar() ? TypedAttr() : rounded(evaluate(operand(view, 0), dims), op->getResult(0).getType());
  }
  SmallVector<Attribute> operands;
  if (!allOperands(view, [&](const ScalarView &own) { return bool(operands.emplace_back(evaluate(own, dims))); }))
    return {};
  SmallVector<OpFoldResult> results;
  if (failed(op->fold(operands, results)) || results.size() != 1)
    return {};
  if (auto value = dyn_cast<Value>(results.front()))
    return evaluate({value, view.index, view.body}, dims);
  return dyn_cast<TypedAttr>(cast<Attribute>(results.front()));
}

std::optional<double> aligned::constantOf(ScalarTracer &tracer, const ScalarView &view) {
  TypedAttr value = tracer.evaluate(view);
  if (auto real = dyn_cast_or_null<FloatAttr>(value))
    return real.getValueAsDouble();
  if (auto whole = dyn_cast_or_null<IntegerAttr>(value))
    return whole.getType().isInteger(1) ? double(whole.getValue().getBoolValue()) : whole.getValue().signedRoundToDouble();
  return std::nullopt;
}
