// RUN: aligned-opt %s --split-input-file --pass-pipeline="builtin.module(func.func(aligned-decompose-aggregates))" | FileCheck %s --check-prefix=PARTS
// RUN: aligned-opt %s --split-input-file --pass-pipeline="builtin.module(func.func(aligned-lower-copies))" | FileCheck %s --check-prefix=COPY
// RUN: aligned-opt %s --split-input-file --aligned-prepare-entry-points | FileCheck %s --check-prefix=ENTRY

// Small passes where upstream's leave something open.

// PARTS-LABEL: func.func @concat(
// PARTS-NOT: tensor.concat
// PARTS: %[[FIRST:.*]] = tensor.insert_slice
// PARTS: tensor.insert_slice %{{.*}} into %[[FIRST]]
// ENTRY-LABEL: func.func @concat(
// ENTRY-SAME: llvm.emit_c_interface
func.func @concat(%a: tensor<2x63xf32>, %b: tensor<2x1xf32>) -> tensor<2x64xf32> {
  %0 = tensor.concat dim(1) %a, %b : (tensor<2x63xf32>, tensor<2x1xf32>) -> tensor<2x64xf32>
  return %0 : tensor<2x64xf32>
}

// -----

// A softmax that no product with V follows.

// PARTS-LABEL: func.func @softmax(
// PARTS-NOT: linalg.softmax
// PARTS: math.exp
// PARTS: arith.divf
func.func @softmax(%x: tensor<3x65xf32>) -> tensor<3x65xf32> {
  %e = tensor.empty() : tensor<3x65xf32>
  %0 = linalg.softmax dimension(1) ins(%x : tensor<3x65xf32>) outs(%e : tensor<3x65xf32>) -> tensor<3x65xf32>
  return %0 : tensor<3x65xf32>
}

// -----

// COPY-LABEL: func.func private @copies(
// COPY-SAME: %[[STRIDED:.*]]: memref<2x4xf32, strided<[8, 1]>>, %[[A:.*]]: memref<2x4xf32>, %[[B:.*]]: memref<2x4xf32>)
// COPY-NEXT: linalg.copy ins(%[[STRIDED]] {{.*}} outs(%[[A]]
// COPY-NEXT: memref.copy %[[A]], %[[B]]
// ENTRY-LABEL: func.func private @copies(
// ENTRY-NOT: llvm.emit_c_interface
func.func private @copies(%strided: memref<2x4xf32, strided<[8, 1]>>, %a: memref<2x4xf32>, %b: memref<2x4xf32>) {
  memref.copy %strided, %a : memref<2x4xf32, strided<[8, 1]>> to memref<2x4xf32>
  memref.copy %a, %b : memref<2x4xf32> to memref<2x4xf32>
  return
}

func.func private @aligned_rt_threads() -> i32
