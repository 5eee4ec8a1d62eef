"""Times attention kernels of the CPU in turn, and writes what was found: a JSON file, a page and a picture.

    python benchmarks/cpu/bench.py BUILD --capture DIR [--quick] [--ggml FOLDER] [--torch PYTHON] [--name NAME]

Runs aligned-bench over the capture as it is, shorter and longer, with other head_dims and groups, on one thread and two."""
import argparse
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np

from longer import longer
from page import write_page

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Case(NamedTuple):
    """What is run. None: as the capture has it."""
    title: str
    tokens: int | None = None
    head_dim: int | None = None
    group: int | None = None
    kv_heads: int | None = None
    copies: int = 1
    threads: int = 1
    one_head: bool = False  # and one layer: what stays in a near cache


CASES = [Case("5 layers"), Case("30 layers", copies=6), Case("30 layers, 2 threads", copies=6, threads=2), Case("512 tokens", 512, copies=6), Case("1k", 1024, copies=6),
         Case("16k", 16384), Case("64k", 65536, kv_heads=1), Case("64k, 2 threads", 65536, kv_heads=1, threads=2), Case("256k", 262144, kv_heads=1),
         Case("head_dim 128, group 4, 16k", 16384, 128, 4, 1), Case("group 1, 16k", 16384, group=1, kv_heads=1), Case("group 8, 16k", 16384, group=8, kv_heads=1),
         *(Case(f"one head in cache, {tokens} tokens", tokens, one_head=True) for tokens in (256, 512, 1024, 2048, 4000))]
QUICK = {"30 layers", "512 tokens", "16k", "one head in cache, 512 tokens"}
IN_CACHE = "exact,tight,balanced,fast,draft,exact dense-up-to=auto,tight dense-up-to=auto,balanced dense-up-to=auto,fast dense-up-to=auto"  # where planes or dense is a question
IN_CACHE_ROUNDS = 1001  # of a few microseconds


def processor():
    names = re.findall(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def shorter(source, target, tokens, one_head):
    """The newest tokens, behind the first four; of the first layer's first head only where one is asked for."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    meta = json.loads((source / "meta.json").read_text())
    target.mkdir(parents=True)
    layers, heads = (1, 1) if one_head else (None, None)
    for name in "kv":
        x = np.load(source / f"{name}.npy")[:layers, :heads]
        np.save(target / f"{name}.npy", np.concatenate([x[:, :, :4], x[:, :, 4 - tokens:]], 2))
    q = np.load(source / "q.npy")[:layers, :meta["group"] if one_head else None]
    np.save(target / "q.npy", q)
    (target / "meta.json").write_text(json.dumps(meta | {"first_position": tokens - q.shape[2], "layers": list(range(len(q)))}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--capture", type=pathlib.Path, default=ROOT / "test/data/smollm2-slice", help="a captured cache, as aligned-run --decode takes it")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(sorted(QUICK))}")
    parser.add_argument("--ggml", help="folder of llama.cpp's libggml-base.so and libggml-cpu.so")
    parser.add_argument("--torch", help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--name", default="cpu", help="of the files in benchmarks/results")
    options = parser.parse_args()
    available = np.load(options.capture / "k.npy", mmap_mode="r").shape[2]
    results = []
    for case in CASES:
        if options.quick and case.title not in QUICK:
            continue
        print(f"bench: {case.title}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / "capture"
            if case.tokens is None:
                folder = options.capture
            elif case.one_head or case.tokens < available:
                shorter(options.capture, folder, min(case.tokens, available), case.one_head)
            else:
                longer(options.capture, folder, case.tokens, case.head_dim, case.group, case.kv_heads)
            command = [options.build / "bin/aligned-bench", folder, f"--copies={case.copies}", f"--threads={case.threads}"]
            if case.one_head:  # alone: others would leave their data in the cache
                command += [f"--rounds={IN_CACHE_ROUNDS}", f"--policies={IN_CACHE}"]
            else:
                command += [f"--rounds={options.rounds}"]
                command += [f"--ggml={options.ggml}"] if options.ggml else []
                command += [f"--torch={options.torch}"] if options.torch else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"bench: error: expected aligned-bench to end well, got exit status {done.returncode}")
            results.append({"title": case.title} | json.loads(done.stdout) | {"cpu": processor()})
    folder = ROOT / "benchmarks/results"
    (folder / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results, folder, options.name)


if __name__ == "__main__":
    main()
