// onnx.Attention, as of opsets 23 to 25: what its many options become.
//
//   Q, K, V                     of rank 4, or of rank 3 with heads beside channels, which are taken apart
//   past_key, past_value        caches that K and V are appended to; the present ones are results
//   is_causal, windows          the mask attribute where the queries are the newest tokens, else a mask of i1 (Positions)
//   nonpad_kv_seqlen            lengths of batch entries, in such a mask
//   attn_mask                   added or of i1; where it is shorter than the tokens, the rest is hidden
//   qk_matmul_output            computed beside the attention, in linalg
#include "NamedOps.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Arith/Utils/Utils.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"

#include <cmath>
#include <limits>

using namespace mlir;
using namespace aligned;

namespace {

/// An operand or result that is left out has type none.
bool isThere(Value value) { return value && !isa<NoneType>(value.getType()); }

/// Integer attributes of onnx.Attention, by what they are where they are left out.
class OnnxNumbers {
public:
  OnnxNumbers(Draft &draft, Operation *op) : draft(draft), op(op) {}

  int64_t get(StringRef name, int64_t otherwise, int64_t least, int64_t most) {
    Attribute attribute = attributeOf(op, name);
    if (!attribute)
      return otherwise;
    auto number = dyn_cast<IntegerAttr>(attribute);
    if (number && number.getValue().getSignificantBits() <= 64) {
      int64_t value = number.getType().isUnsignedInteger() ? number.getValue().getZExtValue() : number.getValue().getSExtValue();
      if (value >= least && value <= most)
        return value;
    }
    draft.refuse("expected " + name + " to be a number from " + Twine(least) + " to " + Twine(most) + ", got another");
    return otherwise;
  }
  double get(StringRef name, double otherwise) {
    Attribute attribute = attributeOf(op, name);
    if (auto number = dyn_cast_or_null<FloatAttr>(attribute))
      return number.getValueAsDouble();
    if (attribute)
      draft.refuse("expected " + name + " to be a number, got another attribute");
    return otherwise;
  }

private:
  Draft &draft;
  Operation *op;
};

/// A mask that covers the first tokens only: the others are hidden.
Value padMask(Draft &draft, Value mask, Value key) {
  auto type = dyn_cast<RankedTensorType>(mask.getType());
  int64_t tokens = draft.typeOf(key).getDimSize(2);
  if (!type || type.getRank() == 0 || type.isDynamicDim(type.getRank() - 1) || ShapedType::isDynamic(tokens) || type.getShape().back() >= tokens)
    return mask; // what does not fit is refused behind this
  if (type.getShape().back() == 1)
    return draft.refuse("expected a mask of one token or of " + Twine(tokens) + " to be told apart, got " + textOf(type)); // broadcast or padded
  Type element = type.getElementType();
  if (!element.isInteger(1) && !isa<FloatType>(element))
    return mask;
  TypedAttr hidden =
      element.isInteger(1) ? TypedAttr(draft.b.getBoolAttr(false)) : TypedAttr(draft.b.getFloatAttr(element, -std::numeric_limits<double>::infinity()));
  SmallVector<OpFoldResult> low(type.getRank(), draft.b.getIndexAttr(0)), high = low;
  high.back() = draft.b.getIndexAttr(tokens - type.getShape().back());
  SmallVector<int64_t> shape(type.getShape());
  shape.back() = tokens;
  return tensor::PadOp::create(draft.b, RankedTensorType::get(shape, element), mask, low, high, Value(arith::ConstantOp::create(draft.b, hidden)));
}

/// cache ++ tokens, of which nothing but their number differs.
Value appendTo(Draft &draft, Value cache, Value tokens) {
  if (!draft.isTensor(cache, "a past") || !draft.isTensor(tokens, "what is behind a past"))
    return nullptr;
  RankedTensorType past = draft.typeOf(cache), more = draft.typeOf(tokens);
  bool fits = past.getRank() == 4 && more.getRank() == 4 && past.getElementType() == more.getElementType();
  for (int64_t dim : {0, 1, 3})
    fits = fits && past.getDimSize(dim) == more.getDimSize(dim);
  if (!fits)
    return draft.refuse("expected a past [batch, kv_heads, tokens, head_dim] like " + textOf(more) + ", got " + textOf(past));
  SmallVector<int64_t> shape(past.getShape());
  shape[2] = past.isDynamicDim(2) || more.isDynamicDim(2) ? ShapedType::kDynamic : past.getDimSize(2) + more.getDimSize(2);
  return AppendOp::create(draft.b, RankedTensorType::get(shape, past.getElementType()), tokens, cache);
}

//===-- qk_matmul_output ----------------------------------------------------===//

/// Elements of one function of elements of tensors, each of which is read at some dimensions of the result.
Value elementwise(Draft &draft, ArrayRef<Value> inputs, ArrayRef<AffineMap> places, Type element,
                  function_ref<Value(ImplicitLocOpBuilder &, ValueRange)> formula) {
  SmallVector<OpFoldResult> sizes;
  for (int64_t dim = 0; dim < 4; ++dim)
    sizes.push_back(draft.extent(inputs[0], dim));
  Value target = tensor::EmptyOp::create(draft.b, sizes, element);
  SmallVector<AffineMap> maps(places);
  maps.push_back(draft.b.getMultiDimIdentityMap(4));
  SmallVector<utils::IteratorType> loops(4, utils::IteratorType::parallel);
  auto body = [&](OpBuilder &builder, Location loc, ValueRange args) {
    ImplicitLocOpBuilder b(loc, builder);
    linalg::YieldOp::create(b, formula(b, args));
  };
  return linalg::GenericOp::create(draft.b, target.getType(), inputs, target, maps, loops, body).getResult(0);
}

/// Folds a float tensor of rank 4 over its last dimension.
template <typename Combine>
Value fold(Draft &draft, Value input, double identity) {
  SmallVector<OpFoldResult> sizes;
  for (int64_t dim = 0; dim < 3; ++dim)
    sizes.push_back(draft.extent(input, dim));
  Value empty = tensor::EmptyOp::create(draft.b, sizes, draft.b.getF32Type());
  Value target = linalg::FillOp::create(draft.b, draft.number(identity), empty).getResult(0);
  AffineMap all = draft.b.getMultiDimIdentityMap(4);
  SmallVector<utils::IteratorType> loops(3, utils::IteratorType::parallel);
  loops.push_back(utils::IteratorType::reduction);
  auto body = [](OpBuilder &b, Location loc, ValueRange args) { linalg::YieldOp::create(b, loc, Combine::create(b, loc, args[0], args[1]).getResult()); };
  return linalg::GenericOp::create(draft.b, target.getType(), input, target, {all, all.getMajorSubMap(3)}, loops, body).getResult(0);
}

/// sum_c query[b, h, i, c] * key[b, h / G, t, c] in f32.
Value productOf(Draft &draft, Value query, Value key) {
  RankedTensorType q = draft.typeOf(query), k = draft.typeOf(key);
  int64_t heads = k.getDimSize(1), group = q.getDimSize(1) / heads;
  query = draft.ungroup(query, {1, 2, 1, 1}, {q.getDimSize(0), heads, group, q.getDimSize(2), q.getDimSize(3)});
  SmallVector<OpFoldResult> sizes;
  for (int64_t dim = 0; dim < 4; ++dim)
    sizes.push_back(draft.extent(query, dim));
  sizes.push_back(draft.extent(key, 2));
  Type f32 = draft.b.getF32Type();
  Value empty = tensor::EmptyOp::create(draft.b, sizes, f32);
  Value target = linalg::FillOp::create(draft.b, draft.number(0), empty).getResult(0);
  auto at = [&](ArrayRef<unsigned> dims) { return AffineMap::getMultiDimMapWithTargets(6, dims, draft.b.getContext()); };
  SmallVector<utils::IteratorType> loops(5, utils::IteratorType::parallel);
  loops.push_back(utils::IteratorType::reduction);
  auto body = [&](OpBuilder &builder, Location loc, ValueRange args) {
    ImplicitLocOpBuilder b(loc, builder);
    auto widened = [&](Value x) -> Value { return x.getType() == f32 ? x : arith::ExtFOp::create(b, f32, x); };
    linalg::YieldOp::create(b, arith::AddFOp::create(b, args[2], arith::MulFOp::create(b, widened(args[0]), widened(args[1]))).getResult());
  };
  SmallVector<AffineMap> maps = {at({0, 1, 2, 3, 5}), at({0, 1, 4, 5}), at({0, 1, 2, 3, 4})};
  Value product = linalg::GenericOp::create(draft.b, target.getType(), ValueRange{query, key}, target, maps, loops, body).getResult(0);
  return draft.group(product, {1, 2, 1, 1});
}

/// What lies between the products: scores (mode 0), behind the cap (1), behind masks (2), or probabilities (3), of which a row that sees nothing is zero.
Value scoresOf(Draft &draft, AttentionOp attention, int64_t mode, Type element) {
  Type f32 = draft.b.getF32Type();
  AffineMap each = draft.b.getMultiDimIdentityMap(4), row = each.getMajorSubMap(3);
  const double cap = mode > 0 && attention.getSoftcap() ? attention.getSoftcap()->convertToDouble() : 0;
  Value scale = attention.getScale(), mask = mode > 1 ? attention.getAttnMask() : Value();
  Value product = productOf(draft, attention.getQuery(), attention.getKey());
  SmallVector<Value> inputs = {product};
  SmallVector<AffineMap> places = {each};
  if (mask) {
    SmallVector<AffineExpr> place;
    for (int64_t dim = 0; dim < 4; ++dim)
      place.push_back(dim < 3 && draft.typeOf(mask).getDimSize(dim) == 1 ? draft.b.getAffineConstantExpr(0) : draft.b.getAffineDimExpr(dim));
    inputs.push_back(mask);
    places.push_back(AffineMap::get(4, 0, place, draft.b.getContext()));
  }
  Value scores = elementwise(draft, inputs, places, f32, [&](ImplicitLocOpBuilder &b, ValueRange args) {
    auto number = [&](double x) -> Value { return arith::ConstantOp::create(b, b.getF32FloatAttr(x)); };
    Value score = arith::MulFOp::create(b, args[0], scale);
    if (cap)
      score = arith::MulFOp::create(b, number(cap), math::TanhOp::create(b, arith::DivFOp::create(b, score, number(cap))));
    if (!mask)
      return score;
    if (args[1].getType().isInteger(1))
      return arith::SelectOp::create(b, args[1], score, number(-INFINITY)).getResult();
    Value added = args[1].getType() == f32 ? args[1] : arith::ExtFOp::create(b, f32, args[1]).getResult();
    return arith::AddFOp::create(b, score, added).getResult();
  });
  if (mode == 3) {
    Value top = fold<arith::MaximumFOp>(draft, scores, -INFINITY);
    Value weights = elementwise(draft, {scores, top}, {each, row}, f32, [&](ImplicitLocOpBuilder &b, ValueRange args) {
      Value weight = math::ExpOp::create(b, arith::SubFOp::create(b, args[0], args[1]));
      Value nothing = arith::CmpFOp::create(b, arith::CmpFPredicate::OEQ, args[1], arith::ConstantOp::create(b, b.getF32FloatAttr(-INFINITY)));
      return arith::SelectOp::create(b, nothing, arith::ConstantOp::create(b, b.getF32FloatAttr(0)), weight).getResult();
    });
    Value sum = fold<arith::AddFOp>(draft, weights, 0);
    scores = elementwise(draft, {weights, sum}, {each, row}, f32, [&](ImplicitLocOpBuilder &b, ValueRange args) {
      Value zero = arith::ConstantOp::create(b, b.getF32FloatAttr(0)), nothing = arith::CmpFOp::create(b, arith::CmpFPredicate::OEQ, args[1], zero);
      return arith::SelectOp::create(b, nothing, zero, arith::DivFOp::create(b, args[0], args[1])).getResult();
    });
  }
  if (element == f32)
    return scores;
  return elementwise(draft, {scores}, {each}, element,
                     [&](ImplicitLocOpBuilder &b, ValueRange args) { return arith::TruncFOp::create(b, element, args[0]).getResult(); });
}

} // namespace

/// Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen to Y, present_key, present_value, qk_matmul_output. A row of which nothing is seen is zero.
Results aligned::raiseOnnxAttention(Draft &draft, Operation *op) {
  constexpr unsigned kMostOperands = 7, kMostResults = 4;
  if (op->getNumOperands() < 3 || op->getNumOperands() > kMostOperands || op->getNumResults() < 1 || op->getNumResults() > kMostResults)
    return draft.refuse("expected 3 to 7 operands and 1 to 4 results, got " + Twine(op->getNumOperands()) + " and " + Twine(op->getNumResults()));
  constexpr StringRef attributes[] = {"is_causal",         "kv_num_heads", "left_window_size", "onnx_node_name",   "q_num_heads", "qk_matmul_output_mode",
                                      "right_window_size", "scale",        "softcap",          "softmax_precision"};
  if (!expectAttributes(draft, op, attributes))
    return std::nullopt;
  auto operand = [&](unsigned number) { return number < op->getNumOperands() && isThere(op->getOperand(number)) ? op->getOperand(number) : Value(); };
  auto result = [&](unsigned number) { return number < op->getNumResults() && isThere(op->getResult(number)) ? op->getResult(number) : Value(); };
  for (unsigned number : {0, 1, 2})
    if (!operand(number) || !draft.isTensor(operand(number), "operand " + Twine(number)))
      return draft.refuse("expected Q, K and V, got none of one");
  if (!result(0))
    return draft.refuse("expected an output Y, got none");

  constexpr int64_t far = std::numeric_limits<int32_t>::max();
  OnnxNumbers numbers(draft, op);
  NamedAttention found;
  Positions &at = found.positions;
  at.causal = numbers.get("is_causal", 0, 0, 1);
  at.left = numbers.get("left_window_size", -1, -1, far);
  at.right = numbers.get("right_window_size", -1, -1, far);
  int64_t queryHeads = numbers.get("q_num_heads", 0, 1, far), kvHeads = numbers.get("kv_num_heads", 0, 1, far);
  const int64_t mode = numbers.get("qk_matmul_output_mode", 0, 0, 3);
  int64_t precision = numbers.get("softmax_precision", 1, 1, far); // f32 serves f16 and bf16, too, and what f64 would add is below f32's rounding of the output
  found.softcap = numbers.get("softcap", 0.0);
  if (precision != 1 && precision != 10 && precision != 11 && precision != 16)
    draft.refuse("expected softmax_precision of a float type (1, 10, 11 or 16), got " + Twine(precision));
  const bool scored = result(3) && !result(3).use_empty();
  if (scored && mode == 0 && found.softcap)
    draft.refuse("expected no softcap with qk_matmul_output ahead of it (mode 0), of which implementations think differently, got one");
  if (attributeOf(op, "scale"))
    found.scale = draft.number(numbers.get("scale", 1.0));
  if (!draft.reason.empty())
    return std::nullopt;

  // [batch, tokens, heads * head_dim] has its heads beside the channels.
  found.query = operand(0), found.key = operand(1), found.value = operand(2);
  const int64_t rank = draft.typeOf(found.query).getRank();
  for (Value *input : {&found.query, &found.key, &found.value}) {
    RankedTensorType type = draft.typeOf(*input);
    if ((rank != 3 && rank != 4) || type.getRank() != rank)
      return draft.refuse("expected Q, K and V of rank 3 or 4 alike, got " + textOf(found.query.getType()) + " and " + textOf(type));
    int64_t heads = input == &found.query ? queryHeads : kvHeads;
    if (rank == 4) {
      if (heads && heads != type.getDimSize(1))
        return draft.refuse("expected as many heads as q_num_heads and kv_num_heads say, got " + textOf(type));
      continue;
    }
    if (!heads || type.isDynamicDim(2) || type.getDimSize(2) % heads)
      return draft.refuse("expected q_num_heads and kv_num_heads that divide the last dimension of rank 3, got " + Twine(heads) + " and " + textOf(type));
    int64_t split[] = {type.getDimSize(0), type.getDimSize(1), heads, type.getDimSize(2) / heads};
    Value apart = draft.ungroup(*input, {1, 1, 2}, split);
    *input = draft.transpose(apart, {0, 2, 1, 3});
  }
  found.element = draft.typeOf(found.query).getElementType();
  const int64_t queries = draft.typeOf(found.query).getDimSize(2), fresh = draft.typeOf(found.key).getDimSize(2);
  at.newest = !ShapedType::isDynamic(queries) && queries == fresh && !scored; // scores are masked by numbers

  Value pastKey = operand(4), pastValue = operand(5), lengths = operand(6);
  if (!pastKey != !pastValue || (lengths && pastKey))
    return draft.refuse("expected past_key and past_value together and without nonpad_kv_seqlen, got another set");
  if (pastKey) {
    found.key = appendTo(draft, pastKey, found.key);
    found.value = found.key ? appendTo(draft, pastValue, found.value) : Value();
    if (!found.value)
      return std::nullopt;
    if (at.bounded() && (!at.newest || at.right > 0)) // a mask by numbers counts from the past on, wherever queries stand
      at.offset = getValueOrCreateConstantIndexOp(draft.b, draft.b.getLoc(), draft.extent(pastKey, 2));
  }
  if (lengths) {
    auto type = dyn_cast<RankedTensorType>(lengths.getType());
    if (!type || type.getRank() != 1 || type.getDimSize(0) != draft.typeOf(found.query).getDimSize(0) || !type.getElementType().isSignlessInteger(64))
      return draft.refuse("expected nonpad_kv_seqlen of i64, one for each batch entry, got " + textOf(lengths.getType()));
    at.lengths = lengths;
  }
  if (Value mask = operand(3)) {
    found.mask = padMask(draft, mask, found.key);
    if (!found.mask)
      return std::nullopt;
  }
  found.maskedZero = true;
  Value attention = draft.attend(found);
  if (!attention)
    return std::nullopt;
  Value scores = scored ? scoresOf(draft, draft.attentions.back(), mode, found.element) : Value();
  if (rank == 3)
    attention = draft.group(draft.transpose(attention, {0, 2, 1, 3}), {1, 1, 2});
  SmallVector<Value> results;
  for (auto [number, value] : llvm::enumerate(ArrayRef<Value>{attention, found.key, found.value, scores}))
    if (number < op->getNumResults())
      results.push_back(value && result(number) ? draft.cast(value, op->getResult(number).getType()) : Value());
  if (!draft.reason.empty())
    return std::nullopt;
  return results;
}
