// RUN: aligned-opt %s --aligned-stage-decode-attention --convert-aligned-to-nvvm | FileCheck %s

// Functions go; each attention leaves two kernels, each kind of cache those that append to it, and the module says how they are launched.

!key = tensor<2x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<2x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>

func.func @budget(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<2x9x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 1.953125e-03>
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc : tensor<2x9x1x64xf32>
}

func.func @exact(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> tensor<2x9x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {attention_id = 1 : i32}
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc : tensor<2x9x1x64xf32>
}

// What only a call knows its kernels are told.
func.func @given(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32, %c: f32, %w: index, %n: index, %later: index, %factor: f32) -> tensor<2x9x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale softcap %c mask <causal, window = %w, sinks = %n> later %later policy <budget, tolerance = 1.953125e-03>
      tolerance_factor %factor {attention_id = 2 : i32} : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc : tensor<2x9x1x64xf32>
}

// CHECK: module attributes {aligned.program = {append = [
// CHECK-SAME: drop = [{grid = ["touched", "rows"], kernel = "append0_forget"}, {grid = [1, 1], kernel = "append0_unlist"}, {grid = [1, "rows"], kernel = "append0_advance"}]
// CHECK-SAME: launch = [{grid = ["touched", "rows"], kernel = "append0_pack"}, {grid = [1, "rows"], kernel = "append0_advance"}]
// CHECK-SAME: decode = [{arguments = [{kind = "input", name = "query", shape = ["rows", 3, 64], type = "f16"}, {kind = "cache", name = "key"}, {kind = "cache", name = "value"}
// CHECK-SAME: {kind = "record", name = "key_bits", shape = ["rows", "capacity"], type = "u8"}
// CHECK-SAME: launch = [{grid = ["splits", "rows", 1], kernel = "decode0_scan"}, {grid = ["splits", "rows", 1], kernel = "decode0_attend"}], queries = 1 : i64, query = "f16", site = 0
// CHECK-SAME: launch = [{grid = ["splits", "rows", 1], kernel = "decode1_scan"}, {grid = ["splits", "rows", 1], kernel = "decode1_attend"}], queries = 1 : i64, query = "f16", site = 1
// CHECK-SAME: {kind = "scalar", name = "softcap", type = "f32"}, {kind = "scalar", name = "window", type = "i32"}, {kind = "scalar", name = "sinks", type = "i32"}
// CHECK-SAME: {kind = "scalar", name = "later", type = "i32"}, {kind = "scalar", name = "tolerance_factor", type = "f32"}
// CHECK-SAME: site = 2
// CHECK-SAME: gpu.container_module
// CHECK-NOT: func.func

// The first plane of K lies as the tensor core takes it; a score is a float when its sum is complete.
// CHECK-LABEL: gpu.module @decode0_scan
// CHECK: gpu.func @decode0_scan(
// CHECK-SAME: known_block_size = array<i32: 128, 1, 1>
// CHECK: gpu.barrier
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"
// CHECK: arith.sitofp
// CHECK: gpu.return

// Thresholds first; then rows of V, transposed by bytes.
// CHECK-LABEL: gpu.module @decode0_attend
// CHECK: gpu.func @decode0_attend(
// CHECK-SAME: known_block_size = array<i32: 128, 1, 1>
// CHECK: llvm.call_intrinsic "llvm.nvvm.vote.ballot.sync"
// CHECK: llvm.call_intrinsic "llvm.nvvm.prmt"
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"
// CHECK: gpu.return

// CHECK-LABEL: gpu.module @decode1_scan
// CHECK-LABEL: gpu.module @decode1_attend

// CHECK-LABEL: gpu.module @decode2_scan
// CHECK-LABEL: gpu.module @decode2_attend

// All attentions read the same two kinds of cache.
// CHECK-LABEL: gpu.module @append0_pack
// CHECK-LABEL: gpu.module @append0_advance
// CHECK-LABEL: gpu.module @append1_unlist
// CHECK-NOT: gpu.module
