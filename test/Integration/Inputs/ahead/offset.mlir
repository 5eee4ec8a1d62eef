// Keys less a constant, and caches that hold their tokens as they came, too, while they are short.
func.func @offset(%q: tensor<1x4x1x32xf16>,
                  %k: tensor<1x2x?x32xf16> {aligned.key_offset = dense<0.1> : tensor<2x32xf32>}, %v: tensor<1x2x?x32xf16>) -> tensor<1x4x1x32xf16> {
  %s = arith.constant 0.2 : f32
  %r = aligned.attention %q, %k, %v scale %s : tensor<1x4x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16> -> tensor<1x4x1x32xf16>
  return %r : tensor<1x4x1x32xf16>
}
