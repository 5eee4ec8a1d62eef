// What the stages of a step share; see the header.
#include "Step.h"

#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

Step::Step(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, const StepBuffers &buffers)
    : e(e), shape(shape), rows(shape.heads), lanes(lanesOf(shape.isa)), exact(shape.exact()), in(in), row(row), buffers(buffers) {
  key = cacheOf(in.key, shape.keyPlanes, shape.keyDim);
  value = cacheOf(in.value, shape.valuePlanes, shape.valueDim);
  newest = shape.later ? key.tokens - in.later : key.tokens;
  sight = Sight(shape.mask, shape.queries, in.window, in.sinks);
  cap = Softcap(shape.softcap, in.softcap, kLog2e);
  if (shape.mask)
    visible = visibleTiles(key.tiles, newest, sight);
}

RowCache Step::cacheOf(Val cache, PlanesAttr attr, int64_t headDim) {
  Type indexType = e.types.getIndexType();
  auto pointer = [&](int64_t offset) { return e.field(cache, offset, e.pointer()); };
  auto number = [&](int64_t offset) { return e.field(cache, offset, indexType); };
  auto isSet = [&](Val pointer) { return e.wrap(LLVM::ICmpOp::create(e.b, LLVM::ICmpPredicate::ne, pointer.value, LLVM::ZeroOp::create(e.b, pointer.type()))); };
  RowCache view;
  view.attr = attr;
  view.headDim = headDim;
  view.kvHeads = index(shape.kvHeads);
  Val entry = row / view.kvHeads;
  view.head = row % view.kvHeads;
  Val lengths = pointer(offsetof(aligned_cache, lengths));
  view.tokens = e.choose(isSet(lengths), [&]() -> Vals { return {e.field(e.advance(lengths, entry * 8), 0, indexType)}; },
                         [&]() -> Vals { return {number(offsetof(aligned_cache, tokens))}; })[0];
  view.held = number(offsetof(aligned_cache, tokens));
  view.tiles = (view.tokens + (kTile - 1)) / index(kTile);
  view.planes = number(offsetof(aligned_cache, planes));
  view.bias = e.field(cache, offsetof(aligned_cache, bias), e.i64());
  view.scales = e.advance(pointer(offsetof(aligned_cache, scales)), row * sizeof(aligned_scales));
  Val capacity = number(offsetof(aligned_cache, capacity)) / index(kTile);
  view.first = row * capacity;
  Val pages = pointer(offsetof(aligned_cache, pages));
  view.hasPages = isSet(pages);
  view.pages = e.advance(pages, entry * capacity * 4);
  view.codes = e.buffer(pointer(offsetof(aligned_cache, code)), e.i8());
  for (int64_t plane = 0; plane < attr.getResident(); ++plane)
    view.plane.push_back(e.buffer(pointer(offsetof(aligned_cache, plane) + plane * sizeof(void *)), e.i8()));
  view.aside = AsideTokens(cache, row, headDim);
  return view;
}

Val RowCache::placeOf(Val tile) const {
  Emitter &e = *tile.e;
  return e.choose(hasPages,
                  [&]() -> Vals {
                    Val page = convert(e.field(e.advance(pages, tile * 4), 0, e.i32()), e.types.getIndexType());
                    return {page * kvHeads + head};
                  },
                  [&]() -> Vals { return {first + tile}; })[0];
}

constexpr int64_t kUnrolled = 8; // query rows

void Step::forRows(function_ref<void(Val)> body) {
  if (rows > kUnrolled)
    return e.loop(index(0), index(rows), 1, body);
  for (int64_t h = 0; h < rows; ++h)
    body(index(h));
}

void Step::forRowGroups(int64_t most, function_ref<void(Val, int64_t)> body) {
  const int64_t some = std::min(rows, most), whole = rows / some * some;
  if (whole == some)
    body(index(0), some);
  else
    e.loop(index(0), index(whole), some, [&](Val h0) { body(h0, some); });
  if (whole < rows)
    body(index(whole), rows - whole);
}

