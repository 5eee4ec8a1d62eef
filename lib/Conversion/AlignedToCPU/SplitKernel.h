// What the kernels over split caches share: planes as a row sees them, the open block, and the account of which bits are read.
//
// A format decides how full blocks are scored and weighed. It writes down, as nibble layers, how far it reads each *unit* of keys (the channels of
// one block that are decided together) and each token's value; what was read is counted from there, and whoever listens is told.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SPLITKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SPLITKERNEL_H

#include "../Common/HeadPolicies.h"
#include "../Common/Numerics.h"
#include "RowKernel.h"

namespace aligned {

/// A split cache as one row of it sees it: the fields of `aligned_cache`.
struct CacheRow {
  Val tokens, blocks, open;            ///< all tokens, full blocks, tokens of the open block
  Val layer[kLayers];                  ///< address of the row's first byte of each nibble layer's plane, null past those of the encoding
  Val layers;                          ///< nibble layers that may be read, i32 (S6)
  Buffer exponent, channelMax, channelMean, openTokens; ///< of this row
  Val escape, escapes;                 ///< the cache's list and its length
};

class SplitKernel : public RowKernel {
public:
  SplitKernel(Emitter &e, const KernelShape &shape, int64_t unitChannels)
      : RowKernel(e, shape), exact(shape.policies.front().getKind() == PolicyKind::Exact), unitChannels(unitChannels), units(shape.keyDim / unitChannels) {}

protected:
  const bool exact;
  const int64_t unitChannels, units; ///< channels of a unit, units of a block

  CacheRow key, value;
  Val fullTokens;            ///< tokens of full blocks
  Val openSeen;              ///< tokens of the open block, 0 where no query sees one
  Buffer keyRead, valueRead; ///< nibble layers, i8: [blocks, units] and [full tokens]

  Val tokenCount() final;
  void allocate() override;
  void reportReading() final;

  Val keyChannelMax() final { return e.load(key.channelMax, index(0), shape.keyDim); }
  Val valueMax() final { return reduceMax(e.load(value.channelMax, index(0), shape.valueDim)); }
  Val inexactBlocks() final { return key.blocks; }
  /// Writes down that nothing is read, which is so of what no query sees.
  void readNothing();
  /// Layers that are read of the channels of a block.
  Val layersOf(Val block);

  Val wholePlanes(Val layers, const CacheRow &cache, SplitAttr split) { return aligned::wholePlanes(layers, cache.layers, split); }
  /// What `count` bytes of a layer hold from `at` on: the low nibbles, then the high ones, as i32.
  Val nibbles(Val layer, Val at, int64_t count);
  /// The indices first .. first + count - 1 as i32.
  Val tokensFrom(Val first, int64_t count) { return e.splat(convert(first, e.i32()), count) + e.iota(e.i32(), count); }

  HeadPolicies policies() { return HeadPolicies(shape, row % index(shape.policies.size())); }
  /// Whether the policy of any kv head limits this side (P7).
  bool isLimited(CacheRole side) const { return HeadPolicies::areLimited(shape.policies, side); }
  /// What limits make of the layers that are wanted of a block of keys, and of the values of kBlock tokens.
  Val limitKeys(Val layers, Val block);
  Val limitValues(Val layers, Val t);

  void scoreOpenBlock();
  void addOpenValues() { addDenseValues(value.openTokens, fullTokens, openSeen); }
  /// s[h, t] += w[h, c] * x, or out[h, c] += p[h, t] * x, for values that are kept aside (S7). Keys are those of one block.
  void addKeyEscapes(Val block);
  void addValueEscapes();

private:
  CacheRow cacheRow(Slot slot, SplitAttr split, int64_t headDim, mlir::Type element);
  void forEscapes(const CacheRow &cache, llvm::function_ref<void(Val token, Val channel, Val value)> body);
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SPLITKERNEL_H
