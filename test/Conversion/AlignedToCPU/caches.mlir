// RUN: aligned-opt %s --split-input-file --convert-aligned-to-cpu --canonicalize --cse | FileCheck %s

// A buffer in plane storage is a pointer to the runtime's object; what is done with it are calls.

!dense = memref<1x2x?x64xf16>
!one = memref<1x2x1x64xf16>
!key = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>

// Room is made for the tokens that come; the newest are written into a buffer that is there.
// CHECK-LABEL: func.func @round_trip(
// CHECK-SAME: %[[DENSE:[a-z0-9]+]]: memref<1x2x?x64xf16>, %[[OUT:[a-z0-9]+]]: memref<1x2x?x64xf16>)
func.func @round_trip(%dense: !dense, %out: !dense) {
  // CHECK: %[[DIM:.*]] = memref.dim %[[DENSE]], %c2
  // CHECK: %[[TOKENS:.*]] = arith.index_cast %[[DIM]] : index to i64
  // CHECK: %[[CACHE:.*]] = call @aligned_cache_create({{.*}}, %c1_i64, %c2_i64, %c64_i64, %[[TOKENS]])
  // CHECK-NOT: @aligned_cache_drop_planes
  // CHECK: call @aligned_cache_append(%[[CACHE]], %{{.*}}, %[[TOKENS]],
  // CHECK: call @aligned_cache_unpack(%[[CACHE]], %c8_i32,
  // CHECK: call @aligned_cache_destroy(%[[CACHE]])
  %two = arith.constant 2 : index
  %n = memref.dim %dense, %two : !dense
  %cache = memref.alloc(%n) : !key
  aligned.pack %dense into %cache : !dense to !key
  aligned.unpack %cache bits 8 into %out : !key to !dense
  memref.dealloc %cache : !key
  return
}

// -----

// S9: a type may say that the lowest planes are absent.
// CHECK-LABEL: func.func @resident(
func.func @resident(%dense: memref<1x2x?x64xf16>, %out: memref<1x2x?x64xf16>, %n: index) {
  // CHECK: %[[CACHE:.*]] = call @aligned_cache_create(
  // CHECK-NEXT: call @aligned_cache_drop_planes(%[[CACHE]], %c2_i32)
  // CHECK: call @aligned_cache_append(%[[CACHE]],
  // CHECK: call @aligned_cache_unpack(%[[CACHE]], %c16_i32,
  %cache = memref.alloc(%n) : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value, resident = 2>>
  aligned.pack %dense into %cache : memref<1x2x?x64xf16> to memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value, resident = 2>>
  aligned.unpack %cache into %out : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value, resident = 2>> to memref<1x2x?x64xf16>
  memref.dealloc %cache : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value, resident = 2>>
  return
}

// -----

!one = memref<1x2x1x64xf16>
!few = memref<1x2x63x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!more = memref<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>

// The object is the same under its new type.
// CHECK-LABEL: func.func @append(
// CHECK-SAME: %[[TOKENS:[a-z0-9]+]]: memref<1x2x1x64xf16>, %[[CACHE:.*]]: !llvm.ptr) -> !llvm.ptr
func.func @append(%tokens: !one, %cache: !few) -> !more {
  // CHECK: call @aligned_cache_append(%[[CACHE]],
  // CHECK: return %[[CACHE]]
  %new = aligned.append %tokens to %cache : !one to !few -> !more
  return %new : !more
}

// -----

// New tokens lie anywhere: their strides are passed, and where they begin.
// CHECK-LABEL: func.func @strided(
// CHECK-SAME: %[[TOKENS:[a-z0-9]+]]: memref<1x2x1x64xf16, strided<[?, ?, 64, 1], offset: ?>>, %[[CACHE:.*]]: !llvm.ptr)
func.func @strided(%tokens: memref<1x2x1x64xf16, strided<[?, ?, 64, 1], offset: ?>>, %cache: memref<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, value>>) {
  // CHECK: %{{.*}}, %[[OFFSET:.*]], %{{.*}}, %[[STRIDES:.*]]:4 = memref.extract_strided_metadata %[[TOKENS]]
  // CHECK: arith.index_cast %[[STRIDES]]#0
  // CHECK: arith.index_cast %[[STRIDES]]#1
  // CHECK: %[[WORDS:.*]] = arith.index_cast %[[OFFSET]]
  // CHECK: arith.muli %[[WORDS]], %c2_i64
  // CHECK: call @aligned_cache_append(%[[CACHE]],
  %new = aligned.append %tokens to %cache : memref<1x2x1x64xf16, strided<[?, ?, 64, 1], offset: ?>> to memref<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, value>>
      -> memref<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, value>>
  return
}

// -----

!key = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>

// CHECK-LABEL: func.func @fork(
// CHECK-SAME: %[[CACHE:.*]]: !llvm.ptr) -> (!llvm.ptr, !llvm.ptr)
func.func @fork(%cache: !key) -> (!key, !key) {
  // CHECK-NEXT: %[[COPY:.*]] = call @aligned_cache_fork(%[[CACHE]])
  // CHECK-NEXT: return %[[CACHE]], %[[COPY]]
  %copy = aligned.fork %cache : !key
  return %cache, %copy : !key, !key
}

