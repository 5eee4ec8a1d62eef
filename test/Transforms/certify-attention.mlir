// RUN: aligned-opt %s --aligned-certify-attention --split-input-file --verify-diagnostics | FileCheck %s

!q = tensor<1x2x1x16xf32>
!kv = tensor<1x2x?x16xf32>

// Bounds and estimates are returned behind all other results, in order.
// CHECK-LABEL: func.func @two(
// CHECK-SAME: -> (tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
func.func @two(%q: !q, %k: !kv, %v: !kv, %scale: f32) -> !q {
  // CHECK: %[[A:.*]], %[[B0:.*]], %[[E0:.*]] = aligned.attention
  %a = aligned.attention %q, %k, %v scale %scale : !q, !kv, !kv -> !q
  // CHECK: %[[O:.*]], %[[B1:.*]], %[[E1:.*]] = aligned.attention %[[A]], {{.*}} softcap 5.000000e+01 mask <window = 8> policy <exact> masked_zero :
  %b = aligned.attention %a, %k, %v scale %scale softcap 50.0 mask <window = 8> policy <exact> masked_zero : !q, !kv, !kv -> !q
  // CHECK: return %[[O]], %[[B0]], %[[E0]], %[[B1]], %[[E1]]
  return %b : !q
}

// -----

!q = tensor<1x2x1x16xf32>
!kv = tensor<1x2x?x16xf32>

// A function that others call keeps its results, and the user is told.
// CHECK-LABEL: func.func @called(
// CHECK-SAME: -> tensor<1x2x1x16xf32> {
func.func @called(%q: !q, %k: !kv, %v: !kv, %scale: f32) -> !q {
  // expected-remark@+1 {{not certified: expected all attention in the one block of a public function that is not called in its module}}
  %a = aligned.attention %q, %k, %v scale %scale : !q, !kv, !kv -> !q
  return %a : !q
}
func.func @caller(%q: !q, %k: !kv, %v: !kv, %scale: f32) -> !q {
  %a = call @called(%q, %k, %v, %scale) : (!q, !kv, !kv, f32) -> !q
  return %a : !q
}
