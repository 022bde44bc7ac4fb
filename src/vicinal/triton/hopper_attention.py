"""Attention and its gradients by the Hopper kernels: what is allocated, and what runs with which boxes."""

from collections.abc import Callable
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..problem import Problem
from . import hopper_plan as plans
from .hopper_forward import attend as attend_kernel
from .hopper_forward import attend_groups
from .hopper_key_gradient import differentiate_key_groups, differentiate_keys
from .hopper_launch import GroupLaunch, Launch, Map, mapped, strides_fit
from .hopper_query_gradient import differentiate_queries, differentiate_query_groups

LOG2E = 1.4426950408889634


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


def attend_back(
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    scale: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of queries, keys and values, where `needs` asks for them."""
    query, positive = _with_positive_scale(query, scale)
    query, key, value = mapped(query), mapped(key), mapped(value)
    # A product with zeros is rare enough to be a product.
    grad_out = torch.zeros_like(out) if grad_out is None else mapped(grad_out)
    rows = problem.batch * problem.heads * prod(problem.outputs)
    statistics = torch.empty(2, rows, dtype=torch.float32, device=out.device)
    grad_query = query.new_empty(query.shape) if needs[0] else query
    kept = (out.contiguous(), lse, lse if grad_lse is None else grad_lse.contiguous(), statistics)
    launch = query_gradient_launch(problem, needs[0], grad_lse is not None)
    launch((query, grad_out, key, value, grad_query), kept, (scale, positive * LOG2E))
    scales = (positive, positive * LOG2E)
    grads: list[Tensor | None] = [grad_query if needs[0] else None, None, None]
    if needs[1] or needs[2]:
        grads[1], grads[2] = (x.new_empty(x.shape) for x in (key, value))
        tensors = (key, value, query, grad_out, grads[1], grads[2])
        for launch in key_gradient_launches(problem, needs[1], needs[2]):
            launch(tensors, (statistics,), scales)
    return grads[0], grads[1] if needs[1] else None, grads[2] if needs[2] else None


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


def _launch(
    kernels, spec: plans.Spec, programs: int, maps: tuple[Map, ...], numbers: tuple, problem: Problem
):
    """A launch of the first kernel, or with dilation of the second."""
    if spec.dilated:
        return GroupLaunch(kernels[1], spec, programs, maps, (*numbers, problem.dim, problem.value_dim))
    return Launch(kernels[0], spec, programs, maps, numbers)


@lru_cache(256)
def forward_launch(problem: Problem) -> Launch:
    """The forward, compiled and mapped for a problem."""
    spec, programs = plans.forward(problem)
    query, out, key, value, numbers = _extents(problem)
    maps = (
        Map(query, spec.rows, spec.dim, spec.key_bytes),
        Map(key, spec.columns, spec.dim, spec.key_bytes),
        Map(value, spec.columns, spec.value_dim),
        Map(out, spec.rows, spec.value_dim),
    )
    return _launch((attend_kernel, attend_groups), spec, programs, maps, numbers, problem)


@lru_cache(256)
def query_gradient_launch(problem: Problem, wants_query: bool, has_grad_lse: bool) -> Launch:
    """The gradient of queries and what that of keys reads, compiled and mapped for a problem."""
    spec, programs = plans.query_gradient(problem, wants_query, has_grad_lse)
    query, out, key, value, numbers = _extents(problem)
    maps = (
        Map(query, spec.rows, spec.dim),
        Map(out, spec.rows, spec.value_dim),
        Map(key, spec.columns, spec.dim),
        Map(value, spec.columns, spec.value_dim),
        Map(query, spec.rows, spec.dim),
    )
    kernels = (differentiate_queries, differentiate_query_groups)
    return _launch(kernels, spec, programs, maps, (*numbers, prod(out[:-1])), problem)


@lru_cache(256)
def key_gradient_launches(problem: Problem, wants_key: bool, wants_value: bool) -> tuple[Launch, ...]:
    """The gradients of keys and values; two kernels where the sums of both do not fit into registers."""
    query, out, key, value, numbers = _extents(problem)
    launches = []
    for spec, programs in plans.key_gradients(problem, wants_key, wants_value):
        maps = (
            Map(key, spec.rows, spec.dim),
            Map(value, spec.rows, spec.value_dim),
            Map(query, spec.columns, spec.dim),
            Map(out, spec.columns, spec.value_dim),
            Map(key, spec.rows, spec.dim),
            Map(value, spec.rows, spec.value_dim),
        )
        kernels = (differentiate_keys, differentiate_key_groups)
        launches.append(_launch(kernels, spec, programs, maps, (*numbers, prod(out[:-1])), problem))
    return tuple(launches)
