"""The compiler's interface: modules from texts and files, options, what it says and where, what it compiles to, and Ctrl-C."""

import ctypes
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import exact_attention, relative_error

import alignedkv

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "test" / "Pipelines" / "decode" / "model.mlir"

# One attention that is found, and one that has a mask inside of its softcap.
GRAPHS = (ROOT / "test" / "Raise" / "report.mlir").read_text()


def attention(name="f", heads=3, rows=2, kind="f16"):
    """One over caches that grow elsewhere."""
    q, cache = f"tensor<1x{heads * rows}x1x32x{kind}>", f"tensor<1x{heads}x?x32x{kind}>"
    return f"""func.func @{name}(%q: {q}, %k: {cache}, %v: {cache}) -> {q} {{
  %scale = arith.constant 0.25 : f32
  %out = aligned.attention %q, %k, %v scale %scale : {q}, {cache}, {cache} -> {q}
  return %out : {q}
}}
"""


SUM = """func.func @sum(%a: tensor<3xf32>, %b: tensor<3xf32>) -> tensor<3xf32> {
  %empty = tensor.empty() : tensor<3xf32>
  %sum = linalg.add ins(%a, %b : tensor<3xf32>, tensor<3xf32>) outs(%empty : tensor<3xf32>) -> tensor<3xf32>
  return %sum : tensor<3xf32>
}
"""

# The second use of a value that is another type is an error with a note.
TWO_TYPES = """func.func @f(%a: tensor<3xf32>) -> tensor<4xf32> {
  %b = arith.negf %a : tensor<3xf32>
  return %b : tensor<4xf32>
}
"""

CUSTOM = 'func.func @f(%a: tensor<3xf32>) -> tensor<3xf32> {\n  %0 = "no.such"(%a) : (tensor<3xf32>) -> tensor<3xf32>\n  return %0 : tensor<3xf32>\n}\n'


def ops(graph):
    return set(re.findall(r"\b(?:aligned|linalg|llvm|memref)\.\w+", str(graph)))


# Modules and phases


def test_phases_follow_one_another_or_come_at_once():
    graph = alignedkv.Graph.load(MODEL)
    raised = graph.run(to="raise")
    assert "aligned.attention" in ops(raised) and "linalg.batch_matmul" not in ops(raised)
    fused = graph.run(to="fuse", policy="tight")
    assert str(raised.run(to="fuse", policy="tight")) == str(fused) and "tolerance = 2.44140625E-4" in str(fused)
    assert all(op.startswith("llvm.") for op in ops(graph.run()))
    assert "linalg.batch_matmul" in ops(graph), "a graph is not changed"


def test_the_text_of_a_graph_is_a_graph():
    fused = alignedkv.Graph.load(MODEL).run(to="fuse")
    assert "loc(" not in str(fused)
    assert str(alignedkv.Graph.parse(str(fused))) == str(fused)


def test_any_pipeline_runs():
    graph = alignedkv.Graph.load(MODEL)
    fused = graph.run(to="store").run(pipeline="builtin.module(aligned-fuse-decode-attention{policy=fast})")
    assert "aligned.decode_attention" in ops(fused)
    assert str(graph.run("canonicalize,cse")) == str(graph.run("canonicalize").run("cse"))
    with pytest.raises(alignedkv.Error, match="expected a pipeline or options, got 'cse' and to"):
        graph.run("cse", to="fuse")


