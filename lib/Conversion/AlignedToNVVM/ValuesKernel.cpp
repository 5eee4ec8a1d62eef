// The values: of each row of V what its probability makes visible, weighed and added; for most rows nothing.
//
// A warp takes a block of 64 tokens, two for each lane, decides how many layers of each are read, and puts those that are read into one of two rings of its own, with
// their weights' digits: rows of at most two layers, whose lower bytes are nothing, and deeper ones. They are asked for at once, and multiplied when 64 wait in a ring:
// the oldest 32 are a product's depth. A lane's words of eight rows, of which it holds eight channels, are transposed to words of four tokens, one channel each. All
// weights have one step, so products of any rows, layers and blocks add up as integers:
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

constexpr int64_t kWaiting = 2 * kTileDepth; // rows that are on their way, and not yet multiplied, as long as more may come
constexpr int64_t kRing = 128;               // one less than those, and 64 more
constexpr int64_t kLayerBits = 3;

class ValuesKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();

private:
  const int64_t ownHeads = tilesPerWarp * kTileHeads, streams = warps / warpsPerBlock;
  const int64_t rings = residentLayers(shape.valuePlanes) > 2 ? 2 : 1;
  const NibbleRows rows{shape.valueDim};
  const int64_t sumsPerTile = rows.sums();

  Shared ring, ringDigits; // of warps: row * 8 + layers [ring][kRing]; digits of a weight [own head][ring][kRing]
  Shared factors;   // of each query row: see Factor
  enum Factor { kToPrecision, kToStep, kScale, kFactors }; ///< weight * scale in units of the precision of V, and of a step; and 1 / step of p * scale
  Vals maxima, toPrecision, toStep, weightScale; // of each own head: of its scores, and its factors

  Val ownHead(int64_t i) { return firstHead(0) + i; }

  /// What a warp carries from block to block.
  struct State {
    Vals head, pending; ///< of each ring: the oldest, and how many there are
    Vals constants;     ///< i64, of each own head: twice sum of W * (offset - dither)
    Vals unread;        ///< of each own head: weight of rows that are not read
    Vals sums;          ///< [tile of heads][chunk][word][byte][4]
    Vals all() const;
  };
  State stateOf(Vals all);

  void prepare();
  State listBlock(State state, Val block);
  State pad(State state);
  State multiplyWaiting(State state, Val least);
  Vals multiply(Vals sums, Val ringOffset, Val head, Val isDeep);
  void finishSums(State state);
};

Vals ValuesKernel::State::all() const {
  Vals all;
  for (const Vals *part : {&head, &pending, &constants, &unread, &sums})
    all.append(*part);
  return all;
}

ValuesKernel::State ValuesKernel::stateOf(Vals all) {
  State state;
  auto from = all.begin();
  for (auto [part, count] : {std::pair(&state.head, rings), std::pair(&state.pending, rings), std::pair(&state.constants, ownHeads), std::pair(&state.unread, ownHeads),
                             std::pair(&state.sums, tilesPerWarp * sumsPerTile)}) {
    part->append(from, from + count);
    from += count;
  }
  return state;
}

void ValuesKernel::prepare() {
  shareStatistics();
  ring = shared("ring", e.i32(), warps * rings * kRing);
  ringDigits = shared("digits", e.i32(), warps * ownHeads * rings * kRing);
  factors = shared("factors", e.f32(), paddedHeads * kFactors);
  forThreads(paddedHeads, [&](Val padded) {
    Val h = clamped(padded);
    Val limit = real(kWeightLimit) / loudestReach(h), inverse = real(0), scale = limit;
    if (!shape.exact()) {
      inverse = real(1) / get(rowOf(Argument::Plan, shape.heads * kPlanNumbers), h * kPlanNumbers + kPrecisionV);
      scale = min(inverse * kWeightGuard, limit);
      if (policies.isLimited(CacheRole::Value))
        scale = select(policies.wantsMoreValues(), limit, scale);
    }
    Val whole = real(1) / statistic(h, kSum);
    for (auto [which, what] : {std::pair(kToPrecision, inverse * whole), std::pair(kToStep, scale * whole), std::pair(kScale, scale)})
      e.store(what, factors, padded * kFactors + which);
  });
  e.barrier();
  for (int64_t i = 0; i < ownHeads; ++i) {
    maxima.push_back(statistic(clamped(ownHead(i)), kMaximum));
    for (auto [which, what] : {std::pair(kToPrecision, &toPrecision), std::pair(kToStep, &toStep), std::pair(kScale, &weightScale)})
      what->push_back(e.load(factors, ownHead(i) * kFactors + which));
  }
}

