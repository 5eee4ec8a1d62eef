// See the header for the idea.
#include "DecodeKernel.h"

#include "aligned/Runtime/DeviceCache.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cmath>
#include <cstddef>

using namespace mlir;
using namespace aligned;

static SmallVector<Type> argumentTypes(MLIRContext *context, const DecodeShape &shape) {
  Builder b(context);
  SmallVector<Type> types;
  for (auto [which, description] : argumentsOf(b, shape))
    types.push_back(typeOf(b, which));
  return types;
}

DecodeKernel::DecodeKernel(ModuleOp program, StringRef name, const DecodeShape &shape, int64_t warps)
    : GpuKernel(program, name, warps, argumentTypes(program.getContext(), shape)), shape(shape) {
  for (auto [which, description] : argumentsOf(e.types, shape))
    order.push_back(which);
  row = e.block(gpu::Dimension::y);
  batch = row / shape.kvHeads;
  kvHead = row % shape.kvHeads;
  split = e.block(gpu::Dimension::x);
  splits = isStaged(shape) ? e.blocks(gpu::Dimension::x) : argument(Argument::Splits);
  g = shrLogical(lane, number(2));
  t = lane & 3;
  auto given = [&](bool isGiven, Argument which) { return isGiven ? argument(which) : Val(); };
  sight = Sight(shape.mask, shape.queries, given(shape.mask && shape.mask.hasDynamicWindow(), Argument::Window), given(shape.mask && shape.mask.hasDynamicSinks(), Argument::Sinks));
  cap = Softcap(shape.softcap, given(shape.dynamicSoftcap, Argument::Softcap), isStaged(shape) ? kLog2e : 1);
  if (shape.keyPlanes) {
    tokens = tokensOf(argument(Argument::Key), batch);
  } else { // never more than there is room for, whatever the device's memory says
    Val length = e.loadGlobal(argument(Argument::Lengths), e.i64(), batch);
    tokens = convert(max(min(length, wide(argument(Argument::Capacity))), 0), e.i32());
  }
  newest = shape.later ? tokens - argument(Argument::Later) : tokens;
  if (!shape.keyPlanes)
    return;
  tiles = seenTiles = shrLogical(tokens + (kTile - 1), number(6));
  if (shape.mask) {
    visible = visibleTiles(tiles, newest, sight);
    seenTiles = visible.sinks + visible.end - visible.begin;
  }
}

Val DecodeKernel::argument(Argument which) {
  auto found = llvm::find(order, which);
  assert(found != order.end() && "the shape has no such argument");
  return e.wrap(function.getArgument(found - order.begin()));
}

Val DecodeKernel::isAsked(Argument record) { return e.wrap(LLVM::PtrToIntOp::create(e.b, e.i64(), argument(record).value)) != e.constant(e.i64(), 0); }

PlaneCache DecodeKernel::viewOf(Argument which, PlanesAttr planes) {
  Val cache = argument(which);
  PlaneCache view;
  for (int64_t plane = 0; plane < planes.getResident(); ++plane)
    view.planes[plane] = addressOf(cache, offsetof(aligned_cache, plane) + plane * sizeof(void *));
  view.capacity = shrLogical(small(which, offsetof(aligned_cache, capacity)), number(6));
  view.places = placesOf(cache, view.capacity, row, batch, number(shape.kvHeads), kvHead);
  return view;
}

//===----------------------------------------------------------------------===//
// What query rows see
//===----------------------------------------------------------------------===//

Val DecodeKernel::maskNumber(Val h, Val token) {
  MemRefType mask = shape.attnMask;
  const int64_t group = shape.heads / shape.queries;
  Val line = e.constant(e.i64(), 0);
  const std::pair<Val, int64_t> places[] = {{batch, 1}, {kvHead * group + h / shape.queries, shape.kvHeads * group}, {h % shape.queries, shape.queries}};
  for (auto [dim, place] : llvm::enumerate(places))
    if (mask.getDimSize(dim) != 1)
      line = line * double(place.second) + wide(place.first);
  // Lines are as long as the tensor, whatever an entry holds.
  Val length = shape.keyPlanes ? field(argument(Argument::Key), offsetof(aligned_cache, tokens)) : wide(argument(Argument::Capacity));
  Type element = mask.getElementType().isInteger(1) ? Type(e.i8()) : mask.getElementType();
  Val number = e.loadGlobal(e.at(argument(Argument::AttnMask), element, line * length), element, token);
  return number.isFloat() ? convert(number, e.f32()) : number;
}

