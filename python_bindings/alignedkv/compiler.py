"""The compiler: a module from a text or a file, through phases and passes, to what can be called, read or launched.

    graph = Graph.load("model.mlir")
    print(graph.run(to="fuse", policy="tight"))
    model = graph.compile(policy="tight")

Options are keywords. Which there are, and what they mean, the compiler itself says (`Graph.options`). What it says of a text are `Diagnostic` objects, be it in `remarks` or
in a `CompileError`.
"""

from __future__ import annotations

import json
import operator
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence, Union

import numpy as np

from ._alignedkv import Error, Module, _compile_kernels, _pipeline_options, _transform

Option = Union[str, "os.PathLike[str]", bool, int, float, Sequence[float], None]

# Diagnostics


@dataclass(frozen=True)
class Diagnostic:
    """What the compiler says: `severity` is 'error', 'warning', 'remark' or 'note'.

    filename, line, column: where, counted from 1; all None where it is about no place, or one in a text that the package wrote itself.
    notes: further Diagnostics that belong to it.
    """

    severity: str
    message: str
    filename: str | None = None
    line: int | None = None
    column: int | None = None
    notes: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        """As compilers write it, a line for each note behind it. An error without a place is its message."""
        said = f"{self.severity}: {self.message}" if self.filename or self.severity != "error" else self.message
        place = f"{self.filename}:{self.line}:{self.column}: " if self.filename else ""
        return "\n".join([place + said, *map(str, self.notes)])


class CompileError(Error):
    """What the compiler refuses. `diagnostics`: all that it said, errors first; the text of the exception is theirs."""

    diagnostics: list[Diagnostic]

    def __init__(self, diagnostics: Sequence[Diagnostic]):
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = list(diagnostics)

    def __reduce__(self):
        return type(self), (self.diagnostics,)


# Options


