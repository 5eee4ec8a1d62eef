// Written for reading: one bit, one value at a time.
#include "aligned/Reference/Split.h"

#include <algorithm>
#include <cmath>

using namespace aligned;

int64_t aligned::ditherOf(int64_t token) { return token * 2531 % 4096 - 2048; }

/// The top bits of a pattern with the first missing bit set: the middle of what the missing bits may hold.
static int64_t topBits(uint16_t pattern, int bits) {
  int64_t value = 0;
  for (int bit = 15; bit >= 16 - bits; --bit)
    value += static_cast<int64_t>((pattern >> bit) & 1) << bit;
  if (bits < 16)
    value += int64_t(1) << (15 - bits);
  return value;
}

double FixedSplit::scale(int64_t token, int64_t channel) const {
  int exponent = exponents[key ? token / kBlockTokens * dim + channel : token] - 112;
  return std::ldexp(16.0 / 15.0, exponent);
}

double FixedSplit::read(int64_t token, int64_t channel, int bits) const {
  if (bits == 0)
    return 0;
  int64_t n = topBits(patterns[token * dim + channel], bits) - 32768;
  return static_cast<double>(n - ditherOf(token)) * scale(token, channel) / 32768;
}

FixedSplit aligned::splitFixed(const std::vector<double> &values, int64_t tokens, int64_t dim, bool key) {
  FixedSplit split{tokens, dim, key, {}, {}};
  auto finite = [&](int64_t token, int64_t channel) {
    double x = values[token * dim + channel];
    return std::isfinite(x) ? x : 0.0;
  };
  auto exponentOver = [&](int64_t firstToken, int64_t lastToken, int64_t firstChannel, int64_t lastChannel) {
    double largest = std::ldexp(1.0, -100);
    for (int64_t token = firstToken; token < lastToken; ++token)
      for (int64_t channel = firstChannel; channel < lastChannel; ++channel)
        largest = std::max(largest, std::fabs(finite(token, channel)));
    return static_cast<uint8_t>(std::ilogb(largest) + 1 + 112);
  };
  if (key)
    for (int64_t block = 0; block < tokens / kBlockTokens; ++block)
      for (int64_t channel = 0; channel < dim; ++channel)
        split.exponents.push_back(exponentOver(block * kBlockTokens, (block + 1) * kBlockTokens, channel, channel + 1));
  else
    for (int64_t token = 0; token < tokens; ++token)
      split.exponents.push_back(exponentOver(token, token + 1, 0, dim));
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t channel = 0; channel < dim; ++channel) {
      double n = std::nearbyint(finite(token, channel) / split.scale(token, channel) * 32768) + ditherOf(token);
      split.patterns.push_back(static_cast<uint16_t>(std::clamp(n, -32768.0, 32767.0) + 32768));
    }
  return split;
}

double aligned::readFloat(uint16_t pattern, int bits, Storage storage) { return widen(static_cast<uint16_t>(topBits(pattern, bits)), storage); }
