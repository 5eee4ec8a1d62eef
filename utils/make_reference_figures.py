#!/usr/bin/env python3
"""Writes what each policy reads and errs on a captured cache, test/data/smollm2-slice/expected.json, and what others do, baselines.json.

All are stated here a second time, as array formulas, so that the loops of lib/Reference have something
to be compared with. Labels (S1, P2) are those of docs/Numerics.md.

    make_reference_figures.py                    figures of the slice that is there
    make_reference_figures.py --cut CAPTURE      first cut the slice from a capture of a whole model
"""

import argparse
import json
import pathlib

import numpy as np

BLOCK = 64      # tokens that share a key exponent
PLANE = 4       # bits
SHARED = 4      # channels of K that are fetched together
COARSE = 0.5    # logits, the precision of an addend of a coarse score
UNREAD = 0.125  # of the wanted precision: what a key may reach of which no bit is read
KEY_SHARE = 0.5 # of the error budget, as variance
COMMON = 0.02   # how far rows of V that are not read may lie off their mean together, as a share of their scale
LEAST_FILL = 1 / 256
TINY = 1e-30
STEP_VARIANCE = (1 - 2**-8) / (8 * np.log(2)) / 3

PRESETS = {"tight": 2.0**-11, "balanced": 2.0**-8, "fast": 2.0**-6}


def softmax(scores):
    """Over tokens, the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exact(q, k, v, scale):
    return softmax(scale * q @ k.T) @ v


class FixedPlanes:
    """(S1) x [tokens, channels]; the exponent of each value is shared by its block and channel, or by its token."""

    def __init__(self, x, per_channel):
        tokens, channels = x.shape
        magnitude = np.maximum(np.abs(x), 2.0**-100)
        if per_channel:
            largest = magnitude.reshape(-1, BLOCK, channels).max(1).repeat(BLOCK, axis=0)
        else:
            largest = magnitude.max(1, keepdims=True)
        self.scale = 16 / 15 * 2.0 ** np.frexp(largest)[1]
        phases = np.arange(channels) % 4 * 1092 if per_channel else 0
        self.dither = (np.arange(tokens)[:, None] * 2531 + phases) % 4096 - 2048
        self.integers = np.clip(np.rint(x / self.scale * 2**15) + self.dither, -(2**15), 2**15 - 1)

    def read(self, bits):
        unit = 2.0 ** (16 - bits)
        middle = (unit - 1) / 2
        units = np.floor(self.integers / unit) * unit + middle - self.dither
        return np.where(bits > 0, units * self.scale / 2**15, 0)


def bits_for(ratio):
    """Bits for an addend that reaches `ratio` times the precision that is wanted of it."""
    return np.clip(PLANE * np.ceil(np.log2(np.maximum(ratio, TINY)) / PLANE), 0, 16)


def key_bits_for(ratio):
    """What is not read of a key is not dithered, so that it must not reach as far."""
    return np.where(ratio > UNREAD, np.maximum(bits_for(ratio), PLANE), 0)


def shared(bits):
    """[..., channels]: neighbours that are fetched together get the most that one of them wants."""
    return bits.reshape(*bits.shape[:-1], -1, SHARED).max(-1).repeat(SHARED, axis=-1)


def coarsest(within, start):
    """The coarsest of the quarter octaves below `start` that keeps within."""
    steps = (start * 2.0 ** (-step / 4) for step in range(240))
    return next((precision for precision in steps if within(precision)), start * 2.0**-60)


def look(p, values, middle):
    """rms of each head's output, and the share of their scales that the values fill, from plane 0 of the loudest rows."""
    reach = p * values.scale[:, 0]
    loud = (reach >= reach.max(1, keepdims=True) / 64).any(0)
    weights, rows = p[:, loud], values.read(np.full((len(loud), 1), PLANE))[loud]
    power = (weights @ rows**2).mean(1)
    out = weights @ rows + (1 - weights.sum(1, keepdims=True)) * middle
    size = np.maximum(np.sqrt(np.square(out).mean(1)), np.sqrt(power / weights.sum(1) / p.shape[1])) + TINY
    return size, np.maximum(power / (weights @ values.scale[loud, 0] ** 2), LEAST_FILL)


