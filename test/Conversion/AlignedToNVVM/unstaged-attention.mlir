// RUN: aligned-opt %s --convert-aligned-to-nvvm | FileCheck %s
// RUN: aligned-opt %s --aligned-pipeline="target=nvptx to=stage" | FileCheck %s --check-prefix=WHOLE

// Attention over float planes and over dense tensors comes without stages, and its kernels split rows themselves: that of a single row is not split beforehand, as it is for CPUs.

// WHOLE-NOT: scf.forall
// WHOLE: aligned.decode_attention {{.*}} tensor<1x1x?x64xbf16>
// WHOLE-NOT: scf.forall

!key = tensor<1x2x?x64xbf16, #aligned.planes<float<12, 4>, key>>
!value = tensor<1x2x?x128xbf16, #aligned.planes<float<12, 4>, value>>

// CHECK: module attributes {aligned.program = {append = [
// CHECK-SAME: format = {element = "bf16", kind = "float", role = "key", widths = [12, 4]}
// CHECK-SAME: format = {element = "bf16", kind = "float", role = "value", widths = [12, 4]}
// CHECK-NOT: role = "key", widths
// CHECK-SAME: decode = [{arguments = [{kind = "input", name = "query", shape = ["rows", 2, 64], type = "bf16"}, {kind = "cache", name = "key"}, {kind = "cache", name = "value"},
// CHECK-SAME: {kind = "scratch", name = "margins", shape = ["rows", 2], type = "i32"}, {kind = "record", name = "key_bits", shape = ["rows", "tiles", 64], type = "u8"}
// CHECK-SAME: launch = [{grid = ["splits", "rows"], kernel = "decode0_scores"}, {grid = [1, "rows"], kernel = "decode0_probe"}, {grid = ["splits", "rows"], kernel = "decode0_values"}, {grid = [2, "rows"], kernel = "decode0_merge"}]

// Nothing is probed where every bit is read.
// CHECK-SAME: launch = [{grid = ["splits", "rows"], kernel = "decode1_scores"}, {grid = ["splits", "rows"], kernel = "decode1_values"}, {grid = [2, "rows"], kernel = "decode1_merge"}]

// CHECK-SAME: {kind = "input", name = "key", shape = ["rows", "capacity", 64], type = "f16"}, {kind = "input", name = "value", shape = ["rows", "capacity", 64], type = "f16"}, {kind = "input", name = "lengths", shape = ["batch"], type = "i64"}, {kind = "scalar", name = "capacity", type = "i32"}
// CHECK-SAME: {kind = "input", name = "sink_logits", shape = [8], type = "f32"}, {kind = "input", name = "attn_mask", shape = [1, 8, 1, "tokens"], type = "i1"}
// CHECK-SAME: key = {element = "f16", kind = "dense", role = "key"}
// CHECK-SAME: launch = [{grid = ["splits", "rows"], kernel = "decode2_scan"}, {grid = [4, "rows"], kernel = "decode2_merge"}]
// CHECK-SAME: gpu.container_module
// CHECK-NOT: func.func

func.func @published(%q: tensor<1x4x1x64xbf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x4x1x128xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <alignedkv>
      : tensor<1x4x1x64xbf16>, !key, !value -> tensor<1x4x1x128xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x128xf32>
}

func.func @exact(%q: tensor<1x4x1x64xbf16>, %k: !key, %v: !value, %scale: f32) -> tensor<1x4x1x128xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {attention_id = 1 : i32}
      : tensor<1x4x1x64xbf16>, !key, !value -> tensor<1x4x1x128xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x128xf32>
}

func.func @dense(%q: tensor<1x8x1x64xf16>, %k: tensor<1x2x?x64xf16>, %v: tensor<1x2x?x64xf16>, %scale: f32, %mask: tensor<1x8x1x?xi1>, %sinks: tensor<8xf32>) -> tensor<1x8x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale attn_mask %mask : tensor<1x8x1x?xi1> sink_logits %sinks : tensor<8xf32> policy <exact> {attention_id = 2 : i32}
      : tensor<1x8x1x64xf16>, tensor<1x2x?x64xf16>, tensor<1x2x?x64xf16> -> tensor<1x8x1x64xf32>, tensor<1x8x1xf32>, tensor<1x8x1xf32>
  return %acc : tensor<1x8x1x64xf32>
}

func.func @row(%q: tensor<1x2x1x64xbf16>, %k: tensor<1x1x?x64xbf16>, %v: tensor<1x1x?x64xbf16>, %scale: f32) -> tensor<1x2x1x64xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {attention_id = 3 : i32}
      : tensor<1x2x1x64xbf16>, tensor<1x1x?x64xbf16>, tensor<1x1x?x64xbf16> -> tensor<1x2x1x64xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %acc : tensor<1x2x1x64xf32>
}

// Bytes of planes become bfloat16 again, which are multiplied as they are.
// CHECK-LABEL: gpu.func @decode0_scores(
// CHECK-SAME: known_block_size = array<i32: 128, 1, 1>
// CHECK: llvm.call_intrinsic "llvm.nvvm.prmt"
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k16.row.col.bf16"
// CHECK-LABEL: gpu.func @decode0_probe(
// CHECK-NOT: llvm.nvvm.mma
// CHECK-LABEL: gpu.func @decode0_values(
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k16.row.col.bf16"
// CHECK-LABEL: gpu.func @decode0_merge(
// CHECK-NOT: gpu.func @decode1_probe

// Dense caches are loaded 16 bytes at a time.
// CHECK-LABEL: gpu.func @decode2_scan(
// CHECK: llvm.load %{{.*}} invariant {alignment = 16 : i64} : !llvm.ptr<1> -> vector<4xi32>
// CHECK: llvm.call_intrinsic "llvm.nvvm.mma.m16n8k16.row.col.f32.f32"
