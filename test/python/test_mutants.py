"""No graph is raised to what it does not say: a hundred mutants of those that raise, and that one that were would be noticed."""
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

import alignedkv

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "utils"))
import coverage  # noqa: E402
import mutate  # noqa: E402

BUILD = pathlib.Path(alignedkv.__file__).resolve().parents[2]
if not (BUILD / "bin/aligned-opt").exists():
    pytest.skip("expected the package in a build folder", allow_module_level=True)

GRAPH = "torch/manual_mha_f32.linalg"
TEXT = (coverage.GRAPHS / f"{GRAPH}.mlir").read_text()


def run(*options):
    return subprocess.run([sys.executable, ROOT / "utils/mutate.py", BUILD, *options], capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})


def test_no_mutant_is_raised_wrongly(tmp_path):
    said = run("--count", "100", "--reference", "--keep", tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    last = said.stdout.splitlines()[-1]
    assert re.match(r"100 mutants in \d+ s: ", last)
    verdicts = {verdict: int(count) for count, verdict in re.findall(r"(\d+) ([a-z ,-]+?)(?:, (?=\d)|;)", last)}
    assert verdicts["refused"] >= 20 and verdicts["right"] >= 10, last


# Judging: the compiler, made to raise one text as if it were another


class Confused:
    """Raises a graph to what another graph says."""

    def __init__(self, change):
        self.change = change

    def __getattr__(self, name):
        return getattr(alignedkv, name)

    def compile(self, text, raise_attention=True, **options):
        return alignedkv.compile(self.change(text) if raise_attention else text, raise_attention=raise_attention, **options)


def verdict(change, text=TEXT, graph=GRAPH, is_raised=False):
    judge = mutate.Judge(BUILD)
    judge.alignedkv = Confused(change)
    if is_raised:
        judge.raised = lambda text: True
    return judge.judge(mutate.Mutant(0, graph, text, ""))[0]


def test_a_right_raise_is_right():
    assert verdict(lambda text: text) == "right"


@pytest.mark.parametrize("old, new", [("5.6568542494923806", "5.6"), ("collapse_shape %arg2", "collapse_shape %arg1")], ids=["scale", "values"])
def test_another_function_is_wrong(old, new):
    assert old in TEXT
    assert verdict(lambda text: text.replace(old, new)) == "wrong"


ASSERTION = """    %no = arith.constant false
    cf.assert %no, "of old"
    return """


def test_refusing_alone_is_wrong():
    assert verdict(lambda text: text.replace("    return ", ASSERTION)) == "wrong"
    assert verdict(lambda text: TEXT, TEXT.replace("    return ", ASSERTION)) == "wrong"
    assert verdict(lambda text: text, TEXT.replace("    return ", ASSERTION)) == "right"


def test_overflow_is_no_difference_and_excuses_none():
    """Scores of some hundreds from which no maximum is taken off: exp is infinite, attention is not."""
    shifted = TEXT.replace("5.6568542494923806", "1.0e-02")
    unshifted = re.sub(r"(arith\.subf .*\n +linalg\.yield) %\w+", r"\1 %in", shifted)
    assert unshifted != shifted != TEXT
    assert verdict(lambda _: shifted, unshifted, is_raised=True) == "right, overflow aside"
    assert verdict(lambda _: shifted.replace("collapse_shape %arg2", "collapse_shape %arg1"), unshifted, is_raised=True) == "wrong"


def test_underflow_is_no_difference_and_excuses_none():
    """Scores that a mask makes the lowest float, from which no maximum is taken off: all exponentials are zero, attention is the mean of V."""
    lowered = TEXT.replace("    %0 =", "    %low = arith.constant -3.0e+38 : f32\n    %0 =", 1).replace("ins(%cst : f32) outs(%1 ", "ins(%low : f32) outs(%1 ", 1)
    unshifted = re.sub(r"(arith\.subf .*\n +linalg\.yield) %\w+", r"\1 %in", lowered)
    assert unshifted.count("%low") == 2 and unshifted != lowered
    assert verdict(lambda _: lowered, unshifted, is_raised=True) == "right, overflow aside"
    assert verdict(lambda _: lowered.replace("collapse_shape %arg2", "collapse_shape %arg1"), unshifted, is_raised=True) == "wrong"


def test_what_is_not_raised_is_refused():
    assert verdict(lambda text: text, TEXT.replace("math.exp ", "math.tanh ")) == "refused"


def test_what_does_not_verify_is_invalid():
    assert verdict(lambda text: text, TEXT.replace("math.exp ", "math.no_such ")) == "invalid"


def test_unwritten_memory_says_nothing():
    """A division's result that is left out: the graph returns what memory held."""
    changed = re.sub(r"(arith\.divf .*\n +linalg\.yield) %\w+", r"\1 %out", TEXT)
    assert changed != TEXT
    assert verdict(lambda _: TEXT, changed, is_raised=True) == "undefined"


@pytest.mark.parametrize("sign, bits, beyond", [("s", 32, [np.nan, -np.inf, 2.0**31, -(2.0**31) - 256]), ("u", 8, [-1, 256, 1e30, np.inf])], ids=["signed", "unsigned"])
def test_integers_beyond_which_floats_lie_say_nothing(sign, bits, beyond):
    text = f"""func.func @f(%x: tensor<8xf32>) -> tensor<8xi32> {{
  %e = tensor.empty() : tensor<8xi32>
  %r = linalg.generic {{indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>], iterator_types = ["parallel"]}} ins(%x : tensor<8xf32>) outs(%e : tensor<8xi32>) {{
  ^bb0(%in: f32, %out: i32):
    %i = arith.fpto{sign}i %in : f32 to i{bits}
    {"%w = arith.extui %i : i8 to i32" if bits == 8 else "%w = arith.addi %i, %i : i32"}
    linalg.yield %w : i32
  }} -> tensor<8xi32>
  return %r : tensor<8xi32>
}}"""
    within = [0.5, -0.75, 3.5, 200]
    times = 1 if bits == 8 else 2
    for number in (0, 3):
        module = alignedkv.compile(mutate.filled(text, number))
        np.testing.assert_array_equal(mutate.results_of(module, [np.float32(within + beyond)])[0], times * np.array([0, 0, 3, 200] + 4 * [number]))


@pytest.mark.parametrize("graph", ["torch/sdpa_gqa_f16.linalg", "torch/sdpa_gqa_bf16_dynS.linalg", GRAPH])
def test_a_widened_graph_says_the_same(graph):
    path = coverage.GRAPHS / f"{graph}.mlir"
    text = path.read_text()
    arguments, _ = coverage.load(next(found for found in coverage.graphs() if found.path == path).arrays)
    narrow = alignedkv.compile(text, policy="exact", format="dense", raise_attention=False)
    wide = alignedkv.compile(mutate.widened(text), policy="exact", format="dense", raise_attention=False)
    unit = coverage.rounding(text)
    assert wide.results[0].startswith("float64" if unit == 2.0**-24 else "float32")
    share = mutate.differences(mutate.results_of(narrow, arguments), mutate.results_of(wide, [mutate.widened_array(array) for array in arguments]), 4 * unit)
    assert 0 < share <= 8
    same = alignedkv.compile(mutate.bounded(mutate.widened(text)), policy="exact", format="dense", raise_attention=False)
    np.testing.assert_array_equal(mutate.results_of(same, [mutate.widened_array(array) for array in arguments])[0],
                                  mutate.results_of(wide, [mutate.widened_array(array) for array in arguments])[0])
    full = alignedkv.compile(mutate.filled(text, 6), policy="exact", format="dense", raise_attention=False)
    np.testing.assert_array_equal(mutate.results_of(full, arguments)[0], mutate.results_of(narrow, arguments)[0])


def test_a_graph_as_it_stands_has_no_attention():
    assert alignedkv.compile(TEXT).attentions == 1 and alignedkv.compile(TEXT, raise_attention=False).attentions == 0
    text = alignedkv.transform(TEXT, "aligned-pipeline{raise=false to=raise}")
    assert "linalg.batch_matmul" in text and "aligned." not in text
    with pytest.raises(alignedkv.Error, match="raise.*maybe"):
        alignedkv.transform(TEXT, "aligned-pipeline{raise=maybe}")


# Changing


@pytest.mark.parametrize("rule", mutate.RULES, ids=lambda rule: rule.__name__)
def test_every_rule_changes_some_graph_and_what_it_writes_is_read(rule):
    """And does the same again from the same seed."""
    valid = 0
    for path in sorted((coverage.GRAPHS).glob("[tho]*/*[lq]*.linalg.mlir"))[::5]:
        text = path.read_text()
        for seed in range(20):
            found, again = rule(random.Random(seed), text), rule(random.Random(seed), text)
            assert found == again
            if not found:
                continue
            changed = text
            for begin, end, new in sorted(found[0], reverse=True):
                changed = changed[:begin] + new + changed[end:]
            try:
                alignedkv.transform(changed, "builtin.module()")
                valid += changed != text
            except alignedkv.Error:
                pass
            if valid >= 2:
                return
    pytest.fail(f"expected two graphs that verify, got {valid}")


def test_inputs_have_masks_and_the_reference_s_types():
    graph = next(graph for graph in coverage.graphs() if graph.name == "4d_attn_mask.linalg")
    inputs = mutate.Inputs(graph, {"4d_attn_mask": {"inputs": ["Q", "K", "V", "attn_mask"]}})
    assert inputs.masks == [False, False, False, True]
    finite, infinite = inputs.random(0), inputs.random(1)
    for arguments in (finite, infinite):
        assert [(array.dtype, array.shape) for array in arguments] == [(array.dtype, array.shape) for array in inputs.arguments]
    assert np.isfinite(finite[3]).all() and np.isneginf(infinite[3]).any() and not np.isneginf(infinite[3]).all()
    assert all(np.array_equal(*pair) for pair in zip(finite, inputs.random(0)))


@pytest.mark.parametrize("options, status, message", [
    (["--count", "0"], 2, "expected --count of 1 or more, got 0"),
    (["--only", "no such"], 1, "expected a graph that is raised, found none of the name 'no such'"),
])
def test_impossible_options(options, status, message):
    said = run(*options)
    assert said.returncode == status and message in said.stderr


def test_a_kept_mutant_is_judged_again(tmp_path):
    mutant = mutate.Mutant(7, GRAPH, TEXT, "line 1: none")
    path = mutate.keep(tmp_path, mutant, "wrong", "of old")
    said = run("--replay", path)
    assert said.returncode == 0 and said.stdout == "right\n"
    assert "expected a readable file, got: No such file" in run("--replay", tmp_path / "none.mlir").stderr
    path.write_text(TEXT)
    said = run("--replay", path)
    assert said.returncode == 1 and "expected a line '// graph: NAME' with a graph of test/data/graphs, found none" in said.stderr
