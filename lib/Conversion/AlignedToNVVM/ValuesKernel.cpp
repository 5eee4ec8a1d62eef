// The values: of each row of V what its probability makes visible, weighed and added; for most rows nothing.
//
// A warp takes a block of 64 tokens, two for each lane, decides how many layers of each are read, and puts those that are read into a ring of its own, with their
// weights' digits. As soon as 32 are there, they are a product's depth: a lane's words of eight rows, of which it holds eight channels, are transposed to words of
// four tokens, one channel each. All weights have one step, so products of any rows, layers and blocks add up as integers:
//
//   out = unit / step * (sum of W * top bits + sum of W * (offset(layers) - dither(token)))      W = round(p * scale / step)
//
// in 64 bits at the end, where the two sums nearly cancel. A sum of 32 bits holds 32768 tokens of a warp, 2048 blocks of a split.
#include "DecodeKernel.h"
#include "NibbleRows.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kRing = 128; // at most 31 that wait, and 64 more
constexpr int64_t kLayerBits = 3;

class ValuesKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();

private:
  const int64_t ownHeads = tilesPerWarp * kTileHeads, streams = warps / warpsPerBlock;
  const NibbleRows rows{shape.valueDim};
  const int64_t sumsPerTile = rows.sums();

  Shared statistics, ring, ringDigits; // tokens: row * 8 + layers; bytes [own head][digit][kRing]
  Vals weightScale; // 1 / step, of each own head
  Shared factors;   // of each query row: see Factor
  enum Factor { kToPrecision, kToWeight, kScale, kFactors }; ///< weight * scale in units of the precision of V, and of a step; and 1 / step of p * scale

  Val statistic(Val h, Statistic which) { return e.load(statistics, h * kStatistics + which); }
  Val ownHead(int64_t i) { return firstHead(0) + i; }
  Val clamped(Val h) { return min(h, number(shape.heads - 1)); }

  /// What a warp carries from block to block.
  struct State {
    Val head, pending;  ///< of the ring: the oldest, and how many there are
    Vals constants;     ///< i64, of each own head: twice sum of W * (offset - dither)
    Vals unread;        ///< of each own head: weight of rows that are not read
    Vals sums;          ///< [tile of heads][chunk][word][byte][4]
    Vals all() const;
  };
  State stateOf(Vals all);

  void prepare();
  State listBlock(State state, Val block);
  State pad(State state);
  State multiplyWaiting(State state);
  Vals multiply(Vals sums, Val head);
  void finishSums(State state);
};

Vals ValuesKernel::State::all() const {
  Vals all{head, pending};
  for (const Vals *part : {&constants, &unread, &sums})
    all.append(*part);
  return all;
}

ValuesKernel::State ValuesKernel::stateOf(Vals all) {
  State state{all[0], all[1], {}, {}, {}};
  auto from = all.begin() + 2;
  for (auto [part, count] : {std::pair(&state.constants, ownHeads), std::pair(&state.unread, ownHeads), std::pair(&state.sums, tilesPerWarp * sumsPerTile)}) {
    part->append(from, from + count);
    from += count;
  }
  return state;
}

void ValuesKernel::prepare() {
  statistics = statisticsOfRow();
  ring = shared("ring", e.i32(), warps * kRing);
  ringDigits = shared("digits", e.i8(), warps * ownHeads * kPlaces * kRing);
  factors = shared("factors", e.f32(), paddedHeads * kFactors);
  // The last digit of all weights is none, and so are all of rows that pad the ring.
  Shared asWords{ringDigits.base, e.i32()};
  forThreads(warps * ownHeads * kPlaces * kRing / 4, [&](Val i) { e.store(number(0), asWords, i); });
  forThreads(warps * kRing, [&](Val i) { e.store(number(0), ring, i); });
  forThreads(paddedHeads, [&](Val padded) {
    Val h = clamped(padded);
    Val limit = real(kWeightLimit) / loudestReach(statistics, h), inverse = real(0), scale = limit;
    if (!shape.exact()) {
      inverse = real(1) / get(rowOf(Argument::Plan, shape.heads * kPlanNumbers), h * kPlanNumbers + kPrecisionV);
      scale = min(inverse * kWeightGuard, limit);
      if (policies.isLimited(CacheRole::Value))
        scale = select(policies.wantsMoreValues(), limit, scale);
    }
    Val whole = real(1) / statistic(h, kSum);
    for (auto [which, what] : {std::pair(kToPrecision, inverse * whole), std::pair(kToWeight, scale * whole), std::pair(kScale, scale)})
      e.store(what, factors, padded * kFactors + which);
  });
  e.barrier();
  for (int64_t i = 0; i < ownHeads; ++i)
    weightScale.push_back(e.load(factors, ownHead(i) * kFactors + kScale));
}

