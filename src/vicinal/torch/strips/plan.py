"""Which tiles a problem is cut into, and in which passes they are computed so that scratch memory stays
bounded."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from ... import tiling
from ...problem import Problem
from .arena import VECTOR, Recent
from .costs import saved, work_cost
from .passes import ROWS, SCORES, Band, Batch, Box, Load, Planner, Slab, Window, load, numbers
from .residues import Residue, residues
from .ring import SINGLE, WHOLES, Ring, Table, Unit, rings, table

PASS = 12 << 20
"""Bytes of strips and tiles in one pass: a share of the last-level cache."""
CHUNK = 1 << 20
"""Bytes of a buffer of scores that a thread works on at a time: its second-level cache."""
CALL = 16_000
"""Scores that are worth the calls of one more chunk."""
TABLE = 4 << 20
"""Bytes of a table of masks; over it, masks are made tile by tile."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One slab of `volumes` equal volumes, the slots of a `box` that are read, and the `band` that is summed,
    if it is not all columns.

    The boxes of a strip, `length` slots, start `pitch` slots of the first axis apart. Boxes of one spacing
    make a run: either each strip is one, or all strips are, and then each is rounded up to `places` boxes,
    the last few of which belong to no tile.
    """

    slab: Slab
    box: Box
    band: Band | None
    volumes: int
    strips: int
    pitch: int
    length: int
    places: int
    runs: int
    before: int = 0

    @cached_property
    def boxes(self) -> int:
        return self.strips * self.places

    @cached_property
    def slots(self) -> int:
        """Slots of the first axis that a box reads."""
        return len(self.box[0])

    @cached_property
    def width(self) -> int:
        """Keys in one of them."""
        return prod(map(len, self.box[1:]))

    @cached_property
    def keys(self) -> int:
        return self.slots * self.width

    @property
    def opens(self) -> bool:
        """Whether nothing of the box is read before."""
        return not any(slots.start for slots in self.box)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Passes of a part that have one shape have their boxes at the same places in memory."""
        return *map(len, self.box), len(self.slab[0]), self.strips, self.places, self.runs


