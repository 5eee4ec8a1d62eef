// Passes on `aligned` ops that stay above any target.
#ifndef ALIGNED_TRANSFORMS_PASSES_H
#define ALIGNED_TRANSFORMS_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace aligned {
#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

#endif // ALIGNED_TRANSFORMS_PASSES_H
