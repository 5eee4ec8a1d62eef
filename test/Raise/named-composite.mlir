// RUN: aligned-opt %s --allow-unregistered-dialect --aligned-raise-named-ops --split-input-file --verify-diagnostics | FileCheck %s

// "odml.scaled_dot_product_attention": tokens ahead of heads, a mask that is added. What it is decomposed to goes with it.

// CHECK-LABEL: func.func @masked(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<1x3x8x16xf32>, %[[K:[a-z0-9]+]]: tensor<1x?x2x16xf32>, %{{[a-z0-9]+}}: tensor<1x?x2x16xf32>, %[[M:[a-z0-9]+]]: tensor<1x1x3x?xf32>) -> tensor<1x3x8x16xf32>
// CHECK-DAG: %[[SCALE:.*]] = arith.constant 5.000000e-01 : f32
// CHECK-DAG: %[[QT:.*]] = linalg.transpose ins(%[[Q]] : tensor<1x3x8x16xf32>) outs(%{{.*}} : tensor<1x8x3x16xf32>) permutation = [0, 2, 1, 3]
// CHECK-DAG: %[[KT:.*]] = linalg.transpose ins(%[[K]] : tensor<1x?x2x16xf32>) outs(%{{.*}} : tensor<1x2x?x16xf32>) permutation = [0, 2, 1, 3]
// CHECK: %[[OUT:.*]] = aligned.attention %[[QT]], %[[KT]], %{{.*}} scale %[[SCALE]] attn_mask %[[M]] : tensor<1x1x3x?xf32> masked_zero :
// CHECK: linalg.transpose ins(%[[OUT]] : tensor<1x8x3x16xf32>) outs(%{{.*}} : tensor<1x3x8x16xf32>) permutation = [0, 2, 1, 3]
// CHECK-NOT: func.func
func.func @masked(%q: tensor<1x3x8x16xf32>, %k: tensor<1x?x2x16xf32>, %v: tensor<1x?x2x16xf32>, %m: tensor<1x1x3x?xf32>) -> tensor<1x3x8x16xf32> {
  %r = "stablehlo.composite"(%q, %k, %v, %m) <{composite_attributes = {scale = 5.000000e-01 : f32}, decomposition = @impl, name = "odml.scaled_dot_product_attention", version = 0 : i32}>
      : (tensor<1x3x8x16xf32>, tensor<1x?x2x16xf32>, tensor<1x?x2x16xf32>, tensor<1x1x3x?xf32>) -> tensor<1x3x8x16xf32>
  return %r : tensor<1x3x8x16xf32>
}
func.func private @impl(%q: tensor<1x3x8x16xf32>, %k: tensor<1x?x2x16xf32>, %v: tensor<1x?x2x16xf32>, %m: tensor<1x1x3x?xf32>) -> tensor<1x3x8x16xf32> {
  %r = "stablehlo.custom_call"(%q) : (tensor<1x3x8x16xf32>) -> tensor<1x3x8x16xf32>
  return %r : tensor<1x3x8x16xf32>
}

// -----

// With a cap it is decomposed with a softmax that gives NaN where all is masked.

// CHECK-LABEL: func.func @capped(
// CHECK: %[[SCALE:.*]] = arith.constant 2.500000e-01 : f32
// CHECK: aligned.attention {{.*}} scale %[[SCALE]] softcap 5.000000e+01 attn_mask %{{.*}} : tensor<1x1x1x5xf32> :
func.func @capped(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %m: tensor<1x1x1x5xf32>) -> tensor<1x1x2x16xf32> {
  %r = "stablehlo.composite"(%q, %k, %k, %m) {composite_attributes = {logit_cap = 5.000000e+01 : f32}, decomposition = @nowhere, name = "odml.scaled_dot_product_attention"}
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x1x1x5xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}

// -----

// Without a mask some let it be causal. A decomposition that can't tell tokens by their place shows that it is not.

