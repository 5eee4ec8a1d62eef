"""Modules that are compiled from text: their interface, their results, what they refuse."""

import signal
import threading
import time

import numpy as np
import pytest
from conftest import exact_attention, relative_error

import alignedkv


def step_text(key="tensor<1x3x?x32xf16>", value="tensor<1x3x?x32xf16>", facts=""):
    """One decode step; `key` and `value` are the types of its caches, `facts` what is said of the first."""
    return f"""
func.func @step(%q: tensor<1x6x1x32xf16>, %k: tensor<1x3x1x32xf16>, %v: tensor<1x3x1x32xf16>, %keys: {key}{facts},
                %values: {value}) -> (tensor<1x6x1x32xf16>, {key}, {value}) {{
  %scale = arith.constant 0.25 : f32
  %k1 = aligned.append %k to %keys : tensor<1x3x1x32xf16> to {key} -> {key}
  %v1 = aligned.append %v to %values : tensor<1x3x1x32xf16> to {value} -> {value}
  %out = aligned.attention %q, %k1, %v1 scale %scale
      : tensor<1x6x1x32xf16>, {key}, {value} -> tensor<1x6x1x32xf16>
  return %out, %k1, %v1 : tensor<1x6x1x32xf16>, {key}, {value}
}}"""


STEP = step_text()

IDENTITY = "func.func @same(%a: tensor<?x?xf32>) -> tensor<?x?xf32> { return %a : tensor<?x?xf32> }"
THREE = """
func.func @three(%a: tensor<?xf32>) -> tensor<?xf32> {
  %zero = arith.constant 0 : index
  %three = arith.constant 3 : index
  %size = tensor.dim %a, %zero : tensor<?xf32>
  %ok = arith.cmpi eq, %size, %three : index
  cf.assert %ok, "expected three numbers"
  return %a : tensor<?xf32>
}"""

FILL = """
func.func @fill(%a: tensor<4xf32>) -> tensor<4xf32> {
  %seven = arith.constant 7.0 : f32
  %0 = linalg.fill ins(%seven : f32) outs(%a : tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}"""


