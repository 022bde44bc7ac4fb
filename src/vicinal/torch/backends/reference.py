"""Neighborhood attention by its definition: every window gathered, every weight kept. On any device."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ... import spans
from ...problem import ONE_DTYPE, SHAPE_BY_SHAPE, Problem
from ...window import Axis
from .. import composite, relative, tables
from ..composite import wide
from .base import Backend, Grads, Needs, Operands


class Reference(Backend):
    """Readable; memory grows with tokens times window. A non-finite token reaches only those who see it."""

    name = "reference"

    def refusal(self, problem: Problem) -> str | None:
        if problem.key_dtype is not None:
            return ONE_DTYPE
        return None if problem.documents is None else SHAPE_BY_SHAPE

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = composite.attend(_walks(problem), composite.parts(*operands), scale)
        return out.to(operands.query.dtype).contiguous(), lse.contiguous()

    def attend_back(
        self,
        problem: Problem,
        operands: Operands,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor | None,
        grad_lse: Tensor | None,
        scale: float,
        needs: Needs,
    ) -> Grads:
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        query, key, value, bias = composite.attend_back(
            _walks(problem), composite.parts(*operands), wide(grad_out), wide(grad_lse), scale
        )
        grads = (query, key.window, value.window, bias, key.extra, value.extra)
        return Grads(
            *(
                _narrow(grad, operand.dtype) if need and grad is not None and operand is not None else None
                for grad, operand, need in zip(grads, operands, needs, strict=True)
            )
        )

    def dot(
        self, problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float
    ) -> Tensor:
        walks = _walks(problem)
        weights = walks.dot_window(wide(x) * scale, wide(y), 0.0)
        if bias is not None:
            weights = weights + walks.spread(wide(bias))
        return _fill(weights, problem, fill).to(x.dtype).contiguous()

    def mix(self, problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
        return _walks(problem).mix_window(wide(weights), wide(y)).to(y.dtype).contiguous()

    def mix_back(self, problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
        return _walks(problem).mix_back_window(wide(weights), wide(x)).to(x.dtype).contiguous()


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous()


def _walks(problem: Problem) -> composite.Walks:
    axes, kv_heads, rank = problem.axes, problem.kv_heads, problem.rank

    def dot(x: Tensor, y: Tensor, fill: float) -> Tensor:
        rows = x.flatten(1, rank).unflatten(-2, (kv_heads, -1))
        weights = torch.einsum("bnhgd,bnshd->bnhgs", rows, _gather(y, axes)).reshape(*x.shape[:-1], -1)
        return _fill(weights, problem, fill)

    def mix(weights: Tensor, y: Tensor) -> Tensor:
        rows = _fill(weights, problem, 0.0).flatten(1, rank).unflatten(-2, (kv_heads, -1))
        out = torch.einsum("bnhgs,bnshd->bnhgd", rows, _gather(y, axes))
        return out.reshape(*weights.shape[:-1], y.shape[-1])

    def mix_back(weights: Tensor, x: Tensor) -> Tensor:
        seen_by, slot, holds = _inverse(axes, x.device)
        rows = x.flatten(1, rank)[:, seen_by]
        # [batch, tokens, seen, heads]: the weight with which each output sees the key
        picked = weights.flatten(1, rank).transpose(-1, -2)[:, seen_by, slot]
        picked = picked.masked_fill(~holds.unsqueeze(-1), 0).unflatten(-1, (kv_heads, -1))
        rows = rows.masked_fill(~holds[..., None, None], 0).unflatten(-2, (kv_heads, -1))
        return torch.einsum("bjnhg,bjnhgd->bjhd", picked, rows).unflatten(1, problem.lengths)

    return composite.Walks(
        dot,
        mix,
        mix_back,
        lambda bias: relative.spread(bias, axes),
        lambda weights: relative.tally(weights, axes),
        prod(problem.window),
    )


def _fill(weights: Tensor, problem: Problem, fill: float) -> Tensor:
    """`weights` with `fill` in slots that hold no key."""
    visible = tables.visible_slots(problem.axes, weights.device)
    return weights if visible is None else weights.masked_fill(~visible.unsqueeze(problem.rank), fill)


def _gather(y: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """`[batch, outputs, slots, kv_heads, dim]` keys of every window."""
    rank, index = len(axes), torch.zeros((), dtype=torch.int64, device=y.device)
    for place, axis in enumerate(axes):
        shape = [1] * 2 * rank
        shape[place], shape[rank + place] = axis.outputs, axis.size
        index = index * axis.length + tables.keys(axis, y.device).view(shape)
    return y.flatten(1, rank)[:, index.flatten(0, rank - 1).flatten(1)]


@lru_cache(64)
def _inverse(axes: tuple[Axis, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every key, `[tokens, seen]`: an output that sees it, its slot there, whether the entry counts."""
    rank = len(axes)
    output = slot = torch.zeros((), dtype=torch.int64, device=device)
    holds = torch.ones((), dtype=torch.bool, device=device)
    for place, axis in enumerate(axes):
        per_axis = _inverse_axis(axis, device)
        shape = [1] * 2 * rank
        shape[place], shape[rank + place] = per_axis[0].shape
        ours, theirs, valid = (table.view(shape) for table in per_axis)
        output, slot, holds = output * axis.outputs + ours, slot * axis.size + theirs, valid & holds
    flat = [table.expand(holds.shape).flatten(0, rank - 1).flatten(1) for table in (output, slot, holds)]
    return flat[0], flat[1], flat[2]


def _inverse_axis(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows = [axis.queries(key) for key in range(axis.length)]
    widest = max(map(len, rows))
    first = spans.windows(axis)[0]
    outputs, slots, holds = [], [], []
    for key, seen in enumerate(rows):
        blank = widest - len(seen)
        outputs.append([*seen, *[0] * blank])
        slots.append([*((key - first[output]) // axis.dilation for output in seen), *[0] * blank])
        holds.append([True] * len(seen) + [False] * blank)
    return (
        torch.tensor(outputs, device=device),
        torch.tensor(slots, device=device),
        torch.tensor(holds, device=device),
    )


REFERENCE = Reference()
