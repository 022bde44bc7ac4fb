"""The window rule in Triton against `Axis`, element by element: needs TRITON_INTERPRET=1."""

import math
from itertools import product

import torch
import triton
import triton.language as tl

from tests.triton import interpreting
from vicinal import Axis
from vicinal.triton.window import key_span, query_span, rule, viewers, window

LONGEST = 11
NUMBERS = tl.constexpr(14)


@triton.jit
def rules(found, tokens, COUNT: tl.constexpr, BLOCK: tl.constexpr, RULE: tl.constexpr):
    flat = tl.arange(0, BLOCK)
    many = tl.load(tokens + flat, mask=flat < COUNT, other=1)
    first = tl.load(tokens + COUNT + flat, mask=flat < COUNT, other=0)
    keys, queries = window(first, many, RULE), viewers(first, many, RULE)
    tl.store(found + flat, keys.start, mask=flat < COUNT)
    tl.store(found + COUNT + flat, keys.stop, mask=flat < COUNT)
    tl.store(found + 2 * COUNT + flat, queries.start, mask=flat < COUNT)
    tl.store(found + 3 * COUNT + flat, queries.stop, mask=flat < COUNT)


@triton.jit
def spans(
    found, length, BOX: tl.constexpr, RULE: tl.constexpr, INVERSE: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    tile = tl.program_id(0)
    first = tl.program_id(1)
    found += (first * tl.num_programs(0) + tile) * NUMBERS * BOX
    lane = tl.arange(0, BOX)
    if INVERSE:
        span = key_span(tile, first, length, lane, BOX, RULE, SHIFT)
    else:
        span = query_span(tile, first, length, lane, BOX, RULE)
    rows = (span.index, span.inside, span.place, span.start, span.stop)
    limits = (span.low, span.high, span.full_low, span.full_high)
    numbers = (*rows, *limits, span.origin, span.base, span.count, span.tokens, span.empty)
    for place in tl.static_range(NUMBERS):
        tl.store(found + place * BOX + lane, numbers[place] + tl.zeros([BOX], tl.int32))


def check_rule(size, stride, causal, clip=False):
    """Every token of every length, without dilation: what the rest of the arithmetic rests on."""
    shortest = 1 if clip else size
    pairs = [(many, at) for many in range(shortest, LONGEST + 1) for at in range(many)]
    tokens = torch.tensor(pairs, dtype=torch.int32).T.contiguous()
    found = torch.full((4, len(pairs)), -1, dtype=torch.int32)
    block = triton.next_power_of_2(len(pairs))
    rules[(1,)](found, tokens, len(pairs), block, rule(Axis(LONGEST, size, stride, 1, causal), clip))
    for (many, at), (start, stop, first, last) in zip(pairs, found.T.tolist(), strict=True):
        axis = Axis(many, min(size, many), min(stride, many), 1, causal)
        assert range(start, stop) == axis.keys(at), (axis, at)
        assert range(first, last) == axis.queries(at), (axis, at)


def check_spans(axis, inverse, box, shift=0):
    """Every row of every group of an axis, and what its tiles read."""
    made = rule(axis)
    groups, total = (axis.dilation, axis.length) if inverse else (made.period, axis.outputs)
    tiles = math.ceil((math.ceil(total / groups) + shift) / box)
    found = torch.zeros(groups, tiles, NUMBERS.value, box, dtype=torch.int32)
    spans[(tiles, groups)](found, axis.length, box, made, inverse, shift)
    met = []
    for numbers in found.flatten(0, 1).tolist():
        met += check_tile(axis, made, inverse, numbers)
    assert sorted(met) == list(range(total)), axis


def check_tile(axis, made, inverse, numbers):
    """Rows of a tile."""
    index, inside, place, start, stop, *scalars = numbers
    low, high, full_low, full_high, origin, base, count, tokens, empty = (number[0] for number in scalars)
    rows = [row for row, is_inside in zip(index, inside, strict=True) if is_inside]
    assert empty == (not rows), axis
    if not rows:
        return rows
    pitch = made.period if inverse else made.dilation
    columns = range(origin, origin + pitch * count, pitch)
    for row, at, left, right in zip(index, place, start, stop, strict=True):
        assert 0 <= left <= right
        assert list(columns[left:right]) == list((axis.queries if inverse else axis.keys)(row)), (axis, row)
        assert at == row * (1 if inverse else axis.output_stride) // axis.dilation
    for number, column in enumerate(columns):
        token, step = (column * axis.output_stride, made.step) if inverse else (column, 1)
        assert token // axis.dilation == base + number * step, axis
    residue = rows[0] * (1 if inverse else axis.output_stride) % axis.dilation
    assert tokens == len(range(residue, axis.length, axis.dilation))
    assert (low, high) == (start[0], stop[-1]), axis
    assert (full_low, full_high) == (max(start), min(stop)), axis
    return rows


def axes():
    """Axes in which dilation, output stride, stride and raggedness meet in many ways."""
    for length, size, dilation, output_stride in product((1, 7, 13), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 6)):
        if size * dilation <= length:
            for stride, causal in product({1, size}, (False, True)):
                yield Axis(length, size, stride, dilation, causal, output_stride)


if __name__ == "__main__":
    interpreting.start()
    for number in range(1, LONGEST + 1):
        for step, causal in product(range(1, number + 1), (False, True)):
            check_rule(number, step, causal)
            check_rule(number, step, causal, clip=True)
    for axis in axes():
        check_spans(axis, False, 2)
        check_spans(axis, True, 4)
        check_spans(axis, True, 4, 3)
