"""Runs a backend's methods on a problem and compares them with the oracle."""

from contextlib import contextmanager
from math import inf, prod
from typing import NamedTuple

import torch

from tests import budget, oracle, strategies
from tests.torch import problems
from vicinal.torch import shaders
from vicinal.torch.backends import metal
from vicinal.torch.backends.base import Operands

HAS_METAL = torch.backends.mps.is_available()
DEVICE = "mps" if HAS_METAL else "cpu"
# Tiles even where the backend would find them wasteful.
TILES = metal.Metal("metal-tiles", most_waste=inf)
BACKENDS = (TILES, metal.METAL_PLAIN)


@contextmanager
def opened(**options):
    """A session of the checker, with kernels compiled anew; nothing on a Mac."""
    if HAS_METAL:
        yield None
        return
    from mslcpu import torch_host

    shaders._shader.cache_clear()
    with torch_host.installed(**options) as session:
        yield session
    shaders._shader.cache_clear()


class Run(NamedTuple):
    """Everything that a backend computes for one problem."""

    out: torch.Tensor
    lse: torch.Tensor
    grads: tuple
    scores: torch.Tensor
    mixed: torch.Tensor
    mixed_back: torch.Tensor


def sampled(problem, query):
    """The tokens of `query` that have outputs."""
    return query[(slice(None), *(slice(None, None, axis.output_stride) for axis in problem.axes))]


def cotangents(problem, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (problem.batch, *problem.outputs, problem.heads)
    grad_out = torch.randn((*shape, problem.value_dim), generator=generator).to(getattr(torch, problem.dtype))
    return grad_out, torch.randn(shape, generator=generator)


def arrange(problem, tensors):
    """Operands on the device that kernels run on."""
    on = {name: x.detach().to(DEVICE) for name, x in tensors.items()}
    return Operands(**on | {"query": sampled(problem, on["query"])})


def attend_back(backend, problem, given, out, lse, cotangent, scale):
    needs = tuple(x is not None for x in given)
    return backend.attend_back(problem, given, out, lse, *(x.to(DEVICE) for x in cotangent), scale, needs)


def waves(problem, shape):
    """Weights for the walks."""
    return torch.sin(torch.arange(prod(shape))).view(shape).to(getattr(torch, problem.dtype))


def run(backend, problem, seed=0):
    given = arrange(problem, problems.operands(problem, seed))
    scale = problem.dim**-0.5
    out, lse = backend.attend(problem, given, scale)
    grads = attend_back(backend, problem, given, out, lse, cotangents(problem, seed), scale)
    scores = backend.dot(problem, given.query, given.key, given.bias, scale, -7.0)
    weights = waves(problem, scores.shape).to(DEVICE)
    return Run(
        out,
        lse,
        tuple(x for x in grads if x is not None),
        scores,
        backend.mix(problem, weights, given.value),
        backend.mix_back(problem, weights, given.query),
    )


def check(backend, problem, seed=0):
    """Compares everything with the oracle."""
    kept = problems.operands(problem, seed)
    result = run(backend, problem, seed)
    grad_out, grad_lse = map(problems.array, cotangents(problem, seed))
    answer = problems.exact(problem, kept, None, grad_out, grad_lse)
    same = lambda name, actual, exact: budget.check(name, problems.array(actual), exact, problem.dtype, True)  # noqa: E731
    same("out", result.out, answer.out)
    budget.check("lse", problems.array(result.lse), answer.lse, "float32")
    exact = [getattr(answer, name) for name in kept]
    exact[0] = sampled(problem, exact[0])
    for name, actual, wanted in zip(kept, result.grads, exact, strict=True):
        same(f"gradient of {name}", actual, wanted)
    arrays = {name: problems.array(x) for name, x in kept.items()}
    window = oracle.window(problem.rank, **strategies.window(problem))
    query, scale = sampled(problem, arrays["query"]), problem.dim**-0.5
    same("dot", result.scores, oracle.dot(query, arrays["key"], window, scale, arrays.get("bias"), -7.0))
    weights = problems.array(waves(problem, result.scores.shape))
    same("mix", result.mixed, oracle.mix(weights, arrays["value"], window))
    exact = oracle.mix_back(weights, query, problem.lengths, problem.kv_heads, window)
    same("mix_back", result.mixed_back, exact)


def tensors(result):
    """The tensors of a run, flat."""
    return [x for part in result for x in (part if isinstance(part, tuple) else (part,))]
