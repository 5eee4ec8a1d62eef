// See the header for the idea.
#include "StepKernel.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

PreparedRow::PreparedRow(const DecodeShape &shape) {
  int64_t next = 0;
  auto take = [&](int64_t words) { return std::exchange(next, next + llvm::alignTo(words, 4)); }; // vectors of four
  const int64_t padded = paddedRows(shape);
  columns = 2 * padded;
  raw = take(columns * shape.keyDim / 8);
  low = take(columns * shape.keyDim / 8);
  full = take(columns * shape.keyDim / 4);
  heads = take(padded * int64_t(HeadFact::Count));
  row = take(int64_t(RowFact::Count));
  mean = take(shape.valueDim);
  keyTable = take(128);
  valueTable = take(128);
  size = next;
}

StepKernel::StepKernel(ModuleOp program, StringRef name, const DecodeShape &shape) : DecodeKernel(program, name, shape, kStepWarps) {
  key = stepViewOf(Argument::Key, shape.keyPlanes);
  value = stepViewOf(Argument::Value, shape.valuePlanes);
  prepared = ofRow(Argument::Prepared, e.i32(), at.size);
}

StepCache StepKernel::stepViewOf(Argument which, PlanesAttr planes) {
  Val cache = argument(which);
  return {viewOf(which, planes), addressOf(cache, offsetof(aligned_cache, code)),
          e.at(addressOf(cache, offsetof(aligned_cache, scales)), e.i8(), wide(row) * int64_t(sizeof(aligned_scales))), convert(small(which, offsetof(aligned_cache, bias)), e.f32())};
}

Val StepKernel::sinkOf(Val h) {
  Val logit = sinkLogit(clamped(h)) * kLog2e;
  return shape.hasSoftcap() ? logit : logit - headFact(h, HeadFact::Shift);
}

Val StepKernel::coarseScore(Val h, Val token, Val top) {
  Val tile = shrLogical(token, number(6)), pair = shrLogical(token, number(1));
  Val score = e.loadGlobal(tileScores(), scoreType(), (pair * allRows + h) * 2 + (token & 1), false);
  return convert(score, e.f32()) + (e.loadGlobal(tileTops(), e.f32(), (tile * allRows + h) * 2, false) - top);
}

void StepKernel::joinSplits(Val counter, Val index, Shared last, function_ref<void()> body) {
  e.fence();
  e.barrier();
  e.when(thread == 0, [&] {
    Val before = e.atomicAdd(number(1), counter, index);
    e.fence();
    e.store(before, last, number(0));
  });
  e.barrier();
  e.when(e.load(last, number(0)) == splits - 1, body);
}

Val StepKernel::masked(Val score, Val number) {
  if (!number.isFloat())
    return select(number != 0, score, real(-INFINITY));
  Val sum = fma(number, real(kLog2e), score);
  return select((score == real(-INFINITY)) | (number == real(-INFINITY)), real(-INFINITY), sum); // what is hidden stays so, whatever the other is
}

LogicalResult aligned::checkStep(Operation *op, const DecodeShape &shape) {
  for (auto [name, planes] : {std::pair("key", shape.keyPlanes), std::pair("value", shape.valuePlanes)})
    if (planes.getWidths() != ArrayRef<int64_t>{4, 4, 8})
      return op->emitOpError("expected the ") << name << "'s planes to be fixed<4, 4, 8> on this target, got " << planes;
  constexpr int64_t kMostRows = 16;
  if (shape.heads > kMostRows)
    return op->emitOpError("expected at most ") << kMostRows << " query rows per kv head on this target, got " << shape.heads;
  return success();
}
