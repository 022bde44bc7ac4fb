"""What the parts of one fused call share: its numbers, its masks, and the walk over additional tokens."""

from collections.abc import Iterator
from math import log

import torch
from torch import Tensor

from ..backends.base import Operands
from . import plan
from .plan import Batch, Part, Pass
from .residues import columns_view, rows_view
from .scores import Additive

LOG2E = 1 / log(2)
EXTRA = 1024
"""Additional tokens taken at a time."""


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk(rows: int, keys: int, like: Tensor, buffers: int = 1) -> int:
    """Tiles whose scores are held at a time. No result depends on it, so it may follow the number of
    threads."""
    workers = min(torch.get_num_threads(), 16) if like.device.type == "cpu" else 16
    return max(workers * plan.CHUNK // (buffers * rows * keys * like.element_size()), 1)


class Call:
    """One call on one part of its problem."""

    def __init__(self, part: Part, operands: Operands, scale: float) -> None:
        query, key, value, bias, *self.extra = operands
        self.part, self.scale = part, scale
        self.like = query.new_empty(0, dtype=accumulating(query.dtype))
        self.query = self.rows(query)
        self.key, self.value = columns_view(key, part.residues), columns_view(value, part.residues)
        self.bias = None if bias is None else bias.to(self.like.dtype) * LOG2E
        self.masks: dict[tuple[Pass, range], Additive] = {}

    def rows(self, x: Tensor) -> Tensor:
        return rows_view(x, self.part.residues, self.part.kv_heads)

    def additive(self, work: Pass, batch: Batch) -> Additive:
        """Masks of a pass. Those of the last one are kept: neighbors often share them."""
        key = (work, range(self.part.kv_heads)[batch[0]])
        if key not in self.masks:
            self.masks.clear()
            self.masks[key] = Additive(self.part, work, self.bias, key[1], self.like)
        return self.masks[key]

    def extra_chunks(
        self, batch: Batch, rows: int
    ) -> Iterator[tuple[slice, tuple[int, slice, int], list[Tensor]]]:
        """Additional tokens next to those of `rows` rows of tiles that see them.

        Yields rows, the place `[batch entry, tokens, key/value head]` of the tokens, and their keys and
        values `[1, tokens, dim]`.
        """
        key, value = self.extra
        if key is None or value is None:
            return
        entries = range(key.shape[0])[batch[1]]
        pairs = [(head, entry) for head in range(self.part.kv_heads)[batch[0]] for entry in entries]
        share = rows // len(pairs)
        for place, (head, entry) in enumerate(pairs):
            for token in range(0, key.shape[1], EXTRA):
                where = (entry, slice(token, token + EXTRA), head)
                some = [x[where].unsqueeze(0).to(self.like.dtype).contiguous() for x in (key, value)]
                step = chunk(1, some[0].shape[1], self.like, 2)
                for start in range(place * share, (place + 1) * share, step):
                    yield slice(start, min(start + step, (place + 1) * share)), where, some
