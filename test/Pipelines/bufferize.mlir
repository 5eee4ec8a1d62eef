// RUN: aligned-opt %s --aligned-bufferize --canonicalize --cse --canonicalize | FileCheck %s

// Where a cache is copied, and where it is appended to in place: a tensor is a value, and whoever still reads the old one must find it as it was.

!dense = tensor<1x2x?x64xf16>
!one = tensor<1x2x1x64xf16>
!key = tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>

// CHECK-LABEL: func.func @append(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
func.func @append(%tokens: !one, %cache: !key) -> !key {
  // CHECK-NOT: aligned.fork
  // CHECK: %[[NEW:.*]] = aligned.append %{{.*}} to %[[CACHE]]
  // CHECK: return %[[NEW]]
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %new : !key
}

// CHECK-LABEL: func.func @append_keeping_the_old(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
func.func @append_keeping_the_old(%tokens: !one, %cache: !key) -> (!key, !key) {
  // CHECK: %[[FORK:.*]] = aligned.fork %[[CACHE]]
  // CHECK: %[[NEW:.*]] = aligned.append %{{.*}} to %[[FORK]]
  // CHECK: return %[[CACHE]], %[[NEW]]
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %cache, %new : !key, !key
}

// CHECK-LABEL: func.func @replace_keeping_the_old(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %[[AT:[a-z0-9]+]]: index)
func.func @replace_keeping_the_old(%tokens: !one, %cache: !key, %position: index) -> (!key, !key) {
  // CHECK: %[[FORK:.*]] = aligned.fork %[[CACHE]]
  // CHECK: %[[NEW:.*]] = aligned.append %{{.*}} at %[[AT]] to %[[FORK]]
  // CHECK: return %[[CACHE]], %[[NEW]]
  %new = aligned.append %tokens at %position to %cache : !one to !key -> !key
  return %cache, %new : !key, !key
}

// CHECK-LABEL: func.func @two_appends(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
func.func @two_appends(%tokens: !one, %cache: !key) -> (!key, !key) {
  // CHECK: %[[FORK:.*]] = aligned.fork %[[CACHE]]
  // CHECK: %[[ONE:.*]] = aligned.append %{{.*}} to %[[FORK]]
  // CHECK-NOT: aligned.fork
  // CHECK: %[[OTHER:.*]] = aligned.append %{{.*}} to %[[CACHE]]
  // CHECK: return %[[ONE]], %[[OTHER]]
  %one = aligned.append %tokens to %cache : !one to !key -> !key
  %other = aligned.append %tokens to %cache : !one to !key -> !key
  return %one, %other : !key, !key
}

// One after the other is in place.
// CHECK-LABEL: func.func @append_twice(
// CHECK-NOT: aligned.fork
// CHECK: return
func.func @append_twice(%tokens: !one, %cache: !key) -> !key {
  %one = aligned.append %tokens to %cache : !one to !key -> !key
  %two = aligned.append %tokens to %one : !one to !key -> !key
  return %two : !key
}

