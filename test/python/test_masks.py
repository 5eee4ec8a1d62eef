"""Masks by numbers and sinks (P8): operands of attention, against NumPy in float64, over every storage."""
import re

import alignedkv
from conftest import exact_attention
import numpy as np
import pytest

HEADS, KV_HEADS, QUERIES, DIM = 4, 2, 2, 64


def attention(q, k, v, mask, sinks, softcap):
    group = HEADS // k.shape[1]
    scores = np.einsum("bhqd,bhtd->bhqt", q.astype(float), np.repeat(k, group, 1).astype(float)) / 8
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    top = scores.max(-1, keepdims=True)
    own = 0
    if sinks is not None:
        logits = sinks.astype(float)[None, :, None, None]
        top = np.maximum(top, logits)
        own = np.exp(logits - top)
    weights = np.exp(scores - top)
    return np.einsum("bhqt,bhtd->bhqd", weights / (weights.sum(-1, keepdims=True) + own), np.repeat(v, group, 1).astype(float))


def text(element, shape, sinks, softcap, kv_heads=KV_HEADS):
    """Attention over dense tensors that may be packed, with the operands that are asked for."""
    types = f"tensor<1x{HEADS}x{QUERIES}x{DIM}xf16>, " + ", ".join(2 * [f"tensor<1x{kv_heads}x?x{DIM}xf16>"])
    arguments = [f"%{name}: {type}" for name, type in zip("qkv", types.split(", "))]
    operands = f"softcap {softcap:.1f} " if softcap else ""
    if element:
        arguments.append(f"%m: tensor<{shape}x?x{element}>")
        operands += f"attn_mask %m : tensor<{shape}x?x{element}> "
    if sinks:
        arguments.append(f"%s: tensor<{HEADS}xf32>")
        operands += f"sink_logits %s : tensor<{HEADS}xf32> "
    out = f"tensor<1x{HEADS}x{QUERIES}x{DIM}xf32>"
    return (f"func.func @f({', '.join(arguments)}) -> {out} {{\n  %scale = arith.constant 0.125 : f32\n"
            f"  %out = aligned.attention %q, %k, %v scale %scale {operands}: {types} -> {out}\n  return %out : {out}\n}}\n")


def numbers(rng, element, shape, tokens):
    """The mask as an argument, and what it adds."""
    shape = [int(size) for size in shape.split("x")] + [tokens]
    if element == "i1":
        seen = rng.random(shape) > 0.3
        return seen, np.where(seen, 0, -np.inf)
    added = rng.standard_normal(shape).astype(np.float32)
    added[rng.random(shape) > 0.8] = -np.inf
    if element == "f16":
        added = added.astype(np.float16)
    return added, added.astype(float)


@pytest.mark.parametrize("softcap", [0, 20.0])
@pytest.mark.parametrize("element, shape, sinks, kv_heads", [("f16", "1x4x2", True, 2), ("i1", "1x1x2", False, 2), ("f32", "1x4x1", True, 2), ("i1", "1x4x2", True, 2),
                                                             (None, "", True, 1)])
@pytest.mark.parametrize("policy, format, tolerance", [("exact", "auto", 3e-4), ("tight", "auto", 6e-3), ("exact", "dense", 1e-5), ("exact", "float<8,4,4>", 1e-5)])
def test_masks_and_sinks(policy, format, tolerance, element, shape, sinks, kv_heads, softcap):
    rng = np.random.default_rng(7)
    model = alignedkv.compile(text(element, shape, sinks, softcap, kv_heads), policy=policy, format=format)
    for tokens in (63, 300, 2500):
        q = (2 * rng.standard_normal((1, HEADS, QUERIES, DIM))).astype(np.float16)
        k, v = rng.standard_normal((2, 1, kv_heads, tokens, DIM)).astype(np.float16)
        arguments, added, logits = [q, k, v], None, None
        if format != "dense":
            caches = [model.new_cache(index) for index in (1, 2)]
            for cache, values in zip(caches, (k, v)):
                cache.append(values)
            arguments[1:] = caches
        if element:
            argument, added = numbers(rng, element, shape, tokens)
            arguments.append(argument)
        if sinks:
            logits = rng.standard_normal(HEADS).astype(np.float32) + 3
            arguments.append(logits)
        out = np.asarray(model(*arguments))
        expected = attention(q, k, v, added, logits, softcap)
        assert np.abs(out - expected).max() <= tolerance


