// What a machine without a compiler needs to run the kernels of a model: PTX, and how to launch it.
#ifndef ALIGNED_CONVERSION_ALIGNEDTONVVM_PROGRAM_H
#define ALIGNED_CONVERSION_ALIGNEDTONVVM_PROGRAM_H

#include "mlir/IR/BuiltinOps.h"

#include <string>

namespace aligned {

struct Program {
  std::string ptx;
  std::string sidecar; ///< JSON, as docs/GPU.md describes it
};

/// Takes both out of a module that went through the whole pipeline with target=nvptx.
mlir::FailureOr<Program> programOf(mlir::ModuleOp module);

} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTONVVM_PROGRAM_H
