// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// How Q, K, V and the result lie in tensors: batch entries, heads, groups of query heads, tokens and channels.

!q = tensor<2x3x16xf32>
!kt = tensor<2x16x5xf32>
!v = tensor<2x5x16xf32>
!s = tensor<2x3x5xf32>
#s = affine_map<(h, i, t) -> (h, i, t)>

// K and V are repeated for the query heads of each kv head,
// CHECK-LABEL: func.func @repeated(
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x3x16xf32>
func.func @repeated(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>) -> tensor<1x6x3x16xf32> {
  %zero_kr = arith.constant dense<0.0> : tensor<1x2x3x5x16xf32>
  %kr5 = linalg.broadcast ins(%k : tensor<1x2x5x16xf32>) outs(%zero_kr : tensor<1x2x3x5x16xf32>) dimensions = [2]
  %kr = tensor.collapse_shape %kr5 [[0], [1, 2], [3], [4]] : tensor<1x2x3x5x16xf32> into tensor<1x6x5x16xf32>
  %zero_vr = arith.constant dense<0.0> : tensor<1x2x3x5x16xf32>
  %vr5 = linalg.broadcast ins(%v : tensor<1x2x5x16xf32>) outs(%zero_vr : tensor<1x2x3x5x16xf32>) dimensions = [2]
  %vr = tensor.collapse_shape %vr5 [[0], [1, 2], [3], [4]] : tensor<1x2x3x5x16xf32> into tensor<1x6x5x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x6x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, h, i, t) -> (b, h, i, c)>, affine_map<(b, c, h, i, t) -> (b, h, t, c)>, affine_map<(b, c, h, i, t) -> (b, h, i, t)>] ins(%q, %kr : tensor<1x6x3x16xf32>, tensor<1x6x5x16xf32>) outs(%zero_s : tensor<1x6x3x5xf32>) -> tensor<1x6x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x6x3x5xf32>
  %p = linalg.softmax dimension(3) ins(%s : tensor<1x6x3x5xf32>) outs(%zero_p : tensor<1x6x3x5xf32>) -> tensor<1x6x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x6x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, h, i, n, t) -> (b, h, i, t)>, affine_map<(b, h, i, n, t) -> (b, h, t, n)>, affine_map<(b, h, i, n, t) -> (b, h, i, n)>] ins(%p, %vr : tensor<1x6x3x5xf32>, tensor<1x6x5x16xf32>) outs(%zero_o : tensor<1x6x3x16xf32>) -> tensor<1x6x3x16xf32>
  return %o : tensor<1x6x3x16xf32>
}

// or read by each, in five dimensions,
// CHECK-LABEL: func.func @grouped(
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x3x16xf32>
func.func @grouped(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>) -> tensor<1x6x3x16xf32> {
  %qg = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 3, 16] : tensor<1x6x3x16xf32> into tensor<1x2x3x3x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, g, i, k, t) -> (b, k, g, i, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, t, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, g, i, t)>] ins(%qg, %k : tensor<1x2x3x3x16xf32>, tensor<1x2x5x16xf32>) outs(%zero_s : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%s : tensor<1x2x3x3x5xf32>) outs(%zero_p : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_og = arith.constant dense<0.0> : tensor<1x2x3x3x16xf32>
  %og = linalg.contract indexing_maps = [affine_map<(b, g, i, k, n, t) -> (b, k, g, i, t)>, affine_map<(b, g, i, k, n, t) -> (b, k, t, n)>, affine_map<(b, g, i, k, n, t) -> (b, k, g, i, n)>] ins(%p, %v : tensor<1x2x3x3x5xf32>, tensor<1x2x5x16xf32>) outs(%zero_og : tensor<1x2x3x3x16xf32>) -> tensor<1x2x3x3x16xf32>
  %o = tensor.collapse_shape %og [[0], [1, 2], [3], [4]] : tensor<1x2x3x3x16xf32> into tensor<1x6x3x16xf32>
  return %o : tensor<1x6x3x16xf32>
}

