// RUN: aligned-opt %s --aligned-analyze-precision --verify-diagnostics

// Additions: bits of an addend below the alignment of the other, and bits below what results ask for.

// The finest bit of a half from 1024 up is worth 1.
func.func @far_apart(%a: f16 {aligned.range = #aligned.range<[1024.0, 2047.0]>}, %b: f16 {aligned.range = #aligned.range<[-1.0, 1.0], nonzero = 0.0625>})
    -> (f16 {aligned.tolerance = 0.0009765625}) {
  // expected-remark@below {{the lower 10 bits of operand #1 lie below the alignment of operand #0}}
  // expected-note@below {{operand #1 is in [-1, 1], with bits down to 2^-10 in its largest values; operand #0 is in [1024, 2047], a multiple of 2^0}}
  %0 = arith.addf %a, %b : f16
  return %0 : f16
}

// Without `nonzero` a half near 0 holds bits down to 2^-24, and nothing lies below the other's.
func.func @alike(%a: f16 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f16 {aligned.range = #aligned.range<[-1.0, 1.0]>}) -> (f16 {aligned.tolerance = 0.0625}) {
  // expected-remark@below {{the lower 5 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 2], with bits down to 2^-9 in its largest values; it may be off by 0.0625}}
  // expected-remark@below {{the lower 6 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [-1, 1], with bits down to 2^-10 in its largest values; it may be off by 0.0625}}
  %0 = arith.subf %a, %b : f16
  return %0 : f16
}

// Nothing is known, nothing is said.
func.func @unknown(%a: f32, %b: f32) -> f32 {
  %0 = arith.addf %a, %b : f32
  return %0 : f32
}

// A product holds bits down to the sum of its factors' exponents.
func.func @fma(%a: bf16 {aligned.range = #aligned.range<[1.0, 2.0]>}, %b: bf16 {aligned.range = #aligned.range<[1.0, 2.0]>},
    %c: bf16 {aligned.range = #aligned.range<[-0.00390625, 0.00390625]>}) -> (bf16 {aligned.tolerance = 1.0e-30}) {
  // expected-remark@below {{the lower 1 bit of operand #2 lies below the alignment of the product of operands #0 and #1}}
  // expected-note@below {{operand #2 is in [-0.00390625, 0.00390625], with bits down to 2^-15 in its largest values; the product is a multiple of 2^-14}}
  %0 = math.fma %a, %b, %c : bf16
  return %0 : bf16
}

// No result depends on it.
func.func @unused(%a: f16 {aligned.range = #aligned.range<[-2.0, 2.0]>}) {
  // expected-remark@below {{the lower 11 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 2], with bits down to 2^-9 in its largest values; no result depends on it}}
  // expected-remark@below {{the lower 11 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [-2, 2], with bits down to 2^-9 in its largest values; no result depends on it}}
  %0 = arith.addf %a, %a : f16
  return
}

// Both uses of %a add up: each gets half of what the result may be off by.
func.func @twice(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}) -> (f32 {aligned.tolerance = 0.25}) {
  // expected-remark@below {{the lower 19 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 2], with bits down to 2^-22 in its largest values; it may be off by 0.125}}
  // expected-remark@below {{the lower 19 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [-2, 2], with bits down to 2^-22 in its largest values; it may be off by 0.125}}
  %0 = arith.addf %a, %a : f32
  return %0 : f32
}

// By default half a unit in the last place of the largest result, here 2^-7 of [-18.0, 18.0].
func.func @default(%a: f32 {aligned.range = #aligned.range<[-16.0, 16.0]>}, %b: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}) -> f16 {
  // expected-remark@below {{the lower 12 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-16, 16], with bits down to 2^-19 in its largest values; it may be off by 0.0078125}}
  // expected-remark@below {{the lower 15 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [-2, 2], with bits down to 2^-22 in its largest values; it may be off by 0.0078125}}
  %0 = arith.addf %a, %b : f32
  %1 = arith.truncf %0 : f32 to f16
  return %1 : f16
}
