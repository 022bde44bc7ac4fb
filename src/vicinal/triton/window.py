"""The window rule in Triton, in both directions, and what a tile of rows reads of one axis.

All of it is arithmetic in group coordinates: tokens of one dilation group, numbered from its first.
`Axis.group` says which outputs share it; their positions in it start at `base` and lie `step` apart.
"""

# pyright: reportAttributeAccessIssue=false
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..window import Axis

NO_SHIFT = tl.constexpr(0)


@dataclass(frozen=True)
class Rule:
    """The numbers of an `Axis` that kernels are compiled for; its length stays a runtime number.

    `period` outputs lie between neighbors of one dilation group, whose positions in it are `step` apart.
    Output `g // (dilation // period) * unit % period` is the first of group `g`. `clipped` says that a group
    may hold fewer keys than a window, which then is all of them.
    """

    size: int
    stride: int
    dilation: int
    causal: bool
    output_stride: int
    period: int
    step: int
    unit: int
    clipped: bool


def rule(axis: Axis, clip: bool = False) -> Rule:
    """`axis` without its length; with `clip`, windows are cut to axes shorter than `size`, if not dilated."""
    shared = gcd(axis.dilation, axis.output_stride)
    period, step = axis.dilation // shared, axis.output_stride // shared
    unit = pow(step, -1, period) if period > 1 else 0
    numbers = (axis.size, axis.stride, axis.dilation, axis.causal, axis.output_stride)
    return Rule(*numbers, period, step, unit, clip and axis.dilation == 1)


class Interval(NamedTuple):
    """`[start, stop)` of each element of a block."""

    start: Any
    stop: Any


class Span(NamedTuple):
    """One axis of a tile of rows, and of the boxes of columns that it visits.

    Args:
        index: where the rows lie in their tensors; rows past the end repeat the last one.
        inside: which rows are not past the end.
        place: positions of the rows in their group.
        start, stop: columns that each row sees.
        low, high: columns that some row sees.
        full_low, full_high: columns that every row sees.
        origin: where column 0 lies in its tensors.
        base: position of column 0 in the group.
        count: columns there are.
        tokens: keys of the group.
        empty: whether the tile holds no row.
    """

    index: Any
    inside: Any
    place: Any
    start: Any
    stop: Any
    low: Any
    high: Any
    full_low: Any
    full_high: Any
    origin: Any
    base: Any
    count: Any
    tokens: Any
    empty: Any


