// RUN: aligned-opt %s --convert-aligned-to-cpu | FileCheck %s

!dense = tensor<1x2x?x64xf16>
!one = tensor<1x2x1x64xf16>
!key = tensor<1x2x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>

// A cache that stays in its function is destroyed where the function ends.
// CHECK-LABEL: func.func @round_trip(
// CHECK-SAME: %[[DENSE:[a-z0-9]+]]: tensor<1x2x?x64xf16>) -> tensor<1x2x?x64xf16>
func.func @round_trip(%dense: !dense) -> !dense {
  // CHECK: %[[CACHE:.*]] = call @aligned_cache_create(
  // CHECK: call @aligned_cache_append(%[[CACHE]],
  %split = aligned.split %dense : !dense to !key
  // CHECK: %[[BITS:.*]] = arith.constant 8 : i32
  // CHECK: call @aligned_cache_join(%[[CACHE]], %[[BITS]],
  %join = aligned.join %split bits 8 : !key to !dense
  // CHECK: call @aligned_cache_destroy(%[[CACHE]])
  // CHECK-NEXT: return
  return %join : !dense
}

// One that leaves belongs to the caller.
// CHECK-LABEL: func.func @leaves(
// CHECK-SAME: -> !llvm.ptr
func.func @leaves(%dense: !dense) -> !key {
  // CHECK-NOT: aligned_cache_destroy
  // CHECK: return
  %split = aligned.split %dense : !dense to !key
  return %split : !key
}

// New tokens join the cache in place while nobody looks at the old one.
// CHECK-LABEL: func.func @append(
// CHECK-SAME: %[[TOKENS:[a-z0-9]+]]: tensor<1x2x1x64xf16>, %[[CACHE:.*]]: !llvm.ptr)
func.func @append(%tokens: !one, %cache: !key) -> !key {
  // CHECK-NOT: aligned_cache_clone
  // CHECK: call @aligned_cache_append(%[[CACHE]],
  // CHECK: return %[[CACHE]]
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %new : !key
}

// CHECK-LABEL: func.func @append_keeping_the_old(
// CHECK-SAME: %[[TOKENS:[a-z0-9]+]]: tensor<1x2x1x64xf16>, %[[CACHE:.*]]: !llvm.ptr)
func.func @append_keeping_the_old(%tokens: !one, %cache: !key) -> (!key, !key) {
  // CHECK: %[[CLONE:.*]] = call @aligned_cache_clone(%[[CACHE]])
  // CHECK: call @aligned_cache_append(%[[CLONE]],
  // CHECK: return %[[CACHE]], %[[CLONE]]
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %cache, %new : !key, !key
}

// CHECK-LABEL: func.func @append_dense(
func.func @append_dense(%tokens: !one, %cache: !dense) -> !dense {
  // CHECK: tensor.concat dim(2) %{{.*}}, %{{.*}} : (tensor<1x2x?x64xf16>, tensor<1x2x1x64xf16>) -> tensor<1x2x?x64xf16>
  %new = aligned.append %tokens to %cache : !one to !dense -> !dense
  return %new : !dense
}

// The number of tokens is the cache's own.
// CHECK-LABEL: func.func @tokens(
// CHECK-SAME: %[[CACHE:.*]]: !llvm.ptr) -> index
func.func @tokens(%cache: !key) -> index {
  // CHECK: %[[FIELD:.*]] = llvm.getelementptr %[[CACHE]][16]
  // CHECK: llvm.load %[[FIELD]]
  %two = arith.constant 2 : index
  %n = tensor.dim %cache, %two : !key
  return %n : index
}

// A callee that appends works on the caller's cache, unless the caller looks at the old one again.
// CHECK-LABEL: func.func @call(
// CHECK-SAME: %[[TOKENS:[a-z0-9]+]]: tensor<1x2x1x64xf16>, %[[CACHE:[a-z0-9]+]]: !llvm.ptr)
func.func @call(%tokens: !one, %cache: !key) -> (!key, !key) {
  // CHECK: %[[CLONE:.*]] = call @aligned_cache_clone(%[[CACHE]])
  // CHECK: %[[FIRST:.*]] = call @append(%[[TOKENS]], %[[CLONE]])
  %first = call @append(%tokens, %cache) : (!one, !key) -> !key
  // CHECK-NOT: aligned_cache_clone
  // CHECK: %[[SECOND:.*]] = call @append(%[[TOKENS]], %[[CACHE]])
  %second = call @append(%tokens, %cache) : (!one, !key) -> !key
  // CHECK: return %[[FIRST]], %[[SECOND]]
  return %first, %second : !key, !key
}

// In a loop the old cache is looked at again by the next iteration.
// CHECK-LABEL: func.func @append_in_a_loop(
// CHECK-SAME: %[[TOKENS:[a-z0-9]+]]: tensor<1x2x1x64xf16>, %[[CACHE:[a-z0-9]+]]: !llvm.ptr
func.func @append_in_a_loop(%tokens: !one, %cache: !key, %n: index, %dense: !dense) -> !dense {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  // CHECK: scf.for
  // CHECK: %[[CLONE:.*]] = {{.*}}call @aligned_cache_clone(%[[CACHE]])
  // CHECK: call @aligned_cache_append(%[[CLONE]],
  %last = scf.for %i = %zero to %n step %one iter_args(%old = %dense) -> !dense {
    %new = aligned.append %tokens to %cache : !one to !key -> !key
    %join = aligned.join %new : !key to !dense
    scf.yield %join : !dense
  }
  return %last : !dense
}
