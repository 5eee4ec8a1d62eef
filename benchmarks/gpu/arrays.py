"""Arrays on the device: PyTorch's tensors, or, where there is no PyTorch, NumPy's arrays with copies in device memory.

Both offer the operations that caches and references are made with, under the same names; `xp` is the library itself, used for what both spell alike.
"""

import ctypes

import numpy as np

import cuda

WIDTH = 2  # bytes of an element, f16 or bf16


class OnDevice:
    """Device memory that belongs to an array on the host."""

    def __init__(self, library, shape, dtype):
        self.library, self.shape, self.dtype = library, shape, np.dtype(dtype)
        self.memory = library.allocate(int(np.prod(shape)) * self.dtype.itemsize)

    def copy_from(self, array):
        array = np.ascontiguousarray(array, self.dtype)
        self.library.aligned_cuda_copy_to_device(self.memory.value, array.ctypes.data_as(ctypes.c_void_p), array.nbytes)
        return self

    def copy(self):
        array = np.empty(self.shape, self.dtype)
        self.library.aligned_cuda_copy_to_host(array.ctypes.data_as(ctypes.c_void_p), self.memory.value, array.nbytes)
        return array


class NumPy:
    xp = np

    def __init__(self, library):
        self.library = library

    def array(self, host):
        return host

    def empty(self, shape, element):
        return np.empty(shape, np.float16 if element == "f16" else np.uint16)  # bf16: its bits

    def normal(self, shape, seed):
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def rounded(self, x, element):
        """float32 to the element type, to nearest even."""
        if element == "f16":
            return x.astype(np.float16)
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    def float64(self, x):
        return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x).astype(np.float64)

    def host(self, x):
        return x

    def on_device(self, x):
        return OnDevice(self.library, x.shape, x.dtype).copy_from(x)

    def output(self, shape):
        return OnDevice(self.library, shape, np.float32)

    def read(self, output):
        return output.copy()

    def pointer(self, placed):
        return placed.memory.value

    def release(self):
        pass


class Torch:
    def __init__(self, library, torch, device="cuda"):
        self.library, self.xp, self.device = library, torch, device

    def array(self, host):
        return self.xp.from_numpy(np.ascontiguousarray(host)).to(self.device)

    def _type(self, element):
        return self.xp.float16 if element == "f16" else self.xp.bfloat16

    def empty(self, shape, element):
        return self.xp.empty(shape, dtype=self._type(element), device=self.device)

    def normal(self, shape, seed):
        generator = self.xp.Generator(self.device).manual_seed(seed)
        return self.xp.randn(shape, generator=generator, device=self.device)

    def rounded(self, x, element):
        return x.to(self._type(element))

    def float64(self, x):
        return x.to(self.xp.float64)

    def host(self, x):
        return x.cpu().numpy()

    # Tensors on the GPU are device memory themselves; those of a CPU, which only tests use, are copied.

    def on_device(self, x):
        if self.device == "cuda":
            return x.contiguous()
        x = x.contiguous()
        return OnDevice(self.library, tuple(x.shape), np.dtype(f"V{x.element_size()}")).copy_from(x.view(self.xp.uint8).numpy().view(f"V{x.element_size()}"))

    def output(self, shape):
        return self.xp.zeros(shape, device=self.device) if self.device == "cuda" else OnDevice(self.library, shape, np.float32)

    def read(self, output):
        return output if self.device == "cuda" else self.xp.from_numpy(output.copy())

    def pointer(self, placed):
        return placed.data_ptr() if self.device == "cuda" else placed.memory.value

    def release(self):
        """Gives what is no longer used back to the driver, where the project's library allocates."""
        if self.device == "cuda":
            self.xp.cuda.synchronize()
            self.xp.cuda.empty_cache()
