// What all kernels of decode attention share: who a block of threads works for, its arguments, caches in planes, what query rows see, and tokens kept aside (S7).
//
// A row is a kv head of one batch entry with the query rows that share it; blocks of threads that share its tokens are its splits.
//
// Over dense caches and float planes, each split leaves the maximum and the sum of its scores (Statistic) and its part of the output, and one block of threads for each
// query row joins them. StepKernel.h says what fixed planes have instead.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H

#include "Arguments.h"
#include "GpuKernel.h"

#include "../Common/Masks.h"
#include "../Common/StoredBits.h"

#include <cstddef>

namespace aligned {

/// What a split knows of its scores, and what all of a row's give together: the maximum, and the sum of e^(s - maximum).
enum Statistic { kMaximum, kSum, kStatistics };

/// A cache in planes, as the threads of a row see it.
struct PlaneCache {
  Val planes[ALIGNED_MAX_PLANES]; ///< of all rows
  Places places;                  ///< of the row's tiles
  Val capacity;                   ///< i32: tiles that there is room for
};

class DecodeKernel : public GpuKernel {
public:
  DecodeKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape, int64_t warps);

protected:
  const DecodeShape &shape;
  Val row, batch, kvHead;
  Val split, splits; ///< split: of kernels that have a block of threads for each
  Val g, t;          ///< the lane's place in a product: lane = 4 g + t
  Val tokens;        ///< i32
  Val newest;        ///< i32: tokens up to the newest query
  Sight sight;
  Softcap cap;       ///< of stages of scores in base 2
  // Of planes:
  Val tiles, seenTiles; ///< i32; seenTiles: those of which some query sees a token (A11), numbered from 0 on
  VisibleTiles visible; ///< where there is a mask

  Val argument(Argument which);
  /// This row's part of an array with `count` elements for each.
  Val ofRow(Argument which, mlir::Type element, Val count) { return e.at(argument(which), element, wide(row) * wide(count)); }
  Val ofRow(Argument which, mlir::Type element, int64_t count) { return ofRow(which, element, number(count)); }
  /// The part of split `split`, and query row h, of an array with `count` elements for each.
  Val ofSplit(Argument which, Val split, Val h, int64_t count) { return e.at(ofRow(which, e.f32(), splits * (shape.heads * count)), e.f32(), (split * shape.heads + h) * count); }
  /// Whether somebody asks for what a record argument holds.
  Val isAsked(Argument record);
  /// A cache's number, as i32.
  Val small(Argument cache, int64_t offset) { return convert(field(argument(cache), offset), e.i32()); }
  PlaneCache viewOf(Argument cache, PlanesAttr planes);
  /// The `index`th tile that some query sees.
  Val tileAt(Val index) { return shape.mask ? index + select(index < visible.sinks, number(0), visible.begin - visible.sinks) : index; }

  bool isMasked() const { return shape.mask || shape.attnMask; }
  /// The query row that a number stands for: those that pad products stand for the last one.
  Val clamped(Val h) { return min(h, number(shape.heads - 1)); }
  /// Whether a query row sees a token by position (A11).
  Val isInSight(Val h, Val token) { return isVisible(token, h % shape.queries, newest, sight); }
  /// Whether it sees it, which the operand that is a mask may deny, too (P8).
  Val isSeen(Val h, Val token);
  /// The number of the mask that is an operand (P8) for a query row and a token: f32 to add, or i8, 0 for what is hidden.
  Val maskNumber(Val h, Val token);
  /// A score, capped, with what the operand that is a mask adds.
  Val underMask(Val score, Val h, Val token);
  /// A score as the softmax takes it, of a token that is there: capped (A12), masked, and -inf where the query row does not see the token.
  Val seenScore(Val score, Val h, Val token);
  /// The logit without a value of a query row (P8).
  Val sinkLogit(Val h);

  /// Whether any token of a cache is kept aside (S7), of whatever row.
  Val hasAsides(Argument cache) { return small(cache, offsetof(aligned_cache, asides)) != 0; }
  /// Calls `body` for each of this row's tokens that are kept aside, with its number and where its values are.
  void forAsides(Argument cache, llvm::function_ref<void(Val token, Val values)> body);

  /// Those of the whole row of a query row, once all splits have theirs; the same in all lanes of the warp. A sink's logit is in both (P8).
  Vals statisticsOf(Val h);
  /// What rows of acc are multiplied by, and what is told as their maximum: 1 and that; of finished attention 1 / sum and the logarithm of the sum of e^score.
  Val shareOf(Val sum);
  Val toldOf(Val top, Val sum);

private:
  llvm::SmallVector<Argument> order;
  /// What the operand that is a mask adds to a score; -inf where it says no.
  Val addend(Val h, Val token);
};

/// Joins what splits have of a query row; a grid of query rows x rows.
void emitMerge(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitDenseScan(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNEL_H
