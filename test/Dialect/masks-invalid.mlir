// RUN: aligned-opt %s --split-input-file --verify-diagnostics

// A11: what a mask may say.

// expected-error@+1 {{expected a window of 1 to 1099511627776 tokens, got 0}}
func.func private @no_window() attributes {mask = #aligned.mask<causal, window = 0>}

// -----

// expected-error@+1 {{expected a window of 1 to 1099511627776 tokens, got -3}}
func.func private @negative_window() attributes {mask = #aligned.mask<window = -3>}

// -----

// expected-error@+1 {{expected sinks only with a window, got 4 sinks and no window}}
func.func private @sinks() attributes {mask = #aligned.mask<causal, sinks = 4>}

// -----

// expected-error@+1 {{expected 0 to 1099511627776 sinks, got -1}}
func.func private @negative_sinks() attributes {mask = #aligned.mask<window = 4, sinks = -1>}

// -----

// expected-error@+1 {{expected 'causal', 'window = ...' or 'sinks = ...', got 'prefix'}}
func.func private @part() attributes {mask = #aligned.mask<prefix = 4>}

// -----

// expected-error@+1 {{expected each part of a mask once, got 'window' again}}
func.func private @twice() attributes {mask = #aligned.mask<window = 4, window = 5>}

// -----

// expected-error@+1 {{expected a mask that is causal or has a window, got neither}}
func.func private @nothing() attributes {mask = #aligned.mask<>}

// -----

!key = tensor<1x2x?x16xf32, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x2x?x16xf32, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @factor(%q: tensor<1x2x1x16xf32>, %k: !key, %v: !value, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected 'tolerance_factor' only with policy 'budget', got 'exact'}}
  %a, %m, %n = aligned.decode_attention %q, %k, %v scale %s policy <exact> tolerance_factor %s : tensor<1x2x1x16xf32>, !key, !value -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @later(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32, %n: index) {
  // expected-error@+1 {{'aligned.decode_attention' op expected 'later' only with a mask, got no mask}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s later %n policy <exact> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// A11: an operand for each number of a mask that is open, and no other.

func.func @no_operand(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected an operand for window where the mask says 'window = ?', got none}}
  %a:3 = "aligned.decode_attention"(%q, %k, %k, %s) <{attention_id = 0 : i32, mask = #aligned.mask<window = ?>, policies = [#aligned.policy<exact>],
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 1, 0>}>
      : (tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>, f32) -> (tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
  return
}

// -----

func.func @operand(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32, %n: index) {
  // expected-error@+1 {{'aligned.decode_attention' op expected no operand for sinks where the mask does not say 'sinks = ?', got one}}
  %a:3 = "aligned.decode_attention"(%q, %k, %k, %s, %n) <{attention_id = 0 : i32, mask = #aligned.mask<window = 8, sinks = 4>, policies = [#aligned.policy<exact>],
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 1, 0>}>
      : (tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>, f32, index) -> (tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
  return
}

// -----

func.func @two_caps(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected a softcap that is an attribute or an operand, got both}}
  %a:3 = "aligned.decode_attention"(%q, %k, %k, %s, %s) <{attention_id = 0 : i32, softcap = 5.0 : f64, policies = [#aligned.policy<exact>],
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 1, 0>}>
      : (tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>, f32, f32) -> (tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
  return
}

// -----

func.func @sinks_alone(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32, %n: index) {
  // expected-error@+1 {{expected sinks only with a window, got some sinks and no window}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s mask <causal, sinks = %n> policy <exact> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// An op has operands where its mask is open, attention that is only declared has none.

func.func @open(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.attention' op expected a mask whose numbers are known, got #aligned.mask<causal, window = ?>}}
  %a = aligned.attention %q, %k, %k scale %s mask <causal, window = ?> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32> -> tensor<1x2x1x16xf32>
  return
}

// -----

func.func @unnamed(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{expected integer value}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s mask <causal, window = ?> policy <exact> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// A12: a cap that scores can have.

func.func @cap(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.attention' op expected a softcap from 1e-30 to 1e+30, got 0}}
  %a = aligned.attention %q, %k, %k scale %s softcap 0.0 : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32> -> tensor<1x2x1x16xf32>
  return
}

// -----

func.func @cap(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected a softcap from 1e-30 to 1e+30, got -50}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s softcap -50.0 policy <exact> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @cap(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.attention' op expected a softcap from 1e-30 to 1e+30, got inf}}
  %a = aligned.attention %q, %k, %k scale %s softcap 0x7FF0000000000000 : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32> -> tensor<1x2x1x16xf32>
  return
}

// -----

func.func @cap(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected a softcap from 1e-30 to 1e+30, got nan}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s softcap 0x7FF8000000000000 policy <exact> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// A15: masks by numbers and sinks. A 1 serves all, but all tokens there are.

func.func @mask_batch(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x?x16xf32>, %s: f32, %m: tensor<3x1x1x?xf32>) {
  // expected-error@+1 {{'aligned.attention' op expected attn_mask dimension 0 (batch) to be 2 or 1, got 3}}
  %0 = aligned.attention %q, %k, %k scale %s attn_mask %m : tensor<3x1x1x?xf32> : tensor<2x4x3x16xf32>, tensor<2x2x?x16xf32>, tensor<2x2x?x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @mask_heads(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x?x16xf32>, %s: f32, %m: tensor<1x2x1x?xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op expected attn_mask dimension 1 (q_heads) to be 4 or 1, got 2}}
  %0:3 = aligned.decode_attention %q, %k, %k scale %s attn_mask %m : tensor<1x2x1x?xf32> policy <exact> : tensor<2x4x3x16xf32>, tensor<2x2x?x16xf32>, tensor<2x2x?x16xf32>
      -> tensor<2x4x3x16xf32>, tensor<2x4x3xf32>, tensor<2x4x3xf32>
  return
}

// -----

func.func @mask_queries(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x?x16xf32>, %s: f32, %m: tensor<2x4x2x?xi1>) {
  // expected-error@+1 {{'aligned.attention' op expected attn_mask dimension 2 (queries) to be 3 or 1, got 2}}
  %0 = aligned.attention %q, %k, %k scale %s attn_mask %m : tensor<2x4x2x?xi1> : tensor<2x4x3x16xf32>, tensor<2x2x?x16xf32>, tensor<2x2x?x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @mask_tokens(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x65x16xf32>, %s: f32, %m: tensor<1x1x1x1xf32>) {
  // expected-error@+1 {{'aligned.attention' op expected attn_mask dimension 3 (tokens) to be 65, got 1}}
  %0 = aligned.attention %q, %k, %k scale %s attn_mask %m : tensor<1x1x1x1xf32> : tensor<2x4x3x16xf32>, tensor<2x2x65x16xf32>, tensor<2x2x65x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @mask_dynamic(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x65x16xf32>, %s: f32, %m: tensor<?x1x1x65xf32>) {
  // expected-error@+1 {{'aligned.attention' op expected a static batch in attn_mask, got 'tensor<?x1x1x65xf32>'}}
  %0 = aligned.attention %q, %k, %k scale %s attn_mask %m : tensor<?x1x1x65xf32> : tensor<2x4x3x16xf32>, tensor<2x2x65x16xf32>, tensor<2x2x65x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @mask_element(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x65x16xf32>, %s: f32, %m: tensor<1x1x1x65xi8>) {
  // expected-error@+1 {{operand #4 must be f32, f16, bf16 or i1 tensor or memref of rank 4, but got 'tensor<1x1x1x65xi8>'}}
  %0 = aligned.attention %q, %k, %k scale %s attn_mask %m : tensor<1x1x1x65xi8> : tensor<2x4x3x16xf32>, tensor<2x2x65x16xf32>, tensor<2x2x65x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @sink_for_each_kv_head(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x65x16xf32>, %s: f32, %l: tensor<2xf32>) {
  // expected-error@+1 {{'aligned.attention' op expected a sink logit for each of 4 query heads, got 2}}
  %0 = aligned.attention %q, %k, %k scale %s sink_logits %l : tensor<2xf32> : tensor<2x4x3x16xf32>, tensor<2x2x65x16xf32>, tensor<2x2x65x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @sink_element(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x65x16xf32>, %s: f32, %l: tensor<4xf16>) {
  // expected-error@+1 {{operand #4 must be f32 tensor or memref of rank 1, but got 'tensor<4xf16>'}}
  %0 = aligned.attention %q, %k, %k scale %s sink_logits %l : tensor<4xf16> : tensor<2x4x3x16xf32>, tensor<2x2x65x16xf32>, tensor<2x2x65x16xf32> -> tensor<2x4x3x16xf32>
  return
}

// -----

func.func @mixed(%q: tensor<2x4x3x16xf32>, %k: tensor<2x2x65x16xf32>, %s: f32, %l: memref<4xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op expected tensors or buffers, got both: 'tensor<2x4x3xf32>' and 'memref<4xf32>'}}
  %0:3 = aligned.decode_attention %q, %k, %k scale %s sink_logits %l : memref<4xf32> policy <exact> : tensor<2x4x3x16xf32>, tensor<2x2x65x16xf32>, tensor<2x2x65x16xf32>
      -> tensor<2x4x3x16xf32>, tensor<2x4x3xf32>, tensor<2x4x3xf32>
  return
}
