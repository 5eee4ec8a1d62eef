// See the header.
#include "ConvertStages.h"

#include "Step.h"
#include "Surroundings.h"
#include "aligned/Conversion/AlignedToCPU/Kernels.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace aligned;

namespace {

ShapedType typeOf(Value value) { return cast<ShapedType>(value.getType()); }

template <typename Op> LogicalResult checkShape(Op op) {
  DecodeShape shape = shapeOf(op);
  if (shape.heads > kMaxQueryRows)
    return op.emitOpError("expected at most ") << kMaxQueryRows << " query rows per kv head, got " << shape.heads;
  if constexpr (!std::is_same_v<Op, PrepareOp>) {
    ShapedType ofSplits = typeOf(op.getSplitsOut());
    if (ofSplits.getDimSize(0) != 1)
      return op.emitOpError("expected one split: tile it first, got ") << ofSplits;
  }
  return success();
}

/// The operands of a stage as its kernel takes them: numbers as they are, buffers as addresses, what is not there left out.
template <typename Op> struct ConvertStage : OpConversionPattern<Op> {
  ConvertStage(const TypeConverter &types, MLIRContext *context, SymbolTable &symbols, Isa isa, bool profile)
      : OpConversionPattern<Op>(types, context), symbols(symbols), isa(isa), profile(profile) {}

  LogicalResult matchAndRewrite(Op op, typename Op::Adaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    if (op->getNumResults())
      return rewriter.notifyMatchFailure(op, "expected buffers, got tensors: they are bufferized first");
    Surroundings around(rewriter, op.getLoc());
    SmallVector<Value> arguments;
    for (Value operand : adaptor.getOperands())
      arguments.push_back(isa_and_present<MemRefType>(operand.getType()) ? around.address(operand) : operand);
    if constexpr (std::is_same_v<Op, AttendOp>)
      arguments.push_back(around.code(op.getAttentionId()));
    func::FuncOp kernel = kernelOf(op, ValueRange(arguments).getTypes(), rewriter);
    func::CallOp::create(around.b, kernel, arguments);
    rewriter.eraseOp(op);
    return success();
  }

private:
  /// The kernel of this shape, emitted where it is asked for first.
  func::FuncOp kernelOf(Op op, TypeRange arguments, OpBuilder &builder) const {
    func::FuncOp &kernel = kernels[kernelKey(op, "attention_id")]; // which is an argument
    if (kernel)
      return kernel;
    OpBuilder::InsertionGuard guard(builder);
    auto module = op->template getParentOfType<ModuleOp>();
    builder.setInsertionPointToEnd(module.getBody());
    std::string stage = op->getName().stripDialect().str();
    kernel = func::FuncOp::create(builder, op.getLoc(), "aligned_" + stage, builder.getFunctionType(arguments, {}));
    kernel.setPrivate();
    kernel->setAttr("passthrough", builder.getStrArrayAttr({kKernelAttribute}));
    symbols.insert(kernel); // under a name of its own
    builder.setInsertionPointToStart(kernel.addEntryBlock());
    Emitter e(builder, op.getLoc());
    e.home = &kernel.front();
    emit(e, op, kernel);
    func::ReturnOp::create(builder, op.getLoc());
    return kernel;
  }

  /// Arguments stand in the order of the op's operands.
  void emit(Emitter &e, Op op, func::FuncOp kernel) const {
    constexpr bool isPrepare = std::is_same_v<Op, PrepareOp>, isScan = std::is_same_v<Op, ScanOp>;
    unsigned next = 0;
    auto take = [&] { return e.wrap(kernel.getArgument(next++)); };
    auto takeBuffer = [&](Type element) { return e.buffer(take(), element); };
    KernelShape shape{shapeOf(op), isa, profile};
    Type f32 = e.f32(), i8 = e.i8();
    StepInputs in{};
    in.query = take();
    in.key = take();
    in.value = take();
    if (isPrepare || isScan)
      in.scale = take();
    Val row = take(), split;
    if (!isPrepare)
      split = take();
    if constexpr (!isPrepare)
      if (shape.dynamicSoftcap)
        in.softcap = take();
    if (op.getDynamicWindow())
      in.window = take();
    if (op.getDynamicSinks())
      in.sinks = take();
    if (op.getLater())
      in.later = take();
    if constexpr (isPrepare)
      if (op.getToleranceFactor())
        in.toleranceFactor = take();
    if (shape.attnMask)
      in.attnMask = take();
    if (shape.sinkLogits)
      in.sinkLogits = take();
    StepBuffers buffers;
    buffers.digits = takeBuffer(i8);
    buffers.facts = takeBuffer(f32);
    if (isPrepare) {
      buffers.mean = takeBuffer(f32);
      return emitPrepare(e, shape, in, row, buffers);
    }
    if (!isScan)
      buffers.mean = takeBuffer(f32);
    buffers.scores = takeBuffer(f32);
    buffers.tops = takeBuffer(f32);
    buffers.parts = takeBuffer(f32);
    if (isScan)
      return emitScan(e, shape, in, row, split, buffers);
    StateBuffers state;
    for (Buffer *buffer : {&state.acc, &state.max, &state.sum})
      *buffer = takeBuffer(f32);
    if (shape.certified)
      state.certificate = takeBuffer(f32);
    in.attention = take();
    emitAttend(e, shape, in, row, split, buffers, state);
  }

  SymbolTable &symbols;
  Isa isa;
  bool profile;
  mutable llvm::StringMap<func::FuncOp> kernels;
};

} // namespace

LogicalResult aligned::checkStages(ModuleOp module) {
  bool ok = true;
  module.walk([&](Operation *op) {
    ok &= succeeded(llvm::TypeSwitch<Operation *, LogicalResult>(op).Case<PrepareOp, ScanOp, AttendOp>([](auto stage) { return checkShape(stage); }).Default(success()));
  });
  return success(ok);
}

void aligned::populateStageConversion(const TypeConverter &types, RewritePatternSet &patterns, SymbolTable &symbols, Isa isa, bool profile) {
  patterns.add<ConvertStage<PrepareOp>, ConvertStage<ScanOp>, ConvertStage<AttendOp>>(types, patterns.getContext(), symbols, isa, profile);
}
