// How the ops come to buffers: one-shot-bufferize decides, from what they read and write, where a cache has to be copied.
//
// A cache becomes a memref whose memory space is its encoding. It has no layout, since its memory is the runtime's business, and is written in place by
// `append` alone. What other ops give is memory of its own, which they get handed.
#include "Bufferization.h"

#include "Verification.h"

#include "mlir/Dialect/Bufferization/IR/BufferDeallocationOpInterface.h"
#include "mlir/Dialect/Bufferization/IR/BufferizableOpInterface.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Interfaces/LoopLikeInterface.h"

using namespace mlir;
using namespace mlir::bufferization;
using namespace aligned;

namespace {

MemRefType bufferTypeOf(Value tensor) {
  auto type = cast<RankedTensorType>(tensor.getType());
  return MemRefType::get(type.getShape(), type.getElementType(), MemRefLayoutAttrInterface(), type.getEncoding());
}

/// New memory for `tensor`, whose dynamic extents are those of `like`, a buffer.
FailureOr<Value> allocate(OpBuilder &b, Location loc, const BufferizationOptions &options, Value tensor, Value like) {
  MemRefType type = bufferTypeOf(tensor);
  SmallVector<Value> sizes;
  for (auto [dim, size] : llvm::enumerate(type.getShape()))
    if (ShapedType::isDynamic(size))
      sizes.push_back(memref::DimOp::create(b, loc, like, dim));
  return options.createAlloc(b, loc, type, sizes);
}

/// Operands are read; a result is memory of its own.
template <typename Model, typename Op> struct ReadingModel : BufferizableOpInterface::ExternalModel<Model, Op> {
  bool bufferizesToMemoryRead(Operation *, OpOperand &, const AnalysisState &) const { return true; }
  bool bufferizesToMemoryWrite(Operation *, OpOperand &, const AnalysisState &) const { return false; }
  bool bufferizesToAllocation(Operation *, Value) const { return true; }
  AliasingValueList getAliasingValues(Operation *, OpOperand &, const AnalysisState &) const { return {}; }
  FailureOr<BufferLikeType> getBufferType(Operation *, Value value, const BufferizationOptions &, const BufferizationState &, SmallVector<Value> &) const {
    return cast<BufferLikeType>(bufferTypeOf(value));
  }
};

/// Packing and unpacking.
template <typename Op> struct StorageModel : ReadingModel<StorageModel<Op>, Op> {
  LogicalResult bufferize(Operation *op, RewriterBase &rewriter, const BufferizationOptions &options, BufferizationState &state) const {
    FailureOr<Value> source = getBuffer(rewriter, cast<Op>(op).getSource(), options, state);
    if (failed(source))
      return failure();
    FailureOr<Value> target = allocate(rewriter, op->getLoc(), options, op->getResult(0), *source);
    if (failed(target))
      return failure();
    Op::create(rewriter, op->getLoc(), TypeRange(), ValueRange{*source, *target}, op->getAttrs());
    replaceOpWithBufferizedValues(rewriter, op, *target);
    return success();
  }
};

struct HasDenseCopyModel : ReadingModel<HasDenseCopyModel, HasDenseCopyOp> {
  LogicalResult bufferize(Operation *op, RewriterBase &rewriter, const BufferizationOptions &options, BufferizationState &state) const {
    auto asks = cast<HasDenseCopyOp>(op);
    FailureOr<Value> key = getBuffer(rewriter, asks.getKey(), options, state), value = getBuffer(rewriter, asks.getValue(), options, state);
    if (failed(key) || failed(value))
      return failure();
    rewriter.replaceOpWithNewOp<HasDenseCopyOp>(op, *key, *value);
    return success();
  }
};

struct AppendModel : ReadingModel<AppendModel, AppendOp> {
  static bool isCache(Operation *op, OpOperand &operand) { return &operand == &cast<AppendOp>(op).getCacheMutable(); }

  bool bufferizesToMemoryWrite(Operation *op, OpOperand &operand, const AnalysisState &) const { return isCache(op, operand); }
  bool bufferizesToAllocation(Operation *, Value) const { return false; }
  AliasingValueList getAliasingValues(Operation *op, OpOperand &operand, const AnalysisState &) const {
    if (isCache(op, operand))
      return {{op->getResult(0), BufferRelation::Equivalent}};
    return {};
  }

