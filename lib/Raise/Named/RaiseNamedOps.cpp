// aligned-raise-named-ops: ops of other projects that say attention by name, to `aligned.attention`.
//
// Their dialects are not linked: a module holds them in generic form, parsed with unregistered dialects allowed. What each op means is written down here from
// the projects' own definitions; layouts differ, so that reshapes and transposes surround what is raised:
//
//   tm_tensor.attention          [batch, ..., rows, head_dim]          heads that were repeated for it are found behind it
//   onnx.Attention               4-D, or 3-D with heads beside channels; past and present caches, lengths, windows: RaiseOnnxAttention.cpp
//   iree_linalg_ext.attention    any order of dimensions, as its indexing maps say
//   stablehlo.composite          "odml.scaled_dot_product_attention": [batch, tokens, heads, head_dim]
//   torch.aten.scaled_dot_product_attention, with the function around it: TorchFunctions.cpp
//
// and tm_tensor.scatter, which updates caches, to slices. Whatever does not fit is left as it is, with a remark that says what was expected.
#include "../Appends.h"
#include "NamedOps.h"
#include "aligned/Raise/Passes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/ADT/StringSwitch.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDRAISENAMEDOPS
#include "aligned/Raise/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

Results one(Value value) { return value ? Results(SmallVector<Value>{value}) : std::nullopt; }

bool expectCounts(Draft &draft, Operation *op, unsigned least, unsigned most, unsigned results) {
  unsigned operands = op->getNumOperands();
  if (operands >= least && operands <= most && op->getNumResults() == results)
    return true;
  draft.refuse("expected " + Twine(least) + (most > least ? " to " + Twine(most) : Twine("")) + " operands and " + Twine(results) + " results, got " +
               Twine(operands) + " and " + Twine(op->getNumResults()));
  return false;
}

/// `operandSegmentSizes` where there is one: so many inputs and one output.
bool expectSegments(Draft &draft, Operation *op, int32_t inputs) {
  auto sizes = dyn_cast_or_null<DenseI32ArrayAttr>(attributeOf(op, "operandSegmentSizes"));
  if (sizes && sizes.asArrayRef() == ArrayRef<int32_t>{inputs, 1})
    return true;
  draft.refuse("expected operandSegmentSizes of " + Twine(inputs) + " inputs and 1 output, got another");
  return false;
}

//===----------------------------------------------------------------------===//
// What lies behind operands
//===----------------------------------------------------------------------===//

/// A generic that copies its one input, and the input's place in the loops; null where it is none.
AffineMap copyMap(linalg::GenericOp op) {
  if (!op || op.getNumDpsInputs() != 1 || op.getNumDpsInits() != 1 || op->getNumResults() != 1 || op.getNumReductionLoops())
    return {};
  Block *body = op.getBody();
  bool copies = llvm::hasSingleElement(body->getOperations()) && body->getTerminator()->getOperand(0) == body->getArgument(0);
  AffineMap in = op.getMatchingIndexingMap(op.getDpsInputOperand(0)), out = op.getMatchingIndexingMap(op.getDpsInitOperand(0));
  return copies && out.isIdentity() ? in : AffineMap();
}

/// The tensor of rank 4 whose first two dimensions were made one; null where there is none.
Value beforeCollapse(Value value) {
  auto collapse = value.getDefiningOp<tensor::CollapseShapeOp>();
  SmallVector<ReassociationIndices> batch = {{0, 1}, {2}, {3}};
  return collapse && collapse.getReassociationIndices() == batch ? collapse.getSrc() : Value();
}

/// [batch, kv_heads, tokens, head_dim] of which the value, [batch, heads, tokens, head_dim], repeats each head some times in turn; the value where it repeats
/// none.
Value beforeRepeat(Value value) {
  auto collapse = value.getDefiningOp<tensor::CollapseShapeOp>();
  SmallVector<ReassociationIndices> heads = {{0}, {1, 2}, {3}, {4}};
  if (!collapse || collapse.getReassociationIndices() != heads)
    return value;
  Value repeated = collapse.getSrc();
  if (auto broadcast = repeated.getDefiningOp<linalg::BroadcastOp>())
    return broadcast.getDimensions() == ArrayRef<int64_t>{2} ? broadcast.getInput() : value;
  auto generic = repeated.getDefiningOp<linalg::GenericOp>();
  AffineMap in = copyMap(generic);
  bool repeats = in && in == AffineMap::getMultiDimMapWithTargets(5, {0, 1, 3, 4}, value.getContext());
  return repeats ? generic.getDpsInputs()[0] : value;
}

