// See the header for the idea.
#include "DecodeKernel.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

DecodeKernel::DecodeKernel(gpu::GPUModuleOp module, StringRef name, const DecodeShape &shape)
    : shape(shape), module(module), builder(OpBuilder::atBlockEnd(module.getBody())), name(name), function([&] {
        Type pointer = LLVM::LLVMPointerType::get(module.getContext(), 1);
        SmallVector<Type> arguments(kArguments, pointer);
        arguments[static_cast<size_t>(Argument::Scale)] = builder.getF32Type();
        arguments[static_cast<size_t>(Argument::Splits)] = builder.getI32Type();
        return gpu::GPUFuncOp::create(builder, module.getLoc(), name, builder.getFunctionType(arguments, {}));
      }()),
      e(builder, module.getLoc()) {
  function->setAttr(gpu::GPUDialect::getKernelFuncAttrName(), builder.getUnitAttr());
  function.setKnownBlockSizeAttr(builder.getDenseI32ArrayAttr({int32_t(threads), 1, 1}));
  e.b.setInsertionPointToStart(&function.getBody().front());
  thread = e.thread();
  lane = thread & (GpuEmitter::kWarp - 1);
  warp = e.warp();
  split = e.block(gpu::Dimension::x);
  row = e.block(gpu::Dimension::y);
  splits = argument(Argument::Splits);
  g = shrLogical(lane, number(2));
  t = lane & 3;
  place = g & (kPlaces - 1);
  batch = row / shape.kvHeads;
  kvHead = row % shape.kvHeads;
  policies = HeadPolicies(shape, kvHead);
  key = view(Argument::Key, shape.keySplit, shape.keyDim, shape.key);
  value = view(Argument::Value, shape.valueSplit, shape.valueDim, shape.value);
}

Val DecodeKernel::rowOf(Argument which, Val count, Type element) { return e.at(argument(which), element ? element : e.f32(), wide(row) * wide(count)); }

CacheView DecodeKernel::view(Argument cache, SplitAttr split, int64_t headDim, Type element) {
  auto field = [&](int64_t offset) { return e.loadGlobal(e.at(argument(cache), e.i8(), number(offset)), e.i64(), number(0)); };
  auto pointer = [&](int64_t offset) { return e.wrap(LLVM::IntToPtrOp::create(e.b, e.globalPointer(), field(offset).value)); };
  Val none = e.constant(e.i64(), 0);
  CacheView view;
  Val lengths = field(offsetof(aligned_cache, lengths)), tokens = e.choose(
      lengths != none, [&]() -> Vals { return {e.loadGlobal(pointer(offsetof(aligned_cache, lengths)), e.i64(), batch)}; },
      [&]() -> Vals { return {field(offsetof(aligned_cache, tokens))}; })[0];
  view.tokens = convert(tokens, e.i32());
  view.blocks = shrLogical(view.tokens, number(6));
  view.open = view.tokens & (ALIGNED_BLOCK - 1);
  view.stride = shrLogical(convert(field(offsetof(aligned_cache, capacity)), e.i32()), number(6));
  view.layers = min(convert(field(offsetof(aligned_cache, layers)), e.i32()), number(residentLayers(split)));
  for (int64_t plane = 0; plane < split.getResident(); ++plane)
    view.plane[plane] = pointer(offsetof(aligned_cache, plane) + plane * sizeof(void *));
  view.exponent = pointer(offsetof(aligned_cache, exponent));
  view.pages = field(offsetof(aligned_cache, pages));
  view.channelMax = e.at(pointer(offsetof(aligned_cache, channel_max)), e.f32(), wide(row) * headDim);
  if (split.getRole() == CacheRole::Value)
    view.channelMean = e.at(pointer(offsetof(aligned_cache, channel_mean)), e.f32(), wide(row) * headDim);
  view.openTokens = e.at(pointer(offsetof(aligned_cache, open)), element, wide(row) * (ALIGNED_BLOCK * headDim));
  view.escape = pointer(offsetof(aligned_cache, escape));
  view.escapes = convert(min(field(offsetof(aligned_cache, escapes)), field(offsetof(aligned_cache, escape_capacity))), e.i32());
  return view;
}