def test_transform_and_compile_are_short_forms(rng):
    text = MODEL.read_text()
    assert alignedkv.transform(text, "aligned-pipeline{to=fuse}") == str(alignedkv.Graph.parse(text).run(to="fuse"))
    q, k, v = (rng.standard_normal(shape).astype(np.float16) for shape in [(2, 8, 1, 32), (2, 2, 64, 32), (2, 2, 64, 32)])
    outs = []
    for model in (alignedkv.compile(text, "exact"), alignedkv.compile(MODEL, policy="exact"), alignedkv.Graph.load(MODEL).run(to="stage", policy="exact").compile()):
        caches = [model.new_cache(1), model.new_cache(2)]
        for cache, tokens in zip(caches, (k, v)):
            cache.append(tokens)
        outs.append(model(q, *caches))
        assert relative_error(outs[-1].astype(np.float64), exact_attention(q, k, v)) <= 1e-3
    assert all(np.array_equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("load", [alignedkv.Graph.load, alignedkv.compile])
def test_files_that_are_no_text(tmp_path, load):
    file = tmp_path / "model.mlir"
    with pytest.raises(FileNotFoundError, match="model.mlir"):
        load(file)
    file.write_bytes(b"func.func \xff")
    with pytest.raises(alignedkv.Error, match=r"expected .*model.mlir to be text in UTF-8, got byte 0xff at offset 10"):
        load(file)
    file.write_bytes(b"func.func \0")
    with pytest.raises(alignedkv.Error, match="expected text without NUL and surrogates, got one at offset 10"):
        load(file)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: alignedkv.Graph.parse(b"module {}"), "expected text to be text, got bytes"),
        (lambda: alignedkv.Graph.parse("\ud800"), "expected text without NUL and surrogates, got one at offset 0"),
        (lambda: alignedkv.compile(3), "expected text to be text, got int"),
        (lambda: alignedkv.transform(SUM, None), "expected pipeline to be text, got NoneType"),
        (lambda: alignedkv.transform(SUM, "cse\0"), "expected pipeline without NUL"),
        (lambda: alignedkv.Graph.parse(SUM, filename=3), "expected filename to be text or a path, got int"),
        (lambda: alignedkv.Graph.load(3), "expected path to be text or a path, got int"),
        (lambda: alignedkv.compile(SUM, function=3), "expected function to be text, got int"),
        (lambda: alignedkv.compile(SUM, function="sum\0"), "expected function without NUL"),
    ],
)
def test_arguments_that_are_no_text(call, message):
    with pytest.raises(alignedkv.Error, match=message):
        call()


def test_unregistered_dialects_are_asked_for():
    with pytest.raises(alignedkv.CompileError, match="unregistered dialect"):
        alignedkv.Graph.parse(CUSTOM)
    graph = alignedkv.Graph.parse(CUSTOM, allow_unregistered_dialect=True)
    assert '"no.such"' in str(graph.run("cse"))
    with pytest.raises(alignedkv.CompileError, match="<text>:2:8: error: .*no.such"):
        graph.compile()
    with pytest.raises(alignedkv.CompileError, match="unregistered dialect"):  # one call does not allow it to the next
        alignedkv.Graph.parse(CUSTOM)


# Options


def test_options_are_those_of_the_pipeline():
    """Those of its definition: each is known by its name and what it means."""
    defined = re.findall(r'Option<[\w:]+> \w+\{\*this, "([\w-]+)", llvm::cl::desc\("(.*?)"\)', (ROOT / "include/aligned/Pipelines/Pipelines.h").read_text())
    assert len(defined) > 10
    assert {"raise" if name == "raise_attention" else name.replace("_", "-"): meaning for name, meaning in alignedkv.Graph.options.items()} == dict(defined)


