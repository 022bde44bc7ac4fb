"""Boxes that the warpgroups of a Hopper tile visit, counted exactly."""

from functools import lru_cache
from math import lcm, prod

from .. import spans, tiling
from ..problem import Problem
from ..window import Axis

# One entry per axis of a problem with three axes.
Triple = tuple[int, ...]


def counts(
    problem: Problem,
    tile: Triple,
    split: int,
    box: Triple,
    inverse: bool,
    warpgroups: int = 2,
    grid: bool = False,
) -> tuple[int, int]:
    """Boxes that the warpgroups of one head visit, and those of them that need no mask."""
    per_axis = axes_counts(problem, tile, split, box, inverse, warpgroups, grid)
    return prod(visited for visited, _ in per_axis), prod(full for _, full in per_axis)


def axes_counts(
    problem: Problem,
    tile: Triple,
    split: int,
    box: Triple,
    inverse: bool,
    warpgroups: int,
    grid: bool = False,
) -> list[tuple[int, int]]:
    """The same per axis: the counts of a head are products of them."""
    return [
        axis_counts(axis, side, warpgroups if number == split else 1, columns, inverse, grid)
        for number, (axis, side, columns) in enumerate(zip(problem.axes, tile, box, strict=True))
    ]


@lru_cache(65536)
def axis_counts(
    axis: Axis, tile: int, parts: int, columns: int, inverse: bool, grid: bool = False
) -> tuple[int, int]:
    """The same along one axis, for tiles in `parts` whose boxes all start at the first column of the tile.

    On a `grid` they start at multiples of their side.
    """
    short, longer, repeats = tiling.shortened(axis, lcm(tile, columns) if grid else tile)
    both = (walked_counts(found, tile, parts, columns, inverse, grid) for found in (short, longer))
    visited, full = (few + repeats * (more - few) for few, more in zip(*both, strict=True))
    return visited, full


def walked_counts(
    axis: Axis, tile: int, parts: int, columns: int, inverse: bool, grid: bool = False
) -> tuple[int, int]:
    visited = full = 0
    rows = tile // parts
    for span in (spans.inverse if inverse else spans.forward)(axis):
        for first in range(0, len(span.rows), rows):
            last = min(first + rows, len(span.rows)) - 1
            origin = 0 if grid else span.starts[first // tile * tile]
            visited += -(-(span.stops[last] - origin) // columns) - (span.starts[first] - origin) // columns
            skipped = -(-(span.starts[last] - origin) // columns)
            full += max((span.stops[first] - origin) // columns - skipped, 0)
    return visited, full
