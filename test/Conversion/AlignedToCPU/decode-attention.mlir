// RUN: aligned-opt %s --aligned-bufferize --convert-aligned-to-cpu="isa=avx512" | FileCheck %s
// RUN: aligned-opt %s --aligned-bufferize --convert-aligned-to-cpu="isa=avx2" | FileCheck %s
// RUN: aligned-opt %s --aligned-bufferize --convert-aligned-to-cpu="isa=portable" | FileCheck %s

// Over float planes and dense tensors the op becomes a call that runs a kernel over all kv heads of the batch; caches become pointers and nothing else changes type.
// What becomes of fixed planes is in stages.mlir.

!key = tensor<2x3x?x64xf16, #aligned.planes<float<8, 4, 4>, key>>
!value = tensor<2x3x?x64xf16, #aligned.planes<float<8, 4, 4>, value>>

// CHECK-NOT: aligned.decode_attention
// CHECK-LABEL: func.func @float(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: memref<2x9x1x64xf16>, %[[K:.*]]: !llvm.ptr, %[[V:.*]]: !llvm.ptr, %[[SCALE:.*]]: f32
func.func @float(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32) -> (tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>) {
  // CHECK: %[[SLOTS:.*]] = llvm.alloca
  // CHECK: %[[ACC:.*]] = memref.alloc() {{.*}} : memref<2x9x1x64xf32>
  // CHECK: %[[MAX:.*]] = memref.alloc() {{.*}} : memref<2x9x1xf32>
  // CHECK: %[[SUM:.*]] = memref.alloc() {{.*}} : memref<2x9x1xf32>
  // CHECK: memref.extract_aligned_pointer_as_index %[[Q]]
  // CHECK: llvm.store %[[K]]
  // CHECK: llvm.store %[[V]]
  // CHECK: llvm.store %[[SCALE]]
  // CHECK: memref.extract_aligned_pointer_as_index %[[ACC]]
  // CHECK: memref.extract_aligned_pointer_as_index %[[MAX]]
  // CHECK: memref.extract_aligned_pointer_as_index %[[SUM]]
  // CHECK: %[[BODY:.*]] = constant @aligned_decode_0
  // CHECK: call @aligned_rt_parallel(%{{.*}}, %[[BODY]], %[[SLOTS]])
  // CHECK: return %[[ACC]], %[[MAX]], %[[SUM]]
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <alignedkv>
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc, %max, %sum : tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
}

// CHECK-LABEL: func.func @dense(
// CHECK-SAME: memref<1x4x1x32xf32>, %{{.*}}: memref<1x2x?x32xf32>, %{{.*}}: memref<1x2x?x48xf32>
func.func @dense(%q: tensor<1x4x1x32xf32>, %k: tensor<1x2x?x32xf32>, %v: tensor<1x2x?x48xf32>, %scale: f32) -> tensor<1x4x1x48xf32> {
  // CHECK: constant @aligned_decode_7 :
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact> {attention_id = 7 : i32}
      : tensor<1x4x1x32xf32>, tensor<1x2x?x32xf32>, tensor<1x2x?x48xf32> -> tensor<1x4x1x48xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x48xf32>
}

// A kernel belongs to a shape and a policy; the number of the attention is handed to it. A certificate is one more buffer, what is newer
// than the last query one more number.
// CHECK-LABEL: func.func @more(
// CHECK-SAME: %[[LATER:[a-z0-9]+]]: index)
func.func @more(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32, %later: index) -> tensor<2x9x1x8xf32> {
  // CHECK: memref.alloc() {{.*}} : memref<2x9x1x64xf32>
  // CHECK: %[[CERTIFICATE:.*]] = memref.alloc() {{.*}} : memref<2x9x1x8xf32>
  // CHECK: %[[NUMBER:.*]] = arith.index_cast %[[LATER]] : index to i64
  // CHECK: llvm.store %[[NUMBER]]
  // CHECK: memref.extract_aligned_pointer_as_index %[[CERTIFICATE]]
  // CHECK: constant @aligned_decode_7_1
  // CHECK: return %[[CERTIFICATE]]
  %acc, %max, %sum, %c = aligned.decode_attention %q, %k, %v scale %scale mask <causal> later %later policy <exact> {attention_id = 7 : i32}
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32> certified tensor<2x9x1x8xf32>
  return %c : tensor<2x9x1x8xf32>
}

