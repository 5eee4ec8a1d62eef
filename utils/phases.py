"""One model after each phase of the compiler, as files that people read and that a test keeps true.

test/Pipelines/decode/model.mlir is grouped-query attention as PyTorch exports it; N-PHASE.mlir beside it is what is left of it
when the pipeline stops at that phase. The portable kernels are shown, so that the text does not depend on the machine.
"""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "test/Pipelines/decode"
MODEL = FOLDER / "model.mlir"
PHASES = ["raise", "store", "fuse", "stage"]


def path_of(phase):
    return FOLDER / f"{PHASES.index(phase) + 1}-{phase}.mlir"


def generate(build, phase):
    """The text of a phase's file; raises CalledProcessError with the compiler's diagnostics."""
    option = f'--aligned-pipeline=isa=portable to={phase}'
    run = subprocess.run([build / "bin/aligned-opt", MODEL, option], text=True, capture_output=True, check=True, timeout=300)
    quoted = option.replace("=", '="', 1) + '"'
    return f"// Written by `make update-phases`: aligned-opt model.mlir {quoted}\n{run.stdout.rstrip()}\n"


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    for phase in PHASES:
        try:
            path_of(phase).write_text(generate(build, phase))
        except subprocess.CalledProcessError as error:
            sys.exit(f"phases: error: phase '{phase}' failed\n{error.stderr}")
        print(f"wrote {path_of(phase).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
