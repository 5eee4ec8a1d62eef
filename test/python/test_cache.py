"""KVCache against float64: what is stored, what attention over it gives and reads, what it refuses."""

import gc
import threading

import numpy as np
import pytest
from conftest import HEADS, TOKENS, exact_attention, from_bfloat16_bits, relative_error, storage_bound, to_bfloat16_bits

import alignedkv

# Aimed relative error, and twice that allowed: a tolerance is aimed at, not promised. 'exact' has the rounding to 16 bits left.
POLICIES = {"exact": 2e-4, "tight": 2 * 2.0**-11, "balanced": 2 * 2.0**-8, "fast": 2 * 2.0**-6}


def half(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


def filled(rng, tokens, heads, batch=1, dim=32, **options):
    cache = alignedkv.KVCache(heads, dim, batch=batch, **options)
    k, v = half(rng, batch, heads, tokens, dim), half(rng, batch, heads, tokens, cache.value_dim)
    cache.append(k, v)
    return cache, k, v


def bits_read(cache):
    return cache.reads["key_bits"] + cache.reads["value_bits"]


# Storage


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_fixed_planes_keep_the_bound_of_s1(rng, tokens, heads, bits):
    cache, k, v = filled(rng, tokens, heads)
    assert len(cache) == tokens
    for role, x, joined in zip(("key", "value"), (k, v), cache.to_numpy(bits)):
        assert joined.shape == x.shape and joined.dtype == np.float16
        error = np.abs(joined.astype(np.float64) - x)
        assert (error <= storage_bound(x, role, bits) + np.abs(joined) * 2.0**-11).all()  # rounded to half again


def test_fewer_bits_break_the_bound_of_more(rng):
    cache, k, _ = filled(rng, 64, 3)
    error = np.abs(cache.to_numpy(4)[0].astype(np.float64) - k)
    assert (error > storage_bound(k, "key", 8) + np.abs(k) * 2.0**-11).any()


@pytest.mark.parametrize("tokens", TOKENS)
def test_float_planes_are_bit_exact(rng, tokens):
    cache, k, v = filled(rng, tokens, 3, format="float<8,4,4>")
    for x, joined in zip((k, v), cache.to_numpy()):
        assert (joined.view(np.uint16) == x.view(np.uint16)).all()


def test_float_planes_read_in_part_are_not(rng):
    cache, k, _ = filled(rng, 64, 3, format="float<8,4,4>")
    assert (cache.to_numpy(8)[0] != k).any()


def test_float32_tokens_keep_16_bits(rng):
    cache = alignedkv.KVCache(3, 32, dtype=np.float32)
    k, v = (rng.standard_normal((1, 3, 97, 32)).astype(np.float32) for _ in "kv")
    cache.append(k, v)
    joined = cache.to_numpy()[0]
    assert joined.dtype == np.float32 and (joined[:, :, :64] != k[:, :, :64]).any() and (joined[:, :, 64:] == k[:, :, 64:]).all()
    assert (np.abs(joined - k) <= storage_bound(k, "key", 16) + np.abs(joined) * 2.0**-23).all()


def test_pieces_make_the_same_cache_as_one_append(rng):
    whole, k, v = filled(rng, 97, 3)
    pieces = alignedkv.KVCache(3, 32)
    for begin, end in [(0, 1), (1, 1), (1, 63), (63, 65), (65, 97)]:
        pieces.append(k[:, :, begin:end], v[:, :, begin:end])
    for a, b in zip(whole.to_numpy(4), pieces.to_numpy(4)):
        assert (a == b).all()


def test_any_strides_are_appended(rng):
    k, v = half(rng, 2, 65, 3, 32).swapaxes(1, 2), half(rng, 2, 3, 65, 64)[..., ::-2]
    k.flags.writeable = False
    strided, packed = (alignedkv.KVCache(3, 32, batch=2) for _ in "ab")
    strided.append(k, v)
    packed.append(k.copy(), v.copy())
    for a, b in zip(strided.to_numpy(), packed.to_numpy()):
        assert (a == b).all()


def test_memory_is_what_16_bits_and_exponents_take(rng):
    cache, k, v = filled(rng, 6400, 1)
    dense = k.nbytes + v.nbytes
    assert dense <= cache.nbytes <= 1.1 * dense
    assert alignedkv.KVCache(1, 32).nbytes < dense / 50


def test_results_outlive_the_cache(rng):
    cache, k, _ = filled(rng, 65, 3, format="float<8,4,4>")
    joined, out = cache.to_numpy()[0], cache.attend(k[:, :, -1:], policy="exact")
    expected = out.copy()
    del cache
    gc.collect()
    assert (joined == k).all() and (out == expected).all()


# Attention


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("heads", HEADS)
def test_attention_keeps_its_tolerance(rng, heads, policy):
    for tokens in TOKENS + [640]:
        cache, k, v = filled(rng, tokens, heads)
        q = half(rng, 1, 2 * heads, 1, 32)
        out = cache.attend(q, policy=policy)
        assert out.dtype == np.float32
        assert relative_error(out, exact_attention(q, k, v)) <= POLICIES[policy], f"{tokens} tokens"


def test_fast_does_not_keep_the_tolerance_of_exact(rng):
    cache, k, v = filled(rng, 640, 3)
    q = half(rng, 1, 6, 1, 32)
    assert relative_error(cache.attend(q, policy="fast"), exact_attention(q, k, v)) > POLICIES["exact"]


def test_coarser_policies_read_less(rng):
    cache, k, _ = filled(rng, 640, 3)
    read = []
    for policy in POLICIES:  # from the finest to the coarsest
        cache.attend(k[:, :, -1:], policy=policy)
        assert cache.reads["key_values"] == cache.reads["value_values"] == k.size
        read.append(bits_read(cache))
    assert read == sorted(read, reverse=True) and read[-1] < read[0] / 2
    # Exactly: every bit of 640 x 32 keys and values of 3 heads, a byte for each key channel of a block and for each value token.
    assert read[0] == 2 * 16 * k.size + 8 * 3 * (10 * 32 + 640)


def test_a_budget_of_ones_own(rng):
    cache, k, v = filled(rng, 640, 3)
    q = half(rng, 1, 6, 1, 32)
    assert relative_error(cache.attend(q, policy="budget", tolerance=0.01), exact_attention(q, k, v)) <= 0.02
    rough = bits_read(cache)
    cache.attend(q, policy="budget", tolerance=0.0001)
    assert bits_read(cache) > rough


@pytest.mark.parametrize("policy, bound", [("exact", 1e-6), ("alignedkv", 0.1)])
def test_float_planes_attend(rng, policy, bound):
    cache, k, v = filled(rng, 97, 3, format="float<8,4,4>")
    q = half(rng, 1, 6, 1, 32)
    assert relative_error(cache.attend(q, policy=policy), exact_attention(q, k, v)) <= bound


@pytest.mark.parametrize("queries", [0, 1, 5, 33])
def test_batch_groups_queries_and_value_dim(rng, queries):
    cache, k, v = filled(rng, 65, 3, batch=2, value_dim=48)
    q = half(rng, 2, 9, queries, 32)
    out = cache.attend(q, scale=0.3, policy="exact")
    assert relative_error(out, exact_attention(q, k, v, 0.3)) <= POLICIES["exact"]


def test_heads_are_not_mixed_up(rng):
    cache, k, v = filled(rng, 65, 3, batch=2)
    q = half(rng, 2, 9, 1, 32)
    out = cache.attend(q, policy="exact")
    assert relative_error(out, exact_attention(q, k[:, ::-1], v[:, ::-1])) > 0.1
    assert relative_error(out, exact_attention(q, k[::-1], v[::-1])) > 0.1


@pytest.mark.parametrize("form", ["uint16", "ml_dtypes"])
@pytest.mark.parametrize("format", ["fixed<4,4,4,4>", "float<12,4>"])
def test_bfloat16(rng, form, format):
    bits = [to_bfloat16_bits(rng.standard_normal((1, heads, 97, 32))) for heads in (6, 3, 3)]
    q, k, v = (from_bfloat16_bits(x) for x in bits)
    if form == "ml_dtypes":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
        bits = [x.view(dtype) for x in bits]
    cache = alignedkv.KVCache(3, 32, dtype="bfloat16", format=format)
    cache.append(bits[1], bits[2])
    out = cache.attend(bits[0][:, :, :1], policy="exact")
    assert relative_error(out, exact_attention(q[:, :, :1], k, v)) <= POLICIES["exact"]
    joined = cache.to_numpy()[0]
    assert joined.dtype == np.uint16
    if format.startswith("float"):
        assert (joined == to_bfloat16_bits(k)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_queries_have_a_dtype_of_their_own(rng, dtype):
    cache, k, v = filled(rng, 65, 1)
    q = rng.standard_normal((1, 1, 1, 32)).astype(dtype)
    assert relative_error(cache.attend(q, policy="exact"), exact_attention(q, k, v)) <= POLICIES["exact"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", ["exact", "balanced"])
@pytest.mark.parametrize("token", [5, 64], ids=["split", "open"])
def test_s7_values_that_are_not_finite_stay_in_their_channel(rng, bad, policy, token):
    k, v = half(rng, 1, 3, 65, 32), half(rng, 1, 3, 65, 32)
    v[0, 1, token, 7] = bad
    cache = alignedkv.KVCache(3, 32)
    cache.append(k, v)
    q = half(rng, 1, 3, 1, 32)
    out, expected = cache.attend(q, policy=policy), exact_attention(q, k, v)
    odd = ~np.isfinite(expected)
    assert odd.sum() == 1 and odd[0, 1, 0, 7]
    np.testing.assert_array_equal(out[odd], expected[odd].astype(np.float32))
    assert relative_error(out[:, ::2], expected[:, ::2]) <= POLICIES[policy]
    assert (~np.isfinite(out)).sum() == 1
    assert np.array_equal(cache.to_numpy()[1][0, 1, token, 7], bad, equal_nan=True)


def test_s7_a_nan_among_the_keys_stays_in_its_head(rng):
    k, v = half(rng, 1, 3, 65, 32), half(rng, 1, 3, 65, 32)
    k[0, 1, 5, 7] = np.nan
    cache = alignedkv.KVCache(3, 32)
    cache.append(k, v)
    out = cache.attend(half(rng, 1, 3, 1, 32))
    assert np.isnan(out[0, 1]).all() and np.isfinite(out[0, ::2]).all()


def test_threads_take_turns(rng):
    cache, k, v = filled(rng, 0, 3)
    k, v, q = half(rng, 1, 3, 200, 32), half(rng, 1, 3, 200, 32), half(rng, 1, 3, 1, 32)
    done = threading.Event()
    errors = []

    def read():
        while not done.is_set():
            out = cache.attend(q)
            if not np.isfinite(out).all():
                errors.append(out)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for t in range(200):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
    done.set()
    for thread in readers:
        thread.join()
    assert not errors and len(cache) == 200
    assert relative_error(cache.attend(q, policy="exact"), exact_attention(q, k, v)) <= POLICIES["exact"]


# The certificate (P4)


def largest_error(out, expected):
    return np.abs(out - expected).max(-1, initial=0)


@pytest.mark.parametrize("policy, format", [*((policy, "fixed<4,4,4,4>") for policy in POLICIES), ("exact", "float<8,4,4>"), ("alignedkv", "float<8,4,4>")])
@pytest.mark.parametrize("heads", HEADS)
def test_p4_errors_keep_their_bound(rng, heads, policy, format):
    for tokens in TOKENS + [640]:
        cache, k, v = filled(rng, tokens, heads, format=format)
        q = half(rng, 1, 2 * heads, 1, 32)
        out, bound, estimate = cache.attend(q, policy=policy, certify=True)
        assert bound.shape == estimate.shape == q.shape[:3] and bound.dtype == estimate.dtype == np.float32
        assert (largest_error(out, exact_attention(q, k, v)) <= bound).all(), f"{tokens} tokens"
        assert (bound <= (1e-3 if tokens < 64 else 5)).all()  # of values up to about 4


def test_p4_a_bound_follows_the_bits(rng):
    cache, k, v = filled(rng, 64, 3)
    q = half(rng, 1, 6, 1, 32)
    bounds = []
    for planes in (4, 3, 2, 1):
        cache.drop_planes(planes)
        out, bound, _ = cache.attend(q, policy="exact", certify=True)
        error = largest_error(out, exact_attention(q, k, v))
        assert (error <= bound).all()
        assert all((error > 1.5 * finer).any() for finer in bounds[:-1])  # with two planes less, the bound must be another
        bounds.append(bound)
    assert all((finer < coarser).all() for finer, coarser in zip(bounds, bounds[1:]))


@pytest.mark.parametrize("policy", ["tight", "balanced", "fast"])
def test_p4_estimates_are_near_the_errors(rng, policy):
    ratios = []
    for _ in range(8):
        cache, k, v = filled(rng, 640, 3)
        q = half(rng, 1, 6, 1, 32)
        out, _, estimate = cache.attend(q, policy=policy, certify=True)
        expected = exact_attention(q, k, v)
        ratios.append(estimate * np.linalg.norm(expected, axis=-1) / np.linalg.norm(out - expected, axis=-1))
    assert 0.5 < np.median(ratios) < 2 and 0.25 < np.min(ratios) and np.max(ratios) < 4


@pytest.mark.parametrize("queries", [0, 1, 5, 33])
def test_p4_of_batches_and_queries(rng, queries):
    cache, k, v = filled(rng, 65, 3, batch=2, value_dim=48)
    q = half(rng, 2, 9, queries, 32)
    out, bound, estimate = cache.attend(q, scale=0.3, certify=True)
    assert bound.shape == estimate.shape == (2, 9, queries) and (out == cache.attend(q, scale=0.3)).all()
    assert (largest_error(out, exact_attention(q, k, v, 0.3)) <= bound).all()


def test_p4_promises_nothing_where_the_output_is_not_finite(rng):
    cache, k, v = filled(rng, 65, 3)
    q = half(rng, 1, 3, 1, 32)
    q[0, 1, 0, 5] = np.nan
    out, bound, _ = cache.attend(q, certify=True)
    error = largest_error(out, exact_attention(q, k, v))
    assert np.isnan(out[0, 1]).all() and np.isnan(bound[0, 1]).all() and (error <= bound)[0, ::2].all()


# Dropping planes (S6)


@pytest.mark.parametrize("format, planes", [("fixed<4,4,4,4>", 4), ("fixed<8,8>", 2), ("float<8,4,4>", 3)])
def test_s6_dropped_planes_are_gone(rng, format, planes):
    cache, k, v = filled(rng, 97, 3, format=format)
    q = half(rng, 1, 6, 1, 32)
    held, read = [], []
    for kept in range(planes, 0, -1):
        cache.drop_planes(kept)
        held.append(cache.nbytes)
        cache.attend(q, policy="exact")
        read.append(bits_read(cache))
    assert held == sorted(set(held), reverse=True) and read == sorted(set(read), reverse=True)
    widths = [int(width) for width in format[6:-1].split(",")]
    assert held[0] - held[-1] >= 2 * 3 * 64 * 32 * sum(widths[1:]) // 8  # a full block of each side and head
    for x, joined in zip((k, v), cache.to_numpy()):
        assert (joined[:, :, 64:] == x[:, :, 64:]).all() and (joined[:, :, :64] != x[:, :, :64]).any()
    cache.append(k[:, :, :31], v[:, :, :31])  # a block that fills now has no more
    assert len(cache) == 128 and (cache.to_numpy()[0][:, :, 64:97] != k[:, :, 64:97]).any()
    assert np.array_equal(cache.to_numpy()[0], cache.to_numpy(widths[0])[0])


@pytest.mark.parametrize("planes, message", [
    (0, "expected planes to be 1 or more, got 0"), (-1, "expected planes to be 1 or more, got -1"), (3, "expected to keep 1 to 2 planes, got 3"),
    (2**31, "expected planes to be 1 or more"), (1.0, "expected planes to be an integer, got float"), ("2", "expected planes to be an integer, got str"),
    (None, "expected planes to be an integer, got NoneType"),
])
def test_s6_impossible_planes(rng, planes, message):
    cache, _, _ = filled(rng, 64, 3)
    cache.drop_planes(2)
    before = cache.nbytes
    with pytest.raises(alignedkv.Error, match=message):
        cache.drop_planes(planes)
    assert cache.nbytes == before


# What is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(head_dim=24), "multiple of 16"),
        (dict(head_dim=272), "at most 256"),
        (dict(value_dim=8), "multiple of 16"),
        (dict(kv_heads=0), "expected kv_heads to be 1 or more, got 0"),
        (dict(kv_heads=2.5), "expected kv_heads to be an integer, got float"),
        (dict(batch=-1), "expected batch to be 1 or more, got -1"),
        (dict(kv_heads=2**31 - 1, batch=2**31 - 1, head_dim=256), "expected a cache that fits in memory"),
        (dict(dtype="int8"), "expected dtype 'float16', 'bfloat16' or 'float32', got 'int8'"),
        (dict(format="dense"), "expected a format such as"),
        (dict(format="fixed<4,4,4>"), "expected plane widths that sum to 16, got 12"),
        (dict(format="fixed<3,5,8>"), "multiples of 4"),
        (dict(format="float<4,4,8>"), "at least 8 bits"),
        (dict(format="float<8,4,4>", dtype="bfloat16"), "bf16"),
    ],
)
def test_impossible_caches(arguments, message):
    with pytest.raises(alignedkv.Error, match=message) as error:
        alignedkv.KVCache(**{"kv_heads": 3, "head_dim": 32, **arguments})
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    "k, v, message",
    [
        (np.zeros((1, 3, 1, 32), np.float32), None, "expected float16 of tokens, got float32"),
        (np.zeros((1, 3, 1, 32), np.uint16), None, "expected float16 of tokens, got uint16"),
        (np.zeros((3, 1, 32), np.float16), None, "expected rank 4 of tokens, got 3"),
        (np.zeros((1, 2, 1, 32), np.float16), None, r"expected tokens of shape \[1, 3, \?, 32\], got \[1, 2, 1, 32\]"),
        (np.zeros((1, 3, 1, 48), np.float16), None, r"got \[1, 3, 1, 48\]"),
        (np.zeros((2, 3, 1, 32), np.float16), None, r"got \[2, 3, 1, 32\]"),
        (np.zeros((1, 3, 2, 32), np.float16), None, "expected as many keys as values, got 2 and 1 tokens"),
        (np.zeros((1, 3, 1, 32), ">f2"), None, "expected an array of float16"),
        (np.zeros((1, 3, 1, 32), object), None, "expected an array of float16"),
        ([[1.0]], None, "got list"),
        (None, None, "got NoneType"),
        (np.zeros((1, 3, 1, 32), np.float16), np.zeros((1, 3, 1, 16), np.float16), r"expected tokens of shape \[1, 3, \?, 32\]"),
    ],
)
def test_impossible_tokens_change_nothing(rng, k, v, message):
    cache, before, _ = filled(rng, 64, 3, format="float<8,4,4>")
    with pytest.raises(alignedkv.Error, match=message):
        cache.append(k, np.zeros((1, 3, 1, 32), np.float16) if v is None else v)
    assert len(cache) == 64 and (cache.to_numpy()[0] == before).all()


