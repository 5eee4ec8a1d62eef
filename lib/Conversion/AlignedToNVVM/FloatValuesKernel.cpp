// The values of float planes: each row of V as far as its probability makes it visible (P1), weighed and added.
//
// A warp takes a tile of 64 tokens, two for each lane, weighs them, and decides how far each is read; warps that share a tile tell each other, since all of them read
// what any of their query rows asks for (P3). Then the tensor cores of floats multiply them with the weights, which come in two parts: up to four query rows and their
// second parts are columns of one product, of more rows both parts add to the same sums. Tokens that are kept aside weigh nothing there, and are added in the end.
#include "FloatKernel.h"

using namespace mlir;
using namespace aligned;

namespace {

class FloatValuesKernel : public FloatKernel {
public:
  using FloatKernel::FloatKernel;
  void emit();

private:
  const Type storage = storageOf(shape.value);
  const bool isFolded = ownHeads <= kProductColumns / kWeightParts;
  const int64_t operands = isFolded ? 1 : kWeightParts; ///< weights of a depth of tokens
  const int64_t operandWords = kProductColumns * kDepthWords, warpWords = kTile / kProductDepth * operands * operandWords; ///< of shared memory
  const int64_t steps = words <= 8 ? 2 : 1;              ///< of products' depth whose loads are under way together
  const double headroom = storage.isF16() ? 15 : 0;      ///< weights are at most 2^this, so that those of f16 reach as far below the largest as they can

  /// Words of a row of V: `width` that follow one another for each g, from first + g * width on.
  struct Chunk {
    int64_t first, width, count;
  };
  SmallVector<Chunk> chunks;
  int64_t ownWords = 0; ///< of all chunks

  enum Fact { kTop, kInverse, kLeast, kMiddle, kFacts }; // of a query row: the largest score, 1 / sum, and the largest p that want the first tier, the second

  Shared facts;
  // Of the tile at work, swizzled: [warp][depth][operand][column][tokens t, t + 4, t + 8, t + 12], two to a word; [parity][warp][token].
  Shared weights, layers;

  /// Where results of a product are among the sums: of a word of the lane, and a pair of neighbours in it.
  static int64_t quad(int64_t word, int64_t pair) { return (word * (kWordValues / 2) + pair) * 4; }

  void planChunks();
  void prepare();
  Val fact(Val h, Fact which) { return e.load(facts, h * kFacts + which); }
  Val layersOf(Val at, Val parity, int64_t lanes = 0);
  void listTile(Val tile, Val parity);
  Vals addRows(Vals sums, const Vals &planes, Val first, const Vals &wanted);
  Vals addTile(Vals sums, Val index);
  void store(Vals sums);
  void addAside();
};

void FloatValuesKernel::prepare() {
  facts = shared("facts", e.f32(), shape.heads * kFacts);
  // Used twice: by weights of tiles, then by sums.
  weights = shared("weights", e.i32(), std::max(warps * warpWords, streams > 1 ? shape.heads * shape.valueDim : 0));
  layers = shared("layers", e.i32(), 2 * warps * kTile);
  forThreads(warps * warpWords, [&](Val i) { e.store(number(0), weights, i); }); // columns that are no query row's stay so
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Vals statistics = statisticsOf(h);
    e.when(lane == 0, [&] {
      auto set = [&](Fact which, Val what) { e.store(what, facts, h * kFacts + which); };
      set(kTop, e.largest(statistics[kMaximum], real(kLowest)));
      if (shape.exact())
        return;
      // A row lies margin - log2(p) powers of two below: compare p with powers of two instead of taking logarithms.
      Val margin = e.choose(seenTiles > 0, [&]() -> Vals { return {e.loadGlobal(ofRow(Argument::Margins, e.i32(), shape.heads), e.i32(), h, /*constant=*/false)}; },
                            [&]() -> Vals { return {number(0)}; })[0];
      auto power = [&](int64_t below) { return bitcast((margin + (127 - below)) << 23, e.f32()); };
      Val sum = statistics[kSum];
      set(kInverse, select(sum == 0, real(0), real(std::exp2(-headroom)) / sum));
      set(kLeast, power(2));
      set(kMiddle, power(1));
    });
  });
  e.barrier();
}

void FloatValuesKernel::planChunks() {
  for (int64_t first = 0; first < words; first += chunks.back().count) {
    int64_t width = words - first >= 16 ? 2 : 1;
    chunks.push_back({first, width, std::min(words - first, 8 * width)});
    ownWords += width;
  }
}

