"""Who is measured: the project's kernels under each policy, and what others compute the same attention with.

A contestant is made for a cell and its steps. It gives its `outputs`, one for each step, which are compared before anything is timed; and a `graph`, which
runs all steps once when it is launched. Of one `family` only the fastest is timed with care. Whatever can't be had raises: Refused where the reason is
known, anything else where another library fails.
"""

import itertools

import numpy as np

import cuda
from cuda import Refused

LIMIT = 0.05  # relative L2 error beyond which a result is wrong


class Contestant:
    limit = LIMIT
    read_bits = None  # bits of each key and value that are read
    moved = None  # bytes that are read and written, where it is no attention

    def __init__(self, name, family=None):
        self.name, self.family = name, family or name

    def bytes_read(self, cell):
        """In one step."""
        return cell.dense_bytes


# The project's own


class PlaneCaches:
    """Keys and values of all steps in bit planes of one format, shared by the policies that read it."""

    SPARE = 128  # tokens that captured steps may append
    CHUNK = 16384  # tokens that are appended at a time

    def __init__(self, program, arrays, cell, steps, timed):
        self.pairs, self.seconds = [], []
        shape, library = cell.shape, program.library
        strides = (shape.kv_heads * cell.context * shape.head_dim, cell.context * shape.head_dim, shape.head_dim, 1)
        for step in steps:
            pair = []
            for format, tokens in ((program.site.key, step.key), (program.site.value, step.value)):
                cache, placed = program.cache(format, cell.batch, cell.context + self.SPARE), arrays.on_device(tokens)
                for start in range(0, cell.context, self.CHUNK):
                    data, count = arrays.pointer(placed) + 2 * start * shape.head_dim, min(self.CHUNK, cell.context - start)
                    if timed:
                        before, after = library.event(), library.event()
                        library.aligned_cuda_event_record(before.value)
                    program.append(cache, data, count, strides)
                    if timed:
                        library.aligned_cuda_event_record(after.value)
                        seconds = 1e-6 * library.aligned_cuda_event_microseconds(before.value, after.value)
                        self.seconds.append((2 * cell.batch * shape.kv_heads * count * shape.head_dim, seconds))
                library.aligned_cuda_synchronize()
                pair.append(cache)
            self.pairs.append(pair)

    def throughput(self):
        """Bytes of dense tokens that become planes in a second, the first piece of all left out."""
        rates = sorted(size / seconds for size, seconds in self.seconds[1:] if seconds > 0)
        return rates[len(rates) // 2] if rates else None


class Own(Contestant):
    """A program of the compiler. `dense`: it takes arrays in the place of caches."""

    @staticmethod
    def named(policy, splits=0, tuning=()):
        return " ".join([f"aligned {policy}", *(f"{name}={value}" for name, value in ((("splits", splits),) if splits else ()) + tuning)])

    def __init__(self, policy, program, arrays, cell, steps, caches, splits=0, tuning=()):
        super().__init__(self.named(policy, splits, tuning))
        self.program, self.arrays, self.cell, self.steps = program, arrays, cell, steps
        shape, library = cell.shape, program.library
        offered = {name for name, _ in library.headers.structure("aligned_decode_call")._fields_}
        if splits and "splits" not in offered:
            raise Refused("expected a runtime that takes a number of splits, got one that chooses it")
        if caches is None and "dense_key" not in offered:
            raise Refused("expected a runtime that takes dense caches, got one that does not")
        # What the calls point to lives as long as this.
        self.queries = [arrays.on_device(step.query) for step in steps]
        rows = (cell.batch, shape.kv_heads, shape.group)
        self.results = [(arrays.output((*rows, shape.head_dim)), arrays.output(rows), arrays.output(rows)) for _ in steps]
        self.caches, self.dense = caches, []
        if caches is None:
            self.lengths = arrays.on_device(arrays.array(np.full(cell.batch, cell.context, np.int64)))
            self.dense = [(arrays.on_device(step.key), arrays.on_device(step.value)) for step in steps]
        self.chip = program.chip
        self.calls = [self._call(number, splits) for number in range(len(steps))]

    def _call(self, number, splits):
        pointer = self.arrays.pointer
        acc, largest, total = map(pointer, self.results[number])
        call = self.program.library.new("aligned_decode_call", batch=self.cell.batch, query=pointer(self.queries[number]), scale=self.cell.scale,
                                        location=cuda.LOCATION_CUDA, acc=acc, max=largest, sum=total)
        if self.caches:
            call.key, call.value = (cache.value for cache in self.caches.pairs[number])
        else:
            call.dense_key, call.dense_value = map(pointer, self.dense[number])
            call.lengths, call.capacity = pointer(self.lengths), self.cell.context
        if splits:
            call.splits = splits
        return call

    def outputs(self):
        for number, call in enumerate(self.calls):
            if number or not self.caches:
                self.program.decode(call)
            else:
                tally = self.program.decode_recorded(call)
                self.read_bits = tally.key_bits / tally.key_values, tally.value_bits / tally.value_values
        self.program.library.aligned_cuda_synchronize()
        for acc, _, total in self.results:
            yield self.arrays.read(acc) / self.arrays.read(total)[..., None]

    def bytes_read(self, cell):
        return cell.dense_bytes * sum(self.read_bits) / 32 if self.read_bits else cell.dense_bytes

    def graph(self):
        graph = self.program.capture(self.calls)
        return _launcher(self.program.library, graph)

    def append_graph(self):
        """As `graph`, each step with one token appended before. The tokens are the newest ones once more."""
        placed = [tuple(self.arrays.on_device(x[:, :, -1:]) for x in (step.key, step.value)) for step in self.steps]
        graph = self.program.capture(self.calls, [tuple(map(self.arrays.pointer, pair)) for pair in placed])
        return _launcher(self.program.library, graph, placed)


def _launcher(library, graph, *kept):
    def launch():
        library.aligned_graph_launch(graph.value)

    launch.kept = graph, kept
    return launch


# PyTorch


class TorchContestant(Contestant):
    """Something that runs on PyTorch's current stream. `step(number)` gives the output of a step, [batch, heads, 1, head_dim] in any grouping."""

    def __init__(self, name, family, torch, cell, steps):
        super().__init__(name, family)
        self.torch, self.cell, self.steps = torch, cell, steps

    def outputs(self):
        for number, step in enumerate(self.steps):
            yield self.step(number).reshape(step.query.shape)

    def graph(self):
        self.step(0)  # what a first call allocates or compiles is not captured
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.torch.cuda.current_stream()):
            kept = [self.step(number) for number in range(len(self.steps))]

        def launch():
            graph.replay()

        launch.kept = kept
        return launch


