// RUN: aligned-opt %s --convert-aligned-to-cpu | FileCheck %s

// Merging and finishing softmax states is elementwise work for upstream's passes.

!acc = tensor<1x2x1x16xf32>
!row = tensor<1x2x1xf32>

// CHECK-LABEL: func.func @merge(
// CHECK-SAME: %[[A0:[a-z0-9]+]]: tensor<1x2x1x16xf32>, %[[M0:[a-z0-9]+]]: tensor<1x2x1xf32>, %[[S0:[a-z0-9]+]]: tensor<1x2x1xf32>,
// CHECK-SAME: %[[A1:[a-z0-9]+]]: tensor<1x2x1x16xf32>, %[[M1:[a-z0-9]+]]: tensor<1x2x1xf32>, %[[S1:[a-z0-9]+]]: tensor<1x2x1xf32>)
func.func @merge(%a0: !acc, %m0: !row, %s0: !row, %a1: !acc, %m1: !row, %s1: !row) -> (!acc, !row, !row) {
  // CHECK: %[[ROWS:[0-9]+]]:2 = linalg.generic {{.*}} ins(%[[M0]], %[[S0]], %[[M1]], %[[S1]]
  // CHECK: arith.maximumf
  // CHECK: math.exp
  // CHECK: %[[ACC:[0-9]+]] = linalg.generic {{.*}} ins(%[[A0]], %[[M0]], %[[A1]], %[[M1]]
  // CHECK: return %[[ACC]], %[[ROWS]]#0, %[[ROWS]]#1
  %a, %m, %s = aligned.merge (%a0, %m0, %s0), (%a1, %m1, %s1) : !acc, !row
  return %a, %m, %s : !acc, !row, !row
}

// Of a certificate's numbers all but the last add up.
// CHECK-LABEL: func.func @merge_certified(
func.func @merge_certified(%a: !acc, %m: !row, %s: !row, %c0: tensor<1x2x1x6xf32>, %c1: tensor<1x2x1x6xf32>) -> tensor<1x2x1x6xf32> {
  // CHECK: linalg.generic {{.*}} ins(%{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} : tensor<1x2x1x6xf32>
  // CHECK: %[[AT:.*]] = linalg.index 3
  // CHECK: %[[LAST:.*]] = arith.cmpi eq, %[[AT]], %c5
  // CHECK: %[[LARGER:.*]] = arith.maximumf
  // CHECK: arith.select %[[LAST]], %[[LARGER]]
  %a1, %m1, %s1, %c = aligned.merge (%a, %m, %s, %c0), (%a, %m, %s, %c1) : !acc, !row certified tensor<1x2x1x6xf32>
  return %c : tensor<1x2x1x6xf32>
}

// A row that saw no token is 0, not 0 / 0.
// CHECK-LABEL: func.func @finish(
func.func @finish(%acc: !acc, %sum: !row) -> tensor<1x2x1x16xf16> {
  // CHECK: linalg.generic
  // CHECK: %[[NONE:.*]] = arith.cmpf oeq
  // CHECK: %[[OUT:.*]] = arith.divf
  // CHECK: %[[SAFE:.*]] = arith.select %[[NONE]], %{{.*}}, %[[OUT]]
  // CHECK: arith.truncf %[[SAFE]] : f32 to f16
  %out = aligned.finish %acc, %sum : !acc, !row -> tensor<1x2x1x16xf16>
  return %out : tensor<1x2x1x16xf16>
}
