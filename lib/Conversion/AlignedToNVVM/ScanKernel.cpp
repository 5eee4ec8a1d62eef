// The scan: plane 0 of K of every token that some query sees, against all query rows at once.
//
// In plane 0 a word holds 8 channels of a token, and words of neighbouring tokens lie side by side (Layout.h): 8 bytes are the same word of two tokens, which are rows g and
// g + 8 of an operand, and two such pairs of registers are a whole one. Nothing is moved. Dithers and middles are where sums begin.
//
// The block of threads that is a row's first writes down what attend needs to know of the row.
#include "StepKernel.h"

#include "aligned/Storage/Rotation.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

namespace {

constexpr double kLeastScale = 1e-30;
constexpr double kFullscale = 32600.0 * 16 / 17; ///< a weight, so that with a 16th of another it still has two signed digits

class ScanKernel : public StepKernel {
public:
  using StepKernel::StepKernel;
  void emit();

private:
  const int64_t padded = allRows, quads = padded / kQuad;
  const int64_t steps = llvm::divideCeil(keyWords, 8); ///< products that a row of plane 0 is deep
  const int64_t scanWords = steps * 8;                 ///< with zeros behind
  static constexpr int64_t kPairs = kTile / 16;        ///< pairs of tokens of a lane: tokens 16 T + 2 g, + 1

  Shared x = shared("x", e.f32(), kStepWarps * shape.keyDim);                       ///< a warp's query row, rotated
  Shared raw = shared("raw", e.i32(), at.columns * scanWords), low = shared("low", e.i32(), at.columns * scanWords);
  Shared units = shared("units", e.f32(), padded), sums = shared("sums", e.i32(), padded), norms = shared("norms", e.f32(), padded);
  Shared shifts = shape.hasSoftcap() ? shared("shifts", e.f32(), padded) : Shared{};
  Shared usual = shared("usual", e.f32(), kStepWarps), lows = shared("lows", e.i32(), kStepWarps);
  Shared stats = shared("stats", e.f32(), kStepWarps * padded * 3);
  Val isFirst, someLow, floor;

  void prepareQuery(Val h);
  /// The weights of a word of 4-bit values, and what goes with its lower halves, by digit.
  struct WordWeights {
    std::array<Val, 2> raw, low;
  };
  WordWeights wordWeights(Val inverse, bool isRow, Val word);
  std::array<Val, 2> digitsOf(std::array<Val, 4> wholes);
  void prepareRow();
  void lookForLow();
  Val biasScale(const StepCache &cache) { return e.exp2(fma(cache.bias, real(-0.125), real(16))); }
  void setHeadFact(Val h, HeadFact which, Val value) { e.storeGlobal(value, prepared, h * int64_t(HeadFact::Count) + (at.heads + int64_t(which))); }
  void setRowFact(RowFact which, Val value) { e.storeGlobal(value, prepared, number(at.row + int64_t(which))); }
  Val scalesField(const StepCache &cache, size_t offset) { return e.loadGlobal(e.at(cache.scales, e.i8(), number(offset)), e.i32(), number(0)); }
  Val countsOf(const StepCache &cache) { return e.at(cache.scales, e.i8(), number(offsetof(aligned_scales, count))); }