Val DecodeKernel::addend(Val h, Val token) {
  Val number = maskNumber(clamped(h), token);
  return number.isFloat() ? number : select(number != 0, real(0), real(-INFINITY));
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
  if (shape.hasSoftcap())
    score = softcapped(score, cap);
  if (shape.attnMask)
    score = underMask(score, h, token);
  return shape.mask ? select(isInSight(h, token), score, real(-INFINITY)) : score;
}

Val DecodeKernel::sinkLogit(Val h) { return e.loadGlobal(argument(Argument::SinkLogits), e.f32(), kvHead * (shape.heads / shape.queries) + h / shape.queries); }

//===----------------------------------------------------------------------===//
// Tokens kept aside
//===----------------------------------------------------------------------===//

void DecodeKernel::forAsides(Argument which, function_ref<void(Val, Val)> body) {
  const int64_t dim = which == Argument::Key ? shape.keyDim : shape.valueDim;
  Val cache = argument(which), list = addressOf(cache, offsetof(aligned_cache, aside)), values = addressOf(cache, offsetof(aligned_cache, aside_values));
  Val found = min(small(which, offsetof(aligned_cache, asides)), small(which, offsetof(aligned_device_cache, aside_capacity))); // those that found room
  static_assert(sizeof(aligned_aside) == 16);
  e.loop(number(0), found, 1, [&](Val i) {
    Val entry = e.at(list, e.i64(), wide(i) * 2);
    e.when(e.loadGlobal(entry, e.i64(), number(offsetof(aligned_aside, row) / 8)) == wide(row), [&] {
      body(convert(e.loadGlobal(entry, e.i64(), number(offsetof(aligned_aside, token) / 8)), e.i32()), e.at(values, e.f32(), wide(i) * dim));
    });
  });
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
    sink = sinkLogit(h);
    top = e.largest(sink, top);
  }
  sum = e.loop(lane, splits, GpuEmitter::kWarp, {sum}, [&](Val s, Vals sum) -> Vals { return {fma(of(s, kSum), weightOf(of(s, kMaximum), top), sum[0])}; })[0];
  sum = warpAdd(sum);
  return {top, shape.sinkLogits ? sum + weightOf(sink, top) : sum};
}

Val DecodeKernel::shareOf(Val sum) {
  return select(argument(Argument::Finished) != 0, select(sum == 0, real(0), e.constant(sum.type(), 1) / sum), real(1));
}

Val DecodeKernel::toldOf(Val top, Val sum) {
  Val logarithm = select(sum == 0, real(-INFINITY), top + e.log2(sum) * (1 / kLog2e));
  return select(argument(Argument::Finished) != 0, logarithm, top);
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
    e.storeGlobal(toldOf(top, sum), ofRow(Argument::Max, e.f32(), shape.heads), h);
    e.storeGlobal(sum, ofRow(Argument::Sum, e.f32(), shape.heads), h);
  });

  Type some = VectorType::get(kVector, e.f32());
  Shared parts = addSplits(
      splits, dim,
      [&](Val s, Val offset) -> Vals {
        Val part = e.loadGlobal(ofSplit(Argument::Partial, s, h, dim), some, offset, /*constant=*/false);
        return shape.keyPlanes ? Vals{part} : Vals{part, get(ofSplit(Argument::Statistics, s, h, kStatistics), number(kMaximum))};
      },
      [&](Val sum, Vals loaded) { return shape.keyPlanes ? sum + loaded[0] : fma(loaded[0], e.splat(weightOf(loaded[1], top), kVector), sum); });
  Val acc = ofRow(Argument::Acc, e.f32(), shape.heads * dim), share = e.splat(shareOf(sum), kVector);
  forThreads(dim / kVector, [&](Val i) {
    // A row without weight has the identity as its state.
    e.storeGlobal(select(sum == 0, e.constant(some, 0), sumOf(parts, dim, i * kVector, kVector)) * share, acc, h * dim + i * kVector);
  });
  finish();
}

} // namespace

void aligned::emitMerge(ModuleOp program, StringRef name, const DecodeShape &shape) { MergeKernel(program, name, shape).emit(); }
