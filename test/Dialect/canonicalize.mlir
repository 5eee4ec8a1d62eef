// RUN: aligned-opt %s --canonicalize | FileCheck %s

!split = tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>
!other = tensor<1x3x?x64xf16, #aligned.split<fixed<8, 8>, key>>
!dense = tensor<1x3x?x64xf16>

// Splitting what all bits were joined from gives the same cache.
// CHECK-LABEL: func.func @split_of_join(
// CHECK-SAME: %[[CACHE:.*]]: tensor
// CHECK-NEXT: return %[[CACHE]]
func.func @split_of_join(%cache: !split) -> !split {
  %dense = aligned.join %cache : !split to !dense
  %again = aligned.split %dense : !dense to !split
  return %again : !split
}

// Fewer bits, or another format, do not.
// CHECK-LABEL: func.func @split_of_coarse_join(
// CHECK: aligned.join
// CHECK: aligned.split
func.func @split_of_coarse_join(%cache: !split) -> !split {
  %dense = aligned.join %cache bits 12 : !split to !dense
  %again = aligned.split %dense : !dense to !split
  return %again : !split
}

// CHECK-LABEL: func.func @split_to_another_format(
// CHECK: aligned.join
// CHECK: aligned.split
func.func @split_to_another_format(%cache: !split) -> !other {
  %dense = aligned.join %cache : !split to !dense
  %again = aligned.split %dense : !dense to !other
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