@pytest.mark.parametrize("softcap", [0, 2.0])
@pytest.mark.parametrize("policy, format", [("exact", "auto"), ("tight", "auto"), ("exact", "dense"), ("exact", "float<8,4,4>")])
def test_numbers_of_tokens_that_are_not_seen_say_nothing(rng, policy, format, softcap):
    """The first query does not see the newest token, whatever the mask says of it."""
    model = alignedkv.compile(text("f32", "1x1x2", False, softcap).replace("attn_mask", "mask <causal> attn_mask", 1), policy=policy, format=format)
    for tokens in (2, 70, 2049):
        q = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float16)
        k, v = rng.standard_normal((2, 1, KV_HEADS, tokens, DIM)).astype(np.float16)
        caches = [k, v]
        if format != "dense":
            caches = [model.new_cache(index) for index in (1, 2)]
            for cache, values in zip(caches, (k, v)):
                cache.append(values)
        mask = rng.standard_normal((1, 1, QUERIES, tokens)).astype(np.float32)
        expected = np.asarray(model(q, *caches, mask))
        assert np.isfinite(expected).all()
        for number in (np.nan, np.inf, 3e38):
            mask[0, 0, 0, -1] = number
            assert (np.asarray(model(q, *caches, mask)) == expected).all()


def test_wrong_shapes_are_refused():
    good = text("f32", "1x4x1", True, 0)
    for wrong, message in ((good.replace("1x4x1x?xf32", "1x3x1x?xf32"), "expected attn_mask dimension 1 (q_heads) to be 4 or 1, got 3"),
                           (good.replace("1x4x1x?xf32", "1x4x1x?xf64"), "must be f32, f16, bf16 or i1"),
                           (good.replace("tensor<4xf32>", "tensor<5xf32>"), "expected a sink logit for each of 4 query heads, got 5")):
        with pytest.raises(ValueError, match=re.escape(message)):
            alignedkv.compile(wrong)


def test_a_mask_of_another_length_is_refused():
    model = alignedkv.compile(text("f32", "1x1x1", False, 0), format="dense")
    q, k = np.zeros((1, HEADS, QUERIES, DIM), np.float16), np.zeros((1, KV_HEADS, 8, DIM), np.float16)
    with pytest.raises(ValueError, match="attn_mask"):
        model(q, k, k, np.zeros((1, 1, 1, 7), np.float32))


@pytest.mark.parametrize("format", ["auto", "dense"])
def test_wrong_masks_change_nothing(rng, format):
    model = alignedkv.compile(text("f32", "1x4x1", True, 0), policy="exact", format=format)
    q, k = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float16), rng.standard_normal((1, KV_HEADS, 70, DIM)).astype(np.float16)
    mask, logits, caches = np.zeros((1, HEADS, 1, 70), np.float32), np.zeros(HEADS, np.float32), [k, k]
    if format == "auto":
        caches = [model.new_cache(1), model.new_cache(2)]
        for cache in caches:
            cache.append(k)
    out = np.asarray(model(q, *caches, mask, logits))
    for wrong, message in (((mask.astype(np.float64), logits), "expected float32 of argument 3, got float64"),
                           ((mask > 0, logits), "expected float32 of argument 3, got bool"),
                           ((mask[0], logits), "expected rank 4 of argument 3, got 3"),
                           ((mask[:, :1], logits), "expected shape [1, 4, 1, ?] of argument 3, got [1, 1, 1, 70]"),
                           ((mask[..., :69], logits), "expected attn_mask and key to agree in"),
                           ((None, logits), "as argument 3, got NoneType"),
                           ((mask, logits[:3]), "expected shape [4] of argument 4, got [3]"),
                           ((mask, logits.astype(np.float16)), "expected float32 of argument 4, got float16")):
        with pytest.raises(alignedkv.Error, match=re.escape(message)):
            model(q, *caches, *wrong)
    assert (np.asarray(model(q, *caches, mask, logits)) == out).all()
    # A mask of any strides is read as it is.
    wide = np.full((1, HEADS, 3, 140), -np.inf, np.float32)
    wide[:, :, 1:2, ::2] = mask
    assert (np.asarray(model(q, *caches, wide[:, :, 1:2, ::2], logits)) == out).all()


