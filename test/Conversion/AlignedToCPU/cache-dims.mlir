// Extents of caches: of any dimension, one that only the program knows, or one that there is not, which says nothing.
// RUN: aligned-opt %s --convert-aligned-to-cpu --canonicalize --cse | FileCheck %s
// RUN: aligned-opt %s --aligned-pipeline -o /dev/null

!key = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>

// CHECK-LABEL: func.func @known(
// CHECK-SAME: %[[CACHE:.*]]: !llvm.ptr
// CHECK-DAG: %[[CHANNELS:.*]] = arith.constant 64 : index
// CHECK-DAG: %[[NONE:.*]] = arith.constant 0 : index
// CHECK-DAG: %[[FIELD:.*]] = llvm.getelementptr %[[CACHE]][16]
// CHECK-DAG: %[[COUNT:.*]] = llvm.load %[[FIELD]]
// CHECK-DAG: %[[TOKENS:.*]] = arith.index_cast %[[COUNT]]
// CHECK: return %[[CHANNELS]], %[[TOKENS]], %[[NONE]], %[[NONE]]
func.func @known(%cache: !key) -> (index, index, index, index) {
  %three = arith.constant 3 : index
  %two = arith.constant 2 : index
  %seven = arith.constant 7 : index
  %minus = arith.constant -1 : index
  %channels = memref.dim %cache, %three : !key
  %tokens = memref.dim %cache, %two : !key
  %beyond = memref.dim %cache, %seven : !key
  %before = memref.dim %cache, %minus : !key
  return %channels, %tokens, %beyond, %before : index, index, index, index
}

// CHECK-LABEL: func.func @unknown(
// CHECK-SAME: %{{.*}}: !llvm.ptr, %[[DIM:.*]]: index
// CHECK-DAG: %[[IS_TOKENS:.*]] = arith.cmpi eq, %[[DIM]], %c2
// CHECK-DAG: %[[COUNT:.*]] = llvm.load
// CHECK: arith.select %[[IS_TOKENS]], %[[COUNT]],
// CHECK: %[[IS_CHANNELS:.*]] = arith.cmpi eq, %[[DIM]], %c3
// CHECK: arith.select %[[IS_CHANNELS]], %c64
func.func @unknown(%cache: !key, %dim: index) -> index {
  %extent = memref.dim %cache, %dim : !key
  return %extent : index
}
