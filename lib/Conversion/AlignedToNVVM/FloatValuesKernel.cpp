// The values of float planes: each row of V as far as its probability makes it visible (P1), weighed and added.
//
// A warp takes a block of 64 tokens, two for each lane, weighs them, and decides how far each is read; warps that share a block tell each other, since all of them read
// what any of their query rows asks for (P3). Then lanes share rows, a word each.
#include "FloatKernel.h"

using namespace mlir;
using namespace aligned;

namespace {

class FloatValuesKernel : public FloatKernel {
public:
  using FloatKernel::FloatKernel;
  void emit();

private:
  const int64_t steps = ownHeads <= 4 ? std::min<int64_t>(8, ALIGNED_BLOCK / rowsAtOnce) : 4; ///< of rows whose loads are under way together

  enum Rule { kInverse, kLeast, kMiddle, kRule }; // of a query row: 1 / sum, and the largest p that want the first tier, the second

  Shared statistics, rule;
  Shared weights, layers; // of the block at work: [warp][token][own head]; [parity][warp][token]

  void prepare();
  Val layersOf(Val at, Val parity);
  void listBlock(Val block, Val parity);
  Vals addBlock(Vals sums, Val index);
  void store(Vals sums);
};

void FloatValuesKernel::prepare() {
  statistics = statisticsOfRow();
  int64_t padded = llvm::alignTo(shape.heads, 4); // they are loaded four at a time
  rule = shared("rule", e.f32(), padded * kRule);
  // Used twice: by weights of blocks, then by sums.
  weights = shared("weights", e.f32(), std::max(warps * ALIGNED_BLOCK * headRoom, streams > 1 ? shape.heads * shape.valueDim : 0));
  layers = shared("layers", e.i32(), 2 * warps * ALIGNED_BLOCK);
  if (shape.exact())
    return;
  forThreads(padded, [&](Val at) {
    Val h = clamped(at);
    // A row lies margin - log2(p) powers of two below: compare p with powers of two instead of taking logarithms.
    Val margin = e.choose(seenBlocks > 0, [&]() -> Vals { return {convert(get(rowOf(Argument::Plan, shape.heads), h), e.i32())}; }, [&]() -> Vals { return {number(0)}; })[0];
    auto power = [&](int64_t below) { return bitcast((margin + (127 - below)) << 23, e.f32()); };
    e.store(real(1) / e.load(statistics, h * kStatistics + kSum), rule, at * kRule + kInverse);
    e.store(power(2), rule, at * kRule + kLeast);
    e.store(power(1), rule, at * kRule + kMiddle);
  });
  e.barrier();
}

void FloatValuesKernel::listBlock(Val block, Val parity) {
  for (int64_t half : {0, 1}) {
    Val within = lane + half * GpuEmitter::kWarp, token = block * ALIGNED_BLOCK + within, wanted = shape.exact() ? value.layers : number(0);
    Vals own;
    for (int64_t i = 0; i < ownHeads; ++i) {
      Val h = clamped(firstHead() + i), weight = weightOf(get(scoresOf(h), token), e.load(statistics, h * kStatistics + kMaximum));
      own.push_back(weight);
      if (shape.exact())
        continue;
      auto of = [&](Rule which) { return e.load(rule, h * kRule + which); };
      Val p = max(weight * of(kInverse), std::ldexp(1.0, -24));
      wanted = max(wanted, wholePlanes(tierLayers(p <= of(kLeast), p <= of(kMiddle)), value.layers, shape.valueSplit));
    }
    if (policies.isLimited(CacheRole::Value))
      wanted = policies.limit(wanted, CacheRole::Value, value.layers, key.tokens, token, token);
    if (isMasked())
      wanted = select(areVisible(token, token, key.tokens, shape), wanted, number(0));
    e.store(wanted, layers, (parity * warps + warp) * ALIGNED_BLOCK + within);
    own.resize(headRoom, real(0));
    for (int64_t i = 0; i < headRoom; i += headVector)
      e.store(headVector == 1 ? own[i] : e.vectorOf(ArrayRef<Val>(own).slice(i, headVector)), weights, (warp * ALIGNED_BLOCK + within) * headRoom + i);
  }
}

/// The most that any of the block's warps asks for.
Val FloatValuesKernel::layersOf(Val within, Val parity) {
  Val most = number(0);
  for (int64_t i = 0; i < warpsPerBlock; ++i)
    most = max(most, e.load(layers, (parity * warps + stream() * warpsPerBlock + i) * ALIGNED_BLOCK + within));
  return most;
}

Vals FloatValuesKernel::addBlock(Vals sums, Val index) {
  Val block = blockAt(index), parity = shrLogical(index, number(llvm::Log2_64(streams))) & 1; // what others may still read of the last block stays
  listBlock(block, parity);
  meetSharers();
  e.when(isAsked(Argument::ValueLayers) & (sharer() == 0), [&] {
    Val record = rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8());
    for (int64_t half : {0, 1}) {
      Val within = lane + half * GpuEmitter::kWarp;
      e.storeGlobal(convert(layersOf(within, parity), e.i8()), record, block * ALIGNED_BLOCK + within);
    }
  });
  Vals planes = planesOf(value, shape.valueSplit, block, shape.valueDim);
  sums = e.loop(number(0), number(ALIGNED_BLOCK), steps * rowsAtOnce, sums, [&](Val first, Vals sums) {
    std::vector<Vals> words;
    auto row = [&](int64_t step) { return first + rowOfLane() + step * rowsAtOnce; };
    for (int64_t step = 0; step < steps; ++step)
      words.push_back(rowWords(layersOf(row(step), parity), planes, row(step)));
    for (int64_t step = 0; step < steps; ++step)
      add(sums, ownWeights(weights, (warp * ALIGNED_BLOCK + row(step)) * headRoom), valuesOf(words[step], shape.value));
    return sums;
  });
  e.warpBarrier(); // the weights have been read
  return sums;
}

