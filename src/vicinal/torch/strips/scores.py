"""What is added to scores before the softmax: a mask, with the relative position bias, and the bias'
gradient."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from . import plan
from .arena import Like, take
from .passes import Box
from .plan import Part, Pass

HIDDEN = -1e30
"""Score of a key that is not seen: its weight is an exact zero, and no infinity meets another."""


class Additive:
    """Masks and biases of the tiles of a part, for `heads` key/value heads from `first` on.

    `bias` is `[heads, *(2 * size - 1)]`, to be multiplied by `scale`, or None. There is one table entry for
    each class of tiles (and head, with a bias); where a table would be large, entries are made when they
    are wanted. `turned` scores lie `[keys, rows]` in memory.
    """

    def __init__(
        self,
        part: Part,
        box: Box,
        bias: Tensor | None,
        heads: range,
        like: Like,
        turned: bool = False,
        scale: float = 1.0,
    ) -> None:
        self.part, self.box, self.device, self.turned = part, box, like.device, turned
        self.heads = heads if bias is not None else range(1)
        self.tables = part.tables(like.device)
        self.keys = prod(map(len, box))
        self.biased = bias is not None
        if bias is None:
            bias = torch.zeros((part.share, *(1 for _ in part.sizes)), dtype=like.dtype, device=like.device)
        mine = bias[self.heads.start * part.share : self.heads.stop * part.share]
        # What is hidden follows the numbers of every axis.
        shape = (len(mine), *(extent + 1 for extent in mine.shape[1:]))
        self.source = torch.full(shape, HIDDEN, dtype=like.dtype, device=like.device)
        self.source[(slice(None), *(slice(-1) for _ in part.sizes))].copy_(mine).mul_(scale)
        # Those of all pieces are kept.
        size = part.rows * prod(ring.width for ring in part.rings) * like.dtype.itemsize
        self.most = plan.TABLE // size
        self.fits = len(self.heads) * part.classes <= self.most
        self.table = None
        self.kept: dict[int, Tensor] = {}
        if self.fits:
            self.table = self.laid(self._flat(self.entries(), self.source)).clone(
                memory_format=torch.contiguous_format
            )

    def entries(self, chosen: Sequence[int] | None = None) -> list[Tensor]:
        """`[classes, rows, slots]` of every axis, for a class of each or for all: places in `source`."""
        found = []
        for axis, (table, size) in enumerate(zip(self.tables, self.part.sizes, strict=True)):
            mine = table if chosen is None else table.of(slice(chosen[axis], chosen[axis] + 1))
            slots = self.box[axis]
            found.append(mine.entries(slots, size, axis) if self.biased else mine.hidden(slots, axis))
        return found

    def laid(self, scores: Tensor) -> Tensor:
        """Scores `[boxes, rows, keys]` as they lie in memory."""
        return scores.mT if self.turned else scores

    def kinds(self, work: Pass) -> Tensor:
        """`[boxes]` table entry of every box of a pass."""
        key = ("kinds of heads", work, len(self.heads), self.device)
        return self.part.recent.recall(key, lambda: self.part.kinds(work, len(self.heads), self.device))

    def fill(self, scores: Tensor, kinds: Tensor) -> None:
        """Write what belongs to `scores` `[boxes, rows, keys]`."""
        if self.table is not None:
            torch.index_select(self.table, 0, kinds, out=self.laid(scores))
            return
        for tile, kind in zip(self.laid(scores), kinds.tolist(), strict=True):
            tile.copy_(self._entry(kind))

    def _entry(self, kind: int) -> Tensor:
        """A table entry as it lies in memory. Some are kept, always the last: neighbors often share one."""
        found = self.kept.get(kind)
        if found is not None:
            return found
        head, chosen = self._class(kind)
        source = self.source[head * self.part.share : (head + 1) * self.part.share]
        made = self._expand(self.entries(chosen), source)
        entry = take("mask", (self.part.rows, self.keys), Like(made.dtype, made.device))
        found = self.laid(entry.view(made.shape).copy_(made).view(entry.shape))
        if self.kept and len(self.kept) >= self.most:
            # The newest gives way: tiles come in the same order again.
            self.kept.popitem()
        if self.most:
            # A tensor made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                self.kept[kind] = found.clone(memory_format=torch.contiguous_format)
        return found

    def dense(self) -> Tensor:
        """`[heads, rows, keys]` of a part that is one tile."""
        return self._flat(self.entries(), self.source) if self.table is None else self.table

    def _class(self, kind: int) -> tuple[int, list[int]]:
        """Head, and class on every axis, of a table entry."""
        chosen = []
        for table in reversed(self.tables):
            kind, one = divmod(kind, table.classes)
            chosen.append(one)
        return kind, chosen[::-1]

    def _flat(self, entries: Sequence[Tensor], source: Tensor) -> Tensor:
        """`[heads * classes, rows, keys]`."""
        return self._expand(entries, source).reshape(-1, self.part.rows, self.keys)

    def _expand(self, entries: Sequence[Tensor], source: Tensor) -> Tensor:
        """`[heads, *classes, share, *rows, *keys]` for the classes that `entries` hold, in memory that `take`
        gave."""
        like, rank = Like(source.dtype, source.device), len(entries)
        for axis, table in enumerate(entries):
            size = (*source.shape[: axis + 1], table.numel(), *source.shape[axis + 2 :])
            into = take(f"mask {axis}", size, like)
            source = torch.index_select(source, axis + 1, table.flatten(), out=into)
        shape = (-1, self.part.share, *(extent for table in entries for extent in table.shape))
        classes, rows, keys = (range(2 + i, 2 + 3 * rank, 3) for i in range(3))
        return source.view(shape).permute(0, *classes, 1, *rows, *keys)


def _matched(sums: Tensor, table: Tensor, entries: int) -> Tensor:
    """`[..., entries]`: `sums` `[..., numbers]` of the numbers that `table` gives each entry."""
    if sums.device.type == "cpu":
        # One number after another: the sum has one order for any number of threads.
        found = sums.new_zeros((*sums.shape[:-1], entries))
        return found.scatter_add_(-1, table.expand(sums.shape), sums)
    return sums @ (table.unsqueeze(1) == torch.arange(entries, device=table.device)).to(sums.dtype)


class Tally:
    """Gradient of the bias: gradients of scores, summed over tiles of one class, then over equal relative
    positions."""

    def __init__(self, additive: Additive, like: Tensor) -> None:
        self.additive = additive
        part = additive.part
        self.total = like.new_zeros(
            (len(additive.heads) * part.share, *(2 * size - 1 for size in part.sizes))
        )
        self.sums = None
        if additive.fits:
            self.sums = like.new_zeros((len(additive.heads) * part.classes, part.rows * additive.keys))

    def add(self, slopes: Tensor, kinds: Tensor) -> None:
        if self.sums is None:
            for tile, kind in zip(slopes, kinds.tolist(), strict=True):
                head, chosen = self.additive._class(kind)
                share = self.additive.part.share
                made = self._contract(tile, self.additive.entries(chosen))
                self.total[head * share : (head + 1) * share] += made
        elif slopes.device.type == "cpu":
            # Tile after tile: the sum has one order for any number of threads.
            self.sums.index_add_(0, kinds, self.additive.laid(slopes).flatten(1))
        else:
            member = kinds == torch.arange(len(self.sums), device=kinds.device).unsqueeze(1)
            self.sums.addmm_(member.to(slopes.dtype), slopes.flatten(1))

    def result(self) -> Tensor:
        """`[heads, *(2 * size - 1)]`."""
        if self.sums is not None:
            part, keys = self.additive.part, self.additive.keys
            shape = (keys, part.rows) if self.additive.turned else (part.rows, keys)
            return self._contract(self.additive.laid(self.sums.view(-1, *shape)), self.additive.entries())
        return self.total

    def _contract(self, sums: Tensor, entries: Sequence[Tensor]) -> Tensor:
        """Adjoint of `Additive._expand`."""
        part, rank = self.additive.part, len(entries)
        classes, rows, keys = zip(*(table.shape for table in entries), strict=True)
        sums = sums.reshape(-1, *classes, part.share, *rows, *keys)
        order = [0, rank + 1, *(place + i for i in range(rank) for place in (1, rank + 2, 2 * rank + 2))]
        sums = sums.permute(order).flatten(0, 1)
        for axis in range(rank - 1, -1, -1):
            # [heads, (class, row, key) of the axes before, of this axis, relative positions of the axes
            # after]
            sums = sums.movedim((1 + 3 * axis, 2 + 3 * axis, 3 + 3 * axis), (-3, -2, -1)).flatten(-3)
            # A slot that is not seen counts towards an entry of its own, which is left out.
            found = _matched(sums, entries[axis].flatten(), 2 * part.sizes[axis])
            sums = found[..., :-1].movedim(-1, 1 + 3 * axis)
        return sums
