// Written for reading: one bit, one value at a time.
#include "aligned/Reference/Planes.h"

#include "aligned/Storage/Rotation.h" // signs

#include <algorithm>
#include <cmath>

using namespace aligned;

namespace {

constexpr int kLargestCode = 255, kFirstCode = 128, kBelowMedian = 32;

/// Codes count eighths of an octave from -bias: the least k with 2^(k/8) >= 16/15 x, for x > 0.
int eighthsAbove(double x) {
  auto holds = [&](int k) { return std::exp2(k / 8.0) * 15 >= 16 * x; }; // exact where 2^(k/8) is a power of two and x has 48 bits
  int k = static_cast<int>(std::floor(8 * std::log2(x * 16 / 15)));
  while (!holds(k))
    ++k;
  while (holds(k - 1))
    --k;
  return k;
}

/// The largest magnitude; NaN or infinity where a value is not finite.
double largestOf(const std::vector<double> &row) {
  double largest = 0;
  for (double x : row)
    largest = !std::isfinite(x) || !std::isfinite(largest) ? INFINITY : std::max(largest, std::fabs(x));
  return largest;
}

/// Of what the bits behind the top `bits` may hold.
int64_t middleOf(int bits) { return bits < 16 ? int64_t(1) << (15 - bits) : 0; }

/// The top bits of a number with the first missing bit set: the middle of what the missing bits may hold. In two's complement, so that
/// negative ones are cut downwards, too.
int64_t topBits(int64_t pattern, int bits) {
  int64_t step = int64_t(1) << (16 - bits);
  return (pattern & -step) + middleOf(bits);
}

/// x H for an H that is not normalised: H = [[H', H'], [H', -H']] of half the size.
void hadamard(double *x, int64_t size) {
  if (size == 1)
    return;
  int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    double a = x[i], b = x[half + i];
    x[i] = a + b;
    x[half + i] = a - b;
  }
  hadamard(x, half);
  hadamard(x + half, half);
}

} // namespace

int64_t aligned::ditherOf(Role role, int64_t token) { return token * (role == Role::Key ? 3091 : 2333) % 4096 - 2048; }

double aligned::scaleOf(int code, int bias) { return std::exp2((code - bias) / 8.0); }

/// The largest value has code 128, or another one where its scale is above 2^127 or below 2^-80.
int aligned::biasFor(double largest) { return largest > 0 ? kFirstCode - std::clamp(eighthsAbove(largest), -80 * 8, 127 * 8) : kBiasOfHalves; }

std::vector<double> aligned::rotated(std::vector<double> x) {
  int64_t dim = static_cast<int64_t>(x.size()), size = 1;
  for (int64_t c = 0; c < dim; ++c)
    x[c] *= storage::signOf(c);
  while (size * 2 <= dim)
    size *= 2;
  for (int64_t first = 0; first < dim; first += size) {
    while (size > dim - first)
      size /= 2;
    hadamard(&x[first], size);
    for (int64_t c = first; c < first + size; ++c)
      x[c] /= std::sqrt(double(size));
  }
  return x;
}

std::vector<double> aligned::offsetOf(const std::vector<double> &keys, int64_t tokens, int64_t dim) {
  std::vector<double> mean(dim, 0);
  if (tokens < kTileTokens)
    return mean;
  int64_t finite = 0;
  for (int64_t t = 0; t < kTileTokens; ++t) {
    auto row = keys.begin() + t * dim;
    if (!std::all_of(row, row + dim, [](double x) { return std::isfinite(x); }))
      continue;
    ++finite;
    for (int64_t c = 0; c < dim; ++c)
      mean[c] += row[c];
  }
  for (double &x : mean)
    x = static_cast<float>(finite ? x / finite : 0);
  return mean;
}

//===----------------------------------------------------------------------===//
// Fixed planes
//===----------------------------------------------------------------------===//

