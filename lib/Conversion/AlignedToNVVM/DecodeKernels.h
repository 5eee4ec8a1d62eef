// Decode attention on a GPU, for one storage and number of heads.
//
// A block of threads works on a stretch of tokens (a *split*) of one row: a kv head of one batch entry with the query rows that share it (P3).
// What needs all tokens of a row lies between kernels:
//
//   scores  s[h, t] of the full blocks' planes and of the open block, under a budget coarse ones, and statistics of them, of each block and split
//   look    how many tokens are how loud; plane 0 of the loudest rows of V: how large the output is, how full its rows are
//   plan    the coarsest precisions of K and V whose predicted error keeps within the budget; one block of threads for each query row
//   refine  in the blocks whose error matters, what scores gain by more layers of K; then a plan again, at most three times (P5), which costs nothing where none asks for it
//   values  of each row of V what its probability makes visible; each split's share of the output
//   merge   the softmax state of the row
//
// `exact` takes scores, values and merge. Grids depend on capacities and not on tokens, so that a captured step can be replayed while caches grow. Both products are
// 4-bit planes times weights of signed bytes on the integer tensor cores; see DecodeKernel.h.
//
// Float planes (S2) are multiplied on those of floats; FloatKernel.h. The published rule (P1) takes scores, values and merge too, and between the first two
//
//   probe   the margin of the rule: what shows in the output of the most probable rows of V, against V's largest; one block of threads for each row
//
// Dense caches take a scan and a merge; DenseKernel.h.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNELS_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNELS_H

#include "../Common/DecodeShape.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace aligned {

/// Adds the kernels of an attention to `module`, and returns how they are launched, as docs/GPU.md describes it.
mlir::DictionaryAttr emitDecode(mlir::ModuleOp program, const DecodeShape &shape);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_DECODEKERNELS_H