def _number(name, value, dtype=np.float32):
    """An array of rank 0."""
    try:
        number = None if isinstance(value, (str, bytes)) else np.array(value, dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None or number.ndim:
        raise Error(f"expected {name} to be a number, got {value!r}")
    return number


def _checked(name, value):
    """Text that C can be given."""
    if not isinstance(value, str):
        raise Error(f"expected {name} to be text, got {type(value).__name__}")
    try:
        wrong = value.encode().find(0)
    except UnicodeEncodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise Error(f"expected {name} without NUL and surrogates, got one at offset {wrong}")
    return value


def _index(value):
    """An integer, or None."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def _dense_up_to(value):
    """'auto', or a number of tokens."""
    if value == "auto":
        return value
    tokens = _index(value)
    if tokens is None or not 0 <= tokens < 2**63:
        raise Error(f"expected dense_up_to to be a number of tokens or 'auto', got {value!r}")
    return tokens


def _path(name, value):
    if not isinstance(value, (str, os.PathLike)):
        raise Error(f"expected {name} to be text or a path, got {type(value).__name__}")
    return os.fsdecode(value)


def _flag(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise Error(f"expected {name} to be True or False, got {value!r}")
    return str(bool(value)).lower()


def _integer(name, value, first=-(2**63)):
    number = _index(value)
    if number is None:
        raise Error(f"expected {name} to be an integer, got {value!r}")
    if not first <= number < 2**63:
        raise Error(f"expected {name} to be an integer from {first} to 2^63 - 1, got {number}")
    return str(number)


def _numbers(name, value):
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise Error(f"expected {name} to be numbers, got {value!r}")
    return ",".join(repr(float(_number(name, number, np.float64))) for number in value)


_WORD = re.compile(r"[\w<>,.+-]+", re.ASCII)


def _quoted(name, value):
    """One word, or quoted, so that no value can pass for another option."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        value = str(value)
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    if not re.fullmatch(r"[^'\"{}]+", _checked(name, value)):
        raise Error(f"expected {name} to be text without quotes and braces, got {value!r}")
    return f"'{value}'"


_WRITERS = {
    "text": _quoted,
    "flag": _flag,
    "integer": _integer,
    "count": lambda name, value: _integer(name, value, 0),
    "number": lambda name, value: repr(float(_number(name, value, np.float64))),
    "numbers": _numbers,
}

_KEYWORDS = {("raise_attention" if name == "raise" else name.replace("-", "_")): (name, meaning, _WRITERS[kind]) for name, meaning, kind in _pipeline_options()}


def _written(what, given, refused=()):
    """Keywords as the pipeline reads its options. None leaves one out; `what` takes all but those in `refused`."""
    words = []
    for keyword, value in given.items():
        if keyword not in _KEYWORDS or keyword in refused:
            known = ", ".join(keyword for keyword in _KEYWORDS if keyword not in refused)
            raise Error(f"expected an option of {what} ({known}), got {keyword!r}")
        name, _, write = _KEYWORDS[keyword]
        if value is not None:
            words.append(f"{name}={write(keyword, value)}")
    return " ".join(words)


_NOT_OF_COMPILE = ("chip", "ptx", "to")
_NOT_OF_KERNELS = ("dense_up_to", "costs", "isa", "profile", "target", "to")


# Modules


@dataclass(frozen=True)
class Candidate:
    """What became of a product that looks like attention.

    function: that it is in.
    location: 'file:line:column'.
    raised: whether it is attention.
    match: of one that is: types of query, key and value, its mask, and whether it has a softcap, sink_logits or rows that are masked to zero.
    reason: of one that is not: what was expected, and what was found.
    """

    function: str
    location: str
    raised: bool
    match: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Kernels:
    """Attention of a module as kernels for a GPU.

    ptx: their text.
    launch: how to launch them (docs/GPU.md), as JSON has it; `aligned_program_load` of aligned/Runtime/Cuda.h takes both.
    remarks: of the compiler.
    """

    ptx: str
    launch: dict[str, Any]
    remarks: list[Diagnostic]


class Graph:
    """A module of MLIR, as it came or as passes left it. `str` of it is its text.

    filename: what its text is called in diagnostics.
    remarks: what the compiler said on the way to it, a list of Diagnostic. Places are of the text that was loaded or parsed, also behind passes.
    options: keywords of `run`, `compile` and `compile_kernels`, and what each means. Names are those of aligned-pipeline with underscores, `raise_attention` is its `raise`.
    """

    options: dict[str, str] = {keyword: meaning for keyword, (_, meaning, _) in _KEYWORDS.items()}

    filename: str
    remarks: list[Diagnostic]
    _text: str
    _allows: bool

    def __init__(self) -> None:
        raise TypeError("expected Graph.load or Graph.parse, got Graph()")

    @classmethod
    def _of(cls, text, filename, allow_unregistered_dialect, remarks=()):
        """A graph that is not parsed yet."""
        self = object.__new__(cls)
        self.filename, self.remarks = _path("filename", filename).encode("utf-8", "replace").decode(), list(remarks)
        self._text, self._allows = _checked("text", text), bool(allow_unregistered_dialect)
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str], allow_unregistered_dialect: bool = False) -> Graph:
        """Reads and parses a file. Raises OSError if it can't be read, and as `parse`."""
        return cls.parse(_read(path), path, allow_unregistered_dialect)

    @classmethod
    def parse(cls, text: str, filename: str | os.PathLike[str] = "<text>", allow_unregistered_dialect: bool = False) -> Graph:
        """Parses a module's MLIR text: functions over tensors, in linalg, tensor, arith, math, scf, func, tosa or `aligned` ops.

        filename: what the text is called in diagnostics.
        allow_unregistered_dialect: whether the text may hold ops of dialects that are not linked, in generic form. Attention that they say by name is found, such as
        'tm_tensor.attention' and 'onnx.Attention'; what is left of them can't be compiled.

        Raises CompileError if it is no valid module.
        """
        return cls._of(text, filename, allow_unregistered_dialect).run("builtin.module()")

    def run(self, pipeline: str | None = None, **options: Option) -> Graph:
        """What a pass pipeline makes of it: aligned-pipeline with these options, or any.

        to: the last phase: 'raise', 'store', 'fuse', 'stage', 'lower' or 'llvm', to which it goes if left out. All others are in `Graph.options`.
        pipeline: another pipeline, as on aligned-opt's command line, 'canonicalize' or 'builtin.module(aligned-raise-attention)'; without options then.

        Raises Error for unknown options and values that are none, CompileError if a pass fails.
        """
        if pipeline is not None and options:
            raise Error(f"expected a pipeline or options, got {pipeline!r} and {', '.join(options)}")
        if pipeline is None:
            pipeline = f"aligned-pipeline{{{_written('run', options)}}}"
        text, remarks = _transform(self._text, _checked("pipeline", pipeline), self._allows, self.filename, with_places=True)
        return self._of(text, self.filename, self._allows, [*self.remarks, *remarks])

    def compile(self, function: str | None = None, **options: Option) -> Module:
        """Compiles it for this machine, to a callable `Module`. As `alignedkv.compile`, where the common options are explained; there are those of `run` but 'chip', 'ptx', 'to'."""
        name = None if function is None else _checked("function", function)
        return Module(self._text, _written("compile", options, _NOT_OF_COMPILE), name, self._allows, self.filename)

    def compile_kernels(self, **options: Option) -> Kernels:
        """Compiles its attention for a GPU: kernels as PTX, and how to launch them.

        chip: 'sm_90' if left out, from 'sm_80' on.
        ptx: version of PTX, such as 80 for 8.0; the first that knows the chip if left out.
        policy, tolerance, format, budget, ...: as in `alignedkv.compile`.

        Raises CompileError if there is no attention in it, or one that kernels don't cover (docs/GPU.md).
        """
        ptx, launch, remarks = _compile_kernels(self._text, _written("compile_kernels", options, _NOT_OF_KERNELS), self._allows, self.filename)
        return Kernels(ptx, json.loads(launch), remarks)

    def report(self) -> list[Candidate]:
        """What raising finds in it: one entry for each product that looks like attention, in order (docs/Raising.md)."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "report.json")
            self.run(f"aligned-raise-report{{{file}}}")
            return [Candidate(**candidate) for candidate in json.loads(file.read_text(encoding="utf-8"))]

    def __str__(self) -> str:
        return _transform(self._text, "builtin.module()", self._allows)[0]

    def __repr__(self) -> str:
        return f"<alignedkv.Graph of {self.filename}>"


def _read(path):
    file = _path("path", path)
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Error(f"expected {file} to be text in UTF-8, got byte {error.object[error.start]:#04x} at offset {error.start}") from None


def transform(text: str, pipeline: str, allow_unregistered_dialect: bool = False) -> str:
    """Runs an MLIR pass pipeline over a module's text and returns the text that it becomes.

    pipeline: as on aligned-opt's command line, 'aligned-pipeline{to=store}' or 'builtin.module(aligned-raise-attention)'.
    allow_unregistered_dialect: as in `Graph.parse`.

    Raises CompileError if the text, the pipeline or a pass fails.
    """
    return _transform(_checked("text", text), _checked("pipeline", pipeline), bool(allow_unregistered_dialect), "<text>")[0]


def compile(
    text: str | os.PathLike[str],
    policy: str = "balanced",
    tolerance: float | None = None,
    format: str = "auto",
    function: str | None = None,
    budget: str | os.PathLike[str] | None = None,
    certify: bool = False,
    dense_up_to: int | str = 0,
    raise_attention: bool = True,
    allow_unregistered_dialect: bool = False,
    **options: Option,
) -> Module:
    """Compiles a module for this machine and returns a callable `Module`.

    text: MLIR, or the path of a file of it (`pathlib.Path`): functions over tensors, in linalg, tensor, arith, math, scf, func (what torch-mlir writes, for one) or
    `aligned` ops. Attention in them is found, and the tensors that it reads as keys and values become caches.
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
    allow_unregistered_dialect: as in `Graph.parse`.
    options: others of `Graph.options`, such as isa='portable' or target='reference'.

    Raises Error for options that there are not, CompileError with the compiler's diagnostics for all else. Ctrl-C is answered at once; the process then ends no sooner than what
    it interrupted would have.
    """
    is_file = isinstance(text, os.PathLike)
    graph = Graph._of(_read(text) if is_file else text, text if is_file else "<text>", allow_unregistered_dialect)
    return graph.compile(function, policy=policy, tolerance=tolerance, format=format, budget=budget, certify=certify, dense_up_to=_dense_up_to(dense_up_to),
                         raise_attention=raise_attention, **options)
