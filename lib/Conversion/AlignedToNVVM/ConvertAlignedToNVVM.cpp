// convert-aligned-to-nvvm: kernels out of decode attention.
#include "aligned/Conversion/AlignedToNVVM/Passes.h"

#include "AppendKernel.h"
#include "DecodeKernels.h"
#include "Sidecar.h"

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

constexpr int64_t kMostRounds = 16;

/// What the kernels can't do, said of the op.
FailureOr<DecodeShape> check(DecodeAttentionOp op) {
  FailureOr<DecodeShape> shape = decodeShape(op);
  if (failed(shape))
    return failure();
  if (shape->keyPlanes)
    return shape;
  for (auto [name, element, type] : {std::tuple("key", shape->key, op.getKey().getType()), std::tuple("value", shape->value, op.getValue().getType())})
    if (!element.isF16() && !element.isBF16())
      return op.emitOpError("expected a dense ") << name << " of f16 or bf16 on this target, got " << type;
  if (shape->certified)
    return op.emitOpError("expected no certificate over dense caches on this target, got one asked for");
  return shape;
}

struct ConvertAlignedToNVVMPass : aligned::impl::ConvertAlignedToNVVMBase<ConvertAlignedToNVVMPass> {
  using ConvertAlignedToNVVMBase::ConvertAlignedToNVVMBase;

  void runOnOperation() override {
    ModuleOp top = getOperation();
    SmallVector<DecodeShape> shapes;
    bool ok = true;
    if (rounds < 0 || rounds > kMostRounds) {
      top.emitError("expected from 0 to ") << kMostRounds << " rounds, got " << rounds.getValue();
      return signalPassFailure();
    }
    top.walk([&](DecodeAttentionOp op) {
      FailureOr<DecodeShape> shape = check(op);
      ok &= succeeded(shape);
      if (failed(shape))
        return;
      shape->rounds = rounds;
      shapes.push_back(*shape);
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
    top->setAttr(kProgramName, b.getDictionaryAttr({s.field("version", 1), s.field("kernels", b.getArrayAttr(list)), s.field("decode", b.getArrayAttr(sites)),
                                                    s.field("append", b.getArrayAttr(appends))}));
  }
};

} // namespace
