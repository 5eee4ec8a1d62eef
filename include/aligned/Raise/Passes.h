// Passes that find attention in foreign graphs.
#ifndef ALIGNED_RAISE_PASSES_H
#define ALIGNED_RAISE_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace aligned {
#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "aligned/Raise/Passes.h.inc"
} // namespace aligned

#endif // ALIGNED_RAISE_PASSES_H
