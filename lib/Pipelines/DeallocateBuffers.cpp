// aligned-deallocate-buffers: upstream's ownership analysis, kept out of kernels.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Bufferization/Transforms/Passes.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/SymbolTable.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDDEALLOCATEBUFFERS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

struct AlignedDeallocateBuffersPass : aligned::impl::AlignedDeallocateBuffersBase<AlignedDeallocateBuffersPass> {
  void runOnOperation() override {
    SymbolTableCollection symbols;
    for (auto function : getOperation().getOps<func::FuncOp>())
      if (mayOwn(function) &&
          failed(bufferization::deallocateBuffersOwnershipBased(function, bufferization::DeallocationOptions(), symbols)))
        return signalPassFailure();
  }

  /// Buffers are owned by who allocates them, receives them from a call, or has to hand one on.
  static bool mayOwn(func::FuncOp function) {
    auto anyBuffer = [](TypeRange types) { return llvm::any_of(types, llvm::IsaPred<BaseMemRefType>); };
    return anyBuffer(function.getResultTypes()) ||
           function
               .walk([&](Operation *op) {
                 bool source = isa<memref::AllocOp, func::CallOp, func::CallIndirectOp>(op) && anyBuffer(op->getResultTypes());
                 return source ? WalkResult::interrupt() : WalkResult::advance();
               })
               .wasInterrupted();
  }
};

} // namespace
