// What the kernels over float planes (S2) share: how values come out of planes, and which query rows a warp takes.
//
// A word of a nibble layer holds eight values, four in its low nibbles and four in its high ones: of K tokens i .. i + 3 and i + 32 .. of a channel, of V channels
// j .. j + 3 and those half a row further of a token. A lane loads a word of each layer that is read, makes eight f32 of them, and adds their products with the weights
// of all query rows of its warp. What is read of a channel or a row ends where it need not go on, and with it the loads.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H

#include "DecodeKernel.h"

namespace aligned {

constexpr int64_t kWordValues = 8;

class FloatKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;

protected:
  const int64_t streams = warps / warpsPerBlock;                            ///< blocks of tokens that are worked on at the same time
  const int64_t ownHeads = llvm::divideCeil(shape.heads, warpsPerBlock);    ///< query rows of a warp
  const int64_t headVector = std::min<int64_t>(llvm::PowerOf2Ceil(ownHeads), 4); ///< whose weights are loaded from shared memory at once
  const int64_t headRoom = llvm::alignTo(ownHeads, headVector);
  // A nibble row of V is `words` words; lanes share it, or several of them.
  const int64_t words = shape.valueDim / kWordValues, lanesPerRow = llvm::PowerOf2Ceil(words), rowsAtOnce = GpuEmitter::kWarp / lanesPerRow;

  Val sharer() { return warp & (warpsPerBlock - 1); } ///< which of the warps that share a block this is
  Val stream() { return shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))); }
  Val firstHead() { return sharer() * ownHeads; }
  Val clamped(Val h) { return min(h, number(shape.heads - 1)); }

  // Of a row of V.
  Val word() { return lane & (lanesPerRow - 1); }
  Val rowOfLane() { return shrLogical(lane, number(llvm::Log2_64(lanesPerRow))); }
  Val wordInRow() { return min(word(), number(words - 1)); }
  Val isWord() { return word() < words; }

  /// A word of each layer, `layers` of which (whole planes, at least the first) are read; `load` loads one. The others hold the midpoint of what is missing.
  Vals wordsOf(Val layers, SplitAttr split, llvm::function_ref<Val(const LayerPlace &)> load);
  /// The values in words of all layers.
  Vals valuesOf(const Vals &words, mlir::Type element);
  /// This lane's words of a row of V, from where the planes of its block lie.
  Vals rowWords(Val layers, llvm::ArrayRef<Val> planes, Val within);
  Vals planesOf(const CacheView &cache, SplitAttr split, Val block, int64_t headDim);

  /// The weights of all own query rows from a table in shared memory with `headRoom` of them in a row.
  Vals ownWeights(Shared table, Val first);
  /// sums[h][i] += weights[h] * values[i]
  void add(Vals &sums, const Vals &weights, const Vals &values);
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H
