"""Measures decode attention on the GPU at hand: the project's kernels, and what others compute the same with.

    python3 bench.py --minutes 9

needs NVIDIA's driver, Python with NumPy, and PyTorch (without it, there is nobody to compare with). One process supervises another that works: whatever a
contestant does to that, up to a crash or a kernel that never ends, costs the contestant its place and nothing else. Results are written after every
contestant, so that whatever ends the run leaves a file that is valid. report.py draws and writes a page of them, and says what they hold.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np

import arrays
import caches
import contestants
import cuda
import report
import workload
from cuda import Refused

HERE = pathlib.Path(__file__).resolve().parent
START = 240  # seconds that a process may take to start: PyTorch comes from a slow disk, perhaps
SILENCE = 75  # seconds without a new result after which the contestant at work is given up
COMPILE_SECONDS = 60  # after which programs are compiled one by one, as they come
RESERVE = 15  # seconds of the given time that are kept for the end
ROUNDS, LEAST_ROUNDS = 21, 5  # of interleaved measurements
STRETCH = 400.0  # microseconds that one measurement should at least take
CELL_SECONDS = 30  # that a cell's rounds may take
LEAST_READ = 0.13  # part of a dense step's bytes that any policy reads at least, where a second-level cache has to be outgrown
PROFILED = 0.6  # of the time is for measuring where there are profiles, too
LEVEL2 = 50 << 20  # bytes of a second-level cache that nobody tells of
STEPS = 24  # the most caches that a cell rotates among
HOST_BYTES = 1 << 30  # of a cell, where arrays are NumPy's


def reason(error):
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, Refused) else f"{type(error).__name__}: {text}")[:400]


def imported(name):
    """A module, and why there is none."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # whatever a foreign package does when it starts
        return None, f"expected {name} to be importable, got {reason(error)}"


def percentiles(values):
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "runs": len(values)}


class Counts:
    """What the interpreter counts of each kernel: a line of JSON for each launch."""

    def __init__(self):
        self.path, self.seen = os.environ.get("ALIGNED_EMULATOR_COUNTS"), 0

    def take(self):
        """Of the launches since the last call, by kernel; None on a GPU."""
        if not self.path or not os.path.exists(self.path):
            return None
        with open(self.path) as file:
            file.seek(self.seen)
            lines = file.readlines()
            self.seen = file.tell()
        kernels = {}
        for launch in map(json.loads, lines):
            kernel = kernels.setdefault(launch["kernel"].split("_", 1)[1], {"launches": 0, "warp_instructions": 0, "sectors": 0})
            kernel["launches"] += 1
            kernel["warp_instructions"] += launch["warp_instructions"]
            kernel["sectors"] += launch["read"]["distinct"]
        return kernels


