"""Tiles of rows, the boxes of columns they visit, and their addresses: what every kernel here walks over.

An input of fewer than three axes has leading axes of length 1.
"""

# pyright: reportAttributeAccessIssue=false
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .window import hide, key_span, key_tiles, query_span, query_tiles, visible, window

# How documents lie: their axes, whether they are packed, and whether programs fill what lies outside of them.
ENTRIES = tl.constexpr((3, False, False))


class Point(NamedTuple):
    """One number, or block of numbers, per axis."""

    t: Any
    h: Any
    w: Any


class Place(NamedTuple):
    """Where a batch entry or a document lies.

    Args:
        entry: its number.
        lengths: its extents.
        frame, outs: extents that lay out tensors over tokens, and those over outputs.
        tokens, rows: steps along the first axis of these tensors to its first token, and to its first output.
        first_token, first_row: tokens before it in a contiguous tensor, and outputs.
    """

    entry: Any
    lengths: Any
    frame: Any
    outs: Any
    tokens: Any
    rows: Any
    first_token: Any
    first_row: Any


class Tile(NamedTuple):
    """The rows of one program, one head and one batch entry or document."""

    batch: Any
    head: Any
    t: Any
    h: Any
    w: Any
    place: Any


class Slots(NamedTuple):
    """Slot of each column in the window of each row, and whether the row sees the column."""

    number: Any
    seen: Any


