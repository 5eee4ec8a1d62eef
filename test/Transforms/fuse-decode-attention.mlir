// RUN: aligned-opt %s --aligned-fuse-decode-attention | FileCheck %s
// RUN: aligned-opt %s --aligned-fuse-decode-attention=policy=tight | FileCheck %s --check-prefix=TIGHT
// RUN: aligned-opt %s --aligned-fuse-decode-attention=policy=fast | FileCheck %s --check-prefix=FAST
// RUN: aligned-opt %s --aligned-fuse-decode-attention="policy=budget tolerance=0.125" | FileCheck %s --check-prefix=BUDGET
// RUN: aligned-opt %s --aligned-fuse-decode-attention=policy=exact | FileCheck %s --check-prefix=EXACT

!key = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x3x?x48xf16, #aligned.planes<fixed<4, 4, 8>, value>>
!q = tensor<1x9x1x64xf16>

// CHECK-LABEL: func.func @split(
// CHECK-SAME: %[[Q:.*]]: tensor<1x9x1x64xf16>, %[[K:.*]]: tensor<1x3x?x64xf16, #{{[^%]*}}%[[V:.*]]: tensor<1x3x?x48xf16, #{{[^%]*}}%[[SCALE:.*]]: f32
// CHECK: %[[ACC:.*]], %{{.*}}, %[[SUM:.*]] = aligned.decode_attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] policy <budget, tolerance = 0.001953125> masked_zero :
// CHECK-SAME: -> tensor<1x9x1x48xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
// CHECK: %[[OUT:.*]] = aligned.finish %[[ACC]], %[[SUM]] : {{.*}} -> tensor<1x9x1x48xbf16>
// CHECK: return %[[OUT]]
// TIGHT: policy <budget, tolerance = 2.44140625E-4>
// FAST: policy <budget, tolerance = 7.812500e-03>
// BUDGET: policy <budget, tolerance = 1.250000e-01>
// EXACT: policy <exact>
func.func @split(%q: !q, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x1x48xbf16> {
  %out = aligned.attention %q, %k, %v scale %scale masked_zero : !q, !key, !value -> tensor<1x9x1x48xbf16>
  return %out : tensor<1x9x1x48xbf16>
}

// Dense caches have no bits to choose from. Attention is numbered through the module.
// CHECK-LABEL: func.func @dense(
// CHECK: aligned.decode_attention {{.*}} policy <exact> {attention_id = 1 : i32}
// CHECK: aligned.decode_attention {{.*}} policy <exact> {attention_id = 2 : i32}
// TIGHT-LABEL: func.func @dense(
// TIGHT: policy <exact>
func.func @dense(%q: tensor<?x9x1x64xf16>, %k: tensor<?x3x97x64xf16>, %v: tensor<?x3x97x64xf16>, %scale: f32) -> tensor<2x9x1x64xf16> {
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<?x9x1x64xf16>, tensor<?x3x97x64xf16>, tensor<?x3x97x64xf16> -> tensor<?x9x1x64xf16>
  // The result may know more of its shape than the query does.
  // CHECK: tensor.cast %{{.*}} : tensor<?x9x1x64xf16> to tensor<2x9x1x64xf16>
  %1 = aligned.attention %0, %k, %v scale %scale : tensor<?x9x1x64xf16>, tensor<?x3x97x64xf16>, tensor<?x3x97x64xf16> -> tensor<2x9x1x64xf16>
  return %1 : tensor<2x9x1x64xf16>
}

// 3 heads x 11 queries are more than the 32 rows of a kernel. 11 is prime, so queries are taken one by one.
// CHECK-LABEL: func.func @eleven_queries(
// CHECK-SAME: %[[Q:.*]]: tensor<1x9x11x64xf16>
// CHECK: %[[EMPTY:.*]] = tensor.empty() : tensor<1x9x11x48xf16>
// CHECK: %[[ALL:.*]] = scf.for %[[I:.*]] = %{{.*}} to %c11{{[_0-9]*}} step %c1{{[_0-9]*}} iter_args(%[[SO_FAR:.*]] = %[[EMPTY]])
// CHECK: %[[ONE:.*]] = tensor.extract_slice %[[Q]][0, 0, %[[I]], 0] [1, 9, 1, 64] [1, 1, 1, 1]
// CHECK: aligned.decode_attention %[[ONE]], {{.*}} {attention_id = 3 : i32}
// CHECK: %[[OUT:.*]] = aligned.finish
// CHECK: tensor.insert_slice %[[OUT]] into %[[SO_FAR]][0, 0, %[[I]], 0] [1, 9, 1, 48] [1, 1, 1, 1]
// CHECK: return %[[ALL]]
func.func @eleven_queries(%q: tensor<1x9x11x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x11x48xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x9x11x64xf16>, !key, !value -> tensor<1x9x11x48xf16>
  return %out : tensor<1x9x11x48xf16>
}

// 15 queries of 3 heads go five by five, as many as divide 15 and give at most 32 rows.
// CHECK-LABEL: func.func @fifteen_queries(
// CHECK: scf.for {{.*}} to %c15{{[_0-9]*}} step %c5
// CHECK: aligned.decode_attention {{.*}} : tensor<1x9x5x64xf16>
func.func @fifteen_queries(%q: tensor<1x9x15x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x15x48xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x9x15x64xf16>, !key, !value -> tensor<1x9x15x48xf16>
  return %out : tensor<1x9x15x48xf16>
}

// CHECK-LABEL: func.func @some_queries(
// CHECK: %[[COUNT:.*]] = tensor.dim
// CHECK: scf.for {{.*}} to %[[COUNT]] step %c1
// CHECK: aligned.decode_attention {{.*}} : tensor<1x9x1x64xf16>
func.func @some_queries(%q: tensor<1x9x?x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x?x48xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x9x?x64xf16>, !key, !value -> tensor<1x9x?x48xf16>
  return %out : tensor<1x9x?x48xf16>
}

// A mask and a softcap stay what they are where one kernel takes all queries,
// CHECK-LABEL: func.func @masked(
// CHECK: aligned.decode_attention {{.*}} scale %{{[^ ]*}} softcap 5.000000e+01 mask <causal, window = 100> policy <budget, tolerance = 0.001953125> {attention_id
func.func @masked(%q: tensor<1x9x3x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x3x48xf16> {
  %out = aligned.attention %q, %k, %v scale %scale softcap 50.0 mask <causal, window = 100> : tensor<1x9x3x64xf16>, !key, !value -> tensor<1x9x3x48xf16>
  return %out : tensor<1x9x3x48xf16>
}

// and else each stretch is told how many queries come after it.
// CHECK-LABEL: func.func @masked_stretches(
// CHECK-DAG: %[[ALL:.*]] = arith.constant 15 : index
// CHECK: scf.for %[[I:[^ ]*]] = %{{[^ ]*}} to %[[ALL]] step
// CHECK: %[[FIVE:.*]] = arith.constant 5 : index
// CHECK: %[[LAST:.*]] = arith.subi %[[ALL]], %[[FIVE]] : index
// CHECK: %[[LATER:.*]] = arith.subi %[[LAST]], %[[I]] : index
// CHECK: aligned.decode_attention {{.*}} mask <causal> later %[[LATER]] policy {{.*}} : tensor<1x9x5x64xf16>
func.func @masked_stretches(%q: tensor<1x9x15x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x15x48xf16> {
  %out = aligned.attention %q, %k, %v scale %scale mask <causal> : tensor<1x9x15x64xf16>, !key, !value -> tensor<1x9x15x48xf16>
  return %out : tensor<1x9x15x48xf16>
}
