"""Calls made again: operands, who watches, and what comes of them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import budget
from vicinal.torch import na2d, na2d_av, na2d_qk


def operands(*shape, **options):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape or (2, 7, 6, 2, 8), generator=generator, **options) for _ in range(3)]


# Tensors whose numbers are not what is in memory, and what makes those.
LAZY = {
    "zeros": (lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), torch.zeros_like),
    "negative": (torch._neg_view, torch.neg),
    "imaginary": (lambda x: torch.complex(x, x).conj().imag, torch.neg),
}


class Names(TorchDispatchMode):
    """Operators that pass through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def fused(*given, **options):
    return na2d(*given, return_lse=True, **options)


def split(query, key, value, scale=None, **options):
    scores = na2d_qk(query, key, scale=scale, **options)
    return na2d_av(scores.softmax(-1), value, **options), scores.logsumexp(-1)


def gradients(given, seed=0, flow=(True, True), attend=fused, **options):
    """Gradients of the operands that require any, with `flow` into the output, the log-sum-exp or both."""
    generator = torch.Generator().manual_seed(seed)
    results = [x for x, wanted in zip(attend(*given, **options), flow, strict=True) if wanted]
    cotangents = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in results]
    wanted = [x for x in given if x.requires_grad]
    return torch.autograd.grad(results, wanted, cotangents, materialize_grads=True)


def check_every_part(attend, backend, other, shape=(2, 7, 6, 2, 8)):
    """Forward and backward, after one that differs in one part; `other` is another dtype."""
    plain = operands(*shape, requires_grad=True)
    query, key, value = plain
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in plain]
    calls = [
        (plain, {}),
        (plain, {"stride": 2}),
        (plain, {"dilation": 2}),
        (plain, {"is_causal": True}),
        (plain, {"is_causal": (True, False)}),
        (plain, {"kernel_size": (3, 5)}),
        (plain, {"scale": 1.0}),
        (plain, {"output_stride": 2}),
        (plain, {"flow": (True, False)}),
        (plain, {"flow": (False, True)}),
        ([query.detach(), key, value], {}),
        ([query, key.detach(), value.detach()], {}),
        (turned, {}),
        ([turned[0], key, value], {}),
        ([x.detach().to(other).requires_grad_() for x in plain], {}),
        ([x.detach()[:1].requires_grad_() for x in plain], {}),
        (plain, {}),
    ]
    for seed, (given, options) in enumerate(calls):
        asked = {"kernel_size": 3, "attend": attend, **options}
        wanted = gradients(given, seed, backend="reference", **asked)
        for found, exact in zip(gradients(given, seed, backend=backend, **asked), wanted, strict=True):
            budget.check(
                "gradient", found.double().numpy(), exact.double().numpy(), str(exact.dtype)[6:], True
            )