// The number of tokens is the cache's own.
// CHECK-LABEL: func.func @tokens(
// CHECK-SAME: %[[CACHE:.*]]: !llvm.ptr) -> (index, index)
func.func @tokens(%cache: !key) -> (index, index) {
  // CHECK: %[[FIELD:.*]] = llvm.getelementptr %[[CACHE]][16]
  // CHECK: %[[COUNT:.*]] = llvm.load %[[FIELD]]
  // CHECK: %[[TOKENS:.*]] = arith.index_cast %[[COUNT]]
  // CHECK: return %c64, %[[TOKENS]]
  %two = arith.constant 2 : index
  %three = arith.constant 3 : index
  %d = memref.dim %cache, %three : !key
  %n = memref.dim %cache, %two : !key
  return %d, %n : index, index
}

// Control flow and calls carry pointers.
// CHECK-LABEL: func.func @control(
// CHECK-SAME: %[[A:[a-z0-9]+]]: !llvm.ptr, %[[B:[a-z0-9]+]]: !llvm.ptr,
func.func @control(%a: !key, %b: !key, %c: i1, %n: index) -> !key {
  // CHECK: %[[EITHER:.*]] = scf.if %{{.*}} -> (!llvm.ptr)
  // CHECK: call @fork(%[[A]]) : (!llvm.ptr) -> (!llvm.ptr, !llvm.ptr)
  // CHECK: scf.for {{.*}} iter_args(%{{.*}} = %[[EITHER]]) -> (!llvm.ptr)
  // CHECK: arith.select %{{.*}}, %{{.*}}, %[[B]] : !llvm.ptr
  %either = scf.if %c -> !key {
    %same, %copy = func.call @fork(%a) : (!key) -> (!key, !key)
    scf.yield %copy : !key
  } else {
    scf.yield %b : !key
  }
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %last = scf.for %i = %zero to %n step %one iter_args(%cache = %either) -> !key {
    %first = arith.cmpi eq, %i, %zero : index
    %next = arith.select %first, %cache, %b : !key
    scf.yield %next : !key
  }
  return %last : !key
}

// Deallocation compares addresses, and frees what is behind views.
// CHECK-LABEL: func.func @addresses(
// CHECK-SAME: %[[CACHE:.*]]: !llvm.ptr)
func.func @addresses(%cache: memref<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>) -> index {
  // CHECK: %[[NUMBER:.*]] = llvm.ptrtoint %[[CACHE]]
  // CHECK: call @aligned_cache_destroy(%[[CACHE]])
  %any = memref.cast %cache : memref<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>> to !key
  %address = memref.extract_aligned_pointer_as_index %any : !key -> index
  %base, %offset, %sizes:4, %strides:4 = memref.extract_strided_metadata %any : !key
      -> memref<f16, #aligned.planes<fixed<4, 4, 8>, key>>, index, index, index, index, index, index, index, index, index
  memref.dealloc %base : memref<f16, #aligned.planes<fixed<4, 4, 8>, key>>
  return %address : index
}

// What is passed on the stack is each iteration's own where iterations run at once.
// CHECK-LABEL: func.func @in_parallel(
// CHECK-NOT: llvm.alloca
// CHECK: scf.forall
// CHECK: %[[STRIDES:.*]] = llvm.alloca
// CHECK: scf.for
// CHECK-NOT: llvm.alloca
// CHECK: call @aligned_cache_append(%{{.*}}, %{{.*}}, %{{.*}}, %[[STRIDES]])
func.func @in_parallel(%a: !key, %b: !key, %tokens: memref<1x2x1x64xf16>, %n: index) {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  scf.forall (%i) in (2) {
    %first = arith.cmpi eq, %i, %zero : index
    %cache = arith.select %first, %a, %b : !key
    scf.for %t = %zero to %n step %one {
      %new = aligned.append %tokens to %cache : memref<1x2x1x64xf16> to !key -> !key
    }
  }
  return
}

// What is read back may lie anywhere in its memory.
// CHECK-LABEL: func.func @unpack_within(
// CHECK-SAME: %[[DENSE:[a-z0-9]+]]: memref<1x2x64x64xf16, strided<[8192, 4096, 64, 1], offset: 8192>>
func.func @unpack_within(%dense: memref<1x2x64x64xf16, strided<[8192, 4096, 64, 1], offset: 8192>>, %cache: memref<1x2x64x64xf16, #aligned.planes<fixed<8, 8>, value>>) {
  // CHECK: %[[INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[DENSE]]
  // CHECK: %[[START:.*]] = arith.index_cast %[[INDEX]]
  // CHECK: arith.addi %[[START]],
  // CHECK: call @aligned_cache_unpack(
  aligned.unpack %cache into %dense : memref<1x2x64x64xf16, #aligned.planes<fixed<8, 8>, value>> to memref<1x2x64x64xf16, strided<[8192, 4096, 64, 1], offset: 8192>>
  return
}
