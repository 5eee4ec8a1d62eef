"""The backend of the ONNX operator Attention: the node tests of the onnx package, and its reference evaluator, computing in float64, beside models of all options."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", minversion="1.23", reason="the onnx package, 1.23 or later, is not installed")

import alignedkv
from alignedkv.integrations import onnx as backend
from conftest import errors_of_usual
from onnx import TensorProto, helper
from onnx.backend.test.case import node as node_tests
from onnx.backend.test.case.node import attention  # which fills node_tests._NodeTestCases
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

INPUTS = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
OUTPUTS = ["Y", "present_key", "present_value", "qk_matmul_output"]
bfloat16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
PRECISIONS = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2e-6, "float64": 2e-6}  # float64 is computed in float32


def make_model(arrays, outputs=("Y",), opset=25, dims=None, **attributes):
    """A model of one node `attend`; `dims` says the shape of an input in another way."""
    operands = [name if name in arrays else "" for name in INPUTS]
    while not operands[-1]:
        operands.pop()
    node = helper.make_node("Attention", operands, [name if name in outputs else "" for name in OUTPUTS], name="attend", **attributes)
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), (dims or {}).get(name, array.shape)) for name, array in arrays.items()]
    results = [helper.make_tensor_value_info(name, inputs[0].type.tensor_type.elem_type, []) for name in outputs]
    return helper.make_model(helper.make_graph([node], "graph", inputs, results), opset_imports=[helper.make_opsetid("", opset)])


def expected(model, arrays):
    """What the reference evaluator makes of the same numbers in float64. Under is_causal it counts queries by rows of the mask: these are written out for it."""
    if "attn_mask" in arrays:
        mask = arrays["attn_mask"]
        arrays = arrays | {"attn_mask": np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (arrays["Q"].shape[-2], 1)))}
    with np.errstate(invalid="ignore"):
        return ReferenceEvaluator(model).run(None, {name: array if array.dtype.kind in "bi" else array.astype(float) for name, array in arrays.items()})


def inputs(rng, heads, kv_heads, queries, tokens, dim, batch=2, dtype=np.float32):
    shapes = {"Q": (batch, heads, queries, dim), "K": (batch, kv_heads, tokens, dim), "V": (batch, kv_heads, tokens, dim)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


#===-- node tests ----------------------------------------------------------===#

CASES = {case.name: case for case in node_tests._NodeTestCases if case.name.startswith("test_attention_") and "_expanded" not in case.name}


def test_there_are_node_tests():
    assert len(CASES) >= 93


@pytest.mark.parametrize("name", CASES)
def test_node(name):
    """As onnx's own runner of them has it, with its tolerances. Those that are called *_expanded are the same in other operators."""
    case = CASES[name]
    model = backend.prepare(case.model)
    for given, wanted in case.data_sets:
        Runner.assert_similar_outputs(wanted, model.run(given), case.rtol, case.atol)


#===-- beside the reference evaluator --------------------------------------===#

