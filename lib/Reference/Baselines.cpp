// A quantised cache is the cache with other values in it: round K and V as they would be stored, count the bits, and attend exactly.
#include "aligned/Reference/Baselines.h"

#include "Softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

using namespace aligned;

namespace {

constexpr int64_t kBlockTokens = 64; // that share a scale and a zero point of KIVI-like integers

double sixteenBits(double value, Storage storage) { return widen(narrow(value, storage), storage); }

PolicyResult attend(const HeadInputs &in, double keyBits, double valueBits) {
  PolicyResult result;
  result.out = exactAttention(in);
  result.keyBits = keyBits;
  result.valueBits = valueBits;
  return result;
}

/// Values first, first + stride, ... that share a scale.
struct Group {
  double *first;
  int64_t count, stride;

  double &operator[](int64_t i) const { return first[i * stride]; }
};

/// n * scale with |n| < 2^(bits - 1). One that is not finite makes its group NaN: integers have no room for it.
void roundSymmetric(Group group, int bits, Storage storage) {
  double largest = 0, top = (1 << (bits - 1)) - 1;
  for (int64_t i = 0; i < group.count; ++i)
    largest = std::isfinite(group[i]) ? std::max(largest, std::fabs(group[i])) : std::numeric_limits<double>::infinity();
  double scale = sixteenBits(largest / top, storage);
  for (int64_t i = 0; i < group.count; ++i)
    group[i] = scale == 0 ? 0 : std::clamp(std::nearbyint(group[i] / scale), -top, top) * scale;
}

/// zero + n * scale with 0 <= n < 2^bits.
void roundBetween(Group group, int bits, Storage storage) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double low = infinity, high = -infinity, top = (1 << bits) - 1;
  for (int64_t i = 0; i < group.count; ++i) {
    low = std::min(low, group[i]);
    high = std::isnan(group[i]) ? infinity : std::max(high, group[i]);
  }
  double scale = sixteenBits((high - low) / top, storage), zero = sixteenBits(low, storage);
  for (int64_t i = 0; i < group.count; ++i)
    group[i] = zero + (scale == 0 ? 0 : std::clamp(std::nearbyint((group[i] - zero) / scale), 0.0, top) * scale);
}

} // namespace

double aligned::roundFp8(double value) {
  constexpr double largest = 448;
  constexpr int leastExponent = -6, mantissaBits = 3;
  if (std::isnan(value) || value == 0)
    return value;
  if (std::fabs(value) >= largest)
    return std::copysign(largest, value);
  int step = std::max(std::ilogb(value), leastExponent) - mantissaBits;
  return std::ldexp(std::nearbyint(std::ldexp(value, -step)), step);
}

PolicyResult aligned::decodeFlash(const HeadInputs &in) {
  auto read = [&](double x) { return static_cast<float>(sixteenBits(x, in.storage)); };
  std::vector<float> k(in.k.size()), v(in.v.size());
  std::transform(in.k.begin(), in.k.end(), k.begin(), read);
  std::transform(in.v.begin(), in.v.end(), v.begin(), read);
  PolicyResult result;
  result.keyBits = result.valueBits = 16;
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<float> p(in.tokens), out(in.valueDim, 0);
    float top = static_cast<float>(sinkOf(in, h)), sum = 0;
    bool finite = isFiniteRow(in, h);
    for (int64_t t = 0; t < in.tokens; ++t) {
      float dot = 0;
      for (int64_t c = 0; c < in.keyDim; ++c)
        dot += static_cast<float>(in.q[h * in.keyDim + c]) * k[t * in.keyDim + c];
      p[t] = finite ? dot * static_cast<float>(in.scale) : NAN;
      if (in.softcap)
        p[t] = static_cast<float>(in.softcap) * std::tanh(p[t] / static_cast<float>(in.softcap));
      if (!in.additive.empty())
        p[t] += static_cast<float>(in.additive[h * in.tokens + t]);
      if (!in.sees(h, t))
        p[t] = -std::numeric_limits<float>::infinity();
      top = std::max(top, p[t]);
    }
    for (int64_t t = 0; t < in.tokens; ++t) {
      p[t] = std::exp(p[t] - top);
      sum += p[t];
      for (int64_t c = 0; c < in.valueDim && in.sees(h, t); ++c)
        out[c] += read(p[t]) * v[t * in.valueDim + c];
    }
    if (!in.sinkLogits.empty())
      sum += std::exp(static_cast<float>(in.sinkLogits[h]) - top);
    for (float o : out)
      result.out.push_back(in.tokens ? sixteenBits(o / sum, in.storage) : 0);
  }
  return result;
}

PolicyResult aligned::decodeFp8(const HeadInputs &in) {
  HeadInputs stored = in;
  std::transform(in.k.begin(), in.k.end(), stored.k.begin(), roundFp8);
  std::transform(in.v.begin(), in.v.end(), stored.v.begin(), roundFp8);
  return attend(stored, 8, 8);
}

PolicyResult aligned::decodeIntegers(const HeadInputs &in, int bits) {
  HeadInputs stored = in;
  int64_t full = in.tokens / kBlockTokens * kBlockTokens;
  for (int64_t block = 0; block < full; block += kBlockTokens)
    for (int64_t c = 0; c < in.keyDim; ++c)
      roundBetween({&stored.k[block * in.keyDim + c], kBlockTokens, in.keyDim}, bits, in.storage);
  for (int64_t t = 0; t < full; ++t)
    roundSymmetric({&stored.v[t * in.valueDim], in.valueDim, 1}, bits, in.storage);
  double open = in.tokens ? double(in.tokens - full) / in.tokens : 0;
  return attend(stored, (bits + 32.0 / kBlockTokens) * (1 - open) + 16 * open, (bits + 16.0 / in.valueDim) * (1 - open) + 16 * open);
}

PolicyResult aligned::decodeQ8(const HeadInputs &in) {
  constexpr int64_t shared = 32;
  HeadInputs stored = in;
  auto round = [&](std::vector<double> &values, int64_t dim) {
    for (int64_t row = 0; row < in.tokens; ++row)
      for (int64_t c = 0; c < dim; c += shared)
        roundSymmetric({&values[row * dim + c], std::min(shared, dim - c), 1}, 8, in.storage);
    return 8 + 16.0 * ((dim + shared - 1) / shared) / dim;
  };
  double keyBits = round(stored.k, in.keyDim), valueBits = round(stored.v, in.valueDim);
  return attend(stored, keyBits, valueBits);
}
