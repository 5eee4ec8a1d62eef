// What kernels over float planes share: planes as a row sees them, tokens that are kept aside, and the account of which bits are read.
//
// A format decides how tiles are scored and weighed. It writes down, as layers of 4 bits, how far it reads each *unit* of keys (the channels of
// one tile that are decided together) and each token's value; what was read is counted from there, and whoever listens is told.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_PLANEKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_PLANEKERNEL_H

#include "../Common/HeadPolicies.h"
#include "../Common/Numerics.h"
#include "RowKernel.h"

namespace aligned {

/// A packed cache as one row of it sees it: the fields of `aligned_cache`.
struct CacheRow {
  Val tokens, tiles;                   ///< tokens, and the tiles that hold them
  Val layer[kLayers];                  ///< address of the row's first byte of each nibble layer's plane, null past those of the encoding
  Val layers;                          ///< nibble layers that may be read, i32 (S6)
  Buffer channelMax;                   ///< of this row
  AsideTokens aside;
};

class PlaneKernel : public RowKernel {
public:
  PlaneKernel(Emitter &e, const KernelShape &shape, int64_t unitChannels)
      : RowKernel(e, shape), exact(shape.policies.front().getKind() == PolicyKind::Exact), unitChannels(unitChannels), units(shape.keyDim / unitChannels) {}

protected:
  const bool exact;
  const int64_t unitChannels, units; ///< channels of a unit, units of a tile

  CacheRow key, value;
  Buffer keyRead, valueRead; ///< layers of 4 bits, i8: [tiles, units] and [padded]

  Val tokenCount() final;
  void allocate() override;
  void reportReading() final;

  Val keyChannelMax() final { return e.load(key.channelMax, index(0), shape.keyDim); }
  Val valueMax() final { return largestValue; }
  /// Of values in planes.
  Val planeValueMax() { return reduceMax(e.load(value.channelMax, index(0), shape.valueDim)); }
  void prepareCertificate() final;
  Val largestKeyAside; ///< magnitude
  Val inexactTiles() final { return key.tiles; }
  /// Writes down that nothing is read, which is so of what no query sees.
  void readNothing();
  /// Layers that are read of the channels of a tile.
  Val layersOf(Val tile);

  Val wholePlanes(Val layers, const CacheRow &cache, PlanesAttr split) { return aligned::wholePlanes(layers, cache.layers, split); }
  /// What `count` bytes of a layer hold from `at` on: the low nibbles, then the high ones, as i32.
  Val nibbles(Val layer, Val at, int64_t count);
  /// The indices first .. first + count - 1 as i32.
  Val tokensFrom(Val first, int64_t count) { return e.splat(convert(first, e.i32()), count) + e.iota(e.i32(), count); }

  HeadPolicies policies() { return HeadPolicies(shape, row % index(shape.policies.size())); }
  /// Whether the policy of any kv head limits this side (P7).
  bool isLimited(CacheRole side) const { return HeadPolicies::areLimited(shape.policies, side); }
  /// What limits make of the layers that are wanted of a tile of keys, and of the values of kTile tokens.
  Val limitKeys(Val layers, Val tile);
  Val limitValues(Val layers, Val t);

  /// Scores of the tokens of a tile that are kept aside (S7), in the place of what their planes give.
  void scoreAside(Val tile);
  /// Adds the values that are kept aside, and takes their weights away for as long as `body` reads planes.
  void addAside(llvm::function_ref<void()> body);

private:
  CacheRow cacheRow(Slot slot, PlanesAttr planes, int64_t headDim);
  Val largestValue;
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_PLANEKERNEL_H
