"""Neighborhood attention as its definition reads: every window gathered, every weight kept."""

from math import prod

import mlx.core as mx

from ...problem import SHAPE_BY_SHAPE, Problem
from .. import composite, gathers, relative
from ..operands import Operands, narrowed, wide, widened


class Reference:
    """Runs anything; memory grows with tokens times window. A non-finite token reaches only who sees it."""

    name = "reference"
    transparent = False

    def refusal(self, problem: Problem) -> str | None:
        return None if problem.documents is None else SHAPE_BY_SHAPE

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]:
        out, lse = composite.attend(_walks(problem), widened(operands), scale)
        return out.astype(operands.query.dtype), lse

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
        grads = composite.attend_back(
            _walks(problem), widened(operands), wide(grad_out), wide(grad_lse), scale
        )
        return narrowed(grads, operands)

    def dot(self, problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float) -> mx.array:
        return gathers.dot(problem, wide(x) * scale, wide(y), fill, None).astype(x.dtype)

    def mix(self, problem: Problem, weights: mx.array, y: mx.array) -> mx.array:
        return gathers.mix(problem, wide(weights), wide(y), None).astype(y.dtype)

    def mix_back(self, problem: Problem, weights: mx.array, x: mx.array) -> mx.array:
        return gathers.mix_back(problem, wide(weights), wide(x), None).astype(x.dtype)


def _walks(problem: Problem) -> composite.Walks:
    return composite.Walks(
        lambda x, y, fill: gathers.dot(problem, x, y, fill, None),
        lambda weights, y: gathers.mix(problem, weights, y, None),
        lambda weights, x: gathers.mix_back(problem, weights, x, None),
        lambda bias: relative.spread(bias, problem.axes),
        lambda weights: relative.tally(weights, problem.axes),
        prod(problem.window),
    )


REFERENCE = Reference()
