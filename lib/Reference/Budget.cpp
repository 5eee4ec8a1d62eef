// P2: every addend p_t v_t of the output is read to one absolute precision, tau A, and what lies below is not read.
//
//   w = scale q R          s_t = w . k'_t + scale q . offset, softcap, masks          tau = tolerance / sqrt(tokens that positions let the row see)
//
//   scan     s_t from the first plane of K, for all tokens; top = max_t s_t
//            Z = (sum_t e^(s_t - top) + e^(sink - top)) e^(-sigma^2/2)                  P5: sigma of the median K code at the first plane's bits;
//                                                                                       the scan overrates Z by that much on average
//            p_t = e^(s_t - top) / Z         sigma_t(b) = scale_k |w| 2^-b / sqrt(3)    share_t = p_t scale_v / A
//   K        read to the least level b with (p_t + share_t) misled(sigma_t(b)) <= 6 tau, else to the last; s_t anew
//   V        x_t = e^(s_t - top) / Z scale_v / A: not read where x_t <= tau, else to the least level b with x_t <= 2^b tau
//   attend   out = sum_t p_t v_t, p the softmax of s as they now are; the mean of V, or 0 below the floor (M3), for rows that are not read
//
// Levels are the bits of the first plane, of the first two, and so on. A tier serves all query rows (P3): each asks, the largest counts. Then come
// limits (P7) and what is resident (S9). A NaN asks for nothing: comparisons with it are false.
//
// Tokens kept aside (S7) are exact; K of a token whose V is kept aside is read to the last level, since no scale says how large V is.
#include "aligned/Reference/Attention.h"

#include "aligned/Reference/Planes.h"

#include "Rule.h"
#include "Softmax.h"

#include <algorithm>
#include <cmath>

using namespace aligned;

namespace {

using Rows = std::vector<std::vector<double>>; // [query row][token or channel]

class Budget {
public:
  Budget(const HeadInputs &in, double tolerance)
      : in(in), keyTolerance(in.keyLimits.tolerance.value_or(tolerance)), valueTolerance(in.valueLimits.tolerance.value_or(tolerance)),
        keyLevels(levelsOf(in.keys)), valueLevels(levelsOf(in.values)),
        key(packFixed(in.k, in.tokens, in.keyDim, Role::Key, in.storage, in.keys.bias, in.offset)),
        value(packFixed(in.v, in.tokens, in.valueDim, Role::Value, in.storage, in.values.bias)), known(summarize(value, valueLevels.back())),
        seenByAny(in.tokens, false), keyBits(in.tokens, 0), valueBits(in.tokens, 0), scores(in.heads, std::vector<double>(in.tokens, -INFINITY)) {
    for (int64_t h = 0; h < in.heads; ++h) {
      rows.push_back(weigh(h));
      for (int64_t t = 0; t < in.tokens; ++t)
        if (in.sees(h, t))
          seenByAny[t] = true;
    }
  }

  PolicyResult decode() {
    scan();
    readKeys();
    chooseValues();
    attend();
    estimate();
    certify();
    countBits();
    return result;
  }

private:
  /// What a query row brings.
  struct QueryRow {
    std::vector<double> exact, scan, finer; ///< weights w, and as integers of a step
    double scanStep = 0, finerStep = 0;
    double length = 0, sum = 0; ///< |w|, sum_c |w_c|
    double offset = 0, offsetSum = 0; ///< scale q . offset, and the sum of its addends' magnitudes
    double rootSeen = 1;        ///< square root of the tokens that it sees by position
    double top = 0, mass = 1;   ///< of the scan: the largest score, Z
    bool finite = true;

    double tau(double tolerance) const { return tolerance / rootSeen; }
  };

