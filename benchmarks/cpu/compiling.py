"""Times compiling: from the MLIR text of one attention to a callable, nothing from disk. Prints the median and the least of some runs, in milliseconds.

    PYTHONPATH=build/python python benchmarks/cpu/compiling.py

Another PYTHONPATH times another build."""
import os
import statistics
import time

os.environ["ALIGNED_CACHE_DIR"] = "off"

import alignedkv  # noqa: E402, which reads the above

KV_HEADS, RUNS = 3, 9
CASES = [(64, 3, "balanced"), (128, 4, "balanced"), (64, 3, "tight"), (64, 3, "exact")]


def text(head_dim, group):
    query, cache, out = (f"tensor<1x{heads}x{tokens}x{head_dim}x{element}>" for heads, tokens, element in
                         [(KV_HEADS * group, 1, "f16"), (KV_HEADS, "?", "f16"), (KV_HEADS * group, 1, "f32")])
    return (f"func.func @step(%q: {query}, %k: {cache}, %v: {cache}) -> {out} {{\n  %scale = arith.constant 0.125 : f32\n"
            f"  %out = aligned.attention %q, %k, %v scale %scale : {query}, {cache}, {cache} -> {out}\n  return %out : {out}\n}}\n")


def milliseconds(source, policy):
    start = time.perf_counter()
    alignedkv.compile(source, policy=policy)
    return (time.perf_counter() - start) * 1e3


times = {case: [] for case in CASES}
for _ in range(RUNS):  # in turns, so that all see the same machine
    for head_dim, group, policy in CASES:
        times[head_dim, group, policy].append(milliseconds(text(head_dim, group), policy))
for (head_dim, group, policy), all_ in times.items():
    print(f"head_dim {head_dim}, group {group}, {policy}: {statistics.median(all_):.0f} ({min(all_):.0f})")
