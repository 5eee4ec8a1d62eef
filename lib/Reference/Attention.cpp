// Loops over heads, tokens and channels, in the order of the formulas.
#include "aligned/Reference/Attention.h"

#include "aligned/Reference/Split.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

using namespace aligned;

namespace {

using Rows = std::vector<std::vector<double>>; // [head][token or channel]

constexpr double kCoarse = 0.5, kUnread = 0.125, kKeyShare = 0.5, kSlack = 2, kCommon = 0.02, kLeastFill = 1.0 / 256, kStart = 4, kTiny = 1e-30;
constexpr int kOctaves = 60, kRounds = 3;
const double kStepVariance = (1 - std::ldexp(1.0, -8)) / (8 * std::log(2.0)) / 3;

/// C tanh(s / C), where there is a C.
double capped(double score, double softcap) { return softcap ? softcap * std::tanh(score / softcap) : score; }

/// e^(s - max) / sum for each head, of capped scores of visible tokens.
Rows softmax(const HeadInputs &in, Rows scores) {
  for (int64_t h = 0; h < in.heads; ++h)
    for (int64_t t = 0; t < in.tokens; ++t)
      scores[h][t] = in.mask.sees(h, t, in.tokens) ? capped(scores[h][t], in.softcap) : -std::numeric_limits<double>::infinity();
  for (std::vector<double> &row : scores) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double s : row)
      top = std::max(top, s);
    for (double &s : row)
      sum += s = std::exp(s - top);
    for (double &s : row)
      s /= sum;
  }
  return scores;
}

using Reader = std::function<double(int64_t token, int64_t channel)>;

Rows scoresOf(const HeadInputs &in, const Reader &key) {
  Rows scores(in.heads, std::vector<double>(in.tokens, 0));
  for (int64_t t = 0; t < in.tokens; ++t)
    for (int64_t c = 0; c < in.keyDim; ++c) {
      double k = key(t, c);
      for (int64_t h = 0; h < in.heads; ++h)
        scores[h][t] += in.q[h * in.keyDim + c] * in.scale * k;
    }
  return scores;
}

std::vector<double> outputOf(const HeadInputs &in, const Rows &p, const Reader &value) {
  std::vector<double> out(in.heads * in.valueDim, 0);
  for (int64_t t = 0; t < in.tokens; ++t)
    for (int64_t c = 0; c < in.valueDim; ++c) {
      double v = value(t, c);
      for (int64_t h = 0; h < in.heads; ++h)
        if (in.mask.sees(h, t, in.tokens))
          out[h * in.valueDim + c] += p[h][t] * v;
    }
  return out;
}

/// Planes of 4 bits so that an addend whose full reach is `step` times the wanted precision is read that precisely. A NaN asks for none: the sum
/// it belongs to is NaN anyway.
int bitsFor(double step) { return step > 1 ? 4 * static_cast<int>(std::min(std::ceil(std::log2(step) / 4), 4.0)) : 0; }
/// Of a key: what is not read is not dithered, so that it must not reach as far.
int keyBitsFor(double step) { return step > kUnread ? std::max(bitsFor(step), 4) : 0; }

/// What the planes cannot hold and readers add (S7); 0 for every other value.
double escaped(double x) { return std::isfinite(x) ? 0 : x; }

/// Four neighbouring channels share one decision.
void shareGroups(std::vector<int> &bits) {
  for (size_t c = 0; c < bits.size(); c += 4) {
    int most = *std::max_element(bits.begin() + c, bits.begin() + c + 4);
    std::fill_n(bits.begin() + c, 4, most);
  }
}

double mean(const std::vector<int> &bits) { return bits.empty() ? 0 : std::accumulate(bits.begin(), bits.end(), 0.0) / bits.size(); }

/// floor(log2 |x|) as a half has it: at least -14, -15 for zero; for what is not finite that of a float's infinity.
int exponentOf(double x) { return x == 0 ? -15 : std::isfinite(x) ? std::max(std::ilogb(x), -14) : 128; }

} // namespace

