// What a step attends to: tokens whose addend reaches above the thresholds, 32 at a time.
//
//   look    a tile's scores against thresholds, two tokens a lane in f16; those that any query row wants go into a ring of the warp
//   fetch   32 of a ring: plane 0 of their rows of V, plane 1 of V and of K where they are wanted; not waited for
//   add     finer scores, weights, and rows times weights, while the next 32 are under way
//   loud    tokens that want all planes have a ring of their own, so that others don't wait for them
//   join    what is left in rings at the end, all warps share
//
// Rows of V are transposed on their way to the tensor cores: 4 x 4 bytes, so that a word has a byte of four tokens. Weights are whole numbers of 16 bits, two digits again, in steps that make
// the least that is read 16 of them, and the loudest fit. Nothing depends on when a block of threads runs: partial sums are joined in their order by whoever is the last.
#include "AttendKernel.h"

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Thresholds
//===----------------------------------------------------------------------===//

/// What all splits of a row make of it; a warp for each query row.
void AttendKernel::joinStatistics() {
  HeadPolicies policies(shape, kvHead);
  if (!exact)
    for (auto [to, from] : {std::pair(keyTable, at.keyTable), std::pair(valueTable, at.valueTable)})
      e.store(e.loadGlobal(prepared, e.i32(), thread + from, false), Shared{to.base, e.i32()}, thread);
  e.when(thread == 0, [&] {
    for (auto [i, level] : {std::pair(0, resident(Argument::Value)), std::pair(1, resident(Argument::Key) - 1)})
      e.store((level + 0x6400) * 0x10001, mostLevels, number(i));
  });
  if (!exact)
    e.barrier();
  forHeadsOfWarp(allRows, [&](Val h) {
    Val mine = ofSplits(Argument::Stats, 4);
    Val start = real(kNothing), own = real(0);
    if (shape.sinkLogits) {
      Val isMine = (lane == 0) & (h < rows);
      start = select(isMine, sinkOf(h), start);
      own = select(isMine, real(1), own);
    }
    Vals joined = e.loop(lane, splits, GpuEmitter::kWarp, {start, own, real(0)}, [&](Val i, Vals state) -> Vals {
      Val part = e.loadGlobal(mine, vectorOf(e.f32(), 4), (i * allRows + h) * 4, false);
      Val reference = aligned::lane(part, 0), next = e.largest(state[0], reference), before = e.exp2(state[0] - next), factor = e.exp2(reference - next);
      return {next, fma(state[1], before, aligned::lane(part, 1) * factor), fma(state[2], before, aligned::lane(part, 2) * factor)};
    });
    Val top = warpMax(joined[0]), factor = e.exp2(joined[0] - top);
    Val sum = warpAdd(joined[1] * factor), lowSum = warpAdd(joined[2] * factor);
    e.when(lane == 0, [&] {
      e.store(top, tops, h);
      e.store(sum, sums, h);
      e.store(lowSum, lowSums, h);
      Val logUsual = rowFact(RowFact::LogUsual), largestValue = fma(rowFact(RowFact::LargestValue), real(0.125), real(-16));
      Val isReal = h < rows;
      if (exact) {
        e.store(largestValue + 17.0, references, h);
        return;
      }
      Val logSum = e.log2(e.largest(sum, real(1e-30))) + headFact(h, HeadFact::Shrink) - headFact(h, HeadFact::LogSeen) * 0.5 - kThresholdRounding;
      Val unit = e.log2(policies.tolerance(CacheRole::Value)) + logSum, unitKey = e.log2(policies.tolerance(CacheRole::Key)) + logSum;
      Val cutValue = real(16) - unit - logUsual, cutKey = headFact(h, HeadFact::Relative) - unitKey - std::log2(kPrice);
      // Padding rows want nothing.
      cutValue = select(isReal, cutValue, real(-30000));
      cutKey = select(isReal, cutKey, real(-30000));
      Type f16 = e.types.getF16Type();
      e.store(e.pack(f16, cutValue, cutValue), cuts, h);
      e.store(e.pack(f16, cutKey, cutKey), cuts, h + allRows);
      auto entryOf = [&](Shared table, RowFact code) { return convert(bitcast(e.load(table, convert(rowFact(code), e.i32())), f16), e.f32()); };
      Val most = e.largest(cutValue + e.largest(largestValue, logUsual - 16.0), cutKey + entryOf(keyTable, RowFact::LargestKey) + entryOf(valueTable, RowFact::LargestValue));
      e.store(isLimited ? real(kNothing) : top - most - 0.01, skips, h);
      e.store(e.smallest(largestValue + 17.0, unit + logUsual + 12.0), references, h);
    });
  });
  e.barrier();
}

