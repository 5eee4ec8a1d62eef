// What each op does to ranges, forward, and to slack, backward.
#include "aligned/Analysis/Precision.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

static constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Results are elements of operands, in some place.
static bool isMove(Operation *op) {
  return isa<tensor::ExtractOp, tensor::InsertOp, tensor::ExtractSliceOp, tensor::InsertSliceOp, tensor::ParallelInsertSliceOp, tensor::CollapseShapeOp,
             tensor::ExpandShapeOp, tensor::ReshapeOp, tensor::CastOp, tensor::ConcatOp, tensor::FromElementsOp, tensor::SplatOp, tensor::GatherOp,
             vector::BroadcastOp, vector::ExtractOp, vector::InsertOp, vector::ExtractStridedSliceOp, vector::InsertStridedSliceOp, vector::ShapeCastOp,
             vector::TransposeOp, vector::ShuffleOp, vector::FromElementsOp, vector::ToElementsOp, vector::InterleaveOp, vector::DeinterleaveOp,
             vector::TransferReadOp, memref::CastOp, memref::SubViewOp, memref::CollapseShapeOp, memref::ExpandShapeOp, memref::ReinterpretCastOp,
             memref::TransposeOp, memref::LoadOp, AppendOp, PackOp, UnpackOp>(op) ||
         (isa<vector::TransferWriteOp>(op) && op->getNumResults() == 1);
}

static FloatFormat formatOf(Value value) { return *FloatFormat::of(value.getType()); }

//===----------------------------------------------------------------------===//
// Reductions
//===----------------------------------------------------------------------===//

int64_t aligned::reducedValues(Operation *op) {
  int64_t count = 1;
  auto times = [&](int64_t extent) { count = count < 0 || ShapedType::isDynamic(extent) ? -1 : count * extent; };
  if (auto linalgOp = dyn_cast<linalg::LinalgOp>(op)) {
    SmallVector<int64_t> extents = linalgOp.getStaticLoopRanges();
    for (auto [kind, extent] : llvm::zip_equal(linalgOp.getIteratorTypesArray(), extents))
      if (kind != utils::IteratorType::parallel)
        times(extent);
  } else if (auto contract = dyn_cast<vector::ContractionOp>(op)) {
    SmallVector<int64_t, 4> extents;
    contract.getIterationBounds(extents);
    for (auto [kind, extent] : llvm::zip_equal(contract.getIteratorTypesArray(), extents))
      if (kind == vector::IteratorType::reduction)
        times(extent);
  } else if (auto reduction = dyn_cast<vector::ReductionOp>(op)) {
    times(reduction.getSourceVectorType().getNumElements());
  } else if (auto reduction = dyn_cast<vector::MultiDimReductionOp>(op)) {
    for (int64_t dim : reduction.getReductionDims())
      times(reduction.getSourceVectorType().getDimSize(dim));
  }
  return count;
}

Reduction aligned::reductionOf(Operation *op, unsigned result) {
  auto linalgOp = cast<linalg::LinalgOp>(op);
  Block *body = linalgOp.getBlock();
  Value so = body->getArgument(linalgOp.getNumDpsInputs() + result);
  Operation *combiner = body->getTerminator()->getOperand(result).getDefiningOp();
  if (!combiner || !isa<arith::AddFOp, arith::MaximumFOp, arith::MaxNumFOp, arith::MinimumFOp, arith::MinNumFOp>(combiner) || !so.hasOneUse() ||
      *so.getUsers().begin() != combiner)
    return {};
  return {combiner, combiner->getOperand(combiner->getOperand(0) == so ? 1 : 0)};
}

double aligned::magnificationOf(Operation *op) {
  int64_t count = reducedValues(op);
  double most = 1;
  for (unsigned i = 0; count != 1 && i < op->getNumResults(); ++i) {
    Operation *combiner = reductionOf(op, i).combiner;
    most = std::max(most, !combiner || (isa<arith::AddFOp>(combiner) && count < 0) ? kInfinity : isa<arith::AddFOp>(combiner) ? static_cast<double>(count) : 1);
  }
  return most;
}

FloatRange aligned::reduced(Operation *combiner, const FloatRange &start, const FloatRange &addend, int64_t count) {
  if (isa<arith::AddFOp>(combiner))
    return sum(start, addend, count, formatOf(combiner->getResult(0)));
  FloatRange once;
  transferRanges(combiner, {start, addend}, once);
  return start.join(once);
}

static bool isSum(vector::CombiningKind kind) { return kind == vector::CombiningKind::ADD; }
static bool isChoice(vector::CombiningKind kind) {
  return kind == vector::CombiningKind::MAXIMUMF || kind == vector::CombiningKind::MAXNUMF || kind == vector::CombiningKind::MINIMUMF ||
         kind == vector::CombiningKind::MINNUMF;
}

