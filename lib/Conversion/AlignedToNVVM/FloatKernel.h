// What the kernels over float planes (S2) share: how values come out of planes, and which query rows a warp takes.
//
// A word of a nibble layer holds eight values, four in its low nibbles and four in its high ones: of K tokens i .. i + 3 and i + 32 .. of a channel, of V channels
// j .. j + 3 and those half a row further of a token. What is read of a channel or a row ends where it need not go on, and with it the loads: the midpoint of what is
// missing takes their place, so that a value is a float of storage again, which the tensor cores multiply as it is.
//
// The order in which a sum is taken is free. Of 16 channels (tokens of V) that a product adds, lane 4 g + t takes t, t + 4, t + 8 and t + 12, so that a warp loads
// neighbours, and of each of them word g. Pairs of the words' values, transposed, are operands of products:
//
//   scores   left   queries: row g of the result is a query row, g + 8 what its next part adds
//            right  keys: the eight tokens of word g are column g of eight products
//   values   left   values: the eight channels of word g are rows g and g + 8 of four products
//            right  weights: column g of the result is a query row, or what its second part adds
//
// Queries and weights that a float of storage can't hold are the sum of two parts. Both lie in shared memory in the order in which lanes take them; see `swizzled`.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H

#include "DecodeKernel.h"

namespace aligned {

constexpr int64_t kWordValues = 8;
constexpr int64_t kProductDepth = 16, kProductColumns = 8;
constexpr int64_t kDepthWords = kProductDepth / 2; ///< of shared memory that hold the depth of a row or column

/// In how many floats of storage a query is written, and a weight of V.
inline int64_t queryParts(const DecodeShape &shape) {
  if (shape.key.isBF16())
    return shape.query.isBF16() ? 1 : shape.query.isF16() ? 2 : 3;
  return shape.query.isF32() ? 2 : 1;
}
constexpr int64_t kWeightParts = 2;
/// What two parts leave of an f32, relative.
constexpr double kRestInF16 = 0x1p-21, kRestInBF16 = 0x1p-15;
/// Whether f16 has not the range of the queries, so that a power of two takes each row's there.
inline bool areQueriesScaled(const DecodeShape &shape) { return !shape.key.isBF16() && !shape.query.isF16(); }
/// Roundings of a half unit that an addend on the tensor cores costs, which cut what they add: all of a product, and its sum once more.
constexpr double kProductRoundings = 2 * (1 + 1.0 / kProductDepth);

class FloatKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;

protected:
  const int64_t streams = warps / warpsPerBlock;                            ///< blocks of tokens that are worked on at the same time
  const int64_t ownHeads = llvm::divideCeil(shape.heads, warpsPerBlock);    ///< query rows of a warp
  const int64_t words = shape.valueDim / kWordValues;                       ///< of a nibble row of V

  Val sharer() { return warp & (warpsPerBlock - 1); } ///< which of the warps that share a block this is
  Val stream() { return shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))); }
  Val firstHead() { return sharer() * ownHeads; }

  /// What a plane's floats are.
  mlir::Type storageOf(mlir::Type element) { return element.isBF16() ? element : e.types.getF16Type(); }
  /// Where the channels (tokens) of a product lie when those of a lane are neighbours: t + 4 i at 4 t + i. And back.
  Val swizzled(Val n) { return (n & -kProductDepth) | ((n & 3) << 2) | (shrLogical(n, number(2)) & 3); }

  /// A word of each layer, or vectors of them; `layers` of which (whole planes, at least the first) are read, by `load`. The others hold the midpoint of what is missing.
  Vals wordsOf(Val layers, PlanesAttr split, llvm::function_ref<Val(const LayerPlace &)> load);
  /// The values in words of all layers, two neighbours to a register.
  Vals pairsOf(const Vals &words);
  /// Those of words of the lane's four channels (tokens) of a product, two of these to a register: of each pair of neighbours the first of channels 0 and 1, the second
  /// of them, and both of channels 2 and 3. Where words are those of two layers, the midpoint of what is missing is added.
  std::vector<Vals> operandsOf(llvm::ArrayRef<Vals> words);
  /// Two f32 as the sum of `count` registers of two `storage`: what they begin with, which is cut and not rounded, and then the same of what is left, but the last.
  Vals partsOf(int64_t count, mlir::Type storage, Vals two);
  Vals planesOf(const CacheView &cache, PlanesAttr split, Val block, int64_t headDim);
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H