def test_options_of_every_kind_arrive():
    graph = alignedkv.Graph.load(MODEL)
    assert "fixed<8, 8>" in str(graph.run(to="fuse", format="fixed<8,8>")) and "fixed<8, 8>" in str(graph.run(to="fuse", format="fixed< 8, 8 >"))
    assert "tolerance = 3.906250e-03" in str(graph.run(to="fuse", policy="budget", tolerance=np.float32(2.0**-8))).lower()
    assert "#aligned.planes" not in str(graph.run(to="store", dense_below=np.int64(10**9)))
    assert "linalg.batch_matmul" in ops(graph.run(to="fuse", raise_attention=False))
    assert "linalg.batch_matmul" not in ops(graph.run(to="fuse", raise_attention=None, tolerance=None))
    assert "aligned.dense_up_to" in str(graph.run(to="stage", dense_up_to=77)) and "77" in str(graph.run(to="stage", dense_up_to=77))
    assert len(graph.compile(probe=True, certify=np.bool_(True)).results) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(polcy="tight"), r"expected an option of run \(policy, .*\), got 'polcy'"),
        (dict(raise_=False), "got 'raise_'"),
        ({"dense-below": 3}, "got 'dense-below'"),
        (dict(policy="best"), "got 'best'"),
        (dict(policy=b"tight"), "expected policy to be text, got bytes"),
        (dict(policy=True), "expected policy to be text, got bool"),
        (dict(policy=""), "expected policy to be text without quotes and braces, got ''"),
        (dict(policy="tight} canonicalize{"), "expected policy to be text without quotes and braces"),
        (dict(policy="tight to=store"), "got 'tight to=store'"),
        (dict(policy="ti\0ght"), "expected policy without NUL"),
        (dict(policy="budget", tolerance="many"), "expected tolerance to be a number, got 'many'"),
        (dict(policy="budget", tolerance=[1, 2]), "expected tolerance to be a number"),
        (dict(certify="yes"), "expected certify to be True or False, got 'yes'"),
        (dict(certify=1), "expected certify to be True or False, got 1"),
        (dict(budget_layer=1.5), "expected budget_layer to be an integer, got 1.5"),
        (dict(dense_below=-1), "expected dense_below to be an integer from 0 to .*, got -1"),
        (dict(ptx=2**63), "expected ptx to be an integer from"),
        (dict(dense_up_to=-1), "expected dense-up-to to be a number of tokens, or auto with costs, got '-1'"),
        (dict(costs="auto"), "expected costs to be numbers, got 'auto'"),
        (dict(costs=[1, "x"]), "expected costs to be a number, got 'x'"),
        (dict(to="moon"), "got 'moon'"),
        (dict(isa="pdp11"), "expected isa .*, got 'pdp11'"),
        (dict(target="abacus"), "expected target .*, got 'abacus'"),
        (dict(format="fixed<4,4>"), "sum to 16, got 8"),
        (dict(budget="no/such.yaml"), "got 'no/such.yaml'"),
        (dict(budget=pathlib.Path("it's.yaml")), "expected budget to be text without quotes and braces"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(alignedkv.Error, match=message):
        alignedkv.Graph.load(MODEL).run(**options)


def test_options_that_mean_nothing_are_refused():
    graph = alignedkv.Graph.load(MODEL)
    for compile, option in [(graph.compile, dict(to="fuse")), (graph.compile, dict(chip="sm_90")), (graph.compile_kernels, dict(target="cpu")), (graph.compile_kernels, dict(isa="avx2"))]:
        with pytest.raises(alignedkv.Error, match=rf"expected an option of {compile.__name__} \(policy, .*\), got '{[*option][0]}'"):
            compile(**option)


# What the compiler says


def test_errors_have_their_places(tmp_path):
    file = tmp_path / "two types.mlir"
    file.write_text(TWO_TYPES)
    with pytest.raises(alignedkv.CompileError) as raised:
        alignedkv.Graph.load(file)
    (error,) = raised.value.diagnostics
    assert (error.severity, error.filename, error.line, error.column) == ("error", str(file), 3, 10)
    (note,) = error.notes
    assert (note.severity, note.line, note.column) == ("note", 2, 3)
    assert str(raised.value).splitlines() == [f"{file}:3:10: error: {error.message}", f"{file}:2:3: note: {note.message}"]
    assert isinstance(raised.value, alignedkv.Error) and isinstance(raised.value, ValueError)
    twin = pickle.loads(pickle.dumps(raised.value))
    assert twin.diagnostics == raised.value.diagnostics and str(twin) == str(raised.value)


@pytest.mark.parametrize("call", [alignedkv.compile, lambda text: alignedkv.transform(text, "cse")])
def test_texts_without_a_file_have_places_too(call):
    with pytest.raises(alignedkv.CompileError, match="^<text>:3:10: error: "):
        call(TWO_TYPES)


def test_places_stay_behind_passes(tmp_path):
    """What a later phase finds wrong is said of the text that came first."""
    text = attention(rows=34)
    line = 1 + text[: text.index("aligned.attention")].count("\n")
    graph = alignedkv.Graph.parse("// one line more\n" + text, filename="wide.mlir")
    for model in (graph.compile(policy="exact"), graph.run("canonicalize").run("cse").compile(policy="exact")):
        (remark,) = model.remarks
        assert "attention stays dense: expected at most 32 query rows per kv head" in remark.message
        assert (remark.severity, remark.filename, remark.line, remark.column) == ("remark", "wide.mlir", line + 1, 10)
        assert str(remark) == f"wide.mlir:{line + 1}:10: remark: {remark.message}"
    stored = graph.run("canonicalize").run(to="store")
    assert [(remark.line, remark.message) for remark in stored.remarks] == [(line + 1, remark.message)]
    assert stored.run("cse").remarks == stored.remarks


def test_remarks_come_from_the_cache_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNED_CACHE_DIR", str(tmp_path))
    first, name = [alignedkv.Graph.parse(attention(rows=34), filename=name).compile(policy="exact").remarks for name in ("a.mlir", "b.mlir")]
    assert len(list(tmp_path.iterdir())) == 2
    again = alignedkv.Graph.parse(attention(rows=34), filename="a.mlir").compile(policy="exact").remarks
    assert len(list(tmp_path.iterdir())) == 2 and len(again) == 1
    assert again == first and [remark.filename for remark in name] == ["b.mlir"]


def test_errors_of_pipelines_have_no_place():
    with pytest.raises(alignedkv.CompileError) as raised:
        alignedkv.transform(SUM, "builtin.module(cse,no-such-pass)")
    assert str(raised.value) == "'no-such-pass' does not refer to a registered pass or pass pipeline"
    (error,) = raised.value.diagnostics
    assert error == alignedkv.Diagnostic("error", str(raised.value))


def test_texts_that_nobody_saw_are_not_pointed_into():
    with pytest.raises(alignedkv.CompileError) as raised:
        alignedkv.Module(TWO_TYPES)
    (error,) = raised.value.diagnostics
    assert [(said.filename, said.line, said.column) for said in (error, *error.notes)] == 2 * [(None, None, None)]
    assert str(raised.value) == f"{error.message}\nnote: {error.notes[0].message}"
    for format in ("fixed<4,4,8>", "fixed<4,4>"):
        with pytest.raises(alignedkv.Error, match="^expected"):
            alignedkv.KVCache(2, 33, format=format)


def test_the_report_says_what_was_found():
    graph = alignedkv.Graph.parse(GRAPHS, filename="report.mlir")
    found, refused = graph.report()
    lines = GRAPHS.splitlines()
    assert found.raised and found.function == "raised" and found.reason is None
    assert found.match == dict(query="tensor<1x3x2x16xf16>", key="tensor<1x3x65x16xf16>", value="tensor<1x3x65x16xf16>", mask="boolean operand", softcap=False, sink_logits=False,
                               masked_zero=False)
    assert not refused.raised and refused.match is None and refused.reason == "expected a mask outside of the softcap, got one inside"
    for candidate in (found, refused):
        name, line, column = candidate.location.split(":")
        assert name == "report.mlir" and lines[int(line) - 1][int(column) - 1 :].startswith("linalg.batch_matmul")
    (remark,) = graph.run(to="raise").remarks
    assert f"{remark.filename}:{remark.line}:{remark.column}" == refused.location and remark.message == f"attention not raised: {refused.reason}"
    assert alignedkv.Graph.parse(SUM).report() == []


# What it compiles to


def test_code_is_what_runs(tmp_path, monkeypatch):
    """The object file, linked by a linker and called by ctypes, adds."""
    model = alignedkv.compile(SUM)
    assert "define void @aligned_entry(ptr %0)" in model.llvm_ir and model.object[:4] == b"\x7fELF" and model.object is model.object
    clang = shutil.which("clang-22") or shutil.which("cc")
    assert clang, "no program that links"
    object, library = tmp_path / "sum.o", tmp_path / "sum.so"
    object.write_bytes(model.object)
    subprocess.run([clang, "-shared", object, "-o", library, "-lm"], check=True)
    a, b = np.arange(3, dtype=np.float32), np.array([0.5, -2, 7], np.float32)
    descriptors = [np.array([x.ctypes.data, x.ctypes.data, 0, 3, 1], np.int64) for x in (a, b)] + [np.zeros(5, np.int64)]
    # Every value is an address: of the result's descriptor, which comes first, and of the arguments'.
    values = (ctypes.c_void_p * 3)(*(descriptor.ctypes.data for descriptor in (descriptors[2], descriptors[0], descriptors[1])))
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(values) + 8 * index for index in range(3)))
    ctypes.CDLL(library).aligned_entry(pointers)
    out = (ctypes.c_float * 3).from_address(int(descriptors[2][1]))
    assert list(out) == [0.5, -1, 9] == model(a, b).tolist()


