"""Attention with small windows on rings of keys and values, forward: one softmax over all a tile sees."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .ring import (
    LN_2,
    add,
    advance,
    copy_rows,
    hidden,
    is_empty,
    ring_of,
    row_offsets,
    rows_from,
    score,
    slot_after,
    source,
    still_hidden,
    still_rows,
    store_rows,
    strip,
)
from .ring_layouts import beside, count, factor, products, tokens


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
    if is_empty(work, still, extents, SPEC):
        return
    kv_head = work.head // group
    out += (work.batch * fb + work.head) * VALUE_DIM
    lse += work.batch * fb + work.head
    key += work.batch * kb + kv_head * kn
    value += work.batch * vb + kv_head * vn
    sources = (
        source(key, (kx, ky, kz), still, tokens(DIM, SPEC.rows), SPEC),
        source(value, (vx, vy, vz), still, tokens(VALUE_DIM, SPEC.rows), SPEC),
    )
    unseen = still_hidden(still[0], still[1], SPEC)
    query += work.batch * qb + work.head * qn
    queries = rows_from(query, (qx, qy, qz), work, extents, DIM, SPEC)
    keys, values = ring_of(key, SPEC.slots, WIDTH, DIM), ring_of(value, SPEC.slots, WIDTH, VALUE_DIM)
    for tile in range(work.tile, work.stop):
        x, low, _ = advance(tile, (keys, values), sources, work, extents, SPEC)
        async_copy.wait_group(1)
        q = queries.lines.index(0).load(factor(SPEC.rows, 0))
        copy_rows(tile + 1, queries, work, extents, SPEC)
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
        store_rows(out, tile, (fx, fy, fz), acc * (1.0 / total)[:, None], work, extents, SPEC)
