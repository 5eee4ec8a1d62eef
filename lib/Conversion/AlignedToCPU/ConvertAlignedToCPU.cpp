// convert-aligned-to-cpu: kernels out of decode attention, runtime calls out of caches.
//
// All of it on buffers. Each decode op packs its arguments into slots of memory and hands the kernel, a function over a range of rows, to the runtime's threads.
#include "ConvertCaches.h"
#include "ConvertStages.h"
#include "RowKernel.h"
#include "Surroundings.h"
#include "aligned/Conversion/AlignedToCPU/Kernels.h"
#include "aligned/Conversion/AlignedToCPU/Passes.h"
#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Transforms/DialectConversion.h"

namespace aligned {
#define GEN_PASS_DEF_CONVERTALIGNEDTOCPU
#include "aligned/Conversion/AlignedToCPU/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

//===----------------------------------------------------------------------===//
// Kernels
//===----------------------------------------------------------------------===//

std::unique_ptr<RowKernel> makeKernel(Emitter &e, const KernelShape &shape) {
  return shape.keyPlanes && !shape.denseCopy ? makeFloatKernel(e, shape) : makeDenseKernel(e, shape);
}

/// func @name(%arguments: ptr, %begin: i64, %end: i64): rows begin .. end - 1.
func::FuncOp emitKernel(ModuleOp module, Location loc, StringRef name, const KernelShape &shape) {
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  Type pointer = LLVM::LLVMPointerType::get(b.getContext()), i64 = b.getI64Type();
  auto kernel = func::FuncOp::create(b, loc, name, b.getFunctionType({pointer, i64, i64}, {}));
  kernel.setPrivate();
  kernel->setAttr("passthrough", b.getStrArrayAttr({kKernelAttribute, kShortLoopsAttribute}));
  b.setInsertionPointToStart(kernel.addEntryBlock());
  Emitter e(b, loc);
  Val arguments = e.wrap(kernel.getArgument(0));
  Val begin = convert(e.wrap(kernel.getArgument(1)), b.getIndexType()), end = convert(e.wrap(kernel.getArgument(2)), b.getIndexType());
  e.loop(begin, end, 1, [&](Val row) { makeKernel(e, shape)->emit(arguments, row); });
  func::ReturnOp::create(e.b);
  return kernel;
}

FailureOr<KernelShape> kernelShape(DecodeAttentionOp op, Isa isa) {
  FailureOr<DecodeShape> shape = decodeShape(op);
  if (failed(shape))
    return failure();
  if (op.readsFixedPlanes())
    return op.emitOpError("expected stages where caches have fixed planes: run aligned-stage-decode-attention first");
  return KernelShape{*shape, isa};
}

struct ConvertDecodeAttention : OpConversionPattern<DecodeAttentionOp> {
  ConvertDecodeAttention(const TypeConverter &types, MLIRContext *context, SymbolTable &symbols, Isa isa)
      : OpConversionPattern(types, context), symbols(symbols), isa(isa) {}

