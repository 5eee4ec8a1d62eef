"""A longer capture out of a captured one.

Copies of text mislead: tokens that stand in a cache many times are as likely many times, and too many of them are visible. So blocks of 64 tokens are drawn at random
from the middle of the capture, with noise of 3 % on every value, and each block's scores are lowered by a draw from an exponential distribution, as attention falls with
distance: its keys move along the direction that lowers the scores of all query heads alike. The first tokens, which take much of the attention, and the newest stay."""
import json
import pathlib

import numpy as np

FIRST, NEWEST, BLOCK = 64, 256, 64
NOISE, FALL = 0.03, 6.0  # relative; mean of what scores fall by, in nats


def longer(source, target, tokens, head_dim=None, group=None, kv_heads=None, seed=5):
    """Writes folder `target`: one layer of the capture at `source` for each of its kv heads, `tokens` tokens. A head_dim of twice the capture's joins two heads;
    query heads beyond a kv head's own are those of earlier steps."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    meta = json.loads((source / "meta.json").read_text())
    q, k, v = (np.load(source / f"{name}.npy").astype(np.float32) for name in "qkv")
    layers, own, steps, dim = q.shape[0], meta["group"], q.shape[2], q.shape[3]
    parts, group, heads = (head_dim or dim) // dim, group or own, kv_heads or k.shape[1]
    if (head_dim or dim) % dim or group > own * steps:
        raise ValueError(f"expected a head_dim that is a multiple of {dim} and a group of at most {own * steps}, got {head_dim} and {group}")

    def query(layer, head):
        return np.stack([q[layer, head * own + j % own, steps - 1 - j // own] for j in range(group)])

    rng = np.random.default_rng(seed)
    out = {name: [] for name in "qkv"}
    for layer in range(layers):
        rows = {name: [] for name in "qkv"}
        for head in range(heads):
            picked = [((layer + i) % layers, (head + i) % k.shape[1]) for i in range(parts)]
            queries = np.concatenate([query(*place) for place in picked], -1)
            middle = tokens - FIRST - NEWEST
            blocks = 1 + rng.integers((k.shape[2] - NEWEST) // BLOCK - 1, size=-(-middle // BLOCK))
            place = np.concatenate([np.arange(FIRST), (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()[:middle], np.arange(k.shape[2] - NEWEST, k.shape[2])])
            keys, values = (np.concatenate([x[layer_, head_][place] for layer_, head_ in picked], -1) for x in (k, v))
            drawn = slice(FIRST, FIRST + middle)
            for x in (keys, values):
                x[drawn] *= 1 + NOISE * rng.standard_normal(x[drawn].shape, dtype=np.float32)
            fall = np.repeat(rng.exponential(FALL, size=len(blocks)), BLOCK)[:middle].astype(np.float32)
            scale = meta["scale"] * (dim / (head_dim or dim)) ** 0.5
            lowers = np.linalg.pinv(queries * scale) @ np.ones(group, np.float32)
            keys[drawn] -= fall[:, None] * lowers
            rows["q"].append(queries[:, None])
            rows["k"].append(keys)
            rows["v"].append(values)
        out["q"].append(np.concatenate(rows["q"]))
        for name in "kv":
            out[name].append(np.stack(rows[name]))
    target.mkdir(parents=True, exist_ok=True)
    for name in "qkv":
        np.save(target / f"{name}.npy", np.stack(out[name]).astype(np.float16))
    (target / "meta.json").write_text(json.dumps({
        "model": meta.get("model", ""), "text": f"{tokens} tokens drawn from {meta.get('text', 'a capture')}", "group": group,
        "scale": meta["scale"] * (dim / (head_dim or dim)) ** 0.5, "first_position": tokens - 1}))
