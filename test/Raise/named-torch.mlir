// RUN: aligned-opt %s --allow-unregistered-dialect --aligned-raise-named-ops --split-input-file --verify-diagnostics | FileCheck %s

// A function in torch's dialect becomes one over tensors where all of it can; torch's attributes go.

// CHECK-LABEL: func.func @append(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x8x1x32xf16>, %[[NEW:[a-z0-9]+]]: tensor<2x2x1x32xf16>, %[[CACHE:[a-z0-9]+]]: tensor<2x2x?x32xf16>, %[[V:[a-z0-9]+]]: tensor<2x2x?x32xf16>) -> (tensor<2x8x1x32xf16>, tensor<2x2x?x32xf16>) {
// CHECK-NEXT: %[[SCALE:.*]] = arith.constant 2.500000e-01 : f32
// CHECK-NEXT: %[[K:.*]] = aligned.append %[[NEW]] to %[[CACHE]]
// CHECK-NEXT: %[[OUT:.*]] = aligned.attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] masked_zero :
// CHECK-NEXT: return %[[OUT]], %[[K]]
func.func @append(%q: !torch.vtensor<[2,8,1,32],f16>, %new: !torch.vtensor<[2,2,1,32],f16>, %cache: !torch.vtensor<[2,2,?,32],f16>, %v: !torch.vtensor<[2,2,?,32],f16>)
    -> (!torch.vtensor<[2,8,1,32],f16>, !torch.vtensor<[2,2,?,32],f16>) attributes {torch.assume_strict_symbolic_shapes} {
  %true = "torch.constant.bool"() <{value = true}> : () -> !torch.bool
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %scale = "torch.constant.float"() <{value = 0.25 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %dim = "torch.constant.int"() <{value = -2 : i64}> : () -> !torch.int
  %list = "torch.prim.ListConstruct"(%cache, %new) : (!torch.vtensor<[2,2,?,32],f16>, !torch.vtensor<[2,2,1,32],f16>) -> !torch.list<vtensor>
  %k = "torch.aten.cat"(%list, %dim) : (!torch.list<vtensor>, !torch.int) -> !torch.vtensor<[2,2,?,32],f16>
  %out = "torch.aten.scaled_dot_product_attention"(%q, %k, %v, %none, %zero, %false, %scale, %true) : (!torch.vtensor<[2,8,1,32],f16>, !torch.vtensor<[2,2,?,32],f16>, !torch.vtensor<[2,2,?,32],f16>, !torch.none, !torch.float, !torch.bool, !torch.float, !torch.bool) -> !torch.vtensor<[2,8,1,32],f16>
  return %out, %k : !torch.vtensor<[2,8,1,32],f16>, !torch.vtensor<[2,2,?,32],f16>
}

// -----

// is_causal counts queries from the first token on: the mask of the newest queries only where they are as many as the tokens.

// CHECK-LABEL: func.func @causal_square(
// CHECK: aligned.attention {{.*}} mask <causal> masked_zero :
func.func @causal_square(%q: !torch.vtensor<[1,2,5,16],f32>, %k: !torch.vtensor<[1,2,5,16],f32>) -> !torch.vtensor<[1,2,5,16],f32> {
  %true = "torch.constant.bool"() <{value = true}> : () -> !torch.bool
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %out = "torch.aten.scaled_dot_product_attention"(%q, %k, %k, %none, %zero, %true, %none, %false) : (!torch.vtensor<[1,2,5,16],f32>, !torch.vtensor<[1,2,5,16],f32>, !torch.vtensor<[1,2,5,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[1,2,5,16],f32>
  return %out : !torch.vtensor<[1,2,5,16],f32>
}

// -----

// CHECK-LABEL: func.func @causal_top_left(
// CHECK: %[[MASK:.*]] = linalg.generic {{.*}} outs(%{{.*}} : tensor<1x1x3x?xi1>)
// CHECK: %[[T:.*]] = linalg.index 3
// CHECK: %[[I:.*]] = linalg.index 2
// CHECK: %[[SEES:.*]] = arith.cmpi sle, %[[T]], %[[I]] : index
// CHECK: linalg.yield %[[SEES]]
// CHECK: aligned.attention {{.*}} attn_mask %[[MASK]] : tensor<1x1x3x?xi1> masked_zero :
func.func @causal_top_left(%q: !torch.vtensor<[1,2,3,16],f32>, %k: !torch.vtensor<[1,2,?,16],f32>) -> !torch.vtensor<[1,2,3,16],f32> {
  %true = "torch.constant.bool"() <{value = true}> : () -> !torch.bool
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %out = "torch.aten.scaled_dot_product_attention"(%q, %k, %k, %none, %zero, %true, %none, %false) : (!torch.vtensor<[1,2,3,16],f32>, !torch.vtensor<[1,2,?,16],f32>, !torch.vtensor<[1,2,?,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[1,2,3,16],f32>
  return %out : !torch.vtensor<[1,2,3,16],f32>
}

// -----

// Layouts and updates around it, a mask of rank 2, and ops between that were tensors' before.

// CHECK-LABEL: func.func @around(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<1x3x32xf32>, %[[NEW:[a-z0-9]+]]: tensor<1x1x2x16xf32>, %[[CACHE:[a-z0-9]+]]: tensor<1x9x2x16xf32>, %[[MASK:[a-z0-9]+]]: tensor<3x9xi1>) -> tensor<1x3x32xf32>
// CHECK-DAG: %[[CACHE1:.*]] = tensor.insert_slice %[[NEW]] into %[[CACHE]][0, 8, 0, 0] [1, 1, 2, 16] [1, 1, 1, 1]
// CHECK-DAG: %[[K:.*]] = linalg.transpose ins(%[[CACHE1]] : tensor<1x9x2x16xf32>) outs({{.*}}) permutation = [0, 2, 1, 3]
// CHECK-DAG: %[[M4:.*]] = tensor.expand_shape %[[MASK]] {{\[\[}}0, 1, 2], [3]] output_shape [1, 1, 3, 9]
// CHECK: aligned.attention %{{.*}}, %[[K]], %[[K]] scale %{{.*}} attn_mask %[[M4]] : tensor<1x1x3x9xi1> masked_zero : tensor<1x2x3x16xf32>
// CHECK: linalg.transpose ins(%{{.*}} : tensor<1x2x3x16xf32>) outs({{.*}}) permutation = [0, 2, 1, 3]
// CHECK: tensor.collapse_shape
// CHECK: math.absf
func.func @around(%q: !torch.vtensor<[1,3,32],f32>, %new: !torch.vtensor<[1,1,2,16],f32>, %cache: !torch.vtensor<[1,9,2,16],f32>, %mask: !torch.vtensor<[3,9],i1>) -> !torch.vtensor<[1,3,32],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %n1 = "torch.constant.int"() <{value = -1 : i64}> : () -> !torch.int
  %0 = "torch.constant.int"() <{value = 0 : i64}> : () -> !torch.int
  %1 = "torch.constant.int"() <{value = 1 : i64}> : () -> !torch.int
  %2 = "torch.constant.int"() <{value = 2 : i64}> : () -> !torch.int
  %3 = "torch.constant.int"() <{value = 3 : i64}> : () -> !torch.int
  %8 = "torch.constant.int"() <{value = 8 : i64}> : () -> !torch.int
  %end = "torch.constant.int"() <{value = 9223372036854775807 : i64}> : () -> !torch.int
  %16 = "torch.constant.int"() <{value = 16 : i64}> : () -> !torch.int
  %32 = "torch.constant.int"() <{value = 32 : i64}> : () -> !torch.int
  %shape = "torch.prim.ListConstruct"(%1, %3, %n1, %16) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %order = "torch.prim.ListConstruct"(%0, %2, %1, %3) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %back = "torch.prim.ListConstruct"(%1, %3, %32) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %q4 = "torch.aten.view"(%q, %shape) : (!torch.vtensor<[1,3,32],f32>, !torch.list<int>) -> !torch.vtensor<[1,3,2,16],f32>
  %qt = "torch.aten.transpose.int"(%q4, %1, %2) : (!torch.vtensor<[1,3,2,16],f32>, !torch.int, !torch.int) -> !torch.vtensor<[1,2,3,16],f32>
  %cache1 = "torch.aten.slice_scatter"(%cache, %new, %1, %8, %end, %1) : (!torch.vtensor<[1,9,2,16],f32>, !torch.vtensor<[1,1,2,16],f32>, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.vtensor<[1,9,2,16],f32>
  %k = "torch.aten.permute"(%cache1, %order) : (!torch.vtensor<[1,9,2,16],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,9,16],f32>
  %out = "torch.aten.scaled_dot_product_attention"(%qt, %k, %k, %mask, %zero, %false, %none, %false) : (!torch.vtensor<[1,2,3,16],f32>, !torch.vtensor<[1,2,9,16],f32>, !torch.vtensor<[1,2,9,16],f32>, !torch.vtensor<[3,9],i1>, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[1,2,3,16],f32>
  %ot = "torch.aten.transpose.int"(%out, %1, %2) : (!torch.vtensor<[1,2,3,16],f32>, !torch.int, !torch.int) -> !torch.vtensor<[1,3,2,16],f32>
  %flat = "torch.aten.view"(%ot, %back) : (!torch.vtensor<[1,3,2,16],f32>, !torch.list<int>) -> !torch.vtensor<[1,3,32],f32>
  %tensor = "torch_c.to_builtin_tensor"(%flat) : (!torch.vtensor<[1,3,32],f32>) -> tensor<1x3x32xf32>
  %abs = math.absf %tensor : tensor<1x3x32xf32>
  %result = "torch_c.from_builtin_tensor"(%abs) : (tensor<1x3x32xf32>) -> !torch.vtensor<[1,3,32],f32>
  return %result : !torch.vtensor<[1,3,32],f32>
}

// -----

// A window of the cache, a unit that is put in, and ops that change nothing.

// CHECK-LABEL: func.func @slices(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x3x16xf32>, %[[K:[a-z0-9]+]]: tensor<2x1x9x16xf32>)
// CHECK-DAG: %[[Q4:.*]] = tensor.expand_shape %[[Q]] {{\[\[}}0], [1, 2], [3]] output_shape [2, 1, 3, 16]
// CHECK-DAG: %[[NEWEST:.*]] = tensor.extract_slice %[[K]][0, 0, 5, 0] [2, 1, 4, 16] [1, 1, 1, 1]
// CHECK: aligned.attention %[[Q4]], %[[NEWEST]], %[[NEWEST]]
func.func @slices(%q: !torch.vtensor<[2,3,16],f32>, %k: !torch.vtensor<[2,1,9,16],f32>) -> !torch.vtensor<[2,1,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %n4 = "torch.constant.int"() <{value = -4 : i64}> : () -> !torch.int
  %0 = "torch.constant.int"() <{value = 0 : i64}> : () -> !torch.int
  %1 = "torch.constant.int"() <{value = 1 : i64}> : () -> !torch.int
  %2 = "torch.constant.int"() <{value = 2 : i64}> : () -> !torch.int
  %same = "torch.aten.contiguous"(%k, %0) : (!torch.vtensor<[2,1,9,16],f32>, !torch.int) -> !torch.vtensor<[2,1,9,16],f32>
  %newest = "torch.aten.slice.Tensor"(%same, %2, %n4, %none, %1) : (!torch.vtensor<[2,1,9,16],f32>, !torch.int, !torch.int, !torch.none, !torch.int) -> !torch.vtensor<[2,1,4,16],f32>
  %q4 = "torch.aten.unsqueeze"(%q, %1) : (!torch.vtensor<[2,3,16],f32>, !torch.int) -> !torch.vtensor<[2,1,3,16],f32>
  %out = "torch.aten.scaled_dot_product_attention"(%q4, %newest, %newest, %none, %zero, %false, %none, %false) : (!torch.vtensor<[2,1,3,16],f32>, !torch.vtensor<[2,1,4,16],f32>, !torch.vtensor<[2,1,4,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[2,1,3,16],f32>
  return %out : !torch.vtensor<[2,1,3,16],f32>
}

// -----

func.func @every_second(%k: !torch.vtensor<[2,1,9,16],f32>) -> !torch.vtensor<[2,1,5,16],f32> {
  %none = "torch.constant.none"() : () -> !torch.none
  %2 = "torch.constant.int"() <{value = 2 : i64}> : () -> !torch.int
  // expected-remark@+1 {{attention not raised: expected a slice of constant bounds and step 1 of a static dimension, got another}}
  %r = "torch.aten.slice.Tensor"(%k, %2, %none, %none, %2) : (!torch.vtensor<[2,1,9,16],f32>, !torch.int, !torch.none, !torch.none, !torch.int) -> !torch.vtensor<[2,1,5,16],f32>
  return %r : !torch.vtensor<[2,1,5,16],f32>
}

// -----

// Of rank 3 the first dimension is a batch, also of the mask.

// CHECK-LABEL: func.func @rank_3(
// CHECK: aligned.attention {{.*}} attn_mask %{{.*}} : tensor<6x1x3x5xf32> masked_zero : tensor<6x1x3x16xf32>, tensor<6x1x5x16xf32>, tensor<6x1x5x16xf32> -> tensor<6x1x3x16xf32>
func.func @rank_3(%q: !torch.vtensor<[6,3,16],f32>, %k: !torch.vtensor<[6,5,16],f32>, %mask: !torch.vtensor<[6,3,5],f32>) -> !torch.vtensor<[6,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %out = "torch.aten.scaled_dot_product_attention"(%q, %k, %k, %mask, %zero, %false, %none, %false) : (!torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,5,16],f32>, !torch.vtensor<[6,5,16],f32>, !torch.vtensor<[6,3,5],f32>, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[6,3,16],f32>
  return %out : !torch.vtensor<[6,3,16],f32>
}

// -----

// Nothing is half converted.

// CHECK-LABEL: func.func @dropout(
// CHECK-SAME: !torch.vtensor<[6,3,16],f32>
// CHECK: "torch.aten.scaled_dot_product_attention"
// CHECK-NOT: aligned.attention
func.func @dropout(%q: !torch.vtensor<[6,3,16],f32>) -> !torch.vtensor<[6,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %half = "torch.constant.float"() <{value = 0.5 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  // expected-remark@+1 {{attention not raised: expected a dropout of 0, got 0.5}}
  %out = "torch.aten.scaled_dot_product_attention"(%q, %q, %q, %none, %half, %false, %none, %false) : (!torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[6,3,16],f32>
  return %out : !torch.vtensor<[6,3,16],f32>
}

// -----

// CHECK-LABEL: func.func @beside(
// CHECK: "torch.aten.scaled_dot_product_attention"
// CHECK: "torch.aten.relu"
func.func @beside(%q: !torch.vtensor<[6,3,16],f32>) -> !torch.vtensor<[6,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  %out = "torch.aten.scaled_dot_product_attention"(%q, %q, %q, %none, %zero, %false, %none, %false) : (!torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[6,3,16],f32>
  // expected-remark@+1 {{attention not raised: expected ops that have a form over tensors, got 'torch.aten.relu'}}
  %relu = "torch.aten.relu"(%out) : (!torch.vtensor<[6,3,16],f32>) -> !torch.vtensor<[6,3,16],f32>
  return %relu : !torch.vtensor<[6,3,16],f32>
}

// -----

func.func @causal_and_mask(%q: !torch.vtensor<[6,3,16],f32>, %mask: !torch.vtensor<[3,3],i1>) -> !torch.vtensor<[6,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %true = "torch.constant.bool"() <{value = true}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  // expected-remark@+1 {{attention not raised: expected no attn_mask beside is_causal, got both}}
  %out = "torch.aten.scaled_dot_product_attention"(%q, %q, %q, %mask, %zero, %true, %none, %false) : (!torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,16],f32>, !torch.vtensor<[3,3],i1>, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[6,3,16],f32>
  return %out : !torch.vtensor<[6,3,16],f32>
}

// -----

func.func @heads_without_gqa(%q: !torch.vtensor<[1,4,3,16],f32>, %k: !torch.vtensor<[1,2,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  // expected-remark@+1 {{attention not raised: expected as many query heads as kv heads without enable_gqa, got tensor<1x4x3x16xf32> and tensor<1x2x3x16xf32>}}
  %out = "torch.aten.scaled_dot_product_attention"(%q, %k, %k, %none, %zero, %false, %none, %false) : (!torch.vtensor<[1,4,3,16],f32>, !torch.vtensor<[1,2,3,16],f32>, !torch.vtensor<[1,2,3,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool) -> !torch.vtensor<[1,4,3,16],f32>
  return %out : !torch.vtensor<[1,4,3,16],f32>
}

// -----

func.func @few_operands(%q: !torch.vtensor<[1,4,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32> {
  // expected-remark@+1 {{attention not raised: expected 7 or 8 operands and one result, got 3 and 1}}
  %out = "torch.aten.scaled_dot_product_attention"(%q, %q, %q) : (!torch.vtensor<[1,4,3,16],f32>, !torch.vtensor<[1,4,3,16],f32>, !torch.vtensor<[1,4,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32>
  return %out : !torch.vtensor<[1,4,3,16],f32>
}

// -----

func.func @scale_is_given(%q: !torch.vtensor<[1,4,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32> {
  %false = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
  %zero = "torch.constant.float"() <{value = 0.0 : f64}> : () -> !torch.float
  %none = "torch.constant.none"() : () -> !torch.none
  // expected-remark@+1 {{attention not raised: expected a scale that is none or constant, got another}}
  %out = "torch.aten.scaled_dot_product_attention"(%q, %q, %q, %none, %zero, %false, %false, %false) : (!torch.vtensor<[1,4,3,16],f32>, !torch.vtensor<[1,4,3,16],f32>, !torch.vtensor<[1,4,3,16],f32>, !torch.none, !torch.float, !torch.bool, !torch.bool, !torch.bool) -> !torch.vtensor<[1,4,3,16],f32>
  return %out : !torch.vtensor<[1,4,3,16],f32>
}

// -----

// expected-remark@+1 {{attention not raised: expected tensors of known rank and element type in the function's signature, got !torch.vtensor<*,f32>}}
func.func @unranked(%q: !torch.vtensor<*,f32>) -> !torch.vtensor<*,f32> {
  return %q : !torch.vtensor<*,f32>
}

// -----

// expected-remark@+1 {{attention not raised: expected a function over torch's tensors that nothing refers to, got one that is called}}
func.func private @called(%q: !torch.vtensor<[1,4,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32> {
  return %q : !torch.vtensor<[1,4,3,16],f32>
}
func.func @calls(%q: !torch.vtensor<[1,4,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32> {
  // expected-remark@+1 {{attention not raised: expected ops that have a form over tensors, got 'func.call'}}
  %r = call @called(%q) : (!torch.vtensor<[1,4,3,16],f32>) -> !torch.vtensor<[1,4,3,16],f32>
  return %r : !torch.vtensor<[1,4,3,16],f32>
}

// -----

func.func @view_of_another_shape(%q: !torch.vtensor<[6,3,16],f32>) -> !torch.vtensor<[18,16],f32> {
  %17 = "torch.constant.int"() <{value = 17 : i64}> : () -> !torch.int
  %16 = "torch.constant.int"() <{value = 16 : i64}> : () -> !torch.int
  %shape = "torch.prim.ListConstruct"(%17, %16) : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark@+1 {{attention not raised: expected a view of the constant shape that its type has, got !torch.vtensor<[18,16],f32>}}
  %r = "torch.aten.view"(%q, %shape) : (!torch.vtensor<[6,3,16],f32>, !torch.list<int>) -> !torch.vtensor<[18,16],f32>
  return %r : !torch.vtensor<[18,16],f32>
}

// -----

func.func @cat_of_other_tensors(%q: !torch.vtensor<[6,3,16],f32>, %k: !torch.vtensor<[6,3,17],f32>) -> !torch.vtensor<[6,6,16],f32> {
  %1 = "torch.constant.int"() <{value = 1 : i64}> : () -> !torch.int
  %list = "torch.prim.ListConstruct"(%q, %k) : (!torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,3,17],f32>) -> !torch.list<vtensor>
  // expected-remark@+1 {{attention not raised: expected tensors that differ in dimension 1 alone, got tensor<6x3x16xf32> and tensor<6x3x17xf32>}}
  %r = "torch.aten.cat"(%list, %1) : (!torch.list<vtensor>, !torch.int) -> !torch.vtensor<[6,6,16],f32>
  return %r : !torch.vtensor<[6,6,16],f32>
}

// -----

func.func @scatter_of_another_size(%q: !torch.vtensor<[6,3,16],f32>, %new: !torch.vtensor<[6,2,16],f32>) -> !torch.vtensor<[6,3,16],f32> {
  %1 = "torch.constant.int"() <{value = 1 : i64}> : () -> !torch.int
  %2 = "torch.constant.int"() <{value = 2 : i64}> : () -> !torch.int
  %3 = "torch.constant.int"() <{value = 3 : i64}> : () -> !torch.int
  // expected-remark@+1 {{attention not raised: expected tensor<6x1x16xf32> to be put in, got tensor<6x2x16xf32>}}
  %r = "torch.aten.slice_scatter"(%q, %new, %1, %2, %3, %1) : (!torch.vtensor<[6,3,16],f32>, !torch.vtensor<[6,2,16],f32>, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.vtensor<[6,3,16],f32>
  return %r : !torch.vtensor<[6,3,16],f32>
}
