// A query row's softmax state from those of its splits; one block of threads for each query row.
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
  int64_t dim = shape.valueDim;
  bool hasMeans = !shape.exact() && !isFloat(shape); // rows that are not read stand for their mean
  const Val h = split;                               // the query row: there are no splits here
  Vals statistics = statisticsOf(h);
  Val maximum = statistics[kMaximum], sum = statistics[kSum];
  if (!shape.maskedZero) // of a row whose scores are all -inf: 0 / 0, unless front ends guard against it
    sum = select((maximum == -INFINITY) & (key.tokens > 0), real(NAN), sum);
  e.when(thread == 0, [&] {
    e.storeGlobal(maximum, rowOf(Argument::Max, shape.heads), h);
    e.storeGlobal(sum, rowOf(Argument::Sum, shape.heads), h);
  });
  Val acc = ofHead(rowOf(Argument::Acc, shape.heads * dim), h, number(dim));
  int64_t width = hasMeans ? dim + kSeen : dim;
  Shared parts = addPartials(h, width);
  forThreads(dim, [&](Val channel) {
    Val out = sumOf(parts, width, channel);
    if (hasMeans)
      out = e.choose(key.blocks > 0, [&]() -> Vals { return {fma(sumOf(parts, width, number(dim)), meanOf(channel, statistics[kExponent]), out)}; }, [&]() -> Vals { return {out}; })[0];
    e.storeGlobal(out, acc, channel);
    e.when(value.escapes > 0, [&] {
      forEscapes(value, [&](Val token, Val escaped, Val number) {
        Val counts = escaped == channel;
        if (isMasked())
          counts = counts & isSeen(h, token);
        e.when(counts, [&] { e.storeGlobal(fma(weightOf(get(scoresOf(h), token), maximum), number, get(acc, channel)), acc, channel); });
      });
    });
    // A row without weight has the identity as its state, whatever its scales were.
    e.when(sum == 0, [&] { e.storeGlobal(real(0), acc, channel); });
  });
  finish();
}

} // namespace

void aligned::emitMerge(ModuleOp program, StringRef name, const DecodeShape &shape) { MergeKernel(program, name, shape).emit(); }
