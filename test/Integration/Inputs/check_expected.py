"""Holds aligned-run's JSON from standard input against expected figures: bits within 0.5 %, mean and median errors within 5 %, the largest, which a row of V at
the edge of a plane can move, within 20 %."""
import json, sys

runs = {run["policy"]: run for run in json.load(sys.stdin)["runs"]}
expected = json.load(open(sys.argv[1]))
COMPARED = [("k_bits", "key_bits", 0.005), ("v_bits", "value_bits", 0.005)] + [(key, key, 0.05) for key in ("error_mean", "error_median")]
for policy, want in expected.items():
    got = runs.pop(policy)
    for ours, theirs, tolerance in COMPARED + [("error_max", "error_max", 0.2)]:
        assert abs(got[ours] - want[theirs]) <= tolerance * want[theirs], (policy, ours, got[ours], want[theirs])
assert not runs, runs