void FloatValuesKernel::listTile(Val tile, Val parity) {
  Val first = swizzled(lane * 2), own = warp * warpWords + lane / 8 * (operands * operandWords) + lane % kDepthWords;
  Vals listed{tile * kTile + first, tile * kTile + first + 4}, wanted(2, number(0));
  Vals isAside = e.choose(
      hasAsides(Argument::Value),
      [&] {
        Variable found[2] = {e.variable(number(0)), e.variable(number(0))};
        forAsides(Argument::Value, [&](Val token, Val) {
          for (int64_t j = 0; j < 2; ++j)
            found[j].set(select(token == listed[j], number(1), found[j]()));
        });
        return Vals{found[0](), found[1]()};
      },
      [&] { return Vals(2, number(0)); });
  for (int64_t i = 0; i < ownHeads; ++i) {
    Val h = clamped(firstHead() + i), scores = scoresOf(h), top = fact(h, kTop);
    Vals two;
    for (int64_t j = 0; j < 2; ++j) {
      Val score = get(scores, listed[j]), weight = e.exp2(fma(score - top, real(kLog2e), real(headroom)));
      two.push_back(select(isAside[j] != 0, real(0), weight));
      if (shape.exact())
        continue;
      Val p = max(weight * fact(h, kInverse), std::ldexp(1.0, -24));
      Val asked = wholePlanes(tierLayers(p <= fact(h, kLeast), p <= fact(h, kMiddle)), value.layers, shape.valuePlanes);
      wanted[j] = max(wanted[j], select(score == -INFINITY, number(0), asked)); // what the query row does not see, or nobody
    }
    for (auto [part, word] : llvm::enumerate(partsOf(kWeightParts, storage, two)))
      e.store(word, weights, own + (int64_t(part) * kProductColumns / (isFolded ? kWeightParts : 1) + i) * kDepthWords);
  }
  for (int64_t j = 0; j < 2; ++j) {
    if (shape.exact())
      wanted[j] = select((listed[j] < tokens) & areVisible(listed[j], listed[j], newest, sight), value.layers, number(0));
    else if (policies.isLimited(CacheRole::Value))
      wanted[j] = select(wanted[j] > 0, policies.limit(wanted[j], CacheRole::Value, value.layers, tokens, listed[j], listed[j]), number(0));
  }
  e.store(e.vectorOf(wanted), layers, (parity * warps + warp) * kTile + lane * 2);
}

/// The most that any of the tile's warps asks for.
Val FloatValuesKernel::layersOf(Val at, Val parity, int64_t lanes) {
  Val most;
  for (int64_t i = 0; i < sharers; ++i) {
    Val asked = e.load(layers, (parity * warps + stream() * sharers + i) * kTile + at, lanes);
    most = i ? max(most, asked) : asked;
  }
  return most;
}

/// Adds the tokens from `first` on of a tile, of which as many layers are read as each of the lane's tokens wants; two where that is empty.
Vals FloatValuesKernel::addRows(Vals sums, const Vals &planes, Val first, const Vals &wanted) {
  Vals right; // [step][operand]
  Val own = warp * warpWords + first * (operands * operandWords / kProductDepth) + g * kDepthWords + t * 2;
  for (int64_t operand = 0; operand < steps * operands; ++operand)
    right.push_back(e.load(weights, own + operand * operandWords, 2));
  int64_t before = 0; // words of the lane
  for (const Chunk &chunk : chunks) {
    std::vector<Vals> loaded; // [step][token]
    for (int64_t i = 0; i < steps * 4; ++i) {
      auto load = [&](const LayerPlace &place) {
        // The lane's own address, and from there numbers that are known: many addresses would be many registers.
        int64_t rowWords = place.planeLayers * words;
        Val from = e.at(e.at(planes[place.plane], e.i32(), t * rowWords + min(g * chunk.width, number(chunk.count - chunk.width))), e.i32(), first * rowWords);
        Type type = chunk.width == 1 ? e.i32() : Type(VectorType::get(chunk.width, e.i32()));
        return e.loadGlobal(from, type, number(i * 4 * rowWords + place.index * words + chunk.first));
      };
      loaded.push_back(wanted.empty() ? Vals{load(placeOf(shape.valuePlanes, 0)), load(placeOf(shape.valuePlanes, 1))} : wordsOf(wanted[i], shape.valuePlanes, load));
    }
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t word = 0; word < chunk.width; ++word) {
        std::vector<Vals> rows;
        for (int64_t i = 0; i < 4; ++i) {
          rows.push_back(loaded[step * 4 + i]);
          for (Val &layer : rows.back())
            layer = layer.lanes() ? aligned::lane(layer, word) : layer;
        }
        for (auto [pair, left] : llvm::enumerate(operandsOf(rows)))
          for (int64_t operand = 0; operand < operands; ++operand) {
            Val weight = right[step * operands + operand], *sum = &sums[quad(before + word, pair)];
            Vals added = e.multiply(storage, left, {aligned::lane(weight, 0), aligned::lane(weight, 1)}, ArrayRef<Val>(sum, 4));
            std::copy(added.begin(), added.end(), sum);
          }
      }
    before += chunk.width;
  }
  return sums;
}

