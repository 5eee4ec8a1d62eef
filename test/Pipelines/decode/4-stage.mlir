// Written by `make update-phases`: aligned-opt model.mlir --aligned-pipeline="isa=portable to=stage"
module {
  func.func @attn(%arg0: tensor<2x8x1x32xf16>, %arg1: tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %arg2: tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>) -> tensor<2x8x1x32xf16> {
    %c0 = arith.constant 0 : index
    %c4 = arith.constant 4 : index
    %cst = arith.constant dense<0.000000e+00> : tensor<1x4x1xf32>
    %cst_0 = arith.constant dense<0xFF800000> : tensor<1x4x1xf32>
    %cst_1 = arith.constant dense<0.000000e+00> : tensor<1x4x1x32xf32>
    %cst_2 = arith.constant 0.176776707 : f32
    %c2 = arith.constant 2 : index
    %0 = tensor.empty() : tensor<2x8x1x32xf32>
    %1 = tensor.empty() : tensor<2x8x1xf32>
    %2:2 = scf.forall (%arg3, %arg4) in (2, 2) shared_outs(%arg5 = %0, %arg6 = %1) -> (tensor<2x8x1x32xf32>, tensor<2x8x1xf32>) {
      %3 = arith.muli %arg3, %c2 : index
      %4 = arith.addi %3, %arg4 : index
      %5 = tensor.empty() : tensor<2x4x32xi8>
      %6 = tensor.empty() : tensor<5x8xf32>
      %7 = tensor.empty() : tensor<32xf32>
      %8:3 = aligned.prepare %arg0, %arg1, %arg2 scale %cst_2 row %4 policy <budget, tolerance = 0.001953125> outs(%5, %6, %7 : tensor<2x4x32xi8>, tensor<5x8xf32>, tensor<32xf32>) : tensor<2x8x1x32xf16>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, value>> -> tensor<2x4x32xi8>, tensor<5x8xf32>, tensor<32xf32>
      %9 = tensor.empty() : tensor<1x4x64xf32>
      %10 = tensor.empty() : tensor<1x4x16xf32>
      %11 = tensor.empty() : tensor<1x2x4xf32>
      %12:3 = aligned.scan %arg0, %arg1, %arg2, %8#0, %8#1 scale %cst_2 row %4 split %c0 policy <budget, tolerance = 0.001953125> outs(%9, %10, %11 : tensor<1x4x64xf32>, tensor<1x4x16xf32>, tensor<1x2x4xf32>) : tensor<2x8x1x32xf16>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x4x32xi8>, tensor<5x8xf32> -> tensor<1x4x64xf32>, tensor<1x4x16xf32>, tensor<1x2x4xf32>
      %13 = tensor.empty() : tensor<1x4x1x32xf32>
      %14 = tensor.empty() : tensor<1x4x1xf32>
      %15:3 = aligned.attend %arg0, %arg1, %arg2, %8#0, %8#1, %8#2, %12#0, %12#1, %12#2 row %4 split %c0 policy <budget, tolerance = 0.001953125> masked_zero outs(%13, %14, %14 : tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>) : tensor<2x8x1x32xf16>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x2x64x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x4x32xi8>, tensor<5x8xf32>, tensor<32xf32>, tensor<1x4x64xf32>, tensor<1x4x16xf32>, tensor<1x2x4xf32> -> tensor<1x4x1x32xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
      %acc, %max, %sum = aligned.merge(%cst_1, %cst_0, %cst), (%15#0, %15#1, %15#2) : tensor<1x4x1x32xf32>, tensor<1x4x1xf32> 
      %16 = arith.muli %arg4, %c4 : index
      scf.forall.in_parallel {
        tensor.parallel_insert_slice %acc into %arg5[%arg3, %16, 0, 0] [1, 4, 1, 32] [1, 1, 1, 1] : tensor<1x4x1x32xf32> into tensor<2x8x1x32xf32>
        tensor.parallel_insert_slice %sum into %arg6[%arg3, %16, 0] [1, 4, 1] [1, 1, 1] : tensor<1x4x1xf32> into tensor<2x8x1xf32>
      }
    }
    %result = aligned.finish %2#0, %2#1 : tensor<2x8x1x32xf32>, tensor<2x8x1xf32> -> tensor<2x8x1x32xf16>
    return %result : tensor<2x8x1x32xf16>
  }
}
