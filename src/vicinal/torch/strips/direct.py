"""Small problems: one fused call of PyTorch over all pairs, with a mask, where tiles would take longer."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ...problem import Problem
from ..backends.base import Grads, Operands
from ..dense import unit_stride
from .arena import Like
from .plan import Part, estimate, product_cost, whole
from .scores import Additive

aten = torch.ops.aten


COST = 1.0
"""Factor on the cost of this path."""


@lru_cache(4096)
def faster(problem: Problem, back: bool = False) -> bool:
    """Whether all pairs at once are possible here and cost less than tiles."""
    exact = problem.device == "cpu" and problem.dtype in ("float32", "float64")
    if not exact or problem.extra or problem.dim != problem.value_dim or (back and problem.bias):
        return False
    part = whole(problem)
    if part is None:
        return False
    pairs = problem.batch * problem.heads * prod(problem.outputs) * prod(problem.lengths)
    score = product_cost(problem, prod(problem.outputs), prod(problem.lengths))
    cost = pairs * (2.5 * score + 2.4 if back else score + 1.2) + 40_000
    return COST * cost < estimate(problem, back)


def attend(problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
    query, key, value, bias = operands[:4]
    part = whole(problem)
    assert part is not None
    mask = _mask(part, bias, query)
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        _fold(part, query),
        _columns(key),
        _columns(value),
        0.0,
        False,
        attn_mask=mask,
        scale=scale,
    )
    return _unfold(part, out, query.shape), _unfold(part, lse.unsqueeze(-1), query.shape).squeeze(-1)


def attend_back(
    problem: Problem, operands: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
) -> Grads:
    query, key, value = operands[:3]
    part = whole(problem)
    assert part is not None
    mask = _mask(part, None, query)
    grad, rows, result = (_fold(part, x) for x in (grad_out, query, out))
    level = _fold(part, lse.unsqueeze(-1)).squeeze(-1).contiguous()
    saved = (grad, rows, _columns(key), _columns(value), result, level)
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *saved, 0.0, False, attn_mask=mask, scale=scale
    )
    columns = (x.transpose(1, 2).reshape(key.shape) for x in (dk, dv))
    return Grads(_unfold(part, dq, query.shape), *columns)


def _mask(part: Part, bias: Tensor | None, query: Tensor) -> Tensor:
    """`[1, kv_heads or 1, rows, keys]`."""
    like, slots = Like(query.dtype, query.device), part.pieces[0]
    if bias is None:
        mask = part.remember(("mask", slots, like), lambda: Additive(part, slots, None, range(1), like))
    else:
        mask = Additive(part, slots, bias.to(query.dtype), range(part.kv_heads), like)
    return mask.dense().unsqueeze(0)


def _fold(part: Part, x: Tensor) -> Tensor:
    """`[batch, *rows, heads, dim]` as `[batch, kv_heads, share * rows, dim]`: a group shares its keys."""
    x = unit_stride(x).flatten(1, part.rank)
    if part.share == 1:
        return x.transpose(1, 2)
    return x.unflatten(2, (part.kv_heads, part.share)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _unfold(part: Part, x: Tensor, shape: torch.Size) -> Tensor:
    x = x.unflatten(2, (part.share, -1)).permute(0, 3, 1, 2, 4)
    return x.reshape(*shape[:-1], x.shape[-1]).contiguous()


def _columns(x: Tensor) -> Tensor:
    return unit_stride(x).flatten(1, -3).transpose(1, 2)