// or repeated as often as only a cast says,
// CHECK-LABEL: func.func @repeated_by_unknown(
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x3x16xf32>
func.func @repeated_by_unknown(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>, %six: tensor<6xf32>) -> tensor<1x6x3x16xf32> {
  %c0 = arith.constant 0 : index
  %c2 = arith.constant 2 : index
  %cast = tensor.cast %six : tensor<6xf32> to tensor<?xf32>
  %heads = tensor.dim %cast, %c0 : tensor<?xf32>
  %group = arith.divui %heads, %c2 : index
  %kre = tensor.empty(%group) : tensor<1x2x?x5x16xf32>
  %kr5 = linalg.broadcast ins(%k : tensor<1x2x5x16xf32>) outs(%kre : tensor<1x2x?x5x16xf32>) dimensions = [2]
  %kr4 = tensor.collapse_shape %kr5 [[0], [1, 2], [3], [4]] : tensor<1x2x?x5x16xf32> into tensor<1x?x5x16xf32>
  %kr = tensor.cast %kr4 : tensor<1x?x5x16xf32> to tensor<1x6x5x16xf32>
  %vre = tensor.empty(%group) : tensor<1x2x?x5x16xf32>
  %vr5 = linalg.broadcast ins(%v : tensor<1x2x5x16xf32>) outs(%vre : tensor<1x2x?x5x16xf32>) dimensions = [2]
  %vr4 = tensor.collapse_shape %vr5 [[0], [1, 2], [3], [4]] : tensor<1x2x?x5x16xf32> into tensor<1x?x5x16xf32>
  %vr = tensor.cast %vr4 : tensor<1x?x5x16xf32> to tensor<1x6x5x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x6x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, h, i, t) -> (b, h, i, c)>, affine_map<(b, c, h, i, t) -> (b, h, t, c)>, affine_map<(b, c, h, i, t) -> (b, h, i, t)>] ins(%q, %kr : tensor<1x6x3x16xf32>, tensor<1x6x5x16xf32>) outs(%zero_s : tensor<1x6x3x5xf32>) -> tensor<1x6x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x6x3x5xf32>
  %p = linalg.softmax dimension(3) ins(%s : tensor<1x6x3x5xf32>) outs(%zero_p : tensor<1x6x3x5xf32>) -> tensor<1x6x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x6x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, h, i, n, t) -> (b, h, i, t)>, affine_map<(b, h, i, n, t) -> (b, h, t, n)>, affine_map<(b, h, i, n, t) -> (b, h, i, n)>] ins(%p, %vr : tensor<1x6x3x5xf32>, tensor<1x6x5x16xf32>) outs(%zero_o : tensor<1x6x3x16xf32>) -> tensor<1x6x3x16xf32>
  return %o : tensor<1x6x3x16xf32>
}

// or all read one.
// CHECK-LABEL: func.func @one_kv_head(
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x1x5x16xf32>, tensor<1x1x5x16xf32>
func.func @one_kv_head(%q: tensor<1x6x3x16xf32>, %k: tensor<1x1x5x16xf32>, %v: tensor<1x1x5x16xf32>) -> tensor<1x6x3x16xf32> {
  %k2 = tensor.collapse_shape %k [[0, 1], [2], [3]] : tensor<1x1x5x16xf32> into tensor<1x5x16xf32>
  %v2 = tensor.collapse_shape %v [[0, 1], [2], [3]] : tensor<1x1x5x16xf32> into tensor<1x5x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x6x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, h, i, t) -> (b, h, i, c)>, affine_map<(b, c, h, i, t) -> (b, t, c)>, affine_map<(b, c, h, i, t) -> (b, h, i, t)>] ins(%q, %k2 : tensor<1x6x3x16xf32>, tensor<1x5x16xf32>) outs(%zero_s : tensor<1x6x3x5xf32>) -> tensor<1x6x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x6x3x5xf32>
  %p = linalg.softmax dimension(3) ins(%s : tensor<1x6x3x5xf32>) outs(%zero_p : tensor<1x6x3x5xf32>) -> tensor<1x6x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x6x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, h, i, n, t) -> (b, h, i, t)>, affine_map<(b, h, i, n, t) -> (b, t, n)>, affine_map<(b, h, i, n, t) -> (b, h, i, n)>] ins(%p, %v2 : tensor<1x6x3x5xf32>, tensor<1x5x16xf32>) outs(%zero_o : tensor<1x6x3x16xf32>) -> tensor<1x6x3x16xf32>
  return %o : tensor<1x6x3x16xf32>
}

