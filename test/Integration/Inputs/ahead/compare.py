"""Runs examples/c for AArch64 by each instruction set, and for x86-64: `compare.py ROOT RUNTIME BUILD FOLDER`, where RUNTIME is the one for AArch64.

Integers are what they are everywhere, so instruction sets of one machine agree to the bit. Machines differ where one fuses an addition, or in their exponentials.
"""
import pathlib
import subprocess
import sys

import numpy as np

root, runtime, build, folder = (pathlib.Path(path) for path in sys.argv[1:])
ARM = ["clang-22", "--target=aarch64-linux-gnu", "-fuse-ld=lld"]
QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]


def outputs(policy, name, compiler, library, emulator, *options):
    place = folder / policy / name
    run = [build / "bin/aligned-run", root / "examples/c/step.mlir", "--emit=obj", f"--policy={policy}", "-o", place, *options]
    subprocess.run(run, check=True)
    link = [place / "step.o", f"-L{library}", f"-Wl,-rpath,{library}", "-lAlignedRuntime", "-lm", "-o", place / "main"]
    subprocess.run([*compiler, f"-I{root}/include", f"-I{place}", root / "examples/c/main.c", *link], check=True)
    subprocess.run([*emulator, place / "main", place / "out.bin"], check=True, stdout=subprocess.DEVNULL)
    return np.fromfile(place / "out.bin", np.float32)


for policy in "exact", "balanced":
    arm = {name: outputs(policy, name, ARM, runtime.parent, QEMU, "--triple=aarch64-linux-gnu", *options)
           for name, *options in [("portable", "--isa=portable"), ("dotprod", "--features=+dotprod"), ("i8mm", "--features=+i8mm")]}
    different = [name for name, values in arm.items() if values.tobytes() != arm["portable"].tobytes()]
    print(f"{policy}: " + ("dotprod and i8mm give the bits of portable code" if not different else f"{different} give other bits than portable code"))
    here = outputs(policy, "here", ["clang-22"], build / "lib", [], "--triple=x86_64-linux-gnu")
    largest = np.abs(arm["portable"] - here).max() / np.abs(here).max()
    print(f"{policy}: " + ("as on this machine" if here.size and largest < 1e-6 else f"{largest} away from this machine"))
