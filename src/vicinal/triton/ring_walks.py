"""The walks of the split operations on rings, over weights `[batch, *outputs, heads, slots]`.

Weights are contiguous, and their rows odd: they move in a layout of their own, in which neighboring threads
hold what lies in one row, and `lanes` columns of each chunk. `f` are strides of their rows, `PITCH` those of
slots, both in the sweep's order of axes. A slot that holds no key is neither read nor written.
"""

from typing import Any, NamedTuple

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
from .ring_lanes import folded, joined, parted, unfolded
from .ring_layouts import beside, count, factor, products, tokens
from .window import window

# Farther than any column is from a row that sees it.
FAR = gl.constexpr(1 << 30)


@gluon.constexpr_function
def slot_count(rules):
    return rules[0].size * rules[1].size * rules[2].size


@gluon.constexpr_function
def table_size(rules):
    """Entries of a relative position table."""
    return (2 * rules[0].size - 1) * (2 * rules[1].size - 1) * (2 * rules[2].size - 1)


@gluon.constexpr_function
def across(sides, columns, inverse):
    """Layout of `[ROWS, columns]` weights: threads go along rows; where these are keys, along columns."""
    warps = [count(sides) // 16, 1]
    if inverse:
        return gl.BlockedLayout([1, 1], [16, 2], warps, [0, 1])
    threads = min(columns, 32)
    return gl.BlockedLayout([1, 1], [32 // threads, threads], warps, [1, 0])


@gluon.jit
def _columns(SPEC: gl.constexpr):
    """The columns of a group of chunks, beside weights."""
    LAYOUT: gl.constexpr = across(SPEC.rows, SPEC.group * SPEC.lanes, SPEC.inverse)
    return gl.arange(0, SPEC.group * SPEC.lanes, layout=gl.SliceLayout(0, LAYOUT))


class Places(NamedTuple):
    """Where the columns of the first group of chunks are, `[ROWS, columns]`.

    Args:
        column: `[columns]`, how far they lie along axis 0.
        after: how far they lie on axes 1 and 2 after the first that a row sees.
        seen: whether it sees them, as far as these axes say.
    """

    column: Any
    after: Any
    seen: Any


@gluon.jit
def _places(still, SPEC: gl.constexpr):
    y, z = still
    column = _columns(SPEC)
    lane = column % SPEC.lanes
    after_y = (y.low + column_lane(lane, SPEC, 1))[None, :] - y.start[:, None]
    after_z = (z.low + column_lane(lane, SPEC, 2))[None, :] - z.start[:, None]
    seen = _within(after_y, y)
    if SPEC.lanes < SPEC.width:
        after_z = after_z & (SPEC.lanes - 1)
    else:
        seen = seen & (lane < SPEC.columns[0] * SPEC.columns[1] * SPEC.columns[2])[None, :]
    depth = column // SPEC.lanes * SPEC.columns[0] + column_lane(lane, SPEC, 0)
    return Places(depth, (after_y, after_z), seen & _within(after_z, z))


@gluon.jit
def _within(after, span):
    return after.to(gl.uint32, bitcast=True) < (span.stop - span.start).to(gl.uint32, bitcast=True)[:, None]


@gluon.jit
def _slots(places, PITCH: gl.constexpr):
    """`[ROWS, columns]`: offsets of slots at strides `PITCH`, were all windows to begin with chunk 0."""
    y, z = places.after
    return (places.column * PITCH[0])[None, :] + (y * PITCH[1] + z * PITCH[2])


@gluon.jit
def _reach(places, x):
    """`[ROWS, columns]`: how many positions of axis 0 a row sees at these places on axes 1 and 2."""
    return gl.where(places.seen, (x.stop - x.start)[:, None], 0).to(gl.uint32, bitcast=True)


@gluon.jit
def _seen(first, places, start, reach, SPEC: gl.constexpr):
    """`[ROWS, columns]`: whether rows whose windows begin at `start` see chunks from `first` on."""
    column = first * SPEC.columns[0] + places.column
    return (column[None, :] - start[:, None]).to(gl.uint32, bitcast=True) < reach


@gluon.jit
def _query_rows(still, flat, SPEC: gl.constexpr):
    """What axes 1 and 2 add to the offset of the first weight of a row."""
    COUNT: gl.constexpr = slot_count(SPEC.rules)
    return (still[0].index * flat[1] + still[1].index * flat[2]) * COUNT


@gluon.jit
def _query_row(x, flat, SPEC: gl.constexpr, PITCH: gl.constexpr):
    """What axis 0 adds to the offset of a row's weight for chunk 0, which it may not see."""
    COUNT: gl.constexpr = slot_count(SPEC.rules)
    return x.index * (flat[0] * COUNT) - x.start * PITCH[0]


@gluon.jit
def _viewed(at, span, stride, SPEC: gl.constexpr, PITCH: gl.constexpr, axis: gl.constexpr):
    """Offset of the first weight of the query at column `at`, less that of its key, on one axis."""
    RULE: gl.constexpr = SPEC.rules[axis]
    COUNT: gl.constexpr = slot_count(SPEC.rules)
    start = window(span.base + at * RULE.step, span.tokens, RULE).start
    return (span.origin + at * RULE.period) * (stride * COUNT) - start * PITCH[axis]


@gluon.jit
def _key_rows(still, flat, SPEC: gl.constexpr, PITCH: gl.constexpr):
    """`[ROWS, columns]`: what axes 1 and 2 add to offsets of weights, where rows are keys."""
    y, z = still
    lane = _columns(SPEC) % SPEC.lanes
    at_y = gl.minimum(y.low + column_lane(lane, SPEC, 1), y.count - 1)
    at_z = gl.minimum(z.low + column_lane(lane, SPEC, 2), z.count - 1)
    slots = _viewed(at_y, y, flat[1], SPEC, PITCH, 1) + _viewed(at_z, z, flat[2], SPEC, PITCH, 2)
    return (y.place * PITCH[1] + z.place * PITCH[2])[:, None] + slots[None, :]


@gluon.jit
def _bias_row(x, still, PITCH: gl.constexpr, SPEC: gl.constexpr):
    """Offset of a row's entry of a relative position table, at strides `PITCH`, for chunk 0."""
    y, z = still
    entry = (SPEC.rules[0].size - 1 - x.place) * PITCH[0]
    entry += (SPEC.rules[1].size - 1 + y.start - y.place) * PITCH[1]
    return entry + (SPEC.rules[2].size - 1 + z.start - z.place) * PITCH[2]


@gluon.jit
def _scores(left, ring, place, begin: gl.constexpr, nothing, seen, SPEC: gl.constexpr):
    """`[ROWS, columns]`: products with a group of chunks, which is `begin` chunks after the slot `place`."""
    COUNT: gl.constexpr = SPEC.group
    some = ()
    for step in gl.static_range(COUNT):
        found = score(left, ring, slot_after(place, begin + step, SPEC), nothing, SPEC)
        # Triton compiles no starred tuple.
        some = some + (folded(found, seen, SPEC),)  # noqa: RUF005
    return joined(some)


@gluon.jit
def _store_scores(where, found, mask, entry, shift, LAYOUT: gl.constexpr):
    """Store scores, plus the entries of a table `shift` after `entry`, where there is one."""
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
    GROUP: gl.constexpr = SPEC.group
    WIDTH: gl.constexpr = SPEC.width
    ROWS: gl.constexpr = count(SPEC.rows)
    LAYOUT: gl.constexpr = across(SPEC.rows, GROUP * SPEC.lanes, SPEC.inverse)
    BESIDE: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    extents = (X, Y, Z)
    work = strip(heads, extents, SPEC)
    still = still_rows(work, extents, beside(SPEC.rows), SPEC)
    if is_empty(work, still, extents, SPEC):
        return
    x += work.batch * xb + work.head * xn
    weights += (work.batch * fb + work.head) * slot_count(SPEC.rules)
    if bias is not None:
        bias += work.head * table_size(SPEC.rules)
    columns = y + work.batch * yb + work.head // group * yn
    sources = (source(columns, (yx, yy, yz), still, tokens(DIM, SPEC.rows), SPEC),)
    seen = still_seen(still[0], still[1], products(SPEC.rows), SPEC)
    nothing = gl.zeros([ROWS, WIDTH], gl.float32, products(SPEC.rows))
    still = still_rows(work, extents, BESIDE, SPEC)
    places = _places(still, SPEC)
    inside = (still[0].inside & still[1].inside)[:, None]
    places = Places(places.column, places.after, places.seen & inside)
    flat = (fx, fy, fz)
    slots = _query_rows(still, flat, SPEC)[:, None] + _slots(places, PITCH)
    rows = rows_from(x, (xx, xy, xz), work, extents, DIM, SPEC)
    ring = ring_of(y, SPEC.slots, SPEC.width, DIM)
    for tile in range(work.tile, work.stop):
        _, low, stop = advance(tile, (ring,), sources, work, extents, SPEC)
        to = rows_of(tile, work, extents, BESIDE, SPEC, 0)
        start, reach = gl.where(to.inside, to.start, FAR), _reach(places, to)
        at = slots + _query_row(to, flat, SPEC, PITCH)[:, None]
        entry = bias
        if bias is not None:
            entry += _slots(places, BIAS_PITCH) + _bias_row(to, still, BIAS_PITCH, SPEC)[:, None]
        async_copy.wait_group(1)
        left = rows.lines.index(0).load(factor(SPEC.rows, 0))
        copy_rows(tile + 1, rows, work, extents, SPEC)
        for first in range(low, stop, BLOCK):
            place = first % SPEC.slots
            where = weights + (first * (SPEC.columns[0] * PITCH[0]) + at)
            for begin in gl.static_range(0, BLOCK, GROUP):
                found = _scores(left, ring, place, begin, nothing, seen, SPEC) * scale
                mask = _seen(first + begin, places, start, reach, SPEC)
                to_group = where + begin * SPEC.columns[0] * PITCH[0]
                shift = (first + begin) * (SPEC.columns[0] * BIAS_PITCH[0])
                _store_scores(to_group, found, mask, entry, shift, LAYOUT)


@gluon.jit
def _weights(
    tile, first, weights, places, slots, flat, work, extents, SPEC: gl.constexpr, PITCH: gl.constexpr
):  # fmt: skip
    """`[ROWS, columns]` weights of a tile for each group of chunks from `first` on."""
    BLOCK: gl.constexpr = SPEC.block
    GROUP: gl.constexpr = SPEC.group
    LAYOUT: gl.constexpr = across(SPEC.rows, GROUP * SPEC.lanes, SPEC.inverse)
    x = rows_of(tile, work, extents, gl.SliceLayout(1, LAYOUT), SPEC, 0)
    reach = _reach(places, x)
    if SPEC.inverse:
        slots += (x.place * PITCH[0])[:, None]
    else:
        slots += _query_row(x, flat, SPEC, PITCH)[:, None]
        weights += first * (SPEC.columns[0] * PITCH[0])
    some = ()
    for begin in gl.static_range(0, BLOCK, GROUP):
        at = weights
        if SPEC.inverse:
            column = gl.minimum((first + begin) * SPEC.columns[0] + places.column, x.count - 1)
            at = (at + _viewed(column, x, flat[0], SPEC, PITCH, 0))[None, :]
        else:
            at += begin * SPEC.columns[0] * PITCH[0]
        mask = _seen(first + begin, places, x.start, reach, SPEC)
        some = some + (gl.load(at + slots, mask=mask, other=0.0),)  # noqa: RUF005
    return some


@gluon.jit
def _factors(weights, seen, SPEC: gl.constexpr):
    """The left factor of each chunk of a group."""
    FACTOR: gl.constexpr = factor(SPEC.rows, 0)
    COUNT: gl.constexpr = SPEC.group
    parts = parted(gl.convert_layout(weights, FACTOR), COUNT)
    some = ()
    for step in gl.static_range(COUNT):
        some = some + (gl.convert_layout(unfolded(parts[step], seen, FACTOR, SPEC), FACTOR),)  # noqa: RUF005
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
    GROUP: gl.constexpr = SPEC.group
    ROWS: gl.constexpr = count(SPEC.rows)
    FACTOR: gl.constexpr = factor(SPEC.rows, 0)
    extents = (X, Y, Z)
    work = strip(heads, extents, SPEC)
    LAYOUT: gl.constexpr = across(SPEC.rows, SPEC.group * SPEC.lanes, SPEC.inverse)
    still = still_rows(work, extents, gl.SliceLayout(1, LAYOUT), SPEC)
    if is_empty(work, still, extents, SPEC):
        return
    weights += (work.batch * fb + work.head) * slot_count(SPEC.rules)
    out += (work.batch * rb + work.head) * DIM
    y += work.batch * yb + work.head // group * yn
    sources = (source(y, (yx, yy, yz), still, tokens(DIM, SPEC.rows), SPEC),)
    ring = ring_of(y, SPEC.slots, SPEC.width, DIM)
    flat = (fx, fy, fz)
    places = _places(still, SPEC)
    if SPEC.inverse:
        slots = _key_rows(still, flat, SPEC, PITCH)
    else:
        slots = _query_rows(still, flat, SPEC)[:, None] + _slots(places, PITCH)
    beside_factor = still_rows(work, extents, gl.SliceLayout(1, FACTOR), SPEC)
    seen = still_seen(beside_factor[0], beside_factor[1], FACTOR, SPEC)
    low = first_chunk(rows_of(work.tile, work, extents, beside(SPEC.rows), SPEC, 0), SPEC)
    coming = _weights(work.tile, low, weights, places, slots, flat, work, extents, SPEC, PITCH)
    for tile in range(work.tile, work.stop):
        _, low, stop = advance(tile, (ring,), sources, work, extents, SPEC)
        if SPEC.inverse and SPEC.rules[0].step > 1:
            # The tile before may hold keys that no query sees, and has no chunk beside which to load these.
            coming = _weights(tile, low, weights, places, slots, flat, work, extents, SPEC, PITCH)
        next_low = first_chunk(rows_of(tile + 1, work, extents, beside(SPEC.rows), SPEC, 0), SPEC)
        acc = gl.zeros([ROWS, DIM], gl.float32, products(SPEC.rows))
        for first in range(low, stop, BLOCK):
            some = ()
            for number in gl.static_range(BLOCK // GROUP):
                some = some + _factors(coming[number].to(y.dtype.element_ty), seen, SPEC)
            is_last = first + BLOCK >= stop
            at = gl.where(is_last, next_low, first + BLOCK)
            to = tile + is_last.to(gl.int32)
            coming = _weights(to, at, weights, places, slots, flat, work, extents, SPEC, PITCH)
            async_copy.wait_group(1)
            place = first % SPEC.slots
            for step in gl.static_range(BLOCK):
                acc = add(some[step], ring, slot_after(place, step, SPEC), acc, SPEC)
        store_rows(out, tile, (rx, ry, rz), acc, work, extents, SPEC)
