// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// Rows that see nothing give zero where the graph guards them, spelling by spelling.

!q = tensor<2x3x16xf32>
!kt = tensor<2x16x5xf32>
!v = tensor<2x5x16xf32>
!s = tensor<2x3x5xf32>
!m = tensor<2x3x5xi1>
!r = tensor<2x3xf32>
!rm = tensor<2x3xi1>
#s = affine_map<(h, i, t) -> (h, i, t)>
#r = affine_map<(h, i, t) -> (h, i)>

// All scores are -inf.
// CHECK-LABEL: func.func @all(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @all(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
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
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.andi } ins(%is : !m) outs(%all : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// No score is another: not(any(score != -inf)).
// CHECK-LABEL: func.func @not_any(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @not_any(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zm = arith.constant dense<false> : !m
  %zrm = arith.constant dense<false> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %true = arith.constant true
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf une, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %any = linalg.reduce { arith.ori } ins(%is : !m) outs(%zrm : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%any, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %part = arith.xori %a, %true : i1
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// With exchanged arms.
// CHECK-LABEL: func.func @any(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @any(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zm = arith.constant dense<false> : !m
  %zrm = arith.constant dense<false> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf ogt, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %any = linalg.reduce { arith.ori } ins(%is : !m) outs(%zrm : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%any, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %zero : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// The maximum of the scores tells.
// CHECK-LABEL: func.func @maximum(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @maximum(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%max, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @maximum_above(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @maximum_above(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%max, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf ogt, %a, %ninf : f32
      %new = arith.select %part, %b, %zero : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Or that of the one mask that is added.
// CHECK-LABEL: func.func @maximum_of_mask(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @maximum_of_mask(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%mask : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Or the condition of the one select.
// CHECK-LABEL: func.func @condition(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xi1> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @condition(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zrm = arith.constant dense<false> : !rm
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %any = linalg.reduce { arith.ori } ins(%seen : !m) outs(%zrm : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%any, %p : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %zero : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// 0 / 0 is found behind the division.
// CHECK-LABEL: func.func @not_a_number(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @not_a_number(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.cmpf uno, %a, %a : f32
      %new = arith.select %part, %zero, %a : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @unequal_to_itself(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @unequal_to_itself(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %kept = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.cmpf une, %a, %a : f32
      %new = arith.select %part, %zero, %a : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @twice(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @twice(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
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
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %first = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%p : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.cmpf uno, %a, %a : f32
      %new = arith.select %part, %zero, %a : f32
      linalg.yield %new : f32
  } -> !s
  %is = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x : !s) outs(%zm : !m) {
    ^bb0(%a: f32, %out: i1):
      %new = arith.cmpf oeq, %a, %ninf : f32
      linalg.yield %new : i1
  } -> !m
  %hid = linalg.reduce { arith.andi } ins(%is : !m) outs(%all : !rm) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hid, %first : !rm, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A sum of zero is replaced. It is one where the maximum starts from the lowest float,
// CHECK-LABEL: func.func @sum_of_zero(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sum_of_zero(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %lowest = arith.constant dense<0xFF7FFFFF> : !r
  %zero = arith.constant 0.0 : f32
  %one = arith.constant 1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%lowest : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%x, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %b, %zero : f32
      %rest = arith.select %part, %one, %b : f32
      %new = arith.divf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// or where something finite replaces it.
// CHECK-LABEL: func.func @finite_maximum(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> masked_zero : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @finite_maximum(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %one = arith.constant 1.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%x : !s) outs(%low : !r) dimensions = [2]
  %e = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%x, %max : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %b, %ninf : f32
      %rest = arith.select %part, %zero, %b : f32
      %d = arith.subf %a, %rest : f32
      %new = math.exp %d : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %b, %zero : f32
      %rest = arith.select %part, %one, %b : f32
      %new = arith.divf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Else it is no number, and so is the result.
// CHECK-LABEL: func.func @sum_of_nan(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @sum_of_nan(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
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
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %p = linalg.generic {indexing_maps = [#s, #r, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%e, %l : !s, !r) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %b, %zero : f32
      %rest = arith.select %part, %one, %b : f32
      %new = arith.divf %a, %rest : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// The maximum of zeros is never -inf.
// CHECK-LABEL: func.func @never(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @never(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %l = linalg.reduce { arith.addf } ins(%e : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%e, %lb : !s, !s) outs(%zs : !s) -> !s
  %top = linalg.reduce { arith.maximumf } ins(%zs : !s) outs(%low : !r) dimensions = [2]
  %kept = linalg.generic {indexing_maps = [#r, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%top, %p : !r, !s) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %part = arith.cmpf oeq, %a, %ninf : f32
      %new = arith.select %part, %zero, %b : f32
      linalg.yield %new : f32
  } -> !s
  %o = linalg.batch_matmul ins(%kept, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}
