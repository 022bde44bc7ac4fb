"""Launches of the Metal kernels, compiled as they are needed by `torch.mps.compile_shader`."""

from functools import lru_cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from ..metal import documents, launches, source
from ..metal.geometry import Layout
from ..metal.launches import Launch
from ..problem import Problem
from .backends.base import Grads, Needs, Operands


def attend(problem: Problem, operands: Operands, scale: float, most_waste: float) -> tuple[Tensor, Tensor]:
    given = _bindable(problem, operands)
    query, rows = given[0], (*documents.outputs(problem).extents, problem.heads)
    out = _room(problem, query, (*rows, problem.value_dim))
    lse = _room(problem, query, rows, torch.float32, -inf)
    _run(launches.attend(problem, most_waste), [*given, out, lse], scale)
    return out, lse


def attend_back(
    problem: Problem,
    operands: Operands,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    scale: float,
    needs: Needs,
    most_waste: float,
) -> Grads:
    query, key, value, bias, extra_key, extra_value = _bindable(problem, operands)
    like = lambda x: _room(problem, x, x.shape)  # noqa: E731
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    out, grad_out, lse, grad_lse = map(_aligned, (out, grad_out, lse, grad_lse))
    delta = torch.empty_like(grad_lse)
    _run(launches.delta(problem), [out, grad_out, grad_lse, delta])
    known = [grad_out, lse, delta]
    grads: list[Tensor | None] = [None] * len(needs)
    if needs[0]:
        grad = like(query)
        tensors = [query, key, value, bias, extra_key, extra_value, *known, grad]
        _run(launches.attend_back_query(problem, most_waste), tensors, scale)
        grads[0] = _spread(problem, grad, operands.query)
    if needs[1] or needs[2]:
        grads[1:3] = pair = [like(key), like(value)]
        tensors = [query, key, value, bias, *known, *pair]
        _run(launches.attend_back_key(problem, most_waste), tensors, scale)
    if needs[3]:
        grads[3] = torch.empty_like(bias)
        _run(launches.attend_back_bias(problem), [query, key, value, bias, *known, grads[3]], scale)
    if needs[4] or needs[5]:
        grads[4:6] = pair = [like(extra_key), like(extra_value)]
        tensors = [query, extra_key, extra_value, bias, *known, *pair]
        _run(launches.attend_back_extra(problem, most_waste), tensors, scale)
    cast = zip(grads, operands, needs, strict=True)
    return Grads(*(None if g is None or x is None or not need else g.to(x.dtype) for g, x, need in cast))


def dot(
    problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float, most_waste: float
) -> Tensor:
    x, y, bias = _aligned(x), _aligned(y), _aligned(x if bias is None else bias.float())
    # Kernels write the slots that hold a key, which are all of them unless an axis is causal.
    weights = x.new_full((*x.shape[:-1], prod(problem.window)), fill)
    _run(launches.dot(problem, most_waste), [x, y, bias, weights], scale)
    return weights


def mix(problem: Problem, weights: Tensor, y: Tensor, most_waste: float) -> Tensor:
    out = y.new_empty(problem.batch, *problem.outputs, problem.heads, y.shape[-1])
    launch = launches.mix(problem, _name(weights), _name(y), y.shape[-1], most_waste)
    _run(launch, [_aligned(weights), _aligned(y), out])
    return out


def mix_back(problem: Problem, weights: Tensor, x: Tensor, most_waste: float) -> Tensor:
    out = x.new_empty(problem.batch, *problem.lengths, problem.kv_heads, x.shape[-1])
    launch = launches.mix_back(problem, _name(weights), _name(x), x.shape[-1], most_waste)
    _run(launch, [_aligned(weights), _aligned(x), out])
    return out


def _run(launch: Launch, tensors: list[Tensor], *numbers: float) -> None:
    """A kernel on tensors, then the layout's table and geometry, then numbers."""
    if launch.empty:
        return
    shader, where = _shader(*source.instantiation(launch.kernel, *launch.arguments)), launch.layout
    rest = [] if where is None else _numbers(where, tensors[0].device)
    shader(
        *tensors,
        *rest,
        *map(float, numbers),
        threads=launch.threads,
        group_size=(launch.group, 1, 1),
        arg_casts={len(tensors) + 1: "int32"},
    )


@lru_cache(None)
def _shader(host: str, instantiation: str):
    return getattr(torch.mps.compile_shader(source.templates() + instantiation), host)


@lru_cache(1024)
def _numbers(where: Layout, device: torch.device) -> list[Any]:
    """Table and geometry; a single geometry needs no memory of its own."""
    integers = lambda numbers: torch.tensor(numbers, dtype=torch.int32, device=device)  # noqa: E731
    geometry = where.packed if len(where.geometries) == 1 else integers(where.packed)
    return [integers(where.table), geometry]


@lru_cache(256)
def _sampling(problem: Problem, device: torch.device) -> tuple[Any, ...] | None:
    return documents.sampling(problem, torch.arange, lambda parts: torch.cat(parts).to(device))


def _spread(problem: Problem, grad: Tensor, query: Tensor) -> Tensor:
    """The gradient of all queries; zero for those that have no outputs."""
    at = _sampling(problem, query.device)
    if at is None:
        return grad
    found = torch.zeros_like(query)
    found[at] = grad
    return found


def _room(
    problem: Problem,
    like: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
    fill: float = 0.0,
) -> Tensor:
    """What a kernel writes: all of it, but for room between documents and what belongs to empty ones."""
    if problem.documents is None:
        return like.new_empty(shape, dtype=dtype)
    return like.new_full(shape, fill, dtype=dtype)


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _bindable(problem: Problem, operands: Operands) -> list[Tensor]:
    """Operands as kernels take them, the bias in float32; the query stands for those that are not there."""
    at = _sampling(problem, operands.query.device)
    query = operands.query if at is None else operands.query[at]
    bias = None if operands.bias is None else operands.bias.float()
    return [_aligned(query if x is None else x) for x in operands._replace(query=query, bias=bias)]


def _aligned(x: Tensor) -> Tensor:
    """`x` in row-major order, at an address that vectors of four can be read from."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() * x.element_size() % 16 else x
