// The look: from the top bits of the loudest rows of V and the open block, what the output will be like (P2).
//
// A warp takes the blocks that hold tokens within a factor of 16 of the loudest. Its halves take a query row each and a lane four tokens: which of them are that loud.
// These go into a ring, and as soon as 32 are there, a lane weighs each, and their top nibbles are multiplied as in ValuesKernel.cpp, by one signed byte each: how
// large the output is need not be known more closely. Their squares are integer dot products; there the dither stays in, which makes a nibble's square larger by 1/12
// on average.
#include "DecodeKernel.h"
#include "NibbleRows.h"

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kHeadsAtOnce = kTileColumns;
constexpr int64_t kRing = 128;     // at most 31 that wait, and 64 more
constexpr double kLoudOctaves = 4; // rows within a factor of 16 of the loudest are read
constexpr double kDigitLimit = 127;

class LookKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();

private:
  /// Of a query row: 1 / sum, and the loudest p * scale in units of the loudest row's scale.
  enum Factor { kInverse, kReach, kFactors };
  // As many query rows at once as shared memory has room for, beside what does not depend on it.
  const int64_t room = kSharedBytes - shape.heads * (kStatistics + kFactors) * 4 - warps * (kRing * 8 + kTileDepth * kTileColumns);
  const int64_t headsAtOnce = std::clamp<int64_t>(room / (warps * (kTileDepth + shape.valueDim + kSeen) * 4), 1, kHeadsAtOnce);
  const int64_t headGroups = llvm::divideCeil(shape.heads, headsAtOnce), groupHeads = llvm::divideCeil(shape.heads, headGroups);
  const NibbleRows rows{shape.valueDim};

  Shared factors, meeting;
  Shared ring, tokens, weights, digits; // of warps: rows of V, and their tokens; of 32 rows p * scale^2, f32 [head][32], and p * scale, bytes [column][32]

  /// What a warp carries from block to block, for each query row of the group but for `sums`, which are [chunk][word][byte][4].
  struct State {
    Val head, pending;
    Vals constants, squares, mass, scales;
    Vals sums;
    Vals all() const;
  };
  State stateOf(Vals all);

  Val factor(Val h, Factor which) { return e.load(factors, h * kFactors + which); }
  Val top() { return statistic(number(0), kExponent); }
  void prepareFactors();
  Val isLoud(Val block, Val firstHead);
  Val loudTokens(Val block, Val firstHead);
  State listBlock(State state, Val block, Val loud);
  State weigh(State state, Val firstHead);
  Vals multiply(const State &state);
  void store(State state, Val firstHead);
  void addOpen(Val firstHead);
};

Vals LookKernel::State::all() const {
  Vals all{head, pending};
  for (const Vals *part : {&constants, &squares, &mass, &scales, &sums})
    all.append(*part);
  return all;
}

LookKernel::State LookKernel::stateOf(Vals all) {
  State state{all[0], all[1], {}, {}, {}, {}, {}};
  auto from = all.begin() + 2;
  for (auto [part, count] : {std::pair(&state.constants, groupHeads), std::pair(&state.squares, groupHeads), std::pair(&state.mass, groupHeads),
                             std::pair(&state.scales, groupHeads), std::pair(&state.sums, rows.sums())}) {
    part->append(from, from + count);
    from += count;
  }
  return state;
}

void LookKernel::prepareFactors() {
  factors = shared("factors", e.f32(), shape.heads * kFactors);
  forThreads(shape.heads, [&](Val h) {
    e.store(real(1) / statistic(h, kSum), factors, h * kFactors + kInverse);
    e.store(loudestReach(h), factors, h * kFactors + kReach);
  });
}

/// Whether a block has a loud token for any query row of the group.
Val LookKernel::isLoud(Val block, Val firstHead) {
  Val least = e.loop(number(0), number(groupHeads), 1, {real(INFINITY)}, [&](Val i, Vals least) -> Vals {
    Val h = clamped(firstHead + i);
    return {e.smallest(statistic(h, kLoudest) - get(blockNumbersOf(h), block * kBlockNumbers + kBlockLoudest), least[0])};
  })[0];
  return least <= kLoudOctaves;
}

