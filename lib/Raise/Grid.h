// Which batch entry, head and query each element of a result belongs to, and how tensors are laid out over them.
//
// A front end may list the rows of an attention as [batch * heads, queries], as [batch * kv_heads, query heads of one], or transposed behind the
// channels. All that is known is index expressions over the dimensions of the result. They are evaluated at every place, and what then
// holds everywhere is true: no layout is matched by its shape.
#ifndef ALIGNED_LIB_RAISE_GRID_H
#define ALIGNED_LIB_RAISE_GRID_H

#include "ScalarView.h"

#include "mlir/IR/ImplicitLocOpBuilder.h"

namespace aligned {

/// A tensor that an operand of attention is read from: one dimension is the channel, one (of K and V) the token, and the others have these indices.
struct Reading {
  mlir::Value tensor;
  mlir::SmallVector<int64_t> outer; ///< dimensions that are batch, heads or queries
  Index outerIndex;
  std::optional<int64_t> token;
  int64_t channel;

  mlir::RankedTensorType type() const { return mlir::cast<mlir::RankedTensorType>(tensor.getType()); }
  int64_t channels() const { return type().getDimSize(channel); }
  /// Whether this is [batch, heads, tokens or queries, head_dim] as it is.
  bool inOrder() const;
};

/// How an element is read: by `token` if that is set, and by `channel`, each by a dimension of its own and all of it.
std::optional<Reading> readingOf(ScalarTracer &tracer, const ScalarView &element, mlir::AffineExpr token, mlir::AffineExpr channel, mlir::AffineExpr valueChannel);

class Grid {
public:
  int64_t batch = 1, kvHeads = 1, heads = 1, queries = 1;
  int64_t group() const { return heads / kvHeads; }

  /// Places are all values of the result's dimensions `dims` but its channel's. False, with a reason, where extents are not static or too many.
  bool enumerate(ScalarTracer &tracer, llvm::ArrayRef<mlir::AffineExpr> dims, mlir::AffineExpr channel, std::string &reason);
  /// Batch and kv heads from how K and V are read, heads and queries from how Q is. False, with a reason, where the three don't fit together.
  bool place(const Reading &query, const Reading &key, const Reading &value, std::string &reason);

  /// An index as a function of d0 = batch, d1 = head, d2 = query, d3 = token; nothing where it is none of a few simple ones.
  std::optional<mlir::AffineExpr> fit(ScalarTracer &tracer, mlir::AffineExpr index, mlir::AffineExpr token) const;

  /// Values of the result's dimensions at this query of the first batch entry and head.
  llvm::SmallVector<int64_t> placeOf(int64_t query) const;

  /// The tensor as [batch, heads, tokens or queries, head_dim].
  mlir::Value canonical(mlir::ImplicitLocOpBuilder &b, const Reading &reading) const;
  /// Whether a transposition gives a result of this type.
  bool canLayOut(mlir::RankedTensorType type) const { return stridesIn(type).has_value(); }
  /// The result [batch, heads, queries, value_dim] of attention laid out as `type`, whose dimensions are the places' and the channel's, in their order.
  mlir::Value layOut(mlir::ImplicitLocOpBuilder &b, mlir::Value attention, mlir::RankedTensorType type) const;

private:
  std::optional<std::array<int64_t, 5>> stridesIn(mlir::RankedTensorType type) const;

  using Places = llvm::SmallVector<int64_t>; ///< of an index, its value at each place

  Places valuesOf(mlir::AffineExpr index) const;
  Places flattened(const Reading &reading, llvm::ArrayRef<unsigned> order) const;
  bool placeQueries(const Reading &query, llvm::ArrayRef<int64_t> kvPlaces);

  llvm::SmallVector<llvm::SmallVector<int64_t>> points; ///< values of all dimensions, at each place
  unsigned resultRank = 0, channelDim = 0;
  Places batches, headsAt, queriesAt;
  llvm::SmallVector<unsigned> queryOrder; ///< of the outer dimensions of Q: batch, head, query
};

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_GRID_H
