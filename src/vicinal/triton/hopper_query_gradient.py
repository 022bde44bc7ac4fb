"""Gradient of the queries for Hopper in Gluon: the forward's tiles, walked once more.

Each box costs three products: scores, dP = dO V^T, and dQ += dS K, where dS = P (dP - delta). The last one of
a box runs beside the first of the next. Before the walk a program finds log-sum-exp in base 2 and
delta = dO . O - dLSE of its queries, and leaves them for the gradients of keys and values.

As in the forward, a program computes tile after tile. One warp copies boxes of keys and values, one the rows.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from . import hopper_copies as hc
from . import hopper_parts as hp
from . import hopper_schedule as hs
from . import hopper_tile as ht
from . import hopper_window as hw

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _copy(key, value, keys, values, tickets, counter, grid, SPEC: gl.constexpr):
    """The producer: boxes of keys and values of tile after tile."""
    turn = gl.to_tensor(0)
    base = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    while number < grid.tiles:
        tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
        number = hs.draw(tickets, counter, turn, grid, SPEC)
        turn += 1
        if SPEC.wants_query:
            hc.copy_boxes(key, value, keys, values, base, tile, tile.head // grid.group, SPEC)
            base += tile.boxes[0] * tile.boxes[1] * tile.boxes[2]


@gluon.jit
def _pass(keys, values, i, SPEC: gl.constexpr):
    """Leaves a box to the other warpgroups."""
    stage = i % SPEC.stages
    mbarrier.wait(keys.full.index(stage), (i // SPEC.stages) & 1)
    mbarrier.arrive(keys.empty.index(stage), count=1)
    if SPEC.apart:
        place = i % SPEC.value_stages
        mbarrier.wait(values.full.index(place), (i // SPEC.value_stages) & 1)
        mbarrier.arrive(values.empty.index(place), count=1)


@gluon.jit
def _delta(out, grad_outs, slot, filled, start, tile, grid, value_dim, SPEC: gl.constexpr):
    """dO . O of a warpgroup's queries, from outputs in memory and their gradients in shared memory."""
    width: gl.constexpr = SPEC.value_dim
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // width, width // 8], [4, 1], [1, 0])
    box_of_rows: gl.constexpr = SPEC.rows
    row = hw.coordinates(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), start, box_of_rows)
    # A multiple of 8 also for the compiler: a thread loads 16 bytes at a time.
    value_dim = value_dim // 8 * 8
    at = ht.entry(hw.clip(row, tile.outputs), tile, grid.outputs, grid.heads, SPEC) * value_dim
    column = gl.arange(0, width, layout=gl.SliceLayout(0, layout))
    known = gl.load(out + (at[:, None] + column[None, :]), mask=(column < value_dim)[None, :], other=0.0)
    mbarrier.wait(grad_outs.full.index(slot), filled)
    grad_out = grad_outs.buffers.index(slot).reshape([64, width]).load(layout)
    return gl.sum(known.to(gl.float32) * grad_out.to(gl.float32), 1)


@gluon.jit
def _prepare(
    out, lse, grad_lse, statistics, grad_outs, slot, filled, row, start, tile, grid, value_dim, plane,
    SPEC: gl.constexpr,
):  # fmt: skip
    """Log-sum-exps in base 2 and deltas of a warpgroup's queries; what lies in the tensor is kept."""
    layout: gl.constexpr = row[0].type.layout
    clipped = hw.clip(row, tile.outputs)
    entry = ht.entry(clipped, tile, grid.outputs, grid.heads, SPEC)
    lse2 = gl.load(lse + entry) * LOG2E
    delta = _delta(out, grad_outs, slot, filled, start, tile, grid, value_dim, SPEC)
    delta = gl.convert_layout(delta, layout)
    if SPEC.has_grad_lse:
        delta -= gl.load(grad_lse + entry)
    tokens = grid.outputs[0] * grid.outputs[1] * grid.outputs[2]
    kept = statistics + (tile.batch * grid.heads + tile.head).to(gl.int64) * tokens
    token = ht.token(clipped, tile, grid.outputs, SPEC)
    inside = hw.inside(row, tile.outputs)
    gl.store(kept + token, lse2, mask=inside)
    gl.store(kept + plane + token, delta, mask=inside)
    return lse2, delta


