// A captured cache in memory, read without the compiler's libraries: the folder that aligned-run --decode takes.
#ifndef ALIGNED_TOOLS_ALIGNED_LAUNCH_CAPTURE_H
#define ALIGNED_TOOLS_ALIGNED_LAUNCH_CAPTURE_H

#include "aligned/Runtime/Cache.h"
#include "aligned/Support/Npy.h"

#include <optional>
#include <string>
#include <vector>

namespace aligned {

/// q [layers, q_heads, steps, dim], k and v [layers, kv_heads, tokens, dim]. Step s sees tokens 0 .. firstPosition + s.
struct Capture {
  NpyArray q, k, v;
  int32_t element; ///< aligned_element
  int64_t layers, queryHeads, kvHeads, steps, tokens, keyDim, valueDim, firstPosition;
  double scale;

  int64_t width() const { return byteWidth(q.dtype); }
  int64_t group() const { return queryHeads / kvHeads; }
  const char *at(const NpyArray &array, int64_t element) const { return array.bytes.data() + element * width(); }

  /// [queryHeads, keyDim] of a step.
  std::vector<char> query(int64_t layer, int64_t step) const;
  /// Tokens from `first` on of one layer of k or v, and their strides for an append.
  const char *tokensFrom(const NpyArray &array, int64_t layer, int64_t first, int64_t strides[4]) const;
  /// Attention in float64 over the first `count` tokens: [queryHeads, valueDim].
  std::vector<double> exact(int64_t layer, int64_t step, int64_t count) const;
  /// The mean length of each kv head's first `count` rows of V: what tolerances are relative to (P2).
  std::vector<double> usualRows(int64_t layer, int64_t count) const;
};

/// Prints the error and returns nothing, for `return refuse(...)`.
std::nullopt_t refuse(const std::string &why);

/// Prints what is wrong and returns nothing.
std::optional<Capture> loadCapture(const std::string &folder);

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_LAUNCH_CAPTURE_H
