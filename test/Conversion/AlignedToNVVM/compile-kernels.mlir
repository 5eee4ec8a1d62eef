// RUN: aligned-opt %s --aligned-compile-kernels --split-input-file --verify-diagnostics | FileCheck %s

// Kernels become one text of PTX, whose head is there once.

// CHECK: gpu.binary @aligned_kernels
// CHECK-SAME: .version 7.8{{.*}}.target sm_90{{.*}}.address_size 64
// CHECK-NOT: .version
// CHECK-SAME: .visible .entry first(
// CHECK-NOT: .version
// CHECK-SAME: .visible .entry second(
// CHECK-NOT: gpu.module
module attributes {gpu.container_module} {
  gpu.module @first [#nvvm.target<chip = "sm_90", features = "+ptx78">] {
    llvm.func @first() attributes {gpu.kernel, nvvm.kernel} {
      llvm.return
    }
  }
  gpu.module @second [#nvvm.target<chip = "sm_90", features = "+ptx78">] {
    llvm.func @second() attributes {gpu.kernel, nvvm.kernel} {
      llvm.return
    }
  }
}

// -----

// expected-error @+1 {{'gpu.module' op expected one #nvvm.target, the same for all kernels, got none}}
gpu.module @kernel {
}

// -----

gpu.module @first [#nvvm.target<chip = "sm_90">] {
}
// expected-error @+1 {{'gpu.module' op expected one #nvvm.target, the same for all kernels, got [#nvvm.target<chip = "sm_80">]}}
gpu.module @second [#nvvm.target<chip = "sm_80">] {
}

// -----

// expected-error @+1 {{Failed creating the llvm::Module}}
gpu.module @kernel [#nvvm.target] {
  // expected-error @+2 {{unsupported GPU operation: gpu.func}}
  // expected-error @+1 {{LLVM Translation failed for operation: gpu.func}}
  gpu.func @kernel() kernel {
    gpu.return
  }
}
