// See the header.
#include "Reductions.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "llvm/Support/FormatVariadic.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

/// The number that an init starts every result from: whichever of its elements is asked for.
static std::optional<double> startOf(ScalarTracer &tracer, Value init) {
  Index any;
  for (int64_t extent : cast<RankedTensorType>(init.getType()).getShape())
    any.push_back(tracer.addDim(extent));
  return constantOf(tracer, {init, any, nullptr});
}

/// The loop of an op that has one of reduction.
static std::optional<unsigned> reductionLoop(linalg::LinalgOp op) {
  std::optional<unsigned> reduction;
  for (auto [loop, kind] : llvm::enumerate(op.getIteratorTypesArray()))
    if (kind == utils::IteratorType::reduction) {
      if (reduction)
        return std::nullopt;
      reduction = loop;
    }
  return reduction;
}

/// A value without the casts that it went through, wide or narrow.
static Value bare(Value value) {
  while (value.getDefiningOp<arith::ExtFOp>() || isRounding(value.getDefiningOp()))
    value = value.getDefiningOp()->getOperand(0);
  return value;
}

std::optional<Contraction> Contraction::of(Operation *op) {
  auto linalgOp = dyn_cast_or_null<linalg::LinalgOp>(op);
  if (!linalgOp || !linalgOp.hasPureTensorSemantics() || op->getNumResults() != 1 || !linalgOp.getBlock())
    return std::nullopt;
  std::optional<unsigned> loop = reductionLoop(linalgOp);
  if (!loop)
    return std::nullopt;
  Value running = linalgOp.getMatchingBlockArgument(linalgOp.getDpsInitOperand(0));
  auto sum = bare(linalgOp.getBlock()->getTerminator()->getOperand(0)).getDefiningOp<arith::AddFOp>();
  bool isLeft = sum && bare(sum.getLhs()) == running;
  if (!isLeft && (!sum || bare(sum.getRhs()) != running))
    return std::nullopt;
  auto product = bare(isLeft ? sum.getRhs() : sum.getLhs()).getDefiningOp<arith::MulFOp>();
  if (!product)
    return std::nullopt;
  return Contraction{linalgOp, {product.getLhs(), product.getRhs()}, linalgOp.getStaticLoopRanges()[*loop]};
}

std::optional<std::string> Contraction::refuse(StringRef name) const {
  Type element = getElementTypeOrSelf(start());
  if (isa<FloatType>(element) && element.getIntOrFloatBitWidth() >= 16)
    return std::nullopt;
  return llvm::formatv("expected the {0} to be summed in floats of 16 bits or more, got {1}", name, element).str();
}

Value Contraction::start() const {
  linalg::LinalgOp linalgOp = op;
  return linalgOp.getDpsInitOperand(0)->get();
}

bool Contraction::startsFromZero(ScalarTracer &tracer) const { return startOf(tracer, start()) == 0.0; }

std::optional<Index> Contraction::loopsAt(ScalarTracer &tracer, ArrayRef<AffineExpr> index, AffineExpr &summed) const {
  linalg::LinalgOp linalgOp = op;
  Index reduced;
  std::optional<Index> loops = tracer.loopsOf(linalgOp, linalgOp.getMatchingIndexingMap(linalgOp.getDpsInitOperand(0)), index, reduced);
  if (loops)
    summed = reduced.front();
  return loops;
}

/// Whether `step` is one of this kind, and the number that changes nothing.
static std::optional<double> identityOf(Operation *step, Combine combine) {
  switch (combine) {
  case Combine::Add:
    return isa_and_nonnull<arith::AddFOp>(step) ? std::optional(0.0) : std::nullopt;
  case Combine::Max:
    return isa_and_nonnull<arith::MaximumFOp, arith::MaxNumFOp>(step) ? std::optional<double>(-INFINITY) : std::nullopt;
  case Combine::And:
    return isa_and_nonnull<arith::AndIOp>(step) && step->getResult(0).getType().isInteger(1) ? std::optional(1.0) : std::nullopt;
  case Combine::Or:
    return isa_and_nonnull<arith::OrIOp>(step) && step->getResult(0).getType().isInteger(1) ? std::optional(0.0) : std::nullopt;
  }
  return std::nullopt;
}

std::optional<Reduction> aligned::reductionOf(ScalarTracer &tracer, const ScalarView &view, Combine combine) {
  auto op = view.isElement() ? view.as<linalg::LinalgOp>() : linalg::LinalgOp();
  std::optional<unsigned> loop = op ? reductionLoop(op) : std::nullopt;
  if (!loop)
    return std::nullopt;
  unsigned number = cast<OpResult>(view.value).getResultNumber();
  OpOperand *init = op.getDpsInitOperand(number);
  Index reduced;
  std::optional<Index> loops = tracer.loopsOf(op, op.getMatchingIndexingMap(init), view.index, reduced);
  if (!loops)
    return std::nullopt;

  // The body combines the running result with one other scalar.
  Operation *step = op.getBlock()->getTerminator()->getOperand(number).getDefiningOp();
  Value running = op.getMatchingBlockArgument(init);
  std::optional<double> identity = identityOf(step, combine), start = startOf(tracer, init->get());
  if (!identity || !start || (step->getOperand(0) != running && step->getOperand(1) != running) || step->getOperand(0) == step->getOperand(1))
    return std::nullopt;
  // What is taken off the scores changes nothing, so that their maximum may as well start from a number, if no exponential becomes zero by it.
  constexpr double kMostStart = 64;
  if (*start != *identity && !(combine == Combine::Max && *start <= kMostStart))
    return std::nullopt;
  Value other = step->getOperand(step->getOperand(0) == running ? 1 : 0);
  return Reduction{tracer.resolve({other, *loops, op}), reduced.front(), op.getStaticLoopRanges()[*loop], *start != *identity};
}
