"""The operator Attention of ONNX, opsets 23 to 25, through the compiler: a backend by onnx's own interface (onnx.backend.base).

    from alignedkv.integrations import onnx as backend
    model = backend.prepare("decode.onnx", policy="balanced")
    cache = alignedkv.KVCache(kv_heads=3, head_dim=64)
    y, *_ = model.run({"Q": q, "K": k, "V": v, "past_key": cache, "past_value": cache})  # appends to the cache

A node becomes MLIR text, one 'onnx.Attention' in generic form, which the compiler raises by its name; numbers of tokens are left open in it, and each text is
compiled once. Done here is what such a text can't say: that inputs fit each other, heads beside channels, masks that are too short, types that it has not.
"""

import contextlib
import functools
import numbers
import os
import re

import numpy as np

import onnx
from onnx import external_data_helper, helper, numpy_helper
from onnx.backend import base

import alignedkv
from alignedkv import Cache, Error, KVCache

_DOMAINS = ("", "ai.onnx")
_OPSETS = (23, 24, 25)
_TYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "bool": "i1", "int64": "i64"}
_INPUTS = {  # in order; attn_mask broadcasts
    "Q": ("batch", "q_heads", "queries", "head_dim"),
    "K": ("batch", "kv_heads", "fresh", "head_dim"),
    "V": ("batch", "kv_heads", "fresh", "value_dim"),
    "attn_mask": ("batch", "q_heads", "queries", "tokens"),
    "past_key": ("batch", "kv_heads", "past", "head_dim"),
    "past_value": ("batch", "kv_heads", "past", "value_dim"),
    "nonpad_kv_seqlen": ("batch",),
}
_OUTPUTS = {
    "Y": ("batch", "q_heads", "queries", "value_dim"),
    "present_key": ("batch", "kv_heads", "tokens", "head_dim"),
    "present_value": ("batch", "kv_heads", "tokens", "value_dim"),
    "qk_matmul_output": ("batch", "q_heads", "queries", "tokens"),
}
_PRESENT = {"present_key": ("past_key", "K"), "present_value": ("past_value", "V")}


def _expect(holds, wanted, got):
    if not holds:
        raise Error(f"expected {wanted}, got {got}")


def _float32(name, array):
    """float64 in float32. A mask may hide by the lowest of all numbers, which stays one: the end of the range will do."""
    if array.dtype != np.float64:
        return array
    most = np.finfo(np.float32).max
    if name == "attn_mask":
        array = np.where(np.isinf(array), array, np.clip(array, -most, most))
    else:
        _expect(not (np.isfinite(array) & (np.abs(array) > most)).any(), f"{name} of float64 within the range of float32", "larger numbers")
    return array.astype(np.float32)


@functools.lru_cache(maxsize=256)
def _compiled(text, policy, tolerance, format):
    """One module for all nodes of a shape: the layers of a model share it."""
    module = alignedkv.compile(text, policy=policy, tolerance=tolerance, format=format, allow_unregistered_dialect=True)
    if module.attentions != 1:
        raise Error("\n".join(module.remarks) or "expected one attention, got none")
    return module