def random_case(seed):
    """Inputs and options that go together, each seed others."""
    rng = np.random.default_rng(seed)
    pick = lambda *choices: choices[rng.integers(len(choices))]
    opset, dtype = pick(23, 24, 25), pick(np.float32, np.float32, np.float16, bfloat16, np.float64)
    batch, kv_heads, group, queries = pick(1, 3), pick(1, 2), pick(1, 3), pick(1, 2, 5, 37)
    heads, dim, value_dim, fresh = kv_heads * group, pick(5, 16, 80), pick(8, 16), pick(queries, queries, 1, 7, 67)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    if rng.random() < 0.3:
        arrays = {"Q": draw(batch, queries, heads * dim), "K": draw(batch, fresh, kv_heads * dim), "V": draw(batch, fresh, kv_heads * value_dim)}
        options = {"q_num_heads": heads, "kv_num_heads": kv_heads}
    else:
        arrays = {"Q": draw(batch, heads, queries, dim), "K": draw(batch, kv_heads, fresh, dim), "V": draw(batch, kv_heads, fresh, value_dim)}
        options = {}
    past, least = 0, 1
    if rng.random() < 0.5:
        past = pick(1, 9, 64)
        arrays |= {"past_key": draw(batch, kv_heads, past, dim), "past_value": draw(batch, kv_heads, past, value_dim)}
    elif opset > 23 and rng.random() < 0.5:
        arrays["nonpad_kv_seqlen"] = rng.integers(0, fresh + 1, batch)
        least = max(1, arrays["nonpad_kv_seqlen"].max())
    if rng.random() < 0.5:
        last = past + fresh if opset == 23 or rng.random() < 0.5 else rng.integers(least, past + fresh + 1)
        shape = [size if rng.random() < 0.7 else 1 for size in (batch, heads, queries)][rng.integers(4):] + [last]
        seen = rng.random(shape) < 0.7
        arrays["attn_mask"] = seen if rng.random() < 0.5 else np.where(seen, rng.standard_normal(shape), -np.inf).astype(dtype)
    outputs = ["Y"] + [name for name in OUTPUTS[1:] if rng.random() < 0.4]
    options["is_causal"] = pick(0, 1)
    if opset == 25:
        options |= {"left_window_size": pick(-1, 0, 5), "right_window_size": pick(-1, 0, 3)}
    options |= pick({}, {"softcap": 2.3456789}) | pick({}, {"scale": 0.12345678}) | pick({}, {"softmax_precision": 11})
    # Of mode 0 with a softcap the operator's text says one thing, and the evaluator another.
    options["qk_matmul_output_mode"] = pick(1, 2, 3) if "softcap" in options else pick(0, 1, 2, 3)
    dims = {name: [None] * array.ndim for name, array in arrays.items()} if rng.random() < 0.5 else None
    return make_model(arrays, outputs, opset, dims, **options), arrays


@pytest.mark.parametrize("seed", range(60))
def test_random(seed):
    model, arrays = random_case(seed)
    for name, got, wanted in zip([value.name for value in model.graph.output], backend.run_model(model, arrays), expected(model, arrays)):
        assert got.dtype == arrays["Q"].dtype
        step = PRECISIONS[got.dtype.name]
        np.testing.assert_allclose(got.astype(float), wanted, rtol=step, atol=2 * step, err_msg=name)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("left, right", [(-1, -1), (-1, 0), (-1, 2), (2, -1), (0, 0), (4, 3)])
@pytest.mark.parametrize("past", [0, 65])
def test_windows(left, right, past, causal, rng):
    """Of tokens behind a past, as many as queries, which have an attribute for what they see only where that lies behind them."""
    arrays = inputs(rng, 4, 2, 5, 5, 16) | {name: rng.standard_normal((2, 2, past, 16)).astype(np.float32) for name in ("past_key", "past_value")}
    model = make_model(arrays, left_window_size=left, right_window_size=right, is_causal=causal)
    np.testing.assert_allclose(backend.run_model(model, arrays).Y, expected(model, arrays)[0], atol=2e-6)


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("queries", [0, 3])
def test_nothing_to_see(tokens, queries, rng):
    """The evaluator has no maximum of no tokens; the operator's text has zeros for queries that see none."""
    arrays = inputs(rng, 6, 2, queries, tokens, 16) | {"nonpad_kv_seqlen": np.array([0, -3])}
    out = backend.run_model(make_model(arrays), arrays)
    np.testing.assert_array_equal(out.Y, np.zeros((2, 6, queries, 16)))


