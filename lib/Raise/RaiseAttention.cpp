// aligned-raise-attention: find softmax(scale * Q K^T) V and say so.
//
// The anchor is the product with V. From an element of its probabilities the pass walks back as a scalar formula (ScalarView.h):
//
//   p = select(all scores are -inf, 0, e / sum e)      the guard is optional
//   e = exp(s - max s)
//   s = factors * sum_c q[c] k[c]                      factors may sit on q, on k and on the product
//
// where `sum` and `max` must run over the anchor's token dimension of the very same e and s. Then q, k and v are followed to tensors
// [batch, heads, tokens, channels]; that they are laid out so is proved by computing the indices of every (batch, head).
// Whatever does not fit is left alone, with a remark that says what was expected.
#include "ScalarView.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Raise/Passes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"
#include "llvm/Support/FormatVariadic.h"

#include <cmath>
#include <limits>

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDRAISEATTENTION
#include "aligned/Raise/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

RankedTensorType tensorType(Value value) { return cast<RankedTensorType>(value.getType()); }

//===----------------------------------------------------------------------===//
// Contractions and reductions
//===----------------------------------------------------------------------===//

/// sum over one loop of lhs * rhs, onto zero: matmuls by name and generics alike.
struct Contraction {
  linalg::LinalgOp op;
  linalg::ContractionDimensions dims;

  static std::optional<Contraction> of(Operation *op) {
    auto linalgOp = dyn_cast_or_null<linalg::LinalgOp>(op);
    if (!linalgOp || !linalg::isaContractionOpInterface(linalgOp))
      return std::nullopt;
    FailureOr<linalg::ContractionDimensions> dims = linalg::inferContractionDims(linalgOp);
    if (failed(dims) || dims->k.size() != 1)
      return std::nullopt;
    return Contraction{linalgOp, *dims};
  }
};

enum class Combine { Add, Max, And };

/// An operation that reduces over one loop, starting from the identity, and the element it reduces.
struct Reduction {
  ScalarView input;
  AffineExpr dim; ///< of the reduction loop
};

std::optional<Reduction> reductionOf(ScalarTracer &tracer, const ScalarView &view, Combine combine) {
  auto op = view.isElement() ? view.as<linalg::LinalgOp>() : linalg::LinalgOp();
  if (!op || op.getNumReductionLoops() != 1)
    return std::nullopt;
  unsigned number = cast<OpResult>(view.value).getResultNumber();
  OpOperand *init = op.getDpsInitOperand(number);
  Index reduced;
  std::optional<Index> loops = tracer.loopsOf(op, op.getMatchingIndexingMap(init), view.index, reduced);
  if (!loops)
    return std::nullopt;

  // The body combines the running result with one other scalar.
  Block *body = op.getBlock();
  Operation *step = body->getTerminator()->getOperand(number).getDefiningOp();
  Value running = op.getMatchingBlockArgument(init);
  bool fits = false;
  double identity = 0;
  switch (combine) {
  case Combine::Add:
    fits = isa_and_nonnull<arith::AddFOp>(step);
    identity = 0;
    break;
  case Combine::Max:
    fits = isa_and_nonnull<arith::MaximumFOp, arith::MaxNumFOp>(step);
    identity = -INFINITY;
    break;
  case Combine::And:
    fits = isa_and_nonnull<arith::AndIOp>(step);
    identity = 1;
    break;
  }
  if (!fits || (step->getOperand(0) != running && step->getOperand(1) != running))
    return std::nullopt;
  Value other = step->getOperand(step->getOperand(0) == running ? 1 : 0);
  std::optional<double> start = constantOf(tracer, {init->get(), Index(view.index.size(), getAffineConstantExpr(0, tracer.context)), nullptr});
  // What is taken off the scores changes nothing, so that their maximum may as well start from the lowest float.
  if (!start || (*start != identity && !(combine == Combine::Max && *start <= -std::numeric_limits<float>::max())))
    return std::nullopt;
  return Reduction{tracer.resolve({other, *loops, op}), reduced.front()};
}

//===----------------------------------------------------------------------===//
// The match
//===----------------------------------------------------------------------===//

/// A tensor whose element [batch, head, row, channel] an operand reads, and what multiplies it on the way.
struct Source {
  Value tensor;
  AffineExpr batch, head;
  double factor;
  SmallVector<Value> scalars;
};

