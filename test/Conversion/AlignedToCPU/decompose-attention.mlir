// Decode attention over dense tensors that no kernel takes as it is. Results are tested in python/test_shapes.py.
// RUN: aligned-opt %s --convert-aligned-to-linalg --split-input-file | FileCheck %s

// Zeros behind the rows of K and with them of the query; V is as a kernel takes it. The certificate is that of the padded tensors.
// CHECK-LABEL: func.func @pad_key(
// CHECK-SAME: %[[Q:[^:]*]]: tensor<2x6x2x72xf16>, %[[K:[^:]*]]: tensor<2x2x?x72xf16>, %[[V:[^:]*]]: tensor<2x2x?x32xf16>, %[[SCALE:[^:]*]]: f32, %[[MASK:[^:]*]]: tensor<1x6x1x?xi1>
// CHECK: %[[QUERY:.*]] = tensor.pad %[[Q]] low[0, 0, 0, 0] high[0, 0, 0, 8]
// CHECK: tensor<2x6x2x72xf16> to tensor<2x6x2x80xf16>
// CHECK: %[[KEY:.*]] = tensor.pad %[[K]] low[0, 0, 0, 0] high[0, 0, 0, 8]
// CHECK: tensor<2x2x?x72xf16> to tensor<2x2x?x80xf16>
// CHECK-NOT: tensor.pad
// CHECK: aligned.decode_attention %[[QUERY]], %[[KEY]], %[[V]] scale %[[SCALE]] softcap 5.000000e+01 attn_mask %[[MASK]] : tensor<1x6x1x?xi1> policy <exact> masked_zero
// CHECK-SAME: -> tensor<2x6x2x32xf32>, tensor<2x6x2xf32>, tensor<2x6x2xf32> certified tensor<2x6x2x8xf32>
func.func @pad_key(%q: tensor<2x6x2x72xf16>, %k: tensor<2x2x?x72xf16>, %v: tensor<2x2x?x32xf16>, %scale: f32, %mask: tensor<1x6x1x?xi1>)
    -> (tensor<2x6x2x32xf32>, tensor<2x6x2xf32>, tensor<2x6x2x8xf32>) {
  %acc, %max, %sum, %certificate = aligned.decode_attention %q, %k, %v scale %scale softcap 50.0 attn_mask %mask : tensor<1x6x1x?xi1> policy <exact> masked_zero
      : tensor<2x6x2x72xf16>, tensor<2x2x?x72xf16>, tensor<2x2x?x32xf16> -> tensor<2x6x2x32xf32>, tensor<2x6x2xf32>, tensor<2x6x2xf32> certified tensor<2x6x2x8xf32>
  return %acc, %sum, %certificate : tensor<2x6x2x32xf32>, tensor<2x6x2xf32>, tensor<2x6x2x8xf32>
}

// -----

// And behind those of V, of which the result leaves them.
// CHECK-LABEL: func.func @pad_value(
// CHECK-SAME: %[[Q:[^:]*]]: tensor<?x1x1x16xbf16>, %[[K:[^:]*]]: tensor<?x1x?x16xbf16>, %[[V:[^:]*]]: tensor<?x1x?x9xbf16>
// CHECK: %[[VALUE:.*]] = tensor.pad %[[V]] low[0, 0, 0, 0] high[0, 0, 0, 7]
// CHECK: %[[ACC:.*]], %{{.*}}, %{{.*}} = aligned.decode_attention %[[Q]], %[[K]], %[[VALUE]] {{.*}} -> tensor<?x1x1x16xf32>
// CHECK: %[[KEPT:.*]] = tensor.extract_slice %[[ACC]][0, 0, 0, 0] [%{{.*}}, 1, 1, 9]
// CHECK: return %[[KEPT]]
func.func @pad_value(%q: tensor<?x1x1x16xbf16>, %k: tensor<?x1x?x16xbf16>, %v: tensor<?x1x?x9xbf16>, %scale: f32) -> tensor<?x1x1x9xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<?x1x1x16xbf16>, tensor<?x1x?x16xbf16>, tensor<?x1x?x9xbf16> -> tensor<?x1x1x9xf32>, tensor<?x1x1xf32>, tensor<?x1x1xf32>
  return %acc : tensor<?x1x1x9xf32>
}

// -----

