// What ops of one kernel and stages of one have in common on their way to buffers.
#ifndef ALIGNED_DIALECT_ALIGNED_IR_BUFFERIZATION_H
#define ALIGNED_DIALECT_ALIGNED_IR_BUFFERIZATION_H

#include "mlir/Dialect/Bufferization/IR/BufferizableOpInterface.h"

namespace aligned {

/// The buffer of a tensor that a kernel reads, without gaps (A16): the buffer itself, or a copy. The copy is made ahead of the loops around `op` that the tensor comes from
/// outside of, once for all ops of the dialect that read the tensor from there on.
mlir::FailureOr<mlir::Value> getContiguousBuffer(mlir::RewriterBase &rewriter, mlir::Operation *op, mlir::Value tensor,
                                                 const mlir::bufferization::BufferizationOptions &options, const mlir::bufferization::BufferizationState &state);

} // namespace aligned

#endif // ALIGNED_DIALECT_ALIGNED_IR_BUFFERIZATION_H