/// The mask of rank 4 of which the value is a copy along dimensions of 1; the value where it is none.
Value beforeBroadcast(Value value) {
  auto generic = value.getDefiningOp<linalg::GenericOp>();
  AffineMap in = copyMap(generic);
  if (!in || in.getNumResults() != 4 || in.getNumDims() != 4)
    return value;
  for (auto [dim, expr] : llvm::enumerate(in.getResults()))
    if (expr != getAffineDimExpr(dim, value.getContext()) && (dim == 3 || expr != getAffineConstantExpr(0, value.getContext())))
      return value;
  Value source = generic.getDpsInputs()[0];
  auto from = cast<RankedTensorType>(source.getType());
  for (auto [dim, expr] : llvm::enumerate(in.getResults())) // element 0 of more than one is no broadcast
    if (isa<AffineConstantExpr>(expr) && from.getDimSize(dim) != 1)
      return value;
  return source;
}

//===----------------------------------------------------------------------===//
// tm_tensor
//===----------------------------------------------------------------------===//

/// Inputs query, key, value and, where there is one, a mask of all scores; the output is overwritten. A row of -inf gives zero: its sum is compared with 0.
Results raiseTmAttention(Draft &draft, Operation *op) {
  if (!expectCounts(draft, op, 4, 5, 1) || !expectAttributes(draft, op, {"operandSegmentSizes", "scale"}) ||
      !expectSegments(draft, op, op->getNumOperands() - 1))
    return std::nullopt;
  NamedAttention found;
  found.query = op->getOperand(0), found.key = op->getOperand(1), found.value = op->getOperand(2);
  found.mask = op->getNumOperands() == 5 ? op->getOperand(3) : Value();
  found.maskedZero = true;
  for (Value operand : op->getOperands())
    if (!draft.isTensor(operand, "each operand"))
      return std::nullopt;
  if (Attribute scale = attributeOf(op, "scale")) {
    auto number = dyn_cast<FloatAttr>(scale);
    if (!number)
      return draft.refuse("expected a scale that is a number, got another attribute");
    found.scale = draft.number(number.getValueAsDouble());
  }
  RankedTensorType query = draft.typeOf(found.query);
  const int64_t rank = query.getRank();
  for (Value operand : op->getOperands())
    if (draft.typeOf(operand).getRank() != rank || (rank != 3 && rank != 4))
      return draft.refuse("expected tensors of rank 3 or 4 alike, got " + textOf(query) + " and " + textOf(operand.getType()));
  if (found.mask) { // of all scores: nothing is broadcast here
    SmallVector<int64_t> scores(query.getShape());
    scores.back() = draft.typeOf(found.key).getDimSize(rank - 2);
    if (failed(verifyCompatibleShape(draft.typeOf(found.mask).getShape(), scores)))
      return draft.refuse("expected a mask of all scores of " + textOf(query) + " and " + textOf(found.key.getType()) + ", got " +
                          textOf(found.mask.getType()));
  }
  found.element = query.getElementType();
  SmallVector<int64_t> shape(query.getShape()), counts;
  shape.back() = draft.typeOf(found.value).getShape().back();

  // Batch and heads were made one for this op: as they were, kv heads can be told.
  SmallVector<Value> before;
  for (Value operand : {found.query, found.key, found.value})
    before.push_back(rank == 3 ? beforeCollapse(operand) : operand);
  auto sameHeads = [&](Value value) {
    return value && llvm::equal(draft.typeOf(value).getShape().take_front(2), draft.typeOf(before[0]).getShape().take_front(2)) &&
           !draft.typeOf(value).isDynamicDim(1);
  };
  Value mask = found.mask && rank == 3 ? beforeCollapse(found.mask) : found.mask;
  if (before[0] && llvm::all_of(before, sameHeads) && (!found.mask || sameHeads(mask))) {
    found.query = before[0];
    found.key = beforeRepeat(before[1]);
    found.value = beforeRepeat(before[2]);
    if (draft.typeOf(found.key).getDimSize(1) != draft.typeOf(found.value).getDimSize(1))
      found.key = before[1], found.value = before[2];
    found.mask = found.mask ? beforeBroadcast(mask) : Value();
    counts = {1, 1, 1, 1};
  } else if (rank == 4) {
    return draft.refuse("expected query, key and value of one static batch and number of heads, got " + textOf(query) + ", " + textOf(found.key.getType()) +
                        " and " + textOf(found.value.getType()));
  } else {
    counts = {1, 0, 1, 1}; // a batch of heads that stand alone
    for (Value *operand : {&found.query, &found.key, &found.value, &found.mask})
      if (*operand)
        *operand = draft.group(*operand, counts);
  }
  Value result = draft.attend(found);
  if (!result)
    return std::nullopt;
  bool collapses = rank == 3 && counts[1] == 1;
  return one(draft.cast(collapses ? draft.group(result, {2, 1, 1}) : draft.ungroup(result, counts, shape), op->getResult(0).getType()));
}

