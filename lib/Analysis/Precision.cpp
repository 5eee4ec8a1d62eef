// Ranges forward and slack backward, each to a fixpoint on the dataflow framework.
#include "aligned/Analysis/Precision.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Analysis/DataFlow/SparseAnalysis.h"
#include "mlir/Analysis/DataFlow/Utils.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "mlir/Interfaces/LoopLikeInterface.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

static constexpr double kInfinity = std::numeric_limits<double>::infinity();
static constexpr int kPatience = 12; ///< changes of one value's state before it is taken to go on for ever

//===----------------------------------------------------------------------===//
// Forward
//===----------------------------------------------------------------------===//

/// The range that a function's argument is declared to have.
static RangeAttr declaredRange(Value value) {
  auto argument = dyn_cast<BlockArgument>(value);
  auto function = argument ? dyn_cast_or_null<FunctionOpInterface>(argument.getOwner()->getParentOp()) : FunctionOpInterface();
  return function && argument.getOwner()->isEntryBlock() ? function.getArgAttrOfType<RangeAttr>(argument.getArgNumber(), kRangeName) : RangeAttr();
}

static FloatRange rangeOf(RangeAttr declared) {
  FloatRange range = FloatRange::of(declared.getLower().convertToDouble(), declared.getUpper().convertToDouble());
  if (double nonzero = declared.getNonzero().convertToDouble(); nonzero > 0) {
    FloatRange apart = range;
    apart.least = std::max(apart.least, nonzero);
    range = range.meet(apart);
  }
  range.infinite = declared.getInfinite();
  range.nan = declared.getNan();
  return range;
}

namespace {

class RangeLattice : public dataflow::AbstractSparseLattice {
public:
  explicit RangeLattice(Value value) : AbstractSparseLattice(value) {
    if (auto format = FloatFormat::of(value.getType())) {
      most = FloatRange::all(*format);
      if (RangeAttr declared = declaredRange(value))
        most = rangeOf(declared).in(*format).meet(most);
    }
  }

  const FloatRange &get() const { return range; }
  const FloatRange &getMost() const { return most; }

  ChangeResult join(const AbstractSparseLattice &other) override { return join(static_cast<const RangeLattice &>(other).range); }
  ChangeResult join(const FloatRange &other) {
    FloatRange joined = range.join(other.meet(most));
    if (joined == range)
      return ChangeResult::NoChange;
    range = ++changes > kPatience ? most : joined; // a loop that widens it would do so for long
    return ChangeResult::Change;
  }

  void print(raw_ostream &os) const override { range.print(os); }

private:
  FloatRange range, most;
  int changes = 0;
};

class RangeAnalysis : public dataflow::SparseForwardDataFlowAnalysis<RangeLattice> {
public:
  using SparseForwardDataFlowAnalysis::SparseForwardDataFlowAnalysis;

  LogicalResult visitOperation(Operation *op, ArrayRef<const RangeLattice *> operands, ArrayRef<RangeLattice *> results) override {
    SmallVector<FloatRange> given, got(results.size());
    for (auto [lattice, value] : llvm::zip_equal(operands, op->getOperands())) {
      given.push_back(lattice->get());
      if (lattice->get().isEmpty() && FloatFormat::of(value.getType()) && !isa<linalg::LinalgOp>(op))
        return success(); // not computed so far
    }
    if (auto linalgOp = dyn_cast<linalg::LinalgOp>(op)) {
      for (unsigned i = 0; i < results.size(); ++i)
        got[i] = rangeOfResult(linalgOp, i, getProgramPointAfter(op));
    } else if (auto pad = dyn_cast<tensor::PadOp>(op); pad && pad.getConstantPaddingValue()) {
      const RangeLattice *padding = getLatticeElementFor(getProgramPointAfter(op), pad.getConstantPaddingValue());
      got[0] = given[0].join(padding->get());
    } else if (!transferRanges(op, given, got)) {
      setAllToEntryStates(results);
      return success();
    }
    for (auto [lattice, range] : llvm::zip_equal(results, got))
      propagateIfChanged(lattice, lattice->join(range));
    return success();
  }

