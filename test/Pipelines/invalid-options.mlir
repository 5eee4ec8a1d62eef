// RUN: not aligned-opt %s --aligned-pipeline="to=machine" 2>&1 | FileCheck %s --check-prefix=TO
// RUN: not aligned-opt %s --aligned-pipeline="target=gpu" 2>&1 | FileCheck %s --check-prefix=TARGET
// RUN: not aligned-opt %s --aligned-pipeline="target=cuda" 2>&1 | FileCheck %s --check-prefix=CUDA
// RUN: not aligned-opt %s --aligned-pipeline="isa=sse" 2>&1 | FileCheck %s --check-prefix=ISA
// RUN: not aligned-opt %s --aligned-pipeline="format=fixed<4>" 2>&1 | FileCheck %s --check-prefix=FORMAT
// RUN: not aligned-opt %s --aligned-pipeline="format=fixed<4,12>" 2>&1 | FileCheck %s --check-prefix=WIDE
// RUN: not aligned-opt %s --aligned-pipeline="format=sparse" 2>&1 | FileCheck %s --check-prefix=NAME
// RUN: not aligned-opt %s --aligned-pipeline="policy=best to=raise" 2>&1 | FileCheck %s --check-prefix=POLICY
// RUN: not aligned-opt %s --aligned-pipeline="policy=budget format=dense" 2>&1 | FileCheck %s --check-prefix=TOLERANCE
// RUN: not aligned-opt %s --aligned-pipeline="policy=draft tolerance=0.5" 2>&1 | FileCheck %s --check-prefix=PRESET
// RUN: not aligned-opt %s --aligned-pipeline="target=gpu isa=sse" 2>&1 | FileCheck %s --check-prefixes=TARGET,ISA
// RUN: not aligned-opt %s --aligned-pipeline="dense-up-to=many to=raise" 2>&1 | FileCheck %s --check-prefix=MANY
// RUN: not aligned-opt %s --aligned-pipeline="dense-up-to=auto" 2>&1 | FileCheck %s --check-prefix=AUTO
// RUN: not aligned-opt %s --aligned-pipeline="dense-up-to=auto costs=1.0,2.0" 2>&1 | FileCheck %s --check-prefix=COSTS
// RUN: not aligned-opt %s --aligned-pipeline="target=nvptx chip=sm_70 to=raise" 2>&1 | FileCheck %s --check-prefix=CHIP
// RUN: not aligned-opt %s --aligned-pipeline="target=nvptx dense-up-to=256" 2>&1 | FileCheck %s --check-prefix=COPY
// RUN: not aligned-opt %s --aligned-pipeline="format=float<8,4,4>" 2>&1 | FileCheck %s --check-prefix=MISFIT

// Options are judged before anything runs, even those that no phase up to `to` would read.

// TO: error: expected to 'raise', 'store', 'fuse', 'stage', 'lower' or 'llvm', got 'machine'
// TARGET: error: expected target 'cpu', 'nvptx' or 'reference', got 'gpu'
// CUDA: error: expected target 'cpu', 'nvptx' or 'reference', got 'cuda'
// ISA: error: expected isa 'host', 'portable', 'avx2', 'avxvnni', 'avx512', 'dotprod' or 'i8mm', got 'sse'
// FORMAT: error: expected plane widths that sum to 16, got 4
// WIDE: error: expected planes of 4 or 8 bits in a fixed format, got 12
// NAME: error: expected a plane format such as 'fixed<4,4,8>' or 'float<8,4,4>', got 'sparse'
// POLICY: error: expected policy 'exact', 'alignedkv', 'tight', 'balanced', 'fast', 'draft' or 'budget', got 'best'
// TOLERANCE: error: expected a tolerance above 0 and below 1 with policy 'budget', got none or 0
// PRESET: error: expected a tolerance only with policy 'budget', got one with 'draft', which stands for 0.015625

// MANY: error: expected dense-up-to to be a number of tokens, or auto with costs, got 'many'
// AUTO: error: expected dense-up-to to be a number of tokens, or auto with costs, got 'auto' without costs

// CHIP: error: expected a chip of sm_80, {{.*}}; got 'sm_70'
// COPY: error: expected no dense-up-to with target=nvptx, whose caches hold no dense copies, got '256'

// What costs are the pass that goes by them knows.
// COSTS: error: expected costs to be 31 numbers above 0, got 2: 1.000000e+00, 2.000000e+00

// A policy and a format that do not go together show only in a module that has attention.
// MISFIT: error: 'aligned.attention' op expected a key stored as 'fixed' under policy 'budget', got 'float'
func.func @attend(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %scale: f32) -> tensor<1x2x1x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  return %out : tensor<1x2x1x16xf16>
}
