"""How large tiles are: the cheapest by a model of what MLX's pieces cost here."""

import sys
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from ..problem import Problem
from . import boxes


class Costs(NamedTuple):
    """Nanoseconds of one thread, measured; of a GPU, only the proportions count.

    Args:
        transposed, plain: one multiply-add of `x @ y.T` and of `x @ y`.
        score: all that is done to a score besides.
        moved: a number of a box, gathered.
        folded: a number of a box, added to its key's gradient.
        tile: a tile of one matrix product.
        boxed: cutting and putting together anything at all.
    """

    transposed: float
    plain: float
    score: float
    moved: float
    folded: float
    tile: float
    boxed: float


# The Linux wheel links a reference BLAS that is as slow on large tiles as on small ones: fewest scores
# win. It takes dot products, which are not vectorized, at half the speed of sums of rows.
REFERENCE_BLAS = Costs(0.6, 0.35, 7.0, 0.45, 1.3, 80.0, 60_000.0)
# Apple's BLAS and GPUs want matrices of some size.
FAST = Costs(0.015, 0.015, 1.0, 0.3, 0.8, 200.0, 60_000.0)

# Scores of one tile and head.
LARGEST = 1 << 19


@lru_cache(1024)
def rows(problem: Problem, gradients: bool) -> tuple[int, ...]:
    """Outputs of a tile per axis."""
    costs = REFERENCE_BLAS if problem.device == "cpu" and sys.platform == "linux" else FAST
    candidates = product(*map(_extents, problem.axes))
    return min(candidates, key=lambda extents: _cost(problem, extents, gradients, costs))


def _extents(axis) -> list[int]:
    most = -(-axis.outputs // min(axis.period, axis.outputs))
    return [*(1 << bit for bit in range(most.bit_length()) if 1 << bit < most), most]


def _cost(problem: Problem, extents: tuple[int, ...], gradients: bool, costs: Costs) -> float:
    pairs = list(zip(problem.axes, extents, strict=True))
    groups = [min(axis.period, axis.outputs) for axis, _ in pairs]
    counts = []
    for (axis, extent), count in zip(pairs, groups, strict=True):
        members = -(-axis.outputs // count)
        counts.append(count * -(-members // extent))
    group = problem.heads // problem.kv_heads
    columns = prod(boxes.widest(axis, extent) for axis, extent in pairs)
    scores = group * prod(extents) * columns
    if scores > LARGEST and max(extents) > 1:
        return float("inf")
    dim, width = problem.dim, problem.value_dim
    if gradients:
        products = costs.transposed * (dim + width) + costs.plain * (2 * dim + width)
        box, several = costs.moved + costs.folded, 5
    else:
        products, box, several = costs.transposed * dim + costs.plain * width, costs.moved, 2
    whole = prod(counts) == 1 and columns == prod(problem.lengths)
    box = 0.0 if whole else box * columns * (dim + width)
    tile = scores * (products + costs.score) + box + several * costs.tile
    volumes = problem.batch * problem.kv_heads
    return volumes * prod(counts) * tile + (0.0 if whole else costs.boxed)
