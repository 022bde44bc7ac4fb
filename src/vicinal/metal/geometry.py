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
    row_room: tuple[int, ...]
    column_room: tuple[int, ...]
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
    """Geometries and a table, four numbers an entry as in prelude.metal. Compared by identity, as a key.

    `heads` counts the heads that rows have, `tile_count`, `row_count` and `batch` what a grid visits,
    `widest` the columns that the widest tile of each axis touches, `computed` and `visible` pairs of tiles.
    """

    geometries: tuple[Geometry, ...]
    table: tuple[int, ...]
    heads: int
    tile_count: int
    row_count: int
    batch: int
    widest: tuple[int, ...]
    computed: int
    visible: int

    @property
    def geometry(self) -> Geometry:
        """The first one. Documents have heads, batch and bias in common."""
        return self.geometries[0]

    @property
    def packed(self) -> list[int]:
        """The numbers of all geometries."""
        return [number for geometry in self.geometries for number in geometry.packed]

    def suits_tiles(self, most_waste: float) -> bool:
        """Whether tiles compute no more pairs for each visible one, and can pack the place of any column."""
        fits = max(self.widest) < BOX_LIMITS[len(self.widest)]
        return fits and self.computed <= most_waste * max(self.visible, 1)


@lru_cache(1024)
def layout(
    problem: Problem,
    inverse: bool = False,
    rooms: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    window: tuple[int, ...] | None = None,
) -> Layout:
    """Rows are outputs; with `inverse` they are keys, and columns are the outputs that see them.

    Args:
        rooms: extents of what outputs and keys lie in, if not their own.
        window: that of the bias, if it is wider than the problem's.
    """
    axes, outputs, lengths = problem.axes, problem.outputs, problem.lengths
    room = (outputs, lengths) if rooms is None else rooms
    window = problem.window if window is None else window
    sides = _tile_sides(problem, inverse)
    table, starts, tiles, widest = _tables(axes, inverse, sides, window)
    periods = tuple(axis.period for axis in axes)
    dilations = tuple(axis.dilation for axis in axes)
    counts = [2 * size - 1 for size in window]
    # The next output of a group is this many places of the group further on.
    jumps = tuple(axis.period * axis.output_stride // axis.dilation for axis in axes)
    geometry = Geometry(
        rows=lengths if inverse else outputs,
        columns=outputs if inverse else lengths,
        row_room=room[inverse],
        column_room=room[not inverse],
        row_step=dilations if inverse else periods,
        column_step=periods if inverse else dilations,
        **starts,
        tiles=tiles,
        tile_bits=tuple(side.bit_length() - 1 for side in sides),
        relative_step=tuple(-jump for jump in jumps) if inverse else (1,) * len(axes),
        relative_stride=_strides(counts),
        slot_stride=_strides(problem.window),
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        # Additional tokens are columns of outputs only.
        extra=0 if inverse else problem.extra,
        row_count=prod(lengths if inverse else outputs),
        column_count=prod(outputs if inverse else lengths),
        relative_count=prod(counts),
        slot_count=prod(problem.window),
    )
    heads = problem.kv_heads if inverse else problem.heads
    visited = tiling.counts(problem, sides, (1,) * problem.rank, inverse).visited
    visible = problem.pairs - problem.extra * prod(outputs)
    counts = (prod(tiles), geometry.row_count, problem.batch)
    return Layout((geometry,), table, heads, *counts, widest, TILE_ROWS * visited, visible)


@lru_cache(1024)
def whole(problem: Problem, room: tuple[int, ...] | None = None) -> Layout:
    """Rows are the additional tokens, columns all outputs, and every row touches every column.

    Outputs have one axis, or with `room` the problem's, inside of these extents.
    """
    columns = (prod(problem.outputs),) if room is None else problem.outputs
    room, rank, extra = columns if room is None else room, len(columns), problem.extra
    rows, ones, zeros = (extra, *(1,) * (rank - 1)), (1,) * rank, (0,) * rank
    tiles = (-(-extra // TILE_ROWS), *ones[1:])
    table: list[int] = []
    row_table, tile_table = [], []
    for count, column, many in zip(rows, columns, tiles, strict=True):
        row_table.append(len(table) // 4)
        table += (0, column, 0, 0) * count
        tile_table.append(len(table) // 4)
        table += [number for tile in range(many) for number in (tile * TILE_ROWS, 0, 0, column)]
    geometry = Geometry(
        rows=rows,
        columns=columns,
        row_room=rows,
        column_room=room,
        row_step=ones,
        column_step=ones,
        row_table=tuple(row_table),
        output_table=zeros,
        tile_table=tuple(tile_table),
        tiles=tiles,
        tile_bits=(TILE_ROWS.bit_length() - 1, *zeros[1:]),
        relative_step=zeros,
        relative_stride=ones,
        slot_stride=ones,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        extra=0,
        row_count=extra,
        column_count=prod(columns),
        relative_count=1,
        slot_count=1,
    )
    pairs = extra * prod(columns)
    counts = (prod(tiles), extra, problem.batch)
    return Layout((geometry,), tuple(table), problem.kv_heads, *counts, columns, pairs, pairs)


def _tables(
    axes: tuple[Axis, ...], inverse: bool, sides: tuple[int, ...], window: tuple[int, ...]
) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]], tuple[int, ...], tuple[int, ...]]:
    """The table, where its parts start on every axis, tiles of every axis and columns of the widest."""
    walked = spans.inverse if inverse else spans.forward
    table: list[int] = []
    starts: dict[str, tuple[int, ...]] = {"row_table": (), "output_table": (), "tile_table": ()}
    tiles: tuple[int, ...] = ()
    widest: tuple[int, ...] = ()
    for axis, side, size in zip(axes, sides, window, strict=True):
        boxes = [box for span in walked(axis) for box in _tiles(span, side)]
        shift = size - axis.size
        parts = (_rows(axis, inverse, shift), _rows(axis, False, shift), boxes)
        for name, entries in zip(starts, parts, strict=True):
            starts[name] += (len(table) // 4,)
            table += [number for entry in entries for number in entry]
        tiles += (len(boxes),)
        widest += (max((box[3] for box in boxes), default=0),)
    return tuple(table), starts, tiles, widest


def _tile_sides(problem: Problem, inverse: bool) -> tuple[int, ...]:
    """Sides of the tile that reads the fewest columns in all."""
    lengths = problem.lengths if inverse else problem.outputs
    single = (1,) * problem.rank
    candidates = [(box, single) for box in tiling.boxes(TILE_ROWS, problem.rank, lengths)]
    return tiling.best(problem, candidates, lambda _p, _r, _c, counted: counted.visited, inverse).rows


def _rows(axis: Axis, inverse: bool, shift: int) -> list[tuple[int, int, int, int]]:
    """Entries of rows, whose relative positions are `shift` further on."""
    if not inverse:
        first, count = spans.windows(axis)
        places = (key // axis.dilation for key in first)
        relative = (entry + shift for entry in spans.relative(axis))
        return list(zip(first, count, places, relative, strict=True))
    # Keys that no output sees keep this entry.
    entries = [(0, 0, 0, 0)] * axis.length
    for span in spans.inverse(axis):
        for key, start, stop in zip(span.rows, span.starts, span.stops, strict=True):
            if start < stop:
                distance = (key - span.columns[start] * axis.output_stride) // axis.dilation
                entries[key] = span.columns[start], stop - start, start, distance + axis.size - 1 + shift
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