def test_hidden_by_the_lowest_float64(rng):
    """Which float32 has not: a row of it is seen alike, one of -inf not at all."""
    arrays = inputs(rng, 2, 2, 3, 5, 16, dtype=float)
    arrays["attn_mask"] = np.zeros((3, 5))
    arrays["attn_mask"][0], arrays["attn_mask"][1], arrays["attn_mask"][2, 1:] = np.finfo(float).min, -np.inf, np.finfo(float).min
    model = make_model(arrays)
    out = backend.run_model(model, arrays).Y
    np.testing.assert_allclose(out[:, :, 1:], expected(model, arrays)[0][:, :, 1:], atol=2e-6)
    np.testing.assert_allclose(out[:, :, 0], arrays["V"].mean(2), atol=2e-6)


def test_types_of_k_and_v(rng):
    """May differ; presents have each its own."""
    arrays = inputs(rng, 4, 2, 3, 7, 32) | {"past_key": rng.standard_normal((2, 2, 5, 32)).astype(np.float32), "past_value": np.ones((2, 2, 5, 32), np.float16)}
    arrays["V"] = arrays["V"].astype(np.float16)
    model = make_model(arrays, OUTPUTS[:3], is_causal=1)
    out = backend.run_model(model, arrays)
    assert [array.dtype.name for array in out] == ["float32", "float32", "float16"]
    for got, wanted in zip(out, expected(model, arrays)):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


#===-- policies and caches -------------------------------------------------===#

@pytest.mark.parametrize("policy, tolerance", [("exact", 2e-6), ("tight", 2**-12), ("balanced", 2**-9)])
def test_policy(policy, tolerance, rng):
    """Over arrays, which planes are made of in each run. What a policy aims at is no bound, twice of it is none either."""
    arrays = inputs(rng, 6, 2, 1, 1, 64) | {name: rng.standard_normal((2, 2, 300, 64)).astype(np.float32) for name in ("past_key", "past_value")}
    model = make_model(arrays, OUTPUTS[:3], is_causal=1)
    prepared = backend.prepare(model, policy=policy)
    out, wanted = prepared.run(arrays), expected(model, arrays)
    assert errors_of_usual(out.Y, wanted[0], wanted[2]).max() < 2 * tolerance
    np.testing.assert_array_equal(out.present_key, np.concatenate([arrays["past_key"], arrays["K"]], 2))
    reads, = prepared.reads
    assert reads["key_bits"] / reads["key_values"] == (32 if policy == "exact" else pytest.approx(10, abs=5))


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
@pytest.mark.parametrize("first", [0, 1, 65])
def test_steps(first, dtype, rng):
    """A prompt, which may be of more rows than planes are read for, and steps of one and of several tokens: over a cache in planes, and over presents as arrays."""
    cache = alignedkv.KVCache(2, 32, batch=2, dtype=np.dtype(dtype).name)
    past = np.zeros((2, 2, 0, 32), dtype)
    model = None
    for tokens in (first, 1, 3, 1):
        arrays = inputs(rng, 6, 2, tokens, tokens, 32, dtype=dtype) | {"past_key": past, "past_value": past if model is None else out.present_value}
        if model is None:
            symbols = {name: ["batch", None, "fresh" if name in "QKV" else "past", 32] for name in arrays}
            model = make_model(arrays, OUTPUTS, dims=symbols, is_causal=1, left_window_size=70, qk_matmul_output_mode=3)
            packed, dense = backend.prepare(model, policy="exact"), backend.prepare(model)
        wide = {name: array.astype(float) for name, array in arrays.items()}
        out = dense.run(arrays)
        kept = packed.run(arrays | {"past_key": cache, "past_value": cache})
        assert kept.present_key is cache and kept.present_value is cache and len(cache) == out.present_key.shape[2]
        past = out.present_key
        if len(cache) and tokens:
            wanted = expected(model, wide)
            step = {"float32": 2e-4, "float16": 2**-9, "bfloat16": 2**-6}[np.dtype(dtype).name]
            for name, got in (("Y", kept.Y), ("qk_matmul_output", kept.qk_matmul_output)):
                np.testing.assert_allclose(got.astype(float), wanted[OUTPUTS.index(name)], atol=2 * step, rtol=step, err_msg=name)
    np.testing.assert_allclose(cache.to_numpy()[0] if dtype != bfloat16 else cache.to_numpy()[0].view(bfloat16).astype(float), past.astype(float), atol=2e-2)


