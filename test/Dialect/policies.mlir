// RUN: aligned-opt %s | aligned-opt | FileCheck %s
// RUN: aligned-opt %s --mlir-print-op-generic | aligned-opt | FileCheck %s

// P7: limits of each side of attention, for all kv heads or for each.

!q = tensor<1x9x1x64xf16>
!key = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
#limited = #aligned.policy<budget, tolerance = 0.00390625, key = <bits = 4 to 12, sinks = 4>,
                           value = <tolerance = 0.0009765625, newest = 65, ages = [1: 12, 1024: 8, 4096: 0]>>

// CHECK-LABEL: func.func @declared(
// CHECK: aligned.attention {{.*}} scale %{{[^ ]*}} policy <budget, tolerance = 3.906250e-03, key = <bits = 4 to 12, sinks = 4>, value = <tolerance = 9.765625E-4, newest = 65, ages = [1: 12, 1024: 8, 4096: 0]>> masked_zero :
// CHECK: aligned.attention {{.*}} scale %{{[^ ]*}} policies [<exact>, <exact>, <exact>] :
func.func @declared(%q: !q, %k: !key, %v: !value, %scale: f32) -> (!q, !q) {
  %a = aligned.attention %q, %k, %v scale %scale policy #limited masked_zero : !q, !key, !value -> !q
  %b = aligned.attention %q, %k, %v scale %scale policies [<exact>, <exact>, <exact>] : !q, !key, !value -> !q
  return %a, %b : !q, !q
}

// CHECK-LABEL: func.func @computed(
// CHECK: policies [<budget, tolerance = 3.906250e-03, key = <{{.*}}>, value = <{{.*}}>>, <budget, tolerance = 2.500000e-01>, <budget, tolerance = 2.500000e-01, key = <bits = 16 to 16>>] masked_zero {attention_id = 3 : i32}
func.func @computed(%q: !q, %k: !key, %v: !value, %scale: f32) -> tensor<1x9x1xf32> {
  %a, %m, %s = aligned.decode_attention %q, %k, %v scale %scale
      policies [#limited, <budget, tolerance = 0.25>, <budget, tolerance = 0.25, key = <bits = 16 to 16>>] masked_zero {attention_id = 3 : i32}
      : !q, !key, !value -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
  return %m : tensor<1x9x1xf32>
}

// What is not limited is not printed.
// CHECK-LABEL: func.func private @limits(
// CHECK-SAME: all = #aligned.limits<bits = 0 to 4, newest = 1099511627776>
// CHECK-SAME: none = #aligned.limits<>
// CHECK-SAME: rule = #aligned.policy<alignedkv, value = <bits = 12 to 16>>
func.func private @limits() attributes {none = #aligned.limits<bits = 0 to 16, newest = 0>, all = #aligned.limits<bits = 0 to 4, newest = 1099511627776>,
                                        rule = #aligned.policy<alignedkv, value = <bits = 12 to 16>>}
