// RUN: aligned-opt %s --aligned-raise-attention | FileCheck %s

// What a graph adds to scores, spelling by spelling. Two heads, three queries, five tokens.

!q = tensor<2x3x16xf32>
!kt = tensor<2x16x5xf32>
!v = tensor<2x5x16xf32>
!s = tensor<2x3x5xf32>
!m = tensor<2x3x5xi1>
!r = tensor<2x3xf32>
#s = affine_map<(h, i, t) -> (h, i, t)>
#t = affine_map<(h, i, t) -> (t)>
#it = affine_map<(h, i, t) -> (i, t)>
#h = affine_map<(h, i, t) -> (h)>

// A tensor that is added is the operand as it is.
// CHECK-LABEL: func.func @added(
// CHECK: %[[MASK:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<1x2x3x5xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @added(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// In its own type, and for all heads.
// CHECK-LABEL: func.func @added_f16(
// CHECK: %[[MASK:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<1x1x3x5xf16>
func.func @added_f16(%q: !q, %k: !kt, %v: !v, %mask: tensor<3x5xf16>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #it, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %mask : !s, tensor<3x5xf16>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f16, %out: f32):
      %part = arith.extf %b : f16 to f32
      %new = arith.addf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @added_bf16(
// CHECK: %[[MASK:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<1x1x1x5xbf16>
func.func @added_bf16(%q: !q, %k: !kt, %v: !v, %mask: tensor<5xbf16>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #t, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %mask : !s, tensor<5xbf16>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: bf16, %out: f32):
      %part = arith.extf %b : bf16 to f32
      %new = arith.addf %a, %part : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Times -1.
// CHECK-LABEL: func.func @subtracted(
// CHECK: %[[MINUS:.*]] = arith.constant -1.0
// CHECK: tensor.extract %arg3
// CHECK: arith.mulf %{{.*}}, %[[MINUS]]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32>
func.func @subtracted(%q: !q, %k: !kt, %v: !v, %offset: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.sub ins(%s, %offset : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A select keeps scores where its condition is true: a boolean operand.
// CHECK-LABEL: func.func @selected(
// CHECK: %[[SEEN:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[SEEN]] : tensor<1x2x3x5xi1> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @selected(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Or where it is false.
// CHECK-LABEL: func.func @hidden(
// CHECK: %[[HIDDEN:.*]] = tensor.extract %arg3
// CHECK: arith.xori %[[HIDDEN]], %true
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xi1>
func.func @hidden(%q: !q, %k: !kt, %v: !v, %hidden: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%hidden, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %ninf, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A low number hides a token where there is another; where there is none, all tokens weigh the same.
// CHECK-LABEL: func.func @selected_to_lowest(
// CHECK: %[[LOW:.*]] = arith.constant -3.40282347E+38 : f32
// CHECK: arith.select %{{.*}}, %{{.*}}, %[[LOW]]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32>
func.func @selected_to_lowest(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %min = arith.constant 0xFF7FFFFF : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %min : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// What adds zero or -inf is a condition.
// CHECK-LABEL: func.func @added_select(
// CHECK: %[[SEEN:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[SEEN]] : tensor<1x2x3x5xi1>
func.func @added_select(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %mask = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen : !m) outs(%zs : !s) {
    ^bb0(%a: i1, %out: f32):
      %new = arith.select %a, %zero, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %x = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A formula is written anew: (1 - seen) * -1e9.
// CHECK-LABEL: func.func @added_number(
// CHECK: tensor.extract %arg3
// CHECK: arith.uitofp
// CHECK: arith.subf
// CHECK: arith.mulf
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32>
func.func @added_number(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %one = arith.constant 1.0 : f32
  %low9 = arith.constant -1.0e9 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %seen : !s, !m) outs(%zs : !s) {
    ^bb0(%a: f32, %b: i1, %out: f32):
      %part = arith.uitofp %b : i1 to f32
      %rest = arith.subf %one, %part : f32
      %w = arith.mulf %rest, %low9 : f32
      %new = arith.addf %a, %w : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Exponentials that are set to zero.
// CHECK-LABEL: func.func @weights(
// CHECK: %[[SEEN:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[SEEN]] : tensor<1x2x3x5xi1> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @weights(%q: !q, %k: !kt, %v: !v, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %zr = arith.constant dense<0.0> : !r
  %low = arith.constant dense<0xFF800000> : !r
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %max = linalg.reduce { arith.maximumf } ins(%s : !s) outs(%low : !r) dimensions = [2]
  %mb = linalg.broadcast ins(%max : !r) outs(%zs : !s) dimensions = [2]
  %d = linalg.sub ins(%s, %mb : !s, !s) outs(%zs : !s) -> !s
  %e = linalg.exp ins(%d : !s) outs(%zs : !s) -> !s
  %w = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %e : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %zero : f32
      linalg.yield %new : f32
  } -> !s
  %l = linalg.reduce { arith.addf } ins(%w : !s) outs(%zr : !r) dimensions = [2]
  %lb = linalg.broadcast ins(%l : !r) outs(%zs : !s) dimensions = [2]
  %p = linalg.div ins(%w, %lb : !s, !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Positions that #aligned.mask says, too: queries are the newest tokens.
// CHECK-LABEL: func.func @causal(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} mask <causal> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @causal(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %c2 = arith.constant 2 : index
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %i = linalg.index 1 : index
      %t = linalg.index 2 : index
      %place = arith.addi %i, %c2 : index
      %part = arith.cmpi ule, %t, %place : index
      %new = arith.select %part, %a, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Queries that are the oldest tokens need an operand.
// CHECK-LABEL: func.func @causal_from_start(
// CHECK: arith.cmpi ule
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x1x3x5xi1> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @causal_from_start(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %i = linalg.index 1 : index
      %t = linalg.index 2 : index
      %part = arith.cmpi ule, %t, %i : index
      %new = arith.select %part, %a, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @window(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} mask <causal, window = 2>
func.func @window(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %c2 = arith.constant 2 : index
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %i = linalg.index 1 : index
      %t = linalg.index 2 : index
      %place = arith.addi %i, %c2 : index
      %end = arith.addi %t, %c2 : index
      %late = arith.cmpi ugt, %t, %place : index
      %old = arith.cmpi ule, %end, %place : index
      %part = arith.ori %late, %old : i1
      %new = arith.select %part, %ninf, %a : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// The first token stays in sight.
// CHECK-LABEL: func.func @window_and_first(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} mask <causal, window = 2, sinks = 1>
func.func @window_and_first(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %c1 = arith.constant 1 : index
  %c2 = arith.constant 2 : index
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %i = linalg.index 1 : index
      %t = linalg.index 2 : index
      %place = arith.addi %i, %c2 : index
      %end = arith.addi %t, %c2 : index
      %known = arith.cmpi ule, %t, %place : index
      %near = arith.cmpi ugt, %end, %place : index
      %first = arith.cmpi ult, %t, %c1 : index
      %kept = arith.ori %near, %first : i1
      %part = arith.andi %known, %kept : i1
      %new = arith.select %part, %a, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A table of constants.
// CHECK-LABEL: func.func @constant(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} mask <causal> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @constant(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %mask = arith.constant dense<[[0.0, 0.0, 0.0, 0xFF800000, 0xFF800000], [0.0, 0.0, 0.0, 0.0, 0xFF800000], [0.0, 0.0, 0.0, 0.0, 0.0]]> : tensor<3x5xf32>
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #it, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %mask : !s, tensor<3x5xf32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @constant_slopes(
// CHECK: %[[MASK:.*]] = arith.constant dense<{{.*}}-4.000000e+00, -3.000000e+00, -2.000000e+00, -1.000000e+00, 0.000000e+00{{.*}}> : tensor<1x1x1x5xf32>
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<1x1x1x5xf32>
func.func @constant_slopes(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %mask = arith.constant dense<[-4.0, -3.0, -2.0, -1.0, 0.0]> : tensor<5xf32>
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #t, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %mask : !s, tensor<5xf32>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Lengths that arguments tell.
// CHECK-LABEL: func.func @lengths(
// CHECK: tensor.extract %arg3
// CHECK: arith.cmpi slt
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x1x5xi1>
func.func @lengths(%q: !q, %k: !kt, %v: !v, %len: tensor<2xi64>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #h, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %len : !s, tensor<2xi64>) outs(%zs : !s) {
    ^bb0(%a: f32, %b: i64, %out: f32):
      %t = linalg.index 2 : index
      %place = arith.index_cast %t : index to i64
      %part = arith.cmpi slt, %place, %b : i64
      %new = arith.select %part, %a, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// No mask.
// CHECK-LABEL: func.func @zeros(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} :
func.func @zeros(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.add ins(%s, %zs : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @all_seen(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} :
func.func @all_seen(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %true = arith.constant true
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.select %true, %a, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Several at once, innermost first.
// CHECK-LABEL: func.func @several(
// CHECK: %[[MASK:.*]] = tensor.extract %arg3
// CHECK: %[[SEEN:.*]] = tensor.extract %arg4
// CHECK: arith.select %[[SEEN]], %[[MASK]], %{{.*}}
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xf32>
func.func @several(%q: !q, %k: !kt, %v: !v, %mask: !s, %seen: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %y : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @two_conditions(
// CHECK: arith.andi
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xi1>
func.func @two_conditions(%q: !q, %k: !kt, %v: !v, %seen: !m, %other: !m) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%seen, %s : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %x = linalg.generic {indexing_maps = [#s, #s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%other, %y : !m, !s) outs(%zs : !s) {
    ^bb0(%a: i1, %b: f32, %out: f32):
      %new = arith.select %a, %b, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A scale that multiplies the mask, too.
// CHECK-LABEL: func.func @behind_scale(
// CHECK: %[[SCALE:.*]] = arith.constant 2.5{{0*}}e-01 : f32
// CHECK: %[[MASK:.*]] = tensor.extract %arg3
// CHECK: arith.mulf %[[MASK]], %[[SCALE]]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %[[SCALE]] attn_mask
func.func @behind_scale(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %quarter = arith.constant 0.25 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = linalg.add ins(%s, %mask : !s, !s) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%y : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %new = arith.mulf %a, %quarter : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// What the product of Q and K starts from is added to it.
// CHECK-LABEL: func.func @in_the_init(
// CHECK: %[[MASK:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<1x2x3x5xf32> : tensor<1x2x3x16xf32>, tensor<1x2x5x16xf32>, tensor<1x2x5x16xf32> -> tensor<1x2x3x16xf32>
func.func @in_the_init(%q: !q, %k: !kt, %v: !v, %mask: !s) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%mask : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// CHECK-LABEL: func.func @constant_in_the_init(
// CHECK: arith.constant dense<{{.*}}0.000000e+00, -1.000000e+00, -2.000000e+00, -3.000000e+00, -4.000000e+00{{.*}}> : tensor<1x1x1x5xf32>
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x1x1x5xf32>
func.func @constant_in_the_init(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %bias = arith.constant dense<[0.0, -1.0, -2.0, -3.0, -4.0]> : tensor<5xf32>
  %init = linalg.broadcast ins(%bias : tensor<5xf32>) outs(%zs : !s) dimensions = [0, 1]
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%init : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%s : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Tokens may be left out by their scores, which are computed twice then.
// CHECK-LABEL: func.func @of_scores(
// CHECK: linalg.batch_matmul
// CHECK: arith.cmpf ogt
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x2x3x5xi1>
func.func @of_scores(%q: !q, %k: !kt, %v: !v) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %part = arith.cmpf ogt, %a, %zero : f32
      %new = arith.select %part, %a, %ninf : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Copies of one row are one row.
// CHECK-LABEL: func.func @repeated(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x1x1x5xf32>
func.func @repeated(%q: !q, %k: !kt, %v: !v, %mask: tensor<1x1x5xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %y = tensor.collapse_shape %mask [[0, 1, 2]] : tensor<1x1x5xf32> into tensor<5xf32>
  %wide = linalg.broadcast ins(%y : tensor<5xf32>) outs(%zs : !s) dimensions = [0, 1]
  %x = linalg.add ins(%s, %wide : !s, !s) outs(%zs : !s) -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// A table of relative positions.
// CHECK-LABEL: func.func @relative(
// CHECK: tensor.extract %arg3[%{{.*}}] : tensor<7xf32>
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x1x3x5xf32>
func.func @relative(%q: !q, %k: !kt, %v: !v, %mask: tensor<7xf32>) -> !q {
  %zs = arith.constant dense<0.0> : !s
  %zo = arith.constant dense<0.0> : !q
  %c2 = arith.constant 2 : index
  %s = linalg.batch_matmul ins(%q, %k : !q, !kt) outs(%zs : !s) -> !s
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : !s) outs(%zs : !s) {
    ^bb0(%a: f32, %out: f32):
      %i = linalg.index 1 : index
      %t = linalg.index 2 : index
      %later = arith.subi %t, %i : index
      %place = arith.addi %later, %c2 : index
      %bias = tensor.extract %mask[%place] : tensor<7xf32>
      %new = arith.addf %a, %bias : f32
      linalg.yield %new : f32
  } -> !s
  %p = linalg.softmax dimension(2) ins(%x : !s) outs(%zs : !s) -> !s
  %o = linalg.batch_matmul ins(%p, %v : !s, !v) outs(%zo : !q) -> !q
  return %o : !q
}

// Where the number of tokens is unknown, positions are an operand.
// CHECK-LABEL: func.func @causal_over_unknown(
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x1x3x?xi1> : tensor<1x2x3x16xf32>, tensor<1x2x?x16xf32>
func.func @causal_over_unknown(%q: !q, %k: tensor<2x?x16xf32>, %v: tensor<2x?x16xf32>) -> !q {
  %zo = arith.constant dense<0.0> : !q
  %ninf = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %c1 = arith.constant 1 : index
  %c3 = arith.constant 3 : index
  %n = tensor.dim %k, %c1 : tensor<2x?x16xf32>
  %first = arith.subi %n, %c3 : index
  %se = tensor.empty(%n) : tensor<2x3x?xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%se : tensor<2x3x?xf32>) -> tensor<2x3x?xf32>
  %s = linalg.contract indexing_maps = [affine_map<(h, i, t, c) -> (h, i, c)>, affine_map<(h, i, t, c) -> (h, t, c)>, affine_map<(h, i, t, c) -> (h, i, t)>] ins(%q, %k : !q, tensor<2x?x16xf32>) outs(%s0 : tensor<2x3x?xf32>) -> tensor<2x3x?xf32>
  %x = linalg.generic {indexing_maps = [#s, #s], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s : tensor<2x3x?xf32>) outs(%se : tensor<2x3x?xf32>) {
    ^bb0(%a: f32, %out: f32):
      %i = linalg.index 1 : index
      %t = linalg.index 2 : index
      %place = arith.addi %first, %i : index
      %part = arith.cmpi sle, %t, %place : index
      %new = arith.select %part, %a, %ninf : f32
      linalg.yield %new : f32
  } -> tensor<2x3x?xf32>
  %p = linalg.softmax dimension(2) ins(%x : tensor<2x3x?xf32>) outs(%se : tensor<2x3x?xf32>) -> tensor<2x3x?xf32>
  %o = linalg.batch_matmul ins(%p, %v : tensor<2x3x?xf32>, tensor<2x?x16xf32>) outs(%zo : !q) -> !q
  return %o : !q
}

// Two batch entries of two heads: a mask by one of them,
// CHECK-LABEL: func.func @of_batch_entries(
// CHECK: %[[MASK:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<2x1x1x5xf32>
func.func @of_batch_entries(%q: tensor<2x2x3x16xf32>, %k: tensor<2x2x5x16xf32>, %v: tensor<2x2x5x16xf32>, %mask: tensor<2x5xf32>) -> tensor<2x2x3x16xf32> {
  %s0 = arith.constant dense<0.0> : tensor<2x2x3x5xf32>
  %o0 = arith.constant dense<0.0> : tensor<2x2x3x16xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, h, i, t, c) -> (b, h, i, c)>, affine_map<(b, h, i, t, c) -> (b, h, t, c)>, affine_map<(b, h, i, t, c) -> (b, h, i, t)>] ins(%q, %k : tensor<2x2x3x16xf32>, tensor<2x2x5x16xf32>) outs(%s0 : tensor<2x2x3x5xf32>) -> tensor<2x2x3x5xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(b, h, i, t) -> (b, h, i, t)>, affine_map<(b, h, i, t) -> (b, t)>, affine_map<(b, h, i, t) -> (b, h, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%s, %mask : tensor<2x2x3x5xf32>, tensor<2x5xf32>) outs(%s0 : tensor<2x2x3x5xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<2x2x3x5xf32>
  %p = linalg.softmax dimension(3) ins(%x : tensor<2x2x3x5xf32>) outs(%s0 : tensor<2x2x3x5xf32>) -> tensor<2x2x3x5xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, h, i, n, t) -> (b, h, i, t)>, affine_map<(b, h, i, n, t) -> (b, h, t, n)>, affine_map<(b, h, i, n, t) -> (b, h, i, n)>] ins(%p, %v : tensor<2x2x3x5xf32>, tensor<2x2x5x16xf32>) outs(%o0 : tensor<2x2x3x16xf32>) -> tensor<2x2x3x16xf32>
  return %o : tensor<2x2x3x16xf32>
}

// CHECK-LABEL: func.func @of_heads(
// CHECK: %[[MASK:.*]] = tensor.expand_shape %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %[[MASK]] : tensor<1x2x1x5xf32>
func.func @of_heads(%q: tensor<2x2x3x16xf32>, %k: tensor<2x2x5x16xf32>, %v: tensor<2x2x5x16xf32>, %mask: tensor<2x5xf32>) -> tensor<2x2x3x16xf32> {
  %s0 = arith.constant dense<0.0> : tensor<2x2x3x5xf32>
  %o0 = arith.constant dense<0.0> : tensor<2x2x3x16xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, h, i, t, c) -> (b, h, i, c)>, affine_map<(b, h, i, t, c) -> (b, h, t, c)>, affine_map<(b, h, i, t, c) -> (b, h, i, t)>] ins(%q, %k : tensor<2x2x3x16xf32>, tensor<2x2x5x16xf32>) outs(%s0 : tensor<2x2x3x5xf32>) -> tensor<2x2x3x5xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(b, h, i, t) -> (b, h, i, t)>, affine_map<(b, h, i, t) -> (h, t)>, affine_map<(b, h, i, t) -> (b, h, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%s, %mask : tensor<2x2x3x5xf32>, tensor<2x5xf32>) outs(%s0 : tensor<2x2x3x5xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<2x2x3x5xf32>
  %p = linalg.softmax dimension(3) ins(%x : tensor<2x2x3x5xf32>) outs(%s0 : tensor<2x2x3x5xf32>) -> tensor<2x2x3x5xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, h, i, n, t) -> (b, h, i, t)>, affine_map<(b, h, i, n, t) -> (b, h, t, n)>, affine_map<(b, h, i, n, t) -> (b, h, i, n)>] ins(%p, %v : tensor<2x2x3x5xf32>, tensor<2x2x5x16xf32>) outs(%o0 : tensor<2x2x3x16xf32>) -> tensor<2x2x3x16xf32>
  return %o : tensor<2x2x3x16xf32>
}

// or by both in another order.
// CHECK-LABEL: func.func @heads_before_batch_entries(
// CHECK: %[[B:.*]] = linalg.index 0
// CHECK: %[[H:.*]] = linalg.index 1
// CHECK: tensor.extract %arg3[%[[H]], %[[B]], %{{[^ ]+}}]
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<2x2x1x5xf32>
func.func @heads_before_batch_entries(%q: tensor<2x2x3x16xf32>, %k: tensor<2x2x5x16xf32>, %v: tensor<2x2x5x16xf32>, %mask: tensor<2x2x5xf32>) -> tensor<2x2x3x16xf32> {
  %s0 = arith.constant dense<0.0> : tensor<2x2x3x5xf32>
  %o0 = arith.constant dense<0.0> : tensor<2x2x3x16xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, h, i, t, c) -> (b, h, i, c)>, affine_map<(b, h, i, t, c) -> (b, h, t, c)>, affine_map<(b, h, i, t, c) -> (b, h, i, t)>] ins(%q, %k : tensor<2x2x3x16xf32>, tensor<2x2x5x16xf32>) outs(%s0 : tensor<2x2x3x5xf32>) -> tensor<2x2x3x5xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(b, h, i, t) -> (b, h, i, t)>, affine_map<(b, h, i, t) -> (h, b, t)>, affine_map<(b, h, i, t) -> (b, h, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%s, %mask : tensor<2x2x3x5xf32>, tensor<2x2x5xf32>) outs(%s0 : tensor<2x2x3x5xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<2x2x3x5xf32>
  %p = linalg.softmax dimension(3) ins(%x : tensor<2x2x3x5xf32>) outs(%s0 : tensor<2x2x3x5xf32>) -> tensor<2x2x3x5xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, h, i, n, t) -> (b, h, i, t)>, affine_map<(b, h, i, n, t) -> (b, h, t, n)>, affine_map<(b, h, i, n, t) -> (b, h, i, n)>] ins(%p, %v : tensor<2x2x3x5xf32>, tensor<2x2x5x16xf32>) outs(%o0 : tensor<2x2x3x16xf32>) -> tensor<2x2x3x16xf32>
  return %o : tensor<2x2x3x16xf32>
}

// For each kv head, or each query head of one.
// CHECK-LABEL: func.func @of_kv_heads(
// CHECK: tensor.extract %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x6x1x5xf32>
func.func @of_kv_heads(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>, %mask: tensor<2x5xf32>) -> tensor<1x2x3x3x16xf32> {
  %s0 = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %o0 = arith.constant dense<0.0> : tensor<1x2x3x3x16xf32>
  %qg = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 3, 16] : tensor<1x6x3x16xf32> into tensor<1x2x3x3x16xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, k, g, i, t, c) -> (b, k, g, i, c)>, affine_map<(b, k, g, i, t, c) -> (b, k, t, c)>, affine_map<(b, k, g, i, t, c) -> (b, k, g, i, t)>] ins(%qg, %k : tensor<1x2x3x3x16xf32>, tensor<1x2x5x16xf32>) outs(%s0 : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(b, k, g, i, t) -> (b, k, g, i, t)>, affine_map<(b, k, g, i, t) -> (k, t)>, affine_map<(b, k, g, i, t) -> (b, k, g, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%s, %mask : tensor<1x2x3x3x5xf32>, tensor<2x5xf32>) outs(%s0 : tensor<1x2x3x3x5xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<1x2x3x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%x : tensor<1x2x3x3x5xf32>) outs(%s0 : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, k, g, i, n, t) -> (b, k, g, i, t)>, affine_map<(b, k, g, i, n, t) -> (b, k, t, n)>, affine_map<(b, k, g, i, n, t) -> (b, k, g, i, n)>] ins(%p, %v : tensor<1x2x3x3x5xf32>, tensor<1x2x5x16xf32>) outs(%o0 : tensor<1x2x3x3x16xf32>) -> tensor<1x2x3x3x16xf32>
  return %o : tensor<1x2x3x3x16xf32>
}

// CHECK-LABEL: func.func @of_groups(
// CHECK: tensor.extract %arg3
// CHECK: aligned.attention %{{[^ ]+}}, %{{[^ ]+}}, %{{[^ ]+}} scale %{{[^ ]+}} attn_mask %{{[^ ]+}} : tensor<1x6x1x5xf32>
func.func @of_groups(%q: tensor<1x6x3x16xf32>, %k: tensor<1x2x5x16xf32>, %v: tensor<1x2x5x16xf32>, %mask: tensor<3x5xf32>) -> tensor<1x2x3x3x16xf32> {
  %s0 = arith.constant dense<0.0> : tensor<1x2x3x3x5xf32>
  %o0 = arith.constant dense<0.0> : tensor<1x2x3x3x16xf32>
  %qg = tensor.expand_shape %q [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 3, 16] : tensor<1x6x3x16xf32> into tensor<1x2x3x3x16xf32>
  %s = linalg.contract indexing_maps = [affine_map<(b, k, g, i, t, c) -> (b, k, g, i, c)>, affine_map<(b, k, g, i, t, c) -> (b, k, t, c)>, affine_map<(b, k, g, i, t, c) -> (b, k, g, i, t)>] ins(%qg, %k : tensor<1x2x3x3x16xf32>, tensor<1x2x5x16xf32>) outs(%s0 : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(b, k, g, i, t) -> (b, k, g, i, t)>, affine_map<(b, k, g, i, t) -> (g, t)>, affine_map<(b, k, g, i, t) -> (b, k, g, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%s, %mask : tensor<1x2x3x3x5xf32>, tensor<3x5xf32>) outs(%s0 : tensor<1x2x3x3x5xf32>) {
    ^bb0(%a: f32, %b: f32, %out: f32):
      %new = arith.addf %a, %b : f32
      linalg.yield %new : f32
  } -> tensor<1x2x3x3x5xf32>
  %p = linalg.softmax dimension(4) ins(%x : tensor<1x2x3x3x5xf32>) outs(%s0 : tensor<1x2x3x3x5xf32>) -> tensor<1x2x3x3x5xf32>
  %o = linalg.contract indexing_maps = [affine_map<(b, k, g, i, n, t) -> (b, k, g, i, t)>, affine_map<(b, k, g, i, n, t) -> (b, k, t, n)>, affine_map<(b, k, g, i, n, t) -> (b, k, g, i, n)>] ins(%p, %v : tensor<1x2x3x3x5xf32>, tensor<1x2x5x16xf32>) outs(%o0 : tensor<1x2x3x3x16xf32>) -> tensor<1x2x3x3x16xf32>
  return %o : tensor<1x2x3x3x16xf32>
}
