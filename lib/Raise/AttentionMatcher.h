// softmax(scale * Q K^T) V in whatever ops a front end wrote it.
//
// The anchor is the product with V. From an element of its probabilities the matcher walks back as a scalar formula (ScalarView.h):
//
//   p = e / sum e                              or zero in rows that are hidden, behind a guard; the division may come after the product with V
//   e = exp(m * (s - shift))                   also exp2; the shift is the row's maximum, or anything that is one for all tokens, or absent
//   s = mask(softcap(factors * sum_c q k))     masks add a number, or replace the score; factors may sit on q, on k, on the product and on the mask's outside
//
// where the sum must run over the anchor's token dimension of the very same e; one token more is a sink's logit. Roundings on the way are skipped.
// Q, K and V are followed to the farthest tensors that can be read as [batch, heads, tokens, channels] (Grid.h).
#ifndef ALIGNED_LIB_RAISE_ATTENTIONMATCHER_H
#define ALIGNED_LIB_RAISE_ATTENTIONMATCHER_H

#include "Formula.h"
#include "Grid.h"
#include "Reductions.h"

namespace aligned {

/// One thing that a graph does to scores, be it scaled by what comes after it.
struct ScoreTerm {
  ScalarView view;          ///< what is added; or which scores are kept
  bool isAddend;            ///
  bool keptWhenTrue = true; ///< of a condition
  double other = 0;         ///< what the others become
  Multiplier multiplier;    ///< of an addend
};

struct Match {
  Reading query, key, value;
  Grid grid;
  mlir::AffineExpr token;
  Multiplier scale;
  std::optional<double> softcap;
  llvm::SmallVector<ScoreTerm> terms; ///< outermost first
  std::optional<ScalarView> sink;     ///< a logit without a value
  Multiplier sinkScale;
  bool maskedZero = false;
};

/// Where attention may end: in a product with V, or in the division that follows it.
struct Anchor {
  mlir::Value output;
  Contraction product;

  /// Nothing where the op is neither.
  static std::optional<Anchor> of(mlir::Operation *op);
};

class AttentionMatcher {
public:
  explicit AttentionMatcher(Anchor anchor) : tracer(anchor.output.getContext()), anchor(anchor) {}

  /// The match, or the reason why there is none; no reason where the anchor does not look like attention at all.
  std::optional<Match> match(std::string &reason);

  ScalarTracer tracer;

private:
  /// An operand as it may be read, and what it is multiplied by on the way.
  struct Candidate {
    Reading reading;
    Multiplier multiplier;
  };
  /// exp(multiplier * (scores - shifts))
  struct Exponential {
    ScalarView scores;
    llvm::SmallVector<ScalarView> shifts, views; ///< the latter before each step
    Multiplier multiplier;
  };

  bool fail(const llvm::Twine &why) {
    reason = why.str();
    return false;
  }
  bool matchAnchor();
  bool matchProbability(ScalarView probability, std::optional<ScalarView> divisor);
  bool matchDivisor(ScalarView divisor, const ScalarView &weight);
  bool matchSink(const Reduction &sum, const ScalarView &weight);
  bool matchSoftmaxOp(mlir::linalg::SoftmaxOp softmax, const ScalarView &probability);
  bool matchGuards();
  bool matchShifts();
  bool matchReplacedSum();
  bool neverHolds(ScalarView condition, bool zeroWhenTrue);
  bool matchScores(ScalarView score, Multiplier multiplier);
  bool matchProduct(const ScalarView &score, const Multiplier &multiplier);
  bool matchFactor(ScalarView &view, Multiplier &multiplier);
  bool matchLayout(llvm::ArrayRef<Candidate> queries, llvm::ArrayRef<Candidate> keys, llvm::ArrayRef<Candidate> values);

  std::optional<Exponential> splitExponential(const ScalarView &weight, size_t shifts);
  std::optional<bool> saysHidden(ScalarView condition, const ScalarView &probability);
  std::optional<bool> saysMinusInfinity(ScalarView condition, mlir::AffineExpr dim);
  bool isScore(const ScalarView &view, mlir::AffineExpr dim);
  bool isFinite(ScalarView shift);
  bool isShift(ScalarView view);
  bool leadsToProduct(ScalarView view);
  bool isUniform(ScalarView view);
  bool isOverTokens(const Reduction &reduction) { return reduction.extent == tokens; }
  std::vector<Candidate> follow(ScalarView view, mlir::AffineExpr row, mlir::AffineExpr channel, llvm::StringRef name, bool scaled);

  Anchor anchor;
  Match found;
  std::string reason;
  Index results; ///< dimensions of the anchor's result
  mlir::AffineExpr token, valueChannel;
  int64_t tokens = 0; ///< extent of `token`
  std::vector<Candidate> queries, keys;
  /// Scores before or after a factor, and how many masks are outside of them.
  struct Stage {
    ScalarView view;
    size_t terms;
  };
  llvm::SmallVector<Stage> stages;
  llvm::SmallVector<std::pair<ScalarView, std::pair<ScalarView, bool>>> guards; ///< a guarded probability; its condition, and whether that is true of hidden rows
  llvm::SmallVector<ScalarView> shifts; ///< what is taken off scores
  llvm::SmallVector<ScalarView> shifted, shiftedWithSink; ///< scores before that, of a token; and of a token or the sink that `sinkDim` stands for
  mlir::AffineExpr sinkDim;
  bool replacesZeroSum = false;
};

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_ATTENTIONMATCHER_H
