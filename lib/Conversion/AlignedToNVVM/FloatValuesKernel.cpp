// The values of float planes: each row of V as far as its probability makes it visible (P1), weighed and added.
//
// A warp takes a block of 64 tokens, two for each lane, weighs them, and decides how far each is read; warps that share a block tell each other, since all of them read
// what any of their query rows asks for (P3). Then the tensor cores of floats multiply them with the weights, which come in two parts: up to four query rows and their
// second parts are columns of one product, of more rows both parts add to the same sums.
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
  const int64_t operandWords = kProductColumns * kDepthWords, warpWords = ALIGNED_BLOCK / kProductDepth * operands * operandWords; ///< of shared memory
  const int64_t steps = words <= 8 ? 2 : 1;              ///< of products' depth whose loads are under way together
  const double headroom = storage.isF16() ? 15 : 0;      ///< weights are at most 2^this, so that those of f16 reach as far below the largest as they can

  /// Words of a row of V: `width` that follow one another for each g, from first + g * width on.
  struct Chunk {
    int64_t first, width, count;
  };
  SmallVector<Chunk> chunks;
  int64_t ownWords = 0; ///< of all chunks

  enum Rule { kInverse, kLeast, kMiddle, kRule }; // of a query row: 1 / sum, and the largest p that want the first tier, the second

  Shared rule;
  // Of the block at work, swizzled: [warp][depth][operand][column][tokens t, t + 4, t + 8, t + 12], two to a word; [parity][warp][token].
  Shared weights, layers;

  /// Where results of a product are among the sums: of a word of the lane, and a pair of neighbours in it.
  static int64_t quad(int64_t word, int64_t pair) { return (word * (kWordValues / 2) + pair) * 4; }

  void planChunks();
  void prepare();
  Val layersOf(Val at, Val parity, int64_t lanes = 0);
  void listBlock(Val block, Val parity);
  Vals addRows(Vals sums, const Vals &planes, Val first, const Vals &wanted);
  Vals addBlock(Vals sums, Val index);
  void store(Vals sums);
};