class _Attention:
    """A node: its inputs, outputs and attributes by the names that the operator gives them."""

    def __init__(self, node, opset):
        self.opset = opset
        self.inputs = {name: value for name, value in zip(_INPUTS, node.input) if value}
        self.outputs = {name: value for name, value in zip(_OUTPUTS, node.output) if value}
        self.attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        for name in ("Q", "K", "V"):
            _expect(name in self.inputs, f"an input {name}", "none")
        _expect("Y" in self.outputs, "an output Y", "none")
        _expect(("past_key" in self.inputs) == ("past_value" in self.inputs), "past_key and past_value together", "one of them")
        _expect("past_key" not in self.inputs or "nonpad_kv_seqlen" not in self.inputs, "past_key or nonpad_kv_seqlen", "both")
        for name in ("scale", "softcap"):  # the operator takes the root of its scale
            value = self.attributes.get(name, 0.0)
            _expect(0 <= value < np.inf, f"{name} to be a number of 0 or more", value)

    def __call__(self, values, options):
        """Values of the outputs, and what attention read."""
        given, results, module, kept = self.bind(values, options)
        arguments, packed = [], True
        for argument, value in zip(module.arguments, given.values()):
            if "<" not in argument and isinstance(value, Cache):  # more queries than planes are read for
                packed, value = False, value.to_numpy()
            elif "<" in argument and not isinstance(value, Cache):
                cache = module.new_cache(len(arguments))
                cache.append(value)
                value = cache
            arguments.append(value)
        returned, (reads,) = module._call_with_reads(*arguments)
        if not packed:
            kept.append(given["K"], given["V"])
        results = dict(zip(results, returned if isinstance(returned, tuple) else (returned,)))

        query = values[self.inputs["Q"]]
        for name in results.keys() & {"Y", "qk_matmul_output"}:
            array = results[name]
            results[name] = array.view(query.dtype) if query.dtype.name == "bfloat16" else array.astype(query.dtype, copy=False)
        if query.ndim == 3:
            array = results["Y"]
            results["Y"] = array.transpose(0, 2, 1, 3).reshape(*query.shape[:2], array.shape[1] * array.shape[3])
        for name, (past, fresh) in _PRESENT.items():
            if kept is not None:
                results[name] = kept
            elif name in self.outputs:  # bit for bit, whatever attention read
                parts = [values[self.inputs[past]]] if past in self.inputs else []
                results[name] = np.concatenate([*parts, self._apart(fresh, values[self.inputs[fresh]])], 2)
        return {value: results[name] for name, value in self.outputs.items()}, reads

    def bind(self, values, options):
        """What the compiler is given by name, the names of what it returns, its module, and the KVCache that holds the past, if one does.

        It looks at shapes and types alone, and so may be asked ahead of a run.
        """
        given = {name: values[value] for name, value in self.inputs.items()}
        kept = given.get("past_key") if isinstance(given.get("past_key"), KVCache) else None
        for name, value in given.items():
            fits = value is kept if kept is not None and name in ("past_key", "past_value") else not isinstance(value, KVCache)
            _expect(fits, "one KVCache as past_key and past_value, or arrays", f"another {name}")
        given = {name: value if value is kept else self._apart(name, _float32(name, value)) for name, value in given.items()}
        types = {name: (value.dtype.name, value.shape) for name, value in given.items() if value is not kept}
        policy, tolerance, format = options
        if kept is not None:
            shape = kept.batch, kept.kv_heads, len(kept)
            types |= {"past_key": (kept.dtype, (*shape, kept.head_dim)), "past_value": (kept.dtype, (*shape, kept.value_dim))}
            given |= {"past_key": kept._key, "past_value": kept._value}
            _expect(format in (None, kept.format), f"a KVCache of format {format}", kept.format)
            format = kept.format
        for past, fresh in _PRESENT.values():
            _expect(past not in types or types[past][0] == types[fresh][0], f"{past} of {types[fresh][0]}, as {fresh} is", types.get(past, [None])[0])
        sizes = self._sizes({name: shape for name, (_, shape) in types.items()})
        if types["K"][0] != types["V"][0]:  # which the compiler has not
            given |= {name: given[name].astype(np.float32) for name in ("K", "V", "past_key", "past_value") if name in given}
        if "attn_mask" in given:
            given["attn_mask"] = self._whole(given["attn_mask"], sizes)
        types = {name: (value.dtype.name, value.shape) if isinstance(value, np.ndarray) else types[name] for name, value in given.items()}

        results = [name for name in _OUTPUTS if name == "Y" or (kept is not None and name in _PRESENT) or (name == "qk_matmul_output" and name in self.outputs)]
        format = format or ("dense" if policy == "exact" else "auto")  # planes keep 16 bits of a value, and so less than all of float32
        try:
            return given, results, _compiled(self._text(types, results, sizes), policy, tolerance, format), kept
        except Error as error:
            reason = re.search("attention not raised: (.*)", str(error))
            raise Error(reason[1] if reason else str(error)) from None

    def _apart(self, name, array):
        """[batch, heads, tokens, channels] of Q, K or V, whose rank 3 has heads beside channels; others as they are."""
        if name not in ("Q", "K", "V") or array.ndim != 3:
            return array
        attribute = "q_num_heads" if name == "Q" else "kv_num_heads"
        heads = self.attributes.get(attribute, 0)
        _expect(heads > 0 and array.shape[2] % heads == 0, f"{attribute} that divides the last dimension of {name}, {array.shape[2]}", heads or "none")
        return array.reshape(*array.shape[:2], heads, array.shape[2] // heads).transpose(0, 2, 1, 3)

    def _sizes(self, shapes):
        """The extent of each dimension, of which all inputs must think alike."""
        sizes = {}
        for name, shape in shapes.items():
            if name != "attn_mask":
                dims = _INPUTS[name]
                fits = len(shape) == len(dims) and all(sizes.setdefault(dim, size) == size for dim, size in zip(dims, shape))
                _expect(fits, f"{name} to be [{', '.join(f'{dim} = {sizes[dim]}' if dim in sizes else dim for dim in dims)}]", list(shape))
        for name, dim in (("q_num_heads", "q_heads"), ("kv_num_heads", "kv_heads")):
            heads = self.attributes.get(name, sizes[dim])
            _expect(heads == sizes[dim], f"{name} to be the heads there are, {sizes[dim]}", heads)
        _expect(sizes["head_dim"] > 0, "head_dim of 1 or more", 0)
        heads, kv_heads = sizes["q_heads"], sizes["kv_heads"]
        _expect(kv_heads > 0 and heads % kv_heads == 0, f"heads of Q to be a multiple of the {kv_heads} of K", heads)
        return sizes | {"tokens": sizes.get("past", 0) + sizes["fresh"]}

    def _whole(self, mask, sizes):
        """A mask of all tokens. From opset 24 on it may end early, which hides the rest; before, a last dimension of one is read in two ways."""
        wanted = [sizes[dim] for dim in _INPUTS["attn_mask"]]
        shape = list(mask.shape)
        missing = wanted[-1] - shape[-1] if shape and self.opset > 23 else 0
        if missing > 0:
            mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=False if mask.dtype == bool else -np.inf)
        fits = 1 <= mask.ndim <= 4 and mask.shape[-1] == wanted[-1] and all(got in (1, want) for got, want in zip(mask.shape[-2::-1], wanted[-2::-1]))
        _expect(fits, f"attn_mask to broadcast to [batch, q_heads, queries, tokens] = {wanted}", shape)
        return mask

    def _text(self, types, results, sizes):
        """One function of one op. Tokens are left open, unless they are the queries' own: what they see is an attribute then."""
        own = sizes["fresh"] == sizes["queries"]
        extents = sizes | {"past": "?", "fresh": sizes["fresh"] if own else "?"}
        extents["tokens"] = "?" if "past" in sizes else extents["fresh"]

        def tensor(name, dtype, shape):
            _expect(dtype in _TYPES, f"{name} of a type among {', '.join(_TYPES)} and float64", dtype)
            return f"tensor<{''.join(f'{size}x' for size in shape)}{_TYPES[dtype]}>"

        source = {"Y": "Q", "present_key": "K", "present_value": "V", "qk_matmul_output": "Q"}
        operands = {name: tensor(name, dtype, [*shape[:-1], extents["tokens"]] if name == "attn_mask" else [extents[dim] for dim in _INPUTS[name]])
                    for name, (dtype, shape) in types.items()}
        results = {name: tensor(name, types[source[name]][0], [extents[dim] for dim in _OUTPUTS[name]]) for name in results}
        attributes = ", ".join(f"{name} = {value} : si64" if isinstance(value, int) else f"{name} = {value:.9e} : f32"
                               for name, value in sorted(self.attributes.items()) if not name.endswith("num_heads"))
        return f"""
            func.func @attention({', '.join(f'%{name}: {type}' for name, type in operands.items())}) -> ({', '.join(results.values())}) {{
              %none = "onnx.NoValue"() {{value}} : () -> none
              %r:4 = "onnx.Attention"({', '.join(f'%{name}' if name in operands else '%none' for name in _INPUTS)}) {{{attributes}}}
                  : ({', '.join(operands.get(name, 'none') for name in _INPUTS)}) -> ({', '.join(results.get(name, 'none') for name in _OUTPUTS)})
              return {', '.join(f'%r#{[*_OUTPUTS].index(name)}' for name in results)} : {', '.join(results.values())}
            }}"""


