"""A property of caches and attention: whatever is asked of them, in whatever order, float64 NumPy says the same, as closely as they say themselves.

A configuration is drawn from a seed: what a cache holds and how, the appends, truncations, selections, copies and pickles that lead to it, and one attention over it. Plain
arrays go the same way, and attention over these in float64 says what is right:

- what is stored is off by no more than the planes that are left allow, and copies stay as they were;
- no channel is off by more than `bound`, and what is not finite is so exactly where dense attention is not finite;
- rows are off by what 16 bits lose, and by 3 times the tolerance; a row that is off by more has said so in its `estimate`, to within a factor of 4;
- logarithms of sums, and the tally of what was read, agree with that.

One configuration in ten does one thing wrong. Then an error is expected that names it, and a cache that is as it was.

Kernels take long to compile, so what they are compiled for comes from a few hundred recipes, and all else is drawn anew. The same seed gives the same configurations. They run
in a process of their own, since a defect may end it. With --leaks, calls are repeated instead, and memory must not grow.
"""
import argparse
import collections
import gc
import multiprocessing
import pathlib
import pickle
import random
import re
import resource
import sys
import time
import traceback
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "test/python"))
from conftest import blocks_of, from_bfloat16_bits, rotation, to_bfloat16_bits  # noqa: E402

import alignedkv  # noqa: E402

RECIPES = 250  # of one seed
TIME_LIMIT = 120  # seconds, of one configuration
FIXED = ("auto", "auto", "auto", "fixed<4,4,4,4>", "fixed<8,8>", "fixed<4,8,4>", "fixed<8,4,4>")
FLOAT = {"float16": ("float<8,4,4>", "float<8,8>", "float<12,4>"), "float32": ("float<8,4,4>",), "bfloat16": ("float<12,4>",)}
TOLERANCES = {"tight": 2.0**-12, "balanced": 2.0**-9, "fast": 2.0**-7, "draft": 2.0**-6}


# Drawing


class Recipe(NamedTuple):
    """What a kernel is compiled for."""

    batch: int
    kv_heads: int
    group: int
    queries: int
    head_dim: int
    value_dim: int
    dtype: str
    query_dtype: str
    format: str
    planes: int  # that are left
    dense_up_to: int
    policy: str
    scoring: Dict[str, Any]
    mask: Optional[Tuple[Tuple[bool, ...], str]]  # whether batch, heads and queries have masks of their own, those that are absent left out, and its dtype
    has_sink_logits: bool
    certify: bool

    @property
    def is_fixed(self):
        return not self.format.startswith("float")

    @property
    def widths(self):
        return [int(width) for width in re.findall(r"\d+", "fixed<4,4,8>" if self.format == "auto" else self.format)]


def draw_recipe(rng):
    dtype = rng.choice(("float16", "float16", "bfloat16", "float32"))
    format = rng.choice(FIXED) if rng.random() < 0.8 else rng.choice(FLOAT[dtype])
    is_fixed = not format.startswith("float")
    planes = len(Recipe._make([None] * 8 + [format] + [None] * 7).widths)
    group, queries = rng.choice((1, 1, 2, 3, 4, 5, 7, 8)), rng.choice((1, 1, 1, 2, 3, 5, 9))
    if rng.random() < 0.1:
        group, queries = rng.choice(((33, 1), (71, 1), (33, 2), (71, 3), (1, 40), (3, 40)))
    scoring = {}
    if rng.random() < 0.5:
        scoring["causal"] = True
    if rng.random() < 0.3:
        scoring["window"] = rng.choice((1, 7, 64, 100))
        if rng.random() < 0.5:
            scoring["sinks"] = rng.choice((1, 4, 70))
    if rng.random() < 0.2:
        scoring["softcap"] = rng.choice((1.5, 30.0))
    mask = None
    if rng.random() < 0.4:
        mask = tuple(rng.random() < 0.5 for _ in range(rng.randrange(4))), rng.choice(("bool", "float16", "bfloat16", "float32"))
    dims = [16 * rng.choice((1, 2, 3, 4, 5, 6, 8, 12, 16)) for _ in "kv"]
    return Recipe(rng.randrange(1, 4), rng.randrange(1, 4), group, queries, dims[0], rng.choice(dims), dtype, rng.choice(("float16", "bfloat16", "float32")), format,
                  planes if rng.random() < 0.8 else rng.randrange(1, planes + 1), rng.choice((0, 0, 0, 100, 512)) if is_fixed else 0,
                  rng.choice(("exact", "exact", "tight", "balanced", "balanced", "fast", "draft", "budget", "budget") if is_fixed else ("exact", "alignedkv")),
                  scoring, mask, rng.random() < 0.2, rng.random() < 0.6)


def kinds(rng, x):
    """What may be odd of tokens [batch, kv_heads, tokens, dim], in place."""
    where = tuple(int(rng.integers(size)) for size in x.shape)
    yield "huge value", lambda: x.__setitem__(where, -30000)
    yield "heavy tails", lambda: x.__setitem__(..., np.clip(rng.standard_t(2, x.shape), -3e4, 3e4))
    yield "zeros", lambda: x.__setitem__(..., 0)
    yield "a quarter of zeros", lambda: x.__setitem__((slice(None), slice(None), slice(None, None, 4)), 0)
    yield "equal tokens", lambda: x.__setitem__(..., x[:, :, :1].copy())
    yield "a mean", lambda: x.__iadd__(5 * rng.standard_normal(x.shape[3]))
    yield "an outlier channel", lambda: x.__imul__(np.where(np.arange(x.shape[3]) == where[3], 50, 1))
    yield "tiny", lambda: x.__imul__(1e-3)
    yield "NaN", lambda: x.__setitem__(where, np.nan)
    yield "inf", lambda: x.__setitem__(where, np.inf)
    yield "-inf", lambda: x.__setitem__(where, -np.inf)