  void setToEntryState(RangeLattice *lattice) override { propagateIfChanged(lattice, lattice->join(lattice->getMost())); }

  /// The body of a linalg op sees elements of its operands; what it has so far is what it starts from, or a part of the reduction.
  void visitNonControlFlowArguments(Operation *op, const RegionSuccessor &successor, ArrayRef<RangeLattice *> arguments, unsigned firstIndex) override {
    auto linalgOp = dyn_cast<linalg::LinalgOp>(op);
    if (!linalgOp)
      return SparseForwardDataFlowAnalysis::visitNonControlFlowArguments(op, successor, arguments, firstIndex);
    Block *body = linalgOp.getBlock();
    ProgramPoint *point = getProgramPointBefore(body);
    for (OpOperand &operand : op->getOpOperands()) {
      BlockArgument argument = linalgOp.getMatchingBlockArgument(&operand);
      RangeLattice *lattice = arguments[argument.getArgNumber()];
      FloatRange range = getLatticeElementFor(point, operand.get())->get();
      if (linalgOp.isDpsInit(&operand) && reducedValues(op) != 1) {
        Reduction reduction = reductionOf(op, argument.getArgNumber() - linalgOp.getNumDpsInputs());
        if (!reduction.combiner) {
          setToEntryState(lattice);
          continue;
        }
        range = reduced(reduction.combiner, range, getLatticeElementFor(point, reduction.addend)->get(), reducedValues(op));
      }
      propagateIfChanged(lattice, lattice->join(range));
    }
  }

private:
  FloatRange rangeOfResult(linalg::LinalgOp op, unsigned result, ProgramPoint *point) {
    Reduction reduction = reducedValues(op) == 1 ? Reduction() : reductionOf(op, result);
    if (!reduction.combiner)
      return getLatticeElementFor(point, op.getBlock()->getTerminator()->getOperand(result))->get();
    FloatRange start = getLatticeElementFor(point, op.getDpsInits()[result])->get(), addend = getLatticeElementFor(point, reduction.addend)->get();
    return start.isEmpty() || addend.isEmpty() ? FloatRange() : reduced(reduction.combiner, start, addend, reducedValues(op));
  }
};

} // namespace

//===----------------------------------------------------------------------===//
// How often
//===----------------------------------------------------------------------===//

/// How often an op runs each time that the region runs, as far as one result sees; infinity where that is unknown.
static double tripsWithin(Operation *op, Region *region) {
  double trips = 1;
  for (Operation *parent = op->getParentOp(); parent && op->getParentRegion() != region; op = parent, parent = op->getParentOp()) {
    if (isa<FunctionOpInterface>(parent))
      break;
    if (auto loop = dyn_cast<LoopLikeOpInterface>(parent)) {
      std::optional<APInt> count = loop.getStaticTripCount();
      trips *= count ? count->getLimitedValue() : kInfinity;
    } else if (isa<linalg::LinalgOp>(parent)) {
      int64_t count = reducedValues(parent); // not its magnification: what is carried adds up even where the largest is sought
      trips *= count < 0 ? kInfinity : count;
    }
  }
  return std::isnan(trips) ? 0 : trips;
}

/// Uses that a change of the value goes through.
static double usesOf(Value value) {
  double uses = 0;
  for (OpOperand &use : value.getUses())
    if (!isa<tensor::DimOp, memref::DimOp>(use.getOwner()))
      uses += tripsWithin(use.getOwner(), value.getParentRegion());
  return std::max(uses, 1.0);
}

/// How often a function runs, each time that one of the outside is called.
static double callsOf(FunctionOpInterface function, Operation *top, SmallPtrSetImpl<Operation *> &open) {
  if (!open.insert(function).second)
    return kInfinity; // it calls itself
  double calls = function.isPublic() ? 1 : 0;
  if (auto uses = SymbolTable::getSymbolUses(function, top))
    for (const SymbolTable::SymbolUse &use : *uses) {
      auto caller = use.getUser()->getParentOfType<FunctionOpInterface>();
      calls += !caller || !isa<CallOpInterface>(use.getUser()) ? kInfinity : tripsWithin(use.getUser(), &caller.getFunctionBody()) * callsOf(caller, top, open);
    }
  open.erase(function);
  return calls;
}