class Worker:
    """Goes through the cells that the results do not have yet."""

    def __init__(self, options):
        self.options = options
        self.policies, self.splits, self.tunings = options.policies, options.splits, options.tunings
        self.torch, self.no_torch = imported("torch")
        self.flashinfer, self.no_flashinfer = None, "expected PyTorch with a GPU"
        imported("torch.nn.attention")  # older versions do not import it themselves
        if self.torch is not None and self.torch.cuda.is_available():
            self.torch.cuda.set_stream(self.torch.cuda.Stream())  # the default stream can't be captured
            self.flashinfer, self.no_flashinfer = imported("flashinfer")
        self.library = cuda.Library(HERE)
        self.library.require_device()
        self.programs = cuda.Programs(self.library, HERE / "programs.zip")
        self.capture = caches.Capture(HERE / "capture")
        self.counts = Counts()
        self.timed = not emulated(self.library.aligned_cuda_device_name().decode())
        if self.torch is not None and (self.torch.cuda.is_available() or not self.timed):
            self.arrays = arrays.Torch(self.library, self.torch, "cuda" if self.timed else "cpu")
        else:
            if self.torch is not None:
                self.torch, self.no_torch = None, "expected PyTorch to find the GPU, got torch.cuda.is_available() == False"
            self.arrays = arrays.NumPy(self.library)
        if self.timed and self.torch is not None:
            self.library.aligned_cuda_set_stream(self.torch.cuda.current_stream().cuda_stream)

    def versions(self):
        modules = {"numpy": np, "torch": self.torch, "flashinfer": self.flashinfer}
        found = {name: str(getattr(module, "__version__", "unknown")) for name, module in modules.items() if module is not None}
        return {"python": platform.python_version(), **found, "cuda of torch": self.torch and self.torch.version.cuda}

    # Cells

    def run(self, results):
        results.data["versions"] = self.versions()
        results.write()
        for cell in self.options.cells:
            if cell.name in {done["cell"] for done in results.data["cells"]}:
                continue
            if self.left() < RESERVE:
                results.skip(cell.name, f"the {self.options.minutes:g} minutes were over")
                continue
            record = {"cell": cell.name, "batch": cell.batch, "context": cell.context, "element": cell.shape.element, "kv_heads": cell.shape.kv_heads,
                      "group": cell.shape.group, "head_dim": cell.shape.head_dim, "dense_bytes": cell.dense_bytes, "results": [], "skipped": []}
            results.begin(record)
            try:
                self.cell(cell, record, results)
            except Exception as error:
                record["skipped"].append({"name": "the rest of the cell", "reason": reason(error)})
                results.write()
                self.check_device(results)
            finally:
                self.plane_caches = {}
                self.arrays.release()
            results.end(record)

    def left(self):
        return self.options.until - time.time()

    def check_device(self, results):
        """A fault stays with a process: the supervisor starts another, which leaves out whoever was at work."""
        try:
            self.library.aligned_cuda_synchronize()
            if self.timed and self.torch is not None:
                self.torch.cuda.synchronize()
        except Exception as error:
            if results.data["at_work"]:
                results.data["at_work"]["fault"] = reason(error)
                results.write()
            sys.exit(f"bench: the device does not answer any more: {reason(error)}")

    def steps_of(self, cell):
        """How many caches it takes to leave nothing of one step in the second-level cache for the next."""
        if not self.timed:
            return 1
        cached = getattr(self.torch.cuda.get_device_properties(0), "L2_cache_size", LEVEL2) if self.torch else LEVEL2
        return max(1, min(STEPS, math.ceil(2 * cached / (LEAST_READ * cell.dense_bytes))))

    def require_memory(self, cell, count):
        """Dense caches and planes beside them have to fit, with room for one other contestant's copies."""
        wanted = int(2.2 * count * cell.dense_bytes) + (1 << 30)
        if self.torch is None:
            if count * cell.dense_bytes > HOST_BYTES:
                raise Refused(f"expected PyTorch, to make caches of {count * cell.dense_bytes} bytes, got NumPy alone, which makes up to {HOST_BYTES}")
        elif self.timed:
            free, total = self.torch.cuda.mem_get_info()
            if free < wanted:
                raise Refused(f"expected {wanted / 2**30:.1f} GiB of free device memory, got {free / 2**30:.1f} of {total / 2**30:.1f} GiB")

    def cell(self, cell, record, results):
        count = self.steps_of(cell)
        self.require_memory(cell, count)
        start = time.time()
        steps = [caches.make_step(self.capture, self.arrays, cell, seed) for seed in range(count)]
        for step in steps:
            step.exact = caches.exact_attention(self.arrays, step, cell.scale)
        record["steps"], record["preparation_seconds"] = count, round(time.time() - start, 2)
        print(f"\n{cell.name}: {cell.dense_bytes / 2**20:.0f} MiB of keys and values, {count} of them", flush=True)
        self.plane_caches = {}
        makers, skipped = contestants.makers(self, cell, steps)
        record["skipped"] += [{"name": name, "reason": why} for name, why in skipped.items()]
        racing = {}  # by family: contestant, result, launch, microseconds
        for name, make in makers:
            if why := results.given_up(cell.name, name):
                record["skipped"].append({"name": name, "reason": why})
            elif self.left() < RESERVE:
                record["skipped"].append({"name": name, "reason": f"the {self.options.minutes:g} minutes were over"})
            else:
                results.at_work(cell.name, name)
                try:
                    self.enter(make(), cell, steps, record, racing)
                except Exception as error:
                    record["skipped"].append({"name": name, "reason": reason(error)})
                    print(f"  {name:28} skipped: {reason(error)}", flush=True)
                    self.check_device(results)
                self.arrays.release()
            results.write()
        if self.timed:
            results.at_work(cell.name, "timing in rounds", whole_cell=True)
            self.race(racing)
            record["smi"] = smi()
            self.appending(racing, cell, record, results)
        for result in record["results"]:
            print("  " + report.line(result), flush=True)

    def own(self, policy, cell, steps, splits=0, tuning=()):
        """A contestant of the project; policies that read the same format share caches."""
        program, shared = self.programs.get(policy, cell.shape, tuning), None
        if policy != "dense":
            key = bytes(program.site.key)
            if key not in self.plane_caches:
                self.plane_caches[key] = contestants.PlaneCaches(program, self.arrays, cell, steps, self.timed)
            shared = self.plane_caches[key]
        return contestants.Own(policy, program, self.arrays, cell, steps, shared, splits, tuning)

    def enter(self, contestant, cell, steps, record, racing):
        """Compares, and then, if it is right, takes a first time; of a family the fastest stays."""
        result = {"name": contestant.name, "family": contestant.family}
        if contestant.moved:
            result["bytes_moved"] = contestant.moved
        else:
            self.counts.take()
            errors = np.concatenate([caches.relative_errors(self.arrays, out, step.exact) for out, step in zip(contestant.outputs(), steps)])
            kernels = self.counts.take()
            mean, largest = float(errors.mean()), float(errors.max())
            if not mean <= contestant.limit:  # NaN, too
                raise Refused(f"expected a mean relative error of at most {contestant.limit}, got {mean:.3g}; not timed")
            result |= {"error_mean": mean, "error_max": largest, "bytes_read": int(contestant.bytes_read(cell))}
            if isinstance(contestant, contestants.Own):
                result["ptx"] = contestant.chip
            if contestant.read_bits:
                result["key_bits"], result["value_bits"] = (round(bits, 3) for bits in contestant.read_bits)
            if kernels:
                result["kernels"] = kernels
        if self.timed:
            launch = contestant.graph()
            for _ in range(2):
                launch()
            result["steps_in_graph"] = 1 if contestant.moved else len(steps)
            first = min(self.measure(launch, 1) for _ in range(3)) / result["steps_in_graph"]
            other = racing.get(contestant.family)
            if other and other[1]["first_microseconds"] <= first:
                other[1].setdefault("slower", {})[contestant.name] = round(first, 2)
                return
            if other:
                record["results"].remove(other[1])
                result["slower"] = other[1].get("slower", {}) | {other[1]["name"]: other[1]["first_microseconds"]}
            result["first_microseconds"] = round(first, 2)
            racing[contestant.family] = contestant, result, launch
        elif isinstance(contestant, contestants.Own):
            contestant.graph()()
            self.library.aligned_cuda_synchronize()
        record["results"].append(result)

    def measure(self, launch, times):
        """Microseconds of one launch."""
        before, after = self.library.event(), self.library.event()
        self.library.aligned_cuda_event_record(before.value)
        for _ in range(times):
            launch()
        self.library.aligned_cuda_event_record(after.value)
        return self.library.aligned_cuda_event_microseconds(before.value, after.value) / times

    def race(self, racing):
        """Rounds in which each is measured once, so that all see the same machine; each round starts with another. The first warms up."""
        entries, times, start = list(racing.values()), {family: [] for family in racing}, time.time()
        for round_ in range(ROUNDS + 1):
            if round_ > LEAST_ROUNDS and (time.time() - start > CELL_SECONDS or self.left() < RESERVE):
                break
            for place in range(len(entries)):
                contestant, result, launch = entries[(round_ + place) % len(entries)]
                each = result["steps_in_graph"]
                repeats = max(1, math.ceil(STRETCH / max(1.0, result["first_microseconds"] * each)))
                times[contestant.family].append(self.measure(launch, repeats) / each)
        for contestant, result, _ in entries:
            result["microseconds"] = percentiles(times[contestant.family][1:])

    def appending(self, racing, cell, record, results):
        """What it takes to append: the whole context, and a token with each step."""
        if "aligned balanced" not in racing:
            return
        contestant, result, _ = racing["aligned balanced"]
        record["append"] = {"bytes_per_second": contestant.caches.throughput()}
        results.at_work(cell.name, "appending", whole_cell=True)
        try:
            launch = contestant.append_graph()
            times = [self.measure(launch, 1) / len(contestant.steps) for _ in range(contestants.PlaneCaches.SPARE // 2)]
            record["append"]["step_microseconds"] = percentiles(times[2:])
        except Exception as error:
            record["skipped"].append({"name": "appending a token with each step", "reason": reason(error)})
            self.check_device(results)


def emulated(device):
    return device.startswith("PTX emulator")


class Results:
    """The file, written again after every change; another process may go on with it."""

    def __init__(self, path, data=None):
        self.path = pathlib.Path(path)
        self.data = data if data is not None else json.loads(self.path.read_text())

    def write(self):
        scratch = self.path.with_suffix(".partial")
        scratch.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        os.replace(scratch, self.path)

    def at_work(self, cell, name, whole_cell=False):
        self.data["at_work"] = {"cell": cell, "name": name, "whole_cell": whole_cell}
        self.write()

    def given_up(self, cell, name):
        """Why a contestant is not tried: it ended a process in this cell, or in two others."""
        faults = self.data["given_up"].get(name, {})
        return faults.get(cell) or (f"ended a process in {' and '.join(faults)}" if len(faults) > 1 else None)

    def skip(self, what, why):
        self.data["skipped"].append({"what": what, "reason": why})
        self.write()

    def begin(self, record):
        self.data["unfinished"] = record
        self.write()

    def end(self, record):
        self.data["cells"].append(record)
        self.data["unfinished"] = self.data["at_work"] = None
        self.write()


# The supervisor


def described(environment):
    """Device and library, asked of another process so that this one never holds the device."""
    said = subprocess.run([sys.executable, __file__, "--describe"], env=environment, capture_output=True, text=True)
    if said.returncode:
        sys.exit(said.stderr.strip() or f"bench: error: expected the device to be described, got exit status {said.returncode}")
    return json.loads(said.stdout)


def describe():
    library = cuda.Library(HERE)
    library.require_device()
    print(json.dumps({"device": library.aligned_cuda_device_name().decode(), "capability": library.aligned_cuda_compute_capability()}))


def smi():
    """What the driver says of device, driver and clocks; None without its tool."""
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,power.limit"
    try:
        said = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip().splitlines() if said.returncode == 0 else None


def launched(capability, timed, environment):
    """What aligned-launch, which shares no code with the rest of this, says of a step over the captured cache itself."""
    fitting = [chip for chip in workload.CHIPS if int(chip.removeprefix("sm_")) <= capability and (HERE / "launch" / chip).is_dir()]
    if not fitting:
        return {"reason": f"no PTX for this chip, sm_{capability}"}
    command = ["bin/aligned-launch", f"launch/{fitting[0]}", "--decode", "capture", "--layer", "0", "--steps", "1", "--json", *(["--graph"] if timed else ["--repeat", "0"])]
    try:
        said = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=60)
        return json.loads(said.stdout) if said.returncode == 0 else {"reason": reason(Refused(said.stderr))}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"reason": reason(error)}