ValuesKernel::State ValuesKernel::listBlock(State state, Val block) {
  Val where = physical(value, block), exponents = blockOf(value.exponent, where, ALIGNED_BLOCK), top = statistic(number(0), kExponent);
  Val before = (number(1) << lane) - 1;
  for (int64_t half : {0, 1}) {
    Val within = lane + half * GpuEmitter::kWarp, token = block * ALIGNED_BLOCK + within;
    Val scale = relativeScale(zext(e.loadGlobal(exponents, e.i8(), within), e.i32()), top);
    auto weightOfHead = [&](Val h) { return weightOf(get(scoresOf(h), token), statistic(h, kMaximum)); };
    Vals weights;
    for (int64_t i = 0; i < ownHeads; ++i)
      weights.push_back(weightOfHead(clamped(ownHead(i))));
    Val layers = value.layers;
    if (!shape.exact()) {
      Val steps = real(0);
      auto stepsOf = [&](Val h, Val weight) { return weight * scale * e.load(factors, h * kFactors + kToPrecision); };
      if (warpsPerBlock == 1) {
        for (int64_t i = 0; i < ownHeads; ++i)
          steps = e.largest(stepsOf(clamped(ownHead(i)), weights[i]), steps);
      } else {
        steps = e.loop(number(0), number(shape.heads), 1, {steps}, [&](Val h, Vals steps) -> Vals { return {e.largest(stepsOf(h, weightOfHead(h)), steps[0])}; })[0];
      }
      layers = wholePlanes(layersFor(steps, 1), value.layers, shape.valueSplit);
      if (policies.isLimited(CacheRole::Value))
        layers = policies.limit(layers, CacheRole::Value, value.layers, key.tokens, token, token);
    }
    if (isMasked()) // whatever a policy says of rows that no query sees
      layers = select(areVisible(token, token, key.tokens, shape), layers, number(0));
    e.when(isAsked(Argument::ValueLayers) & ((warp & (warpsPerBlock - 1)) == 0), [&] {
      e.storeGlobal(convert(layers, e.i8()), rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8()), token);
    });

    Val read = layers > 0, all = e.ballot(read), slot = (state.head + state.pending + e.countBits(all & before)) & (kRing - 1);
    Val turn = ((token * 2531) & 4095) - 2048, offset = (number(1) << (layers * -4 + 16)) - 65537 - turn * 2;
    e.when(read, [&] { e.store(((where * ALIGNED_BLOCK + within) << kLayerBits) | layers, ring, warp * kRing + slot); });
    for (int64_t i = 0; i < ownHeads; ++i) {
      Val reach = weights[i] * scale * e.load(factors, ownHead(i) * kFactors + kToWeight);
      if (!shape.exact()) // so that equal weights are not all rounded alike
        reach = fma(convert(turn, e.f32()), real(1.0 / 4096), reach);
      Val whole = select(read & (ownHead(i) < shape.heads), toWeight(reach), number(0));
      state.constants[i] = state.constants[i] + wide(whole) * wide(offset);
      if (!shape.exact())
        state.unread[i] = state.unread[i] + select(read, real(0), weights[i]);
      Val digits = digitsOf(whole);
      e.when(read, [&] {
        for (int64_t d = 0; d < kDigits; ++d)
          e.store(convert(shrLogical(digits, number(8 * d)), e.i8()), ringDigits, ((warp * ownHeads + i) * kPlaces + d) * kRing + slot);
      });
    }
    state.pending = state.pending + e.countBits(all);
  }
  return state;
}

