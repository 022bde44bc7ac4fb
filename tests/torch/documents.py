"""Batches of documents as tensors, in both forms, and what the oracle says of them."""

import numpy as np
import torch

import vicinal.torch as na
from tests import budget, oracle
from tests.documents import clipped
from tests.torch.problems import array
from vicinal.torch.strips import bundle


def gaining(monkeypatch, share):
    """Documents are computed together where that takes `share` of their time alone."""
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(bundle, name, getattr(bundle, name)._replace(gain=share))
    bundle.bundles.cache_clear()


class Drawn:
    """Random operands of a case: lists of documents, and what is not of tokens."""

    def __init__(self, case, seed=0):
        self.case, self.generator = case, torch.Generator().manual_seed(seed)
        keys, values = (case.kv_heads, case.dim), (case.kv_heads, case.value_dim)
        self.tokens = {
            "query": self.documents((case.heads, case.dim)),
            "key": self.documents(keys),
            "value": self.documents(values),
        }
        self.rest = {}
        if case.bias:
            self.rest["bias"] = self.draw(case.heads, *(2 * size - 1 for size in case.kernel_size))
        if case.extra:
            self.rest["extra_key"] = self.draw(len(case.shapes), case.extra, *keys)
            self.rest["extra_value"] = self.draw(len(case.shapes), case.extra, *values)

    def draw(self, *shape, dtype=None):
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(getattr(torch, dtype or self.case.dtype))

    def documents(self, token, dtype=None):
        return [self.draw(*shape, *token, dtype=dtype) for shape in self.case.shapes]

    def flow(self):
        """Cotangents of outputs and log-sum-exps, by document."""
        wide = "float64" if self.case.dtype == "float64" else "float32"
        token = (self.case.heads,)
        shapes = [self.case.outputs(shape) for shape in self.case.shapes]
        out = [self.draw(*shape, *token, self.case.value_dim) for shape in shapes]
        return out, [self.draw(*shape, *token, dtype=wide) for shape in shapes]


class Packed:
    """Documents one after another."""

    def __init__(self, case):
        self.layout = na.VarlenLayout(case.shapes)
        self.outputs = self.layout.sampled(case.output_stride)

    def join(self, documents):
        """Documents in one tensor."""
        return self.layout.pack(documents)

    def flow(self, documents):
        """What flows into results."""
        return self.outputs.pack(documents)

    def tokens(self, x):
        return self.layout.split(x)

    def results(self, x, blank=0.0):
        return self.outputs.split(x)

    def function(self, query, key, value, **options):
        return na.neighborhood_attention_packed(query, key, value, self.layout, **options)


class Padded:
    """Documents in the corners of a batch whose padding is NaN."""

    def __init__(self, case):
        self.shapes, self.outputs = case.shapes, tuple(map(case.outputs, case.shapes))
        self.frame = tuple(max(extents) + 1 for extents in zip(*case.shapes, strict=True))
        self.case = case

    def join(self, documents):
        return _framed(documents, self.frame)

    def flow(self, documents):
        return _framed(documents, self.case.outputs(self.frame))

    def tokens(self, x):
        return _corners(x, self.shapes, 0.0)

    def results(self, x, blank=0.0):
        return _corners(x, self.outputs, blank)

    def function(self, query, key, value, **options):
        sizes = torch.tensor(self.shapes, dtype=torch.int32)
        return na.neighborhood_attention_varlen(query, key, value, sizes, **options)


def _framed(documents, frame):
    rank = len(frame)
    x = documents[0].new_full((len(documents), *frame, *documents[0].shape[rank:]), torch.nan)
    for document, entry in zip(documents, x, strict=True):
        entry[tuple(map(slice, document.shape[:rank]))] = document
    return x


def _corners(x, shapes, blank):
    """Documents of a padded batch; asserts that all else is `blank`."""
    found, left = [], x.detach().clone()
    for shape, entry, rest in zip(shapes, x, left, strict=True):
        found.append(entry[tuple(map(slice, shape))])
        rest[tuple(map(slice, shape))] = blank
    assert (left == blank).all()
    return found


def operands(form, drawn, device="cpu"):
    """Tensors of `drawn` in a form, by the names of the oracle, and those that are not of tokens."""
    tokens = {name: form.join(x).to(device).requires_grad_() for name, x in drawn.tokens.items()}
    return tokens, {name: x.to(device, copy=True).requires_grad_() for name, x in drawn.rest.items()}


def call(form, case, tokens, rest, **options):
    renamed = {"extra_key": "additional_keys", "extra_value": "additional_values"}
    named = {renamed.get(name, name): x for name, x in rest.items()}
    return form.function(*tokens.values(), **named, **case.window, fit=case.fit, return_lse=True, **options)


