"""What a cache does with its sequences: lengths of their own, pages, beams, copies on disk and in other processes."""

import multiprocessing
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from conftest import errors_of_usual, exact_attention
from test_cache import POLICIES, assert_same, filled, half

import alignedkv

KINDS = {"plain": {}, "paged": dict(page_size=64, reserve=2048), "dense": dict(dense_up_to=512), "float": dict(format="float<8,4,4>")}


def attends_like(cache, q, k, v, lengths, policy="exact"):
    """Each sequence gives what attention over its own tokens gives."""
    out = cache.attend(q, policy=policy)
    for n, length in enumerate(lengths):
        expected = exact_attention(q[n : n + 1], k[n : n + 1, :, :length], v[n : n + 1, :, :length])
        assert errors_of_usual(out[n : n + 1], expected, v[n : n + 1, :, : max(1, length)]).max() <= POLICIES[policy], n


@pytest.mark.parametrize("options", [KINDS["plain"], KINDS["paged"], KINDS["dense"]])
def test_sequences_have_lengths_of_their_own(rng, options):
    cache = alignedkv.KVCache(3, 32, batch=3, **options)
    k, v, q = half(rng, 3, 3, 130, 32), half(rng, 3, 3, 130, 32), half(rng, 3, 6, 1, 32)
    lengths = [130, 0, 65]
    cache.append(k, v, lengths)
    assert cache.lengths == lengths and len(cache) == 130
    attends_like(cache, q, k, v, lengths)
    cache.append(k[:, :, :1], v[:, :, :1])  # one more for each
    assert cache.lengths == [131, 1, 66]
    cache.truncate([100, 1, 60])
    assert cache.lengths == [100, 1, 60]
    for n, length in enumerate(cache.lengths):
        k[n, :, 0 if length == 1 else length :] = k[n, :, :1] if length == 1 else 0
        v[n, :, 0 if length == 1 else length :] = v[n, :, :1] if length == 1 else 0
    attends_like(cache, q, k, v, cache.lengths, "balanced")
    cache.truncate(50)
    assert cache.lengths == [50, 1, 50]


def test_causal_queries_stand_at_the_end_of_their_own_sequence(rng):
    cache = alignedkv.KVCache(1, 32, batch=2)
    k, v, q = half(rng, 2, 1, 70, 32), half(rng, 2, 1, 70, 32), half(rng, 2, 1, 2, 32)
    cache.append(k, v, [70, 20])
    out = cache.attend(q, policy="exact", causal=True)
    for n, length in enumerate([70, 20]):
        for i in range(2):
            seen = length - 1 + i
            expected = exact_attention(q[n : n + 1, :, i : i + 1], k[n : n + 1, :, :seen], v[n : n + 1, :, :seen])
            assert np.abs(out[n, 0, i] - expected[0, 0, 0]).max() <= 1e-3


@pytest.mark.parametrize("lengths, message", [
    ([1, 2], "expected lengths of 3 batch entries, got 2"), ([1, 2, 5], "expected lengths from 0 to 4, got 5"), ([1, 2, -1], "expected lengths to be 0 or more, got -1"),
    (3, "expected lengths to be integers, got int"), ([1, 2, 0.5], "expected lengths to be an integer, got float")])
def test_impossible_lengths_change_nothing(rng, lengths, message):
    cache, k, v = filled(rng, 4, 2, batch=3)
    with pytest.raises(alignedkv.Error, match=message):
        cache.append(k, v, lengths)
    assert cache.lengths == [4, 4, 4]


def test_float_caches_have_one_length(rng):
    cache, k, v = filled(rng, 9, 2, batch=2, format="float<8,4,4>")
    for call in (lambda: cache.append(k, v, [9, 1]), lambda: cache.truncate([9, 1])):
        with pytest.raises(alignedkv.Error, match="with a 'fixed' format only, got 'float<8,4,4>'"):
            call()
    assert cache.attend(half(rng, 2, 2, 1, 32), policy="exact").shape == (2, 2, 1, 32)


