// Verifiers, folders and text forms of the ops. Constraint labels are those of the op descriptions.
#include "Verification.h"

#include "mlir/IR/Matchers.h"
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

/// A mask as its attribute is written, but for operands in the place of `?`.
static ParseResult parseMask(OpAsmParser &parser, MaskAttr &mask, OptionalOperand &window, OptionalOperand &sinks) {
  mask = MaskAttr::parseParts(parser, [&](StringRef part, int64_t &number) -> ParseResult {
    OpAsmParser::UnresolvedOperand operand;
    OptionalParseResult parsed = parser.parseOptionalOperand(operand);
    if (!parsed.has_value())
      return parser.parseInteger(number);
    number = ShapedType::kDynamic;
    (part == "window" ? window : sinks) = operand;
    return *parsed;
  });
  return success(bool(mask));
}

static void printMask(OpAsmPrinter &printer, Operation *, MaskAttr mask, Value window, Value sinks) {
  mask.printParts(printer, [&](StringRef part, int64_t number) {
    if (ShapedType::isDynamic(number))
      printer << (part == "window" ? window : sinks);
    else
      printer << number;
  });
}

/// softcap 50.0, or softcap %cap
static ParseResult parseSoftcap(OpAsmParser &parser, FloatAttr &softcap, OptionalOperand &operand) {
  OptionalParseResult parsed = parser.parseOptionalOperand(operand.emplace());
  if (parsed.has_value())
    return *parsed;
  operand.reset();
  return parser.parseAttribute(softcap, parser.getBuilder().getF64Type());
}

static void printSoftcap(OpAsmPrinter &printer, Operation *, FloatAttr softcap, Value operand) {
  if (operand)
    printer << operand;
  else
    printer.printAttributeWithoutType(softcap);
}

static void printOptionalPolicies(OpAsmPrinter &printer, Operation *op, ArrayAttr policies) { printPolicies(printer, op, policies); }

#define GET_OP_CLASSES
#include "aligned/Dialect/Aligned/IR/AlignedOps.cpp.inc"

static ShapedType typeOf(Value value) { return cast<ShapedType>(value.getType()); }

static bool isDense(ShapedType type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return tensor ? !tensor.getEncoding() : !getPlanes(type);
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
  if (MaskAttr mask = getMaskAttr(); mask && (mask.hasDynamicWindow() || mask.hasDynamicSinks()))
    return emitOpError() << "expected a mask whose numbers are known, got " << mask;
  return verifyCertified(*this, getBound(), getEstimate(), query);
}

constexpr StringRef kStateNames[] = {"acc", "max", "sum", "certificate"};

