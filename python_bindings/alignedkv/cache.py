"""Keys and values of one layer, and attention over them."""

import functools
import math
import re
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import numpy as np

from . import _alignedkv as native
from . import arrays, gpu
from ._alignedkv import Error, _policy_tolerance, _transform
from .attention import MASK_TYPES, MLIR_TYPES, Host, Step, in_plain_words
from .compiler import _dense_up_to, _index, _number


@functools.lru_cache(maxsize=256)
def _verify(types):
    """The compiler knows what a cache may be."""
    with in_plain_words():
        _transform(f"func.func private @cache({types})", "builtin.module()")


def _integer(name, value, least=0, end=2**63):
    """An integer from `least` on."""
    number = _index(value)
    if number is None:
        raise Error(f"expected {name} to be an integer, got {type(value).__name__}")
    if not least <= number < end:
        raise Error(f"expected {name} to be {least} or more, got {number}" if number < least else f"expected {name} to be below {end}, got {number}")
    return number


def _size(name, value):
    """A positive integer that any of MLIR's dimensions can be."""
    return _integer(name, value, 1, 2**31)


def _integers(name, values):
    try:
        return [_integer(name, value) for value in values]
    except TypeError:
        raise Error(f"expected {name} to be integers, got {type(values).__name__}") from None


_ALL = 2**40  # tokens, more than any cache has


def _scoring(causal, window, sinks, softcap):
    """What `aligned.decode_attention` says of caps and masks (A11 and A12), and the numbers in it, which are operands: others compile nothing."""
    first = _integer("sinks", sinks)
    numbers: List[Any] = []
    parts, text = ["causal"] if causal else [], ""
    if softcap is not None:
        cap = _number("softcap", softcap, np.float64)
        if not 1e-30 <= cap <= 1e30:
            raise Error(f"expected softcap to be from 1e-30 to 1e+30, got {softcap}")
        text += " softcap %cap"
        numbers.append(np.float32(cap))
    if window is not None:
        parts.append("window = %window, sinks = %sinks")
        numbers += [np.int64(min(number, _ALL)) for number in (_integer("window", window, 1), first)]
    elif first:
        raise Error(f"expected sinks only with a window, got {sinks} without one")
    return text + (f" mask <{', '.join(parts)}>" if parts else ""), tuple(numbers)


def spelled_format(format):
    """A format as the type spells it."""
    spelled = _AUTO if format == "auto" else re.sub(r"\s", "", str(format))
    if not re.fullmatch(r"(fixed|float)<\d{1,2}(,\d{1,2})*>", spelled, re.ASCII):
        raise Error(f"expected a format such as 'auto', 'fixed<4,4,8>' or 'float<8,4,4>', got {format!r}")
    return spelled


def spelled_policy(policy, tolerance, format):
    """A policy as the op spells it, and what its tolerance is multiplied by when it runs, or None: so that a tolerance of one's own compiles nothing."""
    preset = _policy_tolerance(policy) if isinstance(policy, str) else 0
    if not preset and policy not in ("exact", "alignedkv", "budget"):
        raise Error(f"expected policy 'exact', 'alignedkv', 'tight', 'balanced', 'fast', 'draft' or 'budget', got {policy!r}")
    if (policy == "budget") != (tolerance is not None):
        raise Error("expected a tolerance with policy 'budget', got none" if policy == "budget" else f"expected a tolerance only with policy 'budget', got one with {policy!r}")
    kind, wanted = ("budget", "fixed") if preset or policy == "budget" else (policy, {"alignedkv": "float"}.get(policy))
    if wanted and not format.startswith(wanted):
        raise Error(f"expected a '{wanted}' format under policy {policy!r}, got {format!r}")
    if kind != "budget":
        return f"<{kind}>", None
    value = preset or _number("tolerance", tolerance, np.float64)
    if not 0 < value < 1:
        raise Error(f"expected tolerance to be above 0 and below 1, got {tolerance}")
    presets = [_policy_tolerance(name) for name in ("draft", "fast", "balanced", "tight")]
    stated = preset or next((finer for finer in presets if finer <= value), presets[-1])  # its kernels compute as finely as it takes
    return f"<budget, tolerance = {stated!r}>", None if preset else np.float32(value / stated)


Array = Any  # whatever exports DLPack or the buffer protocol

_AUTO = "fixed<4,4,8>"


