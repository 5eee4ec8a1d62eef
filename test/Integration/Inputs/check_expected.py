"""Holds aligned-run's JSON from standard input against what the rules ask for. Kernels may read more than that, never less: bits lie up to 7 % above it (0.5 % below
for rounding), mean and median errors within 15 %, the largest, which a row of V at the edge of a plane can move, within 25 %."""
import json, sys

runs = {run["policy"]: run for run in json.load(sys.stdin)["runs"]}
expected = json.load(open(sys.argv[1]))
COMPARED = [("k_bits", "key_bits", 0.995, 1.07), ("v_bits", "value_bits", 0.995, 1.07), ("error_mean", "error_mean", 0.85, 1.15), ("error_median", "error_median", 0.85, 1.15),
            ("error_max", "error_max", 0.75, 1.25)]
for policy, run in runs.items():
    for ours, theirs, least, most in COMPARED:
        assert least * expected[policy][theirs] <= run[ours] <= most * expected[policy][theirs], (policy, ours, run[ours], expected[policy][theirs])
assert len(runs) >= 4, runs.keys()
