"""Each spelling of test/Raise/forms-*.mlir means what it is raised to: run raised, with every bit read, and as it stands."""
import concurrent.futures
import pathlib
import re

import alignedkv
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "Raise"
UNITS = {"bf16": 2.0**-8, "f16": 2.0**-11}
TOKENS = 5
UNKNOWN = 65  # tokens, where a graph does not say


def forms():
    """Every function of every file, with the aliases of its file."""
    for path in sorted(FOLDER.glob("forms-*.mlir")):
        text = path.read_text()
        aliases = "".join(re.findall(r"^[!#]\w+ = .*\n", text, re.MULTILINE))
        for function in re.finditer(r"^func\.func @(\w+)\((.*?)\) -> .*?^}\n", text, re.MULTILINE | re.DOTALL):
            yield pytest.param(aliases + function[0], re.findall(r"%(\w+):", function[2]), id=f"{path.stem}-{function[1]}")


def drawn(rng, name, argument, hides):
    """An input by the name of its argument; with `hides`, masks hide all tokens from some rows."""
    dtype, extents = re.fullmatch(r"(\w+)\[(.*)\]", argument).groups()
    shape = [UNKNOWN if extent == "?" else int(extent) for extent in extents.split(", ") if extent]
    hidden = rng.random(shape) < 0.4
    if shape and not hides:
        hidden[..., -1] = False
    elif len(shape) > 1:
        hidden[..., -2 if shape[-2] > 1 else 0, :] = True
    if dtype == "bool":
        return hidden if name == "hidden" else ~hidden
    if dtype == "int64":
        return rng.integers(0 if hides else 1, TOKENS + 1, shape)
    values = rng.standard_normal(shape).astype(np.float32)
    if name == "mask":
        values[hidden] = -np.inf
    if name == "scale":
        values = abs(values) + np.float32(0.1)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(dtype)


def widened(array):
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array.astype(np.float64)


@pytest.mark.parametrize("text, names", list(forms()))
def test_means_the_same(text, names):
    assert "aligned.attention" in alignedkv.transform(text, "builtin.module(aligned-raise-attention)")
    if re.search(r"%scale: f32", text):
        pytest.skip("functions of scalars can not be called")
    options = [{"raise_attention": False}, {"format": "dense"}]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stands, raised = pool.map(lambda chosen: alignedkv.compile(text, policy="exact", **chosen), options)
    # What a graph rounds on the way, attention does not.
    rounds = [unit for kind, unit in UNITS.items() if re.search(rf"to {kind}\b|-> \S*x{kind}>", text)]
    tolerance = 16 * max(rounds) if rounds else 1e-5
    for seed, hides in enumerate([False, True]):
        rng = np.random.default_rng(seed)
        arguments = [drawn(rng, name, str(argument), hides) for name, argument in zip(names, stands.arguments, strict=True)]
        np.testing.assert_allclose(widened(raised(*arguments)), widened(stands(*arguments)), rtol=tolerance, atol=tolerance)
