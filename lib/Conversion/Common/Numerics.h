// S1, P1 and P2 as code that every machine shares: what stored bits stand for, how many of them an addend needs, and what is left when they are read.
// Numbers are scalars or vectors alike.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_NUMERICS_H
#define ALIGNED_LIB_CONVERSION_COMMON_NUMERICS_H

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// Nibble layers of a 16-bit value.
constexpr int64_t kLayers = 4;

constexpr double kCoarse = 0.5;           // absolute precision of each addend of a coarse score, in logits
constexpr double kUnread = 0.125;         // of the wanted precision: what a key that is not read may reach, since its error is not dithered
constexpr double kSlack = 2.0;            // of a budget, as variance, before a plan is made again
constexpr double kCommon = 0.02;          // how far rows of V that are not read may lie off their mean together, as a share of their scale
constexpr double kLeastFill = 1.0 / 256;  // of the share of their scales that values fill, as variance
constexpr double kRoom = 16.0 / 15.0;     // scale / 2^E: room for the dither
constexpr double kTiny = 1e-30;
constexpr int64_t kStartExponent = 2;     // of the coarsest precision that a plan considers, relative to the loudest row's scale
constexpr int64_t kQuarterOctaves = 240;  // and how much finer it may be
// Variance of an addend read to precision 1, its need spread evenly between planes: (1 - 2^-8) / (8 ln 2) / 3.
constexpr double kStepVariance = (1.0 - 1.0 / 256) / (8 * 0.6931471805599453) / 3;

/// The value of one unit of the stored integer, scale / 2^15, from stored exponents (i8, or wider).
Val unitScale(Val exponents);
/// The stored exponent (i32) of values whose largest magnitude is this (f32).
Val exponentOf(Val largest);
/// What reading this many layers (i32) leaves of a value at most, relative to its scale: 16^-layers.
Val remainderOf(Val layers);
/// What is added to the integer that the top layers spell: the mean of the missing bits, and the sign's -2^15.
Val offsetOf(Val layers);
/// The dither of token indices given as i32, as f32; values are all dithered like channel 0.
Val dither(Val tokens, int64_t channel = 0);

/// Layers (i32) so that an addend whose reach is `steps` times the wanted precision is read that precisely: one for each factor of 16, none up
/// to `unread`.
Val layersFor(Val steps, double unread);
/// What an addend is off by at most, relative to the wanted precision, once as many layers are read as its reach of `steps` > 1 asks for:
/// steps / 16^layers, in (1/16, 1].
Val offAfterReading(Val steps);

/// The coarsest of the quarter octaves from 2^kStartExponent down whose predicted variance keeps within the budget. The variance falls with the precision.
Val coarsest(Val budget, llvm::function_ref<Val(Val precision)> variance);
/// The same, asking for the variances of several precisions at once and less often.
Val coarsest(Val budget, int64_t atOnce, llvm::function_ref<Vals(Vals precisions)> variances);

/// P1: floor(log2 |x|) of an f32, at least -14, and -15 for zero: the exponent of a half.
Val halfExponent(Val x);
/// P1: layers of the three tiers, the least, the middle, or all.
Val tierLayers(Val isLeast, Val isMiddle);
constexpr int64_t kProbed = 32; ///< P1: rows that judge the size of the output

/// Digits that a weight is written with.
constexpr int64_t kDigits = 3;
/// Magnitude that a weight in units of its step may reach: 22 bits leave room for the carry into the top digit.
constexpr double kWeightLimit = 4194304.0;
/// Weights are kept this much finer than the precision that the values are read to: 64 costs no digit more than 16, and 16 already shows in the plans.
constexpr double kWeightGuard = 64.0;

/// The nearest integer as i32; 0 where the magnitude is above the limit or NaN.
Val toWeight(Val x);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_NUMERICS_H
