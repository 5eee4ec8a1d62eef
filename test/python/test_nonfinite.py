"""NaN and infinity in K and V give what dense attention gives, in the rows and channels that they belong to (S7)."""

import pathlib

import numpy as np
import pytest
from conftest import exact_attention, from_bfloat16_bits, to_bfloat16_bits

import alignedkv

MODEL = (pathlib.Path(__file__).parent.parent / "Raise/sdpa_gqa_bf16_dynS.mlir").read_text()  # [2, 8, 1, 32] over [2, 2, n, 32]
TOKENS = 130  # two tiles and a part
CASES = {
    "nan in K": ("k", (0, 0, 5, 3), np.nan, 4),
    "inf in K": ("k", (0, 1, 70, 0), np.inf, None),
    "-inf in K": ("k", (1, 1, 70, 31), -np.inf, None),
    "nan in the last token of K": ("k", (1, 0, 129, 7), np.nan, 4),
    "nan in V": ("v", (0, 0, 5, 3), np.nan, 4),
    "inf in V": ("v", (1, 1, 127, 9), np.inf, 4),
    "-inf in the last tile of V": ("v", (1, 0, 128, 0), -np.inf, 4),
}


@pytest.fixture(scope="module", params=["exact", "balanced", "alignedkv"])
def model(request):
    return request.param, alignedkv.compile(MODEL, policy=request.param)


@pytest.mark.parametrize("case", CASES)
def test_a_value_that_is_not_finite_disturbs_its_own_rows_only(model, case):
    policy, run = model
    which, where, value, rows = CASES[case]
    rng = np.random.default_rng(7)
    arrays = {x: rng.standard_normal((2, 8, 1, 32) if x == "q" else (2, 2, TOKENS, 32)) for x in "qkv"}
    arrays[which][where] = value
    bits = {name: to_bfloat16_bits(array) for name, array in arrays.items()}
    with np.errstate(invalid="ignore"):
        want = exact_attention(*(from_bfloat16_bits(bits[x]) for x in "qkv"))
    disturbed = ~np.isfinite(want).all((2, 3))
    assert 0 < disturbed.sum() <= 4 and (rows is None or disturbed.sum() == rows)

    keys, values = run.new_cache(1), run.new_cache(2)
    keys.append(bits["k"])
    values.append(bits["v"])
    got = from_bfloat16_bits(run(bits["q"], keys, values).view(np.uint16))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], atol={"exact": 2e-3, "balanced": 1e-2, "alignedkv": 6e-2}[policy], rtol=2**-7)