Val Step::anyRow(function_ref<Val(Val)> test) {
  if (rows > kUnrolled)
    return e.loop(index(0), index(rows), 1, {e.constant(vectorOf(e.types.getI1Type(), lanes), 0)}, [&](Val h, Vals any) -> Vals { return {any[0] | test(h)}; })[0];
  Val any = test(index(0));
  for (int64_t h = 1; h < rows; ++h)
    any = any | test(index(h));
  return any;
}

void Step::forTiles(Val begin, Val end, function_ref<void(Val)> each) {
  auto body = [&](Val tile) {
    if (shape.attnMask)
      e.when(isTileSeen(tile), [&] { each(tile); });
    else
      each(tile);
  };
  if (!shape.mask)
    return e.loop(begin, end, 1, body);
  // Visible are [0, sinks) and [begin, end) of the row: what lies between is stepped over.
  Val last = max(min(end, visible.end), begin), sinks = min(max(visible.sinks, begin), last), window = min(max(visible.begin, sinks), last);
  Val gap = window - sinks;
  e.loop(begin, last - gap, 1, [&](Val i) { body(i + select(i < sinks, index(0), gap)); });
}

std::pair<Val, Val> Step::tilesOf(Val split) {
  Val first = split * kSplitTiles;
  return {first, max(first, min(first + kSplitTiles, key.tiles))}; // none of an entry that is shorter
}

/// Two octaves of exponents in a table of 16 where a register is one, all 256 in one that is gathered from elsewhere.
Val Step::scaleOf(Val codes) {
  if (shape.isa == Isa::AVX512 && codes.lanes() == 16) {
    SmallVector<float> table;
    for (int64_t i = 0; i < 16; ++i)
      table.push_back(std::exp2(i / 8.0 - 16));
    Val fraction = lookUp(shape.isa, e.table("aligned_scale16", table), index(0), 16, codes);
    return bitcast(bitcast(fraction, e.i32()) + ((codes & 0xf0) << e.constant(codes.type(), 20)), e.f32());
  }
  SmallVector<float> table;
  for (int64_t i = 0; i < 256; ++i)
    table.push_back(std::exp2(i / 8.0 - 16));
  Buffer all = e.table("aligned_scale256", table);
  return codes.lanes() ? e.gather(all, index(0), codes & 0xff) : e.load(all, convert(codes & 0xff, e.types.getIndexType()));
}

Val Step::biasScale(const RowCache &cache) {
  // Whole octaves apart, so that caches of wide types lose nothing.
  Val eighths = -convert(cache.bias, e.i32()) + 16 * storage::kStepsPerOctave;
  Val octave = min(max(eighths >> 3, -126), 127), left = convert(eighths & 7, e.f32()) * (1.0 / storage::kStepsPerOctave);
  return exp2(left, 5) * bitcast((octave + 127) << 23, e.f32());
}

Val Step::power(Val x) {
  return shape.isa == Isa::AVX512 && x.lanes() == 16 ? exp2OnAVX512(x, degree()) : exp2(x, degree());
}

//===----------------------------------------------------------------------===//
// Scores as the softmax sees them
//===----------------------------------------------------------------------===//

Val Step::capped(Val x, Val h) {
  Val shift = fact(h, Fact::Shift), lowest = e.constant(x.type(), kLowest);
  return select(x < lowest, x, softcapped(x + (x.lanes() ? e.splat(shift, x.lanes()) : shift), cap));
}

Val Step::final(Val x, Val h, Val token) {
  if (!shape.hasSoftcap())
    return x;
  return shape.attnMask ? withMask(capped(x, h), h, token) : capped(x, h);
}

Val Step::finalOf(Val x, Val h, Val tokens) {
  if (!shape.hasSoftcap())
    return x;
  Val score = capped(x, h);
  if (!shape.attnMask)
    return score;
  // Masks of tokens that lie anywhere, one after another.
  Buffer memory = maskMemory(), where = e.local(e.i32(), lanes), numbers = e.local(memory.element, lanes);
  e.store(tokens, where, index(0));
  e.loop(index(0), index(lanes), 1, [&](Val i) { e.store(e.load(memory, maskAt(h, convert(e.load(where, i), e.types.getIndexType()))), numbers, i); });
  return masked(score, e.load(numbers, index(0), lanes));
}

