// See the header for the idea.
#include "NibbleRows.h"

using namespace mlir;
using namespace aligned;

NibbleRows::NibbleRows(int64_t headDim)
    : headDim(headDim), words(headDim / 8), width(words % 4 == 0 && words > 16 ? 4 : words % 2 == 0 && words > 8 ? 2 : 1), chunks(llvm::divideCeil(words, 8 * width)) {}

Vals NibbleRows::load(GpuEmitter &e, Val plane, Val row, const LayerPlace &at, Val g, int64_t chunk, Val there) const {
  Type type = width == 1 ? e.i32() : Type(VectorType::get(width, e.i32()));
  Val first = (g + 8 * chunk) * width, wanted = words % (8 * width) && chunk == chunks - 1 ? there & (first < words) : there;
  Val loaded = e.choose(
      wanted,
      [&]() -> Vals {
        Val start = e.at(plane, e.i8(), convert(row, e.i64()) * (at.planeLayers * headDim / 2));
        return {e.loadGlobal(e.at(start, e.i32(), first), type, e.number(at.index * words))};
      },
      [&]() -> Vals { return {e.constant(type, 0)}; })[0];
  Vals parts;
  for (int64_t v = 0; v < width; ++v)
    parts.push_back(width == 1 ? loaded : lane(loaded, v));
  return parts;
}

Vals NibbleRows::transpose(GpuEmitter &e, ArrayRef<Vals> rows, int64_t first, int64_t v) const {
  auto pick = [&](Val a, Val b, int64_t selectors) { return e.permuteBytes(a, b, e.number(selectors)); };
  Val a = rows[first][v], b = rows[first + 1][v], c = rows[first + 2][v], d = rows[first + 3][v];
  Val ab = pick(a, b, 0x5140), cd = pick(c, d, 0x5140), abUpper = pick(a, b, 0x7362), cdUpper = pick(c, d, 0x7362);
  return {pick(ab, cd, 0x5410), pick(ab, cd, 0x7632), pick(abUpper, cdUpper, 0x5410), pick(abUpper, cdUpper, 0x7632)};
}
