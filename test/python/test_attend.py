"""What `attend` takes and gives: any number of query heads and queries, arrays of other libraries, the logarithm of the sum, results in place."""

import signal
import threading
import time

import numpy as np
import pytest
from conftest import errors_of_usual, exact_attention
from test_cache import POLICIES, filled, half

import alignedkv
from alignedkv import attention


def masked_attention(q, k, v, causal=False, window=None, sinks=0, mask=None, logits=None, softcap=None, later=0):
    """Output and logarithm of the sum in float64; `later` tokens are newer than the last query."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group, tokens, queries = q.shape[1] // k.shape[1], k.shape[2], q.shape[2]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5
    if softcap:
        scores = np.tanh(scores / softcap) * softcap
    position, token = np.arange(tokens - queries, tokens)[:, None] - later, np.arange(tokens)
    hidden = (token > position) & causal
    if window:
        hidden |= (position - token >= window) & (token >= sinks)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    scores = np.where(hidden, -np.inf, scores)
    if logits is not None:
        scores = np.concatenate([scores, np.broadcast_to(np.asarray(logits)[None, :, None, None], (*scores.shape[:3], 1))], 3)
    largest = scores.max(3, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(3, keepdims=True)
    return (weights / total)[..., :tokens] @ v, (largest + np.log(total))[..., 0]


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("group, queries", [(71, 1), (33, 2), (1, 33), (5, 9), (7, 20), (32, 3), (64, 1)])
def test_any_number_of_query_heads_and_queries(rng, group, queries, policy):
    cache, k, v = filled(rng, 300, 2, batch=2, value_dim=48)
    q = half(rng, 2, 2 * group, queries, 32)
    expected, lse = masked_attention(q, k, v)
    out, found = cache.attend(q, policy=policy, return_lse=True)
    assert errors_of_usual(out, expected, v).max() <= POLICIES[policy] and np.abs(found - lse).max() <= 16 * POLICIES[policy]
    assert cache.reads["key_values"] % k.size == 0


def test_pieces_of_masks_over_no_tokens():
    out = alignedkv.KVCache(1, 16).attend(np.zeros((1, 80, 1, 16), np.float16), mask=np.zeros((1, 80, 1, 0), bool))
    assert out.shape == (1, 80, 1, 16) and (out == 0).all()


@pytest.mark.parametrize("group, queries", [(71, 2), (3, 23), (1, 70), (2, 7)])
def test_pieces_stand_where_their_queries_do(rng, group, queries):
    cache, k, v = filled(rng, 200, 2)
    q, logits = half(rng, 1, 2 * group, queries, 32), rng.standard_normal(2 * group)
    mask = rng.random((1, 2 * group, queries, 200)) < 0.7
    for options in [dict(causal=True), dict(causal=True, window=40), dict(window=30, sinks=3), dict(causal=True, mask=mask), dict(mask=mask[:, :1]), dict(mask=mask[:, :, :1])]:
        expected, lse = masked_attention(q, k, v, logits=logits, **options)
        out, found = cache.attend(q, policy="exact", sink_logits=logits, return_lse=True, **options)
        assert errors_of_usual(out, expected, v).max() <= POLICIES["exact"] and np.abs(found - lse).max() <= 2e-3, options


def test_other_queries_compile_few_kernels(rng):
    cache, _, _ = filled(rng, 100, 1, dim=16)
    before = attention._compiled.cache_info().misses
    for queries in range(1, 65):
        cache.attend(half(rng, 1, 1, queries, 16), causal=True)
    assert attention._compiled.cache_info().misses - before <= 10


def test_warm_up_compiles_what_attend_runs(rng):
    cache, _, _ = filled(rng, 100, 1, dim=48, format="fixed<8,4,4>")
    cache.drop_planes(2)
    alignedkv.warm_up(cache, q_heads=5, queries=3, dtype="float32", policy="fast", causal=True)
    before = attention._compiled.cache_info().misses
    cache.attend(rng.standard_normal((1, 5, 3, 48)).astype(np.float32), policy="fast", causal=True)
    assert attention._compiled.cache_info().misses == before
    with pytest.raises(alignedkv.Error, match="expected q_heads to be 1 or more, got 0"):
        alignedkv.warm_up(cache, q_heads=0)


def test_tolerances_of_ones_own_compile_a_kernel_for_each_preset_at_most(rng):
    cache, k, v = filled(rng, 3000, 2, dim=64)
    q = half(rng, 1, 6, 1, 64)
    before, bits = attention._compiled.cache_info().misses, []
    for tolerance in (0.5, 2.0**-4, 0.02, 0.015, 0.01, 0.008, 0.005, 0.003, 0.001, 1e-5, 1e-300):
        out = cache.attend(q, policy="budget", tolerance=tolerance)
        assert errors_of_usual(out, exact_attention(q, k, v), v).max() <= max(4 * tolerance, 1e-4)
        bits.append(cache.reads["key_bits"] + cache.reads["value_bits"])
    assert attention._compiled.cache_info().misses <= before + 4 and bits == sorted(bits)
    for policy, tolerance in [("tight", 2.0**-12), ("fast", 2.0**-7)]:
        cache.attend(q, policy=policy)
        reads = cache.reads
        cache.attend(q, policy="budget", tolerance=tolerance)
        assert cache.reads == reads


def test_a_factor_of_the_tolerance_in_float64(rng):
    """The stages evaluated as they stand read what the kernels read."""
    cache, k, v = filled(rng, 200, 1)
    q, types = half(rng, 1, 2, 1, 32), [cache._type(role, 1, 3) for role in ("key", "value")]
    kernel = attention.Kernel(1, 1, 2, 1, "f16", *types, 32, 32, "", "<budget, tolerance = 0.25>", True, None, False, False, "")
    found = []
    for target in ("cpu", "reference"):
        module = alignedkv.Module(kernel.text(), f"target={target}")
        (out, *_), (reads,) = module._call_with_reads(q, cache._key, cache._value, np.float32(32**-0.5), np.float32(2.0**-7))
        found.append((out, reads))
    assert np.abs(found[0][0] - found[1][0]).max() <= 2.0**-7
    assert 0.98 * found[1][1]["value_bits"] <= found[0][1]["value_bits"] <= 1.3 * found[1][1]["value_bits"]


def test_certificates_of_pieces(rng):
    cache, k, v = filled(rng, 300, 2)
    q = half(rng, 1, 80, 3, 32)
    expected, lse = masked_attention(q, k, v, causal=True)
    out, found, bound, estimate = cache.attend(q, policy="fast", causal=True, certify=True, return_lse=True)
    error = np.abs(out - expected)
    assert (error.max(3) <= bound).all() and bound.shape == estimate.shape == found.shape == (1, 80, 3)
    relative = np.linalg.norm(out - expected, axis=3) / np.linalg.norm(expected, axis=3)
    assert 0.25 <= np.sqrt((relative**2).mean() / (estimate**2).mean()) <= 4


def test_logarithms_merge_disjoint_tokens(rng):
    whole, k, v = filled(rng, 300, 3)
    parts = [alignedkv.KVCache(3, 32) for _ in "ab"]
    for part, tokens in zip(parts, (slice(0, 111), slice(111, 300))):
        part.append(k[:, :, tokens], v[:, :, tokens])
    q = half(rng, 1, 6, 2, 32)
    outs, lses = zip(*(part.attend(q, policy="exact", return_lse=True) for part in parts))
    weights = np.exp(np.array(lses) - np.logaddexp(*lses))[..., None]
    assert np.abs((weights * outs).sum(0) - whole.attend(q, policy="exact")).max() <= 1e-3


def test_results_in_place(rng):
    cache, k, _ = filled(rng, 70, 3)
    q = half(rng, 1, 6, 1, 32)
    out = np.zeros((1, 1, 6, 32), np.float32).swapaxes(1, 2)
    assert cache.attend(q, out=out) is out
    np.testing.assert_array_equal(out, cache.attend(q))
    frozen = np.zeros((1, 6, 1, 32), np.float32)
    frozen.flags.writeable = False
    wanted = r"expected out to be a writable float32 array \[1, 6, 1, 32\], got "
    for bad, message in [(frozen, wanted + r"a read-only float32 array \[1, 6, 1, 32\]"), (np.zeros((1, 6, 1, 32)), wanted + r"a writable float64 array \[1, 6, 1, 32\]"),
                         (np.zeros((6, 1, 32), np.float32), wanted + r"a writable float32 array \[6, 1, 32\]"), ([0.0], "expected an array as out, got list")]:
        with pytest.raises(alignedkv.Error, match=message):
            cache.attend(q, out=bad)


def test_threads_are_set():
    before = alignedkv.threads()
    try:
        alignedkv.set_threads(1)
        assert alignedkv.threads() == 1
        for bad in (0, -1, 10**6):
            with pytest.raises(alignedkv.Error, match=f"expected 1 to 1024 threads, got {bad}"):
                alignedkv.set_threads(bad)
    finally:
        alignedkv.set_threads(before)


def test_results_do_not_depend_on_the_number_of_threads(rng):
    cache, _, _ = filled(rng, 3000, 3)
    q, before, outs = half(rng, 1, 6, 1, 32), alignedkv.threads(), []
    for threads in (1, 2, 5):
        alignedkv.set_threads(threads)
        outs.append(cache.attend(q))
    alignedkv.set_threads(before)
    for out in outs[1:]:
        np.testing.assert_array_equal(outs[0], out)


# Arrays of others


class Elsewhere:
    """An array as a GPU's library exports it."""

    device = "cuda:0"
    dtype = np.dtype(np.float16)
    shape, ndim = (1, 3, 1, 32), 4

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise AssertionError("expected nobody to ask")


