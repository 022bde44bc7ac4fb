"""Arrays of a problem cut into tiles: queries into rows, keys into boxes, box gradients back into keys.

A unit is one tile of the first axis with all tiles of the others, of one volume, which is a key/value
head of a batch entry. Units follow one another, so that any range of them is a piece of work.
"""

from functools import lru_cache
from math import prod
from struct import pack
from typing import NamedTuple

import mlx.core as mx

from ..problem import Problem
from ..window import Axis
from . import boxes, relative, tables

# Added to hidden scores; any visible score is far above.
HIDDEN = -1e30


class Layout(NamedTuple):
    """Tiles of `axes` as arrays. Built once; they hold values, not graphs, so any trace may read them.

    Args:
        cuts: the axes, cut.
        kind: `[tiles]` which kind of tile each is.
        added: `[kinds, rows * columns]` to add to scores; None if every row sees its whole box.
        keys: per axis `[tiles, columns]`.
        holders: per axis but the first, `[length, holders]` columns to add up for each key's gradient, as
            offsets into the boxes of a unit; see `_folded`.
        whole: whether the only box is all tokens, in order.
        relative: whether scores take a relative position bias.
    """

    axes: tuple[Axis, ...]
    cuts: tuple[boxes.Cut, ...]
    kind: mx.array
    added: mx.array | None
    keys: tuple[mx.array, ...]
    holders: tuple[mx.array, ...]
    whole: bool
    relative: bool

    @property
    def first(self) -> tuple[Axis, int, bool]:
        """What the first axis was cut by."""
        return self.axes[0], self.cuts[0].rows, self.relative

    @property
    def rows(self) -> int:
        return prod(cut.rows for cut in self.cuts)

    @property
    def columns(self) -> int:
        return prod(cut.columns for cut in self.cuts)

    @property
    def units(self) -> int:
        """Units of one volume."""
        return self.cuts[0].tiles

    @property
    def tiles(self) -> int:
        """Tiles of one unit."""
        return prod(cut.tiles for cut in self.cuts[1:])

    @property
    def tokens(self) -> int:
        return prod(axis.length for axis in self.axes)


@lru_cache(128)
def layout(axes: tuple[Axis, ...], rows: tuple[int, ...], relative: bool) -> Layout:
    """Tiles of `rows` outputs per axis; `relative` if scores take a relative position bias."""
    cuts = tuple(boxes.cut(axis, extent, relative) for axis, extent in zip(axes, rows, strict=True))
    kinds = [len(cut.kinds) for cut in cuts]
    kind = [0]
    for cut, count in zip(cuts, kinds, strict=True):
        kind = [one * count + other for one in kind for other in cut.kind]
    flat = boxes.hidden(cuts, pack("f", HIDDEN))
    added = tables.floats(flat).reshape(prod(kinds), -1) if any(flat) else None
    keys = tuple(tables.integers(cut.keys).reshape(cut.tiles, -1) for cut in cuts)
    holders = tuple(
        _table(_offsets(cuts, place, boxes.part(axes[place], rows[place], relative, 0, cuts[place].tiles)[1]))
        for place in range(1, len(axes))
    )
    whole = all(cut.tiles == 1 and cut.columns == axis.length for cut, axis in zip(cuts, axes, strict=True))
    return Layout(axes, cuts, tables.integers(kind), added, keys, holders, whole, relative)