// Static numbers of tokens differ in type only.
// CHECK-LABEL: func.func @static(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x63x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
// CHECK-NEXT: %[[NEW:.*]] = aligned.append %{{.*}} to %[[CACHE]] : {{.*}} -> memref<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK-NEXT: return %[[NEW]]
func.func @static(%tokens: !one, %cache: tensor<1x2x63x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
    -> tensor<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>> {
  %new = aligned.append %tokens to %cache : !one to tensor<1x2x63x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
      -> tensor<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
  return %new : tensor<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
}

// How many tokens there were is asked before some are appended.
// CHECK-LABEL: func.func @size_of_the_old(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
func.func @size_of_the_old(%tokens: !one, %cache: !key) -> (!key, index, index) {
  // CHECK: %[[OLD:.*]] = memref.dim %[[CACHE]], %c2
  // CHECK: %[[APPENDED:.*]] = aligned.append %{{.*}} to %[[CACHE]]
  // CHECK: %[[NOW:.*]] = memref.dim %[[APPENDED]], %c2
  // CHECK: return %[[APPENDED]], %[[OLD]], %[[NOW]]
  %two = arith.constant 2 : index
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  %now = tensor.dim %new, %two : !key
  %old = tensor.dim %cache, %two : !key
  return %new, %old, %now : !key, index, index
}

// A cache that a loop carries is one object.
// CHECK-LABEL: func.func @loop(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>,
func.func @loop(%tokens: !one, %cache: !key, %n: index) -> !key {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  // CHECK-NOT: aligned.fork
  // CHECK: scf.for {{.*}} iter_args(%[[CARRIED:.*]] = %[[CACHE]])
  // CHECK: %[[NEW:.*]] = aligned.append %{{.*}} to %[[CARRIED]]
  // CHECK: scf.yield %[[NEW]]
  %last = scf.for %i = %zero to %n step %one iter_args(%old = %cache) -> !key {
    %new = aligned.append %tokens to %old : !one to !key -> !key
    scf.yield %new : !key
  }
  return %last : !key
}

// Each iteration begins with the cache from outside.
// CHECK-LABEL: func.func @again_and_again(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>,
func.func @again_and_again(%tokens: !one, %cache: !key, %n: index, %dense: !dense) -> !dense {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  // CHECK: scf.for
  // CHECK: %[[FORK:.*]] = aligned.fork %[[CACHE]]
  // CHECK: aligned.append %{{.*}} to %[[FORK]]
  %last = scf.for %i = %zero to %n step %one iter_args(%old = %dense) -> !dense {
    %new = aligned.append %tokens to %cache : !one to !key -> !key
    %unpacked = aligned.unpack %new : !key to !dense
    scf.yield %unpacked : !dense
  }
  return %last : !dense
}

// CHECK-LABEL: func.func @branch(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>,
func.func @branch(%tokens: !one, %cache: !key, %more: i1) -> !key {
  // CHECK-NOT: aligned.fork
  // CHECK: scf.if
  // CHECK: %[[NEW:.*]] = aligned.append %{{.*}} to %[[CACHE]]
  // CHECK: scf.yield %[[NEW]]
  // CHECK: scf.yield %[[CACHE]]
  %last = scf.if %more -> !key {
    %new = aligned.append %tokens to %cache : !one to !key -> !key
    scf.yield %new : !key
  } else {
    scf.yield %cache : !key
  }
  return %last : !key
}

func.func private @callee(%tokens: !one, %cache: !key) -> !key {
  %new = aligned.append %tokens to %cache : !one to !key -> !key
  return %new : !key
}
func.func private @reader(%cache: !key) -> !dense {
  %unpacked = aligned.unpack %cache : !key to !dense
  return %unpacked : !dense
}

// A callee that appends works on the caller's cache, unless the caller looks at the old one again. One that reads needs no copy.
// CHECK-LABEL: func.func @calls(
// CHECK-SAME: %[[CACHE:[a-z0-9]+]]: memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
func.func @calls(%tokens: !one, %cache: !key) -> (!dense, !key, !key) {
  // CHECK-NEXT: call @reader(%[[CACHE]])
  // CHECK-NEXT: %[[FORK:.*]] = aligned.fork %[[CACHE]]
  // CHECK-NEXT: %[[FIRST:.*]] = call @callee(%{{.*}}, %[[FORK]])
  // CHECK-NEXT: %[[SECOND:.*]] = call @callee(%{{.*}}, %[[CACHE]])
  // CHECK-NEXT: return %{{.*}}, %[[FIRST]], %[[SECOND]]
  %dense = call @reader(%cache) : (!key) -> !dense
  %first = call @callee(%tokens, %cache) : (!one, !key) -> !key
  %second = call @callee(%tokens, %cache) : (!one, !key) -> !key
  return %dense, %first, %second : !dense, !key, !key
}

// What is packed and unpacked lies in memory that is made for it.
// CHECK-LABEL: func.func @round_trip(
// CHECK-SAME: %[[DENSE:[a-z0-9]+]]: memref<1x2x?x64xf16>)
func.func @round_trip(%dense: !dense) -> !dense {
  // CHECK: %[[CACHE:.*]] = memref.alloc(%[[N:.*]]) {{.*}} : memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
  // CHECK: aligned.pack %[[DENSE]] into %[[CACHE]]
  // CHECK: %[[OUT:.*]] = memref.alloc(%[[N]]) {{.*}} : memref<1x2x?x64xf16>
  // CHECK: aligned.unpack %[[CACHE]] bits 8 into %[[OUT]]
  // CHECK: return %[[OUT]]
  %packed = aligned.pack %dense : !dense to !key
  %unpacked = aligned.unpack %packed bits 8 : !key to !dense
  return %unpacked : !dense
}

// A kernel writes the state where it is told. Dense operands have no gaps.
// CHECK-LABEL: func.func @decode(
func.func @decode(%q: tensor<1x4x2x64xf16>, %k: !key, %v: tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, %scale: f32) -> tensor<1x4x1x64xf32> {
  // CHECK: %[[STRIDED:.*]] = memref.subview
  // CHECK: %[[Q:.*]] = memref.alloc() {{.*}} : memref<1x4x1x64xf16>
  // CHECK: memref.copy %[[STRIDED]], %[[Q]]
  // CHECK: %[[ACC:.*]] = memref.alloc() {{.*}} : memref<1x4x1x64xf32>
  // CHECK: %[[MAX:.*]] = memref.alloc() {{.*}} : memref<1x4x1xf32>
  // CHECK: %[[SUM:.*]] = memref.alloc() {{.*}} : memref<1x4x1xf32>
  // CHECK: aligned.decode_attention %[[Q]], %{{.*}}, %{{.*}} scale %{{.*}} policy <budget, tolerance = 2.500000e-01> into %[[ACC]], %[[MAX]], %[[SUM]]
  // CHECK: return %[[ACC]]
  %newest = tensor.extract_slice %q[0, 0, 1, 0] [1, 4, 1, 64] [1, 1, 1, 1] : tensor<1x4x2x64xf16> to tensor<1x4x1x64xf16>
  %acc, %max, %sum = aligned.decode_attention %newest, %k, %v scale %scale policy <budget, tolerance = 0.25>
      : tensor<1x4x1x64xf16>, !key, tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>> -> tensor<1x4x1x64xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x64xf32>
}

// Masks by numbers and sinks have no gaps either, for one kernel and for stages.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: memref<1x4x2x128xf16>, %[[LOGITS:[a-z0-9]+]]: memref<8xf32>,
func.func @numbers(%q: tensor<1x4x1x64xf16>, %k: tensor<1x2x128x64xf16>, %packed: tensor<1x2x128x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>,
                   %values: tensor<1x2x128x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, %mask: tensor<1x4x2x128xf16>, %logits: tensor<8xf32>, %d: tensor<2x2x64xi8>, %f: tensor<3x8xf32>,
                   %scale: f32, %row: index) -> (tensor<1x4x1x64xf32>, tensor<2x2x64xf32>) {
  // CHECK: %[[NEWEST:.*]] = memref.subview %[[MASK]][0, 0, 1, 0] [1, 4, 1, 128]
  // CHECK: %[[EACH:.*]] = memref.subview %[[LOGITS]][0] [4] [2]
  // CHECK: %[[M:.*]] = memref.alloc() {{.*}} : memref<1x4x1x128xf16>
  // CHECK: memref.copy %[[NEWEST]], %[[M]]
  // CHECK: %[[L:.*]] = memref.alloc() {{.*}} : memref<4xf32>
  // CHECK: memref.copy %[[EACH]], %[[L]]
  // CHECK: aligned.decode_attention {{.*}} attn_mask %[[M]] : memref<1x4x1x128xf16> sink_logits %[[L]] : memref<4xf32> policy <exact> into
  %newest = tensor.extract_slice %mask[0, 0, 1, 0] [1, 4, 1, 128] [1, 1, 1, 1] : tensor<1x4x2x128xf16> to tensor<1x4x1x128xf16>
  %each = tensor.extract_slice %logits[0] [4] [2] : tensor<8xf32> to tensor<4xf32>
  %acc, %max, %sum = aligned.decode_attention %q, %k, %k scale %scale attn_mask %newest : tensor<1x4x1x128xf16> sink_logits %each : tensor<4xf32> policy <exact>
      : tensor<1x4x1x64xf16>, tensor<1x2x128x64xf16>, tensor<1x2x128x64xf16> -> tensor<1x4x1x64xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  // CHECK-NOT: memref.copy
  // CHECK: aligned.scan {{.*}} attn_mask %[[M]] : memref<1x4x1x128xf16> policy
  %none = tensor.empty() : tensor<2x2x64xf32>
  %tops = tensor.empty() : tensor<2x2x16xf32>
  %part = tensor.empty() : tensor<1x2x2xf32>
  %scanned:3 = aligned.scan %q, %packed, %values, %d, %f scale %scale row %row split %row attn_mask %newest : tensor<1x4x1x128xf16> policy <budget, tolerance = 0.25>
      outs(%none, %tops, %part : tensor<2x2x64xf32>, tensor<2x2x16xf32>, tensor<1x2x2xf32>)
      : tensor<1x4x1x64xf16>, tensor<1x2x128x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x2x128x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x64xi8>, tensor<3x8xf32>
      -> tensor<2x2x64xf32>, tensor<2x2x16xf32>, tensor<1x2x2xf32>
  return %acc, %scanned#0 : tensor<1x4x1x64xf32>, tensor<2x2x64xf32>
}

// Stages write where their outs lie, and a query without gaps is made before the loop.
// CHECK-LABEL: func.func @scan(
// CHECK-SAME: %{{.*}}: memref<1x4x2x64xf16>, %[[K:[a-z0-9]+]]: memref<{{.*}}, key>>, %[[V:[a-z0-9]+]]: memref<{{.*}}, value>>, %[[D:[a-z0-9]+]]: memref<2x2x64xi8>, %[[F:[a-z0-9]+]]: memref<3x8xf32>,
func.func @scan(%q: tensor<1x4x2x64xf16>, %k: !key, %v: tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, %d: tensor<2x2x64xi8>, %f: tensor<3x8xf32>, %scale: f32,
                %row: index, %splits: index) -> tensor<?x2x2xf32> {
  // CHECK: %[[STRIDED:.*]] = memref.subview
  // CHECK: %[[PARTS:.*]] = memref.alloc(%{{.*}}) {{.*}} : memref<?x2x2xf32>
  // CHECK: %[[Q:.*]] = memref.alloc() {{.*}} : memref<1x4x1x64xf16>
  // CHECK: memref.copy %[[STRIDED]], %[[Q]]
  // CHECK: scf.forall (%[[SPLIT:.*]]) in
  // CHECK-NOT: memref.copy
  // CHECK: %[[PART:.*]] = memref.subview %[[PARTS]][%[[SPLIT]], 0, 0] [1, 2, 2] [1, 1, 1]
  // CHECK: aligned.scan %[[Q]], %[[K]], %[[V]], %[[D]], %[[F]] {{.*}} outs(%{{.*}}, %{{.*}}, %[[PART]] : {{.*}}, memref<1x2x2xf32, strided<[4, 2, 1], offset: ?>>)
  // CHECK-NOT: memref.copy {{.*}} memref<1x2x2xf32>
  // CHECK: return %[[PARTS]]
  %newest = tensor.extract_slice %q[0, 0, 1, 0] [1, 4, 1, 64] [1, 1, 1, 1] : tensor<1x4x2x64xf16> to tensor<1x4x1x64xf16>
  %none = tensor.empty(%splits) : tensor<?x2x2xf32>
  %all = scf.forall (%split) in (%splits) shared_outs(%parts = %none) -> tensor<?x2x2xf32> {
    %scores = tensor.empty() : tensor<32x2x64xf32>
    %tops = tensor.empty() : tensor<32x2x16xf32>
    %part = tensor.extract_slice %parts[%split, 0, 0] [1, 2, 2] [1, 1, 1] : tensor<?x2x2xf32> to tensor<1x2x2xf32>
    %scanned:3 = aligned.scan %newest, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25>
        outs(%scores, %tops, %part : tensor<32x2x64xf32>, tensor<32x2x16xf32>, tensor<1x2x2xf32>)
        : tensor<1x4x1x64xf16>, !key, tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x64xi8>, tensor<3x8xf32>
        -> tensor<32x2x64xf32>, tensor<32x2x16xf32>, tensor<1x2x2xf32>
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %scanned#2 into %parts[%split, 0, 0] [1, 2, 2] [1, 1, 1] : tensor<1x2x2xf32> into tensor<?x2x2xf32>
    }
  }
  return %all : tensor<?x2x2xf32>
}

