"""Runs a bf16 model [2, 8, 1, 32] over [2, 2, n, 32] caches with aligned-run, out0 computed here in float64.

usage: check_lengths.py MODEL DIR N...
"""
import pathlib, subprocess, sys
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
from conftest import exact_attention, from_bfloat16_bits, to_bfloat16_bits  # noqa: E402


def run(name, model, folder, policy, **arrays):
    np.savez(folder / name, **arrays)
    return subprocess.run(["aligned-run", model, "--npz", f"{folder / name}.npz", "--policy", policy], capture_output=True, text=True)


def main():
    model, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for n in map(int, sys.argv[3:]):
        rng = np.random.default_rng(n)
        q, k, v = (to_bfloat16_bits(rng.standard_normal(shape)) for shape in ((2, 8, 1, 32), (2, 2, n, 32), (2, 2, n, 32)))
        done = run(f"n{n}", model, folder, "tight", arg0=q, arg1=k, arg2=v, out0=to_bfloat16_bits(exact_attention(*map(from_bfloat16_bits, (q, k, v)))))
        print(f"{n} tokens:", "ok" if done.returncode == 0 else done.stdout + done.stderr)
    done = run("disagree", model, folder, "tight", arg0=q, arg1=k, arg2=v[:, :, 1:])
    refused = done.returncode == 1 and "mismatching contracting dimension" in done.stderr
    print("lengths that disagree:", "refused" if refused else f"{done.returncode} {done.stdout} {done.stderr}")


if __name__ == "__main__":
    main()
