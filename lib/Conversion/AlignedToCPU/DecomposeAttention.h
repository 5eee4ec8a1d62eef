// Decode attention over dense tensors that no kernel takes as it is.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_DECOMPOSEATTENTION_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_DECOMPOSEATTENTION_H

#include "mlir/IR/PatternMatch.h"

namespace aligned {

/// Pads it for a kernel, or writes it out in linalg, on tensors.
void populateAttentionDecomposition(mlir::RewritePatternSet &patterns);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_DECOMPOSEATTENTION_H
