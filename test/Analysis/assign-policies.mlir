// RUN: aligned-opt %s --aligned-assign-policies --verify-diagnostics | FileCheck %s

!query = tensor<1x8x1x64xf16>
!cache = tensor<1x2x100x64xf16>

// 2^-6 / (2 * sqrt(64)): the sum lets an error through as it is.
// CHECK-LABEL: @budget
// CHECK: aligned.attention {{.*}} policy <budget, tolerance = 9.765625E-4>
func.func @budget(%q: !query, %k: !cache, %v: !cache {aligned.range = #aligned.range<[-2.0, 1.0]>}, %r: !query) -> (!query {aligned.tolerance = 0.015625}) {
  %scale = arith.constant 0.125 : f32
  %0 = aligned.attention %q, %k, %v scale %scale : !query, !cache, !cache -> !query
  %1 = arith.addf %0, %r : !query
  return %1 : !query
}

// Policies of one's own stay.
// CHECK-LABEL: @own
// CHECK: aligned.attention {{.*}} policy <alignedkv>
func.func @own(%q: !query, %k: !cache, %v: !cache {aligned.range = #aligned.range<[-2.0, 1.0]>}) -> (!query {aligned.tolerance = 0.015625}) {
  %scale = arith.constant 0.125 : f32
  %0 = aligned.attention %q, %k, %v scale %scale policy <alignedkv> : !query, !cache, !cache -> !query
  return %0 : !query
}

// No tolerance is no wish.
// CHECK-LABEL: @none
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{.*}} : tensor
func.func @none(%q: !query, %k: !cache, %v: !cache {aligned.range = #aligned.range<[-2.0, 1.0]>}) -> !query {
  %scale = arith.constant 0.125 : f32
  %0 = aligned.attention %q, %k, %v scale %scale : !query, !cache, !cache -> !query
  return %0 : !query
}

// CHECK-LABEL: @generous
// CHECK: aligned.attention {{.*}} policy <budget, tolerance = 2.500000e-01>
func.func @generous(%q: !query, %k: !cache, %v: !cache {aligned.range = #aligned.range<[-2.0, 1.0]>}) -> (!query {aligned.tolerance = 100.0}) {
  %scale = arith.constant 0.125 : f32
  %0 = aligned.attention %q, %k, %v scale %scale : !query, !cache, !cache -> !query
  return %0 : !query
}

// CHECK-LABEL: @strict
// CHECK: aligned.attention {{.*}} policy <exact>
func.func @strict(%q: !query, %k: !cache, %v: !cache {aligned.range = #aligned.range<[-2.0, 1.0]>}) -> (!query {aligned.tolerance = 1.0e-3}) {
  %scale = arith.constant 0.125 : f32
  // expected-remark@below {{exact: the results' tolerance asks for a relative error of 6.25e-05, expected at least 0.00012207 to save anything}}
  %0 = aligned.attention %q, %k, %v scale %scale : !query, !cache, !cache -> !query
  return %0 : !query
}

// CHECK-LABEL: @unknown_values
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{.*}} : tensor
func.func @unknown_values(%q: !query, %k: !cache, %v: !cache) -> (!query {aligned.tolerance = 0.015625}) {
  %scale = arith.constant 0.125 : f32
  // expected-remark@below {{no policy from the results' tolerance: nothing is known of the size of values; 'aligned.range' on the argument they come from says it}}
  %0 = aligned.attention %q, %k, %v scale %scale : !query, !cache, !cache -> !query
  return %0 : !query
}

// CHECK-LABEL: @unknown_use
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{.*}} : tensor
func.func @unknown_use(%q: !query, %k: !cache, %v: !cache {aligned.range = #aligned.range<[-2.0, 1.0]>}, %r: !query) -> (!query {aligned.tolerance = 0.015625}) {
  %scale = arith.constant 0.125 : f32
  // expected-remark@below {{no policy from the results' tolerance: what becomes of the result is not known to leave any}}
  %0 = aligned.attention %q, %k, %v scale %scale : !query, !cache, !cache -> !query
  %1 = math.powf %0, %r : !query
  return %1 : !query
}
