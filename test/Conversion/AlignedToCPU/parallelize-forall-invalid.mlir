// RUN: aligned-opt %s --split-input-file --aligned-parallelize-forall --verify-diagnostics

func.func @shared(%t: tensor<8xf32>) -> tensor<8xf32> {
  // expected-error@+1 {{'scf.forall' op expected a parallel loop on buffers, got one with shared outputs: it is bufferized first}}
  %0 = scf.forall (%i) in (8) shared_outs(%o = %t) -> tensor<8xf32> {
    %slice = tensor.extract_slice %t[%i] [1] [1] : tensor<8xf32> to tensor<1xf32>
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %slice into %o[%i] [1] [1] : tensor<1xf32> into tensor<8xf32>
    }
  }
  return %0 : tensor<8xf32>
}

// -----

// expected-note@+1 {{the value is defined here}}
func.func @tensor(%t: tensor<8xf32>, %b: memref<8xf32>) {
  // expected-error@+1 {{'scf.forall' op expected values from outside that LLVM can pass, got 'tensor<8xf32>'}}
  scf.forall (%i) in (8) {
    %x = tensor.extract %t[%i] : tensor<8xf32>
    memref.store %x, %b[%i] : memref<8xf32>
  }
  return
}
