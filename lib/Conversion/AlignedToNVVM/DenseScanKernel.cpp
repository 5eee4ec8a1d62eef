// The softmax state of each split, in one pass over K and V: flash decoding on the tensor cores of floats, with nothing of K and V in shared memory.
//
// A warp takes 16 or 32 tokens at a time. It multiplies its query rows with their keys, moves its running maxima where a score exceeds them, which is rare and the only
// time that its outputs are scaled, and multiplies values with the weights e^(s - maximum). The next tokens' loads are under way while these are multiplied. Warps of a
// block take turns along the split; in the end they bring their states together in shared memory.
//
// The order in which a sum is taken is free, so that lanes load 16 bytes as they lie and use them as operands as they are:
//
//   scores   left   query rows g and g + 8; the lane has 8 channels from 8 t on, for two steps of 16 channels
//            right  keys: the same 8 channels of token g
//            gives  the lane query rows g and g + 8, of tokens 2 t and 2 t + 1
//   values   left   8 channels from 8 g on of tokens 2 t, 2 t + 1, 8 + 2 t and 9 + 2 t, paired by tokens: two of the channels for each product
//            right  weights of these tokens of query row g: the result of the scores as it is
//            gives  the lane those two channels of query rows 2 t and 2 t + 1
//
// With 8 query rows to a warp the lower half of the left operand of the scores would be empty. It takes the channels of the second step, or the second part of queries
// that one element of the cache's type can't hold.
#include "DecodeKernel.h"

#include <cmath>
#include <map>

using namespace mlir;
using namespace aligned;

namespace {

constexpr int64_t kRows = 8;  ///< query rows that a product gives weights or outputs of
constexpr int64_t kDepth = 16; ///< tokens and channels of a product

/// Channels that a lane has `width` / 4 (keys) or `width` / 8 (values) neighbours of.
struct Chunk {
  int64_t first, width;
};

/// What is loaded together: some channels of the keys or of the values of all tokens of a step.
struct Piece {
  bool isValue;
  SmallVector<Chunk> chunks;
};

class DenseScanKernel : public DecodeKernel {
public:
  DenseScanKernel(ModuleOp program, StringRef name, const DecodeShape &shape) : DecodeKernel(program, name, shape, /*warps=*/4) {}
  void emit();

private:
  const bool isWide = std::max(shape.keyDim, shape.valueDim) > 128; ///< whether outputs of 8 query rows are all that a warp has registers for
  const int64_t parts = shape.query == shape.key || (shape.query.isBF16() && shape.key.isF16()) ? 1 : 2; ///< of a query in elements of the cache's type
  const int64_t groups = shape.heads > kRows && parts == 1 && !isWide ? 2 : 1;                           ///< of 8 query rows for each warp
  const int64_t sharers = llvm::PowerOf2Ceil(llvm::divideCeil(shape.heads, groups * kRows));             ///< warps that take the same tokens
  const int64_t streams = warps / sharers, paddedHeads = sharers * groups * kRows;
  const bool folds = groups == 1 && parts == 1;
  const int64_t subtiles = std::max(shape.keyDim, shape.valueDim) <= 64 ? 2 : 1, stepTokens = subtiles * kDepth;
  const int64_t quads = 1 + shape.valueDim / kDepth; ///< results of products for each group: sums of weights, then outputs of 16 channels
  /// Weights are at most 2^this, so that those of f16 reach as far below the largest as they can.
  const double headroom = shape.value.isF16() ? 15 : 0;
  /// Two pieces of eight loads are under way while a third is used; where registers are few, three of four loads, or two beside queries in two parts or of several
  /// tokens.
  const int64_t pieceChannels = isWide ? 64 : 128, inFlight = isWide && parts == 1 && shape.queries == 1 ? 3 : 2;
  SmallVector<Piece> pieces;

  /// Query rows that see alike share a view: that of row h is h mod views, whose first row it is.
  const int64_t views = shape.attnMask && shape.attnMask.getDimSize(1) != 1 ? shape.heads : isMasked() ? shape.queries : 1;