def unpacked_wheels():
    """A folder with what wheels/*.whl hold, behind what is installed; None without any."""
    wheels = sorted((HERE / "wheels").glob("*.whl"))
    folder = HERE / "wheels/unpacked"
    if wheels and not folder.exists():
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    return str(folder) if wheels else None


def compile_all(options, environment):
    """The driver compiles PTX when it is loaded, and keeps what it compiled: several processes do that at the same time, ahead of the one that measures."""
    jobs = max(1, min(8, os.cpu_count() or 1))
    shapes = list(dict.fromkeys(cell.shape for cell in options.cells))
    names = [f"{policy}-{shape.name}" for shape in shapes for policy in options.policies]
    start = time.time()
    children = [subprocess.Popen([sys.executable, __file__, "--compile", *names[job::jobs]], env=environment) for job in range(min(jobs, len(names)))]
    for child in children:
        try:
            child.wait(max(1, start + COMPILE_SECONDS - time.time()))
        except subprocess.TimeoutExpired:
            child.kill()
    return round(time.time() - start, 1)


def compile_some(names):
    library = cuda.Library(HERE)
    library.require_device()
    programs = cuda.Programs(library, HERE / "programs.zip")
    shapes = {shape.name: shape for shape in (*workload.SHAPES, *(cell.shape for cell in workload.SMALL_CELLS))}
    for name in names:
        policy, shape = name.split("-", 1)
        try:
            programs.get(policy, shapes[shape])
        except Refused:
            pass  # whoever measures says so


