"""The oracle of these tests and of test/Integration: exact attention and split storage, said again in float64 NumPy."""

import pathlib
import sys

import numpy as np
import pytest

# An installed package, or one on PYTHONPATH, goes first.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "build" / "python"))

TOKENS = [0, 1, 63, 64, 65, 97]  # around the block of 64
HEADS = [1, 3, 7]


def exact_attention(q, k, v, scale=None):
    """softmax(scale q k^T) v in float64; no tokens give zeros."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    if k.shape[2] == 0:
        return np.zeros(q.shape[:3] + v.shape[3:])
    scores = q @ k.swapaxes(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def relative_error(out, expected):
    """The largest relative L2 error of a head's output."""
    assert out.shape == expected.shape
    norm = np.linalg.norm(expected, axis=-1)
    return (np.linalg.norm(out - expected, axis=-1) / np.maximum(norm, 1e-30)).max(initial=0)


def storage_bound(x, role, bits):
    """S1: how far a value of a full block may be off, with scale = 2^E * 16/15: scale * 2^-16 from its rounding to 16 bits, and scale * 2^-bits
    from the bits that are not read. 0 for the open tokens behind."""
    x = np.abs(np.asarray(x, np.float64))
    full = x.shape[2] // 64 * 64
    blocks = x[:, :, :full].reshape(*x.shape[:2], -1, 64, x.shape[3])
    largest = blocks.max({"key": 3, "value": 4}[role], keepdims=True) if full else blocks
    scale = 2.0 ** (np.floor(np.log2(np.maximum(largest, 2.0**-100))) + 1) * 16 / 15
    bound = np.zeros(x.shape)
    bound[:, :, :full] = np.broadcast_to(scale * (2.0**-16 + (2.0**-bits if bits < 16 else 0)), blocks.shape).reshape(bound[:, :, :full].shape)
    return bound


def to_bfloat16_bits(x):
    """float32 to the bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
