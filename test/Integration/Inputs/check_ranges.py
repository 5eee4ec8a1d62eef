"""Holds the ranges in a calibrated model against the arrays that they were taken from.

usage: check_ranges.py CALIBRATED.mlir INPUTS.npz
"""
import re, sys
import numpy as np

text, archive = open(sys.argv[1]).read(), np.load(sys.argv[2])
found = re.findall(r"%arg(\d+): [^{]*\{aligned.range = #aligned.range<\[([^,]+), ([^\]]+)\], nonzero = ([^>]+)>\}", text)
assert len(found) == 3, found
for number, *said in found:
    x = archive["arg" + number].astype(np.float64)
    assert [float(word) for word in said] == [x.min(), x.max(), np.abs(x[x != 0]).min()], (number, said)
