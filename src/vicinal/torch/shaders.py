"""Launches of the Metal kernels, compiled as they are needed by `torch.mps.compile_shader`.

`most_waste` is how many pairs tiles may compute for each that counts; beyond it, a thread takes a row.
"""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..metal import source
from ..metal.geometry import Layout, layout, whole
from ..problem import Problem
from .backends.base import Grads, Needs, Operands

PLAIN_THREADS = 64
TILE_THREADS = 128
BIAS_THREADS = 128


def attend(problem: Problem, operands: Operands, scale: float, most_waste: float) -> tuple[Tensor, Tensor]:
    given = _bindable(operands)
    query = given[0]
    out = query.new_empty(*query.shape[:-1], problem.value_dim)
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    arguments = (*_shape(problem), problem.bias, problem.extra > 0)
    _over_rows(most_waste, "attend", arguments, layout(problem), [*given, out, lse], scale)
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
    known = [grad_out, lse, _delta(problem, out, grad_out, grad_lse)]
    shape, here = _shape(problem), layout(problem)
    grads: list[Tensor | None] = [None] * len(needs)
    if needs[0]:
        grads[0] = torch.empty_like(query)
        tensors = [query, key, value, bias, extra_key, extra_value, *known, grads[0]]
        arguments = (*shape, problem.bias, problem.extra > 0)
        _over_rows(most_waste, "attend_back_query", arguments, here, tensors, scale)
    if needs[1] or needs[2]:
        grads[1:3] = pair = [torch.empty_like(key), torch.empty_like(value)]
        tensors = [query, key, value, bias, *known, *pair]
        inverse = layout(problem, inverse=True)
        _over_rows(most_waste, "attend_back_key", (*shape, problem.bias), inverse, tensors, scale)
    if needs[3]:
        grads[3] = torch.empty_like(bias)
        tensors = [query, key, value, bias, *known, grads[3]]
        threads = (BIAS_THREADS * here.geometry.relative_count, problem.heads, 1)
        _launch("attend_back_bias", shape, threads, BIAS_THREADS, tensors, here, scale)
    if needs[4] or needs[5]:
        grads[4:6] = pair = [torch.empty_like(extra_key), torch.empty_like(extra_value)]
        tensors = [query, extra_key, extra_value, bias, *known, *pair]
        arguments = (*_shape(problem, rank=1), False)
        _over_rows(most_waste, "attend_back_key", arguments, whole(problem), tensors, scale)
    cast = zip(grads, operands, needs, strict=True)
    return Grads(*(None if g is None or x is None or not need else g.to(x.dtype) for g, x, need in cast))


def dot(
    problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float, most_waste: float
) -> Tensor:
    x, y, bias = _aligned(x), _aligned(y), _aligned(x if bias is None else bias.float())
    # Kernels write the slots that hold a key, which are all of them unless an axis is causal.
    weights = x.new_full((*x.shape[:-1], prod(problem.window)), fill)
    arguments = (source.TYPES[problem.dtype], problem.rank, problem.dim, problem.bias)
    _over_rows(most_waste, "dot_walk", arguments, layout(problem), [x, y, bias, weights], scale)
    return weights


def mix(problem: Problem, weights: Tensor, y: Tensor, most_waste: float) -> Tensor:
    out = y.new_empty(problem.batch, *problem.outputs, problem.heads, y.shape[-1])
    tensors = [_aligned(weights), _aligned(y), out]
    arguments = (*map(_type, tensors[:2]), problem.rank, y.shape[-1])
    _over_rows(most_waste, "mix_walk", arguments, layout(problem), tensors)
    return out


def mix_back(problem: Problem, weights: Tensor, x: Tensor, most_waste: float) -> Tensor:
    out = x.new_empty(problem.batch, *problem.lengths, problem.kv_heads, x.shape[-1])
    tensors = [_aligned(weights), _aligned(x), out]
    arguments = (*map(_type, tensors[:2]), problem.rank, x.shape[-1])
    _over_rows(most_waste, "mix_back_walk", arguments, layout(problem, inverse=True), tensors)
    return out


def _over_rows(
    most_waste: float, kernel: str, arguments: tuple, where: Layout, tensors: list[Tensor], *numbers: float
) -> None:
    """Launches a kernel by tiles of rows, or its plain version with a thread a row."""
    geometry = where.geometry
    if where.suits_tiles(most_waste):
        threads = (TILE_THREADS * prod(geometry.tiles), where.heads, geometry.batch)
        _launch(kernel, arguments, threads, TILE_THREADS, tensors, where, *numbers)
    else:
        threads = (geometry.row_count, where.heads, geometry.batch)
        _launch(f"{kernel}_plain", arguments, threads, PLAIN_THREADS, tensors, where, *numbers)


def _shape(problem: Problem, rank: int | None = None) -> tuple:
    return source.TYPES[problem.dtype], rank or problem.rank, problem.dim, problem.value_dim


def _type(x: Tensor) -> str:
    return source.TYPES[str(x.dtype).removeprefix("torch.")]


def _delta(problem: Problem, out: Tensor, grad_out: Tensor, grad_lse: Tensor) -> Tensor:
    """What backward subtracts from the gradients of the weights, one number a row."""
    delta = torch.empty_like(grad_lse)
    arguments = (source.TYPES[problem.dtype], problem.value_dim)
    _launch("delta", arguments, (32 * delta.numel(), 1, 1), 32, [out, grad_out, grad_lse, delta])
    return delta


def _launch(
    kernel: str,
    arguments: tuple,
    threads: tuple[int, int, int],
    group: int,
    tensors: list[Tensor],
    where: Layout | None = None,
    *numbers: float,
) -> None:
    """Runs an instantiation of a kernel on tensors, then the layout's table and geometry, then numbers."""
    if 0 in threads:
        # Metal has no empty grids; there is nothing to write.
        return
    shader = _shader(*source.instantiation(kernel, *arguments))
    rest = [] if where is None else [_table(where, tensors[0].device), where.geometry.packed]
    casts = {len(tensors) + 1: "int32"}
    shader(*tensors, *rest, *map(float, numbers), threads=threads, group_size=(group, 1, 1), arg_casts=casts)


@lru_cache(None)
def _shader(host: str, instantiation: str):
    return getattr(torch.mps.compile_shader(source.templates() + instantiation), host)


@lru_cache(256)
def _table(where: Layout, device: torch.device) -> Tensor:
    return torch.tensor(where.table, dtype=torch.int32, device=device)


def _bindable(operands: Operands) -> list[Tensor]:
    """Operands as kernels take them, the bias in float32; the query stands for those that are not there."""
    bias = None if operands.bias is None else operands.bias.float()
    return [_aligned(operands.query if x is None else x) for x in operands._replace(bias=bias)]


def _aligned(x: Tensor) -> Tensor:
    """`x` in row-major order, at an address that vectors of four can be read from."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() * x.element_size() % 16 else x
