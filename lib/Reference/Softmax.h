// What becomes of scores: softcap, masks, softmax with a sink. Once for all of lib/Reference.
#ifndef ALIGNED_LIB_REFERENCE_SOFTMAX_H
#define ALIGNED_LIB_REFERENCE_SOFTMAX_H

#include "aligned/Reference/Attention.h"

#include <algorithm>
#include <cmath>

namespace aligned {

/// C tanh(s / C), where there is a C.
inline double capped(double score, double softcap) { return softcap ? softcap * std::tanh(score / softcap) : score; }

/// What the softcap and the masks make of a score.
inline double masked(const HeadInputs &in, int64_t row, int64_t token, double score) {
  if (!in.sees(row, token))
    return -INFINITY;
  return capped(score, in.softcap) + (in.additive.empty() ? 0 : in.additive[row * in.tokens + token]);
}

/// A row whose query is not finite is NaN.
inline bool isFiniteRow(const HeadInputs &in, int64_t row) {
  auto q = in.q.begin() + row * in.keyDim;
  return std::all_of(q, q + in.keyDim, [](double x) { return std::isfinite(x); });
}

inline double sinkOf(const HeadInputs &in, int64_t row) { return in.sinkLogits.empty() ? -INFINITY : in.sinkLogits[row]; }

/// What the sum over values begins with: NaN for a row of nothing but -inf, unless that is to give 0.
inline double emptyRow(const HeadInputs &in, bool nothing) { return nothing && in.tokens && !in.maskedZero ? NAN : 0; }

/// e^(s - max) / sum, in place; the sink counts in both. Where a score is NaN or the maximum infinite, all are NaN, and so they are where there is
/// nothing but -inf: that it returns.
inline bool softmax(std::vector<double> &scores, double sink) {
  double top = sink, sum = 0;
  bool nothing = sink == -INFINITY;
  for (double s : scores) {
    top = std::max(top, s);
    nothing &= s == -INFINITY;
  }
  for (double &s : scores)
    sum += s = std::exp(s - top);
  if (sink != -INFINITY)
    sum += std::exp(sink - top);
  for (double &s : scores)
    s /= sum;
  return nothing;
}

} // namespace aligned

#endif // ALIGNED_LIB_REFERENCE_SOFTMAX_H
