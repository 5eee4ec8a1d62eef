// Exact attention, and what all policies share: masks and limits. Loops over rows, tokens and channels, in the order of the formulas.
#include "aligned/Reference/Attention.h"

#include "aligned/Reference/Planes.h"

#include "Softmax.h"

#include <algorithm>
#include <cmath>

using namespace aligned;

//===----------------------------------------------------------------------===//
// Masks (P8) and limits (P7)
//===----------------------------------------------------------------------===//

bool Mask::sees(int64_t row, int64_t token, int64_t tokens) const {
  int64_t position = tokens - later - queries + row % queries;
  return (!causal || token <= position) && (!window || position - token < window || token < sinks);
}

bool Mask::isSeen(int64_t token, int64_t tokens) const {
  for (int64_t query = 0; query < queries; ++query)
    if (sees(query, token, tokens))
      return true;
  return false;
}

bool Mask::isTileSeen(int64_t tile, int64_t tokens) const {
  for (int64_t t = tile * kTileTokens; t < std::min((tile + 1) * kTileTokens, tokens); ++t)
    if (isSeen(t, tokens))
      return true;
  return false;
}

bool HeadInputs::sees(int64_t row, int64_t token) const {
  return mask.sees(row, token, tokens) && (additive.empty() || additive[row * tokens + token] != -INFINITY);
}

int Limits::apply(int bits, int64_t first, int64_t last, int64_t tokens) const {
  int64_t age = tokens - 1 - last;
  if (first < sinks || age < newest)
    return 16;
  bits = std::min(std::max(bits, least), most);
  for (auto [from, allowed] : ages)
    if (age >= from)
      bits = std::min(bits, allowed);
  return bits;
}

//===----------------------------------------------------------------------===//
// Exact attention
//===----------------------------------------------------------------------===//

void aligned::exactAttention(const double *q, int64_t heads, const double *k, const double *v, int64_t tokens, int64_t keyDim, int64_t valueDim, double scale,
                             bool maskedZero, double *out, const Mask &mask, double softcap, const double *additive, const double *sinkLogits) {
  for (int64_t h = 0; h < heads; ++h, out += valueDim) {
    std::fill_n(out, valueDim, 0.0);
    if (!tokens)
      continue;
    auto sees = [&](int64_t t) { return mask.sees(h, t, tokens) && (!additive || additive[h * tokens + t] != -INFINITY); };
    bool finite = std::all_of(q + h * keyDim, q + (h + 1) * keyDim, [](double x) { return std::isfinite(x); });
    std::vector<double> p(tokens, -INFINITY);
    for (int64_t t = 0; t < tokens; ++t) {
      if (!sees(t))
        continue;
      double dot = 0;
      for (int64_t c = 0; c < keyDim; ++c)
        dot += q[h * keyDim + c] * k[t * keyDim + c];
      p[t] = !finite ? NAN : capped(dot * scale, softcap) + (additive ? additive[h * tokens + t] : 0);
    }
    bool masked = softmax(p, sinkLogits ? sinkLogits[h] : -INFINITY);
    if (masked && maskedZero)
      continue;
    for (int64_t c = 0; c < valueDim; ++c)
      out[c] = masked ? NAN : 0;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < valueDim && sees(t); ++c)
        out[c] += p[t] * v[t * valueDim + c];
  }
}

std::vector<double> aligned::exactAttention(const HeadInputs &in) {
  std::vector<double> out(in.heads * in.valueDim);
  auto given = [](const std::vector<double> &x) { return x.empty() ? nullptr : x.data(); };
  exactAttention(in.q.data(), in.heads, in.k.data(), in.v.data(), in.tokens, in.keyDim, in.valueDim, in.scale, in.maskedZero, out.data(), in.mask, in.softcap,
                 given(in.additive), given(in.sinkLogits));
  return out;
}

void aligned::exactState(const HeadInputs &in, double *acc, double *max, double *sum) {
  std::fill_n(acc, in.heads * in.valueDim, 0.0);
  for (int64_t h = 0; h < in.heads; ++h) {
    const double sink = sinkOf(in, h);
    const bool isFinite = isFiniteRow(in, h);
    bool nothing = sink == -INFINITY;
    std::vector<double> scores(in.tokens);
    max[h] = sink;
    for (int64_t t = 0; t < in.tokens; ++t) {
      double dot = 0;
      for (int64_t c = 0; c < in.keyDim; ++c)
        dot += in.q[h * in.keyDim + c] * in.k[t * in.keyDim + c];
      scores[t] = isFinite || !in.sees(h, t) ? masked(in, h, t, dot * in.scale) : NAN;
      max[h] = std::max(max[h], scores[t]); // passes over NaN, which the sum keeps
      nothing &= scores[t] == -INFINITY;
    }
    sum[h] = nothing ? emptyRow(in, nothing) : sink == -INFINITY ? 0 : std::exp(sink - max[h]);
    for (int64_t t = 0; t < in.tokens && !nothing; ++t) {
      if (!in.sees(h, t))
        continue;
      const double weight = std::exp(scores[t] - max[h]);
      sum[h] += weight;
      for (int64_t c = 0; c < in.valueDim; ++c)
        acc[h * in.valueDim + c] += weight * in.v[t * in.valueDim + c];
    }
  }
}

std::vector<double> aligned::exactProbabilities(const HeadInputs &in) {
  std::vector<double> probabilities;
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<double> p(in.tokens, 0);
    for (int64_t t = 0; t < in.tokens; ++t) {
      for (int64_t c = 0; c < in.keyDim; ++c)
        p[t] += in.q[h * in.keyDim + c] * in.k[t * in.keyDim + c];
      p[t] = masked(in, h, t, p[t] * in.scale);
    }
    softmax(p, sinkOf(in, h));
    probabilities.insert(probabilities.end(), p.begin(), p.end());
  }
  return probabilities;
}

std::vector<double> aligned::relativeErrors(const std::vector<double> &out, const std::vector<double> &exact, int64_t dim) {
  constexpr double tiny = 1e-30;
  std::vector<double> errors;
  for (size_t first = 0; first < out.size(); first += dim) {
    double difference = 0, size = 0;
    for (size_t i = first; i < first + dim; ++i) {
      difference += (out[i] - exact[i]) * (out[i] - exact[i]);
      size += exact[i] * exact[i];
    }
    errors.push_back(std::sqrt(difference) / std::max(std::sqrt(size), tiny));
  }
  return errors;
}
