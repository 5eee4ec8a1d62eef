// RUN: aligned-opt %s --split-input-file --aligned-parallelize-forall --canonicalize --cse | FileCheck %s
// RUN: aligned-opt %s --split-input-file --aligned-pipeline | FileCheck %s --check-prefix=LLVM

// What the body uses of its surroundings travels in a struct; constants come along.
// CHECK-LABEL: func.func @one(
// CHECK-SAME: %[[BUFFER:[a-z0-9]+]]: memref<?xf32>, %[[X:[a-z0-9]+]]: f32, %[[N:[a-z0-9]+]]: index)
// CHECK: %[[BODY:.*]] = constant @one_parallel
// CHECK: %[[MEMORY:.*]] = llvm.alloca %c1_i64 x !llvm.struct<(f32, struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>)>
// CHECK: %[[FIRST:.*]] = llvm.getelementptr %[[MEMORY]][0, 0]
// CHECK: llvm.store %[[X]], %[[FIRST]]
// CHECK: %[[DESCRIPTOR:.*]] = builtin.unrealized_conversion_cast %[[BUFFER]]
// CHECK: %[[FIELD:.*]] = llvm.getelementptr %[[MEMORY]][0, 1]
// CHECK: llvm.store %[[DESCRIPTOR]], %[[FIELD]]
// CHECK: %[[COUNT:.*]] = arith.index_cast %{{.*}} : index to i64
// CHECK: call @aligned_rt_parallel(%[[COUNT]], %[[BODY]], %[[MEMORY]])

// CHECK-LABEL: func.func private @one_parallel(
// CHECK-SAME: %[[ARGUMENTS:.*]]: !llvm.ptr, %[[BEGIN:.*]]: i64, %[[END:.*]]: i64)
// CHECK-DAG: %[[FIVE:.*]] = arith.constant 5.000000e+00 : f32
// CHECK-DAG: %[[FIRST:.*]] = llvm.getelementptr %[[ARGUMENTS]][0, 0]
// CHECK-DAG: %[[X:.*]] = llvm.load %[[FIRST]]
// CHECK-DAG: %[[FROM:.*]] = arith.index_cast %[[BEGIN]]
// CHECK-DAG: %[[TO:.*]] = arith.index_cast %[[END]]
// CHECK: scf.for %[[I:.*]] = %[[FROM]] to %[[TO]]
// CHECK: %[[SUM:.*]] = arith.addf %[[X]], %[[FIVE]]
// CHECK: memref.store %[[SUM]], %{{.*}}[%[[I]]]
// LLVM: llvm.func @one(
// LLVM: llvm.call @aligned_rt_parallel(
// LLVM: llvm.func @one_parallel(
func.func @one(%buffer: memref<?xf32>, %x: f32, %n: index) {
  %five = arith.constant 5.0 : f32
  scf.forall (%i) in (%n) {
    %sum = arith.addf %x, %five : f32
    memref.store %sum, %buffer[%i] : memref<?xf32>
  }
  return
}

// -----

// Dimensions are numbered through, the last one fastest; bounds and steps are counted off.
// CHECK-LABEL: func.func @three(
// CHECK: call @aligned_rt_parallel(
// CHECK-LABEL: func.func private @three_parallel(
// CHECK: scf.for %[[NUMBER:.*]] =
// CHECK: %[[K:.*]] = arith.remui %[[NUMBER]], %c4
// CHECK: %[[REST:.*]] = arith.divui %[[NUMBER]], %c4
// CHECK: %[[THIRD:.*]] = arith.muli %[[K]], %c2
// CHECK: %[[J:.*]] = arith.remui %[[REST]], %[[SIZE:.*]]
// CHECK: %[[FIRST:.*]] = arith.divui %[[REST]], %[[SIZE]]
// CHECK: %[[I:.*]] = arith.addi %[[FIRST]], %c3
// CHECK: memref.store %{{.*}}, %{{.*}}[%[[I]], %[[J]], %[[THIRD]]]
// LLVM: llvm.func @three_parallel(
func.func @three(%buffer: memref<?x?x8xf32>, %m: index, %n: index) {
  %zero = arith.constant 0.0 : f32
  scf.forall (%i, %j, %k) = (3, 0, 0) to (%m, %n, 8) step (1, 1, 2) {
    memref.store %zero, %buffer[%i, %j, %k] : memref<?x?x8xf32>
  }
  return
}

