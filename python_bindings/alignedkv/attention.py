"""Attention over a pair of caches, as kernels.

A kernel is compiled for the shape of its queries, for what caches are stored in, and for what scores go through. It takes up to 32 query rows of a kv head (query
heads that share it, times queries), on a GPU 16. Queries are cut into pieces that kernels take, of few sizes, so that few kernels are compiled: a piece is filled up at its front
with its first query, and what comes of that is left out. `later` tells a kernel how many tokens are newer than the last of its queries.
"""

import contextlib
import functools
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from . import arrays
from ._alignedkv import Error, Module

MLIR_TYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
MASK_TYPES = {**MLIR_TYPES, "bool": "i1"}

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def goes_by_place(scoring):
    """Whether what a query sees depends on where it stands: then kernels are told how many tokens are newer."""
    return "mask" in scoring


class Kernel(NamedTuple):
    """What a kernel is compiled for."""

    batch: int
    kv_heads: int
    heads: int  # query heads of a kv head
    queries: int
    query_type: str  # MLIR's, as all types here
    key_type: str
    value_type: str
    key_dim: int
    value_dim: int
    scoring: str  # softcap and mask, as the op spells them; their numbers are %cap, %window and %sinks
    policy: str  # the same
    has_factor: bool  # whether its tolerance is multiplied when it runs
    mask: Optional[Tuple[Tuple[int, ...], str]]  # all but the tokens, and the type of its elements
    has_sink_logits: bool
    certify: bool
    options: str  # of the pipeline

    def text(self):
        rows = f"{self.batch}x{self.kv_heads * self.heads}x{self.queries}"
        query, out, row = f"tensor<{rows}x{self.key_dim}x{self.query_type}>", f"tensor<{rows}x{self.value_dim}xf32>", f"tensor<{rows}xf32>"
        arguments = f"%q: {query}, %k: {self.key_type}, %v: {self.value_type}, %s: tensor<f32>"
        scoring = self.scoring + (" later %later" if goes_by_place(self.scoring) else "")
        factor = " tolerance_factor %factor" if self.has_factor else ""
        numbers = ""
        for name, kind in (("cap", "f32"), ("window", "i64"), ("sinks", "i64"), ("later", "i64"), ("factor", "f32")):
            if f"%{name}" in scoring + factor:
                arguments += f", %{name}_given: tensor<{kind}>"
                taken = f"tensor.extract %{name}_given[] : tensor<{kind}>"
                numbers += f"%{name} = {taken}\n" if kind == "f32" else f"%{name}_count = {taken}\n%{name} = arith.index_cast %{name}_count : i64 to index\n"
        if self.mask:
            shape, element = self.mask
            kind = f"tensor<{'x'.join(map(str, shape))}x?x{element}>"
            arguments += f", %m: {kind}"
            scoring += f" attn_mask %m : {kind}"
        if self.has_sink_logits:
            kind = f"tensor<{self.kv_heads * self.heads}xf32>"
            arguments += f", %x: {kind}"
            scoring += f" sink_logits %x : {kind}"
        state, states = "%acc, %max, %sum", f"{out}, {row}, {row}"
        certificate = f"tensor<{rows}x8xf32>"
        if self.certify:
            finish = f"%out, %bound, %estimate = aligned.finish %acc, %sum certificate %c : {out}, {row}, {certificate} -> {out} certified {row}, {row}"
            results, types = "%out, %max, %sum, %bound, %estimate", f"{states}, {row}, {row}"
            state, states = f"{state}, %c", f"{states} certified {certificate}"
        else:
            finish = f"%out = aligned.finish %acc, %sum : {out}, {row} -> {out}"
            results, types = "%out, %max, %sum", states
        return f"""
            func.func @attend({arguments}) -> ({types}) {{
              %scale = tensor.extract %s[] : tensor<f32>
              {numbers}
              {state} = aligned.decode_attention %q, %k, %v scale %scale{scoring} policy {self.policy}{factor}
                  : {query}, {self.key_type}, {self.value_type} -> {states}
              {finish}
              return {results} : {types}
            }}"""


@contextlib.contextmanager
def in_plain_words():
    """What the compiler says of a text that nobody has seen, without the places and ops in it."""
    try:
        yield
    except Error as error:
        said = re.sub(r"^(?:(?:note|error|remark): |line \d+, column \d+: |(?:custom op )?'aligned\.\w+' (?:op )?)+", "", str(error).split("\n")[0])
        raise Error(said) from None


class Host:
    """Where attention is computed: here the CPU, over NumPy arrays, bfloat16 as its bits.

    before(module) is called ahead of each kernel.
    """

    most_rows = 32

    def __init__(self, key, value, before):
        self.key, self.value, self.before = key, value, before

    def array(self, name, value, dtypes):
        """An array that a caller brings, and the name of its dtype."""
        return arrays.on_host(name, value, dtypes)

    def floats(self, name, value):
        return arrays.floats(name, value)

    def empty(self, shape):
        return np.empty(shape, np.float32)

    def target(self, out, shape):
        """Where a caller wants a result, as an array."""
        return arrays.target(out, shape)

    def given(self, q, result):
        """A result as an array of the library that q is of."""
        return arrays.like(q, result)

    def attend(self, step, kernel, query, mask, logits, later):
        """What a step gives for a piece of its queries, and what was read."""
        module = _compiled(kernel)
        self.before(module)
        operands = list(step.scores)
        if goes_by_place(step.scoring):
            operands.append(np.int64(later))
        operands += [operand for operand in (step.factor, mask, logits) if operand is not None]
        (out, largest, total, *errors), (read,) = module._call_with_reads(query, self.key, self.value, step.scale, *operands)
        return step.results(out, largest, total, errors), read


