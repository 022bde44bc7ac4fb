"""Attention and its gradients on tensors: what is allocated, and which kernels run."""

from functools import lru_cache
from math import ceil, e, log2, prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from . import backward, forward, plan, small
from . import bias as bias_kernels
from .launch import Launch, rows_aligned, spatial_strides, strides
from .window import rule

Strides = tuple[tuple[int, ...], ...]
# Bytes of score gradients that a bias gradient may hold at once.
SCORES_LIMIT = 1 << 30
# Programs that keep a large device busy.
BUSY = 2048


class Inputs(NamedTuple):
    """Operands of an attention, each with a contiguous last dimension."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    extra_key: Tensor | None
    extra_value: Tensor | None


def inputs(problem: Problem, query, key, value, bias, extra_key, extra_value) -> Inputs:
    """Operands as the kernels read them."""
    if bias is not None:
        bias = bias.float().contiguous()
    if problem.extra:
        extra_key, extra_value = rows_aligned(extra_key), rows_aligned(extra_value)
    else:
        extra_key = extra_value = None
    return Inputs(rows_aligned(query), rows_aligned(key), rows_aligned(value), bias, extra_key, extra_value)


def attend(problem: Problem, given: Inputs, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    query = given.query
    out = query.new_empty((*query.shape[:-1], problem.value_dim))
    lse = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
    if lse.numel():
        steps = tuple([strides(x) for x in given])
        if plan.forward(problem).single:
            _small_forward(problem, scale, steps)(*given[:4], out, lse)
        else:
            _forward(problem, scale, steps)(*given, out, lse)
    return out, lse


def attend_back(
    problem: Problem,
    given: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    scale: float,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients in the order of `Inputs`, None where not needed."""
    query, key, value, bias, extra_key, extra_value = given
    need_query, need_key, need_value, need_bias, need_extra_key, need_extra_value = needs
    grads: list[Tensor | None] = [None] * 6
    if not lse.numel():
        return [None if x is None else torch.zeros_like(x) for x in given]
    grad_out = torch.zeros_like(out) if grad_out is None else rows_aligned(grad_out)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    key_strides = (*[strides(x) for x in given], strides(grad_out))
    delta = torch.empty_like(lse)
    _delta(problem, strides(grad_out))(out, grad_out, grad_lse, delta)
    if need_query:
        grads[0] = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        _query_gradient(problem, scale, key_strides)(*given, grad_out, lse, delta, grads[0])
    if need_key or need_value:
        grads[1] = torch.empty(key.shape, dtype=key.dtype, device=key.device)
        grads[2] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        launch = _key_gradient(problem, scale, key_strides)
        launch(query, key, value, bias, grad_out, lse, delta, grads[1], grads[2])
    if bias is not None and need_bias:
        grads[3] = _bias_gradient(problem, given, scale, key_strides, grad_out, lse, delta)
    if extra_key is not None and extra_value is not None and (need_extra_key or need_extra_value):
        launch, parts = _extra_gradient(problem, scale, key_strides)
        sums = [
            torch.empty((parts, *x.shape), dtype=torch.float32, device=x.device)
            for x in (extra_key, extra_value)
        ]
        launch(query, extra_key, extra_value, grad_out, lse, delta, *sums)
        grads[4], grads[5] = (total.sum(0).to(query.dtype) for total in sums)
    return grads


