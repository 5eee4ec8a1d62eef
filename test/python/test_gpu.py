"""Caches on a GPU, for which an interpreter of PTX stands in: what attention over them gives, of arrays of the host and of the GPU, and what they refuse."""

import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import errors_of_usual, exact_attention
from test_attend import masked_attention
from test_cache import POLICIES, half

import alignedkv

cupy = pytest.importorskip("made_up_cupy", reason="no libraries beside the package", exc_type=OSError)
if not (cupy.LIBRARIES / "libaligned_cuda_emulator.so").exists():
    pytest.skip("no interpreter of PTX beside the package", allow_module_level=True)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy.module())


def filled(rng, tokens, heads, batch=1, dim=32, device=True, **options):
    """A cache on the GPU that got its tokens from there, in two strided parts, and those."""
    cache = alignedkv.KVCache(heads, dim, batch=batch, device="cuda", **options)
    k, v = half(rng, batch, heads, tokens, dim), half(rng, batch, heads, tokens, cache.value_dim)
    there = (cupy.asarray(k), cupy.asarray(v)) if device else (k, v)
    for part in (slice(0, tokens // 3), slice(tokens // 3, tokens)):
        cache.append(there[0][:, :, part], there[1][:, :, part])
    return cache, k, v


def arrays_of(place):
    """What makes an array of that place of one of NumPy, and back."""
    if place == "host":
        return (lambda x: x), (lambda x: x)
    return cupy.asarray, lambda x: cupy.get(x) if isinstance(x, cupy.ndarray) else x


@pytest.mark.parametrize("place", ["host", "gpu"])
@pytest.mark.parametrize("group, queries", [(1, 1), (3, 2), (16, 1), (19, 3), (4, 7), (2, 7), (1, 40)])
def test_any_number_of_query_heads_and_queries(rng, group, queries, place):
    to, back = arrays_of(place)
    cache, k, v = filled(rng, 150, 2, batch=2, value_dim=48, device=place == "gpu")
    q = half(rng, 2, 2 * group, queries, 32)
    expected, lse = masked_attention(q, k, v)
    for policy in ("exact", "tight", "draft"):
        out, found = cache.attend(to(q), policy=policy, return_lse=True)
        assert type(out) is type(to(q)) and type(found) is type(out)
        assert errors_of_usual(back(out), expected, v).max() <= POLICIES[policy] and np.abs(back(found) - lse).max() <= 16 * POLICIES[policy]
        assert cache.reads is None if place == "gpu" else cache.reads["key_values"] % k.size == 0


@pytest.mark.parametrize("place", ["host", "gpu"])
@pytest.mark.parametrize("group, queries", [(2, 3), (5, 9), (20, 2)])
def test_masks_sinks_and_caps(rng, group, queries, place):
    to, back = arrays_of(place)
    cache, k, v = filled(rng, 130, 2)
    q, logits = half(rng, 1, 2 * group, queries, 32), rng.standard_normal(2 * group).astype(np.float32)
    seen, added = rng.random((1, 2 * group, queries, 130)) < 0.7, half(rng, 1, 2 * group, queries, 130)
    for options in [dict(causal=True), dict(causal=True, window=40), dict(window=30, sinks=3), dict(causal=True, mask=seen), dict(mask=added), dict(mask=added[:, :1]),
                    dict(mask=seen[0, 0])]:
        expected, lse = masked_attention(q, k, v, logits=logits, **options)
        given = {**options, "mask": to(options["mask"])} if "mask" in options else options
        for sink_logits in (logits, to(logits)):
            out, found = cache.attend(to(q), policy="exact", sink_logits=sink_logits, return_lse=True, **given)
            assert errors_of_usual(back(out), expected, v).max() <= POLICIES["exact"] and np.abs(back(found) - lse).max() <= 1e-3, options
    out = cache.attend(to(q), policy="exact", softcap=2.5)
    assert errors_of_usual(back(out), masked_attention(q, k, v, softcap=2.5)[0], v).max() <= POLICIES["exact"]


@pytest.mark.parametrize("place", ["host", "gpu"])
def test_a_mask_of_the_host_for_queries_of_the_gpu_and_the_other_way_round(rng, place):
    to, back = arrays_of(place)
    other, _ = arrays_of("gpu" if place == "host" else "host")
    cache, k, v = filled(rng, 70, 2)
    q, seen, logits = half(rng, 1, 2, 1, 32), rng.random(70) < 0.5, np.ones(2, np.float32)
    expected, _ = masked_attention(q, k, v, mask=seen, logits=logits)
    assert errors_of_usual(back(cache.attend(to(q), policy="exact", mask=other(seen), sink_logits=other(logits))), expected, v).max() <= POLICIES["exact"]


@pytest.mark.parametrize("place", ["host", "gpu"])
def test_certificates_hold(rng, place):
    to, back = arrays_of(place)
    cache, k, v = filled(rng, 200, 2)
    q = half(rng, 1, 6, 2, 32)
    expected, lse = masked_attention(q, k, v)
    out, found, bound, estimate = (back(part) for part in cache.attend(to(q), policy="fast", certify=True, return_lse=True))
    host = alignedkv.KVCache(2, 32)
    host.append(k, v)
    _, usual, expects = host.attend(q, policy="fast", certify=True)
    assert (np.abs(out - expected).max(3) <= bound).all() and (bound <= 1.5 * usual).all() and np.abs(found - lse).max() < 0.1
    np.testing.assert_allclose(estimate, expects, rtol=0.5)
    assert cache.reads["key_values"] == k.size


@pytest.mark.parametrize("format, policy", [("float<8,4,4>", "alignedkv"), ("float<8,8>", "exact")])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_float_planes(rng, format, policy, dtype):
    k, v, q = (half(rng, 1, 2, n, 32).astype(dtype) for n in (90, 90, 3))
    cache, host = (alignedkv.KVCache(2, 32, device=device, format=format, dtype=dtype) for device in ("cuda", "cpu"))
    cache.append(cupy.asarray(k), cupy.asarray(v)), host.append(k, v)
    out = cupy.get(cache.attend(cupy.asarray(q), policy=policy))
    assert errors_of_usual(out, exact_attention(q, k, v), v).max() <= (1e-4 if policy == "exact" else 1e-2)
    np.testing.assert_allclose(out, host.attend(q, policy=policy), atol=1e-5)


def test_bfloat16_as_its_bits(rng):
    k, v, q = (rng.standard_normal((1, 2, n, 32)).astype(np.float32).view(np.uint32) >> 16 for n in (90, 90, 3))
    cache = alignedkv.KVCache(2, 32, device="cuda", dtype="bfloat16")
    cache.append(cupy.asarray(k.astype(np.uint16)), cupy.asarray(v.astype(np.uint16)))
    k, v, numbers = ((x.astype(np.uint32) << 16).view(np.float32) for x in (k, v, q))
    assert errors_of_usual(cupy.get(cache.attend(cupy.asarray(q.astype(np.uint16)), policy="exact")), exact_attention(numbers, k, v), v).max() <= POLICIES["exact"]


@pytest.mark.parametrize("options", [{}, dict(page_size=64, reserve=512), dict(format="float<8,4,4>")])
def test_a_cache_is_what_one_of_the_host_is(rng, options):
    """After everything that can be done with it, bit for bit."""
    both = [alignedkv.KVCache(2, 32, batch=3, device=device, **options) for device in ("cuda", "cpu")]
    for cache in both:
        rng = np.random.default_rng(5)
        cache.append(half(rng, 3, 2, 100, 32), half(rng, 3, 2, 100, 32))
        if "format" not in options:
            cache.append(half(rng, 3, 2, 9, 32), half(rng, 3, 2, 9, 32), lengths=[9, 0, 4])
            cache.truncate([80, 100, 66])
        cache.reorder([2, 0, 2])
        cache.batch_select([2, 1])
        cache.truncate(75)
        cache.append(half(rng, 2, 2, 1, 32), half(rng, 2, 2, 1, 32))
    here, there = both[1], both[0]
    for twin in (there, there.copy(), pickle.loads(pickle.dumps(there))):
        assert twin.device == "cuda" and twin.lengths == here.lengths and twin.nbytes > 0
        for a, b in zip(twin.to_numpy(), here.to_numpy()):
            np.testing.assert_array_equal(a, b)
        twin.append(half(rng, 2, 2, 70, 32), half(rng, 2, 2, 70, 32))
        assert len(twin) == len(here) + 70
    q = half(np.random.default_rng(7), 2, 4, 1, 32)
    fresh = pickle.loads(pickle.dumps(there))
    fresh.truncate(60), here.truncate(60)
    fresh.drop_planes(2), here.drop_planes(2)
    np.testing.assert_allclose(cupy.get(fresh.attend(cupy.asarray(q), policy="exact")), here.attend(q, policy="exact"), atol=1e-4)


def test_results_in_place(rng):
    cache, k, v = filled(rng, 70, 2)
    q = half(rng, 1, 4, 2, 32)
    out = cupy.empty((1, 4, 2, 32), "float32")
    assert cache.attend(cupy.asarray(q), policy="exact", out=out) is out
    assert errors_of_usual(cupy.get(out), exact_attention(q, k, v), v).max() <= POLICIES["exact"]
    for wrong in (np.empty((1, 4, 2, 32), np.float32), cupy.empty((1, 4, 2, 31), "float32"), cupy.empty((1, 4, 2, 32), "float16")):
        with pytest.raises(alignedkv.Error, match=r"expected out to be a float32 array \[1, 4, 2, 32\] on the GPU, got a "):
            cache.attend(cupy.asarray(q), out=wrong)
    with pytest.raises(alignedkv.Error, match="expected out in memory of the CPU with such queries, or with certify"):
        cache.attend(q, out=out)


def test_no_tokens_and_no_queries(rng):
    cache = alignedkv.KVCache(2, 32, device="cuda")
    q = cupy.asarray(half(rng, 1, 4, 3, 32))
    out, lse = cache.attend(q, return_lse=True)
    assert (cupy.get(out) == 0).all() and (cupy.get(lse) == -np.inf).all()
    assert cache.attend(q[:, :, :0]).shape == (1, 4, 0, 32)


def test_work_is_queued_on_the_stream_of_the_library(rng):
    cache, k, v = filled(rng, 70, 2)
    k, v, q = cupy.asarray(k), cupy.asarray(v), cupy.asarray(half(rng, 1, 4, 1, 32))
    cache.attend(q)
    sys.modules["cupy"].cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=2**40)  # no stream at all
    for call in (lambda: cache.attend(q), lambda: cache.append(k, v)):
        with pytest.raises(alignedkv.Error, match="stream"):
            call()
    assert len(cache) == 70
    other = Other(q._numbers, q._memory)
    cache.attend(other)  # whose library says nothing of streams


class Elsewhere(cupy.ndarray):
    device_id = 1


class Other(cupy.ndarray):
    """Of a library that nobody knows."""


def test_arrays_of_other_libraries_go_by_the_host(rng):
    cache, k, v = filled(rng, 70, 2)
    q = cupy.asarray(half(rng, 1, 4, 1, 32))
    out = cache.attend(Other(q._numbers, q._memory), policy="exact")
    assert type(out) is np.ndarray and errors_of_usual(out, exact_attention(q._numbers, k, v), v).max() <= POLICIES["exact"]
    with pytest.raises(alignedkv.Error, match="expected q to be contiguous, got a Other that is not"):
        cache.attend(Other(q._numbers[:, :, :, ::2].repeat(2, 3)[..., ::-1], q._memory))


def test_refuses(rng):
    cache, k, v = filled(rng, 70, 2)
    q = cupy.asarray(half(rng, 1, 4, 1, 32))
    host = alignedkv.KVCache(2, 32)
    with pytest.raises(alignedkv.Error, match="expected k in memory of the CPU, got a .*ndarray on <CUDA Device 0>: pass a copy on the CPU, or use a KVCache with device='cuda'"):
        host.append(cupy.asarray(k), cupy.asarray(v))
    host.append(k, v)
    with pytest.raises(alignedkv.Error, match="expected q in memory of the CPU"):
        host.attend(q)
    for array in (k, v):
        other = cupy.asarray(array)
        with pytest.raises(alignedkv.Error, match="expected [kv] on device 0 of CUDA, the current one, got device 1"):
            cache.append(Elsewhere(other._numbers, other._memory) if array is k else cupy.asarray(k), Elsewhere(other._numbers, other._memory))
    with pytest.raises(alignedkv.Error, match="expected q on device 0 of CUDA, the current one, got device 1"):
        cache.attend(Elsewhere(q._numbers, q._memory))
    with pytest.raises(alignedkv.Error, match="expected q of float16, bfloat16 or float32, got float64"):
        cache.attend(q.astype("float64"))
    with pytest.raises(alignedkv.Error, match=r"expected q of shape \[1, a multiple of 2, queries, 32\], got \[1, 4, 1, 16\]"):
        cache.attend(q[..., :16])
    with pytest.raises(alignedkv.Error, match="expected float16 of k, got float32"):
        cache.append(cupy.asarray(k.astype(np.float32)), cupy.asarray(v))
    with pytest.raises(alignedkv.Error, match="expected as many keys as values, got 70 and 69 tokens"):
        cache.append(cupy.asarray(k), cupy.asarray(v[:, :, :69]))
    with pytest.raises(alignedkv.Error, match="expected device 'cpu' or 'cuda', got 'tpu'"):
        alignedkv.KVCache(2, 32, device="tpu")
    with pytest.raises(alignedkv.Error, match="expected dense_up_to only on the CPU, got it with device 'cuda'"):
        alignedkv.KVCache(2, 32, device="cuda", dense_up_to=100)
    with pytest.raises(alignedkv.Error, match="expected the key's planes to be fixed<4, 4, 8> on this target"):
        alignedkv.KVCache(2, 32, device="cuda", format="fixed<8,8>")
    assert len(cache) == 70
    cache.close()
    with pytest.raises(alignedkv.Error, match="expected an open cache, got one that was closed"):
        cache.attend(q)


def test_pages_run_out(rng):
    cache = alignedkv.KVCache(2, 32, device="cuda", page_size=64, reserve=128)
    k = cupy.asarray(half(rng, 1, 2, 100, 32))
    cache.append(k, k)
    assert cache.free_pages == 0
    with pytest.raises(alignedkv.Error, match="expected at most 128 tokens"):
        cache.append(k, k)
    assert len(cache) == 100 and len(cache._key) == 100


def test_a_child_has_no_gpu(rng):
    cache, *_ = filled(rng, 10, 1)
    pid = os.fork()
    if not pid:
        try:
            len(cache)
        except alignedkv.Error as error:
            os._exit(0 if "expected a cache of this process, got one on a GPU" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(cache) == 10


def test_without_a_driver():
    code = "import alignedkv\ntry: alignedkv.KVCache(1, 32, device='cuda')\nexcept alignedkv.Error as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code], env={**os.environ, "ALIGNED_LIBCUDA": "nowhere.so", "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=True).stdout
    assert said.startswith("no CUDA driver found: nowhere.so")
