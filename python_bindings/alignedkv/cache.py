"""A pair of caches and the attention over them, and the options that compiling takes."""

import functools
import math
import operator
import os
import re

import numpy as np

from ._alignedkv import Error, Module, _append, _cache, _copy, _drop_planes, _keep_dense, _lower_dense, _most_dense, _truncate, transform

_MLIR_TYPES = {"float16": "f16", "bfloat16": "bf16", "uint16": "bf16", "float32": "f32"}
_MASK_TYPES = {**_MLIR_TYPES, "bool": "i1"}


def _options(policy, tolerance, format, budget=None, certify=False, dense_up_to=0, raise_attention=True):
    """What the pipeline reads as its options; values of one word each, or quoted, so that none can pass for another option."""
    options = {"policy": policy, "format": re.sub(r"\s", "", str(format))}
    if tolerance is not None:
        options["tolerance"] = repr(float(_number("tolerance", tolerance, np.float64)))
    for name, value in options.items():
        if not re.fullmatch(r"[\w<>,.+-]+", str(value), re.ASCII):
            raise Error(f"expected {name} to be one word, got {value!r}")
    if budget is not None:
        options["budget"] = f"'{os.fspath(budget)}'"
        if re.search(r"['\"{}]", options["budget"][1:-1]) or len(options["budget"]) == 2:
            raise Error(f"expected budget to be a path without quotes and braces, got {os.fspath(budget)!r}")
    if certify:
        options["certify"] = "true"
    if dense_up_to:
        options["dense-up-to"] = dense_up_to
    if not raise_attention:
        options["raise"] = "false"
    return " ".join(f"{name}={value}" for name, value in options.items())


def _number(name, value, dtype=np.float32):
    """An array of rank 0."""
    try:
        number = np.array(value, dtype)
    except (TypeError, ValueError):
        number = None
    if number is None or number.ndim:
        raise Error(f"expected {name} to be a number, got {value!r}")
    return number


def _dense_up_to(value):
    """'auto', or a number of tokens."""
    if value == "auto":
        return value
    try:
        tokens = operator.index(value)
    except TypeError:
        tokens = -1
    if not 0 <= tokens < 2**63:
        raise Error(f"expected dense_up_to to be a number of tokens or 'auto', got {value!r}")
    return tokens


def _scoring(causal, window, sinks, softcap):
    """What `aligned.attention` says of caps and masks, which the compiler verifies."""
    parts = ["causal"] if causal else []
    for name, value in [("window", window), ("sinks", sinks or None)]:
        if value is not None:
            try:
                parts.append(f"{name} = {operator.index(value)}")
            except TypeError:
                raise Error(f"expected {name} to be an integer, got {type(value).__name__}") from None
    text = ""
    if softcap is not None:
        bits = int(_number("softcap", softcap, np.float64).view(np.uint64))
        text += f" softcap 0x{bits:016X}"
    return text + (f" mask <{', '.join(parts)}>" if parts else "")


def compile(text, policy="balanced", tolerance=None, format="auto", function=None, budget=None, certify=False, dense_up_to=0, raise_attention=True,
            allow_unregistered_dialect=False):
    """Compiles a module's MLIR text for this machine and returns a callable `Module`.

    text: functions over tensors, in linalg, tensor, arith, math, scf, func (what torch-mlir writes, for one) or `aligned` ops. Attention in
    them is found, and the tensors that it reads as keys and values become caches.
    policy: how many bits attention reads. 'exact' reads all that are stored. 'tight' (tolerance 2^-12), 'balanced' (2^-9), 'fast' (2^-7), 'draft' (2^-6)
    and 'budget' (`tolerance`) aim at an error (P2 in docs/Numerics.md): the L2 error of an output row, divided by the L2 norm of a usual row of V. It is
    not relative to the output, which is smaller than a row of V where rows cancel; and it is aimed at, not promised: `certify` gives a bound.
    'alignedkv' is the published rule.
    tolerance: above 0 and below 1, with policy 'budget' only.
    format: how caches are stored: 'auto' (what the policy reads: 'fixed<4,4,8>', or the published format), 'dense', or planes such as 'fixed<4,4,8>' or
    'float<8,4,4>'.
    function: name of the function to call; may be left out if the module has one public function with a body.
    budget: a YAML file that says how closely which layers, kv heads and sides are read; the policy holds where it says nothing.
    certify: whether to return, behind the function's own results, `bound` and `estimate` of each attention (see `KVCache.attend`), in order of
    appearance. A remark says where they can't be returned.
    dense_up_to: tokens up to which attention reads caches as they were appended, where they hold that, too (see `KVCache`); `Module.new_cache` makes such caches.
    raise_attention: whether to find attention in the text; False compiles the graph as it stands, which is what to compare with.
    allow_unregistered_dialect: whether the text may hold ops of dialects that are not linked, in generic form. Attention that they say by name is found, such as
    'tm_tensor.attention' and 'onnx.Attention'; what is left of them is refused.

    Raises Error with MLIR's diagnostics.
    """
    return Module(text, _options(policy, tolerance, format, budget, certify, _dense_up_to(dense_up_to), raise_attention), function,
                  allow_unregistered_dialect)