def draw_tokens(rng, *shape):
    """Numbers, and what is odd of them."""
    x, said = rng.standard_normal(shape), []
    while x.size and rng.random() < 0.35:
        name, change = list(kinds(rng, x))[rng.integers(11)]
        change()
        said.append(name)
    return x, ", ".join(said) or "normal"


def typed(x, dtype):
    """As an array that is given, and the numbers that it holds."""
    if dtype == "bfloat16":
        bits = to_bfloat16_bits(x)
        return bits, from_bfloat16_bits(bits).astype(np.float64)
    array = np.asarray(x).astype(dtype)
    return array, array.astype(np.float64)


def presented(rng, array):
    """The same array, laid out in some other way."""
    way = rng.randrange(6)
    if way == 1:
        array = np.repeat(array, 2, -1)[..., ::2]
    elif way == 2:
        array = np.asfortranarray(array)
    elif way == 3:
        array = array[..., ::-1].copy()[..., ::-1]
    elif way == 4 and array.ndim > 2:
        array = np.swapaxes(np.swapaxes(array, 1, 2).copy(), 1, 2)
    elif way == 5:
        array = array.copy()
        array.flags.writeable = False
    return array


# The same in plain arrays


def finite(x):
    return np.where(np.isfinite(x), x, 0)


def len_of(sequence):
    return sequence.k.shape[1]


class Sequence(NamedTuple):
    """A batch entry: k and v [kv_heads, tokens, dim] in float64, and what is taken off keys (S2)."""

    k: np.ndarray
    v: np.ndarray
    offset: np.ndarray  # [kv_heads, dim]
    offset_is_given: bool

    def append(self, k, v):
        offset = self.offset
        if not self.offset_is_given and not self.k.shape[1] and k.shape[1] >= 64:
            finite = np.isfinite(k[:, :64]).all(2, keepdims=True)
            offset = np.where(finite, k[:, :64], 0).sum(1) / np.maximum(finite.sum(1), 1)
        return self._replace(k=np.concatenate([self.k, k], 1), v=np.concatenate([self.v, v], 1), offset=offset)

    def truncate(self, tokens):
        left = self._replace(k=self.k[:, :tokens], v=self.v[:, :tokens])
        return left if left.k.shape[1] or self.offset_is_given else left._replace(offset=np.zeros_like(self.offset))


def scales(x):
    """What the largest magnitude of each row is stored as a share of, at most (S3). Tokens kept aside count as zeros."""
    largest = np.abs(x).max(-1, initial=0)
    return np.where(np.isfinite(largest), largest, 0) * (16 / 15 * 2**0.125)


class Storage:
    """What planes lose of a sequence: of each token the scale of a value's error, and the share of it that is off as a standard deviation and at most."""

    def __init__(self, recipe, sequence, floors):
        self.recipe = recipe
        self.bits = sum(recipe.widths[: recipe.planes])
        self.turned = (sequence.k - sequence.offset[:, None]) @ rotation(recipe.head_dim)
        self.key, self.value = (np.maximum(scales(x), floor) for x, floor in zip((self.turned, sequence.v), floors))  # [kv_heads, tokens]
        if recipe.is_fixed:
            self.most = 2.0**-16 + (2.0**-self.bits if self.bits < 16 else 0)
        else:
            held = {"float16": 10, "float32": 10, "bfloat16": 7}[recipe.dtype] - (16 - self.bits)
            self.most = (2.0 ** -(held + 1) if self.bits < 16 else 0) + (2.0**-11 if recipe.dtype == "float32" else 0)

    def allowed(self, sequence):
        """The most that k and v are off where they are read back."""
        blocks = np.concatenate([np.full(end - first, np.sqrt(end - first)) for first, end in blocks_of(self.recipe.head_dim)])
        rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-23}[self.recipe.dtype]
        for x, scale, spread in zip((sequence.k, sequence.v), (self.key[..., None], self.value[..., None]), (blocks, 1)):
            if self.recipe.is_fixed:
                yield scale * self.most * (spread + rounding) + np.abs(x) * rounding + 2.0**-25
            else:
                yield np.abs(x) * self.most * 1.001 + 2.0 ** (-8 - self.bits)  # half's smallest numbers have as many bits as they have


class Rows(NamedTuple):
    """What attention over a sequence gives, [kv_heads, group, queries, ...], and of what."""

    out: np.ndarray
    lse: np.ndarray
    sees: np.ndarray  # [..., tokens], as p
    p: np.ndarray
    scaled: np.ndarray  # queries
    largest: np.ndarray  # cap and mask, what scores are rounded beside


def exact_rows(recipe, scale, sequence, q, mask, logits):
    """q: [kv_heads, group, queries, head_dim]; mask: [kv_heads or 1, group or 1, queries or 1, all tokens]."""
    k, v, tokens, queries = sequence.k, sequence.v, len_of(sequence), q.shape[2]
    position, token = np.arange(tokens - queries, tokens)[:, None], np.arange(tokens)
    sees = np.ones((*q.shape[:3], tokens), bool)
    if recipe.scoring.get("causal"):
        sees &= token <= position
    if "window" in recipe.scoring:
        sees &= (position - token < recipe.scoring["window"]) | (token < recipe.scoring.get("sinks", 0))
    added = np.zeros(1)
    if mask is not None:
        mask = mask[..., :tokens]
        sees &= mask if mask.dtype == bool else mask != -np.inf
        added = np.where(mask == -np.inf, 0, mask) if mask.dtype != bool else added
    scaled = q * (recipe.head_dim**-0.5 if scale is None else scale)
    scaled = np.where(np.isfinite(scaled).all(3, keepdims=True), scaled, np.nan)  # S7
    scores = np.einsum("hgqd,htd->hgqt", scaled, k, optimize=True) if np.isfinite(k).all() else (scaled[:, :, :, None] * k[:, None, None]).sum(-1)
    cap = recipe.scoring.get("softcap", 0)
    scores = np.where(sees, (cap * np.tanh(scores / cap) if cap else scores) + added, -np.inf)
    own = -np.inf if logits is None else logits[:, :, None]
    top = np.maximum(scores.max(3, initial=-np.inf), own)
    weights = np.exp(scores - top[..., None])
    total = weights.sum(3) + np.exp(own - top)
    p = weights / total[..., None]
    out = p @ finite(v)[:, None]
    for h, t in zip(*np.nonzero(~np.isfinite(v).all(2))):  # 0 times these is NaN, but where it is not seen
        out[h] += np.where(sees[h, ..., t, None], p[h, ..., t, None] * (v[h, t] - finite(v[h, t])), 0)
    return Rows(out if tokens else np.zeros_like(out), top + np.log(total), sees, p, scaled, cap + np.abs(added))


