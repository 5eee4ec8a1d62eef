// RUN: aligned-opt %s --aligned-pipeline | FileCheck %s

// Functions that have an instruction stay: fma rounds once, where a product and a sum would round twice. Others are made of simpler ones, and need no library.
// CHECK-LABEL: llvm.func @functions(
// CHECK-DAG: llvm.intr.fma(
// CHECK-DAG: llvm.intr.roundeven(
// CHECK-NOT: llvm.call
// CHECK: llvm.return
func.func @functions(%a: f32, %b: f32, %c: f32) -> (f32, f32, f32, f32) {
  %0 = math.fma %a, %b, %c : f32
  %1 = math.roundeven %a : f32
  %2 = math.tanh %a : f32
  %3 = math.rsqrt %a : f32
  return %0, %1, %2, %3 : f32, f32, f32, f32
}
