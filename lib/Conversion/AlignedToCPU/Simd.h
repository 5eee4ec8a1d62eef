// What an instruction set does in one instruction, with code for those that don't: compression of lanes into a list, look-ups in small tables, integer dot products.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SIMD_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SIMD_H

#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// Lanes of a 32-bit vector register.
constexpr int64_t lanesOf(Isa isa) { return isa == Isa::AVX512 ? 16 : 8; }

/// acc[i] + sum over the four bytes j of left[i].j * right[i].j: bytes of `left` are unsigned, `largest` at most, those of `right` signed.
Val dot4(Isa isa, Val acc, Val left, Val right, int64_t largest);

/// Writes the lanes of `values` that `mask` (i1) sets, as the buffer's narrower integers where it has them, to buffer[at ..]. What is behind them, up to a
/// vector, may be overwritten.
void compress(Isa isa, Val mask, Val values, Buffer buffer, Val at);
/// `values`, but lane i of those that `mask` sets is the next of buffer[at ..].
Val expand(Isa isa, Val mask, Val values, Buffer buffer, Val at);
/// How many lanes a mask sets, as index.
Val countOf(Val mask);
/// Whether it sets any.
Val anyOf(Val mask);

/// 2^a as exp2 gives it, for a register of floats, by the two instructions that round and scale.
Val exp2OnAVX512(Val a, int64_t degree);

/// table[at + indices] of i32 indices into a table of 16 or 32 floats or i32 numbers.
Val lookUp(Isa isa, Buffer table, Val at, int64_t entries, Val indices);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SIMD_H
