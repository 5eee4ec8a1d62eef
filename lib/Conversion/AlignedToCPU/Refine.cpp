// Finer scores: rows of the next planes of K, of as many listed tokens at once as there are lanes.
#include "Attend.h"

using namespace mlir;
using namespace aligned;

/// The largest power of two that divides a row of bytes, at most a register: as many rows as fit share one.
static int64_t pieceOf(int64_t rowBytes, int64_t registerBytes) { return std::min<int64_t>(registerBytes, rowBytes & -rowBytes); }

/// Digits in the order of rows: for planes of 4 bits those of even and odd channels, each repeated for as many rows as share a register.
void Attend::prepareRowWeights() {
  int64_t bytes = 0;
  for (int64_t plane = 1; plane < keyPlanes; ++plane) {
    rowWeightsAt.push_back(bytes);
    int64_t rowBytes = storage::rowBytes(keyFormat.width[plane], shape.keyDim);
    bytes += digits() * rows * (8 / keyFormat.width[plane]) * (rowBytes / pieceOf(rowBytes, registerBytes)) * registerBytes;
  }
  if (!bytes)
    return;
  rowWeights = e.local(e.i8(), bytes);
  for (int64_t plane = 1; plane < keyPlanes; ++plane) {
    int64_t rowBytes = storage::rowBytes(keyFormat.width[plane], shape.keyDim), piece = pieceOf(rowBytes, registerBytes), pieces = rowBytes / piece;
    int64_t parts = 8 / keyFormat.width[plane];
    e.loop(index(0), index(digits() * rows), 1, [&](Val row) {
      for (int64_t p = 0; p < pieces; ++p) {
        Val channels = e.load(buffers.digits, row * shape.keyDim + p * piece * parts, piece * parts);
        for (int64_t part = 0; part < parts; ++part) {
          SmallVector<int64_t> order;
          for (int64_t byte = 0; byte < registerBytes; ++byte)
            order.push_back(byte % piece * parts + part);
          e.store(permute(channels, channels, order), rowWeights, (row * (parts * pieces) + (part * pieces + p)) * registerBytes + rowWeightsAt[plane - 1]);
        }
      }
    });
  }
}

/// Dot products of the rows of a plane at places[at ..], one a lane, with `count` query rows: f32, before scale and unit.
Vals Attend::rowDots(int64_t plane, Buffer places, Val at, Val firstRow, int64_t count, bool isRepeated) {
  const int64_t width = keyFormat.width[plane], rowBytes = storage::rowBytes(width, shape.keyDim), parts = 8 / width;
  const int64_t piece = pieceOf(rowBytes, registerBytes), pieces = rowBytes / piece, together = registerBytes / piece; // rows in a register
  const int64_t largest = (1 << width) - 1;
  // Sums of digits stay integers where 32 bits hold them together.
  const bool joined = digits() == 2 && double(largest) * 128 * 256 * shape.keyDim < 0x1p31;
  Vals weights; // [pieces][parts][digits][query rows]
  for (int64_t p = 0; p < pieces; ++p)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t d = 0; d < digits(); ++d)
        for (int64_t h = 0; h < count; ++h) {
          Val row = firstRow + h + d * rows;
          weights.push_back(e.load(rowWeights, (row * (parts * pieces) + (part * pieces + p)) * registerBytes + rowWeightsAt[plane - 1], registerBytes));
        }
  auto rowsFrom = [&](int64_t first) -> Vals {
    Vals starts;
    for (int64_t r = 0; r < together; ++r) {
      auto startOf = [&](Val entry) { return convert(e.load(places, entry), e.types.getIndexType()) * rowBytes; };
      starts.push_back(startOf(at + (first + r)));
      if (!isRepeated) { // one row at a time, and behind the end whatever was there: more at once are dropped
        Val ahead = startOf(at + (first + r + kRowsAhead));
        for (int64_t byte = 0; byte < rowBytes; byte += 64)
          e.prefetch(key.plane[plane], ahead + byte);
      }
    }
    Vals sums(digits() * count, e.constant(vectorOf(e.i32(), lanes), 0));
    for (int64_t p = 0; p < pieces; ++p) {
      Val bytes;
      for (int64_t have = 0; have < together; ++have) {
        Val next = e.load(key.plane[plane], starts[have] + p * piece, piece);
        if (bytes.e) {
          SmallVector<int64_t> order;
          for (int64_t byte = 0; byte < (have + 1) * piece; ++byte)
            order.push_back(byte);
          next = permute(bytes, next, order);
        }
        bytes = next;
      }
      Val packed = bitcast(bytes, e.i32());
      for (int64_t part = 0; part < parts; ++part) {
        Val numbers = parts == 1 ? packed : part == 0 ? packed & 0x0f0f0f0f : shiftRight(packed, 4) & 0x0f0f0f0f;
        for (int64_t d = 0; d < digits(); ++d)
          for (int64_t h = 0; h < count; ++h)
            sums[d * count + h] = dot4(shape.isa, sums[d * count + h], numbers, weights[((p * parts + part) * digits() + d) * count + h], largest);
      }
    }
    if (!joined)
      return sums;
    Vals whole;
    for (int64_t h = 0; h < count; ++h)
      whole.push_back((sums[h] << splatI(8)) + sums[count + h]);
    return whole;
  };
  // Registers of partial sums, `piece` / 4 lanes for each row, folded until each row has one.
  SmallVector<int64_t> even, odd;
  for (int64_t lane = 0; lane < 2 * lanes; lane += 2) {
    even.push_back(lane);
    odd.push_back(lane + 1);
  }
  std::function<Vals(int64_t, int64_t)> fold = [&](int64_t first, int64_t registers) -> Vals {
    if (registers == 1)
      return rowsFrom(first);
    Vals a = fold(first, registers / 2), b = fold(first + registers / 2 * together, registers / 2), folded;
    for (auto [left, right] : llvm::zip(a, b))
      folded.push_back(permute(left, right, even) + permute(left, right, odd));
    return folded;
  };
  Vals sums = fold(0, lanes / together), dots;
  for (int64_t h = 0; h < count; ++h) {
    Val dot = convert(sums[h], e.f32());
    for (int64_t d = 1; d < digits() && !joined; ++d)
      dot = fma(dot, splatF(256.0), convert(sums[d * count + h], e.f32()));
    dots.push_back(dot);
  }
  return dots;
}

