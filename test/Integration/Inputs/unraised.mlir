// What looks like attention and is none: scores are never lower than some number.
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

func.func @bounded_scores(%q: tensor<1x4x1x16xf32>, %k: tensor<1x2x?x16xf32>, %v: tensor<1x2x?x16xf32>, %least: tensor<1x4x1x?xf32>) -> tensor<1x4x1x16xf32> {
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
      ins(%scores, %least : tensor<1x4x1x?xf32>, tensor<1x4x1x?xf32>) outs(%ss : tensor<1x4x1x?xf32>) {
    ^bb0(%in: f32, %bias: f32, %out: f32):
      %y = arith.mulf %in, %scale : f32
      %x = arith.maximumf %y, %bias : f32
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
  %o = linalg.generic {indexing_maps = [#smap2, #vmap, #omap], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
      ins(%p, %vh : tensor<1x4x1x?xf32>, tensor<1x4x?x16xf32>) outs(%o0 : tensor<1x4x1x16xf32>) {
    ^bb0(%a: f32, %b: f32, %acc: f32):
      %m = arith.mulf %a, %b : f32
      %r = arith.addf %acc, %m : f32
      linalg.yield %r : f32
    } -> tensor<1x4x1x16xf32>
  return %o : tensor<1x4x1x16xf32>
}
