// What masks (A11) and softcap (A12) do to scores, as code that every machine shares. Numbers are scalars or vectors alike, tokens of any integer type.
//
// Scores are capped first and masked then: a kernel writes -inf for what isVisible denies, and for lanes past the last token, since softcapped(-inf) is
// -cap. Weights of masked tokens are 0, but 0 times a value that is not finite is NaN: dense values of masked tokens, and those kept aside (S7), must be left out.
// Under a softcap a query that is not finite must be made NaN beforehand (q + 0 q), since an infinite score would come back finite.
//
// `tokens` counts up to the newest query, that is without those that are `later`; what is behind them is visible where a mask is not causal.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_MASKS_H
#define ALIGNED_LIB_CONVERSION_COMMON_MASKS_H

#include "DecodeShape.h"

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// What a capped score is off by at most because of the cap's own rounding, relative to the cap: 5 * 2^-23, and room for other orders of evaluation.
constexpr double kSoftcapRounding = 0x1p-20;

/// cap * tanh(score / cap), f32; NaN for NaN.
Val softcapped(Val score, double cap);

/// Whether `token` is visible to `query` (0 .. queries - 1; of query row h of a kv head, h mod queries), i1. With no mask all are.
Val isVisible(Val token, Val query, Val tokens, const DecodeShape &shape);
/// Whether a number of a mask that is an operand (P8) hides its token: -inf does, and false. i1, lane by lane.
Val hides(Val number);
/// Whether the mask that is an operand has numbers, which are added to scores.
bool addsMask(const DecodeShape &shape);
/// What adding them may round scores by. They may be far larger than scores; but where a score has a weight, what was added up is no further from 0 than the largest sum and
/// `reach` more.
Val maskRounding(Val largest, double reach);
/// Whether any query sees any of the tokens first .. last.
Val areVisible(Val first, Val last, Val tokens, const DecodeShape &shape);
/// Whether every query sees all of the tokens first .. last.
Val areAllVisible(Val first, Val last, Val tokens, const DecodeShape &shape);
/// How many of the `held` tokens of the cache a query sees.
Val visibleTokens(Val query, Val tokens, Val held, const DecodeShape &shape);

/// The tiles of which any query sees a token, among `held` ones; others need not be read: [0, sinks) and [begin, end), where sinks <= begin <= end <= held.
struct VisibleTiles {
  Val sinks, begin, end;
};
VisibleTiles visibleTiles(Val held, Val tokens, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_MASKS_H
