"""What the kernels know of a problem: int32 tables of rows and tiles, and the numbers that go with them."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

from .. import spans, tiling
from ..problem import Problem
from ..window import Axis

# Rows of a tile: four SIMD-groups of eight.
TILE_ROWS = 32
# A tile packs the places of a column on every axis into 32 bits, with one bit to spare for each axis.
BOX_LIMITS = {1: 2**31 - 1, 2: 2**15 - 1, 3: 2**9 - 1}


class Geometry(NamedTuple):
    """The fields of `Geometry` in prelude.metal, in its order: a number an axis, or one number."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    row_step: tuple[int, ...]
    column_step: tuple[int, ...]
    row_table: tuple[int, ...]
    output_table: tuple[int, ...]
    tile_table: tuple[int, ...]
    tiles: tuple[int, ...]
    tile_bits: tuple[int, ...]
    relative_step: tuple[int, ...]
    relative_stride: tuple[int, ...]
    slot_stride: tuple[int, ...]
    batch: int
    heads: int
    kv_heads: int
    extra: int
    row_count: int
    column_count: int
    relative_count: int
    slot_count: int

    @property
    def packed(self) -> list[int]:
        return [number for field in self for number in (field if isinstance(field, tuple) else (field,))]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A geometry and its table, four numbers an entry as in prelude.metal. Compared by identity, as a key.

    `heads` counts the heads that rows have, `widest` the columns that the widest tile of each axis touches,
    `waste` the pairs that tiles compute for each that is visible.
    """

    geometry: Geometry
    heads: int
    table: tuple[int, ...]
    widest: tuple[int, ...]
    waste: float

    def suits_tiles(self, most_waste: float) -> bool:
        """Whether tiles waste no more than that, and the place of any column of any tile can be packed."""
        return self.waste <= most_waste and max(self.widest) < BOX_LIMITS[len(self.widest)]


@lru_cache(256)
def layout(problem: Problem, inverse: bool = False) -> Layout:
    """Rows are outputs; with `inverse` they are keys, and columns are the outputs that see them."""
    axes = problem.axes
    walked = spans.inverse if inverse else spans.forward
    sides = _tile_sides(problem, inverse)
    table: list[int] = []
    starts = {"row_table": [], "output_table": [], "tile_table": []}
    tiles, widest = [], []
    for axis, side in zip(axes, sides, strict=True):
        boxes = [box for span in walked(axis) for box in _tiles(span, side)]
        parts = {"row_table": _rows(axis, inverse), "output_table": _rows(axis, False), "tile_table": boxes}
        for name, entries in parts.items():
            starts[name].append(len(table) // 4)
            table += [number for entry in entries for number in entry]
        tiles.append(len(boxes))
        widest.append(max((box[3] for box in boxes), default=0))
    periods = tuple(axis.period for axis in axes)
    dilations = tuple(axis.dilation for axis in axes)
    counts = [2 * axis.size - 1 for axis in axes]
    # The next output of a group is this many places of the group further on.
    jumps = tuple(axis.period * axis.output_stride // axis.dilation for axis in axes)
    geometry = Geometry(
        rows=problem.lengths if inverse else problem.outputs,
        columns=problem.outputs if inverse else problem.lengths,
        row_step=dilations if inverse else periods,
        column_step=periods if inverse else dilations,
        **{name: tuple(numbers) for name, numbers in starts.items()},
        tiles=tuple(tiles),
        tile_bits=tuple(side.bit_length() - 1 for side in sides),
        relative_step=tuple(-jump for jump in jumps) if inverse else (1,) * len(axes),
        relative_stride=_strides(counts),
        slot_stride=_strides(problem.window),
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        # Additional tokens are columns of outputs only.
        extra=0 if inverse else problem.extra,
        row_count=prod(problem.lengths if inverse else problem.outputs),
        column_count=prod(problem.outputs if inverse else problem.lengths),
        relative_count=prod(counts),
        slot_count=prod(problem.window),
    )
    heads = problem.kv_heads if inverse else problem.heads
    waste = tiling.waste(problem, sides, (1,) * problem.rank, inverse)
    return Layout(geometry, heads, tuple(table), tuple(widest), waste)


@lru_cache(256)
def whole(problem: Problem) -> Layout:
    """One axis: rows are the additional tokens, columns all outputs, and every row touches every column."""
    rows, columns = problem.extra, prod(problem.outputs)
    tiles = [(first, 0, 0, columns) for first in range(0, rows, TILE_ROWS)]
    table = [(0, columns, 0, 0)] * rows + tiles
    # Extents, steps, tables, tiles, and what only relative positions and slots use.
    numbers = (rows, columns, 1, 1, 0, 0, rows, len(tiles), TILE_ROWS.bit_length() - 1, 0, 1, 1)
    geometry = Geometry(
        *((number,) for number in numbers),
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        extra=0,
        row_count=rows,
        column_count=columns,
        relative_count=1,
        slot_count=1,
    )
    flat = tuple(number for entry in table for number in entry)
    return Layout(geometry, problem.kv_heads, flat, (columns,), 1.0)


def _tile_sides(problem: Problem, inverse: bool) -> tuple[int, ...]:
    """Sides of the tile that reads the fewest columns in all."""
    lengths = problem.lengths if inverse else problem.outputs
    single = (1,) * problem.rank
    candidates = [(box, single) for box in tiling.boxes(TILE_ROWS, problem.rank, lengths)]
    return tiling.best(problem, candidates, lambda _p, _r, _c, counted: counted.visited, inverse).rows


def _rows(axis: Axis, inverse: bool) -> list[tuple[int, int, int, int]]:
    if not inverse:
        first, count = spans.windows(axis)
        places = (key // axis.dilation for key in first)
        return list(zip(first, count, places, spans.relative(axis), strict=True))
    # Keys that no output sees keep this entry.
    entries = [(0, 0, 0, 0)] * axis.length
    for span in spans.inverse(axis):
        for key, start, stop in zip(span.rows, span.starts, span.stops, strict=True):
            if start < stop:
                distance = (key - span.columns[start] * axis.output_stride) // axis.dilation
                entries[key] = span.columns[start], stop - start, start, distance + axis.size - 1
    return entries


def _tiles(span: spans.Span, side: int) -> list[tuple[int, int, int, int]]:
    found = []
    for first in range(0, len(span.rows), side):
        last = min(first + side, len(span.rows)) - 1
        start, stop = span.starts[first], span.stops[last]
        column = span.columns[start] if start < stop else 0
        found.append((span.rows[first], column, start, stop - start))
    return found


def _strides(extents) -> tuple[int, ...]:
    return tuple(prod(extents[place + 1 :]) for place in range(len(extents)))
