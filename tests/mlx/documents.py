"""Batches of documents as MLX arrays, in both forms, and what the oracle says of them."""

import mlx.core as mx
import numpy as np

import vicinal.mlx as na
from tests import budget, oracle
from tests.documents import clipped
from tests.mlx.problems import array, random
from vicinal.mlx import ops

NAMES = {"extra_key": "additional_keys", "extra_value": "additional_values"}


class Packed:
    """Documents one after another."""

    def __init__(self, case):
        self.layout = na.VarlenLayout(case.shapes)
        self.outputs = self.layout.sampled(case.output_stride)

    def join(self, documents, outputs=False):
        return (self.outputs if outputs else self.layout).pack(documents)

    def split(self, x, outputs=False, blank=0.0):
        return (self.outputs if outputs else self.layout).split(x)

    def call(self, query, key, value, **options):
        return na.neighborhood_attention_packed(query, key, value, self.layout, **options)


class Padded:
    """Documents in the corners of a batch whose padding is NaN."""

    def __init__(self, case):
        self.shapes, self.outputs = case.shapes, tuple(map(case.outputs, case.shapes))
        self.frame = tuple(max(extents) + 1 for extents in zip(*case.shapes, strict=True))
        self.frames = case.outputs(self.frame)

    def join(self, documents, outputs=False):
        frame = self.frames if outputs else self.frame
        x = np.full((len(documents), *frame, *documents[0].shape[len(frame) :]), np.nan, np.float32)
        for document, entry in zip(documents, x, strict=True):
            entry[tuple(map(slice, document.shape[: len(frame)]))] = np.array(document.astype(mx.float32))
        return mx.array(x).astype(documents[0].dtype)

    def split(self, x, outputs=False, blank=0.0):
        """Documents of a padded batch; asserts that all else is `blank`."""
        left, found = np.array(x.astype(mx.float32)), []
        for shape, entry, rest in zip(self.outputs if outputs else self.shapes, x, left, strict=True):
            found.append(entry[tuple(map(slice, shape))])
            rest[tuple(map(slice, shape))] = blank
        assert (left == blank).all()
        return found

    def call(self, query, key, value, **options):
        return na.neighborhood_attention_varlen(query, key, value, mx.array(self.shapes), **options)


FORMS = {"packed": Packed, "padded": Padded}


def drawn(case, seed):
    """Operands by name, those of tokens as lists of documents, and what flows back."""
    generator = np.random.default_rng(seed)
    draw = lambda *shape, dtype=case.dtype: random(generator, shape, dtype)  # noqa: E731
    keys, values = (case.kv_heads, case.dim), (case.kv_heads, case.value_dim)
    widths = {"query": (case.heads, case.dim), "key": keys, "value": values}
    tokens = {name: [draw(*shape, *width) for shape in case.shapes] for name, width in widths.items()}
    rest = {}
    if case.bias:
        rest["bias"] = draw(case.heads, *(2 * size - 1 for size in case.kernel_size))
    if case.extra:
        rest["extra_key"] = draw(len(case.shapes), case.extra, *keys)
        rest["extra_value"] = draw(len(case.shapes), case.extra, *values)
    outputs = [(*case.outputs(shape), case.heads) for shape in case.shapes]
    flow_out = [draw(*shape, case.value_dim) for shape in outputs]
    return tokens, rest, flow_out, [draw(*shape, dtype="float32") for shape in outputs]


def attention(made, case, names, backend=None):
    """The function of operands in the order of `names`, in a form, to its output and log-sum-exp."""

    def attend(*given):
        named = {NAMES.get(name, name): x for name, x in zip(names, given, strict=True)}
        return made.call(**named, **case.window, fit=case.fit, return_lse=True, backend=backend)

    return attend