// Numbers that only the program knows are handed over, too: one kernel serves all.
// CHECK-LABEL: func.func @given(
// CHECK-SAME: %[[C:[a-z0-9]+]]: f32, %[[W:[a-z0-9]+]]: index, %[[N:[a-z0-9]+]]: index, %{{[a-z0-9]+}}: f32, %[[OTHER:[a-z0-9]+]]: index)
func.func @given(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32, %c: f32, %w: index, %n: index, %d: f32, %x: index) -> (tensor<2x9x1x64xf32>, tensor<2x9x1x64xf32>) {
  // CHECK: %[[WINDOW:.*]] = arith.index_cast %[[W]] : index to i64
  // CHECK: llvm.store %[[WINDOW]]
  // CHECK: %[[SINKS:.*]] = arith.index_cast %[[N]] : index to i64
  // CHECK: llvm.store %[[SINKS]]
  // CHECK: llvm.store %[[C]]
  // CHECK: %[[KERNEL:.*]] = constant @[[BODY:aligned_decode_0_[0-9]+]]
  %a:3 = aligned.decode_attention %q, %k, %v scale %scale softcap %c mask <causal, window = %w, sinks = %n> policy <exact>
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  // CHECK: arith.index_cast %[[OTHER]] : index to i64
  // CHECK: constant @[[BODY]] :
  %b:3 = aligned.decode_attention %q, %k, %v scale %scale softcap %d mask <causal, window = %x, sinks = %n> policy <exact> {attention_id = 1 : i32}
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %a#0, %b#0 : tensor<2x9x1x64xf32>, tensor<2x9x1x64xf32>
}

// P8: addresses of a mask by numbers and of sinks lie where the kernel looks for them.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: memref<2x1x1x?xi1>, %[[LOGITS:[a-z0-9]+]]: memref<9xf32>)
func.func @numbers(%q: tensor<2x9x1x64xf16>, %k: !key, %v: !value, %scale: f32, %mask: tensor<2x1x1x?xi1>, %logits: tensor<9xf32>) -> tensor<2x9x1x64xf32> {
  // CHECK: %[[SLOTS:.*]] = llvm.alloca
  // CHECK: memref.extract_aligned_pointer_as_index %[[MASK]]
  // CHECK: %[[MASK_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: %[[MASK_SLOT:.*]] = llvm.getelementptr %[[SLOTS]][80]
  // CHECK: llvm.store %[[MASK_ADDRESS]], %[[MASK_SLOT]]
  // CHECK: memref.extract_aligned_pointer_as_index %[[LOGITS]]
  // CHECK: %[[LOGITS_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: %[[LOGITS_SLOT:.*]] = llvm.getelementptr %[[SLOTS]][88]
  // CHECK: llvm.store %[[LOGITS_ADDRESS]], %[[LOGITS_SLOT]]
  // CHECK: constant @aligned_decode_9 :
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale attn_mask %mask : tensor<2x1x1x?xi1> sink_logits %logits : tensor<9xf32> policy <exact> {attention_id = 9 : i32}
      : tensor<2x9x1x64xf16>, !key, !value -> tensor<2x9x1x64xf32>, tensor<2x9x1xf32>, tensor<2x9x1xf32>
  return %acc : tensor<2x9x1x64xf32>
}

// The kernel tells what it read, and where somebody asks, of each token. Nothing in it is a matter of the machine.
// CHECK-LABEL: func.func private @aligned_decode_0(
// CHECK-SAME: !llvm.ptr, %{{.*}}: i64, %{{.*}}: i64)
// CHECK-NOT: llvm.call_intrinsic
// CHECK: call @aligned_rt_scratch
// CHECK-NOT: llvm.call_intrinsic
// CHECK: call @aligned_rt_tally
// CHECK: call @aligned_rt_recording
// CHECK: call @aligned_rt_bits
// CHECK-NOT: llvm.call_intrinsic
// CHECK: return

// That of dense caches always reads all.
// CHECK-LABEL: func.func private @aligned_decode_7(
// CHECK-NOT: {{llvm.call_intrinsic|@aligned_rt_bits}}
// CHECK: call @aligned_rt_tally
// CHECK-NOT: {{llvm.call_intrinsic|@aligned_rt_bits}}
// CHECK: return
