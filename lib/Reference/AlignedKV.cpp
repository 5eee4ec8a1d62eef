// P1, the published rule, on float planes (S8). Channels of K are decided by the exponents of query and largest key, rows of V by their
// probability against the output's size, which the 32 most probable rows give:
//
//   K   reach_c  = exp(q_c) + exp(max_t |k_tc|)                  lag_c = max reach - reach_c
//       16 bits where lag_c < 4, 12 where lag_c < 8, else 8
//   V   probe_c  = sum of p_t |v_tc| over the 32 most probable tokens
//       margin   = min_c (exp(probe_c) - exp(max_t |v_tc|))      lag_t = margin - log2(max(p_t, 2^-24))
//       16 bits where lag_t < 1, 12 where lag_t < 2, else 8
#include "aligned/Reference/Attention.h"

#include "aligned/Reference/Planes.h"

#include "Softmax.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

using namespace aligned;

namespace {

/// floor(log2 |x|) as a half has it: at least -14, -15 for zero; for what is not finite that of a float's infinity.
int exponentOf(double x) { return x == 0 ? -15 : std::isfinite(x) ? std::max(std::ilogb(x), -14) : 128; }

/// One side of the cache: dense values, and which tokens are kept aside (S7), those that a 16-bit float can't hold.
struct FloatSide {
  const std::vector<double> &values;
  int64_t tokens, dim;
  Storage storage;
  int least, most; ///< bits of the first plane and of the resident ones
  std::vector<bool> aside = std::vector<bool>(tokens, false);

  FloatSide(const std::vector<double> &values, int64_t tokens, int64_t dim, Storage storage, int resident)
      : values(values), tokens(tokens), dim(dim), storage(storage) {
    std::vector<int> widths = storage == Storage::Half ? std::vector<int>{8, 4, 4} : std::vector<int>{12, 4};
    least = widths[0];
    most = std::accumulate(widths.begin(), widths.begin() + std::min<size_t>(resident, widths.size()), 0);
    for (int64_t i = 0; i < tokens * dim; ++i)
      if (!std::isfinite(widen(narrow(values[i], storage), storage)))
        aside[i / dim] = true;
  }

  double read(int64_t t, int64_t c, int bits) const {
    double x = values[t * dim + c];
    return aside[t] ? x : readFloat(narrow(x, storage), bits, storage);
  }
  /// Of each channel, over tokens that are not kept aside.
  std::vector<double> largest() const {
    std::vector<double> top(dim, 0);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < dim && !aside[t]; ++c)
        top[c] = std::max(top[c], std::fabs(values[t * dim + c]));
    return top;
  }
  int tier(double lag, double middle, double low) const { return lag >= low ? 8 : lag >= middle ? 12 : 16; }
  /// Whole planes, the first one always (P7), no more than are resident (S9).
  int planesOf(int bits) const { return std::min(std::max((bits + 3) / 4 * 4, least), most); }
};

} // namespace

PolicyResult aligned::decodeAlignedKV(const HeadInputs &in) {
  FloatSide key(in.k, in.tokens, in.keyDim, in.storage, in.keys.resident), value(in.v, in.tokens, in.valueDim, in.storage, in.values.resident);
  PolicyResult result;

  // K: tiers of channels, for all rows together (P3); limits by tiles, of which a channel's 64 tokens lie together.
  std::vector<double> keyTop = key.largest();
  std::vector<int> tiers(in.keyDim, 0);
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<int> reach(in.keyDim);
    for (int64_t c = 0; c < in.keyDim; ++c)
      reach[c] = exponentOf(in.q[h * in.keyDim + c]) + exponentOf(keyTop[c]);
    int top = *std::max_element(reach.begin(), reach.end());
    for (int64_t c = 0; c < in.keyDim; ++c)
      tiers[c] = std::max(tiers[c], key.tier(top - reach[c], 4, 8));
  }
  auto anyoneSees = [&](int64_t t) {
    for (int64_t h = 0; h < in.heads; ++h)
      if (in.sees(h, t))
        return true;
    return false;
  };
  int64_t keys = 0, values = 0; // bits
  for (int64_t first = 0; first < in.tokens; first += kTileTokens) {
    int64_t last = std::min(first + kTileTokens, in.tokens) - 1;
    bool seen = false;
    for (int64_t t = first; t <= last; ++t)
      seen |= anyoneSees(t);
    for (int bits : tiers) {
      result.keyPlan.push_back(seen ? key.planesOf(in.keyLimits.apply(bits, first, last, in.tokens)) : 0);
      keys += result.keyPlan.back() * (last - first + 1);
    }
  }

  std::vector<std::vector<double>> p(in.heads, std::vector<double>(in.tokens, 0));
  for (int64_t t = 0; t < in.tokens; ++t)
    for (int64_t c = 0; c < in.keyDim; ++c) {
      int bits = result.keyPlan[t / kTileTokens * in.keyDim + c];
      double k = bits ? key.read(t, c, bits) : 0;
      for (int64_t h = 0; h < in.heads; ++h)
        p[h][t] += in.q[h * in.keyDim + c] * k;
    }
  std::vector<bool> nothing;
  for (int64_t h = 0; h < in.heads; ++h) {
    bool finite = isFiniteRow(in, h);
    for (int64_t t = 0; t < in.tokens; ++t)
      p[h][t] = masked(in, h, t, finite ? p[h][t] * in.scale : NAN);
    nothing.push_back(softmax(p[h], sinkOf(in, h)));
  }

  // V: tiers of tokens.
  std::vector<double> valueTop = value.largest();
  result.valuePlan.resize(in.tokens, 0);
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<int64_t> order;
    for (int64_t t = 0; t < in.tokens; ++t)
      if (in.sees(h, t))
        order.push_back(t);
    int64_t probed = std::min<int64_t>(32, order.size());
    std::partial_sort(order.begin(), order.begin() + probed, order.end(), [&](int64_t a, int64_t b) { return p[h][a] > p[h][b]; });
    double margin = INFINITY;
    for (int64_t c = 0; c < in.valueDim; ++c) {
      double probe = 0;
      for (int64_t i = 0; i < probed; ++i)
        probe += p[h][order[i]] * std::fabs(in.v[order[i] * in.valueDim + c]);
      margin = std::min<double>(margin, exponentOf(probe) - exponentOf(valueTop[c]));
    }
    for (int64_t t : order)
      result.valuePlan[t] = std::max(result.valuePlan[t], value.tier(margin - std::log2(std::max(p[h][t], 0x1p-24)), 1, 2));
  }
  for (int64_t t = 0; t < in.tokens; ++t) {
    if (result.valuePlan[t])
      result.valuePlan[t] = value.aside[t] ? 16 : value.planesOf(in.valueLimits.apply(result.valuePlan[t], t, t, in.tokens));
    values += result.valuePlan[t];
  }
  if (in.tokens) {
    result.keyBits = double(keys) / (in.tokens * in.keyDim);
    result.valueBits = double(values) / in.tokens;
  }

  for (int64_t h = 0; h < in.heads; ++h)
    result.out.insert(result.out.end(), in.valueDim, emptyRow(in, nothing[h]));
  for (int64_t t = 0; t < in.tokens; ++t)
    for (int64_t c = 0; c < in.valueDim && result.valuePlan[t]; ++c) {
      double v = value.read(t, c, result.valuePlan[t]);
      for (int64_t h = 0; h < in.heads; ++h)
        if (in.sees(h, t) && !nothing[h])
          result.out[h * in.valueDim + c] += p[h][t] * v;
    }
  return result;
}
