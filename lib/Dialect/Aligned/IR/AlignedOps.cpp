// Verifiers, folders and text forms of the ops. Constraint labels are those of the op descriptions.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/IR/OpImplementation.h"

using namespace mlir;
using namespace aligned;

using OptionalOperand = std::optional<OpAsmParser::UnresolvedOperand>;

/// The operand types of `aligned.merge` follow from those of its results.
static ParseResult parseSameState(OpAsmParser &parser, Type &accA, Type &maxA, Type &sumA, Type &certificateA, Type &accB, Type &maxB, Type &sumB,
                                  Type &certificateB, Type &sum, Type acc, Type max, OptionalOperand operandA, OptionalOperand operandB, Type certificate) {
  accA = accB = acc;
  maxA = maxB = sumA = sumB = sum = max;
  if (operandA.has_value() != bool(certificate) || operandB.has_value() != bool(certificate)) // A8
    return parser.emitError(parser.getNameLoc(), "expected a certificate of both states and of the result, or of none");
  certificateA = certificateB = certificate;
  return success();
}
static void printSameState(OpAsmPrinter &, Operation *, Type, Type, Type, Type, Type, Type, Type, Type, Type, Type, Type, Value, Value, Type) {}

/// policies [<...>, <...>], or policy <...> for one
static OptionalParseResult parseOptionalPolicies(OpAsmParser &parser, ArrayAttr &policies) {
  SmallVector<Attribute> each;
  auto parseOne = [&]() -> ParseResult {
    PolicyAttr policy;
    if (parser.parseCustomAttributeWithFallback(policy))
      return failure();
    each.push_back(policy);
    return success();
  };
  if (succeeded(parser.parseOptionalKeyword("policy"))) {
    if (parseOne())
      return failure();
  } else if (succeeded(parser.parseOptionalKeyword("policies"))) {
    if (parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseOne))
      return failure();
  } else {
    return std::nullopt;
  }
  policies = parser.getBuilder().getArrayAttr(each);
  return success();
}

static ParseResult parsePolicies(OpAsmParser &parser, ArrayAttr &policies) {
  OptionalParseResult parsed = parseOptionalPolicies(parser, policies);
  return parsed.has_value() ? *parsed : parser.emitError(parser.getCurrentLocation(), "expected 'policy' or 'policies'");
}

static void printPolicies(OpAsmPrinter &printer, Operation *, ArrayAttr policies) {
  auto printOne = [&](Attribute policy) { printer.printStrippedAttrOrType(cast<PolicyAttr>(policy)); };
  if (policies.size() == 1) {
    printer << "policy ";
    return printOne(policies[0]);
  }
  printer << "policies [";
  llvm::interleaveComma(policies, printer, printOne);
  printer << "]";
}
/// The type of the buffer that is written where there is one, else of the result.
static ParseResult parseTarget(OpAsmParser &parser, const OptionalOperand &target, Type &targetType, Type &result) {
  return parser.parseType(target ? targetType : result);
}
static void printTarget(OpAsmPrinter &printer, Operation *, Value target, Type targetType, Type result) { printer << (target ? targetType : result); }

static void printOptionalPolicies(OpAsmPrinter &printer, Operation *op, ArrayAttr policies) { printPolicies(printer, op, policies); }

#define GET_OP_CLASSES
#include "aligned/Dialect/Aligned/IR/AlignedOps.cpp.inc"

namespace {
/// Positions in [batch, heads, tokens or queries, head_dim].
enum Dim { kBatch, kHeads, kTokens, kChannels };
} // namespace

static ShapedType typeOf(Value value) { return cast<ShapedType>(value.getType()); }

/// Two extents that are both known and differ can't be the same.
static bool compatible(int64_t a, int64_t b) { return ShapedType::isDynamic(a) || ShapedType::isDynamic(b) || a == b; }

