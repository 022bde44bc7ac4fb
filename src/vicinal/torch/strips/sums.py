"""Sums of the gradients of keys or values whose dtype is too narrow to add up in."""

from collections.abc import Iterator, Sequence
from itertools import groupby, repeat

from torch import Tensor

from .arena import Like, take
from .moves import Place
from .plan import Part

ROOM = 6 << 20
"""Bytes of sums that may stay without need."""


def sinks(part: Part, target: Place, name: str, like: Like, fresh: bool) -> Iterator[Place]:
    """Where each slab adds to `target` `[*batch, *columns, dim]`, all of which is written after the last."""
    if target.tensor.dtype == like.dtype:
        yield from repeat(target, len(part.slabs))
        return
    slabs = enumerate(part.bands)
    for columns, some in groupby(slabs, lambda slab: None if slab[1] is None else slab[1].columns):
        mine = [slab for slab, _ in some]
        sums = Sums(part, target, columns, mine, name, like, fresh)
        yield from map(sums.reach, mine)
        sums.leave()


class Sums:
    """The columns that a slab adds to, in the dtype of `like`: a window that moves along the axis that slabs
    walk. No later slab adds to what it leaves, which is rounded to `target` `[*batch, *columns, dim]`, or to
    some `columns` of it.

    Where they are not `fresh`, sums start from zero.
    """

    def __init__(
        self,
        part: Part,
        target: Place,
        columns: tuple[range, ...] | None,
        slabs: Sequence[int],
        name: str,
        like: Like,
        fresh: bool,
    ) -> None:
        self.part, self.whole, self.fresh = part, target.shape, fresh
        self.axis = part.walk - part.rank - 1
        self.columns = columns or tuple(map(range, target.shape[-part.rank - 1 : -1]))
        self.target = target.view()
        for axis, mine in enumerate(self.columns):
            self.target = self.target.narrow(axis - part.rank - 1, mine.start, len(mine))
        shape = list(self.target.shape)
        walk, least = shape[self.axis], max(map(len, map(self._wanted, slabs)))
        room = ROOM * walk // (self.target.numel() * like.dtype.itemsize)
        shape[self.axis] = min(max(room, least), walk)
        self.first, self.count, self.sums = 0, shape[self.axis], take(name, tuple(shape), like)
        self._zero(self.sums)

    def reach(self, slab: int) -> Place:
        """All columns, of which those that a slab adds to have memory."""
        wanted = self._wanted(slab)
        if wanted.stop > self.first + self.count:
            self._move(wanted.start)
        steps = self.sums.stride()[-self.part.rank - 1 :]
        starts = [columns.start for columns in self.columns]
        starts[self.part.walk] += self.first
        offset = self.sums.storage_offset() - sum(x * step for x, step in zip(starts, steps, strict=False))
        return Place(self.sums, tuple(self.whole), self.sums.stride(), int(offset))

    def leave(self) -> None:
        """Round all sums."""
        self._round(min(self.count, self.target.shape[self.axis] - self.first))

    def _wanted(self, slab: int) -> range:
        """Columns of the axis that slabs walk, counted from the first that has sums."""
        reach, mine = self.part.reach(slab), self.columns[self.part.walk]
        return range(max(reach.start, mine.start) - mine.start, min(reach.stop, mine.stop) - mine.start)

    def _move(self, first: int) -> None:
        hop = first - self.first
        kept = max(self.count - hop, 0)
        self._round(self.count - kept)
        for at in range(0, kept, hop):
            # What is read and what is written have no column in common.
            size = min(hop, kept - at)
            self._some(at, size).copy_(self._some(at + hop, size))
        self._zero(self._some(kept, self.count - kept))
        self.first = first

    def _round(self, count: int) -> None:
        """Round the first columns."""
        self.target.narrow(self.axis, self.first, count).copy_(self._some(0, count))

    def _some(self, start: int, count: int) -> Tensor:
        return self.sums.narrow(self.axis, start, count)

    def _zero(self, sums: Tensor) -> None:
        if not self.fresh:
            sums.zero_()
