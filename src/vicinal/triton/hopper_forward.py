"""Forward for Hopper in Gluon: one warp copies boxes with TMA, warpgroups of 64 queries each run wgmma.

A program computes tile after tile, and the copies for one begin while the one before is computed. Within a
warpgroup the product with the values of a box runs beside the product with the keys of the next, and no
product stays in flight over a loop's back edge, where ptxas would serialize them.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from . import hopper_copies as hc
from . import hopper_parts as hp
from . import hopper_schedule as hs
from . import hopper_softmax as hx
from . import hopper_tile as ht
from . import hopper_veil as hv
from . import hopper_window as hw

LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _copy(query, key, value, queries, keys, values, tickets, counter, grid, SPEC: gl.constexpr):
    """The producer: of tile after tile the queries of all warpgroups, then boxes of keys and values."""
    turn = gl.to_tensor(0)
    base = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    while number < grid.tiles:
        tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
        warpgroups: gl.constexpr = SPEC.warpgroups
        for warpgroup in gl.static_range(warpgroups):
            hc.copy_row(query, queries, warpgroup, turn, SPEC.depth, tile.planes[0], tile, SPEC)
        number = hs.draw(tickets, counter, turn, grid, SPEC)
        turn += 1
        hc.copy_boxes(key, value, keys, values, base, tile, tile.head // grid.group, SPEC)
        base += tile.boxes[0] * tile.boxes[1] * tile.boxes[2]


@gluon.jit
def _of_rows(numbers, acc):
    """Numbers of rows beside the sums of a part."""
    return gl.convert_layout(numbers, gl.SliceLayout(1, acc.type.layout))[:, None]


@gluon.jit
def _pass(keys, values, turn, i, warpgroup: gl.constexpr, SPEC: gl.constexpr):
    """Leaves a box to the other warpgroups."""
    stage = i % SPEC.stages
    mbarrier.wait(keys.full.index(stage), i // SPEC.stages & 1)
    hs.take(turn, i, warpgroup, SPEC)
    hs.give(turn, 1 - warpgroup, SPEC)
    mbarrier.arrive(keys.empty.index(stage), count=1)
    stage = i % SPEC.value_stages
    mbarrier.wait(values.full.index(stage), i // SPEC.value_stages & 1)
    mbarrier.arrive(values.empty.index(stage), count=1)


@gluon.jit
def _attend(
    warpgroup: gl.constexpr, out, lse, queries, outs, keys, values, turn, tickets, scale2, grid,
    SPEC: gl.constexpr,
):  # fmt: skip
    """A consumer: tile after tile."""
    count = gl.to_tensor(0)
    base = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    # Numbers of the launch are computed for each tile: registers are for sums.
    while tl.condition(number < grid.tiles, disable_licm=True):
        tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
        _attend_tile(
            warpgroup, out, lse, queries, outs, keys, values, turn, scale2, tile, grid, count, base, SPEC
        )
        base += tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
        number = hs.drawn(tickets, count, grid.tiles, SPEC)
        count += 1
    tma.store_wait(0)


@gluon.jit
def _attend_tile(
    warpgroup: gl.constexpr, out, lse, queries, outs, keys, values, turn, scale2, tile, grid, count, base,
    SPEC: gl.constexpr,
):  # fmt: skip
    """64 queries against every box of keys, with an online softmax, after `count` tiles and `base` boxes."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [4, 1], [16, SPEC.width, 32 // SPEC.key_bytes]
    )
    cuts: gl.constexpr = SPEC.cuts
    value_cuts: gl.constexpr = SPEC.value_cuts
    weight_layout: gl.constexpr = hp.weight_layout(value_cuts)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)

    box_of_rows: gl.constexpr = SPEC.rows
    start = ht.corner(tile.start, warpgroup, SPEC)
    row = hw.coordinates(gl.arange(0, 64, layout=row_layout), start, box_of_rows)
    first, stop = hw.windows(hw.clip(row, tile.outputs), tile.lengths, SPEC)
    shared = hw.shared_window(start, tile, SPEC)

    slot = count % SPEC.depth * SPEC.warpgroups + warpgroup
    filled = count // SPEC.depth & 1
    acc = hp.zeros(value_cuts)
    empty = gl.full([64, SPEC.width], 0.0, gl.float32, layout=score_layout)
    slow, begin, end = ht.own_keys(start, tile, SPEC)
    begin += base
    end += base
    for i in range(base, begin):
        _pass(keys, values, turn, i, warpgroup, SPEC)
    box = ht.box_of(slow, SPEC)
    at = ht.box_at(tile.first, box, SPEC)
    stage = begin % SPEC.stages
    mbarrier.wait(queries.full.index(slot), filled)
    query = hp.factors(hp.matrix(queries.buffers, slot), score_layout, cuts, SPEC.held)
    mbarrier.wait(keys.full.index(stage), begin // SPEC.stages & 1)
    hs.take(turn, begin, warpgroup, SPEC)
    flying = hp.multiply(query, hp.matrix(keys.buffers, stage), empty, cuts)
    scores = hp.landed(flying, 0)[0]
    hs.give(turn, 1 - warpgroup, SPEC)
    mbarrier.arrive(keys.empty.index(stage), count=1)
    scores = hv.hide(scores, at, first, stop, shared, SPEC)
    veil = hv.veil(scores, at, first, stop, shared, SPEC)
    weights, units, _, total = hx.softmax(scores, hx.lowest(scores), veil, scale2)
    operand = gl.convert_layout(weights.to(out.map.dtype), weight_layout)
    if SPEC.depth > 1:
        # By now the outputs of the tile before have left shared memory.
        tma.store_wait(0)
        before = (count + 1) % SPEC.depth * SPEC.warpgroups + warpgroup
        mbarrier.arrive(queries.empty.index(before), count=1, pred=count > 0)

    for i in range(begin + 1, end):
        box = ht.step(box, tile.boxes, SPEC)
        stage = i % SPEC.stages
        before = (i - 1) % SPEC.value_stages
        mbarrier.wait(keys.full.index(stage), i // SPEC.stages & 1)
        hs.take(turn, i, warpgroup, SPEC)
        flying = hp.multiply(query, hp.matrix(keys.buffers, stage), empty, cuts)
        mbarrier.wait(values.full.index(before), (i - 1) // SPEC.value_stages & 1)
        adding = hp.add(operand, hp.matrix(values.buffers, before), acc, value_cuts)
        hs.give(turn, 1 - warpgroup, SPEC)
        scores = hp.landed(flying, len(adding))[0]
        at = ht.box_at(tile.first, box, SPEC)
        scores = hv.hide(scores, at, first, stop, shared, SPEC)
        veil = hv.veil(scores, at, first, stop, shared, SPEC)
        weights, units, shrink, sums = hx.softmax(scores, units, veil, scale2)
        total = total * shrink + sums
        rounded = weights.to(out.map.dtype)
        acc = hp.landed(adding, 0)
        # Together: a barrier of threads comes before each, and before the first wait after them.
        mbarrier.arrive(keys.empty.index(stage), count=1)
        mbarrier.arrive(values.empty.index(before), count=1)
        acc = hx.rescale(acc, shrink)
        operand = gl.convert_layout(rounded, weight_layout)
    last = (end - 1) % SPEC.value_stages
    mbarrier.wait(values.full.index(last), (end - 1) // SPEC.value_stages & 1)
    acc = hp.landed(hp.add(operand, hp.matrix(values.buffers, last), acc, value_cuts), 0)
    mbarrier.arrive(values.empty.index(last), count=1)
    for i in range(end, base + tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
        _pass(keys, values, turn, i, warpgroup, SPEC)

    total = gl.convert_layout(gl.sum(total, 1), row_layout)
    if SPEC.in_place:  # noqa: SIM108 kernels have no conditional expressions of buffers
        room = outs.index(slot)
    else:
        room = outs.index(warpgroup)
    means = ()
    for part in gl.static_range(len(acc)):
        means += (acc[part] * _of_rows(1.0 / total, acc[part]),)
    hc.put(out, means, room, tile.planes[0], start, tile, value_cuts, SPEC)
    found = (gl.convert_layout(gl.max(units, 1), row_layout) + gl.log2(total)) * LN2
    at = ht.entry(row, tile, grid.outputs, grid.heads, SPEC)
    gl.store(lse + at, found, mask=hw.inside(row, tile.outputs))
    if SPEC.depth == 1:
        tma.store_wait(0)
        mbarrier.arrive(queries.empty.index(slot), count=1)


@gluon.jit
def _run(query, key, value, out, lse, counter, scale2, grid, SPEC: gl.constexpr):
    queries = hc.ring(query, SPEC.warpgroups * SPEC.depth, 1)
    if SPEC.in_place:  # noqa: SIM108 kernels have no conditional expressions of buffers
        outs = queries.buffers
    else:
        outs = hc.buffers(out, SPEC.warpgroups)
    # Triton lays barriers that no partition uses over buffers of others.
    turn = hs.turns() if SPEC.turns else ()
    tickets = hs.tickets(SPEC.warpgroups) if SPEC.persistent else ()
    keys = hc.ring(key, SPEC.stages, SPEC.warpgroups)
    values = hc.ring(value, SPEC.value_stages, SPEC.warpgroups)
    # A tuple with a name of its own would turn its constexprs into tensors.
    if SPEC.warpgroups == 2:
        gl.warp_specialize(
            [
                (_attend, (0, out, lse, queries, outs, keys, values, turn, tickets, scale2, grid, SPEC)),
                (_attend, (1, out, lse, queries, outs, keys, values, turn, tickets, scale2, grid, SPEC)),
                (_copy, (query, key, value, queries, keys, values, tickets, counter, grid, SPEC)),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_attend, (0, out, lse, queries, outs, keys, values, turn, tickets, scale2, grid, SPEC)),
                (_attend, (1, out, lse, queries, outs, keys, values, turn, tickets, scale2, grid, SPEC)),
                (_attend, (2, out, lse, queries, outs, keys, values, turn, tickets, scale2, grid, SPEC)),
                (_copy, (query, key, value, queries, keys, values, tickets, counter, grid, SPEC)),
            ],
            [4, 4, 1],
            [160, 160, 24],
        )


@gluon.jit(do_not_specialize=["scale2", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group", "tiles"])
def attend(
    query, key, value, out, lse, counter, scale2, t, h, w, key_t, key_h, key_w, heads, group, tiles,
    SPEC: gl.constexpr
):  # fmt: skip
    """Attention of tensors `[batch * t, h, w, heads, dim]`; `lse` is `[batch, t, h, w, heads]`."""
    grid = ht.Grid((t, h, w), (key_t, key_h, key_w), heads, group, tiles, 0, 0)
    query, key, value, out = hc.View(query, ()), hc.View(key, ()), hc.View(value, ()), hc.View(out, ())
    _run(query, key, value, out, lse, counter, scale2, grid, SPEC)


@gluon.jit(
    do_not_specialize=[
        "scale2",
        "t",
        "h",
        "w",
        "key_t",
        "key_h",
        "key_w",
        "heads",
        "group",
        "dim",
        "value_dim",
        "tiles",
    ]
)
def attend_groups(
    query, key, value, out, lse, counter, scale2, t, h, w, key_t, key_h, key_w, heads, group, tiles, dim,
    value_dim, query_strides, key_strides, value_strides, out_strides, SPEC: gl.constexpr,
):  # fmt: skip
    """The same with dilation: where groups differ in length, a program describes its own."""
    outputs, lengths = (t, h, w), (key_t, key_h, key_w)
    rows: gl.constexpr = SPEC.rows
    columns: gl.constexpr = SPEC.columns
    tile = ht.query_tile(gl.program_id(0), outputs, lengths, heads, SPEC)
    query = hc.group_view(query, query_strides, outputs, tile, heads, dim, rows, SPEC.dim, SPEC)
    key = hc.group_view(key, key_strides, lengths, tile, heads // group, dim, columns, SPEC.dim, SPEC)
    value = hc.group_view(
        value, value_strides, lengths, tile, heads // group, value_dim, columns, SPEC.value_dim, SPEC
    )
    out = hc.group_view(out, out_strides, outputs, tile, heads, value_dim, rows, SPEC.value_dim, SPEC)
    grid = ht.Grid(outputs, lengths, heads, group, tiles, 0, 0)
    _run(query, key, value, out, lse, counter, scale2, grid, SPEC)