/// Slice u of the updates goes to where row u of the indices says, in order: dimension_map names the dimensions that are indexed. Slices are the last
/// dimensions of the original, and where such a dimension is indexed, too, the index is added.
Results raiseTmScatter(Draft &draft, Operation *op) {
  if (!expectCounts(draft, op, 3, 3, 1) || !expectAttributes(draft, op, {"operandSegmentSizes", "dimension_map", "unique_indices"}) ||
      !expectSegments(draft, op, 2))
    return std::nullopt;
  for (Value operand : op->getOperands())
    if (!draft.isTensor(operand, "each operand"))
      return std::nullopt;
  Value updates = op->getOperand(0), indices = op->getOperand(1), original = op->getOperand(2);
  RankedTensorType update = draft.typeOf(updates), index = draft.typeOf(indices), target = draft.typeOf(original);
  const int64_t slice = update.getRank() - 1, leading = target.getRank() - slice;
  auto map = dyn_cast_or_null<DenseI64ArrayAttr>(attributeOf(op, "dimension_map"));
  bool fits = map && index.getRank() == 2 && index.getElementType().isSignlessInteger() && !index.getElementType().isInteger(1) && index.getDimSize(1) == map.size() && slice >= 0 && leading >= 0 &&
              update.getElementType() == target.getElementType() && index.getDimSize(0) == update.getDimSize(0) && op->getResult(0).getType() == target;
  SmallVector<bool> indexed(target.getRank(), false);
  for (int64_t dim : fits ? map.asArrayRef() : ArrayRef<int64_t>()) {
    fits &= dim >= 0 && dim < target.getRank() && !indexed[dim];
    if (fits)
      indexed[dim] = true;
  }
  for (int64_t dim = 0; fits && dim < target.getRank(); ++dim) // what is not indexed is there in full
    fits = indexed[dim] || (dim >= leading && update.getDimSize(dim - leading + 1) == target.getDimSize(dim));
  if (!fits)
    return draft.refuse("expected updates [number, slice...] and indices [number, depth] into the last dimensions of the original, got " + textOf(update) +
                        ", " + textOf(index) + " and " + textOf(target));
  Block *body = op->getNumRegions() == 1 && op->getRegion(0).hasOneBlock() ? &op->getRegion(0).front() : nullptr;
  if (!body || body->getNumArguments() != 2 || !llvm::hasSingleElement(body->getOperations()) || body->back().getName().getStringRef() != "tm_tensor.yield" ||
      body->back().getNumOperands() != 1 || body->back().getOperand(0) != body->getArgument(0))
    return draft.refuse("expected a region that yields the update, got one that combines it with what was there");

  auto put = [&](ImplicitLocOpBuilder &b, Value number, Value into) -> Value {
    SmallVector<OpFoldResult> offsets(target.getRank(), b.getIndexAttr(0)), strides(target.getRank(), b.getIndexAttr(1)), sizes(leading, b.getIndexAttr(1));
    for (auto [depth, dim] : llvm::enumerate(map.asArrayRef())) {
      Value at = tensor::ExtractOp::create(b, indices, ValueRange{number, arith::ConstantIndexOp::create(b, depth)});
      offsets[dim] = b.createOrFold<arith::IndexCastOp>(b.getIndexType(), at);
    }
    SmallVector<OpFoldResult> from(update.getRank(), b.getIndexAttr(0)), taken(1, b.getIndexAttr(1)), steps(update.getRank(), b.getIndexAttr(1));
    from[0] = number;
    for (int64_t dim = 0; dim < slice; ++dim)
      sizes.push_back(tensor::getMixedSize(b, b.getLoc(), updates, dim + 1));
    taken.append(sizes.begin() + leading, sizes.end());
    auto type = RankedTensorType::get(update.getShape().drop_front(), update.getElementType());
    Value row = tensor::ExtractSliceOp::create(b, type, updates, from, taken, steps);
    return tensor::InsertSliceOp::create(b, row, into, offsets, sizes, strides);
  };
  if (update.getDimSize(0) == 1)
    return one(put(draft.b, draft.index(0), original));
  Value count = getValueOrCreateConstantIndexOp(draft.b, draft.b.getLoc(), draft.extent(updates, 0));
  auto loop = scf::ForOp::create(draft.b, draft.index(0), count, draft.index(1), ValueRange{original},
                                 [&](OpBuilder &builder, Location loc, Value number, ValueRange args) {
                                   ImplicitLocOpBuilder b(loc, builder);
                                   scf::YieldOp::create(b, put(b, number, args[0]));
                                 });
  return one(loop.getResult(0));
}

