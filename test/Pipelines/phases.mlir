// RUN: aligned-opt %s --aligned-pipeline="to=raise" | FileCheck %s --check-prefixes=RAISE
// RUN: aligned-opt %s --aligned-pipeline="to=store" | FileCheck %s --check-prefixes=STORE,FIXED
// RUN: aligned-opt %s --aligned-pipeline="to=store policy=alignedkv" | FileCheck %s --check-prefixes=STORE,FLOAT
// RUN: aligned-opt %s --aligned-pipeline="to=store format=fixed<8,8>" | FileCheck %s --check-prefixes=STORE,NAMED
// RUN: aligned-opt %s --aligned-pipeline="to=store format=dense" | FileCheck %s --check-prefix=DENSE
// RUN: aligned-opt %s --aligned-pipeline="to=fuse" | FileCheck %s --check-prefixes=FUSE,BALANCED
// RUN: aligned-opt %s --aligned-pipeline="to=fuse policy=budget tolerance=0.25" | FileCheck %s --check-prefixes=FUSE,BUDGET
// RUN: aligned-opt %s --aligned-pipeline="to=fuse policy=draft" | FileCheck %s --check-prefixes=FUSE,DRAFT
// RUN: aligned-opt %s --aligned-pipeline="to=fuse policy=alignedkv" | FileCheck %s --check-prefixes=FUSE,ALIGNEDKV
// RUN: aligned-opt %s --aligned-pipeline="to=fuse format=dense" | FileCheck %s --check-prefixes=FUSE,EXACT
// RUN: aligned-opt %s --aligned-pipeline="to=stage" | FileCheck %s --check-prefix=STAGE --implicit-check-not="= aligned.decode_attention"
// RUN: aligned-opt %s --aligned-pipeline="to=stage policy=alignedkv" | FileCheck %s --check-prefix=ONE-KERNEL --implicit-check-not=aligned.scan
// RUN: aligned-opt %s --aligned-pipeline="to=stage format=dense" | FileCheck %s --check-prefix=ONE-KERNEL --implicit-check-not=aligned.scan
// RUN: aligned-opt %s --aligned-pipeline="to=stage target=reference" | FileCheck %s --check-prefix=DECLARED --implicit-check-not=aligned.scan
// RUN: aligned-opt %s --aligned-pipeline="to=lower isa=portable" | FileCheck %s --check-prefix=LOWER
// RUN: aligned-opt %s --aligned-pipeline="to=lower isa=portable policy=alignedkv" | FileCheck %s --check-prefix=LOWER-FLOAT
// RUN: aligned-opt %s --aligned-pipeline="to=lower isa=portable format=dense" | FileCheck %s --check-prefix=LOWER-DENSE
// RUN: aligned-opt %s --aligned-pipeline="to=lower target=reference" | FileCheck %s --check-prefix=REFERENCE
// RUN: aligned-opt %s --aligned-pipeline="isa=avx2" | FileCheck %s --check-prefix=LLVM
// RUN: aligned-opt %s --aligned-pipeline | mlir-translate --mlir-to-llvmir | grep "^declare" | grep -v "@llvm[.]" | FileCheck %s --check-prefix=IR --implicit-check-not=declare

// One decode step on its way through the phases.

!q = tensor<1x6x1x32xf16>
!new = tensor<1x2x1x32xf16>
!cache = tensor<1x2x?x32xf16>

// RAISE: func.func @step(%{{.*}}: tensor<1x6x1x32xf16>, %{{.*}}: tensor<1x2x?x32xf16>,
// RAISE-COUNT-2: aligned.append
// RAISE: aligned.attention

// STORE-LABEL: func.func @step(
// FIXED-SAME: #aligned.planes<fixed<4, 4, 8>, key>>
// FIXED-SAME: #aligned.planes<fixed<4, 4, 8>, value>>
// FLOAT-SAME: #aligned.planes<float<8, 4, 4>, key>>
// FLOAT-SAME: #aligned.planes<float<8, 4, 4>, value>>
// NAMED-SAME: #aligned.planes<fixed<8, 8>, key>>
// NAMED-SAME: #aligned.planes<fixed<8, 8>, value>>
// STORE: aligned.attention
// DENSE-NOT: #aligned.planes

// FUSE-NOT: aligned.attention
// BALANCED: aligned.decode_attention {{.*}} policy <budget, tolerance = 0.001953125>
// BUDGET: aligned.decode_attention {{.*}} policy <budget, tolerance = 2.500000e-01>
// DRAFT: aligned.decode_attention {{.*}} policy <budget, tolerance = 1.562500e-02>
// ALIGNEDKV: aligned.decode_attention {{.*}} policy <alignedkv>
// EXACT: aligned.decode_attention {{.*}} policy <exact>
// FUSE: aligned.finish

// Fixed planes are read in stages: all splits are scanned before any of them is attended to.
// STAGE-LABEL: func.func @step(
// STAGE: %[[STATE:.*]]:2 = scf.forall (%{{.*}}) in (2)
// STAGE: aligned.prepare
// STAGE: scf.forall
// STAGE: aligned.scan
// STAGE: scf.forall
// STAGE: aligned.attend
// STAGE: scf.for
// STAGE: aligned.merge
// STAGE: aligned.finish %[[STATE]]#0, %[[STATE]]#1
// ONE-KERNEL: aligned.decode_attention
// DECLARED: aligned.attention

