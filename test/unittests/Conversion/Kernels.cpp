// See the header.
#include "Kernels.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"
#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/ExecutionEngine/OptUtils.h"
#include "mlir/InitAllPasses.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h"
#include "llvm/Support/TargetSelect.h"

using namespace mlir;
using namespace aligned;

namespace {

/// What a kernel is given, 8 bytes each.
enum class Slot {
  Query,
  Key,
  Value,
  Scale,
  Row,
  Split,
  Later,
  Mask,
  Sinks,
  Digits,
  Facts,
  Mean,
  Scores,
  Tops,
  Parts,
  Acc,
  Max,
  Sum,
  Certificate
};
constexpr int kSlots = int(Slot::Certificate) + 1;

const DialectRegistry &dialects() {
  static const DialectRegistry *registry = [] {
    llvm::InitializeNativeTarget();
    llvm::InitializeNativeTargetAsmPrinter();
    registerAllPasses();
    auto *registry = new DialectRegistry;
    registerDialects(*registry);
    return registry;
  }();
  return *registry;
}

LimitsAttr limitsOf(MLIRContext *context, const aligned_stage_side &side, const aligned_stage_age *ages) {
  SmallVector<AgeBits> steps;
  for (int64_t i = 0; i < side.ages; ++i)
    steps.push_back({ages[i].age, ages[i].bits});
  auto tolerance = side.tolerance ? FloatAttr::get(Float64Type::get(context), side.tolerance) : FloatAttr();
  return LimitsAttr::get(context, tolerance, BitRange{side.least, side.most}, side.newest, side.sinks, steps);
}

} // namespace

Kernels::Kernels(const StoredStep &step, Isa isa) : context(dialects(), MLIRContext::Threading::DISABLED) {
  context.loadAllAvailableDialects();
  compile(shapeOf(step, isa));
}

KernelShape Kernels::shapeOf(const StoredStep &step, Isa isa) {
  const aligned_stage &stage = step.stage;
  Builder b(&context);
  auto elementOf = [&](int64_t element) -> Type {
    return element == ALIGNED_ELEMENT_F16    ? Type(b.getF16Type())
           : element == ALIGNED_ELEMENT_BF16 ? Type(b.getBF16Type())
           : element == ALIGNED_ELEMENT_F32  ? Type(b.getF32Type())
                                             : Type(b.getI1Type());
  };
  auto planesOf = [&](const aligned_cache &cache, CacheRole role, int64_t resident) {
    SmallVector<int64_t> widths(cache.format.width, cache.format.width + cache.format.planes);
    return PlanesAttr::get(&context, FormatKind::Fixed, widths, role, resident);
  };
  KernelShape shape{};
  shape.isa = isa;
  shape.kvHeads = stage.kv_heads;
  shape.heads = stage.group * stage.queries;
  shape.queries = stage.queries;
  shape.keyDim = stage.key_dim;
  shape.valueDim = stage.value_dim;
  shape.query = shape.key = shape.value = elementOf(stage.element);
  shape.keyPlanes = planesOf(*step.key, CacheRole::Key, stage.key_planes);
  shape.valuePlanes = planesOf(*step.value, CacheRole::Value, stage.value_planes);
  const aligned_stage_age *age = stage.ages;
  for (int64_t head = 0; head < stage.kv_heads; ++head) {
    const aligned_stage_side *side = stage.sides + 2 * head;
    LimitsAttr key = limitsOf(&context, side[0], age), value = limitsOf(&context, side[1], age + side[0].ages);
    age += side[0].ages + side[1].ages;
    shape.policies.push_back(
        stage.exact ? PolicyAttr::get(&context, PolicyKind::Exact)
                    : PolicyAttr::get(&context, PolicyKind::Budget, FloatAttr::get(b.getF64Type(), 0.5), key, value));
  }
  shape.maskedZero = stage.masked_zero;
  shape.certified = true;
  if (stage.causal || stage.window) {
    shape.mask = MaskAttr::get(&context, stage.causal != 0, stage.window, stage.sinks);
    shape.later = step.rows.front().mask.later != 0;
  }
  shape.softcap = stage.softcap;
  if (step.maskData()) {
    const int64_t heads = stage.mask_heads ? stage.kv_heads * stage.group : 1, batch = stage.mask_batch ? step.key->batch : 1;
    // One and all are the same where there is one.
    shape.attnMask = MemRefType::get({batch, heads, stage.mask_queries ? stage.queries : 1, ShapedType::kDynamic},
                                     elementOf(stage.mask_element));
  }
  shape.sinkLogits = step.sinks() != nullptr;
  return shape;
}

