// Weights of listed tokens, and rows of V times weights.
#include "Attend.h"

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

void Attend::weigh() {
  for (Rows *rows : {&nibbleRows, &byteRows, &floatRows})
    e.store(index(0), rows->count, index(0));
  Type i32s = vectorOf(e.i32(), lanes);
  e.loop(index(0), counted(listCount), lanes, {index(0)}, [&](Val at, Vals from) -> Vals {
    Val word = e.load(words, at, lanes), codes = valueCode(word), inChunk = tokenOf(word), numbers = tokenNumbers(inChunk);
    Val scale = scaleOf(codes), inverse = scaleOf(splatI(256) - codes); // 2^(code / 8 - 16) and one over it
    Val isRefined = wantOf(word) > 0, there = isBelow(at, counted(listCount)) & (codes != storage::kAside);
    Val next = from[0];
    forRows([&](Val h) {
      Val x = e.load(scores, h * kList + at, lanes);
      if (keyPlanes > 1) { // finer scores take the place of coarse ones
        x = expand(shape.isa, isRefined, x, levels.front().scores, h * kList + from[0]);
        e.store(x, scores, h * kList + at);
      }
      Val p = probability(x, h, numbers);
      if (keyPlanes > 1)
        addRefined(h, codes, select(isRefined, p, splatF(0.0)));
      e.store(p * scale * splatF(e.load(unitInverse, h)), rowWeight, h * lanes);
    });
    if (keyPlanes > 1)
      next = from[0] + countOf(isRefined);
    auto weightOf = [&](Val h) { return e.load(rowWeight, h * lanes, lanes); };
    Val inFloats, inBytes, inNibbles, none = e.constant(vectorOf(e.types.getI1Type(), lanes), 0), bits;
    if (exact) {
      inFloats = there;
      inBytes = inNibbles = none;
    } else {
      auto above = [&](double limit) { return there & anyRow([&](Val h) { return weightOf(h) > limit; }); };
      Val beyondBytes = above(kLargestWeight / byteSteps), beyondNibbles = above(16 * kSlightlyBelow), isRead = above(kSlightlyBelow);
      inFloats = byBytes ? beyondBytes : byNibbles ? beyondNibbles : isRead;
      inNibbles = byNibbles ? isRead & invert(beyondNibbles) : none;
      inBytes = byBytes ? (byNibbles ? beyondNibbles & invert(beyondBytes) : isRead & invert(beyondBytes)) : none;
      if (isLimited(CacheRole::Value)) {
        // What limits raise is read in floats, as finely as they say; what they lower below its tier, too: there bits can be cut off.
        Val rule = select(inFloats, splatI(valueBits / 4), select(inBytes, splatI(2), select(inNibbles, splatI(1), splatI(0))));
        Val layers = limit(rule, CacheRole::Value, numbers);
        Val changed = there & (layers != rule) & anyRow([&](Val h) { return e.load(scores, h * kList + at, lanes) > kLowest; });
        bits = layers * 4;
        inFloats = (inFloats | changed) & (layers > 0);
        inBytes = inBytes & invert(changed);
        inNibbles = inNibbles & invert(changed);
      }
    }
    Val places = valuePlaceOf(inChunk);
    Val spread = convert((numbers * kRoundingDither) & (storage::kDitherSteps - 1), e.f32()) * (1.0 / storage::kDitherSteps);
    Val dithers = ditherSteps(numbers, CacheRole::Value);
    if (!exact && (byNibbles || byBytes)) {
      // Rows of 8 bits and of 4 differ in their step, and in the middle of what is missing less the dither; nibbles are read with 8 added.
      auto either = [&](double ofBytes, double ofNibbles) {
        return !byNibbles ? splatF(ofBytes) : !byBytes ? splatF(ofNibbles) : select(inNibbles, splatF(ofNibbles), splatF(ofBytes));
      };
      const double half = storage::kDitherSteps / 2;
      Val steps = either(byteSteps, kNibbleSteps), step = either(1 / byteSteps, 1 / kNibbleSteps);
      Val rest = either(std::exp2(7) + half, std::exp2(11) + half - 0x8000) - dithers, inIntegers = inBytes | inNibbles;
      SmallVector<std::pair<Rows *, Val>> lists;
      if (byBytes)
        lists.push_back({&byteRows, inBytes});
      if (byNibbles)
        lists.push_back({&nibbleRows, inNibbles});
      for (auto [list, mask] : lists)
        compress(shape.isa, mask, places, list->places, counted(list->count));
      forRows([&](Val h) {
        Val whole = select(inIntegers, min(convert(fma(weightOf(h), steps, spread), e.i32()), 255), e.constant(i32s, 0));
        Val weight = convert(whole, e.f32()) * step, mass = weight * inverse;
        for (auto [list, mask] : lists)
          compress(shape.isa, mask, whole, list->weights, h * kList + counted(list->count));
        addTo(readMass, h, mass);
        addTo(lean, h, weight * rest);
        addLow(lowRead, h, codes, mass);
      });
      for (auto [list, mask] : lists)
        addTo(list->count, countOf(mask));
    }
    e.when(anyOf(inFloats), [&] {
      Val to = counted(floatRows.count);
      compress(shape.isa, inFloats, places, floatRows.places, to);
      compress(shape.isa, inFloats, dithers, floatRows.ditherSteps, to);
      if (bits.e)
        compress(shape.isa, inFloats, bits, floatRows.bits, to);
      forRows([&](Val h) {
        Val weight = select(inFloats, weightOf(h), splatF(0.0));
        compress(shape.isa, inFloats, weight, floatRows.weights, h * kList + to);
        addTo(readMass, h, weight * inverse);
        addLow(lowRead, h, codes, weight * inverse);
      });
      e.store(to + countOf(inFloats), floatRows.count, index(0));
    });
    auto readBits = [&] { return select(inFloats, bits.e ? min(bits, valueBits) : splatI(valueBits), select(inBytes, splatI(8), select(inNibbles, splatI(4), splatI(0)))); };
    if (bits.e)
      addTo(valueBitsRead, convert(reduceAdd(readBits()), e.types.getIndexType()));
    e.when(record, [&] { writeDown(word, isBelow(at, counted(listCount)), readBits(), at); });
    return {next};
  });
  if (!isLimited(CacheRole::Value)) // every row of a list is read alike
    addTo(valueBitsRead, counted(floatRows.count) * valueBits + counted(byteRows.count) * 8 + counted(nibbleRows.count) * 4);
}

