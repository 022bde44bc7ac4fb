"""Triton kernels for any NVIDIA GPU from Ampere on, and for AMD GPUs that Triton compiles for."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from ...problem import SHAPE_BY_SHAPE, Problem
from .base import Backend, Grads, Needs, Operands

OLDEST = (3, 4)
PROGRAMS = 2**31 - 1


class Triton(Backend):
    """Fused kernels and walks, forward and backward, with every option; deterministic."""

    name = "triton"

    def refusal(self, problem: Problem) -> str | None:
        if problem.device != "cuda":
            return f"runs on cuda, not {problem.device}"
        if problem.documents is not None:
            return SHAPE_BY_SHAPE
        if problem.dtype not in ("float16", "bfloat16", "float32"):
            return f"has no {problem.dtype}"
        for dim in (problem.dim, problem.value_dim):
            if not 1 <= dim <= 256:
                return f"head dim {dim} is {'over 256' if dim else 'under 1'}"
        return _machine() or _grid(problem)

    def attend(self, problem: Problem, operands: Operands, scale: float) -> tuple[Tensor, Tensor]:
        from ...triton import attention

        return attention.attend(problem, attention.inputs(problem, *operands), scale)

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
        from ...triton import attention

        given = attention.inputs(problem, *operands)
        grads = attention.attend_back(problem, given, out, lse, grad_out, grad_lse, scale, needs)
        if grads[3] is not None and operands.bias is not None:
            grads[3] = grads[3].to(operands.bias.dtype)
        return Grads(*(grad if need else None for grad, need in zip(grads, needs, strict=True)))

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
def installed() -> tuple[int, int] | None:
    """Major and minor version of the Triton that is installed, if any."""
    for package in ("triton", "pytorch-triton-rocm"):
        try:
            major, minor = version(package).split(".")[:2]
        except PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


@lru_cache(1)
def _machine() -> str | None:
    """Why nothing runs here."""
    found = installed()
    if found is None:
        return "Triton is not installed"
    if found < OLDEST:
        return f"Triton {found[0]}.{found[1]} is older than {OLDEST[0]}.{OLDEST[1]}"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    return None


@lru_cache(4096)
def _grid(problem: Problem) -> str | None:
    """Why a launch would be too large."""
    from ...triton import plan

    programs = problem.batch * problem.heads * plan.most_tiles(problem)
    return None if programs <= PROGRAMS else f"needs {programs} programs, over {PROGRAMS}"


TRITON = Triton()
