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
#include "StepKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cmath>
#include <cstddef>

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kRing = 128, kBatch = 32;
constexpr double kNothing = -1e30;
constexpr double kRounding = 0.03;      // octaves that sums of scores and thresholds in f16 are off by, at most
constexpr double kLargestWeight = 65280; // whose upper digit is at most 255
constexpr double kMagic = 12582912;     // 1.5 * 2^23: added to it, a number is rounded to a whole one, and the pattern ends with that
constexpr int64_t kMostBatches = 256;   // that sums of 32 bits hold for certain

class AttendKernel : public StepKernel {
public:
  using StepKernel::StepKernel;
  void emit();

private:
  /// Words of a row that a lane has: chunk j, word i is (j * lanes + lane) * vector + i.
  struct Words {
    int64_t count, lanes, vector, chunks;
    Words(int64_t count, int64_t lanes) : count(count), lanes(lanes) {
      vector = 4;
      while (count % (lanes * vector) && vector > 1)
        vector /= 2;
      chunks = llvm::divideCeil(count, lanes * vector);
    }
    int64_t each() const { return vector * chunks; }
    bool isWhole() const { return count % (lanes * vector) == 0; }
  };
  // A block of threads takes some of the query rows, those from firstRow on. What they read is decided over all of them (P3).
  const int64_t quads = quadsTogether(shape), padded = quads * kQuad, parts = allRows / padded;
  const Val firstRow = parts > 1 ? e.block(gpu::Dimension::z) * padded : number(0);
  const Words keyRow{keyWords, 4}, keyBytes{2 * keyWords, 4}, valueRow{valueWords, 8};
  const int64_t keyPlanes = shape.keyPlanes.getResident(), valuePlanes = shape.valuePlanes.getResident();
  // Where sums of products take many registers, fewer rows are under way: plane 1 of V, then of K, is asked for where it is needed.
  const bool secondIsAhead = quads == 1 && valueRow.each() < 3, finerIsAhead = quads * valueRow.each() < 4;
  const bool isWide = hasWideScores(shape);
  const int64_t scoreWords = isWide ? 2 * padded : padded; ///< of two tokens

  // Rings of each warp: first those of tokens, then those of loud ones, which under `exact` all are. What is left at the end all warps put where the first ones were.
  const int64_t loudRings = (exact ? 1 : kStepWarps) * kRing, kEntries = loudRings + kStepWarps * kRing;
  Val ringOfTokens() { return warp * kRing; }
  Val ringOfLoud() { return warp * kRing + loudRings; }
  Shared keyPlaces = shared("key_places", e.i32(), kEntries), valuePlaces = shared("value_places", e.i32(), kEntries); ///< rows of planes
  Shared codes = shared("codes", e.i32(), kEntries); ///< code of K, of V, levels of V (2 bits) and K (2 bits), token mod 4096 (12 bits)
  Shared numbers = shape.certified ? shared("numbers", e.i32(), kEntries) : Shared{}; ///< of tokens
  Shared scores = shared("scores", scoreType(), kEntries * padded); ///< relative to the largest of the row
  Shared weights = shared("weights", e.i16(), kStepWarps * padded * kBatch);
  Shared out = shared("out", e.f32(), llvm::alignTo(kStepWarps * padded * shape.valueDim, threads * 4));
  Shared masses = shared("masses", e.f32(), kStepWarps * padded * kMasses);
  Shared steps = shape.certified ? shared("steps", e.f32(), kStepWarps * padded) : Shared{}; ///< of weights
  // Of all query rows.
  Shared cuts = shared("cuts", e.i32(), 2 * allRows); ///< minus the thresholds of V and K, twice in f16
  Shared tops = shared("tops", e.f32(), allRows), sums = shared("sums", e.f32(), allRows), lowSums = shared("low_sums", e.f32(), allRows);
  Shared skips = shared("skips", e.f32(), allRows), references = shared("references", e.f32(), allRows);
  Shared keyTable = shared("key_table", e.i16(), 256), valueTable = shared("value_table", e.i16(), 256);
  Shared left = shared("left", e.i32(), kStepWarps), last = shared("last", e.i32(), 1);

