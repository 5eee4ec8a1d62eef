// What kernels of decode attention share that are not of stages: those over dense caches and over float planes.
//
// A row is a kv head of one batch entry with the query rows that share it; blocks of threads that share its tokens are its splits. Each split leaves the maximum
// and the sum of its scores (Statistic) and its part of the output, and one block of threads for each query row joins them.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H

#include "GpuKernel.h"

#include "../Common/Masks.h"

namespace aligned {

/// Arguments, the same for all kernels of an attention: those of `argumentsOf`, in its order.
enum class Argument {
  Query,              ///< [rows][query rows][key_dim]
  Key, Value,         ///< [rows][capacity][key_dim or value_dim], or aligned_cache in device memory
  Scale,              ///< f32
  Splits,             ///< i32
  Statistics,         ///< f32 [rows][splits][query rows][kStatistics]
  Partial,            ///< f32 [rows][splits][query rows][value_dim]: outputs, of dense caches relative to the split's maximum, of planes to the row's
  Acc, Max, Sum,      ///< f32 [rows][query rows][value_dim], [rows][query rows] twice: the softmax state
  SinkLogits,         ///< f32 [query heads], where the shape has them
  AttnMask,           ///< [batch or 1][query heads or 1][queries or 1][tokens], where the shape has one
  // Of dense caches:
  Lengths,            ///< i64 [batch]
  Capacity,           ///< i32
  // Of planes:
  Scores,             ///< f32 [rows][query rows][capacity], as the softmax takes them
  Tops,               ///< f32 [rows][query rows][tiles]: the largest score of each tile
  Margins,            ///< i32 [rows][query rows]: of the rule (P1)
  KeyBits, ValueBits, ///< i8 [rows][tiles][key_dim] and [rows][capacity]: bits that were read, or null where nobody asks
};
llvm::SmallVector<std::pair<Argument, mlir::Attribute>> argumentsOf(mlir::Builder &b, const DecodeShape &shape);

/// What a split knows of its scores, and what all of a row's give together: the maximum, and the sum of e^(s - maximum).
enum Statistic { kMaximum, kSum, kStatistics };

class DecodeKernel : public GpuKernel {
public:
  DecodeKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape, int64_t warps);

protected:
  const DecodeShape &shape;
  Val row, batch, kvHead, splits;
  Val g, t;   ///< the lane's place in a product: lane = 4 g + t
  Val tokens; ///< i32

  Val argument(Argument which);
  /// This row's part of an array with `count` elements for each.
  Val rowOf(Argument which, Val count, mlir::Type element = {});
  Val rowOf(Argument which, int64_t count, mlir::Type element = {}) { return rowOf(which, number(count), element); }
  /// The part of split `split`, and query row h, of an array with `count` elements for each.
  Val ofSplit(Argument which, Val split, Val h, int64_t count) { return e.at(rowOf(which, splits * (shape.heads * count)), e.f32(), (split * shape.heads + h) * count); }

  bool isMasked() const { return shape.mask || shape.attnMask; }
  /// The query row that a number stands for: those that pad products stand for the last one.
  Val clamped(Val h) { return min(h, number(shape.heads - 1)); }
  /// Whether a query row sees a token by position (A11).
  Val isInSight(Val h, Val token) { return isVisible(token, h % shape.queries, tokens, shape); }
  /// Whether it sees it, which the operand that is a mask may deny, too (P8).
  Val isSeen(Val h, Val token);
  /// A score, capped, with what the operand that is a mask adds.
  Val underMask(Val score, Val h, Val token);
  /// A score as the softmax takes it, of a token that is there: capped (A12), masked, and -inf where the query row does not see the token.
  Val seenScore(Val score, Val h, Val token);

  /// Those of the whole row of a query row, once all splits have theirs; the same in all lanes of the warp. A sink's logit is in both (P8).
  Vals statisticsOf(Val h);

private:
  llvm::SmallVector<Argument> order;
  Val addend(Val h, Val token);
};

/// Joins what splits have of a query row; a grid of query rows x rows.
void emitMerge(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitDenseScan(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H