/// Which of the lane's four tokens are loud.
Val LookKernel::loudTokens(Val block, Val firstHead) {
  constexpr int64_t kLaneTokens = 4;
  Val half = shrLogical(lane, number(4)), quad = lane & 15;
  Val bytes = e.loadGlobal(blockOf(value.exponent, physical(value, block), ALIGNED_BLOCK), e.i32(), quad);
  Vals octaves;
  for (int64_t j = 0; j < kLaneTokens; ++j)
    octaves.push_back(convert(shrLogical(bytes, number(8 * j)) & 255, e.f32()));
  Val loud = e.loop(number(0), number(groupHeads), 2, {number(0)}, [&](Val pair, Vals loud) -> Vals {
    Val h = clamped(firstHead + min(pair + half, number(groupHeads - 1))), least = statistic(h, kLoudest) - kLoudOctaves, bits = loud[0];
    Val four = e.loadGlobal(scoresOf(h), VectorType::get(kLaneTokens, e.f32()), block * ALIGNED_BLOCK + quad * kLaneTokens, /*constant=*/false);
    for (int64_t j = 0; j < kLaneTokens; ++j)
      bits = bits | select(fma(aligned::lane(four, j), real(kLog2e), octaves[j]) >= least, number(1 << j), number(0));
    return {bits};
  })[0];
  return loud | e.shuffleXor(loud, 16);
}

/// Puts the loud tokens behind what waits in the ring, in the order of bits, which is not that of tokens.
LookKernel::State LookKernel::listBlock(State state, Val block, Val loud) {
  constexpr int64_t kLaneTokens = 4;
  Val row = physical(value, block) * ALIGNED_BLOCK, token = block * ALIGNED_BLOCK, first = (lane & 15) * kLaneTokens, before = (number(1) << lane) - 1;
  for (int64_t j = 0; j < kLaneTokens; ++j) {
    Val mine = ((loud & (1 << j)) != 0) & (lane < 16), all = e.ballot(mine);
    Val slot = ((state.head + state.pending + e.countBits(all & before)) & (kRing - 1)) + warp * kRing;
    e.when(mine, [&] {
      e.store(row + first + j, ring, slot);
      e.store(token + first + j, tokens, slot);
    });
    state.pending = state.pending + e.countBits(all);
  }
  return state;
}

/// A lane weighs one of the 32 rows from the oldest on; those behind what waits have no weight.
LookKernel::State LookKernel::weigh(State state, Val firstHead) {
  Val there = lane < state.pending, slot = warp * kRing + state.head + lane, token = e.load(tokens, slot);
  Val scale = relativeScale(zext(e.loadGlobal(value.exponent, e.i8(), wide(e.load(ring, slot))), e.i32()), top()), turn = dither(token);
  for (int64_t i = 0; i < groupHeads; ++i) {
    Val h = clamped(firstHead + i), p = select(there, weightOf(get(scoresOf(h), token), statistic(h, kMaximum)) * factor(h, kInverse), real(0)), reach = p * scale;
    Val digit = roundEven(e.smallest(reach * (real(kDigitLimit) / factor(h, kReach)), real(kDigitLimit)));
    state.constants[i] = fma(digit, real(0.5 * 4096 - 0.5 - 32768) - turn, state.constants[i]);
    state.mass[i] = state.mass[i] + p;
    state.scales[i] = fma(reach, scale, state.scales[i]);
    e.store(reach * scale, weights, (warp * groupHeads + i) * kTileDepth + lane);
    e.store(convert(convert(digit, e.i32()), e.i8()), digits, (warp * kTileColumns + i) * kTileDepth + lane);
  }
  return state;
}

/// Adds the 32 rows from the oldest on: sums and squares.
Vals LookKernel::multiply(const State &state) {
  Vals squares = state.squares, sums = state.sums, entries;
  for (int64_t quad : {0, 1}) {
    Val four = e.load(ring, warp * kRing + state.head + t * 4 + quad * 16, 4);
    for (int64_t k = 0; k < 4; ++k)
      entries.push_back(aligned::lane(four, k));
  }
  Shared words{digits.base, e.i32()};
  Vals b;
  for (int64_t quad : {0, 1})
    b.push_back(e.load(words, (warp * kTileColumns + g) * (kTileDepth / 4) + t + quad * 4));
  LayerPlace at = placeOf(shape.valuePlanes, 0);
  Vals powers(8, number(0)); // of rows: sum of n^2 - 15 n over the lane's channels
  constexpr int64_t kOnes = 0x01010101;
  for (int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
    std::vector<Vals> loaded;
    for (Val entry : entries)
      loaded.push_back(rows.load(e, value.plane[at.plane], entry, at, g, chunk, number(1) == 1));
    for (int64_t v = 0; v < rows.width; ++v) {
      Vals quads[2];
      for (int64_t k = 0; k < 8; ++k)
        for (Val nibbles : {loaded[k][v] & 0x0f0f0f0f, shrLogical(loaded[k][v], number(4)) & 0x0f0f0f0f})
          powers[k] = e.dot4(nibbles, nibbles, powers[k] - e.dot4(nibbles, number(kOnes), number(0)) * 15);
      for (int64_t quad : {0, 1})
        quads[quad] = rows.transpose(e, loaded, 4 * quad, v);
      for (int64_t byte = 0; byte < 4; ++byte) {
        Vals a;
        for (int64_t quad : {0, 1})
          a.append({quads[quad][byte] & 0x0f0f0f0f, shrLogical(quads[quad][byte], number(4)) & 0x0f0f0f0f});
        Val *c = &sums[((chunk * rows.width + v) * 4 + byte) * 4];
        Vals product = e.multiply(a, b, {c[0], c[1], c[2], c[3]});
        std::copy(product.begin(), product.end(), c);
      }
    }
  }
  Vals reals;
  for (Val power : powers)
    reals.push_back(convert(power, e.f32()));
  for (int64_t i = 0; i < groupHeads; ++i)
    for (int64_t quad : {0, 1}) {
      Val four = e.load(weights, (warp * groupHeads + i) * kTileDepth + t * 4 + quad * 16, 4);
      for (int64_t k = 0; k < 4; ++k)
        squares[i] = fma(aligned::lane(four, k), reals[4 * quad + k], squares[i]);
    }
  squares.append(sums);
  return squares;
}

