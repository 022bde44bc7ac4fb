"""Gradients of keys and values for Hopper in Gluon: a tile of keys walks boxes of the queries that see them.

Each box costs four products of transposed scores: S^T = K Q^T, dP^T = V dO^T, dV += P^T dO and dK += dS^T Q.
The last one of a box, or where registers hold what it takes the last two, run beside the others of the next.
Query heads that share a key head are walked one after the other, so the sums need neither atomics nor another
pass. As in the forward, a program computes tile after tile. One warp copies boxes of queries, one the rows.
"""

# What is wanted is known at compile time.
# pyright: reportPossiblyUnboundVariable=false
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from . import hopper_copies as hc
from . import hopper_kept as hk
from . import hopper_key_products as hb
from . import hopper_notes as hn
from . import hopper_parts as hp
from . import hopper_schedule as hs
from . import hopper_tile as ht


@gluon.jit
def _fill_beside(grad_out, grad_outs, stage, at, tile, head, SPEC: gl.constexpr):
    """Copies gradients of outputs that share a stage of queries."""
    if not SPEC.apart:
        hc.fill(grad_out, grad_outs, stage, tile.planes[0], at, tile, head, SPEC)


@gluon.jit
def _fill_apart(grad_out, grad_outs, i, at, tile, head, SPEC: gl.constexpr):
    """Copies gradients of outputs that have stages of their own."""
    if SPEC.apart:
        place = i % SPEC.value_stages
        mbarrier.wait(grad_outs.empty.index(place), i // SPEC.value_stages & 1 ^ 1)
        hc.fill(grad_out, grad_outs, place, tile.planes[0], at, tile, head, SPEC)


@gluon.jit
def _copy(
    query, grad_out, statistics, queries, grad_outs, notes, borders, tickets, counter, grid, plane,
    SPEC: gl.constexpr,
):  # fmt: skip
    """The producer: boxes of queries, and what is known of them, of tile after tile."""
    index = gl.arange(0, 2 * SPEC.width, layout=gl.BlockedLayout([1], [32], [1], [0]))
    turn = gl.to_tensor(0)
    i = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    while number < grid.tiles:
        tile = ht.key_tile(number, grid.outputs, grid.lengths, grid.heads // grid.group, SPEC)
        number = hs.draw(tickets, counter, turn, grid, SPEC)
        turn += 1
        box = ht.box_of(gl.to_tensor(0), SPEC)
        for member in range(grid.group):
            head = tile.head * grid.group + member
            for _ in range(tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
                at = ht.box_at(tile.first, box, SPEC)
                note = hn.statistics_of(statistics, plane, head, at, index, tile, grid, SPEC)
                stage = i % SPEC.stages
                mbarrier.wait(queries.empty.index(stage), i // SPEC.stages & 1 ^ 1)
                hc.fill(query, queries, stage, tile.planes[0], at, tile, head, SPEC)
                _fill_beside(grad_out, grad_outs, stage, at, tile, head, SPEC)
                hn.keep_borders(borders, stage, at, tile, head, grid, SPEC)
                notes.index(stage).store(note)
                mbarrier.arrive(queries.full.index(stage), count=1)
                _fill_apart(grad_out, grad_outs, i, at, tile, head, SPEC)
                box = ht.step(box, tile.boxes, SPEC)
                i += 1


@gluon.jit
def _pass(queries, grad_outs, i, SPEC: gl.constexpr):
    """Leaves a box to the other warpgroup."""
    stage = i % SPEC.stages
    mbarrier.wait(queries.full.index(stage), (i // SPEC.stages) & 1)
    mbarrier.arrive(queries.empty.index(stage), count=1)
    if SPEC.apart:
        place = i % SPEC.value_stages
        mbarrier.wait(grad_outs.full.index(place), (i // SPEC.value_stages) & 1)
        mbarrier.arrive(grad_outs.empty.index(place), count=1)


@gluon.jit
def _next(queries, stage, phase, more, HERE: gl.constexpr, SPEC: gl.constexpr):
    """The next stage, once it is full if there is `more`; where it is not waited for `HERE`, this one."""
    if HERE:
        stage += 1
        phase = gl.where(stage == SPEC.stages, phase ^ 1, phase)
        stage = gl.where(stage == SPEC.stages, 0, stage)
        mbarrier.wait(queries.full.index(stage), phase, pred=more)
    return stage, phase


@gluon.jit
def _walk(
    warpgroup: gl.constexpr, keys, values, slot, sum_key, sum_value, queries, grad_outs, notes, borders,
    viewers, slopes, scale2, start, tile, opening, closing, SPEC: gl.constexpr,
):  # fmt: skip
    """Adds what steps [opening, closing) of the walk, over boxes of one query head, give."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    cuts: gl.constexpr = SPEC.cuts
    value_cuts: gl.constexpr = SPEC.value_cuts
    slope_layout: gl.constexpr = hp.weight_layout(cuts)
    note_layout: gl.constexpr = gl.SliceLayout(0, score_layout)
    held_key = hp.factors(hp.matrix(keys, slot), score_layout, cuts, SPEC.held)
    held_value = hp.factors(hp.matrix(values, slot), score_layout, value_cuts, SPEC.value_held)
    empty = gl.full([64, SPEC.width], 0.0, gl.float32, layout=score_layout)
    # What is left of the box before is zero at first, and may meet any finite queries and gradients.
    if SPEC.lags:  # noqa: SIM108 kernels have no conditional expressions of tuples
        left = (empty, empty)
    else:
        left = (gl.full([64, SPEC.width], 0.0, keys.dtype, layout=slope_layout),)
    stage, phase = opening % SPEC.stages, opening // SPEC.stages & 1
    # Computed once more: Triton 3.6 would not carry what starts as `stage` and becomes it.
    before = opening % SPEC.stages
    lane = hk.lane_of(start, SPEC)
    mbarrier.wait(queries.full.index(stage), phase, pred=opening < closing)
    for i in range(opening, closing):
        key = held_key if SPEC.held else hp.anew(keys, slot, i, cuts)
        value = held_value if SPEC.value_held else hp.anew(values, slot, i, value_cuts)
        flying, pulling, adding_key, adding_value = hb.start(
            key, value, left, sum_key, sum_value, queries, grad_outs, stage, before, i, opening, empty, SPEC
        )
        # Shared memory answers late while products read it: what the weights need is loaded here.
        axes = hn.number(borders.index(stage), warpgroup) if SPEC.masks or SPEC.ragged else 0
        block = lane + hn.number(borders.index(stage), hn.BLOCK) if SPEC.keeps else lane
        lse2 = notes.index(stage).slice(0, SPEC.width).load(note_layout)
        scores = hp.landed(flying, SPEC.later)[0]
        if SPEC.at_once:
            delta = notes.index(stage).slice(SPEC.width, SPEC.width).load(note_layout)
        weights = gl.exp2(scores * scale2 - lse2[None, :])
        weights = hn.hide(weights, axes, warpgroup, borders.index(stage), viewers, start, tile, i, SPEC)
        if SPEC.wants_value and not SPEC.lags:
            # No weight is left for later than this.
            adding_value = hb.add_weights(weights, grad_outs, stage, sum_value, SPEC)
        pulled, sum_key, sum_value = hb.landed(pulling, adding_key, adding_value, sum_value, SPEC)
        now = stage
        # Between weights and slopes that takes less time than behind them.
        stage, phase = _next(queries, stage, phase, i + 1 < closing, SPEC.at_once, SPEC)
        if SPEC.wants_key and not SPEC.at_once:
            delta = notes.index(now).slice(SPEC.width, SPEC.width).load(note_layout)
        # An arrival has a barrier before what follows it: here a product runs beside it.
        if SPEC.apart:
            mbarrier.arrive(grad_outs.empty.index(i % SPEC.value_stages), count=1)
        else:
            mbarrier.arrive(queries.empty.index(before), count=1, pred=i > opening)
        gl.thread_barrier()
        if SPEC.wants_key:
            left = hb.remainder(weights, pulled, delta, keys.dtype, slopes, block, SPEC)
        before = now
        stage, phase = _next(queries, stage, phase, i + 1 < closing, not SPEC.at_once, SPEC)
        if SPEC.wants_value and not SPEC.lags:
            sum_value = hp.landed(adding_value, 0)
    if opening < closing:
        sum_key, sum_value = hb.finish(left, sum_key, sum_value, queries, grad_outs, before, SPEC)
    return sum_key, sum_value


@gluon.jit
def _differentiate(
    warpgroup: gl.constexpr, grad_key, grad_value, keys, values, queries, grad_outs, notes, borders, viewers,
    slopes, tickets, scale, scale2, grid, SPEC: gl.constexpr,
):  # fmt: skip
    """A consumer: tile after tile."""
    count = gl.to_tensor(0)
    base = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    # Numbers of the launch are computed for each tile: registers are for sums.
    while tl.condition(number < grid.tiles, disable_licm=True):
        tile = ht.key_tile(number, grid.outputs, grid.lengths, grid.heads // grid.group, SPEC)
        _differentiate_tile(
            warpgroup, grad_key, grad_value, keys, values, queries, grad_outs, notes, borders, viewers,
            slopes, scale, scale2, tile, grid.group, count, base, SPEC,
        )  # fmt: skip
        base += grid.group * tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
        number = hs.drawn(tickets, count, grid.tiles, SPEC)
        count += 1
    tma.store_wait(0)


@gluon.jit
def _differentiate_tile(
    warpgroup: gl.constexpr, grad_key, grad_value, keys, values, queries, grad_outs, notes, borders, viewers,
    slopes, scale, scale2, tile, group, count, base, SPEC: gl.constexpr,
):  # fmt: skip
    """Gradients of 64 keys and values, over every box of queries, after `count` tiles and `base` boxes."""
    cuts: gl.constexpr = SPEC.cuts
    value_cuts: gl.constexpr = SPEC.value_cuts
    start = ht.corner(tile.start, warpgroup, SPEC)
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SPEC.width, 16])
    if not SPEC.apart:
        hn.keep_viewers(viewers, warpgroup, start, tile, gl.SliceLayout(1, score_layout), SPEC)
    slot = count % SPEC.depth * 2 + warpgroup
    filled = count // SPEC.depth & 1
    sum_key = hp.zeros(cuts)
    sum_value = hp.zeros(value_cuts)
    boxes = tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
    _, begin, end = ht.own_queries(start, tile, SPEC)
    mbarrier.wait(keys.full.index(slot), filled)
    mbarrier.wait(values.full.index(slot), filled)
    if SPEC.depth > 1:
        # By now the gradients of the tile before have left shared memory.
        tma.store_wait(0)
        before = (count + 1) % SPEC.depth * 2 + warpgroup
        mbarrier.arrive(keys.empty.index(before), count=1, pred=count > 0)
        mbarrier.arrive(values.empty.index(before), count=1, pred=count > 0)
    for member in range(group):
        first = base + member * boxes
        for i in range(first, first + begin):
            _pass(queries, grad_outs, i, SPEC)
        sum_key, sum_value = _walk(
            warpgroup, keys.buffers, values.buffers, slot, sum_key, sum_value, queries, grad_outs, notes,
            borders, viewers, slopes, scale2, start, tile, first + begin, first + end, SPEC,
        )  # fmt: skip
        for i in range(first + end, first + boxes):
            _pass(queries, grad_outs, i, SPEC)
    if SPEC.wants_value:
        into = values.buffers.index(slot)
        hc.put(grad_value, sum_value, into, tile.planes[1], start, tile, value_cuts, SPEC)
    if SPEC.wants_key:
        into, sum_key = keys.buffers.index(slot), hp.scaled(sum_key, scale)
        hc.put(grad_key, sum_key, into, tile.planes[1], start, tile, cuts, SPEC)
    if SPEC.depth == 1:
        tma.store_wait(0)
        mbarrier.arrive(keys.empty.index(slot), count=1)
        mbarrier.arrive(values.empty.index(slot), count=1)


@gluon.jit
def _run(
    key, value, query, grad_out, grad_key, grad_value, slopes, statistics, counter, scale, scale2, grid,
    plane, SPEC: gl.constexpr,
):  # fmt: skip
    keys = hc.ring(key, 2 * SPEC.depth, 1)
    values = hc.ring(value, 2 * SPEC.depth, 1)
    if SPEC.apart:
        queries = hc.ring(query, SPEC.stages, 2, 2)
        grad_outs = hc.ring(grad_out, SPEC.value_stages, 2)
    else:
        # Queries, gradients of outputs and notes of a stage are full together.
        queries = hc.ring(query, SPEC.stages, 2, 3)
        grad_outs = hc.Ring(hc.buffers(grad_out, SPEC.stages), queries.full, queries.empty)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    notes = gl.allocate_shared_memory(gl.float32, [SPEC.stages, 2 * SPEC.width], plain)
    borders = gl.allocate_shared_memory(gl.int32, [SPEC.stages, hn.LANES], plain)
    viewers = ()
    if SPEC.masks and not SPEC.apart:
        viewers = gl.allocate_shared_memory(gl.int32, [4 * SPEC.mask_count, 64], plain)
    # Triton lays barriers that no partition uses over buffers of others.
    tickets = hs.tickets(3) if SPEC.persistent else ()
    gl.warp_specialize(
        [
            (_differentiate, (
                0, grad_key, grad_value, keys, values, queries, grad_outs, notes, borders, viewers,
                slopes, tickets, scale, scale2, grid, SPEC,
            )),
            (_differentiate, (
                1, grad_key, grad_value, keys, values, queries, grad_outs, notes, borders, viewers,
                slopes, tickets, scale, scale2, grid, SPEC,
            )),
            (_copy, (
                query, grad_out, statistics, queries, grad_outs, notes, borders, tickets, counter, grid,
                plane, SPEC,
            )),
            (hs.copy_rows, (key, value, keys, values, tickets, grid, True, SPEC)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )  # fmt: skip


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "tiles"
    ]
)  # fmt: skip
def differentiate_keys(
    key, value, query, grad_out, grad_key, grad_value, statistics, counter, scale, scale2,
    t, h, w, key_t, key_h, key_w, heads, group, tiles, plane: gl.int64, SPEC: gl.constexpr,
):  # fmt: skip
    """Gradients from `statistics` `[2, batch * heads, t, h, w]`; its second half starts at `plane`."""
    grid = ht.Grid((t, h, w), (key_t, key_h, key_w), heads, group, tiles, 0, 0)
    key, value = hc.View(key, ()), hc.View(value, ())
    query, grad_out = hc.View(query, ()), hc.View(grad_out, ())
    grad_key, grad_value = hc.View(grad_key, ()), hc.View(grad_value, ())
    _run(
        key, value, query, grad_out, grad_key, grad_value, (), statistics, counter, scale, scale2, grid,
        plane, SPEC,
    )  # fmt: skip


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "first", "stop", "walks", "t", "h", "w", "key_t", "key_h", "key_w", "heads",
        "group",
    ]
)  # fmt: skip
def differentiate_keys_and_keep(
    key, value, query, grad_out, grad_key, grad_value, statistics, slopes, counter, scale, scale2, first,
    stop, walks, t, h, w, key_t, key_h, key_w, heads, group, plane: gl.int64, SPEC: gl.constexpr,
):  # fmt: skip
    """The same of tiles from `first` to before `stop`; `slopes` has blocks of 64 keys and queries."""
    grid = ht.Grid((t, h, w), (key_t, key_h, key_w), heads, group, stop, first, walks)
    key, value = hc.View(key, ()), hc.View(value, ())
    query, grad_out = hc.View(query, ()), hc.View(grad_out, ())
    grad_key, grad_value = hc.View(grad_key, ()), hc.View(grad_value, ())
    _run(
        key, value, query, grad_out, grad_key, grad_value, slopes, statistics, counter, scale,
        scale2, grid, plane, SPEC,
    )  # fmt: skip


@gluon.jit(
    do_not_specialize=[
        "scale", "scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "tiles", "dim",
        "value_dim",
    ]
)  # fmt: skip
def differentiate_key_groups(
    key, value, query, grad_out, grad_key, grad_value, statistics, counter, scale, scale2,
    t, h, w, key_t, key_h, key_w, heads, group, tiles, plane: gl.int64, dim, value_dim,
    key_strides, value_strides, query_strides, grad_out_strides, grad_key_strides, grad_value_strides,
    SPEC: gl.constexpr,
):  # fmt: skip
    """The same with dilation: where groups differ in length, a program describes its own."""
    outputs, lengths = (t, h, w), (key_t, key_h, key_w)
    rows: gl.constexpr = SPEC.rows
    columns: gl.constexpr = SPEC.columns
    shared = heads // group
    tile = ht.key_tile(gl.program_id(0), outputs, lengths, shared, SPEC)
    key = hc.group_view(key, key_strides, lengths, tile, shared, dim, rows, SPEC.dim, SPEC)
    value = hc.group_view(value, value_strides, lengths, tile, shared, value_dim, rows, SPEC.value_dim, SPEC)
    query = hc.group_view(query, query_strides, outputs, tile, heads, dim, columns, SPEC.dim, SPEC)
    grad_out = hc.group_view(
        grad_out, grad_out_strides, outputs, tile, heads, value_dim, columns, SPEC.value_dim, SPEC
    )
    grad_key = hc.group_view(grad_key, grad_key_strides, lengths, tile, shared, dim, rows, SPEC.dim, SPEC)
    grad_value = hc.group_view(
        grad_value, grad_value_strides, lengths, tile, shared, value_dim, rows, SPEC.value_dim, SPEC
    )
    grid = ht.Grid(outputs, lengths, heads, group, tiles, 0, 0)
    _run(
        key, value, query, grad_out, grad_key, grad_value, (), statistics, counter, scale, scale2, grid,
        plane, SPEC,
    )  # fmt: skip