#===-- models ---------------------------------------------------------------===#

def test_nodes_in_a_row(rng):
    """Outputs of one are inputs of the next; a mask is an initializer, which an input may replace or not."""
    q, k, v = inputs(rng, 4, 2, 3, 7, 16).values()
    mask = np.where(rng.random((3, 7)) < 0.6, 0, -np.inf).astype(np.float32)
    nodes = [helper.make_node("Attention", ["Q", "K", "V"], ["X", "PK"], name="same"),
             helper.make_node("Attention", ["X", "PK", "V", "mask"], ["Y"], name="same", scale=0.4)]
    value = lambda name, array: helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
    graph = helper.make_graph(nodes, "graph", [value("Q", q), value("K", k), value("mask", mask), value("V", v)], [value("Y", q), value("X", q)],
                              [onnx.numpy_helper.from_array(np.zeros_like(mask), "mask")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    prepared = backend.prepare(model)
    for given, named in (([q, k, v], {"Q": q, "K": k, "V": v}), ({"mask": mask, "Q": q, "K": k, "V": v},) * 2):
        out, wanted = prepared.run(given), ReferenceEvaluator(model).run(None, named)
        np.testing.assert_allclose(out["Y"], wanted[0], atol=2e-6)
        np.testing.assert_allclose(out.X, wanted[1], atol=2e-6)


def test_a_cache_for_two_nodes(rng):
    """Each of which would append to it: by one name, or as what is present to one and past to the other."""
    q, k, v = inputs(rng, 4, 2, 1, 1, 16).values()
    cache = alignedkv.KVCache(2, 16, batch=2, dtype="float32")
    for past in (["PK", "PV"], ["NK", "NV"]):
        nodes = [helper.make_node("Attention", ["Q", "K", "V", "", "PK", "PV"], ["X", "NK", "NV"]), helper.make_node("Attention", ["X", "K", "V", "", *past], ["Y"])]
        value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        graph = helper.make_graph(nodes, "graph", [value(name, [2, None, None, 16]) for name in ("Q", "K", "V", "PK", "PV")], [value("Y", [])])
        with pytest.raises(alignedkv.Error, match="expected a KVCache as 'PK' that one node reads, got one that 2 do"):
            backend.run_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), [q, k, v, cache, cache])
        assert len(cache) == 0


def test_run_node(rng):
    arrays = inputs(rng, 4, 2, 3, 7, 16)
    node = make_model(arrays).graph.node[0]
    wanted = expected(make_model(arrays), arrays)[0]
    for opset in (None, 23, 24, 25):
        np.testing.assert_allclose(backend.run_node(node, [*arrays.values()], opset_version=opset).Y, wanted, atol=2e-6)
    with pytest.raises(alignedkv.Error, match=r"expected 3 inputs \(Q, K, V\), got 2"):
        backend.run_node(node, [arrays["Q"], arrays["K"]])


