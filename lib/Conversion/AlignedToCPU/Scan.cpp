// The scan of a split: the first plane of K of every token, as integer dot products of a tile's 64 tokens with all query rows at once.
//
// A tile's scores are finished, and what they add up to taken, while they are in the nearest cache. Sums are relative to a running reference, which follows where
// scores exceed it by far: rescaling is rare.
#include "Step.h"

#include "aligned/Runtime/Kernel.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr double kRoomAboveReference = 60; // octaves that scores may exceed the reference by
constexpr int64_t kTilesAhead = 4;         // that are asked for early

class Scan : public Step {
public:
  using Step::Step;

  void emit(Val split) {
    lap(ALIGNED_PART_CALL);
    std::pair<Val, Val> tiles = tilesOf(split);
    Val first = origin = tiles.first, last = tiles.second;
    references = e.local(e.f32(), rows);
    sums = e.local(e.f32(), rows * lanes);
    for (Buffer *buffer : {&steps, &masses, &constants})
      *buffer = e.local(e.f32(), rows);
    const int64_t below = 16 - shape.keyPlanes.getWidths()[0];
    e.loop(index(0), index(rows), 1, [&](Val h) {
      e.store(f32(kLowest), references, h);
      e.store(splatF(0.0), sums, h * lanes);
      Val unit = fact(h, Fact::Unit), mass = unit * fact(h, Fact::Sum);
      e.store(unit * std::exp2(below), steps, h);
      e.store(mass, masses, h);
      e.store(mass * (std::exp2(below - 1) - 32768 + 2048) + fact(h, Fact::NotFinite), constants, h);
    });
    logUsual = rowFact(RowFact::LogUsual);
    isFull = rowFact(RowFact::Full) > 0;
    forTiles(first, last, [&](Val tile) {
      Val place = key.placeOf(tile), valuePlace = value.placeOf(tile);
      score(tile, place);
      e.when(isFull, [&] {
        Val first = tile * kTile;
        e.loop(first, min(first + kTile, key.tokens), 1, [&](Val token) {
          e.loop(index(0), index(rows), 1, [&](Val h) { e.store(fullScore(token, h), buffers.scores, scoreAt(tile, h) + token % index(kTile)); });
        });
      });
      finish(tile);
      measure(tile, valuePlace);
    });
    forRows([&](Val h) {
      e.store(e.load(references, h), buffers.parts, h);
      e.store(reduceAdd(e.load(sums, h * lanes, lanes)), buffers.parts, h + rows);
    });
    lap(ALIGNED_PART_SCAN);
  }

private:
  Buffer references, sums;
  Buffer steps, masses, constants; ///< of each query row: a score is (dot steps + constant - dither mass) scale
  Val logUsual;

