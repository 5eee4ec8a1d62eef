// Exact attention in float64: what every kernel and every policy is measured against.
#ifndef ALIGNED_REFERENCE_ATTENTION_H
#define ALIGNED_REFERENCE_ATTENTION_H

#include <cstdint>

namespace aligned {

/// out[h] = sum_t softmax_t(scale * q[h] . k[t]) v[t], the attention of query rows that share one kv head: q [heads][keyDim],
/// k [tokens][keyDim], v [tokens][valueDim], out [heads][valueDim].
///
/// A row whose scores are all -inf, or that has no token, yields 0 if `maskedZero`, else NaN. A NaN stays in its own row.
void exactAttention(const double *q, int64_t heads, const double *k, const double *v, int64_t tokens, int64_t keyDim, int64_t valueDim,
                    double scale, bool maskedZero, double *out);

/// ||actual - expected|| / ||expected|| of two rows; the error of a row of zeros is measured against 1e-30.
double relativeError(const double *actual, const double *expected, int64_t count);

} // namespace aligned

#endif
