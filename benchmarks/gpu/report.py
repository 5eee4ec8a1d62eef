"""Pictures and a page of what bench.py measured.

    python3 report.py RESULTS.json... > ../../docs/Performance.md

A results file holds `gpu`, `capability`, `date`, `command`, `versions`, `smi` (what the driver says of device and clocks, before and after), `build` (of
the programs) and, for each of its `cells`: `batch`, `context`, `element`, `kv_heads`, `group` (query heads for each of them), `head_dim`, `dense_bytes`
(of keys and values in 16 bits), `steps` (how many caches a graph goes through, one after another), `append`, `results` and `skipped`. A result has

    name, family          only the fastest of a family is timed with care; `slower` has a first time of the others
    error_mean, error_max relative L2 of a query head's output against float64, over all heads
    key_bits, value_bits  read of each value in the first of the caches, scale codes included; bytes_read, of a step
    microseconds          of a step: median, quartiles and number of runs; not there where nothing is timed (`timed` is false)
    kernels               of the interpreter: instructions of warps, and distinct sectors of 32 bytes that were read

    ptx                   the chip that the program was compiled for

Whatever was left out is in `skipped`, of a cell or of all, with its reason; `given_up` has, for each contestant, the cells in which it ended a process.
`aligned_launch` is what that program says of the captured cache itself. While a run goes on, `unfinished` is the current cell and `at_work` the contestant.
"""

import collections
import json
import math
import pathlib
import sys


def line(result):
    """A result as bench.py prints it."""
    bits = f"{result['key_bits']:5.2f} {result['value_bits']:5.2f} bits" if "key_bits" in result else " " * 16
    error = f"error {result['error_mean']:.1e} (max {result['error_max']:.1e})" if "error_mean" in result else ""
    time = result.get("microseconds")
    took = f"{time['median']:9.1f} us ({time['q1']:.1f} to {time['q3']:.1f})" if time else ""
    if time and "bytes_moved" in result:
        took += f", {result['bytes_moved'] / time['median'] / 1e6:.2f} TB/s"
    return f"{result['name']:28} {bits}  {error:32} {took}".rstrip()


def is_dense(result):
    """Whether it reads every bit of 16-bit caches that are arrays."""
    return result["name"] != "copy" and "fp8" not in result["name"] and (not result["name"].startswith("aligned") or result["name"].startswith("aligned dense"))


def best_dense(cell):
    times = {r["name"]: r["microseconds"]["median"] for r in cell["results"] if is_dense(r) and "microseconds" in r}
    return min(times.items(), key=lambda item: item[1], default=(None, None))


def copy_bandwidth(cell):
    """Bytes that a copy reads and writes in a microsecond."""
    return next((r["bytes_moved"] / r["microseconds"]["median"] for r in cell["results"] if "bytes_moved" in r and "microseconds" in r), None)


# The plot

PANELS, WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT, SPACING = 4, 600, 360, 62, 44, 40, 180, 14
STYLE = """text { font: 12px system-ui, sans-serif; fill: #24292f }
.axis { stroke: #8c959f; fill: none } .grid { stroke: #8c959f; stroke-opacity: .25 } .lead { stroke: #8c959f; stroke-width: .7 }
.own { fill: #0969da } .other { fill: #bc4c00 } .title { font-weight: 600 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .own { fill: #58a6ff } .other { fill: #f0883e } }"""


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def decades(low, high):
    """Marks of a logarithmic axis: powers of ten, and 2 and 5 times them where there are few."""
    steps = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def apart(wanted, most):
    """Heights of labels, near those wanted, that are in order."""
    placed = []
    for height in wanted:
        placed.append(max(height, placed[-1] + SPACING) if placed else height)
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], placed[number + 1] - SPACING if number + 1 < len(placed) else most)
    return placed


def panel(cell, timed, x0, y0):
    across = (lambda r: r["microseconds"]["median"]) if timed else (lambda r: r["bytes_read"] / cell["dense_bytes"])
    points = [(across(r), r["error_mean"], r["name"]) for r in cell["results"] if r.get("error_mean", 0) > 0 and (not timed or "microseconds" in r)]
    if not points:
        return ""
    (left, right), (low, high) = ((min(values) / 1.4, max(values) * 1.4) for values in list(zip(*points))[:2])
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = lambda value: x0 + LEFT + inner_width * math.log(value / left) / math.log(right / left)
    y = lambda value: y0 + HEIGHT - BOTTOM - inner_height * math.log(value / low) / math.log(high / low)
    parts = [f'<text class="title" x="{x0 + LEFT}" y="{y0 + 22}">{escaped(cell["cell"])}</text>',
             f'<rect class="axis" x="{x0 + LEFT}" y="{y0 + TOP}" width="{inner_width}" height="{inner_height}"/>',
             f'<text x="{x0 + LEFT + inner_width / 2}" y="{y0 + HEIGHT - 8}" text-anchor="middle">{"microseconds of a step" if timed else "bytes read / dense"}</text>',
             f'<text x="{x0 + 14}" y="{y0 + TOP + inner_height / 2}" text-anchor="middle" '
             f'transform="rotate(-90 {x0 + 14} {y0 + TOP + inner_height / 2})">relative error</text>']
    for value in decades(left, right):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y0 + TOP}" y2="{y0 + HEIGHT - BOTTOM}"/>'
                     f'<text x="{x(value):.1f}" y="{y0 + HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    for value in decades(low, high):
        parts.append(f'<line class="grid" x1="{x0 + LEFT}" x2="{x0 + WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
                     f'<text x="{x0 + LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0e}</text>')
    points.sort(key=lambda point: y(point[1]))
    for (time, error, name), last in zip(points, apart([y(error) + 4 for _, error, _ in points], y0 + HEIGHT - BOTTOM)):
        kind = "own" if name.startswith("aligned") else "other"
        label = x0 + WIDTH - RIGHT + 8
        parts.append(f'<circle class="{kind}" cx="{x(time):.1f}" cy="{y(error):.1f}" r="4"/><line class="lead" x1="{x(time) + 5:.1f}" y1="{y(error):.1f}" '
                     f'x2="{label - 2}" y2="{last - 4:.1f}"/><text x="{label}" y="{last:.1f}">{escaped(name.removeprefix("aligned "))}</text>')
    return "\n".join(parts)