@pytest.mark.parametrize("bits", [0, 17])
def test_impossible_bits(rng, bits):
    with pytest.raises(alignedkv.Error, match=f"expected 1 to 16 bits to read, got {bits}"):
        filled(rng, 64, 3)[0].to_numpy(bits)


@pytest.mark.parametrize(
    "shape, dtype, options, message",
    [
        ((1, 4, 1, 32), "f2", {}, "expected query heads to be a multiple of kv heads, got 4 and 3"),
        ((1, 0, 1, 32), "f2", {}, "expected one query head or more, got none"),
        ((1, 99, 1, 32), "f2", {}, "expected at most 32 query heads per kv head, got 33"),
        ((1, 3, 1, 48), "f2", {}, "agree in head_dim, got 48 and 32"),
        ((2, 3, 1, 32), "f2", {}, "agree in batch, got 2 and 1"),
        ((3, 32), "f2", {}, "rank 4, got float16 of rank 2"),
        ((1, 3, 1, 32), "f8", {}, "got float64 of rank 4"),
        ((1, 3, 1, 32), "f2", dict(policy="best"), "got 'best'"),
        ((1, 3, 1, 32), "f2", dict(policy="exact to=split"), "expected policy to be one word"),
        ((1, 3, 1, 32), "f2", dict(policy="alignedkv"), "expected a key stored as 'float' under policy 'alignedkv'"),
        ((1, 3, 1, 32), "f2", dict(policy="budget"), "expected a tolerance above 0 and below 1"),
        ((1, 3, 1, 32), "f2", dict(policy="budget", tolerance=1), "expected a tolerance above 0 and below 1"),
        ((1, 3, 1, 32), "f2", dict(policy="budget", tolerance=np.nan), "expected a tolerance above 0 and below 1"),
        ((1, 3, 1, 32), "f2", dict(tolerance=0.1), "expected a tolerance only with policy 'budget'"),
        ((1, 3, 1, 32), "f2", dict(tolerance="some"), "expected tolerance to be a number, got 'some'"),
        ((1, 3, 1, 32), "f2", dict(scale=[1.0]), "expected scale to be a number"),
    ],
)
def test_impossible_queries(rng, shape, dtype, options, message):
    cache, _, _ = filled(rng, 64, 3)
    with pytest.raises(alignedkv.Error, match=message):
        cache.attend(np.zeros(shape, dtype), **options)


