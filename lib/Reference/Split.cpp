// Written for reading: one bit, one value at a time.
#include "aligned/Reference/Split.h"

#include <algorithm>
#include <cmath>

using namespace aligned;

int64_t aligned::ditherOf(int64_t token, int64_t channel) { return (token * 2531 + channel % 4 * 1092) % 4096 - 2048; }

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
  double n = topBits(patterns[token * dim + channel], bits) - 32768 - (bits < 16 ? 0.5 : 0); // the mean of 0 .. 2^k - 1 is half a unit below 2^(k-1)
  return (n - ditherOf(token, key ? channel : 0)) * scale(token, channel) / 32768;
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
      // x / scale * 2^15 = 15 x * 2^(11 - E): exact, so that only rint rounds.
      int exponent = split.exponents[key ? token / kBlockTokens * dim + channel : token] - 112;
      double n = std::nearbyint(std::ldexp(15 * finite(token, channel), 11 - exponent)) + ditherOf(token, key ? channel : 0);
      split.patterns.push_back(static_cast<uint16_t>(std::clamp(n, -32768.0, 32767.0) + 32768));
    }
  return split;
}

namespace {

struct NibblePlace {
  int64_t byte;
  int shift;
};

/// Where layer `layer` of the `layers` nibble layers of a plane keeps its nibble of a value.
NibblePlace placeOf(PlaneOrder order, int64_t token, int64_t channel, int64_t dim, int64_t layer, int64_t layers) {
  int64_t half = dim / 2, block = token / kBlockTokens, word = token % 32;
  int late = token % kBlockTokens < 32 ? 0 : 4;
  switch (order) {
  case PlaneOrder::FixedKey: // uint32 [block][dim/4][layer][32], channel c in byte c % 4 of the word
    return {(((block * (dim / 4) + channel / 4) * layers + layer) * 32 + word) * 4 + channel % 4, late};
  case PlaneOrder::FloatKey: // uint8 [block][dim][layer][32]
    return {((block * dim + channel) * layers + layer) * 32 + word, late};
  case PlaneOrder::Value: // uint8 [token][layer][dim/2]
    break;
  }
  return {(token * layers + layer) * half + channel % half, channel < half ? 0 : 4};
}

/// Calls body(plane, place, shift of the nibble in the pattern) for the nibbles of one value, from the top.
template <typename Body>
void forNibbles(PlaneOrder order, int64_t token, int64_t channel, int64_t dim, const std::vector<int> &widths, Body body) {
  int position = 16;
  for (size_t plane = 0; plane < widths.size(); ++plane)
    for (int layer = 0; layer < widths[plane] / 4; ++layer)
      body(plane, placeOf(order, token, channel, dim, layer, widths[plane] / 4), position -= 4);
}

} // namespace

Planes aligned::packPlanes(const std::vector<uint16_t> &patterns, int64_t tokens, int64_t dim, PlaneOrder order, const std::vector<int> &widths) {
  Planes planes;
  for (int width : widths)
    planes.emplace_back(tokens * dim * width / 8);
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t channel = 0; channel < dim; ++channel)
      forNibbles(order, token, channel, dim, widths, [&](size_t plane, NibblePlace place, int position) {
        planes[plane][place.byte] |= (patterns[token * dim + channel] >> position & 15) << place.shift;
      });
  return planes;
}

std::vector<uint16_t> aligned::joinPlanes(const Planes &planes, int64_t tokens, int64_t dim, PlaneOrder order, const std::vector<int> &widths) {
  std::vector<uint16_t> patterns(tokens * dim);
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t channel = 0; channel < dim; ++channel)
      forNibbles(order, token, channel, dim, widths, [&](size_t plane, NibblePlace place, int position) {
        if (plane < planes.size())
          patterns[token * dim + channel] |= (planes[plane][place.byte] >> place.shift & 15) << position;
      });
  return patterns;
}

double aligned::readFloat(uint16_t pattern, int bits, Storage storage) { return widen(static_cast<uint16_t>(topBits(pattern, bits)), storage); }