//===----------------------------------------------------------------------===//
// Tiles
//===----------------------------------------------------------------------===//

/// The next eight of the warp's tiles, in which there may be something: lane 4 g + q looks at tile g for row q of each quad.
void AttendKernel::nextGroup() {
  Val rowTops = tileTops(), step = splits * kStepWarps;
  e.loopWhile([&] { return (todo() == 0) & (base() < seenTiles); }, [&] {
    Val index = base() + g * step, inside = index < seenTiles, tile = tileAt(min(index, seenTiles - 1));
    Val some = e.flag(false);
    for (int64_t n = 0; n < allRows / kQuad; ++n) {
      Val h = q + 4 * n, own = e.loadGlobal(rowTops, vectorOf(e.f32(), 2), (tile * allRows + h) * 2, false);
      if (exact)
        some = some | (aligned::lane(own, 1) > kNothing);
      else
        some = some | (aligned::lane(own, 1) > e.load(skips, h));
      origins[n].set(aligned::lane(own, 0) - e.load(tops, h));
    }
    Val lanes = e.ballot(some & inside);
    lanes = lanes | shrLogical(lanes, number(1));
    todo.set((lanes | shrLogical(lanes, number(2))) & 0x11111111);
    base.set(base() + step * 8);
  });
}

/// Scores of this lane's two tokens of a tile for `count` query rows from one on: words of two f16, or of f32.
Vals AttendKernel::loadScores(Val tile, Val first, int64_t count) {
  Val all = tileScores(), from = e.at(all, scoreType(), ((tile * 32 + lane) * allRows + first) * 2);
  Vals words;
  for (int64_t i = 0; i < count * (isWide ? 2 : 1); i += 4) {
    Val four = e.loadGlobal(from, vectorOf(e.i32(), 4), number(i), false);
    for (int64_t j = 0; j < 4; ++j)
      words.push_back(aligned::lane(four, j));
  }
  return words;
}

/// Asks for the scores and codes of the next tile; there is none where page is 0.
void AttendKernel::ask() {
  e.when(todo() == 0, [&] { nextGroup(); });
  page.set(number(0));
  e.when(todo() != 0, [&] {
    Val bits = todo(), rest = bits & (bits - 1), bit = e.countBits((bits ^ rest) - 1), step = splits * kStepWarps;
    todo.set(rest);
    where.set(bit);
    Val index = base() - step * 8 + shrLogical(bit, number(2)) * step, tile = tileAt(index);
    page.set(tile + 1);
    Vals words = loadScores(tile, firstRow, padded);
    for (auto [variable, word] : llvm::zip(pair, words))
      variable.set(word);
    for (auto [cache, place, two] : {std::tuple(&key, &keyPlace, &pairCodesKey), std::tuple(&value, &valuePlace, &pairCodesValue)}) {
      Val own = placeAt(cache->places, tile);
      place->set(own);
      two->set(zext(e.loadGlobal(tileOf(cache->codes, own, kTile), e.i16(), lane), e.i32()));
    }
  });
}

