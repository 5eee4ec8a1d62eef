// RUN: aligned-opt %s --aligned-store-kv-caches --aligned-fuse-decode-attention --split-input-file --verify-diagnostics

// A cache has one format, so all policies that read it must agree.

!q = tensor<1x6x1x32xf16>
!cache = tensor<1x2x?x32xf16>

func.func @conflict(%q: !q, %k: !cache, %v: !cache, %w: !cache, %scale: f32) -> (!q, !q) {
  // expected-note@+1 {{the other attention is here}}
  %a = aligned.attention %q, %k, %v scale %scale policy <alignedkv> : !q, !cache, !cache -> !q
  // expected-error@+1 {{'aligned.attention' op expected policies that read 'float' as other attention over the same key does, got 'fixed'}}
  %b = aligned.attention %q, %k, %w scale %scale policy <budget, tolerance = 0.5> : !q, !cache, !cache -> !q
  return %a, %b : !q, !q
}

// -----

!q = tensor<1x6x1x32xf16>
!split_key = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!split_value = tensor<1x2x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>

// expected-note@+1 {{the key is defined here}}
func.func @named(%q: !q, %k: !split_key, %v: !split_value, %scale: f32) -> !q {
  // expected-error@+1 {{expected a key stored as 'float' under policy 'alignedkv', got 'fixed'}}
  %a = aligned.attention %q, %k, %v scale %scale policies [<alignedkv>, <alignedkv>] : !q, !split_key, !split_value -> !q
  return %a : !q
}
