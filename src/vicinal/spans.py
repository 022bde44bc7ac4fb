"""Windows as tables: the rows of one dilation group and the interval of columns that each row touches."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from .window import Axis


class Span(NamedTuple):
    """One dilation group of an axis: `rows[i]` touches `columns[starts[i]:stops[i]]`; no table decreases."""

    rows: range
    columns: range
    starts: tuple[int, ...]
    stops: tuple[int, ...]


@lru_cache(256)
def forward(axis: Axis) -> tuple[Span, ...]:
    """Rows are outputs, columns are the keys they see; groups that hold no output have no rows."""
    return tuple(
        _span(axis.group(g), range(g, axis.length, axis.dilation), axis.keys) for g in range(axis.dilation)
    )


@lru_cache(256)
def inverse(axis: Axis) -> tuple[Span, ...]:
    """Rows are keys, columns are the outputs that see them; a key may be seen by none."""
    return tuple(
        _span(range(g, axis.length, axis.dilation), axis.group(g), axis.queries) for g in range(axis.dilation)
    )


@lru_cache(256)
def windows(axis: Axis) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First key and number of keys of every output."""
    seen = [axis.keys(output) for output in range(axis.outputs)]
    return tuple(keys[0] for keys in seen), tuple(map(len, seen))


@lru_cache(256)
def relative(axis: Axis) -> tuple[int, ...]:
    """Entry of the relative position table that each output's slot 0 uses; slot `s` uses one `s` later."""
    first = windows(axis)[0]
    return tuple(
        (first[output] - output * axis.output_stride) // axis.dilation + axis.size - 1
        for output in range(axis.outputs)
    )


def _span(rows: range, columns: range, touched: Callable[[int], range]) -> Span:
    starts: list[int] = []
    stops: list[int] = []
    for row in rows:
        seen = touched(row)
        # An unseen key keeps the tables monotone with an empty interval where its neighbor ended.
        start = columns.index(seen[0]) if seen else stops[-1] if stops else 0
        starts.append(start)
        stops.append(start + len(seen))
    return Span(rows, columns, tuple(starts), tuple(stops))
