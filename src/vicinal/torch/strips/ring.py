"""Tiles of one axis and the boxes of columns that they read, all of one width and evenly spaced.

Windows shift at the ends of an axis, so a box that follows its tile would overrun the axis there. Each
overrun slot holds the column one box width further in: every border window then lies inside its regular
box, wrapped around, and border tiles differ from interior ones in nothing but their mask.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, repeat
from math import gcd, inf
from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from ... import tiling
from ...window import Axis
from .arena import Like, take
from .residues import Residue, residues

CPU = torch.device("cpu")
SHORT = 4, 32
"""Units, and keys next to the window at each end, of an axis that tells the ring of a longer one: no box
reaches past both ends."""
Unit = tuple[int, int]
"""Keys that matrix products take at a time, and the share of a box that it may grow by to be whole, and so
faster."""
WHOLES: tuple[Unit, ...] = ((16, 32),)
SINGLE: tuple[Unit, ...] = ((8, 6), *WHOLES)
"""Of the short boxes of a single axis."""


class Ring(NamedTuple):
    """Tile `t` holds rows `t * tile + [0, tile)` and reads slots `t * step - shift + [0, width)`.

    A slot below 0 holds the column `width` further, one past the last column the column `width` before.
    """

    rows: int
    columns: int
    tile: int
    tiles: int
    step: int
    shift: int
    width: int

    @property
    def slots(self) -> range:
        """Slots that some box reads, gaps between boxes included."""
        return self.read(range(self.tiles))

    def read(self, tiles: range) -> range:
        """Slots that the boxes of some tiles read."""
        return range(tiles[0] * self.step - self.shift, tiles[-1] * self.step - self.shift + self.width)

    def hull(self, slots: range) -> range:
        """`slots` with the slots that those past an end of the axis repeat."""
        low, high = slots.start, slots.stop
        if slots.start < 0:
            high = max(high, min(self.width, self.columns))
        if slots.stop > self.columns:
            low = min(low, max(self.columns - self.width, 0))
        return range(low, high)

    def reach(self, tiles: range) -> range:
        """Columns from the first to the last that the boxes of some tiles hold; neither comes before that of
        earlier tiles."""
        hull = self.hull(self.read(tiles))
        return range(max(hull.start, 0), min(hull.stop, self.columns))


@lru_cache(4096)
def rings(axis: Axis, tile: int, units: tuple[Unit, ...] = WHOLES) -> tuple[Ring, ...]:
    """One ring for each of the axis' residues, boxes whole in the last of `units` that they can be."""
    short, longer, repeats = tiling.shortened(axis, tile, *SHORT)
    columns = repeats * (longer.length - short.length) // axis.dilation
    rows = columns // _pace(axis)
    return tuple(
        Ring(one.rows + rows, one.columns + columns, one.tile, one.tiles + rows // one.tile, *one[4:])
        for one in _rings(short, tile, units)
    )


@lru_cache(4096)
def _rings(axis: Axis, tile: int, units: tuple[Unit, ...]) -> tuple[Ring, ...]:
    return tuple(_ring(residue, tile, _pace(axis), units) for residue in residues(axis))


def _pace(axis: Axis) -> int:
    """Columns by which a row moves its window."""
    return axis.output_stride // gcd(axis.dilation, axis.output_stride)


def _ring(residue: Residue, tile: int, pace: int, units: tuple[Unit, ...]) -> Ring:
    """The narrowest ring."""
    rows, columns = len(residue.rows), len(residue.columns)
    tile = min(tile, rows)
    starts, stops = _ends(residue, tile)
    narrow, wide = max(map(sub, stops, starts)), columns
    step = tile * pace
    if len(starts) == 1:
        return Ring(rows, columns, tile, 1, narrow, -starts[0], narrow)
    shift = partial(_shift, _Reach(starts, stops, step), columns)
    while narrow < wide:
        middle = (narrow + wide) // 2
        if shift(middle) is None:
            narrow = middle + 1
        else:
            wide = middle
    for unit, share in units:
        whole = -(-wide // unit) * unit
        if whole <= min(wide + wide // share, columns) and shift(whole) is not None:
            wide = whole
    found = shift(wide)
    assert found is not None
    return Ring(rows, columns, tile, len(starts), step, found, wide)


@lru_cache(4096)
def widened(axis: Axis, tile: int, width: int) -> tuple[Ring, ...] | None:
    """Rings with a box of `width`, over the axis too, and whole tiles; None where some tile does not find its
    columns."""
    found = [_widened(residue, tile, tile * _pace(axis), width) for residue in residues(axis)]
    return None if None in found else tuple(ring for ring in found if ring is not None)


def _widened(residue: Residue, tile: int, step: int, width: int) -> Ring | None:
    starts, stops = _ends(residue, tile)
    shift = (
        -starts[0] if len(starts) == 1 else _shift(_Reach(starts, stops, step), len(residue.columns), width)
    )
    if shift is None or max(map(sub, stops, starts)) > width:
        return None
    return Ring(len(residue.rows), len(residue.columns), tile, len(starts), step, shift, width)


def _ends(residue: Residue, tile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First column of every tile, and the one behind its last."""
    rows, seen = residue.rows, residue.axis.seen
    cut_off = rows[-1:] if len(rows) % tile else range(0)
    return seen(rows[::tile])[0], seen(rows[tile - 1 :: tile])[1] + seen(cut_off)[1]


class _Reach:
    """Columns `[starts[t], stops[t])` of tiles `step` apart: how far before its tile a box starts at least,
    and at most, for the tiles before each one and from it on."""

    def __init__(self, starts: Sequence[int], stops: Sequence[int], step: int) -> None:
        self.starts, self.stops = starts, stops
        least = [t * step - start for t, start in enumerate(starts)]
        most = [t * step - stop for t, stop in enumerate(stops)]
        self.least, self.most = _running(least, max, -inf), _running(most, min, inf)


def _running(
    numbers: list[int], better: Callable[[float, float], float], none: float
) -> tuple[list[float], list[float]]:
    """The best of the numbers before each place, and of those from it on."""
    before = list(accumulate(numbers, better, initial=none))
    return before, list(accumulate(reversed(numbers), better, initial=none))[::-1]


def _shift(reach: _Reach, columns: int, width: int) -> int | None:
    """Smallest shift with which every tile finds its columns in a box of `width`, or None.

    A tile may miss columns before its box if the slots that hold them are past the axis, and columns
    after its box if those slots are before the axis.
    """
    late = bisect_left(reach.starts, columns - width)
    early = bisect_right(reach.stops, width)
    (before, after), (up, on) = reach.least, reach.most
    least = max(before[late], after[late] - width)
    most = min(up[early] + 2 * width, on[early] + width)
    return int(least) if least <= most else None


def held(slots: Tensor, columns: Tensor, width: int) -> Tensor:
    """The column that each slot of an axis of `columns` holds, or the nearest one where it holds none."""
    before, after = slots < (columns - width).clamp(max=0), slots >= columns.clamp(min=width)
    return torch.minimum((slots + width * (before.long() - after.long())).clamp_(min=0), columns - 1)


class Table(NamedTuple):
    """What sets tiles of one axis apart, one row a class of tiles.

    ids `[tiles]` class of every tile; first, seen, entry `[classes, tile]` slot of the box that holds the
    first key of a row's window, how many there are, and its entry of the table of `2 * size - 1` relative
    positions; width of the box. Numbers for all slots are worked out for some classes at a time.
    """

    ids: Tensor
    first: Tensor
    seen: Tensor
    entry: Tensor
    width: int

    @property
    def classes(self) -> int:
        return len(self.first)

    def of(self, some: slice | Tensor) -> "Table":
        """Some classes."""
        return self._replace(first=self.first[some], seen=self.seen[some], entry=self.entry[some])

    def to(self, device: torch.device) -> "Table":
        ids, first, seen, entry = (x.to(device) for x in self[:-1])
        return Table(ids, first, seen, entry, self.width)

    def entries(self, slots: range, size: int, axis: int) -> Tensor:
        """`[classes, tile, slots]` entry of the relative position table, `2 * size - 1` where the row does
        not see the slot; valid until it is asked for an `axis` again."""
        key = self._keys(slots, axis)
        hidden = key >= self.seen.unsqueeze(-1)
        return key.add_(self.entry.unsqueeze(-1)).masked_fill_(hidden, 2 * size - 1)

    def hidden(self, slots: range, axis: int) -> Tensor:
        """`[classes, tile, slots]` 1 where the row does not see the slot, else 0."""
        return (self._keys(slots, axis) >= self.seen.unsqueeze(-1)).long()

    def _keys(self, slots: range, axis: int) -> Tensor:
        """`[classes, tile, slots]` which key of the window a slot holds; those behind it are not seen."""
        slot = torch.arange(slots.start, slots.stop, device=self.first.device)
        key = take(f"entries {axis}", (*self.first.shape, len(slots)), Like(slot.dtype, slot.device))
        return torch.sub(slot, self.first.unsqueeze(-1), out=key).remainder_(self.width)

    def places(self, some: range, slots: range, step: int, none: int, axis: int) -> Tensor:
        """`[classes, tile, keys]` which of `slots` holds each of some keys of the window, times `step`, or
        `none`; valid until it is asked for an `axis` again."""
        key = torch.arange(some.start, some.stop, device=self.first.device)
        size = (*self.first.shape, len(some))
        slot = take(f"places {axis}", size, Like(key.dtype, key.device))
        torch.add(self.first.unsqueeze(-1), key, out=slot).remainder_(self.width).sub_(slots.start)
        outside = take("outside", size, Like(torch.bool, key.device))
        torch.ge(key, self.seen.unsqueeze(-1), out=outside)
        outside.logical_or_(slot < 0).logical_or_(slot >= len(slots))
        return slot.mul_(step).masked_fill_(outside, none)


def table(residue: Residue, ring: Ring, size: int, device: torch.device) -> Table:
    """Classes of the tiles of `ring`, in the order of what they see."""
    short, longer, repeats = tiling.shortened(residue.axis, ring.tile, *SHORT)
    columns = repeats * (longer.length - short.length) // residue.axis.dilation
    tiles = columns // ring.step
    found = _table(*_shortened(residue, ring, short, columns, tiles), size)
    if repeats:
        middle = len(found.ids) // 2
        before, after = found.ids[:middle], found.ids[middle:]
        found = found._replace(ids=torch.cat([before, after[: tiles // repeats].repeat(repeats), after]))
    return found.to(device)


@lru_cache(256)
def _table(residue: Residue, ring: Ring, size: int) -> Table:
    # A tensor made in inference mode could not be used outside of it.
    with torch.inference_mode(False):
        (found,) = tables([(residue, ring)], size)
    return found


def _shortened(residue: Residue, ring: Ring, axis: Axis, columns: int, tiles: int) -> tuple[Residue, Ring]:
    """Both on a shorter axis, without some columns and tiles."""
    rows = tiles * ring.tile
    mine = residue._replace(
        axis=axis, rows=residue.rows[: ring.rows - rows], columns=residue.columns[: ring.columns - columns]
    )
    return mine, ring._replace(
        rows=ring.rows - rows, columns=ring.columns - columns, tiles=ring.tiles - tiles
    )


def tables(chosen: Sequence[tuple[Residue, Ring]], size: int) -> list[Table]:
    """One for each residue and its ring, of one tile and width, with the classes of all."""
    tile, width = chosen[0][1].tile, chosen[0][1].width
    starts: list[int] = []
    stops, positions, boxes = list(starts), list(starts), list(starts)
    for residue, ring in chosen:
        rows, more = residue.rows, ring.tiles * ring.tile - ring.rows
        found = *residue.axis.seen(rows), residue.positions
        for every, mine in zip((starts, stops, positions), found, strict=True):
            every.extend((*mine, *repeat(mine[-1], more)))
        boxes += range(-ring.shift, ring.tiles * ring.step - ring.shift, ring.step)
    first, behind, token = (torch.tensor(x, device=CPU).view(-1, tile) for x in (starts, stops, positions))
    box = torch.tensor(boxes, device=CPU).unsqueeze(1)
    kinds = torch.stack([(first - box) % width, behind - first, first - token + size - 1], -1)
    unique, ids = torch.unique(kinds, dim=0, return_inverse=True)
    first, seen, entry = unique.unbind(-1)
    return [Table(mine, first, seen, entry, width) for mine in ids.split([ring.tiles for _, ring in chosen])]
