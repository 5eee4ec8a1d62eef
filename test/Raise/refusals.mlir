// RUN: aligned-opt %s --aligned-raise-attention --verify-diagnostics -o /dev/null

// What is no plain attention stays as it is, and the product with V gets a remark that says why.

#elt = affine_map<(b, h, m, t) -> (b, h, m, t)>
#row = affine_map<(b, h, m, t) -> (b, h, m)>
#qmap = affine_map<(b, h, m, t, c) -> (b, h, m, c)>
#kmap = affine_map<(b, h, m, t, c) -> (b, h, t, c)>
#smap = affine_map<(b, h, m, t, c) -> (b, h, m, t)>
#smap2 = affine_map<(b, h, m, n, t) -> (b, h, m, t)>
#vmap = affine_map<(b, h, m, n, t) -> (b, h, t, n)>
#omap = affine_map<(b, h, m, n, t) -> (b, h, m, n)>
#grp = affine_map<(b, k, g, t, c) -> (b, k, t, c)>
#grpswap = affine_map<(b, k, g, t, c) -> (b, g, t, c)>
#all = affine_map<(b, k, g, t, c) -> (b, k, g, t, c)>
#omap_transposed = affine_map<(b, h, m, n, t) -> (b, h, n, m)>

func.func @additive_mask(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>, %mask: tensor<1x4x1x?xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores, %mask : tensor<1x4x1x?xf32>, tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %bias: f32, %out: f32):
      %y = arith.mulf %in, %scale : f32
      %x = arith.addf %y, %bias : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: the scores are masked by an additive operand, expected none}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @select_mask(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>, %mask: tensor<1x4x1x?xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores, %mask : tensor<1x4x1x?xf32>, tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %bias: f32, %out: f32):
      %y = arith.mulf %in, %scale : f32
      %b = arith.cmpf ogt, %bias, %zero : f32
      %x = arith.select %b, %y, %ninf : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: the scores are masked by a select, expected none}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @softcap(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %y = arith.mulf %in, %scale : f32
      %x = math.tanh %y : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected scores that are a scaled product of Q and K, got a softcap or another function of them}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @maximum_of_other_scores(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scores : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected the maximum that is taken off the scores to be that of the same scores}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @sum_of_other_values(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to sum the exponentials that it divides, and nothing else}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @divisor_is_a_product(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.mulf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected the divisor of the softmax to be the sum of its exponentials over the tokens, from zero}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @maximum_from_zero(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected what is taken off the scores to be their maximum over the tokens, from -inf}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @scores_onto_something(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%scale : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected the product of Q and K to start from zero}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @heads_crossed(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grpswap, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected query head 1 of batch 0 to read kv head 0 of the same batch}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @head_dim(%q: tensor<1x4x1x24xf32>, %k: tensor<1x2x?x24xf32>, %v: tensor<1x2x?x24xf32>) -> tensor<1x4x1x24xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x24xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x24xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x24xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x24xf32>) outs(%ke : tensor<1x2x2x?x24xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x24xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x24xf32> into tensor<1x4x?x24xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x24xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x24xf32>) outs(%ve : tensor<1x2x2x?x24xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x24xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x24xf32> into tensor<1x4x?x24xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x24xf32>, tensor<1x4x?x24xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x24xf32>) -> tensor<1x4x1x24xf32>
  // expected-remark@+1 {{attention not raised: expected the key's head_dim to be a multiple of 16, at most 256, got 24}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x24xf32>) outs(%o0 : tensor<1x4x1x24xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x24xf32>
  return %o : tensor<1x4x1x24xf32>
}

func.func @too_many_query_rows(%q: tensor<1x33x1x16xf32>, %k: tensor<1x1x?x16xf32>, %v: tensor<1x1x?x16xf32>) -> tensor<1x33x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x1x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x33x1x?xf32>
  %rs = tensor.empty() : tensor<1x33x1xf32>
  %os = tensor.empty() : tensor<1x33x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x1x33x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x1x?x16xf32>) outs(%ke : tensor<1x1x33x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x1x33x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x1x33x?x16xf32> into tensor<1x33x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x1x33x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x1x?x16xf32>) outs(%ve : tensor<1x1x33x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x1x33x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x1x33x?x16xf32> into tensor<1x33x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x33x1x?xf32>) -> tensor<1x33x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x33x1x16xf32>, tensor<1x33x?x16xf32>) outs(%s0 : tensor<1x33x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x33x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x33x1x?xf32>) outs(%ss : tensor<1x33x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x33x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x33x1xf32>) -> tensor<1x33x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x33x1x?xf32>) outs(%m0 : tensor<1x33x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x33x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x33x1x?xf32>, tensor<1x33x1xf32>) outs(%ss : tensor<1x33x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x33x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x33x1xf32>) -> tensor<1x33x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x33x1x?xf32>) outs(%l0 : tensor<1x33x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x33x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x33x1x?xf32>, tensor<1x33x1xf32>) outs(%ss : tensor<1x33x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x33x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x33x1x16xf32>) -> tensor<1x33x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected at most 32 query rows per kv head, got 33}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x33x1x?xf32>, tensor<1x33x?x16xf32>) outs(%o0 : tensor<1x33x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x33x1x16xf32>
  return %o : tensor<1x33x1x16xf32>
}

