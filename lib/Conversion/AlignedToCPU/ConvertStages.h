// The stages of a decode step become calls of kernels, one for each stage and shape, which attentions of equal shape share; or calls of the runtime's
// evaluator, which computes what they mean in float64.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_CONVERTSTAGES_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_CONVERTSTAGES_H

#include "../Common/DecodeShape.h"
#include "Simd.h"

#include "mlir/IR/SymbolTable.h"
#include "mlir/Transforms/DialectConversion.h"

namespace aligned {

/// Diagnostics for the stages of a module that no kernel can serve.
mlir::LogicalResult checkStages(mlir::ModuleOp module);

void populateStageConversion(const mlir::TypeConverter &types, mlir::RewritePatternSet &patterns, mlir::SymbolTable &symbols, Isa isa, bool profile);
void populateReferenceStages(const mlir::TypeConverter &types, mlir::RewritePatternSet &patterns);

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_CONVERTSTAGES_H
