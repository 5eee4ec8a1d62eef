// Updates of caches that attention reads, as graphs write them: new tokens behind the old ones, or in their place.
#ifndef ALIGNED_LIB_RAISE_APPENDS_H
#define ALIGNED_LIB_RAISE_APPENDS_H

#include "mlir/IR/PatternMatch.h"

namespace aligned {

/// Where a key or value is a concatenation of a cache and new tokens, or a cache of which a slice of tokens is replaced, it becomes an `aligned.append`.
void raiseAppend(mlir::RewriterBase &rewriter, mlir::Value cache);

} // namespace aligned

#endif // ALIGNED_LIB_RAISE_APPENDS_H
