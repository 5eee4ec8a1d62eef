"""Graphs that real front ends wrote, held against the compiler: is attention found in each, and does the compiled graph give what its producer's reference gives?

test/data/graphs holds the graphs by producer, X.linalg.mlir, X.tosa.mlir or X.*.generic.mlir, and beside them X.npz with inputs arg0, arg1, ... and references out0, out1, ...
(bfloat16 as uint16). Each is compiled as `alignedkv.compile` does it by default, caches in planes, at policy `exact` and at `tight`, and called. `coverage.py BUILD` prints
the page that test/Raise/COVERAGE.md keeps; `make update-coverage` writes it there.

How far an output may be off from the reference:

    exact   an element: rtol |want| + atol + (2^-11 + 3 r) v
    tight   a row, in L2: what its elements may be off at `exact`, and 4 2^-12 of the usual length of a row of V, which is what `tight` aims at but does not promise

v is the usual size (rms) of an element of V, of the attentions of the graph; where none was found, of inputs of rank 3 and more. r is a unit of rounding of the narrowest float type
in the graph: front ends round scores, probabilities and results to it, attention only the last. rtol and atol are those of the case in the ONNX tests, which its authors chose; elsewhere
2 r and 1e-7. 2^-11 v is for keys and values of f32 that are kept in 16 bits, and returned so. When this was chosen, the largest errors were half of what is allowed.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRAPHS = ROOT / "test/data/graphs"
PAGE = ROOT / "test/Raise/COVERAGE.md"
PRODUCERS = {"torch": "PyTorch through torch-mlir", "hf": "Hugging Face transformers through torch-mlir", "jax": "JAX through StableHLO",
             "onnx": "ONNX's tests of Attention, expanded, through torch-mlir", "generic": "foreign dialects in generic form"}
KINDS = ("linalg", "tosa", "generic")
POLICIES = ("exact", "tight")
ELIDED = "dense_resource<__elided__>"  # a constant that its producer left out


class Graph(NamedTuple):
    producer: str
    path: pathlib.Path
    kind: str

    @property
    def name(self):
        return self.path.name.removesuffix(".mlir")

    @property
    def arrays(self):
        """The archive of its inputs and references; None where there is none."""
        stem = self.path.name.split(".")[0]
        folders = [self.path.parent, GRAPHS / "torch", GRAPHS / "jax"]
        names = [stem, stem.removeprefix("jax_")]
        return next((folder / f"{name}.npz" for folder in folders for name in names if (folder / f"{name}.npz").exists()), None)


class Outcome(NamedTuple):
    graph: Graph
    raised: int  # attentions found
    stored: str  # planes or dense: how they read K and V
    verdicts: dict  # by policy: right, wrong, fails, or nothing where it can't be run
    reason: str = ""  # why attention was not found, or why the graph does not run
    errors: dict = {}  # by policy: how much of what is allowed was used
    seconds: float = 0.0


def graphs():
    for producer in PRODUCERS:
        for path in sorted((GRAPHS / producer).glob("*.mlir")):
            kind = path.name.split(".")[-2]
            yield Graph(producer, path, kind)


def load(path):
    with np.load(path) as archive:
        arrays = dict(archive)
    return [arrays[name] for name in numbered(arrays, "arg")], [arrays[name] for name in numbered(arrays, "out")]


def numbered(arrays, word):
    return [f"{word}{number}" for number in range(sum(name.startswith(word) for name in arrays))]


# Running


def call(module, arguments):
    """Calls a compiled module with arrays; those that it takes as caches are appended to empty ones. Results are arrays again."""
    given = []
    for number, (array, type) in enumerate(zip(arguments, module.arguments)):
        if re.search(r"\] (fixed|float)<", type):
            cache = module.new_cache(number)
            cache.append(array)
            array = cache
        given.append(array)
    results = module(*given)
    results = results if isinstance(results, tuple) else () if results is None else (results,)
    return [result if isinstance(result, np.ndarray) else result.to_numpy(16) for result in results]


def floats(array, is_bfloat16):
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if is_bfloat16 else array.astype(np.float64)


def raised_text(alignedkv, text):
    """The graph behind the phase `raise`."""
    return alignedkv.transform(text, "aligned-pipeline{to=raise}")


ATTENTION = re.compile(r"aligned\.attention (%[\w#]+), (%[\w#]+), (%[\w#]+)\b.*? : (tensor<[^>]*>), (tensor<[^>]*>), (tensor<[^>]*>)")


def values_of(alignedkv, text, arguments):
    """V of each attention of a graph: an argument, or what the graph gives with V as its result."""
    for match in ATTENTION.finditer(text):
        if argument := re.fullmatch(r"%arg(\d+)", match[3]):
            array = arguments[int(argument[1])]
            yield floats(array, array.dtype == np.uint16)
            continue
        head, body = text[:match.start()], match[3]
        head = head[:head.rindex("\n")]
        head = re.sub(r"(func\.func (?:public )?@\w+\(.*?\)) -> .*?( attributes \{.*?\})? \{\n", lambda signature: f"{signature[1]} -> {match[6]} {{\n", head, count=1)
        module = alignedkv.compile(f"{head}\n    return {body} : {match[6]}\n  }}\n}}\n", format="dense", policy="exact")
        yield floats(call(module, arguments)[0], "bfloat16" in module.results[0])


class Values(NamedTuple):
    """The usual size of V: of an element, and of a row in L2, which has so many elements."""

    element: float
    row: float = 0.0
    dim: int = 1

    @classmethod
    def of(cls, values):
        """The largest V of some."""
        return max(cls(row / np.sqrt(dim), row, dim) for row, dim in ((np.linalg.norm(v, axis=-1).mean(), v.shape[-1]) for v in values))

    @classmethod
    def unknown(cls, arrays):
        """Where no attention was found: the largest array is like V, by its median, which masks leave alone."""
        return cls(max((1.5 * np.median(np.abs(array)) for array in arrays if array.ndim > 2 and array.size), default=0.0))


ROUNDING = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-24}
STORED, ROUNDED = 2.0**-11, 3  # of v, and of r v
TIGHT = 4 * 2.0**-12


def rounding(text):
    return next(unit for type, unit in ROUNDING.items() if re.search(rf"(?:\b|x){type}\b", text) or type == "f32")


def used(policy, got, want, rtol, atol, unit, values):
    """The largest error of an output as a share of what is allowed; NaN and infinities must be where they are expected."""
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    got, want = np.where(finite, got, 0), np.where(finite, want, 0)
    error, allowed = np.abs(got - want), rtol * np.abs(want) + atol + (STORED + ROUNDED * unit) * values.element
    if policy == "tight" and error.ndim:
        heads = error.shape[-1] / values.dim  # that a row of the output is of
        error, allowed = np.linalg.norm(error, axis=-1), np.linalg.norm(allowed, axis=-1) + TIGHT * values.row * np.sqrt(heads)
    return (error / allowed).max(initial=0)


def run(alignedkv, graph, cases, policy, text, arguments, wanted, values):
    """right or wrong, the share of what errors may be that was used, and the compiler's remarks."""
    module = alignedkv.compile(text, policy=policy, **readable(graph))
    unit = rounding(text)
    case = cases[graph.path.name.split(".")[0]] if graph.producer == "onnx" else {"rtol": 2 * unit, "atol": 1e-7}
    worst = 0.0
    for type, got, want in zip(module.results, call(module, arguments), wanted, strict=True):
        is_bfloat16 = type.startswith("bfloat16")
        worst = max(worst, used(policy, floats(got, is_bfloat16), floats(want, is_bfloat16), case["rtol"], case["atol"], unit, values))
    return "right" if worst <= 1 else "wrong", worst, [remark.message for remark in module.remarks]


