// What a step attends to: the tokens of a split whose addend reaches above the thresholds, a chunk of tiles at a time.
//
//   list      tokens that V may be read of, or K be read on, by a test that lets a few too many pass
//   rank      how many planes of K each of them wants, by the rule
//   refine    finer scores: rows of the next planes of K, as many tokens at once as there are lanes
//   weigh     weights p v in units of tau A Z, and where V is read how far
//   add       rows of V times weights: with bytes for weights where they are below 256, in floats above
//
// The unit of weights is the rule's own: a row that is read to 8 bits has 1 < x / tau <= 256, so that a byte holds its weight, and precisely enough: it is rounded up or
// down by a dither of its own, or equal tokens would all be rounded alike. What counts as read mass is what the bytes add up to; all other mass goes to the mean of V.
#include "Attend.h"

#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// What holds for the whole split
//===----------------------------------------------------------------------===//

void Attend::prepareRows() {
  for (Buffer *buffer : {&references, &cuts, &topCuts, &unitInverse, &units})
    *buffer = e.local(e.f32(), rows);
  tables = e.local(e.f32(), std::max<int64_t>(keyPlanes - 1, 1) * rows * kKeyCodes);
  for (Buffer *buffer : {&refined, &lowRefined, &readMass, &lowRead, &lean})
    *buffer = registers();
  logUsual = rowFact(RowFact::LogUsual);
  firstKeyCode = convert(rowFact(RowFact::LargestKey), e.i32()) - (kKeyCodes - 1);
  leverFirst = convert(roundEven(logUsual * storage::kStepsPerOctave - 0.5), e.i32()) - kLeverCount;
  floorCode = convert(rowFact(RowFact::FloorValue), e.i32());
  lever = leverTable(e);
  Buffer misled = misledTable(e);
  HeadPolicies policy = policies();
  Val keyTolerance = exact ? f32(0) : log2(policy.tolerance(CacheRole::Key)), valueTolerance = exact ? f32(0) : log2(policy.tolerance(CacheRole::Value));
  Val bias = convert(key.bias, e.i32()), parts = splits();
  e.loop(index(0), index(rows), 1, [&](Val h) { // once for each split: no code for each row
    // The splits' sums, joined.
    auto part = [&](Val i, int64_t which) { return e.load(buffers.parts, i * (2 * rows) + which * rows + h); };
    Val least = shape.sinkLogits ? larger(sinkOf(h), f32(kLowest)) : f32(kLowest);
    Val reference = e.loop(index(0), parts, 1, {least}, [&](Val i, Vals top) -> Vals { return {larger(part(i, 0), top[0])}; })[0];
    Val own = shape.sinkLogits ? power(sinkOf(h) - reference) : f32(0);
    Val sum = e.loop(index(0), parts, 1, {own}, [&](Val i, Vals sum) -> Vals { return {fma(part(i, 1), power(part(i, 0) - reference), sum[0])}; })[0];
    e.store(reference, references, h);
    Val usual = rowFact(RowFact::Usual);
    if (exact) { // weights are floats of any unit
      Val unit = usual * larger(sum, f32(1e-30));
      e.store(unit, units, h);
      e.store(f32(1) / unit, unitInverse, h);
      return;
    }
    Val logTau = valueTolerance - fact(h, Fact::LogSeen) * 0.5, logShare = logTau + log2(larger(sum, f32(1e-30))) + fact(h, Fact::Shrink);
    Val cut = logShare + logUsual + reference, unit = exp2(max(logShare, -100.0), 5) * usual;
    e.store(cut, cuts, h);
    e.store(unit, units, h);
    e.store(f32(1) / unit, unitInverse, h);
    // K's thresholds for the largest scale codes: a chord of log2 misled for each.
    Val top = f32(kLowest), logNorm = log2(larger(fact(h, Fact::Norm), f32(1e-30)));
    for (int64_t plane = 1; plane < keyPlanes; ++plane) {
      Val eighths = (logNorm - (storage::bitsBefore(keyFormat, plane) + std::log2(3.0) / 2)) * 8 + convert(firstKeyCode - bias, e.f32());
      Val whole = roundEven(eighths - 0.5), fraction = eighths - whole;
      Val first = convert(min(max(convert(whole, e.i32()) - kMisledFirst, 0), kMisledCount - kKeyCodes - 1), e.types.getIndexType());
      Val offset = logUsual + valueTolerance - keyTolerance - std::log2(kPrice);
      for (int64_t i = 0; i < kKeyCodes; i += lanes) {
        Val a = e.load(misled, first + i, lanes), b = e.load(misled, first + (i + 1), lanes);
        Val table = fma(b - a, splatF(fraction), a) + splatF(offset);
        e.store(table, tables, (h + (plane - 1) * rows) * kKeyCodes + i);
        if (plane == 1)
          top = larger(reduceMax(table), top);
      }
    }
    Val above = top + 1 - logUsual;
    e.store(cut - larger(above, f32(0)), topCuts, h);
  });
  Buffer counts = e.buffer(e.advance(value.scales, index(offsetof(aligned_scales, count))), e.i32());
  Val low = e.loop(index(1), convert(max(floorCode, 1), e.types.getIndexType()), 1, {i32(0)}, [&](Val code, Vals sum) -> Vals { return {sum[0] | e.load(counts, code)}; })[0];
  someLow = low != 0;
}

