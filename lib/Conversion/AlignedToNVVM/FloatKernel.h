// What the kernels over float planes (S8) share: how values come out of planes, and which query rows a warp takes.
//
// A word of a layer of 4 bits holds eight values (Layout.h), four in its low halves and four in its high ones: of K tokens i .. i + 3 and i + 32 .. of a channel, of V
// channels j .. j + 3 and those half a row further of a token. What is read of a channel or a row ends where it need not go on, and with it the loads: the midpoint of what
// is missing takes their place, so that a value is a half or a bfloat16 again, which the tensor cores multiply as it is.
//
// The order in which a sum is taken is free. Of 16 channels (tokens of V) that a product adds, lane 4 g + t takes t, t + 4, t + 8 and t + 12, so that a warp loads
// neighbours, and of each of them word g. Pairs of the words' values, transposed, are operands of products:
//
//   scores   left   queries: row g of the result is a query row, g + 8 what its second part adds
//            right  keys: the eight tokens of word g are column g of eight products
//   values   left   values: the eight channels of word g are rows g and g + 8 of four products
//            right  weights: column g of the result is a query row, or what its second part adds
//
// Queries and weights that one half or bfloat16 can't hold are the sum of two. Both lie in shared memory in the order in which lanes take them; see `swizzled`.
//
// Planes hold what is finite, also behind the last token of the last tile and where tokens are kept aside: a weight of 0 is enough to leave that out.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H

#include "DecodeKernel.h"

#include "../Common/HeadPolicies.h"
#include "../Common/Numerics.h"

namespace aligned {

constexpr int64_t kWordValues = 8;
constexpr int64_t kProductDepth = 16, kProductColumns = 8;
constexpr int64_t kDepthWords = kProductDepth / 2; ///< of shared memory that hold the depth of a row or column
constexpr int64_t kWeightParts = 2;                ///< of a weight of V

struct FloatCache : PlaneCache {
  Val layers;     ///< i32: of 4 bits, that may be read
  Val channelMax; ///< of this row
};

class FloatKernel : public DecodeKernel {
public:
  FloatKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape) : FloatKernel(program, name, shape, warpsFor(shape)) {}
  FloatKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape, int64_t warps);

protected:
  const int64_t sharers = std::min<int64_t>(warps, llvm::PowerOf2Ceil(llvm::divideCeil(shape.heads, kProductColumns))); ///< warps that take the same tiles, and query rows of their own
  const int64_t streams = warps / sharers;                         ///< tiles that are worked on at the same time
  const int64_t ownHeads = llvm::divideCeil(shape.heads, sharers); ///< query rows of a warp
  const int64_t words = shape.valueDim / kWordValues;              ///< of a layer of a row of V

  FloatCache key, value;
  HeadPolicies policies;

  Val sharer() { return warp & (sharers - 1); }
  Val stream() { return shrLogical(warp, number(llvm::Log2_64(sharers))); }
  Val firstHead() { return sharer() * ownHeads; }
  /// Waits for the warps that share this one's tiles, and for all lanes.
  void meetSharers();

  /// Tiles of this split, by their numbers: first and end.
  std::pair<Val, Val> stretch();
  /// Whether a token is in one of them.
  Val isOfSplit(Val token);

  /// A query row's part of an array with as many numbers for each row as the key cache has room for tokens, or tiles.
  Val ofHead(Argument which, Val h, Val count) { return e.at(ofRow(which, e.f32(), wide(count) * shape.heads), e.f32(), wide(h) * wide(count)); }
  Val scoresOf(Val h) { return ofHead(Argument::Scores, h, key.capacity * kTile); }
  Val topsOf(Val h) { return ofHead(Argument::Tops, h, key.capacity); }
  /// Query rows as f32. One that is not finite is NaN: it makes its row NaN.
  Val queryAt(Val h, Val channel);

  /// What a plane's values are.
  mlir::Type storageOf(mlir::Type element) { return element.isBF16() ? element : e.types.getF16Type(); }
  /// Where the channels (tokens) of a product lie when those of a lane are neighbours: t + 4 i at 4 t + i. And back.
  Val swizzled(Val n) { return (n & -kProductDepth) | ((n & 3) << 2) | (shrLogical(n, number(2)) & 3); }
  Vals planesOf(const FloatCache &cache, PlanesAttr planes, Val tile, int64_t headDim);
  /// A word of each layer, or vectors of them; `layers` of which (whole planes, at least the first) are read, by `load`. The others hold the midpoint of what is missing.
  Vals wordsOf(Val layers, PlanesAttr planes, llvm::function_ref<Val(const LayerPlace &)> load);
  /// The values in words of all layers, two neighbours to a register.
  Vals pairsOf(const Vals &words);
  /// Those of words of the lane's four channels (tokens) of a product, two of these to a register: of each pair of neighbours the first of channels 0 and 1, the second
  /// of them, and both of channels 2 and 3. Where words are those of two layers, the midpoint of what is missing is added.
  std::vector<Vals> operandsOf(llvm::ArrayRef<Vals> words);
  /// Two f32 as `count` registers of two `storage`, 1 or 2, whose sum they are: the first is cut and not rounded, the second holds what it leaves.
  Vals partsOf(int64_t count, mlir::Type storage, Vals two);

private:
  static int64_t warpsFor(const DecodeShape &shape) { return shape.heads > (std::max(shape.keyDim, shape.valueDim) > 128 ? 8 : 16) ? 8 : 4; }
  FloatCache floatViewOf(Argument cache, PlanesAttr planes, int64_t headDim);
  /// The upper (or lower) two layers of a word as bytes, for its low and its high halves.
  std::pair<Val, Val> bytesOf(Val upper, Val lower);
};

void emitFloatScores(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitProbe(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitFloatValues(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_FLOATKERNEL_H
