"""In which passes the tiles of a part are computed, so that scratch memory stays bounded."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

from ...problem import Problem
from .ring import Ring

NARROW = "bfloat16", "float16"
"""Dtypes too narrow to add up in."""
SUMS = 16 << 20
"""Bytes of the sums of gradients of 16-bit keys and values."""
ROWS = 3 << 20
"""Bytes of the rows of a tile at most, where a smaller tile exists."""
SCORES = 4 << 20
"""Bytes of the scores of a tile at most, where a smaller tile exists."""
PIECE = 24 << 20
"""Bytes of what depends on the keys of a piece of a box."""
HALO = 4
"""Columns of a slab for each one that it reads twice, at least, where several heads share it."""
COPIES = 10
"""Of the scores of a piece: weights and slopes, twice for one box (`products.multiply`), and what its mask is
made of."""


class Load(NamedTuple):
    """Numbers kept for each slot of a strip and each row of a tile, the wider of two strips, buffers of
    scores, and sums for each column."""

    slot: int
    row: int
    width: int
    scores: int = 1
    sums: int = 0


def load(problem: Problem, back: bool) -> Load:
    dim, value_dim = problem.dim, problem.value_dim
    both = dim + value_dim
    if problem.operation != "attend":
        weights = min(prod(problem.window), _weights(problem))
        return Load(dim, dim + weights, dim, 3, dim * (problem.operation == "mix_back"))
    if back:
        return Load(2 * both, 2 * both + 2, max(dim, value_dim), 2, both)
    return Load(both, both + 2, max(dim, value_dim))


def _weights(problem: Problem) -> int:
    """Weights of a row that are taken at a time."""
    rows = numbers(problem, ROWS)
    return max(rows // max(problem.heads // problem.kv_heads, 1), 1)


def numbers(problem: Problem, size: int) -> int:
    """Numbers of so many bytes."""
    return size // (8 if problem.dtype == "float64" else 4)


Slab = tuple[range, ...]
"""Tiles of every axis that a pass computes."""
Box = tuple[range, ...]
"""Slots of every axis' box that a pass reads; fewer than all where the pass computes one tile."""
Batch = tuple[slice, ...]
Window = tuple[range, ...]
"""Keys of a window whose weights are taken at a time."""


class Band(NamedTuple):
    """Columns of every axis that have sums while a slab is computed. Tiles that read columns of several bands
    are computed for each, and the first is their `own`."""

    columns: tuple[range, ...]
    own: bool


class Passes(NamedTuple):
    """Batches of volumes, slabs of tiles, pieces of boxes and parts of windows, the axis along which slabs
    follow one another, and the band of each slab, if it does not add to all columns."""

    batches: tuple[Batch, ...]
    slabs: tuple[Slab, ...]
    pieces: tuple[Box, ...]
    windows: tuple[Window, ...]
    walk: int
    bands: tuple[Band | None, ...]


