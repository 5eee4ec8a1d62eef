// RUN: aligned-opt %s --convert-aligned-to-cpu --split-input-file --verify-diagnostics

func.func @head_dim(%q: tensor<1x2x1x24xf32>, %k: tensor<1x2x?x24xf32>, %v: tensor<1x2x?x24xf32>, %scale: f32) -> tensor<1x2x1x24xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected the key's head_dim to be a multiple of 16, at most 256, got 24}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x1x24xf32>, tensor<1x2x?x24xf32>, tensor<1x2x?x24xf32> -> tensor<1x2x1x24xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x24xf32>
}

// -----

func.func @query_rows(%q: tensor<1x2x17x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>, %scale: f32) -> tensor<1x2x17x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected at most 32 query rows per kv head, got 34}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x17x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32> -> tensor<1x2x17x16xf32>, tensor<1x2x17xf32>, tensor<1x2x17xf32>
  return %acc : tensor<1x2x17x16xf32>
}

// -----

func.func @queries(%q: tensor<1x2x?x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>, %scale: f32) -> tensor<1x2x?x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected static heads, queries and head_dim, got 'tensor<1x2x?x16xf32>'}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x?x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32> -> tensor<1x2x?x16xf32>, tensor<1x2x?xf32>, tensor<1x2x?xf32>
  return %acc : tensor<1x2x?x16xf32>
}

// -----

!key = tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x?x16xf16, #aligned.planes<float<8, 4, 4>, value>>
func.func @two_kinds(%q: tensor<1x2x1x16xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x2x1x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected key and value to have one kind of format, got fixed and float}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x1x16xf16>, !key, !value -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x16xf32>
}

// -----

func.func @tensors(%q: tensor<1x2x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>, %scale: f32) -> tensor<1x2x1x16xf32> {
  // expected-error@+1 {{failed to legalize operation 'aligned.decode_attention' that was explicitly marked illegal}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x2x1x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32> -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x16xf32>
}

// -----

// Fixed planes are read in stages.

!key = memref<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = memref<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @not_staged(%q: memref<1x2x1x16xf16>, %k: !key, %v: !value, %scale: f32, %acc: memref<1x2x1x16xf32>, %max: memref<1x2x1xf32>, %sum: memref<1x2x1xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op expected stages where caches have fixed planes: run aligned-stage-decode-attention first}}
  aligned.decode_attention %q, %k, %v scale %scale policy <exact> into %acc, %max, %sum
      : memref<1x2x1x16xf16>, !key, !value into memref<1x2x1x16xf32>, memref<1x2x1xf32>, memref<1x2x1xf32>
  return
}

// -----

!key = memref<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = memref<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @several_splits(%q: memref<1x3x1x16xf16>, %k: !key, %v: !value, %scale: f32, %row: index, %d: memref<2x3x16xi8>, %f: memref<4x8xf32>,
                          %s: memref<?x3x64xf32>, %t: memref<?x3x16xf32>, %part: memref<?x2x3xf32>) {
  // expected-error@+1 {{'aligned.scan' op expected one split: tile it first, got 'memref<?x2x3xf32>'}}
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %row policy <budget, tolerance = 0.25> outs(%s, %t, %part : memref<?x3x64xf32>, memref<?x3x16xf32>, memref<?x2x3xf32>)
      : memref<1x3x1x16xf16>, !key, !value, memref<2x3x16xi8>, memref<4x8xf32>
  return
}

// -----

!key = memref<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = memref<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @stage_query_rows(%q: memref<1x3x11x16xf16>, %k: !key, %v: !value, %scale: f32, %row: index, %d: memref<2x33x16xi8>, %f: memref<34x8xf32>, %m: memref<16xf32>) {
  // expected-error@+1 {{'aligned.prepare' op expected at most 32 query rows per kv head, got 33}}
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : memref<2x33x16xi8>, memref<34x8xf32>, memref<16xf32>)
      : memref<1x3x11x16xf16>, !key, !value
  return
}

// -----

!key = tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @stage_on_tensors(%q: tensor<1x2x1x16xf16>, %k: !key, %v: !value, %scale: f32, %row: index, %d: tensor<2x2x16xi8>, %f: tensor<3x8xf32>, %m: tensor<16xf32>)
    -> tensor<16xf32> {
  // expected-error@+1 {{failed to legalize operation 'aligned.prepare' that was explicitly marked illegal}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : tensor<2x2x16xi8>, tensor<3x8xf32>, tensor<16xf32>)
      : tensor<1x2x1x16xf16>, !key, !value -> tensor<2x2x16xi8>, tensor<3x8xf32>, tensor<16xf32>
  return %0#2 : tensor<16xf32>
}