/// Adds up what the block's warps have, query row by query row.
void LookKernel::store(State state, Val firstHead) {
  int64_t dim = shape.valueDim, width = dim + kSeen;
  Val first = real(0), second = real(0); // of query rows 2 t and 2 t + 1 of the group, whose columns this lane has
  Vals steps(2, real(0));
  for (int64_t i = 0; i < groupHeads; ++i) {
    Val h = clamped(firstHead + i), constant = warpAdd(state.constants[i]);
    Val &mine = i % 2 ? second : first;
    mine = select(t == i / 2, constant, mine);
    steps[i % 2] = select(t == i / 2, factor(h, kReach) * (1.0 / kDigitLimit / 32768), steps[i % 2]);
    // (n + 1/2 - 8)^2, in units of an eighth of the scale, less what the dither adds.
    Val mass = warpAdd(state.mass[i]), scales = warpAdd(state.scales[i]);
    Val squares = (warpAdd(state.squares[i]) + scales * (dim * (56.25 - 1.0 / 12))) * (1.0 / 64);
    Val base = (warp * groupHeads + i) * width + dim;
    e.when(lane == 0, [&] {
      for (auto [which, what] : {std::pair(kSquares, squares), std::pair(kOpenSquares, real(0)), std::pair(kMass, mass), std::pair(kScales, scales)})
        e.store(what, meeting, base + which);
    });
  }
  for (int64_t chunk = 0; chunk < rows.chunks; ++chunk)
    for (int64_t v = 0; v < rows.width; ++v)
      for (int64_t byte = 0; byte < 4; ++byte) {
        Val *c = &state.sums[((chunk * rows.width + v) * 4 + byte) * 4], word = (g + 8 * chunk) * rows.width + v;
        for (int64_t n = 0; n < 4; ++n) {
          Val head = t * 2 + n % 2, sum = fma(convert(c[n], e.f32()), real(4096), n % 2 ? second : first) * steps[n % 2];
          e.when((word < rows.words) & (head < groupHeads), [&] {
            e.store(sum, meeting, (warp * groupHeads + head) * width + word * 4 + (byte + n / 2 * dim / 2));
          });
        }
      }
  e.barrier();
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * width));
  forThreads(groupHeads * width, [&](Val i) {
    Val head = firstHead + i / width, total = real(0);
    for (int64_t w = 0; w < warps; ++w)
      total = total + e.load(meeting, i + w * groupHeads * width);
    e.when(head < shape.heads, [&] { e.storeGlobal(total, partial, (split * shape.heads + head) * width + i % width); });
  });
  e.barrier(); // before the next group of heads meets here
}

