"""The walks of the split operations on tensors."""

from math import prod

from torch import Tensor

from ..problem import Problem
from . import launches, ring_launches
from .launch import addresses_aligned, rows_aligned


def dot(problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float) -> Tensor:
    """`[batch, *outputs, heads, slots]` weights in the dtype of `x`."""
    x, y = rows_aligned(x), rows_aligned(y)
    shape = (*x.shape[:-1], prod(problem.window))
    holes = any(axis.causal for axis in problem.axes)
    weights = x.new_full(shape, fill) if holes else x.new_empty(shape)
    if weights.numel():
        bias = None if bias is None else bias.float().contiguous()
        steps = (problem, scale, x.stride(), y.stride())
        sweep = ring_launches.walk_launch(*steps) if addresses_aligned((x, y)) else None
        (launches.walk_launch(*steps) if sweep is None else sweep)(x, y, bias, weights)
    return weights


def mix(problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
    """`[batch, *outputs, heads, value_dim]` in the dtype of `y`."""
    weights, y = weights.contiguous(), rows_aligned(y)
    out = y.new_empty((*weights.shape[:-1], y.shape[-1]))
    if out.numel():
        _walk(problem, weights, y, out)
    return out


def mix_back(problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
    """`[batch, *lengths, kv_heads, value_dim]` in the dtype of `x`."""
    weights, x = weights.contiguous(), rows_aligned(x)
    out = x.new_empty((x.shape[0], *problem.lengths, problem.kv_heads, x.shape[-1]))
    if out.numel():
        _walk(problem, weights, x, out)
    return out


def _walk(problem: Problem, weights: Tensor, rows: Tensor, out: Tensor) -> None:
    """Run `mix` or `mix_back`."""
    steps = (problem, None, rows.stride())
    sweep = ring_launches.walk_launch(*steps) if addresses_aligned((rows,)) else None
    (launches.walk_launch(*steps) if sweep is None else sweep)(weights, rows, out)
