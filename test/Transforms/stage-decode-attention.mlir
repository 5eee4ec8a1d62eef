// RUN: aligned-opt %s --aligned-stage-decode-attention --canonicalize --cse | FileCheck %s
// RUN: aligned-opt %s --aligned-stage-decode-attention=dense-up-to=700 --canonicalize --cse | FileCheck %s --check-prefix=SHORT
// RUN: aligned-opt %s --aligned-stage-decode-attention=costs=10,1000,10,2000,2,0.015625,1000,10,2000,2,0.015625,1000,10,2000,2,0.015625,1000,10,2000,2,0.015625,1000,10,2000,2,0.015625,1000,10,2000,2,0.015625 --canonicalize --cse | FileCheck %s --check-prefix=COSTS
// RUN: aligned-opt %s --aligned-stage-decode-attention=split-dense=false --canonicalize --cse | FileCheck %s --check-prefix=ROWS

// A decode step over fixed planes as stages: of each row, which is a kv head of a batch entry, all splits are scanned before any is attended to, since thresholds go by the sum
// over all of them. Splits are of 32 tiles of 64 tokens, whatever the machine.

!key = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>

// A short cache may hold a dense copy, which is read then.
// SHORT-LABEL: func.func @step(
// SHORT-SAME: %[[Q:[a-z0-9]+]]: tensor<2x6x1x32xf16>, %[[K:[a-z0-9]+]]: tensor<{{.*}}, key>>, %[[V:[a-z0-9]+]]: tensor<{{.*}}, value>>, %[[SCALE:[a-z0-9]+]]: f32)
// SHORT: %[[TOKENS:.*]] = tensor.dim %[[K]], %c2
// SHORT: %[[FEW:.*]] = arith.cmpi ule, %[[TOKENS]], %c700
// SHORT: %[[BOTH:.*]] = aligned.has_dense_copy %[[K]], %[[V]] : tensor<
// SHORT: %[[COPIED:.*]] = arith.andi %[[FEW]], %[[BOTH]]
// SHORT: %[[STATE:.*]]:3 = scf.if %[[COPIED]] -> (tensor<2x6x1x48xf32>, tensor<2x6x1xf32>, tensor<2x6x1xf32>) {
// SHORT-NEXT: %[[DENSE:.*]], %[[DENSE_MAX:.*]], %[[DENSE_SUM:.*]] = aligned.decode_attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] policy <exact> from_dense_copy
// SHORT-NEXT: scf.yield %[[DENSE]], %[[DENSE_MAX]], %[[DENSE_SUM]]
// SHORT-NEXT: } else {
// SHORT: aligned.prepare
// SHORT: return %[[STATE]]#0, %[[STATE]]#1, %[[STATE]]#2

// Up to which length, costs of a machine say for each policy; the module says the largest.
// COSTS: module attributes {aligned.dense_up_to = 4096 : i64}
// COSTS-LABEL: func.func @step(
// COSTS: arith.cmpi ule, %{{.*}}, %c192

