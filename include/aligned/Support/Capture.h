// A captured cache in memory: the folder that aligned-run --decode and aligned-launch --decode take, and what attention over it gives in float64.
#ifndef ALIGNED_SUPPORT_CAPTURE_H
#define ALIGNED_SUPPORT_CAPTURE_H

#include "aligned/Reference/Attention.h"
#include "aligned/Storage/Format.h"
#include "aligned/Support/Npy.h"

#include <optional>
#include <string>
#include <vector>

namespace aligned {

/// q [layers, q_heads, steps, dim], k and v [layers, kv_heads, tokens, dim]. Step s sees tokens 0 .. firstPosition + s.
struct Capture {
  NpyArray q, k, v;
  std::string model, text; ///< what was captured, where meta.json says so
  aligned_element element;
  int64_t layers, queryHeads, kvHeads, steps, tokens, keyDim, valueDim, firstPosition;
  double scale;
  std::vector<int64_t> layerNumbers; ///< in the model: meta.json's `layers`, or 0, 1, ...
  bool partial = false;              ///< whether meta.json says that these are some layers of a model

  int64_t width() const { return byteWidth(q.dtype); }
  int64_t group() const { return queryHeads / kvHeads; }
  const char *elementName() const { return element == ALIGNED_ELEMENT_F16 ? "f16" : element == ALIGNED_ELEMENT_BF16 ? "bf16" : "f32"; }
  const char *at(const NpyArray &array, int64_t element) const { return array.bytes.data() + element * width(); }

  /// [queryHeads, keyDim] of a step.
  std::string query(int64_t layer, int64_t step) const;
  /// Tokens from `first` on of one layer of k or v, and their strides for an append.
  const char *tokensFrom(const NpyArray &array, int64_t layer, int64_t first, int64_t strides[4]) const;
  /// One kv head with its first tokens, and the query rows of `query` that share it.
  HeadInputs inputs(const std::string &query, int64_t layer, int64_t head, int64_t tokens) const;
  /// Attention in float64: [queryHeads, valueDim].
  std::vector<double> exact(const std::string &query, int64_t layer, int64_t tokens) const;
  /// The mean length of a kv head's first `tokens` rows of V: what tolerances are relative to (P2).
  double usualRow(int64_t layer, int64_t head, int64_t tokens) const;
};

std::optional<Capture> loadCapture(const std::string &folder, std::string &error);

/// Values in memory as doubles.
std::vector<double> widened(const void *values, int64_t count, aligned_element element);

} // namespace aligned

#endif // ALIGNED_SUPPORT_CAPTURE_H