@pytest.mark.parametrize("cached", [False, True])
def test_code_holds_the_kernels(tmp_path, monkeypatch, cached):
    monkeypatch.setenv("ALIGNED_CACHE_DIR", str(tmp_path) if cached else "off")
    graph = alignedkv.Graph.parse(attention())
    ir = [graph.compile(policy="fast").llvm_ir for _ in range(2)]  # the second, where it is cached, is not compiled before it is asked
    assert len(list(tmp_path.iterdir())) == cached and ir[0] == ir[1]
    model = graph.compile(policy="fast")
    kernels = re.findall(r"^define \S+ @(\w*(?:scan|attend)\w*)", model.llvm_ir, re.MULTILINE)
    assert kernels and all(name.encode() in model.object for name in kernels)
    assert not set(re.findall(r"^declare .*@(\w+)\(", model.llvm_ir, re.MULTILINE)) & set(kernels)


def test_code_of_a_budget_that_went_wrong_is_refused(tmp_path):
    file = tmp_path / "budget.yaml"
    file.write_text("default: {policy: exact}\n")
    model = alignedkv.compile(attention(), budget=file)
    file.write_text("default:\n  tolerence: 2^-8\n")
    with pytest.raises(alignedkv.CompileError, match="budget.yaml:2:3: error: unknown key 'tolerence'"):
        model.llvm_ir


