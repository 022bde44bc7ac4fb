"""What the kernels cannot run, on any host."""

from math import prod

from ..problem import ONE_DTYPE, Problem
from .documents import outputs, tokens
from .source import TYPES

MOST_DIM = 256


def refusal(problem: Problem, device: str) -> str | None:
    """Why the kernels cannot run `problem`, where `device` is the host's name of an Apple GPU."""
    if problem.device != device:
        return f"runs on {device}, not {problem.device}"
    if problem.dtype not in TYPES:
        return f"has no {problem.dtype}"
    if problem.key_dtype is not None:
        return ONE_DTYPE
    for dim in (problem.dim, problem.value_dim):
        if not 1 <= dim <= MOST_DIM:
            return f"head dim {dim} is {f'over {MOST_DIM}' if dim else 'under 1'}"
    return _size(problem)


def _size(problem: Problem) -> str | None:
    # Tables count tokens from the first of an entry of the batch, or of all documents.
    if prod(tokens(problem).extents[problem.documents is None :]) >= 2**31:
        return "2**31 tokens or more"
    # A grid has 32 bits an axis, and backward gives each row a SIMD-group.
    if problem.heads * prod(outputs(problem).extents) >= 2**27:
        return "2**27 queries or more, of all heads"
    return None
