// See the header for the idea.
#include "DecodeKernel.h"

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

Val GpuKernel::physical(Val pages, Val stride, Val row, Val batch, Val kvHeads, Val kvHead, Val block) {
  return e.choose(
      pages != e.constant(e.i64(), 0),
      [&]() -> Vals { return {e.loadGlobal(address(pages), e.i32(), wide(batch) * wide(stride) + wide(block)) * kvHeads + kvHead}; },
      [&]() -> Vals { return {row * stride + block}; })[0];
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

/// Pointers, but for two.
static SmallVector<Type> argumentTypes(MLIRContext *context, const DecodeShape &shape) {
  Builder b(context);
  SmallVector<Type> arguments(shape.certified ? kCertifyingArguments : kArguments, LLVM::LLVMPointerType::get(context, 1));
  arguments[static_cast<size_t>(Argument::Scale)] = b.getF32Type();
  arguments[static_cast<size_t>(Argument::Splits)] = b.getI32Type();
  return arguments;
}

DecodeKernel::DecodeKernel(ModuleOp program, StringRef name, const DecodeShape &shape, int64_t warps)
    : GpuKernel(program, name, warps, argumentTypes(program.getContext(), shape)), shape(shape) {
  split = e.block(gpu::Dimension::x);
  row = e.block(gpu::Dimension::y);
  splits = argument(Argument::Splits);
  g = shrLogical(lane, number(2));
  t = lane & 3;
  place = g & (kPlaces - 1);
  batch = row / shape.kvHeads;
  kvHead = row % shape.kvHeads;
  policies = HeadPolicies(shape, kvHead);
  key = view(Argument::Key, shape.keyPlanes, shape.keyDim, shape.key);
  value = view(Argument::Value, shape.valuePlanes, shape.valueDim, shape.value);
  seenBlocks = key.blocks;
  if (isMasked()) {
    visible = visibleBlocks(key.blocks, key.tokens, shape);
    seenBlocks = visible.sinks + visible.end - visible.begin;
  }
}

Val DecodeKernel::rowOf(Argument which, Val count, Type element) { return e.at(argument(which), element ? element : e.f32(), wide(row) * wide(count)); }

CacheView DecodeKernel::view(Argument which, PlanesAttr split, int64_t headDim, Type element) {
  Val cache = argument(which);
  auto small = [&](int64_t offset) { return convert(field(cache, offset), e.i32()); };
  auto ofRow = [&](int64_t offset, Type element, int64_t count) { return e.at(addressOf(cache, offset), element, wide(row) * count); };
  CacheView view;
  view.tokens = tokensOf(cache, batch);
  view.blocks = shrLogical(view.tokens, number(6));
  view.open = view.tokens & (ALIGNED_BLOCK - 1);
  view.stride = shrLogical(small(offsetof(aligned_cache, capacity)), number(6));
  view.layers = min(small(offsetof(aligned_cache, layers)), number(residentLayers(split)));
  for (int64_t plane = 0; plane < split.getResident(); ++plane)
    view.plane[plane] = addressOf(cache, offsetof(aligned_cache, plane) + plane * sizeof(void *));
  view.exponent = addressOf(cache, offsetof(aligned_cache, exponent));
  view.pages = field(cache, offsetof(aligned_cache, pages));
  view.channelMax = ofRow(offsetof(aligned_cache, channel_max), e.f32(), headDim);
  if (split.getRole() == CacheRole::Value)
    view.channelMean = ofRow(offsetof(aligned_cache, channel_mean), e.f32(), headDim);
  view.openTokens = ofRow(offsetof(aligned_cache, open), element, ALIGNED_BLOCK * headDim);
  view.escape = addressOf(cache, offsetof(aligned_cache, escape));
  view.escapes = convert(min(field(cache, offsetof(aligned_cache, escapes)), field(cache, offsetof(aligned_cache, escape_capacity))), e.i32());
  return view;
}

Val DecodeKernel::isAsked(Argument record) {
  return e.wrap(LLVM::PtrToIntOp::create(e.b, e.i64(), argument(record).value)) != e.constant(e.i64(), 0);
}

Val DecodeKernel::blockAt(Val index) { return isMasked() ? index + select(index < visible.sinks, number(0), visible.begin - visible.sinks) : index; }

Val DecodeKernel::tokenAt(Val index) {
  return isMasked() ? index + select(index < visible.sinks * ALIGNED_BLOCK, number(0), (visible.begin - visible.sinks) * ALIGNED_BLOCK) : index;
}

Val DecodeKernel::seenScore(Val score, Val h, Val token) {
  if (shape.softcap)
    score = softcapped(score, shape.softcap);
  return isMasked() ? select(isSeen(h, token), score, real(-INFINITY)) : score;
}

Val DecodeKernel::meanOf(Val channel, Val top) {
  Val mean = get(value.channelMean, channel);
  if (!isMasked())
    return mean;
  Val most = unitScale(convert(top, e.i32())) * 32768.0;
  return e.smallest(e.largest(mean, -most), most);
}

std::pair<Val, Val> DecodeKernel::stretch() {
  Val each = (seenBlocks + splits - 1) / splits, first = min(split * each, seenBlocks);
  return {first, min(first + each, seenBlocks)};
}

void DecodeKernel::forBlocksOfWarp(function_ref<void(Val, Val)> body) {
  auto [first, end] = stretch();
  Val behind = end;
  int64_t step = warps / warpsPerBlock;
  e.loop(first + shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))), behind, step, [&](Val index) { body(blockAt(index), blockAt(min(index + step, behind - 1))); });
}

