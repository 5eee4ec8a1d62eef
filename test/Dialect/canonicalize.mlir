// RUN: aligned-opt %s --canonicalize | FileCheck %s

!packed = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!other = tensor<1x3x?x64xf16, #aligned.planes<fixed<8, 8>, key>>
!dense = tensor<1x3x?x64xf16>

// Packing what all bits were unpacked from gives the same cache.
// CHECK-LABEL: func.func @pack_of_unpack(
// CHECK-SAME: %[[CACHE:.*]]: tensor
// CHECK-NEXT: return %[[CACHE]]
func.func @pack_of_unpack(%cache: !packed) -> !packed {
  %dense = aligned.unpack %cache : !packed to !dense
  %again = aligned.pack %dense : !dense to !packed
  return %again : !packed
}

// Fewer bits, or another format, do not.
// CHECK-LABEL: func.func @pack_of_coarse_unpack(
// CHECK: aligned.unpack
// CHECK: aligned.pack
func.func @pack_of_coarse_unpack(%cache: !packed) -> !packed {
  %dense = aligned.unpack %cache bits 12 : !packed to !dense
  %again = aligned.pack %dense : !dense to !packed
  return %again : !packed
}

// CHECK-LABEL: func.func @pack_to_another_format(
// CHECK: aligned.unpack
// CHECK: aligned.pack
func.func @pack_to_another_format(%cache: !packed) -> !other {
  %dense = aligned.unpack %cache : !packed to !dense
  %again = aligned.pack %dense : !dense to !other
  return %again : !other
}

// CHECK-LABEL: func.func @append_nothing(
// CHECK-SAME: %{{.*}}: tensor<1x3x0x64xf16>, %[[CACHE:.*]]: tensor
// CHECK-NEXT: return %[[CACHE]]
func.func @append_nothing(%none: tensor<1x3x0x64xf16>, %cache: !dense) -> !dense {
  %same = aligned.append %none to %cache : tensor<1x3x0x64xf16> to !dense -> !dense
  return %same : !dense
}

// CHECK-LABEL: func.func @append_one(
// CHECK: aligned.append
func.func @append_one(%one: tensor<1x3x1x64xf16>, %cache: !dense) -> !dense {
  %more = aligned.append %one to %cache : tensor<1x3x1x64xf16> to !dense -> !dense
  return %more : !dense
}

// Nobody reads it, so nobody computes it.
// CHECK-LABEL: func.func @unused(
// CHECK-NEXT: return
func.func @unused(%q: tensor<1x3x1x64xf16>, %k: !dense, %v: !dense, %scale: f32) {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x3x1x64xf16>, !dense, !dense -> tensor<1x3x1x64xf16>
  return
}

// Constants are attributes, such as attributes may be.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[W:[a-z0-9]+]]: index
// CHECK-DAG: %[[NONE:.*]] = arith.constant 0 : index
// CHECK-DAG: %[[LESS:.*]] = arith.constant -5.000000e+00 : f32
// CHECK: aligned.decode_attention {{.*}} softcap 5.000000e+01 mask <causal, window = 64> policy
// CHECK: aligned.decode_attention {{.*}} mask <window = %[[W]], sinks = 4> policy
// CHECK: aligned.decode_attention {{.*}} softcap %[[LESS]] mask <causal, window = %[[NONE]], sinks = 4> policy
func.func @numbers(%q: tensor<1x3x1x64xf16>, %k: !dense, %v: !dense, %scale: f32, %w: index) -> (tensor<1x3x1x64xf32>, tensor<1x3x1xf32>, tensor<1x3x1xf32>) {
  %cap = arith.constant 50.0 : f32
  %less = arith.constant -5.0 : f32
  %window = arith.constant 64 : index
  %four = arith.constant 4 : index
  %none = arith.constant 0 : index
  %a:3 = aligned.decode_attention %q, %k, %v scale %scale softcap %cap mask <causal, window = %window, sinks = %none> policy <exact>
      : tensor<1x3x1x64xf16>, !dense, !dense -> tensor<1x3x1x64xf32>, tensor<1x3x1xf32>, tensor<1x3x1xf32>
  %b:3 = aligned.decode_attention %q, %k, %v scale %scale mask <window = %w, sinks = %four> policy <exact>
      : tensor<1x3x1x64xf16>, !dense, !dense -> tensor<1x3x1x64xf32>, tensor<1x3x1xf32>, tensor<1x3x1xf32>
  %c:3 = aligned.decode_attention %q, %k, %v scale %scale softcap %less mask <causal, window = %none, sinks = %four> policy <exact>
      : tensor<1x3x1x64xf16>, !dense, !dense -> tensor<1x3x1x64xf32>, tensor<1x3x1xf32>, tensor<1x3x1xf32>
  return %a#0, %b#1, %c#2 : tensor<1x3x1x64xf32>, tensor<1x3x1xf32>, tensor<1x3x1xf32>
}
