// RUN: aligned-opt %s --aligned-store-kv-caches | FileCheck %s
// RUN: aligned-opt %s --aligned-store-kv-caches --aligned-store-kv-caches | FileCheck %s
// RUN: aligned-opt %s --aligned-store-kv-caches=format="fixed<8,8>" | FileCheck %s --check-prefix=NAMED
// RUN: aligned-opt %s --aligned-store-kv-caches=prefer-float | FileCheck %s --check-prefix=FLOAT

!q = tensor<1x6x1x32xf16>
!new = tensor<1x2x1x32xf16>
!cache = tensor<1x2x?x32xf16>

// Arguments, appends and results of a decode step have one type.
// CHECK-LABEL: func.func @step(
// CHECK-SAME: %[[K0:[^:]*]]: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %[[V0:[^:]*]]: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>,
// CHECK-SAME: -> (tensor<1x6x1x32xf16>, tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>)
// CHECK-NEXT: %[[K1:.*]] = aligned.append %{{.*}} to %[[K0]] {{.*}} -> tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK-NEXT: %[[V1:.*]] = aligned.append %{{.*}} to %[[V0]] {{.*}} -> tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
// CHECK-NEXT: %[[O:.*]] = aligned.attention %{{.*}}, %[[K1]], %[[V1]] scale
// CHECK-NEXT: return %[[O]], %[[K1]], %[[V1]] :
// NAMED-LABEL: func.func @step(
// NAMED-SAME: #aligned.planes<fixed<8, 8>, key>>, %{{.*}}: tensor<1x2x?x32xf16, #aligned.planes<fixed<8, 8>, value>>
// FLOAT-LABEL: func.func @step(
// FLOAT-SAME: #aligned.planes<float<8, 4, 4>, key>>, %{{.*}}: tensor<1x2x?x32xf16, #aligned.planes<float<8, 4, 4>, value>>
func.func @step(%k: !cache, %v: !cache, %q: !q, %kn: !new, %vn: !new, %scale: f32) -> (!q, !cache, !cache) {
  %k1 = aligned.append %kn to %k : !new to !cache -> !cache
  %v1 = aligned.append %vn to %v : !new to !cache -> !cache
  %out = aligned.attention %q, %k1, %v1 scale %scale : !q, !cache, !cache -> !q
  return %out, %k1, %v1 : !q, !cache, !cache
}

// bf16 needs 12 bits for sign and exponent; f32 is rounded to a half.
// FLOAT-LABEL: func.func @mixed(
// FLOAT-SAME: tensor<1x1x65x16xbf16, #aligned.planes<float<12, 4>, key>>, %{{.*}}: tensor<1x1x65x16xf32, #aligned.planes<float<8, 4, 4>, value>>
func.func @mixed(%q: tensor<1x7x1x16xf32>, %k: tensor<1x1x65x16xbf16>, %v: tensor<1x1x65x16xf32>, %scale: f32) -> tensor<1x7x1x16xf32> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x7x1x16xf32>, tensor<1x1x65x16xbf16>, tensor<1x1x65x16xf32> -> tensor<1x7x1x16xf32>
  return %out : tensor<1x7x1x16xf32>
}

// Callers and callees follow, however far the attention is from where the cache enters.
// CHECK-LABEL: func.func private @attend(
// CHECK-SAME: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %{{.*}}: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func private @attend(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> !q {
  %out = aligned.attention %q, %k, %v scale %scale : !q, !cache, !cache -> !q
  return %out : !q
}
// CHECK-LABEL: func.func private @grow(
// CHECK-SAME: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK-SAME: -> tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
func.func private @grow(%new: !new, %k: !cache) -> !cache {
  %k1 = aligned.append %new to %k : !new to !cache -> !cache
  return %k1 : !cache
}
// CHECK-LABEL: func.func @layer(
// CHECK-SAME: %{{.*}}: tensor<1x6x1x32xf16>, %[[K:.*]]: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %[[V:.*]]: tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
// CHECK-SAME: -> (tensor<1x6x1x32xf16>, tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>)
// CHECK: %[[K1:.*]] = call @grow(%{{.*}}, %[[K]]) : {{.*}} -> tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK: call @attend(%{{.*}}, %[[K1]], %[[V]],
// CHECK-NOT: aligned.pack %
func.func @layer(%q: !q, %k: !cache, %v: !cache, %new: !new, %scale: f32) -> (!q, !cache) {
  %k1 = call @grow(%new, %k) : (!new, !cache) -> !cache
  %out = call @attend(%q, %k1, %v, %scale) : (!q, !cache, !cache, f32) -> !q
  return %out, %k1 : !q, !cache
}

