// Squares in bfloat16, which a processor without such arithmetic rounds by a function that not every libgcc has.
func.func @square(%numbers: tensor<?xbf16>) -> tensor<?xbf16> {
  %c0 = arith.constant 0 : index
  %count = tensor.dim %numbers, %c0 : tensor<?xbf16>
  %empty = tensor.empty(%count) : tensor<?xbf16>
  %result = linalg.generic {indexing_maps = [affine_map<(i) -> (i)>, affine_map<(i) -> (i)>], iterator_types = ["parallel"]}
      ins(%numbers : tensor<?xbf16>) outs(%empty : tensor<?xbf16>) {
  ^bb0(%x: bf16, %old: bf16):
    %y = arith.mulf %x, %x : bf16
    linalg.yield %y : bf16
  } -> tensor<?xbf16>
  return %result : tensor<?xbf16>
}