// What the scan found is read only: splits that are attended to at once need no copies of it, and who reads it later finds it as it was.
// CHECK-LABEL: func.func @attend(
// CHECK-SAME: %[[SCORES:[a-z0-9]+]]: memref<?x2x64xf32>, %[[TOPS:[a-z0-9]+]]: memref<?x2x16xf32>, %[[PARTS:[a-z0-9]+]]: memref<?x2x2xf32>,
func.func @attend(%q: tensor<1x4x1x64xf16>, %k: !key, %v: tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, %d: tensor<2x2x64xi8>, %f: tensor<3x8xf32>, %m: tensor<64xf32>,
                  %scores: tensor<?x2x64xf32>, %tops: tensor<?x2x16xf32>, %parts: tensor<?x2x2xf32>, %row: index, %splits: index) -> (tensor<?x2x1x8xf32>, f32) {
  %zero = arith.constant 0 : index
  %tiles = arith.constant 32 : index
  // CHECK: %[[ALL:.*]] = memref.alloc(%{{.*}}) {{.*}} : memref<?x2x1x8xf32>
  // CHECK: scf.forall (%[[SPLIT:.*]]) in
  // CHECK-DAG: %[[S:.*]] = memref.subview %[[SCORES]]
  // CHECK-DAG: %[[T:.*]] = memref.subview %[[TOPS]]
  // CHECK-DAG: %[[C:.*]] = memref.subview %[[ALL]][%[[SPLIT]], 0, 0, 0] [1, 2, 1, 8]
  // CHECK-NOT: memref.copy
  // CHECK: aligned.attend {{.*}}, %[[S]], %[[T]], %[[PARTS]] row {{.*}} outs(%{{[a-z0-9_]+}}, %{{[a-z0-9_]+}}, %{{[a-z0-9_]+}}, %[[C]] :
  // CHECK: memref.load %[[SCORES]]
  %none = tensor.empty(%splits) : tensor<?x2x1x8xf32>
  %all = scf.forall (%split) in (%splits) shared_outs(%certificates = %none) -> tensor<?x2x1x8xf32> {
    %acc = tensor.empty() : tensor<1x2x1x64xf32>
    %max = tensor.empty() : tensor<1x2x1xf32>
    %sum = tensor.empty() : tensor<1x2x1xf32>
    %first = arith.muli %split, %tiles : index
    %own = tensor.extract_slice %scores[%first, 0, 0] [32, 2, 64] [1, 1, 1] : tensor<?x2x64xf32> to tensor<32x2x64xf32>
    %top = tensor.extract_slice %tops[%first, 0, 0] [32, 2, 16] [1, 1, 1] : tensor<?x2x16xf32> to tensor<32x2x16xf32>
    %certificate = tensor.extract_slice %certificates[%split, 0, 0, 0] [1, 2, 1, 8] [1, 1, 1, 1] : tensor<?x2x1x8xf32> to tensor<1x2x1x8xf32>
    %state:4 = aligned.attend %q, %k, %v, %d, %f, %m, %own, %top, %parts row %row split %split policy <budget, tolerance = 0.25>
        outs(%acc, %max, %sum, %certificate : tensor<1x2x1x64xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>, tensor<1x2x1x8xf32>)
        : tensor<1x4x1x64xf16>, !key, tensor<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x64xi8>, tensor<3x8xf32>, tensor<64xf32>, tensor<32x2x64xf32>,
          tensor<32x2x16xf32>, tensor<?x2x2xf32> -> tensor<1x2x1x64xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>, tensor<1x2x1x8xf32>
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %state#3 into %certificates[%split, 0, 0, 0] [1, 2, 1, 8] [1, 1, 1, 1] : tensor<1x2x1x8xf32> into tensor<?x2x1x8xf32>
    }
  }
  %coarse = tensor.extract %scores[%zero, %zero, %zero] : tensor<?x2x64xf32>
  return %all, %coarse : tensor<?x2x1x8xf32>, f32
}

