// Appends to caches in device memory: what Cache.cpp does on the host, as kernels.
//
//   split    a block of threads for each block of 64 tokens that the append touches, of each row: blocks that are full now are cut into planes, what is left stays
//            open. Maxima and what is not finite go straight to the cache, means of blocks to `sums`
//   means    one for each row of values: the channels' means with the new blocks, in their order
//   advance  the cache has its new length
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_APPENDKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_APPENDKERNEL_H

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace aligned {

/// What the kernels are specialised for.
struct AppendShape {
  PlanesAttr split;
  mlir::Type element;
  int64_t headDim;
};

/// Adds the kernels to `module`, named after `prefix`, and returns how they are launched, as docs/GPU.md describes it.
mlir::DictionaryAttr emitAppend(mlir::ModuleOp program, llvm::StringRef prefix, const AppendShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_APPENDKERNEL_H
