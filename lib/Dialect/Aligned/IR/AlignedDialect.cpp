// The dialect's registration.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;
using namespace aligned;

#include "aligned/Dialect/Aligned/IR/AlignedDialect.cpp.inc"

void AlignedDialect::initialize() {
  registerAttributes();
  addOperations<
#define GET_OP_LIST
#include "aligned/Dialect/Aligned/IR/AlignedOps.cpp.inc"
      >();
}
