"""Windows that cover every axis: dense attention by MLX's fused kernels."""

import mlx.core as mx

from ...problem import SHAPE_BY_SHAPE, Problem
from .. import dense
from ..operands import Operands


class Full:
    """Runs problems whose windows hold all keys. It has no walks, and refuses them."""

    name = "full"
    transparent = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.documents is not None:
            return SHAPE_BY_SHAPE
        if not problem.covers:
            return "the window does not cover every axis"
        if problem.operation != "attend":
            return "MLX's dense attention keeps no weights"
        if problem.bias:
            return "MLX's dense attention has no relative position bias"
        return None

    def attend(
        self, problem: Problem, operands: Operands, scale: float, with_lse: bool
    ) -> tuple[mx.array, mx.array | None]:
        query, key, value = _tokens(operands)
        shape = operands.query.shape[:-1]
        out, lse = dense.attend(query, key, value, False, scale, with_lse)
        return out.reshape(*shape, -1), None if lse is None else lse.reshape(shape)


def _tokens(operands: Operands) -> list[mx.array]:
    """Query, key and value as `[batch, tokens, heads, dim]`, additional tokens at the end."""
    query, key, value, _, *extras = operands
    flat = [x.flatten(1, -3) for x in (query, key, value)]
    return [
        x if extra is None else mx.concatenate([x, extra], 1)
        for x, extra in zip(flat, (None, *extras), strict=True)
    ]


FULL = Full()
