// Every shape of attention is fused; what no kernel takes is written out behind that (Conversion/AlignedToCPU/decompose-attention.mlir).
// RUN: aligned-opt %s --aligned-fuse-decode-attention --split-input-file --verify-diagnostics | FileCheck %s

// CHECK-LABEL: func.func @narrow(
// CHECK: aligned.decode_attention {{.*}} : tensor<1x6x2x72xf16>, tensor<1x2x?x72xf16>, tensor<1x2x?x10xf16> -> tensor<1x6x2x10xf32>
func.func @narrow(%q: tensor<1x6x2x72xf16>, %k: tensor<1x2x?x72xf16>, %v: tensor<1x2x?x10xf16>, %scale: f32) -> tensor<1x6x2x10xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x2x72xf16>, tensor<1x2x?x72xf16>, tensor<1x2x?x10xf16> -> tensor<1x6x2x10xf16>
  return %out : tensor<1x6x2x10xf16>
}

// -----

// More query heads than a kernel takes go query by query, so that scores never take more memory than tokens times heads.
// CHECK-LABEL: func.func @group(
// CHECK: scf.for {{.*}} to %c3{{[_0-9]*}} step %c1
// CHECK: aligned.decode_attention {{.*}} mask <causal> later {{.*}} : tensor<1x33x1x16xf16>
func.func @group(%q: tensor<1x33x3x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x16xf16>, %scale: f32) -> tensor<1x33x3x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale mask <causal> : tensor<1x33x3x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16> -> tensor<1x33x3x16xf16>
  return %out : tensor<1x33x3x16xf16>
}

// -----

// So do those of which types say no number. What the value's type doesn't say of the result, the value does.
// CHECK-LABEL: func.func @any(
// CHECK-SAME: %{{[^:]*}}: tensor<?x?x?x?xf16>, %{{[^:]*}}: tensor<?x?x?x?xf16>, %[[V:[^:]*]]: tensor<?x?x?x?xf16>
// CHECK: %[[DIM:.*]] = tensor.dim %[[V]], %c3
// CHECK: tensor.empty(%{{[^,]*}}, %{{[^,]*}}, %{{[^,]*}}, %[[DIM]])
// CHECK: scf.for {{.*}} step %c1
// CHECK: aligned.decode_attention {{.*}} : tensor<?x?x1x?xf16>, tensor<?x?x?x?xf16>, tensor<?x?x?x?xf16> -> tensor<?x?x1x?xf32>
func.func @any(%q: tensor<?x?x?x?xf16>, %k: tensor<?x?x?x?xf16>, %v: tensor<?x?x?x?xf16>, %scale: f32) -> tensor<?x?x?x?xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<?x?x?x?xf16>, tensor<?x?x?x?xf16>, tensor<?x?x?x?xf16> -> tensor<?x?x?x?xf16>
  return %out : tensor<?x?x?x?xf16>
}

// -----

// A mask may know how many queries there are.
// CHECK-LABEL: func.func @queries_of_mask(
// CHECK: tensor.cast %{{.*}} : tensor<1x4x?x16xf16> to tensor<1x4x3x16xf16>
// CHECK-NOT: scf.for
// CHECK: aligned.decode_attention {{.*}} : tensor<1x4x3x16xf16>
func.func @queries_of_mask(%q: tensor<1x4x?x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x16xf16>, %m: tensor<1x1x3x?xi1>, %scale: f32) -> tensor<1x4x?x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale attn_mask %m : tensor<1x1x3x?xi1> : tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16> -> tensor<1x4x?x16xf16>
  return %out : tensor<1x4x?x16xf16>
}

// -----

!key = tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
// CHECK-LABEL: func.func @planes(
// CHECK-SAME: %[[Q:[^:]*]]: {{[^,]*}}, %[[K:[^:]*]]: tensor<1x1x?x16xf16, #{{[^%]*}}%[[V:[^:]*]]:
// CHECK-DAG: %[[KEY:.*]] = aligned.unpack %[[K]]
// CHECK-DAG: %[[VALUE:.*]] = aligned.unpack %[[V]]
// CHECK: aligned.decode_attention %[[Q]], %[[KEY]], %[[VALUE]] {{.*}} policy <exact>
func.func @planes(%q: tensor<1x40x1x16xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x40x1x16xf16> {
  // expected-remark@+1 {{caches are unpacked at every step: expected at most 32 query heads per kv head, got 'tensor<1x40x1x16xf16>' and 'tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x40x1x16xf16>, !key, !value -> tensor<1x40x1x16xf16>
  return %out : tensor<1x40x1x16xf16>
}

// -----

// A result without elements takes no attention.
// CHECK-LABEL: func.func @nothing(
// CHECK-SAME: %[[Q:[^:]*]]: tensor<?x4x1x16xf16>
// CHECK: %[[BATCH:.*]] = tensor.dim %[[Q]], %c0
// CHECK: tensor.splat %{{.*}}[%[[BATCH]]] : tensor<?x4x1x0xf16>
// CHECK: tensor.splat %{{.*}}[%{{.*}}] : tensor<?x4x1xf32>
// CHECK-NOT: aligned.
func.func @nothing(%q: tensor<?x4x1x16xf16>, %k: tensor<?x1x?x16xf16>, %v: tensor<?x1x?x0xf16>, %scale: f32) -> (tensor<?x4x1x0xf16>, tensor<?x4x1xf32>) {
  %out, %bound, %estimate = aligned.attention %q, %k, %v scale %scale : tensor<?x4x1x16xf16>, tensor<?x1x?x16xf16>, tensor<?x1x?x0xf16> -> tensor<?x4x1x0xf16>
      certified tensor<?x4x1xf32>, tensor<?x4x1xf32>
  return %out, %bound : tensor<?x4x1x0xf16>, tensor<?x4x1xf32>
}