/// A13: values are tensors all, or buffers.
static LogicalResult verifyForm(Operation *op, ValueRange values) {
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

static bool isDense(ShapedType type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return tensor ? !tensor.getEncoding() : !getPlanes(type);
}

static std::string extent(int64_t size) { return ShapedType::isDynamic(size) ? "?" : std::to_string(size); }

static LogicalResult expectSame(Operation *op, StringRef what, StringRef ofA, int64_t a, StringRef ofB, int64_t b) {
  if (compatible(a, b))
    return success();
  return op->emitOpError() << "expected " << ofA << " and " << ofB << " to agree in " << what << ", got " << extent(a)
                           << " and " << extent(b);
}

/// A1, A2, A4: what declared and computed attention ask of their operands.
static LogicalResult verifyOperands(Operation *op, ShapedType query, ShapedType key, ShapedType value) {
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
  return success();
}

/// A3, A7: [batch, q_heads, queries (, value_dim)]
static LogicalResult verifyResult(Operation *op, StringRef name, ShapedType result, ShapedType query, int64_t valueDim) {
  SmallVector<int64_t> expected(query.getShape().take_front(3));
  if (result.getRank() == 4)
    expected.push_back(valueDim);
  for (auto [dim, pair] : llvm::enumerate(llvm::zip(expected, result.getShape())))
    if (auto [want, got] = pair; !compatible(want, got))
      return op->emitOpError() << "expected " << name << " dimension " << dim << " to be " << extent(want) << ", got " << extent(got);
  return success();
}

/// P4: what a certified op returns.
static LogicalResult verifyCertified(Operation *op, Value bound, Value estimate, ShapedType shape) {
  if (!bound != !estimate)
    return op->emitOpError() << "expected both a bound and an estimate or neither, got " << (bound ? "no estimate" : "no bound");
  if (!bound)
    return success();
  if (failed(verifyResult(op, "bound", typeOf(bound), shape, 0)))
    return failure();
  return verifyResult(op, "estimate", typeOf(estimate), shape, 0);
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

/// A10: one policy or one per kv head, of one kind.
static LogicalResult verifyPolicies(Operation *op, ArrayAttr policies, ShapedType key) {
  int64_t kvHeads = key.getDimSize(kHeads), count = policies.size();
  if (count != 1 && (count == 0 || !compatible(count, kvHeads)))
    return op->emitOpError() << "expected one policy, or one for each of " << extent(kvHeads) << " kv heads, got " << count;
  for (Attribute policy : policies)
    if (PolicyKind first = cast<PolicyAttr>(policies[0]).getKind(), kind = cast<PolicyAttr>(policy).getKind(); kind != first)
      return op->emitOpError() << "expected policies of one kind, got '" << stringifyPolicyKind(first) << "' and '" << stringifyPolicyKind(kind) << "'";
  return success();
}

/// A12.
static LogicalResult verifySoftcap(Operation *op, std::optional<APFloat> softcap) {
  constexpr double least = 1e-30, most = 1e30; // of what f32 holds the inverse, too
  if (double cap = softcap ? softcap->convertToDouble() : 1; !(cap >= least && cap <= most)) // also refuses NaN
    return op->emitOpError() << "expected a softcap from " << decimal(least) << " to " << decimal(most) << ", got " << decimal(cap);
  return success();
}

/// A15: what a mask by numbers and sinks look like.
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

LogicalResult AttentionOp::verify() {
  ShapedType query = typeOf(getQuery()), value = typeOf(getValue());
  if (failed(verifyOperands(*this, query, typeOf(getKey()), value)))
    return failure();
  if (failed(verifyResult(*this, "result", typeOf(getResult()), query, value.getDimSize(kChannels))))
    return failure();
  if (getPolicies() && failed(verifyPolicies(*this, *getPolicies(), typeOf(getKey()))))
    return failure();
  if (failed(verifyMaskOperands(*this, getAttnMask(), getSinkLogits(), query, cast<ShapedType>(getKey().getType()))))
    return failure();
  if (failed(verifySoftcap(*this, getSoftcap())))
    return failure();
  return verifyCertified(*this, getBound(), getEstimate(), query);
}

/// A7, A13: the state, as results or as buffers.
static LogicalResult verifyState(DecodeAttentionOp op, ShapedType query, ShapedType value) {
  if (!op.getTargets().empty() && op->getNumResults())
    return op.emitOpError() << "expected results or buffers to write to, got both";
  ValueRange state = op.getState();
  if (state.size() < 3 || state.size() > 4 || (op.getTargets().empty() && !(op.getAcc() && op.getMax() && op.getSum())))
    return op.emitOpError() << "expected acc, max, sum and at most a certificate, got " << state.size() << " of them";
  constexpr StringRef names[] = {"acc", "max", "sum", "certificate"};
  const int64_t channels[] = {value.getDimSize(kChannels), 0, 0, kCertificateNumbers};
  for (auto [part, name, dim] : llvm::zip_first(state, names, channels)) {
    ShapedType type = typeOf(part);
    if (int64_t rank = dim ? 4 : 3; type.getRank() != rank)
      return op.emitOpError() << "expected " << name << " of rank " << rank << ", got " << type;
    if (failed(verifyResult(op, name, type, query, dim)))
      return failure();
  }
  return success();
}

LogicalResult DecodeAttentionOp::verify() {
  if (failed(verifyForm(*this, getOperands())))
    return failure();
  ShapedType query = typeOf(getQuery()), key = typeOf(getKey()), value = typeOf(getValue());
  if (failed(verifyOperands(*this, query, key, value)))
    return failure();
  if (failed(verifyState(*this, query, value)))
    return failure();
  if (failed(verifyPolicies(*this, getPolicies(), key)) || failed(verifySoftcap(*this, getSoftcap())) ||
      failed(verifyMaskOperands(*this, getAttnMask(), getSinkLogits(), query, key)))
    return failure();
  if (getLater() && !getMask()) // A11
    return emitOpError() << "expected 'later' only with a mask, got no mask";
  PolicyKind policy = getPolicyKind();
  for (auto [name, type] : {std::pair("key", key), std::pair("value", value)}) {
    PlanesAttr planes = getPlanes(type);
    if (!planes && policy != PolicyKind::Exact)
      return emitOpError() << "expected policy 'exact' over dense caches, got '" << stringifyPolicyKind(policy) << "'";
    if (planes && policy == PolicyKind::AlignedKV && planes.getKind() != FormatKind::Float) // P1
      return emitOpError() << "expected a 'float' format under policy 'alignedkv', got " << name << " of format 'fixed'";
    if (planes && policy == PolicyKind::Budget && planes.getKind() != FormatKind::Fixed) // P2
      return emitOpError() << "expected a 'fixed' format under policy 'budget', got " << name << " of format 'float'";
  }
  return success();
}

LogicalResult MergeOp::verify() { // A8
  if (!getCertificateA() != !getCertificate() || !getCertificateB() != !getCertificate())
    return emitOpError() << "expected a certificate of both states and of the result, or of none";
  for (auto [operand, result] : llvm::zip(getOperandTypes(), llvm::concat<const Type>(getResultTypes(), getResultTypes())))
    if (operand != result)
      return emitOpError() << "expected both states to have the result's types, got " << operand << " where the result has " << result;
  if (getCertificate() && failed(verifyResult(*this, "certificate", typeOf(getCertificate()), typeOf(getAcc()), kCertificateNumbers)))
    return failure();
  return verifyResult(*this, "max", typeOf(getMax()), typeOf(getAcc()), 0);
}

LogicalResult FinishOp::verify() { // A9
  ShapedType acc = typeOf(getAcc());
  if (failed(verifyResult(*this, "sum", typeOf(getSum()), acc, 0)))
    return failure();
  if (failed(verifyResult(*this, "result", typeOf(getResult()), acc, acc.getDimSize(kChannels))))
    return failure();
  if (!getCertificate() != !getBound()) // P4
    return emitOpError() << "expected a bound where there is a certificate, got " << (getBound() ? "no certificate" : "no bound");
  if (getCertificate() && failed(verifyResult(*this, "certificate", typeOf(getCertificate()), acc, kCertificateNumbers)))
    return failure();
  return verifyCertified(*this, getBound(), getEstimate(), acc);
}

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

/// One side packed, the other dense, all else equal.
static LogicalResult verifyStoragePair(Operation *op, StringRef packedName, ShapedType packed, StringRef denseName, ShapedType dense) {
  if (!getPlanes(packed))
    return op->emitOpError() << "expected the " << packedName << " to have a plane encoding, got " << packed;
  if (!isDense(dense))
    return op->emitOpError() << "expected the " << denseName << " to be dense, got " << dense;
  if (packed.getElementType() != dense.getElementType() || packed.getShape() != dense.getShape())
    return op->emitOpError() << "expected source and result to agree in shape and element type, got " << op->getOperand(0).getType() << " and "
                             << (op->getNumResults() ? op->getResult(0) : op->getOperand(1)).getType();
  return success();
}

/// A13: what is written, where that is one value.
template <typename Op> static FailureOr<Value> verifyTarget(Op op) {
  if (failed(verifyForm(op, op->getOperands())))
    return failure();
  if (!op.getTarget() == !op.getResult())
    return op.emitOpError() << "expected a result or a buffer to write to, got " << (op.getTarget() ? "both" : "neither");
  return op.getTarget() ? Value(op.getTarget()) : Value(op.getResult());
}

LogicalResult PackOp::verify() {
  FailureOr<Value> target = verifyTarget(*this);
  return failed(target) ? failure() : verifyStoragePair(*this, "result", typeOf(*target), "source", typeOf(getSource()));
}

LogicalResult PackOp::fold(FoldAdaptor, SmallVectorImpl<OpFoldResult> &results) {
  auto unpack = getSource().getDefiningOp<UnpackOp>();
  if (!unpack || !getResult() || unpack.getBits() != 16 || unpack.getSource().getType() != getResult().getType())
    return failure();
  results.push_back(unpack.getSource());
  return success();
}

LogicalResult UnpackOp::verify() {
  if (getBits() < 1 || getBits() > 16)
    return emitOpError() << "expected 1 to 16 bits, got " << getBits();
  FailureOr<Value> target = verifyTarget(*this);
  return failed(target) ? failure() : verifyStoragePair(*this, "source", typeOf(getSource()), "result", typeOf(*target));
}

LogicalResult AppendOp::verify() {
  if (failed(verifyForm(*this, {getTokens(), getCache(), getResult()})))
    return failure();
  ShapedType tokens = typeOf(getTokens()), cache = typeOf(getCache()), result = typeOf(getResult());
  if (!isDense(tokens)) // A6
    return emitOpError() << "expected dense tokens, got " << tokens;
  if (isa<MemRefType>(cache) && !getPlanes(cache))
    return emitOpError() << "expected a buffer that is appended to to have a plane encoding, got " << cache;
  if (getPlanes(cache) != getPlanes(result))
    return emitOpError() << "expected the result to have the cache's encoding, got " << result << " from " << cache;
  if (tokens.getElementType() != cache.getElementType() || cache.getElementType() != result.getElementType())
    return emitOpError() << "expected tokens, cache and result to agree in element type, got " << tokens.getElementType() << ", "
                         << cache.getElementType() << " and " << result.getElementType();
  for (auto [dim, name] : {std::pair(kBatch, "batch"), std::pair(kHeads, "kv_heads"), std::pair(kChannels, "head_dim")}) // A5
    if (failed(expectSame(*this, name, "tokens", tokens.getDimSize(dim), "cache", cache.getDimSize(dim))) ||
        failed(expectSame(*this, name, "cache", cache.getDimSize(dim), "result", result.getDimSize(dim))))
      return failure();
  int64_t added = tokens.getDimSize(kTokens), held = cache.getDimSize(kTokens), sum = result.getDimSize(kTokens);
  if (!ShapedType::isDynamic(added) && !ShapedType::isDynamic(held) && !compatible(added + held, sum))
    return emitOpError() << "expected " << added + held << " tokens in the result, got " << sum;
  return success();
}

OpFoldResult AppendOp::fold(FoldAdaptor) {
  if (typeOf(getTokens()).getDimSize(kTokens) == 0 && getCache().getType() == getType())
    return getCache();
  return {};
}

Value AppendOp::getViewSource() { return getCache(); }

LogicalResult ForkOp::verify() { // A14
  if (!getPlanes(getType()))
    return emitOpError() << "expected the cache to have a plane encoding, got " << getType();
  return success();
}

//===----------------------------------------------------------------------===//
// Effects
//===----------------------------------------------------------------------===//

using Effects = SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>>;

/// On buffers: operands are read, but `written` ones are written, and a cache that is appended to is both.
static void addEffects(Operation *op, ValueRange written, Effects &effects) {
  for (OpOperand &operand : op->getOpOperands()) {
    if (!isa<MemRefType>(operand.get().getType()))
      continue;
    bool writes = llvm::is_contained(written, operand.get());
    if (!writes || isa<AppendOp>(op))
      effects.emplace_back(MemoryEffects::Read::get(), &operand);
    if (writes)
      effects.emplace_back(MemoryEffects::Write::get(), &operand);
  }
}
void PackOp::getEffects(Effects &effects) { addEffects(*this, getTarget(), effects); }
void UnpackOp::getEffects(Effects &effects) { addEffects(*this, getTarget(), effects); }
void AppendOp::getEffects(Effects &effects) { addEffects(*this, getCache(), effects); }
void DecodeAttentionOp::getEffects(Effects &effects) { addEffects(*this, getTargets(), effects); }

static Speculation::Speculatability speculatability(Operation *op) {
  return isa<MemRefType>(op->getOperand(0).getType()) ? Speculation::NotSpeculatable : Speculation::Speculatable;
}
Speculation::Speculatability PackOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability UnpackOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability AppendOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability DecodeAttentionOp::getSpeculatability() { return speculatability(*this); }