  Val capacity;
  Val sinks, gap, seen;    ///< steps that some query sees: those before `sinks`, and from `sinks` + `gap` on; how many they are
  std::vector<Vals> query; ///< left operands of a chunk of keys
  Vals scales;             ///< of this lane's scores, by group
  std::map<std::pair<bool, int64_t>, Val> bases; ///< where this lane's neighbours of a chunk's width begin, in the first token

  /// What a warp carries from step to step.
  struct State {
    Vals maxima;               ///< of query row g, by group
    Vals outputs;              ///< of query rows 2 t and 2 t + 1: [groups][quads] of 4
    std::vector<Vals> pending; ///< pieces in the order in which they are needed
    Vals flat() const;
  };
  State initial(Val first, Val end);
  State unflat(const State &like, Vals values);

  Val stream() { return shrLogical(warp, number(llvm::Log2_64(sharers))); }
  Val headOf(int64_t group, Val within) { return (warp & (sharers - 1)) * (groups * kRows) + within + group * kRows; }
  Val columnHead(int64_t group, int64_t column) { return headOf(group, t * 2 + column); }
  Val *quad(Vals &outputs, int64_t group, int64_t number) { return &outputs[(group * quads + number) * 4]; }

  void planPieces();
  void findSteps();
  Val tokenAt(Val step) { return (shape.mask ? step + select(step < sinks, number(0), gap) : step) * stepTokens; }
  /// Whether all tokens from `base` on are there, and every query row sees them by position.
  Val isInner(Val base) {
    Val last = base + (stepTokens - 1);
    return (last < tokens) & areAllVisible(base, last, newest, sight);
  }

  void prepareQueries();
  Vals queryOf(Val h, const Chunk &chunk);

  Val valueToken(Val base, int64_t subtile, int64_t i) { return base + t * 2 + (subtile * kDepth + i / 2 * kRows + i % 2); }
  Type registersOf(int64_t width, bool isValue);
  Vals load(const Piece &piece, Val base);
  Vals loadIf(Val condition, const Piece &piece, Val base);
  static Val word(Val loaded, int64_t i) { return loaded.lanes() ? aligned::lane(loaded, i) : loaded; }

  void multiplyKeys(const Piece &piece, const Vals &loaded, std::vector<Vals> &sums);
  /// This lane's scores [groups][tokens of a step / 8][2].
  Vals scoresOf(const std::vector<Vals> &sums, Val base);
  /// Sees to it that no score exceeds its maximum.
  void raiseMaxima(State &state, const Vals &scores);
  /// Right operands [groups][subtiles][parts of a weight].
  std::vector<Vals> weightsOf(const State &state, const Vals &scores);
  /// Whether weights that are 0 hide all that has to be hidden: they don't hide what is not finite.
  Val isPlain(const Vals &loaded, Val base);
  void multiplyValues(const Piece &piece, const Vals &loaded, const std::vector<Vals> &weights, Vals &outputs);
  Vals multiplySeenValues(const Piece &piece, const Vals &loaded, const std::vector<Vals> &weights, const Vals &outputs, Val base);
  int64_t weightParts() const { return shape.value.isF16() ? 1 : 2; }