def test_files(tmp_path, rng):
    """A path, with data beside the model or without it."""
    arrays = inputs(rng, 4, 2, 3, 7, 16)
    model = make_model(arrays)
    model.graph.initializer.append(onnx.numpy_helper.from_array(arrays["V"], "V"))
    wanted = expected(model, arrays)[0]
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="data", size_threshold=0)
    given = {name: arrays[name] for name in "QK"}
    np.testing.assert_allclose(backend.run_model(tmp_path / "model.onnx", given).Y, wanted, atol=2e-6)
    with pytest.raises(alignedkv.Error, match="expected initializer 'V' with its data, got external data that was not loaded"):
        backend.prepare(onnx.load(tmp_path / "model.onnx", load_external_data=False))
    (tmp_path / "data").unlink()
    with pytest.raises((alignedkv.Error, OSError), match="data"):
        backend.prepare(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff")
    with pytest.raises(alignedkv.Error, match="expected an ONNX model in '.*model.onnx', got"):
        backend.prepare(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="nowhere.onnx"):
        backend.prepare("nowhere.onnx")


def test_devices(rng):
    model = make_model(inputs(rng, 4, 2, 3, 7, 16))
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA") and not backend.supports_device("CUDA:1")
    with pytest.raises(alignedkv.Error, match="expected device CPU, got CUDA"):
        backend.prepare(model, "CUDA")
    assert backend.is_compatible(model) and not backend.is_compatible(model, "CUDA")
    model.graph.node[0].op_type = "Softmax"
    assert not backend.is_compatible(model)


#===-- what is refused -------------------------------------------------------===#

SHAPES = {"Q": (2, 4, 3, 16), "K": (2, 2, 7, 16), "V": (2, 2, 7, 8), "attn_mask": (3, 7), "past_key": (2, 2, 5, 16), "past_value": (2, 2, 5, 8), "nonpad_kv_seqlen": (2,)}


def case_of(names="Q K V", **shapes):
    return {name: np.zeros(shapes.get(name, SHAPES[name]), np.int64 if name == "nonpad_kv_seqlen" else np.float32) for name in names.split()}


@pytest.mark.parametrize("arrays, options, message", [
    (case_of(K=(2, 2, 7, 8)), {}, r"node 'attend': expected K to be \[batch = 2, kv_heads = 2, fresh = 7, head_dim = 16\], got \[2, 2, 7, 8\]"),
    (case_of(V=(2, 2, 6, 8)), {}, r"expected V to be \[batch = 2, kv_heads = 2, fresh = 7, value_dim\], got \[2, 2, 6, 8\]"),
    (case_of(Q=(4, 3)), {}, r"expected Q to be \[batch, q_heads, queries, head_dim\], got \[4, 3\]"),
    (case_of(Q=(2, 3, 3, 16)), {}, "expected heads of Q to be a multiple of the 2 of K, got 3"),
    (case_of(Q=(2, 0, 3, 16), K=(2, 0, 7, 16), V=(2, 0, 7, 8)), {}, "expected heads of Q to be a multiple of the 0 of K, got 0"),
    (case_of(Q=(2, 4, 3, 0), K=(2, 2, 7, 0)), {}, "expected head_dim of 1 or more, got 0"),
    (case_of(Q=(2, 3, 64)), {"kv_num_heads": 2}, "expected q_num_heads that divides the last dimension of Q, 64, got none"),
    (case_of(Q=(2, 3, 64)), {"q_num_heads": 5}, "expected q_num_heads that divides the last dimension of Q, 64, got 5"),
    (case_of(), {"q_num_heads": 5, "opset": 23}, "expected q_num_heads to be the heads there are, 4, got 5"),
    (case_of("Q K V attn_mask", attn_mask=(3, 8)), {}, r"expected attn_mask to broadcast to \[batch, q_heads, queries, tokens\] = \[2, 4, 3, 7\], got \[3, 8\]"),
    (case_of("Q K V attn_mask", attn_mask=(3, 1)), {"opset": 23}, r"expected attn_mask to broadcast .*, got \[3, 1\]"),
    (case_of("Q K V attn_mask", attn_mask=()), {}, r"expected attn_mask to broadcast .*, got \[\]"),
    (case_of("Q K V attn_mask", attn_mask=(1, 2, 4, 3, 7)), {}, r"expected attn_mask to broadcast .*, got \[1, 2, 4, 3, 7\]"),
    (case_of("Q K V attn_mask") | {"attn_mask": np.zeros((3, 7), np.int32)}, {}, "expected attn_mask of a type among .*, got int32"),
    (case_of() | {"Q": np.zeros((2, 4, 3, 16), np.int64)}, {}, "expected the query to be .* of f32, f16 or bf16, got tensor<2x4x3x16xi64>"),
    (case_of() | {"K": np.full((2, 2, 7, 16), 1e300)}, {}, "expected K of float64 within the range of float32, got larger numbers"),
    (case_of("Q K V past_key"), {}, "expected past_key and past_value together, got one of them"),
    (case_of("Q K V past_key past_value nonpad_kv_seqlen"), {}, "expected past_key or nonpad_kv_seqlen, got both"),
    (case_of("Q K V past_key past_value", past_key=(2, 4, 5, 16)), {}, r"expected past_key to be \[batch = 2, kv_heads = 2, past, head_dim = 16\], got \[2, 4, 5, 16\]"),
    (case_of("Q K V past_key past_value") | {"past_key": np.zeros((2, 2, 5, 16), np.float16)}, {}, "expected past_key of float32, as K is, got float16"),
    (case_of("Q K V nonpad_kv_seqlen", nonpad_kv_seqlen=(3,)), {}, r"expected nonpad_kv_seqlen to be \[batch = 2\], got \[3\]"),
    (case_of(), {"scale": -1.0}, "expected scale to be a number of 0 or more, got -1.0"),
    (case_of(), {"softcap": float("nan")}, "expected softcap to be a number of 0 or more, got nan"),
    (case_of(), {"is_causal": 2}, "expected is_causal to be a number from 0 to 1"),
    (case_of(), {"left_window_size": -2}, "expected left_window_size to be a number from -1"),
    (case_of(), {"left_window_size": 2, "opset": 24}, "Unrecognized attribute: left_window_size"),
    (case_of(), {"unidirectional": 1}, "Unrecognized attribute: unidirectional"),
    (case_of(), {"scale": "much"}, "scale'. Expected: 'FLOAT', actual: 'STRING'"),
    (case_of(), {"softmax_precision": 7}, r"expected softmax_precision of a float type \(1, 10, 11 or 16\), got 7"),
    (case_of(), {"softcap": 2.0, "outputs": ["Y", "qk_matmul_output"]}, r"expected no softcap with qk_matmul_output ahead of it \(mode 0\)"),
    (case_of(), {"outputs": ["present_key"]}, "expected an output Y, got none|output 0 is marked single"),
    (case_of("Q K"), {}, r"input size 2 not in range \[min=3, max=7\]"),
    (case_of("Q V"), {}, "input 1 is marked single but has an empty string"),
    (case_of(), {"opset": 22}, "expected an opset of ai.onnx from 23, .*, got 22"),
    (case_of(), {"opset": 999}, "expected an opset of ai.onnx from 23, .*, got 999"),
])
def test_refused(arrays, options, message):
    with pytest.raises(alignedkv.Error, match=message):
        backend.run_model(make_model(arrays, **options), arrays)


@pytest.mark.parametrize("options, message", [
    ({"policy": "much"}, "expected policy 'exact', .*, got 'much'"), ({"policy": "budget", "tolerance": -1}, "expected a tolerance above 0 and below 1, got -1"),
    ({"policy": ["exact"]}, "expected policy to be a word or a number, got list"), ({"format": "much"}, "expected a plane format .*, got 'much'")])
def test_options(options, message, rng):
    with pytest.raises(alignedkv.Error, match=message):
        backend.prepare(make_model(inputs(rng, 4, 2, 3, 7, 16)), **options)


@pytest.mark.parametrize("change, message", [
    (lambda model: model.graph.node[0].MergeFrom(onnx.NodeProto(op_type="Softmax")), "expected node 'attend' to be ai.onnx.Attention, got ai.onnx.Softmax"),
    (lambda model: model.graph.node[0].MergeFrom(onnx.NodeProto(domain="com.microsoft")), "expected node 'attend' to be ai.onnx.Attention, got com.microsoft.Attention"),
    (lambda model: model.graph.input.pop(1), "expected input 'K' of node 'attend' to come from .*, got none of that name"),
    (lambda model: model.graph.output.add(name="Z"), "expected output 'Z' to come from a node, got none of that name"),
    (lambda model: model.functions.add(name="Attention"), "expected a model without functions of its own, got 'Attention'"),
    (lambda model: model.graph.input[0].type.sequence_type.MergeFrom(onnx.TypeProto.Sequence()), "expected input 'Q' to be a tensor, got sequence_type"),
    (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 99), "expected input 'Q' of a type that onnx has, got 99"),
    (lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -2), r"expected input 'Q' with extents of 0 or more, got \[-2, 4, 3, 16\]"),
    (lambda model: model.graph.initializer.add(name="V", data_type=1, dims=[2]), "expected a model that onnx.checker takes"),
    (lambda model: model.ClearField("opset_import"), "expected an opset of ai.onnx from 23, .*, got none"),
])
def test_models(change, message, rng):
    model = make_model(inputs(rng, 4, 2, 3, 7, 16))
    change(model)
    with pytest.raises(alignedkv.Error, match=message):
        backend.prepare(model)