void FloatValuesKernel::prepare() {
  shareStatistics();
  int64_t padded = llvm::alignTo(shape.heads, 4); // they are loaded four at a time
  rule = shared("rule", e.f32(), padded * kRule);
  // Used twice: by weights of blocks, then by sums.
  weights = shared("weights", e.i32(), std::max(warps * warpWords, streams > 1 ? shape.heads * shape.valueDim : 0));
  layers = shared("layers", e.i32(), 2 * warps * ALIGNED_BLOCK);
  forThreads(warps * warpWords, [&](Val i) { e.store(number(0), weights, i); }); // columns that are no query row's stay so
  if (shape.exact())
    return e.barrier();
  forThreads(padded, [&](Val at) {
    Val h = clamped(at);
    // A row lies margin - log2(p) powers of two below: compare p with powers of two instead of taking logarithms.
    Val margin = e.choose(seenBlocks > 0, [&]() -> Vals { return {convert(get(rowOf(Argument::Plan, shape.heads), h), e.i32())}; }, [&]() -> Vals { return {number(0)}; })[0];
    auto power = [&](int64_t below) { return bitcast((margin + (127 - below)) << 23, e.f32()); };
    e.store(real(std::exp2(-headroom)) / statistic(h, kSum), rule, at * kRule + kInverse);
    e.store(power(2), rule, at * kRule + kLeast);
    e.store(power(1), rule, at * kRule + kMiddle);
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

void FloatValuesKernel::listBlock(Val block, Val parity) {
  Val first = swizzled(lane * 2), own = warp * warpWords + shrLogical(lane, number(3)) * (operands * operandWords) + (lane & (kDepthWords - 1));
  Vals tokens{block * ALIGNED_BLOCK + first, block * ALIGNED_BLOCK + first + 4}, wanted(2, shape.exact() ? value.layers : number(0));
  for (int64_t i = 0; i < ownHeads; ++i) {
    Val h = clamped(firstHead() + i), scores = scoresOf(h), maximum = max(statistic(h, kMaximum), kLowest);
    Vals two;
    for (int64_t j = 0; j < 2; ++j) {
      two.push_back(e.exp2(fma(get(scores, tokens[j]) - maximum, real(kLog2e), real(headroom))));
      if (shape.exact())
        continue;
      auto of = [&](Rule which) { return e.load(rule, h * kRule + which); };
      Val p = max(two[j] * of(kInverse), std::ldexp(1.0, -24));
      wanted[j] = max(wanted[j], wholePlanes(tierLayers(p <= of(kLeast), p <= of(kMiddle)), value.layers, shape.valuePlanes));
    }
    for (auto [part, word] : llvm::enumerate(partsOf(kWeightParts, storage, two)))
      e.store(word, weights, own + (int64_t(part) * kProductColumns / (isFolded ? kWeightParts : 1) + i) * kDepthWords);
  }
  for (int64_t j = 0; j < 2; ++j) {
    if (policies.isLimited(CacheRole::Value))
      wanted[j] = policies.limit(wanted[j], CacheRole::Value, value.layers, key.tokens, tokens[j], tokens[j]);
    if (isMasked())
      wanted[j] = select(areVisible(tokens[j], tokens[j], key.tokens, shape), wanted[j], number(0));
  }
  e.store(e.vectorOf(wanted), layers, (parity * warps + warp) * ALIGNED_BLOCK + lane * 2);
}

/// The most that any of the block's warps asks for.
Val FloatValuesKernel::layersOf(Val at, Val parity, int64_t lanes) {
  Val most;
  for (int64_t i = 0; i < warpsPerBlock; ++i) {
    Val asked = e.load(layers, (parity * warps + stream() * warpsPerBlock + i) * ALIGNED_BLOCK + at, lanes);
    most = i ? max(most, asked) : asked;
  }
  return most;
}

/// Adds the tokens from `first` on of a block, of which as many layers are read as each of the lane's tokens wants; two where that is empty.
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

Vals FloatValuesKernel::addBlock(Vals sums, Val index) {
  Val block = blockAt(index), parity = shrLogical(index, number(llvm::Log2_64(streams))) & 1; // what others may still read of the last block stays
  listBlock(block, parity);
  meetSharers();
  e.when(isAsked(Argument::ValueLayers) & (sharer() == 0), [&] {
    Val record = rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8());
    for (int64_t half : {0, 1}) {
      Val within = lane + half * GpuEmitter::kWarp;
      e.storeGlobal(convert(layersOf(swizzled(within), parity), e.i8()), record, block * ALIGNED_BLOCK + within);
    }
  });
  Vals planes = planesOf(value, shape.valuePlanes, block, shape.valueDim);
  sums = e.loop(number(0), number(ALIGNED_BLOCK), steps * kProductDepth, sums, [&](Val first, Vals sums) {
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

/// Adds up what the block's warps have. The lane has query rows 2 t and 2 t + 1.
void FloatValuesKernel::store(Vals sums) {
  int64_t dim = shape.valueDim, rowWidth = dim + kSeen;
  for (Val &sum : sums) {
    if (isFolded)
      sum = sum + e.shuffleXor(sum, 2);
    sum = sum * std::exp2(-headroom);
  }
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * rowWidth));
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
    return each([&](Val h, Val channel, Val four) { e.storeGlobal(four, partial, (split * shape.heads + h) * rowWidth + channel); });
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
  forThreads(shape.heads * dim, [&](Val i) { e.storeGlobal(e.load(whole, i), partial, (split * shape.heads + i / dim) * rowWidth + i % dim); });
}

void FloatValuesKernel::emit() {
  planChunks();
  prepare();
  auto [first, end] = stretch();
  Vals sums = e.loop(first + stream(), end, streams, Vals(quad(ownWords, 0), real(0)), [&](Val index, Vals sums) { return addBlock(sums, index); });
  store(sums);
  e.when(isLastSplit() & (key.open > 0), [&] { addOpenValues(shared("open", e.f32(), shape.heads * ALIGNED_BLOCK)); });
  finish();
}

} // namespace

void aligned::emitFloatValues(ModuleOp program, StringRef name, const DecodeShape &shape) { FloatValuesKernel(program, name, shape).emit(); }
