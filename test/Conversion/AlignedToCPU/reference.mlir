// RUN: aligned-opt %s --convert-aligned-to-linalg="reference=true" | FileCheck %s

// Unfused attention has no kernel; as an oracle it may run in float64, over operands widened to f32.

// CHECK-LABEL: func.func @attention(
func.func @attention(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<1x4x1x16xf16> {
  // CHECK-COUNT-3: arith.extf
  // CHECK-DAG: %[[CAP:.*]] = arith.constant 0.000000e+00 : f64
  // CHECK-DAG: %[[NONE:.*]] = llvm.mlir.zero : !llvm.ptr
  // CHECK: %[[MASKED:.*]] = arith.constant 1 : i32
  // CHECK-NEXT: %[[CAUSAL:.*]] = arith.constant 0 : i32
  // CHECK-NEXT: %[[WINDOW:.*]] = arith.constant 0 : i64
  // CHECK-NEXT: %[[SINKS:.*]] = arith.constant 0 : i64
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[MASKED]], %[[CAUSAL]], %[[WINDOW]], %[[SINKS]], %[[CAP]], %[[NONE]], %{{.*}}, %[[NONE]])
  // CHECK: arith.truncf
  %out = aligned.attention %q, %k, %v scale %scale masked_zero : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<1x4x1x16xf16>
  return %out : tensor<1x4x1x16xf16>
}

// CHECK-LABEL: func.func @masked(
func.func @masked(%q: tensor<1x4x3x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>, %scale: f32) -> tensor<1x4x3x16xf32> {
  // CHECK-DAG: %[[CAP:.*]] = arith.constant 5.000000e+01 : f64
  // CHECK-DAG: %[[NONE:.*]] = llvm.mlir.zero : !llvm.ptr
  // CHECK: %[[MASKED:.*]] = arith.constant 0 : i32
  // CHECK-NEXT: %[[CAUSAL:.*]] = arith.constant 1 : i32
  // CHECK-NEXT: %[[WINDOW:.*]] = arith.constant 8 : i64
  // CHECK-NEXT: %[[SINKS:.*]] = arith.constant 2 : i64
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[MASKED]], %[[CAUSAL]], %[[WINDOW]], %[[SINKS]], %[[CAP]], %[[NONE]], %{{.*}}, %[[NONE]])
  %out = aligned.attention %q, %k, %v scale %scale softcap 50.0 mask <causal, window = 8, sinks = 2>
      : tensor<1x4x3x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32> -> tensor<1x4x3x16xf32>
  return %out : tensor<1x4x3x16xf32>
}

// P8: a mask by numbers comes widened, one of booleans as 0 and -inf, with a bit for each of batch, heads and queries that it has numbers of its own for.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: tensor<1x4x3x?xf16>, %[[BOOLS:[a-z0-9]+]]: tensor<2x1x1x?xi1>, %[[LOGITS:[a-z0-9]+]]: tensor<4xf32>)
func.func @numbers(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x?x16xf32>, %v: tensor<2x2x?x16xf32>, %scale: f32, %mask: tensor<1x4x3x?xf16>, %bools: tensor<2x1x1x?xi1>,
                   %logits: tensor<4xf32>) -> (tensor<2x4x3x16xf32>, tensor<2x4x3x16xf32>) {
  // CHECK: %[[NONE:.*]] = llvm.mlir.zero : !llvm.ptr
  // CHECK: %[[WIDE:.*]] = linalg.generic {{.*}} ins(%[[MASK]] : tensor<1x4x3x?xf16>) outs(%{{.*}} : tensor<1x4x3x?xf32>)
  // CHECK: arith.extf
  // CHECK: bufferization.to_buffer %[[WIDE]]
  // CHECK: %[[ADDRESS:.*]] = llvm.inttoptr
  // CHECK: %[[DIMS:.*]] = arith.constant 6 : i32
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[ADDRESS]], %[[DIMS]], %[[NONE]])
  %0 = aligned.attention %q, %k, %v scale %scale attn_mask %mask : tensor<1x4x3x?xf16> : tensor<2x4x3x16xf32>, tensor<2x2x?x16xf32>, tensor<2x2x?x16xf32> -> tensor<2x4x3x16xf32>
  // CHECK: linalg.generic {{.*}} ins(%[[BOOLS]] : tensor<2x1x1x?xi1>) outs(%{{.*}} : tensor<2x1x1x?xf32>)
  // CHECK: ^bb0(%[[SEEN:.*]]: i1,
  // CHECK-DAG: %[[ZERO:.*]] = arith.constant 0.000000e+00 : f32
  // CHECK-DAG: %[[HIDDEN:.*]] = arith.constant 0xFF800000 : f32
  // CHECK: arith.select %[[SEEN]], %[[ZERO]], %[[HIDDEN]]
  // CHECK: %[[ADDRESS:.*]] = llvm.inttoptr
  // CHECK: %[[DIMS:.*]] = arith.constant 1 : i32
  // CHECK: bufferization.to_buffer %[[LOGITS]]
  // CHECK: %[[SINKS:.*]] = llvm.inttoptr
  // CHECK: call @aligned_rt_reference_attention({{.*}}, %[[ADDRESS]], %[[DIMS]], %[[SINKS]])
  %1 = aligned.attention %q, %k, %v scale %scale attn_mask %bools : tensor<2x1x1x?xi1> sink_logits %logits : tensor<4xf32>
      : tensor<2x4x3x16xf32>, tensor<2x2x?x16xf32>, tensor<2x2x?x16xf32> -> tensor<2x4x3x16xf32>
  return %0, %1 : tensor<2x4x3x16xf32>, tensor<2x4x3x16xf32>
}

