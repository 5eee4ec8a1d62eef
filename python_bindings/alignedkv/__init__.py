"""Attention that reads only the bits it needs.

`KVCache` is a KV cache in bit planes that can be attended to. `compile` turns the MLIR text of a model into a callable, its caches
packed likewise. `transform` shows what the compiler's passes do to a text. Whatever they refuse is raised as `Error`, a ValueError.
"""

from ._alignedkv import Cache, Error, Module, set_threads, threads, transform
from .cache import KVCache, compile, warm_up

__all__ = ["Cache", "Error", "KVCache", "Module", "compile", "set_threads", "threads", "transform", "warm_up"]
__version__ = "0.1.0"
