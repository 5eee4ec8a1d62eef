"""A property of raising: whatever is raised means what the graph says, however little the graph differs from attention.

The graphs of test/data/graphs that raise, as they came and behind some of upstream's passes, are changed in one or two places, by rules that know MLIR's text: results of indexing maps,
operands, constants, predicates, operations, iterators, offsets, permutations. Most changes break what makes the graph attention. A mutant that is not raised is none of our business.
One that still is runs twice, on random inputs with masks, infinities and rows that nobody sees: raised at policy `exact`, and as it stands, by upstream's lowering alone. A difference
beyond rounding is a wrong raise: attention was found where there is another function. It is printed, and the mutant kept. Mutants that read what they have not written, lie out of
bounds, or make an integer of a float beyond it say nothing and are counted apart.

The same seed and graphs give the same mutants. Mutants run in a process of their own, since one that reads out of bounds may end it.

Rounding: front ends round in f16 and bf16 where attention does not, and overflow there. So the graph that stands is run a second time with its floats widened (f16 and bf16 to f32, f32 to
f64) where the two differ: a raise is right if it agrees with either. Where the graph as it stands is not finite and both agree once inputs are small, or exponentials bounded, the difference
is overflow, of a softmax from which no maximum is taken off, or one from a number: it is counted apart. Where roundings of the inputs alone change its results as much, it is no difference.
"""
import argparse
import collections
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import queue
import random
import re
import struct
import sys
import time
from typing import NamedTuple

import numpy as np

import coverage

MASK = re.compile(r"mask", re.IGNORECASE)
TIME_LIMIT = 60  # seconds, of one mutant


class Mutant(NamedTuple):
    number: int
    graph: str
    text: str
    change: str


class Standing(NamedTuple):
    """A mutant that is only to be run as it stands."""

    mutant: Mutant


# Changing a text. A rule looks for places and returns edits [(begin, end, replacement)] of one of them with a word on what it does; nothing where it finds none.


def choose(rng, items):
    items = list(items)
    return rng.choice(items) if items else None


def another(rng, items, not_this):
    return choose(rng, (item for item in items if item != not_this))


def line_of(text, place):
    return text.count("\n", 0, place) + 1


def replaced(match, group, new, what):
    return [(match.start(group), match.end(group), new)], f"{what}: {match[group]} to {new}"


def exchanged(match, first, second, what):
    if match[first] == match[second]:
        return None
    return [(match.start(first), match.end(first), match[second]), (match.start(second), match.end(second), match[first])], f"{what}: {match[first]} and {match[second]}"


ALIAS = re.compile(r"^(#map\d*) = affine_map<\(([^)]*)\) -> \(([^)]*)\)>", re.MULTILINE)
MAPS = re.compile(r"indexing_maps = \[(.*?)\](?=, iterator_types)")
MAP = re.compile(r"#map\d*|affine_map<\(([^)]*)\) -> \(([^)]*)\)>")
TYPE = re.compile(r"tensor<[^>]*>|\b[\w]+\b")


def shape_of(type):
    return type.removeprefix("tensor<").split("x")[:-1]


def maps_of(text):
    return {alias[1]: (split(alias[2]), split(alias[3])) for alias in ALIAS.finditer(text)}


def split(listed):
    return [item.strip() for item in listed.split(",")] if listed.strip() else []


def parsed_map(maps, match):
    return (split(match[1]), split(match[2])) if match[1] is not None else maps[match[0]]


def map_text(dims, results):
    return f"affine_map<({', '.join(dims)}) -> ({', '.join(results)})>"


def change_map(rng, text):
    """One result of an indexing map is another dimension or zero, or two are exchanged: the latter alone of an output's, all of which is to be written."""
    maps = maps_of(text)
    op = choose(rng, MAPS.finditer(text))
    places = list(MAP.finditer(text, op.start(1), op.end(1))) if op else []
    place = choose(rng, places)
    dims, results = parsed_map(maps, place) if place else ([], [])
    if not results:
        return None
    operands = re.compile(r"(?:ins\([^:]* : ([^()]*)\) )?outs\([^:]* : ([^()]*)\)").search(text, op.end())
    types = TYPE.findall(operands[1] or "") + TYPE.findall(operands[2])
    extent = {}
    for each, type in zip(places, types):
        extent.update(zip(parsed_map(maps, each)[1], shape_of(type)))
    is_output = place in places[-len(TYPE.findall(operands[2])):]
    same = lambda result: [dim for dim in dims if dim != result and extent.get(dim) == extent.get(result)]  # noqa: E731
    number = choose(rng, (number for number, result in enumerate(results) if result in dims and (not is_output or set(same(result)) & set(results))))
    if number is None:
        return None
    old = results[number]
    new = choose(rng, (dim for dim in same(old) if not is_output or dim in results) if is_output else same(old) * 2 + ["0"])
    exchange = is_output or (new in results and rng.random() < 0.5)
    changed = [old if result == new and exchange else result for result in results]
    changed[number] = new
    return [(place.start(), place.end(), map_text(dims, changed))], f"map to {map_text(dims, changed)}"


ITERATORS = re.compile(r"indexing_maps = \[(.*?)\], iterator_types = \[(.*?)\]")


def permute_iterators(rng, text):
    """Two dimensions change places, in all maps of an op or in all but one."""
    maps = maps_of(text)
    op = choose(rng, ITERATORS.finditer(text))
    types = split(op[2]) if op else []
    if len(types) < 2:
        return None
    first, second = rng.sample(range(len(types)), 2)
    renamed = {f"d{first}": f"d{second}", f"d{second}": f"d{first}"}
    places = list(MAP.finditer(text, op.start(1), op.end(1)))
    spared = rng.randrange(len(places)) if rng.random() < 0.5 else None
    edits = []
    for number, place in enumerate(places):
        dims, results = parsed_map(maps, place)
        if number != spared:
            edits.append((place.start(), place.end(), map_text(dims, [re.sub(r"d\d+", lambda dim: renamed.get(dim[0], dim[0]), result) for result in results])))
    types[first], types[second] = types[second], types[first]
    edits.append((op.start(2), op.end(2), ", ".join(types)))
    return edits, f"dimensions d{first} and d{second} change places" + (f", but in map {spared}" if spared is not None else "")


