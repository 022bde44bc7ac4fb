"""Small problems: one fused call of PyTorch over all pairs, with a mask, where tiles would take longer."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...problem import Problem
from ..backends.base import Grads, Operands, Ready
from ..composite import accumulating
from ..dense import unit_stride
from .arena import Like
from .costs import product_cost
from .passes import boxes
from .plan import TABLE, Part, estimate, whole
from .scores import HIDDEN, Additive

aten = torch.ops.aten
COPIES = 12 << 20
"""Bytes of copies of operands and results in one call."""


@lru_cache(4096)
def faster(problem: Problem, back: bool = False) -> bool:
    """Whether all pairs at once are possible here and cost less than tiles."""
    found = cost(problem, back)
    return found is not None and found < estimate(problem, back)


def cost(problem: Problem, back: bool) -> float | None:
    """Nanoseconds for all pairs at once, on one core; None where they are not possible here."""
    wide, narrow = problem.dtype == "float64", problem.dtype in ("bfloat16", "float16")
    option = problem.extra or problem.dim != problem.value_dim or (back and (problem.bias or narrow))
    if problem.device != "cpu" or option:
        return None
    part, heads = whole(problem), problem.kv_heads if problem.bias else 1
    if part is None or heads * part.rows * prod(problem.lengths) * (8 if wide else 4) > TABLE:
        return None
    if not _at_a_time(problem, part):
        return None
    pairs = problem.batch * problem.heads * prod(problem.outputs) * prod(problem.lengths)
    score = product_cost(problem, prod(problem.outputs), prod(problem.lengths))
    found = pairs * (2.5 * score + 2.4 if back else score + 1.2) + (55_000 if narrow else 40_000)
    return 2 * found if _alone(problem.batch * problem.kv_heads, part, back) else found


def prepare(problem: Problem, operands: Operands, scale: float) -> Ready:
    """What computes attention of operands like these."""
    part, kernel = whole(problem), aten._scaled_dot_product_flash_attention_for_cpu.default
    assert part is not None
    more, groups = _more(problem, part), _groups(problem, part)
    dtype = operands.query.dtype
    # Narrow operands are widened: the kernel would round their scores.
    wide = operands.query.new_empty((), dtype=accumulating(dtype))
    fixed = None if problem.bias else pad(_mask(part, None, wide), (0, more), value=HIDDEN)

    def launch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        shape, alone = query.shape, _alone(key.shape[0] * key.shape[-2], part, False)
        query, key, value = (x.to(wide.dtype) for x in (query, key, value))
        folded = [_fold(part, query), _columns(key), _columns(value)]
        if more:
            folded[1:] = (pad(x, (0, 0, 0, more)) for x in folded[1:])
        if alone:
            folded = [_twice(x) for x in folded]
        out, lse = kernel(*folded, 0.0, False, attn_mask=mask, scale=scale)
        if alone:
            out, lse = out[:1], lse[:1]
        return _unfold(part, out, shape).to(dtype), _unfold(part, lse, shape[:-1])

    def run(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *_: None
    ) -> tuple[Tensor, Tensor]:
        mask = pad(_mask(part, bias, wide), (0, more), value=HIDDEN) if fixed is None else fixed
        if len(groups) == 1:
            return launch(query, key, value, mask)
        out, lse = query.new_empty(query.shape), query.new_empty(query.shape[:-1], dtype=wide.dtype)
        for one in groups:
            made = launch(one.rows(query), one.columns(key), one.columns(value), one.mask(mask))
            one.rows(out).copy_(made[0])
            one.rows(lse.unsqueeze(-1)).copy_(made[1].unsqueeze(-1))
        return out, lse

    return run


def attend_back(
    problem: Problem, operands: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
) -> Grads:
    part = whole(problem)
    assert part is not None
    rows, columns = (operands.query, out, lse.unsqueeze(-1), grad_out), operands[1:3]
    mask, groups = _mask(part, None, operands.query), _groups(problem, part)
    if len(groups) == 1:
        return Grads(*_differentiate(part, mask, rows, columns, scale))
    dq, dk, dv = (x.new_empty(x.shape) for x in operands[:3])
    for one in groups:
        mine = list(map(one.rows, rows)), list(map(one.columns, columns))
        made = _differentiate(part, mask, mine[0], mine[1], scale)
        for sink, x in zip((one.rows(dq), one.columns(dk), one.columns(dv)), made, strict=True):
            sink.copy_(x)
    return Grads(dq, dk, dv)


def _differentiate(
    part: Part, mask: Tensor, of_rows: Sequence[Tensor], of_columns: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    (query, out, lse, grad_out), (key, value) = of_rows, of_columns
    grad, rows, result = (_fold(part, x) for x in (grad_out, query, out))
    level = _fold(part, lse).squeeze(-1).contiguous()
    saved = (grad, rows, _columns(key), _columns(value), result, level)
    if _alone(key.shape[0] * key.shape[-2], part, True):
        saved = map(_twice, saved)
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *saved, 0.0, False, attn_mask=mask, scale=scale
    )
    dq, dk, dv = (x[: query.shape[0]] for x in (dq, dk, dv))
    dk, dv = (x.transpose(1, 2).reshape(key.shape) for x in (dk, dv))
    return _unfold(part, dq, query.shape), dk, dv


class _Group(NamedTuple):
    """Batch entries and key/value heads of one call, so many that their copies take little memory."""

    entries: slice
    heads: slice
    share: int

    def rows(self, x: Tensor) -> Tensor:
        """Of `[batch, *rows, heads, dim]`."""
        return x[self.entries, ..., self.heads.start * self.share : self.heads.stop * self.share, :]

    def columns(self, x: Tensor) -> Tensor:
        """Of `[batch, *columns, kv_heads, dim]`."""
        return x[self.entries, ..., self.heads, :]

    def mask(self, x: Tensor) -> Tensor:
        return x if x.shape[1] == 1 else x[:, self.heads]


def _groups(problem: Problem, part: Part) -> tuple[_Group, ...]:
    grid, most = (problem.batch, problem.kv_heads), _at_a_time(problem, part)
    return tuple(_Group(entries, heads, part.share) for entries, heads in boxes(grid, most))


def _at_a_time(problem: Problem, part: Part) -> int:
    """Key/value heads of batch entries whose operands and results may be copied in one call."""
    numbers = 2 * (part.rows + prod(problem.lengths)) * problem.dim
    return COPIES // (numbers * (8 if problem.dtype == "float64" else 4))


def _alone(count: int, part: Part, back: bool) -> bool:
    """Whether PyTorch would leave all to the threads of the BLAS, on which bits would depend: then it is
    computed twice. Forward, it shares out 32 rows at a time."""
    return count == 1 and (back or part.rows <= 32)


def _twice(x: Tensor) -> Tensor:
    return x.expand(2, *x.shape[1:])


def _more(problem: Problem, part: Part) -> int:
    """Hidden keys with which the buffers of all of the kernel's threads start at whole vectors."""
    keys, dim = prod(problem.lengths), problem.dim
    return 0 if is_aligned(part.rows, keys, dim) else -(keys + 2 + dim) % 4


