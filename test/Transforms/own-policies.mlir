// RUN: aligned-opt %s --aligned-store-kv-caches | FileCheck %s
// RUN: aligned-opt %s --aligned-store-kv-caches=prefer-float | FileCheck %s --check-prefix=FLOAT
// RUN: aligned-opt %s --aligned-store-kv-caches --aligned-fuse-decode-attention=policy=fast | FileCheck %s --check-prefix=FUSED
// RUN: aligned-opt %s --aligned-certify-attention --split-input-file | FileCheck %s --check-prefix=CERTIFIED

// An attention's own policies decide what its caches are stored in where the format is left open, and go ahead of the option.

!q = tensor<1x6x1x32xf16>
!new = tensor<1x2x1x32xf16>
!cache = tensor<1x2x?x32xf16>

// CHECK-LABEL: func.func @rule(
// CHECK-SAME: float<8, 4, 4>, key>>{{.*}}float<8, 4, 4>, value>>
// FUSED: aligned.decode_attention {{.*}} policy <alignedkv, key = <bits = 0 to 8>> :
func.func @rule(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> !q {
  %out = aligned.attention %q, %k, %v scale %scale policy <alignedkv, key = <bits = 0 to 8>> : !q, !cache, !cache -> !q
  return %out : !q
}

// The attention in front has no wish of its own, exact can read any format, and the last one decides.
// FLOAT-LABEL: func.func @shared(
// FLOAT-SAME: fixed<4, 4, 8>, key>>{{.*}}fixed<4, 4, 8>, value>>
// FUSED-LABEL: func.func @shared(
// FUSED: policy <budget, tolerance = 7.812500e-03> {attention_id = 1 : i32}
// FUSED: policies [<exact>, <exact>] {attention_id = 2 : i32}
// FUSED: policies [<budget, tolerance = 2.500000e-01>, <budget, tolerance = 5.000000e-01, value = <newest = 3>>] {attention_id = 3 : i32}
func.func @shared(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> (!q, !q, !q) {
  %a = aligned.attention %q, %k, %v scale %scale : !q, !cache, !cache -> !q
  %b = aligned.attention %q, %k, %v scale %scale policies [<exact>, <exact>] : !q, !cache, !cache -> !q
  %c = aligned.attention %q, %k, %v scale %scale policies [<budget, tolerance = 0.25>, <budget, tolerance = 0.5, value = <newest = 3>>]
      : !q, !cache, !cache -> !q
  return %a, %b, %c : !q, !q, !q
}

// Without any the option of the pass decides.
// CHECK-LABEL: func.func @none(
// CHECK-SAME: fixed<4, 4, 8>, key>>
// FLOAT-LABEL: func.func @none(
// FLOAT-SAME: float<8, 4, 4>, key>>
func.func @none(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> !q {
  %out = aligned.attention %q, %k, %v scale %scale policy <exact> : !q, !cache, !cache -> !q
  return %out : !q
}

// -----

// CERTIFIED-LABEL: func.func @alone(
// CERTIFIED: aligned.attention {{.*}} policy <budget, tolerance = 2.500000e-01> masked_zero : {{.*}} certified
func.func @alone(%q: tensor<1x6x1x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x32xf16>, %scale: f32) -> tensor<1x6x1x32xf16> {
  %out = aligned.attention %q, %k, %v scale %scale policy <budget, tolerance = 0.25> masked_zero
      : tensor<1x6x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16> -> tensor<1x6x1x32xf16>
  return %out : tensor<1x6x1x32xf16>
}