struct Match {
  Source query, key, value;
  double factor = 1; ///< product of all constant factors
  SmallVector<Value> scalars;
  bool maskedZero = false;
  unsigned valueOperand;
};

class Matcher {
public:
  explicit Matcher(Contraction anchor) : anchor(anchor), tracer(anchor.op.getContext()) {}

  /// The match, or the reason why there is none; no reason where the anchor does not look like attention at all.
  std::optional<Match> match(std::string &reason);

private:
  bool fail(const Twine &why) {
    reason = why.str();
    return false;
  }
  bool matchSoftmax(const ScalarView &probability);
  bool matchGuard(const ScalarView &condition);
  bool matchScores(ScalarView score);
  bool matchFactor(ScalarView &view, double &factor, SmallVector<Value> &scalars);
  std::optional<Source> follow(ScalarView view, StringRef name, AffineExpr row, AffineExpr channel);
  bool proveLayout();
  bool sumsProducts(linalg::LinalgOp op, StringRef name);
  bool resultInOrder(ArrayRef<unsigned> rowLoops, ArrayRef<unsigned> channelLoops);

  Contraction anchor;
  ScalarTracer tracer;
  Match found;
  std::string reason;
  AffineExpr token, valueChannel;
  Index rows; ///< of the anchor's m loops
  ScalarView scores;
  ScalarView guard;
};

/// ", got 'tensor.extract_slice'"
std::string gotOp(const ScalarView &view) {
  Operation *op = view.value.getDefiningOp();
  return op ? ", got '" + op->getName().getStringRef().str() + "'" : "";
}

/// Whether a scalar formula is a quotient over exponentials, through a select or a slice: the look of a softmax.
bool looksLikeSoftmax(ScalarTracer &tracer, ScalarView view, int depth = 0) {
  view = tracer.resolve(view);
  if (depth > 4)
    return false;
  if (auto slice = view.isElement() ? view.as<tensor::ExtractSliceOp>() : tensor::ExtractSliceOp()) // which element does not matter to looks
    return slice.getSourceType().getRank() == static_cast<int64_t>(view.index.size()) && looksLikeSoftmax(tracer, {slice.getSource(), view.index, nullptr}, depth + 1);
  if (view.isElement())
    return false;
  if (view.as<math::ExpOp>())
    return true;
  if (view.as<arith::DivFOp>() || view.as<arith::MulFOp>() || view.as<arith::TruncFOp>())
    return looksLikeSoftmax(tracer, tracer.operand(view, 0), depth + 1);
  if (view.as<arith::SelectOp>())
    return looksLikeSoftmax(tracer, tracer.operand(view, 1), depth + 1) || looksLikeSoftmax(tracer, tracer.operand(view, 2), depth + 1);
  return false;
}

/// a and b of a / b, also where a front end wrote a * (1 / b).
std::optional<std::pair<ScalarView, ScalarView>> quotientOf(ScalarTracer &tracer, const ScalarView &view) {
  auto operand = [&](const ScalarView &of, unsigned number) { return tracer.resolve(tracer.operand(of, number)); };
  if (!view.isElement() && view.as<arith::DivFOp>())
    return std::pair(operand(view, 0), operand(view, 1));
  if (view.isElement() || !view.as<arith::MulFOp>())
    return std::nullopt;
  for (unsigned side : {1u, 0u}) {
    ScalarView reciprocal = operand(view, side);
    if (!reciprocal.isElement() && reciprocal.as<arith::DivFOp>() && constantOf(tracer, tracer.operand(reciprocal, 0)) == 1.0)
      return std::pair(operand(view, 1 - side), operand(reciprocal, 1));
  }
  return std::nullopt;
}

