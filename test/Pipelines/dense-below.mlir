// A module in which one attention stays dense, with all its bits, and one is in planes.
//
// RUN: aligned-opt %s --aligned-pipeline="dense-below=65536 to=fuse" 2>&1 | FileCheck %s --check-prefix=FUSE
// RUN: aligned-opt %s --aligned-pipeline="dense-below=65536 to=stage" 2>/dev/null | FileCheck %s --check-prefix=STAGE
// RUN: aligned-opt %s --aligned-pipeline="dense-below=65536 isa=portable" 2>&1 | FileCheck %s --check-prefix=CPU
// RUN: aligned-opt %s --aligned-pipeline="to=fuse" 2>&1 | FileCheck %s --check-prefix=NEVER
// RUN: aligned-opt %s --aligned-pipeline="dense-below=99999999999999 to=fuse" 2>&1 | FileCheck %s --check-prefix=ALWAYS
// RUN: not aligned-opt %s --aligned-pipeline="dense-below=-1" 2>&1 | FileCheck %s --check-prefix=NEGATIVE
// RUN: not aligned-opt %s --aligned-pipeline="dense-below=64k" 2>&1 | FileCheck %s --check-prefix=WORD

// FUSE: remark: attention stays dense: expected a key and a value of at least 65536 bytes together, got 'tensor<1x2x65x16xf16>' and 'tensor<1x2x65x16xf16>'
// FUSE: aligned.decode_attention {{.*}} policy <exact>
// FUSE-SAME: tensor<1x2x65x16xf16>, tensor<1x2x65x16xf16> ->
// FUSE: aligned.decode_attention {{.*}} policy <budget
// FUSE-SAME: #aligned.planes<fixed<4, 4, 8>, key>>
// STAGE: = aligned.decode_attention {{.*}} policy <exact>
// STAGE-SAME: tensor<1x2x65x16xf16>, tensor<1x2x65x16xf16> ->
// STAGE-NOT: = aligned.decode_attention
// STAGE: aligned.prepare {{.*}} tensor<1x2x1024x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
// STAGE-NOT: = aligned.decode_attention
// CPU: remark: attention stays dense
// CPU: llvm.func @steps(
// CPU: llvm.call @aligned_rt_parallel(
// CPU: llvm.call @aligned_rt_parallel(
// CPU-DAG: llvm.func @aligned_decode_0(
// CPU-DAG: llvm.func @aligned_attend(
// NEVER-NOT: remark
// NEVER-NOT: policy <exact>
// ALWAYS-NOT: policy <budget
// NEGATIVE: dense-below{{.*}}'-1' value invalid
// WORD: dense-below{{.*}}'64k' value invalid

!q = tensor<1x6x1x16xf16>
!few = tensor<1x2x65x16xf16>
!many = tensor<1x2x1024x16xf16>

func.func @steps(%q: !q, %k: !few, %v: !few, %l: !many, %w: !many, %scale: f32) -> (!q, !q) {
  %0 = aligned.attention %q, %k, %v scale %scale : !q, !few, !few -> !q
  %1 = aligned.attention %q, %l, %w scale %scale : !q, !many, !many -> !q
  return %0, %1 : !q, !q
}
