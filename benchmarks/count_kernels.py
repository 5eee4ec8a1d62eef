"""What the kernels for GPUs take, as the interpreter of the tests counts it: instructions of warps, and bytes of distinct sectors read.

    .venv/bin/python benchmarks/count_kernels.py CAPTURE [BUILD]

CAPTURE is a folder as aligned-run --decode takes it, of several kv heads. The first table is of one step over all its layers. The second is for each block of 64 tokens of a
row, all of which are one split's, of two layers with a head_dim twice as large: two captured heads side by side, with four query rows. These are the tables of docs/GPU.md.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
POLICIES = ("tight", "balanced", "fast", "exact", "alignedkv", "dense")
QUERIES = ((0, 0), (1, 1), (2, 2), (0, 1))  # of a pair of heads, which query rows lie side by side


def pair_heads(capture, folder):
    """Two layers, and in each two pairs of neighbouring kv heads."""
    q, k, v = (np.load(capture / f"{name}.npy")[:2] for name in "qkv")
    meta = json.loads((capture / "meta.json").read_text())
    heads, group = k.shape[1], meta["group"]
    if heads < 2 or group < 3:
        sys.exit(f"count_kernels: error: {capture}: expected at least 2 kv heads of 3 query heads, got {heads} of {group}")
    pairs = [(0, 1), (1, 2 % heads)]
    for name, x in (("k", k), ("v", v)):
        np.save(folder / f"{name}.npy", np.stack([np.concatenate([x[:, a], x[:, b]], -1) for a, b in pairs], 1))
    rows = [np.concatenate([q[:, a * group + i], q[:, b * group + j]], -1) for a, b in pairs for i, j in QUERIES]
    np.save(folder / "q.npy", np.stack(rows, 1))
    (folder / "meta.json").write_text(json.dumps({"group": len(QUERIES), "scale": (2 * k.shape[-1]) ** -0.5, "first_position": meta["first_position"]}))


def count(build, capture, policy, scratch, environment):
    """Of one step of each layer, by kernel: instructions and bytes; and how many rows there are in all."""
    kernels, counts = scratch / "kernels", scratch / "counts.jsonl"
    counts.unlink(missing_ok=True)
    options = ["--policy", "exact", "--format", "dense"] if policy == "dense" else ["--policy", policy]
    decode = ["--decode", capture]
    subprocess.run([build / "bin/aligned-run", *decode, "--target=cuda", "--emit=ptx", *options, "-o", kernels], check=True)
    launch = [build / "bin/aligned-launch", kernels, *decode, "--steps", "1", "--repeat", "0", "--tolerance", "0.1"]
    library = build / "lib/libaligned_cuda_emulator.so"
    subprocess.run(launch, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment | {"ALIGNED_LIBCUDA": str(library), "ALIGNED_EMULATOR_COUNTS": str(counts)})
    found, steps = {}, 0
    for line in map(json.loads, counts.read_text().splitlines()):
        if line["kernel"].startswith("decode"):
            name = line["kernel"].split("_", 1)[1]
            instructions, read = found.get(name, (0, 0))
            found[name] = instructions + line["warp_instructions"], read + 32 * line["read"]["distinct"]
            steps += name == "merge"
    found["all"] = tuple(map(sum, zip(*found.values())))
    return found, steps * json.loads((kernels / "kernels.json").read_text())["decode"][0]["kv_heads"]


def print_table(build, capture, scratch, title, per_row, environment):
    """`per_row` gives what counts are divided by, instructions and bytes, from the number of rows."""
    print(f"\n{title}\n{'':10}" + "".join(f"{policy:>18}" for policy in POLICIES))
    columns = []
    for policy in POLICIES:
        found, rows = count(build, capture, policy, scratch, environment)
        columns.append({name: tuple(number / unit for number, unit in zip(numbers, per_row(rows))) for name, numbers in found.items()})
    names = sorted(dict.fromkeys(name for column in columns for name in column), key=lambda name: name == "all")
    for name in names:
        print(f"{name:10}" + "".join(f"{column[name][0]:10.0f}{column[name][1]:8.0f}" if name in column else " " * 18 for column in columns))


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    capture, build = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "build").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        print_table(build, capture, scratch, "a step: thousand instructions, KiB", lambda rows: (1000, 1024), {})
        wide = scratch / "wide"
        wide.mkdir()
        pair_heads(capture, wide)
        blocks = json.loads((wide / "meta.json").read_text())["first_position"] / 64
        print_table(build, wide, scratch, "a block of 64 tokens: instructions, bytes", lambda rows: (rows * blocks,) * 2, {"ALIGNED_EMULATOR_SMS": "1"})


if __name__ == "__main__":
    main()