/// What the sum of p gains by finer scores, or loses.
void Attend::addRefined(Val h, Val codes, Val change) {
  addTo(refined, h, change);
  addLow(lowRefined, h, codes, change);
}

/// Adds what rows below the floor (M3) have of a mass.
void Attend::addLow(Buffer sums, Val h, Val codes, Val mass) {
  e.when(someLow, [&] { addTo(sums, h, select(codes < splatI(floorCode), mass, splatF(0.0))); });
}

/// What is read of listed tokens, one after another: somebody wants to know.
void Attend::writeDown(Val word, Val mask, Val bits, Val at) {
  Buffer wordOf = e.local(e.i32(), lanes), bitsOf = e.local(e.i32(), lanes);
  e.store(word, wordOf, index(0));
  e.store(bits, bitsOf, index(0));
  Val base = chunkFirst * kTile;
  e.loop(index(0), countOf(mask), 1, [&](Val i) {
    Val entry = e.load(wordOf, i), token = base + convert(shiftRight(entry, kTokenShift) & (kChunk - 1), e.types.getIndexType());
    Val want = shiftRight(entry, kWantShift), keyRead = select(isFull, i32(storage::bitsBefore(keyFormat, keyPlanes)), i32(storage::bitsBefore(keyFormat, 1)));
    for (int64_t plane = 1; plane < keyPlanes; ++plane)
      keyRead = select(want >= plane, i32(storage::bitsBefore(keyFormat, plane + 1)), keyRead);
    e.store(convert(keyRead, e.i8()), keyBits, token - splitFirst);
    e.store(convert(e.load(bitsOf, i), e.i8()), valueBitsOf, token - splitFirst);
    e.loop(index(0), index(rows), 1, [&](Val h) { // finer scores, for the certificate
      e.store(e.load(scores, h * kList + at + i), finest, scoreAt(token / index(kTile), h) + token % index(kTile));
    });
  });
}

