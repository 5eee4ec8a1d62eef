// See the header.
#include "Arguments.h"

#include "Sidecar.h"
#include "StepKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMTypes.h"

using namespace mlir;
using namespace aligned;

SmallVector<std::pair<Argument, Attribute>> aligned::argumentsOf(Builder &b, const DecodeShape &shape) {
  using Extent = Sidecar::Extent;
  Sidecar s(b);
  const int64_t h = shape.heads, dim = shape.valueDim, queryHeads = shape.kvHeads * h / shape.queries;
  const bool staged = isStaged(shape);
  Type f32 = b.getF32Type(), i32 = b.getI32Type(), i8 = b.getI8Type();
  SmallVector<std::pair<Argument, Attribute>> all;
  auto add = [&](Argument which, Attribute description) { all.push_back({which, description}); };
  auto array = [&](Argument which, StringRef name, StringRef kind, Type element, ArrayRef<Extent> extents) { add(which, s.array(name, kind, element, extents)); };
  auto scratch = [&](Argument which, StringRef name, Type element, ArrayRef<Extent> extents) { array(which, name, "scratch", element, extents); };

  array(Argument::Query, "query", "input", shape.query, {"rows", h, shape.keyDim});
  if (shape.keyPlanes) {
    add(Argument::Key, s.cache("key"));
    add(Argument::Value, s.cache("value"));
  } else {
    array(Argument::Key, "key", "input", shape.key, {"rows", "capacity", shape.keyDim});
    array(Argument::Value, "value", "input", shape.value, {"rows", "capacity", dim});
    array(Argument::Lengths, "lengths", "input", b.getI64Type(), {"batch"});
    add(Argument::Capacity, s.scalar("capacity", "i32"));
  }
  add(Argument::Scale, s.scalar("scale", "f32"));
  add(Argument::Finished, s.scalar("finished", "i32"));
  if (shape.dynamicSoftcap)
    add(Argument::Softcap, s.scalar("softcap", "f32"));
  if (shape.mask && shape.mask.hasDynamicWindow())
    add(Argument::Window, s.scalar("window", "i32"));
  if (shape.mask && shape.mask.hasDynamicSinks())
    add(Argument::Sinks, s.scalar("sinks", "i32"));
  if (shape.later)
    add(Argument::Later, s.scalar("later", "i32"));
  if (shape.toleranceFactor)
    add(Argument::ToleranceFactor, s.scalar("tolerance_factor", "f32"));
  if (!staged) {
    add(Argument::Splits, s.scalar("splits", "i32"));
    scratch(Argument::Statistics, "statistics", f32, {"rows", "splits", h, kStatistics});
    scratch(Argument::Partial, "partial", f32, {"rows", "splits", h, dim});
  }
  if (staged) {
    const int64_t padded = paddedRows(shape);
    StringRef record = shape.certified ? "scratch" : "record"; // which later kernels read
    scratch(Argument::TileScores, "scores", scoreType(b, shape), {"rows", "tiles", kTile, padded});
    scratch(Argument::TileTops, "tops", f32, {"rows", "tiles", padded, 2});
    scratch(Argument::Stats, "stats", f32, {"rows", "splits", padded, 4});
    scratch(Argument::Prepared, "prepared", i32, {"rows", PreparedRow(shape).size});
    scratch(Argument::Parts, "parts", f32, {"rows", "splits", padded, dim + kMasses});
    scratch(Argument::Counters, "counters", i32, {"rows", blocksPerSplit(shape)});
    array(Argument::KeyBits, "key_bits", record, i8, {"rows", "capacity"});
    array(Argument::ValueBits, "value_bits", record, i8, {"rows", "capacity"});
  } else if (shape.keyPlanes) {
    scratch(Argument::Scores, "scores", f32, {"rows", h, "capacity"});
    if (!shape.exact()) {
      scratch(Argument::Tops, "tops", f32, {"rows", h, "tiles"});
      scratch(Argument::Margins, "margins", i32, {"rows", h});
    }
    array(Argument::KeyBits, "key_bits", "record", i8, {"rows", "tiles", shape.keyDim});
    array(Argument::ValueBits, "value_bits", "record", i8, {"rows", "capacity"});
  }
  array(Argument::Acc, "acc", "output", f32, {"rows", h, dim});
  array(Argument::Max, "max", "output", f32, {"rows", h});
  array(Argument::Sum, "sum", "output", f32, {"rows", h});
  if (shape.sinkLogits)
    array(Argument::SinkLogits, "sink_logits", "input", f32, {queryHeads});
  if (MemRefType mask = shape.attnMask) {
    auto extent = [&](int64_t dim, Extent all) { return mask.getDimSize(dim) == 1 ? Extent(1) : all; };
    array(Argument::AttnMask, "attn_mask", "input", mask.getElementType(), {extent(0, "batch"), extent(1, queryHeads), extent(2, shape.queries), "tokens"});
  }
  if (shape.certified) {
    const int64_t padded = paddedRows(shape);
    scratch(Argument::Finest, "finest", f32, {"rows", "capacity", padded});
    scratch(Argument::Steps, "steps", f32, {"rows", "splits", padded});
    scratch(Argument::Certified, "sums", f32, {"rows", "splits", padded, int64_t(CertifiedSum::Count)});
    scratch(Argument::Done, "done", i32, {"rows"});
    array(Argument::Certificate, "certificate", "output", f32, {"rows", h, kCertificateNumbers});
  }
  return all;
}

Type aligned::typeOf(Builder &b, Argument which) {
  switch (which) {
  case Argument::Scale:
  case Argument::Softcap:
  case Argument::ToleranceFactor:
    return b.getF32Type();
  case Argument::Finished:
  case Argument::Window:
  case Argument::Sinks:
  case Argument::Later:
  case Argument::Splits:
  case Argument::Capacity:
    return b.getI32Type();
  default:
    break;
  }
  return LLVM::LLVMPointerType::get(b.getContext(), 1);
}
