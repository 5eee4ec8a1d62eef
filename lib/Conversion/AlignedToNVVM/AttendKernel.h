// The kernel `attend` as a class: what its parts share. AttendKernel.cpp says what it does, and holds thresholds and lists; AttendRows.cpp finer scores, weights and rows of V;
// AttendEnd.cpp what becomes of them.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_ATTENDKERNEL_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_ATTENDKERNEL_H

#include "StepKernel.h"

#include <cmath>

namespace aligned {

constexpr int64_t kRing = 128, kBatch = 32;
constexpr double kThresholdRounding = 0.03;      // octaves that sums of scores and thresholds in f16 are off by, at most
constexpr double kLargestWeight = 65280; // whose upper digit is at most 255
constexpr double kMagic = 12582912;     // 1.5 * 2^23: added to it, a number is rounded to a whole one, and the pattern ends with that
constexpr int64_t kMostBatches = 500;   // that sums of 32 bits hold for certain: a batch adds up to 2 * 32 * 255^2

class AttendKernel : public StepKernel {
public:
  using StepKernel::StepKernel;
  void emit();

private:
  /// Words of a row that a lane has: `chunks` vectors, `lanes` vectors apart.
  struct Words {
    int64_t count, lanes, vector, chunks;
    Words(int64_t count, int64_t lanes) : count(count), lanes(lanes) {
      vector = 4;
      while (count % (lanes * vector) && vector > 1)
        vector /= 2;
      chunks = llvm::divideCeil(count, lanes * vector);
    }
    int64_t each() const { return vector * chunks; }
    /// Where word w of the lane's is in the row, and whether that is inside, whatever the lane.
    Val at(Val lane, int64_t w) const { return lane * vector + (w / vector * lanes * vector + w % vector); }
    bool isInside(int64_t w) const { return (w / vector + 1) * lanes * vector <= count; }
  };
  // A block of threads takes some of the query rows, those from firstRow on. What they read is decided over all of them (P3).
  const int64_t quads = quadsTogether(shape), padded = quads * kQuad, parts = blocksPerSplit(shape);
  const Val firstRow = parts > 1 ? e.block(mlir::gpu::Dimension::z) * padded : number(0);
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
  const bool keepsNumbers = shape.certified || hasCapAndMask(shape);
  Shared numbers = keepsNumbers ? shared("numbers", e.i32(), kEntries) : Shared{}; ///< of tokens
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
    Val ofValue = side(CacheRole::Value, levels & 3, resident(Argument::Value)), ofKey = side(CacheRole::Key, (shrLogical(levels, number(2)) & 3) + 1, resident(Argument::Key));
    return ofValue | ((max(ofKey, number(1)) - 1) << number(2));
  }
  const bool isLimited = HeadPolicies::areLimited(shape.policies, CacheRole::Key) || HeadPolicies::areLimited(shape.policies, CacheRole::Value);
  /// Planes that are there: caches may hold fewer than their types say (S9).
  Val resident(Argument cache) { return min(small(cache, offsetof(aligned_cache, planes)), number(cache == Argument::Key ? keyPlanes : valuePlanes)); }
  Shared mostLevels = shared("most_levels", e.i32(), 2); ///< of V and K that these allow, as 1024 + level in f16, twice
  Val someAside;                                ///< whether any row of V is kept aside, of whatever row

  Val someLow; ///< whether any row of V is below the floor
  Val records; ///< whether somebody asks which bits are read

  // Of the lane's query row in each quad.
  struct OfQuad {
    Val unit, sum, begin;
    Variable reference;                ///< of weights: log2 of what the largest one stands for
    Variable offset;                   ///< sum of weights times what middles and dithers take off rows
    Variable masses[kMasses];
    llvm::SmallVector<Variable> raw, low;    ///< sums of products, [words of a row of V][2][4]
  };
  std::vector<OfQuad> all = std::vector<OfQuad>(quads);
  Variable batches; ///< that sums hold

