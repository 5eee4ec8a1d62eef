// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// Softmax, softcap and logits without values, spelling by spelling.

!q = tensor<2x3x16xf32>
!kt = tensor<2x16x5xf32>
!v = tensor<2x5x16xf32>
!s = tensor<2x3x5xf32>
!r = tensor<2x3xf32>
!h = tensor<2x3x5xf16>
!d = tensor<2x3x5xf64>
!b = tensor<2x3x6xf32>
#s = affine_map<(h, i, t) -> (h, i, t)>
#r = affine_map<(h, i, t) -> (h, i)>

// linalg.softmax.
// CHECK-LABEL: func.func @by_name(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @by_name(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// What is taken off the scores does not matter: the maximum,
// CHECK-LABEL: func.func @plain(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @plain(%q: !q, %k: !kt, %v: !v) -> !q {
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
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// one from the lowest float,
// CHECK-LABEL: func.func @from_lowest(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @from_lowest(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %lowest = arith.constant dense<0xFF7FFFFF> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%lowest : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// or from zero,
// CHECK-LABEL: func.func @from_zero(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @from_zero(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%zr : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// none,
// CHECK-LABEL: func.func @no_maximum(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @no_maximum(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%s : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// or two.
// CHECK-LABEL: func.func @twice(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @twice(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max1 = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb1 = linalg.broadcast ins(%max1 : !r) outs(%zs : !s) dimensions = [2]
  %d1 = linalg.sub ins(%s, %mb1 : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%d1 : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%d1, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A number of the row that is no maximum is a mask, since it may be infinite.
// CHECK-LABEL: func.func @another_shift(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @another_shift(%q: !q, %k: !kt, %v: !v, %shift: !r) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %mb = linalg.broadcast ins(%shift : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// 2^(x log2 e) is e^x.
// CHECK-LABEL: func.func @base_two(
// CHECK: %[[SCALE:.*]] = arith.constant 1.000000e+00 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] :
func.func @base_two(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %log2e = arith.constant 1.44269504 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %log2e : f32
      linalg.yield %new : f32
  } -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %e = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x, %max : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.subf %a, %b : f32
      %new = math.exp2 %part : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// a * (1 / sum)
// CHECK-LABEL: func.func @reciprocal(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @reciprocal(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %one = arith.constant 1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.divf %one, %b : f32
      %new = arith.mulf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// The division comes after the product with V.
// CHECK-LABEL: func.func @late_division(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
// CHECK-NOT: divf
func.func @late_division(%q: !q, %k: !kt, %v: !v) -> !q {
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
  %u = linalg.batch_matmul ins(%e, %v : !s, !v) outs(%zo : !q) -> !q
  %o = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%u, %l : !q, !r) outs(%zo : !q) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.divf %a, %b : f32
      linalg.yield %new : f32
  } -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @late_reciprocal(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
// CHECK-NOT: divf
func.func @late_reciprocal(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %one = arith.constant 1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %u = linalg.batch_matmul ins(%e, %v : !s, !v) outs(%zo : !q) -> !q
  %o = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%u, %l : !q, !r) outs(%zo : !q) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.divf %one, %b : f32
      %new = arith.mulf %a, %part : f32
      linalg.yield %new : f32
  } -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @late_named(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
// CHECK-NOT: linalg.div
func.func @late_named(%q: !q, %k: !kt, %v: !v) -> !q {
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
  %u = linalg.batch_matmul ins(%e, %v : !s, !v) outs(%zo : !q) -> !q
  %lq = linalg.broadcast ins(%l : !r) outs(%zo : !q) dimensions = [2]
  %o = linalg.div ins(%u, %lq : !q, !q) outs(%zo : !q) -> !q
  return %o : !q
}

// Roundings on the way are left out.
// CHECK-LABEL: func.func @rounded_scores(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @rounded_scores(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zh = arith.constant dense<0.0> : !h
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %h = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zh : !h) {
    ^bb0(%a: f32, %out: f16):
      %new = arith.truncf %a : f32 to f16
      linalg.yield %new : f16
  } -> !h
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%h : !h) outs(%zs : !s) {
    ^bb0(%a: f16, %out: f32):
      %new = arith.extf %a : f16 to f32
      linalg.yield %new : f32
  } -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @rounded_probabilities(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xbf16>, tensor<1x2x5x16xbf16> -> tensor<1x2x3x16xbf16>
func.func @rounded_probabilities(%q: !q, %k: tensor<2x16x5xbf16>, %v: tensor<2x5x16xbf16>) -> tensor<2x3x16xbf16> {
  %zs = arith.constant dense<0.0> : !s
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, tensor<2x16x5xbf16>) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %zb = arith.constant dense<0.0> : tensor<2x3x5xbf16>
  %zob = arith.constant dense<0.0> : tensor<2x3x16xbf16>
  %pb = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%zb : tensor<2x3x5xbf16>) {
    ^bb0(%a: f32, %out: bf16):
      %new = arith.truncf %a : f32 to bf16
      linalg.yield %new : bf16
  } -> tensor<2x3x5xbf16>
  %o = linalg.batch_matmul ins(%pb, %v : tensor<2x3x5xbf16>, tensor<2x5x16xbf16>) outs(%zob : tensor<2x3x16xbf16>) -> tensor<2x3x16xbf16>
  return %o : tensor<2x3x16xbf16>
}

