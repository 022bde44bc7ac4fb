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
from .arena import Like, sheet, trim
from .call import chunk, columns_of, rows_of
from .layout import Chunk, accumulate, chunks, cut, fold, segments, strips
from .moves import Place
from .plan import TABLE, Part, Pass, parts
from .products import fewest, multiply
from .ring import Table
from .scores import Additive
from .sums import sinks
from .tiles import gather, scatter, tiles


class _Stage(NamedTuple):
    """One pass: where its tiles and strips are, the key/value heads of its batch, and where it adds what
    keys get."""

    part: Part
    work: Pass
    batch: int
    like: Like
    sums: Place | None

    def chunks(self) -> Iterator[Chunk]:
        step = chunk(self.part.rows, self.keys + prod(self.part.sizes), self.like, 2)
        return chunks(self.work, step, fewest(self.like.device))

    @property
    def keys(self) -> int:
        return len(self.work.slots) * self.part.width

    def scores(self, some: slice, width: int) -> Tensor:
        """`[boxes, rows, width]`, uninitialised."""
        size = (some.stop - some.start, self.part.rows, width)
        return sheet("scores", size, self.like, first=some.start)[0]

    def places(self, some: slice) -> Tensor:
        """`[boxes, rows, window]` slot of the box that each key of a window has; the number of keys where
        there is none."""
        part, rank = self.part, self.part.rank
        index = None
        for axis in range(rank):
            place, shape = self._added(axis, some), [1] * (2 + 2 * rank)
            shape[0], shape[2 + axis], shape[2 + rank + axis] = place.shape
            place = place.view(shape)
            index = place if index is None else index + place
        assert index is not None
        if self.gaps and rank > 1:
            index.clamp_(max=self.keys)
        whole = index.expand(-1, part.share, *part.tile, *part.sizes)
        return whole.reshape(-1, part.rows, prod(part.sizes))

    def _added(self, axis: int, some: slice) -> Tensor:
        """`[boxes, tile, size]` what the place of a key on an axis adds to its slot in the box."""
        part, size, device = self.part, self.part.sizes[axis], self.like.device
        ids, width = part.ids(self.work, device)[axis][some], prod(x.width for x in part.rings[axis + 1 :])

        def made(table: Table) -> Tensor:
            places = table.places(size)
            return torch.where(places < 0, self.keys, places * width)

        table = part.tables(device)[axis]
        if table.first.nbytes * size > TABLE:
            return made(table.of(ids))
        return part.remember(("places", axis, device), lambda: made(table)).index_select(0, ids)

    @property
    def gaps(self) -> bool:
        """Whether some slot of some window holds no key."""
        pairs = zip(self.part.tables(self.like.device), self.part.sizes, strict=True)
        return self.part.remember("gaps", lambda: [any(bool((x.seen < size).any()) for x, size in pairs)])[0]


def _stages(problem: Problem, x: Tensor, total: Tensor | None = None) -> Iterator[_Stage]:
    """All passes, and where they add to the keys' `total`."""
    trim()
    like = Like(accumulating(x.dtype), x.device)
    for part in parts(problem) if x.numel() else ():
        assert len(part.pieces) == 1
        for batch in range(len(part.batches)):
            sums: Iterator[Place | None] = repeat(None, len(part.slabs))
            if total is not None:
                sums = sinks(part, columns_of(part, total, batch), "sums", like, False)
            for slab, one in enumerate(sums):
                yield _Stage(part, part.measure(batch, slab, 0), batch, like, one)


def dot(problem: Problem, x: Tensor, y: Tensor, bias: Tensor | None, scale: float, fill: float) -> Tensor:
    weights = fresh.empty((*x.shape[:-1], prod(problem.window)), x.dtype, x.device)
    bias = None if bias is None else bias.to(accumulating(x.dtype))
    for stage in _stages(problem, x):
        part, work, batch, like, _ = stage
        queries = gather(part, work, rows_of(part, x, stage.batch), "query", like)
        keys = cut(part, work, columns_of(part, y, stage.batch), "key", like)
        target = rows_of(part, weights, stage.batch)
        made = tiles(part, work, weights.shape[-1], "weights", like)
        heads = range(part.kv_heads)[part.batches[batch][0]]
        mask = None if bias is None else Additive(part, work.slots, bias, heads, like)
        for piece in stage.chunks():
            some = piece.all
            scores = stage.scores(some, stage.keys)
            if mask is not None:
                mask.fill(scores, mask.kinds(work)[some])
            multiply(scores, queries[some], keys.boxes(piece).mT, scale, int(mask is not None))
            places = stage.places(some)
            if stage.gaps:
                blank = places == stage.keys
                torch.gather(scores, -1, places.masked_fill(blank, 0), out=made[some])
                made[some].masked_fill_(blank, fill)
            else:
                torch.gather(scores, -1, places, out=made[some])
        scatter(part, work, made, "weights", target)
    return weights


def _spread(stage: _Stage, weights: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
    """Weights of boxes, `[boxes, rows, keys]`, a chunk at a time; a slot without a key is never read."""
    part, work, batch, like, _ = stage
    mine = gather(part, work, rows_of(part, weights, batch), "weights", like)
    for piece in stage.chunks():
        some = piece.all
        scores = stage.scores(some, stage.keys + stage.gaps).zero_()
        yield piece, scores.scatter_(-1, stage.places(some), mine[some])[:, :, : stage.keys]


def mix(problem: Problem, weights: Tensor, y: Tensor) -> Tensor:
    out = fresh.empty((*weights.shape[:-1], y.shape[-1]), y.dtype, y.device)
    for stage in _stages(problem, y):
        part, work, _, like, _ = stage
        values = cut(part, work, columns_of(part, y, stage.batch), "key", like)
        target = rows_of(part, out, stage.batch)
        made = tiles(part, work, y.shape[-1], "out", like)
        for some, scores in _spread(stage, weights):
            multiply(made[some.all], scores, values.boxes(some), beta=0)
        scatter(part, work, made, "out", target)
    return out


def mix_back(problem: Problem, weights: Tensor, x: Tensor) -> Tensor:
    shape = (x.shape[0], *problem.lengths, problem.kv_heads, x.shape[-1])
    total = fresh.zeros(shape, x.dtype, x.device)
    for stage in _stages(problem, x, total):
        part, work, _, like, sums = stage
        assert sums is not None
        rows = gather(part, work, rows_of(part, x, stage.batch), "query", like)
        made = strips(part, work, x.shape[-1], "key", like).slots.zero_()
        for some, scores in _spread(stage, weights):
            accumulate(segments(part, work, made, some, scores), rows[some.all], 1.0)
        fold(part, work, made, sums, like)
    return total
