// Decode attention over dense caches, K and V as the front end wrote them: [tokens, head_dim] per row; or over the dense copies that short packed caches hold, whose rows
// have room for more. It is exact, and what others are measured against.
//
// A vector of K or V is converted once for all query rows of a group, and a vector of the query is loaded once for several tokens: as many sums as registers hold.
#include "RowKernel.h"

#include "aligned/Runtime/Cache.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

namespace {
class DenseKernel : public RowKernel {
public:
  using RowKernel::RowKernel;

private:
  static constexpr int64_t kBytesAhead = 8192;
  const int64_t registers = shape.isa == Isa::AVX512 ? 32 : 16;
  /// forHeadGroups() then has groups of a quarter of the registers.
  static constexpr int64_t kVectorsPerHead = 3;

  Val tokenCount() override {
    Type index = e.types.getIndexType();
    return shape.denseCopy ? e.field(operand(Slot::Key), offsetof(aligned_cache, tokens), index) : e.field(arguments, int64_t(Slot::Tokens) * kSlotBytes, index);
  }

  /// The data of a dense tensor, or a cache.
  Val operand(Slot slot) { return e.field(arguments, int64_t(slot) * kSlotBytes, e.pointer()); }

  Buffer rowOf(Slot slot, int64_t dim, Type element) {
    Val base = operand(slot), apart = tokens;
    if (shape.denseCopy) {
      apart = e.field(base, offsetof(aligned_cache, dense_capacity), e.types.getIndexType());
      base = e.field(base, offsetof(aligned_cache, dense), e.pointer());
    }
    return e.buffer(e.advance(base, row * apart * (dim * element.getIntOrFloatBitWidth() / 8)), element);
  }

  /// A vector of a row, as f32. Asks for the cache line that lies some way behind: what the processor asks for itself ends with its small pages.
  Val read(Buffer rows, Val start, int64_t channel) {
    const int64_t width = rows.element.getIntOrFloatBitWidth() / 8;
    if (channel * width % 64 == 0)
      e.prefetch(rows, start + (kBytesAhead / width + channel));
    return convert(e.load(rows, start + channel, lanes), e.f32());
  }

  /// The most vectors, up to `most`, that divide a row of `dim` evenly.
  int64_t vectorsOf(int64_t dim, int64_t most) const {
    int64_t vectors = std::clamp<int64_t>(most, 1, dim / lanes);
    while (dim / lanes % vectors)
      --vectors;
    return vectors;
  }

  /// Runs over channels `step` at a time, without a loop where that is all.
  Vals forChannels(int64_t dim, int64_t step, Vals initial, function_ref<Vals(Val channel, Vals)> body) {
    return step == dim ? body(index(0), initial) : e.loop(index(0), index(dim), step, initial, body);
  }

  /// For each of `tokens`, sums over lanes of channels of w k for `heads` query rows: [token][query row], to be added across lanes.
  SmallVector<Vals> products(Buffer keys, ArrayRef<Val> tokens, Val head, int64_t heads) {
    constexpr int64_t kUnrolled = 8;
    const int64_t dim = shape.keyDim, count = tokens.size(), vectors = vectorsOf(dim, kUnrolled);
    Vals sums = forChannels(dim, vectors * lanes, Vals(count * heads, e.constant(VectorType::get(lanes, e.f32()), 0)), [&](Val channel, Vals sums) {
      for (int64_t first = 0; first < vectors * lanes; first += lanes) {
        Vals k;
        for (Val token : tokens)
          k.push_back(read(keys, token * dim + channel, first));
        for (int64_t h = 0; h < heads; ++h) {
          Val weight = e.load(w, (head + h) * dim + channel + first, lanes);
          for (int64_t i = 0; i < count; ++i)
            sums[i * heads + h] = fma(k[i], weight, sums[i * heads + h]);
        }
      }
      return sums;
    });
    SmallVector<Vals> all;
    for (int64_t i = 0; i < count; ++i)
      all.emplace_back(sums.begin() + i * heads, sums.begin() + (i + 1) * heads);
    return all;
  }

  /// s[h, first .. first + count) = w . k for the tokens of `keys`.
  void score(Buffer keys, Val first, Val count) {
    Val whole = count / lanes * lanes;
    e.loop(index(0), whole, lanes, [&](Val t) {
      forHeadGroups(kVectorsPerHead, [&](Val head, int64_t heads) {
        const int64_t together = llvm::bit_floor(uint64_t(registers / 2 / heads)), distance = lanes / together; // rows are asked for in an order that makes these next
        SmallVector<Vals> rows(lanes);
        Vals sums = transposeAdd(lanes, [&](int64_t lane) {
          if (rows[lane].empty()) {
            Vals tokens;
            for (int64_t i = lane % distance; i < lanes; i += distance)
              tokens.push_back(t + i);
            for (auto [i, of] : llvm::enumerate(products(keys, tokens, head, heads)))
              rows[lane % distance + int64_t(i) * distance] = of;
          }
          return rows[lane];
        });
        for (int64_t h = 0; h < heads; ++h)
          e.store(sums[h], s, (head + h) * padded + first + t);
      });
    });
    e.loop(whole, count, 1, [&](Val t) {
      forHeads([&](Val h) { e.store(reduceAdd(products(keys, {t}, h, 1)[0][0]), s, h * padded + first + t); });
    });
  }

