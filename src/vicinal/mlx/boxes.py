"""One axis cut into tiles of outputs, each with the box of keys that it reads. No framework in here.

Dilation groups are cut one by one, and all tiles have the same number of rows and of columns: rows and
columns that do not exist are hidden, and repeat one that does.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from .. import spans
from ..window import Axis

# A row of a tile: its window is columns `first` to `last` of the box, and the relative position of
# `first`, or 0 where nobody asks.
Row = tuple[int, int, int]


class Cut(NamedTuple):
    """Tiles of an axis. `groups * (tiles // groups)` of them, one dilation group after the other.

    Args:
        rows, columns: outputs of a tile, keys of its box.
        groups, tiles: dilation groups, and tiles of all of them.
        keys: key of every column of every tile.
        kinds: the different tiles: the rows of each.
        kind: which of `kinds` each tile is.
        seen: one byte for every column of every tile: whether some row may see it.
    """

    rows: int
    columns: int
    groups: int
    tiles: int
    keys: tuple[int, ...]
    kinds: tuple[tuple[Row, ...], ...]
    kind: tuple[int, ...]
    seen: bytes


Holders = tuple[tuple[int, ...], ...]

# A column that is none: past every column there is, and twice it still fits 32 bits.
FREE = 1 << 30


def widest(axis: Axis, rows: int) -> int:
    """Columns that hold the keys of any tile of `rows` outputs."""
    found = 1
    for span in _groups(axis):
        for first in range(0, len(span.rows), rows):
            last = min(first + rows, len(span.rows)) - 1
            found = max(found, span.stops[last] - span.starts[first])
    return found


@lru_cache(256)
def cut(axis: Axis, rows: int, relative: bool) -> Cut:
    """The axis in tiles of `rows`; `relative` tells tiles apart that differ in relative positions alone."""
    groups, columns = _groups(axis), widest(axis, rows)
    per_group = -(-len(groups[0].rows) // rows)
    entry = spans.relative(axis) if relative else (0,) * axis.outputs
    keys, kinds, kind = [], {}, []
    live = bytearray()
    for span in groups:
        for tile in range(per_group):
            # A tile past the end of a short group repeats its last row.
            first = min(tile * rows, len(span.rows) - 1)
            members = [min(first + row, len(span.rows) - 1) for row in range(rows)]
            start = max(min(span.starts[first], len(span.columns) - columns), 0)
            inside = min(columns, len(span.columns) - start)
            keys += [span.columns[start + min(column, inside - 1)] for column in range(columns)]
            before, after = span.starts[members[0]] - start, span.stops[members[-1]] - start
            if first != tile * rows:
                before = after = 0
            live += bytes(before) + bytes([1]) * (after - before) + bytes(columns - after)
            found = tuple(
                (span.starts[m] - start, span.stops[m] - start, entry[span.rows[m]]) for m in members
            )
            kind.append(kinds.setdefault(found, len(kinds)))
    tiles = len(groups) * per_group
    return Cut(rows, columns, len(groups), tiles, tuple(keys), tuple(kinds), tuple(kind), bytes(live))


@lru_cache(1024)
def part(axis: Axis, rows: int, relative: bool, start: int, stop: int) -> tuple[tuple[int, ...], Holders]:
    """Keys that tiles `start` to `stop` see, or all if these are all tiles, at least one; and for each the
    columns that hold it, counted from `start` and padded with `FREE`."""
    found = cut(axis, rows, relative)
    low, high = start * found.columns, stop * found.columns
    every = range(axis.length) if stop - start == found.tiles else ()
    held: dict[int, list[int]] = {key: [] for key in every}
    for at in range(low, high):
        if found.seen[at]:
            held.setdefault(found.keys[at], []).append(at - low)
    held = held or {0: []}
    return tuple(held), _padded(list(held.values()))


@lru_cache(1024)
def parts(axis: Axis, rows: int, relative: bool, bounds: tuple[tuple[int, int], ...]) -> Holders:
    """For every key, its places in the keys of the parts, counted through all of them."""
    held: list[list[int]] = [[] for _ in range(axis.length)]
    count = 0
    for start, stop in bounds:
        keys, _ = part(axis, rows, relative, start, stop)
        for place, key in enumerate(keys):
            held[key].append(count + place)
        count += len(keys)
    return _padded(held)


def hidden(cuts: Sequence[Cut], value: bytes) -> bytes:
    """Numbers to add to the scores of every kind of tile: zeros, and `value` for pairs that do not see.

    Row-major over `[*kinds, *rows, *columns]`.
    """
    columns = prod(cut.columns for cut in cuts)
    found = []
    for kinds in product(*(cut.kinds for cut in cuts)):
        for rows in product(*kinds):
            seen, extent = bytes(len(value)), 1
            for (first, last, _), cut in zip(reversed(rows), reversed(cuts), strict=True):
                none = value * extent
                seen = none * first + seen * (last - first) + none * (cut.columns - last)
                extent *= cut.columns
            assert len(seen) == columns * len(value)
            found.append(seen)
    return b"".join(found)


def positions(cut: Cut) -> list[int]:
    """Entry of the relative position table for every row and column of every kind of tile; 0 where hidden."""
    return [
        entry + column - first if first <= column < last else 0
        for kind in cut.kinds
        for first, last, entry in kind
        for column in range(cut.columns)
    ]


def _padded(held: list[list[int]]) -> Holders:
    most = max(1, *map(len, held), 1)
    return tuple((*columns, *[FREE] * (most - len(columns))) for columns in held)


def _groups(axis: Axis) -> list[spans.Span]:
    """Dilation groups that hold outputs, in the order of their first outputs."""
    return sorted((span for span in spans.forward(axis) if span.rows), key=lambda span: span.rows[0])