@functools.lru_cache(maxsize=1024)
def _compiled(kernel):
    """The module of a kernel: all caches of a shape share it, such as the layers of a model."""
    with in_plain_words():
        return Module(kernel.text(), kernel.options)


class Step(NamedTuple):
    """What one call attends with. Arrays are those of a place, with the names of their dtypes."""

    query: Any  # [batch, q_heads, queries, head_dim]
    query_dtype: str
    scale: np.ndarray
    scoring: str
    scores: Tuple[Any, ...]  # its numbers, in order
    policy: str
    factor: Optional[np.ndarray]  # of its tolerance
    mask: Optional[Any]  # [batch or 1, q_heads or 1, queries or 1, tokens]
    mask_dtype: str
    sink_logits: Optional[Any]  # [q_heads]
    certify: bool
    with_lse: bool
    options: str

    def results(self, out, largest, total, errors):
        """Output, the logarithm of the sum where that is wanted, and what certifies them."""
        if not self.with_lse:
            return [out, *errors]
        with np.errstate(divide="ignore"):
            return [out, largest + np.log(total), *errors]

    def run(self, place, key_type, value_type, kv_heads, value_dim):
        """The results for all queries, and what was read, or None where nobody knows."""
        batch, heads, queries, _ = self.query.shape
        group = heads // kv_heads
        whole: List[Any] = []
        reads: Optional[Dict[str, int]] = None
        for piece in _pieces(group, queries, place.most_rows):
            own_heads, own_queries, size, later = piece
            mask = None if self.mask is None else _cut(self.mask, kv_heads, piece)
            logits = None if self.sink_logits is None else self.sink_logits.reshape(kv_heads, group)[:, own_heads].reshape(-1)
            kernel = Kernel(batch, kv_heads, own_heads.stop - own_heads.start, size, MLIR_TYPES[self.query_dtype], key_type, value_type, self.query.shape[3], value_dim,
                            self.scoring, self.policy, self.factor is not None, None if mask is None else (tuple(mask.shape[:3]), MASK_TYPES[self.mask_dtype]), logits is not None,
                            self.certify, self.options)
            results, read = place.attend(self, kernel, _cut(self.query, kv_heads, piece), mask, logits, later)
            if results[0].shape[1:3] == (heads, queries):
                return results, read
            if not whole:
                whole, reads = [place.empty((batch, heads, queries, *part.shape[3:])) for part in results], read and dict.fromkeys(read, 0)
            reads = read and reads and {name: number + reads[name] for name, number in read.items()}
            for all_rows, part in zip(whole, results):
                rows = all_rows.reshape(batch, kv_heads, group, *all_rows.shape[2:])[:, :, own_heads, own_queries]
                rows[...] = part.reshape(batch, kv_heads, -1, *part.shape[2:])[:, :, :, size - rows.shape[3]:]
        if not whole:  # no query
            whole = [place.empty((batch, heads, 0, value_dim))] + [place.empty((batch, heads, 0)) for _ in range(self.with_lse + 2 * self.certify)]
            reads = dict.fromkeys(("key_bits", "key_values", "value_bits", "value_values"), 0)
        return whole, reads


def _pieces(group, queries, most_rows):
    """Cuts `queries` queries of `group` query heads a kv head into what kernels take, which is `most_rows` query rows of a kv head.

    Yields (heads, queries, how many queries the kernel takes, how many come later), the first two as slices.
    """
    for first_head in range(0, group, most_rows):
        heads = slice(first_head, min(group, first_head + most_rows))
        most = most_rows // (heads.stop - heads.start)
        for first in range(0, queries, most):
            end = min(queries, first + most)
            size = min(next(size for size in _SIZES if size >= end - first), most)
            yield heads, slice(first, end), size, queries - end


def _cut(array, kv_heads, piece):
    """A piece of an array [batch, q_heads, queries, ...], as its kernel takes it. One head or one query serves all."""
    own_heads, own_queries, size, _ = piece
    batch, heads, queries = array.shape[:3]
    if heads != 1 and own_heads.stop - own_heads.start != heads // kv_heads:
        array = array.reshape(batch, kv_heads, heads // kv_heads, *array.shape[2:])[:, :, own_heads]
        array = array.reshape(batch, kv_heads * array.shape[2], *array.shape[3:])
    if queries != 1:
        array = array[:, :, own_queries]
        if missing := size - array.shape[2]:
            array = array[:, :, [0] * missing + list(range(array.shape[2]))]
    return array