std::optional<Match> Matcher::match(std::string &why) {
  linalg::LinalgOp op = anchor.op;
  SmallVector<int64_t> ranges = op.getStaticLoopRanges();
  Index loops;
  for (int64_t extent : ranges)
    loops.push_back(tracer.addDim(extent));
  auto finish = [&](bool ok) -> std::optional<Match> {
    why = reason;
    return ok ? std::optional(found) : std::nullopt;
  };

  std::optional<unsigned> probabilities;
  for (unsigned operand : {0u, 1u})
    if (!probabilities && looksLikeSoftmax(tracer, tracer.input(op, operand, loops)))
      probabilities = operand;
  if (!probabilities)
    return std::nullopt;
  found.valueOperand = 1 - *probabilities;
  // Loops of P and not of V are query rows, those of V and not of P its channels.
  ArrayRef<unsigned> rowLoops = *probabilities == 0 ? ArrayRef<unsigned>(anchor.dims.m) : ArrayRef<unsigned>(anchor.dims.n);
  ArrayRef<unsigned> channelLoops = *probabilities == 0 ? ArrayRef<unsigned>(anchor.dims.n) : ArrayRef<unsigned>(anchor.dims.m);
  if (channelLoops.size() != 1)
    return finish(fail("expected one dimension of value channels in the product with V, got " + Twine(channelLoops.size())));
  if (rowLoops.size() > 1)
    return finish(fail("expected at most one dimension of queries in the product with V, got " + Twine(rowLoops.size())));
  token = loops[anchor.dims.k.front()];
  valueChannel = loops[channelLoops.front()];
  for (unsigned loop : rowLoops)
    rows.push_back(loops[loop]);
  if (rows.empty())
    rows.push_back(getAffineConstantExpr(0, tracer.context));
  if (token == getAffineConstantExpr(0, tracer.context))
    return finish(fail("expected more than one token, got a static length of 1"));
  if (!sumsProducts(op, "product with V"))
    return finish(false);

  if (!matchSoftmax(tracer.resolve(tracer.input(op, *probabilities, loops))))
    return finish(false);
  std::optional<Source> value = follow(tracer.input(op, found.valueOperand, loops), "value", token, valueChannel);
  if (!value)
    return finish(false);
  found.value = *value;
  if (value->factor != 1 || !value->scalars.empty())
    return finish(fail("expected V to be read as it is, got a scaled V"));
  return finish(resultInOrder(rowLoops, channelLoops) && proveLayout());
}

/// Whether a contraction adds bare products of its operands onto zero in f32. Upstream's notion of a contraction is wider: it looks
/// through every op of one operand in the body, be it a widening cast or a tanh.
bool Matcher::sumsProducts(linalg::LinalgOp op, StringRef name) {
  OpOperand *init = op.getDpsInitOperand(0);
  Type element = tensorType(init->get()).getElementType();
  if (!element.isF32())
    return fail(llvm::formatv("expected the {0} to be summed in f32, got {1}", name, element).str());
  std::optional<double> start =
      constantOf(tracer, {init->get(), Index(tensorType(init->get()).getRank(), getAffineConstantExpr(0, tracer.context)), nullptr});
  if (!start || *start != 0)
    return fail("expected the " + name + " to start from zero");

  auto widened = [](Value value) {
    while (auto cast = value.getDefiningOp<arith::ExtFOp>())
      value = cast.getIn();
    return value;
  };
  Block *body = op.getBlock();
  Value running = op.getMatchingBlockArgument(init);
  auto sum = body->getTerminator()->getOperand(0).getDefiningOp<arith::AddFOp>();
  arith::MulFOp product;
  if (sum && (sum.getLhs() == running || sum.getRhs() == running))
    product = (sum.getLhs() == running ? sum.getRhs() : sum.getLhs()).getDefiningOp<arith::MulFOp>();
  if (product) {
    Value lhs = widened(product.getLhs()), rhs = widened(product.getRhs());
    Value first = body->getArgument(0), second = body->getArgument(1);
    if ((lhs == first && rhs == second) || (lhs == second && rhs == first))
      return true;
  }
  return fail("expected the " + name + " to sum products of its operands as they are, got another function of them");
}

/// Whether the anchor's result lists batch and heads, then queries, then channels; loops of one iteration may sit anywhere.
bool Matcher::resultInOrder(ArrayRef<unsigned> rowLoops, ArrayRef<unsigned> channelLoops) {
  SmallVector<int64_t> ranges = anchor.op.getStaticLoopRanges();
  SmallVector<unsigned> expected, got;
  for (ArrayRef<unsigned> loops : {ArrayRef<unsigned>(anchor.dims.batch), rowLoops, channelLoops})
    llvm::copy_if(loops, std::back_inserter(expected), [&](unsigned loop) { return ranges[loop] != 1; });
  for (AffineExpr expr : anchor.op.getMatchingIndexingMap(anchor.op.getDpsInitOperand(0)).getResults())
    if (unsigned loop = cast<AffineDimExpr>(expr).getPosition(); ranges[loop] != 1)
      got.push_back(loop);
  return got == expected || fail("expected the product with V to give batch, heads, queries and value channels in this order, got them transposed");
}