def supervise(options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), unpacked_wheels()]))}
    scratch = tempfile.TemporaryDirectory()
    environment["ALIGNED_EMULATOR_COUNTS"] = os.path.join(scratch.name, "counts.jsonl")  # the interpreter's; a driver writes none
    environment.setdefault("FLASHINFER_DISABLE_JIT", "1")  # a compilation would outlast the time that there is
    environment.setdefault("CUDA_CACHE_PATH", str(HERE / "compiled"))
    environment.setdefault("CUDA_CACHE_MAXSIZE", str(1 << 30))
    device = described(environment)
    stem = "".join(c if c.isalnum() else "-" for c in device["device"].lower().removeprefix("nvidia ")) + time.strftime("-%Y-%m-%d")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{'interpreter' if emulated(device['device']) else stem}.json"
    start = time.time()
    options.until = start + 60 * options.minutes * (PROFILED if options.profile else 1)
    results = Results(path, {
        "schema": 1, "gpu": device["device"], "capability": device["capability"], "timed": not emulated(device["device"]), "date": time.strftime("%Y-%m-%d"),
        "command": ["bench.py", *sys.argv[1:]], "minutes": options.minutes, "smi": {"before": smi()},
        "build": json.loads((HERE / "build.json").read_text()), "cells": [], "skipped": [], "given_up": {}, "unfinished": None, "at_work": None, "finished": False})
    results.write()
    print(f"{device['device']}, compute capability {device['capability'] / 10}; results in {path}", flush=True)
    if results.data["timed"]:
        results.data["compile_seconds"] = compile_all(options, environment)
        results.write()
    results.data["aligned_launch"] = launched(device["capability"], results.data["timed"], environment)
    results.write()
    while time.time() < options.until - RESERVE:
        status = watch(options, path, environment)
        results = Results(path)
        if status == 0:
            break
        blame(results, status)
        results.write()
    results.data["finished"] = True
    results.data["smi"]["after"] = smi()
    results.write()
    if options.profile:
        profile(options, results, environment, start + 60 * options.minutes)
    report.write_plot(results.data, path.with_suffix(".svg"))
    measured = sum(bool(cell["results"]) for cell in results.data["cells"])
    print(f"\n{path}: {measured} of {len(options.cells)} cells measured")
    if not measured:
        sys.exit("bench: error: expected something that can be measured, got reasons why not")