/// Of a vector reduction; no start: an empty range.
static FloatRange reducedBy(vector::CombiningKind kind, const FloatRange &start, const FloatRange &addend, int64_t count, const FloatFormat &format) {
  if (isSum(kind))
    return start.isEmpty() ? sum(FloatRange::of(0, 0), addend, count, format) : sum(start, addend, count, format);
  return isChoice(kind) ? start.join(addend) : FloatRange::all(format);
}

//===----------------------------------------------------------------------===//
// Forward
//===----------------------------------------------------------------------===//

/// Library functions err by a few units in the last place, at most this share of the result.
static double libraryShare(const FloatFormat &format) { return std::ldexp(4.0, -format.precision); }

static FloatRange rangeOfConstant(Attribute value, const FloatFormat &format) {
  if (auto number = dyn_cast<FloatAttr>(value))
    return FloatRange::constant(number.getValue());
  auto elements = dyn_cast<DenseFPElementsAttr>(value);
  if (!elements)
    return FloatRange::all(format);
  if (elements.isSplat())
    return FloatRange::constant(elements.getSplatValue<APFloat>());
  FloatRange range;
  for (APFloat element : elements)
    range = range.join(FloatRange::constant(element));
  return range;
}

static FloatRange rangeOfInteger(Type type, bool isSigned) {
  auto integer = dyn_cast<IntegerType>(getElementTypeOrSelf(type));
  int width = integer ? integer.getWidth() : 64;
  FloatRange range = isSigned ? FloatRange::of(-std::ldexp(1.0, width - 1), std::ldexp(1.0, width - 1)) : FloatRange::of(0, std::ldexp(1.0, width));
  return range.meet([&] {
    FloatRange integers = range;
    integers.held = 0;
    return integers;
  }());
}


