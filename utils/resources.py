"""What the kernels for GPUs take of a multiprocessor: registers and shared memory of each, for some shapes and chips, as ptxas says it.

`resources.py BUILD` prints the table that test/Conversion/AlignedToNVVM/Inputs/resources.txt keeps; `make update-resources` writes it there. PTX that is not complete is an error,
spilled registers are shown.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "test/Conversion/AlignedToNVVM/Inputs/resources.txt"
CHIPS = ("sm_80", "sm_90", "sm_100")

# Options of the pipeline, element type, query heads for each kv head, head_dim of K and of V.
SHAPES = (
    ("policy=balanced", "f16", 1, 64, 64),
    ("policy=balanced", "bf16", 8, 96, 96),
    ("policy=balanced", "f16", 4, 128, 128),
    ("policy=exact", "bf16", 8, 128, 128),
    ("policy=balanced", "f16", 16, 192, 192),
    ("policy=balanced", "bf16", 8, 256, 256),
    ("policy=balanced certify=true", "f16", 4, 128, 128),
    ("policy=alignedkv", "f16", 4, 128, 128),
    ("policy=exact format=dense", "bf16", 8, 128, 128),
)


def ptxas():
    """The assembler of the virtual environment; what it says depends on its version."""
    found = list(pathlib.Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cuda_nvcc/bin/ptxas"))
    if not found:
        sys.exit(f"resources: error: expected ptxas of the package nvidia-cuda-nvcc-cu12 in {sys.prefix}, found none; run make setup")
    return found[0]


def module(element, group, key_dim, value_dim):
    def tensor(heads, tokens, dim):
        return f"tensor<1x{heads}x{tokens}x{dim}x{element}>"

    q, k, v, out = tensor(2 * group, 1, key_dim), tensor(2, "?", key_dim), tensor(2, "?", value_dim), tensor(2 * group, 1, value_dim)
    return f"""func.func @decode(%q: {q}, %k: {k}, %v: {v}) -> {out} {{
  %scale = arith.constant 0.125 : f32
  %out = aligned.attention %q, %k, %v scale %scale : {q}, {k}, {v} -> {out}
  return %out : {out}
}}
"""


def kernels(build, scratch, chip, shape):
    """Name of each kernel, and a cell of the table."""
    options, *dims = shape
    (scratch / "model.mlir").write_text(module(*dims))
    subprocess.run([build / "bin/aligned-opt", scratch / "model.mlir", f"--aligned-pipeline=target=nvptx chip={chip} {options}", "-o", scratch / "ptx.mlir"], check=True)
    text = (scratch / "ptx.mlir").read_text()
    ptx = re.search(r'assembly = "(.*?)(?<!\\)"', text, re.DOTALL).group(1)
    ptx = re.sub(r"\\([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), ptx).rstrip("\0")
    if "extern .func" in ptx:
        sys.exit(f"resources: error: expected PTX that is complete, found a function elsewhere: {re.search('.*extern .func.*', ptx)[0]}")
    (scratch / "kernels.ptx").write_text(ptx)
    said = subprocess.run([ptxas(), "-v", f"-arch={chip}", scratch / "kernels.ptx", "-o", scratch / "kernels.cubin"], check=True, text=True, stderr=subprocess.PIPE).stderr
    for name, spilled, registers, used in re.findall(r"entry function '(\w+)' for.*?(\d+) bytes spill stores.*?Used (\d+) registers(.*?)\n", said, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", used)
        yield name, registers + (f" / {shared[1]}" if shared else "") + (f", {spilled} spilled" if int(spilled) else "")


def table(build):
    lines = ["Registers of a thread, and bytes of shared memory of a block of threads where it is not 0, by ptxas 12.9; what is spilled, in bytes.", ""]
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            options, element, group, key_dim, value_dim = shape
            lines.append(f"{options}, {element}, {group} query heads for each kv head, head_dim {key_dim} and {value_dim}")
            found = {chip: dict(kernels(build, pathlib.Path(folder), chip, shape)) for chip in CHIPS}
            lines.append(f"  {'kernel':20}" + "".join(f"{chip:>26}" for chip in CHIPS))
            for name in sorted(found[CHIPS[0]]):
                lines.append(f"  {name:20}" + "".join(f"{found[chip][name]:>26}" for chip in CHIPS))
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    text = table(pathlib.Path(sys.argv[1]).resolve())
    if "--write" in sys.argv[2:]:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(text)
    else:
        sys.stdout.write(text)
