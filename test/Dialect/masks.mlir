// RUN: aligned-opt %s | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --mlir-print-op-generic | aligned-opt | FileCheck %s

// A11, A12: what a query sees, and how far a score may go.

!q = tensor<1x9x3x64xf16>
!out = tensor<1x9x3x64xf32>
!row = tensor<1x9x3xf32>
!key = tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, value>>

// CHECK-LABEL: func.func @attention(
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} mask <causal> :
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} mask <window = 1024> masked_zero :
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} mask <causal, window = 1, sinks = 4> policy <exact> :
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} softcap 5.000000e+01 :
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} softcap 3.000000e+01 mask <causal, window = 8> policy <alignedkv> masked_zero {some.attribute} :
func.func @attention(%q: !q, %k: !key, %v: !value, %s: f32) -> !out {
  %0 = aligned.attention %q, %k, %v scale %s mask <causal> : !q, !key, !value -> !out
  %1 = aligned.attention %q, %k, %v scale %s mask <window = 1024> masked_zero : !q, !key, !value -> !out
  %2 = aligned.attention %q, %k, %v scale %s mask <sinks = 4, window = 1, causal> policy <exact> : !q, !key, !value -> !out
  %3 = aligned.attention %q, %k, %v scale %s softcap 50.0 : !q, !key, !value -> !out
  %4 = aligned.attention %q, %k, %v scale %s softcap 30.0 mask <causal, window = 8> policy <alignedkv> masked_zero {some.attribute} : !q, !key, !value -> !out
  return %4 : !out
}

// CHECK-LABEL: func.func @decode_attention(
// CHECK-SAME: %[[LATER:[a-z0-9]*]]: index)
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} softcap 5.000000e+01 mask <window = 8, sinks = 4> policy <exact> masked_zero :
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} mask <causal> later %[[LATER]] policy <budget, tolerance = 1.250000e-01> {site = 2 : i32} :
func.func @decode_attention(%q: !q, %k: !key, %v: !value, %s: f32, %later: index) -> (!out, !row) {
  %a:3 = aligned.decode_attention %q, %k, %v scale %s softcap 50.0 mask <window = 8, sinks = 4> policy <exact> masked_zero
      : !q, !key, !value -> !out, !row, !row
  %b:3 = aligned.decode_attention %q, %k, %v scale %s mask <causal> later %later policy <budget, tolerance = 0.125> {site = 2 : i32}
      : !q, !key, !value -> !out, !row, !row
  return %a#0, %b#1 : !out, !row
}

// The attribute by itself.
// CHECK-LABEL: func.func private @alone
// CHECK-SAME: #aligned.mask<causal, window = 3>
func.func private @alone() attributes {mask = #aligned.mask<causal, window = 3>}
