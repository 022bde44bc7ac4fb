"""Tiles of a problem: exact counts of what they visit, and the plan that costs least.

A tile is a box of rows; it visits boxes of columns, the first of which starts where the first window of the
tile starts, not on a grid of the whole axis. Rows are outputs and columns keys, or, for the gradients of keys
and values, the other way round. Axes are independent: counts of a problem are products of per-axis sums.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import lcm, prod
from typing import NamedTuple

from . import spans
from .problem import Problem
from .window import Axis

MASKED = 0.35


class Counts(NamedTuple):
    """Cost of an axis, or of a head: tiles of rows, visited boxes of columns, and those without a mask."""

    tiles: int
    visited: int
    full: int

    @property
    def partial(self) -> int:
        """Visited boxes in which some row does not see some column."""
        return self.visited - self.full


class Plan(NamedTuple):
    """Boxes of rows and columns, per axis, and what they cost."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    counts: Counts
    cost: float


Boxes = tuple[int, ...]


def shortened(axis: Axis, rows: int, units: int = 2, more: int = 0) -> tuple[Axis, Axis, int]:
    """Two lengths of `axis` whose counts tell those of the axis, and how often their difference is added.

    Far from its ends an axis repeats itself: tiles of `rows` meet the same windows `unit` tokens later. So
    counts grow by the same number with every `unit`, and a long axis costs no more to plan than a short one.
    Both lengths hold a window, and `more` keys, at each end, and `units` besides.
    """
    step = lcm(axis.dilation, axis.output_stride) // axis.dilation
    unit = axis.dilation * lcm(rows * step, axis.stride)
    least = 2 * axis.dilation * (axis.size + axis.stride + more) + units * unit
    repeats = max((axis.length - least) // unit, 0)
    short = axis.length - repeats * unit
    return replace(axis, length=short), replace(axis, length=short + min(repeats, 1) * unit), repeats


@lru_cache(65536)
def axis_counts(axis: Axis, rows: int, columns: int, inverse: bool = False) -> Counts:
    """Counts of one axis for tiles of `rows` and boxes of `columns`, over all dilation groups."""
    short, longer, repeats = shortened(axis, rows)
    both = (_walked_counts(found, rows, columns, inverse) for found in (short, longer))
    return Counts(*(few + repeats * (more - few) for few, more in zip(*both, strict=True)))


@lru_cache(65536)
def _walked_counts(axis: Axis, rows: int, columns: int, inverse: bool) -> Counts:
    tiles = visited = full = 0
    for span in (spans.inverse if inverse else spans.forward)(axis):
        for first in range(0, len(span.rows), rows):
            last = min(first + rows, len(span.rows)) - 1
            start, stop = span.starts[first], span.stops[last]
            boxes = -(-(stop - start) // columns)
            tiles += 1
            visited += boxes
            # A box is full if the last row has started and the first not stopped; a cut-off box is masked.
            skipped = -(-(span.starts[last] - start) // columns)
            full += max((span.stops[first] - start) // columns - skipped, 0)
    return Counts(tiles, visited, full)


def counts(problem: Problem, rows: Boxes, columns: Boxes, inverse: bool = False) -> Counts:
    """Counts of one head of one batch entry."""
    per_axis = [axis_counts(*numbers, inverse) for numbers in zip(problem.axes, rows, columns, strict=True)]
    return Counts(*(prod(numbers) for numbers in zip(*per_axis, strict=True)))


def waste(problem: Problem, rows: Boxes, columns: Boxes, inverse: bool = False) -> float:
    """Computed over useful pairs: 1.0 where every visited box is dense."""
    visited = counts(problem, rows, columns, inverse).visited
    useful = problem.pairs - problem.extra * prod(problem.outputs)
    return visited * prod(rows) * prod(columns) / max(useful, 1)


def boxes(volume: int, rank: int, lengths: Sequence[int] | None = None) -> list[Boxes]:
    """Boxes of `volume` elements with power-of-two sides, each under twice its axis in `lengths`."""
    sides = [1 << bit for bit in range(volume.bit_length())]
    found = [box for box in product(sides, repeat=rank) if prod(box) == volume]
    if lengths is None:
        return found
    fitting = [
        box for box in found if all(side < 2 * length for side, length in zip(box, lengths, strict=True))
    ]
    return fitting or found


def boundary_cost(problem: Problem, rows: Boxes, columns: Boxes, counted: Counts) -> float:
    """Cost of a tile kernel whose time is its visited boxes, `MASKED` dearer where a mask is applied."""
    return (counted.visited + MASKED * counted.partial) * prod(rows) * prod(columns)


def best(
    problem: Problem,
    candidates: Iterable[tuple[Boxes, Boxes]],
    cost: Callable[[Problem, Boxes, Boxes, Counts], float] = boundary_cost,
    inverse: bool = False,
) -> Plan:
    """The cheapest of `candidates`, pairs of row and column boxes; the first of equals."""
    plans: list[Plan] = []
    for rows, columns in candidates:
        counted = counts(problem, rows, columns, inverse)
        plans.append(Plan(rows, columns, counted, cost(problem, rows, columns, counted)))
    return min(plans, key=lambda plan: plan.cost)
