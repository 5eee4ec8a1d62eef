// RUN: aligned-opt %s --aligned-pipeline="to=raise" | FileCheck %s

// The same model in tosa: its maximum starts from the lowest float, and it multiplies by a reciprocal.

// CHECK-LABEL: func.func @attn(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x8x1x32xf16>, %[[K:[a-z0-9]+]]: tensor<2x2x64x32xf16>, %[[V:[a-z0-9]+]]: tensor<2x2x64x32xf16>)
// CHECK-NEXT: %[[SCALE:.*]] = arith.constant 0.17677{{[0-9]*}} : f32
// CHECK-NEXT: aligned.attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] masked_zero : {{.*}} -> tensor<2x8x1x32xf16>

module {
  func.func @attn(%arg0: tensor<2x8x1x32xf16>, %arg1: tensor<2x2x64x32xf16>, %arg2: tensor<2x2x64x32xf16>) -> tensor<2x8x1x32xf16> {
    %0 = "tosa.const"() <{values = dense<0.000000e+00> : tensor<2x8x1x64xf32>}> : () -> tensor<2x8x1x64xf32>
    %1 = "tosa.const"() <{values = dense<0> : tensor<1xi8>}> : () -> tensor<1xi8>
    %2 = tosa.const_shape  {values = dense<[2, 2, 1, 64, 32]> : tensor<5xindex>} : () -> !tosa.shape<5>
    %3 = tosa.const_shape  {values = dense<[1, 1, 4, 1, 1]> : tensor<5xindex>} : () -> !tosa.shape<5>
    %4 = tosa.const_shape  {values = dense<[2, 8, 64, 32]> : tensor<4xindex>} : () -> !tosa.shape<4>
    %5 = tosa.const_shape  {values = dense<[16, 1, 32]> : tensor<3xindex>} : () -> !tosa.shape<3>
    %6 = tosa.const_shape  {values = dense<[16, 32, 64]> : tensor<3xindex>} : () -> !tosa.shape<3>
    %7 = "tosa.const"() <{values = dense<0.000000e+00> : tensor<1xf32>}> : () -> tensor<1xf32>
    %8 = tosa.const_shape  {values = dense<[2, 8, 1, 64]> : tensor<4xindex>} : () -> !tosa.shape<4>
    %9 = tosa.const_shape  {values = dense<[16, 1, 64]> : tensor<3xindex>} : () -> !tosa.shape<3>
    %10 = tosa.const_shape  {values = dense<[16, 64, 32]> : tensor<3xindex>} : () -> !tosa.shape<3>
    %11 = tosa.const_shape  {values = dense<[2, 8, 1, 32]> : tensor<4xindex>} : () -> !tosa.shape<4>
    %12 = "tosa.const"() <{values = dense<0.420448214> : tensor<1x1x1x1xf32>}> : () -> tensor<1x1x1x1xf32>
    %13 = "tosa.const"() <{values = dense<0xFFF0000000000000> : tensor<1x1x1x1xf64>}> : () -> tensor<1x1x1x1xf64>
    %14 = tosa.cast %arg0 : (tensor<2x8x1x32xf16>) -> tensor<2x8x1x32xf32>
    %15 = tosa.cast %arg1 : (tensor<2x2x64x32xf16>) -> tensor<2x2x64x32xf32>
    %16 = tosa.cast %arg2 : (tensor<2x2x64x32xf16>) -> tensor<2x2x64x32xf32>
    %17 = tosa.mul %14, %12, %1 : (tensor<2x8x1x32xf32>, tensor<1x1x1x1xf32>, tensor<1xi8>) -> tensor<2x8x1x32xf32>
    %18 = tosa.reshape %15, %2 : (tensor<2x2x64x32xf32>, !tosa.shape<5>) -> tensor<2x2x1x64x32xf32>
    %19 = tosa.tile %18, %3 : (tensor<2x2x1x64x32xf32>, !tosa.shape<5>) -> tensor<2x2x4x64x32xf32>
    %20 = tosa.reshape %19, %4 : (tensor<2x2x4x64x32xf32>, !tosa.shape<4>) -> tensor<2x8x64x32xf32>
    %21 = tosa.reshape %16, %2 : (tensor<2x2x64x32xf32>, !tosa.shape<5>) -> tensor<2x2x1x64x32xf32>
    %22 = tosa.tile %21, %3 : (tensor<2x2x1x64x32xf32>, !tosa.shape<5>) -> tensor<2x2x4x64x32xf32>
    %23 = tosa.transpose %20 {perms = array<i32: 0, 1, 3, 2>} : (tensor<2x8x64x32xf32>) -> tensor<2x8x32x64xf32>
    %24 = tosa.mul %23, %12, %1 : (tensor<2x8x32x64xf32>, tensor<1x1x1x1xf32>, tensor<1xi8>) -> tensor<2x8x32x64xf32>
    %25 = tosa.reshape %17, %5 : (tensor<2x8x1x32xf32>, !tosa.shape<3>) -> tensor<16x1x32xf32>
    %26 = tosa.reshape %24, %6 : (tensor<2x8x32x64xf32>, !tosa.shape<3>) -> tensor<16x32x64xf32>
    %27 = tosa.matmul %25, %26, %7, %7 : (tensor<16x1x32xf32>, tensor<16x32x64xf32>, tensor<1xf32>, tensor<1xf32>) -> tensor<16x1x64xf32>
    %28 = tosa.reshape %27, %8 : (tensor<16x1x64xf32>, !tosa.shape<4>) -> tensor<2x8x1x64xf32>
    %29 = tosa.reduce_max %28 {axis = 3 : i32} : (tensor<2x8x1x64xf32>) -> tensor<2x8x1x1xf32>
    %30 = tosa.sub %28, %29 : (tensor<2x8x1x64xf32>, tensor<2x8x1x1xf32>) -> tensor<2x8x1x64xf32>
    %31 = tosa.exp %30 : (tensor<2x8x1x64xf32>) -> tensor<2x8x1x64xf32>
    %32 = tosa.reduce_sum %31 {axis = 3 : i32} : (tensor<2x8x1x64xf32>) -> tensor<2x8x1x1xf32>
    %33 = tosa.reciprocal %32 : (tensor<2x8x1x1xf32>) -> tensor<2x8x1x1xf32>
    %34 = tosa.mul %31, %33, %1 : (tensor<2x8x1x64xf32>, tensor<2x8x1x1xf32>, tensor<1xi8>) -> tensor<2x8x1x64xf32>
    %35 = tosa.cast %28 : (tensor<2x8x1x64xf32>) -> tensor<2x8x1x64xf64>
    %36 = tosa.equal %35, %13 : (tensor<2x8x1x64xf64>, tensor<1x1x1x1xf64>) -> tensor<2x8x1x64xi1>
    %37 = tosa.reduce_all %36 {axis = 3 : i32} : (tensor<2x8x1x64xi1>) -> tensor<2x8x1x1xi1>
    %38 = tosa.select %37, %0, %34 : (tensor<2x8x1x1xi1>, tensor<2x8x1x64xf32>, tensor<2x8x1x64xf32>) -> tensor<2x8x1x64xf32>
    %39 = tosa.reshape %38, %9 : (tensor<2x8x1x64xf32>, !tosa.shape<3>) -> tensor<16x1x64xf32>
    %40 = tosa.reshape %22, %10 : (tensor<2x2x4x64x32xf32>, !tosa.shape<3>) -> tensor<16x64x32xf32>
    %41 = tosa.matmul %39, %40, %7, %7 : (tensor<16x1x64xf32>, tensor<16x64x32xf32>, tensor<1xf32>, tensor<1xf32>) -> tensor<16x1x32xf32>
    %42 = tosa.reshape %41, %11 : (tensor<16x1x32xf32>, !tosa.shape<4>) -> tensor<2x8x1x32xf32>
    %43 = tosa.cast %42 : (tensor<2x8x1x32xf32>) -> tensor<2x8x1x32xf16>
    return %43 : tensor<2x8x1x32xf16>
  }
}