void Kernels::compile(const KernelShape &shape) {
  OwningOpRef<ModuleOp> module =
      parseSourceString<ModuleOp>("func.func private @aligned_rt_tally(i32, i64, i64, i64, i64)\n"
                                  "func.func private @aligned_rt_bits(i32, i64, i64, i64, i64, !llvm.ptr, !llvm.ptr)\n"
                                  "func.func private @aligned_rt_recording() -> i32\n",
                                  ParserConfig(&context));
  OpBuilder b = OpBuilder::atBlockEnd(module->getBody());
  for (StringRef stage : {"prepare", "scan", "attend"}) {
    auto kernel =
        func::FuncOp::create(b, b.getUnknownLoc(), stage, b.getFunctionType({LLVM::LLVMPointerType::get(&context)}, {}));
    kernel->setAttr(LLVM::LLVMDialect::getEmitCWrapperAttrName(), b.getUnitAttr());
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(kernel.addEntryBlock());
    Emitter e(b, b.getUnknownLoc());
    Val arguments = e.wrap(kernel.getArgument(0));
    Type index = e.types.getIndexType();
    auto slot = [&](Slot which, Type type) { return e.field(arguments, 8 * int(which), type); };
    auto buffer = [&](Slot which, Type element) { return e.buffer(slot(which, e.pointer()), element); };
    StepInputs in{slot(Slot::Query, e.pointer()), slot(Slot::Key, e.pointer()),  slot(Slot::Value, e.pointer()),
                  slot(Slot::Scale, e.f32()),     slot(Slot::Later, index),      e.constant(e.i32(), 0),
                  slot(Slot::Mask, e.pointer()),  slot(Slot::Sinks, e.pointer())};
    StepBuffers buffers{buffer(Slot::Digits, e.i8()),  buffer(Slot::Facts, e.f32()), buffer(Slot::Mean, e.f32()),
                        buffer(Slot::Scores, e.f32()), buffer(Slot::Tops, e.f32()),  buffer(Slot::Parts, e.f32())};
    Val row = slot(Slot::Row, index), split = slot(Slot::Split, index);
    if (stage == "prepare")
      emitPrepare(e, shape, in, row, buffers);
    else if (stage == "scan")
      emitScan(e, shape, in, row, split, buffers);
    else
      emitAttend(e, shape, in, row, split, buffers,
                 {buffer(Slot::Acc, e.f32()), buffer(Slot::Max, e.f32()), buffer(Slot::Sum, e.f32()),
                  buffer(Slot::Certificate, e.f32())});
    func::ReturnOp::create(e.b);
  }

  PassManager passes(&context);
  ASSERT_TRUE(succeeded(parsePassPipeline(
      "canonicalize,cse,expand-strided-metadata,lower-affine,canonicalize,cse,convert-scf-to-cf,math-expand-ops,arith-expand{"
      "include-bf16=true},"
      "convert-vector-to-llvm{vector-transpose-lowering=shuffle1d},convert-math-to-llvm,convert-math-to-libm,convert-to-llvm,"
      "reconcile-unrealized-casts,canonicalize,cse",
      passes)));
  ASSERT_TRUE(succeeded(passes.run(*module)));
  auto host = llvm::cantFail(llvm::orc::JITTargetMachineBuilder::detectHost());
  host.setCodeGenOptLevel(llvm::CodeGenOptLevel::Aggressive);
  host.getOptions().AllowFPOpFusion = llvm::FPOpFusion::Fast;
  machine = llvm::cantFail(host.createTargetMachine());
  auto optimise = makeOptimizingTransformer(/*optLevel=*/3, /*sizeLevel=*/0, machine.get());
  ExecutionEngineOptions options;
  options.transformer = optimise;
  options.jitCodeGenOptLevel = llvm::CodeGenOptLevel::Aggressive;
  engine = llvm::cantFail(ExecutionEngine::create(*module, options, llvm::cantFail(host.createTargetMachine())));
  engine->registerSymbols([](llvm::orc::MangleAndInterner intern) {
    llvm::orc::SymbolMap symbols;
    auto add = [&](const char *name, auto *function) {
      symbols[intern(name)] = {llvm::orc::ExecutorAddr::fromPtr(function), llvm::JITSymbolFlags::Exported};
    };
    add("aligned_rt_tally", &aligned_rt_tally);
    add("aligned_rt_bits", &aligned_rt_bits);
    add("aligned_rt_recording", &aligned_rt_recording);
    return symbols;
  });
  engine->initialize();
}

void Kernels::call(const char *stage, const StoredStep &step, int64_t row, int64_t split, Buffers &b) const {
  const bool scans = stage[0] == 's';
  int64_t slots[kSlots] = {};
  auto pass = [&](Slot slot, const auto *pointer) { slots[int(slot)] = reinterpret_cast<int64_t>(pointer); };
  const float scale = static_cast<float>(step.rows[row].scale);
  std::memcpy(&slots[int(Slot::Scale)], &scale, sizeof scale);
  slots[int(Slot::Row)] = row;
  slots[int(Slot::Split)] = split;
  slots[int(Slot::Later)] = step.rows[row].mask.later;
  pass(Slot::Query, step.query.data());
  pass(Slot::Key, step.key.get());
  pass(Slot::Value, step.value.get());
  pass(Slot::Mask, static_cast<const char *>(step.maskData()));
  pass(Slot::Sinks, step.sinks());
  pass(Slot::Digits, b.digits.data());
  pass(Slot::Facts, b.facts.data());
  pass(Slot::Mean, b.mean.data());
  pass(Slot::Scores, b.scoresOf(split));
  pass(Slot::Tops, b.topsOf(split));
  pass(Slot::Parts, scans ? b.partOf(split) : b.parts.data());
  pass(Slot::Acc, b.accOf(split));
  pass(Slot::Max, b.maxOf(split));
  pass(Slot::Sum, b.sumOf(split));
  pass(Slot::Certificate, b.certificateOf(split));
  void *arguments = slots;
  llvm::cantFail(engine->invoke(stage, arguments));
}

void Kernels::attend(const StoredStep &step, int64_t row, Buffers &b, bool record) const {
  auto listen = [](void *context, int32_t, int64_t, int64_t first, int64_t tokens, int64_t, const uint8_t *key,
                   const uint8_t *value) {
    auto &b = *static_cast<Buffers *>(context);
    std::copy_n(key, tokens, b.keyBits.begin() + first);
    std::copy_n(value, tokens, b.valueBits.begin() + first);
  };
  aligned_rt_record_bits(record ? listen : nullptr, &b);
  for (int64_t split = 0; split < step.splits(); ++split)
    call("attend", step, row, split, b);
  aligned_rt_record_bits(nullptr, nullptr);
}