/// A tile's tokens, two in each lane: which are wanted, how far, and where they go.
void AttendKernel::look() {
  Type f16 = e.types.getF16Type();
  Val keyCodes = pairCodesKey(), valueCodes = pairCodesValue(), tile = page() - 1, token = tile * kTile + lane * 2;
  Val one, two, levels; // levels: of V in bits 0 and 1, of K in bits 2 and 3, of two tokens
  Vals relative;        // scores beside the row's largest: two f16, or two f32 after another
  auto both = [&](Val level) { return level * 0x10001; };
  auto originOf = [&](int64_t h, Val origin) { return e.shuffleFrom(origin, where() + h % kQuad); };
  auto narrowed = [&](ArrayRef<Val> from, int64_t h, Val origin) {
    if (!isWide)
      return e.halves(from[h]) + e.halves(originOf(h, e.pack(f16, origin, origin)));
    origin = originOf(h, origin);
    return e.halves(e.pack(f16, bitcast(from[2 * h], e.f32()) + origin, bitcast(from[2 * h + 1], e.f32()) + origin));
  };
  Vals own;
  for (Variable &word : pair)
    own.push_back(word());
  Vals narrow; // two f16, of all query rows
  for (int64_t h = 0; h < padded; ++h) {
    Val origin = origins[h / kQuad]();
    for (int64_t part = 1; part < parts; ++part)
      origin = select(firstRow == part * padded, origins[part * quads + h / kQuad](), origin);
    Val two = narrowed(own, h, origin);
    if (isWide)
      for (int64_t j = 0; j < 2; ++j)
        relative.push_back(bitcast(own[2 * h + j], e.f32()) + originOf(h, origin));
    else
      relative.push_back(e.word(two));
    if (parts == 1)
      narrow.push_back(two);
  }
  if (parts > 1 && !exact) {
    Vals words = loadScores(tile, number(0), allRows); // which lie beside those that came before
    for (int64_t h = 0; h < allRows; ++h)
      narrow.push_back(narrowed(words, h, origins[h / kQuad]()));
  }
  if (exact) {
    one = two = e.flag(false);
    for (int64_t h = 0; h < padded; ++h) {
      one = one | (relative[2 * h] > kNothing);
      two = two | (relative[2 * h + 1] > kNothing);
    }
    levels = both((e.load(mostLevels, number(0)) & 3) | ((e.load(mostLevels, number(1)) & 3) << number(2)));
  } else {
    Val reachV, reachK;
    for (int64_t h = 0; h < allRows; ++h) {
      Val v = narrow[h] + e.halves(e.load(cuts, number(h))), k = narrow[h] + e.halves(e.load(cuts, number(h + allRows)));
      reachV = h ? e.largest(reachV, v) : v;
      reachK = h ? e.largest(reachK, k) : k;
    }
    // 1024 + code is an f16 whose pattern has the code in its lower byte. A row of V below the floor (M3) is taken for a usual one: it is read where that would be, so that the mean
    // does not stand for much of it.
    Val octaves = fma(e.halves(e.permuteBytes(valueCodes, number(0x64), {0, 4, 1, 4})), e.bothHalves(0.125), e.bothHalves(-144));
    octaves = e.halves(e.choose(someLow, [&]() -> Vals {
      Val usual = rowFact(RowFact::LogUsual) - 16.0, pairs = e.pack(f16, usual, usual);
      Val floors = fma(rowFact(RowFact::Floor), real(0.125), real(-16));
      Val isLow0 = convert(aligned::lane(octaves, 0), e.f32()) < floors, isLow1 = convert(aligned::lane(octaves, 1), e.f32()) < floors;
      Val mask = select(isLow0, number(0xffff), number(0)) | select(isLow1, number(int32_t(0xffff0000)), number(0));
      return {(e.word(octaves) & (mask ^ number(-1))) | (pairs & mask)};
    }, [&]() -> Vals { return {e.word(octaves)}; })[0]);
    Val y = reachV + octaves;
    auto entries = [&](Shared table, Val codes, int64_t below) {
      auto entry = [&](Val code) { return zext(e.load(table, below ? max(code - below, 0) : code), e.i32()); };
      return e.halves(e.permuteBytes(entry(codes & 255), entry(shrLogical(codes, number(8))), {0, 1, 4, 5}));
    };
    Val k = reachK + entries(valueTable, valueCodes, 0);
    Val finer = k + entries(keyTable, keyCodes, 0), finest = k + entries(keyTable, keyCodes, 32); // 4 bits further sigma is a 16th: 32 codes
    Val most = e.word(keyPlanes > 1 ? e.largest(y, finer) : y);
    one = (most << number(16)) > 0;
    two = most >= 0x10000;
    // Level 1 above 0, 2 above 4 octaves, 3 above 8, as 1024 + level in f16; of K each above 0. Planes that are not there can't be read.
    Val levelV = fma(e.saturatingFma(y, e.bothHalves(1.0 / 12), e.bothHalves(0.1666)), e.bothHalves(3), e.bothHalves(1024));
    auto isAbove = [&](Val k) { return e.saturatingFma(k, e.bothHalves(4096), e.bothHalves(0)); };
    Val levelK = e.bothHalves(1024);
    if (keyPlanes > 1)
      levelK = levelK + isAbove(finer);
    if (keyPlanes > 2)
      levelK = levelK + isAbove(finest);
    levelV = e.smallest(levelV, e.halves(e.load(mostLevels, number(0))));
    levelK = e.smallest(levelK, e.halves(e.load(mostLevels, number(1))));
    levels = (e.word(levelV) & 0x00030003) | ((e.word(levelK) & 0x00030003) << number(2));
    if (isLimited) {
      // What nobody sees is not read, whatever limits say: padding rows are at most -30000.
      auto isSeen = [&](int64_t j) { return convert(aligned::lane(reachV, j), e.f32()) > -20000; };
      Val limited[2];
      for (int64_t j = 0; j < 2; ++j)
        limited[j] = limit(j ? shrLogical(levels, number(16)) : levels & 0xffff, token + j);
      levels = limited[0] | (limited[1] << number(16));
      one = isSeen(0) & (limited[0] != 0);
      two = isSeen(1) & (limited[1] != 0);
    }
  }
  // Rows of V that are kept aside are added at the end.
  Vals listed = e.choose(someAside, [&]() -> Vals { return {one & ((valueCodes & 255) != 0), two & (valueCodes >= 256)}; }, [&]() -> Vals { return {one, two}; });
  one = listed[0];
  two = listed[1];
  Val m0 = e.ballot(one), m1 = e.ballot(two);
  e.when((m0 | m1) != 0, [&] {
    Val keyRowPlace = keyPlace() * kTile + lane * 2, valueRowPlace = valuePlace() * kTile + lane * 2;
    // K's code, V's, levels, token mod 4096.
    Val pairs = e.permuteBytes(keyCodes, valueCodes, {0, 4, 1, 5});
    auto codeOf = [&](int64_t j) {
      Val low = j ? shrLogical(pairs, number(16)) : pairs & 0xffff;
      Val level = j ? shrLogical(levels, number(16)) : levels & 0xffff;
      return low | (level << number(16)) | ((token + j) << number(20));
    };
    Val less = (number(1) << lane) - 1, loud = levels & (0x00030003), third = loud & shrLogical(loud, number(1)) & 0x00010001; // V wants all
    Val isLoud = third | (shrLogical(levels, number(3)) & 0x00010001);                                                         // or K does
    Val loud0 = exact ? one : one & ((isLoud & 1) != 0), loud1 = exact ? two : two & (shrLogical(isLoud, number(16)) != 0);
    Val l0 = e.ballot(loud0), l1 = e.ballot(loud1), n0 = m0 & (l0 ^ number(-1)), n1 = m1 & (l1 ^ number(-1));
    auto within = [&](Val from, Val count) { return (from + count) & (kRing - 1); };
    Val lc0 = e.countBits(l0), at0 = within(loudTail(), e.countBits(l0 & less)) + ringOfLoud(), at1 = within(loudTail(), lc0 + e.countBits(l1 & less)) + ringOfLoud();
    loudTail.set(loudTail() + lc0 + e.countBits(l1));
    if (!exact) {
      Val c0 = e.countBits(n0);
      at0 = select(loud0, at0, within(tail(), e.countBits(n0 & less)) + ringOfTokens());
      at1 = select(loud1, at1, within(tail(), c0 + e.countBits(n1 & less)) + ringOfTokens());
      tail.set(tail() + c0 + e.countBits(n1));
    }
    for (int64_t j = 0; j < 2; ++j) {
      Val place = j ? at1 : at0;
      e.when(j ? two : one, [&] {
        e.store(keyRowPlace + j, keyPlaces, place);
        e.store(valueRowPlace + j, valuePlaces, place);
        e.store(codeOf(j), codes, place);
        if (keepsNumbers)
          e.store(token + j, numbers, place);
        for (int64_t h = 0; h < padded; h += isWide ? 1 : 2) {
          if (isWide)
            e.store(relative[2 * h + j], scores, place * padded + h);
          else
            e.store(e.permuteBytes(relative[h], relative[h + 1], j ? std::array{2, 3, 6, 7} : std::array{0, 1, 4, 5}), Shared{scores.base, e.i32()}, place * (padded / 2) + h / 2);
        }
      });
    }
    e.when(records & (firstRow == 0), [&] {
      Val keyBits = bitsOf(Argument::KeyBits), valueBits = bitsOf(Argument::ValueBits);
      for (int64_t j = 0; j < 2; ++j)
        e.when(j ? two : one, [&] {
          Val level = j ? shrLogical(levels, number(16)) : levels & 0xffff, levelV = level & 3, levelK = shrLogical(level, number(2)) & 3;
          auto bits = [&](Val planes) { return convert(select(planes > 2, number(16), select(planes > 1, number(8), number(4))), e.i8()); };
          e.storeGlobal(bits(levelK + 1), keyBits, token + j);
          e.storeGlobal(bits(levelV), valueBits, token + j); // the first plane is read of every listed token
        });
    });
  });
}