  /// What limits (P7) make of a token's levels.
  Val limit(Val levels, Val token) {
    HeadPolicies policies(shape, kvHead);
    auto side = [&](CacheRole role, Val planes, Val resident) { // in layers of 4 bits: planes of 4, 4 and 8 bits
      auto layersOf = [&](Val planes) { return planes + select(planes > 2, number(1), number(0)); };
      Val layers = policies.limit(layersOf(planes), role, layersOf(resident), tokens, token, token);
      return layers - select(layers > 3, number(1), number(0));
    };
    Val ofValue = side(CacheRole::Value, levels & 3, resident(StepArgument::Value)), ofKey = side(CacheRole::Key, (shrLogical(levels, number(2)) & 3) + 1, resident(StepArgument::Key));
    return ofValue | ((max(ofKey, number(1)) - 1) << number(2));
  }
  const bool isLimited = HeadPolicies::areLimited(shape.policies, CacheRole::Key) || HeadPolicies::areLimited(shape.policies, CacheRole::Value);
  /// Planes that are there: caches may hold fewer than their types say (S9).
  Val resident(StepArgument cache) { return min(small(cache, offsetof(aligned_cache, planes)), number(cache == StepArgument::Key ? keyPlanes : valuePlanes)); }
  Shared mostLevels = shared("most_levels", e.i32(), 2); ///< of V and K that these allow, as 1024 + level in f16, twice
  Val asides;                                   ///< rows of V that are kept aside, of all rows

  Val prepared, someLow;
  Val records; ///< whether somebody asks which bits are read

  // Of the lane's query row in each quad.
  struct OfQuad {
    Val unit, sum, begin;
    Variable reference;                ///< of weights: log2 of what the largest one stands for
    Variable offset;                   ///< sum of weights times what middles and dithers take off rows
    Variable masses[kMasses];
    SmallVector<Variable> raw, low;    ///< sums of products, [words of a row of V][2][4]
  };
  std::vector<OfQuad> all = std::vector<OfQuad>(quads);
  Variable batches;

  // Tiles.
  Variable base, todo, page, keyPlace, valuePlace, pairCodesKey, pairCodesValue;
  SmallVector<Variable> origins; ///< of a tile's references, by quad: of the block and query row of this lane
  Variable where;
  SmallVector<Variable> pair;    ///< scores of two tokens, [scoreWords]
  // Rings.
  Variable head, tail, loudHead, loudTail;
  Variable joined, remains; ///< of what all warps have left, the next that this one takes, or -1 before that; and how many there are
  // Rows under way, of the list at `entry`; -1: none are.
  SmallVector<Variable> first, second, finer; ///< planes 0 and 1 of V, [8 tokens][words]; plane 1 of K, [4 tokens][words]
  Variable entry, wantKey, wantValue, wantSecond;

  Val headFact(Val h, HeadFact which) { return e.loadGlobal(prepared, e.f32(), h * int64_t(HeadFact::Count) + (at.heads + int64_t(which)), false); }
  /// The logit without a value of a query row, in the terms of scores.
  Val sinkOf(Val h) {
    Val head = min(h, number(rows - 1)) / shape.queries;
    Val logit = e.loadGlobal(sinkLogits(), e.f32(), kvHead * (rows / shape.queries) + head) * kLog2e;
    return shape.softcap ? logit : logit - headFact(h, HeadFact::Shift);
  }
  Val rowFact(RowFact which) { return e.loadGlobal(prepared, e.f32(), number(at.row + int64_t(which)), false); }
  Val i1(bool value) { return e.constant(e.types.getI1Type(), value); }
  Val isSet(Val bits, int64_t bit) { return (shrLogical(bits, number(bit)) & 1) != 0; }

