"""Derivatives that keep weights in memory, of some batch entries and heads at a time."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from .composite import accumulating

TOKENS, ROWS, BIAS = -2, -1, 0
"""Where tensors have their heads, counted from the end if negative; a bias has them first, and no batch."""
OPERANDS = TOKENS, TOKENS, TOKENS, BIAS, TOKENS, TOKENS
RESULTS = TOKENS, ROWS
"""Output and log-sum-exp."""
WEIGHTS = {"cpu": 6 << 20, "cuda": 64 << 20}
"""Bytes of the weights of a section, of which about ten tensors are held at a time. Other devices count as
CUDA."""

Tensors = Sequence[Tensor | None]


def apply(
    compute: Callable[..., Tensors],
    tensors: Tensors,
    places: Sequence[int],
    results: Sequence[int],
    slots: int,
) -> Tensors:
    """What `compute` returns for `tensors`, put together of what it returns for sections of them: one
    key/value head of one batch entry, or as many as there is room for the weights of.

    The first two are query and key, whose rows have `slots` weights each. Tensors have their heads at
    `places`, and results at `results`; what belongs to a bias is summed over the batch.
    """
    query, key = tensors[:2]
    assert query is not None
    assert key is not None
    batch, kv_heads = key.shape[0], key.shape[-2]
    weights = query.shape[:-1].numel() * slots * accumulating(query.dtype).itemsize
    limit = WEIGHTS.get(query.device.type, WEIGHTS["cuda"])
    if weights <= limit:
        return compute(*tensors)
    most, joined = limit * batch * kv_heads // weights, []
    for entries, heads in product(ranges(batch, most // kv_heads), ranges(kv_heads, most)):
        section = Section(entries, heads, batch, kv_heads)
        made = compute(*(section.of(x, place) for x, place in zip(tensors, places, strict=True)))
        joined = joined or [section.room(x, place) for x, place in zip(made, results, strict=True)]
        for whole, x, place in zip(joined, made, results, strict=True):
            sink = section.of(whole, place)
            if sink is not None and x is not None:
                sink.add_(x) if place == BIAS else sink.copy_(x)
    return joined


def ranges(extent: int, most: int) -> list[range]:
    """Parts of at most so many, or one."""
    step = -(-extent // -(-extent // max(most, 1)))
    return [range(start, min(start + step, extent)) for start in range(0, extent, step)]


class Section(NamedTuple):
    """Some of a batch, and of key/value heads."""

    entries: range
    heads: range
    batch: int
    kv_heads: int

    def of(self, x: Tensor | None, place: int) -> Any:
        """A view of its part of a tensor that has heads, as many as keys or more, at `place`."""
        if x is None:
            return None
        share = x.shape[place] // self.kv_heads
        x = x.narrow(place, self.heads.start * share, len(self.heads) * share)
        return x if place == BIAS else x.narrow(0, self.entries.start, len(self.entries))

    def room(self, x: Tensor | None, place: int) -> Tensor | None:
        """Zeros for all sections, of which `x` is this one's part."""
        if x is None:
            return None
        shape = list(x.shape)
        shape[place] = shape[place] // len(self.heads) * self.kv_heads
        if place != BIAS:
            shape[0] = self.batch
        return x.new_zeros(shape)
