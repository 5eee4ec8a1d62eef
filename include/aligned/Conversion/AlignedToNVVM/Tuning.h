// What only a measurement can choose well of GPU programs: numbers that change times, and no result but for rounding.
//
// There is a row for each family of chips. It goes into the sidecar, where it can be changed without compiling again.
#ifndef ALIGNED_CONVERSION_ALIGNEDTONVVM_TUNING_H
#define ALIGNED_CONVERSION_ALIGNEDTONVVM_TUNING_H

#include "mlir/Support/LLVM.h"

namespace aligned {

struct Tuning {
  int64_t blocksPerMultiprocessor = 2; ///< blocks of threads that grids reckon with
  int64_t tilesPerSplit = 4;           ///< no more splits than have as many
  int64_t mostSplits = 128;            ///< of a row
  bool chained = false;                ///< whether kernels are brought to the multiprocessors while the ones before them end
};

/// The row of a chip's family, that of no family for what is no chip.
const Tuning &tuningFor(llvm::StringRef chip);

} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTONVVM_TUNING_H
