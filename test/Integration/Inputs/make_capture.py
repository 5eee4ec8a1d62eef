"""Writes a captured cache (q.npy, k.npy, v.npy, meta.json) of random values with a softmax that has structure: some tokens are loud.

usage: make_capture.py DIR LAYERS KV_HEADS GROUP KEY_DIM VALUE_DIM TOKENS STEPS [float16|float32|bfloat16] [--model=NAME]
"""
import json, pathlib, sys
import numpy as np

folder = pathlib.Path(sys.argv[1])
layers, kv_heads, group, key_dim, value_dim, tokens, steps = map(int, sys.argv[2:9])
words = [word for word in sys.argv[9:] if not word.startswith("--model=")]
models = [word.removeprefix("--model=") for word in sys.argv[9:] if word not in words]
dtype = words[0] if words else "float16"
rng = np.random.default_rng(tokens * 1000 + key_dim)


def store(name, array):
    if dtype == "bfloat16":
        array = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        array = array.astype(dtype)
    np.save(folder / f"{name}.npy", array)


folder.mkdir(parents=True, exist_ok=True)
k = rng.standard_normal((layers, kv_heads, tokens, key_dim))
k[..., 3] *= 8  # an outlier channel
store("k", k)
store("v", rng.standard_normal((layers, kv_heads, tokens, value_dim)) * rng.lognormal(size=(layers, kv_heads, tokens, 1)))
store("q", rng.standard_normal((layers, kv_heads * group, steps, key_dim)) * 2)
meta = {"group": group, "scale": key_dim ** -0.5, "first_position": tokens - steps}
if models:
    meta["model"] = models[0]
if dtype == "bfloat16":
    meta["dtype"] = dtype
(folder / "meta.json").write_text(json.dumps(meta))
