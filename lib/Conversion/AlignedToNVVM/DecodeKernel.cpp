// See the header for the idea.
#include "DecodeKernel.h"

#include "Sidecar.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cmath>
#include <cstddef>

using namespace mlir;
using namespace aligned;

SmallVector<std::pair<Argument, Attribute>> aligned::argumentsOf(Builder &b, const DecodeShape &shape) {
  Sidecar s(b);
  const int64_t h = shape.heads, dim = shape.valueDim, queryHeads = shape.kvHeads * h / shape.queries;
  Type f32 = b.getF32Type();
  SmallVector<std::pair<Argument, Attribute>> all;
  auto scratch = [&](StringRef name, Type element, ArrayRef<Sidecar::Extent> extents) { return s.array(name, "scratch", element, extents); };
  all.push_back({Argument::Query, s.array("query", "input", shape.query, {"rows", h, shape.keyDim})});
  if (!shape.keyPlanes) {
    all.push_back({Argument::Key, s.array("key", "input", shape.key, {"rows", "capacity", shape.keyDim})});
    all.push_back({Argument::Value, s.array("value", "input", shape.value, {"rows", "capacity", dim})});
    all.push_back({Argument::Lengths, s.array("lengths", "input", b.getI64Type(), {"batch"})});
    all.push_back({Argument::Capacity, s.scalar("capacity", "i32")});
  } else {
    all.push_back({Argument::Key, s.cache("key")});
    all.push_back({Argument::Value, s.cache("value")});
    all.push_back({Argument::Scores, scratch("scores", f32, {"rows", h, "capacity"})});
    if (!shape.exact()) {
      all.push_back({Argument::Tops, scratch("tops", f32, {"rows", h, "tiles"})});
      all.push_back({Argument::Margins, scratch("margins", b.getI32Type(), {"rows", h})});
    }
    all.push_back({Argument::KeyBits, s.array("key_bits", "record", b.getI8Type(), {"rows", "tiles", shape.keyDim})});
    all.push_back({Argument::ValueBits, s.array("value_bits", "record", b.getI8Type(), {"rows", "capacity"})});
  }
  all.push_back({Argument::Scale, s.scalar("scale", "f32")});
  all.push_back({Argument::Splits, s.scalar("splits", "i32")});
  if (shape.sinkLogits)
    all.push_back({Argument::SinkLogits, s.array("sink_logits", "input", f32, {queryHeads})});
  if (MemRefType mask = shape.attnMask) {
    using Extent = Sidecar::Extent;
    auto extent = [&](int64_t dim, Extent all) { return mask.getDimSize(dim) == 1 ? Extent(1) : all; };
    all.push_back({Argument::AttnMask,
                   s.array("attn_mask", "input", mask.getElementType(), {extent(0, "batch"), extent(1, queryHeads), extent(2, shape.queries), Extent("tokens")})});
  }
  all.push_back({Argument::Statistics, scratch("statistics", f32, {"rows", "splits", h, kStatistics})});
  all.push_back({Argument::Partial, scratch("partial", f32, {"rows", "splits", h, dim})});
  all.push_back({Argument::Acc, s.array("acc", "output", f32, {"rows", h, dim})});
  all.push_back({Argument::Max, s.array("max", "output", f32, {"rows", h})});
  all.push_back({Argument::Sum, s.array("sum", "output", f32, {"rows", h})});
  return all;
}

static SmallVector<Type> argumentTypes(MLIRContext *context, const DecodeShape &shape) {
  Builder b(context);
  SmallVector<Type> types;
  for (auto [which, description] : argumentsOf(b, shape))
    types.push_back(which == Argument::Scale                                        ? Type(b.getF32Type())
                    : which == Argument::Splits || which == Argument::Capacity ? b.getI32Type()
                                                                                    : Type(LLVM::LLVMPointerType::get(context, 1)));
  return types;
}

DecodeKernel::DecodeKernel(ModuleOp program, StringRef name, const DecodeShape &shape, int64_t warps)
    : GpuKernel(program, name, warps, argumentTypes(program.getContext(), shape)), shape(shape) {
  for (auto [which, description] : argumentsOf(e.types, shape))
    order.push_back(which);
  row = e.block(gpu::Dimension::y);
  batch = row / shape.kvHeads;
  kvHead = row % shape.kvHeads;
  splits = argument(Argument::Splits);
  g = shrLogical(lane, number(2));
  t = lane & 3;
  if (shape.keyPlanes) {
    tokens = tokensOf(argument(Argument::Key), batch);
  } else { // never more than there is room for, whatever the device's memory says
    Val length = e.loadGlobal(argument(Argument::Lengths), e.i64(), batch);
    tokens = convert(max(min(length, wide(argument(Argument::Capacity))), 0), e.i32());
  }
}

Val DecodeKernel::argument(Argument which) { return e.wrap(function.getArgument(llvm::find(order, which) - order.begin())); }

Val DecodeKernel::rowOf(Argument which, Val count, Type element) { return e.at(argument(which), element ? element : e.f32(), wide(row) * wide(count)); }

//===----------------------------------------------------------------------===//
// What query rows see
//===----------------------------------------------------------------------===//

