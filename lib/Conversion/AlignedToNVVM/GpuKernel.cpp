// See the header.
#include "GpuKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

GpuKernel::GpuKernel(ModuleOp program, StringRef name, int64_t warps, ArrayRef<Type> arguments)
    : builder(OpBuilder::atBlockEnd(program.getBody())), module(gpu::GPUModuleOp::create(builder, program.getLoc(), name)), name(name), warps(warps),
      threads(warps * GpuEmitter::kWarp), e(builder, module.getLoc()) {
  builder.setInsertionPointToEnd(module.getBody());
  function = gpu::GPUFuncOp::create(builder, module.getLoc(), name, builder.getFunctionType(arguments, {}));
  function->setAttr(gpu::GPUDialect::getKernelFuncAttrName(), builder.getUnitAttr());
  function.setKnownBlockSizeAttr(builder.getDenseI32ArrayAttr({int32_t(threads), 1, 1}));
  // As many blocks as there will be for each multiprocessor, where they fit: ptxas would save registers for more of them, and with them loads that are under way.
  function->setAttr(NVVM::NVVMDialect::getMinctasmAttrName(), builder.getI32IntegerAttr(warps > 4 ? 1 : 2));
  e.home = &function.getBody().front();
  e.b.setInsertionPointToStart(e.home);
  thread = e.thread();
  lane = thread & (GpuEmitter::kWarp - 1);
  warp = e.warp();
}

Val GpuKernel::address(Val number) { return e.wrap(LLVM::IntToPtrOp::create(e.b, e.globalPointer(), number.value)); }

Val GpuKernel::tokensOf(Val cache, Val batch) {
  Val lengths = field(cache, offsetof(aligned_cache, lengths));
  return convert(e.choose(
                     lengths != e.constant(e.i64(), 0), [&]() -> Vals { return {e.loadGlobal(address(lengths), e.i64(), batch)}; },
                     [&]() -> Vals { return {field(cache, offsetof(aligned_cache, tokens))}; })[0],
                 e.i32());
}

Places GpuKernel::placesOf(Val cache, Val capacity, Val row, Val batch, Val kvHeads, Val kvHead) {
  Val pages = field(cache, offsetof(aligned_cache, pages)), none = e.constant(e.i64(), 0);
  return {select(pages == none, none, pages + wide(batch * capacity) * 4), row * capacity, kvHeads, kvHead};
}

Val GpuKernel::placeAt(const Places &places, Val tile) {
  return e.choose(
      places.pages != e.constant(e.i64(), 0), [&]() -> Vals { return {e.loadGlobal(address(places.pages), e.i32(), tile) * places.kvHeads + places.kvHead}; },
      [&]() -> Vals { return {places.first + tile}; })[0];
}

Val GpuKernel::overSplits(Val first, Val splits, int64_t step, Val start, function_ref<Vals(Val)> load, function_ref<Val(Val, Vals)> add) {
  constexpr int64_t kAtOnce = 8;
  return e.loop(first, splits, step * kAtOnce, {start}, [&](Val s, Vals sum) {
    SmallVector<Vals> loaded;
    for (int64_t j = 0; j < kAtOnce; ++j)
      loaded.push_back(load(min(s + j * step, splits - 1)));
    for (int64_t j = 0; j < kAtOnce; ++j)
      sum[0] = select(s + j * step < splits, add(sum[0], loaded[j]), sum[0]);
    return sum;
  })[0];
}

Shared GpuKernel::addSplits(Val splits, int64_t width, function_ref<Vals(Val, Val)> load, function_ref<Val(Val, Vals)> add) {
  int64_t vectors = width / kVector, groups = groupsFor(width);
  Shared parts = shared("parts", e.f32(), groups * width);
  e.when(thread < groups * vectors, [&] {
    Val offset = thread % vectors * kVector, none = e.constant(VectorType::get(kVector, e.f32()), 0);
    e.store(overSplits(thread / vectors, splits, groups, none, [&](Val s) { return load(s, offset); }, add), parts, thread * kVector);
  });
  e.barrier();
  return parts;
}

Val GpuKernel::sumOf(Shared parts, int64_t width, Val at, int64_t lanes) {
  Val sum = e.load(parts, at, lanes);
  for (int64_t group = 1; group < groupsFor(width); ++group)
    sum = sum + e.load(parts, at + group * width, lanes);
  return sum;
}