  void score(Val tile, Val place) {
    const int64_t width = shape.keyPlanes.getWidths()[0], parts = 8 / width; // 4-channel words in a 32-bit lane
    const int64_t groups = shape.keyDim / (4 * parts), columns = kTile / lanes;
    const int64_t budget = shape.isa == Isa::AVX512 ? 16 : 8; // registers of sums
    const int64_t some = std::clamp<int64_t>(budget / digits(), 1, rows);
    int64_t wide = 1;
    while (wide * 2 <= columns && digits() * some * wide * 2 <= budget)
      wide *= 2;
    const int64_t tileBytes = storage::bytesPerTile(width, shape.keyDim);
    Buffer words = e.buffer(buffers.digits.pointer, e.i32());
    Val base = place * tileBytes;
    forRowGroups(some, [&](Val h0, int64_t count) {
      for (int64_t column = 0; column < columns; column += wide) {
        Vals zero(digits() * count * wide, e.constant(vectorOf(e.i32(), lanes), 0));
        Vals acc = e.loop(index(0), index(groups), 1, zero, [&](Val group, Vals acc) {
          Vals part[2];
          for (int64_t j = 0; j < wide; ++j) {
            Val at = base + group * (kTile * 4) + (column + j) * lanes * 4;
            Val packed = bitcast(e.load(key.plane[0], at, 4 * lanes), e.i32());
            if (lanes == 16 || (column + j) % 2 == 0)
              e.prefetch(key.plane[0], at + kTilesAhead * tileBytes);
            if (parts == 2) {
              part[0].push_back(packed & 0x0f0f0f0f);
              part[1].push_back(shrLogical(packed, e.constant(packed.type(), 4)) & 0x0f0f0f0f);
            } else {
              part[0].push_back(packed);
            }
          }
          for (int64_t d = 0; d < digits(); ++d)
            for (int64_t h = 0; h < count; ++h)
              for (int64_t p = 0; p < parts; ++p) {
                Val weight = e.load(words, ((h0 + h + d * rows) * (shape.keyDim / 4)) + group * parts + p);
                for (int64_t j = 0; j < wide; ++j) {
                  Val &sum = acc[(d * count + h) * wide + j];
                  sum = dot4(shape.isa, sum, part[p][j], splatI(weight), (1 << width) - 1);
                }
              }
          return acc;
        });
        for (int64_t j = 0; j < wide; ++j) {
          int64_t token = (column + j) * lanes;
          Val scale = scaleOf(codesAt(key, place, token));
          Val dithers = ditherSteps(splatI(convert(tile * kTile + token, e.i32())) + e.iota(e.i32(), lanes), CacheRole::Key);
          for (int64_t h = 0; h < count; ++h) {
            Val dot = convert(acc[h * wide + j], e.f32());
            for (int64_t d = 1; d < digits(); ++d)
              dot = fma(dot, splatF(256.0), convert(acc[(d * count + h) * wide + j], e.f32()));
            auto of = [&](Buffer terms) { return splatF(e.load(terms, h0 + h)); };
            Val x = fma(dot, of(steps), of(constants) - dithers * of(masses)) * scale;
            e.store(x, buffers.scores, scoreAt(tile, h0 + h) + token);
          }
        }
      }
    });
  }

  /// Tokens that are kept aside, masks, and lanes behind the last token.
  void finish(Val tile) {
    asideScores(tile);
    auto cover = [&] {
      for (int64_t token = 0; token < kTile; token += lanes) {
        Val each = splatI(convert(tile * kTile + token, e.i32())) + e.iota(e.i32(), lanes), there = each < splatI(convert(key.tokens, e.i32()));
        forRows([&](Val h) {
          Val at = scoreAt(tile, h) + token, x = e.load(buffers.scores, at, lanes);
          if (shape.attnMask) {
            Val with = withMask(x, h, tile * kTile + token);
            x = shape.hasSoftcap() ? select(with < kLowest, splatF(kHidden), x) : with; // behind a cap, numbers are added after it
          }
          Val seen = shape.mask ? there & isVisible(each, h % index(shape.queries), newest, sight) : there;
          e.store(select(seen, x, splatF(kHidden)), buffers.scores, at);
        });
      }
    };
    if (shape.mask || shape.attnMask)
      cover();
    else
      e.when((tile + 1) * kTile > key.tokens, cover);
  }

  void asideScores(Val tile) {
    auto isHere = [&](Val token) { return (token / index(kTile)) == tile; };
    value.aside.forEach([&](Val token, Buffer) { // its weight has to be known as well as it can be: nothing of it is refined
      e.when(isHere(token), [&] { e.loop(index(0), index(rows), 1, [&](Val h) { e.store(fullScore(token, h), buffers.scores, scoreAt(tile, h) + token % index(kTile)); }); });
    });
    key.aside.forEach([&](Val token, Buffer values) {
      e.when(isHere(token), [&] {
        Buffer queries = e.buffer(in.query, shape.query);
        Val scale = in.scale;
        e.loop(index(0), index(rows), 1, [&](Val h) {
          Val q = convert(e.load(queries, (row * rows + h) * shape.keyDim, shape.keyDim), e.f32());
          Val x = reduceAdd(q * e.load(values, index(0), shape.keyDim)) * scale * kLog2e;
          // -inf, which a cap makes finite (A12); keeps NaN and +inf.
          const double least = shape.hasSoftcap() ? kLowest / 2 : 0.9 * kHidden; // lower than any score, but not hidden
          x = select(x < least, f32(least), x);
          e.store(x, buffers.scores, scoreAt(tile, h) + token % index(kTile));
        });
      });
    });
  }

