// See the header for the idea.
#include "AttentionMatcher.h"

#include "Shapes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "llvm/Support/FormatVariadic.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

/// A score this low gives a weight of zero beside any other, and what replaces it may be any such number.
constexpr double kLowScore = -1e4;

/// ", got 'tensor.extract_slice'"
static std::string gotOp(const ScalarView &view) {
  Operation *op = view.value.getDefiningOp();
  return op ? ", got '" + op->getName().getStringRef().str() + "'" : "";
}

/// Whether a scalar formula is an exponential, or a quotient over one, through a select: the look of a softmax.
static bool looksLikeSoftmax(ScalarTracer &tracer, ScalarView view, int depth = 0) {
  view = tracer.resolveRounded(view);
  if (depth > 4)
    return false;
  if (view.isElement())
    return bool(view.as<linalg::SoftmaxOp>());
  if (view.as<math::ExpOp>() || view.as<math::Exp2Op>())
    return true;
  if (view.as<arith::DivFOp>() || view.as<arith::MulFOp>())
    return looksLikeSoftmax(tracer, tracer.operand(view, 0), depth + 1) || (view.as<arith::MulFOp>() && looksLikeSoftmax(tracer, tracer.operand(view, 1), depth + 1));
  if (view.as<arith::SelectOp>())
    return looksLikeSoftmax(tracer, tracer.operand(view, 1), depth + 1) || looksLikeSoftmax(tracer, tracer.operand(view, 2), depth + 1);
  return false;
}

/// a and b of a / b, also where a front end wrote a * (1 / b).
static std::optional<std::pair<ScalarView, ScalarView>> quotientOf(ScalarTracer &tracer, const ScalarView &view) {
  auto operand = [&](const ScalarView &of, unsigned number) { return tracer.resolveRounded(tracer.operand(of, number)); };
  if (view.isElement())
    return std::nullopt;
  if (view.as<arith::DivFOp>())
    return std::pair(operand(view, 0), operand(view, 1));
  if (!view.as<arith::MulFOp>())
    return std::nullopt;
  for (unsigned side : {1u, 0u}) {
    ScalarView reciprocal = operand(view, side);
    if (!reciprocal.isElement() && reciprocal.as<arith::DivFOp>() && constantOf(tracer, tracer.operand(reciprocal, 0)) == 1.0)
      return std::pair(operand(view, 1 - side), operand(reciprocal, 1));
  }
  return std::nullopt;
}

/// Of a comparison with -inf: true for "is -inf", false for "is more".
static std::optional<bool> comparesMinusInfinity(ScalarTracer &tracer, const ScalarView &view) {
  auto compare = view.isElement() ? arith::CmpFOp() : view.as<arith::CmpFOp>();
  if (!compare || constantOf(tracer, tracer.operand(view, 1)) != -INFINITY)
    return std::nullopt;
  switch (compare.getPredicate()) {
  case arith::CmpFPredicate::OEQ:
  case arith::CmpFPredicate::UEQ:
    return true;
  case arith::CmpFPredicate::UNE:
  case arith::CmpFPredicate::ONE:
  case arith::CmpFPredicate::OGT:
  case arith::CmpFPredicate::UGT:
    return false;
  default:
    return std::nullopt;
  }
}

//===----------------------------------------------------------------------===//
// The anchor
//===----------------------------------------------------------------------===//

static bool fitsFloat(const Multiplier &multiplier) { return std::isfinite(static_cast<float>(multiplier.number)); }

static std::optional<unsigned> probabilitiesOf(ScalarTracer &tracer, const Contraction &product, const Index &loops) {
  for (unsigned factor : {0u, 1u})
    if (looksLikeSoftmax(tracer, product.factor(factor, loops)))
      return factor;
  return std::nullopt;
}

/// Whether a formula is an exponential that nothing divides yet.
static bool isExponential(ScalarTracer &tracer, ScalarView view) {
  view = tracer.resolveRounded(view);
  if (view.isElement())
    return false;
  if (view.as<arith::SelectOp>())
    return !tracer.allOperands(view, [&](const ScalarView &own) { return !isExponential(tracer, own); });
  return view.as<math::ExpOp>() || view.as<math::Exp2Op>();
}

