// One decode step of a layer: the token's keys and values go into the caches, and its 9 query heads attend to them (3 kv heads, head_dim 48). Each head is scaled by a gain.
#head = affine_map<(b, h, d) -> (h)>
#out = affine_map<(b, h, d) -> (b, h, 0, d)>
#flat = affine_map<(b, h, d) -> (b, h, d)>
func.func @step(%query: tensor<2x9x1x48xf32>, %key: tensor<2x3x1x48xf32>, %value: tensor<2x3x1x48xf32>, %keys: tensor<2x3x?x48xf32>, %values: tensor<2x3x?x48xf32>,
                %gains: tensor<?xf32>) -> (tensor<2x9x48xf32>, tensor<2x3x?x48xf32>, tensor<2x3x?x48xf32>) {
  %scale = arith.constant 0.14433757 : f32
  %zero = arith.constant 0 : index
  %heads = arith.constant 9 : index
  %given = tensor.dim %gains, %zero : tensor<?xf32>
  %fits = arith.cmpi eq, %given, %heads : index
  cf.assert %fits, "expected a gain for each of 9 heads"
  %allKeys = aligned.append %key to %keys : tensor<2x3x1x48xf32> to tensor<2x3x?x48xf32> -> tensor<2x3x?x48xf32>
  %allValues = aligned.append %value to %values : tensor<2x3x1x48xf32> to tensor<2x3x?x48xf32> -> tensor<2x3x?x48xf32>
  %attended = aligned.attention %query, %allKeys, %allValues scale %scale : tensor<2x9x1x48xf32>, tensor<2x3x?x48xf32>, tensor<2x3x?x48xf32> -> tensor<2x9x1x48xf32>
  %empty = tensor.empty() : tensor<2x9x48xf32>
  %result = linalg.generic {indexing_maps = [#out, #head, #flat], iterator_types = ["parallel", "parallel", "parallel"]}
      ins(%attended, %gains : tensor<2x9x1x48xf32>, tensor<?xf32>) outs(%empty : tensor<2x9x48xf32>) {
  ^bb0(%x: f32, %gain: f32, %old: f32):
    %y = arith.mulf %x, %gain : f32
    linalg.yield %y : f32
  } -> tensor<2x9x48xf32>
  return %result, %allKeys, %allValues : tensor<2x9x48xf32>, tensor<2x3x?x48xf32>, tensor<2x3x?x48xf32>
}
