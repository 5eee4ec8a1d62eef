// RUN: aligned-opt %s --convert-aligned-to-cpu="reference=true" | FileCheck %s

// Unfused attention has no kernel; as an oracle it may run in float64, over operands widened to f32.

// CHECK-LABEL: func.func @attention(
func.func @attention(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<1x4x1x16xf16> {
  // CHECK-COUNT-3: arith.extf
  // CHECK: %[[MASKED:.*]] = arith.constant 1 : i32
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[MASKED]])
  // CHECK: arith.truncf
  %out = aligned.attention %q, %k, %v scale %scale masked_zero : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<1x4x1x16xf16>
  return %out : tensor<1x4x1x16xf16>
}
