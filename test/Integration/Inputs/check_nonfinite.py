"""Values that are not finite in K and V against NumPy's dense attention, for a bf16 model [2, 8, 1, 32] over [2, 2, n, 32] caches (S7).

usage: check_nonfinite.py MODEL DIR POLICY...
"""
import pathlib, sys
import numpy as np
import check_lengths as lengths

model, folder = sys.argv[1], pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
TOKENS = 130  # two split blocks and two open tokens
cases = {
    "nan in K": ("k", (0, 0, 5, 3), np.nan),
    "inf in K": ("k", (0, 1, 70, 0), np.inf),
    "-inf in K": ("k", (1, 1, 70, 31), -np.inf),
    "nan in an open token of K": ("k", (1, 0, 129, 7), np.nan),
    "nan in V": ("v", (0, 0, 5, 3), np.nan),
    "inf in V": ("v", (1, 1, 127, 9), np.inf),
    "-inf in an open token of V": ("v", (1, 0, 128, 0), -np.inf),
}
for policy in sys.argv[3:]:
    for name, (which, where, value) in cases.items():
        rng = np.random.default_rng(7)
        arrays = {x: rng.standard_normal((2, 8, 1, 32) if x == "q" else (2, 2, TOKENS, 32)) for x in "qkv"}
        arrays[which][where] = value
        q, k, v = (lengths.to_bf16(arrays[x]) for x in "qkv")
        with np.errstate(invalid="ignore"):
            want = lengths.attention(q, k, v)
        rows = {int(b) * 8 + int(h) for b, h in zip(*np.where(~np.isfinite(want).all((2, 3))))}
        done = lengths.run("nonfinite", model, folder, policy, arg0=q, arg1=k, arg2=v, out0=lengths.to_bf16(want))
        print(f"{policy}, {name}, {len(rows)} rows not finite:", "ok" if done.returncode == 0 else done.stdout + done.stderr)