//===----------------------------------------------------------------------===//
// iree_linalg_ext
//===----------------------------------------------------------------------===//

/// Dimensions of the loops by their part in attention.
struct Roles {
  SmallVector<int64_t> batch, rows; ///< of all; of query and output alone
  int64_t channel = -1, token = -1, valueChannel = -1;
};

/// Each loop by whose maps know it: query, key, value, output.
std::optional<Roles> rolesOf(ArrayRef<AffineMap> maps) {
  Roles roles;
  for (AffineMap map : maps)
    if (map.getNumSymbols() || map.getNumDims() != maps[0].getNumDims() || !map.isProjectedPermutation())
      return std::nullopt;
  auto once = [](int64_t &place, int64_t dim) { return place < 0 && (place = dim, true); };
  // In the query's order, so that what it lists first is batch and heads.
  SmallVector<int64_t> order;
  for (AffineExpr expr : maps[0].getResults())
    order.push_back(cast<AffineDimExpr>(expr).getPosition());
  for (int64_t dim = 0; dim < maps[0].getNumDims(); ++dim)
    if (!llvm::is_contained(order, dim))
      order.push_back(dim);
  for (int64_t dim : order) {
    bool q = maps[0].isFunctionOfDim(dim), k = maps[1].isFunctionOfDim(dim), v = maps[2].isFunctionOfDim(dim), o = maps[3].isFunctionOfDim(dim);
    bool fits = true;
    if (q && k && v && o)
      roles.batch.push_back(dim);
    else if (q && !k && !v && o)
      roles.rows.push_back(dim);
    else if (q && k && !v && !o)
      fits = once(roles.channel, dim);
    else if (!q && k && v && !o)
      fits = once(roles.token, dim);
    else if (!q && !k && v && o)
      fits = once(roles.valueChannel, dim);
    else
      fits = false;
    if (!fits)
      return std::nullopt;
  }
  bool whole = roles.channel >= 0 && roles.token >= 0 && roles.valueChannel >= 0 && roles.rows.size() <= 2;
  return whole ? std::optional(roles) : std::nullopt;
}

/// Which dimension of a tensor of this map holds each loop.
SmallVector<int64_t> permutationTo(AffineMap map, ArrayRef<int64_t> loops) {
  SmallVector<int64_t> permutation;
  for (int64_t loop : loops)
    permutation.push_back(*map.getResultPosition(getAffineDimExpr(loop, map.getContext())));
  return permutation;
}

SmallVector<int64_t> joined(ArrayRef<int64_t> a, ArrayRef<int64_t> b) {
  SmallVector<int64_t> both(a);
  both.append(b.begin(), b.end());
  return both;
}

