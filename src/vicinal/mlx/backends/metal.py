"""Apple GPUs: Metal kernels."""

import mlx.core as mx

from ...problem import Problem
from ..operands import Operands


class Metal:
    """Tiled kernels, or plain ones where tiles compute more than `most_waste` pairs for each that counts.

    The plain kernels are the specification. A thread takes a row, which suits windows of a few keys.
    """

    transparent = False

    def __init__(self, name: str, most_waste: float):
        self.name, self._most_waste = name, most_waste

    def refusal(self, problem: Problem) -> str | None:
        from ...metal import limits

        # Every system that MLX runs on has bfloat.
        return limits.refusal(problem, "metal")

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]:
        from .. import shaders

        return shaders.attend(problem, operands, scale, self._most_waste)

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
        from .. import shaders

        given = (problem, operands, out, lse, grad_out, grad_lse, scale)
        return shaders.attend_back(*given, self._most_waste)

    def dot(self, problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float) -> mx.array:
        from .. import shaders

        return shaders.dot(problem, x, y, scale, fill, self._most_waste)

    def mix(self, problem: Problem, weights: mx.array, y: mx.array) -> mx.array:
        from .. import shaders

        return shaders.mix(problem, weights, y, self._most_waste)

    def mix_back(self, problem: Problem, weights: mx.array, x: mx.array) -> mx.array:
        from .. import shaders

        return shaders.mix_back(problem, weights, x, self._most_waste)


METAL = Metal("metal", most_waste=8.0)
METAL_PLAIN = Metal("metal-plain", most_waste=0.0)