//===----------------------------------------------------------------------===//
// Softmax
//===----------------------------------------------------------------------===//

bool Matcher::matchSoftmax(const ScalarView &probability) {
  ScalarView quotient = probability;
  if (quotient.as<arith::TruncFOp>())
    return fail("expected probabilities in f32, got them rounded to a narrower type");
  if (quotient.as<arith::SelectOp>()) {
    std::optional<double> zero = constantOf(tracer, tracer.operand(quotient, 1));
    if (!zero || *zero != 0)
      return fail("expected a select among probabilities to put zero where all scores are -inf");
    guard = tracer.resolve(tracer.operand(quotient, 0));
    found.maskedZero = true;
    quotient = tracer.resolve(tracer.operand(quotient, 2));
  }
  std::optional<std::pair<ScalarView, ScalarView>> parts = quotientOf(tracer, quotient);
  if (!parts)
    return fail("expected probabilities that are a quotient of exponentials by their sum" + gotOp(quotient));
  auto [weight, divisor] = *parts;
  if (!weight.as<math::ExpOp>())
    return fail("expected the numerator of the softmax to be an exponential" + gotOp(weight));
  std::optional<Reduction> sum = reductionOf(tracer, divisor, Combine::Add);
  if (!sum)
    return fail("expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero");
  if (!tracer.same(weight, sum->input, sum->dim, token))
    return fail("expected the divisor of the softmax to sum the exponentials that it divides, and nothing else");

  ScalarView exponent = tracer.resolve(tracer.operand(weight, 0));
  if (!exponent.as<arith::SubFOp>())
    return fail("expected the maximum to be taken off the scores before the exponential");
  scores = tracer.resolve(tracer.operand(exponent, 0));
  std::optional<Reduction> top = reductionOf(tracer, tracer.resolve(tracer.operand(exponent, 1)), Combine::Max);
  if (!top)
    return fail("expected what is taken off the scores to be their maximum over the tokens, from -inf");
  if (!tracer.same(scores, top->input, top->dim, token))
    return fail("expected the maximum that is taken off the scores to be that of the same scores");
  if (found.maskedZero && !matchGuard(guard))
    return false;
  return matchScores(scores);
}

