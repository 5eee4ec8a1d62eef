"""Attention on an NVIDIA GPU: kernels as PTX, which the driver compiles for the device at hand.

Arrays of torch and CuPy are read and written where they lie, on the stream that their library is using, and nothing waits for them. Whatever else exports CUDA memory, such as JAX,
goes by way of the host, and so do queries whose answer is certified: the last step of a certificate is the CPU's.
"""

import functools
import sys

import numpy as np

from . import _alignedkv as native
from . import arrays
from ._alignedkv import Error, Module
from .attention import Host, Kernel, goes_by_place, in_plain_words

_LEGACY_STREAM = 1  # of the driver: the work of whoever knows nothing of streams


def _loaded(kernel):
    """The kernel on the current device."""
    return _loaded_on(kernel, native._device())


@functools.lru_cache(maxsize=1024)
def _loaded_on(kernel, device):
    with in_plain_words():
        ptx, launch, _ = native._compile_kernels(kernel.text(), f"chip={native._chip()}")
    return native._Program(ptx, launch)


def appending(key_type, value_type, key_dim, value_dim):
    """A program that makes caches of these types of one kv head, of whatever batch and number of heads, and appends to them."""
    return _loaded(Kernel(1, 1, 1, 1, "f16", key_type, value_type, key_dim, value_dim, "", "<exact>", False, None, False, False, ""))


@functools.lru_cache(maxsize=256)
def _finishing(rows, value_dim):
    """What the CPU makes of softmax states with certificates (P4)."""
    shape = "x".join(map(str, rows))
    out, row, certificate = f"tensor<{shape}x{value_dim}xf32>", f"tensor<{shape}xf32>", f"tensor<{shape}x8xf32>"
    return Module(f"""
        func.func @finish(%acc: {out}, %sum: {row}, %c: {certificate}) -> ({out}, {row}, {row}) {{
          %out, %bound, %estimate = aligned.finish %acc, %sum certificate %c : {out}, {row}, {certificate} -> {out} certified {row}, {row}
          return %out, %bound, %estimate : {out}, {row}, {row}
        }}""", "")


# Libraries


class _NumPy:
    """What is asked of a library, here over memory of the host: calls wait on a stream of the package's own."""

    stream = 0

    def empty(self, shape):
        return np.empty(shape, np.float32)

    def contiguous(self, array):
        return np.ascontiguousarray(array)


class _Torch:
    """The same of torch, and what takes arrays to the GPU."""

    def __init__(self, like):
        self.torch, self.device = sys.modules["torch"], like.device
        self.stream = self.torch.cuda.current_stream(like.device).cuda_stream or _LEGACY_STREAM

    def empty(self, shape):
        return self.torch.empty(shape, dtype=self.torch.float32, device=self.device)

    def contiguous(self, array):
        return array.detach().contiguous()

    def floats(self, array):
        return array.detach().to(self.torch.float32)

    def upload(self, array):
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


class _CuPy:
    """The same of CuPy."""

    def __init__(self, like):
        self.cupy = sys.modules["cupy"]
        self.stream = self.cupy.cuda.get_current_stream().ptr or _LEGACY_STREAM

    def empty(self, shape):
        return self.cupy.empty(shape, "float32")

    def contiguous(self, array):
        return self.cupy.ascontiguousarray(array)

    def floats(self, array):
        return array.astype("float32", copy=False)

    def upload(self, array):
        return self.cupy.asarray(array)


_LIBRARIES = {"torch": _Torch, "cupy": _CuPy}


def _library(array):
    """That of an array on the GPU; None where its memory is all that is known of it."""
    library = _LIBRARIES.get(type(array).__module__.partition(".")[0])
    return library and library(array)