/// Reads plane `level + 1` of the tokens that are listed for it; of those that want more, the next one, too.
void Attend::refine(size_t level) {
  Level &now = levels[level];
  const int64_t plane = level + 1, below = storage::bitsBelow(keyFormat, plane);
  const bool last = level + 1 == levels.size();
  auto middle = [&](int64_t missing) { return missing ? std::exp2(missing - 1) : 0; };
  const double step = middle(below) - middle(16 - storage::bitsBefore(keyFormat, plane));
  Val end = counted(now.count);
  if (!last)
    e.store(index(0), levels[level + 1].count, index(0));
  e.when(end > 0, [&] {
    e.store(splatI(e.load(now.words, end - 1)), now.words, end);
    e.store(splatI(e.load(now.places, end - 1)), now.places, end);
    forRows([&](Val h) { e.store(splatF(kHidden), now.scores, h * kList + end); });
    Val columns = e.loop(index(0), end, lanes, {index(0)}, [&](Val at, Vals column) -> Vals {
      Val word = e.load(now.words, at, lanes), scale = scaleOf(keyCode(word));
      const int64_t some = std::min<int64_t>(rows, 4), whole = rows / some * some;
      auto work = [&](Val h0, int64_t count, bool isRepeated) {
        Vals dots = rowDots(plane, now.places, at, h0, count, isRepeated);
        for (int64_t h = 0; h < count; ++h) {
          Val unit = fact(h0 + h, Fact::Unit), place = (h0 + h) * kList + at, x = e.load(now.scores, place, lanes);
          Val more = fma(dots[h], splatF(unit * std::exp2(below)), splatF(unit * fact(h0 + h, Fact::Sum) * step));
          e.store(fma(more, scale, x), now.scores, place);
        }
      };
      if (whole == some)
        work(index(0), some, false);
      else
        e.loop(index(0), index(whole), some, [&](Val h0) { work(h0, some, false); });
      if (whole < rows)
        work(index(whole), rows - whole, true);
      if (!last) {
        Level &next = levels[level + 1];
        Val mask = (wantOf(word) > int64_t(level + 1)) & isBelow(at, end), to = counted(next.count);
        e.store(maskBits(mask), now.masks, column[0]);
        compress(shape.isa, mask, word, next.words, to);
        compress(shape.isa, mask, e.load(now.places, at, lanes), next.places, to);
        forRows([&](Val h) { compress(shape.isa, mask, e.load(now.scores, h * kList + at, lanes), next.scores, h * kList + to); });
        e.store(to + countOf(mask), next.count, index(0));
      }
      return {column[0] + 1};
    })[0];
    if (last)
      return;
    refine(level + 1);
    Level &next = levels[level + 1];
    e.when(counted(next.count) > 0, [&] {
      e.loop(index(0), columns, 1, {index(0)}, [&](Val column, Vals from) -> Vals {
        Val mask = maskOf(e.load(now.masks, column), lanes);
        forRows([&](Val h) {
          Val place = h * kList + column * lanes;
          e.store(expand(shape.isa, mask, e.load(now.scores, place, lanes), next.scores, h * kList + from[0]), now.scores, place);
        });
        return {from[0] + countOf(mask)};
      });
    });
  });
}

