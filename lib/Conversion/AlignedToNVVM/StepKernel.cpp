// See the header for the idea.
#include "StepKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

PreparedRow::PreparedRow(const DecodeShape &shape) {
  int64_t next = 0;
  auto take = [&](int64_t words) { return std::exchange(next, next + llvm::alignTo(words, 4)); }; // vectors of four
  const int64_t padded = paddedRows(shape);
  columns = 2 * padded;
  raw = take(columns * shape.keyDim / 8);
  low = take(columns * shape.keyDim / 8);
  full = take(columns * shape.keyDim / 4);
  heads = take(padded * int64_t(HeadFact::Count));
  row = take(int64_t(RowFact::Count));
  mean = take(shape.valueDim);
  keyTable = take(128);
  valueTable = take(128);
  size = next;
}

static SmallVector<Type> argumentTypes(MLIRContext *context, const DecodeShape &shape) {
  SmallVector<Type> types(size_t(StepArgument::Optional) + shape.sinkLogits + bool(shape.attnMask) + (shape.certified ? size_t(CertifyArgument::Count) : 0), LLVM::LLVMPointerType::get(context, 1));
  types[size_t(StepArgument::Scale)] = Float32Type::get(context);
  return types;
}

StepKernel::StepKernel(ModuleOp program, StringRef name, const DecodeShape &shape)
    : GpuKernel(program, name, kStepWarps, argumentTypes(program.getContext(), shape)), shape(shape) {
  split = e.block(gpu::Dimension::x);
  splits = e.blocks(gpu::Dimension::x);
  row = e.block(gpu::Dimension::y);
  batch = row / shape.kvHeads;
  kvHead = row % shape.kvHeads;
  g = shrLogical(lane, number(2));
  q = lane & 3;
  tokens = tokensOf(argument(StepArgument::Key), batch);
  newest = tokens;
  tiles = shrLogical(tokens + (kTile - 1), number(6));
  stride = shrLogical(convert(field(argument(StepArgument::Key), offsetof(aligned_cache, capacity)), e.i32()), number(6));
  key = view(StepArgument::Key, shape.keyPlanes);
  value = view(StepArgument::Value, shape.valuePlanes);
  seenTiles = tiles;
  if (shape.mask) {
    visible = visibleTiles(tiles, newest, shape);
    seenTiles = visible.sinks + visible.end - visible.begin;
  }
}

StepCache StepKernel::view(StepArgument which, PlanesAttr planes) {
  Val cache = argument(which);
  StepCache view;
  for (int64_t plane = 0; plane < planes.getResident(); ++plane)
    view.planes[plane] = addressOf(cache, offsetof(aligned_cache, plane) + plane * sizeof(void *));
  view.codes = addressOf(cache, offsetof(aligned_cache, code));
  view.scales = e.at(addressOf(cache, offsetof(aligned_cache, scales)), e.i8(), wide(row) * int64_t(sizeof(aligned_scales)));
  view.bias = convert(convert(field(cache, offsetof(aligned_cache, bias)), e.i32()), e.f32());
  Val capacity = shrLogical(convert(field(cache, offsetof(aligned_cache, capacity)), e.i32()), number(6));
  view.first = row * capacity;
  Val pages = field(cache, offsetof(aligned_cache, pages)), none = e.constant(e.i64(), 0);
  view.pages = select(pages == none, none, pages + wide(batch * capacity) * 4);
  return view;
}

Val StepKernel::placeOf(const StepCache &cache, Val tile) {
  return e.choose(
      cache.pages != e.constant(e.i64(), 0), [&]() -> Vals { return {e.loadGlobal(address(cache.pages), e.i32(), tile) * shape.kvHeads + kvHead}; },
      [&]() -> Vals { return {cache.first + tile}; })[0];
}

Val StepKernel::isAsked(StepArgument record) {
  return e.wrap(LLVM::PtrToIntOp::create(e.b, e.i64(), argument(record).value)) != e.constant(e.i64(), 0);
}

void StepKernel::joinSplits(Val counter, Val index, Shared last, function_ref<void()> body) {
  e.fence();
  e.barrier();
  e.when(thread == 0, [&] {
    Val before = e.atomicAdd(number(1), counter, index);
    e.fence();
    e.store(before, last, number(0));
  });
  e.barrier();
  e.when(e.load(last, number(0)) == splits - 1, body);
}

Val StepKernel::maskNumber(Val h, Val token) {
  MemRefType type = shape.attnMask;
  const int64_t heads = rows / shape.queries;
  Val mask = e.wrap(function.getArgument(unsigned(StepArgument::Optional) + shape.sinkLogits)), at = e.constant(e.i64(), 0);
  auto along = [&](int64_t dim, Val coordinate, int64_t extent) { at = type.getDimSize(dim) == 1 ? at : at * extent + wide(coordinate); };
  along(0, batch, 1);
  along(1, kvHead * heads + h / shape.queries, heads * shape.kvHeads);
  along(2, h % shape.queries, shape.queries);
  at = at * field(argument(StepArgument::Key), offsetof(aligned_cache, tokens)) + wide(token); // rows are as long as the tensor, whatever an entry holds
  Type element = type.getElementType().isInteger(1) ? Type(e.i8()) : type.getElementType();
  Val number = e.loadGlobal(mask, element, at);
  return number.isFloat() ? convert(number, e.f32()) : number;
}

Val StepKernel::masked(Val score, Val number) {
  if (!number.isFloat())
    return select(number != 0, score, real(-INFINITY));
  Val sum = fma(number, real(kLog2e), score);
  return select((score == real(-INFINITY)) | (number == real(-INFINITY)), real(-INFINITY), sum); // what is hidden stays so, whatever the other is
}

void StepKernel::forAsides(StepArgument cache, int64_t headDim, function_ref<void(Val, Val)> body) {
  Val list = addressOf(argument(cache), offsetof(aligned_cache, aside)), values = addressOf(argument(cache), offsetof(aligned_cache, aside_values));
  e.loop(number(0), asidesOf(cache), 1, [&](Val i) {
    Val entry = e.at(list, e.i64(), i * 2);
    e.when(e.loadGlobal(entry, e.i64(), number(offsetof(aligned_aside, row) / 8)) == wide(row), [&] {
      body(convert(e.loadGlobal(entry, e.i64(), number(offsetof(aligned_aside, token) / 8)), e.i32()), e.at(values, e.f32(), wide(i) * headDim));
    });
  });
}

LogicalResult aligned::checkStep(Operation *op, const DecodeShape &shape) {
  for (auto [name, planes] : {std::pair("key", shape.keyPlanes), std::pair("value", shape.valuePlanes)})
    if (planes.getWidths() != ArrayRef<int64_t>{4, 4, 8})
      return op->emitOpError("expected the ") << name << "'s planes to be fixed<4, 4, 8> on this target, got " << planes;
  constexpr int64_t kMostRows = 16;
  if (shape.heads > kMostRows)
    return op->emitOpError("expected at most ") << kMostRows << " query rows per kv head on this target, got " << shape.heads;
  if (shape.softcap && shape.attnMask)
    return op->emitOpError("expected no attn_mask beside a softcap on this target, got one of ") << shape.attnMask;
  if (shape.later)
    return op->emitOpError("expected no `later` tokens on this target, got them");
  return success();
}
