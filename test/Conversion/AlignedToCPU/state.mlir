// RUN: aligned-opt %s --convert-aligned-to-linalg | FileCheck %s

// Merging and finishing softmax states is elementwise work for upstream's passes.

!acc = tensor<1x2x1x16xf32>
!row = tensor<1x2x1xf32>

// Weights are exponentials, computed once per row, not for each channel. The maximum of no tokens, -inf, is the lowest float in them: -inf - -inf is NaN.
// What is merged takes the place of the first state.
// CHECK-DAG: #[[ROW:.*]] = affine_map<(d0, d1, d2) -> (d0, d1, d2)>
// CHECK-DAG: #[[STATE:.*]] = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
// CHECK-DAG: #[[OF_ROW:.*]] = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2)>
// CHECK-LABEL: func.func @merge(
// CHECK-SAME: %[[A0:[a-z0-9]+]]: tensor<1x2x1x16xf32>, %[[M0:[a-z0-9]+]]: tensor<1x2x1xf32>, %[[S0:[a-z0-9]+]]: tensor<1x2x1xf32>,
// CHECK-SAME: %[[A1:[a-z0-9]+]]: tensor<1x2x1x16xf32>, %[[M1:[a-z0-9]+]]: tensor<1x2x1xf32>, %[[S1:[a-z0-9]+]]: tensor<1x2x1xf32>)
func.func @merge(%a0: !acc, %m0: !row, %s0: !row, %a1: !acc, %m1: !row, %s1: !row) -> (!acc, !row, !row) {
  // CHECK: %[[ROWS:[0-9]+]]:4 = linalg.generic {indexing_maps = [#[[ROW]], {{.*}}, #[[ROW]]], iterator_types = ["parallel", "parallel", "parallel"]} ins(%[[M1]], %[[S1]] : {{.*}}) outs(%[[M0]], %[[S0]],
  // CHECK: ^bb0(%[[MB:[a-z0-9_]+]]: f32, %[[SB:[a-z0-9_]+]]: f32, %[[MA:[a-z0-9_]+]]: f32, %[[SA:[a-z0-9_]+]]: f32,
  // CHECK: %[[LOWEST:.*]] = arith.constant -3.40282347E+38
  // CHECK: %[[MAX:.*]] = arith.maximumf %[[MA]], %[[MB]]
  // CHECK: %[[SHIFT:.*]] = arith.maximumf %[[MAX]], %[[LOWEST]]
  // CHECK: %[[DA:.*]] = arith.subf %[[MA]], %[[SHIFT]]
  // CHECK: %[[WA:.*]] = math.exp %[[DA]]
  // CHECK: %[[DB:.*]] = arith.subf %[[MB]], %[[SHIFT]]
  // CHECK: %[[WB:.*]] = math.exp %[[DB]]
  // CHECK: %[[PA:.*]] = arith.mulf %[[SA]], %[[WA]]
  // CHECK: %[[PB:.*]] = arith.mulf %[[SB]], %[[WB]]
  // CHECK: %[[SUM:.*]] = arith.addf %[[PA]], %[[PB]]
  // CHECK: linalg.yield %[[MAX]], %[[SUM]], %[[WA]], %[[WB]]
  // CHECK-NOT: math.exp
  // CHECK: %[[ACC:[0-9]+]] = linalg.generic {indexing_maps = [#[[OF_ROW]], #[[STATE]], #[[OF_ROW]], #[[STATE]]]{{.*}} ins(%[[ROWS]]#2, %[[A1]], %[[ROWS]]#3 : {{.*}}) outs(%[[A0]] :
  // CHECK-NOT: math.exp
  // CHECK: return %[[ACC]], %[[ROWS]]#0, %[[ROWS]]#1
  %a, %m, %s = aligned.merge (%a0, %m0, %s0), (%a1, %m1, %s1) : !acc, !row
  return %a, %m, %s : !acc, !row, !row
}