def half(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


def test_a_model_decodes_with_caches_that_grow_in_place(rng):
    step = alignedkv.compile(STEP, policy="exact")
    assert step.attentions == 1 and step.remarks == []
    assert step.arguments[3:] == ["float16[1, 3, ?, 32] fixed<4,4,8> key", "float16[1, 3, ?, 32] fixed<4,4,8> value"]
    keys, values = step.new_cache(3), step.new_cache(4)
    k, v = half(rng, 1, 3, 97, 32), half(rng, 1, 3, 97, 32)
    for t in range(97):
        q = half(rng, 1, 6, 1, 32)
        out, new_keys, new_values = step(q, k[:, :, t : t + 1], v[:, :, t : t + 1], keys, values)
        assert new_keys is keys and new_values is values and len(keys) == t + 1
        assert relative_error(out.astype(np.float64), exact_attention(q, k[:, :, : t + 1], v[:, :, : t + 1], 0.25)) <= 1e-3
    (read,) = step.reads
    assert read["key_values"] == read["value_values"] == k.size


@pytest.mark.parametrize("format", ["auto", "dense"])
def test_certificates_come_behind_the_results(rng, format):
    step = alignedkv.compile(STEP, policy="exact" if format == "dense" else "fast", format=format, certify=True)
    assert step.results[3:] == ["float32[1, 6, 1]"] * 2 and step.remarks == []
    q, k, v = half(rng, 1, 6, 1, 32), half(rng, 1, 3, 130, 32), half(rng, 1, 3, 130, 32)
    keys, values = k[:, :, :129], v[:, :, :129]
    if format == "auto":
        keys, values = step.new_cache(3), step.new_cache(4)
        keys.append(k[:, :, :129])
        values.append(v[:, :, :129])
    out, _, _, bound, estimate = step(q, k[:, :, 129:], v[:, :, 129:], keys, values)
    error = np.abs(out - exact_attention(q, k, v, 0.25)).max(-1)
    assert (error <= bound).all() and (bound > 0).all()
    if format == "auto":
        assert (error > 2.0**-9).any() and (estimate > 2.0**-9).all()
    else:
        assert (bound < 2e-3).all() and (estimate == 0).all()


def test_a_budget_says_how_closely_heads_are_read(rng, tmp_path):
    file = tmp_path / "a budget.yaml"
    file.write_text("layers: {0: {heads: {1: {policy: exact}}}}\n")
    q, k, v = half(rng, 1, 6, 1, 32), half(rng, 1, 3, 512, 32), half(rng, 1, 3, 512, 32)
    loose, exact, budget = (
        alignedkv.compile(STEP, policy=policy, budget=path) for policy, path in [("fast", None), ("exact", None), ("fast", file)]
    )
    outs = []
    for step in (loose, exact, budget):
        keys, values = step.new_cache(3), step.new_cache(4)
        keys.append(k[:, :, :-1])
        values.append(v[:, :, :-1])
        outs.append(step(q, k[:, :, -1:], v[:, :, -1:], keys, values)[0])
    own = [2, 3]  # the query heads of kv head 1
    others = [0, 1, 4, 5]
    loose, exact, budget = (out.astype(np.float64) for out in outs)
    assert relative_error(budget[:, own], exact[:, own]) <= 1e-3 <= relative_error(loose[:, own], exact[:, own])
    assert np.array_equal(budget[:, others], loose[:, others])


def test_impossible_budgets(tmp_path):
    file = tmp_path / "budget.yaml"
    file.write_text("default:\n  tolerence: 2^-8\n")
    with pytest.raises(alignedkv.Error, match="budget.yaml:2:3: error: unknown key 'tolerence'"):
        alignedkv.compile(STEP, budget=file)
    file.write_text("layers: {7: {policy: exact}}\n")
    with pytest.raises(alignedkv.Error, match="budget.yaml:1:14: error: expected a layer below 1, got 7"):
        alignedkv.compile(STEP, budget=file)
    with pytest.raises(alignedkv.Error, match="missing.yaml"):
        alignedkv.compile(STEP, budget=tmp_path / "missing.yaml")
    with pytest.raises(alignedkv.Error, match="without quotes"):
        alignedkv.compile(STEP, budget="it's.yaml")


def test_what_cannot_be_certified_is_remarked():
    private = STEP.replace("func.func @step", "func.func private @step") + """
        func.func @f(%q: tensor<1x6x1x32xf16>, %k: tensor<1x3x1x32xf16>, %keys: tensor<1x3x?x32xf16>, %values: tensor<1x3x?x32xf16>) -> tensor<1x6x1x32xf16> {
          %0:3 = call @step(%q, %k, %k, %keys, %values) : (tensor<1x6x1x32xf16>, tensor<1x3x1x32xf16>, tensor<1x3x1x32xf16>, tensor<1x3x?x32xf16>,
              tensor<1x3x?x32xf16>) -> (tensor<1x6x1x32xf16>, tensor<1x3x?x32xf16>, tensor<1x3x?x32xf16>)
          return %0#0 : tensor<1x6x1x32xf16>
        }"""
    module = alignedkv.compile(private, certify=True)
    assert len(module.results) == 1 and any("not certified: expected all attention in" in remark.message for remark in module.remarks)


def test_a_model_says_what_is_taken_off_its_keys(rng):
    offset = np.arange(3 * 32).reshape(3, 32) / 16 - 2
    said = f"aligned.key_offset = dense<{offset.tolist()}> : tensor<3x32xf32>"
    text = step_text(facts=f" {{{said}, aligned.range = #aligned.range<[-99.0, 99.0]>}}")
    k, v, q = half(rng, 1, 3, 201, 32) + offset[:, None].astype(np.float16), half(rng, 1, 3, 201, 32), half(rng, 1, 6, 1, 32)
    read = []
    for source in (text, STEP):
        step = alignedkv.compile(source)
        keys, values = step.new_cache(3), step.new_cache(4)
        for t in range(0, 200, 50):  # fewer at once than an offset is taken from
            keys.append(k[:, :, t : t + 50])
            values.append(v[:, :, t : t + 50])
        out = step(q, k[:, :, 200:], v[:, :, 200:], keys, values)[0]
        assert relative_error(out.astype(np.float64), exact_attention(q, k, v, 0.25)) <= 0.02
        read.append(step.reads[0]["key_bits"])
    assert read[0] < read[1]


def test_a_type_says_how_many_planes_are_read(rng):
    text = step_text(*(f"tensor<1x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, {role}, resident = 2>>" for role in ("key", "value")))
    step = alignedkv.compile(text, policy="exact")
    assert step.arguments[3:] == [f"float16[1, 3, ?, 32] fixed<4,4,8> {role}, resident = 2" for role in ("key", "value")]
    q, k, v = half(rng, 1, 6, 1, 32), half(rng, 1, 3, 65, 32), half(rng, 1, 3, 65, 32)
    keys, values = step.new_cache(3), step.new_cache(4)
    assert keys.planes == values.planes == 2 and "resident = 2" in repr(keys)
    keys.append(k[:, :, :-1])
    values.append(v[:, :, :-1])
    out = step(q, k[:, :, -1:], v[:, :, -1:], keys, values)[0].astype(np.float64)
    assert 1e-4 < relative_error(out, exact_attention(q, k, v, 0.25)) <= 2e-2
    assert step.reads[0]["key_bits"] == 3 * 65 * (8 * 32 + 8)
    # More planes are none too many. Fewer are.
    more = alignedkv.compile(STEP, policy="exact")
    full = more.new_cache(3), more.new_cache(4)
    for cache, x in zip(full, (k, v)):
        cache.append(x[:, :, :-1])
    np.testing.assert_array_equal(step(q, k[:, :, -1:], v[:, :, -1:], *full)[0].astype(np.float64), out)
    keys.drop_planes(1)
    with pytest.raises(alignedkv.Error, match="expected a cache with 2 resident planes as argument 3, as many as were compiled for, got one with 1"):
        step(q, k[:, :, -1:], v[:, :, -1:], keys, values)
    with pytest.raises(alignedkv.Error, match="expected a cache with 3 resident planes as argument 4, as many as were compiled for, got one with 2"):
        more(q, k[:, :, -1:], v[:, :, -1:], full[0], values)
    assert len(keys) == len(values) == 65


def test_a_copy_of_a_cache_grows_alone(rng):
    step = alignedkv.compile(STEP)
    keys = step.new_cache(3)
    keys.append(half(rng, 1, 3, 64, 32))
    other = keys.copy()
    other.append(half(rng, 1, 3, 1, 32))
    assert (len(keys), len(other)) == (64, 65)


def test_dense_caches_are_arrays(rng):
    step = alignedkv.compile(STEP, format="dense", policy="exact")
    q, k, v = half(rng, 1, 6, 1, 32), half(rng, 1, 3, 65, 32), half(rng, 1, 3, 65, 32)
    out, keys, values = step(q, k[:, :, 64:], v[:, :, 64:], k[:, :, :64], v[:, :, :64])
    assert (keys == k).all() and (values == v).all()
    assert relative_error(out.astype(np.float64), exact_attention(q, k, v, 0.25)) <= 1e-3


def test_what_stays_dense_is_remarked():
    module = alignedkv.compile(STEP.replace("1x6x1x32", "1x6x17x32"), policy="exact")
    assert any("attention stays dense: expected at most 32 query rows per kv head, got 34" in remark.message for remark in module.remarks)
    assert module.arguments[3] == "float16[1, 3, ?, 32]"


def test_results_are_arrays_of_their_own():
    same = alignedkv.compile(IDENTITY)
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    for given in (a, a.T, a[:, ::2], a[::-1], a[:0]):
        result = same(given)
        np.testing.assert_array_equal(result, given)
        result[:] = -1
    np.testing.assert_array_equal(a, np.arange(12).reshape(3, 4))


def test_arguments_are_never_written():
    fill = alignedkv.compile(FILL)
    a = np.zeros(4, np.float32)
    for writeable in (True, False):
        a.flags.writeable = writeable
        assert (fill(a) == 7).all() and (a == 0).all()


def test_every_dtype_comes_back():
    dtypes = dict(f16="f2", f32="f4", f64="f8", bf16="u2", i1="?", i8="i1", i16="i2", i32="i4", i64="i8")
    for name, dtype in dtypes.items():
        same = alignedkv.compile(f"func.func @same(%a: tensor<3x{name}>) -> tensor<3x{name}> {{ return %a : tensor<3x{name}> }}")
        given = np.array([1, 0, 1], dtype)
        assert same(given).dtype == given.dtype
        np.testing.assert_array_equal(same(given), given)


def test_none_one_or_many_results():
    assert alignedkv.compile("func.func @none() { return }")() is None
    both = alignedkv.compile("func.func @both(%a: tensor<i32>) -> (tensor<i32>, tensor<i32>) { return %a, %a : tensor<i32>, tensor<i32> }")
    assert both(np.array(5, np.int32)) == (5, 5)


def test_functions_are_chosen_by_name():
    two = "func.func @f() -> tensor<i32> { %0 = arith.constant dense<1> : tensor<i32> return %0 : tensor<i32> }"
    two += two.replace("@f", "@g").replace("dense<1>", "dense<2>")
    assert alignedkv.compile(two, function="g")() == 2
    with pytest.raises(alignedkv.Error, match="expected one public function with a body, found 2"):
        alignedkv.compile(two)
    with pytest.raises(alignedkv.Error, match="expected a function 'h' with a body, found none"):
        alignedkv.compile(two, function="h")


def test_a_failed_assertion_is_an_error():
    three = alignedkv.compile(THREE)
    assert three(np.zeros(3, np.float32)).shape == (3,)
    with pytest.raises(alignedkv.Error, match="expected three numbers"):
        three(np.zeros(4, np.float32))
    assert three(np.ones(3, np.float32)).sum() == 3  # it can go on


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a[:4], "expected 5 arguments, got 4"),
        (lambda a: [a[0].astype(np.float32), *a[1:]], "expected float16 of argument 0, got float32"),
        (lambda a: [a[0][0], *a[1:]], "expected rank 4 of argument 0, got 3"),
        (lambda a: [a[0][:, :3], *a[1:]], r"expected shape \[1, 6, 1, 32\] of argument 0, got \[1, 3, 1, 32\]"),
        (lambda a: [None, *a[1:]], "as argument 0, got NoneType"),
        (lambda a: [a[3], *a[1:]], "as argument 0, got .*Cache"),
        (lambda a: [*a[:3], a[1], a[4]], "expected an alignedkv.Cache as argument 3, got ndarray"),
        (lambda a: [*a[:3], a[4], a[3]], "expected a cache of the format that argument 3 was compiled for"),
        (lambda a: [*a[:3], a[3], a[3]], "expected a cache to be passed once"),
        (lambda a: [*a[:3], alignedkv.compile(STEP.replace("x32x", "x64x")).new_cache(3), a[4]], r"got \[1, 3, 0, 64\]"),
    ],
)
def test_impossible_arguments(rng, change, message):
    step = alignedkv.compile(STEP)
    arguments = [half(rng, 1, 6, 1, 32), half(rng, 1, 3, 1, 32), half(rng, 1, 3, 1, 32), step.new_cache(3), step.new_cache(4)]
    with pytest.raises(alignedkv.Error, match=message):
        step(*change(arguments))
    assert len(arguments[3]) == len(arguments[4]) == 0
    step(*arguments)