bool Mask::sees(int64_t row, int64_t token, int64_t tokens) const {
  int64_t position = tokens - queries + row % queries;
  return (!causal || token <= position) && (!window || position - token < window || token < sinks);
}

bool Mask::isSeen(int64_t token, int64_t tokens) const {
  for (int64_t query = 0; query < queries; ++query)
    if (sees(query, token, tokens))
      return true;
  return false;
}

bool Mask::isBlockSeen(int64_t block, int64_t tokens) const {
  for (int64_t t = block * kBlockTokens; t < std::min((block + 1) * kBlockTokens, tokens); ++t)
    if (isSeen(t, tokens))
      return true;
  return false;
}

void aligned::exactAttention(const double *q, int64_t heads, const double *k, const double *v, int64_t tokens, int64_t keyDim, int64_t valueDim, double scale,
                             bool maskedZero, double *out, const Mask &mask, double softcap) {
  for (int64_t h = 0; h < heads; ++h, out += valueDim) {
    std::fill_n(out, valueDim, 0.0);
    if (!tokens)
      continue;
    std::vector<double> p(tokens);
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    bool masked = true;
    for (int64_t t = 0; t < tokens; ++t) {
      double dot = 0;
      for (int64_t c = 0; c < keyDim; ++c)
        dot += q[h * keyDim + c] * k[t * keyDim + c] + (softcap ? q[h * keyDim + c] * 0 : 0); // a query that isn't finite makes its row NaN
      p[t] = mask.sees(h, t, tokens) ? capped(dot * scale, softcap) : -std::numeric_limits<double>::infinity();
      top = std::max(top, p[t]);
      masked &= p[t] == -std::numeric_limits<double>::infinity();
    }
    if (masked && maskedZero)
      continue;
    for (double &s : p)
      sum += s = std::exp(s - top); // NaN wherever a score is NaN, or the maximum is not finite
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < valueDim && mask.sees(h, t, tokens); ++c)
        out[c] += p[t] * v[t * valueDim + c];
    for (int64_t c = 0; c < valueDim; ++c)
      out[c] /= sum;
  }
}

std::vector<double> aligned::exactProbabilities(const HeadInputs &in) {
  std::vector<double> probabilities;
  for (const std::vector<double> &row : softmax(in, scoresOf(in, [&](int64_t t, int64_t c) { return in.k[t * in.keyDim + c]; })))
    probabilities.insert(probabilities.end(), row.begin(), row.end());
  return probabilities;
}

