"""Gradient of the queries for Hopper in Gluon: the forward's tiles, walked once more.

Each box costs three products: scores, dP = dO V^T, and dQ += dS K, where dS = P (dP - delta). The last one of
a box runs beside the first of the next. Before the walk a program finds log-sum-exp in base 2 and
delta = dO . O - dLSE of its queries, and leaves them for the gradients of keys and values.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from . import hopper_tile as ht
from . import hopper_window as hw

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _copy(
    query, grad_out, key, value, queries, grad_outs, ready, keys, values, tile, kv_head, SPEC: gl.constexpr
):
    """The producer: queries and output gradients of both warpgroups, then boxes of keys and values."""
    ht.copy_rows(query, grad_out, queries, grad_outs, ready, tile.planes[0], tile, SPEC)
    if SPEC.wants_query:
        box = ht.box_of(gl.to_tensor(0), SPEC)
        for i in range(tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
            stage = i % SPEC.stages
            phase = (i // SPEC.stages) & 1
            at = ht.box_at(tile.first, box, SPEC)
            mbarrier.wait(keys.empty.index(stage), phase ^ 1)
            ht.fill(key, keys, stage, tile.planes[1], at, kv_head)
            mbarrier.wait(values.empty.index(stage), phase ^ 1)
            ht.fill(value, values, stage, tile.planes[1], at, kv_head)
            box = ht.step(box, tile.boxes, SPEC)


@gluon.jit
def _pass(keys, values, i, SPEC: gl.constexpr):
    """Leaves a box to the other warpgroup."""
    stage = i % SPEC.stages
    phase = (i // SPEC.stages) & 1
    mbarrier.wait(keys.full.index(stage), phase)
    mbarrier.arrive(keys.empty.index(stage), count=1)
    mbarrier.wait(values.full.index(stage), phase)
    mbarrier.arrive(values.empty.index(stage), count=1)


@gluon.jit
def _delta(out, grad_out, bar, start, tile, extents, heads, value_dim, SPEC: gl.constexpr):
    """dO . O of a warpgroup's queries, from outputs in memory and their gradients in shared memory."""
    width: gl.constexpr = SPEC.value_dim
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // width, width // 8], [4, 1], [1, 0])
    box_of_rows: gl.constexpr = SPEC.rows
    row = hw.coordinates(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), start, box_of_rows)
    at = ht.entry(hw.clip(row, tile.outputs), tile, extents, heads, SPEC) * value_dim
    column = gl.arange(0, width, layout=gl.SliceLayout(0, layout))
    known = gl.load(out + (at[:, None] + column[None, :]), mask=(column < value_dim)[None, :], other=0.0)
    mbarrier.wait(bar, 0)
    return gl.sum(known.to(gl.float32) * grad_out.load(layout).to(gl.float32), 1)


@gluon.jit
def _prepare(
    out, lse, grad_lse, statistics, grad_out, bar, row, start, tile, extents, heads, value_dim, plane,
    SPEC: gl.constexpr,
):  # fmt: skip
    """Log-sum-exps in base 2 and deltas of a warpgroup's queries; what lies in the tensor is kept."""
    layout: gl.constexpr = row[0].type.layout
    clipped = hw.clip(row, tile.outputs)
    entry = ht.entry(clipped, tile, extents, heads, SPEC)
    lse2 = gl.load(lse + entry) * LOG2E
    delta = _delta(out, grad_out, bar, start, tile, extents, heads, value_dim, SPEC)
    delta = gl.convert_layout(delta, layout)
    if SPEC.has_grad_lse:
        delta -= gl.load(grad_lse + entry)
    tokens = extents[0] * extents[1] * extents[2]
    kept = statistics + (tile.batch * heads + tile.head).to(gl.int64) * tokens
    token = ht.token(clipped, tile, extents, SPEC)
    inside = hw.inside(row, tile.outputs)
    gl.store(kept + token, lse2, mask=inside)
    gl.store(kept + plane + token, delta, mask=inside)
    return lse2, delta


