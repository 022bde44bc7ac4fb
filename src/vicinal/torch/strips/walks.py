"""The walks of the split operations on the strips of the fused one: weights move between window slots and
box slots."""

from collections.abc import Iterator
from itertools import repeat
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ..composite import accumulating
from . import fresh
from .arena import Like, sheet, take, trim
from .call import chunk, columns_of, rows_of
from .layout import Chunk, accumulate, chunks, cut, fold, segments, strips
from .moves import Place
from .passes import Window
from .plan import TABLE, Part, Pass, parts
from .products import fewest, multiply
from .ring import Table
from .scores import Additive
from .sums import sinks
from .tiles import gather, scatter, tiles


class _Stage(NamedTuple):
    """One pass, a piece of its boxes and a part of its windows: where tiles and strips are, the number of its
    batch and slab, and where it adds what keys get."""

    part: Part
    work: Pass
    window: Window
    batch: int
    slab: int
    like: Like
    sums: Place | None

    def pieces(self) -> Iterator["_Stage"]:
        for piece in range(len(self.part.pieces)):
            yield self._replace(work=self.part.measure(self.batch, self.slab, piece))

    def windows(self) -> Iterator["_Stage"]:
        for window in self.part.windows:
            yield self._replace(window=window)

    @property
    def opens(self) -> bool:
        """Whether nothing of windows and boxes is taken before."""
        return self.work.opens and not any(keys.start for keys in self.window)

    def weighted(self, weights: Tensor) -> Iterator[tuple["_Stage", Tensor]]:
        """All parts of windows with all pieces of boxes, and their weights `[boxes, rows, keys]`."""
        for some in self.windows():
            rows = rows_of(self.part, some.weights(weights), self.batch)
            mine = gather(self.part, self.work, rows, "weights", self.like)
            for piece in some.pieces():
                yield piece, mine

    def weights(self, x: Tensor) -> Tensor:
        """`[*batch, *outputs, heads, keys]` of a part of the windows: there, its keys are neighbors."""
        first = 0
        for keys, size in zip(self.window, self.part.sizes, strict=True):
            first = first * size + keys.start
        return x.narrow(-1, first, prod(self.sizes))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.window))

    def chunks(self) -> Iterator[Chunk]:
        step = chunk(self.part.rows, self.keys + prod(self.sizes), self.like, 2)
        return chunks(self.work, step, fewest(self.like.device))

    @property
    def keys(self) -> int:
        return self.work.keys

    def scores(self, some: slice, width: int) -> Tensor:
        """`[boxes, rows, width]`, uninitialised."""
        size = (some.stop - some.start, self.part.rows, width)
        return sheet("scores", size, self.like, first=some.start)[0]

    def places(self, some: slice) -> Tensor:
        """`[boxes, rows, window]` slot that each key of a window has among those that are read; their number
        where it has none."""
        part, rank = self.part, self.part.rank
        index = None
        for axis in range(rank):
            place, shape = self._added(axis, some), [1] * (2 + 2 * rank)
            shape[0], shape[2 + axis], shape[2 + rank + axis] = place.shape
            place = place.view(shape)
            index = place if index is None else self._sum(index, place, axis)
        assert index is not None
        if self.gaps and rank > 1:
            index.clamp_(max=self.keys)
        whole = index.expand(-1, part.share, *part.tile, *self.sizes)
        return whole.reshape(-1, part.rows, prod(self.sizes))

    def _sum(self, one: Tensor, other: Tensor, axis: int) -> Tensor:
        shape = tuple(map(max, one.shape, other.shape))
        return torch.add(one, other, out=take(f"sum {axis}", shape, Like(one.dtype, one.device)))

    def _added(self, axis: int, some: slice) -> Tensor:
        """`[boxes, tile, size]` what the place of a key on an axis adds to its slot in the box."""
        part, keys, device, slots = self.part, self.window[axis], self.like.device, self.work.box[axis]
        ids, width = part.ids(self.work, device)[axis][some], prod(map(len, self.work.box[axis + 1 :]))

        def made(table: Table) -> Tensor:
            return table.places(keys, slots, width, self.keys, axis)

        table = part.tables(device)[axis]
        if table.first.nbytes * len(keys) > TABLE or len(part.pieces) * len(part.windows) > 1:
            return made(table.of(ids))
        return part.remember(("places", axis, device), lambda: made(table).clone()).index_select(0, ids)

    @property
    def gaps(self) -> bool:
        """Whether some key of some window is not read."""
        return len(self.part.pieces) > 1 or self.part.remember("gaps", self._unseen)[0]

    def _unseen(self) -> tuple[bool]:
        pairs = zip(self.part.tables(self.like.device), self.part.sizes, strict=True)
        return (any(bool((table.seen < size).any()) for table, size in pairs),)

    def spread(self, rows: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """Weights of boxes, `[boxes, rows, keys]`, a chunk at a time; a slot without a key is never read."""
        for piece in self.chunks():
            some = piece.all
            scores = self.scores(some, self.keys + self.gaps).zero_()
            yield piece, scores.scatter_(-1, self.places(some), rows[some])[:, :, : self.keys]


def _stages(problem: Problem, x: Tensor, total: Tensor | None = None) -> Iterator[_Stage]:
    """All passes, and where they add to the keys' `total`."""
    trim()
    like = Like(accumulating(x.dtype), x.device)
    for part in parts(problem) if x.numel() else ():
        for batch in range(len(part.batches)):
            sums: Iterator[Place | None] = repeat(None, len(part.slabs))
            if total is not None:
                sums = sinks(part, columns_of(part, total, batch), "sums", like, False)
            for slab, one in enumerate(sums):
                work = part.measure(batch, slab, 0)
                yield _Stage(part, work, part.windows[0], batch, slab, like, one)


def dot(problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float) -> Tensor:
    weights = fresh.empty((*x.shape[:-1], prod(problem.window)), x.dtype, x.device)
    for stage in _stages(problem, x):
        part, work, batch, like = stage.part, stage.work, stage.batch, stage.like
        queries = gather(part, work, rows_of(part, x, batch), "query", like)
        for some in stage.windows():
            made = tiles(part, work, prod(some.sizes), "weights", like)
            for piece in some.pieces():
                _dot(piece, queries, columns_of(part, y, batch), bias, scale, fill, made)
            scatter(part, work, made, "weights", rows_of(part, some.weights(weights), batch))
    return weights


def _dot(
    stage: _Stage,
    queries: Tensor,
    columns: Place,
    bias: Tensor | None,
    scale: float,
    fill: float,
    made: Tensor,
) -> None:
    part, work, like = stage.part, stage.work, stage.like
    keys = cut(part, work, columns, "key", like)
    heads = range(part.kv_heads)[part.batches[stage.batch][0]]
    mask = None if bias is None else Additive(part, work.box, bias, heads, like)
    for piece in stage.chunks():
        some = piece.all
        scores = stage.scores(some, stage.keys)
        if mask is not None:
            mask.fill(scores, mask.kinds(work)[some])
        multiply(scores, queries[some], keys.boxes(piece).mT, scale, int(mask is not None))
        _pick(stage, scores, made[some], some, fill)


def _pick(stage: _Stage, scores: Tensor, made: Tensor, some: slice, fill: float) -> None:
    """Write the scores of windows, and at first `fill` where none is computed."""
    places = stage.places(some)
    if not stage.gaps:
        torch.gather(scores, -1, places, out=made)
        return
    size, device = tuple(places.shape), places.device
    blank = torch.eq(places, stage.keys, out=take("blank", size, Like(torch.bool, device)))
    read = take("read", size, Like(places.dtype, device)).copy_(places).masked_fill_(blank, 0)
    if stage.work.opens:
        torch.gather(scores, -1, read, out=made)
        made.masked_fill_(blank, fill)
    else:
        found = torch.gather(scores, -1, read, out=take("found", size, stage.like))
        torch.where(blank, made, found, out=made)


def mix(problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
    out = fresh.empty((*weights.shape[:-1], y.shape[-1]), y.dtype, y.device)
    for stage in _stages(problem, y):
        part, work, batch, like = stage.part, stage.work, stage.batch, stage.like
        made = tiles(part, work, y.shape[-1], "out", like)
        for piece, rows in stage.weighted(weights):
            values = cut(part, piece.work, columns_of(part, y, batch), "key", like)
            for some, scores in piece.spread(rows):
                multiply(made[some.all], scores, values.boxes(some), beta=int(not piece.opens))
        scatter(part, work, made, "out", rows_of(part, out, batch))
    return out


def mix_back(problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
    shape = (x.shape[0], *problem.lengths, problem.kv_heads, x.shape[-1])
    total = fresh.zeros(shape, x.dtype, x.device)
    for stage in _stages(problem, x, total):
        part, work, batch, like = stage.part, stage.work, stage.batch, stage.like
        assert stage.sums is not None
        rows = gather(part, work, rows_of(part, x, batch), "query", like)
        for piece, mine in stage.weighted(weights):
            made = strips(part, piece.work, x.shape[-1], "key", like).slots.zero_()
            for some, scores in piece.spread(mine):
                accumulate(segments(piece.work, made, some, scores), rows[some.all], 1.0)
            fold(part, piece.work, made, stage.sums, like)
    return total