def _label(node):
    return f"node {node.name or next(filter(None, node.output), '')!r}"


@contextlib.contextmanager
def _within(label):
    """Errors say which node they are about."""
    try:
        yield
    except Error as error:
        raise Error(f"{label}: {error}") from None


class Model(base.BackendRep):
    """A model that is ready to run. `reads`: what each node read in the last run, in order, an entry as in `alignedkv.Module.reads`."""

    def __init__(self, model, options):
        self._options = options
        self.reads = []
        newest = onnx.defs.onnx_opset_version()
        opset = max((entry.version for entry in model.opset_import if entry.domain in _DOMAINS), default=0)
        _expect(_OPSETS[0] <= opset <= newest, f"an opset of ai.onnx from {_OPSETS[0]}, Attention's first, to {newest}, the onnx package's last", opset or "none")
        version = onnx.defs.get_schema("Attention", opset).since_version
        _expect(version in _OPSETS, f"Attention as of opset {_OPSETS[0]} to {_OPSETS[-1]}", f"that of {version}")
        graph = model.graph
        for function in model.functions:
            raise Error(f"expected a model without functions of its own, got {function.name!r}")
        for node in graph.node:
            known = node.op_type == "Attention" and node.domain in _DOMAINS
            _expect(known, f"{_label(node)} to be ai.onnx.Attention", f"{node.domain or 'ai.onnx'}.{node.op_type}")
        self._inputs = {}  # type and, in place of open extents, their symbols or '?'
        for value in graph.input:
            _expect(value.type.HasField("tensor_type"), f"input {value.name!r} to be a tensor", value.type.WhichOneof("value") or "no type")
            kind = value.type.tensor_type
            _expect(kind.elem_type in helper.get_all_tensor_dtypes(), f"input {value.name!r} of a type that onnx has", kind.elem_type)
            dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
            _expect(all(isinstance(dim, str) or dim >= 0 for dim in dims), f"input {value.name!r} with extents of 0 or more", dims)
            self._inputs[value.name] = helper.tensor_dtype_to_np_dtype(kind.elem_type), dims
        for tensor in graph.initializer:
            _expect(not external_data_helper.uses_external_data(tensor), f"initializer {tensor.name!r} with its data", "external data that was not loaded")
        self._outputs = [value.name for value in graph.output]
        self._nodes = []
        known = {*(tensor.name for tensor in graph.initializer), *self._inputs}
        for node in graph.node:
            for name in filter(None, node.input):
                _expect(name in known, f"input {name!r} of {_label(node)} to come from inputs, dense initializers or nodes ahead", "none of that name")
            known |= {*node.output}
        for name in self._outputs:
            _expect(name in known, f"output {name!r} to come from a node", "none of that name")
        try:
            onnx.checker.check_model(model)
            self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        except (onnx.checker.ValidationError, ValueError) as error:
            raise Error(f"expected a model that onnx.checker takes, got: {' '.join(str(error).split())}") from None
        for node in graph.node:
            with _within(_label(node)):
                self._nodes.append((_label(node), _Attention(node, version)))
        self._compile()

    def _compile(self):
        """Ahead, and so that refusals come early, where the model says all shapes."""
        values = dict(self._constants)
        for name, (dtype, dims) in self._inputs.items():
            if all(isinstance(dim, int) for dim in dims):
                values.setdefault(name, np.broadcast_to(np.zeros((), dtype), dims))
        for label, node in self._nodes:
            if values.keys() >= {*node.inputs.values()}:
                with _within(label):
                    node.bind(values, self._options)

    def run(self, inputs):
        """The model's outputs, a named tuple of arrays.

        inputs: arrays in the order of the model's inputs, those that have an initializer left out, or a dict by name. past_key and past_value of a node may be one
        `KVCache`, which is appended to and returned as both presents.
        Raises Error if something does not fit; caches of nodes ahead may have been appended to by then.
        """
        wanted = [name for name in self._inputs if name not in self._constants]
        if not isinstance(inputs, dict):
            _expect(isinstance(inputs, (list, tuple)), "inputs in a list, a tuple or a dict", type(inputs).__name__)
            _expect(len(inputs) == len(wanted), f"{len(wanted)} inputs ({', '.join(wanted)})", len(inputs))
            inputs = dict(zip(wanted, inputs))
        for name in wanted:
            _expect(name in inputs, f"an input {name!r}", "none")
        symbols = {}
        for name, value in inputs.items():
            _expect(name in self._inputs, f"inputs among {', '.join(self._inputs)}", repr(name))
            if isinstance(value, KVCache):
                takers = self._takers({other for other, cache in inputs.items() if cache is value})
                _expect(takers == 1, f"a KVCache as {name!r} that one node reads", f"one that {takers} do")
            else:
                inputs = {**inputs, name: self._checked(name, value, symbols)}
        values = self._constants | inputs
        self.reads = []
        for label, node in self._nodes:
            with _within(label):
                outputs, reads = node(values, self._options)
            values |= outputs
            self.reads.append(reads)
        return base.namedtupledict("Outputs", self._outputs)(*(values[name] for name in self._outputs))

    def _takers(self, names):
        """How many nodes read a cache that has these names, or its presents: each would append to it."""
        takers = 0
        for _, node in self._nodes:
            if not names.isdisjoint(node.inputs.values()):
                takers += 1
                names = names | {value for output, value in node.outputs.items() if output in _PRESENT}
        return takers

    def _checked(self, name, value, symbols):
        """An array of the type that the model says; `symbols` holds the extents that it gives names to."""
        array, (dtype, dims) = np.asarray(value), self._inputs[name]
        _expect(array.dtype == dtype, f"input {name!r} of {dtype.name}", array.dtype.name)
        fits = len(dims) == array.ndim and all(want == "?" or got == (want if isinstance(want, int) else symbols.setdefault(want, got))
                                               for want, got in zip(dims, array.shape))
        said = ", ".join(f"{dim} = {symbols[dim]}" if dim in symbols else str(dim) for dim in dims)
        _expect(fits, f"input {name!r} of shape [{said}]", list(array.shape))
        return array


