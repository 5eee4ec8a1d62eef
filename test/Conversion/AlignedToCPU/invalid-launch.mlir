// RUN: aligned-opt %s --convert-aligned-to-cpu=launch --verify-diagnostics

// Kernels that somebody else runs are not told of tokens to come.
func.func @later(%q: tensor<1x2x1x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>, %scale: f32, %later: index) -> tensor<1x2x1x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected at most 32 query rows per kv head where attention is masked and the target is not the CPU, got more}}
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale mask <causal> later %later policy <exact>
      : tensor<1x2x1x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32> -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x16xf32>
}
