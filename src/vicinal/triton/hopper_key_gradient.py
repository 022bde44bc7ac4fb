"""Gradients of keys and values for Hopper in Gluon: a tile of keys walks boxes of the queries that see them.

Each box costs four products of transposed scores: S^T = K Q^T, dP^T = V dO^T, dV += P^T dO and dK += dS^T Q.
Query heads that share a key head are walked one after the other, so the sums need neither atomics nor another
pass.
"""

# What is wanted is known at compile time.
# pyright: reportPossiblyUnboundVariable=false
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
def _notes(statistics, plane, head, box, index, tile, extents, heads, SPEC: gl.constexpr):
    """Statistics of a box of queries: `index` below the width reads log-sum-exps, above it deltas."""
    columns: gl.constexpr = SPEC.columns
    at = hw.coordinates(index % SPEC.width, ht.box_at(tile.first, box, SPEC), columns)
    query = hw.clip(at, tile.outputs)
    tokens = extents[0] * extents[1] * extents[2]
    known = statistics + (tile.batch * heads + head).to(gl.int64) * tokens
    return gl.load(known + (index // SPEC.width) * plane + ht.token(query, tile, extents, SPEC))


@gluon.jit
def _copy(
    key,
    value,
    query,
    grad_out,
    statistics,
    keys,
    values,
    ready,
    queries,
    grad_outs,
    notes,
    tile,
    extents,
    heads,
    group,
    plane,
    SPEC: gl.constexpr,
):
    """The producer: keys and values of both warpgroups, then boxes of queries with their statistics."""
    ht.copy_rows(key, value, keys, values, ready, tile.planes[1], tile, SPEC)
    index = gl.arange(0, 2 * SPEC.width, layout=gl.BlockedLayout([1], [32], [1], [0]))
    count = tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
    box = ht.box_of(gl.to_tensor(0), SPEC)
    for i in range(group * count):
        stage = i % SPEC.stages
        head = tile.head * group + i // count
        note = _notes(statistics, plane, head, box, index, tile, extents, heads, SPEC)
        mbarrier.wait(queries.empty.index(stage), ((i // SPEC.stages) & 1) ^ 1)
        at = ht.box_at(tile.first, box, SPEC)
        ht.fill(query, queries, stage, tile.planes[0], at, head)
        ht.fill(grad_out, grad_outs, stage, tile.planes[0], at, head)
        notes.buffers.index(stage).store(note)
        mbarrier.arrive(notes.full.index(stage), count=1)
        box = ht.step(box, tile.boxes, SPEC)


@gluon.jit
def _pass(queries, grad_outs, i, SPEC: gl.constexpr):
    """Leaves a box to the other warpgroup."""
    stage = i % SPEC.stages
    phase = (i // SPEC.stages) & 1
    mbarrier.wait(queries.full.index(stage), phase)
    mbarrier.wait(grad_outs.full.index(stage), phase)
    mbarrier.arrive(queries.empty.index(stage), count=1)


@gluon.jit
def _differentiate(  # noqa: PLR0912 what is wanted is known at compile time
    warpgroup: gl.constexpr,
    grad_key,
    grad_value,
    keys,
    values,
    ready,
    queries,
    grad_outs,
    notes,
    scale,
    scale2,
    tile,
    group,
    SPEC: gl.constexpr,
):
    """A consumer: the gradients of 64 keys and values, over every box of queries."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    key_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.dim, 16])
    value_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.value_dim, 16])
    note_layout: gl.constexpr = gl.SliceLayout(0, score_layout)

    box_of_rows: gl.constexpr = SPEC.rows
    differ: gl.constexpr = (0, 0, 0)
    start = ht.corner(tile.start, warpgroup, SPEC)
    row = hw.coordinates(gl.arange(0, 64, layout=gl.SliceLayout(1, score_layout)), start, box_of_rows)
    first, stop = hw.viewers(hw.clip(row, tile.lengths), tile.lengths, SPEC)
    shared = hw.shared_viewers(start, tile, SPEC)
    column = gl.arange(0, SPEC.width, layout=note_layout)
    key = keys.index(warpgroup).reshape([64, SPEC.dim])
    value = values.index(warpgroup).reshape([64, SPEC.value_dim])
    sum_key = gl.full([64, SPEC.dim], 0.0, gl.float32, layout=key_layout)
    sum_value = gl.full([64, SPEC.value_dim], 0.0, gl.float32, layout=value_layout)
    empty = gl.full([64, SPEC.width], 0.0, gl.float32, layout=score_layout)
    count = tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
    slow, begin, end = ht.own_queries(start, tile, SPEC)
    mbarrier.wait(ready.index(warpgroup), 0)
    for member in range(group):
        for i in range(member * count, member * count + begin):
            _pass(queries, grad_outs, i, SPEC)
        box = ht.box_of(slow, SPEC)
        for i in range(member * count + begin, member * count + end):
            stage = i % SPEC.stages
            phase = (i // SPEC.stages) & 1
            mbarrier.wait(queries.full.index(stage), phase)
            query = queries.buffers.index(stage).reshape([SPEC.width, SPEC.dim])
            flying = warpgroup_mma(key, query.permute((1, 0)), empty, use_acc=False, is_async=True)
            mbarrier.wait(grad_outs.full.index(stage), phase)
            grad_out = grad_outs.buffers.index(stage).reshape([SPEC.width, SPEC.value_dim])
            if SPEC.wants_key:
                pulling = warpgroup_mma(value, grad_out.permute((1, 0)), empty, use_acc=False, is_async=True)
            mbarrier.wait(notes.full.index(stage), phase)
            note = notes.buffers.index(stage)
            scores = warpgroup_mma_wait(1 if SPEC.wants_key else 0, deps=(flying,))
            lse2 = note.slice(0, SPEC.width).load(note_layout)
            weights = gl.exp2(scores * scale2 - lse2[None, :])
            at = ht.box_at(tile.first, box, SPEC)
            weights = hw.hide(weights, 0.0, at, column, first, stop, shared, differ, SPEC)
            if SPEC.wants_key:
                pulled = warpgroup_mma_wait(0, deps=(pulling,))
                delta = note.slice(SPEC.width, SPEC.width).load(note_layout)
                slope = gl.convert_layout(
                    (weights * (pulled - delta[None, :])).to(key.dtype), gl.DotOperandLayout(0, key_layout, 2)
                )
            if SPEC.wants_value:
                rounded = gl.convert_layout(weights.to(key.dtype), gl.DotOperandLayout(0, value_layout, 2))
                adding_value = warpgroup_mma(rounded, grad_out, sum_value, is_async=True)
            if SPEC.wants_key:
                adding_key = warpgroup_mma(slope, query, sum_key, is_async=True)
            if SPEC.wants_key and SPEC.wants_value:
                sum_key, sum_value = warpgroup_mma_wait(0, deps=(adding_key, adding_value))
            elif SPEC.wants_key:
                sum_key = warpgroup_mma_wait(0, deps=(adding_key,))
            else:
                sum_value = warpgroup_mma_wait(0, deps=(adding_value,))
            mbarrier.arrive(queries.empty.index(stage), count=1)
            box = ht.step(box, tile.boxes, SPEC)
        for i in range(member * count + end, member * count + count):
            _pass(queries, grad_outs, i, SPEC)
    if SPEC.wants_key:
        ht.put(grad_key, sum_key * scale, keys.index(warpgroup), tile.planes[1], start, tile.head)
    if SPEC.wants_value:
        ht.put(grad_value, sum_value, values.index(warpgroup), tile.planes[1], start, tile.head)
    tma.store_wait(0)


@gluon.jit
def _run(
    key,
    value,
    query,
    grad_out,
    grad_key,
    grad_value,
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
    keys = ht.buffers(key, 2)
    values = ht.buffers(value, 2)
    ready = ht.barriers(2, 1)
    queries = ht.ring(query, SPEC.stages, 2)
    grad_outs = ht.ring(grad_out, SPEC.stages, 2)
    note_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    note_buffers = gl.allocate_shared_memory(gl.float32, [SPEC.stages, 2 * SPEC.width], note_layout)
    notes = ht.Ring(note_buffers, ht.barriers(SPEC.stages, 1), queries.empty)
    gl.warp_specialize(
        [
            (_differentiate, (
                0, grad_key, grad_value, keys, values, ready, queries, grad_outs, notes, scale, scale2,
                tile, group, SPEC,
            )),
            (_differentiate, (
                1, grad_key, grad_value, keys, values, ready, queries, grad_outs, notes, scale, scale2,
                tile, group, SPEC,
            )),
            (_copy, (
                key, value, query, grad_out, statistics, keys, values, ready, queries, grad_outs, notes, tile,
                extents, heads, group, plane, SPEC,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


@gluon.jit(do_not_specialize=["scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group"])
def differentiate_keys(
    key,
    value,
    query,
    grad_out,
    grad_key,
    grad_value,
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
    """Gradients from `statistics` `[2, batch * heads, t, h, w]`; its second half starts at `plane`."""
    outputs = (t, h, w)
    tile = ht.key_tile(gl.program_id(0), outputs, (key_t, key_h, key_w), heads // group, SPEC)
    _run(
        key, value, query, grad_out, grad_key, grad_value, statistics, scale, scale2, tile, outputs, heads,
        group, plane, SPEC,
    )  # fmt: skip


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "dim", "value_dim"
    ]
)  # fmt: skip
def differentiate_key_groups(
    key, value, query, grad_out, grad_key, grad_value, statistics, scale, scale2,
    t, h, w, key_t, key_h, key_w, heads, group, plane: gl.int64, dim, value_dim,
    key_strides, value_strides, query_strides, grad_out_strides, grad_key_strides, grad_value_strides,
    SPEC: gl.constexpr,
):  # fmt: skip
    """The same with dilation, through descriptors of each program's group."""
    outputs, lengths = (t, h, w), (key_t, key_h, key_w)
    rows: gl.constexpr = SPEC.rows
    columns: gl.constexpr = SPEC.columns
    shared = heads // group
    tile = ht.key_tile(gl.program_id(0), outputs, lengths, shared, SPEC)
    key = ht.group_view(key, key_strides, lengths, tile, shared, dim, rows, SPEC.dim, SPEC)
    value = ht.group_view(value, value_strides, lengths, tile, shared, value_dim, rows, SPEC.value_dim, SPEC)
    query = ht.group_view(query, query_strides, outputs, tile, heads, dim, columns, SPEC.dim, SPEC)
    grad_out = ht.group_view(
        grad_out, grad_out_strides, outputs, tile, heads, value_dim, columns, SPEC.value_dim, SPEC
    )
    grad_key = ht.group_view(grad_key, grad_key_strides, lengths, tile, shared, dim, rows, SPEC.dim, SPEC)
    grad_value = ht.group_view(
        grad_value, grad_value_strides, lengths, tile, shared, value_dim, rows, SPEC.value_dim, SPEC
    )
    _run(
        key, value, query, grad_out, grad_key, grad_value, statistics, scale, scale2, tile, outputs, heads,
        group, plane, SPEC,
    )  # fmt: skip