def _is_on_gpu(array):
    if type(array) is np.ndarray or not hasattr(array, "__dlpack_device__"):
        return False
    return int(array.__dlpack_device__()[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged


def stream_for(*given):
    """The stream that work on these arrays is queued on; 0, one of the package's own, where none is on a GPU."""
    for array in given:
        if _is_on_gpu(array):
            return getattr(_library(array), "stream", _LEGACY_STREAM)
    return 0


def _downloaded(name, array):
    """A copy on the host, bfloat16 as its bits."""
    dtype = arrays.dtype_name(array.dtype)
    library = _library(array)
    copy = np.empty(tuple(array.shape), "uint16" if dtype == "bfloat16" else dtype)
    try:
        native._copy_to_host(copy, library.contiguous(array) if library else array, name, stream_for(array))
    except TypeError:
        raise Error(f"expected {name} to be contiguous, got a {type(array).__name__} that is not") from None
    return copy, dtype


# Places


def place_for(q, certify, key, value):
    """Where a query is attended with."""
    library = _library(q) if _is_on_gpu(q) and not certify else None
    return _Arrays(key, value, library) if library else _ByTheHost(key, value)


class _OnGpu(Host):
    """Kernels on the GPU, and a library whose arrays they take and give."""

    most_rows = 16

    def __init__(self, key, value, library):
        super().__init__(key, value, None)
        self.library = library

    def empty(self, shape):
        return self.library.empty(shape)

    def attend(self, step, kernel, query, mask, logits, later):
        rows = kernel.batch, kernel.kv_heads * kernel.heads, kernel.queries
        out, lse = self.empty((*rows, kernel.value_dim)), self.empty(rows)
        total, certificate = (self.empty(rows), self.empty((*rows, 8))) if kernel.certify else (None, None)
        query, mask, logits = (None if array is None else self.library.contiguous(array) for array in (query, mask, logits))
        read = _loaded(kernel).decode(self.key, self.value, query, step.scale, out, lse, total, certificate, mask, logits, not kernel.certify, self.library.stream,
                                      **_numbers(step, later))
        if not kernel.certify:
            return [out, lse] if step.with_lse else [out], read
        certified, *errors = _finishing(rows, kernel.value_dim)(out, total, certificate)  # so far they are the state: accumulator and maximum
        return step.results(certified, lse, total, errors), read


class _ByTheHost(_OnGpu):
    """Arrays go to the GPU and come from it with each call, which waits for them and knows what was read."""

    def __init__(self, key, value):
        super().__init__(key, value, _NumPy())

    def array(self, name, value, dtypes):
        if not _is_on_gpu(value):
            return super().array(name, value, dtypes)
        copy, dtype = _downloaded(name, value)
        return copy, arrays.of_dtype(name, dtype, dtypes)

    def floats(self, name, value):
        return super().floats(name, _downloaded(name, value)[0] if _is_on_gpu(value) else value)

    def given(self, q, result):
        return _library(q).upload(result) if _is_on_gpu(q) and _library(q) else super().given(q, result)

    def target(self, out, shape):
        if _is_on_gpu(out):
            raise Error(f"expected out in memory of the CPU with such queries, or with certify, got a {type(out).__name__} on the GPU")
        return super().target(out, shape)


class _Arrays(_OnGpu):
    """Arrays of a library on the GPU, and so are results. Nobody waits, so nobody knows what was read."""

    def array(self, name, value, dtypes):
        if not _is_on_gpu(value):
            array, dtype = super().array(name, value, dtypes)
            return self.library.upload(array), dtype
        return value, arrays.of_dtype(name, arrays.dtype_name(value.dtype), dtypes)

    def floats(self, name, value):
        return self.library.floats(value) if _is_on_gpu(value) else self.library.upload(super().floats(name, value))

    def target(self, out, shape):
        if not _is_on_gpu(out) or tuple(out.shape) != shape or arrays.dtype_name(out.dtype) != "float32":
            raise Error(f"expected out to be a float32 array {list(shape)} on the GPU, got a {type(out).__name__} {list(np.shape(out))}")
        return out

    def given(self, q, result):
        return result


def _numbers(step, later):
    """What the kernels of a step leave to calls."""
    names = [name for name, place in (("softcap", "%cap"), ("window", "%window"), ("sinks", "%sinks")) if place in step.scoring]
    numbers = dict(zip(names, step.scores))
    if step.factor is not None:
        numbers["tolerance_factor"] = step.factor
    return {**numbers, "later": later} if goes_by_place(step.scoring) else numbers
