// See the header.
#include "NamedOps.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Utils/IndexingUtils.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/Verifier.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Text and attributes
//===----------------------------------------------------------------------===//

std::string aligned::textOf(Type type) { return llvm::formatv("{0}", type).str(); }

/// Unregistered ops keep `<{...}>` as one dictionary.
static DictionaryAttr propertiesOf(Operation *op) {
  return op->isRegistered() ? DictionaryAttr() : dyn_cast_or_null<DictionaryAttr>(op->getPropertiesAsAttribute());
}

Attribute aligned::attributeOf(Operation *op, StringRef name) {
  if (DictionaryAttr properties = propertiesOf(op))
    if (Attribute found = properties.get(name))
      return found;
  return op->getDiscardableAttr(name);
}

bool aligned::expectAttributes(Draft &draft, Operation *op, ArrayRef<StringRef> known) {
  for (DictionaryAttr attributes : {propertiesOf(op), op->getDiscardableAttrDictionary()})
    for (NamedAttribute attribute : attributes ? attributes.getValue() : ArrayRef<NamedAttribute>())
      if (StringRef name = attribute.getName(); !llvm::is_contained(known, name)) {
        draft.refuse("expected " + (known.empty() ? Twine("no attributes") : "attributes that are known (" + llvm::join(known, ", ") + ")") + ", got '" + name +
                     "'");
        return false;
      }
  return true;
}

//===----------------------------------------------------------------------===//
// Building and taking back
//===----------------------------------------------------------------------===//

Draft::Draft(Operation *op) : b(op->getLoc(), op), block(op->getBlock()) { b.setListener(this); }

Draft::Draft(Location loc, Block *block) : b(loc, OpBuilder::atBlockEnd(block)), block(block) {}

void Draft::notifyOperationInserted(Operation *op, OpBuilder::InsertPoint) {
  if (op->getBlock() == block) // what lies inside goes with it
    built.push_back(op);
}

Refusal Draft::refuse(const Twine &why) {
  if (reason.empty()) // the first reason is the cause
    reason = why.str();
  return {};
}

void Draft::undo() {
  for (Operation *op : llvm::reverse(built))
    op->erase();
  built.clear();
}

//===----------------------------------------------------------------------===//
// Values and shapes
//===----------------------------------------------------------------------===//

Value Draft::number(double value) { return arith::ConstantOp::create(b, b.getF32FloatAttr(static_cast<float>(value))); }
Value Draft::index(int64_t value) { return arith::ConstantIndexOp::create(b, value); }
OpFoldResult Draft::extent(Value tensor, int64_t dim) { return tensor::getMixedSize(b, b.getLoc(), tensor, dim); }

bool Draft::isTensor(Value value, const Twine &name) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (type && !type.getEncoding())
    return true;
  refuse("expected " + name + " to be a ranked tensor, got " + textOf(value.getType()));
  return false;
}

Value Draft::cast(Value value, Type type) {
  if (value.getType() == type)
    return value;
  auto from = typeOf(value), to = dyn_cast<RankedTensorType>(type);
  if (!to || to.getEncoding() || from.getElementType() != to.getElementType() || failed(verifyCompatibleShape(from, to)))
    return refuse("expected a result of type " + textOf(from) + ", got " + textOf(type));
  return tensor::CastOp::create(b, type, value);
}

/// Which dimensions of the finer shape lie in which of the coarser one, where a group has `count` of each; groups of none go with the next.
static SmallVector<ReassociationIndices> reassociationOf(ArrayRef<int64_t> counts) {
  SmallVector<ReassociationIndices> reassociation(counts.size());
  int64_t next = 0;
  for (auto [group, count] : llvm::zip(reassociation, counts))
    for (int64_t dim = 0; dim < count; ++dim)
      group.push_back(next++);
  return reassociation;
}

/// Of groups as `counts` has them: the same without those that hold no dimension, and, for each that is left, how many groups of `counts` it stands for.
static std::pair<SmallVector<int64_t>, SmallVector<int64_t>> withoutUnits(ArrayRef<int64_t> counts) {
  SmallVector<int64_t> held, spans;
  int64_t span = 0;
  for (int64_t count : counts) {
    ++span;
    if (!count)
      continue;
    held.push_back(count);
    spans.push_back(span);
    span = 0;
  }
  return {held, spans};
}

/// The product of extents, dynamic where one is.
static int64_t productOf(ArrayRef<int64_t> shape) {
  return llvm::is_contained(shape, ShapedType::kDynamic) ? ShapedType::kDynamic : ShapedType::getNumElements(shape);
}

/// Shapes between: after groups are collapsed, and after units are put in.
static std::pair<SmallVector<int64_t>, SmallVector<int64_t>> groupedShapes(ArrayRef<int64_t> shape, ArrayRef<int64_t> counts) {
  SmallVector<int64_t> collapsed, full;
  for (int64_t count : counts) {
    full.push_back(count ? productOf(shape.take_front(count)) : 1);
    if (count)
      collapsed.push_back(full.back());
    shape = shape.drop_front(count);
  }
  return {collapsed, full};
}