NOTHING = "no product that looks like attention was found"


def not_raised(remarks):
    """What remarks say of attention that was not found."""
    found = [remark.split("attention not raised: ", 1)[1] for remark in remarks if "attention not raised: " in remark]
    return "; ".join(dict.fromkeys(found))


def first_line(error):
    """Without its place, where the compiler said it."""
    said = getattr(error, "diagnostics", None)
    return (said[0].message if said else str(error)).splitlines()[0]


def readable(graph):
    """Options that a text takes: generic ones are of dialects that are not linked."""
    return {"allow_unregistered_dialect": True} if graph.kind == "generic" else {}


def by_tool(build, path):
    """Attentions found, and remarks, of a text that only the tool reads: one of dialects that nobody registered."""
    said = subprocess.run([build / "bin/aligned-opt", path, "--allow-unregistered-dialect", "--aligned-pipeline=to=raise"], capture_output=True, text=True, timeout=60)
    if said.returncode:
        return 0, (re.search(r"error: (.*)", said.stderr) or ["", f"exit status {said.returncode}"])[1]
    return len(re.findall(r"\baligned\.attention\b", said.stdout)), not_raised(re.findall(r"remark: (.*)", said.stderr)) or NOTHING


def measure(alignedkv, build, graph, cases):
    start = time.monotonic()
    text = graph.path.read_text()
    outcome = Outcome(graph, 0, "", {})
    if ELIDED in text:
        outcome = outcome._replace(reason="has constants that its producer left out (`__elided__`)")
        raised, reason = by_tool(build, graph.path)
        return outcome._replace(raised=raised, reason=outcome.reason if raised else f"{outcome.reason}; {reason}")
    try:
        raised = alignedkv.transform(text, "aligned-pipeline{to=raise}", **readable(graph))
    except alignedkv.Error as error:
        return outcome._replace(reason=first_line(error))
    if graph.arrays is None:
        count, reason = by_tool(build, graph.path)
        return outcome._replace(raised=count, reason="has no reference" if count else reason)
    arguments, wanted = load(graph.arrays)
    count = len(re.findall(r"\baligned\.attention\b", raised))
    inputs = (floats(array, array.dtype == np.uint16) for array in arguments if array.dtype in (np.float16, np.uint16, np.float32))
    values = Values.of(values_of(alignedkv, raised, arguments)) if count else Values.unknown(inputs)
    verdicts, errors, reason, staged = {}, {}, "", {}
    for policy in POLICIES if count else POLICIES[:1]:
        try:
            staged[policy] = alignedkv.transform(text, f"aligned-pipeline{{policy={policy} to=stage}}", **readable(graph))
            if policy != "exact" and staged[policy] == staged["exact"]:  # what stays dense is read whole under any policy
                verdicts[policy], errors[policy] = verdicts["exact"], errors["exact"]
                continue
            verdicts[policy], errors[policy], remarks = run(alignedkv, graph, cases, policy, text, arguments, wanted, values)
            reason = reason or not_raised(remarks) or ("" if count else NOTHING)
        except alignedkv.Error as error:
            verdicts[policy] = "fails"
            reason = f"{policy}: {first_line(error)}"
    stored = "planes" if "#aligned.planes" in staged.get("exact", "") else "dense" if count else ""
    return Outcome(graph, count, stored, verdicts, reason, errors, time.monotonic() - start)