// Five dimensions of Q, kv heads before their groups,
// CHECK-LABEL: func.func @five_dimensions(
// CHECK: %[[Q:.*]] = tensor.collapse_shape %arg0
// CHECK: aligned.attention %[[Q]], %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x3x16xf32>
func.func @five_dimensions(%q: tensor<1x2x3x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>) -> tensor<1x2x3x3x16xf32> {
  %zero_s = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, g, i, k, t) -> (b, k, g, i, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, t, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, g, i, t)>] ins(%q, %k : tensor<1x2x3x3x16xf32>, tensor<1x2x5x16xf32>) outs(%zero_s : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%s : tensor<1x2x3x3x5xf32>) outs(%zero_p : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x2x3x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, g, i, k, n, t) -> (b, k, g, i, t)>, affine_map<(b, g, i, k, n, t) -> (b, k, t, n)>, affine_map<(b, g, i, k, n, t) -> (b, k, g, i, n)>] ins(%p, %v : tensor<1x2x3x3x5xf32>, tensor<1x2x5x16xf32>) outs(%zero_o : tensor<1x2x3x3x16xf32>) -> tensor<1x2x3x3x16xf32>
  return %o : tensor<1x2x3x3x16xf32>
}

// or behind them: query heads 0, 2 and 4 read kv head 0.
// CHECK-LABEL: func.func @groups_first(
// CHECK: %[[T:.*]] = linalg.transpose ins(%{{[^ ]+}} : tensor<1x3x2x3x16xf32>) outs(%{{[^ ]+}} : tensor<1x2x3x3x16xf32>) permutation = [0, 2, 1, 3, 4]
// CHECK: %[[Q:.*]] = tensor.collapse_shape %[[T]]
// CHECK: aligned.attention %[[Q]], %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x3x16xf32>
func.func @groups_first(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>) -> tensor<1x3x2x3x16xf32> {
  %qg = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 3, 2, 3, 16] : tensor<1x6x3x16xf32> into tensor<1x3x2x3x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x3x2x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, g, i, k, t) -> (b, g, k, i, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, t, c)>, affine_map<(b, c, g, i, k, t) -> (b, g, k, i, t)>] ins(%qg, %k : tensor<1x3x2x3x16xf32>, tensor<1x2x5x16xf32>) outs(%zero_s : tensor<1x3x2x3x5xf32>) -> tensor<1x3x2x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x3x2x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%s : tensor<1x3x2x3x5xf32>) outs(%zero_p : tensor<1x3x2x3x5xf32>) -> tensor<1x3x2x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x3x2x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, g, i, k, n, t) -> (b, g, k, i, t)>, affine_map<(b, g, i, k, n, t) -> (b, k, t, n)>, affine_map<(b, g, i, k, n, t) -> (b, g, k, i, n)>] ins(%p, %v : tensor<1x3x2x3x5xf32>, tensor<1x2x5x16xf32>) outs(%zero_o : tensor<1x3x2x3x16xf32>) -> tensor<1x3x2x3x16xf32>
  return %o : tensor<1x3x2x3x16xf32>
}

// The number of tokens need not be known.
// CHECK-LABEL: func.func @unknown_tokens(
// CHECK: aligned.attention %{{[^ ]+}}, %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
func.func @unknown_tokens(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x2x3x3x16xf32> {
  %zero = arith.constant 0.0 : f32
  %qg = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 3, 16] : tensor<1x6x3x16xf32> into tensor<1x2x3x3x16xf32>
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %se = tensor.empty(%n) : tensor<1x2x3x3x?xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%se : tensor<1x2x3x3x?xf32>) -> tensor<1x2x3x3x?xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, g, i, k, t) -> (b, k, g, i, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, t, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, g, i, t)>] ins(%qg, %k : tensor<1x2x3x3x16xf32>, tensor<1x2x?x16xf32>) outs(%s0 : tensor<1x2x3x3x?xf32>) -> tensor<1x2x3x3x?xf32>
  %p = linalg.softmax dimension(4) ins(%s : tensor<1x2x3x3x?xf32>) outs(%se : tensor<1x2x3x3x?xf32>) -> tensor<1x2x3x3x?xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x2x3x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, g, i, k, n, t) -> (b, k, g, i, t)>, affine_map<(b, g, i, k, n, t) -> (b, k, t, n)>, affine_map<(b, g, i, k, n, t) -> (b, k, g, i, n)>] ins(%p, %v : tensor<1x2x3x3x?xf32>, tensor<1x2x?x16xf32>) outs(%zero_o : tensor<1x2x3x3x16xf32>) -> tensor<1x2x3x3x16xf32>
  return %o : tensor<1x2x3x3x16xf32>
}