bool aligned::transferRanges(Operation *op, ArrayRef<FloatRange> operands, MutableArrayRef<FloatRange> results) {
  if (isMove(op)) {
    FloatRange range;
    for (auto [operand, value] : llvm::zip_equal(operands, op->getOperands()))
      if (FloatFormat::of(value.getType()))
        range = range.join(operand);
    for (auto [result, value] : llvm::zip_equal(results, op->getResults()))
      if (auto format = FloatFormat::of(value.getType()))
        result = range.in(*format);
    return true;
  }
  if (op->getNumResults() != 1 && !isa<AttentionOp>(op))
    return false;
  std::optional<FloatFormat> format = FloatFormat::of(op->getResult(0).getType());
  if (!format)
    return true; // nothing to say
  FloatRange &result = results[0];
  auto is = [&](const FloatRange &range) {
    result = range.in(*format);
    return true;
  };
  auto grows = [&](double (*function)(double), const FloatRange *domain = nullptr) { return is(rising(operands[0], function, libraryShare(*format), domain)); };
  const FloatRange positive = FloatRange::of(0, kInfinity), aboveMinusOne = FloatRange::of(-1, kInfinity);
  return TypeSwitch<Operation *, bool>(op)
      .Case([&](arith::ConstantOp constant) { return is(rangeOfConstant(constant.getValue(), *format)); })
      .Case([&](arith::AddFOp) { return is(operands[0] + operands[1]); })
      .Case([&](arith::SubFOp) { return is(operands[0] - operands[1]); })
      .Case([&](arith::MulFOp) { return is(operands[0] * operands[1]); })
      .Case([&](arith::DivFOp) { return is(operands[0] / operands[1]); })
      .Case([&](arith::NegFOp) { return is(-operands[0]); })
      .Case([&](arith::MaximumFOp) { return is(maximum(operands[0], operands[1], /*number=*/false)); })
      .Case([&](arith::MinimumFOp) { return is(minimum(operands[0], operands[1], /*number=*/false)); })
      .Case([&](arith::MaxNumFOp) { return is(maximum(operands[0], operands[1], /*number=*/true)); })
      .Case([&](arith::MinNumFOp) { return is(minimum(operands[0], operands[1], /*number=*/true)); })
      .Case<arith::ExtFOp, arith::TruncFOp>([&](auto) { return is(operands[0]); })
      .Case([&](arith::SIToFPOp convert) { return is(rangeOfInteger(convert.getIn().getType(), true)); })
      .Case([&](arith::UIToFPOp convert) { return is(rangeOfInteger(convert.getIn().getType(), false)); })
      .Case([&](arith::SelectOp) { return is(operands[1].join(operands[2])); })
      .Case<math::FmaOp, vector::FMAOp>([&](auto) { return is(operands[0] * operands[1] + operands[2]); })
      .Case([&](math::AbsFOp) { return is(abs(operands[0])); })
      .Case([&](math::ClampFOp) { return is(minimum(maximum(operands[0], operands[1], false), operands[2], false)); })
      .Case([&](math::ExpOp) { return grows(std::exp); })
      .Case([&](math::Exp2Op) { return grows(std::exp2); })
      .Case([&](math::ExpM1Op) { return grows(std::expm1); })
      .Case([&](math::LogOp) { return grows(std::log, &positive); })
      .Case([&](math::Log2Op) { return grows(std::log2, &positive); })
      .Case([&](math::Log1pOp) { return grows(std::log1p, &aboveMinusOne); })
      .Case([&](math::SqrtOp) { return grows(std::sqrt, &positive); })
      .Case([&](math::RsqrtOp) {
        return is((FloatRange::of(1, 1) / rising(operands[0], std::sqrt, 0x1p-50, &positive)).within(libraryShare(*format)));
      })
      .Case([&](math::TanhOp) { return grows(std::tanh); })
      .Case([&](math::ErfOp) { return grows(std::erf); })
      .Case([&](math::AtanOp) { return grows(std::atan); })
      .Case<math::SinOp, math::CosOp>([&](auto) {
        FloatRange range = FloatRange::of(-1, 1);
        range.nan = operands[0].nan || operands[0].infinite;
        return is(operands[0].isEmpty() ? FloatRange() : range);
      })
      .Case([&](vector::ReductionOp reduction) {
        return is(reducedBy(reduction.getKind(), operands.size() > 1 ? operands[1] : FloatRange(), operands[0], reducedValues(op), *format));
      })
      .Case([&](vector::MultiDimReductionOp reduction) { return is(reducedBy(reduction.getKind(), operands[1], operands[0], reducedValues(op), *format)); })
      .Case([&](vector::ContractionOp contract) { return is(reducedBy(contract.getKind(), operands[2], operands[0] * operands[1], reducedValues(op), *format)); })
      .Case([&](AttentionOp attention) {
        // A mean of rows of V, whose weights add up to 1 but for rounding, and for what a policy errs.
        auto key = cast<RankedTensorType>(attention.getKey().getType());
        auto query = cast<RankedTensorType>(attention.getQuery().getType());
        // Where tokens are fewer than queries, the first of these see none.
        bool seesNothing = attention.getMask() && attention.getMask()->getCausal() && (query.isDynamicDim(2) || key.getDimSize(2) < query.getDimSize(2));
        FloatRange range = FloatRange::of(operands[2].lower, operands[2].upper).within(0x1p-6);
        range.nan |= operands[0].nan || operands[0].infinite || operands[1].nan || operands[1].infinite || operands[3].nan || operands[3].infinite ||
                     operands[2].infinite || key.isDynamicDim(2) || key.getDimSize(2) == 0 || seesNothing; // no tokens: 0 / 0
        if (attention.getMaskedZero())
          range = range.join(FloatRange::constant(llvm::APFloat(0.0)));
        for (auto [certificate, value] : llvm::zip_equal(results.drop_front(), op->getResults().drop_front()))
          certificate = value ? FloatRange::all(*FloatFormat::of(value.getType())) : FloatRange();
        return is(range);
      })
      .Default([](Operation *) { return false; });
}

//===----------------------------------------------------------------------===//
// Backward
//===----------------------------------------------------------------------===//

/// slack / magnification, where both may be 0 or infinite. What can't magnify leaves any slack.
static double through(double slack, double magnification) {
  if (magnification == 0 || slack == kInfinity)
    return kInfinity;
  if (std::isnan(magnification) || magnification == kInfinity)
    return 0;
  double quotient = slack / magnification;
  return std::fma(quotient, magnification, -slack) > 0 ? std::nextafter(quotient, 0.0) : quotient; // never more
}