BODY = re.compile(r"\^bb0\((.*?)\):\n(.*?linalg\.yield [^\n]*\n)", re.DOTALL)
NAME = re.compile(r"%[\w]+(?:#\d+)?")
BODY_LINE = re.compile(r"^ +(?:(%\w+) = )?([\w.]+)((?: \w+,)?) ?([^:\n]*?)( : [^\n]*)$", re.MULTILINE)


def body_lines(text, body):
    """Lines of a body, each with the values that it may use."""
    visible = [f"%{name}" for name in re.findall(r"%(\w+)", body[1])]
    for line in BODY_LINE.finditer(text, body.start(2), body.end(2)):
        yield line, list(visible)
        if line[1]:
            visible.append(line[1])


def change_operand(rng, text):
    """A scalar of a body reads another of its values, or one from outside."""
    body = choose(rng, BODY.finditer(text))
    found = body and choose(rng, body_lines(text, body))
    place = found and choose(rng, NAME.finditer(text, found[0].start(4), found[0].end(4)))
    if not place:
        return None
    outside = re.findall(r"(%\w+) = arith\.constant [^\n]* : (?:f\d+|bf16|i\d+|index)\n", text[:body.start()])
    new = another(rng, found[1] if rng.random() < 0.8 or not outside else outside, place[0])
    return new and replaced(place, 0, new, f"operand of {found[0][2]}")


def exchange_operands(rng, text):
    """Two operands of one op of a body change places."""
    body = choose(rng, BODY.finditer(text))
    found = body and choose(rng, ((line, names) for line, names in body_lines(text, body) if len(NAME.findall(line[4])) > 1))
    if not found:
        return None
    first, second = sorted(rng.sample(list(NAME.finditer(text, found[0].start(4), found[0].end(4))), 2), key=lambda place: place.start())
    if first[0] == second[0]:
        return None
    return [(first.start(), first.end(), second[0]), (second.start(), second.end(), first[0])], f"operands of {found[0][2]} change places: {first[0]} and {second[0]}"


def skip(rng, text):
    """A body yields another of its values: an op is left out."""
    body = choose(rng, BODY.finditer(text))
    found = body and list(body_lines(text, body))[-1]
    place = found and found[0][2] == "linalg.yield" and choose(rng, NAME.finditer(text, found[0].start(4), found[0].end(4)))
    new = place and another(rng, found[1], place[0])
    return new and replaced(place, 0, new, "yield")


USES = re.compile(r"(?:ins|outs)?\(((?:%[\w#]+(?:, )?)+) : ([^()]*)\)")
UNARY = re.compile(r"= (?:tensor\.(?:collapse_shape|expand_shape|cast|extract_slice)|linalg\.\w+) (%[\w#]+)[ \[][^\n]*? : (tensor<[^>]*>) (?:into|to)")


def tensors_of(text):
    """Where tensors are used, outside of bodies: [(begin, end, name, type)]."""
    uses = []
    for match in USES.finditer(text):
        names, types = list(NAME.finditer(text, match.start(1), match.end(1))), re.findall(r"[\w!]+(?:<[^>]*>)?", match[2])
        if len(names) == len(types):
            uses += [(name.start(), name.end(), name[0], type) for name, type in zip(names, types)]
    uses += [(match.start(1), match.end(1), match[1], match[2]) for match in UNARY.finditer(text)]
    return uses


def change_tensor(rng, text):
    """An op reads another tensor of the same type."""
    uses = tensors_of(text)
    types = {name: type for _, _, name, type in uses}
    types.update(re.findall(r"(%arg\d+): (tensor<[^>]*>)", text))
    place = choose(rng, uses)
    if not place:
        return None
    begin, end, name, type = place
    line = text.rfind("\n", 0, begin)
    defined = set(re.findall(r"^ +(%\w+)(?::\d+)? = ", text[:line], re.MULTILINE))
    new = choose(rng, (other for other, its in types.items() if its == type and other != name and (other.startswith("%arg") or other.split("#")[0] in defined)))
    return new and ([(begin, end, new)], f"{name} to {new}, of {type}")


def exchange_tensors(rng, text):
    """Two tensors of one type change places, everywhere: K and V, say."""
    types = dict(re.findall(r"(%arg\d+): (tensor<[^>]*>)", text))
    first = choose(rng, types)
    second = choose(rng, (name for name in types if name != first and types[name] == types[first])) if first else None
    if not second:
        return None
    start = text.index("{\n", text.index("func.func"))
    edits = [(use.start(), use.end(), second if use[0] == first else first) for use in NAME.finditer(text, start) if use[0] in (first, second)]
    return edits, f"{first} and {second} change places"


LIMITS = {"f16": (0x7C00, 0xFC00, "-6.550400e+04"), "bf16": (0x7F80, 0xFF80, "-3.389530e+38"), "f32": (0x7F800000, 0xFF800000, "-3.40282347E+38"),
          "f64": (0x7FF0000000000000, 0xFFF0000000000000, "-1.7976931348623157E+308")}
CONSTANT = re.compile(r"(%\w+) = arith\.constant (dense<)?([\w.+-]+)(>)? : ((?:tensor<[^>]*?)?\b(?:x?))(f16|bf16|f32|f64|i1|i8|i32|i64|index)(>?)\n")


def number_of(text, type):
    if not text.startswith("0x"):
        return float(text)
    bits = int(text, 16)
    if type == "f64":
        return struct.unpack("<d", struct.pack("<Q", bits))[0]
    if type == "f32":
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    if type == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return float(np.array(bits, np.uint16).view(np.float16))


