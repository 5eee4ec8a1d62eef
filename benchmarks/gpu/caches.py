"""Caches to measure with: long ones, made of a captured one.

What a decode step reads under a policy depends on its data. Independent Gaussian values have no softmax structure: no token stands out, no row of V is
invisible, keys' channels are alike. So tokens are taken from a real capture (q.npy, k.npy, v.npy and meta.json, of head_dim 64): its first block, which
holds the attention sinks, once and at the start; blocks from its middle, drawn again and again, each value of each copy changed by a few percent; and its
newest tokens at the end, as they were. Each kv head of each batch entry draws on its own from the captured layers and heads. A head_dim of 128 is two
captured heads side by side, keys, values and queries, with scores scaled by 1 / sqrt(128).
"""

import dataclasses
import json
import pathlib

import numpy as np

BLOCK = 64
NEWEST = 256  # tokens at the end that stay as captured
SPREAD = 0.03  # standard deviation of what a copy's values are multiplied by
CHUNK = 8192  # tokens that the reference takes at a time


class Capture:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.q, self.k, self.v = (np.load(folder / f"{name}.npy").astype(np.float32) for name in "qkv")
        self.meta = json.loads((folder / "meta.json").read_text())
        self.layers, self.kv_heads, self.tokens, self.dim = self.k.shape
        self.group, self.steps = self.meta["group"], self.q.shape[2]
        if self.tokens < BLOCK + NEWEST + BLOCK:
            raise ValueError(f"{folder}: expected at least {2 * BLOCK + NEWEST} tokens, got {self.tokens}")

    def sources(self):
        return self.layers * self.kv_heads

    def query(self, source, number):
        """The number-th query that reads this head: its query heads at the newest step, then those of the step before."""
        layer, head = divmod(source, self.kv_heads)
        step, member = divmod(number, self.group)
        return self.q[layer, head * self.group + member, self.steps - 1 - step % self.steps]


def token_indices(context, tokens, rng):
    """Which captured token stands at each place, and whether it is a copy."""
    sinks, newest = min(BLOCK, context), max(0, min(NEWEST, context - BLOCK))
    middle = context - sinks - newest
    blocks = 1 + rng.integers((tokens - NEWEST) // BLOCK - 1, size=-(-middle // BLOCK))
    copies = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)[:middle]
    return np.concatenate([np.arange(sinks), copies, np.arange(tokens - newest, tokens)]), slice(sinks, sinks + middle)


@dataclasses.dataclass
class Step:
    """What one attention of one decode step works on."""

    key: object  # [batch, kv_heads, context, head_dim]
    value: object
    query: object  # [batch, kv_heads, group, head_dim]
    exact: object = None  # float64, as the query


def make_step(capture, arrays, cell, seed):
    shape, xp = cell.shape, arrays.xp
    parts = shape.head_dim // capture.dim
    source_k, source_v = (arrays.array(x.reshape(-1, capture.tokens, capture.dim)) for x in (capture.k, capture.v))
    extents = (cell.batch, shape.kv_heads, cell.context, shape.head_dim)
    step = Step(arrays.empty(extents, shape.element), arrays.empty(extents, shape.element), None)
    queries = np.empty((cell.batch, shape.kv_heads, shape.group, shape.head_dim), np.float32)
    for row in range(cell.batch * shape.kv_heads):
        entry, head = divmod(row, shape.kv_heads)
        rng = np.random.default_rng([seed, row])
        sources = rng.permutation(capture.sources())[:parts] if parts <= capture.sources() else rng.integers(capture.sources(), size=parts)
        indices, copies = token_indices(cell.context, capture.tokens, rng)
        indices = arrays.array(indices)
        for number, (side, source) in enumerate(((step.key, source_k), (step.value, source_v))):
            tokens = xp.concatenate([source[int(s)][indices] for s in sources], -1)
            tokens[copies] *= 1 + SPREAD * arrays.normal(tuple(tokens[copies].shape), int(rng.integers(2**62)) + number)
            side[entry, head] = arrays.rounded(tokens, shape.element)
        queries[entry, head] = [np.concatenate([capture.query(s, j) for s in sources]) for j in range(shape.group)]
    step.query = arrays.rounded(arrays.array(queries), shape.element)
    return step


def exact_attention(arrays, step, scale):
    """softmax(scale q k^T) v in float64, a stretch of tokens at a time."""
    xp, outputs = arrays.xp, []
    for q, k, v in zip(step.query, step.key, step.value):
        q, state = arrays.float64(q), None
        for start in range(0, k.shape[1], CHUNK):
            keys, values = (arrays.float64(x[:, start:start + CHUNK]) for x in (k, v))
            scores = scale * (q @ keys.swapaxes(1, 2))
            largest = xp.amax(scores, -1)
            if state:
                largest = xp.maximum(largest, state[0])
            weights = xp.exp(scores - largest[..., None])
            total, acc = weights.sum(-1), weights @ values
            if state:
                kept = xp.exp(state[0] - largest)
                total, acc = total + kept * state[1], acc + kept[..., None] * state[2]
            state = largest, total, acc
        outputs.append(state[2] / state[1][..., None])
    return xp.stack(outputs)


def relative_errors(arrays, out, exact):
    """Relative L2 of each query head's output, on the host."""
    norm = lambda x: (x * x).sum(-1) ** 0.5
    return arrays.host(norm(arrays.float64(out) - exact) / norm(exact)).reshape(-1)
