"""The window rule in Triton against `Axis`, element by element; run with TRITON_INTERPRET=1."""

import itertools
import sys

import torch
import triton
import triton.language as tl

from vicinal.triton.window import key_span, query_span, rule
from vicinal.window import Axis

NUMBERS = tl.constexpr(14)


@triton.jit
def tabulate(found, length, BOX: tl.constexpr, RULE: tl.constexpr, INVERSE: tl.constexpr):
    tile = tl.program_id(0)
    first = tl.program_id(1)
    found += (first * tl.num_programs(0) + tile) * NUMBERS * BOX
    lane = tl.arange(0, BOX)
    if INVERSE:
        span = key_span(tile, first, length, lane, BOX, RULE)
    else:
        span = query_span(tile, first, length, lane, BOX, RULE)
    pitch = RULE.period if INVERSE else RULE.dilation
    numbers = (
        span.index,
        span.inside,
        span.place,
        span.start,
        span.stop,
        span.low,
        span.high,
        span.full_low,
        span.full_high,
        span.origin,
        span.base,
        span.count,
        span.empty,
        pitch,
    )
    for place in tl.static_range(NUMBERS):
        tl.store(found + place * BOX + lane, numbers[place] + tl.zeros([BOX], tl.int32))


def check(axis, inverse, box):
    rules = rule(axis)
    groups = axis.dilation if inverse else rules.period
    rows_of_all = axis.length if inverse else axis.outputs
    touched = axis.queries if inverse else axis.keys
    met = []
    tiles = -(-(-(-rows_of_all // groups)) // box)
    found = torch.zeros(groups, tiles, NUMBERS.value, box, dtype=torch.int32)
    tabulate[(tiles, groups)](found, axis.length, box, rules, inverse)
    for first in range(groups):
        for tile in range(tiles):
            (
                index,
                inside,
                place,
                start,
                stop,
                low,
                high,
                full_low,
                full_high,
                origin,
                base,
                count,
                empty,
                pitch,
            ) = found[first, tile].tolist()
            rows = [row for row, is_inside in zip(index, inside, strict=True) if is_inside]
            assert empty[0] == (not rows), axis
            met += rows
            if not rows:
                continue
            columns = range(origin[0], origin[0] + pitch[0] * count[0], pitch[0])
            for row, at, left, right in zip(index, place, start, stop, strict=True):
                assert list(columns[left:right]) == list(touched(row)), (axis, inverse, row)
                assert left <= right
                assert at == (row if inverse else row * axis.output_stride) // axis.dilation
            for column in range(count[0]):
                token = columns[column] * (axis.output_stride if inverse else 1)
                step = rules.step if inverse else 1
                assert token // axis.dilation == base[0] + column * step
            assert (low[0], high[0]) == (min(start), max(stop)) or low[0] >= high[0]
            assert (full_low[0], full_high[0]) == (max(start), min(stop)), (axis, inverse, first, tile)
    assert sorted(met) == list(range(rows_of_all)), axis


def axes(longest):
    for length in range(1, longest + 1):
        for size, dilation in itertools.product(range(1, length + 1), range(1, length + 1)):
            if size * dilation > length:
                continue
            for stride, causal, output_stride in itertools.product(
                range(1, size + 1), (False, True), (1, 2, 3, 4, 6)
            ):
                yield Axis(length, size, stride, dilation, causal, output_stride)


if __name__ == "__main__":
    count = 0
    for axis in axes(int(sys.argv[1])):
        for inverse in (False, True):
            check(axis, inverse, (2, 4)[count % 2])
        count += 1
    print(count, "axes")
