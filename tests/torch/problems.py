"""Operands of a problem as tensors, and its exact answer."""

import numpy as np
import torch

from tests import budget, oracle
from tests.strategies import problems, window  # noqa: F401  (for the tests)
from vicinal.torch import neighborhood_attention

NAMES = ("query", "key", "value", "bias", "extra_key", "extra_value")


def operands(problem, seed=0, gradients=True):
    """Random tensors for the public function, by name; options the problem does not have are absent."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, problem.dtype)
    keys, values = (problem.kv_heads, problem.dim), (problem.kv_heads, problem.value_dim)
    shapes = {
        "query": (problem.batch, *problem.lengths, problem.heads, problem.dim),
        "key": (problem.batch, *problem.lengths, *keys),
        "value": (problem.batch, *problem.lengths, *values),
    }
    if problem.bias:
        shapes["bias"] = (problem.heads, *(2 * size - 1 for size in problem.window))
    if problem.extra:
        shapes["extra_key"] = (problem.batch, problem.extra, *keys)
        shapes["extra_value"] = (problem.batch, problem.extra, *values)
    make = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return {name: make(shape).requires_grad_(gradients) for name, shape in shapes.items()}


def arrays(tensors):
    """The same, as float64 arrays for the oracle."""
    return {name: array(x) for name, x in tensors.items()}


def array(x):
    return x.detach().cpu().double().numpy()


def call(problem, tensors, function=neighborhood_attention, **options):
    """The public function on `operands`, with the problem's window."""
    renamed = {"extra_key": "additional_keys", "extra_value": "additional_values"}
    named = {renamed.get(name, name): x for name, x in tensors.items()}
    return function(**named, **window(problem), **options)


def exact(problem, tensors, scale=None, grad_out=None, grad_lse=None):
    """The oracle's answer, with gradients if cotangents are given."""
    return oracle.attend(
        **arrays(tensors),
        win=oracle.window(problem.rank, **window(problem)),
        scale=problem.dim**-0.5 if scale is None else scale,
        grad_out=grad_out,
        grad_lse=grad_lse,
    )


def check(problem, backend=None, seed=0, scale=None, rounded_weights=False, device="cpu"):
    """Forward, log-sum-exp and every gradient of `backend` against the oracle."""
    kept = operands(problem, seed)
    tensors = {name: x.detach().to(device).requires_grad_() for name, x in kept.items()}
    out, lse = call(problem, tensors, backend=backend, scale=scale, return_lse=True)
    generator = torch.Generator().manual_seed(seed + 1)
    grad_out, grad_lse = (
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (out, lse)
    )
    grads = torch.autograd.grad(
        (out, lse), tuple(tensors.values()), (grad_out.to(device), grad_lse.to(device))
    )
    answer = exact(problem, kept, scale, array(grad_out), array(grad_lse))
    wide = "float64" if problem.dtype == "float64" else "float32"
    budget.check("out", array(out), answer.out, problem.dtype, rounded_weights)
    # A log-sum-exp is float32 whatever the inputs, but products of 16-bit inputs may be summed in any order.
    budget.check("lse", array(lse), answer.lse, wide)
    for name, grad in zip(tensors, grads, strict=True):
        assert grad.dtype == tensors[name].dtype, name
        budget.check(
            f"gradient of {name}", array(grad), getattr(answer, name), problem.dtype, rounded_weights
        )


def same(actual, expected):
    """Bitwise equality of tensors, NaN included."""
    return all(
        np.array_equal(array(a), array(b), equal_nan=True) for a, b in zip(actual, expected, strict=True)
    )
