"""Tiles of one axis and the boxes of columns that they read, all of one width and evenly spaced.

Windows shift at the ends of an axis, so a box that follows its tile would overrun the axis there. Each
overrun slot holds the column one box width further in: every border window then lies inside its regular
box, wrapped around, and border tiles differ from interior ones in nothing but their mask.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ...window import Axis
from .residues import Residue, residues

CPU = torch.device("cpu")
VECTOR = 16
"""Keys that matrix products take at a time: a box a little wider, but whole, is faster."""


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
        return range(-self.shift, (self.tiles - 1) * self.step - self.shift + self.width)


@lru_cache(4096)
def rings(axis: Axis, tile: int) -> tuple[Ring, ...]:
    """One ring for each of the axis' residues."""
    pace = axis.output_stride // gcd(axis.dilation, axis.output_stride)
    return tuple(_ring(residue, tile, pace) for residue in residues(axis))


def _ring(residue: Residue, tile: int, pace: int) -> Ring:
    """The narrowest ring; a row moves its window by `pace` columns."""
    rows, columns = len(residue.rows), len(residue.columns)
    tile = min(tile, rows)
    firsts = range(0, rows, tile)
    reach = [(residue.starts[first], residue.stops[min(first + tile, rows) - 1]) for first in firsts]
    narrow, wide = max(stop - start for start, stop in reach), columns
    step = tile * pace
    if len(reach) == 1:
        return Ring(rows, columns, tile, 1, narrow, -reach[0][0], narrow)
    while narrow < wide:
        middle = (narrow + wide) // 2
        if _shift(reach, step, middle, columns) is None:
            narrow = middle + 1
        else:
            wide = middle
    whole = -(-wide // VECTOR) * VECTOR
    if whole <= min(wide + wide // 32, columns) and _shift(reach, step, whole, columns) is not None:
        wide = whole
    shift = _shift(reach, step, wide, columns)
    assert shift is not None
    return Ring(rows, columns, tile, len(reach), step, shift, wide)


def _shift(reach: Sequence[tuple[int, int]], step: int, width: int, columns: int) -> int | None:
    """Smallest shift with which every tile finds its columns in a box of `width`, or None.

    A tile may miss columns before its box if the slots that hold them are past the axis, and columns
    after its box if those slots are before the axis.
    """
    least = max(t * step - a - width * (a >= columns - width) for t, (a, _) in enumerate(reach))
    most = min(t * step + width - b + width * (b <= width) for t, (_, b) in enumerate(reach))
    return least if least <= most else None


class Table(NamedTuple):
    """What sets tiles of one axis apart, one row a class of tiles.

    ids `[tiles]` class of every tile; entries `[classes, tile, width]` entry of the relative position
    table, `2 * size - 1` where the row does not see the slot; places `[classes, tile, size]` slot of the
    box that holds each key of the window, -1 where there is none.
    """

    ids: Tensor
    entries: Tensor
    places: Tensor


def table(residue: Residue, ring: Ring, size: int, device: torch.device) -> Table:
    """Classes of the tiles of `ring`, in the order of what they see."""
    count = partial(torch.arange, device=CPU)
    rows = count(ring.tiles * ring.tile).clamp_(max=ring.rows - 1).view(ring.tiles, ring.tile)
    tables = (residue.starts, residue.stops, residue.entries)
    starts, stops, entries = (torch.tensor(x, device=CPU)[rows] for x in tables)
    boxes = count(ring.tiles).unsqueeze(1) * ring.step - ring.shift
    kinds = torch.stack([(starts - boxes) % ring.width, stops - starts, entries], -1)
    unique, ids = torch.unique(kinds, dim=0, return_inverse=True)
    first, seen, entry = (x.unsqueeze(-1) for x in unique.unbind(-1))
    key = (count(ring.width) - first) % ring.width
    entries = torch.where(key < seen, entry + key, 2 * size - 1)
    slot = count(size)
    places = torch.where(slot < seen, (first + slot) % ring.width, -1)
    return Table(ids.to(device), entries.to(device), places.to(device))