  QueryRow weigh(int64_t h) const {
    QueryRow row;
    std::vector<double> q(in.q.begin() + h * in.keyDim, in.q.begin() + (h + 1) * in.keyDim);
    row.finite = isFiniteRow(in, h);
    row.exact = rotated(q);
    double largest = 0, squares = 0, seen = 0;
    for (double &w : row.exact) {
      w *= in.scale;
      largest = std::max(largest, std::fabs(w));
      squares += w * w;
      row.sum += std::fabs(w);
    }
    row.length = std::sqrt(squares);
    auto rounded = [&](double fullscale, double &step) {
      std::vector<double> weights = row.exact;
      if (!fullscale || !largest)
        return weights;
      step = largest / fullscale;
      for (double &w : weights)
        w = std::nearbyint(w / step) * step;
      return weights;
    };
    row.scan = rounded(in.scanFullscale, row.scanStep);
    row.finer = rounded(in.finerFullscale, row.finerStep);
    for (int64_t c = 0; c < in.keyDim; ++c) {
      row.offset += in.scale * q[c] * key.offset[c];
      row.offsetSum += std::fabs(in.scale * q[c] * key.offset[c]);
    }
    for (int64_t t = 0; t < in.tokens; ++t)
      seen += in.mask.sees(h, t, in.tokens);
    row.rootSeen = std::sqrt(seen);
    return row;
  }

  //===--------------------------------------------------------------------===//
  // Scan, K, V
  //===--------------------------------------------------------------------===//

  /// s_t of all rows that see the token, from what is read of its K.
  void score(int64_t t) {
    std::vector<double> k(in.keyDim);
    for (int64_t c = 0; c < in.keyDim; ++c)
      k[c] = key.isAside(t) ? key.aside.at(t)[c] : key.read(t, c, keyBits[t]);
    for (int64_t h = 0; h < in.heads; ++h) {
      const QueryRow &row = rows[h];
      const std::vector<double> &w = keyBits[t] == keyLevels.front() ? row.scan : row.finer;
      double dot = 0;
      for (int64_t c = 0; c < in.keyDim; ++c)
        dot += key.isAside(t) ? in.scale * in.q[h * in.keyDim + c] * k[c] : w[c] * k[c];
      scores[h][t] = masked(in, h, t, row.finite ? dot + row.offset : NAN);
    }
  }

  void scan() {
    for (int64_t t = 0; t < in.tokens; ++t)
      if (seenByAny[t]) {
        keyBits[t] = key.isAside(t) ? 16 : keyLevels.front();
        score(t);
      }
    ScaleCounts counts = countScales(key);
    double median = counts.tokens ? scaleOf(counts.median, key.bias) : 0;
    for (int64_t h = 0; h < in.heads; ++h) {
      QueryRow &row = rows[h];
      row.top = sinkOf(in, h);
      for (double s : scores[h])
        row.top = std::max(row.top, s);
      row.mass = in.sinkLogits.empty() ? 0 : std::exp(in.sinkLogits[h] - row.top);
      for (int64_t t = 0; t < in.tokens; ++t)
        if (in.sees(h, t))
          row.mass += std::exp(scores[h][t] - row.top);
      row.mass *= std::exp(logShrink(sigmaOf(median, row.length, keyLevels.front())));
    }
  }

  /// p_t, and x_t or share_t, in the unit of thresholds.
  double probability(int64_t h, int64_t t) const { return std::exp(scores[h][t] - rows[h].top) / rows[h].mass; }
  double share(int64_t h, int64_t t) const { return probability(h, t) * value.scales[t] / known.usual; }

  void readKeys() {
    // misled(sigma) is the same for all tokens of a code.
    std::vector<Rows> misleads(keyLevels.size(), Rows(in.heads, std::vector<double>(256)));
    for (size_t level = 0; level < keyLevels.size(); ++level)
      for (int64_t h = 0; h < in.heads; ++h)
        for (int code = 1; code < 256; ++code)
          misleads[level][h][code] = misledBy(sigmaOf(scaleOf(code, key.bias), rows[h].length, keyLevels[level]));

    for (int64_t t = 0; t < in.tokens; ++t) {
      if (!seenByAny[t] || key.isAside(t))
        continue;
      size_t level = 0, last = keyLevels.size() - 1;
      if (keyTolerance == 0 || value.isAside(t))
        level = last;
      for (int64_t h = 0; h < in.heads; ++h) {
        if (!in.sees(h, t))
          continue;
        double lever = probability(h, t) + share(h, t), limit = kKeyPrice * rows[h].tau(keyTolerance);
        while (level < last && lever * misleads[level][h][key.codes[t]] > limit)
          ++level;
      }
      int bits = roundUp(in.keyLimits.apply(keyLevels[level], t, t, in.tokens), keyLevels);
      if (bits > keyBits[t]) { // whatever a limit says, the scan has read the first plane
        keyBits[t] = bits;
        score(t); // no threshold but this token's V goes by it: top and Z are the scan's
      }
    }
  }