def test_arrays_of_other_devices_are_refused_by_name(rng):
    cache, k, v = filled(rng, 3, 3)
    with pytest.raises(alignedkv.Error, match="expected q in memory of the CPU, got a test_attend.Elsewhere on cuda:0: pass a copy on the CPU"):
        cache.attend(Elsewhere())
    with pytest.raises(alignedkv.Error, match="expected k in memory of the CPU, got a test_attend.Elsewhere on cuda:0"):
        cache.append(Elsewhere(), Elsewhere())
    assert len(cache) == 3


@pytest.mark.parametrize("layout", ["strided", "reversed", "read-only", "fortran", "broadcast"])
def test_any_layout_of_queries(rng, layout):
    cache, k, v = filled(rng, 70, 3)
    q = half(rng, 1, 6, 4, 64)
    q = {"strided": q[..., ::2], "reversed": q[:, ::-1, :, 31::-1], "read-only": q[..., :32], "fortran": np.asfortranarray(q[..., :32]),
         "broadcast": np.broadcast_to(q[:, :1, :, :32], (1, 6, 4, 32))}[layout]
    if layout == "read-only":
        q.flags.writeable = False
    assert errors_of_usual(cache.attend(q, policy="exact"), exact_attention(q, k, v), v).max() <= POLICIES["exact"]


