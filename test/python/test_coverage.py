"""The page of graphs that are understood says what is so today, and never less than it said once."""
import difflib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import alignedkv

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "utils"))
import coverage  # noqa: E402

BUILD = pathlib.Path(alignedkv.__file__).resolve().parents[2]
if not (BUILD / "bin/aligned-opt").exists():
    pytest.skip("expected the package in a build folder", allow_module_level=True)

# Of graphs that run, all are right. No total may fall below these: raise them with what is newly understood.
AT_LEAST = {
    "linalg": {"graphs": 68, "raised": 68, "right at exact": 68, "right at tight": 68},
    "tosa": {"graphs": 15, "raised": 14, "right at exact": 12, "right at tight": 12},
    "generic": {"graphs": 5, "raised": 3, "right at exact": 3, "right at tight": 3},
}
RUN_AT_LEAST = {"linalg": 68, "tosa": 12, "generic": 3}


@pytest.fixture(scope="module")
def outcomes():
    return coverage.all_outcomes(BUILD)


def test_nothing_is_wrong(outcomes):
    assert [f"{outcome.graph.name}: {outcome.verdicts} {outcome.errors}" for outcome in outcomes if "wrong" in outcome.verdicts.values()] == []


def test_no_total_falls(outcomes):
    sums = coverage.totals(outcomes)
    for kind, floors in AT_LEAST.items():
        for total, floor in floors.items():
            assert sums[kind][total] >= floor, f"{kind}: expected {total} to be at least {floor}, got {sums[kind][total]}"
        runs = sums[kind]["graphs"] - sums[kind]["can't run"]
        assert runs >= RUN_AT_LEAST[kind], f"{kind}: expected {RUN_AT_LEAST[kind]} that run, got {runs}"


def test_the_page_is_what_is_so(outcomes):
    fresh, kept = coverage.page(outcomes), coverage.PAGE.read_text()
    assert not "\n".join(difflib.unified_diff(kept.splitlines(), fresh.splitlines(), coverage.PAGE.name, "written now", lineterm="")), "stale, run `make update-coverage`"


def test_what_is_not_raised_has_a_reason(outcomes):
    assert [outcome.graph.name for outcome in outcomes if not outcome.raised and not outcome.reason] == []


# What would count as wrong

V = coverage.Values(element=1.0, row=4.0, dim=16)


def shares(policy, error, want=None):
    want = np.linspace(-1, 1, 48).reshape(3, 16) if want is None else want
    got = want.copy()
    got[1, 3] += error
    return coverage.used(policy, got, want, 0, 1e-7, 2.0**-24, V)


@pytest.mark.parametrize("policy, error, right", [("exact", 2.0**-12, True), ("exact", 2.0**-10, False), ("tight", 2.0**-9, True), ("tight", 2.0**-7, False)])
def test_errors_are_judged(policy, error, right):
    assert (shares(policy, error) <= 1) == right


@pytest.mark.parametrize("policy", coverage.POLICIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_expected(policy, value):
    assert shares(policy, value) == np.inf
    want = np.zeros((3, 16))
    want[1, 3] = value
    assert coverage.used(policy, want, want, 0, 1e-7, 2.0**-24, V) == 0
    assert coverage.used(policy, np.zeros((3, 16)), want, 0, 1e-7, 2.0**-24, V) == np.inf
    assert coverage.used(policy, want[:, :8], want, 0, 1e-7, 2.0**-24, V) == np.inf


def test_the_narrowest_type_decides():
    assert coverage.rounding("tensor<2x?xbf16> f32") == 2.0**-8
    assert coverage.rounding("tensor<2x3xf16> f32") == 2.0**-11
    assert coverage.rounding("tensor<f32>, tensor<2x3xi64>") == 2.0**-24


@pytest.mark.parametrize("arguments, message", [
    ([BUILD / "nowhere"], "expected a build folder, with python/alignedkv, got "),
    ([BUILD, "--write", "--only", "x"], "expected --write of all graphs, got it with --only"),
    ([BUILD, "--only", "no such"], "expected a graph whose path contains 'no such', found none"),
])
def test_impossible_options(arguments, message):
    said = subprocess.run([sys.executable, coverage.ROOT / "utils/coverage.py", *arguments], capture_output=True, text=True)
    assert said.returncode == 2 and message in said.stderr
