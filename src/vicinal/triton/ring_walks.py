"""The walks of the split operations on rings, over weights `[batch, *outputs, heads, slots]`.

Weights are contiguous, and their rows odd: they move in a layout of their own, in which a warp touches few
rows at once. `f` are strides of their rows, `PITCH` those of slots, both in the sweep's order of axes. A slot
that holds no key is neither read nor written.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .ring import (
    add,
    advance,
    column_lane,
    copy_rows,
    first_chunk,
    is_empty,
    ring_of,
    row_offsets,
    rows_from,
    rows_of,
    score,
    slot_after,
    source,
    still_rows,
    still_seen,
    store_rows,
    strip,
)
from .ring_layouts import beside, count, factor, products, tokens
from .window import window

# Farther than any column is from a row that sees it.
FAR = gl.constexpr(1 << 30)


@gluon.constexpr_function
def across(width, sides):
    """Layout of `[ROWS, width]` weights in registers: neighboring threads hold neighboring slots of a row."""
    return gl.BlockedLayout([1, 1], [32 // min(width, 32), min(width, 32)], [count(sides) // 16, 1], [1, 0])


@gluon.constexpr_function
def along(sides):
    """The same where rows are keys: they are what holds neighboring slots."""
    return gl.BlockedLayout([1, 1], [16, 2], [count(sides) // 16, 1], [0, 1])


@gluon.constexpr_function
def table_size(rules):
    """Entries of a relative position table."""
    return (2 * rules[0].size - 1) * (2 * rules[1].size - 1) * (2 * rules[2].size - 1)


@gluon.jit
def _distances(x, still, SPEC: gl.constexpr, LAYOUT: gl.constexpr):
    """`[ROWS, columns of chunk 0]`: how far along axis 0 a column lies after the first that a row sees.

    A row sees those of chunk `c` that, `c` chunks farther, lie at less than `x.stop - x.start`.
    """
    lane = column_lane(gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, LAYOUT)), SPEC, 0)
    return gl.where(still, lane[None, :] - x.start[:, None], FAR)


@gluon.jit
def _seen(distances, chunk, x, SPEC: gl.constexpr):
    count = (x.stop - x.start).to(gl.uint32, bitcast=True)
    return (distances + chunk * SPEC.columns[0]).to(gl.uint32, bitcast=True) < count[:, None]


@gluon.jit
def _query_slots(x, still, flat, SPEC: gl.constexpr, PITCH: gl.constexpr, LAYOUT: gl.constexpr):
    """`[ROWS, columns of chunk 0]`: offsets of weights, where rows are queries."""
    COUNT: gl.constexpr = SPEC.rules[0].size * SPEC.rules[1].size * SPEC.rules[2].size
    y, z = still
    column = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, LAYOUT))
    slot = column_lane(column, SPEC, 0) * PITCH[0]
    slot += (y.low + column_lane(column, SPEC, 1)) * PITCH[1]
    slot += (z.low + column_lane(column, SPEC, 2)) * PITCH[2]
    first = x.start * PITCH[0] + y.start * PITCH[1] + z.start * PITCH[2]
    return (row_offsets(x, still, flat) * COUNT - first)[:, None] + slot[None, :]


@gluon.jit
def _viewed(at, span, stride, SPEC: gl.constexpr, PITCH: gl.constexpr, axis: gl.constexpr):
    """Offset of the first weight of the query at column `at`, less that of its key, on one axis."""
    RULE: gl.constexpr = SPEC.rules[axis]
    COUNT: gl.constexpr = SPEC.rules[0].size * SPEC.rules[1].size * SPEC.rules[2].size
    start = window(span.base + at * RULE.step, span.tokens, RULE).start
    return (span.origin + at * RULE.period) * (stride * COUNT) - start * PITCH[axis]


@gluon.jit
def _bias_places(x, still, SPEC: gl.constexpr, PITCH: gl.constexpr, LAYOUT: gl.constexpr):
    """`[ROWS, columns of chunk 0]`: offsets of entries of a relative position table at strides `PITCH`."""
    y, z = still
    column = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, LAYOUT))
    entry = (column_lane(column, SPEC, 0) + (SPEC.rules[0].size - 1)) * PITCH[0]
    entry += (y.low + column_lane(column, SPEC, 1) + (SPEC.rules[1].size - 1)) * PITCH[1]
    entry += (z.low + column_lane(column, SPEC, 2) + (SPEC.rules[2].size - 1)) * PITCH[2]
    return entry[None, :] - (x.place * PITCH[0] + y.place * PITCH[1] + z.place * PITCH[2])[:, None]


@gluon.jit
def _key_slots(y, z, flat, SPEC: gl.constexpr, PITCH: gl.constexpr, LAYOUT: gl.constexpr):
    """`[ROWS, columns of a chunk]`: what axes 1 and 2 add to offsets of weights, where rows are keys."""
    column = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, LAYOUT))
    at_y = gl.minimum(y.low + column_lane(column, SPEC, 1), y.count - 1)
    at_z = gl.minimum(z.low + column_lane(column, SPEC, 2), z.count - 1)
    slots = _viewed(at_y, y, flat[1], SPEC, PITCH, 1) + _viewed(at_z, z, flat[2], SPEC, PITCH, 2)
    return (y.place * PITCH[1] + z.place * PITCH[2])[:, None] + slots[None, :]


@gluon.jit
def _store_scores(where, found, mask, entry, shift, LAYOUT: gl.constexpr):
    """Store scores of a chunk, plus the entries of a table `shift` after `entry`, where there is one."""
    TYPE: gl.constexpr = where.dtype.element_ty
    if entry is None:
        gl.store(where, gl.convert_layout(found.to(TYPE), LAYOUT), mask=mask)
    else:
        found = gl.convert_layout(found, LAYOUT) + gl.load(entry + shift, mask=mask, other=0.0)
        gl.store(where, found.to(TYPE), mask=mask)


@gluon.jit
def dot(
    x, y, bias, weights,
    scale, heads, group, X, Y, Z,
    xb, xx, xy, xz, xn, yb, yx, yy, yz, yn, fb, fx, fy, fz,
    SPEC: gl.constexpr, PITCH: gl.constexpr, BIAS_PITCH: gl.constexpr,
):  # fmt: skip
    """`weights[i, s] = scale * x[i] . y[key s of i]`, plus the bias, a table of each head."""
    DIM: gl.constexpr = SPEC.dim
    BLOCK: gl.constexpr = SPEC.block
    WIDTH: gl.constexpr = SPEC.width
    ROWS: gl.constexpr = count(SPEC.rows)
    LAYOUT: gl.constexpr = across(WIDTH, SPEC.rows)
    BESIDE: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    COUNT: gl.constexpr = SPEC.rules[0].size * SPEC.rules[1].size * SPEC.rules[2].size
    extents = (X, Y, Z)
    work = strip(heads, extents, SPEC)
    still = still_rows(work, extents, beside(SPEC.rows), SPEC)
    if is_empty(work, still, extents, SPEC):
        return
    x += work.batch * xb + work.head * xn
    weights += (work.batch * fb + work.head) * COUNT
    if bias is not None:
        ENTRIES: gl.constexpr = table_size(SPEC.rules)
        bias += work.head * ENTRIES
    columns = y + work.batch * yb + work.head // group * yn
    sources = (source(columns, (yx, yy, yz), still, tokens(DIM, SPEC.rows), SPEC),)
    to_still = still_rows(work, extents, BESIDE, SPEC)
    seen = still_seen(to_still[0], to_still[1], LAYOUT, SPEC)
    seen = seen & (to_still[0].inside & to_still[1].inside)[:, None]
    nothing = gl.zeros([ROWS, WIDTH], gl.float32, products(SPEC.rows))
    rows = rows_from(x, (xx, xy, xz), work, extents, DIM, SPEC)
    ring = ring_of(y, SPEC.slots, WIDTH, DIM)
    for tile in range(work.tile, work.stop):
        _, low, stop = advance(tile, (ring,), sources, work, extents, SPEC)
        to = rows_of(tile, work, extents, BESIDE, SPEC, 0)
        far = _distances(to, seen & to.inside[:, None], SPEC, LAYOUT)
        at = weights + _query_slots(to, to_still, (fx, fy, fz), SPEC, PITCH, LAYOUT)
        entry = bias
        if bias is not None:
            entry += _bias_places(to, to_still, SPEC, BIAS_PITCH, LAYOUT)
        async_copy.wait_group(1)
        left = rows.lines.index(0).load(factor(SPEC.rows, 0))
        copy_rows(tile + 1, rows, work, extents, SPEC)
        for first in range(low, stop, BLOCK):
            place = first % SPEC.slots
            first_at = at + first * (SPEC.columns[0] * PITCH[0])
            for step in gl.static_range(BLOCK):
                found = score(left, ring, slot_after(place, step, SPEC), nothing, SPEC) * scale
                mask = _seen(far, first + step, to, SPEC)
                where = first_at + step * SPEC.columns[0] * PITCH[0]
                shift = (first + step) * (SPEC.columns[0] * BIAS_PITCH[0])
                _store_scores(where, found, mask, entry, shift, LAYOUT)


@gluon.jit
def _query_weights(
    tile, first, weights, still, seen, flat, work, extents, SPEC: gl.constexpr, PITCH: gl.constexpr
):  # fmt: skip
    """Weights of a tile of queries, for each chunk from `first` on that is read at once."""
    LAYOUT: gl.constexpr = across(SPEC.width, SPEC.rows)
    x = rows_of(tile, work, extents, gl.SliceLayout(1, LAYOUT), SPEC, 0)
    far = _distances(x, seen, SPEC, LAYOUT)
    at = weights + _query_slots(x, still, flat, SPEC, PITCH, LAYOUT) + first * (SPEC.columns[0] * PITCH[0])
    some = ()
    BLOCK: gl.constexpr = SPEC.block
    for step in gl.static_range(BLOCK):
        mask = _seen(far, first + step, x, SPEC)
        # Triton compiles no starred tuple.
        some = some + (gl.load(at + step * SPEC.columns[0] * PITCH[0], mask=mask, other=0.0),)  # noqa: RUF005
    return some


@gluon.jit
def _key_weights(
    tile, first, weights, slots, seen, flat, work, extents, SPEC: gl.constexpr, PITCH: gl.constexpr
):  # fmt: skip
    """Weights of a tile of keys, for each chunk of queries from `first` on that is read at once."""
    LAYOUT: gl.constexpr = along(SPEC.rows)
    lane = column_lane(gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, LAYOUT)), SPEC, 0)
    x = rows_of(tile, work, extents, gl.SliceLayout(1, LAYOUT), SPEC, 0)
    far = _distances(x, seen, SPEC, LAYOUT)
    at = weights + (slots + (x.place * PITCH[0])[:, None])
    some = ()
    BLOCK: gl.constexpr = SPEC.block
    for step in gl.static_range(BLOCK):
        mask = _seen(far, first + step, x, SPEC)
        if SPEC.columns[0] == 1:
            moved = _viewed(gl.minimum(first + step, x.count - 1), x, flat[0], SPEC, PITCH, 0)
        else:
            column = gl.minimum((first + step) * SPEC.columns[0] + lane, x.count - 1)
            moved = _viewed(column, x, flat[0], SPEC, PITCH, 0)[None, :]
        some = some + (gl.load(at + moved, mask=mask, other=0.0),)  # noqa: RUF005
    return some


@gluon.jit
def mix(
    weights, y, out,
    heads, group, X, Y, Z,
    yb, yx, yy, yz, yn, fb, fx, fy, fz, rb, rx, ry, rz,
    SPEC: gl.constexpr, PITCH: gl.constexpr,
):  # fmt: skip
    """`out[i]`, the sum over `s` of `weights[i, s] * y[key s of i]`; `r` are strides of rows of `out`.

    Where `SPEC.inverse`, `out[j]`, the sum over outputs `i` that see key `j` of `weights[i, s] * y[i]`.
    """
    DIM: gl.constexpr = SPEC.dim
    BLOCK: gl.constexpr = SPEC.block
    ROWS: gl.constexpr = count(SPEC.rows)
    LAYOUT: gl.constexpr = along(SPEC.rows) if SPEC.inverse else across(SPEC.width, SPEC.rows)
    COUNT: gl.constexpr = SPEC.rules[0].size * SPEC.rules[1].size * SPEC.rules[2].size
    extents = (X, Y, Z)
    work = strip(heads, extents, SPEC)
    still = still_rows(work, extents, gl.SliceLayout(1, LAYOUT), SPEC)
    if is_empty(work, still, extents, SPEC):
        return
    weights += (work.batch * fb + work.head) * COUNT
    out += (work.batch * rb + work.head) * DIM
    y += work.batch * yb + work.head // group * yn
    sources = (source(y, (yx, yy, yz), still, tokens(DIM, SPEC.rows), SPEC),)
    seen = still_seen(still[0], still[1], LAYOUT, SPEC)
    ring = ring_of(y, SPEC.slots, SPEC.width, DIM)
    flat = (fx, fy, fz)
    if SPEC.inverse:
        slots = _key_slots(still[0], still[1], flat, SPEC, PITCH, LAYOUT)
    low = first_chunk(rows_of(work.tile, work, extents, beside(SPEC.rows), SPEC, 0), SPEC)
    if SPEC.inverse:
        coming = _key_weights(work.tile, low, weights, slots, seen, flat, work, extents, SPEC, PITCH)
    else:
        coming = _query_weights(work.tile, low, weights, still, seen, flat, work, extents, SPEC, PITCH)
    for tile in range(work.tile, work.stop):
        _, low, stop = advance(tile, (ring,), sources, work, extents, SPEC)
        next_low = first_chunk(rows_of(tile + 1, work, extents, beside(SPEC.rows), SPEC, 0), SPEC)
        acc = gl.zeros([ROWS, DIM], gl.float32, products(SPEC.rows))
        for first in range(low, stop, BLOCK):
            some = ()
            for step in gl.static_range(BLOCK):
                left = gl.convert_layout(coming[step].to(y.dtype.element_ty), factor(SPEC.rows, 0))
                some = some + (left,)  # noqa: RUF005
            is_last = first + BLOCK >= stop
            at = gl.where(is_last, next_low, first + BLOCK)
            to = tile + is_last.to(gl.int32)
            if SPEC.inverse:
                coming = _key_weights(to, at, weights, slots, seen, flat, work, extents, SPEC, PITCH)
            else:
                coming = _query_weights(to, at, weights, still, seen, flat, work, extents, SPEC, PITCH)
            async_copy.wait_group(1)
            place = first % SPEC.slots
            for step in gl.static_range(BLOCK):
                acc = add(some[step], ring, slot_after(place, step, SPEC), acc, SPEC)
        store_rows(out, tile, (rx, ry, rz), acc, work, extents, SPEC)
