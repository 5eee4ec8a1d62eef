// Attention of one kv head in float64: exact, and under both policies as docs/Numerics.md states them. The oracle of the kernels.
#ifndef ALIGNED_REFERENCE_ATTENTION_H
#define ALIGNED_REFERENCE_ATTENTION_H

#include "aligned/Reference/Numbers.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace aligned {

/// Which tokens a query row sees (A11). Rows are `queries` for each query head; these are the newest tokens.
struct Mask {
  int64_t queries = 1;
  bool causal = false;
  int64_t window = 0, sinks = 0; ///< window 0: none

  bool sees(int64_t row, int64_t token, int64_t tokens) const;
  /// Whether any query does.
  bool isSeen(int64_t token, int64_t tokens) const;
  bool isBlockSeen(int64_t block, int64_t tokens) const;
};

/// out [heads, valueDim] = softmax(scale q k^T) v for q [heads, keyDim], k [tokens, keyDim], v [tokens, valueDim]. No tokens give 0; a row whose
/// scores are all -inf, or that sees no token, gives 0 with maskedZero, else NaN. softcap 0: none (A12).
void exactAttention(const double *q, int64_t heads, const double *k, const double *v, int64_t tokens, int64_t keyDim, int64_t valueDim, double scale,
                    bool maskedZero, double *out, const Mask &mask = {}, double softcap = 0);

/// What a policy may not do on one side (P7).
struct Limits {
  std::optional<double> tolerance = {}; ///< of its own
  int least = 0, most = 16;             ///< bits
  int64_t newest = 0, sinks = 0;        ///< tokens that stay exact
  std::vector<std::pair<int64_t, int>> ages = {}; ///< the most bits from an age on

  /// Of `bits` for tokens first .. last, which are read alike, of a cache.
  int apply(int bits, int64_t first, int64_t last, int64_t tokens) const;
};

/// One kv head with the query rows that share it. Values are what the storage type holds.
struct HeadInputs {
  int64_t heads, tokens, keyDim, valueDim;
  std::vector<double> q, k, v;
  double scale;
  Storage storage = Storage::Half;
  Limits keyLimits = {}, valueLimits = {}; ///< of the policy
  Mask mask = {};
  double softcap = 0; ///< 0: none
};

/// softmax(scale q k^T) of what the mask and the softcap make of the scores, [heads, tokens].
std::vector<double> exactProbabilities(const HeadInputs &in);

struct PolicyResult {
  std::vector<double> out; ///< [heads, valueDim]
  double keyBits, valueBits; ///< mean bits read per value, exponents included; tokens of the open block count 16. Of blocks that no query sees nothing is read
  std::vector<int> keyPlan, valuePlan; ///< bits of planes read in full blocks: [blocks, keyDim] and [64 blocks]; 0 where no query sees
  std::vector<double> estimate; ///< predicted relative L2 error of each head's output; of P2
};

/// P1 over `float<8,4,4>` (half) or `float<12,4>` (bfloat16).
PolicyResult decodeAlignedKV(const HeadInputs &in);
/// P2 over `fixed<4,4,4,4>`. Tokens past the last full block are exact: they take part in the softmax and in the look at V, and cost the plan nothing.
PolicyResult decodeBudget(const HeadInputs &in, double tolerance);

/// Relative L2 error of each head's output.
std::vector<double> relativeErrors(const std::vector<double> &out, const std::vector<double> &exact, int64_t dim);

} // namespace aligned

#endif // ALIGNED_REFERENCE_ATTENTION_H
