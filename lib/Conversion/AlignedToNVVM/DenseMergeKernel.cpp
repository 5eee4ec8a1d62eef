// What kernels over dense caches share, and the row's softmax state from those of its splits; one block of threads for each row.
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

DenseKernel::DenseKernel(gpu::GPUModuleOp module, StringRef name, const DecodeShape &shape)
    : GpuKernel(module, name, /*warps=*/4, argumentTypes(module.getContext())), shape(shape) {
  split = e.block(gpu::Dimension::x);
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

void DenseMergeKernel::emit() {
  int64_t dim = shape.valueDim;
  Shared maxima = shared("maxima", e.f32(), shape.heads), sums = shared("sums", e.f32(), shape.heads);
  Val statistics = ofSplits(DenseArgument::Statistics, shape.heads * kDenseStatistics), partial = ofSplits(DenseArgument::Partial, shape.heads * dim);
  auto of = [&](Val s, Val h, Statistic which) { return get(statistics, (s * shape.heads + h) * kDenseStatistics + which); };
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val top = e.loop(lane, splits, GpuEmitter::kWarp, {real(-INFINITY)}, [&](Val s, Vals top) -> Vals { return {e.largest(of(s, h, kMaximum), top[0])}; })[0];
    top = warpMax(top);
    Val sum = e.loop(lane, splits, GpuEmitter::kWarp, {real(0)}, [&](Val s, Vals sum) -> Vals { return {fma(of(s, h, kSum), weightOf(of(s, h, kMaximum), top), sum[0])}; })[0];
    sum = warpAdd(sum);
    if (!shape.maskedZero) // of a row whose scores are all -inf: 0 / 0, unless front ends guard against it
      sum = select((top == -INFINITY) & (tokens > 0), real(NAN), sum);
    e.when(lane == 0, [&] {
      e.store(top, maxima, h);
      e.store(sum, sums, h);
      e.storeGlobal(top, rowOf(DenseArgument::Max, shape.heads, e.f32()), h);
      e.storeGlobal(sum, rowOf(DenseArgument::Sum, shape.heads, e.f32()), h);
    });
  });
  e.barrier();
  Val acc = rowOf(DenseArgument::Acc, shape.heads * dim, e.f32());
  Type some = VectorType::get(kVector, e.f32());
  forThreads(shape.heads * dim / kVector, [&](Val i) {
    Val h = i / (dim / kVector), top = e.load(maxima, h);
    // Some splits at once, so that their loads are under way together.
    auto add = [&](int64_t count) {
      return [&, count](Val first, Vals total) -> Vals {
        Vals parts, weights;
        for (int64_t j = 0; j < count; ++j) {
          parts.push_back(e.loadGlobal(partial, some, (first + j) * (shape.heads * dim) + i * kVector, /*constant=*/false));
          weights.push_back(of(first + j, h, kMaximum));
        }
        for (int64_t j = 0; j < count; ++j)
          total[0] = fma(parts[j], e.splat(weightOf(weights[j], top), kVector), total[0]);
        return total;
      };
    };
    constexpr int64_t kAtOnce = 8;
    Val together = splits & -kAtOnce;
    Vals total = e.loop(number(0), together, kAtOnce, {e.constant(some, 0)}, add(kAtOnce));
    total = e.loop(together, splits, 1, total, add(1));
    // A row without weight has the identity as its state.
    e.storeGlobal(select(e.load(sums, h) == 0, e.constant(some, 0), total[0]), acc, i * kVector);
  });
  finish();
}

} // namespace

void aligned::emitDenseMerge(gpu::GPUModuleOp module, StringRef name, const DecodeShape &shape) { DenseMergeKernel(module, name, shape).emit(); }