def write_plot(data, path):
    """Error against time, of the first cells; where nothing was timed, against bytes."""
    cells = [cell for cell in data["cells"] if any("microseconds" in r or not data["timed"] for r in cell["results"])][:PANELS]
    if not cells:
        return
    rows = -(-len(cells) // 2)
    body = "\n".join(panel(cell, data["timed"], WIDTH * (number % 2), HEIGHT * (number // 2)) for number, cell in enumerate(cells))
    width, height = WIDTH * min(2, len(cells)), HEIGHT * rows
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
                    f"<style>{STYLE}</style>\n{body}\n</svg>\n")


# The page


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)])


def name_of(result):
    name = result["name"]
    return f"`{name.removeprefix('aligned ')}`" if name.startswith("aligned") else name


def accuracy(result, cell):
    bits = [f"{result[key]:.2f}" if key in result else "" for key in ("key_bits", "value_bits")]
    return [*bits, f"{result['bytes_read'] / cell['dense_bytes']:.3f}", f"{result['error_mean']:.1e}", f"{result['error_max']:.1e}"]


def size_of(cell):
    return (f"{cell['batch']} x {cell['context']} tokens, {cell['kv_heads'] * cell['group']} query heads on {cell['kv_heads']} kv heads, head_dim {cell['head_dim']}, "
            f"{cell['element']}")


def timed_cell(cell):
    (best, dense), copied = best_dense(cell), copy_bandwidth(cell)
    rows = []
    for result in sorted((r for r in cell["results"] if "microseconds" in r and "error_mean" in r), key=lambda r: r["microseconds"]["median"]):
        time = result["microseconds"]
        rate = result["bytes_read"] / time["median"]
        rows.append([name_of(result), *accuracy(result, cell), f"{time['median']:.1f} ({time['q1']:.1f} to {time['q3']:.1f})",
                     f"{dense / time['median']:.2f}" if dense else "", f"{rate / copied:.2f}" if copied else ""])
    head = ["", "K bits", "V bits", "bytes", "error mean", "max", "us", "speed-up", "of copy"]
    said = [table(head, rows)]
    if best:
        said.append(f"The best dense kernel is that of {best}." + (f" A copy moves {copied / 1e6:.2f} TB/s." if copied else ""))
    append = cell.get("append") or {}
    if append.get("bytes_per_second"):
        said.append(f"Appending the context splits {append['bytes_per_second'] / 1e9:.0f} GB/s of 16-bit tokens." +
                    (f" A step of `balanced` that appends a token first takes {append['step_microseconds']['median']:.1f} us." if append.get("step_microseconds") else ""))
    return "\n\n".join(said)


def counted_cell(cell):
    head = ["", "K bits", "V bits", "bytes", "error mean", "max", "thousand instructions", "KiB of sectors", "instructions per byte"]
    rows, kernels = [], []
    for result in cell["results"]:
        counts = result.get("kernels", {})
        instructions, sectors = (sum(kernel[key] for kernel in counts.values()) for key in ("warp_instructions", "sectors"))
        counted = (f"{instructions / 1e3:.0f}", f"{sectors / 32:.0f}", f"{instructions / (32 * sectors):.2f}") if sectors else ("", "", "")
        rows.append([name_of(result), *accuracy(result, cell), *counted])
        each = (f"`{name}` {kernel['warp_instructions'] / 1e3:.1f} / {kernel['sectors'] / 32:.0f}" for name, kernel in counts.items())
        kernels.append([name_of(result), ", ".join(each)])
    return table(head, rows) + "\n\n" + table(["", "thousand instructions / KiB of sectors, of all launches of a kernel"], kernels)


