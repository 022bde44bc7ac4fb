"""Gradients of attention with small windows, on rings: each sum has one owner and a fixed order.

`lse` is what `ring_forward.attend` stored; `delta` is the sum over a row of output times its gradient, less
the gradient of `lse`. `scale` holds log2(e). Strides are those of batch, axes and heads (`n`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .ring import (
    LN_2,
    LOG2_E,
    add,
    advance,
    copy_rows,
    hidden,
    is_empty,
    numbers_ring,
    ring_of,
    row_offsets,
    rows_from,
    rows_of,
    score,
    slot_after,
    source,
    still_hidden,
    still_rows,
    store_rows,
    strip,
)
from .ring_layouts import above, beside, count, factor, lines, numbers, products, tokens


@gluon.jit
def row_products(left, right, SPEC: gl.constexpr):
    """`[rows]`: products of rows that have been copied."""
    LINES: gl.constexpr = lines(left.lines.shape[2], SPEC.rows)
    each = left.lines.index(0).load(LINES).to(gl.float32) * right.lines.index(0).load(LINES).to(gl.float32)
    return gl.convert_layout(gl.sum(each, 1), beside(SPEC.rows))


@gluon.jit
def query_gradient(
    query, key, value, out, grad_out, lse, grad_lse, delta, grad_query,
    scale, heads, group, X, Y, Z,
    qb, qx, qy, qz, qn, kb, kx, ky, kz, kn, vb, vx, vy, vz, vn, gb, gx, gy, gz, gn, fb, fx, fy, fz,
    SPEC: gl.constexpr,
):  # fmt: skip
    """`delta`, and the gradient of the query; `f` are strides of `lse`, in whose order all results lie."""
    DIM: gl.constexpr = SPEC.dim
    VALUE_DIM: gl.constexpr = SPEC.value_dim
    BLOCK: gl.constexpr = SPEC.block
    WIDTH: gl.constexpr = SPEC.width
    ROWS: gl.constexpr = count(SPEC.rows)
    extents = (X, Y, Z)
    work = strip(heads, extents, SPEC)
    still = still_rows(work, extents, beside(SPEC.rows), SPEC)
    if is_empty(work, still, extents, SPEC):
        return
    kv_head = work.head // group
    flat = work.batch * fb + work.head
    out += flat * VALUE_DIM
    grad_query += flat * DIM
    lse += flat
    delta += flat
    key += work.batch * kb + kv_head * kn
    value += work.batch * vb + kv_head * vn
    sources = (
        source(key, (kx, ky, kz), still, tokens(DIM, SPEC.rows), SPEC),
        source(value, (vx, vy, vz), still, tokens(VALUE_DIM, SPEC.rows), SPEC),
    )
    unseen = still_hidden(still[0], still[1], SPEC)
    query += work.batch * qb + work.head * qn
    grad_out += work.batch * gb + work.head * gn
    queries = rows_from(query, (qx, qy, qz), work, extents, DIM, SPEC)
    slopes = rows_from(grad_out, (gx, gy, gz), work, extents, VALUE_DIM, SPEC)
    steps = (fx * VALUE_DIM, fy * VALUE_DIM, fz * VALUE_DIM)
    outs = rows_from(out, steps, work, extents, VALUE_DIM, SPEC)
    keys, values = ring_of(key, SPEC.slots, WIDTH, DIM), ring_of(value, SPEC.slots, WIDTH, VALUE_DIM)
    begin = rows_of(work.tile, work, extents, beside(SPEC.rows), SPEC, 0)
    coming = gl.load(lse + row_offsets(begin, still, (fx, fy, fz)))
    for tile in range(work.tile, work.stop):
        x, low, stop = advance(tile, (keys, values), sources, work, extents, SPEC)
        level = coming * LOG2_E
        after = rows_of(tile + 1, work, extents, beside(SPEC.rows), SPEC, 0)
        coming = gl.load(lse + row_offsets(after, still, (fx, fy, fz)))
        async_copy.wait_group(1)
        q = queries.lines.index(0).load(factor(SPEC.rows, 0))
        g = slopes.lines.index(0).load(factor(SPEC.rows, 0))
        mean = row_products(outs, slopes, SPEC)
        copy_rows(tile + 1, queries, work, extents, SPEC)
        copy_rows(tile + 1, slopes, work, extents, SPEC)
        copy_rows(tile + 1, outs, work, extents, SPEC)
        at = row_offsets(x, still, (fx, fy, fz))
        if grad_lse is not None:
            mean -= gl.load(grad_lse + flat + at)
        gl.store(delta + at, mean, mask=x.inside & still[0].inside & still[1].inside)
        less = gl.zeros([ROWS, WIDTH], gl.float32, products(SPEC.rows)) - mean[:, None]
        acc = gl.zeros([ROWS, DIM], gl.float32, products(SPEC.rows))
        for first in range(low, stop, BLOCK):
            place = first % SPEC.slots
            for step in gl.static_range(BLOCK):
                slot = slot_after(place, step, SPEC)
                scores = score(q, keys, slot, hidden(unseen, first + step, x, SPEC), SPEC)
                weights = gl.exp2(scores * scale - level[:, None])
                acc = add(weights * score(g, values, slot, less, SPEC), keys, slot, acc, SPEC)
        store_rows(grad_query, tile, (fx, fy, fz), acc * (scale * LN_2), work, extents, SPEC)


@gluon.jit
def key_gradient(
    query, key, value, grad_out, lse, delta, grad_key, grad_value,
    scale, heads, X, Y, Z,
    qb, qx, qy, qz, qn, kb, kx, ky, kz, kn, vb, vx, vy, vz, vn, gb, gx, gy, gz, gn,
    fb, fx, fy, fz, rb, rx, ry, rz,
    SPEC: gl.constexpr,
):  # fmt: skip
    """Gradients of key and value, in tokens `r` apart; `f` are strides of `lse` and `delta`."""
    DIM: gl.constexpr = SPEC.dim
    VALUE_DIM: gl.constexpr = SPEC.value_dim
    BLOCK: gl.constexpr = SPEC.block
    WIDTH: gl.constexpr = SPEC.width
    ROWS: gl.constexpr = count(SPEC.rows)
    extents = (X, Y, Z)
    work = strip(heads, extents, SPEC)
    still = still_rows(work, extents, beside(SPEC.rows), SPEC)
    if is_empty(work, still, extents, SPEC):
        return
    flat = work.batch * fb + work.head
    query += work.batch * qb + work.head * qn
    grad_out += work.batch * gb + work.head * gn
    sources = (
        source(query, (qx, qy, qz), still, tokens(DIM, SPEC.rows), SPEC),
        source(grad_out, (gx, gy, gz), still, tokens(VALUE_DIM, SPEC.rows), SPEC),
        source(lse + flat, (fx, fy, fz), still, numbers(SPEC.rows), SPEC),
        source(delta + flat, (fx, fy, fz), still, numbers(SPEC.rows), SPEC),
    )
    unseen = still_hidden(still[0], still[1], SPEC)
    nothing = gl.zeros([ROWS, WIDTH], gl.float32, products(SPEC.rows))
    key += work.batch * kb + work.head * kn
    value += work.batch * vb + work.head * vn
    keys = rows_from(key, (kx, ky, kz), work, extents, DIM, SPEC)
    values = rows_from(value, (vx, vy, vz), work, extents, VALUE_DIM, SPEC)
    rings = (
        ring_of(query, SPEC.slots, WIDTH, DIM),
        ring_of(grad_out, SPEC.slots, WIDTH, VALUE_DIM),
        numbers_ring(SPEC.slots, WIDTH),
        numbers_ring(SPEC.slots, WIDTH),
    )
    flat = work.batch * rb + work.head
    for tile in range(work.tile, work.stop):
        x, low, stop = advance(tile, rings, sources, work, extents, SPEC)
        async_copy.wait_group(1)
        k = keys.lines.index(0).load(factor(SPEC.rows, 0))
        v = values.lines.index(0).load(factor(SPEC.rows, 0))
        copy_rows(tile + 1, keys, work, extents, SPEC)
        copy_rows(tile + 1, values, work, extents, SPEC)
        acc_key = gl.zeros([ROWS, DIM], gl.float32, products(SPEC.rows))
        acc_value = gl.zeros([ROWS, VALUE_DIM], gl.float32, products(SPEC.rows))
        for first in range(low, stop, BLOCK):
            place = first % SPEC.slots
            for step in gl.static_range(BLOCK):
                slot = slot_after(place, step, SPEC)
                scores = score(k, rings[0], slot, hidden(unseen, first + step, x, SPEC), SPEC)
                level = rings[2].index(slot).load(above(SPEC.rows)) * LOG2_E
                weights = gl.exp2(scores * scale - level[None, :])
                acc_value = add(weights, rings[1], slot, acc_value, SPEC)
                less = nothing - rings[3].index(slot).load(above(SPEC.rows))[None, :]
                acc_key = add(weights * score(v, rings[1], slot, less, SPEC), rings[0], slot, acc_key, SPEC)
        to = (rx, ry, rz)
        acc_key *= scale * LN_2
        store_rows(grad_key + flat * DIM, tile, to, acc_key, work, extents, SPEC)
        store_rows(grad_value + flat * VALUE_DIM, tile, to, acc_value, work, extents, SPEC)
