// RUN: aligned-opt %s --generate-runtime-verification --canonicalize --cse | FileCheck %s

// What the verifier checks of static extents is asserted of dynamic ones.

// CHECK-LABEL: func.func @attention(
// CHECK-SAME: %[[Q:[^:]*]]: tensor<?x4x1x16xf16>, %[[K:[^:]*]]: tensor<1x2x?x16xf16>, %[[V:[^:]*]]: tensor<1x2x?x16xf16>
// CHECK-DAG: %[[TK:.*]] = tensor.dim %[[K]], %c2
// CHECK-DAG: %[[TV:.*]] = tensor.dim %[[V]], %c2
// CHECK-DAG: %[[TOKENS:.*]] = arith.cmpi eq, %[[TK]], %[[TV]]
// CHECK-DAG: cf.assert %[[TOKENS]], "'aligned.attention' op expected key and value to agree in tokens"
// CHECK-DAG: %[[BQ:.*]] = tensor.dim %[[Q]], %c0
// CHECK-DAG: %[[BATCH:.*]] = arith.cmpi eq, %[[BQ]], %c1
// CHECK-DAG: cf.assert %[[BATCH]], "'aligned.attention' op expected query and key to agree in batch"
// CHECK: aligned.attention
func.func @attention(%q: tensor<?x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<?x4x1x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<?x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<?x4x1x16xf16>
  return %out : tensor<?x4x1x16xf16>
}

// CHECK-LABEL: func.func @promise(
// CHECK: cf.assert %{{.*}}, "'aligned.attention' op expected query to have the result's tokens"
// CHECK: aligned.attention
func.func @promise(%q: tensor<1x4x?x16xf16>, %k: tensor<1x2x8x16xf16>, %v: tensor<1x2x8x16xf16>, %scale: f32) -> tensor<1x4x2x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x4x?x16xf16>, tensor<1x2x8x16xf16>, tensor<1x2x8x16xf16> -> tensor<1x4x2x16xf16>
  return %out : tensor<1x4x2x16xf16>
}

// CHECK-LABEL: func.func @append(
// CHECK: "'aligned.append' op expected tokens and cache to agree in heads"
// CHECK: "'aligned.append' op expected cache and tokens to add up to the result"
func.func @append(%new: tensor<1x?x1x16xf16>, %cache: tensor<1x2x?x16xf16>) -> tensor<1x2x64x16xf16> {
  %out = aligned.append %new to %cache : tensor<1x?x1x16xf16> to tensor<1x2x?x16xf16> -> tensor<1x2x64x16xf16>
  return %out : tensor<1x2x64x16xf16>
}

// A mask by numbers has one for each token.
// CHECK-LABEL: func.func @mask(
// CHECK-SAME: %[[K:[^:]*]]: tensor<1x2x?x16xf16>, %{{.*}}: f32, %[[M:[^:]*]]: tensor<1x1x1x?xf32>)
// CHECK-DAG: %[[NUMBERS:.*]] = tensor.dim %[[M]], %c3
// CHECK-DAG: %[[TOKENS:.*]] = tensor.dim %[[K]], %c2
// CHECK-DAG: %[[SAME:.*]] = arith.cmpi eq, %[[NUMBERS]], %[[TOKENS]]
// CHECK: cf.assert %[[SAME]], "'aligned.decode_attention' op expected attn_mask and key to agree in tokens"
// CHECK: aligned.decode_attention
func.func @mask(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %scale: f32, %mask: tensor<1x1x1x?xf32>) -> tensor<1x4x1x16xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %k scale %scale attn_mask %mask : tensor<1x1x1x?xf32> policy <exact>
      : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<1x4x1x16xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x16xf32>
}

// Nothing is left to ask.
// CHECK-LABEL: func.func @static(
// CHECK-NOT: cf.assert
// CHECK: return
func.func @static(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x8x16xf16>, %v: tensor<1x2x8x16xf16>, %scale: f32) -> tensor<1x4x1x16xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x4x1x16xf16>, tensor<1x2x8x16xf16>, tensor<1x2x8x16xf16> -> tensor<1x4x1x16xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x16xf32>
}