@pytest.mark.parametrize("policy, tolerance", [("exact", 3e-4), ("tight", 6e-3)])
@pytest.mark.parametrize("element, shape", [("f16", (1, 4, 2, 130)), ("f32", (2, 130)), ("i1", (4, 1, 130)), ("i1", (130,))])
def test_a_cache_takes_masks_and_sinks(rng, element, shape, policy, tolerance):
    k, v = rng.standard_normal((2, 1, KV_HEADS, 130, DIM)).astype(np.float16)
    q = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float32)
    sinks = rng.standard_normal(HEADS)
    mask, added = numbers(rng, element, "x".join(map(str, shape[:-1])) or "1", 130)
    mask, added = mask.reshape(shape), added.reshape(shape)
    cache = alignedkv.KVCache(KV_HEADS, DIM)
    cache.append(k, v)
    out = cache.attend(q, policy=policy, mask=mask, sink_logits=sinks)
    np.testing.assert_allclose(out, attention(q, k, v, added, sinks, 0), atol=tolerance)
    np.testing.assert_allclose(cache.attend(q, policy=policy, mask=mask, softcap=20.0), attention(q, k, v, added, None, 20.0), atol=tolerance)


def test_a_cache_refuses_other_masks(rng):
    cache = alignedkv.KVCache(KV_HEADS, DIM)
    cache.append(*rng.standard_normal((2, 1, KV_HEADS, 65, DIM)).astype(np.float16))
    q = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float32)
    for mask, message in [
        (np.zeros(64, np.float32), r"expected mask to be [batch, q_heads, queries, tokens] = [1, 4, 2, 65], where the first three may be 1 or absent, got [64]"),
        (np.zeros((3, 2, 65), np.float32), r"got [3, 2, 65]"),
        (np.zeros((1, 1, 1, 1, 65), np.float32), r"got [1, 1, 1, 1, 65]"),
        (np.zeros(65), "expected mask of float16, bfloat16, float32 or bool, got float64"),
        (np.zeros(65, np.int8), "got int8"),
        ("mask", "expected an array as mask, got str"),
    ]:
        with pytest.raises(alignedkv.Error, match=re.escape(message)):
            cache.attend(q, mask=mask)
    with pytest.raises(alignedkv.Error, match=re.escape("expected sink_logits to be [q_heads] = [4], got [2]")):
        cache.attend(q, sink_logits=np.zeros(2))
    with pytest.raises(alignedkv.Error, match="expected sink_logits to be an array of numbers, got str"):
        cache.attend(q, sink_logits="none")
    assert np.isfinite(cache.attend(q)).all()


