"""Small windows, in Gluon: a program sweeps along an axis and keeps the columns that its tiles see in a ring.

It computes tiles of 16 rows a warp, one after another along axis 0; the other two axes stand still. Columns
arrive in chunks that are `columns[0]` positions deep along axis 0 and hold all that the tiles see along the
others. Chunk `c` lies in slot `c % slots` of a ring in shared memory, so that a tile copies only what the one
before it did not see. Rows are queries and columns keys, or the other way round where `SPEC.inverse`.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from .ring_layouts import above, beside, count, factor, lines, numbers, products, swizzled, tokens
from .window import key_span, key_tiles, query_span, query_tiles, visible

# Finite, and what a product adds to it is lost: a hidden score keeps this value whatever its key holds.
HIDDEN = gl.constexpr(-1.0e30)
LOG2_E = gl.constexpr(1.4426950408889634)
LN_2 = gl.constexpr(0.6931471805599453)


class Strip(NamedTuple):
    """Where a program works.

    Args:
        batch, head: of its rows.
        tile, stop: its tiles along axis 0.
        groups: dilation group per axis.
        still: tile on axes 1 and 2.
    """

    batch: Any
    head: Any
    tile: Any
    stop: Any
    groups: Any
    still: Any


@gluon.jit
def span(tile, group, length, lane, SPEC: gl.constexpr, axis: gl.constexpr):
    """Rows of a tile on one axis, and the columns that they see."""
    BOX: gl.constexpr = SPEC.rows[axis]
    RULE: gl.constexpr = SPEC.rules[axis]
    if SPEC.inverse:
        SHIFT: gl.constexpr = SPEC.shifts[axis]
        return key_span(tile, group, length, lane, BOX, RULE, SHIFT)
    else:
        return query_span(tile, group, length, lane, BOX, RULE)


@gluon.jit
def _tiles(length, SPEC: gl.constexpr, axis: gl.constexpr):
    BOX: gl.constexpr = SPEC.rows[axis]
    RULE: gl.constexpr = SPEC.rules[axis]
    if SPEC.inverse:
        SHIFT: gl.constexpr = SPEC.shifts[axis]
        return key_tiles(length, BOX, RULE, SHIFT)
    else:
        return query_tiles(length, BOX, RULE)


@gluon.jit
def _groups(SPEC: gl.constexpr, axis: gl.constexpr):
    RULE: gl.constexpr = SPEC.rules[axis]
    if SPEC.inverse:
        return RULE.dilation
    else:
        return RULE.period


@gluon.jit
def strip(heads, extents, SPEC: gl.constexpr):
    """What this program computes; neighboring programs work on neighboring heads, which share cache lines."""
    number = gl.program_id(0)
    head = number % heads
    number = number // heads
    tiles = _tiles(extents[2], SPEC, 2)
    z = number % tiles
    number = number // tiles
    z_group = number % _groups(SPEC, 2)
    number = number // _groups(SPEC, 2)
    tiles = _tiles(extents[1], SPEC, 1)
    y = number % tiles
    number = number // tiles
    y_group = number % _groups(SPEC, 1)
    number = number // _groups(SPEC, 1)
    tiles = _tiles(extents[0], SPEC, 0)
    parts = gl.cdiv(tiles, SPEC.steps)
    tile = number % parts * SPEC.steps
    number = number // parts
    x_group = number % _groups(SPEC, 0)
    batch = number // _groups(SPEC, 0)
    return Strip(
        batch.to(gl.int64),
        head.to(gl.int64),
        tile,
        gl.minimum(tile + SPEC.steps, tiles),
        (x_group, y_group, z_group),
        (y, z),
    )


@gluon.jit
def row_lane(flat, SPEC: gl.constexpr, axis: gl.constexpr):
    """Coordinate in a tile of its row `flat`."""
    if axis == 0:
        return flat // (SPEC.rows[1] * SPEC.rows[2])
    elif axis == 1:
        return flat // SPEC.rows[2] % SPEC.rows[1]
    else:
        return flat % SPEC.rows[2]


@gluon.jit
def column_lane(flat, SPEC: gl.constexpr, axis: gl.constexpr):
    """Coordinate in a chunk of its column `flat`."""
    if axis == 0:
        if SPEC.columns[0] == 1:
            return flat * 0
        else:
            return flat // (SPEC.columns[1] * SPEC.columns[2])
    elif axis == 1:
        return flat // SPEC.columns[2] % SPEC.columns[1]
    else:
        return flat % SPEC.columns[2]


@gluon.jit
def rows_of(tile, work, extents, LAYOUT: gl.constexpr, SPEC: gl.constexpr, axis: gl.constexpr):
    """Span of the rows on one axis, in a layout of rows."""
    lane = row_lane(gl.arange(0, count(SPEC.rows), layout=LAYOUT), SPEC, axis)
    return span(tile, work.groups[axis], extents[axis], lane, SPEC, axis)


@gluon.jit
def pitch(SPEC: gl.constexpr, axis: gl.constexpr):
    """Distance between neighboring columns in their tensors."""
    RULE: gl.constexpr = SPEC.rules[axis]
    if SPEC.inverse:
        return RULE.period
    else:
        return RULE.dilation


@gluon.jit
def still_seen(y, z, LAYOUT: gl.constexpr, SPEC: gl.constexpr):
    """`[rows, columns of a chunk]`: whether axes 1 and 2 let a row see it."""
    flat = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, LAYOUT))
    seen = visible(y.low + column_lane(flat, SPEC, 1), y) & visible(z.low + column_lane(flat, SPEC, 2), z)
    return seen & (flat < SPEC.columns[0] * SPEC.columns[1] * SPEC.columns[2])[None, :]


@gluon.jit
def still_hidden(y, z, SPEC: gl.constexpr):
    """`[rows, columns of a chunk]`: 0, or HIDDEN where axes 1 and 2 alone say that a row does not see it."""
    return gl.where(still_seen(y, z, products(SPEC.rows), SPEC), 0.0, HIDDEN)


@gluon.jit
def hidden(still, chunk, x, SPEC: gl.constexpr):
    """`[rows, columns of a chunk]`: 0, or HIDDEN where a row does not see it."""
    if SPEC.columns[0] == 1:
        inside = (chunk - x.start).to(gl.uint32, bitcast=True) < (x.stop - x.start).to(
            gl.uint32, bitcast=True
        )
        return gl.where(inside[:, None], still, HIDDEN)
    else:
        flat = gl.arange(0, SPEC.width, layout=above(SPEC.rows))
        return gl.where(visible(chunk * SPEC.columns[0] + column_lane(flat, SPEC, 0), x), still, HIDDEN)


class Source(NamedTuple):
    """Columns of one operand.

    Args:
        base: its address for one batch entry and head.
        still: offsets of a chunk's columns along axes 1 and 2.
        stride: of axis 0.
    """

    base: Any
    still: Any
    stride: Any


@gluon.jit
def source(base, strides, still, LAYOUT: gl.constexpr, SPEC: gl.constexpr):
    """Columns past the end repeat the last one; a group without columns repeats its first token."""
    y, z = still
    flat = gl.arange(0, SPEC.width, layout=LAYOUT)
    last_y, last_z = gl.maximum(y.count - 1, 0), gl.maximum(z.count - 1, 0)
    at_y = y.origin + gl.minimum(y.low + column_lane(flat, SPEC, 1), last_y) * pitch(SPEC, 1)
    at_z = z.origin + gl.minimum(z.low + column_lane(flat, SPEC, 2), last_z) * pitch(SPEC, 2)
    return Source(base, at_y * strides[1] + at_z * strides[2], strides[0])


@gluon.jit
def addresses(chunk, columns, x, LAYOUT: gl.constexpr, SPEC: gl.constexpr):
    """`[columns of a chunk]`, dimension 0 of each."""
    if SPEC.columns[0] == 1:
        at = gl.minimum(chunk, x.count - 1)
    else:
        lane = column_lane(gl.arange(0, SPEC.width, layout=LAYOUT), SPEC, 0)
        at = gl.minimum(chunk * SPEC.columns[0] + lane, x.count - 1)
    return columns.base + ((x.origin + at * pitch(SPEC, 0)) * columns.stride + columns.still)


@gluon.jit
def _copy_chunk(ring, chunk, columns, x, SPEC: gl.constexpr):
    """Start copying the columns of one chunk, or their numbers, into its slot."""
    slot = ring.index(chunk % SPEC.slots)
    if len(ring.shape) == 3:
        DIM: gl.constexpr = ring.shape[2]
        at = addresses(chunk, columns, x, tokens(DIM, SPEC.rows), SPEC)
        dims = gl.arange(0, DIM, layout=gl.SliceLayout(0, lines(DIM, SPEC.rows)))
        async_copy.async_copy_global_to_shared(slot, at[:, None] + dims[None, :])
    else:
        async_copy.async_copy_global_to_shared(slot, addresses(chunk, columns, x, numbers(SPEC.rows), SPEC))


@gluon.jit
def fill(rings, sources, held, wanted, x, SPEC: gl.constexpr):
    """Start copying chunks `[held, wanted)` of all operands."""
    COUNT: gl.constexpr = len(sources)
    for chunk in range(held, wanted):
        for number in gl.static_range(COUNT):
            _copy_chunk(rings[number], chunk, sources[number], x, SPEC)


@gluon.jit
def row_offsets(tile, still, strides):
    """Offsets of the rows of a tile, given their spans on axes 1 and 2."""
    return tile.index * strides[0] + still[0].index * strides[1] + still[1].index * strides[2]


@gluon.jit
def still_rows(work, extents, LAYOUT: gl.constexpr, SPEC: gl.constexpr):
    """Spans of a program's rows on axes 1 and 2."""
    return (
        rows_of(work.still[0], work, extents, LAYOUT, SPEC, 1),
        rows_of(work.still[1], work, extents, LAYOUT, SPEC, 2),
    )