# The page


def totals(outcomes):
    """By kind of graph: what the page begins with."""
    result = {}
    for kind in KINDS:
        of_kind = [outcome for outcome in outcomes if outcome.graph.kind == kind]
        raised = [outcome for outcome in of_kind if outcome.raised]
        result[kind] = {
            "graphs": len(of_kind),
            "raised": len(raised),
            "right at exact": sum(outcome.verdicts.get("exact") == "right" for outcome in raised),
            "right at tight": sum(outcome.verdicts.get("tight") == "right" for outcome in raised),
            "wrong": sum("wrong" in outcome.verdicts.values() for outcome in of_kind),
            "can't run": sum(not outcome.verdicts or "fails" in outcome.verdicts.values() for outcome in of_kind),
        }
    return result


def totals_of_page(text):
    """The totals that a page states."""
    lines = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines() if line.startswith("|")]
    header = next(line for line in lines if "raised" in line and "graphs" in line)
    return {line[0]: dict(zip(header[1:], map(int, line[1:]))) for line in lines if line[0] in KINDS}


def table(header, rows):
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def page(outcomes):
    sums = totals(outcomes)
    columns = list(sums[KINDS[0]])
    parts = ["# Graphs of real front ends", "",
             "Written by `make update-coverage` ([utils/coverage.py](../../utils/coverage.py)) from the graphs in [test/data/graphs](../data/graphs); a test fails where it is stale.", "",
             table(["", *columns], ([kind, *sums[kind].values()] for kind in KINDS)), "",
             "- **raised**: attention was found. Where it was not, the last column says why, in the compiler's words.",
             "- **K and V** are read from planes where head_dim allows, else as dense tensors, which all policies read whole.",
             "- **right**: every output is what the producer's reference says, compiled as `alignedkv.compile` does by default.",
             "- At `exact` an element may be off by `rtol |want| + atol + (2^-11 + 3 r) v`. v is the usual size of an element of V. r is a unit of rounding of the narrowest float",
             "  type in the graph, 2^-24, 2^-11 or 2^-8: front ends round scores, probabilities and results to it, attention only the last. rtol and atol are 1e-3 and 1e-7 for ONNX,",
             "  the tests' own; elsewhere 2 r and 1e-7. 2^-11 v is for keys and values of f32 that are kept in 16 bits.",
             "- At `tight`, which aims at rows that are off by 2^-12 of the usual length of a row of V in L2, a row may be off by four times that and by what its elements may be at `exact`.",
             "- The largest errors were half of what is allowed when that was chosen; `utils/coverage.py build --errors` prints each.",
             "- A graph in which attention was not found is run as it stands, and *as it stands* says that it is right.", ""]
    for producer, what in PRODUCERS.items():
        rows = []
        for outcome in outcomes:
            if outcome.graph.producer == producer:
                cells = [outcome.verdicts.get(policy, "") for policy in POLICIES]
                if not outcome.raised and cells[0] == "right":
                    cells[0] = "as it stands"
                rows.append([f"`{outcome.graph.name}`", outcome.raised or "no", outcome.stored, *cells, outcome.reason.replace("|", "\\|")])
        parts += [f"## {what}", "", table(["graph", "raised", "K and V", *POLICIES, "why not"], rows), ""]
    return "\n".join(parts)


