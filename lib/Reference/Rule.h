// The rule (P2, P5) and levels of planes, as the oracle of a whole step (Budget.cpp) and that of its stages (Stages.cpp) share
// them.
#ifndef ALIGNED_LIB_REFERENCE_RULE_H
#define ALIGNED_LIB_REFERENCE_RULE_H

#include "aligned/Reference/Attention.h"

#include <algorithm>
#include <cmath>

namespace aligned {

constexpr double kKeyPrice = 6;   // an error of a score may move the output by this many tau: bits of K cost more
constexpr double kLeastLog = -20; // of P5's factor
constexpr double kRounding = 0x1p-24;
constexpr double kCommonUnread = 0.03, kCommonScan = 0.2; // shares of errors that are common to tokens (E1)

/// Standard deviation of p / coarse p - 1 where the exact score lies sigma around the coarse one: sqrt(e^(2 s^2) - 2 e^(s^2/2) +
/// 1).
inline double misledBy(double sigma) {
  double square = sigma * sigma;
  return std::sqrt(std::expm1(std::min(2 * square, 300.0)) - 2 * std::expm1(std::min(square / 2, 75.0)));
}

/// What `bits` bits of K leave of error in a score, as a standard deviation, of a query row of that length.
inline double sigmaOf(double scale, double length, int bits) { return scale * length * std::ldexp(1, -bits) / std::sqrt(3.0); }

/// log of what Z counts in thresholds (P5).
inline double logShrink(double sigma) { return std::max(-sigma * sigma / 2, kLeastLog); }

/// What a value read to `bits` bits may be off by at most, relative to its scale: half a step of what is read, half a step of n.
inline double reachOf(int bits) { return (bits < 16 ? std::ldexp(1, -bits) : 0) + 0x1p-16; }

/// Bits that a read may stop at.
inline std::vector<int> levelsOf(const SideStorage &side) {
  std::vector<int> levels;
  for (int width : side.widths)
    if (static_cast<int>(levels.size()) < side.resident)
      levels.push_back((levels.empty() ? 0 : levels.back()) + width);
  return levels;
}

/// Up to whole planes that are resident; none stays none.
inline int roundUp(int bits, const std::vector<int> &levels) {
  if (bits <= 0)
    return 0;
  for (int level : levels)
    if (level >= bits)
      return level;
  return levels.back();
}

/// The rule for V: 0 where x <= tau, else the least level b with x <= 2^b tau, or the last. A NaN asks for nothing.
inline int valueBitsFor(double x, double tau, const std::vector<int> &levels) {
  if (!(x > tau))
    return 0;
  for (int level : levels)
    if (!(x > std::ldexp(tau, level)))
      return level;
  return levels.back();
}

} // namespace aligned

#endif // ALIGNED_LIB_REFERENCE_RULE_H