// A packed cache is a pointer now, appended to in place. What types leave open of extents is asserted, once. Stages are functions that are called where parallel loops were.
// LOWER-NOT: {{[#"]}}aligned.
// LOWER: func.func @step(%{{.*}}: memref<1x6x1x32xf16>, %[[K:.*]]: !llvm.ptr, %[[V:.*]]: !llvm.ptr,
// LOWER-SAME: -> (memref<1x6x1x32xf16>, !llvm.ptr, !llvm.ptr)
// LOWER-DAG: call @aligned_cache_append(%[[K]],
// LOWER-DAG: call @aligned_cache_append(%[[V]],
// LOWER: cf.assert %{{.*}}, "'aligned.decode_attention' op expected key and value to agree in tokens"
// LOWER-NOT: cf.assert
// LOWER: %[[ROWS:.*]] = constant @step_parallel_1
// LOWER: call @aligned_rt_parallel(%{{.*}}, %[[ROWS]],
// LOWER-COUNT-2: memref.dealloc
// LOWER-NOT: memref.dealloc
// LOWER: return %{{.*}}, %[[K]], %[[V]]
// LOWER: func.func private @aligned_prepare(
// LOWER: func.func private @aligned_scan(
// LOWER: func.func private @aligned_attend(
// LOWER: func.func private @step_parallel(
// LOWER-NOT: {{cf.assert|memref.copy}}
// LOWER: call @aligned_scan(
// LOWER: func.func private @step_parallel_0(
// LOWER-NOT: {{cf.assert|memref.copy}}
// LOWER: call @aligned_attend(
// LOWER: func.func private @step_parallel_1(
// LOWER: call @aligned_prepare(
// LOWER: %[[SCAN:.*]] = {{(func.)?}}constant @step_parallel :
// LOWER: call @aligned_rt_parallel(%{{.*}}, %[[SCAN]],
// LOWER: %[[ATTEND:.*]] = {{(func.)?}}constant @step_parallel_0 :
// LOWER: call @aligned_rt_parallel(%{{.*}}, %[[ATTEND]],
// LOWER-NOT: {{call @aligned_|cf.assert}}

// LOWER-FLOAT: func.func @step(%{{.*}}: memref<1x6x1x32xf16>, %[[K:.*]]: !llvm.ptr, %[[V:.*]]: !llvm.ptr,
// LOWER-FLOAT-DAG: call @aligned_cache_append(%[[K]],
// LOWER-FLOAT-DAG: call @aligned_cache_append(%[[V]],
// LOWER-FLOAT: cf.assert %{{.*}}, "'aligned.decode_attention' op expected key and value to agree in tokens"
// LOWER-FLOAT: call @aligned_rt_parallel(
// LOWER-FLOAT-COUNT-3: memref.dealloc
// LOWER-FLOAT: return %{{.*}}, %[[K]], %[[V]]
// LOWER-FLOAT: func.func private @aligned_decode_0(

// LOWER-DENSE: func.func @step({{.*}}) -> (memref<1x6x1x32xf16>, memref<1x2x?x32xf16>, memref<1x2x?x32xf16>)
// LOWER-DENSE: scf.for
// LOWER-DENSE: cf.assert %{{.*}}, "'aligned.decode_attention' op expected key and value to agree in tokens"
// LOWER-DENSE: call @aligned_rt_parallel(

// REFERENCE-LABEL: func.func @step(
// REFERENCE: cf.assert %{{.*}}, "'aligned.attention' op expected key and value to agree in tokens"
// REFERENCE: call @aligned_rt_reference_attention(

// Only public functions get a wrapper for C.
// LLVM-NOT: func.func
// LLVM: llvm.func @step(
// LLVM-SAME: llvm.emit_c_interface
// LLVM: llvm.func @_mlir_ciface_step(
// LLVM-NOT: llvm.func @_mlir_ciface_
// LLVM: llvm.func @aligned_prepare(
// LLVM-NOT: llvm.func @_mlir_ciface_
// LLVM: llvm.func @aligned_attend(
// LLVM-NOT: llvm.func @_mlir_ciface_

// Compiled code calls C's malloc and free, puts and abort where an assertion fails, and AlignedKV's own runtime; the rest are LLVM's intrinsics.
// IR-DAG: declare ptr @malloc(
// IR-DAG: declare void @free(
// IR-DAG: declare void @puts(
// IR-DAG: declare void @abort(
// IR-DAG: declare void @aligned_rt_parallel(
// IR-DAG: declare void @aligned_rt_tally(
// IR-DAG: declare void @aligned_rt_bits(
// IR-DAG: declare i32 @aligned_rt_recording(
// IR-DAG: declare i32 @aligned_cache_append(
func.func @step(%q: !q, %k: !cache, %v: !cache, %kn: !new, %vn: !new, %scale: f32) -> (!q, !cache, !cache) {
  %k1 = aligned.append %kn to %k : !new to !cache -> !cache
  %v1 = aligned.append %vn to %v : !new to !cache -> !cache
  %out = aligned.attention %q, %k1, %v1 scale %scale : !q, !cache, !cache -> !q
  return %out, %k1, %v1 : !q, !cache, !cache
}
