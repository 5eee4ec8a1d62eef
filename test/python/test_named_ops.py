"""Attention that other projects' ops say by name (aligned-raise-named-ops), run and compared: with what their own projects computed, or with NumPy in float64."""
import json
import pathlib

import alignedkv
import numpy as np
import pytest
from conftest import exact_attention

GRAPHS = pathlib.Path(__file__).resolve().parents[1] / "data" / "graphs"
ELEMENTS = {"float32": "f32", "float16": "f16", "uint16": "bf16", "bool": "i1", "int64": "i64"}


def tensor(array):
    return f"tensor<{''.join(f'{size}x' for size in array.shape)}{ELEMENTS[array.dtype.name]}>"


def parameters(types):
    return ", ".join(f"%a{index}: {type}" for index, type in enumerate(types))


def widened(array):
    """bfloat16 comes as its bits."""
    return (array.astype(np.uint32) << 16).view(np.float32).astype(float) if array.dtype == np.uint16 else array.astype(float)


def run(text, arguments, policy="exact", **options):
    """What a module gives for arrays, caches filled with those that it takes as caches; results as float64."""
    module = alignedkv.compile(text, policy=policy, allow_unregistered_dialect=True, **options)
    assert module.attentions > 0, module.remarks
    given = []
    for index, array in enumerate(arguments):
        if "<" in module.arguments[index]: # "float16[1, 3, ?, 32] fixed<4,4,8> key"
            cache = module.new_cache(index)
            cache.append(array)
            array = cache
        given.append(array)
    results = module(*given)
    results = results if isinstance(results, tuple) else (results,)
    return [widened(result.to_numpy() if isinstance(result, alignedkv.Cache) else result) for result in results], module


