// See the header.
#include "ScoreMask.h"

#include "Shapes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Utils/ReshapeOpsUtils.h"

#include <cfloat>
#include <cmath>

using namespace mlir;
using namespace aligned;

/// What hidden scores become that a graph sets to some low number: so low that no score shows in the sum.
constexpr float kHiddenScore = -1e30f;

//===----------------------------------------------------------------------===//
// Planning
//===----------------------------------------------------------------------===//

/// Adds a term, sums apart. What adds zero here and -inf there is a condition, what adds zero everywhere nothing.
void ScoreMask::flatten(const ScoreTerm &term) {
  ScalarView view = tracer->resolveRounded(term.view);
  constexpr size_t kMostTerms = 16; // of one that is written as a sum of itself, say
  if (term.isAddend && !view.isElement() && view.as<arith::AddFOp>() && terms.size() < kMostTerms) {
    for (unsigned side : {0u, 1u}) {
      ScoreTerm part = term;
      part.view = tracer->operand(view, side);
      flatten(part);
    }
    return;
  }
  if (term.isAddend && !view.isElement() && view.as<arith::SelectOp>() && term.multiplier.scalars.empty() && term.multiplier.number > 0) {
    std::optional<double> kept = constantOf(*tracer, tracer->operand(view, 1)), other = constantOf(*tracer, tracer->operand(view, 2));
    if ((kept == 0.0 && other == -INFINITY) || (kept == -INFINITY && other == 0.0)) {
      terms.push_back({tracer->operand(view, 0), false, kept == 0.0, -INFINITY, {}});
      return;
    }
  }
  if (!term.isAddend || constantOf(*tracer, view) != 0.0)
    terms.push_back(term);
}

bool ScoreMask::plan(ScalarTracer &given, const Match &matched, std::string &reason) {
  tracer = &given;
  match = &matched;
  for (const ScoreTerm &term : matched.terms)
    flatten(term);
  // A low number stands for itself where a row sees nothing: beside other terms only one that swallows them.
  for (const ScoreTerm &term : terms)
    if (!term.isAddend && std::isfinite(term.other) && terms.size() > 1 &&
        (term.other > kHiddenScore || llvm::any_of(terms, [&](const ScoreTerm &other) { return !other.isAddend && std::isfinite(other.other) && other.other != term.other; }))) {
      reason = "expected a select among scores to put -inf, or the lowest float, where they are masked otherwise, too";
      return false;
    }
  FormulaWriter writer(*tracer, match->grid, match->token);
  for (const ScoreTerm &term : terms)
    if (!writer.canWrite(term.view, used)) {
      reason = "expected a mask that is a function of batch, head, query and token, got another one";
      return false;
    }
  if (foldTable())
    terms.clear();
  return true;
}

/// What all terms make of a score of zero, where that is known.
std::optional<double> ScoreMask::scoreAt(ArrayRef<int64_t> dims) {
  double score = 0;
  for (const ScoreTerm &term : llvm::reverse(terms)) {
    TypedAttr value = tracer->evaluate(term.view, dims);
    if (!value || !term.multiplier.scalars.empty())
      return std::nullopt;
    if (term.isAddend)
      score += cast<FloatAttr>(value).getValueAsDouble() * term.multiplier.number;
    else if (cast<IntegerAttr>(value).getValue().getBoolValue() != term.keptWhenTrue)
      score = term.other;
  }
  return score;
}

