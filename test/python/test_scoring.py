"""Windows, sinks and softcaps as operands of attention: one kernel for all numbers, which gives what kernels give that know them, and what float64 does."""
import re

import alignedkv
from alignedkv import attention
import numpy as np
import pytest
from test_attend import masked_attention
from test_cache import filled, half

GIVEN = " softcap %cap mask <causal, window = %window, sinks = %sinks>"
WINDOWS = [(1, 0), (5, 2), (3, 66), (64, 1), (130, 0), (2**40, 3)]  # some larger than there are tokens, sinks more than the window


@pytest.mark.parametrize("format, policy, error", [("auto", "exact", 3e-4), ("auto", "tight", 5e-3), ("float<8,4,4>", "exact", 1e-4)])
@pytest.mark.parametrize("tokens", [67, 2050])
def test_one_kernel_for_all_numbers(rng, format, policy, error, tokens):
    cache, k, v = filled(rng, tokens, 2, dim=64, format=format)
    q = half(rng, 1, 4, 3, 64)
    cache.attend(q, policy=policy, causal=True, window=7, sinks=1, softcap=3.0)
    before = attention._compiled.cache_info().misses
    for window in (1, 2, 3, 5, 8, 63, 64, 65, 1000, 2**62):
        assert np.abs(cache.attend(q, policy=policy, causal=True, window=window, softcap=3.0) - masked_attention(q, k, v, causal=True, window=window, softcap=3)[0]).max() <= error
    for cap in (1e-30, 0.5, 1.1, 7.0, 50.0):
        assert np.abs(cache.attend(q, policy=policy, causal=True, window=90, softcap=cap) - masked_attention(q, k, v, causal=True, window=90, softcap=cap)[0]).max() <= error
    for sinks in (0, 1, 4, 65, 2**40):
        assert np.abs(cache.attend(q, policy=policy, causal=True, window=3, sinks=sinks, softcap=3.0) - masked_attention(q, k, v, causal=True, window=3, sinks=sinks, softcap=3)[0]).max() <= error
    assert attention._compiled.cache_info().misses == before
    cache.attend(q, policy=policy, window=7)
    before = attention._compiled.cache_info().misses
    for window, sinks in WINDOWS:
        assert np.abs(cache.attend(q, policy=policy, window=window, sinks=sinks) - masked_attention(q, k, v, window=window, sinks=sinks)[0]).max() <= error
    assert attention._compiled.cache_info().misses == before


STORAGES = {  # policy, format, options, head_dim
    "exact planes": ("<exact>", "auto", "", 64),
    "planes": ("<budget, tolerance = 0.001953125>", "auto", "", 64),
    "on any machine": ("<budget, tolerance = 0.001953125>", "auto", "isa=portable", 64),
    "float planes": ("<alignedkv>", "float<8,4,4>", "", 64),
    "exact float planes": ("<exact>", "float<8,4,4>", "", 64),
    "dense": ("<exact>", None, "", 64),
    "padded": ("<exact>", None, "", 20),
    "in linalg": ("<exact>", None, "", 272),
    "dense copy": ("<budget, tolerance = 0.001953125>", "auto", "dense-up-to=4096", 64),
    "reference": ("<budget, tolerance = 0.001953125>", "auto", "target=reference", 64),
    "reference state": ("<exact>", "float<8,4,4>", "target=reference", 64),
}


@pytest.mark.parametrize("storage", STORAGES)
def test_numbers_that_are_given_are_as_good_as_known_ones(rng, storage):
    policy, format, options, dim = STORAGES[storage]
    certify = "reference" not in storage
    for tokens in (3, 65, 331) if options or dim != 64 else (3, 65, 331, 2050):
        if format:
            cache, k, v = filled(rng, tokens, 2, dim=dim, format=format, **({"dense_up_to": 4096} if "dense-up" in options else {}))
            arrays, types = (cache._key, cache._value), [cache._type(role, 1, cache._key.planes) for role in ("key", "value")]
        else:
            k, v = arrays = [half(rng, 1, 2, tokens, dim) for _ in "kv"]
            types = 2 * [f"tensor<1x2x?x{dim}xf16>"]
        q, scale = half(rng, 1, 4, 2, dim), np.float32(dim**-0.5)

        def run(scoring, *numbers):
            kernel = attention.Kernel(1, 2, 2, 2, "f16", *types, dim, dim, scoring, policy, False, None, False, certify, options)
            return attention._compiled(kernel)._call_with_reads(q, *arrays, scale, *numbers)

        for (window, sinks), later in zip(WINDOWS, (0, 1, 0, 2, 0, 0)):
            place = f"mask <causal, window = {window}, sinks = {sinks}>"
            got, reads = run(GIVEN.replace(" softcap %cap", ""), np.int64(window), np.int64(sinks), np.int64(later))
            known, known_reads = run(f" {place}", np.int64(later))
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, known)) and reads == known_reads
            out, *_ = run(GIVEN, np.float32(2.5), np.int64(window), np.int64(sinks), np.int64(later))[0]
            known, *_ = run(f" softcap 2.5 {place}", np.int64(later))[0]
            assert np.allclose(out, known, 0, 2.0**-8 if "budget" in policy else 1e-5, equal_nan=True)
            if tokens > 3:
                usual = 2.0**-7 if "budget" in policy else 0.02 if policy == "<alignedkv>" else 4e-4
                assert np.abs(out - masked_attention(q, k, v, causal=True, window=window, sinks=sinks, softcap=2.5, later=later)[0]).max() <= 4 * usual


@pytest.mark.parametrize("format", ["auto", "float<8,4,4>", None])
def test_numbers_that_no_attribute_may_be_are_refused(rng, format):
    """More tokens than any cache has are as many as there may be."""
    cache, k, v = filled(rng, 200, 2, format=format or "auto")
    q, scale = half(rng, 1, 4, 2, 32), np.float32(32**-0.5)
    types = [cache._type(role, 1, cache._key.planes) for role in ("key", "value")] if format else 2 * ["tensor<1x2x?x32xf16>"]
    module = alignedkv.Module(attention.Kernel(1, 2, 2, 2, "f16", *types, 32, 32, GIVEN, "<exact>", False, None, False, False, "").text())

    def run(cap, window, sinks):
        return module._call_with_reads(q, *((cache._key, cache._value) if format else (k, v)), scale, np.float32(cap), np.int64(window), np.int64(sinks), np.int64(0))[0][0]

    for large, largest in [((3, 2**62, 5), (3, 2**40, 5)), ((3, 5, 2**63 - 1), (3, 5, 2**40))]:
        assert np.isfinite(run(*large)).all() and (run(*large) == run(*largest)).all()
    for numbers, message in [((3, 0, 0), "a window of 1 token or more"), ((3, -(2**63), 0), "a window of 1 token or more"), ((3, 5, -1), "0 sinks or more"),
                             ((0, 5, 0), "a softcap from 1e-30 to 1e+30"), ((-4, 5, 0), "a softcap from 1e-30"), ((np.inf, 5, 0), "a softcap from 1e-30"), ((np.nan, 5, 0), "a softcap from 1e-30")]:
        with pytest.raises(alignedkv.Error, match=re.escape(f"expected {message}")):
            run(*numbers)
