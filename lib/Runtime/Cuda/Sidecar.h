// What the compiler says of its PTX: which kernels a site launches, in what grids, with what arguments.
//
//   {"version": 1, "chip": "sm_90", "ptx": 78, "tuning": {"blocks_per_multiprocessor": 2, ...},
//    "kernels": [{"name": "decode0_scores", "threads": 128}, ...],
//    "decode": [{"site": 0, "kv_heads": 3, "heads": 3, "key_dim": 64, "value_dim": 64, "query": "f16", "certified": 0, "key":
//    FORMAT, "value": FORMAT,
//                "arguments": [ARGUMENT, ...], "launch": [{"kernel": "decode0_scores", "grid": ["splits", "rows"]}, ...]}, ...],
//    "append": [{"format": FORMAT, "head_dim": 64, "arguments": [...], "launch": [...]}, ...]}
//
//   FORMAT    {"kind": "fixed", "role": "key", "element": "f16", "widths": [4, 4, 4, 4]}, or of kind "dense" without widths
//   ARGUMENT  {"name": "scores", "kind": "scratch", "type": "f32", "shape": ["rows", 3, "capacity"]}
//
// All kernels of a site take all of its arguments, in this order. Everything that is needed later is checked when the text is
// read.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_SIDECAR_H
#define ALIGNED_LIB_RUNTIME_CUDA_SIDECAR_H

#include "aligned/Runtime/Cache.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace aligned::cuda {

/// What is known only when kernels are launched.
struct Symbols {
  int64_t batch = 0, kvHeads = 0;
  int64_t capacity = 0; ///< tokens that the key cache has room for
  int64_t splits = 1;   ///< blocks of threads that share a row
  int64_t touched = 1;  ///< blocks of 64 tokens that an append may touch
};

struct Extent {
  enum Symbol { None, Rows, Batch, KvHeads, Capacity, Blocks, Splits, Touched };
  Symbol symbol = None;
  int64_t number = 0;

  int64_t at(const Symbols &symbols) const;
};

struct Argument {
  enum Kind { Input, Cache, Scratch, Record, Output, Scalar };
  /// Who provides it.
  enum Meaning {
    Query,
    Key,
    Value,
    Lengths,
    Acc,
    Max,
    Sum,
    Certificate,
    KeyLayers,
    ValueLayers,
    Scale,
    Appended,
    Data,
    Counts,
    Stride,
    Size,
    Memory
  };
  std::string name, type;
  Kind kind = Input;
  Meaning meaning = Memory;
  int stride = 0; ///< which one a Stride is
  Extent size;    ///< what a scalar of meaning Size tells
  int64_t elementBytes = 0;
  std::vector<Extent> shape;

  /// Whether it says which layers were read.
  bool records() const { return meaning == KeyLayers || meaning == ValueLayers; }
  /// Negative where sizes overflow.
  int64_t bytes(const Symbols &symbols) const;
};

struct Launch {
  int64_t kernel = 0; ///< in Sidecar::kernels
  Extent grid[2];
};

struct KernelEntry {
  std::string name;
  int64_t threads = 0;
};

struct Site {
  int64_t number = 0, kvHeads = 0, heads = 0, keyDim = 0, valueDim = 0;
  int32_t query = 0; ///< aligned_element
  bool certified = false;
  aligned_format key = {}, value = {};
  int64_t unitChannels = 0; ///< channels of K that are decided together

  /// Whether K and V are arrays, and no caches.
  bool isDense() const { return key.kind == ALIGNED_FORMAT_DENSE; }
  std::vector<Argument> arguments;
  std::vector<Launch> launches;
};

struct Append {
  aligned_format format = {};
  int64_t headDim = 0;
  std::vector<Argument> arguments;
  std::vector<Launch> launches;
};

/// What only a measurement can choose well of launches. These are the values of programs that say nothing of it.
struct Tuning {
  int64_t blocksPerMultiprocessor = 2; ///< blocks of threads that grids reckon with
  int64_t blocksPerSplit = 4;          ///< blocks of 64 tokens: no more splits than have as many
  int64_t mostSplits = 128;            ///< of a row
  bool chained = false;                ///< whether kernels are launched before the ones ahead of them have ended
};

struct Sidecar {
  std::string chip;
  int64_t ptx = 0;
  Tuning tuning;
  std::vector<KernelEntry> kernels;
  std::vector<Site> decode;
  std::vector<Append> append;
};

constexpr int64_t kCertificate = 6; ///< numbers of a query row's certificate

/// Says in `error` what is missing or wrong, and where.
std::optional<Sidecar> parseSidecar(const std::string &text, std::string &error);

bool sameFormat(const aligned_format &a, const aligned_format &b);
/// "key fixed<4,4,4,4> of f16"
std::string formatText(const aligned_format &format);
const char *elementText(int32_t element);

} // namespace aligned::cuda

#endif
