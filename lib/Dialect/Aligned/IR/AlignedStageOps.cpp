// What the stages of a decode step have in common: shapes that follow from query and caches, and effects on buffers.
#include "Verification.h"

using namespace mlir;
using namespace aligned;

namespace {

/// The extents that types of query, key and value give.
struct Extents {
  int64_t group, queries, rows, keyDim, valueDim, digits;
};

ShapedType shapeOf(Value value) { return cast<ShapedType>(value.getType()); }

template <typename Op> FailureOr<Extents> verifyInputs(Op op) {
  ShapedType query = shapeOf(op.getQuery()), key = shapeOf(op.getKey()), value = shapeOf(op.getValue());
  for (auto [name, type] : {std::pair("query", query), std::pair("key", key), std::pair("value", value)})
    if (type.getRank() != 4)
      return op.emitOpError() << "expected a " << name << " of rank 4, got " << type;
  if (Type element = query.getElementType(); !element.isF16() && !element.isBF16() && !element.isF32())
    return op.emitOpError() << "expected a query of f16, bf16 or f32, got " << query;
  for (auto [name, type] : {std::pair("key", key), std::pair("value", value)})
    if (PlanesAttr planes = getPlanes(type); !planes || planes.getKind() != FormatKind::Fixed)
      return op.emitOpError() << "expected a " << name << " in fixed planes, got " << type;
  if (failed(verifyForm(op, op->getOperands())) || failed(verifyOperands(op, query, key, value)) || failed(verifyPolicies(op, op.getPolicies(), key)) ||
      failed(verifyStorage(op, cast<PolicyAttr>(op.getPolicies()[0]).getKind(), key, value)) || 
      failed(verifyMask(op, op.getMaskAttr(), op.getDynamicWindow(), op.getDynamicSinks(), op.getLater())))
    return failure();
  Value mask, sinks;
  if constexpr (std::is_same_v<Op, PrepareOp>) {
    if (failed(verifyToleranceFactor(op, op.getToleranceFactor(), cast<PolicyAttr>(op.getPolicies()[0]).getKind())))
      return failure();
  } else {
    mask = op.getAttnMask();
    if (failed(verifySoftcap(op, op.getSoftcap(), op.getDynamicSoftcap())))
      return failure();
  }
  if constexpr (std::is_same_v<Op, AttendOp>)
    sinks = op.getSinkLogits();
  if (failed(verifyMaskOperands(op, mask, sinks, query, key)))
    return failure();
  const std::pair<StringRef, Value> operands[] = {{"query", op.getQuery()}, {"key", op.getKey()}, {"value", op.getValue()}, {"attn_mask", mask}, {"sink_logits", sinks}};
  for (auto [name, operand] : operands)
    if (failed(verifyContiguous(op, name, operand)))
      return failure();
  Extents e{0, query.getDimSize(2), 0, key.getDimSize(3), value.getDimSize(3), kQueryDigits};
  int64_t heads = query.getDimSize(1), kvHeads = key.getDimSize(1);
  if (llvm::any_of(query.getShape().drop_front(), ShapedType::isDynamic) || ShapedType::isDynamic(kvHeads))
    return op.emitOpError() << "expected static heads, queries and head_dim, got " << query << " and " << key;
  e.group = heads / kvHeads;
  e.rows = e.group * e.queries;
  if (cast<PolicyAttr>(op.getPolicies()[0]).getKind() == PolicyKind::Exact)
    e.digits = kExactQueryDigits;
  return e;
}

/// Compares an operand's extents, of which those that are dynamic in the expected shape may be anything; a buffer is contiguous.
LogicalResult verifyShape(Operation *op, StringRef name, Value value, ArrayRef<int64_t> shape, Type element) {
  ShapedType type = shapeOf(value);
  bool same = type.getElementType() == element && type.getRank() == static_cast<int64_t>(shape.size());
  for (int64_t dim = 0; same && dim < type.getRank(); ++dim)
    same = ShapedType::isDynamic(shape[dim]) || ShapedType::isDynamic(type.getDimSize(dim)) || type.getDimSize(dim) == shape[dim];
  if (same)
    return verifyContiguous(op, name, value);
  std::string expected;
  for (int64_t size : shape)
    expected += (ShapedType::isDynamic(size) ? "?" : std::to_string(size)) + "x";
  llvm::raw_string_ostream(expected) << element;
  return op->emitOpError() << "expected " << name << " of shape and type " << expected << ", got " << type;
}

LogicalResult verifyOuts(Operation *op, OperandRange outs, ArrayRef<std::pair<StringRef, SmallVector<int64_t>>> shapes, size_t optional, Type first) {
  Type f32 = Float32Type::get(op->getContext());
  if (outs.size() != shapes.size() && outs.size() != shapes.size() - optional)
    return op->emitOpError() << "expected " << shapes.size() - optional << (optional ? " or one more" : "") << " outs, got " << outs.size();
  for (auto [number, out] : llvm::enumerate(outs))
    if (failed(verifyShape(op, shapes[number].first, out, shapes[number].second, number ? f32 : first)))
      return failure();
  return success();
}

template <typename Op> LogicalResult verifyDigits(Op op, const Extents &e) {
  Type f32 = Float32Type::get(op.getContext()), i8 = IntegerType::get(op.getContext(), 8);
  if (failed(verifyShape(op, "digits", op.getDigits(), {e.digits, e.rows, e.keyDim}, i8)))
    return failure();
  return verifyShape(op, "facts", op.getFacts(), {e.rows + 1, kStepFacts}, f32);
}

/// Buffers are written where they are outs, and read else; tensors are values.
template <typename Op> void effectsOf(Op op, SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>> &effects) {
  for (OpOperand &operand : op->getOpOperands()) {
    if (!isa<MemRefType>(operand.get().getType()))
      continue;
    if (op.isDpsInit(&operand))
      effects.emplace_back(MemoryEffects::Write::get(), &operand);
    else
      effects.emplace_back(MemoryEffects::Read::get(), &operand);
  }
}

} // namespace

