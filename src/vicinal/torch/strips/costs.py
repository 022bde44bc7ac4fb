"""What tiles cost a core; what matters is the ratio between tiles."""

from functools import lru_cache

import torch

from ...problem import Problem

BOX, NUMBER, PRODUCT = 670.0, 0.32, 0.025
"""Nanoseconds that a box, and each number of its keys, takes more in PyTorch's fused bfloat16 kernel than in
single operations, and each product less: nine problems on an Emerald Rapids Xeon, tiles of 8 to 32 rows."""
ROWS, KEYS, DIM = 32, 16, 64
"""Rows and keys that the kernel takes at a time; with smaller dims it is slow in boxes of other sizes."""


def work_cost(
    problem: Problem, tiles: int, rows: int, keys: int, copied: int, back: bool, more: float = 0
) -> float:
    """Nanoseconds for tiles of so many rows and keys, numbers that are copied for them, and `more` scores."""
    scores = tiles * rows * keys + more
    return scores * score_cost(problem, rows, keys, back) + tiles * 400 + (0.6 if back else 0.35) * copied


def score_cost(problem: Problem, rows: float, keys: float, back: bool) -> float:
    """Nanoseconds for one score of a tile and all that is made of it."""
    product = product_cost(problem, rows, keys)
    # Backward, five products for two, and strips that are read and written where forward writes tiles.
    return 2.5 * product + 0.12 * (problem.dim + problem.value_dim) / rows + 1.2 if back else product + 0.5


def product_cost(problem: Problem, rows: float, keys: float) -> float:
    """Nanoseconds for one score and one weight: the two matrix products of the forward pass."""
    return 0.022 * (problem.dim + problem.value_dim) * (1 + 3 / rows + 8 / keys)


@lru_cache(1)
def has_matrix_unit() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    return torch.cpu._is_amx_tile_supported()


def saved(problem: Problem, rows: int, keys: int) -> float:
    """Nanoseconds that a tile takes less in the fused bfloat16 kernel; below zero where it cannot run."""
    option = problem.gradients or problem.bias or problem.extra or problem.device != "cpu"
    narrow = problem.operation == "attend" and problem.dtype == "bfloat16" and not option
    if not narrow or problem.dim != problem.value_dim or problem.dim < 32 or not has_matrix_unit():
        return -1.0
    if keys % KEYS and problem.dim < DIM:
        return -1.0
    numbers = keys * problem.dim
    return numbers * min(rows, ROWS) * PRODUCT - BOX - numbers * NUMBER
