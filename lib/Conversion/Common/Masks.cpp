// See the header for the idea.
#include "Masks.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

Val aligned::softcapped(Val score, double cap) {
  // tanh(x) = 1 - 2 / (e^2x + 1), where from e^64 on nothing is left of the quotient.
  Val power = exp(min(score * (2 / cap), 64));
  return score.e->constant(score.type(), cap) - score.e->constant(score.type(), 2 * cap) / (power + 1);
}

bool aligned::addsMask(const DecodeShape &shape) { return shape.attnMask && isa<FloatType>(shape.attnMask.getElementType()); }

Val aligned::maskRounding(Val largest, double reach) {
  Val most = abs(largest);
  return select(most < 1e30, most + reach, most.e->constant(most.type(), 0)) * 0x1p-23;
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

/// What a mask says of tokens like `like`: its parts are asked for where it has them, the last two with the number that they go by.
static Val seenBy(const DecodeShape &shape, Val like, function_ref<Val()> isPast, function_ref<Val(int64_t window)> isNear, function_ref<Val(double sinks)> isSink) {
  Val seen = always(like);
  if (shape.mask && shape.mask.getCausal())
    seen = isPast();
  if (!shape.mask || !shape.mask.getWindow())
    return seen;
  Val kept = isNear(shape.mask.getWindow());
  if (shape.mask.getSinks())
    kept = kept | isSink(counted(shape.mask.getSinks()));
  return seen & kept;
}

Val aligned::hides(Val number) { return number.isFloat() ? number == -INFINITY : number == 0; }

Val aligned::isVisible(Val token, Val query, Val tokens, const DecodeShape &shape) {
  auto position = [&] { return as(tokens, token) + as(query, token) - static_cast<double>(shape.queries); };
  return seenBy(
      shape, token, [&] { return token <= position(); }, [&](int64_t window) { return position() - token < counted(window); }, [&](double sinks) { return token < sinks; });
}

/// Windows of neighbouring queries lie one token apart, so that together they are one stretch: from that of the first query to the last query.
Val aligned::areVisible(Val first, Val last, Val tokens, const DecodeShape &shape) {
  auto end = [&] { return as(tokens, first); };
  return seenBy(
      shape, first, [&] { return first < end(); }, [&](int64_t window) { return last > end() - counted(shape.queries + window); }, [&](double sinks) { return first < sinks; });
}

Val aligned::areAllVisible(Val first, Val last, Val tokens, const DecodeShape &shape) {
  auto end = [&] { return as(tokens, first); };
  return seenBy(
      shape, first, [&] { return last <= end() - static_cast<double>(shape.queries); }, [&](int64_t window) { return first >= end() - counted(window); },
      [&](double sinks) { return last < sinks; });
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

VisibleTiles aligned::visibleTiles(Val held, Val tokens, const DecodeShape &shape) {
  Emitter &e = *held.e;
  Val zero = e.constant(held.type(), 0), end = held;
  if (!shape.mask)
    return {zero, zero, end};
  Val newest = as(tokens, held);
  if (shape.mask.getCausal())
    end = min((max(newest, 0) + (kTile - 1)) / e.constant(held.type(), kTile), held);
  if (!shape.mask.getWindow())
    return {zero, zero, end};
  Val first = max(newest - counted(shape.queries + shape.mask.getWindow()) + 1, 0);
  Val sinks = min(e.constant(held.type(), (counted(shape.mask.getSinks()) + (kTile - 1)) / kTile), end);
  return {sinks, min(max(first / e.constant(held.type(), kTile), sinks), end), end};
}
