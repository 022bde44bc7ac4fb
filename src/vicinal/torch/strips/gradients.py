"""Gradients of one call while its passes add to them."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import repeat
from math import prod

import torch
from torch import Tensor

from ..backends.base import Grads, Needs, Operands
from ..composite import accumulating
from ..sections import Section, ranges
from . import fresh
from .arena import Like
from .call import columns_of
from .layout import covers
from .moves import Place
from .plan import Part
from .scores import Additive, Tally
from .sums import sinks

APART = 8 << 20
"""Bytes of the sums of gradients of a bias and of additional tokens where dtypes are too narrow to add up in,
but for one head."""


def sections(operands: Operands, needs: Needs) -> list[Section]:
    """Heads and batch entries of which those sums are made at a time."""
    batch, kv_heads = operands.key.shape[0], operands.key.shape[-2]
    bias, *tokens = (
        x.numel() if need and x is not None and x.dtype != accumulating(x.dtype) else 0
        for x, need in zip(operands[3:], needs[3:], strict=True)
    )
    # Of a head, and of a head of a batch entry.
    bias, token, room = bias // kv_heads, sum(tokens) // (batch * kv_heads), APART // 4
    found = []
    for heads in ranges(kv_heads, room // max(bias + token, 1)):
        entries = ranges(batch, (room // len(heads) - bias) // max(token, 1))
        found += [Section(some, heads, batch, kv_heads) for some in entries]
    return found


def gradients(
    operands: Operands, needs: Needs, parts: Sequence[Part], into: Grads | None = None
) -> "Gradients":
    """Those of all `parts` of a problem, in memory of their own or `into` tensors."""
    # Every key is in a part, and written once: nothing has to be zero before.
    held = sum(prod(len(x.columns) * x.groups for x in part.residues) for part in parts)
    written = held == prod(operands.key.shape[1:-2]) and all(map(covers, parts))
    if into is None:
        wanted = [x if need else None for x, need in zip(operands, needs, strict=True)]
        tokens = (
            None if x is None else _blank(x.shape, x.dtype, x.device, whole)
            for x, whole in zip(wanted[:3], (bool(parts), written, written), strict=True)
        )
        dtype = accumulating(operands.query.dtype)
        into = Grads(*tokens, *(None if x is None else x.new_zeros(x.shape, dtype=dtype) for x in wanted[3:]))
    elif not written:
        for x in into[1:3]:
            if x is not None:
                x.zero_()
    return Gradients(operands, into, written)


def _blank(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, written: bool) -> Tensor:
    """Memory that is `written` throughout, or else added to."""
    return (fresh.empty if written else fresh.zeros)(shape, dtype, device)


class Gradients:
    """Only what is needed exists. Keys and values are summed in the accumulating dtype; where they are not
    `fresh`, memory was zero before."""

    def __init__(self, operands: Operands, into: Grads, fresh: bool) -> None:
        self.operands, self.dtype, self.fresh = operands, accumulating(operands.query.dtype), fresh
        self.query, self.key, self.value, self.bias, self.extra_key, self.extra_value = into
        self.tally: Tally | None = None

    @property
    def slopes(self) -> bool:
        """Whether the gradient of the scores is wanted, and not only the weights."""
        return any(x is not None for x in (self.query, self.key, self.bias, self.extra_key))

    @cached_property
    def sums(self) -> "Gradients":
        """Those of keys and values alone."""
        found = copy(self)
        found.query = found.bias = found.extra_key = found.extra_value = None
        return found

    def columns(self, part: Part, batch: int) -> Iterator[tuple[Place | None, ...]]:
        """Where each slab adds the gradients of keys and values, to be taken to the end."""

        def each(x: Tensor | None, name: str) -> Iterator[Place | None]:
            if x is None:
                return repeat(None, len(part.slabs))
            return sinks(part, columns_of(part, x, batch), name, Like(self.dtype, x.device), self.fresh)

        return zip(each(self.key, "sums of keys"), each(self.value, "sums of values"), strict=True)

    def count(self, part: Part, mask: Additive, slopes: Tensor, kinds: Tensor) -> None:
        """Count gradients of scores towards the bias."""
        if self.bias is None:
            return
        if self.tally is None or self.tally.additive is not mask:
            self.finish(part)
            self.tally = Tally(mask, slopes)
        self.tally.add(slopes, kinds)

    def finish(self, part: Part) -> None:
        """Add what was counted to the gradient of the bias."""
        if self.tally is not None and self.bias is not None:
            heads = self.tally.additive.heads
            self.bias[heads.start * part.share : heads.stop * part.share] += self.tally.result()
        self.tally = None

    def result(self) -> Grads:
        found = (self.query, self.key, self.value, self.bias, self.extra_key, self.extra_value)
        return Grads(*(_like(x, operand) for x, operand in zip(found, self.operands, strict=True)))


def _like(x: Tensor | None, operand: Tensor | None) -> Tensor | None:
    return x if x is None or operand is None else x.to(operand.dtype)
