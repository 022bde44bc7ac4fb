"""Gradient of the queries for Hopper in Gluon: the forward's tiles, walked once more.

Each box costs three products: scores, dP = dO V^T, and dQ += dS K, where dS = P (dP - delta). The last one of
a box runs beside the first of the next.
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


@gluon.jit
def _copy(
    query, grad_out, key, value, queries, grad_outs, ready, keys, values, tile, kv_head, SPEC: gl.constexpr
):
    """The producer: queries and output gradients of both warpgroups, then boxes of keys and values."""
    for warpgroup in gl.static_range(2):
        at = ht.corner(tile.start, warpgroup, SPEC)
        coordinate = [tile.planes[0] + at[0], at[1], at[2], tile.head, 0]
        bar = ready.index(warpgroup)
        mbarrier.expect(bar, query.block_type.nbytes + grad_out.block_type.nbytes)
        tma.async_copy_global_to_shared(query, coordinate, bar, queries.index(warpgroup))
        tma.async_copy_global_to_shared(grad_out, coordinate, bar, grad_outs.index(warpgroup))
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
def _differentiate(
    warpgroup: gl.constexpr,
    grad_query,
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
    plane,
    SPEC: gl.constexpr,
):
    """A consumer: the gradient of 64 queries, over every box of keys."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    grad_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.dim, 16])
    slope_layout: gl.constexpr = gl.DotOperandLayout(0, grad_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)

    box_of_rows: gl.constexpr = SPEC.rows
    start = ht.corner(tile.start, warpgroup, SPEC)
    row = hw.coordinates(gl.arange(0, 64, layout=row_layout), start, box_of_rows)
    row = hw.clip(row, tile.outputs)
    tokens = extents[0] * extents[1] * extents[2]
    known = statistics + (tile.batch * heads + tile.head).to(gl.int64) * tokens
    token = ht.token(row, tile, extents, SPEC)
    lse2 = gl.load(known + token)
    delta = gl.load(known + plane + token)
    first, stop = hw.windows(row, tile.lengths, SPEC)
    shared = hw.shared_window(start, tile, SPEC)
    sizes: gl.constexpr = SPEC.sizes
    column = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, score_layout))

    query = queries.index(warpgroup).reshape([64, SPEC.dim])
    grad_out = grad_outs.index(warpgroup).reshape([64, SPEC.value_dim])
    grad = gl.full([64, SPEC.dim], 0.0, gl.float32, layout=grad_layout)
    empty = gl.full([64, SPEC.width], 0.0, gl.float32, layout=score_layout)
    slope = gl.full([64, SPEC.width], 0.0, query.dtype, layout=slope_layout)
    slow, begin, end = ht.own_keys(start, tile, SPEC)
    for i in range(begin):
        _pass(keys, values, i, SPEC)
    box = ht.box_of(slow, SPEC)
    mbarrier.wait(ready.index(warpgroup), 0)
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
    grad = warpgroup_mma_wait(0, deps=(adding,)) * scale
    mbarrier.arrive(keys.empty.index(stage), count=1)
    for i in range(end, tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
        _pass(keys, values, i, SPEC)
    ht.put(grad_query, grad, queries.index(warpgroup), tile.planes[0], start, tile.head)
    tma.store_wait(0)


@gluon.jit
def _run(
    query,
    grad_out,
    key,
    value,
    grad_query,
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
    queries = ht.buffers(query, 2)
    grad_outs = ht.buffers(grad_out, 2)
    ready = ht.barriers(2, 1)
    keys = ht.ring(key, SPEC.stages, 2)
    values = ht.ring(value, SPEC.stages, 2)
    gl.warp_specialize(
        [
            (_differentiate, (
                0, grad_query, statistics, queries, grad_outs, ready, keys, values, scale, scale2, tile,
                extents, heads, plane, SPEC,
            )),
            (_differentiate, (
                1, grad_query, statistics, queries, grad_outs, ready, keys, values, scale, scale2, tile,
                extents, heads, plane, SPEC,
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
    """Gradient from `statistics` `[2, batch * heads, t, h, w]`; its second half starts at `plane`."""
    outputs = (t, h, w)
    tile = ht.query_tile(gl.program_id(0), outputs, (key_t, key_h, key_w), heads, SPEC)
    _run(
        query,
        grad_out,
        key,
        value,
        grad_query,
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
    query, grad_out, key, value, grad_query, statistics, scale, scale2,
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
