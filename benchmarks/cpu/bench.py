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

import numpy as np

from longer import longer
from page import write_page

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What is run: tokens (None: the capture as it is), head_dim, group, kv heads, copies, threads.
CASES = [("5 layers", None, None, None, None, 1, 1), ("30 layers", None, None, None, None, 6, 1), ("30 layers, 2 threads", None, None, None, None, 6, 2),
         ("512 tokens", 512, None, None, None, 6, 1), ("1k", 1024, None, None, None, 6, 1), ("16k", 16384, None, None, None, 1, 1), ("64k", 65536, None, None, 1, 1, 1),
         ("64k, 2 threads", 65536, None, None, 1, 1, 2), ("256k", 262144, None, None, 1, 1, 1), ("head_dim 128, group 4, 16k", 16384, 128, 4, 1, 1, 1),
         ("group 1, 16k", 16384, None, 1, 1, 1, 1), ("group 8, 16k", 16384, None, 8, 1, 1, 1)]
QUICK = {"30 layers", "512 tokens", "16k"}


def processor():
    names = re.findall(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def shorter(source, target, tokens):
    """The newest tokens, behind the first four."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    meta = json.loads((source / "meta.json").read_text())
    target.mkdir(parents=True)
    for name in "kv":
        x = np.load(source / f"{name}.npy")
        np.save(target / f"{name}.npy", np.concatenate([x[:, :, :4], x[:, :, 4 - tokens:]], 2))
    q = np.load(source / "q.npy")
    np.save(target / "q.npy", q)
    (target / "meta.json").write_text(json.dumps(meta | {"first_position": tokens - q.shape[2]}))


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
    for title, tokens, head_dim, group, kv_heads, copies, threads in CASES:
        if options.quick and title not in QUICK:
            continue
        print(f"bench: {title}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / "capture"
            if tokens is None:
                folder = options.capture
            elif tokens < available:
                shorter(options.capture, folder, tokens)
            else:
                longer(options.capture, folder, tokens, head_dim, group, kv_heads)
            command = [options.build / "bin/aligned-bench", folder, f"--copies={copies}", f"--threads={threads}", f"--rounds={options.rounds}"]
            command += [f"--ggml={options.ggml}"] if options.ggml else []
            command += [f"--torch={options.torch}"] if options.torch else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"bench: error: expected aligned-bench to end well, got exit status {done.returncode}")
            results.append({"title": title} | json.loads(done.stdout) | {"cpu": processor()})
    folder = ROOT / "benchmarks/results"
    (folder / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results, folder, options.name)


if __name__ == "__main__":
    main()
