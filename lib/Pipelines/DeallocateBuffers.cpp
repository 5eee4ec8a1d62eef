// aligned-deallocate-buffers: upstream's ownership analysis, kept out of kernels, with results that never share a buffer.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Bufferization/Transforms/Passes.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ViewLikeInterface.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDDEALLOCATEBUFFERS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

bool isBuffer(Type type) { return isa<BaseMemRefType>(type); }

struct AlignedDeallocateBuffersPass : aligned::impl::AlignedDeallocateBuffersBase<AlignedDeallocateBuffersPass> {
  void runOnOperation() override {
    SymbolTableCollection symbols;
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (!mayOwn(function))
        continue;
      for (auto ret : function.getOps<func::ReturnOp>())
        separateResults(ret);
      if (failed(bufferization::deallocateBuffersOwnershipBased(function, bufferization::DeallocationOptions(), symbols)))
        return signalPassFailure();
    }
  }

  /// Buffers are owned by who allocates them, receives them from a call, or has to hand one on.
  static bool mayOwn(func::FuncOp function) {
    auto receives = [](Operation *op) {
      bool source = isa<memref::AllocOp, func::CallOp, func::CallIndirectOp>(op) && llvm::any_of(op->getResultTypes(), isBuffer);
      return source ? WalkResult::interrupt() : WalkResult::advance();
    };
    return llvm::any_of(function.getResultTypes(), isBuffer) || function.walk(receives).wasInterrupted();
  }

  /// Two results in one buffer would be freed twice, which the ownership analysis does not prevent. So what is not known to be a buffer
  /// of its own is cloned: a second view of the same one, and what comes out of control flow.
  static void separateResults(func::ReturnOp ret) {
    if (llvm::count_if(ret.getOperandTypes(), isBuffer) < 2)
      return;
    SmallPtrSet<Value, 4> seen;
    OpBuilder b(ret);
    for (OpOperand &operand : ret->getOpOperands()) {
      if (!isBuffer(operand.get().getType()))
        continue;
      Value root = operand.get();
      while (auto view = root.getDefiningOp<ViewLikeOpInterface>())
        root = view.getViewSource();
      Operation *source = root.getDefiningOp();
      bool known = source ? isa<memref::AllocOp, memref::GetGlobalOp, func::CallOp>(source) : root.getParentBlock()->isEntryBlock();
      if (!known || !seen.insert(root).second)
        operand.set(bufferization::CloneOp::create(b, ret.getLoc(), operand.get()));
    }
  }
};

} // namespace
