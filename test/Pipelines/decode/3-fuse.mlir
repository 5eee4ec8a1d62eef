// Written by `make update-phases`: aligned-opt model.mlir --aligned-pipeline="isa=portable to=fuse"
module {
  func.func @attn(%arg0: tensor<2x8x1x32xf16>, %arg1: tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %arg2: tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>) -> tensor<2x8x1x32xf16> {
    %cst = arith.constant 0.176776707 : f32
    %acc, %max, %sum = aligned.decode_attention %arg0, %arg1, %arg2 scale %cst policy <budget, tolerance = 0.001953125> masked_zero : tensor<2x8x1x32xf16>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, value>> -> tensor<2x8x1x32xf32>, tensor<2x8x1xf32>, tensor<2x8x1xf32>
    %result = aligned.finish %acc, %sum : tensor<2x8x1x32xf32>, tensor<2x8x1xf32> -> tensor<2x8x1x32xf16>
    return %result : tensor<2x8x1x32xf16>
  }
}