/// Fills up a list of `count` < 32 tokens from `entry` on with some that weigh nothing.
void AttendKernel::padTo32(Val entry, Val count) {
  e.when(lane >= count, [&] {
    Val place = entry + lane;
    e.store(e.load(keyPlaces, entry), keyPlaces, place);
    e.store(e.load(valuePlaces, entry), valuePlaces, place);
    e.store(number(0), codes, place);
    if (keepsNumbers)
      e.store(number(0), numbers, place);
    Val none = e.constant(scoreType(), -INFINITY);
    for (int64_t h = 0; h < padded; ++h)
      e.store(none, scores, place * padded + h);
  });
  e.warpBarrier();
}

/// Puts what all warps have left one after another.
void AttendKernel::join() {
  struct Left {
    Val count, from;
    Vals entry;
  };
  SmallVector<Left> lists{{loudTail() - loudHead(), (loudHead() + lane) & (kRing - 1), {}}};
  lists[0].from = lists[0].from + ringOfLoud();
  if (!exact)
    lists.push_back({tail() - head(), ((head() + lane) & (kRing - 1)) + ringOfTokens(), {}});
  const Shared words{scores.base, e.i32()};
  SmallVector<Shared> fields{keyPlaces, valuePlaces, codes};
  if (keepsNumbers)
    fields.push_back(numbers);
  const int64_t each = isWide ? padded : padded / 2, many = fields.size();
  Val mine = number(0);
  for (Left &list : lists) {
    mine = mine + list.count;
    list.entry = e.choose(lane < list.count, [&] {
      Vals entry;
      for (Shared field : fields)
        entry.push_back(e.load(field, list.from));
      for (int64_t i = 0; i < each; ++i)
        entry.push_back(e.load(words, list.from * each + i));
      return entry;
    }, [&] { return Vals(many + each, number(0)); });
  }
  e.when(lane == 0, [&] { e.store(mine, left, warp); });
  e.barrier();
  Val before = number(0), all = number(0);
  for (int64_t w = 0; w < kStepWarps; ++w) {
    Val own = e.load(left, number(w));
    before = before + select(number(w) < warp, own, number(0));
    all = all + own;
  }
  for (Left &list : lists) {
    e.when(lane < list.count, [&] {
      Val to = before + lane;
      for (int64_t i = 0; i < many; ++i)
        e.store(list.entry[i], fields[i], to);
      for (int64_t i = 0; i < each; ++i)
        e.store(list.entry[many + i], words, to * each + i);
    });
    before = before + list.count;
  }
  e.barrier();
  joined.set(warp * kBatch);
  remains.set(all);
}

