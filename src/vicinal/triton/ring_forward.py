"""Attention with small windows on rings of keys and values, forward: one softmax over all a tile sees."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .ring import (
    LN_2,
    add,
    beside,
    copy_lines,
    count,
    factor,
    fill,
    first_chunk,
    held,
    hidden,
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
def attend(
    query, key, value, out, lse,
    scale, heads, group, X, Y, Z,
    qb, qx, qy, qz, qn, kb, kx, ky, kz, kn, vb, vx, vy, vz, vn, fb, fx, fy, fz,
    SPEC: gl.constexpr,
):  # fmt: skip
    """`scale` holds log2(e). Strides are those of batch, axes and heads (`n`); `f` those of `lse`."""
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
    query += work.batch * qb + work.head * qn
    out += (work.batch * fb + work.head) * VALUE_DIM
    lse += work.batch * fb + work.head
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
    queries = ring_of(query, 1, ROWS, DIM)
    keys, values = ring_of(key, SPEC.slots, WIDTH, DIM), ring_of(value, SPEC.slots, WIDTH, VALUE_DIM)
    lead = rows_of(work.tile, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
    copy_lines(queries, 0, query + row_offsets(lead, in_still, (qx, qy, qz)), SPEC)
    for tile in range(work.tile, work.stop):
        x = rows_of(tile, work, extents, beside(SPEC.rows), SPEC, 0)
        low, stop = first_chunk(x, SPEC), stop_chunk(x, SPEC)
        fill((keys, values), sources, held(tile, x, work, extents, SPEC), stop, x, SPEC)
        async_copy.commit_group()
        ahead = rows_of(tile + 1, work, extents, tokens(DIM, SPEC.rows), SPEC, 0)
        fill((keys, values), sources, stop, gl.minimum(stop_chunk(ahead, SPEC), low + SPEC.slots), x, SPEC)
        async_copy.commit_group()
        async_copy.wait_group(1)
        q = queries.index(0).load(factor(SPEC.rows, 0))
        copy_lines(queries, 0, query + row_offsets(ahead, in_still, (qx, qy, qz)), SPEC)
        slot = low % SPEC.slots
        scores = ()
        for step in gl.static_range(BLOCK):
            start = hidden(unseen, low + step, x, SPEC)
            # Triton compiles no starred tuple.
            scores = scores + (score(q, keys, slot_after(slot, step, SPEC), start, SPEC),)  # noqa: RUF005
        top = scores[0]
        for step in gl.static_range(1, BLOCK):
            top = gl.maximum(top, scores[step])
        top = gl.max(top, 1) * scale
        total = gl.zeros([ROWS, WIDTH], gl.float32, products(SPEC.rows))
        acc = gl.zeros([ROWS, VALUE_DIM], gl.float32, products(SPEC.rows))
        for step in gl.static_range(BLOCK):
            weights = gl.exp2(scores[step] * scale - top[:, None])
            total += weights
            acc = add(weights, values, slot_after(slot, step, SPEC), acc, SPEC)
        total = gl.sum(total, 1)
        inside = x.inside & still[0].inside & still[1].inside
        level = (top + gl.log2(total)) * LN_2
        gl.store(lse + row_offsets(x, still, (fx, fy, fz)), level, mask=inside)
        here = rows_of(tile, work, extents, tokens(VALUE_DIM, SPEC.rows), SPEC, 0)
        store_lines(out, here, out_still, (fx, fy, fz), acc * (1.0 / total)[:, None], SPEC)
