// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// What scores are multiplied by, wherever and in whatever form it stands.

!q = tensor<2x3x16xf32>
!kt = tensor<2x16x5xf32>
!v = tensor<2x5x16xf32>
!s = tensor<2x3x5xf32>
!r = tensor<2x3xf32>
#s = affine_map<(h, i, t) -> (h, i, t)>
#one = affine_map<(h, i, t) -> (0)>
#none = affine_map<(h, i, t) -> ()>

// Constants are multiplied at compile time: a scalar,
// CHECK-LABEL: func.func @constant(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @constant(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %quarter = arith.constant 0.25 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %quarter : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// a tensor of one element,
// CHECK-LABEL: func.func @splat(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @splat(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %scale = arith.constant dense<0.25> : tensor<1xf32>
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #one, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %scale : !s, tensor<1xf32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.mulf %a, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// one of rank 0,
// CHECK-LABEL: func.func @rank_zero(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @rank_zero(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %scale = arith.constant dense<0.25> : tensor<f32>
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #none, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %scale : !s, tensor<f32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.mulf %b, %a : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// one as large as the scores,
// CHECK-LABEL: func.func @whole(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @whole(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %scale = arith.constant dense<0.25> : !s
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.mul ins(%s, %scale : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// 1 / sqrt(16),
// CHECK-LABEL: func.func @root(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @root(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %one = arith.constant 1.0 : f32
  %dim = arith.constant 16.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = math.sqrt %dim : f32
      %rest = arith.divf %one, %part : f32
      %new = arith.mulf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @root_of_integer(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @root_of_integer(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %dim = arith.constant 16 : i64
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.sitofp %dim : i64 to f32
      %rest = math.sqrt %part : f32
      %new = arith.divf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// a divisor,
// CHECK-LABEL: func.func @division(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @division(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %four = arith.constant 4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.divf %a, %four : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// 0.1 in f16,
// CHECK-LABEL: func.func @rounded(
// CHECK: %[[SCALE:.*]] = arith.constant 0.0999755859 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @rounded(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %scale = arith.constant 0.1 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.truncf %scale : f32 to f16
      %rest = arith.extf %part : f16 to f32
      %new = arith.mulf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// or -1.
// CHECK-LABEL: func.func @negative(
// CHECK: %[[SCALE:.*]] = arith.constant -1.0{{0*}}e+00 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @negative(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.negf %a : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// The scale may be on Q, on both sides,
// CHECK-LABEL: func.func @on_queries(
// CHECK: %[[SCALE:.*]] = arith.constant 5.0{{0*}}e-01 : f32
// CHECK: %[[Q:.*]] = tensor.expand_shape %arg0
// CHECK: aligned.attention %[[Q]], %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @on_queries(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %half = arith.constant 0.5 : f32
  %qs = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%q : !q) outs(%zo : !q) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %half : f32
      linalg.yield %new : f32
  } -> !q
  %s = linalg.batch_matmul ins(%qs, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @on_both_sides(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @on_both_sides(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zk = arith.constant dense<0.0> : !kt
  %half = arith.constant 0.5 : f32
  %qs = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%q : !q) outs(%zo : !q) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %half : f32
      linalg.yield %new : f32
  } -> !q
  %ks = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%k : !kt) outs(%zk : !kt) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %half : f32
      linalg.yield %new : f32
  } -> !kt
  %s = linalg.batch_matmul ins(%qs, %ks : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// in front of a transposition of K,
// CHECK-LABEL: func.func @on_keys(
// CHECK: %[[SCALE:.*]] = arith.constant 5.0{{0*}}e-01 : f32
// CHECK: %[[K:.*]] = tensor.expand_shape %arg1
// CHECK: aligned.attention %{{[^ ]+}}, %[[K]], %{{[^ ]+}} scale %[[SCALE]] :
func.func @on_keys(%q: !q, %kc: !v, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zk = arith.constant dense<0.0> : !kt
  %zv = arith.constant dense<0.0> : !v
  %half = arith.constant 0.5 : f32
  %kh = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%kc : !v) outs(%zv : !v) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %half : f32
      linalg.yield %new : f32
  } -> !v
  %k = linalg.transpose ins(%kh : !v) outs(%zk : !kt) permutation = [0, 2, 1]
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// or behind the maximum.
// CHECK-LABEL: func.func @in_the_exponent(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @in_the_exponent(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %quarter = arith.constant 0.25 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%d : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.mulf %a, %quarter : f32
      %new = math.exp %part : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Scales that the graph computes: an element of an argument,
// CHECK-LABEL: func.func @argument(
// CHECK: %[[SCALE:.*]] = tensor.extract %arg3[%{{.*}}] : tensor<1xf32>
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @argument(%q: !q, %k: !kt, %v: !v, %scale: tensor<1xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #one, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %scale : !s, tensor<1xf32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.mulf %a, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @argument_of_rank_zero(
// CHECK: %[[SCALE:.*]] = tensor.extract %arg3[] : tensor<f32>
// CHECK: %[[WIDE:.*]] = arith.extf %[[SCALE]] : f32 to f64
// CHECK: arith.divf %{{.*}}, %[[WIDE]]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} :
func.func @argument_of_rank_zero(%q: !q, %k: !kt, %v: !v, %scale: tensor<f32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #none, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %scale : !s, tensor<f32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.divf %a, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @argument_f16(
// CHECK: tensor.extract %arg3
// CHECK: arith.extf
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} :
func.func @argument_f16(%q: !q, %k: !kt, %v: !v, %scale: tensor<1xf16>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #one, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %scale : !s, tensor<1xf16>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f16, %out: f32):
      %part = arith.extf %b : f16 to f32
      %new = arith.mulf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// or a scalar.
// CHECK-LABEL: func.func @scalar_argument(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %arg3 :
func.func @scalar_argument(%q: !q, %k: !kt, %v: !v, %scale: f32) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %scale : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}