// CHECK-LABEL: func.func @shown(
// CHECK: aligned.attention
// CHECK-NOT: stablehlo
func.func @shown(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32> {
  %r = "stablehlo.composite"(%q, %k, %k) <{composite_attributes = {scale = 5.000000e-01 : f32}, decomposition = @impl, name = "odml.scaled_dot_product_attention", version = 0 : i32}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}
func.func private @impl(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %v: tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32> {
  %scale = "stablehlo.constant"() <{value = dense<5.000000e-01> : tensor<1x1x2x16xf32>}> : () -> tensor<1x1x2x16xf32>
  %r = "stablehlo.multiply"(%q, %scale) : (tensor<1x1x2x16xf32>, tensor<1x1x2x16xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}

// -----

// CHECK-LABEL: func.func @causal(
// CHECK: "stablehlo.composite"
func.func @causal(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a mask, or a decomposition that shows that attention without one is not causal, got neither}}
  %r = "stablehlo.composite"(%q, %k, %k) <{decomposition = @impl, name = "odml.scaled_dot_product_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}
func.func private @impl(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %v: tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32> {
  %place = "stablehlo.iota"() <{iota_dimension = 1 : i64}> : () -> tensor<1x5xi32>
  return %q : tensor<1x1x2x16xf32>
}

// -----

func.func @constant_mask(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a mask, or a decomposition that shows that attention without one is not causal, got neither}}
  %r = "stablehlo.composite"(%q, %k, %k) <{decomposition = @impl, name = "odml.scaled_dot_product_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}
func.func private @impl(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %v: tensor<1x5x2x16xf32>) -> tensor<1x1x2x16xf32> {
  %seen = "stablehlo.constant"() <{value = dense<[true, false, false, false, false]> : tensor<5xi1>}> : () -> tensor<5xi1>
  return %q : tensor<1x1x2x16xf32>
}

// -----

// By other names it is something else.

// CHECK-LABEL: func.func @other_name(
// CHECK: "stablehlo.composite"
func.func @other_name(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %m: tensor<1x1x1x5xf32>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: expected the composite 'odml.scaled_dot_product_attention', got 'mine.flash_attention'}}
  %r = "stablehlo.composite"(%q, %k, %k, %m) <{decomposition = @nowhere, name = "mine.flash_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x1x1x5xf32>) -> tensor<1x1x2x16xf32>
  // no remark: this says nothing of attention
  %n = "stablehlo.composite"(%r) <{decomposition = @nowhere, name = "odml.rms_norm"}> : (tensor<1x1x2x16xf32>) -> tensor<1x1x2x16xf32>
  return %n : tensor<1x1x2x16xf32>
}

// -----

func.func @operands(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %m: tensor<1x1x1x5xf32>, %scale: tensor<f32>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: expected 3 to 4 operands and 1 results, got 5 and 1}}
  %r = "stablehlo.composite"(%q, %k, %k, %m, %scale) <{decomposition = @nowhere, name = "odml.scaled_dot_product_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x1x1x5xf32>, tensor<f32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}

// -----

func.func @attribute(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %m: tensor<1x1x1x5xf32>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: expected composite attributes scale and logit_cap that are numbers, got 'window'}}
  %r = "stablehlo.composite"(%q, %k, %k, %m) <{composite_attributes = {window = 4 : i64}, decomposition = @nowhere, name = "odml.scaled_dot_product_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x1x1x5xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}

// -----

func.func @mask_of_other_tokens(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %m: tensor<1x1x1x4xf32>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: 'aligned.attention' op expected attn_mask dimension 3 (tokens) to be 5, got 4}}
  %r = "stablehlo.composite"(%q, %k, %k, %m) <{decomposition = @nowhere, name = "odml.scaled_dot_product_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x1x1x4xf32>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}

// -----

func.func @capped_by_booleans(%q: tensor<1x1x2x16xf32>, %k: tensor<1x5x2x16xf32>, %m: tensor<1x1x1x5xi1>) -> tensor<1x1x2x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a mask of numbers with logit_cap, behind which it is added as it is, got tensor<1x1x1x5xi1>}}
  %r = "stablehlo.composite"(%q, %k, %k, %m) <{composite_attributes = {logit_cap = 5.000000e+01 : f32}, decomposition = @nowhere, name = "odml.scaled_dot_product_attention"}>
      : (tensor<1x1x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x5x2x16xf32>, tensor<1x1x1x5xi1>) -> tensor<1x1x2x16xf32>
  return %r : tensor<1x1x2x16xf32>
}
