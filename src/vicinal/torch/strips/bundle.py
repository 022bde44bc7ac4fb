"""Small documents of different shapes in one pass: strips of different lengths, with boxes of one size, one
pitch apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count, product
from math import gcd, inf, prod
from statistics import median_low
from typing import NamedTuple

import torch
from torch import Tensor

from ... import arguments
from ...layout import Group
from ...problem import Problem
from ...window import Axis
from ..documents import Batch, arranged
from ..ops import sampled
from . import costs, direct, passes, plan
from .plan import Part, Pass
from .residues import Residue, columns_view, residues, rows_view
from .ring import CPU, Ring, Table, Unit, held, rings, tables, widened
from .rows import Lookup, among, listed


class Costs(NamedTuple):
    """What tiles take of their `costs.work_cost`, and nanoseconds besides: for each part of a document in a
    pass with others, for each alone, and for one call over all pairs. `gain` is the share of its time alone
    that a document takes at most to be computed together with others."""

    factor: float
    together: int
    alone: int
    direct: int
    gain: float


FORWARD = Costs(1.25, 45_000, 190_000, 110_000, 0.85)
BACKWARD = Costs(1.3, 70_000, 400_000, 110_000, 0.91)


class Grid(NamedTuple):
    """What grids hold, one after another: the number of its grid, and its place on every axis."""

    number: Tensor
    places: tuple[Tensor, ...]


def numbered(extents: Sequence[Sequence[int]]) -> Grid:
    """Grids of as many axes, row-major."""
    each = torch.tensor(extents, device=CPU)
    sizes = each.prod(1)
    number = torch.arange(len(each), device=CPU).repeat_interleave(sizes)
    rest = torch.arange(len(number), device=CPU) - (sizes.cumsum(0) - sizes)[number]
    places: list[Tensor] = []
    for extent in reversed(each[number].unbind(1)):
        places.append(rest % extent)
        rest = rest // extent
    return Grid(number, tuple(reversed(places)))


class Member(NamedTuple):
    """One document, or some of its dilation groups, and the first of its boxes."""

    document: int
    part: Part
    work: Pass
    box: int


@dataclass(frozen=True, eq=False)
class Bundle(Part):
    """Parts of several documents that one pass computes; what all of them share is that of the first.

    It takes whole tensors, where other parts take their own batches of them. Classes of tiles are listed
    member by member.
    """

    batch: Batch | None = None
    members: tuple[Member, ...] = ()

    @cached_property
    def work(self) -> Pass:
        """A strip for each box."""
        first, last = self.members[0].work, self.members[-1]
        volumes = sum(member.work.volumes for member in self.members)
        return Pass(
            first.slab, first.box, None, volumes, last.box + last.work.boxes, first.pitch, first.pitch, 1, 1
        )

    @cached_property
    def boxes(self) -> Grid:
        """`[*grid, tiles of the other axes, places]`."""
        return numbered([(*_strips(one), one.work.places) for one in self.members])

    @cached_property
    def slots(self) -> Grid:
        """`[*grid, tiles of the other axes, length]`: those of the first axis, of all strips."""
        return numbered([(*_strips(one), one.work.length) for one in self.members])

    def measure(self, batch: int, slab: int, piece: int) -> Pass:
        return self.work

    def kinds(self, work: Pass, heads: int, device: torch.device) -> Tensor:
        kinds = torch.zeros_like(self.boxes.number)
        for axis, table in enumerate(self.tables(device)):
            tile, tiles = self._tile(self.boxes, axis), self._each("tiles", axis)
            first = (tiles.cumsum(0) - tiles)[self.boxes.number]
            most = tiles[self.boxes.number] - 1
            ids = table.ids[first + torch.minimum(tile, most)].masked_fill_(tile > most, 0)
            kinds = kinds * table.classes + ids
        return kinds + self.boxes.places[0] * self.classes if heads > 1 else kinds

    def blanks(self, work: Pass, some: slice, device: torch.device) -> Tensor | None:
        def make() -> Tensor:
            blank = self._tile(self.boxes, 0) >= self._each("tiles", 0)[self.boxes.number]
            return blank[some].nonzero().view(-1)

        return self.recent.recall(("blanks", some.start, some.stop, device), make)

    def unused(self, device: torch.device) -> Tensor:
        """Rows of tiles that do not exist, of all rows of all boxes."""

        def make() -> Tensor:
            shape = (len(self.boxes.number), self.share, *self.tile)
            unused = torch.zeros(shape, dtype=torch.bool, device=device)
            for axis in range(self.rank):
                row, last = self._rows(axis)
                unused |= among(row > last, len(shape), 0, axis - self.rank)
            return unused.view(-1).nonzero().view(-1)

        return self.remember(("unused", device), make)

    def gathered(self, x: Tensor) -> Lookup:
        """Rows of all tiles in all tokens or all outputs; those that do not exist repeat others."""
        index, hops, step = self._first(x, self.boxes, [self.rows_in(one, x) for one in self.members])
        ndim, share = 2 + self.rank, torch.arange(self.share, device=CPU)
        index = among(index, ndim, 0) + among(share * hops[0], ndim, 0, 1)
        for axis, hop in enumerate(hops[1:]):
            row, last = self._rows(axis)
            index = index + among(torch.minimum(row, last) * hop, ndim, 0, axis - self.rank)
        return listed(index.view(-1), step)

    def cut(self, x: Tensor, tail: int) -> Lookup:
        """Columns of all strips, in all tokens, and the last of them `tail` times more."""
        index, hops, step = self._first(x, self.slots, [self.columns(one, x) for one in self.members])
        index = among(index, self.rank + 1, 0)
        for axis, (hop, ring) in enumerate(zip(hops, self.rings, strict=True)):
            shift, columns = (
                self._each(name, axis)[self.slots.number].unsqueeze(1) for name in ("shift", "columns")
            )
            # The first axis' slots are entries of the grid, those of the others follow from their tiles.
            first, width = self._tile(self.slots, axis).unsqueeze(1), 1
            if axis:
                first, width = first * ring.step, ring.width
            slots = first - shift + torch.arange(width, device=CPU)
            index = index + among(held(slots, columns, ring.width) * hop, self.rank + 1, 0, axis - self.rank)
        index = index.view(-1)
        return listed(torch.cat([index, index[-1:].expand(tail)]), step)

    def rows_in(self, member: Member, x: Tensor) -> Tensor:
        """`[*batch, share, *rows, dim]` of a member in all tokens or all outputs."""
        assert self.batch is not None
        if x.shape[:-2] == self.batch.outputs.extents:
            mine = self.batch.outputs.one(x, member.document).unsqueeze(0)
        else:
            mine = sampled(self.batch.tokens.one(x, member.document).unsqueeze(0), self.batch.steps)
        return rows_view(mine, member.part.residues, self.kv_heads)

    def columns(self, member: Member, x: Tensor) -> Tensor:
        """`[*batch, *columns, dim]` of a member in all tokens."""
        assert self.batch is not None
        mine = self.batch.tokens.one(x, member.document).unsqueeze(0)
        return columns_view(mine, member.part.residues)

    def _first(self, x: Tensor, grid: Grid, views: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], int]:
        """Where in `x` each entry of a grid over batches of `views` starts, the strides `[entries, 1]` of its
        further axes but the last, and in how many elements both are counted."""
        found = [(int(view.storage_offset() - x.storage_offset()), *view.stride()[:-1]) for view in views]
        step = gcd(*(number for numbers in found for number in numbers)) or 1
        start, *hops = (torch.tensor(found, device=CPU) // step)[grid.number].unbind(1)
        batch = len(self.grid)
        for place, hop in zip(grid.places[:batch], hops, strict=False):
            start = start + place * hop
        return start, [hop.unsqueeze(1) for hop in hops[batch:]], step

    def _tile(self, grid: Grid, axis: int) -> Tensor:
        """The place of every entry of a grid among the tiles of an axis."""
        return grid.places[len(self.grid) - 1 + axis if axis else -1]

    def _each(self, name: str, axis: int) -> Tensor:
        """`[members]` a number of the rings of an axis."""
        return torch.tensor([getattr(one.part.rings[axis], name) for one in self.members], device=CPU)

    def _rows(self, axis: int) -> tuple[Tensor, Tensor]:
        """`[boxes, tile]` rows of an axis, and the last one that exists."""
        first = self._tile(self.boxes, axis).unsqueeze(1) * self.tile[axis]
        last = self._each("rows", axis)[self.boxes.number].unsqueeze(1) - 1
        return first + torch.arange(self.tile[axis], device=CPU), last


def _strips(member: Member) -> tuple[int, ...]:
    return *member.part.grid, *map(len, member.work.slab[1:])


class Bundles(NamedTuple):
    """Passes over small documents, and the groups of all others."""

    bundles: tuple[Bundle, ...]
    groups: tuple[Group, ...]


class Planned(NamedTuple):
    """A part of a document: its boxes, the numbers kept for them, nanoseconds of its tiles, and their classes
    on every axis."""

    part: Part
    work: Pass
    numbers: int
    cost: float
    classes: tuple[frozenset[int], ...]


@lru_cache(8)
def bundles(problem: Problem, back: bool = False) -> Bundles:
    """Documents that take less time together, where they have more than one shape; their masks and boxes are
    the same."""
    batch, parts = arranged(problem), dict[Group, list[Planned]]()
    if not problem.extra:
        alone = {group: _alone(problem, group) for group in batch.groups}
        small = [group for group in batch.groups if _may_pay(alone[group], back)]
        if len(small) > 1:
            parts = _parts(problem, small, back)
        for group, mine in list(parts.items()):
            if not _pays(alone[group], back, sum(one.cost for one in mine), len(mine)):
                del parts[group]
    if len(parts) < 2:
        return Bundles((), batch.groups)
    rest = tuple(group for group in batch.groups if group not in parts)
    return Bundles(tuple(_bundled(problem, batch, parts, back)), rest)


def _alone(problem: Problem, group: Group) -> Problem:
    """One document of a group."""
    return replace(problem, axes=arguments.axes(group.shape, group.window), batch=1, documents=None)


def _may_pay(alone: Problem, back: bool) -> bool:
    """Whether `_pays` with tiles as good as can be."""
    least = alone.heads * alone.pairs * costs.score_cost(alone, inf, inf, back)
    return _pays(alone, back, least, plan.pieces(alone))


def _pays(alone: Problem, back: bool, work: float, parts: int) -> bool:
    """Whether a document had better be computed with others, where its tiles take `work`."""
    costs = BACKWARD if back else FORWARD
    tiles, whole = costs.factor * work, direct.cost(alone, back)
    best = min(tiles + parts * costs.alone, inf if whole is None else whole + costs.direct)
    return tiles + parts * costs.together <= costs.gain * best


def _bundled(
    problem: Problem, batch: Batch, parts: dict[Group, list[Planned]], back: bool
) -> Iterator[Bundle]:
    """As many documents at a time as one pass takes."""
    itemsize = 8 if problem.dtype == "float64" else 4
    members, numbers, box = list[Member](), 0, 0
    kinds: list[frozenset[int]] = [frozenset()] * problem.rank
    places = {document: mine for group, mine in parts.items() for document in group.documents}
    for document in sorted(places):
        for part, work, mine, _, classes in places[document]:
            more = [one | other for one, other in zip(kinds, classes, strict=True)]
            masks = prod(map(len, more)) * part.rows * work.keys
            if members and ((numbers + mine) * itemsize > plan.PASS or masks * itemsize > plan.TABLE):
                yield _bundle(members, batch)
                members, numbers, box, more = [], 0, 0, list(classes)
            members.append(Member(document, part, work, box))
            numbers, box, kinds = numbers + mine, box + work.boxes, more
    yield _bundle(members, batch)


def _bundle(members: Sequence[Member], batch: Batch) -> Bundle:
    first = members[0].part
    names = ("residues", "rings", "sizes", "share", "kv_heads", "grid", "batches", "slabs", "pieces")
    shared = {name: getattr(first, name) for name in names}
    made = Bundle(**shared, batch=batch, members=tuple(members))
    columns = zip(*(member.part.tables(CPU) for member in members), strict=True)
    made.memo["tables", CPU] = tuple(map(_occurring, columns))
    return made


def _occurring(tables: Sequence[Table]) -> Table:
    """One after another, with the classes that occur."""
    some, ids = torch.cat([table.ids for table in tables]).unique(return_inverse=True)
    return tables[0].of(some)._replace(ids=ids)


def _joined(part: Part) -> Pass:
    """All boxes of a part, its strips one after another."""
    first = part.rings[0]
    volumes, slab = prod(part.grid), part.slabs[0]
    length = (first.tiles - 1) * first.step + first.width
    places = -(-length // first.step)
    strips = volumes * prod(map(len, slab[1:]))
    return Pass(slab, part.pieces[0], None, volumes, strips, first.step, places * first.step, places, 1)


def _parts(problem: Problem, small: Sequence[Group], back: bool) -> dict[Group, list[Planned]]:
    """The parts of one document of every group, with one tile and one box for all."""
    axes = {group: arguments.axes(group.shape, group.window) for group in small}
    tile = _tile(problem, small, back)
    per_axis = [
        _ringed({axes[group][place] for group in small}, whole, tile[place], plan.units(problem))
        for place, whole in enumerate(problem.axes)
    ]
    return {
        group: [
            _planned(problem, chosen, back)
            for chosen in product(*map(dict.__getitem__, per_axis, axes[group]))
        ]
        for group in small
    }


def _tile(problem: Problem, small: Sequence[Group], back: bool) -> tuple[int, ...]:
    """The cheapest tile for a document in the middle of them, at lengths that many batches share."""
    lengths = []
    for place, axis in enumerate(problem.axes):
        middle = median_low([group.shape[place] for group in small for _ in group.documents])
        lengths.append(max(1 << (middle - 1).bit_length(), axis.size * axis.dilation))
    axes = tuple(replace(axis, length=long) for axis, long in zip(problem.axes, lengths, strict=True))
    return plan.cheapest(replace(problem, axes=axes, batch=1, documents=None), back).rows


class Chosen(NamedTuple):
    """Dilation groups of one axis, their tiles, and the classes of these."""

    residue: Residue
    ring: Ring
    table: Table
    classes: frozenset[int]


def _ringed(axes: set[Axis], whole: Axis, tile: int, units: tuple[Unit, ...]) -> dict[Axis, list[Chosen]]:
    """What sets the dilation groups of every axis apart: boxes are as wide as the widest, classes are of all
    tiles. `whole` has the window before it was clipped, whose relative positions are meant."""
    least = max(ring.width for axis in axes for ring in rings(axis, tile, units))
    width = next(w for w in count(least) if all(widened(axis, tile, w) for axis in axes))
    pairs = [
        (residue, ring)
        for axis in axes
        for residue, ring in zip(residues(axis), widened(axis, tile, width) or (), strict=True)
    ]
    found: dict[Axis, list[Chosen]] = {}
    for (residue, ring), mine in zip(pairs, tables(pairs, whole.size), strict=True):
        chosen = Chosen(residue, ring, mine, frozenset(mine.ids.tolist()))
        found.setdefault(residue.axis, []).append(chosen)
    return found


def _planned(problem: Problem, chosen: Sequence[Chosen], back: bool) -> Planned:
    groups, ring, masks, classes = zip(*chosen, strict=True)
    grid = (problem.kv_heads, 1, *(residue.groups for residue in groups))
    batch = tuple(slice(0, extent) for extent in grid)
    slab, box = tuple(range(one.tiles) for one in ring), tuple(range(one.width) for one in ring)
    share, per = problem.heads // problem.kv_heads, passes.load(problem, back)
    made = Part(groups, ring, problem.window, share, problem.kv_heads, grid, (batch,), (slab,), (box,))
    made.memo["tables", CPU] = masks
    work = _joined(made)
    numbers = work.boxes * (made.rows * per.row + work.pitch * work.width * per.slot)
    cost = costs.work_cost(problem, work.boxes, made.rows, work.keys, numbers, back)
    return Planned(made, work, numbers, cost, classes)
