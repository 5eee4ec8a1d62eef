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
    readSizesEarly(module);
    if (failed(bufferize(module)) || failed(forkCaches(module)))
      signalPassFailure();
  }

  /// How many tokens there are is said by the cache itself, which an append changes. Upstream holds that asking for an extent reads no memory; so it is asked where
  /// the cache is made, ahead of every append; of a dimension that only the program knows all extents are.
  static void readSizesEarly(ModuleOp module) {
    SmallVector<tensor::DimOp> dims;
    module.walk([&](tensor::DimOp dim) {
      if (getPlanes(dim.getSource().getType()))
        dims.push_back(dim);
    });
    for (tensor::DimOp dim : dims) {
      OpBuilder early(dim), b(dim);
      early.setInsertionPointAfterValue(dim.getSource());
      auto extent = [&](int64_t number) -> Value { return tensor::DimOp::create(early, dim.getLoc(), dim.getSource(), number); };
      Value size;
      if (std::optional<int64_t> number = dim.getConstantIndex()) {
        size = extent(*number);
      } else {
        for (int64_t number = 0; number < dim.getSource().getType().getRank(); ++number) {
          Value is = arith::CmpIOp::create(b, dim.getLoc(), arith::CmpIPredicate::eq, dim.getIndex(), arith::ConstantIndexOp::create(b, dim.getLoc(), number));
          size = size ? Value(arith::SelectOp::create(b, dim.getLoc(), is, extent(number), size)) : extent(number);
        }
      }
      dim.replaceAllUsesWith(size);
      dim.erase();
    }
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
