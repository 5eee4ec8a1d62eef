"""Graphs that nobody writes, and that raising must survive: it walks bodies that may hold anything."""

import json

import alignedkv
import pytest

S, OUT = "tensor<2x3x5xf32>", "tensor<2x3x16xf32>"


def graph(body, operands="", arguments="", maps=""):
    """Attention whose scores %a become %r in a body."""
    extra = f", {arguments}" if arguments else ""
    ins = f"%s, {operands.split(' : ')[0]} : {S}, {operands.split(' : ')[1]}" if operands else f"%s : {S}"
    return f"""
    #s = affine_map<(h, i, t) -> (h, i, t)>
    func.func @f(%q: {OUT}, %k: tensor<2x16x5xf32>, %v: tensor<2x5x16xf32>, %es: {S}, %eo: {OUT}{extra}) -> {OUT} {{
      %zero = arith.constant 0.0 : f32
      %s0 = linalg.fill ins(%zero : f32) outs(%es : {S}) -> {S}
      %o0 = linalg.fill ins(%zero : f32) outs(%eo : {OUT}) -> {OUT}
      %s = linalg.batch_matmul ins(%q, %k : {OUT}, tensor<2x16x5xf32>) outs(%s0 : {S}) -> {S}
      %x = linalg.generic {{indexing_maps = [#s, {maps}#s], iterator_types = ["parallel", "parallel", "parallel"]}} ins({ins}) outs(%es : {S}) {{
        ^bb0(%a: f32, {"%b: f32, " if operands else ""}%out: f32):
          {body}
          linalg.yield %r : f32
      }} -> {S}
      %p = linalg.softmax dimension(2) ins(%x : {S}) outs(%es : {S}) -> {S}
      %o = linalg.batch_matmul ins(%p, %v : {S}, tensor<2x5x16xf32>) outs(%o0 : {OUT}) -> {OUT}
      return %o : {OUT}
    }}"""


def raised(text, pass_name="aligned-raise-attention", **options):
    return "aligned.attention" in alignedkv.transform(text, f"builtin.module({pass_name})", **options)