def run(form_of, case, given, backend=None):
    """Output, log-sum-exp, and the gradients of all operands that `drawn` gave, by name."""
    tokens, rest, flow_out, flow_lse = given
    made = form_of(case)
    every = {**{name: made.join(x) for name, x in tokens.items()}, **rest}
    flow = [made.join(flow_out, outputs=True), made.join(flow_lse, outputs=True)]
    attend = attention(made, case, every, backend)
    (out, lse), found = mx.vjp(attend, list(every.values()), flow)
    return out, lse, dict(zip(every, found, strict=True))


def check(form_of, case, seed=0, backend=None):
    """Outputs, log-sum-exps and all gradients."""
    # A GPU's matrix units take weights of the dtype; on a CPU they stay float32.
    rounded = ops.device() != "cpu" and case.dtype != "float32"
    given, made = drawn(case, seed), form_of(case)
    tokens, rest, flow_out, flow_lse = given
    out, lse, grads = run(form_of, case, given, backend)
    outs, lses = made.split(out, outputs=True), made.split(lse, outputs=True, blank=-np.inf)
    split = {name: made.split(grads[name]) for name in tokens}
    total = np.zeros(rest["bias"].shape) if case.bias else None
    for place, shape in enumerate(case.shapes):
        extra = {name: rest[name][place : place + 1] for name in rest if name != "bias"}
        if 0 in shape:
            assert all(not grads[name][place].any() for name in extra)
            continue
        sizes, part, bias = clipped(case, shape, array(rest["bias"]) if case.bias else None)
        mine = {name: x[place][None] for name, x in tokens.items()} | extra
        answer = oracle.attend(
            **{name: array(x) for name, x in mine.items()},
            bias=bias,
            win=oracle.window(case.rank, **{**case.window, "kernel_size": sizes}),
            scale=case.dim**-0.5,
            grad_out=array(flow_out[place][None]),
            grad_lse=array(flow_lse[place][None]),
        )
        budget.check(f"out {place}", array(outs[place][None]), answer.out, case.dtype, rounded)
        budget.check(f"lse {place}", array(lses[place][None]), answer.lse, "float32")
        for name in mine:
            got = split[name][place] if name in tokens else grads[name][place]
            budget.check(f"{name} {place}", array(got[None]), getattr(answer, name), case.dtype, rounded)
        if total is not None:
            total[part] += answer.bias
    if total is not None:
        budget.check("bias", array(grads["bias"]), total, case.dtype, rounded)


def check_bits(form_of, case, backend):
    """Results, and gradients of tokens, of documents of one shape are those of the fixed-shape function."""
    given, made = drawn(case, 0), form_of(case)
    tokens, rest, flow_out, flow_lse = given
    out, lse, grads = run(form_of, case, given, backend)
    split = [made.split(out, outputs=True), made.split(lse, outputs=True, blank=-np.inf)]
    split += [made.split(grads[name]) for name in tokens]
    shapes = {shape: [place for place, x in enumerate(case.shapes) if x == shape] for shape in case.shapes}
    for shape, places in shapes.items():
        if 0 in shape:
            continue
        sizes, part, _ = clipped(case, shape, None)
        window = {**case.window, "kernel_size": sizes, "stride": tuple(map(min, case.stride, sizes))}
        mine = {name: mx.stack([x[place] for place in places]) for name, x in tokens.items()}
        mine |= {NAMES.get(name, name): x[mx.array(places)] for name, x in rest.items() if name != "bias"}
        if case.bias:
            mine["bias"] = rest["bias"][part]

        def attend(*given, names=tuple(mine), window=window):
            named = dict(zip(names, given, strict=True))
            return na.neighborhood_attention(**named, **window, return_lse=True, backend=backend)

        flow = [mx.stack([x[place] for place in places]) for x in (flow_out, flow_lse)]
        results, found = mx.vjp(attend, list(mine.values()), flow)
        for got, want in zip(split, (*results, *found[:3]), strict=True):
            assert mx.array_equal(mx.stack([got[place] for place in places]), want)