@pytest.mark.parametrize("format", ["auto", "dense"])
def test_keys_and_values_must_be_equally_many(rng, format):
    step = alignedkv.compile(STEP, format=format, policy="exact")
    q, k, v = half(rng, 1, 6, 1, 32), half(rng, 1, 3, 66, 32), half(rng, 1, 3, 1, 32)
    keys, values = k[:, :, :65], k[:, :, :0]
    if format == "auto":
        keys, values = step.new_cache(3), step.new_cache(4)
        keys.append(k[:, :, :65])
    with pytest.raises(alignedkv.Error, match="expected key and value to agree in tokens"):
        step(q, k[:, :, 65:], v, keys, values)


@pytest.mark.parametrize("index", [-1, 0, 5])
def test_only_cache_arguments_have_caches(index):
    with pytest.raises(alignedkv.Error, match=f"expected the index of an argument that is a cache, got {index}"):
        alignedkv.compile(STEP).new_cache(index)


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("func.func @f(", {}, "expected"),
        ("", {}, "found 0"),
        ("func.func @f(%a: f32) { return }", {}, "tensor of numbers"),
        ('func.func @f() { "no.such"() : () -> () return }', {}, "unregistered dialect"),
        (STEP, dict(format="fixed<4,4>"), "sum to 16, got 8"),
        (STEP, dict(format="fixed<4,4,4,4> to=store"), "format"),
        (STEP, dict(policy="best"), "got 'best'"),
        (STEP, dict(policy="balanced", format="float<8,4,4>"), "expected a key stored as 'fixed'"),
    ],
)
def test_impossible_modules(text, options, message):
    with pytest.raises(alignedkv.Error, match=message):
        alignedkv.compile(text, **options)


