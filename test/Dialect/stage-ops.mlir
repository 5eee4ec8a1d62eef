// RUN: aligned-opt %s | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --mlir-print-op-generic | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --canonicalize --cse | FileCheck %s --check-prefix=KEPT

// Stages of a decode step over fixed planes: 2 batch entries, 3 kv heads with 2 query heads each, and of each query head 2 queries, so 4 query rows a row.

!query = tensor<2x6x2x32xf16>
!key = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!digits = tensor<2x4x32xi8>
!facts = tensor<5x8xf32>
!mean = tensor<48xf32>
!scores = tensor<?x4x64xf32>
!tops = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
!parts = tensor<?x2x4xf32>
!acc = tensor<1x2x2x48xf32>
!sum = tensor<1x2x2xf32>

// CHECK-LABEL: func.func @prepare(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x6x2x32xf16>, %[[K:[a-z0-9]+]]: tensor<{{.*}}, key>>, %[[V:[a-z0-9]+]]: tensor<{{.*}}, value>>, %[[SCALE:[a-z0-9]+]]: f32, %[[ROW:[a-z0-9]+]]: index,
func.func @prepare(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %d: !digits, %f: !facts, %m: !mean) -> (!digits, !facts, !mean) {
  // CHECK: %[[ALL:.*]]:3 = aligned.prepare %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] row %[[ROW]] policy <budget, tolerance = 2.500000e-01> outs(%{{.*}}, %{{.*}}, %{{.*}} : tensor<2x4x32xi8>, tensor<5x8xf32>, tensor<48xf32>) :
  // CHECK-SAME: tensor<2x6x2x32xf16>, tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>> -> tensor<2x4x32xi8>, tensor<5x8xf32>, tensor<48xf32>
  // CHECK: return %[[ALL]]#0, %[[ALL]]#1, %[[ALL]]#2
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
      -> !digits, !facts, !mean
  return %0#0, %0#1, %0#2 : !digits, !facts, !mean
}

// Query rows that are to be exact are integers of three digits. Masks say how many tokens a row sees, each kv head may have a policy of its own.
// CHECK-LABEL: func.func @prepare_more(
// CHECK-SAME: %[[LATER:[a-z0-9]+]]: index, %[[D:[a-z0-9]+]]: tensor<3x4x32xi8>
func.func @prepare_more(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %later: index, %d: tensor<3x4x32xi8>, %f: !facts, %m: !mean) -> tensor<3x4x32xi8> {
  // CHECK: aligned.prepare {{.*}} mask <causal, window = 64, sinks = 4> later %[[LATER]] policies [<exact>, <exact>, <exact>] outs(%[[D]],
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %row mask <causal, window = 64, sinks = 4> later %later policies [<exact>, <exact>, <exact>]
      outs(%d, %f, %m : tensor<3x4x32xi8>, !facts, !mean) : !query, !key, !value -> tensor<3x4x32xi8>, !facts, !mean
  return %0#0 : tensor<3x4x32xi8>
}

