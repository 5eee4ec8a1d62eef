// RUN: aligned-opt %s | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --mlir-print-op-generic | aligned-opt | FileCheck %s

!key = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>

// CHECK-LABEL: func.func @attention(
// CHECK: aligned.attention %{{.*}}, %{{.*}}, %{{.*}} scale %{{.*}} : tensor<2x8x1x32xf16>, tensor<2x2x?x32xf16>, tensor<2x2x?x48xf16> -> tensor<2x8x1x48xbf16>
func.func @attention(%q: tensor<2x8x1x32xf16>, %k: tensor<2x2x?x32xf16>, %v: tensor<2x2x?x48xf16>, %scale: f32) -> tensor<2x8x1x48xbf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<2x8x1x32xf16>, tensor<2x2x?x32xf16>, tensor<2x2x?x48xf16> -> tensor<2x8x1x48xbf16>
  return %out : tensor<2x8x1x48xbf16>
}

// CHECK-LABEL: func.func @masked_zero(
// CHECK: aligned.attention %{{.*}} masked_zero : tensor<1x9x7x64xf16>, tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>> -> tensor<1x9x7x64xf16>
func.func @masked_zero(%q: tensor<1x9x7x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x7x64xf16> {
  %out = aligned.attention %q, %k, %v scale %scale masked_zero : tensor<1x9x7x64xf16>, !key, !value -> tensor<1x9x7x64xf16>
  return %out : tensor<1x9x7x64xf16>
}

// CHECK-LABEL: func.func @storage(
// CHECK: aligned.append %{{.*}} to %{{.*}} : tensor<1x3x1x64xf16> to tensor<1x3x63x64xf16> -> tensor<1x3x64x64xf16>
// CHECK: aligned.append %{{.*}} at %{{.*}} to %{{.*}} : tensor<1x3x1x64xf16> to tensor<1x3x64x64xf16> -> tensor<1x3x64x64xf16>
// CHECK: aligned.pack %{{.*}} : tensor<1x3x64x64xf16> to tensor<1x3x64x64xf16, #aligned.planes<float<8, 4, 4>, value, resident = 2>>
// CHECK: aligned.unpack %{{.*}} bits 8 : tensor<1x3x64x64xf16, #aligned.planes<float<8, 4, 4>, value, resident = 2>> to tensor<1x3x64x64xf16>
// CHECK: aligned.unpack %{{[^ ]*}} : tensor
func.func @storage(%new: tensor<1x3x1x64xf16>, %cache: tensor<1x3x63x64xf16>, %position: index) -> (tensor<1x3x64x64xf16>, tensor<1x3x64x64xf16>) {
  %all = aligned.append %new to %cache : tensor<1x3x1x64xf16> to tensor<1x3x63x64xf16> -> tensor<1x3x64x64xf16>
  %other = aligned.append %new at %position to %all : tensor<1x3x1x64xf16> to tensor<1x3x64x64xf16> -> tensor<1x3x64x64xf16>
  %split = aligned.pack %other : tensor<1x3x64x64xf16> to tensor<1x3x64x64xf16, #aligned.planes<float<8, 4, 4>, value, resident = 2>>
  %coarse = aligned.unpack %split bits 8 : tensor<1x3x64x64xf16, #aligned.planes<float<8, 4, 4>, value, resident = 2>> to tensor<1x3x64x64xf16>
  %full = aligned.unpack %split : tensor<1x3x64x64xf16, #aligned.planes<float<8, 4, 4>, value, resident = 2>> to tensor<1x3x64x64xf16>
  return %coarse, %full : tensor<1x3x64x64xf16>, tensor<1x3x64x64xf16>
}

// CHECK-LABEL: func.func private @formats(
// CHECK-SAME: tensor<1x1x64x16xbf16, #aligned.planes<float<12, 4>, key>>
// CHECK-SAME: tensor<1x1x64x256xf32, #aligned.planes<fixed<4, 4, 4, 4>, value>>
// CHECK-SAME: tensor<1x1x1x16xf16, #aligned.planes<float<16>, value>>
// CHECK-SAME: tensor<1x1x65x16xbf16, #aligned.planes<fixed<8, 8>, key, resident = 1>>
func.func private @formats(tensor<1x1x64x16xbf16, #aligned.planes<float<12, 4>, key>>, tensor<1x1x64x256xf32, #aligned.planes<fixed<4, 4, 4, 4>, value, resident = 4>>,
                           tensor<1x1x1x16xf16, #aligned.planes<float<16>, value, resident = 1>>,
                           tensor<1x1x65x16xbf16, #aligned.planes<fixed<8, 8>, key, resident = 1>>)

// S2: what a function says of its keys.
// CHECK-LABEL: func.func private @offset(
// CHECK-SAME: tensor<1x2x?x16xf16> {aligned.key_offset = dense<5.000000e-01> : tensor<2x16xf32>}
func.func private @offset(tensor<1x2x?x16xf16> {aligned.key_offset = dense<0.5> : tensor<2x16xf32>})

// CHECK-LABEL: func.func @state(
// CHECK: %[[A:.*]], %[[M:.*]], %[[S:.*]] = aligned.decode_attention %{{.*}}, %{{.*}}, %{{.*}} scale %{{.*}} policy <budget, tolerance = 3.906250e-03> masked_zero {attention_id = 3 : i32}
// CHECK: %[[A1:.*]], %[[M1:.*]], %[[S1:.*]] = aligned.decode_attention {{.*}} policy <exact> :
// CHECK: %[[A2:.*]], %{{.*}}, %[[S2:.*]] = aligned.merge(%[[A]], %[[M]], %[[S]]), (%[[A1]], %[[M1]], %[[S1]]) : tensor<1x9x1x64xf32>, tensor<1x9x1xf32>
// CHECK: aligned.finish %[[A2]], %[[S2]] : tensor<1x9x1x64xf32>, tensor<1x9x1xf32> -> tensor<1x9x1x64xf16>
func.func @state(%q: tensor<1x9x1x64xf16>, %k: !key, %v: !value, %k1: tensor<1x3x63x64xf16>, %v1: tensor<1x3x63x64xf16>, %scale: f32) -> tensor<1x9x1x64xf16> {
  %a, %m, %s = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.00390625> masked_zero {attention_id = 3 : i32}
      : tensor<1x9x1x64xf16>, !key, !value -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
  %a1, %m1, %s1 = aligned.decode_attention %q, %k1, %v1 scale %scale policy <exact>
      : tensor<1x9x1x64xf16>, tensor<1x3x63x64xf16>, tensor<1x3x63x64xf16> -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
  %a2, %m2, %s2 = aligned.merge (%a, %m, %s), (%a1, %m1, %s1) : tensor<1x9x1x64xf32>, tensor<1x9x1xf32>
  %out = aligned.finish %a2, %s2 : tensor<1x9x1x64xf32>, tensor<1x9x1xf32> -> tensor<1x9x1x64xf16>
  return %out : tensor<1x9x1x64xf16>
}

// P2: a tolerance that is multiplied by a number known when the program runs.
// CHECK-LABEL: func.func @factor(
// CHECK: aligned.decode_attention {{.*}} policy <budget, tolerance = 2.500000e-01> tolerance_factor %{{.*}} masked_zero :
func.func @factor(%q: tensor<1x9x1x64xf16>, %k: !key, %v: !value, %scale: f32, %factor: f32) -> tensor<1x9x1xf32> {
  %a, %m, %s = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25> tolerance_factor %factor masked_zero
      : tensor<1x9x1x64xf16>, !key, !value -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
  return %s : tensor<1x9x1xf32>
}

// P4: a state with its certificate merges into another, and gives a bound and an estimate.
// CHECK-LABEL: func.func @certified(
// CHECK: %{{.*}}, %{{.*}}, %{{.*}}, %[[C:.*]] = aligned.decode_attention {{.*}} -> {{.*}}, tensor<1x9x1xf32> certified tensor<1x9x1x8xf32>
// CHECK: %{{.*}}, %{{.*}}, %{{.*}}, %[[C2:.*]] = aligned.merge({{.*}}, %[[C]]), ({{.*}}, %[[C]]) : tensor<1x9x1x64xf32>, tensor<1x9x1xf32> certified tensor<1x9x1x8xf32>
// CHECK: aligned.finish {{.*}} certificate %[[C2]] : tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1x8xf32> -> tensor<1x9x1x64xf16> certified tensor<1x9x1xf32>, tensor<1x9x1xf32>
// CHECK: aligned.attention {{.*}} -> tensor<1x9x1x64xf16> certified tensor<1x9x1xf32>, tensor<1x9x1xf32>
func.func @certified(%q: tensor<1x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x1xf32> {
  %a, %m, %s, %c = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x9x1x64xf16>, !key, !value -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32> certified tensor<1x9x1x8xf32>
  %a2, %m2, %s2, %c2 = aligned.merge (%a, %m, %s, %c), (%a, %m, %s, %c) : tensor<1x9x1x64xf32>, tensor<1x9x1xf32> certified tensor<1x9x1x8xf32>
  %out:3 = aligned.finish %a2, %s2 certificate %c2 : tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1x8xf32>
      -> tensor<1x9x1x64xf16> certified tensor<1x9x1xf32>, tensor<1x9x1xf32>
  %again:3 = aligned.attention %q, %k, %v scale %scale : tensor<1x9x1x64xf16>, !key, !value -> tensor<1x9x1x64xf16> certified tensor<1x9x1xf32>, tensor<1x9x1xf32>
  return %out#1 : tensor<1x9x1xf32>
}

// P1: the published rule reads float formats.
// CHECK-LABEL: func.func @alignedkv(
// CHECK: policy <alignedkv> :
func.func @alignedkv(%q: tensor<1x2x1x64xf16>, %k: tensor<1x1x97x64xf16, #aligned.planes<float<8, 4, 4>, key>>,
                     %v: tensor<1x1x97x64xf16, #aligned.planes<float<8, 4, 4>, value>>, %scale: f32) -> tensor<1x2x1xf32> {
  %a, %m, %s = aligned.decode_attention %q, %k, %v scale %scale policy <alignedkv>
      : tensor<1x2x1x64xf16>, tensor<1x1x97x64xf16, #aligned.planes<float<8, 4, 4>, key>>, tensor<1x1x97x64xf16, #aligned.planes<float<8, 4, 4>, value>>
      -> tensor<1x2x1x64xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %m : tensor<1x2x1xf32>
}
