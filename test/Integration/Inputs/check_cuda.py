"""What aligned-launch says of a GPU and aligned-run of the CPU, both as JSON, is about the same."""
import json
import sys

gpu, (cpu,) = (json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))["runs"])
for of_gpu, of_cpu, tolerance in (("key_bits", "k_bits", 0.05), ("value_bits", "v_bits", 0.05), ("error_mean", "error_mean", 0.2)):
    got, want = gpu["all"][of_gpu], cpu[of_cpu]
    assert abs(got - want) <= tolerance * want, f"{of_gpu}: {got} and {want}"
assert gpu["ok"] and not gpu["uploaded"]
