"""Small problems on a CPU: every window gathered at once, which takes the fewest operations.

Below a few megabytes it is the number of operations that costs, not what they do. MLX differentiates them
itself.
"""

from functools import lru_cache
from math import prod

import mlx.core as mx

from ...problem import SHAPE_BY_SHAPE, Problem
from ...window import Axis
from .. import tables
from ..operands import Operands, wide

# Numbers in the gathered keys; from here on tiles are faster and smaller.
MOST = 1 << 20


class Gathered:
    """Runs small problems. It has no walks, and refuses them."""

    name = "gathered"
    transparent = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.documents is not None:
            return SHAPE_BY_SHAPE
        if problem.device != "cpu":
            return f"it is for small problems on a cpu, not for {problem.device}"
        if problem.operation != "attend":
            return "it keeps no weights"
        if problem.extra:
            return "it knows no additional tokens"
        size = problem.batch * problem.heads * prod(problem.outputs) * prod(problem.window)
        size *= max(problem.dim, problem.value_dim)
        return None if size <= MOST else f"{size} numbers of gathered windows are over {MOST}"

    def attend(
        self, problem: Problem, operands: Operands, scale: float, with_lse: bool
    ) -> tuple[mx.array, mx.array | None]:
        query, key, value, bias, *_ = operands
        outputs, heads = query.shape[:-2], query.shape[-2]
        # One axis of heads where there are no groups: every axis makes a small product slower.
        group = () if heads == problem.kv_heads else (heads // problem.kv_heads,)
        keys, hidden = _slots(problem.axes, problem.batch)
        rows = wide(query).reshape(outputs[0], -1, 1, problem.kv_heads, *group, problem.dim)
        # [batch, outputs, slots, kv_heads, group]
        scores = (rows * _windows(problem, key, keys, group)).sum(-1) * scale
        if bias is not None:
            entries = mx.take(wide(bias).reshape(heads, -1).T, _entries(problem.axes), axis=0)
            scores = scores + entries.reshape(*entries.shape[:2], problem.kv_heads, *group)
        if hidden is not None:
            scores = scores + hidden.reshape(*hidden.shape, 1, *(1 for _ in group))
        # Softmax and log-sum-exp of a last axis are one operation each.
        scores = mx.moveaxis(scores, 2, -1)
        weights = mx.moveaxis(mx.softmax(scores, -1), -1, 2)[..., None]
        out = (weights * _windows(problem, value, keys, group)).sum(2)
        lse = mx.logsumexp(scores, -1).reshape(*outputs, heads) if with_lse else None
        return out.reshape(*outputs, heads, -1).astype(query.dtype), lse


def _windows(problem: Problem, x: mx.array, keys: mx.array, group: tuple[int, ...]) -> mx.array:
    """`[batch, outputs, slots, kv_heads, 1 where there are groups, width]`."""
    ones = (1 for _ in group)
    flat = wide(x).reshape(-1, problem.kv_heads, *ones, x.shape[-1])
    return mx.take(flat, keys, axis=0)


@lru_cache(256)
def _slots(axes: tuple[Axis, ...], batch: int) -> tuple[mx.array, mx.array | None]:
    """`[batch, outputs, slots]` token of every slot, counted through the batch, and `[outputs, slots]` to add
    to scores if some slots hold no key."""
    lengths = [axis.length for axis in axes]
    keys = tables.combined([tables.keys(axis) for axis in axes], lengths)
    keys = mx.arange(batch, dtype=mx.uint32).reshape(-1, 1, 1) * prod(lengths) + keys
    visible = tables.visible_slots(axes)
    hidden = None if visible is None else tables.constant(mx.where(visible, 0.0, -float("inf")))
    return tables.constant(keys), hidden


@lru_cache(256)
def _entries(axes: tuple[Axis, ...]) -> mx.array:
    """`[outputs, slots]` entry of the relative position table of every slot."""
    return tables.constant(
        tables.combined([tables.relative(axis) for axis in axes], [2 * axis.size - 1 for axis in axes])
    )


GATHERED = Gathered()