//===----------------------------------------------------------------------===//
// Lists
//===----------------------------------------------------------------------===//

void Attend::placeChunk(Val first, Val last) {
  e.loop(first, last, 1, [&](Val tile) {
    Val within = tile - first;
    e.store(convert((key.placeOf(tile) - within) * kTile, e.i32()), keyPlaces, within);
    e.store(convert((value.placeOf(tile) - within) * kTile, e.i32()), valuePlaces, within);
  });
}

void Attend::list(Val first, Val last) {
  e.store(index(0), listCount, index(0));
  forTiles(first, last, [&](Val tile) {
    auto tokens = [&] {
      Val place = key.placeOf(tile), valuePlace = value.placeOf(tile);
      for (int64_t token = 0; token < kTile; token += lanes) {
        Val valueCodes = codesAt(value, valuePlace, token), keyCodes = codesAt(key, place, token);
        Val octave = octaves(valueCodes), most = larger(octave + splatF(f32(1) - logUsual), splatF(1.0)); // log2(1 + r) <= max(1, 1 + log2 r)
        Val codeIndex = keyIndex(keyCodes);
        auto rawOf = [&](Val h) { return e.load(buffers.scores, scoreAt(tile, h) + token, lanes); };
        auto scoreOf = [&](Val h) { return final(rawOf(h), h, tile * kTile + token); };
        Val wanted = anyRow([&](Val h) {
          if (exact)
            return scoreOf(h) > kLowest;
          Val reach = octave;
          if (keyPlanes > 1)
            reach = larger(reach, most + keyThreshold(1, h, codeIndex));
          return reach + scoreOf(h) > splatF(e.load(cuts, h));
        });
        Val each = splatI(convert((tile - chunkFirst) * kTile + token, e.i32())) + e.iota(e.i32(), lanes);
        if (limited && !exact) { // limits may want what the rule does not; of tokens that somebody sees
          Val numbers = tokenNumbers(each), least = splatI(keyFormat.width[0] / 4);
          Val forced = (limit(least, CacheRole::Key, numbers) > least) | (limit(splatI(0), CacheRole::Value, numbers) > 0);
          wanted = wanted | (forced & anyRow([&](Val h) { return scoreOf(h) > kLowest; }));
        }
        Val at = counted(listCount);
        compress(shape.isa, wanted, valueCodes | (keyCodes << splatI(kKeyShift)) | (each << splatI(kTokenShift)), words, at);
        forRows([&](Val h) { compress(shape.isa, wanted, rawOf(h), scores, h * kList + at); });
        e.store(at + countOf(wanted), listCount, index(0));
      }
    };
    if (exact || limited)
      return tokens();
    Val above = anyRow([&](Val h) {
      Val any;
      for (int64_t t = 0; t < kTopLanes; t += lanes) {
        Val some = e.load(buffers.tops, topAt(tile, h) + t, lanes) > splatF(e.load(topCuts, h));
        any = any.e ? any | some : some;
      }
      return any;
    });
    e.when(anyOf(above), tokens);
  });
  // The last register is filled up with the last token; it weighs nothing there.
  Val end = counted(listCount);
  e.when(end > 0, [&] {
    e.store(splatI(e.load(words, end - 1)), words, end);
    forRows([&](Val h) { e.store(splatF(kHidden), scores, h * kList + end); });
  });
}