def other_constant(rng, text, type):
    if type == "i1":
        return "false" if text == "true" else "true"
    if type not in LIMITS:
        return another(rng, [str(int(text) + step) for step in (-1, 1, 2)] + ["0", "1", "-1"], text)
    value = number_of(text, type)
    top, bottom, lowest = LIMITS[type]
    numbers = ["0.0", "1.0", "-1.0", "5.0e-01", "1.0e-06", f"0x{top:X}", f"0x{bottom:X}", lowest]
    if np.isfinite(value) and value and abs(value) < 1e4:
        numbers += [f"{factor * value:.9e}" for factor in (0.5, 1.5, 2.0, -1.0, 1.05)]
    return choose(rng, (number for number in numbers if number_of(number, type) != value))


def change_constant(rng, text):
    """A constant is another number, for all who read it or for one."""
    place = choose(rng, (match for match in CONSTANT.finditer(text) if not match[2] or match[3].lower() not in ("", "[")))
    if not place:
        return None
    new = other_constant(rng, place[3], place[6])
    if new is None:
        return None
    what = f"constant {place[1]} of {place[6]}: {place[3]} to {new}"
    uses = [use for use in NAME.finditer(text, place.end()) if use[0] == place[1]]
    if len(uses) < 2 or rng.random() < 0.4:
        return [(place.start(3), place.end(3), new)], what
    use = rng.choice(uses)
    copy = text[place.start():place.start(3)].replace(place[1], "%changed", 1) + new + text[place.end(3):place.end()]
    return [(place.end(), place.end(), "    " + copy), (use.start(), use.end(), "%changed")], f"{what}, once"


FLOAT_PREDICATES = ["oeq", "ogt", "oge", "olt", "ole", "one", "ord", "ueq", "ugt", "uge", "ult", "ule", "une", "uno"]
INTEGER_PREDICATES = ["eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge"]


def change_predicate(rng, text):
    """A comparison asks something else."""
    place = choose(rng, re.finditer(r"arith\.cmp([fi]) (\w+),", text))
    new = place and another(rng, FLOAT_PREDICATES if place[1] == "f" else INTEGER_PREDICATES, place[2])
    return new and replaced(place, 2, new, "predicate")


OPERATIONS = [["arith.addf", "arith.subf", "arith.mulf", "arith.divf", "arith.maximumf", "arith.minimumf", "arith.maxnumf", "arith.minnumf"],
              ["math.exp", "math.exp2", "math.tanh", "math.sqrt", "math.absf", "arith.negf", "math.expm1", "math.sin"],
              ["arith.addi", "arith.subi", "arith.muli", "arith.andi", "arith.ori", "arith.xori", "arith.minsi", "arith.maxsi", "arith.maxui"], ["arith.extui", "arith.extsi"],
              ["arith.sitofp", "arith.uitofp"]]


def change_operation(rng, text):
    """An operation is another of the same types."""
    place = choose(rng, (match for match in re.finditer(r"= ((?:arith|math)\.\w+) ", text) if any(match[1] in group for group in OPERATIONS)))
    return place and replaced(place, 1, another(rng, next(group for group in OPERATIONS if place[1] in group), place[1]), "operation")


def exchange_cases(rng, text):
    """The cases of a select change places."""
    place = choose(rng, re.finditer(r"arith\.select %[\w#]+, (%[\w#]+), (%[\w#]+) :", text))
    return place and exchanged(place, 1, 2, "cases of a select")


def change_slice(rng, text):
    """A slice begins elsewhere, or steps further."""
    place = choose(rng, re.finditer(r"tensor\.(?:extract|insert)_slice [^\[\n]*\[([^\]]*)\] \[[^\]]*\] \[([^\]]*)\]", text))
    if not place:
        return None
    group = 1 if rng.random() < 0.8 else 2
    number = choose(rng, re.finditer(r"(?<![\w%])\d+", place[group]))
    if not number:
        return None
    begin = place.start(group) + number.start()
    new = max(0, int(number[0]) + rng.choice((-1, 1, 2, 8)))
    return [(begin, begin + len(number[0]), str(new))], f"slice: {number[0]} to {new}"


def change_permutation(rng, text):
    """Two dimensions of a transpose change places."""
    place = choose(rng, re.finditer(r"outs\(%[\w#]+ : (tensor<[^>]*>)\) permutation = \[([\d, ]+)\]", text))
    shape, order = (shape_of(place[1]), split(place[2])) if place else ([], [])
    pair = choose(rng, ((one, two) for one in range(len(order)) for two in range(one) if shape[one] == shape[two]))
    if not pair:
        return None
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    return replaced(place, 2, ", ".join(order), "permutation")


def change_concat(rng, text):
    """What is concatenated changes places."""
    place = choose(rng, re.finditer(r"tensor\.concat dim\(\d+\) (%[\w#]+), (%[\w#]+) : \((tensor<[^>]*>), (tensor<[^>]*>)\)", text))
    if not place:
        return None
    return [(place.start(group), place.end(group), place[other]) for group, other in ((1, 2), (2, 1), (3, 4), (4, 3))], "parts of a concat"


def change_reshape(rng, text):
    """Dimensions are collapsed or expanded in other groups."""
    place = choose(rng, re.finditer(r"tensor\.(?:collapse|expand)_shape %[\w#]+ \[(\[[\d, ]+\](?:, \[[\d, ]+\])+)\]", text))
    groups = [split(group) for group in re.findall(r"\[([\d, ]+)\]", place[1])] if place else []
    at = choose(rng, (number for number in range(len(groups) - 1) if len(groups[number]) + len(groups[number + 1]) > 2))
    if at is None:
        return None
    both = groups[at] + groups[at + 1]
    cut = another(rng, range(1, len(both)), len(groups[at]))
    groups[at:at + 2] = [both[:cut], both[cut:]]
    return replaced(place, 1, ", ".join(f"[{', '.join(group)}]" for group in groups), "groups")


