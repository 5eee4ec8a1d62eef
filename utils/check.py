"""Runs every test of the project and adds them up: lit, the GoogleTest programs, pytest, the phase files and lint.

A suite is one or several functions that yield one Result per test; two of them run at a time. What breaks a suite as a whole (a crash, a time limit, a missing program, no
test at all) is a failed test too, so that nothing can be lost in the sum. The last line is `N passed, N failed`; exit 1 on a failure.
"""
import argparse
import collections
import concurrent.futures
import difflib
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

import phases
from phases import ROOT

LIT = "/usr/lib/llvm-22/bin/lit"
LIT_EXCLUDES = {"Inputs", "data", "python", "unittests", "decode"}  # as in test/lit.cfg.py
TIME_LIMIT = 2400  # seconds, of one program: all of pytest is one, and takes half of that on a busy machine
DETAIL_LINES = 60  # shown of a failure


class Result(NamedTuple):
    name: str
    outcome: str  # passed, failed or skipped
    detail: str = ""


def verdict(name, detail):
    """A test that passes if there is nothing to say about it."""
    return Result(name, "failed" if detail else "passed", detail)


def run(command, **options):
    """Exit status and output; a program that does not end or start is one that failed."""
    try:
        done = subprocess.run(command, text=True, errors="replace", timeout=TIME_LIMIT, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        return 1, f"expected an end within {TIME_LIMIT} s"
    except OSError as error:
        return 1, str(error)


def tail(text):
    return "\n".join(text.splitlines()[-DETAIL_LINES + 1:])


def tracked():
    """The project's files; without git, all files outside folders that a build makes."""
    status, names = run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT)
    if status == 0:
        return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]
    built = re.compile(r"(build.*|\..*|dist)/")
    return [path for path in ROOT.rglob("*") if path.is_file() and not built.match(str(path.relative_to(ROOT)))]


# Suites


def lit(build, scratch):
    report = scratch / "lit.json"
    status, output = run([LIT, "-sv", "--no-progress-bar", "-o", report, build / "test"])
    outcomes = {"PASS": "passed", "XFAIL": "passed", "FLAKYPASS": "passed", "UNSUPPORTED": "skipped"}
    results = []
    if report.exists():
        for test in json.loads(report.read_text())["tests"]:
            name = test["name"].removeprefix("AlignedKV :: ")
            results.append(Result(name, outcomes.get(test["code"], "failed"), f"{test['code']}\n{test['output']}"))
    return complete(results, status, output, "lit")


def gtest(path, build, scratch):
    """One program, of this build or of another."""
    program, report = build / path, scratch / "report.json"
    status, output = run([program, f"--gtest_output=json:{report}"], cwd=scratch)
    results = []
    for suite in json.loads(report.read_text())["testsuites"] if report.exists() else []:
        for test in suite["testsuite"]:
            skipped = test["result"] == "SKIPPED" or test["status"] == "NOTRUN"
            failures = "\n".join(failure["failure"] for failure in test.get("failures", []))
            outcome = "failed" if failures else "skipped" if skipped else "passed"
            results.append(Result(f"{program.name}: {suite['name']}.{test['name']}", outcome, failures))
    return complete(results, status, output, program.name)


def gtests():
    """A part of the suite for each folder that holds sources, the one with most text, which tends to take longest, first."""
    sources = collections.Counter()
    for path in ROOT.glob("test/unittests/*/*.cpp"):
        sources[path.parent.name] += path.stat().st_size
    return [functools.partial(gtest, f"test/unittests/{folder}Tests") for folder, _ in sources.most_common()]


def pytest(build, scratch):
    report = scratch / "pytest.xml"
    status, output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", ROOT / "test/python"],
                         env=os.environ | {"PYTHONPATH": str(build / "python"), "PYTHONDONTWRITEBYTECODE": "1"}, cwd=ROOT)
    results = []
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else []:
        problems = case.findall("failure") + case.findall("error")
        outcome = "failed" if problems else "skipped" if case.find("skipped") is not None else "passed"
        results.append(Result(f"{case.get('classname')}.{case.get('name')}", outcome, "\n".join(p.text or "" for p in problems)))
    return complete(results, status, output, "pytest")


def complete(results, status, output, program):
    """Adds what the tests themselves cannot say: that their program crashed, or that there was no test."""
    if not any(result.outcome != "skipped" for result in results):
        results.append(Result(program, "failed", f"expected at least one test, got none (exit status {status})\n{tail(output)}"))
    elif status and not any(result.outcome == "failed" for result in results):
        results.append(Result(program, "failed", f"expected exit status 0, got {status}\n{tail(output)}"))
    return results


