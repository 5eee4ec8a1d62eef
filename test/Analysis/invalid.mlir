// RUN: aligned-opt %s --split-input-file --aligned-analyze-precision --verify-diagnostics

// P6: what ranges and tolerances may be.

// expected-error@below {{expected a range that is not empty, got [1, -1]}}
func.func private @empty(f32 {aligned.range = #aligned.range<[1.0, -1.0]>})

// -----

// expected-error@below {{expected finite ends of a range, got [-1, inf]}}
func.func private @no_end(f32 {aligned.range = #aligned.range<[-1.0, 0x7FF0000000000000]>})

// -----

// expected-error@below {{expected a least magnitude from 0 to that of the larger end of [-1, 0.5], got 2}}
func.func private @least(f32 {aligned.range = #aligned.range<[-1.0, 0.5], nonzero = 2.0>})

// -----

// expected-error@below {{expected 'nonzero = ...', 'inf' or 'nan'}}
func.func private @word(f32 {aligned.range = #aligned.range<[-1.0, 0.5], zero>})

// -----

// expected-error@below {{expected a range of argument #1 within what 'f16' holds, at most 65504, got #aligned.range<[-1.000000e+00, 1.000000e+05]>}}
func.func private @type(f32, tensor<4xf16> {aligned.range = #aligned.range<[-1.0, 1.0e5]>})

// -----

// expected-error@below {{expected 'aligned.range' on a float or a shape of floats, got it on argument #0 of 'i32'}}
func.func private @integer(i32 {aligned.range = #aligned.range<[-1.0, 1.0]>})

// -----

// expected-error@below {{expected 'aligned.range' of argument #0 to be #aligned.range<...>, got 1 : i64}}
func.func private @attribute(f32 {aligned.range = 1})

// -----

// expected-error@below {{expected no 'aligned.tolerance' on an argument, where 'aligned.range' and 'aligned.key_offset' may stand}}
func.func private @argument(f32 {aligned.tolerance = 1.0})

// -----

// expected-error@below {{expected 'aligned.key_offset' on a tensor of floats [batch, kv_heads, tokens, head_dim] with static kv_heads and head_dim, got it on argument #1 of 'tensor<2x16xf32>'}}
func.func private @offset_rank(f32, tensor<2x16xf32> {aligned.key_offset = dense<0.0> : tensor<2x16xf32>})

// -----

// expected-error@below {{expected 'aligned.key_offset' on a tensor of floats [batch, kv_heads, tokens, head_dim] with static kv_heads and head_dim, got it on argument #0 of 'tensor<1x?x9x16xf32>'}}
func.func private @offset_heads(tensor<1x?x9x16xf32> {aligned.key_offset = dense<0.0> : tensor<2x16xf32>})

// -----

// expected-error@below {{expected 'aligned.key_offset' on a tensor of floats [batch, kv_heads, tokens, head_dim] with static kv_heads and head_dim, got it on argument #0 of 'tensor<1x2x9x16xi32>'}}
func.func private @offset_integers(tensor<1x2x9x16xi32> {aligned.key_offset = dense<0.0> : tensor<2x16xf32>})

// -----

// expected-error@below {{expected 'aligned.key_offset' of argument #0 to be dense<...> : 'tensor<2x16xf32>', got a 'tensor<16x2xf32>'}}
func.func private @offset_shape(tensor<1x2x?x16xf16> {aligned.key_offset = dense<0.0> : tensor<16x2xf32>})

// -----

// expected-error@below {{expected 'aligned.key_offset' of argument #0 to be dense<...> : 'tensor<2x16xf32>', got a 'tensor<2x16xf16>'}}
func.func private @offset_type(tensor<1x2x?x16xf16> {aligned.key_offset = dense<0.0> : tensor<2x16xf16>})

// -----

// expected-error@below {{expected 'aligned.key_offset' of argument #0 to be dense<...> : 'tensor<2x16xf32>', got 5.000000e-01 : f64}}
func.func private @offset_number(tensor<1x2x?x16xf16> {aligned.key_offset = 0.5})

// -----

// expected-error@below {{expected 'aligned.key_offset' of argument #0 to be finite, got inf for channel 1 of kv head 0}}
func.func private @offset_infinite(tensor<1x1x?x2xf16> {aligned.key_offset = dense<[[0.0, 0x7F800000]]> : tensor<1x2xf32>})

// -----

// expected-error@below {{expected no 'aligned.range' on a result, where 'aligned.tolerance' may stand}}
func.func private @result() -> (f32 {aligned.range = #aligned.range<[-1.0, 1.0]>})

// -----

// expected-error@below {{expected 'aligned.tolerance' of result #0 to be an f64 above 0, got -1.000000e+00 : f64}}
func.func private @negative() -> (f32 {aligned.tolerance = -1.0})

// -----

// expected-error@below {{expected 'aligned.tolerance' of result #0 to be an f64 above 0, got 1.000000e+00 : f32}}
func.func private @single() -> (f32 {aligned.tolerance = 1.0 : f32})

// -----

// expected-error@below {{expected 'aligned.tolerance' on a float or a shape of floats, got it on result #1}}
func.func private @index() -> (f32, index {aligned.tolerance = 1.0})

// -----

// expected-note@below {{the range of argument #0 of 'callee' is declared here}}
func.func private @callee(%x: f32 {aligned.range = #aligned.range<[-1.0, 1.0]>}) -> f32 {
  return %x : f32
}

func.func @caller(%x: f32 {aligned.range = #aligned.range<[2.0, 3.0]>}) -> f32 {
  // expected-error@below {{expected operand #0 within #aligned.range<[-1.000000e+00, 1.000000e+00]>, got values in [2, 3]}}
  %0 = call @callee(%x) : (f32) -> f32
  return %0 : f32
}
