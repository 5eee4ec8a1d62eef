// RUN: aligned-opt %s --aligned-raise-attention --verify-diagnostics | FileCheck %s

// Near misses of attention are left alone, with a remark that says what was expected.
// CHECK-NOT: aligned.attention
// CHECK: func.func @another_product
// CHECK-NOT: aligned.attention

!q = tensor<2x3x16xf32>
!kt = tensor<2x16x5xf32>
!v = tensor<2x5x16xf32>
!s = tensor<2x3x5xf32>
!m = tensor<2x3x5xi1>
!r = tensor<2x3xf32>
!rm = tensor<2x3xi1>
!b = tensor<2x3x6xf32>
#s = affine_map<(h, i, t) -> (h, i, t)>
#r = affine_map<(h, i, t) -> (h, i)>
#none = affine_map<(h, i, t) -> ()>
#x = affine_map<(h, i, t) -> (i, h)>

//===----------------------------------------------------------------------===//
// Masks
//===----------------------------------------------------------------------===//

// A mask is added or selects; it does not multiply.
func.func @mask_multiplies(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.mul ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected scores that are a scaled product of Q and K, got 'arith.mulf'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A score of -5 hides nothing.
func.func @select_of_minus_five(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %five = arith.constant -5.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %five : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected a select among scores to put -inf, or a number below -10000, where a token is hidden}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Where no token is visible, the mask chooses among those at -10000.
func.func @select_and_mask(%q: !q, %k: !kt, %v: !v, %seen: !m, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant -1.0e4 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %low : f32
      linalg.yield %new : f32
  } -> !s
  %x = linalg.add ins(%y, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected a select among scores to put -inf, or the lowest float, where they are masked otherwise, too}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Scores that are not let fall.
func.func @clamp(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %least = arith.constant -100.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.maximumf %a, %least : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected scores that are a scaled product of Q and K, got 'arith.maximumf'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Every channel of V has a mask of its own.
func.func @mask_of_channels(%q: !q, %k: !kt, %v: !v, %mask: tensor<16x5xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %z4 = arith.constant dense<0.0> : tensor<2x3x16x5xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(h, i, n, t) -> (h, i, t)>, affine_map<(h, i, n, t) -> (n, t)>, affine_map<(h, i, n, t) -> (h, i, n, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%s, %mask : !s, tensor<16x5xf32>) outs(%z4 : tensor<2x3x16x5xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<2x3x16x5xf32>
  %p = linalg.softmax dimension(3) ins(%x : tensor<2x3x16x5xf32>) outs(%z4 : tensor<2x3x16x5xf32>) -> tensor<2x3x16x5xf32>
  // expected-remark@+1 {{attention not raised: expected value channels to be a dimension of the result}}
  %o = linalg.contract indexing_maps = [affine_map<(h, i, n, t) -> (h, i, n, t)>, affine_map<(h, i, n, t) -> (h, t, n)>, affine_map<(h, i, n, t) -> (h, i, n)>] ins(%p, %v : tensor<2x3x16x5xf32>, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// What an op adds to its init is no formula of its inputs.
func.func @mask_from_init(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%mask : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.addf %a, %out : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected a mask that is a function of batch, head, query and token, got another one}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Small probabilities are dropped, behind the softmax.
func.func @threshold(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zero = arith.constant 0.0 : f32
  %least = arith.constant 0.1 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.cmpf ogt, %a, %least : f32
      %new = arith.select %part, %a, %zero : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Or all are scaled.
func.func @dropout(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %kept = linalg.mul ins(%p, %mask : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected probabilities to be exponentials, divided by their sum, got 'arith.mulf'}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

//===----------------------------------------------------------------------===//
// Softcaps
//===----------------------------------------------------------------------===//

// C tanh((s + mask) / C) hides nothing.
func.func @mask_inside_softcap(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %four = arith.constant 4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %y = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %four : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %four : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%y : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected a mask outside of the softcap, got one inside}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @negative_softcap(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %c = arith.constant -4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %c : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %c : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected one softcap C tanh(s / C) of a constant C from 1e-30 to 1e+30}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @softcap_of_an_argument(%q: !q, %k: !kt, %v: !v, %cap: tensor<f32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #none, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %cap : !s, tensor<f32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.divf %a, %b : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected one softcap C tanh(s / C) of a constant C from 1e-30 to 1e+30}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @softcap_out_of_range(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %c = arith.constant 1.0e31 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %c : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %c : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected one softcap C tanh(s / C) of a constant C from 1e-30 to 1e+30}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @two_softcaps(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %four = arith.constant 4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %four : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %four : f32
      linalg.yield %new : f32
  } -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%y : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %four : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %four : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected one softcap C tanh(s / C) of a constant C from 1e-30 to 1e+30}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

//===----------------------------------------------------------------------===//
// Guards
//===----------------------------------------------------------------------===//

// Rows that another mask hides.
func.func @guard_of_another_mask(%q: !q, %k: !kt, %v: !v, %mask: !s, %other: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%other : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Two masks may hide a row together.
func.func @guard_of_one_of_two_masks(%q: !q, %k: !kt, %v: !v, %mask: !s, %other: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %y = linalg.add ins(%x, %other : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%y : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%mask : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Scores before the mask.
func.func @guard_of_the_product(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A mask of -inf that is taken off is none.
func.func @guard_of_a_mask_taken_off(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.sub ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%mask : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @guard_of_infinity(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %zero = arith.constant 0.0 : f32
  %inf = arith.constant 0x7F800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %inf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A maximum from the lowest float is never -inf.
func.func @guard_of_a_finite_maximum(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %lowest = arith.constant dense<0xFF7FFFFF> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%lowest : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Rows with one hidden token.
func.func @guard_of_the_minimum(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %high = arith.constant dense<0x7F800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.minimumf } ins(%x : !s) outs(%high : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @guard_of_any(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zm = arith.constant dense<false> : !m
  %zrm = arith.constant dense<false> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.ori } ins(%is : !m) outs(%zrm : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// An and-reduction of which some start from false.
func.func @guard_from_a_row(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zm = arith.constant dense<false> : !m
  %all = arith.constant dense<true> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %row = arith.constant dense<[true, false, false]> : tensor<3xi1>
  %init = linalg.broadcast ins(%row : tensor<3xi1>) outs(%all : !rm) dimensions = [0]
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.andi } ins(%is : !m) outs(%init : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Rows that see something give zero.
func.func @guard_exchanged(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zm = arith.constant dense<false> : !m
  %all = arith.constant dense<true> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.andi } ins(%is : !m) outs(%all : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %zero : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Rows that see nothing give the sum of V.
func.func @guard_of_one(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zm = arith.constant dense<false> : !m
  %all = arith.constant dense<true> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %one = arith.constant 1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.andi } ins(%is : !m) outs(%all : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %one, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected a select among probabilities to put zero where all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Heads and queries exchanged.
func.func @guard_of_other_rows(%q: tensor<3x3x16xf32>, %k: tensor<3x16x3xf32>, %v: tensor<3x3x16xf32>, %mask: tensor<3x3x3xf32>) -> tensor<3x3x16xf32> {
  %zs = arith.constant dense<0.0> : tensor<3x3x3xf32>
  %zo = arith.constant dense<0.0> : tensor<3x3x16xf32>
  %zm = arith.constant dense<false> : tensor<3x3x3xi1>
  %all = arith.constant dense<true> : tensor<3x3xi1>
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : tensor<3x3x16xf32>, tensor<3x16x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %x = linalg.add ins(%s, %mask : tensor<3x3x3xf32>, tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %p = linalg.softmax dimension(2) ins(%x : tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : tensor<3x3x3xf32>) outs(%zm : tensor<3x3x3xi1>) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> tensor<3x3x3xi1>
  %hid = linalg.reduce { arith.andi } ins(%is : tensor<3x3x3xi1>) outs(%all : tensor<3x3xi1>) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#x, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %p : tensor<3x3xi1>, tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %zero, %b : f32
      linalg.yield %new : f32
  } -> tensor<3x3x3xf32>
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : tensor<3x3x3xf32>, tensor<3x3x16xf32>) outs(%zo : tensor<3x3x16xf32>) -> tensor<3x3x16xf32>
  return %o : tensor<3x3x16xf32>
}

// Zero is divided by NaN.
func.func @guard_of_weights(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zm = arith.constant dense<false> : !m
  %all = arith.constant dense<true> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.andi } ins(%is : !m) outs(%all : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %e : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %u = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to sum the exponentials that it divides, and nothing else}}
  %o = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%u, %l : !q, !r) outs(%zo : !q) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.divf %a, %b : f32
      linalg.yield %new : f32
  } -> !q
  return %o : !q
}

// -inf is a number.
func.func @not_a_number_of_scores(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x, %p : !s, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf uno, %a, %a : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Which is always so.
func.func @not_a_number_beside_one(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zero = arith.constant 0.0 : f32
  %nan = arith.constant 0x7FC00000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.cmpf uno, %a, %nan : f32
      %new = arith.select %part, %zero, %a : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the select among probabilities to ask whether all scores are -inf}}
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Rows that the condition hides give zero, those that the mask hides NaN.
func.func @replaced_where_unknown(%q: !q, %k: !kt, %v: !v, %mask: !s, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zero = arith.constant 0.0 : f32
  %one = arith.constant 1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %w = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %e : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %zero : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%w : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%w, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %b, %zero : f32
      %rest = arith.select %part, %one, %b : f32
      %new = arith.divf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected a sum of zero to be replaced where the maximum is known to be a number, or that of all scores}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

//===----------------------------------------------------------------------===//
// Sums and shifts
//===----------------------------------------------------------------------===//

func.func @sum_over_queries(%q: !q, %k: !kt, %v: !v) -> !q {
  %zr5 = arith.constant dense<0.0> : tensor<2x5xf32>
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr5 : tensor<2x5xf32>) dimensions = [1]
  %lb = linalg.broadcast ins(%l : tensor<2x5xf32>) outs(%zs : !s) dimensions = [1]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the softmax to run over the tokens of the product with V, and one logit more at most, got 3 terms over 5 tokens}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @softmax_of_queries(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(1) ins(%s : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the softmax to run over the tokens of the product with V}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @sum_of_other_exponentials(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %other = linalg.exp ins(%mask : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%other : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to sum the exponentials that it divides, and nothing else}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A sum that starts from 1, or to which something is added.
func.func @sum_from_one(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %ones = arith.constant dense<1.0> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%ones : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero, got 'linalg.reduce'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @sums_from_a_row(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %row = arith.constant dense<[0.0, 1.0, 2.0]> : tensor<3xf32>
  %init = linalg.broadcast ins(%row : tensor<3xf32>) outs(%zr : !r) dimensions = [0]
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%init : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero, got 'linalg.reduce'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @sum_and_epsilon(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %epsilon = arith.constant 1.0e-3 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.addf %b, %epsilon : f32
      %new = arith.divf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero, got 'arith.addf'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Another sum than zero is replaced.
func.func @sum_replaced_by_less(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %one = arith.constant 1.0 : f32
  %minus = arith.constant -1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %b, %one : f32
      %rest = arith.select %part, %minus, %b : f32
      %new = arith.divf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  // expected-remark@+1 {{attention not raised: expected a select among divisors to replace a sum of zero by a number}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @divided_twice(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %once = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.div ins(%once, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected probabilities to be exponentials, divided by their sum, got 'arith.divf'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @squared(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %p2 = linalg.mul ins(%p, %p : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected probabilities to be exponentials, divided by their sum, got 'arith.mulf'}}
  %o = linalg.batch_matmul ins(%p2, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @divided_by_the_maximum(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.maximumf } ins(%e : !s) outs(%low : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero, got 'linalg.reduce'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// The maximum under another mask may be -inf where these scores are not.
func.func @shift_of_another_mask(%q: !q, %k: !kt, %v: !v, %mask: !s, %other: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %y = linalg.add ins(%s, %other : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%y : !s) outs(%low : !r) dimensions = [2]
  %e = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x, %max : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.subf %a, %b : f32
      %new = math.exp %part : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the maximum that is taken off the scores to be that of the same scores}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @shift_from_init(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %e = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%mask : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.subf %a, %out : f32
      %new = math.exp %part : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected value channels to be a dimension of the result}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @no_sum(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected exponentials to be divided by their sum, before or after the product with V}}
  %o = linalg.batch_matmul ins(%e, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Sums of other heads and queries.
func.func @crossed_sums(%q: tensor<3x3x16xf32>, %k: tensor<3x16x3xf32>, %v: tensor<3x3x16xf32>) -> tensor<3x3x16xf32> {
  %zs = arith.constant dense<0.0> : tensor<3x3x3xf32>
  %zo = arith.constant dense<0.0> : tensor<3x3x16xf32>
  %zr = arith.constant dense<0.0> : tensor<3x3xf32>
  %low = arith.constant dense<0xFF800000> : tensor<3x3xf32>
  %s = linalg.batch_matmul ins(%q, %k : tensor<3x3x16xf32>, tensor<3x16x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %max = linalg.reduce { arith.maximumf } ins(%s : tensor<3x3x3xf32>) outs(%low : tensor<3x3xf32>) dimensions = [2]
  %mb = linalg.broadcast ins(%max : tensor<3x3xf32>) outs(%zs : tensor<3x3x3xf32>) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : tensor<3x3x3xf32>, tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %e = linalg.exp ins(%d : tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %l = linalg.reduce { arith.addf } ins(%e : tensor<3x3x3xf32>) outs(%zr : tensor<3x3xf32>) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #x, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : tensor<3x3x3xf32>, tensor<3x3xf32>) outs(%zs : tensor<3x3x3xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.divf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<3x3x3xf32>
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to sum the exponentials that it divides, and nothing else}}
  %o = linalg.batch_matmul ins(%p, %v : tensor<3x3x3xf32>, tensor<3x3x16xf32>) outs(%zo : tensor<3x3x16xf32>) -> tensor<3x3x16xf32>
  return %o : tensor<3x3x16xf32>
}

func.func @probabilities_transposed(%q: tensor<3x3x16xf32>, %k: tensor<3x16x3xf32>, %v: tensor<3x3x16xf32>) -> tensor<3x3x16xf32> {
  %zs = arith.constant dense<0.0> : tensor<3x3x3xf32>
  %zo = arith.constant dense<0.0> : tensor<3x3x16xf32>
  %s = linalg.batch_matmul ins(%q, %k : tensor<3x3x16xf32>, tensor<3x16x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %p = linalg.softmax dimension(2) ins(%s : tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %pt = linalg.transpose ins(%p : tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) permutation = [0, 2, 1]
  // expected-remark@+1 {{attention not raised: expected the softmax to run over the tokens of the product with V}}
  %o = linalg.batch_matmul ins(%pt, %v : tensor<3x3x3xf32>, tensor<3x3x16xf32>) outs(%zo : tensor<3x3x16xf32>) -> tensor<3x3x16xf32>
  return %o : tensor<3x3x16xf32>
}

//===----------------------------------------------------------------------===//
// Sinks
//===----------------------------------------------------------------------===//

func.func @two_sinks(%q: !q, %k: !kt, %v: !v, %sink: tensor<2x3x2xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %cat = tensor.concat dim(2) %s, %sink : (!s, tensor<2x3x2xf32>) -> tensor<2x3x7xf32>
  %z7 = arith.constant dense<0.0> : tensor<2x3x7xf32>
  %pb = linalg.softmax dimension(2) ins(%cat : tensor<2x3x7xf32>) outs(%z7 : tensor<2x3x7xf32>) -> tensor<2x3x7xf32>
  %p = tensor.extract_slice %pb[0, 0, 0] [2, 3, 5] [1, 1, 1] : tensor<2x3x7xf32> to !s
  // expected-remark@+1 {{attention not raised: expected the softmax to run over the tokens of the product with V, and one logit more at most}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// One for each query.
func.func @sink_of_queries(%q: !q, %k: !kt, %v: !v, %sink: tensor<2x3x1xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %cat = tensor.concat dim(2) %s, %sink : (!s, tensor<2x3x1xf32>) -> !b
  %z6 = arith.constant dense<0.0> : !b
  %pb = linalg.softmax dimension(2) ins(%cat : !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 0] [2, 3, 5] [1, 1, 1] : !b to !s
  // expected-remark@+1 {{attention not raised: expected a logit without a value to be one for each query head}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A sink that takes part, and a token that does not.
func.func @sink_kept(%q: !q, %k: !kt, %v: !v, %sink: tensor<2x3x1xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %cat = tensor.concat dim(2) %s, %sink : (!s, tensor<2x3x1xf32>) -> !b
  %z6 = arith.constant dense<0.0> : !b
  %pb = linalg.softmax dimension(2) ins(%cat : !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 1] [2, 3, 5] [1, 1, 1] : !b to !s
  // expected-remark@+1 {{attention not raised: expected scores that are a scaled product of Q and K, got an element of another tensor}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @part_of_the_tokens(%q: !q, %k: !kt, %v: tensor<2x4x16xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %p4 = tensor.extract_slice %p[0, 0, 0] [2, 3, 4] [1, 1, 1] : !s to tensor<2x3x4xf32>
  // expected-remark@+1 {{attention not raised: expected the key to be read from a tensor of f16, bf16 or f32 with a dimension of tokens and one of channels, got tensor<2x16x5xf32>}}
  %o = linalg.batch_matmul ins(%p4, %v : tensor<2x3x4xf32>, tensor<2x4x16xf32>) outs(%zo : !q) -> !q
  return %o : !q
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

func.func @result_onto_something(%q: !q, %k: !kt, %v: !v, %before: !q) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the product with V to start from zero}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%before : !q) -> !q
  return %o : !q
}

func.func @products_of_magnitudes(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.generic {indexing_maps = [affine_map<(h, i, t, c) -> (h, i, c)>, affine_map<(h, i, t, c) -> (h, c, t)>, affine_map<(h, i, t, c) -> (h, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%q, %k : !q, !kt) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %sum: f32):
      %size = math.absf %a : f32
      %part = arith.mulf %size, %b : f32
      %more = arith.addf %sum, %part : f32
      linalg.yield %more : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected the query to be read from a tensor of f16, bf16 or f32 with a dimension of channels, got 'math.absf'}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @two_products(%q: !q, %k: !kt, %v: !v, %k2: !kt) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %s2 = linalg.batch_matmul ins(%q, %k2 : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %s2 : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected one product of Q and K in the scores, got a sum of two}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @scores_taken_off(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.sub ins(%mask, %s : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected a mask to be added to the scores, got scores that are taken off}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @no_product(%s: !s, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected scores that are a scaled product of Q and K, got an element of another tensor}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Each key has a query of its own.
func.func @queries_by_token(%q: tensor<2x5x16xf32>, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.contract indexing_maps = [affine_map<(h, i, t, c) -> (h, t, c)>, affine_map<(h, i, t, c) -> (h, c, t)>, affine_map<(h, i, t, c) -> (h, i, t)>] ins(%q, %k : tensor<2x5x16xf32>, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected exactly one side of the product of Q and K to depend on the token}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// K is read by head, V by query.
func.func @values_of_other_heads(%q: tensor<3x3x16xf32>, %k: tensor<3x16x3xf32>, %v: tensor<3x3x16xf32>) -> tensor<3x3x16xf32> {
  %zs = arith.constant dense<0.0> : tensor<3x3x3xf32>
  %zo = arith.constant dense<0.0> : tensor<3x3x16xf32>
  %s = linalg.batch_matmul ins(%q, %k : tensor<3x3x16xf32>, tensor<3x16x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  %p = linalg.softmax dimension(2) ins(%s : tensor<3x3x3xf32>) outs(%zs : tensor<3x3x3xf32>) -> tensor<3x3x3xf32>
  // expected-remark@+1 {{attention not raised: expected K and V to be read by the same batch and heads, got tensor<3x16x3xf32> and tensor<3x3x16xf32>}}
  %o = linalg.contract indexing_maps = [affine_map<(h, i, n, t) -> (h, i, t)>, affine_map<(h, i, n, t) -> (i, t, n)>, affine_map<(h, i, n, t) -> (h, i, n)>] ins(%p, %v : tensor<3x3x3xf32>, tensor<3x3x16xf32>) outs(%zo : tensor<3x3x16xf32>) -> tensor<3x3x16xf32>
  return %o : tensor<3x3x16xf32>
}

//===----------------------------------------------------------------------===//
// Types and extents
//===----------------------------------------------------------------------===//

func.func @kinds_of_keys_and_values(%q: !q, %k: !kt, %v: tensor<2x5x16xf16>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  // expected-remark@+1 {{attention not raised: expected K and V of one element type, got f32 and f16}}
  %o = linalg.batch_matmul ins(%p, %v : !s, tensor<2x5x16xf16>) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @result_in_f64(%q: !q, %k: !kt, %v: !v) -> tensor<2x3x16xf64> {
  %zs = arith.constant dense<0.0> : !s
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %zd = arith.constant dense<0.0> : tensor<2x3x16xf64>
  // expected-remark@+1 {{attention not raised: expected a result in f16, bf16 or f32, got f64}}
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zd : tensor<2x3x16xf64>) -> tensor<2x3x16xf64>
  return %o : tensor<2x3x16xf64>
}

// What is quantised on purpose stays so, and is no softmax to begin with.
func.func @rounded_to_a_byte(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %z8 = arith.constant dense<0.0> : tensor<2x3x5xf8E4M3FN>
  %p8 = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%z8 : tensor<2x3x5xf8E4M3FN>) {
    ^bb0(%a: f32, %out: f8E4M3FN):
      %new = arith.truncf %a : f32 to f8E4M3FN
      linalg.yield %new : f8E4M3FN
  } -> tensor<2x3x5xf8E4M3FN>
  %o = linalg.batch_matmul ins(%p8, %v : tensor<2x3x5xf8E4M3FN>, !v) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @one_token(%q: !q, %k: tensor<2x16x1xf32>, %v: tensor<2x1x16xf32>) -> !q {
  %zo = arith.constant dense<0.0> : !q
  %z1 = arith.constant dense<0.0> : tensor<2x3x1xf32>
  %s = linalg.batch_matmul ins(%q, %k : !q, tensor<2x16x1xf32>) outs(%z1 : tensor<2x3x1xf32>) -> tensor<2x3x1xf32>
  %p = linalg.softmax dimension(2) ins(%s : tensor<2x3x1xf32>) outs(%z1 : tensor<2x3x1xf32>) -> tensor<2x3x1xf32>
  // expected-remark@+1 {{attention not raised: expected more than one token, got a static length of 1}}
  %o = linalg.batch_matmul ins(%p, %v : tensor<2x3x1xf32>, tensor<2x1x16xf32>) outs(%zo : !q) -> !q
  return %o : !q
}

func.func @unknown_heads(%q: tensor<?x3x16xf32>, %k: tensor<?x16x5xf32>, %v: tensor<?x5x16xf32>) -> tensor<?x3x16xf32> {
  %zero = arith.constant 0.0 : f32
  %c0 = arith.constant 0 : index
  %heads = tensor.dim %q, %c0 : tensor<?x3x16xf32>
  %se = tensor.empty(%heads) : tensor<?x3x5xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%se : tensor<?x3x5xf32>) -> tensor<?x3x5xf32>
  %s = linalg.batch_matmul ins(%q, %k : tensor<?x3x16xf32>, tensor<?x16x5xf32>) outs(%s0 : tensor<?x3x5xf32>) -> tensor<?x3x5xf32>
  %p = linalg.softmax dimension(2) ins(%s : tensor<?x3x5xf32>) outs(%se : tensor<?x3x5xf32>) -> tensor<?x3x5xf32>
  %oe = tensor.empty(%heads) : tensor<?x3x16xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%oe : tensor<?x3x16xf32>) -> tensor<?x3x16xf32>
  // expected-remark@+1 {{attention not raised: expected the key to be read from a tensor of f16, bf16 or f32 with a dimension of tokens and one of channels, got tensor<?x16x5xf32>}}
  %o = linalg.batch_matmul ins(%p, %v : tensor<?x3x5xf32>, tensor<?x5x16xf32>) outs(%o0 : tensor<?x3x16xf32>) -> tensor<?x3x16xf32>
  return %o : tensor<?x3x16xf32>
}

// Other products are nobody's business.
func.func @another_product(%a: !q, %b: !kt) -> !s {
  %zs = arith.constant dense<0.0> : !s
  %s = linalg.batch_matmul ins(%a, %b : !q, !kt) outs(%zs : !s) -> !s
  return %s : !s
}