// What a kernel takes stays.
// CHECK-LABEL: func.func @kernel(
// CHECK-NOT: tensor.pad
// CHECK-NOT: linalg
// CHECK: aligned.decode_attention
func.func @kernel(%q: tensor<1x32x1x256xf16>, %k: tensor<1x1x?x256xf16>, %v: tensor<1x1x?x16xf16>, %scale: f32) -> tensor<1x32x1x16xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x32x1x256xf16>, tensor<1x1x?x256xf16>, tensor<1x1x?x16xf16> -> tensor<1x32x1x16xf32>, tensor<1x32x1xf32>, tensor<1x32x1xf32>
  return %acc : tensor<1x32x1x16xf32>
}

// -----

// No kernel takes 512 channels. Scores, in f32, of which sums may take any order; masks; the maximum; weights and their sum; values where they are seen.
// CHECK-LABEL: func.func @wide(
// CHECK-SAME: %[[Q:[^:]*]]: tensor<1x6x2x512xf16>, %[[K:[^:]*]]: tensor<1x2x?x512xf16>, %[[V:[^:]*]]: tensor<1x2x?x16xf16>, %[[SCALE:[^:]*]]: f32, %[[LATER:[^:]*]]: index
// CHECK: %[[GROUP:.*]] = arith.divui
// CHECK: %[[NEWEST:.*]] = arith.subi %{{.*}}, %[[LATER]]
// CHECK: %[[PRODUCTS:.*]] = linalg.generic {{.*}} iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]} ins(%[[Q]] : {{.*}} outs({{.*}} : tensor<1x6x2x?xf32>)
// CHECK: %[[HEAD:.*]] = arith.divui %{{.*}}, %[[GROUP]]
// CHECK: tensor.extract %[[K]][%{{.*}}, %[[HEAD]], %{{.*}}, %{{.*}}]
// CHECK: arith.addf {{.*}} fastmath<reassoc> : f32
// CHECK: %[[SCORES:.*]] = linalg.generic {{.*}} iterator_types = ["parallel", "parallel", "parallel", "parallel"]} outs(%[[PRODUCTS]]
// CHECK: arith.cmpi sle
// CHECK: linalg.generic {{.*}} iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%[[SCORES]]
// CHECK: arith.maxnumf
// CHECK: %[[WEIGHTS:.*]]:2 = linalg.generic {{.*}} iterator_types = ["parallel", "parallel", "parallel", "reduction"]} {{.*}} outs(%[[SCORES]]
// CHECK: linalg.generic {{.*}} iterator_types = ["parallel", "parallel", "parallel", "reduction", "parallel"]} ins(%[[WEIGHTS]]#0
// CHECK: tensor.extract %[[V]]
// CHECK: arith.cmpi sle
// CHECK: call @aligned_rt_tally
// CHECK-NOT: aligned.decode_attention
func.func @wide(%q: tensor<1x6x2x512xf16>, %k: tensor<1x2x?x512xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32, %later: index) -> tensor<1x6x2x16xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale mask <causal> later %later policy <exact>
      : tensor<1x6x2x512xf16>, tensor<1x2x?x512xf16>, tensor<1x2x?x16xf16> -> tensor<1x6x2x16xf32>, tensor<1x6x2xf32>, tensor<1x6x2xf32>
  return %acc : tensor<1x6x2x16xf32>
}

// -----

// A certificate bounds what f64 rounds, and that state and result are f32.
// CHECK-LABEL: func.func @certified(
// CHECK: linalg.generic {{.*}} outs({{.*}} : tensor<1x33x1x?xf64>)
// CHECK: arith.truncf {{.*}} : f64 to f32
// CHECK: %[[CERTIFICATE:.*]] = linalg.generic {{.*}} ins({{.*}} : tensor<1x33x1x8xf64>) outs({{.*}} : tensor<1x33x1x8xf32>)
// CHECK: return %[[CERTIFICATE]]
func.func @certified(%q: tensor<1x33x1x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x16xf16>, %scale: f32) -> tensor<1x33x1x8xf32> {
  %acc, %max, %sum, %certificate = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x33x1x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16> -> tensor<1x33x1x16xf32>, tensor<1x33x1xf32>, tensor<1x33x1xf32> certified tensor<1x33x1x8xf32>
  return %certificate : tensor<1x33x1x8xf32>
}