@gluon.jit
def _differentiate(
    warpgroup: gl.constexpr,
    grad_query,
    out,
    lse,
    grad_lse,
    statistics,
    queries,
    grad_outs,
    ready,
    keys,
    values,
    scale,
    scale2,
    tile,
    extents,
    heads,
    value_dim,
    plane,
    SPEC: gl.constexpr,
):
    """A consumer: the gradient of 64 queries, over every box of keys."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    box_of_rows: gl.constexpr = SPEC.rows
    start = ht.corner(tile.start, warpgroup, SPEC)
    row = hw.coordinates(gl.arange(0, 64, layout=row_layout), start, box_of_rows)
    query = queries.index(warpgroup).reshape([64, SPEC.dim])
    grad_out = grad_outs.index(warpgroup).reshape([64, SPEC.value_dim])
    lse2, delta = _prepare(
        out, lse, grad_lse, statistics, grad_out, ready.index(warpgroup), row, start, tile, extents, heads,
        value_dim, plane, SPEC,
    )  # fmt: skip
    if SPEC.wants_query:
        row = hw.clip(row, tile.outputs)
        grad = _walk(query, grad_out, lse2, delta, keys, values, scale2, row, start, tile, SPEC) * scale
        ht.put(grad_query, grad, queries.index(warpgroup), tile.planes[0], start, tile.head)
        tma.store_wait(0)


@gluon.jit
def _walk(query, grad_out, lse2, delta, keys, values, scale2, row, start, tile, SPEC: gl.constexpr):
    """Sum of slopes times keys over every box."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    grad_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.dim, 16])
    slope_layout: gl.constexpr = gl.DotOperandLayout(0, grad_layout, 2)
    query = ht.factor(query, score_layout, SPEC)
    first, stop = hw.windows(row, tile.lengths, SPEC)
    shared = hw.shared_window(start, tile, SPEC)
    sizes: gl.constexpr = SPEC.sizes
    column = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, score_layout))

    grad = gl.full([64, SPEC.dim], 0.0, gl.float32, layout=grad_layout)
    empty = gl.full([64, SPEC.width], 0.0, gl.float32, layout=score_layout)
    slope = gl.full([64, SPEC.width], 0.0, query.dtype, layout=slope_layout)
    slow, begin, end = ht.own_keys(start, tile, SPEC)
    for i in range(begin):
        _pass(keys, values, i, SPEC)
    box = ht.box_of(slow, SPEC)
    for i in range(begin, end):
        stage = i % SPEC.stages
        phase = (i // SPEC.stages) & 1
        before = (i + SPEC.stages - 1) % SPEC.stages
        mbarrier.wait(keys.full.index(stage), phase)
        key = keys.buffers.index(stage).reshape([SPEC.width, SPEC.dim])
        flying = warpgroup_mma(query, key.permute((1, 0)), empty, use_acc=False, is_async=True)
        # The slopes of the box before; at first they are zero and may meet any finite keys.
        previous = keys.buffers.index(gl.where(i > begin, before, stage)).reshape([SPEC.width, SPEC.dim])
        adding = warpgroup_mma(slope, previous, grad, is_async=True)
        mbarrier.wait(values.full.index(stage), phase)
        value = values.buffers.index(stage).reshape([SPEC.width, SPEC.value_dim])
        pulling = warpgroup_mma(grad_out, value.permute((1, 0)), empty, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(2, deps=(flying,))
        weights = gl.exp2(scores * scale2 - lse2[:, None])
        at = ht.box_at(tile.first, box, SPEC)
        weights = hw.hide(weights, 0.0, at, column, first, stop, shared, sizes, SPEC)
        grad = warpgroup_mma_wait(1, deps=(adding,))
        mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)
        pulled = warpgroup_mma_wait(0, deps=(pulling,))
        mbarrier.arrive(values.empty.index(stage), count=1)
        slope = gl.convert_layout((weights * (pulled - delta[:, None])).to(query.dtype), slope_layout)
        box = ht.step(box, tile.boxes, SPEC)
    stage = (end - 1) % SPEC.stages
    last = keys.buffers.index(stage).reshape([SPEC.width, SPEC.dim])
    adding = warpgroup_mma(slope, last, grad, is_async=True)
    grad = warpgroup_mma_wait(0, deps=(adding,))
    mbarrier.arrive(keys.empty.index(stage), count=1)
    for i in range(end, tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
        _pass(keys, values, i, SPEC)
    return grad


@gluon.jit
def _run(
    query,
    grad_out,
    key,
    value,
    grad_query,
    out,
    lse,
    grad_lse,
    statistics,
    scale,
    scale2,
    tile,
    extents,
    heads,
    group,
    plane,
    SPEC: gl.constexpr,
):
    value_dim = grad_out.shape[4]
    queries = ht.buffers(query, 2)
    grad_outs = ht.buffers(grad_out, 2)
    ready = ht.barriers(2, 1)
    # Triton lays barriers that no partition uses over buffers of others.
    keys = ht.ring(key, SPEC.stages, 2) if SPEC.wants_query else ()
    values = ht.ring(value, SPEC.stages, 2) if SPEC.wants_query else ()
    gl.warp_specialize(
        [
            (_differentiate, (
                0, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, ready, keys, values, scale,
                scale2, tile, extents, heads, value_dim, plane, SPEC,
            )),
            (_differentiate, (
                1, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, ready, keys, values, scale,
                scale2, tile, extents, heads, value_dim, plane, SPEC,
            )),
            (_copy, (
                query, grad_out, key, value, queries, grad_outs, ready, keys, values, tile,
                tile.head // group, SPEC,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


@gluon.jit(do_not_specialize=["scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group"])
def differentiate_queries(
    query,
    grad_out,
    key,
    value,
    grad_query,
    out,
    lse,
    grad_lse,
    statistics,
    scale,
    scale2,
    t,
    h,
    w,
    key_t,
    key_h,
    key_w,
    heads,
    group,
    plane: gl.int64,
    SPEC: gl.constexpr,
):
    """Gradient, and `statistics` `[2, batch * heads, t, h, w]`; its second half starts at `plane`.

    `out`, `lse` and `grad_lse` are contiguous.
    """
    outputs = (t, h, w)
    tile = ht.query_tile(gl.program_id(0), outputs, (key_t, key_h, key_w), heads, SPEC)
    _run(
        query,
        grad_out,
        key,
        value,
        grad_query,
        out,
        lse,
        grad_lse,
        statistics,
        scale,
        scale2,
        tile,
        outputs,
        heads,
        group,
        plane,
        SPEC,
    )


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "dim", "value_dim"
    ]
)  # fmt: skip
def differentiate_query_groups(
    query, grad_out, key, value, grad_query, out, lse, grad_lse, statistics, scale, scale2,
    t, h, w, key_t, key_h, key_w, heads, group, plane: gl.int64, dim, value_dim,
    query_strides, grad_out_strides, key_strides, value_strides, grad_query_strides, SPEC: gl.constexpr,
):  # fmt: skip
    """The same with dilation, through descriptors of each program's group."""
    outputs, lengths = (t, h, w), (key_t, key_h, key_w)
    rows: gl.constexpr = SPEC.rows
    columns: gl.constexpr = SPEC.columns
    tile = ht.query_tile(gl.program_id(0), outputs, lengths, heads, SPEC)
    shared = heads // group
    query = ht.group_view(query, query_strides, outputs, tile, heads, dim, rows, SPEC.dim, SPEC)
    grad_out = ht.group_view(
        grad_out, grad_out_strides, outputs, tile, heads, value_dim, rows, SPEC.value_dim, SPEC
    )
    key = ht.group_view(key, key_strides, lengths, tile, shared, dim, columns, SPEC.dim, SPEC)
    value = ht.group_view(
        value, value_strides, lengths, tile, shared, value_dim, columns, SPEC.value_dim, SPEC
    )
    grad_query = ht.group_view(
        grad_query, grad_query_strides, outputs, tile, heads, dim, rows, SPEC.dim, SPEC
    )
    _run(
        query,
        grad_out,
        key,
        value,
        grad_query,
        out,
        lse,
        grad_lse,
        statistics,
        scale,
        scale2,
        tile,
        outputs,
        heads,
        group,
        plane,
        SPEC,
    )
