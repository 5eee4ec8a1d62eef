// How the stages of a decode step come to buffers: they write where their outs lie, and read all else.
#include "Bufferization.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Bufferization/IR/DstBufferizableOpInterfaceImpl.h"
#include "mlir/Dialect/Utils/StructuredOpsUtils.h"

using namespace mlir;
using namespace mlir::bufferization;
using namespace aligned;

namespace {

template <typename Op> struct StageModel : DstBufferizableOpInterfaceExternalModel<StageModel<Op>, Op> {
  bool bufferizesToMemoryRead(Operation *op, OpOperand &operand, const AnalysisState &) const { return !cast<Op>(op).isDpsInit(&operand); }
  bool bufferizesToMemoryWrite(Operation *op, OpOperand &operand, const AnalysisState &) const { return cast<Op>(op).isDpsInit(&operand); }

  LogicalResult bufferize(Operation *op, RewriterBase &rewriter, const BufferizationOptions &options, BufferizationState &state) const {
    auto stage = cast<Op>(op);
    SmallVector<Value> operands;
    for (OpOperand &operand : op->getOpOperands()) {
      if (!isa<TensorType>(operand.get().getType())) {
        operands.push_back(operand.get());
        continue;
      }
      FailureOr<Value> buffer = stage.isDpsInit(&operand) ? getBuffer(rewriter, operand.get(), options, state)
                                                          : getContiguousBuffer(rewriter, op, operand.get(), options, state);
      if (failed(buffer))
        return failure();
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