  State step(State state, Val index, Val end);
  void store(State &state);
};

//===----------------------------------------------------------------------===//
// What there is to do
//===----------------------------------------------------------------------===//

void DenseScanKernel::planPieces() {
  for (bool isValue : {false, true}) {
    int64_t dim = isValue ? shape.valueDim : shape.keyDim, width = isValue ? 64 : 32;
    for (int64_t first = 0; first < dim; first += width) {
      while (first + width > dim)
        width /= 2;
      if (first % pieceChannels == 0)
        pieces.push_back({isValue, {}});
      pieces.back().chunks.push_back({first, width});
    }
  }
}

void DenseScanKernel::findSteps() {
  seen = (tokens + (stepTokens - 1)) / stepTokens;
  if (!shape.mask)
    return;
  VisibleTiles visible = visibleTiles((tokens + (kTile - 1)) / kTile, newest, sight);
  int64_t each = kTile / stepTokens;
  sinks = visible.sinks * each;
  Val begin = visible.begin * each;
  gap = begin - sinks;
  seen = sinks + max(min(visible.end * each, seen) - begin, 0);
}

//===----------------------------------------------------------------------===//
// Queries
//===----------------------------------------------------------------------===//

/// This lane's channels of query row h as f32. One that is not finite is NaN, as a softcap could not tell.
Vals DenseScanKernel::queryOf(Val h, const Chunk &chunk) {
  int64_t count = chunk.width / 4;
  constexpr int64_t kAtOnce = 4;
  Val rows = ofRow(Argument::Query, shape.query, shape.heads * shape.keyDim);
  return e.choose(
      h < shape.heads,
      [&] {
        Vals values;
        for (int64_t i = 0; i < count; i += kAtOnce) {
          Val some = convert(e.loadGlobal(rows, VectorType::get(kAtOnce, shape.query), h * shape.keyDim + t * count + (chunk.first + i)), e.f32());
          for (int64_t j = 0; j < kAtOnce; ++j) {
            Val x = aligned::lane(some, j);
            values.push_back(fma(x, real(0), x));
          }
        }
        return values;
      },
      [&] { return Vals(count, real(0)); });
}

void DenseScanKernel::prepareQueries() {
  SmallVector<Chunk> chunks;
  for (const Piece &piece : pieces)
    if (!piece.isValue)
      chunks.append(piece.chunks);
  // Where f16 has not the range of the queries, a power of two brings the row's largest below 2^15, and is taken off its scores.
  bool scaled = shape.key.isF16() && !shape.query.isF16();
  std::vector<std::vector<Vals>> rows(groups); // [group][chunk]
  for (int64_t group = 0; group < groups; ++group) {
    Val largest = real(0);
    for (const Chunk &chunk : chunks) {
      rows[group].push_back(queryOf(headOf(group, g), chunk));
      for (Val x : rows[group].back())
        largest = e.largest(abs(x), largest);
    }
    scales.push_back(argument(Argument::Scale));
    if (!scaled)
      continue;
    Val exponent = min(max(shrLogical(bitcast(e.warpMax(largest, {1, 2}), e.i32()), number(23)), 30), 240);
    Val power = bitcast((number(127 + 14 + 127) - exponent) << 23, e.f32());
    scales[group] = scales[group] * bitcast((exponent - 14) << 23, e.f32());
    for (Vals &values : rows[group])
      for (Val &x : values)
        x = x * power;
  }
  // Registers of two elements each; the second part is what the first, which is cut and not rounded, leaves. Both have the sign of the whole and neither is zero where that is
  // not, so that the products with infinite keys are what they should be.
  auto registersOf = [&](const Vals &values, int64_t part) {
    Vals registers;
    for (size_t i = 0; i < values.size(); i += 2) {
      Vals two;
      for (Val x : {values[i], values[i + 1]}) {
        Val upper = bitcast(bitcast(x, e.i32()) & (shape.key.isF16() ? -0x2000 : -0x10000), e.f32()), rest = x - upper;
        Val least = select(x > 0, real(shape.key.isF16() ? 0x1p-24 : 0x1p-126), real(shape.key.isF16() ? -0x1p-24 : -0x1p-126));
        two.push_back(parts == 1 ? x : part == 0 ? upper : select((rest == 0) & (x != 0), least, rest));
      }
      registers.push_back(e.pack(shape.key, two[0], two[1]));
    }
    return registers;
  };
  Val none = number(0);
  for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
    Vals upper = registersOf(rows[0][chunk], 0), operands;
    if (folds) {
      bool both = upper.size() == 4;
      operands = {upper[0], both ? upper[2] : none, upper[1], both ? upper[3] : none};
    } else {
      Vals lower = groups == 2 ? registersOf(rows[1][chunk], 0) : registersOf(rows[0][chunk], 1);
      for (size_t i = 0; i < upper.size(); i += 2)
        operands.append({upper[i], lower[i], upper[i + 1], lower[i + 1]});
    }
    query.push_back(operands);
  }
}

//===----------------------------------------------------------------------===//
// Loads
//===----------------------------------------------------------------------===//

Type DenseScanKernel::registersOf(int64_t width, bool isValue) {
  int64_t count = width / (isValue ? 16 : 8);
  return count == 1 ? e.i32() : Type(VectorType::get(count, e.i32()));
}

