// See the header for the idea.
#include "DecodeKernels.h"

#include "DenseKernel.h"
#include "Sidecar.h"

using namespace mlir;
using namespace aligned;

namespace {

/// The arguments in the order of `Argument`.
ArrayAttr describeArguments(Builder &b, const DecodeShape &shape) {
  Sidecar s(b);
  int64_t h = shape.heads, dim = shape.valueDim;
  bool isFloat = DecodeKernel::isFloat(shape);
  using Extents = SmallVector<Sidecar::Extent>;
  // What one kind of storage has no use for is empty.
  auto ofFixed = [&](Extents extents) { return isFloat ? Extents{int64_t(0)} : extents; };
  SmallVector<Attribute> arguments{s.array("query", "input", shape.query, {"rows", h, shape.keyDim}), s.cache("key"), s.cache("value"), s.scalar("scale", "f32"), s.scalar("splits", "i32"),
                         s.array("scores", "scratch", b.getF32Type(), {"rows", h, "capacity"}),
                         s.array("statistics", "scratch", b.getF32Type(), {"rows", "splits", h, kStatistics}),
                         s.array("blocks", "scratch", b.getF32Type(), isFloat ? Extents{"rows", h, "blocks"} : Extents{"rows", h, "blocks", kBlockNumbers}),
                         s.array("key_weights", "scratch", b.getF32Type(), ofFixed({"rows", h})),
                         s.array("histogram", "scratch", b.getI32Type(), ofFixed({"rows", "splits", h, kHistogramNumbers})),
                         s.array("partial", "scratch", b.getF32Type(), {"rows", "splits", h, dim + kSeen}),
                         s.array("plan", "scratch", b.getF32Type(), isFloat ? Extents{"rows", h} : Extents{"rows", h, kPlanNumbers}),
                         s.array("key_layers", isFloat && !shape.certified ? "record" : "scratch", b.getI8Type(), {"rows", "blocks", isFloat ? shape.keyDim : shape.keyDim / 4}),
                         s.array("value_layers", shape.certified ? "scratch" : "record", b.getI8Type(), {"rows", "capacity"}),
                         s.array("acc", "output", b.getF32Type(), {"rows", h, dim}), s.array("max", "output", b.getF32Type(), {"rows", h}),
                         s.array("sum", "output", b.getF32Type(), {"rows", h})};
  if (shape.certified) {
    arguments.push_back(s.array("certificates", "scratch", b.getF32Type(), {"rows", "splits", h, kCertified}));
    arguments.push_back(s.array("certificate", "output", b.getF32Type(), {"rows", h, kCertificateNumbers}));
  }
  return b.getArrayAttr(arguments);
}

/// In the order of `DenseArgument`.
ArrayAttr describeDenseArguments(Builder &b, const DecodeShape &shape) {
  Sidecar s(b);
  int64_t h = shape.heads, dim = shape.valueDim;
  Type f32 = b.getF32Type();
  return b.getArrayAttr({s.array("query", "input", shape.query, {"rows", h, shape.keyDim}), s.array("key", "input", shape.key, {"rows", "capacity", shape.keyDim}),
                         s.array("value", "input", shape.value, {"rows", "capacity", dim}), s.array("lengths", "input", b.getI64Type(), {"batch"}), s.scalar("scale", "f32"),
                         s.scalar("splits", "i32"), s.scalar("capacity", "i32"), s.array("statistics", "scratch", f32, {"rows", "splits", h, kDenseStatistics}),
                         s.array("partial", "scratch", f32, {"rows", "splits", h, dim}), s.array("acc", "output", f32, {"rows", h, dim}), s.array("max", "output", f32, {"rows", h}),
                         s.array("sum", "output", f32, {"rows", h})});
}

} // namespace

DictionaryAttr aligned::emitDecode(ModuleOp program, const DecodeShape &shape) {
  Builder b(program.getContext());
  Sidecar s(b);
  SmallVector<Attribute> launches;
  auto kernel = [&](StringRef phase, auto emit) {
    std::string name = ("decode" + Twine(shape.site) + "_" + phase).str();
    emit(program, name, shape);
    return name;
  };
  auto launch = [&](StringRef name, Sidecar::Extent columns = "splits") { launches.push_back(s.launch(name, {columns, "rows"})); };
  bool isDense = !shape.keyPlanes, isFloat = !isDense && DecodeKernel::isFloat(shape);
  if (isDense) {
    launch(kernel("scan", emitDenseScan));
    launch(kernel("merge", emitDenseMerge), shape.heads);
  } else {
    launch(kernel("scores", isFloat ? emitFloatScores : emitScores));
    if (!shape.exact() && isFloat) {
      launch(kernel("probe", emitProbe), 1);
    } else if (!shape.exact()) {
      std::string look = kernel("look", emitLook), plan = kernel("plan", emitPlan), refine = kernel("refine", emitRefine);
      launch(look);
      launch(plan, shape.heads);
      for (int64_t round = 0; round < shape.rounds; ++round) {
        launch(refine);
        launch(plan, shape.heads);
      }
    }
    launch(kernel("values", isFloat ? emitFloatValues : emitValues));
    launch(kernel("merge", emitMerge), shape.heads);
    if (shape.certified) {
      launch(kernel("certify", emitCertify));
      launch(kernel("conclude", emitConclude), 1);
    }
  }
  return b.getDictionaryAttr({s.field("site", shape.site), s.field("kv_heads", shape.kvHeads), s.field("heads", shape.heads), s.field("key_dim", shape.keyDim),
                              s.field("value_dim", shape.valueDim), s.field("query", Sidecar::nameOf(shape.query)), s.field("certified", int64_t(shape.certified)),
                              s.field("key", s.format(shape.keyPlanes, CacheRole::Key, shape.key)), s.field("value", s.format(shape.valuePlanes, CacheRole::Value, shape.value)),
                              s.field("arguments", isDense ? describeDenseArguments(b, shape) : describeArguments(b, shape)), s.field("launch", b.getArrayAttr(launches))});
}
