"""As much of CuPy as the package asks of it, over the memory of the interpreter that stands in for a GPU: its addresses are the host's, so that NumPy computes.

Arrays export DLPack on CUDA and nothing else, as CuPy's do. Whatever reads or writes them waits for the stream first.
"""

import ctypes
import pathlib
import types

import numpy as np

import alignedkv

LIBRARIES = pathlib.Path(alignedkv.__file__).parents[2] / "lib"
STREAM = 1  # that of everybody who asks for none


def load():
    library = ctypes.CDLL(str(LIBRARIES / "libAlignedCuda.so"))
    library.aligned_cuda_allocate.restype = ctypes.c_void_p
    library.aligned_cuda_allocate.argtypes = [ctypes.c_int64]
    library.aligned_cuda_free.argtypes = library.aligned_cuda_set_stream.argtypes = [ctypes.c_void_p]
    return library


_library = load()
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    def __init__(self, bytes):
        self.address = _library.aligned_cuda_allocate(max(1, bytes))
        assert self.address

    def __del__(self):
        _library.aligned_cuda_free(self.address)


class ndarray:
    device_id = 0

    def __init__(self, numbers, memory):
        self._numbers, self._memory = numbers, memory

    shape = property(lambda self: self._numbers.shape)
    dtype = property(lambda self: self._numbers.dtype)
    ndim = property(lambda self: self._numbers.ndim)
    device = property(lambda self: f"<CUDA Device {self.device_id}>")

    def __dlpack_device__(self):
        return 2, self.device_id

    def __dlpack__(self, stream=None):
        capsule = self._numbers.__dlpack__()
        place = ctypes.cast(_pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int32))
        place[0], place[1] = self.__dlpack_device__()
        return capsule

    def reshape(self, *shape):
        return _again(self, self._numbers.reshape(*shape))

    def __getitem__(self, index):
        return _again(self, _settled(self)[index])

    def __setitem__(self, index, value):
        _settled(self)[index] = _settled(value)

    def astype(self, dtype, copy=True):
        return self if not copy and self.dtype == dtype else asarray(_settled(self).astype(dtype))


ndarray.__module__ = "cupy"


def _again(array, numbers):
    return ndarray(numbers, array._memory) if np.shares_memory(numbers, array._numbers) or not numbers.size else asarray(numbers)


def get(array):
    """A copy on the host."""
    return _settled(array).copy()


def _settled(array):
    """What is in it, when all that was queued is done."""
    _library.aligned_cuda_set_stream(STREAM)
    assert _library.aligned_cuda_synchronize() == 0
    _library.aligned_cuda_set_stream(None)
    return array._numbers


def empty(shape, dtype):
    dtype = np.dtype(dtype)
    memory = _Memory(int(np.prod(shape)) * dtype.itemsize)
    held = (ctypes.c_char * max(1, int(np.prod(shape)) * dtype.itemsize)).from_address(memory.address)
    return ndarray(np.frombuffer(held, dtype, int(np.prod(shape))).reshape(shape), memory)


def asarray(numbers):
    array = empty(numbers.shape, numbers.dtype)
    array._numbers[...] = numbers
    return array


def ascontiguousarray(array):
    return array if array._numbers.flags.c_contiguous else asarray(_settled(array))


def module():
    """To be put in the place of `cupy`."""
    made_up = types.ModuleType("cupy")
    for part in (ndarray, empty, asarray, ascontiguousarray):
        setattr(made_up, part.__name__, part)
    made_up.cuda = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=0))
    return made_up
