// What a kernel of decode attention is specialised for, on any machine.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_DECODESHAPE_H
#define ALIGNED_LIB_CONVERSION_COMMON_DECODESHAPE_H

#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Runtime/Cache.h"

namespace aligned {

struct DecodeShape {
  int64_t kvHeads;
  int64_t heads; ///< query rows that share a kv head: query heads of its group times queries
  int64_t keyDim, valueDim;
  mlir::Type query, key, value;                ///< element types
  PlanesAttr keyPlanes, valuePlanes;              ///< null: dense
  llvm::SmallVector<PolicyAttr> policies;      ///< of each kv head
  bool maskedZero, certified;
  int32_t attention;
  int64_t queries = 1; ///< of each query head: row h of a kv head is query h mod queries
  MaskAttr mask = {};  ///< null: all tokens are visible; what is `?` in it is given when the kernel runs
  double softcap = 0;  ///< 0: none, or `dynamicSoftcap`
  bool later = false;  ///< whether tokens newer than the last query may follow, given when the kernel runs
  mlir::MemRefType attnMask = {}; ///< P8, [batch or 1, q_heads or 1, queries or 1, tokens] of f32, f16, bf16 (added) or i1 (true: seen); null: none
  bool denseCopy = false;         ///< whether the dense copies of the caches are read
  bool sinkLogits = false;        ///< P8, whether each query head has a logit without a value
  bool dynamicSoftcap = false;    ///< whether there is a softcap that is given when the kernel runs
  bool toleranceFactor = false;   ///< whether one is given then

  bool hasSoftcap() const { return softcap || dynamicSoftcap; }
  bool exact() const { return policies.front().getKind() == PolicyKind::Exact; }
};

/// What a decode op asks of a kernel; a diagnostic where no kernel can do it.
mlir::FailureOr<DecodeShape> decodeShape(DecodeAttentionOp op);

/// What the types and attributes of a stage ask of who runs it.
DecodeShape shapeOf(PrepareOp op);
DecodeShape shapeOf(ScanOp op);
DecodeShape shapeOf(AttendOp op);

/// What an encoding says, as Storage/ wants it, but for the element type.
aligned_format formatOf(PlanesAttr attr);

/// Nibble layers of a cache's resident planes.
inline int64_t residentLayers(PlanesAttr split) { return split.getFirstLayer(split.getResident()); }

/// Where a nibble layer lies: its plane, how many layers that plane has, and which of them it is.
struct LayerPlace {
  int64_t plane, planeLayers, index;
};
LayerPlace placeOf(PlanesAttr split, int64_t layer);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_DECODESHAPE_H
