"""What warpgroups know of boxes of queries and rows of keys, in Gluon: statistics, and what masks need.

It lies in shared memory: registers of the gradients of keys and values are for sums.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from . import hopper_kept as hk
from . import hopper_parts as hp
from . import hopper_tile as ht
from . import hopper_window as hw

# Numbers about a box that consumers find in shared memory, and where that of its slopes is.
LANES = gl.constexpr(8)
BLOCK = gl.constexpr(5)


@gluon.jit
def statistics_of(statistics, plane, head, at, index, tile, grid, SPEC: gl.constexpr):
    """Statistics of the box at `at`: `index` below the width reads log-sum-exps, above it deltas."""
    columns: gl.constexpr = SPEC.columns
    query = hw.clip(hw.coordinates(index % SPEC.width, at, columns), tile.outputs)
    tokens = grid.outputs[0] * grid.outputs[1] * grid.outputs[2]
    known = statistics + (tile.batch * grid.heads + head).to(gl.int64) * tokens
    return gl.load(known + (index // SPEC.width) * plane + ht.token(query, tile, grid.outputs, SPEC))


@gluon.jit
def keep_borders(borders, stage, at, tile, head, grid, SPEC: gl.constexpr):
    """Leaves what masks of the box at `at` need: a bit per warpgroup and axis, then `at`, and `BLOCK`."""
    columns: gl.constexpr = SPEC.columns
    if SPEC.masks or SPEC.keeps:
        lane = gl.arange(0, LANES, layout=gl.BlockedLayout([1], [32], [1], [0]))
        first = hw.crossed(at, hw.shared_viewers(ht.corner(tile.start, 0, SPEC), tile, SPEC), SPEC)
        second = hw.crossed(at, hw.shared_viewers(ht.corner(tile.start, 1, SPEC), tile, SPEC), SPEC)
        if SPEC.ragged:
            first |= hw.overhangs(ht.corner(tile.start, 0, SPEC), tile.lengths, SPEC).to(gl.int32) << 3
            second |= hw.overhangs(ht.corner(tile.start, 1, SPEC), tile.lengths, SPEC).to(gl.int32) << 3
        bits = gl.where(lane == 0, first, second)
        place = gl.where(lane == 2, at[0], gl.where(lane == 3, at[1], at[2]))
        if SPEC.keeps:
            walk = tile.batch * grid.heads + head - grid.walks
            place = gl.where(lane == BLOCK, hk.block_of(at, walk, columns, tile.outputs, SPEC), place)
        borders.index(stage).store(gl.where(lane < 2, bits, place))


@gluon.jit
def number(buffer, at: gl.constexpr):
    """Element `at` of a buffer, for every thread."""
    return gl.max(buffer.slice(at, 1).load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@gluon.jit
def _viewers_along(
    axis: gl.constexpr, viewers, warpgroup: gl.constexpr, end: gl.constexpr, SPEC: gl.constexpr
):  # fmt: skip
    """Room for the first query that sees each key of a warpgroup along `axis`, or for one past the last."""
    place: gl.constexpr = SPEC.mask_places[axis]
    return viewers.index((SPEC.mask_count * warpgroup + place) * 2 + end)


@gluon.jit
def keep_viewers(
    viewers, warpgroup: gl.constexpr, start, tile, layout: gl.constexpr, SPEC: gl.constexpr
):  # fmt: skip
    """Leaves in shared memory which queries see the 64 keys at `start`: registers are for sums."""
    rows: gl.constexpr = SPEC.rows
    key = hw.coordinates(gl.arange(0, 64, layout=layout), start, rows)
    first, stop = hw.viewers(hw.clip(key, tile.lengths), tile.lengths, SPEC)
    for axis in gl.static_range(3):
        if SPEC.masked[axis]:
            _viewers_along(axis, viewers, warpgroup, 0, SPEC).store(first[axis])
            _viewers_along(axis, viewers, warpgroup, 1, SPEC).store(stop[axis])
    # Or threads would meet in every box that has a mask.
    gl.thread_barrier()


@gluon.jit
def _viewers(
    axis: gl.constexpr, viewers, warpgroup: gl.constexpr, start, tile, i, layout: gl.constexpr,
    SPEC: gl.constexpr,
):  # fmt: skip
    """First and stop queries along `axis` that see the 64 keys at `start`: kept, or computed in step `i`."""
    if SPEC.apart:
        rows: gl.constexpr = SPEC.rows
        length = tile.lengths[axis]
        key = start[axis] + hw.place(hp.afresh(gl.arange(0, 64, layout=layout), i), rows, axis)
        key = gl.minimum(key, length - 1)
        first = hw.first_query(key, length, SPEC, axis)
        stop = hw.stop_query(key, length, SPEC, axis)
    else:
        first = _viewers_along(axis, viewers, warpgroup, 0, SPEC).load(layout)
        stop = _viewers_along(axis, viewers, warpgroup, 1, SPEC).load(layout)
    return first, stop


@gluon.jit
def hide(weights, axes, warpgroup: gl.constexpr, border, viewers, start, tile, i, SPEC: gl.constexpr):
    """`weights` of a box, masked along `axes`, a bit each."""
    layout: gl.constexpr = weights.type.layout
    row_layout: gl.constexpr = gl.SliceLayout(1, layout)
    columns: gl.constexpr = SPEC.columns
    for axis in gl.static_range(3):
        if SPEC.masked[axis]:  # noqa: SIM102 the outer branch is taken at compile time
            if axes & (1 << axis) != 0:
                query = hw.place(gl.arange(0, SPEC.width, layout=gl.SliceLayout(0, layout)), columns, axis)
                query += number(border, 2 + axis)
                first, stop = _viewers(axis, viewers, warpgroup, start, tile, i, row_layout, SPEC)
                weights = gl.where(hw.sees(query[None, :], first[:, None], stop[:, None], 0), weights, 0.0)
    if SPEC.ragged:  # noqa: SIM102 as above
        if axes & 8 != 0:
            # Where no keys are, slopes could be anything but finite, and are multiplied with zeros.
            rows: gl.constexpr = SPEC.rows
            key = hw.coordinates(hp.afresh(gl.arange(0, 64, layout=row_layout), i), start, rows)
            weights = gl.where(hw.inside(key, tile.lengths)[:, None], weights, 0.0)
    return weights
