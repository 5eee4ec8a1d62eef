// Precision alignment as an analysis of any graph (P6): which bits of which operand can't matter.
//
// Forward, every float value has a range (Range.h). Backward, it has a *slack*: how far all of its elements may be off at once without any result of a
// public function being off by more than its tolerance, the graph taken as one of real numbers and the value kept within its range. Slack is an absolute
// precision, so it compares with what a value holds: bits below both are wasted.
//
//     y = op(x, ...)     slack(x at op) = slack(y) / L        L: how much op magnifies a change of x, over all values in the operands' ranges
//     x used n times     slack(x) = least slack at a use / n  changes through several uses add up
//
// Uses in loops count once for each trip. Tolerances are what `aligned.tolerance` says, else half a unit in the last place of the result's type at the
// largest magnitude of its range.
#ifndef ALIGNED_ANALYSIS_PRECISION_H
#define ALIGNED_ANALYSIS_PRECISION_H

#include "aligned/Analysis/Range.h"

#include "mlir/Analysis/DataFlowFramework.h"
#include "mlir/IR/SymbolTable.h"

#include <memory>

namespace aligned {

class PrecisionAnalysis {
public:
  explicit PrecisionAnalysis(mlir::Operation *top);
  ~PrecisionAnalysis();

  /// Goes through the graph. Says where declared ranges contradict what calls pass.
  mlir::LogicalResult run();

  /// No values where the value is not a float, or never computed.
  FloatRange rangeOf(mlir::Value value) const;
  /// 0: nothing may be off. Infinity: nobody asks.
  double slackOf(mlir::Value value) const;

private:
  mlir::LogicalResult checkCalls() const;

  mlir::Operation *top;
  mlir::SymbolTableCollection symbols;
  mlir::DataFlowSolver forward, backward;
};

/// Bits of an operand that can't matter: those of its largest values from 2^finest up to, not including, 2^alignment.
struct Waste {
  unsigned operand;
  int finest, alignment;
  std::string below;     ///< what has this alignment
  std::optional<unsigned> other; ///< the operand that has it, if one has

  int bits() const { return alignment - finest; }
};

/// Of the operands of a sum: an addition, a reduction, a contraction, or attention. Empty for other ops. Constants and integers are exact, however few
/// bits they have, and align nobody.
llvm::SmallVector<Waste> wasteOf(mlir::Operation *op, const PrecisionAnalysis &analysis);

/// Ranges that results have for operands in given ranges. False for ops that are not known.
bool transferRanges(mlir::Operation *op, llvm::ArrayRef<FloatRange> operands, llvm::MutableArrayRef<FloatRange> results);
/// What operands may be off by, where each result may be off by a slack. False for ops that are not known.
bool transferSlacks(mlir::Operation *op, llvm::ArrayRef<FloatRange> operands, llvm::ArrayRef<double> results, llvm::MutableArrayRef<double> slacks);

/// One result of a linalg op that reduces: `combiner` puts `addend` to what was so far. No combiner: none that is known.
struct Reduction {
  mlir::Operation *combiner = nullptr;
  mlir::Value addend;
};
Reduction reductionOf(mlir::Operation *op, unsigned result);
/// How many values a reduction takes for each element of a result; negative: unknown. 1 for ops that do not reduce.
int64_t reducedValues(mlir::Operation *op);
/// How far a result of a linalg op moves where all of its addends move by 1: as many as there are in sums, 1 for the largest or the smallest.
double magnificationOf(mlir::Operation *op);
/// What a reduction makes of a start and `count` addends.
FloatRange reduced(mlir::Operation *combiner, const FloatRange &start, const FloatRange &addend, int64_t count);

} // namespace aligned

#endif // ALIGNED_ANALYSIS_PRECISION_H
