"""NVIDIA GPUs: the Triton kernels, compiled ahead of time and launched by MLX."""

from functools import lru_cache

import mlx.core as mx

from ...problem import Problem
from ..operands import Operands

# MLX counts the threads of a launch in 32 bits; a program has at most 256.
PROGRAMS = (2**31 - 1) // 256


class Cuda:
    """Fused kernels and walks, forward and backward, with every option. `mx.vmap` maps no such kernels.

    Rows of queries, keys and values are read in vectors. MLX's arrays and slices of them begin where that
    works; the exception is an array made by reshaping a slice of one whose rows are no multiple of 16 bytes,
    unless that one is over 16 KiB larger: MLX stops with a misaligned address.
    """

    name = "cuda"
    transparent = False

    def refusal(self, problem: Problem) -> str | None:
        from ...triton import support

        return support.refusal(problem) or _machine() or support.programs_refusal(problem, PROGRAMS)

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[mx.array, mx.array]:
        from .. import fused

        return fused.attend(problem, operands, scale)

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
        from .. import fused

        return fused.attend_back(problem, operands, out, lse, grad_out, grad_lse, scale)

    def dot(self, problem: Problem, x: mx.array, y: mx.array, scale: float, fill: float) -> mx.array:
        from .. import fused

        return fused.dot(problem, x, y, scale, fill)

    def mix(self, problem: Problem, weights: mx.array, y: mx.array) -> mx.array:
        from .. import fused

        return fused.mix(problem, weights, y)

    def mix_back(self, problem: Problem, weights: mx.array, x: mx.array) -> mx.array:
        from .. import fused

        return fused.mix_back(problem, weights, x)


@lru_cache(1)
def _machine() -> str | None:
    """Why nothing runs here."""
    if not mx.cuda.is_available():
        return "MLX finds no NVIDIA GPU"
    from .. import fused

    if fused.capability() < 80:
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    return None


CUDA = Cuda()