def placed(rng, text, fits):
    """A use of a tensor of static shape that fits, and where the line of its op begins."""
    uses = []
    for begin, end, name, type in tensors_of(text):
        parsed = re.fullmatch(r"tensor<((?:\d+x)+)(\w+)>", type)
        shape = [int(extent) for extent in parsed[1].split("x")[:-1]] if parsed else []
        if shape and fits(shape):
            uses.append((begin, end, name, shape, parsed[2]))
    place = choose(rng, uses)
    return place and (*place, text.rindex("\n", 0, place[0]) + 1)


def tensor(shape, element):
    return f"tensor<{'x'.join(map(str, shape))}x{element}>"


def listed(numbers):
    return f"[{', '.join(map(str, numbers))}]"


def one_at(dim, shape, inside, outside):
    return [inside if number == dim else (extent if outside is None else outside) for number, extent in enumerate(shape)]


def placed_along(rng, text):
    """A place where a tensor is read that has more than one entry along some dimension, and such a dimension."""
    place = placed(rng, text, lambda shape: max(shape) > 1)
    return place and (*place, choose(rng, (number for number, extent in enumerate(place[3]) if extent > 1)))


def insert_roll(rng, text):
    """An op reads a tensor whose first entry along one dimension comes last."""
    place = placed_along(rng, text)
    if not place:
        return None
    begin, end, name, shape, element, line, dim = place
    rest, first = one_at(dim, shape, shape[dim] - 1, None), one_at(dim, shape, 1, None)
    zeros, ones, whole = listed([0] * len(shape)), listed([1] * len(shape)), tensor(shape, element)
    new = (f"    %rest = tensor.extract_slice {name}{listed(one_at(dim, shape, 1, 0))} {listed(rest)} {ones} : {whole} to {tensor(rest, element)}\n"
           f"    %first = tensor.extract_slice {name}{zeros} {listed(first)} {ones} : {whole} to {tensor(first, element)}\n"
           f"    %rolled = tensor.concat dim({dim}) %rest, %first : ({tensor(rest, element)}, {tensor(first, element)}) -> {whole}\n")
    return [(line, line, new), (begin, end, "%rolled")], f"{name} rolled along {dim}"


def insert_transpose(rng, text):
    """An op reads a tensor with two dimensions of one extent exchanged."""
    pairs = lambda shape: [(one, two) for one in range(len(shape)) for two in range(one) if shape[one] == shape[two] > 1]  # noqa: E731
    place = placed(rng, text, pairs)
    if not place:
        return None
    begin, end, name, shape, element, line = place
    one, two = choose(rng, pairs(shape))
    order = list(range(len(shape)))
    order[one], order[two] = two, one
    whole = tensor(shape, element)
    new = (f"    %target = tensor.empty() : {whole}\n"
           f"    %exchanged = linalg.transpose ins({name} : {whole}) outs(%target : {whole}) permutation = {listed(order)}\n")
    return [(line, line, new), (begin, end, "%exchanged")], f"{name} with {two} and {one} exchanged"


def insert_overwriting(rng, text):
    """An op reads a tensor whose first entry along one dimension is its last, too."""
    place = placed_along(rng, text)
    if not place:
        return None
    begin, end, name, shape, element, line, dim = place
    part = one_at(dim, shape, 1, None)
    ones, whole, slice = listed([1] * len(shape)), tensor(shape, element), tensor(part, element)
    new = (f"    %last = tensor.extract_slice {name}{listed(one_at(dim, shape, shape[dim] - 1, 0))} {listed(part)} {ones} : {whole} to {slice}\n"
           f"    %overwritten = tensor.insert_slice %last into {name}{listed([0] * len(shape))} {listed(part)} {ones} : {slice} into {whole}\n")
    return [(line, line, new), (begin, end, "%overwritten")], f"{name}: the last along {dim} over the first"


RULES = [change_map, permute_iterators, change_operand, exchange_operands, skip, change_tensor, exchange_tensors, change_constant, change_predicate, change_operation,
         exchange_cases, change_slice, change_permutation, change_concat, change_reshape, insert_roll, insert_transpose, insert_overwriting]
WEIGHTS = [4, 2, 3, 2, 2, 3, 1, 4, 2, 4, 1, 1, 1, 1, 1, 2, 1, 1]


def mutated(rng, text):
    """The text, changed once by a rule that finds a place, and what was done."""
    for _ in range(100):
        rule = rng.choices(RULES, WEIGHTS)[0]
        found = rule(rng, text)
        if found:
            edits, what = found
            line = line_of(text, min(begin for begin, _, _ in edits))
            for begin, end, new in sorted(edits, reverse=True):
                text = text[:begin] + new + text[end:]
            return text, f"line {line}: {rule.__name__}: {what}"
    return text, ""


# Inputs

FLOATS = (np.float16, np.float32, np.uint16)


