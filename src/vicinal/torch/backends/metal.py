"""Apple GPUs: Metal kernels."""

import torch
from torch import Tensor

from ...problem import Problem
from .base import Backend, Grads, Needs, Operands


class Metal(Backend):
    """Tiled kernels, or plain ones where tiles compute more than `most_waste` pairs for each that counts.

    The plain kernels are the specification. A thread takes a row, which suits windows of a few keys.
    """

    def __init__(self, name: str, most_waste: float):
        self.name, self._most_waste = name, most_waste

    def refusal(self, problem: Problem) -> str | None:
        from ...metal import limits

        reason = limits.refusal(problem, "mps")
        # Elsewhere PyTorch cannot be asked, and the question is one about Macs in general.
        is_old = torch.backends.mps.is_built() and not torch.backends.mps.is_macos_or_newer(14, 0)
        if reason is None and problem.dtype == "bfloat16" and is_old:
            return "bfloat16 needs macOS 14"
        return reason

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


METAL = Metal("metal", most_waste=8.0)
METAL_PLAIN = Metal("metal-plain", most_waste=0.0)
