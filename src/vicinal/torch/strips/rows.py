"""Rows of a strided tensor, read in any order: worked out once for a layout, repeated for every tensor that
has it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod

import torch
from torch import Tensor

from .arena import Like, take
from .moves import Place

KEPT = 1 << 18
"""Numbers of rows that are kept for all passes over one layout; more are added up again in each pass."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """Row `i` of a tensor starts `step * i` elements in, `rows` of them reach its end.

    The rows wanted are `outer + inner`, broadcast, and then `tail` times row 0; `index` holds them where
    they are kept.
    """

    rows: int
    step: int
    outer: Tensor
    inner: Tensor
    tail: int
    index: Tensor | None

    @cached_property
    def count(self) -> int:
        return prod(_broadcast(self.outer, self.inner)) + self.tail


def lookup(x: Tensor, outer: Sequence[Tensor], inner: Sequence[Tensor], tail: int, passes: int) -> Lookup:
    """Rows of `x` that start at sums of elements, multiples of its strides; `passes` like this one are made
    of a layout."""
    first, second, step = _sum(outer), _sum(inner), gcd(*x.stride()[:-1]) or 1
    rows = int(first.max() + second.max()) // step + 1
    found = Lookup(rows, step, first // step, second // step, tail, None)
    if found.count * passes > KEPT:
        return found
    index = torch.empty(found.count, dtype=torch.int64, device=first.device)
    return replace(found, index=_fill(found, index))


def listed(index: Tensor, step: int) -> Lookup:
    """Rows by number, `step` elements apart."""
    return Lookup(int(index.max()) + 1, step, index, index.new_zeros(1), 0, index)


def read(found: Lookup, place: Place, into: Tensor) -> None:
    """Write the rows of a place to `into` `[rows, dim]`, in its dtype."""
    x, dim, index = place.tensor, place.shape[-1], found.index
    if index is None:
        index = _fill(found, take("index", (found.count,), Like(torch.int64, x.device)))
    source = x.as_strided((found.rows, dim), (found.step, place.strides[-1]), place.offset)
    if x.dtype == into.dtype:
        torch.index_select(source, 0, index, out=into)
        return
    narrow = take("narrow", (found.count, dim), Like(x.dtype, x.device))
    into.copy_(torch.index_select(source, 0, index, out=narrow))


def among(table: Tensor, ndim: int, *places: int) -> Tensor:
    """`table` with its axes at `places`, those below zero counted from the end, of `ndim`."""
    shape = [1] * ndim
    for place, extent in zip(places, table.shape, strict=True):
        shape[place] = extent
    return table.view(shape)


def _sum(tables: Sequence[Tensor]) -> Tensor:
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total


def _fill(found: Lookup, index: Tensor) -> Tensor:
    size = found.count - found.tail
    torch.add(found.outer, found.inner, out=index[:size].view(_broadcast(found.outer, found.inner)))
    if found.tail:
        index[size:].zero_()
    return index


def _broadcast(one: Tensor, other: Tensor) -> tuple[int, ...]:
    """The shape of a sum of tensors of as many axes."""
    return tuple(map(max, one.shape, other.shape))
