// aligned-bufferize: upstream's one-shot bufferization, told what caches are.
#include "aligned/Pipelines/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Bufferization/Transforms/OneShotAnalysis.h"
#include "mlir/Dialect/Bufferization/Transforms/OneShotModuleBufferize.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDBUFFERIZE
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct AlignedBufferizePass : aligned::impl::AlignedBufferizeBase<AlignedBufferizePass> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    if (failed(readSizesEarly(module)) || failed(bufferize(module)) || failed(forkCaches(module)))
      signalPassFailure();
  }

  /// How many tokens there are is said by the cache itself, which an append changes. Upstream holds that asking for an extent reads no memory; so it is asked where
  /// the cache is made, ahead of every append.
  static LogicalResult readSizesEarly(ModuleOp module) {
    SmallVector<tensor::DimOp> dims;
    module.walk([&](tensor::DimOp dim) {
      if (getPlanes(dim.getSource().getType()))
        dims.push_back(dim);
    });
    for (tensor::DimOp dim : dims) {
      std::optional<int64_t> number = dim.getConstantIndex();
      if (!number)
        return dim.emitOpError("expected a constant dimension of a cache, got a variable one");
      OpBuilder b(dim);
      b.setInsertionPointAfterValue(dim.getSource());
      dim.replaceAllUsesWith(tensor::DimOp::create(b, dim.getLoc(), dim.getSource(), *number).getResult());
      dim.erase();
    }
    return success();
  }

  static LogicalResult bufferize(ModuleOp module) {
    bufferization::OneShotBufferizationOptions options;
    options.bufferizeFunctionBoundaries = true;
    options.allowReturnAllocsFromLoops = true;
    // Contiguous at function boundaries, so that C callers know the layout from the type.
    options.setFunctionBoundaryTypeConversion(bufferization::LayoutMapOption::IdentityLayoutMap);
    options.defaultMemorySpaceFn = [](TensorType type) -> std::optional<Attribute> {
      auto ranked = dyn_cast<RankedTensorType>(type);
      return ranked ? ranked.getEncoding() : Attribute();
    };
    bufferization::BufferizationState state;
    return bufferization::runOneShotModuleBufferize(module, options, state);
  }

  /// Where a cache has to be copied upstream makes room and copies, which is one step for the runtime.
  static LogicalResult forkCaches(ModuleOp module) {
    WalkResult walked = module.walk([](memref::CopyOp copy) {
      if (!getPlanes(copy.getTarget().getType()))
        return WalkResult::advance();
      auto alloc = copy.getTarget().getDefiningOp<memref::AllocOp>();
      bool isNew = alloc && llvm::all_of(alloc->getUsers(), [&](Operation *user) {
                     Operation *inBlock = copy->getBlock()->findAncestorOpInBlock(*user);
                     return user == copy || (inBlock && copy->isBeforeInBlock(inBlock));
                   });
      if (!isNew) {
        copy.emitOpError("expected a copy of a cache to make a new cache");
        return WalkResult::interrupt();
      }
      OpBuilder b(copy);
      Value source = copy.getSource();
      if (source.getType() != alloc.getType())
        source = memref::CastOp::create(b, copy.getLoc(), alloc.getType(), source);
      alloc.replaceAllUsesWith(ForkOp::create(b, copy.getLoc(), source).getResult());
      copy.erase();
      alloc.erase();
      return WalkResult::advance();
    });
    return failure(walked.wasInterrupted());
  }
};

} // namespace