def test_transform_shows_each_phase():
    split = alignedkv.transform(STEP, "aligned-pipeline{to=store}")
    assert "#aligned.planes<fixed<4, 4, 8>, key>" in split and "aligned.attention" in split
    assert "fixed<8, 8>, value>" in alignedkv.transform(STEP, "aligned-pipeline{to=store format=fixed<8,8>}")
    fused = alignedkv.transform(split, "builtin.module(aligned-fuse-decode-attention{policy=tight})")
    assert "aligned.decode_attention" in fused and "aligned.attention" not in fused


@pytest.mark.parametrize(
    "text, pipeline, message",
    [
        (STEP, "no-such-pass", "does not refer to a registered pass"),
        (STEP, "builtin.module(no-such-pass)", "does not refer to a registered pass"),
        (STEP, "builtin.module(", "pass pipeline"),
        (STEP, "aligned-pipeline{to=moon}", "got 'moon'"),
        (STEP.replace("1x6x1x32", "1x4x1x32"), "canonicalize", "expected query heads to be a multiple of kv heads, got 4 and 3"),
    ],
)
def test_impossible_transforms(text, pipeline, message):
    with pytest.raises(alignedkv.Error, match=message):
        alignedkv.transform(text, pipeline)


def test_ctrl_c_ends_a_long_call():
    """Asked where parallel loops begin: those of its attentions."""
    count, heads = 60, 8
    kinds = [f"tensor<1x{heads}x?x128xf16, #aligned.planes<fixed<4, 4, 8>, {role}>>" for role in ("key", "value")]
    query = f"tensor<1x{heads}x1x128xf32>"
    steps = "".join(f"%q{i + 1} = aligned.attention %q{i}, %k, %v scale %s : {query}, {kinds[0]}, {kinds[1]} -> {query}\n" for i in range(count))
    module = alignedkv.compile(f"func.func @f(%q0: {query}, %k: {kinds[0]}, %v: {kinds[1]}) -> {query} {{ %s = arith.constant 0.1 : f32\n {steps} return %q{count} : {query} }}", policy="exact")
    cache = alignedkv.KVCache(heads, 128)
    tokens = np.zeros((1, heads, 2048, 128), np.float16)
    cache.append(tokens, tokens)
    q = np.ones((1, heads, 1, 128), np.float32)
    start = time.monotonic()
    module(q, cache._key, cache._value)
    whole = time.monotonic() - start
    timer = threading.Timer(whole / 10, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        module(q, cache._key, cache._value)
    assert time.monotonic() - start < 0.8 * whole + 0.2
    timer.join()
    assert module(q, cache._key, cache._value).shape == q.shape  # goes on


def test_numbers_are_rounded_to_bfloat16_once(rng):
    """Whatever the processor has: to nearest even, from doubles without a stop at float32."""
    halfway = 1 + 2.0**-8
    x = np.array([1, halfway, np.nextafter(halfway, 0), np.nextafter(halfway, 2), halfway + 2.0**-30, 1 + 3 * 2.0**-8 - 2.0**-40, -1e300, 3.4e38, 1e-45, 1e-310, 0, -0.0, np.inf, -np.inf, np.nan,
                  *rng.standard_normal(100) * 10.0 ** rng.integers(-38, 38, 100)])
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype, name in ((np.float64, "f64"), (np.float32, "f32")):
        with np.errstate(over="ignore"):
            given = x.astype(dtype)
        size = len(x)
        module = alignedkv.compile(f"""func.func @f(%x: tensor<{size}x{name}>) -> tensor<{size}xbf16> {{
          %y = arith.truncf %x : tensor<{size}x{name}> to tensor<{size}xbf16>
          return %y : tensor<{size}xbf16>
        }}""")
        numbers = [float(n) for n in given]
        values = np.arange(0, 0x7F80, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
        found = module(given).view(ml_dtypes.bfloat16).astype(np.float64)
        for number, got in zip(numbers, found):
            if not np.isfinite(number):
                assert got == number or (np.isnan(got) and np.isnan(number))
                continue
            below = int(np.searchsorted(values, abs(number), side="right")) - 1
            around = [values[below], values[below + 1] if below + 1 < len(values) else np.inf]
            step = values[-1] - values[-2]
            above = around[1] if np.isfinite(around[1]) else values[-1] + step
            middle = (around[0] + above) / 2
            expected = around[0] if abs(number) < middle or (abs(number) == middle and below % 2 == 0) else around[1]
            assert abs(got) == expected and np.signbit(got) == np.signbit(number), (name, number)
