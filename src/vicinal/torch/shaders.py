"""Launches of the Metal kernels, compiled as they are needed by `torch.mps.compile_shader`."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..metal import launches, source
from ..metal.geometry import Layout
from ..metal.launches import Launch
from ..problem import Problem
from .backends.base import Grads, Needs, Operands


def attend(problem: Problem, operands: Operands, scale: float, most_waste: float) -> tuple[Tensor, Tensor]:
    given = _bindable(operands)
    query = given[0]
    out = query.new_empty(*query.shape[:-1], problem.value_dim)
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
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
    query, key, value, bias, extra_key, extra_value = _bindable(operands)
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    out, grad_out, lse, grad_lse = map(_aligned, (out, grad_out, lse, grad_lse))
    delta = torch.empty_like(grad_lse)
    _run(launches.delta(problem), [out, grad_out, grad_lse, delta])
    known = [grad_out, lse, delta]
    grads: list[Tensor | None] = [None] * len(needs)
    if needs[0]:
        grads[0] = torch.empty_like(query)
        tensors = [query, key, value, bias, extra_key, extra_value, *known, grads[0]]
        _run(launches.attend_back_query(problem, most_waste), tensors, scale)
    if needs[1] or needs[2]:
        grads[1:3] = pair = [torch.empty_like(key), torch.empty_like(value)]
        tensors = [query, key, value, bias, *known, *pair]
        _run(launches.attend_back_key(problem, most_waste), tensors, scale)
    if needs[3]:
        grads[3] = torch.empty_like(bias)
        _run(launches.attend_back_bias(problem), [query, key, value, bias, *known, grads[3]], scale)
    if needs[4] or needs[5]:
        grads[4:6] = pair = [torch.empty_like(extra_key), torch.empty_like(extra_value)]
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
    rest = [] if where is None else [_table(where, tensors[0].device), where.geometry.packed]
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


@lru_cache(256)
def _table(where: Layout, device: torch.device) -> Tensor:
    return torch.tensor(where.table, dtype=torch.int32, device=device)


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _bindable(operands: Operands) -> list[Tensor]:
    """Operands as kernels take them, the bias in float32; the query stands for those that are not there."""
    bias = None if operands.bias is None else operands.bias.float()
    return [_aligned(operands.query if x is None else x) for x in operands._replace(bias=bias)]


def _aligned(x: Tensor) -> Tensor:
    """`x` in row-major order, at an address that vectors of four can be read from."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() * x.element_size() % 16 else x