// CHECK-LABEL: func.func @scan(
// CHECK-SAME: %[[SCALE:[a-z0-9]+]]: f32, %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index, %[[LATER:[a-z0-9]+]]: index, %[[D:[a-z0-9]+]]: tensor<2x4x32xi8>, %[[F:[a-z0-9]+]]: tensor<5x8xf32>,
func.func @scan(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %split: index, %later: index, %d: !digits, %f: !facts, %s: !scores, %t: !tops, %p: !part)
    -> (!scores, !tops, !part) {
  // CHECK: %[[A:.*]]:3 = aligned.scan %{{.*}}, %{{.*}}, %{{.*}}, %[[D]], %[[F]] scale %[[SCALE]] row %[[ROW]] split %[[SPLIT]] policy <budget, tolerance = 2.500000e-01> outs(%{{.*}}, %{{.*}}, %{{.*}} : tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<1x2x4xf32>) :
  // CHECK-SAME: tensor<2x4x32xi8>, tensor<5x8xf32> -> tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<1x2x4xf32>
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25> outs(%s, %t, %p : !scores, !tops, !part)
      : !query, !key, !value, !digits, !facts -> !scores, !tops, !part
  // CHECK: %[[B:.*]]:3 = aligned.scan {{.*}} split %[[SPLIT]] softcap 5.000000e+01 mask <causal> later %[[LATER]] policy <budget, tolerance = 2.500000e-01> outs(%[[A]]#0, %[[A]]#1, %[[A]]#2 :
  %1:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap 50.0 mask <causal> later %later policy <budget, tolerance = 0.25>
      outs(%0#0, %0#1, %0#2 : !scores, !tops, !part) : !query, !key, !value, !digits, !facts -> !scores, !tops, !part
  return %1#0, %1#1, %1#2 : !scores, !tops, !part
}

// CHECK-LABEL: func.func @attend(
// CHECK-SAME: %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index, %[[LATER:[a-z0-9]+]]: index, %[[D:[a-z0-9]+]]: tensor<2x4x32xi8>, %[[F:[a-z0-9]+]]: tensor<5x8xf32>,
// CHECK-SAME: %[[M:[a-z0-9]+]]: tensor<48xf32>, %[[S:[a-z0-9]+]]: tensor<?x4x64xf32>, %[[T:[a-z0-9]+]]: tensor<?x4x16xf32>, %[[P:[a-z0-9]+]]: tensor<?x2x4xf32>,
func.func @attend(%q: !query, %k: !key, %v: !value, %row: index, %split: index, %later: index, %d: !digits, %f: !facts, %m: !mean, %s: !scores, %t: !tops, %p: !parts,
                  %a: !acc, %x: !sum, %c: tensor<1x2x2x8xf32>) -> (!acc, !sum, !sum, tensor<1x2x2x8xf32>) {
  // CHECK: %[[STATE:.*]]:3 = aligned.attend %{{.*}}, %{{.*}}, %{{.*}}, %[[D]], %[[F]], %[[M]], %[[S]], %[[T]], %[[P]] row %[[ROW]] split %[[SPLIT]] policy <budget, tolerance = 2.500000e-01> outs(%{{.*}}, %{{.*}}, %{{.*}} : tensor<1x2x2x48xf32>, tensor<1x2x2xf32>, tensor<1x2x2xf32>) :
  // CHECK-SAME: tensor<48xf32>, tensor<?x4x64xf32>, tensor<?x4x16xf32>, tensor<?x2x4xf32> -> tensor<1x2x2x48xf32>, tensor<1x2x2xf32>, tensor<1x2x2xf32>
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split policy <budget, tolerance = 0.25> outs(%a, %x, %x : !acc, !sum, !sum)
      : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts -> !acc, !sum, !sum
  // CHECK: aligned.attend {{.*}} split %[[SPLIT]] softcap 5.000000e+01 mask <causal> later %[[LATER]] policy <budget, {{.*}}> masked_zero outs(%[[STATE]]#0, %[[STATE]]#1, %[[STATE]]#2, %{{[a-z0-9]+}} :
  // CHECK-SAME: tensor<1x2x2x8xf32>) {attention_id = 3 : i32} :
  // CHECK-SAME: -> tensor<1x2x2x48xf32>, tensor<1x2x2xf32>, tensor<1x2x2xf32>, tensor<1x2x2x8xf32>
  %1:4 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split softcap 50.0 mask <causal> later %later
      policy <budget, tolerance = 0.25, value = <bits = 4 to 12>> masked_zero outs(%0#0, %0#1, %0#2, %c : !acc, !sum, !sum, tensor<1x2x2x8xf32>) {attention_id = 3 : i32}
      : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts -> !acc, !sum, !sum, tensor<1x2x2x8xf32>
  return %1#0, %1#1, %1#2, %1#3 : !acc, !sum, !sum, tensor<1x2x2x8xf32>
}

// P8: what is added to scores both have, what is added to their sum the last one.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: tensor<2x1x2x?xf32>, %[[LOGITS:[a-z0-9]+]]: tensor<6xf32>,
func.func @numbers(%q: !query, %k: !key, %v: !value, %mask: tensor<2x1x2x?xf32>, %logits: tensor<6xf32>, %scale: f32, %row: index, %split: index, %later: index, %d: !digits, %f: !facts,
                   %m: !mean, %s: !scores, %t: !tops, %part: !part, %p: !parts, %a: !acc, %x: !sum) -> (!scores, !acc) {
  // CHECK: aligned.scan {{.*}} mask <causal> later %{{[a-z0-9]+}} attn_mask %[[MASK]] : tensor<2x1x2x?xf32> policy <budget, tolerance = 2.500000e-01> outs(
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split mask <causal> later %later attn_mask %mask : tensor<2x1x2x?xf32> policy <budget, tolerance = 0.25>
      outs(%s, %t, %part : !scores, !tops, !part) : !query, !key, !value, !digits, !facts -> !scores, !tops, !part
  // CHECK: aligned.attend {{.*}} mask <causal> later %{{[a-z0-9]+}} attn_mask %[[MASK]] : tensor<2x1x2x?xf32> sink_logits %[[LOGITS]] : tensor<6xf32> policy <budget, tolerance = 2.500000e-01> outs(
  %1:3 = aligned.attend %q, %k, %v, %d, %f, %m, %0#0, %t, %p row %row split %split mask <causal> later %later attn_mask %mask : tensor<2x1x2x?xf32> sink_logits %logits : tensor<6xf32>
      policy <budget, tolerance = 0.25> outs(%a, %x, %x : !acc, !sum, !sum) : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts -> !acc, !sum, !sum
  return %0#0, %1#0 : !scores, !acc
}

// On tensors a stage is a value: one that nobody wants goes, and one that is there serves twice.
// KEPT-LABEL: func.func @pure(
// KEPT-NEXT: %[[ONE:.*]]:3 = aligned.prepare
// KEPT-NEXT: return %[[ONE]]#1, %[[ONE]]#1
func.func @pure(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %d: !digits, %f: !facts, %m: !mean, %s: !scores, %t: !tops, %p: !part) -> (!facts, !facts) {
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
      -> !digits, !facts, !mean
  %1:3 = aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
      -> !digits, !facts, !mean
  %2:3 = aligned.scan %q, %k, %v, %0#0, %0#1 scale %scale row %row split %row policy <budget, tolerance = 0.25> outs(%s, %t, %p : !scores, !tops, !part)
      : !query, !key, !value, !digits, !facts -> !scores, !tops, !part
  return %0#1, %1#1 : !facts, !facts
}

// On buffers a cache is a memref in memory of its planes, and what a stage gives lies in its outs, wherever those lie: as a rule they are parts of larger arrays.
// CHECK-LABEL: func.func @buffers(
// CHECK: aligned.prepare {{.*}} outs(%{{.*}}, %{{.*}}, %{{.*}} : memref<2x4x32xi8>, memref<5x8xf32>, memref<48xf32>) : memref<2x6x2x32xf16>, memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>{{$}}
// CHECK: aligned.scan {{.*}} outs(%{{.*}}, %{{.*}}, %{{.*}} : memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, memref<?x4x16xf32>, memref<1x2x4xf32, strided<[8, 4, 1], offset: ?>>) :
// CHECK-SAME: memref<2x4x32xi8>, memref<5x8xf32>{{$}}
// CHECK: aligned.attend {{.*}} masked_zero outs(%{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} : memref<1x2x2x48xf32>, memref<1x2x2xf32>, memref<1x2x2xf32>, memref<1x2x2x8xf32>) {attention_id = 3 : i32} :
// CHECK-SAME: memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, memref<?x4x16xf32>, memref<?x2x4xf32>{{$}}

// What is done to memory is done, and done again.
// KEPT-LABEL: func.func @buffers(
// KEPT-COUNT-2: aligned.prepare
// KEPT: aligned.scan
// KEPT: aligned.attend
func.func @buffers(%q: memref<2x6x2x32xf16>, %k: memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>,
                   %scale: f32, %row: index, %split: index, %d: memref<2x4x32xi8>, %f: memref<5x8xf32>, %m: memref<48xf32>,
                   %s: memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, %t: memref<?x4x16xf32>, %part: memref<1x2x4xf32, strided<[8, 4, 1], offset: ?>>,
                   %parts: memref<?x2x4xf32>, %a: memref<1x2x2x48xf32>, %x: memref<1x2x2xf32>, %l: memref<1x2x2xf32>, %c: memref<1x2x2x8xf32>) {
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : memref<2x4x32xi8>, memref<5x8xf32>, memref<48xf32>)
      : memref<2x6x2x32xf16>, memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : memref<2x4x32xi8>, memref<5x8xf32>, memref<48xf32>)
      : memref<2x6x2x32xf16>, memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25>
      outs(%s, %t, %part : memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, memref<?x4x16xf32>, memref<1x2x4xf32, strided<[8, 4, 1], offset: ?>>)
      : memref<2x6x2x32xf16>, memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>, memref<2x4x32xi8>, memref<5x8xf32>
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %row split %split policy <budget, tolerance = 0.25> masked_zero
      outs(%a, %x, %l, %c : memref<1x2x2x48xf32>, memref<1x2x2xf32>, memref<1x2x2xf32>, memref<1x2x2x8xf32>) {attention_id = 3 : i32}
      : memref<2x6x2x32xf16>, memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>, memref<2x4x32xi8>, memref<5x8xf32>,
        memref<48xf32>, memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, memref<?x4x16xf32>, memref<?x2x4xf32>
  return
}