/// Writes into each word how many planes of K beyond the first the token wants, and lists those that want any.
void Attend::rank() {
  if (keyPlanes == 1)
    return;
  Level &first = levels.front();
  for (Level &level : levels)
    e.store(index(0), level.count, index(0));
  e.loop(index(0), counted(listCount), lanes, [&](Val at) {
    Val word = e.load(words, at, lanes), codes = keyCode(word), valueCodes = valueCode(word);
    Val lever = leverOf(valueCodes, octaves(valueCodes)), codeIndex = keyIndex(codes);
    Val want;
    if (exact) {
      want = splatI(keyPlanes - 1);
    } else {
      want = splatI(0);
      for (int64_t plane = 1; plane < keyPlanes; ++plane) {
        Val misled = anyRow([&](Val h) {
          return keyThreshold(plane, h, codeIndex) > splatF(e.load(cuts, h)) - (lever + finalOf(e.load(scores, h * kList + at, lanes), h, tokenNumbers(tokenOf(word))));
        });
        want = select(misled, splatI(plane), want);
      }
    }
    if (isLimited(CacheRole::Key)) {
      auto layersOf = [&](int64_t plane) { return splatI(storage::bitsBefore(keyFormat, plane) / 4); };
      Val layers = layersOf(1);
      for (int64_t plane = 2; plane <= keyPlanes; ++plane)
        layers = select(want >= plane - 1, layersOf(plane), layers);
      layers = limit(layers, CacheRole::Key, tokenNumbers(tokenOf(word)));
      want = splatI(0); // the first plane is read of all
      for (int64_t plane = 2; plane <= keyPlanes; ++plane)
        want = select(layers >= layersOf(plane), splatI(plane - 1), want);
    }
    // Scores of tokens that are kept aside, on either side, are final.
    want = select(e.splat(invert(isFull), lanes) & (codes != storage::kAside) & (valueCodes != storage::kAside) & isBelow(at, counted(listCount)), want, splatI(0));
    word = word | (want << splatI(kWantShift));
    e.store(word, words, at);
    Val mask = want > 0, to = counted(first.count);
    compress(shape.isa, mask, word, first.words, to);
    compress(shape.isa, mask, keyPlaceOf(tokenOf(word)), first.places, to);
    forRows([&](Val h) { compress(shape.isa, mask, e.load(scores, h * kList + at, lanes), first.scores, h * kList + to); });
    e.store(to + countOf(mask), first.count, index(0));
  });
}

//===----------------------------------------------------------------------===//
// The state
//===----------------------------------------------------------------------===//

