// See the header.
#include "DecodeShape.h"

using namespace mlir;
using namespace aligned;

FailureOr<DecodeShape> aligned::decodeShape(DecodeAttentionOp op, bool takesLater) {
  auto type = [](Value value) { return cast<ShapedType>(value.getType()); };
  ShapedType query = type(op.getQuery()), key = type(op.getKey()), value = type(op.getValue());
  if (ShapedType::isDynamic(query.getDimSize(1)) || ShapedType::isDynamic(query.getDimSize(2)) || ShapedType::isDynamic(key.getDimSize(1)) ||
      ShapedType::isDynamic(key.getDimSize(3)) || ShapedType::isDynamic(value.getDimSize(3)))
    return op.emitOpError("expected static heads, queries and head_dim, got ") << query << ", " << key << " and " << value;
  auto given = op.getPolicies().getAsRange<PolicyAttr>();
  SmallVector<PolicyAttr> policies(given.begin(), given.end());
  policies.resize(key.getDimSize(1), policies.front());
  DecodeShape shape{key.getDimSize(1), query.getDimSize(1) / key.getDimSize(1) * query.getDimSize(2), key.getDimSize(3), value.getDimSize(3),
                    query.getElementType(), key.getElementType(), value.getElementType(), getPlanes(key), getPlanes(value), policies, op.getMaskedZero(),
                    op.isCertified(), static_cast<int32_t>(op.getAttentionId()),
                    query.getDimSize(2), op.getMaskAttr(), op.getSoftcap() ? op.getSoftcap()->convertToDouble() : 0.0, bool(op.getLater())};
  if (Value mask = op.getAttnMask()) {
    auto maskType = cast<ShapedType>(mask.getType());
    shape.attnMask = MemRefType::get(maskType.getShape(), maskType.getElementType());
  }
  shape.sinkLogits = bool(op.getSinkLogits());
  shape.denseCopy = op.getFromDenseCopy();
  for (auto [name, dim] : {std::pair("key", shape.keyDim), std::pair("value", shape.valueDim)})
    if (!isSupportedHeadDim(dim))
      return op.emitOpError("expected the ") << name << "'s head_dim to be a multiple of " << kHeadDimMultiple << ", at most " << kMaxHeadDim << ", got " << dim;
  if (shape.heads > kMaxQueryRows)
    return op.emitOpError("expected at most ") << kMaxQueryRows << " query rows per kv head, got " << shape.heads;
  if (shape.later && !takesLater)
    return op.emitOpError("expected at most ") << kMaxQueryRows << " query rows per kv head where attention is masked and the target is not the CPU, got more";
  if (shape.keyPlanes && shape.keyPlanes.getKind() != shape.valuePlanes.getKind())
    return op.emitOpError("expected key and value to have one kind of format, got ")
           << stringifyFormatKind(shape.keyPlanes.getKind()) << " and " << stringifyFormatKind(shape.valuePlanes.getKind());
  return shape;
}

LayerPlace aligned::placeOf(PlanesAttr split, int64_t layer) {
  int64_t plane = 0;
  while (split.getFirstLayer(plane + 1) <= layer)
    ++plane;
  return {plane, split.getWidths()[plane] / 4, layer - split.getFirstLayer(plane)};
}
