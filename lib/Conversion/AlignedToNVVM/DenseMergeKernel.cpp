// What kernels over dense caches share, and a query row's softmax state from those of its splits; one block of threads for each query row.
#include "DenseKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

using namespace mlir;
using namespace aligned;

/// Pointers, but for three.
static SmallVector<Type> argumentTypes(MLIRContext *context) {
  Builder b(context);
  SmallVector<Type> arguments(kDenseArguments, LLVM::LLVMPointerType::get(context, 1));
  arguments[static_cast<size_t>(DenseArgument::Scale)] = b.getF32Type();
  arguments[static_cast<size_t>(DenseArgument::Splits)] = b.getI32Type();
  arguments[static_cast<size_t>(DenseArgument::Capacity)] = b.getI32Type();
  return arguments;
}

DenseKernel::DenseKernel(ModuleOp program, StringRef name, const DecodeShape &shape)
    : GpuKernel(program, name, /*warps=*/4, argumentTypes(program.getContext())), shape(shape) {
  row = e.block(gpu::Dimension::y);
  splits = argument(DenseArgument::Splits);
  capacity = argument(DenseArgument::Capacity);
  Val length = e.loadGlobal(argument(DenseArgument::Lengths), e.i64(), row / shape.kvHeads);
  tokens = convert(max(min(length, wide(capacity)), 0), e.i32());
}

namespace {

class DenseMergeKernel : public DenseKernel {
public:
  using DenseKernel::DenseKernel;
  void emit();
};

/// All warps weigh the states, and all threads add up the outputs of some splits.
void DenseMergeKernel::emit() {
  int64_t dim = shape.valueDim;
  Val h = e.block(gpu::Dimension::x), statistics = ofSplits(DenseArgument::Statistics, shape.heads * kDenseStatistics), partial = ofSplits(DenseArgument::Partial, shape.heads * dim);
  auto of = [&](Val s, Statistic which) { return get(statistics, (s * shape.heads + h) * kDenseStatistics + which); };
  Val top = e.loop(lane, splits, GpuEmitter::kWarp, {real(-INFINITY)}, [&](Val s, Vals top) -> Vals { return {e.largest(of(s, kMaximum), top[0])}; })[0];
  top = warpMax(top);
  Val sum = e.loop(lane, splits, GpuEmitter::kWarp, {real(0)}, [&](Val s, Vals sum) -> Vals { return {fma(of(s, kSum), weightOf(of(s, kMaximum), top), sum[0])}; })[0];
  sum = warpAdd(sum);
  if (!shape.maskedZero) // of a row whose scores are all -inf: 0 / 0, unless front ends guard against it
    sum = select((top == -INFINITY) & (tokens > 0), real(NAN), sum);
  e.when(thread == 0, [&] {
    e.storeGlobal(top, rowOf(DenseArgument::Max, shape.heads, e.f32()), h);
    e.storeGlobal(sum, rowOf(DenseArgument::Sum, shape.heads, e.f32()), h);
  });

  Type some = VectorType::get(kVector, e.f32());
  Shared parts = addSplits(
      splits, dim,
      [&](Val s, Val offset) -> Vals { return {e.loadGlobal(partial, some, (s * shape.heads + h) * dim + offset, /*constant=*/false), of(s, kMaximum)}; },
      [&](Val sum, Vals loaded) { return fma(loaded[0], e.splat(weightOf(loaded[1], top), kVector), sum); });
  Val acc = rowOf(DenseArgument::Acc, shape.heads * dim, e.f32());
  forThreads(dim / kVector, [&](Val i) {
    // A row without weight has the identity as its state.
    e.storeGlobal(select(sum == 0, e.constant(some, 0), sumOf(parts, dim, i * kVector, kVector)), acc, h * dim + i * kVector);
  });
  finish();
}

} // namespace

void aligned::emitDenseMerge(ModuleOp program, StringRef name, const DecodeShape &shape) { DenseMergeKernel(program, name, shape).emit(); }
