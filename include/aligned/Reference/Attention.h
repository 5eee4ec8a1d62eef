// Attention of one kv head in float64: exact, and as the policies read a cache. The oracle of the kernels.
#ifndef ALIGNED_REFERENCE_ATTENTION_H
#define ALIGNED_REFERENCE_ATTENTION_H

#include "aligned/Reference/Numbers.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace aligned {

/// Which tokens a query row sees by position (P8). Rows are `queries` for each query head.
struct Mask {
  int64_t queries = 1;
  bool causal = false;
  int64_t window = 0, sinks = 0; ///< window 0: none
  int64_t later = 0;             ///< tokens newer than the last query

  bool sees(int64_t row, int64_t token, int64_t tokens) const;
  /// Whether any query does.
  bool isSeen(int64_t token, int64_t tokens) const;
  bool isTileSeen(int64_t tile, int64_t tokens) const;
};

/// out [heads, valueDim] = softmax(scale q k^T) v for q [heads, keyDim], k [tokens, keyDim], v [tokens, valueDim]. No tokens give 0; a row whose
/// scores are all -inf, or that sees no token, gives 0 with maskedZero, else NaN. A row whose query is not finite is NaN. Of what is optional:
///
///   softcap      C: scores become C tanh(score / C); 0: none
///   additive     [heads, tokens], added to scores behind the softcap; -inf hides a token as the mask does: its value counts for nothing
///   sinkLogits   [heads], adds e^logit to the sum of the softmax, without a value
void exactAttention(const double *q, int64_t heads, const double *k, const double *v, int64_t tokens, int64_t keyDim, int64_t valueDim, double scale,
                    bool maskedZero, double *out, const Mask &mask = {}, double softcap = 0, const double *additive = nullptr,
                    const double *sinkLogits = nullptr);

/// What a policy may not do on one side (P7).
struct Limits {
  std::optional<double> tolerance = {}; ///< of its own
  int least = 0, most = 16;             ///< bits
  int64_t newest = 0, sinks = 0;        ///< tokens that stay exact
  std::vector<std::pair<int64_t, int>> ages = {}; ///< the most bits from an age on

  /// Of `bits` for tokens first .. last, which are read alike, of a cache.
  int apply(int bits, int64_t first, int64_t last, int64_t tokens) const;
};

/// What decides how one side of a cache is stored. Of float planes only `resident` counts.
struct SideStorage {
  std::vector<int> widths = {4, 4, 8}; ///< of fixed planes, most significant first
  int resident = 4;                    ///< planes that are there (S9); more than the format has: all
  std::optional<int> bias = {};        ///< of scale codes; without one packFixed's
};

/// One kv head with the query rows that share it. Values are what the storage type holds.
struct HeadInputs {
  int64_t heads, tokens, keyDim, valueDim; ///< heads: query rows
  std::vector<double> q, k, v;
  double scale;
  Storage storage = Storage::Half;
  Limits keyLimits = {}, valueLimits = {}; ///< of the policy
  Mask mask = {};
  double softcap = 0;                      ///< 0: none
  std::vector<double> additive = {}, sinkLogits = {}; ///< as of exactAttention; empty: none
  bool maskedZero = false;
  SideStorage keys = {}, values = {};
  std::optional<std::vector<double>> offset = {}; ///< taken off K (S2); without one offsetOf's
  /// Query weights as integers: the largest |weight| of a row becomes `fullscale`, for the scan and for finer reads; 0: they are not rounded.
  double scanFullscale = 0, finerFullscale = 0;

  /// By the mask and the additive one.
  bool sees(int64_t row, int64_t token) const;
};

std::vector<double> exactAttention(const HeadInputs &in);

/// The softmax state of all tokens: max [heads], sum [heads] of e^(score - max), acc [heads, valueDim]. A sink counts in both; no tokens give (-inf, 0, 0), a row whose scores are all
/// -inf (-inf, NaN, 0), or a sum of 0 with maskedZero.
void exactState(const HeadInputs &in, double *acc, double *max, double *sum);

/// softmax(scale q k^T) of what masks, softcap and sinks make of the scores, [heads, tokens].
std::vector<double> exactProbabilities(const HeadInputs &in);

struct PolicyResult {
  std::vector<double> out; ///< [heads, valueDim]
  /// Mean bits read per value, those of scale codes included: 8 for each token and side, of fixed planes, in tiles of which any query sees a token.
  double keyBits = 0, valueBits = 0;
  /// Bits of planes read: of tokens; of K under P1 of [tiles, keyDim]. 0 where no query sees, 16 for tokens that are kept aside.
  std::vector<int> keyPlan, valuePlan;
  std::vector<double> estimate; ///< E1, of P2: expected L2 error of each row's output, absolute
  std::vector<double> bound;    ///< C1, of P2: no channel of a row is off by more; infinite where the row is not finite
};

/// P1 over `float<8,4,4>` (half) or `float<12,4>` (bfloat16).
PolicyResult decodeAlignedKV(const HeadInputs &in);
/// P2 over fixed planes, escalation (P5) in a single pass. Tolerance 0: `exact`, which reads every resident bit of what is seen.
PolicyResult decodeBudget(const HeadInputs &in, double tolerance);

/// Relative L2 error of each row's output.
std::vector<double> relativeErrors(const std::vector<double> &out, const std::vector<double> &exact, int64_t dim);

} // namespace aligned

#endif // ALIGNED_REFERENCE_ATTENTION_H
