// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=avx512" | FileCheck %s --check-prefixes=CHECK,AVX512
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=avx2" | FileCheck %s --check-prefixes=CHECK,AVX2
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=portable" | FileCheck %s --check-prefixes=CHECK,PORTABLE

// The op becomes a call that runs a kernel over all kv heads of the batch; caches become pointers and nothing else changes type.

!key = tensor<2x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>
!value = tensor<2x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, value>>

// CHECK-NOT: aligned.decode_attention
// CHECK-LABEL: func.func @budget(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x9x1x64xf16>, %[[K:.*]]: !llvm.ptr, %[[V:.*]]: !llvm.ptr, %[[SCALE:.*]]: f32
func.func @budget(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> (tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>) {
  // CHECK: %[[SLOTS:.*]] = llvm.alloca
  // CHECK: bufferization.to_buffer %[[Q]] read_only
  // CHECK-DAG: llvm.store %[[K]]
  // CHECK-DAG: llvm.store %[[V]]
  // CHECK-DAG: llvm.store %[[SCALE]]
  // CHECK-DAG: memref.alloc() : memref<2x9x1x64xf32>
  // CHECK-DAG: memref.alloc() : memref<2x9x1xf32>
  // CHECK: %[[BODY:.*]] = constant @aligned_decode_0
  // CHECK: call @aligned_rt_parallel(%{{.*}}, %[[BODY]], %[[SLOTS]])
  // CHECK: bufferization.to_tensor %{{.*}} restrict writable : memref<2x9x1x64xf32>
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 3.906250e-03>
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc, %max, %sum : tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
}

// CHECK-LABEL: func.func @dense(
// CHECK-SAME: tensor<1x4x1x32xf32>, %{{.*}}: tensor<1x2x?x32xf32>, %{{.*}}: tensor<1x2x?x48xf32>
func.func @dense(%q: tensor<1x4x1x32xf32>, %k: tensor<1x2x?x32xf32>, %v: tensor<1x2x?x48xf32>, %scale: f32) -> tensor<1x4x1x48xf32> {
  // CHECK: constant @aligned_decode_7
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {site = 7 : i32}
      : tensor<1x4x1x32xf32>, tensor<1x2x?x32xf32>, tensor<1x2x?x48xf32> -> tensor<1x4x1x48xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x48xf32>
}

// The kernel of split caches multiplies nibbles as integers.
// CHECK-LABEL: func.func private @aligned_decode_0(
// CHECK-SAME: !llvm.ptr, %{{.*}}: i64, %{{.*}}: i64)
// CHECK: call @aligned_rt_scratch
// AVX512: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"
// AVX2: llvm.call_intrinsic "llvm.x86.avx2.pmadd.ub.sw"
// AVX2: llvm.call_intrinsic "llvm.x86.avx2.pmadd.wd"
// PORTABLE-NOT: llvm.call_intrinsic
// CHECK: call @aligned_rt_tally
// CHECK: return

// That of dense caches has no integers to multiply.
// CHECK-LABEL: func.func private @aligned_decode_7(
// CHECK-NOT: llvm.call_intrinsic
// CHECK: call @aligned_rt_tally
// CHECK: return
