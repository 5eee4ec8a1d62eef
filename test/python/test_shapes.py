"""Attention of every shape against NumPy in float64: what kernels take, what is padded for them, what is written out without them."""
import itertools
import re

import alignedkv
import ml_dtypes
import numpy as np
import pytest

DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i1": bool}


def text(q, k, v, out, operands="", more=(), certified=False, element="f16"):
    """Attention over tensors of these shapes, written as in 1x4x2x72; `more` are the operands behind q, k and v, as (name, type)."""
    types = [f"tensor<{shape}x{element}>" for shape in (q, k, v)]
    arguments = [f"%{name}: {type}" for name, type in [*zip("qkv", types), *more]]
    rows = out.rsplit("x", 1)[0]
    results = [f"tensor<{out}xf32>"] + 2 * [f"tensor<{rows}xf32>"] * certified
    names, certificate = ("%out, %bound, %estimate", f" certified {results[1]}, {results[2]}") if certified else ("%out", "")
    return (f"func.func @f({', '.join(arguments)}) -> ({', '.join(results)}) {{\n  %scale = arith.constant 0.3 : f32\n"
            f"  {names} = aligned.attention %q, %k, %v scale %scale {operands} : {', '.join(types)} -> {results[0]}{certificate}\n"
            f"  return {names} : {', '.join(results)}\n}}\n")