// What the graph computes is packed once, for all attention that reads it; who else reads it reads the dense tensor.
// CHECK-LABEL: func.func @computed(
// CHECK: %[[ROPE:.*]] = arith.negf %{{.*}} : tensor<1x2x?x32xf16>
// CHECK-NEXT: %[[PACKED:.*]] = aligned.pack %[[ROPE]]
// CHECK-NOT: aligned.pack %
// CHECK: aligned.attention %{{.*}}, %[[PACKED]],
// CHECK: aligned.attention %{{.*}}, %[[PACKED]],
// CHECK: arith.extf %[[ROPE]]
func.func @computed(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> (!q, !q, tensor<1x2x?x32xf32>) {
  %rope = arith.negf %k : !cache
  %out = aligned.attention %q, %rope, %v scale %scale : !q, !cache, !cache -> !q
  %again = aligned.attention %out, %rope, %v scale %scale : !q, !cache, !cache -> !q
  %wide = arith.extf %rope : !cache to tensor<1x2x?x32xf32>
  return %out, %again, %wide : !q, !q, tensor<1x2x?x32xf32>
}

// A dense reader of a cache gets it unpacked, where the cache is still the old one; its size needs no unpacking.
// CHECK-LABEL: func.func @dense_reader(
// CHECK-SAME: %{{.*}}: tensor<1x6x1x32xf16>, %[[K:[^:]*]]: tensor
// CHECK-DAG: %[[SIZE:.*]] = tensor.dim %[[K]], %{{.*}} : tensor<1x2x?x32xf16, #aligned.planes
// CHECK-DAG: %[[DENSE:.*]] = aligned.unpack %[[K]]
// CHECK: aligned.append
// CHECK: aligned.attention
// CHECK: %[[NEG:.*]] = arith.negf %[[DENSE]] : tensor<1x2x?x32xf16>
// CHECK: return %{{.*}}, %[[NEG]], %[[SIZE]]
func.func @dense_reader(%q: !q, %k: !cache, %v: !cache, %new: !new, %scale: f32) -> (!q, !cache, index) {
  %k1 = aligned.append %new to %k : !new to !cache -> !cache
  %v1 = aligned.append %new to %v : !new to !cache -> !cache
  %out = aligned.attention %q, %k1, %v1 scale %scale : !q, !cache, !cache -> !q
  %neg = arith.negf %k : !cache
  %c2 = arith.constant 2 : index
  %size = tensor.dim %k, %c2 : !cache
  return %out, %neg, %size : !q, !cache, index
}

// One tensor that is key and value has no one encoding.
// CHECK-LABEL: func.func @both(
// CHECK-SAME: %{{.*}}: tensor<1x6x1x32xf16>, %[[KV:.*]]: tensor<1x2x?x32xf16>,
// CHECK: %[[V:.*]] = aligned.pack %[[KV]] {{.*}} value>>
// CHECK: %[[K:.*]] = aligned.pack %[[KV]] {{.*}} key>>
// CHECK: aligned.attention %{{.*}}, %[[K]], %[[V]] scale
func.func @both(%q: !q, %kv: !cache, %scale: f32) -> !q {
  %out = aligned.attention %q, %kv, %kv scale %scale : !q, !cache, !cache -> !q
  return %out : !q
}

// A declaration's body is elsewhere: dense going in, packed coming out.
// CHECK: func.func private @elsewhere(tensor<1x2x?x32xf16>) -> tensor<1x2x?x32xf16>
func.func private @elsewhere(!cache) -> !cache
// CHECK-LABEL: func.func @external(
// CHECK: %[[DENSE:.*]] = aligned.unpack
// CHECK: %[[K:.*]] = call @elsewhere(%[[DENSE]]) : (tensor<1x2x?x32xf16>) -> tensor<1x2x?x32xf16>
// CHECK: %[[PACKED:.*]] = aligned.pack %[[K]]
// CHECK: aligned.attention %{{.*}}, %[[PACKED]],
func.func @external(%q: !q, %v: !cache, %scale: f32) -> !q {
  %k = call @elsewhere(%v) : (!cache) -> !cache
  %out = aligned.attention %q, %k, %v scale %scale : !q, !cache, !cache -> !q
  return %out : !q
}

// Nor can one be followed whose address is taken.
// CHECK-LABEL: func.func @callback(
// CHECK-SAME: %{{.*}}: tensor<1x6x1x32xf16>, %{{.*}}: tensor<1x2x?x32xf16>, %{{.*}}: tensor<1x2x?x32xf16>,
// CHECK-COUNT-2: aligned.pack
// CHECK: aligned.attention
func.func @callback(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> !q {
  %out = aligned.attention %q, %k, %v scale %scale : !q, !cache, !cache -> !q
  return %out : !q
}
func.func @takes_address() -> ((!q, !cache, !cache, f32) -> !q) {
  %f = func.constant @callback : (!q, !cache, !cache, f32) -> !q
  return %f : (!q, !cache, !cache, f32) -> !q
}

// What is packed already stays as it is.
// CHECK-LABEL: func.func @already(
// CHECK-SAME: #aligned.planes<fixed<8, 8>, key, resident = 1>>
// CHECK-NEXT: aligned.attention
func.func @already(%q: !q, %k: tensor<1x2x?x32xf16, #aligned.planes<fixed<8, 8>, key, resident = 1>>,
                   %v: tensor<1x2x?x32xf16, #aligned.planes<fixed<8, 8>, value>>, %scale: f32) -> !q {
  %out = aligned.attention %q, %k, %v scale %scale
      : !q, tensor<1x2x?x32xf16, #aligned.planes<fixed<8, 8>, key, resident = 1>>, tensor<1x2x?x32xf16, #aligned.planes<fixed<8, 8>, value>> -> !q
  return %out : !q
}

// A cache whose batch is not known before the append can't be packed there.
// CHECK-LABEL: func.func @batch_known_late(
// CHECK-SAME: tensor<?x2x?x32xf16>
// CHECK: %[[K:.*]] = aligned.append {{.*}} -> tensor<1x2x?x32xf16>
// CHECK: aligned.pack %[[K]]
func.func @batch_known_late(%q: !q, %k: tensor<?x2x?x32xf16>, %v: !cache, %new: !new, %scale: f32) -> !q {
  %k1 = aligned.append %new to %k : !new to tensor<?x2x?x32xf16> -> !cache
  %out = aligned.attention %q, %k1, %v scale %scale : !q, !cache, !cache -> !q
  return %out : !q
}