Vals FloatValuesKernel::addTile(Vals sums, Val index) {
  Val tile = tileAt(index), parity = shrLogical(index, number(llvm::Log2_64(streams))) & 1; // what others may still read of the last tile stays
  listTile(tile, parity);
  meetSharers();
  e.when(isAsked(Argument::ValueBits) & (sharer() == 0), [&] {
    Val record = ofRow(Argument::ValueBits, e.i8(), wide(key.capacity) * kTile);
    for (int64_t half : {0, 1}) {
      Val within = lane + half * GpuEmitter::kWarp;
      e.storeGlobal(convert(layersOf(swizzled(within), parity) * 4, e.i8()), record, tile * kTile + within);
    }
  });
  Vals planes = planesOf(value, shape.valuePlanes, tile, shape.valueDim);
  sums = e.loop(number(0), number(kTile), steps * kProductDepth, sums, [&](Val first, Vals sums) {
    Vals wanted; // of the lane's tokens
    for (int64_t step = 0; step < steps; ++step) {
      Val four = layersOf(first + t * 4 + step * kProductDepth, parity, 4);
      for (int64_t i = 0; i < 4; ++i)
        wanted.push_back(aligned::lane(four, i));
    }
    if (shape.exact() || shape.valuePlanes.getWidths()[0] != 8)
      return addRows(sums, planes, first, wanted);
    // Most rows are read no further than their upper bytes, which is half the work.
    Val others = number(0);
    for (Val layers : wanted)
      others = others | (layers ^ number(2));
    return e.choose(e.any(others != 0), [&] { return addRows(sums, planes, first, wanted); }, [&] { return addRows(sums, planes, first, {}); });
  });
  e.warpBarrier(); // the weights have been read
  return sums;
}

/// Adds up what the block of threads' warps have. The lane has query rows 2 t and 2 t + 1.
void FloatValuesKernel::store(Vals sums) {
  const int64_t dim = shape.valueDim;
  for (Val &sum : sums) {
    if (isFolded)
      sum = sum + e.shuffleXor(sum, 2);
    sum = sum * std::exp2(-headroom);
  }
  Val partial = ofSplit(Argument::Partial, split, number(0), dim);
  auto each = [&](function_ref<void(Val h, Val channel, Val four)> body) {
    for (int64_t column : {0, 1}) {
      Val own = t * 2 + column, h = firstHead() + own;
      e.when((own < ownHeads) & (h < shape.heads), [&] {
        int64_t before = 0;
        for (const Chunk &chunk : chunks) {
          e.when(g * chunk.width < chunk.count, [&] {
            for (int64_t word = 0; word < chunk.width; ++word)
              for (int64_t half : {0, 1}) {
                Vals four;
                for (int64_t i = 0; i < 4; ++i)
                  four.push_back(sums[quad(before + word, half * 2 + i / 2) + i % 2 * 2 + column]);
                body(h, (g * chunk.width + (chunk.first + word)) * 4 + half * dim / 2, e.vectorOf(four));
              }
          });
          before += chunk.width;
        }
      });
    }
  };
  if (streams == 1)
    return each([&](Val h, Val channel, Val four) { e.storeGlobal(four, partial, h * dim + channel); });
  e.barrier(); // no warp needs its weights any more
  Shared whole{weights.base, e.f32()};
  for (int64_t s = 0; s < streams; ++s) {
    e.when(stream() == s, [&] {
      each([&](Val h, Val channel, Val four) {
        Val at = h * dim + channel;
        e.store(s ? e.load(whole, at, 4) + four : four, whole, at);
      });
    });
    e.barrier();
  }
  forThreads(shape.heads * dim, [&](Val i) { e.storeGlobal(e.load(whole, i), partial, i); });
}

void FloatValuesKernel::addAside() {
  e.when(hasAsides(Argument::Value), [&] {
    const int64_t dim = shape.valueDim;
    e.barrier(); // what the planes gave is there
    Val partial = ofSplit(Argument::Partial, split, number(0), dim);
    forAsides(Argument::Value, [&](Val token, Val values) {
      e.when(isOfSplit(token), [&] {
        forThreads(shape.heads * dim, [&](Val i) {
          Val h = i / dim;
          auto add = [&] { e.storeGlobal(fma(e.exp2((get(scoresOf(h), token) - fact(h, kTop)) * kLog2e), e.loadGlobal(values, e.f32(), i % dim), get(partial, i)), partial, i); };
          isMasked() ? e.when(isSeen(h, token), add) : add(); // what is hidden takes no part, whatever it holds
        });
      });
    });
  });
}

void FloatValuesKernel::emit() {
  planChunks();
  prepare();
  auto [first, end] = stretch();
  Vals sums = e.loop(first + stream(), end, streams, Vals(quad(ownWords, 0), real(0)), [&](Val index, Vals sums) { return addTile(sums, index); });
  store(sums);
  addAside();
  finish();
}

} // namespace

void aligned::emitFloatValues(ModuleOp program, StringRef name, const DecodeShape &shape) { FloatValuesKernel(program, name, shape).emit(); }