std::optional<Anchor> Anchor::of(Operation *op) {
  if (auto product = Contraction::of(op))
    return Anchor{op->getResult(0), *product};
  auto elementwise = dyn_cast<linalg::LinalgOp>(op);
  if (!elementwise || !elementwise.hasPureTensorSemantics() || op->getNumResults() != 1 || elementwise.getNumReductionLoops())
    return std::nullopt;
  ScalarTracer tracer(op->getContext());
  Value output = op->getResult(0);
  Index index;
  for (int64_t extent : cast<RankedTensorType>(output.getType()).getShape())
    index.push_back(tracer.addDim(extent));
  std::optional<std::pair<ScalarView, ScalarView>> parts = quotientOf(tracer, tracer.resolveRounded({output, index, nullptr}));
  if (!parts || !parts->first.isElement())
    return std::nullopt;
  std::optional<Contraction> product = Contraction::of(parts->first.value.getDefiningOp());
  if (!product)
    return std::nullopt;
  AffineExpr summed;
  std::optional<Index> loops = product->loopsAt(tracer, parts->first.index, summed);
  std::optional<unsigned> probabilities = loops ? probabilitiesOf(tracer, *product, *loops) : std::nullopt;
  if (!probabilities || !isExponential(tracer, product->factor(*probabilities, *loops)))
    return std::nullopt; // scores that are divided by a constant, say
  return Anchor{output, *product};
}

/// What a matmul adds up, in its own loops: whichever dimensions of its result they are.
bool AttentionMatcher::matchAnchor() {
  auto type = cast<RankedTensorType>(anchor.output.getType());
  for (int64_t extent : type.getShape())
    results.push_back(tracer.addDim(extent));
  ScalarView element{anchor.output, results, nullptr};
  std::optional<ScalarView> divisor;
  if (anchor.output.getDefiningOp() != anchor.product.op) {
    auto parts = quotientOf(tracer, tracer.resolveRounded(element));
    element = parts->first;
    divisor = parts->second;
  }
  const Contraction &product = anchor.product;
  std::optional<Index> loops = product.loopsAt(tracer, element.index, token);
  if (!loops)
    return fail("expected the product with V to be indexed by its loops");
  std::optional<unsigned> probabilities = probabilitiesOf(tracer, product, *loops);
  if (!probabilities)
    return false;
  ScalarView probability = product.factor(*probabilities, *loops), value = product.factor(1 - *probabilities, *loops);
  if (std::optional<std::string> refusal = product.refuse("product with V"))
    return fail(*refusal);
  if (!product.startsFromZero(tracer))
    return fail("expected the product with V to start from zero");
  if (!isAttentionFloat(type.getElementType()))
    return fail(llvm::formatv("expected a result in f16, bf16 or f32, got {0}", type.getElementType()).str());
  found.token = token;
  tokens = product.extent;
  if (!isa<AffineDimExpr>(token))
    return fail("expected more than one token, got a static length of 1");
  // What V depends on and P does not are value channels.
  valueChannel = tracer.constant(0);
  for (AffineExpr dim : results)
    if (tracer.dependsOn(value, dim) && !tracer.dependsOn(probability, dim)) {
      if (isa<AffineDimExpr>(valueChannel))
        return fail("expected one dimension of value channels in the product with V, got two");
      valueChannel = dim;
    }
  if (!llvm::is_contained(results, valueChannel))
    return fail("expected value channels to be a dimension of the result");

  if (!matchProbability(probability, divisor) || !matchShifts() || !matchGuards())
    return false;
  std::vector<Candidate> values = follow(value, token, valueChannel, "value", /*scaled=*/false);
  return !values.empty() && matchLayout(queries, keys, values);
}

std::optional<Match> AttentionMatcher::match(std::string &why) {
  bool ok = matchAnchor();
  why = reason;
  return ok ? std::optional(found) : std::nullopt;
}

//===----------------------------------------------------------------------===//
// Softmax
//===----------------------------------------------------------------------===//

