// Twice a row of numbers of any length: a result whose size only the call knows, made by a parallel loop that gives up at a negative number.
func.func @main(%numbers: tensor<?xf32>) -> tensor<?xf32> {
  %c0 = arith.constant 0 : index
  %zero = arith.constant 0.0 : f32
  %count = tensor.dim %numbers, %c0 : tensor<?xf32>
  %empty = tensor.empty(%count) : tensor<?xf32>
  %result = scf.forall (%i) in (%count) shared_outs(%out = %empty) -> tensor<?xf32> {
    %x = tensor.extract %numbers[%i] : tensor<?xf32>
    %fits = arith.cmpf oge, %x, %zero : f32
    cf.assert %fits, "expected numbers from 0 on"
    %y = arith.addf %x, %x : f32
    %one = tensor.from_elements %y : tensor<1xf32>
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %one into %out[%i] [1] [1] : tensor<1xf32> into tensor<?xf32>
    }
  }
  return %result : tensor<?xf32>
}
