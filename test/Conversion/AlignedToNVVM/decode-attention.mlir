// RUN: aligned-opt %s --convert-aligned-to-nvvm | FileCheck %s
// RUN: aligned-opt %s --convert-aligned-to-nvvm=rounds=1 | FileCheck %s --check-prefix=ROUND
// RUN: not aligned-opt %s --convert-aligned-to-nvvm=rounds=-1 2>&1 | FileCheck %s --check-prefix=ROUNDS

// ROUND: kernel = "decode0_look"}, {grid = [3, "rows"], kernel = "decode0_plan"}, {grid = ["splits", "rows"], kernel = "decode0_refine"}, {grid = [3, "rows"], kernel = "decode0_plan"}, {grid = ["splits", "rows"], kernel = "decode0_values"}, {grid = [3, "rows"], kernel = "decode0_merge"}]
// ROUNDS: error: expected from 0 to 16 rounds, got -1

// Functions go; each attention leaves its kernels, each kind of cache those that append to it, and the module says how they are launched.

!key = tensor<2x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
!value = tensor<2x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
!float_key = tensor<1x2x?x64xbf16, #aligned.planes<float<12, 4>, key>>
!float_value = tensor<1x2x?x128xbf16, #aligned.planes<float<12, 4>, value>>

// CHECK: module attributes {aligned.program = {append = [
// CHECK-SAME: launch = [{grid = ["touched", "rows"], kernel = "append0_split"}, {grid = [1, 1], kernel = "append0_advance"}]
// CHECK-SAME: decode = [{arguments = [{kind = "input", name = "query", shape = ["rows", 3, 64], type = "f16"}, {kind = "cache", name = "key"}
// CHECK-SAME: launch = [{grid = ["splits", "rows"], kernel = "decode0_scores"}, {grid = ["splits", "rows"], kernel = "decode0_look"}, {grid = [3, "rows"], kernel = "decode0_plan"}, {grid = ["splits", "rows"], kernel = "decode0_refine"}, {grid = [3, "rows"], kernel = "decode0_plan"}
// CHECK-SAME: gpu.container_module
// CHECK-NOT: func.func
// CHECK: gpu.module @decode0_scores

func.func @budget(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<2x9x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 3.906250e-03>
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc : tensor<2x9x1x64xf32>
}

func.func @exact(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<2x9x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {attention_id = 1 : i32}
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc : tensor<2x9x1x64xf32>
}

func.func @published(%q: tensor<1x2x1x64xbf16>, %k: !float_key, %v: !float_value, %scale: f32) -> tensor<1x2x1x128xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <alignedkv> {attention_id = 2 : i32}
      : tensor<1x2x1x64xbf16>, !float_key, !float_value -> tensor<1x2x1x128xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x128xf32>
}

func.func @dense(%q: tensor<1x8x1x64xf16>, %k: tensor<1x2x?x64xf16>, %v: tensor<1x2x?x64xf16>, %scale: f32) -> tensor<1x8x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {attention_id = 3 : i32}
      : tensor<1x8x1x64xf16>, tensor<1x2x?x64xf16>, tensor<1x2x?x64xf16> -> tensor<1x8x1x64xf32>, tensor<1x8x1xf32>, tensor<1x8x1xf32>
  return %acc : tensor<1x8x1x64xf32>
}

// Planes are loaded 16 bytes at a time, where a group of channels is read so far, and multiplied as bytes; a float is made of a sum, not of a value.
// CHECK-LABEL: gpu.func @decode0_scores(
// CHECK-SAME: known_block_size = array<i32: 128, 1, 1>
// CHECK: scf.if
// CHECK: llvm.load %{{.*}} invariant {alignment = 16 : i64} : !llvm.ptr<1> -> vector<4xi32>
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"
// CHECK: arith.sitofp
// CHECK: gpu.return

// The look squares nibbles as integers.
// CHECK-LABEL: gpu.func @decode0_look(
// CHECK: llvm.call_intrinsic "llvm.nvvm.idp4a.u.u"
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"

// CHECK-LABEL: gpu.func @decode0_plan(
// CHECK-NOT: llvm.nvvm.mma
// CHECK-LABEL: gpu.func @decode0_refine(
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"

// Rows of V are transposed by bytes.
// CHECK-LABEL: gpu.func @decode0_values(
// CHECK: llvm.call_intrinsic "llvm.nvvm.prmt"
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"
// CHECK-LABEL: gpu.func @decode0_merge(

// Nothing is planned where every bit is read.
// CHECK-NOT: gpu.func @decode1_look
// CHECK-NOT: gpu.func @decode1_plan
// CHECK-LABEL: gpu.func @decode1_scores(
// CHECK-LABEL: gpu.func @decode1_values(
// CHECK-LABEL: gpu.func @decode1_merge(

// Float planes have no shared exponent: bytes become floats of storage again, which are multiplied as they are.
// CHECK-LABEL: gpu.func @decode2_scores(
// CHECK: llvm.call_intrinsic "llvm.nvvm.prmt"
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k16.row.col.bf16"
// CHECK-LABEL: gpu.func @decode2_probe(
// CHECK-NOT: llvm.nvvm.mma
// CHECK-LABEL: gpu.func @decode2_values(
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k16.row.col.bf16"
// CHECK-LABEL: gpu.func @decode2_merge(

// Dense caches are loaded 16 bytes at a time and multiplied as they are.
// CHECK-LABEL: gpu.func @decode3_scan(
// CHECK: llvm.load %{{.*}} invariant {alignment = 16 : i64} : !llvm.ptr<1> -> vector<4xi32>
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k16.row.col.f32.f32"
// CHECK-LABEL: gpu.func @decode3_merge(

// Two attentions over the same kind of cache share what appends to it: four kinds in all.
// CHECK-LABEL: gpu.func @append3_split(
// CHECK-NOT: gpu.func @append4_split(
