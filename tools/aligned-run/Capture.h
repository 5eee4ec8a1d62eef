// A captured cache in memory, and what every run over one is made of: kernels for its layers, caches of a layer, attention in float64.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_CAPTURE_H
#define ALIGNED_TOOLS_ALIGNED_RUN_CAPTURE_H

#include "Run.h"

#include "aligned/Reference/Attention.h"

namespace aligned {

/// The folder's contents: q [layers, q_heads, steps, dim], k and v [layers, kv_heads, tokens, dim].
struct Capture {
  NpyArray q, k, v;
  std::string model, text; ///< what was captured, where meta.json says so
  aligned_dtype dtype;
  int64_t layers, queryHeads, kvHeads, steps, tokens, keyDim, valueDim, firstPosition;
  double scale;
  std::vector<int64_t> layerNumbers; ///< in the model: meta.json's `layers`, or 0, 1, ...
  bool partial = false;              ///< whether meta.json says that these are some layers of a model

  int64_t width() const { return byteWidth(q.dtype); }
  const char *element() const { return dtype == ALIGNED_DTYPE_F16 ? "f16" : dtype == ALIGNED_DTYPE_BF16 ? "bf16" : "f32"; }
  const char *at(const NpyArray &array, int64_t element) const { return array.bytes.data() + element * width(); }

  /// [queryHeads, keyDim] of a step.
  std::string query(int64_t layer, int64_t step) const;
  /// Tokens 0 .. count - 1 of one layer of k or v, contiguous.
  std::vector<char> dense(const NpyArray &array, int64_t layer, int64_t count) const;
  /// One kv head, with the query rows of `query` that share it.
  HeadInputs inputs(const std::string &query, int64_t layer, int64_t head, int64_t tokens) const;
  /// Attention in float64: [queryHeads, valueDim].
  std::vector<double> exact(const std::string &query, int64_t layer, int64_t tokens) const;
  /// The mean length of a kv head's first `tokens` rows of V: what tolerances are relative to (P2).
  double usualRow(int64_t layer, int64_t head, int64_t tokens) const;
};

/// Prints what is wrong and returns nothing.
std::optional<Capture> loadCapture(const std::string &folder);

/// A kernel, and the caches that it takes.
struct Kernel {
  Module module;
  Module certified; ///< the same with a certificate, where asked for
  bool split = false;
  aligned_format formats[2];
};

/// Of `source`, without a certificate. Null, with the error printed, where it does not compile.
std::shared_ptr<Kernel> compileKernel(const std::string &source, const std::string &options);
/// A kernel for each layer, and its certified form.
std::optional<std::vector<std::shared_ptr<Kernel>>> compileLayers(const Capture &c, const RunOptions &options);

/// One attention over caches of any length, as an MLIR function; `policies` as the op says them.
std::string moduleText(const Capture &c, const std::string &name = "decode", const std::string &policies = "");

/// The caches of one layer.
struct Caches {
  Cache side[2];

  bool create(const Capture &c, const Kernel &kernel);
  /// Appends what is missing of the first `tokens` tokens.
  bool extend(const Capture &c, int64_t layer, int64_t tokens);
};

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_CAPTURE_H
