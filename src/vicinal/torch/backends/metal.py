"""Apple GPUs: Metal kernels."""

from math import prod

import torch
from torch import Tensor

from ...problem import SHAPE_BY_SHAPE, Problem
from .base import Backend, Grads, Needs, Operands

MOST_DIM = 256


class Metal(Backend):
    """Tiled kernels, or plain ones where tiles compute more than `most_waste` pairs for each that counts.

    The plain kernels are the specification. A thread takes a row, which suits windows of a few keys.
    """

    def __init__(self, name: str, most_waste: float):
        self.name, self._most_waste = name, most_waste

    def refusal(self, problem: Problem) -> str | None:
        if problem.device != "mps":
            return f"runs on mps, not {problem.device}"
        if problem.documents is not None:
            return SHAPE_BY_SHAPE
        if problem.dtype not in ("float32", "float16", "bfloat16"):
            return f"has no {problem.dtype}"
        if problem.dtype == "bfloat16" and not torch.backends.mps.is_macos_or_newer(14, 0):
            return "bfloat16 needs macOS 14"
        for dim in (problem.dim, problem.value_dim):
            if not 1 <= dim <= MOST_DIM:
                return f"head dim {dim} is {'over 256' if dim else 'under 1'}"
        return _size(problem)

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        from .. import shaders

        return shaders.attend(problem, operands, scale, self._most_waste)

    def attend_back(
        self,
        problem: Problem,
        operands: Operands,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor | None,
        grad_lse: Tensor | None,
        scale: float,
        needs: Needs,
    ) -> Grads:
        from .. import shaders

        given = (problem, operands, out, lse, grad_out, grad_lse, scale, needs)
        return shaders.attend_back(*given, self._most_waste)

    def dot(
        self, problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float
    ) -> Tensor:
        from .. import shaders

        return shaders.dot(problem, x, y, bias, scale, fill, self._most_waste)

    def mix(self, problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
        from .. import shaders

        return shaders.mix(problem, weights, y, self._most_waste)

    def mix_back(self, problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
        from .. import shaders

        return shaders.mix_back(problem, weights, x, self._most_waste)


def _size(problem: Problem) -> str | None:
    if prod(problem.lengths) >= 2**31:
        return "2**31 tokens or more"
    # A grid has 32 bits an axis, and backward gives each row a SIMD-group.
    if problem.batch * problem.heads * prod(problem.outputs) >= 2**27:
        return "2**27 queries or more, of all heads"
    return None


METAL = Metal("metal", most_waste=8.0)
METAL_PLAIN = Metal("metal-plain", most_waste=0.0)
