// The analysis of precision as passes.
#ifndef ALIGNED_ANALYSIS_PASSES_H
#define ALIGNED_ANALYSIS_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace aligned {
#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "aligned/Analysis/Passes.h.inc"
} // namespace aligned

#endif // ALIGNED_ANALYSIS_PASSES_H
