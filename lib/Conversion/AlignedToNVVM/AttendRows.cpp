// Of 32 listed tokens: finer scores from rows of K, weights, and rows of V times weights. See AttendKernel.cpp.
#include "AttendKernel.h"

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

/// A lane's words of a row of a plane, a load for each chunk.
Vals AttendKernel::loadRow(const Words &words, Val plane, Val place, Val lane) {
  Vals row;
  Val start = e.at(plane, e.i8(), wide(place) * (words.count * 4));
  for (int64_t j = 0; j < words.chunks; ++j) {
    Val word = words.at(lane, j * words.vector);
    if (!words.isInside(j * words.vector))
      word = min(word, number(words.count - words.vector));
    Val loaded = e.loadGlobal(e.at(start, e.i32(), word), words.vector > 1 ? Type(vectorOf(e.i32(), words.vector)) : e.i32(), number(0));
    for (int64_t i = 0; i < words.vector; ++i)
      row.push_back(words.vector > 1 ? aligned::lane(loaded, i) : loaded);
  }
  return row;
}

/// The weights of word w of this lane's, column g of a quad. Behind the row there are none.
Val AttendKernel::weightWord(int64_t from, const Words &words, int64_t quad, int64_t w) {
  Val word = words.at(q, w), column = firstRow * 2 + g + 8 * quad;
  bool inside = words.isInside(w);
  Val loaded = e.loadGlobal(prepared, e.i32(), column * words.count + (inside ? word : min(word, number(words.count - 1))) + from, false);
  return inside ? loaded : select(word < words.count, loaded, number(0));
}

/// Plane 1 of two rows of K, 16 (n - 7.5) W, of this lane's query row. `rows`: [2][words].
std::array<Val, 2> AttendKernel::keyProducts(ArrayRef<Val> rows, int64_t quad) {
  const int64_t each = keyRow.each(), mask = 0x0f0f0f0f;
  Vals c(4, number(0));
  auto multiply = [&](int64_t from, bool masked) {
    for (int64_t w = 0; w < each; w += 2) {
      Vals a = operandOf(rows, each, w);
      if (masked)
        for (Val &word : a)
          word = word & mask;
      c = e.multiply(a, weightsOf(from, keyRow, quad, w), c);
    }
  };
  multiply(at.low, true);
  for (Val &number : c)
    number = number << this->number(4);
  for (int64_t j = 0; j < 2; ++j)
    c[2 * j + 1] = c[2 * j + 1] + all[quad].begin;
  multiply(at.raw, false);
  return {(c[0] << number(8)) + c[1], (c[2] << number(8)) + c[3]};
}

/// The same of plane 2: n W.
std::array<Val, 2> AttendKernel::keyByteProducts(ArrayRef<Val> rows, int64_t quad) {
  Vals c(4, number(0));
  for (int64_t w = 0; w < keyBytes.each(); w += 2)
    c = e.multiply(operandOf(rows, keyBytes.each(), w), weightsOf(at.full, keyBytes, quad, w), c);
  return {(c[0] << number(8)) + c[1], (c[2] << number(8)) + c[3]};
}