ValuesKernel::State ValuesKernel::listBlock(State state, Val block) {
  Val where = physical(value, block), exponents = blockOf(value.exponent, where, ALIGNED_BLOCK), top = statistic(number(0), kExponent);
  Val before = (number(1) << lane) - 1;
  for (int64_t half : {0, 1}) {
    Val within = lane + half * GpuEmitter::kWarp, token = block * ALIGNED_BLOCK + within;
    Val scale = relativeScale(zext(e.loadGlobal(exponents, e.i8(), within), e.i32()), top);
    Vals weights;
    for (int64_t i = 0; i < ownHeads; ++i)
      weights.push_back(weightOf(get(scoresOf(clamped(ownHead(i))), token), maxima[i]));
    Val layers = value.layers;
    if (!shape.exact()) {
      Val steps = real(0);
      if (warpsPerBlock == 1) {
        for (int64_t i = 0; i < ownHeads; ++i)
          steps = e.largest(weights[i] * toPrecision[i], steps);
      } else {
        steps = e.loop(number(0), number(shape.heads), 1, {steps}, [&](Val h, Vals steps) -> Vals {
          return {e.largest(weightOf(get(scoresOf(h), token), statistic(h, kMaximum)) * e.load(factors, h * kFactors + kToPrecision), steps[0])};
        })[0];
      }
      layers = wholePlanes(layersFor(steps * scale, 1), value.layers, shape.valuePlanes);
      if (policies.isLimited(CacheRole::Value))
        layers = policies.limit(layers, CacheRole::Value, value.layers, key.tokens, token, token);
    }
    if (isMasked()) // whatever a policy says of rows that no query sees
      layers = select(areVisible(token, token, key.tokens, shape), layers, number(0));
    e.when(isAsked(Argument::ValueLayers) & ((warp & (warpsPerBlock - 1)) == 0), [&] {
      e.storeGlobal(convert(layers, e.i8()), rowOf(Argument::ValueLayers, key.stride * ALIGNED_BLOCK, e.i8()), token);
    });

    Val read = layers > 0, isDeep = layers > 2, slot = number(0);
    for (int64_t r = 0; r < rings; ++r) {
      Val all = e.ballot(rings == 1 ? read : r == 0 ? read ^ isDeep : isDeep);
      Val own = ((state.head[r] + state.pending[r] + e.countBits(all & before)) & (kRing - 1)) + r * kRing;
      slot = r == 0 ? own : select(isDeep, own, slot);
      state.pending[r] = state.pending[r] + e.countBits(all);
    }
    Val turn = ((token * 2531) & 4095) - 2048, offset = (number(1) << (layers * -4 + 16)) - 65537 - turn * 2, uneven = convert(turn, e.f32()) * (1.0 / 4096);
    Vals wholes;
    for (int64_t i = 0; i < ownHeads; ++i) {
      Val reach = weights[i] * (scale * toStep[i]);
      if (!shape.exact()) // so that equal weights are not all rounded alike
        reach = reach + uneven;
      wholes.push_back(select(read & (ownHead(i) < shape.heads), e.nearest(e.smallest(reach, real(kWeightLimit))).first, number(0)));
      state.constants[i] = state.constants[i] + wide(wholes[i]) * wide(offset);
      if (!shape.exact())
        state.unread[i] = state.unread[i] + select(read, real(0), weights[i]);
    }
    e.when(read, [&] {
      Val row = where * ALIGNED_BLOCK + within;
      e.store((row << kLayerBits) | layers, ring, warp * (rings * kRing) + slot);
      for (int64_t i = 0; i < ownHeads; ++i)
        e.store(digitsOf(wholes[i]), ringDigits, (warp * ownHeads + i) * (rings * kRing) + slot);
      for (int64_t plane = 0; plane < shape.valuePlanes.getResident(); ++plane)
        e.when(layers > shape.valuePlanes.getFirstLayer(plane), [&] { e.prefetch(e.at(value.plane[plane], e.i8(), wide(row) * (shape.valuePlanes.getWidths()[plane] * shape.valueDim / 8))); });
    });
  }
  return state;
}

