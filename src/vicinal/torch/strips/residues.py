"""Dilation groups as batches: strided views in which the keys of a window are neighbors."""

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ... import spans
from ...window import Axis


class Residue(NamedTuple):
    """Dilation groups of one axis, evenly spaced, that share one table of windows.

    Row `i` of a group sees `columns[starts[i]:stops[i]]`; its first key uses entry `entries[i]` of a
    relative position table.
    """

    groups: int
    rows: range
    row_hop: int
    columns: range
    column_hop: int
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    entries: tuple[int, ...]


@lru_cache(256)
def residues(axis: Axis) -> tuple[Residue, ...]:
    """The groups that hold an output; a key outside them is seen by none."""
    entry, groups = spans.relative(axis), spans.forward(axis)
    found: list[Residue] = []
    for output in range(min(axis.period, axis.outputs)):
        span = groups[output * axis.output_stride % axis.dilation]
        entries = tuple(entry[row] for row in span.rows)
        alone = Residue(1, span.rows, 1, span.columns, 0, span.starts, span.stops, entries)
        joined = _join(found[-1], alone) if found else None
        if joined is None:
            found.append(alone)
        else:
            found[-1] = joined
    return tuple(found)


def _join(many: Residue, one: Residue) -> Residue | None:
    """`many` with the group of `one` added, or None where it breaks the spacing or has another table."""
    hop = one.columns.start - many.columns.start if many.groups == 1 else many.column_hop
    same = (many.starts, many.stops, many.entries) == (one.starts, one.stops, one.entries)
    even = one.columns.start == many.columns.start + many.groups * hop and hop > 0
    if not (same and even and len(many.columns) == len(one.columns)):
        return None
    return many._replace(groups=many.groups + 1, column_hop=hop)


def columns_view(x: Tensor, parts: tuple[Residue, ...]) -> Tensor:
    """`[batch, *lengths, kv_heads, dim]` as `[kv_heads, batch, *groups, *columns, dim]`."""
    steps, rank = x.stride(), len(parts)
    per_axis = list(zip(parts, steps[1 : 1 + rank], strict=True))
    sizes = (
        x.shape[-2],
        x.shape[0],
        *(p.groups for p in parts),
        *(len(p.columns) for p in parts),
        x.shape[-1],
    )
    strides = (
        steps[-2],
        steps[0],
        *(p.column_hop * step for p, step in per_axis),
        *(p.columns.step * step for p, step in per_axis),
        steps[-1],
    )
    return x.as_strided(
        sizes, strides, x.storage_offset() + sum(p.columns.start * step for p, step in per_axis)
    )


def rows_view(x: Tensor, parts: tuple[Residue, ...], kv_heads: int) -> Tensor:
    """`[batch, *outputs, heads, dim]` as `[kv_heads, batch, *groups, heads // kv_heads, *rows, dim]`."""
    steps, rank = x.stride(), len(parts)
    share = x.shape[-2] // kv_heads
    per_axis = list(zip(parts, steps[1 : 1 + rank], strict=True))
    sizes = (
        kv_heads,
        x.shape[0],
        *(p.groups for p in parts),
        share,
        *(len(p.rows) for p in parts),
        x.shape[-1],
    )
    strides = (
        share * steps[-2],
        steps[0],
        *(p.row_hop * step for p, step in per_axis),
        steps[-2],
        *(p.rows.step * step for p, step in per_axis),
        steps[-1],
    )
    return x.as_strided(sizes, strides, x.storage_offset() + sum(p.rows.start * step for p, step in per_axis))
