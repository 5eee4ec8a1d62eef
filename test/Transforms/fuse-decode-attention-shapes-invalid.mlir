// GPUs have kernels alone: what these don't take is refused there.
// RUN: aligned-opt %s --aligned-pipeline="target=nvptx format=dense" --split-input-file --verify-diagnostics

func.func @narrow(%q: tensor<1x6x2x72xf16>, %k: tensor<1x2x?x72xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<1x6x2x16xf16> {
  // expected-error@+1 {{'aligned.decode_attention' op expected the key's head_dim to be a multiple of 16, at most 256, got 72}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x2x72xf16>, tensor<1x2x?x72xf16>, tensor<1x2x?x16xf16> -> tensor<1x6x2x16xf16>
  return %out : tensor<1x6x2x16xf16>
}

// -----

func.func @wide(%q: tensor<1x6x2x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x272xf16>, %scale: f32) -> tensor<1x6x2x272xf16> {
  // expected-error@+1 {{'aligned.decode_attention' op expected the value's head_dim to be a multiple of 16, at most 256, got 272}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x2x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x272xf16> -> tensor<1x6x2x272xf16>
  return %out : tensor<1x6x2x272xf16>
}

// -----

func.func @group(%q: tensor<1x33x1x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x16xf16>, %scale: f32) -> tensor<1x33x1x16xf16> {
  // expected-error@+1 {{'aligned.decode_attention' op expected at most 32 query rows per kv head, got 33}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x33x1x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16> -> tensor<1x33x1x16xf16>
  return %out : tensor<1x33x1x16xf16>
}

// -----

func.func @heads(%q: tensor<1x?x1x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<1x?x1x16xf16> {
  // expected-error@+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x?x1x16xf16>', 'tensor<1x2x?x16xf16>' and 'tensor<1x2x?x16xf16>'}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x?x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<1x?x1x16xf16>
  return %out : tensor<1x?x1x16xf16>
}