  void joinStatistics();
  void nextGroup();
  Vals loadScores(Val tile, Val first, int64_t count);
  void ask();
  void look();
  void padTo32(Val entry, Val count);
  Vals loadRow(const Words &words, Val plane, Val place, Val lane);
  Val weightWord(int64_t from, const Words &words, int64_t quad, int64_t word);
  /// Words w and w + 1 of two rows, [2][each], as an operand.
  Vals operandOf(ArrayRef<Val> rows, int64_t each, int64_t w) {
    Val zero = number(0);
    return {rows[w], rows[each + w], w + 1 < each ? rows[w + 1] : zero, w + 1 < each ? rows[each + w + 1] : zero};
  }
  Vals weightsOf(int64_t from, const Words &words, int64_t quad, int64_t w) {
    return {weightWord(from, words, quad, w), w + 1 < words.each() ? weightWord(from, words, quad, w + 1) : number(0)};
  }
  std::array<Val, 2> keyProducts(ArrayRef<Val> rows, int64_t quad);
  std::array<Val, 2> keyByteProducts(ArrayRef<Val> rows, int64_t quad);
  Vals weigh(Val entry, int64_t quad, Val mk, Val mv, Val m1, Val mk2, Val m2, ArrayRef<Val> finerProducts, ArrayRef<Val> finestProducts, Vals *rest = nullptr);
  void flush(int64_t quad, Val next);
  std::pair<Val, Val> digits(Val w0, Val w1, Val w2, Val w3) {
    Val order = aligned::select((g & 1) != 0, number(0x6420), number(0x7531)); // column 2 h: the upper digit
    return {e.permuteBytes(w0, w1, order), e.permuteBytes(w2, w3, order)};
  }
  /// The digits of a 16th of each quad's weights, up and down by turns: errors of all tokens alike would add up.
  SmallVector<std::pair<Val, Val>> sixteenths(SmallVector<Vals> weights) {
    SmallVector<std::pair<Val, Val>> result;
    for (Vals &w : weights) {
      for (Val &word : w)
        word = shrLogical(word + 0x00080007, number(4)) & 0x0fff0fff;
      result.push_back(digits(w[0], w[1], w[2], w[3]));
    }
    return result;
  }
  /// Adds sums of four channels from one on to the split's output of this lane's query row, `unit` of plane 0's steps each.
  void addToOutput(int64_t quad, Val channel, ArrayRef<Val> sums, double unit) {
    Val reference = all[quad].reference(), factor = select(reference > -1e29, e.exp2(reference - 16.0) * (unit / kLargestWeight / 8), real(0));
    Val place = (warp * padded + (q + 4 * quad)) * shape.valueDim + channel, before = e.load(out, place, 4);
    Vals values;
    for (int64_t c = 0; c < 4; ++c)
      values.push_back(fma(convert(sums[c], e.f32()), factor, aligned::lane(before, c)));
    e.store(e.vectorOf(values), out, place);
  }
  void addAtOnce(ArrayRef<Val> rows, bool isSigned, ArrayRef<std::pair<Val, Val>> b, double unit);
  void multiply(ArrayRef<Val> rows, bool isSigned, ArrayRef<std::pair<Val, Val>> b);
  std::array<Val, 4> transpose(Val a, Val b, Val c, Val d) {
    Val x = e.permuteBytes(a, b, {0, 4, 1, 5}), y = e.permuteBytes(c, d, {0, 4, 1, 5}), z = e.permuteBytes(a, b, {2, 6, 3, 7}), w = e.permuteBytes(c, d, {2, 6, 3, 7});
    return {e.permuteBytes(x, y, {0, 1, 4, 5}), e.permuteBytes(x, y, {2, 3, 6, 7}), e.permuteBytes(z, w, {0, 1, 4, 5}), e.permuteBytes(z, w, {2, 3, 6, 7})};
  }
  /// Where the rows of V lie of tokens 8 q .. of a list.
  Vals valuePlacesAt(Val entry) {
    Vals places;
    for (int64_t i = 0; i < 8; i += 4) {
      Val four = e.load(valuePlaces, entry + q * 8 + i, 4);
      for (int64_t j = 0; j < 4; ++j)
        places.push_back(aligned::lane(four, j));
    }
    return places;
  }
  /// Words that are loaded where they are wanted, else zeros.
  Vals predicated(Val wanted, int64_t words, function_ref<Vals()> load) {
    return e.choose(wanted, load, [&] { return Vals(words, number(0)); });
  }
  /// Plane 1 of the rows of V of those of a list that want it, a bit each.
  Vals loadSecond(ArrayRef<Val> places, Val wanted) {
    Val mine = shrLogical(wanted, q * 8);
    Vals rows;
    for (int64_t i = 0; i < 8; ++i)
      rows.append(predicated(isSet(mine, i), valueRow.each(), [&] { return loadRow(valueRow, value.planes[1], places[i], g); }));
    return rows;
  }
  /// Plane 2, whose address is not worth registers all along.
  Val lastPlane(StepArgument cache) { return addressOf(argument(cache), offsetof(aligned_cache, plane) + 2 * sizeof(void *)); }
  /// Which of a list's 32 tokens want planes of K beyond the first, and of V, a bit each.
  struct Wants {
    Val key[2], value[3];
  };
  Wants wantsOf(Val entry) {
    Val levels = shrLogical(e.load(codes, entry + lane), number(16)) & 15, levelV = levels & 3, levelK = shrLogical(levels, number(2));
    return {{e.ballot(levelK >= 1), e.ballot(levelK >= 2)}, {e.ballot(levelV >= 1), e.ballot(levelV >= 2), e.ballot(levelV >= 3)}};
  }
  void note(const Wants &wants) {
    wantKey.set(wants.key[0]);
    wantValue.set(wants.value[0]);
    wantSecond.set(wants.value[1]);
  }
  void addBatch();
  void takeLoud(Val entry, Val count);
  void fetch();
  void join();
  Val fullScore(Val h, Val place, Val within, Val token, Val code);
  void addAsides(Val h, MutableArrayRef<Variable> mass);
  void finishSplit();
  void finishRow();
};

//===----------------------------------------------------------------------===//
// Thresholds
//===----------------------------------------------------------------------===//

