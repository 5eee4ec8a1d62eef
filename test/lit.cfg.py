"""How lit finds and runs the tests: text in, text out, compared by FileCheck."""
import glob
import os
import shutil

import lit.formats

config.name = "AlignedKV"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["Inputs", "data", "python", "unittests", "decode"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(config.aligned_build_dir, "test")

tools = [os.path.join(config.aligned_build_dir, "bin"), config.llvm_tools_dir]
config.environment["PATH"] = os.pathsep.join(tools + [os.environ["PATH"]])
config.environment["PYTHONPATH"] = os.path.join(config.aligned_build_dir, "python")
config.environment["ALIGNED_CACHE_DIR"] = os.path.join(config.aligned_build_dir, "kernels")
config.environment["FILECHECK_OPTS"] = "--allow-unused-prefixes=false"
config.substitutions += [
    ("%python", config.python),
    ("%data", os.path.join(config.test_source_root, "data")),
    ("%docs", os.path.join(config.aligned_source_dir, "docs")),
    ("%root", config.aligned_source_dir),
    ("%utils", os.path.join(config.aligned_source_dir, "utils")),
    ("%build", config.aligned_build_dir),
    ("%cxx", config.cxx_compiler),
    ("%cc", config.c_compiler),
    ("%plugin", os.path.join(config.aligned_build_dir, "lib", "AlignedPlugin.so")),
    ("%emulator", os.path.join(config.aligned_build_dir, "lib", "libaligned_cuda_emulator.so")),  # stands in for libcuda.so.1
]

# Tests that run code for one kind of machine name it under REQUIRES.
with open("/proc/cpuinfo") as cpuinfo:
    flags = set(cpuinfo.read().split())
if {"avx2", "fma", "f16c"} <= flags:
    config.available_features.add("avx2")
if {"avx2", "fma", "f16c", "avx_vnni"} <= flags:
    config.available_features.add("avxvnni")
if {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= flags:
    config.available_features.add("avx512vnni")

# What cross-compiles for AArch64 and runs it (utils/packages.txt).
if shutil.which("qemu-aarch64") and glob.glob("/usr/lib/gcc-cross/aarch64-linux-gnu/*/libstdc++.so"):
    config.available_features.add("aarch64")

# The assembler of CUDA that utils/requirements.txt asks for; what it says depends on its version.
environment = os.path.dirname(os.path.dirname(config.python))
if glob.glob(os.path.join(environment, "lib/python*/site-packages/nvidia/cuda_nvcc/bin/ptxas")):
    config.available_features.add("ptxas")
