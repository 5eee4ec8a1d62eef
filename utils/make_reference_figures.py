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

BLOCK = 64  # tokens that int8 and int4 of K share a scale over
K_PRICE = 6  # an error of a score may move the output by this many times tau

PRESETS = {"tight": 2.0**-12, "balanced": 2.0**-9, "fast": 2.0**-7, "draft": 2.0**-6}


def softmax(scores):
    """Over tokens, the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exact(q, k, v, scale):
    return softmax(scale * q @ k.T) @ v


def rotation(channels):
    """(S2) Of a power of two."""
    c = np.arange(1, channels + 1, dtype=np.uint64) * 0x9E3779B9 & 0xFFFFFFFF
    c = (c ^ c >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    matrix = np.ones((1, 1))
    while len(matrix) < channels:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.where(c >> 31, -1, 1)[:, None] * matrix / np.sqrt(channels)


class FixedPlanes:
    """(S3 to S5) x [tokens, channels] of halves."""

    def __init__(self, x, factor):
        largest = np.maximum(np.abs(x).max(1, keepdims=True) * 16 / 15, 2.0**-100)
        self.code = np.maximum(np.ceil(8 * np.log2(largest) - 1e-9) + 126, 1)
        self.scale = 2.0 ** ((self.code - 126) / 8)
        self.dither = np.arange(len(x))[:, None] * factor % 4096 - 2048
        self.integers = np.clip(np.rint(x / self.scale * 2**15) + self.dither, -(2**15), 2**15 - 1)

    def read(self, bits):
        unit = 2.0 ** (16 - bits)
        middle = np.where(bits < 16, unit / 2, 0)
        return (np.floor(self.integers / unit) * unit + middle - self.dither) * self.scale / 2**15


def misled(sigma):
    return np.sqrt(np.exp(np.minimum(2 * sigma**2, 300)) - 2 * np.exp(np.minimum(sigma**2 / 2, 75)) + 1)


def median(codes):
    """The least code that half of the tokens have or are below."""
    return np.sort(codes.ravel())[(codes.size - 1) // 2]


def budget(q, k, v, scale, tolerance):
    """(P2, P3, P5) over fixed<4,4,8>, the scan with weights of one digit. Returns output, mean bits of K and of V with their scale codes."""
    tokens, channels = k.shape
    keys, values = FixedPlanes((k - k[:64].mean(0)) @ rotation(channels), 3091), FixedPlanes(v, 2333)
    floor = 2.0 ** ((np.maximum(median(values.code) - 32, 1) - 126) / 8)
    weight = 1 / np.maximum(values.scale, floor)
    usual = 1 / weight.mean()
    mean = ((values.integers - values.dither) / 2**15).sum(0) / weight.sum()

    tau = tolerance / np.sqrt(tokens)
    w = scale * q @ rotation(channels)  # [rows, channels]
    step = np.abs(w).max(1, keepdims=True) / 127
    coarse = keys.read(4) @ (np.rint(w / step) * step).T  # [tokens, rows]
    norm = np.linalg.norm(w, axis=1) / np.sqrt(3)
    z = np.exp(coarse - coarse.max(0))
    unit = z.sum(0) * np.exp(-np.minimum((2.0 ** ((median(keys.code) - 126) / 8) * norm * 2.0**-4) ** 2 / 2, 20))
    lever = z / unit * (1 + values.scale / usual)
    key_bits = np.full((tokens, 1), 16)
    for bits in (8, 4):
        key_bits[(lever * misled(keys.scale * norm * 2.0**-bits) <= K_PRICE * tau).all(1)] = bits
    fine = np.where(key_bits == 4, coarse, keys.read(key_bits) @ w.T)
    p = np.exp(fine - coarse.max(0))
    reach = (p / unit * values.scale / usual).max(1, keepdims=True) / tau
    value_bits = np.select([reach <= 1, reach <= 16, reach <= 256], [0, 4, 8], 16)
    rows = np.where(value_bits > 0, values.read(np.maximum(value_bits, 4)), np.where(values.scale < floor, 0, mean))
    return (p / p.sum(0)).T @ rows, key_bits.mean() + 8 / channels, value_bits.mean() + 8 / v.shape[1]


def half_exponent(x):
    return np.where(x == 0, -15, np.maximum(np.frexp(np.abs(x))[1] - 1, -14))


def read_half(x, bits):
    """(S8) The top bits of halves, the missing ones at their midpoint."""
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