func.func @absolute_products_of_q_and_k(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %u = math.absf %a : f32
      %m = arith.mulf %u, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected the product of Q and K to sum products of its operands as they are, got another function of them}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @absolute_values(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf32>
  %rs = tensor.empty() : tensor<1x4x1xf32>
  %os = tensor.empty() : tensor<1x4x1x16xf32>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf32>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      linalg.yield %in : f32
    } -> tensor<1x2x2x?x16xf32>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf32> into tensor<1x4x?x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x4x1x?xf32>) -> tensor<1x4x1x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf32>) outs(%s0 : tensor<1x4x1x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x4x1x?xf32>) outs(%m0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x4x1xf32>) -> tensor<1x4x1xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf32>) outs(%l0 : tensor<1x4x1xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf32>, tensor<1x4x1xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x4x1x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x4x1x16xf32>) -> tensor<1x4x1x16xf32>
  // expected-remark@+1 {{attention not raised: expected the product with V to sum products of its operands as they are, got another function of them}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %u = math.absf %b : f32
      %m = arith.mulf %a, %u : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}

func.func @transposed_result(%q: tensor<1x2x16x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x2x16x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.25 : f32
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x2x16x?xf32>
  %rs = tensor.empty() : tensor<1x2x16xf32>
  %os = tensor.empty() : tensor<1x2x16x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%ss : tensor<1x2x16x?xf32>) -> tensor<1x2x16x?xf32>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %k : tensor<1x2x16x16xf32>, tensor<1x2x?x16xf32>) outs(%s0 : tensor<1x2x16x?xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x2x16x?xf32>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x2x16x?xf32>) outs(%ss : tensor<1x2x16x?xf32>) {
    ^bb0(%in: f32, %out: f32):
      %x = arith.mulf %in, %scale : f32
      linalg.yield %x : f32
    } -> tensor<1x2x16x?xf32>
  %m0 = linalg.fill ins(%ninf : f32) outs(%rs : tensor<1x2x16xf32>) -> tensor<1x2x16xf32>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scaled : tensor<1x2x16x?xf32>) outs(%m0 : tensor<1x2x16xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.maximumf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x2x16xf32>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scaled, %max : tensor<1x2x16x?xf32>, tensor<1x2x16xf32>) outs(%ss : tensor<1x2x16x?xf32>) {
    ^bb0(%in: f32, %top: f32, %out: f32):
      %d = arith.subf %in, %top : f32
      %x = math.exp %d : f32
      linalg.yield %x : f32
    } -> tensor<1x2x16x?xf32>
  %l0 = linalg.fill ins(%zero : f32) outs(%rs : tensor<1x2x16xf32>) -> tensor<1x2x16xf32>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x2x16x?xf32>) outs(%l0 : tensor<1x2x16xf32>) {
    ^bb0(%in: f32, %acc: f32):
      %r = arith.addf %in, %acc : f32
      linalg.yield %r : f32
    } -> tensor<1x2x16xf32>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x2x16x?xf32>, tensor<1x2x16xf32>) outs(%ss : tensor<1x2x16x?xf32>) {
    ^bb0(%in: f32, %l: f32, %out: f32):
      %x = arith.divf %in, %l : f32
      linalg.yield %x : f32
    } -> tensor<1x2x16x?xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%os : tensor<1x2x16x16xf32>) -> tensor<1x2x16x16xf32>
  // expected-remark@+1 {{attention not raised: expected the product with V to give batch, heads, queries and value channels in this order, got them transposed}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap_transposed], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %v : tensor<1x2x16x?xf32>, tensor<1x2x?x16xf32>) outs(%o0 : tensor<1x2x16x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x2x16x16xf32>
  return %o : tensor<1x2x16x16xf32>
}