/// The last split has the open block too: a warp for each query row, whose lanes share the channels.
void LookKernel::addOpen(Val firstHead) {
  int64_t dim = shape.valueDim, width = dim + kSeen;
  Val toRelative = real(1) / (unitScale(convert(top(), e.i32())) * 32768.0);
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * width)), end = min(firstHead + groupHeads, number(shape.heads));
  e.loop(firstHead + warp, end, warps, [&](Val h) {
    Val own = e.at(partial, e.f32(), wide((split * shape.heads + h) * width)), full = key.blocks * ALIGNED_BLOCK;
    auto weight = [&](Val token) { return weightOf(get(scoresOf(h), full + token), statistic(h, kMaximum)) * factor(h, kInverse); };
    Val squares = e.loop(lane, number(dim), GpuEmitter::kWarp, {real(0)}, [&](Val c, Vals squares) -> Vals {
      Vals sums = e.loop(number(0), value.open, 1, {get(own, c), squares[0]}, [&](Val token, Vals sums) -> Vals {
        Val x = convert(e.loadGlobal(value.openTokens, shape.value, token * dim + c), e.f32()) * toRelative, p = weight(token);
        x = select(abs(x) < INFINITY, x, real(0)); // what is not finite must not blind the plan
        return {fma(p, x, sums[0]), fma(p * x, x, sums[1])};
      });
      e.storeGlobal(sums[0], own, c);
      return {sums[1]};
    })[0];
    Val mass = e.loop(lane, value.open, GpuEmitter::kWarp, {real(0)}, [&](Val token, Vals mass) -> Vals { return {mass[0] + weight(token)}; })[0];
    squares = warpAdd(squares);
    mass = warpAdd(mass);
    e.when(lane == 0, [&] {
      e.storeGlobal(squares, own, number(dim + kOpenSquares));
      e.storeGlobal(get(own, number(dim + kMass)) + mass, own, number(dim + kMass));
    });
  });
}

void LookKernel::emit() {
  e.when(seenBlocks > 0, [&] {
    shareStatistics();
    prepareFactors();
    ring = shared("ring", e.i32(), warps * kRing);
    tokens = shared("tokens", e.i32(), warps * kRing);
    weights = shared("weights", e.f32(), warps * groupHeads * kTileDepth);
    digits = shared("digits", e.i8(), warps * kTileColumns * kTileDepth);
    meeting = shared("meeting", e.f32(), warps * groupHeads * (shape.valueDim + kSeen));
    for (Shared words : {ring, tokens}) // what is behind the rows that wait is loaded, too
      forThreads(warps * kRing, [&](Val i) { e.store(number(0), words, i); });
    forThreads(warps * kTileColumns * kTileDepth / 4, [&](Val i) { e.store(number(0), Shared{digits.base, e.i32()}, i); }); // columns of no query row
    e.barrier();
    e.loop(number(0), number(shape.heads), groupHeads, [&](Val firstHead) {
      auto [first, end] = stretch();
      Val begin = first + warp, last = end;
      Vals none(groupHeads, real(0));
      State state{number(0), number(0), none, none, none, none, Vals(rows.sums(), number(0))};
      // A lane looks for a loud block. What waits behind the last one takes one round more.
      Val rounds = (max(last - begin, number(0)) + (warps * GpuEmitter::kWarp - 1)) / (warps * GpuEmitter::kWarp);
      state = stateOf(e.loop(number(0), rounds + 1, 1, state.all(), [&](Val round, Vals all) {
        Val isLast = round == rounds, index = begin + (round * GpuEmitter::kWarp + lane) * warps;
        Val loud = e.choose(index < last, [&]() -> Vals { return {isLoud(blockAt(index), firstHead)}; }, [&]() -> Vals { return {e.constant(e.types.getI1Type(), 0)}; })[0];
        return e.forEachLane(select(isLast, number(1), e.ballot(loud)), all, [&](Val source, Vals all) {
          State state = stateOf(all);
          Vals waiting = e.choose(
              isLast, [&]() -> Vals { return {state.pending, number(1)}; },
              [&]() -> Vals {
                Val block = blockAt(begin + (round * GpuEmitter::kWarp + source) * warps);
                return {listBlock(state, block, loudTokens(block, firstHead)).pending, number(kTileDepth)};
              });
          state.pending = waiting[0];
          e.warpBarrier(); // the ring is written
          return e.repeat(state.all(), [&](Vals s) { return s[1] >= waiting[1]; },
                               [&](Vals s) {
                                 State now = weigh(stateOf(s), firstHead);
                                 e.warpBarrier(); // weights are there
                                 Vals added = multiply(now);
                                 e.warpBarrier(); // and read
                                 now.squares = Vals(ArrayRef<Val>(added).take_front(groupHeads));
                                 now.sums = Vals(llvm::drop_begin(added, groupHeads));
                                 now.head = (now.head + kTileDepth) & (kRing - 1);
                                 now.pending = max(now.pending - kTileDepth, number(0));
                                 return now.all();
                               });
        });
      }));
      store(state, firstHead);
      e.when(isLastSplit() & (value.open > 0), [&] { addOpen(firstHead); });
    });
  });
  finish();
}

} // namespace

void aligned::emitLook(ModuleOp program, StringRef name, const DecodeShape &shape) { LookKernel(program, name, shape).emit(); }