bool AttentionMatcher::matchProbability(ScalarView probability, std::optional<ScalarView> divisor) {
  probability = tracer.resolveRounded(probability);
  if (probability.isElement()) {
    if (auto softmax = probability.as<linalg::SoftmaxOp>())
      return matchSoftmaxOp(softmax, probability);
    return fail("expected probabilities that are a quotient of exponentials by their sum" + gotOp(probability));
  }
  // Zero in rows that see nothing. Before the division such rows would still be divided by a sum that is none, and select is a mask like others.
  if (!divisor && probability.as<arith::SelectOp>() && !isExponential(tracer, probability)) {
    for (bool zeroWhenTrue : {true, false}) {
      std::optional<double> zero = constantOf(tracer, tracer.operand(probability, zeroWhenTrue ? 1 : 2));
      if (!zero || *zero != 0)
        continue;
      constexpr size_t kMostGuards = 16;
      if (guards.size() == kMostGuards)
        return fail("expected " + Twine(kMostGuards) + " selects among probabilities at most, got more");
      ScalarView guarded = tracer.resolveRounded(tracer.operand(probability, zeroWhenTrue ? 2 : 1));
      guards.push_back({guarded, {tracer.operand(probability, 0), zeroWhenTrue}});
      return matchProbability(guarded, divisor);
    }
    return fail("expected a select among probabilities to put zero where all scores are -inf");
  }
  ScalarView weight = probability;
  if (std::optional<std::pair<ScalarView, ScalarView>> parts = quotientOf(tracer, probability)) {
    if (divisor)
      return fail("expected one division by the sum of exponentials, got two");
    std::tie(weight, divisor) = *parts;
  }
  ScalarView whole = weight;
  while (!weight.isElement() && weight.as<arith::SelectOp>()) { // weights of zero are scores of -inf
    bool keptWhenTrue = constantOf(tracer, tracer.operand(weight, 2)) == 0.0;
    if (!keptWhenTrue && constantOf(tracer, tracer.operand(weight, 1)) != 0.0)
      return fail("expected a select among exponentials to put zero where a token is hidden");
    found.terms.push_back({tracer.resolve(tracer.operand(weight, 0)), false, keptWhenTrue, -INFINITY, {}});
    weight = tracer.resolveRounded(tracer.operand(weight, keptWhenTrue ? 1 : 2));
  }
  std::optional<Exponential> exponential = splitExponential(weight, SIZE_MAX);
  if (!exponential)
    return fail("expected probabilities to be exponentials, divided by their sum" + gotOp(weight));
  if (!divisor)
    return fail("expected exponentials to be divided by their sum, before or after the product with V");
  shifts = exponential->shifts;
  shifted = exponential->views;
  return matchDivisor(*divisor, whole) && matchScores(exponential->scores, exponential->multiplier);
}

/// Whether what is taken off scores is known to be no -inf: a number, a maximum from a number or of scores that nothing masks, or one that a number replaces.
bool AttentionMatcher::isFinite(ScalarView shift) {
  shift = tracer.resolveRounded(shift);
  if (constantOf(tracer, shift))
    return true;
  std::optional<Reduction> top = reductionOf(tracer, shift, Combine::Max);
  auto isBare = [&](const Stage &stage) { return stage.terms == found.terms.size() && tracer.same(stage.view, tracer.resolveRounded(top->input), top->dim, token); };
  if (top || shift.isElement())
    return top && (top->startsFinite || llvm::any_of(stages, isBare));
  auto isNumber = [&](unsigned operand) {
    std::optional<double> number = constantOf(tracer, tracer.operand(shift, operand));
    return number && std::isfinite(*number);
  };
  if (shift.as<arith::MaximumFOp>() || shift.as<arith::MaxNumFOp>())
    return isNumber(0) || isNumber(1);
  auto choice = shift.as<arith::SelectOp>();
  if (!choice)
    return false;
  ScalarView condition = tracer.resolve(tracer.operand(shift, 0));
  std::optional<bool> isMinus = comparesMinusInfinity(tracer, condition);
  return isMinus && isNumber(*isMinus ? 1 : 2) && tracer.same(tracer.resolveRounded(tracer.operand(condition, 0)), tracer.resolveRounded(tracer.operand(shift, *isMinus ? 2 : 1)));
}

/// Whether taking this off all scores of a row leaves weights that only their sum scales: it is one for all tokens, a maximum or a choice of such, or a number
/// that does not make them overflow.
bool AttentionMatcher::isShift(ScalarView view) {
  constexpr double kMostShift = 64;
  view = tracer.resolveRounded(view);
  if (std::optional<double> number = constantOf(tracer, view))
    return std::abs(*number) <= kMostShift;
  if (view.isElement())
    return reductionOf(tracer, view, Combine::Max) && !tracer.dependsOn(view, token);
  if (!view.as<arith::MaximumFOp>() && !view.as<arith::MaxNumFOp>() && !view.as<arith::SelectOp>())
    return false;
  return tracer.allOperands(view, [&](const ScalarView &own) { return own.value.getType().isInteger(1) ? !tracer.dependsOn(own, token) : isShift(own); });
}

