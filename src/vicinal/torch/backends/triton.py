"""Triton kernels for any NVIDIA GPU from Ampere on, and for AMD GPUs that Triton compiles for."""

from functools import lru_cache

import torch
from torch import Tensor

from ...problem import Problem
from .base import Backend, Needs, Operands, Ready

PROGRAMS = 2**31 - 1


class Triton(Backend):
    """Fused kernels and walks, forward and backward, with every option; deterministic."""

    name = "triton"

    def refusal(self, problem: Problem) -> str | None:
        from ...triton import support

        return support.refusal(problem) or _machine() or support.programs_refusal(problem, PROGRAMS)

    def prepare(self, problem: Problem, operands: Operands, scale: float) -> Ready:
        from ...triton import attention

        return attention.forward(problem, operands, scale)

    def prepare_back(self, problem: Problem, tensors: tuple, scale: float, needs: Needs) -> Ready:
        from ...triton import attention

        return attention.backward(problem, tensors, scale, needs)

    def dot(
        self, problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float
    ) -> Tensor:
        from ...triton import split

        return split.dot(problem, x, y, bias, scale, fill)

    def mix(self, problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
        from ...triton import split

        return split.mix(problem, weights, y)

    def mix_back(self, problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
        from ...triton import split

        return split.mix_back(problem, weights, x)


@lru_cache(1)
def _machine() -> str | None:
    """Why nothing runs here."""
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    return None


TRITON = Triton()