@triton.jit
def window(position, tokens, RULE: tl.constexpr):
    """Keys that the query at `position` sees in a group of `tokens`."""
    shared = position // RULE.stride * RULE.stride
    if RULE.causal:
        start = tl.maximum(tl.minimum(shared + RULE.stride, tokens) - RULE.size, 0)
        return Interval(start, position + 1)
    else:
        leader = tl.minimum(shared + RULE.stride // 2, tokens - 1)
        last = tokens - RULE.size
        if RULE.clipped:
            last = tl.maximum(last, 0)
        start = tl.minimum(tl.maximum(leader - RULE.size // 2, 0), last)
        stop = start + RULE.size
        if RULE.clipped:
            stop = tl.minimum(stop, tokens)
        return Interval(start, stop)


@triton.jit
def viewers(key, tokens, RULE: tl.constexpr):
    """Positions whose window holds `key`: the inverse of `window`."""
    if RULE.causal:
        start = key
        stop = ((key + RULE.size - RULE.stride) // RULE.stride + 1) * RULE.stride
    else:
        after = tl.cdiv(key - RULE.size + 1 + RULE.size // 2 - RULE.stride // 2, RULE.stride) * RULE.stride
        start = tl.where(key < RULE.size, 0, after)
        stop = ((key + RULE.size // 2 - RULE.stride // 2) // RULE.stride + 1) * RULE.stride
    return Interval(start, tl.minimum(tl.where(key >= tokens - RULE.size, tokens, stop), tokens))


@triton.jit
def query_tiles(length, BOX: tl.constexpr, RULE: tl.constexpr):
    """Tiles of the largest group of outputs."""
    return tl.cdiv(tl.cdiv(tl.cdiv(length, RULE.output_stride), RULE.period), BOX)


@triton.jit
def key_tiles(length, BOX: tl.constexpr, RULE: tl.constexpr, SHIFT: tl.constexpr = NO_SHIFT):
    """Tiles of the largest group of keys, the first of which begins `SHIFT` rows before it."""
    return tl.cdiv(tl.cdiv(length, RULE.dilation) + SHIFT, BOX)


@triton.jit
def query_span(tile, first, length, lane, BOX: tl.constexpr, RULE: tl.constexpr):
    """Rows are outputs of the group whose first output is `first`; columns are keys."""
    token = first * RULE.output_stride
    residue = token % RULE.dilation
    tokens = tl.cdiv(length - residue, RULE.dilation)
    base = token // RULE.dilation
    rows = tl.cdiv(tl.cdiv(length, RULE.output_stride) - first, RULE.period)
    row = tile * BOX + lane
    at = tl.minimum(row, rows - 1)
    place = base + at * RULE.step
    seen = window(place, tokens, RULE)
    head = window(base + tl.minimum(tile * BOX, rows - 1) * RULE.step, tokens, RULE)
    tail = window(base + tl.minimum(tile * BOX + BOX - 1, rows - 1) * RULE.step, tokens, RULE)
    return Span(
        index=first + at * RULE.period,
        inside=row < rows,
        place=place,
        start=seen.start,
        stop=seen.stop,
        low=head.start,
        high=tail.stop,
        full_low=tail.start,
        full_high=head.stop,
        origin=residue,
        base=0,
        count=tokens,
        tokens=tokens,
        empty=tile * BOX >= rows,
    )


@triton.jit
def _viewing_rows(key, tokens, base, rows, RULE: tl.constexpr):
    """`viewers`, counted in outputs of the group; its positions start at `base`, which is below `step`."""
    seen = viewers(key, tokens, RULE)
    start = (seen.start - base + RULE.step - 1) // RULE.step
    stop = (seen.stop - 1 - base + RULE.step) // RULE.step
    return Interval(tl.minimum(start, rows), tl.minimum(stop, rows))


@triton.jit
def key_span(
    tile, residue, length, lane, BOX: tl.constexpr, RULE: tl.constexpr, SHIFT: tl.constexpr = NO_SHIFT
):  # fmt: skip
    """Rows are keys of the group `residue`; columns are the outputs that see them.

    The first tile begins `SHIFT` rows before the group, which is less than a tile.
    """
    tokens = tl.cdiv(length - residue, RULE.dilation)
    shared: tl.constexpr = RULE.dilation // RULE.period
    first = residue // shared * RULE.unit % RULE.period
    base = first * RULE.output_stride // RULE.dilation
    columns = tl.maximum(tl.cdiv(tl.cdiv(length, RULE.output_stride) - first, RULE.period), 0)
    if shared > 1:
        columns = tl.where(residue % shared == 0, columns, 0)
    start = tile * BOX - SHIFT
    row = start + lane
    inside = row < tokens
    place = tl.minimum(row, tokens - 1)
    low = tl.minimum(start, tokens - 1)
    if SHIFT > 0:
        inside = inside & (row >= 0)
        place = tl.maximum(place, 0)
        low = tl.maximum(low, 0)
    seen = _viewing_rows(place, tokens, base, columns, RULE)
    head = _viewing_rows(low, tokens, base, columns, RULE)
    tail = _viewing_rows(tl.minimum(start + BOX - 1, tokens - 1), tokens, base, columns, RULE)
    return Span(
        index=residue + place * RULE.dilation,
        inside=inside,
        place=place,
        start=seen.start,
        stop=seen.stop,
        low=head.start,
        high=tail.stop,
        full_low=tail.start,
        full_high=head.stop,
        origin=first,
        base=base,
        count=columns,
        tokens=tokens,
        empty=start >= tokens,
    )


@triton.jit
def hide(scores, first, lane, span, BOX: tl.constexpr, ALWAYS: tl.constexpr):
    """Push the scores of columns `first + lane` that a row does not see far below every other.

    A box that all rows see skips the work, unless ALWAYS, which saves the test where few boxes are full.
    """
    if ALWAYS:
        if BOX > 1:
            scores = _hidden(scores, first + lane, span)
    elif (first < span.full_low) | (first + BOX > span.full_high):
        scores = _hidden(scores, first + lane, span)
    return scores


@triton.jit
def visible(column, span):
    """`[rows, columns]` whether a row sees a column."""
    inside = (column[None, :] - span.start[:, None]).to(tl.uint32, bitcast=True)
    return inside < (span.stop - span.start)[:, None].to(tl.uint32, bitcast=True)


@triton.jit
def _hidden(scores, column, span):
    return tl.where(visible(column, span), scores, -1.0e30)
