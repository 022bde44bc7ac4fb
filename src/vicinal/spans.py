"""Windows as tables: the rows of one dilation group and the interval of columns that each row touches."""

from bisect import bisect_right
from functools import lru_cache
from operator import sub
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
    found: list[Span] = []
    for residue in range(axis.dilation):
        rows, columns = axis.group(residue), range(residue, axis.length, axis.dilation)
        found.append(Span(rows, columns, *axis.seen(rows)))
    return tuple(found)


@lru_cache(256)
def inverse(axis: Axis) -> tuple[Span, ...]:
    """Rows are keys, columns are the outputs that see them; a key may be seen by none.

    An output sees the keys from its start to before its stop, and neither ever decreases. So the outputs that
    see a key are those that started by it less those that stopped, and are empty in place if none does.
    """
    found: list[Span] = []
    for rows, columns, starts, stops in forward(axis):
        first = tuple([bisect_right(stops, key) for key in range(len(columns))])
        last = tuple([bisect_right(starts, key) for key in range(len(columns))])
        found.append(Span(columns, rows, first, last))
    return tuple(found)


@lru_cache(256)
def windows(axis: Axis) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First key and number of keys of every output."""
    first, count = [0] * axis.outputs, [0] * axis.outputs
    for rows, columns, starts, stops in forward(axis):
        mine = slice(rows.start, None, rows.step)
        first[mine] = map(columns.__getitem__, starts)
        count[mine] = map(sub, stops, starts)
    return tuple(first), tuple(count)


@lru_cache(256)
def relative(axis: Axis) -> tuple[int, ...]:
    """Entry of the relative position table that each output's slot 0 uses; slot `s` uses one `s` later."""
    least = axis.size - 1
    tokens = range(0, axis.length, axis.output_stride)
    return tuple(
        [least + (key - token) // axis.dilation for key, token in zip(windows(axis)[0], tokens, strict=True)]
    )
