// The row's softmax state from those of its splits; one block of threads for each row.
#include "DecodeKernel.h"

using namespace mlir;
using namespace aligned;

namespace {

class MergeKernel : public DecodeKernel {
public:
  using DecodeKernel::DecodeKernel;
  void emit();
};

void MergeKernel::emit() {
  int64_t dim = shape.valueDim, width = dim + kSeen;
  Shared statistics = statisticsOfRow();
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * width));
  auto sumOf = [&](Val h) { // of a row whose scores are all -inf: 0 / 0, unless front ends guard against it
    Val sum = e.load(statistics, h * kStatistics + kSum), maximum = e.load(statistics, h * kStatistics + kMaximum);
    return shape.maskedZero ? sum : select((maximum == -INFINITY) & (key.tokens > 0), real(NAN), sum);
  };
  forThreads(shape.heads, [&](Val h) {
    e.storeGlobal(e.load(statistics, h * kStatistics + kMaximum), rowOf(Argument::Max, shape.heads), h);
    e.storeGlobal(sumOf(h), rowOf(Argument::Sum, shape.heads), h);
  });
  forThreads(shape.heads * dim, [&](Val i) {
    Val h = i / dim, channel = i % dim;
    auto total = [&](Val number) {
      return e.loop(this->number(0), splits, 1, {real(0)}, [&](Val s, Vals sum) -> Vals { return {sum[0] + get(partial, (s * shape.heads + h) * width + number)}; })[0];
    };
    Val out = total(channel);
    if (!shape.exact() && !isFloat(shape)) // rows that are not read stand for their mean
      out = e.choose(key.blocks > 0, [&]() -> Vals { return {fma(total(number(dim)), meanOf(channel, e.load(statistics, h * kStatistics + kExponent)), out)}; }, [&]() -> Vals { return {out}; })[0];
    Val slot = rowOf(Argument::Acc, shape.heads * dim);
    e.storeGlobal(out, slot, i);
    e.when(value.escapes > 0, [&] {
      Val scores = ofHead(rowOf(Argument::Scores, key.stride * (shape.heads * ALIGNED_BLOCK)), h, key.stride * ALIGNED_BLOCK);
      forEscapes(value, [&](Val token, Val escaped, Val number) {
        Val counts = escaped == channel;
        if (isMasked())
          counts = counts & isSeen(h, token);
        e.when(counts, [&] {
          e.storeGlobal(fma(weightOf(get(scores, token), e.load(statistics, h * kStatistics + kMaximum)), number, get(slot, i)), slot, i);
        });
      });
    });
    // A row without weight has the identity as its state, whatever its scales were.
    e.when(sumOf(h) == 0, [&] { e.storeGlobal(real(0), slot, i); });
  });
  finish();
}

} // namespace

void aligned::emitMerge(ModuleOp program, StringRef name, const DecodeShape &shape) { MergeKernel(program, name, shape).emit(); }
