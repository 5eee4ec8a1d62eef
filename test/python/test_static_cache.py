"""Caches made for a largest number of tokens, which a model updates in place at a position."""

import re

import alignedkv
import numpy as np
import pytest
from conftest import exact_attention, relative_error

MOST, KV_HEADS, HEADS, DIM = 130, 2, 6, 32


def step_text(element="f16"):
    """A decode step over tokens up to the new one, in what raising finds updates written with."""
    new, cache, q = f"tensor<1x{KV_HEADS}x1x{DIM}x{element}>", f"tensor<1x{KV_HEADS}x{MOST}x{DIM}x{element}>", f"tensor<1x{HEADS}x1x{DIM}xf32>"
    return f"""
    func.func @step(%q: {q}, %kn: {new}, %vn: {new}, %k: {cache}, %v: {cache}, %position: tensor<i64>) -> ({q}, {cache}, {cache}) {{
      %number = tensor.extract %position[] : tensor<i64>
      %at = arith.index_cast %number : i64 to index
      %scale = arith.constant 0.25 : f32
      %k1 = aligned.append %kn at %at to %k : {new} to {cache} -> {cache}
      %v1 = aligned.append %vn at %at to %v : {new} to {cache} -> {cache}
      %e = tensor.empty() : tensor<1x1x1x{MOST}xi1>
      %seen = linalg.generic {{indexing_maps = [affine_map<(b, h, i, t) -> (b, h, i, t)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
          outs(%e : tensor<1x1x1x{MOST}xi1>) {{
        ^bb0(%out: i1):
          %t = linalg.index 3 : index
          %is = arith.cmpi sle, %t, %at : index
          linalg.yield %is : i1
      }} -> tensor<1x1x1x{MOST}xi1>
      %o = aligned.attention %q, %k1, %v1 scale %scale attn_mask %seen : tensor<1x1x1x{MOST}xi1> : {q}, {cache}, {cache} -> {q}
      return %o, %k1, %v1 : {q}, {cache}, {cache}
    }}"""


def caches_of(step, format):
    """Zeros, as a model makes them."""
    zeros = np.zeros((1, KV_HEADS, MOST, DIM), np.float16)
    if format == "dense":
        return [zeros, zeros]
    caches = [step.new_cache(3), step.new_cache(4)]
    for cache in caches:
        cache.append(zeros)
    return caches


@pytest.mark.parametrize("policy, format, tolerance", [("exact", "auto", 1e-3), ("tight", "auto", 2e-2), ("exact", "float<8,4,4>", 1e-3), ("exact", "dense", 1e-5)])
def test_a_step_at_a_position(rng, policy, format, tolerance):
    step = alignedkv.compile(step_text(), policy=policy, format=format)
    caches = caches_of(step, format)
    k, v = np.zeros((2, 1, KV_HEADS, MOST, DIM), np.float16)  # what they should hold
    for t in [0, 1, 2, 3, 63, 64, 65, MOST - 1, 3, 64]:  # a position may come again
        k[:, :, t], v[:, :, t] = rng.standard_normal((2, 1, KV_HEADS, DIM))
        q = rng.standard_normal((1, HEADS, 1, DIM)).astype(np.float32)
        out, *new = step(q, k[:, :, t : t + 1], v[:, :, t : t + 1], *caches, np.array(t))
        assert relative_error(out.astype(float), exact_attention(q, k[:, :, : t + 1], v[:, :, : t + 1], 0.25)) <= tolerance
        if format != "dense":
            assert new[0] is caches[0] and new[1] is caches[1] and len(new[0]) == MOST
        caches = new


@pytest.mark.parametrize("format", ["auto", "dense"])
@pytest.mark.parametrize("position", [-1, MOST, 2**62])
def test_positions_beyond_the_cache_are_refused(rng, position, format):
    step = alignedkv.compile(step_text(), format=format)
    caches, new = caches_of(step, format), np.ones((1, KV_HEADS, 1, DIM), np.float16)
    with pytest.raises(alignedkv.Error, match=re.escape("'aligned.append' op expected positions of the cache's tokens")):
        step(np.zeros((1, HEADS, 1, DIM), np.float32), new, new, *caches, np.array(position))
    if format != "dense":
        assert all(not cache.to_numpy().any() for cache in caches)


def test_the_old_cache_is_still_there(rng):
    """Where a model returns what was there before, too, the update happens in a copy."""
    text = step_text().replace("return %o, %k1, %v1", "return %o, %k, %v1")
    step = alignedkv.compile(text, policy="exact")
    caches, new = caches_of(step, "auto"), rng.standard_normal((1, KV_HEADS, 1, DIM)).astype(np.float16)
    out, k, v = step(np.ones((1, HEADS, 1, DIM), np.float32), new, new, *caches, np.array(5))
    assert np.isfinite(out).all() and not k.to_numpy().any() and v.to_numpy()[:, :, 5].any()