/// Weights of 32 listed tokens for a quad, of which this lane has g + 8 r, row q. What comes back: words of the weights of tokens 8 q .., row g / 2. Bit 8 r of the masks: whether
/// token g + 8 r wants more of K, V, plane 1 of V, plane 2 of K, of V. `isFree`: nobody reads weights of this quad's any more. `rest`: what is left of weights below a step, in 2^-16 of one.
Vals AttendKernel::weigh(Val entry, int64_t n, Val mk, Val mv, Val m1, Val mk2, Val m2, ArrayRef<Val> finer, ArrayRef<Val> finest, bool isFree, Vals *rest) {
  OfQuad &quad = all[n];
  Val h = q + 4 * n;
  Val x[4], off[4], most = real(kNothing);
  for (int64_t r = 0; r < 4; ++r) {
    Val place = entry + g + 8 * r, z = convert(e.load(scores, place * padded + h), e.f32()), code = e.load(codes, place);
    Val unit = quad.unit * scaleOf(code, 0), now = z;
    if (shape.hasSoftcap()) { // tanh(a + b), where tanh(a) is known and b is what finer bits add
      Val more = select(isSet(mk, 8 * r), convert(finer[r], e.f32()) * unit, real(0));
      if (!finest.empty())
        more = select(isSet(mk2, 8 * r), fma(fma(quad.sum, real(-8), convert(finest[r], e.f32())), unit * (1.0 / 16), more), more);
      Val capped = z + e.load(tops, firstRow + h);
      if (hasCapAndMask(shape)) // which was added behind the cap
        capped = capped - maskNumber(min(firstRow + h, number(rows - 1)), e.load(numbers, place)) * kLog2e;
      Val a = capped * (cap.slope * 0.5).like(capped), power = e.exp2(e.smallest(more * (cap.slope * kLog2e).like(more), real(64))), b = (power - 1.0) / (power + 1.0);
      now = select(z > kNothing, fma(fma(a, -a, real(1)) * b / fma(a, b, real(1)), cap.cap.like(z), z), z);
    } else {
      now = select(isSet(mk, 8 * r), fma(convert(finer[r], e.f32()), unit, z), now);
      if (!finest.empty()) {
        Val more = fma(quad.sum, real(-8), convert(finest[r], e.f32())) * (unit * (1.0 / 16));
        now = select(isSet(mk2, 8 * r), now + more, now);
      }
    }
    if (shape.certified)
      e.when((code != 0) & (firstRow + h < rows), [&] { // not of what only fills up a list
        Val token = e.load(numbers, place);
        e.storeGlobal(now, finestScores(), token * allRows + (firstRow + h));
      });
    Val p = e.exp2(now), before = e.exp2(z), isRead = isSet(mv, 8 * r);
    quad.masses[kMoved].set(quad.masses[kMoved]() + (p - before));
    Val read = select(isRead, p, real(0));
    quad.masses[kRead].set(quad.masses[kRead]() + read);
    Val level = fma(e.byteAsFloat(code, 1), real(0.125), real(-1048576)) + now;
    x[r] = select(isRead, level, real(kNothing));
    most = e.largest(most, x[r]);
    e.when(someLow, [&] {
      Val valueCode = shrLogical(code, number(8)) & 255, isLow = (convert(valueCode, e.f32()) < rowFact(RowFact::Floor)) & (valueCode != storage::kAside);
      quad.masses[kLowMoved].set(quad.masses[kLowMoved]() + select(isLow, p - before, real(0)));
      quad.masses[kLowRead].set(quad.masses[kLowRead]() + select(isLow, read, real(0)));
    });
    // A middle, less the 8 that makes a signed plane unsigned, less the dither.
    Val middle = select(isSet(m1, 8 * r), real(1.0 / 32 - 8), real(0.5 - 8));
    if (m2.e)
      middle = select(isSet(m2, 8 * r), real(-8), middle);
    Val dither = convert(ditherOf(code & int32_t(0xfff00000), storage::kValueDither), e.f32());
    off[r] = fma(dither, real(-0x1p-32), middle);
  }
  e.when(e.any(most > quad.reference()), [&] { flush(n, e.largest(quad.reference(), e.warpMax(most, {4, 8, 16}) + 1.0)); });
  Val row = (warp * padded + h) * kBatch;
  auto exchange = [&](ArrayRef<Val> wholes, bool isFree) {
    if (!isFree)
      e.warpBarrier();
    for (int64_t r = 0; r < 4; ++r)
      e.store(convert(bitcast(wholes[r], e.i32()), e.i16()), weights, row + g + 8 * r);
    e.warpBarrier();
    Val words = e.load(Shared{weights.base, e.i32()}, ((warp * padded + 4 * n + shrLogical(g, number(1))) * kBatch + q * 8) / 2, 4);
    Vals result;
    for (int64_t i = 0; i < 4; ++i)
      result.push_back(aligned::lane(words, i));
    return result;
  };
  Vals wholes, parts;
  for (int64_t r = 0; r < 4; ++r) {
    Val weight = e.exp2(x[r] - quad.reference());
    wholes.push_back(rest ? fma(weight, real(kLargestWeight), real(-0.5)) + kMagic : fma(weight, real(kLargestWeight), real(kMagic)));
    Val whole = wholes[r] - kMagic;
    quad.offset.set(fma(whole, off[r], quad.offset()));
    if (!rest)
      continue;
    Val part = e.smallest(e.largest(fma(weight, real(kLargestWeight), -whole), real(0)), real(65535.0 / 65536)) * 65536;
    parts.push_back(part + kMagic);
    // They go with the first plane alone.
    Val dither = off[r] - select(isSet(m2.e ? m2 : m1, 8 * r), real(m2.e ? -8 : 1.0 / 32 - 8), select(isSet(m1, 8 * r), real(1.0 / 32 - 8), real(0.5 - 8)));
    quad.offset.set(fma((parts[r] - kMagic) * 0x1p-16, dither + (0.5 - 8), quad.offset()));
  }
  Vals result = exchange(wholes, isFree);
  if (rest)
    *rest = exchange(parts, false);
  return result;
}

