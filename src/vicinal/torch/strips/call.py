"""What the parts of one fused call share: its numbers, its masks, and the walk over additional tokens."""

from collections.abc import Iterator
from itertools import product
from math import log

import torch
from torch import Tensor

from ..backends.base import Operands
from ..composite import accumulating
from . import plan
from .arena import Like
from .bundle import Bundle
from .moves import Geometry, Place, blank, geometry, placed
from .plan import Part, Pass
from .residues import columns_view, rows_view
from .scores import Additive

LOG2E = 1 / log(2)
EXTRA = 1024
"""Additional tokens taken at a time, at most."""
TILES = 16
"""Tiles that meet them at a time, at least."""
TOKENS = 1 << 20
"""Numbers of as many copies of additional tokens as there are tiles."""


def chunk(rows: int, keys: int, like: Like, buffers: int = 1) -> int:
    """Tiles whose scores are held at a time. No result depends on it, so it may follow the threads."""
    most = 12 // buffers
    workers = min(torch.get_num_threads(), most) if like.device.type == "cpu" else most
    return max(workers * plan.CHUNK // (rows * keys * like.dtype.itemsize), 1)


def rows_of(part: Part, x: Tensor, batch: int) -> Place:
    """`[*batch, share, *rows, dim]` of queries and what has their shape, for a batch by number; all of a
    tensor that holds several documents."""
    if isinstance(part, Bundle):
        return placed(x)

    def make() -> Geometry:
        return geometry(
            rows_view(blank(x.shape, x.stride()), part.residues, part.kv_heads)[part.batches[batch]]
        )

    return placed(x, part.recent.recall(("rows", batch, x.shape, x.stride()), make))


def columns_of(part: Part, x: Tensor, batch: int) -> Place:
    """`[*batch, *columns, dim]` of keys and what has their shape, for a batch by number; all of a tensor that
    holds several documents."""
    if isinstance(part, Bundle):
        return placed(x)

    def make() -> Geometry:
        return geometry(columns_view(blank(x.shape, x.stride()), part.residues)[part.batches[batch]])

    return placed(x, part.recent.recall(("columns", batch, x.shape, x.stride()), make))


class Call:
    """One call on one part of its problem."""

    def __init__(self, part: Part, operands: Operands, scale: float) -> None:
        self.query, self.key, self.value, self.bias, *self.extra = operands
        self.part, self.scale = part, scale
        self.like = Like(accumulating(self.query.dtype), self.query.device)
        self.mask: Additive | None = None

    def additive(self, work: Pass, batch: int, turned: bool = False) -> Additive:
        """Masks of a pass. The last ones are kept: neighbors often share them."""
        box = work.box
        if self.bias is None:
            key = ("mask", box, self.like, turned)
            return self.part.remember(
                key, lambda: Additive(self.part, box, None, range(1), self.like, turned)
            )
        heads = range(self.part.kv_heads)[self.part.batches[batch][0]]
        if self.mask is None or (self.mask.box, self.mask.heads, self.mask.turned) != (
            box,
            heads,
            turned,
        ):
            self.mask = Additive(self.part, box, self.bias, heads, self.like, turned, LOG2E)
        return self.mask

    def extra_chunks(
        self, batch: int, boxes: int
    ) -> Iterator[tuple[slice, tuple[int, slice, int], list[Tensor]]]:
        """Additional tokens next to those of `boxes` tiles that see them.

        Yields tiles, the place `[batch entry, tokens, key/value head]` of the tokens, and their keys and
        values `[tiles, tokens, dim]`. Sums over tiles are made by what is yielded, so no size depends on
        threads.
        """
        key, value = self.extra
        if key is None or value is None:
            return
        heads, entries = self.part.batches[batch][:2]
        pairs = list(product(range(self.part.kv_heads)[heads], range(key.shape[0])[entries]))
        share, width = boxes // len(pairs), max(key.shape[-1], value.shape[-1])
        most = min(max(TOKENS // (TILES * width), 1), EXTRA)
        for place, (head, entry) in enumerate(pairs):
            for token in range(0, key.shape[1], most):
                where = (entry, slice(token, token + most), head)
                some = [x[where].unsqueeze(0).to(self.like.dtype).contiguous() for x in (key, value)]
                size = 2 * self.part.rows * some[0].shape[1] * self.like.dtype.itemsize
                step = max(min(plan.CHUNK // size, TOKENS // (some[0].shape[1] * width)), TILES)
                for start in range(place * share, (place + 1) * share, step):
                    tiles = slice(start, min(start + step, (place + 1) * share))
                    yield tiles, where, [x.expand(tiles.stop - start, -1, -1) for x in some]