//===----------------------------------------------------------------------===//
// Backward
//===----------------------------------------------------------------------===//

namespace {

/// What one use leaves of slack, the least over all uses. What the value itself has is shared among them.
class SlackLattice : public dataflow::AbstractSparseLattice {
public:
  using AbstractSparseLattice::AbstractSparseLattice;

  double get() const {
    auto value = cast<Value>(getAnchor());
    return slack == kInfinity ? slack : slack / usesOf(value);
  }

  ChangeResult meet(const AbstractSparseLattice &other) override { return meet(static_cast<const SlackLattice &>(other).get()); }
  ChangeResult meet(double other) {
    if (!(other < slack))
      return ChangeResult::NoChange;
    slack = ++changes > kPatience ? 0 : other; // a loop that magnifies takes all of it in the end
    return ChangeResult::Change;
  }

  void print(raw_ostream &os) const override { os << slack; }

private:
  double slack = kInfinity;
  int changes = 0;
};

class SlackAnalysis : public dataflow::SparseBackwardDataFlowAnalysis<SlackLattice> {
public:
  SlackAnalysis(DataFlowSolver &solver, SymbolTableCollection &symbols, const DataFlowSolver &ranges)
      : SparseBackwardDataFlowAnalysis(solver, symbols), ranges(ranges) {}

  LogicalResult visitOperation(Operation *op, ArrayRef<SlackLattice *> operands, ArrayRef<const SlackLattice *> results) override {
    SmallVector<double> given, got(operands.size(), kInfinity);
    for (const SlackLattice *lattice : results)
      given.push_back(lattice->get());
    SmallVector<FloatRange> of;
    for (Value operand : op->getOperands())
      of.push_back(rangeOf(operand));
    auto linalgOp = dyn_cast<linalg::LinalgOp>(op);
    auto body = isa<linalg::YieldOp>(op) ? dyn_cast<linalg::LinalgOp>(op->getParentOp()) : linalg::LinalgOp();
    if (linalgOp && linalgOp.hasPureTensorSemantics())
      visitLinalg(linalgOp, given, got);
    else if (body && body.hasPureTensorSemantics())
      visitYield(body, op, got);
    else if (linalgOp || !transferSlacks(op, of, given, got)) // who knows what becomes of it
      got.assign(operands.size(), 0);
    for (auto [lattice, slack, value] : llvm::zip_equal(operands, got, op->getOperands()))
      if (FloatFormat::of(value.getType()))
        propagateIfChanged(lattice, lattice->meet(slack));
    return success();
  }

  /// Results of functions that are called from outside have their tolerances; calls within say the rest.
  LogicalResult visitCallableOperation(Operation *op, CallableOpInterface callable, ArrayRef<dataflow::AbstractSparseLattice *> operands) override {
    auto function = dyn_cast<FunctionOpInterface>(callable.getOperation());
    const auto *calls = getOrCreateFor<dataflow::PredecessorState>(getProgramPointAfter(op), getProgramPointAfter(callable));
    for (auto [number, operand] : llvm::enumerate(operands)) {
      auto *lattice = static_cast<SlackLattice *>(operand);
      if (!function)
        setToExitState(lattice);
      else if (function.isPublic() || !calls->allPredecessorsKnown() || function.getResultAttr(number, kToleranceName))
        propagateIfChanged(lattice, lattice->meet(toleranceOf(function, number, op->getOperand(number))));
      for (Operation *call : calls->getKnownPredecessors())
        if (number < call->getNumResults())
          propagateIfChanged(lattice, lattice->meet(slackAt(getProgramPointAfter(op), call->getResult(number))));
    }
    return success();
  }

  void visitBranchOperand(OpOperand &operand) override { setToExitState(getLatticeElement(operand.get())); }
  void visitCallOperand(OpOperand &operand) override { setToExitState(getLatticeElement(operand.get())); }
  void visitNonControlFlowArguments(RegionSuccessor &, ArrayRef<BlockArgument>) override {}
  void setToExitState(SlackLattice *lattice) override { propagateIfChanged(lattice, lattice->meet(0)); }

private:
  FloatRange rangeOf(Value value) const {
    const auto *lattice = ranges.lookupState<RangeLattice>(value);
    return lattice ? lattice->get() : FloatRange();
  }