bool aligned::transferSlacks(Operation *op, ArrayRef<FloatRange> operands, ArrayRef<double> results, MutableArrayRef<double> slacks) {
  double slack = kInfinity;
  for (double each : results)
    slack = std::min(slack, each);
  auto isFloat = [&](unsigned number) { return FloatFormat::of(op->getOperand(number).getType()).has_value(); };
  /// Each operand is magnified by this much.
  auto by = [&](std::initializer_list<double> magnifications) {
    for (auto [number, magnification] : llvm::enumerate(magnifications))
      slacks[number] = through(slack, magnification);
    return true;
  };
  if (isMove(op)) {
    for (auto [number, each] : llvm::enumerate(slacks))
      each = isFloat(number) ? slack : kInfinity;
    return true;
  }
  auto size = [&](unsigned number) { return operands[number].nan ? kInfinity : operands[number].magnitude(); };
  auto near = [&](unsigned number) { return operands[number].smallest(); };
  double count = reducedValues(op);
  if (count < 0)
    count = kInfinity;
  return TypeSwitch<Operation *, bool>(op)
      .Case<tensor::DimOp, memref::DimOp>([&](auto) { return by({0}); })
      .Case<arith::AddFOp, arith::SubFOp, arith::MaximumFOp, arith::MinimumFOp, arith::MaxNumFOp, arith::MinNumFOp>([&](auto) { return by({1, 1}); })
      .Case<arith::NegFOp, arith::ExtFOp, arith::TruncFOp, math::AbsFOp, math::TanhOp, math::SinOp, math::CosOp, math::AtanOp>([&](auto) { return by({1}); })
      .Case([&](arith::MulFOp) { return by({size(1), size(0)}); })
      .Case([&](arith::DivFOp) {
        // |a / b - a / b'| = |a| |b - b'| / |b b'|
        return operands[1].infinite || operands[1].nan ? by({kInfinity, kInfinity}) : by({1 / near(1), size(0) / near(1) / near(1)});
      })
      .Case([&](arith::SelectOp) { return by({0, 1, 1}); })
      .Case<arith::SIToFPOp, arith::UIToFPOp>([&](auto) { return by({0}); })
      .Case<math::FmaOp, vector::FMAOp>([&](auto) { return by({size(1), size(0), 1}); })
      .Case([&](math::ClampFOp) { return by({1, 1, 1}); })
      .Case([&](math::ExpOp) { return by({operands[0].nan || operands[0].infinite ? kInfinity : std::exp(operands[0].upper)}); })
      .Case([&](math::Exp2Op) { return by({operands[0].nan || operands[0].infinite ? kInfinity : M_LN2 * std::exp2(operands[0].upper)}); })
      .Case([&](math::ExpM1Op) { return by({operands[0].nan || operands[0].infinite ? kInfinity : std::exp(operands[0].upper)}); })
      .Case([&](math::LogOp) { return by({operands[0].lower > 0 && !operands[0].infinite ? 1 / operands[0].lower : kInfinity}); })
      .Case([&](math::Log2Op) { return by({operands[0].lower > 0 && !operands[0].infinite ? 1 / (M_LN2 * operands[0].lower) : kInfinity}); })
      .Case([&](math::Log1pOp) { return by({operands[0].lower > -1 && !operands[0].infinite ? 1 / (1 + operands[0].lower) : kInfinity}); })
      .Case([&](math::ErfOp) { return by({M_2_SQRTPI}); })
      .Case([&](math::SqrtOp) {
        // Near 0 it magnifies without bound. That sqrt(x') - sqrt(x) is at most sqrt(x' - x) does not help: half a change makes more than half of that.
        return by({operands[0].lower < 0 || operands[0].nan || operands[0].infinite ? kInfinity : 0.5 / std::sqrt(near(0))});
      })
      .Case([&](math::RsqrtOp) {
        return by({operands[0].lower > 0 && !operands[0].nan && !operands[0].infinite ? 0.5 / (operands[0].lower * std::sqrt(operands[0].lower)) : kInfinity});
      })
      .Case([&](vector::ReductionOp reduction) {
        double each = isSum(reduction.getKind()) ? count : isChoice(reduction.getKind()) ? 1 : kInfinity;
        slacks[0] = through(slack, each);
        if (slacks.size() > 1)
          slacks[1] = through(slack, std::min(each, 1.0) == 1 && each < kInfinity ? 1 : kInfinity);
        return true;
      })
      .Case([&](vector::MultiDimReductionOp reduction) {
        bool known = isSum(reduction.getKind()) || isChoice(reduction.getKind());
        return by({isSum(reduction.getKind()) ? count : known ? 1 : kInfinity, known ? 1 : kInfinity});
      })
      .Case([&](vector::ContractionOp contract) {
        if (!isSum(contract.getKind()) && !isChoice(contract.getKind()))
          return by({kInfinity, kInfinity, kInfinity});
        double times = isSum(contract.getKind()) ? count : 1;
        return by({times * size(1), times * size(0), 1});
      })
      .Case([&](AttentionOp attention) {
        // The output is a mean of rows of V weighted by softmax: scores that are off by b move it by at most b times the mean distance of V from
        // its mean, which is at most half the width of V's range.
        double spread = operands[2].isBounded() ? (operands[2].upper - operands[2].lower) / 2 : kInfinity;
        double dim = cast<RankedTensorType>(attention.getKey().getType()).getDimSize(3);
        if (dim < 0)
          dim = kInfinity;
        return by({dim * size(3) * size(1) * spread, dim * size(3) * size(0) * spread, 1, dim * size(0) * size(1) * spread});
      })
      .Default([](Operation *) { return false; });
}