// Of caches it takes every bit that is stored.

#key = #aligned.planes<fixed<4, 4, 8>, key>
#value = #aligned.planes<float<8, 4, 4>, value>
// CHECK-LABEL: func.func @stored(
func.func @stored(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16, #key>, %v: tensor<1x2x?x16xf16, #value>, %scale: f32) -> tensor<1x4x1x16xf16> {
  // CHECK: aligned.unpack %{{.*}} : tensor<1x2x?x16xf16, #[[KEY:.*]]> to tensor<1x2x?x16xf16>
  // CHECK: aligned.unpack %{{.*}} : tensor<1x2x?x16xf16, #[[VALUE:.*]]> to tensor<1x2x?x16xf16>
  // CHECK: call @aligned_rt_reference_attention(
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16, #key>, tensor<1x2x?x16xf16, #value> -> tensor<1x4x1x16xf16>
  return %out : tensor<1x4x1x16xf16>
}

// So does decode attention that reads every bit, unless it is certified: its state. What others read only kernels know.

#float = #aligned.planes<float<8, 4, 4>, key>
// CHECK-LABEL: func.func @fused(
// CHECK-SAME: %[[LATER:[a-z0-9]+]]: index)
func.func @fused(%q: tensor<1x4x2x16xf16>, %k: tensor<1x2x?x16xf16, #float>, %v: tensor<1x2x?x16xf16, #value>, %scale: f32, %later: index)
    -> (tensor<1x4x2x16xf32>, tensor<1x4x2xf32>, tensor<1x4x2xf32>) {
  // CHECK: aligned.unpack %{{.*}} to tensor<1x2x?x16xf16>
  // CHECK: aligned.unpack %{{.*}} to tensor<1x2x?x16xf16>
  // CHECK: %[[ACC:.*]] = memref.alloc() : memref<1x4x2x16xf32>
  // CHECK: %[[MAX:.*]] = memref.alloc() : memref<1x4x2xf32>
  // CHECK: %[[SUM:.*]] = memref.alloc() : memref<1x4x2xf32>
  // CHECK: %[[NEWER:.*]] = arith.index_cast %[[LATER]] : index to i64
  // CHECK: call @aligned_rt_reference_state({{.*}}, %[[NEWER]], %{{.*}})
  // CHECK: %[[A:.*]] = bufferization.to_tensor %[[ACC]] restrict writable
  // CHECK: %[[M:.*]] = bufferization.to_tensor %[[MAX]] restrict writable
  // CHECK: %[[S:.*]] = bufferization.to_tensor %[[SUM]] restrict writable
  // CHECK: return %[[A]], %[[M]], %[[S]]
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale mask <causal> later %later policy <exact>
      : tensor<1x4x2x16xf16>, tensor<1x2x?x16xf16, #float>, tensor<1x2x?x16xf16, #value> -> tensor<1x4x2x16xf32>, tensor<1x4x2xf32>, tensor<1x4x2xf32>
  return %acc, %max, %sum : tensor<1x4x2x16xf32>, tensor<1x4x2xf32>, tensor<1x4x2xf32>
}

// CHECK-LABEL: func.func @published(
func.func @published(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16, #float>, %v: tensor<1x2x?x16xf16, #value>, %scale: f32) -> tensor<1x4x1x16xf32> {
  // CHECK-NOT: call @aligned_rt
  // CHECK: aligned.decode_attention
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <alignedkv>
      : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16, #float>, tensor<1x2x?x16xf16, #value> -> tensor<1x4x1x16xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x16xf32>
}