  double toleranceOf(FunctionOpInterface function, unsigned result, Value value) const {
    std::optional<FloatFormat> format = FloatFormat::of(value.getType());
    if (auto tolerance = function.getResultAttrOfType<FloatAttr>(result, kToleranceName))
      return tolerance.getValueAsDouble();
    FloatRange range = rangeOf(value);
    if (!format || range.infinite || !(range.magnitude() < format->largest)) // nothing is known
      return 0;
    if (range.magnitude() == 0)
      return kInfinity;
    return std::ldexp(0.5, std::max(exponentOf(range.magnitude()) - format->precision + 1, format->finest));
  }

  double slackAt(ProgramPoint *point, Value value) { return getOrCreateFor<SlackLattice>(point, value)->get(); }

  void visitYield(linalg::LinalgOp op, Operation *yield, MutableArrayRef<double> slacks) {
    for (unsigned i = 0; i < slacks.size(); ++i)
      slacks[i] = reducedValues(op) == 1 || reductionOf(op, i).combiner ? slackAt(getProgramPointAfter(yield), op->getResult(i)) : 0;
  }

  /// All elements of an input that go into a result move it together.
  void visitLinalg(linalg::LinalgOp op, ArrayRef<double> results, MutableArrayRef<double> slacks) {
    double magnification = magnificationOf(op);
    for (OpOperand &operand : op->getOpOperands()) {
      BlockArgument argument = op.getMatchingBlockArgument(&operand);
      double inside = slackAt(getProgramPointAfter(op), argument);
      if (argument.use_empty())
        inside = kInfinity;
      double &slack = slacks[operand.getOperandNumber()];
      if (op.isDpsInit(&operand)) {
        unsigned result = argument.getArgNumber() - op.getNumDpsInputs();
        slack = reducedValues(op) == 1 ? inside : reductionOf(op, result).combiner ? results[result] : 0;
      } else {
        slack = inside == kInfinity ? inside : inside / magnification;
      }
    }
  }

  const DataFlowSolver &ranges;
};

} // namespace

//===----------------------------------------------------------------------===//
// Both
//===----------------------------------------------------------------------===//

PrecisionAnalysis::PrecisionAnalysis(Operation *top)
    : top(top), forward(DataFlowConfig().setInterprocedural(true)), backward(DataFlowConfig().setInterprocedural(true)) {
  dataflow::loadBaselineAnalyses(forward);
  forward.load<RangeAnalysis>();
  dataflow::loadBaselineAnalyses(backward);
  backward.load<SlackAnalysis>(symbols, forward);
}

PrecisionAnalysis::~PrecisionAnalysis() = default;

LogicalResult PrecisionAnalysis::run() {
  if (failed(forward.initializeAndRun(top)) || failed(checkCalls()))
    return failure();
  return backward.initializeAndRun(top);
}

LogicalResult PrecisionAnalysis::checkCalls() const {
  bool fits = true;
  top->walk([&](CallOpInterface call) {
    auto function = dyn_cast_or_null<FunctionOpInterface>(call.resolveCallable());
    if (!function || function.isExternal())
      return;
    for (auto [number, operand] : llvm::enumerate(call.getArgOperands())) {
      auto declared = function.getArgAttrOfType<RangeAttr>(number, kRangeName);
      FloatRange passed = rangeOf(operand);
      if (!declared || passed.isEmpty() || !::rangeOf(declared).meet(passed).isEmpty())
        continue;
      fits = false;
      std::string text;
      llvm::raw_string_ostream os(text);
      passed.print(os);
      InFlightDiagnostic diagnostic = call.emitOpError("expected operand #") << number << " within " << declared << ", got values in " << text;
      diagnostic.attachNote(function.getLoc()) << "the range of argument #" << number << " of '" << function.getName() << "' is declared here";
    }
  });
  return success(fits);
}