DOUBLING = "\n".join(f"%m{n + 1} = arith.{{op}} %m{n}, %m{n} : f32" for n in range(40))
CHAIN = "\n".join(f"%m{n + 1} = arith.addf %m{n}, %u : f32" for n in range(30000))
BODIES = {
    "an extent": ("%c0 = arith.constant 0 : index\n%d = tensor.dim %m, %c0 : tensor<?xf32>\n%i = arith.index_cast %d : index to i64\n%e = arith.sitofp %i : i64 to f32\n"
                  "%r = arith.addf %a, %e : f32", "%m: tensor<?xf32>"),
    "a tensor of the body's choice": ("%i = linalg.index 2 : index\n%c2 = arith.constant 2 : index\n%is = arith.cmpi slt, %i, %c2 : index\n%t = arith.select %is, %m, %n : tensor<5xf32>\n"
                                      "%e = tensor.extract %t[%i] : tensor<5xf32>\n%r = arith.addf %a, %e : f32", "%m: tensor<5xf32>, %n: tensor<5xf32>"),
    "a tensor of the body's making": ("%t = tensor.from_elements %u, %u : tensor<2xf32>\n%i = linalg.index 0 : index\n%e = tensor.extract %t[%i] : tensor<2xf32>\n"
                                      "%r = arith.addf %a, %e : f32", "%u: f32"),
    "a constant squared 40 times": ("%m0 = arith.constant 1.0 : f32\n" + DOUBLING.format(op="mulf") + "\n%r = arith.mulf %a, %m40 : f32", ""),
    "a scalar doubled 40 times": ("%m0 = arith.addf %u, %u : f32\n" + DOUBLING.format(op="addf") + "\n%r = arith.mulf %a, %m40 : f32", "%u: f32"),
    "a mask doubled 40 times": ("%i = linalg.index 2 : index\n%j = arith.index_cast %i : index to i64\n%m0 = arith.sitofp %j : i64 to f32\n" + DOUBLING.format(op="addf") +
                                "\n%r = arith.addf %a, %m40 : f32", ""),
    "a long way": ("%m0 = arith.addf %u, %u : f32\n" + CHAIN + "\n%r = arith.mulf %a, %m30000 : f32", "%u: f32"),
    "one of two results": ("%low, %high = arith.mului_extended %u, %u : i32\n%e = arith.sitofp %high : i32 to f32\n%r = arith.mulf %a, %e : f32", "%u: i32"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_formula_are_left_alone(name):
    assert not raised(graph(*[BODIES[name][0], "", BODIES[name][1]]))


def test_an_index_of_other_loops():
    """Attention in the body of another op, which counts its own loops: what those say is known only when they run."""
    inner = graph("%e0 = arith.index_cast %outer : index to i64\n%e = arith.sitofp %e0 : i64 to f32\n%r = arith.addf %a, %e : f32", "", "%other: tensor<70xf32>")
    head, body = inner.split("%zero = arith.constant", 1)
    body, _ = body.rsplit("return", 1)
    text = head + f"""%all = linalg.generic {{indexing_maps = [affine_map<(i) -> (i)>], iterator_types = ["parallel"]}} outs(%other : tensor<70xf32>) {{
        ^bb0(%every: f32):
          %outer = linalg.index 0 : index
          %zero = arith.constant{body}
          %c = arith.constant 0 : index
          %some = tensor.extract %o[%c, %c, %c] : {OUT}
          linalg.yield %some : f32
      }} -> tensor<70xf32>
      %e = tensor.extract %all[%z] : tensor<70xf32>
      %read = linalg.fill ins(%e : f32) outs(%q : {OUT}) -> {OUT}
      return %read : {OUT}
    }}"""
    text = text.replace("%all = ", "%z = arith.constant 0 : index\n%all = ", 1)
    result = alignedkv.transform(text, "builtin.module(aligned-raise-attention)")
    assert "linalg.index 0" in result and "causal" not in result


def test_a_report_of_any_function_name(tmp_path):
    text = graph("%r = arith.addf %a, %a : f32").replace("@f(", '@"\\FF"(')
    alignedkv.transform(text, f"builtin.module(aligned-raise-attention{{report={tmp_path}/report.json}})")
    assert json.loads((tmp_path / "report.json").read_text())[0]["raised"] is False


def test_an_index_that_divides_by_nothing():
    raised(graph("%r = arith.addf %a, %b : f32", "%m : tensor<?xf32>", "%m: tensor<?xf32>", "affine_map<(h, i, t) -> (i floordiv 0)>, "))


def test_elements_that_are_vectors():
    assert not raised("""
    func.func @f(%x: tensor<4x5xvector<2xf32>>, %o: tensor<4xvector<2xf16>>) -> tensor<4xvector<2xf16>> {
      %r = linalg.generic {indexing_maps = [affine_map<(i, j) -> (i, j)>, affine_map<(i, j) -> (i)>], iterator_types = ["parallel", "reduction"]}
          ins(%x : tensor<4x5xvector<2xf32>>) outs(%o : tensor<4xvector<2xf16>>) {
        ^bb0(%a: vector<2xf32>, %out: vector<2xf16>):
          %t = arith.truncf %a : vector<2xf32> to vector<2xf16>
          linalg.yield %t : vector<2xf16>
      } -> tensor<4xvector<2xf16>>
      return %r : tensor<4xvector<2xf16>>
    }""")


T = "tensor<1x2x3x16xf32>"


@pytest.mark.parametrize("op, rest", [
    (f'"onnx.Attention"(%q, %q, %q) ({{\n  %n = "onnx.Attention"(%q, %q, %q) : ({T}, {T}, {T}) -> {T}\n  "test.yield"(%n) : ({T}) -> ()\n}})', ""),
    ('"onnx.Attention"(%q, %q, %q)[^next]', "^next:\n"),
    ('"onnx.Attention"(%q, %q, %q)', None),
])
def test_named_ops_that_hold_or_end_something(op, rest):
    end = "" if rest is None else f"{rest}return %q : {T}\n"
    text = f"func.func @f(%q: {T}) -> {T} {{\n%r = {op} : ({T}, {T}, {T}) -> {T}\n{end}}}"
    text = alignedkv.transform(text, "builtin.module(aligned-raise-named-ops)", allow_unregistered_dialect=True)
    assert '"onnx.Attention"' in text


def test_numbers_beyond_64_bits():
    v, out = "!torch.vtensor<[1,2,3,16],f32>", "!torch.vtensor<[1,3,2,16],f32>"
    assert not raised(f"""
    func.func @f(%q: {v}) -> {out} {{
      %a = "torch.constant.int"() {{value = 170141183460469231731687303715884105727 : i128}} : () -> !torch.int
      %b = "torch.constant.int"() {{value = 2 : i64}} : () -> !torch.int
      %r = "torch.aten.transpose.int"(%q, %a, %b) : ({v}, !torch.int, !torch.int) -> {out}
      return %r : {out}
    }}""", "aligned-raise-named-ops", allow_unregistered_dialect=True)