// [batch, tokens, heads, channels] for Q, K, V and the result.
// CHECK-LABEL: func.func @tokens_before_heads(
// CHECK: linalg.transpose ins(%arg0 : tensor<1x3x6x16xf32>) outs(%{{.*}} : tensor<1x6x3x16xf32>) permutation = [0, 2, 1, 3]
// CHECK: linalg.transpose ins(%arg1 : tensor<1x5x2x16xf32>) outs(%{{.*}} : tensor<1x2x5x16xf32>) permutation = [0, 2, 1, 3]
// CHECK: linalg.transpose ins(%arg2
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x6x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x3x16xf32>
// CHECK: linalg.transpose
// CHECK: return %{{.*}} : tensor<1x3x6x16xf32>
func.func @tokens_before_heads(%q: tensor<1x3x6x16xf32>, %k: tensor<1x5x2x16xf32>, %v: tensor<1x5x2x16xf32>) -> tensor<1x3x6x16xf32> {
  %qg = tensor.expand_shape %q [[0], [1], [2, 3], [4]] output_shape [1, 3, 2, 3, 16] : tensor<1x3x6x16xf32> into tensor<1x3x2x3x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, g, i, k, t) -> (b, i, k, g, c)>, affine_map<(b, c, g, i, k, t) -> (b, t, k, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, g, i, t)>] ins(%qg, %k : tensor<1x3x2x3x16xf32>, tensor<1x5x2x16xf32>) outs(%zero_s : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%s : tensor<1x2x3x3x5xf32>) outs(%zero_p : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_og = arith.constant dense<0.0> : tensor<1x3x2x3x16xf32>
  %og = linalg.contract indexing_maps = [affine_map<(b, g, i, k, n, t) -> (b, k, g, i, t)>, affine_map<(b, g, i, k, n, t) -> (b, t, k, n)>, affine_map<(b, g, i, k, n, t) -> (b, i, k, g, n)>] ins(%p, %v : tensor<1x2x3x3x5xf32>, tensor<1x5x2x16xf32>) outs(%zero_og : tensor<1x3x2x3x16xf32>) -> tensor<1x3x2x3x16xf32>
  %o = tensor.collapse_shape %og [[0], [1], [2, 3], [4]] : tensor<1x3x2x3x16xf32> into tensor<1x3x6x16xf32>
  return %o : tensor<1x3x6x16xf32>
}

// Transpositions that the graph writes.
// CHECK-LABEL: func.func @transposed_in_the_graph(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @transposed_in_the_graph(%q: tensor<1x3x2x16xf32>, %k: tensor<1x5x2x16xf32>, %v: tensor<1x5x2x16xf32>) -> tensor<1x3x2x16xf32> {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zero_qt = arith.constant dense<0.0> : tensor<1x2x3x16xf32>
  %qt = linalg.transpose ins(%q : tensor<1x3x2x16xf32>) outs(%zero_qt : tensor<1x2x3x16xf32>) permutation = [0, 2, 1, 3]
  %zero_kt = arith.constant dense<0.0> : tensor<1x2x16x5xf32>
  %kt = linalg.transpose ins(%k : tensor<1x5x2x16xf32>) outs(%zero_kt : tensor<1x2x16x5xf32>) permutation = [0, 2, 3, 1]
  %zero_vt = arith.constant dense<0.0> : tensor<1x2x5x16xf32>
  %vt = linalg.transpose ins(%v : tensor<1x5x2x16xf32>) outs(%zero_vt : tensor<1x2x5x16xf32>) permutation = [0, 2, 1, 3]
  %q3 = tensor.collapse_shape %qt [[0, 1], [2], [3]] : tensor<1x2x3x16xf32> into !q
  %k3 = tensor.collapse_shape %kt [[0, 1], [2], [3]] : tensor<1x2x16x5xf32> into !kt
  %v3 = tensor.collapse_shape %vt [[0, 1], [2], [3]] : tensor<1x2x5x16xf32> into !v
  %s = linalg.batch_matmul ins(%q3, %k3 : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o3 = linalg.batch_matmul ins(%p, %v3 : !s, !v) outs(%zo : !q) -> !q
  %o4 = tensor.expand_shape %o3 [[0, 1], [2], [3]] output_shape [1, 2, 3, 16] : !q into tensor<1x2x3x16xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x3x2x16xf32>
  %o = linalg.transpose ins(%o4 : tensor<1x2x3x16xf32>) outs(%zero_o : tensor<1x3x2x16xf32>) permutation = [0, 2, 1, 3]
  return %o : tensor<1x3x2x16xf32>
}