/// Query, key, value, scale, where there is one a mask, and the output, which is overwritten. The mask is added, or says by i1 what is seen.
/// As the formula says, a row of -inf is NaN.
Results raiseIreeAttention(Draft &draft, Operation *op) {
  if (!expectCounts(draft, op, 5, 6, 1) || !expectAttributes(draft, op, {"indexing_maps", "decomposition_config", "lowering_config", "compilation_info"}))
    return std::nullopt;
  auto given = dyn_cast_or_null<ArrayAttr>(attributeOf(op, "indexing_maps"));
  SmallVector<AffineMap> maps;
  for (Attribute map : given ? given.getValue() : ArrayRef<Attribute>())
    if (auto affine = dyn_cast<AffineMapAttr>(map))
      maps.push_back(affine.getValue());
  const bool masked = op->getNumOperands() == 6;
  if (maps.size() != op->getNumOperands() || maps[3].getNumResults() != 0)
    return draft.refuse("expected an indexing map for each operand, and none of its dimensions for the scale, got " + Twine(maps.size()) + " maps");
  Block *body = op->getNumRegions() == 1 && op->getRegion(0).hasOneBlock() ? &op->getRegion(0).front() : nullptr;
  if (!body || body->getNumArguments() != 1 || !llvm::hasSingleElement(body->getOperations()) ||
      body->back().getName().getStringRef() != "iree_linalg_ext.yield" || body->back().getNumOperands() != 1 ||
      body->back().getOperand(0) != body->getArgument(0))
    return draft.refuse("expected a region that yields the score as it is, got another");

  Value query = op->getOperand(0), key = op->getOperand(1), value = op->getOperand(2), scale = op->getOperand(3);
  SmallVector<std::pair<Value, AffineMap>> tensors = {{query, maps[0]}, {key, maps[1]}, {value, maps[2]}, {op->getOperands().back(), maps.back()}};
  if (masked)
    tensors.emplace_back(op->getOperand(4), maps[4]);
  for (auto [tensor, map] : tensors)
    if (!draft.isTensor(tensor, "each operand but the scale") || draft.typeOf(tensor).getRank() != map.getNumResults())
      return draft.refuse("expected an indexing map of the rank of " + textOf(tensor.getType()) + ", got another");
  std::optional<Roles> roles = rolesOf({maps[0], maps[1], maps[2], maps.back()});
  if (!roles)
    return draft.refuse("expected indexing maps of batch dimensions, up to two of queries, and one each of channels, tokens and value channels, got others");
  auto number = dyn_cast<FloatType>(scale.getType());
  if (!number || number.getWidth() > 64)
    return draft.refuse("expected a scale that is a float, got " + textOf(scale.getType()));
  NamedAttention found;
  if (number.getWidth() < 32)
    scale = draft.b.createOrFold<arith::ExtFOp>(draft.b.getF32Type(), scale);
  else if (number.getWidth() > 32)
    scale = draft.b.createOrFold<arith::TruncFOp>(draft.b.getF32Type(), scale);
  found.scale = scale;

  // Of two batch dimensions or more the last is kv heads; of two of rows the first is query heads of one kv head, if the mask doesn't tell them apart
  // otherwise.
  if (masked && roles->rows.size() == 2 && maps[4].isFunctionOfDim(roles->rows[0]) && !maps[4].isFunctionOfDim(roles->rows[1]))
    std::swap(roles->rows[0], roles->rows[1]);
  const int64_t heads = roles->batch.size() > 1, batch = roles->batch.size() - heads, group = roles->rows.size() > 1, rows = roles->rows.size() - group;
  auto laidOut = [&](Value tensor, AffineMap map, ArrayRef<int64_t> loops, ArrayRef<int64_t> counts) {
    return draft.group(draft.transpose(tensor, permutationTo(map, loops)), counts);
  };
  SmallVector<int64_t> queryLoops = joined(roles->batch, roles->rows), queryCounts = {batch, heads + group, rows, 1}, keyCounts = {batch, heads, 1, 1};
  found.query = laidOut(query, maps[0], joined(queryLoops, {roles->channel}), queryCounts);
  found.key = laidOut(key, maps[1], joined(roles->batch, {roles->token, roles->channel}), keyCounts);
  found.value = laidOut(value, maps[2], joined(roles->batch, {roles->token, roles->valueChannel}), keyCounts);
  if (masked) {
    AffineMap map = maps[4];
    if (map.getNumSymbols() || map.getNumDims() != maps[0].getNumDims() || !map.isProjectedPermutation() || !map.isFunctionOfDim(roles->token))
      return draft.refuse("expected a mask whose indexing map lists dimensions of the scores and tokens among them, got another");
    // Each of batch, heads and queries is there whole, or for all alike.
    SmallVector<int64_t> loops, counts;
    ArrayRef<int64_t> rest = queryLoops;
    unsigned known = 1;
    for (int64_t count : {batch, heads + group, rows}) {
      ArrayRef<int64_t> part = rest.take_front(count);
      rest = rest.drop_front(count);
      int64_t there = llvm::count_if(part, [&](int64_t loop) { return map.isFunctionOfDim(loop); });
      if (there != 0 && there != count)
        return draft.refuse("expected a mask of all heads and batch entries apart, or one for all, got some");
      counts.push_back(there);
      if (there)
        loops.append(part.begin(), part.end());
      known += there;
    }
    if (known != map.getNumResults())
      return draft.refuse("expected a mask over dimensions of the scores, got another");
    loops.push_back(roles->token);
    counts.push_back(1);
    found.mask = laidOut(op->getOperand(4), map, loops, counts);
  }
  auto output = dyn_cast<RankedTensorType>(op->getResult(0).getType());
  if (!output)
    return draft.refuse("expected a tensor for a result, got " + textOf(op->getResult(0).getType()));
  found.element = output.getElementType();
  Value result = draft.attend(found);
  if (!result)
    return std::nullopt;

  // Back to the output's order.
  SmallVector<int64_t> resultLoops = joined(queryLoops, {roles->valueChannel}), shape, back(resultLoops.size());
  SmallVector<int64_t> permutation = permutationTo(maps.back(), resultLoops);
  for (auto [place, dim] : llvm::enumerate(permutation)) {
    if (dim >= output.getRank())
      return draft.refuse("expected a result of the output's rank, got " + textOf(output));
    shape.push_back(output.getDimSize(dim));
    back[dim] = place;
  }
  RankedTensorType type = draft.typeOf(result);
  int64_t merged = 1;
  for (int64_t loop = 0; loop < batch; ++loop)
    merged *= shape[loop];
  int64_t mergedHeads = heads + group ? 1 : type.getDimSize(1);
  for (int64_t loop = batch; loop < batch + heads + group; ++loop)
    mergedHeads *= shape[loop];
  bool dynamic = llvm::any_of(ArrayRef<int64_t>(shape).take_front(batch + heads + group), ShapedType::isDynamic);
  if (dynamic || merged != type.getDimSize(0) || mergedHeads != type.getDimSize(1) || (rows && shape[batch + heads + group] != type.getDimSize(2)) ||
      shape.back() != type.getDimSize(3))
    return draft.refuse("expected a result of the queries' batch and heads, got " + textOf(output));
  result = draft.ungroup(result, queryCounts, shape);
  return result ? one(draft.cast(draft.transpose(result, back), output)) : std::nullopt;
}