void AttendKernel::emit() {
  Type f32 = e.f32();
  Val zero = number(0);
  for (int64_t i = 0; i < kStepWarps * padded * shape.valueDim; i += threads * 4) // the array ends with what it takes for whole rounds
    e.store(e.constant(vectorOf(f32, 4), 0), out, thread * 4 + i);
  joinStatistics();
  someLow = rowFact(RowFact::SomeLow) != 0;
  records = isAsked(Argument::KeyBits);
  someAside = hasAsides(Argument::Value);
  for (int64_t n = 0; n < quads; ++n) {
    OfQuad &quad = all[n];
    Val h = firstRow + (q + 4 * n);
    quad.unit = headFact(h, HeadFact::Unit) * (1.0 / 16); // of plane 1
    quad.sum = convert(headFact(h, HeadFact::Sum), f32);
    quad.begin = beginOf(quad.sum);
    quad.reference = e.variable(e.load(references, h));
    quad.offset = e.variable(real(0));
    for (Variable &mass : quad.masses)
      mass = e.variable(real(0));
    for (int64_t i = 0; i < valueRow.each() * 8; ++i) {
      quad.raw.push_back(e.variable(zero));
      quad.low.push_back(e.variable(zero));
    }
  }
  for (int64_t n = 0; n < allRows / kQuad; ++n)
    origins.push_back(e.variable(real(0)));
  for (Variable *variable : {&todo, &page, &keyPlace, &valuePlace, &pairCodesKey, &pairCodesValue, &where, &head, &tail, &loudHead, &loudTail, &remains, &entry, &wantKey, &wantValue,
                             &wantSecond, &batches})
    *variable = e.variable(zero);
  entry.set(number(-1));
  joined = e.variable(number(-1));
  base = e.variable(split * kStepWarps + warp);
  for (auto [list, count] : {std::pair(&pair, scoreWords), std::pair(&first, exact ? 0 : 8 * valueRow.each()), std::pair(&second, secondIsAhead && !exact ? 8 * valueRow.each() : 0), std::pair(&finer, finerIsAhead && !exact ? 4 * keyRow.each() : 0)})
    for (int64_t i = 0; i < count; ++i)
      list->push_back(e.variable(zero));
  ask();
  Variable running = e.variable(e.flag(true));
  e.loopWhile([&] { return running(); }, [&] {
    Val looks = (tail() - head() < kBatch) & (loudTail() - loudHead() < kBatch) & (page() != 0);
    e.choose(looks, [&]() -> Vals {
      look();
      ask();
      return {};
    }, [&]() -> Vals {
      e.warpBarrier(); // the rings are written
      if (!exact)
        e.when(entry() >= 0, [&] {
          addBatch();
          entry.set(number(-1));
        });
      Val waiting = loudTail() - loudHead(), isJoined = joined() >= 0, several = invert(isJoined) & (waiting >= kBatch), hasFull = tail() - head() >= kBatch;
      e.when(invert(isJoined) & (waiting < kBatch) & invert(hasFull) & (page() == 0), [&] { join(); });
      Variable from = e.variable((loudHead() & (kRing - 1)) + ringOfLoud()), count = e.variable(select(several, number(kBatch), zero));
      e.when(several, [&] { loudHead.set(loudHead() + kBatch); });
      e.when(joined() >= 0, [&] {
        from.set(joined());
        count.set(min(remains() - joined(), number(kBatch)));
        joined.set(joined() + kStepWarps * kBatch);
        running.set(joined() < remains());
      });
      e.when(count() > 0, [&] { takeLoud(from(), count()); });
      e.when(batches() >= kMostBatches, [&] {
        for (int64_t n = 0; n < quads; ++n)
          flush(n, all[n].reference());
        batches.set(zero);
      });
      if (!exact)
        e.when(hasFull & invert(several), [&] { fetch(); });
      return {};
    });
  });
  finishSplit();
  finish();
}

void aligned::emitAttendKernel(ModuleOp program, StringRef name, const DecodeShape &shape) { AttendKernel(program, name, shape).emit(); }