class Sdpa(TorchContestant):
    """scaled_dot_product_attention of one backend, in one of the forms that decoding can take there."""

    BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
    FORMS = ("folded", "grouped", "expanded")  # the same where each kv head has one query head

    def __init__(self, backend, form, torch, cell, steps):
        super().__init__(f"torch {backend} {form}", f"torch {backend}", torch, cell, steps)
        self.backend, self.form = getattr(torch.nn.attention.SDPBackend, self.BACKENDS[backend]), form
        self.inputs = [self._inputs(step) for step in steps]

    def _inputs(self, step):
        batch, kv_heads, group, dim = step.query.shape
        if self.form == "folded":  # query heads as queries of their kv head; no mask tells them apart
            return step.query, step.key, step.value
        query = step.query.reshape(batch, kv_heads * group, 1, dim)
        if self.form == "grouped":
            return query, step.key, step.value
        return query, *(x.repeat_interleave(group, 1) for x in (step.key, step.value))

    def step(self, number):
        attend = self.torch.nn.functional.scaled_dot_product_attention
        options = {"enable_gqa": True} if self.form == "grouped" else {}
        with self.torch.nn.attention.sdpa_kernel(self.backend):
            return attend(*self.inputs[number], scale=self.cell.scale, **options)

    def bytes_read(self, cell):
        return cell.dense_bytes * (cell.shape.group if self.form == "expanded" else 1)


class SplitFlash(TorchContestant):
    """Flash attention over stretches of the cache as if they were batch entries, and a merge of their softmax states: keeps all multiprocessors busy where
    a backend would not."""

    LEAST, MOST = 128, 8192  # tokens of a stretch; stretches in all, which keep any device busy

    def __init__(self, stretches, torch, cell, steps):
        super().__init__(f"torch flash {stretches} stretches", "torch flash", torch, cell, steps)
        self.stretches = stretches

    def step(self, number):
        torch, step = self.torch, self.steps[number]
        batch, kv_heads, group, dim = step.query.shape
        cut = lambda x: x.view(batch * kv_heads * self.stretches, 1, -1, dim)
        query = cut(step.query[:, :, None].expand(-1, -1, self.stretches, -1, -1).reshape(-1, group, dim))
        attend = torch.ops.aten._scaled_dot_product_flash_attention if query.is_cuda else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse, *_ = attend(query, cut(step.key), cut(step.value), 0.0, False, scale=self.cell.scale)
        lse = lse.reshape(batch * kv_heads, self.stretches, group)
        weights = torch.softmax(lse, 1)[..., None]
        return (out.reshape(batch * kv_heads, self.stretches, group, dim) * weights).sum(1)