def budget(q, k, v, scale, tolerance, rounds=3):
    """(P2) on whole blocks. Returns output, mean bits of K and of V with their exponents."""
    (tokens, channels), heads = k.shape, len(q)
    keys, values, middle = FixedPlanes(k, per_channel=True), FixedPlanes(v, per_channel=False), v.mean(0)
    reach = np.abs(scale * q)[:, None] * keys.scale[None, ::BLOCK]  # [heads, blocks, channels]
    start = 4 * values.scale.max()

    block_bits = np.broadcast_to(shared(key_bits_for(reach.max((0, 1)) / COARSE)), reach.shape[1:])
    for done in range(rounds + 1):
        variance = np.square(reach * 2.0**-block_bits).sum(2) / 3  # of the scores of a block
        p = softmax(scale * q @ keys.read(block_bits.repeat(BLOCK, axis=0)).T - variance.repeat(BLOCK, axis=1) / 2)
        size, fill = look(p, values, middle)
        leverage = p * np.sqrt(fill[:, None] * values.scale[:, 0] ** 2 + size[:, None] ** 2)
        leverage = leverage.reshape(heads, -1, BLOCK)
        loudest, energy = leverage.max(2), np.square(leverage).sum(2)
        kept = energy * variance
        aim = KEY_SHARE * (tolerance * size) ** 2
        over = kept.sum(1) > aim * (2 if done else 1)
        if done == rounds or not over.any():
            break
        for h in np.flatnonzero(over):

            def within(precision):
                finer = np.minimum(kept[h], energy[h] / loudest[h] ** 2 * STEP_VARIANCE * channels * precision**2)
                return np.where(loudest[h] * COARSE > precision, finer, kept[h]).sum() <= aim[h]

            precision = coarsest(within, start)
            wanted = key_bits_for(reach[h] * loudest[h][:, None] / precision) * (loudest[h] * COARSE > precision)[:, None]
            block_bits = np.maximum(block_bits, shared(wanted))

    row_bits = np.zeros(tokens)
    for h in range(heads):
        row_reach = p[h] * values.scale[:, 0]

        def within(precision):
            read = row_reach > precision
            remaining = 2.0 ** -bits_for(row_reach / precision)
            variance = np.where(read, (row_reach * remaining) ** 2 / 3, fill[h] * row_reach**2).sum()
            return variance + (COMMON * row_reach[~read].sum()) ** 2 <= (1 - KEY_SHARE) * (tolerance * size[h]) ** 2

        row_bits = np.maximum(row_bits, bits_for(row_reach / coarsest(within, start)))
    out = p @ np.where(row_bits[:, None] > 0, values.read(row_bits[:, None]), middle)
    return out, block_bits.mean() + 8 / BLOCK, row_bits.mean() + 8 / v.shape[1]


def half_exponent(x):
    return np.where(x == 0, -15, np.maximum(np.frexp(np.abs(x))[1] - 1, -14))


def read_half(x, bits):
    """(S2) The top bits of halves, the missing ones at their midpoint."""
    missing = (16 - np.broadcast_to(bits, x.shape)).astype(np.uint16)
    pattern = x.astype(np.float16).view(np.uint16) >> missing << missing
    pattern |= np.where(missing, np.uint16(1) << np.maximum(missing, 1) - 1, 0).astype(np.uint16)
    return pattern.view(np.float16).astype(np.float64)


def tier(lag, middle, least):
    return np.where(lag >= least, 8, np.where(lag >= middle, 12, 16))


def alignedkv(q, k, v, scale):
    """(P1)"""
    reach = half_exponent(q) + half_exponent(np.abs(k).max(0))
    key_bits = tier(reach.max(1, keepdims=True) - reach, 4, 8).max(0)
    p = softmax(scale * q @ read_half(k, key_bits).T)
    row_bits = np.zeros(len(v))
    for weights in p:
        loudest = np.argsort(-weights, kind="stable")[:32]
        probe = weights[loudest] @ np.abs(v[loudest])
        margin = (half_exponent(probe) - half_exponent(np.abs(v).max(0))).min()
        row_bits = np.maximum(row_bits, tier(margin - np.log2(np.maximum(weights, 2.0**-24)), 1, 2))
    return p @ read_half(v, row_bits[:, None]), key_bits.mean(), row_bits.mean()


POLICIES = {"alignedkv": alignedkv} | {
    name: (lambda *head, tolerance=tolerance: budget(*head, tolerance)) for name, tolerance in PRESETS.items()
}


def flash(q, k, v, scale):
    s = np.float32(scale) * (q.astype(np.float32) @ k.astype(np.float32).T)
    weights = np.exp(s - s.max(-1, keepdims=True))
    out = weights.astype(np.float16).astype(np.float32) @ v.astype(np.float32) / weights.sum(-1, keepdims=True)
    return out.astype(np.float16).astype(np.float64), 16, 16


