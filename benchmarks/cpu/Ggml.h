// llama.cpp's flash attention on the CPU, by the C interface of its ggml library, which is opened when a benchmark names it.
#ifndef ALIGNED_BENCHMARKS_CPU_GGML_H
#define ALIGNED_BENCHMARKS_CPU_GGML_H

#include "Layers.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace aligned {

class Ggml {
public:
  enum Type { F32 = 0, F16 = 1, Q8 = 8 }; ///< as ggml numbers them

  /// Prints what is wrong and returns null.
  static std::shared_ptr<Ggml> open(const std::string &folder);

  /// One attention over a cache of its own, as a graph of one op.
  struct Attention {
    std::shared_ptr<Bytes> memory;
    std::shared_ptr<void> context;
    void *query, *out, *graph;
    int64_t numbers; ///< of the output
  };
  /// `keys` and `values`: f16 [kvHeads, tokens, dim]; of type q8_0 they are quantised as they are stored.
  Attention attention(Type type, const Bytes &keys, const Bytes &values, int64_t queryHeads, int64_t kvHeads, int64_t tokens, int64_t keyDim,
                      int64_t valueDim, float scale) const;
  /// [queryHeads, valueDim].
  std::vector<float> run(const Attention &attention, const std::vector<double> &query, int threads);

private:
  struct Functions;
  std::shared_ptr<Functions> f;
  std::vector<uint8_t> work;
};

} // namespace aligned

#endif // ALIGNED_BENCHMARKS_CPU_GGML_H
