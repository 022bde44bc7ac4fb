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
    above,
    add,
    beside,
    copy_lines,
    count,
    factor,
    fill,
    first_chunk,
    held,
    hidden,
    lines,
    numbers,
    numbers_ring,
    products,
    ring_of,
    row_offsets,
    rows_of,
    score,
    slot_after,
    source,
    still_hidden,
    still_rows,
    stop_chunk,
    store_lines,
    strip,
    tokens,
)


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
    begin = rows_of(work.tile, work, extents, beside(SPEC.rows), SPEC, 0)
    if begin.empty | still[0].empty | still[1].empty:
        return
    kv_head = work.head // group
    flat = work.batch * fb + work.head
    query += work.batch * qb + work.head * qn
    grad_out += work.batch * gb + work.head * gn
    out += flat * VALUE_DIM
    grad_query += flat * DIM
    lse += flat
    delta += flat
    sources = (
        source(
            key + work.batch * kb + kv_head * kn,
            (kx, ky, kz),
            still[0],
            still[1],
            tokens(DIM, SPEC.rows),
            SPEC,
        ),
        source(
            value + work.batch * vb + kv_head * vn,
            (vx, vy, vz),
            still[0],
            still[1],
            tokens(VALUE_DIM, SPEC.rows),
            SPEC,
        ),
    )
    unseen = still_hidden(still[0], still[1], SPEC)
    in_still = still_rows(work, extents, tokens(DIM, SPEC.rows), SPEC)
    out_still = still_rows(work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC)
    queries, slopes = ring_of(query, 1, ROWS, DIM), ring_of(grad_out, 1, ROWS, VALUE_DIM)
    outs = ring_of(out, 1, ROWS, VALUE_DIM)
    keys, values = ring_of(key, SPEC.slots, WIDTH, DIM), ring_of(value, SPEC.slots, WIDTH, VALUE_DIM)
    lead = rows_of(work.tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
    copy_lines(queries, 0, query + row_offsets(lead, in_still, (qx, qy, qz)), SPEC)
    value_lead = rows_of(work.tile, work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC, 0)
    copy_lines(slopes, 0, grad_out + row_offsets(value_lead, out_still, (gx, gy, gz)), SPEC)
    copy_lines(outs, 0, out + row_offsets(value_lead, out_still, (fx, fy, fz)) * VALUE_DIM, SPEC)
    coming = gl.load(lse + row_offsets(begin, still, (fx, fy, fz)))
    for tile in range(work.tile, work.stop):
        x = rows_of(tile, work, extents, beside(SPEC.rows), SPEC, 0)
        low, stop = first_chunk(x, SPEC), stop_chunk(x, SPEC)
        fill((keys, values), sources, held(tile, x, work, extents, SPEC), stop, x, SPEC)
        async_copy.commit_group()
        ahead = rows_of(tile + 1, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
        value_ahead = rows_of(tile + 1, work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC, 0)
        fill((keys, values), sources, stop, gl.minimum(stop_chunk(ahead, SPEC), low + SPEC.slots), x, SPEC)
        async_copy.commit_group()
        level = coming * LOG2_E
        after = rows_of(tile + 1, work, extents, beside(SPEC.rows), SPEC, 0)
        coming = gl.load(lse + row_offsets(after, still, (fx, fy, fz)))
        async_copy.wait_group(1)
        q, g = queries.index(0).load(factor(SPEC.rows, 0)), slopes.index(0).load(factor(SPEC.rows, 0))
        o = outs.index(0).load(lines(VALUE_DIM, SPEC.rows)).to(gl.float32)
        mean = gl.sum(o * slopes.index(0).load(lines(VALUE_DIM, SPEC.rows)).to(gl.float32), 1)
        copy_lines(queries, 0, query + row_offsets(ahead, in_still, (qx, qy, qz)), SPEC)
        copy_lines(slopes, 0, grad_out + row_offsets(value_ahead, out_still, (gx, gy, gz)), SPEC)
        copy_lines(outs, 0, out + row_offsets(value_ahead, out_still, (fx, fy, fz)) * VALUE_DIM, SPEC)
        mean = gl.convert_layout(mean, beside(SPEC.rows))
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
        here = rows_of(tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
        store_lines(grad_query, here, in_still, (fx, fy, fz), acc * (scale * LN_2), SPEC)


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
    begin = rows_of(work.tile, work, extents, beside(SPEC.rows), SPEC, 0)
    if begin.empty | still[0].empty | still[1].empty:
        return
    key += work.batch * kb + work.head * kn
    value += work.batch * vb + work.head * vn
    flat = work.batch * fb + work.head
    sources = (
        source(
            query + work.batch * qb + work.head * qn,
            (qx, qy, qz),
            still[0],
            still[1],
            tokens(DIM, SPEC.rows),
            SPEC,
        ),
        source(
            grad_out + work.batch * gb + work.head * gn,
            (gx, gy, gz),
            still[0],
            still[1],
            tokens(VALUE_DIM, SPEC.rows),
            SPEC,
        ),
        source(lse + flat, (fx, fy, fz), still[0], still[1], numbers(SPEC.rows), SPEC),
        source(delta + flat, (fx, fy, fz), still[0], still[1], numbers(SPEC.rows), SPEC),
    )
    unseen = still_hidden(still[0], still[1], SPEC)
    nothing = gl.zeros([ROWS, WIDTH], gl.float32, products(SPEC.rows))
    in_still = still_rows(work, extents, tokens(DIM, SPEC.rows), SPEC)
    out_still = still_rows(work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC)
    keys, values = ring_of(key, 1, ROWS, DIM), ring_of(value, 1, ROWS, VALUE_DIM)
    rings = (
        ring_of(query, SPEC.slots, WIDTH, DIM),
        ring_of(grad_out, SPEC.slots, WIDTH, VALUE_DIM),
        numbers_ring(SPEC.slots, WIDTH),
        numbers_ring(SPEC.slots, WIDTH),
    )
    lead = rows_of(work.tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
    copy_lines(keys, 0, key + row_offsets(lead, in_still, (kx, ky, kz)), SPEC)
    value_lead = rows_of(work.tile, work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC, 0)
    copy_lines(values, 0, value + row_offsets(value_lead, out_still, (vx, vy, vz)), SPEC)
    for tile in range(work.tile, work.stop):
        x = rows_of(tile, work, extents, beside(SPEC.rows), SPEC, 0)
        low, stop = first_chunk(x, SPEC), stop_chunk(x, SPEC)
        fill(rings, sources, held(tile, x, work, extents, SPEC), stop, x, SPEC)
        async_copy.commit_group()
        ahead = rows_of(tile + 1, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
        value_ahead = rows_of(tile + 1, work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC, 0)
        fill(rings, sources, stop, gl.minimum(stop_chunk(ahead, SPEC), low + SPEC.slots), x, SPEC)
        async_copy.commit_group()
        async_copy.wait_group(1)
        k, v = keys.index(0).load(factor(SPEC.rows, 0)), values.index(0).load(factor(SPEC.rows, 0))
        copy_lines(keys, 0, key + row_offsets(ahead, in_still, (kx, ky, kz)), SPEC)
        copy_lines(values, 0, value + row_offsets(value_ahead, out_still, (vx, vy, vz)), SPEC)
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
        here = rows_of(tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
        store_lines(
            grad_key + (work.batch * rb + work.head) * DIM,
            here,
            in_still,
            (rx, ry, rz),
            acc_key * (scale * LN_2),
            SPEC,
        )
        here = rows_of(tile, work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC, 0)
        store_lines(
            grad_value + (work.batch * rb + work.head) * VALUE_DIM,
            here,
            out_still,
            (rx, ry, rz),
            acc_value,
            SPEC,
        )
