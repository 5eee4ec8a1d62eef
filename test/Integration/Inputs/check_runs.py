"""Checks aligned-run's JSON from standard input: one bound on the mean error per run."""
import json, sys

report = json.load(sys.stdin)
bounds = [float(bound) for bound in sys.argv[1:]]
assert report["ok"] and report["attentions"] == 1 and len(report["runs"]) == len(bounds), report
for run, bound in zip(report["runs"], bounds):
    assert 0 <= run["error_mean"] <= bound, (run, bound)
    assert run["error_median"] <= run["error_max"] and run["step_us"] > 0 and run["dense_step_us"] > 0, run
    assert 0 < run["bytes_fraction"] <= 1.05, run