//===----------------------------------------------------------------------===//
// Rows of V
//===----------------------------------------------------------------------===//

/// The top 8 bits of `count` channels of a row as signed bytes. From planes of 4 bits: the even channels, then the odd ones.
Val Attend::topByte(Val place, int64_t channel, int64_t count) {
  auto load = [&](int64_t plane, int64_t bytes, int64_t at) { return e.load(value.plane[plane], place * (shape.valueDim * valueFormat.width[plane] / 8) + at, bytes); };
  if (valueFormat.width[0] == 8)
    return load(0, count, channel);
  Val high = load(0, count / 2, channel / 2), low = load(1, count / 2, channel / 2);
  Val even = ((high & 15) << e.constant(high.type(), 4)) | (low & 15), odd = (high & 0xf0) | shiftRight(low, 4);
  SmallVector<int64_t> both;
  for (int64_t i = 0; i < count; ++i)
    both.push_back(i);
  return permute(even, odd, both);
}

/// n 2^16 of `count` channels, as far as n is resident, zeros below: those of channels 0, 4, 8, ..., then of 1, 5, ..., of 2, 6, ... and of 3, 7, ...: four channels are neighbours in
/// memory, so that shifts tell them apart.
Vals Attend::integers(Val place, int64_t channel, int64_t count) {
  Vals sums(4);
  for (int64_t plane = 0; plane < valuePlanes; ++plane) {
    const int64_t width = valueFormat.width[plane], at = 16 + storage::bitsBelow(valueFormat, plane);
    Val bytes = e.load(value.plane[plane], place * (shape.valueDim * width / 8) + channel * width / 8, count * width / 8);
    Val four = bitcast(bytes, e.types.getIntegerType(4 * width));
    if (width == 4)
      four = zext(four, e.i32());
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t left = at - k * width;
      Val amount = e.constant(four.type(), std::abs(left)), moved = left < 0 ? shrLogical(four, amount) : four << amount;
      Val placed = moved & e.constant(four.type(), static_cast<int32_t>(((1u << width) - 1) << at));
      sums[k] = plane ? sums[k] | placed : placed;
    }
  }
  return sums;
}

/// Asks for the cache lines of a row that is added some rows later, one row at a time: more at once are dropped.
void Attend::fetchAhead(const Rows &list, Val at, int64_t channel, int64_t bits) {
  Val place = convert(e.load(list.places, at + kRowsAhead), e.types.getIndexType()); // behind the end whatever was there: nothing comes of it
  for (int64_t plane = 0; plane < valuePlanes && storage::bitsBefore(valueFormat, plane) < bits; ++plane) {
    const int64_t width = valueFormat.width[plane], byte = channel * width / 8;
    if (byte % 64 == 0)
      e.prefetch(value.plane[plane], place * storage::rowBytes(width, shape.valueDim) + byte);
  }
}

