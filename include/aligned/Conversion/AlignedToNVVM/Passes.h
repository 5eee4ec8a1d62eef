// The lowering to NVIDIA GPUs.
#ifndef ALIGNED_CONVERSION_ALIGNEDTONVVM_PASSES_H
#define ALIGNED_CONVERSION_ALIGNEDTONVVM_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace aligned {
#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "aligned/Conversion/AlignedToNVVM/Passes.h.inc"
} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTONVVM_PASSES_H
