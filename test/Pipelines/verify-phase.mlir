// RUN: aligned-opt %s --split-input-file --aligned-verify-phase=phase=lower --verify-diagnostics
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=store 2>&1 | FileCheck %s --check-prefix=STORE
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=fuse 2>&1 | FileCheck %s --check-prefix=FUSE
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=stage 2>&1 | FileCheck %s --check-prefix=STAGE --implicit-check-not="error: after phase"
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=llvm 2>&1 | FileCheck %s --check-prefix=LLVM
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=raise 2>&1 | FileCheck %s --check-prefix=RAISE
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=run 2>&1 | FileCheck %s --check-prefix=NAME

// NAME: error: expected phase 'raise', 'store', 'fuse', 'stage', 'lower' or 'llvm', got 'run'

// expected-error@+1 {{after phase 'lower': expected no tensor, got tensor<1x2x1x16xf16>}}
func.func @attention(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %scale: f32) -> tensor<1x2x1x16xf16> {
  // STORE: [[@LINE+6]]:{{[0-9]+}}: error: after phase 'store': expected a packed key and value, got tensor<1x2x64x16xf16>
  // FUSE: [[@LINE+5]]:{{[0-9]+}}: error: after phase 'fuse': expected no attention that is only declared, got 'aligned.attention'
  // STAGE: [[@LINE+4]]:{{[0-9]+}}: error: after phase 'stage': expected no attention that is only declared, got 'aligned.attention'
  // expected-error@+3 {{after phase 'lower': expected no op of the dialect 'aligned', got 'aligned.attention'}}
  // Each kind of op is reported once.
  // LLVM: error: after phase 'llvm': expected only the dialect 'llvm', got 'func.func'
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  %1 = aligned.attention %0, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  return %1 : tensor<1x2x1x16xf16>
}

// -----

// expected-error@+1 {{after phase 'lower': expected no packed type, got tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>}}
func.func private @cache(tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>)

// -----

// expected-error@+1 {{after phase 'lower': expected no packed type, got memref<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>}}
func.func private @buffer(memref<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>)

// -----

// Fixed planes are read by stages, float planes and dense tensors by one kernel.
// expected-error@+1 {{after phase 'lower': expected no packed type, got tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>}}
func.func @decode(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>, %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>,
                  %scale: f32) {
  // STAGE: [[@LINE+2]]:{{[0-9]+}}: error: after phase 'stage': expected stages where caches have fixed planes, got 'aligned.decode_attention'
  // expected-error@+1 {{after phase 'lower': expected no op of the dialect 'aligned', got 'aligned.decode_attention'}}
  %a, %m, %s = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>,
      tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>> -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// expected-error@+1 {{after phase 'lower': expected no packed type, got tensor<1x2x64x16xf16, #aligned.planes<float<16>, key>>}}
func.func @decode_float(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<float<16>, key>>, %v: tensor<1x2x64x16xf16, #aligned.planes<float<16>, value>>,
                        %scale: f32) {
  // expected-error@+1 {{after phase 'lower': expected no op of the dialect 'aligned', got 'aligned.decode_attention'}}
  %a, %m, %s = aligned.decode_attention %q, %k, %v scale %scale policy <exact> : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<float<16>, key>>,
      tensor<1x2x64x16xf16, #aligned.planes<float<16>, value>> -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// expected-error@+1 {{after phase 'lower': expected no tensor, got tensor<1x2x1x16xf16>}}
func.func @decode_dense(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %scale: f32) {
  // expected-error@+1 {{after phase 'lower': expected no op of the dialect 'aligned', got 'aligned.decode_attention'}}
  %a, %m, %s = aligned.decode_attention %q, %k, %k scale %scale policy <exact> : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// What no kernel could hold may stay dense.
// STORE-NOT: tensor<1x2x64x24xf16>
// expected-error@+1 {{after phase 'lower': expected no tensor, got tensor<1x2x1x24xf16>}}
func.func private @small(tensor<1x2x1x24xf16>)

// -----

// RAISE: error: after phase 'raise': expected ops of linalg and what lies below it, got 'tosa.negate'
// expected-error@+1 {{after phase 'lower': expected no tensor, got tensor<4xf32>}}
func.func @foreign(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-error@+1 {{after phase 'lower': expected no tensor, got tensor<1xf32>}}
  %zp = "tosa.const"() <{values = dense<0.0> : tensor<1xf32>}> : () -> tensor<1xf32>
  %0 = tosa.negate %a, %zp, %zp : (tensor<4xf32>, tensor<1xf32>, tensor<1xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
