// What stands around kernels: calls of the runtime, and what they take.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SURROUNDINGS_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SURROUNDINGS_H

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

namespace aligned {

/// Declares the runtime's functions that a module lacks; unused ones go away with the next symbol-dce.
void declareRuntime(mlir::ModuleOp module);

/// What tells the kernel of an op from others: op, operands and attributes, but for the attribute `without`. Kernels take memory without gaps, from any offset on: its layout tells
/// nothing.
std::string kernelKey(mlir::Operation *op, llvm::StringRef without = "");

/// Values around a conversion: buffers as addresses, extents as i64.
struct Surroundings {
  Surroundings(mlir::OpBuilder &builder, mlir::Location loc) : b(loc, builder) {}
  mlir::ImplicitLocOpBuilder b;

  mlir::Type pointer() { return mlir::LLVM::LLVMPointerType::get(b.getContext()); }
  mlir::Value number(int64_t n);
  mlir::Value code(int32_t n);
  mlir::Value asI64(mlir::Value index);
  /// Of a tensor or buffer.
  mlir::Value extent(mlir::Value shaped, int64_t dim);
  /// The memory behind a buffer, from its first element on.
  mlir::Value address(mlir::Value buffer);

  mlir::Value call(llvm::StringRef name, mlir::TypeRange results, mlir::ValueRange operands);

  /// Memory on the stack: as often as threads may run the op at once, not as often as it runs.
  mlir::Value stack(mlir::Type element, int64_t count);
  /// The same, of 8-byte words.
  mlir::Value slots(int64_t count) { return stack(b.getI64Type(), count); }
  void store(mlir::Value value, mlir::Value base, int64_t byteOffset);
  /// An i64 in a struct of the runtime.
  mlir::Value field(mlir::Value base, int64_t byteOffset);
};

/// What calls of the runtime are told of a mask by position and of a softcap, as i64, i64 and f64: 0 where there is none. Operands may be null.
struct ScoreNumbers {
  mlir::Value window, sinks, softcap;
};
ScoreNumbers scoreNumbers(Surroundings &around, MaskAttr mask, mlir::Value window, mlir::Value sinks, double softcap, mlir::Value dynamicSoftcap);
template <typename Op> ScoreNumbers scoreNumbers(Surroundings &around, Op op) {
  const double softcap = op.getSoftcap() ? op.getSoftcap()->convertToDouble() : 0;
  return scoreNumbers(around, op.getMaskAttr(), op.getDynamicWindow(), op.getDynamicSinks(), softcap, op.getDynamicSoftcap());
}

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_SURROUNDINGS_H