/// Adds four rows at a time: their bytes interleave into words that hold one channel of each.
void Attend::addInteger(Rows &list, bool nibbles, Buffer sums) {
  const int64_t dim = shape.valueDim, channels = channelsOf(dim, registerBytes), words = channels / 4;
  Val end = counted(list.count);
  e.when(end > 0, [&] {
    e.store(e.splat(e.load(list.places, end - 1), 4), list.places, end);
    forRows([&](Val h) { e.store(e.constant(vectorOf(e.i8(), 4), 0), list.weights, h * kList + end); });
    auto interleave = [&](Val a, Val b, int64_t bytes, bool high) { // within 16 bytes, as instructions do
      SmallVector<int64_t> order;
      for (int64_t lane = 0; lane < channels; lane += 16)
        for (int64_t i = 0; i < 8 / bytes; ++i)
          for (int64_t source : {int64_t(0), channels})
            for (int64_t byte = 0; byte < bytes; ++byte)
              order.push_back(source + lane + (high ? 8 : 0) + i * bytes + byte);
      return permute(a, b, order);
    };
    auto rowOf = [&](Val place, int64_t channel) {
      if (!nibbles)
        return topByte(place, channel, channels);
      Val bytes = e.load(value.plane[0], place * (dim / 2) + channel / 2, channels / 2), flip = e.constant(bytes.type(), 8);
      SmallVector<int64_t> both;
      for (int64_t i = 0; i < channels; ++i)
        both.push_back(i);
      return permute((bytes & 15) ^ flip, shiftRight(bytes, 4) ^ flip, both);
    };
    for (int64_t channel = 0; channel < dim; channel += channels) {
      forRowGroups(rowsAtOnce, [&](Val h0, int64_t count) {
        Vals initial;
        for (int64_t h = 0; h < count; ++h)
          for (int64_t j = 0; j < 4; ++j)
            initial.push_back(e.load(sums, (h0 + h) * dim + (channel + j * words), words));
        Vals total = e.loop(index(0), end, 4, initial, [&](Val i, Vals acc) {
          Val r[4];
          for (int64_t k = 0; k < 4; ++k) {
            fetchAhead(list, i + k, channel, nibbles ? 4 : 8);
            r[k] = rowOf(convert(e.load(list.places, i + k), e.types.getIndexType()), channel);
          }
          Val a = interleave(r[0], r[1], 1, false), b = interleave(r[0], r[1], 1, true), c = interleave(r[2], r[3], 1, false), d = interleave(r[2], r[3], 1, true);
          Val u[4] = {interleave(a, c, 2, false), interleave(a, c, 2, true), interleave(b, d, 2, false), interleave(b, d, 2, true)};
          for (int64_t h = 0; h < count; ++h) {
            Val weights = e.splat(lane(bitcast(e.load(list.weights, (h0 + h) * kList + i, 4), e.i32()), 0), words);
            for (int64_t j = 0; j < 4; ++j)
              acc[4 * h + j] = dot4(shape.isa, acc[4 * h + j], weights, u[j], 255);
          }
          return acc;
        });
        for (int64_t h = 0; h < count; ++h)
          for (int64_t j = 0; j < 4; ++j)
            e.store(total[4 * h + j], sums, (h0 + h) * dim + (channel + j * words));
      });
    }
  });
}

void Attend::addFloats() {
  const int64_t dim = shape.valueDim, channels = channelsOf(dim, registerBytes), quarter = channels / 4;
  const double middle = valueBits < 16 ? std::exp2(15 - valueBits) : 0;
  Val end = counted(floatRows.count);
  e.when(end > 0, [&] {
    for (int64_t channel = 0; channel < dim; channel += channels) {
      forRowGroups(rowsAtOnce, [&](Val h0, int64_t count) {
        auto sumAt = [&](int64_t i) { return (h0 + i / 4) * dim + (channel + i % 4 * quarter); };
        Vals initial;
        for (int64_t i = 0; i < 4 * count; ++i)
          initial.push_back(e.load(floatSums, sumAt(i), quarter));
        Vals total = e.loop(index(0), end, 1, initial, [&](Val i, Vals acc) {
          fetchAhead(floatRows, i, channel, valueBits);
          Vals n = integers(convert(e.load(floatRows.places, i), e.types.getIndexType()), channel, channels);
          Val rest = f32(middle + storage::kDitherSteps / 2) - e.load(floatRows.ditherSteps, i);
          if (isLimited(CacheRole::Value)) { // a token's own bits
            Val missing = i32(16) - min(e.load(floatRows.bits, i), valueBits), one = i32(1);
            for (Val &each : n)
              each = each & e.splat((i32(0) - (one << missing)) << i32(16), quarter);
            Val half = select(missing > 0, (one << missing) >> one, i32(0));
            rest = convert(half + storage::kDitherSteps / 2, e.f32()) - e.load(floatRows.ditherSteps, i);
          }
          Vals x;
          for (Val each : n)
            x.push_back(fma(convert(each, e.f32()), e.constant(vectorOf(e.f32(), quarter), 0x1p-16), e.splat(rest, quarter)));
          for (int64_t h = 0; h < count; ++h) {
            Val weight = e.splat(e.load(floatRows.weights, (h0 + h) * kList + i), quarter);
            for (int64_t k = 0; k < 4; ++k)
              acc[4 * h + k] = fma(x[k], weight, acc[4 * h + k]);
          }
          return acc;
        });
        for (int64_t i = 0; i < 4 * count; ++i)
          e.store(total[i], floatSums, sumAt(i));
      });
    }
  });
}
