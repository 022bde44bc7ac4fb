"""Attention and its gradients on tensors: what is allocated, and which kernels run."""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from . import documents, launches, plan, ring_launches
from .launch import addresses_aligned, rows_aligned, strides
from .launches import Strides
from .tables import table


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


def forward(problem: Problem, operands: tuple, scale: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """What returns output and log-sum-exp of operands with the shapes, strides and dtypes of these."""
    given = inputs(problem, *operands)
    run = _forward(problem, tuple([strides(x) for x in given]), scale)
    if all(x is y for x, y in zip(given, operands, strict=True)):
        return run
    return lambda *others: run(*inputs(problem, *others))


class Forward:
    """Attention of inputs with the strides `steps`."""

    def __init__(self, problem: Problem, steps: Strides, scale: float) -> None:
        self.problem = problem
        self.rows = (*documents.extents(problem)[1], problem.heads)
        self.out = (*self.rows, problem.value_dim)
        self.tiles = None if problem.documents is None else documents.forward(problem)
        self.sweep = ring_launches.forward_launch(problem, scale, steps[:3])
        # A window that fills one box has no additional tokens and no documents.
        self.single = plan.forward(problem).single
        boxes = launches.small_forward_launch if self.single else launches.forward_launch
        self.launch = boxes(problem, scale, steps) if prod(self.rows) else None

    def __call__(self, query, key, value, bias, extra_key, extra_value) -> tuple[Tensor, Tensor]:
        out = query.new_empty(self.out)
        lse = query.new_empty(self.rows, dtype=torch.float32)
        if self.launch is None:
            return out, lse
        if self.sweep is not None and addresses_aligned((query, key, value)):
            self.sweep(query, key, value, out, lse)
        elif self.single:
            self.launch(query, key, value, bias, out, lse)
        elif self.tiles is None:
            self.launch(query, key, value, bias, extra_key, extra_value, None, out, lse)
        else:
            tiles = table(self.problem, query.device, self.tiles)
            self.launch(query, key, value, bias, extra_key, extra_value, tiles, out, lse)
        return out, lse


_forward = lru_cache(4096)(Forward)


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
    query, _, _, bias, extra_key, extra_value = given
    _, _, _, need_bias, need_extra_key, need_extra_value = needs
    grads: list[Tensor | None] = [None] * 6
    if not lse.numel():
        return [None if x is None else torch.zeros_like(x) for x in given]
    aligned: Tensor = torch.zeros_like(out) if grad_out is None else rows_aligned(grad_out)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    key_strides = (*[strides(x) for x in given], strides(aligned))
    saved = (out, lse, aligned, grad_lse)
    delta, *grads[:3] = _main_gradients(problem, given, saved, scale, key_strides, needs[:3])
    if bias is not None and need_bias:
        grads[3] = _bias_gradient(problem, given, scale, key_strides, aligned, lse, delta)
    if extra_key is not None and extra_value is not None and (need_extra_key or need_extra_value):
        launch, parts = launches.extra_gradient_launch(problem, scale, key_strides)
        sums = [
            torch.empty((parts, *x.shape), dtype=torch.float32, device=x.device)
            for x in (extra_key, extra_value)
        ]
        launch(query, extra_key, extra_value, aligned, lse, delta, table(problem, query.device), *sums)
        grads[4], grads[5] = (total.sum(0).to(query.dtype) for total in sums)
    return grads


def _main_gradients(
    problem: Problem,
    given: Inputs,
    saved: tuple[Tensor, Tensor, Tensor, Tensor | None],
    scale: float,
    key_strides: Strides,
    needs: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What `backward.py` calls delta, and the gradients of query, key and value."""
    (query, key, value), (out, lse, grad_out, grad_lse) = given[:3], saved
    to_query = to_key = to_value = sweep = None
    delta = torch.empty_like(lse)
    swept, steps = (query, key, value, grad_out), (*key_strides[:3], key_strides[6])
    even = addresses_aligned((*swept, out))
    if needs[0]:
        to_query = _blank_query(problem, query)
        sweep = ring_launches.query_gradient_launch(problem, scale, steps) if even else None
    if sweep is not None:
        sweep(query, key, value, out, grad_out, lse, grad_lse, delta, to_query)
    else:
        each = table(problem, query.device) if documents.is_padded(problem) else None
        launches.delta_launch(problem, strides(grad_out))(out, grad_out, grad_lse, each, delta)
    if sweep is None and to_query is not None:
        tiles = table(problem, query.device, documents.query_gradient(problem))
        launch = launches.query_gradient_launch(problem, scale, key_strides)
        launch(*given, grad_out, lse, delta, tiles, to_query)
    if needs[1] or needs[2]:
        to_key = key.new_empty(key.shape)
        to_value = value.new_empty(value.shape)
        sweep = ring_launches.key_gradient_launch(problem, scale, steps) if even else None
        if sweep is not None:
            sweep(*swept, lse, delta, to_key, to_value)
        else:
            launch = launches.key_gradient_launch(problem, scale, key_strides)
            tiles = table(problem, query.device, documents.key_gradient(problem))
            launch(query, key, value, given.bias, grad_out, lse, delta, tiles, to_key, to_value)
    return delta, to_query, to_key, to_value


def _blank_query(problem: Problem, query: Tensor) -> Tensor:
    """What the gradient of the query is written to; documents have queries between those of outputs."""
    grad = query.new_empty(query.shape)
    has_gaps = problem.documents is not None and any(axis.output_stride > 1 for axis in problem.axes)
    return grad.zero_() if has_gaps else grad


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
    for first in range(0, problem.heads, launches.bias_split(problem).heads):
        scores, tally, shape = launches.bias_gradient_launches(problem, scale, key_strides, first)
        held = torch.empty(shape, dtype=torch.float32, device=query.device)
        tiles = table(problem, query.device, documents.bias_gradient(problem))
        scores(query, key, value, bias, grad_out, lse, delta, tiles, held)
        tally(held, table(problem, query.device), grad_bias)
    return grad_bias
