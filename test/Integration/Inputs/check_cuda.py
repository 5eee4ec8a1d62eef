"""Two reports of aligned-run --decode --json, of a GPU and of the CPU, say about the same."""
import json
import sys

(gpu,), (cpu,) = (json.load(open(path))["runs"] for path in sys.argv[1:])
for figure, tolerance in (("k_bits", 0.05), ("v_bits", 0.05), ("error_mean", 0.2)):
    assert abs(gpu[figure] - cpu[figure]) <= tolerance * cpu[figure], f"{figure}: {gpu[figure]} and {cpu[figure]}"
assert gpu["bound_violations"] == 0
assert gpu["dense_step_us"] > 0
