// Attention word for word: no blocks, no running maximum, nothing that a kernel does to be fast.

#include "aligned/Reference/Attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

void aligned::exactAttention(const double *q, int64_t heads, const double *k, const double *v, int64_t tokens, int64_t keyDim,
                             int64_t valueDim, double scale, bool maskedZero, double *out) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  std::vector<double> weights(tokens);
  for (int64_t h = 0; h < heads; ++h) {
    double largest = -infinity;
    bool masked = true;
    for (int64_t t = 0; t < tokens; ++t) {
      double score = 0;
      for (int64_t c = 0; c < keyDim; ++c)
        score += q[h * keyDim + c] * k[t * keyDim + c];
      weights[t] = score * scale;
      largest = std::max(largest, weights[t]); // skips a NaN, which reaches the sum all the same
      masked &= weights[t] == -infinity;
    }
    double sum = 0;
    for (double &weight : weights)
      sum += weight = std::exp(weight - largest);
    double *row = out + h * valueDim;
    std::fill_n(row, valueDim, 0.0);
    if (masked && maskedZero)
      continue;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < valueDim; ++c)
        row[c] += weights[t] * v[t * valueDim + c];
    for (int64_t c = 0; c < valueDim; ++c)
      row[c] /= sum;
  }
}

double aligned::relativeError(const double *actual, const double *expected, int64_t count) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference) / std::max(std::sqrt(size), 1e-30);
}
