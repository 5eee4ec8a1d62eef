// RUN: aligned-opt %s --aligned-stage-decode-attention --split-input-file --verify-diagnostics

// How large what passes between stages is follows from heads, queries and head_dim.

!key = tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @queries(%q: tensor<1x2x?x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x2x?x48xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x2x?x32xf16>' and 'tensor<1x2x?x48xf32>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x2x?x32xf16>, !key, !value -> tensor<1x2x?x48xf32>, tensor<1x2x?xf32>, tensor<1x2x?xf32>
  return %acc : tensor<1x2x?x48xf32>
}

// -----

!key = tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @heads(%q: tensor<1x?x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x?x1x48xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x?x1x32xf16>' and 'tensor<1x?x1x48xf32>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x?x1x32xf16>, !key, !value -> tensor<1x?x1x48xf32>, tensor<1x?x1xf32>, tensor<1x?x1xf32>
  return %acc : tensor<1x?x1x48xf32>
}

// -----

!key = tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @value_dim(%q: tensor<1x2x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x2x1x?xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x2x1x32xf16>' and 'tensor<1x2x1x?xf32>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x2x1x32xf16>, !key, !value -> tensor<1x2x1x?xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x?xf32>
}
