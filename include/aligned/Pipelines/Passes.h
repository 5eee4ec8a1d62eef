// Passes that hold the phases of the pipeline together.
#ifndef ALIGNED_PIPELINES_PASSES_H
#define ALIGNED_PIPELINES_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace aligned {
#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

#endif // ALIGNED_PIPELINES_PASSES_H
