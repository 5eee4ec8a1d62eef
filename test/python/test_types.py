"""What the package says of its types: a type checker agrees with the package, and finds in a user's program what is wrong and nothing else."""

import pathlib
import re
import subprocess
import sys

import alignedkv
import pytest

pytest.importorskip("mypy")
PACKAGE = pathlib.Path(alignedkv._alignedkv.__file__).parent

PROGRAM = """
import numpy as np
import alignedkv

cache = alignedkv.KVCache(kv_heads=3, head_dim=64, reserve=128)
k = np.zeros((1, 3, 5, 64), np.float16)
cache.append(k, k, lengths=[5])
copy: alignedkv.KVCache = cache.copy()
out = copy.attend(k, policy="tight", window=64, return_lse=True)
keys, values = cache.to_numpy()
count: int = len(cache) + cache.nbytes + keys.size + sum(cache.lengths)
alignedkv.set_threads(2)
alignedkv.warm_up(cache, q_heads=9, queries=4, policy="fast")
print(alignedkv.transform("module {}", "builtin.module()").upper(), out, count)

cache.truncate(1.5)  # wrong
cache.attend(k, window="all")  # wrong
alignedkv.KVCache(kv_heads=3)  # wrong
alignedkv.set_threads("two")  # wrong
text: str = len(cache)  # wrong
cache.close().wait()  # wrong
alignedkv.transform("module {}")  # wrong
"""


def check(*command):
    # Found by their folder, as those of an installed package are.
    done = subprocess.run([sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", "/dev/null", *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          cwd=PACKAGE.parent, env={"PATH": "", "MYPYPATH": str(PACKAGE.parent)})
    return done.stdout


def test_the_package_is_well_typed():
    assert check("--check-untyped-defs", "--ignore-missing-imports", "--exclude", "integrations", "-p", "alignedkv") == ""


def test_a_users_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    wrong = {number for number, line in enumerate(PROGRAM.split("\n"), 1) if line.endswith("# wrong")}
    said = check(str(program))
    assert {int(number) for number in re.findall(r"program.py:(\d+): error", said)} == wrong, said
