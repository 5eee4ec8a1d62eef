// aligned-lower-copies: copies of strided buffers as loops instead of calls.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDLOWERCOPIES
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

struct AlignedLowerCopiesPass : aligned::impl::AlignedLowerCopiesBase<AlignedLowerCopiesPass> {
  void runOnOperation() override {
    getOperation().walk([](memref::CopyOp copy) {
      auto isContiguous = [](Value buffer) {
        auto type = dyn_cast<MemRefType>(buffer.getType());
        return type && type.getLayout().isIdentity();
      };
      if (isContiguous(copy.getSource()) && isContiguous(copy.getTarget()))
        return;
      OpBuilder b(copy);
      linalg::CopyOp::create(b, copy.getLoc(), copy.getSource(), copy.getTarget());
      copy.erase();
    });
  }
};

} // namespace
