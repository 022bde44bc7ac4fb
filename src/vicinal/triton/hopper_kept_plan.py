"""Gradients that keep slopes in memory: which problems gain by that, and their boxes.

Slopes are computed once, with the gradients of keys and values, and multiplied with keys by another kernel:
five products for seven, or six for eight where values have a kernel of their own. They are as many as the
scores, so heads take turns in memory of a bounded size.
"""

from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

from .. import settings, spans
from ..problem import Problem
from ..window import Axis
from . import hopper_plan as plans
from .hopper_counts import Triple, counts
from .hopper_plan import BYTES, ROWS, SHARED, Plan
from .hopper_spec import Spec

# Bytes of a block: slopes of 64 keys with 64 queries.
BLOCK = ROWS * ROWS * BYTES
# Columns of all sums that a warpgroup's registers hold.
SUMS = 256
# Narrowest heads whose products take longer than slopes take to come and go.
NARROWEST = 96
# Boxes on a grid over those off it, at most: an H200 gained 6 to 13 % where there were no more of them, and
# lost as much with 20 % more. Volumes gained 2 %, or lost.
MOST = 1.04
# Boxes from which on more launches do not matter: 105,000 gained, 65,000 did not.
FEWEST = 80_000


class Kept(NamedTuple):
    """Gradients of all operands, where those of keys leave slopes for that of queries.

    Args:
        keys, queries: the two kernels; where values have one of their own, it is as it was.
        blocks: of each query head of a batch entry.
        turns: parts of the heads that are computed one after the other, as many at a time as there are rooms.
        rooms: for slopes of a part.
    """

    keys: Plan
    queries: Plan
    blocks: int
    turns: int
    rooms: int


def kept(problem: Problem) -> Kept | None:
    """What keeps slopes, or None where nothing is gained by it, or memory is not to be taken for it."""
    return _kept(plans.three_axes(problem)) if settings.workspace() else None


@lru_cache(1024)
def _kept(problem: Problem) -> Kept | None:
    narrow = min(problem.dim, problem.value_dim) < NARROWEST
    plain = all(axis.dilation == axis.output_stride == 1 for axis in problem.axes)
    spec, programs = plans.key_gradients(problem, True, True, True)[0]
    wide = not spec.wants_value
    volume = all(axis.length > 1 for axis in problem.axes)
    if narrow or spec.width != ROWS or not plain or (volume and not wide):
        return None
    met = [_met(*numbers) for numbers in zip(problem.axes, spec.columns, spec.rows, strict=True)]
    slots = tuple(map(max, met))
    blocks = prod(map(len, met)) * prod(slots)
    queries = _sum(problem, replace(spec, slots=slots))
    room, each = _room(problem), blocks * problem.heads // problem.kv_heads * BLOCK
    # Wide heads gain by slopes of one head at a time too.
    rooms = min(room // each, 2)
    if queries is None or rooms < (1 if wide else 2) or not _gains(problem, spec):
        return None
    turns = -(-problem.batch * problem.kv_heads // (room // (rooms * each)))
    return Kept(Plan(replace(spec, slots=slots), programs), queries, blocks, turns, min(rooms, turns))


def _met(axis: Axis, queries: int, keys: int) -> list[int]:
    """How many boxes of `keys` each box of `queries` meets."""
    (span,) = spans.forward(axis)
    firsts = range(0, axis.length, queries)
    ends = [(span.starts[first], span.stops[min(first + queries, axis.length) - 1]) for first in firsts]
    return [-(-stop // keys) - start // keys for start, stop in ends]


def _room(problem: Problem) -> int:
    """Bytes that slopes may take: as many as operands, output and gradients."""
    rows = prod(problem.outputs) * problem.heads + prod(problem.lengths) * problem.kv_heads
    return 2 * problem.batch * rows * (problem.dim + problem.value_dim) * BYTES


def _gains(problem: Problem, spec: Spec) -> bool:
    """Whether a kernel with `spec`, which leaves slopes, is predicted to save time."""

    def boxes(spec: Spec, grid: bool) -> float:
        where = problem, spec.tile, spec.split, spec.columns, True
        visited, loaded = (counts(*where, warpgroups, grid)[0] for warpgroups in (2, 1))
        return plans.computed(visited, loaded, plans.ALONE[2])

    without = boxes(plans.key_gradients(problem, True, True)[0].spec, False)
    return boxes(spec, True) <= MOST * without and problem.batch * problem.heads * without >= FEWEST


def _sum(problem: Problem, spec: Spec) -> Plan | None:
    """Tiles, over boxes of queries and keys of another kernel, that read boxes of keys least often."""
    rows, columns = spec.columns, spec.rows
    together = 2 * SUMS // spec.dim
    tiles = [(_stacked(rows, together, split), split) for split in range(3)]
    # Behind the first axis lies the next batch entry.
    tiles = [one for one in tiles if problem.batch == 1 or problem.outputs[0] % one[0][0] == 0]
    if not tiles:
        return None
    tile, split = min(tiles, key=lambda one: counts(problem, *one, columns, False, 1, True)[0])
    stage = (ROWS * spec.dim + together * ROWS * ROWS) * BYTES
    found = replace(
        spec,
        rows=rows,
        columns=columns,
        tile=tile,
        split=split,
        order=plans.order(problem, tile, False),
        stages=(SHARED - 2 * ROWS * spec.dim * BYTES) // stage,
        value_stages=0,
        depth=1,
    )
    each = prod(-(-extent // side) for extent, side in zip(problem.outputs, tile, strict=True))
    return Plan(found, problem.batch * problem.heads * each)


def _stacked(box: Triple, together: int, axis: int) -> Triple:
    return tuple(side * together if number == axis else side for number, side in enumerate(box))