std::vector<double> aligned::relativeErrors(const std::vector<double> &out, const std::vector<double> &exact, int64_t dim) {
  std::vector<double> errors;
  for (size_t first = 0; first < out.size(); first += dim) {
    double difference = 0, size = 0;
    for (size_t i = first; i < first + dim; ++i) {
      difference += (out[i] - exact[i]) * (out[i] - exact[i]);
      size += exact[i] * exact[i];
    }
    errors.push_back(std::sqrt(difference) / std::max(std::sqrt(size), kTiny));
  }
  return errors;
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
// P1, the published rule
//===----------------------------------------------------------------------===//

PolicyResult aligned::decodeAlignedKV(const HeadInputs &in) {
  int64_t full = in.tokens / kBlockTokens * kBlockTokens;
  int least = in.storage == Storage::Half ? 8 : 12; // bits of the first plane
  auto tier = [&](double lag, double middle, double low) { return std::max(least, lag >= low ? 8 : lag >= middle ? 12 : 16); };
  auto limited = [&](const Limits &limits, int bits, int64_t first, int64_t last) {
    return std::max(least, limits.apply(bits, first, last, in.tokens)); // the first plane is always read
  };
  auto read = [&](const std::vector<double> &values, int64_t dim, int64_t t, int64_t c, int bits) {
    double x = values[t * dim + c];
    return t >= full || !std::isfinite(x) ? x : readFloat(narrow(x, in.storage), bits, in.storage);
  };
  auto largest = [&](const std::vector<double> &values, int64_t dim) {
    std::vector<double> top(dim, 0);
    for (int64_t t = 0; t < in.tokens; ++t)
      for (int64_t c = 0; c < dim; ++c)
        if (std::isfinite(values[t * dim + c]))
          top[c] = std::max(top[c], std::fabs(values[t * dim + c]));
    return top;
  };

  std::vector<double> keyTop = largest(in.k, in.keyDim);
  std::vector<int> tiers(in.keyDim, 0);
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<int> reach(in.keyDim);
    for (int64_t c = 0; c < in.keyDim; ++c)
      reach[c] = exponentOf(in.q[h * in.keyDim + c]) + exponentOf(keyTop[c]);
    int top = *std::max_element(reach.begin(), reach.end());
    for (int64_t c = 0; c < in.keyDim; ++c)
      tiers[c] = std::max(tiers[c], tier(top - reach[c], 4, 8));
  }
  std::vector<int> keyBits; // [blocks, channels]
  for (int64_t first = 0; first < full; first += kBlockTokens)
    for (int bits : tiers)
      keyBits.push_back(in.mask.isBlockSeen(first / kBlockTokens, in.tokens) ? limited(in.keyLimits, bits, first, first + kBlockTokens - 1) : 0);
  Rows p = softmax(in, scoresOf(in, [&](int64_t t, int64_t c) { return read(in.k, in.keyDim, t, c, t < full ? keyBits[t / kBlockTokens * in.keyDim + c] : 16); }));

  std::vector<double> valueTop = largest(in.v, in.valueDim);
  std::vector<int> valueBits(full, 0);
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<int64_t> order;
    for (int64_t t = 0; t < in.tokens; ++t)
      if (in.mask.sees(h, t, in.tokens))
        order.push_back(t);
    int64_t probed = std::min<int64_t>(32, order.size());
    std::partial_sort(order.begin(), order.begin() + probed, order.end(), [&](int64_t a, int64_t b) { return p[h][a] > p[h][b]; });
    double margin = std::numeric_limits<double>::infinity();
    for (int64_t c = 0; c < in.valueDim; ++c) {
      double probe = 0;
      for (int64_t i = 0; i < probed; ++i)
        probe += p[h][order[i]] * std::fabs(in.v[order[i] * in.valueDim + c]);
      margin = std::min<double>(margin, exponentOf(probe) - exponentOf(valueTop[c]));
    }
    for (int64_t t = 0; t < full; ++t)
      valueBits[t] = std::max(valueBits[t], tier(margin - std::log2(std::max(p[h][t], std::ldexp(1.0, -24))), 1, 2));
  }
  for (int64_t t = 0; t < full; ++t)
    valueBits[t] = in.mask.isSeen(t, in.tokens) ? limited(in.valueLimits, valueBits[t], t, t) : 0;
  PolicyResult result;
  result.out = outputOf(in, p, [&](int64_t t, int64_t c) { return read(in.v, in.valueDim, t, c, t < full ? valueBits[t] : 16); });
  double open = in.tokens ? double(in.tokens - full) / in.tokens : 0, openBits = in.mask.isBlockSeen(full / kBlockTokens, in.tokens) ? 16 : 0;
  result.keyBits = mean(keyBits) * (1 - open) + openBits * open;
  result.valueBits = mean(valueBits) * (1 - open) + openBits * open;
  result.keyPlan = keyBits;
  result.valuePlan = valueBits;
  return result;
}

//===----------------------------------------------------------------------===//
// P2, the budget
//===----------------------------------------------------------------------===//

