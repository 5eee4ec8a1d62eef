// RUN: aligned-opt %s --convert-aligned-to-cpu="reference=true" | FileCheck %s

// Unfused attention has no kernel; as an oracle it may run in float64, over operands widened to f32.

// CHECK-LABEL: func.func @attention(
func.func @attention(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<1x4x1x16xf16> {
  // CHECK-COUNT-3: arith.extf
  // CHECK-DAG: %[[CAP:.*]] = arith.constant 0.000000e+00 : f64
  // CHECK: %[[MASKED:.*]] = arith.constant 1 : i32
  // CHECK-NEXT: %[[CAUSAL:.*]] = arith.constant 0 : i32
  // CHECK-NEXT: %[[WINDOW:.*]] = arith.constant 0 : i64
  // CHECK-NEXT: %[[SINKS:.*]] = arith.constant 0 : i64
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[MASKED]], %[[CAUSAL]], %[[WINDOW]], %[[SINKS]], %[[CAP]])
  // CHECK: arith.truncf
  %out = aligned.attention %q, %k, %v scale %scale masked_zero : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<1x4x1x16xf16>
  return %out : tensor<1x4x1x16xf16>
}

// CHECK-LABEL: func.func @masked(
func.func @masked(%q: tensor<1x4x3x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>, %scale: f32) -> tensor<1x4x3x16xf32> {
  // CHECK-DAG: %[[CAP:.*]] = arith.constant 5.000000e+01 : f64
  // CHECK: %[[MASKED:.*]] = arith.constant 0 : i32
  // CHECK-NEXT: %[[CAUSAL:.*]] = arith.constant 1 : i32
  // CHECK-NEXT: %[[WINDOW:.*]] = arith.constant 8 : i64
  // CHECK-NEXT: %[[SINKS:.*]] = arith.constant 2 : i64
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[MASKED]], %[[CAUSAL]], %[[WINDOW]], %[[SINKS]], %[[CAP]])
  %out = aligned.attention %q, %k, %v scale %scale softcap 50.0 mask <causal, window = 8, sinks = 2>
      : tensor<1x4x3x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32> -> tensor<1x4x3x16xf32>
  return %out : tensor<1x4x3x16xf32>
}