def rows(found: Layout, x: mx.array, kv_heads: int, blank: float = 0.0) -> mx.array:
    """`[batch, *outputs, heads, width]` to `[units of all volumes, tiles, group * rows, width]`.

    Rows that do not exist are `blank`.
    """
    batch, heads, width = x.shape[0], x.shape[-2], x.shape[-1]
    past = [
        (0, cut.tiles * cut.rows - axis.outputs) for cut, axis in zip(found.cuts, found.axes, strict=True)
    ]
    if any(after for _, after in past):
        x = mx.pad(x, [(0, 0), *past, (0, 0), (0, 0)], constant_values=blank)
    x = x.reshape(batch, *_split(found), kv_heads, heads // kv_heads, width)
    x = x.transpose(_order(len(found.axes)))
    return x.reshape(-1, found.tiles, heads // kv_heads * found.rows, width)


def unrows(found: Layout, x: mx.array, problem: Problem) -> mx.array:
    """The way back, to `[batch, *outputs, heads, width]`."""
    rank, width = len(found.axes), x.shape[-1]
    order = _order(rank)
    split = (problem.batch, *_split(found), problem.kv_heads, problem.heads // problem.kv_heads, width)
    back = sorted(range(len(order)), key=order.__getitem__)
    x = x.reshape([split[place] for place in order]).transpose(back)
    x = x.reshape(problem.batch, *(cut.tiles * cut.rows for cut in found.cuts), problem.heads, width)
    return x[(slice(None), *(slice(0, axis.outputs) for axis in found.axes))]


def tokens(x: mx.array) -> mx.array:
    """`[batch, *lengths, kv_heads, width]` to `[volumes * tokens, width]`."""
    return mx.moveaxis(x, -2, 1).reshape(-1, x.shape[-1])


def untokens(x: mx.array, problem: Problem) -> mx.array:
    """The way back."""
    x = x.reshape(problem.batch, problem.kv_heads, *problem.lengths, x.shape[-1])
    return mx.moveaxis(x, 1, -2)


def firsts(found: Layout, volumes: int) -> mx.array:
    """`[units of all volumes, columns]` token of the first axis' columns."""
    rest = found.tokens // found.axes[0].length
    start = mx.arange(volumes, dtype=mx.uint32).reshape(-1, 1, 1) * found.tokens
    return (start + found.keys[0] * rest).reshape(-1, found.cuts[0].columns)


def columns(found: Layout, units: mx.array) -> mx.array:
    """`[units, tiles, columns]` token of every column of some units, given their `firsts`."""
    if len(found.axes) == 1:
        return units[:, None]
    rest = tables.combined(list(found.keys[1:]), [axis.length for axis in found.axes[1:]])
    index = units[:, None, :, None] + rest.reshape(found.tiles, 1, -1)
    return index.flatten(-2)


def added(found: Layout, bias: mx.array | None) -> mx.array | None:
    """`[heads, kinds, rows * columns]` to add to scores; one head if there is no `bias` `[heads, ...]`."""
    if bias is None:
        return None if found.added is None else found.added[None]
    per_axis = [
        tables.integers(boxes.positions(cut)).reshape(-1, cut.rows, cut.columns) for cut in found.cuts
    ]
    index, rank = per_axis[0].reshape(_spread(per_axis[0].shape, 0, len(per_axis))), len(per_axis)
    for place in range(1, rank):
        index = index * bias.shape[1 + place] + per_axis[place].reshape(
            _spread(per_axis[place].shape, place, rank)
        )
    index = index.flatten(rank).flatten(0, rank - 1)
    entries = mx.take(bias.reshape(bias.shape[0], -1), index, axis=1)
    return entries if found.added is None else entries + found.added


def kinds(found: Layout, units: slice) -> mx.array:
    """`[1, units, tiles, 1]` kind of every tile of some units."""
    return found.kind.reshape(1, found.units, found.tiles, 1)[:, units]


def fold_rest(found: Layout, x: mx.array) -> mx.array:
    """Add up what boxes `[units, tiles, columns, width]` hold of the same tokens of all axes but the first.

    Returns:
        `[units, columns of the first axis, tokens of the others, width]`.
    """
    units, width, first = x.shape[0], x.shape[-1], found.cuts[0].columns
    if found.whole or len(found.axes) == 1:
        return x.reshape(units, first, -1, width)
    rest = tables.combined(list(found.holders), [1] * len(found.axes))
    box = found.columns // first
    start = mx.arange(units, dtype=mx.uint32).reshape(-1, 1, 1, 1) * (found.tiles * first * box)
    at = start + mx.arange(first, dtype=mx.uint32).reshape(-1, 1, 1) * box + rest
    return _summed(x.reshape(-1, width), at)


def fold_first(found: Layout, x: mx.array, units: slice) -> mx.array:
    """Add up what some units `[units of volumes, columns, tokens of other axes, width]` hold of the same.

    Returns:
        `[volumes, keys of these units on the first axis, tokens of the others, width]`.
    """
    if found.whole:
        return x
    keys, holders = boxes.part(*found.first, units.start, units.stop)
    held = (units.stop - units.start) * found.cuts[0].columns
    return _folded(x.reshape(-1, held, *x.shape[2:]), holders, len(keys))


def fold_parts(found: Layout, x: list[mx.array], units: list[slice]) -> mx.array:
    """Add up what parts of the same volumes, as `fold_first` returns them, hold of the same tokens.

    Returns:
        `[volumes, tokens, width]`.
    """
    together = x[0]
    if len(x) > 1:
        holders = boxes.parts(*found.first, tuple((part.start, part.stop) for part in units))
        together = _folded(mx.concatenate(x, 1), holders, found.axes[0].length)
    return together.reshape(together.shape[0], -1, together.shape[-1])


def per_kind(found: Layout, x: mx.array, units: slice) -> mx.array:
    """Sums over the tiles of each kind: `[volumes, units, tiles, ...]` to `[volumes, *kinds, ...]`."""
    rest = x.shape[3:]
    lead = x.shape[:1]
    for place, cut in enumerate(found.cuts):
        kind = cut.kind[units] if place == 0 else cut.kind
        table = relative.entries(tables.integers(kind), len(cut.kinds), x.dtype)
        x = table.T @ x.reshape(prod(lead), len(kind), -1)
        lead = (*lead, len(cut.kinds))
    return x.reshape(*lead, *rest)


def bias_gradient(found: Layout, x: mx.array, heads: int) -> mx.array:
    """Sums at relative positions: `[volumes, *kinds, group, rows, columns]` to `[heads, *(2 * size - 1)]`."""
    rank = len(found.cuts)
    kinds = [len(cut.kinds) for cut in found.cuts]
    rows, columns = ([getattr(cut, name) for cut in found.cuts] for name in ("rows", "columns"))
    group = x.shape[1 + rank]
    x = x.reshape(-1, heads // group, *kinds, group, *rows, *columns).sum(0)
    # [kv_heads, group, then kinds, rows and columns of each axis in turn]
    each = [place for axis in range(1, rank + 1) for place in (axis, axis + rank + 1, axis + 2 * rank + 1)]
    x = x.transpose(0, rank + 1, *each)
    lead = (heads,)
    for cut, axis in zip(found.cuts, found.axes, strict=True):
        places = tables.integers(boxes.positions(cut))
        table = relative.entries(places, 2 * axis.size - 1, x.dtype)
        x = table.T @ x.reshape(prod(lead), places.size, -1)
        lead = (*lead, 2 * axis.size - 1)
    return x.reshape(lead)


def _folded(x: mx.array, holders: boxes.Holders, count: int) -> mx.array:
    """`[volumes, columns, ...]` to `[volumes, count, ...]`: sums of the columns that hold the same."""
    volumes, columns = x.shape[:2]
    start = mx.arange(volumes, dtype=mx.uint32).reshape(-1, 1, 1) * columns
    return _summed(x.flatten(0, 1), start + _table(holders)).reshape(volumes, count, *x.shape[2:])


def _summed(x: mx.array, at: mx.array) -> mx.array:
    """Sums over the last axis of `at` of rows of `x`; entries past the end count as zero."""
    padded = mx.pad(x, [(0, 1), *[(0, 0)] * (x.ndim - 1)])
    return mx.take(padded, mx.minimum(at, x.shape[0]), axis=0).sum(at.ndim - 1)


def _offsets(cuts: tuple[boxes.Cut, ...], place: int, holders: boxes.Holders) -> boxes.Holders:
    """Holders of an axis, as offsets into the boxes of a unit."""
    cut, after = cuts[place], cuts[place + 1 :]
    tile = prod(other.tiles for other in after) * prod(other.columns for other in cuts)
    column = prod(other.columns for other in after)
    offset = lambda at: at // cut.columns * tile + at % cut.columns * column  # noqa: E731
    return tuple(tuple(at if at == boxes.FREE else offset(at) for at in held) for held in holders)


def _table(rows: boxes.Holders) -> mx.array:
    return tables.integers([at for row in rows for at in row]).reshape(len(rows), -1)


def _split(found: Layout) -> list[int]:
    """Outputs of an axis are tiles, rows, groups: the group of an output is its remainder."""
    return [extent for cut in found.cuts for extent in (cut.tiles // cut.groups, cut.rows, cut.groups)]


def _order(rank: int) -> list[int]:
    """From `[batch, (tiles, rows, groups) per axis, kv_heads, group, width]` to volumes, tiles, rows."""
    tiles = [place for axis in range(rank) for place in (3 + 3 * axis, 1 + 3 * axis)]
    each = [2 + 3 * axis for axis in range(rank)]
    return [0, 1 + 3 * rank, *tiles, 2 + 3 * rank, *each, 3 + 3 * rank]


def _spread(shape: tuple[int, ...], place: int, rank: int) -> list[int]:
    """Shape of an axis' `[kinds, rows, columns]` among all: kinds first, then rows, then columns."""
    full = [1] * 3 * rank
    for part, extent in enumerate(shape):
        full[part * rank + place] = extent
    return full
