"""The package as users get it: a wheel in an environment of its own, run from elsewhere, beside another user of LLVM in one process."""

import os
import pathlib
import subprocess
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

ATTENDS = """
import numpy as np
import alignedkv
rng = np.random.default_rng(0)
k, v = rng.standard_normal((2, 1, 3, 200, 64)).astype(np.float16)
q = rng.standard_normal((1, 9, 1, 64)).astype(np.float16)
cache = alignedkv.KVCache(kv_heads=3, head_dim=64)
cache.append(k, v)
scores = (q.reshape(3, 3, 64).astype(float) @ k[0].swapaxes(1, 2).astype(float)) / 8
weights = np.exp(scores - scores.max(-1, keepdims=True))
expected = (weights / weights.sum(-1, keepdims=True) @ v[0].astype(float)).reshape(1, 9, 1, 64)
assert np.abs(cache.attend(q, policy="exact") - expected).max() < 1e-3
"""
LLVMLITE = """
import ctypes
import llvmlite.binding as llvm
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
module = llvm.parse_assembly("define i32 @f(i32 %x) { %y = mul i32 %x, 7 ret i32 %y }")
engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(engine.get_function_address("f"))(6) == 42
"""


def run(*command, **options):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that has the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    run("make", "-C", ROOT, "wheel", f"WHEELS={folder}")
    (wheel,) = folder.glob("*.whl")
    run("/usr/bin/python3", "-m", "venv", folder / "env")
    run(folder / "env/bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel, "llvmlite")
    return folder / "env/bin/python", wheel, folder


def execute(python, text):
    interpreter, _, folder = python
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    return run(interpreter, "-c", text, cwd=folder, env=environment)


def test_a_wheel_attends_from_anywhere(python):
    where = execute(python, ATTENDS + "print(alignedkv.__file__)")
    assert where.startswith(str(python[2] / "env"))


@pytest.mark.parametrize("first, second", [(ATTENDS, LLVMLITE), (LLVMLITE, ATTENDS)])
def test_it_lives_beside_another_llvm(python, first, second):
    execute(python, first + second + first + second)


def test_a_wheel_says_its_types_and_carries_its_libraries(python):
    names = {name.partition("alignedkv/")[2] for name in zipfile.ZipFile(python[1]).namelist()}
    assert {"py.typed", "_alignedkv.pyi", "libAlignedJIT.so", "libAlignedCompiler.so", "libAlignedRuntime.so", "integrations/__init__.py"} <= names


def test_libraries_show_names_of_the_project_alone():
    import alignedkv

    package = pathlib.Path(alignedkv._alignedkv.__file__)
    libraries = [package, *(ROOT / "build/lib").glob("libAligned[JR]*.so")]
    assert len(libraries) == 3
    for library in libraries:
        names = [line.split(None, 2)[2] for line in run("nm", "-D", "--defined-only", "-C", library).splitlines()]
        assert names and not [name for name in names if not name.startswith(("aligned", "PyInit_")) and not (library.name == "libAlignedJIT.so" and "aligned::" in name)], library
