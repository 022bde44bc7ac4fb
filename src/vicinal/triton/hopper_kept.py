"""Slopes that gradients of keys leave in memory for the gradient of queries, in Gluon: where they lie.

A block has those of a box of keys, its rows, and a box of queries. All blocks of a box of queries lie side by
side, one for each box of keys that it meets; boxes of keys take places in turn along each axis. In a block a
thread's queries lie side by side: `ordered` undoes that.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

# What a thread of a warpgroup holds of a block as `leave` writes it: the slopes of its two rows of products.
WRITTEN = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 32], [8, 0]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 64],
    )
)


@gluon.jit
def _count(extent, side: gl.constexpr):
    return (extent + side - 1) // side


@gluon.jit
def block_of(at, walk, box: gl.constexpr, outputs, SPEC: gl.constexpr):
    """First block of the box of queries at `at`, for head number `walk` of those that are kept."""
    slots: gl.constexpr = SPEC.slots
    number = walk * _count(outputs[0], box[0]) + at[0] // box[0]
    number = number * _count(outputs[1], box[1]) + at[1] // box[1]
    number = number * _count(outputs[2], box[2]) + at[2] // box[2]
    return number * (slots[0] * slots[1] * slots[2])


@gluon.jit
def slot_of(at, box: gl.constexpr, SPEC: gl.constexpr):
    """Place of the box of keys at `at` among the blocks of each box of queries that it meets."""
    slots: gl.constexpr = SPEC.slots
    place = at[0] // box[0] % slots[0] * slots[1] + at[1] // box[1] % slots[1]
    return place * slots[2] + at[2] // box[2] % slots[2]


@gluon.jit
def lane_of(start, SPEC: gl.constexpr):
    """`slot_of` a warpgroup's keys at `start`."""
    rows: gl.constexpr = SPEC.rows
    lane = gl.to_tensor(0)
    if SPEC.keeps:
        lane = slot_of(start, rows, SPEC)
    return lane


@gluon.jit
def leave(slopes, slope, block):
    """Writes slopes to a block, 16 bytes of a thread at a time."""
    packed = slope.reshape([64, 2, 4, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([64, 64])
    packed = gl.convert_layout(packed, WRITTEN)
    key = gl.arange(0, 64, layout=gl.SliceLayout(1, WRITTEN))
    place = gl.arange(0, 64, layout=gl.SliceLayout(0, WRITTEN))
    at = slopes + block.to(gl.int64) * (64 * 64)
    gl.store(at + (key[:, None] * 64 + place[None, :]), packed)


@gluon.jit
def fetch(slopes, kept, full, buffer, place):
    """Copies 64 rows of blocks, from `place` on, into a buffer."""
    mbarrier.expect(full, slopes.map.block_type.nbytes)
    tma.async_copy_global_to_shared(slopes.map, [place, 0, 0, 0, 0], full, kept.index(buffer))


@gluon.jit
def transposed(kept, buffer):
    """Slopes of a buffer, a row for each query."""
    return kept.index(buffer).reshape([64, 64]).permute((1, 0))


@gluon.jit
def _ordered(rows):
    width: gl.constexpr = rows.shape[1]
    return rows.reshape([2, 4, 4, 2, width]).permute((0, 2, 1, 3, 4)).reshape([64, width])


@gluon.jit
def ordered(sums):
    """Sums of 64 queries in their order, from that of blocks."""
    found = ()
    for part in gl.static_range(len(sums)):
        found += (_ordered(sums[part]),)
    return found
