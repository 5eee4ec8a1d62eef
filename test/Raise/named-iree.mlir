// RUN: aligned-opt %s --allow-unregistered-dialect --aligned-raise-named-ops --split-input-file --verify-diagnostics | FileCheck %s

// iree_linalg_ext.attention says by indexing maps what its dimensions are. As the formula has it, a row of -inf is NaN: no masked_zero.

// CHECK-LABEL: func.func @heads(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x10x3x64xf16>, %[[K:[a-z0-9]+]]: tensor<2x10x?x64xf16>, %[[V:[a-z0-9]+]]: tensor<2x10x?x32xf16>
// CHECK-NEXT: %[[SCALE:.*]] = arith.constant 1.250000e-01 : f32
// CHECK-NEXT: %[[OUT:.*]] = aligned.attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] : tensor<2x10x3x64xf16>, tensor<2x10x?x64xf16>, tensor<2x10x?x32xf16> -> tensor<2x10x3x32xf32>
// CHECK-NEXT: return %[[OUT]]
#q = affine_map<(b, h, m, n, c, t) -> (b, h, m, c)>
#k = affine_map<(b, h, m, n, c, t) -> (b, h, t, c)>
#v = affine_map<(b, h, m, n, c, t) -> (b, h, t, n)>
#s = affine_map<(b, h, m, n, c, t) -> ()>
#o = affine_map<(b, h, m, n, c, t) -> (b, h, m, n)>
func.func @heads(%q: tensor<2x10x3x64xf16>, %k: tensor<2x10x?x64xf16>, %v: tensor<2x10x?x32xf16>) -> tensor<2x10x3x32xf32> {
  %scale = arith.constant 1.250000e-01 : f16
  %e = tensor.empty() : tensor<2x10x3x32xf32>
  %r = "iree_linalg_ext.attention"(%q, %k, %v, %scale, %e) <{indexing_maps = [#q, #k, #v, #s, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) {lowering_config = "any"} : (tensor<2x10x3x64xf16>, tensor<2x10x?x64xf16>, tensor<2x10x?x32xf16>, f16, tensor<2x10x3x32xf32>) -> tensor<2x10x3x32xf32>
  return %r : tensor<2x10x3x32xf32>
}

// -----

// One batch dimension: entries of one head. The scale is a value, V transposed.

// CHECK-LABEL: func.func @one_batch(
// CHECK-SAME: %[[SCALE:[a-z0-9]+]]: f32)
// CHECK: %[[VT:.*]] = linalg.transpose ins(%{{.*}} : tensor<6x16x7xf32>) outs(%{{.*}} : tensor<6x7x16xf32>) permutation = [0, 2, 1]
// CHECK: %[[V:.*]] = tensor.expand_shape %[[VT]] {{\[\[}}0], [1, 2], [3]] output_shape [6, 1, 7, 16]
// CHECK: aligned.attention %{{.*}}, %{{.*}}, %[[V]] scale %[[SCALE]] : tensor<6x1x3x32xf32>, tensor<6x1x7x32xf32>, tensor<6x1x7x16xf32> -> tensor<6x1x3x16xf32>
// CHECK: tensor.collapse_shape %{{.*}} {{\[\[}}0], [1, 2], [3]] : tensor<6x1x3x16xf32> into tensor<6x3x16xf32>
#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#vt = affine_map<(b, m, n, c, t) -> (b, n, t)>
#s = affine_map<(b, m, n, c, t) -> ()>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
func.func @one_batch(%q: tensor<6x3x32xf32>, %k: tensor<6x7x32xf32>, %v: tensor<6x16x7xf32>, %scale: f32) -> tensor<6x3x16xf32> {
  %e = tensor.empty() : tensor<6x3x16xf32>
  %r = "iree_linalg_ext.attention"(%q, %k, %v, %scale, %e) <{indexing_maps = [#q, #k, #vt, #s, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<6x3x32xf32>, tensor<6x7x32xf32>, tensor<6x16x7xf32>, f32, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

// Two dimensions that queries have alone: query heads of a kv head, and queries. K and V are kept [batch, tokens, kv_heads, head_dim], the mask is one for all heads.

// CHECK-LABEL: func.func @grouped(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x3x4x1x16xf32>,
// CHECK: %[[Q4:.*]] = tensor.collapse_shape %[[Q]] {{\[\[}}0], [1, 2], [3], [4]] : tensor<2x3x4x1x16xf32> into tensor<2x12x1x16xf32>
// CHECK: %[[K4:.*]] = linalg.transpose ins(%{{.*}} : tensor<2x?x3x16xf32>) outs(%{{.*}} : tensor<2x3x?x16xf32>) permutation = [0, 2, 1, 3]
// CHECK: %[[V4:.*]] = linalg.transpose
// CHECK: %[[M4:.*]] = tensor.expand_shape %{{.*}} {{\[\[}}0], [1, 2, 3]] output_shape [2, 1, 1, %{{.*}}] : tensor<2x?xf16> into tensor<2x1x1x?xf16>
// CHECK: %[[OUT:.*]] = aligned.attention %[[Q4]], %[[K4]], %[[V4]] scale %{{.*}} attn_mask %[[M4]] : tensor<2x1x1x?xf16> : tensor<2x12x1x16xf32>, tensor<2x3x?x16xf32>, tensor<2x3x?x16xf32> -> tensor<2x12x1x16xf32>
// CHECK: tensor.expand_shape %[[OUT]] {{\[\[}}0], [1, 2], [3], [4]] output_shape [2, 3, 4, 1, 16]
#q = affine_map<(b, h, g, m, n, c, t) -> (b, h, g, m, c)>
#k = affine_map<(b, h, g, m, n, c, t) -> (b, t, h, c)>
#v = affine_map<(b, h, g, m, n, c, t) -> (b, t, h, n)>
#s = affine_map<(b, h, g, m, n, c, t) -> ()>
#mask = affine_map<(b, h, g, m, n, c, t) -> (b, t)>
#o = affine_map<(b, h, g, m, n, c, t) -> (b, h, g, m, n)>
func.func @grouped(%q: tensor<2x3x4x1x16xf32>, %k: tensor<2x?x3x16xf32>, %v: tensor<2x?x3x16xf32>, %mask: tensor<2x?xf16>) -> tensor<2x3x4x1x16xf32> {
  %scale = arith.constant 2.500000e-01 : f32
  %e = tensor.empty() : tensor<2x3x4x1x16xf32>
  %r = "iree_linalg_ext.attention"(%q, %k, %v, %scale, %mask, %e) <{indexing_maps = [#q, #k, #v, #s, #mask, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<2x3x4x1x16xf32>, tensor<2x?x3x16xf32>, tensor<2x?x3x16xf32>, f32, tensor<2x?xf16>, tensor<2x3x4x1x16xf32>) -> tensor<2x3x4x1x16xf32>
  return %r : tensor<2x3x4x1x16xf32>
}

// -----

// The output lists its dimensions in an order of its own: the result is brought to it.

// CHECK-LABEL: func.func @output_order(
// CHECK: %[[OUT:.*]] = aligned.attention {{.*}} -> tensor<2x3x5x16xf32>
// CHECK: linalg.transpose ins(%[[OUT]] : tensor<2x3x5x16xf32>) outs(%{{.*}} : tensor<2x5x3x16xf32>) permutation = [0, 2, 1, 3]
#q = affine_map<(b, h, m, n, c, t) -> (b, h, m, c)>
#k = affine_map<(b, h, m, n, c, t) -> (b, h, t, c)>
#v = affine_map<(b, h, m, n, c, t) -> (b, h, t, n)>
#s = affine_map<(b, h, m, n, c, t) -> ()>
#o = affine_map<(b, h, m, n, c, t) -> (b, m, h, n)>
func.func @output_order(%q: tensor<2x3x5x16xf32>, %k: tensor<2x3x7x16xf32>, %v: tensor<2x3x7x16xf32>, %scale: f32) -> tensor<2x5x3x16xf32> {
  %e = tensor.empty() : tensor<2x5x3x16xf32>
  %r = "iree_linalg_ext.attention"(%q, %k, %v, %scale, %e) <{indexing_maps = [#q, #k, #v, #s, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<2x3x5x16xf32>, tensor<2x3x7x16xf32>, tensor<2x3x7x16xf32>, f32, tensor<2x5x3x16xf32>) -> tensor<2x5x3x16xf32>
  return %r : tensor<2x5x3x16xf32>
}

// -----

#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#v = affine_map<(b, m, n, c, t) -> (b, t, n)>
#s = affine_map<(b, m, n, c, t) -> ()>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
// CHECK-LABEL: func.func @region(
// CHECK: "iree_linalg_ext.attention"
func.func @region(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %scale: f32) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a region that yields the score as it is, got another}}
  %r = "iree_linalg_ext.attention"(%q, %k, %k, %scale, %q) <{indexing_maps = [#q, #k, #v, #s, #o]}> ({
  ^bb0(%score: f32):
    %capped = math.tanh %score : f32
    "iree_linalg_ext.yield"(%capped) : (f32) -> ()
  }) : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, f32, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#v = affine_map<(b, m, n, c, t) -> (b, t, n)>
#s = affine_map<(b, m, n, c, t) -> ()>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
func.func @operands(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected 5 to 6 operands and 1 results, got 4 and 1}}
  %r = "iree_linalg_ext.attention"(%q, %k, %k, %q) <{indexing_maps = [#q, #k, #v, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

// A product over batch: nobody's attention.

#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#v = affine_map<(b, m, n, c, t) -> (t, n)>
#s = affine_map<(b, m, n, c, t) -> ()>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
func.func @maps(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %v: tensor<7x16xf32>, %scale: f32) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected indexing maps of batch dimensions, up to two of queries, and one each of channels, tokens and value channels, got others}}
  %r = "iree_linalg_ext.attention"(%q, %k, %v, %scale, %q) <{indexing_maps = [#q, #k, #v, #s, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<7x16xf32>, f32, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

#q = affine_map<(b, h, g, m, n, c, t) -> (b, h, g, m, c)>
#k = affine_map<(b, h, g, m, n, c, t) -> (b, h, t, c)>
#v = affine_map<(b, h, g, m, n, c, t) -> (b, h, t, n)>
#s = affine_map<(b, h, g, m, n, c, t) -> ()>
#mask = affine_map<(b, h, g, m, n, c, t) -> (b, h, t)>
#o = affine_map<(b, h, g, m, n, c, t) -> (b, h, g, m, n)>
func.func @some_heads(%q: tensor<2x3x4x1x16xf32>, %k: tensor<2x3x7x16xf32>, %mask: tensor<2x3x7xf32>, %scale: f32) -> tensor<2x3x4x1x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a mask of all heads and batch entries apart, or one for all, got some}}
  %r = "iree_linalg_ext.attention"(%q, %k, %k, %scale, %mask, %q) <{indexing_maps = [#q, #k, #v, #s, #mask, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<2x3x4x1x16xf32>, tensor<2x3x7x16xf32>, tensor<2x3x7x16xf32>, f32, tensor<2x3x7xf32>, tensor<2x3x4x1x16xf32>) -> tensor<2x3x4x1x16xf32>
  return %r : tensor<2x3x4x1x16xf32>
}

// -----

#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#v = affine_map<(b, m, n, c, t) -> (b, t, n)>
#s = affine_map<(b, m, n, c, t) -> ()>
#mask = affine_map<(b, m, n, c, t) -> (b, m)>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
func.func @mask_without_tokens(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %mask: tensor<6x3xi1>, %scale: f32) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a mask whose indexing map lists dimensions of the scores and tokens among them, got another}}
  %r = "iree_linalg_ext.attention"(%q, %k, %k, %scale, %mask, %q) <{indexing_maps = [#q, #k, #v, #s, #mask, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, f32, tensor<6x3xi1>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#v = affine_map<(b, m, n, c, t) -> (b, t, n)>
#s = affine_map<(b, m, n, c, t) -> ()>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
func.func @result(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %e: tensor<6x4x16xf32>, %scale: f32) -> tensor<6x4x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a result of the queries' batch and heads, got tensor<6x4x16xf32>}}
  %r = "iree_linalg_ext.attention"(%q, %k, %k, %scale, %e) <{indexing_maps = [#q, #k, #v, #s, #o]}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, f32, tensor<6x4x16xf32>) -> tensor<6x4x16xf32>
  return %r : tensor<6x4x16xf32>
}

// -----

#q = affine_map<(b, m, n, c, t) -> (b, m, c)>
#k = affine_map<(b, m, n, c, t) -> (b, t, c)>
#v = affine_map<(b, m, n, c, t) -> (b, t, n)>
#s = affine_map<(b, m, n, c, t) -> ()>
#o = affine_map<(b, m, n, c, t) -> (b, m, n)>
func.func @attribute(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %scale: f32) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected attributes that are known (indexing_maps, decomposition_config, lowering_config, compilation_info), got 'transpose_v'}}
  %r = "iree_linalg_ext.attention"(%q, %k, %k, %scale, %q) <{indexing_maps = [#q, #k, #v, #s, #o], transpose_v = true}> ({
  ^bb0(%score: f32):
    "iree_linalg_ext.yield"(%score) : (f32) -> ()
  }) : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, f32, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}