/// Adds what sums of products hold to the split's output, and takes another reference of weights.
void AttendKernel::flush(int64_t n, Val next) {
  OfQuad &quad = all[n];
  Val reference = quad.reference(), factor = select(reference > -1e29, e.exp2(reference - 16.0) * (1 / kLargestWeight / 8), real(0));
  Val offset = e.warpAdd(quad.offset(), {4, 8, 16});
  Val row = (warp * padded + (q + 4 * n)) * shape.valueDim;
  for (int64_t w = 0; w < valueRow.each(); ++w) {
    whereInside(w, [&] {
      for (int64_t half = 0; half < 2; ++half) {
        auto sum = [&](SmallVector<Variable> &from, int64_t k) { return from[(w * 2 + half) * 4 + k](); };
        Val place = row + valueWord(w) * 8 + 4 * half, before = e.load(out, place, 4);
        Vals values;
        for (int64_t byte = 0; byte < 2; ++byte) {
          Val l0 = sum(quad.low, 2 * byte), l1 = sum(quad.low, 2 * byte + 1);
          auto high = [&](int64_t k, Val low) { return convert((sum(quad.raw, k) - low) >> number(4), e.f32()); };
          values.push_back(fma(convert(l0, e.f32()), real(256), convert(l1, e.f32())));
          values.push_back(fma(high(2 * byte, l0), real(256), high(2 * byte + 1, l1)));
        }
        for (int64_t k = 0; k < 4; ++k)
          values[k] = fma(values[k] + offset, factor, aligned::lane(before, k));
        e.store(e.vectorOf(values), out, place);
      }
    });
    for (int64_t k = 0; k < 8; ++k) {
      quad.raw[w * 8 + k].set(number(0));
      quad.low[w * 8 + k].set(number(0));
    }
  }
  quad.offset.set(real(0));
  quad.reference.set(next);
}

/// Adds eight rows of a plane of 4 bits, [8][words], times weights of each quad. A signed plane is brought to unsigned nibbles on the way.
void AttendKernel::multiply(ArrayRef<Val> rows, bool isSigned, ArrayRef<std::pair<Val, Val>> b) {
  const int64_t each = valueRow.each();
  for (int64_t w = 0; w < each; ++w) {
    std::array<Vals, 2> halves = transposed([&](int64_t token) { return rows[token * each + w]; });
    for (int64_t half = 0; half < 2; ++half) {
      Vals raw, low;
      for (Val byte : halves[half]) {
        raw.push_back(isSigned ? byte ^ number(int32_t(0x88888888)) : byte);
        low.push_back(isSigned ? (byte ^ number(0x08080808)) & 0x0f0f0f0f : byte & 0x0f0f0f0f);
      }
      for (int64_t n = 0; n < quads; ++n)
        for (auto [sums, operand] : {std::pair(&all[n].raw, &raw), std::pair(&all[n].low, &low)}) {
          Vals c;
          for (int64_t k = 0; k < 4; ++k)
            c.push_back((*sums)[(w * 2 + half) * 4 + k]());
          c = e.multiplyUnsigned(*operand, {b[n].first, b[n].second}, c);
          for (int64_t k = 0; k < 4; ++k)
            (*sums)[(w * 2 + half) * 4 + k].set(c[k]);
        }
    }
  }
}

/// As multiply, but what a row gains is added to the output at once, in another unit.
void AttendKernel::addAtOnce(ArrayRef<Val> rows, bool isSigned, ArrayRef<std::pair<Val, Val>> b, double unit) {
  const int64_t each = valueRow.each();
  Vals zero(4, number(0));
  for (int64_t w = 0; w < each; ++w) {
    std::array<Vals, 2> halves = transposed([&](int64_t token) { return rows[token * each + w]; });
    for (int64_t half = 0; half < 2; ++half) {
      Vals low, high;
      for (Val byte : halves[half]) {
        Val nibbles = isSigned ? byte ^ number(int32_t(0x88888888)) : byte;
        low.push_back(nibbles & 0x0f0f0f0f);
        high.push_back(shrLogical(nibbles, number(4)) & 0x0f0f0f0f);
      }
      for (int64_t n = 0; n < quads; ++n) {
        Vals l = e.multiplyUnsigned(low, {b[n].first, b[n].second}, zero), h = e.multiplyUnsigned(high, {b[n].first, b[n].second}, zero);
        auto sum = [&](Vals &c, int64_t k) { return (c[2 * k] << number(8)) + c[2 * k + 1]; };
        whereInside(w, [&] { addToOutput(n, valueWord(w) * 8 + 4 * half, {sum(l, 0), sum(h, 0), sum(l, 1), sum(h, 1)}, unit); });
      }
    }
  }
}