/// Fills in the table of a mask of positions. True where it needs no operand: every token is seen, or #aligned.mask says which.
bool ScoreMask::foldTable() {
  constexpr int64_t kMostEntries = 1 << 16;
  const int64_t tokens = tracer->extentOf(cast<AffineDimExpr>(match->token).getPosition()), queries = match->grid.queries;
  if (terms.empty())
    return true;
  if (ShapedType::isDynamic(tokens) || used.test(0) || used.test(1) || tokens * queries > kMostEntries)
    return false;
  SmallVector<SmallVector<bool>> seen;
  for (int64_t query = 0; query < queries; ++query) {
    seen.emplace_back();
    SmallVector<int64_t> dims = match->grid.placeOf(query);
    dims.resize(tracer->numDims(), 0);
    for (int64_t token = 0; token < tokens; ++token) {
      dims[cast<AffineDimExpr>(match->token).getPosition()] = token;
      std::optional<double> score = scoreAt(dims);
      if (score != 0.0 && score != -INFINITY)
        return false;
      seen.back().push_back(*score == 0);
    }
  }
  if (llvm::all_of(seen, [](const auto &row) { return llvm::all_of(row, [](bool token) { return token; }); }))
    return true;
  // The newest query tells the window and the sinks, if there are any.
  const SmallVector<bool> &newest = seen.back();
  int64_t window = 0, sinks = 0;
  while (window < tokens && newest[tokens - 1 - window])
    ++window;
  while (sinks < tokens && newest[sinks])
    ++sinks;
  if (window == 0)
    return false; // a query that does not see its own token
  if (window == tokens)
    window = sinks = 0;
  for (bool causal : {true, false}) {
    auto sees = [&](int64_t query, int64_t token) {
      int64_t position = tokens - queries + query;
      return (!causal || token <= position) && (!window || position - token < window || token < sinks);
    };
    bool fits = causal || window;
    for (int64_t query = 0; query < queries && fits; ++query)
      for (int64_t token = 0; token < tokens && fits; ++token)
        fits = sees(query, token) == seen[query][token];
    if (fits) {
      attribute = MaskAttr::get(tracer->context, causal && queries > 1, window, sinks);
      return true;
    }
  }
  return false;
}

bool ScoreMask::isBoolean() const {
  return llvm::all_of(terms, [](const ScoreTerm &term) { return !term.isAddend && term.other == -INFINITY; });
}

std::string ScoreMask::describe() const { return attribute ? "attribute" : terms.empty() ? "none" : isBoolean() ? "boolean operand" : "added operand"; }

//===----------------------------------------------------------------------===//
// Writing
//===----------------------------------------------------------------------===//

Value ScoreMask::write(ImplicitLocOpBuilder &b, Value key) {
  if (terms.empty())
    return {};
  const ScoreTerm &term = terms.front();
  bool plain = term.isAddend ? term.multiplier.number == 1 && term.multiplier.scalars.empty() : term.keptWhenTrue && term.other == -INFINITY;
  if (terms.size() == 1 && plain)
    if (Value mask = writeAsItIs(b, term.view))
      return mask;
  return writeFormula(b, key);
}

/// The graph's tensor, where its dimensions are some of batch, heads, queries and then tokens.
Value ScoreMask::writeAsItIs(ImplicitLocOpBuilder &b, const ScalarView &view) {
  ScalarView element = tracer->resolve(view);
  auto type = element.isElement() ? cast<RankedTensorType>(element.value.getType()) : RankedTensorType();
  if (!type || !isMaskElement(type.getElementType()))
    return {};
  const Grid &grid = match->grid;
  const int64_t tokens = tracer->extentOf(cast<AffineDimExpr>(match->token).getPosition()), extents[] = {grid.batch, grid.heads, grid.queries, tokens};
  // Each dimension of the operand that the tensor has, in order; dimensions of extent 1 may be any.
  SmallVector<int64_t> shape(4, 1);
  SmallVector<ReassociationIndices> groups;
  int64_t next = 0;
  for (int64_t dim = 0; dim < type.getRank(); ++dim) {
    std::optional<AffineExpr> index = grid.fit(*tracer, element.index[dim], match->token);
    int64_t kind = next;
    if (!index)
      return {};
    if (auto fitted = dyn_cast<AffineDimExpr>(*index))
      kind = fitted.getPosition();
    else if (*index != tracer->constant(0) || type.getDimSize(dim) != 1)
      return {};
    bool isWide = isa<AffineDimExpr>(*index);
    if (isWide && (kind < next || type.getDimSize(dim) != extents[kind]))
      return {};
    if (!isWide && type.getRank() - dim > 4 - next)
      return {};
    if (isWide)
      shape[kind] = type.getDimSize(dim);
    ReassociationIndices group = llvm::to_vector<2>(llvm::seq<int64_t>(next, kind + 1));
    groups.push_back(group);
    next = kind + 1;
  }
  if (next != 4 || shape[3] != tokens) // or it has one number for all tokens
    return {};
  auto expanded = RankedTensorType::get(shape, type.getElementType());
  return type == expanded ? element.value : tensor::ExpandShapeOp::create(b, expanded, element.value, groups).getResult();
}