def test_runs(rng):
    arrays = inputs(rng, 4, 2, 3, 7, 16)
    model = backend.prepare(make_model(arrays, dims={"Q": [2, None, "queries", 16], "K": ["batch", 2, "tokens", 16], "V": ["batch", 2, "tokens", 16]}))
    q, k, v = arrays.values()
    for given, message in [
            ([q, k], r"expected 3 inputs \(Q, K, V\), got 2"), ({"Q": q, "V": v}, "expected an input 'K', got none"),
            (arrays | {"X": q}, "expected inputs among Q, K, V, got 'X'"), ([q, k, v.astype(np.float16)], "expected input 'V' of float32, got float16"),
            (q, "expected inputs in a list, a tuple or a dict, got ndarray"),
            ([q[0], k, v], r"expected input 'Q' of shape \[2, \?, queries, 16\], got \[4, 3, 16\]"),
            ([q, k, v[:, :, 1:]], r"expected input 'V' of shape \[batch = 2, 2, tokens = 7, 16\], got \[2, 2, 6, 16\]")]:
        with pytest.raises(alignedkv.Error, match=message):
            model.run(given)
    with pytest.raises(alignedkv.Error, match="expected model to be an onnx.ModelProto or a path, got int"):
        backend.prepare(7)


def test_caches_refused(rng):
    arrays = inputs(rng, 4, 2, 1, 1, 16) | {name: np.zeros((2, 2, 5, 16), np.float32) for name in ("past_key", "past_value")}
    model = backend.prepare(make_model(arrays, OUTPUTS[:3], is_causal=1), policy="balanced")
    cache = alignedkv.KVCache(2, 16, batch=2, dtype="float32")
    other = alignedkv.KVCache(2, 16, batch=2, dtype="float16")
    for given, message in [
            ({"past_key": cache}, "expected one KVCache as past_key and past_value, or arrays, got another past_value"),
            ({"past_value": cache}, "or arrays, got another past_value"), ({"Q": cache}, "or arrays, got another Q"),
            ({"past_key": cache, "past_value": cache.copy()}, "got another past_value"),
            ({"past_key": other, "past_value": other}, "expected past_key of float32, as K is, got float16")]:
        with pytest.raises(alignedkv.Error, match=message):
            model.run(arrays | given)
    with pytest.raises(alignedkv.Error, match=r"expected a KVCache of format fixed<8,8>, got fixed<4,4,8>"):
        backend.prepare(make_model(arrays), format="fixed<8,8>").run(arrays | {"past_key": cache, "past_value": cache})
    assert len(cache) == len(other) == 0, "a cache was changed by a run that was refused"
