"""Prints, for caches that test/python/test_tolerance.py makes to mislead the rule, what policies read and err: a table in Markdown.

    PYTHONPATH=build/python python benchmarks/cpu/misleading.py"""
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "test/python"))
import alignedkv  # noqa: E402
from test_tolerance import KINDS, TOLERANCES, exact_attention, errors_of_usual  # noqa: E402


def measure(kind, policy):
    """Share of a 16-bit cache's bytes, and of 16 query rows the largest error in tolerances, over its estimate and over its bound."""
    shares, errors, estimates, bounds = [], [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        k, v, q = (rng.standard_normal((count, 64)) for count in (4096 - 37 * seed, 4096 - 37 * seed, 4))
        kind(q, k, v, rng)
        q, k, v = (x.astype(np.float16)[None] for x in (q, k, v))
        q, k, v = q.swapaxes(0, 1)[None, :, 0, None], k[None], v[None]
        cache = alignedkv.KVCache(1, 64)
        cache.append(k, v)
        out, bound, estimate = cache.attend(q, policy=policy, certify=True)
        reads, want = cache.reads, exact_attention(q, k, v, None)
        shares.append((reads["key_bits"] + reads["value_bits"]) / (reads["key_values"] + reads["value_values"]) / 16)
        errors.append(errors_of_usual(out, want, v).max() / TOLERANCES[policy])
        estimates.append((np.linalg.norm(out - want, axis=-1) / np.maximum(estimate * np.linalg.norm(out, axis=-1), 1e-30)).max())
        bounds.append((np.abs(out - want).max(-1) / bound).max())
    return np.mean(shares), max(errors), max(estimates), max(bounds)


print("| cache | " + " | ".join(f"{policy}: bytes | error" for policy in TOLERANCES) + " | error / estimate | error / bound |")
print("|---" * (3 + 2 * len(TOLERANCES)) + "|")
for kind in KINDS:
    found = [measure(kind, policy) for policy in TOLERANCES]
    cells = [f"{share:.2f} | {error:.2f}" for share, error, _, _ in found] + [f"{max(f[2] for f in found):.2f}", f"{max(f[3] for f in found):.4f}"]
    print(f"| {kind.__name__.replace('_', ' ')} | " + " | ".join(cells) + " |", flush=True)