class FlashInfer(TorchContestant):
    """FlashInfer's decoding over pages, as serving engines call it; `fp8`: with a cache of e4m3, without scales."""

    PAGE = 64

    def __init__(self, flashinfer, tensor_cores, fp8, torch, cell, steps):
        name = f"flashinfer {'fp8 ' if fp8 else ''}{'tensor cores' if tensor_cores else 'cuda cores'}"
        super().__init__(name, "flashinfer fp8" if fp8 else "flashinfer", torch, cell, steps)
        shape, device = cell.shape, steps[0].key.device
        ints = {"dtype": torch.int32, "device": device}
        if cell.context % self.PAGE:
            raise Refused(f"expected a context of whole pages of {self.PAGE} tokens, got {cell.context}")
        self.fp8 = fp8
        if fp8:
            self.limit = 0.25  # three bits of mantissa: what it stores is so far off
        pages = cell.context // self.PAGE
        indptr = torch.arange(cell.batch + 1, **ints) * pages
        indices, last = torch.arange(cell.batch * pages, **ints), torch.full((cell.batch,), self.PAGE, **ints)
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_cuda_graph=True, use_tensor_cores=tensor_cores, paged_kv_indptr_buffer=indptr.clone(),
            paged_kv_indices_buffer=indices.clone(), paged_kv_last_page_len_buffer=last.clone())
        kept = torch.float8_e4m3fn if fp8 else steps[0].key.dtype
        self.wrapper.plan(indptr, indices, last, shape.heads, shape.kv_heads, shape.head_dim, self.PAGE, pos_encoding_mode="NONE",
                          q_data_type=steps[0].query.dtype, kv_data_type=kept, sm_scale=cell.scale)
        self.inputs = [(step.query.reshape(cell.batch, shape.heads, shape.head_dim), tuple(self._pages(x, kept) for x in (step.key, step.value)))
                       for step in steps]

    def _pages(self, tokens, kept):
        batch, heads, context, dim = tokens.shape
        return tokens.view(batch, heads, -1, self.PAGE, dim).transpose(1, 2).reshape(-1, heads, self.PAGE, dim).to(kept)

    def step(self, number):
        return self.wrapper.run(*self.inputs[number])

    def bytes_read(self, cell):
        return cell.dense_bytes // (2 if self.fp8 else 1)


class Copy(Contestant):
    """A copy in device memory: the bandwidth that there is."""

    BYTES = 512 << 20

    def __init__(self, torch):
        super().__init__("copy")
        self.torch = torch
        self.source = torch.ones(self.BYTES, dtype=torch.uint8, device="cuda")
        self.target = torch.empty_like(self.source)
        self.moved = 2 * self.BYTES

    def graph(self):
        return lambda: self.target.copy_(self.source)


def makers(bench, cell, steps):
    """Name and function of each contestant in this cell, the most telling first."""
    own = [(Own.named(*variant), lambda variant=variant: bench.own(variant[0], cell, steps, *variant[1:]))
           for variant in itertools.product(bench.policies, bench.splits, bench.tunings)]
    if bench.torch is None:
        return own, {"torch, flashinfer, copy": bench.no_torch}
    torch, cpu = bench.torch, bench.arrays.device != "cuda"
    others = [(f"torch {backend} {form}", lambda backend=backend, form=form: Sdpa(backend, form, torch, cell, steps))
              for form in Sdpa.FORMS[:1 if cell.shape.group == 1 else None] for backend in (("flash", "math") if cpu else ("flash", "cudnn", "efficient"))]
    others += [(f"torch flash {count} stretches", lambda count=count: SplitFlash(count, torch, cell, steps)) for count in (4, 16, 64)
               if cell.context % count == 0 and cell.context // count >= SplitFlash.LEAST and count * cell.batch * cell.shape.kv_heads <= SplitFlash.MOST]
    skipped = {}
    if bench.flashinfer:
        others += [(f"flashinfer {'fp8 ' if fp8 else ''}{'tensor' if cores else 'cuda'} cores",
                    lambda cores=cores, fp8=fp8: FlashInfer(bench.flashinfer, cores, fp8, torch, cell, steps)) for fp8 in (False, True) for cores in (True, False)]
    else:
        skipped["flashinfer"] = bench.no_flashinfer
    if cpu:
        skipped["copy"] = "expected tensors on a GPU, got a CPU's"
    else:
        others.append(("copy", lambda: Copy(torch)))
    return own + others, skipped