/// Adds the 32 rows from `head` on.
Vals ValuesKernel::multiply(Vals sums, Val head) {
  Val none = number(0);
  Vals entries, layers; // rows of the tokens 4 t .. 4 t + 3 and 16 + 4 t ..
  for (int64_t quad : {0, 1}) {
    Val four = e.load(ring, warp * kRing + head + t * 4 + quad * 16, 4);
    for (int64_t k = 0; k < 4; ++k) {
      Val entry = aligned::lane(four, k);
      entries.push_back(shrLogical(entry, number(kLayerBits)));
      layers.push_back(entry & ((1 << kLayerBits) - 1));
    }
  }
  Val most = none;
  for (Val count : layers)
    most = max(most, count);
  most = e.warpMax(most, {1, 2});
  auto digits = [&](int64_t i, bool upper, int64_t quad) {
    Shared words{ringDigits.base, e.i32()};
    Val digit = upper ? (place + 3) & 3 : place, h = shrLogical(g, number(2)) + i * kTileHeads;
    return e.load(words, shrLogical(((warp * ownHeads + h) * kPlaces + digit) * kRing + head + t * 4 + quad * 16, number(2)));
  };
  auto load = [&](int64_t layer, int64_t k, int64_t chunk) -> Vals {
    if (layer >= residentLayers(shape.valueSplit))
      return Vals(rows.width, none);
    LayerPlace at = placeOf(shape.valueSplit, layer);
    return rows.load(e, value.plane[at.plane], entries[k], at, g, chunk, layers[k] > layer);
  };
  auto add = [&](Vals sums, int64_t upper) {
    Vals digitsOfTiles;
    for (int64_t i = 0; i < tilesPerWarp; ++i)
      for (int64_t quad : {0, 1})
        digitsOfTiles.push_back(digits(i, upper == 0, quad));
    for (int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
      std::vector<Vals> first, second;
      for (int64_t k = 0; k < 8; ++k) {
        first.push_back(load(upper, k, chunk));
        second.push_back(load(upper + 1, k, chunk));
      }
      for (int64_t v = 0; v < rows.width; ++v) {
        Vals a[4]; // by byte
        for (int64_t quad : {0, 1}) {
          Vals one = rows.transpose(e, first, 4 * quad, v), two = rows.transpose(e, second, 4 * quad, v);
          for (int64_t byte = 0; byte < 4; ++byte) {
            auto [low, high] = bytesOf(one[byte], two[byte]);
            a[byte].append({low, high});
          }
        }
        for (int64_t byte = 0; byte < 4; ++byte)
          for (int64_t i = 0; i < tilesPerWarp; ++i) {
            Val *c = &sums[i * sumsPerTile + ((chunk * rows.width + v) * 4 + byte) * 4];
            Vals product = e.multiply(a[byte], {digitsOfTiles[2 * i], digitsOfTiles[2 * i + 1]}, {c[0], c[1], c[2], c[3]});
            std::copy(product.begin(), product.end(), c);
          }
      }
    }
    return sums;
  };
  sums = add(sums, 0);
  if (residentLayers(shape.valueSplit) > 2)
    sums = e.choose(most > 2, [&] { return add(sums, 2); }, [&] { return sums; });
  return sums;
}

/// Fills up what waits to a product's depth.
ValuesKernel::State ValuesKernel::pad(State state) {
  Val slot = (state.head + lane) & (kRing - 1);
  e.when(lane >= state.pending, [&] {
    e.store(number(0), ring, warp * kRing + slot);
    for (int64_t i = 0; i < ownHeads; ++i)
      for (int64_t d = 0; d < kDigits; ++d)
        e.store(e.constant(e.i8(), 0), ringDigits, ((warp * ownHeads + i) * kPlaces + d) * kRing + slot);
  });
  state.pending = select(state.pending > 0, number(kTileDepth), number(0));
  return state;
}

ValuesKernel::State ValuesKernel::multiplyWaiting(State state) {
  Vals carried{state.head, state.pending};
  carried.append(state.sums);
  carried = e.repeat(carried, [&](Vals s) { return s[1] >= kTileDepth; },
                     [&](Vals s) {
                       Vals next{(s[0] + kTileDepth) & (kRing - 1), s[1] - kTileDepth};
                       next.append(multiply(Vals(llvm::drop_begin(s, 2)), s[0]));
                       return next;
                     });
  state.head = carried[0];
  state.pending = carried[1];
  state.sums = Vals(llvm::drop_begin(carried, 2));
  return state;
}