namespace {

/// P2 for one kv head, stage by stage as docs/Numerics.md has them.
class Budget {
public:
  Budget(const HeadInputs &in, double tolerance)
      : in(in), keyBudget(std::pow(in.keyLimits.tolerance.value_or(tolerance * std::sqrt(kKeyShare)), 2)),
        valueBudget(std::pow(in.valueLimits.tolerance.value_or(tolerance * std::sqrt(1 - kKeyShare)), 2)), blocks(in.tokens / kBlockTokens), full(blocks * kBlockTokens),
        key(splitFixed({in.k.begin(), in.k.begin() + full * in.keyDim}, full, in.keyDim, /*key=*/true)),
        value(splitFixed({in.v.begin(), in.v.begin() + full * in.valueDim}, full, in.valueDim, /*key=*/false)), middle(in.valueDim, 0),
        keyBits(blocks, std::vector<int>(in.keyDim, 0)), valueBits(full, 0), size(in.heads), fill(in.heads) {
    for (int64_t t = 0; t < full; ++t)
      for (int64_t c = 0; c < in.valueDim; ++c)
        middle[c] += (std::isfinite(in.v[t * in.valueDim + c]) ? in.v[t * in.valueDim + c] : 0) / full;
    for (int64_t t = 0; t < full; ++t)
      if (in.mask.isSeen(t, in.tokens))
        loudestScale = std::max(loudestScale, value.scale(t, 0));
    if (masked()) // the mean is that of all tokens: it goes no further than visible ones reach
      for (double &x : middle)
        x = std::clamp(x, -loudestScale, loudestScale);
  }

  PolicyResult decode() {
    scoreCoarsely();
    for (int round = 0; round < kRounds && refine(round ? kSlack : 1); ++round) {
      p = probabilities();
      look();
    }
    planValues();
    return result();
  }

private:
  double weight(int64_t h, int64_t c) const { return std::fabs(in.q[h * in.keyDim + c] * in.scale); }
  double keyReach(int64_t h, int64_t block, int64_t c) const { return weight(h, c) * key.scale(block * kBlockTokens, c); }
  int limitKey(int bits, int64_t block) const { return in.keyLimits.apply(bits, block * kBlockTokens, (block + 1) * kBlockTokens - 1, in.tokens); }
  double reach(int64_t h, int64_t t) const { return p[h][t] * value.scale(t, 0); }
  bool masked() const { return in.mask.causal || in.mask.window; }

  /// A score whose error has variance s^2 is on average e^(s^2 / 2) times too likely: it is read that much lower.
  Rows probabilities() const {
    Rows scores = scoresOf(in, [&](int64_t t, int64_t c) {
      double x = in.k[t * in.keyDim + c];
      return t < full ? key.read(t, c, keyBits[t / kBlockTokens][c]) + escaped(x) : x;
    });
    for (int64_t h = 0; h < in.heads; ++h)
      for (int64_t b = 0; b < blocks; ++b) {
        double excess = scoreVariance(h, b) / 2;
        for (int64_t t = b * kBlockTokens; t < (b + 1) * kBlockTokens; ++t)
          scores[h][t] -= excess;
      }
    return softmax(in, scores);
  }

  void scoreCoarsely() {
    std::vector<int> bits(in.keyDim, 0);
    for (int64_t c = 0; c < in.keyDim; ++c)
      for (int64_t h = 0; h < in.heads; ++h)
        for (int64_t b = 0; b < blocks; ++b)
          if (in.mask.isBlockSeen(b, in.tokens))
            bits[c] = std::max(bits[c], keyBitsFor(keyReach(h, b, c) / kCoarse));
    shareGroups(bits);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t c = 0; c < in.keyDim && in.mask.isBlockSeen(b, in.tokens); ++c)
        keyBits[b][c] = limitKey(bits[c], b);
    p = probabilities();
    look();
  }

