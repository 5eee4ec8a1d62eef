// The sidecar in memory. aligned/Runtime/ProgramFormat.h says what is in it; everything that is needed later is checked when the text is read.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_SIDECAR_H
#define ALIGNED_LIB_RUNTIME_CUDA_SIDECAR_H

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/ProgramFormat.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace aligned::cuda {

using program::Kind;
using program::Name;
using program::Symbol;

/// What symbols are at a launch.
struct Symbols {
  int64_t batch = 0, kvHeads = 0, capacity = 0, splits = 1, touched = 1, tokens = 0;
};

struct Extent {
  std::optional<Symbol> symbol;
  int64_t number = 0; ///< where there is no symbol

  int64_t at(const Symbols &symbols) const;
};

struct Argument {
  std::string name, type;
  Kind kind = Kind::Input;
  std::optional<Name> meaning; ///< none of scratch that no name is for, and of sizes
  Extent size;                 ///< what a scalar without meaning tells
  int64_t elementBytes = 0;
  std::vector<Extent> shape;

  /// Whether it says which bits were read.
  bool records() const { return meaning == Name::KeyBits || meaning == Name::ValueBits; }
  /// Negative where sizes overflow.
  int64_t bytes(const Symbols &symbols) const;
};

struct Launch {
  int64_t kernel = 0; ///< in Sidecar::kernels
  Extent grid[program::kMostGridDimensions] = {{{}, 1}, {{}, 1}, {{}, 1}};
};

struct KernelEntry {
  std::string name;
  int64_t threads = 0;
  int64_t shared = 0; ///< bytes of dynamic shared memory
};

struct Site {
  int64_t number = 0, kvHeads = 0, heads = 0, queries = 0, keyDim = 0, valueDim = 0;
  int32_t query = 0; ///< aligned_element
  bool certified = false;
  aligned_format key = {}, value = {};
  std::vector<Argument> arguments;
  std::vector<Launch> launches;

  /// Whether K and V are arrays, and no caches.
  bool isDense() const { return key.kind == ALIGNED_FORMAT_DENSE; }
  /// The argument, or null.
  const Argument *find(Name name) const;
};

struct Append {
  aligned_format format = {};
  int64_t headDim = 0;
  std::vector<Argument> arguments;
  std::vector<Launch> launches; ///< that append
  std::vector<Launch> drops;    ///< that take the newest tokens back
};

/// What only a measurement can choose well of launches. These are the values of programs that say nothing of it.
struct Tuning {
  int64_t blocksPerMultiprocessor = 2; ///< blocks of threads that grids reckon with
  int64_t tilesPerSplit = 4;           ///< no more splits than have as many
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

/// Says in `error` what is missing or wrong, and where.
std::optional<Sidecar> parseSidecar(const std::string &text, std::string &error);

bool sameFormat(const aligned_format &a, const aligned_format &b);
/// "key fixed<4,4,8> of f16"
std::string formatText(const aligned_format &format);

} // namespace aligned::cuda

#endif
