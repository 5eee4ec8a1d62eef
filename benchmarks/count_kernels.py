"""What the kernels for GPUs take, as an interpreter counts it: instructions of warps, and bytes of distinct sectors.

    .venv/bin/python benchmarks/count_kernels.py CAPTURE [BUILD] [--json FILE]

CAPTURE is a folder as aligned-run --decode takes it, of several kv heads. The tables are those of docs/GPU.md:

    a step     over all layers of the capture, with as many splits as the runtime chooses
    a tile     of 64 tokens of a row, what a block of threads does once left out
    a block    of threads, what it does once: runs of a cache of 1024 tokens with 1 and 4 splits, and the difference

The last two are of a head_dim twice as large, two captured heads side by side, with four query rows. A row of the scan is once more what its first block of threads makes
ready for all. Where ptxas and nvdisasm or cuobjdump are installed, a fourth table has the instructions of the machine beside those of PTX in each kernel's hottest loop, that
over tiles: the shortest one with the most products of tensor cores. --json writes what gpu/model.py reads. Programs that the compiler refuses are left out, and named.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = {policy: ["--policy", policy] for policy in ("tight", "balanced", "fast", "exact", "alignedkv")} | {"dense": ["--policy", "exact", "--format", "dense"]}
NOTHING = ["--policy", "budget", "--tolerance", "0.9"]  # so wide that no token is visible to a query of zeros
QUERIES = ((0, 0), (1, 1), (2, 2), (0, 1))  # of a pair of heads, which query rows lie side by side
TILE, SHORT, SPLITS = 64, 1024, (1, 4)
FIGURES = ("instructions", "read", "written")


class Left(Exception):
    """What is left out, and why."""


class Counts(dict):
    """Figures by kernel. Sums and differences are by kernel, too."""

    def combined(self, other, operation):
        return Counts({name: [operation(a, b) for a, b in zip(figures, other[name])] for name, figures in self.items()})

    def __sub__(self, other):
        return self.combined(other, lambda a, b: a - b)

    def __truediv__(self, number):
        return Counts({name: [figure / number for figure in figures] for name, figures in self.items()})


# Captures


def save(folder, q, k, v, meta):
    folder.mkdir()
    for name, x in zip("qkv", (q, k, v)):
        np.save(folder / f"{name}.npy", x)
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def pair_heads(capture):
    """Two layers, and in each two pairs of neighbouring kv heads: q, k, v, scale and position of the step."""
    q, k, v = (np.load(capture / f"{name}.npy")[:2] for name in "qkv")
    meta = json.loads((capture / "meta.json").read_text())
    heads, group = k.shape[1], meta["group"]
    if heads < 2 or group < 3 or meta["first_position"] < 2 * SHORT:
        sys.exit(f"count_kernels: error: {capture}: expected at least 2 kv heads of 3 query heads and {2 * SHORT} tokens, got {heads}, {group} and {meta['first_position']}")
    pairs = [(0, 1), (1, 2 % heads)]
    k, v = (np.stack([np.concatenate([x[:, a], x[:, b]], -1) for a, b in pairs], 1) for x in (k, v))
    rows = [np.concatenate([q[:, a * group + i], q[:, b * group + j]], -1) for a, b in pairs for i, j in QUERIES]
    return np.stack(rows, 1), k, v, {"group": len(QUERIES), "scale": k.shape[-1] ** -0.5, "first_position": meta["first_position"]}


# Counting


class Runs:
    def __init__(self, build, scratch, chip):
        self.build, self.scratch, self.chip, self.programs = build, scratch, chip, {}

    def program(self, capture, options):
        """The folder of kernels for a capture."""
        key = capture, *options
        if key not in self.programs:
            folder = self.scratch / f"kernels{len(self.programs)}"
            command = [self.build / "bin/aligned-run", "--decode", capture, "--target=cuda", f"--chip={self.chip}", "--emit=ptx", *options, "-o", folder]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                raise Left((said.stderr.strip().splitlines() or [f"exit status {said.returncode}"])[0])
            self.programs[key] = folder
        return self.programs[key]

    def count(self, capture, options, splits=0, program=None):
        """Of one step of each layer; and how many rows there are in all."""
        program, counts = program or self.program(capture, options), self.scratch / "counts.jsonl"
        counts.unlink(missing_ok=True)
        command = [self.build / "bin/aligned-launch", program, "--decode", capture, "--steps", "1", "--repeat", "0", "--tolerance", "1", "--splits", str(splits)]
        variables = {"ALIGNED_LIBCUDA": str(self.build / "lib/libaligned_cuda_emulator.so"), "ALIGNED_EMULATOR_COUNTS": str(counts)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | variables)
        found = {}
        for line in map(json.loads, counts.read_text().splitlines()):
            if line["kernel"].startswith("decode"):
                figures = line["warp_instructions"], 32 * line["read"]["distinct"], 32 * line["written"]["distinct"]
                name = line["kernel"].split("_", 1)[1]
                found[name] = [a + b for a, b in zip(found.get(name, [0] * 3), figures)]
        layers, kv_heads = np.load(capture / "k.npy", mmap_mode="r").shape[:2]
        return Counts(found), layers * kv_heads


def measure(runs, capture, wide, short, silent, options):
    """By kernel: what a step takes, and what a tile, a block of threads and a row do; `idle`: a block without visible tokens."""
    step, _ = runs.count(capture, options)
    program = runs.program(wide, options)  # the short cache takes the same
    long, rows = runs.count(wide, options, SPLITS[0])
    few, many = (runs.count(short, options, splits, program)[0] for splits in SPLITS)
    tokens = json.loads((wide / "meta.json").read_text())["first_position"] + 1
    tiles, short_tiles = -(-tokens // TILE), SHORT // TILE
    block = (many - few) / (rows * (SPLITS[1] - SPLITS[0]))
    every = (long - few) / (rows * (tiles - short_tiles))  # right where all tiles are alike
    of_all = (long / rows - block) / tiles
    found = {}
    for name in long:
        alike = name == "scan" and "attend" in long
        parts = {"step": step[name], "tile": (every if alike else of_all)[name], "block": block[name]}
        if alike:
            parts["row"] = [a / rows - b - short_tiles * c for a, b, c in zip(few[name], block[name], every[name])]
        found[name] = {part: dict(zip(FIGURES, figures)) for part, figures in parts.items()}
    if silent and "attend" in found:
        quiet = runs.program(silent, NOTHING)
        few, many = (runs.count(silent, NOTHING, splits, quiet)[0] for splits in SPLITS)
        found["attend"]["idle"] = dict(zip(FIGURES, ((many - few) / (rows * (SPLITS[1] - SPLITS[0])))["attend"]))
    return found


# Instructions of the machine


def tool(*names):
    """The first of these programs: on PATH, of a CUDA toolkit, or of a package of this environment."""
    for name in names:
        places = [shutil.which(name), pathlib.Path("/usr/local/cuda/bin") / name, *sorted(pathlib.Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/*/bin/{name}"))]
        for place in filter(None, map(lambda place: place and pathlib.Path(place), places)):
            if place.exists():
                return place
    raise Left(f"expected {' or '.join(names)} on PATH, in /usr/local/cuda/bin or as a package of {sys.prefix}, found none")


def functions_of_ptx(text):
    """Name to [(label, opcode, target)] of each kernel; one of label and opcode is None."""
    for name, body in re.findall(r"\.entry (\w+)\(.*?^\{(.*?)^\}", text, re.DOTALL | re.MULTILINE):
        yield name, list(instructions(body, r"^\s*(\$\w+):|^\s*(?:@!?%\w+ )?([a-z][\w.:]*)\b(?:[^;]*?(\$\w+))?[^;]*;"))


def functions_of_sass(text):
    """As nvdisasm prints it, with labels, or cuobjdump, with addresses."""
    for name, body in re.findall(r"(?:^\.text\.|Function : )(\w+):?\n(.*?)(?=^\.text\.|Function : |\Z)", text, re.DOTALL | re.MULTILINE):
        yield name, list(instructions(body, r"^(\.L_x_\d+):|^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(?:[^;]*?(\.L_x_\d+|\b0x[0-9a-f]+)(?=\)? ;))?[^;]*;", True))


def instructions(body, pattern, addressed=False):
    for found in re.finditer(pattern, body, re.MULTILINE):
        label, *rest = found.groups()
        if label:
            yield label, None, None
        else:
            if addressed:
                yield f"0x{int(rest[0], 16):x}", None, None
            opcode, target = rest[-2:]
            yield None, opcode, target if re.match(r"bra\b|BRA\b", opcode) else None


def hottest_loop(code):
    """Instructions, and products of tensor cores, of the loop with the most of these, of several the shortest; None where no loop has any. A loop ends with its last branch back."""
    places, ends, opcodes = {}, {}, []
    for label, opcode, target in code:
        if label:
            places[label] = len(opcodes)
        else:
            opcodes.append(opcode)
            if target in places:
                ends[places[target]] = len(opcodes)
    products = lambda loop: sum("mma" in opcode.lower() for opcode in opcodes[slice(*loop)])
    begin, end = max(ends.items(), key=lambda loop: (products(loop), loop[0] - loop[1]), default=(0, 0))
    return (end - begin, products((begin, end))) if products((begin, end)) else None


def machine_code(folder, chip, scratch):
    """Of each kernel that decodes, the hottest loop in PTX and in code of the machine, where ptxas may have unrolled it."""
    assembler, disassembler = tool("ptxas"), tool("nvdisasm", "cuobjdump")
    cubin = scratch / "kernels.cubin"
    subprocess.run([assembler, f"-arch={chip}", folder / "kernels.ptx", "-o", cubin], check=True)
    said = subprocess.run([disassembler, "-c" if disassembler.name == "nvdisasm" else "-sass", cubin], check=True, capture_output=True, text=True).stdout
    of_machine = {name: hottest_loop(code) for name, code in functions_of_sass(said)}
    of_ptx = {name: hottest_loop(code) for name, code in functions_of_ptx((folder / "kernels.ptx").read_text())}
    return {name.split("_", 1)[1]: {"ptx": loop, "sass": of_machine[name]} for name, loop in of_ptx.items() if name.startswith("decode") and loop and of_machine[name]}


# Tables


def print_table(title, columns, width=10):
    """`columns`: of each program, a row's name to its two figures."""
    print(f"\n{title}\n{'':14}" + "".join(f"{name:>{width + 8}}" for name in columns))
    for row in sorted(dict.fromkeys(row for column in columns.values() for row in column), key=lambda row: row == "all"):
        print(f"{row:14}" + "".join(f"{column[row][0]:{width}.0f}{column[row][1]:8.0f}" if row in column else " " * (width + 8) for column in columns.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=pathlib.Path)
    parser.add_argument("build", type=pathlib.Path, nargs="?", default=ROOT / "build")
    parser.add_argument("--chip", default="sm_90")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--policies", default=",".join(PROGRAMS), help="only these programs")
    options = parser.parse_args()
    capture, policies = options.capture.resolve(), options.policies.split(",")
    if unknown := [policy for policy in policies if policy not in PROGRAMS]:
        parser.error(f"expected policies of {', '.join(PROGRAMS)}, got {unknown[0]}")
    found, loops, left = {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        runs = Runs(options.build.resolve(), scratch, options.chip)
        q, k, v, meta = pair_heads(capture)
        wide = save(scratch / "wide", q, k, v, meta)
        of_short = k[:, :, :SHORT], v[:, :, :SHORT], meta | {"first_position": SHORT - 1}
        short, silent = save(scratch / "short", q[:, :, :1], *of_short), save(scratch / "silent", 0 * q[:, :, :1], *of_short)
        for policy in policies:
            try:
                found[policy] = measure(runs, capture, wide, short, silent if policy != "exact" else None, PROGRAMS[policy])
            except Left as why:
                left[policy] = str(why)
                continue
            try:
                loops[policy] = machine_code(runs.program(wide, PROGRAMS[policy]), options.chip, scratch)
            except Left as why:
                left["instructions of the machine"] = str(why)

    def column(kernels, part, units):
        rows = {name: [parts[part][figure] / unit for figure, unit in zip(FIGURES, units)] for name, parts in kernels.items()}
        return rows | {"all": [sum(figures) for figures in zip(*rows.values())]}

    def of_block(kernels):
        named = {"block": "", "idle": ", idle", "row": ", a row"}
        return {name + text: list(parts[part].values()) for name, parts in kernels.items() for part, text in named.items() if part in parts}

    print_table("a step: thousand instructions, KiB read", {policy: column(kernels, "step", (1e3, 1024)) for policy, kernels in found.items()})
    print_table("a tile of 64 tokens: instructions, bytes read", {policy: column(kernels, "tile", (1, 1)) for policy, kernels in found.items()})
    print_table("a block of threads, once; idle: without visible tokens: instructions, bytes read", {policy: of_block(kernels) for policy, kernels in found.items()})
    if any(loops.values()):
        print_table("the hottest loop: instructions of PTX, of the machine", {policy: {name: (pair["ptx"][0], pair["sass"][0]) for name, pair in of.items()}
                                                                              for policy, of in loops.items()})
    for what, why in left.items():
        print(f"\nleft out, {what}: {why}")
    if options.json:
        options.json.write_text(json.dumps({"chip": options.chip, "head_dim": k.shape[-1], "query_rows": len(QUERIES), "tokens": meta["first_position"] + 1,
                                            "programs": found, "loops": loops}, indent=1) + "\n")


if __name__ == "__main__":
    main()