/// Adds the 32 rows from `head` on of the ring at `ringOffset`.
Vals ValuesKernel::multiply(Vals sums, Val ringOffset, Val head, Val isDeep) {
  Val none = number(0), oldest = ringOffset + head + t * 4;
  Vals entries, layers; // rows of the tokens 4 t .. 4 t + 3 and 16 + 4 t ..
  for (int64_t quad : {0, 1}) {
    Val four = e.load(ring, warp * (rings * kRing) + oldest + quad * 16, 4);
    for (int64_t k = 0; k < 4; ++k) {
      Val entry = aligned::lane(four, k);
      entries.push_back(shrLogical(entry, number(kLayerBits)));
      layers.push_back(entry & ((1 << kLayerBits) - 1));
    }
  }
  // One digit of four weights: that of the column's place, or for upper bytes the one below.
  auto digits = [&](int64_t i, bool upper, int64_t quad) {
    Val h = shrLogical(g, number(2)) + i * kTileHeads, digit = upper ? (place + 3) & 3 : place, both = digit | ((digit + 4) << 4);
    Val four = e.load(ringDigits, (warp * ownHeads + h) * (rings * kRing) + oldest + quad * 16, 4);
    auto pair = [&](int64_t k) { return e.permuteBytes(aligned::lane(four, k), aligned::lane(four, k + 1), both); };
    return e.permuteBytes(pair(0), pair(2), number(0x5410));
  };
  auto load = [&](int64_t layer, int64_t k, int64_t chunk) -> Vals {
    if (layer >= residentLayers(shape.valuePlanes))
      return Vals(rows.width, none);
    LayerPlace at = placeOf(shape.valuePlanes, layer);
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
  return rings == 1 ? sums : e.choose(isDeep, [&] { return add(sums, 2); }, [&] { return sums; });
}

/// Fills up what waits to whole products' depths, with rows of no weight.
ValuesKernel::State ValuesKernel::pad(State state) {
  for (int64_t r = 0; r < rings; ++r) {
    Val missing = -state.pending[r] & (kTileDepth - 1), slot = ((state.head[r] + state.pending[r] + lane) & (kRing - 1)) + r * kRing;
    e.when(lane < missing, [&] {
      e.store(number(0), ring, warp * (rings * kRing) + slot);
      for (int64_t i = 0; i < ownHeads; ++i)
        e.store(number(0), ringDigits, (warp * ownHeads + i) * (rings * kRing) + slot);
    });
    state.pending[r] = state.pending[r] + missing;
  }
  return state;
}

/// Multiplies while a ring has `least` rows.
ValuesKernel::State ValuesKernel::multiplyWaiting(State state, Val least) {
  Vals carried = state.head;
  carried.append(state.pending);
  carried.append(state.sums);
  auto pending = [&](const Vals &s, int64_t r) { return s[rings + r]; };
  carried = e.repeat(carried,
                     [&](Vals s) {
                       Val most = pending(s, 0);
                       for (int64_t r = 1; r < rings; ++r)
                         most = max(most, pending(s, r));
                       return most >= least;
                     },
                     [&](Vals s) {
                       Val isDeep = pending(s, 0) < least, head = s[0]; // one ring is always enough
                       if (rings > 1)
                         head = select(isDeep, s[1], head);
                       Vals added = multiply(Vals(llvm::drop_begin(s, 2 * rings)), select(isDeep, number(kRing), number(0)), head, isDeep), next;
                       for (int64_t r = 0; r < rings; ++r)
                         next.push_back(select(isDeep == (r == 1), (s[r] + kTileDepth) & (kRing - 1), s[r]));
                       for (int64_t r = 0; r < rings; ++r)
                         next.push_back(select(isDeep == (r == 1), pending(s, r) - kTileDepth, pending(s, r)));
                       next.append(added);
                       return next;
                     });
  state.head = Vals(ArrayRef<Val>(carried).take_front(rings));
  state.pending = Vals(ArrayRef<Val>(carried).slice(rings, rings));
  state.sums = Vals(llvm::drop_begin(carried, 2 * rings));
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
  State state{Vals(rings, number(0)), Vals(rings, number(0)), Vals(ownHeads, e.constant(e.i64(), 0)), Vals(ownHeads, real(0)), Vals(tilesPerWarp * sumsPerTile, number(0))};
  auto [first, end] = stretch();
  Val begin = first + shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))), last = end;
  // The warp's blocks, and one round more for what waits then, with rows of no weight behind it.
  Val rounds = (max(last - begin, number(0)) + (streams - 1)) / streams;
  state = stateOf(e.loop(number(0), rounds + 1, 1, state.all(), [&](Val round, Vals all) {
    State state = stateOf(e.choose(round < rounds, [&] { return listBlock(stateOf(all), blockAt(begin + round * streams)).all(); }, [&] { return pad(stateOf(all)).all(); }));
    e.warpBarrier(); // the ring is written
    state = multiplyWaiting(state, select(round < rounds, number(kWaiting), number(kTileDepth)));
    e.warpBarrier(); // and read
    return state.all();
  }));
  finishSums(state);
  e.when(isLastSplit() & (key.open > 0), [&] {
    if (streams == 1) // else all warps have met
      e.barrier();    // they are through with their rings, whose room is taken
    addOpenValues({ringDigits.base, e.f32()});
  });
  finish();
}

} // namespace

void aligned::emitValues(ModuleOp program, StringRef name, const DecodeShape &shape) { ValuesKernel(program, name, shape).emit(); }
