"""KVCache against float64: what is stored, what attention over it gives and reads, what it refuses."""

import copy
import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import HEADS, TOKENS, Stored, errors_of_usual, exact_attention, from_bfloat16_bits, relative_error, to_bfloat16_bits, whole_planes

import alignedkv

PRESETS = {"tight": 2.0**-12, "balanced": 2.0**-9, "fast": 2.0**-7, "draft": 2.0**-6}
# The most that an output row may be off, relative to a usual row of V: a tolerance is aimed at, not promised. 'exact' has the rounding to 16 bits left.
POLICIES = {"exact": 1e-4, **{name: 4 * tolerance for name, tolerance in PRESETS.items()}}
FORMATS = ["fixed<4,4,8>", "fixed<4,4,4,4>", "fixed<8,8>", "fixed<4,8,4>"]


def half(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


def filled(rng, tokens, heads, batch=1, dim=32, **options):
    cache = alignedkv.KVCache(heads, dim, batch=batch, **options)
    k, v = half(rng, batch, heads, tokens, dim), half(rng, batch, heads, tokens, cache.value_dim)
    cache.append(k, v)
    return cache, k, v


def bits_read(cache):
    return cache.reads["key_bits"] + cache.reads["value_bits"]


def bits_a_value(cache):
    return bits_read(cache) / (cache.reads["key_values"] + cache.reads["value_values"])


def assert_same(cache, other, q):
    """Two caches hold the same bits, know the same of them, and attention over them is the same, bit for bit."""
    assert len(cache) == len(other)
    for a, b in zip(cache.to_numpy(), other.to_numpy()):
        np.testing.assert_array_equal(a.view(np.uint16), b.view(np.uint16))
    for policy in ("exact", "balanced", "draft"):
        for a, b in zip(cache.attend(q, policy=policy, certify=True), other.attend(q, policy=policy, certify=True)):
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
        assert cache.reads == other.reads


# Storage


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_s4_fixed_planes_hold_what_the_rules_say(rng, tokens, heads, bits):
    for format in FORMATS:
        cache, k, v = filled(rng, tokens, heads, format=format)
        read = whole_planes(bits, format)
        assert len(cache) == tokens
        for role, x, joined in zip(("key", "value"), (k, v), cache.to_numpy(bits)):
            assert joined.shape == x.shape and joined.dtype == np.float16
            stored, rounding = Stored(x, role), np.abs(joined) * 2.0**-11 + 2.0**-25  # to half again
            assert (np.abs(joined.astype(np.float64) - x) <= stored.bound(read) + rounding).all()
            # Floats of the runtime may round a value the other way: one step of n, which may be a step of the bits that are read.
            off = np.abs(joined - stored.read(read)) - rounding
            assert (off <= 2 * stored.bound(read)).all() and (off > 2 * stored.scale * 2.0**-15).sum() <= 0.01 * off.size


@pytest.mark.parametrize("dim", [16, 48, 80, 96, 256])
def test_s2_any_head_dim_is_rotated(rng, dim):
    cache, k, v = filled(rng, 70, 2, dim=dim)
    for role, x, joined in zip(("key", "value"), (k, v), cache.to_numpy()):
        assert (np.abs(joined.astype(np.float64) - x) <= Stored(x, role).bound(16) + np.abs(x) * 2.0**-10).all()


def test_s2_an_outlier_channel_costs_others_little(rng):
    k, v = half(rng, 1, 2, 128, 64), half(rng, 1, 2, 128, 64)
    k[..., 3] *= 50
    cache = alignedkv.KVCache(2, 64)
    cache.append(k, v)
    others = np.arange(64) != 3
    error = (cache.to_numpy(8)[0].astype(np.float64) - k)[..., others]
    assert np.sqrt((error**2).mean()) <= 50 * 2.0**-8 / 3  # unrotated, one scale for all would leave 3 times as much


def test_fewer_bits_break_the_bound_of_more(rng):
    cache, k, _ = filled(rng, 64, 3)
    error = np.abs(cache.to_numpy(4)[0].astype(np.float64) - k)
    assert (error > Stored(k, "key").bound(8) + np.abs(k) * 2.0**-11).any()


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
    assert joined.dtype == np.float32 and (joined != k).mean() > 0.9
    assert (np.abs(joined - k) <= Stored(k, "key").bound(16) * 2**0.25 + np.abs(joined) * 2.0**-23).all()  # its codes count from another bias


def test_pieces_make_the_same_cache_as_one_append(rng):
    offset = half(rng, 3, 32)  # else the first append settles it
    whole, k, v = filled(rng, 97, 3, key_offset=offset)
    pieces = alignedkv.KVCache(3, 32, key_offset=offset)
    for begin, end in [(0, 1), (1, 1), (1, 63), (63, 65), (65, 97)]:
        pieces.append(k[:, :, begin:end], v[:, :, begin:end])
    assert_same(whole, pieces, half(rng, 1, 6, 1, 32))


def test_any_strides_are_appended(rng):
    k, v = half(rng, 2, 65, 3, 32).swapaxes(1, 2), half(rng, 2, 3, 65, 64)[..., ::-2]
    k.flags.writeable = False
    strided, packed = (alignedkv.KVCache(3, 32, batch=2) for _ in "ab")
    strided.append(k, v)
    packed.append(k.copy(), v.copy())
    for a, b in zip(strided.to_numpy(), packed.to_numpy()):
        assert (a == b).all()


def test_memory_is_what_16_bits_and_scale_codes_take(rng):
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
    errors = []
    for tokens in TOKENS + [640, 2049]:
        cache, k, v = filled(rng, tokens, heads)
        q = half(rng, 1, 2 * heads, 1, 32)
        out = cache.attend(q, policy=policy)
        assert out.dtype == np.float32
        errors.append(errors_of_usual(out, exact_attention(q, k, v), v))
        assert errors[-1].max() <= POLICIES[policy], f"{tokens} tokens"
    assert np.mean(errors) <= PRESETS.get(policy, 1e-4)


def test_fast_does_not_keep_the_tolerance_of_exact(rng):
    cache, k, v = filled(rng, 640, 3)
    q = half(rng, 1, 6, 1, 32)
    assert errors_of_usual(cache.attend(q, policy="fast"), exact_attention(q, k, v), v).max() > POLICIES["exact"]


@pytest.mark.parametrize("format", FORMATS)
def test_every_fixed_format_attends(rng, format):
    cache, k, v = filled(rng, 640, 3, format=format)
    q = half(rng, 1, 6, 1, 32)
    for policy in ("exact", "balanced", "draft"):
        assert errors_of_usual(cache.attend(q, policy=policy), exact_attention(q, k, v), v).max() <= POLICIES[policy], policy


def test_coarser_policies_read_less(rng):
    cache, k, _ = filled(rng, 640, 3)
    read = []
    for policy in POLICIES:  # from the finest to the coarsest
        cache.attend(k[:, :, -1:], policy=policy)
        assert cache.reads["key_values"] == cache.reads["value_values"] == k.size
        read.append(bits_read(cache))
    assert read == sorted(set(read), reverse=True) and read[-1] < read[0] / 2
    # Exactly: every bit of 640 x 32 keys and values of 3 heads, and a byte of scale code for each token and side.
    assert read[0] == 2 * 16 * k.size + 2 * 8 * 3 * 640


def test_a_budget_of_ones_own(rng):
    cache, k, v = filled(rng, 640, 3)
    q = half(rng, 1, 6, 1, 32)
    assert errors_of_usual(cache.attend(q, policy="budget", tolerance=0.01), exact_attention(q, k, v), v).max() <= 0.04
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
    assert errors_of_usual(out, exact_attention(q, k, v, 0.3), v).max(initial=0) <= POLICIES["exact"]


def test_heads_are_not_mixed_up(rng):
    cache, k, v = filled(rng, 65, 3, batch=2)
    q = half(rng, 2, 9, 1, 32)
    out = cache.attend(q, policy="exact")
    assert relative_error(out, exact_attention(q, k[:, ::-1], v[:, ::-1])) > 0.1
    assert relative_error(out, exact_attention(q, k[::-1], v[::-1])) > 0.1


@pytest.mark.parametrize("form", ["uint16", "ml_dtypes"])
@pytest.mark.parametrize("format", ["auto", "fixed<8,8>", "float<12,4>"])
def test_bfloat16(rng, form, format):
    bits = [to_bfloat16_bits(rng.standard_normal((1, heads, 97, 32))) for heads in (6, 3, 3)]
    q, k, v = (from_bfloat16_bits(x) for x in bits)
    if form == "ml_dtypes":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
        bits = [x.view(dtype) for x in bits]
    cache = alignedkv.KVCache(3, 32, dtype="bfloat16", format=format)
    cache.append(bits[1], bits[2])
    out = cache.attend(bits[0][:, :, :1], policy="exact")
    assert errors_of_usual(out, exact_attention(q[:, :, :1], k, v), v).max() <= POLICIES["exact"]
    joined = cache.to_numpy()[0]
    assert joined.dtype == np.uint16
    if format.startswith("float"):
        assert (joined == to_bfloat16_bits(k)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_queries_have_a_dtype_of_their_own(rng, dtype):
    cache, k, v = filled(rng, 65, 1)
    q = rng.standard_normal((1, 1, 1, 32)).astype(dtype)
    assert errors_of_usual(cache.attend(q, policy="exact"), exact_attention(q, k, v), v).max() <= POLICIES["exact"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", ["exact", "balanced"])
@pytest.mark.parametrize("token", [5, 64])
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
    assert errors_of_usual(out[:, ::2], expected[:, ::2], v[:, ::2]).max() <= POLICIES[policy]
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
    """Whoever attends meanwhile sees keys and values of the same tokens, and planes that are there."""
    cache, k, v = filled(rng, 0, 3)
    k, v, q = half(rng, 1, 3, 200, 32), half(rng, 1, 3, 200, 32), half(rng, 1, 3, 1, 32)
    done = threading.Event()
    errors = []

    def read():
        while not done.is_set():
            try:
                assert np.isfinite(cache.attend(q)).all()
                twin = cache.copy()
                assert len(twin._key) == len(twin._value)
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for t in range(200):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        if t % 50 == 49:
            cache.truncate(t - 5)
            cache.append(k[:, :, t - 5 : t + 1], v[:, :, t - 5 : t + 1])
        if t == 150:
            cache.drop_planes(2)
    done.set()
    for thread in readers:
        thread.join()
    assert not errors and len(cache) == 200
    assert errors_of_usual(cache.attend(q, policy="exact"), exact_attention(q, k, v), v).max() <= 2.0**-8


# Truncation, copies, offsets


@pytest.mark.parametrize("format", ["fixed<4,4,8>", "fixed<8,8>"])
@pytest.mark.parametrize("left", [64, 65, 100, 128, 170, 199, 200])
def test_s1_a_truncated_cache_is_that_of_the_tokens_that_are_left(rng, left, format):
    k, v, q = half(rng, 2, 3, 270, 32), half(rng, 2, 3, 270, 48), half(rng, 2, 6, 2, 32)
    v[0, 1, 150, 3] = np.inf  # kept aside
    k[1, 2, 180, 5] = np.nan
    v[:, :, 190:200] *= 100
    caches = [alignedkv.KVCache(3, 32, batch=2, value_dim=48, format=format) for _ in "ab"]
    for cache in caches:
        cache.append(k[:, :, :64], v[:, :, :64])  # which settles the offset
        cache.append(k[:, :, 64:left], v[:, :, 64:left])
    caches[0].append(k[:, :, left:200], v[:, :, left:200])
    caches[0].truncate(left)
    assert_same(*caches, q)
    for cache in caches:  # and goes on like it
        cache.append(k[:, :, 200:], v[:, :, 200:])
    assert_same(*caches, q)


def test_s1_truncated_to_nothing_a_cache_is_new(rng):
    cache, _, _ = filled(rng, 200, 3)
    cache.truncate(0)
    other, k, v = filled(rng, 97, 3)
    cache.append(k, v)
    assert_same(cache, other, half(rng, 1, 3, 1, 32))


def test_float_planes_are_truncated(rng):
    cache, k, v = filled(rng, 200, 3, format="float<8,4,4>")
    cache.truncate(70)
    for x, joined in zip((k, v), cache.to_numpy()):
        assert (joined == x[:, :, :70]).all()


@pytest.mark.parametrize("tokens, message", [
    (65, "expected to keep 0 to 64 tokens, got 65"), (-1, "expected tokens to be 0 or more, got -1"), (2**70, "expected tokens to be below"),
    (1.0, "expected tokens to be an integer, got float"), ("2", "expected tokens to be an integer, got str"), (None, "expected tokens to be an integer, got NoneType"),
])
def test_impossible_truncations_change_nothing(rng, tokens, message):
    cache, _, _ = filled(rng, 64, 3)
    before = cache.to_numpy()
    with pytest.raises(alignedkv.Error, match=message):
        cache.truncate(tokens)
    assert all((a == b).all() for a, b in zip(before, cache.to_numpy()))


@pytest.mark.parametrize("way", [alignedkv.KVCache.copy, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("format", ["auto", "float<8,4,4>"])
def test_s1_a_copy_goes_its_own_way(rng, way, format):
    k, v, q = half(rng, 1, 3, 200, 32), half(rng, 1, 3, 200, 48), half(rng, 1, 3, 1, 32)
    cache, alike = (alignedkv.KVCache(3, 32, value_dim=48, format=format) for _ in "ab")
    for one in (cache, alike):
        one.append(k[:, :, :100], v[:, :, :100])
    twin = way(cache)
    assert repr(twin) == repr(cache) and twin.reads is None
    twin.append(-k[:, :, 100:], -v[:, :, 100:])
    twin.truncate(150)
    cache.drop_planes(2)
    del cache
    gc.collect()
    assert len(twin) == 150
    alike.append(-k[:, :, 100:150], -v[:, :, 100:150])
    for a, b in zip(twin.to_numpy(), alike.to_numpy()):
        assert (a == b).all()
    np.testing.assert_array_equal(twin.attend(q, policy="exact"), alike.attend(q, policy="exact"))
    assert errors_of_usual(twin.attend(q, policy="exact"), exact_attention(q, np.concatenate([k[:, :, :100], -k[:, :, 100:150]], 2),
                           np.concatenate([v[:, :, :100], -v[:, :, 100:150]], 2)), v).max() <= POLICIES["exact"]


def test_caches_of_modules_are_copied_too(rng):
    cache, k, _ = filled(rng, 65, 3)
    for twin in (copy.copy(cache._key), copy.deepcopy(cache._key), cache._key.copy()):
        twin.append(k)
        twin.truncate(100)
        assert len(twin) == 100 and len(cache) == 65


@pytest.mark.parametrize("policy", POLICIES)
def test_s2_an_offset_changes_no_meaning(rng, policy):
    mean = 2 * half(rng, 3, 32)
    k, v, q = half(rng, 1, 3, 640, 32) + mean[:, None], half(rng, 1, 3, 640, 32), half(rng, 1, 6, 1, 32)
    expected, read = exact_attention(q, k, v), []
    for offset in (np.zeros((3, 32)), None, mean, mean.astype(np.float64), np.asfortranarray(mean), mean.tolist()):
        cache = alignedkv.KVCache(3, 32, key_offset=offset)
        cache.append(k, v)
        out, bound, _ = cache.attend(q, policy=policy, certify=True)
        error = out - expected
        assert errors_of_usual(out, expected, v).max() <= POLICIES[policy] and (np.abs(error).max(-1) <= bound).all()
        assert np.abs(cache.to_numpy()[0] - k.astype(np.float64)).max() <= 2.0**-6  # the offset comes back
        read.append(bits_read(cache))
    if policy != "exact":
        assert read[2] < read[0]  # what it is for: scales are those of what is left
    assert read[2] == read[3] == read[4] == read[5]


def test_s2_an_offset_is_what_is_stored_less(rng):
    offset = half(rng, 3, 32)
    cache, k, _ = filled(rng, 30, 3, key_offset=offset)
    stored, joined = Stored(k, "key", offset), cache.to_numpy()[0]
    assert (np.abs(joined.astype(np.float64) - k) <= stored.bound(16) + np.abs(joined) * 2.0**-11).all()
    assert np.abs(joined - stored.read(16)).max() <= 4 * 2.0**-11


@pytest.mark.parametrize("offset, message", [
    (np.zeros((3, 16)), r"expected key_offset of shape \[3, 32\], got \[3, 16\]"), (np.zeros((2, 32)), r"expected key_offset of shape \[3, 32\], got \[2, 32\]"),
    (np.zeros(32), "expected rank 2 of key_offset, got 1"), (np.zeros((1, 3, 1, 32)), "expected rank 2 of key_offset, got 4"), (0.5, "expected rank 2 of key_offset, got 0"),
    ("mean", "expected key_offset to be an array of numbers, got str"), ([[1], [2, 3]], "expected key_offset to be an array of numbers, got list"),
    (np.full((3, 32), np.nan), "expected key_offset to fit the cache: expected a finite offset, got nan for channel 0 of head 0"),
    (np.full((3, 32), 1e300), "expected key_offset to fit the cache: expected a finite offset, got inf"),
])
def test_impossible_offsets(offset, message):
    with np.errstate(over="ignore"), pytest.raises(alignedkv.Error, match=message):
        alignedkv.KVCache(3, 32, key_offset=offset)


def test_float_planes_have_no_offset():
    with pytest.raises(alignedkv.Error, match="expected key_offset with a 'fixed' format only, got 'float<8,4,4>'"):
        alignedkv.KVCache(3, 32, format="float<8,4,4>", key_offset=np.zeros((3, 32)))


# Short caches that hold their tokens twice


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_short_cache_is_read_as_it_was_appended(rng, dtype):
    cache, plain = (alignedkv.KVCache(2, 32, dtype=dtype, dense_up_to=tokens) for tokens in (100, 0))
    k, v = (rng.standard_normal((1, 2, 150, 32)).astype(dtype) for _ in range(2))
    q = half(rng, 1, 4, 1, 32)
    for begin, end in [(0, 60), (60, 100), (100, 150)]:
        for each in (cache, plain):
            each.append(k[:, :, begin:end], v[:, :, begin:end])
        out = cache.attend(q)
        if end <= 100:
            assert relative_error(out, exact_attention(q, k[:, :, :end], v[:, :, :end])) < 1e-6
            assert bits_a_value(cache) == np.dtype(dtype).itemsize * 8
            assert cache.nbytes >= plain.nbytes + 2 * 2 * end * 32 * np.dtype(dtype).itemsize
        else:
            np.testing.assert_array_equal(out, plain.attend(q))
            assert cache.reads == plain.reads and cache.nbytes == plain.nbytes


def test_policies_choose_how_long_a_cache_is_held_twice(rng):
    cache = alignedkv.KVCache(1, 64, dense_up_to="auto")
    k, v = half(rng, 1, 1, 3000, 64), half(rng, 1, 1, 3000, 64)
    q = half(rng, 1, 1, 1, 64)
    cache.append(k[:, :, :2000], v[:, :, :2000])
    twice = cache.nbytes
    assert twice > 2 * 2000 * 64 * 2 * 2
    cache.attend(q, policy="exact")  # reads all bits, which is faster as they came
    assert cache.nbytes == twice and bits_a_value(cache) == 16
    cache.attend(q, policy="draft")  # whether planes are ahead at 2000 tokens is the machine's; what is let go is not read
    assert cache.nbytes == twice or cache.nbytes < 0.6 * twice
    held = cache.nbytes == twice
    assert held == (bits_a_value(cache) == 16)
    cache.attend(q, policy="exact")
    assert bits_a_value(cache) == 16 if held else bits_a_value(cache) > 16  # planes and scale codes


def test_modules_make_caches_that_hold_dense_copies(rng):
    tensor = "tensor<1x2x?x32xf16>"
    text = f"""func.func @f(%q: tensor<1x4x1x32xf16>, %k: {tensor}, %v: {tensor}) -> tensor<1x4x1x32xf32> {{
      %s = arith.constant 0.25 : f32
      %o = aligned.attention %q, %k, %v scale %s : tensor<1x4x1x32xf16>, {tensor}, {tensor} -> tensor<1x4x1x32xf32>
      return %o : tensor<1x4x1x32xf32>
    }}"""
    module = alignedkv.compile(text, policy="draft", dense_up_to=80)
    assert module.dense_up_to == 80 and alignedkv.compile(text, policy="draft").dense_up_to == 0
    caches = [module.new_cache(index) for index in (1, 2)]
    q, (k, v) = half(rng, 1, 4, 1, 32), half(rng, 2, 1, 2, 81, 32)
    for cache, tokens in zip(caches, (k, v)):
        cache.append(tokens[:, :, :80])
    assert relative_error(module(q, *caches), exact_attention(q, k[:, :, :80], v[:, :, :80], 0.25)) < 1e-6
    for cache, tokens in zip(caches, (k, v)):
        cache.append(tokens[:, :, 80:])
    assert relative_error(module(q, *caches), exact_attention(q, k, v, 0.25)) > 1e-4


def test_without_planes_there_is_no_dense_copy_to_choose(rng):
    cache = alignedkv.KVCache(1, 64, dense_up_to="auto")
    cache.append(half(rng, 1, 1, 100, 64), half(rng, 1, 1, 100, 64))
    q = half(rng, 1, 1, 1, 64)
    cache.attend(q, policy="exact")
    cache.drop_planes(2)
    cache.attend(q, policy="draft")  # which would hold less of what is gone
    assert bits_a_value(cache) < 9


@pytest.mark.parametrize("value", ["many", -1, 1.5, None])
def test_impossible_lengths_of_dense_copies(value):
    with pytest.raises(alignedkv.Error, match=f"expected dense_up_to to be a number of tokens or 'auto', got {value!r}"):
        alignedkv.KVCache(1, 16, dense_up_to=value)
    with pytest.raises(alignedkv.Error, match="expected dense_up_to to be a number of tokens or 'auto'"):
        alignedkv.compile("", dense_up_to=value)


def test_float_planes_hold_no_dense_copy():
    with pytest.raises(alignedkv.Error, match="expected dense_up_to with a 'fixed' format only, got 'float<8,4,4>'"):
        alignedkv.KVCache(1, 16, format="float<8,4,4>", dense_up_to=64)



OUT_OF_MEMORY = """
import resource
import numpy as np
import alignedkv

cache = alignedkv.KVCache(1, 16, value_dim=256)
k, v = np.arange(65 * 16).reshape(1, 1, 65, 16).astype(np.float16) / 99, np.ones((1, 1, 65, 256), np.float16)
cache.append(k, v)
before, out, tokens = cache.to_numpy(), cache.attend(k[:, :, -1:], policy="exact"), 4_000_000
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**29, -1))  # enough for the keys, which take an eighth of it
try:
    cache.append(np.broadcast_to(k[:, :, :1], (1, 1, tokens, 16)), np.broadcast_to(v[:, :, :1], (1, 1, tokens, 256)))
except alignedkv.Error as error:
    print(error)
assert len(cache._key) == len(cache._value) == 65
cache.append(k[:, :, :5], v[:, :, :5])
cache.truncate(65)
assert all((a == b).all() for a, b in zip(before, cache.to_numpy())) and (cache.attend(k[:, :, -1:], policy="exact") == out).all()
"""


def test_an_append_that_fails_for_values_leaves_no_keys():
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stdout


# The certificate (P4)


def largest_error(out, expected):
    return np.abs(out - expected).max(-1, initial=0)


@pytest.mark.parametrize("policy, format", [*((policy, "auto") for policy in POLICIES), ("exact", "float<8,4,4>"), ("alignedkv", "float<8,4,4>")])
def test_p4_errors_keep_their_bound(rng, policy, format):
    for tokens in TOKENS + [640, 2049]:
        cache, k, v = filled(rng, tokens, 3, format=format)
        q = half(rng, 1, 6, 1, 32)
        out, bound, estimate = cache.attend(q, policy=policy, certify=True)
        assert bound.shape == estimate.shape == q.shape[:3] and bound.dtype == estimate.dtype == np.float32
        assert (largest_error(out, exact_attention(q, k, v)) <= bound).all(), f"{tokens} tokens"
        assert (bound <= 10).all()  # of values up to about 4


def test_p4_a_bound_follows_the_bits(rng):
    cache, k, v = filled(rng, 64, 3, format="fixed<4,4,4,4>")
    q = half(rng, 1, 6, 1, 32)
    bounds = []
    for planes in (4, 3, 2, 1):
        cache.drop_planes(planes)
        out, bound, _ = cache.attend(q, policy="exact", certify=True)
        error = largest_error(out, exact_attention(q, k, v))
        assert (error <= bound).all()
        bounds.append(bound)
    assert (error > bounds[0]).any()  # of one plane: the bound of all four would be wrong
    assert all((finer < coarser).all() for finer, coarser in zip(bounds[:3], bounds[1:3]))  # that of one plane is no more than what V may hold


@pytest.mark.parametrize("policy", PRESETS)
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
    expected = exact_attention(q, k, v, 0.3)
    assert bound.shape == estimate.shape == (2, 9, queries) and (largest_error(out, expected) <= bound).all()
    for given in (out, cache.attend(q, scale=0.3)):
        assert errors_of_usual(given, expected, v).max(initial=0) <= POLICIES["balanced"]


def test_p4_promises_nothing_where_the_output_is_not_finite(rng):
    cache, k, v = filled(rng, 65, 3)
    q = half(rng, 1, 3, 1, 32)
    q[0, 1, 0, 5] = np.nan
    out, bound, _ = cache.attend(q, certify=True)
    error = largest_error(out, exact_attention(q, k, v))
    assert np.isnan(out[0, 1]).all() and np.isnan(bound[0, 1]).all() and (error <= bound)[0, ::2].all()


# Dropping planes (S9)


@pytest.mark.parametrize("format", [*FORMATS, "float<8,4,4>"])
def test_s9_dropped_planes_are_gone(rng, format):
    cache, k, v = filled(rng, 97, 3, format=format)
    q = half(rng, 1, 6, 1, 32)
    widths = [int(width) for width in format[6:-1].split(",")]
    held, read = [], []
    for kept in range(len(widths), 0, -1):
        cache.drop_planes(kept)
        held.append(cache.nbytes)
        out, bound, _ = cache.attend(q, policy="exact", certify=True)
        read.append(bits_read(cache))
        assert (largest_error(out, exact_attention(q, k, v)) <= bound).all()
        bits = sum(widths[:kept])
        assert read[-1] == 2 * bits * k.size + (2 * 8 * 3 * 97 if format.startswith("fixed") else 0)
        for role, x, joined in zip(("key", "value"), (k, v), cache.to_numpy()):
            if format.startswith("fixed"):
                assert (np.abs(joined.astype(np.float64) - x) <= Stored(x, role).bound(bits) + np.abs(joined) * 2.0**-11).all()
            assert kept == len(widths) or (joined != x).mean() > 0.5
    assert held == sorted(set(held), reverse=True)
    assert held[0] - held[-1] >= 2 * 3 * 97 * 32 * sum(widths[1:]) // 8
    cache.append(k[:, :, :31], v[:, :, :31])  # tokens to come have no more
    assert len(cache) == 128
    assert np.array_equal(cache.to_numpy()[0], cache.to_numpy(widths[0])[0])


@pytest.mark.parametrize("policy", PRESETS)
def test_s9_policies_read_what_is_left(rng, policy):
    cache, k, v = filled(rng, 640, 3, format="fixed<4,4,4,4>")
    q, expected = half(rng, 1, 6, 1, 32), None
    expected = exact_attention(q, k, v)
    for planes, storage in [(3, 2.0**-12), (2, 2.0**-8)]:
        cache.drop_planes(planes)
        out, bound, _ = cache.attend(q, policy=policy, certify=True)
        assert errors_of_usual(out, expected, v).max() <= 4 * max(PRESETS[policy], storage)
        assert (largest_error(out, expected) <= bound).all()


@pytest.mark.parametrize("planes, message", [
    (0, "expected planes to be 1 or more, got 0"), (-1, "expected planes to be 1 or more, got -1"), (3, "expected to keep 1 to 2 planes, got 3"),
    (2**31, "expected planes to be below"), (1.0, "expected planes to be an integer, got float"), ("2", "expected planes to be an integer, got str"),
    (None, "expected planes to be an integer, got NoneType"),
])
def test_s9_impossible_planes(rng, planes, message):
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
        (dict(format="dense"), "expected a format such as 'auto', 'fixed<4,4,8>' or 'float<8,4,4>', got 'dense'"),
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
        (np.zeros((1, 3, 1, 32), np.float32), None, "expected float16 of k, got float32"),
        (np.zeros((1, 3, 1, 32), np.uint16), None, "expected float16 of k, got uint16"),
        (np.zeros((3, 1, 32), np.float16), None, "expected rank 4 of k, got 3"),
        (np.zeros((1, 2, 1, 32), np.float16), None, r"expected k of shape \[1, 3, \?, 32\], got \[1, 2, 1, 32\]"),
        (np.zeros((1, 3, 1, 48), np.float16), None, r"got \[1, 3, 1, 48\]"),
        (np.zeros((2, 3, 1, 32), np.float16), None, r"got \[2, 3, 1, 32\]"),
        (np.zeros((1, 3, 2, 32), np.float16), None, "expected as many keys as values, got 2 and 1 tokens"),
        (np.zeros((1, 3, 1, 32), ">f2"), None, "expected k in the byte order of this machine, got >f2"),
        (np.zeros((1, 3, 1, 32), object), None, "expected an array as k, got ndarray: DLPack only supports"),
        ([[1.0]], None, "got list"),
        (None, None, "got NoneType"),
        (np.zeros((1, 3, 1, 32), np.float16), np.zeros((1, 3, 1, 16), np.float16), r"expected v of shape \[1, 3, \?, 32\], got \[1, 3, 1, 16\]"),
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
        ((1, 4, 1, 32), "f2", {}, r"expected q of shape \[1, a multiple of 3, queries, 32\], got \[1, 4, 1, 32\]"),
        ((1, 0, 1, 32), "f2", {}, r"got \[1, 0, 1, 32\]"),
        ((1, 3, 1, 48), "f2", {}, r"got \[1, 3, 1, 48\]"),
        ((2, 3, 1, 32), "f2", {}, r"got \[2, 3, 1, 32\]"),
        ((3, 32), "f2", {}, r"got \[3, 32\]"),
        ((1, 3, 1, 32), "f8", {}, "expected q of float16, bfloat16 or float32, got float64"),
        ((1, 3, 1, 32), "f2", dict(policy="best"), "got 'best'"),
        ((1, 3, 1, 32), "f2", dict(policy="exact to=store"), "'draft' or 'budget', got 'exact to=store'"),
        ((1, 3, 1, 32), "f2", dict(policy="alignedkv"), "expected a 'float' format under policy 'alignedkv', got 'fixed<4,4,8>'"),
        ((1, 3, 1, 32), "f2", dict(policy="budget"), "expected a tolerance with policy 'budget', got none"),
        ((1, 3, 1, 32), "f2", dict(policy="budget", tolerance=1), "expected tolerance to be above 0 and below 1, got"),
        ((1, 3, 1, 32), "f2", dict(policy="budget", tolerance=np.nan), "expected tolerance to be above 0 and below 1, got"),
        ((1, 3, 1, 32), "f2", dict(tolerance=0.1), "expected a tolerance only with policy 'budget'"),
        ((1, 3, 1, 32), "f2", dict(policy="budget", tolerance="some"), "expected tolerance to be a number, got 'some'"),
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
        assert errors_of_usual(out, want, v)[seen].max(initial=0) <= POLICIES[policy]
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
    ({"window": 0}, "expected window to be 1 or more, got 0"), ({"sinks": 4}, "expected sinks only with a window"), ({"window": 2.5}, "expected window to be an integer, got float"),
    ({"softcap": 0}, "expected softcap to be from 1e-30"), ({"softcap": float("nan")}, "expected softcap to be from 1e-30"), ({"softcap": "high"}, "expected softcap to be a number, got 'high'")])
def test_masks_that_mean_nothing(rng, scoring, message):
    cache, _, _ = filled(rng, 65, 2)
    with pytest.raises(alignedkv.Error, match=message):
        cache.attend(half(rng, 1, 4, 1, 32), **scoring)


def test_more_query_heads_than_a_kernel_takes(rng):
    cache, k, v = filled(rng, 65, 3)
    q = rng.standard_normal((1, 99, 1, 32)).astype(np.float16)
    assert relative_error(cache.attend(q, policy="exact").astype(float), exact_attention(q, k, v)) <= 1e-3
