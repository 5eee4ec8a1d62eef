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

/// All warps weigh the states; each adds up the outputs of some splits, several at once so that their loads are under way together.
void DenseMergeKernel::emit() {
  constexpr int64_t kAtOnce = 8;
  int64_t dim = shape.valueDim, vectors = dim / kVector;
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
  Shared totals = shared("totals", e.f32(), warps * dim);
  e.loop(lane, number(vectors), GpuEmitter::kWarp, [&](Val i) {
    Val total = e.loop(warp, splits, warps * kAtOnce, {e.constant(some, 0)}, [&](Val first, Vals total) {
      Vals numbers, parts, maxima;
      for (int64_t j = 0; j < kAtOnce; ++j) {
        numbers.push_back(first + j * warps);
        Val s = min(numbers[j], splits - 1);
        parts.push_back(e.loadGlobal(partial, some, (s * shape.heads + h) * dim + i * kVector, /*constant=*/false));
        maxima.push_back(of(s, kMaximum));
      }
      for (int64_t j = 0; j < kAtOnce; ++j)
        total[0] = select(numbers[j] < splits, fma(parts[j], e.splat(weightOf(maxima[j], top), kVector), total[0]), total[0]);
      return total;
    })[0];
    e.store(total, totals, warp * dim + i * kVector);
  });
  e.barrier();
  Val acc = rowOf(DenseArgument::Acc, shape.heads * dim, e.f32());
  forThreads(vectors, [&](Val i) {
    Val total = e.load(totals, i * kVector, kVector);
    for (int64_t other = 1; other < warps; ++other)
      total = total + e.load(totals, i * kVector + other * dim, kVector);
    // A row without weight has the identity as its state.
    e.storeGlobal(select(sum == 0, e.constant(some, 0), total), acc, h * dim + i * kVector);
  });
  finish();
}

} // namespace

void aligned::emitDenseMerge(ModuleOp program, StringRef name, const DecodeShape &shape) { DenseMergeKernel(program, name, shape).emit(); }
