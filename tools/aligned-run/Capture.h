// A captured cache in memory, and what every run over one is made of: kernels for its layers, caches of a layer, attention in float64.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_CAPTURE_H
#define ALIGNED_TOOLS_ALIGNED_RUN_CAPTURE_H

#include "Run.h"

#include "aligned/Reference/Attention.h"

#include <cstdlib>
#include <new>
#include <sys/mman.h>

namespace aligned {

/// Large pages, as caches have them: a comparison of kernels is not to be one of pages. Each starts 17 cache lines further into its page than the one before: arrays
/// that all start alike would meet in the same sets of caches.
template <typename T> struct InLargePages {
  using value_type = T;
  static constexpr size_t kPage = size_t(2) << 20;

  InLargePages() = default;
  template <typename U> InLargePages(const InLargePages<U> &) {}
  T *allocate(size_t count) {
    static size_t arrays = 0;
    const size_t start = arrays++ % 64 * 17 * 64, bytes = (start + count * sizeof(T) + kPage - 1) / kPage * kPage;
    auto *memory = static_cast<char *>(std::aligned_alloc(kPage, bytes));
    if (!memory)
      throw std::bad_alloc();
    madvise(memory, bytes, MADV_HUGEPAGE);
    return reinterpret_cast<T *>(memory + start);
  }
  void deallocate(T *memory, size_t) { std::free(reinterpret_cast<char *>(memory) - reinterpret_cast<uintptr_t>(memory) % kPage); }
  template <typename U> bool operator==(const InLargePages<U> &) const { return true; }
  template <typename U> bool operator!=(const InLargePages<U> &) const { return false; }
};
using Bytes = std::vector<char, InLargePages<char>>;

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
  Bytes dense(const NpyArray &array, int64_t layer, int64_t count) const;
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
  Module profiled;  ///< the same, telling when parts of a step are done, where asked for and where there are stages
  bool split = false;
  int64_t denseUpTo = 0; ///< tokens up to which dense copies of caches are read
  aligned_format formats[2];
};

/// Of `source`, without a certificate. Null, with the error printed, where it does not compile.
std::shared_ptr<Kernel> compileKernel(const std::string &source, const std::string &options);
/// A kernel for each layer, its certified form, and where asked for its profiled one.
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