class Backend(base.Backend):
    """Options wherever a model is prepared: `policy`, `tolerance` and `format`, as in `alignedkv.compile`.

    A format that is left out is a KVCache's own. Without one it is 'dense' under 'exact', which is exact so, and 'auto' under other policies: K and V that come
    as arrays are packed in each run then, which shows what a policy does to a model's results, and only over a KVCache what it saves.
    """

    @classmethod
    def supports_device(cls, device):
        return device in ("CPU", "CPU:0")

    @classmethod
    def is_compatible(cls, model, device="CPU", **options):
        try:
            cls.prepare(model, device, **options)
        except Error:
            return False
        return True

    @classmethod
    def prepare(cls, model, device="CPU", policy="exact", tolerance=None, format=None):
        """A `Model` that runs an onnx.ModelProto, or the file at a path with its external data."""
        _expect(cls.supports_device(device), "device CPU", device)
        if isinstance(model, (str, os.PathLike)):
            path = os.fspath(model)
            try:
                model = onnx.load(path)
            except OSError:
                raise
            except Exception as error:  # protobuf's and onnx's own
                raise Error(f"expected an ONNX model in {path!r}, got: {error}") from None
        _expect(isinstance(model, onnx.ModelProto), "model to be an onnx.ModelProto or a path", type(model).__name__)
        for name, value in (("policy", policy), ("tolerance", tolerance), ("format", format)):
            _expect(value is None or isinstance(value, (str, numbers.Real)), f"{name} to be a word or a number", type(value).__name__)
        return Model(model, (policy, tolerance, format))

    @classmethod
    def run_model(cls, model, inputs, device="CPU", **options):
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def run_node(cls, node, inputs, device="CPU", outputs_info=None, opset_version=None, **options):
        """inputs: arrays for those inputs of the node that have a name. opset_version: the newest that is known, if left out."""
        names = [name for name in node.input if name]
        _expect(len(inputs) == len(names), f"{len(names)} inputs ({', '.join(names)})", len(inputs))
        arrays = dict(zip(names, map(np.asarray, inputs)))
        kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
        values = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in arrays.items()]
        results = [helper.make_tensor_value_info(name, next(iter(kinds.values()), 0), []) for name in node.output if name]  # neither is read
        graph = helper.make_graph([node], "node", values, results)
        opset = helper.make_opsetid("", opset_version or onnx.defs.onnx_opset_version())
        return cls.run_model(helper.make_model(graph, opset_imports=[opset]), arrays, device, **options)


supports_device, is_compatible, prepare, run_model, run_node = (
    Backend.supports_device, Backend.is_compatible, Backend.prepare, Backend.run_model, Backend.run_node)