class KVCache:
    """Keys and values of one attention layer, in bit planes.

    kv_heads, batch: how many. The sequences of a batch have the same number of tokens, unless `append` is told otherwise.
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

    reserve: tokens of each sequence that there is room for from the start. Beyond them memory grows as tokens come: twofold up to 4096 tokens, then by a quarter.
    page_size: 64, or None. With it, memory is a pool of pages of 64 tokens, of batch * `reserve` tokens in all, from which sequences take as they grow. Copies
    share it, and the pages that none of them writes to. It does not grow: an append that finds no page left raises Error. With 'fixed' formats only, and without
    `dense_up_to`.

    device: 'cpu', or 'cuda': planes are in the memory of the current NVIDIA GPU, whose kernels are compiled when they are first needed (docs/GPU.md: sm_80 and later,
    formats 'auto' and 'float<...>'). It takes and gives arrays of the CPU, with which calls wait for the GPU, and those of torch and CuPy on it, with which they only queue work on the
    stream that the library is using; arrays of other libraries on the GPU go by way of the CPU. `reorder`, `batch_select`, `to_numpy` and pickling copy the whole cache.

    Safe to use from several threads: each call sees keys and values of the same tokens. Can be copied and pickled. In a process that was forked it works on, unless
    another thread was using it at that moment: then calls raise Error. Raises Error if the format can't hold such tokens.
    """

    def __init__(self, kv_heads: int, head_dim: int, batch: int = 1, dtype: Any = "float16", format: str = "auto", value_dim: Optional[int] = None,
                 key_offset: Optional[Array] = None, dense_up_to: Union[int, str] = 0, page_size: Optional[int] = None, reserve: int = 0, device: str = "cpu") -> None:
        self.kv_heads, self.head_dim, batch = _size("kv_heads", kv_heads), _size("head_dim", head_dim), _size("batch", batch)
        self.value_dim = self.head_dim if value_dim is None else _size("value_dim", value_dim)
        self.dtype = arrays.dtype_name(dtype)
        if self.dtype not in MLIR_TYPES:
            raise Error(f"expected dtype 'float16', 'bfloat16' or 'float32', got {dtype!r}")
        self.format = spelled_format(format)
        kind, widths = self.format[:5], [int(width) for width in self.format[6:-1].split(",")]
        self._dense_up_to, self.reserve = _dense_up_to(dense_up_to), _integer("reserve", reserve, end=2**40)
        for name, value in [("dense_up_to", self._dense_up_to), ("key_offset", key_offset is not None), ("page_size", page_size is not None)]:
            if value and kind != "fixed":
                raise Error(f"expected {name} with a 'fixed' format only, got {self.format!r}")
        if page_size is not None and self._dense_up_to:
            raise Error(f"expected dense_up_to without page_size, got {dense_up_to!r} with one")
        if page_size is not None and _integer("page_size", page_size) != 64:
            raise Error(f"expected page_size to be 64 or None, got {page_size!r}")
        if page_size and not self.reserve:
            raise Error("expected reserve to be 1 or more with page_size, since pages do not grow in number, got 0")
        self.page_size = page_size
        pages = batch * (-(-self.reserve // page_size)) if page_size else -1
        _verify(f"{self._type('key', batch, len(widths))}, {self._type('value', batch, len(widths))}")
        self.device = device
        if device not in ("cpu", "cuda"):
            raise Error(f"expected device 'cpu' or 'cuda', got {device!r}")
        program = None
        if device == "cuda":
            if self._dense_up_to:
                raise Error("expected dense_up_to only on the CPU, got it with device 'cuda'")
            program = self._program(len(widths))
        self._key = native._cache(kind, widths, "key", self.dtype, batch, self.kv_heads, self.head_dim, self.reserve, pages, program)
        self._value = native._cache(kind, widths, "value", self.dtype, batch, self.kv_heads, self.value_dim, self.reserve, pages, program)
        self._reads = None
        if self._dense_up_to:
            native._keep_dense(self._key, self._value, native._most_dense if self._dense_up_to == "auto" else self._dense_up_to)
        if key_offset is not None:
            self._key._set_offset(arrays.floats("key_offset", key_offset), "key_offset")

    def append(self, k: Array, v: Array, lengths: Optional[Iterable[int]] = None) -> None:
        """Adds n tokens: k [batch, kv_heads, n, head_dim] and v [batch, kv_heads, n, value_dim] of the cache's dtype.

        Any array in CPU memory will do that exports DLPack or the buffer protocol (NumPy, ml_dtypes, torch, JAX), with any strides, and with device 'cuda' any on that GPU; nothing
        is copied but into the cache. bfloat16 comes as such or as uint16.
        lengths: how many of the n tokens each sequence gets, the first ones; from then on sequences have lengths of their own. With 'fixed' formats only.

        Raises Error if dtype or shapes do not fit, k and v differ in n, memory or pages are out; the cache is unchanged then. Where Ctrl-C comes it
        holds the tokens that it held; a dense copy (`dense_up_to`) may be gone that the append had given up, and under 'alignedkv' the largest magnitudes stay.
        """
        self._check_own_lengths("lengths", lengths is not None)
        stream = gpu.stream_for(k, v) if self.device == "cuda" else 0
        native._append(self._key, self._value, k, v, None if lengths is None else _integers("lengths", lengths), stream)

    def _check_own_lengths(self, what, are_wanted):
        if are_wanted and not self.format.startswith("fixed"):
            raise Error(f"expected {what} with a 'fixed' format only, got {self.format!r}")

    def truncate(self, tokens: Union[int, Iterable[int]]) -> None:
        """Forgets the newest tokens of every sequence until `tokens` are left: what speculative decoding drops.

        tokens: a number for all sequences, of which shorter ones stay as they are, or one for each, which gives them lengths of their own.
        What is left is stored bit for bit as if they had never come, and so is what is appended next. Under 'alignedkv' the largest magnitudes seen
        stay, and while tokens are left, what the first append settled (`key_offset`). Raises Error unless tokens is 0 to len(cache); nothing changes then.
        """
        each = not hasattr(tokens, "__index__") and hasattr(tokens, "__iter__") and not isinstance(tokens, (str, bytes))
        self._check_own_lengths("a number of tokens for each sequence", each)
        native._truncate(self._key, self._value, _integers("tokens", tokens) if each else [_integer("tokens", tokens)], each)

    def reorder(self, indices: Iterable[int]) -> None:
        """Has sequence n go on as a copy of sequence indices[n], as beam search asks for: [batch] integers.

        With pages the copies share them. Raises Error unless each is 0 to batch - 1; nothing changes then.
        """
        native._select(self._key, self._value, _integers("indices", indices), True)

    def batch_select(self, indices: Iterable[int]) -> None:
        """Keeps the sequences indices[0], indices[1], ... in this order; some may come several times. The batch is len(indices) then.

        Raises Error unless there is one at least and each is 0 to batch - 1; nothing changes then.
        """
        native._select(self._key, self._value, _integers("indices", indices), False)

    def copy(self) -> "KVCache":
        """A cache with the same tokens that goes its own way. Its planes take memory of their own, but for pages, which it shares while nobody writes to them."""
        return self._with(*native._copy(self._key, self._value))

    def _with(self, key, value):
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _key=key, _value=value, _reads=None)
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> "KVCache":
        return self.copy()

    def __getstate__(self):
        return {**self.__dict__, "_key": None, "_value": None, "_reads": None, "_saved": native._save(self._key, self._value)}

    def __setstate__(self, state):
        state = dict(state)
        key, value = state.pop("_saved")
        self.__dict__.update(state, _key=native._load(key), _value=native._load(value))
        if self.device == "cuda":
            program = self._program(self._key.planes)
            self._key, self._value = program.upload(self._key), program.upload(self._value)

    def close(self) -> None:
        """Gives the memory back now. Every other call raises Error from then on."""
        native._close(self._key, self._value)

    def attend(self, q: Array, scale: Optional[float] = None, policy: str = "balanced", tolerance: Optional[float] = None, certify: bool = False,
               causal: bool = False, window: Optional[int] = None, sinks: int = 0, softcap: Optional[float] = None, mask: Optional[Array] = None,
               sink_logits: Optional[Array] = None, return_lse: bool = False, out: Optional[Array] = None) -> Any:
        """softmax(scale * q k^T) v over all tokens: float32 [batch, q_heads, queries, value_dim].

        q: [batch, q_heads, queries, head_dim], float16, bfloat16 (or its bits as uint16) or float32, of any library that exports DLPack or the buffer protocol, in CPU memory or
        that of the cache's device. q_heads is a multiple of kv_heads, and query head h reads kv head h // (q_heads // kv_heads). Results are NumPy arrays, or tensors of torch
        JAX or CuPy where q is one.
        scale: of the scores, 1 / sqrt(head_dim) if left out.
        policy, tolerance: as in `compile`. A tolerance is the error aimed at, relative to the usual size of a row of V. 'alignedkv' needs a float
        format, policies with a tolerance a fixed one.
        certify: whether to return bound and estimate behind `out`, both float32 [batch, q_heads, queries]. Both are of the error against exact
        attention over the tokens as they were appended, and come from the kernel, which knows the bits that it did not read (P4 in docs/Numerics.md).
            bound     no channel of that row is off by more: absolute, in the units of v. Proven, and so many times larger than the error.
            estimate  the relative L2 error to expect of that row, ||out - exact|| / ||exact||: predicted, not proven. It is 0 on float formats, for
                      which nothing is predicted.
        They are for rows whose exact output is finite, and need not be numbers for others.
        causal, window, sinks: which tokens a query sees (A11 in docs/Numerics.md). The queries are the newest tokens, the last of them the newest of all.
            causal    no token newer than the query itself.
            window    no token older than the newest `window` up to the query, but with `sinks` the first tokens of all; newer ones unless `causal`. Tiles of
                      64 tokens that no query sees are not read.
          A query that sees no token, as there may be where tokens are fewer than queries, gets NaN.
        softcap: a score s becomes softcap * tanh(s / softcap).
        mask: of numbers (float16, bfloat16, float32), added to scores after the cap, or of bool, which says what is seen. It has the shape [batch, q_heads,
        queries, tokens], where any of the first three may be 1 or, from the left, absent. Where it is -inf or False, a token takes no part, whatever it
        holds; tiles of 64 tokens that it hides from all queries are not read. It goes with causal and window: both must let a token pass.
        sink_logits: [q_heads] of numbers: a logit for each query head that has no value. It adds exp(logit) to the sum that weights are divided by.
        return_lse: whether to return the logarithm of that sum, log(sum(exp(scores))), behind `out` and before bound and estimate: float32 [batch, q_heads, queries],
        with which outputs over disjoint tokens merge; -inf where there is no token. It is as close as `out` is: bound and estimate say nothing of it.
        out: a writable float32 array of the result's shape that takes it, and is returned.

        No tokens give zeros. The first call with a new shape, dtype, policy or number of planes compiles (`warm_up`); another number of queries seldom does. Raises
        Error if something does not fit.
        """
        place: Host = gpu.place_for(q, certify, self._key, self._value) if self.device == "cuda" else Host(self._key, self._value, self._lower_dense)
        query, dtype = place.array("q", q, MLIR_TYPES)
        factor = _number("scale", 1 / math.sqrt(self.head_dim) if scale is None else scale)
        (scoring, scores), (spelled, multiple) = _scoring(causal, window, sinks, softcap), spelled_policy(policy, tolerance, self.format)
        if not isinstance(certify, (bool, np.bool_)):
            raise Error(f"expected certify to be True or False, got {type(certify).__name__}")
        options = f"dense-up-to={self._dense_up_to}" if self._dense_up_to else ""
        with native._Hold(self._key, self._value) as (batch, planes):  # all pieces of the queries see the same tokens
            if query.ndim != 4 or query.shape[0] != batch or query.shape[3] != self.head_dim or not query.shape[1] or query.shape[1] % self.kv_heads:
                raise Error(f"expected q of shape [{batch}, a multiple of {self.kv_heads}, queries, {self.head_dim}], got {list(query.shape)}")
            target = None if out is None else place.target(out, (*query.shape[:3], self.value_dim))
            numbers, kind = self._mask(place, query.shape, mask)
            step = Step(query, dtype, factor, scoring, scores, spelled, multiple, numbers, kind, self._logits(place, query.shape, sink_logits), bool(certify),
                        bool(return_lse), options)
            (result, *others), self._reads = step.run(place, self._type("key", batch, planes), self._type("value", batch, planes), self.kv_heads, self.value_dim)
        if target is not None:
            target[...] = result
        given = [place.given(q, result) if out is None else out] + [place.given(q, array) for array in others]
        return given[0] if len(given) == 1 else tuple(given)

    def drop_planes(self, planes: int) -> None:
        """Keeps the `planes` most significant bit planes of keys and of values and returns the memory of the others, for good.

        Tokens to come have no more planes either, and attention reads what is left (S9 in docs/Numerics.md). Raises Error unless planes is 1 to as many
        as there are; nothing is dropped then.
        """
        native._drop_planes(self._key, self._value, _size("planes", planes))

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return self._key.batch

    @property
    def lengths(self) -> List[int]:
        """How many tokens each sequence holds."""
        return self._value.lengths

    @property
    def free_pages(self) -> int:
        """Pages of 64 tokens that neither this cache nor its copies hold; 0 without `page_size`."""
        return self._value._free_pages

    @property
    def reads(self) -> Optional[Dict[str, int]]:
        """What the last `attend` read, as an entry of `Module.reads`, summed over the kernels that the queries took; None before, and where
        nobody waited for the GPU."""
        return self._reads

    def to_numpy(self, bits: int = 16) -> Tuple[np.ndarray, np.ndarray]:
        """All tokens as new arrays (k, v), read with the top `bits` of 16 bits, rounded up to whole planes. bfloat16 comes as uint16.

        What lies behind the tokens of a shorter sequence is 0.
        """
        return native._unpack(self._key, self._value, bits)

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return True  # a cache is one, also while it holds nothing

    @property
    def nbytes(self) -> int:
        """Bytes of memory that keys and values take, room for further tokens included."""
        return self._key.nbytes + self._value.nbytes

    def __repr__(self) -> str:
        return f"<alignedkv.KVCache of {len(self)} tokens, {self.batch} x {self.kv_heads} x {self.head_dim} {self.dtype} as {self.format}>"

    def _type(self, role, batch, planes, kv_heads=None):
        dim = self.head_dim if role == "key" else self.value_dim
        encoding = f"#aligned.planes<{self.format}, {role}, resident = {planes}>"
        return f"tensor<{batch}x{kv_heads or self.kv_heads}x?x{dim}x{MLIR_TYPES[self.dtype]}, {encoding}>"

    def _program(self, planes):
        """Kernels that append to such caches on the GPU."""
        return gpu.appending(self._type("key", 1, planes, 1), self._type("value", 1, planes, 1), self.head_dim, self.value_dim)

    def _lower_dense(self, module):
        if self._dense_up_to:  # policies that read planes sooner hold less
            native._lower_dense(self._key, self._value, module.dense_up_to)

    def _mask(self, place, rows, mask):
        """A mask as the op takes it, and the name of its dtype."""
        if mask is None:
            return None, ""
        mask, dtype = place.array("mask", mask, MASK_TYPES)
        wanted = (*rows[:3], len(self))
        shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
        if len(shape) != 4 or shape[3] != wanted[3] or any(got not in (1, want) for got, want in zip(shape, wanted)):
            raise Error(f"expected mask to be [batch, q_heads, queries, tokens] = {list(wanted)}, where the first three may be 1 or absent, got {list(mask.shape)}")
        return mask.reshape(shape), dtype

    def _logits(self, place, rows, sink_logits):
        if sink_logits is None:
            return None
        logits = place.floats("sink_logits", sink_logits)
        if tuple(logits.shape) != tuple(rows[1:2]):
            raise Error(f"expected sink_logits to be [q_heads] = {list(rows[1:2])}, got {list(logits.shape)}")
        return logits


def warm_up(cache: KVCache, q_heads: int, queries: int = 1, dtype: str = "float16", **options: Any) -> None:
    """Compiles what `cache.attend(q, **options)` runs for a q of [batch, q_heads, queries, head_dim] and `dtype`, before the first token waits for it.

    Of a mask only its shape and dtype count. Kernels that this machine compiled before are read from disk. Raises Error as `attend` does.
    """
    if dtype not in MLIR_TYPES:
        raise Error(f"expected dtype 'float16', 'bfloat16' or 'float32', got {dtype!r}")
    options.pop("out", None)
    if options.get("mask") is not None:
        options["mask"] = arrays.on_host("mask", options["mask"], MASK_TYPES)[0][..., :0]
    empty = KVCache(cache.kv_heads, cache.head_dim, cache.batch, cache.dtype, cache.format, cache.value_dim, dense_up_to=cache._dense_up_to, device=cache.device)
    if (planes := cache._key.planes) < empty._key.planes:
        empty.drop_planes(planes)
    shape = (empty.batch, _size("q_heads", q_heads), _size("queries", queries), cache.head_dim)
    empty.attend(np.zeros(shape, "uint16" if dtype == "bfloat16" else dtype), **options)