def watch(options, path, environment):
    """Runs a worker to its end, or ends it where nothing comes of it any more. Its exit status, or a text that says why it was ended."""
    command = [sys.executable, __file__, "--worker", str(path), "--until", str(options.until), *options.passed]
    began, written = time.time(), path.stat().st_mtime_ns
    worker = subprocess.Popen(command, env=environment)
    while True:
        try:
            return worker.wait(1)
        except subprocess.TimeoutExpired:
            status = path.stat()
            patience, since = (START, began) if status.st_mtime_ns == written else (SILENCE, status.st_mtime)
            over, silent = time.time() > options.until + RESERVE, time.time() > since + patience
            if over or silent:
                worker.kill()
                worker.wait()
                return f"no result in {patience} s" if silent else "the time was over"


def blame(results, status):
    """A contestant that was at work when a worker ended is not tried there again, its cell is; where it was nobody in particular, the cell stays as it is."""
    at_work, record = results.data["at_work"], results.data["unfinished"]
    why = (at_work or {}).get("fault") or (status if isinstance(status, str) else f"the process ended with status {status}")
    if record is None:
        results.skip("all cells", why)
        sys.exit(f"bench: error: expected a process that measures, got: {why}")
    if at_work is None or at_work["whole_cell"]:
        record["skipped"].append({"name": at_work["name"] if at_work else "the cell", "reason": why})
        results.end(record)
    else:
        results.data["given_up"].setdefault(at_work["name"], {})[at_work["cell"]] = why
    print(f"bench: {at_work['name'] if at_work else record['cell']}: {why}", flush=True)


# Profiles

NCU_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "SchedulerStats", "WarpStateStats")
NCU_METRICS = ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "dram__bytes_read.sum", "smsp__issue_active.avg.pct_of_peak_sustained_active",
               "l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio", "lts__t_sectors_op_read.sum", "smsp__inst_executed.sum")