/// exp(x) is e^x, exp2(x) is e^(x ln 2); factors of x multiply scores, and what is the same for all tokens is taken off: `shifts` times at most.
std::optional<AttentionMatcher::Exponential> AttentionMatcher::splitExponential(const ScalarView &weight, size_t shifts) {
  if (weight.isElement() || (!weight.as<math::ExpOp>() && !weight.as<math::Exp2Op>()))
    return std::nullopt;
  Exponential exponential{tracer.resolveRounded(tracer.operand(weight, 0)), {}, {}, {}};
  if (weight.as<math::Exp2Op>())
    exponential.multiplier.number = M_LN2;
  ScalarView &scores = exponential.scores;
  while (true) {
    exponential.views.push_back(scores);
    if (!scores.isElement() && scores.as<arith::SubFOp>() && exponential.shifts.size() < shifts && isShift(tracer.operand(scores, 1))) {
      exponential.shifts.push_back(tracer.operand(scores, 1));
      scores = tracer.operand(scores, 0);
    } else if (!matchFactor(scores, exponential.multiplier)) {
      return exponential;
    }
    scores = tracer.resolveRounded(scores);
  }
}

bool AttentionMatcher::matchDivisor(ScalarView divisor, const ScalarView &weight) {
  divisor = tracer.resolveRounded(divisor);
  if (!divisor.isElement() && divisor.as<arith::SelectOp>()) { // a sum of zero is replaced, so that zero is divided by something
    ScalarView condition = tracer.resolve(tracer.operand(divisor, 0)), sum = tracer.resolveRounded(tracer.operand(divisor, 2));
    auto compare = condition.isElement() ? arith::CmpFOp() : condition.as<arith::CmpFOp>();
    std::optional<double> other = constantOf(tracer, tracer.operand(divisor, 1));
    if (!compare || compare.getPredicate() != arith::CmpFPredicate::OEQ || !tracer.same(tracer.resolveRounded(tracer.operand(condition, 0)), sum) ||
        constantOf(tracer, tracer.operand(condition, 1)) != 0.0 || !other || !(*other > 0) || std::isinf(*other))
      return fail("expected a select among divisors to replace a sum of zero by a number");
    replacesZeroSum = true;
    divisor = sum;
  }
  std::optional<Reduction> sum = reductionOf(tracer, divisor, Combine::Add);
  if (!sum)
    return fail("expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero" + gotOp(divisor));
  if (isOverTokens(*sum)) {
    if (!tracer.same(weight, tracer.resolveRounded(sum->input), sum->dim, token))
      return fail("expected the divisor of the softmax to sum the exponentials that it divides, and nothing else");
    return true;
  }
  return matchSink(*sum, weight);
}

/// One token more in the softmax than in the product with V is a logit without a value.
bool AttentionMatcher::matchSink(const Reduction &sum, const ScalarView &weight) {
  if (ShapedType::isDynamic(tokens) || ShapedType::isDynamic(sum.extent) || sum.extent != tokens + 1)
    return fail("expected the softmax to run over the tokens of the product with V, and one logit more at most, got " +
                (ShapedType::isDynamic(sum.extent) ? Twine("?") : Twine(sum.extent)) + " terms over " + (ShapedType::isDynamic(tokens) ? Twine("?") : Twine(tokens)) + " tokens");
  ScalarView term = tracer.resolveRounded(sum.input);
  for (int64_t first : {0, 1}) {
    if (!tracer.same(weight, term, sum.dim, token + first))
      continue;
    ScalarView extra = term;
    for (AffineExpr &expr : extra.index)
      expr = tracer.simplify(expr.replace(sum.dim, tracer.constant(first ? 0 : tokens)));
    std::optional<Exponential> exponential = splitExponential(extra, shifts.size());
    if (!exponential || tracer.dependsOn(exponential->scores, token))
      break;
    found.sink = tracer.resolveRounded(exponential->scores);
    found.sinkScale = exponential->multiplier;
    shiftedWithSink = splitExponential(term, shifts.size())->views;
    sinkDim = sum.dim;
    return true;
  }
  return fail("expected the softmax to run over the scores and one logit for each head");
}

