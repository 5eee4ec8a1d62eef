// What every run over a captured cache is made of: kernels for its layers, and caches of a layer.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_LAYERS_H
#define ALIGNED_TOOLS_ALIGNED_RUN_LAYERS_H

#include "Run.h"

#include "aligned/Support/Capture.h"

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

/// Prints what is wrong and returns nothing.
std::optional<Capture> readCapture(const std::string &folder);

/// Tokens 0 .. count - 1 of one layer of k or v, contiguous.
Bytes denseOf(const Capture &c, const NpyArray &array, int64_t layer, int64_t count);

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

#endif // ALIGNED_TOOLS_ALIGNED_RUN_LAYERS_H
