// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// The same in bf16 with any number of tokens; the assertion that the lengths agree stays.

// CHECK-LABEL: func.func @attn(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x8x1x32xbf16>, %[[K:[a-z0-9]+]]: tensor<2x2x?x32xbf16>, %[[V:[a-z0-9]+]]: tensor<2x2x?x32xbf16>)
// CHECK: cf.assert %{{.*}}, "mismatching contracting dimension"
// CHECK-NOT: linalg
// CHECK: aligned.attention %[[Q]], %[[K]], %[[V]] scale %{{.*}} masked_zero : {{.*}} -> tensor<2x8x1x32xbf16>

#map = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#map1 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d3, d4)>
#map2 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3, d4)>
#map3 = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2)>
#map4 = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, 0)>
#map5 = affine_map<(d0, d1, d2, d3) -> ()>
module {
  func.func @attn(%arg0: tensor<2x8x1x32xbf16>, %arg1: tensor<2x2x?x32xbf16>, %arg2: tensor<2x2x?x32xbf16>) -> tensor<2x8x1x32xbf16> {
    %c0_i64 = arith.constant 0 : i64
    %c2 = arith.constant 2 : index
    %cst = arith.constant 0.000000e+00 : f32
    %cst_0 = arith.constant 0xFF800000 : f32
    %true = arith.constant true
    %cst_1 = arith.constant dense<0.000000e+00> : tensor<f32>
    %cst_2 = arith.constant 0xFFF0000000000000 : f64
    %cst_3 = arith.constant 0.42044820762685725 : f64
    %dim = tensor.dim %arg2, %c2 : tensor<2x2x?x32xbf16>
    %0 = arith.index_cast %dim : index to i64
    %1 = tensor.empty() : tensor<2x8x1x32xf32>
    %2 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%arg0 : tensor<2x8x1x32xbf16>) outs(%1 : tensor<2x8x1x32xf32>) {
    ^bb0(%in: bf16, %out: f32):
      %43 = arith.extf %in : bf16 to f32
      linalg.yield %43 : f32
    } -> tensor<2x8x1x32xf32>
    %dim_4 = tensor.dim %arg1, %c2 : tensor<2x2x?x32xbf16>
    %3 = tensor.empty(%dim_4) : tensor<2x2x?x32xf32>
    %4 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%arg1 : tensor<2x2x?x32xbf16>) outs(%3 : tensor<2x2x?x32xf32>) {
    ^bb0(%in: bf16, %out: f32):
      %43 = arith.extf %in : bf16 to f32
      linalg.yield %43 : f32
    } -> tensor<2x2x?x32xf32>
    %5 = tensor.empty(%dim) : tensor<2x2x?x32xf32>
    %6 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%arg2 : tensor<2x2x?x32xbf16>) outs(%5 : tensor<2x2x?x32xf32>) {
    ^bb0(%in: bf16, %out: f32):
      %43 = arith.extf %in : bf16 to f32
      linalg.yield %43 : f32
    } -> tensor<2x2x?x32xf32>
    %7 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%2 : tensor<2x8x1x32xf32>) outs(%1 : tensor<2x8x1x32xf32>) {
    ^bb0(%in: f32, %out: f32):
      %43 = arith.truncf %cst_3 : f64 to f32
      %44 = arith.mulf %in, %43 : f32
      linalg.yield %44 : f32
    } -> tensor<2x8x1x32xf32>
    %8 = tensor.empty(%dim) : tensor<2x2x4x?x32xf32>
    %9 = linalg.generic {indexing_maps = [#map1, #map2], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%4 : tensor<2x2x?x32xf32>) outs(%8 : tensor<2x2x4x?x32xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<2x2x4x?x32xf32>
    %collapsed = tensor.collapse_shape %9 [[0], [1, 2], [3], [4]] : tensor<2x2x4x?x32xf32> into tensor<2x8x?x32xf32>
    %10 = linalg.generic {indexing_maps = [#map1, #map2], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%6 : tensor<2x2x?x32xf32>) outs(%8 : tensor<2x2x4x?x32xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<2x2x4x?x32xf32>
    %11 = tensor.empty(%dim_4) : tensor<2x8x32x?xf32>
    %transposed = linalg.transpose ins(%collapsed : tensor<2x8x?x32xf32>) outs(%11 : tensor<2x8x32x?xf32>) permutation = [0, 1, 3, 2] 
    %12 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%transposed : tensor<2x8x32x?xf32>) outs(%11 : tensor<2x8x32x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %43 = arith.truncf %cst_3 : f64 to f32
      %44 = arith.mulf %in, %43 : f32
      linalg.yield %44 : f32
    } -> tensor<2x8x32x?xf32>
    %collapsed_5 = tensor.collapse_shape %7 [[0, 1], [2], [3]] : tensor<2x8x1x32xf32> into tensor<16x1x32xf32>
    %collapsed_6 = tensor.collapse_shape %12 [[0, 1], [2], [3]] : tensor<2x8x32x?xf32> into tensor<16x32x?xf32>
    %13 = tensor.empty(%dim_4) : tensor<16x1x?xf32>
    %14 = linalg.fill ins(%cst : f32) outs(%13 : tensor<16x1x?xf32>) -> tensor<16x1x?xf32>
    %15 = linalg.batch_matmul ins(%collapsed_5, %collapsed_6 : tensor<16x1x32xf32>, tensor<16x32x?xf32>) outs(%14 : tensor<16x1x?xf32>) -> tensor<16x1x?xf32>
    %expanded = tensor.expand_shape %15 [[0, 1], [2], [3]] output_shape [2, 8, 1, %dim_4] : tensor<16x1x?xf32> into tensor<2x8x1x?xf32>
    %16 = tensor.empty() : tensor<2x8x1xi64>
    %17 = linalg.fill ins(%c0_i64 : i64) outs(%16 : tensor<2x8x1xi64>) -> tensor<2x8x1xi64>
    %18 = tensor.empty() : tensor<2x8x1xf32>
    %19 = linalg.fill ins(%cst_0 : f32) outs(%18 : tensor<2x8x1xf32>) -> tensor<2x8x1xf32>
    %20:2 = linalg.generic {indexing_maps = [#map, #map3, #map3], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%expanded : tensor<2x8x1x?xf32>) outs(%19, %17 : tensor<2x8x1xf32>, tensor<2x8x1xi64>) {
    ^bb0(%in: f32, %out: f32, %out_11: i64):
      %43 = linalg.index 3 : index
      %44 = arith.index_cast %43 : index to i64
      %45 = arith.maximumf %in, %out : f32
      %46 = arith.cmpf ogt, %in, %out : f32
      %47 = arith.select %46, %44, %out_11 : i64
      linalg.yield %45, %47 : f32, i64
    } -> (tensor<2x8x1xf32>, tensor<2x8x1xi64>)
    %expanded_7 = tensor.expand_shape %20#0 [[0], [1], [2, 3]] output_shape [2, 8, 1, 1] : tensor<2x8x1xf32> into tensor<2x8x1x1xf32>
    %21 = tensor.empty(%dim_4) : tensor<2x8x1x?xf32>
    %22 = linalg.generic {indexing_maps = [#map, #map4, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%expanded, %expanded_7 : tensor<2x8x1x?xf32>, tensor<2x8x1x1xf32>) outs(%21 : tensor<2x8x1x?xf32>) {
    ^bb0(%in: f32, %in_11: f32, %out: f32):
      %43 = arith.subf %in, %in_11 : f32
      linalg.yield %43 : f32
    } -> tensor<2x8x1x?xf32>
    %23 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%22 : tensor<2x8x1x?xf32>) outs(%21 : tensor<2x8x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %43 = math.exp %in : f32
      linalg.yield %43 : f32
    } -> tensor<2x8x1x?xf32>
    %24 = tensor.empty() : tensor<2x8x1x1xf32>
    %25 = linalg.fill ins(%cst : f32) outs(%24 : tensor<2x8x1x1xf32>) -> tensor<2x8x1x1xf32>
    %26 = linalg.generic {indexing_maps = [#map, #map4], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%23 : tensor<2x8x1x?xf32>) outs(%25 : tensor<2x8x1x1xf32>) {
    ^bb0(%in: f32, %out: f32):
      %43 = arith.addf %in, %out : f32
      linalg.yield %43 : f32
    } -> tensor<2x8x1x1xf32>
    %27 = linalg.generic {indexing_maps = [#map, #map4, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%23, %26 : tensor<2x8x1x?xf32>, tensor<2x8x1x1xf32>) outs(%21 : tensor<2x8x1x?xf32>) {
    ^bb0(%in: f32, %in_11: f32, %out: f32):
      %43 = arith.divf %in, %in_11 : f32
      linalg.yield %43 : f32
    } -> tensor<2x8x1x?xf32>
    %28 = tensor.empty(%dim_4) : tensor<2x8x1x?xi1>
    %29 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%expanded : tensor<2x8x1x?xf32>) outs(%28 : tensor<2x8x1x?xi1>) {
    ^bb0(%in: f32, %out: i1):
      %43 = arith.extf %in : f32 to f64
      %44 = arith.cmpf oeq, %43, %cst_2 : f64
      linalg.yield %44 : i1
    } -> tensor<2x8x1x?xi1>
    %30 = tensor.empty() : tensor<2x8x1x1xi1>
    %31 = linalg.fill ins(%true : i1) outs(%30 : tensor<2x8x1x1xi1>) -> tensor<2x8x1x1xi1>
    %32 = linalg.generic {indexing_maps = [#map, #map4], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%29 : tensor<2x8x1x?xi1>) outs(%31 : tensor<2x8x1x1xi1>) {
    ^bb0(%in: i1, %out: i1):
      %43 = arith.andi %in, %out : i1
      linalg.yield %43 : i1
    } -> tensor<2x8x1x1xi1>
    %33 = arith.index_cast %dim_4 : index to i64
    %34 = tensor.empty(%dim_4) : tensor<2x8x1x?xf32>
    %35 = linalg.generic {indexing_maps = [#map5, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%cst_1 : tensor<f32>) outs(%34 : tensor<2x8x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<2x8x1x?xf32>
    %36 = linalg.generic {indexing_maps = [#map4, #map, #map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%32, %35, %27 : tensor<2x8x1x1xi1>, tensor<2x8x1x?xf32>, tensor<2x8x1x?xf32>) outs(%34 : tensor<2x8x1x?xf32>) {
    ^bb0(%in: i1, %in_11: f32, %in_12: f32, %out: f32):
      %43 = arith.select %in, %in_11, %in_12 : f32
      linalg.yield %43 : f32
    } -> tensor<2x8x1x?xf32>
    %collapsed_8 = tensor.collapse_shape %36 [[0, 1], [2], [3]] : tensor<2x8x1x?xf32> into tensor<16x1x?xf32>
    %collapsed_9 = tensor.collapse_shape %10 [[0, 1, 2], [3], [4]] : tensor<2x2x4x?x32xf32> into tensor<16x?x32xf32>
    %37 = arith.cmpi eq, %33, %0 : i64
    cf.assert %37, "mismatching contracting dimension"
    %38 = tensor.empty() : tensor<16x1x32xf32>
    %39 = linalg.fill ins(%cst : f32) outs(%38 : tensor<16x1x32xf32>) -> tensor<16x1x32xf32>
    %40 = linalg.batch_matmul ins(%collapsed_8, %collapsed_9 : tensor<16x1x?xf32>, tensor<16x?x32xf32>) outs(%39 : tensor<16x1x32xf32>) -> tensor<16x1x32xf32>
    %expanded_10 = tensor.expand_shape %40 [[0, 1], [2], [3]] output_shape [2, 8, 1, 32] : tensor<16x1x32xf32> into tensor<2x8x1x32xf32>
    %41 = tensor.empty() : tensor<2x8x1x32xbf16>
    %42 = linalg.generic {indexing_maps = [#map, #map], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%expanded_10 : tensor<2x8x1x32xf32>) outs(%41 : tensor<2x8x1x32xbf16>) {
    ^bb0(%in: f32, %out: bf16):
      %43 = arith.truncf %in : f32 to bf16
      linalg.yield %43 : bf16
    } -> tensor<2x8x1x32xbf16>
    return %42 : tensor<2x8x1x32xbf16>
  }
}
