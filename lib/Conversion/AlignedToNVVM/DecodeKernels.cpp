// See the header for the idea.
#include "DecodeKernels.h"

#include "FloatKernel.h"
#include "Sidecar.h"
#include "StepKernel.h"

using namespace mlir;
using namespace aligned;

FailureOr<DecodeShape> aligned::checkDecode(DecodeAttentionOp op) {
  FailureOr<DecodeShape> shape = decodeShape(op);
  if (failed(shape))
    return failure();
  if (op.isCertified())
    return op.emitOpError("expected no certificate on this target, got one asked for");
  for (auto [name, cache, planes] : {std::tuple("key", op.getKey(), shape->keyPlanes), std::tuple("value", op.getValue(), shape->valuePlanes)}) {
    Type element = cast<ShapedType>(cache.getType()).getElementType();
    if (shape->denseCopy || (planes && planes.getKind() != FormatKind::Float))
      return op.emitOpError("expected the ") << name << " to be dense or in float planes where attention is not in stages on this target, got "
                                             << (shape->denseCopy ? "a dense copy of " : "") << cache.getType();
    if (!planes && !element.isF16() && !element.isBF16())
      return op.emitOpError("expected a dense ") << name << " of f16 or bf16 on this target, got " << cache.getType();
  }
  return shape;
}

DictionaryAttr aligned::emitDecode(ModuleOp program, const DecodeShape &shape) {
  using Extent = Sidecar::Extent;
  Builder b(program.getContext());
  Sidecar s(b);
  SmallVector<Attribute> launches, arguments;
  auto launch = [&](StringRef what, void (*emit)(ModuleOp, StringRef, const DecodeShape &), ArrayRef<Extent> grid) {
    std::string name = ("decode" + Twine(shape.attention) + "_" + what).str();
    emit(program, name, shape);
    launches.push_back(s.launch(name, grid));
  };
  if (isStaged(shape)) {
    launch("scan", emitScanKernel, {"splits", "rows", 1});
    launch("attend", emitAttendKernel, {"splits", "rows", blocksPerSplit(shape)});
    if (shape.certified)
      launch("certify", emitCertifyKernel, {"splits", "rows", 1});
  } else if (shape.keyPlanes) {
    launch("scores", emitFloatScores, {"splits", "rows"});
    if (!shape.exact())
      launch("probe", emitProbe, {1, "rows"});
    launch("values", emitFloatValues, {"splits", "rows"});
  } else {
    launch("scan", emitDenseScan, {"splits", "rows"});
  }
  if (!isStaged(shape))
    launch("merge", emitMerge, {shape.heads, "rows"});
  for (auto [which, description] : argumentsOf(b, shape))
    arguments.push_back(description);
  return b.getDictionaryAttr({s.field("site", shape.attention), s.field("kv_heads", shape.kvHeads), s.field("heads", shape.heads), s.field("queries", shape.queries),
                              s.field("key_dim", shape.keyDim), s.field("value_dim", shape.valueDim), s.field("query", Sidecar::nameOf(shape.query)),
                              s.field("certified", int64_t(shape.certified)), s.field("key", s.format(shape.keyPlanes, CacheRole::Key, shape.key)),
                              s.field("value", s.format(shape.valuePlanes, CacheRole::Value, shape.value)), s.field("arguments", b.getArrayAttr(arguments)),
                              s.field("launch", b.getArrayAttr(launches))});
}
