"""Which of two kernel families is predicted to be faster: the tiles of Hopper, or those of `triton`.

Times follow from exact counts of what each plan computes, with constants fitted to times on an H200 of
windows from 7 to close to the whole axis, of 196 to 4096 tokens and head dimensions 32, 64 and 128: they are
off by 6 % for Hopper's and by 10 % for the others (root mean square), and the family chosen took at most 8 %
longer than the other. Sweeps over rings, which small windows get, took less time wherever they were tried.
"""

from functools import lru_cache
from math import prod

from .. import tiling
from ..problem import Problem
from . import hopper_plan, plan, ring_plan

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


def _programs_and_boxes(
    problem: Problem, planned: hopper_plan.Plan, inverse: bool = False
) -> tuple[float, float]:
    """What a multiprocessor computes: programs, and boxes of 128 columns that either warpgroup needs."""
    spec, programs = planned
    heads = problem.batch * (problem.kv_heads if inverse else problem.heads)
    axes = hopper_plan.three_axes(problem)
    boxes = heads * tiling.counts(axes, spec.tile, spec.columns, inverse).visited * spec.width / 128
    if inverse:
        boxes *= problem.heads / problem.kv_heads
    return programs / MULTIPROCESSORS, boxes / MULTIPROCESSORS


def _hopper_forward(problem: Problem) -> float:
    """Microseconds."""
    programs, boxes = _programs_and_boxes(problem, hopper_plan.forward(problem))
    width = _width(problem)
    return programs * (3.9 + 1.4 * width) + boxes * (1.0 + 0.6 * width)


def _hopper_backward(problem: Problem) -> float:
    launches = [(hopper_plan.query_gradient(problem, True, False), False)]
    launches += [(hopper_plan.Plan(*one), True) for one in hopper_plan.key_gradients(problem, True, True)]
    counted = [_programs_and_boxes(problem, planned, inverse) for planned, inverse in launches]
    programs, boxes = map(sum, zip(*counted, strict=True))
    return programs * 4.9 + boxes * (0.8 + 2.0 * _width(problem))


# Microseconds of a thousand tiles, and of 2**20 scores by head dimension.
SINGLE = 4.6, {32: 0.86, 64: 2.34, 128: 2.81, 256: 5.6}
LOOP = 11.2, {32: 0.70, 64: 0.78, 128: 1.71, 256: 3.4}
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