// The sum of the exponentials in another type.
// CHECK-LABEL: func.func @sum_in_f64(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sum_in_f64(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %zd = arith.constant dense<0.0> : tensor<2x3xf64>
  %l = linalg.generic {indexing_maps = [#s, #r], iterator_types = ["parallel", "parallel", "reduction"]} ins(%e : !s) outs(%zd : tensor<2x3xf64>) {
    ^bb0(%a: f32, %sum: f64):
      %wide = arith.extf %a : f32 to f64
      %more = arith.addf %sum, %wide : f64
      linalg.yield %more : f64
  } -> tensor<2x3xf64>
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, tensor<2x3xf64>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f64, %out: f32):
      %part = arith.truncf %b : f64 to f32
      %new = arith.divf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @sum_in_bf16(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sum_in_bf16(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %zb = arith.constant dense<0.0> : tensor<2x3xbf16>
  %l = linalg.generic {indexing_maps = [#s, #r], iterator_types = ["parallel", "parallel", "reduction"]} ins(%e : !s) outs(%zb : tensor<2x3xbf16>) {
    ^bb0(%a: f32, %sum: bf16):
      %narrow = arith.truncf %a : f32 to bf16
      %more = arith.addf %sum, %narrow : bf16
      linalg.yield %more : bf16
  } -> tensor<2x3xbf16>
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, tensor<2x3xbf16>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: bf16, %out: f32):
      %part = arith.extf %b : bf16 to f32
      %new = arith.divf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @products_in_f64(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @products_in_f64(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zd = arith.constant dense<0.0> : !d
  %s64 = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zd : !d) -> !d
  %s = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s64 : !d) outs(%zs : !s) {
    ^bb0(%a: f64, %out: f32):
      %new = arith.truncf %a : f64 to f32
      linalg.yield %new : f32
  } -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @products_in_f16(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf16>, tensor<1x2x5x16xf16>, tensor<1x2x5x16xf16> -> tensor<1x2x3x16xf16>
func.func @products_in_f16(%q: tensor<2x3x16xf16>, %k: tensor<2x16x5xf16>, %v: tensor<2x5x16xf16>) -> tensor<2x3x16xf16> {
  %zh = arith.constant dense<0.0> : !h
  %s = linalg.batch_matmul ins(%q, %k : tensor<2x3x16xf16>, tensor<2x16x5xf16>) outs(%zh : !h) -> !h
  %p = linalg.softmax dimension(2) ins(%s : !h) outs(%zh : !h) -> !h
  %zo = arith.constant dense<0.0> : tensor<2x3x16xf16>
  %o = linalg.batch_matmul ins(%p, %v : !h, tensor<2x5x16xf16>) outs(%zo : tensor<2x3x16xf16>) -> tensor<2x3x16xf16>
  return %o : tensor<2x3x16xf16>
}

// C tanh(s / C).
// CHECK-LABEL: func.func @softcap(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} softcap 4.0{{0*}}e+00 :
func.func @softcap(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %four = arith.constant 4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %four : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %four : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @softcap_and_mask(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} softcap 4.0{{0*}}e+00 attn_mask
func.func @softcap_and_mask(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
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
  %x = linalg.add ins(%y, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// C tanh(s / D) is a scale, too.
// CHECK-LABEL: func.func @softcap_in_two(
// CHECK: %[[SCALE:.*]] = arith.constant 5.0{{0*}}e-01 : f32
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] softcap 4.0{{0*}}e+00 :
func.func @softcap_in_two(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %eighth = arith.constant 0.125 : f32
  %four = arith.constant 4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.mulf %a, %eighth : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %four : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// 2^x is e^(x ln 2), cap and mask with it.
// CHECK-LABEL: func.func @softcap_in_base_two(
// CHECK: arith.constant 0.693147
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} softcap 2.772588{{[0-9]*}} attn_mask
func.func @softcap_in_base_two(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %four = arith.constant 4.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.divf %a, %four : f32
      %rest = math.tanh %part : f32
      %new = arith.mulf %rest, %four : f32
      linalg.yield %new : f32
  } -> !s
  %x = linalg.add ins(%y, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %e = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x, %max : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.subf %a, %b : f32
      %new = math.exp2 %part : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// One logit more in the sum than in the product with V.
// CHECK-LABEL: func.func @sink_last(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> sink_logits %arg4 : tensor<2xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sink_last(%q: !q, %k: !kt, %v: !v, %mask: !s, %sink: tensor<2xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %z1 = arith.constant dense<0.0> : tensor<2x3x1xf32>
  %z6 = arith.constant dense<0.0> : !b
  %sw = linalg.broadcast ins(%sink : tensor<2xf32>) outs(%z1 : tensor<2x3x1xf32>) dimensions = [1, 2]
  %cat = tensor.concat dim(2) %x, %sw : (!s, tensor<2x3x1xf32>) -> !b
  %max = linalg.reduce { arith.maximumf } ins(%cat : !b) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%z6 : !b) dimensions = [2]
  %d = linalg.sub ins(%cat, %mb : !b, !b) outs(%z6 : !b) -> !b
  %e = linalg.exp ins(%d : !b) outs(%z6 : !b) -> !b
  %l = linalg.reduce { arith.addf } ins(%e : !b) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%z6 : !b) dimensions = [2]
  %pb = linalg.div ins(%e, %lb : !b, !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 0] [2, 3, 5] [1, 1, 1] : !b to !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @sink_first(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} sink_logits %arg3 : tensor<2xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sink_first(%q: !q, %k: !kt, %v: !v, %sink: tensor<2xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %z1 = arith.constant dense<0.0> : tensor<2x3x1xf32>
  %z6 = arith.constant dense<0.0> : !b
  %sw = linalg.broadcast ins(%sink : tensor<2xf32>) outs(%z1 : tensor<2x3x1xf32>) dimensions = [1, 2]
  %cat = tensor.concat dim(2) %sw, %s : (tensor<2x3x1xf32>, !s) -> !b
  %max = linalg.reduce { arith.maximumf } ins(%cat : !b) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%z6 : !b) dimensions = [2]
  %d = linalg.sub ins(%cat, %mb : !b, !b) outs(%z6 : !b) -> !b
  %e = linalg.exp ins(%d : !b) outs(%z6 : !b) -> !b
  %l = linalg.reduce { arith.addf } ins(%e : !b) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%z6 : !b) dimensions = [2]
  %pb = linalg.div ins(%e, %lb : !b, !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 1] [2, 3, 5] [1, 1, 1] : !b to !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @sink_of_half(
// CHECK: %[[SINK:.*]] = linalg.generic
// CHECK: tensor.extract %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} sink_logits %[[SINK]] : tensor<2xf32>
func.func @sink_of_half(%q: !q, %k: !kt, %v: !v, %sink: tensor<2xf16>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %zsk = arith.constant dense<0.0> : tensor<2xf32>
  %wide = linalg.generic {indexing_maps = [affine_map<(h) -> (h)>, affine_map<(h) -> (h)>], iterator_types = ["parallel"]} ins(%sink : tensor<2xf16>) outs(%zsk : tensor<2xf32>) {
    ^bb0(%a: f16, %out: f32):
      %new = arith.extf %a : f16 to f32
      linalg.yield %new : f32
  } -> tensor<2xf32>
  %z1 = arith.constant dense<0.0> : tensor<2x3x1xf32>
  %z6 = arith.constant dense<0.0> : !b
  %sw = linalg.broadcast ins(%wide : tensor<2xf32>) outs(%z1 : tensor<2x3x1xf32>) dimensions = [1, 2]
  %cat = tensor.concat dim(2) %s, %sw : (!s, tensor<2x3x1xf32>) -> !b
  %max = linalg.reduce { arith.maximumf } ins(%cat : !b) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%z6 : !b) dimensions = [2]
  %d = linalg.sub ins(%cat, %mb : !b, !b) outs(%z6 : !b) -> !b
  %e = linalg.exp ins(%d : !b) outs(%z6 : !b) -> !b
  %l = linalg.reduce { arith.addf } ins(%e : !b) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%z6 : !b) dimensions = [2]
  %pb = linalg.div ins(%e, %lb : !b, !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 0] [2, 3, 5] [1, 1, 1] : !b to !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @sink_by_name(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} sink_logits %arg3 : tensor<2xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sink_by_name(%q: !q, %k: !kt, %v: !v, %sink: tensor<2xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %z1 = arith.constant dense<0.0> : tensor<2x3x1xf32>
  %sw = linalg.broadcast ins(%sink : tensor<2xf32>) outs(%z1 : tensor<2x3x1xf32>) dimensions = [1, 2]
  %cat = tensor.concat dim(2) %s, %sw : (!s, tensor<2x3x1xf32>) -> !b
  %z6 = arith.constant dense<0.0> : !b
  %pb = linalg.softmax dimension(2) ins(%cat : !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 0] [2, 3, 5] [1, 1, 1] : !b to !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A mask may be over the sink, too.
// CHECK-LABEL: func.func @sink_under_mask(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x1x1x5xf32> sink_logits %
func.func @sink_under_mask(%q: !q, %k: !kt, %v: !v, %mask: tensor<5xf32>, %sink: tensor<2xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %mz = arith.constant dense<0.0> : tensor<1xf32>
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %z1 = arith.constant dense<0.0> : tensor<2x3x1xf32>
  %sw = linalg.broadcast ins(%sink : tensor<2xf32>) outs(%z1 : tensor<2x3x1xf32>) dimensions = [1, 2]
  %c6 = tensor.concat dim(2) %s, %sw : (!s, tensor<2x3x1xf32>) -> !b
  %m6 = tensor.concat dim(0) %mask, %mz : (tensor<5xf32>, tensor<1xf32>) -> tensor<6xf32>
  %z6 = arith.constant dense<0.0> : !b
  %mw = linalg.broadcast ins(%m6 : tensor<6xf32>) outs(%z6 : !b) dimensions = [0, 1]
  %cat = linalg.add ins(%c6, %mw : !b, !b) outs(%z6 : !b) -> !b
  %pb = linalg.softmax dimension(2) ins(%cat : !b) outs(%z6 : !b) -> !b
  %p = tensor.extract_slice %pb[0, 0, 0] [2, 3, 5] [1, 1, 1] : !b to !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}
