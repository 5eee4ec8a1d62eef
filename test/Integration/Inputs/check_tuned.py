"""Holds what aligned-run --tune printed against a run of the budget that it wrote.

usage: check_tuned.py TUNED.json RUN.json
"""
import json, math, sys

tuned, run = (json.load(open(path)) for path in sys.argv[1:])
assert tuned["ok"] and run["ok"]
target, found, uniform, (again,) = tuned["target_error"], tuned["tuned"], tuned["uniform"], run["runs"]
assert 0.8 * target < found["error_mean"] <= target, found
assert 0.8 * target < uniform["error_mean"] <= target, uniform
assert found["bytes_fraction"] < uniform["bytes_fraction"], (found, uniform)
# The run is certified, and such kernels take more precise exponentials.
for name, difference in ("error_mean", 1e-2), ("error_max", 5e-2), ("bytes_fraction", 1e-3), ("k_bits", 1e-3), ("v_bits", 1e-3):
    assert math.isclose(found[name], again[name], rel_tol=difference), (name, found[name], again[name])
