// RUN: aligned-opt %s --convert-aligned-to-nvvm --split-input-file --verify-diagnostics

// Tensor cores take 16-bit floats.
func.func @dense(%q: tensor<1x4x1x32xf32>, %k: tensor<1x2x?x32xf32>, %v: tensor<1x2x?x32xf32>, %scale: f32) -> tensor<1x4x1x32xf32> {
  // expected-error @+1 {{'aligned.decode_attention' op expected a dense key of f16 or bf16 on this target, got 'tensor<1x2x?x32xf32>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x4x1x32xf32>, tensor<1x2x?x32xf32>, tensor<1x2x?x32xf32> -> tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x32xf32>
}

// -----

func.func @certified(%q: tensor<1x4x1x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x32xf16>, %scale: f32) -> tensor<1x4x1x32xf32> {
  // expected-error @+1 {{'aligned.decode_attention' op expected no certificate on this target, got one asked for}}
  %acc, %max, %sum, %certificate = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x4x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16> -> tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32> certified tensor<1x4x1x8xf32>
  return %acc : tensor<1x4x1x32xf32>
}

// -----

!key = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @fixed(%q: tensor<1x4x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x4x1x32xf32> {
  // expected-error @+1 {{'aligned.decode_attention' op expected the key to be dense or in float planes where attention is not in stages on this target, got 'tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x4x1x32xf16>, !key, !value -> tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x32xf32>
}

// -----

!key = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @copy(%q: tensor<1x4x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x4x1x32xf32> {
  // expected-error @+1 {{'aligned.decode_attention' op expected the key to be dense or in float planes where attention is not in stages on this target, got a dense copy of 'tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> from_dense_copy
      : tensor<1x4x1x32xf16>, !key, !value -> tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x32xf32>
}

// -----

func.func @heads(%q: tensor<1x?x1x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x32xf16>, %scale: f32) -> tensor<1x?x1x32xf32> {
  // expected-error @+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x?x1x32xf16>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x?x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16> -> tensor<1x?x1x32xf32>, tensor<1x?x1xf32>, tensor<1x?x1xf32>
  return %acc : tensor<1x?x1x32xf32>
}
