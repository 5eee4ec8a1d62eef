// See the header for the idea.
#include "Masks.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

static Val as(Val number, Val like) {
  number = convert(number, like.element());
  return like.lanes() && !number.lanes() ? number.e->splat(number, like.lanes()) : number;
}

Val Number::as(Emitter &e, Type type) const {
  if (!given.e)
    return e.constant(type, known);
  Val own = convert(e.wrap(given.value), getElementTypeOrSelf(type)); // where this is, not where the number was given
  auto vector = dyn_cast<VectorType>(type);
  return vector ? e.splat(own, vector.getNumElements()) : own;
}

Number aligned::operator+(const Number &number, double addend) { return number.given.e ? Number{0, number.given + addend} : Number{number.known + addend}; }
Number aligned::operator*(const Number &number, double factor) { return number.given.e ? Number{0, number.given * factor} : Number{number.known * factor}; }

Softcap::Softcap(double known, Val given, double unit) {
  if (!given.e) {
    cap = {known * unit};
    slope = {known ? 2 / cap.known : 0};
  } else {
    auto number = [&](double x) { return given.e->constant(given.type(), x); };
    given = select(given < kLeastSoftcap, number(kLeastSoftcap), select(given > kLargestSoftcap, number(kLargestSoftcap), given));
    known = 0;
    cap = {0, unit == 1 ? given : given * unit};
    slope = {0, number(2) / cap.given};
  }
  twice = cap * 2;
  rounding = Number{known, given} * kSoftcapRounding;
}

Val aligned::softcapped(Val score, const Softcap &cap) {
  // tanh(x) = 1 - 2 / (e^2x + 1), where from e^64 on nothing is left of the quotient.
  Val power = exp(min(score * cap.slope.like(score), 64));
  return cap.cap.like(score) - cap.twice.like(score) / (power + 1);
}

bool aligned::addsMask(const DecodeShape &shape) { return shape.attnMask && isa<FloatType>(shape.attnMask.getElementType()); }

Val aligned::maskRounding(Val largest, double reach) {
  Val most = abs(largest);
  return select(most < 1e30, most + reach, most.e->constant(most.type(), 0)) * 0x1p-23;
}

/// Caches have fewer tokens than 2^30: counts beyond fit no i32 and mean the same.
static constexpr int64_t kMostCounted = 1 << 30;

Sight::Sight(MaskAttr mask, int64_t queries, Val givenWindow, Val givenSinks) : mask(mask), queries(queries) {
  auto count = [](int64_t known, Val given, double least) {
    if (!given.e)
      return Number{static_cast<double>(std::min(known, kMostCounted))};
    return Number{0, convert(min(max(given, least), double(kMostCounted)), given.e->i32())};
  };
  if (!mask)
    return;
  window = count(mask.getWindow(), givenWindow, 1);
  sinks = count(mask.getSinks(), givenSinks, 0);
}

static Val always(Val like) {
  Type flag = like.e->types.getI1Type();
  return like.e->constant(like.lanes() ? VectorType::get(like.lanes(), flag) : flag, 1);
}

/// What a mask says of tokens like `like`: its parts are asked for where it has them.
static Val seenBy(const Sight &sight, Val like, function_ref<Val()> isPast, function_ref<Val()> isNear, function_ref<Val()> isSink) {
  Val seen = always(like);
  if (sight.mask && sight.mask.getCausal())
    seen = isPast();
  if (!sight.mask || !sight.mask.getWindow())
    return seen;
  Val kept = isNear();
  if (sight.mask.getSinks())
    kept = kept | isSink();
  return seen & kept;
}

Val aligned::hides(Val number) { return number.isFloat() ? number == -INFINITY : number == 0; }

Val aligned::isVisible(Val token, Val query, Val tokens, const Sight &sight) {
  auto position = [&] { return as(tokens, token) + as(query, token) - static_cast<double>(sight.queries); };
  return seenBy(
      sight, token, [&] { return token <= position(); }, [&] { return position() - token < sight.window.like(token); }, [&] { return token < sight.sinks.like(token); });
}

/// Windows of neighbouring queries lie one token apart, so that together they are one stretch: from that of the first query to the last query.
Val aligned::areVisible(Val first, Val last, Val tokens, const Sight &sight) {
  auto end = [&] { return as(tokens, first); };
  return seenBy(
      sight, first, [&] { return first < end(); }, [&] { return last > end() - (sight.window + double(sight.queries)).like(first); },
      [&] { return first < sight.sinks.like(first); });
}

Val aligned::areAllVisible(Val first, Val last, Val tokens, const Sight &sight) {
  auto end = [&] { return as(tokens, first); };
  return seenBy(
      sight, first, [&] { return last <= end() - static_cast<double>(sight.queries); }, [&] { return first >= end() - sight.window.like(first); },
      [&] { return last < sight.sinks.like(last); });
}

Val aligned::visibleTokens(Val query, Val tokens, Val held, const Sight &sight) {
  if (!sight.mask)
    return held;
  Val position = as(tokens, held) + as(query, held) - static_cast<double>(sight.queries), end = held;
  if (sight.mask.getCausal())
    end = min(max(position + 1, 0), held);
  if (!sight.mask.getWindow())
    return end;
  Val begin = min(max(position - sight.window.like(held) + 1, 0), end);
  return end - begin + min(begin, sight.sinks.like(begin));
}

VisibleTiles aligned::visibleTiles(Val held, Val tokens, const Sight &sight) {
  Emitter &e = *held.e;
  Val zero = e.constant(held.type(), 0), tile = e.constant(held.type(), kTile), end = held;
  if (!sight.mask)
    return {zero, zero, end};
  Val newest = as(tokens, held);
  if (sight.mask.getCausal())
    end = min((max(newest, 0) + (kTile - 1)) / tile, held);
  if (!sight.mask.getWindow())
    return {zero, zero, end};
  Val first = max(newest - (sight.window + double(sight.queries)).like(held) + 1, 0);
  const Number &kept = sight.sinks;
  Val sinks = min(kept.given.e ? (kept + (kTile - 1)).like(held) / tile : e.constant(held.type(), std::ceil(kept.known / kTile)), end);
  return {sinks, min(max(first / tile, sinks), end), end};
}