void Attend::finish(Val split, const StateBuffers &state) {
  const int64_t dim = shape.valueDim, channels = channelsOf(dim, registerBytes), words = channels / 4;
  std::pair<Val, Val> tiles = tilesOf(split);
  Val first = tiles.first, last = tiles.second;
  Buffer total = e.local(e.f32(), 1), kept = e.local(e.f32(), lanes);
  Buffer lowMass = e.local(e.f32(), rows), asideMass = e.local(e.f32(), rows), aside = e.local(e.f32(), rows * dim);
  Type row = vectorOf(e.f32(), dim);
  forRows([&](Val h) {
    e.store(f32(0), lowMass, h);
    e.store(f32(0), asideMass, h);
  });
  // Rows below the floor that are not read stand for zero (M3). Their mass is of scores as they are now: nothing is made finer after this.
  e.when(someLow, [&] {
    Buffer now = e.buffer(select(record, finest.pointer, buffers.scores.pointer), e.f32());
    forTiles(first, last, [&](Val tile) {
      Val place = value.placeOf(tile);
      e.loop(index(0), index(kTile), lanes, [&](Val token) {
        Val codes = codesAt(value, place, token), low = (codes < splatI(floorCode)) & (codes != storage::kAside);
        e.when(anyOf(low), [&] {
          e.loop(index(0), index(rows), 1, [&](Val h) {
            Val p = power(final(e.load(now, scoreAt(tile, h) + token, lanes), h, tile * kTile + token) - splatF(e.load(references, h)));
            e.store(e.load(lowMass, h) + reduceAdd(select(low, p, splatF(0.0))), lowMass, h);
          });
        });
      });
    });
    e.when(invert(record), [&] { forRows([&](Val h) { e.store(e.load(lowMass, h) + sumOf(lowRefined, h), lowMass, h); }); });
  });
  e.when(value.aside.areThere(), [&] {
    forRows([&](Val h) { e.store(e.constant(row, 0), aside, h * dim); });
    value.aside.forEach([&](Val token, Buffer values) {
      Val tile = token / index(kTile);
      e.when((tile >= first) & (tile < last), [&] {
        e.loop(index(0), index(rows), 1, [&](Val h) {
          Val x = shown(e.load(buffers.scores, scoreAt(tile, h) + token % index(kTile)), h, token);
          Val hidden = x <= kHidden; // NaN is not, nor is what a key kept aside makes -inf
          e.when(invert(hidden), [&] {
            Val p = power(final(x, h, token) - e.load(references, h));
            e.store(e.load(asideMass, h) + p, asideMass, h);
            e.store(e.load(aside, h * dim, dim) + e.splat(p, dim) * e.load(values, index(0), dim), aside, h * dim);
          });
        });
      });
    });
  });
  Val valueUnit = rowFact(RowFact::ValueUnit) * 0x1p-15, parts = splits();
  e.loop(index(0), index(rows), 1, [&](Val h) {
    auto part = [&](Val i, int64_t which) { return e.load(buffers.parts, i * (2 * rows) + which * rows + h); };
    Val reference = e.load(references, h), unit = e.load(units, h);
    e.store(coarseSum(split, h) + sumOf(refined, h), total, index(0));
    e.when(record, [&] { // of the scores as they are now
      e.store(splatF(0.0), kept, index(0));
      forTiles(first, last, [&](Val tile) {
        for (int64_t token = 0; token < kTile; token += lanes) {
          Val p = power(final(e.load(finest, scoreAt(tile, h) + token, lanes), h, tile * kTile + token) - splatF(reference));
          e.store(e.load(kept, index(0), lanes) + p, kept, index(0));
        }
      });
      e.store(reduceAdd(e.load(kept, index(0), lanes)), total, index(0));
    });
    Val sum = e.load(total, index(0));
    Val rest = sum - sumOf(readMass, h) * unit - e.load(asideMass, h) - (e.load(lowMass, h) - sumOf(lowRead, h) * unit);
    Val leaning = sumOf(lean, h);
    e.loop(index(0), index(dim), channels, [&](Val channel) {
      Val total = e.splat(leaning, channels);
      if (!exact) {
        auto ordered = [&](Buffer sums, bool halves) { // words of channel 16 (i / 4) + 4 j + i % 4 of the bytes' order; where `halves`, that has the even channels first
          Val j[4];
          for (int64_t k = 0; k < 4; ++k)
            j[k] = e.load(sums, h * dim + (channel + k * words), words);
          auto joined = [&](Val a, Val b) {
            SmallVector<int64_t> both;
            for (int64_t i = 0; i < a.lanes() + b.lanes(); ++i)
              both.push_back(i);
            return permute(a, b, both);
          };
          Val all = joined(joined(j[0], j[1]), joined(j[2], j[3]));
          SmallVector<int64_t> order;
          for (int64_t c = 0; c < channels; ++c) {
            int64_t byte = halves ? c / 2 + (c % 2) * (channels / 2) : c;
            order.push_back(byte % 16 / 4 * words + byte / 16 * 4 + byte % 4);
          }
          return convert(permute(all, all, order), e.f32());
        };
        if (byBytes)
          total = fma(ordered(byteSums, byNibbles), e.constant(total.type(), 256.0 / byteSteps), total);
        if (byNibbles)
          total = fma(ordered(nibbleSums, true), e.constant(total.type(), 4096.0 / kNibbleSteps), total);
      }
      SmallVector<int64_t> natural;
      for (int64_t c = 0; c < channels; ++c)
        natural.push_back(c % 4 * words + c / 4);
      Val floats = e.load(floatSums, h * dim + channel, channels);
      total = total + permute(floats, floats, natural);
      total = total * e.splat(unit, channels); // first: where scores mislead by far, the product of both units is no float
      Val out = fma(total, e.splat(valueUnit, channels), e.splat(rest, channels) * e.load(buffers.mean, channel, channels));
      e.store(out, state.acc, h * dim + channel);
    });
    e.when(value.aside.areThere(), [&] { e.store(e.load(state.acc, h * dim, dim) + e.load(aside, h * dim, dim), state.acc, h * dim); });
    // A state without weight is the identity.
    Val nothing = sum == 0;
    e.when(nothing, [&] { e.store(e.constant(row, 0), state.acc, h * dim); });
    // What all tokens share by the offset that was taken off K is no matter of the softmax, but of what its state is merged with.
    Val shared = shape.hasSoftcap() ? f32(0) : fact(h, Fact::Shift);
    e.store(select(nothing, f32(-INFINITY), (reference + shared) * (1 / kLog2e)), state.max, h);
    if (!shape.maskedZero) { // softmax of nothing but -inf is 0 / 0
      Val all = e.loop(index(0), parts, 1, {f32(0)}, [&](Val i, Vals all) -> Vals { return {all[0] + part(i, 1)}; })[0];
      if (!shape.sinkLogits)
        sum = select((all == 0) & (key.tokens > 0), f32(NAN), sum);
    }
    e.store(sum, state.sum, h);
  });
  if (shape.certified)
    certify(split, state);
}