def profile(options, results, environment, until):
    """Nsight Compute over one step of each policy in the first cell; its text goes beside the results."""
    if not shutil.which("ncu"):
        results.skip("profile", "expected ncu (Nsight Compute) on PATH, found none")
        return
    for policy in options.policies:
        text = results.path.with_name(f"{results.path.stem}-{policy}.txt")
        command = ["ncu", "--kernel-name", "regex:^decode", *(part for section in NCU_SECTIONS for part in ("--section", section)), "--metrics",
                   ",".join(NCU_METRICS), sys.executable, __file__, "--once", policy, *options.passed]
        try:
            said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=max(5, until - time.time()))
            text.write_text(f"{' '.join(command)}\n\n{said.stdout}\n{said.stderr}")
            if said.returncode:
                results.skip(f"profile of {policy}", f"expected ncu to succeed, got exit status {said.returncode}; see {text.name}")
        except (OSError, subprocess.SubprocessError) as error:
            results.skip(f"profile of {policy}", reason(error))


def once(worker, policy):
    """One step of the first cell."""
    cell = worker.options.cells[0]
    worker.require_memory(cell, 1)
    step, worker.plane_caches = caches.make_step(worker.capture, worker.arrays, cell, 0), {}
    contestant = worker.own(policy, cell, [step])
    contestant.program.decode(contestant.calls[0])
    worker.library.aligned_cuda_synchronize()


# The command line


def chosen(parser, known, text, what):
    """Those of `known` that a list of names, or of parts of names, picks."""
    wanted = text.split(",") if text else [""]
    for name in wanted:
        if not any(name in each for each in known):
            parser.error(f"expected {what} of {', '.join(known)}, got {name}")
    return [each for each in known if any(name in each for name in wanted)]


def tunings(parser, text):
    """Every choice of a value for each name: NAME=VALUE,... NAME=VALUE,... to tuples of names and values."""
    choices = []
    for part in text.split():
        name, _, values = part.partition("=")
        if name not in cuda.TUNING:
            parser.error(f"expected tuning of {', '.join(cuda.TUNING)}, got {name}")
        try:
            choices.append([(name, int(value)) for value in values.split(",")])
        except ValueError:
            parser.error(f"expected numbers of {name}, such as {name}=1,2, got {part}")
    return list(itertools.product(*choices))


def parse():
    parser = argparse.ArgumentParser(description="Measures decode attention on the GPU at hand.")
    parser.add_argument("--minutes", type=float, default=9, help="stop after so many (default 9)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"), help="folder of the results (default results)")
    parser.add_argument("--cells", default="", help="only cells whose names hold one of these, such as b8-32k,f16-8x4")
    parser.add_argument("--policies", default="", help="only these programs")
    parser.add_argument("--splits", default="0", help="numbers of blocks of threads for each row, such as 0,4,16; 0: chosen by the runtime")
    parser.add_argument("--tune", default="", help="numbers of the sidecar's tuning that are tried with each other, such as 'chained=0,1 tiles_per_split=2,4,8'")
    parser.add_argument("--profile", action="store_true", help="run Nsight Compute over the first cell when all is measured")
    parser.add_argument("--small", action="store_true", help="sizes that the project's interpreter of PTX can do")
    for hidden in ("--worker", "--once"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compile", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.passed = [f"--{name}={getattr(options, name)}" for name in ("minutes", "cells", "policies", "splits", "tune")] + ["--small"] * options.small
    cells = {cell.name: cell for cell in (workload.SMALL_CELLS if options.small else workload.CELLS)}
    options.cells = [cells[name] for name in chosen(parser, list(cells), options.cells, "cells")]
    if options.policies and not set(options.policies.split(",")) <= set(workload.PROGRAMS):
        parser.error(f"expected policies of {', '.join(workload.PROGRAMS)}, got {options.policies}")
    options.policies = [name for name in workload.PROGRAMS if not options.policies or name in options.policies.split(",")]
    try:
        options.splits = [int(part) for part in options.splits.split(",")]
    except ValueError:
        parser.error(f"expected numbers of splits, got {options.splits}")
    options.tunings = tunings(parser, options.tune)
    if not options.minutes > 0:
        parser.error(f"expected a positive number of minutes, got {options.minutes}")
    return options


def main():
    options = parse()
    try:
        if options.describe:
            describe()
        elif options.compile is not None:
            compile_some(options.compile)
        elif options.once:
            once(Worker(options), options.once)
        elif options.worker:
            Worker(options).run(Results(options.worker))
        else:
            supervise(options)
    except Refused as error:
        sys.exit(f"bench: error: {error}")


if __name__ == "__main__":
    main()
