"""Caches of all layers of a model, each with the attention over it: those of `alignedkv`, and float32 arrays that hold what other formats would give back.

All have `attend(layer, q, k, v)`, which the network calls: it appends k and v [tokens, kv_heads, head_dim] and returns [tokens, q_heads, head_dim]."""

from typing import Callable, NamedTuple

import ml_dtypes
import numpy as np

import alignedkv


class Planes:
    """A cache of `alignedkv` for each layer, with the tokens of a Dense one, read under one policy."""

    def __init__(self, dense, policy):
        self.policy, self.bits, self.values, self.layers = policy, 0, 0, []
        for k, v in zip(dense.k, dense.v):
            self.layers.append(alignedkv.KVCache(k.shape[0], k.shape[2], dtype="float32"))
            self.layers[-1].append(k[None, :, :len(dense)], v[None, :, :len(dense)])

    def attend(self, layer, q, k, v):
        cache = self.layers[layer]
        q, k, v = (np.swapaxes(x, 0, 1)[None] for x in (q, k, v))
        cache.append(k, v)
        out = cache.attend(q, policy=self.policy, causal=True)
        self.bits += cache.reads["key_bits"] + cache.reads["value_bits"]
        self.values += cache.reads["key_values"] + cache.reads["value_values"]
        return np.swapaxes(out[0], 0, 1)

    def truncate(self, tokens):
        for cache in self.layers:
            cache.truncate(tokens)

    def beside_f16(self):
        """Bytes that were read so far, beside those of all values in 16 bits."""
        return self.bits / max(self.values, 1) / 16

    def __len__(self):
        return len(self.layers[-1])


def exact(q, k, v):
    """Attention in float64: q [kv_heads, group, queries, dim] over k and v [kv_heads, tokens, dim]; the queries are the newest tokens."""
    q, k, v = (x.astype(np.float64) for x in (q, k[:, None], v[:, None]))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    queries = q.shape[2]
    scores[..., -queries:] += np.triu(np.full((queries, queries), -np.inf), 1)
    weights = np.exp(scores - scores.max(3, keepdims=True))
    return weights @ v / weights.sum(3, keepdims=True)


def flash(q, k, v):
    """16-bit flash attention of one query: scores and sums in float32; K, V, the weights in front of V and the output in f16."""
    scores = q @ k[:, None].swapaxes(2, 3) / np.float32(np.sqrt(q.shape[3]))
    weights = np.exp(scores - scores.max(3, keepdims=True))
    return half(half(weights) @ v[:, None] / weights.sum(3, keepdims=True))


def same(x):
    return x


def half(x):
    return x.astype(np.float16).astype(np.float32)


def e4m3(x):
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def q8_0(x):
    """8-bit integers; 32 channels share a scale."""
    groups = x.reshape(-1, 32)
    scale = half(np.abs(groups).max(1, keepdims=True) / 127)
    return (np.clip(np.rint(groups / np.maximum(scale, 1e-30)), -127, 127) * scale).reshape(x.shape)


def int4(x):
    """4-bit integers; 32 values along the last axis share a scale and a zero point."""
    groups = x.reshape(-1, 32)
    zero = half(groups.min(1, keepdims=True))
    scale = half((groups.max(1, keepdims=True) - zero) / 15)
    return (np.clip(np.rint((groups - zero) / np.maximum(scale, 1e-30)), 0, 15) * scale + zero).reshape(x.shape)


def int4_along_tokens(x):
    return int4(x.swapaxes(1, 2)).swapaxes(1, 2)


class Format(NamedTuple):
    """arrive: what becomes of a token at once. keys, values: what becomes of blocks of `block` tokens, whose values take `bits` bits each."""
    arrive: Callable = same
    keys: Callable = same
    values: Callable = same
    bits: float = 16
    block: int = 1
    attention: Callable = exact


REFERENCE = Format()
FORMATS = {"fp16 flash attention": Format(arrive=half, attention=flash), "q8_0": Format(keys=q8_0, values=q8_0, bits=8.5),
           "fp8 e4m3": Format(keys=e4m3, values=e4m3, bits=8), "int4, KIVI-like": Format(half, int4_along_tokens, int4, bits=5, block=32)}


class Dense:
    """What a format gives back, as float32 arrays [kv_heads, capacity, dim] for each layer; with the tokens of another one."""

    def __init__(self, model, capacity, format=REFERENCE, tokens_of=None):
        self.k, self.v = ([np.empty((model.kv_heads, capacity, model.head_dim), np.float32) for _ in model.layers] for _ in "kv")
        self.format, self.tokens = format, [0] * len(model.layers)
        if tokens_of is not None:
            for layer, (k, v) in enumerate(zip(tokens_of.k, tokens_of.v)):
                self.append(layer, k[:, :len(tokens_of)], v[:, :len(tokens_of)])

    def append(self, layer, k, v):
        first, last, block = self.tokens[layer], self.tokens[layer] + k.shape[1], self.format.block
        whole = slice(first // block * block, last // block * block)
        for held, x, store in [(self.k[layer], k, self.format.keys), (self.v[layer], v, self.format.values)]:
            held[:, first:last] = self.format.arrive(x)
            held[:, whole] = store(held[:, whole])
        self.tokens[layer] = last

    def attend(self, layer, q, k, v):
        q, k, v = (np.swapaxes(x, 0, 1) for x in (q, k, v))
        self.append(layer, k, v)
        k, v = (held[layer][:, :self.tokens[layer]] for held in (self.k, self.v))
        out = self.format.attention(q.reshape(len(k), -1, *q.shape[1:]), k, v)
        return np.swapaxes(out.reshape(q.shape), 0, 1).astype(np.float32)

    def beside_f16(self):
        blocks = len(self) // self.format.block * self.format.block / len(self)
        return blocks * self.format.bits / 16 + 1 - blocks

    def __len__(self):
        return self.tokens[-1]
