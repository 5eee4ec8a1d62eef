// aligned-fuse-decode-attention: from attention as it is declared to attention as it is computed, under a policy.
//
// Every shape is fused: what no kernel takes at once goes query by query, and is written out where kernels are made.
#include "aligned/Transforms/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDFUSEDECODEATTENTION
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

enum Dim { kBatch, kHeads, kQueries, kChannels };

RankedTensorType typeOf(Value value) { return cast<RankedTensorType>(value.getType()); }

/// Query heads that share a kv head; nothing where types don't say.
std::optional<int64_t> groupOf(AttentionOp attention) {
  int64_t queryHeads = typeOf(attention.getQuery()).getDimSize(kHeads), kvHeads = typeOf(attention.getKey()).getDimSize(kHeads);
  return ShapedType::isDynamic(queryHeads) || ShapedType::isDynamic(kvHeads) ? std::nullopt : std::optional(queryHeads / kvHeads);
}

/// The most queries that a kernel can take at once and that divide `queries`; where even one is too many, one.
int64_t queriesPerKernel(int64_t queries, std::optional<int64_t> group) {
  if (ShapedType::isDynamic(queries) || !group)
    return 1;
  int64_t most = std::min(kMaxQueryRows / *group, queries);
  while (most > 1 && queries % most)
    --most;
  return std::max<int64_t>(most, 1);
}

/// Where the mask says how many queries there are and the query's type does not, the type can.
void refineQueries(ImplicitLocOpBuilder &b, AttentionOp attention) {
  RankedTensorType query = typeOf(attention.getQuery());
  Value mask = attention.getAttnMask();
  if (!query.isDynamicDim(kQueries) || !mask || typeOf(mask).getDimSize(kQueries) == 1)
    return;
  SmallVector<int64_t> shape(query.getShape());
  shape[kQueries] = typeOf(mask).getDimSize(kQueries);
  attention.getQueryMutable().set(tensor::CastOp::create(b, query.clone(shape), attention.getQuery()));
}

/// No kernel takes so many query rows over planes, or a number that types don't say.
void unpackCaches(ImplicitLocOpBuilder &b, AttentionOp attention) {
  if (!getPlanes(attention.getKey().getType()))
    return;
  attention.emitRemark("caches are unpacked at every step: expected at most ")
      << kMaxQueryRows << " query heads per kv head, got " << attention.getQuery().getType() << " and " << attention.getKey().getType();
  for (OpOperand *side : {&attention.getKeyMutable(), &attention.getValueMutable()})
    side->set(UnpackOp::create(b, typeOf(side->get()).dropEncoding(), side->get()).getResult());
}

/// Whether policies of this kind can choose bits of what key and value are stored in; P1 and P2 of the verifier, said in the user's words.
LogicalResult checkFormat(AttentionOp attention, PolicyKind policy) {
  if (policy == PolicyKind::Exact)
    return success();
  FormatKind wanted = policy == PolicyKind::AlignedKV ? FormatKind::Float : FormatKind::Fixed;
  for (auto [name, value] : {std::pair("key", attention.getKey()), std::pair("value", attention.getValue())})
    if (FormatKind kind = getPlanes(value.getType()).getKind(); kind != wanted) {
      InFlightDiagnostic diagnostic = attention.emitOpError() << "expected a " << name << " stored as '" << stringifyFormatKind(wanted) << "' under policy '"
                                                              << stringifyPolicyKind(policy) << "', got '" << stringifyFormatKind(kind) << "'";
      diagnostic.attachNote(value.getLoc()) << "the " << name << " is defined here";
      return failure();
    }
  return success();
}

