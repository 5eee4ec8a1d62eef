"""Attention that reads only the bits it needs.

`KVCache` is a KV cache in bit planes that can be attended to. `compile` turns the MLIR text of a model into a callable, its caches
packed likewise. `transform` shows what the compiler's passes do to a text. Whatever they refuse is raised as `Error`, a ValueError.
"""

from ._alignedkv import Cache, Error, Module, transform
from .cache import KVCache, compile

__all__ = ["Cache", "Error", "KVCache", "Module", "compile", "transform"]
__version__ = "0.1.0"