//===----------------------------------------------------------------------===//
// stablehlo
//===----------------------------------------------------------------------===//

/// Whether a function of stablehlo ops can't tell one token from another by its place: all constants are splats, and nothing counts or slices.
bool knowsNoPlaces(func::FuncOp function) {
  static const llvm::StringSet<> blind = {
      "add", "and", "broadcast_in_dim", "compare", "constant", "convert", "divide", "dot_general", "exponential", "maximum", "minimum",  "multiply", "negate",
      "not", "or",  "reduce",           "reshape", "return",   "rsqrt",   "select", "sqrt",        "subtract",    "tanh",    "transpose"};
  return !function
              .walk([&](Operation *op) {
                if (isa<func::FuncOp, func::ReturnOp>(op))
                  return WalkResult::advance();
                StringRef name = op->getName().getStringRef();
                if (auto value = dyn_cast_or_null<DenseElementsAttr>(attributeOf(op, "value")); name == "stablehlo.constant" && (!value || !value.isSplat()))
                  return WalkResult::interrupt();
                bool isBlind = name.consume_front("stablehlo.") && blind.contains(name);
                return isBlind ? WalkResult::advance() : WalkResult::interrupt();
              })
              .wasInterrupted();
}

/// Query, key and value as [batch, tokens, heads, head_dim], and a mask that is added. Some producers let attention be causal where there is no mask: the
/// decomposition tells.
Results raiseComposite(Draft &draft, Operation *op) {
  auto name = dyn_cast_or_null<StringAttr>(attributeOf(op, "name"));
  if (!name || name != "odml.scaled_dot_product_attention")
    return draft.refuse("expected the composite 'odml.scaled_dot_product_attention', got " +
                        (name ? "'" + name.getValue() + "'" : Twine("one without a name")));
  if (!expectCounts(draft, op, 3, 4, 1) || !expectAttributes(draft, op, {"name", "composite_attributes", "decomposition", "version"}))
    return std::nullopt;
  NamedAttention found;
  auto attributes = dyn_cast_or_null<DictionaryAttr>(attributeOf(op, "composite_attributes"));
  for (NamedAttribute attribute : attributes ? attributes.getValue() : ArrayRef<NamedAttribute>()) {
    auto number = dyn_cast<FloatAttr>(attribute.getValue());
    if (!number || (attribute.getName() != "scale" && attribute.getName() != "logit_cap"))
      return draft.refuse("expected composite attributes scale and logit_cap that are numbers, got '" + attribute.getName().getValue() + "'");
    if (attribute.getName() == "scale")
      found.scale = draft.number(number.getValueAsDouble());
    else
      found.softcap = number.getValueAsDouble();
  }
  const bool masked = op->getNumOperands() == 4;
  if (!masked) {
    auto symbol = dyn_cast_or_null<FlatSymbolRefAttr>(attributeOf(op, "decomposition"));
    auto decomposition = symbol ? SymbolTable::lookupNearestSymbolFrom<func::FuncOp>(op, symbol) : func::FuncOp();
    if (!decomposition || decomposition.isExternal() || !knowsNoPlaces(decomposition))
      return draft.refuse("expected a mask, or a decomposition that shows that attention without one is not causal, got neither");
  }
  for (Value operand : op->getOperands())
    if (!draft.isTensor(operand, "each operand") || draft.typeOf(operand).getRank() != 4)
      return draft.refuse("expected operands of rank 4, got " + textOf(operand.getType()));
  found.query = draft.transpose(op->getOperand(0), {0, 2, 1, 3});
  found.key = draft.transpose(op->getOperand(1), {0, 2, 1, 3});
  found.value = draft.transpose(op->getOperand(2), {0, 2, 1, 3});
  found.mask = masked ? op->getOperand(3) : Value();
  if (found.softcap && masked && draft.typeOf(found.mask).getElementType().isInteger(1))
    return draft.refuse("expected a mask of numbers with logit_cap, behind which it is added as it is, got " + textOf(found.mask.getType()));
  found.maskedZero = !found.softcap; // with a cap it is decomposed with a softmax that gives NaN
  found.element = draft.typeOf(found.query).getElementType();
  Value result = draft.attend(found);
  return result ? one(draft.cast(draft.transpose(result, {0, 2, 1, 3}), op->getResult(0).getType())) : std::nullopt;
}

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