//===----------------------------------------------------------------------===//
// 32 tokens
//===----------------------------------------------------------------------===//

/// Those under way.
void AttendKernel::addBatch() {
  const int64_t keyEach = keyRow.each();
  if (!finerIsAhead) // cheaper to know again than to keep
    note(wantsOf(entry()));
  SmallVector<Variable> products;
  Val mk = shrLogical(wantKey(), g);
  for (int64_t i = 0; i < quads * 4; ++i)
    products.push_back(e.variable(number(0)));
  if (keyPlanes > 1)
    e.when(wantKey() != 0, [&] {
      for (int64_t r = 0; r < 4; r += 2) {
        Vals rows;
        for (int64_t j = r; j < r + 2; ++j)
          if (finerIsAhead)
            for (int64_t i = 0; i < keyEach; ++i)
              rows.push_back(finer[j * keyEach + i]());
          else
            rows.append(predicated(isSet(mk, 8 * j), keyEach, [&] { return loadRow(keyRow, key.planes[1], e.load(keyPlaces, entry() + g + 8 * j), q); }));
        for (int64_t n = 0; n < quads; ++n) {
          auto two = keyProducts(rows, n);
          products[n * 4 + r].set(two[0]);
          products[n * 4 + r + 1].set(two[1]);
        }
      }
    });
  SmallVector<Vals> words;
  SmallVector<std::pair<Val, Val>> b;
  Val mv = shrLogical(wantValue(), g), m1 = shrLogical(wantSecond(), g);
  for (int64_t n = 0; n < quads; ++n) {
    Vals own;
    for (int64_t r = 0; r < 4; ++r)
      own.push_back(products[n * 4 + r]());
    words.push_back(weigh(entry(), n, mk, mv, m1, {}, {}, own, {}, /*isFree=*/true));
    b.push_back(digits(words[n][0], words[n][1], words[n][2], words[n][3]));
  }
  auto rowsOf = [&](SmallVector<Variable> &from) {
    Vals rows;
    for (Variable &word : from)
      rows.push_back(word());
    return rows;
  };
  multiply(rowsOf(first), true, b);
  if (valuePlanes > 1)
    e.when(wantSecond() != 0, [&] {
      multiply(secondIsAhead ? rowsOf(second) : loadSecond(valuePlacesAt(entry()), wantSecond()), false, sixteenths(words));
      if (!secondIsAhead) // the list's places are read: others may take its part of the ring
        e.warpBarrier();
    });
  batches.set(batches() + 1);
}