def fp8(x):
    """To the nearest of all values of e4m3, none of them infinite; ties to the even code."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    middles = (values[1:] + values[:-1]) / 2
    below, above = (np.searchsorted(middles, np.abs(x), side) for side in ("left", "right"))
    return np.copysign(values[np.where(below % 2, above, below)], x)


def half(x):
    return x.astype(np.float16).astype(np.float64)


def rounded(groups, bits, zero_point):
    """Each row of the last axis with a scale of 16 bits, and a zero point where asked for."""
    low = groups.min(-1, keepdims=True) if zero_point else 0
    span = groups.max(-1, keepdims=True) - low if zero_point else np.abs(groups).max(-1, keepdims=True)
    most = 2**bits - 1 if zero_point else 2 ** (bits - 1) - 1
    scale = half(span / most)
    return np.clip(np.rint((groups - half(np.float64(low))) / scale), 0 if zero_point else -most, most) * scale + half(np.float64(low))


def integers(q, k, v, scale, bits):
    """K per channel of a block, V per token."""
    key = rounded(k.reshape(-1, BLOCK, k.shape[1]).swapaxes(1, 2), bits, zero_point=True).swapaxes(1, 2).reshape(k.shape)
    return exact(q, key, rounded(v, bits, zero_point=False), scale), bits + 32 / BLOCK, bits + 16 / v.shape[1]


def q8_0(q, k, v, scale):
    key, value = (rounded(x.reshape(-1, 32), 8, zero_point=False).reshape(x.shape) for x in (k, v))
    return exact(q, key, value, scale), 8.5, 8.5


BASELINES = {
    "flash": flash,
    "q8_0": q8_0,
    "int8": lambda *head: integers(*head, 8),
    "fp8": lambda q, k, v, scale: (exact(q, fp8(k), fp8(v), scale), 8, 8),
    "int4": lambda *head: integers(*head, 4),
}


def load(folder):
    arrays = (np.load(folder / f"{name}.npy") for name in "qkv")
    return *arrays, json.loads((folder / "meta.json").read_text())


def cut(capture, folder, layers=(0, 2), tokens=1024):
    """The newest tokens of the first kv head of some layers, seen by the last query of each of its heads."""
    q, k, v, meta = load(capture)
    layers = list(layers)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "q.npy", q[layers, : meta["group"], -1:])
    np.save(folder / "k.npy", k[layers, :1, -tokens:])
    np.save(folder / "v.npy", v[layers, :1, -tokens:])
    meta |= {
        "text": f"the last {tokens} tokens of the {meta['text']}",
        "layers": [meta["layers"][layer] for layer in layers],
        "q": f"float16 [layer, query head {meta['group']}, decode step 1, head_dim 64]; sees all tokens",
        "k": f"float16 [layer, kv head 1, token {tokens}, head_dim 64], after RoPE",
        "first_position": tokens - 1,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def figures(folder, policies):
    q, k, v, meta = load(folder)
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    result = {}
    for name, policy in policies.items():
        bits, errors = [], []
        for layer in range(len(k)):
            for head in range(k.shape[1]):
                group = slice(head * meta["group"], (head + 1) * meta["group"])
                inputs = q[layer, group, -1], k[layer, head], v[layer, head], meta["scale"]
                out, *read = policy(*inputs)
                reference = exact(*inputs)
                bits.append(read)
                errors += list(np.linalg.norm(out - reference, axis=1) / np.linalg.norm(reference, axis=1))
        key_bits, value_bits = np.mean(bits, 0)
        result[name] = {
            "key_bits": key_bits,
            "value_bits": value_bits,
            "error_mean": np.mean(errors),
            "error_median": np.median(errors),
            "error_max": np.max(errors),
        }
    return result


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", metavar="CAPTURE", type=pathlib.Path, help="folder with q, k, v.npy and meta.json")
    parser.add_argument("--folder", type=pathlib.Path, default=root / "test/data/smollm2-slice")
    options = parser.parse_args()
    if options.cut:
        cut(options.cut, options.folder)
    for file, policies in ("expected.json", POLICIES), ("baselines.json", BASELINES):
        text = json.dumps(figures(options.folder, policies), indent=1, default=float)
        (options.folder / file).write_text(text + "\n")


if __name__ == "__main__":
    main()