Value Draft::group(Value value, ArrayRef<int64_t> counts) {
  Type element = typeOf(value).getElementType();
  auto [collapsed, full] = groupedShapes(typeOf(value).getShape(), counts);
  auto [held, spans] = withoutUnits(counts);
  if (collapsed.size() != static_cast<size_t>(typeOf(value).getRank()))
    value = tensor::CollapseShapeOp::create(b, RankedTensorType::get(collapsed, element), value, reassociationOf(held));
  if (full.size() != collapsed.size())
    value = tensor::ExpandShapeOp::create(b, RankedTensorType::get(full, element), value, reassociationOf(spans));
  return value;
}

Value Draft::ungroup(Value value, ArrayRef<int64_t> counts, ArrayRef<int64_t> shape) {
  Type element = typeOf(value).getElementType();
  auto [collapsed, full] = groupedShapes(shape, counts);
  auto [held, spans] = withoutUnits(counts);
  if (full.size() != collapsed.size())
    value = tensor::CollapseShapeOp::create(b, RankedTensorType::get(collapsed, element), value, reassociationOf(spans));
  if (collapsed.size() == shape.size())
    return value;
  SmallVector<ReassociationIndices> reassociation = reassociationOf(held);
  for (const ReassociationIndices &dims : reassociation)
    if (llvm::count_if(dims, [&](int64_t dim) { return ShapedType::isDynamic(shape[dim]); }) > 1)
      return refuse("expected at most one dynamic dimension among those that become one, got " + textOf(RankedTensorType::get(shape, element)));
  return tensor::ExpandShapeOp::create(b, RankedTensorType::get(shape, element), value, reassociation);
}

