// The 4-way dot product of nibbles with signed bytes, on which both scores and values of `fixed` formats rest.
//
// Float weights become integers aligned to one precision: weight = step * (d2 * 256^2 + d1 * 256 + d0) with digits in [-128, 127]. A
// *work item* is one unit of nibbles (32-bit words, a nibble pair of four addends in each) with the digits that weigh them; items that
// share a nibble layer and a digit position share a place value, so that their products sum as integers and are scaled once.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_INTEGERDOT_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_INTEGERDOT_H

#include "RowKernel.h"

namespace aligned {

/// Digits that a weight is written with.
constexpr int64_t kDigits = 3;
/// Magnitude that a weight in units of its step may reach: 22 bits leave room for the carry into the top digit.
constexpr double kWeightLimit = 4194304.0;
/// Weights are kept this much finer than the precision that the values are read to: 64 costs no digit more than 16, and 16 already shows in the plans.
constexpr double kWeightGuard = 64.0;

/// acc[i] + sum over the four bytes j of nibbles[i].j * weights[i].j; nibbles are 0 .. 15, weights signed bytes.
Val dot4(Isa isa, Val acc, Val nibbles, Val weights);

/// The nearest integer as i32; 0 where the magnitude is above the limit or NaN.
Val toWeight(Val x);
/// Digit `position` of weights, as i8.
Val digit(Val weights, int64_t position);

/// Sums of one work list over `words` words of a unit, for the query rows first .. first + count: [row][low nibbles, high nibbles][words / lanes].
/// `unit(item, word)` loads words, `weight(item, row)` the digits of a row as one 32-bit word. `iterate` runs its body over the items.
using DotSums = Vals;
struct DotColumn {
  Isa isa;
  int64_t lanes, words, heads;
  int64_t size() const { return heads * 2 * words / lanes; }
  /// Position of a sum in the list.
  int64_t at(int64_t head, bool high, int64_t vector) const { return (head * 2 + high) * (words / lanes) + vector; }
  DotSums zero(Emitter &e) const;
  /// Adds one item.
  DotSums add(Emitter &e, DotSums sums, llvm::function_ref<Val(int64_t vector)> unit, llvm::function_ref<Val(int64_t head)> weight) const;
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_INTEGERDOT_H
