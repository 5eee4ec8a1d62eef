"""The oracle of these tests and of test/Integration: exact attention and plane storage, said again in float64 NumPy."""

import os
import pathlib
import sys

import numpy as np
import pytest

# An installed package, or one on PYTHONPATH, goes first.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "build" / "python"))

# What stands in for a GPU, where somebody asks for one.
os.environ.setdefault("ALIGNED_LIBCUDA", str(pathlib.Path(sys.path[-1]).parent / "lib" / "libaligned_cuda_emulator.so"))

TOKENS = [0, 1, 63, 64, 65, 97]  # around the tile of 64
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
    """The largest relative L2 error of an output row."""
    assert out.shape == expected.shape
    norm = np.linalg.norm(expected, axis=-1)
    return (np.linalg.norm(out - expected, axis=-1) / np.maximum(norm, 1e-30)).max(initial=0)


def errors_of_usual(out, expected, v):
    """L2 error of each output row, relative to what a tolerance is about (P2): the usual length of a row of V of its kv head, or of the output where that
    is longer."""
    assert out.shape == expected.shape
    usual = np.linalg.norm(v.astype(np.float64), axis=-1).mean(-1) if v.shape[2] else np.ones(v.shape[:2])
    usual = np.repeat(usual, out.shape[1] // v.shape[1], 1)[..., None]
    return np.linalg.norm(out - expected, axis=-1) / np.maximum(usual, np.linalg.norm(expected, axis=-1))


def blocks_of(dim):
    """Where the rotation's blocks begin and end (S2): the powers of two of a number, the largest first."""
    blocks, first = [], 0
    while first < dim:
        size = 1 << ((dim - first).bit_length() - 1)
        blocks.append((first, first + size))
        first += size
    return blocks


def rotation(dim):
    """S2: R, so that K is stored as (k - offset) R."""

    def sign(channel):
        x = (channel + 1) * 0x9E3779B9 % 2**32
        x = (x ^ x >> 15) * 0x85EBCA6B % 2**32
        return -1.0 if x >> 31 else 1.0

    matrix = np.zeros((dim, dim))
    for first, end in blocks_of(dim):
        h = np.ones((1, 1))
        while len(h) < end - first:
            h = np.block([[h, h], [h, -h]])
        matrix[first:end, first:end] = h / np.sqrt(end - first)
    return np.array([sign(c) for c in range(dim)])[:, None] * matrix


def whole_planes(bits, format):
    """How many bits are read where `bits` are asked for."""
    return next(read for read in np.cumsum([int(width) for width in format[6:-1].split(",")]) if read >= bits)


class Stored:
    """S2 to S5: what fixed planes make of float16 tokens [batch, kv_heads, tokens, dim], all appended at once. Arrays [..., tokens, dim] or [..., tokens, 1]."""

    def __init__(self, x, role, offset=None):
        x = np.asarray(x, np.float64)
        tokens, dim = x.shape[2:]
        self.role, self.rotation = role, rotation(dim) if role == "key" else np.eye(dim)
        self.offset = np.zeros((*x.shape[:2], 1, dim))
        if role == "key" and offset is not None:
            self.offset += np.asarray(offset, np.float64)[None, :, None]
        elif role == "key" and tokens >= 64:
            self.offset = x[:, :, :64].mean(2, keepdims=True).astype(np.float32).astype(np.float64)
        turned = (x - self.offset) @ self.rotation
        largest = np.abs(turned).max(3, keepdims=True, initial=0) * 16 / 15
        self.code = np.clip(np.ceil(8 * np.log2(np.maximum(largest, 2.0**-100)) - 1e-9) + 126, 1, 255)
        self.scale = 2.0 ** ((self.code - 126) / 8)
        self.dither = (np.arange(tokens) * {"key": 3091, "value": 2333}[role] % 4096 - 2048)[:, None]
        self.n = np.clip(np.rint(turned / self.scale * 2**15) + self.dither, -(2**15), 2**15 - 1).astype(np.int64)

    def read(self, bits):
        """With the top `bits` bits: the dense values again."""
        middle = 2 ** (15 - bits) if bits < 16 else 0
        values = ((self.n >> (16 - bits) << (16 - bits)) + middle - self.dither) * self.scale / 2**15
        return values @ self.rotation.T + self.offset

    def bound(self, bits):
        """S4: the most that a value is off. An error of all channels of a rotated block may meet in one."""
        off = self.scale * (2.0**-16 + (2.0**-bits if bits < 16 else 0))
        dim = self.n.shape[3]
        return off * np.concatenate([np.full(end - first, np.sqrt(end - first) if self.role == "key" else 1.0) for first, end in blocks_of(dim)])


def to_bfloat16_bits(x):
    """float32 to the bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
