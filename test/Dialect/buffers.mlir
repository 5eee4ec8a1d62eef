// RUN: aligned-opt %s | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --canonicalize --cse | FileCheck %s --check-prefix=KEPT

// Ops on buffers: a cache's memory space is its encoding, and what an op gives is written where it is told.

!dense = memref<1x2x?x64xf16>
!key = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>

// CHECK-LABEL: func.func @storage(
// CHECK: aligned.pack %{{.*}} into %{{.*}} : memref<1x2x?x64xf16> to memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK: aligned.append %{{.*}} to %{{.*}} : memref<1x2x?x64xf16> to memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>> -> memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK: aligned.fork %{{.*}} : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK: aligned.unpack %{{.*}} bits 8 into %{{.*}} : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>> to memref<1x2x?x64xf16>
// CHECK: aligned.unpack %{{.*}} into %{{.*}} : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>> to memref<1x2x?x64xf16>

// What is done to memory is done, whether or not a result is used.
// KEPT-LABEL: func.func @storage(
// KEPT: aligned.pack
// KEPT: aligned.append
// KEPT: aligned.unpack
// KEPT: aligned.unpack
func.func @storage(%dense: !dense, %cache: !key, %out: !dense) {
  aligned.pack %dense into %cache : !dense to !key
  %new = aligned.append %dense to %cache : !dense to !key -> !key
  %fork = aligned.fork %cache : !key
  aligned.unpack %new bits 8 into %out : !key to !dense
  aligned.unpack %fork into %out : !key to !dense
  return
}

// CHECK-LABEL: func.func @decode(
// CHECK: aligned.decode_attention %{{.*}}, %{{.*}}, %{{.*}} scale %{{.*}} policy <budget, tolerance = 2.500000e-01> into %{{.*}}, %{{.*}}, %{{.*}} : memref<1x4x1x64xf16>,
// CHECK-SAME: into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>
// CHECK: aligned.decode_attention {{.*}} masked_zero into %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} : memref<1x4x1x64xf16>,
// CHECK-SAME: into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>, memref<1x4x1x8xf32>
// KEPT-LABEL: func.func @decode(
// KEPT-COUNT-2: aligned.decode_attention
func.func @decode(%q: memref<1x4x1x64xf16>, %k: !key, %v: !value, %scale: f32, %acc: memref<1x4x1x64xf32>, %max: memref<1x4x1xf32>, %sum: memref<1x4x1xf32>,
                  %certificate: memref<1x4x1x8xf32>) {
  aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25> into %acc, %max, %sum
      : memref<1x4x1x64xf16>, !key, !value into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>
  aligned.decode_attention %q, %k, %v scale %scale policy <exact> masked_zero into %acc, %max, %sum, %certificate
      : memref<1x4x1x64xf16>, !key, !value into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>, memref<1x4x1x8xf32>
  return
}