// -----

// A loop in a loop is a call in a function, and its arguments lie on that function's stack, once.
// CHECK-LABEL: func.func @nested(
// CHECK: constant @nested_parallel_0
// CHECK: func.func private @nested_parallel(
// CHECK: memref.store
// CHECK: func.func private @nested_parallel_0(
// CHECK: %[[INNER:.*]] = constant @nested_parallel :
// CHECK: %[[MEMORY:.*]] = llvm.alloca
// CHECK: scf.for
// CHECK-NOT: llvm.alloca
// CHECK: call @aligned_rt_parallel(%{{.*}}, %[[INNER]], %[[MEMORY]])
// LLVM: llvm.func @nested_parallel_0(
func.func @nested(%buffer: memref<?x?xf32>, %x: vector<8xf32>, %m: index, %n: index) {
  scf.forall (%i) in (%m) {
    scf.forall (%j) in (%n) {
      %first = vector.extract %x[0] : f32 from vector<8xf32>
      memref.store %first, %buffer[%i, %j] : memref<?x?xf32>
    }
  }
  return
}

// -----

// Bodies that differ in nothing but a number that they hand on are one function, which gets the number.
// CHECK-LABEL: func.func @same(
// CHECK-DAG: %[[ONE:.*]] = arith.constant 1 : i32
// CHECK-DAG: %[[TWO:.*]] = arith.constant 2 : i32
// CHECK-DAG: %[[BODY:.*]] = constant @same_parallel_0 :
// CHECK: llvm.store %[[ONE]]
// CHECK: call @aligned_rt_parallel(%{{.*}}, %[[BODY]],
// CHECK: llvm.store %[[TWO]]
// CHECK: call @aligned_rt_parallel(%{{.*}}, %[[BODY]],
// CHECK: func.func private @same_parallel(
// CHECK: %[[NUMBER:.*]] = llvm.load %{{.*}} -> i32
// CHECK: call @report(%{{.*}}, %[[NUMBER]])
// CHECK: func.func private @same_parallel_0(
// CHECK: constant @same_parallel :
// CHECK: llvm.load %{{.*}} -> i32
// CHECK-NOT: func.func private @same_parallel
func.func private @report(index, i32)
func.func @same(%m: index, %n: index) {
  scf.forall (%i) in (%m) {
    scf.forall (%j) in (%n) {
      %one = arith.constant 1 : i32
      func.call @report(%j, %one) : (index, i32) -> ()
    }
  }
  scf.forall (%i) in (%m) {
    scf.forall (%j) in (%n) {
      %two = arith.constant 2 : i32
      func.call @report(%j, %two) : (index, i32) -> ()
    }
  }
  return
}

// -----

// Others stay apart.
// CHECK-LABEL: func.func @other(
// CHECK: func.func private @other_parallel(
// CHECK: func.func private @other_parallel_0(
func.func @other(%buffer: memref<8xf32>, %n: index) {
  %one = arith.constant 1.0 : f32
  %two = arith.constant 2.0 : f32
  scf.forall (%i) in (%n) {
    memref.store %one, %buffer[%i] : memref<8xf32>
  }
  scf.forall (%i) in (%n) {
    memref.store %two, %buffer[%i] : memref<8xf32>
  }
  return
}

// -----

// Of a buffer whose type says all else its address is passed.
// CHECK-LABEL: func.func @address(
// CHECK-SAME: %[[BUFFER:[^:]*]]: memref<4x8xf32>
// CHECK: llvm.alloca %{{.*}} x !llvm.struct<(ptr)>
// CHECK: memref.extract_aligned_pointer_as_index %[[BUFFER]]
// CHECK: func.func private @address_parallel(
// CHECK: %[[ADDRESS:.*]] = llvm.load %{{.*}} -> !llvm.ptr
// CHECK: llvm.insertvalue %[[ADDRESS]]
// LLVM: llvm.func @address_parallel(
func.func @address(%buffer: memref<4x8xf32>) {
  %one = arith.constant 1.0 : f32
  scf.forall (%i) in (4) {
    memref.store %one, %buffer[%i, %i] : memref<4x8xf32>
  }
  return
}
