"""utils/check.py has the last word on every other test, so what it notices is tested here."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "utils"))
import check  # noqa: E402


@pytest.mark.parametrize("text, unread", [
    ("// RUN: tool %s | FileCheck %s\n// CHECK: a\n// CHECK-NEXT: b\n// CHECK-COUNT-2: c\n", []),
    ("// RUN: tool %s | FileCheck %s --check-prefix=A64\n// A64-DAG: a\n// CHECK: b\n", ["CHECK"]),
    ("// RUN: tool %s | FileCheck %s --check-prefixes=CHECK,WIDE\n// CHECK: a\n// WIDE-NOT: b\n// WIED: c\n", ["WIED"]),
    ("// RUN: tool %s | FileCheck %s --check-prefix ONE\n// RUN: tool %s \\\n// RUN:   | FileCheck %s\n// ONE: a\n// CHECK-LABEL: b\n", []),
    ("// RUN: tool %s --verify-diagnostics\n// CHECK: nobody looks\n", ["CHECK"]),
    ("# RUN: tool | FileCheck %s\n# CHECK: a\n# CHECK-SAM: b\n", ["CHECK-SAM"]),
    ("// RUN: tool %s\n// REQUIRES: avx2\n// S1: the label of a rule is prose\n", []),
])
def test_prefixes_that_no_filecheck_reads(text, unread):
    assert check.unread_prefixes(text) == unread


@pytest.mark.parametrize("line, caught", [
    ("cd /" + "work/main", True), ("open('/" + "tmp/b-mine/x')", True), ("see network/main", False), ("/" + "tmp/file", False),
])
def test_paths_of_one_machine(line, caught):
    assert bool(check.MACHINE_PATH.search(line)) == caught


def outcomes(results, status=0):
    return [result.outcome for result in check.complete(results, status, "output", "program")]


def test_a_program_without_a_test_failed():
    assert outcomes([]) == ["failed"]
    assert outcomes([check.Result("a", "skipped")]) == ["skipped", "failed"]
    assert outcomes([check.Result("a", "passed")]) == ["passed"]


def test_a_crash_is_a_failure_although_every_test_passed():
    assert outcomes([check.Result("a", "passed")], status=-11) == ["passed", "failed"]
    assert outcomes([check.Result("a", "failed")], status=1) == ["failed"]


def test_a_program_that_is_missing_or_hangs_failed(monkeypatch):
    monkeypatch.setattr(check, "TIME_LIMIT", 0.2)
    for command in (["no-such-program"], ["sleep", "5"]):
        assert check.run(command)[0] != 0


def refusal(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["check.py", *arguments])
    with pytest.raises(SystemExit) as end:
        check.main()
    said = capsys.readouterr()
    return end.value.code, said.out + said.err


def test_what_is_no_build_is_refused_and_help_is_no_folder(capsys, monkeypatch):
    assert refusal(capsys, monkeypatch)[0] == 2
    status, said = refusal(capsys, monkeypatch, "no-such-folder")
    assert status == 2 and "expected the folder of a build, got no-such-folder" in said
    status, said = refusal(capsys, monkeypatch, "--help")
    assert status == 0 and said.startswith("usage: check.py")


def test_a_sanitized_program_that_dies_fails(capsys, monkeypatch, tmp_path):
    program = tmp_path / "DyingTests"
    program.write_text("#!/bin/sh\necho 'runtime error: signed integer overflow'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["check.py", "--sanitized", str(program)])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert "signed integer overflow" in said and said.endswith("0 passed, 1 failed\n")
