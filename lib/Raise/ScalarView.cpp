// See the header for the idea.
#include "ScalarView.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/Matchers.h"

using namespace mlir;
using namespace aligned;

AffineExpr ScalarTracer::addDim(int64_t extent) {
  extents.push_back(extent);
  return extent == 1 ? getAffineConstantExpr(0, context) : getAffineDimExpr(extents.size() - 1, context);
}

AffineExpr ScalarTracer::simplify(AffineExpr expr) { return simplifyAffineExpr(expr, extents.size(), /*numSymbols=*/0); }

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

std::optional<ScalarView> ScalarTracer::step(const ScalarView &view) {
  if (!view.isElement()) {
    // A scalar in a body: block arguments stand for elements of the op's operands.
    auto argument = dyn_cast<BlockArgument>(view.value);
    auto op = dyn_cast_or_null<linalg::LinalgOp>(view.body);
    if (!argument || !op || argument.getOwner()->getParentOp() != view.body)
      return std::nullopt;
    unsigned number = argument.getArgNumber();
    if (number >= static_cast<unsigned>(op.getNumDpsInputs())) // a running result is no element of anything
      return std::nullopt;
    return input(op, number, view.index);
  }
  Operation *producer = view.value.getDefiningOp();
  if (!producer)
    return std::nullopt;
  auto element = [](Value value, Index index) { return ScalarView{value, std::move(index), nullptr}; };

  if (auto op = dyn_cast<tensor::CollapseShapeOp>(producer)) {
    Index index(op.getSrcType().getRank());
    for (auto [result, group] : llvm::enumerate(op.getReassociationIndices())) {
      SmallVector<int64_t> shape;
      for (int64_t dim : group)
        shape.push_back(op.getSrcType().getDimSize(dim));
      std::optional<Index> entries = delinearize(*this, view.index[result], shape);
      if (!entries)
        return std::nullopt;
      for (auto [dim, entry] : llvm::zip(group, *entries))
        index[dim] = entry;
    }
    return element(op.getSrc(), index);
  }
  if (auto op = dyn_cast<tensor::ExpandShapeOp>(producer)) {
    Index index;
    for (const auto &group : op.getReassociationIndices()) {
      Index entries;
      SmallVector<int64_t> shape;
      for (int64_t dim : group) {
        entries.push_back(view.index[dim]);
        shape.push_back(op.getResultType().getDimSize(dim));
      }
      std::optional<AffineExpr> linear = linearize(*this, entries, shape);
      if (!linear)
        return std::nullopt;
      index.push_back(*linear);
    }
    return element(op.getSrc(), index);
  }
  if (auto op = dyn_cast<tensor::CastOp>(producer))
    return isa<RankedTensorType>(op.getSource().getType()) ? std::optional(element(op.getSource(), view.index)) : std::nullopt;
  if (auto op = dyn_cast<linalg::TransposeOp>(producer)) {
    Index index(view.index.size());
    for (auto [result, source] : llvm::enumerate(op.getPermutation()))
      index[source] = view.index[result];
    return element(op.getInput(), index);
  }
  if (auto op = dyn_cast<linalg::BroadcastOp>(producer)) {
    Index index;
    for (auto [dim, expr] : llvm::enumerate(view.index))
      if (!llvm::is_contained(op.getDimensions(), static_cast<int64_t>(dim)))
        index.push_back(expr);
    return element(op.getInput(), index);
  }
  if (auto op = dyn_cast<linalg::FillOp>(producer))
    return ScalarView{op.getInputs()[0], {}, nullptr};
  if (auto op = dyn_cast<linalg::GenericOp>(producer)) {
    if (op.getNumReductionLoops())
      return std::nullopt;
    unsigned number = cast<OpResult>(view.value).getResultNumber();
    Index none;
    std::optional<Index> loops = loopsOf(op, op.getIndexingMapMatchingResult(cast<OpResult>(view.value)), view.index, none);
    if (!loops)
      return std::nullopt;
    return ScalarView{op.getBody()->getTerminator()->getOperand(number), *loops, op};
  }
  return std::nullopt;
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

bool ScalarTracer::same(const ScalarView &a, const ScalarView &b, AffineExpr from, AffineExpr to) {
  if (a.value != b.value || a.body != b.body || a.index.size() != b.index.size())
    return false;
  return llvm::all_of(llvm::zip(a.index, b.index), [&](auto pair) {
    auto [left, right] = pair;
    return simplify(left - (from ? right.replace(from, to) : right)) == getAffineConstantExpr(0, context);
  });
}

std::optional<double> aligned::constantOf(ScalarTracer &tracer, ScalarView view) {
  view = tracer.resolve(view);
  if (!view.isElement() && view.as<arith::TruncFOp>()) {
    std::optional<double> wide = constantOf(tracer, tracer.operand(view, 0));
    if (!wide)
      return std::nullopt;
    APFloat value(*wide);
    bool inexact;
    value.convert(cast<FloatType>(view.value.getType()).getFloatSemantics(), APFloat::rmNearestTiesToEven, &inexact);
    return value.convertToDouble();
  }
  Attribute attr;
  if (!matchPattern(view.value, m_Constant(&attr)))
    return std::nullopt;
  if (auto splat = dyn_cast<SplatElementsAttr>(attr))
    attr = splat.getSplatValue<Attribute>();
  if (auto real = dyn_cast<FloatAttr>(attr))
    return real.getValueAsDouble();
  if (auto whole = dyn_cast<IntegerAttr>(attr))
    return whole.getType().isInteger(1) ? double(whole.getValue().getBoolValue()) : double(whole.getValue().getSExtValue());
  return std::nullopt;
}
