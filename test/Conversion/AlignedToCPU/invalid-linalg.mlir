// RUN: aligned-opt %s --convert-aligned-to-linalg --split-input-file --verify-diagnostics

func.func @unfused(%q: tensor<1x2x1x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x16xf16>, %scale: f32) -> tensor<1x2x1x16xf16> {
  // expected-error@+1 {{'aligned.attention' op expected fused attention here: run aligned-fuse-decode-attention first}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16> -> tensor<1x2x1x16xf16>
  return %out : tensor<1x2x1x16xf16>
}