def phase_files(build, scratch):
    """The files that show a model after each phase are what the compiler writes today."""
    for phase in phases.PHASES:
        path = phases.path_of(phase)
        try:
            fresh, kept = phases.generate(build, phase), path.read_text()
            difference = "\n".join(difflib.unified_diff(kept.splitlines(), fresh.splitlines(), path.name, "written now", lineterm=""))
            detail = difference and f"stale, run `make update-phases`\n{difference}"
        except (subprocess.SubprocessError, OSError) as error:
            detail = f"{error}\n{getattr(error, 'stderr', '') or ''}"
        yield verdict(f"phase file {path.name}", detail)


# Lint: what a test suite silently loses

COMMENT = r"(?://|#|;)\s*"
RUN_LINE = re.compile(rf"^\s*(?:{COMMENT})?(?:RUN|DEFINE|REDEFINE):(.*)", re.MULTILINE)
# Two letters at least: `S1:` in a comment is the label of a rule.
CHECK_LINE = re.compile(COMMENT + r"([A-Z][A-Z][A-Z0-9_-]*?)(?:-(?:NEXT|SAME|NOT|DAG|LABEL|EMPTY|COUNT-\d+))?:")
PREFIX_OPTION = re.compile(r"--?check-prefix(?:es)?[= ]([\w,-]+)")
LIT_KEYWORDS = {"RUN", "DEFINE", "REDEFINE", "REQUIRES", "UNSUPPORTED", "XFAIL", "ALLOW_RETRIES"}
MACHINE_PATH = re.compile(r"/(?:work/|tmp/b-)")


def unread_prefixes(text):
    """CHECK prefixes of a lit test that no FileCheck of its RUN lines reads."""
    commands = " ".join(line.rstrip("\\") for line in RUN_LINE.findall(text))
    read = set()
    for command in re.split(r"\||&&|;", commands):
        if "FileCheck" in command:
            options = PREFIX_OPTION.findall(command)
            read.update(prefix for option in options for prefix in option.split(","))
            if not options:
                read.add("CHECK")
    return sorted(set(CHECK_LINE.findall(text)) - read - LIT_KEYWORDS)


def lint(build, scratch):
    files = tracked()
    tests = [path for path in files if path.suffix in (".mlir", ".test") and path.is_relative_to(ROOT / "test")
             and not LIT_EXCLUDES & set(path.relative_to(ROOT).parts)]
    name = {path: str(path.relative_to(ROOT)) for path in files}
    texts = {path: path.read_text() for path in tests}
    yield verdict("lint: every lit test has a RUN line", "\n".join(name[p] for p, text in texts.items() if not re.search(r"\bRUN:", text)))
    unread = {path: unread_prefixes(text) for path, text in texts.items()}
    yield verdict("lint: every CHECK prefix is read by a FileCheck", "\n".join(f"{name[p]}: {' '.join(u)}" for p, u in unread.items() if u))
    paths = []
    for path in files:
        content = path.read_bytes()
        if b"\0" not in content:
            lines = content.decode(errors="replace").splitlines()
            paths += [f"{name[path]}:{number}: {line}" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    yield verdict("lint: no path of one machine in a tracked file", "\n".join(paths))


def finished(suite, build):
    """What a suite found, and the seconds that it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        return list(suite(build, pathlib.Path(scratch))), time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path, nargs="?", help="folder of a build, over which all suites run")
    parser.add_argument("--sanitized", type=pathlib.Path, nargs="+", default=[], metavar="PROGRAM", help="GoogleTest programs of a build with sanitizers: without BUILD these alone run")
    arguments = parser.parse_args()
    if not (arguments.build and arguments.build.is_dir() or arguments.sanitized and not arguments.build):
        parser.error(f"expected the folder of a build, got {arguments.build or 'none'}")
    build = (arguments.build or pathlib.Path()).resolve()
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    workers = concurrent.futures.ThreadPoolExecutor(2)
    runs, suites = {}, {"sanitized": [functools.partial(gtest, program.resolve()) for program in arguments.sanitized]}
    if arguments.build:
        os.environ["ALIGNED_CACHE_DIR"] = str(build / "kernels")
        runs["lit"] = [concurrent.futures.Future()]
        runs["lit"][0].set_result(finished(lit, build))  # first and alone: it has workers of its own
        suites = {"pytest": [pytest], "gtest": gtests(), **suites, "phase files": [phase_files], "lint": [lint]}
    for suite, parts in suites.items():
        runs[suite] = [workers.submit(finished, part, build) for part in parts]
    for suite, parts in runs.items():
        ends = [part.result() for part in parts]
        results, seconds = [result for found, _ in ends for result in found], sum(took for _, took in ends)
        counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in totals}
        for outcome in totals:
            totals[outcome] += counts[outcome]
        for result in results:
            if result.outcome == "failed":
                shown = "\n".join(f"    {line}" for line in result.detail.splitlines()[:DETAIL_LINES])
                print(f"FAILED {result.name}\n{shown}")
            elif result.outcome == "skipped":
                print(f"skipped {result.name}")
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        print(f"{suite}: {said} in {seconds:.1f} s", flush=True)
    print(f"{totals['passed']} passed, {totals['failed']} failed")
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
