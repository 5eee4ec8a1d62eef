// RUN: aligned-opt %s --aligned-store-kv-caches=dense-below=4097 --split-input-file --verify-diagnostics | FileCheck %s

// With format=auto, what can't be packed stays dense and a remark says why.

// CHECK-LABEL: func.func @head_dim(
// CHECK-NOT: aligned.pack
// expected-note@+1 {{the key is defined here}}
func.func @head_dim(%q: tensor<1x6x1x24xf16>, %k: tensor<1x2x?x24xf16>, %v: tensor<1x2x?x24xf16>, %scale: f32) -> tensor<1x6x1x24xf16> {
  // expected-remark@+1 {{attention stays dense: key: expected a static head_dim that is a multiple of 16, at most 256, in a packed tensor, got 24}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x1x24xf16>, tensor<1x2x?x24xf16>, tensor<1x2x?x24xf16> -> tensor<1x6x1x24xf16>
  return %out : tensor<1x6x1x24xf16>
}

// -----

// CHECK-LABEL: func.func @queries(
// CHECK-NOT: aligned.pack
func.func @queries(%q: tensor<1x6x?x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x32xf16>, %scale: f32) -> tensor<1x6x?x32xf16> {
  // expected-remark@+1 {{attention stays dense: expected static query heads and queries, got 'tensor<1x6x?x32xf16>'}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x?x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16> -> tensor<1x6x?x32xf16>
  return %out : tensor<1x6x?x32xf16>
}

// -----

// 32 rows are packed, 33 are not: of one cache, which then is unpacked for the attention that stays dense.

// CHECK-LABEL: func.func @rows(
// CHECK-SAME: tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// CHECK-COUNT-2: aligned.unpack
// CHECK: aligned.attention {{.*}} #aligned.planes
// CHECK: aligned.attention {{.*}} : tensor<1x1x33x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16> ->
func.func @rows(%q: tensor<1x1x32x32xf16>, %p: tensor<1x1x33x32xf16>, %k: tensor<1x1x?x32xf16>, %v: tensor<1x1x?x32xf16>, %scale: f32)
    -> (tensor<1x1x32x32xf16>, tensor<1x1x33x32xf16>) {
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x1x32x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16> -> tensor<1x1x32x32xf16>
  // expected-remark@+1 {{attention stays dense: expected at most 32 query rows per kv head, got 33}}
  %1 = aligned.attention %p, %k, %v scale %scale : tensor<1x1x33x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16> -> tensor<1x1x33x32xf16>
  return %0, %1 : tensor<1x1x32x32xf16>, tensor<1x1x33x32xf16>
}

// -----

// CHECK-LABEL: func.func @both(
// CHECK-SAME: %{{.*}}: tensor<1x1x1x32xf16>, %{{.*}}: tensor<1x1x?x32xf16>, %{{.*}}: tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
// CHECK: aligned.unpack
// CHECK-COUNT-3: aligned.pack %
func.func @both(%q: tensor<1x1x1x32xf16>, %kv: tensor<1x1x?x32xf16>, %v: tensor<1x1x?x32xf16>, %scale: f32) -> (tensor<1x1x1x32xf16>, tensor<1x1x1x32xf16>) {
  // expected-remark@+1 {{key is packed at every step: the same tensor also serves as value}}
  %0 = aligned.attention %q, %kv, %v scale %scale : tensor<1x1x1x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16> -> tensor<1x1x1x32xf16>
  %1 = arith.negf %v : tensor<1x1x?x32xf16>
  // expected-note@+1 {{it is the value here}}
  %2 = aligned.attention %q, %1, %kv scale %scale : tensor<1x1x1x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16> -> tensor<1x1x1x32xf16>
  return %0, %2 : tensor<1x1x1x32xf16>, tensor<1x1x1x32xf16>
}

// -----

// 32 tokens of 32 channels in f16, twice, are 4096 bytes: less than are worth it. One token more is not, and of how many tokens nobody knows neither.

// CHECK-LABEL: func.func @few(
// CHECK: aligned.attention {{.*}} : tensor<1x6x1x32xf16>, tensor<1x1x32x32xf16>, tensor<1x1x32x32xf16> ->
// CHECK: aligned.attention {{.*}} : tensor<1x6x1x32xf16>, tensor<1x1x33x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x33x32xf16, #aligned.planes<fixed<4, 4, 8>, value>> ->
// CHECK: aligned.attention {{.*}} : tensor<1x6x1x32xf16>, tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>> ->
func.func @few(%q: tensor<1x6x1x32xf16>, %k: tensor<1x1x32x32xf16>, %v: tensor<1x1x32x32xf16>, %l: tensor<1x1x33x32xf16>, %w: tensor<1x1x33x32xf16>, %m: tensor<1x1x?x32xf16>,
               %x: tensor<1x1x?x32xf16>, %scale: f32) -> (tensor<1x6x1x32xf16>, tensor<1x6x1x32xf16>, tensor<1x6x1x32xf16>) {
  // expected-remark@+1 {{attention stays dense: expected a key and a value of at least 4097 bytes together, got 'tensor<1x1x32x32xf16>' and 'tensor<1x1x32x32xf16>'}}
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x6x1x32xf16>, tensor<1x1x32x32xf16>, tensor<1x1x32x32xf16> -> tensor<1x6x1x32xf16>
  %1 = aligned.attention %q, %l, %w scale %scale : tensor<1x6x1x32xf16>, tensor<1x1x33x32xf16>, tensor<1x1x33x32xf16> -> tensor<1x6x1x32xf16>
  %2 = aligned.attention %q, %m, %x scale %scale : tensor<1x6x1x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16> -> tensor<1x6x1x32xf16>
  return %0, %1, %2 : tensor<1x6x1x32xf16>, tensor<1x6x1x32xf16>, tensor<1x6x1x32xf16>
}
