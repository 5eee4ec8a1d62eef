"""torch's scaled_dot_product_attention as contestants of aligned-bench, in a process of its own: it lives in a Python of its own.

    python benchmarks/cpu/torch_worker.py CAPTURE COPIES THREADS

Answers each line of standard input with a line of JSON: `list` with the contestants, `time N` with the nanoseconds of a turn of contestant N, `output N LAYER` with the
numbers of a step. A turn is that of aligned-bench: one step of every layer of every copy.

Query heads that share a kv head can be told to torch in two ways: as heads (`enable_gqa`), or as so many rows of one head's query, which is the same attention where no mask
tells rows apart. Of both, each contestant is the faster here. K and V expanded to the query heads are slower than both: torch copies them."""
import json
import os
import pathlib
import sys
import time

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # large pages, as the other contestants have them; read as torch starts

import numpy as np
import torch

TRIALS = 5  # turns of each form, before the faster is known
SETTLE = 0.01  # seconds; threads of OpenMP look for more work for some 3 ms before they sleep, which is not to be in another's turn
attention = torch.nn.functional.scaled_dot_product_attention


def read(folder):
    """The last step's query [layers, query heads, 1, dim], and what it sees of K and V [layers, kv heads, tokens, dim]; meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    q, k, v = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "qkv")
    tokens = meta["first_position"] + q.shape[2]

    def tensor(x):
        copied = np.array(x)
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16) if meta.get("dtype") == "bfloat16" else torch.from_numpy(copied)

    return tensor(q[:, :, -1:]), tensor(k[:, :, :tokens]), tensor(v[:, :, :tokens]), meta


class Contestant:
    def __init__(self, dtype, capture, copies):
        q, k, v, meta = capture
        keys, values = (torch.cat([x.to(dtype)] * copies) for x in (k, v))  # together, so that small ones are in large pages too
        self.shared = [(keys[i:i + 1], values[i:i + 1]) for i in range(len(keys))]
        forms = {"enable_gqa": ((1, *q.shape[1:]), {"enable_gqa": True}), "rows": ((1, k.shape[1], meta["group"], q.shape[3]), {})}
        self.queries, self.options, seconds = {}, {}, {}
        for name, (shape, options) in forms.items():
            self.queries[name] = [query.reshape(shape).to(dtype) for query in q] * copies
            self.options[name] = {"scale": meta["scale"], **options}
        for name in list(forms) * TRIALS:
            seconds[name] = min(seconds.get(name, float("inf")), self.time(name))
        self.form = min(seconds, key=seconds.get)

    def time(self, form=None):
        queries, options = self.queries[form or self.form], self.options[form or self.form]
        start = time.perf_counter_ns()
        for query, (key, value) in zip(queries, self.shared):
            attention(query, key, value, **options)
        return time.perf_counter_ns() - start

    def output(self, layer):
        return attention(self.queries[self.form][layer], *self.shared[layer], **self.options[self.form]).float().flatten().tolist()


def main():
    folder, copies, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    capture = read(pathlib.Path(folder))
    kinds = [("torch f32", torch.float32, 2), ("torch bf16", torch.bfloat16, 1), ("torch f16", torch.float16, 1)]
    contestants = [Contestant(dtype, capture, int(copies)) for _, dtype, _ in kinds]
    listed = [{"name": name, "bytes": size, "note": f"{torch.__version__}, {contestant.form}"} for (name, _, size), contestant in zip(kinds, contestants)]
    for line in sys.stdin:
        match line.split():
            case ["list"]:
                said = listed
            case ["time", number]:
                said = contestants[int(number)].time()
            case ["output", number, layer]:
                said = contestants[int(number)].output(int(layer))
        if int(threads) > 1:
            time.sleep(SETTLE)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
