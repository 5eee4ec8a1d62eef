// RUN: aligned-opt %s --convert-aligned-to-cpu="reference=true" --split-input-file --verify-diagnostics

// Kernels are no reference.

!key = memref<1x2x?x16xf16, #aligned.planes<float<8, 4, 4>, key>>
!value = memref<1x2x?x16xf16, #aligned.planes<float<8, 4, 4>, value>>
func.func @published(%q: memref<1x4x1x16xf16>, %k: !key, %v: !value, %scale: f32, %acc: memref<1x4x1x16xf32>, %max: memref<1x4x1xf32>, %sum: memref<1x4x1xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op expected stages, or policy 'exact' without a certificate, to evaluate in float64, got policy 'alignedkv'}}
  aligned.decode_attention %q, %k, %v scale %scale policy <alignedkv> into %acc, %max, %sum
      : memref<1x4x1x16xf16>, !key, !value into memref<1x4x1x16xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>
  return
}

// -----

func.func @certified(%q: memref<1x4x1x16xf32>, %k: memref<1x2x?x16xf32>, %scale: f32, %acc: memref<1x4x1x16xf32>, %max: memref<1x4x1xf32>, %sum: memref<1x4x1xf32>,
                     %certificate: memref<1x4x1x8xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op expected stages, or policy 'exact' without a certificate, to evaluate in float64, got a certificate}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %max, %sum, %certificate
      : memref<1x4x1x16xf32>, memref<1x2x?x16xf32>, memref<1x2x?x16xf32> into memref<1x4x1x16xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>, memref<1x4x1x8xf32>
  return
}
