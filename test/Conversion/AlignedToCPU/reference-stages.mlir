// RUN: aligned-opt %s --convert-aligned-to-cpu="reference=true" | FileCheck %s

// With `reference`, stages call what they mean in float64, with the operands of a kernel, null where there is none, and a struct on the stack for what a
// kernel would be specialised for.

#key = #aligned.planes<fixed<4, 4, 8>, key>
#value = #aligned.planes<fixed<4, 4, 8>, value, resident = 2>

// CHECK-LABEL: func.func @plain(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: memref<1x4x1x32xf16>, %[[K:[a-z0-9]+]]: !llvm.ptr, %[[V:[a-z0-9]+]]: !llvm.ptr, %[[SCALE:[a-z0-9]+]]: f32
func.func @plain(%q: memref<1x4x1x32xf16>, %k: memref<1x2x?x32xf16, #key>, %v: memref<1x2x?x16xf16, #value>, %scale: f32, %row: index, %split: index,
                 %digits: memref<2x2x32xi8>, %facts: memref<3x8xf32>, %mean: memref<16xf32>, %scores: memref<?x2x64xf32>, %tops: memref<?x2x16xf32>,
                 %part: memref<1x2x2xf32>, %parts: memref<?x2x2xf32>, %acc: memref<1x2x1x16xf32>, %max: memref<1x2x1xf32>, %sum: memref<1x2x1xf32>) {
  // The tolerance of the first side.
  // CHECK: %[[TOLERANCE:.*]] = arith.constant 7.812500e-03 : f64
  // CHECK-NEXT: %[[FIRST:.*]] = llvm.getelementptr %{{.*}}[0]
  // CHECK-NEXT: llvm.store %[[TOLERANCE]], %[[FIRST]]
  // CHECK: call @aligned_rt_reference_prepare(%{{.*}}, %{{.*}}, %[[K]], %[[V]], %[[SCALE]], %{{.*}}) : (!llvm.ptr, !llvm.ptr, !llvm.ptr, !llvm.ptr, f32, i64, i64, f32, !llvm.ptr, !llvm.ptr, !llvm.ptr) -> ()
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 7.812500e-03> outs(%digits, %facts, %mean : memref<2x2x32xi8>, memref<3x8xf32>, memref<16xf32>)
      : memref<1x4x1x32xf16>, memref<1x2x?x32xf16, #key>, memref<1x2x?x16xf16, #value>
  // CHECK: %[[NONE:.*]] = llvm.mlir.zero : !llvm.ptr
  // CHECK: call @aligned_rt_reference_scan(%{{.*}}, %{{.*}}, %[[K]], %[[V]], %[[SCALE]], %{{.*}}, %{{.*}}, %{{.*}}, %[[NONE]], {{.*}})
  aligned.scan %q, %k, %v, %digits, %facts scale %scale row %row split %split policy <budget, tolerance = 7.812500e-03>
      outs(%scores, %tops, %part : memref<?x2x64xf32>, memref<?x2x16xf32>, memref<1x2x2xf32>)
      : memref<1x4x1x32xf16>, memref<1x2x?x32xf16, #key>, memref<1x2x?x16xf16, #value>, memref<2x2x32xi8>, memref<3x8xf32>
  // CHECK: %[[NOTHING:.*]] = llvm.mlir.zero : !llvm.ptr
  // CHECK: %[[ID:.*]] = arith.constant 3 : i32
  // CHECK: call @aligned_rt_reference_attend(%{{.*}}, %{{.*}}, %[[K]], %[[V]], %{{.*}}, %{{.*}}, %{{.*}}, %[[NOTHING]], %[[NOTHING]], {{.*}}, %[[NOTHING]], %[[ID]])
  aligned.attend %q, %k, %v, %digits, %facts, %mean, %scores, %tops, %parts row %row split %split policy <budget, tolerance = 7.812500e-03>
      outs(%acc, %max, %sum : memref<1x2x1x16xf32>, memref<1x2x1xf32>, memref<1x2x1xf32>) {attention_id = 3 : i32}
      : memref<1x4x1x32xf16>, memref<1x2x?x32xf16, #key>, memref<1x2x?x16xf16, #value>, memref<2x2x32xi8>, memref<3x8xf32>, memref<16xf32>, memref<?x2x64xf32>, memref<?x2x16xf32>,
        memref<?x2x2xf32>
  return
}

// A mask of booleans may begin anywhere in its memory, in which each has a byte.
// CHECK-LABEL: func.func @mask_within(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: memref<1x1x1x64xi1, strided<[64, 64, 64, 1], offset: ?>>
func.func @mask_within(%q: memref<1x4x1x32xf16>, %k: memref<1x2x?x32xf16, #key>, %v: memref<1x2x?x16xf16, #value>, %scale: f32, %row: index, %split: index,
                       %digits: memref<2x2x32xi8>, %facts: memref<3x8xf32>, %scores: memref<?x2x64xf32>, %tops: memref<?x2x16xf32>, %part: memref<1x2x2xf32>,
                       %mask: memref<1x1x1x64xi1, strided<[64, 64, 64, 1], offset: ?>>) {
  // CHECK: %{{.*}}, %[[OFFSET:.*]], %{{.*}}:4, %{{.*}}:4 = memref.extract_strided_metadata %[[MASK]]
  // CHECK: %[[BOOLS:.*]] = arith.index_cast %[[OFFSET]]
  // CHECK: %[[BYTE:.*]] = arith.constant 1 : i64
  // CHECK: %[[BYTES:.*]] = arith.muli %[[BOOLS]], %[[BYTE]]
  // CHECK: arith.addi %{{.*}}, %[[BYTES]]
  // CHECK: call @aligned_rt_reference_scan(
  aligned.scan %q, %k, %v, %digits, %facts scale %scale row %row split %split attn_mask %mask : memref<1x1x1x64xi1, strided<[64, 64, 64, 1], offset: ?>>
      policy <budget, tolerance = 7.812500e-03> outs(%scores, %tops, %part : memref<?x2x64xf32>, memref<?x2x16xf32>, memref<1x2x2xf32>)
      : memref<1x4x1x32xf16>, memref<1x2x?x32xf16, #key>, memref<1x2x?x16xf16, #value>, memref<2x2x32xi8>, memref<3x8xf32>
  return
}