LogicalResult PrepareOp::verify() {
  FailureOr<Extents> e = verifyInputs(*this);
  if (failed(e))
    return failure();
  return verifyOuts(*this, getOuts(), {{"digits", {e->digits, e->rows, e->keyDim}}, {"facts", {e->rows + 1, kStepFacts}}, {"mean", {e->valueDim}}}, 0,
                    IntegerType::get(getContext(), 8));
}

LogicalResult ScanOp::verify() {
  constexpr int64_t any = ShapedType::kDynamic;
  FailureOr<Extents> e = verifyInputs(*this);
  if (failed(e) || failed(verifyDigits(*this, *e)))
    return failure();
  return verifyOuts(*this, getOuts(), {{"scores", {any, e->rows, kTile}}, {"tops", {any, e->rows, kTopLanes}}, {"part", {any, 2, e->rows}}}, 0, Float32Type::get(getContext()));
}

LogicalResult AttendOp::verify() {
  constexpr int64_t any = ShapedType::kDynamic;
  FailureOr<Extents> e = verifyInputs(*this);
  Type f32 = Float32Type::get(getContext());
  if (failed(e) || failed(verifyDigits(*this, *e)) || failed(verifyShape(*this, "mean", getMean(), {e->valueDim}, f32)) ||
      failed(verifyShape(*this, "scores", getScores(), {any, e->rows, kTile}, f32)) || failed(verifyShape(*this, "tops", getTops(), {any, e->rows, kTopLanes}, f32)) ||
      failed(verifyShape(*this, "parts", getParts(), {any, 2, e->rows}, f32)))
    return failure();
  const int64_t splits = getOuts().empty() ? any : shapeOf(getOuts()[0]).getDimSize(0); // all have a state each
  return verifyOuts(*this, getOuts(),
                    {{"acc", {splits, e->group, e->queries, e->valueDim}},
                     {"max", {splits, e->group, e->queries}},
                     {"sum", {splits, e->group, e->queries}},
                     {"certificate", {splits, e->group, e->queries, kCertificateNumbers}}},
                    1, f32);
}

Value ScanOp::getSplitsOut() { return getOuts()[2]; }
Value AttendOp::getSplitsOut() { return getOuts()[0]; }

void PrepareOp::getEffects(SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>> &effects) { effectsOf(*this, effects); }
void ScanOp::getEffects(SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>> &effects) { effectsOf(*this, effects); }
void AttendOp::getEffects(SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>> &effects) { effectsOf(*this, effects); }