// K Q^T, a softmax of its columns, and V^T P^T.
// CHECK-LABEL: func.func @columns(
// CHECK: linalg.transpose ins(%arg0 : tensor<2x16x3xf32>) outs(%{{.*}} : tensor<2x3x16xf32>) permutation = [0, 2, 1]
// CHECK: linalg.transpose ins(%arg2 : tensor<2x16x5xf32>) outs(%{{.*}} : tensor<2x5x16xf32>) permutation = [0, 2, 1]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
// CHECK: linalg.transpose
// CHECK: return %{{.*}} : tensor<2x16x3xf32>
func.func @columns(%qt: tensor<2x16x3xf32>, %k: !v, %vt: !kt) -> tensor<2x16x3xf32> {
  %z1 = arith.constant dense<0.0> : tensor<2x5x3xf32>
  %st = linalg.batch_matmul ins(%k, %qt : !v, tensor<2x16x3xf32>) outs(%z1 : tensor<2x5x3xf32>) -> tensor<2x5x3xf32>
  %p = linalg.softmax dimension(1) ins(%st : tensor<2x5x3xf32>) outs(%z1 : tensor<2x5x3xf32>) -> tensor<2x5x3xf32>
  %z2 = arith.constant dense<0.0> : tensor<2x16x3xf32>
  %o = linalg.batch_matmul ins(%vt, %p : !kt, tensor<2x5x3xf32>) outs(%z2 : tensor<2x16x3xf32>) -> tensor<2x16x3xf32>
  return %o : tensor<2x16x3xf32>
}

// A K that is kept transposed.
// CHECK-LABEL: func.func @transposed_keys(
// CHECK: linalg.transpose ins(%arg1 : tensor<2x16x5xf32>) outs(%{{.*}} : tensor<2x5x16xf32>) permutation = [0, 2, 1]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @transposed_keys(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// [batch * heads, tokens, channels].
// CHECK-LABEL: func.func @batch_and_heads_in_one(
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{[^ ]+}} : tensor<2x2x3x16xf32>, tensor<2x2x5x16xf32>, tensor<2x2x5x16xf32> -> tensor<2x2x3x16xf32>
func.func @batch_and_heads_in_one(%q: tensor<2x2x3x16xf32>, %k: tensor<2x2x5x16xf32>, %v: tensor<2x2x5x16xf32>) -> tensor<4x3x16xf32> {
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : tensor<2x2x3x16xf32> into tensor<4x3x16xf32>
  %k3 = tensor.collapse_shape %k [[0, 1], [2], [3]] : tensor<2x2x5x16xf32> into tensor<4x5x16xf32>
  %v3 = tensor.collapse_shape %v [[0, 1], [2], [3]] : tensor<2x2x5x16xf32> into tensor<4x5x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<4x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q3, %k3 : tensor<4x3x16xf32>, tensor<4x5x16xf32>) outs(%zero_s : tensor<4x3x5xf32>) -> tensor<4x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<4x3x5xf32>
  %p = linalg.softmax dimension(2) ins(%s : tensor<4x3x5xf32>) outs(%zero_p : tensor<4x3x5xf32>) -> tensor<4x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<4x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(h, i, n, t) -> (h, i, t)>, affine_map<(h, i, n, t) -> (h, t, n)>, affine_map<(h, i, n, t) -> (h, i, n)>] ins(%p, %v3 : tensor<4x3x5xf32>, tensor<4x5x16xf32>) outs(%zero_o : tensor<4x3x16xf32>) -> tensor<4x3x16xf32>
  return %o : tensor<4x3x16xf32>
}

// Two dimensions of one head,
// CHECK-LABEL: func.func @one_head(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x3x1x16xf32>, tensor<1x1x5x16xf32>, tensor<1x1x5x16xf32> -> tensor<1x3x1x16xf32>
func.func @one_head(%q: tensor<3x16xf32>, %k: tensor<16x5xf32>, %v: tensor<5x16xf32>) -> tensor<3x16xf32> {
  %z1 = arith.constant dense<0.0> : tensor<3x5xf32>
  %s = linalg.matmul ins(%q, %k : tensor<3x16xf32>, tensor<16x5xf32>) outs(%z1 : tensor<3x5xf32>) -> tensor<3x5xf32>
  %p = linalg.softmax dimension(1) ins(%s : tensor<3x5xf32>) outs(%z1 : tensor<3x5xf32>) -> tensor<3x5xf32>
  %z2 = arith.constant dense<0.0> : tensor<3x16xf32>
  %o = linalg.matmul ins(%p, %v : tensor<3x5xf32>, tensor<5x16xf32>) outs(%z2 : tensor<3x16xf32>) -> tensor<3x16xf32>
  return %o : tensor<3x16xf32>
}

