// See the header.
#include "aligned/Analysis/Costs.h"

#include "aligned/Storage/Layout.h"

#include <algorithm>
#include <cmath>

using namespace aligned;

ReadBits aligned::usualBits(int64_t tokens, double tolerance) {
  if (tolerance <= 0)
    return {16, 16};
  // Fitted to captured caches of SmolLM2 135M and Gemma 3 270M, 128 to 4080 tokens, four tolerances: off by 0.45 bits (root mean square).
  constexpr double kMean = -1.75, kDeviation = 2.2, kMisled = 0.3; // of ln(n p); what scores that 4 bits of K tell mislead a weight by
  const double threshold = std::log(tolerance * std::sqrt(double(tokens))); // of ln(n p), above which a row of V is read
  auto share = [&](double above) { return 0.5 * std::erfc((above - kMean) / kDeviation / std::sqrt(2)); };
  const double perBits = 4 * std::log(2), key = threshold + std::log(3 / kMisled); // 6 tau of a row of usual size, which counts twice
  return {4 + 4 * share(key) + 8 * share(key + perBits), 4 * share(threshold) + 4 * share(threshold + perBits) + 8 * share(threshold + 2 * perBits)};
}

std::optional<Costs> Costs::of(const double *numbers, size_t count) {
  if (count != kNumbers || !std::all_of(numbers, numbers + count, [](double x) { return x > 0 && std::isfinite(x); }))
    return std::nullopt;
  Costs costs{numbers[0], {}};
  const double *next = &numbers[1];
  for (StepCosts &corner : costs.corners) {
    corner = {next[0], next[1], next[2], next[3], next[4]};
    next += 5;
  }
  return costs;
}

std::vector<double> Costs::numbers() const {
  std::vector<double> all{readRate};
  for (const StepCosts &c : corners)
    all.insert(all.end(), {c.denseStep, c.denseToken, c.planesStep, c.planesToken, c.planesBit});
  return all;
}

StepCosts Costs::at(const AttentionShape &shape) const {
  const double dim = (shape.keyDim + shape.valueDim) / 2.0;
  const size_t first = dim <= 128 ? 0 : 2; // of the four corners around
  const double wide = (dim - kCorners[first].headDim) / (kCorners[first + 2].headDim - kCorners[first].headDim), many = (shape.queryRows - 1) / 3.0;
  auto along = [&](double StepCosts::*number) {
    double each[4];
    for (size_t i = 0; i < 4; ++i)
      each[i] = corners[first + i].*number;
    const double narrow = each[0] + (each[1] - each[0]) * many, twice = each[2] + (each[3] - each[2]) * many;
    return std::max(narrow + (twice - narrow) * wide, *std::min_element(each, each + 4) / 4); // lines may cross zero beyond the corners
  };
  return {along(&StepCosts::denseStep), along(&StepCosts::denseToken), along(&StepCosts::planesStep), along(&StepCosts::planesToken), along(&StepCosts::planesBit)};
}

double Costs::dense(const AttentionShape &shape, int64_t tokens) const {
  const StepCosts costs = at(shape);
  return costs.denseStep + tokens * costs.denseToken;
}

double Costs::planes(const AttentionShape &shape, int64_t tokens, const ReadBits &bits) const {
  const StepCosts costs = at(shape);
  return costs.planesStep + tokens * (costs.planesToken + costs.planesBit * ((bits.key - 4) * shape.keyDim + bits.value * shape.valueDim));
}

int64_t Costs::denseUpTo(const AttentionShape &shape, double tolerance) const {
  constexpr double kMargin = 0.75; // heads differ: in some, twice as many tokens matter
  int64_t tokens = kMostTokens;
  while (tokens && kMargin * dense(shape, tokens) >= planes(shape, tokens, usualBits(tokens, tolerance)))
    tokens -= storage::kTile;
  return tokens;
}