def check(form_of, case, seed=0, backend=None, rounded=False, device="cpu"):
    """Outputs, log-sum-exps and all gradients against the oracle on every document.

    Where weights are `rounded`, they are of the dtype of the case.
    """
    drawn = Drawn(case, seed)
    form = form_of(case)
    tokens, rest = operands(form, drawn, device)
    out, lse = call(form, case, tokens, rest, backend=backend)
    flow_out, flow_lse = drawn.flow()
    flow = form.flow(flow_out).to(device), form.flow(flow_lse).to(device)
    every = {**tokens, **rest}
    grads = torch.autograd.grad((out, lse), tuple(every.values()), flow)
    grads = {name: grad.cpu() for name, grad in zip(every, grads, strict=True)}
    out, lse = out.detach().cpu(), lse.detach().cpu()
    found = {name: form.tokens(grads[name]) for name in tokens}
    outs, lses = form.results(out), form.results(lse, -torch.inf)
    wide = "float64" if case.dtype == "float64" else "float32"
    bias_grad = np.zeros(rest["bias"].shape) if case.bias else None
    for place, shape in enumerate(case.shapes):
        extra = {name: drawn.rest[name][place : place + 1] for name in rest if name != "bias"}
        if 0 in shape:
            assert outs[place].numel() == lses[place].numel() == 0
            assert all(not grads[name][place].any() for name in extra)
            continue
        sizes, part, bias = clipped(case, shape, drawn.rest.get("bias"))
        given = {name: x[place][None] for name, x in drawn.tokens.items()} | extra
        answer = oracle.attend(
            **{name: array(x) for name, x in given.items()},
            bias=None if bias is None else array(bias),
            win=oracle.window(case.rank, **{**case.window, "kernel_size": sizes}),
            scale=case.dim**-0.5,
            grad_out=array(flow_out[place][None]),
            grad_lse=array(flow_lse[place][None]),
        )
        budget.check(f"out {place}", array(outs[place][None]), answer.out, case.dtype, rounded)
        budget.check(f"lse {place}", array(lses[place][None]), answer.lse, wide)
        for name in given:
            got = found[name][place] if name in tokens else grads[name][place]
            label, wanted = f"gradient of {name} {place}", getattr(answer, name)
            budget.check(label, array(got[None]), wanted, case.dtype, rounded)
        if case.bias:
            bias_grad[part] += answer.bias
    if case.bias:
        budget.check("gradient of bias", array(grads["bias"]), bias_grad, case.dtype, rounded)


def check_bits(form_of, case, backend, device="cpu"):
    """Results, and gradients of tokens, of documents of one shape are those of the fixed-shape function."""
    drawn, form = Drawn(case), form_of(case)
    tokens, rest = operands(form, drawn, device)
    results = call(form, case, tokens, rest, backend=backend)
    flow = drawn.flow()
    pulls = [form.flow(x).to(device) for x in flow]
    grads = torch.autograd.grad(results, tuple(tokens.values()), pulls)
    split = [form.results(x.cpu(), blank) for x, blank in zip(results, (0.0, -torch.inf), strict=True)]
    split += [form.tokens(grad.cpu()) for grad in grads]
    for places in neighbors(case.shapes):
        want, leaves = alike(drawn, places, backend, device)
        pull = [torch.stack([x[place] for place in places]).to(device) for x in flow]
        want += torch.autograd.grad(want, leaves, pull)
        for got, expected in zip(split, want, strict=True):
            assert torch.equal(torch.stack([got[place] for place in places]), expected.cpu())


def alike(drawn, places, backend, device):
    """The fixed-shape function on documents of one shape: outputs, log-sum-exps and the tokens."""
    case = drawn.case
    tokens = [
        torch.stack([x[place] for place in places]).to(device).requires_grad_() for x in drawn.tokens.values()
    ]
    sizes, _, bias = clipped(case, case.shapes[places[0]], drawn.rest.get("bias"))
    window = {**case.window, "kernel_size": sizes, "stride": tuple(map(min, case.stride, sizes))}
    if case.extra:
        names = ("key", "value")
        window |= {f"additional_{name}s": drawn.rest[f"extra_{name}"][places].to(device) for name in names}
    bias = None if bias is None else bias.to(device)
    results = na.neighborhood_attention(*tokens, **window, bias=bias, return_lse=True, backend=backend)
    return results, tokens


def neighbors(shapes):
    """Documents of one shape that follow one another; empty ones left out."""
    found = [[0]]
    for place in range(1, len(shapes)):
        if shapes[place] == shapes[place - 1]:
            found[-1].append(place)
        else:
            found.append([place])
    return [places for places in found if 0 not in shapes[places[0]]]
