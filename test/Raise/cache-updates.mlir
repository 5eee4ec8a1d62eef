// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// Caches that attention reads, and how graphs bring new tokens into them.

#q = affine_map<(h, i, t, c) -> (h, i, c)>
#k = affine_map<(h, i, t, c) -> (h, t, c)>
#s = affine_map<(h, i, t, c) -> (h, i, t)>
!q = tensor<1x3x1x16xf32>
!new = tensor<1x3x2x16xf32>
!cache = tensor<1x3x65x16xf32>
!flat = tensor<3x65x16xf32>
!scores = tensor<3x1x65xf32>
!out = tensor<3x1x16xf32>

// A cache made for a largest number of tokens: at a position that the program knows when it runs, and at one that is known now.
// CHECK-LABEL: func.func @positions(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<1x3x1x16xf32>, %[[NEW:[a-z0-9]+]]: tensor<1x3x2x16xf32>, %[[K:[a-z0-9]+]]: tensor<1x3x65x16xf32>, %[[V:[a-z0-9]+]]: tensor<1x3x65x16xf32>, %[[AT:[a-z0-9]+]]: index
// CHECK-DAG: %[[C7:.*]] = arith.constant 7 : index
// CHECK-DAG: %[[K1:.*]] = aligned.append %[[NEW]] at %[[AT]] to %[[K]]
// CHECK-DAG: %[[V1:.*]] = aligned.append %[[NEW]] at %[[C7]] to %[[V]]
// CHECK: aligned.attention %[[Q]], %[[K1]], %[[V1]]
func.func @positions(%q: !q, %new: !new, %k: !cache, %v: !cache, %position: index) -> (!out, !cache, !cache) {
  %k1 = tensor.insert_slice %new into %k[0, 0, %position, 0] [1, 3, 2, 16] [1, 1, 1, 1] : !new into !cache
  %v1 = tensor.insert_slice %new into %v[0, 0, 7, 0] [1, 3, 2, 16] [1, 1, 1, 1] : !new into !cache
  %zero = arith.constant 0.0 : f32
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : !q into tensor<3x1x16xf32>
  %k3 = tensor.collapse_shape %k1 [[0, 1], [2], [3]] : !cache into !flat
  %v3 = tensor.collapse_shape %v1 [[0, 1], [2], [3]] : !cache into !flat
  %es = tensor.empty() : !scores
  %eo = tensor.empty() : !out
  %s0 = linalg.fill ins(%zero : f32) outs(%es : !scores) -> !scores
  %o0 = linalg.fill ins(%zero : f32) outs(%eo : !out) -> !out
  %s = linalg.batch_matmul indexing_maps = [#q, #k, #s] ins(%q3, %k3 : !out, !flat) outs(%s0 : !scores) -> !scores
  %p = linalg.softmax dimension(2) ins(%s : !scores) outs(%es : !scores) -> !scores
  %o = linalg.batch_matmul ins(%p, %v3 : !scores, !flat) outs(%o0 : !out) -> !out
  return %o, %k1, %v1 : !out, !cache, !cache
}

// Twice, and new tokens behind old ones.
// CHECK-LABEL: func.func @several(
// CHECK: %[[ONCE:.*]] = aligned.append %{{.*}} at %{{.*}} to %
// CHECK: %[[TWICE:.*]] = aligned.append %{{.*}} at %{{.*}} to %[[ONCE]]
// CHECK: %[[LONGER:.*]] = aligned.append %{{.*}} to %{{.*}} : tensor<1x3x2x16xf32> to tensor<1x3x63x16xf32> -> tensor<1x3x65x16xf32>
// CHECK: aligned.attention %{{.*}}, %[[TWICE]], %[[LONGER]]
func.func @several(%q: !q, %new: !new, %k: !cache, %v: tensor<1x3x63x16xf32>, %position: index) -> !out {
  %k0 = tensor.insert_slice %new into %k[0, 0, %position, 0] [1, 3, 2, 16] [1, 1, 1, 1] : !new into !cache
  %k1 = tensor.insert_slice %new into %k0[0, 0, 9, 0] [1, 3, 2, 16] [1, 1, 1, 1] : !new into !cache
  %v1 = tensor.concat dim(2) %v, %new : (tensor<1x3x63x16xf32>, !new) -> !cache
  %zero = arith.constant 0.0 : f32
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : !q into tensor<3x1x16xf32>
  %k3 = tensor.collapse_shape %k1 [[0, 1], [2], [3]] : !cache into !flat
  %v3 = tensor.collapse_shape %v1 [[0, 1], [2], [3]] : !cache into !flat
  %es = tensor.empty() : !scores
  %eo = tensor.empty() : !out
  %s0 = linalg.fill ins(%zero : f32) outs(%es : !scores) -> !scores
  %o0 = linalg.fill ins(%zero : f32) outs(%eo : !out) -> !out
  %s = linalg.batch_matmul indexing_maps = [#q, #k, #s] ins(%q3, %k3 : !out, !flat) outs(%s0 : !scores) -> !scores
  %p = linalg.softmax dimension(2) ins(%s : !scores) outs(%es : !scores) -> !scores
  %o = linalg.batch_matmul ins(%p, %v3 : !scores, !flat) outs(%o0 : !out) -> !out
  return %o : !out
}

// What replaces some channels or heads, or every second token, is no token; what is no cache is computed anew.
// CHECK-LABEL: func.func @others(
// CHECK: %[[CHANNELS:.*]] = tensor.insert_slice
// CHECK: %[[COMPUTED:.*]] = tensor.insert_slice
// CHECK-NOT: aligned.append
// CHECK: aligned.attention %{{.*}}, %[[CHANNELS]], %[[COMPUTED]]
func.func @others(%q: !q, %new: !new, %part: tensor<1x3x2x8xf32>, %k: !cache) -> !out {
  %e = tensor.empty() : !cache
  %k1 = tensor.insert_slice %part into %k[0, 0, 7, 8] [1, 3, 2, 8] [1, 1, 1, 1] : tensor<1x3x2x8xf32> into !cache
  %v1 = tensor.insert_slice %new into %e[0, 0, 7, 0] [1, 3, 2, 16] [1, 1, 1, 1] : !new into !cache
  %zero = arith.constant 0.0 : f32
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : !q into tensor<3x1x16xf32>
  %k3 = tensor.collapse_shape %k1 [[0, 1], [2], [3]] : !cache into !flat
  %v3 = tensor.collapse_shape %v1 [[0, 1], [2], [3]] : !cache into !flat
  %es = tensor.empty() : !scores
  %eo = tensor.empty() : !out
  %s0 = linalg.fill ins(%zero : f32) outs(%es : !scores) -> !scores
  %o0 = linalg.fill ins(%zero : f32) outs(%eo : !out) -> !out
  %s = linalg.batch_matmul indexing_maps = [#q, #k, #s] ins(%q3, %k3 : !out, !flat) outs(%s0 : !scores) -> !scores
  %p = linalg.softmax dimension(2) ins(%s : !scores) outs(%es : !scores) -> !scores
  %o = linalg.batch_matmul ins(%p, %v3 : !scores, !flat) outs(%o0 : !out) -> !out
  return %o : !out
}

// CHECK-LABEL: func.func @steps(
// CHECK-NOT: aligned.append
// CHECK: aligned.attention
func.func @steps(%q: !q, %new: !new, %one: tensor<1x1x2x16xf32>, %k: !cache, %v: !cache) -> !out {
  %k1 = tensor.insert_slice %new into %k[0, 0, 7, 0] [1, 3, 2, 16] [1, 1, 2, 1] : !new into !cache
  %v1 = tensor.insert_slice %one into %v[0, 2, 7, 0] [1, 1, 2, 16] [1, 1, 1, 1] : tensor<1x1x2x16xf32> into !cache
  %zero = arith.constant 0.0 : f32
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : !q into tensor<3x1x16xf32>
  %k3 = tensor.collapse_shape %k1 [[0, 1], [2], [3]] : !cache into !flat
  %v3 = tensor.collapse_shape %v1 [[0, 1], [2], [3]] : !cache into !flat
  %es = tensor.empty() : !scores
  %eo = tensor.empty() : !out
  %s0 = linalg.fill ins(%zero : f32) outs(%es : !scores) -> !scores
  %o0 = linalg.fill ins(%zero : f32) outs(%eo : !out) -> !out
  %s = linalg.batch_matmul indexing_maps = [#q, #k, #s] ins(%q3, %k3 : !out, !flat) outs(%s0 : !scores) -> !scores
  %p = linalg.softmax dimension(2) ins(%s : !scores) outs(%es : !scores) -> !scores
  %o = linalg.batch_matmul ins(%p, %v3 : !scores, !flat) outs(%o0 : !out) -> !out
  return %o : !out
}