class Inputs:
    """Random arguments of a graph, by its reference's: of their shapes and types, masks like masks, integers no larger than the reference's."""

    def __init__(self, graph, cases):
        self.arguments, _ = coverage.load(graph.arrays)
        names = cases[graph.path.name.split(".")[0]]["inputs"] if graph.producer == "onnx" else [""] * len(self.arguments)
        self.masks = [bool(MASK.search(name)) or self.hides(array) for name, array in zip(names, self.arguments, strict=True)]

    @staticmethod
    def hides(array):
        return array.dtype in (np.float16, np.float32) and array.size > 0 and array.min() < -1e4

    def random(self, seed):
        rng = np.random.default_rng(seed)
        return [self.like(rng, array, is_mask, seed) for array, is_mask in zip(self.arguments, self.masks)]

    def small(self, seed):
        """The same, but for floats that are no masks, which are so small that nothing overflows."""
        return [array if is_mask or array.dtype not in FLOATS else to_bfloat16(from_bfloat16(array) / 64) if array.dtype == np.uint16 else (array / 64).astype(array.dtype)
                for array, is_mask in zip(self.random(seed), self.masks)]

    def like(self, rng, array, is_mask, seed):
        if array.dtype == bool:
            shown = rng.random(array.shape) < 0.6
            return self.hide_rows(rng, shown, False) if seed % 2 else shown
        if array.dtype in FLOATS:
            values = rng.standard_normal(array.shape).astype(np.float32)
            if is_mask and seed % 2:  # one of two finite, as biases are
                values[rng.random(array.shape) < 0.4] = -np.inf
                values = self.hide_rows(rng, values, -np.inf)
            elif not is_mask:  # activations such that softmax prefers some tokens; weights as large as the reference's
                values *= 1 + seed % 3 / 2 if array.ndim > 2 else coverage.floats(array, array.dtype == np.uint16).std()
            return to_bfloat16(values) if array.dtype == np.uint16 else values.astype(array.dtype)
        if array.dtype == np.int8:
            return rng.integers(-127, 128, array.shape).astype(np.int8)
        return np.asarray(rng.integers(0, int(array.max(initial=0)) + 1, array.shape), array.dtype)

    @staticmethod
    def hide_rows(rng, array, value):
        """Some rows of a mask let nothing through."""
        if array.ndim:
            array[rng.random(array.shape[:-1]) < 0.3] = value
        return array


def from_bfloat16(bits):
    return coverage.floats(bits, True).astype(np.float32)


def to_bfloat16(values):
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# Widening

WIDER = {"f16": "f32", "bf16": "f32", "f32": "f64", "f64": "f64"}


def hexadecimal(value, type):
    return f"0x{struct.unpack('<I', struct.pack('<f', value))[0]:08X}" if type == "f32" else f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def widened(text):
    """The same graph with wider floats."""
    def constant(line):
        types = re.findall(r"(?:\b|x)(bf16|f16|f32)\b", line[0])
        return re.sub(r"\b0x[0-9A-Fa-f]+\b", lambda digits: hexadecimal(number_of(digits[0], types[-1]), WIDER[types[-1]]), line[0]) if types else line[0]

    text = re.sub(r"arith\.constant .*", constant, text)
    text = re.sub(r"(\b|x)(bf16|f16|f32)\b", lambda type: type[1] + WIDER[type[2]], text)
    return re.sub(r"arith\.(?:extf|truncf) (%\w+) : (\w+) to \2\b", r"arith.maximumf \1, \1 : \2", text)  # casts that are none any more


def bounded(text):
    """The same graph where exponentials are neither infinite nor, of finite scores, zero: of scores from which too little is taken off, the largest count, and one as much as the
    other; of those from which too much is, all count alike."""
    def bound(match):
        indent, name, function, value, type = match.groups()
        most, lowest, id = (300.0 if type == "f64" else 60.0), hexadecimal(-np.inf, type), name[1:]
        return "\n".join(indent + line for line in (
            f"%most_{id} = arith.constant {most} : {type}", f"%least_{id} = arith.constant {-most} : {type}", f"%lowest_{id} = arith.constant {lowest} : {type}",
            f"%capped_{id} = arith.minimumf {value}, %most_{id} : {type}", f"%raised_{id} = arith.maximumf %capped_{id}, %least_{id} : {type}",
            f"%hidden_{id} = arith.cmpf oeq, {value}, %lowest_{id} : {type}", f"%bounded_{id} = arith.select %hidden_{id}, {value}, %raised_{id} : {type}",
            f"{name} = {function} %bounded_{id} : {type}"))

    return re.sub(r"^( +)(%\w+) = (math\.exp2?) (%\w+) : (f32|f64)$", bound, text, flags=re.MULTILINE)


def widened_array(array):
    if array.dtype == np.uint16:
        return from_bfloat16(array)
    return array.astype({np.dtype(np.float16): np.float32, np.dtype(np.float32): np.float64}.get(array.dtype, array.dtype))


NAN = {"f16": 0x7E00, "bf16": 0x7FC0, "f32": 0x7FC00000, "f64": 0x7FF8000000000000}


def filled(text, number):
    """The same graph where what it leaves open is a number, NaN for a float and 0: memory that nobody has written yet, and integers of floats that lie beyond them. A graph that shows
    it says nothing."""
    def fill(match):
        indent, name, type = match.groups()
        element = re.search(r"(\w+)>$", type.replace("x", " "))[1]
        values = {"i1": "true" if number else "false", **{float: f"{number}.0 : {float}" if number else f"0x{bits:X} : {float}" for float, bits in NAN.items()}}
        constant = values.get(element, f"{number} : {element}")
        empty, scalar = f"%unwritten_{name[1:]}", f"%number_{name[1:]}"
        return (f"{indent}{empty}{match[0][len(indent) + len(name):]}\n{indent}{scalar} = arith.constant {constant}\n"
                f"{indent}{name} = linalg.fill ins({scalar} : {element}) outs({empty} : {type}) -> {type}")

    def convert(match):
        indent, name, sign, value, type, bits = match.groups()
        id, least, most = name[1:], -(2.0 ** (int(bits) - 1)) if sign == "s" else 0.0, 2.0 ** (int(bits) - (sign == "s"))
        widen = f"arith.extf {value} : {type} to f64" if type != "f64" else f"arith.maximumf {value}, {value} : f64"
        return "\n".join(indent + line for line in (
            f"%wide_{id} = {widen}", f"%whole_{id} = math.trunc %wide_{id} : f64",
            f"%least_{id} = arith.constant {least!r} : f64", f"%most_{id} = arith.constant {most!r} : f64", f"%none_{id} = arith.constant 0.0 : f64",
            f"%above_{id} = arith.cmpf oge, %whole_{id}, %least_{id} : f64", f"%below_{id} = arith.cmpf olt, %whole_{id}, %most_{id} : f64",
            f"%within_{id} = arith.andi %above_{id}, %below_{id} : i1", f"%fits_{id} = arith.select %within_{id}, %whole_{id}, %none_{id} : f64",
            f"%integer_{id} = arith.fpto{sign}i %fits_{id} : f64 to i{bits}", f"%beyond_{id} = arith.constant {number} : i{bits}",
            f"{name} = arith.select %within_{id}, %integer_{id}, %beyond_{id} : i{bits}"))

    text = re.sub(r"^( +)(%\w+) = arith\.fpto([su])i (%\w+) : (bf16|f16|f32|f64) to i([2-9]|[1-9]\d)$", convert, text, flags=re.MULTILINE)
    return re.sub(r"^( +)(%\w+) = tensor\.empty\([^)\n]*\) : (tensor<[^>]*>)$", fill, text, flags=re.MULTILINE)