@triton.jit
def lanes(COUNT: tl.constexpr, BOX: tl.constexpr):
    """Coordinates in `BOX` of `COUNT` elements, last axis fastest; those past it overrun the first axis."""
    flat = tl.arange(0, COUNT)
    return Point(flat // (BOX[1] * BOX[2]), flat // BOX[2] % BOX[1], flat % BOX[2])


@triton.jit
def _group_tile(number, tiles, groups):
    """Tile, dilation group, and what is left of a program's number."""
    return Point(number % tiles, number // tiles % groups, number // tiles // groups)


@triton.jit
def row_of(table, number):
    """A row of a table of `documents.rows`."""
    return table + tl.cast(number, tl.int64) * 16


@triton.jit
def number_at(table):
    """A number of a table, which stays in the cache for the next launch: all else waits for it."""
    return tl.load(table, eviction_policy="evict_last")


@triton.jit
def place_of(
    table, number, T, H, W, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    LAYOUT: tl.constexpr,
):  # fmt: skip
    """The place of batch entry `number`, or of the document in that row of a `table`.

    `T`, `H`, `W` are extents of the entries of a batch.
    """
    frame = Point(T, H, W)
    if table is None:
        entry = tl.cast(number, tl.int64)
        lengths = frame
    else:
        row = row_of(table, number)
        entry = number_at(row).to(tl.int64)
        # Known numbers of missing axes save arithmetic.
        t = 1
        h = 1
        if LAYOUT[0] > 2:
            t = number_at(row + 4)
        if LAYOUT[0] > 1:
            h = number_at(row + 5)
        lengths = Point(t, h, number_at(row + 6))
    if LAYOUT[1]:
        outs = output_extents(lengths.t, lengths.h, lengths.w, T_RULE, H_RULE, W_RULE)
        tokens, rows = number_at(row + 7).to(tl.int64), number_at(row + 8).to(tl.int64)
        return Place(entry, lengths, lengths, outs, tokens, rows, tokens, rows)
    else:
        outs = output_extents(T, H, W, T_RULE, H_RULE, W_RULE)
        first_token, first_row = entry * T * H * W, entry * outs.t * outs.h * outs.w
        return Place(entry, lengths, frame, outs, entry, entry, first_token, first_row)


@triton.jit
def _axis_tile(number, length, BOX: tl.constexpr, RULE: tl.constexpr, INVERSE: tl.constexpr):
    """Tile and dilation group on one axis, and what is left of a program's number."""
    if INVERSE:
        return _group_tile(number, key_tiles(length, BOX, RULE), RULE.dilation)
    else:
        return _group_tile(number, query_tiles(length, BOX, RULE), RULE.period)


@triton.jit
def _known_tile(row, AXIS: tl.constexpr, RULE: tl.constexpr, INVERSE: tl.constexpr, LAYOUT: tl.constexpr):
    """Tile and dilation group on one axis as a table has them."""
    GROUPS: tl.constexpr = RULE.dilation if INVERSE else RULE.period
    if AXIS + LAYOUT[0] >= 3:
        number = number_at(row + 1 + AXIS)
        return Point(number // GROUPS, number % GROUPS, number)
    else:
        return Point(0, 0, 0)


@triton.jit
def _axis_span(at, length, lane, BOX: tl.constexpr, RULE: tl.constexpr, INVERSE: tl.constexpr):
    """Rows of a tile of `_axis_tile`."""
    if INVERSE:
        return key_span(at.t, at.h, length, lane, BOX, RULE)
    else:
        return query_span(at.t, at.h, length, lane, BOX, RULE)


@triton.jit
def _tile(
    number, heads, T, H, W, table, ROWS: tl.constexpr, COUNT: tl.constexpr,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    HEADS_FIRST: tl.constexpr, LAYOUT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    lane = lanes(COUNT, ROWS)
    lengths = Point(T, H, W)
    head = number % heads
    if table is not None:
        place = place_of(table, number // heads, T, H, W, T_RULE, H_RULE, W_RULE, LAYOUT)
        lengths = place.lengths
        row = row_of(table, number // heads)
        t = _known_tile(row, 0, T_RULE, INVERSE, LAYOUT)
        h = _known_tile(row, 1, H_RULE, INVERSE, LAYOUT)
        w = _known_tile(row, 2, W_RULE, INVERSE, LAYOUT)
    else:
        if HEADS_FIRST:
            number = number // heads
        w = _axis_tile(number, lengths.w, ROWS[2], W_RULE, INVERSE)
        h = _axis_tile(w.w, lengths.h, ROWS[1], H_RULE, INVERSE)
        t = _axis_tile(h.w, lengths.t, ROWS[0], T_RULE, INVERSE)
        entry = t.w
        if not HEADS_FIRST:
            head = t.w % heads
            entry = t.w // heads
        place = place_of(table, entry, T, H, W, T_RULE, H_RULE, W_RULE, LAYOUT)
    return Tile(
        place.entry,
        head,
        _axis_span(t, lengths.t, lane.t, ROWS[0], T_RULE, INVERSE),
        _axis_span(h, lengths.h, lane.h, ROWS[1], H_RULE, INVERSE),
        _axis_span(w, lengths.w, lane.w, ROWS[2], W_RULE, INVERSE),
        place,
    )


@triton.jit
def query_tile(
    number, heads, T, H, W, ROWS: tl.constexpr, COUNT: tl.constexpr,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr, HEADS_FIRST: tl.constexpr,
    table=None, LAYOUT: tl.constexpr = ENTRIES,
):  # fmt: skip
    """The tile of outputs of a program's `number`; with `HEADS_FIRST`, or a table, heads change fastest."""
    return _tile(
        number, heads, T, H, W, table, ROWS, COUNT, T_RULE, H_RULE, W_RULE, HEADS_FIRST, LAYOUT, False
    )


@triton.jit
def key_tile(
    heads, T, H, W, ROWS: tl.constexpr, COUNT: tl.constexpr,
    T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr, HEADS_FIRST: tl.constexpr,
    table=None, LAYOUT: tl.constexpr = ENTRIES,
):  # fmt: skip
    """The tile of keys that this program computes; its columns are outputs."""
    number = tl.program_id(0)
    return _tile(
        number, heads, T, H, W, table, ROWS, COUNT, T_RULE, H_RULE, W_RULE, HEADS_FIRST, LAYOUT, True
    )


@triton.jit
def is_empty(tile):
    """Whether no row of the tile exists: a ragged dilation group ended before it."""
    return tile.t.empty | tile.h.empty | tile.w.empty


@triton.jit
def rows_inside(tile):
    return tile.t.inside & tile.h.inside & tile.w.inside


@triton.jit
def output_extents(T, H, W, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr):
    """Outputs per axis."""
    return Point(
        tl.cdiv(T, T_RULE.output_stride), tl.cdiv(H, H_RULE.output_stride), tl.cdiv(W, W_RULE.output_stride)
    )


@triton.jit
def boxes(tile, COLUMNS: tl.constexpr):
    """Boxes of columns that the tile visits."""
    return (
        tl.cdiv(tile.t.high - tile.t.low, COLUMNS[0])
        * tl.cdiv(tile.h.high - tile.h.low, COLUMNS[1])
        * tl.cdiv(tile.w.high - tile.w.low, COLUMNS[2])
    )


@triton.jit
def first_box(tile):
    """First column, per axis, of the first box of the tile."""
    return Point(tile.t.low, tile.h.low, tile.w.low)


@triton.jit
def next_box(first, tile, COLUMNS: tl.constexpr):
    """First column of the box after the one at `first`; after the last box comes the first again."""
    w = first.w + COLUMNS[2]
    h = first.h + tl.where(w >= tile.w.high, COLUMNS[1], 0)
    t = first.t + tl.where(h >= tile.h.high, COLUMNS[0], 0)
    return Point(
        tl.where(t >= tile.t.high, tile.t.low, t),
        tl.where(h >= tile.h.high, tile.h.low, h),
        tl.where(w >= tile.w.high, tile.w.low, w),
    )


@triton.jit
def is_first(first, tile):
    """Whether a box is the tile's first, where the walk over the next head begins."""
    return (first.t == tile.t.low) & (first.h == tile.h.low) & (first.w == tile.w.low)


@triton.jit
def columns_at(first, lane, tile, T_PITCH: tl.constexpr, H_PITCH: tl.constexpr, W_PITCH: tl.constexpr):
    """Where the columns of a box lie in their tensors; columns past the end repeat the last one."""
    return Point(
        tile.t.origin + tl.minimum(first.t + lane.t, tile.t.count - 1) * T_PITCH,
        tile.h.origin + tl.minimum(first.h + lane.h, tile.h.count - 1) * H_PITCH,
        tile.w.origin + tl.minimum(first.w + lane.w, tile.w.count - 1) * W_PITCH,
    )


@triton.jit
def offsets(point, extents, t, h, w, WIDE: tl.constexpr, DENSE: tl.constexpr):
    """Offsets inside one batch entry of points at strides `t`, `h`, `w`.

    DENSE says that the last stride and the `extents` give the other strides: tensors then share most of the
    arithmetic.
    """
    if DENSE:
        token = (point.t * extents.h + point.h) * extents.w + point.w
        if WIDE:
            token = token.to(tl.int64)
        return token * w
    elif WIDE:
        return point.t.to(tl.int64) * t + point.h.to(tl.int64) * h + point.w.to(tl.int64) * w
    else:
        return point.t * t + point.h * h + point.w * w


@triton.jit
def query_offsets(
    point, place, table, t, h, w, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr,
    WIDE: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Offsets of outputs in a tensor of queries, which documents do not sample."""
    if table is None:
        return offsets(point, place.outs, t, h, w, WIDE, DENSE)
    else:
        token = Point(
            point.t * T_RULE.output_stride, point.h * H_RULE.output_stride, point.w * W_RULE.output_stride
        )
        return offsets(token, place.frame, t, h, w, WIDE, DENSE)


@triton.jit
def hide_box(scores, first, lane, tile, COLUMNS: tl.constexpr, COUNT: tl.constexpr, ALWAYS: tl.constexpr):
    """Hide the columns of a box that a row does not see, one axis at a time."""
    # Lanes past the end of a box that is no power of two overrun its first axis.
    if COLUMNS[0] * COLUMNS[1] * COLUMNS[2] < COUNT:
        scores = tl.where(visible(first.t + lane.t, tile.t), scores, -1.0e30)
    else:
        scores = hide(scores, first.t, lane.t, tile.t, COLUMNS[0], ALWAYS)
    scores = hide(scores, first.h, lane.h, tile.h, COLUMNS[1], ALWAYS)
    return hide(scores, first.w, lane.w, tile.w, COLUMNS[2], ALWAYS)


@triton.jit
def load_rows(base, offset, DIM: tl.constexpr, PAD: tl.constexpr):
    """`[rows, PAD]`, zero from `DIM` on."""
    dims = tl.arange(0, PAD)
    if DIM == PAD:
        return tl.load(base + offset[:, None] + dims[None, :])
    else:
        return tl.load(base + offset[:, None] + dims[None, :], mask=(dims < DIM)[None, :], other=0.0)


@triton.jit
def store_rows(base, offset, rows, inside, DIM: tl.constexpr, PAD: tl.constexpr):
    dims = tl.arange(0, PAD)
    mask = inside[:, None]
    if DIM < PAD:
        mask = mask & (dims < DIM)[None, :]
    tl.store(base + offset[:, None] + dims[None, :], rows.to(base.dtype.element_ty), mask=mask)


@triton.jit
def bias_places(row, column, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr):
    """Entries of a relative position table; in range also where a row does not see a column."""
    return (
        _relative(row.t, column.t, T_RULE.size) * (2 * H_RULE.size - 1)
        + _relative(row.h, column.h, H_RULE.size)
    ) * (2 * W_RULE.size - 1) + _relative(row.w, column.w, W_RULE.size)


@triton.jit
def _relative(query, key, SIZE: tl.constexpr):
    return tl.minimum(tl.maximum(key - query + SIZE - 1, 0), 2 * SIZE - 2)


@triton.jit
def slots(first, lane, tile, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr):
    """`[rows, columns]` slots, row-major from each window's first key; rows are queries."""
    t, h, w = first.t + lane.t, first.h + lane.h, first.w + lane.w
    number = (t[None, :] - tile.t.start[:, None]) * H_RULE.size + h[None, :] - tile.h.start[:, None]
    number = number * W_RULE.size + w[None, :] - tile.w.start[:, None]
    return Slots(number, visible(t, tile.t) & visible(h, tile.h) & visible(w, tile.w))


@triton.jit
def _viewing_slot(column, span, RULE: tl.constexpr):
    """`[keys, queries]` slot of each key in the window of each query, on one axis."""
    start = window(span.base + column * RULE.step, span.tokens, RULE).start
    return span.place[:, None] - start[None, :]


@triton.jit
def viewing_slots(first, lane, tile, T_RULE: tl.constexpr, H_RULE: tl.constexpr, W_RULE: tl.constexpr):
    """`slots` where rows are keys and columns are queries."""
    t, h, w = first.t + lane.t, first.h + lane.h, first.w + lane.w
    number = _viewing_slot(t, tile.t, T_RULE) * H_RULE.size + _viewing_slot(h, tile.h, H_RULE)
    number = number * W_RULE.size + _viewing_slot(w, tile.w, W_RULE)
    return Slots(number, visible(t, tile.t) & visible(h, tile.h) & visible(w, tile.w))