def find_package(build, parser):
    """Makes the package of a build folder the one to import."""
    if not (build / "python/alignedkv").is_dir():
        parser.error(f"expected a build folder, with python/alignedkv, got {build}")
    sys.path.insert(0, str(build / "python"))


def all_outcomes(build, only=""):
    """Every graph, measured in one process, its compiled code kept in the build folder."""
    build = pathlib.Path(build).resolve()
    os.environ.setdefault("ALIGNED_CACHE_DIR", str(build / "kernels"))
    import alignedkv

    cases = json.loads((GRAPHS / "onnx/cases.json").read_text())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:  # compiling holds no lock
        return list(threads.map(lambda graph: measure(alignedkv, build, graph, cases), (graph for graph in graphs() if only in str(graph.path))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="folder of the build, such as build")
    parser.add_argument("--write", action="store_true", help="write test/Raise/COVERAGE.md instead of printing it")
    parser.add_argument("--only", default="", metavar="TEXT", help="graphs whose path contains this; prints what was measured of each instead of the page")
    parser.add_argument("--errors", action="store_true", help="print what was measured of each instead of the page: the share of what errors may be that was used, and seconds")
    given = parser.parse_args()
    if given.write and given.only:
        parser.error("expected --write of all graphs, got it with --only")
    find_package(pathlib.Path(given.build).resolve(), parser)
    outcomes = all_outcomes(given.build, given.only)
    if not outcomes:
        parser.error(f"expected a graph whose path contains {given.only!r}, found none")
    if given.only or given.errors:
        for outcome in outcomes:
            shares = " ".join(f"{policy} {outcome.verdicts[policy]} {outcome.errors.get(policy, float('nan')):.3g}" for policy in outcome.verdicts)
            print(f"{outcome.graph.producer}/{outcome.graph.name}: raised {outcome.raised} {outcome.stored} {shares} {outcome.seconds:.2f} s {outcome.reason}")
    elif given.write:
        PAGE.write_text(page(outcomes))
        print(f"wrote {PAGE.relative_to(ROOT)}")
    else:
        print(page(outcomes), end="")
    return 1 if any("wrong" in outcome.verdicts.values() for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