@gluon.jit
def _differentiate(
    warpgroup: gl.constexpr, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values,
    tickets, scale, scale2, grid, value_dim, plane, SPEC: gl.constexpr,
):  # fmt: skip
    """A consumer: tile after tile."""
    count = gl.to_tensor(0)
    base = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    # Numbers of the launch are computed for each tile: registers are for sums.
    while tl.condition(number < grid.tiles, disable_licm=True):
        tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
        _differentiate_tile(
            warpgroup, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values, scale,
            scale2, tile, grid, value_dim, plane, count, base, SPEC,
        )  # fmt: skip
        base += tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
        number = hs.drawn(tickets, count, grid.tiles, SPEC)
        count += 1
    if SPEC.wants_query:
        tma.store_wait(0)


@gluon.jit
def _differentiate_tile(
    warpgroup: gl.constexpr, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values,
    scale, scale2, tile, grid, value_dim, plane, count, base, SPEC: gl.constexpr,
):  # fmt: skip
    """The gradient of 64 queries, over every box of keys, after `count` tiles and `base` boxes."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    cuts: gl.constexpr = SPEC.cuts
    box_of_rows: gl.constexpr = SPEC.rows
    start = ht.corner(tile.start, warpgroup, SPEC)
    row = hw.coordinates(gl.arange(0, 64, layout=row_layout), start, box_of_rows)
    slot = count % SPEC.depth * SPEC.warpgroups + warpgroup
    filled = count // SPEC.depth & 1
    lse2, delta = _prepare(
        out, lse, grad_lse, statistics, grad_outs, slot, filled, row, start, tile, grid,
        value_dim, plane, SPEC,
    )  # fmt: skip
    if SPEC.wants_query:
        if SPEC.depth > 1:
            # By now the gradients of the tile before have left shared memory.
            tma.store_wait(0)
            before = (count + 1) % SPEC.depth * SPEC.warpgroups + warpgroup
            mbarrier.arrive(grad_outs.empty.index(before), count=1, pred=count > 0)
        mbarrier.wait(queries.full.index(warpgroup), count & 1)
        held = hp.factors(hp.matrix(queries.buffers, warpgroup), score_layout, cuts, SPEC.held)
        if SPEC.depth > 1:
            # A barrier of threads does not wait for loads: while products keep shared memory busy, the copy
            # of the next queries would overtake them.
            fence_async_shared()
            mbarrier.arrive(queries.empty.index(warpgroup), count=1)
        row = hw.clip(row, tile.outputs)
        grad = _walk(
            warpgroup, held, queries.buffers, grad_outs, slot, filled, lse2, delta, keys, values, scale2, row,
            start, tile, base, SPEC,
        )  # fmt: skip
        grad = hp.scaled(grad, scale)
        plane = tile.planes[0]
        if SPEC.depth > 1:
            hc.put(grad_query, grad, grad_outs.buffers.index(slot), plane, start, tile, cuts, SPEC)
        else:
            mbarrier.arrive(grad_outs.empty.index(slot), count=1)
            room = queries.buffers.index(warpgroup)
            hc.put(grad_query, grad, room, plane, start, tile, cuts, SPEC)
            tma.store_wait(0)
            mbarrier.arrive(queries.empty.index(warpgroup), count=1)
    else:
        fence_async_shared()
        mbarrier.arrive(grad_outs.empty.index(slot), count=1)


@gluon.jit
def _walk(
    warpgroup: gl.constexpr, held, queries, grad_outs, slot, filled, lse2, delta, keys, values, scale2, row,
    start, tile, base, SPEC: gl.constexpr,
):  # fmt: skip
    """Sum of slopes times keys over every box, after `base` of tiles before."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    cuts: gl.constexpr = SPEC.cuts
    value_cuts: gl.constexpr = SPEC.value_cuts
    slope_layout: gl.constexpr = hp.weight_layout(cuts)
    first, stop = hw.windows(row, tile.lengths, SPEC)
    shared = hw.shared_window(start, tile, SPEC)
    column = gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, score_layout))
    index = gl.arange(0, 64, layout=gl.SliceLayout(1, score_layout))
    box_of_rows: gl.constexpr = SPEC.rows

    grad = hp.zeros(cuts)
    empty = gl.full([64, SPEC.width], 0.0, gl.float32, layout=score_layout)
    slope = gl.full([64, SPEC.width], 0.0, queries.dtype, layout=slope_layout)
    slow, begin, end = ht.own_keys(start, tile, SPEC)
    begin += base
    end += base
    for i in range(base, begin):
        _pass(keys, values, i, SPEC)
    box = ht.box_of(slow, SPEC)
    stage, phase = begin % SPEC.stages, begin // SPEC.stages & 1
    # The slopes of the box before are zero at first, and may meet any finite keys.
    # Computed once more: Triton 3.6 would not carry what starts as `stage` and becomes it.
    before = begin % SPEC.stages
    # Without masks registers hold the addresses of one operand.
    roomy: gl.constexpr = SPEC.value_held or (SPEC.held and not SPEC.masks)
    kept = hp.factors(hp.matrix(grad_outs.buffers, slot), score_layout, value_cuts, SPEC.value_held)
    for i in range(begin, end):
        mbarrier.wait(keys.full.index(stage), phase)
        query = held if SPEC.held else hp.anew(queries, warpgroup, i, cuts)
        place = stage
        if SPEC.apart:
            # Beside a wide sum registers do not hold the slopes and two products of a box.
            adding = hp.add(slope, hp.matrix(keys.buffers, before), grad, cuts)
            flying = hp.multiply(query, hp.matrix(keys.buffers, stage), empty, cuts)
            grad = hp.landed(adding, 1)
            mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)
            place = i % SPEC.value_stages
            mbarrier.wait(values.full.index(place), (i // SPEC.value_stages) & 1)
        else:
            flying = hp.multiply(query, hp.matrix(keys.buffers, stage), empty, cuts)
            adding = hp.add(slope, hp.matrix(keys.buffers, before), grad, cuts)
        grad_out = kept if roomy else hp.anew(grad_outs.buffers, slot, i, value_cuts)
        pulling = hp.multiply(grad_out, hp.matrix(values.buffers, place), empty, value_cuts)
        scores = hp.landed(flying, len(value_cuts) if SPEC.apart else len(cuts) + len(value_cuts))[0]
        weights = gl.exp2(scores * scale2 - lse2[:, None])
        at = ht.box_at(tile.first, box, SPEC)
        if SPEC.apart:
            row = hw.clip(hw.coordinates(hp.afresh(index, i), start, box_of_rows), tile.outputs)
            first, stop = hw.windows(row, tile.lengths, SPEC)
        weights = hw.hide(weights, at, column, first, stop, shared, SPEC)
        if not SPEC.masks:
            # Long past, but as branches of masks do it keeps ptxas from moving the waits before the weights.
            mbarrier.wait(grad_outs.full.index(slot), filled)
        if SPEC.apart:
            pulled = hp.landed(pulling, 0)[0]
            mbarrier.arrive(values.empty.index(place), count=1)
        else:
            found = hp.landed(pulling + adding, 0)
            pulled, grad = found[0], found[1:]
            mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)
        slope = gl.convert_layout((weights * (pulled - delta[:, None])).to(queries.dtype), slope_layout)
        box = ht.step(box, tile.boxes, SPEC)
        before = stage
        stage += 1
        phase = gl.where(stage == SPEC.stages, phase ^ 1, phase)
        stage = gl.where(stage == SPEC.stages, 0, stage)
    grad = hp.landed(hp.add(slope, hp.matrix(keys.buffers, before), grad, cuts), 0)
    mbarrier.arrive(keys.empty.index(before), count=1)
    for i in range(end, base + tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
        _pass(keys, values, i, SPEC)
    return grad


@gluon.jit
def _run(
    query, grad_out, key, value, grad_query, out, lse, grad_lse, statistics, counter, scale, scale2, grid,
    plane, SPEC: gl.constexpr,
):  # fmt: skip
    value_dim = grad_out.map.shape[4]
    grad_outs = hc.ring(grad_out, SPEC.warpgroups * SPEC.depth, 1)
    # Triton lays barriers that no partition uses over buffers of others.
    queries = hc.ring(query, SPEC.warpgroups, 1) if SPEC.wants_query else ()
    keys, values = (), ()
    if SPEC.wants_query:
        if SPEC.apart:
            keys = hc.ring(key, SPEC.stages, SPEC.warpgroups)
            values = hc.ring(value, SPEC.value_stages, SPEC.warpgroups)
        else:
            # Keys and values of a stage are full and empty together.
            keys = hc.ring(key, SPEC.stages, SPEC.warpgroups, 2)
            values = hc.Ring(hc.buffers(value, SPEC.stages), keys.full, keys.empty)
    tickets = hs.tickets(SPEC.warpgroups + 1) if SPEC.persistent else ()
    # A tuple with a name of its own would turn its constexprs into tensors.
    if SPEC.warpgroups == 2:
        gl.warp_specialize(
            [
                (_differentiate, (
                    0, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values, tickets,
                    scale, scale2, grid, value_dim, plane, SPEC,
                )),
                (_differentiate, (
                    1, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values, tickets,
                    scale, scale2, grid, value_dim, plane, SPEC,
                )),
                (_copy, (key, value, keys, values, tickets, counter, grid, SPEC)),
                (hs.copy_rows, (query, grad_out, queries, grad_outs, tickets, grid, False, SPEC)),
            ],
            [4, 1, 1],
            [240, 24, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_differentiate, (
                    0, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values, tickets,
                    scale, scale2, grid, value_dim, plane, SPEC,
                )),
                (_differentiate, (
                    1, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values, tickets,
                    scale, scale2, grid, value_dim, plane, SPEC,
                )),
                (_differentiate, (
                    2, grad_query, out, lse, grad_lse, statistics, queries, grad_outs, keys, values, tickets,
                    scale, scale2, grid, value_dim, plane, SPEC,
                )),
                (_copy, (key, value, keys, values, tickets, counter, grid, SPEC)),
                (hs.copy_rows, (query, grad_out, queries, grad_outs, tickets, grid, False, SPEC)),
            ],
            [4, 4, 1, 1],
            [160, 160, 24, 24],
        )  # fmt: skip


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "tiles"
    ]
)  # fmt: skip
def differentiate_queries(
    query, grad_out, key, value, grad_query, out, lse, grad_lse, statistics, counter, scale, scale2,
    t, h, w, key_t, key_h, key_w, heads, group, tiles, plane: gl.int64, SPEC: gl.constexpr,
):  # fmt: skip
    """Gradient, and `statistics` `[2, batch * heads, t, h, w]`; its second half starts at `plane`.

    `out`, `lse` and `grad_lse` are contiguous.
    """
    grid = ht.Grid((t, h, w), (key_t, key_h, key_w), heads, group, tiles, 0, 0)
    query, grad_out, grad_query = hc.View(query, ()), hc.View(grad_out, ()), hc.View(grad_query, ())
    key, value = hc.View(key, ()), hc.View(value, ())
    _run(
        query, grad_out, key, value, grad_query, out, lse, grad_lse, statistics, counter, scale, scale2, grid,
        plane, SPEC,
    )  # fmt: skip


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "tiles", "dim",
        "value_dim",
    ]
)  # fmt: skip
def differentiate_query_groups(
    query, grad_out, key, value, grad_query, out, lse, grad_lse, statistics, counter, scale, scale2,
    t, h, w, key_t, key_h, key_w, heads, group, tiles, plane: gl.int64, dim, value_dim,
    query_strides, grad_out_strides, key_strides, value_strides, grad_query_strides, SPEC: gl.constexpr,
):  # fmt: skip
    """The same with dilation: where groups differ in length, a program describes its own."""
    outputs, lengths = (t, h, w), (key_t, key_h, key_w)
    rows: gl.constexpr = SPEC.rows
    columns: gl.constexpr = SPEC.columns
    tile = ht.query_tile(gl.program_id(0), outputs, lengths, heads, SPEC)
    shared = heads // group
    query = hc.group_view(query, query_strides, outputs, tile, heads, dim, rows, SPEC.dim, SPEC)
    grad_out = hc.group_view(
        grad_out, grad_out_strides, outputs, tile, heads, value_dim, rows, SPEC.value_dim, SPEC
    )
    key = hc.group_view(key, key_strides, lengths, tile, shared, dim, columns, SPEC.dim, SPEC)
    value = hc.group_view(
        value, value_strides, lengths, tile, shared, value_dim, columns, SPEC.value_dim, SPEC
    )
    grad_query = hc.group_view(
        grad_query, grad_query_strides, outputs, tile, heads, dim, rows, SPEC.dim, SPEC
    )
    grid = ht.Grid(outputs, lengths, heads, group, tiles, 0, 0)
    _run(
        query, grad_out, key, value, grad_query, out, lse, grad_lse, statistics, counter, scale, scale2, grid,
        plane, SPEC,
    )  # fmt: skip
