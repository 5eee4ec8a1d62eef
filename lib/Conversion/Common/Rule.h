// The rule (P2, P5) as numbers and code that every machine shares.
//
// With x the score of a token in base 2, M a reference near the largest, Z the sum of 2^(x - M), A the usual scale of a row of V, v and k the scales of the token's
// rows, tau = tolerance / sqrt(tokens seen), and sigma_b = k |q'| 2^-b / sqrt(3):
//
//   V is read        where p v / A > tau                            x + log2 v                                > log2(tau A Z) + M  = cut
//   V to b bits      where p v / A > 2^b' tau, b' the level below   x + log2 v                                > cut + b'
//   K is read on     where p (1 + v/A) misled(sigma_b) > 6 tau      x + log2(1 + v/A) + log2 misled(sigma_b)  > cut - log2 A + log2 6
//
// so that all of it is compares of score plus scale code against constants of the row. Z is taken e^(-sigma^2 / 2) times, sigma of the median token at the bits of the
// scan, since that much coarse scores make their exponentials too large on average (P5).
//
// Scale codes count eighths of an octave. log2 misled is tabulated over them: misled(s) grows faster than s, and the logarithm of it is convex in that of s, so
// that a chord between two entries never asks for less than the rule.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_RULE_H
#define ALIGNED_LIB_CONVERSION_COMMON_RULE_H

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kPrice = 6; ///< an error of a score may move the output by this many times tau
constexpr double kLargestShrink = 20; ///< P5: sigma^2 / 2 at most

/// Standard deviation of p / coarse p - 1, where the exact score lies sigma around the coarse one.
double misled(double sigma);

/// log2 of misled(sigma), never less, in floats, with a machine's own exp2 and log2; of a sigma beyond 5 as of one of 5.
Val log2Misled(Val sigma, llvm::function_ref<Val(Val)> exp2, llvm::function_ref<Val(Val)> log2);

/// misled(sigma)^2 from sigma^2, which is at most 40.
Val misledSquare(Val square);

/// log2 misled(2^(i / 8)), i = kMisledFirst .. kMisledFirst + kMisledCount - 1.
constexpr int64_t kMisledFirst = -480, kMisledCount = 640;
Buffer misledTable(Emitter &e);

/// log2(1 + 2^y) for y in quarter octaves, entry i for y up to (2 i + 1 - 32) / 8; below the first it is asked for at the first.
constexpr int64_t kLeverCount = 32;
Buffer leverTable(Emitter &e);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_RULE_H