FloatRange PrecisionAnalysis::rangeOf(Value value) const {
  const auto *lattice = forward.lookupState<RangeLattice>(value);
  return lattice ? lattice->get() : FloatRange();
}

double PrecisionAnalysis::slackOf(Value value) const {
  const auto *lattice = backward.lookupState<SlackLattice>(value);
  double slack = lattice ? lattice->get() : kInfinity;
  Operation *owner = isa<BlockArgument>(value) ? cast<BlockArgument>(value).getOwner()->getParentOp() : value.getDefiningOp();
  auto function = isa<FunctionOpInterface>(owner) ? cast<FunctionOpInterface>(owner) : owner->getParentOfType<FunctionOpInterface>();
  if (slack == 0 || slack == kInfinity || !function)
    return slack;
  SmallPtrSet<Operation *, 4> open;
  Operation *first = isa<BlockArgument>(value) && !cast<BlockArgument>(value).getOwner()->empty() ? &cast<BlockArgument>(value).getOwner()->front() : owner;
  double instances = tripsWithin(first, &function.getFunctionBody()) * callsOf(function, top, open);
  return instances == 0 ? kInfinity : slack / instances;
}

//===----------------------------------------------------------------------===//
// Wasted bits
//===----------------------------------------------------------------------===//

/// Constants and integers, moved or not.
static bool isExact(Value value) {
  Operation *op = value.getDefiningOp();
  if (!op || op->hasTrait<OpTrait::ConstantLike>())
    return op;
  if (isa<arith::ExtFOp, vector::BroadcastOp, tensor::SplatOp, linalg::FillOp>(op))
    return isExact(op->getOperand(0));
  return isa<arith::SIToFPOp, arith::UIToFPOp>(op);
}

SmallVector<Waste> aligned::wasteOf(Operation *op, const PrecisionAnalysis &analysis) {
  SmallVector<Waste> wastes;
  auto add = [&](unsigned operand, int alignment, std::string below, std::optional<unsigned> other = {}) {
    Value value = op->getOperand(operand);
    FloatRange range = analysis.rangeOf(value);
    if (!range.hasFinite() || range.magnitude() == 0 || std::isinf(range.magnitude()))
      return;
    int top = exponentOf(range.magnitude()) + 1, finest = std::max(range.held, top - FloatFormat::of(value.getType())->precision);
    if (Waste waste{operand, finest, std::min(alignment, top), std::move(below), other}; waste.bits() > 0)
      wastes.push_back(std::move(waste));
  };
  auto held = [&](unsigned operand) { return analysis.rangeOf(op->getOperand(operand)).held; };
  auto aligns = [&](unsigned operand) { return held(operand) < FloatRange::kHeldNothing && !isExact(op->getOperand(operand)); };
  SmallVector<unsigned> addends;
  if (isa<arith::AddFOp, arith::SubFOp>(op)) {
    addends = {0, 1};
    for (unsigned i : addends)
      if (aligns(1 - i))
        add(i, held(1 - i), "the alignment of operand #" + std::to_string(1 - i), 1 - i);
  } else if (isa<math::FmaOp, vector::FMAOp>(op)) {
    addends = {0, 1, 2};
    if (aligns(0) && aligns(1))
      add(2, held(0) + held(1), "the alignment of the product of operands #0 and #1");
  } else if (isa<vector::ReductionOp, vector::MultiDimReductionOp>(op)) {
    addends = {0};
  } else if (isa<vector::ContractionOp>(op)) {
    addends = {0, 1};
  } else if (isa<AttentionOp>(op)) {
    addends = {1, 2};
  } else if (auto linalgOp = dyn_cast<linalg::LinalgOp>(op); linalgOp && reducedValues(op) != 1) {
    for (int64_t i = 0; i < linalgOp.getNumDpsInputs(); ++i)
      addends.push_back(i);
  }
  for (unsigned i : addends)
    if (FloatFormat::of(op->getOperand(i).getType()) && !isExact(op->getOperand(i)))
      if (double slack = analysis.slackOf(op->getOperand(i)); slack > 0)
        add(i, slack == kInfinity ? 1024 : exponentOf(slack), "what its uses ask for");
  return wastes;
}