Val DecodeKernel::physical(const CacheView &cache, Val block) {
  return e.choose(
      cache.pages != e.constant(e.i64(), 0),
      [&]() -> Vals {
        Val table = e.wrap(LLVM::IntToPtrOp::create(e.b, e.globalPointer(), cache.pages.value));
        return {e.loadGlobal(table, e.i32(), wide(batch) * wide(cache.stride) + wide(block)) * shape.kvHeads + kvHead};
      },
      [&]() -> Vals { return {row * cache.stride + block}; })[0];
}

std::pair<Val, Val> DecodeKernel::stretch(Val blocks) {
  Val each = (blocks + splits - 1) / splits, first = min(split * each, blocks);
  return {first, min(first + each, blocks)};
}

void DecodeKernel::forBlocksOfWarp(Val blocks, function_ref<void(Val)> body) {
  auto [first, end] = stretch(blocks);
  e.loop(first + shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))), end, warps / warpsPerBlock, body);
}

void DecodeKernel::meetSharers() {
  if (warpsPerBlock > 1) // barrier 0 is that of all threads
    e.barrier(shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))) + 1, warpsPerBlock * GpuEmitter::kWarp);
}

Shared DecodeKernel::statisticsOfRow() {
  Shared all = shared("statistics", e.f32(), shape.heads * kStatistics);
  Val statistics = rowOf(Argument::Statistics, splits * (shape.heads * kStatistics));
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Val lowest = real(kLowest);
    auto at = [&](Val s) { return (s * shape.heads + h) * kStatistics; };
    Vals tops = e.loop(lane, splits, GpuEmitter::kWarp, {real(-INFINITY), lowest, real(0)}, [&](Val s, Vals top) -> Vals {
      return {e.largest(get(statistics, at(s) + kMaximum), top[0]), e.largest(get(statistics, at(s) + kLoudest), top[1]),
              e.largest(get(statistics, at(s) + kExponent), top[2])};
    });
    for (Val &top : tops)
      top = warpMax(top);
    Val sum = e.loop(lane, splits, GpuEmitter::kWarp, {real(0)}, [&](Val s, Vals sum) -> Vals {
      return {sum[0] + get(statistics, at(s) + kSum) * weightOf(max(get(statistics, at(s) + kMaximum), lowest), tops[0])};
    })[0];
    sum = warpAdd(sum);
    e.when(lane == 0, [&] {
      for (auto [which, what] : {std::pair(kMaximum, tops[0]), std::pair(kSum, sum), std::pair(kLoudest, tops[1]), std::pair(kExponent, tops[2])})
        e.store(what, all, h * kStatistics + which);
    });
  });
  e.barrier();
  return all;
}

Val DecodeKernel::ofColumns(Val even, Val odd) {
  Val sum = convert(even, e.f32()) + convert(odd, e.f32()) * 256.0;
  return select((t & 1) == 1, sum * 65536.0, sum);
}

std::pair<Val, Val> DecodeKernel::bytesOf(Val upper, Val lower) {
  constexpr int64_t kLow = 0x0f0f0f0f;
  Val four = number(4);
  return {((upper & kLow) << four) | (lower & kLow), (upper & static_cast<int32_t>(0xf0f0f0f0)) | (shrLogical(lower, four) & kLow)};
}

void DecodeKernel::forEscapes(const CacheView &cache, function_ref<void(Val, Val, Val)> body) {
  e.loop(number(0), cache.escapes, 1, [&](Val i) {
    Val entry = e.at(cache.escape, e.i8(), wide(i) * sizeof(aligned_escape));
    auto field = [&](int64_t offset, Type type) { return e.loadGlobal(e.at(entry, e.i8(), number(offset)), type, number(0)); };
    e.when(field(offsetof(aligned_escape, row), e.i64()) == wide(row), [&] {
      body(convert(field(offsetof(aligned_escape, token), e.i64()), e.i32()), field(offsetof(aligned_escape, channel), e.i32()),
           field(offsetof(aligned_escape, value), e.f32()));
    });
  });
}
