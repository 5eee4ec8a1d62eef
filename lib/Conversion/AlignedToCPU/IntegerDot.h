// The 4-way dot product of nibbles with signed bytes, on which both scores and values of `fixed` formats rest.
//
// Float weights become integers aligned to one precision: weight = step * (d2 * 256^2 + d1 * 256 + d0) with digits in [-128, 127]. A
// *work item* is one unit of nibbles (32-bit words, a nibble pair of four addends in each) with the digits that weigh them; items that
// share a nibble layer and a digit position share a place value, so that their products sum as integers and are scaled once.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_INTEGERDOT_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_INTEGERDOT_H

#include "../Common/Numerics.h"
#include "RowKernel.h"

namespace aligned {

/// Addends of which a sum of 32 bits holds any: 15 * 128 * 2^20 < 2^31.
constexpr int64_t kDotItems = 1 << 20;

/// acc[i] + sum over the four bytes j of nibbles[i].j * weights[i].j; nibbles are 0 .. 15, weights signed bytes.
Val dot4(Isa isa, Val acc, Val nibbles, Val weights);

/// Digit `position` of weights, as i8.
Val digit(Val weights, int64_t position);

/// The integer sums of one work list, over `words` words of its units and for `heads` query rows. Each word holds low nibbles for one addend
/// of the result and high nibbles for another, so that there are two sums per word and row.
struct DotColumn {
  Isa isa;
  int64_t lanes, words, heads;

  /// Position of a register of sums.
  int64_t at(int64_t head, bool high, int64_t vector) const { return (head * 2 + high) * (words / lanes) + vector; }
  /// Sums of no items.
  Vals zero(Emitter &e) const;
  /// Adds one item: `unit` loads a register of its words, `weight` the digits of a query row as one 32-bit word.
  Vals add(Emitter &e, Vals sums, llvm::function_ref<Val(int64_t vector)> unit, llvm::function_ref<Val(int64_t head)> weight) const;
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_INTEGERDOT_H
