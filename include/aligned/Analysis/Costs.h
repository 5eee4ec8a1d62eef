// Planes or dense: what a decode step takes on this machine, by a model of few numbers that are measured once.
//
// A step over planes reads fewer bytes and has more to do, some of it once a step, so a short cache that lies near the processor is read faster as it was appended. Of each kv
// head, in nanoseconds:
//
//     dense    denseStep + tokens denseToken
//     planes   planesStep + tokens (planesToken + planesBit ((k - 4) key_dim + v value_dim))
//
// k and v are the bits read of a value: usualBits() says what to expect of a policy, before anybody has seen the cache. The five numbers are known at corners, head_dim 64, 128 and
// 256 with 1 and 4 query rows, and taken as linear in either between and beyond them. All lie in a near cache then, and the kernels use the widest instructions that the machine has: out of memory planes are ahead sooner.
#ifndef ALIGNED_ANALYSIS_COSTS_H
#define ALIGNED_ANALYSIS_COSTS_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace aligned {

/// Of a kv head.
struct AttentionShape {
  int64_t keyDim, valueDim, queryRows;
};

/// Read of a value of K and of V.
struct ReadBits {
  double key, value;
};

/// What attention as models have it makes a tolerance (P2) read: the largest probability of a token over the query rows times the number of tokens is taken as log-normal. 0 reads all.
ReadBits usualBits(int64_t tokens, double tolerance);

struct StepCosts {
  double denseStep, denseToken, planesStep, planesToken, planesBit;
};

struct Costs {
  struct Corner {
    int64_t headDim, queryRows;
  };
  static constexpr std::array<Corner, 6> kCorners = {{{64, 1}, {64, 4}, {128, 1}, {128, 4}, {256, 1}, {256, 4}}};
  /// How many numbers say it all: bytes that are read from memory in a nanosecond, and five for each corner.
  static constexpr size_t kNumbers = 1 + 5 * kCorners.size();
  /// No cache holds both for longer: beyond, planes are kept for the memory that they save and for what they will save when it grows.
  static constexpr int64_t kMostTokens = 4096;

  double readRate;
  std::array<StepCosts, kCorners.size()> corners;

  /// Nothing where these are not kNumbers numbers above 0.
  static std::optional<Costs> of(const double *numbers, size_t count);
  std::vector<double> numbers() const;

  StepCosts at(const AttentionShape &shape) const;
  double dense(const AttentionShape &shape, int64_t tokens) const;
  double planes(const AttentionShape &shape, int64_t tokens, const ReadBits &bits) const;
  /// The most tokens, in whole tiles, for which planes do not take less time than dense by a clear margin, which covers what the model is off by; at most kMostTokens.
  int64_t denseUpTo(const AttentionShape &shape, double tolerance) const;
};

} // namespace aligned

#endif // ALIGNED_ANALYSIS_COSTS_H
