"""Small documents of different shapes in one pass: strips of different lengths, with boxes of one size, one
pitch apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count, product
from math import prod
from statistics import median_low
from typing import NamedTuple

import torch
from torch import Tensor

from ... import arguments
from ...layout import Group, Shape
from ...problem import Problem
from ...window import Axis
from ..documents import Batch, arranged
from ..ops import sampled
from . import plan
from .plan import Part, Pass
from .residues import Residue, columns_view, residues, rows_view
from .ring import CPU, Ring, Table, Unit, rings, table, widened

SMALL = 1 << 19
"""Bytes of the operands and the output of a document that alone is too little for a pass."""


class Member(NamedTuple):
    """One document, or some of its dilation groups, and the first of its boxes."""

    document: int
    part: Part
    work: Pass
    box: int


@dataclass(frozen=True, eq=False)
class Bundle(Part):
    """Parts of several documents that one pass computes; what all of them share is that of the first.

    It takes whole tensors, where other parts take their own batches of them.
    """

    batch: Batch | None = None
    members: tuple[Member, ...] = ()

    @cached_property
    def work(self) -> Pass:
        """A strip for each box."""
        first, last = self.members[0].work, self.members[-1]
        volumes = sum(member.work.volumes for member in self.members)
        return Pass(
            first.slab, first.slots, volumes, last.box + last.work.boxes, first.pitch, first.pitch, 1, 1
        )

    def measure(self, batch: int, slab: int, piece: int) -> Pass:
        return self.work

    def kinds(self, work: Pass, heads: int, device: torch.device) -> Tensor:
        return torch.cat([member.part.kinds(member.work, heads, device) for member in self.members])

    def blanks(self, work: Pass, some: slice, device: torch.device) -> Tensor | None:
        def make() -> Tensor:
            return torch.cat([_blank(member.work, device) for member in self.members])

        every = self.remember(("blank", device), make)
        key = ("blanks", some.start, some.stop, device)
        return self.remember(key, lambda: every[some].nonzero().view(-1))

    def unused(self, device: torch.device) -> Tensor:
        """Rows of tiles that do not exist, of all rows of all boxes."""

        def make() -> Tensor:
            used = [_used(member.part, member.work, device) for member in self.members]
            return (~torch.cat(used)).nonzero().view(-1)

        return self.remember(("unused", device), make)

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


def _blank(work: Pass, device: torch.device) -> Tensor:
    """`[boxes]` whether a box belongs to no tile."""
    return torch.arange(work.boxes, device=device) % work.places >= len(work.slab[0])


def _used(part: Part, work: Pass, device: torch.device) -> Tensor:
    """`[boxes * rows]` whether a row of a tile exists."""
    rank = part.rank
    # [volumes, *tiles of the other axes, places, share, *tile]
    shape = (work.volumes, *map(len, work.slab[1:]), work.places, part.share, *part.tile)
    found = torch.ones(shape, dtype=torch.bool, device=device)
    for axis, (ring, tiles) in enumerate(zip(part.rings, work.slab, strict=True)):
        boxes = work.places if axis == 0 else len(tiles)
        inside = torch.arange(boxes * ring.tile, device=device) < ring.rows
        view = [1] * len(shape)
        view[rank if axis == 0 else axis], view[rank + 2 + axis] = boxes, ring.tile
        found &= inside.view(view)
    return found.view(-1)


class Bundles(NamedTuple):
    """Passes over small documents, and the groups of all others."""

    bundles: tuple[Bundle, ...]
    groups: tuple[Group, ...]


@lru_cache(8)
def bundles(problem: Problem, back: bool = False) -> Bundles:
    """Small documents together, where they have more than one shape; their masks and boxes are the same."""
    batch = arranged(problem)
    small, others = [], []
    for group in batch.groups:
        (small if _is_small(problem, group) else others).append(group)
    if len(small) < 2 or problem.extra:
        return Bundles((), batch.groups)
    return Bundles(tuple(_bundled(problem, batch, small, back)), tuple(others))


def _is_small(problem: Problem, group: Group) -> bool:
    wide = problem.dim + problem.value_dim
    return prod(group.shape) * (problem.heads + problem.kv_heads) * wide * _itemsize(problem) <= SMALL


def _itemsize(problem: Problem) -> int:
    """Bytes of a number while it is computed with."""
    return 8 if problem.dtype == "float64" else 4


def _bundled(problem: Problem, batch: Batch, small: Sequence[Group], back: bool) -> Iterator[Bundle]:
    """As many documents at a time as one pass takes."""
    itemsize, per = _itemsize(problem), plan.load(problem, back)
    parts = _parts(problem, small, back)
    members, numbers, box, kinds = [], 0, 0, [set()] * problem.rank
    shapes = {document: group.shape for group in small for document in group.documents}
    for document in sorted(shapes):
        for part in parts[shapes[document]]:
            work = _joined(part)
            mine = work.boxes * (part.rows * per.row + work.pitch * part.width * per.slot)
            more = [one | set(x.ids.tolist()) for one, x in zip(kinds, part.tables(CPU), strict=True)]
            masks = prod(map(len, more)) * part.rows * len(work.slots) * part.width
            if members and ((numbers + mine) * itemsize > plan.PASS or masks * itemsize > plan.TABLE):
                yield _bundle(members, batch)
                members, numbers, box = [], 0, 0
                more = [set(x.ids.tolist()) for x in part.tables(CPU)]
            members.append(Member(document, part, work, box))
            numbers, box, kinds = numbers + mine, box + work.boxes, more
    yield _bundle(members, batch)


def _bundle(members: Sequence[Member], batch: Batch) -> Bundle:
    tables = zip(*(member.part.tables(CPU) for member in members), strict=True)
    own = zip(*map(_united, tables), strict=True)
    members = [
        member._replace(part=replace(member.part, memo={("tables", CPU): mine}))
        for member, mine in zip(members, own, strict=True)
    ]
    first = members[0].part
    names = ("residues", "rings", "sizes", "share", "kv_heads", "grid", "batches", "slabs", "pieces")
    shared = {name: getattr(first, name) for name in names}
    made = Bundle(**shared, batch=batch, members=tuple(members))
    made.memo["tables", CPU] = first.tables(CPU)
    return made


def _joined(part: Part) -> Pass:
    """All boxes of a part, its strips one after another."""
    first = part.rings[0]
    volumes, slab = prod(part.grid), part.slabs[0]
    length = (first.tiles - 1) * first.step + first.width
    places = -(-length // first.step)
    strips = volumes * prod(map(len, slab[1:]))
    return Pass(slab, part.pieces[0], volumes, strips, first.step, places * first.step, places, 1)


def _parts(problem: Problem, small: Sequence[Group], back: bool) -> dict[Shape, list[Part]]:
    """The parts of one document of every shape, with one tile and one box for all."""
    axes = {group.shape: arguments.axes(group.shape, group.window) for group in small}
    tile = _tile(problem, small, back)
    per_axis = [
        _ringed({mine[place] for mine in axes.values()}, whole, tile[place], plan.units(problem))
        for place, whole in enumerate(problem.axes)
    ]
    return {
        shape: [_part(problem, chosen) for chosen in product(*map(dict.__getitem__, per_axis, mine))]
        for shape, mine in axes.items()
    }


def _tile(problem: Problem, small: Sequence[Group], back: bool) -> tuple[int, ...]:
    """The cheapest tile for a document in the middle of them, at lengths that many batches share."""
    lengths = []
    for place, axis in enumerate(problem.axes):
        middle = median_low([group.shape[place] for group in small for _ in group.documents])
        lengths.append(max(1 << (middle - 1).bit_length(), axis.size * axis.dilation))
    axes = tuple(replace(axis, length=long) for axis, long in zip(problem.axes, lengths, strict=True))
    return plan.cheapest(replace(problem, axes=axes, batch=1, documents=None), back).rows


Chosen = tuple[Residue, Ring, Table]


def _ringed(axes: set[Axis], whole: Axis, tile: int, units: tuple[Unit, ...]) -> dict[Axis, list[Chosen]]:
    """What sets the dilation groups of every axis apart: boxes are as wide as the widest, classes are of all
    tiles. `whole` has the window before it was clipped, whose relative positions are meant."""
    least = max(ring.width for axis in axes for ring in rings(axis, tile, units))
    width = next(w for w in count(least) if all(widened(axis, tile, w) for axis in axes))
    found: dict[Axis, list[Chosen]] = {}
    for axis in axes:
        clipped, made = whole.size - axis.size, widened(axis, tile, width)
        assert made is not None
        found[axis] = []
        for residue, ring in zip(residues(axis), made, strict=True):
            entries = tuple(entry + clipped for entry in residue.entries)
            mine = residue._replace(entries=entries)
            found[axis].append((mine, ring, table(mine, ring, whole.size, CPU)))
    every = [one for chosen in found.values() for one in chosen]
    tables = iter(_united([table for _, _, table in every]))
    return {
        axis: [(residue, ring, next(tables)) for residue, ring, _ in chosen] for axis, chosen in found.items()
    }


def _united(tables: Sequence[Table]) -> list[Table]:
    """`tables` with the classes of all."""
    every = torch.cat([table.entries[table.ids].flatten(1) for table in tables])
    unique, kinds = torch.unique(every, dim=0, return_inverse=True)
    entries = unique.view(-1, *tables[0].entries.shape[1:])
    ids = kinds.split([len(table.ids) for table in tables])
    return [table._replace(ids=mine, entries=entries) for table, mine in zip(tables, ids, strict=True)]


def _part(problem: Problem, chosen: Sequence[Chosen]) -> Part:
    groups, ring, tables = zip(*chosen, strict=True)
    grid = (problem.kv_heads, 1, *(residue.groups for residue in groups))
    batch = tuple(slice(0, extent) for extent in grid)
    slab, box = tuple(range(one.tiles) for one in ring), range(ring[0].width)
    share = problem.heads // problem.kv_heads
    made = Part(groups, ring, problem.window, share, problem.kv_heads, grid, (batch,), (slab,), (box,))
    made.memo["tables", CPU] = tables
    return made
