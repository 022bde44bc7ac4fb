"""The walks of the split operations on tensors."""

from functools import lru_cache
from math import prod

from torch import Tensor

from ..problem import Problem
from . import plan, walks
from .attention import group, layout, lengths, precision, rules
from .launch import Launch, rows_aligned, spatial_strides

Stride = tuple[int, ...]


def dot(problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float) -> Tensor:
    """`[batch, *outputs, heads, slots]` weights in the dtype of `x`."""
    x, y = rows_aligned(x), rows_aligned(y)
    shape = (*x.shape[:-1], prod(problem.window))
    holes = any(axis.causal for axis in problem.axes)
    weights = x.new_full(shape, fill) if holes else x.new_empty(shape)
    if weights.numel():
        bias = None if bias is None else bias.float().contiguous()
        _launch(problem, scale, x.stride(), y.stride())(x, y, bias, weights)
    return weights


def mix(problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
    """`[batch, *outputs, heads, value_dim]` in the dtype of `y`."""
    weights, y = weights.contiguous(), rows_aligned(y)
    out = y.new_empty((*weights.shape[:-1], y.shape[-1]))
    if out.numel():
        _launch(problem, None, y.stride())(weights, y, out)
    return out


def mix_back(problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
    """`[batch, *lengths, kv_heads, value_dim]` in the dtype of `x`."""
    weights, x = weights.contiguous(), rows_aligned(x)
    out = x.new_empty((x.shape[0], *problem.lengths, problem.kv_heads, x.shape[-1]))
    if out.numel():
        _launch(problem, None, x.stride())(weights, x, out)
    return out


@lru_cache(4096)
def _launch(problem: Problem, scale: float | None, *given: Stride) -> Launch:
    kernel = {"dot": walks.dot, "mix": walks.mix, "mix_back": walks.mix_back}[problem.operation]
    shape = plan.walk(problem)
    dim = problem.dim if problem.operation == "dot" else problem.value_dim
    weights = prod(problem.outputs) * problem.heads * prod(problem.window)
    rows = given[:1] if problem.operation != "mix" else ()
    found = layout(problem, rows, given[len(rows) :])
    numbers = (
        *(() if scale is None else (scale,)),
        *(problem.heads, group(problem), *lengths(problem)),
        *(step for stride in given for step in spatial_strides(stride)),
    )
    constants = (
        *(*rules(problem), shape.rows, shape.columns, shape.row_count, shape.column_count),
        *(dim, plan.padded(dim), shape.heads_first),
        *(weights > 2**31 - 1 or found.is_wide, found.is_dense, precision(problem)),
    )
    heads = problem.kv_heads if problem.operation == "mix_back" else problem.heads
    grid = problem.batch * heads * shape.tiles
    return Launch(kernel, grid, numbers, constants, num_warps=shape.warps, num_stages=shape.stages)