void DecodeKernel::meetSharers() {
  if (warpsPerBlock == 1)
    e.warpBarrier();
  else // barrier 0 is that of all threads
    e.barrier(shrLogical(warp, number(llvm::Log2_64(warpsPerBlock))) + 1, warpsPerBlock * GpuEmitter::kWarp);
}

Vals DecodeKernel::statisticsOf(Val h) {
  Val ofSplits = rowOf(Argument::Statistics, splits * (shape.heads * kStatistics)), lowest = real(kLowest);
  auto at = [&](Val s) { return (s * shape.heads + h) * kStatistics; };
  Vals tops = e.loop(lane, splits, GpuEmitter::kWarp, {real(-INFINITY), lowest, real(0)}, [&](Val s, Vals top) -> Vals {
    return {e.largest(get(ofSplits, at(s) + kMaximum), top[0]), e.largest(get(ofSplits, at(s) + kLoudest), top[1]),
            e.largest(get(ofSplits, at(s) + kExponent), top[2])};
  });
  for (Val &top : tops)
    top = warpMax(top);
  Val sum = e.loop(lane, splits, GpuEmitter::kWarp, {real(0)}, [&](Val s, Vals sum) -> Vals {
    return {sum[0] + get(ofSplits, at(s) + kSum) * weightOf(max(get(ofSplits, at(s) + kMaximum), lowest), tops[0])};
  })[0];
  return {tops[0], warpAdd(sum), tops[1], tops[2]};
}

void DecodeKernel::shareStatistics(Readers readers) {
  statistics = shared("statistics", e.f32(), shape.heads * kStatistics);
  forHeadsOfWarp(shape.heads, [&](Val h) {
    Vals ofHead = statisticsOf(h);
    e.when(lane == 0, [&] {
      for (int64_t which = 0; which < kStatistics; ++which)
        e.store(ofHead[which], statistics, h * kStatistics + which);
    });
  });
  if (readers == Readers::All)
    e.barrier();
  else
    e.warpBarrier();
}

Shared DecodeKernel::addPartials(Val h, int64_t width) {
  int64_t stride = shape.valueDim + kSeen;
  Val partial = rowOf(Argument::Partial, splits * (shape.heads * stride));
  return addSplits(
      splits, width,
      [&](Val s, Val offset) -> Vals { return {e.loadGlobal(partial, VectorType::get(kVector, e.f32()), (s * shape.heads + h) * stride + offset, /*constant=*/false)}; },
      [](Val sum, Vals loaded) { return sum + loaded[0]; });
}

Val DecodeKernel::loudestReach(Val h) {
  auto of = [&](Statistic which) { return statistic(h, which); };
  return e.exp2(of(kLoudest) - max(of(kMaximum), real(kLowest)) * kLog2e - of(kExponent)) / of(kSum);
}

Val DecodeKernel::isPlanOpen() {
  Val plan = rowOf(Argument::Plan, shape.heads * kPlanNumbers), least = real(INFINITY);
  for (int64_t h = 0; h < shape.heads; ++h)
    least = min(get(plan, number(h * kPlanNumbers + kPrecisionK)), least);
  return least < INFINITY;
}

Val DecodeKernel::ofColumns(Val even, Val odd) {
  Val sum = convert(even, e.f32()) + convert(odd, e.f32()) * 256.0;
  return select((t & 1) == 1, sum * 65536.0, sum);
}

std::pair<Val, Val> DecodeKernel::bytesOf(Val upper, Val lower) {
  Val four = number(4);
  return {e.selectBits(0x0f0f0f0f, lower, upper << four), e.selectBits(0xf0f0f0f0, upper, shrLogical(lower, four))};
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