# Masks and softcap


def scored_attention(q, k, v, causal=False, window=None, sinks=0, softcap=None):
    """Row by row over the tokens that each query sees; NaN where there are none."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    queries, tokens = q.shape[2], k.shape[2]
    out = np.full(q.shape[:3] + v.shape[3:], np.nan)
    t = np.arange(tokens)
    for i in range(queries):
        position = tokens - queries + i
        seen = np.ones(tokens, bool)
        if causal:
            seen &= t <= position
        if window is not None:
            seen &= (position - t < window) | (t < sinks)
        if not seen.any():
            continue
        for h in range(q.shape[1]):
            kv = h // (q.shape[1] // k.shape[1])
            s = np.einsum("bc,btc->bt", q[:, h, i], k[:, kv, seen]) / np.sqrt(q.shape[3])
            if softcap is not None:
                s = softcap * np.tanh(s / softcap)
            p = np.exp(s - s.max(-1, keepdims=True))
            out[:, h, i] = np.einsum("bt,btc->bc", p, v[:, kv][:, seen]) / p.sum(-1, keepdims=True)
    return out


@pytest.mark.parametrize("tokens", [1, 65, 300])
@pytest.mark.parametrize("scoring", [{"causal": True}, {"window": 7, "sinks": 2}, {"causal": True, "window": np.int64(100), "softcap": 1.5}, {"softcap": 2}])
def test_masks_and_softcap(rng, tokens, scoring):
    cache, k, v = filled(rng, tokens, 2)
    q = 3 * half(rng, 1, 4, 3, 32)
    want = scored_attention(q, k, v, **scoring)
    for policy in ("exact", "balanced"):
        out, bound, _ = cache.attend(q, policy=policy, certify=True, **scoring)
        assert (np.isnan(out) == np.isnan(want)).all()
        seen = ~np.isnan(want).any(-1)
        assert relative_error(out[seen], want[seen]).max() <= 2 * POLICIES[policy]
        assert (np.abs(out - want).max(-1)[seen] <= bound[seen]).all()


def test_windows_read_less(rng):
    cache, _, _ = filled(rng, 1000, 2)
    q = half(rng, 1, 4, 1, 32)
    cache.attend(q, policy="exact")
    all_bits = bits_read(cache)
    cache.attend(q, policy="exact", causal=True)
    assert bits_read(cache) == all_bits
    cache.attend(q, policy="exact", window=100)
    assert bits_read(cache) < all_bits / 5


@pytest.mark.parametrize("scoring, message", [
    ({"window": 0}, "expected a window of 1 to"), ({"sinks": 4}, "expected sinks only with a window"), ({"window": 2.5}, "expected window to be an integer, got float"),
    ({"softcap": 0}, "expected a softcap from"), ({"softcap": float("nan")}, "expected a softcap from"), ({"softcap": "high"}, "expected softcap to be a number, got 'high'")])
def test_masks_that_mean_nothing(rng, scoring, message):
    cache, _, _ = filled(rng, 65, 2)
    with pytest.raises(alignedkv.Error, match=message):
        cache.attend(half(rng, 1, 4, 1, 32), **scoring)