  /// Sizes of the output, and how much of their scales the values fill, from plane 0 of the loudest rows and from the open block.
  void look() {
    std::vector<bool> loud(full, false);
    for (int64_t h = 0; h < in.heads; ++h) {
      double top = 0;
      for (int64_t t = 0; t < full; ++t)
        top = std::max(top, reach(h, t));
      for (int64_t t = 0; t < full; ++t)
        if (reach(h, t) > 0 && reach(h, t) >= top / 64)
          loud[t] = true;
    }
    for (int64_t h = 0; h < in.heads; ++h) {
      std::vector<double> out(in.valueDim, 0);
      double seen = 0, power = 0, scales = 0, planePower = 0, rest = 0;
      int64_t visible = 0;
      for (int64_t t = 0; t < in.tokens; ++t) {
        visible += in.mask.sees(h, t, in.tokens);
        if (t < full && !loud[t]) {
          rest += p[h][t];
          continue;
        }
        double square = 0;
        for (int64_t c = 0; c < in.valueDim; ++c) {
          double v = t < full ? value.read(t, c, 4) : std::isfinite(in.v[t * in.valueDim + c]) ? in.v[t * in.valueDim + c] : 0;
          out[c] += p[h][t] * v;
          square += v * v / in.valueDim;
        }
        seen += p[h][t];
        power += p[h][t] * square;
        if (t < full) {
          planePower += p[h][t] * square;
          scales += reach(h, t) * value.scale(t, 0);
        }
      }
      double outPower = 0;
      for (int64_t c = 0; c < in.valueDim; ++c)
        outPower += std::pow(out[c] + rest * middle[c], 2) / in.valueDim;
      size[h] = std::max(std::sqrt(outPower), std::sqrt(power / seen / visible)) + kTiny;
      fill[h] = scales > 0 ? std::max(planePower / scales, kLeastFill) : kLeastFill;
    }
  }

  /// What an error of a score moves the output by: the token's probability times how far its value may lie from the output.
  double leverage(int64_t h, int64_t t) const { return p[h][t] * std::sqrt(fill[h] * std::pow(value.scale(t, 0), 2) + size[h] * size[h]); }

  /// Variance of the scores of a block, from the bits that are read of it.
  double scoreVariance(int64_t h, int64_t b) const {
    double variance = 0;
    for (int64_t c = 0; c < in.keyDim; ++c)
      variance += std::pow(keyReach(h, b, c) * remainder(keyBits[b][c]), 2) / 3;
    return variance;
  }

  /// Plans finer keys for the heads whose predicted variance exceeds `slack` times the budget; whether any did.
  bool refine(double slack) {
    std::vector<std::vector<int>> finer = keyBits;
    bool over = false;
    for (int64_t h = 0; h < in.heads; ++h) {
      std::vector<double> loudest(blocks, 0), energy(blocks, 0), variance(blocks);
      double now = 0, start = kStart * loudestScale;
      for (int64_t t = 0; t < full; ++t) {
        double l = leverage(h, t);
        loudest[t / kBlockTokens] = std::max(loudest[t / kBlockTokens], l);
        energy[t / kBlockTokens] += l * l;
      }
      for (int64_t b = 0; b < blocks; ++b)
        now += energy[b] * (variance[b] = scoreVariance(h, b));
      double budget = keyBudget * size[h] * size[h];
      if (!(now > slack * budget))
        continue;
      over = true;
      double precision = coarsest(budget, start, [&](double precision) {
        double sum = 0;
        for (int64_t b = 0; b < blocks; ++b) {
          double kept = energy[b] * variance[b];
          sum += loudest[b] * kCoarse > precision ? std::min(kept, energy[b] / (loudest[b] * loudest[b]) * kStepVariance * in.keyDim * precision * precision) : kept;
        }
        return sum;
      });
      for (int64_t b = 0; b < blocks; ++b) {
        if (!(loudest[b] * kCoarse > precision))
          continue;
        std::vector<int> wanted(in.keyDim);
        for (int64_t c = 0; c < in.keyDim; ++c)
          wanted[c] = keyBitsFor(keyReach(h, b, c) * loudest[b] / precision);
        shareGroups(wanted);
        for (int64_t c = 0; c < in.keyDim; ++c)
          finer[b][c] = std::max(finer[b][c], limitKey(wanted[c], b));
      }
    }
    keyBits = finer;
    return over;
  }