def is_aligned(rows: int, keys: int, dim: int) -> bool:
    """Whether the buffers of all of the kernel's threads start at whole vectors of 16 bytes: the BLAS rounds
    otherwise elsewhere."""
    return min(rows, 32) * (min(keys, 512) + 2 + dim) % 4 == 0


def _mask(part: Part, bias: Tensor | None, x: Tensor) -> Tensor:
    """`[1, kv_heads or 1, rows, keys]`, for scores in the dtype of `x`."""
    like, box = Like(x.dtype, x.device), part.pieces[0]
    if bias is None:
        mask = part.remember(("mask", box, like), lambda: Additive(part, box, None, range(1), like))
    else:
        mask = Additive(part, box, bias, range(part.kv_heads), like)
    return mask.dense().unsqueeze(0)


def _fold(part: Part, x: Tensor) -> Tensor:
    """`[batch, *rows, heads, dim]` as `[batch, kv_heads, share * rows, dim]`: a group shares its keys."""
    x = unit_stride(x).flatten(1, part.rank)
    if part.share == 1:
        return x.transpose(1, 2)
    return x.unflatten(2, (-1, part.share)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _unfold(part: Part, x: Tensor, shape: torch.Size) -> Tensor:
    """The way back from `_fold`, with or without the last axis."""
    if part.share == 1:
        return x.transpose(1, 2).reshape(shape).contiguous()
    # `[batch, rows, kv_heads, share, ...]`
    return x.unflatten(2, (part.share, -1)).movedim((3, 1), (1, 2)).reshape(shape).contiguous()


def _columns(x: Tensor) -> Tensor:
    return unit_stride(x).flatten(1, -3).transpose(1, 2)
