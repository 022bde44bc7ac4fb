"""The three walks over gathered windows, some outputs at a time.

Parts of a walk run one after another, each waiting for the one before, so that the gathers of one live at
a time.
"""

from math import prod

import mlx.core as mx

from ..problem import Problem
from . import tables
from .order import after

# Bytes of gathered rows that live at a time.
BUDGET = 1 << 23


def dot(problem: Problem, x: mx.array, y: mx.array, fill: float, budget: int | None = BUDGET) -> mx.array:
    """`[batch, *outputs, heads, slots]` products of every row with the keys of its window."""
    rows = _rows(problem, x)
    tokens = _tokens(y)
    index = _keys(problem)

    def part(rows, index):
        return rows @ _picked(tokens, index, problem).swapaxes(-1, -2)

    weights = _in_parts(part, (rows, index), (1, 0), _step(problem, index.shape[1] * y.shape[-1], budget))
    return _filled(problem, _unrows(problem, weights), fill)


def mix(problem: Problem, weights: mx.array, y: mx.array, budget: int | None = BUDGET) -> mx.array:
    """`[batch, *outputs, heads, dim]` weighted sums of every window."""
    weights = _rows(problem, _filled(problem, weights, 0.0))
    tokens = _tokens(y)
    index = _keys(problem)

    def part(weights, index):
        return weights @ _picked(tokens, index, problem)

    out = _in_parts(part, (weights, index), (1, 0), _step(problem, index.shape[1] * y.shape[-1], budget))
    return _unrows(problem, out)


def mix_back(problem: Problem, weights: mx.array, x: mx.array, budget: int | None = BUDGET) -> mx.array:
    """`[batch, *lengths, kv_heads, dim]` weighted sums of the rows that see each key."""
    group, dim, slots = problem.heads // problem.kv_heads, x.shape[-1], weights.shape[-1]
    volumes, outputs = problem.batch * problem.kv_heads, prod(problem.outputs)
    rows = _rows(problem, x).reshape(volumes * outputs, group * dim)
    weights = _rows(problem, weights).swapaxes(-1, -2).reshape(volumes * outputs * slots, group)
    per_axis = [tables.inverse(axis) for axis in problem.axes]
    output = tables.combined([table.outputs for table in per_axis], problem.outputs)
    slot = tables.combined([table.slots for table in per_axis], problem.window)
    valid = tables.every([table.valid for table in per_axis])
    offset = mx.arange(volumes, dtype=mx.uint32).reshape(-1, 1, 1) * outputs

    def part(output, slot, valid):
        at = offset + output
        picked = mx.where(valid[..., None], mx.take(weights, at * slots + slot, axis=0), 0)
        seen = mx.take(rows, at, axis=0).reshape(*at.shape[:2], -1, dim)
        found = picked.reshape(*at.shape[:2], 1, -1) @ seen
        # A key that no output sees has no row of its own to repeat.
        return mx.where(valid[:, :1], found[..., 0, :], 0)

    step = _step(problem, output.shape[1] * group * dim, budget)
    out = _in_parts(part, (output, slot, valid), (0, 0, 0), step)
    out = out.reshape(problem.batch, problem.kv_heads, *problem.lengths, dim)
    return mx.contiguous(mx.moveaxis(out, 1, -2))


def _rows(problem: Problem, x: mx.array) -> mx.array:
    """`[batch, *outputs, heads, width]` to `[batch * kv_heads, outputs, group, width]`."""
    grouped = x.reshape(problem.batch, prod(problem.outputs), problem.kv_heads, -1, x.shape[-1])
    return grouped.swapaxes(1, 2).reshape(
        problem.batch * problem.kv_heads, *grouped.shape[1:2], *grouped.shape[3:]
    )


def _unrows(problem: Problem, rows: mx.array) -> mx.array:
    grouped = rows.reshape(problem.batch, problem.kv_heads, *rows.shape[1:]).swapaxes(1, 2)
    return mx.contiguous(grouped.reshape(problem.batch, *problem.outputs, problem.heads, rows.shape[-1]))


def _tokens(y: mx.array) -> mx.array:
    """`[batch, *lengths, kv_heads, dim]` to `[batch * kv_heads * tokens, dim]`."""
    return mx.moveaxis(y, -2, 1).reshape(-1, y.shape[-1])


def _keys(problem: Problem) -> mx.array:
    """`[outputs, slots]` token of every slot."""
    return tables.combined([tables.keys(axis) for axis in problem.axes], problem.lengths)


def _picked(tokens: mx.array, index: mx.array, problem: Problem) -> mx.array:
    """`[batch * kv_heads, outputs, slots, dim]` tokens of some windows."""
    volumes = mx.arange(problem.batch * problem.kv_heads, dtype=mx.uint32) * prod(problem.lengths)
    return mx.take(tokens, volumes.reshape(-1, 1, 1) + index, axis=0)


def _filled(problem: Problem, weights: mx.array, fill: float) -> mx.array:
    visible = tables.visible_slots(problem.axes)
    if visible is None:
        return weights
    return mx.where(visible.reshape(*problem.outputs, 1, -1), weights, mx.array(fill, weights.dtype))


def _step(problem: Problem, numbers: int, budget: int | None) -> int | None:
    """Rows at a time, of `numbers` gathered numbers each for every head."""
    return budget and max(1, budget // (4 * numbers * problem.batch * problem.kv_heads))


def _in_parts(part, arrays: tuple[mx.array, ...], axes: tuple[int, ...], step: int | None) -> mx.array:
    """`part` of slices of `step` along the given axes, put together along axis 1."""
    extent = arrays[0].shape[axes[0]]
    if step is None or step >= extent:
        return part(*arrays)
    found = []
    for start in range(0, extent, step):
        pieces = [
            x[(slice(None),) * axis + (slice(start, start + step),)]
            for x, axis in zip(arrays, axes, strict=True)
        ]
        found.append(part(*(after(pieces, found[-1:]) if found else pieces)))
    return mx.concatenate(found, 1)
