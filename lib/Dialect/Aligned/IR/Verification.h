// What the verifiers of attention, declared, computed and in stages, have in common. Labels are those of the op descriptions.
#ifndef ALIGNED_DIALECT_ALIGNED_IR_VERIFICATION_H
#define ALIGNED_DIALECT_ALIGNED_IR_VERIFICATION_H

#include "aligned/Dialect/Aligned/IR/Aligned.h"

namespace aligned {

/// Positions in [batch, heads, tokens or queries, head_dim].
enum Dim { kBatch, kHeads, kTokens, kChannels };

/// Two extents that are both known and differ can't be the same.
inline bool compatible(int64_t a, int64_t b) { return mlir::ShapedType::isDynamic(a) || mlir::ShapedType::isDynamic(b) || a == b; }

std::string extent(int64_t size);
mlir::LogicalResult expectSame(mlir::Operation *op, llvm::StringRef what, llvm::StringRef ofA, int64_t a, llvm::StringRef ofB, int64_t b);

/// Whether the elements of a buffer lie one behind the other in row-major order, wherever the first lies; what types leave open counts as no.
bool isContiguous(mlir::MemRefType type);

/// A13: values, with the op's results, are tensors all, or buffers.
mlir::LogicalResult verifyForm(mlir::Operation *op, mlir::ValueRange values);

/// A16: an operand is a tensor or a contiguous buffer, a cache that is a buffer has no layout. Null is fine.
mlir::LogicalResult verifyContiguous(mlir::Operation *op, llvm::StringRef name, mlir::Value value);

/// A1, A2, A4, and what a plane encoding asks of its cache: of query, key and value, all of rank 4.
mlir::LogicalResult verifyOperands(mlir::Operation *op, mlir::ShapedType query, mlir::ShapedType key, mlir::ShapedType value);

/// A10: one policy or one per kv head, of one kind.
mlir::LogicalResult verifyPolicies(mlir::Operation *op, mlir::ArrayAttr policies, mlir::ShapedType key);

/// P1, P2: what the kind of policy asks of the storage.
mlir::LogicalResult verifyStorage(mlir::Operation *op, PolicyKind policy, mlir::ShapedType key, mlir::ShapedType value);

/// A11: an operand stands for each number of the mask that is `?`, and no other; `later` only with a mask. All may be null.
mlir::LogicalResult verifyMask(mlir::Operation *op, MaskAttr mask, mlir::Value window, mlir::Value sinks, mlir::Value later);
mlir::LogicalResult verifyToleranceFactor(mlir::Operation *op, mlir::Value factor, PolicyKind kind);

/// A12: as an attribute, or as an operand.
mlir::LogicalResult verifySoftcap(mlir::Operation *op, std::optional<llvm::APFloat> softcap, mlir::Value operand = {});

/// A15: what a mask by numbers and sinks look like, either of which may be null.
mlir::LogicalResult verifyMaskOperands(mlir::Operation *op, mlir::Value mask, mlir::Value sinks, mlir::ShapedType query, mlir::ShapedType key);

} // namespace aligned

#endif // ALIGNED_DIALECT_ALIGNED_IR_VERIFICATION_H
