"""Which of two kernel families is predicted to be faster: the tiles of Hopper, or those of `triton`.

Times follow from exact counts of what each plan computes, with constants fitted to times on an H200 of
windows from 7 to close to the whole axis, of 196 to 4096 tokens and head dimensions 32, 64 and 128: their
ratio is off by 11 % forward and 5 % with gradients (root mean square), and the family chosen took at most 3 %
longer than the other. Sweeps over rings, which small windows get without a prediction, took at
most 9 % longer.
"""

from functools import lru_cache
from typing import NamedTuple

from .. import tiling
from ..problem import Problem
from . import hopper_counts, hopper_plan, plan, ring_plan

MULTIPROCESSORS = 132
# Time of a box that one of two warpgroups leaves to the other, over that of one both compute.
ALONE = 0.8


@lru_cache(1024)
def slowdown(problem: Problem) -> float:
    """Predicted time of Hopper's kernels over that of `triton`'s, gradients included where they follow."""
    if ring_plan.forward(problem) is not None:
        return float("inf")
    hopper, other = _hopper_forward(problem), _portable_forward(problem)
    if problem.gradients:
        hopper, other = hopper + _hopper_backward(problem), other + _portable_backward(problem)
    return hopper / other


def _width(problem: Problem) -> float:
    """Head dimension in units of 128."""
    return hopper_plan.padded(max(problem.dim, problem.value_dim)) / 128


class Work(NamedTuple):
    """What a multiprocessor computes: programs, and boxes of 128 columns, all and those with a mask.

    A box that one of two warpgroups leaves to the other counts by `ALONE`, and half for each that masks it.
    """

    programs: float
    boxes: float
    masked: float


def _work(problem: Problem, planned: hopper_plan.Plan, inverse: bool = False) -> Work:
    spec, programs = planned
    axes = hopper_plan.three_axes(problem)
    loaded = tiling.counts(axes, spec.tile, spec.columns, inverse).visited
    visited, full = hopper_counts.counts(axes, spec.tile, spec.split, spec.columns, inverse, spec.warpgroups)
    heads = problem.batch * problem.heads
    boxes = hopper_plan.computed(visited, loaded, ALONE)
    boxes *= (spec.width + hopper_plan.BESIDE) / (128 + hopper_plan.BESIDE)
    masked = (visited - full) * spec.width / 256
    each = programs * spec.warpgroups / 2, heads * boxes, heads * masked
    return Work(*(count / MULTIPROCESSORS for count in each))


def _hopper_forward(problem: Problem) -> float:
    """Microseconds."""
    work, width = _work(problem, hopper_plan.forward(problem)), _width(problem)
    return work.programs * 2.11 + work.boxes * (0.82 + 0.65 * width) + work.masked * 0.19


def _hopper_backward(problem: Problem) -> float:
    launches = [(hopper_plan.query_gradient(problem, True, False), False)]
    launches += [(one, True) for one in hopper_plan.key_gradients(problem, True, True)]
    each = [_work(problem, planned, inverse) for planned, inverse in launches]
    work, width = Work(*map(sum, zip(*each, strict=True))), _width(problem)
    return work.programs * (1.6 + 2.06 * width) + work.boxes * (0.96 + 1.18 * width) + work.masked * 0.17


class Costs(NamedTuple):
    """Microseconds of a thousand tiles, of 2**20 scores by head dimension, and of masks on as many scores.

    A tile of a loop counts by the elements of its rows, as one of 64 rows of 64.
    """

    tile: float
    score: dict[int, float]
    mask: float = 0.0


SINGLE = Costs(4.6, {32: 0.85, 64: 2.34, 128: 2.83, 256: 5.6})
LOOP = Costs(4.9, {32: 0.72, 64: 0.79, 128: 1.6, 256: 3.2})
BACKWARD = Costs(9.8, {32: 0.87, 64: 1.07, 128: 1.99, 256: 4.0}, 0.135)


def _portable_forward(problem: Problem) -> float:
    """Microseconds."""
    shape = plan.forward(problem)
    if shape.single:
        return _time(problem, SINGLE, shape.tiles, shape.tiles * shape.row_count * shape.column_count)
    return _loop(problem, LOOP, shape)


def _portable_backward(problem: Problem) -> float:
    queries, keys = plan.query_gradient(problem), plan.key_gradient(problem)
    return _loop(problem, BACKWARD, queries) + _loop(problem, BACKWARD, keys, inverse=True)


def _loop(problem: Problem, costs: Costs, shape: plan.Shape, inverse: bool = False) -> float:
    counts = tiling.counts(hopper_plan.three_axes(problem), shape.rows, shape.columns, inverse)
    tiles = shape.tiles * shape.row_count * _head_dim(problem) / 4096
    box = shape.row_count * shape.column_count
    return _time(problem, costs, tiles, counts.visited * box, counts.partial * box)


def _time(problem: Problem, costs: Costs, tiles: float, scores: int, masked: int = 0) -> float:
    """Microseconds of all heads, of each of which there are so many."""
    a_score = next(cost for most, cost in costs.score.items() if _head_dim(problem) <= most)
    each = tiles / 1e3 * costs.tile + (scores * a_score + masked * costs.mask) / 2**20
    return problem.batch * problem.heads * each


def _head_dim(problem: Problem) -> int:
    return max(plan.padded(problem.dim), plan.padded(problem.value_dim))
