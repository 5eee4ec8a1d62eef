// convert-aligned-to-nvvm: kernels of decode attention and of appends in the place of the module, and what describes them beside it.
#include "aligned/Conversion/AlignedToNVVM/Passes.h"

#include "AppendKernel.h"
#include "DecodeKernels.h"
#include "Sidecar.h"
#include "StepKernel.h"

#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

namespace aligned {
#define GEN_PASS_DEF_CONVERTALIGNEDTONVVM
#include "aligned/Conversion/AlignedToNVVM/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct ConvertAlignedToNVVMPass : aligned::impl::ConvertAlignedToNVVMBase<ConvertAlignedToNVVMPass> {
  void runOnOperation() override {
    ModuleOp top = getOperation();
    SmallVector<DecodeShape> shapes;
    bool ok = true;
    top.walk([&](Operation *op) {
      if (auto attend = dyn_cast<AttendOp>(op)) {
        shapes.push_back(shapeOf(attend));
        if (auto prepare = attend.getFacts().getDefiningOp<PrepareOp>())
          shapes.back().toleranceFactor = bool(prepare.getToleranceFactor());
        ok &= succeeded(checkStep(op, shapes.back()));
      } else if (auto decode = dyn_cast<DecodeAttentionOp>(op)) {
        FailureOr<DecodeShape> shape = checkDecode(decode);
        ok &= succeeded(shape);
        if (succeeded(shape))
          shapes.push_back(*shape);
      }
    });
    if (!ok)
      return signalPassFailure();
    for (Operation &op : llvm::make_early_inc_range(*top.getBody()))
      op.erase();
    Builder b(&getContext());
    SmallVector<Attribute> sites, appends, list;
    SmallVector<AppendShape> caches; // each kind once, whatever is resident
    for (const DecodeShape &shape : shapes) {
      sites.push_back(emitDecode(top, shape));
      if (!shape.keyPlanes)
        continue;
      for (AppendShape cache : {AppendShape{shape.keyPlanes, shape.key, shape.keyDim}, AppendShape{shape.valuePlanes, shape.value, shape.valueDim}}) {
        cache.split = PlanesAttr::get(&getContext(), cache.split.getKind(), cache.split.getWidths(), cache.split.getRole());
        if (llvm::none_of(caches, [&](const AppendShape &known) { return known.split == cache.split && known.element == cache.element && known.headDim == cache.headDim; }))
          caches.push_back(cache);
      }
    }
    for (auto [number, cache] : llvm::enumerate(caches))
      appends.push_back(emitAppend(top, ("append" + Twine(number)).str(), cache));
    Sidecar s(b);
    top.walk([&](gpu::GPUFuncOp kernel) {
      list.push_back(b.getDictionaryAttr({s.field("name", kernel.getName()), s.field("threads", kernel.getKnownBlockSizeAttr().asArrayRef()[0])}));
    });
    top->setAttr(gpu::GPUDialect::getContainerModuleAttrName(), b.getUnitAttr());
    top->setAttr(kProgramName, b.getDictionaryAttr({s.version(), s.field("kernels", b.getArrayAttr(list)), s.field("decode", b.getArrayAttr(sites)),
                                                    s.field("append", b.getArrayAttr(appends))}));
  }
};

} // namespace
