// What masks (A11) and softcap (A12) do to scores, as code that every machine shares. Numbers are scalars or vectors alike, tokens of any integer type.
//
// Scores are capped first and masked then: a kernel writes -inf for what isVisible denies, and for lanes past the last token, since softcapped(-inf) is
// -cap. Weights of masked tokens are 0, but 0 times a value that is not finite is NaN: dense values of masked tokens, and those kept aside (S7), must be left out.
// Under a softcap a query that is not finite must be made NaN beforehand (q + 0 q), since an infinite score would come back finite.
//
// `tokens` counts up to the newest query, that is without those that are `later`; what is behind them is visible where a mask is not causal.
//
// Windows, sinks and softcaps are known to the compiler or given to kernels. Sight and Softcap hold either: what is known becomes constants where it is used, what is given
// is made fit, and what follows from it computed, where a kernel begins.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_MASKS_H
#define ALIGNED_LIB_CONVERSION_COMMON_MASKS_H

#include "DecodeShape.h"

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// What a capped score is off by at most because of the cap's own rounding, relative to the cap: 5 * 2^-23, 7 where it is given, and room for other orders of evaluation.
constexpr double kSoftcapRounding = 0x1p-20;

/// A number that is known, or given as a scalar.
struct Number {
  double known = 0;
  Val given = {};

  /// In code, of a type or as what it meets.
  Val as(Emitter &e, mlir::Type type) const;
  Val like(Val other) const { return as(*other.e, other.type()); }
};
Number operator+(const Number &number, double addend);
Number operator*(const Number &number, double factor);

/// What a cap is in code, of scores in units of which e^x has `unit`.
struct Softcap {
  Softcap() = default;
  /// `known`: 0 where there is none, or where it is given: as the attribute would be (A12), else the nearest that may be; NaN for NaN.
  explicit Softcap(double known, Val given = {}, double unit = 1);

  Number cap, twice, slope; ///< slope: 2 / cap
  Number rounding;          ///< what a capped score is off by at most, in the units of e^x
};

/// cap * tanh(score / cap); NaN for NaN.
Val softcapped(Val score, const Softcap &cap);

/// What queries see by position: a mask (A11), or null, with its numbers. What is given and no attribute may be counts as the nearest that may.
struct Sight {
  Sight() = default;
  Sight(MaskAttr mask, int64_t queries, Val window = {}, Val sinks = {});

  MaskAttr mask;
  int64_t queries = 1;
  Number window, sinks;
};

/// Whether `token` is visible to `query` (0 .. queries - 1; of query row h of a kv head, h mod queries), i1. With no mask all are.
Val isVisible(Val token, Val query, Val tokens, const Sight &sight);
/// Whether a number of a mask that is an operand (P8) hides its token: -inf does, and false. i1, lane by lane.
Val hides(Val number);
/// Whether the mask that is an operand has numbers, which are added to scores.
bool addsMask(const DecodeShape &shape);
/// What adding them may round scores by. They may be far larger than scores; but where a score has a weight, what was added up is no further from 0 than the largest sum and
/// `reach` more.
Val maskRounding(Val largest, double reach);
/// Whether any query sees any of the tokens first .. last.
Val areVisible(Val first, Val last, Val tokens, const Sight &sight);
/// Whether every query sees all of the tokens first .. last.
Val areAllVisible(Val first, Val last, Val tokens, const Sight &sight);
/// How many of the `held` tokens of the cache a query sees.
Val visibleTokens(Val query, Val tokens, Val held, const Sight &sight);

/// The tiles of which any query sees a token, among `held` ones; others need not be read: [0, sinks) and [begin, end), where sinks <= begin <= end <= held.
struct VisibleTiles {
  Val sinks, begin, end;
};
VisibleTiles visibleTiles(Val held, Val tokens, const Sight &sight);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_MASKS_H