// and one of one query.
// CHECK-LABEL: func.func @one_query(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x1x1x16xf32>, tensor<1x1x5x16xf32>, tensor<1x1x5x16xf32> -> tensor<1x1x1x16xf32>
func.func @one_query(%q: tensor<16xf32>, %k: tensor<5x16xf32>, %v: tensor<5x16xf32>) -> tensor<16xf32> {
  %z1 = arith.constant dense<0.0> : tensor<5xf32>
  %s = linalg.matvec ins(%k, %q : tensor<5x16xf32>, tensor<16xf32>) outs(%z1 : tensor<5xf32>) -> tensor<5xf32>
  %p = linalg.softmax dimension(0) ins(%s : tensor<5xf32>) outs(%z1 : tensor<5xf32>) -> tensor<5xf32>
  %z2 = arith.constant dense<0.0> : tensor<16xf32>
  %o = linalg.vecmat ins(%p, %v : tensor<5xf32>, tensor<5x16xf32>) outs(%z2 : tensor<16xf32>) -> tensor<16xf32>
  return %o : tensor<16xf32>
}

// The query heads of a kv head are rows of one product.
// CHECK-LABEL: func.func @heads_in_rows(
// CHECK: aligned.attention %arg0, %arg1, %arg2 scale %{{[^ ]+}} : tensor<1x6x1x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x6x1x16xf32>
func.func @heads_in_rows(%q: tensor<1x6x1x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>) -> tensor<1x2x3x1x16xf32> {
  %q3 = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 1, 16] : tensor<1x6x1x16xf32> into tensor<1x2x3x1x16xf32>
  %q2 = tensor.collapse_shape %q3 [[0, 1], [2, 3], [4]] : tensor<1x2x3x1x16xf32> into !q
  %k2 = tensor.collapse_shape %k [[0, 1], [2], [3]] : tensor<1x2x5x16xf32> into !v
  %v2 = tensor.collapse_shape %v [[0, 1], [2], [3]] : tensor<1x2x5x16xf32> into !v
  %zero_s = arith.constant dense<0.0> : !s
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q2, %k2 : !q, !v) outs(%zero_s : !s) -> !s
  %zero_p = arith.constant dense<0.0> : !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zero_p : !s) -> !s
  %zero_o3 = arith.constant dense<0.0> : !q
  %o3 = linalg.contract indexing_maps = [affine_map<(h, i, n, t) -> (h, i, t)>, affine_map<(h, i, n, t) -> (h, t, n)>, affine_map<(h, i, n, t) -> (h, i, n)>] ins(%p, %v2 : !s, !v) outs(%zero_o3 : !q) -> !q
  %o = tensor.expand_shape %o3 [[0, 1], [2, 3], [4]] output_shape [1, 2, 3, 1, 16] : !q into tensor<1x2x3x1x16xf32>
  return %o : tensor<1x2x3x1x16xf32>
}

// K and V differ in channels.
// CHECK-LABEL: func.func @value_channels(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x32xf32> -> tensor<1x2x3x32xf32>
func.func @value_channels(%q: !q, %k: !kt, %v: tensor<2x5x32xf32>) -> tensor<2x3x32xf32> {
  %zs = arith.constant dense<0.0> : !s
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %z2 = arith.constant dense<0.0> : tensor<2x3x32xf32>
  %o = linalg.batch_matmul ins(%p, %v : !s, tensor<2x5x32xf32>) outs(%z2 : tensor<2x3x32xf32>) -> tensor<2x3x32xf32>
  return %o : tensor<2x3x32xf32>
}