bool AttentionMatcher::matchSoftmaxOp(linalg::SoftmaxOp softmax, const ScalarView &probability) {
  const int64_t over = softmax.getDimension(), extent = softmax.getInputOperandType().getDimSize(over);
  ScalarView scores{softmax.getInput(), probability.index, nullptr};
  for (auto [dim, expr] : llvm::enumerate(probability.index))
    if (static_cast<int64_t>(dim) != over && expr.isFunctionOfDim(cast<AffineDimExpr>(token).getPosition()))
      return fail("expected the softmax to run over the tokens of the product with V");
  bool hasSink = !ShapedType::isDynamic(tokens) && extent == tokens + 1, sinkIsFirst = hasSink && probability.index[over] == token + 1;
  if ((extent != tokens && !hasSink) || (probability.index[over] != token && !sinkIsFirst))
    return fail("expected the softmax to run over the tokens of the product with V, and one logit more at most");
  if (hasSink) {
    ScalarView extra = scores;
    extra.index[over] = tracer.constant(sinkIsFirst ? 0 : tokens);
    found.sink = tracer.resolveRounded(extra);
  }
  return matchScores(scores, {});
}

//===----------------------------------------------------------------------===//
// Guards
//===----------------------------------------------------------------------===//

/// Whether this is a score, or the one number added to it that can hide it, of the token that `dim` stands for.
bool AttentionMatcher::isScore(const ScalarView &view, AffineExpr dim) {
  ScalarView settled = tracer.resolveRounded(view);
  auto is = [&](const ScalarView &score) { return tracer.same(score, settled, dim, token); };
  if (llvm::any_of(stages, [&](const Stage &stage) { return stage.terms == 0 && is(stage.view); }))
    return true;
  const ScoreTerm *term = found.terms.size() == 1 && found.terms.front().isAddend ? &found.terms.front() : nullptr;
  return term && term->multiplier.number > 0 && term->multiplier.scalars.empty() && is(term->view);
}

/// True where a condition says of one score that it is -inf, false where it says the contrary.
std::optional<bool> AttentionMatcher::saysMinusInfinity(ScalarView condition, AffineExpr dim) {
  condition = tracer.resolve(condition);
  if (std::optional<bool> isMinus = comparesMinusInfinity(tracer, condition); isMinus && isScore(tracer.operand(condition, 0), dim))
    return isMinus;
  if (found.terms.size() == 1 && !found.terms.front().isAddend && found.terms.front().other == -INFINITY && tracer.same(found.terms.front().view, condition, dim, token))
    return !found.terms.front().keptWhenTrue;
  return std::nullopt;
}

/// True where a condition holds in rows that see nothing, false where it holds in all others.
std::optional<bool> AttentionMatcher::saysHidden(ScalarView condition, const ScalarView &probability) {
  condition = tracer.resolve(condition);
  if (condition.isElement()) {
    for (Combine combine : {Combine::And, Combine::Or})
      if (std::optional<Reduction> all = reductionOf(tracer, condition, combine); all && isOverTokens(*all))
        if (std::optional<bool> hidden = saysMinusInfinity(all->input, all->dim); hidden && *hidden == (combine == Combine::And))
          return hidden;
    return std::nullopt;
  }
  bool isInverted = false;
  while (!condition.isElement() && condition.as<arith::XOrIOp>() && constantOf(tracer, tracer.operand(condition, 1)) == 1.0) {
    condition = tracer.resolve(tracer.operand(condition, 0));
    isInverted = !isInverted;
  }
  if (isInverted) {
    std::optional<bool> other = saysHidden(condition, probability);
    return other ? std::optional(!*other) : std::nullopt;
  }
  auto compare = condition.as<arith::CmpFOp>();
  if (!compare)
    return std::nullopt;
  ScalarView left = tracer.resolveRounded(tracer.operand(condition, 0)), right = tracer.resolveRounded(tracer.operand(condition, 1));
  if (std::optional<bool> isMinus = comparesMinusInfinity(tracer, condition))
    if (std::optional<Reduction> top = reductionOf(tracer, left, Combine::Max); top && isOverTokens(*top) && !top->startsFinite && isScore(top->input, top->dim))
      return isMinus;
  auto isNumber = [&](const ScalarView &view) {
    std::optional<double> number = constantOf(tracer, view);
    return number && std::isfinite(*number);
  };
  // isnan(p): a row that is hidden divides 0 by 0
  if (tracer.same(left, probability) && (tracer.same(right, probability) || isNumber(right))) {
    if (compare.getPredicate() == arith::CmpFPredicate::UNO || (compare.getPredicate() == arith::CmpFPredicate::UNE && tracer.same(left, right)))
      return true;
    if (compare.getPredicate() == arith::CmpFPredicate::ORD || (compare.getPredicate() == arith::CmpFPredicate::OEQ && tracer.same(left, right)))
      return false;
  }
  return std::nullopt;
}

