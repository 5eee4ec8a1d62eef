"""Holds the ranges and the offset of keys in a calibrated model against the arrays that they were taken from.

usage: check_ranges.py CALIBRATED.mlir INPUTS.npz [INPUTS.npz]
Of two archives only the offset is looked at: that of the tokens of both.
"""
import json, re, sys
import numpy as np

text, archives = open(sys.argv[1]).read(), [np.load(path) for path in sys.argv[2:]]
archive = archives[0]

# K is the second argument, [batch, kv_heads, tokens, head_dim], and no other has an offset.
((number, offset),) = re.findall(r"%arg(\d+): [^{]*\{aligned.key_offset = dense<(\[\[.*?\]\])> : tensor<2x32xf32>", text)
keys = np.concatenate([x["arg1"].astype(np.float64).swapaxes(1, 2).reshape(-1, 2, 32) for x in archives])
assert number == "1" and np.abs(np.array(json.loads(offset)) - keys.mean(0)).max() <= 1e-6, offset
if len(archives) > 1:
    sys.exit()

found = re.findall(r"%arg(\d+): [^{]*\{(?:aligned.key_offset = dense<[^>]*> : tensor<2x32xf32>, )?aligned.range = #aligned.range<\[([^,]+), ([^\]]+)\], nonzero = ([^>]+)>\}", text)
assert len(found) == 3, found
for number, *said in found:
    x = archive["arg" + number].astype(np.float64)
    assert [float(word) for word in said] == [x.min(), x.max(), np.abs(x[x != 0]).min()], (number, said)