  void chooseValues() {
    for (int64_t t = 0; t < in.tokens; ++t) {
      if (!seenByAny[t])
        continue;
      if (value.isAside(t)) {
        valueBits[t] = 16;
        continue;
      }
      int bits = valueTolerance == 0 ? 16 : 0;
      for (int64_t h = 0; h < in.heads; ++h)
        if (in.sees(h, t))
          bits = std::max(bits, valueBitsFor(share(h, t), rows[h].tau(valueTolerance), valueLevels));
      valueBits[t] = roundUp(in.valueLimits.apply(bits, t, t, in.tokens), valueLevels);
    }
  }

  //===--------------------------------------------------------------------===//
  // Attend
  //===--------------------------------------------------------------------===//

  /// What stands for a value.
  double valueAt(int64_t t, int64_t c) const {
    if (value.isAside(t))
      return value.aside.at(t)[c];
    if (valueBits[t])
      return value.read(t, c, valueBits[t]);
    return value.codes[t] < known.floor ? 0 : known.mean[c];
  }

  void attend() {
    p = scores;
    std::vector<bool> nothing;
    for (int64_t h = 0; h < in.heads; ++h) {
      nothing.push_back(softmax(p[h], sinkOf(in, h)));
      result.out.insert(result.out.end(), in.valueDim, emptyRow(in, nothing[h]));
    }
    for (int64_t t = 0; t < in.tokens; ++t) {
      if (!seenByAny[t])
        continue;
      std::vector<double> v(in.valueDim);
      for (int64_t c = 0; c < in.valueDim; ++c)
        v[c] = valueAt(t, c);
      for (int64_t h = 0; h < in.heads; ++h)
        if (in.sees(h, t) && !nothing[h])
          for (int64_t c = 0; c < in.valueDim; ++c)
            result.out[h * in.valueDim + c] += p[h][t] * v[c];
    }
  }

  /// Of a row of V: its scale; of one that is kept aside, the largest finite magnitude.
  double size(int64_t t) const {
    if (!value.isAside(t))
      return value.scales[t];
    double largest = 0;
    for (double v : value.aside.at(t))
      largest = std::isfinite(v) ? std::max(largest, std::fabs(v)) : largest;
    return largest;
  }

  /// E1: variances of scores, of values as read, of values not read; what is not read, and what the scan left of large errors, errs a little in
  /// common besides.
  void estimate() {
    for (int64_t h = 0; h < in.heads; ++h) {
      double reach = 0, keys = 0, values = 0, common = 0;
      for (int64_t t = 0; t < in.tokens; ++t)
        reach += in.sees(h, t) ? p[h][t] * size(t) : 0;
      for (int64_t t = 0; t < in.tokens; ++t) {
        if (!in.sees(h, t))
          continue;
        double addend = p[h][t] * size(t), deviation = sigmaOf(key.scales[t], rows[h].length, keyBits[t]); // 0 for K kept aside
        keys += std::pow(p[h][t] * known.fill * misledBy(deviation), 2) * (size(t) * size(t) + reach * reach);
        if (!value.isAside(t))
          values += std::pow(valueBits[t] ? addend * std::ldexp(1, -valueBits[t]) / std::sqrt(3.0) : addend * known.spread, 2);
        if (!valueBits[t])
          common += kCommonUnread * addend;
        if (keyBits[t] == keyLevels.front())
          common += kCommonScan * addend * known.fill * std::min(deviation * deviation, 1.0);
      }
      result.estimate.push_back(std::sqrt((keys + values + common * common) * in.valueDim));
    }
  }

  //===--------------------------------------------------------------------===//
  // Certificate
  //===--------------------------------------------------------------------===//