def test_impossible_truncations_change_nothing(rng):
    cache, k, v = filled(rng, 4, 2, batch=2)
    cache.append(k, v, [4, 2])
    for tokens, message in [([8, 7], r"expected to keep 0 to 6 tokens of batch entry 1, got 7"), ([1], "of 2 batch entries, got 1"), ([9, 0], "expected tokens from 0 to 8, got 9"),
                            (9, "expected to keep 0 to 8 tokens, got 9"), ("12", "expected tokens to be an integer, got str")]:
        with pytest.raises(alignedkv.Error, match=message):
            cache.truncate(tokens)
        assert cache.lengths == [8, 6]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indices", [[2, 0, 1], [0, 0, 0], [1, 1, 2]])
def test_reorder_is_the_cache_of_these_sequences(rng, kind, indices):
    cache, k, v = filled(rng, 100, 3, batch=3, **KINDS[kind])
    k[1, 2, 80, 5] = np.nan  # kept aside
    cache.truncate(0)
    cache.append(k, v)
    cache.reorder(indices)
    other = alignedkv.KVCache(3, 32, batch=3, **KINDS[kind])
    other.append(k[indices], v[indices])
    for _ in range(2):
        assert len(cache) == len(other)
        for a, b in zip(cache.to_numpy(), other.to_numpy()):
            np.testing.assert_array_equal(a.view(np.uint16), b.view(np.uint16))
        q = half(rng, 3, 3, 1, 32)
        np.testing.assert_array_equal(cache.attend(q, policy="exact"), other.attend(q, policy="exact"))
        more = half(rng, 3, 3, 70, 32)  # goes to each of the copies by itself
        for one in (cache, other):
            one.append(more, more[:, ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_batch_select(rng, kind):
    cache, k, v = filled(rng, 100, 3, batch=3, **KINDS[kind])
    cache.batch_select(np.array([2, 2, 0, 1, 2]))
    assert cache.batch == 5
    q = half(rng, 5, 3, 1, 32)
    assert errors_of_usual(cache.attend(q, policy="exact"), exact_attention(q, k[[2, 2, 0, 1, 2]], v[[2, 2, 0, 1, 2]]), v[[2, 2, 0, 1, 2]]).max() <= POLICIES["exact"]
    cache.batch_select([3])
    assert cache.batch == 1 and len(cache) == 100
    np.testing.assert_array_equal(cache.to_numpy()[0].shape, (1, 3, 100, 32))


def test_the_last_of_sequences_that_share_a_page_keeps_it(rng):
    cache = alignedkv.KVCache(1, 32, batch=2, page_size=64, reserve=64)  # 2 pages
    k = half(rng, 2, 1, 11, 32)
    cache.append(k[:, :, :10], k[:, :, :10])
    cache.reorder([1, 1])
    cache.append(k[:, :, 10:], k[:, :, 10:])
    for n in range(2):
        np.testing.assert_allclose(cache.to_numpy()[0][n, 0], np.concatenate([k[1, 0, :10], k[n, 0, 10:]]), atol=1e-2)
    twin = cache.copy()
    with pytest.raises(alignedkv.Error, match="expected 2 free pages, got 0 of 2"):
        twin.append(k[:, :, :1], k[:, :, :1])


def test_selected_sequences_keep_their_lengths(rng):
    cache = alignedkv.KVCache(1, 32, batch=3)
    k = half(rng, 3, 1, 90, 32)
    cache.append(k, k, [90, 3, 70])
    cache.batch_select([1, 2])
    assert cache.lengths == [3, 70] and len(cache) == 70


@pytest.mark.parametrize("method, indices, message", [
    ("reorder", [0], "expected indices of 2 batch entries, got 1"), ("reorder", [0, 2], "expected a batch entry from 0 to 1, got 2"),
    ("reorder", [0, -1], "expected indices to be 0 or more, got -1"), ("batch_select", [], "expected at least one batch entry, got 0"),
    ("batch_select", 3, "expected indices to be integers, got int"), ("batch_select", ["a"], "expected indices to be an integer, got str")])
def test_impossible_indices_change_nothing(rng, method, indices, message):
    cache, k, _ = filled(rng, 5, 1, batch=2)
    before = cache.to_numpy()[0]
    with pytest.raises(alignedkv.Error, match=message):
        getattr(cache, method)(indices)
    assert cache.batch == 2
    np.testing.assert_array_equal(cache.to_numpy()[0], before)


# Memory


def test_pages_come_from_a_pool_that_ends(rng):
    cache = alignedkv.KVCache(2, 32, batch=2, page_size=64, reserve=128)  # 4 pages
    k = half(rng, 2, 2, 192, 32)
    cache.append(k, k, [192, 0])
    before = cache.nbytes
    assert cache.free_pages == 1 and alignedkv.KVCache(2, 32).free_pages == 0
    with pytest.raises(alignedkv.Error, match="expected 2 free pages, got 1 of 4"):
        cache.append(k[:, :, :64], k[:, :, :64])
    assert cache.lengths == [192, 0] and cache.nbytes == before
    twin = cache.copy()  # shares all pages
    cache.append(k[:, :, :1], k[:, :, :1], [0, 1])
    with pytest.raises(alignedkv.Error, match="expected 1 free pages, got 0 of 4"):
        twin.append(k[:, :, :1], k[:, :, :1], [0, 1])
    cache.truncate([0, 1])  # the twin holds them yet
    twin.truncate([64, 0])
    twin.append(k[:, :, :64], k[:, :, :64], [64, 64])
    assert twin.lengths == [128, 64] and cache.lengths == [0, 1]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("tokens", [1024, 4096, 8192])
def test_memory_is_that_of_16_bits(rng, tokens, head_dim):
    dense = 2 * 2 * 4 * tokens * head_dim
    whole = alignedkv.KVCache(4, head_dim)
    whole.append(half(rng, 1, 4, tokens, head_dim), half(rng, 1, 4, tokens, head_dim))
    reserved = alignedkv.KVCache(4, head_dim, reserve=tokens)
    assert whole.nbytes <= 1.06 * dense and reserved.nbytes <= 1.06 * dense
    assert whole.nbytes - 2000 * head_dim <= reserved.nbytes
    more = half(rng, 1, 4, 1, head_dim)
    whole.append(more, more)
    assert whole.nbytes <= (2.05 if tokens < 4096 else 1.27) * dense


def test_reserved_memory_is_filled_and_not_left(rng):
    cache = alignedkv.KVCache(1, 32, reserve=1000)
    before, k = cache.nbytes, half(rng, 1, 1, 1000, 32)
    for first in range(0, 1000, 100):
        cache.append(k[:, :, first : first + 100], k[:, :, first : first + 100])
    assert cache.nbytes == before


def test_drop_planes_returns_memory(rng):
    cache, _, _ = filled(rng, 4096, 1, dim=64)
    before = cache.nbytes
    cache.drop_planes(2)
    assert cache.nbytes < 0.55 * before


@pytest.mark.parametrize("options, message", [
    (dict(page_size=32, reserve=64), "expected page_size to be 64 or None, got 32"), (dict(page_size=64), "expected reserve to be 1 or more with page_size"),
    (dict(page_size=64, reserve=64, format="float<8,4,4>"), "expected page_size with a 'fixed' format only"), (dict(reserve=-1), "expected reserve to be 0 or more, got -1"),
    (dict(reserve=2**38), "out of memory"), (dict(reserve=2**50), "expected reserve to be below 1099511627776"), (dict(page_size=64.0, reserve=64), "expected page_size to be an integer, got float"), (dict(page_size=64, reserve=64, dense_up_to=100), "expected dense_up_to without page_size, got 100 with one"), (dict(reserve="all"), "expected reserve to be an integer, got str"),
    (dict(page_size=64, reserve=2**39), "expected 0 to 2147483647 pages")])
def test_impossible_memory(options, message):
    with pytest.raises(alignedkv.Error, match=message):
        alignedkv.KVCache(1, 256, **options)


def test_a_closed_cache_refuses_everything(rng):
    cache, k, v = filled(rng, 5, 1)
    cache.close()
    cache.close()
    for call in (lambda: cache.append(k, v), lambda: cache.attend(k), lambda: len(cache), lambda: cache.truncate(0), lambda: cache.copy(), lambda: cache.nbytes, lambda: pickle.dumps(cache)):
        with pytest.raises(alignedkv.Error, match="expected an open cache, got one that was closed"):
            call()


def test_a_cache_is_true_while_it_holds_nothing(rng):
    cache = alignedkv.KVCache(1, 32)
    assert cache and len(cache) == 0 and cache._key
    q = half(rng, 1, 2, 3, 32)
    out, lse = cache.attend(q, return_lse=True)
    assert (out == 0).all() and (lse == -np.inf).all()


# On disk and in other processes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pickles_are_the_same_cache(rng, kind, dtype):
    options = {**KINDS[kind], **(dict(format="float<12,4>") if kind == "float" and dtype == "bfloat16" else {})}
    cache = alignedkv.KVCache(3, 32, batch=2, dtype=dtype, **options)
    k = rng.standard_normal((2, 3, 100, 32)).astype(np.float32)
    k[1, 2, 7, 3] = np.inf
    tokens = {"float16": np.float16, "float32": np.float32}.get(dtype)
    k = k.astype(tokens) if tokens else (k.view(np.uint32) >> 16).astype(np.uint16)
    cache.append(k, k[:, ::-1])
    twin = pickle.loads(pickle.dumps(cache))
    for one in (cache, twin):
        one.append(k[:, :, :70], k[:, :, :70])
    q = half(rng, 2, 6, 1, 32)
    np.testing.assert_array_equal(cache.attend(q, policy="exact"), twin.attend(q, policy="exact"))
    for a, b in zip(cache.to_numpy(), twin.to_numpy()):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
    assert (twin.lengths, twin.nbytes, repr(twin)) == (cache.lengths, cache.nbytes, repr(cache))


def test_pickles_of_ragged_and_narrowed_caches(rng):
    cache = alignedkv.KVCache(3, 32, batch=2, format="fixed<4,4,4,4>", page_size=64, reserve=256)
    k = half(rng, 2, 3, 100, 32)
    cache.append(k, k, [100, 33])
    cache.drop_planes(3)
    assert_same(cache, pickle.loads(pickle.dumps(cache)), half(rng, 2, 3, 1, 32))
    one = pickle.loads(pickle.dumps(cache._key))
    np.testing.assert_array_equal(one.to_numpy(), cache._key.to_numpy())


def test_pickles_of_sequences_that_share_pages(rng):
    cache = alignedkv.KVCache(1, 32, batch=2, page_size=64, reserve=128)
    k = half(rng, 2, 1, 100, 32)
    cache.append(k, k)
    cache.batch_select([0, 0, 0])
    assert_same(cache, pickle.loads(pickle.dumps(cache)), half(rng, 3, 1, 1, 32))


def checksum(stretches):
    """What a saved cache ends with."""
    total = 0xCBF29CE484222325
    for stretch in stretches:
        for at in range(0, len(stretch), 8):
            total = (total ^ int.from_bytes(stretch[at : at + 8], "little")) * 0x9E3779B97F4A7C15 % 2**64
            total ^= total >> 29
    return total.to_bytes(8, "little")


@pytest.mark.parametrize("number", [10**9, -(10**9), 2**31 - 1, 300])
def test_nothing_in_a_pickle_leads_astray(rng, number):
    """Whoever wrote it, and whatever checksum he gave it: what is known of scales is counted again, and sizes must fit."""
    cache, k, v = filled(rng, 5, 1, dim=16)
    saved = cache._key.__getstate__()
    sizes = [144, 512, 512, 1024, 64, 1048, 64, 64]  # head, planes, codes, scales, offset, maxima
    assert len(saved) == sum(sizes) + 8
    stretches = [saved[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
    assert checksum(stretches) == saved[-8:]
    for place in (0, 4, 8, 16):  # largest, median, below, tokens
        changed = bytearray(stretches[5])
        changed[place : place + 4] = int(number).to_bytes(4, "little", signed=True)
        twin = cache.copy()
        parts = [*stretches[:5], bytes(changed), *stretches[6:]]
        twin._key = alignedkv._alignedkv._load(b"".join(parts) + checksum(parts))
        assert_same(cache, twin, half(rng, 1, 2, 1, 16))
        twin.append(k, v)
        twin.truncate(3)
    for place in range(40, 128, 8):  # numbers of the head
        changed = bytearray(stretches[0])
        changed[place : place + 8] = int(-number if number > 0 else number).to_bytes(8, "little", signed=True)
        parts = [bytes(changed), *stretches[1:]]
        try:
            assert len(alignedkv._alignedkv._load(b"".join(parts) + checksum(parts))) == 5
        except alignedkv.Error:
            pass


def test_what_was_changed_on_disk_is_refused(rng):
    cache, _, _ = filled(rng, 70, 2)
    saved = cache._key.__getstate__()
    load = alignedkv._alignedkv._load
    assert len(load(saved)) == 70
    for broken in [b"", saved[:100], saved[:-1], saved + b"x", b"x" + saved[1:], saved[:200] + bytes([saved[200] ^ 1]) + saved[201:]]:
        with pytest.raises(alignedkv.Error, match="expected a saved cache, got"):
            load(broken)
    for at in range(8, 160):  # numbers of the head
        changed = bytearray(saved)
        changed[at] ^= 0x41
        with pytest.raises(alignedkv.Error):
            load(bytes(changed))


def test_a_forked_process_works_on_with_its_copy(rng):
    cache, k, v = filled(rng, 200, 3)
    q = half(rng, 1, 3, 1, 32)
    expected = cache.attend(q)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            cache.append(k, v)
            cache.truncate(200)
            os.write(writer, b"same" if (cache.attend(q) == expected).all() else b"diff")
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 4)
    os.waitpid(child, 0)
    assert said == b"same" and len(cache) == 200


def ends_well(body, seconds=20):
    """Whether `body` comes to an end in a child."""
    child = os.fork()
    if not child:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    for _ in range(seconds * 20):
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return ended[1] == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def test_threads_of_a_child_share_a_cache(rng):
    cache, k, v = filled(rng, 500, 2)
    q = half(rng, 1, 2, 1, 32)
    cache.attend(q)

    def body():
        errors = []

        def attend():
            try:
                for _ in range(100):
                    cache.attend(q)
            except alignedkv.Error as error:
                errors.append(error)

        threads = [threading.Thread(target=attend) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    assert ends_well(body)


def test_a_handler_of_a_signal_that_uses_the_cache(rng):
    """It comes into no call, and hangs in none: it is told where it may not."""

    def body():
        cache, k, v = filled(rng, 2000, 2)
        q, said = half(rng, 1, 2, 70, 32), []

        def handler(*_):
            try:
                said.append(len(cache))
            except alignedkv.Error as error:
                assert "expected a cache that this thread is not using" in str(error)
                said.append(None)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            cache.append(k, v)
            cache.attend(q)
            cache.truncate(2000)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(cache) == 2000 and len(said) > 5

    assert ends_well(body)


def test_all_pieces_of_queries_see_the_same_tokens(rng):
    cache, k, v = filled(rng, 64, 1, dim=16)
    k[:], v[:] = 0, 1  # outputs tell how many tokens of value 3 are there, too
    cache.truncate(0)
    cache.append(k, v)
    q, done, mixed = half(rng, 1, 1, 320, 16), threading.Event(), []
    more = np.full((1, 1, 64, 16), 3, np.float16)

    def change():
        while not done.is_set():
            cache.append(k, more)
            cache.truncate(64)

    writer = threading.Thread(target=change)
    writer.start()
    for _ in range(60):
        out = cache.attend(q, policy="exact")
        mixed.append(np.ptp(out) > 0.1)
    done.set()
    writer.join()
    assert not any(mixed)


def test_spawned_processes_get_copies(rng):
    cache, k, v = filled(rng, 70, 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(len, (cache,)) == 70


@pytest.mark.parametrize("attempt", range(3))
def test_an_interrupted_append_has_happened_or_not(rng, attempt):
    """Whenever Ctrl-C comes, keys and values are of the same whole number of appends, and the cache works on."""
    cache, k, v = filled(rng, 0, 4, dim=64)
    k, v = half(rng, 1, 4, 500, 64), half(rng, 1, 4, 500, 64)
    done = 0
    timer = threading.Timer(0.02 + 0.013 * attempt, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    try:
        while True:
            cache.append(k, v)
            done += 1
            time.sleep(0)
    except KeyboardInterrupt:
        pass
    timer.join()
    assert len(cache._key) == len(cache._value) and len(cache) in (500 * done, 500 * (done + 1))
    cache.append(k, v)
    assert np.isfinite(cache.attend(k[:, :, :1])).all()
