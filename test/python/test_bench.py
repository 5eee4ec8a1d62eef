"""The measurement of GPU kernels: the folder that is carried, what runs in it where there is the interpreter in the place of a GPU, and what it refuses."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import xml.etree.ElementTree
import zipfile

import alignedkv
import numpy as np
import pytest
from conftest import exact_attention

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "benchmarks/gpu"
BUILD = pathlib.Path(alignedkv.__file__).resolve().parents[2]
CELL = "b2-467-f16-8x4-64"
TOLERANCES = {"exact": 2e-4, "tight": 2**-10, "balanced": 2**-7, "fast": 2**-5, "alignedkv": 2e-2}  # four times P2's: outputs are shorter than usual rows of V

sys.path.append(str(SOURCES))
import arrays  # noqa: E402
import bench  # noqa: E402
import build  # noqa: E402
import caches  # noqa: E402
import contestants  # noqa: E402
import cuda  # noqa: E402
import report  # noqa: E402
import workload  # noqa: E402

if not (BUILD / "bin/aligned-run").exists():
    pytest.skip("expected the package in a build folder", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "folder"
    command = [sys.executable, SOURCES / "build.py", BUILD, "-o", path, "--shapes", "f16-8x4-64", "--chips", "sm_80,sm_90", "--capture",
               ROOT / "test/data/smollm2-slice"]
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    return path


def run(folder, out, *options, **environment):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNED_")}
    variables |= {"ALIGNED_LIBCUDA": str(BUILD / "lib/libaligned_cuda_emulator.so"), **environment}
    command = [sys.executable, folder / "bench.py", "--small", "--cells", CELL, "--out", out, *options]
    said = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, cwd=out)
    written = out / "interpreter.json"
    return said, json.loads(written.read_text(), parse_constant=pytest.fail) if written.exists() else None


# The folder


def test_folder(folder):
    names = zipfile.ZipFile(folder / "programs.zip").namelist()
    for chip in ("sm_80", "sm_90"):
        for policy in workload.POLICIES:
            assert f"{chip}/{policy}-f16-8x4-64/kernels.ptx" in names
        assert (folder / f"launch/{chip}/kernels.json").exists()
    said = json.loads((folder / "build.json").read_text())
    assert said["ptx"] == {"sm_80": "7.0", "sm_90": "7.8"}
    assert sorted(said["glibc"]) == ["aligned-launch", "libAlignedCuda.so"]


def test_what_is_carried_needs_no_later_system(monkeypatch):
    carried = BUILD / "carried/lib/libAlignedCuda.so"
    build.check_portable(carried)
    with pytest.raises(SystemExit, match=r"libAlignedJIT.so: expected to need no library but glibc's, found .*libstdc\+\+"):
        build.check_portable(BUILD / "lib/libAlignedJIT.so")
    monkeypatch.setattr(build, "GLIBC", (2, 17))
    with pytest.raises(SystemExit, match=r"expected symbols of glibc 2.17 or older, found some of 2\.\d+"):
        build.check_portable(carried)


def test_folder_refuses(tmp_path, monkeypatch):
    options = ["build.py", str(BUILD), "-o", str(tmp_path / "folder"), "--chips", "sm_90", "--policies", "exact", "--capture",
               str(ROOT / "test/data/smollm2-slice"), "--shapes"]
    monkeypatch.setattr(sys, "argv", [*options, "f16-8x4-65"])
    with pytest.raises(SystemExit):
        build.main()
    monkeypatch.setattr(sys, "argv", [*options, "f16-8x4-64"])
    monkeypatch.setattr(build, "MOST_BYTES", 1 << 20)
    with pytest.raises(SystemExit, match=r"expected a folder of at most 1 MiB, got \d"):
        build.main()
    assert not list(tmp_path.iterdir())


# The measurement, on the interpreter


def test_interpreter(folder, tmp_path):
    said, data = run(folder, tmp_path)
    assert said.returncode == 0, said.stderr
    assert data["finished"] and not data["timed"] and data["aligned_launch"]["ok"]
    (cell,) = data["cells"]
    results = {result["name"].removeprefix("aligned "): result for result in cell["results"]}
    assert set(TOLERANCES) <= set(results)
    for policy, tolerance in TOLERANCES.items():
        result = results[policy]
        assert 0 < result["error_mean"] < tolerance
        assert result["ptx"] == "sm_90"
        assert result["bytes_read"] == pytest.approx((result["key_bits"] + result["value_bits"]) / 32 * cell["dense_bytes"], rel=1e-3)
        assert all(kernel["warp_instructions"] > 0 for kernel in result["kernels"].values())
    assert results["exact"]["key_bits"] == pytest.approx(16 + 8 / 64, abs=1e-3), "all bits, and a code for each token"
    assert results["fast"]["bytes_read"] < results["balanced"]["bytes_read"] < results["tight"]["bytes_read"] < results["exact"]["bytes_read"]
    assert "microseconds" not in json.dumps(data), "nothing is timed where there is no GPU"
    if not importlib.util.find_spec("torch"):
        assert "torch, flashinfer, copy" in {entry["name"] for entry in cell["skipped"]}
    xml.etree.ElementTree.parse(tmp_path / "interpreter.svg")
    assert f"### {CELL}" in report.page([tmp_path / "interpreter.json"])


def test_tuning(folder, tmp_path):
    """Launches are changed without compiling: other numbers of splits, and chained launches, of kernels for sm_90 alone."""
    said, data = run(folder, tmp_path, "--policies", "exact", "--tune", "chained=0,1 blocks_per_multiprocessor=2,16")
    assert said.returncode == 0, said.stderr
    results = {result["name"]: result for result in data["cells"][0]["results"]}
    assert list(results) == [f"aligned exact chained={chained} blocks_per_multiprocessor={count}" for chained in (0, 1) for count in (2, 16)]
    assert all(result["error_mean"] < TOLERANCES["exact"] for result in results.values())
    instructions = [result["kernels"]["scan"]["warp_instructions"] for result in results.values()]
    assert instructions[2:] == pytest.approx(instructions[:2], rel=1e-2)
    assert instructions[1] > 1.1 * instructions[0], "each split begins by reading the query"
    said, data = run(folder, tmp_path, "--policies", "exact", "--tune", "chained=0,1", ALIGNED_EMULATOR_CC="80")
    assert [result["name"] for result in data["cells"][0]["results"]] == ["aligned exact chained=0"]
    reasons = {entry["name"]: entry["reason"] for entry in data["cells"][0]["skipped"]}
    assert reasons["aligned exact chained=1"].startswith("kernels.json: expected 0 at tuning.chained for PTX of sm_80")


@pytest.mark.parametrize("environment, expected", [
    ({"ALIGNED_EMULATOR_CC": "75"}, "no PTX for this chip: expected some for sm_75 or older, found sm_80, sm_90"),
    ({"ALIGNED_EMULATOR_MEMORY": "1000000"}, "more bytes of device memory, got: out of memory"),
], ids=["chip", "memory"])
def test_refusals(folder, tmp_path, environment, expected):
    said, data = run(folder, tmp_path, **environment)
    assert said.returncode == 1
    assert "expected something that can be measured" in said.stderr
    (cell,) = data["cells"]
    assert cell["results"] == []
    reasons = {entry["name"]: entry["reason"] for entry in cell["skipped"]}
    assert all(expected in reasons[f"aligned {policy}"] for policy in workload.POLICIES)


def test_older_driver(folder, tmp_path):
    """It gets the PTX of an older chip, which is of an older version; where there is none, nothing."""
    options = {"ALIGNED_EMULATOR_DRIVER": "11040"}
    said, data = run(folder, tmp_path, "--policies", "exact", **options)
    assert said.returncode == 0, said.stderr
    assert data["cells"][0]["results"][0]["ptx"] == "sm_80"
    newer = tmp_path / "folder"
    shutil.copytree(folder, newer)
    with zipfile.ZipFile(folder / "programs.zip") as whole, zipfile.ZipFile(newer / "programs.zip", "w") as part:
        for name in whole.namelist():
            if not name.startswith("sm_80"):
                part.writestr(name, whole.read(name))
    said, data = run(newer, tmp_path, "--policies", "exact", **options)
    assert said.returncode == 1
    reasons = {entry["name"]: entry["reason"] for entry in data["cells"][0]["skipped"]}
    assert reasons["aligned exact"].startswith("expected PTX that the driver (CUDA 11.4) compiles, got: the provided PTX was compiled with an unsupported toolchain")


def test_profile(folder, tmp_path):
    said, data = run(folder, tmp_path, "--policies", "exact", "--profile")
    assert said.returncode == 0, said.stderr
    assert data["skipped"] == [{"what": "profile", "reason": "expected ncu (Nsight Compute) on PATH, found none"}]
    profiler = tmp_path / "ncu"
    profiler.write_text('#!/bin/sh\nwhile case $1 in --*) true;; *) false;; esac; do shift 2; done\necho profiled\nexec "$@"\n')
    profiler.chmod(0o755)
    said, data = run(folder, tmp_path, "--policies", "exact", "--profile", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert said.returncode == 0, said.stderr
    assert data["skipped"] == []
    assert "profiled" in (tmp_path / "interpreter-exact.txt").read_text()


def test_no_driver(folder, tmp_path):
    said, data = run(folder, tmp_path, ALIGNED_LIBCUDA="/nonexistent")
    assert said.returncode == 1 and data is None
    assert said.stderr.startswith("bench: error: no CUDA driver found: /nonexistent")


def test_command_line(folder, tmp_path):
    for options, expected in [(["--policies", "sloppy"], "expected policies of balanced"), (["--minutes", "0"], "expected a positive number of minutes"),
                              (["--cells", "b3"], "expected cells of"), (["--splits", "many"], "expected numbers of splits"),
                              (["--tune", "warps=4"], "expected tuning of blocks_per_multiprocessor, tiles_per_split, most_splits, chained, got warps"),
                              (["--tune", "chained=on"], "expected numbers of chained, such as chained=1,2, got chained=on")]:
        said, data = run(folder, tmp_path, *options)
        assert said.returncode == 2 and expected in said.stderr and data is None


def test_a_fault_costs_its_contestant_only_the_place(folder, tmp_path):
    """Without one barrier the first program that a process loads races, and the device of that process is lost."""
    said, data = run(folder, tmp_path, "--policies", "balanced,exact", ALIGNED_EMULATOR_DELETE="2")
    assert said.returncode == 1
    assert data["given_up"] == {f"aligned {policy}": {CELL: "expected the device to finish, got: unspecified launch failure"} for policy in ("balanced", "exact")}
    assert data["finished"] and [cell["cell"] for cell in data["cells"]] == [CELL]


# Its parts


@pytest.fixture(scope="module")
def capture():
    return caches.Capture(ROOT / "test/data/smollm2-slice")


@pytest.mark.parametrize("context", [1, 63, 64, 65, 320, 321, 1000, 5000])
def test_tokens(capture, context):
    indices, copies = caches.token_indices(context, capture.tokens, np.random.default_rng(1))
    assert len(indices) == context
    sinks = min(64, context)
    assert (indices[:sinks] == np.arange(sinks)).all() and (indices[sinks:] >= 64).all(), "the first block stands once, at the start"
    assert context == sinks or indices[-1] == capture.tokens - 1
    middle = indices[copies]
    assert (middle < capture.tokens - 256).all()
    assert (np.diff(middle) == 1).sum() >= len(middle) - 1 - len(middle) // 64, "whole blocks"


def test_steps(capture):
    cell = workload.Cell(workload.Shape("f16", 2, 4, 128), 2, 700)
    step = caches.make_step(capture, arrays.NumPy(None), cell, 3)
    heads = capture.k.reshape(-1, capture.tokens, 64)
    for key in step.key.reshape(-1, 700, 128):
        sources = [next(s for s in range(len(heads)) if np.array_equal(half[:64].astype(np.float32), heads[s, :64])) for half in (key[:, :64], key[:, 64:])]
        assert len(set(sources)) == 2, "a head_dim of 128 is two captured heads"
        assert np.array_equal(key[-256:, :64].astype(np.float32), heads[sources[0], -256:])
    a, b = (caches.make_step(capture, arrays.NumPy(None), cell, seed).key for seed in (3, 4))
    assert np.array_equal(a, step.key) and not np.array_equal(b, step.key)


@pytest.mark.parametrize("element, context", [("f16", 1), ("f16", 700), ("bf16", 65)])
def test_exact_attention(capture, monkeypatch, element, context):
    monkeypatch.setattr(caches, "CHUNK", 100)
    cell, numpy = workload.Cell(workload.Shape(element, 2, 3, 64), 2, context), arrays.NumPy(None)
    step = caches.make_step(capture, numpy, cell, 0)
    q, k, v = (numpy.float64(x) for x in (step.query, step.key, step.value))
    want = exact_attention(q.reshape(2, 6, 1, 64), k, v).reshape(2, 2, 3, 64)
    assert caches.exact_attention(numpy, step, cell.scale) == pytest.approx(want, rel=1e-12)


def worker(**fields):
    made = object.__new__(bench.Worker)
    made.__dict__.update({"arrays": arrays.NumPy(None), "counts": bench.Counts(), "timed": True}, **fields)
    return made


@pytest.mark.parametrize("off, why", [(0.06, "got 0.06"), (np.nan, "got nan")])
def test_what_is_wrong_is_not_timed(capture, off, why):
    cell = workload.Cell(workload.Shape("f16", 1, 1, 64), 1, 10)
    step = caches.make_step(capture, arrays.NumPy(None), cell, 0)
    step.exact = caches.exact_attention(arrays.NumPy(None), step, cell.scale)
    wrong = contestants.Contestant("wrong")
    wrong.outputs = lambda: [step.exact * (1 + off)]
    wrong.graph = lambda: pytest.fail("expected no graph of what is wrong")
    with pytest.raises(cuda.Refused, match=f"expected a mean relative error of at most 0.05, {why}"):
        worker().enter(wrong, cell, [step], {"results": []}, {})


def test_of_a_family_the_fastest_stays(capture):
    cell = workload.Cell(workload.Shape("f16", 1, 1, 64), 1, 10)
    step = caches.make_step(capture, arrays.NumPy(None), cell, 0)
    step.exact = caches.exact_attention(arrays.NumPy(None), step, cell.scale)
    record, racing, slowness = {"results": []}, {}, {"b": 30.0, "a": 20.0, "c": 50.0, "other": 90.0}
    measuring = worker(measure=lambda launch, times: launch())
    for name in slowness:
        contestant = contestants.Contestant(name, "other" if name == "other" else "family")
        contestant.outputs, contestant.graph = lambda: [step.exact], lambda name=name: lambda: slowness[name]
        measuring.enter(contestant, cell, [step], record, racing)
    assert [result["name"] for result in record["results"]] == ["a", "other"]
    assert record["results"][0]["slower"] == {"b": 30.0, "c": 50.0}


def test_a_worker_that_says_nothing_is_ended(tmp_path, monkeypatch):
    sleeper, results = tmp_path / "sleeper.py", tmp_path / "results.json"
    sleeper.write_text("import time; time.sleep(60)")
    results.write_text("{}")
    monkeypatch.setattr(bench, "__file__", str(sleeper))
    monkeypatch.setattr(bench, "START", 1)
    options = type("Options", (), {"until": bench.time.time() + 100, "passed": []})
    assert bench.watch(options, results, dict(os.environ)) == "no result in 1 s"


def test_wheels_lie_behind_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "HERE", tmp_path)
    assert bench.unpacked_wheels() is None
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/some-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_package/__init__.py", "")
    assert (pathlib.Path(bench.unpacked_wheels()) / "some_package/__init__.py").exists()


def timed_data():
    def result(name, median, bytes_read, **more):
        return {"name": name, "family": name, "error_mean": 1e-3, "error_max": 2e-3, "bytes_read": bytes_read,
                "microseconds": {"median": median, "q1": median, "q3": median, "runs": 9}, **more}

    results = [result("aligned balanced", 50.0, 25_000_000, key_bits=6.0, value_bits=2.0), result("torch flash folded", 100.0, 100_000_000),
               result("flashinfer fp8 cuda cores", 20.0, 50_000_000),
               {"name": "copy", "family": "copy", "bytes_moved": 2_000_000, "microseconds": {"median": 1.0, "q1": 1.0, "q3": 1.0, "runs": 9}}]
    cell = {"cell": "b1-8k", "batch": 1, "context": 8192, "element": "f16", "kv_heads": 8, "group": 4, "head_dim": 128, "dense_bytes": 100_000_000,
            "results": results, "skipped": [{"name": "flashinfer", "reason": "not here"}]}
    return {"gpu": "NVIDIA Some", "date": "2026-01-01", "timed": True, "command": ["bench.py"], "build": {"ptx": {"sm_90": "7.8"}}, "cells": [cell], "skipped": []}


def test_page_of_times(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(timed_data()))
    text = report.page([path, ROOT / "benchmarks/results/interpreter.json"])
    assert "| b1-8k |  |  | 2.00, 0.25 of copy |  |  |" in text, "beside the best dense kernel, which fp8 is not"
    assert "| `balanced` | 6.00 | 2.00 | 0.250 | 1.0e-03 | 2.0e-03 | 50.0 (50.0 to 50.0) | 2.00 | 0.25 |" in text
    assert "- flashinfer: not here" in text
    assert "Nothing here was timed" not in text and "PTX emulator" not in text
    report.write_plot(timed_data(), tmp_path / "some.svg")
    assert "microseconds of a step" in (tmp_path / "some.svg").read_text()


def test_page_is_of_the_results_that_are_kept():
    kept = sorted((ROOT / "benchmarks/results").glob("*.json"))
    assert (ROOT / "docs/Performance.md").read_text() == report.page(kept), "stale, run `make update-performance`"
