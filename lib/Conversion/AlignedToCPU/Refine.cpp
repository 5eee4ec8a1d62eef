// Finer scores: rows of the next planes of K, of as many listed tokens at once as there are lanes.
#include "Attend.h"

using namespace mlir;
using namespace aligned;

/// Digits in the order of rows: for planes of 4 bits those of even channels, then those of odd ones.
void Attend::prepareRowWeights() {
  const int64_t dim = shape.keyDim;
  if (llvm::none_of(llvm::ArrayRef(keyFormat.width).slice(1, keyPlanes - 1), [](auto width) { return width == 4; }))
    return;
  nibbleDigits = e.local(e.i8(), digits() * rows * dim);
  SmallVector<int64_t> order;
  for (int64_t i = 0; i < dim; ++i)
    order.push_back(i % (dim / 2) * 2 + i / (dim / 2));
  e.loop(index(0), index(digits() * rows), 1, [&](Val row) {
    Val channels = e.load(buffers.digits, row * dim, dim);
    e.store(permute(channels, channels, order), nibbleDigits, row * dim);
  });
}

/// Words first .. first + count - 1 of the rows of a plane at places[at ..], one row a lane. `count` is a power of two, at most as many as there are lanes.
Vals Attend::rowWords(int64_t plane, Buffer places, Val at, Val first, int64_t count) {
  const int64_t rowBytes = storage::rowBytes(keyFormat.width[plane], shape.keyDim), together = lanes / count; // rows in a register
  auto registerOf = [&](int64_t number) {
    Val all;
    for (int64_t r = 0; r < together; ++r) {
      auto startOf = [&](Val entry) { return convert(e.load(places, entry), e.types.getIndexType()) * rowBytes + first * 4; };
      Val row = e.load(key.plane[plane], startOf(at + (number * together + r)), count * 4);
      // One line at a time, and behind the end whatever was there: more at once are dropped.
      auto fetch = [&] { e.prefetch(key.plane[plane], startOf(at + (number * together + r + kRowsAhead))); };
      if (count * 4 == std::min<int64_t>(rowBytes, 64)) // each time another line
        fetch();
      else
        e.when(first % index(64 / 4) == 0, fetch);
      SmallVector<int64_t> order;
      for (int64_t byte = 0; byte < (r + 1) * count * 4; ++byte)
        order.push_back(byte);
      all = r ? permute(all, row, order) : row;
    }
    return bitcast(all, e.i32());
  };
  Vals words;
  for (int64_t number = 0; number < count; ++number)
    words.push_back(registerOf(number));
  // Even and odd lanes of neighbours, of neighbours' neighbours, ...: each turn moves a bit of the word's number from lanes to registers, and one of the row's back.
  SmallVector<int64_t> even, odd;
  for (int64_t lane = 0; lane < 2 * lanes; lane += 2) {
    even.push_back(lane);
    odd.push_back(lane + 1);
  }
  for (int64_t distance = 1; distance < count; distance *= 2)
    for (int64_t a = 0; a < count; ++a)
      if (!(a & distance)) {
        Val left = words[a], right = words[a + distance];
        words[a] = permute(left, right, even);
        words[a + distance] = permute(left, right, odd);
      }
  return words;
}

/// Dot products of the rows of a plane at places[at ..], one a lane, with `count` query rows: f32, before scale and unit.
Vals Attend::rowDots(int64_t plane, Buffer places, Val at, Val firstRow, int64_t count) {
  const int64_t width = keyFormat.width[plane], parts = 8 / width, words = storage::rowBytes(width, shape.keyDim) / 4;
  const int64_t some = std::min<int64_t>(lanes, words & -words); // whose transposition is one of powers of two
  Buffer weights = e.buffer((parts == 1 ? buffers.digits : nibbleDigits).pointer, e.i32());
  // Wide rows in a loop, or the code would not fit where decoded instructions are kept.
  Vals sums = e.loop(index(0), index(words), some, Vals(digits() * count, e.constant(vectorOf(e.i32(), lanes), 0)), [&](Val first, Vals sums) {
    for (auto [number, packed] : llvm::enumerate(rowWords(plane, places, at, first, some)))
      for (int64_t part = 0; part < parts; ++part) {
        Val bytes = parts == 1 ? packed : (part ? shiftRight(packed, 4) : packed) & 0x0f0f0f0f;
        for (int64_t d = 0; d < digits(); ++d)
          for (int64_t h = 0; h < count; ++h) {
            Val weight = e.load(weights, (firstRow + h + d * rows) * (parts * words) + (first + (part * words + int64_t(number))));
            sums[d * count + h] = dot4(shape.isa, sums[d * count + h], bytes, splatI(weight), (1 << width) - 1);
          }
      }
    return sums;
  });
  Vals dots;
  for (int64_t h = 0; h < count; ++h) {
    Val dot = convert(sums[h], e.f32());
    for (int64_t d = 1; d < digits(); ++d)
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
      forRowGroups(4, [&](Val h0, int64_t count) {
        Vals dots = rowDots(plane, now.places, at, h0, count);
        for (int64_t h = 0; h < count; ++h) {
          Val unit = fact(h0 + h, Fact::Unit), place = (h0 + h) * kList + at, x = e.load(now.scores, place, lanes);
          if (level == 0) // of the sum, finer scores take the place of coarse ones
            addRefined(h0 + h, valueCode(word), -probability(x, h0 + h, tokenNumbers(tokenOf(word))));
          Val more = fma(dots[h], splatF(unit * std::exp2(below)), splatF(unit * fact(h0 + h, Fact::Sum) * step));
          e.store(fma(more, scale, x), now.scores, place);
        }
      });
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

