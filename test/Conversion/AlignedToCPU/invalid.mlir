// RUN: aligned-opt %s --convert-aligned-to-cpu --split-input-file --verify-diagnostics

func.func @head_dim(%q: tensor<1x2x1x24xf32>, %k: tensor<1x2x?x24xf32>, %v: tensor<1x2x?x24xf32>, %scale: f32) -> tensor<1x2x1x24xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected the key's head_dim to be a multiple of 16, at most 256, got 24}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x1x24xf32>, tensor<1x2x?x24xf32>, tensor<1x2x?x24xf32> -> tensor<1x2x1x24xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x24xf32>
}

// -----

func.func @query_rows(%q: tensor<1x2x17x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>, %scale: f32) -> tensor<1x2x17x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected at most 32 query rows per kv head, got 34}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x17x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32> -> tensor<1x2x17x16xf32>, tensor<1x2x17xf32>, tensor<1x2x17xf32>
  return %acc : tensor<1x2x17x16xf32>
}

// -----

func.func @queries(%q: tensor<1x2x?x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>, %scale: f32) -> tensor<1x2x?x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x2x?x16xf32>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x?x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32> -> tensor<1x2x?x16xf32>, tensor<1x2x?xf32>, tensor<1x2x?xf32>
  return %acc : tensor<1x2x?x16xf32>
}

// -----

!key = tensor<1x1x?x16xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x1x?x16xf16, #aligned.split<float<8, 4, 4>, value>>
func.func @two_kinds(%q: tensor<1x2x1x16xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x2x1x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected key and value to have one kind of format, got fixed and float}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x1x16xf16>, !key, !value -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x16xf32>
}

// -----

func.func @unfused(%q: tensor<1x2x1x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x16xf16>, %scale: f32) -> tensor<1x2x1x16xf16> {
  // expected-error@+1 {{'aligned.attention' op expected fused attention here: run aligned-fuse-decode-attention first}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16> -> tensor<1x2x1x16xf16>
  return %out : tensor<1x2x1x16xf16>
}
