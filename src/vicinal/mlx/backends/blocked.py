"""Tiles of queries against boxes of keys: MLX operations alone, memory linear in tokens, on any device."""

import mlx.core as mx

from ...problem import SHAPE_BY_SHAPE, Problem
from .. import blocks, blocks_back, gathers
from ..operands import Operands, wide


class Blocked:
    """Weights live for some tiles at a time, forward and backward.

    A token that is not finite reaches all queries whose box holds it.
    """

    name = "blocked"
    transparent = False

    def refusal(self, problem: Problem) -> str | None:
        return None if problem.documents is None else SHAPE_BY_SHAPE

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]:
        return blocks.attend(problem, operands, scale)

    def attend_back(
        self,
        problem: Problem,
        operands: Operands,
        out: mx.array,
        lse: mx.array,
        grad_out: mx.array,
        grad_lse: mx.array,
        scale: float,
    ) -> Operands:
        return blocks_back.attend_back(problem, operands, out, lse, grad_out, grad_lse, scale)

    def dot(self, problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float) -> mx.array:
        return gathers.dot(problem, wide(x) * scale, wide(y), fill).astype(x.dtype)

    def mix(self, problem: Problem, weights: mx.array, y: mx.array) -> mx.array:
        return gathers.mix(problem, wide(weights), wide(y)).astype(y.dtype)

    def mix_back(self, problem: Problem, weights: mx.array, x: mx.array) -> mx.array:
        return gathers.mix_back(problem, wide(weights), wide(x)).astype(x.dtype)


BLOCKED = Blocked()
