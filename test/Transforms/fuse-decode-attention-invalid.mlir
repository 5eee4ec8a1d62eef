// RUN: aligned-opt %s --aligned-fuse-decode-attention --split-input-file --verify-diagnostics
// RUN: not aligned-opt %s --split-input-file --aligned-fuse-decode-attention=policy=alignedkv 2>&1 | FileCheck %s --check-prefix=KV
// RUN: not aligned-opt %s --split-input-file --aligned-fuse-decode-attention=policy=best 2>&1 | FileCheck %s --check-prefix=NAME
// RUN: not aligned-opt %s --split-input-file --aligned-fuse-decode-attention=policy=budget 2>&1 | FileCheck %s --check-prefix=NONE
// RUN: not aligned-opt %s --split-input-file --aligned-fuse-decode-attention="policy=tight tolerance=0.5" 2>&1 | FileCheck %s --check-prefix=TWO
// RUN: not aligned-opt %s --split-input-file --aligned-fuse-decode-attention="policy=budget tolerance=-1" 2>&1 | FileCheck %s --check-prefix=NEGATIVE

// NAME: error: expected policy 'exact', 'alignedkv', 'tight', 'balanced', 'fast', 'draft' or 'budget', got 'best'
// NONE: error: expected a tolerance above 0 and below 1 with policy 'budget', got none or 0
// TWO: error: expected a tolerance only with policy 'budget', got one with 'tight', which stands for 0.000244141
// NEGATIVE: error: expected a tolerance above 0 and below 1, got -1

// P2: a budget is spent on fixed formats, the published rule (P1) on float ones.

// KV: error: 'aligned.attention' op expected a value stored as 'float' under policy 'alignedkv', got 'fixed'
// expected-note@+1 {{the key is defined here}}
func.func @format(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<float<16>, key>>,
                  %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>, %s: f32) -> tensor<1x2x1x16xf16> {
  // expected-error@+1 {{'aligned.attention' op expected a key stored as 'fixed' under policy 'budget', got 'float'}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<float<16>, key>>,
      tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>> -> tensor<1x2x1x16xf16>
  return %out : tensor<1x2x1x16xf16>
}