  Vals withAsides(const Vals &scores, Val tile);
  Vals loadTile(Val tile); ///< two words each, [steps][2][kPairs] as far as there are some, and [kPairs] of two codes
};

//===----------------------------------------------------------------------===//
// What is known of the row
//===----------------------------------------------------------------------===//

/// Bytes of four weights: their upper digits, and the lower ones.
std::array<Val, 2> ScanKernel::digitsOf(std::array<Val, 4> v) {
  auto pack = [&](std::array<Val, 4> w, int byte) {
    return e.permuteBytes(e.permuteBytes(w[0], w[1], {byte, byte + 4, 0, 0}), e.permuteBytes(w[2], w[3], {byte, byte + 4, 0, 0}), {0, 1, 4, 5});
  };
  std::array<Val, 4> rounded;
  for (int i = 0; i < 4; ++i)
    rounded[i] = v[i] + 128;
  return {pack(rounded, 1), pack(v, 0)};
}

/// Of the warp's query row. Plane 0 of K has channels c and c + 4 in a byte, rows have 2 b and 2 b + 1.
ScanKernel::WordWeights ScanKernel::wordWeights(Val inverse, bool isRow, Val word) {
  const int64_t step = isRow ? 2 : 1, apart = isRow ? 1 : 4;
  Val base = warp * shape.keyDim + word * 8;
  std::array<Val, 4> odd, even;
  for (int64_t j = 0; j < 4; ++j) {
    Val lowAt = base + step * j;
    auto [whole, real_] = e.nearest(e.load(x, lowAt + apart) * inverse);
    odd[j] = whole;
    even[j] = e.nearest(fma(real_, real(-1.0 / 16), e.load(x, lowAt) * inverse)).first;
  }
  return {digitsOf(odd), digitsOf(even)};
}

void ScanKernel::prepareQuery(Val h) {
  const int64_t dim = shape.keyDim;
  if (rows > kStepWarps)
    e.warpBarrier(); // nobody reads the row before it any more
  Val query = e.at(argument(Argument::Query), shape.query, (wide(row) * rows + wide(h)) * dim), scale = argument(Argument::Scale);
  Val offset = e.at(addressOf(argument(Argument::Key), offsetof(aligned_cache, offset)), e.f32(), wide(row) * dim);
  Val notFinite = real(0), most = real(0), square = real(0), absolute = real(0);
  struct Part {
    int64_t first, size, each;
    Vals x;
  };
  SmallVector<Part> parts;
  Vals plain, channels;
  for (int64_t first = 0; first < dim;) {
    int64_t size = storage::blockAt(first, dim), each = std::max<int64_t>(size / GpuEmitter::kWarp, 1);
    Part part{first, size, each, {}};
    for (int64_t i = 0; i < each; ++i) {
      Val within = size < GpuEmitter::kWarp ? lane & (size - 1) : lane * each + i, channel = within + first;
      Val v = convert(e.loadGlobal(query, shape.query, channel), e.f32()) * scale;
      notFinite = fma(v, real(0), notFinite);
      plain.push_back(v);
      channels.push_back(size < GpuEmitter::kWarp ? select(lane < size, channel, number(-1)) : channel); // lanes behind the block repeat it
      // signOf(channel): the top bit of a hash.
      Val hash = (channel + 1) * int32_t(0x9E3779B9u);
      hash = (hash ^ shrLogical(hash, number(15))) * int32_t(0x85EBCA6Bu);
      Val signedValue = bitcast(bitcast(v, e.i32()) ^ (hash & INT32_MIN), e.f32());
      part.x.push_back(signedValue * (1 / std::sqrt(double(size))));
    }
    parts.push_back(part);
    first += size;
  }
  Val isFinite = invert(e.any(invert(notFinite == 0)));
  for (Part &part : parts) {
    for (Val &v : part.x)
      v = select(isFinite, v, real(0));
    for (int64_t half = 1; half < part.each; half *= 2)
      for (int64_t i = 0; i < part.each; ++i)
        if (!(i & half)) {
          Val a = part.x[i], b = part.x[i + half];
          part.x[i] = a + b;
          part.x[i + half] = a - b;
        }
    for (int64_t distance = 1; distance * part.each < part.size; distance *= 2) {
      Val sign = bitcast(((lane & distance) << number(31 - llvm::Log2_64(distance))), e.i32());
      for (Val &v : part.x) {
        Val other = e.shuffleXor(v, distance);
        v = other + bitcast(bitcast(v, e.i32()) ^ sign, e.f32());
      }
    }
    Val mine = lane < part.size;
    for (size_t i = 0; i < part.x.size(); ++i) {
      Val v = part.x[i];
      most = e.largest(most, abs(v));
      if (shape.certified)
        absolute = absolute + (part.size < GpuEmitter::kWarp ? select(mine, abs(v), real(0)) : abs(v));
      square = part.size < GpuEmitter::kWarp ? select(mine, fma(v, v, square), square) : fma(v, v, square);
      Val within = part.size < GpuEmitter::kWarp ? lane & (part.size - 1) : lane * part.each + int64_t(i);
      auto keep = [&] { e.store(v, x, warp * dim + (within + part.first)); };
      part.size < GpuEmitter::kWarp ? e.when(mine, keep) : keep();
    }
  }
  most = warpMax(most);
  square = warpAdd(square);
  Val mass = shape.certified ? warpAdd(absolute) : Val();
  e.warpBarrier();
  Val step = e.largest(most, real(kLeastScale)) * (1 / kFullscale), inverse = e.reciprocal(step);
  // Weights of plane 0's words, zeros behind them.
  Val one = number(0x01010101), zero = number(0);
  Val sum = e.loop(lane, number(scanWords), GpuEmitter::kWarp, {zero}, [&](Val word, Vals total) -> Vals {
    Val inside = word < keyWords, own = total[0];
    WordWeights weights = wordWeights(inverse, /*isRow=*/false, min(word, number(keyWords - 1)));
    for (int64_t digit = 0; digit < 2; ++digit) {
      Val place = (h * 2 + digit) * scanWords + (word & 3) * (2 * steps) + shrLogical(word, number(2)); // a lane's words side by side
      Val rawWord = select(inside, weights.raw[digit], zero), lowWord = select(inside, weights.low[digit], zero);
      e.store(rawWord, raw, place);
      e.store(lowWord, low, place);
      auto bytes = [&](Val w) { return e.intrinsic("llvm.nvvm.idp4a.s.u", e.i32(), {w, one, zero}); };
      own = own + (bytes(rawWord) * 17 + bytes(lowWord) * 16) * (digit ? 1 : 256);
    }
    return {own};
  })[0];
  sum = e.warpAdd(sum, {16, 8, 4, 2, 1});
  Val unit = step * biasScale(key) * (kLog2e / 128), norm = e.squareRoot(square);
  auto shiftOf = [&] {
    Val shift = real(0);
    for (auto [v, channel] : llvm::zip(plain, channels))
      shift = fma(v, select(channel >= 0, e.loadGlobal(offset, e.f32(), max(channel, 0)), real(0)), shift);
    return warpAdd(shift) * kLog2e;
  };
  Val shift = shape.hasSoftcap() ? shiftOf() : Val();
  e.when(lane == 0, [&] {
    if (shape.hasSoftcap())
      e.store(shift, shifts, h);
    e.store(unit, units, h);
    e.store(sum, sums, h);
    e.store(norm, norms, h);
  });
  e.when(isFirst, [&] {
    if (!shape.hasSoftcap())
      shift = shiftOf();
    e.loop(lane, number(keyWords), GpuEmitter::kWarp, [&](Val word) {
      WordWeights weights = wordWeights(inverse, /*isRow=*/true, word);
      for (int64_t digit = 0; digit < 2; ++digit) {
        Val place = (h * 2 + digit) * keyWords + word;
        e.storeGlobal(weights.raw[digit], prepared, place + at.raw);
        e.storeGlobal(weights.low[digit], prepared, place + at.low);
      }
    });
    e.loop(lane, number(2 * keyWords), GpuEmitter::kWarp, [&](Val word) {
      std::array<Val, 4> v;
      for (int64_t j = 0; j < 4; ++j)
        v[j] = e.nearest(e.load(x, warp * dim + word * 4 + j) * inverse).first;
      for (auto [digit, bytes] : llvm::enumerate(digitsOf(v)))
        e.storeGlobal(bytes, prepared, (h * 2 + int64_t(digit)) * (2 * keyWords) + word + at.full);
    });
    e.when(lane == 0, [&] {
      setHeadFact(h, HeadFact::Unit, unit);
      setHeadFact(h, HeadFact::Sum, sum);
      // P5: half of sigma^2, of the median token.
      Val sigma = scaleOf(scalesField(key, offsetof(aligned_scales, median))) * biasScale(key) * norm * (1.0 / 16 / std::sqrt(3.0));
      Val shrink = e.smallest(sigma * sigma * 0.5, real(kLargestShrink)) * -kLog2e;
      setHeadFact(h, HeadFact::Shrink, shrink);
      Val seen = visibleTokens(h % shape.queries, newest, tokens, sight), logSeen = e.log2(convert(max(seen, number(1)), e.f32()));
      setHeadFact(h, HeadFact::LogSeen, shape.toleranceFactor ? logSeen - e.log2(argument(Argument::ToleranceFactor)) * 2.0 : logSeen);
      setHeadFact(h, HeadFact::NotFinite, select(isFinite, real(0), real(NAN)));
      setHeadFact(h, HeadFact::Shift, shift);
      if (shape.certified) {
        setHeadFact(h, HeadFact::Norm, norm);
        setHeadFact(h, HeadFact::Mass, mass);
      }
    });
  });
}

/// Whether any row of V is below the floor (M3): each warp asks of some codes.
void ScanKernel::lookForLow() {
  constexpr int64_t kCodes = 256 / kStepWarps;
  Val some = number(0);
  for (int64_t i = 0; i < kCodes; i += GpuEmitter::kWarp) {
    Val code = thread + i * kStepWarps;
    some = some | select(code < floor, e.loadGlobal(countsOf(value), e.i32(), code), number(0));
  }
  Val any = e.any(some != 0);
  e.when(lane == 0, [&] { e.store(select(any, number(1), number(0)), lows, warp); });
}

/// What all query rows share; a thread for each two codes.
void ScanKernel::prepareRow() {
  Val counts = countsOf(value), sum = real(0);
  for (int64_t i = 0; i < 2; ++i) { // A = tokens / sum(1 / scale), a scale below the floor counting as the floor
    Val code = thread + i * 128;
    sum = fma(convert(e.loadGlobal(counts, e.i32(), code), e.f32()), e.exp2(fma(convert(max(code, floor), e.f32()), real(-0.125), real(16))), sum);
  }
  sum = warpAdd(sum);
  e.when(lane == 0, [&] { e.store(sum, usual, warp); });
  e.barrier();
  Val all = real(1e-30);
  for (int64_t i = 0; i < kStepWarps; ++i)
    all = all + e.load(usual, number(i));
  Val inverse = real(1) / all;
  Val counted = convert(e.loadGlobal(e.at(value.scales, e.i8(), number(offsetof(aligned_scales, tokens))), e.i64(), number(0)), e.f32());
  Val logUsual = e.log2(e.largest(counted * inverse, real(0x1p-20))) + 16.0;
  Val longest = e.load(norms, number(0));
  for (int64_t h = 1; h < rows; ++h)
    longest = e.largest(longest, e.load(norms, number(h)));
  longest = e.largest(longest, real(1e-30));
  e.when(thread < rows, [&] { setHeadFact(thread, HeadFact::Relative, e.log2(e.largest(e.load(norms, thread), real(1e-30))) - e.log2(longest)); });
  e.when(thread == 0, [&] {
    setRowFact(RowFact::LogUsual, logUsual);
    setRowFact(RowFact::ValueUnit, biasScale(value));
    setRowFact(RowFact::LargestKey, convert(scalesField(key, offsetof(aligned_scales, largest)), e.f32()));
    setRowFact(RowFact::LargestValue, convert(scalesField(value, offsetof(aligned_scales, largest)), e.f32()));
    setRowFact(RowFact::Floor, convert(floor, e.f32()));
    setRowFact(RowFact::KeyUnit, biasScale(key));
    setRowFact(RowFact::SomeLow, select(someLow, real(1), real(0)));
    const int64_t counters = blocksPerSplit(shape);
    for (int64_t i = 0; i < counters; ++i)
      e.storeGlobal(number(0), ofRow(Argument::Counters, e.i32(), counters), number(i));
    if (shape.certified)
      e.storeGlobal(number(0), argument(Argument::Done), row);
  });
  // Tables by scale code, two codes a thread.
  Val sigma = longest * biasScale(key) * (1.0 / 16 / std::sqrt(3.0));
  Vals ofKey, ofValue;
  for (int64_t i = 0; i < 2; ++i) {
    Val octave = octavesOf(thread * 2 + i);
    ofKey.push_back(log2Misled(sigma * e.exp2(octave), [&](Val y) { return e.exp2(y); }, [&](Val y) { return e.log2(y); }));
    ofValue.push_back(e.log2(e.exp2(octave + 16.0 - logUsual) + 1.0));
  }
  Type f16 = e.types.getF16Type();
  e.storeGlobal(e.pack(f16, ofKey[0], ofKey[1]), prepared, thread + at.keyTable);
  e.storeGlobal(e.pack(f16, ofValue[0], ofValue[1]), prepared, thread + at.valueTable);
  // M1, in units of codes: sum (n - dither) / 2^15 over sum 1 / scale. Sums hold the bits of the planes that the cache has.
  Val planes = small(Argument::Value, offsetof(aligned_cache, planes)), middle = real(0);
  const aligned_format format = formatOf(shape.valuePlanes);
  for (int32_t p = 1; p < format.planes; ++p)
    middle = select(planes == p, real(std::exp2(15 - storage::bitsBefore(format, p))), middle);
  Val channelSums = e.at(addressOf(argument(Argument::Value), offsetof(aligned_cache, sum)), e.i64(), wide(row) * shape.valueDim);
  forThreads(shape.valueDim, [&](Val c) {
    Val total = fma(counted, middle, convert(e.loadGlobal(channelSums, e.i64(), c), e.f32()));
    e.storeGlobal(total * inverse * 0x1p-15, prepared, c + at.mean);
  });
}

//===----------------------------------------------------------------------===//
// Tiles
//===----------------------------------------------------------------------===//

Vals ScanKernel::loadTile(Val tile) {
  Val place = placeAt(key.places, tile);
  Val plane = tileOf(key.planes[0], place, storage::bytesPerTile(4, shape.keyDim)), codes = tileOf(key.codes, place, kTile);
  Val mine = e.at(plane, e.i8(), q * (kTile * 4) + g * 8);
  Vals loaded;
  for (int64_t s = 0; s < steps; ++s)
    for (int64_t half = 0; half < 2; ++half) {
      int64_t word = 8 * s + 4 * half; // of lane q = 0
      if (word >= keyWords)
        continue;
      // Behind the last word weights are zero: what is loaded there does not count, but has to be there.
      Val from = word + 4 <= keyWords ? e.at(mine, e.i8(), number(word * kTile * 4))
                                      : e.at(plane, e.i8(), min(q + word, number(keyWords - 1)) * (kTile * 4) + g * 8);
      for (int64_t T = 0; T < kPairs; ++T)
        loaded.push_back(e.loadGlobal(from, vectorOf(e.i32(), 2), number(T * 16)));
    }
  for (int64_t T = 0; T < kPairs; ++T)
    loaded.push_back(zext(e.loadGlobal(e.at(codes, e.i8(), g * 2), e.i16(), number(T * 8)), e.i32()));
  return loaded;
}

/// Scores of a tile, where keys that are kept aside have theirs (S7).
Vals ScanKernel::withAsides(const Vals &scores, Val tile) {
  SmallVector<Variable> now;
  for (Val score : scores)
    now.push_back(e.variable(score));
  forAsides(Argument::Key, [&](Val token, Val values) {
    e.when(shrLogical(token, number(6)) == tile, [&] {
      Val within = token & (kTile - 1);
      e.loop(number(0), number(rows), 1, [&](Val h) {
        Val query = e.at(argument(Argument::Query), shape.query, (wide(row) * rows + wide(h)) * shape.keyDim);
        Val dot = e.loop(lane, number(shape.keyDim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals sum) -> Vals {
          return {fma(convert(e.loadGlobal(query, shape.query, c), e.f32()), e.loadGlobal(values, e.f32(), c), sum[0])};
        })[0];
        Val score = warpAdd(dot) * argument(Argument::Scale) * kLog2e / e.load(units, h); // in the terms of the others, which have their unit before them
        for (int64_t i = 0; i < int64_t(now.size()); ++i) {
          Val mine = (within == g * 2 + (16 * (i % 8 / 2) + i % 2)) & (h == q + 4 * (i / 8)), before = now[i]();
          now[i].set(select(mine & (before != real(-INFINITY)), score, before)); // what is hidden stays so
        }
      });
    });
  });
  Vals result;
  for (Variable &score : now)
    result.push_back(score());
  return result;
}

void ScanKernel::emit() {
  Val someAside = hasAsides(Argument::Key);
  const int64_t halves = llvm::divideCeil(keyWords, 4); // of products, that a row has words in
  Val index = split * kStepWarps + warp, step = splits * kStepWarps;
  isFirst = split == 0;
  floor = max(scalesField(value, offsetof(aligned_scales, median)) - storage::kFloorBelowMedian, number(storage::kLeastCode));
  SmallVector<Variable> ahead;
  for (int64_t i = 0; i < halves * kPairs; ++i)
    ahead.push_back(e.variable(vectorOf(e.i32(), 2)));
  for (int64_t T = 0; T < kPairs; ++T)
    ahead.push_back(e.variable(e.i32()));
  auto ask = [&](Val index) {
    e.when(index < seenTiles, [&] {
      for (auto [variable, word] : llvm::zip(ahead, loadTile(tileAt(index))))
        variable.set(word);
    });
  };
  ask(index);
  if (rows < padded) { // padding rows have no weights
    e.when(warp == 0, [&] {
      e.loop(lane, number((padded - rows) * 2 * scanWords), GpuEmitter::kWarp, [&](Val i) {
        e.store(number(0), raw, i + rows * 2 * scanWords);
        e.store(number(0), low, i + rows * 2 * scanWords);
      });
      e.when(lane < padded - rows, [&] {
        e.store(real(0), units, lane + rows);
        e.store(number(0), sums, lane + rows);
      });
    });
    e.when(isFirst, [&] {
      Val padding = number((padded - rows) * 2 * keyWords);
      e.loop(thread, padding, threads, [&](Val i) {
        e.storeGlobal(number(0), prepared, i + (at.raw + rows * 2 * keyWords));
        e.storeGlobal(number(0), prepared, i + (at.low + rows * 2 * keyWords));
        for (int64_t half = 0; half < 2; ++half)
          e.storeGlobal(number(0), prepared, i + (at.full + (rows * 2 * 2 + half * (padded - rows) * 2) * keyWords));
      });
      e.loop(thread, number((padded - rows) * int64_t(HeadFact::Count)), threads, [&](Val i) { e.storeGlobal(real(0), prepared, i + (at.heads + rows * int64_t(HeadFact::Count))); });
    });
  }
  lookForLow();
  forHeadsOfWarp(rows, [&](Val h) { prepareQuery(h); });
  e.barrier();
  Val found = e.load(lows, number(0), kStepWarps);
  someLow = (aligned::lane(found, 0) | aligned::lane(found, 1) | aligned::lane(found, 2) | aligned::lane(found, 3)) != 0;
  e.when(isFirst, [&] { prepareRow(); });

  // Of this lane's query row in each quad.
  struct OfQuad {
    SmallVector<Val> raw, low; ///< [steps][2]
    Val unit, negative, begin;
    Variable reference, sum, lowSum;
  };
  std::vector<OfQuad> all(quads);
  const bool keep = quads * halves <= 8; // in registers
  auto weightsOf = [&](Shared from, int64_t n) {
    const int64_t many = 2 * steps % 4 ? 2 : 4;
    SmallVector<Val> all;
    for (int64_t half = 0; half < halves; half += many) {
      Val place = (g + 8 * n) * scanWords + q * (2 * steps) + half, some = keep ? e.load(from, place, many) : e.loadHere(from, place, many);
      for (int64_t i = 0; i < many; ++i)
        all.push_back(aligned::lane(some, i));
    }
    return all;
  };
  for (auto [n, quad] : llvm::enumerate(all)) {
    if (keep) {
      quad.raw = weightsOf(raw, n);
      quad.low = weightsOf(low, n);
    }
    Val h = q + 4 * int64_t(n), sum = e.load(sums, h);
    quad.unit = e.load(units, h);
    quad.negative = number(0) - sum;
    quad.begin = beginOf(convert(sum, e.f32()));
    quad.reference = e.variable(real(kNothing));
    quad.sum = e.variable(real(0));
    quad.lowSum = e.variable(real(0));
  }
  Val scores = tileScores(), tops = tileTops();
  Val records = isAsked(Argument::KeyBits);
  Val keyBits = bitsOf(Argument::KeyBits), valueBits = bitsOf(Argument::ValueBits);
  const int64_t mask = 0x0f0f0f0f;
  if (shape.mask)
    e.when(records, [&] { // nothing is read of tiles that no query sees
      Variable next = e.variable(index);
      e.loopWhile([&] { return next() < tiles; }, [&] {
        Val tile = next();
        next.set(tile + step);
        e.when((tile >= visible.sinks) & ((tile < visible.begin) | (tile >= visible.end)), [&] {
          for (Val bits : {keyBits, valueBits})
            e.storeGlobal(e.constant(e.types.getI16Type(), 0), bits, tile * (kTile / 2) + lane);
        });
      });
    });

  Variable next = e.variable(index);
  e.loopWhile([&] { return next() < seenTiles; }, [&] {
    Val i = next();
    next.set(i + step);
    Val tile = tileAt(i), firstToken = tile * kTile + g * 2;
    Vals words, codes;
    for (int64_t j = 0; j < halves * kPairs; ++j)
      words.push_back(ahead[j]());
    for (int64_t T = 0; T < kPairs; ++T)
      codes.push_back(ahead[halves * kPairs + T]());
    SmallVector<std::array<Val, 2 * kPairs>> scored(quads);
    Val zero = number(0), shifted = firstToken << number(20);
    SmallVector<Val, 8> dithers;
    for (int64_t T = 0; T < kPairs; ++T)
      for (int64_t j = 0; j < 2; ++j) // factor * (token << 20), around the middle
        dithers.push_back(shifted * storage::kKeyDither + number(int32_t(uint32_t(storage::kKeyDither) * uint32_t(16 * T + j) << 20) ^ INT32_MIN));
    for (int64_t T = 0; T < kPairs; ++T) {
      auto operand = [&](int64_t s, bool masked) {
        Vals a;
        for (int64_t half = 2 * s; half < 2 * s + 2; ++half)
          for (int64_t j = 0; j < 2; ++j) {
            Val word = half < halves ? aligned::lane(words[half * kPairs + T], j) : zero;
            a.push_back(masked && half < halves ? word & mask : word);
          }
        return a;
      };
      for (int64_t n = 0; n < quads; ++n) {
        OfQuad &quad = all[n];
        auto add = [&](bool masked, Vals c) {
          SmallVector<Val> weights = keep ? (masked ? quad.low : quad.raw) : weightsOf(masked ? low : raw, n);
          for (int64_t s = 0; s < steps; ++s)
            c = e.multiply(operand(s, masked), {weights[2 * s], weights[2 * s + 1]}, c);
          return c;
        };
        Vals c = add(true, Vals(4, zero));
        for (Val &number : c)
          number = number << this->number(4);
        for (int64_t j = 0; j < 2; ++j)
          c[2 * j + 1] = c[2 * j + 1] + e.multiplyHigh(quad.negative, dithers[2 * T + j], quad.begin);
        c = add(false, c);
        for (int64_t j = 0; j < 2; ++j)
          scored[n][2 * T + j] = convert((c[2 * j] << this->number(8)) + c[2 * j + 1], e.f32());
      }
    }
    for (int64_t T = 0; T < kPairs; ++T)
      for (int j = 0; j < 2; ++j) {
        Val scale = scaleOf(codes[T], j);
        for (auto &row : scored)
          row[2 * T + j] = row[2 * T + j] * scale;
      }
    if (keep) // else registers are short until scores are written
      ask(i + step);
    // What a query does not see, and what is behind the last token.
    auto cover = [&] {
      Vals covered;
      for (int64_t n = 0; n < quads; ++n)
        for (int64_t T = 0; T < kPairs; ++T)
          for (int64_t j = 0; j < 2; ++j) {
            Val token = firstToken + (16 * T + j), seen = token < tokens;
            if (shape.mask)
              seen = seen & isInSight(q + 4 * n, token);
            covered.push_back(select(seen, scored[n][2 * T + j], real(-INFINITY)));
          }
      return covered;
    };
    auto plain = [&] {
      Vals all;
      for (auto &row : scored)
        all.append(row.begin(), row.end());
      return all;
    };
    Vals now = shape.mask ? cover() : e.choose(tile * kTile + kTile > tokens, cover, plain);
    now = e.choose(someAside, [&] { return withAsides(now, tile); }, [&] { return now; });
    // Scores as the softmax sees them, where there is more to it than a factor.
    const bool isFinal = shape.hasSoftcap() || shape.attnMask;
    if (isFinal)
      for (int64_t i = 0; i < quads * 8; ++i) {
        Val h = clamped(q + 4 * (i / 8)), token = min(firstToken + (16 * (i % 8 / 2) + i % 2), tokens - 1), x = now[i] * all[i / 8].unit;
        if (shape.hasSoftcap())
          x = select(now[i] == real(-INFINITY), now[i], capped(x, e.load(shifts, h)));
        now[i] = shape.attnMask ? masked(x, maskNumber(h, token)) : x;
      }
    Val own = (tile * 32 + g) * padded + q;
    for (int64_t n = 0; n < quads; ++n) {
      OfQuad &quad = all[n];
      ArrayRef<Val> t = ArrayRef<Val>(now).slice(n * 8, 8);
      Val top = t[0];
      for (int64_t j = 1; j < 8; ++j)
        top = e.largest(top, t[j]);
      Val unit = isFinal ? real(1) : quad.unit;
      top = e.warpMax(top, {4, 8, 16}) * unit;
      // References are multiples of 1/8, so that f16 holds their differences.
      constexpr double kEighths = 1.5 * 1048576;
      Val before = quad.reference(), reference = e.largest(before, (top + 1.0 / 16 + kEighths) - kEighths);
      quad.reference.set(reference);
      Val sum = real(0);
      Vals z;
      for (int64_t j = 0; j < 8; ++j)
        z.push_back(fma(t[j], unit, -reference));
      for (int64_t T = 0; T < kPairs; ++T) {
        Val at = own + (8 * T * padded + 4 * n);
        if (hasWideScores(shape))
          e.storeGlobal(e.vectorOf({z[2 * T], z[2 * T + 1]}), scores, at * 2);
        else
          e.storeGlobal(e.pack(scoreType(), z[2 * T], z[2 * T + 1]), scores, at);
      }
      Vals weights;
      for (int64_t j = 0; j < 8; ++j) {
        weights.push_back(e.exp2(z[j]));
        sum = j ? sum + weights[j] : weights[j];
      }
      Val factor = e.exp2(before - reference);
      quad.sum.set(fma(quad.sum(), factor, sum));
      quad.lowSum.set(quad.lowSum() * factor);
      e.when(someLow, [&] {
        Val codes = tileOf(value.codes, placeAt(value.places, tile), kTile);
        for (int64_t j = 0; j < 8; ++j) {
          Val code = zext(e.loadGlobal(codes, e.i8(), g * 2 + (16 * (j / 2) + j % 2)), e.i32()), isLow = (code < floor) & (code != storage::kAside);
          quad.lowSum.set(quad.lowSum() + select(isLow, weights[j], real(0)));
        }
      });
      e.when(g == 0, [&] { e.storeGlobal(e.vectorOf({reference, top}), tops, (tile * padded + (q + 4 * n)) * 2); });
    }
    if (!keep)
      ask(i + step);
    e.when(records, [&] { // attend has the last word on those it reads more of
      Val own = tile * kTile + lane * 2;
      for (int64_t j = 0; j < 2; ++j)
        e.when(own + j < tokens, [&] {
          e.storeGlobal(e.constant(e.i8(), 4), keyBits, own + j);
          e.storeGlobal(e.constant(e.i8(), 0), valueBits, own + j);
        });
    });
  });

  for (int64_t n = 0; n < quads; ++n) {
    Val sum = e.warpAdd(all[n].sum(), {4, 8, 16}), lowSum = e.warpAdd(all[n].lowSum(), {4, 8, 16});
    e.when(g == 0, [&] {
      Val place = (warp * padded + (q + 4 * n)) * 3;
      Val numbers[] = {all[n].reference(), sum, lowSum};
      for (int64_t i = 0; i < 3; ++i)
        e.store(numbers[i], stats, place + i);
    });
  }
  e.barrier();
  e.when(thread < padded, [&] { // the warps' of a query row
    Vals references;
    Val top = real(kNothing), sum = real(0), lowSum = real(0);
    for (int64_t w = 0; w < kStepWarps; ++w) {
      references.push_back(e.load(stats, (thread + w * padded) * 3));
      top = e.largest(top, references[w]);
    }
    for (int64_t w = 0; w < kStepWarps; ++w) {
      Val factor = e.exp2(references[w] - top);
      sum = fma(e.load(stats, (thread + w * padded) * 3 + 1), factor, sum);
      lowSum = fma(e.load(stats, (thread + w * padded) * 3 + 2), factor, lowSum);
    }
    Val ofSplit = ofSplits(Argument::Stats, 4);
    e.storeGlobal(e.vectorOf({top, sum, lowSum, real(0)}), ofSplit, (split * padded + thread) * 4);
  });
  finish();
}

} // namespace

void aligned::emitScanKernel(ModuleOp program, StringRef name, const DecodeShape &shape) { ScanKernel(program, name, shape).emit(); }