/// [subtile][token of the lane][chunk]. Past the last token it is the last one that is loaded.
Vals DenseScanKernel::load(const Piece &piece, Val base) {
  Type element = piece.isValue ? shape.value : shape.key;
  Vals loaded;
  for (int64_t subtile = 0; subtile < subtiles; ++subtile)
    for (int64_t i = 0; i < (piece.isValue ? 4 : 2); ++i) {
      Val token = min(piece.isValue ? valueToken(base, subtile, i) : base + g + (subtile * kDepth + i * kRows), tokens - 1);
      Val offset = wide(token) * (piece.isValue ? shape.valueDim : shape.keyDim);
      for (const Chunk &chunk : piece.chunks)
        loaded.push_back(e.loadGlobal(e.at(bases[{piece.isValue, chunk.width}], element, offset), registersOf(chunk.width, piece.isValue), number(chunk.first / 2)));
    }
  return loaded;
}

Vals DenseScanKernel::loadIf(Val condition, const Piece &piece, Val base) {
  return e.choose(condition, [&] { return load(piece, base); },
                  [&] {
                    Vals nothing;
                    for (int64_t i = 0; i < subtiles * (piece.isValue ? 4 : 2); ++i)
                      for (const Chunk &chunk : piece.chunks)
                        nothing.push_back(e.unused(registersOf(chunk.width, piece.isValue)));
                    return nothing;
                  });
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

/// sums [8 tokens][where operands fold, the step that they are of].
void DenseScanKernel::multiplyKeys(const Piece &piece, const Vals &loaded, std::vector<Vals> &sums) {
  size_t steps = folds ? 2 : 1;
  for (size_t c = 0; c < piece.chunks.size(); ++c) {
    const Chunk &chunk = piece.chunks[c];
    const Vals &left = query[chunk.first / 32];
    for (int64_t eight = 0; eight < 2 * subtiles; ++eight)
      for (int64_t i = 0; i < chunk.width / kDepth; ++i) {
        Val keys = loaded[eight * piece.chunks.size() + c];
        Vals &sum = sums[eight * steps + (folds ? i : 0)];
        sum = e.multiply(shape.key, ArrayRef<Val>(left).slice(folds ? 0 : 4 * i, 4), {word(keys, 2 * i), word(keys, 2 * i + 1)}, sum);
      }
  }
}

Vals DenseScanKernel::scoresOf(const std::vector<Vals> &sums, Val base) {
  Vals scores;
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t eight = 0; eight < 2 * subtiles; ++eight)
      for (int64_t i = 0; i < 2; ++i) {
        Val sum = folds        ? sums[2 * eight][i] + sums[2 * eight + 1][2 + i]
                  : parts == 2 ? sums[eight][i] + sums[eight][2 + i]
                               : sums[eight][2 * group + i];
        scores.push_back(sum * scales[group]);
        if (shape.hasSoftcap())
          scores.back() = softcapped(scores.back(), cap);
      }
  // Whether a token is there, and what the mask says.
  auto each = [&](function_ref<Val(Val h, Val token, Val score)> of) {
    Vals all;
    for (size_t n = 0; n < scores.size(); ++n) {
      int64_t group = n / (4 * subtiles), eight = n / 2 % (2 * subtiles), i = n % 2;
      all.push_back(of(headOf(group, g), base + t * 2 + (eight * kRows + i), scores[n]));
    }
    return all;
  };
  if (shape.attnMask)
    scores = each([&](Val h, Val token, Val score) { return underMask(score, h, min(token, tokens - 1)); });
  return e.choose(isInner(base), [&] { return scores; },
                  [&] { return each([&](Val h, Val token, Val score) { return select((token < tokens) & isInSight(h, token), score, real(-INFINITY)); }); });
}