  /// Of each row of V what its probability makes visible.
  void planValues() {
    double start = kStart * loudestScale;
    for (int64_t h = 0; blocks && h < in.heads; ++h) {
      double precision = coarsest(valueBudget * size[h] * size[h], start, [&](double precision) {
        double sum = 0, unread = 0;
        for (int64_t t = 0; t < full; ++t) {
          bool read = reach(h, t) > precision;
          sum += read ? std::pow(reach(h, t) * remainder(bitsFor(reach(h, t) / precision)), 2) / 3 : fill[h] * std::pow(reach(h, t), 2);
          unread += read ? 0 : reach(h, t);
        }
        return sum + std::pow(kCommon * unread, 2);
      });
      for (int64_t t = 0; t < full; ++t)
        valueBits[t] = std::max(valueBits[t], bitsFor(reach(h, t) / precision));
    }
    for (int64_t t = 0; t < full; ++t)
      valueBits[t] = in.mask.isSeen(t, in.tokens) ? in.valueLimits.apply(valueBits[t], t, t, in.tokens) : 0;
  }

  PolicyResult result() const {
    PolicyResult result;
    result.out = outputOf(in, p, [&](int64_t t, int64_t c) {
      double x = in.v[t * in.valueDim + c];
      return t >= full ? x : (valueBits[t] ? value.read(t, c, valueBits[t]) : middle[c]) + escaped(x);
    });
    for (int64_t h = 0; h < in.heads; ++h) {
      double keys = 0, values = 0, unread = 0;
      for (int64_t t = 0; t < full; ++t) {
        keys += std::pow(leverage(h, t), 2) * scoreVariance(h, t / kBlockTokens);
        values += valueBits[t] ? std::pow(reach(h, t) * remainder(valueBits[t]), 2) / 3 : fill[h] * std::pow(reach(h, t), 2);
        unread += valueBits[t] ? 0 : reach(h, t);
      }
      result.estimate.push_back(std::sqrt(keys + values + std::pow(kCommon * unread, 2)) / size[h]);
    }
    double keySum = 0, open = in.tokens ? double(in.tokens - full) / in.tokens : 0, openBits = in.mask.isBlockSeen(blocks, in.tokens) ? 16 : 0, seen = 0;
    for (const std::vector<int> &bits : keyBits)
      keySum += mean(bits) / std::max<int64_t>(blocks, 1);
    for (int64_t b = 0; b < blocks; ++b)
      seen += double(in.mask.isBlockSeen(b, in.tokens)) / blocks;
    result.keyBits = (keySum + 8.0 / kBlockTokens * seen) * (1 - open) + openBits * open;
    result.valueBits = (mean(valueBits) + 8.0 / in.valueDim * seen) * (1 - open) + openBits * open;
    for (const std::vector<int> &bits : keyBits)
      result.keyPlan.insert(result.keyPlan.end(), bits.begin(), bits.end());
    result.valuePlan = valueBits;
    return result;
  }

  /// The error that `bits` bits leave at most, relative to the scale.
  static double remainder(int bits) { return std::ldexp(1.0, -bits); }

  /// The coarsest precision, in quarter octaves below `start`, whose predicted variance keeps within the budget. The variance falls with it.
  static double coarsest(double budget, double start, const std::function<double(double)> &variance) {
    int low = 0, high = kOctaves * 4;
    while (low < high) {
      int middle = (low + high) / 2;
      if (variance(start * std::exp2(-middle / 4.0)) <= budget)
        high = middle;
      else
        low = middle + 1;
    }
    return start * std::exp2(-low / 4.0);
  }

  const HeadInputs &in;
  const double keyBudget, valueBudget; ///< variance that either side may add, relative to the output
  const int64_t blocks, full;
  const FixedSplit key, value;
  std::vector<double> middle; ///< mean of the values of full blocks, per channel: what a row that is not read stands for
  double loudestScale = 0;    ///< of the rows that any query sees
  std::vector<std::vector<int>> keyBits;
  std::vector<int> valueBits;
  Rows p;
  std::vector<double> size, fill;
};

} // namespace

PolicyResult aligned::decodeBudget(const HeadInputs &in, double tolerance) { return Budget(in, tolerance).decode(); }
