// The CPU's kernels of the stages of a StoredStep, compiled by themselves.
#ifndef ALIGNED_UNITTESTS_CONVERSION_KERNELS_H
#define ALIGNED_UNITTESTS_CONVERSION_KERNELS_H

#include "../Stages/Step.h"

#include "mlir/IR/TypeUtilities.h"

#include "Conversion/AlignedToCPU/Step.h" // of lib

#include "mlir/ExecutionEngine/ExecutionEngine.h"
#include "llvm/Target/TargetMachine.h"

namespace aligned {

/// They serve every step of the same stage.
class Kernels {
public:
  Kernels(const StoredStep &step, Isa isa);

  void prepare(const StoredStep &step, int64_t row, Buffers &b) const { call("prepare", step, row, 0, b); }
  void scan(const StoredStep &step, int64_t row, Buffers &b) const {
    for (int64_t split = 0; split < step.splits(); ++split)
      call("scan", step, row, split, b);
  }
  /// With `record` what is read of each token is written to the buffers, too.
  void attend(const StoredStep &step, int64_t row, Buffers &b, bool record = true) const;

private:
  mlir::MLIRContext context;
  std::unique_ptr<llvm::TargetMachine> machine;
  std::unique_ptr<mlir::ExecutionEngine> engine;

  KernelShape shapeOf(const StoredStep &step, Isa isa);
  void compile(const KernelShape &shape);
  void call(const char *stage, const StoredStep &step, int64_t row, int64_t split, Buffers &b) const;
};

} // namespace aligned

#endif // ALIGNED_UNITTESTS_CONVERSION_KERNELS_H