bool Matcher::matchGuard(const ScalarView &condition) {
  constexpr const char *expected = "expected the select among probabilities to ask whether all scores are -inf";
  std::optional<Reduction> all = reductionOf(tracer, condition, Combine::And);
  if (!all)
    return fail(expected);
  auto compare = all->input.as<arith::CmpFOp>();
  if (!compare || compare.getPredicate() != arith::CmpFPredicate::OEQ)
    return fail(expected);
  std::optional<double> bound = constantOf(tracer, tracer.operand(all->input, 1));
  if (!bound || *bound != -INFINITY || !tracer.same(scores, tracer.resolve(tracer.operand(all->input, 0)), all->dim, token))
    return fail(expected);
  return true;
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

/// Takes one multiplication by something that is the same for every element off a formula.
bool Matcher::matchFactor(ScalarView &view, double &factor, SmallVector<Value> &scalars) {
  bool product = bool(view.as<arith::MulFOp>()), quotient = bool(view.as<arith::DivFOp>());
  if (view.isElement() || (!product && !quotient) || !view.value.getType().isF32())
    return false;
  for (unsigned side : {1u, 0u}) {
    if (quotient && side == 0)
      continue;
    ScalarView other = tracer.operand(view, side);
    if (std::optional<double> constant = constantOf(tracer, other)) {
      factor = product ? factor * *constant : factor / *constant;
      view = tracer.resolve(tracer.operand(view, 1 - side));
      return true;
    }
    // A scalar that the graph computes outside of any body.
    ScalarView scalar = tracer.resolve(other);
    if (product && !scalar.isElement() && (!scalar.body || scalar.value.getParentBlock()->getParentOp() != scalar.body) && scalar.value.getType().isF32()) {
      scalars.push_back(scalar.value);
      view = tracer.resolve(tracer.operand(view, 1 - side));
      return true;
    }
  }
  return false;
}

/// Why scores are no plain scaled product: the op that stands in the way, in the field's words.
std::string describeScores(const ScalarView &view) {
  if (view.isElement())
    return "expected scores that are a scaled product of Q and K, got an element of another tensor";
  if (view.as<arith::AddFOp>())
    return "the scores are masked by an additive operand, expected none";
  if (view.as<arith::SelectOp>())
    return "the scores are masked by a select, expected none";
  if (view.as<math::TanhOp>() || view.as<arith::MulFOp>() || view.as<arith::DivFOp>())
    return "expected scores that are a scaled product of Q and K, got a softcap or another function of them";
  return "expected scores that are a scaled product of Q and K" + gotOp(view);
}

bool Matcher::matchScores(ScalarView score) {
  while (matchFactor(score, found.factor, found.scalars))
    ;
  std::optional<Contraction> product = score.isElement() ? Contraction::of(score.value.getDefiningOp()) : std::nullopt;
  if (!product)
    return fail(describeScores(score));
  linalg::LinalgOp op = product->op;
  if (!sumsProducts(op, "product of Q and K"))
    return false;
  Index reduced;
  std::optional<Index> loops = tracer.loopsOf(op, op.getMatchingIndexingMap(op.getDpsInitOperand(0)), score.index, reduced);
  if (!loops)
    return fail("expected the product of Q and K to be indexed by its loops");
  AffineExpr channel = reduced.front();

  // K is the side that knows the token.
  auto knowsToken = [&](unsigned operand) {
    return llvm::any_of(tracer.input(op, operand, *loops).index, [&](AffineExpr expr) {
      return expr.isFunctionOfDim(cast<AffineDimExpr>(token).getPosition());
    });
  };
  bool first = knowsToken(0), second = knowsToken(1);
  if (first == second)
    return fail("expected exactly one side of the product of Q and K to depend on the token");
  std::optional<Source> key = follow(tracer.input(op, first ? 0 : 1, *loops), "key", token, channel);
  if (!key)
    return false;
  std::optional<Source> query = follow(tracer.input(op, first ? 1 : 0, *loops), "query", rows.front(), channel);
  if (!query)
    return false;
  found.key = *key;
  found.query = *query;
  for (const Source &source : {*key, *query}) {
    found.factor *= source.factor;
    found.scalars.append(source.scalars);
  }
  return true;
}

/// Follows an operand to the farthest tensor [batch, heads, rows, channels] whose rows and channels are these.
std::optional<Source> Matcher::follow(ScalarView view, StringRef name, AffineExpr row, AffineExpr channel) {
  std::optional<Source> source;
  double factor = 1;
  SmallVector<Value> scalars;
  Value last;
  auto independent = [&](AffineExpr expr) { // of everything but batch and heads
    for (AffineExpr other : {token, valueChannel, rows.front(), channel})
      if (auto dim = dyn_cast<AffineDimExpr>(other); dim && expr.isFunctionOfDim(dim.getPosition()))
        return false;
    return true;
  };
  while (true) {
    if (view.isElement()) {
      RankedTensorType type = tensorType(view.value);
      last = view.value;
      Type element = type.getElementType();
      if (type.getRank() == 4 && (element.isF16() || element.isBF16() || element.isF32()) && view.index[2] == row && view.index[3] == channel &&
          independent(view.index[0]) && independent(view.index[1]))
        source = Source{view.value, view.index[0], view.index[1], factor, scalars};
    }
    if (auto next = tracer.step(view))
      view = *next;
    else if (!view.isElement() && view.as<arith::ExtFOp>())
      view = tracer.operand(view, 0);
    else if (name == "value" || !matchFactor(view, factor, scalars))
      break;
  }
  if (!source)
    fail("expected the " + name + " to be read from a tensor [batch, heads, " + (name == "query" ? "queries" : "tokens") + ", head_dim], got " +
         llvm::formatv("{0}", last.getType()).str());
  return source;
}

//===----------------------------------------------------------------------===//
// Layout
//===----------------------------------------------------------------------===//

/// Every (batch, head) of the product reads the batch and the heads that grouped attention pairs, and the anchor's result lists them in order.
bool Matcher::proveLayout() {
  RankedTensorType query = tensorType(found.query.tensor), key = tensorType(found.key.tensor), value = tensorType(found.value.tensor);
  int64_t batch = query.getDimSize(0), heads = query.getDimSize(1), kvHeads = key.getDimSize(1);
  if (ShapedType::isDynamic(batch) || ShapedType::isDynamic(heads) || ShapedType::isDynamic(kvHeads) || value.getDimSize(1) != kvHeads ||
      key.getDimSize(0) != batch || value.getDimSize(0) != batch)
    return fail(llvm::formatv("expected static batch and heads on which Q, K and V agree, got {0}, {1} and {2}", query, key, value));
  if (kvHeads == 0 || heads % kvHeads)
    return fail("expected query heads to be a multiple of kv heads, got " + Twine(heads) + " and " + Twine(kvHeads));
  for (auto [name, type] : {std::pair("key", key), std::pair("value", value)})
    if (!isSupportedHeadDim(type.getDimSize(3)))
      return fail("expected the " + Twine(name) + "'s head_dim to be a multiple of " + Twine(kHeadDimMultiple) + ", at most " + Twine(kMaxHeadDim) + ", got " +
                  (type.isDynamicDim(3) ? Twine("?") : Twine(type.getDimSize(3))));
  int64_t queries = query.getDimSize(2), group = heads / kvHeads;
  if (ShapedType::isDynamic(queries) || queries * group > kMaxQueryRows)
    return fail("expected at most " + Twine(kMaxQueryRows) + " query rows per kv head, got " + (ShapedType::isDynamic(queries) ? Twine("?") : Twine(queries * group)));
  if (key.getElementType() != value.getElementType())
    return fail(llvm::formatv("expected K and V of one element type, got {0} and {1}", key.getElementType(), value.getElementType()));

  SmallVector<int64_t> ranges = anchor.op.getStaticLoopRanges();
  int64_t count = 1;
  for (unsigned loop : anchor.dims.batch)
    count *= ShapedType::isDynamic(ranges[loop]) ? 0 : ranges[loop];
  if (count != batch * heads)
    return fail("expected the product with V to have " + Twine(batch * heads) + " batch entries, one per batch and query head, got " + Twine(count));
  for (int64_t number = 0; number < count; ++number) {
    SmallVector<AffineExpr> loops(ranges.size() + 8, getAffineConstantExpr(0, tracer.context));
    int64_t rest = number;
    for (unsigned loop : llvm::reverse(anchor.dims.batch)) {
      loops[loop] = getAffineConstantExpr(rest % ranges[loop], tracer.context);
      rest /= ranges[loop];
    }
    auto at = [&](AffineExpr expr) { return cast<AffineConstantExpr>(tracer.simplify(expr.replaceDims(loops))).getValue(); };
    int64_t b = number / heads, h = number % heads;
    if (at(found.query.batch) != b || at(found.key.batch) != b || at(found.value.batch) != b || at(found.query.head) != h ||
        at(found.key.head) != h / group || at(found.value.head) != h / group)
      return fail("expected query head " + Twine(h) + " of batch " + Twine(b) + " to read kv head " + Twine(h / group) + " of the same batch");
  }
  return true;
}

//===----------------------------------------------------------------------===//
// The rewrite
//===----------------------------------------------------------------------===//

/// The factors that the front end spread over Q, K and the scores, as one f32 value.
Value makeScale(ImplicitLocOpBuilder &b, const Match &match) {
  Value scale = arith::ConstantOp::create(b, b.getF32FloatAttr(static_cast<float>(match.factor)));
  for (Value scalar : match.scalars)
    scale = arith::MulFOp::create(b, scale, scalar);
  return scale;
}

/// Shapes [batch, heads, queries, value_dim] as the anchor's result; null where no collapse does it.
Value shapeAs(ImplicitLocOpBuilder &b, Value attention, RankedTensorType type) {
  RankedTensorType from = tensorType(attention);
  if (from == type)
    return attention;
  if (type.getRank() == 3 && type.getDimSize(0) == from.getDimSize(0) * from.getDimSize(1) && type.getDimSize(1) == from.getDimSize(2))
    return tensor::CollapseShapeOp::create(b, type, attention, SmallVector<ReassociationIndices>{{0, 1}, {2}, {3}});
  return {};
}

/// cache ++ new tokens, where the cache feeds attention.
void raiseAppend(RewriterBase &rewriter, Value cache) {
  auto concat = cache.getDefiningOp<tensor::ConcatOp>();
  if (!concat || concat.getDim() != 2 || concat.getInputs().size() != 2)
    return;
  rewriter.setInsertionPoint(concat);
  rewriter.replaceOpWithNewOp<AppendOp>(concat, concat.getResultType(), concat.getInputs()[1], concat.getInputs()[0]);
}

/// attention in f32 whose only reader rounds it: the op rounds once by itself.
struct FoldRounding : OpRewritePattern<linalg::GenericOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(linalg::GenericOp op, PatternRewriter &rewriter) const override {
    if (op.getNumDpsInputs() != 1 || op.getNumResults() != 1 || op.getNumReductionLoops() ||
        !llvm::all_of(op.getIndexingMapsArray(), [](AffineMap map) { return map.isIdentity(); }))
      return rewriter.notifyMatchFailure(op, "expected an elementwise op of one tensor");
    auto attention = op.getDpsInputs()[0].getDefiningOp<AttentionOp>();
    auto rounding = op.getBody()->getTerminator()->getOperand(0).getDefiningOp<arith::TruncFOp>();
    if (!attention || !attention->hasOneUse() || !rounding || rounding.getIn() != op.getBody()->getArgument(0) ||
        !(rounding.getType().isF16() || rounding.getType().isBF16()))
      return rewriter.notifyMatchFailure(op, "expected the rounding of an attention that has no other reader");
    rewriter.replaceOpWithNewOp<AttentionOp>(op, op.getResultTypes().front(), Type(), Type(), attention.getQuery(), attention.getKey(), attention.getValue(),
                                             attention.getScale(), attention.getAttnMask(), attention.getSinkLogits(), attention.getMaskedZero(), attention.getPoliciesAttr(), attention.getSoftcapAttr(),
                                             attention.getMaskAttr());
    return success();
  }
};