/// What all splits of a row make of it; a warp for each query row.
void AttendKernel::joinStatistics() {
  HeadPolicies policies(shape, kvHead);
  Val table = prepared;
  for (auto [to, from] : {std::pair(keyTable, at.keyTable), std::pair(valueTable, at.valueTable)})
    e.store(e.loadGlobal(table, e.i32(), thread + from, false), Shared{to.base, e.i32()}, thread);
  e.when(thread == 0, [&] {
    for (auto [i, level] : {std::pair(0, resident(StepArgument::Value)), std::pair(1, resident(StepArgument::Key) - 1)})
      e.store((level + 0x6400) * 0x10001, mostLevels, number(i));
  });
  e.barrier();
  forHeadsOfWarp(allRows, [&](Val h) {
    Val mine = ofRow(StepArgument::Stats, e.f32(), splits * (allRows * 4));
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
      Val logSum = e.log2(e.largest(sum, real(1e-30))) + headFact(h, HeadFact::Shrink) - headFact(h, HeadFact::LogSeen) * 0.5 - kRounding;
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
  Val rowTops = ofRow(StepArgument::Tops, e.f32(), stride * (allRows * 2)), step = splits * kStepWarps;
  e.loopWhile([&] { return (todo() == 0) & (base() < seenTiles); }, [&] {
    Val index = base() + g * step, inside = index < seenTiles, tile = tileAt(min(index, seenTiles - 1));
    Val some = i1(false);
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
  Val all = ofRow(StepArgument::Scores, scoreType(), stride * (kTile * allRows)), from = e.at(all, scoreType(), ((tile * 32 + lane) * allRows + first) * 2);
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
      Val own = placeOf(*cache, tile);
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
    one = two = i1(false);
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
  Vals listed = e.choose(asides != 0, [&]() -> Vals { return {one & ((valueCodes & 255) != 0), two & (valueCodes >= 256)}; }, [&]() -> Vals { return {one, two}; });
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
        if (shape.certified)
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
      Val keyBits = ofRow(StepArgument::KeyBits, e.i8(), stride * kTile), valueBits = ofRow(StepArgument::ValueBits, e.i8(), stride * kTile);
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
    Val none = e.constant(scoreType(), -INFINITY);
    for (int64_t h = 0; h < padded; ++h)
      e.store(none, scores, place * padded + h);
  });
  e.warpBarrier();
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

/// A lane's words of a row of a plane, a load for each chunk.
Vals AttendKernel::loadRow(const Words &words, Val plane, Val place, Val lane) {
  Vals row;
  Val start = e.at(plane, e.i8(), wide(place) * (words.count * 4));
  for (int64_t j = 0; j < words.chunks; ++j) {
    Val word = lane * words.vector + j * words.lanes * words.vector;
    if (!words.isWhole() && j + 1 == words.chunks)
      word = min(word, number(words.count - words.vector));
    Val loaded = e.loadGlobal(e.at(start, e.i32(), word), words.vector > 1 ? Type(vectorOf(e.i32(), words.vector)) : e.i32(), number(0));
    for (int64_t i = 0; i < words.vector; ++i)
      row.push_back(words.vector > 1 ? aligned::lane(loaded, i) : loaded);
  }
  return row;
}

/// The weights of a word of this lane's, column g of a quad. Behind the row there are none.
Val AttendKernel::weightWord(int64_t from, const Words &words, int64_t quad, int64_t number_) {
  int64_t j = number_ / words.vector, i = number_ % words.vector;
  Val word = q * words.vector + (j * words.lanes * words.vector + i), column = firstRow * 2 + g + 8 * quad;
  bool inside = words.isWhole() || j + 1 < words.chunks;
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
/// token g + 8 r wants more of K, V, plane 1 of V, plane 2 of K, of V. `rest`: what is left of weights below a step, in 2^-16 of one.
Vals AttendKernel::weigh(Val entry, int64_t n, Val mk, Val mv, Val m1, Val mk2, Val m2, ArrayRef<Val> finer, ArrayRef<Val> finest, Vals *rest) {
  OfQuad &quad = all[n];
  Val h = q + 4 * n;
  Val x[4], off[4], most = real(kNothing);
  for (int64_t r = 0; r < 4; ++r) {
    Val place = entry + g + 8 * r, z = convert(e.load(scores, place * padded + h), e.f32()), code = e.load(codes, place);
    Val unit = quad.unit * scaleOf(code, 0), now = z;
    if (shape.softcap) { // tanh(a + b), where tanh(a) is known and b is what finer bits add
      Val more = select(isSet(mk, 8 * r), convert(finer[r], e.f32()) * unit, real(0));
      if (!finest.empty())
        more = select(isSet(mk2, 8 * r), fma(fma(quad.sum, real(-8), convert(finest[r], e.f32())), unit * (1.0 / 16), more), more);
      const double cap = shape.softcap * kLog2e;
      Val a = (z + e.load(tops, firstRow + h)) * (1 / cap), power = e.exp2(e.smallest(more * (2 * kLog2e / cap), real(64))), b = (power - 1.0) / (power + 1.0);
      now = select(z > kNothing, fma(fma(a, -a, real(1)) * b / fma(a, b, real(1)), real(cap), z), z);
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
        e.storeGlobal(now, e.at(argument(CertifyArgument::Finest), e.f32(), wide(row) * wide(stride * (kTile * allRows))), token * allRows + (firstRow + h));
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
  auto exchange = [&](ArrayRef<Val> wholes) {
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
  Vals result = exchange(wholes);
  if (rest)
    *rest = exchange(parts);
  return result;
}

/// Adds what sums of products hold to the split's output, and takes another reference of weights.
void AttendKernel::flush(int64_t n, Val next) {
  OfQuad &quad = all[n];
  Val reference = quad.reference(), factor = select(reference > -1e29, e.exp2(reference - 16.0) * (1 / kLargestWeight / 8), real(0));
  Val offset = e.warpAdd(quad.offset(), {4, 8, 16});
  Val row = (warp * padded + (q + 4 * n)) * shape.valueDim;
  for (int64_t w = 0; w < valueRow.each(); ++w) {
    int64_t j = w / valueRow.vector, i = w % valueRow.vector;
    Val word = g * valueRow.vector + (j * 8 * valueRow.vector + i);
    auto add = [&] {
      for (int64_t half = 0; half < 2; ++half) {
        auto sum = [&](SmallVector<Variable> &from, int64_t k) { return from[(w * 2 + half) * 4 + k](); };
        Val place = row + word * 8 + 4 * half, before = e.load(out, place, 4);
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
    };
    valueRow.isWhole() || j + 1 < valueRow.chunks ? add() : e.when(word < valueWords, add);
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
    auto word = [&](int64_t token) { return rows[token * each + w]; };
    std::array<Val, 4> left = transpose(word(0), word(1), word(2), word(3)), right = transpose(word(4), word(5), word(6), word(7));
    for (int64_t half = 0; half < 2; ++half) {
      Vals bytes{left[2 * half], left[2 * half + 1], right[2 * half], right[2 * half + 1]}, raw, low;
      for (Val byte : bytes) {
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
    auto word = [&](int64_t token) { return rows[token * each + w]; };
    std::array<Val, 4> left = transpose(word(0), word(1), word(2), word(3)), right = transpose(word(4), word(5), word(6), word(7));
    int64_t j = w / valueRow.vector, i = w % valueRow.vector;
    Val at = g * valueRow.vector + (j * 8 * valueRow.vector + i);
    for (int64_t half = 0; half < 2; ++half) {
      Vals low, high;
      for (Val byte : {left[2 * half], left[2 * half + 1], right[2 * half], right[2 * half + 1]}) {
        Val nibbles = isSigned ? byte ^ number(int32_t(0x88888888)) : byte;
        low.push_back(nibbles & 0x0f0f0f0f);
        high.push_back(shrLogical(nibbles, number(4)) & 0x0f0f0f0f);
      }
      for (int64_t n = 0; n < quads; ++n) {
        Vals l = e.multiplyUnsigned(low, {b[n].first, b[n].second}, zero), h = e.multiplyUnsigned(high, {b[n].first, b[n].second}, zero);
        auto sum = [&](Vals &c, int64_t k) { return (c[2 * k] << number(8)) + c[2 * k + 1]; };
        auto add = [&] { addToOutput(n, at * 8 + 4 * half, {sum(l, 0), sum(h, 0), sum(l, 1), sum(h, 1)}, unit); };
        valueRow.isWhole() || j + 1 < valueRow.chunks ? add() : e.when(at < valueWords, add);
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
    words.push_back(weigh(entry(), n, mk, mv, m1, {}, {}, own, {}));
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
  Val count = batches() + 1;
  batches.set(count);
  e.when((count & (kMostBatches - 1)) == 0, [&] {
    for (int64_t n = 0; n < quads; ++n)
      flush(n, all[n].reference());
  });
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
        rows2.append(predicated(isSet(mk2, 8 * (r + j)), byteEach, [&] { return loadRow(keyBytes, lastPlane(StepArgument::Key), place, q); }));
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
    words.push_back(weigh(at_, n, mk, mv, m1, mk2, valuePlanes > 2 ? m2 : Val(), finerProducts[n], finestProducts[n], exact ? &rest : nullptr));
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
        int64_t j = w / valueRow.vector, i = w % valueRow.vector;
        Val word = g * valueRow.vector + (j * 8 * valueRow.vector + i), inside = word < valueWords;
        bool whole = valueRow.isWhole() || j + 1 < valueRow.chunks;
        if (!whole)
          word = min(word, number(valueWords - 1));
        Vals rows;
        for (int64_t t = 0; t < 8; ++t)
          rows.append(predicated(isSet(l2, t), 2, [&]() -> Vals {
            Val start = e.at(lastPlane(StepArgument::Value), e.i8(), wide(places[t]) * shape.valueDim);
            Val two = e.loadGlobal(e.at(start, e.i32(), word * 2), vectorOf(e.i32(), 2), number(0));
            return {aligned::lane(two, 0), aligned::lane(two, 1)};
          }));
        for (int64_t k = 0; k < 2; ++k) {
          auto byte = [&](int64_t t) { return rows[2 * t + k]; };
          std::array<Val, 4> left = transpose(byte(0), byte(1), byte(2), byte(3)), right = transpose(byte(4), byte(5), byte(6), byte(7));
          for (int64_t n = 0; n < quads; ++n) {
            Vals sums;
            for (int64_t half = 0; half < 2; ++half) {
              Vals c = e.multiplyUnsigned({left[2 * half], left[2 * half + 1], right[2 * half], right[2 * half + 1]}, {b[n].first, b[n].second}, Vals(4, zero));
              sums.push_back((c[0] << number(8)) + c[1]);
              sums.push_back((c[2] << number(8)) + c[3]);
            }
            auto add = [&] { addToOutput(n, word * 8 + 4 * k, sums, 0x1p-12); };
            whole ? add() : e.when(inside, add);
          }
        }
      }
    });
  Val done = batches() + 1;
  batches.set(done);
  e.when((done & (kMostBatches - 1)) == 0, [&] {
    for (int64_t n = 0; n < quads; ++n)
      flush(n, all[n].reference());
  });
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
  if (shape.certified)
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

//===----------------------------------------------------------------------===//
// The end
//===----------------------------------------------------------------------===//

void AttendKernel::finishSplit() {
  const int64_t dim = shape.valueDim, width = dim + kMasses;
  for (int64_t n = 0; n < quads; ++n) {
    if (shape.certified) {
      Val step = select(batches() != 0, e.exp2(all[n].reference() - 16.0) * (1 / kLargestWeight), real(0));
      e.when(g == 0, [&] { e.store(step, steps, warp * padded + (q + 4 * n)); });
    }
    e.when(batches() != 0, [&] { flush(n, real(0)); });
    auto add = [&](int64_t first) {
      for (int64_t i = first; i < first + 2; ++i)
        all[n].masses[i].set(e.warpAdd(all[n].masses[i](), {4, 8, 16}));
    };
    add(kMoved);
    e.when(someLow, [&] { add(kLowMoved); });
    Vals own;
    for (Variable &mass : all[n].masses)
      own.push_back(mass());
    e.when(g == 0, [&] { e.store(e.vectorOf(own), masses, (warp * padded + (q + 4 * n)) * kMasses); });
  }
  e.barrier();
  Val shares = ofRow(StepArgument::Parts, e.f32(), splits * (allRows * width));
  forHeadsOfWarp(padded, [&](Val h) {
    Val mine = (split * allRows + (firstRow + h)) * width;
    e.loop(lane * 4, number(dim), GpuEmitter::kWarp * 4, [&](Val c) {
      Val sum = e.load(out, h * dim + c, 4);
      for (int64_t w = 1; w < kStepWarps; ++w)
        sum = sum + e.load(out, (h + w * padded) * dim + c, 4);
      e.storeGlobal(sum, shares, mine + c);
    });
    if (shape.certified)
      e.when(lane == 0, [&] {
        Val most = e.load(steps, h);
        for (int64_t w = 1; w < kStepWarps; ++w)
          most = e.largest(most, e.load(steps, h + w * padded));
        e.storeGlobal(most, e.at(argument(CertifyArgument::Steps), e.f32(), wide(row) * wide(splits * allRows)), split * allRows + (firstRow + h));
      });
    e.when(lane < kMasses, [&] {
      Val sum = e.load(masses, h * kMasses + lane);
      for (int64_t w = 1; w < kStepWarps; ++w)
        sum = sum + e.load(masses, (h + w * padded) * kMasses + lane);
      e.storeGlobal(sum, shares, mine + lane + dim);
    });
  });
  joinSplits(argument(StepArgument::Counters), row * (allRows / padded) + e.block(gpu::Dimension::z), last, [&] { finishRow(); });
}

/// The score of a token from all bits of K that are there, by a warp.
Val AttendKernel::fullScore(Val h, Val place, Val within, Val token, Val code) {
  const aligned_format format{ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, 0, 3, {4, 4, 8}};
  Val dither = ((token * storage::kKeyDither) & (storage::kDitherSteps - 1)) - storage::kDitherSteps / 2;
  Val keyResident = resident(StepArgument::Key);
  Val middle = select(keyResident > 2, number(0), select(keyResident > 1, number(1 << 7), number(1 << 11)));
  Val weightBytes = e.at(prepared, e.i32(), (firstRow + h) * (4 * keyWords) + at.full);
  auto weight = [&](int64_t digit, Val c) { return convert(e.loadGlobal(weightBytes, e.i8(), c + digit * 8 * keyWords, false), e.i32()); };
  Val sum = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals sum) -> Vals {
    Val bits = number(0);
    for (int32_t p = 0; p < keyPlanes; ++p) { // as bitsOf() says
      const int32_t width = format.width[p];
      Val byte = p == 0 ? (shrLogical(c, number(3)) * kTile + within) * 4 + (c & 3) : within * (shape.keyDim * width / 8) + (width == 4 ? shrLogical(c, number(1)) : c);
      Val high = p == 0 ? shrLogical(c, number(2)) & 1 : c & 1;
      bits = bits | e.choose(keyResident > p, [&]() -> Vals {
        Val loaded = zext(e.loadGlobal(tileOf(p < 2 ? key.planes[p] : lastPlane(StepArgument::Key), place, storage::bytesPerTile(width, shape.keyDim)), e.i8(), byte), e.i32());
        return {(width == 4 ? shrLogical(loaded, high * 4) & 15 : loaded) << number(storage::bitsBelow(format, p))};
      }, [&]() -> Vals { return {number(0)}; })[0];
    }
    return {fma(convert(weight(0, c) * 256 + weight(1, c), e.f32()), convert(bits - 0x8000 + middle - dither, e.f32()), sum[0])};
  })[0];
  return warpAdd(sum) * headFact(firstRow + h, HeadFact::Unit) * (16.0 / 4096) * scaleOf(code, 0);
}

/// Rows of V that are kept aside (S7): weighed by a score as good as K's bits make it, and added to the output as they are.
void AttendKernel::addAsides(Val h, MutableArrayRef<Variable> mass) {
  const int64_t dim = shape.valueDim;
  e.loop(lane * kVector, number(dim), GpuEmitter::kWarp * kVector, [&](Val c) { e.store(e.constant(vectorOf(e.f32(), kVector), 0), out, h * dim + c); });
  e.warpBarrier();
  forAsides(StepArgument::Value, dim, [&](Val token, Val values) {
    Val tile = shrLogical(token, number(6)), within = token & (kTile - 1), place = placeOf(key, tile), own = firstRow + h;
    Val seen = token < tokens;
    if (shape.mask)
      seen = seen & isVisible(token, own % shape.queries, newest, shape);
    e.when(seen, [&] {
      Val rowScores = ofRow(StepArgument::Scores, scoreType(), stride * (kTile * allRows)), rowTops = ofRow(StepArgument::Tops, e.f32(), stride * (allRows * 2));
      Val origin = e.loadGlobal(rowTops, e.f32(), (tile * allRows + own) * 2, false) - e.load(tops, own);
      Val known = e.loadGlobal(rowScores, scoreType(), ((tile * 32 + shrLogical(within, number(1))) * allRows + own) * 2 + (within & 1), false);
      Val coarse = convert(known, e.f32()) + origin;
      Val code = zext(e.loadGlobal(tileOf(key.codes, place, kTile), e.i8(), within), e.i32()), isKept = code == storage::kAside;
      Val full = fullScore(h, place, within, token, code);
      if (shape.softcap)
        full = capped(full, headFact(own, HeadFact::Shift));
      if (shape.attnMask)
        full = masked(full, maskNumber(own, token));
      Val score = select(isKept, coarse, full - e.load(tops, own));
      e.when(isKept | (score != real(-INFINITY)), [&] { // else a mask hides it
        Val p = e.exp2(score), before = e.exp2(coarse);
        mass[kMoved].set(mass[kMoved]() + (p - before));
        mass[kRead].set(mass[kRead]() + p);
        e.loop(lane, number(dim), GpuEmitter::kWarp, [&](Val c) { e.store(fma(p, e.loadGlobal(values, e.f32(), c), e.load(out, h * dim + c)), out, h * dim + c); });
      });
    });
  });
  e.warpBarrier();
}

/// By the last block of threads of a row: all splits' shares, in their order.
void AttendKernel::finishRow() {
  const int64_t dim = shape.valueDim, width = dim + kMasses;
  Val shares = ofRow(StepArgument::Parts, e.f32(), splits * (allRows * width));
  Val valueUnit = rowFact(RowFact::ValueUnit);
  e.loop(warp, min(number(padded), number(rows) - firstRow), kStepWarps, [&](Val h) {
    auto at_ = [&](Val s) { return (s * allRows + (firstRow + h)) * width; };
    Vals sums_ = e.loop(lane, splits, GpuEmitter::kWarp, Vals(kMasses, real(0)), [&](Val s, Vals sum) {
      Val own = e.loadGlobal(shares, vectorOf(e.f32(), kMasses), at_(s) + dim, false);
      for (int64_t i = 0; i < kMasses; ++i)
        sum[i] = sum[i] + aligned::lane(own, i);
      return sum;
    });
    SmallVector<Variable> mass;
    for (Val sum : sums_)
      mass.push_back(e.variable(warpAdd(sum)));
    e.when(asides != 0, [&] { addAsides(h, mass); });
    Val own = firstRow + h, coarse = e.load(sums, own), notFinite = headFact(own, HeadFact::NotFinite), sum = coarse + mass[kMoved]() + notFinite, sink = real(0);
    if (shape.sinkLogits) // takes part in the sum, and has no value
      sink = e.exp2(sinkOf(own) - e.load(tops, own));
    Val unread = (sum - sink - mass[kRead]()) - (e.load(lowSums, own) + mass[kLowMoved]() - mass[kLowRead]());
    Val nothing = coarse == 0, outHead = wide(row) * rows + wide(own);
    Val acc = e.at(argument(StepArgument::Acc), e.f32(), outHead * dim), none = e.constant(vectorOf(e.f32(), kVector), 0);
    e.loop(lane * kVector, number(dim), GpuEmitter::kWarp * kVector, [&](Val c) {
      Val total = overSplits(number(0), splits, 1, none, [&](Val s) -> Vals { return {e.loadGlobal(shares, vectorOf(e.f32(), kVector), at_(s) + c, false)}; },
                             [](Val sum, Vals loaded) { return sum + loaded[0]; });
      Val mean = e.loadGlobal(prepared, vectorOf(e.f32(), kVector), c + at.mean, false);
      total = fma(e.splat(unread, kVector), mean, total) * e.splat(valueUnit, kVector);
      total = e.choose(asides != 0, [&]() -> Vals { return {total + e.load(out, h * dim + c, kVector)}; }, [&]() -> Vals { return {total}; })[0];
      e.storeGlobal(select(nothing, none, total + e.splat(notFinite, kVector)), acc, c);
    });
    e.when(lane == 0, [&] {
      Val top = e.load(tops, own);
      if (!shape.softcap) // which saw it
        top = top + headFact(own, HeadFact::Shift);
      e.storeGlobal(select(nothing, real(-INFINITY), top * (1 / kLog2e)), e.at(argument(StepArgument::Max), e.f32(), outHead), number(0));
      Val total = sum;
      if (!shape.maskedZero) // softmax of nothing but -inf is 0 / 0
        total = select(nothing & (tokens > 0), real(NAN), total);
      e.storeGlobal(total, e.at(argument(StepArgument::Sum), e.f32(), outHead), number(0));
    });
  });
}

void AttendKernel::emit() {
  prepared = ofRow(StepArgument::Prepared, e.i32(), at.size);
  Type i32 = e.i32(), f32 = e.f32();
  Val zero = number(0);
  for (int64_t i = 0; i < kStepWarps * padded * shape.valueDim; i += threads * 4) // the array ends with what it takes for whole rounds
    e.store(e.constant(vectorOf(f32, 4), 0), out, thread * 4 + i);
  joinStatistics();
  someLow = rowFact(RowFact::SomeLow) != 0;
  records = isAsked(StepArgument::KeyBits);
  asides = asidesOf(StepArgument::Value);
  for (int64_t n = 0; n < quads; ++n) {
    OfQuad &quad = all[n];
    Val h = firstRow + (q + 4 * n);
    quad.unit = headFact(h, HeadFact::Unit) * (1.0 / 16); // of plane 1
    Val sum = e.loadGlobal(prepared, i32, h * int64_t(HeadFact::Count) + (at.heads + int64_t(HeadFact::Sum)), false);
    quad.sum = convert(sum, f32);
    quad.begin = convert(roundEven(quad.sum * -7.5), i32);
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
  Variable running = e.variable(i1(true));
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
      Val waiting = loudTail() - loudHead(), isJoined = joined() >= 0, several = (isJoined == i1(false)) & (waiting >= kBatch), hasFull = tail() - head() >= kBatch;
      e.when((isJoined == i1(false)) & (waiting < kBatch) & (hasFull == i1(false)) & (page() == 0), [&] { join(); });
      Variable from = e.variable((loudHead() & (kRing - 1)) + ringOfLoud()), count = e.variable(select(several, number(kBatch), zero));
      e.when(several, [&] { loudHead.set(loudHead() + kBatch); });
      e.when(joined() >= 0, [&] {
        from.set(joined());
        count.set(min(remains() - joined(), number(kBatch)));
        joined.set(joined() + kStepWarps * kBatch);
        running.set(joined() < remains());
      });
      e.when(count() > 0, [&] { takeLoud(from(), count()); });
      if (!exact)
        e.when(hasFull & (several == i1(false)), [&] { fetch(); });
      return {};
    });
  });
  finishSplit();
  finish();
}

} // namespace

void aligned::emitAttendKernel(ModuleOp program, StringRef name, const DecodeShape &shape) { AttendKernel(program, name, shape).emit(); }
