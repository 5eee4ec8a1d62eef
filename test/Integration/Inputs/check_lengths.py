"""Runs a bf16 model [2, 8, 1, 32] over [2, 2, n, 32] caches with aligned-run, out0 computed here in float64.

usage: check_lengths.py MODEL DIR N...
"""
import pathlib, subprocess, sys
import numpy as np


def to_bf16(x):
    """Rounded to nearest even; NaN stays NaN."""
    bits = x.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def attention(q, k, v):
    k, v = (np.repeat(from_bf16(x), 4, axis=1) for x in (k, v))
    if k.shape[2] == 0:
        return np.zeros_like(q, dtype=np.float64)
    s = from_bf16(q) @ k.swapaxes(2, 3) / np.sqrt(32)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def run(name, model, folder, policy, **arrays):
    np.savez(folder / name, **arrays)
    return subprocess.run(["aligned-run", model, "--npz", f"{folder / name}.npz", "--policy", policy], capture_output=True, text=True)


def main():
    model, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for n in map(int, sys.argv[3:]):
        rng = np.random.default_rng(n)
        q, k, v = (to_bf16(rng.standard_normal(shape)) for shape in ((2, 8, 1, 32), (2, 2, n, 32), (2, 2, n, 32)))
        done = run(f"n{n}", model, folder, "tight", arg0=q, arg1=k, arg2=v, out0=to_bf16(attention(q, k, v)))
        print(f"{n} tokens:", "ok" if done.returncode == 0 else done.stdout + done.stderr)
    done = run("disagree", model, folder, "tight", arg0=q, arg1=k, arg2=v[:, :, 1:])
    refused = done.returncode == 1 and "mismatching contracting dimension" in done.stderr
    print("lengths that disagree:", "refused" if refused else f"{done.returncode} {done.stdout} {done.stderr}")


if __name__ == "__main__":
    main()
