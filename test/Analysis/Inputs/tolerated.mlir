func.func @step(%q: tensor<1x8x1x64xf16>, %k: tensor<1x2x100x64xf16>, %v: tensor<1x2x100x64xf16> {aligned.range = #aligned.range<[-2.0, 1.0]>})
    -> (tensor<1x8x1x64xf32> {aligned.tolerance = 0.015625}) {
  %scale = arith.constant 0.125 : f32
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x8x1x64xf16>, tensor<1x2x100x64xf16>, tensor<1x2x100x64xf16> -> tensor<1x8x1x64xf32>
  return %0 : tensor<1x8x1x64xf32>
}