# Comparing

np.seterr(over="ignore", invalid="ignore")  # results may be anything
TOLERANCES = {2.0**-24: 2e-4, 2.0**-11: 4e-3, 2.0**-8: 3.2e-2}  # by rounding unit; eight, where results and what is behind attention are rounded, and thousands of f32
UNCHECKED = "Runtime op verification failed"  # what an op of upstream's leaves undefined, and the compiler asserts


def results_of(module, arguments):
    return [coverage.floats(result, type.startswith("bfloat16")) for type, result in zip(module.results, coverage.call(module, arguments))]


def difference(got, want, tolerance):
    """The largest difference of one result as a share of what rounding may do; infinite where one is finite and the other is not."""
    if got.shape != want.shape:
        return np.inf
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    got, want = got[finite], want[finite]
    largest = max(np.abs(want).max(initial=0), 1e-30)
    got, want = got / largest, want / largest
    usual = np.sqrt((want**2).mean()) if want.size else 0.0
    return float((np.abs(got - want) / (tolerance * (np.abs(want) + usual) + 1e-30)).max(initial=0))


def differences(got, want, tolerance):
    return max((difference(*pair, tolerance) for pair in zip(got, want, strict=True)), default=0.0)


class Judge:
    """What becomes of a mutant. `say` is told of each step, so that whoever waits knows where a process ended."""

    def __init__(self, build, say=lambda step: None, reference=False):
        import alignedkv

        self.alignedkv, self.say, self.reference = alignedkv, say, reference
        self.cases = json.loads((coverage.GRAPHS / "onnx/cases.json").read_text())
        self.graphs = {f"{graph.producer}/{graph.name}": graph for graph in coverage.graphs()}
        self.inputs = {}

    def raised(self, text):
        return "aligned.attention" in coverage.raised_text(self.alignedkv, text)

    def vary(self, path, passes):
        """A graph behind some passes, if it is raised."""
        self.say(passes)
        try:
            text = self.alignedkv.transform(path.read_text(), f"builtin.module({passes})")
            self.say("raise")
            return ("raised", text) if self.raised(text) else ("refused", "")
        except self.alignedkv.Error as error:
            return "refused", coverage.first_line(error)

    def stand(self, mutant, seeds=(0, 1, 2)):
        self.say("compile as it stands")
        plain = self.compile(mutant.text)
        inputs = Inputs(self.graphs[mutant.graph], self.cases)
        for seed in seeds:
            self.say("run as it stands")
            try:
                coverage.call(plain, inputs.random(seed))
            except self.alignedkv.Error:
                pass
        return "runs", ""

    def compile(self, text, raised=False):
        if raised and self.reference:
            return self.alignedkv.Module(text, "target=reference")
        return self.alignedkv.compile(text, policy="exact", format="dense", raise_attention=raised)

    def judge(self, mutant, seeds=(0, 1, 2)):
        """A verdict, and what there is to say about it."""
        verdict, detail = self.compare(mutant, seeds)
        if verdict == "wrong" and self.is_undefined(mutant, seeds):
            return "undefined", detail
        return verdict, detail

    def is_undefined(self, mutant, seeds):
        """Whether the graph reads memory that it has not written, or lies out of bounds: nobody knows what it says."""
        self.say("run as it stands")
        try:
            runs = [Runs(self, mutant.text, self.compile(filled(mutant.text, number)), None) for number in (0, 3)]
        except self.alignedkv.Error:
            return False
        for seed in seeds:
            (first, refusal), (second, other) = (run.called("run as it stands", run.plain, self.inputs[mutant.graph].random(seed)) for run in runs)
            if UNCHECKED in refusal + other or (first is None) != (second is None):
                return True
            if first and not all(np.array_equal(*pair, equal_nan=True) for pair in zip(first, second)):
                return True
        return False

    def compare(self, mutant, seeds):
        self.say("parse")
        try:
            self.alignedkv.transform(mutant.text, "builtin.module()")
        except self.alignedkv.Error as error:
            return "invalid", coverage.first_line(error)
        self.say("raise")
        try:
            if not self.raised(mutant.text):
                return "refused", ""
        except self.alignedkv.Error as error:
            return "does not get through the phase", coverage.first_line(error)
        self.say("compile as it stands")
        try:
            plain = self.compile(mutant.text)
        except self.alignedkv.Error as error:
            return "does not compile as it stands", coverage.first_line(error)
        self.say("compile raised")
        try:
            raised = self.compile(mutant.text, raised=True)
        except self.alignedkv.Error as error:
            return "raised, but does not compile", coverage.first_line(error)
        graph = self.graphs[mutant.graph]
        inputs = self.inputs.setdefault(mutant.graph, Inputs(graph, self.cases))
        runs = Runs(self, mutant.text, plain, raised)
        for seed in seeds:  # before anything that stands has written out of bounds
            runs.called("run raised", raised, inputs.random(seed))
        for seed in seeds:
            wrong = runs.wrong(inputs.random(seed))
            if wrong and runs.overflows and (not runs.wrong(inputs.small(seed)) or runs.only_overflows(inputs.random(seed))):
                return "right, overflow aside", ""
            if wrong:
                return "wrong", f"inputs {seed}: {wrong}"
        return "right", ""


