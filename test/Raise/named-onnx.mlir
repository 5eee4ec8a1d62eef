// RUN: aligned-opt %s --allow-unregistered-dialect --aligned-raise-named-ops --split-input-file --verify-diagnostics | FileCheck %s

// onnx.Attention of opsets 23 to 25; test/python/test_named_ops.py runs the operator's own cases. Heads beside channels are taken apart; what is left out is of type none.

// CHECK-LABEL: func.func @rank_3(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x4x72xf32>, %[[K:[a-z0-9]+]]: tensor<2x?x24xf32>, %[[V:[a-z0-9]+]]: tensor<2x?x30xf32>)
// CHECK: %[[Q4:.*]] = tensor.expand_shape %[[Q]] {{\[\[}}0], [1], [2, 3]] output_shape [2, 4, 9, 8]
// CHECK: %[[QT:.*]] = linalg.transpose ins(%[[Q4]] : tensor<2x4x9x8xf32>) outs(%{{.*}} : tensor<2x9x4x8xf32>) permutation = [0, 2, 1, 3]
// CHECK: %[[OUT:.*]] = aligned.attention %[[QT]], %{{.*}}, %{{.*}} scale %{{.*}} softcap 3.000000e+00 masked_zero : tensor<2x9x4x8xf32>, tensor<2x3x?x8xf32>, tensor<2x3x?x10xf32> -> tensor<2x9x4x10xf32>
// CHECK: %[[BACK:.*]] = linalg.transpose ins(%[[OUT]]
// CHECK: tensor.collapse_shape %[[BACK]] {{\[\[}}0], [1], [2, 3]] : tensor<2x4x9x10xf32> into tensor<2x4x90xf32>
// CHECK-NOT: onnx
func.func @rank_3(%q: tensor<2x4x72xf32>, %k: tensor<2x?x24xf32>, %v: tensor<2x?x30xf32>) -> tensor<2x4x90xf32> {
  %none = "onnx.NoValue"() {value} : () -> none
  %y, %pk, %pv, %qk = "onnx.Attention"(%q, %k, %v, %none, %none, %none, %none) {kv_num_heads = 3 : si64, onnx_node_name = "attn", q_num_heads = 9 : si64, qk_matmul_output_mode = 0 : si64, softcap = 3.0 : f32}
      : (tensor<2x4x72xf32>, tensor<2x?x24xf32>, tensor<2x?x30xf32>, none, none, none, none) -> (tensor<2x4x90xf32>, none, none, none)
  "onnx.Return"(%y) : (tensor<2x4x90xf32>) -> ()
}
"onnx.EntryPoint"() {func = @rank_3} : () -> ()

// -----

// New tokens go behind the past ones. As many queries as new tokens are the newest; one of them sees all.

