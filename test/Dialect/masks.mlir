// RUN: aligned-opt %s | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --mlir-print-op-generic | aligned-opt | FileCheck %s

// A11, A12: what a query sees, and how far a score may go.

!q = tensor<1x9x3x64xf16>
!out = tensor<1x9x3x64xf32>
!row = tensor<1x9x3xf32>
!key = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>

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
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} mask <causal> later %[[LATER]] policy <budget, tolerance = 1.250000e-01> {attention_id = 2 : i32} :
func.func @decode_attention(%q: !q, %k: !key, %v: !value, %s: f32, %later: index) -> (!out, !row) {
  %a:3 = aligned.decode_attention %q, %k, %v scale %s softcap 50.0 mask <window = 8, sinks = 4> policy <exact> masked_zero
      : !q, !key, !value -> !out, !row, !row
  %b:3 = aligned.decode_attention %q, %k, %v scale %s mask <causal> later %later policy <budget, tolerance = 0.125> {attention_id = 2 : i32}
      : !q, !key, !value -> !out, !row, !row
  return %a#0, %b#1 : !out, !row
}

// Numbers that only the program knows are operands, some or all of them.
// CHECK-LABEL: func.func @given(
// CHECK-SAME: %[[S:[a-z0-9]*]]: f32, %[[C:[a-z0-9]*]]: f32, %[[W:[a-z0-9]*]]: index, %[[N:[a-z0-9]*]]: index, %[[LATER:[a-z0-9]*]]: index)
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %[[S]] softcap %[[C]] mask <causal, window = %[[W]], sinks = %[[N]]> later %[[LATER]] policy <exact> :
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %[[S]] mask <window = %[[W]], sinks = 4> policy <exact> :
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %[[S]] softcap 5.000000e+01 mask <window = 8, sinks = %[[N]]> policy <exact> masked_zero :
func.func @given(%q: !q, %k: !key, %v: !value, %s: f32, %c: f32, %w: index, %n: index, %later: index) -> (!out, !row, !row) {
  %a:3 = aligned.decode_attention %q, %k, %v scale %s softcap %c mask <causal, window = %w, sinks = %n> later %later policy <exact> : !q, !key, !value -> !out, !row, !row
  %b:3 = aligned.decode_attention %q, %k, %v scale %s mask <sinks = 4, window = %w> policy <exact> : !q, !key, !value -> !out, !row, !row
  %d:3 = aligned.decode_attention %q, %k, %v scale %s softcap 50.0 mask <window = 8, sinks = %n> policy <exact> masked_zero : !q, !key, !value -> !out, !row, !row
  return %a#0, %b#1, %d#2 : !out, !row, !row
}

// An attribute by itself names no operands.
// CHECK: func.func private @open() attributes {mask = #aligned.mask<causal, window = ?, sinks = ?>}
func.func private @open() attributes {mask = #aligned.mask<causal, window = ?, sinks = ?>}

// P8: a mask by numbers, of one shape for all or of each its own, and logits without a value.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[M:[a-z0-9]+]]: tensor<1x9x3x?xf32>, %[[B:[a-z0-9]+]]: tensor<1x1x3x?xi1>, %[[ONE:[a-z0-9]+]]: tensor<1x1x1x?xbf16>, %[[L:[a-z0-9]+]]: tensor<9xf32>, %[[LATER:[a-z0-9]+]]: index)
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} attn_mask %[[M]] : tensor<1x9x3x?xf32> : tensor<1x9x3x64xf16>,
// CHECK: aligned.attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} softcap 3.000000e+01 mask <causal> attn_mask %[[B]] : tensor<1x1x3x?xi1> sink_logits %[[L]] : tensor<9xf32> policy <exact> masked_zero :
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} sink_logits %[[L]] : tensor<9xf32> policy <exact> :
// CHECK: aligned.decode_attention %{{[^ ]*}}, %{{[^ ]*}}, %{{[^ ]*}} scale %{{[^ ]*}} mask <causal> later %[[LATER]] attn_mask %[[ONE]] : tensor<1x1x1x?xbf16> sink_logits %[[L]] : tensor<9xf32> policy <exact> masked_zero :
func.func @numbers(%q: !q, %k: !key, %v: !value, %s: f32, %m: tensor<1x9x3x?xf32>, %b: tensor<1x1x3x?xi1>, %one: tensor<1x1x1x?xbf16>, %l: tensor<9xf32>, %later: index) -> (!out, !row) {
  %0 = aligned.attention %q, %k, %v scale %s attn_mask %m : tensor<1x9x3x?xf32> : !q, !key, !value -> !out
  %1 = aligned.attention %q, %k, %v scale %s softcap 30.0 mask <causal> attn_mask %b : tensor<1x1x3x?xi1> sink_logits %l : tensor<9xf32> policy <exact> masked_zero
      : !q, !key, !value -> !out
  %2:3 = aligned.decode_attention %q, %k, %v scale %s sink_logits %l : tensor<9xf32> policy <exact> : !q, !key, !value -> !out, !row, !row
  %3:3 = aligned.decode_attention %q, %k, %v scale %s mask <causal> later %later attn_mask %one : tensor<1x1x1x?xbf16> sink_logits %l : tensor<9xf32> policy <exact> masked_zero
      : !q, !key, !value -> !out, !row, !row
  return %3#0, %3#1 : !out, !row
}

// On buffers all of them are.
// CHECK-LABEL: func.func @buffers(
// CHECK: aligned.decode_attention {{.*}} attn_mask %{{[a-z0-9]+}} : memref<1x9x3x?xf16> sink_logits %{{[a-z0-9]+}} : memref<9xf32> policy <exact> into
func.func @buffers(%q: memref<1x9x3x64xf16>, %k: memref<1x3x?x64xf16>, %v: memref<1x3x?x64xf16>, %s: f32, %m: memref<1x9x3x?xf16>, %l: memref<9xf32>, %acc: memref<1x9x3x64xf32>,
                   %max: memref<1x9x3xf32>, %sum: memref<1x9x3xf32>) {
  aligned.decode_attention %q, %k, %v scale %s attn_mask %m : memref<1x9x3x?xf16> sink_logits %l : memref<9xf32> policy <exact> into %acc, %max, %sum
      : memref<1x9x3x64xf16>, memref<1x3x?x64xf16>, memref<1x3x?x64xf16> into memref<1x9x3x64xf32>, memref<1x9x3xf32>, memref<1x9x3xf32>
  return
}

// The attribute by itself.
// CHECK-LABEL: func.func private @alone
// CHECK-SAME: #aligned.mask<causal, window = 3>
func.func private @alone() attributes {mask = #aligned.mask<causal, window = 3>}
