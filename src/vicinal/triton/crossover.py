"""Which of two kernel families is predicted to be faster: the tiles of Hopper, or those of `triton`.

Times follow from exact counts of what each plan computes, with constants fitted to times on an H200 of
windows from 7 to close to the whole axis, of 196 to 4096 tokens and head dimensions 32, 64 and 128: they are
off by 4 to 9 % (root mean square), and the family chosen took at most 14 % longer than the other. Sweeps over
rings, which small windows get, took less time wherever they were tried.
"""

from functools import lru_cache
from math import prod
from typing import NamedTuple

from .. import tiling
from ..problem import Problem
from . import hopper_counts, hopper_plan, plan, ring_plan

MULTIPROCESSORS = 132


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

    A box counts whole where either of two warpgroups needs it, and half for each that masks it.
    """

    programs: float
    boxes: float
    masked: float


def _work(problem: Problem, planned: hopper_plan.Plan, inverse: bool = False) -> Work:
    spec, programs = planned
    axes = hopper_plan.three_axes(problem)
    loaded = tiling.counts(axes, spec.tile, spec.columns, inverse).visited
    visited, full = hopper_counts.counts(axes, spec.tile, spec.split, spec.columns, inverse, spec.warpgroups)
    walks = problem.batch * problem.heads * spec.width / 128
    boxes = loaded if spec.warpgroups == 2 else hopper_plan.computed(visited, loaded)
    each = programs * spec.warpgroups / 2, walks * boxes, walks * (visited - full) / 2
    return Work(*(count / MULTIPROCESSORS for count in each))


def _hopper_forward(problem: Problem) -> float:
    """Microseconds."""
    work, width = _work(problem, hopper_plan.forward(problem)), _width(problem)
    return work.programs * 2.2 + work.boxes * (0.78 + 0.59 * width) + work.masked * 0.36


def _hopper_backward(problem: Problem) -> float:
    launches = [(hopper_plan.query_gradient(problem, True, False), False)]
    launches += [(hopper_plan.Plan(*one), True) for one in hopper_plan.key_gradients(problem, True, True)]
    each = [_work(problem, planned, inverse) for planned, inverse in launches]
    work, width = Work(*map(sum, zip(*each, strict=True))), _width(problem)
    return work.programs * (1.4 + 2.3 * width) + work.boxes * (0.94 + 1.22 * width) + work.masked * 0.25


# Microseconds of a thousand tiles, and of 2**20 scores by head dimension.
SINGLE = 4.6, {32: 0.86, 64: 2.34, 128: 2.81, 256: 5.6}
LOOP = 3.2, {32: 0.74, 64: 0.86, 128: 2.0, 256: 4.0}
BACKWARD = 10.6, {32: 0.81, 64: 1.15, 128: 2.31, 256: 4.6}


def _portable(problem: Problem, tiles: int, scores: int, costs: tuple[float, dict[int, float]]) -> float:
    """Microseconds of tiles and scores of one head."""
    heads = problem.batch * problem.heads
    width = max(plan.padded(problem.dim), plan.padded(problem.value_dim))
    a_score = next(cost for most, cost in costs[1].items() if width <= most)
    return heads * (tiles / 1e3 * costs[0] + scores / 2**20 * a_score)


def _scores(problem: Problem, shape: plan.Shape, inverse: bool = False) -> int:
    sides = zip(plan.three_axes(problem.axes), shape.rows, shape.columns, strict=True)
    visited = prod(tiling.axis_counts(*numbers, inverse).visited for numbers in sides)
    return visited * shape.row_count * shape.column_count


def _portable_forward(problem: Problem) -> float:
    shape = plan.forward(problem)
    if shape.single:
        return _portable(problem, shape.tiles, shape.tiles * shape.row_count * shape.column_count, SINGLE)
    return _portable(problem, shape.tiles, _scores(problem, shape), LOOP)


def _portable_backward(problem: Problem) -> float:
    queries, keys = plan.query_gradient(problem), plan.key_gradient(problem)
    scores = _scores(problem, queries) + _scores(problem, keys, inverse=True)
    return _portable(problem, queries.tiles + keys.tiles, scores, BACKWARD)
