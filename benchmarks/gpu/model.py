"""What bounds a decode step, and how long it takes: a calculation from counts and data sheets, not a measurement.

    .venv/bin/python benchmarks/count_kernels.py CAPTURE --json COUNTS.json
    .venv/bin/python benchmarks/gpu/model.py COUNTS.json [--programs tight,balanced,fast] [--bandwidth 0.9] [--issue 0.8] [--launch 3]

One attention of a step: 32 query heads on 8 kv heads. A kernel takes as long as its bytes or its instructions do, whichever is longer:

    bytes     those of distinct sectors that it reads and writes, at 90 % of the memory's bandwidth
    issue     its instructions of warps, at 80 % of four in a cycle of each multiprocessor; where there are fewer blocks of threads than multiprocessors, of as many as blocks
    launches  3 us for each kernel: its start, its first loads and its tail. A dense step has two of them, too, a scan of splits and a merge

Counts of a tile, of a block of threads and of a row are those that were counted, at whatever context: on longer caches fewer tokens are visible, and less is read of a tile.
Instructions are of PTX, times what the machine's are of these for each product of the hottest loop, where that was counted. Splits are chosen as the runtime does. A dense step reads
4 * 64 * head_dim bytes of K and V in bf16 for each tile of 64 tokens, half of that in fp8, and nothing but bytes bounds it.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

TILE, KV_HEADS, QUERY_HEADS = 64, 8, 32
CASES = ((1, 8), (1, 32), (1, 128), (8, 8), (8, 32), (32, 32), (32, 128))  # batch, thousand tokens
ISSUED = 4  # warp instructions of a multiprocessor in a cycle
BLOCKS, TILES_PER_SPLIT, MOST_SPLITS = 2, 4, 128  # the default tuning of programs
DENSE_LAUNCHES = 2


@dataclasses.dataclass(frozen=True)
class Device:
    """Of a data sheet: memory in TB/s, multiprocessors, GHz."""

    name: str
    bandwidth: float
    multiprocessors: int
    clock: float


DEVICES = (Device("H200", 4.8, 132, 1.755), Device("H100 SXM", 3.35, 132, 1.755), Device("A100 SXM 80GB", 2.039, 108, 1.41))


@dataclasses.dataclass(frozen=True)
class Assumptions:
    bandwidth: float = 0.9
    issue: float = 0.8
    launch: float = 3.0


@dataclasses.dataclass(frozen=True)
class Time:
    """Microseconds by what bounds them."""

    bytes: float = 0.0
    issue: float = 0.0
    launches: float = 0.0

    @property
    def all(self):
        return self.bytes + self.issue + self.launches

    @property
    def bound(self):
        return max(("bytes", "issue", "launches"), key=lambda part: getattr(self, part))

    def __add__(self, other):
        return Time(self.bytes + other.bytes, self.issue + other.issue, self.launches + other.launches)


def splits_of(rows, tiles, multiprocessors):
    """As the runtime chooses them: lib/Runtime/Cuda/Decode.cpp."""
    slots = multiprocessors * BLOCKS
    waves = lambda splits: -(-rows * splits // slots) / splits
    best = 1
    for splits in range(2, min(-(-tiles // TILES_PER_SPLIT), MOST_SPLITS) + 1):
        if waves(splits) < 0.95 * waves(best):
            best = splits
    return best


def kernel_time(device, assumed, size, instructions, blocks):
    """Of `size` bytes and so many instructions of warps in so many blocks of threads."""
    of_bytes = size / (device.bandwidth * 1e6 * assumed.bandwidth)
    of_issue = instructions / (ISSUED * min(device.multiprocessors, blocks) * device.clock * 1e3 * assumed.issue)
    return Time(launches=assumed.launch) + (Time(bytes=of_bytes) if of_bytes >= of_issue else Time(issue=of_issue))


def step_time(device, assumed, kernels, loops, batch, context):
    """A program's step. `kernels` and `loops`: as count_kernels.py writes them."""
    rows, tiles = batch * KV_HEADS, -(-context // TILE)
    blocks, total = rows * splits_of(rows, tiles, device.multiprocessors), Time()
    for name, parts in kernels.items():
        times = {"tile": rows * tiles, "block": blocks, "row": rows}
        count = lambda figure: sum(many * parts[part][figure] for part, many in times.items() if part in parts)
        machine = 1.0
        if name in loops:
            each = {which: length / products for which, (length, products) in loops[name].items()}
            machine = each["sass"] / each["ptx"]
        total += kernel_time(device, assumed, count("read") + count("written"), machine * count("instructions"), blocks)
    return total


def dense_time(device, assumed, head_dim, batch, context, width):
    """Of K and V of `width` bytes each value."""
    size = 2 * width * head_dim * batch * KV_HEADS * context
    return Time(bytes=size / (device.bandwidth * 1e6 * assumed.bandwidth), launches=DENSE_LAUNCHES * assumed.launch)


def table(device, assumed, counts):
    programs = counts["programs"]
    lines = [f"{device.name}: {device.bandwidth:g} TB/s, {device.multiprocessors} multiprocessors at {device.clock:g} GHz",
             f"{'':13}{'bf16':>9}{'fp8':>9}" + "".join(f"  {policy:26}" for policy in programs),
             f"{'':13}{'us':>9}{'us':>9}" + f"{'us':>8}  {'bound':8}{'/bf16':>5}{'/fp8':>5}" * len(programs)]
    for batch, thousands in CASES:
        context = 1024 * thousands
        dense, fp8 = (dense_time(device, assumed, counts["head_dim"], batch, context, width).all for width in (2, 1))
        line = f"  {batch:3} x {thousands:4}k{dense:9.1f}{fp8:9.1f}"
        for policy, kernels in programs.items():
            step = step_time(device, assumed, kernels, counts["loops"].get(policy, {}), batch, context)
            line += f"{step.all:8.1f}  {step.bound:8}{dense / step.all:5.1f}{fp8 / step.all:5.1f}"
        lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


def page(counts, assumed):
    machine = "times what the machine's are of these in hottest loops" if any(counts["loops"].values()) else "taken for the machine's"
    head = (f"A calculation, not a measurement: {QUERY_HEADS} query heads on {KV_HEADS} kv heads, head_dim {counts['head_dim']}, {counts['chip']}.\n"
            f"Assumed: {assumed.bandwidth:.0%} of the bandwidth, {assumed.issue:.0%} of {ISSUED} instructions a cycle, {assumed.launch:g} us a launch; counts of a tile as at "
            f"{counts['tokens']} tokens, whatever the context; instructions of PTX, {machine}.")
    return "\n\n".join([head, *(table(device, assumed, counts) for device in DEVICES)])


def load(path):
    try:
        counts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"model: error: {path}: expected what count_kernels.py --json writes, got: {error}")
    missing = [name for name in ("chip", "head_dim", "query_rows", "tokens", "programs", "loops") if name not in counts]
    if missing:
        sys.exit(f"model: error: {path}: expected what count_kernels.py --json writes, found no '{missing[0]}'")
    if counts["query_rows"] != QUERY_HEADS // KV_HEADS:
        sys.exit(f"model: error: {path}: expected counts of {QUERY_HEADS // KV_HEADS} query rows, got {counts['query_rows']}")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=pathlib.Path, help="what count_kernels.py --json wrote")
    for field in dataclasses.fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    parser.add_argument("--programs", default="", help="only these, such as tight,balanced,fast")
    options = parser.parse_args()
    assumed = Assumptions(*(getattr(options, field.name) for field in dataclasses.fields(Assumptions)))
    if not (0 < assumed.bandwidth <= 1 and 0 < assumed.issue <= 1 and assumed.launch >= 0):
        parser.error(f"expected parts above 0 and up to 1 and a launch of 0 us or more, got {assumed.bandwidth:g}, {assumed.issue:g} and {assumed.launch:g}")
    counts = load(options.counts)
    wanted = options.programs.split(",") if options.programs else list(counts["programs"])
    if unknown := [program for program in wanted if program not in counts["programs"]]:
        parser.error(f"expected programs of {', '.join(counts['programs'])}, got {unknown[0]}")
    counts["programs"] = {program: counts["programs"][program] for program in wanted}
    print(page(counts, assumed))


if __name__ == "__main__":
    main()