using Raise = Results (*)(Draft &, Operation *);

Raise raiseOf(Operation *op) {
  if (op->isRegistered())
    return nullptr;
  auto isAttention = [&] { // of composites by other names only those that say so get a remark
    auto name = dyn_cast_or_null<StringAttr>(attributeOf(op, "name"));
    return name && name.getValue().contains_insensitive("attention");
  };
  Raise raise = llvm::StringSwitch<Raise>(op->getName().getStringRef())
                    .Case("tm_tensor.attention", raiseTmAttention)
                    .Case("tm_tensor.scatter", raiseTmScatter)
                    .Case("onnx.Attention", raiseOnnxAttention)
                    .Case("iree_linalg_ext.attention", raiseIreeAttention)
                    .Case("stablehlo.composite", raiseComposite)
                    .Default(nullptr);
  return raise == raiseComposite && !isAttention() ? nullptr : raise;
}

struct AlignedRaiseNamedOpsPass : aligned::impl::AlignedRaiseNamedOpsBase<AlignedRaiseNamedOpsPass> {
  using AlignedRaiseNamedOpsBase::AlignedRaiseNamedOpsBase;

  void runOnOperation() override {
    SmallVector<Operation *> found;
    SmallVector<AttentionOp> raised;
    llvm::SmallSetVector<func::FuncOp, 4> decompositions;
    for (auto function : llvm::make_early_inc_range(getOperation().getOps<func::FuncOp>()))
      raiseTorchFunction(function, raised);
    getOperation().walk([&](Operation *op) {
      if (raiseOf(op))
        found.push_back(op);
    });
    bool changed = !raised.empty();
    for (Operation *op : found) {
      auto decomposition = dyn_cast_or_null<FlatSymbolRefAttr>(attributeOf(op, "decomposition"));
      auto function = decomposition ? SymbolTable::lookupNearestSymbolFrom<func::FuncOp>(op, decomposition) : func::FuncOp();
      if (!raise(op, raised))
        continue;
      changed = true;
      if (function)
        decompositions.insert(function);
    }
    if (!changed)
      return;
    IRRewriter rewriter(&getContext());
    for (AttentionOp attention : raised) {
      raiseAppend(rewriter, attention.getKey());
      raiseAppend(rewriter, attention.getValue());
    }
    for (func::FuncOp function : decompositions) // what nobody is decomposed to any more
      if (function.isPrivate() && SymbolTable::symbolKnownUseEmpty(function, getOperation()))
        function.erase();
    dropOnnx();
    RewritePatternSet patterns(&getContext());
    tensor::CollapseShapeOp::getCanonicalizationPatterns(patterns, &getContext());
    tensor::ExpandShapeOp::getCanonicalizationPatterns(patterns, &getContext());
    if (failed(applyPatternsGreedily(getOperation(), std::move(patterns)))) // also erases what nobody reads any more
      signalPassFailure();
  }

