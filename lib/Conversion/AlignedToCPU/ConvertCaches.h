// Caches as objects of the runtime.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_CONVERTCACHES_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_CONVERTCACHES_H

#include "mlir/Transforms/DialectConversion.h"

namespace aligned {

/// A buffer in plane storage becomes a pointer to an `aligned_cache`, what is done with it a call of the runtime or a look into the struct. Signatures, calls, branches
/// and structured control flow follow.
void populateCacheConversion(mlir::TypeConverter &types, mlir::RewritePatternSet &patterns, mlir::ConversionTarget &target);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_CONVERTCACHES_H