/// Adds up what the warp's lanes and the block's warps have.
void FloatValuesKernel::store(Vals sums) {
  int64_t dim = shape.valueDim, rowWidth = dim + kSeen;
  for (Val &sum : sums)
    for (int64_t distance = lanesPerRow; distance < GpuEmitter::kWarp; distance *= 2)
      sum = sum + e.shuffleXor(sum, distance);
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * rowWidth));
  auto each = [&](function_ref<void(Val h, Val channel, Val four)> body) {
    e.when((rowOfLane() == 0) & isWord(), [&] {
      for (int64_t i = 0; i < ownHeads; ++i) {
        Val h = firstHead() + i;
        e.when(h < shape.heads, [&] {
          for (int64_t half : {0, 1})
            body(h, word() * 4 + half * dim / 2, e.vectorOf(ArrayRef<Val>(sums).slice(i * kWordValues + half * 4, 4)));
        });
      }
    });
  };
  if (streams == 1)
    return each([&](Val h, Val channel, Val four) { e.storeGlobal(four, partial, (split * shape.heads + h) * rowWidth + channel); });
  e.barrier(); // no warp needs its weights any more
  for (int64_t s = 0; s < streams; ++s) {
    e.when(stream() == s, [&] {
      each([&](Val h, Val channel, Val four) {
        Val at = h * dim + channel;
        e.store(s ? e.load(weights, at, 4) + four : four, weights, at);
      });
    });
    e.barrier();
  }
  forThreads(shape.heads * dim, [&](Val i) { e.storeGlobal(e.load(weights, i), partial, (split * shape.heads + i / dim) * rowWidth + i % dim); });
}

void FloatValuesKernel::emit() {
  prepare();
  auto [first, end] = stretch();
  Vals sums = e.loop(first + stream(), end, streams, Vals(ownHeads * kWordValues, real(0)), [&](Val index, Vals sums) { return addBlock(sums, index); });
  store(sums);
  e.when(isLastSplit() & (key.open > 0), [&] { addOpenValues(statistics); });
  finish();
}

} // namespace

void aligned::emitFloatValues(ModuleOp program, StringRef name, const DecodeShape &shape) { FloatValuesKernel(program, name, shape).emit(); }