def reference(q, k, v, seen=None, added=0, scale=None, softcap=0, masked_zero=True):
    """Attention in float64; `seen` and `added` broadcast to scores."""
    q, k, v = (np.asarray(x, float) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ k.swapaxes(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = scores + added
    if seen is not None:
        scores = np.where(seen, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - top)
        weights /= weights.sum(-1, keepdims=True)
    nothing = top == -np.inf
    return np.where(nothing, 0 if masked_zero else np.nan, np.where(nothing, 0, weights) @ v)


def inputs(seed, heads, kv_heads, queries, tokens, dim, value_dim=None, batch=2):
    rng = np.random.default_rng(seed)
    shapes = [(batch, heads, queries, dim), (batch, kv_heads, tokens, dim), (batch, kv_heads, tokens, value_dim or dim)]
    return rng, *(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


#===-- onnx --------------------------------------------------------------------===#
# The operator's own test cases.

CASES = json.loads((GRAPHS / "onnx" / "cases.json").read_text())
OPERANDS = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
RESULTS = ["Y", "present_key", "present_value", "qk_matmul_output"]


def onnx_text(case, arrays):
    """A function of one onnx.Attention. What is left out of operands and results has type none."""
    inputs = {name: f"%arg{index}" for index, name in enumerate(case["inputs"])}
    types = {name: tensor(arrays[f"arg{index}"]) for index, name in enumerate(case["inputs"])}
    outputs = {name: tensor(arrays[f"out{index}"]) for index, name in enumerate(case["outputs"])}
    operands = OPERANDS[: 1 + max(OPERANDS.index(name) for name in inputs)]
    results = RESULTS[: 1 + max(RESULTS.index(name) for name in outputs)]
    attributes = ", ".join(f"{name} = {value} : {'si64' if isinstance(value, int) else 'f32'}" for name, value in case["attributes"].items())
    returned = ", ".join(f"%r#{results.index(name)}" for name in outputs)
    return (f"func.func @f({', '.join(f'{inputs[name]}: {types[name]}' for name in inputs)}) -> ({', '.join(outputs.values())}) {{\n"
            f"  %none = \"onnx.NoValue\"() {{value}} : () -> none\n"
            f"  %r:{len(results)} = \"onnx.Attention\"({', '.join(inputs.get(name, '%none') for name in operands)}) {{{attributes}}} : "
            f"({', '.join(types.get(name, 'none') for name in operands)}) -> ({', '.join(outputs.get(name, 'none') for name in results)})\n"
            f"  return {returned} : {', '.join(outputs.values())}\n}}\n")


@pytest.mark.parametrize("name", CASES)
def test_onnx(name):
    case = CASES[name]
    arrays = np.load(GRAPHS / "onnx" / f"{name}.npz")
    results, _ = run(onnx_text(case, arrays), [arrays[f"arg{index}"] for index in range(len(case["inputs"]))])
    for index, output in enumerate(case["outputs"]):
        expected = arrays[f"out{index}"]
        # Their results were rounded where ours are not, by their own type.
        step = {"float32": 2e-6, "float16": 2**-10, "uint16": 2**-7}[expected.dtype.name]
        np.testing.assert_allclose(results[index], widened(expected), rtol=max(case["rtol"], step), atol=max(case["atol"], step), err_msg=f"{name}: {output}")


@pytest.mark.parametrize("fresh, past", [(1, 0), (1, 64), (3, 62), (5, 5)])
def test_onnx_step(fresh, past):
    """As many queries as new tokens: the mask attribute over caches, in planes."""
    rng, q, new_k, new_v = inputs(past, 6, 2, fresh, fresh, 32)
    k, v = rng.standard_normal((2, 2, 2, past, 32)).astype(np.float32)
    arrays = {f"arg{index}": array for index, array in enumerate([q, new_k, new_v, k, v])}
    arrays |= {"out0": q, "out1": np.empty((2, 2, fresh + past, 32), np.float32)}
    arrays["out2"] = arrays["out1"]
    case = {"inputs": ["Q", "K", "V", "past_key", "past_value"], "outputs": ["Y", "present_key", "present_value"],
            "attributes": {"is_causal": 1, "left_window_size": 2}}
    results, module = run(onnx_text(case, arrays), [arrays[f"arg{index}"] for index in range(5)])
    assert "fixed<4,4,8>" in module.arguments[3]
    k, v = np.concatenate([k, new_k], 2), np.concatenate([v, new_v], 2)
    behind = past + np.arange(fresh)[:, None] - np.arange(past + fresh)
    np.testing.assert_allclose(results[0], reference(q, k, v, (behind >= 0) & (behind <= 2)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(results[1], k, atol=1e-3)


#===-- torch, tm_tensor ----------------------------------------------------------===#
# Graphs that torch-mlir wrote, in generic form, on inputs of the same graphs in linalg.

@pytest.mark.parametrize("graph", ["sdpa_gqa_f16.nodecomp.torch", "sdpa_gqa_f16.nodecomp.linalg"])
@pytest.mark.parametrize("policy, tolerance", [("exact", 2e-3), ("tight", 4e-3)])
def test_graph(graph, policy, tolerance):
    arrays = np.load(GRAPHS / "torch" / f"{graph.split('.')[0]}.npz")
    results, module = run((GRAPHS / "generic" / f"{graph}.generic.mlir").read_text(), [arrays[f"arg{index}"] for index in range(3)], policy)
    np.testing.assert_allclose(results[0], arrays["out0"].astype(float), rtol=tolerance, atol=tolerance)
    assert all("fixed<4,4,8>" in module.arguments[index] for index in (1, 2)), "kv heads that are repeated were not found"


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 97])
def test_appending_graph(tokens):
    """A step over caches of any length: they hold the new token behind it."""
    rng = np.random.default_rng(tokens)
    shapes = [(2, 8, 1, 32), *2 * [(2, 2, 1, 32)], *2 * [(2, 2, tokens, 32)]]
    q, new_k, new_v, k, v = (rng.standard_normal(shape).astype(np.float16) for shape in shapes)
    text = (GRAPHS / "generic" / "append_cat_dynS_f16.nodecomp.torch.generic.mlir").read_text()
    (out, after_k, after_v), _ = run(text, [q, new_k, new_v, k, v])
    expected_k, expected_v = np.concatenate([k, new_k], 2), np.concatenate([v, new_v], 2)
    np.testing.assert_allclose(out, exact_attention(q, expected_k, expected_v), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(after_k, expected_k, atol=1e-3)
    np.testing.assert_allclose(after_v, expected_v, atol=1e-3)


@pytest.mark.parametrize("graph", ["sdpa_gqa_f16.stablehlo.generic", "jax_dpa_gqa_f32.generic"])
def test_what_is_left_is_refused(graph):
    text = (GRAPHS / "generic" / f"{graph}.mlir").read_text()
    with pytest.raises(alignedkv.Error, match="after phase 'raise': expected ops of linalg and what lies below it, got 'stablehlo"):
        alignedkv.compile(text, allow_unregistered_dialect=True)
    with pytest.raises(alignedkv.Error, match="not found in the custom|unregistered"):
        alignedkv.compile(text)


def test_transform():
    """Only where they are asked for may ops be unknown, also after they were."""
    text = (GRAPHS / "generic" / "sdpa_gqa_f16.nodecomp.torch.generic.mlir").read_text()
    assert "aligned.attention" in alignedkv.transform(text, "aligned-pipeline{to=raise}", allow_unregistered_dialect=True)
    with pytest.raises(alignedkv.Error, match="unregistered dialect"):
        alignedkv.transform(text, "aligned-pipeline{to=raise}")


def test_error_says_why():
    _, q, k, v = inputs(1, 2, 2, 3, 5, 16)
    text, _ = sdpa(q, k, v)
    with pytest.raises(alignedkv.Error, match="(?s)got 'torch.*attention not raised: expected a dropout of 0, got 0.5"):
        alignedkv.compile(text.replace("0.0 : f64", "0.5 : f64", 1), allow_unregistered_dialect=True)


def vtensor(array):
    return f"!torch.vtensor<[{','.join(map(str, array.shape))}],{ELEMENTS[array.dtype.name]}>"


def sdpa(q, k, v, mask=None, causal=False, scale=None):
    """A function of one torch.aten.scaled_dot_product_attention."""
    arrays = [array for array in (q, k, v, mask) if array is not None]
    types = [vtensor(array) for array in arrays]
    out = vtensor(np.empty(q.shape[:-1] + v.shape[-1:], q.dtype))
    grouped = q.ndim == 4
    constants = [f'  %{name} = "torch.constant.{kind}"() <{{value = {value}}}> : () -> !torch.{kind}\n' for name, kind, value in
                 [("p", "float", "0.0 : f64"), ("causal", "bool", str(causal).lower()), ("scale", "float", f"{scale or 0:e} : f64"),
                  ("gqa", "bool", str(grouped).lower())]]
    none = ("%none", "!torch.none")
    operands = [*zip(["%a0", "%a1", "%a2"], types), none if mask is None else ("%a3", types[3]), ("%p", "!torch.float"), ("%causal", "!torch.bool"),
                none if scale is None else ("%scale", "!torch.float"), ("%gqa", "!torch.bool")]
    names, kinds = (", ".join(part) for part in zip(*operands))
    return (f"func.func @f({parameters(types)}) -> {out} {{\n{''.join(constants)}"
            '  %none = "torch.constant.none"() : () -> !torch.none\n'
            f'  %r = "torch.aten.scaled_dot_product_attention"({names}) : ({kinds}) -> {out}\n  return %r : {out}\n}}\n'), arrays


@pytest.mark.parametrize("queries, tokens", [(1, 65), (3, 65), (7, 7), (5, 3)])
def test_torch_causal(queries, tokens):
    """Query i sees tokens up to i, wherever the cache ends."""
    _, q, k, v = inputs(queries, 6, 2, queries, tokens, 32, 16)
    text, arrays = sdpa(q, k, v, causal=True, scale=0.3)
    expected = reference(q, k, v, np.tri(queries, tokens, dtype=bool), scale=0.3)
    np.testing.assert_allclose(run(text, arrays, format="dense")[0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 65), (3, 65), (2, 1, 1, 65), (1, 6, 3, 65), (6, 1, 65)])
@pytest.mark.parametrize("element", ["bool", "float32"])
def test_torch_mask(shape, element):
    """Masks broadcast from the right, and a row that sees nothing is zero."""
    rng, q, k, v = inputs(len(shape), 6, 2, 3, 65, 32)
    mask = rng.random(shape) > 0.4
    if element == "float32":
        mask = np.where(mask, rng.standard_normal(shape), -np.inf).astype(np.float32)
    mask[..., -1, :] = False if element == "bool" else -np.inf
    text, arrays = sdpa(q, k, v, mask)
    expected = reference(q, k, v, mask if element == "bool" else None, 0 if element == "bool" else mask.astype(float))
    assert (expected == 0).any()
    np.testing.assert_allclose(run(text, arrays, format="dense")[0][0], expected, rtol=1e-5, atol=1e-5)


def test_torch_rank_3():
    """[batch, tokens, channels], and a mask of rank 3 with it."""
    rng, q, k, v = inputs(3, 1, 1, 3, 17, 16, batch=5)
    mask = rng.random((5, 3, 17)) > 0.3
    text, arrays = sdpa(q[:, 0], k[:, 0], v[:, 0], mask)
    np.testing.assert_allclose(run(text, arrays)[0][0], reference(q, k, v, mask[:, None])[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_tm_tensor(masked):
    """Batch entries that say nothing of heads, V of its own width, a mask of all scores."""
    rng, q, k, v = inputs(5, 1, 1, 3, 65, 32, 16, batch=7)
    mask = rng.random((7, 3, 65)) > 0.3
    mask[0, 1] = False
    arrays = [q[:, 0], k[:, 0], v[:, 0]] + [mask] * masked
    types = [tensor(array) for array in arrays]
    out = "tensor<7x3x16xf32>"
    operands = ", ".join(f"%a{index}" for index in range(len(types)))
    text = (f"func.func @f({parameters(types)}) -> {out} {{\n  %e = tensor.empty() : {out}\n"
            f'  %r = "tm_tensor.attention"({operands}, %e) <{{operandSegmentSizes = array<i32: {len(types)}, 1>, scale = 0.25 : f64}}> : '
            f"({', '.join(types)}, {out}) -> {out}\n  return %r : {out}\n}}\n")
    expected = reference(q, k, v, mask[:, None] if masked else None, scale=0.25)[:, 0]
    np.testing.assert_allclose(run(text, arrays, format="dense")[0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("updates, depth, rest", [(1, 1, (2, 16)), (3, 1, (2, 16)), (4, 2, (16,)), (5, 3, ()), (2, 1, (4, 2, 16))])
def test_scatter(updates, depth, rest):
    """Slices that overwrite, beside attention; the last of two at one place stays. Where slices have all dimensions, indices are where they begin."""
    rng, q, k, v = inputs(updates, 2, 2, 1, 9, 16, batch=1)
    cache, new = (rng.standard_normal(shape).astype(np.float32) for shape in [(9, 2, 16), (updates, *rest)])
    most = [9 - rest[0] + 1] if len(rest) == 3 else [9, 2, 16][:depth]
    at = np.stack([rng.integers(0, size, updates) for size in most], -1).astype(np.int64)
    if updates > 2:
        at[-1] = at[0]
    arrays = [q, k, v, new, at, cache]
    types = [tensor(array) for array in arrays]
    dims = ", ".join(map(str, range(depth)))
    text = (f"func.func @f({parameters(types)}) -> ({types[0]}, {types[5]}) {{\n"
            f'  %r = "tm_tensor.attention"(%a0, %a1, %a2, %a0) <{{operandSegmentSizes = array<i32: 3, 1>}}> : ({", ".join(types[:3])}, {types[0]}) -> {types[0]}\n'
            f'  %s = "tm_tensor.scatter"(%a3, %a4, %a5) <{{dimension_map = array<i64: {dims}>, operandSegmentSizes = array<i32: 2, 1>, unique_indices = false}}> ({{\n'
            f'  ^bb0(%x: f32, %y: f32):\n    "tm_tensor.yield"(%x) : (f32) -> ()\n  }}) : ({", ".join(types[3:])}) -> {types[5]}\n'
            f"  return %r, %s : {types[0]}, {types[5]}\n}}\n")
    expected = cache.copy()
    for slice, place in zip(new, at):
        if len(rest) == 3:
            expected[place[0]: place[0] + rest[0]] = slice
        else:
            expected[tuple(place)] = slice
    results, _ = run(text, arrays)
    np.testing.assert_array_equal(results[1], expected)


#===-- iree_linalg_ext, stablehlo -------------------------------------------------===#

@pytest.mark.parametrize("loops, dims, mask", [
    ("bmnct", "bmc btc btn bmn", None), ("bhmnct", "bhmc bhtc bhtn bhmn", "bhmt"), ("bhmnct", "bmhc bthc bhnt bmhn", "bt"), ("bhgmnct", "bhgmc bthc bthn bmhgn", "mt"),
    ("mnct", "mc tc tn mn", "t"), ("gmnct", "gmc tc tn gmn", "gmt"), ("abhmnct", "abhmc abhtc abhtn hbamn", "hbat"), ("bgnct", "bgc btc btn bgn", None)])
def test_iree(loops, dims, mask):
    """Dimensions in any order: a and b are batch, h kv heads, g query heads of one kv head, m queries, t tokens, c and n channels."""
    sizes = dict(a=2, b=3, h=2, g=3, m=5, t=17, c=32, n=16)
    rng = np.random.default_rng(len(loops))
    shape = lambda names: [sizes[name] for name in names]
    q, k, v = (rng.standard_normal(shape(names)).astype(np.float32) for names in dims.split()[:3])
    out = dims.split()[3]
    arrays = [q, k, v] + ([rng.standard_normal(shape(mask)).astype(np.float32)] if mask else [])
    if mask:
        arrays[3][rng.random(arrays[3].shape) > 0.8] = -np.inf
    types = [tensor(array) for array in arrays]
    result = tensor(np.empty(shape(out), np.float32))
    affine = ", ".join(f"affine_map<({', '.join(loops)}) -> ({', '.join(names)})>" for names in [*dims.split()[:3], "", *([mask] if mask else []), out])
    operands = ["%a0", "%a1", "%a2", "%scale", *(["%a3"] if mask else []), "%e"]
    text = (f"func.func @f({parameters(types)}) -> {result} {{\n  %scale = arith.constant 0.125 : f32\n  %e = tensor.empty() : {result}\n"
            f'  %r = "iree_linalg_ext.attention"({", ".join(operands)}) <{{indexing_maps = [{affine}]}}> ({{\n'
            f'  ^bb0(%s: f32):\n    "iree_linalg_ext.yield"(%s) : (f32) -> ()\n  }}) : '
            f"({', '.join([*types[:3], 'f32', *types[3:], result])}) -> {result}\n  return %r : {result}\n}}\n")
    q, k, v, *added = (array.astype(float) for array in arrays)
    rows = [name for name in loops if name not in "cnt"]
    scores = np.einsum(f"{dims.split()[0]},{dims.split()[1]}->{''.join(rows)}t", q, k) / 8
    if mask: # a factor of 1 for all that it does not name
        everywhere = np.zeros(shape([*rows, "t"]))
        order = [name for name in [*rows, "t"] if name in mask]
        added = added[0].transpose([mask.index(name) for name in order])
        scores = scores + everywhere + added.reshape([sizes[name] if name in mask else 1 for name in [*rows, "t"]])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum(f"{''.join(rows)}t,{dims.split()[2]}->{out}", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(run(text, arrays, format="dense")[0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [0, 2.0])
def test_composite(softcap):
    rng, q, k, v = inputs(7, 6, 2, 3, 65, 32)
    mask = np.where(rng.random((2, 1, 3, 65)) > 0.7, -np.inf, rng.standard_normal((2, 1, 3, 65))).astype(np.float32)
    mask[1, :, 2] = -np.inf
    arrays = [*(array.swapaxes(1, 2).copy() for array in (q, k, v)), mask]
    types = [tensor(array) for array in arrays]
    cap = f", logit_cap = {softcap} : f32" if softcap else ""
    text = (f"func.func @f({parameters(types)}) -> {types[0]} {{\n"
            f'  %r = "stablehlo.composite"(%a0, %a1, %a2, %a3) <{{composite_attributes = {{scale = 0.5 : f32{cap}}}, decomposition = @impl, '
            f'name = "odml.scaled_dot_product_attention"}}> : '
            f"({', '.join(types)}) -> {types[0]}\n  return %r : {types[0]}\n}}\n")
    expected = reference(q, k, v, added=mask.astype(float), scale=0.5, softcap=softcap, masked_zero=not softcap)
    np.testing.assert_allclose(run(text, arrays, format="dense")[0][0], expected.swapaxes(1, 2), rtol=1e-5, atol=1e-5)
