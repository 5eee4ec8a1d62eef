// The stage `attend` as a class: what its parts share. Attend.cpp says what it does, and holds thresholds and lists; Refine.cpp finer scores; AddRows.cpp weights and rows of V;
// Certify.cpp what the result may be off by.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ATTEND_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ATTEND_H

#include "Step.h"

namespace aligned {

constexpr int64_t kChunkTiles = 16, kChunk = kChunkTiles * kTile; // a token of a chunk has 10 bits
constexpr int64_t kList = kChunk + 64;                            // room for vectors past the end
constexpr int64_t kKeyCodes = 32;                                 // of K's scales, the largest, that thresholds are tabulated for
constexpr int64_t kRoundingDither = 1597;                         // of weights: apart from those of both sides
constexpr int64_t kRowsAhead = 32;                                // that are asked for before they are used
constexpr double kLargestWeight = 255.5; // of a byte
constexpr double kMisled = 0.125;       // of the coarse sum: what the refined one falls to where coarse scores misled by far
constexpr double kSlightlyBelow = 0.9998; // what 2^x errs by must not leave out what the rule wants

/// A listed token in a word: scale codes of V and K, its number in the chunk, and the planes of K beyond the first that it wants.
constexpr int64_t kKeyShift = 8, kTokenShift = 16, kWantShift = 26;

class Attend : public Step {
public:
  using Step::Step;
  void emit(Val split, const StateBuffers &state);

private:
  const aligned_format keyFormat = formatOf(shape.keyPlanes), valueFormat = formatOf(shape.valuePlanes);
  const int64_t keyPlanes = shape.keyPlanes.getResident(), valuePlanes = shape.valuePlanes.getResident();
  const int64_t valueBits = storage::bitsBefore(valueFormat, valuePlanes);
  const bool byNibbles = valueFormat.width[0] == 4; ///< whether rows may be read to 4 bits
  const bool byBytes = valueBits >= 8 && (valueFormat.width[0] == 8 || valueFormat.width[1] == 4); ///< and to 8
  /// Steps of integer weights in a unit: as fine as a byte allows where rows are read to 4 bits, x <= 16 tau, and fine enough not to add to the error elsewhere.
  static constexpr double kNibbleSteps = 8;
  const double byteSteps = byNibbles ? 1.2 : 2; // rows above 255 steps are added in floats, and read in full
  const bool limited = isLimited(CacheRole::Key) || isLimited(CacheRole::Value);
  const int64_t registerBytes = 4 * lanes;
  const int64_t rowsAtOnce = shape.isa == Isa::AVX512 ? 4 : 2; ///< query rows whose four sums stay in registers

  // Of query rows.
  Buffer references, cuts, topCuts, unitInverse, units; ///< M; thresholds of V, and of a tile's maximum; of weights
  Buffer tables;                                        ///< thresholds of K by scale code, [planes past the first][rows][kKeyCodes]
  Buffer refined, lowRefined, readMass, lowRead, lean;  ///< registers of sums: p as refined less coarse, and of it what rows below the floor have; p of rows read,
                                                        ///< and of it theirs; and weights times what middle and dither add to integers
  Val logUsual, firstKeyCode, leverFirst, floorCode, someLow;
  Buffer lever;

  // Of the chunk.
  Val chunkFirst;                                       ///< its first tile
  Buffer keyPlaces, valuePlaces;                        ///< i32 [kChunkTiles]: from a token of the chunk to its row in every plane
  Buffer words, scores, listCount;                      ///< listed tokens, and their scores [rows][kList]
  Buffer rowWeight;                                     ///< of the tokens in a register, registers
  struct Level { ///< tokens of which plane `plane` of K is read, and where its row lies
    Buffer words, places, scores, masks, count;
  };
  llvm::SmallVector<Level> levels;
  struct Rows { ///< rows of V, where they lie in planes, with the weights of each query row, u8 or f32
    Buffer places, weights, ditherSteps, bits, count;
  };
  Rows nibbleRows, byteRows, floatRows;
  Buffer byteSums, nibbleSums, floatSums; ///< i32, i32, f32 [rows][valueDim]; integers in the order that the dot product leaves, floats as integers() does
  Buffer nibbleDigits;                    ///< digits of the query rows, those of even channels first

  // What was read.
  Buffer keyBitsRead, valueBitsRead; ///< i64, summed over tokens
  Buffer keyBits, valueBitsOf;       ///< i8 [tokens of the split]
  Buffer finest;                     ///< as buffers.scores, with finer ones where there are
  Val record;                        ///< whether anybody wants to know of each token
  Val splitFirst;                    ///< token