// P4: of a certificate's eight numbers five add up as acc does; numbers 4 and 7 are variances, whose weights are squared, and of number 5 the larger one is kept.
// CHECK-LABEL: func.func @merge_certified(
// CHECK-SAME: %[[C0:[a-z0-9]+]]: tensor<1x2x1x8xf32>, %[[C1:[a-z0-9]+]]: tensor<1x2x1x8xf32>)
func.func @merge_certified(%a: !acc, %m: !row, %s: !row, %c0: tensor<1x2x1x8xf32>, %c1: tensor<1x2x1x8xf32>) -> tensor<1x2x1x8xf32> {
  // CHECK: %[[ROWS:[0-9]+]]:4 = linalg.generic
  // CHECK-COUNT-2: math.exp
  // CHECK-NOT: math.exp
  // CHECK: %[[MERGED:.*]] = linalg.generic {{.*}} ins(%[[ROWS]]#2, %[[C1]], %[[ROWS]]#3 : {{.*}}) outs(%[[C0]] :
  // CHECK: ^bb0(%[[WA:[a-z0-9_]+]]: f32, %[[B:[a-z0-9_]+]]: f32, %[[WB:[a-z0-9_]+]]: f32, %[[A:[a-z0-9_]+]]: f32)
  // CHECK: %[[PA:.*]] = arith.mulf %[[A]], %[[WA]]
  // CHECK: %[[PB:.*]] = arith.mulf %[[B]], %[[WB]]
  // CHECK: %[[SUM:.*]] = arith.addf %[[PA]], %[[PB]]
  // CHECK: %[[AT:.*]] = linalg.index 3
  // CHECK: %[[WA2:.*]] = arith.mulf %[[WA]], %[[WA]]
  // CHECK: %[[WB2:.*]] = arith.mulf %[[WB]], %[[WB]]
  // CHECK: %[[VA:.*]] = arith.mulf %[[A]], %[[WA2]]
  // CHECK: %[[VB:.*]] = arith.mulf %[[B]], %[[WB2]]
  // CHECK: %[[VARIANCE:.*]] = arith.addf %[[VA]], %[[VB]]
  // CHECK: %[[FOUR:.*]] = arith.constant 4 : index
  // CHECK: %[[IS_VARIANCE:.*]] = arith.cmpi eq, %[[AT]], %[[FOUR]]
  // CHECK: %[[SUM_OR_IT:.*]] = arith.select %[[IS_VARIANCE]], %[[VARIANCE]], %[[SUM]]
  // CHECK: %[[SEVEN:.*]] = arith.constant 7 : index
  // CHECK: %[[IS_OTHER:.*]] = arith.cmpi eq, %[[AT]], %[[SEVEN]]
  // CHECK: %[[EITHER:.*]] = arith.select %[[IS_OTHER]], %[[VARIANCE]], %[[SUM_OR_IT]]
  // CHECK: %[[LARGER:.*]] = arith.maximumf %[[A]], %[[B]]
  // CHECK: %[[FIVE:.*]] = arith.constant 5 : index
  // CHECK: %[[IS_LARGEST:.*]] = arith.cmpi eq, %[[AT]], %[[FIVE]]
  // CHECK: %[[ANY:.*]] = arith.select %[[IS_LARGEST]], %[[LARGER]], %[[EITHER]]
  // CHECK: linalg.yield %[[ANY]]
  // CHECK-NOT: math.exp
  // CHECK: return %[[MERGED]]
  %a1, %m1, %s1, %c = aligned.merge (%a, %m, %s, %c0), (%a, %m, %s, %c1) : !acc, !row certified tensor<1x2x1x8xf32>
  return %c : tensor<1x2x1x8xf32>
}