/// Whether a guard asks for the maximum of a constant, such as that of a mask of zeros, and is known not to find -inf.
bool AttentionMatcher::neverHolds(ScalarView condition, bool zeroWhenTrue) {
  condition = tracer.resolve(condition);
  std::optional<bool> isMinus = comparesMinusInfinity(tracer, condition);
  std::optional<Reduction> top = isMinus ? reductionOf(tracer, tracer.resolveRounded(tracer.operand(condition, 0)), Combine::Max) : std::nullopt;
  std::optional<double> number = top ? constantOf(tracer, top->input) : std::nullopt;
  return number && *number > -INFINITY && isMinus == zeroWhenTrue;
}

/// Whether every maximum that is taken off scores is one of these scores, at some stage, or starts from a number. That of anything else may be -inf in a row that sees tokens.
bool AttentionMatcher::matchShifts() {
  std::function<bool(ScalarView)> isKnown = [&](ScalarView shift) {
    shift = tracer.resolveRounded(shift);
    if (constantOf(tracer, shift))
      return true;
    if (!shift.isElement())
      return tracer.allOperands(shift, [&](const ScalarView &own) { return own.value.getType().isInteger(1) || isKnown(own); });
    Reduction top = *reductionOf(tracer, shift, Combine::Max);
    ScalarView over = tracer.resolveRounded(top.input);
    auto is = [&](const ScalarView &view) { return tracer.same(view, over, top.dim, token); };
    auto isWithSink = [&](const ScalarView &view) { return tracer.same(view, over, top.dim, sinkDim); };
    return top.startsFinite || (isOverTokens(top) && (llvm::any_of(shifted, is) || llvm::any_of(stages, [&](const Stage &stage) { return is(stage.view); }))) ||
           (top.extent == tokens + 1 && llvm::any_of(shiftedWithSink, isWithSink));
  };
  return llvm::all_of(shifts, isKnown) || fail("expected the maximum that is taken off the scores to be that of the same scores");
}

/// What a row that sees nothing gets where a sum of zero is replaced: zero if what is taken off its scores is a number, NaN if that is -inf, too.
bool AttentionMatcher::matchReplacedSum() {
  if (llvm::all_of(shifts, [&](const ScalarView &shift) { return isFinite(shift); })) {
    found.maskedZero = true;
    return true;
  }
  std::optional<Reduction> top = shifts.size() == 1 ? reductionOf(tracer, tracer.resolveRounded(shifts.front()), Combine::Max) : std::nullopt;
  bool isOutermost = top && llvm::any_of(stages, [&](const Stage &stage) { return stage.terms == 0 && tracer.same(stage.view, tracer.resolveRounded(top->input), top->dim, token); });
  return (isOutermost && isOverTokens(*top)) || fail("expected a sum of zero to be replaced where the maximum is known to be a number, or that of all scores");
}

