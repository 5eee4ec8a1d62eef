"""How long the compiler takes from a model's MLIR to the PTX of its kernels, in process and once it is warm.

    .venv/bin/python benchmarks/compile_kernels.py [BUILD]

Each program holds one decode attention, 32 query heads on 8 kv heads, and the kernels that append to its caches. Policies take turns; medians and ranges. Processor
time is that of all threads: kernels are compiled side by side. Programs that the compiler refuses are left out, and named.
"""

import ctypes
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks/gpu"))
import workload

ROUNDS = 15
OPTIONS = {policy: f"policy={policy}" for policy in workload.POLICIES} | {"dense": "format=dense policy=exact"}


class Refused(Exception):
    pass


def compile_once(library, source, options):
    """Seconds on the clock and of processors, and the size of the PTX."""
    ptx, sidecar = ctypes.c_void_p(), ctypes.c_void_p()
    clock, processor = time.perf_counter(), time.process_time()
    failed = library.aligned_compile_kernels(source.encode(), f"{options} chip=sm_90".encode(), ctypes.byref(ptx), ctypes.byref(sidecar))
    taken = time.perf_counter() - clock, time.process_time() - processor
    if failed:
        raise Refused(library.aligned_last_error().decode().splitlines()[0])
    size = len(ctypes.string_at(ptx))
    for text in (ptx, sidecar):
        library.aligned_text_free(text)
    return *taken, size


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve()
    library = ctypes.CDLL(str(build / "lib/libAlignedJIT.so"))
    library.aligned_last_error.restype = ctypes.c_char_p
    library.aligned_text_free.argtypes = [ctypes.c_void_p]
    for head_dim in (64, 128):
        source = workload.Shape("f16", 8, 4, head_dim).module()
        runs, refused = {policy: [] for policy in OPTIONS}, {}
        for policy, options in OPTIONS.items():
            try:
                compile_once(library, source, options)  # warms up
            except Refused as why:
                refused[policy] = why
        for _ in range(ROUNDS):
            for policy, options in OPTIONS.items():
                if policy not in refused:
                    runs[policy].append(compile_once(library, source, options))
        print(f"head_dim {head_dim}{'clock, ms':>16}{'processors, ms':>24}{'PTX, KiB':>14}")
        for policy, taken in runs.items():
            if policy in refused:
                print(f"  {policy:10}left out: {refused[policy]}")
                continue
            clocks, processors, sizes = zip(*taken)
            span = [f"{statistics.median(all) * 1e3:.0f} ({min(all) * 1e3:.0f} .. {max(all) * 1e3:.0f})" for all in (clocks, processors)]
            print(f"  {policy:10}{span[0]:>20}{span[1]:>22}{sizes[0] / 1024:10.0f}")


if __name__ == "__main__":
    main()
