"""As much of torch as benchmarks/cpu/torch_worker.py asks for, by NumPy. Call STAND_IN_EXITS_AT of the attention ends the process, call STAND_IN_SLEEPS_AT hangs."""
import contextlib
import itertools
import os
import time

import ml_dtypes
import numpy as np

__version__ = "stand-in"
float32, float16, bfloat16 = np.float32, np.float16, ml_dtypes.bfloat16
inference_mode, cat = contextlib.nullcontext, np.concatenate
calls = itertools.count(1)


class Tensor(np.ndarray):
    def to(self, dtype):
        return self.astype(dtype)

    def float(self):
        return self.to(float32)


def from_numpy(array):
    return array.view(Tensor)


def set_num_threads(threads):
    assert threads >= 1


class nn:
    class functional:
        @staticmethod
        def scaled_dot_product_attention(query, key, value, scale, enable_gqa=False):
            call = str(next(calls))
            if call == os.environ.get("STAND_IN_EXITS_AT"):
                os._exit(3)
            if call == os.environ.get("STAND_IN_SLEEPS_AT"):
                time.sleep(60)
            assert query.dtype == key.dtype == value.dtype and enable_gqa == (query.shape[1] != key.shape[1])
            group = query.shape[1] // key.shape[1]
            q, k, v = (x.astype(np.float32) for x in (query, np.repeat(key, group, 1), np.repeat(value, group, 1)))
            scores = np.exp(q @ k.swapaxes(-1, -2) * np.float32(scale))
            return (scores / scores.sum(-1, keepdims=True) @ v).astype(query.dtype)
