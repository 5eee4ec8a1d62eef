// RUN: aligned-opt %s --aligned-pipeline="to=raise" | FileCheck %s --check-prefixes=RAISE
// RUN: aligned-opt %s --aligned-pipeline="to=split" | FileCheck %s --check-prefixes=SPLIT,FIXED
// RUN: aligned-opt %s --aligned-pipeline="to=split policy=alignedkv" | FileCheck %s --check-prefixes=SPLIT,FLOAT
// RUN: aligned-opt %s --aligned-pipeline="to=split format=fixed<8,8>" | FileCheck %s --check-prefixes=SPLIT,NAMED
// RUN: aligned-opt %s --aligned-pipeline="to=split format=dense" | FileCheck %s --check-prefix=DENSE
// RUN: aligned-opt %s --aligned-pipeline="to=fuse" | FileCheck %s --check-prefixes=FUSE,BALANCED
// RUN: aligned-opt %s --aligned-pipeline="to=fuse policy=budget tolerance=0.25" | FileCheck %s --check-prefixes=FUSE,BUDGET
// RUN: aligned-opt %s --aligned-pipeline="to=fuse policy=alignedkv" | FileCheck %s --check-prefixes=FUSE,ALIGNEDKV
// RUN: aligned-opt %s --aligned-pipeline="to=fuse format=dense" | FileCheck %s --check-prefixes=FUSE,EXACT
// RUN: aligned-opt %s --aligned-pipeline="to=lower isa=portable" | FileCheck %s --check-prefix=LOWER
// RUN: aligned-opt %s --aligned-pipeline="to=lower isa=portable format=dense" | FileCheck %s --check-prefix=LOWER-DENSE
// RUN: aligned-opt %s --aligned-pipeline="to=lower target=reference" | FileCheck %s --check-prefix=REFERENCE
// RUN: aligned-opt %s --aligned-pipeline="isa=avx2" | FileCheck %s --check-prefix=LLVM
// RUN: aligned-opt %s --aligned-pipeline | mlir-translate --mlir-to-llvmir | FileCheck %s --check-prefix=IR

// One decode step on its way through the phases.

!q = tensor<1x6x1x32xf16>
!new = tensor<1x2x1x32xf16>
!cache = tensor<1x2x?x32xf16>

// RAISE: func.func @step(%{{.*}}: tensor<1x6x1x32xf16>, %{{.*}}: tensor<1x2x?x32xf16>,
// RAISE-COUNT-2: aligned.append
// RAISE: aligned.attention

// SPLIT-LABEL: func.func @step(
// FIXED-SAME: #aligned.split<fixed<4, 4, 4, 4>, key>>
// FIXED-SAME: #aligned.split<fixed<4, 4, 4, 4>, value>>
// FLOAT-SAME: #aligned.split<float<8, 4, 4>, key>>
// FLOAT-SAME: #aligned.split<float<8, 4, 4>, value>>
// NAMED-SAME: #aligned.split<fixed<8, 8>, key>>
// NAMED-SAME: #aligned.split<fixed<8, 8>, value>>
// SPLIT: aligned.attention
// DENSE-NOT: #aligned.split

// FUSE-NOT: aligned.attention
// BALANCED: aligned.decode_attention {{.*}} policy <budget, tolerance = 3.906250e-03>
// BUDGET: aligned.decode_attention {{.*}} policy <budget, tolerance = 2.500000e-01>
// ALIGNEDKV: aligned.decode_attention {{.*}} policy <alignedkv>
// EXACT: aligned.decode_attention {{.*}} policy <exact>
// FUSE: aligned.finish

// A split cache is a pointer now, appended to in place.
// LOWER-NOT: {{[#"]}}aligned.
// LOWER: func.func @step(%{{.*}}: tensor<1x6x1x32xf16>, %{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr,
// LOWER-SAME: -> (tensor<1x6x1x32xf16>, !llvm.ptr, !llvm.ptr)
// LOWER-COUNT-2: call @aligned_cache_append(
// LOWER: call @aligned_rt_parallel(
// LOWER: func.func private @aligned_decode_0(

// LOWER-DENSE: func.func @step({{.*}}) -> (tensor<1x6x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16>)
// LOWER-DENSE-NOT: tensor.concat
// LOWER-DENSE: tensor.insert_slice
// LOWER-DENSE: call @aligned_rt_parallel(

// REFERENCE-LABEL: func.func @step(
// REFERENCE: call @aligned_rt_reference_attention(

// Only public functions get a wrapper for C.
// LLVM-NOT: func.func
// LLVM: llvm.func @step(
// LLVM-SAME: llvm.emit_c_interface
// LLVM: llvm.func @_mlir_ciface_step(
// LLVM-NOT: llvm.func @_mlir_ciface_
// LLVM: llvm.func @aligned_decode_0(

// Compiled code calls C's malloc and free and AlignedKV's own runtime, nothing else.
// IR-NOT: declare {{.*}} @{{(memrefCopy|__)}}
// IR: define void @_mlir_ciface_step(
// IR-NOT: declare {{.*}} @{{(memrefCopy|__)}}
func.func @step(%q: !q, %k: !cache, %v: !cache, %kn: !new, %vn: !new, %scale: f32) -> (!q, !cache, !cache) {
  %k1 = aligned.append %kn to %k : !new to !cache -> !cache
  %v1 = aligned.append %vn to %v : !new to !cache -> !cache
  %out = aligned.attention %q, %k1, %v1 scale %scale : !q, !cache, !cache -> !q
  return %out, %k1, %v1 : !q, !cache, !cache
}