// CHECK-LABEL: func.func @decode(
// CHECK: %[[K:.*]] = aligned.append %{{.*}} to %{{.*}} : tensor<1x2x1x16xf16> to tensor<1x2x?x16xf16> -> tensor<1x2x?x16xf16>
// CHECK: %[[V:.*]] = aligned.append
// CHECK: %[[OUT:.*]] = aligned.attention %{{.*}}, %[[K]], %[[V]] scale %{{.*}} masked_zero :
// CHECK: return %[[OUT]], %[[K]], %[[V]]
func.func @decode(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x1x16xf16>, %pk: tensor<1x2x?x16xf16>) -> (tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) {
  %none = "onnx.NoValue"() {value} : () -> none
  %y, %nk, %nv = "onnx.Attention"(%q, %k, %k, %none, %pk, %pk) {is_causal = 1 : si64} : (tensor<1x4x1x16xf16>, tensor<1x2x1x16xf16>, tensor<1x2x1x16xf16>, none, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
      -> (tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
  return %y, %nk, %nv : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>
}

// -----

// CHECK-LABEL: func.func @newest(
// CHECK: aligned.attention {{.*}} mask <causal, window = 3> masked_zero :
func.func @newest(%q: tensor<1x4x3x16xf16>, %k: tensor<1x2x3x16xf16>, %pk: tensor<1x2x?x16xf16>) -> tensor<1x4x3x16xf16> {
  %none = "onnx.NoValue"() {value} : () -> none
  %y = "onnx.Attention"(%q, %k, %k, %none, %pk, %pk) {is_causal = 1 : si64, left_window_size = 2 : si64} : (tensor<1x4x3x16xf16>, tensor<1x2x3x16xf16>, tensor<1x2x3x16xf16>, none, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// With a right window the mask is one by numbers, and counts from the end of the past on.
// CHECK-LABEL: func.func @newest_right(
// CHECK: %[[PAST:.*]] = tensor.dim %arg2, %c2
// CHECK: linalg.generic
// CHECK: arith.addi %{{.*}}, %[[PAST]]
// CHECK: aligned.attention {{.*}} attn_mask
func.func @newest_right(%q: tensor<1x4x3x16xf16>, %k: tensor<1x2x3x16xf16>, %pk: tensor<1x2x?x16xf16>) -> tensor<1x4x3x16xf16> {
  %none = "onnx.NoValue"() {value} : () -> none
  %y = "onnx.Attention"(%q, %k, %k, %none, %pk, %pk) {left_window_size = 2 : si64, right_window_size = 1 : si64} : (tensor<1x4x3x16xf16>, tensor<1x2x3x16xf16>, tensor<1x2x3x16xf16>, none, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

// A right window of 0 is causal. One on both sides is a mask by numbers.

// CHECK-LABEL: func.func @right_0(
// CHECK: aligned.attention {{.*}} mask <causal> masked_zero :
func.func @right_0(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16> {
  %y = "onnx.Attention"(%q, %q, %q) {right_window_size = 0 : si64} : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}
// CHECK-LABEL: func.func @both_sides(
// CHECK: linalg.generic {{.*}} outs(%{{.*}} : tensor<1x1x3x3xi1>)
// CHECK: aligned.attention {{.*}} attn_mask %{{.*}} : tensor<1x1x3x3xi1> masked_zero :
func.func @both_sides(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16> {
  %y = "onnx.Attention"(%q, %q, %q) {left_window_size = 1 : si64, right_window_size = 1 : si64} : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

// Without a past, positions count from the first token on: fewer queries than tokens are not the newest.

// CHECK-LABEL: func.func @top_left(
// CHECK: linalg.generic {{.*}} outs(%{{.*}} : tensor<1x1x3x7xi1>)
// CHECK: aligned.attention {{.*}} attn_mask %{{.*}} : tensor<1x1x3x7xi1> masked_zero :
func.func @top_left(%q: tensor<1x4x3x16xf16>, %k: tensor<1x4x7x16xf16>) -> tensor<1x4x3x16xf16> {
  %y = "onnx.Attention"(%q, %k, %k) {is_causal = 1 : si64} : (tensor<1x4x3x16xf16>, tensor<1x4x7x16xf16>, tensor<1x4x7x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

// Lengths hide what is behind them, and a mask that is shorter hides the rest.

// CHECK-LABEL: func.func @lengths(
// CHECK: %[[PADDED:.*]] = tensor.pad %{{.*}} low[0, 0] high[0, 2]
// CHECK: tensor.yield %{{.*}} : i1
// CHECK: linalg.generic {{.*}} ins(%{{.*}}, %{{.*}} : tensor<1x1x1x7xi1>, tensor<2xi64>) outs(%{{.*}} : tensor<2x1x1x7xi1>)
// CHECK: aligned.attention {{.*}} attn_mask %{{.*}} : tensor<2x1x1x7xi1> masked_zero :
func.func @lengths(%q: tensor<2x4x3x16xf16>, %k: tensor<2x4x7x16xf16>, %mask: tensor<1x5xi1>, %lengths: tensor<2xi64>) -> tensor<2x4x3x16xf16> {
  %none = "onnx.NoValue"() {value} : () -> none
  %y = "onnx.Attention"(%q, %k, %k, %mask, %none, %none, %lengths) : (tensor<2x4x3x16xf16>, tensor<2x4x7x16xf16>, tensor<2x4x7x16xf16>, tensor<1x5xi1>, none, none, tensor<2xi64>) -> tensor<2x4x3x16xf16>
  return %y : tensor<2x4x3x16xf16>
}

// -----

func.func @operands(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16> {
  // expected-remark@+1 {{attention not raised: expected 3 to 7 operands and 1 to 4 results, got 2 and 1}}
  %y = "onnx.Attention"(%q, %q) : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

// CHECK-LABEL: func.func @attribute(
// CHECK-NEXT: "onnx.Attention"
func.func @attribute(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16> {
  // expected-remark@+1 {{attention not raised: expected attributes that are known (is_causal, kv_num_heads, left_window_size, onnx_node_name, q_num_heads, qk_matmul_output_mode, right_window_size, scale, softcap, softmax_precision), got 'unidirectional'}}
  %y = "onnx.Attention"(%q, %q, %q) {unidirectional = 1 : si64} : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

func.func @heads_of_rank_3(%q: tensor<1x3x64xf16>) -> tensor<1x3x64xf16> {
  // expected-remark@+1 {{attention not raised: expected q_num_heads and kv_num_heads that divide the last dimension of rank 3, got 0 and tensor<1x3x64xf16>}}
  %y = "onnx.Attention"(%q, %q, %q) : (tensor<1x3x64xf16>, tensor<1x3x64xf16>, tensor<1x3x64xf16>) -> tensor<1x3x64xf16>
  return %y : tensor<1x3x64xf16>
}

// -----

func.func @one_past(%q: tensor<1x4x1x16xf16>, %pk: tensor<1x4x7x16xf16>) -> tensor<1x4x1x16xf16> {
  %none = "onnx.NoValue"() {value} : () -> none
  // expected-remark@+1 {{attention not raised: expected past_key and past_value together and without nonpad_kv_seqlen, got another set}}
  %y = "onnx.Attention"(%q, %q, %q, %none, %pk, %none) : (tensor<1x4x1x16xf16>, tensor<1x4x1x16xf16>, tensor<1x4x1x16xf16>, none, tensor<1x4x7x16xf16>, none) -> tensor<1x4x1x16xf16>
  return %y : tensor<1x4x1x16xf16>
}

// -----

func.func @past_of_other_heads(%q: tensor<1x4x1x16xf16>, %pk: tensor<1x2x7x16xf16>) -> tensor<1x4x1x16xf16> {
  %none = "onnx.NoValue"() {value} : () -> none
  // expected-remark@+1 {{attention not raised: expected a past [batch, kv_heads, tokens, head_dim] like tensor<1x4x1x16xf16>, got tensor<1x2x7x16xf16>}}
  %y = "onnx.Attention"(%q, %q, %q, %none, %pk, %pk) : (tensor<1x4x1x16xf16>, tensor<1x4x1x16xf16>, tensor<1x4x1x16xf16>, none, tensor<1x2x7x16xf16>, tensor<1x2x7x16xf16>) -> tensor<1x4x1x16xf16>
  return %y : tensor<1x4x1x16xf16>
}

// -----

func.func @integer_mask(%q: tensor<1x4x3x16xf16>, %mask: tensor<3x3xi32>) -> tensor<1x4x3x16xf16> {
  // expected-remark@+1 {{attention not raised: expected a mask of f32, f16, bf16 or i1, got tensor<3x3xi32>}}
  %y = "onnx.Attention"(%q, %q, %q, %mask) : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<3x3xi32>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

// Padded or broadcast: the operator's text allows both.

func.func @mask_of_one_token(%q: tensor<1x4x3x16xf16>, %mask: tensor<3x1xi1>) -> tensor<1x4x3x16xf16> {
  // expected-remark@+1 {{attention not raised: expected a mask of one token or of 3 to be told apart, got tensor<3x1xi1>}}
  %y = "onnx.Attention"(%q, %q, %q, %mask) : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<3x1xi1>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

func.func @precision(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16> {
  // expected-remark@+1 {{attention not raised: expected softmax_precision of a float type (1, 10, 11 or 16), got 7}}
  %y = "onnx.Attention"(%q, %q, %q) {softmax_precision = 7 : si64} : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

func.func @softcap(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16> {
  // expected-remark@+1 {{attention not raised: 'aligned.attention' op expected a softcap from}}
  %y = "onnx.Attention"(%q, %q, %q) {softcap = -2.0 : f32} : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x16xf16>
  return %y : tensor<1x4x3x16xf16>
}

// -----

func.func @raw_scores_and_cap(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x3xf16> {
  // expected-remark@+1 {{attention not raised: expected no softcap with qk_matmul_output ahead of it (mode 0), of which implementations think differently, got one}}
  %y, %pk, %pv, %qk = "onnx.Attention"(%q, %q, %q) {softcap = 2.0 : f32} : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> (tensor<1x4x3x16xf16>, none, none, tensor<1x4x3x3xf16>)
  return %qk : tensor<1x4x3x3xf16>
}

// -----

func.func @lengths_of_another_batch(%q: tensor<2x4x3x16xf16>, %lengths: tensor<3xi64>) -> tensor<2x4x3x16xf16> {
  %none = "onnx.NoValue"() {value} : () -> none
  // expected-remark@+1 {{attention not raised: expected nonpad_kv_seqlen of i64, one for each batch entry, got tensor<3xi64>}}
  %y = "onnx.Attention"(%q, %q, %q, %none, %none, %none, %lengths) : (tensor<2x4x3x16xf16>, tensor<2x4x3x16xf16>, tensor<2x4x3x16xf16>, none, none, none, tensor<3xi64>) -> tensor<2x4x3x16xf16>
  return %y : tensor<2x4x3x16xf16>
}

// -----

func.func @unranked(%q: tensor<*xf16>) -> tensor<*xf16> {
  // expected-remark@+1 {{attention not raised: expected operand 0 to be a ranked tensor, got tensor<*xf16>}}
  %y = "onnx.Attention"(%q, %q, %q) : (tensor<*xf16>, tensor<*xf16>, tensor<*xf16>) -> tensor<*xf16>
  return %y : tensor<*xf16>
}

// -----

func.func @result(%q: tensor<1x4x3x16xf16>) -> tensor<1x4x3x17xf16> {
  // expected-remark@+1 {{attention not raised: expected a result of type tensor<1x4x3x16xf16>, got tensor<1x4x3x17xf16>}}
  %y = "onnx.Attention"(%q, %q, %q) : (tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>, tensor<1x4x3x16xf16>) -> tensor<1x4x3x17xf16>
  return %y : tensor<1x4x3x17xf16>
}
