// RUN: aligned-opt %s --aligned-stage-decode-attention --convert-aligned-to-nvvm --split-input-file --verify-diagnostics

// What attention in stages can't do on GPUs.
!key = tensor<1x2x?x32xf16, #aligned.planes<fixed<8, 8>, key>>
!value = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @widths(%q: tensor<1x4x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x4x1x32xf32> {
  // expected-error @+1 {{'aligned.attend' op expected the key's planes to be fixed<4, 4, 8> on this target, got #aligned.planes<fixed<8, 8>, key>}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x4x1x32xf16>, !key, !value -> tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x32xf32>
}

// -----

!key = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @rows(%q: tensor<1x34x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x34x1x32xf32> {
  // expected-error @+1 {{'aligned.attend' op expected at most 16 query rows per kv head on this target, got 17}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x34x1x32xf16>, !key, !value -> tensor<1x34x1x32xf32>, tensor<1x34x1xf32>, tensor<1x34x1xf32>
  return %acc : tensor<1x34x1x32xf32>
}
