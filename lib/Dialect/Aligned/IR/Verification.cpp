// See the header.
#include "Verification.h"

using namespace mlir;
using namespace aligned;

std::string aligned::extent(int64_t size) { return ShapedType::isDynamic(size) ? "?" : std::to_string(size); }

LogicalResult aligned::expectSame(Operation *op, StringRef what, StringRef ofA, int64_t a, StringRef ofB, int64_t b) {
  if (compatible(a, b))
    return success();
  return op->emitOpError() << "expected " << ofA << " and " << ofB << " to agree in " << what << ", got " << extent(a)
                           << " and " << extent(b);
}

bool aligned::isContiguous(MemRefType type) {
  if (type.getLayout().isIdentity())
    return true;
  SmallVector<int64_t> strides;
  int64_t offset, stride = 1;
  if (failed(type.getStridesAndOffset(strides, offset)))
    return false;
  for (int64_t dim = type.getRank() - 1; dim >= 0; --dim) {
    if (type.getDimSize(dim) == 1) // of which there is no second to step to
      continue;
    if (ShapedType::isDynamic(stride) || strides[dim] != stride)
      return false;
    stride = type.isDynamicDim(dim) ? ShapedType::kDynamic : stride * type.getDimSize(dim);
  }
  return true;
}

LogicalResult aligned::verifyForm(Operation *op, ValueRange values) {
  Type tensor, buffer;
  for (Type type : values.getTypes())
    if (isa<RankedTensorType, MemRefType>(type))
      (isa<MemRefType>(type) ? buffer : tensor) = type;
  for (Type type : op->getResultTypes())
    if (isa<RankedTensorType>(type))
      tensor = type;
  if (tensor && buffer)
    return op->emitOpError() << "expected tensors or buffers, got both: " << tensor << " and " << buffer;
  return success();
}

LogicalResult aligned::verifyContiguous(Operation *op, StringRef name, Value value) {
  auto type = value ? dyn_cast<MemRefType>(value.getType()) : MemRefType();
  if (!type)
    return success();
  if (getPlanes(type) && !type.getLayout().isIdentity())
    return op->emitOpError() << "expected a packed " << name << " without a layout, got " << type;
  if (!isContiguous(type))
    return op->emitOpError() << "expected " << name << " to be contiguous, got " << type;
  return success();
}

LogicalResult aligned::verifyOperands(Operation *op, ShapedType query, ShapedType key, ShapedType value) {
  auto same = [&](StringRef what, StringRef ofA, ShapedType a, StringRef ofB, ShapedType b, Dim dim) {
    return expectSame(op, what, ofA, a.getDimSize(dim), ofB, b.getDimSize(dim));
  };
  if (failed(same("batch", "key", key, "value", value, kBatch)) || failed(same("kv_heads", "key", key, "value", value, kHeads)) ||
      failed(same("tokens", "key", key, "value", value, kTokens)) || failed(same("batch", "query", query, "key", key, kBatch)) ||
      failed(same("head_dim", "query", query, "key", key, kChannels)))
    return failure(); // A1
  int64_t queryHeads = query.getDimSize(kHeads), kvHeads = key.getDimSize(kHeads);
  if (!ShapedType::isDynamic(queryHeads) && !ShapedType::isDynamic(kvHeads) && (kvHeads == 0 || queryHeads % kvHeads)) // A2
    return op->emitOpError() << "expected query heads to be a multiple of kv heads, got " << queryHeads << " and " << kvHeads;
  if (queryHeads == 0)
    return op->emitOpError() << "expected one query head or more, got none";
  PlanesAttr keyPlanes = getPlanes(key), valuePlanes = getPlanes(value); // A4
  if (!keyPlanes != !valuePlanes)
    return op->emitOpError() << "expected key and value to be both packed or both dense, got a packed "
                             << (keyPlanes ? "key and a dense value" : "value and a dense key");
  if (keyPlanes && keyPlanes.getRole() != CacheRole::Key)
    return op->emitOpError() << "expected the key's encoding to have role 'key', got '" << stringifyCacheRole(keyPlanes.getRole()) << "'";
  if (valuePlanes && valuePlanes.getRole() != CacheRole::Value)
    return op->emitOpError() << "expected the value's encoding to have role 'value', got '" << stringifyCacheRole(valuePlanes.getRole()) << "'";
  for (ShapedType cache : {key, value}) // tensors verify their encoding themselves
    if (PlanesAttr planes = getPlanes(cache); planes && isa<MemRefType>(cache) && failed(planes.verifyEncoding(cache.getShape(), cache.getElementType(), [&] { return op->emitOpError(); })))
      return failure();
  return success();
}

