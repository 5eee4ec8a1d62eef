// RUN: aligned-opt %s --split-input-file --aligned-verify-phase=phase=lower --verify-diagnostics
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=split 2>&1 | FileCheck %s --check-prefix=SPLIT
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=fuse 2>&1 | FileCheck %s --check-prefix=FUSE
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=llvm 2>&1 | FileCheck %s --check-prefix=LLVM
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=raise 2>&1 | FileCheck %s --check-prefix=RAISE
// RUN: not aligned-opt %s --split-input-file --aligned-verify-phase=phase=run 2>&1 | FileCheck %s --check-prefix=NAME

// NAME: error: expected phase 'raise', 'split', 'fuse', 'lower' or 'llvm', got 'run'

func.func @attention(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %scale: f32) -> tensor<1x2x1x16xf16> {
  // SPLIT: [[@LINE+5]]:{{[0-9]+}}: error: after phase 'split': expected a split key and value, got tensor<1x2x64x16xf16>
  // FUSE: [[@LINE+4]]:{{[0-9]+}}: error: after phase 'fuse': expected no attention that is only declared, got 'aligned.attention'
  // expected-error@+3 {{after phase 'lower': expected no op of the dialect 'aligned', got 'aligned.attention'}}
  // Each kind of op is reported once.
  // LLVM: error: after phase 'llvm': expected only the dialect 'llvm', got 'func.func'
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  %1 = aligned.attention %0, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  return %1 : tensor<1x2x1x16xf16>
}

// -----

// expected-error@+1 {{after phase 'lower': expected no split type, got tensor<1x2x64x16xf16, #aligned.split<fixed<16>, key>>}}
func.func private @cache(tensor<1x2x64x16xf16, #aligned.split<fixed<16>, key>>)

// -----

// What no kernel could hold may stay dense.
// SPLIT-NOT: tensor<1x2x64x24xf16>
func.func private @small(tensor<1x2x1x24xf16>)

// -----

// RAISE: error: after phase 'raise': expected ops of linalg and what lies below it, got 'tosa.negate'
func.func @foreign(%a: tensor<4xf32>) -> tensor<4xf32> {
  %zp = "tosa.const"() <{values = dense<0.0> : tensor<1xf32>}> : () -> tensor<1xf32>
  %0 = tosa.negate %a, %zp, %zp : (tensor<4xf32>, tensor<1xf32>, tensor<1xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