/// Attention of the queries in `query`, which a kernel can take at once: the results of `attention` for them. `later` queries of it follow, null for none.
SmallVector<Value> fuse(ImplicitLocOpBuilder &b, AttentionOp attention, Value query, Value attnMask, ArrayAttr policies, int32_t id, Value later = {}) {
  SmallVector<int64_t> shape(typeOf(query).getShape());
  auto row = RankedTensorType::get(ArrayRef(shape).drop_back(), b.getF32Type());
  shape[kChannels] = typeOf(attention.getValue()).getDimSize(kChannels);
  auto acc = RankedTensorType::get(shape, b.getF32Type()), result = acc.clone(typeOf(attention.getResult()).getElementType());
  Type certificate, certified;
  if (attention.getBound()) {
    shape[kChannels] = kCertificateNumbers;
    certificate = RankedTensorType::get(shape, b.getF32Type());
    certified = row;
  }
  auto decode = DecodeAttentionOp::create(b, acc, row, row, certificate, query, attention.getKey(), attention.getValue(), attention.getScale(), policies,
                                          attention.getMaskedZero(), /*from_dense_copy=*/false, id, attention.getSoftcapAttr(), attention.getMaskAttr(),
                                          /*dynamic_softcap=*/Value(), /*dynamic_window=*/Value(), /*dynamic_sinks=*/Value(), later, /*tolerance_factor=*/Value(), attnMask, attention.getSinkLogits(), /*targets=*/ValueRange());
  return FinishOp::create(b, result, certified, certified, decode.getAcc(), decode.getSum(), decode.getCertificate())->getResults();
}

/// Attention of all queries, `step` of them at a time. Memory for the results is laid out once and filled stretch by stretch.
SmallVector<Value> fuseInStretches(ImplicitLocOpBuilder &b, AttentionOp attention, int64_t step, ArrayAttr policies, int32_t id) {
  Value query = attention.getQuery();
  RankedTensorType queryType = typeOf(query);
  SmallVector<OpFoldResult> sizes = tensor::getMixedSizes(b, b.getLoc(), query);
  /// Extents of a result: of the output, or of what there is once per row.
  auto sizesOf = [&](Value result) {
    SmallVector<OpFoldResult> resultSizes = sizes;
    resultSizes[kChannels] = tensor::getMixedSize(b, b.getLoc(), attention.getValue(), kChannels);
    resultSizes.resize(typeOf(result).getRank());
    return resultSizes;
  };
  SmallVector<Value> results;
  for (Value result : attention->getResults())
    results.push_back(tensor::EmptyOp::create(b, sizesOf(result), typeOf(result).getElementType()));
  Value zero = arith::ConstantIndexOp::create(b, 0), end = getValueOrCreateConstantIndexOp(b, b.getLoc(), sizes[kQueries]);
  auto loop = scf::ForOp::create(b, zero, end, arith::ConstantIndexOp::create(b, step), results);
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    SmallVector<OpFoldResult> offsets(4, b.getIndexAttr(0)), strides(4, b.getIndexAttr(1));
    offsets[kQueries] = loop.getInductionVar();
    sizes[kQueries] = b.getIndexAttr(step);
    SmallVector<int64_t> shape(queryType.getShape());
    shape[kQueries] = step;
    Value stretch = tensor::ExtractSliceOp::create(b, queryType.clone(shape), query, offsets, sizes, strides);
    Value attnMask = attention.getAttnMask();
    if (attnMask && typeOf(attnMask).getDimSize(kQueries) != 1) {
      SmallVector<OpFoldResult> maskSizes = tensor::getMixedSizes(b, b.getLoc(), attnMask);
      maskSizes[kQueries] = b.getIndexAttr(step);
      SmallVector<int64_t> maskShape(typeOf(attnMask).getShape());
      maskShape[kQueries] = step;
      attnMask = tensor::ExtractSliceOp::create(b, typeOf(attnMask).clone(maskShape), attnMask, offsets, maskSizes, strides);
    }
    Value later; // a mask goes by where a query stands
    if (attention.getMask())
      later = arith::SubIOp::create(b, arith::SubIOp::create(b, end, arith::ConstantIndexOp::create(b, step)), loop.getInductionVar());
    SmallVector<Value> filled;
    for (auto [part, whole] : llvm::zip(fuse(b, attention, stretch, attnMask, policies, id, later), loop.getRegionIterArgs())) {
      auto leading = [rank = typeOf(whole).getRank()](ArrayRef<OpFoldResult> all) { return all.take_front(rank); };
      filled.push_back(tensor::InsertSliceOp::create(b, part, whole, leading(offsets), sizesOf(whole), leading(strides)));
    }
    scf::YieldOp::create(b, filled);
  }
  return loop.getResults();
}