void ValuesKernel::finishSums(State state) {
  int64_t dim = shape.valueDim, rowWidth = dim + kSeen;
  Val unit = unitScale(convert(statistic(number(0), kExponent), e.i32())), partial = rowOf(Argument::Partial, splits * (shape.heads * rowWidth));
  Shared meeting{};
  if (streams > 1)
    meeting = shared("meeting", e.f32(), streams * paddedHeads * rowWidth);
  Val stream = shrLogical(warp, number(llvm::Log2_64(warpsPerBlock)));
  auto put = [&](Val head, Val at, Val sum) {
    if (streams > 1)
      e.store(sum, meeting, (stream * paddedHeads + head) * rowWidth + at);
    else
      e.when(head < shape.heads, [&] { e.storeGlobal(sum, partial, (split * shape.heads + head) * rowWidth + at); });
  };
  Val odd = (t & 1) == 1;
  for (int64_t i = 0; i < tilesPerWarp; ++i) {
    Val second = shrLogical(t, number(1)) == 1, head = firstHead(i) + shrLogical(t, number(1));
    Val constants[kTileHeads];
    for (int64_t h = 0; h < kTileHeads; ++h)
      constants[h] = e.warpAddWide(state.constants[i * kTileHeads + h]);
    Val constant = select(second, constants[1], constants[0]);
    Val factor = unit * statistic(clamped(head), kSum) / select(second, weightScale[i * kTileHeads + 1], weightScale[i * kTileHeads]) * 0.5;
    for (int64_t chunk = 0; chunk < rows.chunks; ++chunk)
      for (int64_t v = 0; v < rows.width; ++v)
        for (int64_t byte = 0; byte < 4; ++byte) {
          Val *c = &state.sums[i * sumsPerTile + ((chunk * rows.width + v) * 4 + byte) * 4];
          auto columns = [&](Val first, Val second) {
            Val sum = wide(first) + (wide(second) << 8);
            return select(odd, sum << 16, sum);
          };
          Val low = columns(c[0], c[1]), high = columns(c[2], c[3]);
          // Lanes with odd t take the row's later half, and give away the other.
          Val whole = select(odd, high, low) + e.shuffleXorWide(select(odd, low, high), 1);
          Val word = (g + 8 * chunk) * rows.width + v, sum = convert((whole << 1) + constant, e.f32()) * factor;
          e.when(word < rows.words, [&] { put(head, word * 4 + byte + select(odd, number(dim / 2), number(0)), sum); });
        }
  }
  for (int64_t i = 0; i < ownHeads; ++i) {
    Val unread = warpAdd(state.unread[i]);
    e.when(lane == 0, [&] { put(ownHead(i), number(dim), unread); });
  }
  if (streams == 1)
    return;
  e.barrier();
  forThreads(shape.heads * (dim + 1), [&](Val i) {
    Val head = i / (dim + 1), at = i % (dim + 1), sum = real(0);
    for (int64_t s = 0; s < streams; ++s)
      sum = sum + e.load(meeting, (head + s * paddedHeads) * rowWidth + at);
    e.storeGlobal(sum, partial, (split * shape.heads + head) * rowWidth + at);
  });
}

void ValuesKernel::emit() {
  prepare();
  State state{number(0), number(0), Vals(ownHeads, e.constant(e.i64(), 0)), Vals(ownHeads, real(0)), Vals(tilesPerWarp * sumsPerTile, number(0))};
  auto [first, end] = stretch();
  Val begin = first + shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))), last = end;
  // The warp's blocks, and one round more for what waits then, with rows of no weight behind it.
  Val rounds = (max(last - begin, number(0)) + (streams - 1)) / streams;
  state = stateOf(e.loop(number(0), rounds + 1, 1, state.all(), [&](Val round, Vals all) {
    State state = stateOf(e.choose(round < rounds, [&] { return listBlock(stateOf(all), blockAt(begin + round * streams)).all(); }, [&] { return pad(stateOf(all)).all(); }));
    e.warpBarrier(); // the ring is written
    state = multiplyWaiting(state);
    e.warpBarrier(); // and read
    return state.all();
  }));
  finishSums(state);
  e.when(isLastSplit() & (key.open > 0), [&] { addOpenValues(statistics); });
  finish();
}

} // namespace

void aligned::emitValues(ModuleOp program, StringRef name, const DecodeShape &shape) { ValuesKernel(program, name, shape).emit(); }