class Runs:
    """A graph as it stands and raised, side by side."""

    def __init__(self, judge, text, plain, raised):
        self.judge, self.text, self.plain, self.raised, self.wide = judge, text, plain, raised, None
        self.unit = coverage.rounding(text)
        self.overflows = False  # whether the last result of the graph as it stands was not finite

    def called(self, step, module, arguments):
        """Results, and why there are none."""
        self.judge.say(step)
        try:
            return results_of(module, arguments), ""
        except self.judge.alignedkv.Error as error:
            return None, coverage.first_line(error)

    def only_overflows(self, arguments):
        """Whether what is raised agrees with the graph as it stands, were its exponentials bounded."""
        try:
            plain = self.judge.compile(bounded(widened(self.text)))
        except self.judge.alignedkv.Error:
            return False
        exact, _ = self.called("run widened", plain, [widened_array(array) for array in arguments])
        got, _ = self.called("run raised again", self.raised, arguments)
        return exact is not None and got is not None and differences(got, exact, TOLERANCES[self.unit]) <= 1

    def disturbed(self, array):
        """Off by a unit of rounding."""
        signs = np.random.default_rng(1).choice((-1, 1), array.shape)
        return (array * (1 + self.unit * signs)).astype(array.dtype) if array.dtype in (np.float32, np.float64) else array

    def wrong(self, arguments):
        """What is wrong on these arguments, or nothing."""
        self.overflows = False
        want, refusal = self.called("run as it stands", self.plain, arguments)
        got, raised_refusal = self.called("run raised again", self.raised, arguments)
        if want is None or got is None:
            return "" if want is got else f"it refuses only raised: {raised_refusal}" if got is None else f"it refuses only as it stands: {refusal}"
        share = differences(got, want, TOLERANCES[self.unit])
        if share <= 1:
            return ""
        self.overflows = any(not np.isfinite(array).all() for array in want)
        self.judge.say("compile widened")
        try:
            self.wide = self.wide or self.judge.compile(widened(self.text))
        except self.judge.alignedkv.Error as error:
            return f"{share:.3g} times what rounding may do; it can't be widened: {coverage.first_line(error)}"
        exact, _ = self.called("run widened", self.wide, [widened_array(array) for array in arguments])
        wide_share = differences(got, exact, TOLERANCES[self.unit]) if exact else share
        if 1 < wide_share < 1000:  # what rounding of inputs does to a graph that is that sensitive
            disturbed, _ = self.called("run widened", self.wide, [self.disturbed(widened_array(array)) for array in arguments])
            wide_share /= max(1, 8 * differences(disturbed, exact, TOLERANCES[self.unit])) if disturbed else 1
        return f"{share:.3g} times what rounding may do, {wide_share:.3g} times of the widened graph" if wide_share > 1 else ""


# Running


def work(build, reference, connection):
    """The process that mutants run in."""
    judge = Judge(build, say=lambda step: connection.send(("step", step)), reference=reference)
    while True:
        task = connection.recv()
        if task is None:
            return
        connection.send(("verdict", *(judge.judge(task) if isinstance(task, Mutant) else judge.stand(task.mutant) if isinstance(task, Standing) else judge.vary(*task))))