@gluon.jit
def is_empty(work, still, extents, SPEC: gl.constexpr):
    """Whether a program has no rows: a ragged dilation group ended before them."""
    first = rows_of(work.tile, work, extents, beside(SPEC.rows), SPEC, 0)
    return first.empty | still[0].empty | still[1].empty


@gluon.jit
def first_chunk(x, SPEC: gl.constexpr):
    return x.low // SPEC.columns[0]


@gluon.jit
def stop_chunk(x, SPEC: gl.constexpr):
    """One past the last chunk that is read for a tile: its chunks are read `block` at a time."""
    first = first_chunk(x, SPEC)
    return first + gl.cdiv(gl.cdiv(x.high, SPEC.columns[0]) - first, SPEC.block) * SPEC.block


@gluon.jit
def held(tile, x, work, extents, SPEC: gl.constexpr):
    """The first chunk of a tile that the tile before it has not copied.

    Computed anew, for Triton 3.6 drops a value that a loop carries for the bounds of an inner loop alone.
    """
    before = rows_of(tile - 1, work, extents, beside(SPEC.rows), SPEC, 0)
    copied = gl.minimum(first_chunk(before, SPEC) + SPEC.slots, stop_chunk(x, SPEC))
    return gl.where(tile == work.tile, first_chunk(x, SPEC), copied)