// Numbers that only the program knows each stage is given, but for prepare's softcap: it sees no scores.
// CHECK-LABEL: func.func @given(
// CHECK-SAME: %[[C:[a-z0-9]+]]: f32, %[[W:[a-z0-9]+]]: index, %[[N:[a-z0-9]+]]: index, %[[LATER:[a-z0-9]+]]: index,
func.func @given(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %split: index, %c: f32, %w: index, %n: index, %later: index, %d: !digits, %f: !facts, %m: !mean, %s: !scores,
                 %t: !tops, %p: !part, %all: !parts, %a: !acc, %x: !sum) -> (!digits, !scores, !acc) {
  // CHECK: aligned.prepare {{.*}} mask <causal, window = %[[W]], sinks = %[[N]]> later %[[LATER]] policy
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %row mask <causal, window = %w, sinks = %n> later %later policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean)
      : !query, !key, !value -> !digits, !facts, !mean
  // CHECK: aligned.scan {{.*}} softcap %[[C]] mask <window = %[[W]]> policy
  %1:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap %c mask <window = %w> policy <budget, tolerance = 0.25> outs(%s, %t, %p : !scores, !tops, !part)
      : !query, !key, !value, !digits, !facts -> !scores, !tops, !part
  // CHECK: aligned.attend {{.*}} softcap %[[C]] mask <causal, window = 8, sinks = %[[N]]> later %[[LATER]] policy
  %2:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %all row %row split %split softcap %c mask <causal, window = 8, sinks = %n> later %later policy <budget, tolerance = 0.25>
      outs(%a, %x, %x : !acc, !sum, !sum) : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts -> !acc, !sum, !sum
  return %0#0, %1#0, %2#0 : !digits, !scores, !acc
}