class Worker:
    """A process. Judges mutants, one after the other; one that ends the process or takes too long is judged by where it did."""

    def __init__(self, build, reference):
        self.build, self.reference, self.process = build, reference, None

    def start(self):
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=work, args=(self.build, self.reference, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def judge(self, task):
        if not self.process:
            self.start()
        step = "start"
        self.connection.send(task)
        try:
            while self.connection.poll(TIME_LIMIT):
                kind, *said = self.connection.recv()
                if kind == "verdict":
                    return said
                step = said[0]
            what = f"takes more than {TIME_LIMIT} s"
        except (EOFError, ConnectionError):
            what = "crashes"
        self.process.kill()
        self.process.join()
        self.process = None
        return [f"{what} as it stands" if re.search("as it stands|widened|again", step) else what, f"at step: {step}"]

    def stop(self):
        if self.process:
            self.connection.send(None)
            self.process.join()
        self.process = None


# What is mutated of a graph: as it came, with named ops as generics, so that these have maps to change, without dimensions of 1, and with bodies of several ops.
VARIANTS = ["aligned-lower-tosa", "aligned-lower-tosa,func.func(linalg-generalize-named-ops)", "aligned-lower-tosa,func.func(linalg-fold-unit-extent-dims),canonicalize,cse",
            "aligned-lower-tosa,func.func(linalg-fuse-elementwise-ops),canonicalize,cse"]


class Workers:
    """Some of them, side by side."""

    def __init__(self, build, reference, jobs):
        self.idle = queue.SimpleQueue()
        for _ in range(jobs):
            self.idle.put(Worker(build, reference))
        self.threads = concurrent.futures.ThreadPoolExecutor(jobs)
        self.jobs = jobs

    def judge(self, task):
        worker = self.idle.get()
        try:
            return worker.judge(task)
        finally:
            self.idle.put(worker)

    def judged(self, tasks):
        """Each task and what became of it, in order."""
        tasks = iter(tasks)
        while some := list(itertools.islice(tasks, 8 * self.jobs)):
            yield from zip(some, self.threads.map(self.judge, some))

    def confirmed(self, mutant):
        """The same by a process that has seen no other; one that crashes as it stands, too, is out of bounds."""
        verdict, detail = self.alone(mutant)
        if verdict == "crashes" and self.alone(Standing(mutant))[0] != "runs":
            return "undefined", detail
        return verdict, detail

    def alone(self, task):
        worker = self.idle.get()
        worker.stop()
        try:
            return worker.judge(task)
        finally:
            worker.stop()
            self.idle.put(worker)

    def stop(self):
        while not self.idle.empty():
            self.idle.get().stop()
        self.threads.shutdown()


def sources(workers, only):
    """Graphs that raise, in all variants that do, small ones first; and what went wrong with others."""
    tasks = [(graph, passes) for graph in coverage.graphs() for passes in VARIANTS
             if graph.arrays is not None and graph.kind != "generic" and only in f"{graph.producer}/{graph.name}" and coverage.ELIDED not in graph.path.read_text()]
    found, bad = [], []
    for (graph, passes), (_, (verdict, text)) in zip(tasks, workers.judged((graph.path, passes) for graph, passes in tasks)):
        name = f"{graph.producer}/{graph.name}"
        if verdict == "raised":
            found.append((VARIANTS.index(passes), sum(array.size for array in coverage.load(graph.arrays)[0]), name, text))
        elif verdict != "refused":
            bad.append(f"{name} after {passes}: {verdict} {text}")
    return [(name, text) for _, _, name, text in sorted(found)], bad


def mutants(found, seed):
    """Without end, in turn from each graph, each text once."""
    seen = {text for _, text in found}
    number = 0
    while True:
        name, text = found[number % len(found)]
        rng = random.Random(f"{seed} {number}")
        text, change = mutated(rng, text)
        if rng.random() < 0.2:
            text, second = mutated(rng, text)
            change = f"{change}; {second}"
        number += 1
        if text not in seen:
            seen.add(text)
            yield Mutant(number, name, text, change)


BAD = ("wrong", "crashes", "raised, but does not compile", "does not get through the phase", f"takes more than {TIME_LIMIT} s")


def keep(folder, mutant, verdict, detail):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{mutant.graph.replace('/', '-')}-{mutant.number}.mlir"
    path.write_text(f"// {verdict}: {detail}\n// graph: {mutant.graph}\n// {mutant.change}\n{mutant.text}")
    return path


def replay(workers, path):
    try:
        text = path.read_text()
    except OSError as error:
        sys.exit(f"mutate: error: {path}: expected a readable file, got: {error.strerror}")
    graph = re.search(r"^// graph: (\S+)$", text, re.MULTILINE)
    if not graph or graph[1] not in {f"{graph.producer}/{graph.name}" for graph in coverage.graphs()}:
        sys.exit(f"mutate: error: {path}: expected a line '// graph: NAME' with a graph of test/data/graphs, {'got ' + repr(graph[1]) if graph else 'found none'}")
    verdict, detail = workers.confirmed(Mutant(0, graph[1], text, ""))
    workers.stop()
    print(f"{verdict} {detail}".strip())
    return 1 if verdict in BAD else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="folder of the build, such as build")
    parser.add_argument("--count", type=int, default=2000, help="mutants that verify (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="other mutants for other seeds (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that judge (default one for each core)")
    parser.add_argument("--only", default="", metavar="TEXT", help="graphs whose name contains this")
    parser.add_argument("--keep", default="", metavar="FOLDER", help="where mutants that are wrong are kept (default BUILD/mutants)")
    parser.add_argument("--replay", metavar="FILE", help="judge one mutant that was kept")
    parser.add_argument("--reference", action="store_true", help="run what is raised in float64, as its ops are defined, which compiles faster, instead of by kernels at policy exact")
    parser.add_argument("--verbose", action="store_true", help="print every mutant with what became of it")
    given = parser.parse_args()
    for option in ("count", "jobs"):
        if getattr(given, option) < 1:
            parser.error(f"expected --{option} of 1 or more, got {getattr(given, option)}")
    build = pathlib.Path(given.build).resolve()
    os.environ["ALIGNED_CACHE_DIR"] = "off"  # no mutant comes twice
    coverage.find_package(build, parser)
    workers = Workers(build, given.reference, given.jobs)
    if given.replay:
        return replay(workers, pathlib.Path(given.replay))
    start = time.monotonic()
    found, bad = sources(workers, given.only)
    for line in bad:
        print(f"WRONG {line}", flush=True)
    if not found:
        sys.exit("mutate: error: expected a graph that is raised, found none" + (f" of the name {given.only!r}" if given.only else ""))
    print(f"{len(found)} texts of {len({name for name, _ in found})} graphs that are raised", flush=True)
    counts, by_rule = collections.Counter(), collections.defaultdict(collections.Counter)
    folder = pathlib.Path(given.keep) if given.keep else build / "mutants"
    invalid = 0
    for mutant, (verdict, detail) in workers.judged(mutants(found, given.seed)):
        if verdict in BAD:  # which may be the work of a mutant before it that wrote out of bounds
            verdict, detail = workers.confirmed(mutant)
        if given.verbose:
            print(f"{mutant.graph} {mutant.number}: {verdict} {detail}: {mutant.change}", flush=True)
        if verdict == "invalid":
            invalid += 1
            continue
        counts[verdict] += 1
        by_rule[re.search(r": (\w+):", mutant.change)[1]]["raised" if verdict.startswith(("right", *BAD)) else "refused"] += 1
        if verdict in BAD:
            path = keep(folder, mutant, verdict, detail)
            print(f"{verdict.upper()} {path}: {detail}\n    {mutant.change}", flush=True)
        done = sum(counts.values())
        if done % 250 == 0 and not given.verbose:
            print(f"{done} of {given.count} after {time.monotonic() - start:.0f} s", flush=True)
        if done >= given.count:
            break
    workers.stop()
    if given.verbose:
        for rule, of_rule in by_rule.items():
            print(f"{rule}: {of_rule['raised']} raised, {of_rule['refused']} refused")
    wrong = len(bad) + sum(counts[verdict] for verdict in BAD)
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda item: -item[1]))
    print(f"{sum(counts.values())} mutants in {time.monotonic() - start:.0f} s: {said}; {invalid} did not verify")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