/// What the operand that is a mask adds to a score; -inf where it says no.
Val DecodeKernel::addend(Val h, Val token) {
  MemRefType mask = shape.attnMask;
  h = clamped(h);
  Val tokensOfMask = shape.keyPlanes ? field(argument(Argument::Key), offsetof(aligned_cache, tokens)) : wide(argument(Argument::Capacity)), line = e.constant(e.i64(), 0);
  const int64_t group = shape.heads / shape.queries;
  const std::pair<Val, int64_t> places[] = {{batch, 1}, {kvHead * group + h / shape.queries, shape.kvHeads * group}, {h % shape.queries, shape.queries}};
  for (auto [dim, place] : llvm::enumerate(places))
    if (mask.getDimSize(dim) != 1)
      line = line * double(place.second) + wide(place.first);
  bool isFlag = mask.getElementType().isInteger(1);
  Type element = isFlag ? e.i8() : mask.getElementType();
  Val loaded = e.loadGlobal(e.at(argument(Argument::AttnMask), element, line * tokensOfMask), element, token);
  return isFlag ? select(loaded != 0, real(0), real(-INFINITY)) : convert(loaded, e.f32());
}

Val DecodeKernel::isSeen(Val h, Val token) {
  Val seen = isInSight(h, token);
  return shape.attnMask ? seen & (addend(h, token) != -INFINITY) : seen;
}

Val DecodeKernel::underMask(Val score, Val h, Val token) {
  Val more = addend(h, token);
  return select(more == -INFINITY, more, score + more); // what it hides may be NaN
}

Val DecodeKernel::seenScore(Val score, Val h, Val token) {
  if (shape.softcap)
    score = softcapped(score, shape.softcap);
  if (shape.attnMask)
    score = underMask(score, h, token);
  return shape.mask ? select(isInSight(h, token), score, real(-INFINITY)) : score;
}

//===----------------------------------------------------------------------===//
// Splits together
//===----------------------------------------------------------------------===//

Vals DecodeKernel::statisticsOf(Val h) {
  auto of = [&](Val s, Statistic which) { return get(ofSplit(Argument::Statistics, s, h, kStatistics), number(which)); };
  Val top = real(-INFINITY), sum = real(0);
  top = e.loop(lane, splits, GpuEmitter::kWarp, {top}, [&](Val s, Vals top) -> Vals { return {e.largest(of(s, kMaximum), top[0])}; })[0];
  top = warpMax(top);
  Val sink;
  if (shape.sinkLogits) {
    sink = e.loadGlobal(argument(Argument::SinkLogits), e.f32(), kvHead * (shape.heads / shape.queries) + h / shape.queries);
    top = e.largest(sink, top);
  }
  sum = e.loop(lane, splits, GpuEmitter::kWarp, {sum}, [&](Val s, Vals sum) -> Vals { return {fma(of(s, kSum), weightOf(of(s, kMaximum), top), sum[0])}; })[0];
  sum = warpAdd(sum);
  return {top, shape.sinkLogits ? sum + weightOf(sink, top) : sum};
}

namespace {

class MergeKernel : public DecodeKernel {
public:
  MergeKernel(ModuleOp program, StringRef name, const DecodeShape &shape) : DecodeKernel(program, name, shape, /*warps=*/4) {}
  void emit();
};

/// All warps weigh the states, and all threads add up the outputs of some splits.
void MergeKernel::emit() {
  const int64_t dim = shape.valueDim;
  Val h = e.block(gpu::Dimension::x);
  Vals statistics = statisticsOf(h);
  Val top = statistics[kMaximum], sum = statistics[kSum];
  if (!shape.maskedZero) // of a row whose scores are all -inf: 0 / 0, unless front ends guard against it
    sum = select((top == -INFINITY) & (tokens > 0), real(NAN), sum);
  e.when(thread == 0, [&] {
    e.storeGlobal(top, rowOf(Argument::Max, shape.heads), h);
    e.storeGlobal(sum, rowOf(Argument::Sum, shape.heads), h);
  });

  Type some = VectorType::get(kVector, e.f32());
  Shared parts = addSplits(
      splits, dim,
      [&](Val s, Val offset) -> Vals {
        Val part = e.loadGlobal(ofSplit(Argument::Partial, s, h, dim), some, offset, /*constant=*/false);
        return shape.keyPlanes ? Vals{part} : Vals{part, get(ofSplit(Argument::Statistics, s, h, kStatistics), number(kMaximum))};
      },
      [&](Val sum, Vals loaded) { return shape.keyPlanes ? sum + loaded[0] : fma(loaded[0], e.splat(weightOf(loaded[1], top), kVector), sum); });
  Val acc = rowOf(Argument::Acc, shape.heads * dim);
  forThreads(dim / kVector, [&](Val i) {
    // A row without weight has the identity as its state.
    e.storeGlobal(select(sum == 0, e.constant(some, 0), sumOf(parts, dim, i * kVector, kVector)), acc, h * dim + i * kVector);
  });
  finish();
}

} // namespace

void aligned::emitMerge(ModuleOp program, StringRef name, const DecodeShape &shape) { MergeKernel(program, name, shape).emit(); }
