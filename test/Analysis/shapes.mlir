// RUN: aligned-opt %s --aligned-analyze-precision --verify-diagnostics

// linalg, vector, tensor and memref: reductions multiply what an addend may be off by, moves change nothing.

#row = affine_map<(i, j) -> (i)>
#all = affine_map<(i, j) -> (i, j)>

func.func @matmul(%a: tensor<4x64xf16> {aligned.range = #aligned.range<[-4.0, 4.0]>}, %b: tensor<64x8xf16> {aligned.range = #aligned.range<[-1.0, 1.0]>})
    -> (tensor<4x8xf32> {aligned.tolerance = 1.0}) {
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<4x8xf32>
  %fill = linalg.fill ins(%zero : f32) outs(%empty : tensor<4x8xf32>) -> tensor<4x8xf32>
  // expected-remark@below {{the lower 2 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-4, 4], with bits down to 2^-8 in its largest values; it may be off by 0.015625}}
  // expected-remark@below {{the lower 2 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [-1, 1], with bits down to 2^-10 in its largest values; it may be off by 0.00390625}}
  %0 = linalg.matmul ins(%a, %b : tensor<4x64xf16>, tensor<64x8xf16>) outs(%fill : tensor<4x8xf32>) -> tensor<4x8xf32>
  return %0 : tensor<4x8xf32>
}

// A reduction of unknown length has no end, and nothing may be off.
func.func @unknown_length(%a: tensor<?xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>}, %start: tensor<f32>) -> (tensor<f32> {aligned.tolerance = 0.25}) {
  %0 = linalg.reduce ins(%a : tensor<?xf32>) outs(%start : tensor<f32>) dimensions = [0] (%in: f32, %out: f32) {
    %1 = arith.addf %in, %out : f32
    linalg.yield %1 : f32
  }
  return %0 : tensor<f32>
}

// But the largest of any number of values does.
func.func @largest(%a: tensor<?xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>}) -> (tensor<f32> {aligned.tolerance = 0.25}) {
  %low = arith.constant dense<-100.0> : tensor<f32>
  // expected-remark@below {{the lower 19 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-4, 4], with bits down to 2^-21 in its largest values; it may be off by 0.25}}
  %0 = linalg.reduce ins(%a : tensor<?xf32>) outs(%low : tensor<f32>) dimensions = [0] (%in: f32, %out: f32) {
    %1 = arith.maximumf %in, %out : f32
    linalg.yield %1 : f32
  }
  return %0 : tensor<f32>
}

// An elementwise body speaks of its own additions.
func.func @generic(%a: tensor<4x8xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>}, %b: tensor<4xf32> {aligned.range = #aligned.range<[0.0, 1.0]>})
    -> (tensor<4x8xf32> {aligned.tolerance = 0.25}) {
  %empty = tensor.empty() : tensor<4x8xf32>
  %0 = linalg.generic {indexing_maps = [#all, #row, #all], iterator_types = ["parallel", "parallel"]} ins(%a, %b : tensor<4x8xf32>, tensor<4xf32>) outs(%empty : tensor<4x8xf32>) {
  ^bb0(%x: f32, %y: f32, %out: f32):
    // expected-remark@below {{the lower 19 bits of operand #0 lie below what its uses ask for}}
    // expected-note@below {{operand #0 is in [-4, 4], with bits down to 2^-21 in its largest values; it may be off by 0.25}}
    // expected-remark@below {{the lower 21 bits of operand #1 lie below what its uses ask for}}
    // expected-note@below {{operand #1 is in [0, 1], with bits down to 2^-23 in its largest values; it may be off by 0.25}}
    %1 = arith.addf %x, %y : f32
    linalg.yield %1 : f32
  } -> tensor<4x8xf32>
  return %0 : tensor<4x8xf32>
}

func.func @vectors(%a: vector<4x8xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>}, %b: vector<8x2xf32> {aligned.range = #aligned.range<[0.0, 2.0]>}, %c: vector<4x2xf32>
    {aligned.range = #aligned.range<[0.0, 1.0]>}) -> (f32 {aligned.tolerance = 0.5}) {
  // expected-remark@below {{the lower 13 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-4, 4], with bits down to 2^-21 in its largest values; it may be off by 0.00390625}}
  // expected-remark@below {{the lower 13 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [0, 2], with bits down to 2^-22 in its largest values; it may be off by 0.00195312}}
  %0 = vector.contract {indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (k, n)>, affine_map<(m, n, k) -> (m, n)>],
    iterator_types = ["parallel", "parallel", "reduction"], kind = #vector.kind<add>} %a, %b, %c : vector<4x8xf32>, vector<8x2xf32> into vector<4x2xf32>
  %zero = arith.constant dense<0.0> : vector<2xf32>
  // expected-remark@below {{the lower 13 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-64, 65], with bits down to 2^-17 in its largest values; it may be off by 0.0625}}
  %1 = vector.multi_reduction <add>, %0, %zero [0] : vector<4x2xf32> to vector<2xf32>
  // expected-remark@below {{the lower 13 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-256, 260], with bits down to 2^-15 in its largest values; it may be off by 0.25}}
  %2 = vector.reduction <add>, %1 : vector<2xf32> into f32
  return %2 : f32
}

func.func @moves(%a: tensor<4x8xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>}, %b: tensor<2x8xf32> {aligned.range = #aligned.range<[1.0, 2.0]>}, %i: index)
    -> (f32 {aligned.tolerance = 0.5}) {
  %pad = arith.constant 64.0 : f32
  %0 = tensor.extract_slice %a[0, 0] [2, 8] [1, 1] : tensor<4x8xf32> to tensor<2x8xf32>
  %1 = tensor.concat dim(0) %0, %b : (tensor<2x8xf32>, tensor<2x8xf32>) -> tensor<4x8xf32>
  %2 = tensor.collapse_shape %1 [[0, 1]] : tensor<4x8xf32> into tensor<32xf32>
  %3 = tensor.pad %2 low[1] high[0] {
  ^bb0(%j: index):
    tensor.yield %pad : f32
  } : tensor<32xf32> to tensor<33xf32>
  %4 = tensor.extract %3[%i] : tensor<33xf32>
  %one = arith.constant 1.0 : f32
  // expected-remark@below {{the lower 16 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-4, 64], with bits down to 2^-17 in its largest values; it may be off by 0.5}}
  %5 = arith.addf %4, %one : f32
  return %5 : f32
}

// What lies in memory is what its function was told, or anything; what is stored may be read by anybody.
func.func @memory(%m: memref<8xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>}, %n: memref<8xf32>, %i: index) -> (f32 {aligned.tolerance = 0.5}) {
  %view = memref.subview %m[0] [4] [1] : memref<8xf32> to memref<4xf32, strided<[1]>>
  %0 = memref.load %view[%i] : memref<4xf32, strided<[1]>>
  %one = arith.constant 1.0 : f32
  %1 = arith.addf %0, %one : f32
  %2 = arith.addf %1, %one : f32
  memref.store %2, %n[%i] : memref<8xf32>
  return %1 : f32
}