class Errors(NamedTuple):
    """What is to be expected of rows."""

    out: np.ndarray  # L2, of storage and floats
    lse: np.ndarray  # of the same
    reach: np.ndarray  # the most that a score is off where a first plane is all that is read


def errors_of(recipe, rows, sequence, storage, are_equal):
    """As standard deviations. Those of equal tokens are the same, and so add up."""
    k, v, scaled, out = (finite(x) for x in (sequence.k, sequence.v, rows.scaled, rows.out))
    length = lambda x: np.linalg.norm(x, axis=-1)  # noqa: E731
    products, bits = length(scaled)[..., None] * length(k)[:, None, None], recipe.widths[0]
    if recipe.is_fixed:
        sigma = length(scaled)[..., None] * (storage.key * storage.most / np.sqrt(3))[:, None, None]
        spoiled = storage.value * storage.most / np.sqrt(3) * np.sqrt(recipe.value_dim)
        reach = np.abs(scaled).sum(3)[..., None] * (storage.key * 2.0**-bits)[:, None, None]
    else:
        sigma = storage.most / np.sqrt(3) * np.sqrt(scaled**2 @ np.swapaxes(k, 1, 2)[:, None] ** 2)
        spoiled = storage.most / np.sqrt(3) * length(v)
        reach = products * (2.0**-3 if bits == 8 else 2.0**-5)
    floats = 2.0 ** (-20 if recipe.policy in ("exact", "alignedkv") else -15)  # queries have two digits elsewhere
    sigma = np.where(rows.sees, sigma + floats * products + 2.0**-21 * rows.largest, 0)
    apart = np.sqrt(np.maximum((v**2).sum(2)[:, None, None] - 2 * np.einsum("hgqd,htd->hgqt", out, v, optimize=True) + (out**2).sum(3)[..., None], 0))
    add_up = np.sum if are_equal else lambda x, axis: np.sqrt((x**2).sum(axis))
    off = add_up(rows.p * np.hypot(np.expm1(np.minimum(sigma, 50)) * apart, spoiled[:, None, None]), 3) + 2.0**-20 * (rows.p * length(v)[:, None, None]).sum(3)
    return Errors(off, add_up(rows.p * sigma, 3) + 2.0**-21 * np.abs(rows.lse), np.where(rows.sees, reach, 0).max(3, initial=0))


# One configuration


class Wrong(Exception):
    """What differs."""


def expect(condition, said):
    if not condition:
        raise Wrong(said)


