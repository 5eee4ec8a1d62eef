// RUN: aligned-opt %s --split-input-file --verify-diagnostics

!dense = memref<1x2x?x64xf16>
!key = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>

func.func @mixed(%dense: tensor<1x2x?x64xf16>, %cache: !key) {
  // expected-error@+1 {{expected tensors or buffers, got both: 'tensor<1x2x?x64xf16>' and 'memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>'}}
  aligned.pack %dense into %cache : tensor<1x2x?x64xf16> to !key
  return
}

// -----

func.func @nowhere(%dense: memref<1x2x?x64xf16>) {
  // expected-error@+1 {{expected a result or a buffer to write to, got neither}}
  "aligned.pack"(%dense) : (memref<1x2x?x64xf16>) -> ()
  return
}

// -----

func.func @to_dense(%dense: memref<1x2x?x64xf16>, %other: memref<1x2x?x64xf16>) {
  // expected-error@+1 {{expected the result to have a plane encoding, got 'memref<1x2x?x64xf16>'}}
  aligned.pack %dense into %other : memref<1x2x?x64xf16> to memref<1x2x?x64xf16>
  return
}

// -----

func.func @append_dense(%dense: memref<1x2x?x64xf16>, %other: memref<1x2x?x64xf16>) {
  // expected-error@+1 {{expected a buffer that is appended to to have a plane encoding, got 'memref<1x2x?x64xf16>'}}
  %new = aligned.append %dense to %other : memref<1x2x?x64xf16> to memref<1x2x?x64xf16> -> memref<1x2x?x64xf16>
  return
}

// -----

func.func @fork_dense(%dense: memref<1x2x?x64xf16>) {
  // expected-error@+1 {{expected the cache to have a plane encoding, got 'memref<1x2x?x64xf16>'}}
  %new = aligned.fork %dense : memref<1x2x?x64xf16>
  return
}

// -----

func.func @few_targets(%q: memref<1x4x1x64xf16>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x1x64xf32>) {
  // expected-error@+1 {{expected acc, max, sum and at most a certificate, got 1 of them}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc
      : memref<1x4x1x64xf16>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16> into memref<1x4x1x64xf32>
  return
}

// -----

func.func @rank(%q: memref<1x4x1x64xf16>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x1x64xf32>, %max: memref<1x4x1xf32>) {
  // expected-error@+1 {{expected max of rank 3, got 'memref<1x4x1x64xf32>'}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %acc, %max
      : memref<1x4x1x64xf16>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16> into memref<1x4x1x64xf32>, memref<1x4x1x64xf32>, memref<1x4x1xf32>
  return
}

// -----

func.func @extent(%q: memref<1x4x1x64xf16>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x1x64xf32>, %max: memref<1x4x2xf32>) {
  // expected-error@+1 {{expected max dimension 2 to be 1, got 2}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %max, %max
      : memref<1x4x1x64xf16>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16> into memref<1x4x1x64xf32>, memref<1x4x2xf32>, memref<1x4x2xf32>
  return
}

// -----

func.func @both(%q: memref<1x4x1x64xf16>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x1x64xf32>, %max: memref<1x4x1xf32>) {
  // expected-error@+1 {{expected tensors or buffers, got both: 'tensor<1x4x1xf32>' and 'memref<1x4x1xf32>'}}
  %a, %m, %s = aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %max, %max
      : memref<1x4x1x64xf16>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16> into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>
      -> tensor<1x4x1x64xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return
}

// -----

// A16: kernels take arrays without gaps, which lie where they will.

func.func @strided_query(%q: memref<1x4x2x64xf16, strided<[1024, 256, 64, 1], offset: ?>>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x2x64xf32>, %max: memref<1x4x2xf32>) {
  // expected-error@+1 {{expected query to be contiguous, got 'memref<1x4x2x64xf16, strided<[1024, 256, 64, 1], offset: ?>>'}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %max, %max
      : memref<1x4x2x64xf16, strided<[1024, 256, 64, 1], offset: ?>>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16> into memref<1x4x2x64xf32>, memref<1x4x2xf32>, memref<1x4x2xf32>
  return
}

// -----

func.func @strided_target(%q: memref<1x4x1x64xf16, strided<[512, 64, 64, 1], offset: ?>>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x1x64xf32>,
                          %max: memref<1x4x1xf32, strided<[8, 2, 1]>>) {
  // expected-error@+1 {{expected max to be contiguous, got 'memref<1x4x1xf32, strided<[8, 2, 1]>>'}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %max, %max
      : memref<1x4x1x64xf16, strided<[512, 64, 64, 1], offset: ?>>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16>
        into memref<1x4x1x64xf32>, memref<1x4x1xf32, strided<[8, 2, 1]>>, memref<1x4x1xf32, strided<[8, 2, 1]>>
  return
}

// -----

!key = memref<1x2x?x64xi8, #aligned.planes<fixed<4, 4, 8>, key>>
!value = memref<1x2x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>
func.func @integer_key(%q: memref<1x4x1x64xf16>, %k: !key, %v: !value, %scale: f32, %acc: memref<1x4x1x64xf32>, %max: memref<1x4x1xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op operand #1 must be}}
  aligned.decode_attention %q, %k, %v scale %scale policy <exact> into %acc, %max, %max
      : memref<1x4x1x64xf16>, !key, !value into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>
  return
}

// -----

func.func @double_query(%q: memref<1x4x1x64xf64>, %k: memref<1x2x?x64xf16>, %scale: f32, %acc: memref<1x4x1x64xf32>, %max: memref<1x4x1xf32>) {
  // expected-error@+1 {{'aligned.decode_attention' op operand #0 must be 4D tensor of f16, bf16 or f32 values or 4D memref of f16, bf16 or f32 values, but got 'memref<1x4x1x64xf64>'}}
  aligned.decode_attention %q, %k, %k scale %scale policy <exact> into %acc, %max, %max
      : memref<1x4x1x64xf64>, memref<1x2x?x64xf16>, memref<1x2x?x64xf16> into memref<1x4x1x64xf32>, memref<1x4x1xf32>, memref<1x4x1xf32>
  return
}

// -----

func.func @strided_result(%cache: memref<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %dense: memref<1x2x64x64xf16, strided<[16384, 8192, 128, 1]>>) {
  // expected-error@+1 {{'aligned.unpack' op expected result to be contiguous, got 'memref<1x2x64x64xf16, strided<[16384, 8192, 128, 1]>>'}}
  aligned.unpack %cache into %dense : memref<1x2x64x64xf16, #aligned.planes<fixed<4, 4, 8>, key>> to memref<1x2x64x64xf16, strided<[16384, 8192, 128, 1]>>
  return
}
