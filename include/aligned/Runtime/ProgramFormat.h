// What stands beside the PTX of a program, kernels.json: which kernels a site launches, in what grids, with what arguments. The compiler
// writes it and the runtime reads it; names and numbers that both need are here, once.
//
//   {"version": 2, "chip": "sm_90", "ptx": 78,
//    "tuning": {"blocks_per_multiprocessor": 2, "tiles_per_split": 4, "most_splits": 128, "chained": 0},
//    "kernels": [{"name": "decode0_scan", "threads": 128, "shared": 65536}, ...],
//    "decode": [{"site": 0, "kv_heads": 3, "heads": 6, "queries": 2, "key_dim": 64, "value_dim": 64, "query": "f16", "certified": 0,
//                "key": FORMAT, "value": FORMAT, "arguments": [ARGUMENT, ...],
//                "launch": [{"kernel": "decode0_scan", "grid": ["splits", "rows"]}, ...]}, ...],
//    "append": [{"format": FORMAT, "head_dim": 64, "arguments": [ARGUMENT, ...], "launch": [LAUNCH, ...], "drop": [LAUNCH, ...]}, ...]}
//
//   FORMAT    {"kind": "fixed", "role": "key", "element": "f16", "widths": [4, 4, 8]}, or of kind "dense" without widths
//   ARGUMENT  {"name": "scores", "kind": "scratch", "type": "f32", "shape": ["rows", 6, "capacity"]}; a cache has neither type nor
//             shape, a scalar no shape
//   LAUNCH    as in decode: grids of [x, y] or [x, y, z]
//
// `heads` are the query rows of a kv head: its query heads times `queries`. `shared` is dynamic shared memory; none without it, as there is
// default tuning without that. All kernels of an entry take all of its arguments, in this order. Extents of shapes and grids are numbers or
// symbols; of these only `tokens` changes while caches keep their capacity, and only shapes of inputs may say it, so that captured steps
// can be replayed while caches grow.
//
//   name          kind     type, shape
//   query         input    the site's, [rows, heads, key_dim]
//   key, value    cache; of dense sites input, the format's element, [rows, capacity, key_dim or value_dim]
//   lengths       input    i64, [batch]; of dense sites
//   sink_logits   input    f32, [kv_heads * heads / queries]
//   attn_mask     input    f32, f16, bf16, or i1 in bytes, [batch or 1, query heads or 1, queries or 1, tokens]
//   key_bits      record   u8, [rows, capacity] bits of each token, or [rows, tiles, key_dim] of each channel of a tile
//   value_bits    record   u8, [rows, capacity]
//   acc           output   f32, [rows, heads, value_dim]: of the softmax state; where finished, acc / sum, 0 where sum is 0
//   max, sum      output   f32, [rows, heads]; where finished, max is the logarithm of the sum of e^score
//   certificate   output   f32, [rows, heads, ALIGNED_CERTIFICATE_NUMBERS]
//   scale         scalar   f32
//   finished      scalar   i32, 0 or 1; without it attention is not finished
//   softcap, tolerance_factor    scalar   f32; these and the following of sites that leave them to the call
//   window, sinks, later         scalar   i32
//   cache         cache    of append: the one appended to
//   data          input    the format's element, any shape: tokens, with strides
//   counts        input    i32, [batch]: tokens that each entry gains; of `drop` minus those that it loses, the newest
//   stride0 .. 3  scalar   i64, in elements
//
// A scalar may also have the name of a symbol other than tokens, with type i32 or i64. Scratch has any other name. Records are null where
// nobody asks; one that later kernels read is declared scratch, and is there always. `drop` takes tokens back, and reads no data.
#ifndef ALIGNED_RUNTIME_PROGRAMFORMAT_H
#define ALIGNED_RUNTIME_PROGRAMFORMAT_H

#include "aligned/Reference/Stages.h"

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace aligned::program {

constexpr int64_t kVersion = 2;
constexpr int64_t kCertificateNumbers = ALIGNED_CERTIFICATE_NUMBERS;
constexpr int64_t kMostGridDimensions = 3;

/// What is known only when kernels are launched.
enum class Symbol {
  Rows,     ///< batch * kv_heads
  Batch,
  KvHeads,
  Capacity, ///< tokens that the key cache, or array, has room for
  Tiles,    ///< capacity / 64
  Splits,   ///< blocks of threads that share a row
  Touched,  ///< tiles that an append may touch: (tokens to append + 63) / 64 + 1
  Tokens    ///< of the longest entry of the key cache; of dense sites the capacity
};
constexpr const char *kSymbols[] = {"rows", "batch", "kv_heads", "capacity", "tiles", "splits", "touched", "tokens"};

enum class Kind { Input, Cache, Scratch, Record, Output, Scalar };
constexpr const char *kKinds[] = {"input", "cache", "scratch", "record", "output", "scalar"};

enum class Name {
  Query,
  Key,
  Value,
  Lengths,
  SinkLogits,
  AttnMask,
  KeyBits,
  ValueBits,
  Acc,
  Max,
  Sum,
  Certificate,
  Scale,
  Finished,
  Softcap,
  ToleranceFactor,
  Window,
  Sinks,
  Later,
  Appended,
  Data,
  Counts,
  Stride0,
  Stride1,
  Stride2,
  Stride3
};
constexpr const char *kNames[] = {"query", "key", "value", "lengths", "sink_logits", "attn_mask", "key_bits", "value_bits", "acc",     "max",    "sum",
                                  "certificate", "scale", "finished", "softcap", "tolerance_factor", "window", "sinks", "later", "cache",
                                  "data", "counts", "stride0", "stride1", "stride2", "stride3"};

// Indexed by the enums of Storage/Format.h.
constexpr const char *kElements[] = {"f16", "bf16", "f32"};
constexpr const char *kRoles[] = {"key", "value"};
constexpr const char *kFormatKinds[] = {"fixed", "float", "dense"};

constexpr const char *nameOf(Symbol symbol) { return kSymbols[int(symbol)]; }
constexpr const char *nameOf(Kind kind) { return kKinds[int(kind)]; }
constexpr const char *nameOf(Name name) { return kNames[int(name)]; }

static_assert(std::size(kSymbols) == size_t(Symbol::Tokens) + 1 && std::size(kKinds) == size_t(Kind::Scalar) + 1 &&
              std::size(kNames) == size_t(Name::Stride3) + 1);
static_assert(std::size(kElements) == ALIGNED_ELEMENT_F32 + 1 && std::size(kRoles) == ALIGNED_ROLE_VALUE + 1 &&
              std::size(kFormatKinds) == ALIGNED_FORMAT_DENSE + 1);

} // namespace aligned::program

#endif // ALIGNED_RUNTIME_PROGRAMFORMAT_H
