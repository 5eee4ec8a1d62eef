// RUN: aligned-opt %s --aligned-analyze-precision --verify-diagnostics

// What each scalar op does to ranges and slack, seen at the additions around it.

func.func @multiply(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[0.0, 8.0]>}) -> (f32 {aligned.tolerance = 0.125}) {
  %one = arith.constant 1.0 : f32
  // expected-remark@below {{the lower 16 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 2], with bits down to 2^-22 in its largest values; it may be off by 0.015625}}
  %0 = arith.addf %a, %one : f32
  %1 = arith.mulf %0, %b : f32
  return %1 : f32
}

func.func @divide(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[4.0, 8.0]>}) -> (f32 {aligned.tolerance = 0.125}) {
  %one = arith.constant 1.0 : f32
  // expected-remark@below {{the lower 21 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 2], with bits down to 2^-22 in its largest values; it may be off by 0.5}}
  %0 = arith.addf %a, %one : f32
  %1 = arith.divf %0, %b : f32
  return %1 : f32
}

// By what may be 0, nothing may be off.
func.func @divide_by_zero(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[0.0, 8.0]>}) -> (f32 {aligned.tolerance = 0.125}) {
  %one = arith.constant 1.0 : f32
  %0 = arith.addf %a, %one : f32
  %1 = arith.divf %0, %b : f32
  return %1 : f32
}

func.func @functions(%a: f32 {aligned.range = #aligned.range<[4.0, 9.0]>}) -> (f32 {aligned.tolerance = 0.25}) {
  %half = arith.constant 0.5 : f32
  %0 = math.sqrt %a : f32
  // expected-remark@below {{the lower 18 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [2, 3], with bits down to 2^-22 in its largest values; it may be off by 0.108309}}
  %1 = arith.addf %0, %half : f32
  %2 = math.log %1 : f32
  // expected-remark@below {{the lower 18 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [0.91629, 1.25276], with bits down to 2^-23 in its largest values; it may be off by 0.0433236}}
  %3 = arith.addf %2, %half : f32
  %4 = math.exp %3 : f32
  return %4 : f32
}

func.func @signs(%a: f32 {aligned.range = #aligned.range<[-3.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[1.0, 8.0]>}, %c: i1) -> (f32 {aligned.tolerance = 0.5}) {
  %0 = math.absf %a : f32
  %1 = arith.negf %0 : f32
  %2 = arith.maximumf %1, %a : f32
  %3 = arith.minnumf %2, %b : f32
  %4 = arith.select %c, %3, %1 : f32
  %5 = math.tanh %b : f32
  // expected-remark@below {{the lower 21 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-3, 2], with bits down to 2^-22 in its largest values; it may be off by 0.5}}
  // expected-remark@below {{the lower 22 bits of operand #1 lie below what its uses ask for}}
  // expected-note@below {{operand #1 is in [0.761594, 1], with bits down to 2^-23 in its largest values; it may be off by 0.5}}
  %6 = arith.addf %4, %5 : f32
  return %6 : f32
}

// A rounded value holds fewer bits; an integer holds none below 1.
func.func @conversions(%a: f32 {aligned.range = #aligned.range<[256.0, 512.0]>}, %n: i8) -> (f32 {aligned.tolerance = 1.0e-9}) {
  %0 = arith.truncf %a : f32 to bf16
  %1 = arith.extf %0 : bf16 to f32
  %2 = arith.sitofp %n : i8 to f32
  // expected-remark@below {{the lower 1 bit of operand #1 lies below the alignment of operand #0}}
  // expected-note@below {{operand #1 is in [-128, 128], with bits down to 2^0 in its largest values; operand #0 is in [256, 512], a multiple of 2^1}}
  %3 = arith.addf %1, %2 : f32
  return %3 : f32
}

// An op that is not known takes any value for granted, and nothing off.
func.func @unknown(%a: f32 {aligned.range = #aligned.range<[1.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[1.0, 2.0]>}) -> (f32 {aligned.tolerance = 1.0}) {
  %0 = arith.addf %a, %b : f32
  %1 = math.powf %0, %b : f32
  return %1 : f32
}