FixedPlanes aligned::packFixed(const std::vector<double> &values, int64_t tokens, int64_t dim, Role role, Storage storage,
                               std::optional<int> bias, std::optional<std::vector<double>> offset) {
  FixedPlanes planes{role, tokens, dim, kBiasOfHalves, std::vector<double>(dim, 0), {}, {}, {}, {}};
  if (role == Role::Key)
    planes.offset = offset ? *offset : offsetOf(values, tokens, dim);
  std::vector<std::vector<double>> rows(tokens); // as they are stored
  double largest = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < dim; ++c)
      rows[t].push_back(values[t * dim + c] - planes.offset[c]);
    if (!std::isfinite(largestOf(rows[t]))) {
      planes.aside[t] = rows[t];
      continue;
    }
    if (role == Role::Key)
      rows[t] = rotated(rows[t]);
    largest = std::max(largest, largestOf(rows[t]));
  }
  if (bias)
    planes.bias = *bias;
  else if (storage != Storage::Half)
    planes.bias = biasFor(largest);

  planes.n.resize(tokens * dim, 0);
  for (int64_t t = 0; t < tokens; ++t) {
    double reach = largestOf(rows[t]);
    int code = !std::isfinite(reach) ? 0 : reach == 0 ? 1 : std::max(eighthsAbove(reach) + planes.bias, 1);
    if (code > kLargestCode) {
      code = 0;
      for (int64_t c = 0; c < dim; ++c)
        planes.aside[t].push_back(values[t * dim + c] - planes.offset[c]);
    }
    planes.codes.push_back(code);
    planes.scales.push_back(code ? scaleOf(code, planes.bias) : 0);
    for (int64_t c = 0; c < dim && code; ++c) {
      double n = std::nearbyint(rows[t][c] / planes.scales[t] * 32768) + ditherOf(role, t);
      planes.n[t * dim + c] = static_cast<int32_t>(std::clamp(n, -32768.0, 32767.0));
    }
  }
  return planes;
}

int64_t FixedPlanes::readInteger(int64_t token, int64_t channel, int bits) const {
  return topBits(n[token * dim + channel], bits) - ditherOf(role, token);
}

double FixedPlanes::read(int64_t token, int64_t channel, int bits) const {
  return readInteger(token, channel, bits) * scales[token] / 32768;
}

uint16_t FixedPlanes::pattern(int64_t token, int64_t channel) const {
  return static_cast<uint16_t>(n[token * dim + channel] + (role == Role::Key ? 32768 : 65536));
}

//===----------------------------------------------------------------------===//
// What a cache knows
//===----------------------------------------------------------------------===//

ScaleCounts aligned::countScales(const FixedPlanes &planes) {
  ScaleCounts counts;
  for (int code : planes.codes)
    if (code) {
      ++counts.count[code];
      ++counts.tokens;
      counts.largest = std::max(counts.largest, code);
    }
  if (!counts.tokens)
    return counts;
  while (2 * (counts.below + counts.count[counts.median]) < counts.tokens)
    counts.below += counts.count[counts.median++];
  return counts;
}

std::vector<int64_t> aligned::sumChannels(const FixedPlanes &planes, int bits) {
  std::vector<int64_t> sums(planes.dim, 0);
  for (int64_t t = 0; t < planes.tokens; ++t)
    for (int64_t c = 0; c < planes.dim && !planes.isAside(t); ++c)
      sums[c] += planes.readInteger(t, c, bits) - middleOf(bits);
  return sums;
}

ValueSummary aligned::summarize(const FixedPlanes &values, int bits) {
  ValueSummary summary;
  summary.mean.resize(values.dim, 0);
  ScaleCounts counts = countScales(values);
  if (!counts.tokens)
    return summary;
  summary.floor = counts.median - kBelowMedian;
  auto floored = [&](int64_t t) { return scaleOf(std::max(values.codes[t], summary.floor), values.bias); };

  double weights = 0;
  for (int64_t t = 0; t < values.tokens; ++t)
    weights += values.isAside(t) ? 0 : 1 / floored(t);
  summary.usual = counts.tokens / weights;

  std::vector<int64_t> sums = sumChannels(values, bits);
  for (int64_t c = 0; c < values.dim; ++c)
    summary.mean[c] = (sums[c] + counts.tokens * middleOf(bits)) / 32768.0 / weights; // sum of v / scale over sum of 1 / scale

  double spread = 0, mean = 0;
  for (int64_t t = 0; t < values.tokens; ++t) {
    double weight = values.isAside(t) ? 0 : 1 / floored(t);
    for (int64_t c = 0; c < values.dim && weight; ++c) {
      double off = (values.read(t, c, bits) - summary.mean[c]) * weight, middle = summary.mean[c] * weight;
      spread += off * off;
      mean += middle * middle;
    }
  }
  double count = double(counts.tokens) * values.dim;
  summary.spread = std::sqrt(spread / count);
  summary.fill = std::sqrt(spread / count + mean / count);
  return summary;
}

