// RUN: aligned-opt %s --split-input-file --verify-diagnostics

// P7, A10: limits that mean nothing, and policies that do not fit their op.

// expected-error@+1 {{expected bits that are a multiple of 4 from 0 to 16, got 5}}
func.func private @bits_between_planes() attributes {a = #aligned.limits<bits = 0 to 5>}

// -----

// expected-error@+1 {{expected bits that are a multiple of 4 from 0 to 16, got 20}}
func.func private @bits_of_more() attributes {a = #aligned.limits<bits = 20 to 20>}

// -----

// expected-error@+1 {{expected bits that are a multiple of 4 from 0 to 16, got -4}}
func.func private @bits_below_none() attributes {a = #aligned.limits<bits = -4 to 16>}

// -----

// expected-error@+1 {{expected the least bits not to exceed the most, got 12 to 8}}
func.func private @least_above_most() attributes {a = #aligned.limits<bits = 12 to 8>}

// -----

// expected-error@+1 {{expected 0 to 1099511627776 newest tokens, got -1}}
func.func private @newest() attributes {a = #aligned.limits<newest = -1>}

// -----

// expected-error@+1 {{expected 0 to 1099511627776 sinks tokens, got 1099511627777}}
func.func private @sinks() attributes {a = #aligned.limits<sinks = 1099511627777>}

// -----

// expected-error@+1 {{expected ages that rise from above 0, got 0 behind 0}}
func.func private @age_of_newest() attributes {a = #aligned.limits<ages = [0: 8]>}

// -----

// expected-error@+1 {{expected ages that rise from above 0, got 63 behind 64}}
func.func private @ages_fall() attributes {a = #aligned.limits<ages = [64: 8, 63: 4]>}

// -----

// expected-error@+1 {{expected bits that fall with age, got 8 behind 8}}
func.func private @bits_stay() attributes {a = #aligned.limits<ages = [64: 8, 65: 8]>}

// -----

// expected-error@+1 {{expected bits that are a multiple of 4 from 0 to 16, got 7}}
func.func private @bits_of_age() attributes {a = #aligned.limits<ages = [64: 7]>}

// -----

// expected-error@+1 {{expected a tolerance above 0 and below 1, got 2}}
func.func private @side_tolerance() attributes {a = #aligned.limits<tolerance = 2.0>}

// -----

// expected-error@+1 {{expected a tolerance with 'budget'}}
func.func private @only_of_a_side() attributes {a = #aligned.policy<budget, key = <tolerance = 0.5>, value = <tolerance = 0.5>>}

// -----

// expected-error@+1 {{expected a tolerance only with 'budget', got one with 'alignedkv'}}
func.func private @side_of_rule() attributes {a = #aligned.policy<alignedkv, value = <tolerance = 0.5>>}

// -----

// expected-error@+1 {{expected no limits with 'exact', got some of value}}
func.func private @exact_limits() attributes {a = #aligned.policy<exact, value = <bits = 4 to 4>>}

// -----

!q = tensor<1x2x1x16xf16>
!key = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
func.func @too_many(%q: !q, %k: !key, %v: !value, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected one policy, or one for each of 2 kv heads, got 3}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policies [<exact>, <exact>, <exact>] : !q, !key, !value -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

!q = tensor<1x2x1x16xf16>
!key = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
func.func @none(%q: !q, %k: !key, %v: !value, %s: f32) {
  // expected-error@+1 {{'aligned.attention' op expected one policy, or one for each of 2 kv heads, got 0}}
  %a = aligned.attention %q, %k, %v scale %s policies [] : !q, !key, !value -> !q
  return
}

// -----

!q = tensor<1x2x1x16xf16>
!key = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
func.func @kinds(%q: !q, %k: !key, %v: !value, %s: f32) {
  // expected-error@+1 {{'aligned.decode_attention' op expected policies of one kind, got 'exact' and 'budget'}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policies [<exact>, <budget, tolerance = 0.5>] : !q, !key, !value -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

!q = tensor<1x2x1x16xf16>
!key = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
func.func @declared_kinds(%q: !q, %k: !key, %v: !value, %s: f32) {
  // expected-error@+1 {{'aligned.attention' op expected policies of one kind, got 'alignedkv' and 'budget'}}
  %a = aligned.attention %q, %k, %v scale %s policies [<alignedkv>, <budget, tolerance = 0.5>] : !q, !key, !value -> !q
  return
}

// -----

!q = tensor<1x2x1x16xf16>
!key = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
func.func @no_policy(%q: !q, %k: !key, %v: !value, %s: f32) {
  // expected-error@+1 {{expected 'policy' or 'policies'}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s masked_zero : !q, !key, !value -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}