Buffer Step::maskMemory() {
  Type element = shape.attnMask.getElementType();
  return e.buffer(in.attnMask, element.isInteger(1) ? e.i8() : element);
}

/// Where a token's number lies; a dimension of 1 serves all.
Val Step::maskAt(Val h, Val token) {
  MemRefType type = shape.attnMask;
  const int64_t heads = rows / shape.queries * shape.kvHeads;
  auto along = [&](int64_t dim, Val at, Val coordinate, int64_t extent) { return type.getDimSize(dim) == 1 ? at : at * extent + coordinate; };
  Val at = along(0, index(0), row / index(shape.kvHeads), 1);
  at = along(1, at, headOf(h), heads);
  at = along(2, at, h % index(shape.queries), shape.queries);
  return at * key.held + token; // rows are as long as the tensor, whatever an entry holds
}

/// Whether the mask that is an operand lets any query row see any token of a tile.
Val Step::isTileSeen(Val tile) {
  Buffer memory = maskMemory();
  Val none = e.constant(e.types.getI1Type(), 0), held = min(key.tokens - tile * kTile, index(kTile));
  const bool isOneForAll = shape.attnMask.getDimSize(1) == 1 && shape.attnMask.getDimSize(2) == 1;
  return e.loop(index(0), index(isOneForAll ? 1 : rows), 1, {none}, [&](Val h, Vals any) -> Vals {
    Val at = maskAt(h, tile * kTile);
    auto whole = [&]() -> Vals {
      Val some = none;
      for (int64_t token = 0; token < kTile; token += lanes)
        some = some | anyOf(invert(hides(e.load(memory, at + token, lanes))));
      return {some};
    };
    auto part = [&]() -> Vals { return e.loop(index(0), held, 1, {none}, [&](Val token, Vals some) -> Vals { return {some[0] | invert(hides(e.load(memory, at + token)))}; }); };
    return {any[0] | e.choose(held == kTile, whole, part)[0]};
  })[0];
}

Val Step::shown(Val x, Val h, Val token) {
  if (shape.mask)
    x = select(isVisible(token, h % index(shape.queries), newest, sight), x, f32(kHidden));
  return shape.attnMask ? select(hides(e.load(maskMemory(), maskAt(h, token))), f32(kHidden), x) : x;
}

/// A score under the mask's number, f32 or an element of the mask. What is hidden stays so, whatever the other is; the lowest
/// float hides nothing.
Val Step::masked(Val x, Val number) {
  Val hidden = e.constant(x.type(), kHidden);
  if (shape.attnMask.getElementType().isInteger(1))
    return select(number != 0, x, hidden);
  number = convert(number, e.f32());
  Val least = e.constant(x.type(), kLeastOfMask), added = select(number < least, least, number); // keeps NaN
  return select(hides(number) | (x == hidden), hidden, fma(added, e.constant(x.type(), kLog2e), x));
}

Val Step::withMask(Val x, Val h, Val token) {
  Buffer memory = maskMemory();
  Val at = maskAt(h, token);
  if (!x.lanes())
    return masked(x, e.load(memory, at));
  Buffer tail = e.local(memory.element, lanes);
  Val number = e.choose(token + lanes <= key.tokens, [&]() -> Vals { return {e.load(memory, at, lanes)}; },
                        [&]() -> Vals { // nothing lies behind the last token
                          e.store(e.constant(vectorOf(memory.element, lanes), 0), tail, index(0));
                          e.loop(index(0), max(key.tokens - token, 0), 1, [&](Val i) { e.store(e.load(memory, at + i), tail, i); });
                          return {e.load(tail, index(0), lanes)};
                        })[0];
  return masked(x, number);
}

Val Step::sinkOf(Val h) {
  Val logit = e.load(e.buffer(in.sinkLogits, e.f32()), headOf(h)) * kLog2e;
  return shape.hasSoftcap() ? logit : logit - fact(h, Fact::Shift);
}

void Step::lap(int32_t part) {
  if (shape.profile)
    func::CallOp::create(e.b, "aligned_rt_lap", TypeRange(), e.constant(e.i32(), part).value);
}