//===----------------------------------------------------------------------===//
// Float planes
//===----------------------------------------------------------------------===//

double aligned::readFloat(uint16_t pattern, int bits, Storage storage) {
  return widen(static_cast<uint16_t>(topBits(pattern, bits)), storage);
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

namespace {

/// Where `bits` bits of a value lie: in a plane's byte, from `shift` up, and from `position` up in the pattern.
struct Piece {
  size_t plane;
  int64_t byte;
  int shift, position, bits;
};

/// The pieces of one value, most significant first. Counted out along the arrays that Layout.h lists.
std::vector<Piece> piecesOf(const PlaneFormat &format, int64_t dim, int64_t token, int64_t channel) {
  std::vector<Piece> pieces;
  int64_t tile = token / kTileTokens, t = token % kTileTokens;
  int position = 16;
  for (size_t plane = 0; plane < format.widths.size(); ++plane) {
    int width = format.widths[plane];
    int64_t start = tile * kTileTokens * dim * width / 8;
    if (format.kind == Kind::Float) {
      for (int layer = 0; layer < width / 4; ++layer) {
        Piece piece{plane, 0, 0, position -= 4, 4};
        if (format.role == Role::Key) { // [dim][layers][32]
          piece.byte = start + channel * (width / 4) * 32 + layer * 32 + t % 32;
          piece.shift = t >= 32 ? 4 : 0;
        } else { // [64][layers][dim/2]
          piece.byte = start + t * (width / 4) * (dim / 2) + layer * (dim / 2) + channel % (dim / 2);
          piece.shift = channel >= dim / 2 ? 4 : 0;
        }
        pieces.push_back(piece);
      }
      continue;
    }
    Piece piece{plane, 0, 0, position -= width, width};
    if (format.role == Role::Key && plane == 0) { // [dim/8 or dim/4][64][4]
      int64_t channels = width == 4 ? 8 : 4, within = channel % channels;
      piece.byte = start + channel / channels * 256 + t * 4 + within % 4;
      piece.shift = within >= 4 ? 4 : 0;
    } else if (width == 4) { // [64][dim/2]
      piece.byte = start + t * (dim / 2) + channel / 2;
      piece.shift = channel % 2 == 1 ? 4 : 0;
    } else { // [64][dim]
      piece.byte = start + t * dim + channel;
    }
    pieces.push_back(piece);
  }
  return pieces;
}

} // namespace

PlaneBytes aligned::packPlanes(const std::vector<uint16_t> &patterns, int64_t tokens, int64_t dim, const PlaneFormat &format) {
  PlaneBytes planes;
  int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  for (int width : format.widths)
    planes.emplace_back(tiles * kTileTokens * dim * width / 8);
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t channel = 0; channel < dim; ++channel)
      for (const Piece &piece : piecesOf(format, dim, token, channel)) {
        int content = patterns[token * dim + channel] >> piece.position & ((1 << piece.bits) - 1);
        planes[piece.plane][piece.byte] |= static_cast<uint8_t>(content << piece.shift);
      }
  return planes;
}

std::vector<uint16_t> aligned::joinPlanes(const PlaneBytes &planes, int64_t tokens, int64_t dim, const PlaneFormat &format) {
  std::vector<uint16_t> patterns(tokens * dim);
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t channel = 0; channel < dim; ++channel)
      for (const Piece &piece : piecesOf(format, dim, token, channel))
        if (piece.plane < planes.size()) {
          int content = planes[piece.plane][piece.byte] >> piece.shift & ((1 << piece.bits) - 1);
          patterns[token * dim + channel] |= static_cast<uint16_t>(content << piece.position);
        }
  return patterns;
}