  /// The score of one token from all resident bits of K, a channel at a time.
  Val fullScore(Val token, Val h) {
    const aligned_format format = formatOf(shape.keyPlanes);
    const int64_t resident = shape.keyPlanes.getResident();
    Val place = key.placeOf(token / index(kTile)), within = token % index(kTile);
    Val dot = e.loop(index(0), index(shape.keyDim), 1, {f32(0)}, [&](Val c, Vals sum) -> Vals {
      Val bits = i32(0);
      for (int64_t plane = 0; plane < resident; ++plane) {
        StoredBits own = storedBits(format, plane, shape.keyDim, within, c);
        Val loaded = zext(e.load(key.plane[plane], place * storage::bytesPerTile(format.width[plane], shape.keyDim) + own.byte), e.i32());
        bits = bits | ((shrLogical(loaded, own.shift) & own.mask) << storage::bitsBelow(format, plane));
      }
      Val weight = i32(0);
      for (int64_t d = 0; d < digits(); ++d)
        weight = weight * 256 + convert(e.load(buffers.digits, (h + d * rows) * shape.keyDim + c), e.i32());
      return {fma(convert(weight, e.f32()), convert(bits - 0x8000, e.f32()), sum[0])};
    })[0];
    const int64_t below = 16 - storage::bitsBefore(format, resident);
    Val unit = fact(h, Fact::Unit), dither = ditherSteps(convert(token, e.i32()), CacheRole::Key) - 2048;
    Val code = zext(e.load(key.codes, place * kTile + within), e.i32());
    return (dot + fact(h, Fact::Sum) * (e.constant(e.f32(), below ? std::exp2(below - 1) : 0) - dither)) * unit * scaleOf(code) + fact(h, Fact::NotFinite);
  }

  /// Maxima and sums of a tile.
  void measure(Val tile, Val valuePlace) {
    const int64_t columns = kTile / lanes, tops = kTopLanes / lanes;
    Vals levels;
    for (int64_t j = 0; j < columns; ++j) {
      Val octave = octaves(codesAt(value, valuePlace, j * lanes));
      levels.push_back(larger(octave, splatF(logUsual)));
    }
    forRows([&](Val h) {
      Vals top(tops, splatF(kHidden));
      Vals x;
      for (int64_t j = 0; j < columns; ++j) {
        x.push_back(final(e.load(buffers.scores, scoreAt(tile, h) + j * lanes, lanes), h, tile * kTile + j * lanes));
        top[j % tops] = larger(x[j] + levels[j], top[j % tops]);
      }
      for (int64_t t = 0; t < tops; ++t)
        e.store(top[t], buffers.tops, topAt(tile, h) + t * lanes);
      Val all = top[0];
      for (int64_t t = 1; t < tops; ++t)
        all = larger(top[t], all);
      Val reference = e.load(references, h);
      e.when(anyOf(all > splatF(reference + logUsual + kRoomAboveReference)), [&] {
        Val next = reduceMax(all) - logUsual, factor = power(splatF(reference - next));
        e.store(e.load(sums, h * lanes, lanes) * factor, sums, h * lanes);
        e.store(next, references, h);
      });
      Val shift = splatF(e.load(references, h)), sum = e.load(sums, h * lanes, lanes);
      for (int64_t j = 0; j < columns; ++j)
        sum = sum + power(x[j] - shift);
      e.store(sum, sums, h * lanes);
    });
  }
};

} // namespace

void aligned::emitScan(Emitter &e, const KernelShape &shape, const StepInputs &in, Val row, Val split, const StepBuffers &buffers) {
  Scan(e, shape, in, row, buffers).emit(split);
}
