"""Tile counts against tiles walked one by one, and the plan against all others."""

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import axes
from vicinal import spans, tiling
from vicinal.catalog import CASES, named
from vicinal.triton import hopper_counts
from vicinal.window import Axis


@given(axes(20), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_counts_of_an_axis(axis, rows, columns, inverse):
    tiles = visited = full = 0
    for span in (spans.inverse if inverse else spans.forward)(axis):
        for first in range(0, len(span.rows), rows):
            tile = range(first, min(first + rows, len(span.rows)))
            start, stop = min(span.starts[row] for row in tile), max(span.stops[row] for row in tile)
            tiles += 1
            for box in range(start, stop, columns):
                visited += 1
                full += all(span.starts[row] <= box and box + columns <= span.stops[row] for row in tile)
    counted = tiling.axis_counts(axis, rows, columns, inverse)
    assert counted == (tiles, visited, full)
    assert counted.partial == visited - full


@given(axes(12), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 400))
def test_counts_of_a_long_axis(axis, rows, columns, inverse, more):
    axis = replace(axis, length=axis.length + more)
    short, longer, repeats = tiling.shortened(axis, rows)
    assert repeats == 0 or (longer.length - short.length) * repeats == axis.length - short.length
    counted = tiling.axis_counts(axis, rows, columns, inverse)
    assert counted == tiling._walked_counts(axis, rows, columns, inverse)
    # Two warpgroups share a tile, whose boxes start where the windows of its first rows do.
    shared = hopper_counts.axis_counts(axis, 2 * rows, 2, columns, inverse)
    assert shared == hopper_counts.walked_counts(axis, 2 * rows, 2, columns, inverse)


def test_millions_of_tokens_are_planned_at_once():
    axis = Axis(2**31 + 77, 1000, 7, 3, False, 2)
    assert max(found.length for found in tiling.shortened(axis, 128)[:2]) < 25_000
    assert tiling.axis_counts(axis, 128, 64, True).tiles == -(-(2**31 + 77) // 3 // 128) * 3


def test_counts_of_a_problem_are_products():
    problem = named("odd_2d").problem
    rows, columns = (2, 4), (4, 2)
    per_axis = [tiling.axis_counts(*numbers) for numbers in zip(problem.axes, rows, columns, strict=True)]
    assert tiling.counts(problem, rows, columns) == tuple(map(prod, zip(*per_axis, strict=True)))


def test_published_waste_of_large_windows():
    """A window of 80 over 256x256 computes 1.23 times what it needs in 8x16 by 8x16 boxes; blocked, 1.0."""
    plain = replace(named("odd_2d").problem, axes=(Axis(256, 80), Axis(256, 80)))
    assert tiling.waste(plain, (8, 16), (8, 16)) == pytest.approx(1.23, abs=0.05)
    blocked = replace(plain, axes=(Axis(256, 80, 16), Axis(256, 80, 16)))
    assert tiling.waste(blocked, (16, 16), (8, 16)) == 1.0


@pytest.mark.parametrize(
    "case", [case for case in CASES if max(case.problem.lengths) < 500], ids=lambda case: case.name
)
def test_best_plan_is_the_cheapest(case):
    problem = case.problem
    candidates = [
        (rows, columns)
        for rows in tiling.boxes(16, problem.rank, problem.outputs)
        for columns in tiling.boxes(32, problem.rank, problem.lengths)
    ]
    plan = tiling.best(problem, candidates)
    costs = [tiling.boundary_cost(problem, *pair, tiling.counts(problem, *pair)) for pair in candidates]
    assert plan.cost == min(costs)
    assert (plan.rows, plan.columns) == candidates[costs.index(plan.cost)]


def test_boxes():
    assert tiling.boxes(4, 2) == [(1, 4), (2, 2), (4, 1)]
    assert tiling.boxes(16, 1) == [(16,)]
    assert tiling.boxes(16, 2, (100, 3)) == [(4, 4), (8, 2), (16, 1)]
    assert tiling.boxes(16, 1, (3,)) == [(16,)]