// A cache and a new token.
// CHECK-LABEL: func.func @appended(
// CHECK: %[[K:.*]] = aligned.append %arg3 to %arg1
// CHECK: %[[V:.*]] = aligned.append %arg4 to %arg2
// CHECK: aligned.attention %{{[^ ]+}}, %[[K]], %[[V]] scale
func.func @appended(%q: tensor<1x6x3x16xf32>, %cachek: tensor<1x2x4x16xf32>, %cachev: tensor<1x2x4x16xf32>, %newk: tensor<1x2x1x16xf32>, %newv: tensor<1x2x1x16xf32>) -> tensor<1x2x3x3x16xf32> {
  %qg = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 3, 16] : tensor<1x6x3x16xf32> into tensor<1x2x3x3x16xf32>
  %k = tensor.concat dim(2) %cachek, %newk : (tensor<1x2x4x16xf32>, tensor<1x2x1x16xf32>) -> tensor<1x2x5x16xf32>
  %v = tensor.concat dim(2) %cachev, %newv : (tensor<1x2x4x16xf32>, tensor<1x2x1x16xf32>) -> tensor<1x2x5x16xf32>
  %zero_s = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, c, g, i, k, t) -> (b, k, g, i, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, t, c)>, affine_map<(b, c, g, i, k, t) -> (b, k, g, i, t)>] ins(%qg, %k : tensor<1x2x3x3x16xf32>, tensor<1x2x5x16xf32>) outs(%zero_s : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_p = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%s : tensor<1x2x3x3x5xf32>) outs(%zero_p : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %zero_o = arith.constant dense<0.0> : tensor<1x2x3x3x16xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, g, i, k, n, t) -> (b, k, g, i, t)>, affine_map<(b, g, i, k, n, t) -> (b, k, t, n)>, affine_map<(b, g, i, k, n, t) -> (b, k, g, i, n)>] ins(%p, %v : tensor<1x2x3x3x5xf32>, tensor<1x2x5x16xf32>) outs(%zero_o : tensor<1x2x3x3x16xf32>) -> tensor<1x2x3x3x16xf32>
  return %o : tensor<1x2x3x3x16xf32>
}