void DenseScanKernel::raiseMaxima(State &state, const Vals &scores) {
  int64_t own = 4 * subtiles;
  Vals tops;
  Val exceeds;
  for (int64_t group = 0; group < groups; ++group) {
    Val top = scores[group * own];
    for (int64_t i = 1; i < own; ++i)
      top = e.largest(top, scores[group * own + i]);
    tops.push_back(top);
    Val here = top > state.maxima[group];
    exceeds = group ? exceeds | here : here;
  }
  Vals raised = e.choose(
      e.any(exceeds),
      [&] {
        Vals result, outputs = state.outputs;
        for (int64_t group = 0; group < groups; ++group) {
          Val old = state.maxima[group];
          result.push_back(e.largest(e.warpMax(tops[group], {1, 2}), old));
          Val factor = weightOf(old, result.back());
          Val factors[2] = {e.shuffleFrom(factor, t * 8), e.shuffleFrom(factor, t * 8 + 4)};
          for (int64_t i = 0; i < quads * 4; ++i) {
            Val &output = quad(outputs, group, 0)[i];
            output = output * factors[i % 2];
          }
        }
        result.append(outputs.begin(), outputs.end());
        return result;
      },
      [&] {
        Vals same = state.maxima;
        same.append(state.outputs.begin(), state.outputs.end());
        return same;
      });
  state.maxima.assign(raised.begin(), raised.begin() + groups);
  state.outputs.assign(raised.begin() + groups, raised.end());
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

/// A weight of bf16 has two parts, of which the first is cut: with the last bit set neither is zero unless all is, and infinite values stay what they are.
std::vector<Vals> DenseScanKernel::weightsOf(const State &state, const Vals &scores) {
  std::vector<Vals> operands(groups * subtiles * weightParts());
  for (int64_t group = 0; group < groups; ++group) {
    Val reference = e.largest(state.maxima[group], real(kLowest));
    for (int64_t eight = 0; eight < 2 * subtiles; ++eight) {
      Vals two;
      for (int64_t i = 0; i < 2; ++i)
        two.push_back(e.exp2(fma(scores[(group * 2 * subtiles + eight) * 2 + i] - reference, real(kLog2e), real(headroom))));
      Vals *parts = &operands[(group * subtiles + eight / 2) * weightParts()];
      if (shape.value.isF16()) {
        parts[0].push_back(e.pack(shape.value, two[0], two[1]));
        continue;
      }
      Vals bits, rest;
      for (Val weight : two) {
        bits.push_back(bitcast(weight, e.i32()) | 1);
        rest.push_back(bitcast(bits.back(), e.f32()) - bitcast(bits.back() & -0x10000, e.f32()));
      }
      parts[0].push_back(e.permuteBytes(bits[0], bits[1], {2, 3, 6, 7}));
      parts[1].push_back(e.pack(shape.value, rest[0], rest[1]));
    }
  }
  return operands;
}

void DenseScanKernel::multiplyValues(const Piece &piece, const Vals &loaded, const std::vector<Vals> &weights, Vals &outputs) {
  for (int64_t subtile = 0; subtile < subtiles; ++subtile)
    for (size_t c = 0; c < piece.chunks.size(); ++c)
      for (int64_t i = 0; i < piece.chunks[c].width / kDepth; ++i) {
        auto of = [&](int64_t token) { return word(loaded[(subtile * 4 + token) * piece.chunks.size() + c], i); };
        Vals left;
        for (int64_t token : {0, 2})
          for (std::array<int, 4> channel : {std::array{0, 1, 4, 5}, std::array{2, 3, 6, 7}})
            left.push_back(e.permuteBytes(of(token), of(token + 1), channel));
        for (int64_t group = 0; group < groups; ++group)
          for (int64_t part = 0; part < weightParts(); ++part) {
            Val *output = quad(outputs, group, 1 + piece.chunks[c].first / kDepth + i);
            Vals sum = e.multiply(shape.value, left, weights[(group * subtiles + subtile) * weightParts() + part], ArrayRef<Val>(output, 4));
            std::copy(sum.begin(), sum.end(), output);
          }
      }
}

Val DenseScanKernel::isPlain(const Vals &loaded, Val base) {
  Val inner = isInner(base);
  if (!shape.attnMask)
    return inner;
  // Added to the bits of a magnitude, the last bit of an exponent carries where all of its bits are set.
  Val last = number(shape.value.isF16() ? 0x04000400 : 0x00800080), carried = number(0);
  for (Val words : loaded)
    for (int64_t i = 0; i < std::max<int64_t>(words.lanes(), 1); ++i)
      carried = carried | ((word(words, i) & 0x7fff7fff) + last);
  return inner & (e.ballot((carried & int32_t(0x80008000)) != 0) == 0);
}

/// The same for tokens not all of which are seen: what is hidden takes no part, whatever it holds. Query rows that see different tokens are taken one after another.
Vals DenseScanKernel::multiplySeenValues(const Piece &piece, const Vals &loaded, const std::vector<Vals> &weights, const Vals &outputs, Val base) {
  return e.loop(number(0), number(views), 1, outputs, [&](Val view, Vals before) {
    Vals visible = loaded, after = before;
    for (size_t n = 0; n < visible.size(); ++n) {
      int64_t row = n / piece.chunks.size();
      Val token = valueToken(base, row / 4, row % 4), keep = select((token < tokens) & isSeen(view, min(token, tokens - 1)), number(-1), number(0));
      visible[n] = visible[n] & (visible[n].lanes() ? e.splat(keep, visible[n].lanes()) : keep);
    }
    multiplyValues(piece, visible, weights, after);
    for (int64_t i = 0; i < static_cast<int64_t>(after.size()) && views > 1; ++i)
      if (after[i].value != before[i].value)
        after[i] = select(columnHead(i / (quads * 4), i % 2) % views == view, after[i], before[i]);
    return after;
  });
}

//===----------------------------------------------------------------------===//
// Steps
//===----------------------------------------------------------------------===//

Vals DenseScanKernel::State::flat() const {
  Vals all = maxima;
  all.append(outputs.begin(), outputs.end());
  for (const Vals &piece : pending)
    all.append(piece.begin(), piece.end());
  return all;
}

DenseScanKernel::State DenseScanKernel::unflat(const State &like, Vals values) {
  State state;
  auto take = [&, next = values.begin()](size_t count) mutable {
    Vals taken(next, next + count);
    next += count;
    return taken;
  };
  state.maxima = take(like.maxima.size());
  state.outputs = take(like.outputs.size());
  for (const Vals &piece : like.pending)
    state.pending.push_back(take(piece.size()));
  return state;
}

DenseScanKernel::State DenseScanKernel::initial(Val first, Val end) {
  State state{Vals(groups, real(-INFINITY)), Vals(groups * quads * 4, real(0)), {}};
  for (int64_t i = 0; i < inFlight; ++i)
    state.pending.push_back(loadIf(first < end, pieces[i], tokenAt(first)));
  return state;
}

DenseScanKernel::State DenseScanKernel::step(State state, Val index, Val end) {
  Val base = tokenAt(index), next = index + streams;
  // Takes the piece that is needed now, and has another one loaded once it has been used.
  auto use = [&](size_t number, function_ref<void(const Vals &)> body) {
    body(state.pending.front());
    state.pending.erase(state.pending.begin());
    size_t later = number + inFlight;
    state.pending.push_back(later < pieces.size() ? load(pieces[later], base) : loadIf(next < end, pieces[later - pieces.size()], tokenAt(next)));
  };
  std::vector<Vals> sums(2 * subtiles * (folds ? 2 : 1), Vals(4, real(0)));
  size_t number = 0;
  for (; !pieces[number].isValue; ++number)
    use(number, [&](const Vals &keys) { multiplyKeys(pieces[number], keys, sums); });
  Vals scores = scoresOf(sums, base);
  raiseMaxima(state, scores);
  std::vector<Vals> weights = weightsOf(state, scores);
  // Weights are summed as they are multiplied, by a row of ones.
  Vals ones(4, this->number(shape.value.isF16() ? 0x3c003c00 : 0x3f803f80));
  for (size_t i = 0; i < weights.size(); ++i) {
    Val *sum = quad(state.outputs, i / (subtiles * weightParts()), 0);
    Vals added = e.multiply(shape.value, ones, weights[i], ArrayRef<Val>(sum, 4));
    std::copy(added.begin(), added.end(), sum);
  }
  for (; number < pieces.size(); ++number)
    use(number, [&](const Vals &values) {
      state.outputs = e.choose(isPlain(values, base),
                               [&] {
                                 Vals outputs = state.outputs;
                                 multiplyValues(pieces[number], values, weights, outputs);
                                 return outputs;
                               },
                               [&] { return multiplySeenValues(pieces[number], values, weights, state.outputs, base); });
    });
  return state;
}

/// Brings the states of the block's warps together.
void DenseScanKernel::store(State &state) {
  int64_t dim = shape.valueDim;
  Shared maxima = shared("maxima", e.f32(), streams * paddedHeads), sums = shared("sums", e.f32(), paddedHeads), outputs = shared("outputs", e.f32(), paddedHeads * dim);
  for (int64_t group = 0; group < groups; ++group)
    e.when(t == 0, [&] { e.store(state.maxima[group], maxima, stream() * paddedHeads + headOf(group, g)); });
  e.barrier();
  auto highest = [&](Val h) {
    Val top = real(kLowest);
    for (int64_t s = 0; s < streams; ++s)
      top = e.largest(top, e.load(maxima, h + s * paddedHeads));
    return top;
  };
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t column = 0; column < 2; ++column) {
      Val h = columnHead(group, column);
      Val factor = e.exp2(fma(e.load(maxima, stream() * paddedHeads + h) - highest(h), real(kLog2e), real(-headroom)));
      for (int64_t i = column; i < quads * 4; i += 2) {
        Val &output = quad(state.outputs, group, 0)[i];
        output = output * factor;
      }
    }
  auto add = [&](Val value, Shared array, Val at, bool first) {
    if (!first)
      value = value + e.load(array, at, value.lanes());
    e.store(value, array, at);
  };
  for (int64_t s = 0; s < streams; ++s) {
    e.when(stream() == s, [&] {
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t column = 0; column < 2; ++column) {
          Val h = columnHead(group, column);
          e.when(g == 0, [&] { add(quad(state.outputs, group, 0)[column], sums, h, s == 0); });
          for (const Piece &piece : pieces)
            for (const Chunk &chunk : piece.chunks) {
              if (!piece.isValue)
                continue;
              Vals neighbours; // the lane's channels of the chunk
              for (int64_t i = 0; i < chunk.width / kRows; ++i)
                neighbours.push_back(quad(state.outputs, group, 1 + chunk.first / kDepth + i / 2)[i % 2 * 2 + column]);
              int64_t count = neighbours.size(), vector = std::min(count, kVector);
              for (int64_t i = 0; i < count; i += vector)
                add(e.vectorOf(ArrayRef<Val>(neighbours).slice(i, vector)), outputs, h * dim + g * count + (chunk.first + i), s == 0);
            }
        }
    });
    e.barrier();
  }
  Val first = number(0), statistics = ofSplit(Argument::Statistics, split, first, kStatistics), partial = ofSplit(Argument::Partial, split, first, dim);
  forThreads(shape.heads, [&](Val h) {
    Val top = highest(h), at = h * kStatistics;
    e.storeGlobal(select(top == kLowest, real(-INFINITY), top), statistics, at + kMaximum);
    e.storeGlobal(e.load(sums, h), statistics, at + kSum);
  });
  forThreads(shape.heads * dim / kVector, [&](Val i) { e.storeGlobal(e.load(outputs, i * kVector, kVector), partial, i * kVector); });
}

void DenseScanKernel::emit() {
  capacity = argument(Argument::Capacity);
  planPieces();
  for (const Piece &piece : pieces)
    for (const Chunk &chunk : piece.chunks) {
      Type element = piece.isValue ? shape.value : shape.key;
      Val base = ofRow(piece.isValue ? Argument::Value : Argument::Key, element, wide(capacity) * (piece.isValue ? shape.valueDim : shape.keyDim));
      bases.try_emplace({piece.isValue, chunk.width}, e.at(base, element, piece.isValue ? g * (chunk.width / 8) : t * (chunk.width / 4)));
    }
  prepareQueries();
  findSteps();
  Val each = ((seen + splits - 1) / splits + (streams - 1)) / streams * streams, first = min(split * each, seen), end = min(first + each, seen);
  first = first + stream();
  State state = initial(first, end);
  state = unflat(state, e.loop(first, end, streams, state.flat(), [&](Val index, Vals values) { return step(unflat(state, values), index, end).flat(); }));
  store(state);
  finish();
}

} // namespace

void aligned::emitDenseScan(ModuleOp program, StringRef name, const DecodeShape &shape) { DenseScanKernel(program, name, shape).emit(); }
