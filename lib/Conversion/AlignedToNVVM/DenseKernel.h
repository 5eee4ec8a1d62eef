// Decode attention over dense caches of f16 or bf16: flash decoding, bound by memory.
//
//   scan   each split's softmax state, in one pass over its tokens; a grid of splits x rows
//   merge  that of each query row, from those of its splits; a grid of heads x rows
//
// All bits are read, so nothing has to be known of a row before its values are: unlike planes (DecodeKernel.h), tokens are seen once.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DENSEKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DENSEKERNEL_H

#include "DecodeKernel.h"

namespace aligned {

/// Arguments, the same for both kernels of an attention.
enum class DenseArgument {
  Query,         ///< [rows, heads, key_dim] of the query's type
  Key, Value,    ///< [rows, capacity, key_dim or value_dim] of the cache's type
  Lengths,       ///< i64 [batch]: tokens that are there
  Scale,         ///< f32
  Splits,        ///< i32
  Capacity,      ///< i32
  Statistics,    ///< f32 [rows, splits, heads, 2]: kMaximum and kSum of each split
  Partial,       ///< f32 [rows, splits, heads, value_dim]: outputs of splits
  Acc, Max, Sum, ///< f32 [rows, heads, value_dim], [rows, heads] twice: the softmax state
};
constexpr int64_t kDenseArguments = 12, kDenseStatistics = 2;

class DenseKernel : public GpuKernel {
public:
  DenseKernel(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

protected:
  const DecodeShape &shape;
  Val row, splits;
  Val capacity, tokens; ///< i32; never more tokens than there is room for

  Val argument(DenseArgument which) { return e.wrap(function.getArgument(static_cast<unsigned>(which))); }
  /// This row's part of an array with `count` elements (i64) for each.
  Val rowOf(DenseArgument which, Val count, mlir::Type element) { return e.at(argument(which), element, wide(row) * count); }
  Val rowOf(DenseArgument which, int64_t count, mlir::Type element) { return rowOf(which, wide(number(count)), element); }
  Val ofSplits(DenseArgument which, int64_t count) { return rowOf(which, wide(splits) * count, e.f32()); }
};

/// The kernels, by phase.
void emitDenseScan(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);
void emitDenseMerge(mlir::ModuleOp program, llvm::StringRef name, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DENSEKERNEL_H
