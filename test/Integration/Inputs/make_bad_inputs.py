"""Writes folders and archives that aligned-run must refuse, each good but for one thing.

usage: make_bad_inputs.py DIR MODEL.npz
"""
import json, pathlib, shutil, sys
import numpy as np

root, archive = pathlib.Path(sys.argv[1]), sys.argv[2]
shutil.rmtree(root, ignore_errors=True)
good = root / "good"
good.mkdir(parents=True)
rng = np.random.default_rng(0)
META = {"group": 2, "scale": 0.25, "first_position": 3}


def write(folder, q=(1, 2, 1, 16), k=(1, 1, 4, 16), v=(1, 1, 4, 16), meta=META):
    for name, shape in zip("qkv", (q, k, v)):
        np.save(folder / f"{name}.npy", rng.standard_normal(shape).astype(np.float16))
    (folder / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))


def variant(name, **changes):
    (root / name).mkdir()
    write(root / name, **changes)
    return root / name


write(good)
variant("group", meta=META | {"group": 3})
variant("position", meta=META | {"first_position": 4})
variant("scale", meta={"group": 2, "first_position": 3})
variant("json", meta="{")
variant("rank", k=(4, 16))
variant("tokens", v=(1, 1, 5, 16))
variant("dim", q=(1, 2, 1, 24), k=(1, 1, 4, 24), v=(1, 1, 4, 24))
variant("rows", q=(1, 33, 1, 16), meta=META | {"group": 33})
variant("layers", meta=META | {"layers": [3, 3]})
(variant("missing") / "meta.json").unlink()
np.save(variant("dtype") / "k.npy", np.zeros((1, 1, 4, 16), np.int32))
truncated = variant("truncated") / "k.npy"
truncated.write_bytes(truncated.read_bytes()[:150])
(variant("magic") / "q.npy").write_bytes(b"not an array at all")

arrays = {name: array for name, array in np.load(archive).items() if array.dtype.kind != "U"}
np.savez(root / "no-arg1.npz", **{name: array for name, array in arrays.items() if name != "arg1"})
np.savez(root / "dtype.npz", **arrays | {"arg1": arrays["arg1"].astype(np.float32)})
np.savez(root / "shape.npz", **arrays | {"arg1": arrays["arg1"][:, :, :10]})
np.savez(root / "expected.npz", **arrays | {"out0": arrays["out0"][:1]})
(root / "text.npz").write_text("not an archive")