func.func @sums_in_f64(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>) -> tensor<1x4x1x16xf64> {
  %zero = arith.constant 0.0 : f64
  %ninf = arith.constant 0xFFF0000000000000 : f64
  %scale = arith.constant 0.25 : f64
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<1x2x?x16xf32>
  %ss = tensor.empty(%n) : tensor<1x4x1x?xf64>
  %rs = tensor.empty() : tensor<1x4x1xf64>
  %os = tensor.empty() : tensor<1x4x1x16xf64>
  %ke = tensor.empty(%n) : tensor<1x2x2x?x16xf64>
  %kg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<1x2x?x16xf32>) outs(%ke : tensor<1x2x2x?x16xf64>) {
    ^bb0(%in: f32, %out: f64):
      %w = arith.extf %in : f32 to f64
      linalg.yield %w : f64
    } -> tensor<1x2x2x?x16xf64>
  %kh = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf64> into tensor<1x4x?x16xf64>
  %ve = tensor.empty(%n) : tensor<1x2x2x?x16xf64>
  %vg = linalg.generic {indexing_maps = [#grp, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%v : tensor<1x2x?x16xf32>) outs(%ve : tensor<1x2x2x?x16xf64>) {
    ^bb0(%in: f32, %out: f64):
      %w = arith.extf %in : f32 to f64
      linalg.yield %w : f64
    } -> tensor<1x2x2x?x16xf64>
  %vh = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<1x2x2x?x16xf64> into tensor<1x4x?x16xf64>
  %s0 = linalg.fill ins(%zero : f64) outs(%ss : tensor<1x4x1x?xf64>) -> tensor<1x4x1x?xf64>
  %scores = linalg.generic {indexing_maps = [#qmap, #kmap, #smap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%q, %kh : tensor<1x4x1x16xf32>, tensor<1x4x?x16xf64>) outs(%s0 : tensor<1x4x1x?xf64>) {
    ^bb0(%a0: f32, %b: f64, %acc: f64):
      %a = arith.extf %a0 : f32 to f64
      %m = arith.mulf %a, %b : f64
      %r = arith.addf %acc, %m : f64
      linalg.yield %r : f64
    } -> tensor<1x4x1x?xf64>
  %scaled = linalg.generic {indexing_maps = [#elt, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%scores : tensor<1x4x1x?xf64>) outs(%ss : tensor<1x4x1x?xf64>) {
    ^bb0(%in: f64, %out: f64):
      %x = arith.mulf %in, %scale : f64
      linalg.yield %x : f64
    } -> tensor<1x4x1x?xf64>
  %m0 = linalg.fill ins(%ninf : f64) outs(%rs : tensor<1x4x1xf64>) -> tensor<1x4x1xf64>
  %max = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%scores : tensor<1x4x1x?xf64>) outs(%m0 : tensor<1x4x1xf64>) {
    ^bb0(%in: f64, %acc: f64):
      %r = arith.maximumf %in, %acc : f64
      linalg.yield %r : f64
    } -> tensor<1x4x1xf64>
  %e = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%scores, %max : tensor<1x4x1x?xf64>, tensor<1x4x1xf64>) outs(%ss : tensor<1x4x1x?xf64>) {
    ^bb0(%in: f64, %top: f64, %out: f64):
      %d = arith.subf %in, %top : f64
      %x = math.exp %d : f64
      linalg.yield %x : f64
    } -> tensor<1x4x1x?xf64>
  %l0 = linalg.fill ins(%zero : f64) outs(%rs : tensor<1x4x1xf64>) -> tensor<1x4x1xf64>
  %sum = linalg.generic {indexing_maps = [#elt, #row], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%e : tensor<1x4x1x?xf64>) outs(%l0 : tensor<1x4x1xf64>) {
    ^bb0(%in: f64, %acc: f64):
      %r = arith.addf %in, %acc : f64
      linalg.yield %r : f64
    } -> tensor<1x4x1xf64>
  %p = linalg.generic {indexing_maps = [#elt, #row, #elt], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%e, %sum : tensor<1x4x1x?xf64>, tensor<1x4x1xf64>) outs(%ss : tensor<1x4x1x?xf64>) {
    ^bb0(%in: f64, %l: f64, %out: f64):
      %x = arith.divf %in, %l : f64
      linalg.yield %x : f64
    } -> tensor<1x4x1x?xf64>
  %o0 = linalg.fill ins(%zero : f64) outs(%os : tensor<1x4x1x16xf64>) -> tensor<1x4x1x16xf64>
  // expected-remark@+1 {{attention not raised: expected the product with V to be summed in f32, got f64}}
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf64>, tensor<1x4x?x16xf64>) outs(%o0 : tensor<1x4x1x16xf64>) {
    ^bb0(%a: f64, %b: f64, %acc: f64):
      %m = arith.mulf %a, %b : f64
      %r = arith.addf %acc, %m : f64
      linalg.yield %r : f64
    } -> tensor<1x4x1x16xf64>
  return %o : tensor<1x4x1x16xf64>
}

// A product that is no attention is nobody's business.
func.func @plain_product(%a: tensor<2x1x16xf32>, %b: tensor<2x16x16xf32>) -> tensor<2x1x16xf32> {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<2x1x16xf32>
  %0 = linalg.fill ins(%zero : f32) outs(%e : tensor<2x1x16xf32>) -> tensor<2x1x16xf32>
  %o = linalg.batch_matmul ins(%a, %b : tensor<2x1x16xf32>, tensor<2x16x16xf32>) outs(%0 : tensor<2x1x16xf32>) -> tensor<2x1x16xf32>
  return %o : tensor<2x1x16xf32>
}