  void attendTo(Val first, Val last);
  Val coarseSum(Val split, Val h);
  void prepareRows();
  void prepareRowWeights();
  void placeChunk(Val first, Val last);
  void list(Val first, Val last);
  void rank();
  void refine(size_t level);
  Vals rowWords(int64_t plane, Buffer places, Val at, Val first, int64_t count);
  Vals rowDots(int64_t plane, Buffer places, Val at, Val firstRow, int64_t count);
  void weigh();
  void fetchAhead(const Rows &list, Val at, int64_t channel, int64_t bits);
  void addInteger(Rows &list, bool nibbles, Buffer sums);
  void addFloats();
  Val topByte(Val place, int64_t channel, int64_t count);
  Vals integers(Val place, int64_t channel, int64_t count);
  void finish(Val split, const StateBuffers &state);
  void report(Val first, Val last);
  void addRefined(Val h, Val codes, Val change);
  void addLow(Buffer sums, Val h, Val codes, Val mass);
  void writeDown(Val word, Val mask, Val bits, Val at);
  void certify(Val split, const StateBuffers &state);

  /// Channels that are added together: a register of bytes, or the largest part of one that divides a row.
  static int64_t channelsOf(int64_t dim, int64_t registerBytes) { return std::min<int64_t>(registerBytes, dim & -dim); }
  Buffer registers() { return e.local(e.f32(), rows * lanes); }
  void addTo(Buffer sums, Val h, Val addend) { e.store(e.load(sums, h * lanes, lanes) + addend, sums, h * lanes); }
  Val sumOf(Buffer sums, Val h) { return reduceAdd(e.load(sums, h * lanes, lanes)); }
  void addTo(Buffer counter, Val addend) { e.store(counted(counter) + addend, counter, index(0)); }
  Val counted(Buffer counter) { return e.load(counter, index(0)); }
  Buffer counter() { return e.local(e.types.getIndexType(), 1); }

  Val shiftRight(Val a, int64_t by) { return shrLogical(a, e.constant(a.type(), by)); }
  Val valueCode(Val word) { return word & 0xff; }
  Val keyCode(Val word) { return shiftRight(word, kKeyShift) & 0xff; }
  Val tokenOf(Val word) { return shiftRight(word, kTokenShift) & (kChunk - 1); }
  Val wantOf(Val word) { return shiftRight(word, kWantShift); }
  Val valuePlaceOf(Val token) { return token + lookUp(shape.isa, valuePlaces, index(0), kChunkTiles, shiftRight(token, 6)); }
  Val keyPlaceOf(Val token) { return token + lookUp(shape.isa, keyPlaces, index(0), kChunkTiles, shiftRight(token, 6)); }
  /// 2^(x - M) of scores of tokens.
  Val probability(Val x, Val h, Val tokens) { return power(finalOf(x, h, tokens) - splatF(e.load(references, h))); }
  Val tokenNumbers(Val inChunk) { return inChunk + splatI(convert(chunkFirst * kTile, e.i32())); }

  Val keyIndex(Val code) { return min(max(code - splatI(firstKeyCode), 0), kKeyCodes - 1); }
  Val keyThreshold(int64_t plane, Val h, Val index) { return lookUp(shape.isa, tables, (h + (plane - 1) * rows) * kKeyCodes, kKeyCodes, index); }
  /// log2(1 + v / A).
  Val leverOf(Val code, Val octave) {
    constexpr double kAbove = 0.0875; // log2(1 + 2^-4), of scales beyond the table
    Val at = shiftRight(min(max(code - splatI(leverFirst), 0), 2 * kLeverCount - 1), 1);
    return larger(lookUp(shape.isa, lever, index(0), kLeverCount, at), octave + splatF(f32(kAbove) - logUsual));
  }
  Val isBelow(Val at, Val count) { return splatI(convert(at, e.i32())) + e.iota(e.i32(), lanes) < splatI(convert(count, e.i32())); }
  /// Bits as whole planes, as numbers of layers of 4, after limits (P7).
  Val limit(Val layers, CacheRole side, Val tokens) {
    Val resident = i32(storage::bitsBefore(side == CacheRole::Key ? keyFormat : valueFormat, side == CacheRole::Key ? keyPlanes : valuePlanes) / 4);
    return policies().limit(layers, side, resident, convert(key.tokens, e.i32()), tokens, tokens);
  }
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ATTEND_H