class Planner:
    """Passes over a part, `grid` volumes of `share` query heads, whose strips and tiles need at most `limit`
    bytes at a time."""

    def __init__(
        self,
        grid: tuple[int, ...],
        ring: tuple[Ring, ...],
        problem: Problem,
        back: bool,
        limit: int,
    ) -> None:
        self.grid, self.ring, self.per = grid, ring, load(problem, back)
        self.limit, self.piece, self.scores = (numbers(problem, size) for size in (limit, PIECE, SCORES))
        self.room = numbers(problem, SUMS) if problem.dtype in NARROW and self.per.sums else None
        self.windows = tuple(map(_ranges, boxes(problem.window, _weights(problem))))
        self.ahead = problem.operation == "attend" and not back
        self.height = problem.heads // problem.kv_heads * prod(axis.tile for axis in ring)
        # Numbers for one slot of the first axis: its strips, and the padded copy that sums of strips meet in.
        padded = prod(max(axis.step, axis.width) for axis in ring[1:]) if ring[1:] else 0
        self.slot = prod(axis.width for axis in ring[1:]) * self.per.slot + padded * self.per.width

    def passes(self) -> Passes:
        tiles = tuple(range(axis.tiles) for axis in self.ring)
        strips = prod(axis.tiles for axis in self.ring[1:])
        volumes = max(self.strips(self.ring[0].tiles) // strips, self.beside, 1)
        slabs = self.slabs(tiles, volumes if len(tiles) == 1 else 1)
        walk = self.walk(slabs)
        if self.room is None or self.columns(slabs, walk) * min(volumes, prod(self.grid)) <= self.room:
            slabs.sort(key=lambda slab: slab[walk].start)
            return self.made(volumes, tuple(slabs), walk, (None,) * len(slabs))
        found = [one for band in self.bands(walk) for one in self.banded(band, walk)]
        slabs, bands = zip(*found, strict=True)
        return self.made(1, slabs, walk, bands)

    def made(
        self, volumes: int, slabs: tuple[Slab, ...], walk: int, bands: tuple[Band | None, ...]
    ) -> Passes:
        return Passes(tuple(boxes(self.grid, volumes)), slabs, self.pieces, self.windows, walk, bands)

    def need(self, tiles: int, slots: int) -> int:
        """Numbers for so many tiles of the first axis."""
        step = self.ring[0].step
        length = (tiles - 1) * step + slots
        return length * self.slot + -(-length // step) * self.height * self.per.row

    def strips(self, tiles: int) -> int:
        """How many strips of so many tiles there is room for."""
        return 0 if len(self.pieces) > 1 else self.limit // self.need(tiles, self.ring[0].width)

    @cached_property
    def beside(self) -> int:
        """Volumes whose strips of one axis are cut at the same tiles: heads lie together in memory, and are
        read as they lie. Sums would be added up slab by slab."""
        ring, *others = self.ring
        if others or not self.ahead:
            return 0
        tiles = min(-(-HALO * (ring.width - ring.step) // ring.step), ring.tiles)
        return min(self.strips(max(tiles, 1)), prod(self.grid))

    def most(self, volumes: int) -> int:
        """Tiles of a slab that holds no whole strip."""
        one, two = (self.need(tiles, self.ring[0].width) for tiles in (1, 2))
        return 1 if len(self.pieces) > 1 else max(1 + (self.limit // volumes - one) // (two - one), 1)

    @cached_property
    def pieces(self) -> tuple[Box, ...]:
        """The whole box, or parts of one that is too large."""
        widths = tuple(axis.width for axis in self.ring)
        if self.need(1, widths[0]) <= self.limit and self.height * prod(widths) <= self.scores:
            return (tuple(map(range, widths)),)
        key = self.per.slot + 3 * self.per.width + COPIES * self.height
        return tuple(map(_ranges, boxes(widths, max(self.piece // key, 1))))

    def slabs(self, tiles: Slab, volumes: int = 1) -> list[Slab]:
        """Tiles of every axis, as many at a time of some `volumes` as there is room for."""
        first, *others = map(len, tiles)
        strips = self.strips(first) // volumes
        if strips:
            found = ((slice(0, first), *part) for part in boxes(tuple(others), strips))
        else:
            found = ((last, *part) for *part, last in boxes((*others, first), self.most(volumes)))
        return [tuple(axis[part] for axis, part in zip(tiles, chosen, strict=True)) for chosen in found]

    def walk(self, slabs: Sequence[Slab]) -> int:
        """The axis of which slabs read the least share at a time."""
        return min(range(len(self.ring)), key=lambda axis: self.reach(slabs, axis) / self.ring[axis].columns)

    def reach(self, slabs: Sequence[Slab], axis: int) -> int:
        """Columns of an axis, from the first to the last that a slab reads, at most."""
        return max(map(len, map(self.ring[axis].reach, {slab[axis] for slab in slabs})))

    def columns(self, slabs: Sequence[Slab], walk: int) -> int:
        """Numbers of the sums of columns that no slab has left."""
        others = prod(axis.columns for place, axis in enumerate(self.ring) if place != walk)
        return self.reach(slabs, walk) * others * self.per.sums

    def bands(self, walk: int) -> Iterator[tuple[range, ...]]:
        """Columns of which sums are made at a time: of all of the axis that slabs walk, where one tile of it
        leaves room."""
        assert self.room is not None
        extents, whole = [axis.columns for axis in self.ring], slice(0, self.ring[walk].columns)
        most, thick = max(self.room // self.per.sums, 1), min(self.ring[walk].width, whole.stop)
        if thick > most:
            yield from map(_ranges, boxes(tuple(extents), most))
            return
        del extents[walk]
        for others in boxes(tuple(extents), most // thick):
            yield _ranges((*others[:walk], whole, *others[walk:]))

    def banded(self, columns: tuple[range, ...], walk: int) -> list[tuple[Slab, Band]]:
        """Slabs of all tiles that read some columns."""
        assert self.room is not None
        ring, found = self.ring[walk], list[tuple[Slab, Band]]()
        others = prod(len(x) for axis, x in enumerate(columns) if axis != walk) * self.per.sums
        thick = max(1 + (self.room // others - ring.width) // ring.step, 1)
        for chosen in product(*map(_readers, self.ring, columns)):
            band = Band(columns, all(own for _, own in chosen))
            tiles = [mine for mine, _ in chosen]
            for start in range(0, len(tiles[walk]), thick):
                some = tiles[walk][start : start + thick]
                found += [(slab, band) for slab in self.slabs((*tiles[:walk], some, *tiles[walk + 1 :]))]
        return sorted(found, key=lambda one: one[0][walk].start)


def _readers(ring: Ring, columns: range) -> list[tuple[range, bool]]:
    """Tiles that read some columns, and whether those are the first columns that they read."""

    def first(holds: Callable[[range], bool]) -> int:
        return bisect_left(range(ring.tiles), True, key=lambda tile: holds(ring.reach(range(tile, tile + 1))))

    start = first(lambda reach: reach.stop > columns.start)
    own = first(lambda reach: reach.start >= columns.start)
    stop = first(lambda reach: reach.start >= columns.stop)
    found = ((range(start, min(own, stop)), False), (range(own, stop), True))
    return [one for one in found if one[0]]


def boxes(shape: tuple[int, ...], limit: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most `limit` entries that tile `shape`: whole in the last axes, one range, single in the
    first."""
    split, inner = len(shape), 1
    while split and inner * shape[split - 1] <= limit:
        split -= 1
        inner *= shape[split]
    rest = tuple(slice(0, extent) for extent in shape[split:])
    if not split:
        yield rest
        return
    extent = shape[split - 1]
    count = -(-extent // max(limit // inner, 1))
    size = -(-extent // count) if count else 1
    for before in product(*map(range, shape[: split - 1])):
        for start in range(0, extent, size):
            yield (*(slice(x, x + 1) for x in before), slice(start, min(start + size, extent)), *rest)


def _ranges(box: tuple[slice, ...]) -> tuple[range, ...]:
    return tuple(range(part.start, part.stop) for part in box)
