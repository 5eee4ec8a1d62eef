// RUN: aligned-opt %s --aligned-analyze-precision --verify-diagnostics

// Loops and calls, to a fixpoint.

// 16 additions, each of which may be off.
func.func @loop(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[0.0, 1.0]>}) -> (f32 {aligned.tolerance = 0.5}) {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %c16 = arith.constant 16 : index
  %0 = scf.for %i = %c0 to %c16 step %c1 iter_args(%sum = %b) -> (f32) {
    // expected-remark@below {{the lower 17 bits of operand #0 lie below what its uses ask for}}
    // expected-note@below {{operand #0 is in [-2, 2], with bits down to 2^-22 in its largest values; it may be off by 0.03125}}
    // expected-remark@below {{the lower 17 bits of operand #1 lie below what its uses ask for}}
    // expected-note@below {{operand #1 is in [0, 1], with bits down to 2^-23 in its largest values; it may be off by 0.0294118}}
    %1 = arith.addf %a, %b : f32
    %2 = math.tanh %1 : f32
    %3 = arith.maximumf %sum, %2 : f32
    scf.yield %3 : f32
  }
  return %0 : f32
}

// A loop that may go on for ever asks for all that is carried around it.
func.func @unknown_trips(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[0.0, 1.0]>}, %n: index) -> (f32 {aligned.tolerance = 0.5}) {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %0 = scf.for %i = %c0 to %n step %c1 iter_args(%sum = %b) -> (f32) {
    %1 = arith.addf %a, %b : f32
    %2 = arith.addf %sum, %1 : f32
    scf.yield %2 : f32
  }
  return %0 : f32
}

// So does one that magnifies: the analysis comes to an end.
func.func @magnifies(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %n: index) -> (f32 {aligned.tolerance = 0.5}) {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %two = arith.constant 2.0 : f32
  %0 = scf.for %i = %c0 to %n step %c1 iter_args(%x = %a) -> (f32) {
    %1 = arith.mulf %x, %two : f32
    %2 = arith.addf %1, %a : f32
    scf.yield %2 : f32
  }
  return %0 : f32
}

func.func @branch(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[8.0, 16.0]>}, %c: i1) -> (f32 {aligned.tolerance = 0.5}) {
  %0 = scf.if %c -> (f32) {
    scf.yield %a : f32
  } else {
    scf.yield %b : f32
  }
  %one = arith.constant 1.0 : f32
  // expected-remark@below {{the lower 18 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 16], with bits down to 2^-19 in its largest values; it may be off by 0.5}}
  %1 = arith.addf %0, %one : f32
  return %1 : f32
}

// A private function has the ranges of what it is called with; two calls share what the result may be off by.
func.func private @inner(%x: f32) -> f32 {
  %one = arith.constant 1.0 : f32
  // expected-remark@below {{the lower 12 bits of operand #0 lie below what its uses ask for}}
  // expected-note@below {{operand #0 is in [-2, 16], with bits down to 2^-19 in its largest values; it may be off by 0.0147059}}
  %0 = arith.addf %x, %one : f32
  return %0 : f32
}

func.func @outer(%a: f32 {aligned.range = #aligned.range<[-2.0, 2.0]>}, %b: f32 {aligned.range = #aligned.range<[8.0, 16.0]>}) -> (f32 {aligned.tolerance = 0.5}) {
  %0 = call @inner(%a) : (f32) -> f32
  %1 = call @inner(%b) : (f32) -> f32
  %2 = arith.mulf %0, %1 : f32
  return %2 : f32
}