bool AttentionMatcher::matchGuards() {
  if (replacesZeroSum && !matchReplacedSum())
    return false;
  for (auto &[guarded, guard] : guards) {
    auto &[condition, zeroWhenTrue] = guard;
    if (neverHolds(condition, zeroWhenTrue))
      continue;
    if (saysHidden(condition, guarded) != zeroWhenTrue)
      return fail("expected the select among probabilities to ask whether all scores are -inf");
    found.maskedZero = true;
  }
  return true;
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

/// Whether a formula reads nothing that a loop chooses.
bool AttentionMatcher::isUniform(ScalarView view) {
  view = tracer.resolve(view);
  auto isConstant = [](AffineExpr expr) { return isa<AffineConstantExpr>(expr); };
  if (view.isElement())
    return llvm::all_of(view.index, isConstant);
  if (isOutside(view))
    return true;
  if (auto index = view.as<linalg::IndexOp>())
    return isConstant(view.index[index.getDim()]);
  return tracer.allOperands(view, [&](const ScalarView &own) { return isUniform(own); });
}

/// Takes one multiplication by something that is the same for every element off a formula.
bool AttentionMatcher::matchFactor(ScalarView &view, Multiplier &multiplier) {
  if (view.isElement() || !isa<FloatType>(view.value.getType()))
    return false;
  bool isProduct = bool(view.as<arith::MulFOp>()), isQuotient = bool(view.as<arith::DivFOp>());
  if (view.as<arith::NegFOp>()) {
    multiplier.number = -multiplier.number;
    view = tracer.operand(view, 0);
    return true;
  }
  for (unsigned side : {1u, 0u}) {
    if ((!isProduct && !isQuotient) || (isQuotient && side == 0))
      continue;
    ScalarView other = tracer.operand(view, side);
    if (std::optional<double> constant = constantOf(tracer, other)) {
      multiplier.number = isProduct ? multiplier.number * *constant : multiplier.number / *constant;
    } else if (isUniform(other)) {
      multiplier.scalars.push_back({other, isQuotient});
    } else {
      continue;
    }
    view = tracer.operand(view, 1 - side);
    return true;
  }
  return false;
}

bool AttentionMatcher::leadsToProduct(ScalarView view) {
  view = tracer.resolveRounded(view);
  if (view.isElement())
    return Contraction::of(view.value.getDefiningOp()) && tracer.dependsOn(view, token);
  if (!view.as<arith::AddFOp>() && !view.as<arith::SubFOp>() && !view.as<arith::MulFOp>() && !view.as<arith::DivFOp>() && !view.as<arith::SelectOp>() &&
      !view.as<math::TanhOp>() && !view.as<arith::NegFOp>())
    return false;
  return !tracer.allOperands(view, [&](const ScalarView &own) { return !leadsToProduct(own); });
}

bool AttentionMatcher::matchScores(ScalarView score, Multiplier multiplier) {
  while (true) {
    score = tracer.resolveRounded(score);
    if (multiplier.scalars.empty() && multiplier.number > 0) // which keeps -inf
      stages.push_back({score, found.terms.size()});
    if (score.isElement())
      break;
    if (matchFactor(score, multiplier))
      continue;
    if (score.as<math::TanhOp>()) { // C tanh(s / C)
      constexpr double least = 1e-30, most = 1e30; // A12
      if (found.softcap || !multiplier.scalars.empty() || !(multiplier.number >= least && multiplier.number <= most))
        return fail("expected one softcap C tanh(s / C) of a constant C from 1e-30 to 1e+30");
      found.softcap = multiplier.number;
      score = tracer.operand(score, 0);
      continue;
    }
    constexpr size_t kMostTerms = 64;
    if (found.terms.size() == kMostTerms)
      return fail("expected " + Twine(kMostTerms) + " masks at most, got more");
    bool isSum = bool(score.as<arith::AddFOp>()), isDifference = bool(score.as<arith::SubFOp>()), isChoice = bool(score.as<arith::SelectOp>());
    if (!isSum && !isDifference && !isChoice)
      break;
    unsigned left = isChoice ? 1 : 0, right = left + 1;
    bool leftLeads = leadsToProduct(tracer.operand(score, left)), rightLeads = leadsToProduct(tracer.operand(score, right));
    if (leftLeads == rightLeads)
      return fail(leftLeads ? "expected one product of Q and K in the scores, got a " + Twine(isChoice ? "choice" : "sum") + " of two"
                            : "expected scores that are a scaled product of Q and K" + Twine(gotOp(score)));
    if (isDifference && rightLeads)
      return fail("expected a mask to be added to the scores, got scores that are taken off");
    if (found.softcap)
      return fail("expected a mask outside of the softcap, got one inside");
    ScalarView other = tracer.operand(score, leftLeads ? right : left);
    if (isChoice) {
      std::optional<double> constant = constantOf(tracer, other);
      if (!constant || !multiplier.scalars.empty() || !(*constant * multiplier.number <= kLowScore))
        return fail("expected a select among scores to put -inf, or a number below -10000, where a token is hidden");
      found.terms.push_back({tracer.resolve(tracer.operand(score, 0)), false, leftLeads, *constant * multiplier.number, {}});
    } else if (std::optional<double> constant = constantOf(tracer, other); !constant || *constant != 0) {
      found.terms.push_back({tracer.resolveRounded(other), true, true, 0, multiplier});
      if (isDifference)
        found.terms.back().multiplier.number *= -1;
    }
    score = tracer.operand(score, leftLeads ? left : right);
  }
  return matchProduct(score, multiplier);
}

bool AttentionMatcher::matchProduct(const ScalarView &score, const Multiplier &multiplier) {
  std::optional<Contraction> product = score.isElement() ? Contraction::of(score.value.getDefiningOp()) : std::nullopt;
  if (!product)
    return fail(score.isElement() ? "expected scores that are a scaled product of Q and K, got an element of another tensor"
                                  : "expected scores that are a scaled product of Q and K" + Twine(gotOp(score)));
  if (std::optional<std::string> refusal = product->refuse("product of Q and K"))
    return fail(*refusal);
  if (!product->startsFromZero(tracer)) { // a mask that the product is added to
    if (found.softcap)
      return fail("expected a mask outside of the softcap, got one inside");
    found.terms.push_back({tracer.resolveRounded({product->start(), score.index, nullptr}), true, true, 0, multiplier});
  }
  AffineExpr channel;
  std::optional<Index> loops = product->loopsAt(tracer, score.index, channel);
  if (!loops)
    return fail("expected the product of Q and K to be indexed by its loops");
  found.scale = multiplier;

  // K is the side that knows the token.
  unsigned keyFactor = tracer.dependsOn(product->factor(0, *loops), token) ? 0 : 1;
  ScalarView key = product->factor(keyFactor, *loops), query = product->factor(1 - keyFactor, *loops);
  if (!tracer.dependsOn(key, token) || tracer.dependsOn(query, token))
    return fail("expected exactly one side of the product of Q and K to depend on the token");
  keys = follow(key, token, channel, "key", /*scaled=*/true);
  if (keys.empty())
    return false;
  queries = follow(query, {}, channel, "query", /*scaled=*/true);
  return !queries.empty();
}

//===----------------------------------------------------------------------===//
// Operands
//===----------------------------------------------------------------------===//

/// All tensors that an operand can be read from, those that can be read as they are first, the farthest ahead.
std::vector<AttentionMatcher::Candidate> AttentionMatcher::follow(ScalarView view, AffineExpr row, AffineExpr channel, StringRef name, bool scaled) {
  std::vector<Candidate> candidates, transposed; // nearest first
  Multiplier multiplier;
  Value last;
  while (true) {
    if (view.isElement()) {
      last = view.value;
      if (std::optional<Reading> reading = readingOf(tracer, view, row, channel, valueChannel))
        (reading->inOrder() ? candidates : transposed).push_back(Candidate{*reading, multiplier});
    }
    if (auto next = tracer.step(view))
      view = *next;
    else if (!view.isElement() && view.as<arith::ExtFOp>())
      view = tracer.operand(view, 0);
    else if (!scaled || !matchFactor(view, multiplier))
      break;
  }
  std::reverse(candidates.begin(), candidates.end());
  candidates.insert(candidates.end(), transposed.rbegin(), transposed.rend());
  constexpr size_t kMostCandidates = 4; // each is tried with each of the others'
  if (candidates.size() > kMostCandidates)
    candidates.erase(candidates.begin() + kMostCandidates - 1, candidates.end() - 1);
  if (candidates.empty())
    fail("expected the " + name + " to be read from a tensor of f16, bf16 or f32 with a dimension of " + (name == "query" ? "" : "tokens and one of ") + "channels" +
         (last ? llvm::formatv(", got {0}", last.getType()).str() : gotOp(view)));
  return candidates;
}

bool AttentionMatcher::matchLayout(ArrayRef<Candidate> allQueries, ArrayRef<Candidate> allKeys, ArrayRef<Candidate> allValues) {
  if (!found.grid.enumerate(tracer, results, valueChannel, reason))
    return false;
  std::string first; // the reason of what was tried first says most
  for (const Candidate &key : allKeys)
    for (const Candidate &value : allValues)
      for (const Candidate &query : allQueries) {
        RankedTensorType k = key.reading.type(), v = value.reading.type();
        if (k.getElementType() != v.getElementType())
          fail(llvm::formatv("expected K and V of one element type, got {0} and {1}", k.getElementType(), v.getElementType()).str());
        else if (k.isDynamicDim(key.reading.channel) || v.isDynamicDim(value.reading.channel) || query.reading.channels() != key.reading.channels())
          fail(llvm::formatv("expected static channels on which Q and K agree, got {0}, {1} and {2}", query.reading.type(), k, v).str());
        else if (found.grid.place(query.reading, key.reading, value.reading, reason)) {
          found.query = query.reading, found.key = key.reading, found.value = value.reading;
          for (const Candidate *candidate : {&query, &key}) {
            found.scale.number *= candidate->multiplier.number;
            found.scale.scalars.append(candidate->multiplier.scalars);
          }
          if (!fitsFloat(found.scale) || !fitsFloat(found.sinkScale) || !llvm::all_of(found.terms, [](const ScoreTerm &term) { return fitsFloat(term.multiplier); }))
            return fail("expected factors that are finite in f32");
          auto type = cast<RankedTensorType>(anchor.output.getType());
          return found.grid.canLayOut(type) || fail(llvm::formatv("expected a result of batch, heads, queries and value channels in some order, got {0}", type).str());
        }
        if (first.empty())
          first = reason;
      }
  return fail(first);
}
