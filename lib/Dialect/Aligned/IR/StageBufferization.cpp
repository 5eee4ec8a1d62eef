// How the stages of a decode step come to buffers: they write where their outs lie, and read all else.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Bufferization/IR/DstBufferizableOpInterfaceImpl.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/Utils/StructuredOpsUtils.h"

using namespace mlir;
using namespace mlir::bufferization;
using namespace aligned;

namespace {

template <typename Op> struct StageModel : DstBufferizableOpInterfaceExternalModel<StageModel<Op>, Op> {
  bool bufferizesToMemoryRead(Operation *op, OpOperand &operand, const AnalysisState &) const { return !cast<Op>(op).isDpsInit(&operand); }
  bool bufferizesToMemoryWrite(Operation *op, OpOperand &operand, const AnalysisState &) const { return cast<Op>(op).isDpsInit(&operand); }

  /// What kernels take as an array without gaps. Outs are the first dimensions of such, caches objects of the runtime.
  static bool isArray(Op stage, OpOperand &operand) {
    if (&operand == &stage.getQueryMutable())
      return true;
    if constexpr (!std::is_same_v<Op, PrepareOp>)
      if (operand.get() == stage.getAttnMask())
        return true;
    if constexpr (std::is_same_v<Op, AttendOp>)
      return operand.get() == stage.getSinkLogits();
    return false;
  }

  LogicalResult bufferize(Operation *op, RewriterBase &rewriter, const BufferizationOptions &options, BufferizationState &state) const {
    auto stage = cast<Op>(op);
    SmallVector<Value> operands;
    for (OpOperand &operand : op->getOpOperands()) {
      if (!isa<TensorType>(operand.get().getType())) {
        operands.push_back(operand.get());
        continue;
      }
      FailureOr<Value> buffer = getBuffer(rewriter, operand.get(), options, state);
      if (failed(buffer))
        return failure();
      auto type = cast<MemRefType>(buffer->getType());
      if (isArray(stage, operand) && !type.getLayout().isIdentity()) {
        SmallVector<Value> sizes;
        for (int64_t dim = 0; dim < type.getRank(); ++dim)
          if (type.isDynamicDim(dim))
            sizes.push_back(memref::DimOp::create(rewriter, op->getLoc(), *buffer, dim));
        FailureOr<Value> copy = options.createAlloc(rewriter, op->getLoc(), MemRefType::get(type.getShape(), type.getElementType()), sizes);
        if (failed(copy) || failed(options.createMemCpy(rewriter, op->getLoc(), *buffer, *copy)))
          return failure();
        buffer = copy;
      }
      operands.push_back(*buffer);
    }
    SmallVector<Value> written;
    for (OpOperand &out : stage.getDpsInitsMutable())
      written.push_back(operands[out.getOperandNumber()]);
    rewriter.setInsertionPoint(op);
    mlir::clone(rewriter, op, TypeRange(), operands);
    replaceOpWithBufferizedValues(rewriter, op, written);
    return success();
  }
};

} // namespace

void aligned::registerStageBufferization(DialectRegistry &registry) {
  registry.addExtension(+[](MLIRContext *context, AlignedDialect *) {
    PrepareOp::attachInterface<StageModel<PrepareOp>>(*context);
    ScanOp::attachInterface<StageModel<ScanOp>>(*context);
    AttendOp::attachInterface<StageModel<AttendOp>>(*context);
  });
}
