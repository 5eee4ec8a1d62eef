// RUN: aligned-opt %s --split-input-file --aligned-lower-tosa | FileCheck %s
// RUN: aligned-opt %s --split-input-file --aligned-pipeline | FileCheck %s --check-prefix=LLVM

// The profiles of the specification are not enforced: they have no f64.
// CHECK-LABEL: func.func @negate(
// CHECK-NOT: tosa.
// CHECK: linalg.generic
// CHECK-NOT: tosa.
// CHECK: return
// LLVM: llvm.func @_mlir_ciface_negate(
func.func @negate(%a: tensor<4x65xf64>) -> tensor<260xf64> {
  %shape = tosa.const_shape {values = dense<260> : tensor<1xindex>} : () -> !tosa.shape<1>
  %0 = tosa.exp %a : (tensor<4x65xf64>) -> tensor<4x65xf64>
  %1 = tosa.reshape %0, %shape : (tensor<4x65xf64>, !tosa.shape<1>) -> tensor<260xf64>
  return %1 : tensor<260xf64>
}

// -----

// Nothing is touched where there is no tosa.
// CHECK-LABEL: func.func @linalg(
// CHECK-NEXT: %[[DEAD:.*]] = arith.constant 1 : i32
// CHECK-NEXT: return
// LLVM: llvm.func @_mlir_ciface_linalg(
func.func @linalg() {
  %dead = arith.constant 1 : i32
  return
}