class Configuration:
    """All that follows from a seed such as '0.123': the run's and the number of the configuration in it."""

    def __init__(self, seed):
        run, _, number = seed.partition(".")
        self.seed = seed
        self.recipe = draw_recipe(random.Random(f"{run} recipe {int(number) % RECIPES}"))
        self.rng = random.Random(f"{seed}")
        self.numbers = np.random.default_rng([int(run), int(number)])
        self.is_mistaken = self.rng.random() < 0.1
        self.steps: List[str] = []
        self.bystanders: List[Tuple[Any, Any, Any]] = []  # caches that nobody is to change, and what they held
        self.facts: collections.Counter = collections.Counter()

    def __str__(self):
        recipe = ", ".join(f"{name} {value}" for name, value in self.recipe._asdict().items())
        return f"{recipe}\n    cache {self.cache_options}; keys {self.said[0]}; values {self.said[1]}\n    {'; '.join(self.steps)}"

    # What leads to a cache

    def build(self):
        recipe, rng = self.recipe, self.rng
        most = rng.choice((0, 1, 5, 63, 64, 65, 97, 127, 128, 130, 300, 300, 513, 700, 700))
        if rng.random() < 0.06 and recipe.group * recipe.queries <= 8:
            most = rng.choice((2049, 3000))
        self.is_ragged = recipe.is_fixed and rng.random() < 0.3
        self.cache_options = {}
        batch = recipe.batch if rng.random() < 0.7 else rng.randrange(1, 4)
        (self.k, key_kind), (self.v, value_kind) = (draw_tokens(self.numbers, 3, recipe.kv_heads, max(most, 1), dim) for dim in (recipe.head_dim, recipe.value_dim))
        self.said = key_kind, value_kind
        self.are_equal = any(word in key_kind + value_kind for word in ("equal", "zeros"))
        if recipe.is_fixed and not recipe.dense_up_to and most <= 700 and rng.random() < 0.3:
            self.cache_options = dict(page_size=64, reserve=8 * most + 1024)
        elif rng.random() < 0.3:
            self.cache_options = dict(reserve=rng.choice((1, 64, 100, 1000)))
        offset = np.zeros((recipe.kv_heads, recipe.head_dim), np.float32)
        is_given = recipe.is_fixed and rng.random() < 0.3
        if is_given:
            offset += rng.choice((0, 1, 5)) * self.numbers.standard_normal(offset.shape).astype(np.float32)
            self.steps.append(f"a key_offset of up to {np.abs(offset).max():.2g}")
        self.cache = alignedkv.KVCache(recipe.kv_heads, recipe.head_dim, batch, recipe.dtype, recipe.format, recipe.value_dim, dense_up_to=recipe.dense_up_to,
                                       key_offset=offset if is_given else None, **self.cache_options)
        empty = (np.zeros((recipe.kv_heads, 0, dim)) for dim in (recipe.head_dim, recipe.value_dim))
        self.model = [Sequence(*empty, offset.astype(np.float64), is_given)] * batch
        self.largest = [0.0, 0.0]  # of all tokens that were ever appended
        self.holds_dense = recipe.dense_up_to > 0  # for sure
        pieces = rng.randrange(1, 6)
        drop_at = rng.randrange(pieces + 1)
        for piece in range(pieces + 1):
            if piece == drop_at and recipe.planes < len(recipe.widths):
                self.cache.drop_planes(recipe.planes)
                self.steps.append(f"drop_planes({recipe.planes})")
                self.holds_dense = False
            if piece < pieces:
                left = most - max(len_of(sequence) for sequence in self.model)
                self.append(left if piece == pieces - 1 else min(left, rng.choice((0, 1, 7, 63, 64, 65, left // 2, left))))
                if rng.random() < 0.5:
                    rng.choice((self.truncate, self.reorder, self.select, self.copy, self.pickle))()
        if len(self.model) != recipe.batch:
            self.select([rng.randrange(len(self.model)) for _ in range(recipe.batch)])

    def append(self, tokens):
        batch, begin = len(self.model), self.rng.randrange(self.k.shape[2] - tokens + 1)
        given, numbers = zip(*(typed(x[:batch, :, begin : begin + tokens], self.recipe.dtype) for x in (self.k, self.v)))
        lengths = [self.rng.choice((0, tokens, self.rng.randint(0, tokens))) for _ in range(batch)] if self.is_ragged and self.rng.random() < 0.7 else None
        self.steps.append(f"append({tokens}{'' if lengths is None else f', {lengths}'}) of tokens from {begin}")
        self.cache.append(*(presented(self.rng, x) for x in given), **({} if lengths is None else dict(lengths=lengths)))
        self.model = [sequence.append(*(x[n, :, : tokens if lengths is None else lengths[n]] for x in numbers)) for n, sequence in enumerate(self.model)]
        self.holds_dense &= lengths is None and max(len_of(sequence) for sequence in self.model) <= self.recipe.dense_up_to
        self.largest = [max(so_far, np.abs(np.nan_to_num(x, posinf=0, neginf=0)).max(initial=0)) for so_far, x in zip(self.largest, numbers)]

    def truncate(self):
        longest = max(len_of(sequence) for sequence in self.model)
        if self.is_ragged and self.rng.random() < 0.5:
            self.holds_dense = False
            left = each = [self.rng.randint(0, len_of(sequence)) for sequence in self.model]
        else:
            left = self.rng.choice((longest, max(0, longest - 1), self.rng.randint(0, longest)))
            each = [left] * len(self.model)
        self.steps.append(f"truncate({left})")
        self.cache.truncate(left)
        self.model = [sequence.truncate(tokens) for sequence, tokens in zip(self.model, each)]

    def select(self, indices=None, method="batch_select"):
        indices = indices or [self.rng.randrange(len(self.model)) for _ in range(self.rng.randrange(1, 4))]
        self.steps.append(f"{method}({indices})")
        getattr(self.cache, method)(indices)
        self.model = [self.model[n] for n in indices]

    def reorder(self):
        self.select([self.rng.randrange(len(self.model)) for _ in self.model], "reorder")

    def copy(self):
        """One of both goes on, the other one stays as it is."""
        twin = self.cache.copy()
        stays, self.cache = (twin, self.cache) if self.rng.random() < 0.5 else (self.cache, twin)
        self.steps.append(f"copy(), and {'the copy stays' if stays is twin else 'the copy goes on'}")
        if len(self.bystanders) < 1:
            self.bystanders.append((stays, stays.to_numpy(), stays.lengths))
        elif self.rng.random() < 0.5:
            stays.close()

    def pickle(self):
        self.steps.append("pickle")
        self.cache = pickle.loads(pickle.dumps(self.cache))

    # What is asked of it

    def draw_call(self):
        recipe, rng = self.recipe, self.rng
        factor, is_odd = rng.choice((1, 1, 1, 4, 0.05, 16, 0)), rng.random() < 0.03
        q = factor * self.numbers.standard_normal((recipe.batch, recipe.kv_heads * recipe.group, recipe.queries, recipe.head_dim))
        if is_odd:
            q[tuple(rng.randrange(size) for size in q.shape)] = rng.choice((np.nan, np.inf))
        given, self.q = typed(q, recipe.query_dtype)
        call: Dict[str, Any] = dict(q=given, policy=recipe.policy, scale=rng.choice((None, None, None, 0.3, -0.1)), certify=recipe.certify,
                                    return_lse=rng.random() < 0.5, **recipe.scoring)
        self.tolerance = TOLERANCES.get(recipe.policy, 0.0)
        if recipe.policy == "budget":
            self.tolerance = call["tolerance"] = rng.choice((0.3, 0.02, 1e-3, 1e-5, 1e-9))
        self.mask = self.logits = None
        if recipe.mask:
            flags, dtype = recipe.mask
            own = (recipe.batch, recipe.kv_heads * recipe.group, recipe.queries)[3 - len(flags) :]
            shape = (*(size if flag else 1 for size, flag in zip(own, flags)), len(self.cache))
            seen = self.numbers.random(shape) < rng.choice((0.02, 0.5, 0.9, 1))
            if rng.random() < 0.3 and shape[-1]:
                seen[..., : rng.randrange(shape[-1])] = False
            if dtype == "bool":
                call["mask"] = self.mask = seen
            else:
                call["mask"], self.mask = typed(np.where(seen, self.numbers.standard_normal(shape), rng.choice((-np.inf, -np.inf, -1e4))), dtype)
        if recipe.has_sink_logits:
            call["sink_logits"] = self.logits = rng.choice((0, 1, 3)) + self.numbers.standard_normal(recipe.kv_heads * recipe.group).astype(np.float32)
        said = ", ".join(f"{name}={value}" for name, value in call.items() if not isinstance(value, np.ndarray))
        self.steps.append(f"attend({said}; q of {factor}{', one not finite' if is_odd else ''})")
        return call

    def exact(self, call):
        """Rows of all sequences, [batch, q_heads, queries, ...]."""
        recipe, rows = self.recipe, []
        mask = self.mask
        if mask is not None:
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
            heads = (recipe.kv_heads, recipe.group) if mask.shape[1] > 1 else (1, 1)
            mask = np.broadcast_to(mask, (recipe.batch, *mask.shape[1:])).reshape(recipe.batch, *heads, *mask.shape[2:])
        logits = None if self.logits is None else self.logits.astype(np.float64).reshape(recipe.kv_heads, recipe.group)
        q = self.q.reshape(recipe.batch, recipe.kv_heads, recipe.group, *self.q.shape[2:])
        for n, sequence in enumerate(self.model):
            rows.append(exact_rows(recipe, call["scale"], sequence, q[n], None if mask is None else mask[n], logits))
        return rows

    # Judging

    def judge(self):
        """Nothing where all is as it should be; else raises Wrong."""
        self.build()
        call = self.draw_call()
        floors = [2.0**-15 if self.recipe.dtype == "float16" or not largest else largest * 2.0**-14 for largest in self.largest]  # S3: the least scale
        with np.errstate(all="ignore"):
            self.storages = [Storage(self.recipe, sequence, floors) for sequence in self.model]
            self.judge_storage()
            if self.is_mistaken:
                self.judge_mistake(call)
            else:
                self.judge_attention(call)
        for cache, held, lengths in self.bystanders:
            expect(cache.lengths == lengths and same(cache.to_numpy(), held), "a copy that stayed was changed")

    def judge_storage(self):
        expect(self.cache.lengths == [len_of(sequence) for sequence in self.model], f"lengths are {self.cache.lengths}")
        for name, array in zip("kv", self.cache.to_numpy()):
            numbers = from_bfloat16_bits(array) if array.dtype == np.uint16 else array
            for n, (sequence, storage) in enumerate(zip(self.model, self.storages)):
                exact, most = getattr(sequence, name), list(storage.allowed(sequence))["kv".index(name)]
                got = numbers[n].astype(np.float64)
                expect((got[:, len_of(sequence) :] == 0).all(), f"{name} of batch entry {n} is not 0 behind its end")
                got = got[:, : len_of(sequence)]
                whole = np.isfinite(exact)
                expect(same([np.where(whole, 0, got)], [np.where(whole, 0, exact)]), f"{name} of batch entry {n} holds other values that are not finite")
                share = (np.abs(got - exact)[whole] / most[whole]).max(initial=0)
                expect(share <= 1, f"{name} of batch entry {n} is stored {share:.3g} times as far off as planes are")

    def judge_attention(self, call):
        recipe, rng = self.recipe, self.rng
        shape = (*self.q.shape[:3], recipe.value_dim)
        target = presented(rng, np.full(shape, 7, np.float32)) if rng.random() < 0.3 else None
        given = {**call, "q": presented(rng, call["q"])}
        if self.mask is not None:
            given["mask"] = presented(rng, call["mask"])
        if target is not None:
            given["out"] = target if target.flags.writeable else target.copy()
        results, reads = as_list(self.cache.attend(**given)), self.cache.reads
        expect(target is None or results[0] is given["out"], "the result is not `out`")
        names = ["out", *(["lse"] if call["return_lse"] else []), *(["bound", "estimate"] if recipe.certify else [])]
        expect([array.shape for array in results] == [shape] + [shape[:3]] * (len(names) - 1), f"shapes are {[array.shape for array in results]}")
        expect(all(array.dtype == np.float32 for array in results), f"dtypes are {[array.dtype for array in results]}")
        expect(same(results, as_list(self.cache.attend(**call))) and self.cache.reads == reads, "another layout gives other results")
        got = dict(zip(names, results))
        all_dense = reads["key_values"] * (32 if recipe.dtype == "float32" else 16)
        self.is_dense = self.holds_dense or bool(recipe.dense_up_to) and 0 < reads["key_bits"] == all_dense
        self.is_exact = self.is_dense or recipe.policy == "exact"
        rows = self.exact(call)
        for n in range(recipe.batch):
            self.judge_rows(rows[n], n, {name: array[n].reshape(recipe.kv_heads, recipe.group, *array.shape[2:]).astype(np.float64) for name, array in got.items()}, call)
        self.judge_reads(rows, reads)

    def judge_rows(self, exact, n, got, call):
        recipe, v, expected = self.recipe, self.model[n].v, errors_of(self.recipe, exact, self.model[n], self.storages[n], self.are_equal)
        sees = exact.sees.any(3) | (not v.shape[1]) | (self.logits is not None)
        whole = np.isfinite(exact.out)
        rows = whole.all(3)
        wrong = np.isfinite(got["out"]) != whole
        expect(not wrong.any(), f"batch entry {n}: {wrong.sum()} values are finite or not, other than expected, at {first(wrong)}: got {got['out'][wrong][:3]}, "
               f"expected {exact.out[wrong][:3]}")
        error = finite(got["out"] - exact.out)
        if recipe.certify:
            shares = (np.abs(error).max(3) / got["bound"])[rows & (np.abs(error).max(3) > 0)]
            expect((shares <= 1).all(), f"batch entry {n}: a channel is off by {shares.max(initial=0):.4g} of its bound")
            expect((got["bound"][rows] >= 0).all() and (got["estimate"][rows] >= 0).all(), f"batch entry {n}: a bound or an estimate is not a number of 0 or more")
            self.facts["share of the bound"] = max(self.facts["share of the bound"], shares.max(initial=0))
        if "lse" in got:
            self.judge_logarithms(exact.lse, got["lse"], n, expected, sees)
        if recipe.policy == "alignedkv" or (not recipe.is_fixed and self.storages[n].bits < 16):  # which promise no more than their bounds
            return
        length = np.linalg.norm(error, axis=3)
        usual = (np.linalg.norm(finite(v), axis=2).sum(1) / max(v.shape[1], 1))[:, None, None]
        size = np.linalg.norm(finite(exact.out), axis=3)
        tolerance = 0 if self.is_exact else self.tolerance
        allowed = 3 * tolerance * np.maximum(usual, size) + 6 * expected.out + 1e-30
        shares = length / allowed
        over = (shares > 1) & rows
        estimated = 0.0
        if over.any() and not self.is_exact:
            estimate = got.get("estimate")
            if estimate is None:
                estimate = self.cache.attend(**{**call, "certify": True})[-1][n].reshape(length.shape)
            estimated = np.where(over, 4 * estimate * np.maximum(size, np.linalg.norm(finite(got["out"]), axis=3)), 0)
            self.facts["rows as estimated"] += int((over & (length <= estimated)).sum())
            self.facts["share of estimates"] = max(self.facts["share of estimates"], (4 * length / estimated)[over].max())
            over &= ~(length <= estimated)
        at = first(over)
        expect(at is None, at and f"batch entry {n}: {over.sum()} of {over.size} rows are off by more than they may, at {at} by {length[at]:.4g}; expected {allowed[at]:.4g}, "
               f"{3 * tolerance:.4g} of a usual row of {usual[at[0], 0, 0]:.4g} among it{f', or as estimated {estimated[at]:.4g}' if not self.is_exact else ''}")
        if self.is_exact:
            self.facts["share of what is allowed"] = max(self.facts["share of what is allowed"], shares[rows].max(initial=0))
        self.facts["rows"] += int(rows.sum())

    def judge_logarithms(self, exact, got, n, expected, sees):
        known = sees & np.isfinite(exact)
        off, stored = np.abs(got - exact), 6 * expected.lse + 1e-5
        allowed = stored + (0 if self.is_exact else expected.reach + TOLERANCES["tight"])
        over = known & ~(off <= allowed)
        at = first(over)
        expect(at is None, at and f"batch entry {n}: {over.sum()} logarithms are off by more than they may, at {at} by {off[at]:.4g}, expected {allowed[at]:.4g}; "
               f"got {got[at]:.6g}, expected {exact[at]:.6g}")
        expect(not np.isfinite(got[~np.isfinite(exact)]).any(), f"batch entry {n}: a logarithm of nothing is finite")
        self.facts["logarithms"] += int(known.sum())
        self.facts["logarithms beyond"] += int((known & (off > 16 * self.tolerance + stored)).sum()) if self.tolerance else 0

    def judge_reads(self, rows, reads):
        """Bits are of what some query sees, and under `exact` of all of that. Tokens kept aside have none, and queries that are not finite read none."""
        recipe = self.recipe
        pieces = sum(-(-recipe.queries // (32 // heads)) for heads in [32] * (recipe.group // 32) + [recipe.group % 32] * (recipe.group % 32 > 0))
        every = sum(exact.sees.shape[3] for exact in rows) * recipe.kv_heads
        is_odd = not np.isfinite(self.q).all() or any(word in said for said in self.said for word in ("inf", "NaN", "huge", "heavy"))
        seen = 0 if is_odd else sum(int(exact.sees.any((1, 2)).sum()) for exact in rows)
        bits = sum(recipe.widths[: recipe.planes])
        for side, dim in (("key", recipe.head_dim), ("value", recipe.value_dim)):
            read, values = reads[f"{side}_bits"], reads[f"{side}_values"]
            size = lambda bits: (32 if recipe.dtype == "float32" else 16) * dim if self.is_dense else bits * dim + 8 * recipe.is_fixed  # noqa: E731, B023
            said = f"{side}: {read} bits of {values} values are counted, of {every} tokens of {dim} values in {pieces} pieces, {seen} of which are seen"
            expect(values == pieces * every * dim, f"{said}: expected all values")
            expect(read <= pieces * every * size(bits), f"{said}: more than there are")
            if self.is_exact:
                expect(seen * size(bits) <= read, f"{said}: fewer than are seen")
                expect(seen < every or recipe.scoring or recipe.mask or read == pieces * every * size(bits), f"{said}: expected all of them")
            elif side == "key":
                expect(seen * size(recipe.widths[0]) <= read, f"{said}: fewer than are scanned")

    def judge_mistake(self, call):
        before, lengths, out = self.cache.to_numpy(), self.cache.lengths, self.cache.attend(**call)
        name, pattern, act = self.rng.choice(list(mistakes(self, call)))
        self.steps.append(f"mistake: {name}")
        try:
            act()
        except alignedkv.Error as error:
            expect(re.search(pattern, str(error)), f"expected an error of {pattern!r}, got: {error}")
        else:
            raise Wrong(f"expected an error of {pattern!r}, got none")
        expect(self.cache.lengths == lengths and same(self.cache.to_numpy(), before), "a refused call changed the cache")
        expect(same(as_list(out), as_list(self.cache.attend(**call))), "attention is another one after a refused call")
        self.facts["refused"] += 1


def first(places):
    """The first place that is true, or None."""
    return tuple(np.argwhere(places)[0].tolist()) if places.any() else None


def as_list(results):
    return list(results) if isinstance(results, tuple) else [results]


def same(some, others):
    return all(a.shape == b.shape and np.array_equal(a, b, equal_nan=True) for a, b in zip(some, others))


def mistakes(configuration, good):
    """One thing wrong: (what, what the error says, what to do)."""
    recipe, cache = configuration.recipe, configuration.cache
    batch, heads, tokens = recipe.batch, recipe.kv_heads, len(cache)
    q = good["q"]
    k, v = (np.zeros((batch, heads, 3, dim), "uint16" if recipe.dtype == "bfloat16" else recipe.dtype) for dim in (recipe.head_dim, recipe.value_dim))

    def attend(**options):
        return lambda: cache.attend(**{**good, **options})

    yield "q of rank 3", "expected q of shape", attend(q=q[0])
    yield "q of another head_dim", "expected q of shape", attend(q=np.concatenate([q, q], 3))
    yield "q of another batch", "expected q of shape", attend(q=np.concatenate([q, q], 0))
    yield "q of no heads", "expected q of shape", attend(q=q[:, :0])
    yield "q of float64", "expected q of float16", attend(q=q.astype(np.float64))
    yield "q of other bytes", "expected q in the byte order", attend(q=np.zeros(q.shape, ">f4"))
    yield "q a list", "expected an array as q|got list", attend(q=[1.0])
    yield "q none", "got NoneType", attend(q=None)
    yield "policy unknown", "expected policy", attend(policy="best")
    yield "policy of another format", "expected a '(float|fixed)' format under policy", attend(policy="alignedkv" if recipe.is_fixed else "tight", tolerance=None)
    yield "budget without a tolerance", "expected a (tolerance|'fixed' format)", attend(policy="budget", tolerance=None)
    yield "exact with a tolerance", "expected a tolerance only", attend(policy="exact", tolerance=0.1)
    if recipe.is_fixed:
        for tolerance in (0, 1, -1, np.nan, np.inf):
            yield f"tolerance {tolerance}", "expected tolerance to be above 0", attend(policy="budget", tolerance=tolerance)
    yield "scale a list", "expected scale to be a number", attend(scale=[1.0, 2.0])
    yield "window 0", "expected window", attend(window=0)
    yield "sinks below 0", "expected sinks", attend(window=4, sinks=-1)
    yield "sinks without a window", "expected sinks only", attend(window=None, sinks=3)
    yield "softcap 0", "expected softcap", attend(softcap=0)
    yield "softcap NaN", "expected softcap", attend(softcap=np.nan)
    yield "mask of more tokens", "expected mask", attend(mask=np.ones(tokens + 1, bool))
    yield "mask of rank 5", "expected mask", attend(mask=np.ones((1, 1, 1, 1, tokens), bool))
    yield "mask of other queries", "expected mask", attend(mask=np.ones((recipe.queries + 1, tokens), bool))
    yield "mask of int64", "expected mask", attend(mask=np.ones(tokens, np.int64))
    yield "sink_logits of another shape", "expected sink_logits", attend(sink_logits=np.zeros(recipe.group * heads + 1))
    yield "sink_logits of words", "expected sink_logits", attend(sink_logits=["a"] * (recipe.group * heads))
    yield "out of float64", "expected out", attend(out=np.zeros((*q.shape[:3], recipe.value_dim)))
    yield "out read-only", "expected out .*, got a read-only", attend(out=np.broadcast_to(np.float32(0), (*q.shape[:3], recipe.value_dim)))
    yield "out of another shape", "expected out", attend(out=np.zeros(q.shape[:3], np.float32))
    yield "k of another dtype", "of k, got", lambda: cache.append(k.astype(np.float64), v)
    yield "k of rank 3", "rank 4 of k", lambda: cache.append(k[0], v)
    yield "v of another dim", "expected v of shape", lambda: cache.append(k, np.concatenate([v, v], 3))
    yield "k of more heads", "expected k of shape", lambda: cache.append(np.concatenate([k, k], 1), v)
    yield "k longer than v", "as many keys as values", lambda: cache.append(k, v[:, :, :2])
    yield "k none", "got NoneType", lambda: cache.append(None, v)
    yield "lengths beyond", "expected lengths", lambda: cache.append(k, v, [4] * batch)
    yield "lengths below 0", "expected lengths", lambda: cache.append(k, v, [-1] * batch)
    yield "lengths of more entries", "expected lengths", lambda: cache.append(k, v, [1] * (batch + 1))
    yield "truncate beyond", "expected to keep 0 to", lambda: cache.truncate(tokens + 1)
    yield "truncate below 0", "expected tokens to be 0 or more", lambda: cache.truncate(-1)
    yield "truncate to words", "expected tokens", lambda: cache.truncate("3")
    yield "truncate more entries", "batch entries, got|expected .*'fixed' format|lengths", lambda: cache.truncate([0] * (batch + 1))
    yield "reorder beyond", "expected a batch entry from 0", lambda: cache.reorder([batch] * batch)
    yield "reorder too many", "expected indices of", lambda: cache.reorder([0] * (batch + 1))
    yield "select nothing", "at least one batch entry", lambda: cache.batch_select([])
    yield "select below 0", "expected indices to be 0 or more", lambda: cache.batch_select([-1])
    yield "drop to none", "expected planes to be 1 or more", lambda: cache.drop_planes(0)
    yield "keep more planes", "expected to keep 1 to", lambda: cache.drop_planes(recipe.planes + 1)
    yield "bits 17", "expected 1 to 16 bits", lambda: cache.to_numpy(17)
    yield "a closed cache", "expected an open cache", lambda: closed(cache.copy()).attend(**good)
    yield "an append to a closed cache", "expected an open cache", lambda: closed(cache.copy()).append(k, v)
    if cache.page_size:
        more = (np.broadcast_to(x[:, :, :1], (batch, heads, 64 * 1024, x.shape[3])) for x in (k, v))
        yield "more than the pool has", "free pages|expected at most", lambda: cache.append(*more)


def closed(cache):
    cache.close()
    return cache


# Running


def outcome(seed):
    """A verdict, what is wrong and facts."""
    configuration = Configuration(seed)
    try:
        configuration.judge()
        return "refused" if configuration.is_mistaken else "right", "", configuration.facts
    except Wrong as wrong:
        return "wrong", f"{wrong}\n    {configuration}", configuration.facts
    except Exception:
        return "fails", f"{traceback.format_exc(limit=-1)}    {configuration}", configuration.facts


def work(connection):
    """The process that configurations run in."""
    while (seed := connection.recv()) is not None:
        connection.send(outcome(seed))


def outcomes(seeds):
    """Each seed and what became of it; one that ends the process or takes too long is a verdict, too."""
    process = None
    for seed in seeds:
        if not process:
            connection, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
        connection.send(seed)
        try:
            if connection.poll(TIME_LIMIT):
                yield seed, *connection.recv()
                continue
            said = f"takes more than {TIME_LIMIT} s"
        except (EOFError, ConnectionError):
            said = "crashes"
        process.kill()
        process.join()
        process = None
        yield seed, said, f"\n    {Configuration(seed).recipe}", collections.Counter()
    if process:
        connection.send(None)
        process.join()


def compare(seeds):
    start, counts, facts = time.monotonic(), collections.Counter(), collections.Counter()
    for seed, verdict, said, found in outcomes(seeds):
        counts[verdict] += 1
        for name, value in found.items():
            facts[name] = max(facts[name], value) if name.startswith("share") else facts[name] + value
        if verdict not in ("right", "refused"):
            print(f"{verdict.upper()} --replay {seed}: {said}", flush=True)
        if sum(counts.values()) % 100 == 0:
            print(f"{sum(counts.values())} of {len(seeds)} after {time.monotonic() - start:.0f} s", flush=True)
    print(f"{len(seeds)} configurations in {time.monotonic() - start:.0f} s: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}; "
          f"{facts['rows']} rows, errors of up to {facts['share of the bound']:.2g} of their bounds, under exact of {facts['share of what is allowed']:.2g} of what is allowed, "
          f"{facts['rows as estimated']} beyond 3 times the tolerance, of up to {facts['share of estimates']:.2g} of their estimates; "
          f"{facts['logarithms']} logarithms, {facts['logarithms beyond']} of them off by more than 16 times the tolerance")
    return 1 if set(counts) - {"right", "refused"} else 0


# Memory


def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()


def repeated():
    """Calls that leave everything as it was."""
    rng = np.random.default_rng(0)
    k, q = rng.standard_normal((2, 2, 300, 64)).astype(np.float16), rng.standard_normal((2, 4, 1, 64)).astype(np.float16)
    cache, paged = alignedkv.KVCache(2, 64, batch=2), alignedkv.KVCache(2, 64, batch=2, page_size=64, reserve=1024)
    for one in (cache, paged):
        one.append(k, k)
    odd = k[:, :, :1].copy()
    odd[..., 3] = np.nan
    row = "tensor<1x2x?x32xf16>"
    text = f"""func.func @f(%q: tensor<1x4x1x32xf16>, %k: {row}, %v: {row}) -> tensor<1x4x1x32xf32> {{
      %s = arith.constant 0.25 : f32
      %o = aligned.attention %q, %k, %v scale %s : tensor<1x4x1x32xf16>, {row}, {row} -> tensor<1x4x1x32xf32>
      return %o : tensor<1x4x1x32xf32>
    }}"""

    def append(one, tokens=k):
        one.append(tokens, tokens)
        one.truncate(300)

    def refuse(call):
        try:
            call()
        except alignedkv.Error:
            return
        raise Wrong("expected an error, got none")

    def fork(one):
        twin = one.copy()
        twin.append(k, k)
        twin.reorder([1, 0])

    yield "append", lambda: append(cache)
    yield "append to pages", lambda: append(paged)
    yield "append NaN", lambda: append(cache, odd)
    yield "attend", lambda: cache.attend(q)
    yield "attend, certified and masked", lambda: cache.attend(q, certify=True, return_lse=True, mask=np.ones(300, bool))
    yield "attend at other tolerances", lambda: cache.attend(q, policy="budget", tolerance=float(rng.uniform(1e-6, 0.5)))
    yield "copy", lambda: fork(cache)
    yield "copy pages", lambda: fork(paged)
    yield "pickle", lambda: pickle.loads(pickle.dumps(cache))
    yield "select", lambda: cache.batch_select([1, 0])
    yield "to_numpy", lambda: cache.to_numpy(8)
    yield "new caches", lambda: alignedkv.KVCache(2, 64, reserve=1000)
    yield "errors of attend", lambda: refuse(lambda: cache.attend(q[:, :3]))
    yield "errors of append", lambda: refuse(lambda: cache.append(k, k[:, :, :3]))
    yield "errors of the compiler", lambda: refuse(lambda: alignedkv.transform("func.func @f() {", "builtin.module()"))
    yield "compile", lambda: alignedkv.compile(text)


def leaks(calls, most=4 * 2**20):
    """How much memory grows by, of `calls` calls of each kind."""
    wrong = 0
    for name, call in repeated():
        start = time.monotonic()
        for _ in range(max(calls // 4, 10)):
            call()
        before = resident()
        for _ in range(calls):
            call()
        grown = resident() - before
        wrong += grown > most
        print(f"{'WRONG ' if grown > most else ''}{name}: {calls} calls in {time.monotonic() - start:.1f} s, {grown / 2**20:+.2f} MB", flush=True)
    print(f"{wrong} kinds of calls grow by more than {most / 2**20:.0f} MB")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="configurations, or calls of each kind (default 1000, or 2000 with --leaks)")
    parser.add_argument("--seed", type=int, default=0, help="other configurations for other seeds (default 0)")
    parser.add_argument("--replay", metavar="SEED", help="judge one configuration again, by the seed that was printed, such as 0.123")
    parser.add_argument("--leaks", action="store_true", help="repeat calls, and see whether memory grows")
    given = parser.parse_args()
    if given.count is not None and given.count < 1:
        parser.error(f"expected --count of 1 or more, got {given.count}")
    if given.seed < 0:
        parser.error(f"expected --seed of 0 or more, got {given.seed}")
    if given.replay is not None and not re.fullmatch(r"\d+\.\d+", given.replay):
        parser.error(f"expected --replay of a seed such as 0.123, got {given.replay!r}")
    if given.leaks:
        return leaks(given.count or 2000)
    if given.replay:
        verdict, said, _ = outcome(given.replay)
        print(f"{verdict} {said}".strip())
        return 0 if verdict in ("right", "refused") else 1
    return compare([f"{given.seed}.{number}" for number in range(given.count or 1000)])


if __name__ == "__main__":
    sys.exit(main())
