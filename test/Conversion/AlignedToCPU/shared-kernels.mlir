// Attention of one shape and policy is compiled once, however many layers there are. Each reports under its own number (python/test_shapes.py).
// RUN: aligned-opt %s --aligned-pipeline="policy=balanced to=lower" | FileCheck %s --check-prefix=FIXED --implicit-check-not="func.func private @"
// RUN: aligned-opt %s --aligned-pipeline="policy=alignedkv to=lower" | FileCheck %s --check-prefix=ROWS --implicit-check-not="func.func private @aligned_decode"
// RUN: aligned-opt %s --aligned-pipeline="format=dense to=lower" | FileCheck %s --check-prefix=ROWS --implicit-check-not="func.func private @aligned_decode"

// FIXED: func.func private @aligned_rt_parallel
// FIXED: func.func private @aligned_rt_tally
// FIXED: func.func private @aligned_rt_bits
// FIXED: func.func private @aligned_rt_recording
// FIXED: func.func @layers(
// FIXED: func.func private @aligned_prepare(
// FIXED: func.func private @aligned_scan(
// FIXED: func.func private @aligned_attend(
// FIXED-COUNT-3: func.func private @layers_parallel

// ROWS: func.func @layers(
// ROWS: %[[KERNEL:.*]] = constant @aligned_decode_0
// ROWS-COUNT-3: call @aligned_rt_parallel(%{{.*}}, %[[KERNEL]],
// ROWS: func.func private @aligned_decode_0(

!q = tensor<1x4x1x16xf16>
!c = tensor<1x2x?x16xf16>
func.func @layers(%q: !q, %k0: !c, %v0: !c, %k1: !c, %v1: !c, %k2: !c, %v2: !c, %scale: f32) -> !q {
  %0 = aligned.attention %q, %k0, %v0 scale %scale : !q, !c, !c -> !q
  %1 = aligned.attention %0, %k1, %v1 scale %scale : !q, !c, !c -> !q
  %2 = aligned.attention %1, %k2, %v2 scale %scale : !q, !c, !c -> !q
  return %2 : !q
}