def test_big_endian_queries_are_refused_by_name(rng):
    cache, _, _ = filled(rng, 3, 3)
    with pytest.raises(alignedkv.Error, match="expected q in the byte order of this machine, got >f4: pass .astype"):
        cache.attend(np.zeros((1, 3, 1, 32), ">f4"))


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        k, v, q = (torch.from_numpy(half(rng, 1, heads, tokens, 32)).to(dtype) for heads, tokens in ((3, 70), (3, 70), (6, 2)))
        cache = alignedkv.KVCache(3, 32, dtype=dtype)
        cache.append(k, v)
        out, lse = cache.attend(q, policy="exact", causal=True, return_lse=True)
        expected, sums = masked_attention(*(x.to(torch.float64).numpy() for x in (q, k, v)), causal=True)
        assert out.dtype == lse.dtype == torch.float32 and errors_of_usual(out.numpy(), expected, v.float().numpy()).max() <= POLICIES["exact"]
        target = torch.empty(1, 6, 2, 32)
        assert cache.attend(q, policy="exact", causal=True, out=target) is target and torch.equal(target, out)
    with pytest.raises(alignedkv.Error, match="on meta: pass a copy on the CPU|expected an array as q, got torch.Tensor: Unknown device type meta"):
        cache.attend(torch.empty(1, 6, 2, 32, device="meta"))


def test_jax_arrays(rng):
    jnp = pytest.importorskip("jax.numpy", exc_type=ImportError)
    k, v, q = (jnp.asarray(half(rng, 1, heads, tokens, 32), jnp.bfloat16) for heads, tokens in ((3, 70), (3, 70), (6, 1)))
    cache = alignedkv.KVCache(3, 32, dtype=k.dtype)
    cache.append(k, v)
    out = cache.attend(q, policy="exact")
    expected, _ = masked_attention(*(np.asarray(x, np.float64) for x in (q, k, v)))
    assert type(out).__module__.startswith("jax") and errors_of_usual(np.asarray(out), expected, np.asarray(v, np.float32)).max() <= POLICIES["exact"]


# Messages


@pytest.mark.parametrize("options", [{"window": 2**62}, {"window": 2**63 - 1, "sinks": 2**62}, {"softcap": 1e30}, {"policy": "budget", "tolerance": 1e-300}, {"scale": 1e38}, {"scale": 0}])
def test_what_is_far_out_works_or_is_refused_in_words(rng, options):
    cache, k, v = filled(rng, 70, 1)
    try:
        assert cache.attend(half(rng, 1, 1, 2, 32), causal=True, **options).shape == (1, 1, 2, 32)
    except alignedkv.Error as error:
        assert str(error).startswith("expected ") and "line" not in str(error)


def test_head_dims_that_no_cache_has_are_refused_in_words():
    for dim in (8, 24, 272):
        with pytest.raises(alignedkv.Error) as info:
            alignedkv.KVCache(1, dim)
        assert "line" not in str(info.value) and str(dim) in str(info.value), info.value


def test_ctrl_c_comes_through_a_long_attend(rng):
    cache = alignedkv.KVCache(8, 128, reserve=32768)
    k = half(rng, 1, 8, 4096, 128)
    for _ in range(8):
        cache.append(k, k)
    q = half(rng, 1, 32, 512, 128)
    alignedkv.warm_up(cache, 32, 512, policy="exact", causal=True)
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        cache.attend(q, policy="exact", causal=True)
    assert time.monotonic() - start < 3 and len(cache) == 32768
