// What all ops that say attention by name have in common: how attention is written down while such an op is read, and how that is built or taken back.
//
// Foreign ops are known by name alone, their dialects are not linked. So nothing has verified them: a reader checks operands, types and attributes itself,
// and refuses with a reason what it was not made for. It may build as it reads; what was built for an op that is refused in the end is erased again.
#ifndef ALIGNED_LIB_RAISE_NAMEDOPS_H
#define ALIGNED_LIB_RAISE_NAMEDOPS_H

#include "../Shapes.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

#include <optional>
#include <string>

namespace aligned {

/// What a query sees by where it stands: query i at position p = offset + i sees token t if t <= p where `causal`, p - t <= left, t - p <= right, and t is
/// below the length of its batch entry. Lengths also say where queries stand: offset = length - queries.
struct Positions {
  bool causal = false;
  int64_t left = -1, right = -1; ///< -1: no bound
  mlir::Value offset;            ///< index; null: 0
  bool newest = false;           ///< the queries are known to be the newest tokens
  mlir::Value lengths;           ///< [batch]; null: all tokens

  bool bounded() const { return causal || left >= 0 || right >= 0; }
};

/// Attention as an op says it, brought to the layout [batch, heads, tokens or queries, head_dim].
struct NamedAttention {
  mlir::Value query, key, value;
  mlir::Value scale; ///< f32; null: 1 / sqrt(head_dim)
  mlir::Value mask;  ///< of any rank that broadcasts from the right; null: none
  double softcap = 0;
  Positions positions;
  bool maskedZero = false;
  mlir::Type element; ///< of the result
};

/// What stands for an op's results; none where the draft refuses. A result that nobody reads may be left out.
using Results = std::optional<llvm::SmallVector<mlir::Value>>;

/// No value and no results, for `return draft.refuse(...)`.
struct Refusal {
  operator mlir::Value() const { return {}; }
  operator Results() const { return std::nullopt; }
};

/// The way from one foreign op to ops that are known. Where `reason` is set the op is refused.
class Draft : mlir::OpBuilder::Listener {
public:
  /// Builds ahead of `op`.
  explicit Draft(mlir::Operation *op);
  /// Builds at the end of a block, which whoever owns it erases.
  Draft(mlir::Location loc, mlir::Block *block);

  Refusal refuse(const llvm::Twine &why);
  /// Erases what was built.
  void undo();

  mlir::RankedTensorType typeOf(mlir::Value value) const { return mlir::cast<mlir::RankedTensorType>(value.getType()); }
  mlir::Value number(double value); ///< f32
  mlir::Value index(int64_t value);
  mlir::OpFoldResult extent(mlir::Value tensor, int64_t dim);
  /// A ranked tensor without an encoding; else refuses.
  bool isTensor(mlir::Value value, const llvm::Twine &name);
  /// The value in a type of the same elements and compatible shape; else refuses.
  mlir::Value cast(mlir::Value value, mlir::Type type);
  /// Dimension d of the result is dimension `permutation[d]` of the value.
  mlir::Value transpose(mlir::Value value, llvm::ArrayRef<int64_t> permutation) { return transposed(b, value, permutation); }
  /// Dimension d of the result is the next `counts[d]` dimensions of the value in one; 1 where that is none. The last count is above 0.
  mlir::Value group(mlir::Value value, llvm::ArrayRef<int64_t> counts);
  /// The way back, to dimensions of these extents.
  mlir::Value ungroup(mlir::Value value, llvm::ArrayRef<int64_t> counts, llvm::ArrayRef<int64_t> shape);
  /// A static shape's elements in another static shape, in order.
  mlir::Value reshape(mlir::Value value, llvm::ArrayRef<int64_t> shape);

  /// `aligned.attention`, or null where it can't say that.
  mlir::Value attend(const NamedAttention &attention);

  mlir::ImplicitLocOpBuilder b;
  std::string reason;
  llvm::SmallVector<AttentionOp> attentions; ///< that were built

private:
  void notifyOperationInserted(mlir::Operation *op, mlir::OpBuilder::InsertPoint previous) override;
  /// A mask of rank 4, with a 1 for each dimension ahead of the value's.
  mlir::Value expandMask(mlir::Value mask);
  /// The mask and what positions and lengths hide, in one.
  mlir::Value maskOf(const NamedAttention &attention, mlir::Value mask);

  mlir::Block *block;
  llvm::SmallVector<mlir::Operation *> built;
};

/// An attribute of an op that nobody has registered, whether its text has it among properties or behind them; null where there is none.
mlir::Attribute attributeOf(mlir::Operation *op, llvm::StringRef name);
/// A type in a message.
std::string textOf(mlir::Type type);

/// False, with a reason in the draft, where an op has an attribute that is not listed.
bool expectAttributes(Draft &draft, mlir::Operation *op, llvm::ArrayRef<llvm::StringRef> known);

/// onnx.Attention of opsets 23 to 25.
Results raiseOnnxAttention(Draft &draft, mlir::Operation *op);

/// Where a function is made of torch's tensor types and ops: the same function over tensors, in its place. Whole or not at all; false with a remark where not.
/// Functions without them are left alone. Attentions that were raised are appended to `raised`.
bool raiseTorchFunction(mlir::func::FuncOp function, llvm::SmallVectorImpl<AttentionOp> &raised);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_NAMEDOPS_H
