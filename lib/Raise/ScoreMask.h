// What a graph adds to scores, as `aligned.attention` says it: nothing, an attribute, or an operand.
//
// A mask that is computed of positions alone is a table that the compiler can fill in; where #aligned.mask gives the same table, it is said
// so. Everything else is an operand: the graph's own tensor where it has the right form, and a formula written anew where not.
#ifndef ALIGNED_LIB_RAISE_SCOREMASK_H
#define ALIGNED_LIB_RAISE_SCOREMASK_H

#include "AttentionMatcher.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

namespace aligned {

class ScoreMask {
public:
  /// False, with a reason, where a term depends on something that is no function of batch, head, query and token.
  bool plan(ScalarTracer &tracer, const Match &match, std::string &reason);

  MaskAttr attribute;
  /// The operand attn_mask; null for none. `key` tells the number of tokens.
  mlir::Value write(mlir::ImplicitLocOpBuilder &b, mlir::Value key);
  /// How the mask is said, in a word.
  std::string describe() const;

private:
  void flatten(const ScoreTerm &term);
  bool foldTable();
  std::optional<double> scoreAt(llvm::ArrayRef<int64_t> dims);
  mlir::Value writeAsItIs(mlir::ImplicitLocOpBuilder &b, const ScalarView &view);
  mlir::Value writeFormula(mlir::ImplicitLocOpBuilder &b, mlir::Value key);
  bool isBoolean() const;

  ScalarTracer *tracer = nullptr;
  const Match *match = nullptr;
  llvm::SmallVector<ScoreTerm> terms; ///< outermost first
  llvm::SmallBitVector used = llvm::SmallBitVector(4);
};

/// The logits without values, one for each query head; null for none.
mlir::Value writeSinks(mlir::ImplicitLocOpBuilder &b, ScalarTracer &tracer, const Match &match);
/// The factors that a front end spread over Q, K and the scores, as one f32 value.
mlir::Value writeScale(mlir::ImplicitLocOpBuilder &b, ScalarTracer &tracer, const Match &match);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_SCOREMASK_H