/// Attention of which the result has no elements: there is nothing to compute, and no error.
SmallVector<Value> nothing(ImplicitLocOpBuilder &b, AttentionOp attention) {
  SmallVector<Value> results, sizes;
  for (Value result : attention->getResults()) {
    RankedTensorType type = typeOf(result);
    Value zero = arith::ConstantOp::create(b, b.getZeroAttr(type.getElementType()));
    sizes.clear();
    for (int64_t dim = 0; dim < type.getRank(); ++dim)
      if (type.isDynamicDim(dim))
        sizes.push_back(tensor::DimOp::create(b, dim == kChannels ? attention.getValue() : attention.getQuery(), dim));
    results.push_back(tensor::SplatOp::create(b, zero, type, sizes));
  }
  return results;
}

struct AlignedFuseDecodeAttentionPass : aligned::impl::AlignedFuseDecodeAttentionBase<AlignedFuseDecodeAttentionPass> {
  using AlignedFuseDecodeAttentionBase::AlignedFuseDecodeAttentionBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    PolicyAttr chosen = parsePolicy(policy, tolerance, &getContext(), [&] { return module.emitError(); });
    if (!chosen)
      return signalPassFailure();
    int32_t id = 0;
    bool ok = true;
    auto option = ArrayAttr::get(&getContext(), chosen);
    module.walk([&](AttentionOp attention) { ok &= succeeded(rewrite(attention, attention.getPolicies().value_or(option), id++)); });
    if (!ok)
      signalPassFailure();
  }

  static LogicalResult rewrite(AttentionOp attention, ArrayAttr policies, int32_t id) {
    ImplicitLocOpBuilder b(attention.getLoc(), attention);
    refineQueries(b, attention);
    if (llvm::is_contained(typeOf(attention.getResult()).getShape(), 0)) {
      attention->replaceAllUsesWith(nothing(b, attention));
      attention.erase();
      return success();
    }
    std::optional<int64_t> group = groupOf(attention);
    if (!group || *group > kMaxQueryRows)
      unpackCaches(b, attention);
    RankedTensorType query = typeOf(attention.getQuery()), key = typeOf(attention.getKey());
    if (!getPlanes(key))
      policies = ArrayAttr::get(attention.getContext(), PolicyAttr::get(attention.getContext(), PolicyKind::Exact));
    if (failed(checkFormat(attention, cast<PolicyAttr>(policies[0]).getKind())))
      return failure();
    if (PlanesAttr keyPlanes = getPlanes(key), valuePlanes = getPlanes(attention.getValue().getType()); keyPlanes && keyPlanes.getKind() != valuePlanes.getKind())
      return attention.emitOpError("expected key and value to have one kind of format, got ")
             << stringifyFormatKind(keyPlanes.getKind()) << " and " << stringifyFormatKind(valuePlanes.getKind());
    int64_t queries = query.getDimSize(kQueries), step = queriesPerKernel(queries, group);
    SmallVector<Value> results = step == queries ? fuse(b, attention, attention.getQuery(), attention.getAttnMask(), policies, id) : fuseInStretches(b, attention, step, policies, id);
    for (auto [result, type] : llvm::zip(results, attention->getResultTypes()))
      if (result.getType() != type) // shapes known on one side only
        result = tensor::CastOp::create(b, type, result);
    attention->replaceAllUsesWith(results);
    attention.erase();
    return success();
  }
};

} // namespace