@gluon.jit
def advance(tile, rings, sources, work, extents, SPEC: gl.constexpr):
    """Start copying what a tile sees, then what the next one does; a group of copies each.

    Spans of the rows on axis 0, and the chunks to read: the first one, and one past the last.
    """
    x = rows_of(tile, work, extents, beside(SPEC.rows), SPEC, 0)
    low, stop = first_chunk(x, SPEC), stop_chunk(x, SPEC)
    fill(rings, sources, held(tile, x, work, extents, SPEC), stop, x, SPEC)
    async_copy.commit_group()
    ahead = rows_of(tile + 1, work, extents, beside(SPEC.rows), SPEC, 0)
    fill(rings, sources, stop, gl.minimum(stop_chunk(ahead, SPEC), low + SPEC.slots), x, SPEC)
    async_copy.commit_group()
    return x, low, stop


class Rows(NamedTuple):
    """Rows of one operand.

    Args:
        base: its address for one batch entry and head.
        still: their spans on axes 1 and 2, in the layout of lines.
        strides: of the axes.
        lines: one tile of them in shared memory.
    """

    base: Any
    still: Any
    strides: Any
    lines: Any


@gluon.jit
def rows_from(base, strides, work, extents, DIM: gl.constexpr, SPEC: gl.constexpr):
    """Rows to copy; the copy of the first tile starts."""
    still = still_rows(work, extents, tokens(DIM, SPEC.rows), SPEC)
    rows = Rows(base, still, strides, ring_of(base, 1, count(SPEC.rows), DIM))
    copy_rows(work.tile, rows, work, extents, SPEC)
    return rows