@functools.lru_cache(maxsize=256)
def _attention(text, options):
    """One module for all caches of a shape: the layers of a model share it."""
    return Module(text, options)


@functools.lru_cache(maxsize=256)
def _verify(types):
    """The compiler knows what a cache may be."""
    transform(f"func.func private @cache({types})", "builtin.module()")


def _size(name, value):
    """A positive integer that any of MLIR's dimensions can be."""
    try:
        size = operator.index(value)
    except TypeError:
        raise Error(f"expected {name} to be an integer, got {type(value).__name__}") from None
    if not 1 <= size < 2**31:
        raise Error(f"expected {name} to be 1 or more, got {size}")
    return size


_AUTO = "fixed<4,4,8>"


class KVCache:
    """Keys and values of one attention layer, in bit planes.

    kv_heads, batch: how many; every sequence of the batch has the same number of tokens.
    head_dim, value_dim: channels of a key and of a value, the latter as the former if left out; multiples of 16 up to 256.
    dtype: of the tokens: 'float16', 'bfloat16' or 'float32', of which 16 bits are kept.
    format: of keys and of values: planes, most significant first. 'auto' is 'fixed<4,4,8>'; the published format is 'float<8,4,4>' ('float<12,4>' for
    bfloat16).
    key_offset: [kv_heads, head_dim], finite, in units of keys: what is taken off each key before it is stored, a constant of the model (S2 in
    docs/Numerics.md). It does not change what attention means, but what is read of keys with a mean far from zero. Left out, the first append settles it: the
    mean of its first 64 tokens, or zero if it brings fewer. With 'fixed' formats only.

    dense_up_to: tokens up to which the cache holds its tokens as they were appended, too, and attention reads those: a short cache that lies near the processor is
    read faster so, and exactly. 'auto': as long as that is faster under the policies that it is attended to with, by what steps take on this machine; that is
    measured once, in a few seconds, by the first `attend` that asks. At most 4096 tokens are held twice then. With 'fixed' formats only.

    Safe to use from several threads: each call sees keys and values of the same tokens. Raises Error if the format can't hold such tokens.
    """

    def __init__(self, kv_heads, head_dim, batch=1, dtype="float16", format="auto", value_dim=None, key_offset=None, dense_up_to=0):
        self.kv_heads, self.head_dim, self.batch = _size("kv_heads", kv_heads), _size("head_dim", head_dim), _size("batch", batch)
        self.value_dim = self.head_dim if value_dim is None else _size("value_dim", value_dim)
        self.dtype = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if self.dtype not in ("float16", "bfloat16", "float32"):
            raise Error(f"expected dtype 'float16', 'bfloat16' or 'float32', got {dtype!r}")
        self.format = _AUTO if format == "auto" else re.sub(r"\s", "", str(format))
        parsed = re.fullmatch(r"(fixed|float)<(\d+(?:,\d+)*)>", self.format, re.ASCII)
        if not parsed:
            raise Error(f"expected a format such as 'auto', 'fixed<4,4,8>' or 'float<8,4,4>', got {format!r}")
        kind, widths = parsed[1], [int(width) for width in parsed[2].split(",")]
        _verify(f"{self._type('key', len(widths))}, {self._type('value', len(widths))}")
        self._key = _cache(kind, widths, "key", self.dtype, self.batch, self.kv_heads, self.head_dim)
        self._value = _cache(kind, widths, "value", self.dtype, self.batch, self.kv_heads, self.value_dim)
        self._reads = None
        self._dense_up_to = _dense_up_to(dense_up_to)
        if self._dense_up_to:
            if kind != "fixed":
                raise Error(f"expected dense_up_to with a 'fixed' format only, got {self.format!r}")
            _keep_dense(self._key, self._value, _most_dense if self._dense_up_to == "auto" else self._dense_up_to)
        if key_offset is not None:
            if kind != "fixed":
                raise Error(f"expected key_offset with a 'fixed' format only, got {self.format!r}")
            try:
                offset = np.asarray(key_offset, np.float32)
            except (TypeError, ValueError):
                raise Error(f"expected key_offset to be an array of numbers, got {type(key_offset).__name__}") from None
            self._key._set_offset(offset, "key_offset")

    def append(self, k, v):
        """Adds n tokens: k [batch, kv_heads, n, head_dim] and v [batch, kv_heads, n, value_dim] of the cache's dtype.

        Any strides will do, nothing is copied but into the cache. bfloat16 comes as ml_dtypes or as uint16. Raises Error if dtype or shapes
        do not fit, k and v differ in n, or memory is out; the cache is unchanged then.
        """
        _append(self._key, self._value, k, v)

    def truncate(self, tokens):
        """Forgets the newest tokens of every sequence until `tokens` are left: what speculative decoding drops.

        What is left is stored bit for bit as if they had never come, and so is what is appended next. Under 'alignedkv' the largest magnitudes seen
        stay, and while tokens are left, what the first append settled (`key_offset`). Raises Error unless tokens is 0 to len(cache); nothing changes then.
        """
        try:
            tokens = operator.index(tokens)
        except TypeError:
            raise Error(f"expected tokens to be an integer, got {type(tokens).__name__}") from None
        if not 0 <= tokens < 2**63:
            raise Error(f"expected tokens to be 0 or more, got {tokens}")
        _truncate(self._key, self._value, tokens)

    def copy(self):
        """A cache with the same tokens that goes its own way. Its planes take memory of their own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._key, twin._value = _copy(self._key, self._value)
        twin._reads = None
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def attend(self, q, scale=None, policy="balanced", tolerance=None, certify=False, causal=False, window=None, sinks=0, softcap=None,
               mask=None, sink_logits=None):
        """softmax(scale * q k^T) v over all tokens: float32 [batch, q_heads, queries, value_dim].

        q: [batch, q_heads, queries, head_dim], float16, bfloat16 (ml_dtypes or uint16) or float32; q_heads is a multiple of kv_heads, and
        query head h reads kv head h // (q_heads // kv_heads). Where it is more than 32 times as many, the cache is unpacked in each call.
        scale: of the scores, 1 / sqrt(head_dim) if left out.
        policy, tolerance: as in `compile`. A tolerance is the error aimed at, relative to the usual size of a row of V. 'alignedkv' needs a float
        format, policies with a tolerance a fixed one.
        certify: whether to return (out, bound, estimate), the latter two float32 [batch, q_heads, queries]. Both are of the error against exact
        attention over the tokens as they were appended, and come from the kernel, which knows the bits that it did not read (P4 in docs/Numerics.md).
            bound     no channel of that row is off by more: absolute, in the units of v. Proven, and so many times larger than the error.
            estimate  the relative L2 error to expect of that row, ||out - exact|| / ||exact||: predicted, not proven. It is 0 on float formats, for
                      which nothing is predicted.
        They are for rows whose exact output is finite, and need not be numbers for others.
        causal, window, sinks: which tokens a query sees (A11 in docs/Numerics.md). The queries are the newest tokens, the last of them the newest of all.
            causal    no token newer than the query itself.
            window    the newest `window` tokens up to the query, and with `sinks` the first tokens of all. Tiles of 64 tokens that no query sees are
                      not read.
          A query that sees no token, as there may be where tokens are fewer than queries, gets NaN.
        softcap: a score s becomes softcap * tanh(s / softcap).
        mask: of numbers (float16, bfloat16, float32), added to scores after the cap, or of bool, which says what is seen. It has the shape [batch, q_heads,
        queries, tokens], where any of the first three may be 1 or, from the left, absent. Where it is -inf or False, a token takes no part, whatever it
        holds; tiles of 64 tokens that it hides from all queries are not read. It goes with causal and window: both must let a token pass.
        sink_logits: [q_heads] of numbers: a logit for each query head that has no value. It adds exp(logit) to the sum that weights are divided by.

        No tokens give zeros. The first call with a new shape, dtype, policy or number of planes compiles. Raises Error if something does not fit.
        """
        q = np.asarray(q)
        if q.ndim != 4 or q.dtype.name not in _MLIR_TYPES:
            raise Error(f"expected q of float16, bfloat16 or float32 and rank 4, got {q.dtype.name} of rank {q.ndim}")
        scale = _number("scale", 1 / math.sqrt(self.head_dim) if scale is None else scale)
        options = _options(policy, tolerance, "auto", certify=certify, dense_up_to=self._dense_up_to)
        scoring = _scoring(causal, window, sinks, softcap)
        operands = self._operands(q, mask, sink_logits)
        while True:
            planes = self._key.planes
            module = _attention(self._text(q, scoring, operands, planes), options)
            if self._dense_up_to:  # policies that read planes sooner hold less
                _lower_dense(self._key, self._value, module.dense_up_to)
            try:
                out, (self._reads,) = module._call_with_reads(q, self._key, self._value, scale, *operands.values())
                return out
            except Error:
                if planes == self._key.planes:
                    raise  # else another thread has dropped planes meanwhile

    def drop_planes(self, planes):
        """Keeps the `planes` most significant bit planes of keys and of values and returns the memory of the others, for good.

        Tokens to come have no more planes either, and attention reads what is left (S9 in docs/Numerics.md). Raises Error unless planes is 1 to as many
        as there are; nothing is dropped then.
        """
        planes = _size("planes", planes)
        _drop_planes(self._key, self._value, planes)

    @property
    def reads(self):
        """What the last `attend` read, as an entry of `Module.reads`; None before."""
        return self._reads

    def to_numpy(self, bits=16):
        """All tokens as new arrays (k, v), read with the top `bits` of 16 bits, rounded up to whole planes. bfloat16 comes as uint16."""
        return self._key.to_numpy(bits), self._value.to_numpy(bits)

    def __len__(self):
        return len(self._value)

    @property
    def nbytes(self):
        """Bytes of memory that keys and values take, room for further tokens included."""
        return self._key.nbytes + self._value.nbytes

    def __repr__(self):
        return f"<alignedkv.KVCache of {len(self)} tokens, {self.batch} x {self.kv_heads} x {self.head_dim} {self.dtype} as {self.format}>"

    def _type(self, role, resident):
        dim = self.head_dim if role == "key" else self.value_dim
        planes = f"#aligned.planes<{self.format}, {role}, resident = {resident}>"
        return f"tensor<{self.batch}x{self.kv_heads}x?x{dim}x{_MLIR_TYPES[self.dtype]}, {planes}>"

    def _operands(self, q, mask, sink_logits):
        """The operands `attn_mask` and `sink_logits` that are given, as arrays of the shapes that the op takes."""
        operands = {}
        if mask is not None:
            mask = np.asarray(mask)
            if mask.dtype.name not in _MASK_TYPES:
                raise Error(f"expected mask of float16, bfloat16, float32 or bool, got {mask.dtype.name}")
            wanted = (*q.shape[:3], len(self))
            shape = (1,) * (4 - mask.ndim) + mask.shape
            if len(shape) != 4 or shape[3] != wanted[3] or any(got not in (1, want) for got, want in zip(shape, wanted)):
                raise Error(f"expected mask to be [batch, q_heads, queries, tokens] = {list(wanted)}, where the first three may be 1 or absent, got {list(mask.shape)}")
            operands["attn_mask"] = mask.reshape(shape)
        if sink_logits is not None:
            try:
                logits = np.asarray(sink_logits, np.float32)
            except (TypeError, ValueError):
                raise Error(f"expected sink_logits to be an array of numbers, got {type(sink_logits).__name__}") from None
            if logits.shape != q.shape[1:2]:
                raise Error(f"expected sink_logits to be [q_heads] = {list(q.shape[1:2])}, got {list(logits.shape)}")
            operands["sink_logits"] = logits
        return operands

    def _text(self, q, scoring, operands, planes):
        batch, heads, queries, _ = q.shape
        query = f"tensor<{'x'.join(map(str, q.shape))}x{_MLIR_TYPES[q.dtype.name]}>"
        key, value, out = self._type("key", planes), self._type("value", planes), f"tensor<{batch}x{heads}x{queries}x{self.value_dim}xf32>"
        arguments = ""
        for name, array in operands.items():
            shape = [*array.shape[:-1], "?"] if name == "attn_mask" else array.shape
            kind = f"tensor<{'x'.join(map(str, shape))}x{_MASK_TYPES[array.dtype.name]}>"
            arguments += f", %{name}: {kind}"
            scoring += f" {name} %{name} : {kind}"
        return f"""
            func.func @attend(%q: {query}, %k: {key}, %v: {value}, %s: tensor<f32>{arguments}) -> {out} {{
              %scale = tensor.extract %s[] : tensor<f32>
              %out = aligned.attention %q, %k, %v scale %scale{scoring} : {query}, {key}, {value} -> {out}
              return %out : {out}
            }}"""
