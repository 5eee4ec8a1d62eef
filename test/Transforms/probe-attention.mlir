// RUN: aligned-opt %s --aligned-probe-attention --split-input-file | FileCheck %s

!q = tensor<1x2x1x16xf32>
!kv = tensor<1x2x?x16xf32>

// What each attention gives is returned behind the function's own results, in order.
// CHECK-LABEL: func.func @two(
// CHECK-SAME: -> (tensor<1x2x1x16xf32>, tensor<1x2x1x16xf32>, tensor<1x2x1x16xf32>)
func.func @two(%q: !q, %k: !kv, %v: !kv, %scale: f32) -> !q {
  // CHECK: %[[FIRST:.*]] = aligned.attention
  %a = aligned.attention %q, %k, %v scale %scale : !q, !kv, !kv -> !q
  // CHECK: %[[SECOND:.*]] = aligned.attention %[[FIRST]]
  %b = aligned.attention %a, %k, %v scale %scale : !q, !kv, !kv -> !q
  // CHECK: return %[[SECOND]], %[[FIRST]], %[[SECOND]]
  return %b : !q
}

// -----

!q = tensor<1x2x1x16xf32>
!kv = tensor<1x2x?x16xf32>

// A function that others call keeps its results.
// CHECK-LABEL: func.func @called(
// CHECK-SAME: -> tensor<1x2x1x16xf32> {
func.func @called(%q: !q, %k: !kv, %v: !kv, %scale: f32) -> !q {
  %a = aligned.attention %q, %k, %v scale %scale : !q, !kv, !kv -> !q
  return %a : !q
}
func.func @caller(%q: !q, %k: !kv, %v: !kv, %scale: f32) -> !q {
  %a = call @called(%q, %k, %v, %scale) : (!q, !kv, !kv, f32) -> !q
  return %a : !q
}