  // Tiles.
  Variable base, todo, page, keyPlace, valuePlace, pairCodesKey, pairCodesValue;
  llvm::SmallVector<Variable> origins; ///< of a tile's references, by quad: of the block and query row of this lane
  Variable where;
  llvm::SmallVector<Variable> pair;    ///< scores of two tokens, [scoreWords]
  // Rings.
  Variable head, tail, loudHead, loudTail;
  Variable joined, remains; ///< of what all warps have left, the next that this one takes, or -1 before that; and how many there are
  // Rows under way, of the list at `entry`; -1: none are.
  llvm::SmallVector<Variable> first, second, finer; ///< planes 0 and 1 of V, [8 tokens][words]; plane 1 of K, [4 tokens][words]
  Variable entry, wantKey, wantValue, wantSecond;

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
  Vals operandOf(llvm::ArrayRef<Val> rows, int64_t each, int64_t w) {
    Val zero = number(0);
    return {rows[w], rows[each + w], w + 1 < each ? rows[w + 1] : zero, w + 1 < each ? rows[each + w + 1] : zero};
  }
  Vals weightsOf(int64_t from, const Words &words, int64_t quad, int64_t w) {
    return {weightWord(from, words, quad, w), w + 1 < words.each() ? weightWord(from, words, quad, w + 1) : number(0)};
  }
  std::array<Val, 2> keyProducts(llvm::ArrayRef<Val> rows, int64_t quad);
  std::array<Val, 2> keyByteProducts(llvm::ArrayRef<Val> rows, int64_t quad);
  Vals weigh(Val entry, int64_t quad, Val mk, Val mv, Val m1, Val mk2, Val m2, llvm::ArrayRef<Val> finerProducts, llvm::ArrayRef<Val> finestProducts, bool isFree, Vals *rest = nullptr);
  void flush(int64_t quad, Val next);
  std::pair<Val, Val> digits(Val w0, Val w1, Val w2, Val w3) {
    Val order = aligned::select((g & 1) != 0, number(0x6420), number(0x7531)); // column 2 h: the upper digit
    return {e.permuteBytes(w0, w1, order), e.permuteBytes(w2, w3, order)};
  }
  /// The digits of a 16th of each quad's weights, up and down by turns: errors of all tokens alike would add up.
  llvm::SmallVector<std::pair<Val, Val>> sixteenths(llvm::SmallVector<Vals> weights) {
    llvm::SmallVector<std::pair<Val, Val>> result;
    for (Vals &w : weights) {
      for (Val &word : w)
        word = shrLogical(word + 0x00080007, number(4)) & 0x0fff0fff;
      result.push_back(digits(w[0], w[1], w[2], w[3]));
    }
    return result;
  }
  /// Adds sums of four channels from one on to the split's output of this lane's query row, `unit` of plane 0's steps each.
  void addToOutput(int64_t quad, Val channel, llvm::ArrayRef<Val> sums, double unit) {
    Val reference = all[quad].reference(), factor = select(reference > -1e29, e.exp2(reference - 16.0) * (unit / kLargestWeight / 8), real(0));
    Val place = (warp * padded + (q + 4 * quad)) * shape.valueDim + channel, before = e.load(out, place, 4);
    Vals values;
    for (int64_t c = 0; c < 4; ++c)
      values.push_back(fma(convert(sums[c], e.f32()), factor, aligned::lane(before, c)));
    e.store(e.vectorOf(values), out, place);
  }
  void addAtOnce(llvm::ArrayRef<Val> rows, bool isSigned, llvm::ArrayRef<std::pair<Val, Val>> b, double unit);
  void multiply(llvm::ArrayRef<Val> rows, bool isSigned, llvm::ArrayRef<std::pair<Val, Val>> b);
  /// Where word w of this lane's is in a row of V, and what is done only where that is inside.
  Val valueWord(int64_t w) { return valueRow.at(g, w); }
  void whereInside(int64_t w, llvm::function_ref<void()> body) { valueRow.isInside(w) ? body() : e.when(valueWord(w) < valueWords, body); }
  std::array<Val, 4> transpose(Val a, Val b, Val c, Val d) {
    Val x = e.permuteBytes(a, b, {0, 4, 1, 5}), y = e.permuteBytes(c, d, {0, 4, 1, 5}), z = e.permuteBytes(a, b, {2, 6, 3, 7}), w = e.permuteBytes(c, d, {2, 6, 3, 7});
    return {e.permuteBytes(x, y, {0, 1, 4, 5}), e.permuteBytes(x, y, {2, 3, 6, 7}), e.permuteBytes(z, w, {0, 1, 4, 5}), e.permuteBytes(z, w, {2, 3, 6, 7})};
  }
  /// Words of eight tokens' rows as the left sides of two products: of the first two bytes of each word, and of the others.
  std::array<Vals, 2> transposed(llvm::function_ref<Val(int64_t token)> word) {
    std::array<Val, 4> left = transpose(word(0), word(1), word(2), word(3)), right = transpose(word(4), word(5), word(6), word(7));
    return {Vals{left[0], left[1], right[0], right[1]}, Vals{left[2], left[3], right[2], right[3]}};
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
  Vals predicated(Val wanted, int64_t words, llvm::function_ref<Vals()> load) {
    return e.choose(wanted, load, [&] { return Vals(words, number(0)); });
  }
  /// Plane 1 of the rows of V of those of a list that want it, a bit each.
  Vals loadSecond(llvm::ArrayRef<Val> places, Val wanted) {
    Val mine = shrLogical(wanted, q * 8);
    Vals rows;
    for (int64_t i = 0; i < 8; ++i)
      rows.append(predicated(isSet(mine, i), valueRow.each(), [&] { return loadRow(valueRow, value.planes[1], places[i], g); }));
    return rows;
  }
  /// Plane 2, whose address is not worth registers all along.
  Val lastPlane(Argument cache) { return addressOf(argument(cache), offsetof(aligned_cache, plane) + 2 * sizeof(void *)); }
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
  void addAsides(Val h, llvm::MutableArrayRef<Variable> mass);
  void finishSplit();
  void finishRow();
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_ATTENDKERNEL_H