// Appends to dense tensors are concatenations.
// CHECK-LABEL: func.func @append_dense(
// CHECK: tensor.concat dim(2) %{{.*}}, %{{.*}} : (tensor<1x2x?x64xf16>, tensor<1x2x1x64xf16>) -> tensor<1x2x?x64xf16>
func.func @append_dense(%tokens: tensor<1x2x1x64xf16>, %cache: tensor<1x2x?x64xf16>) -> tensor<1x2x?x64xf16> {
  %new = aligned.append %tokens to %cache : tensor<1x2x1x64xf16> to tensor<1x2x?x64xf16> -> tensor<1x2x?x64xf16>
  return %new : tensor<1x2x?x64xf16>
}

// What becomes calls and kernels waits for buffers.
// CHECK-LABEL: func.func @append_packed(
// CHECK: aligned.append
func.func @append_packed(%tokens: tensor<1x2x1x64xf16>, %cache: tensor<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, key>>)
    -> tensor<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, key>> {
  %new = aligned.append %tokens to %cache : tensor<1x2x1x64xf16> to tensor<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, key>>
      -> tensor<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, key>>
  return %new : tensor<1x2x?x64xf16, #aligned.planes<fixed<8, 8>, key>>
}

// A row that saw no token is 0, not 0 / 0.
// CHECK-LABEL: func.func @finish(
func.func @finish(%acc: !acc, %sum: !row) -> tensor<1x2x1x16xf16> {
  // CHECK: linalg.generic
  // CHECK: %[[NONE:.*]] = arith.cmpf oeq
  // CHECK: %[[OUT:.*]] = arith.divf
  // CHECK: %[[SAFE:.*]] = arith.select %[[NONE]], %{{.*}}, %[[OUT]]
  // CHECK: arith.truncf %[[SAFE]] : f32 to f16
  %out = aligned.finish %acc, %sum : !acc, !row -> tensor<1x2x1x16xf16>
  return %out : tensor<1x2x1x16xf16>
}

// P4: bound and estimate of the rounded output. Seven numbers a row, each row's largest magnitude and mean square, and 0 of both where no token was seen.
// CHECK-LABEL: func.func @finish_certified(
// CHECK-SAME: %[[SUM:[a-z0-9]+]]: tensor<1x2x1xf32>, %[[C:[a-z0-9]+]]: tensor<1x2x1x8xf32>)
func.func @finish_certified(%acc: !acc, %sum: !row, %c: tensor<1x2x1x8xf32>) -> (tensor<1x2x1x16xf16>, !row, !row) {
  // CHECK: %[[OUT:.*]] = linalg.generic
  // CHECK: %[[NORMS:.*]]:2 = linalg.generic {{.*}}"reduction"]} ins(%[[OUT]] : tensor<1x2x1x16xf16>)
  // CHECK: math.absf
  // CHECK-COUNT-8: tensor.extract_slice %[[C]][0, 0, 0, {{[0-7]}}] [1, 2, 1, 1] [1, 1, 1, 1] : tensor<1x2x1x8xf32> to tensor<1x2x1xf32>
  // CHECK-NOT: tensor.extract_slice
  // CHECK: %[[BOTH:.*]]:2 = linalg.generic {{.*}} ins(%[[SUM]], %[[NORMS]]#0, %[[NORMS]]#1,
  // CHECK: ^bb0(%[[W:[a-z0-9_]+]]: f32,
  // CHECK: %[[EMPTY:.*]] = arith.cmpf oeq, %[[W]], %{{.*}} : f32
  // CHECK: %[[BOUND:.*]] = arith.select %[[EMPTY]]
  // CHECK: %[[ESTIMATE:.*]] = arith.select %[[EMPTY]]
  // CHECK: linalg.yield %[[BOUND]], %[[ESTIMATE]]
  // CHECK: return %[[OUT]], %[[BOTH]]#0, %[[BOTH]]#1
  %out, %bound, %estimate = aligned.finish %acc, %sum certificate %c : !acc, !row, tensor<1x2x1x8xf32> -> tensor<1x2x1x16xf16> certified !row, !row
  return %out, %bound, %estimate : tensor<1x2x1x16xf16>, !row, !row
}