/// A7, A13: the state, as results or as buffers.
static LogicalResult verifyState(DecodeAttentionOp op, ShapedType query, ShapedType value) {
  if (!op.getTargets().empty() && op->getNumResults())
    return op.emitOpError() << "expected results or buffers to write to, got both";
  ValueRange state = op.getState();
  if (state.size() < 3 || state.size() > 4 || (op.getTargets().empty() && !(op.getAcc() && op.getMax() && op.getSum())))
    return op.emitOpError() << "expected acc, max, sum and at most a certificate, got " << state.size() << " of them";
  const int64_t channels[] = {value.getDimSize(kChannels), 0, 0, kCertificateNumbers};
  for (auto [part, name, dim] : llvm::zip_first(state, kStateNames, channels)) {
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
  if (failed(verifyPolicies(*this, getPolicies(), key)) || failed(verifySoftcap(*this, getSoftcap(), getDynamicSoftcap())) ||
      failed(verifyMaskOperands(*this, getAttnMask(), getSinkLogits(), query, key)))
    return failure();
  if (failed(verifyMask(*this, getMaskAttr(), getDynamicWindow(), getDynamicSinks(), getLater())) || failed(verifyToleranceFactor(*this, getToleranceFactor(), getPolicyKind())) ||
      failed(verifyStorage(*this, getPolicyKind(), key, value)))
    return failure();
  if (getFromDenseCopy() && (!getPlanes(key) || !getPlanes(value))) // A17
    return emitOpError() << "expected 'from_dense_copy' of packed caches, got " << key << " and " << value;
  if (getFromDenseCopy() && getPolicyKind() != PolicyKind::Exact)
    return emitOpError() << "expected policy 'exact' with 'from_dense_copy', got '" << stringifyPolicyKind(getPolicyKind()) << "'";
  const std::pair<StringRef, Value> operands[] = {{"query", getQuery()}, {"key", getKey()}, {"value", getValue()}, {"attn_mask", getAttnMask()}, {"sink_logits", getSinkLogits()}};
  for (auto [name, operand] : operands)
    if (failed(verifyContiguous(*this, name, operand)))
      return failure();
  for (auto [name, target] : llvm::zip(kStateNames, getTargets()))
    if (failed(verifyContiguous(*this, name, target)))
      return failure();
  return success();
}

LogicalResult DecodeAttentionOp::canonicalize(DecodeAttentionOp op, PatternRewriter &rewriter) {
  auto isKnown = [](Value operand, int64_t least, int64_t &number) {
    APInt constant;
    if (!operand || !matchPattern(operand, m_ConstantInt(&constant)) || constant.getSExtValue() < least)
      return false;
    number = constant.getSExtValue();
    return true;
  };
  MaskAttr mask = op.getMaskAttr();
  int64_t window = mask ? mask.getWindow() : 0, sinks = mask ? mask.getSinks() : 0;
  const bool hasWindow = isKnown(op.getDynamicWindow(), 1, window), hasSinks = isKnown(op.getDynamicSinks(), 0, sinks);
  auto silently = [] { return InFlightDiagnostic(); };
  if (MaskAttr known = hasWindow || hasSinks ? MaskAttr::getChecked(silently, op.getContext(), mask.getCausal(), window, sinks) : MaskAttr()) {
    rewriter.modifyOpInPlace(op, [&] {
      op.setMaskAttr(known);
      if (hasWindow)
        op.getDynamicWindowMutable().clear();
      if (hasSinks)
        op.getDynamicSinksMutable().clear();
    });
    return success();
  }
  APFloat constant(0.0);
  if (!op.getDynamicSoftcap() || !matchPattern(op.getDynamicSoftcap(), m_ConstantFloat(&constant)))
    return rewriter.notifyMatchFailure(op, "expected a constant in the place of a softcap, a window or sinks");
  const double cap = constant.convertToDouble();
  if (!(cap >= kLeastSoftcap && cap <= kLargestSoftcap))
    return rewriter.notifyMatchFailure(op, "expected a softcap that an attribute may have");
  rewriter.modifyOpInPlace(op, [&] {
    op.setSoftcapAttr(rewriter.getF64FloatAttr(cap));
    op.getDynamicSoftcapMutable().clear();
  });
  return success();
}

bool DecodeAttentionOp::readsFixedPlanes() {
  PlanesAttr planes = getPlanes(getKey().getType());
  return planes && planes.getKind() == FormatKind::Fixed && !getFromDenseCopy();
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
  if (failed(target) || failed(verifyStoragePair(*this, "source", typeOf(getSource()), "result", typeOf(*target))))
    return failure();
  return verifyContiguous(*this, "result", *target);
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
  if (Value position = getPosition()) { // A17
    APInt first;
    if (!ShapedType::isDynamic(held) && !ShapedType::isDynamic(added)) {
      if (added > held)
        return emitOpError() << "expected at most " << held << " tokens in the place of others, got " << added;
      if (matchPattern(position, m_ConstantInt(&first)) && (first.isNegative() || first.getSExtValue() > held - added))
        return emitOpError() << "expected a position from 0 to " << held - added << ", got " << first.getSExtValue();
    }
    return expectSame(*this, "tokens", "cache", held, "result", sum);
  }
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

LogicalResult HasDenseCopyOp::verify() { // A14
  if (failed(verifyForm(*this, getOperands())))
    return failure();
  for (auto [name, cache] : {std::pair("key", getKey()), std::pair("value", getValue())})
    if (!getPlanes(cache.getType()))
      return emitOpError() << "expected the " << name << " to have a plane encoding, got " << cache.getType();
  return success();
}

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
void HasDenseCopyOp::getEffects(Effects &effects) { addEffects(*this, {}, effects); }
void DecodeAttentionOp::getEffects(Effects &effects) { addEffects(*this, getTargets(), effects); }

static Speculation::Speculatability speculatability(Operation *op) {
  return isa<MemRefType>(op->getOperand(0).getType()) ? Speculation::NotSpeculatable : Speculation::Speculatable;
}
Speculation::Speculatability PackOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability UnpackOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability AppendOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability HasDenseCopyOp::getSpeculatability() { return speculatability(*this); }
Speculation::Speculatability DecodeAttentionOp::getSpeculatability() { return speculatability(*this); }