def _bias_gradient(
    problem: Problem,
    given: Inputs,
    scale: float,
    key_strides: Strides,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> Tensor:
    query, key, value, bias = given[:4]
    assert bias is not None
    grad_bias = torch.empty_like(bias)
    for first in range(0, problem.heads, _bias_split(problem).heads):
        scores, tally, shape = _bias_gradient_launches(problem, scale, key_strides, first)
        held = torch.empty(shape, dtype=torch.float32, device=query.device)
        scores(query, key, value, bias, grad_out, lse, delta, held)
        tally(held, grad_bias)
    return grad_bias


def rules(problem: Problem) -> tuple:
    return tuple(rule(axis) for axis in plan.three_axes(problem.axes))


def lengths(problem: Problem) -> tuple[int, ...]:
    return tuple(axis.length for axis in plan.three_axes(problem.axes))


def outputs(problem: Problem) -> tuple[int, ...]:
    return tuple(axis.outputs for axis in plan.three_axes(problem.axes))


def precision(problem: Problem) -> str:
    """How `tl.dot` treats float32 operands."""
    return "tf32" if problem.tf32 else "ieee"


def group(problem: Problem) -> int:
    """Query heads that share one key head."""
    return problem.heads // problem.kv_heads


class Layout(NamedTuple):
    """What the strides of all tensors of a kernel have in common."""

    is_wide: bool
    is_dense: bool


def layout(problem: Problem, rows: Strides, columns: Strides) -> Layout:
    """Whether an offset inside one batch entry needs 64 bits, and whether tokens lie evenly.

    Evenly means that in every tensor the stride of the last axis gives those of the others. `rows` are
    strides of tensors over outputs, `columns` of those over keys.
    """
    width = max(problem.dim, problem.value_dim)
    furthest = max(prod(problem.outputs) * problem.heads, prod(problem.lengths) * problem.kv_heads) * width
    is_dense = True
    for tensors, extents in ((rows, problem.outputs), (columns, problem.lengths)):
        for _, *steps, head, _ in tensors:
            spread = zip((*extents, problem.heads), (*steps, head), strict=True)
            furthest = max(furthest, width + sum((extent - 1) * step for extent, step in spread))
            even = [steps[-1] * prod(extents[place + 1 :]) for place in range(len(extents))]
            is_dense &= all(
                extent == 1 or step == wanted
                for extent, step, wanted in zip(extents, steps, even, strict=True)
            )
    return Layout(furthest > 2**31 - 1, is_dense)


def _dims(problem: Problem) -> tuple[int, ...]:
    dim, value_dim = problem.dim, problem.value_dim
    return dim, plan.padded(dim), value_dim, plan.padded(value_dim)


def _boxes(shape: plan.Shape) -> tuple:
    return shape.rows, shape.columns, shape.row_count, shape.column_count


def _options(shape: plan.Shape) -> dict[str, int]:
    return {"num_warps": shape.warps, "num_stages": shape.stages}


def _extra_strides(stride: tuple[int, ...]) -> tuple[int, ...]:
    return stride[:3] if stride else (0, 0, 0)


def _numbers(problem: Problem, scale: float, extra: bool) -> tuple:
    """Leading numbers of an attention kernel."""
    numbers = (scale * log2(e), problem.heads, group(problem), *lengths(problem))
    return (*numbers, problem.extra) if extra else numbers


def _scaled(problem: Problem, scale: float) -> bool:
    """Whether scores are scaled before they are masked: for a bias, or a scale that is not positive."""
    return problem.bias or scale <= 0


@lru_cache(4096)
def _forward(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.forward(problem)
    numbers = (
        *_numbers(problem, scale, extra=True),
        *(step for stride in given[:3] for step in spatial_strides(stride)),
        *(step for stride in given[4:6] for step in _extra_strides(stride)),
    )
    common = (*layout(problem, given[:1], given[1:3]), precision(problem))
    constants = (*rules(problem), *_boxes(shape), *_dims(problem))
    constants = (*constants, shape.heads_first, _scaled(problem, scale), *common)
    grid = problem.batch * problem.heads * shape.tiles
    return Launch(forward.attend, grid, numbers, constants, **_options(shape))


@lru_cache(4096)
def _small_forward(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.forward(problem)
    heads = plan.turns(problem)
    numbers = (
        *_numbers(problem, scale, extra=False),
        *(step for stride in given[:3] for step in spatial_strides(stride)),
    )
    common = (*layout(problem, given[:1], given[1:3]), precision(problem))
    constants = (*rules(problem), *_boxes(shape), *_dims(problem))
    constants = (*constants, heads, shape.stages, _scaled(problem, scale), *common)
    grid = problem.batch * problem.heads // heads * shape.tiles
    return Launch(small.attend, grid, numbers, constants, num_warps=shape.warps)


@lru_cache(4096)
def _delta(problem: Problem, given: tuple[int, ...]) -> Launch:
    rows = problem.batch * prod(problem.outputs) * problem.heads
    block = max(16, 4096 // plan.padded(problem.value_dim))
    numbers = (rows, problem.heads, *outputs(problem), *spatial_strides(given))
    constants = (block, problem.value_dim, plan.padded(problem.value_dim))
    return Launch(backward.delta_of, ceil(rows / block), numbers, constants, num_warps=4)


@lru_cache(4096)
def _query_gradient(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.query_gradient(problem)
    numbers = (
        *_numbers(problem, scale, extra=True),
        *(step for stride in given[:3] for step in spatial_strides(stride)),
        *(step for stride in given[4:6] for step in _extra_strides(stride)),
        *spatial_strides(given[6]),
    )
    flags = (
        shape.heads_first,
        _scaled(problem, scale),
        *layout(problem, (given[0], given[6]), given[1:3]),
        precision(problem),
    )
    constants = (*rules(problem), *_boxes(shape), *_dims(problem), *flags)
    grid = problem.batch * problem.heads * shape.tiles
    return Launch(backward.query_gradient, grid, numbers, constants, **_options(shape))


@lru_cache(4096)
def _key_gradient(problem: Problem, scale: float, given: Strides) -> Launch:
    shape = plan.key_gradient(problem)
    numbers = (
        *_numbers(problem, scale, extra=False),
        *(step for stride in (*given[:3], given[6]) for step in spatial_strides(stride)),
    )
    flags = (
        shape.heads_first,
        _scaled(problem, scale),
        *layout(problem, (given[0], given[6]), given[1:3]),
        precision(problem),
    )
    constants = (*rules(problem), *_boxes(shape), *_dims(problem), *flags)
    grid = problem.batch * problem.kv_heads * shape.tiles
    return Launch(backward.key_gradient, grid, numbers, constants, **_options(shape))


@lru_cache(4096)
def _extra_gradient(problem: Problem, scale: float, given: Strides) -> tuple[Launch, int]:
    """The launch, and the parts into which it splits its sums."""
    size = plan.extra_gradient(problem)
    tiles = problem.batch * problem.kv_heads * ceil(problem.extra / size.rows)
    rows = group(problem) * prod(problem.outputs)
    part = size.columns * ceil(rows / size.columns / max(1, BUSY // tiles))
    parts = ceil(rows / part)
    numbers = (
        *(scale * log2(e), problem.heads, group(problem), *outputs(problem), problem.extra, part),
        *spatial_strides(given[0]),
        *(step for stride in given[4:6] for step in _extra_strides(stride)),
        *spatial_strides(given[6]),
    )
    constants = (size.rows, size.columns, *_dims(problem), precision(problem))
    options = {"num_warps": size.warps, "num_stages": size.stages}
    return Launch(backward.extra_gradient, tiles * parts, numbers, constants, **options), parts


class _Split(NamedTuple):
    """Heads that a bias gradient works on at once, and the batch entries of each part of its sums."""

    heads: int
    part: int


@lru_cache(4096)
def _bias_split(problem: Problem) -> _Split:
    head_bytes = 4 * prod(problem.outputs) * prod(problem.window)
    heads = max(1, min(problem.heads, SCORES_LIMIT // head_bytes))
    tiles = plan.bias_gradient(problem).tiles
    parts = max(1, min(problem.batch, BUSY * 2 // (tiles * heads), SCORES_LIMIT // (head_bytes * heads)))
    return _Split(heads, ceil(problem.batch / parts))


@lru_cache(4096)
def _bias_gradient_launches(
    problem: Problem, scale: float, given: Strides, first: int
) -> tuple[Launch, Launch, tuple[int, ...]]:
    """Launches for the heads from `first` on, and the shape of the score gradients between them."""
    shape, split = plan.bias_gradient(problem), _bias_split(problem)
    heads = min(split.heads, problem.heads - first)
    parts = ceil(problem.batch / split.part)
    slots = prod(problem.window)
    numbers = (
        *_numbers(problem, scale, extra=False),
        *(problem.batch, split.part, first, heads),
        *(step for stride in (*given[:3], given[6]) for step in spatial_strides(stride)),
    )
    flags = (*layout(problem, (given[0], given[6]), given[1:3]), precision(problem))
    constants = (*rules(problem), *_boxes(shape), *_dims(problem), *flags)
    scores = Launch(
        bias_kernels.score_gradient, parts * heads * shape.tiles, numbers, constants, **_options(shape)
    )
    entries = prod(2 * size - 1 for size in problem.window)
    tally = Launch(
        bias_kernels.tally,
        heads * entries,
        (*lengths(problem), parts, first, heads),
        (*rules(problem), 1024),
        num_warps=4,
    )
    return scores, tally, (parts, heads, *problem.outputs, slots)