// Channels that are put together are read as they are.
// CHECK-LABEL: func.func @rotated_halves(
// CHECK: %[[K:.*]] = tensor.concat dim(2) %arg1, %arg2
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @rotated_halves(%q: !q, %first: tensor<2x5x8xf32>, %second: tensor<2x5x8xf32>, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %kh = tensor.concat dim(2) %first, %second : (tensor<2x5x8xf32>, tensor<2x5x8xf32>) -> !v
  %zero_s = arith.constant dense<0.0> : !s
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q, %kh : !q, !v) outs(%zero_s : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Slices are read as they are.
// CHECK-LABEL: func.func @some_heads(
// CHECK: tensor.extract_slice %arg1[2, 0, 0]
// CHECK: tensor.extract_slice %arg2[2, 0, 0]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @some_heads(%q: !q, %kw: tensor<4x5x16xf32>, %vw: tensor<4x5x16xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %k = tensor.extract_slice %kw[2, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<4x5x16xf32> to !v
  %v = tensor.extract_slice %vw[2, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<4x5x16xf32> to !v
  %zero_s = arith.constant dense<0.0> : !s
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q, %k : !q, !v) outs(%zero_s : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @some_tokens(
// CHECK: %[[SLICE:.*]] = tensor.extract_slice %arg1
// CHECK: %[[K:.*]] = tensor.expand_shape %[[SLICE]]
// CHECK: aligned.attention %{{[^ ]+}}, %[[K]], %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @some_tokens(%q: !q, %kw: tensor<2x7x16xf32>, %vw: tensor<2x7x16xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %k = tensor.extract_slice %kw[0, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<2x7x16xf32> to !v
  %v = tensor.extract_slice %vw[0, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<2x7x16xf32> to !v
  %zero_s = arith.constant dense<0.0> : !s
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q, %k : !q, !v) outs(%zero_s : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @some_tokens_behind_a_cast(
// CHECK: %[[SLICE:.*]] = tensor.extract_slice %arg1
// CHECK: %[[K:.*]] = tensor.expand_shape %[[SLICE]]
// CHECK: aligned.attention %{{[^ ]+}}, %[[K]], %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @some_tokens_behind_a_cast(%q: !q, %kw: tensor<2x7x16xf32>, %vw: tensor<2x7x16xf32>) -> !q {
  %zo = arith.constant dense<0.0> : !q
  %zero = arith.constant 0.0 : f32
  %ks = tensor.extract_slice %kw[0, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<2x7x16xf32> to !v
  %vs = tensor.extract_slice %vw[0, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<2x7x16xf32> to !v
  %k = tensor.cast %ks : !v to tensor<2x?x16xf32>
  %v = tensor.cast %vs : !v to tensor<2x?x16xf32>
  %c1 = arith.constant 1 : index
  %n = tensor.dim %k, %c1 : tensor<2x?x16xf32>
  %se = tensor.empty(%n) : tensor<2x3x?xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%se : tensor<2x3x?xf32>) -> tensor<2x3x?xf32>
  %s = linalg.contract indexing_maps = [affine_map<(h, i, t, c) -> (h, i, c)>, affine_map<(h, i, t, c) -> (h, t, c)>, affine_map<(h, i, t, c) -> (h, i, t)>] ins(%q, %k : !q, tensor<2x?x16xf32>) outs(%s0 : tensor<2x3x?xf32>) -> tensor<2x3x?xf32>
  %p = linalg.softmax dimension(2) ins(%s : tensor<2x3x?xf32>) outs(%se : tensor<2x3x?xf32>) -> tensor<2x3x?xf32>
  %o = linalg.batch_matmul ins(%p, %v : tensor<2x3x?xf32>, tensor<2x?x16xf32>) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @some_channels(
// CHECK: tensor.extract_slice %arg0
// CHECK: tensor.extract_slice %arg1
// CHECK: tensor.extract_slice %arg2
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @some_channels(%qw: tensor<2x3x32xf32>, %kw: tensor<2x5x32xf32>, %vw: tensor<2x5x32xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %q = tensor.extract_slice %qw[0, 0, 0] [2, 3, 16] [1, 1, 1] : tensor<2x3x32xf32> to !q
  %k = tensor.extract_slice %kw[0, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<2x5x32xf32> to !v
  %v = tensor.extract_slice %vw[0, 0, 0] [2, 5, 16] [1, 1, 1] : tensor<2x5x32xf32> to !v
  %zero_s = arith.constant dense<0.0> : !s
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q, %k : !q, !v) outs(%zero_s : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @some_queries(
// CHECK: tensor.extract_slice %arg0
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @some_queries(%qw: tensor<4x3x16xf32>, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %q = tensor.extract_slice %qw[0, 0, 0] [2, 3, 16] [1, 1, 1] : tensor<4x3x16xf32> to !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A copy that crosses heads is what is read.
// CHECK-LABEL: func.func @copied_crosswise(
// CHECK: %[[COPY:.*]] = linalg.generic
// CHECK: %[[K:.*]] = tensor.expand_shape %[[COPY]]
// CHECK: aligned.attention %{{[^ ]+}}, %[[K]], %{{[^ ]+}} scale
func.func @copied_crosswise(%q: tensor<2x3x16xf32>, %kc: !v, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zv = arith.constant dense<0.0> : !v
  %c1 = arith.constant 1 : index
  %kx = linalg.generic {indexing_maps = [#s], iterator_types = ["parallel", "parallel", "parallel"]} outs(%zv : !v) {
    ^bb0(%out: f32):
      %h = linalg.index 0 : index
      %t = linalg.index 1 : index
      %c = linalg.index 2 : index
      %g = arith.subi %c1, %h : index
      %new = tensor.extract %kc[%g, %t, %c] : !v
      linalg.yield %new : f32
  } -> !v
  %zero_s = arith.constant dense<0.0> : !s
  %s = linalg.contract indexing_maps = [affine_map<(c, h, i, t) -> (h, i, c)>, affine_map<(c, h, i, t) -> (h, t, c)>, affine_map<(c, h, i, t) -> (h, i, t)>] ins(%q, %kx : !q, !v) outs(%zero_s : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// So is a V that each token weighs.
// CHECK-LABEL: func.func @weighted_values(
// CHECK: %[[WEIGHTED:.*]] = linalg.generic
// CHECK: %[[V:.*]] = tensor.expand_shape %[[WEIGHTED]]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %[[V]] scale
func.func @weighted_values(%q: !q, %k: !kt, %v: !v, %w: tensor<2x5xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zv = arith.constant dense<0.0> : !v
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %vw = linalg.generic {indexing_maps = [affine_map<(h, t, n) -> (h, t, n)>, affine_map<(h, t, n) -> (h, t)>, affine_map<(h, t, n) -> (h, t, n)>], iterator_types = ["parallel", "parallel", "parallel"]} ins(%v, %w : !v, tensor<2x5xf32>) outs(%zv : !v) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.mulf %a, %b : f32
      linalg.yield %new : f32
  } -> !v
  %o = linalg.batch_matmul ins(%p, %vw : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}
