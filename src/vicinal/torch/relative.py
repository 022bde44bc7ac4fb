"""Relative position bias: from a table to every window's slots, and the sum that carries a gradient back."""

from functools import lru_cache

import torch
from torch import Tensor

from ..window import Axis
from . import tables
from .composite import accumulating


def spread(bias: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """`[heads, *(2 * size - 1)]` to `[*outputs, heads, prod(size)]`."""
    rank = len(axes)
    for place, axis in enumerate(axes):
        slots = torch.arange(axis.size, device=bias.device)
        index = tables.relative(axis, bias.device)[:, None] + slots
        bias = bias.index_select(1 + place, index.flatten())
    # [heads, outputs * size of each axis] -> [heads, outputs, size, outputs, size, ...] -> slots last
    bias = bias.reshape(bias.shape[0], *(extent for axis in axes for extent in (axis.outputs, axis.size)))
    order = [*range(1, 2 * rank, 2), 0, *range(2, 2 * rank + 1, 2)]
    return bias.permute(order).flatten(rank + 1).contiguous()


def tally(weights: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Adjoint of `spread`: `[batch, *outputs, heads, prod(size)]` to `[heads, *(2 * size - 1)]`.

    Sums over the batch too. Products with tables of zeros and ones add in a fixed order; index_add on a GPU
    would not.
    """
    rank = len(axes)
    visible = tables.visible_slots(axes, weights.device)
    if visible is not None:
        weights = weights.masked_fill(~visible.unsqueeze(rank), 0)
    accumulate = accumulating(weights.dtype)
    total = weights.sum(0, dtype=accumulate).unflatten(-1, [axis.size for axis in axes])
    order = [rank, *(place for axis in range(rank) for place in (axis, rank + 1 + axis))]
    total = total.permute(order)
    for place, axis in reversed(list(enumerate(axes))):
        first, entry = _summing(axis, weights.device, accumulate)
        # [..., outputs, size, ...] -> offsets of slot 0 -> entries of the table
        total = total.movedim((1 + 2 * place, 2 + 2 * place), (-2, -1))
        total = ((first @ total).flatten(-2) @ entry.T).movedim(-1, 1 + 2 * place)
    return total


@lru_cache(256)
def _summing(axis: Axis, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`[offsets, outputs]` and `[2 * size - 1, offsets * size]` tables of ones, for outputs, then slots."""
    offsets, group = torch.unique(tables.relative(axis, device), return_inverse=True)
    first = torch.nn.functional.one_hot(group, len(offsets)).T.to(dtype)
    entries = (offsets[:, None] + torch.arange(axis.size, device=device)).flatten()
    entry = torch.nn.functional.one_hot(entries, 2 * axis.size - 1).T.to(dtype)
    return first.contiguous(), entry.contiguous()