void Attend::report(Val first, Val last) {
  Type indexType = e.types.getIndexType();
  Buffer visibleTokens = e.local(indexType, 1);
  e.store(index(0), visibleTokens, index(0));
  forTiles(first, last, [&](Val tile) { e.store(e.load(visibleTokens, index(0)) + min(key.tokens - tile * kTile, index(kTile)), visibleTokens, index(0)); });
  Val visible = e.load(visibleTokens, index(0)), held = max(min(last * kTile, key.tokens) - first * kTile, 0);
  constexpr int64_t kCodeBits = 8;
  Val scanned = select(isFull, index(storage::bitsBefore(keyFormat, keyPlanes)), index(keyFormat.width[0]));
  Val keyTotal = visible * (scanned * shape.keyDim + kCodeBits) + e.load(keyBitsRead, index(0)) * shape.keyDim;
  Val valueTotal = visible * kCodeBits + e.load(valueBitsRead, index(0)) * shape.valueDim;
  auto asI64 = [&](Val number) { return convert(number, e.i64()).value; };
  Value id = in.attention.value;
  func::CallOp::create(e.b, "aligned_rt_tally", TypeRange(),
                       ValueRange{id, asI64(keyTotal), asI64(held * shape.keyDim), asI64(valueTotal), asI64(held * shape.valueDim)});
  e.when(record, [&] {
    func::CallOp::create(e.b, "aligned_rt_bits", TypeRange(),
                         ValueRange{id, asI64(row), asI64(first * kTile), asI64(held), asI64(index(1)), keyBits.pointer.value, valueBitsOf.pointer.value});
  });
}

/// One pass over the split, from nothing.
void Attend::attendTo(Val first, Val last) {
  for (Buffer buffer : {refined, lowRefined, readMass, lowRead, lean})
    e.loop(index(0), index(rows), 1, [&](Val h) { e.store(splatF(0.0), buffer, h * lanes); });
  e.store(index(0), keyBitsRead, index(0));
  e.store(index(0), valueBitsRead, index(0));
  e.loop(index(0), index(rows * shape.valueDim), 16, [&](Val i) {
    e.store(e.constant(vectorOf(e.f32(), 16), 0), floatSums, i);
    e.store(e.constant(vectorOf(e.i32(), 16), 0), byteSums, i);
    e.store(e.constant(vectorOf(e.i32(), 16), 0), nibbleSums, i);
  });
  e.when(record, [&] {
    Type bytes = vectorOf(e.i8(), kTile);
    e.loop(index(0), index(kSplitTiles * kTile), kTile, [&](Val i) {
      e.store(e.constant(bytes, 0), keyBits, i);
      e.store(e.constant(bytes, 0), valueBitsOf, i);
    });
    forTiles(first, last, [&](Val tile) {
      e.store(e.splat(select(isFull, e.constant(e.i8(), double(storage::bitsBefore(keyFormat, keyPlanes))), e.constant(e.i8(), keyFormat.width[0])), kTile), keyBits, (tile - first) * kTile);
      e.loop(index(0), index(rows), 1, [&](Val h) { e.store(e.load(buffers.scores, scoreAt(tile, h), kTile), finest, scoreAt(tile, h)); });
    });
  });
  e.loop(first, last, kChunkTiles, [&](Val chunk) {
    chunkFirst = chunk;
    Val end = min(chunk + kChunkTiles, last);
    placeChunk(chunk, end);
    list(chunk, end);
    lap(ALIGNED_PART_LIST);
    e.when(counted(listCount) > 0, [&] {
      rank();
      if (keyPlanes > 1)
        refine(0);
      lap(ALIGNED_PART_REFINE);
      for (auto [level, buffers] : llvm::enumerate(levels))
        addTo(keyBitsRead, counted(buffers.count) * keyFormat.width[level + 1]);
      weigh();
      lap(ALIGNED_PART_WEIGH);
      if (!exact && byNibbles)
        addInteger(nibbleRows, true, nibbleSums);
      if (!exact && byBytes)
        addInteger(byteRows, false, byteSums);
      addFloats();
      lap(ALIGNED_PART_ADD);
    });
  });
}

