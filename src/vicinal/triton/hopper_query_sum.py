"""Gradient of the queries for Hopper in Gluon, where the gradients of keys left slopes: dQ = dS K.

A program computes tile after tile, each of which has some boxes of 64 queries for each warpgroup: a box of
keys is read once for all of them. Where a box of queries meets no key of it, zeros come for slopes.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from . import hopper_copies as hc
from . import hopper_kept as hk
from . import hopper_parts as hp
from . import hopper_schedule as hs
from . import hopper_tile as ht


@gluon.jit
def _copy(key, slopes, keys, kept, tickets, counter, grid, SPEC: gl.constexpr):
    """The producer: boxes of keys, and slopes of the tile's queries with them, of tile after tile."""
    rows: gl.constexpr = SPEC.rows
    columns: gl.constexpr = SPEC.columns
    together: gl.constexpr = SPEC.together
    turn = gl.to_tensor(0)
    i = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    while number < grid.tiles:
        tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
        number = hs.draw(tickets, counter, turn, grid, SPEC)
        turn += 1
        walk = tile.batch * grid.heads + tile.head - grid.walks
        blocks, begins, ends = (), (), ()
        for row in gl.static_range(together):
            start = ht.corner(tile.start, row, SPEC)
            _, begin, end = ht.own_keys(start, tile, SPEC)
            blocks += (hk.block_of(start, walk, rows, tile.outputs, SPEC),)
            begins += (begin,)
            ends += (gl.where(start[SPEC.split] < tile.outputs[SPEC.split], end, begin),)
        box = ht.box_of(gl.to_tensor(0), SPEC)
        for visit in range(tile.boxes[0] * tile.boxes[1] * tile.boxes[2]):
            at = ht.box_at(tile.first, box, SPEC)
            slot = hk.slot_of(at, columns, SPEC)
            stage = i % SPEC.stages
            mbarrier.wait(keys.empty.index(stage), i // SPEC.stages & 1 ^ 1)
            hc.fill(key, keys, stage, tile.planes[1], at, tile, tile.head // grid.group, SPEC)
            for row in gl.static_range(together):
                meets = (begins[row] <= visit) & (visit < ends[row])
                # What lies outside a tensor is zero, and is not read.
                place = gl.where(meets, (blocks[row] + slot) * 64, -64)
                hk.fetch(slopes, kept, keys.full.index(stage), stage * together + row, place)
            box = ht.step(box, tile.boxes, SPEC)
            i += 1


@gluon.jit
def _part(sums, row: gl.constexpr, CUTS: gl.constexpr):
    """Sums of box `row` of a warpgroup's."""
    found = ()
    for part in gl.static_range(len(CUTS)):
        found += (sums[row * len(CUTS) + part],)
    return found


@gluon.jit
def _add(
    warpgroup: gl.constexpr, grad_query, room, keys, kept, tickets, scale, grid, SPEC: gl.constexpr
):  # fmt: skip
    """A consumer: tile after tile."""
    cuts: gl.constexpr = SPEC.cuts
    each: gl.constexpr = SPEC.each
    count = gl.to_tensor(0)
    base = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    while tl.condition(number < grid.tiles, disable_licm=True):
        tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
        boxes = tile.boxes[0] * tile.boxes[1] * tile.boxes[2]
        sums = ()
        for _ in gl.static_range(each):
            sums += hp.zeros(cuts)
        for i in range(base, base + boxes):
            stage = i % SPEC.stages
            mbarrier.wait(keys.full.index(stage), i // SPEC.stages & 1)
            box = hp.matrix(keys.buffers, stage)
            adding = ()
            for row in gl.static_range(each):
                slopes = hk.transposed(kept, stage * SPEC.together + warpgroup * each + row)
                adding += hp.add(slopes, box, _part(sums, row, cuts), cuts)
            # Products of the box before are done.
            sums = hp.landed(adding, each * len(cuts))
            mbarrier.arrive(keys.empty.index((i - 1) % SPEC.stages), count=1, pred=i > base)
        sums = hp.landed(sums, 0)
        base += boxes
        mbarrier.arrive(keys.empty.index((base - 1) % SPEC.stages), count=1)
        for row in gl.static_range(each):
            grad = hk.ordered(hp.scaled(_part(sums, row, cuts), scale))
            start = ht.corner(tile.start, warpgroup * each + row, SPEC)
            tma.store_wait(0)
            gl.thread_barrier()
            hc.put(grad_query, grad, room, tile.planes[0], start, tile, cuts, SPEC)
        number = hs.drawn(tickets, count, grid.tiles, SPEC)
        count += 1
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=[
        "scale", "first", "stop", "walks", "t", "h", "w", "key_t", "key_h", "key_w", "heads", "group"
    ]
)  # fmt: skip
def sum_queries(
    key, slopes, grad_query, counter, scale, first, stop, walks, t, h, w, key_t, key_h, key_w, heads, group,
    SPEC: gl.constexpr,
):  # fmt: skip
    """Gradient from blocks of slopes, `[1, 64 * blocks, 1, 64]`."""
    grid = ht.Grid((t, h, w), (key_t, key_h, key_w), heads, group, stop, first, walks)
    key, slopes, grad_query = hc.View(key, ()), hc.View(slopes, ()), hc.View(grad_query, ())
    keys = hc.ring(key, SPEC.stages, 2, 1 + SPEC.together)
    kept = hc.buffers(slopes, SPEC.together * SPEC.stages)
    rooms = hc.buffers(grad_query, 2)
    tickets = hs.tickets(2)
    gl.warp_specialize(
        [
            (_add, (0, grad_query, rooms.index(0), keys, kept, tickets, scale, grid, SPEC)),
            (_add, (1, grad_query, rooms.index(1), keys, kept, tickets, scale, grid, SPEC)),
            (_copy, (key, slopes, keys, kept, tickets, counter, grid, SPEC)),
        ],
        [4, 1],
        [216, 72],
    )
