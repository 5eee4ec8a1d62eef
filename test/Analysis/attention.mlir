// RUN: aligned-opt %s --aligned-analyze-precision --verify-diagnostics

// Attention: the output is a mean of values, and scores move it by what V is spread over.

func.func @attention(%q: tensor<1x8x1x64xf16> {aligned.range = #aligned.range<[-1.0, 1.0]>}, %k: tensor<1x2x100x64xf16> {aligned.range = #aligned.range<[-4.0, 4.0]>},
    %v: tensor<1x2x100x64xf16> {aligned.range = #aligned.range<[-2.0, 2.0]>}) -> (tensor<1x8x1x64xf16> {aligned.tolerance = 0.125}) {
  %scale = arith.constant 0.125 : f32
  // expected-remark@below {{the lower 1 bit of operand #1 lies below what its uses ask for}}
  // expected-note@below {{operand #1 is in [-4, 4], with bits down to 2^-8 in its largest values; it may be off by 0.0078125}}
  // expected-remark@below {{the lower 6 bits of operand #2 lie below what its uses ask for}}
  // expected-note@below {{operand #2 is in [-2, 2], with bits down to 2^-9 in its largest values; it may be off by 0.125}}
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x8x1x64xf16>, tensor<1x2x100x64xf16>, tensor<1x2x100x64xf16> -> tensor<1x8x1x64xf16>
  return %0 : tensor<1x8x1x64xf16>
}

func.func @append(%q: tensor<1x8x1x64xf16> {aligned.range = #aligned.range<[-1.0, 1.0]>}, %k: tensor<1x2x?x64xf16> {aligned.range = #aligned.range<[-4.0, 4.0]>},
    %v: tensor<1x2x?x64xf16> {aligned.range = #aligned.range<[-2.0, 2.0]>}, %new: tensor<1x2x1x64xf16> {aligned.range = #aligned.range<[-3.0, 3.0]>})
    -> (tensor<1x8x1x64xf16> {aligned.tolerance = 0.125}) {
  %scale = arith.constant 0.125 : f32
  %keys = aligned.append %new to %k : tensor<1x2x1x64xf16> to tensor<1x2x?x64xf16> -> tensor<1x2x?x64xf16>
  %values = aligned.append %new to %v : tensor<1x2x1x64xf16> to tensor<1x2x?x64xf16> -> tensor<1x2x?x64xf16>
  // expected-remark@below {{the lower 6 bits of operand #2 lie below what its uses ask for}}
  // expected-note@below {{operand #2 is in [-3, 3], with bits down to 2^-9 in its largest values; it may be off by 0.125}}
  %0 = aligned.attention %q, %keys, %values scale %scale : tensor<1x8x1x64xf16>, tensor<1x2x?x64xf16>, tensor<1x2x?x64xf16> -> tensor<1x8x1x64xf16>
  return %0 : tensor<1x8x1x64xf16>
}