@gluon.jit
def copy_rows(tile, rows, work, extents, SPEC: gl.constexpr):
    """Start copying the rows of a tile."""
    DIM: gl.constexpr = rows.lines.shape[2]
    x = rows_of(tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
    at = rows.base + row_offsets(x, rows.still, rows.strides)
    dims = gl.arange(0, DIM, layout=gl.SliceLayout(0, lines(DIM, SPEC.rows)))
    async_copy.async_copy_global_to_shared(rows.lines.index(0), at[:, None] + dims[None, :])


@gluon.jit
def store_rows(base, tile, flat, rows, work, extents, SPEC: gl.constexpr):
    """Store `[rows, dim]`, in the layout of products, where strides of tokens say."""
    DIM: gl.constexpr = rows.shape[1]
    LINES: gl.constexpr = lines(DIM, SPEC.rows)
    x = rows_of(tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
    still = still_rows(work, extents, tokens(DIM, SPEC.rows), SPEC)
    dims = gl.arange(0, DIM, layout=gl.SliceLayout(0, LINES))
    at = base + row_offsets(x, still, flat) * DIM
    inside = x.inside & still[0].inside & still[1].inside
    rows = gl.convert_layout(rows.to(base.dtype.element_ty), LINES)
    gl.store(at[:, None] + dims[None, :], rows, mask=inside[:, None])


@gluon.jit
def slot_after(slot, step, SPEC: gl.constexpr):
    """The slot `step` chunks on, which is at most one turn."""
    later = slot + step
    return gl.where(later >= SPEC.slots, later - SPEC.slots, later)


@gluon.jit
def score(left, ring, slot, start, SPEC: gl.constexpr):
    """`start` plus the products of `[ROWS, dim]` with the columns in a slot."""
    return mma_v2(left, ring.index(slot).permute((1, 0)).load(factor(SPEC.rows, 1)), start)


@gluon.jit
def add(weights, ring, slot, total, SPEC: gl.constexpr):
    """`total` plus the columns in a slot, weighted."""
    columns = ring.index(slot).load(factor(SPEC.rows, 1))
    return mma_v2(gl.convert_layout(weights.to(columns.dtype), factor(SPEC.rows, 0)), columns, total)


@gluon.jit
def ring_of(pointer, SLOTS: gl.constexpr, LINES: gl.constexpr, DIM: gl.constexpr):
    """Shared memory for `SLOTS` times `[LINES, DIM]`."""
    return gl.allocate_shared_memory(pointer.dtype.element_ty, [SLOTS, LINES, DIM], swizzled(DIM))


@gluon.jit
def numbers_ring(SLOTS: gl.constexpr, LINES: gl.constexpr):
    """Shared memory for `SLOTS` times `[LINES]` of float32."""
    return gl.allocate_shared_memory(gl.float32, [SLOTS, LINES], gl.SwizzledSharedLayout(1, 1, 1, [0]))