def left_out(data):
    reasons = collections.defaultdict(list)
    for cell in data["cells"]:
        for entry in cell["skipped"]:
            reasons[entry["name"], entry["reason"]].append(cell["cell"])
    lines = [f"- {name}: {why}" + (f" ({len(cells)} of {len(data['cells'])} cells)" if len(data["cells"]) > 1 else "") for (name, why), cells in reasons.items()]
    apart = collections.defaultdict(list)
    for entry in data["skipped"]:
        apart[entry["reason"]].append(entry["what"])
    return "\n".join(lines + [f"- {', '.join(whats)}: {why}" for why, whats in apart.items()]) or "Nothing."


def reached(data):
    """A line for each cell: speed-ups over the best dense kernel, and the part of a copy's bandwidth."""
    policies, rows = ("dense", "tight", "balanced", "fast", "alignedkv"), []
    for cell in data["cells"]:
        (_, dense), copied = best_dense(cell), copy_bandwidth(cell)
        own = {r["name"].removeprefix("aligned "): r for r in cell["results"] if r["name"].startswith("aligned ") and "microseconds" in r}

        def said(result):
            time = result["microseconds"]["median"]
            return f"{dense / time:.2f}" + (f", {result['bytes_read'] / time / copied:.2f} of copy" if copied else "")

        if dense and own:
            rows.append([cell["cell"], *(said(own[policy]) if policy in own else "" for policy in policies)])
    return table(["cell", *(f"`{policy}`" for policy in policies)], rows)


def section(path, data):
    versions = ", ".join(f"{name} {version}" for name, version in data.get("versions", {}).items() if version)
    chips = data["build"]["ptx"]
    parts = [f"## {data['gpu']}, {data['date']}", f"`{' '.join(data['command'])}`; {versions}; PTX for {', '.join(f'{chip} ({version})' for chip, version in chips.items())}. "
             f"All numbers: [{path.name}](../benchmarks/results/{path.name})."]
    plot = path.with_suffix(".svg")
    if plot.exists():
        parts.append(f"![{'time' if data['timed'] else 'bytes'} against error of each contestant](../benchmarks/results/{plot.name})")
    if data["timed"]:
        parts += ["### What was reached", "Speed-up over the best dense kernel of all, and bytes read in a second as part of what a copy moves. Where that part is near 1 "
                  "memory is the limit; where it is small, launches (small cells) or instructions are.", reached(data)]
    launched = data.get("aligned_launch", {})
    if "all" in launched:
        whole = launched["all"]
        parts.append(f"`aligned-launch`, over one step of the captured cache itself ({whole['tokens']} tokens, `balanced`): {whole['bytes_fraction']:.3f} of the bytes, "
                     f"error {whole['error_mean']:.1e}, at most {whole['error_max']:.1e}.")
    for cell in data["cells"]:
        parts += [f"### {cell['cell']}", size_of(cell) + ".", (timed_cell if data["timed"] else counted_cell)(cell)]
    return "\n\n".join(parts + ["### What was not measured", left_out(data)])


HEAD = """# Performance

Decode attention on NVIDIA GPUs, measured with [benchmarks/gpu](../benchmarks/gpu). This page is written by `make update-performance` from
[benchmarks/results](../benchmarks/results); [report.py](../benchmarks/gpu/report.py) says what a file there holds.

    make bench-gpu                  # here: a folder, build/bench-gpu, that needs neither this repository nor a compiler
    python3 bench.py --minutes 9    # in it, on a machine with NVIDIA's driver, and Python with NumPy and PyTorch

`--splits 0,4,16` tries numbers of blocks of threads for each row, `--tune 'chained=0,1 tiles_per_split=2,4,8'` numbers of the programs' [tuning](GPU.md#tuning), `--profile` runs Nsight Compute over a step of each policy, and wheels in a folder `wheels` beside bench.py are used where
nothing of that name is installed.

Caches are made of a captured one, tiles of which are repeated with small changes ([caches.py](../benchmarks/gpu/caches.py) says how, and why not of random numbers). Each result is compared
with attention in float64 before it is timed, and not timed where it is wrong. Times are of CUDA graphs between events, contestants in turns, caches that a second-level cache would hold several in
a row; errors are relative L2 of a head's output. Bytes are those of bits that a policy reads, scale codes included, beside those of 16-bit keys and values. Outputs of other libraries are in the
element type, which is most of their error; those of this project are f32. FlashInfer's fp8 cache is timed although it is as far off as it is: that is what it stores."""

UNTIMED = """**Nothing here was timed.** There was no GPU: the kernels' PTX was executed by [an interpreter](../lib/Emulator), at small sizes, which counts instructions of warps and the
distinct 32-byte sectors that each kernel reads: of scores and statistics, too, so that they are more than the bytes of keys and values. At such sizes these weigh more than on long caches."""


def page(paths):
    found = [(path, data) for path in sorted(paths) if "gpu" in (data := json.loads(path.read_text()))]  # not those of CPUs
    timed = [(path, data) for path, data in found if data["timed"]]
    return "\n\n".join([HEAD] + ([] if timed else [UNTIMED]) + [section(path, data) for path, data in timed or found]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page([pathlib.Path(argument) for argument in sys.argv[1:]]))
