// RUN: aligned-opt %s --aligned-bufferize --canonicalize \
// RUN:   --aligned-deallocate-buffers --canonicalize --buffer-deallocation-simplification --bufferization-lower-deallocations --canonicalize | FileCheck %s
// RUN: aligned-opt %s --aligned-pipeline | mlir-translate --mlir-to-llvmir | FileCheck %s --check-prefix=IR

// A function's arguments stay the caller's, its results become the caller's, each a buffer of its own.

// IR-NOT: @memrefCopy

// CHECK-LABEL: func.func @argument(
// CHECK-SAME: %[[A:.*]]: memref<?x4xf32>)
// CHECK: %[[COPY:.*]] = bufferization.clone %[[A]]
// CHECK: return %[[COPY]]
func.func @argument(%a: tensor<?x4xf32>) -> tensor<?x4xf32> {
  return %a : tensor<?x4xf32>
}

// CHECK-LABEL: func.func @constant(
// CHECK: %[[GLOBAL:.*]] = memref.get_global
// CHECK: %[[COPY:.*]] = bufferization.clone %[[GLOBAL]]
// CHECK: return %[[COPY]]
func.func @constant() -> tensor<4xf32> {
  %k = arith.constant dense<[1.0, 2.0, 3.0, 4.0]> : tensor<4xf32>
  return %k : tensor<4xf32>
}

// The same buffer twice, a view of it, and what may be it.
// CHECK-LABEL: func.func @shared(
// CHECK: %[[NEW:.*]] = memref.alloc()
// CHECK: linalg.exp {{.*}} outs(%[[NEW]] :
// CHECK: %[[FLAT:.*]] = memref.collapse_shape %[[NEW]]
// CHECK: %[[CHOSEN:.*]] = arith.select
// CHECK-DAG: %[[R1:.*]] = bufferization.clone %[[NEW]]
// CHECK-DAG: %[[R2:.*]] = bufferization.clone %[[FLAT]]
// CHECK-DAG: %[[R3:.*]] = bufferization.clone %[[CHOSEN]]
// CHECK-NOT: memref.dealloc
// CHECK: return %[[NEW]], %[[R1]], %[[R2]], %[[R3]]
func.func @shared(%a: tensor<4x4xf32>, %c: i1) -> (tensor<4x4xf32>, tensor<4x4xf32>, tensor<16xf32>, tensor<4x4xf32>) {
  %empty = tensor.empty() : tensor<4x4xf32>
  %new = linalg.exp ins(%a : tensor<4x4xf32>) outs(%empty : tensor<4x4xf32>) -> tensor<4x4xf32>
  %flat = tensor.collapse_shape %new [[0, 1]] : tensor<4x4xf32> into tensor<16xf32>
  %chosen = arith.select %c, %new, %a : tensor<4x4xf32>
  return %new, %new, %flat, %chosen : tensor<4x4xf32>, tensor<4x4xf32>, tensor<16xf32>, tensor<4x4xf32>
}

// What does not leave is freed.
// CHECK-LABEL: func.func @temporary(
// CHECK: %[[NEW:.*]] = memref.alloc()
// CHECK: memref.dealloc %[[NEW]]
// CHECK: return %{{.*}} : f32
func.func @temporary(%a: tensor<4x4xf32>) -> f32 {
  %c0 = arith.constant 0 : index
  %empty = tensor.empty() : tensor<4x4xf32>
  %new = linalg.exp ins(%a : tensor<4x4xf32>) outs(%empty : tensor<4x4xf32>) -> tensor<4x4xf32>
  %first = tensor.extract %new[%c0, %c0] : tensor<4x4xf32>
  return %first : f32
}
