// See the header for the idea.
#include "Masks.h"

using namespace mlir;
using namespace aligned;

Val aligned::softcapped(Val score, double cap) {
  // tanh(x) = 1 - 2 / (e^2x + 1), where from e^64 on nothing is left of the quotient.
  Val power = exp(min(score * (2 / cap), 64));
  return score.e->constant(score.type(), cap) - score.e->constant(score.type(), 2 * cap) / (power + 1);
}

/// Caches have fewer tokens than 2^30: counts beyond fit no i32 and mean the same.
static double counted(int64_t tokens) { return static_cast<double>(std::min<int64_t>(tokens, 1 << 30)); }

static Val as(Val number, Val like) {
  number = convert(number, like.element());
  return like.lanes() && !number.lanes() ? number.e->splat(number, like.lanes()) : number;
}

static Val always(Val like) {
  Type flag = like.e->types.getI1Type();
  return like.e->constant(like.lanes() ? VectorType::get(like.lanes(), flag) : flag, 1);
}

Val aligned::isVisible(Val token, Val query, Val tokens, const DecodeShape &shape) {
  Val seen = always(token);
  if (!shape.mask)
    return seen;
  Val position = as(tokens, token) + as(query, token) - static_cast<double>(shape.queries);
  if (shape.mask.getCausal())
    seen = token <= position;
  if (!shape.mask.getWindow())
    return seen;
  Val inWindow = position - token < counted(shape.mask.getWindow());
  if (shape.mask.getSinks())
    inWindow = inWindow | (token < counted(shape.mask.getSinks()));
  return seen & inWindow;
}

/// Windows of neighbouring queries lie one token apart, so that together they are one stretch: from that of the first query to the last query.
Val aligned::areVisible(Val first, Val last, Val tokens, const DecodeShape &shape) {
  Val seen = always(first);
  if (!shape.mask)
    return seen;
  Val end = as(tokens, first);
  if (shape.mask.getCausal())
    seen = first < end;
  if (!shape.mask.getWindow())
    return seen;
  Val inWindow = last > end - counted(shape.queries + shape.mask.getWindow());
  if (shape.mask.getSinks())
    inWindow = inWindow | (first < counted(shape.mask.getSinks()));
  return seen & inWindow;
}

/// The first query sees the fewest of the newest tokens, the last one the fewest of the oldest.
Val aligned::areAllVisible(Val first, Val last, Val tokens, const DecodeShape &shape) {
  Val seen = always(first);
  if (!shape.mask)
    return seen;
  Val end = as(tokens, first);
  if (shape.mask.getCausal())
    seen = last <= end - static_cast<double>(shape.queries);
  if (!shape.mask.getWindow())
    return seen;
  Val inWindow = first >= end - counted(shape.mask.getWindow());
  if (shape.mask.getSinks())
    inWindow = inWindow | (last < counted(shape.mask.getSinks()));
  return seen & inWindow;
}

Val aligned::isBlockVisible(Val block, Val tokens, const DecodeShape &shape) {
  Val first = block * kBlock;
  return areVisible(first, first + (kBlock - 1), tokens, shape);
}

Val aligned::visibleTokens(Val query, Val tokens, Val held, const DecodeShape &shape) {
  if (!shape.mask)
    return held;
  Val position = as(tokens, held) + as(query, held) - static_cast<double>(shape.queries), end = held;
  if (shape.mask.getCausal())
    end = min(max(position + 1, 0), held);
  if (!shape.mask.getWindow())
    return end;
  Val begin = min(max(position - counted(shape.mask.getWindow()) + 1, 0), end);
  return end - begin + min(begin, counted(shape.mask.getSinks()));
}

VisibleBlocks aligned::visibleBlocks(Val held, Val tokens, const DecodeShape &shape) {
  Emitter &e = *held.e;
  Val zero = e.constant(held.type(), 0), end = held;
  if (!shape.mask)
    return {zero, zero, end};
  Val newest = as(tokens, held);
  if (shape.mask.getCausal())
    end = min((max(newest, 0) + (kBlock - 1)) / e.constant(held.type(), kBlock), held);
  if (!shape.mask.getWindow())
    return {zero, zero, end};
  Val first = max(newest - counted(shape.queries + shape.mask.getWindow()) + 1, 0);
  Val sinks = min(e.constant(held.type(), (counted(shape.mask.getSinks()) + (kBlock - 1)) / kBlock), end);
  return {sinks, min(max(first / e.constant(held.type(), kBlock), sinks), end), end};
}