def attention(q, k, v, softcap=0, seen=None, mask=None, sinks=None, masked_zero=False):
    """In float64: `seen` is a mask of what is seen, `mask` is added. Where nothing is seen values take no part, whatever they are."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    out = np.zeros(q.shape[:3] + v.shape[3:])
    everything = np.ones(q.shape[:3] + k.shape[2:3], bool)
    seen = everything & (True if seen is None else seen)
    mask = everything * (0.0 if mask is None else np.asarray(mask, np.float64))
    seen = seen & (mask != -np.inf)
    for at in itertools.product(*map(range, q.shape[:3])):
        here = at[:2]
        tokens = np.flatnonzero(seen[at])
        if not k.shape[2]:
            continue
        scores = k[here][tokens] @ q[at] * np.float64(np.float32(0.3))
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + mask[at][tokens]
        sink = -np.inf if sinks is None else np.float64(sinks[at[1]])
        top = max(scores.max(initial=-np.inf), sink)
        if top == -np.inf:
            out[at] = 0 if masked_zero else np.nan
            continue
        weights = np.exp(scores - top)
        out[at] = weights @ v[here][tokens] / (weights.sum() + np.exp(sink - top))
    return out


def seen_by(tokens, queries, causal=False, window=0, sinks=0):
    """What `mask` leaves of [queries, tokens]: queries are the newest tokens."""
    token, position = np.arange(tokens)[None], tokens - queries + np.arange(queries)[:, None]
    seen = (token <= position) if causal else np.ones((queries, tokens), bool)
    return seen & ((position - token < window) | (token < sinks)) if window else seen


def draw(rng, *shape, element="f16"):
    return rng.standard_normal(shape).astype(DTYPES[element])



TOLERANCE = 2e-5

# query heads, kv heads, queries, head_dims of K and V
SHAPES = [(3, 1, 1, 1, 1), (2, 2, 1, 8, 10), (6, 2, 3, 10, 8), (4, 2, 1, 72, 80), (4, 4, 1, 80, 72), (2, 1, 1, 192, 128), (2, 1, 5, 16, 20), (4, 2, 2, 256, 255), (3, 1, 1, 257, 16),
          (2, 1, 2, 16, 272), (2, 2, 1, 512, 512), (33, 1, 1, 64, 64), (66, 2, 2, 24, 40), (71, 1, 1, 64, 64), (34, 1, 3, 300, 5), (22, 2, 4, 16, 16)]


@pytest.mark.parametrize("heads, kv_heads, queries, key_dim, value_dim", SHAPES)
def test_shapes(rng, heads, kv_heads, queries, key_dim, value_dim):
    model = alignedkv.compile(text(f"2x{heads}x{queries}x{key_dim}", f"2x{kv_heads}x?x{key_dim}", f"2x{kv_heads}x?x{value_dim}", f"2x{heads}x{queries}x{value_dim}"), format="dense")
    for tokens in (0, 1, 63, 65, 300):
        q, k, v = draw(rng, 2, heads, queries, key_dim), draw(rng, 2, kv_heads, tokens, key_dim), draw(rng, 2, kv_heads, tokens, value_dim)
        assert np.abs(model(q, k, v) - attention(q, k, v)).max(initial=0) <= TOLERANCE
        assert model.reads[0]["key_bits"] == 16 * model.reads[0]["key_values"] and bool(model.reads[0]["key_values"]) == bool(tokens)


@pytest.mark.parametrize("batch, queries, key_dim, value_dim", [(0, 1, 16, 72), (2, 0, 24, 16), (2, 1, 16, 0), (2, 1, 0, 16), (2, 2, 300, 0)])
def test_extents_of_none(rng, batch, queries, key_dim, value_dim):
    for certified in (False, True):
        model = alignedkv.compile(text(f"{batch}x4x{queries}x{key_dim}", f"{batch}x2x?x{key_dim}", f"{batch}x2x?x{value_dim}", f"{batch}x4x{queries}x{value_dim}", certified=certified), format="dense")
        q, k, v = draw(rng, batch, 4, queries, key_dim), draw(rng, batch, 2, 9, key_dim), draw(rng, batch, 2, 9, value_dim)
        results = model(q, k, v) if certified else (model(q, k, v),)
        assert [result.shape for result in results[1:]] == [q.shape[:3]] * 2 * certified
        np.testing.assert_allclose(results[0], attention(q, k, v), rtol=0, atol=TOLERANCE, strict=False)
        assert results[0].shape == (batch, 4, queries, value_dim)


# For each way of computing: what a kernel takes as it is, with zeros behind its rows, and what no kernel takes.
WAYS = pytest.mark.parametrize("heads, kv_heads, key_dim, value_dim", [(4, 2, 16, 32), (4, 2, 24, 10), (4, 2, 272, 10), (35, 1, 20, 16)])


@WAYS
@pytest.mark.parametrize("element, shape, mask, softcap, sinks, masked_zero", [
    (None, "", dict(causal=True), 0, False, False), (None, "", dict(causal=True, window=20, sinks=2), 5.0, True, True), (None, "", dict(window=3), 0, False, True),
    ("f32", "1x1x3", {}, 0, False, False), ("f16", "2x{heads}x3", dict(causal=True), 2.0, True, False), ("bf16", "2x1x1", {}, 0, False, True), ("i1", "1x{heads}x1", {}, 20.0, False, False),
    ("i1", "2x1x3", dict(window=40), 0, True, False)])
def test_masks(rng, heads, kv_heads, key_dim, value_dim, element, shape, mask, softcap, sinks, masked_zero):
    queries, shape = 3, shape.format(heads=heads)
    said = [name if value is True else f"{name} = {value}" for name, value in mask.items()]
    operands, more = (f"softcap {softcap}" if softcap else "") + (f" mask <{', '.join(said)}>" if said else ""), []
    if element:
        more.append(("m", f"tensor<{shape}x?x{element}>"))
        operands += f" attn_mask %m : {more[-1][1]}"
    if sinks:
        more.append(("s", f"tensor<{heads}xf32>"))
        operands += f" sink_logits %s : {more[-1][1]}"
    operands += " masked_zero" * masked_zero
    model = alignedkv.compile(text(f"2x{heads}x{queries}x{key_dim}", f"2x{kv_heads}x?x{key_dim}", f"2x{kv_heads}x?x{value_dim}", f"2x{heads}x{queries}x{value_dim}", operands, more),
                              format="dense")
    for tokens in (0, 2, 64, 97):
        q, k, v = draw(rng, 2, heads, queries, key_dim), draw(rng, 2, kv_heads, tokens, key_dim), draw(rng, 2, kv_heads, tokens, value_dim)
        arguments, seen, added, logits = [q, k, v], seen_by(tokens, queries, **mask), None, None
        if element:
            sizes = [int(size) for size in shape.split("x")] + [tokens]
            numbers = rng.random(sizes) > 0.3 if element == "i1" else np.where(rng.random(sizes) > 0.3, draw(rng, *sizes, element=element), -np.inf).astype(DTYPES[element])
            if tokens == 64:  # a row of which nothing is seen
                numbers[0, 0, 0] = False if element == "i1" else -np.inf
            arguments.append(numbers)
            seen, added = (seen & numbers, None) if element == "i1" else (seen, numbers)
        if sinks:
            logits = draw(rng, heads, element="f32") + 1
            arguments.append(logits)
        expected = attention(q, k, v, softcap, seen, added, logits, masked_zero)
        np.testing.assert_allclose(model(*arguments), expected, rtol=0, atol=TOLERANCE)


HIDING = pytest.mark.parametrize("operands, type, hide", [("mask <causal>", None, None), ("attn_mask %m : ", "1x1x2x?xi1", False), ("attn_mask %m : ", "1x1x2x?xf32", -np.inf)])


@WAYS
@HIDING
def test_what_is_hidden_takes_no_part(rng, heads, kv_heads, key_dim, value_dim, operands, type, hide):
    """Not even as 0 times what is not finite."""
    more = [("m", f"tensor<{type}>")] if type else []
    operands += f"tensor<{type}>" if type else ""
    model = alignedkv.compile(text(f"1x{heads}x2x{key_dim}", f"1x{kv_heads}x?x{key_dim}", f"1x{kv_heads}x?x{value_dim}", f"1x{heads}x2x{value_dim}", operands, more), format="dense")
    for tokens in (2, 70):
        q, k, v = draw(rng, 1, heads, 2, key_dim), draw(rng, 1, kv_heads, tokens, key_dim), draw(rng, 1, kv_heads, tokens, value_dim)
        seen = np.ones((2, tokens), bool)
        seen[0, -1] = False
        numbers = [np.where(seen, not hide if hide is False else 0.5, hide).astype(bool if hide is False else np.float32)[None, None]] if type else []
        expected = attention(q, k, v, seen=seen)[:, :, 0]
        for place, number in itertools.product((k, v), (np.inf, -np.inf, np.nan)):
            before = place[:, :, -1, 0].copy()
            place[:, :, -1, 0] = number
            out = model(q, k, v, *numbers)
            place[:, :, -1, 0] = before
            np.testing.assert_allclose(out[:, :, 0], expected, rtol=0, atol=TOLERANCE)
            if np.isnan(number):
                assert np.isnan(out[:, :, 1]).any(-1).all()


@HIDING
@pytest.mark.parametrize("format", ["fixed<4,4,8>", "float<8,4,4>"])
def test_what_is_hidden_in_planes_takes_no_part(rng, format, operands, type, hide):
    more = [("m", f"tensor<{type}>")] if type else []
    operands += f"tensor<{type}>" if type else ""
    model = alignedkv.compile(text("1x4x2x16", "1x2x?x16", "1x2x?x32", "1x4x2x32", operands, more), format=format, policy="exact")
    for tokens in (2, 70):
        seen = np.ones((2, tokens), bool)
        seen[0, -1] = False
        numbers = [np.where(seen, not hide if hide is False else 0.5, hide).astype(bool if hide is False else np.float32)[None, None]] if type else []
        for side, number in itertools.product((1, 2), (np.inf, -np.inf, np.nan)):
            arrays = draw(rng, 1, 4, 2, 16), draw(rng, 1, 2, tokens, 16), draw(rng, 1, 2, tokens, 32)
            expected = attention(*arrays, seen=seen)[:, :, 0]
            arrays[side][:, :, -1, 0] = number
            caches = [model.new_cache(1), model.new_cache(2)]
            for cache, array in zip(caches, arrays[1:]):
                cache.append(array)
            np.testing.assert_allclose(model(arrays[0], *caches, *numbers)[:, :, 0], expected, rtol=0, atol=1e-3)


@WAYS
@pytest.mark.parametrize("element, bits", [("f16", 11), ("bf16", 8), ("f32", 24)])
def test_types_and_certificates(rng, heads, kv_heads, key_dim, value_dim, element, bits):
    """K, V and the result in each type; the bound holds, and is not far from what rounding the result takes. Values cancel to a fraction of what they are."""
    shapes, large = (f"2x{heads}x1x{key_dim}", f"2x{kv_heads}x?x{key_dim}", f"2x{kv_heads}x?x{value_dim}", f"2x{heads}x1x{value_dim}"), 1024
    for certified in (False, True):
        written = text(*shapes, certified=certified, element=element).replace(f"tensor<{shapes[3]}xf32>", f"tensor<{shapes[3]}x{element}>")
        model = alignedkv.compile(written, format="dense")
        for tokens in (0, 1, 65, 1300):
            q, k, v = draw(rng, 2, heads, 1, key_dim, element=element), draw(rng, 2, kv_heads, tokens, key_dim, element=element), draw(rng, 2, kv_heads, tokens, value_dim, element=element)
            v = v * DTYPES[element](large)
            q = q * DTYPES[element](0.125)
            out, *certificate = model(q, k, v) if certified else (model(q, k, v),)
            out = np.asarray(out).view(DTYPES[element]).astype(np.float64)
            expected = attention(q, k, v)
            error, rounding = np.abs(out - expected).max(-1), 2.0**-bits * np.abs(expected).max(-1)
            assert (error <= large * TOLERANCE + rounding).all()
            if certified:
                bound, estimate = certificate
                assert (error <= bound).all() and (bound <= large * 3e-3 + 2 * rounding).all() and (estimate == 0).all()


@pytest.mark.parametrize("mask", ["", "softcap 30.0 mask <causal, window = 50>"])
@pytest.mark.parametrize("q, k, v, out", [("?x?x?x?", "?x?x?x?", "?x?x?x?", "?x?x?x?"), ("2x?x2x16", "2x2x?x16", "2x2x?x16", "2x?x2x16"), ("2x6x2x16", "2x?x?x16", "2x?x?x16", "2x6x2x16"),
                                          ("2x6x?x16", "2x2x?x16", "2x2x?x16", "2x6x?x16"), ("2x6x2x?", "?x2x?x16", "2x2x?x?", "2x6x2x16"), ("?x6x?x20", "?x2x?x20", "?x2x?x24", "?x6x?x24")])
def test_extents_that_only_the_program_knows(rng, q, k, v, out, mask):
    model = alignedkv.compile(text(q, k, v, out, mask))
    dims = [int(next((shape.split("x")[3] for shape in pair if shape.split("x")[3] != "?"), 16)) for pair in ((q, k), (v, out))]
    for tokens in (0, 5, 130):
        arrays = draw(rng, 2, 6, 2, dims[0]), draw(rng, 2, 2, tokens, dims[0]), draw(rng, 2, 2, tokens, dims[1])
        seen = seen_by(tokens, 2, causal=True, window=50) if mask else None
        arguments = list(arrays)
        for index, array in ((1, arrays[1]), (2, arrays[2])):
            if "fixed" in model.arguments[index]:
                arguments[index] = model.new_cache(index)
                arguments[index].append(array)
        tolerance = TOLERANCE if arguments[1] is arrays[1] else 2e-2
        np.testing.assert_allclose(model(*arguments), attention(*arrays, softcap=30.0 if mask else 0, seen=seen), rtol=0, atol=tolerance)


def test_dynamic_extents_are_checked(rng):
    model = alignedkv.compile(text("?x?x?x?", "?x?x?x?", "?x?x?x?", "?x?x?x?", "attn_mask %m : tensor<1x6x2x?xf32> sink_logits %s : tensor<?xf32>",
                                   [("m", "tensor<1x6x2x?xf32>"), ("s", "tensor<?xf32>")]))
    good = [draw(rng, 1, 6, 2, 8), draw(rng, 1, 2, 9, 8), draw(rng, 1, 2, 9, 8), np.zeros((1, 6, 2, 9), np.float32), np.full(6, -9, np.float32)]
    np.testing.assert_allclose(model(*good), attention(*good[:3], sinks=good[4]), rtol=0, atol=TOLERANCE)
    multiple, none = "expected query heads to be a multiple of kv heads", draw(rng, 1, 0, 9, 8)
    for wrong, message in (({0: draw(rng, 1, 6, 2, 9)}, "expected query and key to agree in head_dim"), ({0: draw(rng, 1, 3, 2, 8)}, multiple), ({1: none, 2: none}, multiple),
                           ({0: draw(rng, 1, 4, 2, 8)}, "expected attn_mask and query to agree in heads"), ({0: draw(rng, 1, 6, 3, 8)}, "assertion failed"),
                           ({2: draw(rng, 1, 2, 8, 8)}, "expected key and value to agree in tokens"),
                           ({3: np.zeros((1, 6, 2, 8), np.float32)}, "expected attn_mask and key to agree"), ({4: np.zeros(5, np.float32)}, "expected sink_logits and query to agree in heads")):
        with pytest.raises(alignedkv.Error, match=re.escape(message)):
            model(*[wrong.get(index, array) for index, array in enumerate(good)])


def test_policies_where_planes_hold_it(rng):
    """Of two attentions over caches of one model one is stored in planes; the other stays dense, with a remark, and is exact."""
    narrow, wide = "tensor<1x2x?x16xf16>", "tensor<1x2x?x18xf16>"
    model = alignedkv.compile(f"""
        func.func @f(%q: tensor<1x4x1x16xf16>, %k: {narrow}, %v: {narrow}, %p: tensor<1x4x1x18xf16>, %l: {wide}, %w: {wide}) -> (tensor<1x4x1x16xf32>, tensor<1x4x1x18xf32>) {{
          %scale = arith.constant 0.3 : f32
          %a = aligned.attention %q, %k, %v scale %scale : tensor<1x4x1x16xf16>, {narrow}, {narrow} -> tensor<1x4x1x16xf32>
          %b = aligned.attention %p, %l, %w scale %scale : tensor<1x4x1x18xf16>, {wide}, {wide} -> tensor<1x4x1x18xf32>
          return %a, %b : tensor<1x4x1x16xf32>, tensor<1x4x1x18xf32>
        }}""", policy="tight")
    assert ["stays dense" in remark.message for remark in model.remarks] == [True] and [("fixed" in type) for type in model.arguments] == [False, True, True] + 3 * [False]
    q, k, v, p, l, w = [draw(rng, 1, heads, tokens, dim) for dim in (16, 18) for heads, tokens in ((4, 1), (2, 130), (2, 130))]
    caches = [model.new_cache(1), model.new_cache(2)]
    for cache, array in zip(caches, (k, v)):
        cache.append(array)
    a, b = model(q, *caches, p, l, w)
    np.testing.assert_allclose(a, attention(q, k, v), rtol=0, atol=5e-3)
    np.testing.assert_allclose(b, attention(p, l, w), rtol=0, atol=TOLERANCE)


def test_planes_of_too_many_heads_are_unpacked(rng):
    planes = "tensor<1x1x?x16xf16, #aligned.planes<fixed<4, 4, 8>, {}>>"
    shapes = text("1x40x1x16", "K", "V", "1x40x1x16").replace("tensor<KxxK>", "")
    written = shapes.replace("tensor<Kxf16>", planes.format("key")).replace("tensor<Vxf16>", planes.format("value"))
    model = alignedkv.compile(written)
    assert any("caches are unpacked at every step" in remark.message for remark in model.remarks)
    q, k, v = draw(rng, 1, 40, 1, 16), draw(rng, 1, 1, 130, 16), draw(rng, 1, 1, 130, 16)
    caches = [model.new_cache(1), model.new_cache(2)]
    for cache, array in zip(caches, (k, v)):
        cache.append(array)
    np.testing.assert_allclose(model(q, *caches), attention(q, k, v), rtol=0, atol=1e-3)


@pytest.mark.parametrize("policy, format, tolerance", [("tight", "auto", 6e-3), ("alignedkv", "auto", 6e-2), ("exact", "dense", TOLERANCE)])
def test_layers_share_kernels_and_report_apart(rng, policy, format, tolerance):
    query, cache, layers = "tensor<1x4x1x16xf16>", "tensor<1x2x?x16xf16>", (5, 130, 2100)
    arguments = ", ".join(f"%{name}{layer}: {query if name == 'q' else cache}" for layer in range(3) for name in "qkv")
    body = "".join(f"  %o{layer} = aligned.attention %q{layer}, %k{layer}, %v{layer} scale %scale : {query}, {cache}, {cache} -> tensor<1x4x1x16xf32>\n" for layer in range(3))
    out = ", ".join(3 * ["tensor<1x4x1x16xf32>"])
    model = alignedkv.compile(f"func.func @f({arguments}) -> ({out}) {{\n  %scale = arith.constant 0.3 : f32\n{body}  return %o0, %o1, %o2 : {out}\n}}", policy=policy, format=format)
    arrays = [draw(rng, 1, 4 if side == 0 else 2, 1 if side == 0 else tokens, 16) for tokens in layers for side in range(3)]
    passed = list(arrays)
    for index, array in enumerate(arrays):
        if index % 3 and format != "dense":
            passed[index] = model.new_cache(index)
            passed[index].append(array)
    for layer, result in enumerate(model(*passed)):
        np.testing.assert_allclose(result, attention(*arrays[3 * layer : 3 * layer + 3]), rtol=0, atol=tolerance)
    assert [read["key_values"] for read in model.reads] == [2 * tokens * 16 for tokens in layers]


def test_any_extent_of_a_cache_that_is_appended_to(rng):
    """Dimensions that only the program knows; what was asked of the old cache is what it was."""
    cache = "tensor<1x2x?x16xf16>"
    model = alignedkv.compile(f"""
        func.func @f(%q: tensor<1x4x1x16xf16>, %k: {cache}, %v: {cache}, %new: tensor<1x2x1x16xf16>, %t: tensor<i64>) -> (tensor<1x4x1x16xf32>, tensor<2xi64>, {cache}) {{
          %scale = arith.constant 0.3 : f32
          %number = tensor.extract %t[] : tensor<i64>
          %dim = arith.index_cast %number : i64 to index
          %more = aligned.append %new to %k : tensor<1x2x1x16xf16> to {cache} -> {cache}
          %more_v = aligned.append %new to %v : tensor<1x2x1x16xf16> to {cache} -> {cache}
          %out = aligned.attention %q, %more, %more_v scale %scale : tensor<1x4x1x16xf16>, {cache}, {cache} -> tensor<1x4x1x16xf32>
          %old = tensor.dim %k, %dim : {cache}
          %now = tensor.dim %more, %dim : {cache}
          %old_number = arith.index_cast %old : index to i64
          %now_number = arith.index_cast %now : index to i64
          %extents = tensor.from_elements %old_number, %now_number : tensor<2xi64>
          return %out, %extents, %more : tensor<1x4x1x16xf32>, tensor<2xi64>, {cache}
        }}""")
    query, token = draw(rng, 1, 4, 1, 16), draw(rng, 1, 2, 1, 16)
    caches = [model.new_cache(1), model.new_cache(2)]
    for dim, expected in enumerate(([1, 1], [2, 2], [2, 3], [16, 16])):
        _, extents, grown = model(query, *caches, token, np.int64(dim))
        assert grown is caches[0] and len(grown) == dim + 1 and extents.tolist() == expected
    for dim in (-1, 4, 2**40):
        with pytest.raises(alignedkv.Error, match="index is out of bounds"):
            model(query, *caches, token, np.int64(dim))
