// See the header.
#include "DecodeShape.h"

using namespace mlir;
using namespace aligned;

FailureOr<DecodeShape> aligned::decodeShape(DecodeAttentionOp op) {
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
  shape.dynamicSoftcap = bool(op.getDynamicSoftcap());
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
  if (shape.keyPlanes && shape.keyPlanes.getKind() != shape.valuePlanes.getKind())
    return op.emitOpError("expected key and value to have one kind of format, got ")
           << stringifyFormatKind(shape.keyPlanes.getKind()) << " and " << stringifyFormatKind(shape.valuePlanes.getKind());
  return shape;
}

namespace {

ShapedType typeOf(Value value) { return cast<ShapedType>(value.getType()); }

template <typename Op> DecodeShape shapeOfStage(Op op) {
  ShapedType query = typeOf(op.getQuery()), key = typeOf(op.getKey()), value = typeOf(op.getValue());
  DecodeShape shape{};
  shape.kvHeads = key.getDimSize(1);
  shape.queries = query.getDimSize(2);
  shape.heads = query.getDimSize(1) / shape.kvHeads * shape.queries;
  shape.keyDim = key.getDimSize(3);
  shape.valueDim = value.getDimSize(3);
  shape.query = query.getElementType();
  shape.key = key.getElementType();
  shape.value = value.getElementType();
  shape.keyPlanes = getPlanes(key);
  shape.valuePlanes = getPlanes(value);
  auto policies = op.getPolicies().template getAsRange<PolicyAttr>();
  shape.policies.assign(policies.begin(), policies.end());
  shape.policies.resize(shape.kvHeads, shape.policies.front());
  shape.mask = op.getMaskAttr();
  shape.later = bool(op.getLater());
  if constexpr (!std::is_same_v<Op, PrepareOp>) {
    shape.softcap = op.getSoftcap() ? op.getSoftcap()->convertToDouble() : 0.0;
    shape.dynamicSoftcap = bool(op.getDynamicSoftcap());
    if (Value mask = op.getAttnMask())
      shape.attnMask = MemRefType::get(typeOf(mask).getShape(), typeOf(mask).getElementType());
  }
  if constexpr (std::is_same_v<Op, AttendOp>) {
    shape.attention = static_cast<int32_t>(op.getAttentionId());
    shape.maskedZero = op.getMaskedZero();
    shape.sinkLogits = bool(op.getSinkLogits());
    shape.certified = op.getOuts().size() == 4;
  }
  return shape;
}

} // namespace

DecodeShape aligned::shapeOf(PrepareOp op) { return shapeOfStage(op); }
DecodeShape aligned::shapeOf(ScanOp op) { return shapeOfStage(op); }
DecodeShape aligned::shapeOf(AttendOp op) { return shapeOfStage(op); }

aligned_format aligned::formatOf(PlanesAttr attr) {
  aligned_format format = {};
  format.kind = attr.getKind() == FormatKind::Fixed ? ALIGNED_FORMAT_FIXED : ALIGNED_FORMAT_FLOAT;
  format.role = attr.getRole() == CacheRole::Key ? ALIGNED_ROLE_KEY : ALIGNED_ROLE_VALUE;
  format.planes = attr.getNumPlanes();
  for (auto [plane, width] : llvm::enumerate(attr.getWidths()))
    format.width[plane] = width;
  return format;
}

LayerPlace aligned::placeOf(PlanesAttr split, int64_t layer) {
  int64_t plane = 0;
  while (split.getFirstLayer(plane + 1) <= layer)
    ++plane;
  return {plane, split.getWidths()[plane] / 4, layer - split.getFirstLayer(plane)};
}
