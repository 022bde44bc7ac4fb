"""Who computes what and when in the Hopper kernels, in Gluon: tiles of a program, turns of its warpgroups."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from . import hopper_copies as hc
from . import hopper_tile as ht


@gluon.jit
def turns():
    """A barrier per warpgroup that says it may multiply; the first may at once."""
    turn = hc.barriers(2, 1)
    mbarrier.arrive(turn.index(0), count=1)
    return turn


@gluon.jit
def take(turn, i, warpgroup: gl.constexpr, SPEC: gl.constexpr):
    """Waits for the warpgroup's turn at step `i` of the walk, where they take turns."""
    if SPEC.turns:
        mbarrier.wait(turn.index(warpgroup), i & 1)


@gluon.jit
def give(turn, other: gl.constexpr, SPEC: gl.constexpr):
    """Gives the turn to the other warpgroup."""
    if SPEC.turns:
        mbarrier.arrive(turn.index(other), count=1)


@gluon.jit
def tickets(readers: gl.constexpr):
    """Room for the numbers of a program's next two tiles, for `readers` partitions."""
    layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    numbers = gl.allocate_shared_memory(gl.int32, [2, 1], layout)
    return hc.Ring(numbers, hc.barriers(2, 1), hc.barriers(2, readers))


@gluon.jit
def draw(tickets, counter, turn, grid, SPEC: gl.constexpr):
    """The tile after a program's tile number `turn`: the first that no program has, or one past all."""
    if SPEC.persistent:
        drawn = gl.atomic_add(counter, 1, sem="relaxed")
        # A program draws once a tile. The last to do so leaves the counter as the launch found it.
        gl.store(counter, 0, mask=drawn == grid.tiles - grid.first - 1)
        following = grid.first + drawn + gl.num_programs(0)
        slot = turn & 1
        mbarrier.wait(tickets.empty.index(slot), turn >> 1 & 1 ^ 1)
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
        tickets.buffers.index(slot).store(gl.full([1], following, gl.int32, layout=layout))
        mbarrier.arrive(tickets.full.index(slot), count=1)
    else:
        following = grid.tiles
    return following


@gluon.jit
def drawn(tickets, turn, tiles, SPEC: gl.constexpr, WARPS: gl.constexpr = 4):
    """The same for a partition of so many warps, from the warp that drew it."""
    if SPEC.persistent:
        slot = turn & 1
        mbarrier.wait(tickets.full.index(slot), turn >> 1 & 1)
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
        following = gl.max(tickets.buffers.index(slot).load(layout), 0)
        mbarrier.arrive(tickets.empty.index(slot), count=1)
    else:
        following = tiles
    return following


@gluon.jit
def copy_rows(first, second, firsts, seconds, tickets, grid, INVERSE: gl.constexpr, SPEC: gl.constexpr):
    """A partition of one warp: of tile after tile the two tensors that the rows of a gradient are.

    Rows are queries, or keys in the `INVERSE` walk.
    """
    # Queries of the next tile come once those before are in registers.
    depth: gl.constexpr = SPEC.depth if INVERSE else 1
    turn = gl.to_tensor(0)
    number = grid.first + gl.program_id(0)
    while number < grid.tiles:
        if INVERSE:
            tile = ht.key_tile(number, grid.outputs, grid.lengths, grid.heads // grid.group, SPEC)
            plane = tile.planes[1]
        else:
            tile = ht.query_tile(number, grid.outputs, grid.lengths, grid.heads, SPEC)
            plane = tile.planes[0]
        warpgroups: gl.constexpr = SPEC.warpgroups
        for warpgroup in gl.static_range(warpgroups):
            if SPEC.wants_query:
                hc.copy_row(first, firsts, warpgroup, turn, depth, plane, tile, SPEC)
            hc.copy_row(second, seconds, warpgroup, turn, SPEC.depth, plane, tile, SPEC)
        number = drawn(tickets, turn, grid.tiles, SPEC, 1)
        turn += 1