  LogicalResult bufferize(Operation *op, RewriterBase &rewriter, const BufferizationOptions &options, BufferizationState &state) const {
    auto append = cast<AppendOp>(op);
    if (!getPlanes(append.getType()))
      return append.emitOpError("expected a packed cache, which can be appended to in place, got ") << append.getType();
    FailureOr<Value> tokens = getBuffer(rewriter, append.getTokens(), options, state), cache = getBuffer(rewriter, append.getCache(), options, state);
    if (failed(tokens) || failed(cache))
      return failure();
    replaceOpWithNewBufferizedOp<AppendOp>(rewriter, op, bufferTypeOf(append.getResult()), *tokens, append.getPosition(), *cache);
    return success();
  }
};

struct DecodeModel : ReadingModel<DecodeModel, DecodeAttentionOp> {
  LogicalResult bufferize(Operation *op, RewriterBase &rewriter, const BufferizationOptions &options, BufferizationState &state) const {
    auto decode = cast<DecodeAttentionOp>(op);
    Location loc = op->getLoc();
    SmallVector<Value> operands;
    for (Value tensor : {decode.getQuery(), decode.getKey(), decode.getValue()}) {
      FailureOr<Value> buffer = getContiguousBuffer(rewriter, op, tensor, options, state);
      if (failed(buffer))
        return failure();
      operands.push_back(*buffer);
    }
    Value masks[2] = {decode.getAttnMask(), decode.getSinkLogits()};
    for (Value &mask : masks) {
      if (!mask)
        continue;
      FailureOr<Value> buffer = getContiguousBuffer(rewriter, op, mask, options, state);
      if (failed(buffer))
        return failure();
      mask = *buffer;
    }
    SmallVector<Value> targets;
    for (Value result : op->getResults()) { // what is dynamic are extents of the query: a state's others are static by now
      FailureOr<Value> target = allocate(rewriter, loc, options, result, operands.front());
      if (failed(target))
        return failure();
      targets.push_back(*target);
    }
    DecodeAttentionOp::create(rewriter, loc, Type(), Type(), Type(), Type(), operands[0], operands[1], operands[2], decode.getScale(), decode.getPoliciesAttr(),
                              decode.getMaskedZeroAttr(), decode.getFromDenseCopyAttr(), decode.getAttentionIdAttr(), decode.getSoftcapAttr(), decode.getMaskAttr(), decode.getDynamicSoftcap(),
                              decode.getDynamicWindow(), decode.getDynamicSinks(), decode.getLater(), decode.getToleranceFactor(), masks[0], masks[1], targets);
    replaceOpWithBufferizedValues(rewriter, op, targets);
    return success();
  }
};

/// Who owns a cache owns it when it was appended to, whoever owns the tokens.
struct AppendOwnership : BufferDeallocationOpInterface::ExternalModel<AppendOwnership, AppendOp> {
  FailureOr<Operation *> process(Operation *op, DeallocationState &state, const DeallocationOptions &) const {
    auto append = cast<AppendOp>(op);
    if (Value cache = append.getCache(); isa<MemRefType>(cache.getType()))
      state.updateOwnership(append.getResult(), state.getOwnership(cache, cache.getParentBlock()), op->getBlock());
    return op;
  }
};

/// Whether a kernel reads this as an array without gaps: not caches, and not what it writes.
bool isArray(OpOperand &operand) {
  Operation *op = operand.getOwner();
  if (!isa<DecodeAttentionOp, PrepareOp, ScanOp, AttendOp>(op) || getPlanes(operand.get().getType()))
    return false;
  auto destination = dyn_cast<DestinationStyleOpInterface>(op);
  return !destination || !destination.isDpsInit(&operand);
}

} // namespace

FailureOr<Value> aligned::getContiguousBuffer(RewriterBase &rewriter, Operation *op, Value tensor, const BufferizationOptions &options, const BufferizationState &state) {
  FailureOr<Value> buffer = getBuffer(rewriter, tensor, options, state);
  if (failed(buffer) || getPlanes(tensor.getType()) || isContiguous(cast<MemRefType>(buffer->getType())))
    return buffer;
  // A tensor is a value: from where it is defined on its buffer holds it, up to its last reader.
  Operation *at = op;
  while (auto loop = dyn_cast<LoopLikeOpInterface>(at->getParentOp())) {
    if (!loop.isDefinedOutsideOfLoop(tensor))
      break;
    at = loop;
  }
  OpBuilder::InsertionGuard guard(rewriter);
  rewriter.setInsertionPoint(at);
  FailureOr<Value> copy = allocate(rewriter, op->getLoc(), options, tensor, *buffer);
  if (failed(copy) || failed(options.createMemCpy(rewriter, op->getLoc(), *buffer, *copy)))
    return failure();
  Value same = ToTensorOp::create(rewriter, op->getLoc(), tensor.getType(), *copy);
  rewriter.replaceUsesWithIf(tensor, same, [&](OpOperand &use) {
    Operation *user = at->getBlock()->findAncestorOpInBlock(*use.getOwner());
    return isArray(use) && user && !user->isBeforeInBlock(at);
  });
  return copy;
}

void aligned::registerBufferization(DialectRegistry &registry) {
  registry.addExtension(+[](MLIRContext *context, AlignedDialect *) {
    PackOp::attachInterface<StorageModel<PackOp>>(*context);
    UnpackOp::attachInterface<StorageModel<UnpackOp>>(*context);
    AppendOp::attachInterface<AppendModel, AppendOwnership>(*context);
    HasDenseCopyOp::attachInterface<HasDenseCopyModel>(*context);
    DecodeAttentionOp::attachInterface<DecodeModel>(*context);
    context->loadDialect<BufferizationDialect, memref::MemRefDialect>();
  });
}