@dataclass(frozen=True, eq=False)
class Part:
    """A problem on one residue of every axis: the same ring for all heads, batch entries and dilation
    groups."""

    residues: tuple[Residue, ...]
    rings: tuple[Ring, ...]
    sizes: tuple[int, ...]
    share: int
    kv_heads: int
    grid: tuple[int, ...]
    batches: tuple[Batch, ...]
    slabs: tuple[Slab, ...]
    pieces: tuple[Box, ...]
    windows: tuple[Window, ...] = ()
    walk: int = 0
    bands: tuple[Band | None, ...] = (None,)
    memo: dict = field(default_factory=dict)
    recent: Recent = field(default_factory=Recent)

    @property
    def rank(self) -> int:
        return len(self.rings)

    @cached_property
    def tile(self) -> tuple[int, ...]:
        return tuple(ring.tile for ring in self.rings)

    @cached_property
    def rows(self) -> int:
        """Rows of a tile, the query heads of one key/value head included."""
        return self.share * prod(self.tile)

    @cached_property
    def classes(self) -> int:
        return prod(axis.classes for axis in self.tables(torch.device("cpu")))

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once. What is made pass by pass goes to `recent`."""
        found = self.memo.get(key)
        if found is None:
            # A tensor made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                found = self.memo[key] = make()
        return found

    def tables(self, device: torch.device) -> tuple[Table, ...]:
        """The mask tables of every axis."""
        return self.remember(("tables", device), lambda: self._tables(device))

    def _tables(self, device: torch.device) -> tuple[Table, ...]:
        axes = zip(self.residues, self.rings, self.sizes, strict=True)
        return tuple(table(residue, ring, size, device) for residue, ring, size in axes)

    def reach(self, slab: int) -> range:
        """Columns of the axis that slabs walk, from the first to the last that a slab reads, by number."""
        return self.rings[self.walk].reach(self.slabs[slab][self.walk])

    def passes(self) -> Iterator[tuple[int, int]]:
        """Batches and slabs, by number. Heads lie together in memory: a slab of all comes before the next."""
        return ((batch, slab) for slab, batch in product(range(len(self.slabs)), range(len(self.batches))))

    def measure(self, batch: int, slab: int, piece: int) -> Pass:
        """The pass of a batch, a slab and a piece, by number."""
        return self.recent.recall(("pass", batch, slab, piece), lambda: self._shared(batch, slab, piece))

    def _shared(self, batch: int, slab: int, piece: int) -> Pass:
        """One pass for all batches of a size: what is remembered for one serves all."""
        ranges = zip(self.batches[batch], self.grid, strict=True)
        volumes = prod(len(range(*one.indices(size))) for one, size in ranges)
        key = ("volumes", volumes, slab, piece)
        chosen = self.slabs[slab], self.pieces[piece], self.bands[slab]
        return self.recent.recall(key, lambda: self._measure(volumes, *chosen))

    def _measure(self, volumes: int, slab: Slab, box: Box, band: Band | None) -> Pass:
        tiles, span = len(slab[0]), len(box[0])
        strips = volumes * prod(map(len, slab[1:]))
        pitch = self.rings[0].step if tiles > 1 else span
        length = (tiles - 1) * pitch + span
        places = -(-length // pitch)
        if strips == 1 or self._apart(strips, tiles, places - tiles, prod(map(len, box))):
            return Pass(slab, box, band, volumes, strips, pitch, length, tiles, strips)
        return Pass(slab, box, band, volumes, strips, pitch, places * pitch, places, 1)

    def leg(self, work: Pass, some: slice, slot: int, dims: tuple[int, int]) -> Pass:
        """Some tiles of one volume of a pass over one axis, whose first slot has a number among those of the
        pass."""
        # All that counts is where in a cache line a slot lies: a BLAS rounds otherwise elsewhere.
        before = slot % (VECTOR // gcd(VECTOR, *dims))
        return self.recent.recall(
            ("leg", work, some.start, some.stop, before), lambda: self._leg(work, some, before)
        )

    def _leg(self, work: Pass, some: slice, before: int) -> Pass:
        return replace(self._measure(1, (work.slab[0][some],), work.box, work.band), before=before)

    def _apart(self, strips: int, tiles: int, junk: int, keys: int) -> bool:
        """Whether more calls cost less than boxes without a tile."""
        scores, held = self.rows * keys, CHUNK // 4
        calls = strips * -(-tiles * scores // held) - -(-strips * (tiles + junk) * scores // held)
        return calls * CALL < strips * junk * scores

    def ids(self, work: Pass, device: torch.device) -> tuple[Tensor, ...]:
        """`[boxes]` class on every axis of the tile that reads each box; boxes without a tile take the
        first class."""
        return self.recent.recall(("ids", work, device), lambda: self._ids(work, device))

    def _ids(self, work: Pass, device: torch.device) -> tuple[Tensor, ...]:
        tables, found = self.tables(device), []
        grid = (work.volumes, *map(len, work.slab[1:]), work.places)
        for axis, (mask, tiles) in enumerate(zip(tables, work.slab, strict=True)):
            ids = mask.ids[tiles.start : tiles.stop]
            shape = [1] * len(grid)
            if axis == 0:
                ids = torch.nn.functional.pad(ids, (0, work.places - len(tiles)))
            shape[axis if axis else -1] = len(ids)
            found.append(ids.view(shape).expand(grid).flatten())
        return tuple(found)

    def blanks(self, work: Pass, some: slice, device: torch.device) -> Tensor | None:
        """Those of `some` boxes that belong to no tile, counted from the first of them."""
        if work.places == len(work.slab[0]):
            return None
        return self.recent.recall(
            ("blanks", work, some.start, some.stop, device), lambda: self._blanks(work, some, device)
        )

    def _blanks(self, work: Pass, some: slice, device: torch.device) -> Tensor:
        boxes = torch.arange(some.start, some.stop, device=device) % work.places
        return (boxes >= len(work.slab[0])).nonzero().view(-1)

    def kinds(self, work: Pass, heads: int, device: torch.device) -> Tensor:
        """`[boxes]` class of the tile that reads each box, counted over `heads` and all axes, the last
        fastest."""
        kinds = torch.zeros(work.boxes, dtype=torch.int64, device=device)
        for mask, ids in zip(self.tables(device), self.ids(work, device), strict=True):
            kinds = kinds * mask.classes + ids
        head = torch.arange(heads, device=device).unsqueeze(1)
        return (kinds.view(heads, -1) + head * self.classes).view(-1)


@lru_cache(64)
def parts(problem: Problem, back: bool = False) -> tuple[Part, ...]:
    """The parts of a problem, each output in one."""
    tile = cheapest(problem, back).rows
    per_axis = [
        list(zip(residues(axis), rings(axis, side, units(problem)), strict=True))
        for axis, side in zip(problem.axes, tile, strict=True)
    ]
    share = problem.heads // problem.kv_heads
    found = []
    for chosen in product(*per_axis):
        groups, ring = zip(*chosen, strict=True)
        grid = (problem.kv_heads, problem.batch, *(residue.groups for residue in groups))
        # A forward pass keeps no sums beside its strips: as many tiles take half of the room.
        half = problem.operation == "attend" and not back and problem.rank > 1
        passes = Planner(grid, ring, problem, back, PASS // (1 + half)).passes()
        found.append(Part(groups, ring, problem.window, share, problem.kv_heads, grid, *passes))
    return tuple(found)


@lru_cache(4096)
def cheapest(problem: Problem, back: bool) -> tiling.Plan:
    """The cheapest tile."""
    sides = [_sides(axis.outputs, axis.period) for axis in problem.axes]
    share, per = problem.heads // problem.kv_heads, load(problem, back)
    scores, most = numbers(problem, SCORES), numbers(problem, ROWS)
    options = []
    for rows in product(*sides):
        axes = zip(problem.axes, rows, strict=True)
        widths = tuple(max(ring.width for ring in rings(axis, side, units(problem))) for axis, side in axes)
        height = share * prod(rows)
        small = height <= 512 and height * prod(widths) <= scores and height * per.row <= most
        if small or rows == tuple(side[0] for side in sides):
            options.append((rows, widths))

    def cost(problem: Problem, rows: tiling.Boxes, columns: tiling.Boxes, counts: tiling.Counts) -> float:
        return _cost(problem, rows, columns, counts, per, share, back)

    return tiling.best(problem, options, cost)


def units(problem: Problem) -> tuple[Unit, ...]:
    """What boxes are whole in."""
    return SINGLE if problem.rank == 1 else WHOLES


def _sides(outputs: int, period: int) -> list[int]:
    length = -(-outputs // period)
    sides = [1 << bit for bit in range(8) if 1 << bit < length]
    return sides + [length] * (length <= 64 or not sides)


def _cost(
    problem: Problem,
    rows: tiling.Boxes,
    columns: tiling.Boxes,
    counts: tiling.Counts,
    per: Load,
    share: int,
    back: bool,
) -> float:
    """Nanoseconds for one key/value head on one core; what matters is the ratio between tiles."""
    height, width = share * prod(rows), prod(columns)
    first = max(rings(problem.axes[0], rows[0], units(problem)), key=lambda ring: ring.tiles)
    tiles = counts.tiles
    copied = tiles * first.step * prod(columns[1:]) * per.slot + tiles * height * per.row
    junk = -(-((first.tiles - 1) * first.step + first.width) // first.step) - first.tiles
    alone = min(first.tiles * height * width * 4 / CHUNK, 1)
    more = tiles / first.tiles * min(junk * height * width, CALL * (1 - alone))
    fused = 0.0 if back else max(saved(problem, height, width), 0.0)
    return work_cost(problem, tiles, height, width, copied, back, more) - tiles * fused


def estimate(problem: Problem, back: bool) -> float:
    """Nanoseconds for the whole problem, the calls that a pass makes included."""
    # Tiles are ranked by arithmetic in cache; whole problems also wait for memory.
    tiles = 1.6 * cheapest(problem, back).cost * problem.batch * problem.kv_heads
    return tiles + pieces(problem) * (350_000 if back else 200_000)


def pieces(problem: Problem) -> int:
    """How many parts a problem has."""
    return prod(len(residues(axis)) for axis in problem.axes)


@lru_cache(4096)
def whole(problem: Problem) -> Part | None:
    """A part that is one tile over all keys, or None where dilation or unseen keys stand in the way."""
    groups = [residues(axis) for axis in problem.axes]
    if any(axis.dilation > 1 for axis in problem.axes):
        return None
    ring = tuple(rings(axis, axis.outputs)[0] for axis in problem.axes)
    if any((one.shift, one.width) != (0, one.columns) for one in ring):
        return None
    box, tiles = tuple(range(one.width) for one in ring), tuple(range(1) for _ in ring)
    chosen = tuple(group[0] for group in groups)
    grid = (problem.kv_heads, *(1 for _ in range(1 + len(ring))))
    batch, share = tuple(slice(0, extent) for extent in grid), problem.heads // problem.kv_heads
    return Part(chosen, ring, problem.window, share, problem.kv_heads, grid, (batch,), (tiles,), (box,))
