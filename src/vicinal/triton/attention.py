"""Attention and its gradients on tensors: what is allocated, and which kernels run."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from . import documents, launches, plan, ring_launches
from .launch import addresses_aligned, rows_aligned, strides
from .launches import Strides
from .tables import table

_blank = partial(torch.empty_like, memory_format=torch.contiguous_format)


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


def backward(
    problem: Problem, given: tuple, scale: float, needs: tuple[bool, ...]
) -> Callable[..., tuple[Tensor | None, ...]]:
    """What returns gradients of operands, None where not needed, of tensors with the geometry of these.

    They are operands, output and log-sum-exp, and the gradients of both.
    """
    if not given[7].numel():
        return lambda *others: _wanted(
            [None if x is None else torch.zeros_like(x) for x in others[:6]], needs
        )
    aligned = _aligned(problem, given)
    steps = tuple([strides(x) for x in (*aligned[:6], aligned[8])])
    run = _backward(problem, steps, scale, needs)
    if all(x is y for x, y in zip(aligned, given, strict=True)):
        return run

    def run_aligned(*others: Any) -> tuple[Tensor | None, ...]:
        grads, bias = list(run(*_aligned(problem, others))), others[3]
        grads[3] = None if grads[3] is None else grads[3].to(bias.dtype)
        return tuple(grads)

    return run_aligned


def _aligned(problem: Problem, given: tuple) -> tuple[Any, ...]:
    """What `backward` is given, as the kernels read it."""
    *operands, out, lse, grad_out, grad_lse = given
    grad_out = torch.zeros_like(out) if grad_out is None else rows_aligned(grad_out)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    return (*inputs(problem, *operands), out, lse, grad_out, grad_lse)


def _wanted(grads: Sequence[Tensor | None], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple([grad if need else None for grad, need in zip(grads, needs, strict=True)])


class Backward:
    """Gradients of inputs with the strides `steps`, the last of which are those of the output's gradient."""

    def __init__(self, problem: Problem, steps: Strides, scale: float, needs: tuple[bool, ...]) -> None:
        self.problem, self.needs = problem, needs
        self.wants_keys = needs[1] or needs[2]
        swept = (problem, scale, (*steps[:3], steps[6]))
        self.query_sweep = ring_launches.query_gradient_launch(*swept) if needs[0] else None
        self.key_sweep = ring_launches.key_gradient_launch(*swept)
        self.delta = launches.delta_launch(problem, steps[6])
        self.query = launches.query_gradient_launch(problem, scale, steps)
        self.key = launches.key_gradient_launch(problem, scale, steps)
        self.is_padded = documents.is_padded(problem)
        self.query_tiles, self.key_tiles = documents.query_gradient(problem), documents.key_gradient(problem)
        self.has_gaps = problem.documents is not None and any(axis.output_stride > 1 for axis in problem.axes)
        wants_bias, wants_extra = problem.bias and needs[3], problem.extra and (needs[4] or needs[5])
        heads = range(0, problem.heads, launches.bias_split(problem).heads) if wants_bias else ()
        self.bias = [launches.bias_gradient_launches(problem, scale, steps, first) for first in heads]
        self.extra = launches.extra_gradient_launch(problem, scale, steps) if wants_extra else None

    def __call__(
        self, query, key, value, bias, extra_key, extra_value, out, lse, grad_out, grad_lse
    ) -> tuple[Tensor | None, ...]:
        problem = self.problem
        grads: list[Tensor | None] = [None] * 6
        given, flow = (query, key, value, bias, extra_key, extra_value), (out, lse, grad_out, grad_lse)
        is_even = addresses_aligned((query, key, value, grad_out, out))
        delta, grads[0] = self._query_gradient(given, flow, is_even)
        if self.wants_keys:
            grads[1:3] = to_keys = _blank(key), _blank(value)
            if self.key_sweep is not None and is_even:
                self.key_sweep(query, key, value, grad_out, lse, delta, *to_keys)
            else:
                tiles = table(problem, query.device, self.key_tiles)
                self.key(query, key, value, bias, grad_out, lse, delta, tiles, *to_keys)
        rows = (grad_out, lse, delta)
        if self.bias:
            grads[3] = self._bias_gradient((query, key, value, bias), rows)
        if self.extra is not None:
            launch, parts = self.extra
            sums = [lse.new_empty((parts, *x.shape)) for x in (extra_key, extra_value)]
            launch(query, extra_key, extra_value, *rows, table(problem, query.device), *sums)
            grads[4:] = [total.sum(0).to(query.dtype) for total in sums]
        return _wanted(grads, self.needs)

    def _query_gradient(self, given: tuple, flow: tuple, is_even: bool) -> tuple[Tensor, Tensor | None]:
        """What `backward.py` calls delta, and the gradient of the query if needed."""
        query, (out, lse, grad_out, grad_lse) = given[0], flow
        delta = torch.empty_like(lse)
        to_query = _blank(query) if self.needs[0] else None
        if self.query_sweep is not None and is_even:
            self.query_sweep(*given[:3], out, grad_out, lse, grad_lse, delta, to_query)
            return delta, to_query
        each = table(self.problem, query.device, self.query_tiles) if self.is_padded else None
        self.delta(out, grad_out, grad_lse, each, delta)
        if to_query is not None:
            # Documents have queries between those of outputs.
            to_query = to_query.zero_() if self.has_gaps else to_query
            tiles = table(self.problem, query.device, self.query_tiles)
            self.query(*given, grad_out, lse, delta, tiles, to_query)
        return delta, to_query

    def _bias_gradient(self, given: tuple, rows: tuple) -> Tensor:
        problem, device = self.problem, given[0].device
        grad_bias = torch.empty_like(given[3])
        for scores, tally, shape in self.bias:
            held = torch.empty(shape, dtype=torch.float32, device=device)
            scores(*given, *rows, table(problem, device, documents.bias_gradient(problem)), held)
            tally(held, table(problem, device), grad_bias)
        return grad_bias


_backward = lru_cache(4096)(Backward)