  bool raise(Operation *op, SmallVectorImpl<AttentionOp> &raised) {
    Draft draft(op);
    Results results;
    // Nobody has verified that an op of this name ends no block and holds no other.
    bool hasRegion = llvm::is_contained({"tm_tensor.scatter", "iree_linalg_ext.attention"}, op->getName().getStringRef());
    if (op == &op->getBlock()->back() || op->getNumSuccessors() || op->getNumRegions() > hasRegion)
      draft.refuse("expected an op that ends no block and has " + Twine(hasRegion ? "one region" : "no regions") + ", got another");
    else
      results = raiseOf(op)(draft, op);
    for (auto [number, value] : llvm::enumerate(results ? *results : SmallVector<Value>()))
      if (!value && !op->getResult(number).use_empty()) {
        draft.refuse("expected nobody to read result " + Twine(number) + ", got somebody");
        results = std::nullopt;
        break;
      }
    if (!results) {
      draft.undo();
      op->emitRemark(op->getName().getStringRef() == "tm_tensor.scatter" ? "cache update not raised: " : "attention not raised: ") << draft.reason;
      return false;
    }
    for (auto [result, value] : llvm::zip_equal(op->getResults(), *results))
      if (value)
        result.replaceAllUsesWith(value);
    op->erase();
    raised.append(draft.attentions);
    return true;
  }

  /// What onnx-mlir writes around its ops: operands that are left out, its own return, and which function is meant.
  void dropOnnx() {
    SmallVector<Operation *> left;
    getOperation().walk([&](Operation *op) {
      StringRef name = op->getName().getStringRef();
      if (op->use_empty() && (name == "onnx.NoValue" || name == "onnx.EntryPoint"))
        left.push_back(op);
      auto function = dyn_cast<func::FuncOp>(op->getParentOp() ? op->getParentOp() : op);
      if (name == "onnx.Return" && function && op == &op->getBlock()->back() && llvm::equal(op->getOperandTypes(), function.getResultTypes())) {
        OpBuilder b(op);
        func::ReturnOp::create(b, op->getLoc(), op->getOperands());
        left.push_back(op);
      }
    });
    for (Operation *op : left)
      op->erase();
  }
};

} // namespace