Value Draft::reshape(Value value, ArrayRef<int64_t> shape) {
  RankedTensorType type = typeOf(value);
  if (type.getShape() == shape)
    return value;
  auto to = RankedTensorType::get(shape, type.getElementType());
  if (!type.hasStaticShape() || !to.hasStaticShape() || type.getNumElements() != to.getNumElements() || type.getNumElements() == 0 || type.getRank() == 0 ||
      shape.empty())
    return refuse("expected to reshape between static shapes of as many elements, got " + textOf(type) + " and " + textOf(to));
  return ungroup(group(value, {type.getRank()}), {to.getRank()}, shape);
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

Value Draft::expandMask(Value mask) {
  if (!isTensor(mask, "a mask"))
    return nullptr;
  RankedTensorType type = typeOf(mask);
  Type element = type.getElementType();
  if (!isMaskElement(element))
    return refuse("expected a mask of f32, f16, bf16 or i1, got " + textOf(type));
  if (type.getRank() < 1 || type.getRank() > 4)
    return refuse("expected a mask of rank 1 to 4, got " + textOf(type));
  SmallVector<int64_t> counts(4 - type.getRank(), 0);
  counts.append(type.getRank(), 1);
  return group(mask, counts);
}

Value Draft::maskOf(const NamedAttention &attention, Value mask) {
  const Positions &at = attention.positions;
  RankedTensorType query = typeOf(attention.query), key = typeOf(attention.key), given = mask ? typeOf(mask) : RankedTensorType();
  if (query.isDynamicDim(2))
    return refuse("expected a static number of queries where a mask goes by their positions, got " + textOf(query));
  for (int64_t dim = 0; given && dim < 4; ++dim) {
    int64_t want = dim < 3 ? query.getDimSize(dim) : key.getDimSize(2), got = given.getDimSize(dim);
    bool fits = dim < 3 ? got == 1 || got == want : got == want || ShapedType::isDynamic(got) || ShapedType::isDynamic(want);
    if (!fits)
      return refuse("expected a mask that broadcasts to [batch, q_heads, queries, tokens] of " + textOf(query) + " and " + textOf(key) + ", got " +
                    textOf(given));
  }

  SmallVector<OpFoldResult> sizes = {b.getIndexAttr(1), b.getIndexAttr(1), b.getIndexAttr(1), extent(attention.key, 2)};
  for (int64_t dim = 0; given && dim < 3; ++dim)
    sizes[dim] = b.getIndexAttr(given.getDimSize(dim));
  if (at.lengths)
    sizes[0] = b.getIndexAttr(query.getDimSize(0));
  if (at.bounded())
    sizes[2] = b.getIndexAttr(query.getDimSize(2));

  SmallVector<Value> inputs;
  SmallVector<AffineMap> maps;
  if (mask) {
    SmallVector<AffineExpr> place;
    for (int64_t dim = 0; dim < 4; ++dim)
      place.push_back(given.getDimSize(dim) == 1 && dim < 3 ? b.getAffineConstantExpr(0) : b.getAffineDimExpr(dim));
    inputs.push_back(mask);
    maps.push_back(AffineMap::get(4, 0, place, b.getContext()));
  }
  if (at.lengths) {
    inputs.push_back(at.lengths);
    maps.push_back(AffineMap::get(4, 0, {b.getAffineDimExpr(0)}, b.getContext()));
  }
  maps.push_back(b.getMultiDimIdentityMap(4));
  Type element = mask ? given.getElementType() : b.getI1Type();
  Value target = tensor::EmptyOp::create(b, sizes, element);
  auto body = [&](OpBuilder &builder, Location loc, ValueRange args) {
    ImplicitLocOpBuilder in(loc, builder);
    auto constant = [&](int64_t number) -> Value { return arith::ConstantIndexOp::create(in, number); };
    auto atMost = [&](Value x, Value y) -> Value { return arith::CmpIOp::create(in, arith::CmpIPredicate::sle, x, y); };
    Value token = linalg::IndexOp::create(in, 3), sees;
    auto also = [&](Value condition) { sees = sees ? arith::AndIOp::create(in, sees, condition) : condition; };
    Value offset = at.offset;
    if (at.lengths) {
      Value length = arith::IndexCastOp::create(in, in.getIndexType(), args[mask ? 1 : 0]);
      also(arith::CmpIOp::create(in, arith::CmpIPredicate::slt, token, length));
      offset = arith::SubIOp::create(in, length, constant(query.getDimSize(2)));
    }
    if (at.bounded()) {
      Value position = linalg::IndexOp::create(in, 2);
      if (offset)
        position = arith::AddIOp::create(in, position, offset);
      if (at.causal)
        also(atMost(token, position));
      if (at.left >= 0)
        also(atMost(position, arith::AddIOp::create(in, token, constant(at.left))));
      if (at.right >= 0)
        also(atMost(token, arith::AddIOp::create(in, position, constant(at.right))));
    }
    if (mask) {
      TypedAttr hidden = element.isInteger(1) ? TypedAttr(in.getBoolAttr(false)) : TypedAttr(in.getFloatAttr(element, -INFINITY));
      sees = arith::SelectOp::create(in, sees, args[0], arith::ConstantOp::create(in, hidden));
    }
    linalg::YieldOp::create(in, sees);
  };
  SmallVector<utils::IteratorType> loops(4, utils::IteratorType::parallel);
  return linalg::GenericOp::create(b, target.getType(), inputs, target, maps, loops, body).getResult(0);
}

Value Draft::attend(const NamedAttention &attention) {
  const std::pair<StringRef, Value> operands[] = {{"the query", attention.query}, {"the key", attention.key}, {"the value", attention.value}};
  for (auto [name, operand] : operands) {
    if (!isTensor(operand, name))
      return nullptr;
    RankedTensorType type = typeOf(operand);
    Type element = type.getElementType();
    if (type.getRank() != 4 || !isAttentionFloat(element))
      return refuse("expected " + name + " to be [batch, heads, tokens, head_dim] of f32, f16 or bf16, got " + textOf(type));
    if (type.isDynamicDim(0) || type.isDynamicDim(1) || type.isDynamicDim(3))
      return refuse("expected " + name + " to have a static batch, heads and head_dim, got " + textOf(type));
  }
  RankedTensorType query = typeOf(attention.query), key = typeOf(attention.key), value = typeOf(attention.value);
  if (key.getElementType() != value.getElementType())
    return refuse("expected K and V of one element type, got " + textOf(key) + " and " + textOf(value));

  Value mask = attention.mask ? expandMask(attention.mask) : Value();
  if (attention.mask && !mask)
    return nullptr;
  const Positions &at = attention.positions;
  MaskAttr seen;
  if (at.lengths || (at.bounded() && (!at.newest || at.right > 0))) {
    mask = maskOf(attention, mask);
    if (!mask)
      return nullptr;
  } else if (at.bounded()) {
    bool causal = (at.causal || at.right == 0) && query.getDimSize(2) != 1; // of which the newest sees all
    if (causal || at.left >= 0)
      seen = MaskAttr::get(b.getContext(), causal, at.left + 1, 0);
  }
  Value scale = attention.scale ? attention.scale : number(1 / std::sqrt(static_cast<double>(query.getDimSize(3))));
  FloatAttr softcap = attention.softcap ? b.getF64FloatAttr(attention.softcap) : FloatAttr();
  auto type = RankedTensorType::get({query.getDimSize(0), query.getDimSize(1), query.getDimSize(2), value.getDimSize(3)}, attention.element);
  auto op = AttentionOp::create(b, type, Type(), Type(), attention.query, attention.key, attention.value, scale, mask, Value(), attention.maskedZero,
                                ArrayAttr(), softcap, seen);
  // The op knows best what it can say.
  ScopedDiagnosticHandler handler(b.getContext(), [&](Diagnostic &diagnostic) {
    refuse(diagnostic.str());
    return success();
  });
  if (failed(verify(op)))
    return refuse("expected attention that verifies");
  attentions.push_back(op);
  return op.getResult();
}
