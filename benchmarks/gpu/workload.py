"""What is measured: decode steps of some shapes, and the policies that they are compiled for.

A program is compiled for a shape and a policy; batch and context are known when it runs.
"""

import dataclasses

CHIPS = ("sm_100", "sm_90", "sm_80")  # newest first; a device takes the first that it runs
POLICIES = ("balanced", "exact", "tight", "fast", "alignedkv")
PROGRAMS = (*POLICIES, "dense")  # dense: caches as arrays, nothing in planes
REFUSABLE = ("alignedkv", "dense")  # programs that the compiler may refuse: left out then


@dataclasses.dataclass(frozen=True)
class Shape:
    element: str
    kv_heads: int
    group: int  # query heads for each kv head
    head_dim: int

    @property
    def name(self):
        return f"{self.element}-{self.kv_heads}x{self.group}-{self.head_dim}"

    @property
    def heads(self):
        return self.kv_heads * self.group

    def module(self):
        """MLIR text of one attention; the scale is an argument of the launch."""

        def tensor(heads, tokens, element=self.element):
            return f"tensor<1x{heads}x{tokens}x{self.head_dim}x{element}>"

        query, cache, out = tensor(self.heads, 1), tensor(self.kv_heads, "?"), tensor(self.heads, 1, "f32")
        return f"""func.func @decode(%q: {query}, %k: {cache}, %v: {cache}) -> {out} {{
  %scale = arith.constant 0.125 : f32
  %out = aligned.attention %q, %k, %v scale %scale : {query}, {cache}, {cache} -> {out}
  return %out : {out}
}}
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    shape: Shape
    batch: int
    context: int

    @property
    def name(self):
        tokens = f"{self.context // 1024}k" if self.context % 1024 == 0 else str(self.context)
        return f"b{self.batch}-{tokens}-{self.shape.name}"

    @property
    def scale(self):
        return self.shape.head_dim**-0.5

    @property
    def dense_bytes(self):
        """Of keys and values in 16 bits: what a dense kernel reads in a step."""
        return 2 * 2 * self.batch * self.shape.kv_heads * self.context * self.shape.head_dim


SHAPES = tuple(Shape(element, kv_heads, 32 // kv_heads, head_dim) for head_dim in (128, 64) for kv_heads in (8, 32) for element in ("f16", "bf16"))


def _cells():
    """The most telling sizes of each shape, then the rest; the run stops where its time is over."""
    sizes = [(8, 32), (1, 128), (32, 8), (1, 32), (8, 128), (32, 32), (1, 8), (8, 8), (32, 128)]
    first, few = SHAPES[0], 3
    order = [(first, size) for size in sizes]
    order += [(shape, size) for shape in SHAPES[1:] for size in sizes[:few]]
    order += [(shape, size) for size in sizes[few:] for shape in SHAPES[1:]]
    return tuple(Cell(shape, batch, 1024 * context) for shape, (batch, context) in order)


CELLS = _cells()

# For the interpreter: odd lengths, 1 and 4 query heads for each kv head.
SMALL_CELLS = (
    Cell(Shape("f16", 8, 4, 128), 1, 1000),
    Cell(Shape("f16", 32, 1, 128), 1, 321),
    Cell(Shape("f16", 8, 4, 64), 2, 467),
    Cell(Shape("f16", 32, 1, 64), 1, 450),
    Cell(Shape("bf16", 8, 4, 128), 1, 500),
)