LogicalResult aligned::verifyPolicies(Operation *op, ArrayAttr policies, ShapedType key) {
  int64_t kvHeads = key.getDimSize(kHeads), count = policies.size();
  if (count != 1 && (count == 0 || !compatible(count, kvHeads)))
    return op->emitOpError() << "expected one policy, or one for each of " << extent(kvHeads) << " kv heads, got " << count;
  for (Attribute policy : policies)
    if (PolicyKind first = cast<PolicyAttr>(policies[0]).getKind(), kind = cast<PolicyAttr>(policy).getKind(); kind != first)
      return op->emitOpError() << "expected policies of one kind, got '" << stringifyPolicyKind(first) << "' and '" << stringifyPolicyKind(kind) << "'";
  return success();
}

LogicalResult aligned::verifyStorage(Operation *op, PolicyKind policy, ShapedType key, ShapedType value) {
  for (auto [name, type] : {std::pair("key", key), std::pair("value", value)}) {
    PlanesAttr planes = getPlanes(type);
    if (!planes && policy != PolicyKind::Exact)
      return op->emitOpError() << "expected policy 'exact' over dense caches, got '" << stringifyPolicyKind(policy) << "'";
    if (planes && policy == PolicyKind::AlignedKV && planes.getKind() != FormatKind::Float) // P1
      return op->emitOpError() << "expected a 'float' format under policy 'alignedkv', got " << name << " of format 'fixed'";
    if (planes && policy == PolicyKind::Budget && planes.getKind() != FormatKind::Fixed) // P2
      return op->emitOpError() << "expected a 'fixed' format under policy 'budget', got " << name << " of format 'float'";
  }
  return success();
}

LogicalResult aligned::verifyToleranceFactor(Operation *op, Value factor, PolicyKind kind) {
  if (factor && kind != PolicyKind::Budget)
    return op->emitOpError() << "expected 'tolerance_factor' only with policy 'budget', got '" << stringifyPolicyKind(kind) << "'";
  return success();
}

LogicalResult aligned::verifyMask(Operation *op, MaskAttr mask, Value window, Value sinks, Value later) {
  for (auto [name, operand, number] : {std::tuple("window", window, mask ? mask.getWindow() : 0), std::tuple("sinks", sinks, mask ? mask.getSinks() : 0)}) {
    if (operand && !ShapedType::isDynamic(number))
      return op->emitOpError() << "expected no operand for " << name << " where the mask does not say '" << name << " = ?', got one";
    if (!operand && ShapedType::isDynamic(number))
      return op->emitOpError() << "expected an operand for " << name << " where the mask says '" << name << " = ?', got none";
  }
  if (later && !mask)
    return op->emitOpError() << "expected 'later' only with a mask, got no mask";
  return success();
}

LogicalResult aligned::verifySoftcap(Operation *op, std::optional<APFloat> softcap, Value operand) {
  if (softcap && operand)
    return op->emitOpError() << "expected a softcap that is an attribute or an operand, got both";
  if (double cap = softcap ? softcap->convertToDouble() : 1; !(cap >= kLeastSoftcap && cap <= kLargestSoftcap)) // also refuses NaN
    return op->emitOpError() << "expected a softcap from " << decimal(kLeastSoftcap) << " to " << decimal(kLargestSoftcap) << ", got " << decimal(cap);
  return success();
}

LogicalResult aligned::verifyMaskOperands(Operation *op, Value mask, Value sinks, ShapedType query, ShapedType key) {
  if (mask) {
    auto type = cast<ShapedType>(mask.getType());
    constexpr StringRef names[] = {"batch", "q_heads", "queries", "tokens"};
    for (int64_t dim = 0; dim < 4; ++dim) {
      int64_t want = dim == 3 ? key.getDimSize(kTokens) : query.getDimSize(dim), got = type.getDimSize(dim);
      if (dim < 3 && ShapedType::isDynamic(got))
        return op->emitOpError() << "expected a static " << names[dim] << " in attn_mask, got " << type;
      if (!(dim < 3 && got == 1) && !compatible(want, got))
        return op->emitOpError() << "expected attn_mask dimension " << dim << " (" << names[dim] << ") to be " << extent(want) << (dim < 3 ? " or 1" : "") << ", got " << extent(got);
    }
  }
  if (sinks && !compatible(query.getDimSize(kHeads), cast<ShapedType>(sinks.getType()).getDimSize(0)))
    return op->emitOpError() << "expected a sink logit for each of " << extent(query.getDimSize(kHeads)) << " query heads, got "
                             << extent(cast<ShapedType>(sinks.getType()).getDimSize(0));
  return success();
}
