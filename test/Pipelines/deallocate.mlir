// RUN: aligned-opt %s --aligned-bufferize --canonicalize --cse --aligned-deallocate-buffers --canonicalize --buffer-deallocation-simplification \
// RUN:   --bufferization-lower-deallocations --canonicalize --cse | FileCheck %s

// Whose a cache is. One that came as an argument stays the caller's, and is returned as itself; one that was made here is the caller's when it is returned, and else
// destroyed here.

!dense = tensor<1x2x?x64xf16>
!one = tensor<1x2x1x64xf16>
!key = tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>

// CHECK-LABEL: func.func private @append(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>)
// CHECK-NEXT: %[[NEW:.*]] = aligned.append %{{.*}} to %[[CACHE]]
// CHECK-NEXT: return %[[NEW]]
func.func private @append(%tokens: !one, %cache: !key) -> !key {
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %new : !key
}

// CHECK-LABEL: func.func private @stays(
// CHECK: %[[CACHE:.*]] = memref.alloc({{.*}}#aligned.planes
// CHECK: %[[OUT:.*]] = memref.alloc({{.*}} : memref<1x2x?x64xf16>
// CHECK: memref.dealloc %[[CACHE]]
// CHECK-NEXT: return %[[OUT]]
func.func private @stays(%dense: !dense) -> !dense {
  %packed = aligned.pack %dense : !dense to !key
  %unpacked = aligned.unpack %packed : !key to !dense
  return %unpacked : !dense
}

// CHECK-LABEL: func.func private @leaves(
// CHECK-NOT: memref.dealloc
// CHECK: return
func.func private @leaves(%dense: !dense, %tokens: !one) -> !key {
  %packed = aligned.pack %dense : !dense to !key
  %new = aligned.append %tokens to %packed : !one to !key -> !key
  return %new : !key
}

// A copy that only served to append to is destroyed, in each iteration.
// CHECK-LABEL: func.func private @in_a_loop(
// CHECK: scf.for
// CHECK: %[[FORK:.*]] = aligned.fork
// CHECK: memref.dealloc %[[FORK]]
// CHECK: scf.yield
func.func private @in_a_loop(%tokens: !one, %cache: !key, %n: index, %dense: !dense) -> !dense {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %last = scf.for %i = %zero to %n step %one iter_args(%old = %dense) -> !dense {
    %new = aligned.append %tokens to %cache : !one to !key -> !key
    %unpacked = aligned.unpack %new : !key to !dense
    scf.yield %unpacked : !dense
  }
  return %last : !dense
}

// Through a loop, and through a branch, a cache is itself: no copy where it is returned.
// CHECK-LABEL: func.func private @through(
// CHECK-NOT: {{fork|clone}}
// CHECK: return
func.func private @through(%tokens: !one, %cache: !key, %value: !value, %n: index, %more: i1) -> (!key, !value) {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %last = scf.for %i = %zero to %n step %one iter_args(%old = %cache) -> !key {
    %new = func.call @append(%tokens, %old) : (!one, !key) -> !key
    scf.yield %new : !key
  }
  %either = scf.if %more -> !value {
    %new = aligned.append %tokens to %value : !one to !value -> !value
    scf.yield %new : !value
  } else {
    scf.yield %value : !value
  }
  return %last, %either : !key, !value
}

// One or the other: who owns the result is known by its address.
// CHECK-LABEL: func.func private @either(
// CHECK-NOT: {{fork|clone|memref.dealloc}}
// CHECK: return
func.func private @either(%dense: !dense, %cache: !key, %new: i1) -> !key {
  %result = scf.if %new -> !key {
    %packed = aligned.pack %dense : !dense to !key
    scf.yield %packed : !key
  } else {
    scf.yield %cache : !key
  }
  return %result : !key
}

// CHECK-LABEL: func.func private @receives(
// CHECK-SAME: %{{.*}}: memref<1x2x?x64xf16>, %[[CACHE:[a-z0-9]+]]: memref<{{.*}}>, %
// CHECK: %[[RESULT:.*]] = call @either(%{{.*}}, %[[CACHE]],
// CHECK-DAG: %[[THIS:.*]] = memref.extract_aligned_pointer_as_index %[[RESULT]]
// CHECK-DAG: %[[OTHER:.*]] = memref.extract_aligned_pointer_as_index %[[CACHE]]
// CHECK: %[[OWNED:.*]] = arith.cmpi ne, %[[THIS]], %[[OTHER]]
// CHECK: %[[FREED:.*]] = arith.andi %{{.*}}, %[[OWNED]]
// CHECK: scf.if %[[FREED]] {
// CHECK: memref.dealloc
// CHECK: return
func.func private @receives(%dense: !dense, %cache: !key, %new: i1) -> !dense {
  %result = call @either(%dense, %cache, %new) : (!dense, !key, i1) -> !key
  %unpacked = aligned.unpack %result : !key to !dense
  return %unpacked : !dense
}

// What a callee always hands through needs no question.
// CHECK-LABEL: func.func private @hands_through(
// CHECK: %[[CACHE:.*]] = memref.alloc({{.*}}#aligned.planes
// CHECK: call @append(%{{.*}}, %[[CACHE]])
// CHECK-NOT: scf.if
// CHECK: memref.dealloc %[[CACHE]]
// CHECK: return
func.func private @hands_through(%dense: !dense, %tokens: !one) -> !dense {
  %packed = aligned.pack %dense : !dense to !key
  %new = call @append(%tokens, %packed) : (!one, !key) -> !key
  %unpacked = aligned.unpack %new : !key to !dense
  return %unpacked : !dense
}

// Returned twice, there are two.
// CHECK-LABEL: func.func private @twice(
// CHECK: %[[NEW:.*]] = aligned.append
// CHECK: %[[OTHER:.*]] = aligned.fork %[[NEW]]
// CHECK: return %[[NEW]], %[[OTHER]]
func.func private @twice(%tokens: !one, %cache: !key) -> (!key, !key) {
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %new, %new : !key, !key
}

// So there are where they may be one.
// CHECK-LABEL: func.func private @maybe_twice(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>, %
// CHECK: %[[RESULT:.*]] = call @either(
// CHECK: %[[DIFFER:.*]] = arith.cmpi ne
// CHECK: %[[OTHER:.*]] = scf.if %[[DIFFER]]
// CHECK: scf.yield %[[RESULT]]
// CHECK: %[[FORK:.*]] = aligned.fork %[[RESULT]]
// CHECK: scf.yield %[[FORK]]
// CHECK: return %[[CACHE]], %[[OTHER]]
func.func private @maybe_twice(%cache: !key, %dense: !dense, %new: i1) -> (!key, !key) {
  %result = call @either(%dense, %cache, %new) : (!dense, !key, i1) -> !key
  return %cache, %result : !key, !key
}
