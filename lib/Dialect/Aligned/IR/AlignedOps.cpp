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
static void printOptionalPolicies(OpAsmPrinter &printer, Operation *op, ArrayAttr policies) { printPolicies(printer, op, policies); }

#define GET_OP_CLASSES
#include "aligned/Dialect/Aligned/IR/AlignedOps.cpp.inc"

namespace {
/// Positions in [batch, heads, tokens or queries, head_dim].
enum Dim { kBatch, kHeads, kTokens, kChannels };
} // namespace

static RankedTensorType typeOf(Value value) { return cast<RankedTensorType>(value.getType()); }

/// Two extents that are both known and differ can't be the same.
static bool compatible(int64_t a, int64_t b) { return ShapedType::isDynamic(a) || ShapedType::isDynamic(b) || a == b; }

static std::string extent(int64_t size) { return ShapedType::isDynamic(size) ? "?" : std::to_string(size); }

static LogicalResult expectSame(Operation *op, StringRef what, StringRef ofA, int64_t a, StringRef ofB, int64_t b) {
  if (compatible(a, b))
    return success();
  return op->emitOpError() << "expected " << ofA << " and " << ofB << " to agree in " << what << ", got " << extent(a)
                           << " and " << extent(b);
}

/// A1, A2, A4: what declared and computed attention ask of their operands.
static LogicalResult verifyOperands(Operation *op, RankedTensorType query, RankedTensorType key, RankedTensorType value) {
  auto same = [&](StringRef what, StringRef ofA, RankedTensorType a, StringRef ofB, RankedTensorType b, Dim dim) {
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
  SplitAttr keySplit = getSplit(key), valueSplit = getSplit(value); // A4
  if (!keySplit != !valueSplit)
    return op->emitOpError() << "expected key and value to be both split or both dense, got a split "
                             << (keySplit ? "key and a dense value" : "value and a dense key");
  if (keySplit && keySplit.getRole() != CacheRole::Key)
    return op->emitOpError() << "expected the key's encoding to have role 'key', got '" << stringifyCacheRole(keySplit.getRole()) << "'";
  if (valueSplit && valueSplit.getRole() != CacheRole::Value)
    return op->emitOpError() << "expected the value's encoding to have role 'value', got '" << stringifyCacheRole(valueSplit.getRole()) << "'";
  return success();
}

/// A3, A7: [batch, q_heads, queries (, value_dim)]
static LogicalResult verifyResult(Operation *op, StringRef name, RankedTensorType result, RankedTensorType query, int64_t valueDim) {
  SmallVector<int64_t> expected(query.getShape().take_front(3));
  if (result.getRank() == 4)
    expected.push_back(valueDim);
  for (auto [dim, pair] : llvm::enumerate(llvm::zip(expected, result.getShape())))
    if (auto [want, got] = pair; !compatible(want, got))
      return op->emitOpError() << "expected " << name << " dimension " << dim << " to be " << extent(want) << ", got " << extent(got);
  return success();
}

/// P4: what a certified op returns.
static LogicalResult verifyCertified(Operation *op, Value bound, Value estimate, RankedTensorType shape) {
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
static LogicalResult verifyPolicies(Operation *op, ArrayAttr policies, RankedTensorType key) {
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

LogicalResult AttentionOp::verify() {
  RankedTensorType query = typeOf(getQuery()), value = typeOf(getValue());
  if (failed(verifyOperands(*this, query, typeOf(getKey()), value)))
    return failure();
  if (failed(verifyResult(*this, "result", typeOf(getResult()), query, value.getDimSize(kChannels))))
    return failure();
  if (getPolicies() && failed(verifyPolicies(*this, *getPolicies(), typeOf(getKey()))))
    return failure();
  if (failed(verifySoftcap(*this, getSoftcap())))
    return failure();
  return verifyCertified(*this, getBound(), getEstimate(), query);
}

LogicalResult DecodeAttentionOp::verify() {
  RankedTensorType query = typeOf(getQuery()), key = typeOf(getKey()), value = typeOf(getValue());
  if (failed(verifyOperands(*this, query, key, value)))
    return failure();
  int64_t valueDim = value.getDimSize(kChannels);
  if (failed(verifyResult(*this, "acc", typeOf(getAcc()), query, valueDim)) || failed(verifyResult(*this, "max", typeOf(getMax()), query, valueDim)) ||
      failed(verifyResult(*this, "sum", typeOf(getSum()), query, valueDim)))
    return failure();
  if (getCertificate() && failed(verifyResult(*this, "certificate", typeOf(getCertificate()), query, kCertificateNumbers)))
    return failure();
  if (failed(verifyPolicies(*this, getPolicies(), key)) || failed(verifySoftcap(*this, getSoftcap())))
    return failure();
  if (getLater() && !getMask()) // A11
    return emitOpError() << "expected 'later' only with a mask, got no mask";
  PolicyKind policy = getPolicyKind();
  for (auto [name, type] : {std::pair("key", key), std::pair("value", value)}) {
    SplitAttr split = getSplit(type);
    if (!split && policy != PolicyKind::Exact)
      return emitOpError() << "expected policy 'exact' over dense caches, got '" << stringifyPolicyKind(policy) << "'";
    if (split && policy == PolicyKind::AlignedKV && split.getKind() != FormatKind::Float) // P1
      return emitOpError() << "expected a 'float' format under policy 'alignedkv', got " << name << " of format 'fixed'";
    if (split && policy == PolicyKind::Budget && split.getKind() != FormatKind::Fixed) // P2
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
  RankedTensorType acc = typeOf(getAcc());
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

/// One side split, the other dense, all else equal.
static LogicalResult verifySplitPair(Operation *op, StringRef splitName, RankedTensorType split, StringRef denseName, RankedTensorType dense) {
  if (!getSplit(split))
    return op->emitOpError() << "expected the " << splitName << " to have a split encoding, got " << split;
  if (dense.getEncoding())
    return op->emitOpError() << "expected the " << denseName << " to be dense, got " << dense;
  if (split.getElementType() != dense.getElementType() || split.getShape() != dense.getShape())
    return op->emitOpError() << "expected source and result to agree in shape and element type, got " << op->getOperand(0).getType()
                             << " and " << op->getResult(0).getType();
  return success();
}

LogicalResult SplitOp::verify() { return verifySplitPair(*this, "result", typeOf(getResult()), "source", typeOf(getSource())); }

OpFoldResult SplitOp::fold(FoldAdaptor) {
  if (auto join = getSource().getDefiningOp<JoinOp>())
    if (join.getBits() == 16 && join.getSource().getType() == getType())
      return join.getSource();
  return {};
}

LogicalResult JoinOp::verify() {
  if (getBits() < 1 || getBits() > 16)
    return emitOpError() << "expected 1 to 16 bits, got " << getBits();
  return verifySplitPair(*this, "source", typeOf(getSource()), "result", typeOf(getResult()));
}

LogicalResult AppendOp::verify() {
  RankedTensorType tokens = typeOf(getTokens()), cache = typeOf(getCache()), result = typeOf(getResult());
  if (tokens.getEncoding()) // A6
    return emitOpError() << "expected dense tokens, got " << tokens;
  if (cache.getEncoding() != result.getEncoding())
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
