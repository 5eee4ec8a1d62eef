// RUN: not aligned-opt %s --convert-aligned-to-cpu="isa=neon" 2>&1 | FileCheck %s

// CHECK: error: expected isa 'portable', 'avx2', 'avxvnni', 'avx512', 'dotprod' or 'i8mm', got 'neon'
func.func @nothing() {
  return
}