// CHECK-LABEL: func.func @step(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x6x1x32xf16>, %[[K:[a-z0-9]+]]: tensor<{{.*}}, key>>, %[[V:[a-z0-9]+]]: tensor<{{.*}}, value>>, %[[SCALE:[a-z0-9]+]]: f32)
func.func @step(%q: tensor<2x6x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> (tensor<2x6x1x48xf32>, tensor<2x6x1xf32>, tensor<2x6x1xf32>) {
  // CHECK-DAG: %[[NOTHING:.*]] = arith.constant dense<0.000000e+00> : tensor<1x2x1x48xf32>
  // CHECK-DAG: %[[LEAST:.*]] = arith.constant dense<0xFF800000> : tensor<1x2x1xf32>
  // CHECK-DAG: %[[NO_SUM:.*]] = arith.constant dense<0.000000e+00> : tensor<1x2x1xf32>
  // CHECK: %[[TOKENS:.*]] = tensor.dim %[[K]], %c2
  // CHECK: %[[TILES:.*]] = arith.ceildivui %[[TOKENS]], %c64
  // CHECK: %[[SPLITS:.*]] = arith.ceildivui %[[TILES]], %c32
  // CHECK: %[[ALL:.*]]:3 = scf.forall (%[[ENTRY:.*]], %[[HEAD:.*]]) in (2, 3) shared_outs(%[[ACC:.*]] = %{{.*}}, %[[MAX:.*]] = %{{.*}}, %[[SUM:.*]] = %{{.*}}) ->

  // CHECK: %[[FIRST_ROW:.*]] = arith.muli %[[ENTRY]], %c3
  // CHECK: %[[ROW:.*]] = arith.addi %[[FIRST_ROW]], %[[HEAD]]
  // CHECK: %[[KNOWN:.*]]:3 = aligned.prepare %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] row %[[ROW]] policy <budget, tolerance = 2.500000e-01> outs({{.*}} : tensor<2x2x32xi8>, tensor<3x8xf32>, tensor<48xf32>)

  // CHECK-DAG: %[[NO_SCORES:.*]] = tensor.empty(%[[TILES]]) : tensor<?x2x64xf32>
  // CHECK-DAG: %[[NO_TOPS:.*]] = tensor.empty(%[[TILES]]) : tensor<?x2x16xf32>
  // CHECK-DAG: %[[NO_PARTS:.*]] = tensor.empty(%[[SPLITS]]) : tensor<?x2x2xf32>
  // CHECK: %[[SCANNED:.*]]:3 = scf.forall (%[[SPLIT:.*]]) in (%[[SPLITS]]) shared_outs(%[[SCORES:.*]] = %[[NO_SCORES]], %[[TOPS:.*]] = %[[NO_TOPS]], %[[PARTS:.*]] = %[[NO_PARTS]]) ->
  // The last split may be shorter.
  // CHECK: %[[FIRST:.*]] = arith.muli %[[SPLIT]], %c32
  // CHECK: %[[LEFT:.*]] = arith.subi %[[TILES]], %[[FIRST]]
  // CHECK: %[[COUNT:.*]] = arith.minui %[[LEFT]], %c32
  // CHECK: %[[S:.*]] = tensor.extract_slice %[[SCORES]][%[[FIRST]], 0, 0] [%[[COUNT]], 2, 64]
  // CHECK: %[[T:.*]] = tensor.extract_slice %[[TOPS]][%[[FIRST]], 0, 0] [%[[COUNT]], 2, 16]
  // CHECK: %[[P:.*]] = tensor.extract_slice %[[PARTS]][%[[SPLIT]], 0, 0] [1, 2, 2]
  // CHECK: %[[PART:.*]]:3 = aligned.scan %[[Q]], %[[K]], %[[V]], %[[KNOWN]]#0, %[[KNOWN]]#1 scale %[[SCALE]] row %[[ROW]] split %[[SPLIT]] policy <budget, tolerance = 2.500000e-01> outs(%[[S]], %[[T]], %[[P]] :
  // CHECK: scf.forall.in_parallel
  // CHECK: tensor.parallel_insert_slice %[[PART]]#0 into %[[SCORES]][%[[FIRST]], 0, 0] [%[[COUNT]], 2, 64]
  // CHECK: tensor.parallel_insert_slice %[[PART]]#1 into %[[TOPS]][%[[FIRST]], 0, 0] [%[[COUNT]], 2, 16]
  // CHECK: tensor.parallel_insert_slice %[[PART]]#2 into %[[PARTS]][%[[SPLIT]], 0, 0] [1, 2, 2]

  // What is attended to has the split's own scores and the parts of all splits.
  // CHECK-DAG: %[[NO_ACC:.*]] = tensor.empty(%[[SPLITS]]) : tensor<?x2x1x48xf32>
  // CHECK-DAG: %[[NO_ROW:.*]] = tensor.empty(%[[SPLITS]]) : tensor<?x2x1xf32>
  // CHECK: %[[STATES:.*]]:3 = scf.forall (%[[SPLIT:.*]]) in (%[[SPLITS]]) shared_outs(%[[ACCS:.*]] = %[[NO_ACC]], %[[MAXES:.*]] = %[[NO_ROW]], %[[SUMS:.*]] = %[[NO_ROW]]) ->
  // CHECK: %[[FIRST:.*]] = arith.muli %[[SPLIT]], %c32
  // CHECK: %[[LEFT:.*]] = arith.subi %[[TILES]], %[[FIRST]]
  // CHECK: %[[COUNT:.*]] = arith.minui %[[LEFT]], %c32
  // CHECK: %[[S:.*]] = tensor.extract_slice %[[SCANNED]]#0[%[[FIRST]], 0, 0] [%[[COUNT]], 2, 64]
  // CHECK: %[[T:.*]] = tensor.extract_slice %[[SCANNED]]#1[%[[FIRST]], 0, 0] [%[[COUNT]], 2, 16]
  // CHECK: %[[A:.*]] = tensor.extract_slice %[[ACCS]][%[[SPLIT]], 0, 0, 0] [1, 2, 1, 48]
  // CHECK: %[[M:.*]] = tensor.extract_slice %[[MAXES]][%[[SPLIT]], 0, 0] [1, 2, 1]
  // CHECK: %[[L:.*]] = tensor.extract_slice %[[SUMS]][%[[SPLIT]], 0, 0] [1, 2, 1]
  // CHECK: %[[STATE:.*]]:3 = aligned.attend %[[Q]], %[[K]], %[[V]], %[[KNOWN]]#0, %[[KNOWN]]#1, %[[KNOWN]]#2, %[[S]], %[[T]], %[[SCANNED]]#2 row %[[ROW]] split %[[SPLIT]] policy <budget, tolerance = 2.500000e-01> outs(%[[A]], %[[M]], %[[L]] :
  // CHECK: scf.forall.in_parallel
  // CHECK: tensor.parallel_insert_slice %[[STATE]]#0 into %[[ACCS]][%[[SPLIT]], 0, 0, 0] [1, 2, 1, 48]
  // CHECK: tensor.parallel_insert_slice %[[STATE]]#1 into %[[MAXES]][%[[SPLIT]], 0, 0] [1, 2, 1]
  // CHECK: tensor.parallel_insert_slice %[[STATE]]#2 into %[[SUMS]][%[[SPLIT]], 0, 0] [1, 2, 1]

  // States merge in the order of splits, into the state of no tokens.
  // CHECK: %[[MERGED:.*]]:3 = scf.for %[[SPLIT:.*]] = %c0 to %[[SPLITS]] step %c1 iter_args(%[[A0:.*]] = %[[NOTHING]], %[[M0:.*]] = %[[LEAST]], %[[L0:.*]] = %[[NO_SUM]])
  // CHECK: %[[A1:.*]] = tensor.extract_slice %[[STATES]]#0[%[[SPLIT]], 0, 0, 0] [1, 2, 1, 48]
  // CHECK: %[[M1:.*]] = tensor.extract_slice %[[STATES]]#1[%[[SPLIT]], 0, 0] [1, 2, 1]
  // CHECK: %[[L1:.*]] = tensor.extract_slice %[[STATES]]#2[%[[SPLIT]], 0, 0] [1, 2, 1]
  // CHECK: %[[A2:.*]], %[[M2:.*]], %[[L2:.*]] = aligned.merge(%[[A0]], %[[M0]], %[[L0]]), (%[[A1]], %[[M1]], %[[L1]])
  // CHECK: scf.yield %[[A2]], %[[M2]], %[[L2]]

  // A kv head's query heads lie one after the other.
  // CHECK: %[[FIRST_HEAD:.*]] = arith.muli %[[HEAD]], %c2
  // CHECK: scf.forall.in_parallel
  // CHECK: tensor.parallel_insert_slice %[[MERGED]]#0 into %[[ACC]][%[[ENTRY]], %[[FIRST_HEAD]], 0, 0] [1, 2, 1, 48]
  // CHECK: tensor.parallel_insert_slice %[[MERGED]]#1 into %[[MAX]][%[[ENTRY]], %[[FIRST_HEAD]], 0] [1, 2, 1]
  // CHECK: tensor.parallel_insert_slice %[[MERGED]]#2 into %[[SUM]][%[[ENTRY]], %[[FIRST_HEAD]], 0] [1, 2, 1]
  // CHECK: return %[[ALL]]#0, %[[ALL]]#1, %[[ALL]]#2
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25>
      : tensor<2x6x1x32xf16>, !key, !value -> tensor<2x6x1x48xf32>, tensor<2x6x1xf32>, tensor<2x6x1xf32>
  return %acc, %max, %sum : tensor<2x6x1x48xf32>, tensor<2x6x1xf32>, tensor<2x6x1xf32>
}

// Numbers that only the program knows go to the stages that use them.
// CHECK-LABEL: func.func @given(
// CHECK-SAME: %[[C:[a-z0-9]+]]: f32, %[[W:[a-z0-9]+]]: index, %[[N:[a-z0-9]+]]: index)
func.func @given(%q: tensor<2x6x3x32xf16>, %k: !key, %v: !value, %scale: f32, %c: f32, %w: index, %n: index) -> tensor<2x6x3x48xf32> {
  // CHECK: aligned.prepare {{.*}} row %{{[a-z0-9]+}} mask <causal, window = %[[W]], sinks = %[[N]]> policy
  // CHECK: aligned.scan {{.*}} split %{{[a-z0-9]+}} softcap %[[C]] mask <causal, window = %[[W]], sinks = %[[N]]> policy
  // CHECK: aligned.attend {{.*}} split %{{[a-z0-9]+}} softcap %[[C]] mask <causal, window = %[[W]], sinks = %[[N]]> policy
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale softcap %c mask <causal, window = %w, sinks = %n> policy <budget, tolerance = 0.25>
      : tensor<2x6x3x32xf16>, !key, !value -> tensor<2x6x3x48xf32>, tensor<2x6x3xf32>, tensor<2x6x3xf32>
  return %acc : tensor<2x6x3x48xf32>
}

// A mask says how many tokens a row sees, which of them the scan leaves out, and what takes no part in the end: each stage has it, and what is newer than the last query.
// A cap is no matter before there are scores. The number of the attention and what a row of nothing but -inf gives are the last stage's. Each stage has all policies.
// CHECK-LABEL: func.func @masked(
// CHECK-SAME: %[[LATER:[a-z0-9]+]]: index)
func.func @masked(%q: tensor<2x6x3x32xf16>, %k: !key, %v: !value, %scale: f32, %later: index) -> tensor<2x6x3x48xf32> {
  // CHECK: aligned.prepare {{.*}} row %{{[a-z0-9]+}} mask <causal, window = 128, sinks = 4> later %[[LATER]] policies [<budget, tolerance = 2.500000e-01>, <budget, tolerance = 5.000000e-01>, <budget, tolerance = 5.000000e-01, key = <bits = 16 to 16>>] outs({{.*}} : tensor<2x6x32xi8>, tensor<7x8xf32>, tensor<48xf32>) :
  // CHECK: aligned.scan {{.*}} split %{{[a-z0-9]+}} softcap 5.000000e+01 mask <causal, window = 128, sinks = 4> later %[[LATER]] policies [<budget, tolerance = 2.500000e-01>, <budget, tolerance = 5.000000e-01>, <budget, tolerance = 5.000000e-01, key = <bits = 16 to 16>>] outs(
  // CHECK-SAME: : tensor<?x6x64xf32>, tensor<?x6x16xf32>, tensor<1x2x6xf32>) :
  // CHECK: aligned.attend {{.*}} split %{{[a-z0-9]+}} softcap 5.000000e+01 mask <causal, window = 128, sinks = 4> later %[[LATER]] policies [<budget, tolerance = 2.500000e-01>, <budget, tolerance = 5.000000e-01>, <budget, tolerance = 5.000000e-01, key = <bits = 16 to 16>>] masked_zero outs(
  // CHECK-SAME: : tensor<1x2x3x48xf32>, tensor<1x2x3xf32>, tensor<1x2x3xf32>) {attention_id = 5 : i32} :
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale softcap 50.0 mask <causal, window = 128, sinks = 4> later %later
      policies [<budget, tolerance = 0.25>, <budget, tolerance = 0.5>, <budget, tolerance = 0.5, key = <bits = 16 to 16>>] masked_zero {attention_id = 5 : i32}
      : tensor<2x6x3x32xf16>, !key, !value -> tensor<2x6x3x48xf32>, tensor<2x6x3xf32>, tensor<2x6x3xf32>
  return %acc : tensor<2x6x3x48xf32>
}

// P8: numbers are added to scores, which the first stage knows nothing of. A sink's logit is what is in a row's softmax before any token: the merge begins with it, and with e^0 for
// its sum. Of the row's own query heads, that is: those of its kv head.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: tensor<2x1x3x?xf16>, %[[LOGITS:[a-z0-9]+]]: tensor<6xf32>)
func.func @numbers(%q: tensor<2x6x3x32xf16>, %k: !key, %v: !value, %scale: f32, %mask: tensor<2x1x3x?xf16>, %logits: tensor<6xf32>) -> (tensor<2x6x3x48xf32>, tensor<2x6x3xf32>) {
  // CHECK-DAG: %[[ONES:.*]] = arith.constant dense<1.000000e+00> : tensor<1x2x3xf32>
  // CHECK-DAG: %[[NOTHING:.*]] = arith.constant dense<0.000000e+00> : tensor<1x2x3x48xf32>
  // CHECK-NOT: aligned.prepare {{.*}}attn_mask
  // CHECK: aligned.prepare {{.*}} row %[[ROW:[a-z0-9]+]] policy
  // CHECK: aligned.scan {{.*}} split %{{[a-z0-9]+}} attn_mask %[[MASK]] : tensor<2x1x3x?xf16> policy <budget, tolerance = 2.500000e-01> outs(
  // CHECK: aligned.attend {{.*}} split %{{[a-z0-9]+}} attn_mask %[[MASK]] : tensor<2x1x3x?xf16> sink_logits %[[LOGITS]] : tensor<6xf32> policy <budget, tolerance = 2.500000e-01> outs(
  // CHECK: %[[HEAD:.*]] = arith.remui %[[ROW]], %c3
  // CHECK: %[[FIRST:.*]] = arith.muli %[[HEAD]], %c2
  // CHECK: %[[OWN:.*]] = tensor.extract_slice %[[LOGITS]][%[[FIRST]]] [2] [1] : tensor<6xf32> to tensor<2xf32>
  // CHECK: %[[ALL:.*]] = linalg.broadcast ins(%[[OWN]] : tensor<2xf32>) outs(%{{.*}} : tensor<1x2x3xf32>) dimensions = [0, 2]
  // CHECK: scf.for {{.*}} iter_args(%{{.*}} = %[[NOTHING]], %{{.*}} = %[[ALL]], %{{.*}} = %[[ONES]])
  // CHECK: aligned.merge
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale attn_mask %mask : tensor<2x1x3x?xf16> sink_logits %logits : tensor<6xf32> policy <budget, tolerance = 0.25>
      : tensor<2x6x3x32xf16>, !key, !value -> tensor<2x6x3x48xf32>, tensor<2x6x3xf32>, tensor<2x6x3xf32>
  return %acc, %sum : tensor<2x6x3x48xf32>, tensor<2x6x3xf32>
}

// CHECK-LABEL: func.func @certified(
func.func @certified(%q: tensor<2x6x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> (tensor<2x6x1x48xf32>, tensor<2x6x1x8xf32>) {
  // CHECK: %[[NONE:.*]] = arith.constant dense<0.000000e+00> : tensor<1x2x1x8xf32>
  // CHECK: %[[ALL:.*]]:2 = scf.forall (%[[ENTRY:.*]], %[[HEAD:.*]]) in (2, 3) shared_outs(%{{[a-z0-9]+}} = %{{[a-z0-9]+}}, %[[CERTIFICATE:.*]] = %{{[a-z0-9]+}})
  // CHECK: aligned.scan
  // CHECK: %[[STATES:.*]]:4 = scf.forall
  // CHECK: %[[STATE:.*]]:4 = aligned.attend {{.*}} tensor<1x2x1x8xf32>) :
  // CHECK: tensor.parallel_insert_slice %[[STATE]]#3 into %{{.*}}[%{{.*}}, 0, 0, 0] [1, 2, 1, 8]
  // CHECK: %[[MERGED:.*]]:4 = scf.for {{.*}} iter_args(%{{.*}}, %[[C0:[a-z0-9]+]] = %[[NONE]]) ->
  // CHECK: %[[C1:.*]] = tensor.extract_slice %[[STATES]]#3
  // CHECK: aligned.merge({{.*}}, %[[C0]]), ({{.*}}, %[[C1]]) : {{.*}} certified tensor<1x2x1x8xf32>
  // CHECK: tensor.parallel_insert_slice %[[MERGED]]#3 into %[[CERTIFICATE]][%[[ENTRY]], %{{.*}}, 0, 0] [1, 2, 1, 8]
  // CHECK: return %[[ALL]]#0, %[[ALL]]#1
  %acc, %max, %sum, %certificate = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25>
      : tensor<2x6x1x32xf16>, !key, !value -> tensor<2x6x1x48xf32>, tensor<2x6x1xf32>, tensor<2x6x1xf32> certified tensor<2x6x1x8xf32>
  return %acc, %certificate : tensor<2x6x1x48xf32>, tensor<2x6x1x8xf32>
}

// Under `exact` query rows are integers of three digits. 97 tokens are two tiles, and one split.
// CHECK-LABEL: func.func @exact(
func.func @exact(%q: tensor<1x2x1x32xf16>, %k: tensor<1x1x97x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x1x97x48xf16, #aligned.planes<fixed<8, 8>, value>>,
                 %scale: f32) -> (tensor<1x2x1x48xf32>, tensor<1x2x1xf32>) {
  // CHECK: %[[ZERO:.*]] = arith.constant 0 : index
  // CHECK: aligned.prepare {{.*}} row %[[ZERO]] policy <exact> outs({{.*}} : tensor<3x2x32xi8>, tensor<3x8xf32>, tensor<48xf32>)
  // CHECK: aligned.scan {{.*}} row %[[ZERO]] split %[[ZERO]] policy <exact> outs({{.*}} : tensor<2x2x64xf32>, tensor<2x2x16xf32>, tensor<1x2x2xf32>) :
  // CHECK: aligned.attend {{.*}} row %[[ZERO]] split %[[ZERO]] policy <exact> outs({{.*}} : tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>) :
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x1x32xf16>, tensor<1x1x97x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x97x48xf16, #aligned.planes<fixed<8, 8>, value>>
      -> tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc, %sum : tensor<1x2x1x48xf32>, tensor<1x2x1xf32>
}

// 2049 tokens are 33 tiles, the last of them a split of its own.
// CHECK-LABEL: func.func @two_splits(
func.func @two_splits(%q: tensor<1x2x1x32xf16>, %k: tensor<1x1x2049x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x1x2049x48xf16, #aligned.planes<fixed<8, 8>, value>>,
                      %scale: f32) -> tensor<1x2x1x48xf32> {
  // CHECK: tensor.empty() : tensor<33x2x64xf32>
  // CHECK: scf.forall (%[[SPLIT:.*]]) in (2) shared_outs(
  // CHECK: %[[FIRST:.*]] = arith.muli %[[SPLIT]], %c32
  // CHECK: %[[LEFT:.*]] = arith.subi %c33, %[[FIRST]]
  // CHECK: arith.minui %[[LEFT]], %c32
  // CHECK: aligned.scan
  // CHECK: scf.forall (%{{.*}}) in (2) shared_outs(
  // CHECK: aligned.attend
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25>
      : tensor<1x2x1x32xf16>, tensor<1x1x2049x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x2049x48xf16, #aligned.planes<fixed<8, 8>, value>>
      -> tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x48xf32>
}

// No tokens, nothing to read: the state is the identity.
// CHECK-LABEL: func.func @no_tokens(
func.func @no_tokens(%q: tensor<1x2x1x32xf16>, %k: tensor<1x1x0x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x1x0x48xf16, #aligned.planes<fixed<8, 8>, value>>,
                     %scale: f32) -> (tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>) {
  // CHECK-NOT: {{= aligned[.]}}
  // CHECK-DAG: %[[ACC:.*]] = arith.constant dense<0.000000e+00> : tensor<1x2x1x48xf32>
  // CHECK-DAG: %[[MAX:.*]] = arith.constant dense<0xFF800000> : tensor<1x2x1xf32>
  // CHECK-DAG: %[[SUM:.*]] = arith.constant dense<0.000000e+00> : tensor<1x2x1xf32>
  // CHECK-NOT: {{= aligned[.]}}
  // CHECK: return %[[ACC]], %[[MAX]], %[[SUM]]
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25>
      : tensor<1x2x1x32xf16>, tensor<1x1x0x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x0x48xf16, #aligned.planes<fixed<8, 8>, value>>
      -> tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc, %max, %sum : tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
}

// How many batch entries there are, caches say; the results have as many as the query.
// CHECK-LABEL: func.func @dynamic_batch(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<?x6x1x32xf16>
func.func @dynamic_batch(%q: tensor<?x6x1x32xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<?x6x1x48xf32> {
  // CHECK: %[[BATCH:.*]] = tensor.dim %[[Q]], %c0
  // CHECK: %[[EMPTY:.*]] = tensor.empty(%[[BATCH]]) : tensor<?x6x1x48xf32>
  // CHECK: scf.forall (%{{.*}}, %{{.*}}) in (2, 3) shared_outs(%{{.*}} = %[[EMPTY]]) -> (tensor<?x6x1x48xf32>)
  // CHECK: aligned.prepare %[[Q]]
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25>
      : tensor<?x6x1x32xf16>, !key, !value -> tensor<?x6x1x48xf32>, tensor<?x6x1xf32>, tensor<?x6x1xf32>
  return %acc : tensor<?x6x1x48xf32>
}

// Dense tensors of several rows and float planes have one kernel each.
// CHECK-LABEL: func.func @others(
func.func @others(%q: tensor<1x2x1x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x32xf16>, %l: tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>,
                  %w: tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, value>>, %scale: f32) -> (tensor<1x2x1x32xf32>, tensor<1x2x1x32xf32>, tensor<1x2x1x32xf32>) {
  // CHECK-NEXT: aligned.decode_attention {{.*}} policy <exact> : tensor<1x2x1x32xf16>, tensor<1x2x?x32xf16>,
  // CHECK-NEXT: aligned.decode_attention {{.*}} policy <alignedkv> : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>,
  // CHECK-NEXT: aligned.decode_attention {{.*}} policy <exact> : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>,
  // CHECK-NEXT: return
  %a:3 = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x2x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16>
      -> tensor<1x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  %b:3 = aligned.decode_attention %q, %l, %w scale %scale policy <alignedkv>
      : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>, tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, value>>
      -> tensor<1x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  %c:3 = aligned.decode_attention %q, %l, %w scale %scale policy <exact>
      : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>, tensor<1x1x?x32xf16, #aligned.planes<float<8, 4, 4>, value>>
      -> tensor<1x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %a#0, %b#0, %c#0 : tensor<1x2x1x32xf32>, tensor<1x2x1x32xf32>, tensor<1x2x1x32xf32>
}

// What lies in buffers already stays, for convert-aligned-to-cpu to refuse.
// CHECK-LABEL: func.func @buffers(
// CHECK-NEXT: aligned.decode_attention
// CHECK-NEXT: return
func.func @buffers(%q: memref<1x2x1x32xf16>, %k: memref<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: memref<1x1x?x48xf16, #aligned.planes<fixed<8, 8>, value>>, %scale: f32,
                   %acc: memref<1x2x1x48xf32>, %max: memref<1x2x1xf32>, %sum: memref<1x2x1xf32>) {
  aligned.decode_attention %q, %k, %v scale %scale policy <exact> into %acc, %max, %sum
      : memref<1x2x1x32xf16>, memref<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, memref<1x1x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
        into memref<1x2x1x48xf32>, memref<1x2x1xf32>, memref<1x2x1xf32>
  return
}

// Stages of several splits come one split at a time, from the one they begin with; those of one stay.
// CHECK-LABEL: func.func @several(
// CHECK-SAME: %[[K:[a-z0-9]+]]: tensor<{{.*}}, key>>, %{{[a-z0-9]+}}: tensor<{{.*}}, value>>, %[[SCALE:[a-z0-9]+]]: f32, %[[ROW:[a-z0-9]+]]: index, %[[FROM:[a-z0-9]+]]: index
// CHECK: scf.forall (%[[I:.*]]) in (%{{.*}}) shared_outs(%[[S:.*]] = %{{.*}}, %[[T:.*]] = %{{.*}}, %[[P:.*]] = %{{.*}})
// CHECK-DAG: %[[TILES:.*]] = arith.ceildivui
// CHECK-DAG: %[[SPLIT:.*]] = arith.addi %[[FROM]], %[[I]]
// CHECK-DAG: %[[FIRST:.*]] = arith.muli %[[SPLIT]], %c32
// CHECK-DAG: %[[LEFT:.*]] = arith.subi %[[TILES]], %[[FIRST]]
// CHECK-DAG: %[[COUNT:.*]] = arith.minui %[[LEFT]], %c32
// CHECK-DAG: %[[AT:.*]] = arith.muli %[[I]], %c32
// CHECK-DAG: tensor.extract_slice %[[S]][%[[AT]], 0, 0] [%[[COUNT]], 4, 64]
// CHECK-DAG: tensor.extract_slice %[[T]][%[[AT]], 0, 0] [%[[COUNT]], 4, 16]
// CHECK-DAG: tensor.extract_slice %[[P]][%[[I]], 0, 0] [1, 2, 4]
// CHECK: %[[ONE:.*]]:3 = aligned.scan {{.*}} split %[[SPLIT]]
// CHECK: tensor.parallel_insert_slice %[[ONE]]#0 into %[[S]][%[[AT]], 0, 0] [%[[COUNT]], 4, 64]
// CHECK: tensor.parallel_insert_slice %[[ONE]]#2 into %[[P]][%[[I]], 0, 0] [1, 2, 4]
// CHECK-NOT: scf.forall
// CHECK: aligned.scan {{.*}} split %[[FROM]]
func.func @several(%q: tensor<2x6x2x32xf16>, %k: !key, %v: !value, %scale: f32, %row: index, %split: index, %d: tensor<2x4x32xi8>, %f: tensor<5x8xf32>,
                   %s: tensor<?x4x64xf32>, %t: tensor<?x4x16xf32>, %part: tensor<?x2x4xf32>, %one: tensor<1x2x4xf32>) -> (tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<?x2x4xf32>, tensor<1x2x4xf32>) {
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25>
      outs(%s, %t, %part : tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<?x2x4xf32>) : tensor<2x6x2x32xf16>, !key, !value, tensor<2x4x32xi8>, tensor<5x8xf32>
      -> tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<?x2x4xf32>
  %1:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25>
      outs(%s, %t, %one : tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<1x2x4xf32>) : tensor<2x6x2x32xf16>, !key, !value, tensor<2x4x32xi8>, tensor<5x8xf32>
      -> tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<1x2x4xf32>
  return %0#0, %0#1, %0#2, %1#2 : tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<?x2x4xf32>, tensor<1x2x4xf32>
}

// Dense attention of one row is split by its tokens where it has more than a split's. The state of a split of nothing but -inf is without weight, and that of a row is told in
// the end.
// CHECK-LABEL: func.func @dense_row(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<1x2x1x32xf16>, %[[K:[a-z0-9]+]]: tensor<1x1x?x32xf16>, %[[V:[a-z0-9]+]]: tensor<1x1x?x48xf16>, %[[SCALE:[a-z0-9]+]]: f32)
// CHECK: %[[TOKENS:.*]] = tensor.dim %[[K]], %c2
// CHECK: %[[WHOLE:.*]] = arith.cmpi ule, %[[TOKENS]], %c2048
// CHECK: %[[STATE:.*]]:2 = scf.if %[[WHOLE]]
// CHECK-NEXT: aligned.decode_attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] policy <exact> masked_zero :
// CHECK-NEXT: scf.yield
// CHECK: %[[SPLITS:.*]] = arith.ceildivui %[[TOKENS]], %c2048
// CHECK: %[[STATES:.*]]:3 = scf.forall (%[[SPLIT:.*]]) in (%[[SPLITS]])
// CHECK: %[[FIRST:.*]] = arith.muli %[[SPLIT]], %c2048
// CHECK: %[[LEFT:.*]] = arith.subi %[[TOKENS]], %[[FIRST]]
// CHECK: %[[COUNT:.*]] = arith.minui %[[LEFT]], %c2048
// CHECK-DAG: %[[KEYS:.*]] = tensor.extract_slice %[[K]][0, 0, %[[FIRST]], 0] [1, 1, %[[COUNT]], 32]
// CHECK-DAG: %[[VALUES:.*]] = tensor.extract_slice %[[V]][0, 0, %[[FIRST]], 0] [1, 1, %[[COUNT]], 48]
// CHECK: aligned.decode_attention %[[Q]], %[[KEYS]], %[[VALUES]] scale %[[SCALE]] policy <exact> masked_zero :
// CHECK: scf.for {{.*}} = %c0 to %[[SPLITS]]
// CHECK: aligned.merge
// CHECK: scf.yield
// CHECK: %[[SUM:.*]] = linalg.map ins(%[[STATE]]#1 :
// CHECK: arith.select
// CHECK: return %[[STATE]]#0, %[[SUM]]
// Kernels that split rows themselves get it whole.
// ROWS-LABEL: func.func @dense_row(
// ROWS-NEXT: %[[ACC:.*]], %[[MAX:.*]], %[[SUM:.*]] = aligned.decode_attention %{{.*}} policy <exact> :
// ROWS-NEXT: return %[[ACC]], %[[SUM]]
func.func @dense_row(%q: tensor<1x2x1x32xf16>, %k: tensor<1x1x?x32xf16>, %v: tensor<1x1x?x48xf16>, %scale: f32) -> (tensor<1x2x1x48xf32>, tensor<1x2x1xf32>) {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x48xf16>
      -> tensor<1x2x1x48xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc, %sum : tensor<1x2x1x48xf32>, tensor<1x2x1xf32>
}

// A short sequence needs one split, and masks go by where tokens stand.
// CHECK-LABEL: func.func @dense_whole(
// CHECK-NOT: aligned.merge
// CHECK-COUNT-2: aligned.decode_attention
func.func @dense_whole(%q: tensor<1x2x1x32xf16>, %short: tensor<1x1x2048x32xf16>, %k: tensor<1x1x?x32xf16>, %scale: f32) -> (tensor<1x2x1x32xf32>, tensor<1x2x1x32xf32>) {
  %a:3 = aligned.decode_attention %q, %short, %short scale %scale policy <exact> : tensor<1x2x1x32xf16>, tensor<1x1x2048x32xf16>, tensor<1x1x2048x32xf16>
      -> tensor<1x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  %b:3 = aligned.decode_attention %q, %k, %k scale %scale mask <causal, window = 8> policy <exact> : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16>
      -> tensor<1x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %a#0, %b#0 : tensor<1x2x1x32xf32>, tensor<1x2x1x32xf32>
}