def test_kernels_come_with_their_launch():
    kernels = alignedkv.Graph.parse(attention()).compile_kernels(chip="sm_80", policy="fast")
    assert ".target sm_80" in kernels.ptx and kernels.remarks == []
    assert set(re.findall(r"\.entry (\w+)", kernels.ptx)) == set(re.findall(r"'kernel': '(\w+)'", str(kernels.launch))) != set()
    assert kernels.launch["chip"] == "sm_80"
    with pytest.raises(alignedkv.CompileError, match="expected a chip of sm_80, .* got 'sm_70'"):
        alignedkv.Graph.parse(attention()).compile_kernels(chip="sm_70")
    with pytest.raises(alignedkv.CompileError, match="got none"):
        alignedkv.Graph.parse(SUM).compile_kernels()


# Ctrl-C

SLOW = "".join(attention(f"f{number}", heads=1 + number % 7, rows=1 + number % 5) for number in range(12)) + SUM


class Alarm(Exception):
    pass


def test_signals_are_answered_while_it_compiles(monkeypatch):
    monkeypatch.setenv("ALIGNED_CACHE_DIR", "off")
    graph = alignedkv.Graph.parse(SLOW)
    start = time.monotonic()
    whole = graph.compile("sum")
    takes = time.monotonic() - start
    assert takes > 1, "too fast to be interrupted"

    def ring(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, takes / 8)
        with pytest.raises(Alarm):
            graph.compile("sum")
        assert takes / 8 <= time.monotonic() - start < takes / 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    a = np.ones(3, np.float32)
    assert whole(a, a).tolist() == alignedkv.compile(SUM)(a, a).tolist() == [2, 2, 2]


def test_a_process_that_was_interrupted_ends_in_order():
    """It waits for the compilation that it left, and dies of nothing but the interrupt."""
    program = """
import sys, threading, time, signal, os
import alignedkv
graph = alignedkv.Graph.parse(sys.stdin.read())
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    graph.compile("sum")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    environment = {**os.environ, "ALIGNED_CACHE_DIR": "off", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], input=SLOW, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)


def test_a_child_of_fork_does_not_wait_for_what_its_parent_compiles(monkeypatch):
    script = """
import os, sys, threading, time
import alignedkv
text = open(sys.argv[1]).read()
thread = threading.Thread(target=lambda: alignedkv.compile(text))
thread.start()
time.sleep(0.05)
child = os.fork()
if not child:
    sys.exit(0)
thread.join()
for _ in range(200):
    if os.waitpid(child, os.WNOHANG)[0]:
        break
    time.sleep(0.05)
else:
    os.kill(child, 9)
    sys.exit("the child waits")
"""
    model = pathlib.Path(__file__).resolve().parents[1] / "Pipelines/decode/model.mlir"
    done = subprocess.run([sys.executable, "-c", script, model], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ALIGNED_CACHE_DIR": "off"}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
