"""Attention that reads only the bits it needs.

`KVCache` is a KV cache in bit planes that can be attended to. `Graph` is the MLIR of a model, which phases and passes take further, and `compile` turns it into a callable
`Module`, its caches packed likewise. What is refused is raised as `Error`, a ValueError; by the compiler as `CompileError`, with its diagnostics.
"""

from ._alignedkv import Cache, Error, Module, set_threads, threads
from .cache import KVCache, warm_up
from .compiler import Candidate, CompileError, Diagnostic, Graph, Kernels, compile, transform

__all__ = ["Cache", "Candidate", "CompileError", "Diagnostic", "Error", "Graph", "KVCache", "Kernels", "Module", "compile", "set_threads", "threads", "transform", "warm_up"]
__version__ = "0.1.0"