  /// B_t: the most that a score is off.
  double scoreReach(int64_t h, int64_t t) const {
    const QueryRow &row = rows[h];
    double rounding = (in.keyDim + 8) * kRounding, bound = in.softcap ? 8 * 0x1p-23 * in.softcap : 0;
    if (in.softcap || !in.sinkLogits.empty())
      bound += rounding * row.offsetSum; // else softmax does not see it
    if (key.isAside(t)) {
      for (int64_t c = 0; c < in.keyDim; ++c)
        bound += rounding * std::fabs(in.scale * in.q[h * in.keyDim + c] * key.aside.at(t)[c]);
      return bound;
    }
    double step = keyBits[t] == keyLevels.front() ? row.scanStep : row.finerStep;
    return bound + key.scales[t] * ((reachOf(keyBits[t]) + rounding) * row.sum + step / 2 * in.keyDim * (1 + 0x1p-16)); // |k' as read| <= scale (1 + 2^-16)
  }

  /// C1. With p as computed, |b_t| <= B_t what score t is off by, m_t >= |v_t| and r_t the most that row t of V is off as read:
  ///
  ///   exact - sum p v = sum p (e^b - 1) (v - sum p v) / sum p e^b        sum p e^b >= 1 / sum p e^B      (harmonic mean)
  ///   u = sum p (e^B - 1)      bound = min((1 + u) (sum p (e^B - 1) m + u (max |out| + sum p r)) + sum p r + rounding, max m + max |out|)
  void certify() {
    double largestMean = 0;
    for (double x : known.mean)
      largestMean = std::max(largestMean, std::fabs(x));
    for (int64_t h = 0; h < in.heads; ++h) {
      double u = 0, moved = 0, left = 0, weight = 0, largest = 0, out = 0;
      for (int64_t t = 0; t < in.tokens; ++t) {
        if (!in.sees(h, t))
          continue;
        double m = size(t), e = std::expm1(std::min(scoreReach(h, t), 200.0));
        double r = value.isAside(t) ? 0 : valueBits[t] ? m * reachOf(valueBits[t]) : m + (value.codes[t] < known.floor ? 0 : largestMean);
        u += p[h][t] * e;
        moved += p[h][t] * e * m;
        left += p[h][t] * r;
        weight += p[h][t] * m;
        largest = std::max(largest, m);
      }
      bool finite = true;
      for (int64_t c = 0; c < in.valueDim; ++c) {
        finite &= std::isfinite(result.out[h * in.valueDim + c]);
        out = std::max(out, std::fabs(result.out[h * in.valueDim + c]));
      }
      double bound = (1 + u) * (moved + u * (out + left)) + left + 4 * kRounding * weight;
      result.bound.push_back(finite ? std::min(bound, largest + out) : INFINITY);
    }
  }

  void countBits() {
    result.keyPlan = keyBits;
    result.valuePlan = valueBits;
    int64_t keys = 0, values = 0, codes = 0; // bits of one channel, scale codes
    for (int64_t first = 0; first < in.tokens; first += kTileTokens) {
      int64_t end = std::min(first + kTileTokens, in.tokens);
      if (std::any_of(seenByAny.begin() + first, seenByAny.begin() + end, [](bool seen) { return seen; }))
        codes += end - first;
      for (int64_t t = first; t < end; ++t) {
        keys += keyBits[t];
        values += valueBits[t];
      }
    }
    if (!in.tokens)
      return;
    result.keyBits = (keys + 8.0 / in.keyDim * codes) / in.tokens;
    result.valueBits = (values + 8.0 / in.valueDim * codes) / in.tokens;
  }

  const HeadInputs &in;
  const double keyTolerance, valueTolerance;
  const std::vector<int> keyLevels, valueLevels;
  const FixedPlanes key, value;
  const ValueSummary known;
  std::vector<QueryRow> rows;
  std::vector<bool> seenByAny; ///< by any query row
  std::vector<int> keyBits, valueBits;
  Rows scores, p;
  PolicyResult result;
};

} // namespace

PolicyResult aligned::decodeBudget(const HeadInputs &in, double tolerance) { return Budget(in, tolerance).decode(); }