  void scores() override {
    Buffer keys = rowOf(Slot::Key, shape.keyDim, shape.key);
    if (shape.mask || shape.hasSoftcap() || shape.attnMask) {
      forTokens(index(0), padded, [&](Val t) {
        Val bytes = t * (shape.keyDim * shape.key.getIntOrFloatBitWidth() / 8);
        score(e.buffer(e.advance(keys.pointer, bytes), shape.key), t, min(tokens - t, index(kTile)));
        finishScores(t / kTile);
      });
      return softmax();
    }
    // The last tile's tail first, then every real token.
    e.when(tokens > 0, [&] {
      forHeads([&](Val h) { e.store(e.constant(VectorType::get(kTile, e.f32()), -INFINITY), s, h * padded + padded - kTile); });
    });
    score(keys, index(0), tokens);
    softmax();
  }

  /// out[h, :] += p[h, t] v[t, :]. A tile of tokens stays in the nearest cache while query rows and channels pass over it.
  void values() override {
    const int64_t dim = shape.valueDim;
    Buffer rows = rowOf(Slot::Value, dim, shape.value);
    forTokens(index(0), tokens, [&](Val tile) {
      forHeadGroups(kVectorsPerHead, [&](Val head, int64_t heads) {
        const int64_t vectors = vectorsOf(dim, (registers - 1) / (heads + 1));
        forChannels(dim, vectors * lanes, {}, [&](Val channel, Vals) -> Vals {
          Vals sums;
          for (int64_t i = 0; i < vectors * heads; ++i)
            sums.push_back(e.load(out, (head + i / vectors) * dim + channel + i % vectors * lanes, lanes));
          sums = e.loop(tile, min(tile + kTile, tokens), 1, sums, [&](Val t, Vals sums) {
            Vals row;
            for (int64_t first = 0; first < vectors * lanes; first += lanes)
              row.push_back(read(rows, t * dim + channel, first));
            for (int64_t h = 0; h < heads; ++h) {
              Val weight = e.splat(e.load(p, (head + h) * padded + t), lanes);
              for (int64_t v = 0; v < vectors; ++v) {
                Val &sum = sums[h * vectors + v];
                if (mayHide()) // where a value that is not finite is hidden, 0 times that is not 0
                  sum = sum + select(takesPart(head + h, t), weight * row[v], e.constant(sum.type(), 0));
                else
                  sum = fma(weight, row[v], sum);
              }
            }
            return sums;
          });
          for (int64_t i = 0; i < vectors * heads; ++i)
            e.store(sums[i], out, (head + i / vectors) * dim + channel + i % vectors * lanes);
          return {};
        });
      });
    });
  }

  Val channelMax(Slot slot, int64_t dim, Type element) {
    Buffer rows = rowOf(slot, dim, element);
    return forTokens(index(0), tokens, {e.constant(VectorType::get(dim, e.f32()), 0)}, [&](Val tile, Vals top) -> Vals {
      return e.loop(tile, min(tile + kTile, tokens), 1, top, [&](Val t, Vals top) -> Vals {
        Val magnitude = abs(convert(e.load(rows, t * dim, dim), e.f32()));
        return {select((magnitude > top[0]) & (magnitude < INFINITY), magnitude, top[0])};
      });
    })[0];
  }
  Val keyChannelMax() override { return channelMax(Slot::Key, shape.keyDim, shape.key); }
  Val valueMax() override { return reduceMax(channelMax(Slot::Value, shape.valueDim, shape.value)); }

  void reportReading() override {
    Val read = tokens;
    if (shape.mask)
      read = forTokens(index(0), tokens, {index(0)}, [&](Val t, Vals sum) -> Vals { return {sum[0] + min(tokens - t, index(kTile))}; })[0];
    tally(read * (shape.keyDim * shape.key.getIntOrFloatBitWidth()), read * (shape.valueDim * shape.value.getIntOrFloatBitWidth()));
  }
};
} // namespace

std::unique_ptr<RowKernel> aligned::makeDenseKernel(Emitter &e, const KernelShape &shape) { return std::make_unique<DenseKernel>(e, shape); }
