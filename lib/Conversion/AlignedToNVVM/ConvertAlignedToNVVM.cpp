// convert-aligned-to-nvvm: kernels out of the stages of decode attention.
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

/// The arguments in the order of StepArgument.
ArrayAttr describeArguments(Builder &b, const DecodeShape &shape) {
  Sidecar s(b);
  const int64_t h = shape.heads, padded = paddedRows(shape), parts = padded / (quadsTogether(shape) * kQuad);
  Type f32 = b.getF32Type(), i32 = b.getI32Type();
  StringRef record = shape.certified ? "scratch" : "record"; // which later kernels read
  auto scratch = [&](StringRef name, Type element, ArrayRef<Sidecar::Extent> extents) { return s.array(name, "scratch", element, extents); };
  SmallVector<Attribute> arguments{s.array("query", "input", shape.query, {"rows", h, shape.keyDim}), s.cache("key"), s.cache("value"), s.scalar("scale", "f32"),
                                   scratch("scores", hasWideScores(shape) ? f32 : b.getF16Type(), {"rows", "tiles", kTile, padded}), scratch("tops", f32, {"rows", "tiles", padded, 2}),
                                   scratch("stats", f32, {"rows", "splits", padded, 4}), scratch("prepared", i32, {"rows", PreparedRow(shape).size}),
                                   scratch("parts", f32, {"rows", "splits", padded, shape.valueDim + kMasses}), scratch("counters", i32, {"rows", parts}),
                                   s.array("key_bits", record, b.getI8Type(), {"rows", "capacity"}), s.array("value_bits", record, b.getI8Type(), {"rows", "capacity"}),
                                   s.array("acc", "output", f32, {"rows", h, shape.valueDim}), s.array("max", "output", f32, {"rows", h}),
                                   s.array("sum", "output", f32, {"rows", h})};
  if (shape.sinkLogits)
    arguments.push_back(s.array("sink_logits", "input", f32, {shape.kvHeads * h / shape.queries}));
  if (MemRefType mask = shape.attnMask) {
    auto extent = [&](int64_t dim, Sidecar::Extent all) { return mask.getDimSize(dim) == 1 ? Sidecar::Extent(1) : all; };
    arguments.push_back(s.array("attn_mask", "input", mask.getElementType(),
                                {extent(0, "batch"), extent(1, shape.kvHeads * h / shape.queries), extent(2, shape.queries), Sidecar::Extent("tokens")}));
  }
  if (shape.certified)
    arguments.append({scratch("finest", f32, {"rows", "capacity", padded}), scratch("steps", f32, {"rows", "splits", padded}), scratch("sums", f32, {"rows", "splits", padded, int64_t(CertifiedSum::Count)}), scratch("done", i32, {"rows"}),
                      s.array("certificate", "output", f32, {"rows", h, kCertificateNumbers})});
  return b.getArrayAttr(arguments);
}

DictionaryAttr emitStep(ModuleOp program, const DecodeShape &shape) {
  Builder b(program.getContext());
  Sidecar s(b);
  SmallVector<Attribute> launches;
  auto launch = [&](StringRef stage, void (*emit)(ModuleOp, StringRef, const DecodeShape &), int64_t blocks) {
    std::string name = ("decode" + Twine(shape.attention) + "_" + stage).str();
    emit(program, name, shape);
    launches.push_back(s.launch(name, {"splits", "rows", blocks}));
  };
  launch("scan", emitScanKernel, 1);
  launch("attend", emitAttendKernel, paddedRows(shape) / (quadsTogether(shape) * kQuad));
  if (shape.certified)
    launch("certify", emitCertifyKernel, 1);
  return b.getDictionaryAttr({s.field("site", shape.attention), s.field("kv_heads", shape.kvHeads), s.field("heads", shape.heads), s.field("queries", shape.queries),
                              s.field("key_dim", shape.keyDim), s.field("value_dim", shape.valueDim), s.field("query", Sidecar::nameOf(shape.query)),
                              s.field("certified", int64_t(shape.certified)), s.field("key", s.format(shape.keyPlanes, CacheRole::Key, shape.key)),
                              s.field("value", s.format(shape.valuePlanes, CacheRole::Value, shape.value)), s.field("arguments", describeArguments(b, shape)),
                              s.field("launch", b.getArrayAttr(launches))});
}

struct ConvertAlignedToNVVMPass : aligned::impl::ConvertAlignedToNVVMBase<ConvertAlignedToNVVMPass> {
  void runOnOperation() override {
    ModuleOp top = getOperation();
    SmallVector<DecodeShape> shapes;
    bool ok = true;
    top.walk([&](Operation *op) {
      if (auto attend = dyn_cast<AttendOp>(op)) {
        shapes.push_back(shapeOf(attend));
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
      const bool isStaged = shape.keyPlanes && shape.keyPlanes.getKind() == FormatKind::Fixed;
      sites.push_back(isStaged ? emitStep(top, shape) : emitDecode(top, shape));
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