/// What the scan found of the split, relative to the row's reference.
Val Attend::coarseSum(Val split, Val h) {
  auto part = [&](int64_t which) { return e.load(buffers.parts, split * (2 * rows) + which * rows + h); };
  return part(1) * power(part(0) - e.load(references, h));
}

void Attend::emit(Val split, const StateBuffers &state) {
  std::pair<Val, Val> tiles = tilesOf(split);
  Val first = tiles.first, last = tiles.second;
  keyPlaces = e.local(e.i32(), kChunkTiles);
  valuePlaces = e.local(e.i32(), kChunkTiles);
  rowWeight = registers();
  words = e.local(e.i32(), kList);
  scores = e.local(e.f32(), rows * kList);
  listCount = counter();
  for (int64_t plane = 1; plane < keyPlanes; ++plane)
    levels.push_back({e.local(e.i32(), kList), e.local(e.i32(), kList), e.local(e.f32(), rows * kList), e.local(e.i64(), kChunk / lanes), counter()});
  for (Rows *list : {&nibbleRows, &byteRows})
    *list = {e.local(e.i32(), kList), e.local(e.i8(), rows * kList), {}, {}, counter()};
  floatRows = {e.local(e.i32(), kList), e.local(e.f32(), rows * kList), e.local(e.f32(), kList), e.local(e.i32(), kList), counter()};
  byteSums = e.local(e.i32(), rows * shape.valueDim);
  nibbleSums = e.local(e.i32(), rows * shape.valueDim);
  floatSums = e.local(e.f32(), rows * shape.valueDim);
  keyBitsRead = counter();
  valueBitsRead = counter();
  keyBits = e.local(e.i8(), kSplitTiles * kTile);
  finest = e.local(e.f32(), kSplitTiles * kTile * rows);
  valueBitsOf = e.local(e.i8(), kSplitTiles * kTile);
  origin = first;
  isFull = rowFact(RowFact::Full) > 0;
  splitFirst = first * kTile;
  Val asked = e.wrap(func::CallOp::create(e.b, "aligned_rt_recording", TypeRange(e.i32()), ValueRange()).getResult(0));
  record = shape.certified ? e.constant(e.types.getI1Type(), 1) : (asked & ALIGNED_RECORD_BITS) != 0;

  lap(ALIGNED_PART_CALL);
  prepareRows();
  prepareRowWeights();
  lap(ALIGNED_PART_RULE);
  // Where coarse scores misled by far, the sum as refined is a small difference of large numbers. Then all is done again, and finer scores are kept, to be summed anew.
  Vals done = e.repeat(
      {record, e.constant(e.types.getI1Type(), 1)}, [](Vals pass) { return pass[1]; },
      [&](Vals pass) -> Vals {
        record = pass[0];
        attendTo(first, last);
        Val misled = e.loop(index(0), index(rows), 1, {e.constant(e.types.getI1Type(), 0)}, [&](Val h, Vals any) -> Vals {
          Val coarse = coarseSum(split, h);
          return {any[0] | (coarse + sumOf(refined, h) < coarse * kMisled)};
        })[0];
        Val again = misled & invert(record);
        return {record | again, again};
      });
  record = done[0];
  finish(split, state);
  report(first, last);
  lap(ALIGNED_PART_FINISH);
}

void aligned::emitAttend(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, Val split, const StepBuffers &buffers, const StateBuffers &state) {
  Attend(e, shape, in, row, buffers).emit(split, state);
}