  LogicalResult matchAndRewrite(DecodeAttentionOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    FailureOr<KernelShape> shape = kernelShape(op, isa); // checked before the conversion began
    if (failed(shape))
      return failure();
    if (op.getTargets().empty())
      return rewriter.notifyMatchFailure(op, "expected buffers, got tensors: they are bufferized first");
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    func::FuncOp kernel = insertKernel(op, *shape, rewriter);

    Value slots = around.slots(kSlots);
    auto pass = [&](Slot slot, Value value) { around.store(value, slots, int64_t(slot) * kSlotBytes); };
    pass(Slot::Query, around.address(adaptor.getQuery()));
    if (shape->keyPlanes) {
      pass(Slot::Key, adaptor.getKey());
      pass(Slot::Value, adaptor.getValue());
    } else {
      pass(Slot::Key, around.address(adaptor.getKey()));
      pass(Slot::Value, around.address(adaptor.getValue()));
      pass(Slot::Tokens, around.extent(adaptor.getKey(), 2));
    }
    pass(Slot::Scale, adaptor.getScale());
    for (auto [slot, count] : {std::pair(Slot::Window, adaptor.getDynamicWindow()), std::pair(Slot::Sinks, adaptor.getDynamicSinks()), std::pair(Slot::Later, adaptor.getLater())})
      if (count)
        pass(slot, around.asI64(count));
    if (adaptor.getDynamicSoftcap())
      pass(Slot::Softcap, adaptor.getDynamicSoftcap());
    if (adaptor.getAttnMask())
      pass(Slot::AttnMask, around.address(adaptor.getAttnMask()));
    if (adaptor.getSinkLogits())
      pass(Slot::SinkLogits, around.address(adaptor.getSinkLogits()));
    pass(Slot::Attention, around.code(op.getAttentionId()));
    constexpr Slot slotOf[] = {Slot::Acc, Slot::Max, Slot::Sum, Slot::Certificate};
    for (auto [slot, target] : llvm::zip(slotOf, adaptor.getTargets()))
      pass(slot, around.address(target));
    Value rows = arith::MulIOp::create(b, around.extent(adaptor.getQuery(), 0), around.number(shape->kvHeads));
    Value body = func::ConstantOp::create(b, kernel.getFunctionType(), SymbolRefAttr::get(kernel));
    around.call("aligned_rt_parallel", {}, {rows, body, slots});
    rewriter.eraseOp(op);
    return success();
  }

  /// The kernel of this attention, emitted where an op of its shape asks for it first.
  func::FuncOp insertKernel(DecodeAttentionOp op, const KernelShape &shape, OpBuilder &b) const {
    func::FuncOp &known = kernels[kernelKey(op, "attention_id")]; // which is an argument
    if (known)
      return known;
    OpBuilder::InsertionGuard guard(b);
    std::string name = ("aligned_decode_" + Twine(op.getAttentionId())).str();
    for (int64_t copy = 1; symbols.lookup(name); ++copy)
      name = ("aligned_decode_" + Twine(op.getAttentionId()) + "_" + Twine(copy)).str();
    func::FuncOp kernel = emitKernel(op->getParentOfType<ModuleOp>(), op.getLoc(), name, shape);
    symbols.insert(kernel);
    return known = kernel;
  }

  SymbolTable &symbols;
  Isa isa;
  mutable llvm::StringMap<func::FuncOp> kernels;
};

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

struct ConvertAlignedToCPUPass : aligned::impl::ConvertAlignedToCPUBase<ConvertAlignedToCPUPass> {
  using ConvertAlignedToCPUBase::ConvertAlignedToCPUBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    std::optional<Isa> machine = parseIsa(isa);
    if (!machine) {
      module.emitError("expected isa ") << alternatives(isaNames()) << ", got '" << isa << "'";
      return signalPassFailure();
    }
    bool ok = true; // what no pattern could convert is told before anything changes
    module.walk([&](DecodeAttentionOp op) {
      if (!reference) {
        ok &= succeeded(kernelShape(op, *machine));
        return;
      }
      InFlightDiagnostic error = op.emitOpError("expected stages, or policy 'exact' without a certificate, to evaluate in float64, got ");
      if (op.isCertified())
        error << "a certificate";
      else
        error << "policy '" << stringifyPolicyKind(op.getPolicyKind()) << "'";
      ok = false;
    });
    if (failed(checkStages(module)) || !ok)
      return signalPassFailure();
    MLIRContext *context = &getContext();
    declareRuntime(module);
    SymbolTable symbols(module);

    TypeConverter types;
    types.addConversion([](Type type) { return type; });
    RewritePatternSet patterns(context);
    patterns.add<ConvertDecodeAttention>(types, context, symbols, *machine);
    if (reference)
      populateReferenceStages(types, patterns);
    else
      populateStageConversion(types, patterns, symbols, *machine, profile);
    ConversionTarget target(*context);
    populateCacheConversion(types, patterns, target);
    target.addIllegalDialect<AlignedDialect>();
    if (failed(applyPartialConversion(module, target, std::move(patterns))))
      signalPassFailure();
  }
};

} // namespace