@pytest.mark.parametrize("format", ["fixed<4,4,8>", "float<8,4,4>"])
@pytest.mark.parametrize("low", [np.finfo(np.float32).min, -1e38, -1e9])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_a_low_number_hides_nothing(rng, format, low, softcap):
    """A row of nothing but the lowest float is one of equal scores, as float arithmetic has it; beside others it has no weight."""
    k, v = rng.standard_normal((2, 1, KV_HEADS, 70, DIM)).astype(np.float16)
    q = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float32)
    cache = alignedkv.KVCache(KV_HEADS, DIM, format=format)
    cache.append(k, v)
    mask = np.zeros((QUERIES, 70), np.float32)
    mask[0], mask[1, 3:] = low, low
    out = cache.attend(q, policy="exact", mask=mask, softcap=softcap)
    np.testing.assert_allclose(out[:, :, 0], np.repeat(v.astype(float).mean(2), HEADS // KV_HEADS, 1), atol=3e-4)
    np.testing.assert_allclose(out[:, :, 1], attention(q, k[:, :, :3], v[:, :, :3], None, None, softcap or 0)[:, :, 1], atol=3e-4)


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("policy, tolerance", [("exact", 3e-4), ("tight", 6e-3), ("fast", 6e-2)])
@pytest.mark.parametrize("element, heads, queries", [("i1", 1, 1), ("f32", HEADS, QUERIES), ("f16", 1, QUERIES)])
def test_tiles_that_a_mask_hides_are_not_read(rng, element, heads, queries, policy, tolerance, softcap):
    """Of 10 tiles, the last a short one, the queries see some of three; what the others hold says nothing, kept aside or not."""
    tokens, tiles = 600, [0, 4, 9]
    k, v = rng.standard_normal((2, 1, KV_HEADS, tokens, DIM)).astype(np.float16)
    seen = np.zeros((1, heads, queries, tokens), bool)
    for tile in tiles:
        seen[..., 64 * tile : 64 * tile + 20] = rng.random((1, heads, queries, len(range(64 * tile, min(64 * tile + 20, tokens))))) > 0.3
    seen[..., 7] = True
    k[:, :, 100], v[:, :, 150, 5], v[:, :, 300] = np.nan, np.inf, 1e4
    seen[..., 300] = False
    mask, added = seen, np.where(seen, 0, -np.inf)
    if element != "i1":
        mask = np.where(seen, rng.standard_normal(seen.shape), -np.inf).astype({"f16": np.float16, "f32": np.float32}[element])
        added = mask.astype(float)
    cache = alignedkv.KVCache(KV_HEADS, DIM)
    cache.append(k, v)
    q = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float32)
    out = cache.attend(q, policy=policy, mask=mask, softcap=softcap)
    held = [token for tile in tiles for token in range(64 * tile, min(64 * tile + 64, tokens)) if token != 300]
    expected = attention(q, k[:, :, held], v[:, :, held], np.broadcast_to(added, (1, heads, queries, tokens))[..., held], None, softcap or 0)
    np.testing.assert_allclose(out, expected, atol=tolerance * 10 if policy == "fast" else tolerance)
    tokens_read = KV_HEADS * (64 + 64 + tokens - 9 * 64)
    assert cache.reads["key_bits"] <= tokens_read * (16 * DIM + 8) and cache.reads["value_bits"] <= tokens_read * (16 * DIM + 8)
    assert cache.reads["key_bits"] >= tokens_read * (4 * DIM + 8)
    certified, bound, _ = cache.attend(q, policy=policy, mask=mask, softcap=softcap, certify=True)
    assert (np.abs(certified - expected).max(-1) <= bound + 1e-5).all()


def test_a_mask_that_hides_all(rng):
    cache = alignedkv.KVCache(KV_HEADS, DIM)
    cache.append(*rng.standard_normal((2, 1, KV_HEADS, 130, DIM)).astype(np.float16))
    q = rng.standard_normal((1, HEADS, QUERIES, DIM)).astype(np.float32)
    assert np.isnan(cache.attend(q, policy="tight", mask=np.zeros(130, bool))).all()
    assert cache.reads["key_bits"] == 0 and cache.reads["value_bits"] == 0
    assert (cache.attend(q, policy="tight", mask=np.zeros(130, bool), sink_logits=np.zeros(HEADS)) == 0).all()


@pytest.mark.parametrize("format", ["fixed<4,4,8>", "float<8,4,4>"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bounds_count_what_large_masks_round(rng, format, dtype):
    """Where all tokens that are seen have a mask of -10000, scores of f32 are off by 2^-11 beside it."""
    for seed in range(20):
        q, k, v = (np.random.default_rng(seed).standard_normal((1, heads, tokens, 80)).astype(np.float16) for heads, tokens in ((4, 5), (2, 3), (2, 3)))
        cache = alignedkv.KVCache(2, 80, format=format)
        cache.append(k, v)
        out, bound, _ = cache.attend(q, policy="exact", mask=np.full((5, 3), -9984, dtype), certify=True)
        assert (np.abs(out - exact_attention(q, k, v)).max(-1) <= bound).all()
