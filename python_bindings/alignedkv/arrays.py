"""Arrays as callers bring them, of NumPy, ml_dtypes, torch, JAX, CuPy or whatever exports DLPack or the buffer protocol, and results as callers want them."""

import sys

import numpy as np

from ._alignedkv import Error, _view

_NAMES = {np.dtype(name): name for name in ("float16", "float32", "bool", "uint16")}  # in this machine's byte order; what takes no time to look up


def of_dtype(name, dtype, dtypes):
    """The name of a dtype, which is one of `dtypes`. uint16 are the bits of bfloat16, too."""
    if dtype == "uint16" and "bfloat16" in dtypes:
        dtype = "bfloat16"
    if dtype not in dtypes:
        *others, last = dtypes
        raise Error(f"expected {name} of {', '.join(others)} or {last}, got {dtype}")
    return dtype


def on_host(name, value, dtypes):
    """An array in CPU memory as a NumPy array over the same memory, and the name of its dtype; bfloat16 as its bits."""
    dtype = _NAMES.get(value.dtype) if type(value) is np.ndarray else None
    if dtype in dtypes:
        return value, dtype
    view, dtype = (value, dtype) if dtype else _view(value, name)
    return view, of_dtype(name, dtype, dtypes)


def floats(name, value):
    """float32 from whatever holds numbers."""
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError, RuntimeError):
        raise Error(f"expected {name} to be an array of numbers, got {type(value).__name__}") from None


def dtype_name(dtype):
    """Of a dtype of NumPy, ml_dtypes, JAX or torch, whose own are called 'torch.float16'."""
    if isinstance(dtype, str):
        return dtype
    return np.dtype(dtype).name if isinstance(dtype, type) else getattr(dtype, "name", str(dtype).rpartition(".")[2])


def target(out, shape):
    """The memory that a caller wants a result in, as a NumPy array."""
    wanted = f"expected out to be a writable float32 array {list(shape)}"
    shared, dtype = _view(out, "out")
    view = out if isinstance(out, np.ndarray) else np.asarray(out)
    if dtype != "float32" or view.shape != shape or not view.flags.writeable:
        raise Error(f"{wanted}, got a {'writable' if view.flags.writeable else 'read-only'} {dtype} array {list(view.shape)}")
    if view.ctypes.data != shared.ctypes.data:
        raise Error(f"{wanted}, got {type(out).__name__}, of which NumPy gets a copy")
    return view


def like(given, result):
    """A result as an array of the library that `given` is of."""
    library = type(given).__module__.partition(".")[0]
    if library == "torch":
        return sys.modules["torch"].from_numpy(result)
    if library in ("jax", "jaxlib"):
        return sys.modules["jax"].numpy.asarray(result)
    return result