Value ScoreMask::writeFormula(ImplicitLocOpBuilder &b, Value key) {
  const bool boolean = isBoolean();
  const Grid &grid = match->grid;
  Type element = boolean ? Type(b.getI1Type()) : b.getF32Type();
  SmallVector<OpFoldResult> sizes;
  const int64_t extents[] = {grid.batch, grid.heads, grid.queries};
  for (unsigned dim = 0; dim < 3; ++dim)
    sizes.push_back(b.getIndexAttr(used.test(dim) ? extents[dim] : 1));
  sizes.push_back(tensor::getMixedSize(b, b.getLoc(), key, 2));
  Value init = tensor::EmptyOp::create(b, sizes, element);
  SmallVector<AffineMap> maps{b.getMultiDimIdentityMap(4)};
  SmallVector<utils::IteratorType> iterators(4, utils::IteratorType::parallel);
  auto body = [&](OpBuilder &nested, Location loc, ValueRange) {
    ImplicitLocOpBuilder inner(loc, nested);
    SmallVector<Value> place;
    for (int64_t dim = 0; dim < 4; ++dim)
      place.push_back(linalg::IndexOp::create(inner, dim));
    FormulaWriter writer(*tracer, grid, match->token);
    Value score;
    auto number = [&](double value) { return arith::ConstantOp::create(inner, inner.getF32FloatAttr(static_cast<float>(value))); };
    for (const ScoreTerm &term : llvm::reverse(terms)) {
      if (term.isAddend) {
        Value addend = writer.writeFloat(inner, term.view, place);
        if (term.multiplier.number != 1 || !term.multiplier.scalars.empty())
          addend = arith::MulFOp::create(inner, addend, writer.writeMultiplier(inner, term.multiplier, place));
        score = score ? arith::AddFOp::create(inner, score, addend).getResult() : addend;
        continue;
      }
      Value kept = writer.write(inner, term.view, place);
      if (boolean) {
        if (!term.keptWhenTrue)
          kept = arith::XOrIOp::create(inner, kept, arith::ConstantOp::create(inner, inner.getBoolAttr(true)));
        score = score ? arith::AndIOp::create(inner, score, kept).getResult() : kept;
        continue;
      }
      Value other = number(std::isinf(term.other) ? term.other : std::clamp<double>(term.other, -FLT_MAX, kHiddenScore));
      if (!score)
        score = number(0);
      score = arith::SelectOp::create(inner, kept, term.keptWhenTrue ? score : other, term.keptWhenTrue ? other : score);
    }
    linalg::YieldOp::create(inner, score);
  };
  return linalg::GenericOp::create(b, init.getType(), ValueRange(), init, maps, iterators, body)->getResult(0);
}

Value aligned::writeSinks(ImplicitLocOpBuilder &b, ScalarTracer &tracer, const Match &match) {
  if (!match.sink)
    return {};
  FormulaWriter writer(tracer, match.grid, match.token);
  bool plain = match.sinkScale.number == 1 && match.sinkScale.scalars.empty();
  ScalarView element = tracer.resolve(*match.sink);
  auto type = RankedTensorType::get({match.grid.heads}, b.getF32Type());
  if (plain && element.isElement() && element.value.getType() == type && match.grid.fit(tracer, element.index[0], match.token) == getAffineDimExpr(1, b.getContext()))
    return element.value;
  Value init = tensor::EmptyOp::create(b, type.getShape(), type.getElementType());
  auto body = [&](OpBuilder &nested, Location loc, ValueRange) {
    ImplicitLocOpBuilder inner(loc, nested);
    Value zero = arith::ConstantIndexOp::create(inner, 0), head = linalg::IndexOp::create(inner, 0);
    SmallVector<Value> place{zero, head, zero, zero};
    Value logit = writer.writeFloat(inner, *match.sink, place);
    if (!plain)
      logit = arith::MulFOp::create(inner, logit, writer.writeMultiplier(inner, match.sinkScale, place));
    linalg::YieldOp::create(inner, logit);
  };
  SmallVector<AffineMap> maps{b.getMultiDimIdentityMap(1)};
  SmallVector<utils::IteratorType> iterators(1, utils::IteratorType::parallel);
  return linalg::GenericOp::create(b, type, ValueRange(), init, maps, iterators, body)->getResult(0);
}

Value aligned::writeScale(ImplicitLocOpBuilder &b, ScalarTracer &tracer, const Match &match) {
  FormulaWriter writer(tracer, match.grid, match.token);
  SmallVector<Value> place;
  if (!match.scale.scalars.empty()) // whose elements have constant indices
    place.assign(4, arith::ConstantIndexOp::create(b, 0));
  return writer.writeMultiplier(b, match.scale, place);
}