/// Loud tokens, to all planes that they want, with nothing under way.
void AttendKernel::takeLoud(Val at_, Val count) {
  e.when(count < kBatch, [&] { padTo32(at_, count); });
  const int64_t keyEach = keyRow.each(), byteEach = keyBytes.each(), valueEach = valueRow.each();
  Wants wants = wantsOf(at_);
  Val wantV = wants.value[0], wantV1 = wants.value[1], wantV2 = wants.value[2];
  Val zero = number(0), mk = shrLogical(wants.key[0], g), mk2 = shrLogical(wants.key[1], g);
  SmallVector<Vals> finerProducts(quads, Vals(4, zero)), finestProducts(quads, Vals(keyPlanes > 2 ? 4 : 0, zero));
  for (int64_t r = 0; r < 4; r += 2) { // two rows at a time: registers are short
    Vals rows1, rows2;
    for (int64_t j = 0; j < 2; ++j) {
      Val place = e.load(keyPlaces, at_ + g + 8 * (r + j));
      if (keyPlanes > 1)
        rows1.append(predicated(isSet(mk, 8 * (r + j)), keyEach, [&] { return loadRow(keyRow, key.planes[1], place, q); }));
      if (keyPlanes > 2)
        rows2.append(predicated(isSet(mk2, 8 * (r + j)), byteEach, [&] { return loadRow(keyBytes, lastPlane(Argument::Key), place, q); }));
    }
    for (int64_t n = 0; n < quads; ++n) {
      auto keep = [&](Vals &to, std::array<Val, 2> two) {
        to[r] = two[0];
        to[r + 1] = two[1];
      };
      if (keyPlanes > 1)
        keep(finerProducts[n], keyProducts(rows1, n));
      if (keyPlanes > 2)
        keep(finestProducts[n], keyByteProducts(rows2, n));
    }
  }
  SmallVector<Vals> words;
  SmallVector<std::pair<Val, Val>> b, rests;
  Val mv = shrLogical(wantV, g), m1 = shrLogical(wantV1, g), m2 = shrLogical(wantV2, g);
  for (int64_t n = 0; n < quads; ++n) {
    Vals rest;
    words.push_back(weigh(at_, n, mk, mv, m1, mk2, valuePlanes > 2 ? m2 : Val(), finerProducts[n], finestProducts[n], /*isFree=*/quads > 1 || exact, exact ? &rest : nullptr));
    b.push_back(digits(words[n][0], words[n][1], words[n][2], words[n][3]));
    if (exact)
      rests.push_back(digits(rest[0], rest[1], rest[2], rest[3]));
  }
  Vals places = valuePlacesAt(at_);
  Val l2 = shrLogical(wantV2, q * 8);
  Vals rows;
  for (int64_t i = 0; i < 8; ++i)
    rows.append(loadRow(valueRow, value.planes[0], places[i], g));
  multiply(rows, true, b);
  if (exact)
    addAtOnce(rows, true, rests, 0x1p-16);
  if (valuePlanes > 1)
    e.when(wantV1 != 0, [&] {
      if (exact) // whose weights may be as small as a step
        addAtOnce(loadSecond(places, wantV1), false, b, 0x1p-4);
      else
        multiply(loadSecond(places, wantV1), false, sixteenths(words));
    });
  if (valuePlanes > 2)
    e.when(wantV2 != 0, [&] {
      // A word of plane 0 has the channels of two words here.
      for (int64_t w = 0; w < valueEach; ++w) {
        Val word = valueWord(w);
        if (!valueRow.isInside(w))
          word = min(word, number(valueWords - 1));
        Vals rows;
        for (int64_t t = 0; t < 8; ++t)
          rows.append(predicated(isSet(l2, t), 2, [&]() -> Vals {
            Val start = e.at(lastPlane(Argument::Value), e.i8(), wide(places[t]) * shape.valueDim);
            Val two = e.loadGlobal(e.at(start, e.i32(), word * 2), vectorOf(e.i32(), 2), number(0));
            return {aligned::lane(two, 0), aligned::lane(two, 1)};
          }));
        for (int64_t k = 0; k < 2; ++k) {
          std::array<Vals, 2> halves = transposed([&](int64_t t) { return rows[2 * t + k]; });
          for (int64_t n = 0; n < quads; ++n) {
            Vals sums;
            for (const Vals &half : halves) {
              Vals c = e.multiplyUnsigned(half, {b[n].first, b[n].second}, Vals(4, zero));
              sums.push_back((c[0] << number(8)) + c[1]);
              sums.push_back((c[2] << number(8)) + c[3]);
            }
            whereInside(w, [&] { addToOutput(n, valueWord(w) * 8 + 4 * k, sums, 0x1p-12); });
          }
        }
      }
    });
  batches.set(batches() + 1);
}

/// Asks for the rows of the next 32.
void AttendKernel::fetch() {
  const int64_t keyEach = keyRow.each(), valueEach = valueRow.each();
  Val start = (head() & (kRing - 1)) + ringOfTokens();
  entry.set(start);
  head.set(head() + kBatch);
  Wants wants = wantsOf(start);
  note(wants);
  Val wantK = wants.key[0], wantV1 = wants.value[1];
  Vals places = valuePlacesAt(start);
  auto keep = [](SmallVector<Variable> &to, int64_t from, const Vals &words) {
    for (auto [i, word] : llvm::enumerate(words))
      to[from + i].set(word);
  };
  for (int64_t i = 0; i < 8; ++i)
    keep(first, i * valueEach, loadRow(valueRow, value.planes[0], places[i], g));
  if (valuePlanes > 1 && secondIsAhead)
    e.when(wantV1 != 0, [&] { keep(second, 0, loadSecond(places, wantV1)); });
  if (keyPlanes > 1 && finerIsAhead)
    e.when(wantK != 0, [&] {
      Val mine = shrLogical(wantK, g);
      for (int64_t r = 0; r < 4; ++r) {
        Val place = e.load(keyPlaces, start + g + 8 * r);
        e.when(isSet(mine, 8 * r), [&] { keep(finer, r * keyEach, loadRow(keyRow, key.planes[1], place, q)); });
      }
    });
}
