"""Relative position bias: from a table to the slots of every window, and the sum that is its adjoint."""

from math import prod

import mlx.core as mx

from ..window import Axis
from . import tables


def spread(bias: mx.array, axes: tuple[Axis, ...]) -> mx.array:
    """`[heads, *(2 * size - 1)]` to `[*outputs, heads, prod(size)]`."""
    index = tables.combined([tables.relative(axis) for axis in axes], bias.shape[1:])
    found = mx.take(bias.reshape(bias.shape[0], prod(bias.shape[1:])).T, index, axis=0)
    return mx.contiguous(found.swapaxes(-1, -2)).reshape(
        *(axis.outputs for axis in axes), bias.shape[0], index.shape[1]
    )


def tally(weights: mx.array, axes: tuple[Axis, ...]) -> mx.array:
    """Adjoint of `spread`: `[batch, *outputs, heads, prod(size)]` to `[heads, *(2 * size - 1)]`.

    Matrix products with tables of zeros and ones add in a fixed order; a scatter on a GPU would not.
    """
    rank, outputs = len(axes), [axis.outputs for axis in axes]
    visible = tables.visible_slots(axes)
    if visible is not None:
        weights = mx.where(visible.reshape(*outputs, 1, -1), weights, mx.array(0, weights.dtype))
    # [heads, outputs and size of each axis in turn]
    total = weights.sum(0).reshape(*outputs, weights.shape[-2], *(axis.size for axis in axes))
    total = total.transpose(rank, *(place for axis in range(rank) for place in (axis, rank + 1 + axis)))
    for place, axis in enumerate(axes):
        last = total.shape[3 + place :]
        table = entries(tables.relative(axis).reshape(-1), 2 * axis.size - 1, total.dtype)
        lead = total.shape[: 1 + place]
        total = (table.T @ total.reshape(prod(lead), table.shape[0], prod(last))).reshape(*lead, -1, *last)
    return total


def entries(index: mx.array, count: int, dtype: mx.Dtype) -> mx.array:
    """`[len(index), count]` table with a one in the column that each entry names."""
    return (index[:, None] == mx.arange(count, dtype=index.dtype)).astype(dtype)