// One copy of a query and of a mask serves all stages in all loops: neither is made anew for each row or split. What lies in the middle of memory
// without gaps is not copied.
// CHECK-LABEL: func.func @once(
// CHECK-SAME: %[[ALL:[a-z0-9]+]]: memref<2x4x3x64xf16>, %[[MASKS:[a-z0-9]+]]: memref<2x1x3x?xi1>, %[[LOGITS:[a-z0-9]+]]: memref<8xf32>,
func.func @once(%q: tensor<2x4x3x64xf16>, %mask: tensor<2x1x3x?xi1>, %logits: tensor<8xf32>, %k: tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>,
                %v: tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, %scale: f32, %splits: index) -> tensor<4x2x1x64xf32> {
  %zero = arith.constant 0 : index
  %three = arith.constant 3 : index
  %tokens = tensor.dim %mask, %three : tensor<2x1x3x?xi1>
  // CHECK: %[[MIDDLE:.*]] = memref.subview %[[LOGITS]][4] [4] [1]
  // CHECK: %[[OWN:.*]] = memref.alloc() {{.*}} : memref<2x4x1x64xf16>
  // CHECK: memref.copy %{{.*}}, %[[OWN]] : memref<2x4x1x64xf16, strided<[768, 192, 64, 1], offset: 64>>
  // CHECK: %[[SEEN:.*]] = memref.alloc(%{{.*}}) {{.*}} : memref<2x1x1x?xi1>
  // CHECK: memref.copy %{{.*}}, %[[SEEN]] :
  // CHECK: scf.forall
  // CHECK-NOT: memref.copy
  // CHECK: aligned.prepare %[[OWN]],
  // CHECK: scf.forall
  // CHECK-NOT: memref.copy
  // CHECK: aligned.scan %[[OWN]], {{.*}} attn_mask %[[SEEN]] : memref<2x1x1x?xi1> policy
  // CHECK-NOT: memref.copy
  // CHECK: aligned.attend %[[OWN]], {{.*}} attn_mask %[[SEEN]] : memref<2x1x1x?xi1> sink_logits %[[MIDDLE]] : memref<4xf32, strided<[1], offset: 4>> policy
  %newest = tensor.extract_slice %q[0, 0, 1, 0] [2, 4, 1, 64] [1, 1, 1, 1] : tensor<2x4x3x64xf16> to tensor<2x4x1x64xf16>
  %seen = tensor.extract_slice %mask[0, 0, 1, 0] [2, 1, 1, %tokens] [1, 1, 1, 1] : tensor<2x1x3x?xi1> to tensor<2x1x1x?xi1>
  %middle = tensor.extract_slice %logits[4] [4] [1] : tensor<8xf32> to tensor<4xf32>
  %empty = tensor.empty() : tensor<4x2x1x64xf32>
  %all = scf.forall (%row) in (4) shared_outs(%out = %empty) -> tensor<4x2x1x64xf32> {
    %digits = tensor.empty() : tensor<2x2x64xi8>
    %facts = tensor.empty() : tensor<3x8xf32>
    %mean = tensor.empty() : tensor<64xf32>
    %p:3 = aligned.prepare %newest, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%digits, %facts, %mean : tensor<2x2x64xi8>, tensor<3x8xf32>, tensor<64xf32>)
        : tensor<2x4x1x64xf16>, tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>
        -> tensor<2x2x64xi8>, tensor<3x8xf32>, tensor<64xf32>
    %parts = tensor.empty(%splits) : tensor<?x2x2xf32>
    %acc = tensor.extract_slice %out[%row, 0, 0, 0] [1, 2, 1, 64] [1, 1, 1, 1] : tensor<4x2x1x64xf32> to tensor<1x2x1x64xf32>
    %each = scf.forall (%split) in (%splits) shared_outs(%inner = %parts) -> tensor<?x2x2xf32> {
      %scores = tensor.empty() : tensor<32x2x64xf32>
      %tops = tensor.empty() : tensor<32x2x16xf32>
      %part = tensor.extract_slice %inner[%split, 0, 0] [1, 2, 2] [1, 1, 1] : tensor<?x2x2xf32> to tensor<1x2x2xf32>
      %s:3 = aligned.scan %newest, %k, %v, %p#0, %p#1 scale %scale row %row split %split attn_mask %seen : tensor<2x1x1x?xi1> policy <budget, tolerance = 0.25>
          outs(%scores, %tops, %part : tensor<32x2x64xf32>, tensor<32x2x16xf32>, tensor<1x2x2xf32>)
          : tensor<2x4x1x64xf16>, tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x64xi8>,
            tensor<3x8xf32> -> tensor<32x2x64xf32>, tensor<32x2x16xf32>, tensor<1x2x2xf32>
      scf.forall.in_parallel {
        tensor.parallel_insert_slice %s#2 into %inner[%split, 0, 0] [1, 2, 2] [1, 1, 1] : tensor<1x2x2xf32> into tensor<?x2x2xf32>
      }
    }
    %scores = tensor.empty() : tensor<32x2x64xf32>
    %tops = tensor.empty() : tensor<32x2x16xf32>
    %max = tensor.empty() : tensor<1x2x1xf32>
    %sum = tensor.empty() : tensor<1x2x1xf32>
    %state:3 = aligned.attend %newest, %k, %v, %p#0, %p#1, %p#2, %scores, %tops, %each row %row split %zero attn_mask %seen : tensor<2x1x1x?xi1> sink_logits %middle : tensor<4xf32>
        policy <budget, tolerance = 0.25> outs(%acc, %max, %sum : tensor<1x2x1x64xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
        : tensor<2x4x1x64xf16>, tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x64xi8>,
          tensor<3x8xf32>, tensor<64xf32>, tensor<32x2x64xf32>, tensor<32x2x16xf32>, tensor<?x2x2xf32> -> tensor<1x2x1x64xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %state#0 into %out[%row, 0, 0, 0] [1, 2, 1, 64] [1, 1, 1, 1] : tensor<1x2x1x64xf32> into tensor<4x2x1x64xf32>
    }
  }
  return %all : tensor<4x2x1x64xf32>
}
