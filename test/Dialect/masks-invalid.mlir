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

func.func @later(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %s: f32, %n: index) {
  // expected-error@+1 {{'aligned.decode_attention' op expected 'later' only with a mask, got no mask}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s later %n policy <exact> : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>
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
