// Appends to caches in device memory: what Cache.cpp does on the host, bit for bit, as kernels.
//
//   measure  of caches whose bias is not settled yet, bf16 and f32: the largest value that comes (S3)
//   pack     a block of threads for each tile that the append touches, of each row: tokens become planes, codes, and what sums and counts know of them
//   advance  medians of scales, and the cache has its new length
//
// and to take tokens back, whose number is then negative in `counts`:
//
//   forget   as pack: takes tokens out of sums and counts
//   unlist   the list of tokens kept aside without those that go
//   advance
//
// A warp takes a token: its lanes rotate it and find its scale. What it is cut into lies in shared memory until all of a tile's tokens are there; then planes are
// written by words. Everything that blocks of threads have in common is a sum or a maximum of integers, in any order. Floats are added in the host's
// order, and never fused.
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
