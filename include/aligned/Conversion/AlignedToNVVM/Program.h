// What a machine without a compiler needs to run the kernels of a model: PTX, and how to launch it.
#ifndef ALIGNED_CONVERSION_ALIGNEDTONVVM_PROGRAM_H
#define ALIGNED_CONVERSION_ALIGNEDTONVVM_PROGRAM_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"

#include <string>

namespace aligned {

struct Program {
  std::string ptx;
  std::string sidecar; ///< JSON, as docs/GPU.md describes it
};

/// The version of PTX to write for a chip, such as 78: `wanted`, or the first that knows the chip where that is 0. 0 with a diagnostic for a chip that the kernels can't run on,
/// and a version that the chip or this compiler does not know: the code generator would end the process over them.
int64_t ptxVersionFor(llvm::StringRef chip, int64_t wanted, llvm::function_ref<mlir::InFlightDiagnostic()> emitError);

/// 90 for sm_90 and sm_90a; 0 for what is no chip.
int64_t capabilityOf(llvm::StringRef chip);

/// The newest chip that kernels can be compiled for and a device of this compute capability (90 for 9.0) runs; that of the oldest where there is none.
llvm::StringRef chipFor(int64_t capability);

/// Takes both out of a module that went through the whole pipeline with target=nvptx.
mlir::FailureOr<Program> programOf(mlir::ModuleOp module);

} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTONVVM_PROGRAM_H
