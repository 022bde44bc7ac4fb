"""Dilation groups as batches: strided views in which the keys of a window are neighbors."""

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ...window import Axis


class Residue(NamedTuple):
    """Dilation groups of one axis, evenly spaced, whose windows are the same, counted in their columns."""

    axis: Axis
    groups: int
    rows: range
    row_hop: int
    columns: range
    column_hop: int

    @property
    def positions(self) -> range:
        """Where in its group the token of each row is."""
        return self.axis.positions(self.rows)


@lru_cache(256)
def residues(axis: Axis) -> tuple[Residue, ...]:
    """The groups that hold an output; a key outside them is seen by none."""
    found: list[Residue] = []
    for output in range(min(axis.period, axis.outputs)):
        group = output * axis.output_stride % axis.dilation
        columns = range(group, axis.length, axis.dilation)
        alone = Residue(axis, 1, axis.group(group), 1, columns, 0)
        joined = _join(found[-1], alone) if found else None
        if joined is None:
            found.append(alone)
        else:
            found[-1] = joined
    return tuple(found)


def _join(many: Residue, one: Residue) -> Residue | None:
    """`many` with the group of `one` added, or None where it breaks the spacing or has other windows."""
    hop = one.columns.start - many.columns.start if many.groups == 1 else many.column_hop
    same = many.positions == one.positions and len(many.columns) == len(one.columns)
    if not same or one.columns.start != many.columns.start + many.groups * hop or hop <= 0:
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
