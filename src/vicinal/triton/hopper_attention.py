"""Attention and its gradients by the Hopper kernels: what is allocated, and what runs with which boxes."""

from collections.abc import Callable
from functools import lru_cache, partial
from math import prod

import torch
from torch import Tensor

from ..problem import Problem
from . import hopper_kept_plan as kept_plans
from . import hopper_plan as plans
from .hopper_forward import attend as attend_kernel
from .hopper_forward import attend_groups
from .hopper_key_gradient import differentiate_key_groups, differentiate_keys, differentiate_keys_and_keep
from .hopper_launch import GroupLaunch, Launch, Map, mapped, strides_fit, taking_turns
from .hopper_query_gradient import differentiate_queries, differentiate_query_groups
from .hopper_query_sum import sum_queries
from .hopper_spec import Spec

LOG2E = 1.4426950408889634
_blank = partial(torch.empty_like, memory_format=torch.contiguous_format)


def forward(problem: Problem, operands: tuple, scale: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """What returns output and log-sum-exp of operands with the shapes, strides and dtypes of these."""
    launch = forward_launch(problem)
    rows = (problem.batch, *problem.outputs, problem.heads)
    out_shape = (*rows, problem.value_dim)

    def attend(query: Tensor, key: Tensor, value: Tensor, numbers: tuple) -> tuple[Tensor, Tensor]:
        out = value.new_empty(out_shape)
        lse = query.new_empty(rows, dtype=torch.float32)
        launch((query, key, value, out), (lse,), numbers)
        return out, lse

    def attend_any(query, key, value, *_):
        query, positive = _with_positive_scale(query, scale)
        return attend(mapped(query), mapped(key), mapped(value), (positive * LOG2E,))

    if scale <= 0 or not all(map(strides_fit, operands[:3])):
        return attend_any
    numbers = (scale * LOG2E,)

    def attend_mapped(query, key, value, *others):
        if (query.data_ptr() | key.data_ptr() | value.data_ptr()) % 16:
            return attend_any(query, key, value, *others)
        return attend(query, key, value, numbers)

    return attend_mapped


def backward(
    problem: Problem, given: tuple, scale: float, needs: tuple[bool, ...]
) -> Callable[..., tuple[Tensor | None, ...]]:
    """What returns gradients of operands, None where not needed, of tensors with the geometry of these.

    They are operands, output and log-sum-exp, and the gradients of both.
    """
    query, key, value, *_, grad_out, grad_lse = given
    kept = kept_plans.kept(problem) if all(needs[:3]) else None
    if kept is None:
        differentiate = _computing_anew(problem, scale, needs, grad_lse is not None)
    else:
        differentiate = _keeping_slopes(problem, scale, kept, grad_lse is not None)

    def differentiate_any(query, key, value, _bias, _extra_key, _extra_value, out, lse, grad_out, grad_lse):
        # A product with zeros is rare enough to be a product.
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        query, _ = _with_positive_scale(query, scale)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        query, key, value, out, grad_out = map(mapped, (query, key, value, out, grad_out))
        return differentiate(query, key, value, out, lse, grad_out, grad_lse)

    described = (query, key, value, grad_out)
    is_mapped = scale > 0 and all(x is not None and strides_fit(x) for x in described)
    if not is_mapped or not (grad_lse is None or grad_lse.is_contiguous()):
        return differentiate_any

    def differentiate_mapped(*given):
        query, key, value, _, _, _, out, lse, grad_out, grad_lse = given
        inputs = query.data_ptr() | key.data_ptr() | value.data_ptr()
        if (inputs | out.data_ptr() | grad_out.data_ptr()) % 16:
            return differentiate_any(*given)
        return differentiate(query, key, value, out, lse, grad_out, grad_lse)

    return differentiate_mapped


def _computing_anew(problem: Problem, scale: float, needs: tuple[bool, ...], has_grad_lse: bool):
    """What returns gradients that are needed, by way of slopes that each kernel computes."""
    wants_query, wants_key, wants_value, *_ = needs
    wants_keys = wants_key or wants_value
    summarize = _summarizing(problem, scale, wants_query, has_grad_lse)
    key_launches = key_gradient_launches(problem, wants_key, wants_value) if wants_keys else ()
    positive = abs(scale) or 1.0

    def differentiate(query, key, value, out, lse, grad_out, grad_lse) -> tuple[Tensor | None, ...]:
        to_query = _blank(query) if wants_query else None
        statistics = summarize(query, key, value, out, lse, grad_out, grad_lse, to_query)
        grads: list[Tensor | None] = [to_query, *(None,) * 5]
        if wants_keys:
            to_key, to_value = _blank(key), _blank(value)
            for launch in key_launches:
                tensors = (key, value, query, grad_out, to_key, to_value)
                launch(tensors, (statistics,), (positive, positive * LOG2E))
            grads[1:3] = to_key if wants_key else None, to_value if wants_value else None
        return tuple(grads)

    return differentiate


def _keeping_slopes(problem: Problem, scale: float, kept: kept_plans.Kept, has_grad_lse: bool):
    """What returns gradients of all operands, by way of slopes in memory, of some heads at a time."""
    summarize = _summarizing(problem, scale, False, has_grad_lse)
    group = problem.heads // problem.kv_heads
    heads = problem.batch * problem.kv_heads
    some = -(-heads // kept.turns)
    key_launch, query_launch = kept_launches(problem, kept, some * group)
    value_launches = () if kept.keys.spec.wants_value else key_gradient_launches(problem, False, True)
    key_tiles, query_tiles = key_launch.programs // heads, query_launch.programs // heads
    room = (1, some * group * kept.blocks * plans.ROWS, 1, 1, 1, plans.ROWS)
    positive = abs(scale) or 1.0

    def differentiate(query, key, value, out, lse, grad_out, grad_lse) -> tuple[Tensor | None, ...]:
        statistics = summarize(query, key, value, out, lse, grad_out, grad_lse, None)
        to_query, to_key, to_value = _blank(query), _blank(key), _blank(value)
        tensors = (key, value, query, grad_out, to_key, to_value)
        for launch in value_launches:
            launch(tensors, (statistics,), (positive, positive * LOG2E))

        def part(first: int, slopes: Tensor) -> None:
            stop = min(first + some, heads)
            tiles = (first * key_tiles, stop * key_tiles, first * group)
            key_launch(tensors, (statistics, slopes), (positive, positive * LOG2E, *tiles))
            tiles = (first * query_tiles, stop * query_tiles, first * group)
            query_launch((key, slopes, to_query), (), (scale, *tiles))

        rooms = [query.new_empty(room) for _ in range(kept.rooms)]
        # While the last tiles of one part are computed, the first of the next are.
        taking_turns([partial(part, first) for first in range(0, heads, some)], rooms)
        return to_query, to_key, to_value, None, None, None

    return differentiate


def _summarizing(problem: Problem, scale: float, wants_query: bool, has_grad_lse: bool):
    """What returns the statistics of rows that gradients of keys read, and writes the gradient of queries."""
    launch = query_gradient_launch(problem, wants_query, has_grad_lse)
    rows = problem.batch * problem.heads * prod(problem.outputs)
    numbers = scale, (abs(scale) or 1.0) * LOG2E

    def summarize(query, key, value, out, lse, grad_out, grad_lse, to_query: Tensor | None) -> Tensor:
        statistics = lse.new_empty((2, rows))
        tensors = (query, grad_out, key, value, query if to_query is None else to_query)
        launch(tensors, (out, lse, lse if grad_lse is None else grad_lse, statistics), numbers)
        return statistics

    return summarize


def _with_positive_scale(query: Tensor, scale: float) -> tuple[Tensor, float]:
    """Queries and a positive scale with the same products: kernels take the maximum of unscaled scores."""
    if scale > 0:
        return query, scale
    if scale == 0:
        return torch.zeros_like(query), 1.0
    # Float8 has no arithmetic, but a sign bit.
    return -query if query.itemsize > 1 else (query.view(torch.uint8) ^ 128).view(query.dtype), -scale


def _extents(problem: Problem) -> tuple:
    """Extents of queries, outputs, keys and values, and the numbers that end kernels' parameters."""
    ones = (1,) * (3 - problem.rank)
    outputs, lengths = ones + problem.outputs, ones + problem.lengths
    rows = (problem.batch, *outputs, problem.heads)
    columns = (problem.batch, *lengths, problem.kv_heads)
    numbers = (*outputs, *lengths, problem.heads, problem.heads // problem.kv_heads)
    dim, value_dim = problem.dim, problem.value_dim
    return (*rows, dim), (*rows, value_dim), (*columns, dim), (*columns, value_dim), numbers


def _launch(kernels, spec: Spec, programs: int, maps: tuple[Map, ...], numbers: tuple, problem: Problem):
    """A launch of the first kernel, or with dilation of the second."""
    if not spec.dilated:
        return Launch(kernels[0], spec, programs, maps, numbers)
    start = GroupLaunch if spec.described else Launch
    return start(kernels[1], spec, programs, maps, (*numbers, problem.dim, problem.value_dim))


@lru_cache(256)
def forward_launch(problem: Problem) -> Launch:
    """The forward, compiled and mapped for a problem."""
    spec, programs = plans.forward(problem)
    query, out, key, value, numbers = _extents(problem)
    maps = (
        Map(query, spec.rows, spec.dim, spec.key_bytes, spec.dilation),
        Map(key, spec.columns, spec.dim, spec.key_bytes, spec.dilation),
        Map(value, spec.columns, spec.value_dim, dilation=spec.dilation),
        Map(out, spec.rows, spec.value_dim, dilation=spec.dilation),
    )
    return _launch((attend_kernel, attend_groups), spec, programs, maps, (*numbers, programs), problem)


@lru_cache(256)
def query_gradient_launch(problem: Problem, wants_query: bool, has_grad_lse: bool) -> Launch:
    """The gradient of queries and what that of keys reads, compiled and mapped for a problem."""
    spec, programs = plans.query_gradient(problem, wants_query, has_grad_lse)
    query, out, key, value, numbers = _extents(problem)
    maps = (
        Map(query, spec.rows, spec.dim, dilation=spec.dilation),
        Map(out, spec.rows, spec.value_dim, dilation=spec.dilation),
        Map(key, spec.columns, spec.dim, dilation=spec.dilation),
        Map(value, spec.columns, spec.value_dim, dilation=spec.dilation),
        Map(query, spec.rows, spec.dim, dilation=spec.dilation),
    )
    kernels = (differentiate_queries, differentiate_query_groups)
    return _launch(kernels, spec, programs, maps, (*numbers, programs, prod(out[:-1])), problem)


@lru_cache(256)
def key_gradient_launches(problem: Problem, wants_key: bool, wants_value: bool) -> tuple[Launch, ...]:
    """The gradients of keys and values; two kernels where the sums of both do not fit into registers."""
    _, out, _, _, numbers = _extents(problem)
    launches = []
    for spec, programs in plans.key_gradients(problem, wants_key, wants_value):
        maps = _key_gradient_maps(spec, problem)
        kernels = (differentiate_keys, differentiate_key_groups)
        last = (*numbers, programs, prod(out[:-1]))
        launches.append(_launch(kernels, spec, programs, maps, last, problem))
    return tuple(launches)


def _key_gradient_maps(spec: Spec, problem: Problem) -> tuple[Map, ...]:
    query, out, key, value, _ = _extents(problem)
    return (
        Map(key, spec.rows, spec.dim, dilation=spec.dilation),
        Map(value, spec.rows, spec.value_dim, dilation=spec.dilation),
        Map(query, spec.columns, spec.dim, dilation=spec.dilation),
        Map(out, spec.columns, spec.value_dim, dilation=spec.dilation),
        Map(key, spec.rows, spec.dim, dilation=spec.dilation),
        Map(value, spec.rows, spec.value_dim, dilation=spec.dilation),
    )


@lru_cache(256)
def kept_launches(problem: Problem, kept: kept_plans.Kept, walks: int) -> tuple[Launch, Launch]:
    """Gradients of keys, or of values too, which leave slopes of `walks` heads, and of queries from those."""
    query, out, key, _, numbers = _extents(problem)
    rows, width = walks * kept.blocks * plans.ROWS, plans.ROWS
    slopes = Map((1, rows, 1, 1, 1, width), (width, 1, 1), width)
    spec, programs = kept.keys
    maps = _key_gradient_maps(spec, problem)
    keys = Launch(differentiate_keys_and_keep, spec, programs, maps, (*numbers, prod(out[:-1])))
    spec, programs = kept.queries
    maps = (Map(key, spec.columns, spec.dim), slopes, Map(query, spec.rows, spec.dim))
    return keys, Launch(sum_queries, spec, programs, maps, numbers)
