"""Tiles on Hopper GPUs: the Gluon kernels of `triton/hopper_*`."""

from __future__ import annotations

from functools import lru_cache

from ...problem import SHAPE_BY_SHAPE, Problem
from .base import Backend, Needs, Operands, Ready

WAY_OUT = "so pass backend='triton' or None"
# Gluon is an experimental interface; these releases have the one that the kernels are written for.
VERSIONS = ("3.6",)


class Hopper(Backend):
    """Runs fused attention with large windows on GPUs of compute capability 9.0."""

    name = "hopper"

    def refusal(self, problem: Problem) -> str | None:
        return _refusal(problem)

    def prepare(self, problem: Problem, operands: Operands, scale: float) -> Ready:
        from ...triton import hopper_attention

        return hopper_attention.forward(problem, operands, scale)

    def prepare_back(self, problem: Problem, tensors: tuple, scale: float, needs: Needs) -> Ready:
        from ...triton import hopper_attention

        return hopper_attention.backward(problem, tensors, scale, needs)


@lru_cache(1024)
def _refusal(problem: Problem) -> str | None:
    return _unfit(problem) or _missing() or _slower(problem)


def _unfit(problem: Problem) -> str | None:
    """What the kernels do not compute."""
    reasons = (
        (problem.device != "cuda", f"runs on cuda, not {problem.device}"),
        (problem.operation != "attend", f"computes fused attention, not {problem.operation}"),
        (
            problem.dtype not in ("float16", "bfloat16"),
            f"multiplies float16 or bfloat16, not {problem.dtype}",
        ),
        (problem.documents is not None, SHAPE_BY_SHAPE),
        (
            problem.key_dtype not in (None, "float8_e4m3fn"),
            f"multiplies queries and keys in float8_e4m3fn, not {problem.key_dtype}",
        ),
        (problem.key_dtype is not None and problem.gradients, "has no gradients with float8"),
        (
            problem.key_dtype is not None and any(axis.dilation > 1 for axis in problem.axes),
            "has no dilation with float8",
        ),
        (problem.bias, "has no relative position bias"),
        (problem.extra > 0, "has no additional tokens"),
    )
    for holds, reason in reasons:
        if holds:
            return reason
    # Rows of what TMA copies are multiples of 16 bytes.
    step = 8 if problem.key_dtype is None else 16
    for name, dim, unit in (("head dim", problem.dim, step), ("value dim", problem.value_dim, 8)):
        if dim % unit or not unit <= dim <= 256:
            return f"{name} {dim} is not a multiple of {unit} up to 256"
    if any(axis.dilation > 1 and axis.output_stride > 1 for axis in problem.axes):
        return "has no output stride on a dilated axis"
    return None


@lru_cache(1)
def _missing() -> str | None:
    """What this machine lacks."""
    from importlib.util import find_spec

    import torch

    if find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    if not triton.__version__.startswith(VERSIONS):
        return f"Gluon of Triton {triton.__version__} is untried; it takes {' or '.join(VERSIONS)}"
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    return None if capability == (9, 0) else "compute capability is {}.{}, not 9.0".format(*capability)


def _slower(problem: Problem) -> str | None:
    """Windows that a tile is too large for, where `triton` computes the problem too."""
    from ...triton import crossover

    if problem.key_dtype is not None:
        return None
    slowdown = crossover.slowdown(problem)
    if slowdown == float("inf"):
        return f"the window is small: `triton` sweeps over it, {WAY_OUT}"
    if slowdown > 1:
        times = f"{slowdown:.2f} times as long as `triton`"
        return f"is predicted to take {times}, whose tiles are smaller, {WAY_OUT}"
    return None


HOPPER = Hopper()
