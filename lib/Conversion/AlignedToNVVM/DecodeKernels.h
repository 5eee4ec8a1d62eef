// Decode attention on a GPU: which kernels there are, and in what grids.
//
// Fixed planes, in stages:
//
//   scan, attend, certify                                                                 see StepKernel.h
//
// Dense caches of f16 or bf16, flash decoding. All bits are read, so nothing has to be known of a row before its values are: tokens are seen once.
//
//   scan    each split's softmax state, in one pass over its tokens                       grid splits x rows        DenseScanKernel.cpp
//   merge   that of each query row, from those of its splits                              grid query rows x rows    DecodeKernel.cpp
//
// Float planes (S8), under the published rule (P1) or `exact`:
//
//   scores  of the planes of K, as far as the rule reads them; maxima and sums            grid splits x rows        FloatScoresKernel.cpp
//   probe   the margin of the rule, from the most probable rows of V; not of `exact`      grid 1 x rows             ProbeKernel.cpp
//   values  of each row of V what its probability makes visible                           grid splits x rows        FloatValuesKernel.cpp
//   merge
//
// Grids don't depend on how many tokens there are, so that a captured step can be replayed while caches grow.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNELS_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNELS_H

#include "../Common/DecodeShape.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace aligned {

/// What the kernels of an attention that is not in stages are asked for; a diagnostic where they can't do it. For stages there is checkStep.
mlir::FailureOr<DecodeShape> checkDecode(DecodeAttentionOp op);
/// Adds the kernels of an attention to `program`, and returns how they are launched, as docs/GPU.md describes it.
mlir::DictionaryAttr emitDecode(mlir::ModuleOp program, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNELS_H