struct AlignedRaiseAttentionPass : aligned::impl::AlignedRaiseAttentionBase<AlignedRaiseAttentionPass> {
  using AlignedRaiseAttentionBase::AlignedRaiseAttentionBase;

  void runOnOperation() override {
    SmallVector<Contraction> anchors;
    getOperation().walk([&](linalg::LinalgOp op) {
      if (auto contraction = Contraction::of(op); contraction && op.hasPureTensorSemantics() && op->getNumResults() == 1)
        anchors.push_back(*contraction);
    });
    IRRewriter rewriter(&getContext());
    bool raised = false;
    for (Contraction &anchor : anchors)
      raised |= raise(rewriter, anchor);
    if (!raised)
      return;
    RewritePatternSet patterns(&getContext());
    patterns.add<FoldRounding>(&getContext());
    tensor::CollapseShapeOp::getCanonicalizationPatterns(patterns, &getContext());
    tensor::ExpandShapeOp::getCanonicalizationPatterns(patterns, &getContext());
    if (failed(applyPatternsGreedily(getOperation(), std::move(patterns)))) // also erases what nobody reads any more
      signalPassFailure();
  }

  bool raise(RewriterBase &rewriter, Contraction &anchor) {
    linalg::LinalgOp op = anchor.op;
    std::string reason;
    std::optional<Match> match = Matcher(anchor).match(reason);
    if (!match) {
      if (!reason.empty())
        op->emitRemark("attention not raised: ") << reason;
      return false;
    }
    rewriter.setInsertionPoint(op);
    ImplicitLocOpBuilder b(op.getLoc(), rewriter);
    auto resultType = cast<RankedTensorType>(op->getResultTypes().front());
    RankedTensorType query = tensorType(match->query.tensor);
    SmallVector<int64_t> shape(query.getShape().take_front(3));
    shape.push_back(tensorType(match->value.tensor).getDimSize(3));
    auto type = RankedTensorType::get(shape, resultType.getElementType());
    Value attention = AttentionOp::create(b, type, match->query.tensor, match->key.tensor, match->value.tensor, makeScale(b, *match), match->maskedZero).getResult();
    Value result = shapeAs(b, attention, resultType);
    if (!result) {
      rewriter.eraseOp(attention.getDefiningOp());
      op->emitRemark("attention not raised: expected the product with V to give [batch, heads, queries, value_dim] or with batch and heads collapsed, got ")
          << resultType;
      return false;
    }
    rewriter.replaceOp(op, result);
    auto raisedOp = attention.getDefiningOp<AttentionOp>();
    raiseAppend(rewriter, raisedOp.getKey());
    raiseAppend(rewriter, raisedOp.getValue());
    return true;
  }
};

} // namespace
