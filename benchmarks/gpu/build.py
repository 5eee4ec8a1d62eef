"""Puts all that the measurement needs on a machine with a GPU into one folder: scripts, runtime, programs and a captured cache.

    python3 build.py BUILD -o BUILD/bench-gpu

Programs are compiled for every shape of workload.py, policy and chip. What is carried must load on systems older than this one, which is checked: versions
of glibc's symbols, and that nothing else is needed.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import workload

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPTS = ("arrays.py", "bench.py", "caches.py", "contestants.py", "cuda.py", "report.py", "workload.py")
HEADERS = ("Runtime/Cache.h", "Runtime/Kernel.h", "Runtime/Cuda.h", "Storage/Format.h", "Reference/Stages.h")
GLIBC = (2, 35)  # the newest that may be needed: that of Ubuntu 22.04
NEEDED = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "libdl.so.2", "libpthread.so.0", "libAlignedCuda.so"}
MOST_BYTES = 60 << 20
DATE = (1980, 1, 1, 0, 0, 0)  # of files in the archive: the same programs give the same archive


def refuse(message):
    sys.exit(f"build: error: {message}")


def check_portable(path):
    """That a shared library or program loads where glibc is GLIBC or later."""
    said = subprocess.run(["objdump", "-p", path], check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}).stdout
    others = sorted(set(re.findall(r"NEEDED +(\S+)", said)) - NEEDED)
    if others:
        refuse(f"{path.name}: expected to need no library but glibc's, found {', '.join(others)}")
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"\bGLIBC_([\d.]+)", said)}
    if max(versions, default=GLIBC) > GLIBC:
        refuse(f"{path.name}: expected symbols of glibc {'.'.join(map(str, GLIBC))} or older, found some of {'.'.join(map(str, max(versions)))}")
    return ".".join(map(str, max(versions)))


def compile_program(build, source, policy, chip, folder):
    """Of a model, or of what a capture holds. Why not, where that failed."""
    options = ["--policy", "exact", "--format", "dense"] if policy == "dense" else ["--policy", policy]
    command = [build / "bin/aligned-run", *source, "--target=cuda", f"--chip={chip}", "--emit=ptx", *options, "-o", folder]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        return (said.stderr.strip().splitlines() or [f"exit status {said.returncode}"])[0]
    return None


def compile_programs(build, archive, shapes, policies, chips, jobs):
    """Writes the archive; gives the version of PTX for each chip and what was refused."""
    refused, ptx = {}, {}
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        scratch, waiting = pathlib.Path(scratch), {}
        for shape in shapes:
            model = scratch / f"{shape.name}.mlir"
            model.write_text(shape.module())
            for policy in policies:
                for chip in chips:
                    folder = scratch / chip / f"{policy}-{shape.name}"
                    waiting[policy, shape.name, chip] = folder, pool.submit(compile_program, build, [model], policy, chip, folder)
        for number, ((policy, shape, chip), (folder, done)) in enumerate(waiting.items(), 1):
            if why := done.result():
                if policy not in workload.REFUSABLE:
                    refuse(f"{policy}-{shape} for {chip}: {why}")
                refused[f"{policy}-{shape}"] = f"expected a program, got: {why}"
                continue
            for name in ("kernels.ptx", "kernels.json"):
                archive.writestr(zipfile.ZipInfo(f"{chip}/{folder.name}/{name}", DATE), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED, 9)
            ptx[chip] = json.loads((folder / "kernels.json").read_text())["ptx"]
            print(f"\r{number} of {len(waiting)} programs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    archive.writestr(zipfile.ZipInfo("programs.json", DATE), json.dumps({"refused": refused}, indent=1))
    return {chip: f"{version // 10}.{version % 10}" for chip, version in sorted(ptx.items())}, refused


def captured():
    folder = ROOT.parent / "shared/data/smollm2-gpl3"
    return folder if folder.is_dir() else ROOT / "test/data/smollm2-slice"


def revision():
    said = subprocess.run(["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() if said.returncode == 0 else "unknown"


def fill(options, folder):
    for name in ("lib", "bin", "include", "capture"):
        (folder / name).mkdir()
    for name in SCRIPTS:
        shutil.copy(HERE / name, folder)
    for name in HEADERS:
        shutil.copy(ROOT / "include/aligned" / name, folder / "include")
    for name in ("q.npy", "k.npy", "v.npy", "meta.json"):
        shutil.copyfile(options.capture / name, folder / "capture" / name)
    glibc = collections.OrderedDict()
    for source, place in (("lib/libAlignedCuda.so", "lib"), ("bin/aligned-launch", "bin")):
        carried = options.build / "carried" / source
        if not carried.exists():
            refuse(f"expected {carried}, found no such file; run make build")
        glibc[carried.name] = check_portable(carried)
        shutil.copy(carried, folder / place)
        subprocess.run(["strip", "--strip-unneeded", folder / place / carried.name], check=True)
    with zipfile.ZipFile(folder / "programs.zip", "w") as archive:
        ptx, refused = compile_programs(options.build, archive, options.shapes, options.policies, options.chips, options.jobs)
    for chip in options.chips:
        if why := compile_program(options.build, ["--decode", options.capture], "balanced", chip, folder / "launch" / chip):
            refuse(f"the captured cache for {chip}: {why}")
    said = {"revision": revision(), "ptx": ptx, "refused": refused, "glibc": glibc, "capture": json.loads((options.capture / "meta.json").read_text())["text"]}
    (folder / "build.json").write_text(json.dumps(said, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        refuse(f"expected a folder of at most {MOST_BYTES >> 20} MiB, got {size / 2**20:.1f} MiB")
    return size


def parse():
    parser = argparse.ArgumentParser(description="Puts all that the measurement needs on a machine with a GPU into one folder.")
    parser.add_argument("build", type=pathlib.Path, help="where the project is built")
    parser.add_argument("-o", dest="output", type=pathlib.Path, required=True, help="the folder; what was in it goes when all is there")
    parser.add_argument("--capture", type=pathlib.Path, default=captured(), help="q.npy, k.npy, v.npy and meta.json")
    parser.add_argument("--shapes", default=",".join(shape.name for shape in workload.SHAPES), help="such as f16-8x4-128")
    parser.add_argument("--policies", default=",".join(workload.PROGRAMS))
    parser.add_argument("--chips", default=",".join(workload.CHIPS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="programs that are compiled at the same time")
    options = parser.parse_args()
    shapes = {shape.name: shape for shape in workload.SHAPES}
    for name, known in (("shapes", shapes), ("policies", workload.PROGRAMS), ("chips", workload.CHIPS)):
        values = getattr(options, name).split(",")
        for value in values:
            if value not in known:
                parser.error(f"expected {name} of {', '.join(known)}, got {value}")
        setattr(options, name, values)
    options.shapes = [shapes[name] for name in options.shapes]
    options.build = options.build.resolve()
    return options


def main():
    options = parse()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=options.output.parent, prefix=f".{options.output.name}-"))
    try:
        folder.chmod(0o755)
        size = fill(options, folder)
        shutil.rmtree(options.output, ignore_errors=True)
        folder.rename(options.output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.output}: {size / 2**20:.1f} MiB; there, run python3 bench.py --minutes 9")


if __name__ == "__main__":
    main()
